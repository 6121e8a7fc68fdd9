/* SPDX-License-Identifier: BSD-3-Clause */
/* Drains of the nodes a job claims. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>

#include "block/drain.h"
#include "tests/lib/event-log.h"
#include "tests/lib/nothing-node.h"
#include "tests/lib/scripted-job.h"

static struct job *job_on(struct block_node *node, const char *id,
                          struct job_transaction *transaction)
{
    struct job *job = scripted_job_new(&scripted_mirror, id, 0, transaction);
    g_autoptr(GError) error = NULL;

    job_claim_node(job, node, BLOCK_PERM_READ, BLOCK_PERM_ALL, &error);
    g_assert_no_error(error);
    return job;
}

static struct block_drain *drain(struct block_node *node)
{
    return block_drain_begin(&node, 1, BLOCK_PERM_ALL);
}

/* A drain on a thread of its own, which may have to wait. */
struct drainer {
    struct block_node *node;
    struct block_drain *drain;
    pthread_t thread;
};

static void *run_drainer(void *data)
{
    struct drainer *drainer = data;

    drainer->drain = drain(drainer->node);
    event_log_call("drain", "begun");
    return NULL;
}

static void drainer_start(struct drainer *drainer, struct block_node *node)
{
    drainer->node = node;
    pthread_create(&drainer->thread, NULL, run_drainer, drainer);
}

static struct block_drain *drainer_join(struct drainer *drainer)
{
    pthread_join(drainer->thread, NULL);
    return drainer->drain;
}

static void cancel(struct job *job)
{
    job_cancel(job, true, true, NULL);
    event_log_clear();
}

static void test_running(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);
    g_autoptr(GError) error = NULL;

    scripted_job_start(job);
    scripted_wait_idle(job);
    struct block_drain *section = drain(node);
    EXPECT("a.created", "a.running", "a.paused");
    g_assert_cmpint(job_user_resume(job, &error), <, 0);
    g_assert_cmpstr(error->message, ==, "Can't resume a job that was not paused");
    block_drain_end(section);
    EXPECT("a.running");
    cancel(job);
}

static void test_ready(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);

    scripted_job_start(job);
    scripted_ready(job);
    struct block_drain *section = drain(node);
    EXPECT("a.created", "a.running", "a.ready", "a.READY", "a.standby");
    job_complete(job, NULL);
    EXPECT_NOTHING();
    block_drain_end(section);
    EXPECT("a.ready", "a.waiting", "a.pending", "a.prepare()", "a.commit()", "a.clean()",
           "a.COMPLETED", "a.concluded", "a.null");
}

static void test_waits_for_the_pause_point(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);
    struct drainer drainer;

    scripted_job_start(job);
    scripted_wait_idle(job);
    scripted_make_stubborn(job);
    drainer_start(&drainer, node);
    while (!job_should_pause(job)) {
        g_thread_yield();
    }
    EXPECT("a.created", "a.running"); /* and the drain has not begun */
    scripted_return(job, 0, NULL);
    block_drain_end(drainer_join(&drainer));
    EXPECT_UNORDERED("drain.begun()", "a.waiting", "a.pending", "a.prepare()", "a.commit()",
                     "a.clean()", "a.COMPLETED", "a.concluded", "a.null");
}

static void test_not_started(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);
    struct block_drain *section = drain(node);

    scripted_job_start(job);
    EXPECT("a.created", "a.running", "a.paused");
    g_assert_false(scripted_has_run(job));
    block_drain_end(section);
    EXPECT("a.running");
    scripted_wait_idle(job);
    cancel(job);
}

static void test_claimed_inside(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    struct block_drain *section = drain(node);
    AUTO(job) job = job_on(node, "a", NULL);

    scripted_job_start(job);
    EXPECT("a.created", "a.running", "a.paused");
    block_drain_end(section);
    EXPECT("a.running");
    cancel(job);
}

static void test_nested(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);

    scripted_job_start(job);
    job_user_pause(job, NULL);
    struct block_drain *outer = drain(node);
    struct block_drain *inner = drain(node);
    EXPECT("a.created", "a.running", "a.paused");
    block_drain_end(outer);
    job_user_resume(job, NULL);
    EXPECT_NOTHING();
    block_drain_end(inner);
    EXPECT("a.running");
    cancel(job);
}

