/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * External snapshots: a disk goes on in an overlay, and what it was becomes the overlay's backing
 * file, which nobody writes to any more.
 */
#ifndef LIVEBLK_BLOCK_OVERLAY_H
#define LIVEBLK_BLOCK_OVERLAY_H

#include "block/node.h"

/*
 * Whether an overlay can be put above a node that is no backing file: unused, equally long, of a
 * format that has backing files, and without one. Any thread. Returns a negative errno.
 */
int block_overlay_check(struct block_node *node, struct block_node *overlay, GError **error);

/*
 * Put it there: devices and parents of node are those of overlay from now on. Main thread; both
 * drained, readers too, and node flushed, because a guest's flush does not reach it any more. The
 * caller holds references to both. The overlay's image is left as it is. On error nothing changed.
 */
int block_overlay_install(struct block_node *node, struct block_node *overlay, GError **error);

/* Undo that in the same drained section. */
void block_overlay_remove(struct block_node *node, struct block_node *overlay);

#endif
