/* SPDX-License-Identifier: BSD-3-Clause */
/* The sessions there are: their list, their leases, and how they end. */
#include "server/sessions.h"

#include <errno.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/thread.h"
#include "server/session-internal.h"
#include "server/views.h"

pthread_mutex_t sessions_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, session) sessions = TAILQ_HEAD_INITIALIZER(sessions); /* oldest first */

/* Under the lock. */
static pthread_t lease_thread;
static pthread_cond_t leases_changed = PTHREAD_COND_INITIALIZER;
static bool has_lease_thread, is_ending;

/* ---- The list ------------------------------------------------------------------------------- */

static void free_device(struct session_device *device)
{
    block_device_unref(device->guest);
    block_node_unref(device->root);
    block_node_unref(device->view);
    dirty_bitmap_free(device->changed);
    dirty_bitmap_free(device->zeroes);
    g_free(device->name);
    g_free(device->export_name);
    g_free(device->node_name);
    g_free(device->since);
}

static void free_session(struct session *session)
{
    for (size_t i = 0; i < session->count; i++) {
        free_device(&session->devices[i]);
    }
    g_free(session->devices);
    g_free(session->hook_error);
    g_free(session->broken);
    g_free(session->name);
    g_free(session);
}

struct session *session_ref(struct session *session)
{
    SCOPE_LOCK(&sessions_lock);

    session->references++;
    return session;
}

void session_unref(struct session *session)
{
    if (!session) {
        return;
    }
    pthread_mutex_lock(&sessions_lock);
    bool is_last = --session->references == 0;
    pthread_mutex_unlock(&sessions_lock);
    if (is_last) {
        free_session(session);
    }
}

/* Lock held. */
static struct session *find(const char *name)
{
    struct session *session;

    TAILQ_FOREACH (session, &sessions, entry) {
        if (!strcmp(session->name, name)) {
            return session;
        }
    }
    return NULL;
}

static int64_t deadline_of(const struct session *session)
{
    return session->lease_ns ? clock_now_ns() + session->lease_ns : INT64_MAX;
}

struct session *session_reserve(const char *name, bool *was_open, GError **error)
{
    SCOPE_LOCK(&sessions_lock);
    struct session *session = find(name);

    *was_open = session && session->state == SESSION_OPEN;
    if (session && !*was_open) {
        block_error(error, EBUSY, "Session '%s' is being %s; try again", name,
                    session->state == SESSION_NEW ? "begun" : "ended");
        return NULL;
    }
    if (session) {
        session->deadline_ns = deadline_of(session);
        session->references++;
        return session;
    }
    session = g_new0(struct session, 1);
    session->name = g_strdup(name);
    session->references = 2;
    session->deadline_ns = INT64_MAX;
    TAILQ_INSERT_TAIL(&sessions, session, entry);
    return session;
}

void session_forget(struct session *session)
{
    pthread_mutex_lock(&sessions_lock);
    TAILQ_REMOVE(&sessions, session, entry);
    pthread_mutex_unlock(&sessions_lock);
    session_unref(session);
}

struct session *session_find(const char *name)
{
    SCOPE_LOCK(&sessions_lock);
    struct session *session = find(name);

    if (!session || session->state != SESSION_OPEN) {
        return NULL;
    }
    session->references++;
    return session;
}

GPtrArray *session_list(void)
{
    GPtrArray *list = g_ptr_array_new_with_free_func((GDestroyNotify)session_unref);
    SCOPE_LOCK(&sessions_lock);
    struct session *session;

    TAILQ_FOREACH (session, &sessions, entry) {
        if (session->state == SESSION_OPEN) {
            session->references++;
            g_ptr_array_add(list, session);
        }
    }
    return list;
}

/* ---- What breaks ---------------------------------------------------------------------------- */

static const char *field(const struct event *event, const char *key)
{
    for (const struct event_field *at = event->fields; at->key; at++) {
        if (!strcmp(at->key, key)) {
            return at->string;
        }
    }
    return NULL;
}

/* Lock held. */
static void break_session(struct session *session, const char *device, const char *reason,
                          const char *message)
{
    if (session->state == SESSION_OPEN && !session->broken) {
        session->broken = g_strdup_printf("Device '%s': %s", device, message);
        event_emit("CHECKPOINT_BROKEN", EVENT_STRING("name", session->name),
                   EVENT_STRING("device", device), EVENT_STRING("reason", reason),
                   EVENT_STRING("message", message));
    }
}

