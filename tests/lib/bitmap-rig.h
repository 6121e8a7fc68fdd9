/* SPDX-License-Identifier: BSD-3-Clause */
/* A rig's disk with a user's bitmap, and backups that use it. */
#ifndef LIVEBLK_TESTS_LIB_BITMAP_RIG_H
#define LIVEBLK_TESTS_LIB_BITMAP_RIG_H

#include "block/dirty-bitmap.h"
#include "tests/lib/backup-rig.h"

/* Add a bitmap 'b' to the source; it records. */
void rig_add_bitmap(struct rig *rig, uint64_t granularity);
/* Remove it again, whatever it holds. It is not busy. */
void rig_remove_bitmap(struct rig *rig);

/* The bitmap 'b' as it is now; no job may end meanwhile. */
struct dirty_bitmap *rig_bitmap(struct rig *rig);

/* The successor that is on the source; there is one. */
struct dirty_bitmap *rig_successor(struct rig *rig);

/* A backup of the bitmap's, created and at its moment, as rig_backup; it is not started. */
struct job *rig_begin_with_bitmap(struct rig *rig, const struct backup_options *options,
                                  struct model **snapshot);

/* "0 2 5": the numbers of the dirty granules of so many bytes; the caller frees. */
char *rig_dirty(struct dirty_bitmap *bitmap, uint64_t granule);

#endif
