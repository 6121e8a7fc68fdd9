/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Persistent dirty bitmaps: those that outlive the node.
 *
 * While a node is open they are dirty bitmaps of its list like any other, so requests know nothing
 * of this. When it is opened they are loaded, and when it is closed or becomes read-only they are
 * stored. Somebody keeps them meanwhile: the image, if its format can (`struct bitmap_keeper`).
 *
 * What the keeper has is either just what memory says, or marked as in use, so that after a crash
 * nobody takes it for true. It is marked before the first change, not when the node is opened: a
 * server that was killed while nobody wrote has lost nothing. Hence the rule for everybody who
 * changes a persistent bitmap otherwise than by writing to the node: first
 * block_stored_bitmaps_begin_change(), which may fail; then the change.
 *
 * Loading, storing and removing take as long as storage does: not on the main thread of a server.
 */
#ifndef LIVEBLK_BLOCK_STORED_BITMAPS_H
#define LIVEBLK_BLOCK_STORED_BITMAPS_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/image.h"
#include "block/node.h"

/* ---- For commands and jobs ------------------------------------------------------------------- */

/*
 * Whether a new bitmap of the node can be persistent. Nothing is stored yet. -ENOTSUP "Can't store
 * persistent bitmaps to %s: Operation not supported" if nobody could keep it, or another error that
 * begins "Can't make bitmap '%s' persistent in '%s': ".
 */
int block_stored_bitmaps_check_new(struct block_node *node, const char *name, uint64_t granularity,
                                   GError **error);

/*
 * A persistent bitmap of this name is about to be changed in memory: cleared, merged into, enabled,
 * disabled, exchanged. What is kept of it is marked as in use, durably. Does nothing, successfully,
 * where there is nothing to mark. On error the bitmap must stay as it is.
 */
int block_stored_bitmaps_begin_change(struct block_node *node, const char *name, GError **error);

/*
 * What is kept of a persistent bitmap is removed, durably; not being there is no error. Memory has
 * it until it is taken out of the node, and if that does not happen it is stored again as a new
 * one. If it fails, a bitmap that was marked by begin_change before comes back as an inconsistent
 * one when the node is opened again, unless it is stored.
 */
int block_stored_bitmaps_remove(struct block_node *node, const char *name, GError **error);

/*
 * A bitmap of this name was added to the node, has been changed as begin_change announces, or is
 * gone. Keepers that want to know are told. Not from within a drained section.
 */
void block_stored_bitmaps_changed(struct block_node *node, const char *name);

/* The names of the persistent bitmaps of a node, or of those that say something; free with
 * g_strfreev.
 */
char **block_stored_bitmaps_names(struct block_node *node, bool with_inconsistent);

/* How many persistent bitmaps the node has in memory. */
size_t block_stored_bitmaps_count(struct block_node *node);

/*
 * Whether the node's image keeps its persistent bitmaps: its format and its version can, and it
 * shows the image's disk, not something else of it (a snapshot, say). Else a keeper that was added
 * may. Any thread.
 */
bool block_stored_bitmaps_image_keeps(struct block_node *node);

/* ---- For the core: opening, closing, reopening ----------------------------------------------- */

/*
 * The node has just been opened and nobody else knows it: load what is kept. What cannot be loaded
 * becomes an inconsistent bitmap, with a warning if the node is writable.
 */
void block_stored_bitmaps_load(struct block_node *node);

/*
 * What this thread opens from now on, or no longer, is going to be looked at by a keeper that was
 * added (block_stored_bitmaps_load_late), which may make good what the image cannot vouch for: that
 * one warns of what remains.
 */
void block_stored_bitmaps_expect_late(bool is_expected);

/* A writable node is being closed, nobody uses it: store all, and warn of what cannot be stored. */
void block_stored_bitmaps_close(struct block_node *node);

/*
 * A node, drained, becomes read-only: its persistent bitmaps do so at once, and then are stored.
 * -EBUSY if an operation holds one. The operation lock is held. Followed, whether this fails or
 * not, by block_stored_bitmaps_reopened.
 */
