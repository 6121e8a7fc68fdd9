/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Persistent dirty bitmaps of tracked disks (block/stored-bitmaps.h).
 *
 * The tracking file holds what a bitmap said at the end of an epoch. If it records, what changed in
 * later epochs is dirty as well; so a crash makes it say more, by whole granules, and never less.
 * It is written anew when somebody changed the bitmap otherwise than by writing to the disk.
 *
 * For disks whose image keeps none it is the only keeper. For others it stands by: what the image
 * says is inconsistent after a crash is made good from here.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_BITMAPS_H
#define LIVEBLK_BLOCK_TRACKING_BITMAPS_H

#include "block/device.h"
#include "block/stored-bitmaps.h"
#include "block/tracking.h"

/* For block_stored_bitmaps_add_keeper. */
extern const struct bitmap_keeper tracking_bitmap_keeper;

/*
 * A record says what a bitmap of a node said when an epoch of the device ended, so one is written
 * only while the device shows that node. Until the file is told that the disk is elsewhere, what it
 * keeps of the bitmaps of the node that was left stays as it was then, and with what changed since,
 * wherever, says more than there is. From then on, in the same store, it keeps nothing of them: a
 * bitmap of the new node may have the same name, and say what the old one never did.
 */

/*
 * A disk that is not used yet is tracked: its bitmaps, of the node that shows it below all filters,
 * are kept in the tracker's file from now on, and those that are there are loaded. The node's own
 * bitmaps, that is: they do not follow the disk to another node. May block. Device and tracker are
 * those of the functions below, too.
 */
void tracking_bitmaps_begin(struct change_tracker *tracker, struct block_device *device,
                            struct block_node *root);

/* The same for a disk in use, whose file is new: what the node has is kept. */
void tracking_bitmaps_adopt(struct change_tracker *tracker, struct block_device *device);

/*
 * The device has been given another node with the same contents, for good, and guests go on there:
 * the file is that disk's from here (tracking_disk_moved), and keeps that node's bitmaps, which it
 * has when this returns. May block; not on the main thread, nor drained.
 */
void tracking_bitmaps_follow(struct change_tracker *tracker, struct block_device *device);

/* The device goes, and writes no more: where it is now is where it was at the end. */
void tracking_bitmaps_settle(struct change_tracker *tracker);

/* No more. Before the tracker is freed, or when it was stopped. */
void tracking_bitmaps_end(struct change_tracker *tracker);

#endif
