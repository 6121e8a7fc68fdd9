/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <glib.h>
#include <pthread.h>

#include "block/clock.h"
#include "block/statistics.h"

static void test_every_latency_lies_inside_its_bucket(void)
{
    for (unsigned round = 0; round < 200000; round++) {
        uint64_t random = (uint64_t)g_test_rand_int() << 32 | (uint32_t)g_test_rand_int();
        uint64_t latency_ns = random >> g_test_rand_int_range(0, 64);
        unsigned bucket = statistics_bucket_of(latency_ns);

        g_assert_cmpuint(bucket, <, STATISTICS_BUCKETS);
        g_assert_true(latency_ns < statistics_bucket_limit_ns(bucket) ||
                      bucket == STATISTICS_BUCKETS - 1);
        g_assert_true(bucket == 0 || latency_ns >= statistics_bucket_limit_ns(bucket - 1));
    }
}

static void test_buckets_grow_and_meet_exactly(void)
{
    g_assert_cmpuint(statistics_bucket_limit_ns(0), ==, 1000);
    g_assert_cmpuint(statistics_bucket_limit_ns(1), ==, 1250);
    g_assert_cmpuint(statistics_bucket_limit_ns(4), ==, 2000);
    g_assert_cmpuint(statistics_bucket_limit_ns(5), ==, 2500);
    g_assert_cmpuint(statistics_bucket_limit_ns(STATISTICS_BUCKETS - 1), ==, UINT64_MAX);
    g_assert_cmpuint(statistics_bucket_of(0), ==, 0);
    g_assert_cmpuint(statistics_bucket_of(UINT64_MAX), ==, STATISTICS_BUCKETS - 1);
    for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS - 1; bucket++) {
        uint64_t limit_ns = statistics_bucket_limit_ns(bucket);

        g_assert_cmpuint(limit_ns, <, statistics_bucket_limit_ns(bucket + 1));
        g_assert_cmpuint(statistics_bucket_of(limit_ns - 1), ==, bucket);
        g_assert_cmpuint(statistics_bucket_of(limit_ns), ==, bucket + 1);
    }
}

static void test_requests_are_counted_by_their_result(void)
{
    g_autofree struct statistics *statistics = g_new0(struct statistics, 1);
    struct statistics_snapshot now;

    statistics_record(statistics, BLOCK_OPERATION_WRITE, 4096, 512, 0, 1000, 3000);
    statistics_record(statistics, BLOCK_OPERATION_WRITE, 0, 100, 0, 4000, 5000);
    statistics_record(statistics, BLOCK_OPERATION_WRITE, 9000, 100, -EIO, 5000, 9000);
    statistics_record(statistics, BLOCK_OPERATION_READ, 1 << 20, 512, 0, 9000, 9500);
    statistics_record_invalid(statistics, BLOCK_OPERATION_READ);
    statistics_read(statistics, &now);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].operations, ==, 2);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].bytes, ==, 612);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].failed, ==, 1);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].invalid, ==, 0);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].total_time_ns, ==, 7000);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_READ].operations, ==, 1);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_READ].invalid, ==, 1);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_READ].buckets[0], ==, 1);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_FLUSH].operations, ==, 0);
    g_assert_cmpint(now.last_access_ns, ==, 9500);
}

static void test_the_highest_written_byte_counts_what_was_written(void)
{
    g_autofree struct statistics *statistics = g_new0(struct statistics, 1);
    struct statistics_snapshot now;

    statistics_record(statistics, BLOCK_OPERATION_WRITE, 4096, 512, 0, 0, 1);
    statistics_record(statistics, BLOCK_OPERATION_WRITE, 0, 512, 0, 0, 1);
    statistics_record(statistics, BLOCK_OPERATION_READ, 1 << 20, 512, 0, 0, 1);
    statistics_record(statistics, BLOCK_OPERATION_DISCARD, 1 << 20, 512, 0, 0, 1);
    statistics_record(statistics, BLOCK_OPERATION_WRITE, 1 << 20, 512, -ENOSPC, 0, 1);
    statistics_read(statistics, &now);
    g_assert_cmpuint(now.highest_written, ==, 4608);
    statistics_record(statistics, BLOCK_OPERATION_WRITE_ZEROES, 8192, 512, 0, 0, 1);
    statistics_read(statistics, &now);
    g_assert_cmpuint(now.highest_written, ==, 8704);
}

