/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time: writing a batch of pieces to scratch, and what becomes of them.
 *
 * A batch is made of groups: pieces of one region, in which neighbours are written as one request,
 * or a run of zeroes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/point-in-time-internal.h"

/* The pause after POINT_IN_TIME_TRY_LATER. */
#define RETRY_NS (200 * NS_PER_MS)

/* A batch that takes longer ends early, because guests may be waiting for its memory. */
#define BATCH_NS NS_PER_MS

struct group {
    uint64_t region;
    unsigned first; /* pieces of the batch */
    unsigned end;
};

uint64_t point_room(const struct point_in_time *point, const struct point_piece *piece,
                    uint64_t units)
{
    return piece->buffer
               ? point_mask_bytes(point, point_region(piece->offset), units & ~piece->zeroes)
               : 0;
}

/* The group that begins with a piece. */
static struct group group_at(const struct point_batch *batch, unsigned first)
{
    struct group group = {
        .region = point_region(batch->pieces[first]->offset), .first = first, .end = first + 1};

    while (batch->pieces[first]->buffer && group.end < batch->count &&
           batch->pieces[group.end]->buffer &&
           point_region(batch->pieces[group.end]->offset) == group.region) {
        group.end++;
    }
    return group;
}

/* ---- Writing. No lock. ---------------------------------------------------------------------- */

/* Make a range of scratch read as zeroes; parts that do already are left alone. */
static int write_zeroes(struct block_node *scratch, uint64_t offset, uint64_t bytes)
{
    int status = 0;

    while (status == 0 && bytes) {
        struct block_extent extent;

        if (block_node_block_status_chain(scratch, offset, bytes, &extent, NULL) < 0) {
            extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
        }
        if (!(extent.flags & BLOCK_STATUS_ZERO)) {
            status =
                block_node_write_zeroes(scratch, offset, extent.bytes, BLOCK_REQUEST_MAY_UNMAP);
        }
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return status;
}

/* Which piece of a group a unit is in. */
static unsigned piece_with(const struct point_batch *batch, const struct group *group,
                           uint64_t offset)
{
    uint64_t mask = point_mask(group->region, offset, offset + 1);
    unsigned i = group->first;

    while (!(batch->units[i] & mask)) {
        i++;
    }
    return i;
}

static const char *data_at(const struct point_batch *batch, const struct group *group,
                           uint64_t offset)
{
    const struct point_piece *piece = batch->pieces[piece_with(batch, group, offset)];

    return piece->buffer + (offset - piece->offset);
}

/* Neighbouring units as one request, whatever pieces they are in. */
static int write_run(struct point_in_time *point, struct point_batch *batch,
                     const struct group *group, uint64_t offset, uint64_t bytes)
{
    uint64_t run = point_mask(group->region, offset, offset + bytes);
    const char *data = data_at(batch, group, offset);

    if (run & ~batch->units[piece_with(batch, group, offset)]) {
        if (!batch->buffer) {
            batch->buffer = block_node_alloc_buffer(point->options.scratch, COPY_REGION);
        }
        if (!batch->buffer) {
            return -ENOMEM;
        }
        for (uint64_t done = 0; done < bytes; done += COPY_UNIT) {
            memcpy(batch->buffer + done, data_at(batch, group, offset + done),
                   MIN_OF(bytes - done, COPY_UNIT));
        }
        data = batch->buffer;
    }
    return block_node_pwrite(point->options.scratch, data, offset, bytes, 0);
}

static int write_group(struct point_in_time *point, struct point_batch *batch,
                       const struct group *group)
{
    const struct point_piece *piece = batch->pieces[group->first];
    uint64_t zeroes = 0, units = 0, offset, bytes;
    int status = 0;

    if (!piece->buffer) {
        return write_zeroes(point->options.scratch, piece->offset, piece->bytes);
    }
    for (unsigned i = group->first; i < group->end; i++) {
        units |= batch->units[i];
        zeroes |= batch->units[i] & batch->pieces[i]->zeroes;
    }
    units &= ~zeroes;
    while (status == 0 && point_next_run(point, group->region, &units, &offset, &bytes)) {
        status = write_run(point, batch, group, offset, bytes);
    }
    while (status == 0 && point_next_run(point, group->region, &zeroes, &offset, &bytes)) {
        status = write_zeroes(point->options.scratch, offset, bytes);
    }
    return status;
}

/* ---- What was written. Lock held. ----------------------------------------------------------- */

/* Strict: units that have come to scratch are saved now. Returns those nobody needs there. */
static uint64_t mark_written(struct point_in_time *point, const struct point_piece *piece)
{
    uint64_t region = point_region(piece->offset);
    uint64_t useless = piece->units & copy_map_saved_units(point->saved, region);
    uint64_t mask = piece->units & ~useless, offset, bytes;
    uint64_t data = mask & ~piece->zeroes;

    while (point_next_run(point, region, &data, &offset, &bytes)) {
        dirty_bitmap_set(point->data, offset, bytes);
        point->info.saved_bytes += bytes;
    }
    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        copy_map_mark_saved(point->saved, offset, bytes);
    }
    return useless;
}

/* A piece is on scratch. Returns the units of it that nobody needs there. */
static uint64_t end_written(struct point_in_time *point, struct point_piece *piece,
                            uint64_t written)
{
    uint64_t useless = 0;

    if (!piece->buffer) {
        if (!atomic_load(&point->over)) {
            copy_map_mark_saved(point->saved, piece->offset, piece->bytes);
        }
    } else {
        useless = written & ~piece->units; /* given up, or dropped, meanwhile */
        if (point->strict) {
            useless |= mark_written(point, piece);
        }
        useless &= ~piece->zeroes;
    }
    point_piece_end(point, piece, false);
    return useless;
}

