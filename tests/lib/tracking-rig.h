/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk, a raw file, that is tracked as a guest's is; and what its tracking file says. */
#ifndef LIVEBLK_TESTS_LIB_TRACKING_RIG_H
#define LIVEBLK_TESTS_LIB_TRACKING_RIG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/align.h"
#include "block/device.h"
#include "block/tracking-io.h"
#include "block/tracking.h"

#define TRACKING_RIG_DISK    (4 * MIB)
#define TRACKING_RIG_GRANULE (64 * KIB)
#define TRACKING_RIG_EXTENT  (256 * KIB)

struct tracking_rig {
    char *directory, *disk_path, *path;
    bool is_device; /* the disk is no file that has an identity */
    uint64_t granule, extent;
    struct block_node *root;
    struct block_device *device;
    struct change_tracker *tracker;
};

/* The host was restarted: another one. */
extern uint8_t tracking_rig_boot;

/* What tracking_io is without faults. Called before it is changed. */
const struct tracking_io *tracking_rig_real_io(void);

/* A new disk, tracked and open; and one that was closed, with a checkpoint "a" of its end. */
struct tracking_rig *tracking_rig_new(bool is_device);
struct tracking_rig *tracking_rig_new_closed(bool is_device);

void tracking_rig_open(struct tracking_rig *rig);
/* The disk only; all, cleanly; or as a process dies, with nothing of it lost. */
void tracking_rig_close_disk(struct tracking_rig *rig);
void tracking_rig_finish(struct tracking_rig *rig);
void tracking_rig_kill(struct tracking_rig *rig);
/* What was left to itself has ended: nobody has the tracking file locked. */
void tracking_rig_wait_unused(const struct tracking_rig *rig);
/* Cleanly, and all is removed. */
void tracking_rig_free(struct tracking_rig *rig);

int tracking_rig_write(struct tracking_rig *rig, uint64_t offset, uint64_t bytes);

/* A new checkpoint; and what is known of one, whose name is "found" then, else NULL. */
int tracking_rig_add(struct tracking_rig *rig, const char *name, GError **error);
struct tracking_checkpoint_info tracking_rig_checkpoint(struct tracking_rig *rig, const char *name);
/* Just so many bytes changed since, and so many of them read as zeroes. */
void tracking_rig_assert_changed(struct tracking_rig *rig, const char *name, uint64_t changed,
                                 uint64_t zero);

/* Why the map before this one was lost, or this one is; and whether this one is. */
enum tracking_loss tracking_rig_loss(struct tracking_rig *rig);
bool tracking_rig_is_lost(struct tracking_rig *rig);

#endif
