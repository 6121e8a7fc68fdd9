/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about nodes and devices. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/options-json.h"
#include "block/reopen.h"
#include "block/request.h"
#include "jobs/create.h"
#include "server/commands.h"
#include "server/device-tracking.h"
#include "server/lookup.h"
#include "server/query.h"
#include "server/throttle-limits.h"
#include "server/types.h"

/* ---- blockdev-add, blockdev-del, blockdev-create -------------------------------------------- */

static json_t *blockdev_add(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_options) options = block_options_from_json(arguments);

    return block_node_add(options, error) < 0 ? NULL : json_object();
}

static const struct qmp_member node_name_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {NULL},
};
static const struct qmp_type node_name_type = {
    .name = "NodeName",
    .kind = QMP_KIND_OBJECT,
    .members = node_name_members,
};

static const struct qmp_type blockdev_options_list_type = {
    .name = "BlockdevOptionsList",
    .kind = QMP_KIND_ARRAY,
    .element = &blockdev_options_type,
};
static const struct qmp_member reopen_members[] = {
    {"options", &blockdev_options_list_type,
     .doc = "For each node, which `node-name` names, all the options it is to have: what is not "
            "given returns to its default. A child is given by its name, to leave it, or as an "
            "object, to reopen it. `backing` must be given if there is one: it may be another "
            "node, or null for none."},
    {NULL},
};
static const struct qmp_type reopen_type = {
    .name = "BlockdevReopen",
    .kind = QMP_KIND_OBJECT,
    .members = reopen_members,
};

static void free_options(gpointer data)
{
    block_options_free(data);
}

static json_t *blockdev_reopen(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GPtrArray) options = g_ptr_array_new_with_free_func(free_options);
    size_t index;
    json_t *item;

    json_array_foreach (json_object_get(arguments, "options"), index, item) {
        g_ptr_array_add(options, block_options_from_json(item));
    }
    GPtrArray *layers = device_tracking_note_layers();
    int status =
        block_nodes_reopen((struct block_options *const *)options->pdata, options->len, error);
    device_tracking_compare_layers(layers, "the disk was given other layers");
    return status < 0 ? NULL : json_object();
}

static json_t *blockdev_del(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "node-name"));

    return block_node_remove(name, error) < 0 ? NULL : json_object();
}

static const struct qmp_member create_members[] = {
    {"job-id", &qmp_type_string, .doc = "The new job's ID."},
    {"options", &blockdev_create_options_type, .doc = "What to create."},
    {NULL},
};
static const struct qmp_type create_type = {
    .name = "BlockdevCreate",
    .kind = QMP_KIND_OBJECT,
    .members = create_members,
};

static json_t *blockdev_create(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_options) options = block_options_from_json(json_object_get(arguments, "options"));
    const char *id = json_string_value(json_object_get(arguments, "job-id"));

    return create_start(id, options, error) < 0 ? NULL : json_object();
}

/* ---- Queries -------------------------------------------------------------------------------- */

static json_t *query_block(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct block_device **devices = block_device_list();
    json_t *list = json_array();

    for (struct block_device **device = devices; *device; device++) {
        json_array_append_new(list, query_device(*device));
    }
    block_device_list_free(devices);
    return list;
}

