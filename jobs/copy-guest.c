/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Copy before write: what a guest's write does before it may overwrite bytes that are not saved.
 * Runs on the guest's thread. It never fails the guest's write: if bytes cannot be saved, the
 * job breaks.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "jobs/copy-engine-internal.h"

/* Large ranges (a discard of the whole disk) are saved in pieces of this size. */
#define GUEST_PIECE (256 * KIB)

/* Areas larger than this are worth asking whether there is anything in them at all. */
#define ASK_STATUS (64 * KIB)

/*
 * Wait for a change; false (and the job broken) if none came in time. *deadline_ns is that of the
 * guest's whole request, 0 before its first wait: what the job may add to one request is bounded,
 * whether the target stands still or crawls. slow: whom to blame. Lock held.
 */
static bool wait_for_change(struct copy_engine *engine, struct block_node *slow,
                            int64_t *deadline_ns)
{
    int64_t timeout_ns = engine->options.guest_timeout_ns;
    GError *error = NULL;

    if (*deadline_ns == 0) {
        *deadline_ns = timeout_ns ? clock_now_ns() + timeout_ns : INT64_MAX;
    }
    if (clock_cond_wait_until(&engine->changed, &engine->lock, *deadline_ns) != ETIMEDOUT) {
        return true;
    }
    block_error(&error, ETIMEDOUT,
                "The %s '%s' is too slow: a guest's write would have had to wait for more than "
                "%" PRId64 " s for its old data to be saved, so the job was given up instead",
                slow == engine->options.target ? "target" : "source", slow->name,
                timeout_ns / NS_PER_SECOND);
    copy_engine_fail(engine, error);
    return false;
}

/* Lock held. The largest piece a guest asks memory for: a quarter of it all. */
static uint64_t guest_piece(const struct copy_engine *engine)
{
    return MIN_OF(GUEST_PIECE, MAX_OF(align_down(engine->memory_limit / 4, COPY_UNIT), COPY_UNIT));
}

static bool memory_fits(const struct copy_engine *engine, uint64_t bytes)
{
    return engine->memory_used == 0 || engine->memory_used + bytes <= engine->memory_limit;
}

/*
 * Lock held. Memory for a piece; false if the engine is over. Guests are served in the order in
 * which they came, or small pieces would keep a large one waiting until it breaks the job.
 */
static bool reserve_memory(struct copy_engine *engine, uint64_t bytes, int64_t *deadline_ns)
{
    uint64_t ticket = engine->memory_tickets++;

    while (ticket != engine->memory_turn || !memory_fits(engine, bytes)) {
        engine->guests_waiting++;
        pthread_cond_broadcast(&engine->work); /* idle workers give their buffers up */
        bool go_on = !atomic_load(&engine->over) &&
                     wait_for_change(engine, engine->options.target, deadline_ns);
        engine->guests_waiting--;
        if (!go_on) {
            return false; /* for everybody: turns do not matter any more */
        }
    }
    engine->memory_turn++;
    engine->memory_used += bytes;
    if (engine->guests_waiting) {
        pthread_cond_broadcast(&engine->changed);
    }
    return true;
}

/*
 * Read the bytes of a run into memory and hand them to the workers. The lock is dropped while
 * reading. memory_used includes them already.
 */
static void save_data(struct copy_engine *engine, struct copy_read *read)
{
    uint64_t bytes = read->end - read->offset;
    void *buffer;
    int status;

    TAILQ_INSERT_TAIL(&engine->reads, read, entry);
    pthread_mutex_unlock(&engine->lock);
    buffer = block_node_alloc_buffer(engine->options.source, bytes);
    status =
        buffer ? block_node_pread(engine->options.source, buffer, read->offset, bytes, 0) : -ENOMEM;
    pthread_mutex_lock(&engine->lock);
    TAILQ_REMOVE(&engine->reads, read, entry);
    pthread_cond_broadcast(&engine->changed);
    if (status == 0) {
        copy_map_mark_saved(engine->map, read->offset, bytes);
        copy_engine_queue_task(engine, buffer, read->offset, bytes, bytes);
    } else {
        GError *error = NULL;

        free(buffer);
        copy_engine_release_memory(engine, bytes);
        block_error_errno(&error, -status,
                          "Could not save what a guest's write overwrites of node '%s' at offset "
                          "%" PRIu64,
                          engine->options.source->name, read->offset);
        copy_engine_fail(engine, error);
    }
}

