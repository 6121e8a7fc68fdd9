/* SPDX-License-Identifier: BSD-3-Clause */
/* The status cache and the shared sync, under concurrency. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "formats/file-internal.h"
#include "tests/lib/disk.h"

#define BLOCK   (4 * KIB)
#define BLOCKS  512
#define WRITERS 2
#define ASKERS  2

struct race {
    struct file_status status;
    int fd;
    _Atomic bool acknowledged[BLOCKS];
    _Atomic unsigned next;
    _Atomic unsigned writers_left;
};

/* The block that the writers take as their number-th. */
static unsigned block_of(unsigned number)
{
    return (number * 197u) % BLOCKS;
}

/* Writes each block once, in an order that keeps splitting holes, and acknowledges it. */
static void *write_blocks(void *data)
{
    struct race *race = data;
    unsigned i;

    while ((i = atomic_fetch_add(&race->next, 1)) < BLOCKS) {
        unsigned block = block_of(i);
        uint64_t offset = block * BLOCK;

        g_assert_cmpint(pwrite(race->fd, "x", 1, (off_t)offset), ==, 1);
        file_status_written(&race->status, offset, BLOCK);
        atomic_store(&race->acknowledged[block], true);
    }
    atomic_fetch_sub(&race->writers_left, 1);
    return NULL;
}

/* What was acknowledged before the question must not be part of a hole. */
static void check_one(struct race *race, unsigned block)
{
    bool acknowledged = atomic_load(&race->acknowledged[block]);
    uint64_t end;
    bool is_hole;

    g_assert_cmpint(file_status_find(&race->status, race->fd, block * BLOCK, &is_hole, &end), ==,
                    0);
    g_assert_cmpuint(end, >, block * BLOCK);
    if (acknowledged) {
        g_assert_false(is_hole);
    }
}

/* Asks about the blocks that are being written just now: there the answer can go wrong. */
static void *ask(void *data)
{
    struct race *race = data;

    while (atomic_load(&race->writers_left)) {
        unsigned number = atomic_load(&race->next);

        check_one(race, block_of(number));
        check_one(race, block_of(number ? number - 1 : 0));
    }
    return NULL;
}

static void run_race(struct race *race)
{
    pthread_t threads[WRITERS + ASKERS];

    for (int i = 0; i < WRITERS + ASKERS; i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, i < WRITERS ? write_blocks : ask, race),
                        ==, 0);
    }
    for (int i = 0; i < WRITERS + ASKERS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (unsigned block = 0; block < BLOCKS; block++) {
        check_one(race, block);
    }
    g_assert_cmpuint(atomic_load(&race->status.sensitive), ==, 0);
}

static void test_no_stale_hole(void)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "disk");

    for (unsigned round = 0; round < 100; round++) {
        g_autofree struct race *race = g_new0(struct race, 1);

        test_make_file(path, BLOCKS * BLOCK);
        race->fd = open(path, O_RDWR | O_CLOEXEC);
        atomic_store(&race->writers_left, WRITERS);
        file_status_init(&race->status);
        run_race(race);
        file_status_destroy(&race->status);
        close(race->fd);
    }
    test_directory_free(directory);
}

/* The entries by themselves, with a file that says nothing (no descriptor is asked on a hit). */
static void test_cutting(void)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "disk");
    struct file_status status;
    uint64_t end;
    bool is_hole;

    test_make_file(path, MIB);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    file_status_init(&status);
    g_assert_cmpint(file_status_find(&status, fd, 0, &is_hole, &end), ==, 0);
    g_assert_true(is_hole && end == MIB);

    /* Known: answered without the file. */
    g_assert_cmpint(file_status_find(&status, -1, 64 * KIB, &is_hole, &end), ==, 0);
    g_assert_true(is_hole && end == MIB);

    /* The longer part beside a write stays known. */
    file_status_written(&status, 64 * KIB, BLOCK);
    g_assert_cmpint(file_status_find(&status, -1, 64 * KIB + BLOCK, &is_hole, &end), ==, 0);
    g_assert_true(is_hole && end == MIB);
    file_status_written(&status, MIB - BLOCK, BLOCK);
    g_assert_cmpint(file_status_find(&status, -1, 128 * KIB, &is_hole, &end), ==, 0);
    g_assert_true(is_hole && end == MIB - BLOCK);
    file_status_written(&status, 0, MIB);
    g_assert_cmpuint(atomic_load(&status.sensitive), ==, 0);
    g_assert_cmpint(pwrite(fd, "x", 1, 0), ==, 1);
    g_assert_cmpint(file_status_find(&status, fd, 0, &is_hole, &end), ==, 0);
    g_assert_false(is_hole);

    /* Writes leave data alone; a discard forgets it. */
    file_status_written(&status, 0, MIB);
    g_assert_cmpint(file_status_find(&status, -1, 0, &is_hole, &end), ==, 0);
    g_assert_false(is_hole);
    g_assert_cmpint(ftruncate(fd, 0), ==, 0);
    g_assert_cmpint(ftruncate(fd, MIB), ==, 0);
    file_status_reshaped(&status, 0, MIB);
    g_assert_cmpint(file_status_find(&status, fd, 0, &is_hole, &end), ==, 0);
    g_assert_true(is_hole);
    file_status_destroy(&status);
    close(fd);
    test_directory_free(directory);
}

