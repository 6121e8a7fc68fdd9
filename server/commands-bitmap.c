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

#include "block/align.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/stored-bitmaps.h"
#include "server/bitmap-name.h"
#include "server/lookup.h"

struct bitmap_action {
    struct bitmap_name target;
    struct dirty_bitmap *current; /* in the node, since this action was applied */
    struct dirty_bitmap *spare;   /* in no node: freed at the end */
    size_t position;              /* of a removed one */
    bool was_enabled;
    struct bitmap_name *sources; /* to merge */
    size_t source_count;
};

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

static int prepare_existing(struct transaction_action *action, json_t *data, unsigned refused,
                            GError **error)
{
    struct bitmap_action *state = transaction_state(action);

    return bitmap_name_prepare(action, &state->target,
                               json_string_value(json_object_get(data, "node")),
                               json_string_value(json_object_get(data, "name")), refused, error);
}

/* The same for one that is going to be changed. */
static int prepare_change(struct transaction_action *action, json_t *data, unsigned refused,
                          GError **error)
{
    const struct bitmap_name *target = &((struct bitmap_action *)transaction_state(action))->target;
    int status = prepare_existing(action, data, refused, error);

    return status < 0 ? status
                      : block_stored_bitmaps_begin_change(target->node, target->name, error);
}

/* In apply: what failed, when a bitmap was looked for. */
static int code_of(GError **error)
{
    return error && *error ? block_error_code(*error) : -ENOENT;
}

