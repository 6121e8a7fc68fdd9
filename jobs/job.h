/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Jobs: the one state machine under every kind of long work.
 *
 * A job has a coordinating thread that runs the driver's run(), and after it the finalization
 * (prepare, then commit or abort, then clean), unless a transaction or auto-finalize=false makes
 * that wait for others; then it runs on the thread that finalizes. None of this is the main
 * thread, so all of it may block; what changes the graph goes there with main_loop_call_wait.
 *
 * Everything here may be called from any thread. One lock guards all jobs' states (it is taken
 * before no other lock of ours but the event queue's, and never held across a driver's call).
 * What waits for a job to end (cancel, finalize, shutdown) must not be called on the main thread
 * while that runs, as the job's end may need it.
 * State changes, legal verbs, events and error texts follow QEMU's job API.
 */
#ifndef LIVEBLK_JOBS_JOB_H
#define LIVEBLK_JOBS_JOB_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/device.h"
#include "block/guest-waits.h"
#include "block/node.h"
#include "jobs/guest-latency.h"
#include "jobs/verify-report.h"

enum job_status {
    JOB_STATUS_UNDEFINED,
    JOB_STATUS_CREATED,
    JOB_STATUS_RUNNING,
    JOB_STATUS_PAUSED,
    JOB_STATUS_READY,
    JOB_STATUS_STANDBY,
    JOB_STATUS_WAITING,
    JOB_STATUS_PENDING,
    JOB_STATUS_ABORTING,
    JOB_STATUS_CONCLUDED,
    JOB_STATUS_NULL,
    JOB_STATUS_COUNT,
};
extern const char *const job_status_names[]; /* "undefined", ..., NULL-terminated */

enum job_verb {
    JOB_VERB_CANCEL,
    JOB_VERB_PAUSE,
    JOB_VERB_RESUME,
    JOB_VERB_SET_SPEED,
    JOB_VERB_COMPLETE,
    JOB_VERB_FINALIZE,
    JOB_VERB_DISMISS,
    JOB_VERB_CHANGE,
    JOB_VERB_COUNT,
};
extern const char *const job_verb_names[]; /* "cancel", "pause", ... */

extern const char *const job_type_names[]; /* all kinds there are; NULL-terminated */

struct job;
struct job_info;

struct job_driver {
    const char *type;     /* one of job_type_names */
    bool is_block_job;    /* has BLOCK_JOB_* events and is listed by query-block-jobs */
    size_t instance_size; /* of the state at job_state(), zeroed */

    /*
     * The work, on the coordinating thread. Calls job_pause_point() often (with nothing in
     * flight) and returns 0, or a negative errno with the error set; soon after job_is_cancelled
     * turns true it returns 0 or -ECANCELED. A job that can become ready calls job_set_ready().
     */
    int (*run)(struct job *job, GError **error);
    /*
     * Something the driver may be waiting for in run() or prepare() has changed (pause, resume,
     * cancel, speed, complete): wake its own condition variables. Called by any thread but only
     * while one of these is going on, with no job lock held, but perhaps the graph lock (by a
     * drain): it takes no lock under which the driver would call the block core, and does not
     * wait. May be NULL.
     */
    void (*wake)(struct job *job);
    /* The complete verb is legal for this kind (when READY). wake() follows. */
    bool can_complete;
    /* A soft cancel when READY means "finish without switching over" (mirror). */
    bool soft_cancel_completes;
    /*
     * Finalization. All jobs of a transaction are prepared; if all succeed each is committed,
     * else each is aborted. clean follows in either case and frees what run() used: afterwards
     * the driver holds no node. A job that was cancelled before it ran is aborted and cleaned
     * without run(). One that is cancelled during prepare() is aborted even if that succeeds; it
     * returns soon after job_is_cancelled turns true. All may be NULL. Not under the job lock; may
     * block.
     */
    int (*prepare)(struct job *job, GError **error);
    void (*commit)(struct job *job);
    void (*abort)(struct job *job);
    void (*clean)(struct job *job);
    /* Add to a report what only this kind knows. Any thread, job lock held: it may take a lock of
     * the driver's under which nothing else is called. May be NULL. */
    void (*get_info)(struct job *job, struct job_info *info);
    /* Free the state's memory and nothing else, when the job itself is freed. May be NULL. */
    void (*free)(struct job *job);
};

enum {
    JOB_MANUAL_FINALIZE = 1 << 0, /* auto-finalize=false */
    JOB_MANUAL_DISMISS = 1 << 1,  /* auto-dismiss=false */
};

struct job_transaction;

/*
 * Create a job in state CREATED: emits JOB_STATUS_CHANGE created. id must be a valid identifier
 * ("Invalid job ID '%s'") and not in use ("Job ID '%s' already in use"). transaction may be NULL
 * (the job gets one of its own); a reference to it is taken. The returned reference belongs to
 * the caller; the list holds another until the job is dismissed. All jobs of a transaction are
 * created before the first is started.
 */
