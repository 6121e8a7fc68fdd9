/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mirrors of a disk that many writers write to, several at once, while clients pause, resume,
 * throttle and cancel them, nodes are drained, and the guest is stopped; the disk pivots from
 * target to target, and mirrors change their copy modes. Each mirror that completes equals the
 * disk, an old root is never written again, and none leaves anything behind.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "tests/lib/meddlers.h"
#include "tests/lib/mirror-rig.h"

#define MIRRORS   3
#define WRITERS   10
#define BUDGET_NS (6 * NS_PER_SECOND)

static const char *const job_ids[MIRRORS] = {"job0", "job1", "job2"};

static bool meddled; /* there are meddlers */
static _Atomic unsigned pivots, copies, cancelled, broken;

/* ---- Meddlers -------------------------------------------------------------------------------- */

/* Resumes far more than it pauses: an error policy may have stopped a job. */
static void meddle_with_jobs(struct rig *rig, struct test_random *random)
{
    AUTO(job) job = job_find(job_ids[test_random_below(random, MIRRORS)]);

    if (!job) {
        return;
    }
    switch (test_random_below(random, 16)) {
    case 0:
        job_user_pause(job, NULL);
        break;
    case 1:
        job_set_speed(job, (int64_t)test_random_between(random, 4, 64) << 20, NULL);
        break;
    case 2:
        job_set_speed(job, 0, NULL);
        break;
    case 3:
        if (test_random_chance(random, 5)) {
            job_cancel(job, true, test_random_chance(random, 50), NULL);
        }
        break;
    case 4:
    case 5:
    case 6:
        mirror_change_copy_mode(
            job, (enum mirror_copy_mode)test_random_below(random, MIRROR_AUTO + 1), NULL);
        break;
    default:
        job_user_resume(job, NULL);
    }
}

/* Progress grows, and never beyond its total. */
static void watch_progress(struct rig *rig, struct test_random *random)
{
    AUTO(job) job = job_find(job_ids[test_random_below(random, MIRRORS)]);
    uint64_t last = 0;

    for (unsigned i = 0; job && i < 10; i++) {
        struct job_info info;

        job_get_info(job, &info);
        if (info.status != JOB_STATUS_CREATED) {
            g_assert_cmpuint(info.current_progress, <=, info.total_progress);
        }
        g_assert_cmpuint(info.current_progress, >=, last);
        last = info.current_progress;
        job_info_clear(&info);
    }
}

static meddle_function *const meddles[] = {
    meddle_with_jobs, meddle_with_drains, meddle_with_guest, watch_progress, NULL,
};

/* ---- Mirrors --------------------------------------------------------------------------------- */

struct tried {
    struct job *job;
    struct block_node *target;
    bool is_pivot;
    bool may_break; /* by an error of the target */
};

static struct mirror_options choose_options(struct rig *rig, struct tried *tried, const char *id)
{
    struct test_random *random = &rig->random;
    struct mirror_options options = rig_mirror_options(rig, id, tried->target);

    options.granularity = MIRROR_GRANULARITY_MIN << test_random_below(random, 9);
    options.buf_size = (int64_t)test_random_between(random, 1, 4 * MIB);
    options.keep_zeroes = test_random_chance(random, 30);
    options.copy_mode = (enum mirror_copy_mode)test_random_below(random, MIRROR_AUTO + 1);
    /* Alone, nobody would resume a job that an error has stopped. */
    options.on_target_error =
        (enum block_error_policy)(meddled ? test_random_below(random, BLOCK_ERROR_POLICY_ENOSPC + 1)
                                          : test_random_below(random, BLOCK_ERROR_POLICY_STOP));
    if (test_random_chance(random, 30)) {
        options.speed = (int64_t)test_random_between(random, 4, 64) << 20;
    }
    if (test_random_chance(random, 30)) {
        options.job_flags |= JOB_MANUAL_FINALIZE;
    }
    return options;
}

static void choose_faults(struct rig *rig, struct tried *tried)
{
    struct test_random *random = &rig->random;

    tried->may_break = test_random_chance(random, 30);
    if (tried->may_break) {
        FAULT(tried->target, .operations = FAULT_ON_CHANGES | FAULT_ON_STATUS, .percent = 20,
              .skip = (unsigned)test_random_below(random, 100), .count = 2,
              .error_number = test_random_chance(random, 50) ? ENOSPC : EIO);
    }
    if (test_random_chance(random, 40)) {
        FAULT(tried->target, .operations = FAULT_ON_ALL, .percent = 20, .delay_ns = NS_PER_MS);
    }
}

static struct tried start_one(struct rig *rig, const char *id)
{
    static unsigned number;
    g_autofree char *name = g_strdup_printf("target%u", number++ % 16);
    struct tried tried = {.target = rig_target(rig, name, test_random_chance(&rig->random, 50))};
    struct mirror_options options = choose_options(rig, &tried, id);

    choose_faults(rig, &tried);
    tried.job = rig_mirror(&options);
    return tried;
}

