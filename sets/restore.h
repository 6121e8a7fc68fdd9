/* SPDX-License-Identifier: BSD-3-Clause */
/* Restoring: a flat image with what a disk held, that takes no space for zeroes. */
#ifndef LIVEBLK_SETS_RESTORE_H
#define LIVEBLK_SETS_RESTORE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "sets/set.h"

/* What the image is called until it is complete: this is put after its name. */
#define RESTORE_PARTIAL ".partial"

struct restore_plan {
    const struct set *set; /* the directory; or NULL: */
    const char *uri;       /* of an NBD server that serves the backup */
    const char *id, *disk; /* with set */
    const char *target;
    bool is_raw;
    bool may_replace; /* a file that is there */
    int64_t speed;    /* bytes per second; 0: as fast as it can */
    block_progress *progress;
    void *progress_data;
};

/*
 * Restore: every block is compared with its checksum (by the server, where it is one). The target
 * is there when all of it is safe, and not before. *length: the disk's. Returns a negative errno
 * with the error set.
 */
int restore_run(const struct restore_plan *plan, uint64_t *length, GError **error);

#endif
