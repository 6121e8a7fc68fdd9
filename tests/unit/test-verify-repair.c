/* SPDX-License-Identifier: BSD-3-Clause */
/* A comparison that repairs: afterwards the target is what the disk was at the moment. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/copy-map.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/disk.h"
#include "tests/lib/verify-rig.h"

static const struct verify_options repair = {.repair = true};

static uint64_t repaired_bytes(struct job *job)
{
    struct job_info info;

    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    uint64_t bytes = info.verify.repaired_bytes;
    job_info_clear(&info);
    return bytes;
}

static void test_equal_afterwards(void)
{
    struct rig *rig = rig_new(8 * MIB, 1);

    for (uint64_t i = 0; i < 4; i++) {
        g_assert_cmpint(rig_pwrite(rig, 1, 2 * i * MIB, MIB), ==, 0);
    }
    struct block_node *target = verify_rig_copy(rig, "target");
    verify_rig_scribble(target, 1000, 1);
    verify_rig_scribble(target, 3 * MIB, 128 * KIB);
    verify_rig_zero(target, 4 * MIB + 512, 512);
    const struct verify_range wanted[] = {
        {512, 512, VERIFY_DATA},
        {3 * MIB, 128 * KIB, VERIFY_SOURCE_ZERO},
        {4 * MIB + 512, 512, VERIFY_TARGET_ZERO},
    };
    uint64_t written = fault_bytes(target, FAULT_ON(WRITE));
    struct job *job = verify_rig_start(rig, target, &repair, NULL);
    g_assert_cmpuint(repaired_bytes(job), ==, 128 * KIB + 2 * COPY_UNIT);
    verify_rig_end(job, NULL, wanted, G_N_ELEMENTS(wanted));
    g_assert_cmpuint(fault_bytes(target, FAULT_ON(WRITE)) - written, ==, 2 * COPY_UNIT);
    rig_assert_equal(rig->model, target);
    verify_rig_expect(rig, target, &repair, NULL, NULL, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

/* What the disk held at the moment, whatever a guest has written there since. */
static void test_the_moment(void)
{
    struct rig *rig = rig_new(4 * MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    struct model *snapshot = model_snapshot(rig->model);
    verify_rig_scribble(target, 2 * MIB, 64 * KIB);
    const struct verify_range wanted[] = {{2 * MIB, 64 * KIB, VERIFY_DATA}};
    FAULT(target, .operations = FAULT_ON(READ), .hold = true);
    struct job *job = verify_rig_start(rig, target, &repair, NULL);
    fault_wait_held(target, 1);
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, 2 * MIB), ==, 0);
    fault_clear(target);
    verify_rig_end(job, NULL, wanted, 1);
    rig_assert_equal(snapshot, target);
    model_free(snapshot);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_does_not_keep(void)
{
    struct rig *rig = rig_new(MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    const struct verify_range wanted[] = {{512 * KIB, 512, VERIFY_DATA}};
    FAULT(target, .operations = FAULT_ON(READ), .offset = 512 * KIB, .bytes = 1, .lie = true);
    verify_rig_expect(rig, target, &repair,
                      "Could not compare with, or repair, target node 'target' at offset ", wanted,
                      1);
    rig_assert_unused(target);
    rig_free(rig);
}

/* A write that fails once does not count as a repair, and the range is reported once. */
static void test_write_fails(void)
{
    struct rig *rig = rig_new(MIB, 1);

    rig_fill(rig);
    struct block_node *target = verify_rig_copy(rig, "target");
    struct backup_options options = rig_options(rig, "job0", target);
    const struct verify_range wanted[] = {{4096, 512, VERIFY_DATA}};
    struct job *job;
    options.verify = &repair;
    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    verify_rig_scribble(target, 4096, 512);
    FAULT(target, .operations = FAULT_ON_CHANGES, .count = 1, .error_number = ENOSPC);
    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    g_assert_cmpuint(repaired_bytes(job), ==, COPY_UNIT);
    verify_rig_end(job, NULL, wanted, 1);
    rig_assert_equal(rig->model, target);
    rig_assert_unused(target);
    rig_free(rig);
}

static void expect_refused(struct rig *rig, struct block_node *target, const char *message)
{
    struct backup_options options = rig_options(rig, "job0", target);
    g_autoptr(GError) error = NULL;

    options.verify = &repair;
    g_assert_null(backup_new(&options, &error));
    g_assert_cmpstr(error->message, ==, message);
}

static void test_refused(void)
{
    struct rig *rig = rig_new(MIB, 1);
    g_autofree char *path = test_path(rig->directory, "target");
    test_make_file(path, 2 * MIB);
    struct block_node *target =
        test_open("driver=fault,node-name=target,file.driver=file,file.filename=%s", path);

    expect_refused(rig, target, "Source and target image have different sizes");
    rig_assert_unused(target);
    target = test_open("driver=file,node-name=target,read-only=on,filename=%s", path);
    expect_refused(rig, target, "Target node 'target' is read-only");
    rig_assert_unused(target);
    rig_assert_source_quiet(rig);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/verify-repair/the-target-is-equal-afterwards", test_equal_afterwards);
    g_test_add_func("/verify-repair/it-is-what-the-disk-was-at-the-moment", test_the_moment);
    g_test_add_func("/verify-repair/a-target-that-does-not-keep-it-fails", test_does_not_keep);
    g_test_add_func("/verify-repair/a-write-that-failed-is-no-repair", test_write_fails);
    g_test_add_func("/verify-repair/what-cannot-be-repaired-is-refused", test_refused);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
