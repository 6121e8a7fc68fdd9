/* SPDX-License-Identifier: BSD-3-Clause */
/* Making a view, up to its moment. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "formats/scratch.h"
#include "formats/snapshot-access.h"
#include "server/view-internal.h"

static bool name_is_valid(const char *name)
{
    if (!g_ascii_isalnum(*name) || strlen(name) > VIEW_NAME_MAX) {
        return false;
    }
    for (const char *p = name; *p; p++) {
        if (!g_ascii_isalnum(*p) && !strchr("._:+-", *p)) {
            return false;
        }
    }
    return true;
}

static int check_options(const struct view_options *options, GError **error)
{
    if (!name_is_valid(options->name)) {
        return block_error(error, EINVAL,
                           "Invalid view name '%s': it must begin with a letter or a digit, hold "
                           "only letters, digits, '.', '_', ':', '+' and '-', and be at most %d "
                           "bytes long",
                           options->name, VIEW_NAME_MAX);
    }
    if (options->timeout_s < 0 || options->timeout_s > INT_MAX) {
        return block_error(error, EINVAL, "cbw-timeout must be between 0 (none) and %d seconds",
                           INT_MAX);
    }
    if (options->scratch_directory && options->scratch_nodes) {
        return block_error(error, EINVAL, "Give either 'scratch' or 'scratch-nodes', not both");
    }
    if (options->scratch_directory && !g_path_is_absolute(options->scratch_directory)) {
        return block_error(error, EINVAL,
                           "'scratch' must be an absolute path, because this server's current "
                           "directory is not yours: '%s' is none",
                           options->scratch_directory);
    }
    return 0;
}

/* ---- Which devices -------------------------------------------------------------------------- */

static int append_device(GPtrArray *guests, const char *name, GError **error)
{
    struct block_device *guest = block_device_find(name);

    if (!guest) {
        return block_error(error, ENOENT, "Device '%s' not found", name);
    }
    if (g_ptr_array_find(guests, guest, NULL)) {
        block_device_unref(guest);
        return block_error(error, EINVAL, "Device '%s' is named twice", name);
    }
    g_ptr_array_add(guests, guest);
    return 0;
}

/* References to the devices, NULL-terminated; or NULL. */
static struct block_device **choose_devices(const char *const *names, GError **error)
{
    GPtrArray *guests;
    int status = 0;

    if (!names) {
        return block_device_list();
    }
    guests = g_ptr_array_new();
    for (; *names && status == 0; names++) {
        status = append_device(guests, *names, error);
    }
    g_ptr_array_add(guests, NULL);
    struct block_device **list = (struct block_device **)g_ptr_array_free(guests, FALSE);
    if (status < 0) {
        block_device_list_free(list);
        return NULL;
    }
    return list;
}

static void set_devices(struct view *view, struct block_device **guests)
{
    while (guests[view->count]) {
        view->count++;
    }
    view->devices = g_new0(struct view_device, view->count);
    view->sources = g_new0(struct block_node *, view->count);
    for (size_t i = 0; i < view->count; i++) {
        struct view_device *device = &view->devices[i];
        AUTO(block_node) root = block_device_root(guests[i]);

        device->view = view;
        device->guest = block_device_ref(guests[i]);
        device->name = g_strdup(block_device_name(guests[i]));
        device->export_name = g_strdup_printf("%s@%s", device->name, view->name);
        if (root) {
            device->source = block_layer_of(root);
        }
        view->sources[i] = device->source;
    }
}

/* ---- What each device needs ----------------------------------------------------------------- */

static int open_scratch(struct view_device *device, const struct view_options *options,
                        size_t index, GError **error)
{
    device->scratch =
        options->scratch_nodes
            ? block_node_find_or_error(options->scratch_nodes[index], error)
            : scratch_open(options->scratch_directory, block_node_length(device->source), error);
    device->scratch_vanishes = !options->scratch_nodes;
    return device->scratch ? 0 : -EINVAL;
}

static void node_closed(void *data)
{
    view_unref(data);
}

/* The node owns the point in time, and keeps the view, whose memory that uses. */
static int open_node(struct view_device *device, struct point_in_time *point, GError **error)
{
    const struct snapshot_access_options options = {
        .point = point,
        .filename = device->export_name,
        .closed = node_closed,
        .data = device->view,
    };

    view_ref(device->view);
    device->node = snapshot_access_open(&options, error);
    if (!device->node) {
        view_unref(device->view);
        point_in_time_free(point);
        return -EINVAL;
    }
    device->point = point;
    return 0;
}

