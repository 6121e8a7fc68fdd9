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

#define CELLS      48
#define THREADS    (TRACKED_SLOTS + 32)
#define ITERATIONS 1500
#define ALL_ALONE  1000 /* what a serialising request counts for in a cell */

static struct tracked_requests requests;
static _Atomic unsigned inside[CELLS];
static uint64_t changes[CELLS]; /* guarded by serialising requests only */

struct worker {
    uint32_t seed;
    unsigned serialising_percent;
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
    if (first % 3 == 0) {
        sched_yield();
    }
    for (unsigned i = first; i <= last; i++) {
        if (serialising) {
            changes[i]++;
            worker->changed++;
        } else {
            g_assert_cmpuint(changes[i], <=, UINT64_C(1) * THREADS * ITERATIONS);
        }
        atomic_fetch_sub(&inside[i], weight);
    }
}

static void *work(void *data)
{
    struct worker *worker = data;
    g_autoptr(GRand) rand = g_rand_new_with_seed(worker->seed);

    for (unsigned i = 0; i < ITERATIONS; i++) {
        unsigned first = (unsigned)g_rand_int_range(rand, 0, CELLS);
        unsigned last = (unsigned)g_rand_int_range(rand, (int)first, MIN(first + 6, CELLS));
        bool serialising = (unsigned)g_rand_int_range(rand, 0, 100) < worker->serialising_percent;
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
    static struct worker workers[THREADS];
    uint64_t expected = 0, found = 0;

    g_test_message("seed %u", seed);
    memset(changes, 0, sizeof(changes));
    tracked_requests_init(&requests);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){
            .seed = seed + i,
            .serialising_percent = (unsigned)GPOINTER_TO_UINT(data),
        };
        g_assert_cmpint(pthread_create(&workers[i].thread, NULL, work, &workers[i]), ==, 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
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
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/tracked/torture/rarely-serialising", GUINT_TO_POINTER(1), torture);
    g_test_add_data_func("/tracked/torture/often-serialising", GUINT_TO_POINTER(30), torture);
    g_test_add_data_func("/tracked/torture/all-serialising", GUINT_TO_POINTER(100), torture);
    return g_test_run();
}
