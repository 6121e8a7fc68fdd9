/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names in a backup set. No path is kept in one: all follow from the name of a disk, which is a
 * folder's, and the ID of a backup. What comes from outside is checked here and so cannot lead out
 * of the set.
 */
#ifndef LIVEBLK_SETS_NAMES_H
#define LIVEBLK_SETS_NAMES_H

#include <stdbool.h>
#include <stdint.h>

/*
 * IDs of backups are moments in UTC, such as 20261129T143005Z, with -001 to -999 behind them where
 * there was one already: in the order of text, the later one is greater.
 */
bool names_id_is_valid(const char *id);
/* A new one, greater than newest (NULL: there is none), whatever the clock says. The caller frees;
 * NULL: 1000 backups were made in a second, or the clock went back. */
char *names_new_id(int64_t now_s, const char *newest);

/* Names of disks are those of devices: a letter, then letters, digits, '-', '.' and '_'. */
bool names_disk_is_valid(const char *name);

/* The parts of a set's UUID that checkpoints are named after: "set-XXXXXXXXXXXX-". */
bool names_uuid_is_valid(const char *uuid);
char *names_new_uuid(void);
char *names_checkpoint_prefix(const char *uuid);

/* What is in a set's directory. */
#define NAMES_SET      "set.json"
#define NAMES_LOCK     ".lock"
#define NAMES_READERS  ".readers"
#define NAMES_MANIFEST ".json" /* after the ID */
#define NAMES_DAMAGED  ".damaged"
/* What is written beside a file, to be renamed to it. */
#define NAMES_NEW ".new"

/* And in a disk's folder, after the ID. */
#define NAMES_QCOW2 ".qcow2"
#define NAMES_RAW   ".raw"
#define NAMES_SUMS  ".sums"

/*
 * If a name is that of a backup's file with this suffix, its ID, which the caller frees; else
 * NULL.
 */
char *names_id_of(const char *name, const char *suffix);

#endif
