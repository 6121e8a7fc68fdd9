/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Layers of a chain, read-only as such, that are writable as long as jobs write to them. Two jobs
 * may write to one layer in different ways (one changes its header, one fills it), and neither may
 * make it read-only under the other.
 */
#ifndef LIVEBLK_JOBS_CHAIN_WRITABLE_H
#define LIVEBLK_JOBS_CHAIN_WRITABLE_H

#include <glib.h>

#include "block/node.h"

/*
 * Make the node writable, if it is not. Returns 1 if chain_writable_end has to follow, 0 if the
 * node is writable anyway, or a negative errno with the error set. Drains it; not the main thread.
 */
int chain_writable_begin(struct block_node *node, GError **error);

/* Who called the other one needs it no more: the last one makes it read-only. Not the main thread.
 */
void chain_writable_end(struct block_node *node);

/* The same, but it is a guest's disk now: nobody makes it read-only. */
void chain_writable_keep(struct block_node *node);

#endif
