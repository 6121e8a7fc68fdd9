/* SPDX-License-Identifier: BSD-3-Clause */
/* A job's life: its states, its coordinating thread, its memory. */
#include "jobs/job-internal.h"

#include <errno.h>
#include <stdio.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"

const char *const job_status_names[] = {"undefined", "created",   "running", "paused",
                                        "ready",     "standby",   "waiting", "pending",
                                        "aborting",  "concluded", "null",    NULL};

/* job-internal.h says what it guards. */
static pthread_mutex_t the_job_lock = PTHREAD_MUTEX_INITIALIZER;

/* Jobs whose driver's wake() is called at unlock; each counted in its wakers. Job lock. */
struct wake {
    struct job *job;
    SLIST_ENTRY(wake) entry;
};
SLIST_HEAD(wake_list, wake);
static struct wake_list to_wake = SLIST_HEAD_INITIALIZER(to_wake);

void job_lock(void)
{
    pthread_mutex_lock(&the_job_lock);
}

void job_unlock(void)
{
    struct wake_list woken = to_wake;
    struct wake *wake;

    SLIST_INIT(&to_wake);
    pthread_mutex_unlock(&the_job_lock);
    while ((wake = SLIST_FIRST(&woken))) {
        struct job *job = wake->job;

        SLIST_REMOVE_HEAD(&woken, entry);
        g_free(wake);
        job->driver->wake(job);
        pthread_mutex_lock(&the_job_lock);
        job->wakers--;
        pthread_cond_broadcast(&job->wakeup);
        pthread_mutex_unlock(&the_job_lock);
    }
}

void job_wait_locked(pthread_cond_t *condition)
{
    g_assert(SLIST_EMPTY(&to_wake)); /* or they would be woken by a thread that expects it less */
    pthread_cond_wait(condition, &the_job_lock);
}

int job_wait_until_locked(pthread_cond_t *condition, int64_t deadline_ns)
{
    g_assert(SLIST_EMPTY(&to_wake));
    return clock_cond_wait_until(condition, &the_job_lock, deadline_ns);
}

void job_notify_locked(struct job *job)
{
    job->kicked = true;
    pthread_cond_broadcast(&job->wakeup);
    if ((job->in_run || job->in_prepare) && job->driver->wake) {
        struct wake *wake = g_new(struct wake, 1);

        wake->job = job;
        job->wakers++;
        SLIST_INSERT_HEAD(&to_wake, wake, entry);
    }
}

#define TO(status) (1u << JOB_STATUS_##status)

static const unsigned legal_changes[JOB_STATUS_COUNT] = {
    [JOB_STATUS_UNDEFINED] = TO(CREATED),
    [JOB_STATUS_CREATED] = TO(RUNNING) | TO(ABORTING) | TO(NULL),
    [JOB_STATUS_RUNNING] = TO(PAUSED) | TO(READY) | TO(WAITING) | TO(ABORTING),
    [JOB_STATUS_PAUSED] = TO(RUNNING),
    [JOB_STATUS_READY] = TO(STANDBY) | TO(WAITING) | TO(ABORTING),
    [JOB_STATUS_STANDBY] = TO(READY),
    [JOB_STATUS_WAITING] = TO(PENDING) | TO(ABORTING),
    [JOB_STATUS_PENDING] = TO(CONCLUDED) | TO(ABORTING),
    [JOB_STATUS_ABORTING] = TO(CONCLUDED),
    [JOB_STATUS_CONCLUDED] = TO(NULL),
};

void job_set_status_locked(struct job *job, enum job_status status)
{
    g_assert(legal_changes[job->status] & (1u << status));
    job->status = status;
    event_emit("JOB_STATUS_CHANGE", EVENT_STRING("id", job->id),
               EVENT_STRING("status", job_status_names[status]));
    pthread_cond_broadcast(&job->changed);
}

void job_emit_locked(struct job *job, const char *event, const char *message)
{
    if (!job->driver->is_block_job) {
        return;
    }
    event_emit(event, EVENT_STRING("type", job->driver->type), EVENT_STRING("device", job->id),
               EVENT_INT("len", atomic_load(&job->progress_total)),
               EVENT_INT("offset", atomic_load(&job->progress_current)),
               EVENT_INT("speed", atomic_load(&job->speed)), EVENT_STRING("error", message));
}

struct job *job_ref(struct job *job)
{
    atomic_fetch_add(&job->references, 1);
    return job;
}

void job_unref(struct job *job)
{
    if (!job || atomic_fetch_sub(&job->references, 1) > 1) {
        return;
    }
    g_assert(TAILQ_EMPTY(&job->claims));
    if (job->driver->free) {
        job->driver->free(job);
    }
    job_transaction_unref(job->transaction);
    pthread_cond_destroy(&job->wakeup);
    pthread_cond_destroy(&job->changed);
    guest_waits_unref(job->guest_waits);
    g_free(job->error);
    g_free(job->id);
    g_free(job);
}

struct job *job_alloc(const struct job_driver *driver, const char *id, unsigned flags,
                      struct job_transaction *transaction)
{
    struct job *job = g_malloc0(sizeof(*job) + driver->instance_size);

    atomic_init(&job->references, 1);
    job->driver = driver;
    job->id = g_strdup(id);
    job->flags = flags;
    job->guest_waits = guest_waits_new();
    job->transaction = transaction && transaction->grouped ? job_transaction_ref(transaction)
                                                           : job_transaction_new(true);
    pthread_cond_init(&job->wakeup, NULL);
    pthread_cond_init(&job->changed, NULL);
    TAILQ_INIT(&job->claims);
    return job;
}

