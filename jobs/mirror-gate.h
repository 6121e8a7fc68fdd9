/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A mirror's gate: keeps guests from dirtying a disk faster than it is copied, for as long as
 * somebody wants the mirror to come to its end.
 *
 * A write to granules that are dirty already costs the mirror nothing and passes. One that makes
 * clean granules dirty needs credit, and copying two bytes gives credit for one: what is dirty
 * shrinks, however fast the guest. Nobody waits for longer than a moment (the patience), and
 * nobody at all while nothing is copied anyway, because the target stands still or the job does.
 */
#ifndef LIVEBLK_JOBS_MIRROR_GATE_H
#define LIVEBLK_JOBS_MIRROR_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/guest-waits.h"
#include "block/request.h"

/* How long one request waits at first; it grows where that does not suffice. */
#define MIRROR_GATE_PATIENCE_NS (20 * NS_PER_MS)

struct mirror_gate {
    struct write_notifier notifier; /* the mirror puts it on its source */
    struct dirty_bitmap *bitmap;    /* borrowed */
    struct guest_waits *waits;      /* to record what guests wait here, borrowed; NULL at first */

    _Atomic bool is_shut;

    pthread_mutex_t lock; /* guards what follows; before the bitmap's only */
    pthread_cond_t changed;
    int64_t credit;        /* bytes that may become dirty; negative: a debt */
    int64_t earned_ns;     /* when credit came last */
    int64_t patience_ns;   /* of a small request */
    int64_t firm_until_ns; /* until then it does not matter how long ago that was */
};

/* An open gate. */
void mirror_gate_init(struct mirror_gate *gate, struct dirty_bitmap *bitmap);
/* Nobody is inside: its notifier was removed with the writers drained. */
void mirror_gate_destroy(struct mirror_gate *gate);

/*
 * Shut it, with no credit and the first patience. Until firm_until_ns (CLOCK_MONOTONIC; 0: not at
 * all) requests wait although nothing is copied, as while the target is being flushed.
 */
void mirror_gate_shut(struct mirror_gate *gate, int64_t firm_until_ns);

/* Let all pass, those who wait too. */
void mirror_gate_open(struct mirror_gate *gate);

/* So many bytes have been copied. Any thread. */
void mirror_gate_earn(struct mirror_gate *gate, uint64_t bytes);

/* It does not suffice: requests that find no credit wait twice as long from now on. */
void mirror_gate_insist(struct mirror_gate *gate);

#endif
