/* SPDX-License-Identifier: BSD-3-Clause */
/* A copy-on-read node above a layer while a job fills it. */
#ifndef LIVEBLK_JOBS_CHAIN_FILTER_H
#define LIVEBLK_JOBS_CHAIN_FILTER_H

#include <glib.h>

#include "block/node.h"
#include "jobs/chain-hold.h"

/*
 * Put a copy-on-read node of this name in the place of node, above it. bottom: the lowest node it
 * copies from, or NULL. holder: the job's claim on the node. The job's claim on the filter goes to
 * hold: who would not let it be taken away again is refused. A new reference, or NULL with the
 * error set. Drains the node; not the main thread.
 */
struct block_node *chain_filter_insert(const char *name, struct block_node *node,
                                       struct block_node *bottom, const struct block_claim *holder,
                                       struct job *job, struct chain_hold *hold, GError **error);

/* Put the node in its place again, release the hold and drop the reference. Drains both; not the
 * main thread, and not inside a drained section. */
void chain_filter_remove(struct block_node *filter, struct block_node *node,
                         struct chain_hold *hold);

#endif
