/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block-dirty-bitmap commands and actions.
 *
 * A bitmap's action never changes what it cannot give back: to clear or to merge, another bitmap
 * takes the place of the one that is there, which is freed when the transaction is over. (And
 * freeing a large one takes its time, which is not the main thread's.)
 */
#include "server/commands-bitmap.h"

#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/stored-bitmaps.h"
#include "server/lookup.h"

/* A bitmap as arguments name it. The names are borrowed from the arguments. */
struct bitmap_name {
    const char *node_name;
    const char *name;
    struct block_node *node; /* a reference, or NULL */
};

struct bitmap_action {
    struct bitmap_name target;
    struct dirty_bitmap *current; /* in the node, since this action was applied */
    struct dirty_bitmap *spare;   /* in no node: freed at the end */
    size_t position;              /* of a removed one */
    bool was_enabled;
    struct bitmap_name *sources; /* to merge */
    size_t source_count;
};

/* ---- Finding bitmaps ------------------------------------------------------------------------- */

/* The node a bitmap command means, by its own or its device's name. A new reference or NULL. */
static struct block_node *find_node(const char *name, GError **error)
{
    struct block_node *node = lookup_device_or_node(name, NULL);

    if (!node) {
        block_error(error, ENOENT, "Node '%s' not found", name);
    }
    return node;
}

static int not_found(const char *name, GError **error)
{
    return block_error(error, ENOENT, "Dirty bitmap '%s' not found", name);
}

struct presence {
    const struct bitmap_name *bitmap;
    bool found;
};

static void look(void *data)
{
    struct presence *presence = data;

    presence->found = block_node_find_bitmap(presence->bitmap->node, presence->bitmap->name);
}

/* One key per bitmap, for transaction_plan. The caller frees it. */
static char *key_of(const struct bitmap_name *bitmap)
{
    return g_strdup_printf("bitmap %p %s", (void *)bitmap->node, bitmap->name);
}

static void plan(struct transaction_action *action, const struct bitmap_name *bitmap, bool exists)
{
    g_autofree char *key = key_of(bitmap);

    transaction_plan(action, key, exists);
}

/* Whether the bitmap will be there when the action is applied. Not the main thread. */
static bool will_exist(struct transaction_action *action, const struct bitmap_name *bitmap)
{
    g_autofree char *key = key_of(bitmap);
    struct presence presence = {.bitmap = bitmap};

    main_loop_call_wait(look, &presence);
    return transaction_is_planned(action, key, presence.found);
}

/* In prepare: fill in the node and see to it that the bitmap will be there. */
static int prepare_name(struct transaction_action *action, struct bitmap_name *bitmap,
                        const char *node_name, const char *name, GError **error)
{
    *bitmap = (struct bitmap_name){.node_name = node_name, .name = name};
    bitmap->node = find_node(node_name, error);
    if (!bitmap->node) {
        return -ENOENT;
    }
    transaction_drain(action, bitmap->node);
    return will_exist(action, bitmap) ? 0 : not_found(name, error);
}

/* In apply: the bitmap, or NULL with the error set. */
static struct dirty_bitmap *find_bitmap(const struct bitmap_name *bitmap, GError **error)
{
    struct dirty_bitmap *found;

    if (lookup_check_same(bitmap->node_name, bitmap->node, error) < 0) {
        return NULL;
    }
    found = block_node_find_bitmap(bitmap->node, bitmap->name);
    if (!found) {
        not_found(bitmap->name, error);
    }
    return found;
}

/* ---- What the actions share ------------------------------------------------------------------ */

static const struct qmp_member name_members[] = {
    {"node", &qmp_type_string, .doc = "The node, or the device whose root it is."},
    {"name", &qmp_type_string, .doc = "The bitmap."},
    {NULL},
};
static const struct qmp_type name_type = {
    .name = "BlockDirtyBitmap",
    .kind = QMP_KIND_OBJECT,
    .members = name_members,
};

static int prepare_existing(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);

    return prepare_name(action, &state->target, json_string_value(json_object_get(data, "node")),
                        json_string_value(json_object_get(data, "name")), error);
}

