/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/address.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/error.h"
#include "server/lookup.h"

static const struct qmp_member inet_members[] = {
    {"host", &qmp_type_string, .doc = "A name or a number; empty: all addresses."},
    {"port", &qmp_type_string, .doc = "A number or a service; 0: the system chooses."},
    {"numeric", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "The host is a number: no name is looked up."},
    {"to", &qmp_type_uint16, .optional = true,
     .doc = "Take the first free port from `port` to this one."},
    {"ipv4", &qmp_type_bool, .optional = true, .doc = "Whether to listen on IPv4 addresses."},
    {"ipv6", &qmp_type_bool, .optional = true, .doc = "Whether to listen on IPv6 addresses."},
    {"keep-alive", &qmp_type_bool, .optional = true,
     .doc = "Look now and then whether silent clients are there. It is always so here."},
    {NULL},
};
static const struct qmp_type inet_type = {
    .name = "InetSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = inet_members,
};
static const struct qmp_member unix_members[] = {
    {"path", &qmp_type_string, .doc = "The socket's path."},
    {NULL},
};
const struct qmp_type unix_socket_address_type = {
    .name = "UnixSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = unix_members,
};
static const struct qmp_member vsock_members[] = {
    {"cid", &qmp_type_string, .doc = "The context ID, a number."},
    {"port", &qmp_type_string, .doc = "The port, a number."},
    {NULL},
};
const struct qmp_type vsock_socket_address_type = {
    .name = "VsockSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = vsock_members,
};
static const struct qmp_member fd_members[] = {
    {"str", &qmp_type_string, .doc = "The number of a descriptor that listens; it is taken over."},
    {NULL},
};
static const struct qmp_type fd_type = {
    .name = "FdSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = fd_members,
};

static const struct qmp_member inet_data[] = {{"data", &inet_type, .doc = "It."}, {NULL}};
static const struct qmp_member unix_data[] = {{"data", &unix_socket_address_type, .doc = "It."},
                                              {NULL}};
static const struct qmp_member vsock_data[] = {{"data", &vsock_socket_address_type, .doc = "It."},
                                               {NULL}};
static const struct qmp_member fd_data[] = {{"data", &fd_type, .doc = "It."}, {NULL}};
static const struct qmp_type inet_wrapper = {
    .name = "InetSocketAddressWrapper", .kind = QMP_KIND_OBJECT, .members = inet_data};
static const struct qmp_type unix_wrapper = {
    .name = "UnixSocketAddressWrapper", .kind = QMP_KIND_OBJECT, .members = unix_data};
static const struct qmp_type vsock_wrapper = {
    .name = "VsockSocketAddressWrapper", .kind = QMP_KIND_OBJECT, .members = vsock_data};
static const struct qmp_type fd_wrapper = {
    .name = "FdSocketAddressWrapper", .kind = QMP_KIND_OBJECT, .members = fd_data};

static const char *const address_types[] = {"inet", "unix", "vsock", "fd", NULL};
const struct qmp_type socket_address_type_type = {
    .name = "SocketAddressType",
    .kind = QMP_KIND_ENUM,
    .values = address_types,
};
static const struct qmp_member address_members[] = {
    {"type", &socket_address_type_type, .doc = "What it is."},
    {NULL},
};
static const struct qmp_variant legacy_variants[] = {
    {"inet", &inet_wrapper},
    {"unix", &unix_wrapper},
    {"vsock", &vsock_wrapper},
    {"fd", &fd_wrapper},
    {NULL},
};
const struct qmp_type socket_address_legacy_type = {
    .name = "SocketAddressLegacy",
    .kind = QMP_KIND_OBJECT,
    .members = address_members,
    .discriminator = "type",
    .variants = legacy_variants,
};
static const struct qmp_variant flat_variants[] = {
    {"inet", &inet_type},
    {"unix", &unix_socket_address_type},
    {"vsock", &vsock_socket_address_type},
    {"fd", &fd_type},
    {NULL},
};
const struct qmp_type socket_address_type = {
    .name = "SocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = address_members,
    .discriminator = "type",
    .variants = flat_variants,
};

/* ---- Reading --------------------------------------------------------------------------------- */

/* A family that is asked for rules out the other one, unless that is asked for, too. */
static int read_families(json_t *data, struct socket_address *address, GError **error)
{
    json_t *ipv4 = json_object_get(data, "ipv4"), *ipv6 = json_object_get(data, "ipv6");

    address->no_ipv4 = ipv4 ? json_is_false(ipv4) : json_is_true(ipv6);
    address->no_ipv6 = ipv6 ? json_is_false(ipv6) : json_is_true(ipv4);
    return address->no_ipv4 && address->no_ipv6
               ? block_error(error, EINVAL, "Cannot disable IPv4 and IPv6 at same time")
               : 0;
}

static int read_inet(json_t *data, struct socket_address *address, GError **error)
{
    address->kind = SOCKET_ADDRESS_INET;
    address->host = json_string_value(json_object_get(data, "host"));
    address->port = json_string_value(json_object_get(data, "port"));
    address->is_numeric = lookup_bool(data, "numeric", false);
    address->last_port = (unsigned)lookup_integer(data, "to", 0);
    return read_families(data, address, error);
}

static int read_fd(json_t *data, struct socket_address *address, GError **error)
{
    const char *text = json_string_value(json_object_get(data, "str"));
    guint64 number;

    if (!g_ascii_string_to_unsigned(text, 10, 0, INT32_MAX, &number, NULL)) {
        return block_error(error, EINVAL,
                           "File descriptor named '%s' has not been found: it has to be a number",
                           text);
    }
    address->kind = SOCKET_ADDRESS_FD;
    address->fd = (int)number;
    return 0;
}

static int read_data(const char *type, json_t *data, struct socket_address *address, GError **error)
{
    *address = (struct socket_address){.kind = SOCKET_ADDRESS_UNIX, .fd = -1};
    if (!strcmp(type, "inet")) {
        return read_inet(data, address, error);
    }
    if (!strcmp(type, "fd")) {
        return read_fd(data, address, error);
    }
    if (!strcmp(type, "vsock")) {
        address->kind = SOCKET_ADDRESS_VSOCK;
        address->cid = json_string_value(json_object_get(data, "cid"));
        address->port = json_string_value(json_object_get(data, "port"));
        return 0;
    }
    address->path = json_string_value(json_object_get(data, "path"));
    return 0;
}

int address_read_legacy(json_t *value, struct socket_address *address, GError **error)
{
    return read_data(json_string_value(json_object_get(value, "type")),
                     json_object_get(value, "data"), address, error);
}

int address_read(json_t *value, struct socket_address *address, GError **error)
{
    return read_data(json_string_value(json_object_get(value, "type")), value, address, error);
}
