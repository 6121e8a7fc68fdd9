/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/bitmap-name.h"

#include <errno.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/stored-bitmaps.h"
#include "server/lookup.h"

int bitmap_name_not_found(const char *name, GError **error)
{
    return block_error(error, ENOENT, "Dirty bitmap '%s' not found", name);
}

struct block_node *bitmap_name_node(const char *name, GError **error)
{
    struct block_node *node = lookup_device_or_node(name, NULL);

    if (!node) {
        block_error(error, ENOENT, "Node '%s' not found", name);
    }
    return node;
}

/* ---- In prepare ------------------------------------------------------------------------------ */

/* What there is now. */
struct presence {
    const struct bitmap_name *bitmap;
    bool found;
    int status; /* of its state, with the error */
    GError *error;
};

/* Main thread, or it could be removed meanwhile. */
static void look(void *data)
{
    struct presence *presence = data;
    const struct bitmap_name *name = presence->bitmap;
    struct dirty_bitmap *bitmap = block_node_find_bitmap(name->node, name->name);

    presence->found = bitmap;
    if (bitmap) {
        presence->status = dirty_bitmap_check_state(bitmap, name->refused, &presence->error);
    }
}

/* One key per bitmap and what may be planned, for transaction_plan. The caller frees it. */
static char *key_of(const struct bitmap_name *bitmap, const char *what)
{
    return g_strdup_printf("%s %p %s", what, (void *)bitmap->node, bitmap->name);
}

void bitmap_name_plan(struct transaction_action *action, const struct bitmap_name *bitmap,
                      bool exists)
{
    g_autofree char *key = key_of(bitmap, "bitmap");

    transaction_plan(action, key, exists);
}

void bitmap_name_plan_use(struct transaction_action *action, const struct bitmap_name *bitmap)
{
    g_autofree char *key = key_of(bitmap, "use of bitmap");

    transaction_plan(action, key, true);
}

bool bitmap_name_will_exist(struct transaction_action *action, const struct bitmap_name *bitmap)
{
    return bitmap_name_expect(action, bitmap, NULL) != -ENOENT;
}

static bool is_used_by_plan(struct transaction_action *action, const struct bitmap_name *bitmap)
{
    g_autofree char *key = key_of(bitmap, "use of bitmap");

    return bitmap->refused & DIRTY_BITMAP_REFUSE_BUSY && transaction_is_planned(action, key, false);
}

int bitmap_name_expect(struct transaction_action *action, const struct bitmap_name *bitmap,
                       GError **error)
{
    g_autofree char *key = key_of(bitmap, "bitmap");
    struct presence presence = {.bitmap = bitmap};
    g_autoptr(GError) problem = NULL;

    main_loop_call_wait(look, &presence);
    problem = presence.error;
    transaction_drain(action, bitmap->node);
    if (!transaction_is_planned(action, key, presence.found)) {
        return -ENOENT;
    }
    if (is_used_by_plan(action, bitmap)) {
        return dirty_bitmap_refuse_busy(bitmap->name, error);
    }
    /* The state of one that an earlier action makes is not known yet. */
    if (presence.status == 0 || transaction_is_planned(action, key, false)) {
        return 0;
    }
    g_propagate_error(error, STEAL(problem));
    return presence.status;
}

int bitmap_name_prepare(struct transaction_action *action, struct bitmap_name *bitmap,
                        const char *node_name, const char *name, unsigned refused, GError **error)
{
    *bitmap = (struct bitmap_name){.node_name = node_name, .name = name, .refused = refused};
    bitmap->node = bitmap_name_node(node_name, error);
    if (!bitmap->node) {
        return -ENOENT;
    }
    int status = bitmap_name_expect(action, bitmap, error);
    return status == -ENOENT ? bitmap_name_not_found(name, error) : status;
}

/* ---- In apply -------------------------------------------------------------------------------- */

struct dirty_bitmap *bitmap_name_find(const struct bitmap_name *bitmap, GError **error)
{
    struct dirty_bitmap *found;

    if (lookup_check_same(bitmap->node_name, bitmap->node, error) < 0) {
        return NULL;
    }
    found = block_node_find_bitmap(bitmap->node, bitmap->name);
    if (!found) {
        bitmap_name_not_found(bitmap->name, error);
        return NULL;
    }
    return dirty_bitmap_check_state(found, bitmap->refused, error) < 0 ? NULL : found;
}

void bitmap_name_mark_again(const struct bitmap_name *bitmap)
{
    g_autoptr(GError) error = NULL;

    if (block_stored_bitmaps_begin_change(bitmap->node, bitmap->name, &error) < 0) {
        g_warning("After a crash bitmap '%s' of node '%s' might be taken for what it was before "
                  "its last change: %s",
                  bitmap->name, bitmap->node->name, error->message);
    }
}
