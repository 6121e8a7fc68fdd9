/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Removing old backups. A backup that is kept and is an increment of one that goes is made whole
 * first, in its own place; so a restore of what is kept is possible at any moment, whatever dies.
 */
#ifndef LIVEBLK_SETS_PRUNE_H
#define LIVEBLK_SETS_PRUNE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/driver.h"
#include "sets/set.h"

struct prune_plan {
    /* The newest so many of each disk, damaged ones not counted; at least 1. */
    uint64_t keep;
    int64_t newer_than_s; /* and what is newer, since 1970; 0: no more */
    bool dry_run;         /* only say what would be done */
    /* A backup is to be removed (is_removal), or made whole. */
    void (*says)(const struct manifest *manifest, bool is_removal, void *data);
    void *says_data;
    block_progress *progress; /* bytes of what is made whole; may be NULL */
    void *progress_data;
};

/*
 * Prune a set that was opened with SET_PRUNE. Backups whose manifests cannot be used are left
 * alone. Returns a negative errno with the error set: what was done up to then stays done.
 */
int prune_set(struct set *set, const struct prune_plan *plan, GError **error);

#endif
