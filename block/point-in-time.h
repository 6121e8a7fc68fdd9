/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time: the contents a node has at one moment, to be read while its guest writes on.
 * Views, the copy-before-write filter and backups stand on it.
 *
 * Copy before write, once for all: a guest's write that touches bytes not yet saved first reads
 * just those, in units of 4 KiB, into memory, and goes on. Threads of the point in time bring
 * them from there to scratch, another node, at the same offsets. So a guest waits for a read of
 * its own disk, and for scratch only when the memory for saved data is full. Zeroes are
 * remembered without I/O, and what is saved or given up is never saved again.
 *
 * Readers never keep a guest waiting: they read the source and look afterwards whether a guest
 * has saved part of it meanwhile; if so that part is taken from memory or scratch.
 *
 * If something cannot be saved (scratch is full, fails, or is too slow), the policy decides who
 * is hurt: the point in time breaks, and from then on every read of it fails with -EIO; or the
 * guest's write fails with -EIO and the point in time stays whole.
 *
 * Threads: before_write, pread, block_status, discard and the queries are called by many threads
 * at once. What is said of new data after the moment does not matter: a source that grows has
 * bytes beyond the point in time's length that are none of its business.
 */
#ifndef LIVEBLK_BLOCK_POINT_IN_TIME_H
#define LIVEBLK_BLOCK_POINT_IN_TIME_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/guest-waits.h"
#include "block/node.h"
#include "block/request.h"

/* Bounds of memory for saved data that is not on scratch yet. Bytes. */
#define POINT_IN_TIME_MEMORY_DEFAULT (UINT64_C(16) << 20)
#define POINT_IN_TIME_MEMORY_MIN     (UINT64_C(256) << 10)

struct point_in_time;

enum point_in_time_policy {
    POINT_IN_TIME_BREAK_SNAPSHOT,    /* the guest goes on, readers get -EIO for ever */
    POINT_IN_TIME_BREAK_GUEST_WRITE, /* the guest's write fails; waits until data is on scratch */
};
extern const char *const point_in_time_policy_names[]; /* as in QMP's OnCbwError */

/* What to do when scratch fails; see on_scratch_error. */
enum point_in_time_action {
    POINT_IN_TIME_GIVE_UP,   /* as the policy says */
    POINT_IN_TIME_TRY_LATER, /* after a short pause */
    POINT_IN_TIME_HOLD,      /* when point_in_time_retry is called */
};

/* How much scratch may be used by all that share this. The owner's; outlives its users. */
struct scratch_budget {
    uint64_t max_bytes; /* 0: no limit */
    _Atomic uint64_t used_bytes;
    /*
     * When use reaches this (0: never), there is the event SCRATCH_HIGH_WATER with kind and name
     * ("job", "view"; borrowed), and then not before it has been below half of that.
     */
    uint64_t high_bytes;
    const char *kind;
    const char *name;
    _Atomic bool is_high;
};

/* From which percentage of the limit on use is high. */
#define SCRATCH_HIGH_PERCENT_DEFAULT 80

/*
 * Set a limit (0: none), and the percentage of it (0: none) from which on use is high; kind and
 * name as above. Before it is used. -EINVAL: "Parameter 'scratch-high-water' expects ...".
 */
int scratch_budget_init(struct scratch_budget *budget, uint64_t max_bytes, int64_t high_percent,
                        const char *kind, const char *name, GError **error);

struct point_in_time_options {
    const char *owner;          /* in messages of claims: "view 'nightly'"; copied */
    struct block_node *source;  /* borrowed until released */
    struct block_node *scratch; /* at least as long; NULL: memory is all there is. As source. */
    bool scratch_vanishes; /* with its last reference (an unlinked file): not freed at the end */
    enum point_in_time_policy policy;
    int64_t guest_timeout_ns; /* the longest one guest request waits for us; 0: for ever */
    uint64_t guest_unit;      /* a guest's write saves whole ones: a power of 2; below 4096: 4096 */
    struct scratch_budget *budget; /* NULL: no limit */
    uint64_t memory_max;           /* bytes; 0: the default */
    /* To record how long guests wait for it and its threads, a reference is taken; or NULL. */
    struct guest_waits *waits;
    /*
     * Scratch is for others to look at, too (backup with sync none): zeroes are written to it,
     * and a guest's write waits until what it overwrites is there.
     */
    bool write_through;
    /*
     * Only the set bits of this bitmap are part of it (QMP's bitmap of copy-before-write): the
     * rest is as if discarded from the start. Read once, by point_in_time_new; may be NULL.
     */
    struct dirty_bitmap *bitmap;

    /* May be NULL. Called without locks of the point in time, from any thread; must not block. */
    void *callback_data;
    /* Saved data wants to be taken soon (point_in_time_is_crowded), or the thing broke. */
    void (*on_change)(void *data);
    /* Writing scratch failed; error_number is positive. (Who reads it gets the error himself.) */
    enum point_in_time_action (*on_scratch_error)(void *data, int error_number);
};

