/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backups whose source or target fails or hangs, under a guest's writes: who is hurt, and what is
 * said. The guest never is, unless its own storage fails it.
 */
#include <errno.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "tests/lib/backup-rig.h"

#define WRITERS 8
#define LENGTH  (2 * MIB)

static void expect_success(struct job *job, struct model *snapshot, struct block_node *target)
{
    rig_end_well(job);
    rig_assert_equal(snapshot, target);
    model_free(snapshot);
}

static void assert_guest_unhurt(struct rig *rig)
{
    rig_wait_requests(rig, WRITERS);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
}

/* ---- Errors of the target ------------------------------------------------------------------- */

static void test_target_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    options.speed = 64 * KIB; /* so that most is saved by the guest */
    options.max_chunk = 64 * KIB;
    FAULT(target, .operations = FAULT_ON_CHANGES, .skip = 5, .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, NULL);
    rig_end_badly(job, "Could not write target node 'target' at offset ");
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

/* As often as need be: what another worker met before its fault went may stop the job again. */
static void resume_until_ended(struct job *job)
{
    while (job_get_status(job) != JOB_STATUS_CONCLUDED) {
        job_user_resume(job, NULL);
        g_usleep(500);
    }
}

struct policy_case {
    const char *name;
    bool is_source;
    enum block_error_policy policy;
    int error_number;
    unsigned stops; /* how often it has to be resumed */
    bool fails;
};

