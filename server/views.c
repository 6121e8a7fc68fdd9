/* SPDX-License-Identifier: BSD-3-Clause */
/* The views there are: their list, breaking and dropping them, their exports. */
#include "server/views.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/request.h"
#include "server/view-internal.h"

/* Requests to scratch that hang for longer are cut off when a view is dropped. */
#define STOP_GRACE_NS (5 * NS_PER_SECOND)

/*
 * Guards the list and what view-internal.h says. Taken before the graph lock and the lock of the
 * event queue; nothing blocks under it.
 */
static pthread_mutex_t views_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t breaking_ended = PTHREAD_COND_INITIALIZER;
static TAILQ_HEAD(, view) views = TAILQ_HEAD_INITIALIZER(views); /* oldest first */

/* ---- The list ------------------------------------------------------------------------------- */

static struct view *find_locked(const char *name)
{
    struct view *view;

    TAILQ_FOREACH (view, &views, entry) {
        if (!strcmp(view->name, name)) {
            return view;
        }
    }
    return NULL;
}

struct view *view_reserve(const char *name, GError **error)
{
    SCOPE_LOCK(&views_lock);

    if (find_locked(name)) {
        block_error(error, EEXIST, "View '%s' exists already", name);
        return NULL;
    }
    struct view *view = g_new0(struct view, 1);
    view->name = g_strdup(name);
    view->references = 1;
    view->waits = guest_waits_new();
    TAILQ_INSERT_TAIL(&views, view, entry);
    return view;
}

static void free_view(struct view *view)
{
    for (size_t i = 0; i < view->count; i++) {
        struct view_device *device = &view->devices[i];

        block_device_unref(device->device);
        block_device_unref(device->guest);
        block_node_unref(device->scratch);
        block_node_unref(device->source);
        g_free(device->export_name);
        g_free(device->name);
    }
    guest_waits_unref(view->waits);
    g_free(view->devices);
    g_free(view->sources);
    g_free(view->error);
    g_free(view->name);
    g_free(view);
}

void view_ref(struct view *view)
{
    SCOPE_LOCK(&views_lock);

    view->references++;
}

void view_unref(struct view *view)
{
    pthread_mutex_lock(&views_lock);
    bool last = --view->references == 0;
    pthread_mutex_unlock(&views_lock);
    if (last) {
        free_view(view);
    }
}

void view_forget(struct view *view)
{
    pthread_mutex_lock(&views_lock);
    TAILQ_REMOVE(&views, view, entry);
    pthread_mutex_unlock(&views_lock);
    view_unref(view);
}

void view_publish(struct view *view)
{
    SCOPE_LOCK(&views_lock);

    view->state = VIEW_LIVE;
}

/* ---- Breaking ------------------------------------------------------------------------------- */

/* The devices are of one instant: without one of them, the others are not what was asked for. */
static void break_others(struct view *view, const struct view_device *culprit)
{
    for (size_t i = 0; i < view->count; i++) {
        if (&view->devices[i] != culprit) {
            GError *error = NULL;

            block_error(&error, EIO, "Device '%s' of the same view broke", culprit->name);
            point_in_time_break(view->devices[i].point, error);
        }
    }
}

/* True for the first failure of a view that nobody drops: it then is our turn to break it. */
static bool begin_breaking(struct view *view)
{
    SCOPE_LOCK(&views_lock);

    if (view->broken) {
        return false;
    }
    view->broken = true;
    view->is_breaking = true;
    return true;
}

/* Who is told that the view broke can no longer read any device of it. */
void view_on_change(void *data)
{
    struct view_device *device = data;
    struct view *view = device->view;
    g_autoptr(GError) reason = NULL;

    if (!point_in_time_is_broken(device->point, NULL)) {
        return;
    }
    point_in_time_is_broken(device->point, &reason);
    if (!begin_breaking(view)) {
        return;
    }
    break_others(view, device);
    pthread_mutex_lock(&views_lock);
    view->error = g_strdup(reason->message);
    view->culprit = device->name;
    pthread_mutex_unlock(&views_lock);
    g_warning("View '%s' broke: device '%s': %s", view->name, device->name, reason->message);
    event_emit("VIEW_BROKEN", EVENT_STRING("name", view->name),
               EVENT_STRING("device", device->name), EVENT_STRING("reason", reason->message));
    SCOPE_LOCK(&views_lock);
    view->is_breaking = false;
    pthread_cond_broadcast(&breaking_ended);
}

/* From here on no failure breaks the view any more, and nobody is about to. */
static void end_breaking(struct view *view)
{
    SCOPE_LOCK(&views_lock);

    view->broken = true;
    while (view->is_breaking) {
        pthread_cond_wait(&breaking_ended, &views_lock);
    }
}

