/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine: brings what a source holds at one instant to a target while the source is
 * written to. Backup runs on it; mirror, stream, commit and verify will.
 *
 * Two sides save bytes, and one list of reads in flight keeps them apart. Workers of the job go
 * through the disk. A guest's write that touches bytes not yet saved first reads just those, in
 * units of 4 KiB, into memory, and goes on; a worker brings them to the target. So a guest waits
 * for a read of the source at most, whether its own or one in flight of the very bytes it
 * overwrites, and for the target only when the memory set aside for saved data is full; if that
 * takes longer than a timeout, the job breaks and the guest goes on.
 *
 * The engine needs the job only for pausing, progress, speed and error policies. Functions are
 * called on the job's coordinating thread unless they say otherwise.
 */
#ifndef LIVEBLK_JOBS_COPY_ENGINE_H
#define LIVEBLK_JOBS_COPY_ENGINE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/device.h"
#include "block/node.h"
#include "jobs/job.h"

#define COPY_DEFAULT_CHUNK       (UINT64_C(1) << 20)
#define COPY_DEFAULT_MAX_WORKERS 16
#define COPY_MAX_WORKERS         1024

struct copy_engine;

struct copy_engine_options {
    struct block_node *source;
    struct block_node *target; /* at least as long as the source */
    /*
     * Save everything, or (false) only what the guest overwrites, until cancelled: then the
     * target is for those who look at the moment meanwhile, so a guest's write waits until what
     * it overwrites is there.
     */
    bool copy_all;
    bool use_copy_range;  /* let the kernel copy where both ends can */
    unsigned max_workers; /* 1 to COPY_MAX_WORKERS; 0: the default */
    uint64_t max_chunk;   /* bytes a worker copies at once; a multiple of 64 KiB; 0: default */
    enum block_error_policy on_source_error;
    enum block_error_policy on_target_error;
    struct block_device *guest; /* whose requests have precedence; borrowed; may be NULL */
    int64_t guest_timeout_ns;   /* the longest a guest's write waits for memory */
};

/*
 * A new engine. It claims both nodes in the job's name: reading the source, writing the target.
 * NULL with the error set if the nodes are in use or memory lacks. Any thread.
 */
struct copy_engine *copy_engine_new(struct job *job, const struct copy_engine_options *options,
                                    GError **error);

/*
 * Make the present moment the one that is copied: from here on guests' writes save what they
 * overwrite. Main thread; the source's writers are drained.
 */
void copy_engine_install(struct copy_engine *engine);

/* Undo copy_engine_install. Drains the source itself; not the main thread. */
void copy_engine_uninstall(struct copy_engine *engine);

/*
 * Copy until all is saved and written (not flushed), the job is cancelled, or an error ends it.
 * Returns a negative errno with the error set.
 */
int copy_engine_run(struct copy_engine *engine, GError **error);

/*
 * Flush the target, after a run that succeeded and copy_engine_uninstall. Ends soon when the job
 * is cancelled, also if the target hangs. Returns a negative errno with the error set.
 */
int copy_engine_flush(struct copy_engine *engine, GError **error);

/* Something the engine may be waiting for has changed: struct job_driver's wake. Any thread. */
void copy_engine_wake(struct copy_engine *engine);

/* Not installed any more, and not running. */
void copy_engine_free(struct copy_engine *engine);
DEFINE_AUTO(copy_engine, copy_engine_free)

#endif
