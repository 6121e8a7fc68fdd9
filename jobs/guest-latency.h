/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Keeping a guest's latency below what its user wants: how much a job may do for that.
 *
 * The 99th percentile of the guest's requests over the last second is compared with the target.
 * Above it the job's allowance is halved, or quartered where it is far above; then requests begun
 * since then have to show what that was good for. After a second below it the allowance grows by a
 * quarter, but slowly near where it was too much last time; doubling if the guest asks for nothing.
 *
 * The allowance never falls below what brings a job to its end: see GUEST_LATENCY_FLOOR.
 *
 * It has no clock and does no I/O: it is fed figures. Used by one thread at a time.
 */
#ifndef LIVEBLK_JOBS_GUEST_LATENCY_H
#define LIVEBLK_JOBS_GUEST_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#include "block/clock.h"
#include "block/statistics.h"

/* It is fed once in a slice; the window is so many of them: one second. */
#define GUEST_LATENCY_SLICE_NS (100 * NS_PER_MS)
#define GUEST_LATENCY_SLICES   10

/*
 * The least a job is allowed, as a part of one worker's time; and however long its pieces take, it
 * rests no longer than this between them. With pieces of GUEST_LATENCY_CHUNK it copies a MiB per
 * second at least, where its target does.
 */
#define GUEST_LATENCY_FLOOR       (1.0 / 32)
#define GUEST_LATENCY_REST_MAX_NS (100 * NS_PER_MS)
#define GUEST_LATENCY_CHUNK       (UINT64_C(128) << 10)

/* What is being done about it. */
enum guest_pace {
    GUEST_PACE_FREE,       /* nothing: the job may do all it can, or there is no target */
    GUEST_PACE_HELD_BACK,  /* the guest was too slow: the job does less */
    GUEST_PACE_FLOOR,      /* the same, and it does as little as it ever does */
    GUEST_PACE_RECOVERING, /* the guest is fast enough: the job does more, step by step */
};
extern const char *const guest_pace_names[]; /* "free", ..., NULL-terminated */

struct guest_latency {
    uint64_t target_ns; /* 0: none */
    enum guest_pace pace;
    double allowance; /* in workers; below 1: that part of one worker's time */
    double most;      /* all there is */
    double too_much;  /* what the allowance was when the guest was too slow last time; or `most` */
    uint64_t p99_ns;  /* of the last second; 0: no requests */

    /* Requests by latency: in each slice of the window, and in all until the last one. */
    uint64_t slices[GUEST_LATENCY_SLICES][STATISTICS_BUCKETS];
    uint64_t before[STATISTICS_BUCKETS];
    unsigned next;   /* slice to fill */
    unsigned since;  /* slices since the allowance was changed, up to GUEST_LATENCY_SLICES */
    int64_t fed_ns;  /* when it was fed last; 0: never */
    int64_t busy_ns; /* since when requests are under way of which none ended; 0: there are none */
};

/* What is known of the guest at one moment. */
struct guest_figures {
    /* Requests that ended so far, ever, by latency (block/statistics.h). */
    uint64_t latencies[STATISTICS_BUCKETS];
    bool is_busy; /* some are under way: if none ends, they get old */
};

/* No target. max_workers: what the allowance is at most. */
void guest_latency_init(struct guest_latency *latency, unsigned max_workers);

/* 0: none; then the job may do what it likes. Nothing if it is this one already. */
void guest_latency_set_target(struct guest_latency *latency, uint64_t target_ns);

/* Whether the next slice is due; there is none without a target. */
bool guest_latency_is_due(const struct guest_latency *latency, int64_t now_ns);

/*
 * The next slice is over. workers: how many the job has used of its allowance, for that is what is
 * halved.
 */
void guest_latency_feed(struct guest_latency *latency, const struct guest_figures *figures,
                        unsigned workers, int64_t now_ns);

/* How many workers may work: at least one. */
unsigned guest_latency_workers(const struct guest_latency *latency);

/* How long it has to rest after a piece that took so long; 0: not at all. */
int64_t guest_latency_rest_ns(const struct guest_latency *latency, int64_t piece_ns);

#endif
