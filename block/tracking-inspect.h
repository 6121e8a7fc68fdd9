/* SPDX-License-Identifier: BSD-3-Clause */
/* Tracking files that no server has open: looking at them, removing them, resized disks. */
#ifndef LIVEBLK_BLOCK_TRACKING_INSPECT_H
#define LIVEBLK_BLOCK_TRACKING_INSPECT_H

#include "block/tracking-file.h"

struct tracking_inspection {
    struct tracking_contents contents;
    struct change_map map; /* as it is in the file; after a power loss less than what changed */
    void *values;
    bool has_user;  /* a process has the file open now */
    bool same_boot; /* it was opened last since this host is up */
    /* Of the map: they mean nothing. Or 1 if it is only known that it is not what it was. */
    uint64_t bad_values;
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

/*
 * A disk of this path, which nobody serves, is about to be given other contents. A tracking file
 * beside it that a process that died left would not learn of it, as the disk's time tells only
 * after a clean end: it is marked as lost, durably. Returns 1 if it was, 0 if there is none; a
 * negative errno with the error set: then the disk must stay as it is.
 */
int tracking_give_up_left_over(const char *disk_path, GError **error);

/*
 * A disk that nobody serves got longer, and nothing else changed there, between two looks at its
 * file (tracking_identify): the tracking file, if it was that disk's before, is told so, and finds
 * a changed tail instead of a disk that somebody wrote. Returns 1 if it was, 0 if there is no file,
 * or one that says nothing of the disk as it was before; a negative errno with the error set.
 */
int tracking_follow_resize(const char *path, const struct tracking_identity *before,
                           const struct tracking_identity *after, GError **error);

#endif
