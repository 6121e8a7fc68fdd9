/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/throttle.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/leaky-bucket.h"
#include "block/queue.h"

/* The highest rate and the largest burst: beyond any device, and exact in a double. */
#define HIGHEST_VALUE UINT64_C(1000000000000000)

/* A request that has to wait; lives on its thread's stack. All under throttle->lock. */
struct waiter {
    const struct throttle_user *user; /* NULL: the throttle's only one */
    uint64_t arrival;
    uint64_t bytes;
    bool is_admitted;
    pthread_cond_t changed; /* admitted, now first of its direction, or the limits changed */
    TAILQ_ENTRY(waiter) entry;
};
TAILQ_HEAD(waiter_list, waiter);

enum { READING, WRITING, DIRECTION_COUNT };

struct throttle {
    /* Guards everything below. A leaf: no other lock is taken under it. */
    pthread_mutex_t lock;
    struct throttle_limits limits;
    struct leaky_bucket buckets[THROTTLE_BUCKET_COUNT];
    struct waiter_list waiters[DIRECTION_COUNT]; /* in order of arrival */
    uint64_t next_arrival;
    unsigned suspended;

    /* Limited and not suspended. Written under the lock, read without. */
    atomic_bool is_active;
};

static const char *const names[THROTTLE_BUCKET_COUNT] = {
    [THROTTLE_BPS_TOTAL] = "bps",     [THROTTLE_BPS_READ] = "bps_rd",
    [THROTTLE_BPS_WRITE] = "bps_wr",  [THROTTLE_IOPS_TOTAL] = "iops",
    [THROTTLE_IOPS_READ] = "iops_rd", [THROTTLE_IOPS_WRITE] = "iops_wr",
};

static const enum throttle_bucket_kind buckets_of[DIRECTION_COUNT][4] = {
    [READING] = {THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_READ},
    [WRITING] = {THROTTLE_BPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_IOPS_TOTAL, THROTTLE_IOPS_WRITE},
};

/* Limits. */

static bool is_iops(enum throttle_bucket_kind kind)
{
    return kind >= THROTTLE_IOPS_TOTAL;
}

static int check_bucket(const struct throttle_limits *limits, enum throttle_bucket_kind kind,
                        GError **error)
{
    uint64_t average = limits->buckets[kind].average;
    uint64_t max = limits->buckets[kind].max;
    uint64_t length = limits->buckets[kind].max_length;
    const char *name = names[kind];
    uint64_t burst;

    if (average > HIGHEST_VALUE || max > HIGHEST_VALUE) {
        return block_error(error, EINVAL, "%s and %s_max must be at most %" PRIu64, name, name,
                           HIGHEST_VALUE);
    }
    if (max && !average) {
        return block_error(error, EINVAL, "bps_max/iops_max require corresponding bps/iops values");
    }
    if (max && max < average) {
        return block_error(error, EINVAL,
                           "%s_max (%" PRIu64 ") must not be lower than %s (%" PRIu64 ")", name,
                           max, name, average);
    }
    /* A length of 1 is the default and says nothing. */
    if (length > 1 && !max) {
        return block_error(error, EINVAL, "%s_max_length requires %s_max", name, name);
    }
    if (!checked_mul_u64(max, MAX_OF(length, UINT64_C(1)), &burst) || burst > HIGHEST_VALUE) {
        return block_error(error, EINVAL, "%s_max times %s_max_length must be at most %" PRIu64,
                           name, name, HIGHEST_VALUE);
    }
    return 0;
}

/* True if a limit in total stands beside one of a single direction. */
static bool is_contradictory(const struct throttle_limits *limits, enum throttle_bucket_kind total)
{
    enum throttle_bucket_kind read = total + 1, write = total + 2;

    return (limits->buckets[total].average &&
            (limits->buckets[read].average || limits->buckets[write].average)) ||
           (limits->buckets[total].max &&
            (limits->buckets[read].max || limits->buckets[write].max));
}

static bool is_limited(const struct throttle_limits *limits, enum throttle_bucket_kind first)
{
    for (unsigned kind = first; kind < THROTTLE_BUCKET_COUNT; kind++) {
        if (limits->buckets[kind].average) {
            return true;
        }
    }
    return false;
}

