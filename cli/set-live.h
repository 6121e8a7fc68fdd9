/* SPDX-License-Identifier: BSD-3-Clause */
/* Restoring while the disk is used already. */
#ifndef LIVEBLK_CLI_SET_LIVE_H
#define LIVEBLK_CLI_SET_LIVE_H

#include "cli/set.h"

/*
 * Become a server of a disk that has in the image `target` what has arrived of a backup, and the
 * rest from the source, a set's directory or an NBD URI; and have the rest copied meanwhile. An
 * image that was begun by the same call goes on. Returns only if that failed.
 */
enum exit_status set_restore_live(const struct set_call *call, const char *source,
                                  const char *target, GError **error);

#endif