static const struct policy_case policy_cases[] = {
    {"target/report", false, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"target/ignore", false, BLOCK_ERROR_POLICY_IGNORE, EIO, 0, false},
    {"target/stop", false, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
    {"target/enospc", false, BLOCK_ERROR_POLICY_ENOSPC, ENOSPC, 2, false},
    {"target/enospc-other", false, BLOCK_ERROR_POLICY_ENOSPC, EIO, 0, true},
    {"source/report", true, BLOCK_ERROR_POLICY_REPORT, EIO, 0, true},
    {"source/ignore", true, BLOCK_ERROR_POLICY_IGNORE, EIO, 0, false},
    {"source/stop", true, BLOCK_ERROR_POLICY_STOP, EIO, 2, false},
    {"source/enospc-other", true, BLOCK_ERROR_POLICY_ENOSPC, EIO, 0, true},
};

/* One worker, so that each error is met by itself. */
static void test_policy(gconstpointer data)
{
    const struct policy_case *tested = data;
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    unsigned operations = tested->is_source ? FAULT_ON(READ) : FAULT_ON_CHANGES;
    struct model *snapshot;
    struct job *job;

    options.max_workers = 1;
    options.max_chunk = 64 * KIB;
    options.on_source_error = options.on_target_error = tested->policy;
    FAULT(tested->is_source ? rig->source : target, .operations = operations, .skip = 3, .count = 2,
          .error_number = tested->error_number);
    rig_backup(rig, &options, 1, &job, &snapshot);
    for (unsigned i = 0; i < tested->stops; i++) {
        rig_resume_when_stopped(job);
    }
    if (tested->fails) {
        rig_end_badly(job, tested->is_source ? "Could not read source node 'source' at offset "
                                             : "Could not write target node 'target' at offset ");
        model_free(snapshot);
    } else {
        expect_success(job, snapshot, target);
    }
    rig_free_with_target(rig, target);
}

/* While the job stands still because of an error, the guest writes and what it saves is kept. */
static void test_stopped_under_writes(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    options.max_chunk = 64 * KIB; /* so that there is a fourth write */
    FAULT(target, .operations = FAULT_ON_CHANGES, .skip = 3, .error_number = ENOSPC);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    while (!fault_hits(target)) {
        g_usleep(500);
    }
    rig_wait_status(job, JOB_STATUS_PAUSED); /* as it also is where it is drained */
    rig_wait_requests(rig, 50);
    fault_clear(target);
    resume_until_ended(job);
    expect_success(job, snapshot, target);
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

static void test_flush_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    FAULT(target, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, NULL);
    rig_end_badly(job, "Could not flush target node 'target': Input/output error");
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

/* ---- A target that hangs -------------------------------------------------------------------- */

/* With scratch the target is not on the guest's path at all: it hangs, and nobody notices. */
static void test_hanging_target(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    options.guest_timeout_s = 1;
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_backup(rig, &options, 1, &job, &snapshot);
    fault_wait_held(target, 1);
    rig_fill(rig); /* the whole disk is new, and all of the old one is kept */
    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 2000);
    g_assert_cmpint(job_get_status(job), ==, JOB_STATUS_RUNNING);
    fault_clear(target);
    expect_success(job, snapshot, target);
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

/* Without it guests go on until the memory for old data is full; then the job gives up, not they.
 */
static void test_hanging_target_without_scratch(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    options.scratch = BACKUP_SCRATCH_NONE;
    options.max_workers = 1;
    options.max_chunk = 64 * KIB;
    options.guest_timeout_s = 1;
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_backup(rig, &options, 1, &job, NULL);
    fault_wait_held(target, 1);
    rig_write(rig, WRITERS);
    rig_end_badly(job,
                  "The memory for old data is full: a write to node 'source' would have had to");
    assert_guest_unhurt(rig);
    /* Again while something is still on its way: workers that are slow to run follow it. */
    g_assert_cmpuint(fault_cut_off(target), >=, 1);
    rig_free_with_target(rig, target);
}

static void cancel_hanging(unsigned operations)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    FAULT(target, .operations = operations, .hold = true);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, NULL);
    fault_wait_held(target, 1);
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    rig_end_badly(job, g_strerror(ECANCELED));
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

static void test_cancel_hanging_write(void)
{
    cancel_hanging(FAULT_ON_CHANGES);
}

static void test_cancel_hanging_flush(void)
{
    cancel_hanging(FAULT_ON(FLUSH));
}

/* ---- A slow target -------------------------------------------------------------------------- */

/* One buffer's worth of memory, which the job's own copying must not keep from the guest. */
static void test_guest_is_not_starved(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    options.scratch = BACKUP_SCRATCH_NONE;
    options.max_workers = 1;
    options.max_chunk = 64 * KIB;
    options.guest_timeout_s = 1;
    FAULT(target, .operations = FAULT_ON_CHANGES, .delay_ns = 60 * NS_PER_MS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    while (fault_hits(target) == 0) {
        g_usleep(500); /* the job has the memory now */
    }
    /* From the end, where the job comes last; each of these has to be saved by the guest. */
    for (unsigned i = 1; i <= 8; i++) {
        g_assert_cmpint(rig_pwrite(rig, 1, LENGTH - i * 32 * KIB, 32 * KIB), ==, 0);
    }
    expect_success(job, snapshot, target);
    rig_free_with_target(rig, target);
}

/*
 * A section over source and target: the guest's writes in flight may wait for memory, and so for
 * the target. Had the job come to rest before them, they would wait for each other.
 */
static void test_drain_of_both(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct block_node *nodes[] = {target, rig->source};
    struct model *snapshot;
    struct job *job;

    options.scratch = BACKUP_SCRATCH_NONE;
    options.max_workers = 2;
    options.max_chunk = 64 * KIB;
    options.guest_timeout_s = 0;
    FAULT(target, .operations = FAULT_ON_CHANGES, .delay_ns = 2 * NS_PER_MS);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    for (unsigned i = 0; i < 20; i++) {
        block_drain_end(block_drain_begin(nodes, 2, BLOCK_PERM_WRITE));
    }
    expect_success(job, snapshot, target);
    rig_free_with_target(rig, target);
}

/* ---- Errors of the source ------------------------------------------------------------------- */

/* A guest's write that cannot save what it overwrites breaks the job and goes through. */
static void test_save_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    options.speed = 64 * KIB;
    rig_backup(rig, &options, 1, &job, NULL);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = MIB, .bytes = 4096,
          .error_number = EIO);
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, 8192), ==, 0);
    rig_end_badly(job, "Could not save what a write overwrites of node 'source' at offset "
                       "1048576: Input/output error");
    rig_free_with_target(rig, target);
}

