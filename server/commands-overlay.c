/* SPDX-License-Identifier: BSD-3-Clause */
/* External snapshots: blockdev-snapshot and blockdev-snapshot-sync. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/overlay.h"
#include "block/reopen.h"
#include "block/request.h"
#include "server/commands-chain.h"
#include "server/device-tracking.h"
#include "server/lookup.h"
#include "server/target-file.h"

static const struct qmp_member node_members[] = {
    {"node", &qmp_type_string, .doc = "What to take a snapshot of: a device or a node."},
    {"overlay", &qmp_type_string,
     .doc = "A node that was opened with `\"backing\": null`, equally long and unused."},
    {NULL},
};
static const struct qmp_type node_type = {
    .name = "BlockdevSnapshot",
    .kind = QMP_KIND_OBJECT,
    .members = node_members,
};

static const struct qmp_member file_members[] = {
    {"device", &qmp_type_string, .optional = true, .doc = "The device, or"},
    {"node-name", &qmp_type_string, .optional = true, .doc = "the node to take a snapshot of."},
    {"snapshot-file", &qmp_type_string, .doc = "The overlay's file."},
    {"snapshot-node-name", &qmp_type_string, .optional = true,
     .doc = "The overlay's node; made up by default, but needed with `node-name`."},
    {"format", &qmp_type_string, .optional = true, .default_text = "qcow2",
     .doc = "The overlay's format."},
    {"mode", &new_image_mode_type, .optional = true, .default_text = "absolute-paths",
     .doc = "Whether to create it. An overlay that is there should be empty, and say itself what "
            "its backing file is."},
    {NULL},
};
static const struct qmp_type file_type = {
    .name = "BlockdevSnapshotSync",
    .kind = QMP_KIND_OBJECT,
    .members = file_members,
};

struct overlay_state {
    const char *name;        /* the device or node, as the arguments name it; NULL: by node-name */
    struct block_node *root; /* what that meant */
    struct block_node *node; /* below its filters, which stay above the overlay */
    struct block_node *overlay; /* references, all three */
    const char *filename;       /* the overlay's file */
    bool is_made;               /* by us: it is to go again if nothing comes of it */
    bool makes_read_only;
    bool holds_data; /* the overlay does, by itself: the disk reads differently above it */
};

/* What it should not. Storage that cannot say what it holds holds data. */
static bool holds_data(struct block_node *overlay)
{
    uint64_t length = block_node_length(overlay), offset = 0;

    while (offset < length) {
        struct block_extent extent;

        if (block_node_block_status(overlay, offset, length - offset, &extent) < 0 ||
            extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
            return true;
        }
        offset += extent.bytes;
    }
    return false;
}

static int check_overlay(struct overlay_state *state, GError **error)
{
    int status = block_overlay_check(state->node, state->overlay, error);

    if (status == 0) {
        state->holds_data = holds_data(state->overlay);
    }
    return status;
}

/* Takes the reference; NULL: it was not found. name: what may be a device's, or NULL. */
static int use_root(struct overlay_state *state, const char *name, struct block_node *root)
{
    state->name = name;
    state->root = root;
    if (!root) {
        return -ENOENT;
    }
    state->node = block_layer_of(root);
    return 0;
}

/* Readers, too, go on in the overlay. What there is to flush is flushed before guests stand still;
 * whether that succeeds the flush tells that comes then. */
static void plan(struct transaction_action *action)
{
    struct overlay_state *state = transaction_state(action);

    block_node_flush(state->node);
    state->makes_read_only = !block_node_is_read_only(state->node);
    transaction_drain(action, state->node);
    transaction_drain_readers(action);
}

/* ---- blockdev-snapshot: the overlay is there ------------------------------------------------- */

static int prepare_node(struct transaction_action *action, json_t *data, GError **error)
{
    struct overlay_state *state = transaction_state(action);
    const char *name = json_string_value(json_object_get(data, "node"));
    int status = use_root(state, name, lookup_device_or_node(name, error));

    if (status == 0) {
        state->overlay =
            lookup_device_or_node(json_string_value(json_object_get(data, "overlay")), error);
        status = state->overlay ? check_overlay(state, error) : -ENOENT;
    }
    if (status == 0) {
        plan(action);
    }
    return status;
}