int block_stored_bitmaps_suspend(struct block_node *node, GError **error);

/*
 * The node is, or stays, what node->options.read_only says: so are its persistent bitmaps now.
 * was_read_only: and what is kept may have changed by another hand meanwhile. The operation lock is
 * held.
 */
void block_stored_bitmaps_reopened(struct block_node *node, bool was_read_only);

/* ---- Who keeps them -------------------------------------------------------------------------- */

/*
 * A keeper. The image is the first one asked; others are added at start-up. None of its functions
 * runs on the main thread of a server or twice at a time for one node; the operation lock is held,
 * or nobody else knows the node.
 */
struct bitmap_keeper {
    /* Whether it keeps the bitmaps of such a node. Any thread. */
    bool (*keeps)(struct block_node *node);
    /* Whether a new one could be kept besides so many others. */
    int (*check_new)(struct block_node *node, const char *name, uint64_t granularity, size_t others,
                     GError **error);
    /* Add what is kept to node->bitmaps. */
    void (*load_all)(struct block_node *node);
    /*
     * All keepers, in order, when one has loaded: exchange inconsistent bitmaps for good ones that
     * it can make. NULL: nothing.
     */
    void (*restore)(struct block_node *node);
    /*
     * Keep these bitmaps for good: nothing changes them any more. All are tried, and the first
     * error is returned.
     */
    int (*store_all)(struct block_node *node, struct dirty_bitmap *const *bitmaps, size_t count,
                     GError **error);
    /* See block_stored_bitmaps_begin_change and _remove. */
    int (*begin_change)(struct block_node *node, const char *name, GError **error);
    int (*remove)(struct block_node *node, const char *name, GError **error);
    /*
     * A persistent bitmap of this name was added, or changed otherwise than by writing to the node,
     * or is gone. Nobody holds the operation lock. NULL: nothing.
     */
    void (*changed)(struct block_node *node, const char *name);
    /* Whether what is kept can still be trusted, of a node that was read-only for a while: fills in
     * false for those of these bitmaps that cannot. NULL: it can. */
    void (*look_again)(struct block_node *node, struct dirty_bitmap *const *bitmaps, size_t count,
                       bool *is_trusted);
};

/*
 * A keeper that was added learned of a node only after that was opened: load what it keeps, if the
 * image keeps none, let it restore what is inconsistent, and warn of what still is. Nobody uses
 * the node yet.
 */
void block_stored_bitmaps_load_late(struct block_node *node, const struct bitmap_keeper *keeper);

/*
 * What a file may make us keep: a few bytes of it can say that there are large bitmaps all of whose
 * bits are set. The bits of all bitmaps of a node take no more.
 */
#define BLOCK_STORED_BITMAPS_BYTES_MAX (UINT64_C(1) << 30)

/* Bytes of the bits of a bitmap, as they are stored. */
uint64_t block_stored_bitmaps_bytes(uint64_t length, uint64_t granularity);

/*
 * A bitmap of the node as this says, persistent and clear. What it says of its size need not be
 * true if the bitmap is going to be inconsistent: it has to have only a name. NULL: no memory.
 */
struct dirty_bitmap *block_stored_bitmaps_new(struct block_node *node,
                                              const struct block_persistent_bitmap *stored);

/*
 * Bits as they are stored: in bytes, the least significant first, as many as there are granules.
 * NULL: no memory. There may be up to 7 bytes more in the buffer, which g_free frees.
 */
uint8_t *block_stored_bitmaps_encode(struct dirty_bitmap *bitmap, uint64_t *bytes);
/* Set what is set there; the buffer holds whole words of 8 bytes. */
void block_stored_bitmaps_decode(struct dirty_bitmap *bitmap, const uint8_t *bits, uint64_t bytes);

/* Add a keeper for nodes whose image keeps none; at start-up, before any node is opened. */
void block_stored_bitmaps_add_keeper(const struct bitmap_keeper *keeper);

#endif
