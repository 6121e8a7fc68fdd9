/* SPDX-License-Identifier: BSD-3-Clause */
/* The engine of reopening: some nodes get other options, all of them or none. */
#ifndef LIVEBLK_BLOCK_REOPEN_INTERNAL_H
#define LIVEBLK_BLOCK_REOPEN_INTERNAL_H

#include "block/node.h"

/* A node that gets other options. */
struct reopen_node {
    struct block_node *node;           /* a reference is held */
    struct block_node_options options; /* what it is to have */
    void *values;                      /* the driver's, in its struct; NULL: they stay */
    struct block_options *given;       /* the same as options */
    bool changes_backing;
    struct block_node *backing; /* then; a reference is held, or NULL: none */
    struct block_node *file;    /* another for the same data; a reference is held. NULL: it stays */

    /* Of the engine: */
    struct block_node_options old_options;
    bool holds_lock;     /* its operation lock is held to the end; else while a hook runs */
    bool is_prepared;    /* neither commit nor abort has followed yet */
    bool raised_claims;  /* it claims its children for writing already */
    bool is_writable;    /* it has become so */
    bool begins_writing; /* and has written what that takes */
    void *prepared;      /* the driver's */
    bool has_new_backing;
    struct block_node *old_backing; /* with a reference; or NULL */
    struct block_node *old_file;    /* with a reference; NULL: it has not been changed */
};

struct reopen {
    GPtrArray *nodes; /* struct reopen_node; from reopen_run on, parents before children */
};

void reopen_init(struct reopen *reopen);
void reopen_destroy(struct reopen *reopen);

/*
 * Add a node, whose options are at first what they are. NULL with the error set if somebody else
 * is reopening it. Graph lock held.
 */
struct reopen_node *reopen_add(struct reopen *reopen, struct block_node *node, GError **error);

/* The entry of a node, or NULL. */
struct reopen_node *reopen_find(const struct reopen *reopen, const struct block_node *node);

/*
 * If a node becomes writable or read-only, add what it keeps its data in, as far down as that is to
 * change with it. Graph lock held.
 */
int reopen_add_children(struct reopen *reopen, const struct reopen_node *entry, GError **error);

/* Do it. On error nothing has changed. Not the main thread; may block. */
int reopen_run(struct reopen *reopen, GError **error);

#endif