/* ---- blockdev-snapshot-sync: it is made ------------------------------------------------------ */

static int check_names(json_t *data, GError **error)
{
    const char *device = json_string_value(json_object_get(data, "device"));
    const char *node = json_string_value(json_object_get(data, "node-name"));
    const char *overlay = json_string_value(json_object_get(data, "snapshot-node-name"));
    AUTO(block_node) taken = overlay ? block_node_find(overlay) : NULL;

    if (!device == !node) {
        return block_error(error, EINVAL, "Exactly one of 'device' and 'node-name' must be given");
    }
    if (node && !overlay) {
        return block_error(error, EINVAL, "New overlay node-name missing");
    }
    if (taken) {
        return block_error(error, EEXIST, "New overlay node-name already in use");
    }
    return 0;
}

static int check_format(const char *format, GError **error)
{
    const struct block_driver *driver = block_driver_find(format);

    if (!driver) {
        return block_error(error, EINVAL, "Unknown block format '%s'", format);
    }
    return block_driver_takes_backing(driver)
               ? 0
               : block_error(error, ENOTSUP, "The overlay does not support backing images");
}

/*
 * To create it empties a file that is there, and no lock keeps that from an image that was opened
 * without one. An empty file may have been made for us.
 */
static int check_new(const struct target_file *file, bool *exists, GError **error)
{
    struct stat st;

    *exists = stat(file->filename, &st) == 0;
    return *exists && S_ISREG(st.st_mode) && st.st_size > 0
               ? block_error(error, EEXIST,
                             "The file '%s' is there already, and an overlay would destroy what it "
                             "holds",
                             file->filename)
               : 0;
}

/* Another command may have created it at the same time, above another disk. */
static int check_ours(const struct overlay_state *state, GError **error)
{
    g_autofree char *wanted = block_chain_reference(NULL, state->node, error);
    struct block_info info = {0};

    if (!wanted) {
        return -ENOTSUP;
    }
    int status = block_node_get_info(state->overlay, &info);
    bool is_ours = status == 0 && !g_strcmp0(info.backing_file, wanted);
    block_info_clear(&info);
    return is_ours ? 0
                   : block_error(error, EBUSY, "The file '%s' was just made by somebody else",
                                 state->filename);
}

/* It is used as the disk was, and says where that is. */
static int open_overlay(struct overlay_state *state, json_t *data, GError **error)
{
    const char *format = json_string_value(json_object_get(data, "format"));
    json_t *mode = json_object_get(data, "mode");
    const struct block_node_options *options = &state->node->options;
    struct target_file file = {
        .filename = json_string_value(json_object_get(data, "snapshot-file")),
        .format = format ? format : "qcow2",
        .node_name = json_string_value(json_object_get(data, "snapshot-node-name")),
        .length = block_node_length(state->node),
        .create = target_file_is_created(mode),
        .cache_direct = options->cache_direct,
        .cache_no_flush = options->cache_no_flush,
        .drops_discards = !options->discard_unmap,
        .detect_zeroes = options->detect_zeroes,
        .overlaid = state->node,
    };
    bool exists = false, is_made = false;
    int status = check_format(file.format, error);

    if (status == 0 && file.create) {
        status = check_new(&file, &exists, error);
    }
    if (status < 0) {
        return status;
    }
    file.is_made = &is_made;
    state->filename = file.filename;
    state->overlay = target_file_open(&file, error);
    if (state->overlay && file.create) {
        status = check_ours(state, error);
    }
    /* One that somebody else has locked meanwhile is theirs. */
    state->is_made = is_made && !exists && status == 0 &&
                     (state->overlay || !g_error_matches(*error, BLOCK_ERROR, EAGAIN));
    return state->overlay ? status : -EINVAL;
}

