/* SPDX-License-Identifier: BSD-3-Clause */
/* A point in time: giving parts of it up, and what is left. */
#include <errno.h>

#include "block/checked.h"
#include "block/point-in-time-internal.h"

/* What is freed on scratch in one step. */
#define FREE_STEP (64 * MIB)

/* ---- Pieces in memory. Lock held. ----------------------------------------------------------- */

/* A piece without its units in [start, end), which are in one more place than this or in none. */
static void trim_piece(struct point_in_time *point, struct point_piece *piece, uint64_t start,
                       uint64_t end)
{
    uint64_t region = point_region(piece->offset), offset, bytes;
    uint64_t mask = start < region + COPY_REGION && end > region
                        ? point_mask(region, start, end) & piece->units
                        : 0;

    if (!mask) {
        return;
    }
    piece->units &= ~mask;
    while (!point->strict && point_next_run(point, region, &mask, &offset, &bytes)) {
        dirty_bitmap_reset(point->data, offset, bytes);
    }
    pthread_cond_broadcast(&piece->end);
    if (!piece->units && !piece->writing) {
        point_piece_end(point, piece, false);
    }
}

static void trim_pieces(struct point_in_time *point, uint64_t start, uint64_t end)
{
    struct point_piece *piece, *next;

    if ((end - start) / COPY_REGION < point->piece_count) {
        for (uint64_t region = point_region(start); region < end; region += COPY_REGION) {
            for (piece = point_piece_first(point, region); piece; piece = next) {
                next = point_piece_next(piece);
                trim_piece(point, piece, start, end);
            }
        }
        return;
    }
    for (unsigned bucket = 0; point->piece_count && bucket >> point->bucket_bits == 0; bucket++) {
        for (piece = point->buckets[bucket]; piece; piece = next) {
            next = piece->next;
            trim_piece(point, piece, start, end);
        }
    }
}

/* ---- Giving up ------------------------------------------------------------------------------ */

void point_give_up(struct point_in_time *point, uint64_t start, uint64_t end)
{
    uint64_t offset = start, bytes;

    for (uint64_t at = start; at < end && copy_map_next_unsaved(point->given_up, at, end,
                                                                POINT_ANY_LENGTH, &offset, &bytes);
         at = offset + bytes) {
        point->info.discarded_bytes += bytes;
    }
    copy_map_mark_saved(point->given_up, start, end - start);
    copy_map_mark_saved(point->saved, start, end - start);
}

int point_in_time_discard(struct point_in_time *point, uint64_t offset, uint64_t bytes)
{
    uint64_t start = align_up(MIN_OF(offset, point->length), COPY_UNIT);
    uint64_t end = bytes < point->length - MIN_OF(offset, point->length)
                       ? align_down(offset + bytes, COPY_UNIT)
                       : point->length;
    struct point_piece *run;
    POINT_LOCK(point);

    for (uint64_t next; start < end && !atomic_load(&point->over); start = next) {
        next = MIN_OF(end, start + POINT_STRIDE);
        trim_pieces(point, start, next);
        point_memory_grant(point);
        point_give_up(point, start, next);
        TAILQ_FOREACH (run, &point->runs, run_entry) {
            pthread_cond_broadcast(&run->end);
        }
        /* All data that is left in the range is on scratch. */
        point_scratch_free(point, start, next);
    }
    point_look_if_crowded(point);
    return atomic_load(&point->over) ? -EIO : 0;
}

/*
 * The first data in [start, end), up to FREE_STEP of the disk, forgotten: nobody wants anything in
 * there, so that it can be freed as one range however scattered it is. Returns how much of it was
 * data; 0 if there is none. Lock held.
 */
static uint64_t forget_data(struct point_in_time *point, uint64_t start, uint64_t end,
                            uint64_t *first, uint64_t *last)
{
    uint64_t offset, bytes, sum = 0;

    *first = dirty_bitmap_next_dirty(point->data, start, end);
    if (*first == UINT64_MAX) {
        return 0;
    }
    end = MIN_OF(end, *first + FREE_STEP);
    for (start = *first;
         dirty_bitmap_next_range(point->data, start, end, UINT64_MAX, &offset, &bytes);
         start = *last) {
        sum += bytes;
        *last = offset + bytes;
    }
    dirty_bitmap_reset(point->data, *first, *last - *first);
    return sum;
}

void point_scratch_free(struct point_in_time *point, uint64_t start, uint64_t end)
{
    while (start < end && dirty_bitmap_next_dirty(point->data, start, end) != UINT64_MAX) {
        while (point->scratch.drains && !atomic_load(&point->over)) {
            pthread_cond_wait(&point->quiet, &point->lock);
        }
        uint64_t first, last = start;
        uint64_t bytes = point->scratch.drains || point_scratch_is_left(point)
                             ? 0
                             : forget_data(point, start, end, &first, &last);

        if (bytes == 0) {
            return;
        }
        if (!point->options.write_through) { /* else others look at it */
            point->scratch.active++;
            point_unlock(point);
            block_node_discard(point->options.scratch, first, last - first);
            point_lock(point);
            point_leave(point, &point->scratch);
            point_scratch_give_back(point, bytes);
        }
        start = last;
    }
}

/* ---- What is left --------------------------------------------------------------------------- */

bool point_in_time_next(struct point_in_time *point, bool saved_only, uint64_t offset, uint64_t end,
                        uint64_t max_bytes, uint64_t *run_offset, uint64_t *run_bytes)
{
    uint64_t start = align_down(offset, COPY_UNIT);

    end = MIN_OF(end, point->length);
    max_bytes = align_down(max_bytes, COPY_UNIT);
    if (offset >= end || max_bytes == 0 || atomic_load(&point->over)) {
        return false;
    }
    SCOPE_LOCK(&point->lock);
    if (saved_only) {
        bool is_there =
            dirty_bitmap_next_range(point->data, start, end, max_bytes, run_offset, run_bytes);

        point->told &= is_there; /* crowded by what is still being read: tell when there is more */
        return is_there;
    }
    return copy_map_next_unsaved(point->given_up, start, end, max_bytes, run_offset, run_bytes);
}

bool point_in_time_is_untouched(struct point_in_time *point, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes;

    if (atomic_load(&point->over)) {
        return false;
    }
    for (uint64_t region = point_region(offset); region < end; region += COPY_REGION) {
        if (copy_map_saved_units(point->saved, region) & point_mask(region, offset, end)) {
            return false;
        }
    }
    return true;
}
