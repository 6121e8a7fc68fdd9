/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/clock.h"
#include "block/device.h"
#include "block/error.h"
#include "block/point-in-time.h"
#include "block/tracking.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/qmp/json-value.h"
#include "server/sessions.h"

#define LEASE_MAX_S          (INT64_C(365) * 24 * 3600)
#define HOOK_LIMIT_MAX_MS    INT64_C(600000)
#define RANGES_DEFAULT_LIMIT 1000
#define RANGES_MAX_LIMIT     10000

/* ---- Types ---------------------------------------------------------------------------------- */

static const struct qmp_type names_type = {
    .name = "strList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_string,
};
static const char *const mode_names[] = {"full", "incremental", NULL};
static const struct qmp_type mode_type = {
    .name = "CheckpointMode",
    .kind = QMP_KIND_ENUM,
    .values = mode_names,
    .doc =
        "full: everything has to be moved. incremental: what changed since the checkpoint before.",
};
static const char *const reason_names[] = {
    "not-tracked", "no-parent", "new-device", "resized", "identity-changed", "tracking-lost", NULL};
static const struct qmp_type reason_type = {
    .name = "CheckpointFullReason",
    .kind = QMP_KIND_ENUM,
    .values = reason_names,
    .doc =
        "Why everything has to be moved. not-tracked: the device has no tracking file, and so no "
        "checkpoint. no-parent: `since` was not given, or is not a checkpoint of the device. "
        "new-device: it has no checkpoint at all. resized, identity-changed, tracking-lost: why "
        "the map with that checkpoint was lost (see query-block-tracking).",
};
static const struct qmp_member device_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"mode", &mode_type, .doc = "What has to be moved."},
    {"reason", &reason_type, .optional = true, .doc = "Why everything has to be."},
    {"since", &qmp_type_string, .optional = true,
     .doc = "The checkpoint since which the changes are."},
    {"checkpoint", &qmp_type_bool, .doc = "Whether a checkpoint was cut: the device is tracked."},
    {"export", &qmp_type_string, .doc = "The export of the view: what the disk held."},
    {"changes-export", &qmp_type_string,
     .doc =
         "The same once more; its base:allocation is data where something has to be moved (a hole "
         "elsewhere), and zero there where it reads as zeroes."},
    {"node-name", &qmp_type_string, .doc = "The node of the view, for jobs."},
    {"length", &qmp_type_size, .doc = "The disk's length in bytes."},
    {"data-bytes", &qmp_type_size,
     .doc =
         "How much data has to be moved, in whole granules; of a full one, as the storage says."},
    {"zero-bytes", &qmp_type_size, .doc = "And how much reads as zeroes."},
    {NULL},
};
static const struct qmp_type device_type = {
    .name = "CheckpointDevice",
    .kind = QMP_KIND_OBJECT,
    .members = device_members,
};
static const struct qmp_type devices_type = {
    .name = "CheckpointDeviceList",
    .kind = QMP_KIND_ARRAY,
    .element = &device_type,
};
static const struct qmp_member session_members[] = {
    {"name", &qmp_type_string, .doc = "The session, its checkpoint and its view."},
    {"time", &qmp_type_number, .doc = "Its instant: seconds since 1970."},
    {"held-ns", &qmp_type_int, .doc = "How long guests were held for it, at most."},
    {"lease-left", &qmp_type_number, .optional = true,
     .doc = "Seconds until it is abandoned, unless checkpoint-begin is said again."},
    {"hook-error", &qmp_type_string, .optional = true,
     .doc = "How the command after the cut failed: the guest may still be frozen."},
    {"guest-waits", &guest_waits_type,
     .doc = "How long writes of guests have been held since, to keep what they overwrite."},
    {"broken", &qmp_type_string, .optional = true, .doc = "Why it is of no use any more."},
    {"was-open", &qmp_type_bool, .optional = true,
     .doc = "In the answer to checkpoint-begin: this session was there, and nothing was cut."},
    {"devices", &devices_type, .doc = "Its devices, in the order they were named in."},
    {NULL},
};
static const struct qmp_type session_type = {
    .name = "CheckpointSession",
    .kind = QMP_KIND_OBJECT,
    .members = session_members,
};