/* Nobody is in the driver's wake() afterwards. Lock held, dropped while waiting. */
static void wait_for_wakers_locked(struct job *job)
{
    while (job->wakers > 0) {
        job_wait_locked(&job->wakeup);
    }
}

int job_prepare_locked(struct job *job, GError **error)
{
    if (!job->driver->prepare) {
        return 0;
    }
    job->in_prepare = true;
    job_unlock();
    struct guest_waits *before = guest_waits_enter(job->guest_waits);
    int result = job->driver->prepare(job, error);
    guest_waits_leave(before);
    job_lock();
    job->in_prepare = false;
    atomic_store(&job->phase, NULL);
    wait_for_wakers_locked(job);
    return result;
}

/* Run the driver unless the job was cancelled before. */
static int run_driver(struct job *job, GError **error)
{
    int result = 0;

    job_lock();
    job_pause_locked(job);
    job->in_run = !job->force_cancelled;
    bool run = job->in_run;
    job_unlock();

    if (run) {
        GUEST_WAITS_SCOPE(job->guest_waits);

        result = job->driver->run(job, error);
    }

    job_lock();
    job->in_run = false;
    wait_for_wakers_locked(job);
    job_unlock();
    return result;
}

/* What follows run(), or stands for it if it could not begin: the end, unless others are waited
 * for. */
static void end_run(struct job *job, int result, const char *message)
{
    job_lock();
    job->run_ended = true;
    job->user_paused = false;
    job_update_pause_locked(job);
    atomic_store(&job->phase, NULL);
    pthread_cond_broadcast(&job->changed);
    if (job->force_cancelled) {
        job_fail_locked(job, -ECANCELED, NULL);
    } else if (result < 0) {
        job_fail_locked(job, result, message);
    } else {
        job_set_status_locked(job, JOB_STATUS_WAITING);
    }
    bool settle = job_transaction_claim_locked(job->transaction);
    job_unlock();
    if (settle) {
        job_transaction_settle(job->transaction);
    }
}

static void run_and_settle(struct job *job)
{
    g_autoptr(GError) error = NULL;
    int result = run_driver(job, &error);

    end_run(job, result, error ? error->message : NULL);
}

static void *job_thread(void *data)
{
    struct job *job = data;
    char name[16]; /* the kernel's limit */

    snprintf(name, sizeof(name), "job-%s", job->id);
    pthread_setname_np(pthread_self(), name);
    run_and_settle(job);
    job_unref(job);
    job_lock();
    job_thread_ended_locked();
    job_unlock();
    return NULL;
}

int job_start(struct job *job, GError **error)
{
    job_reap_threads();
    job_lock();
    g_assert(job->status == JOB_STATUS_CREATED);
    job_ref(job);
    int status = job_thread_create_locked(&job->thread, job_thread, job);
    if (status == 0) {
        job->started = true;
        job_set_status_locked(job, JOB_STATUS_RUNNING);
    }
    job_unlock();
    if (status < 0) {
        job_unref(job);
        return block_error_errno(error, -status, "Could not start job '%s'", job->id);
    }
    return 0;
}

void job_start_or_fail(struct job *job)
{
    g_autoptr(GError) error = NULL;
    int status = job_start(job, &error);

    if (status < 0) {
        end_run(job, status, error->message);
    }
}

/* A job that never ran leaves its transaction, whose others may have waited for it only. */
static void leave_unstarted(struct job *job)
{
    job_lock();
    g_assert(job->status == JOB_STATUS_CREATED);
    job->run_ended = true;
    job_transaction_leave_locked(job);
    bool settle = job_transaction_claim_locked(job->transaction);
    job_unlock();
    if (settle) {
        job_transaction_settle(job->transaction);
    }
}

void job_early_fail(struct job *job)
{
    leave_unstarted(job);
    job_clean(job);
    job_lock();
    job_dismiss_locked(job);
    job_unlock();
    job_unref(job);
}

void job_roll_back(struct job *job)
{
    leave_unstarted(job);
    job_lock();
    job->result = -ECANCELED;
    job->error = g_strdup(block_strerror(ECANCELED));
    job_set_status_locked(job, JOB_STATUS_ABORTING);
    job_unlock();
    if (job->driver->abort) {
        GUEST_WAITS_SCOPE(job->guest_waits);

        job->driver->abort(job);
    }
    job_clean(job);
    job_lock();
    job_set_status_locked(job, JOB_STATUS_CONCLUDED);
    job_dismiss_locked(job);
    job_unlock();
    job_unref(job);
}

void *job_state(const struct job *job)
{
    return (void *)job->state;
}

const char *job_id(const struct job *job)
{
    return job->id;
}

const struct job_driver *job_driver_of(const struct job *job)
{
    return job->driver;
}

enum job_status job_get_status(struct job *job)
{
    job_lock();
    enum job_status status = job->status;
    job_unlock();
    return status;
}

void job_set_ready(struct job *job)
{
    job_lock();
    if (job->status == JOB_STATUS_RUNNING) {
        job_set_status_locked(job, JOB_STATUS_READY);
        job_emit_locked(job, "BLOCK_JOB_READY", NULL);
    }
    job_unlock();
}
