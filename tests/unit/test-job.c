/* SPDX-License-Identifier: BSD-3-Clause */
/* One job: its states, its events in their order, and what a client can do to it. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>

#include "block/clock.h"
#include "block/error.h"
#include "tests/lib/event-log.h"
#include "tests/lib/scripted-job.h"

static void expect_refused(GError **error, const char *message)
{
    g_assert_nonnull(*error);
    g_assert_cmpstr((*error)->message, ==, message);
    g_clear_error(error);
}

static struct job *start(const struct job_driver *driver, unsigned flags)
{
    struct job *job = scripted_job_new(driver, "a", flags, NULL);

    scripted_job_start(job);
    EXPECT("a.created", "a.running");
    return job;
}

static struct job *start_ready(unsigned flags)
{
    struct job *job = start(&scripted_mirror, flags);

    scripted_ready(job);
    EXPECT("a.ready", "a.READY");
    scripted_wait_idle(job);
    return job;
}

static void pause_job(struct job *job)
{
    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
}

static void expect_gone(struct job *job)
{
    g_assert_cmpint(job_get_status(job), ==, JOB_STATUS_NULL);
    g_assert_null(job_find(job_id(job)));
}

static void check_error(struct job *job, const char *error)
{
    struct job_info info;

    job_get_info(job, &info);
    g_assert_cmpstr(info.error, ==, error);
    job_info_clear(&info);
}

static void test_success(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED",
           "a.concluded", "a.null");
    expect_gone(job);
}

static void test_failure(void)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_DISMISS);

    scripted_return(job, -EIO, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]",
           "a.concluded");
    check_error(job, "Input/output error");
    g_assert_cmpint(job_dismiss(job, NULL), ==, 0);
    EXPECT("a.null");
    expect_gone(job);
    check_error(job, "Input/output error");
}

static void test_failure_with_a_sentence(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_return(job, -EIO, "Could not read 'x'");
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.COMPLETED[Could not read 'x']", "a.concluded",
           "a.null");
}

static void test_prepare_fails(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_set_prepare_result(job, -ENOSPC, "No room to flush");
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.aborting", "a.abort()", "a.clean()",
           "a.COMPLETED[No room to flush]", "a.concluded", "a.null");
}

static void test_no_block_job(void)
{
    AUTO(job) job = start(&scripted_create, JOB_MANUAL_DISMISS | JOB_MANUAL_FINALIZE);

    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending");
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    EXPECT("a.prepare()", "a.commit()", "a.clean()", "a.concluded");
    g_assert_cmpint(job_dismiss(job, NULL), ==, 0);
    EXPECT("a.null");
}

static void test_no_block_job_fails(void)
{
    AUTO(job) job = start(&scripted_create, JOB_MANUAL_DISMISS);

    scripted_io_error(job, BLOCK_ERROR_POLICY_REPORT, false, EIO);
    scripted_return(job, -EINVAL, "Image size must be a multiple of 512 bytes");
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.concluded");
    check_error(job, "Image size must be a multiple of 512 bytes");
    job_dismiss(job, NULL);
    EXPECT("a.null");
}

/* Error policies */

static void check_io_status(struct job *job, enum block_io_status expected, bool paused)
{
    struct job_info info;

    job_get_info(job, &info);
    g_assert_cmpint(info.io_status, ==, expected);
    g_assert_cmpint(info.paused, ==, paused);
    job_info_clear(&info);
}

static void test_policy_report(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_io_error(job, BLOCK_ERROR_POLICY_REPORT, true, EIO);
    scripted_wait_idle(job);
    g_assert_cmpint(scripted_last_action(job), ==, BLOCK_ERROR_POLICY_REPORT);
    check_io_status(job, BLOCK_IO_STATUS_OK, false);
    scripted_return(job, -EIO, NULL);
    EXPECT("a.ERROR:read:report", "a.aborting", "a.abort()", "a.clean()",
           "a.COMPLETED[Input/output error]", "a.concluded", "a.null");
}

