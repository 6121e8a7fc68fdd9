/* SPDX-License-Identifier: BSD-3-Clause */
/* What a tracker is, for the files behind block/tracking.h. */
#ifndef LIVEBLK_BLOCK_TRACKING_STATE_H
#define LIVEBLK_BLOCK_TRACKING_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "block/tracking.h"

struct change_tracker {
    char *device;
    char *path;
    char *disk_path;
    char *below;         /* the name of what the guest's disk lies on, and the file says */
    bool has_moved_away; /* to what no file can be told from; with disk_path guarded by lock */
    struct tracking_file *file; /* NULL: there is none; changed with the device drained */
    _Atomic bool is_lost;
    bool is_left_open; /* at its end the disk is not known to be what was written */

    pthread_mutex_t lock; /* guards the directory; held while it is written, so not for guests */

    pthread_mutex_t loss_lock; /* guards what follows; innermost but for the event queue */
    enum tracking_loss loss;
    char *reason;
    bool is_marking; /* a thread notes the loss in the file */
    pthread_t marking;
    pid_t marking_process;
    _Atomic bool is_settled; /* it has, or had its time */
    pthread_cond_t settled;
    int64_t settled_at_latest;
};

/* Nothing is noted any more, which is said, here and in the file. detail may be NULL. Any thread.
 */
void tracking_lose(struct change_tracker *tracker, enum tracking_loss loss, const char *detail);

/*
 * What was marked has not gone where nobody finds it again; else the map is lost, now. The tracker
 * was not lost, and has a file. Any thread.
 */
bool tracking_is_whole(struct change_tracker *tracker);

/*
 * Snapshots, commits and mirrors move the guest's disk to another file. What it left is as it was
 * at that moment: since a checkpoint from before no more changed there than is noted. A checkpoint
 * that is cut later is not one of it: with that goes the identity of where the disk is now, which
 * the header has from here. The lock is held, and the tracker not lost.
 */
void tracking_follow(struct change_tracker *tracker, struct block_node *root);

/* As tracking_check. advice: what is to be done about it, after a comma, or nothing. */
int tracking_check_advising(struct change_tracker *tracker, const char *advice, GError **error);

#endif
