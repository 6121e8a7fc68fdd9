/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The commit job: brings what some layers of a chain hold into the layer below them, which takes
 * their place.
 *
 * Where the layers are below a disk that guests write to, the job ends by itself: the images above
 * are made to refer to the base, durably, before the graph changes. Where top is what guests write
 * to, it is a mirror into its own base (jobs/mirror.h), which has to be completed.
 *
 * The base alone, and the layers between the two, read differently as soon as it has begun; top
 * and what is above it read the same at any time, also after the job failed or died.
 */
#ifndef LIVEBLK_JOBS_COMMIT_H
#define LIVEBLK_JOBS_COMMIT_H

#include "block/device.h"
#include "block/node.h"
#include "jobs/job.h"

struct commit_options {
    const char *job_id;
    struct block_node *root;     /* borrowed, as all nodes: a disk's, or one without parents */
    struct block_device *device; /* as mirror_options.device */
    struct block_node *top;      /* the uppermost layer to go; root: the active layer */
    struct block_node *base;     /* below top */
    /* What the images above shall say instead of base's name, verbatim; NULL: that. */
    const char *backing_file;
    const char *filter_node_name; /* as mirror_options.filter_node_name, above top; or NULL */
    bool mask_protocol;           /* as stream_options.mask_protocol */
    int64_t speed;                /* bytes per second; 0: unlimited */
    int64_t guest_latency;        /* nanoseconds the guest may have; 0: any (job_guest_latency) */
    enum block_error_policy on_error; /* `ignore`: what failed is tried again */
    unsigned job_flags;               /* JOB_MANUAL_* */
};

/*
 * Check the options, create the job and start it. A base that is read-only is made writable for it
 * and one that is shorter than top is made as long. Not the main thread; drains nodes for a moment.
 * Returns a negative errno with the error set.
 */
int commit_start(const struct commit_options *options, GError **error);

#endif
