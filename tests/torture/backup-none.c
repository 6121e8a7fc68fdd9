/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sync=none under many writers: the target holds the old data of all that was overwritten, and of
 * nothing else, at every moment: a reader who looks at the source first, and finds nothing in the
 * target afterwards, has read old data.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "tests/lib/backup-rig.h"

#define WRITERS   8
#define READERS   2
#define UNIT      4096
#define UNITS     512
#define UNTOUCHED (UNITS / 2) /* the guest writes only below */
#define JUNK      0xdb

struct view {
    struct rig *rig;
    struct block_node *target;
    char *old; /* the disk at the moment */
    struct test_random random;
    _Atomic bool *stop;
    pthread_t thread;
};

static void read_unit(struct block_node *node, char *buffer, uint64_t unit)
{
    g_assert_cmpint(block_node_pread(node, buffer, unit * UNIT, UNIT, 0), ==, 0);
}

static bool is_junk(const char *buffer)
{
    return (unsigned char)buffer[0] == JUNK && !memcmp(buffer, buffer + 1, UNIT - 1);
}

/* What a reader of the moment would be given for a unit; it must be the old data. */
static void check_unit(struct view *view, uint64_t unit)
{
    char now[UNIT], saved[UNIT];
    const char *old = view->old + unit * UNIT;

    read_unit(view->rig->source, now, unit);
    read_unit(view->target, saved, unit);
    if (is_junk(saved)) {
        if (memcmp(now, old, UNIT)) {
            g_error("unit %lu was overwritten before it was saved", (unsigned long)unit);
        }
    } else if (memcmp(saved, old, UNIT)) {
        /* A write of the target is under way: parts of it are junk still. */
        read_unit(view->target, saved, unit);
        for (unsigned i = 0; i < UNIT; i++) {
            g_assert_true(saved[i] == old[i] || (unsigned char)saved[i] == JUNK);
        }
    }
}

static void *reader_thread(void *data)
{
    struct view *view = data;

    while (!atomic_load(view->stop)) {
        check_unit(view, test_random_below(&view->random, UNTOUCHED));
    }
    return NULL;
}

/* At rest: all that differs is saved, what was never written is not. */
static void check_all(struct view *view)
{
    char saved[UNIT];

    for (uint64_t unit = 0; unit < UNITS; unit++) {
        check_unit(view, unit);
        read_unit(view->target, saved, unit);
        g_assert_true(is_junk(saved) || unit < UNTOUCHED);
    }
}

static struct rig *start(struct view *view, unsigned alignment)
{
    struct rig *rig = rig_new((uint64_t)UNITS * UNIT, alignment);

    rig_fill(rig);
    view->rig = rig;
    view->target = rig_target(rig, "target", true);
    view->old = g_malloc(rig->length);
    g_assert_cmpint(block_node_pread(rig->source, view->old, 0, rig->length, 0), ==, 0);
    return rig;
}

/* The guest's writes: random ranges of whole sectors in the lower half. */
static void *writer_thread(void *data)
{
    struct view *view = data;

    while (!atomic_load(view->stop)) {
        uint64_t offset, bytes;

        test_random_range(&view->random, (uint64_t)UNTOUCHED * UNIT, RIG_SECTOR, 64 * KIB, &offset,
                          &bytes);
        g_assert_cmpint(rig_pwrite(view->rig, 1, offset, bytes), ==, 0);
    }
    return NULL;
}

static void run_threads(struct view *first, uint64_t requests)
{
    _Atomic bool stop = false;
    struct view views[WRITERS + READERS];

    for (unsigned i = 0; i < WRITERS + READERS; i++) {
        views[i] = *first;
        views[i].stop = &stop;
        views[i].random = test_random_split(&first->rig->random);
        pthread_create(&views[i].thread, NULL, i < WRITERS ? writer_thread : reader_thread,
                       &views[i]);
    }
    rig_wait_requests(first->rig, requests);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < WRITERS + READERS; i++) {
        pthread_join(views[i].thread, NULL);
    }
}

static void test_none(gconstpointer data)
{
    struct view view = {0};
    struct rig *rig = start(&view, GPOINTER_TO_UINT(data));
    struct backup_options options = rig_options(rig, "job0", view.target);
    struct job *job;

    options.sync = BACKUP_SYNC_NONE;
    FAULT(view.target, .operations = FAULT_ON_CHANGES, .percent = 30, .delay_ns = NS_PER_MS);
    rig_backup(rig, &options, 1, &job, NULL);
    run_threads(&view, 1000);
    g_assert_cmpint(job_get_status(job), ==, JOB_STATUS_RUNNING);
    check_all(&view);
    g_assert_cmpint(job_cancel(job, false, true, NULL), ==, 0);
    check_all(&view);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, g_strerror(ECANCELED));
    rig_assert_unused(view.target);
    g_free(view.old);
    rig_free(rig);
}

/* A target that hangs: the guest waits for it no longer than it was told to. */
static void test_hang(void)
{
    struct view view = {0};
    struct rig *rig = start(&view, 1);
    struct backup_options options = rig_options(rig, "job0", view.target);
    struct job *job;

    options.sync = BACKUP_SYNC_NONE;
    options.guest_timeout_s = 1;
    FAULT(view.target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_cmpint(rig_pwrite(rig, 1, 0, UNIT), ==, 0);
    g_autofree char *message = rig_end(job);
    g_assert_nonnull(message);
    g_assert_nonnull(
        strstr(message, "Node 'target' is too slow: a write to node 'source' would have had to"));
    fault_clear(view.target);
    rig_assert_unused(view.target);
    g_free(view.old);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_data_func("/backup-none/old-data-is-saved-first", GUINT_TO_POINTER(1), test_none);
    g_test_add_data_func("/backup-none/old-data-is-saved-first-with-unaligned-writes",
                         GUINT_TO_POINTER(4096), test_none);
    g_test_add_func("/backup-none/a-hanging-target-breaks-the-job", test_hang);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
