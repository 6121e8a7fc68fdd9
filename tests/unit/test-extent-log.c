/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log of active extents on storage of the test's: whatever a thread has marked and was told is
 * secure is, at every instant at which the power may go, in an extent of the durable log or in the
 * durable map. And what happens when that storage fails, or does not answer.
 */
#include "block/extent-log.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/tracking-format.h"
#include "tests/lib/random.h"

#define EXTENTS_MAX 400
#define SLOTS_MAX   240
#define THREADS_MAX 24
#define FOR_EVER    (UINT64_C(600) * NS_PER_SECOND)

struct storage {
    struct extent_log log;
    uint64_t extents;
    uint32_t slots;

    _Atomic uint64_t marks[EXTENTS_MAX]; /* the map in memory: a number that grows */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    uint64_t durable_marks[EXTENTS_MAX];
    uint64_t durable_slots[SLOTS_MAX];
    uint64_t secured[EXTENTS_MAX]; /* the mark that somebody was told is secure */
    struct test_random random;
    unsigned fails_in; /* so many calls from now; 0: never */
    bool hangs, is_hanging;
    uint64_t checks;
};

static bool is_logged(const struct storage *storage, uint64_t extent)
{
    for (uint32_t i = 0; i < storage->slots; i++) {
        if (storage->durable_slots[i] == extent) {
            return true;
        }
    }
    return false;
}

/* Lock held: the power goes now. */
static void check(struct storage *storage)
{
    storage->checks++;
    for (uint64_t i = 0; i < storage->extents; i++) {
        if (storage->secured[i] > storage->durable_marks[i]) {
            g_assert_true(is_logged(storage, i));
        }
    }
}

/* Lock held. 0, or an error if this call is to fail. */
static int begin_call(struct storage *storage)
{
    check(storage);
    storage->is_hanging = storage->hangs;
    pthread_cond_broadcast(&storage->changed);
    while (storage->hangs) {
        pthread_cond_wait(&storage->changed, &storage->lock);
    }
    storage->is_hanging = false;
    return storage->fails_in && --storage->fails_in == 0 ? -EIO : 0;
}

static void dawdle(struct storage *storage)
{
    pthread_mutex_lock(&storage->lock);
    bool wants = test_random_chance(&storage->random, 30);
    pthread_mutex_unlock(&storage->lock);
    if (wants) {
        g_usleep(50);
    }
}

/* Sector by sector, in any order; of a write that fails only some are written. */
static int write_slots(void *data, uint32_t first, const uint64_t *slots, uint32_t count)
{
    struct storage *storage = data;
    uint32_t sectors = count / TRACKING_SLOTS_PER_SECTOR;

    g_assert_cmpuint(first % TRACKING_SLOTS_PER_SECTOR, ==, 0);
    g_assert_cmpuint(count % TRACKING_SLOTS_PER_SECTOR, ==, 0);
    dawdle(storage);
    SCOPE_LOCK(&storage->lock);
    int status = begin_call(storage);
    uint32_t start = (uint32_t)test_random_below(&storage->random, sectors);
    for (uint32_t i = 0; i < sectors && (status == 0 || i < sectors / 2); i++) {
        uint32_t sector = (start + i) % sectors;

        for (uint32_t j = 0; j < TRACKING_SLOTS_PER_SECTOR; j++) {
            uint32_t slot = first + sector * TRACKING_SLOTS_PER_SECTOR + j;

            if (slot < storage->slots) {
                storage->durable_slots[slot] = slots[sector * TRACKING_SLOTS_PER_SECTOR + j];
            }
        }
        check(storage);
    }
    return status;
}

/* What is marked after it began need not be in it. */
static int sync_map(void *data)
{
    struct storage *storage = data;
    uint64_t marks[EXTENTS_MAX];

    for (uint64_t i = 0; i < storage->extents; i++) {
        marks[i] = atomic_load(&storage->marks[i]);
    }
    dawdle(storage);
    SCOPE_LOCK(&storage->lock);
    int status = begin_call(storage);
    for (uint64_t i = 0; i < storage->extents && status == 0; i++) {
        storage->durable_marks[i] = marks[i];
    }
    check(storage);
    return status;
}

