/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time: the threads that bring old data from memory to scratch, and scratch itself.
 *
 * They are not in a hurry: what somebody takes from memory and discards (a backup) need never be
 * written. Pieces are written when memory gets used up, when a guest waits for it, or when they
 * have been there for a while; in a strict point in time at once.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/point-in-time-internal.h"
#include "block/thread.h"

/* Pieces older than this are written although there is memory. */
#define LAZY_NS (100 * NS_PER_MS)

/* The pause after POINT_IN_TIME_TRY_LATER. */
#define RETRY_NS (200 * NS_PER_MS)

/* What a thread writes at once: pieces of one region, which hold different units; or one run. */
struct batch {
    uint64_t region;
    unsigned count;
    struct point_piece *pieces[64];
    uint64_t units[64]; /* that each held when it was taken */
    char *buffer;       /* of the thread, for units of different pieces; may be NULL */
};

/* ---- The budget. Lock held. ----------------------------------------------------------------- */

static bool charge(struct point_in_time *point, uint64_t bytes)
{
    struct scratch_budget *budget = point->options.budget;
    uint64_t used = budget ? atomic_load(&budget->used_bytes) : 0;

    do {
        if (budget && budget->max_bytes &&
            (used > budget->max_bytes || bytes > budget->max_bytes - used)) {
            return false;
        }
    } while (budget && !atomic_compare_exchange_weak(&budget->used_bytes, &used, used + bytes));
    point->info.scratch_bytes += bytes;
    point->info.scratch_peak_bytes =
        MAX_OF(point->info.scratch_peak_bytes, point->info.scratch_bytes);
    return true;
}

void point_scratch_give_back(struct point_in_time *point, uint64_t bytes)
{
    if (point->options.budget) {
        atomic_fetch_sub(&point->options.budget->used_bytes, bytes);
    }
    point->info.scratch_bytes -= bytes;
}

/* What of a piece takes room on scratch. */
static uint64_t room_for(const struct point_in_time *point, const struct point_piece *piece,
                         uint64_t units)
{
    return piece->buffer
               ? point_mask_bytes(point, point_region(piece->offset), units & ~piece->zeroes)
               : 0;
}

/* ---- Choosing work. Lock held. -------------------------------------------------------------- */

static bool may_write(const struct point_in_time *point, int64_t now_ns)
{
    return !TAILQ_EMPTY(&point->queue) && point->scratch.drains == 0 && !point->held &&
           now_ns >= point->retry_after_ns;
}

/* How many threads should be writing: more, the less memory is left. */
static unsigned wanted_threads(const struct point_in_time *point, int64_t now_ns)
{
    uint64_t lazy = point->memory_max / 2;

    if (!may_write(point, now_ns)) {
        return 0;
    }
    if (point->strict || !TAILQ_EMPTY(&point->memory_waiters)) {
        return POINT_THREADS_MAX;
    }
    if (point->memory_used <= lazy) {
        return now_ns - TAILQ_FIRST(&point->queue)->queued_ns >= LAZY_NS;
    }
    return MIN_OF(1 + (unsigned)((point->memory_used - lazy) / (lazy / POINT_THREADS_MAX + 1)),
                  (unsigned)POINT_THREADS_MAX);
}

/* When an idle thread is to look again by itself. */
static int64_t next_look(const struct point_in_time *point, int64_t now_ns)
{
    /* Who is at work looks anyway. */
    if (TAILQ_EMPTY(&point->queue) || point->scratch.drains || point->held ||
        point->thread_active) {
        return INT64_MAX;
    }
    return now_ns < point->retry_after_ns ? point->retry_after_ns
                                          : TAILQ_FIRST(&point->queue)->queued_ns + LAZY_NS;
}

/* Whether broken data has to be freed on scratch. */
static bool must_free(struct point_in_time *point)
{
    return atomic_load(&point->broken) && point->scratch.drains == 0 &&
           dirty_bitmap_count(point->data) > 0;
}

static void *scratch_thread(void *data);

static void start_thread(struct point_in_time *point)
{
    int error_number = thread_create(&point->threads[point->thread_count], scratch_thread, point);
    GError *error = NULL;

    if (error_number == 0) {
        point->thread_count++;
    } else if (point->thread_count == 0) { /* else fewer will do */
        block_error_errno(&error, error_number,
                          "Could not start a thread that writes to scratch node '%s'",
                          point->options.scratch->name);
        point_break(point, error);
    }
}