/* The same for one that is going to be changed. */
static int prepare_change(struct transaction_action *action, json_t *data, GError **error)
{
    const struct bitmap_name *target = &((struct bitmap_action *)transaction_state(action))->target;
    int status = prepare_existing(action, data, error);

    return status < 0 ? status
                      : block_stored_bitmaps_begin_change(target->node, target->name, error);
}

/* Find the bitmap, and make a clear one like it to be exchanged for it. */
static int make_spare(struct bitmap_action *state, GError **error)
{
    state->current = find_bitmap(&state->target, error);
    if (!state->current) {
        return -ENOENT;
    }
    state->spare = dirty_bitmap_new_like(state->current, error);
    return state->spare ? 0 : -ENOMEM;
}

/* Put the spare in the bitmap's place; the bitmap is the spare then. */
static void exchange(struct bitmap_action *state)
{
    struct dirty_bitmap *spare = state->spare;

    block_node_replace_bitmap(state->target.node, state->current, spare);
    state->spare = state->current;
    state->current = spare;
}

static void undo_exchange(struct transaction_action *action)
{
    exchange(transaction_state(action));
}

static void clean(struct transaction_action *action)
{
    struct bitmap_action *state = transaction_state(action);

    dirty_bitmap_free(state->spare);
    for (size_t i = 0; i < state->source_count; i++) {
        block_node_unref(state->sources[i].node);
    }
    g_free(state->sources);
    block_node_unref(state->target.node);
}

/* ---- block-dirty-bitmap-add ------------------------------------------------------------------ */

static const struct qmp_member add_members[] = {
    {"granularity", &qmp_type_uint32, .optional = true,
     .doc = "Bytes per bit: a power of 2, 512 to 2 GiB; by default the cluster size of the image, "
            "at least 4 KiB and at most 64 KiB, or 64 KiB if it has no clusters."},
    {"persistent", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Store it in the image when the node is closed, and load it when it is opened."},
    {"disabled", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Do not record yet."},
    {NULL},
};
static const struct qmp_type add_type = {
    .name = "BlockDirtyBitmapAdd",
    .kind = QMP_KIND_OBJECT,
    .base = &name_type,
    .members = add_members,
};

static struct dirty_bitmap *new_bitmap(const struct bitmap_name *target, json_t *data,
                                       GError **error)
{
    json_t *granularity = json_object_get(data, "granularity");
    struct dirty_bitmap *bitmap =
        dirty_bitmap_new(target->name, block_node_length(target->node),
                         granularity ? (uint64_t)json_integer_value(granularity)
                                     : block_node_default_granularity(target->node),
                         error);

    if (bitmap) {
        dirty_bitmap_set_enabled(bitmap, !lookup_bool(data, "disabled", false));
    }
    return bitmap;
}

static int already_exists(const char *name, GError **error)
{
    return block_error(error, EEXIST, "Bitmap already exists: %s", name);
}

static int prepare_add(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    struct bitmap_name *target = &state->target;

    target->node_name = json_string_value(json_object_get(data, "node"));
    target->name = json_string_value(json_object_get(data, "name"));
    if (!*target->name) {
        return block_error(error, EINVAL, "Bitmap name cannot be empty");
    }
    target->node = lookup_device_or_node(target->node_name, error);
    if (!target->node) {
        return -ENOENT;
    }
    if (block_node_check_steady(target->node, error) < 0) {
        return -EBUSY;
    }
    state->spare = new_bitmap(target, data, error);
    if (!state->spare) {
        return -EINVAL;
    }
    if (lookup_bool(data, "persistent", false)) {
        if (block_stored_bitmaps_check_new(target->node, target->name,
                                           dirty_bitmap_granularity(state->spare), error) < 0) {
            return -EINVAL;
        }
        dirty_bitmap_set_persistent(state->spare, true);
    }
    if (will_exist(action, target)) {
        return already_exists(target->name, error);
    }
    plan(action, target, true);
    transaction_drain(action, target->node);
    return 0;
}

static int apply_add(struct transaction_action *action, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    struct block_node *node = state->target.node;
    int status = lookup_check_same(state->target.node_name, node, error);

    if (status < 0) {
        return status;
    }
    if (block_node_find_bitmap(node, state->target.name)) {
        return already_exists(state->target.name, error);
    }
    status = dirty_bitmap_resize(state->spare, block_node_bitmap_length(node), false);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not make bitmap '%s' as long as node '%s'",
                                 state->target.name, node->name);
    }
    state->current = STEAL(state->spare);
    block_node_add_bitmap(node, state->current);
    return 0;
}

