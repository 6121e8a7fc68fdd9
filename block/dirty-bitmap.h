/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps: which granules of a node were written since some moment.
 *
 * One bit per granule with summary levels above it, so that finding the next dirty range and
 * counting are cheap however large and sparse the disk is. Memory for never-touched parts is not
 * used (the levels are lazily backed mappings).
 *
 * Threads. Setting is lock-free and atomic, from any number of threads. Clearing, searching,
 * merging and resizing take the bitmap's own lock and may run beside setting: a bit set before
 * such a call began is seen by it. enable/disable/clear/merge as a user sees them happen on the
 * main thread with the node drained.
 */
#ifndef LIVEBLK_BLOCK_DIRTY_BITMAP_H
#define LIVEBLK_BLOCK_DIRTY_BITMAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

#define DIRTY_BITMAP_GRANULARITY_MIN     UINT64_C(512)
#define DIRTY_BITMAP_GRANULARITY_MAX     (UINT64_C(2) << 30)
#define DIRTY_BITMAP_GRANULARITY_DEFAULT (UINT64_C(64) << 10)
#define DIRTY_BITMAP_NAME_MAX            1023

struct dirty_bitmap;

/*
 * A clear, enabled bitmap for length bytes. name may be NULL (anonymous) and is copied.
 * granularity is a power of two from 512 to 2 GiB. Returns NULL with the error set (bad
 * granularity, name or length too long, no address space).
 */
struct dirty_bitmap *dirty_bitmap_new(const char *name, uint64_t length, uint64_t granularity,
                                      GError **error);
/*
 * A clear one with this one's name, length, granularity, and whether it is enabled and persistent.
 * NULL with the error set.
 */
struct dirty_bitmap *dirty_bitmap_new_like(const struct dirty_bitmap *bitmap, GError **error);
void dirty_bitmap_free(struct dirty_bitmap *bitmap);
DEFINE_AUTO(dirty_bitmap, dirty_bitmap_free)

const char *dirty_bitmap_name(const struct dirty_bitmap *bitmap); /* NULL: anonymous */
uint64_t dirty_bitmap_granularity(const struct dirty_bitmap *bitmap);
uint64_t dirty_bitmap_length(const struct dirty_bitmap *bitmap);

