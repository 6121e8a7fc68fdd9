/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backups of a disk that many writers write to, several at once, while clients pause, resume,
 * throttle and cancel them, nodes are drained, and the guest is stopped. Scratch is small, slow,
 * fails or hangs. Each backup that succeeds equals the disk at its moment; none leaves anything
 * behind; what ends it is said.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/meddlers.h"

#define TARGETS   3
#define WRITERS   10
#define BUDGET_NS (6 * NS_PER_SECOND)

static const char *const target_names[TARGETS] = {"target0", "target1", "target2"};
static const char *const scratch_names[TARGETS] = {"scratch0", "scratch1", "scratch2"};
static const char *const job_ids[TARGETS] = {"job0", "job1", "job2"};

static bool meddled; /* there are meddlers */
static _Atomic unsigned completed, cancelled, broken;

/* Resumes far more than it pauses: an error policy may have stopped a job. */
static void meddle_with_jobs(struct rig *rig, struct test_random *random)
{
    AUTO(job) job = job_find(job_ids[test_random_below(random, TARGETS)]);

    if (!job) {
        return;
    }
    switch (test_random_below(random, 12)) {
    case 0:
        job_user_pause(job, NULL);
        break;
    case 1:
        job_set_speed(job, (int64_t)test_random_between(random, 1, 64) << 20, NULL);
        break;
    case 2:
        job_set_speed(job, 0, NULL);
        break;
    case 3:
        if (test_random_chance(random, 10)) {
            /* Waiting for its end would wait for guests that wait for another job, which an error
             * has stopped, and which only this thread resumes. */
            job_cancel(job, true, false, NULL);
        }
        break;
    default:
        job_user_resume(job, NULL);
    }
}

/* Sections of source, a target, or both; sometimes nested. */
static void meddle_with_targets(struct rig *rig, struct test_random *random)
{
    AUTO(block_node) target = block_node_find(target_names[test_random_below(random, TARGETS)]);
    struct block_node *nodes[2];
    size_t count = 0;

    if (!target || test_random_chance(random, 60)) {
        nodes[count++] = rig->source;
    }
    if (target && (count == 0 || test_random_chance(random, 30))) {
        nodes[count++] = target;
    }
    unsigned perms = test_random_chance(random, 50) ? BLOCK_PERM_ALL : BLOCK_PERM_WRITE;
    AUTO(block_drain) outer = block_drain_begin(nodes, count, perms);
    if (test_random_chance(random, 30)) {
        block_drain_end(block_drain_begin(nodes, count, BLOCK_PERM_WRITE));
    }
}

/* Progress grows, and never beyond its total. */
static void watch_progress(struct rig *rig, struct test_random *random)
{
    AUTO(job) job = job_find(job_ids[test_random_below(random, TARGETS)]);
    uint64_t last = 0;

    for (unsigned i = 0; job && i < 10; i++) {
        struct job_info info;

        job_get_info(job, &info);
        if (info.total_progress) {
            g_assert_cmpuint(info.current_progress, <=, info.total_progress);
        }
        g_assert_cmpuint(info.current_progress, >=, last);
        last = info.current_progress;
        job_info_clear(&info);
    }
}

static meddle_function *const meddles[] = {
    meddle_with_jobs,  meddle_with_targets, meddle_with_targets,
    meddle_with_guest, watch_progress,      NULL,
};

static void choose_scratch(struct rig *rig, unsigned i, struct backup_options *options)
{
    struct test_random *random = &rig->random;

    options->scratch = (enum backup_scratch)test_random_below(random, BACKUP_SCRATCH_NONE + 1);
    if (options->scratch != BACKUP_SCRATCH_NONE && test_random_chance(random, 20)) {
        options->scratch_max = test_random_between(random, 1, MIB);
    }
    if (options->scratch != BACKUP_SCRATCH_NODE) {
        return;
    }
    options->scratch_node = rig_target(rig, scratch_names[i], test_random_chance(random, 50));
    if (test_random_chance(random, 20)) {
        FAULT(options->scratch_node, .operations = FAULT_ON_CHANGES, .percent = 10,
              .error_number = EIO);
    } else if (test_random_chance(random, 10)) {
        FAULT(options->scratch_node, .operations = FAULT_ON_ALL,
              .skip = test_random_below(random, 20), .hold = true);
        options->guest_timeout_s = 1;
    } else if (test_random_chance(random, 40)) {
        FAULT(options->scratch_node, .operations = FAULT_ON_ALL, .percent = 20,
              .delay_ns = 2 * NS_PER_MS);
    }
}

