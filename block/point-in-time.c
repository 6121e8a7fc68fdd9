/* SPDX-License-Identifier: BSD-3-Clause */
/* A point in time: its life. What guests, readers and threads do is in the other parts. */
#include "block/point-in-time.h"

#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/point-in-time-internal.h"

/* What follows a request that was cut off, and hangs too, is cut off after this time. */
#define CUT_OFF_AGAIN_NS (100 * NS_PER_MS)

const char *const point_in_time_policy_names[] = {
    [POINT_IN_TIME_BREAK_SNAPSHOT] = "break-snapshot",
    [POINT_IN_TIME_BREAK_GUEST_WRITE] = "break-guest-write",
    NULL,
};

/* ---- Masks of units ------------------------------------------------------------------------- */

bool point_next_run(const struct point_in_time *point, uint64_t region, uint64_t *mask,
                    uint64_t *offset, uint64_t *bytes)
{
    if (!*mask) {
        return false;
    }
    unsigned first = (unsigned)__builtin_ctzll(*mask);
    uint64_t rest = ~(*mask >> first);
    unsigned count = rest ? (unsigned)__builtin_ctzll(rest) : 64;

    *offset = region + first * COPY_UNIT;
    *bytes = MIN_OF(count * COPY_UNIT, point->length - *offset);
    *mask = first + count < 64 ? *mask & UINT64_MAX << (first + count) : 0;
    return true;
}

uint64_t point_mask_bytes(const struct point_in_time *point, uint64_t region, uint64_t mask)
{
    uint64_t offset, bytes, sum = 0;

    while (point_next_run(point, region, &mask, &offset, &bytes)) {
        sum += bytes;
    }
    return sum;
}

/* ---- Locks, gates, and who wants to know ---------------------------------------------------- */

void point_unlock(struct point_in_time *point)
{
    bool tell = point->tell;

    point->tell = false;
    pthread_mutex_unlock(&point->lock);
    if (tell && point->options.on_change) {
        point->options.on_change(point->options.callback_data);
    }
}

int point_enter(struct point_in_time *point, struct point_gate *gate)
{
    while (gate->drains && !atomic_load(&point->over)) {
        pthread_cond_wait(&point->quiet, &point->lock);
    }
    if (atomic_load(&point->over)) {
        return -EIO;
    }
    gate->active++;
    return 0;
}

void point_leave(struct point_in_time *point, struct point_gate *gate)
{
    gate->left++;
    if (--gate->active == 0 && (gate->drains || point->ending)) {
        pthread_cond_broadcast(&point->quiet);
    }
}

static struct point_gate *gate_of(struct block_claim *claim, struct point_in_time **point)
{
    if (claim->perms & BLOCK_PERM_WRITE) {
        *point =
            (struct point_in_time *)((char *)claim - offsetof(struct point_in_time, scratch_claim));
        return &(*point)->scratch;
    }
    *point = (struct point_in_time *)((char *)claim - offsetof(struct point_in_time, source_claim));
    return &(*point)->source;
}

static void drain_begin(struct block_claim *claim)
{
    struct point_in_time *point;
    struct point_gate *gate = gate_of(claim, &point);
    SCOPE_LOCK(&point->lock);

    gate->drains++;
}

static void drain_wait(struct block_claim *claim)
{
    struct point_in_time *point;
    struct point_gate *gate = gate_of(claim, &point);
    SCOPE_LOCK(&point->lock);

    while (gate->active) {
        pthread_cond_wait(&point->quiet, &point->lock);
    }
}

static void drain_end(struct block_claim *claim)
{
    struct point_in_time *point;
    struct point_gate *gate = gate_of(claim, &point);
    SCOPE_LOCK(&point->lock);

    gate->drains--;
    pthread_cond_broadcast(&point->quiet);
    pthread_cond_broadcast(&point->work);
}

/* Guests' writes, and readers, may wait for us, so they are to be quiet first. */
static const struct block_claim_operations claim_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .drain_turn = BLOCK_DRAIN_POINT_IN_TIME,
};

/* ---- Making one ----------------------------------------------------------------------------- */

static int check_scratch(const struct point_in_time_options *options, GError **error)
{
    struct block_node *source = options->source, *scratch = options->scratch;

    if (scratch == source) {
        return block_error(error, EINVAL, "Node '%s' cannot be its own scratch", source->name);
    }
    if (block_node_is_read_only(scratch)) {
        return block_error(error, EACCES, "Scratch node '%s' is read-only", scratch->name);
    }
    if (block_node_length(scratch) < block_node_length(source)) {
        return block_error(error, ENOSPC,
                           "Scratch node '%s' (%" PRIu64 " bytes) is shorter than node '%s' "
                           "(%" PRIu64 " bytes)",
                           scratch->name, block_node_length(scratch), source->name,
                           block_node_length(source));
    }
    return 0;
}