/*
 * A point in time that has no moment yet. Claims the source (reading; others may write) and
 * scratch (reading and writing; others may read) as options->owner. NULL with the error set:
 * nodes in use, scratch too short or read-only, memory lacking. Any thread.
 */
struct point_in_time *point_in_time_new(const struct point_in_time_options *options,
                                        GError **error);

/*
 * Make the present moment the one: guests' writes of the source save what they overwrite from
 * here on. Main thread; the source's writers are drained (BLOCK_PERM_WRITE). Who calls
 * point_in_time_before_write by himself (a filter) does not call this.
 */
void point_in_time_install(struct point_in_time *point);

/*
 * Undo install; nothing if it was not called. Drains the source's writers; not the main thread.
 * Guests that wait inside go on, and readers get -EIO from here on: nothing is saved any more.
 */
void point_in_time_uninstall(struct point_in_time *point);

/*
 * Frees it: not installed, nobody inside. Does first what point_in_time_stop does, if that was not
 * called, but waits as long as it takes.
 */
void point_in_time_free(struct point_in_time *point);
DEFINE_AUTO(point_in_time, point_in_time_free)

/*
 * What a guest's change does before it reaches the source. 0, or under BREAK_GUEST_WRITE -EIO:
 * then the source must not be changed. Any range; what is beyond the length is ignored.
 */
int point_in_time_before_write(struct point_in_time *point, enum block_operation operation,
                               uint64_t offset, uint64_t bytes);

/* What it is of; borrowed, and it stays as long as the point in time. */
struct block_node *point_in_time_source(const struct point_in_time *point);

/* Its length: that of the source when it was made. */
uint64_t point_in_time_length(const struct point_in_time *point);

/*
 * Read. The range is inside the length. -EIO once broken, -EINVAL if part of the range was given
 * up, or the error of the source or scratch (which breaks nothing: it may be tried again).
 */
int point_in_time_pread(struct point_in_time *point, void *buffer, uint64_t offset, uint64_t bytes);

/*
 * As block_node_block_status_chain, of the moment: holes stay holes. extent->bytes may be larger
 * than a unit, never larger than asked. Errors as for reading, but it is -EINVAL only if the first
 * unit was given up: the extent ends before one that was.
 */
int point_in_time_block_status(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                               struct block_extent *extent);

/*
 * Give up a range: whole units inside it (the last unit of the disk counts as whole). What it
 * holds in memory and on scratch is freed, guests need not save it any more, reading it fails
 * from now on. Freeing scratch may block. 0, or -EIO once broken.
 */
int point_in_time_discard(struct point_in_time *point, uint64_t offset, uint64_t bytes);

/*
 * The first run in [offset, end) that was not given up, at most max_bytes (whole units) long.
 * With saved_only: that guests have saved, in memory or on scratch (zeroes are in neither). False
 * if there is none, or it broke.
 */
bool point_in_time_next(struct point_in_time *point, bool saved_only, uint64_t offset, uint64_t end,
                        uint64_t max_bytes, uint64_t *run_offset, uint64_t *run_bytes);

/* True if all of a range (whole units) is still what the source holds: nothing saved, given up. */
bool point_in_time_is_untouched(struct point_in_time *point, uint64_t offset, uint64_t bytes);

/*
 * True when somebody who empties it (a backup) should take saved data first: most of the memory
 * is used and there is no scratch, or most of the scratch budget.
 */
bool point_in_time_is_crowded(struct point_in_time *point);

/*
 * Break it, if it is not yet: guests stop saving, those who wait go on, readers get -EIO, saved
 * data is dropped and scratch freed. The first reason is kept; takes error over.
 */
void point_in_time_break(struct point_in_time *point, GError *error);

/* True if it broke; reason (may be NULL) is then a copy of why. Lock-free without reason. */
bool point_in_time_is_broken(struct point_in_time *point, GError **reason);

/* After POINT_IN_TIME_HOLD: try again. */
void point_in_time_retry(struct point_in_time *point);

/* Make requests that hang on scratch fail soon: what uses it is being cancelled by force. */
void point_in_time_cancel_in_flight(struct point_in_time *point);

/*
 * Before it is freed: the end of all saving and reading, and of the threads that write to scratch.
 * What was used of scratch is freed there, unless write_through or scratch_vanishes. Waits for
 * that, and for what is in flight; but once nothing has come to its end for grace_ns, all that
 * hangs is cut off and the rest is not freed.
 */
void point_in_time_stop(struct point_in_time *point, int64_t grace_ns);

struct point_in_time_info {
    uint64_t saved_bytes;        /* saved by guests so far, zeroes not counted */
    uint64_t memory_bytes;       /* in memory now */
    uint64_t scratch_bytes;      /* on scratch now */
    uint64_t scratch_peak_bytes; /* the most there was */
    uint64_t discarded_bytes;    /* given up */
};
void point_in_time_get_info(struct point_in_time *point, struct point_in_time_info *info);

#endif