static void record_latencies(struct statistics *statistics, unsigned count, int64_t latency_ns)
{
    for (unsigned i = 0; i < count; i++) {
        statistics_record(statistics, BLOCK_OPERATION_READ, 0, 512, 0, NS_PER_SECOND,
                          NS_PER_SECOND + latency_ns);
    }
}

static void test_percentiles_are_upper_bounds(void)
{
    g_autofree struct statistics *statistics = g_new0(struct statistics, 1);
    enum block_operation reads = BLOCK_OPERATION_READ;
    struct statistics_snapshot now;

    statistics_read(statistics, &now);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 0.5), ==, 0);
    record_latencies(statistics, 99, 500);
    record_latencies(statistics, 1, 2100);
    statistics_read(statistics, &now);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 0), ==, 1000);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 0.5), ==, 1000);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 0.99), ==, 1000);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 0.995), ==, 2500);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, reads, 1), ==, 2500);
    g_assert_cmpuint(statistics_percentile_ns(&now, NULL, BLOCK_OPERATION_WRITE, 0.5), ==, 0);
}

static void test_percentiles_can_leave_out_the_past(void)
{
    g_autofree struct statistics *statistics = g_new0(struct statistics, 1);
    struct statistics_snapshot before, now;

    record_latencies(statistics, 1000, 500);
    statistics_read(statistics, &before);
    g_assert_cmpuint(statistics_percentile_ns(&before, &before, BLOCK_OPERATION_READ, 0.5), ==, 0);
    record_latencies(statistics, 2, 2100);
    statistics_read(statistics, &now);
    g_assert_cmpuint(statistics_percentile_ns(&now, &before, BLOCK_OPERATION_READ, 0.01), ==, 2500);
}

#define THREADS  4
#define REQUESTS 20000

static void *record_many(void *data)
{
    struct statistics *statistics = data;

    for (unsigned i = 0; i < REQUESTS; i++) {
        statistics_record(statistics, BLOCK_OPERATION_WRITE, i, 1, 0, 1, 1 + i);
    }
    return NULL;
}

static void test_no_request_of_any_thread_is_lost(void)
{
    g_autofree struct statistics *statistics = g_new0(struct statistics, 1);
    struct statistics_snapshot now;
    pthread_t threads[THREADS];
    uint64_t in_buckets = 0;

    for (unsigned i = 0; i < THREADS; i++) {
        pthread_create(&threads[i], NULL, record_many, statistics);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    statistics_read(statistics, &now);
    for (unsigned bucket = 0; bucket < STATISTICS_BUCKETS; bucket++) {
        in_buckets += now.operations[BLOCK_OPERATION_WRITE].buckets[bucket];
    }
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].operations, ==, THREADS * REQUESTS);
    g_assert_cmpuint(now.operations[BLOCK_OPERATION_WRITE].bytes, ==, THREADS * REQUESTS);
    g_assert_cmpuint(in_buckets, ==, THREADS * REQUESTS);
    g_assert_cmpuint(now.highest_written, ==, REQUESTS);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/statistics/every-latency-lies-inside-its-bucket",
                    test_every_latency_lies_inside_its_bucket);
    g_test_add_func("/statistics/buckets-grow-and-meet-exactly",
                    test_buckets_grow_and_meet_exactly);
    g_test_add_func("/statistics/requests-are-counted-by-their-result",
                    test_requests_are_counted_by_their_result);
    g_test_add_func("/statistics/the-highest-written-byte-counts-what-was-written",
                    test_the_highest_written_byte_counts_what_was_written);
    g_test_add_func("/statistics/percentiles-are-upper-bounds", test_percentiles_are_upper_bounds);
    g_test_add_func("/statistics/percentiles-can-leave-out-the-past",
                    test_percentiles_can_leave_out_the_past);
    g_test_add_func("/statistics/no-request-of-any-thread-is-lost",
                    test_no_request_of_any_thread_is_lost);
    return g_test_run();
}
