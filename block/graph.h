/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the graph code share with each other and with identifiers elsewhere. */
#ifndef LIVEBLK_BLOCK_GRAPH_H
#define LIVEBLK_BLOCK_GRAPH_H

#include <stdbool.h>

#include "block/node.h"

/* [A-Za-z][A-Za-z0-9._-]*: what node names, device names and job ids look like. */
bool block_identifier_is_valid(const char *name);

/* Whether a node is another or stands somewhere above it. Graph lock held. */
bool block_node_is_above(const struct block_node *node, const struct block_node *other);

/*
 * As the functions without _locked in block/node.h, with the graph lock held. block_claim_move's
 * claim keeps its reference to the old node, which the caller drops when the lock is free.
 */
int block_claim_acquire_locked(struct block_claim *claim, struct block_node *node, GError **error);
int block_claim_move_locked(struct block_claim *claim, struct block_node *node, unsigned perms,
                            unsigned shared, GError **error);

/*
 * Called by claims, graph lock held: a claim that appears on a node in a drained section, or that
 * only now uses what the section is about, joins it, so that nobody starts I/O inside. The same for
 * that of a parent whose writes_when_read says something else now. One that
 * moves away stays in the sections it was in. One that goes leaves, once nobody waits for it any
 * more (the lock is dropped meanwhile).
 */
void block_drain_claim_changed(struct block_claim *claim);
void block_drain_claim_removed(struct block_claim *claim);

/* A node is about to be closed, which nobody can reach any more: sections forget it. Graph lock
 * held. */
void block_drain_node_gone(struct block_node *node);

#endif
