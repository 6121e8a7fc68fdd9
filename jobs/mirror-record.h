/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a mirror keeps of itself, so that one that died can be gone on with: a checkpoint of the
 * disk, in its tracking file, with a note of what the target holds for good as of that checkpoint.
 *
 * The note may claim only what the target has flushed, of a moment when it said so: what is copied
 * after a flush began is claimed by the next one. At first it claims the parts that were gone
 * through, since the checkpoint that was cut when the mirror began. When all of it is there, the
 * checkpoint rolls: at an instant another one is cut; when all that was to be copied at that
 * instant is copied and flushed, it takes the place of the first, at once and durably.
 *
 * Who goes on copies what is not claimed, and what changed since the checkpoint.
 */
#ifndef LIVEBLK_JOBS_MIRROR_RECORD_H
#define LIVEBLK_JOBS_MIRROR_RECORD_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/tracking.h"

struct mirror;
struct mirror_options;
struct job_info;

/* What a note says. */
struct mirror_note {
    char *target; /* its name */
    /* Of its file; 0: it is none. Not the device, whose number a restart of the host may change. */
    uint64_t inode;
    uint64_t length;  /* of the disk */
    uint64_t chunk;   /* a power of 2 */
    GByteArray *done; /* one bit per chunk: the target holds it. Little endian */
    GArray *samples;  /* of struct mirror_sample: what it held when it was flushed */
};

void mirror_note_clear(struct mirror_note *note);
GBytes *mirror_note_encode(const struct mirror_note *note);
/* False if it makes no sense. Fills in note, which is then cleared by the caller. */
bool mirror_note_decode(GBytes *bytes, struct mirror_note *note);

struct mirror_record {
    bool is_wanted;     /* constant */
    bool is_target_new; /* the target was made for this mirror; constant */
    struct block_device *device;
    struct change_tracker *tracker; /* borrowed; the device's */
    char *name;                     /* of the checkpoint */
    uint8_t uuid[TRACKING_UUID_BYTES];
    char *next; /* of one that is to take its place */
    uint8_t next_uuid[TRACKING_UUID_BYTES];
    struct mirror_note found; /* what an earlier mirror left; target NULL: nothing */
    _Atomic bool is_told;     /* what follows is known, and constant */
    bool is_resumed;
    char *why_full; /* or NULL */

    /* Lock of struct mirror_target. */
    struct dirty_bitmap *todo; /* not claimed yet: of the checkpoint, or of the next one */
    GByteArray *claims;        /* of the flush that is under way */
    bool may_roll;             /* with that flush the next one takes the place */

    /* Coordinating thread or its errand, never both. */
    bool is_kept;            /* the checkpoint is there, and the note may be written */
    bool is_new;             /* made by this mirror */
    bool is_whole;           /* the note claims all */
    bool has_next;           /* the next checkpoint is cut */
    GBytes *written;         /* the note, as it is */
    int64_t cut_ns, held_ns; /* the last try to cut, and how long guests were held for it */
    uint64_t cut_copied, cut_written; /* what there was at the last cut */
    _Atomic bool is_resting;          /* nothing is to be begun: a checkpoint is about to be cut */
};

/* Whether the options make sense for this device; then note what there is. Before the target is
 * opened. */
int mirror_record_choose(struct mirror *mirror, const struct mirror_options *options,
                         GError **error);
bool mirror_record_is_wanted(const struct mirror *mirror);

/* With the target, which is read: what is there to go on with. An error: it cannot be read, so that
 * nobody knows. May block; not drained. */
int mirror_record_find(struct mirror *mirror, GError **error);

/* Whether that is so: the bitmap begins clear. */
bool mirror_record_is_found(const struct mirror *mirror);

/* At the moment the mirror starts, drained: what is to be copied, and the first note. */
int mirror_record_begin(struct mirror *mirror, GError **error);

/* The lock of struct mirror_target is held: something is there; is not any more; a flush begins. */
void mirror_record_written(struct mirror *mirror, uint64_t offset, uint64_t bytes);
void mirror_record_unwritten(struct mirror *mirror, struct dirty_bitmap *lost);
void mirror_record_begin_flush(struct mirror *mirror);
/* Whether there is something to be noted, which needs one. */
bool mirror_record_wants_flush(struct mirror *mirror);

/* It has succeeded: what was there when it began may be claimed. Writes the note. May block. */
void mirror_record_flushed(struct mirror *mirror);

/* At a tick, ready and with the target there: roll. Coordinating thread. */
void mirror_record_tend(struct mirror *mirror);

/* The end. The record goes if the mirror has come to its end, or its user does not want it. */
void mirror_record_end(struct mirror *mirror, bool is_of_use);
void mirror_record_free(struct mirror *mirror);

/* For job_info. Any thread. */
void mirror_record_report(struct mirror *mirror, struct job_info *info);

#endif
