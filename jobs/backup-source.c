/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/backup-source.h"

#include <errno.h>

#include "block/align.h"
#include "block/copy-map.h"

static struct backup_source *backup_source_of(struct copy_source *source)
{
    return (struct backup_source *)source;
}

/* ---- Choosing a run. The engine's lock is held. --------------------------------------------- */

/*
 * The first run in [from, end) that nobody copies. *first is set to the first one at all, or end.
 */
static bool choose(struct backup_source *source, bool saved_only, uint64_t from, uint64_t end,
                   uint64_t max_bytes, uint64_t *first, uint64_t *offset, uint64_t *bytes)
{
    bool is_first = true;

    *first = end;
    while (point_in_time_next(source->point, saved_only, from, end, max_bytes, offset, bytes)) {
        uint64_t busy, busy_bytes;

        if (is_first) {
            *first = *offset;
            is_first = false;
        }
        if (!copy_engine_find_busy(source->copy.engine, *offset, *bytes, &busy, &busy_bytes)) {
            return true;
        }
        if (busy > *offset) {
            *bytes = busy - *offset;
            return true;
        }
        from = align_up(busy + busy_bytes, COPY_UNIT);
    }
    return false;
}

/* What guests have saved, wherever on the disk: in turn, so that none is left to the end. */
static bool choose_saved(struct backup_source *source, uint64_t max_bytes, uint64_t *offset,
                         uint64_t *bytes)
{
    uint64_t length = point_in_time_length(source->point);
    uint64_t from = source->saved_cursor, first;

    if (!choose(source, true, from, length, max_bytes, &first, offset, bytes) &&
        !choose(source, true, 0, from, max_bytes, &first, offset, bytes)) {
        return false;
    }
    source->saved_cursor = *offset + *bytes;
    return true;
}

/*
 * In the order of the disk, where saved and unsaved data go to the target in one large write;
 * saved data first if there is little room for more of it, as guests will wait then.
 */
static bool next_run(struct copy_source *copy, bool urgent_only, uint64_t max_bytes,
                     uint64_t *offset, uint64_t *bytes)
{
    struct backup_source *source = backup_source_of(copy);

    if (point_in_time_is_crowded(source->point) && choose_saved(source, max_bytes, offset, bytes)) {
        return true;
    }
    return !urgent_only &&
           choose(source, false, source->cursor, point_in_time_length(source->point), max_bytes,
                  &source->cursor, offset, bytes);
}

static uint64_t extend_run(struct copy_source *copy, uint64_t end, uint64_t max_bytes)
{
    struct backup_source *source = backup_source_of(copy);
    uint64_t length = point_in_time_length(source->point);
    uint64_t first, offset, bytes;

    if (end >= length || !choose(source, false, end, MIN_OF(length, end + max_bytes), max_bytes,
                                 &first, &offset, &bytes)) {
        return 0;
    }
    return offset == end ? bytes : 0;
}

/* ---- Its data ------------------------------------------------------------------------------- */

/*
 * Zeroes that were known at the moment are zeroes of the point in time, whatever guests write
 * since; storage that cannot say what it holds need not be read there.
 */
static int block_status(struct copy_source *copy, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    struct backup_source *source = backup_source_of(copy);
    struct dirty_bitmap *zeroes = source->bitmap->zeroes;
    uint64_t end = offset + bytes;

    if (!zeroes) {
        return point_in_time_block_status(source->point, offset, bytes, extent);
    }
    uint64_t zero = dirty_bitmap_next_dirty(zeroes, offset, end);
    if (zero != offset) {
        return point_in_time_block_status(source->point, offset, MIN_OF(zero, end) - offset,
                                          extent);
    }
    *extent = (struct block_extent){
        .bytes = MIN_OF(dirty_bitmap_next_clean(zeroes, offset, end), end) - offset,
        .flags = BLOCK_STATUS_ZERO,
    };
    return 0;
}

static int read_data(struct copy_source *copy, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct point_in_time *point = backup_source_of(copy)->point;
    int status = point_in_time_pread(point, buffer, offset, bytes);
    GError *reason = NULL;

    /* That it broke is not an error of the source; say why before anybody takes it for one. */
    if (status < 0 && point_in_time_is_broken(point, &reason)) {
        copy_engine_fail(copy->engine, reason);
    }
    return status;
}

/*
 * Only where the source still holds the old data, before and after. Where a guest came in between
 * the target may have new data, so that the run is copied again, through memory.
 */
static int copy_range(struct copy_source *copy, struct block_node *target, uint64_t offset,
                      uint64_t bytes)
{
    struct backup_source *source = backup_source_of(copy);

    if (!point_in_time_is_untouched(source->point, offset, bytes)) {
        return -EAGAIN;
    }
    int status = block_node_copy_range(source->node, offset, target, offset, bytes);
    if (status == 0 && !point_in_time_is_untouched(source->point, offset, bytes)) {
        return -EAGAIN;
    }
    return status;
}

static void done(struct copy_source *copy, uint64_t offset, uint64_t bytes, bool is_copied)
{
    struct backup_source *source = backup_source_of(copy);

    if (is_copied) {
        backup_bitmap_note_copied(source->bitmap, offset, bytes);
        /* Fails if it broke, and then the job is told so. */
        point_in_time_discard(source->point, offset, bytes);
        if (source->discards) { /* it only makes room: the copy is good if it fails, too */
            block_node_discard(source->node, offset, bytes);
        }
    }
}

static bool is_finished(struct copy_source *copy, bool is_idle)
{
    /* A broken one has nothing left either. */
    return is_idle && !point_in_time_is_broken(backup_source_of(copy)->point, NULL);
}

static void cancel_in_flight(struct copy_source *copy)
{
    point_in_time_cancel_in_flight(backup_source_of(copy)->point);
}

#define COMMON_OPERATIONS                                                                          \
    .next = next_run, .extend = extend_run, .block_status = block_status, .pread = read_data,      \
    .copy_range = copy_range, .done = done, .is_finished = is_finished,                            \
    .cancel_in_flight = cancel_in_flight

static const struct copy_source_operations copying = {COMMON_OPERATIONS};

/* ---- Comparing instead ----------------------------------------------------------------------- */

static int compare(struct copy_source *copy, struct block_node *target, const void *data,
                   void *spare, uint64_t offset, uint64_t bytes)
{
    return verify_compare(backup_source_of(copy)->verify, copy->engine, target, data, spare, offset,
                          bytes);
}

/* Trying again for ever would tell nobody anything. */
static void leave_out(struct copy_source *copy, uint64_t offset, uint64_t bytes, int error_number)
{
    struct backup_source *source = backup_source_of(copy);

    verify_leave_out(source->verify, offset, bytes);
    point_in_time_discard(source->point, offset, bytes);
}

static const struct copy_source_operations comparing = {
    COMMON_OPERATIONS,
    .compare = compare,
    .ignore = leave_out,
};

void backup_source_init(struct backup_source *source, struct point_in_time *point,
                        struct block_node *node, struct backup_bitmap *bitmap,
                        struct verify *verify)
{
    *source = (struct backup_source){
        .copy.operations = verify ? &comparing : &copying,
        .point = point,
        .node = node,
        .bitmap = bitmap,
        .verify = verify,
    };
}
