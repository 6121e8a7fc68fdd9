/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/latency-histogram.h"

#include <pthread.h>

struct reading {
    GArray *boundaries, *counts;
};

static struct reading read_kind(struct latency_histograms *histograms,
                                enum latency_histogram_kind kind)
{
    struct reading reading = {
        .boundaries = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
        .counts = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
    };

    g_assert_true(latency_histogram_read(histograms, kind, reading.boundaries, reading.counts));
    return reading;
}

/* A kind's counts are these. */
static void assert_counts(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                          uint64_t below, uint64_t above)
{
    const uint64_t expected[] = {below, above};
    struct reading reading = read_kind(histograms, kind);

    g_assert_cmpmem(reading.counts->data, reading.counts->len * sizeof(uint64_t), expected,
                    sizeof(expected));
    g_array_unref(reading.boundaries);
    g_array_unref(reading.counts);
}

static void assert_numbers(GArray *numbers, const uint64_t *expected, size_t count)
{
    g_assert_cmpmem(numbers->data, numbers->len * sizeof(uint64_t), expected,
                    count * sizeof(uint64_t));
    g_array_unref(numbers);
}

static void test_boundaries(void)
{
    static const uint64_t good[] = {1, 2, UINT64_MAX}, zero[] = {0, 1}, equal[] = {5, 5},
                          falling[] = {5, 4};

    g_assert_true(latency_boundaries_are_valid(good, 3));
    g_assert_true(latency_boundaries_are_valid(NULL, 0));
    g_assert_false(latency_boundaries_are_valid(zero, 2));
    g_assert_false(latency_boundaries_are_valid(equal, 2));
    g_assert_false(latency_boundaries_are_valid(falling, 2));
}

static void test_intervals(void)
{
    static const uint64_t boundaries[] = {10, 50, 100};
    static const int64_t latencies[] = {-1, 0, 9, 10, 49, 50, 99, 100, INT64_MAX};
    struct latency_histograms histograms;

    latency_histograms_init(&histograms);
    latency_histogram_set(&histograms, LATENCY_HISTOGRAM_WRITE, boundaries, 3);
    for (size_t i = 0; i < G_N_ELEMENTS(latencies); i++) {
        latency_histograms_record(&histograms, BLOCK_OPERATION_WRITE, latencies[i]);
    }
    struct reading reading = read_kind(&histograms, LATENCY_HISTOGRAM_WRITE);
    assert_numbers(reading.boundaries, boundaries, 3);
    assert_numbers(reading.counts, (const uint64_t[]){3, 2, 2, 2}, 4);
    /* Setting it again begins anew; without boundaries all is one interval. */
    latency_histogram_set(&histograms, LATENCY_HISTOGRAM_WRITE, NULL, 0);
    latency_histograms_record(&histograms, BLOCK_OPERATION_WRITE_ZEROES, 7);
    reading = read_kind(&histograms, LATENCY_HISTOGRAM_WRITE);
    assert_numbers(reading.boundaries, NULL, 0);
    assert_numbers(reading.counts, (const uint64_t[]){1}, 1);
    latency_histograms_destroy(&histograms);
}

static void test_kinds(void)
{
    struct latency_histograms histograms;
    static const uint64_t boundary = 1000;

    latency_histograms_init(&histograms);
    latency_histograms_record(&histograms, BLOCK_OPERATION_READ, 1); /* nobody wants to know */
    for (unsigned kind = 0; kind < LATENCY_HISTOGRAM_KINDS; kind++) {
        g_assert_false(latency_histogram_read(&histograms, kind, NULL, NULL));
        latency_histogram_set(&histograms, kind, &boundary, 1);
    }
    for (unsigned operation = 0; operation < BLOCK_OPERATION_COUNT; operation++) {
        latency_histograms_record(&histograms, operation, 1);
    }
    /* Reads; writes and writes of zeroes; flushes. Discards are in none. */
    assert_counts(&histograms, LATENCY_HISTOGRAM_READ, 1, 0);
    assert_counts(&histograms, LATENCY_HISTOGRAM_WRITE, 2, 0);
    assert_counts(&histograms, LATENCY_HISTOGRAM_FLUSH, 1, 0);
    latency_histogram_remove(&histograms, LATENCY_HISTOGRAM_READ);
    g_assert_false(latency_histogram_read(&histograms, LATENCY_HISTOGRAM_READ, NULL, NULL));
    latency_histograms_destroy(&histograms);
}

#define REQUESTS 20000

static void *record_many(void *data)
{
    for (int64_t i = 0; i < REQUESTS; i++) {
        latency_histograms_record(data, i % 2 ? BLOCK_OPERATION_READ : BLOCK_OPERATION_FLUSH, i);
    }
    return NULL;
}

static void test_threads(void)
{
    static const uint64_t boundary = REQUESTS / 2;
    struct latency_histograms histograms;
    pthread_t threads[3];

    latency_histograms_init(&histograms);
    latency_histogram_set(&histograms, LATENCY_HISTOGRAM_FLUSH, &boundary, 1);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, record_many, &histograms), ==, 0);
    }
    for (int i = 0; i < 500; i++) { /* another kind's comes and goes beside them */
        latency_histogram_set(&histograms, LATENCY_HISTOGRAM_READ, &boundary, 1);
        latency_histogram_remove(&histograms, LATENCY_HISTOGRAM_READ);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    assert_counts(&histograms, LATENCY_HISTOGRAM_FLUSH, 3 * REQUESTS / 4, 3 * REQUESTS / 4);
    latency_histograms_destroy(&histograms);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/latency-histogram/boundaries-are-above-0-and-ascend", test_boundaries);
    g_test_add_func("/latency-histogram/each-latency-is-in-its-interval", test_intervals);
    g_test_add_func("/latency-histogram/kinds-are-apart", test_kinds);
    g_test_add_func("/latency-histogram/none-is-lost-beside-changes", test_threads);
    return g_test_run();
}
