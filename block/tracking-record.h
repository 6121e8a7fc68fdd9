/* SPDX-License-Identifier: BSD-3-Clause */
/* A dirty bitmap as a record of a tracking file, and back. */
#ifndef LIVEBLK_BLOCK_TRACKING_RECORD_H
#define LIVEBLK_BLOCK_TRACKING_RECORD_H

#include <glib.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/tracking-format.h"

/*
 * What a bitmap says now, its epoch left open. The bits are as in memory until they are packed,
 * which takes its time. NULL: there is not enough memory; -ENOMEM.
 */
struct tracking_bitmap *tracking_record_new(struct dirty_bitmap *bitmap);
int tracking_record_pack(struct tracking_bitmap *record);

/*
 * What a record that is packed said at its epoch, for a disk of this length: of one that got
 * longer, the new end is dirty if the bitmap records. What a file says of lengths and bits is not
 * believed: never more is expanded than this disk's bits, and than *left bytes, which it lowers.
 * NULL with the error set.
 */
struct dirty_bitmap *tracking_record_load(const struct tracking_bitmap *record, uint64_t length,
                                          uint64_t *left, GError **error);

#endif
