/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time: what a guest's change does before it may overwrite bytes that are not saved.
 * Runs on the guest's thread.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/point-in-time-internal.h"
#include "block/zero.h"

/* Areas larger than this are worth asking whether there is anything in them at all. */
#define ASK_STATUS (64 * KIB)

/* The longest run of zeroes on its way to scratch as one request. */
#define ZERO_RUN GIB

/* One request of a guest. */
struct guest {
    struct point_in_time *point;
    uint64_t start; /* of whole units */
    uint64_t end;
    int64_t deadline_ns; /* of all its waiting together; 0 before it first waits */
    uint64_t data_end;   /* the source said that there is data up to here */
};

/* ---- Failing and waiting -------------------------------------------------------------------- */

/* Something could not be saved: 0 if the guest may go on. Takes the error over. Lock held. */
static int cannot_save(struct guest *guest, GError *error)
{
    if (guest->point->options.policy == POINT_IN_TIME_BREAK_GUEST_WRITE) {
        g_error_free(error);
        return atomic_load(&guest->point->over) ? 0 : -EIO;
    }
    point_break(guest->point, error);
    return 0;
}

static int too_slow(struct guest *guest)
{
    const struct point_in_time_options *options = &guest->point->options;
    GError *error = NULL;
    g_autofree char *whom = options->scratch
                                ? g_strdup_printf("Node '%s' is too slow", options->scratch->name)
                                : g_strdup("The memory for old data is full");

    block_error(&error, ETIMEDOUT,
                "%s: a write to node '%s' would have had to wait for more than %g s for what it "
                "overwrites to be saved",
                whom, options->source->name, (double)options->guest_timeout_ns / NS_PER_SECOND);
    return cannot_save(guest, error);
}

/* Wait; false if nothing came before the guest's deadline. Lock held. */
static bool await(struct guest *guest, pthread_cond_t *condition)
{
    struct point_in_time *point = guest->point;
    int64_t timeout_ns = point->options.guest_timeout_ns;

    if (guest->deadline_ns == 0) {
        guest->deadline_ns = timeout_ns ? clock_now_ns() + timeout_ns : INT64_MAX;
    }
    return clock_cond_wait_until(condition, &point->lock, guest->deadline_ns) != ETIMEDOUT;
}

/*
 * Memory for a piece. 1 if it was granted, 2 if so after a wait, 0 if the guest need not save any
 * more, or a negative errno. Lock held.
 */
static int reserve_memory(struct guest *guest, uint64_t bytes)
{
    struct point_in_time *point = guest->point;
    struct point_memory_waiter waiter = {.bytes = bytes};
    bool in_time = true;

    if (point_memory_take(point, bytes)) {
        return 1;
    }
    point_memory_queue(point, &waiter);
    point_scratch_wake(point);
    while (!waiter.granted && !atomic_load(&point->over) && in_time) {
        in_time = await(guest, &waiter.wake);
    }
    point_memory_leave(point, &waiter);
    if (waiter.granted) {
        return 2;
    }
    return atomic_load(&point->over) ? 0 : too_slow(guest);
}

/* ---- Marking. Lock held. -------------------------------------------------------------------- */

/* Units that a guest has still to bring to safety. */
static uint64_t units_to_save(const struct point_in_time *point, uint64_t region, uint64_t mask)
{
    mask &= ~copy_map_saved_units(point->saved, region);
    return mask ? mask & ~point_pending(point, region) : 0;
}

static void mark_zero(struct point_in_time *point, uint64_t region, uint64_t mask)
{
    uint64_t offset, bytes;

    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        copy_map_mark_saved(point->saved, offset, bytes);
    }
}

static void mark_data(struct point_in_time *point, uint64_t region, uint64_t mask)
{
    uint64_t offset, bytes;

    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        dirty_bitmap_set(point->data, offset, bytes);
        copy_map_mark_saved(point->saved, offset, bytes);
        point->info.saved_bytes += bytes;
    }
}

static void queue_piece(struct point_in_time *point, struct point_piece *piece)
{
    piece->queued_ns = clock_now_ns();
    point_piece_insert(point, piece);
    point_scratch_wake(point);
    point_look_if_crowded(point);
}