void point_scratch_wake(struct point_in_time *point)
{
    if (!point->options.scratch || point->ending || atomic_load(&point->over)) {
        return;
    }
    unsigned wanted = wanted_threads(point, clock_now_ns());
    unsigned called = point->thread_active + point->thread_called;
    /* Somebody has to look again later. */
    bool is_watched = called > 0 || point->timer_runs || TAILQ_EMPTY(&point->queue);

    if (wanted <= called && is_watched) {
        return;
    }
    if (point->thread_idle > point->thread_called) {
        point->thread_called++;
        pthread_cond_signal(&point->work);
    } else if (point->thread_count == point->thread_active + point->thread_idle &&
               point->thread_count < POINT_THREADS_MAX) {
        start_thread(point); /* none that was started before is still on its way */
    }
}

static void add_to_batch(struct point_in_time *point, struct batch *batch,
                         struct point_piece *piece)
{
    TAILQ_REMOVE(&point->queue, piece, queue_entry);
    piece->writing = true;
    batch->units[batch->count] = piece->units;
    batch->pieces[batch->count++] = point_piece_ref(piece);
}

/*
 * The oldest piece, and with it all of its region. -ENOSPC if the budget does not allow even the
 * first, which is in the batch all the same.
 */
static int take_batch(struct point_in_time *point, struct batch *batch)
{
    struct point_piece *oldest = TAILQ_FIRST(&point->queue), *piece;

    batch->count = 0;
    batch->region = point_region(oldest->offset);
    add_to_batch(point, batch, oldest);
    if (!charge(point, room_for(point, oldest, oldest->units))) {
        return -ENOSPC;
    }
    if (!oldest->buffer) {
        return 0;
    }
    for (piece = point_piece_first(point, batch->region); piece; piece = point_piece_next(piece)) {
        if (!piece->writing && charge(point, room_for(point, piece, piece->units))) {
            add_to_batch(point, batch, piece);
        }
    }
    return 0;
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

/* The place in a batch of a unit's piece. */
static unsigned piece_with(const struct batch *batch, uint64_t offset)
{
    uint64_t mask = point_mask(batch->region, offset, offset + 1);
    unsigned i = 0;

    while (!(batch->units[i] & mask)) {
        i++;
    }
    return i;
}

static const char *data_at(const struct batch *batch, uint64_t offset)
{
    const struct point_piece *piece = batch->pieces[piece_with(batch, offset)];

    return piece->buffer + (offset - piece->offset);
}

/* Neighbouring units as one request, whatever pieces they are in. */
static int write_run(struct point_in_time *point, struct batch *batch, uint64_t offset,
                     uint64_t bytes)
{
    uint64_t run = point_mask(batch->region, offset, offset + bytes);
    const char *data = data_at(batch, offset);

    if (run & ~batch->units[piece_with(batch, offset)]) {
        if (!batch->buffer) {
            batch->buffer = block_node_alloc_buffer(point->options.scratch, COPY_REGION);
        }
        if (!batch->buffer) {
            return -ENOMEM;
        }
        for (uint64_t done = 0; done < bytes; done += COPY_UNIT) {
            memcpy(batch->buffer + done, data_at(batch, offset + done),
                   MIN_OF(bytes - done, COPY_UNIT));
        }
        data = batch->buffer;
    }
    return block_node_pwrite(point->options.scratch, data, offset, bytes, 0);
}

static int write_batch(struct point_in_time *point, struct batch *batch)
{
    uint64_t zeroes = 0, units = 0, offset, bytes;
    int status = 0;

    if (!batch->pieces[0]->buffer) {
        return write_zeroes(point->options.scratch, batch->pieces[0]->offset,
                            batch->pieces[0]->bytes);
    }
    for (unsigned i = 0; i < batch->count; i++) {
        units |= batch->units[i];
        zeroes |= batch->units[i] & batch->pieces[i]->zeroes;
    }
    units &= ~zeroes;
    while (status == 0 && point_next_run(point, batch->region, &units, &offset, &bytes)) {
        status = write_run(point, batch, offset, bytes);
    }
    while (status == 0 && point_next_run(point, batch->region, &zeroes, &offset, &bytes)) {
        status = write_zeroes(point->options.scratch, offset, bytes);
    }
    return status;
}

/* ---- Afterwards. Lock held. ----------------------------------------------------------------- */

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

    if (!mask || point->options.write_through) {
        return;
    }
    point_unlock(point);
    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        block_node_discard(point->options.scratch, offset, bytes);
    }
    point_lock(point);
    point_scratch_give_back(point, room);
}

