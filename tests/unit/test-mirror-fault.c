/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mirrors whose source or target fails or hangs: what the policies do, and that neither the guest
 * is hurt nor anything forgotten.
 */
#include <errno.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "jobs/mirror.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 8
#define LENGTH  (2 * MIB)

static void finish(struct rig *rig, struct block_node *target)
{
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_free_with_target(rig, target);
}

static void end_as_pivot(struct rig *rig, struct job *job, struct block_node *target)
{
    rig_complete(job);
    rig_end_well(job);
    finish(rig, rig_follow(rig, target));
}

/* ---- Error policies -------------------------------------------------------------------------- */

struct policy_case {
    const char *name;
    bool is_source;
    bool when_ready; /* else while the disk is copied */
    enum block_error_policy policy;
    int error_number;
    unsigned stops; /* how often it has to be resumed */
    bool fails;
};

static const struct policy_case policy_cases[] = {
    {"target/report", false, false, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"target/ignore", false, false, BLOCK_ERROR_POLICY_IGNORE, EIO, 0, false},
    {"target/stop", false, false, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
    {"target/enospc", false, false, BLOCK_ERROR_POLICY_ENOSPC, ENOSPC, 2, false},
    {"target/enospc-other", false, false, BLOCK_ERROR_POLICY_ENOSPC, EIO, 0, true},
    {"source/report", true, false, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"source/ignore", true, false, BLOCK_ERROR_POLICY_IGNORE, EIO, 0, false},
    {"source/stop", true, false, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
    {"source/enospc-other", true, false, BLOCK_ERROR_POLICY_ENOSPC, EIO, 0, true},
    {"ready/target/report", false, true, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"ready/target/ignore", false, true, BLOCK_ERROR_POLICY_IGNORE, EIO, 0, false},
    {"ready/target/stop", false, true, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
    {"ready/target/enospc", false, true, BLOCK_ERROR_POLICY_ENOSPC, ENOSPC, 2, false},
    {"ready/source/report", true, true, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"ready/source/stop", true, true, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
};

static void test_policy(gconstpointer data)
{
    const struct policy_case *tested = data;
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    struct fault_rule rule = {
        .operations = tested->is_source ? FAULT_ON(READ) : FAULT_ON_CHANGES,
        .skip = tested->when_ready ? 0 : 3,
        .count = 2,
        .error_number = tested->error_number,
    };
    struct job *job;

    options.buf_size = 64 * KIB; /* one worker, so that each error is met by itself */
    options.on_source_error = options.on_target_error = tested->policy;
    if (tested->when_ready) {
        job = rig_ready_mirror(&options);
        fault_add(tested->is_source ? rig->source : target, &rule);
        g_assert_cmpint(rig_pwrite(rig, 1, MIB, 8 * KIB), ==, 0);
    } else {
        fault_add(tested->is_source ? rig->source : target, &rule);
        job = rig_mirror(&options);
    }
    for (unsigned i = 0; i < tested->stops; i++) {
        rig_resume_when_stopped(job);
    }
    if (tested->fails) {
        rig_end_badly(job, tested->is_source ? "Could not read source node 'source' at offset "
                                             : "Could not write target node 'target' at offset ");
        finish(rig, target);
    } else {
        rig_wait_status(job, JOB_STATUS_READY);
        end_as_pivot(rig, job, target);
    }
}

/* While the mirror stands still because of an error, the guest writes, and all of it is copied. */
static void test_stopped_under_writes(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    struct job *job = rig_ready_mirror(&options);
    FAULT(target, .operations = FAULT_ON_CHANGES, .skip = 3, .error_number = ENOSPC);
    rig_write(rig, WRITERS);
    rig_wait_status(job, JOB_STATUS_STANDBY);
    rig_wait_requests(rig, 20 * WRITERS);
    fault_clear(target);
    rig_resume_when_stopped(job);
    end_as_pivot(rig, job, target);
}

/* ---- Errors at the very end ------------------------------------------------------------------ */

/* Nobody could resume a job that stops in its finalization, so it fails; the guest stays. */
static void fail_at_the_end(unsigned operations, const char *message)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    options.job_flags |= JOB_MANUAL_FINALIZE;
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_wait_status(job, JOB_STATUS_PENDING);
    FAULT(target, .operations = operations, .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 20 * WRITERS);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    rig_end_badly(job, message);
    rig_assert_source_quiet(rig);
    rig_wait_requests(rig, 20 * WRITERS);
    finish(rig, target);
}

static void test_write_fails_at_the_end(void)
{
    fail_at_the_end(FAULT_ON_CHANGES, "Could not write target node 'target' at offset ");
}

static void test_flush_fails_at_the_end(void)
{
    fail_at_the_end(FAULT_ON(FLUSH), "Could not flush target node 'target': Input/output error");
}

/* ---- A target that hangs --------------------------------------------------------------------- */

static void cancel_hanging(struct rig *rig, struct block_node *target, struct job *job)
{
    fault_wait_held(target, 1);
    rig_wait_requests(rig, 20 * WRITERS); /* guests do not mind */
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    rig_end_badly(job, g_strerror(ECANCELED));
    rig_assert_source_quiet(rig);
    rig_wait_requests(rig, 20 * WRITERS);
    finish(rig, target);
}

static void test_cancel_hanging_copy(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_write(rig, WRITERS);
    cancel_hanging(rig, target, rig_mirror(&options));
}

static void test_cancel_hanging_ready(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    struct job *job = rig_ready_mirror(&options);

    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_write(rig, WRITERS);
    cancel_hanging(rig, target, job);
}

/* The flush of the end hangs; guests wait for a moment with each write, and are let go. */
static void test_cancel_hanging_flush(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    struct job *job;

    rig->max_bytes = 16 * KIB;
    options.granularity = 4 * MIB; /* so that there is a flush beside the guests */
    job = rig_ready_mirror(&options);
    FAULT(target, .operations = FAULT_ON(FLUSH), .hold = true);
    rig_complete(job);
    rig_write(rig, WRITERS);
    fault_wait_held(target, 1);
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    rig_end_badly(job, g_strerror(ECANCELED));
    rig_assert_source_quiet(rig);
    rig_wait_requests(rig, 20 * WRITERS);
    finish(rig, target);
}

/* A drain of the source waits for what is being read, not for a target that hangs. */
static void test_drain_beside_hang(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    options.buf_size = 64 * KIB;
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    struct job *job = rig_mirror(&options);
    fault_wait_held(target, 1);
    block_drain_end(block_drain_begin(&rig->source, 1, BLOCK_PERM_ALL));
    fault_clear(target);
    rig_wait_status(job, JOB_STATUS_READY);
    end_as_pivot(rig, job, target);
}

/* ---- Others' errors -------------------------------------------------------------------------- */

/* Storage that cannot say what it holds is copied as data. */
static void test_status_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    FAULT(rig->source, .operations = FAULT_ON_STATUS, .percent = 50, .error_number = EIO);
    FAULT(target, .operations = FAULT_ON_STATUS, .percent = 50, .error_number = EIO);
    rig_write(rig, WRITERS);
    end_as_pivot(rig, rig_ready_mirror(&options), target);
}

/* The guest's own writes fail now and then; what they may have changed is copied all the same. */
static void test_guest_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    struct job *job = rig_ready_mirror(&options);

    FAULT(rig->source, .operations = FAULT_ON_CHANGES, .percent = 20, .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 100);
    rig_complete(job);
    rig_end_well(job);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), >, 0);
    atomic_store(&rig->failed, 0);
    finish(rig, rig_follow(rig, target));
}

static void add_tests(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(policy_cases); i++) {
        g_autofree char *path = g_strdup_printf("/mirror/policy/%s", policy_cases[i].name);

        g_test_add_data_func(path, &policy_cases[i], test_policy);
    }
    g_test_add_func("/mirror/target/a-stopped-mirror-loses-nothing", test_stopped_under_writes);
    g_test_add_func("/mirror/end/a-failed-write-leaves-the-guest", test_write_fails_at_the_end);
    g_test_add_func("/mirror/end/a-failed-flush-leaves-the-guest", test_flush_fails_at_the_end);
    g_test_add_func("/mirror/hang/cancel-ends-a-hanging-copy", test_cancel_hanging_copy);
    g_test_add_func("/mirror/hang/cancel-ends-a-hanging-ready-mirror", test_cancel_hanging_ready);
    g_test_add_func("/mirror/hang/cancel-ends-a-hanging-flush", test_cancel_hanging_flush);
    g_test_add_func("/mirror/hang/a-drain-of-the-source-ends", test_drain_beside_hang);
    g_test_add_func("/mirror/source/status-errors-are-no-errors", test_status_error);
    g_test_add_func("/mirror/source/a-guest-s-failed-write-is-copied", test_guest_error);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