/* The guest's own writes fail now and then; the backup is right all the same. */
static void test_guest_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    options.speed = 8 * MIB;
    FAULT(rig->source, .operations = FAULT_ON_CHANGES, .percent = 20, .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    rig_wait_requests(rig, 100);
    expect_success(job, snapshot, target);
    g_assert_cmpuint(atomic_load(&rig->failed), >, 0);
    rig_free_with_target(rig, target);
}

/* Policy stop: the guest's requests wait for cont and are tried again; none is told of it. */
static void test_guest_stops_and_retries(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    block_device_set_error_policies(rig->device, BLOCK_ERROR_POLICY_STOP, BLOCK_ERROR_POLICY_STOP);
    FAULT(rig->source, .operations = FAULT_ON_CHANGES, .skip = 20, .count = 5,
          .error_number = ENOSPC);
    options.speed = 8 * MIB;
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    while (!block_device_is_stopped(rig->device)) {
        g_usleep(500);
    }
    g_assert_cmpint(block_device_io_status(rig->device), ==, BLOCK_IO_STATUS_NOSPACE);
    expect_success(job, snapshot, target); /* the job does not need the guest */
    fault_clear(rig->source);
    block_device_continue_all();
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

/* Storage that cannot say what it holds is copied as data. */
static void test_status_error(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    FAULT(rig->source, .operations = FAULT_ON_STATUS, .percent = 50, .error_number = EIO);
    FAULT(target, .operations = FAULT_ON_STATUS, .percent = 50, .error_number = EIO);
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    expect_success(job, snapshot, target);
    assert_guest_unhurt(rig);
    rig_free_with_target(rig, target);
}

/* ---- Progress ------------------------------------------------------------------------------- */

static void test_progress(void)
{
    struct block_node *target;
    struct rig *rig = rig_new_with_target(LENGTH, &target);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    uint64_t progress;
    struct job *job;

    options.max_chunk = 64 * KIB;
    FAULT(target, .operations = FAULT_ON_CHANGES, .skip = 1, .count = 1, .hold = true);
    rig_backup(rig, &options, 1, &job, &snapshot);
    fault_wait_held(target, 1);
    do {
        struct job_info info;

        job_get_info(job, &info);
        progress = info.current_progress;
        g_assert_cmpuint(info.total_progress, ==, LENGTH);
        g_assert_cmpuint(progress, <, LENGTH);
        g_assert_cmpint(info.status, ==, JOB_STATUS_RUNNING);
        job_info_clear(&info);
    } while (progress == 0);
    fault_clear(target);
    expect_success(job, snapshot, target);
    rig_free_with_target(rig, target);
}

static void add_tests(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(policy_cases); i++) {
        g_autofree char *path = g_strdup_printf("/backup/policy/%s", policy_cases[i].name);

        g_test_add_data_func(path, &policy_cases[i], test_policy);
    }
    g_test_add_func("/backup/target/its-error-never-fails-the-guest", test_target_error);
    g_test_add_func("/backup/target/a-stopped-job-loses-nothing", test_stopped_under_writes);
    g_test_add_func("/backup/target/a-failed-flush-fails-the-job", test_flush_error);
    g_test_add_func("/backup/hang/the-guest-does-not-notice", test_hanging_target);
    g_test_add_func("/backup/hang/the-job-gives-up-before-the-guest",
                    test_hanging_target_without_scratch);
    g_test_add_func("/backup/hang/cancel-ends-a-hanging-write", test_cancel_hanging_write);
    g_test_add_func("/backup/hang/cancel-ends-a-hanging-flush", test_cancel_hanging_flush);
    g_test_add_func("/backup/slow/the-guest-is-not-starved", test_guest_is_not_starved);
    g_test_add_func("/backup/slow/a-drain-of-both-ends", test_drain_of_both);
    g_test_add_func("/backup/source/an-error-while-saving-breaks-the-job", test_save_error);
    g_test_add_func("/backup/source/a-guest-s-failed-write-does-no-harm", test_guest_error);
    g_test_add_func("/backup/source/a-stopped-guest-is-retried", test_guest_stops_and_retries);
    g_test_add_func("/backup/source/status-errors-are-no-errors", test_status_error);
    g_test_add_func("/backup/progress-is-not-full-before-the-end", test_progress);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