static struct storage *storage_new(uint64_t extents, uint32_t slots, uint64_t seed)
{
    struct storage *storage = g_new0(struct storage, 1);
    struct extent_log_storage functions = {write_slots, sync_map, storage};

    storage->extents = extents;
    storage->slots = slots;
    storage->random = test_random_new(seed);
    memset(storage->durable_slots, 0xff, sizeof(storage->durable_slots));
    pthread_mutex_init(&storage->lock, NULL);
    pthread_cond_init(&storage->changed, NULL);
    g_assert_cmpint(extent_log_init(&storage->log, extents, slots, &functions), ==, 0);
    return storage;
}

static void storage_free(struct storage *storage)
{
    extent_log_destroy(&storage->log);
    pthread_mutex_destroy(&storage->lock);
    pthread_cond_destroy(&storage->changed);
    g_free(storage);
}

/* Mark extents and make that secure, as a write does. */
static int change(struct storage *storage, uint64_t first, uint64_t last, uint64_t timeout_ns)
{
    uint64_t marks[EXTENTS_MAX];
    int status = 0;

    for (uint64_t i = first; i <= last; i++) {
        marks[i] = atomic_fetch_add(&storage->marks[i], 1) + 1;
    }
    for (uint64_t i = first; i <= last && status == 0; i++) {
        if (!extent_log_is_active(&storage->log, i)) {
            status = extent_log_secure(&storage->log, i, last, timeout_ns);
            break;
        }
    }
    SCOPE_LOCK(&storage->lock);
    for (uint64_t i = first; i <= last && status == 0; i++) {
        storage->secured[i] = MAX_OF(storage->secured[i], marks[i]);
    }
    check(storage);
    return status;
}

/* ---- Alone ------------------------------------------------------------------------------------
 */

static void test_one(void)
{
    struct storage *storage = storage_new(100, 16, test_seed());

    g_assert_false(extent_log_is_active(&storage->log, 3));
    g_assert_cmpint(change(storage, 3, 3, FOR_EVER), ==, 0);
    g_assert_true(extent_log_is_active(&storage->log, 3));
    g_assert_cmpuint(storage->log.writes, ==, 1);
    g_assert_cmpuint(storage->log.syncs, ==, 0);
    /* One that is active costs nothing. */
    g_assert_cmpint(change(storage, 3, 3, FOR_EVER), ==, 0);
    g_assert_cmpuint(storage->log.writes, ==, 1);
    /* Larger than a part of the log: the map is synced instead. */
    g_assert_cmpint(change(storage, 0, 99, FOR_EVER), ==, 0);
    g_assert_cmpuint(storage->log.writes, ==, 1);
    g_assert_cmpuint(storage->log.syncs, ==, 1);
    g_assert_false(extent_log_is_active(&storage->log, 50));
    storage_free(storage);
}

static void test_rest(void)
{
    struct storage *storage = storage_new(100, 16, test_seed());

    /* One that is in use all the time stays while others come and go. */
    for (uint64_t i = 0; i < 300; i++) {
        g_assert_cmpint(change(storage, 0, 0, FOR_EVER), ==, 0);
        g_assert_cmpint(change(storage, 1 + i % 99, 1 + i % 99, FOR_EVER), ==, 0);
        g_assert_true(extent_log_is_active(&storage->log, 1 + i % 99));
    }
    g_assert_cmpuint(storage->log.activations, ==, storage->log.writes);
    g_assert_cmpuint(storage->log.syncs, <=, storage->log.activations / 2 + 1);
    storage_free(storage);
}

static void test_error(void)
{
    struct storage *storage = storage_new(100, 16, test_seed());

    g_assert_cmpint(change(storage, 1, 1, FOR_EVER), ==, 0);
    storage->fails_in = 1;
    g_assert_cmpint(change(storage, 2, 2, FOR_EVER), <, 0);
    g_assert_false(extent_log_is_active(&storage->log, 2));
    g_assert_cmpint(change(storage, 3, 3, FOR_EVER), <, 0);
    g_assert_cmpint(change(storage, 0, 99, FOR_EVER), <, 0);
    g_assert_cmpint(extent_log_sync(&storage->log, FOR_EVER), <, 0);
    storage_free(storage);
}

