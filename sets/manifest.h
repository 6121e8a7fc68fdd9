/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Manifests: a backup is there if and only if its manifest is. It says of each disk what its image
 * is an increment of, and what has to be known to see any damage: sizes, and the digest of the
 * checksums, which cover all data. It has a digest of its own. It is JSON; docs/backup-sets.md
 * describes it.
 */
#ifndef LIVEBLK_SETS_MANIFEST_H
#define LIVEBLK_SETS_MANIFEST_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "sets/sums.h"

/* One disk of a backup. Strings are its own. */
struct manifest_disk {
    char *name;
    bool is_raw;
    char *
        parent; /* the ID of the backup that the image is an increment of; NULL: it is a full one */
    char
        *reason; /* of a full one: why, a word; NULL for an increment, or one that was made whole */
    char *checkpoint; /* that was cut at its instant; NULL: the disk was not tracked */
    uint64_t length;
    uint64_t image_bytes; /* the length of the image's file */
    struct sums_file sums;
    uint64_t data_bytes, zero_bytes; /* of the disk, that the image holds */
};

struct manifest {
    char *id;
    char *set;       /* the set's UUID */
    int64_t time_s;  /* the instant, since 1970 */
    int64_t held_ns; /* guests were, for it */
    struct manifest_disk *disks;
    size_t disk_count;
};

struct manifest *manifest_new(const char *id, const char *set, size_t disk_count);
struct manifest *manifest_copy(const struct manifest *manifest);
void manifest_free(struct manifest *manifest);
DEFINE_AUTO(manifest, manifest_free)

/* Borrowed; NULL: the backup has no such disk. */
struct manifest_disk *manifest_find_disk(const struct manifest *manifest, const char *name);

/*
 * Read a manifest, which has to be of the backup of this ID. NULL with the error set: -ENOENT if
 * it is not there, -EBADMSG if it is damaged or makes no sense.
 */
struct manifest *manifest_read(const char *path, const char *id, GError **error);

/* Make it be there, durably, in the place of what was. */
int manifest_write(const struct manifest *manifest, const char *path, GError **error);

/*
 * JSON files of a set that carry their own digest. Members are the caller's to check. A new
 * reference; errors as of manifest_read.
 */
json_t *sealed_read(const char *path, GError **error);
/* Adds the digest to object. */
int sealed_write(json_t *object, const char *path, GError **error);

#endif
