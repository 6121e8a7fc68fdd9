/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes of 1 MiB that can do no I/O: something for jobs to claim and for drains to drain. */
#ifndef LIVEBLK_TESTS_LIB_NOTHING_NODE_H
#define LIVEBLK_TESTS_LIB_NOTHING_NODE_H

#include "block/node.h"

/* A new node of this name; it must work. The caller owns the reference. Any thread. */
struct block_node *nothing_node_new(const char *name);

#endif