/* The source is read, and others may write it: that is noticed. Neither may change its length. */
static int claim_nodes(struct point_in_time *point, GError **error)
{
    struct point_in_time_options *options = &point->options;
    int status;

    point->source_claim.owner = g_strdup(options->owner);
    point->source_claim.operations = &claim_operations;
    point->source_claim.perms = BLOCK_PERM_READ;
    point->source_claim.shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_INVISIBLE;
    point->scratch_claim.owner = g_strdup(options->owner);
    point->scratch_claim.operations = &claim_operations;
    point->scratch_claim.perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE;
    point->scratch_claim.shared = BLOCK_PERM_READ;
    status = block_node_check_sees_writes(options->source, error);
    if (status == 0 && options->scratch) {
        status = check_scratch(options, error);
    }
    if (status == 0) {
        status = block_claim_acquire(&point->source_claim, options->source, error);
    }
    if (status == 0 && options->scratch) {
        status = block_claim_acquire(&point->scratch_claim, options->scratch, error);
    }
    return status;
}

/* What is not in the bitmap is given up. A unit of which a part is in it stays. */
static int apply_bitmap(struct point_in_time *point, struct dirty_bitmap *bitmap, GError **error)
{
    uint64_t clean = 0, offset, bytes;

    if (dirty_bitmap_length(bitmap) != point->length) {
        return block_error(error, EINVAL,
                           "The bitmap covers %" PRIu64 " bytes, but node '%s' has %" PRIu64,
                           dirty_bitmap_length(bitmap), point->options.source->name, point->length);
    }
    while (clean < point->length &&
           dirty_bitmap_next_range(bitmap, clean, point->length, UINT64_MAX, &offset, &bytes)) {
        if (align_down(offset, COPY_UNIT) > clean) {
            point_give_up(point, clean, align_down(offset, COPY_UNIT));
        }
        clean = align_up(offset + bytes, COPY_UNIT);
    }
    if (clean < point->length) {
        point_give_up(point, clean, point->length);
    }
    return 0;
}

static int make_maps(struct point_in_time *point, GError **error)
{
    point->saved = copy_map_new(point->length, error);
    point->given_up = point->saved ? copy_map_new(point->length, error) : NULL;
    point->data = point->given_up ? dirty_bitmap_new(NULL, point->length, COPY_UNIT, error) : NULL;
    if (!point->data) {
        return -ENOMEM;
    }
    return point_memory_init(point) < 0
               ? block_error(error, ENOMEM, "Not enough memory for a point in time")
               : 0;
}

static void destroy(struct point_in_time *point)
{
    block_claim_release(&point->source_claim);
    block_claim_release(&point->scratch_claim);
    g_free(point->source_claim.owner);
    g_free(point->scratch_claim.owner);
    if (point->saved) {
        copy_map_free(point->saved);
    }
    if (point->given_up) {
        copy_map_free(point->given_up);
    }
    dirty_bitmap_free(point->data);
    point_memory_destroy(point);
    g_clear_error(&point->reason);
    pthread_mutex_destroy(&point->lock);
    pthread_cond_destroy(&point->work);
    pthread_cond_destroy(&point->quiet);
    g_free((char *)point->options.owner);
    guest_waits_unref(point->options.waits);
    g_free(point);
}

struct point_in_time *point_in_time_new(const struct point_in_time_options *options, GError **error)
{
    struct point_in_time *point = g_new0(struct point_in_time, 1);

    point->options = *options;
    point->options.owner = g_strdup(options->owner);
    point->options.bitmap = NULL;
    guest_waits_ref(options->waits);
    point->options.write_through = options->write_through && options->scratch;
    point->strict = options->scratch &&
                    (options->write_through || options->policy == POINT_IN_TIME_BREAK_GUEST_WRITE);
    point->memory_max = options->memory_max ? MAX_OF(options->memory_max, POINT_IN_TIME_MEMORY_MIN)
                                            : POINT_IN_TIME_MEMORY_DEFAULT;
    point->length = block_node_length(options->source);
    point->notifier.before_write = point_notify_before_write;
    pthread_mutex_init(&point->lock, NULL);
    pthread_cond_init(&point->work, NULL);
    pthread_cond_init(&point->quiet, NULL);
    if (make_maps(point, error) < 0 ||
        (options->bitmap && apply_bitmap(point, options->bitmap, error) < 0) ||
        claim_nodes(point, error) < 0) {
        destroy(point);
        return NULL;
    }
    return point;
}

uint64_t point_in_time_length(const struct point_in_time *point)
{
    return point->length;
}

struct block_node *point_in_time_source(const struct point_in_time *point)
{
    return point->options.source;
}

/* ---- The moment ----------------------------------------------------------------------------- */

void point_in_time_install(struct point_in_time *point)
{
    block_node_add_notifier(point->options.source, &point->notifier);
    point->installed = true;
}

static void remove_notifier(void *data)
{
    struct point_in_time *point = data;

    block_node_remove_notifier(point->options.source, &point->notifier);
    point->installed = false;
}

