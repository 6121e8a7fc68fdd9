/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine: workers that bring data from a source to a target node, for every job that
 * copies.
 *
 * The engine has the workers, their pace and the rate limit, zero detection, copy offload, error
 * policies, pausing, draining of the target and cancellation. What is to be copied next, and what
 * it holds, the job's own copy source says: a backup takes it from a point in time, a mirror from
 * a dirty bitmap. Ranges being copied never overlap. A job that verifies compares where others
 * copy; all else is the same.
 *
 * Functions are called on the job's coordinating thread unless they say otherwise.
 */
#ifndef LIVEBLK_JOBS_COPY_ENGINE_H
#define LIVEBLK_JOBS_COPY_ENGINE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "block/queue.h"
#include "jobs/copy-pace.h"
#include "jobs/job.h"

#define COPY_DEFAULT_CHUNK       (UINT64_C(1) << 20)
#define COPY_DEFAULT_MAX_WORKERS 16
#define COPY_MAX_WORKERS         1024

/* What compare() returns, beside 0 and errors: the run is to be gone through once more. */
#define COPY_LOOK_AGAIN 1

struct copy_engine;
struct copy_source;

/*
 * Many workers call these at once, except where the engine's lock is held: then they must not
 * block, and may take only locks under which nobody calls the engine.
 */
struct copy_source_operations {
    /*
     * Choose what to copy next: a run of at most max_bytes (but at least one unit) that overlaps
     * nothing in flight (copy_engine_find_busy). From here until it is done it is in flight.
     * urgent_only: only what guests are about to wait for; then neither a pause nor the pace
     * counts. False if there is nothing to do now. Engine lock held.
     */
    bool (*next)(struct copy_source *source, bool urgent_only, uint64_t max_bytes, uint64_t *offset,
                 uint64_t *bytes);
    /*
     * A run turned out to be zeroes up to end: take in as much as follows it directly, is to be
     * copied and not in flight, at most max_bytes. Returns bytes, 0 for none. Engine lock held.
     */
    uint64_t (*extend)(struct copy_source *source, uint64_t end, uint64_t max_bytes);
    /* How the start of a run reads: extent->bytes of it are DATA or ZERO. */
    int (*block_status)(struct copy_source *source, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent);
    int (*pread)(struct copy_source *source, void *buffer, uint64_t offset, uint64_t bytes);
    /*
     * Let the kernel copy a run to the same place of the target. -EAGAIN: not this one; any
     * other error: it cannot, and is not asked again. The run is then copied through memory.
     */
    int (*copy_range)(struct copy_source *source, struct block_node *target, uint64_t offset,
                      uint64_t bytes);
    /*
     * Bring data, or zeroes, to the target: the start of a run, or what follows. NULL: they are
     * written there.
     */
    int (*write)(struct copy_source *source, struct block_node *target, const void *buffer,
                 uint64_t offset, uint64_t bytes);
    int (*write_zeroes)(struct copy_source *source, struct block_node *target, uint64_t offset,
                        uint64_t bytes);
    /*
     * Instead of bringing data to the target: compare it with the target, which may be read into
     * spare, memory for as many bytes. 0: done with; COPY_LOOK_AGAIN; or a negative errno: the
     * target failed. What both sides say is zero is not asked about. NULL: it is copied.
     */
    int (*compare)(struct copy_source *source, struct block_node *target, const void *data,
                   void *spare, uint64_t offset, uint64_t bytes);
    /*
     * A run that failed, and is to be copied again as done() was told, was to be ignored: the
     * source may take it off its list, and remember that. NULL: it is tried again. Engine lock not
     * held.
     */
    void (*ignore)(struct copy_source *source, uint64_t offset, uint64_t bytes, int error_number);
    /*
     * The target has failed. True: the source sees to it, soon, by copy_engine_target_is_away().
     * NULL, or false: the policy decides. Engine lock not held; any thread.
     */
    bool (*target_failed)(struct copy_source *source, int error_number);
    /*
     * A run, or whole units of one, leaves flight right after this: it is on the target
     * (is_copied), or has still to be copied. Engine lock not held; may block.
     */
    void (*done)(struct copy_source *source, uint64_t offset, uint64_t bytes, bool is_copied);
    /*
     * True when the engine's run is to end well. Asked by the coordinator at every tick and when
     * the workers run out of work; is_idle: nothing is in flight, and when next was last asked it
     * had nothing. Engine lock not held. May set the job ready.
     */
    bool (*is_finished)(struct copy_source *source, bool is_idle);
    /* Make reads that hang fail soon: the job is being ended. NULL: they do not hang. */
    void (*cancel_in_flight)(struct copy_source *source);
};

