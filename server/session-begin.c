/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning a session: a transaction of a view and of what is in here, and what changed then. */
#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/request.h"
#include "server/commands-views.h"
#include "server/cut-hooks.h"
#include "server/device-tracking.h"
#include "server/lookup.h"
#include "server/session-internal.h"
#include "server/transaction.h"
#include "server/views.h"

/* ---- Devices -------------------------------------------------------------------------------- */

static void add_device(GArray *devices, struct block_device *guest, const char *since)
{
    struct session_device device = {
        .guest = block_device_ref(guest),
        .name = g_strdup(block_device_name(guest)),
        .since = g_strdup(since),
    };

    g_array_append_val(devices, device);
}

static bool is_named(const GArray *devices, const char *name)
{
    for (guint i = 0; i < devices->len; i++) {
        if (!strcmp(g_array_index(devices, struct session_device, i).name, name)) {
            return true;
        }
    }
    return false;
}

static int choose_named(GArray *devices, const struct session_options *options, GError **error)
{
    for (size_t i = 0; options->devices[i]; i++) {
        const char *name = options->devices[i];
        const char *since = options->since[i] ? options->since[i] : options->default_since;
        AUTO(block_device) guest = block_device_find(name);

        if (!guest) {
            return block_error(error, ENODEV, "Device '%s' not found", name);
        }
        if (is_named(devices, name)) {
            return block_error(error, EINVAL, "Device '%s' is named twice", name);
        }
        add_device(devices, guest, since);
    }
    return 0;
}

static void choose_all(GArray *devices, const struct session_options *options)
{
    struct block_device **guests = block_device_list();

    for (struct block_device **guest = guests; *guest; guest++) {
        add_device(devices, *guest, options->default_since);
    }
    block_device_list_free(guests);
}

static int choose_devices(struct session *session, const struct session_options *options,
                          GError **error)
{
    GArray *devices = g_array_new(FALSE, TRUE, sizeof(struct session_device));
    int status = 0;

    if (options->devices) {
        status = choose_named(devices, options, error);
    } else {
        choose_all(devices, options);
    }
    session->count = devices->len;
    session->devices = (struct session_device *)(void *)g_array_free(devices, FALSE);
    for (size_t i = 0; i < session->count; i++) {
        struct session_device *device = &session->devices[i];

        device->session = session;
        device->export_name = g_strdup_printf("%s@%s", device->name, session->name);
        device->tracker = block_device_tracker(device->guest);
    }
    return status;
}

/* ---- The moment ----------------------------------------------------------------------------- */

/* The action's data cannot hold it; one session is begun by one thread, which runs all but apply.
 */
struct begin_action {
    struct session *session;
    const struct session_options *options;
    bool has_hooked;
};

static _Thread_local const struct session_options *current_options;
static _Thread_local struct session *current_session;

static int run_hook(const struct session *session, const char *const *arguments, const char *when,
                    int64_t limit_ms, GError **error)
{
    g_autofree char *name = g_strdup_printf("LIVEBLK_CHECKPOINT=%s", session->name);
    g_autofree char *moment = g_strdup_printf("LIVEBLK_CUT=%s", when);
    g_autoptr(GString) devices = g_string_new("LIVEBLK_DEVICES=");

    for (size_t i = 0; i < session->count; i++) {
        g_string_append_printf(devices, "%s%s", i ? "," : "", session->devices[i].name);
    }
    const char *const variables[] = {name, moment, devices->str, NULL};
    return cut_hook_run(arguments, variables, limit_ms * NS_PER_MS, error);
}

/* Once, on every path: the guest's file systems are frozen, or half so. */
static void release_cut(struct begin_action *state)
{
    g_autoptr(GError) error = NULL;

    if (!state->has_hooked || !state->options->after_cut) {
        return;
    }
    state->has_hooked = false;
    if (run_hook(state->session, state->options->after_cut, "after", state->options->hook_limit_ms,
                 &error) < 0) {
        g_warning("Session '%s': the command after the cut failed, and the guest may still be "
                  "frozen: %s",
                  state->session->name, error->message);
        state->session->hook_error = g_strdup(error->message);
    }
}