static void undo_add(struct transaction_action *action)
{
    struct bitmap_action *state = transaction_state(action);

    block_node_remove_bitmap(state->target.node, state->current);
    state->spare = STEAL(state->current);
}

const struct transaction_action_type bitmap_add_action = {
    .name = "block-dirty-bitmap-add",
    .data = &add_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_add,
    .apply = apply_add,
    .undo = undo_add,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-add.",
};

/* ---- block-dirty-bitmap-remove --------------------------------------------------------------- */

static int prepare_remove(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    int status = prepare_change(action, data, error); /* so that nothing can bring it back */

    if (status == 0) {
        plan(action, &state->target, false);
    }
    return status;
}

static int apply_remove(struct transaction_action *action, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    struct dirty_bitmap *bitmap = find_bitmap(&state->target, error);

    if (!bitmap) {
        return -ENOENT;
    }
    state->position = block_node_remove_bitmap(state->target.node, bitmap);
    state->spare = bitmap;
    return 0;
}

static void undo_remove(struct transaction_action *action)
{
    struct bitmap_action *state = transaction_state(action);

    block_node_insert_bitmap(state->target.node, STEAL(state->spare), state->position);
}

/* Only now: a transaction that fails leaves it where it was. */
static void commit_remove(struct transaction_action *action)
{
    const struct bitmap_action *state = transaction_state(action);
    g_autoptr(GError) error = NULL;

    if (dirty_bitmap_is_persistent(state->spare) &&
        block_stored_bitmaps_remove(state->target.node, state->target.name, &error) < 0) {
        g_warning("Bitmap '%s' could not be removed from the image of node '%s', where it is "
                  "marked as inconsistent: %s",
                  state->target.name, state->target.node->name, error->message);
    }
}

const struct transaction_action_type bitmap_remove_action = {
    .name = "block-dirty-bitmap-remove",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_remove,
    .apply = apply_remove,
    .undo = undo_remove,
    .commit = commit_remove,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-remove.",
};

/* ---- block-dirty-bitmap-clear ---------------------------------------------------------------- */

static int apply_clear(struct transaction_action *action, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    int status = make_spare(state, error);

    if (status == 0) {
        exchange(state);
    }
    return status;
}

const struct transaction_action_type bitmap_clear_action = {
    .name = "block-dirty-bitmap-clear",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_change,
    .apply = apply_clear,
    .undo = undo_exchange,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-clear.",
};

/* ---- block-dirty-bitmap-enable and -disable -------------------------------------------------- */

static int set_enabled(struct transaction_action *action, bool enabled, GError **error)
{
    struct bitmap_action *state = transaction_state(action);

    state->current = find_bitmap(&state->target, error);
    if (!state->current) {
        return -ENOENT;
    }
    state->was_enabled = dirty_bitmap_enabled(state->current);
    dirty_bitmap_set_enabled(state->current, enabled);
    return 0;
}

static int apply_enable(struct transaction_action *action, GError **error)
{
    return set_enabled(action, true, error);
}

static int apply_disable(struct transaction_action *action, GError **error)
{
    return set_enabled(action, false, error);
}

static void undo_set_enabled(struct transaction_action *action)
{
    struct bitmap_action *state = transaction_state(action);

    dirty_bitmap_set_enabled(state->current, state->was_enabled);
}

const struct transaction_action_type bitmap_enable_action = {
    .name = "block-dirty-bitmap-enable",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_change,
    .apply = apply_enable,
    .undo = undo_set_enabled,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-enable.",
};

const struct transaction_action_type bitmap_disable_action = {
    .name = "block-dirty-bitmap-disable",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_change,
    .apply = apply_disable,
    .undo = undo_set_enabled,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-disable.",
};

/* ---- block-dirty-bitmap-merge ---------------------------------------------------------------- */