static bool has_cut(const struct session *session, const char *device)
{
    for (size_t i = 0; i < session->count; i++) {
        if (session->devices[i].is_cut && !strcmp(session->devices[i].name, device)) {
            return true;
        }
    }
    return false;
}

/* Of what has no event, or was not heard as the session was just being begun or ended. */
static void look_for_breaks(struct session *session)
{
    size_t count;
    struct view_info *view = view_info_list(session->name, &count);

    pthread_mutex_lock(&sessions_lock);
    if (count == 0) {
        break_session(session, session->devices[0].name, "view-broken", "its view was dropped");
    } else if (view->error) {
        break_session(session, view->culprit, "view-broken", view->error);
    }
    pthread_mutex_unlock(&sessions_lock);
    view_info_list_free(view, count);
    for (size_t i = 0; i < session->count; i++) {
        const struct session_device *device = &session->devices[i];
        g_autoptr(GError) why = NULL;

        if (device->is_cut && tracking_check(device->tracker, &why) < 0) {
            SCOPE_LOCK(&sessions_lock);
            break_session(session, device->name, "tracking-lost", why->message);
        }
    }
}

/* What a session that is being begun is of is not known yet; it looks when it is open. */
static bool is_concerned(const struct session *session, const struct event *event, bool is_view)
{
    return session->state != SESSION_NEW &&
           (is_view ? !g_strcmp0(session->name, field(event, "name"))
                    : has_cut(session, field(event, "device")));
}

static void hear(const struct event *event, void *data)
{
    bool is_view = !strcmp(event->name, "VIEW_BROKEN");
    bool is_map = !strcmp(event->name, "BLOCK_TRACKING_LOST");
    const char *device = is_view || is_map ? field(event, "device") : NULL;
    SCOPE_LOCK(&sessions_lock);
    struct session *session;

    if (!device) {
        return;
    }
    TAILQ_FOREACH (session, &sessions, entry) {
        if (is_concerned(session, event, is_view)) {
            break_session(session, device, is_view ? "view-broken" : "tracking-lost",
                          field(event, is_view ? "reason" : "message"));
        }
    }
}

void sessions_init(void)
{
    event_add_listener(hear, NULL);
}

/* ---- The end of one ------------------------------------------------------------------------- */

/* In state ENDING, a new reference; or NULL: *is_busy tells whether somebody begins or ends it. */
static struct session *take(const char *name, bool *is_busy)
{
    SCOPE_LOCK(&sessions_lock);
    struct session *session = find(name);

    *is_busy = session && session->state != SESSION_OPEN;
    if (!session || *is_busy) {
        return NULL;
    }
    session->state = SESSION_ENDING;
    session->references++;
    return session;
}

static void give_back(struct session *session)
{
    pthread_mutex_lock(&sessions_lock);
    session->state = SESSION_OPEN;
    pthread_cond_broadcast(&leases_changed);
    pthread_mutex_unlock(&sessions_lock);
    look_for_breaks(session);
}

struct block_node *session_view(const struct session_device *device)
{
    SCOPE_LOCK(&sessions_lock);

    return device->view ? block_node_ref(device->view) : NULL;
}

static struct block_node *take_view(struct session_device *device)
{
    SCOPE_LOCK(&sessions_lock);

    return STEAL(device->view);
}

void session_drop_view(struct session *session)
{
    for (size_t i = 0; i < session->count; i++) {
        block_node_unref(take_view(&session->devices[i]));
    }
    view_drop(session->name, true, NULL);
}

/* Whatever clients read of the view fails from here. */
static void end(struct session *session)
{
    session_drop_view(session);
    session_forget(session);
}

static int refuse_busy(const char *name, GError **error)
{
    return block_error(error, EBUSY, "Session '%s' is being begun or ended; try again", name);
}

void session_drop_checkpoint(struct session_device *device)
{
    g_autoptr(GError) error = NULL;

    if (device->is_cut && tracking_checkpoint_drop(device->tracker, device->session->name,
                                                   device->uuid, &error) < 0) {
        g_warning("Device '%s': the checkpoint '%s' of a session that has ended could not be "
                  "removed. It goes when a session of that name is begun, or the tracking file is "
                  "opened next: %s",
                  device->name, device->session->name, error->message);
    }
}