static const struct qmp_member flat_members[] = {
    {"flat", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Leave out the images of backing files, which are nested otherwise."},
    {NULL},
};
static const struct qmp_type flat_type = {
    .name = "QueryNamedBlockNodes",
    .kind = QMP_KIND_OBJECT,
    .members = flat_members,
};

static json_t *query_named_block_nodes(struct qmp_request *request, json_t *arguments,
                                       GError **error)
{
    struct block_node **nodes = block_node_list();
    json_t *list = json_array();

    for (struct block_node **node = nodes; *node; node++) {
        json_array_append_new(list, query_node(*node, NULL, lookup_bool(arguments, "flat", false)));
    }
    block_node_list_free(nodes);
    return list;
}

static const struct qmp_member query_nodes_members[] = {
    {"query-nodes", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Answer for nodes instead of devices."},
    {NULL},
};
static const struct qmp_type query_nodes_type = {
    .name = "QueryBlockstats",
    .kind = QMP_KIND_OBJECT,
    .members = query_nodes_members,
};

static json_t *node_statistics(void)
{
    struct block_node **nodes = block_node_list();
    json_t *list = json_array();

    for (struct block_node **node = nodes; *node; node++) {
        json_array_append_new(list, query_node_statistics(*node));
    }
    block_node_list_free(nodes);
    return list;
}

static json_t *device_statistics(void)
{
    struct block_device **devices = block_device_list();
    json_t *list = json_array();

    for (struct block_device **device = devices; *device; device++) {
        json_array_append_new(list, query_device_statistics(*device));
    }
    block_device_list_free(devices);
    return list;
}

static json_t *query_blockstats(struct qmp_request *request, json_t *arguments, GError **error)
{
    return lookup_bool(arguments, "query-nodes", false) ? node_statistics() : device_statistics();
}

/* ---- block_resize --------------------------------------------------------------------------- */

static const struct qmp_member resize_members[] = {
    {"device", &qmp_type_string, .optional = true, .doc = "The device, or"},
    {"node-name", &qmp_type_string, .optional = true, .doc = "the node to resize."},
    {"size", &qmp_type_int, .doc = "New length in bytes; a multiple of 512."},
    {NULL},
};
static const struct qmp_type resize_type = {
    .name = "BlockResize",
    .kind = QMP_KIND_OBJECT,
    .members = resize_members,
};

/*
 * Those who do not let the node be resized are kept out while it is; drained, it has no requests.
 * device: whose disk it is; NULL if the node as such is meant.
 */
static int resize(const char *device, struct block_node *node, uint64_t length, GError **error)
{
    g_autofree char *owner = g_strdup("the command block_resize");
    struct block_claim claim = {
        .owner = owner, .perms = BLOCK_PERM_RESIZE, .shared = BLOCK_PERM_ALL};
    int status = block_node_check_resize(node, error);

    if (status == 0) {
        status = block_claim_acquire(&claim, node, error);
    }
    if (status < 0) {
        return status;
    }
    device_tracking_prepare_resize(node, length);
    struct block_drain *drain = block_drain_begin(&node, 1, BLOCK_PERM_ALL);
    /* A job's end may have moved the disk. */
    status = device ? lookup_check_same(device, node, error) : 0;
    if (status == 0) {
        /* What is tracked is never shorter than the disk. */
        device_tracking_resize(node, MAX_OF(length, block_node_length(node)));
        status = block_node_set_length(node, length, BLOCK_PREALLOCATION_OFF, error);
        device_tracking_resize(node, block_node_length(node));
    }
    block_drain_end(drain);
    device_tracking_end_resize(node);
    block_claim_release(&claim);
    return status;
}

static struct block_node *node_to_resize(json_t *arguments, GError **error)
{
    const char *device = json_string_value(json_object_get(arguments, "device"));
    const char *name = json_string_value(json_object_get(arguments, "node-name"));

    if (!device == !name) {
        block_error(error, EINVAL, "Exactly one of 'device' and 'node-name' must be given");
        return NULL;
    }
    return device ? lookup_disk_or_node(device, error) : block_node_find_or_error(name, error);
}

static json_t *block_resize(struct qmp_request *request, json_t *arguments, GError **error)
{
    json_int_t size = json_integer_value(json_object_get(arguments, "size"));
    const char *device = json_string_value(json_object_get(arguments, "device"));
    AUTO(block_node) node = node_to_resize(arguments, error);

    if (!node) {
        return NULL;
    }
    if (size < 0) {
        block_error(error, EINVAL, "Parameter 'size' expects a >0 size");
        return NULL;
    }
    if (!is_aligned((uint64_t)size, 512)) {
        block_error(error, EINVAL, "The new size must be a multiple of 512");
        return NULL;
    }
    return resize(device, node, (uint64_t)size, error) < 0 ? NULL : json_object();
}

/* ---- block_set_io_throttle ------------------------------------------------------------------ */

#define LIMIT(name_)                                                                               \
    {                                                                                              \
        name_, &qmp_type_int, .doc = "Limit per second; 0: none."                                  \
    }
#define BURST(name_)                                                                               \
    {name_ "_max", &qmp_type_int, .optional = true, .doc = "Limit in bursts."},                    \
    {                                                                                              \
        name_ "_max_length", &qmp_type_int, .optional = true, .doc = "Burst length in seconds."    \
    }
static const struct qmp_member throttle_members[] = {
    {"device", &qmp_type_string, .optional = true, .doc = "The device, by name, or"},
    {"id", &qmp_type_string, .optional = true, .doc = "by name or `qdev` path."},
    LIMIT("bps"),
    LIMIT("bps_rd"),
    LIMIT("bps_wr"),
    LIMIT("iops"),
    LIMIT("iops_rd"),
    LIMIT("iops_wr"),
    BURST("bps"),
    BURST("bps_rd"),
    BURST("bps_wr"),
    BURST("iops"),
    BURST("iops_rd"),
    BURST("iops_wr"),
    {"iops_size", &qmp_type_int, .optional = true,
     .doc = "Bytes of a request that count as one operation."},
    {NULL},
};
static const struct qmp_type throttle_type = {
    .name = "BlockIOThrottle",
    .kind = QMP_KIND_OBJECT,
    .members = throttle_members,
};

static int read_limits(json_t *arguments, struct throttle_limits *limits, GError **error)
{
    *limits = (struct throttle_limits){0};
    for (const struct limits_field *field = limits_fields; field->name; field++) {
        json_int_t value = json_integer_value(json_object_get(arguments, field->name));

        if (value < 0) {
            return block_error(error, EINVAL, "Parameter '%s' expects a non-negative value",
                               field->name);
        }
        *limits_value(limits, field) = (uint64_t)value;
    }
    return throttle_limits_check(limits, error);
}

static json_t *block_set_io_throttle(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));
    const char *name = json_string_value(json_object_get(arguments, "device"));
    struct throttle_limits limits;

    if (!id == !name) {
        block_error(error, EINVAL, "Exactly one of 'device' and 'id' must be given");
        return NULL;
    }
    AUTO(block_device) device = lookup_device(id ? id : name, error);
    if (!device || read_limits(arguments, &limits, error) < 0) {
        return NULL;
    }
    throttle_set_limits(block_device_throttle(device), &limits);
    return json_object();
}

