/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/scripted-job.h"

#include <errno.h>

#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "tests/lib/event-log.h"

enum order_kind { ORDER_NONE, ORDER_RETURN, ORDER_READY, ORDER_IO_ERROR, ORDER_SLEEP };

struct order {
    enum order_kind kind;
    int result;
    const char *message;
    enum block_error_policy policy;
    bool is_read;
    int64_t deadline_ns;
};

struct script {
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    struct order order; /* until run() takes it up */
    bool woken;
    bool idle;
    bool stubborn;
    bool in_run;
    bool has_run;
    enum block_error_policy last_action;
    const char *held;
    int prepare_result;
    const char *prepare_message;
    int (*prepare)(struct job *job);
    struct block_node *drained;
};

static _Atomic unsigned freed;

/* ORDER_NONE if run() was woken. */
static struct order next_order(struct script *script)
{
    SCOPE_LOCK(&script->lock);
    struct order order;

    script->idle = true;
    pthread_cond_broadcast(&script->changed);
    while (script->order.kind == ORDER_NONE && !(script->woken && !script->stubborn)) {
        pthread_cond_wait(&script->changed, &script->lock);
    }
    script->idle = false;
    order = script->order;
    script->order.kind = ORDER_NONE;
    script->woken = false;
    pthread_cond_broadcast(&script->changed);
    return order;
}

static void meet_error(struct job *job, struct script *script, const struct order *order)
{
    enum block_error_policy action =
        job_io_error(job, order->policy, order->is_read, -order->result);

    SCOPE_LOCK(&script->lock);
    script->last_action = action;
}

static bool is_stubborn(struct script *script)
{
    SCOPE_LOCK(&script->lock);

    return script->stubborn;
}

static int loop(struct job *job, struct script *script, GError **error)
{
    for (;;) {
        struct order order = next_order(script);

        if (order.kind == ORDER_RETURN) {
            if (order.message) {
                block_error(error, -order.result, "%s", order.message);
            }
            return order.result;
        }
        if (order.kind == ORDER_READY) {
            job_set_ready(job);
        } else if (order.kind == ORDER_IO_ERROR) {
            meet_error(job, script, &order);
        } else if (order.kind == ORDER_SLEEP) {
            job_sleep_until(job, order.deadline_ns);
        }
        if (is_stubborn(script)) {
            continue;
        }
        job_pause_point(job);
        if (job_is_cancelled(job)) {
            return -ECANCELED;
        }
        if (job_completion_requested(job) || job_cancel_requested(job)) {
            return 0;
        }
    }
}

static void set_in_run(struct script *script, bool in_run)
{
    SCOPE_LOCK(&script->lock);

    script->in_run = in_run;
    script->has_run = true;
}

static int run(struct job *job, GError **error)
{
    struct script *script = job_state(job);

    set_in_run(script, true);
    int result = loop(job, script, error);
    set_in_run(script, false);
    return result;
}

static void wake(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->woken = true;
    pthread_cond_broadcast(&script->changed);
}

static void report_call(struct job *job, const char *call)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    g_assert_false(script->in_run);
    event_log_call(job_id(job), call);
    while (script->held && g_str_equal(script->held, call)) {
        pthread_cond_wait(&script->changed, &script->lock);
    }
}

static int prepare(struct job *job, GError **error)
{
    struct script *script = job_state(job);

    report_call(job, "prepare");
    if (script->prepare) {
        return script->prepare(job);
    }
    if (script->prepare_message) {
        return block_error(error, -script->prepare_result, "%s", script->prepare_message);
    }
    return script->prepare_result;
}

static void end(struct job *job, const char *call)
{
    struct script *script = job_state(job);

    report_call(job, call);
    if (script->drained) {
        block_drain_end(block_drain_begin(&script->drained, 1, BLOCK_PERM_ALL));
    }
}

static void commit(struct job *job)
{
    end(job, "commit");
}

static void abort_(struct job *job)
{
    end(job, "abort");
}

static void clean(struct job *job)
{
    report_call(job, "clean");
}

static void free_(struct job *job)
{
    struct script *script = job_state(job);

    pthread_mutex_destroy(&script->lock);
    pthread_cond_destroy(&script->changed);
    freed++;
}

#define SCRIPTED                                                                                   \
    .instance_size = sizeof(struct script), .run = run, .wake = wake, .prepare = prepare,          \
    .commit = commit, .abort = abort_, .clean = clean, .free = free_

const struct job_driver scripted_backup = {.type = "backup", .is_block_job = true, SCRIPTED};
const struct job_driver scripted_mirror = {
    .type = "mirror",
    .is_block_job = true,
    .can_complete = true,
    .soft_cancel_completes = true,
    SCRIPTED,
};
const struct job_driver scripted_create = {.type = "create", SCRIPTED};

struct job *scripted_job_new(const struct job_driver *driver, const char *id, unsigned flags,
                             struct job_transaction *transaction)
{
    g_autoptr(GError) error = NULL;
    struct job *job = job_new(driver, id, flags, transaction, &error);

    g_assert_no_error(error);
    struct script *script = job_state(job);
    pthread_mutex_init(&script->lock, NULL);
    pthread_cond_init(&script->changed, NULL);
    return job;
}

void scripted_job_start(struct job *job)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(job_start(job, &error), ==, 0);
    g_assert_no_error(error);
}

static void give_order(struct job *job, struct order order)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    g_assert_cmpint(script->order.kind, ==, ORDER_NONE);
    script->order = order;
    pthread_cond_broadcast(&script->changed);
    while (script->order.kind != ORDER_NONE) {
        pthread_cond_wait(&script->changed, &script->lock);
    }
}

void scripted_return(struct job *job, int result, const char *message)
{
    give_order(job, (struct order){.kind = ORDER_RETURN, .result = result, .message = message});
}

void scripted_ready(struct job *job)
{
    give_order(job, (struct order){.kind = ORDER_READY});
}

void scripted_io_error(struct job *job, enum block_error_policy policy, bool is_read,
                       int error_number)
{
    give_order(job, (struct order){.kind = ORDER_IO_ERROR,
                                   .policy = policy,
                                   .is_read = is_read,
                                   .result = -error_number});
}

void scripted_sleep(struct job *job, int64_t deadline_ns)
{
    give_order(job, (struct order){.kind = ORDER_SLEEP, .deadline_ns = deadline_ns});
}

enum block_error_policy scripted_last_action(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    return script->last_action;
}

void scripted_wait_idle(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    while (!script->idle || (script->woken && !script->stubborn)) {
        pthread_cond_wait(&script->changed, &script->lock);
    }
}

void scripted_make_stubborn(struct job *job)
{
    struct script *script = job_state(job);

    scripted_wait_idle(job);
    SCOPE_LOCK(&script->lock);
    script->stubborn = true;
}

void scripted_hold(struct job *job, const char *call)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->held = call;
}

void scripted_release(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->held = NULL;
    pthread_cond_broadcast(&script->changed);
}

void scripted_set_prepare_result(struct job *job, int result, const char *message)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->prepare_result = result;
    script->prepare_message = message;
}

void scripted_set_prepare(struct job *job, int (*function)(struct job *job))
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->prepare = function;
}

void scripted_wait_woken(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    while (!script->woken) {
        pthread_cond_wait(&script->changed, &script->lock);
    }
    script->woken = false;
}

void scripted_drain_in_end(struct job *job, struct block_node *node)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    script->drained = node;
}

bool scripted_has_run(struct job *job)
{
    struct script *script = job_state(job);
    SCOPE_LOCK(&script->lock);

    return script->has_run;
}

unsigned scripted_freed(void)
{
    return freed;
}
