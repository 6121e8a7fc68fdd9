/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many threads enter random ranges of one node. Serialising requests change plain memory that
 * ordinary ones read, so ThreadSanitizer sees every missing ordering, and a count per cell shows
 * who is in it.
 */
#include <glib.h>
#include <sched.h>
#include <string.h>

#include "block/tracked.h"
#include "tests/lib/random.h"

#define CELLS       48
#define THREADS_MAX (TRACKED_SLOTS + 32)
#define ALL_ALONE   1000 /* what a serialising request counts for in a cell */

struct variant {
    unsigned threads;
    unsigned iterations; /* of each thread */
    unsigned serialising_percent;
    unsigned cells;
    bool yields; /* inside the request, so that others meet it even on few processors */
};

static struct tracked_requests requests;
static _Atomic unsigned inside[CELLS];
static uint64_t changes[CELLS]; /* guarded by serialising requests only */

struct worker {
    uint32_t seed;
    const struct variant *variant;
    uint64_t changed;
    pthread_t thread;
};

static void use_range(struct worker *worker, unsigned first, unsigned last, bool serialising)
{
    unsigned weight = serialising ? ALL_ALONE : 1;

    for (unsigned i = first; i <= last; i++) {
        unsigned before = atomic_fetch_add(&inside[i], weight);

        g_assert_cmpuint(before, <, serialising ? 1 : ALL_ALONE);
    }
    if (worker->variant->yields && first % 3 == 0) {
        sched_yield();
    }
    /* Stay a little, for those who should not be in to come. */
    for (unsigned i = 0; i < 100; i++) {
        unsigned present = atomic_load_explicit(&inside[first], memory_order_relaxed);

        g_assert_true(serialising ? present == ALL_ALONE : present < ALL_ALONE);
    }
    for (unsigned i = first; i <= last; i++) {
        if (serialising) {
            changes[i]++;
            worker->changed++;
        } else {
            g_assert_cmpuint(changes[i], <, UINT64_MAX);
        }
        atomic_fetch_sub(&inside[i], weight);
    }
}

static void *work(void *data)
{
    struct worker *worker = data;
    const struct variant *variant = worker->variant;
    g_autoptr(GRand) rand = g_rand_new_with_seed(worker->seed);

    for (unsigned i = 0; i < test_amount(variant->iterations); i++) {
        unsigned first = (unsigned)g_rand_int_range(rand, 0, (int)variant->cells);
        unsigned last =
            (unsigned)g_rand_int_range(rand, (int)first, (int)MIN(first + 6, variant->cells));
        bool serialising = (unsigned)g_rand_int_range(rand, 0, 100) < variant->serialising_percent;
        struct tracked_request request;

        tracked_request_begin(&requests, &request, first, last - first + 1, serialising);
        use_range(worker, first, last, serialising);
        tracked_request_end(&requests, &request);
    }
    return NULL;
}

static void torture(gconstpointer data)
{
    uint32_t seed = (uint32_t)g_test_rand_int();
    static struct worker workers[THREADS_MAX];
    const struct variant *variant = data;
    uint64_t expected = 0, found = 0;

    g_test_message("seed %u", seed);
    memset(changes, 0, sizeof(changes));
    tracked_requests_init(&requests);
    for (unsigned i = 0; i < variant->threads; i++) {
        workers[i] = (struct worker){.seed = seed + i, .variant = variant};
        g_assert_cmpint(pthread_create(&workers[i].thread, NULL, work, &workers[i]), ==, 0);
    }
    for (unsigned i = 0; i < variant->threads; i++) {
        pthread_join(workers[i].thread, NULL);
        expected += workers[i].changed;
    }
    for (unsigned i = 0; i < CELLS; i++) {
        found += changes[i];
    }
    g_assert_cmpuint(found, ==, expected);
    tracked_requests_destroy(&requests);
}

int main(int argc, char **argv)
{
    /* More threads than slots. */
    static const struct variant rarely = {THREADS_MAX, 1500, 1, CELLS, true};
    static const struct variant often = {THREADS_MAX, 1500, 30, CELLS, true};
    static const struct variant always = {THREADS_MAX, 1000, 100, CELLS, true};
    /* Few threads hit the narrow windows between two memory accesses best. */
    static const struct variant one_cell = {2, 400000, 40, 1, false};
    static const struct variant few_cells = {3, 300000, 20, 4, false};

    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/tracked/torture/rarely-serialising", &rarely, torture);
    g_test_add_data_func("/tracked/torture/often-serialising", &often, torture);
    g_test_add_data_func("/tracked/torture/all-serialising", &always, torture);
    g_test_add_data_func("/tracked/torture/two-threads-on-one-cell", &one_cell, torture);
    g_test_add_data_func("/tracked/torture/three-threads-on-few-cells", &few_cells, torture);
    return g_test_run();
}
