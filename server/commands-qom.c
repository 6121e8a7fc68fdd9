/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qom-get and qom-set, as far as backup tools use them: the node a device shows. Tools put a
 * copy-before-write node under a running guest with it, and take it away again.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/chain.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/tracking.h"
#include "server/commands.h"
#include "server/query.h"

static const struct qmp_member get_members[] = {
    {"path", &qmp_type_string,
     .doc = "A device: its name, or the path that query-block shows as `qdev`."},
    {"property", &qmp_type_string, .doc = "\"drive\", the only one there is."},
    {NULL},
};
static const struct qmp_type get_type = {
    .name = "QomGet",
    .kind = QMP_KIND_OBJECT,
    .members = get_members,
};
static const struct qmp_member set_members[] = {
    {"value", &qmp_type_any, .doc = "The name of the node to show from now on."},
    {NULL},
};
static const struct qmp_type set_type = {
    .name = "QomSet",
    .kind = QMP_KIND_OBJECT,
    .base = &get_type,
    .members = set_members,
};

static struct block_device *find_device(const char *path, GError **error)
{
    struct block_device *device = block_device_find(path);

    if (!device && g_str_has_prefix(path, QUERY_QDEV_PREFIX)) {
        device = block_device_find(path + strlen(QUERY_QDEV_PREFIX));
    }
    if (!device) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", path);
    }
    return device;
}

/* The device the arguments mean, if its property is the one we know. */
static struct block_device *find_drive(json_t *arguments, GError **error)
{
    const char *path = json_string_value(json_object_get(arguments, "path"));
    const char *property = json_string_value(json_object_get(arguments, "property"));
    AUTO(block_device) device = find_device(path, error);

    if (device && strcmp(property, "drive")) {
        block_error(error, ENOENT, "Property '%s.%s' not found: a device here has only 'drive'",
                    block_device_name(device), property);
        return NULL;
    }
    return STEAL(device);
}

static json_t *qom_get(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_device) device = find_drive(arguments, error);
    AUTO(block_node) root = device ? block_device_root(device) : NULL;

    if (device && !root) {
        block_error(error, ENODEV, "Device '%s' was removed", block_device_name(device));
    }
    return root ? json_string(root->name) : NULL;
}

/* ---- qom-set -------------------------------------------------------------------------------- */

struct switch_root {
    struct block_device *device;
    struct block_node *from;
    struct block_node *to;
    int status;
    GError **error;
};

/* A client was told a length and whether it may write, and must not find that changed. */
static int check_node(const struct switch_root *change, GError **error)
{
    struct block_node *to = change->to;

    if (block_node_length(change->from) != block_node_length(to)) {
        return block_error(error, EINVAL,
                           "Node '%s' has %" PRIu64 " bytes and device '%s' has %" PRIu64
                           ": they must be equally long",
                           to->name, block_node_length(to), block_device_name(change->device),
                           block_node_length(change->from));
    }
    if (block_node_is_read_only(to) && !block_device_is_read_only(change->device)) {
        return block_error(error, EACCES, "Node '%s' is read-only, and device '%s' is not",
                           to->name, block_device_name(change->device));
    }
    return 0;
}

static void switch_drained(void *data)
{
    struct switch_root *change = data;
    AUTO(block_node) root = block_device_root(change->device);

    if (root != change->from) {
        change->status = block_error(change->error, EBUSY,
                                     "Device '%s' was given another node meanwhile; try again",
                                     block_device_name(change->device));
        return;
    }
    change->status = check_node(change, change->error);
    if (change->status == 0) {
        g_autofree char *user = g_strdup_printf("device '%s'", block_device_name(change->device));

        change->status =
            block_chain_check_followers(change->from, change->to, user, change->error);
    }
    if (change->status == 0) {
        change->status = block_device_set_root(change->device, change->to, change->error);
    }
    struct change_tracker *tracker = block_device_tracker(change->device);
    if (change->status == 0 && tracker &&
        block_node_below_filters(change->from) != block_node_below_filters(change->to)) {
        tracking_contents_changed(tracker, "the device was given another node");
    }
}

/* The caller's references keep either node from being closed on the main thread. */
static int switch_root(struct block_device *device, struct block_node *from, struct block_node *to,
                       GError **error)
{
    struct block_node *const nodes[] = {from, to};
    struct switch_root change = {.device = device, .from = from, .to = to, .error = error};

    if (from == to) {
        return 0;
    }
    if (check_node(&change, error) < 0) { /* what is refused must not hold the guest up */
        return -EINVAL;
    }
    AUTO(block_drain) drain = block_drain_begin(nodes, G_N_ELEMENTS(nodes), BLOCK_PERM_ALL);
    main_loop_call_wait(switch_drained, &change);
    return change.status;
}

static json_t *qom_set(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "value"));
    AUTO(block_device) device = find_drive(arguments, error);
    AUTO(block_node) from = device ? block_device_root(device) : NULL;

    if (!device) {
        return NULL;
    }
    if (!name) {
        block_error(error, EINVAL, "Invalid parameter type for 'drive', expected: string");
        return NULL;
    }
    AUTO(block_node) to = block_node_find_or_error(name, error);
    if (!to) {
        return NULL;
    }
    if (!from) {
        block_error(error, ENODEV, "Device '%s' was removed", block_device_name(device));
        return NULL;
    }
    return switch_root(device, from, to, error) < 0 ? NULL : json_object();
}

const struct qmp_command qom_commands[] = {
    {"qom-get", &get_type, &qmp_type_any, qom_get, QMP_COMMAND_QUICK,
     "The name of the node a device shows."},
    {"qom-set", &set_type, NULL, qom_set, 0,
     "Let a device show another node, of the same length, while its guest stays connected: a "
     "copy-before-write node above its own, or its own again. A node that is then used by nobody "
     "and was not made by blockdev-add is closed."},
    {NULL},
};
