/* SPDX-License-Identifier: BSD-3-Clause */
/* Looking at a tracking file that nobody need have open, and removing it. */
#ifndef LIVEBLK_BLOCK_TRACKING_INSPECT_H
#define LIVEBLK_BLOCK_TRACKING_INSPECT_H

#include "block/tracking-file.h"

struct tracking_inspection {
    struct tracking_contents contents;
    struct change_map map; /* as it is in the file; after a power loss less than what changed */
    void *values;
    bool has_user;       /* a process has the file open now */
    bool same_boot;      /* it was opened last since this host is up */
    uint64_t bad_values; /* of the map: they mean nothing */
};

/*
 * Read all of a tracking file. Returns 0, or a negative errno with *loss and the error saying what
 * is wrong with it; *loss is TRACKING_NOT_LOST if it could not be read at all. The caller clears
 * it if it succeeded.
 */
int tracking_inspect(const char *path, struct tracking_inspection *inspection,
                     enum tracking_loss *loss, GError **error);
void tracking_inspection_clear(struct tracking_inspection *inspection);

/*
 * Remove a tracking file: -EBUSY if a process uses it, -EINVAL if it is none, with the error set.
 * A damaged one is one.
 */
int tracking_drop(const char *path, GError **error);

#endif