/*
 * A piece was read; zero tells what of it is zeroes. Keep what nobody else has saved meanwhile.
 * Takes the reference and the memory over.
 */
static void keep_piece(struct point_in_time *point, struct point_piece *piece, uint64_t zero)
{
    uint64_t region = point_region(piece->offset);
    uint64_t units =
        atomic_load(&point->over)
            ? 0
            : units_to_save(point, region,
                            point_mask(region, piece->offset, piece->offset + piece->bytes));

    zero &= units;
    if (!point->options.write_through) {
        mark_zero(point, region, zero);
        units &= ~zero;
        zero = 0;
    }
    if (!units) {
        point_memory_release(point, piece->memory);
        point_piece_unref(piece);
        return;
    }
    piece->units = units;
    piece->zeroes = zero;
    if (!point->strict) {
        mark_data(point, region, units);
    }
    queue_piece(point, piece);
}

/* ---- Saving --------------------------------------------------------------------------------- */

/* The next run that this guest must save, in *offset and *end; false if there is none. */
static bool find_run(struct guest *guest, uint64_t from, uint64_t *offset, uint64_t *end)
{
    struct point_in_time *point = guest->point;
    uint64_t bytes;

    if (from >= guest->end) {
        return false;
    }
    POINT_LOCK(point);
    while (from < guest->end && !atomic_load(&point->over) &&
           copy_map_next_unsaved(point->saved, from, guest->end,
                                 point->strict ? ZERO_RUN : POINT_STRIDE, offset, &bytes)) {
        *end = *offset + bytes;
        if (!point->strict || (point->piece_count == 0 && TAILQ_EMPTY(&point->runs))) {
            return true;
        }
        /* Leave out what is on its way to scratch. */
        uint64_t region = point_region(*offset);
        uint64_t units = units_to_save(point, region, point_mask(region, *offset, *end));

        if (point_next_run(point, region, &units, offset, &bytes)) {
            *end = *offset + bytes;
            return true;
        }
        from = region + COPY_REGION;
    }
    return false;
}

/*
 * The source said that a range is zero. What others have saved meanwhile stays as it is: it may
 * have been zeroed by them. Lock held.
 */
static int save_zero_run(struct guest *guest, uint64_t offset, uint64_t end)
{
    struct point_in_time *point = guest->point;
    GError *error = NULL;
    uint64_t bytes;

    if (!point->options.write_through) {
        copy_map_mark_saved(point->saved, offset, end - offset); /* if it is over: no harm */
        return 0;
    }
    for (; !atomic_load(&point->over) &&
           copy_map_next_unsaved(point->saved, offset, end, ZERO_RUN, &offset, &bytes);
         offset += bytes) {
        struct point_piece *piece = point_piece_new(point, offset, bytes, true);

        if (!piece) {
            block_error(&error, ENOMEM, "Not enough memory to save what a write overwrites");
            return cannot_save(guest, error);
        }
        queue_piece(point, piece);
    }
    return 0;
}

/*
 * If a run begins with zeroes, saving those is no more than remembering so. They end at *end then.
 * 1 if that was done, 0 if there is data, or a negative errno.
 */
static int save_if_zero(struct guest *guest, uint64_t offset, uint64_t *end)
{
    struct point_in_time *point = guest->point;
    struct block_extent extent;
    int status =
        block_node_block_status_chain(point->options.source, offset, *end - offset, &extent, NULL);

    if (status < 0) {
        return 0; /* reading it will tell what is wrong */
    }
    uint64_t extent_end = offset + extent.bytes;
    if (extent_end < *end) {
        extent_end = align_down(extent_end, COPY_UNIT);
    }
    if (!(extent.flags & BLOCK_STATUS_ZERO) || extent_end <= offset) {
        guest->data_end = MAX_OF(extent_end, offset + COPY_UNIT);
        return 0;
    }
    *end = extent_end;
    POINT_LOCK(point);
    status = save_zero_run(guest, offset, *end);
    return status < 0 ? status : 1;
}

