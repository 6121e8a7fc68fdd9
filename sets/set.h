/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A backup set: a directory with manifests, and a folder per disk with images and checksums. What a
 * run or a prune that died has left is mended by whoever opens the set for writing next, and does
 * not confuse those who only read.
 *
 * A new state of a backup (made whole by a prune) is prepared in files ID.*.new, and valid from the
 * moment when ID.json.new is whole: from then on it is what counts, and what is left to be done is
 * to rename.
 *
 * One thread at a time.
 */
#ifndef LIVEBLK_SETS_SET_H
#define LIVEBLK_SETS_SET_H

#include <glib.h>
#include <stdbool.h>

#include "block/cleanup.h"
#include "sets/manifest.h"

enum set_use {
    SET_LOOK,  /* at the manifests */
    SET_READ,  /* backups: keeps others from pruning */
    SET_RUN,   /* make a backup: one at a time; the set is made if there is none */
    SET_PRUNE, /* the same, and nobody reads */
};

/* A backup whose manifest cannot be used. Its files are left alone. */
struct set_problem {
    char *id;
    char *message;
};

struct set {
    char *path; /* absolute */
    char *uuid; /* SET_RUN: never NULL. Else NULL if there is neither that nor a manifest */
    GPtrArray *manifests; /* struct manifest *, oldest first */
    GArray *problems;     /* struct set_problem, oldest first */
    char *note;           /* about what had to be mended, a sentence for people; NULL: nothing */
    /* IDs of which the new state counts, though not all is renamed. */
    GHashTable *switching;
    int lock_fd, readers_fd;
};

/*
 * Open a set and read its manifests. Returns NULL with the error set: -EBUSY with a sentence if
 * somebody is in the way, -ENOENT if there is no set.
 */
struct set *set_open(const char *path, enum set_use use, GError **error);
void set_free(struct set *set);
DEFINE_AUTO(set, set_free)

/* Borrowed; NULL: there is none. */
struct manifest *set_find(const struct set *set, const char *id);
/* The ID of the newest backup, of those that cannot be used, too; NULL: none. Borrowed. */
const char *set_newest_id(const struct set *set);
/* The newest backup that has the disk; NULL: none. */
struct manifest *set_newest_of(const struct set *set, const char *disk);
/* The error that there is no such backup, or why it cannot be used. Returns a negative errno. */
int set_refuse_missing(const struct set *set, const char *id, GError **error);

/* Paths; the caller frees. Of a backup's file the one that counts. */
char *set_folder(const struct set *set, const char *disk);
char *set_manifest_path(const struct set *set, const char *id);
char *set_file_path(const struct set *set, const char *disk, const char *id, const char *suffix);
char *set_image_path(const struct set *set, const char *id, const struct manifest_disk *disk);

/* What a disk's image is called; without the folder. */
const char *set_image_suffix(const struct manifest_disk *disk);

/*
 * That a verification found a backup damaged is noted in the set, so that the next run does not
 * build upon it. message: NULL takes the note away. Errors do not matter: who may only read the set
 * cannot note anything.
 */
void set_note_damage(const struct set *set, const char *id, const char *message);
/* Whether there is a note. */
bool set_has_damage(const struct set *set, const char *id);

/* Finish a switch to the new state, whose manifest is whole. SET_PRUNE. */
int set_finish_switch(struct set *set, const struct manifest *manifest, GError **error);

/* Remove a backup: its manifest first, durably. SET_PRUNE; manifest must not be used any more. */
int set_remove(struct set *set, struct manifest *manifest, GError **error);

#endif
