/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The backup job: brings the contents a node has at the moment the job starts to a target, while
 * the guest goes on writing. The verify job is the same but that it compares them with the target.
 */
#ifndef LIVEBLK_JOBS_BACKUP_H
#define LIVEBLK_JOBS_BACKUP_H

#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "jobs/backup-bitmap.h"
#include "jobs/job.h"
#include "jobs/verify.h"

enum backup_sync {
    BACKUP_SYNC_FULL, /* everything */
    /* What the source's top layer holds itself; everything if there is none below. */
    BACKUP_SYNC_TOP,
    BACKUP_SYNC_NONE, /* only what the guest overwrites; ends by being cancelled */
    /* What a bitmap says: backup_take_bitmap or backup_limit_to is called before the moment. */
    BACKUP_SYNC_BITMAP,
};

/* Where a full backup keeps what guests overwrite before the job gets to it. */
enum backup_scratch {
    BACKUP_SCRATCH_DIRECTORY, /* a file without a name in a directory */
    BACKUP_SCRATCH_NODE,
    BACKUP_SCRATCH_NONE, /* only in memory: a slow target holds guests up when that is full */
};

struct backup_options {
    const char *job_id;
    struct block_node *source; /* borrowed; the job takes references */
    struct block_node *target; /* as source; or NULL with open_target */
    /*
     * Makes the target when all else has been checked, the job's ID and speed included, so that a
     * refused backup does not empty a file. Called at most once; a new reference, or NULL.
     */
    struct block_node *(*open_target)(void *data, GError **error);
    void *open_target_data;
    enum backup_sync sync;
    enum backup_bitmap_mode bitmap_mode; /* of one that is taken */
    enum backup_scratch scratch;         /* with sync none there is no use for it */
    const char *scratch_directory;       /* NULL: $TMPDIR or /var/tmp */
    struct block_node *scratch_node;     /* as source */
    uint64_t scratch_max;                /* most bytes on scratch; 0: no limit */
    int64_t scratch_high_percent;        /* of scratch_max, when to tell; 0: never */
    int64_t speed;                       /* bytes per second; 0: unlimited */
    int64_t guest_latency; /* nanoseconds the guest may have; 0: any (job_guest_latency) */
    enum block_error_policy on_source_error;
    enum block_error_policy on_target_error;
    bool use_copy_range;
    bool compress; /* the target's format compresses */
    /* Compare with the target (sync full or bitmap); with ignore as a policy what cannot be read is
     * left out, and the job fails at its end. NULL: copy to it. */
    const struct verify_options *verify;
    int64_t max_workers;       /* 0: the default */
    int64_t max_chunk;         /* bytes; 0: the default */
    uint64_t min_cluster_size; /* what a guest's write saves at least: a power of 2; 0: 4096 */
    /* Discard what is on the target. The source is a snapshot, which nothing else is made of. */
    bool discard_source;
    /* While the job runs, a node of this name is above the source; or NULL. */
    const char *filter_node_name;
    int64_t guest_timeout_s; /* how long a guest's write may wait for the job; 0: for ever */
    unsigned job_flags;      /* JOB_MANUAL_* */
    struct job_transaction *transaction; /* or NULL */
};

#define BACKUP_DEFAULT_GUEST_TIMEOUT_S 10

/*
 * Check the options and create the job, without its moment: the first of three steps. Then, with
 * the source's writers drained, backup_take_bitmap if there is one, and backup_activate; then
 * job_start; or job_roll_back. A new reference, or NULL with the error set. Not the main thread.
 */
struct job *backup_new(const struct backup_options *options, GError **error);

/*
 * The bitmap that says what is to be copied (sync bitmap), or that is to say afterwards what has
 * changed since (full and top). It is the source's, not busy, and is frozen until the job ends; the
 * backup frees it when its successor has taken its place. -ENOMEM with the error set. Main thread,
 * drained.
 */
int backup_take_bitmap(struct job *job, struct dirty_bitmap *bitmap, GError **error);

/* Undo it in the same drained section; the job is not activated then. */
void backup_give_back_bitmap(struct job *job);

/*
 * The same without a bitmap of the source's: what is to be copied (sync bitmap), as the disk is in
 * this drained section. The job owns it from now on. Any thread.
 */
void backup_limit_to(struct job *job, struct dirty_bitmap *bitmap);

/*
 * What of the disk is known to read as zeroes in this drained section, and need not be read. The
 * job owns it from now on. Any thread.
 */
void backup_know_zeroes(struct job *job, struct dirty_bitmap *zeroes);

/* The moment. Main thread, the source's writers drained (BLOCK_PERM_WRITE). Cannot fail. */
void backup_activate(struct job *job);

#endif