static struct backup_options choose_options(struct rig *rig, unsigned i, struct block_node *target)
{
    struct test_random *random = &rig->random;
    struct backup_options options = rig_options(rig, job_ids[i], target);

    options.max_workers = (int64_t)test_random_between(random, 1, 8);
    options.max_chunk = (int64_t)test_random_between(random, 64 * KIB, 512 * KIB);
    choose_scratch(rig, i, &options);
    options.use_copy_range = test_random_chance(random, 30);
    /* Alone, nobody would resume a job that an error has stopped. */
    options.on_target_error =
        (enum block_error_policy)(meddled ? test_random_below(random, BLOCK_ERROR_POLICY_ENOSPC + 1)
                                          : test_random_below(random, BLOCK_ERROR_POLICY_STOP));
    if (test_random_chance(random, 30)) {
        options.speed = (int64_t)test_random_between(random, 1, 16) << 20;
    }
    return options;
}

static void choose_faults(struct rig *rig, struct block_node *target)
{
    struct test_random *random = &rig->random;

    if (test_random_chance(random, 40)) {
        FAULT(target, .operations = FAULT_ON_CHANGES | FAULT_ON_STATUS, .percent = 20, .count = 2,
              .error_number = test_random_chance(random, 50) ? ENOSPC : EIO);
    }
    if (test_random_chance(random, 40)) {
        FAULT(target, .operations = FAULT_ON_ALL, .percent = 20, .delay_ns = 2 * NS_PER_MS);
    }
}

/* Whether scratch is to blame, and can be. */
static bool is_of_scratch(const char *message, const struct backup_options *options)
{
    return (options->scratch_max && strstr(message, "Old data needs more scratch than")) ||
           (options->scratch == BACKUP_SCRATCH_NODE &&
            (strstr(message, "Could not write to scratch node 'scratch") ||
             (options->guest_timeout_s == 1 && strstr(message, "is too slow: a write to node"))));
}

/* Whatever became of the job: nobody uses the target, and if it succeeded, it is right. */
static void check_end(struct job *job, struct block_node *target, struct model *snapshot,
                      const struct backup_options *options)
{
    g_autofree char *message = rig_end(job);

    fault_clear(target);
    if (!message) {
        rig_assert_equal(snapshot, target);
        completed++;
    } else if (g_str_equal(message, g_strerror(ECANCELED))) {
        cancelled++;
    } else if (is_of_scratch(message, options)) {
        broken++;
    } else {
        if (!strstr(message, "Could not write target node 'target")) {
            g_error("unexpected: %s", message);
        }
        g_assert_true(options->on_target_error == BLOCK_ERROR_POLICY_REPORT ||
                      options->on_target_error == BLOCK_ERROR_POLICY_ENOSPC);
        broken++;
    }
    rig_assert_unused(target);
    if (options->scratch_node) {
        fault_clear(options->scratch_node);
        rig_assert_unused(options->scratch_node);
    }
}

static void one_round(struct rig *rig)
{
    size_t count = test_random_between(&rig->random, 1, TARGETS);
    struct backup_options options[TARGETS];
    struct block_node *targets[TARGETS];
    struct job *jobs[TARGETS];
    struct model *snapshot;

    for (unsigned i = 0; i < count; i++) {
        targets[i] = rig_target(rig, target_names[i], test_random_chance(&rig->random, 50));
        options[i] = choose_options(rig, i, targets[i]);
        choose_faults(rig, targets[i]);
    }
    rig_backup(rig, options, count, jobs, &snapshot);
    if (test_random_chance(&rig->random, 25)) {
        job_cancel(jobs[0], true, test_random_chance(&rig->random, 50), NULL);
    }
    for (unsigned i = 0; i < count; i++) {
        check_end(jobs[i], targets[i], snapshot, &options[i]);
    }
    model_free(snapshot);
}

static void torture(uint64_t length, uint64_t alignment, bool with_meddlers)
{
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS / 3);
    struct rig *rig = rig_new(length, alignment);
    struct meddlers *meddlers = NULL;
    unsigned rounds = 0;

    completed = cancelled = broken = 0;
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
    g_test_message("%u rounds: %u completed, %u cancelled, %u broken; %lu requests", rounds,
                   completed, cancelled, broken, (unsigned long)atomic_load(&rig->requests));
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

static void add_tests(void)
{
    g_test_add_func("/backup/each-equals-its-moment", test_alone);
    g_test_add_func("/backup/each-equals-its-moment-whatever-happens-beside", test_meddled);
    g_test_add_func("/backup/each-equals-its-moment-with-unaligned-writes", test_unaligned);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
