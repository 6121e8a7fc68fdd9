/* SPDX-License-Identifier: BSD-3-Clause */
/* What a session says of ranges of a disk. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/request.h"
#include "server/session-internal.h"

/* All of it is to be moved; what reads as zeroes the view's storage knows. */
static int ask_view(const struct session_device *device, uint64_t offset, uint64_t bytes,
                    uint64_t *range_bytes, enum session_change *change)
{
    AUTO(block_node) view = session_view(device);
    struct block_extent extent;
    int status =
        view ? block_node_block_status_chain(view, offset, bytes, &extent, NULL) : -ESHUTDOWN;

    if (status == 0) {
        *range_bytes = extent.bytes;
        *change = extent.flags & BLOCK_STATUS_ZERO ? SESSION_ZERO : SESSION_DATA;
    }
    return status;
}

/* The end of the range, before `end`, in which the bitmap says what it says at offset. */
static uint64_t same_until(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end, bool *is_set)
{
    *is_set = dirty_bitmap_get(bitmap, offset);
    uint64_t next = *is_set ? dirty_bitmap_next_clean(bitmap, offset, end)
                            : dirty_bitmap_next_dirty(bitmap, offset, end);

    return next == UINT64_MAX ? end : next;
}

int session_changes_at(const struct session_device *device, uint64_t offset, uint64_t bytes,
                       uint64_t *range_bytes, enum session_change *change)
{
    bool is_changed, is_zero = false;

    if (!bytes || !range_within(offset, bytes, device->length)) {
        return -EINVAL;
    }
    if (!device->changed) {
        return ask_view(device, offset, bytes, range_bytes, change);
    }
    /* The disk at the instant may be a little shorter or longer than the map. */
    uint64_t end = MIN_OF(offset + bytes, dirty_bitmap_length(device->changed));
    if (offset >= end) {
        *range_bytes = bytes;
        *change = SESSION_DATA;
        return 0;
    }
    uint64_t range_end = same_until(device->changed, offset, end, &is_changed);
    if (is_changed) {
        range_end = same_until(device->zeroes, offset, range_end, &is_zero);
    }
    *range_bytes = range_end - offset;
    *change = !is_changed ? SESSION_UNCHANGED : is_zero ? SESSION_ZERO : SESSION_DATA;
    return 0;
}

struct session_device *session_changes_open(const char *export_name, struct session **session)
{
    GPtrArray *list = session_list();
    struct session_device *found = NULL;

    for (guint i = 0; i < list->len && !found; i++) {
        struct session *candidate = g_ptr_array_index(list, i);

        for (size_t j = 0; j < candidate->count && !found; j++) {
            if (!strcmp(candidate->devices[j].export_name, export_name)) {
                found = &candidate->devices[j];
                *session = session_ref(candidate);
            }
        }
    }
    g_ptr_array_unref(list);
    return found;
}
