/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-tracking.h"

#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/request.h"
#include "server/device-tracking.h"
#include "server/lookup.h"
#include "server/qmp/json-value.h"

static struct block_device *find_device(json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "device"));
    struct block_device *device = block_device_find(name);

    if (!device) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", name);
    }
    return device;
}

/* ---- query-block-tracking -------------------------------------------------------------------- */

static const char *const state_names[] = {"exact", "conservative", "lost", NULL};
static const struct qmp_type state_type = {
    .name = "BlockTrackingState",
    .kind = QMP_KIND_ENUM,
    .values = state_names,
    .doc = "exact: what changed is known to the granule. conservative: as of a power loss more "
           "counts as changed than did. lost: nothing is known, and nothing is noted.",
};
static const struct qmp_member checkpoint_members[] = {
    {"name", &qmp_type_string, .doc = "The checkpoint."},
    {"uuid", &qmp_type_string, .doc = "What no other checkpoint has."},
    {"time", &qmp_type_number, .doc = "When it was cut: seconds since 1970."},
    {"broken", &qmp_type_bool, .doc = "What changed since is not known: take everything."},
    {"pending", &qmp_type_bool,
     .doc = "It is that of an open session (checkpoint-begin), and goes unless that is committed."},
    {"changed-bytes", &qmp_type_int, .optional = true,
     .doc = "What changed since, in whole granules; absent if it is broken."},
    {"zero-bytes", &qmp_type_int, .optional = true,
     .doc = "How much of that reads as zeroes, because it was discarded or zeroed."},
    {NULL},
};
static const struct qmp_type checkpoint_type = {
    .name = "BlockCheckpointInfo",
    .kind = QMP_KIND_OBJECT,
    .members = checkpoint_members,
};
static const struct qmp_type checkpoint_list_type = {
    .name = "BlockCheckpointInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &checkpoint_type,
};
static const struct qmp_member info_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"file", &qmp_type_string, .doc = "The tracking file."},
    {"state", &state_type, .doc = "What is known of its changes."},
    {"reason", &qmp_type_string, .optional = true,
     .doc = "Why it is lost: damaged, foreign, other-disk, modified, resized, storage or in-use."},
    {"message", &qmp_type_string, .optional = true, .doc = "The same for people."},
    {"previous-reason", &qmp_type_string, .optional = true,
     .doc = "Why the map before this one was lost; its checkpoints are broken."},
    {"recovered-bytes", &qmp_type_int,
     .doc = "What power losses added to the changes since checkpoints older than them."},
    {"granularity", &qmp_type_int, .optional = true, .doc = "Bytes of a granule."},
    {"extent-size", &qmp_type_int, .optional = true,
     .doc = "Bytes of an extent: what counts as changed after a power loss."},
    {"active-extents", &qmp_type_int, .optional = true, .doc = "How many there can be at a time."},
    {"activations", &qmp_type_int, .optional = true,
     .doc = "How often an extent was made active since the start: each has cost one write at least "
            "a wait."},
    {"log-writes", &qmp_type_int, .optional = true, .doc = "Durable writes of the log for them."},
    {"map-syncs", &qmp_type_int, .optional = true,
     .doc = "How often the map was brought to stable storage."},
    {"memory", &qmp_type_int, .optional = true, .doc = "Bytes of memory for all this."},
    {"checkpoints", &checkpoint_list_type, .doc = "The checkpoints, oldest first."},
    {NULL},
};
static const struct qmp_type info_type = {
    .name = "BlockTrackingInfo",
    .kind = QMP_KIND_OBJECT,
    .members = info_members,
};
static const struct qmp_type info_list_type = {
    .name = "BlockTrackingInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &info_type,
};