/* Read a piece. NULL, with *status set, if that fails. */
static struct point_piece *read_piece(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                                      int *status)
{
    struct point_piece *piece = point_piece_new(point, offset, bytes, false);

    *status =
        piece ? block_node_pread(point->options.source, piece->buffer, offset, bytes, 0) : -ENOMEM;
    if (*status < 0 && piece) {
        point_piece_unref(STEAL(piece));
    }
    return piece;
}

static uint64_t zero_units(const struct point_piece *piece)
{
    uint64_t first = (piece->offset - point_region(piece->offset)) / COPY_UNIT;
    uint64_t mask = 0;

    for (uint64_t done = 0; done < piece->bytes; done += COPY_UNIT) {
        if (buffer_is_zero(piece->buffer + done, MIN_OF(piece->bytes - done, COPY_UNIT))) {
            mask |= UINT64_C(1) << (first + done / COPY_UNIT);
        }
    }
    return mask;
}

/* Reading failed. It does not matter if others have saved the piece meanwhile. Lock held. */
static int read_failed(struct guest *guest, uint64_t offset, uint64_t bytes, int error_number)
{
    struct point_in_time *point = guest->point;
    uint64_t region = point_region(offset);
    GError *error = NULL;

    point_memory_release(point, bytes);
    if (atomic_load(&point->over) ||
        !units_to_save(point, region, point_mask(region, offset, offset + bytes))) {
        return 0;
    }
    block_error_errno(&error, error_number,
                      "Could not save what a write overwrites of node '%s' at offset %" PRIu64,
                      point->options.source->name, offset);
    return cannot_save(guest, error);
}

/*
 * Cut [*offset, *end), of one region, down to what must be saved, and get memory for it. As
 * reserve_memory, and 0 if there is nothing to save.
 */
static int prepare(struct guest *guest, uint64_t *offset, uint64_t *end)
{
    struct point_in_time *point = guest->point;
    uint64_t region = point_region(*offset);
    uint64_t units = units_to_save(point, region, point_mask(region, *offset, *end));

    if (!units || atomic_load(&point->over)) {
        return 0;
    }
    *offset = region + (uint64_t)__builtin_ctzll(units) * COPY_UNIT;
    *end = MIN_OF(region + (64 - (uint64_t)__builtin_clzll(units)) * COPY_UNIT, point->length);
    int reserved = reserve_memory(guest, *end - *offset);
    /* Waiting takes time: is it still ours to save? */
    if (reserved == 2 && !units_to_save(point, region, units)) {
        point_memory_release(point, *end - *offset);
        return 0;
    }
    return reserved;
}

/* Bring what is unsaved of the start of a range into memory; *end is how far that went. */
static int save_data(struct guest *guest, uint64_t offset, uint64_t *end)
{
    struct point_in_time *point = guest->point;
    uint64_t largest = MAX_OF(align_down(point->memory_max / 4, COPY_UNIT), COPY_UNIT);
    uint64_t piece_end = MIN_OF(*end, point_region(offset) + COPY_REGION);
    int status;

    piece_end = MIN_OF(piece_end, offset + largest);
    *end = piece_end;
    point_lock(point);
    status = prepare(guest, &offset, &piece_end);
    point_unlock(point);
    if (status <= 0) {
        return status;
    }
    struct point_piece *piece = read_piece(point, offset, piece_end - offset, &status);
    uint64_t zero = piece ? zero_units(piece) : 0;
    POINT_LOCK(point);
    if (!piece) {
        return read_failed(guest, offset, piece_end - offset, -status);
    }
    piece->memory = piece->bytes;
    keep_piece(point, piece, zero);
    return 0;
}

/* Large ranges: most of it may be saved, or zeroes. */
static int save_range(struct guest *guest)
{
    uint64_t cursor = guest->start, offset, end;
    int status = 0;

    while (status == 0 && find_run(guest, cursor, &offset, &end)) {
        if (end - offset > ASK_STATUS && offset >= guest->data_end) {
            status = save_if_zero(guest, offset, &end);
        }
        if (status == 0) {
            status = save_data(guest, offset, &end);
        }
        status = MIN_OF(status, 0);
        cursor = end;
    }
    return status;
}

