/* SPDX-License-Identifier: BSD-3-Clause */
/* Many threads set bits of one bitmap while others clear and search. */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/dirty-bitmap.h"

#define GRANULARITY UINT64_C(512)

static struct dirty_bitmap *bitmap;

static struct dirty_bitmap *new_bitmap(uint64_t granules)
{
    g_autoptr(GError) error = NULL;
    struct dirty_bitmap *created =
        dirty_bitmap_new(NULL, granules * GRANULARITY, GRANULARITY, &error);

    g_assert_no_error(error);
    return created;
}

static uint32_t print_seed(void)
{
    uint32_t seed = (uint32_t)g_test_rand_int();

    g_test_message("seed %u", seed);
    return seed;
}

/* With nobody else there: count, single bits and the search from the top must agree. */
static void check_consistent(void)
{
    uint64_t length = dirty_bitmap_length(bitmap), single = 0, offset = 0, bytes;

    for (uint64_t at = 0; at < length; at += GRANULARITY) {
        single += dirty_bitmap_get(bitmap, at) ? GRANULARITY : 0;
    }
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, single);
    while (dirty_bitmap_next_range(bitmap, offset, length, UINT64_MAX, &offset, &bytes)) {
        offset += bytes;
        single -= bytes;
    }
    g_assert_cmpuint(single, ==, 0);
}

/*
 * First promise: what was set is found from the top, what was cleared is gone. Each thread has
 * granules of its own, which share words and summary words with those of all others.
 */
#define PROMISE_THREADS    8
#define PROMISE_ITERATIONS 60000
#define PROMISE_GRANULES   (64 * 64 * 64 * 2)

struct promise_worker {
    unsigned number;
    uint32_t seed;
    pthread_t thread;
};

/* Search from far below, so that the way leads over the summaries. */
static bool found_from_below(GRand *rand, uint64_t granule)
{
    uint64_t far = (uint64_t)g_rand_int_range(rand, 0, PROMISE_GRANULES / 4);
    uint64_t offset = (granule > far ? granule - far : 0) * GRANULARITY;

    while (offset < granule * GRANULARITY) {
        offset = dirty_bitmap_next_dirty(bitmap, offset, (granule + 1) * GRANULARITY);
        if (offset == granule * GRANULARITY || offset == UINT64_MAX) {
            break;
        }
        offset += GRANULARITY;
    }
    return dirty_bitmap_next_dirty(bitmap, offset, (granule + 1) * GRANULARITY) ==
           granule * GRANULARITY;
}

static void *promise_work(void *data)
{
    struct promise_worker *worker = data;
    g_autoptr(GRand) rand = g_rand_new_with_seed(worker->seed);

    for (unsigned i = 0; i < PROMISE_ITERATIONS; i++) {
        /* Often in the same word as everybody, else anywhere. */
        uint64_t groups = i % 2 ? 64 / PROMISE_THREADS : PROMISE_GRANULES / PROMISE_THREADS;
        uint64_t group = (uint64_t)g_rand_int_range(rand, 0, (int)groups);
        uint64_t granule = PROMISE_GRANULES - 1 - (group * PROMISE_THREADS + worker->number);

        dirty_bitmap_set(bitmap, granule * GRANULARITY, 1);
        g_assert_true(dirty_bitmap_get(bitmap, granule * GRANULARITY));
        g_assert_true(found_from_below(rand, granule));
        dirty_bitmap_reset(bitmap, granule * GRANULARITY, GRANULARITY);
        g_assert_false(dirty_bitmap_get(bitmap, granule * GRANULARITY));
        g_assert_false(found_from_below(rand, granule));
    }
    return NULL;
}

static void torture_promise(void)
{
    static struct promise_worker workers[PROMISE_THREADS];
    uint32_t seed = print_seed();

    bitmap = new_bitmap(PROMISE_GRANULES);
    for (unsigned i = 0; i < PROMISE_THREADS; i++) {
        workers[i] = (struct promise_worker){.number = i, .seed = seed + i};
        g_assert_cmpint(pthread_create(&workers[i].thread, NULL, promise_work, &workers[i]), ==, 0);
    }
    for (unsigned i = 0; i < PROMISE_THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 0);
    check_consistent();
    dirty_bitmap_free(bitmap);
}

/*
 * Second promise: a mirror that clears, then reads, then writes misses no change. Writers change a
 * disk of one number per granule and set the bit; the mirror clears by ranges, or all at once.
 */
#define MIRROR_GRANULES   (1 << 20) /* two chunks of a clear */
#define MIRROR_WRITERS    4
#define MIRROR_ITERATIONS 400000

static _Atomic uint32_t disk[MIRROR_GRANULES];
static uint32_t copy[MIRROR_GRANULES];
static _Atomic unsigned writers_left;

struct mirror_writer {
    uint32_t seed;
    pthread_t thread;
};