static json_t *device_object(const struct session_device *device)
{
    struct session_device_info info;
    json_t *object;

    session_device_get_info(device, &info);
    g_autofree char *changes = g_strconcat(info.export_name, SESSION_CHANGES_SUFFIX, NULL);
    object = json_pack("{s:s, s:s, s:b, s:s, s:s, s:s}", "device", info.device, "mode",
                       mode_names[!info.reason], "checkpoint", info.has_checkpoint, "export",
                       info.export_name, "changes-export", changes, "node-name", info.node_name);
    if (info.reason) {
        json_object_set_new(object, "reason", json_string(info.reason));
    }
    if (info.since) {
        json_object_set_new(object, "since", json_string(info.since));
    }
    json_object_set_new(object, "length", json_value_from_u64(info.length));
    json_object_set_new(object, "data-bytes", json_value_from_u64(info.data_bytes));
    json_object_set_new(object, "zero-bytes", json_value_from_u64(info.zero_bytes));
    g_free(info.node_name);
    return object;
}

static json_t *session_object(struct session *session)
{
    g_autofree char *broken = session_broken(session);
    double lease_left = session_lease_left(session);
    struct guest_waits_report waits;
    json_t *devices = json_array();
    json_t *object = json_pack("{s:s, s:f, s:I}", "name", session_name(session), "time",
                               (double)session_created_ns(session) / 1e9, "held-ns",
                               (json_int_t)session_held_ns(session));

    session_guest_waits(session, &waits);
    json_object_set_new(object, "guest-waits", guest_waits_object(&waits));
    if (lease_left >= 0) {
        json_object_set_new(object, "lease-left", json_real(lease_left));
    }
    if (session_hook_error(session)) {
        json_object_set_new(object, "hook-error",
                            json_value_from_text(session_hook_error(session)));
    }
    if (broken) {
        json_object_set_new(object, "broken", json_value_from_text(broken));
    }
    for (size_t i = 0; i < session_device_count(session); i++) {
        json_array_append_new(devices, device_object(session_device_at(session, i)));
    }
    json_object_set_new(object, "devices", devices);
    return object;
}

/* ---- checkpoint-begin ----------------------------------------------------------------------- */

