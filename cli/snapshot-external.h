/* SPDX-License-Identifier: BSD-3-Clause */
/* External snapshots of disks of a server: each goes on in a new image, an overlay. */
#ifndef LIVEBLK_CLI_SNAPSHOT_EXTERNAL_H
#define LIVEBLK_CLI_SNAPSHOT_EXTERNAL_H

#include <glib.h>

#include "cli/command.h"

/*
 * Take them, all at one instant. values: of --external, NULL-terminated: the FILE for the disk that
 * the argument names, or, without an argument, DEVICE=FILE for each disk.
 */
enum exit_status snapshot_external(const struct invocation *invocation, char *const *values,
                                   GError **error);

#endif
