/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/export.h"

#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/device.h"
#include "block/error.h"
#include "server/sessions.h"
#include "server/views.h"

struct export_handle {
    struct block_device *device;
    bool owns_device;         /* it is removed with the handle */
    char *name;               /* that it was opened by; NULL: it is a node's */
    struct view_device *view; /* what it is connected to, if the device is a view's; else NULL */
    bool is_offered;          /* nobody is connected by it */
    /* Of an export that tells changes apart; or NULL. */
    struct session *session;
    const struct session_device *changes;
    char *description;
    uint64_t length;
    bool read_only;
    uint32_t preferred_size; /* of requests; 0: unknown */
};

static char *describe(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);
    g_autofree char *filename = root ? block_node_get_filename(root) : NULL;

    return root ? g_strdup_printf("%s: %s, %s", block_device_name(device), root->driver->name,
                                  filename)
                : g_strdup_printf("%s: removed", block_device_name(device));
}

static void append_changes(GArray *list, const char *view_export)
{
    struct session *session = NULL;

    if (session_changes_open(view_export, &session)) {
        struct export_entry entry = {
            .name = g_strconcat(view_export, SESSION_CHANGES_SUFFIX, NULL),
            .description = g_strdup_printf("what session '%s' has to move: base:allocation is data "
                                           "where it changed and a hole elsewhere",
                                           session_name(session)),
        };

        g_array_append_val(list, entry);
        session_unref(session);
    }
}

static void append_views(GArray *list)
{
    struct view_export *views = view_export_list();

    for (struct view_export *view = views; view->name; view++) {
        struct export_entry entry = {.name = view->name, .description = view->description};

        g_array_append_val(list, entry);
        append_changes(list, view->name);
    }
    g_free(views);
}

struct export_entry *export_list(void)
{
    struct block_device **devices = block_device_list();
    GArray *list = g_array_new(TRUE, TRUE, sizeof(struct export_entry));

    for (struct block_device **device = devices; *device; device++) {
        struct export_entry entry = {
            .name = g_strdup(block_device_name(*device)),
            .description = describe(*device),
        };

        g_array_append_val(list, entry);
    }
    block_device_list_free(devices);
    append_views(list);
    return (struct export_entry *)g_array_free(list, FALSE);
}

void export_list_free(struct export_entry *list)
{
    for (struct export_entry *entry = list; entry->name; entry++) {
        g_free(entry->name);
        g_free(entry->description);
    }
    g_free(list);
}

char *export_default_name(void)
{
    struct block_device **devices = block_device_list();
    char *name = devices[0] ? g_strdup(block_device_name(devices[0])) : NULL;

    block_device_list_free(devices);
    return name;
}

static bool find_view(struct export_handle *handle, const char *name)
{
    handle->view = view_export_open(name);
    if (!handle->view) {
        return false;
    }
    handle->device = block_device_ref(view_export_device(handle->view));
    handle->description = view_export_describe(handle->view);
    return true;
}

static bool find_changes(struct export_handle *handle, const char *name)
{
    g_autofree char *view = g_strndup(name, strlen(name) - strlen(SESSION_CHANGES_SUFFIX));

    handle->changes = session_changes_open(view, &handle->session);
    return handle->changes && find_view(handle, view);
}

/* Find what the handle is for; false if there is none. */
static bool find_export(struct export_handle *handle, const char *name)
{
    handle->device = block_device_find(name);
    if (handle->device) {
        handle->description = describe(handle->device);
        return true;
    }
    return g_str_has_suffix(name, SESSION_CHANGES_SUFFIX) ? find_changes(handle, name)
                                                          : find_view(handle, name);
}

/* Clients that may discard are told that they may write: NBD has no word for less. */
static bool is_read_only(const struct export_handle *handle, const struct block_node *root)
{
    return root->options.read_only && !block_device_takes_discards(handle->device);
}

static void fill(struct export_handle *handle, const struct block_node *root, bool read_only)
{
    handle->length = block_node_length((struct block_node *)root);
    handle->read_only = read_only || is_read_only(handle, root);
    handle->preferred_size = root->limits.preferred_size;
}

struct export_handle *export_open(const char *name, bool read_only, GError **error)
{
    g_autofree char *default_name = *name ? NULL : export_default_name();
    struct export_handle *handle = g_new0(struct export_handle, 1);
    bool found = find_export(handle, default_name ? default_name : name);
    AUTO(block_node) root = found ? block_device_root(handle->device) : NULL;

    if (!root) {
        block_error(error, ENOENT, "There is no export named '%s'", name);
        export_close(handle);
        return NULL;
    }
    handle->name = default_name ? STEAL(default_name) : g_strdup(name);
    fill(handle, root, read_only);
    return handle;
}

struct export_handle *export_open_node(struct block_node *node, bool read_only, GError **error)
{
    g_autofree char *name = g_strdup_printf("export of node '%s'", node->name);
    struct export_handle *handle;
    struct block_device *device = block_device_new_shared(name, node, read_only, error);

    if (!device) {
        return NULL;
    }
    handle = g_new0(struct export_handle, 1);
    handle->device = device;
    handle->owns_device = true;
    handle->description = describe(device);
    fill(handle, node, read_only);
    return handle;
}

