/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Change tracking of a device: what its guest changes is noted in a tracking file beside the disk,
 * in a way that outlives a killed process and a power loss (docs/tracking.md).
 *
 * A guest is the only writer of its disk (its claim sees to that), so the device's requests are
 * all there is to note, whatever nodes jobs put under the device. Tracking never fails a request
 * and never keeps a disk from being opened: where it cannot go on, the map is lost, which is said,
 * and who asks what changed is told to take everything.
 *
 * Threads. tracking_begin and tracking_end: guests' threads, many at once. The rest: one thread at
 * a time where nothing else is said, and those that say so with the device drained.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_H
#define LIVEBLK_BLOCK_TRACKING_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "block/request.h"
#include "block/tracking-file.h"

struct change_tracker;

struct tracking_options {
    const char *device;    /* its name */
    const char *path;      /* of the tracking file */
    const char *disk_path; /* of the file the disk lies in; NULL: it lies in none */
    /* Of that file, from before it was opened for writing. */
    struct tracking_identity identity;
    struct tracking_geometry geometry; /* of a new file */
};

/*
 * Begin to track a disk that is open but not written yet, whose root is this node. A file that is
 * there is gone on with, or, if the map in it is lost, a new one takes its place; unless it is not
 * this disk's to overwrite. Never fails: the tracker then says that it is lost, and why. May block.
 */
struct change_tracker *tracking_start(const struct tracking_options *options,
                                      struct block_node *root);

/*
 * The disk, open but not written yet, is about to be used without the tracking file of this path.
 * If that is there and this disk's, a warning says what comes of it; and if a process that died
 * left it, what it has is made whole and the file closed as at a clean end, so that the disk's time
 * of modification tells afterwards whether it was written. May block.
 */
void tracking_part(const struct tracking_options *options, struct block_node *root);

/*
 * The guest is gone and the root can still be read: take samples of it. Then the disk is closed,
 * and tracking_finish marks the file as complete and frees the tracker.
 */
void tracking_take_samples(struct change_tracker *tracker, struct block_node *root);
void tracking_finish(struct change_tracker *tracker);

/* The disk could not be flushed at its end: tracking_finish does as tracking_abandon then. */
void tracking_leave_open(struct change_tracker *tracker);

/*
 * The device uses it no more, and its disk goes on: what the file says is not true any longer, so
 * it is removed. The tracker stays, and refuses. An error: the file could not be removed. May
 * block.
 */
int tracking_stop(struct change_tracker *tracker, GError **error);

/* After that, with the device drained since: the file is closed. The tracker stays, and refuses. */
void tracking_release(struct change_tracker *tracker);

/* 0, or -EIO with why nothing is noted. Any thread. */
int tracking_check(struct change_tracker *tracker, GError **error);

/* Free the tracker and leave the file as a dying process would. For tests. */
void tracking_abandon(struct change_tracker *tracker);

/* A guest's request changes this range of the root, and has changed it (or failed to). */
void tracking_begin(struct change_tracker *tracker, struct block_node *root,
                    enum block_operation operation, uint64_t offset, uint64_t bytes);
void tracking_end(struct change_tracker *tracker, struct block_node *root,
                  enum block_operation operation, uint64_t offset, uint64_t bytes, int status);

/*
 * The disk is to have another length: before it grows, and after it shrank. Drained; waits for
 * tracking_io.timeout_ns at most. If that fails, tracking is lost, and the disk is what it is to
 * be.
 */
void tracking_resize(struct change_tracker *tracker, uint64_t length);

/*
 * That, or a checkpoint, is to come: do now, with guests going on, what would take long then. May
 * block. What was prepared and not used is to be forgotten afterwards.
 */
void tracking_prepare(struct change_tracker *tracker, uint64_t length);
void tracking_prepare_checkpoint(struct change_tracker *tracker);
void tracking_forget_prepared(struct change_tracker *tracker);

/*
 * The disk reads differently, and not by its guest's doing: nothing is known of it any more. how: a
 * sentence without its end. Any thread.
 */
void tracking_contents_changed(struct change_tracker *tracker, const char *how);

/*
 * A job or command has put another node with the same contents under the device, this one, for
 * good: from here the file is that disk's, also after a crash, and it keeps none of the bitmaps
 * that it kept of the one before. May block; not the main thread. If it fails, that is so from the
 * next checkpoint or a clean end.
 */
void tracking_disk_moved(struct change_tracker *tracker, struct block_node *root);

/* ---- Checkpoints ----------------------------------------------------------------------------- */

/*
 * Name this moment, durably. Drained; may block, so not on the main thread. The root is flushed:
 * what the disk holds now it must hold after a power loss, or it would differ from this moment
 * without a change. Errors: the name is taken or no name, the map is lost, the disk cannot be
 * flushed, the file cannot be written. Nothing has changed then.
 */
int tracking_checkpoint_add(struct change_tracker *tracker, struct block_node *root,
                            const char *name, GError **error);

/*
 * The same for a while: who opens the file after a crash does not find it, unless it was committed
 * (durably; a second time is no error). It cannot be a `since` before that, and is not removed by
 * others. Who begins it is given its UUID (TRACKING_UUID_BYTES): what has the name later, and is
 * another moment, is neither committed nor dropped by him.
 */
int tracking_checkpoint_begin(struct change_tracker *tracker, struct block_node *root,
                              const char *name, uint8_t *uuid, GError **error);
int tracking_checkpoint_commit(struct change_tracker *tracker, const char *name,
                               const uint8_t *uuid, GError **error);