static void test_cancel_waits_for_the_drain(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);

    scripted_job_start(job);
    struct block_drain *section = drain(node);
    EXPECT("a.created", "a.running", "a.paused");
    job_cancel(job, true, false, NULL);
    EXPECT_NOTHING();
    block_drain_end(section);
    EXPECT("a.running", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null");
}

static void test_drains_itself(gconstpointer fail)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);
    const char *call = fail ? "a.abort()" : "a.commit()";

    scripted_drain_in_end(job, node);
    scripted_job_start(job);
    EXPECT("a.created", "a.running");
    scripted_return(job, fail ? -EIO : 0, NULL);
    if (fail) {
        EXPECT("a.aborting", call, "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded",
               "a.null");
    } else {
        EXPECT("a.waiting", "a.pending", "a.prepare()", call, "a.clean()", "a.COMPLETED",
               "a.concluded", "a.null");
    }
}

static void test_drains_its_transaction(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job_transaction) transaction = job_transaction_new(true);
    AUTO(job) a = job_on(node, "a", transaction);
    AUTO(job) b = job_on(node, "b", transaction);

    scripted_drain_in_end(a, node);
    scripted_drain_in_end(b, node);
    scripted_job_start(a);
    scripted_job_start(b);
    event_log_clear();
    scripted_return(a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "a.pending", "b.prepare()", "a.prepare()", "b.commit()",
           "b.clean()", "b.COMPLETED", "b.concluded", "b.null", "a.commit()", "a.clean()",
           "a.COMPLETED", "a.concluded", "a.null");
}

/* A drain does not wait for a finalization, and outlives the job. */
static void test_during_finalization(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) job = job_on(node, "a", NULL);

    scripted_hold(job, "prepare");
    scripted_job_start(job);
    scripted_return(job, 0, NULL);
    EXPECT("a.created", "a.running", "a.waiting", "a.pending", "a.prepare()");
    struct block_drain *section = drain(node);
    scripted_release(job);
    EXPECT("a.commit()", "a.clean()", "a.COMPLETED", "a.concluded", "a.null");
    job_unref(STEAL(job));
    block_drain_end(section);
}

static void test_claims_go_with_the_job(void)
{
    AUTO(block_node) node = nothing_node_new("n");
    AUTO(job) reader = job_on(node, "a", NULL);
    AUTO(job) job = scripted_job_new(&scripted_backup, "b", 0, NULL);
    g_autoptr(GError) error = NULL;

    job_release_nodes(reader);
    g_assert_cmpint(job_claim_node(reader, node, BLOCK_PERM_READ, BLOCK_PERM_READ, &error), ==, 0);
    g_assert_cmpint(job_claim_node(job, node, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &error), ==,
                    -EBUSY);
    g_assert_nonnull(g_strstr_len(error->message, -1, "block job 'a'"));
    job_early_fail(reader);
    g_clear_error(&error);
    g_assert_cmpint(job_claim_node(job, node, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &error), ==, 0);
    job_roll_back(job);
    event_log_clear();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_log_start();
    g_test_add_func("/job-drain/a-running-job-pauses", test_running);
    g_test_add_func("/job-drain/a-ready-job-stands-by", test_ready);
    g_test_add_func("/job-drain/waits-for-the-pause-point", test_waits_for_the_pause_point);
    g_test_add_func("/job-drain/a-job-started-inside-waits", test_not_started);
    g_test_add_func("/job-drain/a-job-created-inside-waits", test_claimed_inside);
    g_test_add_func("/job-drain/nests-with-a-users-pause", test_nested);
    g_test_add_func("/job-drain/holds-a-cancelled-job", test_cancel_waits_for_the_drain);
    g_test_add_data_func("/job-drain/by-its-own-commit", NULL, test_drains_itself);
    g_test_add_data_func("/job-drain/by-its-own-abort", "", test_drains_itself);
    g_test_add_func("/job-drain/by-a-commit-in-its-transaction", test_drains_its_transaction);
    g_test_add_func("/job-drain/outlives-the-job", test_during_finalization);
    g_test_add_func("/job-drain/claims-go-with-the-job", test_claims_go_with_the_job);
    int status = g_test_run();
    job_cancel_all();
    event_log_stop();
    return status;
}
