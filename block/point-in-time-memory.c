/* SPDX-License-Identifier: BSD-3-Clause */
/* A point in time: old data in memory, how it is found, and how much of it there may be. */
#include <errno.h>
#include <stdlib.h>

#include "block/point-in-time-internal.h"

/* A bucket for each so many bytes of memory: mostly small pieces are kept. */
#define BUCKET_BYTES    (16 * KIB)
#define BUCKET_BITS_MIN 6
#define BUCKET_BITS_MAX 16

/* ---- Pieces --------------------------------------------------------------------------------- */

int point_memory_init(struct point_in_time *point)
{
    unsigned bits = BUCKET_BITS_MIN;

    while (bits < BUCKET_BITS_MAX && point->memory_max / BUCKET_BYTES > UINT64_C(1) << bits) {
        bits++;
    }
    point->bucket_bits = bits;
    point->buckets = g_try_new0(struct point_piece *, UINT64_C(1) << bits);
    TAILQ_INIT(&point->queue);
    TAILQ_INIT(&point->runs);
    TAILQ_INIT(&point->memory_waiters);
    return point->buckets ? 0 : -ENOMEM;
}

void point_memory_destroy(struct point_in_time *point)
{
    g_free(point->buckets);
}

static void *alloc_buffer(struct point_in_time *point, uint64_t bytes)
{
    struct block_node *source = point->options.source;
    struct block_node *scratch = point->options.scratch;
    bool for_scratch =
        scratch && scratch->limits.memory_alignment > source->limits.memory_alignment;

    return block_node_alloc_buffer(for_scratch ? scratch : source, bytes);
}

struct point_piece *point_piece_new(struct point_in_time *point, uint64_t offset, uint64_t bytes,
                                    bool is_zero)
{
    char *buffer = is_zero ? NULL : alloc_buffer(point, bytes);
    struct point_piece *piece = calloc(1, sizeof(*piece));

    if (!piece || (!buffer && !is_zero)) {
        free(buffer);
        free(piece);
        return NULL;
    }
    atomic_init(&piece->references, 1);
    piece->offset = offset;
    piece->bytes = bytes;
    piece->buffer = buffer;
    pthread_cond_init(&piece->end, NULL);
    return piece;
}

struct point_piece *point_piece_ref(struct point_piece *piece)
{
    atomic_fetch_add_explicit(&piece->references, 1, memory_order_relaxed);
    return piece;
}

void point_piece_unref(struct point_piece *piece)
{
    if (atomic_fetch_sub_explicit(&piece->references, 1, memory_order_acq_rel) == 1) {
        pthread_cond_destroy(&piece->end);
        free(piece->buffer);
        free(piece);
    }
}

static struct point_piece **bucket_of(const struct point_in_time *point, uint64_t region)
{
    uint64_t hash = region / COPY_REGION * UINT64_C(0x9e3779b97f4a7c15);

    return &point->buckets[hash >> (64 - point->bucket_bits)];
}

void point_piece_insert(struct point_in_time *point, struct point_piece *piece)
{
    if (piece->buffer) {
        struct point_piece **bucket = bucket_of(point, point_region(piece->offset));

        piece->next = *bucket;
        *bucket = piece;
        point->piece_count++;
    } else {
        TAILQ_INSERT_TAIL(&point->runs, piece, run_entry);
    }
    TAILQ_INSERT_TAIL(&point->queue, piece, queue_entry);
}

static void forget(struct point_in_time *point, struct point_piece *piece)
{
    if (!piece->buffer) {
        TAILQ_REMOVE(&point->runs, piece, run_entry);
        return;
    }
    struct point_piece **link = bucket_of(point, point_region(piece->offset));
    while (*link != piece) {
        link = &(*link)->next;
    }
    *link = piece->next;
    point->piece_count--;
}

void point_piece_end(struct point_in_time *point, struct point_piece *piece, bool failed)
{
    forget(point, piece);
    if (!piece->writing) {
        TAILQ_REMOVE(&point->queue, piece, queue_entry);
    }
    piece->ended = true;
    piece->failed = failed;
    pthread_cond_broadcast(&piece->end);
    point->memory_used -= piece->memory;
    point_piece_unref(piece);
}

static struct point_piece *of_region(struct point_piece *piece, uint64_t region)
{
    while (piece && point_region(piece->offset) != region) {
        piece = piece->next;
    }
    return piece;
}

struct point_piece *point_piece_first(const struct point_in_time *point, uint64_t region)
{
    return of_region(*bucket_of(point, region), region);
}

struct point_piece *point_piece_next(const struct point_piece *piece)
{
    return of_region(piece->next, point_region(piece->offset));
}

uint64_t point_pending(const struct point_in_time *point, uint64_t region)
{
    const struct point_piece *piece;
    uint64_t units = 0;

    if (!point->strict) {
        return 0;
    }
    for (piece = point_piece_first(point, region); piece; piece = point_piece_next(piece)) {
        units |= piece->units;
    }
    TAILQ_FOREACH (piece, &point->runs, run_entry) {
        uint64_t end = piece->offset + piece->bytes;

        if (end > region && piece->offset < region + COPY_REGION) {
            units |= point_mask(region, piece->offset, end);
        }
    }
    return units;
}

/* ---- How much memory ------------------------------------------------------------------------ */

static bool fits(const struct point_in_time *point, uint64_t bytes)
{
    return point->memory_used == 0 || point->memory_used + bytes <= point->memory_max;
}

bool point_memory_take(struct point_in_time *point, uint64_t bytes)
{
    if (!TAILQ_EMPTY(&point->memory_waiters) || !fits(point, bytes)) {
        return false;
    }
    point->memory_used += bytes;
    return true;
}

/* Those who have waited longest first; nobody is woken for nothing. */
void point_memory_grant(struct point_in_time *point)
{
    struct point_memory_waiter *waiter;

    while ((waiter = TAILQ_FIRST(&point->memory_waiters)) && fits(point, waiter->bytes)) {
        TAILQ_REMOVE(&point->memory_waiters, waiter, entry);
        waiter->granted = true;
        point->memory_used += waiter->bytes;
        pthread_cond_signal(&waiter->wake);
    }
}

void point_memory_release(struct point_in_time *point, uint64_t bytes)
{
    point->memory_used -= bytes;
    point_memory_grant(point);
}

void point_memory_queue(struct point_in_time *point, struct point_memory_waiter *waiter)
{
    waiter->granted = false;
    pthread_cond_init(&waiter->wake, NULL);
    TAILQ_INSERT_TAIL(&point->memory_waiters, waiter, entry);
}

void point_memory_leave(struct point_in_time *point, struct point_memory_waiter *waiter)
{
    if (!waiter->granted) {
        TAILQ_REMOVE(&point->memory_waiters, waiter, entry);
        point_memory_grant(point); /* it may have stood in the way of a smaller one */
    }
    pthread_cond_destroy(&waiter->wake);
}
