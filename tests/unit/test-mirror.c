/* SPDX-License-Identifier: BSD-3-Clause */
/* What a mirror accepts, refuses and says; what arrives on its target. */
#include "jobs/mirror.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "tests/lib/disk.h"
#include "tests/lib/event-log.h"
#include "tests/lib/mirror-rig.h"

/* ---- Refusals ------------------------------------------------------------------------------- */

static void test_numbers(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    const struct mirror_options good = rig_mirror_options(rig, "job0", target);
    struct mirror_options bad;

    bad = good, bad.granularity = 256;
    rig_expect_no_mirror(&bad, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    bad = good, bad.granularity = 128 * MIB;
    rig_expect_no_mirror(&bad, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    bad = good, bad.granularity = 4095;
    rig_expect_no_mirror(&bad, "Parameter 'granularity' expects a power of 2");
    bad = good, bad.buf_size = -1;
    rig_expect_no_mirror(&bad, "Invalid parameter 'buf-size'");
    bad = good, bad.speed = -1;
    rig_expect_no_mirror(&bad, "Parameter 'speed' expects a non-negative value");
    bad = good, bad.job_id = "0 job";
    rig_expect_no_mirror(&bad, "Invalid job ID '0 job'");
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_nodes(void)
{
    struct rig *rig = rig_new(MIB, 1);
    g_autofree char *path = test_path(rig->directory, "other");
    test_make_file(path, MIB - 512);
    struct mirror_options options = rig_mirror_options(rig, "job0", rig->source);

    rig_expect_no_mirror(&options, "Can't mirror node into itself");
    options.target = test_open("driver=file,node-name=short,filename=%s", path);
    rig_expect_no_mirror(&options, "Source and target image have different sizes (1048576 and "
                                   "1048064 bytes)");
    rig_assert_unused(options.target);
    test_make_file(path, MIB);
    options.target = test_open("driver=file,node-name=locked,read-only=on,filename=%s", path);
    rig_expect_no_mirror(&options, "Target node 'locked' is read-only");
    rig_assert_unused(options.target);
    options.target = rig->source->file;
    rig_expect_no_mirror(&options, "is busy: node 'source' and block job 'job0' exclude each "
                                   "other");
    options.target = test_open("driver=file,node-name=other,filename=%s", path);
    options.source = rig->source->file;
    rig_expect_no_mirror(&options, "Need a root block node");
    rig_assert_unused(options.target);
    rig_free(rig);
}

static void test_conflicts(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    struct mirror_options other = rig_mirror_options(rig, "job1", target);
    struct block_device *device = block_device_new("vdb", target, NULL);

    g_assert_nonnull(device);
    rig_expect_no_mirror(&options, "Node 'target' is busy: block device 'vdb' and block job 'job0' "
                                   "exclude each other by writing it");
    g_assert_cmpint(block_device_remove(device), ==, 0);
    struct job *job = rig_ready_mirror(&options);
    rig_expect_no_mirror(&other, "Node 'target' is busy: block job 'job0' and block job 'job1'");
    g_assert_null(block_device_new("vdb", target, NULL));
    rig_cancel_softly(job);
    rig_end_well(job);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- What it says ---------------------------------------------------------------------------- */

static void expect_report(struct job *job, uint64_t length, bool ready)
{
    struct job_info info;

    job_get_info(job, &info);
    g_assert_cmpstr(info.type, ==, "mirror");
    g_assert_cmpuint(info.total_progress, ==, length);
    g_assert_cmpuint(info.current_progress, ==, length);
    g_assert_cmpint(info.ready, ==, ready);
    g_assert_true(info.has_actively_synced);
    g_assert_false(info.actively_synced);
    job_info_clear(&info);
}

static struct job *start_to_ready(const struct mirror_options *options)
{
    event_log_clear();
    struct job *job = rig_mirror(options);

    EXPECT("job0.created", "job0.running", "job0.ready", "job0.READY");
    return job;
}

static void test_complete_events(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    options.job_flags = 0;
    struct job *job = start_to_ready(&options);
    g_autofree char *fields = event_log_fields("BLOCK_JOB_READY");
    g_assert_cmpstr(fields, ==, "type=mirror device=job0 len=4194304 offset=4194304 speed=0");
    expect_report(job, 4 * MIB, true);
    rig_complete(job);
    EXPECT("job0.waiting", "job0.pending", "job0.COMPLETED", "job0.concluded", "job0.null");
    job_unref(job);
    rig_assert_equal(rig->model, target);
    rig_assert_unused(rig_follow(rig, target));
    rig_free(rig);
}

static void test_soft_cancel_events(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    struct job *job = start_to_ready(&options);
    rig_cancel_softly(job);
    EXPECT("job0.waiting", "job0.pending", "job0.COMPLETED", "job0.concluded");
    rig_assert_equal(rig->model, target);
    rig_end_well(job);
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_force_cancel_events(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    struct job *job = start_to_ready(&options);
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    EXPECT("job0.aborting", "job0.CANCELLED", "job0.concluded");
    rig_end_badly(job, g_strerror(ECANCELED));
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

/* Before it is ready there is nothing worth keeping, so a soft cancel is one by force. */
static void test_early_soft_cancel(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    event_log_clear();
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    struct job *job = rig_mirror(&options);
    EXPECT("job0.created", "job0.running");
    g_assert_cmpint(job_complete(job, NULL), ==, -EPERM);
    rig_cancel_softly(job);
    EXPECT("job0.aborting", "job0.CANCELLED", "job0.concluded");
    rig_end_badly(job, g_strerror(ECANCELED));
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}

/* A paused mirror that is told to complete does so when it is resumed. */
static void test_complete_while_paused(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);

    rig_fill(rig);
    struct job *job = start_to_ready(&options);
    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    EXPECT("job0.standby");
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, 8192), ==, 0);
    rig_complete(job);
    EXPECT_NOTHING();
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    EXPECT("job0.ready", "job0.waiting", "job0.pending", "job0.COMPLETED", "job0.concluded");
    rig_end_well(job);
    rig_assert_equal(rig->model, target);
    rig_assert_unused(rig_follow(rig, target));
    rig_free(rig);
}

/* ---- What arrives ---------------------------------------------------------------------------- */

/* Mirror and pivot; the target is the disk then, and holds what the model says. */
static void mirror(struct rig *rig, const struct mirror_options *options)
{
    struct job *job = rig_ready_mirror(options);

    rig_complete(job);
    rig_end_well(job);
    rig_assert_equal(rig->model, options->target);
    rig_assert_unused(rig_follow(rig, options->target));
}

static uint64_t allocated(struct rig *rig, const char *name)
{
    g_autofree char *path = test_path(rig->directory, name);

    return test_allocated(path);
}

/* Data on every other 64 KiB, holes in between, and what was there on the target. */
static void test_thin(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);
    struct mirror_options options;

    for (uint64_t offset = 0; offset < 8 * MIB; offset += 128 * KIB) {
        g_assert_cmpint(rig_pwrite(rig, 1, offset, 64 * KIB), ==, 0);
    }
    options = rig_mirror_options(rig, "job0", rig_target(rig, "fresh", false));
    mirror(rig, &options);
    g_assert_cmpuint(allocated(rig, "fresh"), <=, 4 * MIB + 64 * KIB);
    options = rig_mirror_options(rig, "job0", rig_target(rig, "junk", true));
    mirror(rig, &options);
    g_assert_cmpuint(allocated(rig, "junk"), <=, 4 * MIB + 64 * KIB);
    options = rig_mirror_options(rig, "job0", rig_target(rig, "thick", false));
    options.keep_zeroes = true;
    mirror(rig, &options);
    g_assert_cmpuint(allocated(rig, "thick"), >=, 8 * MIB);
    rig_free(rig);
}

static void test_granularities(void)
{
    struct rig *rig = rig_new(2 * MIB + 512, 1);
    unsigned number = 0;

    rig_fill(rig);
    for (uint64_t granularity = MIRROR_GRANULARITY_MIN; granularity <= MIRROR_GRANULARITY_MAX;
         granularity *= 8) {
        for (int64_t buf_size = 1; buf_size < (int64_t)(128 * MIB); buf_size *= 4096) {
            g_autofree char *name = g_strdup_printf("target%u", number++);
            struct mirror_options options =
                rig_mirror_options(rig, "job0", rig_target(rig, name, true));

            options.granularity = granularity;
            options.buf_size = buf_size;
            struct job *job = rig_ready_mirror(&options);
            for (unsigned i = 0; i < 20; i++) {
                struct rig_writer writer = {.rig = rig, .number = 1, .random = rig->random};

                rig_step(&writer);
                rig->random = writer.random;
            }
            rig_complete(job);
            rig_end_well(job);
            rig_assert_equal(rig->model, options.target);
            rig_assert_unused(rig_follow(rig, options.target));
        }
    }
    rig_free(rig);
}

static void test_default_granularity(void)
{
    g_assert_cmpuint(mirror_default_granularity(0), ==, 4 * KIB);
    g_assert_cmpuint(mirror_default_granularity(2 * TIB), ==, 4 * KIB);
    g_assert_cmpuint(mirror_default_granularity(2 * TIB + 8 * KIB), ==, 8 * KIB);
    g_assert_cmpuint(mirror_default_granularity(INT64_MAX), ==, 64 * KIB);
}

/* A disk of any length, on a target that holds other bytes; the last ones are overwritten. */
static void mirror_crooked(uint64_t length)
{
    struct rig *rig = rig_new(length, 1);
    struct mirror_options options =
        rig_mirror_options(rig, "job0", rig_target(rig, "target", true));
    g_autofree char *expected = g_malloc(length + 1);
    uint64_t tail = MIN_OF(length, UINT64_C(700));

    for (uint64_t i = 0; i < length; i++) {
        expected[i] = (char)(i * 7 + i / 251);
    }
    g_assert_cmpint(block_node_pwrite(rig->source, expected, 0, length, 0), ==, 0);
    struct job *job = rig_ready_mirror(&options);
    memset(expected + (length - tail), 'n', tail);
    g_assert_cmpint(
        block_device_pwrite(rig->device, expected + (length - tail), length - tail, tail, 0), ==,
        0);
    rig_cancel_softly(job);
    rig_end_well(job);
    rig_assert_contents(options.target, expected);
    rig_assert_unused(options.target);
    block_node_write_zeroes(rig->source, 0, length, 0); /* what the rig's model knows of */
    rig_free(rig);
}

static void test_crooked(void)
{
    static const uint64_t lengths[] = {
        0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65537, 200 * 1000 + 7,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_test_message("length %" PRIu64, lengths[i]);
        mirror_crooked(lengths[i]);
    }
}

/* With sync none the target keeps what it holds, but for what guests write. */
static void test_none(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    g_autofree char *expected = rig_contents(target);

    rig_fill(rig);
    options.sync = MIRROR_SYNC_NONE;
    event_log_clear();
    struct job *job = start_to_ready(&options);
    g_autofree char *fields = event_log_fields("BLOCK_JOB_READY");
    g_assert_cmpstr(fields, ==, "type=mirror device=job0 len=0 offset=0 speed=0");
    g_assert_cmpint(rig_pwrite(rig, 1, 64 * KIB, 8 * KIB), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(rig->device, 256 * KIB, 4 * KIB, 0), ==, 0);
    rig_cancel_softly(job);
    EXPECT("job0.waiting", "job0.pending", "job0.COMPLETED", "job0.concluded");
    expect_report(job, 12 * KIB, false);
    rig_end_well(job);
    g_assert_cmpint(block_node_pread(rig->source, expected + 64 * KIB, 64 * KIB, 8 * KIB, 0), ==,
                    0);
    memset(expected + 256 * KIB, 0, 4 * KIB);
    rig_assert_contents(target, expected);
    rig_assert_unused(target);
    rig_fill(rig);
    rig_free(rig);
}

/* A node that no device uses is mirrored, too; there is nothing to pivot then. */
static void test_without_device(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *source = rig_target(rig, "junk", true);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    g_autofree char *expected = rig_contents(source);

    options.source = source;
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_end_well(job);
    rig_assert_contents(target, expected);
    rig_assert_unused(source);
    rig_assert_unused(target);
    rig_free(rig);
}

static void add_tests(void)
{
    event_log_open();
    g_test_add_func("/mirror/numbers-out-of-range-are-refused", test_numbers);
    g_test_add_func("/mirror/nodes-that-do-not-fit-are-refused", test_nodes);
    g_test_add_func("/mirror/a-target-in-use-is-refused", test_conflicts);
    g_test_add_func("/mirror/events/complete", test_complete_events);
    g_test_add_func("/mirror/events/soft-cancel", test_soft_cancel_events);
    g_test_add_func("/mirror/events/force-cancel", test_force_cancel_events);
    g_test_add_func("/mirror/events/soft-cancel-before-it-is-ready", test_early_soft_cancel);
    g_test_add_func("/mirror/events/complete-while-paused", test_complete_while_paused);
    g_test_add_func("/mirror/thin-stays-thin-unless-told-otherwise", test_thin);
    g_test_add_func("/mirror/any-granularity-and-memory-will-do", test_granularities);
    g_test_add_func("/mirror/the-default-granularity-bounds-memory", test_default_granularity);
    g_test_add_func("/mirror/any-length-arrives-whole", test_crooked);
    g_test_add_func("/mirror/none-copies-only-what-is-written", test_none);
    g_test_add_func("/mirror/a-node-without-a-device", test_without_device);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