/* Much of what has to be done at the moment is done before, while guests go on. */
static int prepare_device(struct transaction_action *action, struct session_device *device,
                          GError **error)
{
    enum tracking_loss loss;

    if (!device->tracker || tracking_check(device->tracker, NULL) < 0) {
        return 0;
    }
    if (tracking_judge_parent(device->tracker, device->session->name, &loss) ==
        TRACKING_PARENT_USABLE) {
        return block_error(error, EEXIST,
                           "Device '%s' has a checkpoint '%s' already: give the session another "
                           "name, or forget that with 'checkpoint-delete'",
                           device->name, device->session->name);
    }
    /* One that could not be dropped when its session ended: the name is ours now. */
    if (tracking_checkpoint_drop(device->tracker, device->session->name, NULL, error) < 0) {
        return -EIO;
    }
    device->root = lookup_device_or_node(device->name, error);
    if (!device->root) {
        return -ENOENT;
    }
    tracking_prepare_checkpoint(device->tracker);
    transaction_drain(action, device->root);
    block_node_flush(device->root); /* an error comes again */
    return 0;
}

static int prepare(struct transaction_action *action, json_t *data, GError **error)
{
    struct begin_action *state = transaction_state(action);
    int status = 0;

    state->session = current_session;
    state->options = current_options;
    for (size_t i = 0; i < state->session->count && status == 0; i++) {
        status = prepare_device(action, &state->session->devices[i], error);
    }
    /* Last, so that the guest is frozen for no longer than it takes. */
    if (status == 0 && state->options->before_cut) {
        state->has_hooked = true;
        status = run_hook(state->session, state->options->before_cut, "before",
                          state->options->hook_limit_ms, error);
        if (status < 0) {
            g_prefix_error(error,
                           "Session '%s' was not begun, as the command before the cut "
                           "failed: ",
                           state->session->name);
            release_cut(state);
        }
    }
    state->has_hooked |= status == 0; /* a command after the cut may be all there is */
    return status;
}

static int cut(struct session_device *device, GError **error)
{
    int status = lookup_check_same(device->name, device->root, error);

    if (status == 0) {
        status = tracking_checkpoint_begin(device->tracker, device->root, device->session->name,
                                           device->uuid, error);
    }
    device->is_cut = status == 0;
    return status;
}

static void revert(struct transaction_action *action)
{
    struct begin_action *state = transaction_state(action);

    for (size_t i = 0; i < state->session->count; i++) {
        session_drop_checkpoint(&state->session->devices[i]);
        state->session->devices[i].is_cut = false;
    }
}

/* Drained. A map that was lost just now makes the device a full one, and nothing fails. */
static int change(struct transaction_action *action, GError **error)
{
    struct begin_action *state = transaction_state(action);

    for (size_t i = 0; i < state->session->count; i++) {
        struct session_device *device = &state->session->devices[i];
        g_autoptr(GError) why = NULL;

        if (device->root && cut(device, &why) < 0 && tracking_check(device->tracker, NULL) == 0) {
            g_propagate_error(error, STEAL(why));
            revert(action);
            return -EIO;
        }
    }
    state->session->created_ns = g_get_real_time() * 1000;
    return 0;
}

static void release(struct transaction_action *action)
{
    release_cut(transaction_state(action));
}

static void clean(struct transaction_action *action)
{
    struct begin_action *state = transaction_state(action);

    for (size_t i = 0; i < state->session->count; i++) {
        struct session_device *device = &state->session->devices[i];

        if (device->root) {
            tracking_forget_prepared(device->tracker);
            g_clear_pointer(&device->root, block_node_unref);
        }
    }
}

static const struct qmp_member no_members[] = {{NULL}};
static const struct qmp_type no_data = {
    .name = "CheckpointCut",
    .kind = QMP_KIND_OBJECT,
    .members = no_members,
};
static const struct transaction_action_type cut_action = {
    .name = "checkpoint-begin",
    .data = &no_data,
    .state_size = sizeof(struct begin_action),
    .prepare = prepare,
    .change = change,
    .revert = revert,
    .commit = release,
    .abort = release,
    .clean = clean,
    .doc = "",
};

static json_t *view_arguments(const struct session *session, const struct session_options *options)
{
    json_t *arguments = options->view ? json_copy(options->view) : json_object();
    json_t *devices = json_array();

    for (size_t i = 0; i < session->count; i++) {
        json_array_append_new(devices, json_string(session->devices[i].name));
    }
    json_object_set_new(arguments, "name", json_string(session->name));
    json_object_set_new(arguments, "devices", devices);
    return arguments;
}

static int take_moment(struct session *session, const struct session_options *options,
                       GError **error)
{
    AUTO(transaction) transaction = transaction_new(false);
    json_t *view = view_arguments(session, options), *nothing = json_object();

    current_session = session;
    current_options = options;
    int status = transaction_add(transaction, &view_create_action, view, error);
    if (status == 0) {
        status = transaction_add(transaction, &cut_action, nothing, error);
    }
    if (status == 0) {
        status = transaction_run(transaction, error);
    }
    session->held_ns = transaction_held_ns(transaction);
    json_decref(view);
    json_decref(nothing);
    return status;
}