static void batch_succeeded(struct point_in_time *point, struct batch *batch)
{
    uint64_t useless = 0;

    point->retry_after_ns = 0;
    for (unsigned i = 0; i < batch->count; i++) {
        useless |= end_written(point, batch->pieces[i], batch->units[i]);
    }
    free_units(point, batch->region, useless);
}

/* Back to the head of the queue; what was given up meanwhile is dropped. */
static void requeue(struct point_in_time *point, struct batch *batch)
{
    for (unsigned i = batch->count; i-- > 0;) {
        struct point_piece *piece = batch->pieces[i];

        piece->writing = false;
        TAILQ_INSERT_HEAD(&point->queue, piece, queue_entry);
        if (atomic_load(&point->over) || (piece->buffer && !piece->units)) {
            point_piece_end(point, piece, false);
        }
    }
}

static void give_up(struct point_in_time *point, struct batch *batch, int error_number)
{
    GError *error = NULL;

    if (point->options.policy == POINT_IN_TIME_BREAK_SNAPSHOT && !atomic_load(&point->over)) {
        block_error_errno(&error, error_number,
                          "Could not write to scratch node '%s' at offset %" PRIu64,
                          point->options.scratch->name, batch->pieces[0]->offset);
        point_break(point, error);
    }
    for (unsigned i = 0; i < batch->count; i++) {
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

static void batch_failed(struct point_in_time *point, struct batch *batch, int error_number)
{
    enum point_in_time_action action = ask_owner(point, error_number);

    switch (action) {
    case POINT_IN_TIME_TRY_LATER:
        point->retry_after_ns = clock_now_ns() + RETRY_NS;
        requeue(point, batch);
        break;
    case POINT_IN_TIME_HOLD:
        point->held = true;
        requeue(point, batch);
        break;
    default:
        give_up(point, batch, error_number);
    }
    point_look_if_crowded(point);
}

/* ---- The threads ---------------------------------------------------------------------------- */

/* Lock held, dropped meanwhile. */
static void work_on_queue(struct point_in_time *point, struct batch *batch)
{
    uint64_t charged = 0;
    int status = take_batch(point, batch);

    point->scratch.active++;
    point->thread_active++;
    if (status == 0) {
        for (unsigned i = 0; i < batch->count; i++) {
            charged += room_for(point, batch->pieces[i], batch->units[i]);
        }
        point_scratch_wake(point); /* is it enough? */
        point_unlock(point);
        status = write_batch(point, batch);
        point_lock(point);
    }
    if (status == 0) {
        batch_succeeded(point, batch);
    } else {
        point_scratch_give_back(point, charged);
        batch_failed(point, batch, -status);
    }
    point->thread_active--;
    point_leave(point, &point->scratch);
}

/* What a batch was made of, without the lock: freeing memory takes time. */
static void drop_batch(struct point_in_time *point, struct batch *batch)
{
    point_unlock(point);
    while (batch->count) {
        point_piece_unref(batch->pieces[--batch->count]);
    }
    point_lock(point);
}

static void be_idle(struct point_in_time *point, int64_t now_ns)
{
    int64_t deadline_ns = point->timer_runs ? INT64_MAX : next_look(point, now_ns);
    bool is_timer = deadline_ns != INT64_MAX;

    point->timer_runs |= is_timer;
    point->thread_idle++;
    clock_cond_wait_until(&point->work, &point->lock, deadline_ns);
    point->thread_idle--;
    point->thread_called -= point->thread_called > 0;
    point->timer_runs &= !is_timer;
}

static void *scratch_thread(void *data)
{
    struct point_in_time *point = data;
    struct batch batch = {.count = 0};

    point_lock(point);
    while (!point->ending) {
        int64_t now_ns = clock_now_ns();

        if (must_free(point)) {
            point_scratch_free(point, 0, point->length);
        } else if (wanted_threads(point, now_ns) > point->thread_active) {
            work_on_queue(point, &batch);
            drop_batch(point, &batch);
        } else {
            be_idle(point, now_ns);
        }
    }
    point_unlock(point);
    free(batch.buffer);
    return NULL;
}

void point_scratch_stop(struct point_in_time *point)
{
    point_lock(point);
    point->ending = true;
    pthread_cond_broadcast(&point->work);
    point_unlock(point);
    for (unsigned i = 0; i < point->thread_count; i++) {
        pthread_join(point->threads[i], NULL);
    }
    point->thread_count = 0;
}
