/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files about nodes share: node-open.c makes them, node.c names, counts and frees them. */
#ifndef LIVEBLK_BLOCK_NODE_INTERNAL_H
#define LIVEBLK_BLOCK_NODE_INTERNAL_H

#include "block/node.h"

/* The published node of this name, borrowed, or NULL. Graph lock held. */
struct block_node *block_node_find_locked(const char *name);

/*
 * Make the node visible under its name, which is made up if it has none; its children's claims
 * then name it. -EEXIST if another node has the name.
 */
int block_node_publish(struct block_node *node, GError **error);

/* Ask the driver for the length, at opening and after a change. */
int block_node_refresh_length(struct block_node *node, GError **error);

/*
 * What a parent that is (not) read-only does with a child, and lets others do there. A filter
 * leaves the decision to those above it, and a backing file is only read; a format needs its file
 * for itself, or two writers would fight over it.
 */
void block_child_permissions(const struct block_node *parent, enum block_role role, bool read_only,
                             unsigned *perms, unsigned *shared);

/* Take the common options out of a set. */
int block_node_extract_common(struct block_options *options, struct block_node_options *target,
                              GError **error);

/*
 * What an inline child takes over from its parent unless it says otherwise. A backing file is only
 * read, and may be shared with other disks.
 */
void block_node_inherit_options(const struct block_node_options *parent, const char *child,
                                struct block_options *nested);

/* Whether nodes of this driver let such a child grow beside requests. */
bool block_driver_grows(const struct block_driver *driver, enum block_role role);

/* Whether a format may let this child grow beside requests. That goes down through filters, and
 * whatever else hands it on; a bitmap would not follow. Graph lock held. */
int block_node_check_growable(const struct block_node *node, GError **error);

/* A link to a child of this name, with the permissions that go with it, but to no node yet. */
struct block_child *block_child_new(struct block_node *parent, const char *name);
/* Free a link whose claim is released or was never acquired. */
void block_child_free(struct block_child *child);

/* Free a node whose driver is closed or was never opened, and drop its children. */
void block_node_free(struct block_node *node);

/*
 * The bitmaps of a node that may get another length (or, all_changed, another content) before and
 * after that. To grow may fail, and to shrink makes them forget: so in between they, and those that
 * come meanwhile, have the longer of the two lengths. The operation lock is held; any thread.
 */
int block_node_lengthen_bitmaps(struct block_node *node, uint64_t length, GError **error);
void block_node_fit_bitmaps(struct block_node *node, bool all_changed);

#endif
