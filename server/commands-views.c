/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-views.h"

#include <errno.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/qmp/json-value.h"
#include "server/sessions.h"
#include "server/views.h"

#define DEFAULT_TIMEOUT_S 10

/* ---- What a view is ------------------------------------------------------------------------- */

static const struct qmp_type policy_type = {
    .name = "OnCbwError",
    .kind = QMP_KIND_ENUM,
    .values = point_in_time_policy_names,
    .doc = "What happens when old data cannot be kept. break-snapshot: the guest's write goes on, "
           "and reading the snapshot fails from then on. break-guest-write: the guest's write "
           "fails.",
};
static const char *const status_names[] = {"ok", "broken", NULL};
static const struct qmp_type status_type = {
    .name = "ViewStatus",
    .kind = QMP_KIND_ENUM,
    .values = status_names,
    .doc = "broken: old data of a device could not be kept, and reading any device of the view "
           "fails.",
};
static const struct qmp_member time_members[] = {
    {"seconds", &qmp_type_int, .doc = "Seconds since 1970."},
    {"nanoseconds", &qmp_type_int, .doc = "And nanoseconds."},
    {NULL},
};
static const struct qmp_type time_type = {
    .name = "ViewTime",
    .kind = QMP_KIND_OBJECT,
    .members = time_members,
};
static const struct qmp_member device_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"export", &qmp_type_string, .doc = "The export that shows it: DEVICE@VIEW."},
    {"node-name", &qmp_type_string, .doc = "The node that shows it, for jobs and bitmaps."},
    {"length", &qmp_type_size, .doc = "The disk's length in bytes."},
    {"clients", &qmp_type_int, .doc = "Connections to the export."},
    {"saved-bytes", &qmp_type_size, .doc = "Old data kept so far; zeroes are not counted."},
    {"memory-bytes", &qmp_type_size, .doc = "Of that, what is in memory now."},
    {"scratch-bytes", &qmp_type_size, .doc = "And on scratch."},
    {"scratch-peak-bytes", &qmp_type_size, .doc = "The most there was on scratch."},
    {"discarded-bytes", &qmp_type_size, .doc = "Given up by view-discard and discards."},
    {NULL},
};
static const struct qmp_type device_type = {
    .name = "ViewDeviceInfo",
    .kind = QMP_KIND_OBJECT,
    .members = device_members,
};
static const struct qmp_type devices_type = {
    .name = "ViewDeviceInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &device_type,
};
static const struct qmp_member info_members[] = {
    {"name", &qmp_type_string, .doc = "The view's name."},
    {"status", &status_type, .doc = "Whether it can be read."},
    {"error", &qmp_type_string, .optional = true, .doc = "Why it broke."},
    {"created", &time_type, .doc = "Its instant."},
    {"on-cbw-error", &policy_type, .doc = "See view-create."},
    {"cbw-timeout", &qmp_type_int, .doc = "See view-create."},
    {"scratch-bytes", &qmp_type_size, .doc = "Old data on scratch, of all devices."},
    {"scratch-max", &qmp_type_size, .doc = "The most there may be; 0: no limit."},
    {"discard", &qmp_type_bool, .doc = "See view-create."},
    {"guest-waits", &guest_waits_type,
     .doc = "How long writes of guests have been held to keep what they overwrite."},
    {"devices", &devices_type, .doc = "Its devices, in the order they were named in."},
    {NULL},
};
static const struct qmp_type info_type = {
    .name = "ViewInfo",
    .kind = QMP_KIND_OBJECT,
    .members = info_members,
};
static const struct qmp_type info_list_type = {
    .name = "ViewInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &info_type,
};

static json_t *device_object(const struct view_device_info *device)
{
    const struct point_in_time_info *point = &device->point;

    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "device", device->device,
                     "export", device->export_name, "node-name", device->node_name, "length",
                     (json_int_t)device->length, "clients", (json_int_t)device->clients,
                     "saved-bytes", (json_int_t)point->saved_bytes, "memory-bytes",
                     (json_int_t)point->memory_bytes, "scratch-bytes",
                     (json_int_t)point->scratch_bytes, "scratch-peak-bytes",
                     (json_int_t)point->scratch_peak_bytes, "discarded-bytes",
                     (json_int_t)point->discarded_bytes);
}

static json_t *view_object(const struct view_info *view)
{
    json_t *object =
        json_pack("{s:s, s:s}", "name", view->name, "status", status_names[view->error != NULL]);
    json_t *devices = json_array();

    if (view->error) {
        json_object_set_new(object, "error", json_value_from_text(view->error));
    }
    json_object_set_new(object, "created",
                        json_pack("{s:I, s:I}", "seconds",
                                  (json_int_t)(view->created_ns / NS_PER_SECOND), "nanoseconds",
                                  (json_int_t)(view->created_ns % NS_PER_SECOND)));
    json_object_set_new(object, "on-cbw-error",
                        json_string(point_in_time_policy_names[view->policy]));
    json_object_set_new(object, "cbw-timeout", json_integer(view->timeout_s));
    json_object_set_new(object, "scratch-bytes", json_value_from_u64(view->scratch_bytes));
    json_object_set_new(object, "scratch-max", json_value_from_u64(view->scratch_max));
    json_object_set_new(object, "discard", json_boolean(view->discard));
    json_object_set_new(object, "guest-waits", guest_waits_object(&view->guest_waits));
    for (size_t i = 0; i < view->device_count; i++) {
        json_array_append_new(devices, device_object(&view->devices[i]));
    }
    json_object_set_new(object, "devices", devices);
    return object;
}

