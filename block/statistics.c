/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/statistics.h"

#include <string.h>

#include "block/align.h"

/*
 * Bucket 0 takes what is below 1 microsecond. From there each power of two of microseconds has
 * four buckets of equal width; in units of a quarter microsecond, the octave is what the highest
 * bit says and the bucket in it what the two bits below say.
 */
#define QUARTER_NS 250

static inline void add(_Atomic uint64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

static inline uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

uint64_t statistics_bucket_limit_ns(unsigned bucket)
{
    unsigned octave, quarter;

    if (bucket == 0) {
        return 4 * QUARTER_NS;
    }
    if (bucket >= STATISTICS_BUCKETS - 1) {
        return UINT64_MAX;
    }
    octave = (bucket - 1) / 4;
    quarter = (bucket - 1) % 4;
    return (uint64_t)(5 + quarter) * QUARTER_NS << octave;
}

unsigned statistics_bucket_of(uint64_t latency_ns)
{
    uint64_t quarters = latency_ns / QUARTER_NS;
    unsigned octave, bucket;

    if (quarters < 4) {
        return 0;
    }
    octave = 61 - (unsigned)__builtin_clzll(quarters);
    bucket = 1 + 4 * octave + ((quarters >> octave) & 3);
    return MIN_OF(bucket, (unsigned)STATISTICS_BUCKETS - 1);
}

void statistics_raise(_Atomic uint64_t *highest, uint64_t value)
{
    uint64_t seen = get(highest);

    while (seen < value && !atomic_compare_exchange_weak_explicit(
                               highest, &seen, value, memory_order_relaxed, memory_order_relaxed)) {
    }
}

void statistics_record(struct statistics *statistics, enum block_operation operation,
                       uint64_t offset, uint64_t bytes, int status, int64_t start_ns,
                       int64_t end_ns)
{
    struct statistics_shard *shard = &statistics->shards[shard_here()];
    struct statistics_operation *counters = &shard->operations[operation];
    uint64_t latency_ns = end_ns > start_ns ? (uint64_t)(end_ns - start_ns) : 0;

    if (status < 0) {
        add(&counters->failed, 1);
    } else {
        add(&counters->operations, 1);
        add(&counters->bytes, bytes);
        if (operation == BLOCK_OPERATION_WRITE || operation == BLOCK_OPERATION_WRITE_ZEROES) {
            statistics_raise(&shard->highest_written, offset + bytes);
        }
    }
    add(&counters->total_time_ns, latency_ns);
    add(&counters->buckets[statistics_bucket_of(latency_ns)], 1);
    atomic_store_explicit(&shard->last_access_ns, end_ns, memory_order_relaxed);
}

void statistics_record_invalid(struct statistics *statistics, enum block_operation operation)
{
    add(&statistics->shards[shard_here()].operations[operation].invalid, 1);
}

static void read_shard(struct statistics_shard *shard, struct statistics_snapshot *snapshot)
{
    int64_t last_access_ns = atomic_load_explicit(&shard->last_access_ns, memory_order_relaxed);

    for (unsigned i = 0; i < BLOCK_OPERATION_COUNT; i++) {
        struct statistics_operation *counters = &shard->operations[i];

        snapshot->operations[i].operations += get(&counters->operations);
        snapshot->operations[i].bytes += get(&counters->bytes);
        snapshot->operations[i].failed += get(&counters->failed);
        snapshot->operations[i].invalid += get(&counters->invalid);
        snapshot->operations[i].total_time_ns += get(&counters->total_time_ns);
        for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
            snapshot->operations[i].buckets[bucket] += get(&counters->buckets[bucket]);
        }
    }
    snapshot->highest_written = MAX_OF(snapshot->highest_written, get(&shard->highest_written));
    snapshot->last_access_ns = MAX_OF(snapshot->last_access_ns, last_access_ns);
}

void statistics_read(struct statistics *statistics, struct statistics_snapshot *snapshot)
{
    *snapshot = (struct statistics_snapshot){0};
    for (unsigned i = 0; i < SHARDS; i++) {
        read_shard(&statistics->shards[i], snapshot);
    }
}

uint64_t statistics_count(struct statistics *statistics)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < SHARDS; i++) {
        for (unsigned operation = 0; operation < BLOCK_OPERATION_COUNT; operation++) {
            sum += get(&statistics->shards[i].operations[operation].operations);
        }
    }
    return sum;
}

void statistics_latencies(struct statistics *statistics, uint64_t *counts)
{
    memset(counts, 0, STATISTICS_BUCKETS * sizeof(*counts));
    for (unsigned i = 0; i < SHARDS; i++) {
        for (unsigned operation = 0; operation < BLOCK_OPERATION_COUNT; operation++) {
            const _Atomic uint64_t *buckets = statistics->shards[i].operations[operation].buckets;

            for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
                counts[bucket] += get(&buckets[bucket]);
            }
        }
    }
}

uint64_t statistics_percentile_of_ns(const uint64_t *counts, double share)
{
    uint64_t total = 0, seen = 0;

    for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
        total += counts[bucket];
    }
    if (!total) {
        return 0;
    }
    for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
        seen += counts[bucket];
        if (seen && (double)seen >= share * (double)total) {
            return statistics_bucket_limit_ns(bucket);
        }
    }
    return UINT64_MAX; /* a share above 1 */
}

uint64_t statistics_percentile_ns(const struct statistics_snapshot *snapshot,
                                  const struct statistics_snapshot *since,
                                  enum block_operation operation, double share)
{
    uint64_t counts[STATISTICS_BUCKETS];

    for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
        counts[bucket] = snapshot->operations[operation].buckets[bucket];
        if (since) {
            counts[bucket] -= since->operations[operation].buckets[bucket];
        }
    }
    return statistics_percentile_of_ns(counts, share);
}
