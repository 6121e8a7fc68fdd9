/* SPDX-License-Identifier: BSD-3-Clause */
/* What backup accepts, refuses and says; and what becomes of thin and of crooked disks. */
#include "jobs/backup.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/main-loop.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/disk.h"

static void expect_refused(const struct backup_options *options, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(backup_new(options, &error));
    g_assert_nonnull(error);
    test_assert_says(error->message, message);
    AUTO(job) job = job_find(options->job_id);
    g_assert_null(job);
}

/* ---- Refusals ------------------------------------------------------------------------------- */

static void test_numbers(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    const struct backup_options good = rig_options(rig, "job0", target);
    struct backup_options bad;

    bad = good, bad.max_workers = -1;
    expect_refused(&bad, "max-workers must be between 1 and 1024");
    bad = good, bad.max_workers = 1025;
    expect_refused(&bad, "max-workers must be between 1 and 1024");
    bad = good, bad.max_chunk = -1;
    expect_refused(&bad, "max-chunk must be between 0 (the default) and 1 GiB");
    bad = good, bad.max_chunk = GIB + 1;
    expect_refused(&bad, "max-chunk must be between 0 (the default) and 1 GiB");
    bad = good, bad.max_chunk = 65535;
    expect_refused(&bad, "Required max-chunk (65535) is less than backup cluster size (65536)");
    bad = good, bad.guest_timeout_s = -1;
    expect_refused(&bad, "cbw-timeout must be between 0 (none) and 2147483647 seconds");
    bad = good, bad.guest_timeout_s = INT64_C(2147483648);
    expect_refused(&bad, "cbw-timeout must be between 0 (none) and 2147483647 seconds");
    bad = good, bad.speed = -1;
    expect_refused(&bad, "Parameter 'speed' expects a non-negative value");
    bad = good, bad.job_id = "0 job";
    expect_refused(&bad, "Invalid job ID '0 job'");
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_nodes(void)
{
    struct rig *rig = rig_new(MIB, 1);
    g_autofree char *path = test_path(rig->directory, "other");
    test_make_file(path, MIB - 512);
    struct backup_options options = rig_options(rig, "job0", rig->source);

    expect_refused(&options, "Source and target cannot be the same");
    options.target = test_open("driver=file,node-name=short,filename=%s", path);
    expect_refused(&options, "Source and target image have different sizes");
    rig_assert_unused(options.target);
    test_make_file(path, MIB);
    options.target = test_open("driver=file,node-name=locked,read-only=on,filename=%s", path);
    expect_refused(&options, "Target node 'locked' is read-only");
    rig_assert_unused(options.target);
    options.target = rig->source->file; /* under the source */
    expect_refused(&options, "is busy: node 'source' and block job 'job0' exclude each other");
    rig_free(rig);
}

/* A filter that the guest writes past would not see what has to be saved. */
static void test_filter_above(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = rig_options(rig, "job0", target);

    options.source = test_open("driver=fault,node-name=above,file=source");
    expect_refused(&options, "Node 'above' is a filter, and block device 'vda' writes to node "
                             "'source' below it, which would not be noticed: use that node");
    rig_assert_unused(options.source);
    rig_assert_unused(target);
    rig_assert_source_quiet(rig);
    rig_free(rig);
}

static void test_conflicts(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = rig_options(rig, "job0", target);
    struct backup_options other = rig_options(rig, "job1", target);
    struct block_device *device = block_device_new("vdb", target, NULL);
    struct job *job;

    g_assert_nonnull(device);
    expect_refused(&options, "Node 'target' is busy: block device 'vdb' and block job 'job0' "
                             "exclude each other by writing it");
    g_assert_cmpint(block_device_remove(device), ==, 0);

    FAULT(target, .operations = FAULT_ON_ALL, .hold = true);
    rig_backup(rig, &options, 1, &job, NULL);
    expect_refused(&other, "Node 'target' is busy: block job 'job0' and block job 'job1' exclude");
    g_assert_null(block_device_new("vdb", target, NULL));
    fault_clear(target);
    g_assert_null(rig_end(job));
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_duplicate_id(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct block_node *second = rig_target(rig, "second", false);
    struct backup_options options = rig_options(rig, "job0", target);
    struct backup_options other = rig_options(rig, "job0", second);
    g_autoptr(GError) error = NULL;
    struct job *job;

    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_null(backup_new(&other, &error));
    g_assert_cmpstr(error->message, ==, "Job ID 'job0' already in use");
    rig_assert_unused(second);
    g_assert_null(rig_end(job));
    rig_assert_unused(target);
    rig_free(rig);
}

/* Steps taken back between creation and start leave nothing. */
static void test_roll_back(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = rig_options(rig, "job0", target);

    for (unsigned activated = 0; activated < 2; activated++) {
        struct job *job = backup_new(&options, NULL);

        g_assert_nonnull(job);
        if (activated) {
            main_loop_call_wait((main_loop_function *)backup_activate, job);
            g_assert_cmpint(rig_pwrite(rig, 1, 0, 4096), ==, 0);
        }
        job_roll_back(job);
        job_unref(job);
        rig_assert_source_quiet(rig);
    }
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- What arrives --------------------------------------------------------------------------- */

static void back_up(struct rig *rig, struct block_node *target)
{
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    rig_backup(rig, &options, 1, &job, &snapshot);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    rig_assert_equal(snapshot, target);
    model_free(snapshot);
    rig_assert_unused(target);
}

static uint64_t allocated(struct rig *rig, const char *name)
{
    g_autofree char *path = test_path(rig->directory, name);

    return test_allocated(path);
}

/*
 * While the target hangs the guest overwrites more than memory holds, without waiting for it. Old
 * data then goes to scratch and from there to the target at most once, and leaves no room taken.
 */
static void test_scratch(void)
{
    struct rig *rig = rig_new(40 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct block_node *scratch = rig_target(rig, "scratch", false);
    struct backup_options options = rig_options(rig, "job0", target);
    struct model *snapshot;
    struct job *job;

    rig_fill(rig);
    uint64_t junk = fault_bytes(target, FAULT_ON_CHANGES);
    options.scratch = BACKUP_SCRATCH_NODE;
    options.scratch_node = scratch;
    options.guest_timeout_s = 0;
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_backup(rig, &options, 1, &job, &snapshot);
    fault_wait_held(target, 1);
    rig_fill(rig);
    g_assert_cmpuint(fault_held(target), >, 0);
    fault_clear(target);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    rig_assert_equal(snapshot, target);
    model_free(snapshot);

    uint64_t kept = fault_bytes(scratch, FAULT_ON(WRITE));
    g_assert_cmpuint(kept, >, 0);
    g_assert_cmpuint(kept, <=, rig->length);
    g_assert_cmpuint(fault_bytes(scratch, FAULT_ON(READ)), <=, kept);
    g_assert_cmpuint(fault_bytes(target, FAULT_ON_CHANGES) - junk, ==, rig->length);
    g_assert_cmpuint(allocated(rig, "scratch"), ==, 0);
    rig_assert_unused(target);
    rig_assert_unused(scratch);
    rig_free(rig);
}

/* Scratch has a maximum: the job fails and says so, and the guest goes on. */
static void test_scratch_max(void)
{
    struct rig *rig = rig_new(40 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = rig_options(rig, "job0", target);
    struct job *job;

    rig_fill(rig);
    options.scratch_max = MIB;
    options.guest_timeout_s = 0;
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    rig_backup(rig, &options, 1, &job, NULL);
    rig_fill(rig);
    g_autofree char *message = rig_end(job);
    g_assert_nonnull(message);
    g_assert_nonnull(strstr(message, "Old data needs more scratch than"));
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}

/* Every other 64 KiB is data; in between are holes, then zeroes that are stored as data. */
static void test_thin(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);
    g_autofree char *zeroes = g_malloc0(64 * KIB);
    uint64_t data = 0;

    for (uint64_t offset = 0; offset < 8 * MIB; offset += 128 * KIB, data += 64 * KIB) {
        g_assert_cmpint(rig_pwrite(rig, 1, offset, 64 * KIB), ==, 0);
    }
    back_up(rig, rig_target(rig, "of-holes", false));
    g_assert_cmpuint(allocated(rig, "of-holes"), <=, data + 64 * KIB);
    for (uint64_t offset = 64 * KIB; offset < 8 * MIB; offset += 128 * KIB) {
        g_assert_cmpint(block_device_pwrite(rig->device, zeroes, offset, 64 * KIB, 0), ==, 0);
    }
    g_assert_cmpuint(allocated(rig, "source"), >=, 8 * MIB);
    back_up(rig, rig_target(rig, "of-zeroes", false));
    g_assert_cmpuint(allocated(rig, "of-zeroes"), <=, data + 64 * KIB);
    back_up(rig, rig_target(rig, "of-junk", true));
    g_assert_cmpuint(allocated(rig, "of-junk"), <=, data + 64 * KIB);
    rig_free(rig);
}

static void test_no_data(void)
{
    struct rig *rig = rig_new(64 * MIB, 1);

    back_up(rig, rig_target(rig, "target", false));
    g_assert_cmpuint(allocated(rig, "target"), ==, 0);
    rig_free(rig);
}

static void assert_same(struct block_node *node, const char *expected, uint64_t length)
{
    g_autofree char *found = g_malloc(length + 1);

    g_assert_cmpint(block_node_pread(node, found, 0, length, 0), ==, 0);
    g_assert_cmpmem(found, length, expected, length);
}

/* A disk of any length, whose last bytes the guest overwrites while the job stands still. */
static void back_up_crooked(uint64_t length)
{
    struct rig *rig = rig_new(length, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct backup_options options = rig_options(rig, "job0", target);
    g_autofree char *old = g_malloc(length + 1);
    uint64_t tail = MIN_OF(length, UINT64_C(700));
    struct job *job;

    for (uint64_t i = 0; i < length; i++) {
        old[i] = (char)(i * 7 + i / 251);
    }
    g_assert_cmpint(block_node_pwrite(rig->source, old, 0, length, 0), ==, 0);
    FAULT(target, .operations = FAULT_ON_ALL & ~FAULT_ON(FLUSH), .hold = true);
    options.max_chunk = 64 * KIB;
    rig_backup(rig, &options, 1, &job, NULL);
    if (length) {
        g_autofree char *fresh = g_strnfill(tail, 'n');

        fault_wait_held(target, 1);
        g_assert_cmpint(block_device_pwrite(rig->device, fresh, length - tail, tail, 0), ==, 0);
        g_assert_cmpint(block_device_write_zeroes(rig->device, length - 1, 1, 0), ==, 0);
    }
    fault_clear(target);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    assert_same(target, old, length);
    rig_assert_unused(target);
    block_node_write_zeroes(rig->source, 0, length, 0); /* what the rig's model knows of */
    rig_free(rig);
}

static void test_crooked(void)
{
    static const uint64_t lengths[] = {
        0,
        1,
        511,
        512,
        513,
        4095,
        4096,
        4097,
        65535,
        65536,
        65537,
        64 * 1024 + 4096 + 1,
        200 * 1000 + 7,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_test_message("length %" PRIu64, lengths[i]);
        back_up_crooked(lengths[i]);
    }
}

static void add_tests(void)
{
    g_test_add_func("/backup/numbers-out-of-range-are-refused", test_numbers);
    g_test_add_func("/backup/nodes-that-do-not-fit-are-refused", test_nodes);
    g_test_add_func("/backup/a-filter-beside-the-guest-is-refused", test_filter_above);
    g_test_add_func("/backup/a-target-in-use-is-refused", test_conflicts);
    g_test_add_func("/backup/a-second-job-of-the-same-name-is-refused", test_duplicate_id);
    g_test_add_func("/backup/a-roll-back-leaves-nothing", test_roll_back);
    g_test_add_func("/backup/scratch/no-guest-waits-and-nothing-is-copied-twice", test_scratch);
    g_test_add_func("/backup/scratch/a-maximum-fails-the-job-alone", test_scratch_max);
    g_test_add_func("/backup/thin-stays-thin", test_thin);
    g_test_add_func("/backup/nothing-stays-nothing", test_no_data);
    g_test_add_func("/backup/any-length-arrives-whole", test_crooked);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