/* ---- Dropping ------------------------------------------------------------------------------- */

/* Nobody finds the node in the view any more; who has a reference may go on with it. */
static struct block_node *take_node(struct view_device *device)
{
    SCOPE_LOCK(&views_lock);

    return STEAL(device->node);
}

/* Guests go on and readers fail at once, before anything is waited for. */
void view_close(struct view *view)
{
    end_breaking(view);
    for (size_t i = 0; i < view->count; i++) {
        if (view->devices[i].point) {
            GError *error = NULL;

            block_error(&error, EIO, "View '%s' was dropped", view->name);
            point_in_time_break(view->devices[i].point, error);
        }
    }
    for (size_t i = 0; i < view->count; i++) {
        struct view_device *device = &view->devices[i];

        if (device->point) {
            point_in_time_stop(device->point, STOP_GRACE_NS);
        }
        if (device->device) {
            block_device_remove(device->device); /* read-only: there is nothing to flush */
        }
        if (device->point) {
            point_in_time_uninstall(device->point);
        }
        if (device->node) {
            block_node_dispose(take_node(device));
        }
    }
}

/* Who uses the view's nodes besides its own devices; NULL: nobody. The caller frees. */
static char *find_user(struct view *view)
{
    for (size_t i = 0; i < view->count; i++) {
        const struct view_device *device = &view->devices[i];
        g_autofree char *own = g_strdup_printf("block device '%s'", device->export_name);
        g_auto(GStrv) users = block_node_users(device->node);

        for (char **user = users; *user; user++) {
            if (strcmp(*user, own)) {
                return g_strdup(*user);
            }
        }
    }
    return NULL;
}

static unsigned count_clients(const struct view *view)
{
    unsigned clients = 0;

    for (size_t i = 0; i < view->count; i++) {
        clients += view->devices[i].clients;
    }
    return clients;
}

/* The view in state DROPPING, or NULL. The list's reference keeps it. */
static struct view *begin_drop(const char *name, bool force, GError **error)
{
    SCOPE_LOCK(&views_lock);
    struct view *view = find_locked(name);

    if (!view || view->state == VIEW_NEW) {
        block_error(error, ENOENT, "There is no view named '%s'", name);
        return NULL;
    }
    if (view->state == VIEW_DROPPING) {
        block_error(error, EBUSY, "View '%s' is being dropped", name);
        return NULL;
    }
    if (!force && count_clients(view)) {
        unsigned clients = count_clients(view);

        block_error(error, EBUSY, "View '%s' is busy: %u client%s connected; 'force' drops it",
                    name, clients, clients == 1 ? " is" : "s are");
        return NULL;
    }
    view->state = VIEW_DROPPING;
    return view;
}

static void (*on_drop)(const char *name);

void view_on_drop(void (*function)(const char *name))
{
    on_drop = function;
}

int view_drop(const char *name, bool force, GError **error)
{
    struct view *view = begin_drop(name, force, error);

    if (!view) {
        return -EBUSY;
    }
    g_autofree char *user = force ? NULL : find_user(view);
    if (user) {
        view_publish(view); /* as it was */
        return block_error(error, EBUSY, "View '%s' is busy: it is in use by %s; 'force' drops it",
                           name, user);
    }
    if (on_drop) {
        on_drop(name);
    }
    view_close(view);
    view_forget(view);
    return 0;
}

/* The name of any view, or NULL; the caller frees. */
static char *any_view(void)
{
    SCOPE_LOCK(&views_lock);

    return TAILQ_EMPTY(&views) ? NULL : g_strdup(TAILQ_FIRST(&views)->name);
}

void view_drop_all(void)
{
    char *name;

    while ((name = any_view())) {
        view_drop(name, true, NULL);
        g_free(name);
    }
}

/* ---- Discard -------------------------------------------------------------------------------- */

static struct view_device *find_device(struct view *view, const char *name)
{
    for (size_t i = 0; i < view->count; i++) {
        if (!strcmp(view->devices[i].name, name)) {
            return &view->devices[i];
        }
    }
    return NULL;
}

/* A new reference to the node of a view's device, or NULL. */
static struct block_node *find_node(const char *name, const char *device_name, GError **error)
{
    SCOPE_LOCK(&views_lock);
    struct view *view = find_locked(name);
    struct view_device *device;

    if (!view || view->state != VIEW_LIVE) {
        block_error(error, ENOENT, "There is no view named '%s'", name);
        return NULL;
    }
    device = find_device(view, device_name);
    if (!device) {
        block_error(error, ENOENT, "View '%s' has no device '%s'", name, device_name);
        return NULL;
    }
    return block_node_ref(device->node);
}

