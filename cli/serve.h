/* SPDX-License-Identifier: BSD-3-Clause */
/* Becoming a server: for the subcommands that serve something. */
#ifndef LIVEBLK_CLI_SERVE_H
#define LIVEBLK_CLI_SERVE_H

#include <glib.h>
#include <stdbool.h>

#include "cli/command.h"

struct serve_options {
    char *name; /* of the server */
    char *socket;
    char *port;
    char *bind;
    char *pidfile;
    char *image_references;
    gboolean read_only;
    /* As struct announcement has it. */
    void (*then)(const char *admin, void *data);
    void *then_data;
};

/*
 * Become nbdkit with these disks (as 'liveblk serve' takes them), by exec: returns only if that
 * failed, with the error set. Sockets are where the invocation and the options say, or in the usual
 * place; what can be reached is printed once it can.
 */
enum exit_status serve_disks(const struct invocation *invocation,
                             const struct serve_options *options, char *const *disks,
                             GError **error);

#endif
