/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One leaky bucket of a throttle: arithmetic without locks, threads or clocks. Times are
 * CLOCK_MONOTONIC nanoseconds that never go back; units are bytes or operations. What is poured
 * in leaks at the average rate; while the bucket is over its brim nothing more may be poured.
 *
 * The brim is a burst's worth, max times length, or a tenth of a second's worth where there is
 * no burst rate. During a burst a second level keeps the rate at max.
 *
 * The caller serialises.
 */
#ifndef LIVEBLK_BLOCK_LEAKY_BUCKET_H
#define LIVEBLK_BLOCK_LEAKY_BUCKET_H

#include <stdint.h>

struct leaky_bucket {
    double average; /* units per second; 0: unlimited, the rest is unused */
    double max;     /* units per second; 0: no burst rate */
    double brim;
    double level;
    double burst_level; /* leaks at max */
    int64_t leaked_ns;  /* levels are those of this time */
};

/*
 * Change the rates (max_length in seconds, 1 if 0). The level is kept, but at most at the new
 * brim: nobody waits for what the old limits allowed.
 */
void leaky_bucket_set_rates(struct leaky_bucket *bucket, uint64_t average, uint64_t max,
                            uint64_t max_length, int64_t now_ns);

/* Nanoseconds until the bucket is not over its brim; 0 if units may be poured now. */
int64_t leaky_bucket_wait_ns(struct leaky_bucket *bucket, int64_t now_ns);

/* Pour units in, however many: the next ones wait the longer. */
void leaky_bucket_pour(struct leaky_bucket *bucket, double units, int64_t now_ns);

#endif