/* Tell a mirror to end when it is ready; it may have ended otherwise, and be paused now. */
static void ask_for_end(struct rig *rig, struct tried *tried)
{
    if (rig_wait_status(tried->job, JOB_STATUS_READY) != JOB_STATUS_READY) {
        return;
    }
    if (tried->is_pivot) {
        fault_clear(tried->target); /* or guests would meet what is left of the errors */
        while (job_complete(tried->job, NULL) < 0 &&
               job_get_status(tried->job) != JOB_STATUS_CONCLUDED) {
            g_usleep(500);
        }
    } else {
        while (job_cancel(tried->job, false, true, NULL) < 0 &&
               job_get_status(tried->job) != JOB_STATUS_CONCLUDED) {
            g_usleep(500);
        }
    }
}

/* Ends the job if it waits for that. */
static void finalize(struct rig *rig, struct tried *tried)
{
    struct job_info info;

    job_get_info(tried->job, &info);
    if (!info.auto_finalize &&
        rig_wait_status(tried->job, JOB_STATUS_PENDING) == JOB_STATUS_PENDING) {
        rig_wait_requests(rig, WRITERS);
        if (test_random_chance(&rig->random, 20)) {
            job_cancel(tried->job, true, true, NULL);
        } else {
            job_finalize(tried->job, NULL);
        }
    }
    job_info_clear(&info);
}

static void check_failure(const struct tried *tried, const char *message)
{
    if (g_str_equal(message, g_strerror(ECANCELED))) {
        cancelled++;
        return;
    }
    if (!strstr(message, "Could not write target node 'target")) {
        g_error("unexpected: %s", message);
    }
    g_assert_true(tried->may_break);
    broken++;
}

/* The device is on the target now, and nobody touches the old root any more. */
static void check_pivot(struct rig *rig, struct tried *tried)
{
    struct block_node *old = rig->source;

    pivots++;
    fault_clear(tried->target);
    rig->source = tried->target;
    g_autofree char *contents = rig_contents(old);
    rig_wait_requests(rig, 2 * WRITERS);
    rig_assert_contents(old, contents);
    rig_assert_unused(old);
    rig_stop(rig);
    rig_assert_equal(rig->model, rig->source);
    rig_write(rig, WRITERS);
}

static void check_end(struct rig *rig, struct tried *tried)
{
    AUTO(block_node) root = NULL;
    g_autofree char *message = rig_end(tried->job);

    root = block_device_root(rig->device);
    if (message) {
        check_failure(tried, message);
    } else if (tried->is_pivot) {
        g_assert_true(root == tried->target);
        block_node_unref(STEAL(root));
        check_pivot(rig, tried);
        return;
    } else {
        copies++;
    }
    g_assert_true(root != tried->target);
    fault_clear(tried->target);
    rig_assert_unused(tried->target);
}

/* Some mirrors at once, of which the last one is to take the guest with it. */
static void one_round(struct rig *rig)
{
    size_t count = test_random_between(&rig->random, 1, MIRRORS);
    struct tried tried[MIRRORS];

    for (size_t i = 0; i < count; i++) {
        tried[i] = start_one(rig, job_ids[i]);
        tried[i].is_pivot = i == count - 1;
    }
    if (test_random_chance(&rig->random, 15)) {
        job_cancel(tried[0].job, true, test_random_chance(&rig->random, 50), NULL);
    }
    for (size_t i = 0; i < count; i++) {
        ask_for_end(rig, &tried[i]);
        finalize(rig, &tried[i]);
        check_end(rig, &tried[i]);
    }
}

static void torture(uint64_t length, uint64_t alignment, bool with_meddlers)
{
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS / 3);
    struct rig *rig = rig_new(length, alignment);
    struct meddlers *meddlers = NULL;
    unsigned rounds = 0;

    pivots = copies = cancelled = broken = 0;
    rig_fill(rig);
    rig_write(rig, WRITERS);
    meddled = with_meddlers;
    if (with_meddlers) {
        meddlers = meddlers_start(rig, &rig->random, meddles);
    }
    do {
        one_round(rig);
    } while (++rounds < 3 || clock_now_ns() < end_ns);
    meddlers_stop(meddlers);
    g_test_message("%u rounds: %u pivots, %u copies, %u cancelled, %u broken; %lu requests", rounds,
                   pivots, copies, cancelled, broken, (unsigned long)atomic_load(&rig->requests));
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_free(rig);
}

static void test_alone(void)
{
    torture(4 * MIB, 1, false);
}

static void test_meddled(void)
{
    torture(4 * MIB + 3 * 512, 1, true);
}

static void test_unaligned(void)
{
    torture(2 * MIB + 20 * KIB, 4096, true);
}

/*
 * Writers at full speed and a target that is many times slower: the mirror gets ready, and comes
 * to its end all the same, without a write failing.
 */
