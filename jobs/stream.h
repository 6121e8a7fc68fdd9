/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The stream job: brings what the layers below a node hold into the node itself, while guests use
 * it, and takes these layers out of the chain: flattens it, or makes it shorter.
 *
 * A guest's newer data is never overwritten. Until the job ends nothing but where data lies has
 * changed: whenever it fails, is cancelled or dies, the chain is the one it was. At the end the
 * image's own reference to its backing file is changed, durably, before the graph is.
 */
#ifndef LIVEBLK_JOBS_STREAM_H
#define LIVEBLK_JOBS_STREAM_H

#include "block/device.h"
#include "block/node.h"
#include "jobs/job.h"

struct stream_options {
    const char *job_id;
    struct block_node *node; /* borrowed, as base; the layer below its filters is what is filled */
    struct block_node *base; /* what stays below it, somewhere in its chain; NULL: nothing */
    /* What the image shall say instead of base's name, verbatim; NULL: that. Needs a base. */
    const char *backing_file;
    bool mask_protocol; /* say "raw" for the format of a base that is mere storage */
    /* The name of a copy-on-read node above the layer while the job runs, so that what guests read
     * is brought into it, too; NULL: there is none. */
    const char *filter_node_name;
    int64_t speed;         /* bytes per second; 0: unlimited */
    int64_t guest_latency; /* nanoseconds the guest may have; 0: any (job_guest_latency) */
    /* `ignore`: what cannot be read is left out; the job goes on, fails, and the chain stays. */
    enum block_error_policy on_error;
    unsigned job_flags; /* JOB_MANUAL_* */
};

/*
 * Check the options, create the job and start it. Not the main thread; drains the node for a moment
 * if it is read-only or there is a filter. Returns a negative errno with the error set.
 */
int stream_start(const struct stream_options *options, GError **error);

#endif