static void test_policy_ignore(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_io_error(job, BLOCK_ERROR_POLICY_IGNORE, false, EIO);
    scripted_wait_idle(job);
    g_assert_cmpint(scripted_last_action(job), ==, BLOCK_ERROR_POLICY_IGNORE);
    check_io_status(job, BLOCK_IO_STATUS_OK, false);
    EXPECT("a.ERROR:write:ignore");
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_policy_stop(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_io_error(job, BLOCK_ERROR_POLICY_STOP, false, EIO);
    EXPECT("a.ERROR:write:stop", "a.paused");
    check_io_status(job, BLOCK_IO_STATUS_FAILED, true);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    EXPECT("a.running");
    check_io_status(job, BLOCK_IO_STATUS_OK, false);
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED",
           "a.concluded", "a.null");
}

static void test_policy_enospc(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_io_error(job, BLOCK_ERROR_POLICY_ENOSPC, false, ENOSPC);
    EXPECT("a.ERROR:write:stop", "a.paused");
    check_io_status(job, BLOCK_IO_STATUS_NOSPACE, true);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    EXPECT("a.running");
    scripted_io_error(job, BLOCK_ERROR_POLICY_ENOSPC, false, EIO);
    EXPECT("a.ERROR:write:report");
    check_io_status(job, BLOCK_IO_STATUS_OK, false);
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_first_error_is_kept(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    g_assert_cmpint(job_io_error(job, BLOCK_ERROR_POLICY_STOP, false, ENOSPC), ==,
                    BLOCK_ERROR_POLICY_STOP);
    g_assert_cmpint(job_io_error(job, BLOCK_ERROR_POLICY_STOP, true, EIO), ==,
                    BLOCK_ERROR_POLICY_STOP);
    check_io_status(job, BLOCK_IO_STATUS_NOSPACE, true);
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_no_error_after_a_cancel(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_make_stubborn(job);
    job_cancel(job, true, false, NULL);
    scripted_io_error(job, BLOCK_ERROR_POLICY_STOP, false, EIO);
    scripted_return(job, -EIO, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    g_assert_cmpint(scripted_last_action(job), ==, BLOCK_ERROR_POLICY_REPORT);
}

/* Pauses */

static void test_pause(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(job_user_resume(job, &error), <, 0);
    expect_refused(&error, "Can't resume a job that was not paused");
    pause_job(job);
    EXPECT("a.paused");
    g_assert_true(job_should_pause(job));
    g_assert_cmpint(job_user_pause(job, &error), <, 0);
    expect_refused(&error, "Job is already paused");
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    EXPECT("a.running");
    g_assert_false(job_should_pause(job));
    g_assert_cmpint(job_user_resume(job, &error), <, 0);
    expect_refused(&error, "Can't resume a job that was not paused");
    EXPECT_NOTHING();
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_pause_before_start(void)
{
    AUTO(job) job = scripted_job_new(&scripted_backup, "a", 0, NULL);

    pause_job(job);
    scripted_job_start(job);
    EXPECT("a.created", "a.running", "a.paused");
    g_assert_false(scripted_has_run(job));
    job_user_resume(job, NULL);
    EXPECT("a.running");
    scripted_wait_idle(job);
    g_assert_true(scripted_has_run(job));
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_standby(void)
{
    AUTO(job) job = start_ready(0);

    pause_job(job);
    EXPECT("a.standby");
    job_user_resume(job, NULL);
    EXPECT("a.ready");
    job_cancel(job, true, true, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

/* Cancel */

static void test_cancel(gconstpointer force)
{
    AUTO(job) job = start(&scripted_backup, 0);

    g_assert_cmpint(job_cancel(job, force != NULL, true, NULL), ==, 0);
    expect_gone(job);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    check_error(job, "Operation canceled");
}

static void test_cancel_manual_dismiss(void)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_DISMISS);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(job_cancel(job, false, true, NULL), ==, 0);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded");
    check_error(job, "Operation canceled");
    g_assert_cmpint(job_cancel(job, true, true, &error), ==, -EPERM);
    expect_refused(&error, "Job 'a' in state 'concluded' cannot accept command verb 'cancel'");
    job_dismiss(job, NULL);
    EXPECT("a.null");
}

static void test_cancel_paused(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    g_autoptr(GError) error = NULL;

    pause_job(job);
    EXPECT("a.paused");
    g_assert_cmpint(job_cancel(job, false, true, &error), <, 0);
    expect_refused(&error, "The block job for device 'a' is currently paused");
    EXPECT_NOTHING();
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    EXPECT("a.running", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null");
}

static void test_cancel_standby(void)
{
    AUTO(job) job = start_ready(0);

    pause_job(job);
    EXPECT("a.standby");
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    EXPECT("a.ready", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null");
}

static void test_cancel_pending(gconstpointer wait)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_FINALIZE);

    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.PENDING");
    g_assert_cmpint(job_cancel(job, false, wait != NULL, NULL), ==, 0);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    check_error(job, "Operation canceled");
}

static void test_cancel_before_start(void)
{
    AUTO(job) job = scripted_job_new(&scripted_backup, "a", 0, NULL);

    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    EXPECT("a.created");
    scripted_job_start(job);
    EXPECT("a.running", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null");
    g_assert_false(scripted_has_run(job));
}

static void *cancel_and_wait(void *job)
{
    if (job_cancel(job, true, true, NULL) == 0) { /* else it came too late */
        g_assert_cmpint(job_get_status(job), ==, JOB_STATUS_NULL);
    }
    return NULL;
}

static void test_many_wait_for_a_stuck_job(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    pthread_t threads[4];

    scripted_make_stubborn(job);
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_create(&threads[i], NULL, cancel_and_wait, job);
    }
    job_cancel(job, true, false, NULL);
    EXPECT_NOTHING();
    g_assert_true(job_is_cancelled(job));
    scripted_return(job, 0, NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_cancel_in_prepare(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_hold(job, "prepare");
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()");
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    EXPECT("a.aborting");
    scripted_release(job);
    EXPECT("a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_cancel_in_commit(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    g_autoptr(GError) error = NULL;

    scripted_hold(job, "commit");
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()");
    g_assert_cmpint(job_cancel(job, true, true, &error), ==, -EPERM);
    expect_refused(&error, "Job 'a' in state 'pending' cannot accept command verb 'cancel'");
    scripted_release(job);
    EXPECT("a.clean()", "a.COMPLETED", "a.concluded", "a.null");
}

/* Ready jobs */

static void test_complete(void)
{
    AUTO(job) job = start_ready(0);

    g_assert_cmpint(job_complete(job, NULL), ==, 0);
    g_assert_true(job_completion_requested(job));
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED",
           "a.concluded", "a.null");
}

static void test_complete_in_standby(void)
{
    AUTO(job) job = start_ready(0);

    pause_job(job);
    EXPECT("a.standby");
    g_assert_cmpint(job_complete(job, NULL), ==, 0);
    EXPECT_NOTHING();
    job_user_resume(job, NULL);
    EXPECT("a.ready", "a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()",
           "a.COMPLETED", "a.concluded", "a.null");
}

static void test_complete_refused(void)
{
    AUTO(job) job = start_ready(0);
    g_autoptr(GError) error = NULL;

    scripted_make_stubborn(job);
    job_cancel(job, false, true, NULL);
    g_assert_cmpint(job_complete(job, &error), <, 0);
    expect_refused(&error, "The active block job 'a' cannot be completed");
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED",
           "a.concluded", "a.null");
}

static void test_complete_unknown_to_driver(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    g_autoptr(GError) error = NULL;

    scripted_ready(job);
    EXPECT("a.ready", "a.READY");
    g_assert_cmpint(job_complete(job, &error), <, 0);
    expect_refused(&error, "The active block job 'a' cannot be completed");
    job_cancel(job, false, true, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_soft_cancel_ready(void)
{
    AUTO(job) job = start_ready(0);

    scripted_make_stubborn(job);
    g_assert_cmpint(job_cancel(job, false, true, NULL), ==, 0);
    g_assert_true(job_cancel_requested(job));
    g_assert_false(job_is_cancelled(job));
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED",
           "a.concluded", "a.null");
}

static void test_soft_cancel_not_ready(void)
{
    AUTO(job) job = start(&scripted_mirror, 0);

    g_assert_cmpint(job_cancel(job, false, true, NULL), ==, 0);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_force_cancel_ready(void)
{
    AUTO(job) job = start_ready(0);

    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_ready_twice(void)
{
    AUTO(job) job = start_ready(0);

    scripted_ready(job);
    scripted_wait_idle(job);
    EXPECT_NOTHING();
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

/* Finalization and dismissal */

static void test_manual_finalize(void)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_FINALIZE);
    g_autofree char *fields = NULL;

    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.PENDING");
    fields = event_log_fields("BLOCK_JOB_PENDING");
    g_assert_cmpstr(fields, ==, "type=backup id=a");
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    expect_gone(job);
    EXPECT("a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED", "a.concluded", "a.null");
}

static void *finalize(void *job)
{
    job_finalize(job, NULL);
    return NULL;
}

static void test_finalize_once(void)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_FINALIZE);
    g_autoptr(GError) error = NULL;
    pthread_t thread;

    scripted_hold(job, "prepare");
    scripted_return(job, 0, NULL);
    EXPECT("a.waiting", "a.pending", "a.PENDING");
    pthread_create(&thread, NULL, finalize, job);
    EXPECT("a.prepare()");
    g_assert_cmpint(job_finalize(job, &error), ==, -EPERM);
    expect_refused(&error, "Job 'a' in state 'pending' cannot accept command verb 'finalize'");
    scripted_release(job);
    pthread_join(thread, NULL);
    EXPECT("a.commit()", "a.clean()", "a.COMPLETED", "a.concluded", "a.null");
}

static void test_early_fail(void)
{
    unsigned freed = scripted_freed();
    AUTO(job) job = scripted_job_new(&scripted_backup, "a", JOB_MANUAL_DISMISS, NULL);

    job_early_fail(job);
    EXPECT("a.created", "a.clean()", "a.null");
    expect_gone(job);
    g_assert_cmpuint(scripted_freed(), ==, freed);
    job_unref(STEAL(job));
    g_assert_cmpuint(scripted_freed(), ==, freed + 1);
}

static void test_roll_back(void)
{
    AUTO(job) job = scripted_job_new(&scripted_backup, "a", JOB_MANUAL_DISMISS, NULL);

    job_roll_back(job);
    EXPECT("a.created", "a.aborting", "a.abort()", "a.clean()", "a.concluded", "a.null");
    expect_gone(job);
}

/* Names */

static void test_ids(void)
{
    const char *const invalid[] = {"", "1a", "a b", "-a", "a/b", "#a", "\xc3\xa4"};
    AUTO(job) job = scripted_job_new(&scripted_backup, "a-b._9Z", 0, NULL);
    AUTO(job) again = NULL;
    g_autoptr(GError) error = NULL;

    for (unsigned i = 0; i < G_N_ELEMENTS(invalid); i++) {
        g_autofree char *message = g_strdup_printf("Invalid job ID '%s'", invalid[i]);

        g_assert_null(job_new(&scripted_backup, invalid[i], 0, NULL, &error));
        expect_refused(&error, message);
    }
    g_assert_null(job_new(&scripted_backup, NULL, 0, NULL, &error));
    expect_refused(&error, "Invalid job ID ''");
    g_assert_null(job_new(&scripted_mirror, "a-b._9Z", 0, NULL, &error));
    expect_refused(&error, "Job ID 'a-b._9Z' already in use");
    job_early_fail(job);
    event_log_clear();
    again = scripted_job_new(&scripted_backup, "a-b._9Z", 0, NULL);
    EXPECT("a-b._9Z.created");
    job_early_fail(again);
    event_log_clear();
}

static void test_list(void)
{
    AUTO(job) a = scripted_job_new(&scripted_backup, "a", 0, NULL);
    AUTO(job) b = scripted_job_new(&scripted_backup, "b", 0, NULL);
    AUTO(job) found = job_find("a");
    struct job **list = job_list();

    g_assert_true(found == a);
    g_assert_null(job_find("c"));
    g_assert_true(list[0] == b && list[1] == a && !list[2]);
    job_list_free(list);
    job_early_fail(a);
    job_early_fail(b);
    list = job_list();
    g_assert_null(list[0]);
    job_list_free(list);
    event_log_clear();
}

/* What a job tells */

static void test_event_fields(void)
{
    AUTO(job) job = scripted_job_new(&scripted_mirror, "a", 0, NULL);
    g_autofree char *ready = NULL, *failed = NULL, *completed = NULL;

    job_progress_set_total(job, 1000);
    g_assert_cmpint(job_set_initial_speed(job, 77, NULL), ==, 0);
    scripted_job_start(job);
    job_progress_add(job, 600);
    scripted_ready(job);
    scripted_io_error(job, BLOCK_ERROR_POLICY_IGNORE, true, EIO);
    scripted_wait_idle(job);
    ready = event_log_fields("BLOCK_JOB_READY");
    g_assert_cmpstr(ready, ==, "type=mirror device=a len=1000 offset=600 speed=77");
    failed = event_log_fields("BLOCK_JOB_ERROR");
    g_assert_cmpstr(failed, ==, "device=a operation=read action=ignore");
    job_progress_add_total(job, 50);
    job_progress_add(job, 1);
    scripted_return(job, -EIO, NULL);
    EXPECT("a.created", "a.running", "a.ready", "a.READY", "a.ERROR:read:ignore", "a.aborting",
           "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded", "a.null");
    completed = event_log_fields("BLOCK_JOB_COMPLETED");
    g_assert_cmpstr(completed, ==,
                    "type=mirror device=a len=1050 offset=601 speed=77 error=Input/output error");
}

static void test_info(void)
{
    AUTO(job) job = start(&scripted_backup, JOB_MANUAL_DISMISS);
    struct job_info info;

    scripted_wait_idle(job);
    job_progress_set_total(job, 10);
    job_progress_add(job, 4);
    job_set_phase(job, "copying");
    g_assert_cmpint(job_set_speed(job, 5, NULL), ==, 0);
    g_assert_cmpuint(job_speed(job), ==, 5);
    job_get_info(job, &info);
    g_assert_cmpstr(info.id, ==, "a");
    g_assert_cmpstr(info.type, ==, "backup");
    g_assert_cmpstr(info.phase, ==, "copying");
    g_assert_cmpint(info.status, ==, JOB_STATUS_RUNNING);
    g_assert_cmpuint(info.current_progress, ==, 4);
    g_assert_cmpuint(info.total_progress, ==, 10);
    g_assert_cmpint(info.speed, ==, 5);
    g_assert_null(info.error);
    g_assert_true(info.busy && info.is_block_job && info.auto_finalize);
    g_assert_false(info.paused || info.ready || info.auto_dismiss);
    job_info_clear(&info);
    pause_job(job);
    EXPECT("a.paused");
    job_get_info(job, &info);
    g_assert_true(info.paused && !info.busy);
    job_info_clear(&info);
    job_cancel(job, true, true, NULL);
    job_get_info(job, &info);
    g_assert_false(info.paused || info.busy);
    g_assert_cmpstr(info.phase, ==, "concluded");
    job_info_clear(&info);
    job_dismiss(job, NULL);
    event_log_clear();
}

static void test_speed(void)
{
    AUTO(job) job = start(&scripted_backup, 0);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(job_set_speed(job, -1, &error), ==, -EINVAL);
    expect_refused(&error, "Parameter 'speed' expects a non-negative value");
    g_assert_cmpint(job_set_initial_speed(job, -1, &error), ==, -EINVAL);
    expect_refused(&error, "Parameter 'speed' expects a non-negative value");
    g_assert_cmpuint(job_speed(job), ==, 0);
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

/* Sleeping: each wakes a sleep that would last for ever, or that has not begun yet. */
static void test_sleep(void)
{
    AUTO(job) job = start(&scripted_backup, 0);

    scripted_sleep(job, INT64_MAX);
    job_kick(job);
    scripted_wait_idle(job);
    scripted_sleep(job, INT64_MAX);
    job_set_speed(job, 1, NULL);
    scripted_wait_idle(job);
    scripted_sleep(job, clock_now_ns() + NS_PER_MS);
    scripted_wait_idle(job);
    scripted_sleep(job, INT64_MIN);
    scripted_wait_idle(job);
    scripted_sleep(job, INT64_MAX);
    pause_job(job);
    EXPECT("a.paused");
    job_user_resume(job, NULL);
    EXPECT("a.running");
    scripted_sleep(job, INT64_MAX);
    job_cancel(job, true, true, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
}

static void test_cancel_all(void)
{
    AUTO(job) paused = scripted_job_new(&scripted_backup, "p", 0, NULL);
    AUTO(job) pending = scripted_job_new(&scripted_backup, "q", JOB_MANUAL_FINALIZE, NULL);
    AUTO(job) concluded = scripted_job_new(&scripted_create, "r", JOB_MANUAL_DISMISS, NULL);
    AUTO(job) ready = scripted_job_new(&scripted_mirror, "s", JOB_MANUAL_DISMISS, NULL);
    struct job **list;

    scripted_job_start(paused);
    job_user_pause(paused, NULL);
    scripted_job_start(pending);
    scripted_return(pending, 0, NULL);
    scripted_job_start(concluded);
    scripted_return(concluded, 0, NULL);
    scripted_job_start(ready);
    scripted_ready(ready);
    job_cancel_all();
    list = job_list();
    g_assert_null(list[0]);
    job_list_free(list);
    expect_gone(paused);
    expect_gone(pending);
    expect_gone(concluded);
    expect_gone(ready);
    check_error(ready, "Operation canceled");
    event_log_clear();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_log_start();
    g_test_add_func("/job/success", test_success);
    g_test_add_func("/job/failure-is-reported-before-concluded", test_failure);
    g_test_add_func("/job/failure-keeps-the-drivers-sentence", test_failure_with_a_sentence);
    g_test_add_func("/job/failed-prepare-aborts", test_prepare_fails);
    g_test_add_func("/job/other-jobs-have-no-block-job-events", test_no_block_job);
    g_test_add_func("/job/other-jobs-fail-without-block-job-events", test_no_block_job_fails);
    g_test_add_func("/job/policy/report", test_policy_report);
    g_test_add_func("/job/policy/ignore", test_policy_ignore);
    g_test_add_func("/job/policy/stop-until-resumed", test_policy_stop);
    g_test_add_func("/job/policy/enospc", test_policy_enospc);
    g_test_add_func("/job/policy/first-error-is-kept", test_first_error_is_kept);
    g_test_add_func("/job/policy/no-error-after-a-cancel", test_no_error_after_a_cancel);
    g_test_add_func("/job/pause", test_pause);
    g_test_add_func("/job/pause-before-start", test_pause_before_start);
    g_test_add_func("/job/pause-of-a-ready-job-is-standby", test_standby);
    g_test_add_data_func("/job/cancel/soft", NULL, test_cancel);
    g_test_add_data_func("/job/cancel/force", "", test_cancel);
    g_test_add_func("/job/cancel/manual-dismiss-keeps-the-error", test_cancel_manual_dismiss);
    g_test_add_func("/job/cancel/paused-runs-first", test_cancel_paused);
    g_test_add_func("/job/cancel/standby-is-ready-first", test_cancel_standby);
    g_test_add_data_func("/job/cancel/pending", "", test_cancel_pending);
    g_test_add_data_func("/job/cancel/pending-without-waiting", NULL, test_cancel_pending);
    g_test_add_func("/job/cancel/before-start-never-runs", test_cancel_before_start);
    g_test_add_func("/job/cancel/many-wait-for-a-stuck-job", test_many_wait_for_a_stuck_job);
    g_test_add_func("/job/cancel/in-prepare-aborts", test_cancel_in_prepare);
    g_test_add_func("/job/cancel/in-commit-is-refused", test_cancel_in_commit);
    g_test_add_func("/job/ready/complete", test_complete);
    g_test_add_func("/job/ready/complete-waits-for-resume", test_complete_in_standby);
    g_test_add_func("/job/ready/complete-after-cancel-is-refused", test_complete_refused);
    g_test_add_func("/job/ready/complete-needs-the-driver", test_complete_unknown_to_driver);
    g_test_add_func("/job/ready/soft-cancel-completes", test_soft_cancel_ready);
    g_test_add_func("/job/ready/soft-cancel-before-is-by-force", test_soft_cancel_not_ready);
    g_test_add_func("/job/ready/force-cancel", test_force_cancel_ready);
    g_test_add_func("/job/ready/only-once", test_ready_twice);
    g_test_add_func("/job/finalize/manual", test_manual_finalize);
    g_test_add_func("/job/finalize/only-once", test_finalize_once);
    g_test_add_func("/job/early-fail", test_early_fail);
    g_test_add_func("/job/roll-back", test_roll_back);
    g_test_add_func("/job/ids", test_ids);
    g_test_add_func("/job/list-is-newest-first", test_list);
    g_test_add_func("/job/event-fields", test_event_fields);
    g_test_add_func("/job/info", test_info);
    g_test_add_func("/job/speed", test_speed);
    g_test_add_func("/job/sleep-ends-by-whatever-happens", test_sleep);
    g_test_add_func("/job/cancel-all-leaves-none", test_cancel_all);
    int status = g_test_run();
    job_cancel_all();
    event_log_stop();
    return status;
}
