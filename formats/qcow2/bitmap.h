/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: bitmaps stored in an image ("Bitmaps extension", "Bitmaps"). */
#ifndef LIVEBLK_FORMATS_QCOW2_BITMAP_H
#define LIVEBLK_FORMATS_QCOW2_BITMAP_H

#include "formats/qcow2/internal.h"

/* A stored bitmap ("Bitmap directory"), decoded. */
struct qcow2_bitmap {
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t flags;
    uint8_t type;
    unsigned granularity_bits;
    char *name;
    uint8_t *extra;
    uint32_t extra_bytes;
    const char *problem; /* what is wrong with the entry; NULL: nothing */
    bool is_named;       /* the name is valid, and no entry before this one has it */
};
enum {
    QCOW2_BITMAP_IN_USE = 1 << 0,
    QCOW2_BITMAP_AUTO = 1 << 1,
    QCOW2_BITMAP_EXTRA_COMPATIBLE = 1 << 2,
    QCOW2_BITMAP_FLAGS_KNOWN = (1 << 3) - 1,
};

void qcow2_bitmap_clear(struct qcow2_bitmap *bitmap);
/*
 * Read the directory: a new array of struct qcow2_bitmap, which the caller frees with its clear
 * function set. Entries may have a problem: NULL with the error set only if they cannot be told
 * from each other. bitmap_lock held, or nobody else uses the image.
 */
GArray *qcow2_bitmaps_read_all(struct qcow2 *q, GError **error);
/* Add an entry that has a name to a directory. */
void qcow2_bitmap_encode(GByteArray *directory, const struct qcow2_bitmap *bitmap);

/*
 * The image is opened for writing. What is wrong with bitmaps never keeps an image from being
 * opened: entries that cannot be used are left alone as long as they have a name to be removed by;
 * else the extension is dropped from the header's autoclear features and a warning is printed.
 */
void qcow2_bitmaps_opened(struct qcow2 *q);

/*
 * The disk is about to change: mark the bitmaps that record that as in use, durably, for what is
 * stored of them will not be true any more ("Bitmap directory", in_use). whole: mark all, for the
 * disk gets another length. If it fails the disk must not change. Any thread; qcow2_begin_change()
 * does it once.
 */
int qcow2_bitmaps_outdate(struct qcow2 *q, bool whole);

/* See block/driver.h. Version 2 cannot. */
bool qcow2_bitmap_keeps(struct block_node *node);
int qcow2_bitmap_list(struct block_node *node, struct block_persistent_bitmap **list, size_t *count,
                      GError **error);
int qcow2_bitmap_load(struct block_node *node, const char *name, uint8_t *bits, uint64_t bytes,
                      GError **error);
int qcow2_bitmap_store(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                       const uint8_t *bits, uint64_t bytes, GError **error);
int qcow2_bitmap_remove(struct block_node *node, const char *name, GError **error);
int qcow2_bitmap_check(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                       size_t others, GError **error);
int qcow2_bitmap_begin_change(struct block_node *node, const char *name, GError **error);

#endif
