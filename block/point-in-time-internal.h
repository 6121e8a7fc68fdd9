/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the parts of a point in time share.
 *
 * A unit (4 KiB) is in one of these states, and goes through them in this order only:
 *   unsaved     the source holds the old data
 *   saved       in memory or on scratch (`data` has it), or known to be zero (it has not)
 *   given up    nobody may ask for it any more; counts as saved
 * A unit is marked before the guest's change that it was saved for reaches the source. That is
 * what all reading without a lock stands on: who has read a unit from the source, or asked for
 * its status there, and finds it unsaved afterwards has seen old data. Guests read like that,
 * too: two of them may read the same unit, and who comes second drops what it has read.
 *
 * In a strict point in time (`strict`: the guest's change waits for scratch) a unit stays unsaved
 * until it is on scratch; meanwhile a piece in memory holds it (it is pending).
 *
 * Most work is done on regions: as many units as a word has bits, so that states are masks.
 */
#ifndef LIVEBLK_BLOCK_POINT_IN_TIME_INTERNAL_H
#define LIVEBLK_BLOCK_POINT_IN_TIME_INTERNAL_H

#include <pthread.h>

#include "block/align.h"
#include "block/copy-map.h"
#include "block/dirty-bitmap.h"
#include "block/point-in-time.h"
#include "block/queue.h"

/* Threads that write to scratch. */
#define POINT_THREADS_MAX 4

/* Pieces that are written in one go, so that the lock is taken and guests are woken less often. */
#define POINT_BATCH_PIECES 128

/* As bound of a search in maps: no bound. */
#define POINT_ANY_LENGTH (UINT64_MAX & ~(COPY_UNIT - 1))

/* The largest part of a map that is changed without letting others at the lock. */
#define POINT_STRIDE (16 * GIB)

/*
 * Old data in memory. Either it lies in one region and is found by it, or it is a run of zeroes of
 * any length on its way to scratch (write_through), and is in a list of its own.
 */
struct point_piece {
    _Atomic unsigned references; /* of whoever has it in a list, copies from it, or waits for it */
    uint64_t offset;
    uint64_t bytes;
    char *buffer; /* constant while there are references; NULL: a run of zeroes */

    /* Lock. */
    uint64_t units;    /* of the region: what it holds; never units that were given up */
    uint64_t zeroes;   /* of these, what is to be written as zeroes */
    uint64_t memory;   /* what of memory_used it holds */
    int64_t queued_ns; /* when */
    bool writing;      /* a thread has taken it from the queue */
    bool ended;        /* in no list any more */
    bool failed;       /* it is in no safe place */
    pthread_cond_t end;
    struct point_piece *next; /* in its bucket */
    TAILQ_ENTRY(point_piece) queue_entry;
    TAILQ_ENTRY(point_piece) run_entry;
};

TAILQ_HEAD(point_piece_list, point_piece);

/* A guest that waits for memory, in the order of arrival: small pieces cannot starve large ones. */
struct point_memory_waiter {
    uint64_t bytes;
    bool granted;
    pthread_cond_t wake;
    TAILQ_ENTRY(point_memory_waiter) entry;
};

/* Requests of ours to a node, for drains. Lock. */
struct point_gate {
    unsigned drains;
    unsigned active;
    uint64_t left; /* how many have been active */
};

struct point_in_time {
    struct point_in_time_options options; /* the owner is ours; no bitmap */
    uint64_t length;
    uint64_t memory_max;
    bool strict; /* units are saved when they are on scratch, not before */
    struct block_claim source_claim;
    struct block_claim scratch_claim;
    struct write_notifier notifier;
    bool installed;

    /* Set once, under the lock; read without it. */
    _Atomic bool over;   /* guests need not save; readers get -EIO */
    _Atomic bool broken; /* over, and `reason` says why */

    /* Marking under the lock; guests look without it. Given up counts as saved. */
    struct copy_map *saved;
    /* Marked like a copy map: "saved" means given up. */
    struct copy_map *given_up;
    /* Saved units that are not zero: in a piece, or else on scratch. */
    struct dirty_bitmap *data;

    /* Guards all that follows. After the graph lock; never held across I/O or callbacks. */
    pthread_mutex_t lock;
    pthread_cond_t work;  /* threads: there may be something to do */
    pthread_cond_t quiet; /* a gate: nothing is active, or drains ended, or it is over */
    GError *reason;
    bool tell;      /* call on_change when the lock is dropped */
    bool told;      /* on_change has been called for its being crowded */
    bool cancelled; /* what fails on scratch is not tried again */

    struct point_piece **buckets; /* pieces by region */
    unsigned bucket_bits;
    unsigned piece_count;          /* in buckets */
    struct point_piece_list queue; /* oldest first; all pieces that no thread has taken */
    struct point_piece_list runs;  /* pieces without buffer */
    uint64_t memory_used;
    TAILQ_HEAD(, point_memory_waiter) memory_waiters;

    struct point_gate source;
    struct point_gate scratch;

    pthread_t threads[POINT_THREADS_MAX];
    unsigned thread_count;
    unsigned thread_running; /* of these, not at their end yet */
    unsigned thread_idle;
    unsigned thread_called; /* of the idle ones, woken and on their way */
    unsigned thread_active; /* at work on a batch */
    bool hurry;             /* memory gets used up: they write what is there */
    bool timer_runs;        /* an idle thread waits with a deadline */
    bool ending;            /* threads end when there is nothing to free */
    bool abandoned;         /* scratch hung: it is not freed any more */
    bool held;              /* scratch failed: until point_in_time_retry */
    uint64_t retries;       /* how often that was called */
    int64_t retry_after_ns; /* scratch failed: not before */

    struct point_in_time_info info; /* but for memory_bytes */
};

/* ---- Masks of units in a region ---- */

static inline uint64_t point_region(uint64_t offset)
{
    return align_down(offset, COPY_REGION);
}

/* The units of a region that [start, end) touches; it touches some. */
static inline uint64_t point_mask(uint64_t region, uint64_t start, uint64_t end)
{
    uint64_t first = start > region ? (start - region) / COPY_UNIT : 0;
    uint64_t last = (MIN_OF(end, region + COPY_REGION) - region - 1) / COPY_UNIT;

    return UINT64_MAX << first & UINT64_MAX >> (63 - last);
}

/* Take the first run of units out of a mask; false if it is empty. Bytes end with the disk. */
bool point_next_run(const struct point_in_time *point, uint64_t region, uint64_t *mask,
                    uint64_t *offset, uint64_t *bytes);

/* How many bytes of the disk these units are. */
uint64_t point_mask_bytes(const struct point_in_time *point, uint64_t region, uint64_t mask);

/* ---- point-in-time.c ---- */

/* Drop the lock, and call on_change if something asked for it. */
void point_unlock(struct point_in_time *point);

static inline struct point_in_time *point_lock(struct point_in_time *point)
{
    pthread_mutex_lock(&point->lock);
    return point;
}

static inline void cleanup_point_unlock(struct point_in_time **point)
{
    point_unlock(*point);
}

/* As SCOPE_LOCK, for the lock of a point in time. */
#define POINT_LOCK(point)                                                                          \
    CLEANUP(cleanup_point_unlock)                                                                  \
    __attribute__((unused)) struct point_in_time *SCOPE_LOCK_NAME(__LINE__) = point_lock(point)

/* point_in_time_break, with the lock held. */
void point_break(struct point_in_time *point, GError *error);

/* End of all saving: who waits goes on, what is in memory is dropped. Lock held. */
void point_end(struct point_in_time *point);

/* Before and after I/O on a node outside of guests' requests. Lock held; enter waits for drains,
 * and returns -EIO without entering if the point in time is over. */
int point_enter(struct point_in_time *point, struct point_gate *gate);
void point_leave(struct point_in_time *point, struct point_gate *gate);

/* Ask for on_change if it has just become crowded. Lock held. */
void point_look_if_crowded(struct point_in_time *point);

/* ---- point-in-time-memory.c: pieces. Lock held, unless said otherwise. ---- */

int point_memory_init(struct point_in_time *point);
void point_memory_destroy(struct point_in_time *point);

/*
 * A new piece with a buffer fit for both nodes, or (is_zero) without. One reference; NULL if memory
 * lacks. Any thread, no lock.
 */
struct point_piece *point_piece_new(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                                    bool is_zero);
struct point_piece *point_piece_ref(struct point_piece *piece);
void point_piece_unref(struct point_piece *piece); /* with or without the lock */

/* Put a piece where it is found, and at the end of the queue; takes the reference over. */
void point_piece_insert(struct point_in_time *point, struct point_piece *piece);

/*
 * Take it out again, wake those who wait for its end, drop the reference. Its memory is free after
 * that, but who waits for some hears of it by point_memory_grant.
 */
void point_piece_end(struct point_in_time *point, struct point_piece *piece, bool failed);

/* The pieces of a region: the first, and the next. */
struct point_piece *point_piece_first(const struct point_in_time *point, uint64_t region);
struct point_piece *point_piece_next(const struct point_piece *piece);

/* Units of a region that are in memory and not saved yet. */
uint64_t point_pending(const struct point_in_time *point, uint64_t region);

/* Take memory now, if it can be had without overtaking others. */
bool point_memory_take(struct point_in_time *point, uint64_t bytes);
void point_memory_release(struct point_in_time *point, uint64_t bytes);

/* Pieces have ended: give their memory to those who wait for some. */
void point_memory_grant(struct point_in_time *point);

/* Stand in line; leave it again (with what was granted, if so). */
void point_memory_queue(struct point_in_time *point, struct point_memory_waiter *waiter);
void point_memory_leave(struct point_in_time *point, struct point_memory_waiter *waiter);

/* ---- point-in-time-guest.c ---- */

int point_notify_before_write(struct write_notifier *notifier, enum block_operation operation,
                              uint64_t offset, uint64_t bytes);

/* ---- point-in-time-scratch.c ---- */

/* There may be work for the threads: start or wake as many as there should be. Lock held. */
void point_scratch_wake(struct point_in_time *point);

/* Scratch is not freed any more: it hung, or it vanishes soon. Lock held. */
static inline bool point_scratch_is_left(const struct point_in_time *point)
{
    return point->abandoned || (point->ending && point->options.scratch_vanishes);
}

/* End the threads. No lock. */
void point_scratch_stop(struct point_in_time *point);

/* Room on scratch is free again. Lock held. */
void point_scratch_give_back(struct point_in_time *point, uint64_t bytes);

/* ---- point-in-time-batch.c ---- */

/* What a thread writes in one go. Pieces of the same region stand together. */
struct point_batch {
    unsigned count;
    struct point_piece *pieces[POINT_BATCH_PIECES];
    uint64_t units[POINT_BATCH_PIECES]; /* that each held when it was taken */
    char *buffer;                       /* of the thread, for units of different pieces; or NULL */
    bool over_budget;                   /* it may not be written */
};

/* How much room on scratch these units of a piece need. */
uint64_t point_room(const struct point_in_time *point, const struct point_piece *piece,
                    uint64_t units);

/* Write a batch, and settle what becomes of its pieces. Lock held, dropped meanwhile. */
void point_batch_write(struct point_in_time *point, struct point_batch *batch);

/* The same for one that cannot be written. */
void point_batch_refused(struct point_in_time *point, struct point_batch *batch, int error_number);

/* ---- point-in-time-discard.c ---- */

/*
 * Free what is on scratch of a range that was given up, or of anything when it is over. Lock held
 * and dropped meanwhile. Waits for drains, but not if it is over: then it leaves the rest, which
 * the threads free later.
 */
void point_scratch_free(struct point_in_time *point, uint64_t start, uint64_t end);

/* Give up a part of the disk that is not in the bitmap. Before anybody else knows of the point. */
void point_give_up(struct point_in_time *point, uint64_t start, uint64_t end);

#endif