static int open_point(struct view_device *device, GError **error)
{
    struct view *view = device->view;
    g_autofree char *owner = g_strdup_printf("view '%s'", view->name);
    const struct point_in_time_options options = {
        .owner = owner,
        .source = device->source,
        .scratch = device->scratch,
        .scratch_vanishes = device->scratch_vanishes,
        .policy = view->policy,
        .guest_timeout_ns = view->timeout_s * NS_PER_SECOND,
        .budget = &view->budget,
        .waits = view->waits,
        .callback_data = device,
        .on_change = view_on_change,
    };
    struct point_in_time *point = point_in_time_new(&options, error);

    return point ? open_node(device, point, error) : -EINVAL;
}

static int open_device(struct view_device *device, const struct view_options *options, size_t index,
                       GError **error)
{
    int status = device->source ? 0 : block_error(error, ENODEV, "it was removed");

    if (status == 0) {
        status = open_scratch(device, options, index, error);
    }
    if (status == 0) {
        status = open_point(device, error);
    }
    if (status == 0) {
        device->device = block_device_new_unlisted(device->export_name, device->node,
                                                   device->view->discard, error);
        status = device->device ? 0 : -EINVAL;
    }
    if (status < 0) {
        g_prefix_error(error, "View '%s', device '%s': ", device->view->name, device->name);
        return status;
    }
    block_device_ref(device->device); /* for clients that stay when the view is dropped */
    return 0;
}

static int check_count(const struct view *view, const struct view_options *options, GError **error)
{
    size_t nodes = options->scratch_nodes
                       ? g_strv_length((char **)(uintptr_t)options->scratch_nodes)
                       : view->count;

    if (view->count == 0) {
        return block_error(error, EINVAL, "A view needs at least one device");
    }
    if (nodes != view->count) {
        return block_error(error, EINVAL,
                           "'scratch-nodes' must name one node for each device, in order: %zu "
                           "nodes for %zu devices",
                           nodes, view->count);
    }
    return 0;
}

static int set_up(struct view *view, const struct view_options *options, GError **error)
{
    struct block_device **guests = choose_devices(options->devices, error);
    int status;

    if (!guests) {
        return -ENOENT;
    }
    view->policy = options->policy;
    view->timeout_s = options->timeout_s;
    view->discard = options->discard;
    set_devices(view, guests);
    block_device_list_free(guests);
    status = check_count(view, options, error);
    if (status == 0) {
        status = scratch_budget_init(&view->budget, options->scratch_max,
                                     options->scratch_high_percent, "view", view->name, error);
    }
    for (size_t i = 0; i < view->count && status == 0; i++) {
        status = open_device(&view->devices[i], options, i, error);
    }
    return status;
}

/* ---- The steps ------------------------------------------------------------------------------ */

struct view *view_new(const struct view_options *options, GError **error)
{
    struct view *view;

    if (check_options(options, error) < 0) {
        return NULL;
    }
    view = view_reserve(options->name, error);
    if (view && set_up(view, options, error) < 0) {
        view_abandon(view);
        return NULL;
    }
    return view;
}

struct block_node *const *view_sources(struct view *view, size_t *count)
{
    *count = view->count;
    return view->sources;
}

static int check_source(const struct view_device *device, GError **error)
{
    AUTO(block_node) root = block_device_root(device->guest);

    if (!root) {
        return block_error(error, ENODEV, "Device '%s' was removed", device->name);
    }
    return block_node_below_filters(root) == device->source
               ? 0
               : block_error(error, EAGAIN, "Device '%s' has just got another node; try again",
                             device->name);
}

int view_check_sources(struct view *view, GError **error)
{
    int status = 0;

    for (size_t i = 0; i < view->count && status == 0; i++) {
        status = check_source(&view->devices[i], error);
    }
    return status;
}

void view_take_moment(struct view *view)
{
    struct timespec now;

    for (size_t i = 0; i < view->count; i++) {
        point_in_time_install(view->devices[i].point);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    view->created_ns = now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

void view_abandon(struct view *view)
{
    view_close(view);
    view_forget(view);
}
