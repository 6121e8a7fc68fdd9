/* SPDX-License-Identifier: BSD-3-Clause */
/* Character devices of liveblk-storage-daemon: what its monitors talk over, each one's. */
#ifndef LIVEBLK_CLI_STORAGE_DAEMON_CHARDEV_H
#define LIVEBLK_CLI_STORAGE_DAEMON_CHARDEV_H

#include <glib.h>
#include <stdbool.h>

#include "server/server.h"

/* What --chardev takes, if its text asks for that; else NULL. The caller frees. */
char *chardev_help(const char *text);

/*
 * --chardev: open one. With wait=on this takes until there is a client. Returns a negative errno;
 * -ECANCELED without an error: the process is to end.
 */
int chardev_add(const char *text, bool is_daemon, GError **error);

/* --monitor: an admin channel over one of them, which nothing else uses. */
int chardev_add_monitor(const char *text, GError **error);

/* Once, when all else is there: they listen to their clients from now on. */
void chardev_start_monitors(struct server *server);

/* Close what no monitor serves. */
void chardev_close_all(void);

#endif
