/* SPDX-License-Identifier: BSD-3-Clause */
/* What a tracker is, for the files behind block/tracking.h. */
#ifndef LIVEBLK_BLOCK_TRACKING_STATE_H
#define LIVEBLK_BLOCK_TRACKING_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "block/tracking-rebuild.h"
#include "block/tracking.h"

struct tracking_marking;

struct change_tracker {
    char *device;
    char *path;
    /* Changed with both locks held. The other one: where the disk lay before it moved there. */
    char *disk_path, *disk_path_before;
    char *below;         /* the name of what the guest's disk lies on, and the file says */
    bool has_moved_away; /* to what no file can be told from; guarded by lock */
    GPtrArray *layers;   /* at the end: of struct tracking_layer; NULL before */
    /* NULL: there is none. Changed with the device drained, and both locks. */
    struct tracking_file *file;
    _Atomic bool is_lost;
    bool is_left_open; /* at its end the disk is not known to be what was written */

    /*
     * Held from the look at a bitmap until it is written, so that what was seen last is what is
     * kept; and while the disk moves to another node. Not for guests nor for the main thread. Taken
     * after the operation lock of a node, and before a drained section and the next one.
     */
    pthread_mutex_t bitmaps_lock;
    pthread_mutex_t lock; /* guards the directory; held while it is written, so not for guests */
    struct tracking_rebuild *prepared; /* guarded by lock; or NULL */

    pthread_mutex_t loss_lock; /* guards what follows; innermost but for the event queue */
    enum tracking_loss loss;
    char *reason;
    struct tracking_marking *marking; /* threads say that it is lost, or did; or NULL */
    _Atomic bool is_settled;          /* they have, or had their time */
    pthread_cond_t settled;
    int64_t settled_at_latest;
};

/* Nothing is noted any more, which is said, here and in the file. detail may be NULL. Any thread.
 */
void tracking_lose(struct change_tracker *tracker, enum tracking_loss loss, const char *detail);

/* The same, by order of the user, and nobody is told. Nothing, if it is lost already. */
void tracking_end_quietly(struct change_tracker *tracker, enum tracking_loss loss,
                          const char *reason);

/*
 * The map is lost. Before a change that is not noted any more: that is on stable storage, or this
 * storage had its time to take it.
 */
void tracking_wait_until_settled(struct change_tracker *tracker);

/*
 * The end of that: waits for the threads, but not for ever. Returns false if they hang: they have
 * what they need besides the tracker, which must stay as long as the process.
 */
bool tracking_end_marking(struct change_tracker *tracker);

/* Another file, in the place of one that is gone. Drained, the lock held. */
void tracking_take_file(struct change_tracker *tracker, struct tracking_file *file);

/*
 * A file that may have the place of the tracker's, or get it yet: who says that the map is lost
 * says it to that one, too. Takes the reference. Drained, the lock held.
 */
void tracking_take_successor(struct change_tracker *tracker, struct tracking_file *successor);

/* Where the disk lies, from here. The lock is held. */
void tracking_note_disk_path(struct change_tracker *tracker, const char *path);

/*
 * Make the file anew, and wait tracking_io.timeout_ns at most. Drained, the lock held. On error
 * nothing has changed; but see is_given_up.
 */
int tracking_rebuild_now(struct change_tracker *tracker, uint64_t length, GError **error);

/*
 * What was marked has not gone where nobody finds it again; else the map is lost, now. The tracker
 * was not lost, and has a file. Any thread.
 */
bool tracking_is_whole(struct change_tracker *tracker);

/*
 * Snapshots, commits and mirrors move the guest's disk to another file. What it left is as it was
 * at that moment: since a checkpoint from before no more changed there than is noted. A checkpoint
 * that is cut later is not one of it: with that goes the identity of where the disk is now, which
 * the header has from here. What is kept of bitmaps is of the node that it left, and goes with the
 * same store: the bitmaps of a file are those of the disk that its header names. The lock is held,
 * and the tracker not lost. Returns false if it has not moved.
 */
bool tracking_follow(struct change_tracker *tracker, struct block_node *root);

/* Whether the disk is, for the file, where this node is. The lock is held. */
bool tracking_is_at(const struct change_tracker *tracker, struct block_node *node);

/* As tracking_check. advice: what is to be done about it, after a comma, or nothing. */
int tracking_check_advising(struct change_tracker *tracker, const char *advice, GError **error);

#endif
