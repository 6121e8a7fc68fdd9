/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/announce.h"

#include <errno.h>
#include <jansson.h>
#include <linux/close_range.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"

/* Between two attempts to connect; nothing tells when a socket comes into being. */
#define RETRY_MS 20

/* The URI of an export; NULL if somebody else opened the sockets. The caller frees. */
static char *export_uri(const struct announcement *announcement, const char *export)
{
    if (announcement->socket) {
        return nbd_unix_uri(announcement->tls, announcement->socket, export);
    }
    if (announcement->host) {
        g_autofree char *name = g_uri_escape_string(export, NULL, FALSE);
        const char *scheme = announcement->tls ? "nbds" : "nbd";
        /* An IPv6 address has colons of its own. */
        bool brackets = strchr(announcement->host, ':');
        return g_strdup_printf("%s://%s%s%s:%s/%s", scheme, brackets ? "[" : "", announcement->host,
                               brackets ? "]" : "", announcement->port, name);
    }
    return NULL;
}

static void print_text(const struct announcement *announcement, const json_t *devices)
{
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        const char *name = member_text(device, "device", "");
        g_autofree char *uri = export_uri(announcement, name);
        printf("%s: %s\n", name, uri ? uri : "(on the sockets that were passed)");
    }
    printf("admin: %s\n", announcement->admin);
    fflush(stdout);
}

static void print_as_json(const struct announcement *announcement, const json_t *devices,
                          pid_t server)
{
    json_t *exports = json_array();
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        const char *name = member_text(device, "device", "");
        g_autofree char *uri = export_uri(announcement, name);
        json_array_append_new(exports, json_pack("{s:s, s:s?}", "name", name, "uri", uri));
    }
    print_json_line(json_pack("{s:s, s:i, s:s, s:o}", "name", announcement->name, "pid",
                              (int)server, "admin", announcement->admin, "exports", exports));
}

/* The devices of the server once it answers; NULL: it ended. */
static json_t *await_server(const char *admin, int server_fd)
{
    json_t *devices = NULL;

    while (!devices && !poll(&(struct pollfd){.fd = server_fd, .events = POLLIN}, 1, RETRY_MS)) {
        AUTO_CLIENT client = client_connect(admin, NULL);
        if (client) {
            devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, NULL);
        }
    }
    return devices;
}

static void announce(const struct announcement *announcement, pid_t server, int server_fd)
{
    json_t *devices = await_server(announcement->admin, server_fd);

    if (devices && announcement->json) {
        print_as_json(announcement, devices, server);
    } else if (devices) {
        print_text(announcement, devices);
    }
    if (!devices && announcement->listener) {
        unix_socket_unlisten(announcement->listener);
    } else if (announcement->listener) {
        /* Only the server listens now: with it the socket dies, however long we stay. */
        close(announcement->listener->fd);
    }
    if (devices && announcement->then) {
        announcement->then(announcement->admin, announcement->then_data);
    }
    json_decref(devices);
}

/* In the child: leave at once, so that the server has no child it does not know of. */
static void fork_announcer(const struct announcement *announcement, pid_t server, int server_fd)
{
    if (fork() != 0) {
        _exit(0);
    }
    if (!announcement->listener) {
        /* Descriptors meant for the server (socket activation) must not stay open here. */
        dup2(server_fd, 3);
        close_range(4, ~0U, 0);
        server_fd = 3;
    }
    announce(announcement, server, server_fd);
    _exit(0);
}

bool announce_when_ready(const struct announcement *announcement, GError **error)
{
    pid_t server = getpid();
    int server_fd = pidfd_open(server, 0);
    pid_t child = server_fd < 0 ? -1 : fork();

    if (child < 0) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not start a process: %s",
                    g_strerror(errno));
        return false;
    }
    if (child == 0) {
        fork_announcer(announcement, server, server_fd);
    }
    close(server_fd);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    return true;
}
