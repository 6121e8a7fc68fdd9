/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 images with persistent bitmaps, for tests. Functions fail the test if things are not as
 * expected.
 */
#ifndef LIVEBLK_TESTS_LIB_STORED_RIG_H
#define LIVEBLK_TESTS_LIB_STORED_RIG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "tests/lib/disk.h"

/* An image made by QEMU, with its options of creation; QEMU finds nothing wrong with it. */
void stored_rig_make(struct test_image *image, const char *options, uint64_t length);
void stored_rig_assert_clean(struct test_image *image);

/* The node "q"; more: options, each with a comma behind it. */
struct block_node *stored_rig_open(struct test_image *image, const char *more);
/* One whose opening brings just this warning. */
struct block_node *stored_rig_open_with_warning(struct test_image *image, const char *pattern);
/* One on a fault node, "bad". */
struct block_node *stored_rig_open_with_faults(struct test_image *image);
void stored_rig_set_read_only(struct block_node *node, bool read_only);

/* A new persistent one; one that is there; and remove one as the command does it. */
struct dirty_bitmap *stored_rig_add(struct block_node *node, const char *name,
                                    uint64_t granularity);
struct dirty_bitmap *stored_rig_get(struct block_node *node, const char *name);
int stored_rig_remove(struct block_node *node, const char *name, GError **error);

void stored_rig_write(struct block_node *node, uint64_t offset, uint64_t bytes);

/* Dirty ranges, "start+bytes" in KiB. */
void stored_rig_expect_dirty(struct dirty_bitmap *bitmap, const char *expected);
/* How the image lists it: "auto", "in-use", "in-use auto", "" or, if it does not, "gone". */
void stored_rig_expect_stored(const char *path, const char *name, const char *expected);

/* Keep what the image's file holds now, as a crash would leave it; and go on with that. */
void stored_rig_crash(struct test_image *image);
void stored_rig_go_on(struct test_image *image);

#endif