const struct qmp_command block_commands[] = {
    {"blockdev-add", &blockdev_options_type, NULL, blockdev_add, 0, "Open a node."},
    {"blockdev-del", &node_name_type, NULL, blockdev_del, 0,
     "Close a node that blockdev-add opened and nobody uses."},
    {"blockdev-reopen", &reopen_type, NULL, blockdev_reopen, 0,
     "Give open nodes other options: all of them, or on an error none. Common options can change, "
     "and those of a driver that say so; a node that becomes writable or read-only takes the files "
     "it keeps its data in along."},
    {"blockdev-create", &create_type, NULL, blockdev_create, 0,
     "Create an image, as a job that must be dismissed."},
    {"query-block", NULL, &block_info_list_type, query_block, 0, "The devices."},
    {"query-named-block-nodes", &flat_type, &block_device_info_list_type, query_named_block_nodes,
     0, "The nodes, newest first."},
    {"query-blockstats", &query_nodes_type, &block_statistics_list_type, query_blockstats,
     QMP_COMMAND_QUICK, "Counts, bytes, times and latencies of guests' requests."},
    {"block_resize", &resize_type, NULL, block_resize, 0,
     "Change a disk's length. Clients that connect afterwards see it."},
    {"block_set_io_throttle", &throttle_type, NULL, block_set_io_throttle, QMP_COMMAND_QUICK,
     "Limit a device's rates; takes effect at once, for waiting requests too."},
    {NULL},
};

/* ---- Events --------------------------------------------------------------------------------- */

static const char *const io_operation_names[] = {"read", "write", NULL};
static const struct qmp_type io_operation_type = {
    .name = "IoOperationType",
    .kind = QMP_KIND_ENUM,
    .values = io_operation_names,
};
static const char *const io_action_names[] = {"ignore", "report", "stop", NULL};
static const struct qmp_type io_action_type = {
    .name = "BlockErrorAction",
    .kind = QMP_KIND_ENUM,
    .values = io_action_names,
};
static const struct qmp_member io_error_members[] = {
    {"qom-path", &qmp_type_string, .doc = "The device."},
    {"device", &qmp_type_string, .doc = "The device."},
    {"node-name", &qmp_type_string, .optional = true, .doc = "Its root node."},
    {"operation", &io_operation_type, .doc = "What failed."},
    {"action", &io_action_type, .doc = "What became of it."},
    {"nospace", &qmp_type_bool, .optional = true, .doc = "Space was short."},
    {"reason", &qmp_type_string, .doc = "For people."},
    {NULL},
};
static const struct qmp_type io_error_type = {
    .name = "BlockIoErrorEvent",
    .kind = QMP_KIND_OBJECT,
    .members = io_error_members,
};

static const struct qmp_member corrupted_members[] = {
    {"device", &qmp_type_string, .doc = "Empty: a node is meant."},
    {"node-name", &qmp_type_string, .optional = true, .doc = "The image's node."},
    {"msg", &qmp_type_string, .doc = "What is wrong, for people."},
    {"offset", &qmp_type_int, .optional = true, .doc = "Where in the file, and"},
    {"size", &qmp_type_int, .optional = true, .doc = "how many bytes."},
    {"fatal", &qmp_type_bool, .doc = "Nothing is written to the image any more."},
    {NULL},
};
static const struct qmp_type corrupted_type = {
    .name = "BlockImageCorruptedEvent",
    .kind = QMP_KIND_OBJECT,
    .members = corrupted_members,
};

const struct qmp_event_type block_events[] = {
    {"BLOCK_IO_ERROR", &io_error_type, "A guest's request failed."},
    {"BLOCK_IMAGE_CORRUPTED", &corrupted_type, "An image was found damaged."},
    {"STOP", NULL, "Guests' requests are held."},
    {"RESUME", NULL, "Guests' requests go on."},
    {NULL},
};