/*
 * Forget it instead, durably; none of this name and UUID that is pending is no error, nor is a map
 * that is lost. uuid may be NULL: whichever it is, as nobody knows of it any more.
 */
int tracking_checkpoint_drop(struct change_tracker *tracker, const char *name, const uint8_t *uuid,
                             GError **error);

/*
 * For who keeps a record with a checkpoint of his: a note of at most TRACKING_NOTE_MAX bytes, which
 * is there durably, or as it was before. It goes with the checkpoint, and with the map. What has
 * the name and not the UUID is another's, and -ESTALE. Not on the main thread.
 */
int tracking_checkpoint_note(struct change_tracker *tracker, const char *name, const uint8_t *uuid,
                             GBytes *note, GError **error);
/* A reference, the checkpoint's UUID, and the disk's length at that moment; NULL with the error
 * set: there is none. Any thread. */
GBytes *tracking_checkpoint_get_note(struct change_tracker *tracker, const char *name,
                                     uint8_t *uuid, uint64_t *length, GError **error);
/*
 * At once and durably, a checkpoint goes, and a later one, which may have been pending, has its
 * name from here, and this note. Not on the main thread.
 */
int tracking_checkpoint_replace(struct change_tracker *tracker, const char *name,
                                const uint8_t *uuid, const char *with, const uint8_t *with_uuid,
                                GBytes *note, GError **error);

enum tracking_parent {
    TRACKING_PARENT_USABLE,
    TRACKING_PARENT_UNKNOWN,     /* there are others */
    TRACKING_PARENT_NONE_AT_ALL, /* the disk has no checkpoint */
    TRACKING_PARENT_LOST,        /* *loss: why */
};
/* What there is to be said of a checkpoint as `since`. Any thread. */
enum tracking_parent tracking_judge_parent(struct change_tracker *tracker, const char *name,
                                           enum tracking_loss *loss);

/* Forget it, durably. -ENOENT: there is none; -EBUSY: it is pending. Not on the main thread. */
int tracking_checkpoint_remove(struct change_tracker *tracker, const char *name, GError **error);

/*
 * What changed since a checkpoint, as a new bitmap with the map's granularity, or larger where that
 * would be too many bits. NULL with the error set: no such checkpoint, or it is broken, or the map
 * is lost; the texts say to take everything. Any thread; what changes meanwhile may be in it or
 * not.
 */
struct dirty_bitmap *tracking_changes_since(struct change_tracker *tracker, const char *name,
                                            GError **error);

/*
 * The same with the disk drained, and beside it what of that reads as zeroes at this moment: a
 * bitmap of the same kind, which says less rather than more.
 */
struct dirty_bitmap *tracking_changes_with_zeroes(struct change_tracker *tracker, const char *name,
                                                  struct dirty_bitmap **zeroes, GError **error);

/*
 * The same as of the moment of a later checkpoint, not drained: what changed after that is in it as
 * well, and not among the zeroes.
 */
struct dirty_bitmap *tracking_changes_until(struct change_tracker *tracker, const char *name,
                                            const char *until, struct dirty_bitmap **zeroes,
                                            GError **error);

/* ---- Bitmaps (block/tracking-bitmaps.c) ------------------------------------------------------ */

/* A copy of what the file holds; NULL if the map is lost. Any thread. */
struct tracking_directory *tracking_get_directory(struct change_tracker *tracker);

/*
 * Set in the bitmap, of the disk's length, what changed after the epoch. On error (the map is lost)
 * it says less, and must not be used. Any thread.
 */
int tracking_add_changes(struct change_tracker *tracker, uint32_t epoch,
                         struct dirty_bitmap *bitmap, GError **error);

/*
 * Keep these bitmaps of a node (struct tracking_bitmap, whose epochs are filled in, and which are
 * the file's afterwards) in the place of those of the same names, durably. The epoch ends: drained,
 * or the disk has no users. Refused if, for the file, the disk is elsewhere. Not on the main
 * thread.
 */
int tracking_keep_bitmaps(struct change_tracker *tracker, struct block_node *node,
                          GPtrArray *bitmaps, GError **error);

/* Keep none of this name; keep only those of these names (NULL-terminated). Durably. */
int tracking_forget_bitmap(struct change_tracker *tracker, const char *name, GError **error);
void tracking_drop_other_bitmaps(struct change_tracker *tracker, const char *const *names);

/* ---- What there is to know ------------------------------------------------------------------- */

struct tracking_info {
    const char *path; /* borrowed from the tracker */
    bool is_lost;     /* now: nothing is noted */
    enum tracking_loss loss;
    char *reason;                     /* a sentence; NULL if nothing is lost */
    enum tracking_loss previous_loss; /* of the map before this one, which had other checkpoints */
    bool is_conservative;
    uint64_t recovered_bytes;
    uint64_t granule, extent, extents;
    uint64_t memory_bytes; /* of the map and what is kept with it */
    uint64_t activations, log_writes, map_syncs;
    uint32_t epoch;
    char uuid[37];
};
/* Any thread. The caller clears it. */
void tracking_get_info(struct change_tracker *tracker, struct tracking_info *info);
void tracking_info_clear(struct tracking_info *info);

struct tracking_checkpoint_info {
    char *name;
    char uuid[37];
    int64_t time_ns;
    bool is_broken;
    bool is_pending;
    uint64_t changed_bytes; /* since then */
    uint64_t zero_bytes;    /* of them, those that read as zeroes */
};
/* All, oldest first; free with g_array_unref. Any thread. */
GArray *tracking_list_checkpoints(struct change_tracker *tracker);

#endif
