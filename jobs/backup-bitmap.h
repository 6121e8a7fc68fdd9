/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A user's bitmap in a backup. It is frozen at the backup's moment, and its successor takes its
 * place when the backup has ended, with those of its bits set that the backup does not make
 * superfluous. In doubt a bit stays set: the next backup copies it once more.
 */
#ifndef LIVEBLK_JOBS_BACKUP_BITMAP_H
#define LIVEBLK_JOBS_BACKUP_BITMAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "block/point-in-time.h"

/* When bits are dropped; else the bitmap is afterwards as if there had been no backup. */
enum backup_bitmap_mode {
    BACKUP_BITMAP_ON_SUCCESS, /* all, if the backup succeeds */
    BACKUP_BITMAP_NEVER,
    BACKUP_BITMAP_ALWAYS, /* all if it succeeds, else those of what is safely on the target */
};
extern const char *const backup_bitmap_mode_names[]; /* as in QMP's BitmapSyncMode */

struct backup_bitmap {
    enum backup_bitmap_mode mode;
    bool is_limit;               /* only what it says is copied; else everything */
    struct block_node *node;     /* borrowed; the job's claims hold it */
    struct dirty_bitmap *frozen; /* NULL: none was taken, or it was given back */
    struct dirty_bitmap *owned;  /* a limit that is nobody else's; NULL: there is none */
    struct dirty_bitmap *zeroes; /* what reads as zeroes at the moment, if anybody knows; or NULL */
    struct dirty_bitmap *successor;
    /* Mode always: what was copied, set by many threads; NULL otherwise. */
    struct dirty_bitmap *copied;
    bool is_flushed; /* what was copied is safe */
};

/*
 * Freeze the bitmap, which is the node's, with a successor beside it. -ENOMEM with the error set.
 * Main thread, the node's writers drained, as in backup_bitmap_give_back.
 */
int backup_bitmap_take(struct backup_bitmap *bitmap, struct dirty_bitmap *taken, GError **error);

/* Undo it in the same drained section. */
void backup_bitmap_give_back(struct backup_bitmap *bitmap);

/* What is to be copied, if there is a limit: the frozen bitmap, or one that was made for that. */
static inline struct dirty_bitmap *backup_bitmap_limit(const struct backup_bitmap *bitmap)
{
    return bitmap->frozen ? bitmap->frozen : bitmap->owned;
}

/* Give up what is not in it, in whole units, which are powers of 2 from 4 KiB on. May block. */
void backup_bitmap_narrow(struct backup_bitmap *bitmap, struct point_in_time *point, uint64_t unit);

/* A range is on the target, if not safely yet. Any thread. */
void backup_bitmap_note_copied(struct backup_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/*
 * The end of the backup: the successor takes over. Nothing if none was taken. Drains the node's
 * writers; not the main thread.
 */
void backup_bitmap_settle(struct backup_bitmap *bitmap, bool is_success);

/* Free what is left of memory. */
void backup_bitmap_clear(struct backup_bitmap *bitmap);

#endif
