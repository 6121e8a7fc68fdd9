/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Statistics of a device: counts, bytes, time and latency histograms per operation. Recording is
 * lock-free and cheap; reading gives numbers that are each exact but not of one instant.
 */
#ifndef LIVEBLK_BLOCK_STATISTICS_H
#define LIVEBLK_BLOCK_STATISTICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/request.h"
#include "block/sharded-counter.h"

/*
 * Latency buckets: one below 1 microsecond, then four per power of two up to about 27 minutes.
 * The upper bound of bucket i, which is not in it, is statistics_bucket_limit_ns(i); the last has
 * none.
 */
#define STATISTICS_BUCKETS 124

struct statistics_operation {
    _Atomic uint64_t operations; /* that succeeded */
    _Atomic uint64_t bytes;      /* that succeeded */
    _Atomic uint64_t failed;
    _Atomic uint64_t invalid;       /* refused: out of range, read-only */
    _Atomic uint64_t total_time_ns; /* of those that succeeded and those that failed */
    _Atomic uint64_t buckets[STATISTICS_BUCKETS];
};

/* One part per processor: on a fast path a shared counter costs more than the request's checks. */
struct statistics {
    struct statistics_shard {
        struct statistics_operation operations[BLOCK_OPERATION_COUNT];
        _Atomic uint64_t highest_written; /* end of the highest byte written */
        _Atomic int64_t last_access_ns;   /* CLOCK_MONOTONIC; 0: never */
    } shards[SHARDS];
};

/* A plain copy, for reports and differences between two moments. */
struct statistics_snapshot {
    struct {
        uint64_t operations, bytes, failed, invalid, total_time_ns;
        uint64_t buckets[STATISTICS_BUCKETS];
    } operations[BLOCK_OPERATION_COUNT];
    uint64_t highest_written;
    int64_t last_access_ns;
};

/* Account for a request that ended: status is its result (0 or a negative errno). */
void statistics_record(struct statistics *statistics, enum block_operation operation,
                       uint64_t offset, uint64_t bytes, int status, int64_t start_ns,
                       int64_t end_ns);

/* Account for a request that was refused before it started. */
void statistics_record_invalid(struct statistics *statistics, enum block_operation operation);

void statistics_read(struct statistics *statistics, struct statistics_snapshot *snapshot);

/* Successful requests of all kinds so far: cheap, for who looks often. */
uint64_t statistics_count(struct statistics *statistics);

/* Upper bound of a bucket, UINT64_MAX for the last; the lower bound is the one before's. */
uint64_t statistics_bucket_limit_ns(unsigned bucket);
unsigned statistics_bucket_of(uint64_t latency_ns);

/*
 * The latency below which the given share (0 to 1) of an operation's requests ended, as the
 * upper bound of the bucket; 0 if there were none. since (or NULL) is subtracted first.
 */
uint64_t statistics_percentile_ns(const struct statistics_snapshot *snapshot,
                                  const struct statistics_snapshot *since,
                                  enum block_operation operation, double share);

/* The same of counts by bucket, STATISTICS_BUCKETS of them. */
uint64_t statistics_percentile_of_ns(const uint64_t *counts, double share);

/* How many requests of all kinds ended so far, well or not, by bucket: STATISTICS_BUCKETS sums. */
void statistics_latencies(struct statistics *statistics, uint64_t *counts);

/* Make a counter at least this large. */
void statistics_raise(_Atomic uint64_t *highest, uint64_t value);

#endif