int throttle_limits_check(const struct throttle_limits *limits, GError **error)
{
    if (is_contradictory(limits, THROTTLE_BPS_TOTAL) ||
        is_contradictory(limits, THROTTLE_IOPS_TOTAL)) {
        return block_error(error, EINVAL,
                           "bps/iops/max total values and read/write values cannot be used at the "
                           "same time");
    }
    if (limits->iops_size && !is_limited(limits, THROTTLE_IOPS_TOTAL)) {
        return block_error(error, EINVAL, "iops_size requires an iops, iops_rd or iops_wr value");
    }
    for (unsigned kind = 0; kind < THROTTLE_BUCKET_COUNT; kind++) {
        int status = check_bucket(limits, kind, error);

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

/* Admission. Functions below run with the lock held. */

static double cost(const struct throttle *throttle, enum throttle_bucket_kind kind, uint64_t bytes)
{
    uint64_t size = throttle->limits.iops_size;

    if (!is_iops(kind)) {
        return (double)bytes;
    }
    return size && bytes > size ? (double)bytes / (double)size : 1;
}

/* How long a request of this direction has to wait for the fullest of its buckets. */
static int64_t wait_ns_of(struct throttle *throttle, int direction, int64_t now_ns)
{
    int64_t longest_ns = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(buckets_of[direction]); i++) {
        int64_t wait_ns =
            leaky_bucket_wait_ns(&throttle->buckets[buckets_of[direction][i]], now_ns);

        longest_ns = MAX_OF(longest_ns, wait_ns);
    }
    return longest_ns;
}

static void charge(struct throttle *throttle, int direction, uint64_t bytes, int64_t now_ns)
{
    for (size_t i = 0; i < G_N_ELEMENTS(buckets_of[direction]); i++) {
        enum throttle_bucket_kind kind = buckets_of[direction][i];

        leaky_bucket_pour(&throttle->buckets[kind], cost(throttle, kind, bytes), now_ns);
    }
}

static void enqueue(struct throttle *throttle, int direction, struct waiter *waiter)
{
    waiter->arrival = throttle->next_arrival++;
    TAILQ_INSERT_TAIL(&throttle->waiters[direction], waiter, entry);
}

static void admit(struct throttle *throttle, int direction, struct waiter *waiter)
{
    TAILQ_REMOVE(&throttle->waiters[direction], waiter, entry);
    waiter->is_admitted = true;
    pthread_cond_signal(&waiter->changed);
    if (!TAILQ_EMPTY(&throttle->waiters[direction])) { /* it watches the clock from now on */
        pthread_cond_signal(&TAILQ_FIRST(&throttle->waiters[direction])->changed);
    }
}

static void admit_first(struct throttle *throttle, int direction)
{
    admit(throttle, direction, TAILQ_FIRST(&throttle->waiters[direction]));
}

static void admit_all_of(struct throttle *throttle, const struct throttle_user *user)
{
    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        struct waiter *waiter, *next;

        TAILQ_FOREACH_SAFE (waiter, &throttle->waiters[direction], entry, next) {
            if (waiter->user == user) {
                admit(throttle, direction, waiter);
            }
        }
    }
}

/* The direction whose first request may go now; of two, the one that came first; or -1. */
static int ready_direction(struct throttle *throttle, int64_t now_ns)
{
    uint64_t earliest = UINT64_MAX;
    int ready = -1;

    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        struct waiter *first = TAILQ_FIRST(&throttle->waiters[direction]);

        if (first && first->arrival < earliest && wait_ns_of(throttle, direction, now_ns) == 0) {
            earliest = first->arrival;
            ready = direction;
        }
    }
    return ready;
}

static void admit_ready(struct throttle *throttle, int64_t now_ns)
{
    int direction;

    while ((direction = ready_direction(throttle, now_ns)) >= 0) {
        charge(throttle, direction, TAILQ_FIRST(&throttle->waiters[direction])->bytes, now_ns);
        admit_first(throttle, direction);
    }
}