static const struct qmp_member since_members[] = {
    {"device", &qmp_type_string, .doc = "The device."},
    {"since", &qmp_type_string, .optional = true,
     .doc = "A checkpoint of it; instead of the one for all."},
    {NULL},
};
static const struct qmp_type since_type = {
    .name = "CheckpointBeginDevice",
    .kind = QMP_KIND_OBJECT,
    .members = since_members,
};
static const struct qmp_type since_list_type = {
    .name = "CheckpointBeginDeviceList",
    .kind = QMP_KIND_ARRAY,
    .element = &since_type,
};
static const struct qmp_type policy_type = {
    .name = "OnCbwError",
    .kind = QMP_KIND_ENUM,
    .values = point_in_time_policy_names,
};
static const struct qmp_member begin_members[] = {
    {"name", &qmp_type_string, .doc = "The session's name, as view-create's."},
    {"devices", &since_list_type, .optional = true, .doc = "The devices; all by default."},
    {"since", &qmp_type_string, .optional = true,
     .doc = "The checkpoint since which changes are asked for. A device that does not have it, or "
            "cannot say any more what changed, is a full one, with the reason."},
    {"lease", &qmp_type_int, .optional = true, .default_text = "0",
     .doc = "Seconds after which the session is abandoned, unless it has ended or checkpoint-begin "
            "was said again; 0: never."},
    {"before-cut", &names_type, .optional = true,
     .doc =
         "A program and its arguments to run before guests are held, such as one that freezes the "
         "guest's file systems; the session is not begun if it fails. It runs as the server does, "
         "with LIVEBLK_CHECKPOINT, LIVEBLK_DEVICES and LIVEBLK_CUT in its environment."},
    {"after-cut", &names_type, .optional = true,
     .doc = "The same after the instant, in any case once before-cut was started."},
    {"hook-timeout", &qmp_type_int, .optional = true, .default_text = "10000",
     .doc = "Milliseconds that each of them has before it is killed; at most 600000."},
    {"scratch", &qmp_type_string, .optional = true, .doc = "See view-create, as the rest."},
    {"scratch-nodes", &names_type, .optional = true, .doc = "One for each device."},
    {"scratch-max", &qmp_type_size, .optional = true, .default_text = "0", .doc = "Bytes."},
    {"scratch-high-water", &qmp_type_int, .optional = true, .default_text = "80",
     .doc = "Percentage of scratch-max: when so much is used there is SCRATCH_HIGH_WATER."},
    {"cbw-timeout", &qmp_type_int, .optional = true, .default_text = "10", .doc = "Seconds."},
    {"on-cbw-error", &policy_type, .optional = true, .default_text = "break-snapshot",
     .doc = "What happens when old data cannot be kept."},
    {"discard", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Clients may give up what they have read."},
    {NULL},
};
static const struct qmp_type begin_type = {
    .name = "CheckpointBegin",
    .kind = QMP_KIND_OBJECT,
    .members = begin_members,
};

static const char **string_list(json_t *array)
{
    size_t count = json_array_size(array);
    const char **list = array ? g_new0(const char *, count + 1) : NULL;

    for (size_t i = 0; i < count; i++) {
        list[i] = json_string_value(json_array_get(array, i));
    }
    return list;
}

/* A column of an array of objects; NULL where it has none. One more is NULL. */
static const char **column(json_t *array, const char *key)
{
    size_t count = json_array_size(array);
    const char **list = array ? g_new0(const char *, count + 1) : NULL;

    for (size_t i = 0; i < count; i++) {
        list[i] = json_string_value(json_object_get(json_array_get(array, i), key));
    }
    return list;
}

static int check_program(json_t *arguments, const char *key, GError **error)
{
    json_t *program = json_object_get(arguments, key);

    return program && json_array_size(program) == 0
               ? block_error(error, EINVAL, "Parameter '%s' expects a program and its arguments",
                             key)
               : 0;
}

static int check_begin(json_t *arguments, const struct session_options *options, GError **error)
{
    json_t *devices = json_object_get(arguments, "devices");

    if (devices && json_array_size(devices) == 0) {
        return block_error(error, EINVAL, "Parameter 'devices' expects at least one device");
    }
    if (options->lease_s < 0 || options->lease_s > LEASE_MAX_S) {
        return block_error(error, EINVAL,
                           "Parameter 'lease' expects between 0 (none) and %" PRId64 " seconds",
                           LEASE_MAX_S);
    }
    if (options->hook_limit_ms < 1 || options->hook_limit_ms > HOOK_LIMIT_MAX_MS) {
        return block_error(error, EINVAL,
                           "Parameter 'hook-timeout' expects between 1 and %" PRId64
                           " milliseconds",
                           HOOK_LIMIT_MAX_MS);
    }
    return check_program(arguments, "before-cut", error) < 0
               ? -EINVAL
               : check_program(arguments, "after-cut", error);
}

/* What view-create takes; a new object. */
static json_t *view_arguments(json_t *arguments)
{
    static const char *const keys[] = {
        "scratch",     "scratch-nodes", "scratch-max", "scratch-high-water",
        "cbw-timeout", "on-cbw-error",  "discard"};
    json_t *view = json_object();

    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        json_t *value = json_object_get(arguments, keys[i]);

        if (value) {
            json_object_set(view, keys[i], value);
        }
    }
    return view;
}

