/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backups of the top layer alone: with the layers below they are the disk, and they hold no more
 * than they need to. And jobs of this kind that fail, are cancelled, paused or drained.
 */
#include "block/align.h"

#include <errno.h>
#include <string.h>

#include "block/drain.h"
#include "block/main-loop.h"
#include "tests/lib/chain-rig.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 5

/* ---- Backup --------------------------------------------------------------------------------- */

static struct backup_options top_backup(struct rig *rig, struct block_node *target)
{
    struct backup_options options = rig_options(rig, "b", target);

    options.sync = BACKUP_SYNC_TOP;
    return options;
}

static struct mirror_options top_mirror(struct rig *rig, struct block_node *target)
{
    struct mirror_options options = rig_mirror_options(rig, "m", target);

    options.sync = MIRROR_SYNC_TOP;
    return options;
}

static void end_well(struct job *job)
{
    g_autofree char *message = rig_end(job);

    g_assert_cmpstr(message, ==, NULL);
}

/* Many guests write while it is copied. */
static void test_backup_beside_writers(gconstpointer data)
{
    const struct chain_shape *shape = data;
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    AUTO(model) snapshot = NULL;
    struct job *job;

    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 20);
    rig_backup(rig, &options, 1, &job, &snapshot);
    end_well(job);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    chain_assert_target(rig, snapshot, target);
    rig_free(rig);
}

/* Nobody writes: nothing is copied that the layer does not have, and progress says so. */
static void test_backup_of_a_quiet_disk(gconstpointer data)
{
    const struct chain_shape *shape = data;
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    uint64_t unit =
        shape->is_based ? 4 * KIB : MAX_OF(chain_layer(target)->limits.cluster_size, 4096u);
    uint64_t expected = chain_allocated(chain_layer(rig->source), unit);
    struct job_info info;
    struct job *job;

    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_CONCLUDED), ==, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, expected);
    job_info_clear(&info);
    end_well(job);
    chain_assert_thrifty(rig, target);
    chain_assert_target(rig, rig->model, target);
    chain_assert_qemu_agrees(rig, shape);
    rig_free(rig);
}

static void test_compressed_backup(void)
{
    const struct chain_shape *shape = &chain_shapes[1];
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct backup_options options = top_backup(rig, chain_layer(target));
    AUTO(model) snapshot = NULL;
    struct job *job;

    options.compress = true;
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    end_well(job);
    rig_stop(rig);
    chain_assert_target(rig, snapshot, target);
    rig_free(rig);
}

static void activate(void *data)
{
    backup_activate(data);
}

/* A backup at its moment, which has not begun to look what there is. */
static struct job *begin_backup(struct rig *rig, const struct backup_options *options)
{
    g_autoptr(GError) error = NULL;
    struct job *job = backup_new(options, &error);

    g_assert_no_error(error);
    AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(activate, job);
    return job;
}

/* What a guest does between the moment and the scan takes nothing away and adds little. */
static void test_guest_before_the_scan(gconstpointer data)
{
    const struct chain_shape *shape = data;
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    struct job *job = begin_backup(rig, &options);
    AUTO(model) snapshot = model_snapshot(rig->model);
    uint64_t half = align_down(model_length(rig->model) / 2, RIG_SECTOR);

    chain_discard(rig, 0, half);
    rig_zero(rig, half, align_down(half / 4, RIG_SECTOR));
    chain_scatter(rig, rig->length, 10);
    g_assert_cmpint(job_start(job, NULL), ==, 0);
    end_well(job);
    chain_assert_target(rig, snapshot, target);
    rig_free(rig);
}

