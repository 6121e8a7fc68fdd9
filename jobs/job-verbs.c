/* SPDX-License-Identifier: BSD-3-Clause */
/* The verbs a client gives a job, and when they are legal. */
#include <errno.h>

#include "block/error.h"
#include "jobs/job-internal.h"

const char *const job_verb_names[] = {"cancel",   "pause",   "resume", "set-speed", "complete",
                                      "finalize", "dismiss", "change", NULL};

#define IN(status) (1u << JOB_STATUS_##status)
#define IN_ACTIVE  (IN(CREATED) | IN(RUNNING) | IN(PAUSED) | IN(READY) | IN(STANDBY))

static const unsigned legal_states[JOB_VERB_COUNT] = {
    [JOB_VERB_CANCEL] = IN_ACTIVE | IN(WAITING) | IN(PENDING),
    [JOB_VERB_PAUSE] = IN_ACTIVE,
    [JOB_VERB_RESUME] = IN_ACTIVE,
    [JOB_VERB_SET_SPEED] = IN_ACTIVE,
    [JOB_VERB_COMPLETE] = IN(READY) | IN(STANDBY),
    [JOB_VERB_FINALIZE] = IN(PENDING),
    [JOB_VERB_DISMISS] = IN(CONCLUDED),
    [JOB_VERB_CHANGE] = IN_ACTIVE,
};

/* PENDING hides that the finalization has begun, or cannot be turned round any more. */
static bool is_too_late_locked(const struct job *job, enum job_verb verb)
{
    return (verb == JOB_VERB_FINALIZE && job->transaction->settling) ||
           (verb == JOB_VERB_CANCEL && job->transaction->committing);
}

int job_check_verb_locked(struct job *job, enum job_verb verb, GError **error)
{
    if (legal_states[verb] & (1u << job->status) && !is_too_late_locked(job, verb)) {
        return 0;
    }
    return block_error(error, EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'",
                       job->id, job_status_names[job->status], job_verb_names[verb]);
}

int job_check_verb(struct job *job, enum job_verb verb, GError **error)
{
    job_lock();
    int status = job_check_verb_locked(job, verb, error);
    job_unlock();
    return status;
}

static int pause_locked(struct job *job, GError **error)
{
    int status = job_check_verb_locked(job, JOB_VERB_PAUSE, error);

    if (status < 0) {
        return status;
    }
    if (job->user_paused) {
        return block_error(error, EBUSY, "Job is already paused");
    }
    job->user_paused = true;
    job_update_pause_locked(job);
    job_notify_locked(job);
    return 0;
}

int job_user_pause(struct job *job, GError **error)
{
    job_lock();
    int status = pause_locked(job, error);
    job_unlock();
    return status;
}

static int resume_locked(struct job *job, GError **error)
{
    int status = job_check_verb_locked(job, JOB_VERB_RESUME, error);

    if (status < 0) {
        return status;
    }
    if (!job->user_paused) {
        return block_error(error, EINVAL, "Can't resume a job that was not paused");
    }
    job->io_status = BLOCK_IO_STATUS_OK;
    job->user_paused = false;
    job_update_pause_locked(job);
    job_notify_locked(job);
    return 0;
}

int job_user_resume(struct job *job, GError **error)
{
    job_lock();
    int status = resume_locked(job, error);
    job_unlock();
    return status;
}

/* True in *end_it if the job is to be waited for. */
static int cancel_locked(struct job *job, bool force, bool *end_it, GError **error)
{
    bool ready = job->status == JOB_STATUS_READY || job->status == JOB_STATUS_STANDBY;

    if (!force && job->user_paused) {
        return block_error(error, EBUSY, "The block job for device '%s' is currently paused",
                           job->id);
    }
    int status = job_check_verb_locked(job, JOB_VERB_CANCEL, error);
    if (status < 0) {
        return status;
    }
    *end_it = force || !job->driver->soft_cancel_completes || !ready;
    if (*end_it) {
        job_force_cancel_locked(job);
    } else {
        atomic_store(&job->soft_cancelled, true);
        job_notify_locked(job);
    }
    return 0;
}

static void wait_until_concluded(struct job *job)
{
    job_lock();
    while (!job_is_concluded_locked(job)) {
        job_wait_locked(&job->changed);
    }
    job_unlock();
}

