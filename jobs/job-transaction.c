/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions: how jobs end together.
 *
 * When the last member's run() has ended, one thread settles the transaction: it prepares all
 * members and commits them, or aborts them all if one has failed or was cancelled. Until it
 * commits, a cancel turns it round.
 */
#include <errno.h>

#include "block/error.h"
#include "block/event.h"
#include "jobs/job-internal.h"

struct job_transaction *job_transaction_new(bool grouped)
{
    struct job_transaction *transaction = g_new0(struct job_transaction, 1);

    atomic_init(&transaction->references, 1);
    transaction->grouped = grouped;
    TAILQ_INIT(&transaction->jobs);
    return transaction;
}

struct job_transaction *job_transaction_ref(struct job_transaction *transaction)
{
    atomic_fetch_add(&transaction->references, 1);
    return transaction;
}

void job_transaction_unref(struct job_transaction *transaction)
{
    if (transaction && atomic_fetch_sub(&transaction->references, 1) == 1) {
        g_free(transaction);
    }
}

int job_transaction_join_locked(struct job *job, GError **error)
{
    struct job_transaction *transaction = job->transaction;

    if (transaction->pending || transaction->culprit) {
        return block_error(error, EBUSY, "The transaction of job '%s' has already ended", job->id);
    }
    TAILQ_INSERT_HEAD(&transaction->jobs, job, transaction_entry);
    return 0;
}

void job_transaction_leave_locked(struct job *job)
{
    TAILQ_REMOVE(&job->transaction->jobs, job, transaction_entry);
}

void job_force_cancel_locked(struct job *job)
{
    atomic_store(&job->force_cancelled, true);
    job->user_paused = false;
    job_update_pause_locked(job);
    if (!job->run_ended || job->in_prepare) {
        job_notify_locked(job);
    }
    if (job->run_ended &&
        (job->status == JOB_STATUS_WAITING || job->status == JOB_STATUS_PENDING)) {
        job_fail_locked(job, -ECANCELED, NULL);
    }
}

void job_fail_locked(struct job *job, int result, const char *message)
{
    struct job_transaction *transaction = job->transaction;
    struct job *other;

    job->result = result;
    job->error = g_strdup(message ? message : block_strerror(-result));
    job_set_status_locked(job, JOB_STATUS_ABORTING);
    if (transaction->culprit) {
        return;
    }
    transaction->culprit = job;
    TAILQ_FOREACH (other, &transaction->jobs, transaction_entry) {
        if (other != job) {
            job_force_cancel_locked(other);
        }
    }
}

static void set_all_pending_locked(struct job_transaction *transaction)
{
    struct job *job;

    transaction->pending = true;
    TAILQ_FOREACH (job, &transaction->jobs, transaction_entry) {
        job_set_status_locked(job, JOB_STATUS_PENDING);
        if (job->flags & JOB_MANUAL_FINALIZE && job->driver->is_block_job) {
            event_emit("BLOCK_JOB_PENDING", EVENT_STRING("type", job->driver->type),
                       EVENT_STRING("id", job->id));
        }
    }
}

bool job_transaction_claim_locked(struct job_transaction *transaction)
{
    bool manual = false;
    struct job *job;

    if (transaction->settling || TAILQ_EMPTY(&transaction->jobs)) {
        return false;
    }
    TAILQ_FOREACH (job, &transaction->jobs, transaction_entry) {
        if (!job->run_ended) {
            return false;
        }
        manual = manual || job->flags & JOB_MANUAL_FINALIZE;
    }
    if (!transaction->culprit) {
        if (!transaction->pending) {
            set_all_pending_locked(transaction);
        }
        if (manual && !transaction->finalize_asked) {
            return false;
        }
    }
    transaction->settling = true;
    return true;
}

/* The lock is dropped for each driver; a cancel may come in between. */
static void prepare_all(struct job_transaction *transaction)
{
    struct job *job;

    job_lock();
    TAILQ_FOREACH (job, &transaction->jobs, transaction_entry) {
        g_autoptr(GError) error = NULL;

        if (transaction->culprit) {
            break;
        }
        int result = job_prepare_locked(job, &error);
        if (result < 0 && !transaction->culprit) {
            job_fail_locked(job, result, error ? error->message : NULL);
        }
    }
    transaction->committing = !transaction->culprit;
    job_unlock();
}

void job_clean(struct job *job)
{
    GUEST_WAITS_SCOPE(job->guest_waits);

    if (job->driver->clean) {
        job->driver->clean(job);
    }
    job_release_nodes(job);
}

static void emit_end_locked(struct job *job)
{
    if (atomic_load(&job->force_cancelled)) {
        job_emit_locked(job, "BLOCK_JOB_CANCELLED", NULL);
    } else {
        job_emit_locked(job, "BLOCK_JOB_COMPLETED", job->error);
    }
}

/* Commit or abort one job, and take it out of the transaction. */
static void conclude(struct job *job, bool commit)
{
    void (*finish)(struct job *) = commit ? job->driver->commit : job->driver->abort;
    bool dismiss = !(job->flags & JOB_MANUAL_DISMISS);

    if (finish) {
        GUEST_WAITS_SCOPE(job->guest_waits);

        finish(job);
    }
    job_clean(job);
    job_lock();
    job_transaction_leave_locked(job);
    emit_end_locked(job);
    job_set_status_locked(job, JOB_STATUS_CONCLUDED);
    if (dismiss) {
        job_dismiss_locked(job);
    }
    job_unlock();
    if (dismiss) {
        job_unref(job);
    }
}

/* The culprit last: its event explains those of the others, as with QEMU. */
static struct job *next_to_conclude(struct job_transaction *transaction)
{
    struct job *job;

    job_lock();
    job = TAILQ_FIRST(&transaction->jobs);
    if (job && job == transaction->culprit && TAILQ_NEXT(job, transaction_entry)) {
        job = TAILQ_NEXT(job, transaction_entry);
    }
    job_unlock();
    return job;
}

void job_transaction_settle(struct job_transaction *transaction)
{
    struct job *job;

    job_transaction_ref(transaction);
    prepare_all(transaction);
    while ((job = next_to_conclude(transaction))) {
        conclude(job, transaction->committing);
    }
    job_transaction_unref(transaction);
}

static void *settle_thread(void *data)
{
    struct job_transaction *transaction = data;

    pthread_setname_np(pthread_self(), "job-settle");
    job_transaction_settle(transaction);
    job_transaction_unref(transaction);
    job_lock();
    job_thread_ended_locked();
    job_unlock();
    return NULL;
}

void job_transaction_settle_elsewhere(struct job_transaction *transaction)
{
    pthread_t thread;

    job_transaction_ref(transaction);
    job_lock();
    int status = job_thread_create_locked(&thread, settle_thread, transaction);
    job_unlock();
    if (status < 0) {
        job_transaction_settle(transaction);
        job_transaction_unref(transaction);
    }
}
