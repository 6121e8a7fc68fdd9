/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Verifying backups: reads the set and nothing else. What makes a restore give other data than was
 * backed up is found: each manifest, chain and file of checksums by its digest, each image by its
 * size, the format's own check, what is allocated in it and as what, and each block of data by its
 * checksum.
 */
#ifndef LIVEBLK_SETS_VERIFY_H
#define LIVEBLK_SETS_VERIFY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "sets/backup-chain.h"
#include "sets/set.h"

/* Something that is wrong with a backup. */
struct verify_finding {
    const char *id;
    const char *disk; /* NULL: of the backup as a whole */
    const char *file; /* NULL: of none in particular */
    /* The range of the disk; bytes 0: none in particular. */
    uint64_t offset, bytes;
    const char *message; /* a sentence */
};

struct verify_plan {
    const char *id;   /* of the backup; NULL: all */
    const char *disk; /* NULL: all */
    void (*found)(const struct verify_finding *finding, void *data);
    void *found_data;
    block_progress *progress; /* bytes of all images; may be NULL */
    void *progress_data;
};

struct verify_result {
    uint64_t backups; /* looked at */
    uint64_t damaged; /* of these */
    uint64_t findings;
    uint64_t bytes; /* of data, compared */
};

/*
 * Verify, and note in the set what is damaged. A backup is damaged, too, if one that it is built
 * upon is; that one is looked at along with it. 0, also if damage was found; or a negative errno
 * with the error set: -ENOENT if there is nothing to look at, -ECANCELED if progress said so.
 */
int verify_set(const struct set *set, const struct verify_plan *plan, struct verify_result *result,
               GError **error);

/* Compare all that a chain reads as. -EBADMSG with the first thing that is wrong. */
int verify_chain(const struct backup_chain *chain, GError **error);

#endif
