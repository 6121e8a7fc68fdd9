/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Jobs whose drivers do what the test says, when it says so. run() waits for orders and for
 * wake(); after each it passes a pause point, ends with -ECANCELED if cancelled, and with 0 if
 * completion or a soft cancel was asked for. All other callbacks go into the event log.
 */
#ifndef LIVEBLK_TESTS_SCRIPTED_JOB_H
#define LIVEBLK_TESTS_SCRIPTED_JOB_H

#include "jobs/job.h"

extern const struct job_driver scripted_backup; /* a block job that cannot complete */
extern const struct job_driver scripted_mirror; /* becomes ready, completes, softly too */
extern const struct job_driver scripted_create; /* no block job */

/* A new job; it must work. The caller owns the reference. */
struct job *scripted_job_new(const struct job_driver *driver, const char *id, unsigned flags,
                             struct job_transaction *transaction);
void scripted_job_start(struct job *job);

/* Orders to run(); each returns when run() has taken it up. */
void scripted_return(struct job *job, int result, const char *message);
void scripted_ready(struct job *job);
void scripted_io_error(struct job *job, enum block_error_policy policy, bool is_read,
                       int error_number);
void scripted_sleep(struct job *job, int64_t deadline_ns);

/* What job_io_error said last, once run() has come so far. */
enum block_error_policy scripted_last_action(struct job *job);

/* Wait until run() waits for orders again. */
void scripted_wait_idle(struct job *job);

/* run(), once it waits for orders, looks neither at pauses nor at cancels until it returns. */
void scripted_make_stubborn(struct job *job);

/* The callback "prepare", "commit", "abort" or "clean" logs its call and waits for release. */
void scripted_hold(struct job *job, const char *call);
void scripted_release(struct job *job);

void scripted_set_prepare_result(struct job *job, int result, const char *message);

/* What prepare() does after it has logged its call, and returns. */
void scripted_set_prepare(struct job *job, int (*function)(struct job *job));
/* Wait, in prepare(), for a call of wake(). */
void scripted_wait_woken(struct job *job);

/* A drain of this node by the job's own thread, in its "commit" or "abort". */
void scripted_drain_in_end(struct job *job, struct block_node *node);

bool scripted_has_run(struct job *job);
/* How many jobs were freed since the program started. */
unsigned scripted_freed(void);

#endif
