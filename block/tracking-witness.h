/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A second place to say that a map is lost: the disk's own file, for when the storage of the
 * tracking file does not answer. It is an extended attribute of the image's, named after the map's
 * UUID; so the contents of the disk are not touched, and no other map is meant.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_WITNESS_H
#define LIVEBLK_BLOCK_TRACKING_WITNESS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Say so, durably. A negative errno: the disk is no regular file (path may be NULL), its file
 * system has no extended attributes of users, or writing failed. May block on bad storage.
 */
int tracking_witness_put(const char *path, const uint8_t *uuid);

/* The tracking file says so itself now, or is gone. */
void tracking_witness_remove(const char *path, const uint8_t *uuid);

/* Whether it was said, or may have been: it cannot be read. */
bool tracking_witness_is_there(const char *path, const uint8_t *uuid);

#endif