/*
 * If a run is zeroes, saving it is no more than remembering so. Cuts the run to the extent.
 * The lock is dropped while asking; the run is in the list of reads meanwhile.
 */
static bool save_zeroes(struct copy_engine *engine, struct copy_read *read)
{
    struct block_extent extent;
    int status;

    TAILQ_INSERT_TAIL(&engine->reads, read, entry);
    pthread_mutex_unlock(&engine->lock);
    status = block_node_block_status_chain(engine->options.source, read->offset,
                                           read->end - read->offset, &extent, NULL);
    pthread_mutex_lock(&engine->lock);
    TAILQ_REMOVE(&engine->reads, read, entry);
    pthread_cond_broadcast(&engine->changed);
    if (status < 0 || !(extent.flags & BLOCK_STATUS_ZERO)) {
        return false;
    }
    uint64_t end = read->offset + extent.bytes;
    if (end < read->end) {
        end = align_down(end, COPY_UNIT);
    }
    if (end <= read->offset) {
        return false;
    }
    copy_map_mark_saved(engine->map, read->offset, end - read->offset);
    copy_engine_queue_task(engine, NULL, read->offset, end - read->offset, 0);
    return true;
}

/* One step towards a range being saved: wait for somebody else's read, or save a run. Locked. */
static void save_some(struct copy_engine *engine, uint64_t offset, uint64_t bytes,
                      int64_t *deadline_ns)
{
    struct copy_read *other = copy_engine_overlapping_read(engine, offset, offset + bytes);
    struct copy_read read = {.offset = offset, .end = offset + bytes};

    if (other && other->offset <= offset) {
        wait_for_change(engine, engine->options.source, deadline_ns);
        return;
    }
    if (other) {
        read.end = other->offset;
    }
    if (read.end - read.offset > ASK_STATUS && save_zeroes(engine, &read)) {
        return;
    }
    read.end = MIN_OF(read.end, offset + guest_piece(engine));
    if (!reserve_memory(engine, read.end - read.offset, deadline_ns)) {
        return;
    }
    /* Waiting for memory dropped the lock: is it still ours to save? */
    uint64_t run_offset, run_bytes;
    if (copy_map_next_unsaved(engine->map, read.offset, read.end, read.end - read.offset,
                              &run_offset, &run_bytes) &&
        run_offset == read.offset && run_bytes == read.end - read.offset &&
        !copy_engine_overlapping_read(engine, read.offset, read.end)) {
        save_data(engine, &read);
    } else {
        copy_engine_release_memory(engine, read.end - read.offset);
    }
}

/* Until nothing of the range is on its way to the target, or the engine is over. Locked. */
static void await_target(struct copy_engine *engine, uint64_t start, uint64_t end,
                         int64_t *deadline_ns)
{
    while (!atomic_load(&engine->over) && copy_engine_task_overlaps(engine, start, end) &&
           wait_for_change(engine, engine->options.target, deadline_ns)) {
    }
}

int copy_guest_before_write(struct write_notifier *notifier, enum block_operation operation,
                            uint64_t offset, uint64_t bytes)
{
    struct copy_engine *engine =
        (struct copy_engine *)((char *)notifier - offsetof(struct copy_engine, notifier));
    uint64_t start = align_down(offset, COPY_UNIT);
    uint64_t end = MIN_OF(align_up(offset + bytes, COPY_UNIT), engine->length);
    uint64_t run_offset, run_bytes;
    int64_t deadline_ns = 0;

    /* A disk that grew has new bytes at its end, which are none of the job's business. */
    if (start >= end || atomic_load_explicit(&engine->over, memory_order_acquire) ||
        (engine->options.copy_all && copy_map_is_saved(engine->map, start, end - start))) {
        return 0;
    }
    SCOPE_LOCK(&engine->lock);
    while (!atomic_load(&engine->over) &&
           copy_map_next_unsaved(engine->map, start, end, UINT64_MAX & ~(COPY_UNIT - 1),
                                 &run_offset, &run_bytes)) {
        save_some(engine, run_offset, run_bytes, &deadline_ns);
    }
    if (!engine->options.copy_all) {
        await_target(engine, start, end, &deadline_ns);
    }
    return 0;
}
