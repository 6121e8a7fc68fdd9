/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/mirror-rig.h"
#include "block/cleanup.h"
#include "tests/lib/disk.h"

struct mirror_options rig_mirror_options(struct rig *rig, const char *id, struct block_node *target)
{
    return (struct mirror_options){
        .job_id = id,
        .source = rig->source,
        .target = target,
        .job_flags = JOB_MANUAL_DISMISS,
    };
}

struct job *rig_mirror(const struct mirror_options *options)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(mirror_start(options, &error), ==, 0);
    g_assert_no_error(error);
    struct job *job = job_find(options->job_id);
    g_assert_nonnull(job);
    return job;
}

struct job *rig_ready_mirror(const struct mirror_options *options)
{
    struct job *job = rig_mirror(options);

    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_READY), ==, JOB_STATUS_READY);
    return job;
}

void rig_expect_no_mirror(const struct mirror_options *options, const char *part)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(mirror_start(options, &error), <, 0);
    g_assert_nonnull(error);
    test_assert_says(error->message, part);
    AUTO(job) job = job_find(options->job_id);
    g_assert_null(job);
}

void rig_complete(struct job *job)
{
    g_autoptr(GError) error = NULL;

    job_complete(job, &error);
    g_assert_no_error(error);
}

void rig_cancel_softly(struct job *job)
{
    g_autoptr(GError) error = NULL;

    job_cancel(job, false, true, &error);
    g_assert_no_error(error);
}

struct block_node *rig_follow(struct rig *rig, struct block_node *target)
{
    AUTO(block_node) root = block_device_root(rig->device);
    struct block_node *old = rig->source;

    g_assert_true(root == target);
    rig->source = target;
    rig_assert_source_quiet(rig);
    g_assert_true(TAILQ_EMPTY(&old->claims));
    return old;
}