struct job *job_new(const struct job_driver *driver, const char *id, unsigned flags,
                    struct job_transaction *transaction, GError **error);

struct job *job_ref(struct job *job);
void job_unref(struct job *job);
DEFINE_AUTO(job, job_unref)

/*
 * Start the coordinating thread: CREATED to RUNNING. Returns a negative errno, the job then being
 * as before. A job that was cancelled meanwhile is started and ends at once.
 */
int job_start(struct job *job, GError **error);

/*
 * job_start for who cannot go back any more: if there is no thread to be had, the job ends on this
 * one, as if its run() had failed, and with it its transaction. Not the main thread; may block.
 */
void job_start_or_fail(struct job *job);

/*
 * Give up a job that was created but will not start, because the rest of its creation failed:
 * CREATED to NULL. clean and free are called.
 */
void job_early_fail(struct job *job);

/*
 * Roll back a job that was created inside a transaction action that is undone: events aborting,
 * concluded, null; abort and clean are called, no BLOCK_JOB event.
 */
void job_roll_back(struct job *job);

/* Transactions. grouped: jobs finalize together, and one failure cancels the others. */
struct job_transaction *job_transaction_new(bool grouped);
struct job_transaction *job_transaction_ref(struct job_transaction *transaction);
void job_transaction_unref(struct job_transaction *transaction);
DEFINE_AUTO(job_transaction, job_transaction_unref)

/* A new reference, or NULL. */
struct job *job_find(const char *id);
/* New references, newest first, NULL-terminated. */
struct job **job_list(void);
void job_list_free(struct job **list);

/*
 * Verbs. Each checks that it is legal in the job's state: -EPERM "Job '%s' in state '%s' cannot
 * accept command verb '%s'". job_check_verb does that alone.
 */
int job_check_verb(struct job *job, enum job_verb verb, GError **error);
int job_user_pause(struct job *job, GError **error);  /* "Job is already paused" */
int job_user_resume(struct job *job, GError **error); /* "Can't resume a job that was not paused" */
/*
 * Cancel. By force the job ends with "Operation canceled", and so do the others of its grouped
 * transaction. A soft cancel (force false) is the same, except for a READY job of a driver with
 * soft_cancel_completes: run() is asked to end with success, and the call returns at once. A soft
 * cancel of a user-paused job is refused: "The block job for device '%s' is currently paused".
 * wait: return when the job is concluded and its driver is done, as QEMU's does; not for the
 * job's own threads. A job that was not started yet ends when its creator goes on with it. A job
 * that is being committed can no longer be cancelled: the verb is refused.
 */
int job_cancel(struct job *job, bool force, bool wait, GError **error);
int job_complete(struct job *job, GError **error);
/* Finalizes all jobs of the transaction on this thread; their failures are told by events. */
int job_finalize(struct job *job, GError **error);
int job_dismiss(struct job *job, GError **error);
int job_set_speed(struct job *job, int64_t speed, GError **error);

/* Cancel all jobs by force and wait until none is left running; dismisses them. At shutdown. */
void job_cancel_all(void);

/* That is going on: who cancels is not the job's user. Any thread. */
bool job_is_shutting_down(void);

/* What a driver's run() uses. */
void *job_state(const struct job *job);
const char *job_id(const struct job *job);
const struct job_driver *job_driver_of(const struct job *job);
enum job_status job_get_status(struct job *job);
bool job_is_cancelled(struct job *job);     /* by force, or softly where that is the same */
bool job_cancel_requested(struct job *job); /* also a soft cancel of a READY job */
bool job_completion_requested(struct job *job);
/* True while somebody (user, drain, error policy) wants the job paused. */
bool job_should_pause(struct job *job);

/*
 * If the job is to pause: state PAUSED (STANDBY when ready) until nobody wants it any more. A
 * cancel ends what user and error policy want; a drain holds the job until it is over, as a
 * cancelled job must not touch a drained node either. Coordinating thread only, with none of the
 * job's I/O in flight and no lock held.
 */
void job_pause_point(struct job *job);

/*
 * Sleep on the coordinating thread until the CLOCK_MONOTONIC time in nanoseconds (INT64_MAX: for
 * ever), a verb, a drain or job_kick(). One that came since the last sleep ended counts: then it
 * returns at once, as it does in a cancelled job. Follow it with job_pause_point().
 */
void job_sleep_until(struct job *job, int64_t deadline_ns);
void job_kick(struct job *job);

/* RUNNING to READY, with BLOCK_JOB_READY. Coordinating thread; nothing if READY already. */
void job_set_ready(struct job *job);

/* Progress in bytes of work. Lock-free. Totals may grow. */
void job_progress_set_total(struct job *job, uint64_t total);
void job_progress_add_total(struct job *job, uint64_t bytes);
void job_progress_add(struct job *job, uint64_t bytes);

