/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the driver "quorum" share. */
#ifndef LIVEBLK_FORMATS_QUORUM_INTERNAL_H
#define LIVEBLK_FORMATS_QUORUM_INTERNAL_H

#include "block/node.h"
#include "block/tracked.h"

/* What was asked of a child that turned out bad. */
enum quorum_request { QUORUM_READ, QUORUM_WRITE, QUORUM_FLUSH };

/* How a node decides. Changes while it is drained, under the graph lock: read with one of the two.
 */
struct quorum_rules {
    unsigned threshold; /* so many children must take a change, or say the same */
    bool is_fifo;       /* the first child that answers is believed */
    bool verifies;      /* a log says where the two children differ */
    bool rewrites;      /* and those that are out-voted are written over */
};

struct quorum_state {
    /*
     * Changes are in here as serialising requests, of which those that overlap run one by one, so
     * that all children see them in one order. Reads that compare are ordinary ones, which only
     * keep out changes, and are kept out by them: a child that has a write already is not taken
     * for another opinion. Who rewrites a child is a change.
     */
    struct tracked_requests tracked;
    struct quorum_rules rules;
    /* A child could not discard as the first one had, so that it had to be done by writing. */
    _Atomic bool refuses_discards;
};

/* The children of a node, in their order: only replicas. They change while it is drained, under the
 * graph lock, so this is for requests and who holds that or the operation lock. */
#define QUORUM_FOREACH(child, node) TAILQ_FOREACH (child, &(node)->children, entry)
unsigned quorum_count(const struct block_node *node);

/*
 * Tell of a child that failed with a negative errno, or (0) that was out-voted; and that not enough
 * children were left. Bytes.
 */
void quorum_report_bad(enum quorum_request request, const struct block_node *child, int status,
                       uint64_t offset, uint64_t bytes);
void quorum_report_failure(const struct block_node *node, uint64_t offset, uint64_t bytes);

/*
 * What becomes of a request that each child ended with one of these: 0 if enough succeeded, or else
 * the error that most of the others have, the first of those if there are several.
 */
int quorum_verdict(const struct block_node *node, const int *statuses, unsigned count);

/* See pread in block/driver.h. */
int quorum_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                 unsigned flags);

#endif