void point_in_time_uninstall(struct point_in_time *point)
{
    if (point->installed) {
        struct block_node *source = point->options.source;

        /* Guests that wait in the notifier must not keep the drain waiting for them. */
        point_lock(point);
        point_end(point);
        point_unlock(point);
        AUTO(block_drain) drain = block_drain_begin(&source, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(remove_notifier, point);
    }
}

/* ---- Its end -------------------------------------------------------------------------------- */

/* What is in memory is dropped; a thread that writes a piece just now finds it empty. */
static void drop_pieces(struct point_in_time *point)
{
    struct point_piece *piece;

    for (unsigned bucket = 0; bucket >> point->bucket_bits == 0; bucket++) {
        for (piece = point->buckets[bucket]; piece; piece = piece->next) {
            uint64_t region = point_region(piece->offset), offset, bytes;
            uint64_t units = piece->units;

            piece->units = 0;
            while (!point->strict && point_next_run(point, region, &units, &offset, &bytes)) {
                dirty_bitmap_reset(point->data, offset, bytes);
            }
            pthread_cond_broadcast(&piece->end);
        }
    }
    TAILQ_FOREACH (piece, &point->runs, run_entry) {
        pthread_cond_broadcast(&piece->end);
    }
    while ((piece = TAILQ_FIRST(&point->queue))) {
        point_piece_end(point, piece, true);
    }
}

void point_end(struct point_in_time *point)
{
    struct point_memory_waiter *waiter;

    if (atomic_load(&point->over)) {
        return;
    }
    atomic_store(&point->over, true);
    drop_pieces(point);
    TAILQ_FOREACH (waiter, &point->memory_waiters, entry) {
        pthread_cond_signal(&waiter->wake);
    }
    pthread_cond_broadcast(&point->quiet);
    pthread_cond_broadcast(&point->work); /* scratch is to be freed */
}

void point_break(struct point_in_time *point, GError *error)
{
    if (atomic_load(&point->broken)) {
        g_error_free(error);
        return;
    }
    point->reason = error;
    atomic_store(&point->broken, true);
    point->tell = true;
    point_end(point);
}

void point_in_time_break(struct point_in_time *point, GError *error)
{
    POINT_LOCK(point);
    point_break(point, error);
}

bool point_in_time_is_broken(struct point_in_time *point, GError **reason)
{
    if (!atomic_load(&point->broken)) {
        return false;
    }
    if (reason) {
        SCOPE_LOCK(&point->lock);
        *reason = g_error_copy(point->reason);
    }
    return true;
}

void point_in_time_free(struct point_in_time *point)
{
    if (!point) {
        return;
    }
    g_assert(!point->installed);
    point_lock(point);
    point_end(point);
    point_unlock(point);
    point_scratch_stop(point);
    point_scratch_give_back(point, point->info.scratch_bytes); /* what could not be freed */
    destroy(point);
}

/* ---- Questions and signs -------------------------------------------------------------------- */

/* Lock held. */
static bool is_crowded(const struct point_in_time *point)
{
    const struct scratch_budget *budget = point->options.budget;

    if (atomic_load(&point->over)) {
        return false;
    }
    if (!point->options.scratch || point->held || point->retry_after_ns) {
        return point->memory_used > point->memory_max / 2;
    }
    return budget && budget->max_bytes &&
           atomic_load(&budget->used_bytes) > budget->max_bytes / 4 * 3;
}

void point_look_if_crowded(struct point_in_time *point)
{
    bool crowded = is_crowded(point);

    point->tell |= crowded && !point->told;
    point->told = crowded;
}

bool point_in_time_is_crowded(struct point_in_time *point)
{
    SCOPE_LOCK(&point->lock);
    bool crowded = is_crowded(point);

    point->told &= crowded; /* who hears that it is not wants to be told when it is again */
    return crowded;
}

void point_in_time_retry(struct point_in_time *point)
{
    SCOPE_LOCK(&point->lock);
    point->retries++;
    point->held = false;
    point->retry_after_ns = 0;
    pthread_cond_broadcast(&point->work);
}

void point_in_time_cancel_in_flight(struct point_in_time *point)
{
    if (!point->options.scratch) {
        return;
    }
    pthread_mutex_lock(&point->lock);
    point->cancelled = true;
    point->held = false;
    point->retry_after_ns = 0;
    pthread_cond_broadcast(&point->work);
    pthread_mutex_unlock(&point->lock);
    block_node_cancel_in_flight(point->options.scratch);
}

void point_in_time_stop(struct point_in_time *point, int64_t grace_ns)
{
    int64_t deadline_ns = clock_now_ns() + grace_ns;

    point_lock(point);
    point_end(point);
    point->ending = true;
    pthread_cond_broadcast(&point->work);
    uint64_t left = point->scratch.left;
    while (point->thread_running || point->scratch.active) {
        if (clock_cond_wait_until(&point->quiet, &point->lock, deadline_ns) != ETIMEDOUT) {
            continue;
        }
        if (point->scratch.left == left) {
            point->abandoned = true;
            point_unlock(point);
            point_in_time_cancel_in_flight(point);
            point_lock(point);
            grace_ns = CUT_OFF_AGAIN_NS;
        }
        left = point->scratch.left;
        deadline_ns = clock_now_ns() + grace_ns;
    }
    point_unlock(point);
}

void point_in_time_get_info(struct point_in_time *point, struct point_in_time_info *info)
{
    SCOPE_LOCK(&point->lock);
    *info = point->info;
    info->memory_bytes = point->memory_used;
}
