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

#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/point-in-time-internal.h"
#include "block/thread.h"

/* Pieces older than this are written although there is memory. */
#define LAZY_NS (100 * NS_PER_MS)

/* ---- The budget. Lock held. ----------------------------------------------------------------- */

int scratch_budget_init(struct scratch_budget *budget, uint64_t max_bytes, int64_t high_percent,
                        const char *kind, const char *name, GError **error)
{
    if (high_percent < 0 || high_percent > 100) {
        return block_error(error, EINVAL,
                           "Parameter 'scratch-high-water' expects a percentage of scratch-max, "
                           "from 0 (none) to 100, not %" PRId64,
                           high_percent);
    }
    budget->max_bytes = max_bytes;
    uint64_t percent = (uint64_t)high_percent;
    budget->high_bytes = max_bytes / 100 * percent + max_bytes % 100 * percent / 100;
    budget->kind = kind;
    budget->name = name;
    return 0;
}

static void tell_if_high(struct scratch_budget *budget, uint64_t used)
{
    if (budget->high_bytes && used >= budget->high_bytes &&
        !atomic_exchange(&budget->is_high, true)) {
        event_emit("SCRATCH_HIGH_WATER", EVENT_STRING("kind", budget->kind),
                   EVENT_STRING("name", budget->name), EVENT_INT("used", used),
                   EVENT_INT("max", budget->max_bytes));
    }
}

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
    if (budget) {
        tell_if_high(budget, used + bytes);
    }
    point->info.scratch_bytes += bytes;
    point->info.scratch_peak_bytes =
        MAX_OF(point->info.scratch_peak_bytes, point->info.scratch_bytes);
    return true;
}

void point_scratch_give_back(struct point_in_time *point, uint64_t bytes)
{
    struct scratch_budget *budget = point->options.budget;

    if (budget && atomic_fetch_sub(&budget->used_bytes, bytes) - bytes < budget->high_bytes / 2) {
        atomic_store(&budget->is_high, false);
    }
    point->info.scratch_bytes -= bytes;
}

/* ---- Choosing work. Lock held. -------------------------------------------------------------- */

static bool may_write(const struct point_in_time *point, int64_t now_ns)
{
    return !TAILQ_EMPTY(&point->queue) && point->scratch.drains == 0 && !point->held &&
           now_ns >= point->retry_after_ns;
}

/*
 * How many threads should be writing: more, the less memory is left. Once begun, they go on for a
 * while, or they would have to be woken for each piece.
 */
static unsigned wanted_threads(struct point_in_time *point, int64_t now_ns)
{
    const uint64_t half = point->memory_max / 2;

    if (!may_write(point, now_ns)) {
        return 0;
    }
    if (point->strict || !TAILQ_EMPTY(&point->memory_waiters)) {
        return POINT_THREADS_MAX;
    }
    point->hurry = point->memory_used > (point->hurry ? half / 4 * 3 : half);
    if (!point->hurry) {
        return now_ns - TAILQ_FIRST(&point->queue)->queued_ns >= LAZY_NS;
    }
    uint64_t more = point->memory_used > half ? (point->memory_used - half) / (half / 4) : 0;
    return (unsigned)MIN_OF(1 + more, (uint64_t)POINT_THREADS_MAX);
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

/* Whether data that nobody can read any more has to be freed on scratch. */
static bool must_free(struct point_in_time *point)
{
    return (atomic_load(&point->broken) || point->ending) && point->scratch.drains == 0 &&
           !point_scratch_is_left(point) && dirty_bitmap_count(point->data) > 0;
}

static void *scratch_thread(void *data);

/* No thread at all: as when scratch fails. */
static void cannot_start(struct point_in_time *point, int error_number)
{
    struct point_piece *piece;
    GError *error = NULL;

    if (point->options.policy == POINT_IN_TIME_BREAK_GUEST_WRITE) {
        while ((piece = TAILQ_FIRST(&point->queue))) {
            point_piece_end(point, piece, true);
        }
        point_memory_grant(point);
        return;
    }
    block_error_errno(&error, error_number,
                      "Could not start a thread that writes to scratch node '%s'",
                      point->options.scratch->name);
    point_break(point, error);
}

static void start_thread(struct point_in_time *point)
{
    int error_number = thread_create(&point->threads[point->thread_count], scratch_thread, point);

    if (error_number == 0) {
        point->thread_count++;
        point->thread_running++;
    } else if (point->thread_count == 0) { /* else fewer will do */
        cannot_start(point, error_number);
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

static void add_to_batch(struct point_in_time *point, struct point_batch *batch,
                         struct point_piece *piece)
{
    TAILQ_REMOVE(&point->queue, piece, queue_entry);
    piece->writing = true;
    batch->units[batch->count] = piece->units;
    batch->pieces[batch->count++] = point_piece_ref(piece);
}

/* The oldest piece, and with it all of its region. False if the budget does not allow it. */
static bool take_region(struct point_in_time *point, struct point_batch *batch)
{
    struct point_piece *oldest = TAILQ_FIRST(&point->queue), *piece;

    if (!charge(point, point_room(point, oldest, oldest->units))) {
        return false;
    }
    add_to_batch(point, batch, oldest);
    if (!oldest->buffer) {
        return true;
    }
    uint64_t region = point_region(oldest->offset);
    for (piece = point_piece_first(point, region); piece; piece = point_piece_next(piece)) {
        if (!piece->writing && charge(point, point_room(point, piece, piece->units))) {
            add_to_batch(point, batch, piece);
        }
    }
    return true;
}

/*
 * What to write next. -ENOSPC if the budget does not allow even the oldest piece, which is the
 * batch then, not charged. In a strict point in time all threads share what there is.
 */
static int take_batch(struct point_in_time *point, struct point_batch *batch, int64_t now_ns)
{
    batch->count = 0;
    batch->over_budget = false;
    do {
        if (!take_region(point, batch)) {
            break;
        }
    } while (!point->strict && batch->count + 64 <= POINT_BATCH_PIECES &&
             wanted_threads(point, now_ns) > 0);
    if (batch->count) {
        return 0;
    }
    add_to_batch(point, batch, TAILQ_FIRST(&point->queue));
    batch->over_budget = true;
    return -ENOSPC;
}

/* ---- The threads ---------------------------------------------------------------------------- */

/* Lock held, dropped meanwhile. */
static void work_on_queue(struct point_in_time *point, struct point_batch *batch, int64_t now_ns)
{
    int status = take_batch(point, batch, now_ns);

    point->scratch.active++;
    point->thread_active++;
    if (status == 0) {
        point_scratch_wake(point); /* is it enough? */
        point_batch_write(point, batch);
    } else {
        point_batch_refused(point, batch, -status);
    }
    point->thread_active--;
    point_leave(point, &point->scratch);
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
    struct point_batch batch = {.count = 0};
    GUEST_WAITS_SCOPE(point->options.waits);

    point_lock(point);
    while (true) {
        int64_t now_ns = clock_now_ns();

        if (must_free(point)) {
            point_scratch_free(point, 0, point->length);
        } else if (point->ending) {
            break;
        } else if (wanted_threads(point, now_ns) > point->thread_active) {
            work_on_queue(point, &batch, now_ns);
        } else {
            be_idle(point, now_ns);
        }
    }
    point->thread_running--;
    pthread_cond_broadcast(&point->quiet);
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