/* Find the bitmap, and make a clear one like it to be exchanged for it. */
static int make_spare(struct bitmap_action *state, GError **error)
{
    state->current = bitmap_name_find(&state->target, error);
    if (!state->current) {
        return code_of(error);
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

/* Whoever keeps it has it as it is now, before the command answers. */
static void tell_keepers(struct transaction_action *action)
{
    const struct bitmap_action *state = transaction_state(action);

    block_stored_bitmaps_changed(state->target.node, state->target.name);
}

/*
 * What prepare marked may have been stored, and so be unmarked, before the change: by somebody who
 * made the node read-only and writable again.
 */
static void commit_change(struct transaction_action *action)
{
    const struct bitmap_action *state = transaction_state(action);

    bitmap_name_mark_again(&state->target);
    tell_keepers(action);
}

/* ---- block-dirty-bitmap-add ------------------------------------------------------------------ */

static const struct qmp_member add_members[] = {
    {"granularity", &qmp_type_uint32, .optional = true,
     .doc = "Bytes per bit: a power of 2, 512 to 2 GiB; by default the cluster size of the image, "
            "at least 4 KiB and at most 64 KiB, or 64 KiB if it has no clusters."},
    {"persistent", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc =
         "Keep it with the disk: in the image, from when the node is closed to when it is opened, "
         "or, where the image's format or version cannot, in the tracking file of a disk that is "
         "tracked."},
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
    if (bitmap_name_will_exist(action, target)) {
        return already_exists(target->name, error);
    }
    bitmap_name_plan(action, target, true);
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
    .commit = tell_keepers,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-add.",
};

/* ---- block-dirty-bitmap-remove --------------------------------------------------------------- */

/*
 * What is kept of it goes first, while it can still be refused: who was told that it is gone must
 * not find it again. If nothing comes of the transaction memory has it still, and is stored at the
 * end.
 */
static int remove_kept(const struct bitmap_name *target, GError **error)
{
    g_auto(GStrv) names = block_stored_bitmaps_names(target->node, true);
    g_autoptr(GError) why = NULL;

    if (!g_strv_contains((const char *const *)names, target->name) ||
        block_stored_bitmaps_remove(target->node, target->name, &why) == 0) {
        return 0;
    }
    return block_error(error, -block_error_code(why),
                       "Bitmap '%s' of node '%s' is not removed, because what is kept of it cannot "
                       "be: %s. See to the storage of the image, or of the tracking file, and try "
                       "again",
                       target->name, target->node->name, why->message);
}

static int prepare_remove(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    /* Marked, so that nothing can bring it back as a good one. */
    int status = prepare_change(action, data,
                                DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_READ_ONLY, error);

    if (status == 0) {
        status = remove_kept(&state->target, error);
    }
    if (status == 0) {
        bitmap_name_plan(action, &state->target, false);
    }
    return status;
}

static int apply_remove(struct transaction_action *action, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    struct dirty_bitmap *bitmap = bitmap_name_find(&state->target, error);

    if (!bitmap) {
        return code_of(error);
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

/* Somebody may have stored it again since, by making the node read-only and writable again. */
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
    tell_keepers(action);
}

const struct transaction_action_type bitmap_remove_action = {
    .name = "block-dirty-bitmap-remove",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_remove,
    .apply = apply_remove,
    .undo = undo_remove,
    .commit = commit_remove,
    .abort = tell_keepers, /* memory has it still */
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-remove.",
};

/* ---- block-dirty-bitmap-clear ---------------------------------------------------------------- */

static int prepare_clear(struct transaction_action *action, json_t *data, GError **error)
{
    return prepare_change(action, data, DIRTY_BITMAP_REFUSE_ALL, error);
}

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
    .prepare = prepare_clear,
    .apply = apply_clear,
    .undo = undo_exchange,
    .commit = commit_change,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-clear.",
};

/* ---- block-dirty-bitmap-enable and -disable -------------------------------------------------- */

/* Also one that is read-only, as with QEMU: nobody writes, so there is nothing to record. */
static int prepare_set_enabled(struct transaction_action *action, json_t *data, GError **error)
{
    return prepare_change(action, data, DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT,
                          error);
}

static int set_enabled(struct transaction_action *action, bool enabled, GError **error)
{
    struct bitmap_action *state = transaction_state(action);

    state->current = bitmap_name_find(&state->target, error);
    if (!state->current) {
        return code_of(error);
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
    .prepare = prepare_set_enabled,
    .apply = apply_enable,
    .undo = undo_set_enabled,
    .commit = commit_change,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-enable.",
};

const struct transaction_action_type bitmap_disable_action = {
    .name = "block-dirty-bitmap-disable",
    .data = &name_type,
    .state_size = sizeof(struct bitmap_action),
    .prepare = prepare_set_enabled,
    .apply = apply_disable,
    .undo = undo_set_enabled,
    .commit = commit_change,
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
const struct qmp_type dirty_bitmap_or_string_list_type = {
    .name = "BlockDirtyBitmapOrStrList",
    .kind = QMP_KIND_ARRAY,
    .element = &source_type,
};
static const struct qmp_member merge_members[] = {
    {"node", &qmp_type_string, .doc = "The node of the target, or the device whose root it is."},
    {"target", &qmp_type_string, .doc = "The bitmap to merge into."},
    {"bitmaps", &dirty_bitmap_or_string_list_type,
     .doc = "The bitmaps to merge; they stay as they are. None: nothing is done."},
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
    int status =
        bitmap_name_prepare(action, bitmap, node_name, name,
                            DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT, error);

    return status < 0 ? status
                      : dirty_bitmap_check_merge(block_node_length(state->target.node),
                                                 block_node_length(bitmap->node), error);
}

static int prepare_merge(struct transaction_action *action, json_t *data, GError **error)
{
    struct bitmap_action *state = transaction_state(action);
    json_t *sources = json_object_get(data, "bitmaps");
    int status = bitmap_name_prepare(
        action, &state->target, json_string_value(json_object_get(data, "node")),
        json_string_value(json_object_get(data, "target")), DIRTY_BITMAP_REFUSE_ALL, error);

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
        struct dirty_bitmap *source = bitmap_name_find(&state->sources[i], error);

        status = source ? dirty_bitmap_merge(state->spare, source, error) : code_of(error);
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
    .commit = commit_change,
    .clean = clean,
    .doc = "See the command block-dirty-bitmap-merge.",
};

/* ---- x-debug-block-dirty-bitmap-sha256 --------------------------------------------------------
 */

/* So many granules are looked at in one go: the main thread has other things to do. */
#define DIGEST_GRANULES (UINT64_C(1) << 20)

struct digest {
    struct block_node *node;
    const char *name;
    GChecksum *checksum;
    uint64_t offset; /* the first granule that was not looked at */
    bool at_end;
    GError *error;
};

/* Main thread, or the bitmap could be removed or resized meanwhile. */
static void digest_some(void *data)
{
    struct digest *digest = data;
    struct dirty_bitmap *bitmap = block_node_find_bitmap(digest->node, digest->name);

    if (!bitmap) {
        bitmap_name_not_found(digest->name, &digest->error);
        return;
    }
    uint64_t stretch = DIGEST_GRANULES * dirty_bitmap_granularity(bitmap);
    uint64_t length = dirty_bitmap_length(bitmap), offset = digest->offset;
    uint64_t end = MIN_OF(length, offset + stretch);
    for (; offset < end; offset += 64 * dirty_bitmap_granularity(bitmap)) {
        uint64_t word = GUINT64_TO_LE(dirty_bitmap_get_word(bitmap, offset));

        g_checksum_update(digest->checksum, (const guchar *)&word, sizeof(word));
    }
    digest->offset = offset;
    digest->at_end = offset >= length;
}

/* Of the granules' bits, in words of 64 with the first in the lowest bit, little-endian. */
static json_t *bitmap_sha256(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA256);
    AUTO(block_node) node =
        bitmap_name_node(json_string_value(json_object_get(arguments, "node")), error);
    struct digest digest = {
        .node = node,
        .name = json_string_value(json_object_get(arguments, "name")),
        .checksum = checksum,
    };

    while (node && !digest.at_end && !digest.error) {
        main_loop_call_wait(digest_some, &digest);
    }
    if (!node || digest.error) {
        if (digest.error) {
            g_propagate_error(error, digest.error);
        }
        return NULL;
    }
    return json_pack("{s:s}", "sha256", g_checksum_get_string(checksum));
}

static const struct qmp_member sha256_members[] = {
    {"sha256", &qmp_type_string, .doc = "64 hexadecimal digits."},
    {NULL},
};
static const struct qmp_type sha256_type = {
    .name = "BlockDirtyBitmapSha256",
    .kind = QMP_KIND_OBJECT,
    .members = sha256_members,
};

/* ---- The commands ---------------------------------------------------------------------------- */

/* The promise of all that change one. */
#define KEPT                                                                                       \
    "On a tracked disk the tracking file has a persistent bitmap as it is now when the command "   \
    "answers; if it cannot be written the command succeeds, with a warning in the log, and after " \
    "a crash the bitmap is missing or inconsistent; or the map is lost, which "                    \
    "query-block-tracking and BLOCK_TRACKING_LOST say (docs/tracking.md)."

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
     "is stored in its image. " KEPT},
    {"block-dirty-bitmap-remove", &name_type, NULL, bitmap_remove, 0,
     "Remove a bitmap, and what the image or the tracking file keeps of it: if that cannot be "
     "removed, the command fails and the bitmap stays."},
    {"block-dirty-bitmap-clear", &name_type, NULL, bitmap_clear, 0,
     "Forget what a bitmap has recorded. " KEPT},
    {"block-dirty-bitmap-enable", &name_type, NULL, bitmap_enable, 0, "Record (again). " KEPT},
    {"block-dirty-bitmap-disable", &name_type, NULL, bitmap_disable, 0,
     "Do not record any more, and keep what was recorded. " KEPT},
    {"block-dirty-bitmap-merge", &merge_type, NULL, bitmap_merge, 0,
     "Add to a bitmap what others have recorded. Granularities may differ. " KEPT},
    {"x-debug-block-dirty-bitmap-sha256", &name_type, &sha256_type, bitmap_sha256, 0,
     "The SHA-256 of a bitmap's bits: one per granule, in little-endian words of 64 bits, the "
     "first "
     "granule in the lowest bit and 0 after the last. For tests; may change."},
    {NULL},
};
