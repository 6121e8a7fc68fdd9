/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening nodes anew with other options, while those above them stay connected.
 */
#ifndef LIVEBLK_BLOCK_REOPEN_H
#define LIVEBLK_BLOCK_REOPEN_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"

/*
 * Make a node that was opened read-only writable, or the other way round, and with it the nodes
 * it keeps its data in (file, data-file; not its backing file). Filters are passed: it is the
 * layer below them that changes, and they with it. It drains the nodes for that. What others use
 * is not made read-only under them, and what others need unwritten is not made writable: -EBUSY
 * with the user named. On error nothing has changed. Not the main thread; may block.
 */
int block_node_set_read_only(struct block_node *node, bool read_only, GError **error);

#endif