int view_discard(const char *name, const char *device, uint64_t offset, uint64_t length,
                 GError **error)
{
    AUTO(block_node) node = find_node(name, device, error);
    int status;

    if (!node) {
        return -ENOENT;
    }
    if (!range_within(offset, length, block_node_length(node))) {
        return block_error(error, EINVAL,
                           "The range of %" PRIu64 " bytes at offset %" PRIu64
                           " is not inside the disk of %" PRIu64 " bytes",
                           length, offset, block_node_length(node));
    }
    status = block_node_discard(node, offset, length);
    return status < 0 ? block_error_errno(error, -status, "Could not discard in view '%s'", name)
                      : 0;
}

/* ---- Information ---------------------------------------------------------------------------- */

static void fill_device(struct view_device_info *info, const struct view_device *device)
{
    *info = (struct view_device_info){
        .device = g_strdup(device->name),
        .export_name = g_strdup(device->export_name),
        .node_name = g_strdup(device->node->name),
        .length = block_node_length(device->node),
        .clients = device->clients,
    };
    point_in_time_get_info(device->point, &info->point);
}

/* views_lock held. */
static void fill(struct view_info *info, const struct view *view)
{
    *info = (struct view_info){
        .name = g_strdup(view->name),
        .error = g_strdup(view->error),
        .culprit = g_strdup(view->culprit),
        .created_ns = view->created_ns,
        .policy = view->policy,
        .timeout_s = view->timeout_s,
        .scratch_bytes = atomic_load(&view->budget.used_bytes),
        .scratch_max = view->budget.max_bytes,
        .discard = view->discard,
        .devices = g_new0(struct view_device_info, view->count),
        .device_count = view->count,
    };
    guest_waits_read(view->waits, &info->guest_waits);
    for (size_t i = 0; i < view->count; i++) {
        fill_device(&info->devices[i], &view->devices[i]);
    }
}

struct view_info *view_info_list(const char *name, size_t *count)
{
    GArray *list = g_array_new(FALSE, TRUE, sizeof(struct view_info));
    SCOPE_LOCK(&views_lock);
    const struct view *view;

    TAILQ_FOREACH (view, &views, entry) {
        struct view_info info;

        if (view->state == VIEW_LIVE && (!name || !strcmp(view->name, name))) {
            fill(&info, view);
            g_array_append_val(list, info);
        }
    }
    *count = list->len;
    return (struct view_info *)(void *)g_array_free(list, FALSE);
}

void view_info_list_free(struct view_info *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < list[i].device_count; j++) {
            g_free(list[i].devices[j].device);
            g_free(list[i].devices[j].export_name);
            g_free(list[i].devices[j].node_name);
        }
        g_free(list[i].devices);
        g_free(list[i].error);
        g_free(list[i].culprit);
        g_free(list[i].name);
    }
    g_free(list);
}

/* ---- Exports -------------------------------------------------------------------------------- */

char *view_export_describe(struct view_device *device)
{
    int64_t second = device->view->created_ns / NS_PER_SECOND;
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(second);
    g_autofree char *text = g_date_time_format(time, "%Y-%m-%d %H:%M:%S");

    return g_strdup_printf("%s: view '%s' of %s.%03d UTC", device->export_name, device->view->name,
                           text, (int)(device->view->created_ns % NS_PER_SECOND / NS_PER_MS));
}

struct view_export *view_export_list(void)
{
    GArray *list = g_array_new(TRUE, TRUE, sizeof(struct view_export));
    SCOPE_LOCK(&views_lock);
    struct view *view;

    TAILQ_FOREACH (view, &views, entry) {
        for (size_t i = 0; view->state == VIEW_LIVE && i < view->count; i++) {
            struct view_export entry = {
                .name = g_strdup(view->devices[i].export_name),
                .description = view_export_describe(&view->devices[i]),
            };

            g_array_append_val(list, entry);
        }
    }
    return (struct view_export *)(void *)g_array_free(list, FALSE);
}

struct view_device *view_export_open(const char *name)
{
    SCOPE_LOCK(&views_lock);
    struct view *view;

    TAILQ_FOREACH (view, &views, entry) {
        for (size_t i = 0; view->state == VIEW_LIVE && i < view->count; i++) {
            struct view_device *device = &view->devices[i];

            if (!strcmp(device->export_name, name)) {
                device->clients++;
                view->references++;
                return device;
            }
        }
    }
    return NULL;
}

void view_export_uncount(struct view_device *device)
{
    SCOPE_LOCK(&views_lock);

    device->clients--;
}

void view_export_let_go(struct view_device *device)
{
    view_unref(device->view);
}

void view_export_close(struct view_device *device)
{
    view_export_uncount(device);
    view_export_let_go(device);
}

struct block_device *view_export_device(struct view_device *device)
{
    return device->device;
}