static void test_convergence(void)
{
    struct rig *rig = rig_new(32 * MIB, 1);
    struct block_node *target = rig_target(rig, "slow", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    rig->max_bytes = 64 * KIB;
    FAULT(target, .operations = FAULT_ON_CHANGES, .delay_ns = NS_PER_MS);
    rig_write(rig, WRITERS);
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_end_well(job);
    fault_clear(target);
    g_test_message("%lu requests", (unsigned long)atomic_load(&rig->requests));
    rig_wait_requests(rig, 2 * WRITERS);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_assert_unused(rig_follow(rig, target));
    rig_free(rig);
}

/*
 * Writers to a few granules, whose requests overlap and are no whole granules, with mirrors of all
 * modes, switched all the time, and a source and targets that are late now and then: at any moment
 * at which the writers stand still, and a mirror is in step, it equals the disk byte for byte.
 */
static void wait_in_step(struct job *job)
{
    struct job_info info;
    bool is_in_step;

    g_assert_cmpint(mirror_change_copy_mode(job, MIRROR_WRITE_BLOCKING, NULL), ==, 0);
    do {
        g_usleep(500);
        job_get_info(job, &info);
        is_in_step = info.actively_synced;
        job_info_clear(&info);
    } while (!is_in_step);
}

static void switch_modes(struct rig *rig, struct job **jobs)
{
    for (unsigned i = 0; i < 8; i++) {
        for (unsigned j = 0; j < MIRRORS; j++) {
            enum mirror_copy_mode mode =
                (enum mirror_copy_mode)test_random_below(&rig->random, MIRROR_AUTO + 1);

            g_assert_cmpint(mirror_change_copy_mode(jobs[j], mode, NULL), ==, 0);
        }
        rig_wait_requests(rig, 4 * WRITERS);
    }
}

static void test_overlaps(void)
{
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS / 3);
    struct rig *rig = rig_new(2 * MIB, 1);
    struct block_node *targets[MIRRORS];
    struct job *jobs[MIRRORS];

    rig_fill(rig);
    rig->max_bytes = 32 * KIB;
    atomic_store(&rig->end, 96 * KIB);
    FAULT(rig->source, .operations = FAULT_ON_CHANGES, .percent = 10, .delay_ns = NS_PER_MS);
    for (unsigned i = 0; i < MIRRORS; i++) {
        targets[i] = rig_target(rig, job_ids[i], true);
        struct mirror_options options = rig_mirror_options(rig, job_ids[i], targets[i]);

        options.granularity = MIRROR_GRANULARITY_MIN << (3 * i);
        options.copy_mode = (enum mirror_copy_mode)i;
        FAULT(targets[i], .operations = FAULT_ON_CHANGES, .percent = 10, .delay_ns = NS_PER_MS);
        jobs[i] = rig_ready_mirror(&options);
    }
    do {
        rig_write(rig, WRITERS);
        switch_modes(rig, jobs);
        rig_stop(rig);
        g_autofree char *contents = rig_contents(rig->source);
        for (unsigned i = 0; i < MIRRORS; i++) {
            wait_in_step(jobs[i]);
            rig_assert_contents(targets[i], contents);
        }
    } while (clock_now_ns() < end_ns);
    for (unsigned i = 0; i < MIRRORS; i++) {
        rig_cancel_softly(jobs[i]);
        rig_end_well(jobs[i]);
        fault_clear(targets[i]);
        rig_assert_equal(rig->model, targets[i]);
        rig_assert_unused(targets[i]);
    }
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_free(rig);
}

/* A guest that writes to one place only, so that little is left for the last step. */
static void *write_in_place(void *data)
{
    struct rig *rig = data;

    while (!atomic_load(&rig->stop)) {
        g_assert_cmpint(rig_pwrite(rig, 1, MIB, 8 * KIB), ==, 0);
    }
    return NULL;
}

/* The target hangs while guests stand still for the last bytes: they are let go, and stay. */
static void test_hang_in_the_last_step(void)
{
    pthread_t guest;
    struct rig *rig = rig_new(2 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    options.job_flags |= JOB_MANUAL_FINALIZE;
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_wait_status(job, JOB_STATUS_PENDING);
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    g_assert_cmpint(pthread_create(&guest, NULL, write_in_place, rig), ==, 0);
    rig_wait_requests(rig, 20);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    rig_end_badly(job, "The target 'target' is too slow: ");
    rig_assert_source_quiet(rig);
    rig_wait_requests(rig, 20);
    atomic_store(&rig->stop, true);
    pthread_join(guest, NULL);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/mirror/each-equals-the-disk", test_alone);
    g_test_add_func("/mirror/each-equals-the-disk-whatever-happens-beside", test_meddled);
    g_test_add_func("/mirror/each-equals-the-disk-with-unaligned-writes", test_unaligned);
    g_test_add_func("/mirror/comes-to-its-end-whatever-the-guest-writes", test_convergence);
    g_test_add_func("/mirror/both-sides-are-equal-whoever-overlaps", test_overlaps);
    g_test_add_func("/mirror/guests-do-not-stand-still-for-ever", test_hang_in_the_last_step);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
