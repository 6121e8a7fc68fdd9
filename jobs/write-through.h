/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A mirror's other half on its source: what guests change is marked as to be copied, or, while it
 * is on, brought to the target before the guest is answered (write-blocking).
 *
 * The target is written by threads of its own, from a copy of the data and at the same time as the
 * source. So a guest waits as long as the slower of the two takes, and no longer than a limit,
 * whatever the target does: what has not arrived by then, or has failed, is marked, and the guest
 * is answered. It never gets the target's errors.
 *
 * One order on both sides. While a change is written through, its granules are a range in flight
 * of the copy engine, from before the source is written until both are: changes that overlap, and
 * the engine's own copying, take their turns. A change that is only marked need not: its mark is
 * set after the source was written, and clears only when the engine takes it, or a change that
 * overwrites all of it, before either reads or writes. Whoever brings old data to the target does
 * so under a mark that stays.
 */
#ifndef LIVEBLK_JOBS_WRITE_THROUGH_H
#define LIVEBLK_JOBS_WRITE_THROUGH_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/queue.h"
#include "block/request.h"
#include "jobs/copy-engine.h"

struct through_request;

struct write_through_options {
    struct copy_engine *engine;
    struct block_node *source;
    struct dirty_bitmap *bitmap; /* of what is to be copied, as long as the disk */
    /* The target must get whole granules or nothing: in a part of one it would hide what is to
     * come from below it. */
    bool whole_granules;
    int64_t limit_ns; /* how long a guest waits at the most */
    /* Of the job: how long guests wait when the source has it already, and whose work it is. */
    struct guest_waits *waits;
    /* The target was written, or that has failed. Any thread. */
    void (*written)(void *data, uint64_t offset, uint64_t bytes, bool is_there);
    /* A guest has waited that long; offset: where. Any thread. */
    void (*is_late)(void *data, uint64_t offset);
    void *data;
};

struct write_through {
    struct write_follower follower; /* the mirror puts it on its source */
    struct write_through_options options;

    _Atomic bool is_on;
    _Atomic uint64_t written;      /* bytes of granules that guests have changed */
    _Atomic unsigned late;         /* given up by their guests, and still on their way */
    _Atomic int64_t not_before_ns; /* nobody waits until then: somebody just has, for too long */

    pthread_mutex_t lock; /* guards what follows; a leaf */
    pthread_cond_t work;  /* for threads */
    pthread_cond_t ended; /* nothing is in flight */
    TAILQ_HEAD(, through_request) queue;
    unsigned in_flight; /* in the queue or being written */
    bool is_over;
    GPtrArray *threads; /* pthread_t */
};

/* It is off. Everything in the options is borrowed. */
void write_through_init(struct write_through *through, const struct write_through_options *options);

/* On or off, beside guests: requests that have begun end as they began. Any thread. */
void write_through_set(struct write_through *through, bool is_on);

/* Whether changes are written through now: it is on, and the target not too slow. Any thread. */
bool write_through_works(struct write_through *through);

/*
 * Off for good, with nothing on its way to the target any more; what hangs there is cut off. The
 * follower may still be on the source. Not while guests' requests must go on to reach the target.
 * Not the main thread.
 */
void write_through_end(struct write_through *through);

/* After write_through_end; no request is in the follower. */
void write_through_destroy(struct write_through *through);

#endif
