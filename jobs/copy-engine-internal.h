/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the copy engine share: its state, and the steps between them. */
#ifndef LIVEBLK_JOBS_COPY_ENGINE_INTERNAL_H
#define LIVEBLK_JOBS_COPY_ENGINE_INTERNAL_H

#include <pthread.h>

#include "jobs/copy-engine.h"
#include "jobs/copy-pace.h"

struct copy_engine {
    struct copy_engine_options options;
    struct copy_source *source;
    struct job *job;
    struct block_claim source_claim;
    struct block_claim target_claim;

    /* Set under the lock, read without: nothing more is to be begun in this run. */
    _Atomic bool over;
    _Atomic bool offload_works;

    /*
     * Guards what follows. After the graph lock, before the jobs' lock and those of the source;
     * never held across I/O.
     */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a run ended or is read, a drain ended, the engine is over */
    pthread_cond_t work;    /* workers: there may be something to do */

    /* In flight, those of workers on their stacks; and those who wait in copy_engine_enter(). */
    TAILQ_HEAD(, copy_run) runs;
    unsigned active;  /* workers at work, and a flush in progress */
    unsigned entered; /* copy_engine_enter() */
    bool starved;     /* nothing was in flight, and the source had nothing to do */

    unsigned target_drains;
    unsigned source_drains;
    bool is_pausing;        /* the job wants to pause: start only what is urgent */
    bool is_urgent;         /* something urgent was found since the last look */
    bool is_held;           /* something failed and the policy is to wait: start nothing */
    bool is_away;           /* the source waits for the target to come back: start nothing */
    int64_t retry_after_ns; /* the policy is to try again, but not at once */

    copy_errand *errand; /* NULL: there is none; changed by the coordinator only */
    void *errand_data;
    pthread_t errand_thread;
    bool errand_runs;
    int errand_status;

    struct copy_pace pace;
    GError *error; /* the first; the engine is over */
    int flush_status;
    bool flushes_anyway; /* coordinator: the flush counts even if the job is cancelled */

    GPtrArray *workers; /* pthread_t */
    bool workers_end;
};

/* ---- copy-io.c: the work itself. Lock not held. ---- */

/*
 * Copy a run that is in flight, or the start of it; tells the source what is done and what is
 * not. The buffer is of buffer_bytes, or twice that if the source compares.
 */
void copy_io_run(struct copy_engine *engine, struct copy_run *run, void *buffer,
                 uint64_t buffer_bytes);

#endif
