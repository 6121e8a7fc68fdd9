/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The object model, as far as it goes here: the objects that object-add makes, and the node a
 * device shows. Backup tools put a copy-before-write node under a running guest with that, and take
 * it away again.
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
#include "server/objects.h"
#include "server/query.h"

static const struct qmp_member get_members[] = {
    {"path", &qmp_type_string,
     .doc = "A device: its name, or the path that query-block shows as `qdev`. An object: its ID, "
            "or /objects/ID."},
    {"property", &qmp_type_string,
     .doc =
         "Of a device \"drive\", the only one there is; of an object \"type\" and what object-add "
         "has for it."},
    {NULL},
};
static const struct qmp_type get_type = {
    .name = "QomGet",
    .kind = QMP_KIND_OBJECT,
    .members = get_members,
};
static const struct qmp_member set_members[] = {
    {"value", &qmp_type_any,
     .doc = "Of `drive`, the name of the node to show from now on; of `limits`, those to change."},
    {NULL},
};
static const struct qmp_type set_type = {
    .name = "QomSet",
    .kind = QMP_KIND_OBJECT,
    .base = &get_type,
    .members = set_members,
};

#define OBJECTS "/objects"

/* A level of the tree that holds others. */
static bool is_container(const char *path)
{
    return !strcmp(path, "/") || !strcmp(path, OBJECTS) || !strcmp(path, &OBJECTS[1]);
}

/* A path may leave out what comes before. The last part of one that can mean an object, or NULL. */
static const char *object_of(const char *path)
{
    const char *id = strrchr(path, '/');

    if (!id) {
        return path;
    }
    return g_str_has_prefix(path, OBJECTS "/") || g_str_has_prefix(path, "objects/") ? id + 1
                                                                                     : NULL;
}

/* NULL: there is none. */
static struct block_device *look_for_device(const char *path)
{
    struct block_device *device = block_device_find(path);

    if (!device && g_str_has_prefix(path, QUERY_QDEV_PREFIX)) {
        device = block_device_find(path + strlen(QUERY_QDEV_PREFIX));
    }
    return device;
}

/* The ID of the object a path means; NULL without an error if it is to mean a device. */
static const char *find_object(const char *path, GError **error)
{
    const char *id = object_of(path);
    AUTO(block_device) device = id ? look_for_device(path) : NULL;

    if (!id || !object_exists(id)) {
        return NULL;
    }
    if (device) {
        block_error(error, EINVAL, "Path '%s' does not uniquely identify an object", path);
        return NULL;
    }
    return id;
}

