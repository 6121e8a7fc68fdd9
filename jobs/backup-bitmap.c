/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/backup-bitmap.h"

#include <errno.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/copy-map.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "block/stored-bitmaps.h"

const char *const backup_bitmap_mode_names[] = {
    [BACKUP_BITMAP_ON_SUCCESS] = "on-success",
    [BACKUP_BITMAP_NEVER] = "never",
    [BACKUP_BITMAP_ALWAYS] = "always",
    NULL,
};

/* ---- The moment ------------------------------------------------------------------------------ */

int backup_bitmap_take(struct backup_bitmap *bitmap, struct dirty_bitmap *taken, GError **error)
{
    AUTO(dirty_bitmap) copied = NULL;

    if (bitmap->mode == BACKUP_BITMAP_ALWAYS) {
        copied = dirty_bitmap_new(NULL, dirty_bitmap_length(taken), COPY_UNIT, error);
        if (!copied) {
            return -ENOMEM;
        }
    }
    bitmap->successor = dirty_bitmap_freeze(taken, error);
    if (!bitmap->successor) {
        return -ENOMEM;
    }
    block_node_add_bitmap(bitmap->node, bitmap->successor);
    bitmap->frozen = taken;
    bitmap->copied = STEAL(copied);
    return 0;
}

void backup_bitmap_give_back(struct backup_bitmap *bitmap)
{
    block_node_remove_bitmap(bitmap->node, bitmap->successor);
    dirty_bitmap_thaw(STEAL(bitmap->frozen), bitmap->successor); /* which is freed later */
}

void backup_bitmap_clear(struct backup_bitmap *bitmap)
{
    g_assert(!bitmap->frozen);
    dirty_bitmap_free(STEAL(bitmap->owned));
    dirty_bitmap_free(STEAL(bitmap->zeroes));
    dirty_bitmap_free(STEAL(bitmap->successor));
    dirty_bitmap_free(STEAL(bitmap->copied));
}

/* ---- The work -------------------------------------------------------------------------------- */

/* Errors are those of a point in time that broke, which its owner hears of. */
static void give_up(struct point_in_time *point, uint64_t start, uint64_t end)
{
    if (start < end) {
        point_in_time_discard(point, start, end - start);
    }
}

void backup_bitmap_narrow(struct backup_bitmap *bitmap, struct point_in_time *point, uint64_t unit)
{
    uint64_t length = point_in_time_length(point), clean = 0, offset, bytes;
    struct dirty_bitmap *limit = backup_bitmap_limit(bitmap);

    while (clean < length &&
           dirty_bitmap_next_range(limit, clean, length, UINT64_MAX, &offset, &bytes)) {
        give_up(point, clean, align_down(offset, unit));
        clean = align_up(offset + bytes, unit);
    }
    give_up(point, clean, length);
}

void backup_bitmap_note_copied(struct backup_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    if (bitmap->copied) {
        dirty_bitmap_set(bitmap->copied, offset, bytes);
    }
}

/* ---- The end --------------------------------------------------------------------------------- */

/* What of a range was to be copied, and is not on the target. */
static void keep_not_copied(struct backup_bitmap *bitmap, uint64_t start, uint64_t end)
{
    while ((start = dirty_bitmap_next_clean(bitmap->copied, start, end)) != UINT64_MAX) {
        uint64_t next = MIN_OF(dirty_bitmap_next_dirty(bitmap->copied, start, end), end);

        dirty_bitmap_set(bitmap->successor, start, next - start);
        if (next >= end) {
            break;
        }
        start = next;
    }
}

static void keep_rest(struct backup_bitmap *bitmap)
{
    uint64_t offset = 0, bytes;

    if (!bitmap->is_flushed) {
        dirty_bitmap_clear(bitmap->copied);
    }
    if (!bitmap->is_limit) {
        keep_not_copied(bitmap, 0, dirty_bitmap_length(bitmap->frozen));
        return;
    }
    while (
        dirty_bitmap_next_range(bitmap->frozen, offset, UINT64_MAX, UINT64_MAX, &offset, &bytes)) {
        keep_not_copied(bitmap, offset, offset + bytes);
        offset += bytes;
    }
}

/* Bits may be set in the successor while guests set others. True if it goes on as a new one. */
static bool choose_bits(struct backup_bitmap *bitmap, bool is_success)
{
    if (is_success && bitmap->mode != BACKUP_BITMAP_NEVER) {
        return true;
    }
    if (bitmap->mode == BACKUP_BITMAP_ALWAYS) {
        keep_rest(bitmap);
        return true;
    }
    dirty_bitmap_merge(bitmap->successor, bitmap->frozen, NULL); /* of the same length */
    return false;
}

struct take_over {
    struct backup_bitmap *bitmap;
    bool is_new; /* the list begins with the newest; what was only merged stays where it was */
};

/* Main thread, drained. */
static void take_over(void *data)
{
    const struct take_over *how = data;
    struct backup_bitmap *bitmap = how->bitmap;

    if (how->is_new) {
        block_node_remove_bitmap(bitmap->node, bitmap->frozen);
    } else {
        block_node_remove_bitmap(bitmap->node, bitmap->successor);
        block_node_replace_bitmap(bitmap->node, bitmap->frozen, bitmap->successor);
    }
    dirty_bitmap_succeed(bitmap->frozen, STEAL(bitmap->successor));
}

void backup_bitmap_settle(struct backup_bitmap *bitmap, bool is_success)
{
    struct take_over how = {.bitmap = bitmap};

    if (!bitmap->frozen) {
        return;
    }
    g_autofree char *name = g_strdup(dirty_bitmap_name(bitmap->frozen));
    how.is_new = choose_bits(bitmap, is_success);
    {
        AUTO(block_drain) drain = block_drain_begin(&bitmap->node, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(take_over, &how);
    }
    /* Who keeps it learns of it before the world learns of the job's end. */
    block_stored_bitmaps_changed(bitmap->node, name);
    dirty_bitmap_free(STEAL(bitmap->frozen));
}
