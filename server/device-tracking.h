/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which devices are tracked, and by which files (block/tracking.h).
 *
 * A tracker lives until the server ends, even when it is switched off before, so that a command
 * that looked it up may use it.
 */
#ifndef LIVEBLK_SERVER_DEVICE_TRACKING_H
#define LIVEBLK_SERVER_DEVICE_TRACKING_H

#include <glib.h>

#include "block/device.h"
#include "block/tracking.h"

/*
 * The tracking file a user means: "auto" is beside the disk's file, which must be one then; the
 * rest is a path. The caller frees; NULL with the error set.
 */
char *device_tracking_path(const char *given, const char *disk_path, GError **error);

/*
 * Track a new device, before it is used. options->device and the identity are filled in; the rest
 * is the caller's.
 */
void device_tracking_begin(struct block_device *device, const struct tracking_options *options);

/*
 * Switch tracking on for a device in use, with a new file: nothing is known of what changed before.
 * -EEXIST if there is a file. Not the main thread.
 */
int device_tracking_start(struct block_device *device, const struct tracking_options *options,
                          GError **error);

/* Switch it off and remove the file. Not the main thread. */
int device_tracking_stop(struct block_device *device, GError **error);

/* The device's tracker, or NULL with the error set: it has none. Borrowed for as long as wanted. */
struct change_tracker *device_tracking_find(struct block_device *device, GError **error);

/*
 * For the devices that show a node: before it gets another length, with guests going on; drained,
 * before and after the change; and at the end. Not the main thread.
 */
void device_tracking_prepare_resize(struct block_node *node, uint64_t length);
void device_tracking_resize(struct block_node *node, uint64_t length);
void device_tracking_end_resize(struct block_node *node);

/*
 * Devices have been given this node, with the contents that they showed before, for good: their
 * tracking files are of it from here, and keep its bitmaps. Not the main thread, nor drained.
 */
void device_tracking_follow(struct block_node *node);

/*
 * The node reads differently, and not by a guest's doing: the maps of the devices that show it, or
 * have it among their layers, are lost. how: see tracking_contents_changed. Any thread.
 */
void device_tracking_distrust(struct block_node *node, const char *how);

/*
 * What the tracked devices' layers are; and, given that, the end of the maps of those whose layers
 * are others now. Frees it. Not the main thread.
 */
GPtrArray *device_tracking_note_layers(void);
void device_tracking_compare_layers(GPtrArray *layers, const char *how);

/* At the end: a device that is about to be removed; then, with all disks closed, all files. */
void device_tracking_take_samples(struct block_device *device);
void device_tracking_finish_all(void);

#endif