/* What was committed before is not dropped. */
static void drop_checkpoints(struct session *session)
{
    for (size_t i = 0; i < session->count; i++) {
        session_drop_checkpoint(&session->devices[i]);
    }
}

static void abandon(struct session *session)
{
    drop_checkpoints(session);
    end(session);
}

/* Whether a device has a checkpoint of this name that is nobody's any more. */
static bool is_committed(struct change_tracker *tracker, const char *name)
{
    enum tracking_loss loss;

    return tracker && tracking_judge_parent(tracker, name, &loss) == TRACKING_PARENT_USABLE;
}

static void append_result(GArray *results, const char *device, const char *message)
{
    struct session_result result = {
        .device = g_strdup(device),
        .is_committed = !message,
        .message = g_strdup(message),
    };

    g_array_append_val(results, result);
}

static void clear_result(void *data)
{
    struct session_result *result = data;

    g_free(result->device);
    g_free(result->message);
}

static GArray *new_results(void)
{
    GArray *results = g_array_new(FALSE, TRUE, sizeof(struct session_result));

    g_array_set_clear_func(results, clear_result);
    return results;
}

/* The devices that have it already; their users do not know of it after a crash, say. */
static GArray *committed_before(const char *name, GError **error)
{
    struct block_device **devices = block_device_list();
    GArray *results = new_results();

    for (struct block_device **device = devices; *device; device++) {
        if (is_committed(block_device_tracker(*device), name)) {
            append_result(results, block_device_name(*device), NULL);
        }
    }
    block_device_list_free(devices);
    if (!results->len) {
        g_array_unref(results);
        block_error(
            error, ENOENT,
            "There is no session '%s': it was never begun, or it was abandoned, by a client, "
            "the end of its lease or the end of its server",
            name);
        return NULL;
    }
    return results;
}

/* How many could be. */
static size_t commit_each(struct session *session, GArray *results, GError **error)
{
    size_t committed = 0;

    for (size_t i = 0; i < session->count; i++) {
        struct session_device *device = &session->devices[i];
        g_autoptr(GError) reason = NULL;

        if (!device->is_cut) {
            continue;
        }
        if (tracking_checkpoint_commit(device->tracker, session->name, device->uuid, &reason) ==
            0) {
            committed++;
        } else if (error && !*error) {
            g_propagate_error(error, g_error_copy(reason));
        }
        append_result(results, device->name, reason ? reason->message : NULL);
    }
    return committed;
}

GArray *session_commit(const char *name, GError **error)
{
    bool is_busy;
    AUTO(session) session = take(name, &is_busy);
    g_autoptr(GError) reason = NULL;

    if (is_busy) {
        refuse_busy(name, error);
        return NULL;
    }
    if (!session) {
        return committed_before(name, error);
    }
    GArray *results = new_results();
    size_t committed = commit_each(session, results, &reason);
    if (results->len && !committed) {
        g_array_unref(results);
        give_back(session);
        g_propagate_prefixed_error(error, STEAL(reason),
                                   "Session '%s' cannot be committed: ", name);
        return NULL;
    }
    drop_checkpoints(session);
    end(session);
    return results;
}

int session_abandon(const char *name, GError **error)
{
    bool is_busy;
    AUTO(session) session = take(name, &is_busy);

    if (is_busy) {
        return refuse_busy(name, error);
    }
    if (session) {
        abandon(session);
        return 0;
    }
    g_autoptr(GArray) committed = committed_before(name, NULL);
    return committed ? block_error(error, EEXIST,
                                   "Session '%s' was committed; 'checkpoint-delete' forgets its "
                                   "checkpoints",
                                   name)
                     : 0;
}

/* ---- Leases --------------------------------------------------------------------------------- */

/* Lock held. The open session whose lease ends first, or NULL. */
static struct session *first_to_end(void)
{
    struct session *session, *first = NULL;

    TAILQ_FOREACH (session, &sessions, entry) {
        if (session->state == SESSION_OPEN && session->deadline_ns != INT64_MAX &&
            (!first || session->deadline_ns < first->deadline_ns)) {
            first = session;
        }
    }
    return first;
}

/* Lock held; it is not while the session is ended. */
static void expire(struct session *session)
{
    session->state = SESSION_ENDING;
    session->references++;
    pthread_mutex_unlock(&sessions_lock);
    g_message("The lease of session '%s' has ended: it is abandoned", session->name);
    event_emit("CHECKPOINT_EXPIRED", EVENT_STRING("name", session->name));
    abandon(session);
    session_unref(session);
    pthread_mutex_lock(&sessions_lock);
}

