/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk-nbd: one image, one export, with the command line of qemu-nbd. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "cli/nbd-image.h"
#include "cli/nbd-kernel.h"
#include "cli/nbd-list.h"
#include "cli/nbd-options.h"
#include "cli/process.h"
#include "server/nbd/exports.h"
#include "server/nbd/server.h"
#include "server/objects.h"
#include "server/server.h"

#define PROGRAM "liveblk-nbd"

/* Where the service manager puts the only socket that it passes. */
#define ACTIVATION_FD 3

static int add_objects(struct server *server, const GPtrArray *objects, GError **error)
{
    int status = 0;

    for (guint i = 0; i < objects->len && status == 0; i++) {
        const char *text = g_ptr_array_index(objects, i);

        status = server_run(server, "object-add", text, "qom-type", error);
        if (status < 0) {
            g_prefix_error(error, "--object %s: ", text);
        }
    }
    return status;
}

static int add_export(const struct nbd_arguments *arguments, struct block_node *node,
                      GError **error)
{
    g_autofree struct nbd_export_bitmap *bitmaps =
        g_new0(struct nbd_export_bitmap, arguments->bitmaps->len);
    struct nbd_export_options options = {
        .id = "export",
        .target = node->name,
        .name = arguments->name,
        .description = arguments->description,
        .writable = !arguments->image.read_only,
        .writethrough = arguments->writethrough,
        .allocation_depth = arguments->allocation_depth,
        .bitmaps = bitmaps,
        .bitmap_count = arguments->bitmaps->len,
    };

    for (guint i = 0; i < arguments->bitmaps->len; i++) {
        bitmaps[i].name = g_ptr_array_index(arguments->bitmaps, i);
    }
    return nbd_export_add(&options, error);
}

static void on_client_left(unsigned left, void *data)
{
    if (left == 0) {
        process_finish();
    }
}

static struct socket_address address_of(const struct nbd_arguments *arguments)
{
    if (arguments->is_activated) {
        return (struct socket_address){.kind = SOCKET_ADDRESS_FD, .fd = ACTIVATION_FD};
    }
    if (arguments->socket) {
        return (struct socket_address){.kind = SOCKET_ADDRESS_UNIX, .path = arguments->socket};
    }
    return (struct socket_address){
        .kind = SOCKET_ADDRESS_INET,
        .host = arguments->bind ? arguments->bind : "0.0.0.0",
        .port = arguments->port ? arguments->port : NBD_PORT,
    };
}

static int listen_for_clients(const struct nbd_arguments *arguments, GError **error)
{
    AUTO(tls_credentials) credentials = NULL;
    AUTO(authorization) authorization = NULL;
    struct nbd_server_options options = {
        .id = "",
        .address = address_of(arguments),
        .max_connections = arguments->clients,
        .handshake_s = arguments->handshake_s,
        .client_left = arguments->is_persistent ? NULL : on_client_left,
    };

    if (arguments->tls_credentials &&
        !(credentials = object_tls_credentials(arguments->tls_credentials, error))) {
        g_prefix_error(error, "Failed to get TLS creds: ");
        return -EINVAL;
    }
    if (arguments->tls_authorization &&
        !(authorization = object_authorization(arguments->tls_authorization, error))) {
        return -EINVAL;
    }
    options.credentials = credentials;
    options.authorization = authorization;
    return nbd_server_start(&options, error);
}

static int open_image(const struct nbd_arguments *arguments, GError **error)
{
    AUTO(block_node) node = nbd_image_open(&arguments->image, error);

    return node ? add_export(arguments, node, error) : -EINVAL;
}

static int start(const struct nbd_arguments *arguments, struct server *server, GError **error)
{
    int status = server_prepare(server, error);

    if (status == 0) {
        status = server_start(server, NULL, NULL, error);
    }
    if (status == 0) {
        status = add_objects(server, arguments->objects, error);
    }
    if (status == 0) {
        status = open_image(arguments, error);
    }
    if (status == 0) {
        status = listen_for_clients(arguments, error);
    }
    if (status == 0 && arguments->pid_file) {
        status = process_write_pid_file(arguments->pid_file, error);
    }
    return status;
}

static int connect_device(const struct nbd_arguments *arguments, struct nbd_kernel_device **device,
                          GError **error)
{
    if (!arguments->device) {
        return 0;
    }
    *device = nbd_kernel_connect(arguments->device, arguments->socket, arguments->name, error);
    return *device ? 0 : -EIO;
}

static int serve(const struct nbd_arguments *arguments, GError **error)
{
    struct nbd_kernel_device *device = NULL;

    if (arguments->device && nbd_kernel_check(error) < 0) {
        return -ENODEV;
    }
    if (arguments->forks) {
        process_fork();
    }
    struct server *server = server_new();
    int status = start(arguments, server, error);
    if (status == 0) {
        status = connect_device(arguments, &device, error);
    }
    if (status == 0) {
        process_ready(arguments->is_verbose);
        while (process_wait(NULL, 0)) {
        }
    }
    nbd_kernel_device_free(device);
    server_free(server);
    process_end();
    return status;
}

static int disconnect_device(const char *path, GError **error)
{
    int status = nbd_kernel_check(error);

    if (status == 0) {
        status = nbd_kernel_disconnect(path, error);
    }
    if (status == 0) {
        printf("%s disconnected\n", path);
    }
    return status;
}

static int run(const struct nbd_arguments *arguments, GError **error)
{
    switch (arguments->mode) {
    case NBD_MODE_HELP:
        arguments->help ? (void)fputs(arguments->help, stdout) : nbd_arguments_print_help();
        return 0;
    case NBD_MODE_VERSION:
        printf("%s %s (with the command line of qemu-nbd 10.0)\n", PROGRAM, server_version());
        return 0;
    case NBD_MODE_LIST:
        return nbd_list_exports(arguments, error);
    case NBD_MODE_DISCONNECT:
        return disconnect_device(arguments->file, error);
    case NBD_MODE_SERVE:
        return serve(arguments, error);
    }
    return -EINVAL;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    struct nbd_arguments arguments;

    process_begin(PROGRAM);
    int status = nbd_arguments_read(argc, argv, &arguments, &error);
    if (status == 0) {
        status = run(&arguments, &error);
    }
    if (status < 0) {
        process_complain("%s", error->message);
    }
    nbd_arguments_clear(&arguments);
    return status < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