static json_t *checkpoint_begin(struct qmp_request *request, json_t *arguments, GError **error)
{
    json_t *list = json_object_get(arguments, "devices");
    g_autofree const char **devices = column(list, "device"), **since = column(list, "since");
    g_autofree const char **before = string_list(json_object_get(arguments, "before-cut"));
    g_autofree const char **after = string_list(json_object_get(arguments, "after-cut"));
    struct session_options options = {
        .name = json_string_value(json_object_get(arguments, "name")),
        .devices = devices,
        .since = since,
        .default_since = json_string_value(json_object_get(arguments, "since")),
        .lease_s = lookup_integer(arguments, "lease", 0),
        .before_cut = before,
        .after_cut = after,
        .hook_limit_ms = lookup_integer(arguments, "hook-timeout", SESSION_HOOK_LIMIT_DEFAULT_MS),
    };
    bool was_open;

    if (check_begin(arguments, &options, error) < 0) {
        return NULL;
    }
    options.view = view_arguments(arguments);
    AUTO(session) session = session_begin(&options, &was_open, error);
    json_decref(options.view);
    json_t *object = session ? session_object(session) : NULL;
    if (object) {
        json_object_set_new(object, "was-open", json_boolean(was_open));
    }
    return object;
}

/* ---- checkpoint-commit, checkpoint-abandon, checkpoint-delete ------------------------------- */

static const struct qmp_member name_members[] = {
    {"name", &qmp_type_string, .doc = "The session."},
    {NULL},
};
static const struct qmp_type name_type = {
    .name = "CheckpointName",
    .kind = QMP_KIND_OBJECT,
    .members = name_members,
};
static const struct qmp_member result_members[] = {
    {"device", &qmp_type_string, .doc = "A tracked device of the session."},
    {"committed", &qmp_type_bool, .doc = "Its checkpoint stays."},
    {"message", &qmp_type_string, .optional = true, .doc = "Why it does not."},
    {NULL},
};
static const struct qmp_type result_type = {
    .name = "CheckpointCommitResult",
    .kind = QMP_KIND_OBJECT,
    .members = result_members,
};
static const struct qmp_type results_type = {
    .name = "CheckpointCommitResultList",
    .kind = QMP_KIND_ARRAY,
    .element = &result_type,
};

static json_t *checkpoint_commit(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GArray) results =
        session_commit(json_string_value(json_object_get(arguments, "name")), error);
    json_t *array = results ? json_array() : NULL;

    for (guint i = 0; results && i < results->len; i++) {
        const struct session_result *result = &g_array_index(results, struct session_result, i);
        json_t *object =
            json_pack("{s:s, s:b}", "device", result->device, "committed", result->is_committed);

        if (result->message) {
            json_object_set_new(object, "message", json_value_from_text(result->message));
        }
        json_array_append_new(array, object);
    }
    return array;
}

static json_t *checkpoint_abandon(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "name"));

    return session_abandon(name, error) < 0 ? NULL : json_object();
}

/* The first error is kept. */
static void delete_from(struct block_device *device, const char *name, GError **error)
{
    struct change_tracker *tracker = block_device_tracker(device);
    g_autoptr(GError) why = NULL;

    if (tracker && tracking_checkpoint_remove(tracker, name, &why) < 0 &&
        block_error_code(why) != -ENOENT && !*error) {
        g_propagate_prefixed_error(error, STEAL(why), "Checkpoint '%s' stays where it was: ", name);
    }
}

static json_t *checkpoint_delete(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "name"));
    AUTO(session) session = session_find(name);
    struct block_device **devices;
    GError *why = NULL;

    if (session) {
        block_error(error, EBUSY,
                    "Checkpoint '%s' is that of an open session, which is to be committed or "
                    "abandoned",
                    name);
        return NULL;
    }
    devices = block_device_list();
    for (struct block_device **device = devices; *device; device++) {
        delete_from(*device, name, &why);
    }
    block_device_list_free(devices);
    if (why) {
        g_propagate_error(error, why);
    }
    return why ? NULL : json_object();
}

