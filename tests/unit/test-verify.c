/* SPDX-License-Identifier: BSD-3-Clause */
/* What a comparison finds, and what it does not take for a difference. */
#include "jobs/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/copy-map.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/disk.h"
#include "tests/lib/verify-rig.h"

/* ---- Equal ----------------------------------------------------------------------------------- */

static void test_equal(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);
    struct block_node *target;

    rig_fill(rig);
    g_assert_cmpint(block_device_write_zeroes(rig->device, 2 * MIB, MIB, 0), ==, 0);
    model_end(rig->model, model_begin(rig->model, MODEL_ZEROES, 1, 2 * MIB, MIB), 0);
    target = verify_rig_copy(rig, "target");
    uint64_t changed = fault_bytes(target, FAULT_ON_CHANGES);
    verify_rig_expect(rig, target, &(struct verify_options){0}, NULL, NULL, 0);
    g_assert_cmpuint(fault_bytes(target, FAULT_ON_CHANGES | FAULT_ON(FLUSH)), ==, changed);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_holes(void)
{
    struct rig *rig = rig_new(64 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);

    verify_rig_expect(rig, target, &(struct verify_options){0}, NULL, NULL, 0);
    g_assert_cmpuint(fault_bytes(target, FAULT_ON(READ)), ==, 0);
    g_assert_cmpuint(fault_bytes(rig->source, FAULT_ON(READ)), ==, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Differences ------------------------------------------------------------------------------
 */

static void test_kinds(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);

    for (uint64_t i = 0; i < 4; i++) { /* a megabyte of data, one of zeroes, and so on */
        g_assert_cmpint(rig_pwrite(rig, 1, 2 * i * MIB, MIB), ==, 0);
    }
    struct block_node *target = verify_rig_copy(rig, "target");
    verify_rig_scribble(target, 1000, 1);                      /* a byte of data */
    verify_rig_scribble(target, MIB - 512, 1024);              /* data, and zeroes beside it */
    verify_rig_scribble(target, 3 * MIB + 4096, 64 * KIB);     /* where both are a hole */
    verify_rig_zero(target, 4 * MIB + 2048, 100 * KIB + 1024); /* data is missing */
    verify_rig_scribble(target, 8 * MIB - 1, 1);               /* the last byte */
    const struct verify_range wanted[] = {
        {512, 512, VERIFY_DATA},
        {MIB - 512, 512, VERIFY_DATA},
        {MIB, 512, VERIFY_SOURCE_ZERO},
        {3 * MIB + 4096, 64 * KIB, VERIFY_SOURCE_ZERO},
        {4 * MIB + 2048, 100 * KIB + 1024, VERIFY_TARGET_ZERO},
        {8 * MIB - 512, 512, VERIFY_SOURCE_ZERO},
    };
    verify_rig_expect(rig, target, &(struct verify_options){0},
                      "Target node 'target' differs from the source in 171008 bytes", wanted,
                      G_N_ELEMENTS(wanted));
    rig_assert_unused(target);
    rig_free(rig);
}

static void expect_length(uint64_t source, uint64_t length, const char *message)
{
    struct rig *rig = rig_new(source, 1);
    g_autofree char *path = test_path(rig->directory, "target");

    rig_fill(rig);
    g_autofree char *contents = rig_contents(rig->source);
    test_make_file(path, length);
    struct block_node *target =
        test_open("driver=fault,node-name=target,file.driver=file,file.filename=%s", path);
    g_assert_cmpint(block_node_pwrite(target, contents, 0, MIN_OF(length, source), 0), ==, 0);
    const struct verify_range wanted[] = {
        {MIN_OF(source, length), MAX_OF(source, length) - MIN_OF(source, length), VERIFY_LENGTH},
    };
    verify_rig_expect(rig, target, &(struct verify_options){0}, message, wanted, 1);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_lengths(void)
{
    expect_length(2 * MIB, 3 * MIB + 512,
                  "Target node 'target' is 3146240 bytes long and the source 2097152");
    expect_length(2 * MIB, MIB + 1536,
                  "Target node 'target' is 1050112 bytes long and the source 2097152");
    expect_length(2 * MIB, 0, "Target node 'target' is 0 bytes long and the source 2097152");
}

static void test_bounded(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct job_info info;

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    for (uint64_t offset = 0; offset < rig->length; offset += 64 * KIB) {
        verify_rig_scribble(target, offset, 512);
    }
    struct job *job =
        verify_rig_start(rig, target, &(struct verify_options){.max_ranges = 5}, NULL);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_cmpuint(info.verify.ranges->len, ==, 5);
    g_assert_cmpuint(info.verify.bytes[VERIFY_DATA], ==, 64 * 512);
    g_assert_cmpuint(info.verify.omitted_bytes, ==, 59 * 512);
    job_info_clear(&info);
    g_free(rig_end(job));
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_second_look(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct block_node *target;

    rig_fill(rig);
    target = verify_rig_copy(rig, "target");
    FAULT(target, .operations = FAULT_ON(READ), .offset = MIB + 77, .bytes = 1, .count = 1,
          .lie = true);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 3 * MIB, .bytes = 1, .count = 1,
          .lie = true);
    verify_rig_expect(rig, target, &(struct verify_options){0}, NULL, NULL, 0);
    g_assert_cmpuint(fault_hits(target), ==, 1);
    g_assert_cmpuint(fault_hits(rig->source), ==, 1);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- The moment -------------------------------------------------------------------------------
 */

static void test_guest_writes(void)
{
    struct rig *rig = rig_new(16 * MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    verify_rig_scribble(target, 5 * MIB, 4096);
    const struct verify_range wanted[] = {{5 * MIB, 4096, VERIFY_DATA}};
    FAULT(target, .operations = FAULT_ON(READ), .skip = 2, .count = 1, .hold = true);
    struct job *job = verify_rig_start(rig, target, &(struct verify_options){0}, NULL);
    fault_wait_held(target, 1);
    rig_write(rig, 4);
    rig_wait_requests(rig, 500);
    fault_clear(target);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    rig_stop(rig);
    verify_rig_end(job, "Target node 'target' differs from the source in 4096 bytes", wanted, 1);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Parts of a disk --------------------------------------------------------------------------
 */

static char *sample(struct rig *rig, struct block_node *target, unsigned percent, uint64_t seed,
                    uint64_t *different)
{
    const struct verify_options options = {
        .sample_percent = percent, .sample_seed = seed, .max_ranges = 1000};
    GString *text = g_string_new(NULL);
    struct job_info info;
    struct job *job = verify_rig_start(rig, target, &options, NULL);

    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    *different = info.verify.bytes[VERIFY_TARGET_ZERO];
    g_assert_cmpuint(info.verify.sample_seed, ==, seed);
    for (guint i = 0; i < info.verify.ranges->len; i++) {
        const struct verify_range *range =
            &g_array_index(info.verify.ranges, struct verify_range, i);

        g_assert_cmpuint(range->offset % VERIFY_SAMPLE_CHUNK, ==, 0);
        g_string_append_printf(text, "%" PRIu64 "+%" PRIu64 " ", range->offset, range->bytes);
    }
    job_info_clear(&info);
    g_free(rig_end(job));
    return g_string_free(text, FALSE);
}

static void test_sample(void)
{
    struct rig *rig = rig_new(16 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    uint64_t different;

    rig_fill(rig); /* all of it differs, so that what is found is what was looked at */
    g_autofree char *first = sample(rig, target, 25, 1, &different);
    g_assert_cmpuint(different, ==, 4 * MIB);
    g_autofree char *again = sample(rig, target, 25, 1, &different);
    g_autofree char *other = sample(rig, target, 25, 2, &different);
    g_assert_cmpuint(different, ==, 4 * MIB);
    g_assert_cmpstr(first, ==, again);
    g_assert_cmpstr(first, !=, other);
    g_free(sample(rig, target, 100, 3, &different));
    g_assert_cmpuint(different, ==, 16 * MIB);
    g_free(sample(rig, target, 1, 3, &different));
    g_assert_cmpuint(different, ==, VERIFY_SAMPLE_CHUNK);
    rig_assert_unused(target);
    rig_free(rig);
}

static struct dirty_bitmap *two_changes(struct rig *rig)
{
    struct dirty_bitmap *changes = dirty_bitmap_new(NULL, rig->length, 64 * KIB, NULL);

    dirty_bitmap_set(changes, MIB, 64 * KIB);
    dirty_bitmap_set(changes, 3 * MIB, 2 * MIB);
    return changes;
}

static void test_changes(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    const struct verify_range wanted[] = {
        {MIB, 64 * KIB, VERIFY_TARGET_ZERO},
        {3 * MIB, 2 * MIB, VERIFY_TARGET_ZERO},
    };

    rig_fill(rig);
    struct job *job = verify_rig_start(rig, target, &(struct verify_options){0}, two_changes(rig));
    verify_rig_end(job, "differs from the source in 2162688 bytes", wanted, 2);

    /* A sample of that: half of its nine chunks. */
    job = verify_rig_start(rig, target, &(struct verify_options){.sample_percent = 50},
                           two_changes(rig));
    struct job_info info;
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    uint64_t found = info.verify.bytes[VERIFY_TARGET_ZERO];
    g_assert_true(found == 5 * VERIFY_SAMPLE_CHUNK || found == 4 * VERIFY_SAMPLE_CHUNK + 64 * KIB);
    job_info_clear(&info);
    g_free(rig_end(job));
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Trouble ----------------------------------------------------------------------------------
 */

static void test_errors_end_it(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    FAULT(target, .operations = FAULT_ON(READ), .offset = MIB, .bytes = 512, .error_number = EIO);
    verify_rig_expect(rig, target, &(struct verify_options){0},
                      "Could not read target node 'target' at offset ", NULL, 0);
    fault_clear(target);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = MIB, .bytes = 512,
          .error_number = EIO);
    verify_rig_expect(rig, target, &(struct verify_options){0},
                      "Could not read source node 'source' at offset ", NULL, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

/* For errors of both sides. */
static struct job *start_with_policy(struct rig *rig, struct block_node *target,
                                     enum block_error_policy policy)
{
    struct backup_options options = rig_options(rig, "job0", target);
    const struct verify_options verify = {0};
    struct job *job;

    options.verify = &verify;
    options.on_source_error = options.on_target_error = policy;
    rig_backup(rig, &options, 1, &job, NULL);
    return job;
}

static void test_errors_stop_it(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    FAULT(target, .operations = FAULT_ON(READ), .offset = MIB, .bytes = 512, .error_number = EIO);
    struct job *job = start_with_policy(rig, target, BLOCK_ERROR_POLICY_STOP);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    fault_clear(target);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    verify_rig_end(job, NULL, NULL, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

/* What cannot be read is no reason not to look at the rest, but it is not equal either. */
static void test_errors_are_ignored(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);
    struct job_info info;

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    verify_rig_scribble(target, 3 * MIB, 512);
    FAULT(target, .operations = FAULT_ON(READ), .offset = MIB, .bytes = 512, .error_number = EIO);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 0, .bytes = 512,
          .error_number = EIO);
    struct job *job = start_with_policy(rig, target, BLOCK_ERROR_POLICY_IGNORE);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_cmpuint(info.verify.bytes[VERIFY_DATA], ==, 512);
    uint64_t unread = info.verify.bytes[VERIFY_UNREADABLE];
    g_assert_cmpuint(unread, >=, 2 * COPY_UNIT);
    g_assert_cmpuint(unread, <=, 2 * MIB);
    job_info_clear(&info);
    g_autofree char *message = rig_end(job);
    g_assert_true(strstr(message, "differs from the source in 512 bytes; "));
    g_assert_true(strstr(message, " bytes were not compared, as one side could not be read there"));
    rig_assert_unused(target);
    rig_free(rig);
}

/* A target that hangs is cut off; a job that is paused goes on where it was. */
static void test_cancel_and_pause(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    FAULT(target, .operations = FAULT_ON(READ), .hold = true);
    struct job *job = verify_rig_start(rig, target, &(struct verify_options){0}, NULL);
    fault_wait_held(target, 1);
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    verify_rig_end(job, "Operation canceled", NULL, 0);
    fault_clear(target);

    FAULT(target, .operations = FAULT_ON(READ), .skip = 1, .hold = true);
    job = verify_rig_start(rig, target, &(struct verify_options){0}, NULL);
    fault_wait_held(target, 1);
    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    fault_clear(target);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    verify_rig_end(job, NULL, NULL, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

/* Who writes the target would make it differ. */
static void test_busy_target(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", false);
    struct block_device *device = block_device_new("vdb", target, NULL);
    const struct verify_options verify = {0};
    struct backup_options options = rig_options(rig, "job0", target);
    g_autoptr(GError) error = NULL;

    options.verify = &verify;
    g_assert_null(backup_new(&options, &error));
    g_assert_cmpstr(error->message, ==,
                    "Node 'target' is busy: block device 'vdb' and block job 'job0' exclude each "
                    "other by writing it");
    g_assert_cmpint(block_device_remove(device), ==, 0);
    rig_assert_unused(target);
    rig_assert_source_quiet(rig);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/verify/equal-disks-are-equal-and-nothing-is-written", test_equal);
    g_test_add_func("/verify/holes-on-both-sides-are-not-read", test_holes);
    g_test_add_func("/verify/each-difference-is-found-to-the-sector", test_kinds);
    g_test_add_func("/verify/another-length-is-a-difference", test_lengths);
    g_test_add_func("/verify/many-differences-are-counted", test_bounded);
    g_test_add_func("/verify/what-is-equal-at-the-second-look-is-equal", test_second_look);
    g_test_add_func("/verify/what-the-guest-writes-meanwhile-is-no-difference", test_guest_writes);
    g_test_add_func("/verify/a-seed-chooses-the-same-sample-again", test_sample);
    g_test_add_func("/verify/only-what-has-changed-is-compared", test_changes);
    g_test_add_func("/verify/an-error-ends-it", test_errors_end_it);
    g_test_add_func("/verify/an-error-stops-it-until-it-is-resumed", test_errors_stop_it);
    g_test_add_func("/verify/what-is-left-out-does-not-pass-for-equal", test_errors_are_ignored);
    g_test_add_func("/verify/it-can-be-cancelled-and-paused", test_cancel_and_pause);
    g_test_add_func("/verify/a-target-that-is-written-is-refused", test_busy_target);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