static struct block_device *find_device(const char *path, GError **error)
{
    struct block_device *device = look_for_device(path);

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

static json_t *get_drive(json_t *arguments, GError **error)
{
    AUTO(block_device) device = find_drive(arguments, error);
    AUTO(block_node) root = device ? block_device_root(device) : NULL;

    if (device && !root) {
        block_error(error, ENODEV, "Device '%s' was removed", block_device_name(device));
    }
    return root ? json_string(root->name) : NULL;
}

/* The object the arguments mean; *failed: none, with the error set. */
static const char *argument_object(json_t *arguments, bool *failed, GError **error)
{
    g_autoptr(GError) own_error = NULL;
    const char *path = json_string_value(json_object_get(arguments, "path"));
    const char *id = find_object(path, &own_error);

    *failed = own_error != NULL;
    if (own_error) {
        g_propagate_error(error, g_steal_pointer(&own_error));
    }
    return id;
}

static json_t *qom_get(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *property = json_string_value(json_object_get(arguments, "property"));
    bool failed;

    if (is_container(json_string_value(json_object_get(arguments, "path"))) &&
        !strcmp(property, "type")) {
        return json_string("container");
    }
    const char *object = argument_object(arguments, &failed, error);
    if (object) {
        return object_get(object, property, error);
    }
    return failed ? NULL : get_drive(arguments, error);
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

        change->status = block_chain_check_followers(change->from, change->to, user, change->error);
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

static json_t *set_drive(json_t *arguments, GError **error)
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

static json_t *qom_set(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *property = json_string_value(json_object_get(arguments, "property"));
    bool failed;
    const char *object = argument_object(arguments, &failed, error);

    if (object) {
        return object_set(object, property, json_object_get(arguments, "value"), error) < 0
                   ? NULL
                   : json_object();
    }
    return failed ? NULL : set_drive(arguments, error);
}

/* ---- What there is --------------------------------------------------------------------------- */

static const struct qmp_member path_members[] = {
    {"path", &qmp_type_string, .doc = "As that of qom-get, or a level above: / or /objects."},
    {NULL},
};
static const struct qmp_type path_type = {
    .name = "QomList",
    .kind = QMP_KIND_OBJECT,
    .members = path_members,
};
static const struct qmp_member property_members[] = {
    {"name", &qmp_type_string, .doc = "Its name."},
    {"type", &qmp_type_string, .doc = "What it is; child<KIND> is an object."},
    {"description", &qmp_type_string, .optional = true, .doc = "For people."},
    {NULL},
};
static const struct qmp_type property_type = {
    .name = "ObjectPropertyInfo",
    .kind = QMP_KIND_OBJECT,
    .members = property_members,
};
static const struct qmp_type property_list_type = {
    .name = "ObjectPropertyInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &property_type,
};

static void append_property(json_t *list, const char *name, const char *type)
{
    json_array_append_new(list, json_pack("{s:s, s:s}", "name", name, "type", type));
}

static json_t *list_container(const char *path)
{
    bool is_root = !strcmp(path, "/");
    json_t *list = is_root ? json_array() : object_list();

    append_property(list, "type", "string");
    if (is_root) {
        append_property(list, "objects", "child<container>");
    }
    return list;
}

static json_t *list_device(const char *path, GError **error)
{
    AUTO(block_device) device = find_device(path, error);
    json_t *list;

    if (!device) {
        return NULL;
    }
    list = json_array();
    append_property(list, "drive", "str");
    return list;
}

static json_t *qom_list(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *path = json_string_value(json_object_get(arguments, "path"));
    bool failed;

    if (is_container(path)) {
        return list_container(path);
    }
    const char *object = argument_object(arguments, &failed, error);
    json_t *list = object ? object_list_properties(object) : NULL;
    return list || failed ? list : list_device(path, error);
}

static const struct qmp_member list_types_members[] = {
    {"implements", &qmp_type_string, .optional = true, .doc = "Only those that are of this kind."},
    {"abstract", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Those, too, that no object is of itself."},
    {NULL},
};
static const struct qmp_type list_types_type = {
    .name = "QomListTypes",
    .kind = QMP_KIND_OBJECT,
    .members = list_types_members,
};
static const struct qmp_member type_info_members[] = {
    {"name", &qmp_type_string, .doc = "The kind."},
    {"abstract", &qmp_type_bool, .optional = true, .doc = "No object is of it itself."},
    {"parent", &qmp_type_string, .optional = true, .doc = "The kind it belongs to."},
    {NULL},
};
static const struct qmp_type type_info_type = {
    .name = "ObjectTypeInfo",
    .kind = QMP_KIND_OBJECT,
    .members = type_info_members,
};
static const struct qmp_type type_info_list_type = {
    .name = "ObjectTypeInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &type_info_type,
};

static json_t *qom_list_types(struct qmp_request *request, json_t *arguments, GError **error)
{
    return object_list_types(json_string_value(json_object_get(arguments, "implements")),
                             json_is_true(json_object_get(arguments, "abstract")));
}

static const struct qmp_member typename_members[] = {
    {"typename", &qmp_type_string, .doc = "A kind of object."},
    {NULL},
};
static const struct qmp_type typename_type = {
    .name = "QomListProperties",
    .kind = QMP_KIND_OBJECT,
    .members = typename_members,
};

static json_t *qom_list_properties(struct qmp_request *request, json_t *arguments, GError **error)
{
    return object_list_type_properties(json_string_value(json_object_get(arguments, "typename")),
                                       error);
}

const struct qmp_command qom_commands[] = {
    {"qom-get", &get_type, &qmp_type_any, qom_get, QMP_COMMAND_QUICK,
     "The name of the node a device shows, or a property of an object. Secrets keep theirs."},
    {"qom-set", &set_type, NULL, qom_set, 0,
     "Let a device show another node, of the same length, while its guest stays connected: a "
     "copy-before-write node above its own, or its own again. A node that is then used by nobody "
     "and was not made by blockdev-add is closed. Of a throttle group, change limits."},
    {"qom-list", &path_type, &property_list_type, qom_list, QMP_COMMAND_QUICK,
     "The properties of a device or an object, or the objects."},
    {"qom-list-types", &list_types_type, &type_info_list_type, qom_list_types, QMP_COMMAND_QUICK,
     "The kinds of objects that object-add makes."},
    {"qom-list-properties", &typename_type, &property_list_type, qom_list_properties,
     QMP_COMMAND_QUICK, "The properties of a kind of object."},
    {NULL},
};