/* ---- query-checkpoints ---------------------------------------------------------------------- */

static const struct qmp_member found_members[] = {
    {"device", &qmp_type_string, .doc = "A device that has it."},
    {"uuid", &qmp_type_string, .doc = "What no other checkpoint has."},
    {"time", &qmp_type_number, .doc = "When it was cut: seconds since 1970."},
    {"broken", &qmp_type_bool, .doc = "What changed since is not known."},
    {"changed-bytes", &qmp_type_int, .optional = true,
     .doc = "What changed since, in whole granules."},
    {"zero-bytes", &qmp_type_int, .optional = true, .doc = "How much of that reads as zeroes."},
    {NULL},
};
static const struct qmp_type found_type = {
    .name = "CheckpointOfDevice",
    .kind = QMP_KIND_OBJECT,
    .members = found_members,
};
static const struct qmp_type found_list_type = {
    .name = "CheckpointOfDeviceList",
    .kind = QMP_KIND_ARRAY,
    .element = &found_type,
};
static const char *const state_names[] = {"open", "committed", NULL};
static const struct qmp_type state_type = {
    .name = "CheckpointState",
    .kind = QMP_KIND_ENUM,
    .values = state_names,
    .doc = "open: of a session that has not ended. committed: it stays until it is deleted.",
};
static const struct qmp_member info_members[] = {
    {"name", &qmp_type_string, .doc = "The checkpoint."},
    {"state", &state_type, .doc = "Whether it stays."},
    {"devices", &found_list_type, .doc = "The devices that have it."},
    {"session", &session_type, .optional = true, .doc = "The open session."},
    {NULL},
};
static const struct qmp_type info_type = {
    .name = "CheckpointInfo",
    .kind = QMP_KIND_OBJECT,
    .members = info_members,
};
static const struct qmp_type info_list_type = {
    .name = "CheckpointInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &info_type,
};

/* The entry of this name; a new one at the end if there is none. */
static json_t *entry_of(json_t *list, const char *name)
{
    json_t *entry;
    size_t i;

    json_array_foreach (list, i, entry) {
        if (!strcmp(json_string_value(json_object_get(entry, "name")), name)) {
            return entry;
        }
    }
    entry = json_pack("{s:s, s:s, s:[]}", "name", name, "state", state_names[1], "devices");
    json_array_append_new(list, entry);
    return entry;
}

static void append_of_device(json_t *list, struct block_device *device)
{
    struct change_tracker *tracker = block_device_tracker(device);
    g_autoptr(GArray) found = tracker ? tracking_list_checkpoints(tracker) : NULL;

    for (guint i = 0; found && i < found->len; i++) {
        const struct tracking_checkpoint_info *info =
            &g_array_index(found, struct tracking_checkpoint_info, i);
        json_t *object =
            json_pack("{s:s, s:s, s:f, s:b}", "device", block_device_name(device), "uuid",
                      info->uuid, "time", (double)info->time_ns / 1e9, "broken", info->is_broken);

        if (!info->is_broken) {
            json_object_set_new(object, "changed-bytes",
                                json_integer((json_int_t)info->changed_bytes));
            json_object_set_new(object, "zero-bytes", json_integer((json_int_t)info->zero_bytes));
        }
        json_t *entry = entry_of(list, info->name);

        json_array_append_new(json_object_get(entry, "devices"), object);
        /* Also while the session is just being begun or ended: it does not stay yet. */
        if (info->is_pending) {
            json_object_set_new(entry, "state", json_string(state_names[0]));
        }
    }
}