static void set_integer(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *list_checkpoints(struct change_tracker *tracker)
{
    g_autoptr(GArray) list = tracking_list_checkpoints(tracker);
    json_t *array = json_array();

    for (guint i = 0; i < list->len; i++) {
        const struct tracking_checkpoint_info *info =
            &g_array_index(list, struct tracking_checkpoint_info, i);
        json_t *object = json_pack("{s:s, s:s, s:f, s:b, s:b}", "name", info->name, "uuid",
                                   info->uuid, "time", (double)info->time_ns / 1e9, "broken",
                                   info->is_broken, "pending", info->is_pending);

        if (!info->is_broken) {
            set_integer(object, "changed-bytes", info->changed_bytes);
            set_integer(object, "zero-bytes", info->zero_bytes);
        }
        json_array_append_new(array, object);
    }
    return array;
}

static void set_file_facts(json_t *object, const struct tracking_info *info)
{
    if (info->previous_loss) {
        json_object_set_new(object, "previous-reason",
                            json_string(tracking_loss_names[info->previous_loss]));
    }
    if (info->granule) {
        set_integer(object, "granularity", info->granule);
        set_integer(object, "extent-size", info->extent);
        set_integer(object, "active-extents", info->extents);
        set_integer(object, "activations", info->activations);
        set_integer(object, "log-writes", info->log_writes);
        set_integer(object, "map-syncs", info->map_syncs);
        set_integer(object, "memory", info->memory_bytes);
    }
}

static json_t *query_device(struct block_device *device, struct change_tracker *tracker)
{
    struct tracking_info info;
    json_t *object;

    tracking_get_info(tracker, &info);
    object = json_pack("{s:s, s:s, s:s, s:I}", "device", block_device_name(device), "file",
                       info.path, "state",
                       state_names[info.is_lost           ? 2
                                   : info.is_conservative ? 1
                                                          : 0],
                       "recovered-bytes", (json_int_t)info.recovered_bytes);
    if (info.is_lost) {
        json_object_set_new(object, "reason", json_string(tracking_loss_names[info.loss]));
        json_object_set_new(object, "message", json_value_from_text(info.reason));
    }
    set_file_facts(object, &info);
    json_object_set_new(object, "checkpoints", list_checkpoints(tracker));
    tracking_info_clear(&info);
    return object;
}

static json_t *query_block_tracking(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct block_device **devices = block_device_list();
    json_t *list = json_array();

    for (struct block_device **device = devices; *device; device++) {
        struct change_tracker *tracker = block_device_tracker(*device);

        if (tracker) {
            json_array_append_new(list, query_device(*device, tracker));
        }
    }
    block_device_list_free(devices);
    return list;
}

/* ---- block-tracking-start and -stop ---------------------------------------------------------- */

static const struct qmp_member start_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"file", &qmp_type_string, .optional = true, .default_text = "auto",
     .doc = "The new tracking file, an absolute path; auto: beside the disk's file."},
    {"granularity", &qmp_type_size, .optional = true, .default_text = "65536",
     .doc = "Bytes of the disk per entry: a power of 2, 4 KiB to 64 MiB."},
    {"extent-size", &qmp_type_size, .optional = true, .default_text = "4194304",
     .doc = "What counts as changed after a power loss: a power of 2, at most 4 GiB."},
    {"active-extents", &qmp_type_uint32, .optional = true, .default_text = "1024",
     .doc = "How many of those at a time, 16 to 65536."},
    {NULL},
};
static const struct qmp_type start_type = {
    .name = "BlockTrackingStart",
    .kind = QMP_KIND_OBJECT,
    .members = start_members,
};

/* The file at the bottom of a tree, if a file is there; the caller frees. */
static char *file_below(struct block_node *node)
{
    while (node->file) {
        node = node->file;
    }
    return !strcmp(node->driver->name, "file") ? block_node_get_filename(node) : NULL;
}

static json_t *block_tracking_start(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_device) device = find_device(arguments, error);
    AUTO(block_node) root = device ? block_device_root(device) : NULL;
    const char *given = json_string_value(json_object_get(arguments, "file"));

    if (!root) {
        return NULL;
    }
    if (given && strcmp(given, "auto") && !g_path_is_absolute(given)) {
        block_error(error, EINVAL, "Parameter 'file' expects an absolute path or 'auto', not '%s'",
                    given);
        return NULL;
    }
    g_autofree char *disk_path = file_below(root);
    g_autofree char *path = device_tracking_path(given ? given : "auto", disk_path, error);
    struct tracking_options options = {
        .device = block_device_name(device),
        .path = path,
        .disk_path = disk_path,
        .geometry = {(uint64_t)lookup_integer(arguments, "granularity", 0),
                     (uint64_t)lookup_integer(arguments, "extent-size", 0),
                     (uint32_t)lookup_integer(arguments, "active-extents", 0)},
    };

    if (!path || tracking_geometry_check(&options.geometry, error) < 0) {
        return NULL;
    }
    tracking_identify(disk_path, &options.identity);
    return device_tracking_start(device, &options, error) < 0 ? NULL : json_object();
}

static const struct qmp_member device_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {NULL},
};
static const struct qmp_type device_type = {
    .name = "BlockTrackingDevice",
    .kind = QMP_KIND_OBJECT,
    .members = device_members,
};

static json_t *block_tracking_stop(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_device) device = find_device(arguments, error);

    return device && device_tracking_stop(device, error) == 0 ? json_object() : NULL;
}

/* ---- block-checkpoint-add and -remove -------------------------------------------------------- */

static const struct qmp_member name_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"name", &qmp_type_string, .doc = "The checkpoint."},
    {NULL},
};
static const struct qmp_type name_type = {
    .name = "BlockCheckpoint",
    .kind = QMP_KIND_OBJECT,
    .members = name_members,
};

struct checkpoint_action {
    struct block_device *device;
    struct block_node *root;
    struct change_tracker *tracker; /* since the change was made */
    const char *device_name, *name;
};

