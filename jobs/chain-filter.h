/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A filter with a name of the user's choice above the node that a job works on, for as long as it
 * runs: everybody who was on the node is on the filter then. For a stream it copies on read; for
 * others it does nothing, and is there for who looks for it.
 */
#ifndef LIVEBLK_JOBS_CHAIN_FILTER_H
#define LIVEBLK_JOBS_CHAIN_FILTER_H

#include <glib.h>

#include "block/node.h"
#include "jobs/chain-hold.h"

/* All NULL: there is none. */
struct chain_filter {
    struct block_node *node; /* a reference */
    struct chain_hold hold;  /* the job's claim on it */
};

struct chain_filter_options {
    const char *name; /* NULL: no filter is wanted */
    struct job *job;
    const struct block_driver *driver; /* of formats/job-filter.h; NULL: copy-on-read */
    struct block_node *bottom;         /* copy-on-read: the lowest node it copies from, or NULL */
    /*
     * The job's claim on the node, if that uses BLOCK_PERM_VOID or will: with it, what uses the
     * filter is treated as what used the node. Else NULL.
     */
    struct block_claim *voiding;
};

/* Whether a filter could get this name, which may be NULL, before anything is done. */
int chain_filter_check_name(const char *name, GError **error);

/*
 * Put a filter in the place of node, above it, if one is wanted. Who would not let it be taken away
 * again is refused from then on. Drains the node; not the main thread, and not inside a drained
 * section. A negative errno with the error set and nothing done.
 */
int chain_filter_insert(struct chain_filter *filter, const struct chain_filter_options *options,
                        struct block_node *node, GError **error);

/* Put what is below the filter then in its place, and close it; nothing if there is none. Drains
 * its users; otherwise as the insertion. */
void chain_filter_remove(struct chain_filter *filter);

/* The job's claim on the filter, borrowed, or NULL if there is none. */
struct block_claim *chain_filter_claim(const struct chain_filter *filter);

#endif
