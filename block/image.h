/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an image format has besides the disk: a check, internal snapshots, VM state, stored bitmaps,
 * and options that can change.
 * Filters pass these on to their file; a driver that lacks one refuses with a sentence. Nodes are
 * drained and, but for queries, writable. It may take as long as storage does, so not on the main
 * thread of a server; of several threads one at a time does something with a node, the others wait.
 * Returns 0 or a negative errno. See struct block_driver.
 */
#ifndef LIVEBLK_BLOCK_IMAGE_H
#define LIVEBLK_BLOCK_IMAGE_H

#include "block/node.h"

/* repair: a mask of enum block_check_repair. Findings are counted in *result, which is zeroed but
 * for its list of findings. */
int block_node_check(struct block_node *node, unsigned repair, struct block_check_result *result,
                     block_progress *progress, void *progress_data, GError **error);

/* Change what an image is, from the driver's amend options; consumes the options. */
int block_node_amend(struct block_node *node, struct block_options *options,
                     block_progress *progress, void *progress_data, GError **error);
/* Record another backing file in the image; NULL: none. The graph stays as it is. */
int block_node_change_backing_file(struct block_node *node, const char *backing_file,
                                   const char *backing_format, GError **error);

/* info: the name, dates and VM state; without an ID the format gives one. */
int block_node_snapshot_create(struct block_node *node, const struct block_snapshot_info *info,
                               GError **error);
/* Of the disk alone, without VM state, at this moment. */
int block_node_snapshot_create_now(struct block_node *node, const char *name, GError **error);
/* The disk becomes what it was; its length may change. */
int block_node_snapshot_apply(struct block_node *node, const char *id, GError **error);
int block_node_snapshot_delete(struct block_node *node, const char *id, GError **error);
/* A new list; free it with block_snapshot_list_free. */
int block_node_snapshot_list(struct block_node *node, struct block_snapshot_info **list,
                             size_t *count, GError **error);

/* Offsets are in the VM state; what was never written reads as zeroes. */
int block_node_vmstate_read(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes);
int block_node_vmstate_write(struct block_node *node, const void *buffer, uint64_t offset,
                             uint64_t bytes);

/*
 * What is in the image, past what is in memory of it (block/stored-bitmaps.h): for who looks, and
 * for tests. A new list; free it with block_persistent_bitmap_list_free.
 */
int block_node_bitmap_list(struct block_node *node, struct block_persistent_bitmap **list,
                           size_t *count, GError **error);
/* bits: one per granule, the least significant first; bytes: all of them. */
int block_node_bitmap_load(struct block_node *node, const char *name, uint8_t *bits, uint64_t bytes,
                           GError **error);
int block_node_bitmap_store(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                            const uint8_t *bits, uint64_t bytes, GError **error);
int block_node_bitmap_remove(struct block_node *node, const char *name, GError **error);
void block_persistent_bitmap_list_free(struct block_persistent_bitmap *list, size_t count);

#endif