/* Free units on scratch that are no data of ours. Lock held, dropped meanwhile. */
static void free_units(struct point_in_time *point, uint64_t region, uint64_t mask)
{
    uint64_t room = point_mask_bytes(point, region, mask), offset, bytes;

    point_unlock(point);
    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        block_node_discard(point->options.scratch, offset, bytes);
    }
    point_lock(point);
    point_scratch_give_back(point, room);
}

/* The first pieces of a batch have come to scratch. */
static void batch_written(struct point_in_time *point, struct point_batch *batch, unsigned count)
{
    if (count) {
        point->retry_after_ns = 0;
    }
    for (unsigned i = 0; i < count; i++) {
        batch->units[i] = end_written(point, batch->pieces[i], batch->units[i]);
    }
    point_memory_grant(point);
    for (unsigned i = 0; i < count && !point->options.write_through; i++) {
        if (batch->units[i]) {
            free_units(point, point_region(batch->pieces[i]->offset), batch->units[i]);
        }
    }
}

/* ---- What was not. Lock held. --------------------------------------------------------------- */

/* Back to the head of the queue; what was given up meanwhile is dropped. */
static void requeue(struct point_in_time *point, struct point_batch *batch, unsigned first,
                    unsigned end)
{
    for (unsigned i = end; i-- > first;) {
        struct point_piece *piece = batch->pieces[i];

        piece->writing = false;
        TAILQ_INSERT_HEAD(&point->queue, piece, queue_entry);
        if (atomic_load(&point->over) || (piece->buffer && !piece->units)) {
            point_piece_end(point, piece, false);
        }
    }
}

static void give_up(struct point_in_time *point, struct point_batch *batch,
                    const struct group *group, int error_number)
{
    GError *error = NULL;

    if (point->options.policy == POINT_IN_TIME_BREAK_SNAPSHOT && !atomic_load(&point->over)) {
        if (batch->over_budget) {
            block_error(&error, error_number,
                        "Old data needs more scratch than the %" PRIu64 " bytes it may have",
                        point->options.budget->max_bytes);
        } else {
            block_error_errno(&error, error_number,
                              "Could not write to scratch node '%s' at offset %" PRIu64,
                              point->options.scratch->name, batch->pieces[group->first]->offset);
        }
        point_break(point, error);
    }
    for (unsigned i = group->first; i < group->end; i++) {
        point_piece_end(point, batch->pieces[i], true);
    }
}

static enum point_in_time_action ask_owner(struct point_in_time *point, int error_number)
{
    const struct point_in_time_options *options = &point->options;
    enum point_in_time_action action;
    uint64_t retries = point->retries;

    if (!options->on_scratch_error || point->cancelled || point->ending ||
        atomic_load(&point->over)) {
        return POINT_IN_TIME_GIVE_UP;
    }
    point_unlock(point);
    action = options->on_scratch_error(options->callback_data, error_number);
    point_lock(point);
    if (point->cancelled) {
        return POINT_IN_TIME_GIVE_UP;
    }
    /* Who has called point_in_time_retry already will not call it again. */
    return action == POINT_IN_TIME_HOLD && retries != point->retries ? POINT_IN_TIME_TRY_LATER
                                                                     : action;
}

static void group_failed(struct point_in_time *point, struct point_batch *batch,
                         const struct group *group, int error_number)
{
    enum point_in_time_action action = ask_owner(point, error_number);

    requeue(point, batch, group->end, batch->count);
    switch (action) {
    case POINT_IN_TIME_TRY_LATER:
        point->retry_after_ns = clock_now_ns() + RETRY_NS;
        requeue(point, batch, group->first, group->end);
        break;
    case POINT_IN_TIME_HOLD:
        point->held = true;
        requeue(point, batch, group->first, group->end);
        break;
    default:
        give_up(point, batch, group, error_number);
    }
    point_look_if_crowded(point);
}

/* ---- A whole batch -------------------------------------------------------------------------- */

/* Done with it. Freeing memory takes time, so that is done without the lock. */
static void drop_batch(struct point_in_time *point, struct point_batch *batch)
{
    point_memory_grant(point);
    point_unlock(point);
    while (batch->count) {
        point_piece_unref(batch->pieces[--batch->count]);
    }
    point_lock(point);
}

void point_batch_write(struct point_in_time *point, struct point_batch *batch)
{
    int64_t end_ns = clock_now_ns() + BATCH_NS;
    struct group group = {.end = 0};
    uint64_t room = 0;
    int status = 0;

    point_unlock(point);
    do {
        group = group_at(batch, group.end);
        status = write_group(point, batch, &group);
    } while (status == 0 && group.end < batch->count && clock_now_ns() < end_ns);
    unsigned written = status == 0 ? group.end : group.first;
    point_lock(point);

    for (unsigned i = written; i < batch->count; i++) {
        room += point_room(point, batch->pieces[i], batch->units[i]);
    }
    point_scratch_give_back(point, room);
    batch_written(point, batch, written);
    if (status == 0) {
        requeue(point, batch, written, batch->count);
    } else {
        group_failed(point, batch, &group, -status);
    }
    drop_batch(point, batch);
}

void point_batch_refused(struct point_in_time *point, struct point_batch *batch, int error_number)
{
    struct group group = {.first = 0, .end = batch->count};

    group_failed(point, batch, &group, error_number);
    drop_batch(point, batch);
}
