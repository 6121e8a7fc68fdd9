/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/guest-latency.h"

#include <stddef.h>
#include <string.h>

#include "block/align.h"

const char *const guest_pace_names[] = {
    [GUEST_PACE_FREE] = "free",
    [GUEST_PACE_HELD_BACK] = "held-back",
    [GUEST_PACE_FLOOR] = "floor",
    [GUEST_PACE_RECOVERING] = "recovering",
    NULL,
};

#define SHARE 0.99

/* So far above its target a guest is helped twice as fast. */
#define FAR 4

/*
 * What ends in the first slice after a change was begun before it; then there has to be another to
 * judge by.
 */
#define SLICES_TO_JUDGE 3

#define GROWTH          1.25
#define GROWTH_CAREFUL  1.05
#define GROWTH_IDLE     2.0

/* From this part of what was too much on, growth is careful. */
#define CAREFUL 0.7

void guest_latency_init(struct guest_latency *latency, unsigned max_workers)
{
    *latency = (struct guest_latency){
        .allowance = max_workers,
        .most = max_workers,
        .too_much = max_workers,
    };
}

void guest_latency_set_target(struct guest_latency *latency, uint64_t target_ns)
{
    if (latency->target_ns == target_ns) {
        return;
    }
    if (!target_ns) {
        guest_latency_init(latency, (unsigned)latency->most);
    }
    latency->target_ns = target_ns;
    latency->too_much = latency->most; /* of another target */
}

bool guest_latency_is_due(const struct guest_latency *latency, int64_t now_ns)
{
    return latency->target_ns && now_ns - latency->fed_ns >= GUEST_LATENCY_SLICE_NS;
}

/* ---- The window ------------------------------------------------------------------------------ */

static uint64_t total(const uint64_t *counts)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
        sum += counts[i];
    }
    return sum;
}

/*
 * Requests that hang have no latency yet: where some are under way and none has ended since some
 * were before, one at least is as old as that. It counts as one that ended in this slice.
 */
static void add_hanging(struct guest_latency *latency, uint64_t *slice, bool is_busy,
                        int64_t now_ns)
{
    if (!is_busy) {
        latency->busy_ns = 0;
    } else if (!latency->busy_ns || total(slice)) {
        latency->busy_ns = now_ns;
    } else {
        slice[statistics_bucket_of((uint64_t)(now_ns - latency->busy_ns))]++;
    }
}

static void push(struct guest_latency *latency, const struct guest_figures *figures, int64_t now_ns)
{
    uint64_t *slice = latency->slices[latency->next];

    for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
        slice[i] = latency->fed_ns ? figures->latencies[i] - latency->before[i] : 0;
    }
    memcpy(latency->before, figures->latencies, sizeof(latency->before));
    add_hanging(latency, slice, figures->is_busy, now_ns);
    latency->next = (latency->next + 1) % GUEST_LATENCY_SLICES;
    latency->since = MIN_OF(latency->since + 1, (unsigned)GUEST_LATENCY_SLICES);
    latency->fed_ns = now_ns;
}

/* Of the last so many slices; 0 if there were no requests. */
static uint64_t p99_of(const struct guest_latency *latency, unsigned slices)
{
    uint64_t counts[STATISTICS_BUCKETS] = {0};

    for (unsigned age = 1; age <= slices; age++) {
        unsigned at = (latency->next + GUEST_LATENCY_SLICES - age) % GUEST_LATENCY_SLICES;

        for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
            counts[i] += latency->slices[at][i];
        }
    }
    return statistics_percentile_of_ns(counts, SHARE);
}

/* ---- The allowance --------------------------------------------------------------------------- */

static void set_allowance(struct guest_latency *latency, double allowance)
{
    latency->allowance = CLAMP(allowance, GUEST_LATENCY_FLOOR, latency->most);
    latency->since = 0;
}

static void reduce(struct guest_latency *latency, uint64_t p99_ns, unsigned workers)
{
    double used = MIN_OF(latency->allowance, (double)MAX_OF(workers, 1u));

    if (latency->allowance > GUEST_LATENCY_FLOOR) { /* else it is not the job */
        latency->too_much = used;
    }
    set_allowance(latency, used / (p99_ns / FAR > latency->target_ns ? 4 : 2));
    latency->pace =
        latency->allowance > GUEST_LATENCY_FLOOR ? GUEST_PACE_HELD_BACK : GUEST_PACE_FLOOR;
}

static void grow(struct guest_latency *latency, bool guest_is_idle)
{
    double growth = guest_is_idle                                      ? GROWTH_IDLE
                    : latency->allowance < latency->too_much * CAREFUL ? GROWTH
                                                                       : GROWTH_CAREFUL;

    set_allowance(latency, latency->allowance * growth);
    if (latency->allowance > latency->too_much) { /* it is not any more */
        latency->too_much = latency->most;
    }
    latency->pace = latency->allowance < latency->most ? GUEST_PACE_RECOVERING : GUEST_PACE_FREE;
}

void guest_latency_feed(struct guest_latency *latency, const struct guest_figures *figures,
                        unsigned workers, int64_t now_ns)
{
    push(latency, figures, now_ns);
    latency->p99_ns = p99_of(latency, GUEST_LATENCY_SLICES);
    if (latency->since < SLICES_TO_JUDGE) {
        return;
    }
    uint64_t p99_ns = p99_of(latency, latency->since - 1);
    if (p99_ns > latency->target_ns) {
        reduce(latency, p99_ns, workers);
    } else if (latency->since == GUEST_LATENCY_SLICES && latency->allowance < latency->most) {
        grow(latency, p99_ns == 0);
    }
}

unsigned guest_latency_workers(const struct guest_latency *latency)
{
    return (unsigned)MAX_OF(latency->allowance, 1.0);
}

int64_t guest_latency_rest_ns(const struct guest_latency *latency, int64_t piece_ns)
{
    if (latency->allowance >= 1) {
        return 0;
    }
    double rest_ns = (double)piece_ns * (1 / latency->allowance - 1);

    return (int64_t)MIN_OF(rest_ns, (double)GUEST_LATENCY_REST_MAX_NS);
}