static int prepare(struct transaction_action *action, json_t *data, GError **error)
{
    struct checkpoint_action *state = transaction_state(action);

    state->device_name = json_string_value(json_object_get(data, "device"));
    state->name = json_string_value(json_object_get(data, "name"));
    state->device = find_device(data, error);
    if (!state->device || !device_tracking_find(state->device, error)) {
        return -ENOENT;
    }
    state->root = lookup_device_or_node(state->device_name, error);
    return state->root ? 0 : -ENOENT;
}

static int prepare_add(struct transaction_action *action, json_t *data, GError **error)
{
    struct checkpoint_action *state = transaction_state(action);
    int status = prepare(action, data, error);
    struct change_tracker *tracker = status == 0 ? block_device_tracker(state->device) : NULL;

    if (tracker) {
        tracking_prepare_checkpoint(tracker);
    }
    if (status == 0) {
        transaction_drain(action, state->root);
        /* Most of what has to be flushed at the moment, while guests go on. An error comes again.
         */
        block_node_flush(state->root);
    }
    return status;
}

/* Drained: the moment. The disk may have been moved since it was looked up. */
static int change_add(struct transaction_action *action, GError **error)
{
    struct checkpoint_action *state = transaction_state(action);
    struct change_tracker *tracker = device_tracking_find(state->device, error);
    int status = tracker ? lookup_check_same(state->device_name, state->root, error) : -ENOENT;

    if (status == 0) {
        status = tracking_checkpoint_add(tracker, state->root, state->name, error);
    }
    if (status == 0) {
        state->tracker = tracker;
    }
    return status;
}

static void revert_add(struct transaction_action *action)
{
    struct checkpoint_action *state = transaction_state(action);
    g_autoptr(GError) error = NULL;

    if (tracking_checkpoint_remove(state->tracker, state->name, &error) < 0) {
        g_warning("Device '%s': the checkpoint '%s' of a transaction that failed could not be "
                  "removed: %s",
                  state->device_name, state->name, error->message);
    }
}

static void clean(struct transaction_action *action)
{
    struct checkpoint_action *state = transaction_state(action);
    struct change_tracker *tracker = state->device ? block_device_tracker(state->device) : NULL;

    if (tracker) {
        tracking_forget_prepared(tracker);
    }
    block_node_unref(state->root);
    block_device_unref(state->device);
}

const struct transaction_action_type checkpoint_add_action = {
    .name = "block-checkpoint-add",
    .data = &name_type,
    .state_size = sizeof(struct checkpoint_action),
    .prepare = prepare_add,
    .change = change_add,
    .revert = revert_add,
    .clean = clean,
    .doc = "See the command block-checkpoint-add.",
};

static json_t *block_checkpoint_add(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&checkpoint_add_action, arguments, error);
}

static json_t *block_checkpoint_remove(struct qmp_request *request, json_t *arguments,
                                       GError **error)
{
    AUTO(block_device) device = find_device(arguments, error);
    struct change_tracker *tracker = device ? device_tracking_find(device, error) : NULL;
    const char *name = json_string_value(json_object_get(arguments, "name"));

    return tracker && tracking_checkpoint_remove(tracker, name, error) == 0 ? json_object() : NULL;
}

const struct qmp_command tracking_commands[] = {
    {"query-block-tracking", NULL, &info_list_type, query_block_tracking, 0,
     "The devices that are tracked, and their checkpoints. An extension of liveblk's, as are the "
     "commands below."},
    {"block-tracking-start", &start_type, NULL, block_tracking_start, 0,
     "Note from now on what a device's guest changes, in a new file."},
    {"block-tracking-stop", &device_type, NULL, block_tracking_stop, 0,
     "End that, and remove the file: all checkpoints of the device are gone."},
    {"block-checkpoint-add", &name_type, NULL, block_checkpoint_add, 0,
     "Name this moment of a tracked device, durably: what changes from now on is known as that. "
     "Also an action, so that a backup or a view can be of the same moment."},
    {"block-checkpoint-remove", &name_type, NULL, block_checkpoint_remove, 0,
     "Forget a checkpoint. That of an open session goes with checkpoint-abandon."},
    {NULL},
};

/* ---- Events ---------------------------------------------------------------------------------- */

static const struct qmp_member lost_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"reason", &qmp_type_string, .doc = "As in query-block-tracking."},
    {"message", &qmp_type_string, .doc = "For people."},
    {NULL},
};
static const struct qmp_type lost_type = {
    .name = "BlockTrackingLostEvent",
    .kind = QMP_KIND_OBJECT,
    .members = lost_members,
};

const struct qmp_event_type tracking_events[] = {
    {"BLOCK_TRACKING_LOST", &lost_type,
     "What a guest changes is no longer noted: the next backup has to be a full one."},
    {NULL},
};