static void test_hang(void)
{
    struct storage *storage = storage_new(100, 16, test_seed());

    storage->hangs = true;
    g_assert_cmpint(change(storage, 1, 1, 20 * NS_PER_MS), ==, -ETIMEDOUT);
    g_assert_cmpint(change(storage, 2, 2, 20 * NS_PER_MS), ==, -ETIMEDOUT);
    g_assert_cmpint(extent_log_sync(&storage->log, 20 * NS_PER_MS), ==, -ETIMEDOUT);
    pthread_mutex_lock(&storage->lock);
    while (!storage->is_hanging) {
        pthread_cond_wait(&storage->changed, &storage->lock);
    }
    storage->hangs = false;
    pthread_cond_broadcast(&storage->changed);
    pthread_mutex_unlock(&storage->lock);
    g_assert_cmpint(change(storage, 3, 3, FOR_EVER), ==, 0);
    storage_free(storage);
}

/* ---- Many -------------------------------------------------------------------------------------
 */

struct worker {
    struct storage *storage;
    struct test_random random;
    uint64_t most, steps;
    uint64_t failed;
    pthread_t thread;
};

static void *run_worker(void *data)
{
    struct worker *worker = data;
    struct storage *storage = worker->storage;

    for (uint64_t i = 0; i < worker->steps; i++) {
        bool is_busy = test_random_chance(&worker->random, 50);
        uint64_t count = test_random_between(&worker->random, 1, worker->most);
        uint64_t first = test_random_below(&worker->random, storage->extents - count + 1);
        int status;

        first %=
            is_busy ? MIN_OF(storage->slots / 2, storage->extents - count + 1) : storage->extents;
        status = change(storage, first, first + count - 1, FOR_EVER);
        worker->failed += status < 0;
    }
    return NULL;
}

static void run_many(struct test_random *random, unsigned fails_in)
{
    uint32_t slots = test_random_chance(random, 50) ? 16 : SLOTS_MAX;
    struct storage *storage =
        storage_new(test_random_between(random, 60, EXTENTS_MAX), slots, test_random_u64(random));
    struct worker workers[THREADS_MAX];
    unsigned count = (unsigned)test_random_between(random, 2, THREADS_MAX);
    uint64_t failed = 0;

    storage->fails_in = fails_in;
    for (unsigned i = 0; i < count; i++) {
        workers[i] = (struct worker){.storage = storage,
                                     .random = test_random_split(random),
                                     .most = test_random_chance(random, 80) ? 3 : 50,
                                     .steps = 120};
        g_assert_cmpint(pthread_create(&workers[i].thread, NULL, run_worker, &workers[i]), ==, 0);
    }
    for (unsigned i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        failed += workers[i].failed;
    }
    g_assert_cmpint(failed > 0, ==, fails_in > 0 && storage->fails_in == 0);
    g_test_message("%u threads, %u slots: %" G_GUINT64_FORMAT " activations, %" G_GUINT64_FORMAT
                   " writes, %" G_GUINT64_FORMAT " syncs, %" G_GUINT64_FORMAT " instants",
                   count, slots, (guint64)storage->log.activations, (guint64)storage->log.writes,
                   (guint64)storage->log.syncs, (guint64)storage->checks);
    storage_free(storage);
}

static void test_many(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long cases = test_cases(12);

    for (unsigned long i = 0; i < cases; i++) {
        run_many(&random, 0);
    }
}

static void test_many_errors(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long cases = test_cases(12);

    for (unsigned long i = 0; i < cases; i++) {
        run_many(&random, (unsigned)test_random_between(&random, 1, 40));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/extent-log/an-extent-is-logged-once-and-large-requests-sync-the-map",
                    test_one);
    g_test_add_func("/extent-log/what-is-in-use-stays-active-and-a-sync-serves-many", test_rest);
    g_test_add_func("/extent-log/after-an-error-nothing-new-is-secure", test_error);
    g_test_add_func("/extent-log/nobody-waits-longer-than-he-wants", test_hang);
    g_test_add_func("/extent-log/what-is-secure-outlives-a-power-loss-at-any-instant", test_many);
    g_test_add_func("/extent-log/also-when-its-storage-fails", test_many_errors);
    return g_test_run();
}
