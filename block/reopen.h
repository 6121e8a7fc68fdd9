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
 * with the user named; but users of the node itself are not asked whether it may become writable,
 * since who is going to write claims that first. Somebody else who reopens one of the nodes is
 * waited for, for a moment; then it is -EAGAIN. On error nothing has changed. Not the main thread,
 * and with no operation lock held; may block.
 */
int block_node_set_read_only(struct block_node *node, bool read_only, GError **error);

/*
 * blockdev-reopen: give nodes, which "node-name" of each set names, the options of that set as if
 * they were opened with them: all of the nodes or, on error, none. What is not given returns to
 * its default. A child is given by its name, to leave it, or as nested options, to reopen it;
 * "backing" may be another node, or "" for none, and has to be given if there is one. The files of
 * nodes that become writable or read-only follow, unless they are given themselves. Not the main
 * thread; may block.
 */
int block_nodes_reopen(struct block_options *const *options, size_t count, GError **error);

#endif
