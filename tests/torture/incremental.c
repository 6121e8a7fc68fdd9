/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Incremental backups of a disk that many writers write to, one after the other onto the same copy,
 * of all modes, that succeed, fail, are cancelled before they run or while they do, and whose
 * target cannot be flushed. Whatever happened before, a backup that succeeds makes the copy equal
 * to the disk at its moment: no bit was lost.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "tests/lib/bitmap-rig.h"

#define WRITERS   8
#define BUDGET_NS (4 * NS_PER_SECOND)

static unsigned succeeded, failed, cancelled;

static struct backup_options choose_options(struct rig *rig, struct block_node *copy)
{
    struct test_random *random = &rig->random;
    struct backup_options options = rig_options(rig, "incremental", copy);

    options.sync = test_random_chance(random, 85) ? BACKUP_SYNC_BITMAP : BACKUP_SYNC_FULL;
    do {
        options.bitmap_mode =
            (enum backup_bitmap_mode)test_random_below(random, BACKUP_BITMAP_ALWAYS + 1);
    } while (options.sync == BACKUP_SYNC_FULL && options.bitmap_mode == BACKUP_BITMAP_NEVER);
    options.scratch =
        test_random_chance(random, 70) ? BACKUP_SCRATCH_DIRECTORY : BACKUP_SCRATCH_NONE;
    options.max_workers = (int64_t)test_random_between(random, 1, 6);
    options.max_chunk = (int64_t)test_random_between(random, 64 * KIB, 256 * KIB);
    options.on_target_error =
        test_random_chance(random, 30) ? BLOCK_ERROR_POLICY_IGNORE : BLOCK_ERROR_POLICY_REPORT;
    return options;
}

static void choose_faults(struct rig *rig, struct block_node *copy)
{
    struct test_random *random = &rig->random;

    if (test_random_chance(random, 30)) {
        FAULT(copy, .operations = FAULT_ON_CHANGES, .skip = test_random_below(random, 20),
              .count = (unsigned)test_random_between(random, 1, 3), .error_number = EIO);
    }
    if (test_random_chance(random, 10)) {
        FAULT(copy, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    }
    if (test_random_chance(random, 20)) {
        FAULT(copy, .operations = FAULT_ON_CHANGES, .percent = 20, .delay_ns = NS_PER_MS);
    }
}

static void run(struct rig *rig, struct job *job)
{
    g_autoptr(GError) error = NULL;
    bool is_to_end = test_random_chance(&rig->random, 25);
    bool is_early = test_random_chance(&rig->random, 30);

    if (is_to_end && is_early) {
        job_cancel(job, true, false, NULL);
    }
    job_start(job, &error);
    g_assert_no_error(error);
    if (is_to_end && !is_early) {
        rig_wait_requests(rig, test_random_below(&rig->random, 40));
        job_cancel(job, true, test_random_chance(&rig->random, 50), NULL);
    }
}

static void back_up(struct rig *rig, const struct backup_options *options)
{
    struct block_node *copy = options->target;
    AUTO(model) snapshot = NULL;
    struct job *job = rig_begin_with_bitmap(rig, options, &snapshot);

    if (options->scratch != BACKUP_SCRATCH_NONE) { /* or guests may wait for the job */
        rig_wait_requests(rig, test_random_below(&rig->random, 10));
    }
    run(rig, job);
    g_autofree char *message = rig_end(job);
    fault_clear(copy);
    if (!message) {
        rig_assert_equal(snapshot, copy);
        succeeded++;
    } else if (g_str_equal(message, g_strerror(ECANCELED))) {
        cancelled++;
    } else {
        failed++;
    }
    g_assert_false(dirty_bitmap_is_busy(rig_bitmap(rig)));
}

/* The end of a chain: nothing stands in the way of the last one, so that all before it is judged.
 */
static void back_up_well(struct rig *rig, struct block_node *copy)
{
    struct backup_options options = choose_options(rig, copy);
    g_autoptr(GError) error = NULL;
    AUTO(model) snapshot = NULL;

    options.sync = BACKUP_SYNC_BITMAP;
    struct job *job = rig_begin_with_bitmap(rig, &options, &snapshot);
    job_start(job, &error);
    g_assert_no_error(error);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    rig_assert_equal(snapshot, copy);
}

static void torture(gconstpointer data)
{
    uint64_t granularity = GPOINTER_TO_SIZE(data);
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS / 3);
    struct rig *rig = rig_new(4 * MIB + 3 * 512, 1);
    struct block_node *copy = rig_target(rig, "copy", true);
    unsigned rounds = 0;

    succeeded = failed = cancelled = 0;
    rig_fill(rig);
    rig_add_bitmap(rig, granularity);
    dirty_bitmap_set(rig_bitmap(rig), 0, rig->length); /* the copy has nothing yet */
    rig->max_bytes = 64 * KIB;
    rig_write(rig, WRITERS);
    do {
        struct backup_options options = choose_options(rig, copy);

        choose_faults(rig, copy);
        back_up(rig, &options);
        if (rounds % 4 == 3) {
            back_up_well(rig, copy);
        }
    } while (++rounds < 8 || clock_now_ns() < end_ns);
    back_up_well(rig, copy);
    g_test_message("%u rounds: %u succeeded, %u failed, %u cancelled; %lu requests", rounds,
                   succeeded, failed, cancelled, (unsigned long)atomic_load(&rig->requests));
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_stop(rig);
    rig_remove_bitmap(rig);
    rig_assert_unused(copy);
    rig_free(rig);
}

static void add_tests(void)
{
    static const struct {
        const char *name;
        size_t granularity;
    } cases[] = {{"512", 512}, {"4K", 4 * KIB}, {"64K", 64 * KIB}};

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name =
            g_strconcat("/incremental/each-success-equals-its-moment/", cases[i].name, NULL);
        g_test_add_data_func(name, GSIZE_TO_POINTER(cases[i].granularity), torture);
    }
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
