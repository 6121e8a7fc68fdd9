/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the job code share: job*.c only. Functions named *_locked need the job lock. */
#ifndef LIVEBLK_JOBS_JOB_INTERNAL_H
#define LIVEBLK_JOBS_JOB_INTERNAL_H

#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>

#include "block/queue.h"
#include "jobs/job.h"

struct job_claim {
    struct block_claim claim; /* first: a claim is cast to its job_claim */
    struct job *job;          /* borrowed; the claim goes before the job does */
    TAILQ_ENTRY(job_claim) entry;
};

struct job {
    _Atomic int references;
    const struct job_driver *driver;
    char *id;
    unsigned flags; /* JOB_MANUAL_* */

    _Atomic uint64_t progress_current;
    _Atomic uint64_t progress_total;
    _Atomic int64_t speed;
    const char *_Atomic phase;
    struct guest_waits *guest_waits;
    _Atomic uint64_t guest_latency_ns;
    _Atomic enum guest_pace guest_pace;
    _Atomic uint64_t guest_p99_ns;
    bool has_guest; /* whose latency it keeps; constant once it has started */

    /* Written under the job lock, read without. */
    _Atomic bool force_cancelled;
    _Atomic bool soft_cancelled;
    _Atomic bool completion_requested;
    _Atomic bool pause_wanted;

    /* All that follows is guarded by the job lock. */
    enum job_status status;
    struct job_transaction *transaction; /* a reference; constant */
    pthread_cond_t wakeup;               /* for the coordinating thread */
    pthread_cond_t changed;              /* for others: states, pause points, the end of run() */
    pthread_t thread;                    /* valid if started */
    bool started;
    bool in_run;         /* run() is going on */
    bool in_prepare;     /* prepare() is */
    bool run_ended;      /* it will never (again) */
    bool at_pause_point; /* in_run, but quiet */
    bool is_idle;        /* in_run, with nothing to do until it is told */
    bool kicked;         /* job_sleep_until returns */
    bool user_paused;    /* by the user or an error policy */
    unsigned drains;
    unsigned wakers; /* threads in the driver's wake() */
    enum block_io_status io_status;
    int result;  /* 0 or a negative errno */
    char *error; /* set if result is not 0 */
    TAILQ_HEAD(, job_claim) claims;
    TAILQ_ENTRY(job) list_entry;
    TAILQ_ENTRY(job) transaction_entry; /* from creation until CONCLUDED or NULL */

    alignas(max_align_t) unsigned char state[];
};

TAILQ_HEAD(job_queue, job);

/*
 * A group of jobs that finalize together; an ungrouped transaction never has members, as each of
 * its jobs gets a group of its own.
 */
struct job_transaction {
    _Atomic int references;
    bool grouped;

    /* Job lock. */
    struct job_queue jobs; /* newest first; all are in the list of jobs, which refers to them */
    struct job *culprit;   /* whose failure or cancellation aborts all; NULL: none */
    bool pending;          /* all are PENDING, or were */
    bool finalize_asked;   /* job_finalize was called */
    bool settling;         /* one thread finalizes or aborts all members: membership is fixed */
    bool committing;       /* ... and there is no way back */
};

/*
 * The job lock guards the states of all jobs, their list and their transactions. It comes after
 * the graph lock and before the event queue's only; nothing that could take another lock is
 * called under it. job_unlock() calls wake() of the drivers named by job_notify_locked().
 */
void job_lock(void);
void job_unlock(void);
void job_wait_locked(pthread_cond_t *condition);
/* As clock_cond_wait_until. */
int job_wait_until_locked(pthread_cond_t *condition, int64_t deadline_ns);

/* Wake the coordinating thread now, and the driver when the lock is released. */
void job_notify_locked(struct job *job);

/* Change the status, which must be legal, and emit JOB_STATUS_CHANGE if it is another. */
void job_set_status_locked(struct job *job, enum job_status status);

/* The job has ended and its driver is done. */
static inline bool job_is_concluded_locked(const struct job *job)
{
    return job->status == JOB_STATUS_CONCLUDED || job->status == JOB_STATUS_NULL;
}

/* -EPERM with the error set unless the verb is legal now. */
int job_check_verb_locked(struct job *job, enum job_verb verb, GError **error);

/* BLOCK_JOB_READY and its like, if this is a block job. message may be NULL. */
void job_emit_locked(struct job *job, const char *event, const char *message);

/* After a change of drains, user_paused or force_cancelled. */
void job_update_pause_locked(struct job *job);

/* Pause while it is wanted; on the coordinating thread, outside run() or at a pause point. */
void job_pause_locked(struct job *job);

/* Ask for the end: an unfinished job is told so, a finished one fails now. */
void job_force_cancel_locked(struct job *job);

/* NULL and out of the list. The list's reference is the caller's to drop, without the lock. */
void job_dismiss_locked(struct job *job);

/* A job in state UNDEFINED, in no list. */
struct job *job_alloc(const struct job_driver *driver, const char *id, unsigned flags,
                      struct job_transaction *transaction);

/*
 * Start a thread that job_reap_threads() will join once it has called job_thread_ended_locked().
 * Returns a negative errno.
 */
int job_thread_create_locked(pthread_t *thread, void *(*function)(void *), void *data);
void job_thread_ended_locked(void);
/* Join threads that have ended. Lock not held. */
void job_reap_threads(void);
/* Wait for all threads to end and join them. Lock not held. */
void job_join_threads(void);

/* Joining fails once all members' run() have ended. */
int job_transaction_join_locked(struct job *job, GError **error);
void job_transaction_leave_locked(struct job *job);

/* The driver's prepare, if it has one; what it returns. Lock held, dropped meanwhile. */
int job_prepare_locked(struct job *job, GError **error);

/* The driver's clean, and the claims it left. Without the lock. */
void job_clean(struct job *job);

/*
 * The job, whose run() has ended, fails: ABORTING, and all others of its transaction are
 * cancelled. No message means the system's text for result.
 */
void job_fail_locked(struct job *job, int result, const char *message);

/*
 * Whether the calling thread is to settle the transaction now, because all members' run() have
 * ended and nothing keeps them PENDING. At most one thread gets true.
 */
bool job_transaction_claim_locked(struct job_transaction *transaction);

/* Finalize or abort all members. Without the lock; by the thread that got true, once. */
void job_transaction_settle(struct job_transaction *transaction);

/* The same on a thread of its own, or here if there is none to be had. */
void job_transaction_settle_elsewhere(struct job_transaction *transaction);

#endif
