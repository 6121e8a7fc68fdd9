/* SPDX-License-Identifier: BSD-3-Clause */
/* Every verb in every state: legal or refused with the right words and without effect. */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "tests/lib/event-log.h"
#include "tests/lib/scripted-job.h"

#define NONE     ""
#define ACTIVE   "cancel pause resume set-speed change"
#define IS_READY ACTIVE " complete"

struct state {
    enum job_status status;
    const char *legal;
};

/* Section 3.2 of the QMP surface. */
static const struct state states[] = {
    {JOB_STATUS_CREATED, ACTIVE},   {JOB_STATUS_RUNNING, ACTIVE},
    {JOB_STATUS_PAUSED, ACTIVE},    {JOB_STATUS_READY, IS_READY},
    {JOB_STATUS_STANDBY, IS_READY}, {JOB_STATUS_WAITING, "cancel"},
    {JOB_STATUS_ABORTING, NONE},    {JOB_STATUS_PENDING, "cancel finalize"},
    {JOB_STATUS_NULL, NONE},        {JOB_STATUS_CONCLUDED, "dismiss"},
};

static int user_cancel(struct job *job, GError **error)
{
    return job_cancel(job, true, true, error);
}

static int set_speed(struct job *job, GError **error)
{
    return job_set_speed(job, 1, error);
}

static int change(struct job *job, GError **error)
{
    return job_check_verb(job, JOB_VERB_CHANGE, error);
}

static int (*const verbs[JOB_VERB_COUNT])(struct job *, GError **) = {
    [JOB_VERB_CANCEL] = user_cancel,     [JOB_VERB_PAUSE] = job_user_pause,
    [JOB_VERB_RESUME] = job_user_resume, [JOB_VERB_SET_SPEED] = set_speed,
    [JOB_VERB_COMPLETE] = job_complete,  [JOB_VERB_FINALIZE] = job_finalize,
    [JOB_VERB_DISMISS] = job_dismiss,    [JOB_VERB_CHANGE] = change,
};

/* A job in the state; `other` keeps its transaction open where that takes one. */
struct fixture {
    struct job *job;
    struct job *other;
};

static void finish(struct job *job, enum job_status status)
{
    if (status == JOB_STATUS_ABORTING) {
        scripted_hold(job, "abort");
        scripted_return(job, -EIO, NULL);
        EXPECT("a.aborting", "a.abort()");
    } else if (status == JOB_STATUS_PENDING) {
        scripted_return(job, 0, NULL);
        EXPECT("a.waiting", "a.pending", "a.PENDING");
    } else if (status == JOB_STATUS_WAITING) {
        scripted_return(job, 0, NULL);
        EXPECT("a.waiting");
    } else {
        scripted_return(job, -EIO, NULL);
        EXPECT("a.aborting", "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]",
               "a.concluded");
        if (status == JOB_STATUS_NULL) {
            job_dismiss(job, NULL);
            EXPECT("a.null");
        }
    }
}

static void bring_to(struct job *job, enum job_status status)
{
    scripted_job_start(job);
    EXPECT("a.running");
    if (status == JOB_STATUS_READY || status == JOB_STATUS_STANDBY) {
        scripted_ready(job);
        EXPECT("a.ready", "a.READY");
    }
    if (status == JOB_STATUS_PAUSED || status == JOB_STATUS_STANDBY) {
        job_user_pause(job, NULL);
        EXPECT(status == JOB_STATUS_PAUSED ? "a.paused" : "a.standby");
    }
    if (status > JOB_STATUS_STANDBY) {
        finish(job, status);
    }
}

static void set_up(struct fixture *fixture, enum job_status status)
{
    AUTO(job_transaction) transaction = job_transaction_new(true);
    unsigned flags = JOB_MANUAL_DISMISS | JOB_MANUAL_FINALIZE;

    fixture->other = NULL;
    if (status == JOB_STATUS_WAITING) {
        fixture->other = scripted_job_new(&scripted_backup, "b", 0, transaction);
        scripted_job_start(fixture->other);
        event_log_clear();
    }
    fixture->job = scripted_job_new(&scripted_mirror, "a", flags, transaction);
    EXPECT("a.created");
    if (status != JOB_STATUS_CREATED) {
        bring_to(fixture->job, status);
    }
    g_assert_cmpint(job_get_status(fixture->job), ==, status);
}

static void tear_down(struct fixture *fixture)
{
    if (job_get_status(fixture->job) == JOB_STATUS_CREATED) {
        job_early_fail(fixture->job);
    }
    scripted_release(fixture->job);
    job_cancel_all();
    job_unref(fixture->job);
    job_unref(fixture->other);
    event_log_clear();
}

static void test_refused(const struct state *state)
{
    struct fixture fixture;

    set_up(&fixture, state->status);
    for (unsigned verb = 0; verb < JOB_VERB_COUNT; verb++) {
        g_auto(GStrv) legal = g_strsplit(state->legal, " ", -1);
        g_autofree char *message =
            g_strdup_printf("Job 'a' in state '%s' cannot accept command verb '%s'",
                            job_status_names[state->status], job_verb_names[verb]);
        g_autoptr(GError) error = NULL;

        if (g_strv_contains((const char *const *)legal, job_verb_names[verb])) {
            g_assert_cmpint(job_check_verb(fixture.job, verb, &error), ==, 0);
            g_assert_no_error(error);
            continue;
        }
        g_assert_cmpint(job_check_verb(fixture.job, verb, NULL), ==, -EPERM);
        g_assert_cmpint(verbs[verb](fixture.job, &error), ==, -EPERM);
        g_assert_cmpstr(error->message, ==, message);
        g_assert_cmpint(job_get_status(fixture.job), ==, state->status);
    }
    EXPECT_NOTHING();
    tear_down(&fixture);
}

/* Every legal verb on a job of its own: it is not refused by the state. */
static void test_accepted(const struct state *state)
{
    g_auto(GStrv) legal = g_strsplit(state->legal, " ", -1);

    for (unsigned verb = 0; verb < JOB_VERB_COUNT; verb++) {
        g_autoptr(GError) error = NULL;
        struct fixture fixture;

        if (!g_strv_contains((const char *const *)legal, job_verb_names[verb]) ||
            (verb == JOB_VERB_CANCEL && state->status == JOB_STATUS_CREATED)) {
            continue; /* that one would wait for us to start the job */
        }
        set_up(&fixture, state->status);
        if (verbs[verb](fixture.job, &error) < 0) {
            g_assert_false(g_strrstr(error->message, "cannot accept"));
        }
        tear_down(&fixture);
    }
}

static void test_state(gconstpointer state)
{
    test_refused(state);
    test_accepted(state);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    event_log_start();
    for (unsigned i = 0; i < G_N_ELEMENTS(states); i++) {
        g_autofree char *name =
            g_strdup_printf("/job/verbs/%s", job_status_names[states[i].status]);

        g_test_add_data_func(name, &states[i], test_state);
    }
    int status = g_test_run();
    job_cancel_all();
    event_log_stop();
    return status;
}
