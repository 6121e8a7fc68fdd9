/* SPDX-License-Identifier: BSD-3-Clause */
/* What both kinds of commit do with the chain: commit*.c and mirror*.c only. */
#ifndef LIVEBLK_JOBS_COMMIT_INTERNAL_H
#define LIVEBLK_JOBS_COMMIT_INTERNAL_H

#include "jobs/chain-hold.h"
#include "jobs/commit.h"
#include "jobs/copy-engine.h"

/* Of the layers that are to go, the base, and what was done to it. */
struct commit_chain {
    GPtrArray *nodes;        /* from top to the one above base: references */
    struct block_node *base; /* a reference */
    struct chain_hold hold;  /* also of base, if that was made writable */
};

/* What a commit's engine claims; the target is beside the node above it. */
struct copy_claims commit_claims(const struct commit_chain *chain, bool is_active);

/* Look for the nodes. Any thread. A negative errno with the error set; release it in any case. */
int commit_chain_find(struct commit_chain *chain, struct block_node *top, struct block_node *base,
                      GError **error);

/*
 * After the engine has claimed top and base: hold what is between them, see that nothing has
 * changed meanwhile, and prepare base: writable, and at least as long as top. Drains base; not the
 * main thread. A negative errno with the error set; release it in any case.
 */
int commit_chain_hold(struct commit_chain *chain, struct job *job, GError **error);

/* When the engine is gone; keeps_writable: base is a guest's disk now. May close nodes: not the
 * main thread. */
void commit_chain_release(struct commit_chain *chain, bool keeps_writable);

/* Take base out of the chain: what is above is worth nothing any more. Main thread, drained. */
void commit_chain_cut(const struct commit_chain *chain, struct copy_engine *engine);

/* Start a commit of what guests write to: mirror-commit.c. */
int commit_start_active(const struct commit_options *options, GError **error);

#endif