/* Embedded in the job's own. */
struct copy_source {
    const struct copy_source_operations *operations;
    struct copy_engine *engine; /* set by copy_engine_new */
};

/* What the engine does with its nodes, and lets others do. */
struct copy_claims {
    unsigned source_perms; /* BLOCK_PERM_* */
    unsigned source_shared;
    bool source_moves_places; /* see struct block_claim */
    unsigned target_perms;
    unsigned target_shared;
    const struct block_node *target_beside; /* see struct block_claim */
};

/* The source is read, others may write it; the target is written, and others may read it. */
extern const struct copy_claims copy_default_claims;

/*
 * A run in flight, or a range that somebody else brings to the target meanwhile (a guest's own
 * write): no two of them overlap.
 */
struct copy_run {
    uint64_t offset;
    uint64_t end;
    bool is_reading; /* the source */
    TAILQ_ENTRY(copy_run) entry;
};

struct copy_engine_options {
    struct copy_source *source; /* the caller's, outlives the engine */
    uint64_t length;
    /* What runs consist of: bytes, a power of 2. The end of the disk may cut the last one. */
    uint64_t unit;
    struct block_node *source_node; /* which the source reads */
    struct block_node *target;      /* at least length long */
    bool target_is_in_use;          /* by guests: it is not cut off when it hangs */
    bool use_copy_range;            /* let the kernel copy where both ends can */
    bool compress;                  /* write whole clusters of the target compressed */
    const char *target_action;      /* of messages; NULL: "write target" */
    bool keep_allocated;            /* write zeroes without unmapping, also where they are */
    /*
     * The target gets a backing file, or has one that may be exchanged: what is zero must be so in
     * its own layer, whatever it reads as now.
     */
    bool explicit_zeroes;
    unsigned max_workers; /* 1 to COPY_MAX_WORKERS; 0: the default */
    uint64_t max_chunk;   /* bytes a worker copies at once; a multiple of 4 KiB; 0: default */
    enum block_error_policy on_source_error;
    enum block_error_policy on_target_error;
    const struct copy_claims *claims; /* NULL: the default */
    struct block_device *guest;       /* whose requests have precedence; borrowed; may be NULL */
};

/* A new engine. It claims both nodes in the job's name. NULL with the error set if they are in use.
 * Any thread. */
struct copy_engine *copy_engine_new(struct job *job, const struct copy_engine_options *options,
                                    GError **error);

/*
 * Copy until is_finished, the job is cancelled by force, or an error ends it; all that was begun
 * is then over. May be called again after it returned 0, also on another thread (a mirror's last
 * step). Returns a negative errno with the error set.
 */
int copy_engine_run(struct copy_engine *engine, GError **error);

/* Any thread. */
void copy_engine_set_effort(struct copy_engine *engine, enum copy_effort effort);

/*
 * The range in flight with the lowest offset that overlaps this one, or false. For
 * copy_source_operations.next; engine lock held.
 */
bool copy_engine_find_busy(struct copy_engine *engine, uint64_t offset, uint64_t bytes,
                           uint64_t *busy_offset, uint64_t *busy_bytes);

/*
 * Set in unsettled what is dirty in the source's list of work, or on its way to the target: all
 * that the target may lack, with nothing that is just being taken or given back left out. Any
 * thread.
 */
void copy_engine_find_unsettled(struct copy_engine *engine, struct dirty_bitmap *list,
                                struct dirty_bitmap *unsettled);