static void *mirror_write(void *data)
{
    struct mirror_writer *writer = data;
    g_autoptr(GRand) rand = g_rand_new_with_seed(writer->seed);

    for (unsigned i = 0; i < MIRROR_ITERATIONS; i++) {
        int hot = g_rand_int_range(rand, 0, 4);
        uint64_t first = (uint64_t)g_rand_int_range(rand, 0, hot ? 256 : MIRROR_GRANULES);
        uint64_t count = i % 500 ? 1 : (uint64_t)g_rand_int_range(rand, 1, 5000);

        count = MIN(count, MIRROR_GRANULES - first);
        for (uint64_t granule = first; granule < first + count; granule++) {
            atomic_fetch_add_explicit(&disk[granule], 1, memory_order_relaxed);
        }
        dirty_bitmap_set(bitmap, first * GRANULARITY, count * GRANULARITY);
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

static void copy_range(uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = offset / GRANULARITY; i < (offset + bytes) / GRANULARITY; i++) {
        copy[i] = atomic_load_explicit(&disk[i], memory_order_relaxed);
    }
}

static void mirror_pass(GRand *rand)
{
    uint64_t length = dirty_bitmap_length(bitmap), offset = 0, bytes;
    uint64_t most = GRANULARITY * (uint64_t)g_rand_int_range(rand, 1, 300);

    if (g_rand_int_range(rand, 0, 4) == 0) {
        dirty_bitmap_clear(bitmap);
        copy_range(0, length);
        return;
    }
    while (dirty_bitmap_next_range(bitmap, offset, length, most, &offset, &bytes)) {
        dirty_bitmap_reset(bitmap, offset, bytes);
        copy_range(offset, bytes);
        offset += bytes;
    }
}

static void torture_mirror(void)
{
    static struct mirror_writer writers[MIRROR_WRITERS];
    uint32_t seed = print_seed();
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    uint64_t offset = 0, bytes;

    bitmap = new_bitmap(MIRROR_GRANULES);
    atomic_store(&writers_left, MIRROR_WRITERS);
    for (unsigned i = 0; i < MIRROR_WRITERS; i++) {
        writers[i] = (struct mirror_writer){.seed = seed + i};
        g_assert_cmpint(pthread_create(&writers[i].thread, NULL, mirror_write, &writers[i]), ==, 0);
    }
    while (atomic_load(&writers_left) > 0) {
        mirror_pass(rand);
    }
    for (unsigned i = 0; i < MIRROR_WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    check_consistent();
    while (dirty_bitmap_next_range(bitmap, offset, UINT64_MAX, UINT64_MAX, &offset, &bytes)) {
        copy_range(offset, bytes);
        offset += bytes;
    }
    for (unsigned i = 0; i < MIRROR_GRANULES; i++) {
        g_assert_cmpuint(copy[i], ==, atomic_load_explicit(&disk[i], memory_order_relaxed));
    }
    dirty_bitmap_clear(bitmap);
    check_consistent();
    dirty_bitmap_free(bitmap);
}

/* Third promise: a merge beside setters and a clearer of the target keeps everything in step. */
static void *merge_work(void *data)
{
    for (unsigned i = 0; i < 300; i++) {
        g_assert_cmpint(dirty_bitmap_merge(bitmap, data, NULL), ==, 0);
    }
    return NULL;
}

static void torture_merge(void)
{
    static struct mirror_writer writers[MIRROR_WRITERS];
    uint32_t seed = print_seed();
    pthread_t mergers[2];

    bitmap = new_bitmap(MIRROR_GRANULES);
    AUTO(dirty_bitmap) source = new_bitmap(MIRROR_GRANULES);
    for (uint64_t i = 0; i < 1000; i++) {
        dirty_bitmap_set(source, i * 1001 * GRANULARITY, 1);
    }
    atomic_store(&writers_left, MIRROR_WRITERS);
    for (unsigned i = 0; i < MIRROR_WRITERS; i++) {
        writers[i] = (struct mirror_writer){.seed = seed + i};
        g_assert_cmpint(pthread_create(&writers[i].thread, NULL, mirror_write, &writers[i]), ==, 0);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(mergers); i++) {
        g_assert_cmpint(pthread_create(&mergers[i], NULL, merge_work, source), ==, 0);
    }
    while (atomic_load(&writers_left) > 0) {
        dirty_bitmap_clear(bitmap);
    }
    for (unsigned i = 0; i < MIRROR_WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(mergers); i++) {
        pthread_join(mergers[i], NULL);
    }
    check_consistent();
    g_assert_cmpuint(dirty_bitmap_count(source), ==, 1000 * GRANULARITY);
    dirty_bitmap_free(bitmap);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dirty-bitmap/torture/what-is-set-is-found", torture_promise);
    g_test_add_func("/dirty-bitmap/torture/a-mirror-misses-no-change", torture_mirror);
    g_test_add_func("/dirty-bitmap/torture/merging-keeps-in-step", torture_merge);
    return g_test_run();
}
