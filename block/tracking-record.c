/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-record.h"

#include <errno.h>
#include <zlib.h>

#include "block/align.h"
#include "block/error.h"
#include "block/stored-bitmaps.h"

struct tracking_bitmap *tracking_record_new(struct dirty_bitmap *bitmap)
{
    uint64_t bytes = 0;
    bool is_clear = dirty_bitmap_count(bitmap) == 0;
    uint8_t *bits = is_clear ? NULL : block_stored_bitmaps_encode(bitmap, &bytes);

    if (!is_clear && !bits) {
        return NULL;
    }
    struct tracking_bitmap *record = g_new0(struct tracking_bitmap, 1);
    record->name = g_strdup(dirty_bitmap_name(bitmap));
    record->granularity = (uint32_t)dirty_bitmap_granularity(bitmap);
    record->is_enabled = dirty_bitmap_enabled(bitmap);
    record->length = dirty_bitmap_length(bitmap);
    record->bits = bits ? g_bytes_new_take(bits, bytes) : NULL;
    return record;
}

int tracking_record_pack(struct tracking_bitmap *record)
{
    gsize bytes;
    const void *bits = record->bits ? g_bytes_get_data(record->bits, &bytes) : NULL;
    uLongf packed = bits ? compressBound(bytes) : 0;
    g_autofree uint8_t *buffer = bits ? g_try_malloc(packed) : NULL;

    if (!bits) {
        return 0;
    }
    if (!buffer || compress2(buffer, &packed, bits, bytes, Z_BEST_SPEED) != Z_OK) {
        return -ENOMEM;
    }
    g_bytes_unref(record->bits);
    record->bits = g_bytes_new(buffer, packed);
    return 0;
}

/* A disk that got shorter needs only the beginning; else there must be just so many. */
static int expand_bits(const struct tracking_bitmap *record, struct dirty_bitmap *bitmap,
                       uint64_t *left)
{
    uint64_t bytes = block_stored_bitmaps_bytes(dirty_bitmap_length(bitmap), record->granularity);
    bool is_cut = record->length > dirty_bitmap_length(bitmap);
    g_autofree uint8_t *bits =
        bytes <= *left ? g_try_malloc0(align_up(bytes + 1, sizeof(uint64_t))) : NULL;
    uLongf size = bytes;
    gsize packed_bytes;
    const uint8_t *packed = g_bytes_get_data(record->bits, &packed_bytes);

    if (!bits) {
        return -ENOMEM;
    }
    *left -= bytes;
    int status = uncompress(bits, &size, packed, packed_bytes);
    if (size != bytes || (status != Z_OK && !(is_cut && status == Z_BUF_ERROR))) {
        return -EIO;
    }
    block_stored_bitmaps_decode(bitmap, bits, bytes);
    return 0;
}

struct dirty_bitmap *tracking_record_load(const struct tracking_bitmap *record, uint64_t length,
                                          uint64_t *left, GError **error)
{
    AUTO(dirty_bitmap)
    bitmap =
        dirty_bitmap_new(record->name, MIN_OF(record->length, length), record->granularity, error);
    /* A disk without a byte has no bits; zlib calls it an error to be asked for none. */
    bool has_bits = bitmap && record->bits && dirty_bitmap_length(bitmap) > 0;
    int status = has_bits ? expand_bits(record, bitmap, left) : 0;

    if (bitmap && status == 0) {
        status = dirty_bitmap_resize(bitmap, length, record->is_enabled);
    }
    if (status == -ENOMEM) {
        block_error(error, ENOMEM, "it, or all bitmaps together, would take too much memory");
    } else if (status < 0) {
        block_error(error, EIO, "what the tracking file says of it is damaged");
    }
    if (!bitmap || status < 0) {
        return NULL;
    }
    dirty_bitmap_set_enabled(bitmap, record->is_enabled);
    return STEAL(bitmap);
}
