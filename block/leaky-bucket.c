/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/leaky-bucket.h"

#include "block/align.h"
#include "block/clock.h"

/* Share of a second's worth that may come at once where no burst allows more. */
#define SLACK 0.1

/* No wait is longer, so that times cannot overflow; who waits looks again then. */
#define LONGEST_WAIT_NS (3600 * NS_PER_SECOND)

static void leak(struct leaky_bucket *bucket, int64_t now_ns)
{
    double seconds = (double)(now_ns - bucket->leaked_ns) / (double)NS_PER_SECOND;

    bucket->leaked_ns = now_ns;
    bucket->level = MAX_OF(bucket->level - bucket->average * seconds, 0.0);
    bucket->burst_level = MAX_OF(bucket->burst_level - bucket->max * seconds, 0.0);
}

void leaky_bucket_set_rates(struct leaky_bucket *bucket, uint64_t average, uint64_t max,
                            uint64_t max_length, int64_t now_ns)
{
    leak(bucket, now_ns);
    bucket->average = (double)average;
    bucket->max = (double)max;
    bucket->brim =
        max ? bucket->max * (double)MAX_OF(max_length, UINT64_C(1)) : bucket->average * SLACK;
    bucket->level = MIN_OF(bucket->level, bucket->brim);
    bucket->burst_level = MIN_OF(bucket->burst_level, bucket->max * SLACK);
}

static int64_t time_to_leak(double units, double rate)
{
    double wait_ns = units > 0 ? units / rate * (double)NS_PER_SECOND : 0;

    if (wait_ns <= 0) {
        return 0;
    }
    return wait_ns >= (double)LONGEST_WAIT_NS ? LONGEST_WAIT_NS : (int64_t)wait_ns + 1;
}

int64_t leaky_bucket_wait_ns(struct leaky_bucket *bucket, int64_t now_ns)
{
    int64_t wait_ns;

    if (bucket->average <= 0) {
        return 0;
    }
    leak(bucket, now_ns);
    wait_ns = time_to_leak(bucket->level - bucket->brim, bucket->average);
    if (bucket->max > 0) {
        int64_t burst_wait_ns =
            time_to_leak(bucket->burst_level - bucket->max * SLACK, bucket->max);

        wait_ns = MAX_OF(wait_ns, burst_wait_ns);
    }
    return wait_ns;
}

void leaky_bucket_pour(struct leaky_bucket *bucket, double units, int64_t now_ns)
{
    if (bucket->average > 0) {
        leak(bucket, now_ns);
        bucket->level += units;
        bucket->burst_level += bucket->max > 0 ? units : 0;
    }
}