/* Bytes per second, 0 unlimited; lock-free. */
uint64_t job_speed(struct job *job);
/* Set before the job starts, without verb checks: "Parameter 'speed' expects a non-negative value"
 */
int job_set_initial_speed(struct job *job, int64_t speed, GError **error);

/* What guests' requests have waited for the job; borrowed. */
struct guest_waits *job_guest_waits(struct job *job);

/*
 * The latency (99th percentile, nanoseconds; 0: any) that the guest on its source is to have at
 * most: the job does less when it has more. Lock-free.
 */
uint64_t job_guest_latency(struct job *job);
/* Before the job starts: "Parameter 'guest-latency' expects a non-negative value". */
int job_set_initial_guest_latency(struct job *job, int64_t latency_ns, GError **error);
/* As job_set_speed; -ENOTSUP if the job does not look at a guest. */
int job_set_guest_latency(struct job *job, int64_t latency_ns, GError **error);
/* The job looks at a guest: by who sees to it, before it starts. */
void job_accept_guest_latency(struct job *job);
/* What it does about it now, and the guest's latency in the last second. Lock-free. */
void job_tell_guest_pace(struct job *job, enum guest_pace pace, uint64_t p99_ns);
/* As told last; 0: the guest had no requests, or nobody looks. Lock-free. */
uint64_t job_guest_p99(struct job *job);

/*
 * An I/O of the job failed: says what to do (REPORT, IGNORE or STOP) and emits BLOCK_JOB_ERROR.
 * For STOP the job is now user-paused and its I/O status set; the driver gets quiet, passes a
 * job_pause_point() and retries. A cancelled job has nothing to say: REPORT, without an event. In
 * the finalization, which cannot pause, STOP becomes REPORT. error_number is positive. Any thread
 * of the job, which may hold the driver's locks: wake() is not called.
 */
enum block_error_policy job_io_error(struct job *job, enum block_error_policy policy, bool is_read,
                                     int error_number);

/*
 * One word for people: what the job is doing ("copying", "flushing"). A string constant; NULL, as
 * at first and after run() and prepare(), means the name of its status.
 */
void job_set_phase(struct job *job, const char *phase);

/*
 * Claim a node for the job; a drain of the node pauses the job. Owner in messages: "block job
 * 'ID'". A reference to the node is held. The driver's clean releases them with
 * job_release_nodes; what is left then goes right after it.
 */
int job_claim_node(struct job *job, struct block_node *node, unsigned perms, unsigned shared,
                   GError **error);
void job_release_nodes(struct job *job);

/* A report. Strings in it are owned by it. */
struct job_info {
    char *id;
    const char *type;
    enum job_status status;
    bool is_block_job;
    uint64_t current_progress;
    uint64_t total_progress;
    bool busy;
    bool paused; /* somebody wants it paused */
    int64_t speed;
    enum block_io_status io_status;
    bool ready;
    bool auto_finalize;
    bool auto_dismiss;
    char *error;       /* NULL: none */
    const char *phase; /* for people; never NULL */
    struct guest_waits_report guest_waits;
    uint64_t guest_latency_ns; /* 0: any; then of no use: */
    enum guest_pace guest_pace;
    uint64_t guest_p99_ns; /* of the last second; 0: no requests */
    /* Of mirrors only: whether both sides are the same, and stay so with each answer to a guest. */
    bool has_actively_synced;
    bool actively_synced;
    /* Of jobs that follow a guest, while they do: */
    bool has_pace;
    uint64_t bytes_left;
    bool is_measured;      /* what follows is known */
    uint64_t dirty_rate;   /* bytes per second that guests add to what is left */
    uint64_t copy_rate;    /* bytes per second that are copied */
    bool will_converge;    /* it gets less */
    uint64_t seconds_left; /* if so */
    /* Of mirrors, or NULL: how guests' writes are copied; whether they are on the target, too, when
     * they are answered; and why that has changed last, or NULL. */
    const char *copy_mode;
    bool is_synchronous;
    char *copy_mode_reason;
    /* Of mirrors that keep an eye on it: bytes that the target has, but not for good. */
    bool has_unflushed;
    uint64_t unflushed_bytes;
    /* And the target is lost, and looked for. */
    bool is_target_lost;
    int64_t target_lost_ns;   /* for so long */
    unsigned target_retries;  /* looks in vain */
    int64_t target_next_ns;   /* until the next one */
    char *target_lost_reason; /* for people */
    /* Of mirrors that can be resumed later, or NULL: "changes", or "all" with the reason. */
    const char *resumed;
    char *full_copy_reason;
    /* Of those that verify only: what they found. */
    bool has_verify;
    struct verify_report verify;
};
void job_get_info(struct job *job, struct job_info *info);
void job_info_clear(struct job_info *info);

#endif
