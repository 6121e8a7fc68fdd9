/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/device-tracking.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/chain.h"
#include "block/error.h"
#include "block/tracking-bitmaps.h"

/* Guards the list, and switching on and off. Taken before a drained section; not by requests. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *trackers; /* all there are, switched off or not */

static void keep(struct change_tracker *tracker)
{
    if (!trackers) {
        trackers = g_ptr_array_new();
    }
    g_ptr_array_add(trackers, tracker);
}

char *device_tracking_path(const char *given, const char *disk_path, GError **error)
{
    if (!strcmp(given, "auto") && !disk_path) {
        block_error(error, EINVAL,
                    "tracking=auto puts the tracking file beside the disk's file, but this disk is "
                    "none: give a path");
        return NULL;
    }
    if (!*given) {
        block_error(error, EINVAL, "The tracking file's path is empty");
        return NULL;
    }
    /* What lies beside it is gone when the host restarts, and the disk is not. */
    struct stat information;
    if (!strcmp(given, "auto") && stat(disk_path, &information) == 0 &&
        S_ISBLK(information.st_mode)) {
        block_error(error, EINVAL,
                    "tracking=auto puts the tracking file beside the disk's file, but '%s' is a "
                    "block device: give a path elsewhere",
                    disk_path);
        return NULL;
    }
    g_autofree char *path = strcmp(given, "auto") ? g_canonicalize_filename(given, NULL)
                                                  : g_strconcat(disk_path, ".tracking", NULL);
    /* A new file takes the place of the old one, not that of a link to it. */
    char *target = realpath(path, NULL);
    char *file = g_strdup(target ? target : path);

    free(target);
    return file;
}

void device_tracking_begin(struct block_device *device, const struct tracking_options *options)
{
    AUTO(block_node) root = block_device_root(device);
    struct change_tracker *tracker = tracking_start(options, root);

    tracking_bitmaps_begin(tracker, device, root);
    SCOPE_LOCK(&lock);
    keep(tracker);
    block_device_set_tracker(device, tracker);
}

/*
 * With no request under way, so that none is noted half, or by a tracker that is gone. The device
 * itself is held, not its root: that may be another one by the time it is drained.
 */
static void exchange(struct block_device *device, struct change_tracker *tracker)
{
    block_device_hold(device);
    block_device_wait_held(device);
    AUTO(block_node) root = block_device_root(device);
    if (tracker && root) {
        /* It may have been resized since the file was made. */
        tracking_resize(tracker, block_node_length(root));
    }
    block_device_set_tracker(device, tracker);
    block_device_let_go(device);
}

int device_tracking_start(struct block_device *device, const struct tracking_options *options,
                          GError **error)
{
    AUTO(block_node) root = block_device_root(device);
    SCOPE_LOCK(&lock);
    struct change_tracker *tracker = block_device_tracker(device);

    if (!root || block_device_is_read_only(device)) {
        return block_error(error, EACCES, "Device '%s' is read-only: nothing changes there",
                           options->device);
    }
    if (tracker) {
        return block_error(error, EEXIST, "Device '%s' is tracked already", options->device);
    }
    if (access(options->path, F_OK) == 0) {
        return block_error(error, EEXIST,
                           "There is a file '%s' already; tracking of a disk in use begins with a "
                           "new one",
                           options->path);
    }
    tracker = tracking_start(options, root);
    if (tracking_check(tracker, error) < 0) {
        tracking_abandon(tracker);
        return -EIO;
    }
    keep(tracker);
    exchange(device, tracker);
    /* It may have been moved while the file was made. */
    tracking_bitmaps_adopt(tracker, device);
    return 0;
}

/* What would have nobody to keep it. */
static int check_bitmaps(struct block_device *device, GError **error)
{
    AUTO(block_node) root = block_device_root(device);
    AUTO(block_node) node = root ? block_layer_of(root) : NULL;
    g_auto(GStrv) names = node ? block_stored_bitmaps_names(node, false) : NULL;

    return names && names[0] && !block_stored_bitmaps_image_keeps(node)
               ? block_error(error, EBUSY,
                             "Device '%s' has persistent bitmaps, which the tracking file keeps: "
                             "remove '%s' first",
                             block_device_name(device), names[0])
               : 0;
}

int device_tracking_stop(struct block_device *device, GError **error)
{
    SCOPE_LOCK(&lock);
    struct change_tracker *tracker = device_tracking_find(device, error);

    if (!tracker) {
        return -ENOENT;
    }
    if (check_bitmaps(device, error) < 0) {
        return -EBUSY;
    }
    /* The file first: were we killed in between, it must not be believed. */
    int status = tracking_stop(tracker, error);
    exchange(device, NULL);
    tracking_bitmaps_end(tracker);
    tracking_release(tracker);
    return status;
}