/* Whether writes are recorded; what the request path asks. */
bool dirty_bitmap_enabled(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_enabled(struct dirty_bitmap *bitmap, bool enabled);

/*
 * The states of a user's bitmap. Changed on the main thread; asked on any.
 *
 * Persistent: kept with the disk when that is closed. Read-only: loaded from an image that is not
 * open for writing, so nothing may change it. Inconsistent: what it says is not to be trusted
 * (nobody stored it after the last changes); it is disabled, and all one can do is remove it. Busy:
 * an operation (a job, an export) holds it, perhaps more than one.
 */
bool dirty_bitmap_is_persistent(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_persistent(struct dirty_bitmap *bitmap, bool persistent);
bool dirty_bitmap_is_read_only(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_read_only(struct dirty_bitmap *bitmap, bool read_only);
bool dirty_bitmap_is_inconsistent(const struct dirty_bitmap *bitmap);
void dirty_bitmap_set_inconsistent(struct dirty_bitmap *bitmap);
bool dirty_bitmap_is_busy(const struct dirty_bitmap *bitmap);
void dirty_bitmap_hold(struct dirty_bitmap *bitmap);   /* busy from here */
void dirty_bitmap_let_go(struct dirty_bitmap *bitmap); /* undoes one dirty_bitmap_hold */

/*
 * Successors. An operation that needs a bitmap as it is at one moment freezes it: the bitmap is
 * busy then and records nothing, and its anonymous successor, which the node has beside it, records
 * what it would have. At the end the successor takes the bitmap's place, with those of its bits
 * set before that are to stay. Main thread, the node drained; the node's list is the caller's.
 */

/* The successor, clear; NULL with the error set. The bitmap is held. */
struct dirty_bitmap *dirty_bitmap_freeze(struct dirty_bitmap *bitmap, GError **error);
/* As if it had not been: before anything was recorded. The successor is the caller's to free. */
void dirty_bitmap_thaw(struct dirty_bitmap *bitmap, struct dirty_bitmap *successor);
/* Name and persistence go to the successor; the bitmap, now anonymous, is the caller's to free. */
void dirty_bitmap_succeed(struct dirty_bitmap *bitmap, struct dirty_bitmap *successor);
bool dirty_bitmap_is_successor(const struct dirty_bitmap *bitmap);

/* Whether it records, as a user sees it: a frozen one does if its successor does. Main thread. */
bool dirty_bitmap_is_recording(const struct dirty_bitmap *bitmap);

/* What somebody who wants to use a bitmap does not put up with, as a mask. */
enum {
    DIRTY_BITMAP_REFUSE_BUSY = 1 << 0,
    DIRTY_BITMAP_REFUSE_READ_ONLY = 1 << 1,
    DIRTY_BITMAP_REFUSE_INCONSISTENT = 1 << 2,
    DIRTY_BITMAP_REFUSE_ALL = (1 << 3) - 1,
};

/* Returns 0, or -EBUSY, -EACCES or -EINVAL with the first state that is refused, as QEMU says it.
 */
int dirty_bitmap_check_state(const struct dirty_bitmap *bitmap, unsigned refused, GError **error);

/* The error of one that is busy: -EBUSY. */
int dirty_bitmap_refuse_busy(const char *name, GError **error);

/* Dirty bytes, counted in whole granules but for a short last one. Cheap. */
uint64_t dirty_bitmap_count(const struct dirty_bitmap *bitmap);

/* Set every granule the range touches. Lock-free. The range is inside the length. */
void dirty_bitmap_set(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/* Clear every granule the range touches. */
void dirty_bitmap_reset(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/* Clear all; gives the memory back but for the summary levels, a 63rd at most. */
void dirty_bitmap_clear(struct dirty_bitmap *bitmap);

/* True if the granule that holds offset is set. Lock-free. */
bool dirty_bitmap_get(const struct dirty_bitmap *bitmap, uint64_t offset);

/*
 * The 64 granules from offset on, which is a multiple of so many: bit 0 is the first. Those beyond
 * the length are clear. Lock-free.
 */
uint64_t dirty_bitmap_get_word(const struct dirty_bitmap *bitmap, uint64_t offset);

/*
 * The first dirty granule at or after offset and before end: its byte offset (not below offset),
 * or UINT64_MAX if there is none.
 */
uint64_t dirty_bitmap_next_dirty(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end);

/* The first clean byte at or after offset and before end, or UINT64_MAX. */
uint64_t dirty_bitmap_next_clean(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end);

/*
 * The next dirty range in [offset, end): at most max_bytes long, clipped to the arguments and
 * the length. Returns false if there is none, or max_bytes is 0.
 */
bool dirty_bitmap_next_range(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end,
                             uint64_t max_bytes, uint64_t *range_offset, uint64_t *range_bytes);

/*
 * Whether bitmaps of these lengths can be merged, or -EINVAL: "Bitmaps are of different sizes
 * (destination size is %d, source size is %d) and can't be merged".
 */
int dirty_bitmap_check_merge(uint64_t target_length, uint64_t source_length, GError **error);

/*
 * Set in target all that is set in source; granularities may differ. Fails, changing nothing,
 * as dirty_bitmap_check_merge does.
 */
int dirty_bitmap_merge(struct dirty_bitmap *target, struct dirty_bitmap *source, GError **error);

/*
 * Follow a new length: bits beyond it are dropped, new granules are clear (grown_dirty false) or
 * set; so is then a granule that was the short last one. Not beside anything else on the bitmap:
 * the node is drained. Returns -EINVAL (longer than INT64_MAX) or -ENOMEM without change; never
 * fails for a length not above the largest the bitmap has had, so that a resize can be undone.
 */
int dirty_bitmap_resize(struct dirty_bitmap *bitmap, uint64_t length, bool grown_dirty);

#endif
