/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "blkdebug": a filter that makes requests fail, be late, or stand still, for testing
 * whatever is above it. docs/fault-layers.md is the user's view.
 *
 * All functions may be called from any thread. Those that take a node's name fail with a sentence
 * if there is no such node or it is of another driver, and then change nothing.
 */
#ifndef LIVEBLK_FORMATS_BLKDEBUG_H
#define LIVEBLK_FORMATS_BLKDEBUG_H

#include <glib.h>

#include "block/driver.h"
#include "block/node.h"
#include "formats/blkdebug-rules.h"

extern const struct block_driver blkdebug_driver;

/*
 * Replace the rules by those in options (inject-error, set-state), go back to the first state,
 * and let go of requests that are held by a delay. Takes the rules' options out of the set.
 */
int blkdebug_set_rules(struct block_node *node, struct block_options *options, GError **error);

/*
 * Where requests are to stand still. With an event: where a driver above announces it, and
 * requests of the event's own kind; with a type: requests of this kind in the range.
 */
struct blkdebug_break {
    char *tag;
    enum block_debug_event event; /* NONE: */
    enum blkdebug_type type;
    uint64_t offset;
    uint64_t bytes; /* 0: to the end */
};

/*
 * Set a break point; every request that reaches it stands there until blkdebug_resume, and is
 * announced by the event BLKDEBUG_SUSPENDED. -EEXIST if the node has a break point of this tag.
 */
int blkdebug_set_break(struct block_node *node, const struct blkdebug_break *point, GError **error);

/* Remove a break point; who stands there goes on. *count: how many those were; may be NULL. */
int blkdebug_resume(struct block_node *node, const char *tag, uint64_t *count, GError **error);

/* What a node does and has done. */
struct blkdebug_status {
    unsigned state;
    struct blkdebug_inject *rules;
    size_t rule_count;
    struct blkdebug_break *breaks;
    uint64_t *suspended; /* for each break point: requests standing there */
    uint64_t *reached;   /* and requests that ever stood there */
    size_t break_count;
};
int blkdebug_get_status(struct block_node *node, struct blkdebug_status *status, GError **error);
void blkdebug_status_clear(struct blkdebug_status *status);

/*
 * The process ends: all blkdebug nodes, also ones opened later, let go of whoever stands in them,
 * and hold, delay and fail nothing any more. Does not block.
 */
void blkdebug_release_all(void);

#endif
