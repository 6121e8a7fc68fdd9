/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Throttling: leaky buckets for bytes and operations per second, in total and per direction.
 *
 * A bucket leaks at its average rate and overflows at its burst size. With max, bursts up to
 * max per second are let through for max_length seconds. A request waits while one of its
 * buckets is over its brim; requests of one direction wait in the order in which they came.
 * Limits can be changed while requests wait; they then wait by the new ones.
 */
#ifndef LIVEBLK_BLOCK_THROTTLE_H
#define LIVEBLK_BLOCK_THROTTLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

enum throttle_bucket_kind {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BUCKET_COUNT,
};

struct throttle_limits {
    struct {
        uint64_t average;    /* per second; 0: unlimited */
        uint64_t max;        /* burst rate per second; 0: none */
        uint64_t max_length; /* seconds of burst; 1 if 0 */
    } buckets[THROTTLE_BUCKET_COUNT];
    uint64_t iops_size; /* a request counts as one operation per this many bytes; 0: as one */
};

struct throttle;

/* Unlimited at first. */
struct throttle *throttle_new(void);
/* Nobody may wait in it any more. */
void throttle_free(struct throttle *throttle);
DEFINE_AUTO(throttle, throttle_free)

/* Check limits as QEMU does, with its messages. Returns a negative errno. */
int throttle_limits_check(const struct throttle_limits *limits, GError **error);

/* Set checked limits; requests that wait go by them at once. Any thread. */
void throttle_set_limits(struct throttle *throttle, const struct throttle_limits *limits);
void throttle_get_limits(struct throttle *throttle, struct throttle_limits *limits);

/*
 * Wait until a request may start, and account for it. One atomic load if unlimited. Returns at
 * once while throttling is suspended. Any thread.
 */
void throttle_wait(struct throttle *throttle, bool is_write, uint64_t bytes);

/*
 * Let all waiting and later requests through (and do not count them) until resumed: a drain must
 * not wait for a rate limit. Nests.
 */
void throttle_suspend(struct throttle *throttle);
void throttle_resume(struct throttle *throttle);

/*
 * One of several that share a throttle, and wait in one queue, whose own requests can be let
 * through without those of the others. Set up with the throttle and zeroes.
 */
struct throttle_user {
    struct throttle *throttle;
    unsigned suspended; /* under the throttle's lock */
};

/* As the functions above, for requests of one user. Any thread. */
void throttle_wait_as(const struct throttle_user *user, bool is_write, uint64_t bytes);
void throttle_suspend_user(struct throttle_user *user);
void throttle_resume_user(struct throttle_user *user);

#endif
