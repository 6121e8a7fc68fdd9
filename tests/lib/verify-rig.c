/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/verify-rig.h"

#include <inttypes.h>

#include "block/align.h"
#include "block/drain.h"
#include "block/main-loop.h"

struct block_node *verify_rig_copy(struct rig *rig, const char *name)
{
    struct block_node *target = rig_target(rig, name, false);
    struct backup_options options = rig_options(rig, "copy", target);
    struct job *job;

    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_null(rig_end(job));
    return target;
}

void verify_rig_scribble(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree char *buffer = g_malloc(bytes);

    g_assert_cmpint(block_node_pread(node, buffer, offset, bytes, 0), ==, 0);
    for (uint64_t i = 0; i < bytes; i++) {
        buffer[i] ^= (char)0xff;
    }
    g_assert_cmpint(block_node_pwrite(node, buffer, offset, bytes, 0), ==, 0);
}

void verify_rig_zero(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_assert_cmpint(block_node_write_zeroes(node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
}

struct job *verify_rig_start(struct rig *rig, struct block_node *target,
                             const struct verify_options *verify, struct dirty_bitmap *changes)
{
    struct backup_options options = rig_options(rig, "job0", target);
    g_autoptr(GError) error = NULL;

    options.verify = verify;
    options.sync = changes ? BACKUP_SYNC_BITMAP : BACKUP_SYNC_FULL;
    struct job *job = backup_new(&options, &error);
    g_assert_no_error(error);
    if (changes) {
        backup_limit_to(job, changes);
    }
    struct block_drain *drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait((main_loop_function *)backup_activate, job);
    block_drain_end(drain);
    job_start(job, &error);
    g_assert_no_error(error);
    return job;
}

static void expect_ranges(const struct verify_report *report, const struct verify_range *wanted,
                          size_t count)
{
    for (guint i = 0; i < report->ranges->len; i++) {
        const struct verify_range *range = &g_array_index(report->ranges, struct verify_range, i);

        g_test_message("%" PRIu64 "+%" PRIu64 " %s", range->offset, range->bytes,
                       verify_kind_names[range->kind]);
    }
    g_assert_cmpuint(report->ranges->len, ==, count);
    for (size_t i = 0; i < count; i++) {
        const struct verify_range *range = &g_array_index(report->ranges, struct verify_range, i);

        g_assert_cmpuint(range->offset, ==, wanted[i].offset);
        g_assert_cmpuint(range->bytes, ==, wanted[i].bytes);
        g_assert_cmpint(range->kind, ==, wanted[i].kind);
    }
}

void verify_rig_end(struct job *job, const char *message, const struct verify_range *wanted,
                    size_t count)
{
    struct job_info info;

    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_true(info.has_verify);
    expect_ranges(&info.verify, wanted, count);
    job_info_clear(&info);
    if (message) {
        rig_end_badly(job, message);
    } else {
        rig_end_well(job);
    }
}

void verify_rig_expect(struct rig *rig, struct block_node *target,
                       const struct verify_options *options, const char *message,
                       const struct verify_range *wanted, size_t count)
{
    verify_rig_end(verify_rig_start(rig, target, options, NULL), message, wanted, count);
}