/* Of all views, or the one of this name. */
static json_t *view_objects(const char *name)
{
    json_t *list = json_array();
    size_t count;
    struct view_info *views = view_info_list(name, &count);

    for (size_t i = 0; i < count; i++) {
        json_array_append_new(list, view_object(&views[i]));
    }
    view_info_list_free(views, count);
    return list;
}

static json_t *query_views(struct qmp_request *request, json_t *arguments, GError **error)
{
    return view_objects(NULL);
}

/* ---- view-create ---------------------------------------------------------------------------- */

static const struct qmp_type names_type = {
    .name = "strList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_string,
};
static const struct qmp_member create_members[] = {
    {"name", &qmp_type_string,
     .doc = "The view's name: letters, digits, '.', '_', ':', '+' and '-'; at most 63 bytes."},
    {"devices", &names_type, .optional = true, .doc = "The devices; all of them by default."},
    {"scratch", &qmp_type_string, .optional = true,
     .doc = "An absolute path of a directory, in which old data is kept in files without a name; "
            "$TMPDIR, else /var/tmp, by default."},
    {"scratch-nodes", &names_type, .optional = true,
     .doc = "Instead of that, names of nodes to keep it in, one for each device in their order. "
            "They are overwritten."},
    {"scratch-max", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "The most bytes to keep on scratch, of all devices; 0: no limit."},
    {"scratch-high-water", &qmp_type_int, .optional = true, .default_text = "80",
     .doc =
         "Percentage of scratch-max: when so much is used there is SCRATCH_HIGH_WATER. 0: never."},
    {"cbw-timeout", &qmp_type_int, .optional = true, .default_text = "10",
     .doc = "Seconds that a guest's write may wait for old data to be kept; 0: for ever."},
    {"on-cbw-error", &policy_type, .optional = true, .default_text = "break-snapshot",
     .doc = "What happens when old data cannot be kept."},
    {"discard", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Let clients discard what they have read, which frees scratch; the exports are then "
            "advertised as writable, but take no writes."},
    {NULL},
};
static const struct qmp_type create_type = {
    .name = "ViewCreate",
    .kind = QMP_KIND_OBJECT,
    .members = create_members,
};

/* An array of strings as a NULL-terminated list that borrows them; NULL if there is no array. */
static const char **string_list(json_t *array)
{
    const char **list;

    if (!array) {
        return NULL;
    }
    list = g_new0(const char *, json_array_size(array) + 1);
    for (size_t i = 0; i < json_array_size(array); i++) {
        list[i] = json_string_value(json_array_get(array, i));
    }
    return list;
}

static int64_t integer(json_t *arguments, const char *name, int64_t default_value)
{
    json_t *value = json_object_get(arguments, name);

    return value ? json_integer_value(value) : default_value;
}

struct create_state {
    struct view *view;
};

static int prepare_create(struct transaction_action *action, json_t *arguments, GError **error)
{
    struct create_state *state = transaction_state(action);
    json_t *policy = json_object_get(arguments, "on-cbw-error");
    g_autofree const char **devices = string_list(json_object_get(arguments, "devices"));
    g_autofree const char **scratch_nodes =
        string_list(json_object_get(arguments, "scratch-nodes"));
    const struct view_options options = {
        .name = json_string_value(json_object_get(arguments, "name")),
        .devices = devices,
        .scratch_directory = json_string_value(json_object_get(arguments, "scratch")),
        .scratch_nodes = scratch_nodes,
        .scratch_max = (uint64_t)integer(arguments, "scratch-max", 0),
        .scratch_high_percent =
            integer(arguments, "scratch-high-water", SCRATCH_HIGH_PERCENT_DEFAULT),
        .timeout_s = integer(arguments, "cbw-timeout", DEFAULT_TIMEOUT_S),
        .policy = policy
                      ? (enum point_in_time_policy)lookup_enum(policy, point_in_time_policy_names)
                      : POINT_IN_TIME_BREAK_SNAPSHOT,
        .discard = lookup_bool(arguments, "discard", false),
    };

    size_t count;

    state->view = view_new(&options, error);
    if (!state->view) {
        return -EINVAL;
    }
    struct block_node *const *sources = view_sources(state->view, &count);
    for (size_t i = 0; i < count; i++) {
        transaction_drain(action, sources[i]);
    }
    return 0;
}

static int apply_create(struct transaction_action *action, GError **error)
{
    struct create_state *state = transaction_state(action);

    return view_check_sources(state->view, error);
}

static void activate_create(struct transaction_action *action)
{
    struct create_state *state = transaction_state(action);

    view_take_moment(state->view);
}