static const struct qmp_member source_branches[] = {
    {"local", &qmp_type_string, .doc = "A bitmap of the same node."},
    {"external", &name_type, .doc = "One of any node of the same length."},
    {NULL},
};
static const struct qmp_type source_type = {
    .name = "BlockDirtyBitmapOrStr",
    .kind = QMP_KIND_ALTERNATE,
    .members = source_branches,
};
static const struct qmp_type source_list_type = {
    .name = "BlockDirtyBitmapOrStrList",
    .kind = QMP_KIND_ARRAY,
    .element = &source_type,
};
static const struct qmp_member merge_members[] = {
    {"node", &qmp_type_string, .doc = "The node of the target, or the device whose root it is."},
    {"target", &qmp_type_string, .doc = "The bitmap to merge into."},
    {"bitmaps", &source_list_type, .doc = "The bitmaps to merge; they stay as they are."},
    {NULL},
};
static const struct qmp_type merge_type = {
    .name = "BlockDirtyBitmapMerge",
    .kind = QMP_KIND_OBJECT,
    .members = merge_members,
};

static int prepare_source(struct transaction_action *action, json_t *source, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    struct bitmap_name *bitmap = &state->sources[state->source_count++];
    bool local = json_is_string(source);
    const char *node_name =
        local ? state->target.node_name : json_string_value(json_object_get(source, "node"));
    const char *name = json_string_value(local ? source : json_object_get(source, "name"));
    int status = prepare_name(action, bitmap, node_name, name, error);

    return status < 0 ? status
                      : dirty_bitmap_check_merge(block_node_length(state->target.node),
                                                 block_node_length(bitmap->node), error);
}

static int prepare_merge(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    json_t *sources = json_object_get(data, "bitmaps");
    int status =
        prepare_name(action, &state->target, json_string_value(json_object_get(data, "node")),
                     json_string_value(json_object_get(data, "target")), error);

    state->sources = g_new0(struct bitmap_name, json_array_size(sources));
    for (size_t i = 0; i < json_array_size(sources) && status == 0; i++) {
        status = prepare_source(action, json_array_get(sources, i), error);
    }
    return status < 0
               ? status
               : block_stored_bitmaps_begin_change(state->target.node, state->target.name, error);
}

static int merge_sources(struct bitmap_action *state, GError **error)
{
    int status = dirty_bitmap_merge(state->spare, state->current, error);

    for (size_t i = 0; i < state->source_count && status == 0; i++) {
        struct dirty_bitmap *source = find_bitmap(&state->sources[i], error);

        status = source ? dirty_bitmap_merge(state->spare, source, error) : -ENOENT;
    }
    return status;
}

static int apply_merge(struct transaction_action *action, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    int status = make_spare(state, error);

    if (status == 0) {
        status = merge_sources(state, error);
    }
    if (status == 0) {
        exchange(state);
    }
    return status;
}

const struct transaction_action_type bitmap_merge_action = {
    .name = "block-dirty-bitmap-merge",
    .data = &merge_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_merge,
    .apply = apply_merge,
    .undo = undo_exchange,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-merge.",
};

/* ---- The commands ---------------------------------------------------------------------------- */

#define DEFINE_COMMAND(verb)                                                                       \
    static json_t *bitmap_##verb(struct qmp_request *request, json_t *arguments, GError **error)   \
    {                                                                                              \
        return transaction_run_single(&bitmap_##verb##_action, arguments, error);                  \
    }

DEFINE_COMMAND(add)
DEFINE_COMMAND(remove)
DEFINE_COMMAND(clear)
DEFINE_COMMAND(enable)
DEFINE_COMMAND(disable)
DEFINE_COMMAND(merge)

const struct qmp_command bitmap_commands[] = {
    {"block-dirty-bitmap-add", &add_type, NULL, bitmap_add, 0,
     "Record on a node what is written from now on, in a bitmap that lives as long as the node, or "
     "is stored in its image."},
    {"block-dirty-bitmap-remove", &name_type, NULL, bitmap_remove, 0, "Remove a bitmap."},
    {"block-dirty-bitmap-clear", &name_type, NULL, bitmap_clear, 0,
     "Forget what a bitmap has recorded."},
    {"block-dirty-bitmap-enable", &name_type, NULL, bitmap_enable, 0, "Record (again)."},
    {"block-dirty-bitmap-disable", &name_type, NULL, bitmap_disable, 0,
     "Do not record any more, and keep what was recorded."},
    {"block-dirty-bitmap-merge", &merge_type, NULL, bitmap_merge, 0,
     "Add to a bitmap what others have recorded. Granularities may differ."},
    {NULL},
};
