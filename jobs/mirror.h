/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mirror job: keeps a target like its source while guests write, until the guests' disks
 * switch over to the target, or the target is kept as a copy.
 *
 * It is READY when all was copied once, and follows the guests then. Completing it (job_complete)
 * makes the target the root of the devices on the source, without a guest noticing or any write
 * being lost; a soft cancel leaves the target as a copy of that moment. If the guest has moved to
 * another node meanwhile (by another mirror), the job fails: the target would be out of date.
 *
 * A target that has only the top layer's contents and no backing file gets the source's when the
 * disk moves to it; the image's header is left as it is.
 */
#ifndef LIVEBLK_JOBS_MIRROR_H
#define LIVEBLK_JOBS_MIRROR_H

#include "block/clock.h"
#include "block/device.h"
#include "block/node.h"
#include "jobs/job.h"

enum mirror_sync {
    MIRROR_SYNC_FULL, /* everything */
    /* What the source's top layer holds itself; everything if there is none below. */
    MIRROR_SYNC_TOP,
    MIRROR_SYNC_NONE, /* only what guests write from now on */
    /* What changed since the target was a copy of the source, which is the user's word. */
    MIRROR_SYNC_INCREMENTAL,
    /* What the layers above the target hold, which is in the source's own chain: a commit. */
    MIRROR_SYNC_COMMIT,
};

/* When guests' writes reach the target. */
enum mirror_copy_mode {
    MIRROR_BACKGROUND,     /* later: they are marked, and copied */
    MIRROR_WRITE_BLOCKING, /* before the guest is answered, beside what is copied */
    /* Later, but before it is answered for as long as the mirror would not come to its end else:
     * when guests dirty the disk as fast as it is copied. */
    MIRROR_AUTO,
};
extern const char *const mirror_copy_mode_names[]; /* NULL-terminated */

/* How long a guest's write waits for the target at the most, unless told otherwise. */
#define MIRROR_WRITE_LIMIT_NS   (10 * NS_PER_SECOND)

#define MIRROR_GRANULARITY_MIN  UINT64_C(512)
#define MIRROR_GRANULARITY_MAX  (UINT64_C(64) << 20)
#define MIRROR_DEFAULT_BUF_SIZE (INT64_C(16) << 20)

struct mirror_options {
    const char *job_id;
    /* Borrowed; the job takes references. Of a filter that a job has put there for a while, what is
     * below that. */
    struct block_node *source;
    /*
     * The device whose disk is meant, if it is one's: the mirror is refused if the source is not
     * its root any more at the moment it starts. NULL: the node as such is meant. Borrowed.
     */
    struct block_device *device;
    struct block_node *target; /* as source; or NULL with open_target */
    /*
     * Makes the target when all else has been checked, the job's ID and speed included. Called at
     * most once; a new reference, or NULL with the error set.
     */
    struct block_node *(*open_target)(void *data, GError **error);
    void *open_target_data;
    enum mirror_sync sync;
    /*
     * Of MIRROR_SYNC_INCREMENTAL, one of them: a checkpoint of the device, or a bitmap of the
     * source, which is left as it is. What either says, and what is written from the moment the
     * mirror starts, is copied. Borrowed.
     */
    const char *since;
    const char *bitmap;
    /* Bytes that one write makes dirty; 0: mirror_default_granularity. With sync top more if that
     * is less than a cluster of a target without a backing file. */
    uint64_t granularity;
    int64_t buf_size;      /* most bytes in memory; 0: the default */
    bool keep_zeroes;      /* write the source's zeroes as data */
    int64_t speed;         /* bytes per second; 0: unlimited */
    int64_t guest_latency; /* nanoseconds the guest may have; 0: any (job_guest_latency) */
    enum mirror_copy_mode copy_mode;
    /*
     * How long a guest's write may wait for the target; 0: the default. Then the guest is answered,
     * what has not arrived is copied later, and it is an error of the target (ETIMEDOUT); with
     * MIRROR_AUTO the mirror copies in background again instead.
     */
    int64_t write_limit_ns;
    /*
     * How long a target that was lost (a connection, say) is looked for before it is an error; 0:
     * not at all; negative: for ever if that would be ignored, else not at all.
     */
    int64_t target_retry_ns;
    /*
     * Go on where an earlier mirror of the device to the target was that did not come to its end,
     * whatever ended it; else copy all, which job_info says and why. Either way what is needed for
     * going on is kept from here, until this one ends by somebody's will. Needs a tracked device.
     */
    bool resume;
    bool target_is_new; /* made for this mirror: what an earlier one left in its place is gone */
    /*
     * At the end, a disk that has moved to the target or a copy that is kept, a checkpoint of that
     * moment, with this name; or NULL. Needs a tracked device, and that all is copied.
     */
    const char *checkpoint;
    /* While the mirror runs, a node of this name is above the source; or NULL. */
    const char *filter_node_name;
    enum block_error_policy on_source_error;
    enum block_error_policy on_target_error;
    unsigned job_flags; /* JOB_MANUAL_* */
};

/*
 * What is good for a disk of this length: 4 KiB, a guest's usual write, so that little is copied
 * again. Larger for disks of more than 2 TiB, for which the bits would take more than 64 MiB of
 * memory, but not above 64 KiB.
 */
uint64_t mirror_default_granularity(uint64_t length);

/*
 * Check the options, create the job and start it. The source must be a device's root, or a node
 * without parents. Not the main thread; drains the source's writers for a moment. Returns a
 * negative errno.
 */
int mirror_start(const struct mirror_options *options, GError **error);

/*
 * Let a mirror copy in another mode from now on. What guests' writes are doing just then they do
 * as in the mode before. Refused for other jobs, commits too ("Job type does not support change"),
 * and for one that is ending. Any thread; does not block.
 */
int mirror_change_copy_mode(struct job *job, enum mirror_copy_mode mode, GError **error);

/*
 * -EBUSY unless the node is a device's root, or has no parents: "Need a root block node". Commits
 * ask, too. Any thread.
 */
int mirror_check_is_root(struct block_node *node, GError **error);

#endif
