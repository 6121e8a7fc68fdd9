/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the copy engine share: its state, and the steps between them. */
#ifndef LIVEBLK_JOBS_COPY_ENGINE_INTERNAL_H
#define LIVEBLK_JOBS_COPY_ENGINE_INTERNAL_H

#include <pthread.h>

#include "block/copy-map.h"
#include "block/queue.h"
#include "block/request.h"
#include "jobs/copy-engine.h"
#include "jobs/copy-pace.h"

/* A range being read from the source. Its bytes are unsaved, and nobody may overwrite them. */
struct copy_read {
    uint64_t offset;
    uint64_t end;
    TAILQ_ENTRY(copy_read) entry;
};

/* Saved bytes on their way to the target. */
struct copy_task {
    void *buffer; /* NULL: zeroes */
    uint64_t offset;
    uint64_t bytes;
    uint64_t memory; /* what of memory_used it holds */
    TAILQ_ENTRY(copy_task) entry;
};

struct copy_engine {
    struct copy_engine_options options;
    struct job *job;
    uint64_t length;
    struct block_claim source_claim;
    struct block_claim target_claim;
    struct write_notifier notifier;
    bool installed;

    /* Set once, read without the lock by guests: nothing has to be saved any more. */
    _Atomic bool over;
    _Atomic bool offload_works;

    /* Guards what follows. After the graph lock, before the jobs' lock; never held across I/O. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a read or a task ended, memory came free, the engine is over */
    pthread_cond_t work;    /* workers: there may be something to do */

    struct copy_map *map;
    TAILQ_HEAD(, copy_read) reads;
    TAILQ_HEAD(, copy_task) tasks;
    TAILQ_HEAD(, copy_task) writing; /* tasks a worker has taken */
    uint64_t cursor;                 /* nothing before it is unsaved, but for reads that failed */
    uint64_t memory_used;            /* by workers' buffers and by tasks */
    uint64_t memory_limit;
    unsigned buffers;        /* that workers have for background copying */
    uint64_t memory_tickets; /* given to guests that want memory */
    uint64_t memory_turn;    /* the ticket that is served next */
    unsigned guests_waiting; /* for memory: background copying leaves it to them */

    unsigned drains;            /* of the target: workers start nothing */
    unsigned source_drains;     /* of the source's readers: workers start no read */
    bool background_held;       /* the job is pausing */
    bool tasks_held;            /* the target failed and the policy is to wait */
    int64_t retry_after_ns;     /* the policy is to try again, but not at once */
    unsigned active;            /* workers at work */
    unsigned active_background; /* of these, not on a task */

    struct copy_pace pace;
    GError *error; /* the first; the engine is over */
    int flush_status;

    GPtrArray *workers; /* pthread_t */
    bool workers_end;
};

/* ---- copy-engine.c: bookkeeping. Lock held. ---- */

/* End the engine because of an error (taken over). Wakes everybody. */
void copy_engine_fail(struct copy_engine *engine, GError *error);

/* The read in flight that overlaps a range, or NULL. */
struct copy_read *copy_engine_overlapping_read(struct copy_engine *engine, uint64_t offset,
                                               uint64_t end);

/*
 * Queue saved bytes for the target; takes the buffer over, and with it so much of memory_used as
 * memory says.
 */
void copy_engine_queue_task(struct copy_engine *engine, void *buffer, uint64_t offset,
                            uint64_t bytes, uint64_t memory);

/* Memory that memory_used included is free again. */
void copy_engine_release_memory(struct copy_engine *engine, uint64_t bytes);

/* Whether saved bytes of the range are not on the target yet. */
bool copy_engine_task_overlaps(struct copy_engine *engine, uint64_t offset, uint64_t end);

/* ---- copy-io.c: the work itself. Lock not held. ---- */

/*
 * Save and write the first piece of a run that is in the list of reads; the buffer holds
 * max_bytes. Takes the read out of the list. If the bytes must be written later, *buffer is kept
 * for that, and NULL afterwards.
 */
void copy_io_run(struct copy_engine *engine, struct copy_read *read, void **buffer,
                 uint64_t max_bytes);

/* Write a task's bytes and free it, or put it back. */
void copy_io_task(struct copy_engine *engine, struct copy_task *task);

/* ---- copy-guest.c ---- */

/* The write notifier on the source. */
int copy_guest_before_write(struct write_notifier *notifier, enum block_operation operation,
                            uint64_t offset, uint64_t bytes);

#endif
