/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Chains: a disk and what lies under it. A layer is a node that is no filter; what it does not hold
 * itself is read from the layer below, its backing file, and behind the end of that as zeroes. A
 * node of a chain is also each filter between two layers.
 *
 * What is in a chain changes on the main thread, with the node concerned drained, readers too
 * (BLOCK_PERM_ALL). Requests walk it without a lock; who is no request walks it by references.
 */
#ifndef LIVEBLK_BLOCK_CHAIN_H
#define LIVEBLK_BLOCK_CHAIN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

/* The layer below this node's own, without the filters above it; borrowed, NULL if there is none.
 * For requests, jobs that keep the chain as it is, and who holds the graph lock. */
struct block_node *block_layer_below(const struct block_node *node);

/* The layer that a node is, or that lies below the filter it is: a new reference. Any thread. */
struct block_node *block_layer_of(struct block_node *node);

/* The node, or if a job has put filters there for a while, what is below those: a new reference.
 * Any thread. */
struct block_node *block_below_transient(struct block_node *node);

/* The next node of the chain, a filter's file or a layer's backing file: a new reference, or NULL.
 * Any thread. */
struct block_node *block_chain_below(struct block_node *node);

/* The backing file of a layer, or of the layer below a filter, with the filters above that: a new
 * reference, or NULL. Any thread. */
struct block_node *block_chain_backing(struct block_node *node);

/* Whether a node is in the chain that begins with top: top itself, or somewhere below. Any thread.
 */
bool block_chain_contains(struct block_node *top, const struct block_node *node);

/*
 * Add the layers that have a node, or filters above it, as their backing file to a list of nodes:
 * borrowed, but such that are just being opened or closed. Graph lock held.
 */
void block_chain_find_overlays_locked(struct block_node *node, GPtrArray *overlays);

/*
 * Who has the extent that starts at offset, of the layers from top down to base but without base
 * (NULL: of all): BLOCK_STATUS_ALLOCATED if one of them decides what top reads as, and then whether
 * that is DATA or ZERO. A layer below top that is shorter than it decides what is behind its end:
 * zeroes. Without ALLOCATED it is for base, or if that is NULL it is ZERO. bytes is at least 1.
 * For jobs that keep the chain as it is. Returns 0 or a negative errno.
 */
int block_chain_status(struct block_node *top, const struct block_node *base, uint64_t offset,
                       uint64_t bytes, struct block_extent *extent);

/* Whether images of this kind can have a backing file. */
bool block_driver_takes_backing(const struct block_driver *driver);

/*
 * Put another backing file under a layer, or none (NULL). The image is left as it is, see
 * block_node_change_backing_file. Main thread, the node drained. The caller holds references to all
 * three nodes, as nothing may be closed here. holder: the claim of who does it, which may keep
 * others from doing it; or NULL. -EBUSY with the user named if somebody does not let it change;
 * on error nothing has changed.
 */
int block_node_set_backing(struct block_node *node, struct block_node *backing,
                           const struct block_claim *holder, GError **error);

/*
 * Put a node in the place of another: all devices on that, and all parents but those that are
 * themselves below the new node or are it. Jobs and points in time stay where they are. Otherwise
 * as block_node_set_backing.
 */
int block_node_replace(struct block_node *node, struct block_node *replacement,
                       const struct block_claim *holder, GError **error);

/*
 * Put a filter that passes everything on, and is above node already, in node's place; and take it
 * away again, for what it is above then. Who minds that others get the node's place does not mind
 * this, unless it is him who would be moved. The caller holds a reference to the filter.
 */
int block_node_insert_filter(struct block_node *node, struct block_node *filter, GError **error);
int block_node_remove_filter(struct block_node *filter, GError **error);

/*
 * Put another node where a node has its file: one with the same data, below filters or filters
 * above it. Otherwise as block_node_set_backing.
 */
int block_node_set_file(struct block_node *node, struct block_node *file,
                        const struct block_claim *holder, GError **error);

/*
 * One replica more below a node whose driver has some, as its last child and under a new name, or
 * one less, of which *removed is a new reference, so that it is not closed here. What the new one
 * holds is the caller's care. -ENOTSUP if the driver has none. Main thread, the nodes drained, the
 * parent's operation lock held.
 */
int block_node_add_replica(struct block_node *parent, struct block_node *node, GError **error);
int block_node_remove_replica(struct block_node *parent, const char *name,
                              struct block_node **removed, GError **error);

/*
 * -EBUSY if a job or a bitmap on a filter of `from` would miss writes of a user that goes to `to`
 * instead: to the same data, past it. user is for the message. Main thread, drained.
 */
int block_chain_check_followers(struct block_node *from, struct block_node *to, const char *user,
                                GError **error);

/*
 * What an image must say to have base as its backing file. It is relative if what the image says
 * now is, and both are in the same directory. image may be NULL: a new one, anywhere. The caller
 * frees it. NULL with the error set if it cannot be said. Not the main thread; may block.
 */
char *block_chain_reference(struct block_node *image, struct block_node *base, GError **error);

/* Of which format it must say that base is: not the caller's. mask_protocol: raw, where that is
 * mere storage; else the name of the protocol. Any thread. */
const char *block_chain_format(struct block_node *base, bool mask_protocol);

#endif