struct change_tracker *device_tracking_find(struct block_device *device, GError **error)
{
    struct change_tracker *tracker = block_device_tracker(device);

    if (!tracker) {
        block_error(error, ENOENT,
                    "Device '%s' is not tracked: use disk=...,tracking=auto or "
                    "block-tracking-start",
                    block_device_name(device));
    }
    return tracker;
}

static bool shows(struct block_device *device, struct block_node *node)
{
    AUTO(block_node) root = block_device_root(device);
    AUTO(block_node) layer = root ? block_layer_of(root) : NULL;
    AUTO(block_node) wanted = block_layer_of(node);

    return layer == wanted;
}

/* For the trackers of the devices that show a node. */
static void for_node(struct block_node *node,
                     void (*function)(struct change_tracker *tracker, uint64_t length),
                     uint64_t length)
{
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        struct change_tracker *tracker = block_device_tracker(*device);

        if (tracker && shows(*device, node)) {
            function(tracker, length);
        }
    }
    block_device_list_free(devices);
}

static void forget_prepared(struct change_tracker *tracker, uint64_t length)
{
    tracking_forget_prepared(tracker);
}

void device_tracking_prepare_resize(struct block_node *node, uint64_t length)
{
    for_node(node, tracking_prepare, length);
}

void device_tracking_resize(struct block_node *node, uint64_t length)
{
    for_node(node, tracking_resize, length);
}

void device_tracking_end_resize(struct block_node *node)
{
    for_node(node, forget_prepared, 0);
}

void device_tracking_follow(struct block_node *node)
{
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        struct change_tracker *tracker = block_device_tracker(*device);

        if (tracker && shows(*device, node)) {
            tracking_bitmaps_follow(tracker, *device);
        }
    }
    block_device_list_free(devices);
}

/* ---- Contents that change by themselves ------------------------------------------------------ */

static bool has_layer(struct block_device *device, const struct block_node *wanted)
{
    struct block_node *node = block_device_root(device);
    bool found = false;

    while (node) {
        AUTO(block_node) above = node;

        found |= above == wanted;
        node = block_chain_below(above);
    }
    return found;
}

void device_tracking_distrust(struct block_node *node, const char *how)
{
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        struct change_tracker *tracker = block_device_tracker(*device);

        if (tracker && has_layer(*device, node)) {
            tracking_contents_changed(tracker, how);
        }
    }
    block_device_list_free(devices);
}

struct layers {
    struct block_device *device; /* a reference */
    char *text;                  /* what they are, filters left out */
};

static void free_layers(gpointer data)
{
    struct layers *layers = data;

    block_device_unref(layers->device);
    g_free(layers->text);
    g_free(layers);
}

static char *describe_layers(struct block_device *device)
{
    struct block_node *node = block_device_root(device);
    GString *text = g_string_new(NULL);

    while (node) {
        AUTO(block_node) above = node;

        if (!above->driver->is_filter) {
            g_string_append_printf(text, "%" G_GUINT64_FORMAT " ", above->serial);
        }
        node = block_chain_below(above);
    }
    return g_string_free(text, FALSE);
}

GPtrArray *device_tracking_note_layers(void)
{
    GPtrArray *list = g_ptr_array_new_with_free_func(free_layers);
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        if (block_device_tracker(*device)) {
            struct layers *layers = g_new0(struct layers, 1);

            layers->device = block_device_ref(*device);
            layers->text = describe_layers(*device);
            g_ptr_array_add(list, layers);
        }
    }
    block_device_list_free(devices);
    return list;
}

void device_tracking_compare_layers(GPtrArray *list, const char *how)
{
    for (guint i = 0; i < list->len; i++) {
        const struct layers *before = g_ptr_array_index(list, i);
        g_autofree char *now = describe_layers(before->device);
        struct change_tracker *tracker = block_device_tracker(before->device);

        if (tracker && strcmp(now, before->text)) {
            tracking_contents_changed(tracker, how);
        }
    }
    g_ptr_array_unref(list);
}

/* ---- The end --------------------------------------------------------------------------------- */

/* Guests have gone, or are kept out for good. */
void device_tracking_take_samples(struct block_device *device)
{
    struct change_tracker *tracker = block_device_tracker(device);
    AUTO(block_node) root = block_device_root(device);

    if (tracker && root) {
        block_device_hold(device);
        block_device_wait_held(device);
        if (block_node_flush(root) < 0) {
            tracking_leave_open(tracker);
        }
        tracking_bitmaps_settle(tracker);
        tracking_take_samples(tracker, root);
    }
}

void device_tracking_finish_all(void)
{
    SCOPE_LOCK(&lock);

    for (guint i = 0; trackers && i < trackers->len; i++) {
        tracking_bitmaps_end(g_ptr_array_index(trackers, i));
        tracking_finish(g_ptr_array_index(trackers, i));
    }
    g_clear_pointer(&trackers, g_ptr_array_unref);
}