/* After a change of limits or suspension: nobody may sleep by what held before. */
static void apply_change(struct throttle *throttle)
{
    bool is_active = !throttle->suspended && is_limited(&throttle->limits, THROTTLE_BPS_TOTAL);

    atomic_store_explicit(&throttle->is_active, is_active, memory_order_release);
    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        struct waiter_list *waiters = &throttle->waiters[direction];

        while (!is_active && !TAILQ_EMPTY(waiters)) {
            admit_first(throttle, direction);
        }
        if (!TAILQ_EMPTY(waiters)) {
            pthread_cond_signal(&TAILQ_FIRST(waiters)->changed);
        }
    }
}

/* The first of a direction watches the clock, for those behind it too. */
static int64_t deadline_ns_of(struct throttle *throttle, int direction, const struct waiter *waiter,
                              int64_t now_ns)
{
    if (TAILQ_FIRST(&throttle->waiters[direction]) != waiter) {
        return INT64_MAX;
    }
    return now_ns + wait_ns_of(throttle, direction, now_ns);
}

static void wait_in_queue(struct throttle *throttle, const struct throttle_user *user,
                          int direction, uint64_t bytes)
{
    struct waiter waiter = {.user = user, .bytes = bytes};
    SCOPE_LOCK(&throttle->lock);

    if (!atomic_load_explicit(&throttle->is_active, memory_order_relaxed) ||
        (user && user->suspended)) {
        return;
    }
    pthread_cond_init(&waiter.changed, NULL);
    enqueue(throttle, direction, &waiter);
    while (!waiter.is_admitted) {
        int64_t now_ns = clock_now_ns();

        admit_ready(throttle, now_ns);
        if (!waiter.is_admitted) {
            clock_cond_wait_until(&waiter.changed, &throttle->lock,
                                  deadline_ns_of(throttle, direction, &waiter, now_ns));
        }
    }
    pthread_cond_destroy(&waiter.changed);
}

/* The outside. */

struct throttle *throttle_new(void)
{
    struct throttle *throttle = g_new0(struct throttle, 1);

    pthread_mutex_init(&throttle->lock, NULL);
    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        TAILQ_INIT(&throttle->waiters[direction]);
    }
    return throttle;
}

void throttle_free(struct throttle *throttle)
{
    if (throttle) {
        pthread_mutex_destroy(&throttle->lock);
        g_free(throttle);
    }
}

void throttle_set_limits(struct throttle *throttle, const struct throttle_limits *limits)
{
    SCOPE_LOCK(&throttle->lock);
    int64_t now_ns = clock_now_ns();

    throttle->limits = *limits;
    for (unsigned kind = 0; kind < THROTTLE_BUCKET_COUNT; kind++) {
        leaky_bucket_set_rates(&throttle->buckets[kind], limits->buckets[kind].average,
                               limits->buckets[kind].max, limits->buckets[kind].max_length, now_ns);
    }
    apply_change(throttle);
}

void throttle_get_limits(struct throttle *throttle, struct throttle_limits *limits)
{
    SCOPE_LOCK(&throttle->lock);

    *limits = throttle->limits;
}

void throttle_wait(struct throttle *throttle, bool is_write, uint64_t bytes)
{
    if (G_UNLIKELY(atomic_load_explicit(&throttle->is_active, memory_order_acquire))) {
        wait_in_queue(throttle, NULL, is_write ? WRITING : READING, bytes);
    }
}

void throttle_wait_as(const struct throttle_user *user, bool is_write, uint64_t bytes)
{
    struct throttle *throttle = user->throttle;

    if (atomic_load_explicit(&throttle->is_active, memory_order_acquire)) {
        wait_in_queue(throttle, user, is_write ? WRITING : READING, bytes);
    }
}

void throttle_suspend_user(struct throttle_user *user)
{
    SCOPE_LOCK(&user->throttle->lock);

    user->suspended++;
    admit_all_of(user->throttle, user);
}

void throttle_resume_user(struct throttle_user *user)
{
    SCOPE_LOCK(&user->throttle->lock);

    g_assert(user->suspended > 0);
    user->suspended--;
}

void throttle_suspend(struct throttle *throttle)
{
    SCOPE_LOCK(&throttle->lock);

    throttle->suspended++;
    apply_change(throttle);
}

void throttle_resume(struct throttle *throttle)
{
    SCOPE_LOCK(&throttle->lock);

    g_assert(throttle->suspended > 0);
    throttle->suspended--;
    apply_change(throttle);
}