/*
 * For who brings a range to the target himself (jobs/write-through.h). From copy_engine_enter()
 * to copy_engine_leave() nothing is in flight in [run->offset, run->end), which the caller has
 * set, but what he does; who comes later to what overlaps it waits, in the order of coming, and
 * the workers leave it out. Waits for what is in flight there, and while the target is drained.
 * Returns 0; -EAGAIN at once if the job wants nothing to be written now (it has failed, is
 * cancelled, pauses, or waits after an error); -ETIMEDOUT at deadline_ns (CLOCK_MONOTONIC). Any
 * thread. It does not matter whether the engine runs.
 */
int copy_engine_enter(struct copy_engine *engine, struct copy_run *run, int64_t deadline_ns);
void copy_engine_leave(struct copy_engine *engine, struct copy_run *run);

/*
 * Write to the target as a worker would, zeroes as zeroes, or zeroes if buffer is NULL: inside a
 * range that was entered, or, for compare(), in the run it is asked about. Any thread. Returns a
 * negative errno.
 */
int copy_engine_write(struct copy_engine *engine, const void *buffer, uint64_t offset,
                      uint64_t bytes);

/* That has failed; the source has been told that it is to be copied again. The job's policy for
 * the target decides what follows. error_number is positive. Any thread. */
void copy_engine_write_failed(struct copy_engine *engine, uint64_t offset, int error_number);

/*
 * The target is not there: nothing is begun, and what guests write is not brought there, until it
 * is back. Or it cannot be awaited any longer: the policy decides, and the sentence, which is taken
 * over, says what has happened. Coordinating thread.
 */
void copy_engine_target_is_away(struct copy_engine *engine);
void copy_engine_target_is_back(struct copy_engine *engine);
void copy_engine_target_is_gone(struct copy_engine *engine, int error_number, GError *error);

/* No worker is at work, nor a flush; and nothing that guests write is on its way to the target,
 * either. Any thread. */
bool copy_engine_is_idle(struct copy_engine *engine);
bool copy_engine_is_quiet(struct copy_engine *engine);

/*
 * Something to be done with the target beside copying (to flush it, to see whether it is there), on
 * a thread of its own, one at a time. False: not now, as the target is drained or there is no
 * thread. Then, when it is over, what it returned, once. A run does not end before it has, and cuts
 * it off at the end as it does what is copied. Coordinating thread, while the engine runs.
 */
typedef int copy_errand(void *data);
bool copy_engine_start_errand(struct copy_engine *engine, copy_errand *errand, void *data);
bool copy_engine_take_errand(struct copy_engine *engine, int *status);

/* Make what hangs on the target fail soon, unless guests use that. Any thread. */
void copy_engine_cut_off_target(struct copy_engine *engine);

/*
 * End the run because of an error, which is taken over; the first one counts. Any thread, engine
 * lock not held.
 */
void copy_engine_fail(struct copy_engine *engine, GError *error);

/*
 * Flush the target, after a run that succeeded. Ends soon when the job is cancelled, also if the
 * target hangs. What is not done at deadline_ns (CLOCK_MONOTONIC; INT64_MAX: never) has failed.
 * Returns a negative errno with the error set.
 */
int copy_engine_flush(struct copy_engine *engine, int64_t deadline_ns, GError **error);

/*
 * The same after a run that failed or was cancelled, and whether or not the job is cancelled: what
 * was copied before is safe then. Returns a negative errno.
 */
int copy_engine_flush_anyway(struct copy_engine *engine, int64_t deadline_ns);

/*
 * Something the engine may be waiting for has changed: struct job_driver's wake, and for sources
 * that have new work. Any thread.
 */
void copy_engine_wake(struct copy_engine *engine);

/* The engine's claim on the source, borrowed: for who is allowed what others are not. */
struct block_claim *copy_engine_source_claim(struct copy_engine *engine);

/*
 * The engine's claim on the target, borrowed, for who takes its place there when nothing will be
 * copied any more (block_device_take_root); the engine takes note of its release. Not running.
 */
struct block_claim *copy_engine_target_claim(struct copy_engine *engine);

/* Not running. */
void copy_engine_free(struct copy_engine *engine);
DEFINE_AUTO(copy_engine, copy_engine_free)

#endif
