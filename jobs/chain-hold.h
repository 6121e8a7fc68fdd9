/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A job's hold on the nodes of a chain, besides those it copies from and to: claims that keep
 * others from changing what the job relies on, and tell them who does.
 */
#ifndef LIVEBLK_JOBS_CHAIN_HOLD_H
#define LIVEBLK_JOBS_CHAIN_HOLD_H

#include <glib.h>

#include "block/node.h"
#include "jobs/job.h"

struct chain_hold {
    GPtrArray *claims;           /* of struct block_claim *; NULL: none */
    struct block_node *writable; /* was read-only, and is to be again: a reference; or NULL */
};

/*
 * Claim a node in the job's name, until chain_hold_release. beside: see struct block_claim. A drain
 * does not wait for such a claim, as nothing is read or written by it. Any thread. -EBUSY with the
 * user named if somebody is in the way.
 */
int chain_hold_add(struct chain_hold *hold, struct job *job, struct block_node *node,
                   unsigned perms, unsigned shared, const struct block_node *beside,
                   GError **error);

/* The claim on a node, borrowed, or NULL. */
struct block_claim *chain_hold_find(const struct chain_hold *hold, const struct block_node *node);

/*
 * Make one node that the job writes to, and claims for that, writable until the hold is released.
 * Drains it; not the main thread. A negative errno with the error set.
 */
int chain_hold_make_writable(struct chain_hold *hold, struct block_node *node, GError **error);

/* It is a guest's disk now, and stays writable. */
void chain_hold_keep_writable(struct chain_hold *hold);

/* When nobody writes for the job any more. May close nodes. Not the main thread. */
void chain_hold_release(struct chain_hold *hold);

/*
 * The nodes from top down to but without base (NULL: to the end), filters too: new references; free
 * with g_ptr_array_unref, not on the main thread. NULL with the error set if base is not below top.
 */
GPtrArray *chain_nodes(struct block_node *top, struct block_node *base, GError **error);

/* Whether both, which may be NULL, have the same nodes. */
bool chain_nodes_are_same(const GPtrArray *a, const GPtrArray *b);

#endif