struct export_handle *export_open_again(struct export_handle *handle, GError **error)
{
    AUTO(block_node) root = NULL;
    struct export_handle *again;

    if (handle->name) {
        again = export_open(handle->name, handle->read_only, error);
        if (again && again->device != handle->device) {
            export_close(again);
            block_error(error, ENODEV, "What the export is for has gone; '%s' is another one now",
                        handle->name);
            return NULL;
        }
        return again;
    }
    root = block_device_root(handle->device);
    if (!root) {
        block_error(error, ENODEV, "What the export is for has gone");
        return NULL;
    }
    again = g_new0(struct export_handle, 1);
    again->device = block_device_ref(handle->device);
    again->description = g_strdup(handle->description);
    fill(again, root, handle->read_only);
    return again;
}

struct block_node *export_root(struct export_handle *handle)
{
    return block_device_root(handle->device);
}

static void remove_device(struct block_device *device)
{
    g_autofree char *name = g_strdup(block_device_name(device));
    int status = block_device_remove(device);

    if (status < 0 && status != -ESHUTDOWN) {
        g_warning("The %s: the last flush failed: %s", name, block_strerror(-status));
    }
}

void export_offer(struct export_handle *handle)
{
    if (handle->view && !handle->is_offered) {
        view_export_uncount(handle->view);
    }
    handle->is_offered = true;
}

void export_close(struct export_handle *handle)
{
    if (handle->owns_device) {
        remove_device(handle->device);
    } else {
        block_device_unref(handle->device);
    }
    if (handle->view) {
        export_offer(handle);
        view_export_let_go(handle->view);
    }
    session_unref(handle->session);
    g_free(handle->name);
    g_free(handle->description);
    g_free(handle);
}

const char *export_description(struct export_handle *handle)
{
    return handle->description;
}

uint64_t export_length(struct export_handle *handle)
{
    return handle->length;
}

bool export_is_read_only(struct export_handle *handle)
{
    return handle->read_only;
}

void export_block_size(struct export_handle *handle, uint32_t *minimum, uint32_t *preferred,
                       uint32_t *maximum)
{
    /* Any byte range is served: what the storage cannot do the core reads, modifies and writes. */
    *minimum = 1;
    *preferred = handle->preferred_size ? handle->preferred_size : 4096;
    *preferred = CLAMP(*preferred, 512, 32u << 20);
    *maximum = 32u << 20;
}

/* Beyond the size the client was told, or a write it may not make. */
static int check(struct export_handle *handle, bool changes, uint64_t offset, uint64_t bytes)
{
    if (changes && handle->read_only) {
        return -EPERM;
    }
    if (!range_within(offset, bytes, handle->length)) {
        return changes ? -ENOSPC : -EINVAL;
    }
    return 0;
}

int export_pread(struct export_handle *handle, void *buffer, uint64_t offset, uint64_t bytes)
{
    int status = check(handle, false, offset, bytes);

    return status < 0 ? status : block_device_pread(handle->device, buffer, offset, bytes);
}

int export_pwrite(struct export_handle *handle, const void *buffer, uint64_t offset, uint64_t bytes,
                  bool fua)
{
    int status = check(handle, true, offset, bytes);

    return status < 0 ? status
                      : block_device_pwrite(handle->device, buffer, offset, bytes,
                                            fua ? BLOCK_REQUEST_FUA : 0);
}

int export_write_zeroes(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    int status = check(handle, true, offset, bytes);

    return status < 0 ? status : block_device_write_zeroes(handle->device, offset, bytes, flags);
}

int export_discard(struct export_handle *handle, uint64_t offset, uint64_t bytes, bool fua)
{
    int status = check(handle, true, offset, bytes);

    if (status < 0) {
        return status == -ENOSPC ? -EINVAL : status; /* as the protocol has it: it needs no space */
    }
    return block_device_discard(handle->device, offset, bytes, fua ? BLOCK_REQUEST_FUA : 0);
}

int export_flush(struct export_handle *handle)
{
    return block_device_flush(handle->device);
}

int export_prefetch(struct export_handle *handle, uint64_t offset, uint64_t bytes)
{
    int status = check(handle, false, offset, bytes);

    return status < 0 ? status : block_device_prefetch(handle->device, offset, bytes);
}

static int changes_status(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                          struct block_extent *extent)
{
    enum session_change change;

    *extent = (struct block_extent){.bytes = 0};
    int status = session_changes_at(handle->changes, offset, bytes, &extent->bytes, &change);
    if (status == 0) {
        extent->flags = change == SESSION_UNCHANGED ? EXPORT_STATUS_UNCHANGED
                        : change == SESSION_ZERO    ? BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO
                                                    : BLOCK_STATUS_DATA;
    }
    return status;
}

int export_block_status(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    int status = check(handle, false, offset, bytes);

    if (status == 0 && handle->changes) {
        return changes_status(handle, offset, bytes, extent);
    }
    return status < 0 ? status : block_device_block_status(handle->device, offset, bytes, extent);
}

int export_allocation_depth(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                            uint64_t *range_bytes, unsigned *depth)
{
    struct block_extent extent;
    int status = check(handle, false, offset, bytes);

    if (status == 0) {
        status = block_device_block_status_depth(handle->device, offset, bytes, &extent, depth);
    }
    if (status == 0) {
        *range_bytes = extent.bytes;
    }
    return status;
}