static json_t *query_checkpoints(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct block_device **devices = block_device_list();
    g_autoptr(GPtrArray) sessions = session_list();
    json_t *list = json_array();

    for (struct block_device **device = devices; *device; device++) {
        append_of_device(list, *device);
    }
    block_device_list_free(devices);
    for (guint i = 0; i < sessions->len; i++) {
        struct session *session = g_ptr_array_index(sessions, i);
        json_t *entry = entry_of(list, session_name(session));

        json_object_set_new(entry, "state", json_string(state_names[0]));
        json_object_set_new(entry, "session", session_object(session));
    }
    return list;
}

/* ---- query-changes -------------------------------------------------------------------------- */

static const struct qmp_member changes_members[] = {
    {"name", &qmp_type_string, .doc = "An open session."},
    {"device", &qmp_type_string, .doc = "One of its devices."},
    {"offset", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "Where to begin: the `next` of the answer before."},
    {"limit", &qmp_type_int, .optional = true, .default_text = "1000",
     .doc = "How many ranges to tell at most, 1 to 10000."},
    {NULL},
};
static const struct qmp_type changes_type = {
    .name = "CheckpointChangesQuery",
    .kind = QMP_KIND_OBJECT,
    .members = changes_members,
};
static const char *const change_names[] = {"data", "zero", NULL};
static const struct qmp_type change_type = {
    .name = "CheckpointChangeState",
    .kind = QMP_KIND_ENUM,
    .values = change_names,
    .doc = "zero: it reads as zeroes.",
};
static const struct qmp_member range_members[] = {
    {"offset", &qmp_type_size, .doc = "Where it begins."},
    {"length", &qmp_type_size, .doc = "Its bytes."},
    {"state", &change_type, .doc = "What is there."},
    {NULL},
};
static const struct qmp_type range_type = {
    .name = "CheckpointChange",
    .kind = QMP_KIND_OBJECT,
    .members = range_members,
};
static const struct qmp_type range_list_type = {
    .name = "CheckpointChangeList",
    .kind = QMP_KIND_ARRAY,
    .element = &range_type,
};
static const struct qmp_member answer_members[] = {
    {"ranges", &range_list_type, .doc = "What has to be moved, in order."},
    {"next", &qmp_type_size, .optional = true,
     .doc = "Where to go on; absent: there is nothing behind the last of them."},
    {NULL},
};
static const struct qmp_type answer_type = {
    .name = "CheckpointChanges",
    .kind = QMP_KIND_OBJECT,
    .members = answer_members,
};

/* How far it came; a negative errno. */
static int append_ranges(json_t *ranges, const struct session_device *device, uint64_t length,
                         uint64_t *offset, size_t limit)
{
    while (*offset < length && json_array_size(ranges) < limit) {
        enum session_change change;
        uint64_t bytes;
        int status = session_changes_at(device, *offset, length - *offset, &bytes, &change);

        if (status < 0) {
            return status;
        }
        if (change != SESSION_UNCHANGED) {
            json_t *range = json_object();

            json_object_set_new(range, "offset", json_value_from_u64(*offset));
            json_object_set_new(range, "length", json_value_from_u64(bytes));
            json_object_set_new(range, "state", json_string(change_names[change == SESSION_ZERO]));
            json_array_append_new(ranges, range);
        }
        *offset += bytes;
    }
    return 0;
}

static json_t *changes_of(const struct session_device *device, uint64_t offset, int64_t limit,
                          GError **error)
{
    struct session_device_info info;
    json_t *ranges = json_array(), *answer;

    session_device_get_info(device, &info);
    g_free(info.node_name);
    int status = append_ranges(ranges, device, info.length, &offset, (size_t)limit);
    if (status < 0) {
        json_decref(ranges);
        block_error_errno(error, -status, "The view of device '%s' cannot be asked", info.device);
        return NULL;
    }
    answer = json_pack("{s:o}", "ranges", ranges);
    if (offset < info.length) {
        json_object_set_new(answer, "next", json_value_from_u64(offset));
    }
    return answer;
}

