/* SPDX-License-Identifier: BSD-3-Clause */
/* What a tracker is, for the files behind block/tracking.h. */
#ifndef LIVEBLK_BLOCK_TRACKING_STATE_H
#define LIVEBLK_BLOCK_TRACKING_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/tracking.h"

struct change_tracker {
    char *device;
    char *path;
    char *disk_path;
    struct tracking_file *file; /* NULL: there is none; changed with the device drained */
    _Atomic bool is_lost;

    pthread_mutex_t lock; /* guards the directory; held while it is written, so not for guests */

    pthread_mutex_t loss_lock; /* guards what follows; innermost but for the event queue */
    enum tracking_loss loss;
    char *reason;
    bool is_marking; /* a thread notes the loss in the file */
    pthread_t marking;
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

#endif
