/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Copying a disk: a job of this process on the copy engine, which takes checksums of what it reads,
 * or compares with those of a backup that it reads.
 */
#ifndef LIVEBLK_SETS_COPY_H
#define LIVEBLK_SETS_COPY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "sets/backup-chain.h"
#include "sets/sums.h"

struct copy_plan {
    struct block_node *source; /* borrowed */
    struct block_node *target; /* as image_make() returned it, at least as long; it is taken */
    /* The source is a backup (sets/backup-node.h). Damage fails the copy with the sentence that
     * says where it is. NULL: it is not. */
    const struct backup_chain *chain;
    /* What is copied: a bitmap of granules (SUMS_GRANULE), which is used up; NULL: all. */
    struct dirty_bitmap *wanted;
    /* What is known to be zero; of a granule that is in it as a whole nothing is read. Or NULL. */
    struct dirty_bitmap *zeroes;
    struct sums *sums;    /* gets what was read; or NULL */
    bool explicit_zeroes; /* the target has, or will have, something below it */
    bool compress;
    int64_t speed; /* bytes per second; 0: as fast as it can */
    /* Called every now and then on the calling thread; false ends the copy. May be NULL. */
    block_progress *progress;
    void *progress_data;
};

/*
 * Copy to a new image, whose path this is, and image_finish() it. Blocks. One at a time in a
 * process, not on the main thread. Returns a negative errno with the error set, -ECANCELED if
 * progress said so: the image is closed in any case, and what there is of it is the caller's to
 * remove.
 */
int copy_to_image(const struct copy_plan *plan, const char *path, GError **error);

/* A thread for the graph, which jobs need: before the first copy, and at the end (or earlier: there
 * is no thread any more then, and to end it again does nothing). */
int copy_start_up(GError **error);
void copy_shut_down(void);

#endif