static void remove_new_file(struct transaction_action *action)
{
    struct overlay_state *state = transaction_state(action);

    if (state->is_made) {
        unlink(state->filename);
    }
}

static int prepare_file(struct transaction_action *action, json_t *data, GError **error)
{
    struct overlay_state *state = transaction_state(action);
    const char *device = json_string_value(json_object_get(data, "device"));
    const char *node = json_string_value(json_object_get(data, "node-name"));
    int status = check_names(data, error);

    if (status == 0) {
        status = use_root(state, node ? NULL : device,
                          node ? block_node_find_or_error(node, error)
                               : lookup_disk_or_node(device, error));
    }
    if (status == 0) {
        status = open_overlay(state, data, error);
    }
    if (status == 0) {
        status = check_overlay(state, error);
    }
    if (status < 0) {
        remove_new_file(action);
        return status;
    }
    plan(action);
    return 0;
}

/* ---- Both ------------------------------------------------------------------------------------ */

/* Guests' flushes do not reach the node any more when the overlay is above it. */
static int flush(struct transaction_action *action, GError **error)
{
    struct overlay_state *state = transaction_state(action);
    int status = block_node_flush(state->node);

    return status < 0
               ? block_error_errno(error, -status, "Could not flush node '%s'", state->node->name)
               : 0;
}

static int apply(struct transaction_action *action, GError **error)
{
    struct overlay_state *state = transaction_state(action);
    int status = state->name ? lookup_check_same(state->name, state->root, error) : 0;

    return status == 0 ? block_overlay_install(state->node, state->overlay, error) : status;
}

static void undo(struct transaction_action *action)
{
    struct overlay_state *state = transaction_state(action);

    block_overlay_remove(state->node, state->overlay);
}

/* Before anybody is told of changes since a checkpoint, or makes others. */
static void activate(struct transaction_action *action)
{
    const struct overlay_state *state = transaction_state(action);

    if (state->holds_data) {
        device_tracking_distrust(state->overlay, "its overlay was not empty");
    }
}

/* Others may open it now; nothing is wrong if that fails. */
static void commit(struct transaction_action *action)
{
    struct overlay_state *state = transaction_state(action);
    g_autoptr(GError) error = NULL;

    if (!state->holds_data) {
        device_tracking_follow(state->overlay);
    }
    if (state->makes_read_only && block_node_set_read_only(state->node, true, &error) < 0) {
        g_warning("Node '%s' stays writable below its overlay: %s", state->node->name,
                  error->message);
    }
}

static void clean(struct transaction_action *action)
{
    struct overlay_state *state = transaction_state(action);

    block_node_unref(state->overlay);
    block_node_unref(state->node);
    block_node_unref(state->root);
}

const struct transaction_action_type overlay_action = {
    .name = "blockdev-snapshot",
    .data = &node_type,
    .state_size = sizeof(struct overlay_state),
    .prepare = prepare_node,
    .change = flush,
    .apply = apply,
    .undo = undo,
    .activate = activate,
    .commit = commit,
    .clean = clean,
    .doc = "See the command blockdev-snapshot.",
};

const struct transaction_action_type overlay_file_action = {
    .name = "blockdev-snapshot-sync",
    .data = &file_type,
    .state_size = sizeof(struct overlay_state),
    .prepare = prepare_file,
    .change = flush,
    .apply = apply,
    .undo = undo,
    .activate = activate,
    .commit = commit,
    .abort = remove_new_file,
    .clean = clean,
    .doc = "See the command blockdev-snapshot-sync.",
};

static json_t *snapshot_node(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&overlay_action, arguments, error);
}

static json_t *snapshot_file(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&overlay_file_action, arguments, error);
}

const struct qmp_command overlay_commands[] = {
    {"blockdev-snapshot", &node_type, NULL, snapshot_node, 0,
     "Let a disk go on in another image, an overlay, which has what the disk was as its backing "
     "file. What the overlay's image says is left as it is."},
    {"blockdev-snapshot-sync", &file_type, NULL, snapshot_file, 0,
     "The same with an overlay that is made, and says what its backing file is."},
    {NULL},
};
