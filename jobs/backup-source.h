/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a backup copies, or compares: all of a point in time, each part of which is given up once
 * that is done.
 */
#ifndef LIVEBLK_JOBS_BACKUP_SOURCE_H
#define LIVEBLK_JOBS_BACKUP_SOURCE_H

#include "block/point-in-time.h"
#include "jobs/backup-bitmap.h"
#include "jobs/copy-engine.h"
#include "jobs/verify.h"

struct backup_source {
    struct copy_source copy; /* first: the engine's operations are cast to this */
    struct point_in_time *point;
    struct block_node *node;      /* what the point in time is of; borrowed */
    struct backup_bitmap *bitmap; /* is told what was copied; borrowed */
    struct verify *verify;        /* compares; NULL: it is copied. Borrowed. */
    bool discards;                /* what is copied, from the node */
    /* Under the engine's lock: nothing before it is left. */
    uint64_t cursor;
    uint64_t saved_cursor; /* where the search for saved data goes on */
};

/* Set all but the engine, which copy_engine_new sets. */
void backup_source_init(struct backup_source *source, struct point_in_time *point,
                        struct block_node *node, struct backup_bitmap *bitmap,
                        struct verify *verify);

#endif
