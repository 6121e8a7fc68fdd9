/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/listening.h"

#include <arpa/inet.h>
#include <glib.h>
#include <inttypes.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "server/qmp/json-value.h"

static char *start_directory;

void listening_init(void)
{
    if (!start_directory) {
        start_directory = g_get_current_dir();
    }
}

/* NULL: it has no name, or one that is no path. */
static json_t *unix_object(const struct sockaddr_un *address, socklen_t bytes)
{
    size_t most = MIN(bytes, sizeof(*address)) - offsetof(struct sockaddr_un, sun_path);

    if (bytes <= offsetof(struct sockaddr_un, sun_path) || !address->sun_path[0]) {
        return NULL;
    }
    g_autofree char *name = g_strndup(address->sun_path, most);
    g_autofree char *path = g_canonicalize_filename(name, start_directory);
    return json_pack("{s:s, s:o}", "type", "unix", "path", json_value_from_text(path));
}

static json_t *inet_object(int family, const void *host, in_port_t port)
{
    char text[INET6_ADDRSTRLEN];
    g_autofree char *number = g_strdup_printf("%u", ntohs(port));

    return inet_ntop(family, host, text, sizeof(text))
               ? json_pack("{s:s, s:s, s:s}", "type", "inet", "host", text, "port", number)
               : NULL;
}

static json_t *vsock_object(const struct sockaddr_vm *address)
{
    g_autofree char *port = g_strdup_printf("%" PRIu32, address->svm_port);

    return json_pack("{s:s, s:s}", "type", "vsock", "port", port);
}

static json_t *address_object(const struct sockaddr_storage *address, socklen_t bytes)
{
    const void *any = address;
    const struct sockaddr_in *inet = any;
    const struct sockaddr_in6 *inet6 = any;

    switch (address->ss_family) {
    case AF_UNIX:
        return unix_object(any, bytes);
    case AF_INET:
        return inet_object(AF_INET, &inet->sin_addr, inet->sin_port);
    case AF_INET6:
        return inet_object(AF_INET6, &inet6->sin6_addr, inet6->sin6_port);
    case AF_VSOCK:
        return vsock_object(any);
    default:
        return NULL;
    }
}

static bool is_option(int fd, int option, int wanted)
{
    int value = 0;
    socklen_t bytes = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, option, &value, &bytes) == 0 && value == wanted;
}

json_t *listening_sockets(bool (*is_other)(int fd))
{
    g_autoptr(GDir) descriptors = g_dir_open("/proc/self/fd", 0, NULL);
    json_t *list = json_array();
    const char *name;

    while (descriptors && (name = g_dir_read_name(descriptors))) {
        struct sockaddr_storage address = {0};
        socklen_t bytes = sizeof(address);
        int fd = atoi(name);

        if (!is_other(fd) && is_option(fd, SO_ACCEPTCONN, 1) &&
            is_option(fd, SO_TYPE, SOCK_STREAM) &&
            getsockname(fd, (struct sockaddr *)&address, &bytes) == 0) {
            json_t *object = address_object(&address, bytes);

            if (object) {
                json_array_append_new(list, object);
            }
        }
    }
    return list;
}
