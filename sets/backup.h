/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making a backup in a set, but for the session with the server: choosing what each disk's image is
 * to be an increment of, and making images. Until backup_finish() has succeeded there is no backup,
 * and what is left is removed by the next run.
 */
#ifndef LIVEBLK_SETS_BACKUP_H
#define LIVEBLK_SETS_BACKUP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "sets/set.h"

/* Why the set has a full backup made, where it is not the server that says so. */
#define REASON_FIRST      "first"
#define REASON_ASKED      "asked"
#define REASON_DAMAGED    "parent-damaged"
#define REASON_FORMAT     "format-changed"
#define REASON_CHECKPOINT "no-checkpoint"
#define REASON_CHAIN      "chain-too-long"

/* What is known of a disk before the session begins. */
struct backup_parent {
    char *id;           /* of the backup to build upon; NULL: none */
    char *checkpoint;   /* of that; NULL: none */
    uint64_t length;    /* of the disk then */
    const char *reason; /* why none: a word, as above */
    char *message;      /* the same as a sentence; NULL: the word says it all */
};

/*
 * Find what a disk's new image can be an increment of: the newest backup of the disk, if its whole
 * chain is there and undamaged as far as sizes and checksums of checksums tell, was not found
 * damaged by a verification, and has a checkpoint. `deep`: compare all data, too.
 */
void backup_find_parent(const struct set *set, const char *disk, bool is_raw, bool is_full,
                        bool deep, struct backup_parent *parent);
void backup_parent_clear(struct backup_parent *parent);

/* How a disk is copied. */
struct backup_source {
    struct block_node *node; /* what the disk held at the instant; borrowed */
    /* Of an increment, what has changed, in whole granules, and what of it is zero; borrowed, and
     * used up. Of a full one NULL. */
    struct dirty_bitmap *changed, *zeroes;
    uint64_t parent_length; /* of an increment */
    bool compress;
    int64_t speed;
    block_progress *progress;
    void *progress_data;
};

/*
 * Make the image and the checksums of a disk of a new backup, and complete what its manifest says
 * (name, is_raw, parent and length are set). Durable, but that nothing names it yet. Returns a
 * negative errno with the error set.
 */
int backup_copy_disk(const struct set *set, const char *id, struct manifest_disk *disk,
                     const struct backup_source *source, GError **error);

/* From here on the backup is there. */
int backup_finish(struct set *set, const struct manifest *manifest, GError **error);

/* The run has failed: remove what it has made, also if that has become a backup just now. */
void backup_discard(struct set *set, const char *id);

#endif
