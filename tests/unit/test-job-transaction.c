/* SPDX-License-Identifier: BSD-3-Clause */
/* Several jobs that end together. "a" is created first, so it comes after "b" in most lists. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>

#include "tests/lib/event-log.h"
#include "tests/lib/scripted-job.h"

struct pair {
    struct job *a;
    struct job *b;
};

static struct pair pair_new(bool grouped, unsigned a_flags, unsigned b_flags)
{
    AUTO(job_transaction) transaction = job_transaction_new(grouped);
    struct pair pair;

    pair.a = scripted_job_new(&scripted_backup, "a", a_flags, transaction);
    pair.b = scripted_job_new(&scripted_backup, "b", b_flags, transaction);
    EXPECT("a.created", "b.created");
    return pair;
}

static struct pair pair_start(bool grouped, unsigned a_flags, unsigned b_flags)
{
    struct pair pair = pair_new(grouped, a_flags, b_flags);

    scripted_job_start(pair.a);
    scripted_job_start(pair.b);
    EXPECT("a.running", "b.running");
    return pair;
}

static void pair_unref(struct pair *pair)
{
    g_assert_cmpint(job_get_status(pair->a), ==, JOB_STATUS_NULL);
    g_assert_cmpint(job_get_status(pair->b), ==, JOB_STATUS_NULL);
    job_unref(pair->a);
    job_unref(pair->b);
    EXPECT_NOTHING();
}

static void test_individual(void)
{
    struct pair pair = pair_start(false, 0, 0);

    scripted_return(pair.a, -EIO, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded",
           "a.null");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "b.prepare()", "b.commit()", "b.clean()", "b.COMPLETED",
           "b.concluded", "b.null");
    pair_unref(&pair);
}

static void test_success(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "b.prepare()", "a.prepare()", "b.commit()",
           "b.clean()", "b.COMPLETED", "b.concluded", "b.null", "a.commit()", "a.clean()",
           "a.COMPLETED", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_failure_cancels_a_waiting_job(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, -ENOSPC, NULL);
    EXPECT("b.aborting", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null", "b.abort()", "b.clean()", "b.COMPLETED[No space left on device]",
           "b.concluded", "b.null");
    pair_unref(&pair);
}

static void test_failure_cancels_a_running_job(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_make_stubborn(pair.a);
    scripted_return(pair.b, -EIO, NULL);
    EXPECT("b.aborting");
    scripted_return(pair.a, -EIO, "the cancel broke its I/O");
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null",
           "b.abort()", "b.clean()", "b.COMPLETED[Input/output error]", "b.concluded", "b.null");
    pair_unref(&pair);
}

static void test_failure_cancels_a_paused_job(void)
{
    struct pair pair = pair_start(true, 0, 0);

    job_user_pause(pair.a, NULL);
    EXPECT("a.paused");
    scripted_return(pair.b, -EIO, NULL);
    EXPECT("b.aborting", "a.running", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED",
           "a.concluded", "a.null", "b.abort()", "b.clean()", "b.COMPLETED[Input/output error]",
           "b.concluded", "b.null");
    pair_unref(&pair);
}

static void test_failure_before_the_others_start(void)
{
    struct pair pair = pair_new(true, 0, 0);

    scripted_job_start(pair.a);
    scripted_return(pair.a, -EIO, NULL);
    EXPECT("a.running", "a.aborting");
    scripted_job_start(pair.b);
    EXPECT("b.running", "b.aborting", "b.abort()", "b.clean()", "b.CANCELLED", "b.concluded",
           "b.null", "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded",
           "a.null");
    g_assert_false(scripted_has_run(pair.b));
    pair_unref(&pair);
}

static void test_failed_prepare(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_set_prepare_result(pair.a, -EIO, NULL);
    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "b.prepare()", "a.prepare()", "a.aborting",
           "b.aborting", "b.abort()", "b.clean()", "b.CANCELLED", "b.concluded", "b.null",
           "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded", "a.null");
    pair_unref(&pair);
}

/* "a" is the one with auto-finalize=false; both orders of finishing, both targets of finalize. */
static void test_manual_finalize(gconstpointer finalize_other)
{
    struct pair pair = pair_start(true, JOB_MANUAL_FINALIZE, 0);

    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting");
    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting", "b.pending", "a.pending", "a.PENDING");
    g_assert_cmpint(job_finalize(finalize_other ? pair.b : pair.a, NULL), ==, 0);
    EXPECT("b.prepare()", "a.prepare()", "b.commit()", "b.clean()", "b.COMPLETED", "b.concluded",
           "b.null", "a.commit()", "a.clean()", "a.COMPLETED", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_cancel_pending(void)
{
    struct pair pair = pair_start(true, JOB_MANUAL_FINALIZE, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "a.PENDING");
    g_assert_cmpint(job_cancel(pair.b, true, true, NULL), ==, 0);
    EXPECT("b.aborting", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null", "b.abort()", "b.clean()", "b.CANCELLED", "b.concluded", "b.null");
    pair_unref(&pair);
}

static void test_cancel_waiting(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    g_assert_cmpint(job_cancel(pair.a, true, true, NULL), ==, 0);
    EXPECT("a.aborting", "b.aborting", "b.abort()", "b.clean()", "b.CANCELLED", "b.concluded",
           "b.null", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_cancel_running(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    g_assert_cmpint(job_cancel(pair.b, true, true, NULL), ==, 0);
    EXPECT("b.aborting", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null", "b.abort()", "b.clean()", "b.CANCELLED", "b.concluded", "b.null");
    pair_unref(&pair);
}

/* A cancel while the other job is being prepared turns all round; one while it commits none. */
static void test_cancel_in_prepare_of_another(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_hold(pair.b, "prepare");
    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "b.prepare()");
    g_assert_cmpint(job_cancel(pair.a, true, false, NULL), ==, 0);
    EXPECT("a.aborting", "b.aborting");
    scripted_release(pair.b);
    EXPECT("b.abort()", "b.clean()", "b.CANCELLED", "b.concluded", "b.null", "a.abort()",
           "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_cancel_in_commit_of_another(void)
{
    struct pair pair = pair_start(true, 0, 0);

    scripted_hold(pair.b, "commit");
    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "b.prepare()", "a.prepare()", "b.commit()");
    g_assert_cmpint(job_cancel(pair.a, true, true, NULL), ==, -EPERM);
    scripted_release(pair.b);
    EXPECT("b.clean()", "b.COMPLETED", "b.concluded", "b.null", "a.commit()", "a.clean()",
           "a.COMPLETED", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_roll_back(void)
{
    struct pair pair = pair_new(true, 0, 0);

    job_roll_back(pair.b);
    EXPECT("b.aborting", "b.abort()", "b.clean()", "b.concluded", "b.null");
    job_roll_back(pair.a);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.concluded", "a.null");
    pair_unref(&pair);
}

static void test_early_failure_frees_the_others(void)
{
    struct pair pair = pair_new(true, 0, 0);

    scripted_job_start(pair.a);
    scripted_return(pair.a, 0, NULL);
    EXPECT("a.running", "a.waiting");
    job_early_fail(pair.b);
    EXPECT("a.pending", "a.prepare()", "a.commit()", "a.clean()", "a.COMPLETED", "a.concluded",
           "a.null", "b.clean()", "b.null");
    pair_unref(&pair);
}

static void test_dismissal_is_each_jobs_own(void)
{
    struct pair pair = pair_start(true, JOB_MANUAL_DISMISS, 0);

    scripted_return(pair.a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(pair.b, -EIO, NULL);
    EXPECT("b.aborting", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "b.abort()", "b.clean()", "b.COMPLETED[Input/output error]", "b.concluded", "b.null");
    g_assert_cmpint(job_dismiss(pair.a, NULL), ==, 0);
    EXPECT("a.null");
    pair_unref(&pair);
}

static void test_no_late_members(void)
{
    AUTO(job_transaction) transaction = job_transaction_new(true);
    AUTO(job) a = scripted_job_new(&scripted_backup, "a", JOB_MANUAL_FINALIZE, transaction);
    g_autoptr(GError) error = NULL;

    scripted_job_start(a);
    scripted_return(a, 0, NULL);
    EXPECT("a.created", "a.running", "a.waiting", "a.pending", "a.PENDING");
    g_assert_null(job_new(&scripted_backup, "b", 0, transaction, &error));
    g_assert_cmpstr(error->message, ==, "The transaction of job 'b' has already ended");
    g_assert_null(job_find("b"));
    job_cancel(a, true, true, NULL);
    event_log_clear();
}

static int wait_for_cancel(struct job *job)
{
    while (!job_is_cancelled(job)) {
        scripted_wait_woken(job);
    }
    return 0; /* too late */
}

static void *cancel(void *job)
{
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    return NULL;
}

/* A cancel wakes the driver in prepare() and is not outrun by its success. */
static void test_cancel_in_prepare(void)
{
    struct job *job = scripted_job_new(&scripted_backup, "a", 0, NULL);
    pthread_t thread;

    scripted_set_prepare(job, wait_for_cancel);
    scripted_job_start(job);
    scripted_return(job, 0, NULL);
    EXPECT("a.created", "a.running", "a.waiting", "a.pending", "a.prepare()");
    pthread_create(&thread, NULL, cancel, job);
    pthread_join(thread, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded", "a.null");
    job_unref(job);
}

static int meet_error(struct job *job)
{
    g_assert_cmpint(job_io_error(job, BLOCK_ERROR_POLICY_STOP, false, EIO), ==,
                    BLOCK_ERROR_POLICY_REPORT);
    g_assert_false(job_should_pause(job));
    return -EIO;
}

static void test_error_in_prepare(void)
{
    struct job *job = scripted_job_new(&scripted_backup, "a", 0, NULL);

    scripted_set_prepare(job, meet_error);
    scripted_job_start(job);
    scripted_return(job, 0, NULL);
    EXPECT("a.created", "a.running", "a.waiting", "a.pending", "a.prepare()",
           "a.ERROR:write:report", "a.aborting", "a.abort()", "a.clean()",
           "a.COMPLETED[Input/output error]", "a.concluded", "a.null");
    job_unref(job);
}

static void *finalize(void *job)
{
    job_finalize(job, NULL);
    return NULL;
}

/* Two clients finalize the two members at once: each callback runs once. */
static void test_finalize_race(void)
{
    for (unsigned i = 0; i < 50; i++) {
        struct pair pair = pair_start(true, JOB_MANUAL_FINALIZE, JOB_MANUAL_FINALIZE);
        pthread_t thread;

        scripted_return(pair.a, 0, NULL);
        scripted_return(pair.b, 0, NULL);
        EXPECT_UNORDERED("a.waiting", "b.waiting", "b.pending", "b.PENDING", "a.pending",
                         "a.PENDING");
        pthread_create(&thread, NULL, finalize, pair.a);
        finalize(pair.b);
        pthread_join(thread, NULL);
        EXPECT("b.prepare()", "a.prepare()", "b.commit()", "b.clean()", "b.COMPLETED",
               "b.concluded", "b.null", "a.commit()", "a.clean()", "a.COMPLETED", "a.concluded",
               "a.null");
        pair_unref(&pair);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_log_start();
    g_test_add_func("/job-transaction/individual-jobs-are-independent", test_individual);
    g_test_add_func("/job-transaction/success-together", test_success);
    g_test_add_func("/job-transaction/failure-cancels-a-waiting-job",
                    test_failure_cancels_a_waiting_job);
    g_test_add_func("/job-transaction/failure-cancels-a-running-job",
                    test_failure_cancels_a_running_job);
    g_test_add_func("/job-transaction/failure-cancels-a-paused-job",
                    test_failure_cancels_a_paused_job);
    g_test_add_func("/job-transaction/failure-before-the-others-start",
                    test_failure_before_the_others_start);
    g_test_add_func("/job-transaction/failed-prepare-aborts-all", test_failed_prepare);
    g_test_add_data_func("/job-transaction/manual-finalize", NULL, test_manual_finalize);
    g_test_add_data_func("/job-transaction/manual-finalize-by-another", "", test_manual_finalize);
    g_test_add_func("/job-transaction/cancel-pending", test_cancel_pending);
    g_test_add_func("/job-transaction/cancel-waiting", test_cancel_waiting);
    g_test_add_func("/job-transaction/cancel-running", test_cancel_running);
    g_test_add_func("/job-transaction/cancel-in-prepare-of-another",
                    test_cancel_in_prepare_of_another);
    g_test_add_func("/job-transaction/cancel-in-prepare", test_cancel_in_prepare);
    g_test_add_func("/job-transaction/an-error-in-prepare-cannot-stop-the-job",
                    test_error_in_prepare);
    g_test_add_func("/job-transaction/cancel-in-commit-of-another",
                    test_cancel_in_commit_of_another);
    g_test_add_func("/job-transaction/roll-back", test_roll_back);
    g_test_add_func("/job-transaction/early-failure-frees-the-others",
                    test_early_failure_frees_the_others);
    g_test_add_func("/job-transaction/dismissal-is-each-jobs-own", test_dismissal_is_each_jobs_own);
    g_test_add_func("/job-transaction/no-late-members", test_no_late_members);
    g_test_add_func("/job-transaction/finalize-race", test_finalize_race);
    int status = g_test_run();
    job_cancel_all();
    event_log_stop();
    return status;
}