static int save_all(struct guest *guest)
{
    int status = 0;

    if (guest->end - guest->start > ASK_STATUS) {
        return save_range(guest);
    }
    for (uint64_t offset = guest->start, end; status == 0 && offset < guest->end; offset = end) {
        end = guest->end;
        status = save_data(guest, offset, &end);
    }
    return status;
}

/* ---- Waiting for scratch -------------------------------------------------------------------- */

/* The piece on its way to scratch with a unit, or NULL. Lock held. */
static struct point_piece *find_pending(const struct point_in_time *point, uint64_t offset)
{
    uint64_t region = point_region(offset);
    uint64_t mask = point_mask(region, offset, offset + 1);
    struct point_piece *piece = point_piece_first(point, region);

    while (piece && !(piece->units & mask)) {
        piece = point_piece_next(piece);
    }
    if (piece) {
        return piece;
    }
    TAILQ_FOREACH (piece, &point->runs, run_entry) {
        if (offset >= piece->offset && offset - piece->offset < piece->bytes) {
            return piece;
        }
    }
    return NULL;
}

/* Until a unit is saved or its piece has come to its end. Lock held. */
static int await_piece(struct guest *guest, struct point_piece *piece, uint64_t unit)
{
    struct point_in_time *point = guest->point;
    bool in_time = true;
    int status = 0;

    point_piece_ref(piece);
    while (!piece->ended && !atomic_load(&point->over) && in_time &&
           !copy_map_is_saved(point->saved, unit, 1)) {
        in_time = await(guest, &piece->end);
    }
    if (!atomic_load(&point->over) && !copy_map_is_saved(point->saved, unit, 1)) {
        status = piece->failed ? -EIO : in_time ? 0 : too_slow(guest);
    }
    point_piece_unref(piece);
    return status;
}

/* 0: all is on scratch; 1: something is not even on its way; or a negative errno. */
static int await_scratch(struct guest *guest)
{
    struct point_in_time *point = guest->point;
    uint64_t cursor = guest->start, offset, bytes;
    int status = 0;
    POINT_LOCK(point);

    while (status == 0 && !atomic_load(&point->over) && cursor < guest->end &&
           copy_map_next_unsaved(point->saved, cursor, guest->end, POINT_ANY_LENGTH, &offset,
                                 &bytes)) {
        struct point_piece *piece = find_pending(point, offset);

        cursor = offset;
        status = piece ? await_piece(guest, piece, offset) : 1;
    }
    return status;
}

/* ---- A guest's change ----------------------------------------------------------------------- */

static int save_before_write(struct guest *guest)
{
    int status;

    do {
        status = save_all(guest);
        if (status == 0 && guest->point->strict) {
            status = await_scratch(guest);
        }
    } while (status > 0);
    return status;
}

int point_in_time_before_write(struct point_in_time *point, enum block_operation operation,
                               uint64_t offset, uint64_t bytes)
{
    uint64_t unit = MAX_OF(point->options.guest_unit, (uint64_t)COPY_UNIT);
    struct guest guest = {.point = point, .start = align_down(offset, unit)};

    if (offset >= point->length || bytes == 0) {
        return 0; /* a disk that grew has bytes beyond */
    }
    guest.end = bytes < point->length - offset
                    ? MIN_OF(align_up(offset + bytes, unit), point->length)
                    : point->length;
    if (atomic_load_explicit(&point->over, memory_order_acquire) ||
        copy_map_is_saved(point->saved, guest.start, guest.end - guest.start)) {
        return 0;
    }
    struct guest_wait wait = {0};
    guest_wait_for(&wait, point->options.waits);
    int status = save_before_write(&guest);
    guest_wait_end(&wait);
    return status;
}

int point_notify_before_write(struct write_notifier *notifier, enum block_operation operation,
                              uint64_t offset, uint64_t bytes)
{
    struct point_in_time *point =
        (struct point_in_time *)((char *)notifier - offsetof(struct point_in_time, notifier));

    return point_in_time_before_write(point, operation, offset, bytes);
}
