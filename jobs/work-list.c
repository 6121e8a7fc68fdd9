/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/work-list.h"

#include <stdatomic.h>

#include "block/align.h"

static bool find_run(struct work_list *list, struct copy_engine *engine, uint64_t max_bytes,
                     uint64_t *offset, uint64_t *bytes)
{
    uint64_t length = dirty_bitmap_length(list->bitmap);
    uint64_t from = list->cursor;
    uint64_t busy_offset, busy_bytes;

    while (dirty_bitmap_next_range(list->bitmap, from, length, max_bytes, offset, bytes)) {
        if (!copy_engine_find_busy(engine, *offset, *bytes, &busy_offset, &busy_bytes)) {
            return true;
        }
        if (busy_offset > *offset) {
            *bytes = busy_offset - *offset;
            return true;
        }
        from = busy_offset + busy_bytes;
    }
    return false;
}

static void take(struct work_list *list, uint64_t offset, uint64_t bytes)
{
    atomic_fetch_add(&list->in_flight, bytes);
    dirty_bitmap_reset(list->bitmap, offset, bytes);
}

bool work_list_take(struct work_list *list, struct copy_engine *engine, uint64_t max_bytes,
                    uint64_t *offset, uint64_t *bytes)
{
    uint64_t granularity = dirty_bitmap_granularity(list->bitmap);
    uint64_t granules = MAX_OF(align_down(max_bytes, granularity), granularity);

    if (!find_run(list, engine, granules, offset, bytes)) {
        return false;
    }
    list->cursor = *offset + *bytes;
    take(list, *offset, *bytes);
    return true;
}

uint64_t work_list_extend(struct work_list *list, struct copy_engine *engine, uint64_t end,
                          uint64_t max_bytes)
{
    uint64_t length = dirty_bitmap_length(list->bitmap);
    uint64_t limit =
        MIN_OF(length - end, align_down(max_bytes, dirty_bitmap_granularity(list->bitmap)));
    uint64_t offset, bytes, busy_offset, busy_bytes;

    if (!dirty_bitmap_next_range(list->bitmap, end, end + limit, limit, &offset, &bytes) ||
        offset != end) {
        return 0;
    }
    if (copy_engine_find_busy(engine, offset, bytes, &busy_offset, &busy_bytes)) {
        if (busy_offset <= offset) {
            return 0;
        }
        bytes = busy_offset - offset;
    }
    if (list->cursor == end) {
        list->cursor += bytes;
    }
    take(list, offset, bytes);
    return bytes;
}

uint64_t work_list_left(struct work_list *list)
{
    return atomic_load(&list->in_flight) + dirty_bitmap_count(list->bitmap);
}

void work_list_done(struct work_list *list, uint64_t offset, uint64_t bytes, bool is_copied)
{
    if (!is_copied) {
        dirty_bitmap_set(list->bitmap, offset, bytes);
    }
    atomic_fetch_sub(&list->in_flight, bytes);
}