static void commit_create(struct transaction_action *action)
{
    struct create_state *state = transaction_state(action);

    view_publish(state->view);
}

static void abort_create(struct transaction_action *action)
{
    struct create_state *state = transaction_state(action);

    view_abandon(state->view);
}

const struct transaction_action_type view_create_action = {
    .name = "view-create",
    .data = &create_type,
    .state_size = sizeof(struct create_state),
    .prepare = prepare_create,
    .apply = apply_create,
    .activate = activate_create,
    .commit = commit_create,
    .abort = abort_create,
    .doc = "Make a view of this moment.",
};

static json_t *view_create(struct qmp_request *request, json_t *arguments, GError **error)
{
    json_t *empty = transaction_run_single(&view_create_action, arguments, error);
    json_t *list, *view;

    if (!empty) {
        return NULL;
    }
    list = view_objects(json_string_value(json_object_get(arguments, "name")));
    view = json_incref(json_array_get(list, 0));
    json_decref(list);
    if (!view) {
        return empty; /* somebody dropped it already */
    }
    json_decref(empty);
    return view;
}

/* ---- view-drop, view-discard ---------------------------------------------------------------- */

static const struct qmp_member drop_members[] = {
    {"name", &qmp_type_string, .doc = "The view."},
    {"force", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Also if clients are connected or a job uses it; their requests fail."},
    {NULL},
};
static const struct qmp_type drop_type = {
    .name = "ViewDrop",
    .kind = QMP_KIND_OBJECT,
    .members = drop_members,
};

static json_t *drop(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "name"));
    AUTO(session) session = session_find(name);

    if (session) {
        block_error(error, EBUSY,
                    "View '%s' is that of an open session: 'checkpoint-commit' and "
                    "'checkpoint-abandon' end it",
                    name);
        return NULL;
    }
    return view_drop(name, lookup_bool(arguments, "force", false), error) < 0 ? NULL
                                                                              : json_object();
}

static const struct qmp_member discard_members[] = {
    {"name", &qmp_type_string, .doc = "The view."},
    {"device", &qmp_type_string, .doc = "The device."},
    {"offset", &qmp_type_size, .doc = "Where the range begins, and"},
    {"length", &qmp_type_size, .doc = "how long it is, in bytes."},
    {NULL},
};
static const struct qmp_type discard_type = {
    .name = "ViewDiscard",
    .kind = QMP_KIND_OBJECT,
    .members = discard_members,
};

static json_t *discard(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "name"));
    const char *device = json_string_value(json_object_get(arguments, "device"));
    uint64_t offset = (uint64_t)integer(arguments, "offset", 0);
    uint64_t length = (uint64_t)integer(arguments, "length", 0);

    return view_discard(name, device, offset, length, error) < 0 ? NULL : json_object();
}

const struct qmp_command view_commands[] = {
    {"view-create", &create_type, &info_type, view_create, 0,
     "Keep what devices hold at one instant, and serve it as exports DEVICE@VIEW, read-only. "
     "Clients that connect from now on see them."},
    {"view-drop", &drop_type, NULL, drop, 0, "End a view, and free its scratch."},
    {"view-discard", &discard_type, NULL, discard, 0,
     "Give up a part of a view that nobody needs any more: units of 4 KiB that are wholly in the "
     "range. Its scratch is freed, and reading it fails with EINVAL."},
    {"query-views", NULL, &info_list_type, query_views, QMP_COMMAND_QUICK,
     "The views, oldest first."},
    {NULL},
};

/* ---- Events --------------------------------------------------------------------------------- */

static const struct qmp_member broken_members[] = {
    {"name", &qmp_type_string, .doc = "The view."},
    {"device", &qmp_type_string, .doc = "The device whose old data could not be kept."},
    {"reason", &qmp_type_string, .doc = "Why not."},
    {NULL},
};
static const struct qmp_type broken_type = {
    .name = "ViewBrokenEvent",
    .kind = QMP_KIND_OBJECT,
    .members = broken_members,
};

static const char *const high_kinds[] = {"job", "view", NULL};
static const struct qmp_type high_kind_type = {
    .name = "ScratchUser",
    .kind = QMP_KIND_ENUM,
    .values = high_kinds,
};
static const struct qmp_member high_members[] = {
    {"kind", &high_kind_type, .doc = "What has the scratch:"},
    {"name", &qmp_type_string, .doc = "the job or view of this name."},
    {"used", &qmp_type_size, .doc = "Bytes on scratch."},
    {"max", &qmp_type_size, .doc = "Its scratch-max; when that is reached, it breaks."},
    {NULL},
};
static const struct qmp_type high_type = {
    .name = "ScratchHighWaterEvent",
    .kind = QMP_KIND_OBJECT,
    .members = high_members,
};

const struct qmp_event_type view_events[] = {
    {"SCRATCH_HIGH_WATER", &high_type,
     "Scratch with a limit is used up to scratch-high-water percent. It comes again only after use "
     "was below half of that."},
    {"VIEW_BROKEN", &broken_type, "A view broke: reading it fails from now on."},
    {NULL},
};
