/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/error.h"

#define BACKLOG 128

static void add_socket(struct listener *listener, int fd)
{
    g_array_append_val(listener->sockets, fd);
}

static int set_option(int fd, int level, int option)
{
    int one = 1;

    return setsockopt(fd, level, option, &one, sizeof(one));
}

/* ---- UNIX ------------------------------------------------------------------------------------ */

static int listen_unix(const struct socket_address *address, struct listener *listener,
                       GError **error)
{
    int status = unix_socket_listen(address->path, &listener->unix_socket, error);

    if (status == 0) {
        add_socket(listener, listener->unix_socket.fd);
    }
    return status;
}

/* ---- TCP ------------------------------------------------------------------------------------- */

static int resolve(const struct socket_address *address, const char *port, struct addrinfo **found,
                   GError **error)
{
    const struct addrinfo hints = {
        .ai_flags = AI_PASSIVE | (address->is_numeric ? AI_NUMERICHOST : AI_ADDRCONFIG),
        .ai_family = address->no_ipv6   ? AF_INET
                     : address->no_ipv4 ? AF_INET6
                                        : AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
    };
    int status = getaddrinfo(*address->host ? address->host : NULL, port, &hints, found);

    return status ? block_error(error, EINVAL, "address resolution failed for %s:%s: %s",
                                address->host, port, gai_strerror(status))
                  : 0;
}

static int open_inet(const struct addrinfo *info)
{
    AUTO_CLOSE int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || set_option(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
        (info->ai_family == AF_INET6 && set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) < 0) ||
        bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        return -errno;
    }
    return steal_fd(&fd);
}

/* All of a name's addresses, but those that the machine does not have. */
static int listen_on_port(const struct socket_address *address, const char *port,
                          struct listener *listener, GError **error)
{
    struct addrinfo *found;
    int status = resolve(address, port, &found, error);
    int problem = 0;

    if (status < 0) {
        return status;
    }
    for (const struct addrinfo *info = found; info && problem == 0; info = info->ai_next) {
        int fd = open_inet(info);

        if (fd >= 0) {
            add_socket(listener, fd);
        } else if (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL) {
            problem = fd;
        }
    }
    freeaddrinfo(found);
    if (problem == 0 && listener->sockets->len) {
        return 0;
    }
    problem = problem ? problem : -EADDRNOTAVAIL;
    block_error_errno(error, -problem, "Could not listen on %s:%s", address->host, port);
    return problem;
}

static void close_sockets(struct listener *listener)
{
    for (guint i = 0; i < listener->sockets->len; i++) {
        close(g_array_index(listener->sockets, int, i));
    }
    g_array_set_size(listener->sockets, 0);
}

static int listen_inet(const struct socket_address *address, struct listener *listener,
                       GError **error)
{
    g_autoptr(GError) problem = NULL;
    guint64 first = 0;

    if (!address->last_port) {
        return listen_on_port(address, address->port, listener, error);
    }
    if (!g_ascii_string_to_unsigned(address->port, 10, 0, UINT16_MAX, &first, NULL) ||
        first > address->last_port) {
        return block_error(error, EINVAL, "There are no ports from '%s' to %u", address->port,
                           address->last_port);
    }
    for (unsigned port = (unsigned)first; port <= address->last_port; port++) {
        g_autofree char *text = g_strdup_printf("%u", port);

        g_clear_error(&problem);
        if (listen_on_port(address, text, listener, &problem) == 0) {
            return 0;
        }
        close_sockets(listener);
        if (!g_error_matches(problem, BLOCK_ERROR, EADDRINUSE)) {
            break;
        }
    }
    int status = block_error_code(problem);
    g_propagate_error(error, g_steal_pointer(&problem));
    return status;
}

/* ---- vsock ----------------------------------------------------------------------------------- */

static int listen_vsock(const struct socket_address *address, struct listener *listener,
                        GError **error)
{
    struct sockaddr_vm there = {.svm_family = AF_VSOCK};
    guint64 cid, port;

    if (!g_ascii_string_to_unsigned(address->cid, 10, 0, UINT32_MAX, &cid, NULL) ||
        !g_ascii_string_to_unsigned(address->port, 10, 0, UINT32_MAX, &port, NULL)) {
        return block_error(error, EINVAL,
                           "The cid and port of a vsock address are numbers, not "
                           "'%s' and '%s'",
                           address->cid, address->port);
    }
    there.svm_cid = (unsigned)cid;
    there.svm_port = (unsigned)port;
    AUTO_CLOSE int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&there, sizeof(there)) < 0 ||
        listen(fd, BACKLOG) < 0) {
        return block_error_errno(error, errno, "Could not listen on vsock:%s:%s", address->cid,
                                 address->port);
    }
    add_socket(listener, steal_fd(&fd));
    return 0;
}

/* ---- Passed to us ---------------------------------------------------------------------------- */

static int listen_fd(const struct socket_address *address, struct listener *listener,
                     GError **error)
{
    int status = unix_socket_adopt(address->fd, &listener->unix_socket, error);

    if (status == 0) {
        add_socket(listener, address->fd);
    }
    return status;
}

/* ---------------------------------------------------------------------------------------------- */

static int listen_on(const struct socket_address *address, struct listener *listener,
                     GError **error)
{
    switch (address->kind) {
    case SOCKET_ADDRESS_UNIX:
        return listen_unix(address, listener, error);
    case SOCKET_ADDRESS_INET:
        return listen_inet(address, listener, error);
    case SOCKET_ADDRESS_VSOCK:
        return listen_vsock(address, listener, error);
    case SOCKET_ADDRESS_FD:
        return listen_fd(address, listener, error);
    }
    return -EINVAL;
}

int listener_open(const struct socket_address *address, struct listener *listener, GError **error)
{
    *listener = (struct listener){
        .sockets = g_array_new(FALSE, FALSE, sizeof(int)),
        .unix_socket = {.fd = -1, .directory_fd = -1},
    };
    int status = listen_on(address, listener, error);
    if (status < 0) {
        listener_close(listener);
    }
    return status;
}

void listener_close(struct listener *listener)
{
    if (listener->unix_socket.fd >= 0) {
        unix_socket_unlisten(&listener->unix_socket);
    } else {
        close_sockets(listener);
    }
    g_clear_pointer(&listener->sockets, g_array_unref);
}