int job_cancel(struct job *job, bool force, bool wait, GError **error)
{
    bool end_it = false;

    job_lock();
    int status = cancel_locked(job, force, &end_it, error);
    bool settle = end_it && job_transaction_claim_locked(job->transaction);
    job_unlock();
    if (settle && wait) {
        job_transaction_settle(job->transaction);
    } else if (settle) {
        job_transaction_settle_elsewhere(job->transaction);
    }
    if (end_it && wait) {
        wait_until_concluded(job);
    }
    return status;
}

static int complete_locked(struct job *job, GError **error)
{
    int status = job_check_verb_locked(job, JOB_VERB_COMPLETE, error);

    if (status < 0) {
        return status;
    }
    if (!job->driver->can_complete || job_cancel_requested(job)) {
        return block_error(error, EINVAL, "The active block job '%s' cannot be completed", job->id);
    }
    atomic_store(&job->completion_requested, true);
    job_notify_locked(job);
    return 0;
}

int job_complete(struct job *job, GError **error)
{
    job_lock();
    int status = complete_locked(job, error);
    job_unlock();
    return status;
}

int job_finalize(struct job *job, GError **error)
{
    bool settle = false;

    job_lock();
    int status = job_check_verb_locked(job, JOB_VERB_FINALIZE, error);
    if (status == 0) {
        job->transaction->finalize_asked = true;
        settle = job_transaction_claim_locked(job->transaction);
    }
    job_unlock();
    if (settle) {
        job_transaction_settle(job->transaction);
    }
    return status;
}

int job_dismiss(struct job *job, GError **error)
{
    job_lock();
    int status = job_check_verb_locked(job, JOB_VERB_DISMISS, error);
    if (status == 0) {
        job_dismiss_locked(job);
    }
    job_unlock();
    if (status == 0) {
        job_unref(job); /* the list's */
    }
    return status;
}

int job_set_initial_speed(struct job *job, int64_t speed, GError **error)
{
    if (speed < 0) {
        return block_error(error, EINVAL, "Parameter 'speed' expects a non-negative value");
    }
    atomic_store(&job->speed, speed);
    return 0;
}

int job_set_speed(struct job *job, int64_t speed, GError **error)
{
    job_lock();
    int status = job_check_verb_locked(job, JOB_VERB_SET_SPEED, error);
    if (status == 0) {
        status = job_set_initial_speed(job, speed, error);
    }
    if (status == 0) {
        job_notify_locked(job);
    }
    job_unlock();
    return status;
}

int job_set_initial_guest_latency(struct job *job, int64_t latency_ns, GError **error)
{
    if (latency_ns < 0) {
        return block_error(error, EINVAL, "Parameter 'guest-latency' expects a non-negative value");
    }
    atomic_store(&job->guest_latency_ns, (uint64_t)latency_ns);
    return 0;
}

static int set_guest_latency_locked(struct job *job, int64_t latency_ns, GError **error)
{
    int status = job_check_verb_locked(job, JOB_VERB_SET_SPEED, error);

    if (status == 0 && !job->has_guest) {
        status = block_error(error, ENOTSUP,
                             "Job '%s' does not copy beside a guest: there is no latency that it "
                             "could keep",
                             job->id);
    }
    return status == 0 ? job_set_initial_guest_latency(job, latency_ns, error) : status;
}

int job_set_guest_latency(struct job *job, int64_t latency_ns, GError **error)
{
    job_lock();
    int status = set_guest_latency_locked(job, latency_ns, error);
    if (status == 0) {
        job_notify_locked(job);
    }
    job_unlock();
    return status;
}

bool job_is_cancelled(struct job *job)
{
    return atomic_load(&job->force_cancelled);
}

bool job_cancel_requested(struct job *job)
{
    return atomic_load(&job->force_cancelled) || atomic_load(&job->soft_cancelled);
}

bool job_completion_requested(struct job *job)
{
    return atomic_load(&job->completion_requested);
}

static _Atomic bool is_shutting_down;

bool job_is_shutting_down(void)
{
    return atomic_load(&is_shutting_down);
}

void job_cancel_all(void)
{
    struct job **jobs;

    atomic_store(&is_shutting_down, true);
    for (jobs = job_list(); jobs[0]; jobs = job_list()) {
        for (size_t i = 0; jobs[i]; i++) {
            job_cancel(jobs[i], true, false, NULL); /* refused if it is ending anyway */
        }
        for (size_t i = 0; jobs[i]; i++) {
            wait_until_concluded(jobs[i]);
            job_dismiss(jobs[i], NULL); /* refused if it dismissed itself */
        }
        job_list_free(jobs);
    }
    job_list_free(jobs);
    job_join_threads();
    atomic_store(&is_shutting_down, false);
}
