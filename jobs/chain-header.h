/* SPDX-License-Identifier: BSD-3-Clause */
/* What an image says its backing file is, changed for a job in a way that can be taken back. */
#ifndef LIVEBLK_JOBS_CHAIN_HEADER_H
#define LIVEBLK_JOBS_CHAIN_HEADER_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"

struct chain_header {
    struct block_node *node; /* a reference; NULL: nothing was changed */
    char *backing_file;      /* what it said; or NULL */
    char *backing_format;
};

/* Whether base (NULL: none) has a name, where name is none, for images to call it: before the work
 * is done. Not the main thread. Returns a negative errno. */
int chain_header_check(struct block_node *base, const char *name, GError **error);

/*
 * Let the image of a node say that its backing file is base (NULL: none), durably. name: what it
 * shall say instead of base's name, or NULL; mask_protocol: that the format is "raw" if base is
 * mere storage. An image that is read-only is opened for writing meanwhile. The node is drained,
 * readers too. On error, too, it can be restored. Not the main thread. Returns a negative errno.
 */
int chain_header_change(struct chain_header *header, struct block_node *node,
                        struct block_node *base, const char *name, bool mask_protocol,
                        GError **error);

/* Let it say what it said before, if anything was changed; the node is drained. That it does not is
 * no loss: the data is the same by either name. Not the main thread. */
void chain_header_restore(struct chain_header *header);

/* May close the node: not the main thread. */
void chain_header_clear(struct chain_header *header);

/*
 * Internal snapshots see the backing file, too, and are lost with it: -EBUSY if the node has some.
 * Not the main thread.
 */
int chain_check_no_snapshots(struct block_node *node, GError **error);

#endif
