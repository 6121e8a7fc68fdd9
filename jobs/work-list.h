/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What of a disk has still to be copied: a dirty bitmap, gone through in the disk's order. Under
 * the lock of the engine that copies, but for setting bits.
 */
#ifndef LIVEBLK_JOBS_WORK_LIST_H
#define LIVEBLK_JOBS_WORK_LIST_H

#include "block/dirty-bitmap.h"
#include "jobs/copy-engine.h"

struct work_list {
    struct dirty_bitmap *bitmap; /* the caller's */
    uint64_t cursor;             /* where the search goes on: the caller sets it back to 0 */
    /* Bytes taken. Raised before their bits are cleared, and lowered by the caller when they are
     * done or set again, so that nothing is ever neither set nor counted here. Any thread. */
    _Atomic uint64_t in_flight;
};

/*
 * Take the first run of at most max_bytes (but at least a granule) at or after the cursor of which
 * nothing is in flight: its bits are cleared before it is read, so that a write that comes
 * meanwhile sets them again. False if there is none.
 */
bool work_list_take(struct work_list *list, struct copy_engine *engine, uint64_t max_bytes,
                    uint64_t *offset, uint64_t *bytes);

/* Take what follows a run that ends at end directly; see extend in copy-engine.h. */
uint64_t work_list_extend(struct work_list *list, struct copy_engine *engine, uint64_t end,
                          uint64_t max_bytes);

/* Bytes that are to be copied or in flight; may count a run twice, but never leaves one out. Any
 * thread. */
uint64_t work_list_left(struct work_list *list);

/* What was taken, or a part of it, is over: copied, or to be copied again. Any thread. */
void work_list_done(struct work_list *list, uint64_t offset, uint64_t bytes, bool is_copied);

#endif