/* ---- What changed --------------------------------------------------------------------------- */

static int find_view_nodes(struct session *session, GError **error)
{
    size_t count;
    struct view_info *view = view_info_list(session->name, &count);
    int status = count == 1 && view->device_count == session->count
                     ? 0
                     : block_error(error, EIO, "The view of session '%s' was dropped just now",
                                   session->name);

    for (size_t i = 0; i < session->count && status == 0; i++) {
        struct session_device *device = &session->devices[i];

        device->length = view->devices[i].length;
        device->view = block_node_find_or_error(view->devices[i].node_name, error);
        status = device->view ? 0 : -ENOENT;
        device->node_name = g_strdup(view->devices[i].node_name);
    }
    view_info_list_free(view, count);
    return status;
}

static const char *reason_of_loss(enum tracking_loss loss)
{
    return loss == TRACKING_LOST_RESIZED ? "resized"
           : loss == TRACKING_LOST_MODIFIED || loss == TRACKING_LOST_OTHER_DISK ||
                   loss == TRACKING_LOST_FOREIGN
               ? "identity-changed"
               : "tracking-lost";
}

/* NULL: what changed since is known. */
static const char *reason_for_all(const struct session_device *device, const char *parent)
{
    enum tracking_loss loss;

    if (!device->tracker) {
        return "not-tracked";
    }
    enum tracking_parent judgement = tracking_judge_parent(device->tracker, parent, &loss);
    if (judgement == TRACKING_PARENT_LOST || !device->is_cut) {
        return reason_of_loss(loss);
    }
    return judgement == TRACKING_PARENT_USABLE    ? NULL
           : loss                                 ? reason_of_loss(loss)
           : judgement == TRACKING_PARENT_UNKNOWN ? "no-parent"
                                                  : "new-device";
}

/* The device's own checkpoint is one that it has, so a new one has that alone. */
static const char *judge(const struct session_device *device)
{
    if (!device->since) {
        return device->tracker ? "no-parent" : "not-tracked";
    }
    return reason_for_all(device, device->since);
}

static void count_changes(struct session_device *device)
{
    device->zero_bytes = dirty_bitmap_count(device->zeroes);
    device->data_bytes = dirty_bitmap_count(device->changed) - device->zero_bytes;
}

/* All of it is to be moved: what is there, by what the storage says. */
static void count_all(struct session_device *device)
{
    for (uint64_t offset = 0; offset < device->length;) {
        enum session_change what = SESSION_DATA;
        uint64_t bytes = device->length - offset;

        if (session_changes_at(device, offset, bytes, &bytes, &what) < 0) {
            bytes = device->length - offset;
            what = SESSION_DATA;
        }
        *(what == SESSION_ZERO ? &device->zero_bytes : &device->data_bytes) += bytes;
        offset += bytes;
    }
}

/* Guests go on. What they change meanwhile may count as changed; the view has what was before. */
static void find_changes(struct session_device *device)
{
    g_autoptr(GError) error = NULL;

    device->reason = judge(device);
    if (!device->reason) {
        device->changed = tracking_changes_until(device->tracker, device->since,
                                                 device->session->name, &device->zeroes, &error);
        if (!device->changed) {
            device->reason = judge(device); /* it was forgotten, or lost, just now */
            device->reason = device->reason ? device->reason : "tracking-lost";
        }
    }
    if (device->reason) {
        g_clear_pointer(&device->since, g_free);
        count_all(device);
    } else {
        count_changes(device);
    }
}

static void take_back(struct session *session)
{
    session_drop_view(session);
    for (size_t i = 0; i < session->count; i++) {
        session_drop_checkpoint(&session->devices[i]);
    }
}

static int begin(struct session *session, const struct session_options *options, GError **error)
{
    int status = choose_devices(session, options, error);

    if (status == 0) {
        status = take_moment(session, options, error);
    }
    if (status < 0) {
        return status;
    }
    status = find_view_nodes(session, error);
    if (status < 0) {
        take_back(session);
        return status;
    }
    for (size_t i = 0; i < session->count; i++) {
        find_changes(&session->devices[i]);
    }
    return 0;
}

struct session *session_begin(const struct session_options *options, bool *was_open, GError **error)
{
    struct session *session = session_reserve(options->name, was_open, error);

    if (!session || *was_open) {
        return session;
    }
    session->lease_ns = options->lease_s * NS_PER_SECOND;
    if (begin(session, options, error) < 0) {
        session_forget(session);
        session_unref(session);
        return NULL;
    }
    session_publish(session);
    return session;
}