static json_t *query_changes(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "name"));
    const char *device_name = json_string_value(json_object_get(arguments, "device"));
    uint64_t offset = (uint64_t)lookup_integer(arguments, "offset", 0);
    int64_t limit = lookup_integer(arguments, "limit", RANGES_DEFAULT_LIMIT);
    AUTO(session) session = session_find(name);
    struct session_device *device;

    if (!session) {
        block_error(error, ENOENT, "There is no open session '%s'", name);
        return NULL;
    }
    if (limit < 1 || limit > RANGES_MAX_LIMIT) {
        block_error(error, EINVAL, "Parameter 'limit' expects a value in range [1, %d]",
                    RANGES_MAX_LIMIT);
        return NULL;
    }
    device = session_find_device(session, device_name, error);
    return device ? changes_of(device, offset, limit, error) : NULL;
}

const struct qmp_command checkpoint_commands[] = {
    {"checkpoint-begin", &begin_type, &session_type, checkpoint_begin, 0,
     "Begin a backup session: at one instant of all devices cut a checkpoint of each that is "
     "tracked, "
     "and make a view of what they hold. The name of an open session is answered with that, and "
     "its "
     "lease begins anew. An extension of liveblk's, as are the commands below."},
    {"checkpoint-commit", &name_type, &results_type, checkpoint_commit, 0,
     "The backup is safe: keep the session's checkpoints, durably, and end it. Its view goes. A "
     "device whose map was lost meanwhile is told in the answer, and is a full one next time. Said "
     "again, also after a crash, it answers with the devices whose checkpoints are kept; of a "
     "session "
     "without a tracked device nothing is kept to know it by, and it is an error."},
    {"checkpoint-abandon", &name_type, NULL, checkpoint_abandon, 0,
     "End a session as if it had not been. None of that name is no error, unless it was "
     "committed."},
    {"checkpoint-delete", &name_type, NULL, checkpoint_delete, 0,
     "Forget a checkpoint on all devices that have it. None of that name is no error. One that a "
     "device cannot forget (its map was lost since the server was started, and the checkpoint is "
     "broken) is an error, and it is forgotten on the others."},
    {"query-checkpoints", NULL, &info_list_type, query_checkpoints, 0,
     "The checkpoints of all devices by name, and the open sessions."},
    {"query-changes", &changes_type, &answer_type, query_changes, 0,
     "What a session has to move of a device, in pieces. What guests write meanwhile makes no "
     "difference."},
    {NULL},
};

/* ---- Events --------------------------------------------------------------------------------- */

static const struct qmp_member broken_members[] = {
    {"name", &qmp_type_string, .doc = "The session."},
    {"device", &qmp_type_string, .doc = "The device whose view or map it was."},
    {"reason", &qmp_type_string, .doc = "view-broken or tracking-lost."},
    {"message", &qmp_type_string, .doc = "For people."},
    {NULL},
};
static const struct qmp_type broken_type = {
    .name = "CheckpointBrokenEvent",
    .kind = QMP_KIND_OBJECT,
    .members = broken_members,
};
static const struct qmp_member expired_members[] = {
    {"name", &qmp_type_string, .doc = "The session."},
    {NULL},
};
static const struct qmp_type expired_type = {
    .name = "CheckpointExpiredEvent",
    .kind = QMP_KIND_OBJECT,
    .members = expired_members,
};

const struct qmp_event_type checkpoint_events[] = {
    {"CHECKPOINT_BROKEN", &broken_type,
     "An open session's view broke, or a device's map was lost: it cannot be committed for that "
     "device, or its view not be read. (Committed checkpoints break with BLOCK_TRACKING_LOST.)"},
    {"CHECKPOINT_EXPIRED", &expired_type, "A session's lease has ended: it is abandoned."},
    {NULL},
};