static void *watch_leases(void *data)
{
    SCOPE_LOCK(&sessions_lock);

    while (!is_ending) {
        struct session *first = first_to_end();

        if (first && first->deadline_ns <= clock_now_ns()) {
            expire(first);
        } else {
            clock_cond_wait_until(&leases_changed, &sessions_lock,
                                  first ? first->deadline_ns : INT64_MAX);
        }
    }
    return NULL;
}

/* Lock held. */
static void need_lease_thread(const struct session *session)
{
    int error_number =
        has_lease_thread || is_ending ? 0 : thread_create(&lease_thread, watch_leases, NULL);

    if (error_number) {
        g_warning("The lease of session '%s' does not end by itself: there is no thread to be had "
                  "(%s)",
                  session->name, block_strerror(error_number));
    }
    has_lease_thread = !is_ending && error_number == 0;
}

void session_publish(struct session *session)
{
    pthread_mutex_lock(&sessions_lock);
    session->state = SESSION_OPEN;
    session->deadline_ns = deadline_of(session);
    if (session->lease_ns) {
        need_lease_thread(session);
    }
    pthread_cond_broadcast(&leases_changed);
    pthread_mutex_unlock(&sessions_lock);
    look_for_breaks(session);
}

static char *any_session(void)
{
    SCOPE_LOCK(&sessions_lock);
    struct session *session;

    TAILQ_FOREACH (session, &sessions, entry) {
        if (session->state == SESSION_OPEN) {
            return g_strdup(session->name);
        }
    }
    return NULL;
}

void sessions_end_all(void)
{
    pthread_mutex_lock(&sessions_lock);
    bool has_thread = has_lease_thread;
    is_ending = true;
    has_lease_thread = false;
    pthread_cond_broadcast(&leases_changed);
    pthread_mutex_unlock(&sessions_lock);
    if (has_thread) {
        pthread_join(lease_thread, NULL);
    }
    for (char *name; (name = any_session());) {
        session_abandon(name, NULL);
        g_free(name);
    }
    SCOPE_LOCK(&sessions_lock);
    is_ending = false;
}

/* ---- What there is to know ------------------------------------------------------------------ */

const char *session_name(const struct session *session)
{
    return session->name;
}

int64_t session_created_ns(const struct session *session)
{
    return session->created_ns;
}

int64_t session_held_ns(const struct session *session)
{
    return session->held_ns;
}

const char *session_hook_error(const struct session *session)
{
    return session->hook_error;
}

double session_lease_left(struct session *session)
{
    SCOPE_LOCK(&sessions_lock);
    int64_t left = session->deadline_ns - clock_now_ns();

    return session->deadline_ns == INT64_MAX ? -1 : (double)MAX(left, 0) / 1e9;
}

void session_guest_waits(struct session *session, struct guest_waits_report *waits)
{
    size_t count;
    struct view_info *view = view_info_list(session->name, &count);

    *waits = count ? view->guest_waits : (struct guest_waits_report){0};
    view_info_list_free(view, count);
}

char *session_broken(struct session *session)
{
    look_for_breaks(session);
    SCOPE_LOCK(&sessions_lock);

    return g_strdup(session->broken);
}

size_t session_device_count(const struct session *session)
{
    return session->count;
}

struct session_device *session_device_at(const struct session *session, size_t index)
{
    return &session->devices[index];
}

struct session_device *session_find_device(struct session *session, const char *name,
                                           GError **error)
{
    for (size_t i = 0; i < session->count; i++) {
        if (!strcmp(session->devices[i].name, name)) {
            return &session->devices[i];
        }
    }
    block_error(error, ENOENT, "Session '%s' has no device '%s'", session->name, name);
    return NULL;
}

void session_device_get_info(const struct session_device *device, struct session_device_info *info)
{
    *info = (struct session_device_info){
        .device = device->name,
        .export_name = device->export_name,
        .since = device->since,
        .node_name = g_strdup(device->node_name),
        .has_checkpoint = device->is_cut,
        .reason = device->reason,
        .length = device->length,
        .data_bytes = device->data_bytes,
        .zero_bytes = device->zero_bytes,
    };
}