static void test_more_extents_than_slots(void)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "disk");
    struct file_status status;

    test_make_file(path, 4 * FILE_STATUS_SLOTS * BLOCK);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    file_status_init(&status);
    for (uint64_t i = 0; i < 4 * FILE_STATUS_SLOTS; i += 2) {
        g_assert_cmpint(pwrite(fd, "x", 1, (off_t)(i * BLOCK)), ==, 1);
    }
    for (int again = 0; again < 2; again++) {
        for (uint64_t i = 0; i < 4 * FILE_STATUS_SLOTS; i++) {
            uint64_t end;
            bool is_hole;

            g_assert_cmpint(file_status_find(&status, fd, i * BLOCK, &is_hole, &end), ==, 0);
            g_assert_cmpint(is_hole, ==, i % 2);
            g_assert_cmpuint(end, ==, (i + 1) * BLOCK);
        }
    }
    file_status_clear(&status);
    g_assert_cmpuint(atomic_load(&status.sensitive), ==, 0);
    file_status_destroy(&status);
    close(fd);
    test_directory_free(directory);
}

static void test_failure_is_for_ever(void)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "disk");
    struct file_sync sync;
    int pipes[2];

    test_make_file(path, MIB);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(pipe(pipes), ==, 0);
    file_sync_init(&sync);
    g_assert_cmpint(file_sync_run(&sync, fd), ==, 0);
    g_assert_cmpint(file_sync_run(&sync, pipes[0]), ==, -EINVAL);
    g_assert_cmpint(file_sync_run(&sync, fd), ==, -EINVAL);
    file_sync_destroy(&sync);

    file_sync_init(&sync);
    g_assert_cmpint(file_sync_fail(&sync, -EIO), ==, -EIO);
    g_assert_cmpint(file_sync_run(&sync, fd), ==, -EIO);
    file_sync_destroy(&sync);
    close(pipes[0]);
    close(pipes[1]);
    close(fd);
    test_directory_free(directory);
}

struct sync_race {
    struct file_sync sync;
    int fd;
};

static void *sync_many_times(void *data)
{
    struct sync_race *race = data;

    for (int i = 0; i < 500; i++) {
        g_assert_cmpint(file_sync_run(&race->sync, race->fd), ==, 0);
    }
    return NULL;
}

static void test_syncs_are_shared(void)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "disk");
    struct sync_race race;
    pthread_t threads[8];

    test_make_file(path, MIB);
    race.fd = open(path, O_RDWR | O_CLOEXEC);
    file_sync_init(&race.sync);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, sync_many_times, &race), ==, 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    g_assert_cmpuint(race.sync.finished, ==, race.sync.started);
    g_assert_cmpuint(race.sync.finished, <=, 8 * 500);
    file_sync_destroy(&race.sync);
    close(race.fd);
    test_directory_free(directory);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/file-status/acknowledged-data-is-never-called-a-hole", test_no_stale_hole);
    g_test_add_func("/file-status/a-change-cuts-what-is-remembered", test_cutting);
    g_test_add_func("/file-status/more-extents-than-can-be-remembered-are-right",
                    test_more_extents_than_slots);
    g_test_add_func("/file-sync/after-a-failure-no-sync-succeeds", test_failure_is_for_ever);
    g_test_add_func("/file-sync/many-at-once-all-end", test_syncs_are_shared);
    return g_test_run();
}
