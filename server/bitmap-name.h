/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps as the arguments of actions name them: found when an action is prepared, and again when
 * it is applied. */
#ifndef LIVEBLK_SERVER_BITMAP_NAME_H
#define LIVEBLK_SERVER_BITMAP_NAME_H

#include <glib.h>
#include <stdbool.h>

#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "server/transaction.h"

/* The names are borrowed from the arguments. */
struct bitmap_name {
    const char *node_name;
    const char *name;
    unsigned refused;        /* DIRTY_BITMAP_REFUSE_*: states in which it is of no use */
    struct block_node *node; /* a reference, or NULL; the owner drops it */
};

/* The node a bitmap command means, by its own or its device's name. A new reference, or NULL with
 * "Node '%s' not found". */
struct block_node *bitmap_name_node(const char *name, GError **error);

/* "Dirty bitmap '%s' not found". */
int bitmap_name_not_found(const char *name, GError **error);

/* In prepare: that the bitmap will exist or not, once this action is applied. */
void bitmap_name_plan(struct transaction_action *action, const struct bitmap_name *bitmap,
                      bool exists);

/* In prepare: that it will be busy from the moment this action is applied. */
void bitmap_name_plan_use(struct transaction_action *action, const struct bitmap_name *bitmap);

/* In prepare: whether the bitmap will exist when the action is applied. */
bool bitmap_name_will_exist(struct transaction_action *action, const struct bitmap_name *bitmap);

/*
 * In prepare, with the node filled in: the bitmap will be there, in a state that is not refused, as
 * far as can be said now; its node is to be drained. -ENOENT without an error set, or the error of
 * dirty_bitmap_check_state.
 */
int bitmap_name_expect(struct transaction_action *action, const struct bitmap_name *bitmap,
                       GError **error);

/* In prepare: fill it in, and expect the bitmap. Everything that fails sets the error. */
int bitmap_name_prepare(struct transaction_action *action, struct bitmap_name *bitmap,
                        const char *node_name, const char *name, unsigned refused, GError **error);

/* In apply: the bitmap, or NULL with the error set: it is gone, or in a state that is refused. */
struct dirty_bitmap *bitmap_name_find(const struct bitmap_name *bitmap, GError **error);

/*
 * In commit: it was changed, or a job that changes it begins, and prepare had it marked
 * (block_stored_bitmaps_begin_change). Between the two somebody may have made the node read-only,
 * which stores it and takes the mark away, and writable again. Warns if it cannot be marked.
 */
void bitmap_name_mark_again(const struct bitmap_name *bitmap);

#endif