/* Without layers below, top is everything: nothing stale is left in the target. */
static void test_one_layer(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct block_node *other = rig_target(rig, "other", true);
    struct backup_options options = top_backup(rig, target);
    struct mirror_options mirror = rig_mirror_options(rig, "m", other);
    struct job *job;

    g_assert_cmpint(rig_pwrite(rig, 1, 64 * KIB, 64 * KIB), ==, 0);
    rig_backup(rig, &options, 1, &job, NULL);
    end_well(job);
    rig_assert_equal(rig->model, target);
    mirror.sync = MIRROR_SYNC_TOP;
    job = rig_ready_mirror(&mirror);
    rig_complete(job);
    rig_end_well(job);
    rig_assert_unused(rig_follow(rig, other));
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Errors --------------------------------------------------------------------------------- */

struct error_case {
    const char *name;
    bool is_mirror;
    bool is_source;
    enum block_error_policy policy;
};

static const struct error_case error_cases[] = {
    {"backup/source/report", false, true, BLOCK_ERROR_POLICY_REPORT},
    {"backup/source/stop", false, true, BLOCK_ERROR_POLICY_STOP},
    {"backup/source/ignore", false, true, BLOCK_ERROR_POLICY_IGNORE},
    {"backup/target/report", false, false, BLOCK_ERROR_POLICY_REPORT},
    {"backup/target/stop", false, false, BLOCK_ERROR_POLICY_STOP},
    {"backup/target/ignore", false, false, BLOCK_ERROR_POLICY_IGNORE},
    {"mirror/source/report", true, true, BLOCK_ERROR_POLICY_REPORT},
    {"mirror/source/stop", true, true, BLOCK_ERROR_POLICY_STOP},
    {"mirror/source/ignore", true, true, BLOCK_ERROR_POLICY_IGNORE},
    {"mirror/target/report", true, false, BLOCK_ERROR_POLICY_REPORT},
    {"mirror/target/stop", true, false, BLOCK_ERROR_POLICY_STOP},
    {"mirror/target/ignore", true, false, BLOCK_ERROR_POLICY_IGNORE},
};

static struct job *start_with_policy(struct rig *rig, struct block_node *target,
                                     const struct error_case *error_case)
{
    struct backup_options backup = top_backup(rig, target);
    struct mirror_options mirror = top_mirror(rig, target);
    struct job *job = NULL;

    backup.on_source_error = mirror.on_source_error = error_case->policy;
    backup.on_target_error = mirror.on_target_error = error_case->policy;
    if (error_case->is_mirror) {
        return rig_mirror(&mirror);
    }
    rig_backup(rig, &backup, 1, &job, NULL);
    return job;
}

static void end_after_errors(struct job *job, bool is_mirror)
{
    if (is_mirror) {
        g_assert_cmpint(rig_wait_status(job, JOB_STATUS_READY), ==, JOB_STATUS_READY);
        rig_cancel_softly(job);
    }
    rig_end_well(job);
}

/* The source's image cannot be read, its tables neither, when the scan begins; or the target's. */
static void test_errors(gconstpointer data)
{
    const struct error_case *error_case = data;
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);

    chain_reopen(rig);
    AUTO(block_node) file = block_node_find("disk-file");
    struct block_node *failing = error_case->is_source ? file : target;
    FAULT(failing, .operations = error_case->is_source ? FAULT_ON(READ) : FAULT_ON_CHANGES,
          .error_number = EIO);
    struct job *job = start_with_policy(rig, target, error_case);
    if (error_case->policy == BLOCK_ERROR_POLICY_REPORT) {
        rig_end_badly(job, error_case->is_source ? "Could not read source" : "Could not write");
    } else if (error_case->policy == BLOCK_ERROR_POLICY_STOP) {
        g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    } else {
        while (fault_hits(failing) < 3) {
            g_usleep(500);
        }
    }
    fault_clear(failing);
    block_node_unref(STEAL(file));
    if (error_case->policy == BLOCK_ERROR_POLICY_STOP) {
        rig_resume_when_stopped(job);
    }
    if (error_case->policy == BLOCK_ERROR_POLICY_REPORT) {
        rig_assert_unused(target);
    } else {
        end_after_errors(job, error_case->is_mirror);
        chain_assert_target(rig, rig->model, target);
    }
    rig_free(rig);
}

/* ---- Cancelled, paused, drained ------------------------------------------------------------- */

static bool is_in_phase(struct job *job, const char *phase)
{
    struct job_info info;

    job_get_info(job, &info);
    bool is_there = !strcmp(info.phase, phase);
    job_info_clear(&info);
    return is_there;
}

/* A job that has come to read the source's tables, which takes as long as the fault is there. */
static struct job *hold_in_scan(struct rig *rig, struct block_node *target, bool is_mirror,
                                struct block_node **file)
{
    const struct error_case quiet = {.is_mirror = is_mirror};

    chain_reopen(rig);
    *file = block_node_find("disk-file");
    FAULT(*file, .operations = FAULT_ON(READ), .hold = true);
    struct job *job = start_with_policy(rig, target, &quiet);
    fault_wait_held(*file, 1);
    g_assert_true(is_in_phase(job, "scanning"));
    return job;
}

static void test_cancelled_scan(gconstpointer is_mirror)
{
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);
    struct block_node *file;
    struct job *job = hold_in_scan(rig, target, is_mirror, &file);

    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    fault_clear(file);
    block_node_unref(file);
    rig_end_badly(job, "canceled");
    g_assert_cmpuint(chain_allocated(chain_layer(target), 64 * KIB), ==, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

static void *drain_source(void *data)
{
    struct rig *rig = data;
    struct block_node *layer = chain_layer(rig->source);

    block_drain_end(block_drain_begin(&layer, 1, BLOCK_PERM_ALL));
    return NULL;
}

/* A drain waits for the look that goes on, and the scan goes on after it; a pause ends it, too. */
static void test_paused_scan(gconstpointer is_mirror)
{
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);
    struct block_node *file;
    struct job *job = hold_in_scan(rig, target, is_mirror, &file);
    pthread_t thread;

    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    g_assert_cmpint(pthread_create(&thread, NULL, drain_source, rig), ==, 0);
    g_usleep(20000);
    fault_clear(file);
    block_node_unref(file);
    pthread_join(thread, NULL);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    g_assert_true(is_in_phase(job, "scanning"));
    struct block_drain *drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_ALL);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    g_usleep(20000);
    g_assert_true(is_in_phase(job, "scanning"));
    block_drain_end(drain);
    end_after_errors(job, is_mirror);
    chain_assert_target(rig, rig->model, target);
    rig_free(rig);
}

/* While it copies, when it is ready, and when it waits to be finalized. */
static void test_cancelled_later(void)
{
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);
    struct backup_options backup = top_backup(rig, target);
    struct mirror_options mirror = top_mirror(rig, target);
    struct job *job;

    rig_write(rig, 4);
    backup.speed = 64 * KIB;
    rig_backup(rig, &backup, 1, &job, NULL);
    while (!is_in_phase(job, "copying")) {
        g_usleep(500);
    }
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    job = rig_ready_mirror(&mirror);
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    mirror.job_flags |= JOB_MANUAL_FINALIZE;
    job = rig_ready_mirror(&mirror);
    rig_complete(job);
    rig_wait_status(job, JOB_STATUS_PENDING);
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    g_assert_null(chain_layer(target)->backing);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- All of them ----------------------------------------------------------------------------- */

static void add_tests(void)
{
    chain_add_shape_tests("/sync-top/backup", test_backup_beside_writers, 1);
    chain_add_shape_tests("/sync-top/quiet-backup", test_backup_of_a_quiet_disk, 2);
    chain_add_shape_tests("/sync-top/guest-before-scan", test_guest_before_the_scan, 3);
    g_test_add_func("/sync-top/compressed", test_compressed_backup);
    g_test_add_func("/sync-top/one-layer", test_one_layer);
    for (size_t i = 0; i < G_N_ELEMENTS(error_cases); i++) {
        g_autofree char *name = g_strdup_printf("/sync-top/errors/%s", error_cases[i].name);

        g_test_add_data_func(name, &error_cases[i], test_errors);
    }
    g_test_add_data_func("/sync-top/cancelled-scan/backup", NULL, test_cancelled_scan);
    g_test_add_data_func("/sync-top/cancelled-scan/mirror", "", test_cancelled_scan);
    g_test_add_data_func("/sync-top/paused-scan/backup", NULL, test_paused_scan);
    g_test_add_data_func("/sync-top/paused-scan/mirror", "", test_paused_scan);
    g_test_add_func("/sync-top/cancelled-later", test_cancelled_later);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
