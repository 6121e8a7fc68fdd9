/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine's I/O: from the source into memory, from memory to the target. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/zero.h"
#include "jobs/copy-engine-internal.h"

/* Zeroes in data are looked for in pieces of this size; smaller ones would break up writes. */
#define ZERO_PIECE COPY_CLUSTER

/* The largest zero area handled in one step; bounds how long the target works on one request. */
#define ZERO_RUN GIB

/* The pause before what failed is tried again under the policy `ignore`. */
#define RETRY_NS (200 * NS_PER_MS)

/*
 * Make a range of the target read as zeroes; parts that do already are left alone, so that a
 * thin target stays thin and a fresh one is not written at all.
 */
static int write_zeroes(struct copy_engine *engine, uint64_t offset, uint64_t bytes)
{
    struct block_node *target = engine->options.target;

    while (bytes) {
        struct block_extent extent;
        int status = block_node_block_status_chain(target, offset, bytes, &extent, NULL);

        if (status < 0) {
            extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
        }
        status = 0;
        if (!(extent.flags & BLOCK_STATUS_ZERO)) {
            status = block_node_write_zeroes(target, offset, extent.bytes, BLOCK_REQUEST_MAY_UNMAP);
        }
        if (status < 0) {
            return status;
        }
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return 0;
}

static int write_data(struct copy_engine *engine, const char *buffer, uint64_t offset,
                      uint64_t bytes)
{
    while (bytes) {
        bool is_zero;
        uint64_t run = buffer_zero_run(buffer, bytes, ZERO_PIECE, &is_zero);
        int status = is_zero ? write_zeroes(engine, offset, run)
                             : block_node_pwrite(engine->options.target, buffer, offset, run, 0);

        if (status < 0) {
            return status;
        }
        buffer += run;
        offset += run;
        bytes -= run;
    }
    return 0;
}

/*
 * An I/O of the job failed: ask the job what to do. True if it is to be tried again, later or
 * when the job is resumed; else the engine is over. Lock not held.
 */
static bool try_again(struct copy_engine *engine, bool is_read, uint64_t offset, int error_number)
{
    const struct copy_engine_options *options = &engine->options;

    if (atomic_load(&engine->over)) {
        return false; /* cancelled, or failed already: nobody wants to hear of it */
    }
    enum block_error_policy action =
        job_io_error(engine->job, is_read ? options->on_source_error : options->on_target_error,
                     is_read, error_number);
    SCOPE_LOCK(&engine->lock);

    switch (action) {
    case BLOCK_ERROR_POLICY_STOP:
        engine->tasks_held = true;
        job_kick(engine->job);
        return true;
    case BLOCK_ERROR_POLICY_IGNORE:
        engine->retry_after_ns = clock_now_ns() + RETRY_NS;
        return true;
    default: {
        GError *error = NULL;

        block_error_errno(&error, error_number, "Could not %s node '%s' at offset %" PRIu64,
                          is_read ? "read source" : "write target",
                          is_read ? options->source->name : options->target->name, offset);
        copy_engine_fail(engine, error);
        return false;
    }
    }
}

/* Take a read out of the list; if saved is not 0, so many bytes of it are safe now. */
static void end_read(struct copy_engine *engine, struct copy_read *read, uint64_t saved)
{
    SCOPE_LOCK(&engine->lock);

    if (saved) {
        copy_map_mark_saved(engine->map, read->offset, saved);
    }
    TAILQ_REMOVE(&engine->reads, read, entry);
    pthread_cond_broadcast(&engine->changed);
}

/*
 * What the source says of the start of a read: whether it is zeroes, and for how far. The read
 * is cut to that, in whole units, and to max_bytes for data.
 */
static bool look_at_source(struct copy_engine *engine, struct copy_read *read, uint64_t max_bytes)
{
    struct block_extent extent;
    uint64_t bytes = read->end - read->offset;
    int status =
        block_node_block_status_chain(engine->options.source, read->offset, bytes, &extent, NULL);
    bool is_zero = status == 0 && (extent.flags & BLOCK_STATUS_ZERO);

    if (status < 0) {
        extent.bytes = bytes; /* reading it will tell what is wrong */
    }
    if (extent.bytes < bytes) {
        /* A unit that is zero only in part is data. */
        bytes = is_zero ? align_down(extent.bytes, COPY_UNIT) : align_up(extent.bytes, COPY_UNIT);
        if (bytes == 0) {
            is_zero = false;
            bytes = COPY_UNIT;
        }
    }
    if (!is_zero) {
        bytes = MIN_OF(bytes, max_bytes);
    }
    SCOPE_LOCK(&engine->lock);
    read->end = MIN_OF(read->end, read->offset + bytes);
    pthread_cond_broadcast(&engine->changed);
    return is_zero;
}

/* All of a read is zero: take in as much after it as is unsaved and nobody reads. */
static void extend_read(struct copy_engine *engine, struct copy_read *read)
{
    SCOPE_LOCK(&engine->lock);
    uint64_t offset, bytes;

    if (!copy_map_next_unsaved(engine->map, read->offset, engine->length, ZERO_RUN, &offset,
                               &bytes)) {
        return;
    }
    uint64_t end = offset + bytes;
    struct copy_read *other;
    TAILQ_FOREACH (other, &engine->reads, entry) {
        if (other->offset >= read->end && other->offset < end) {
            end = other->offset;
        }
    }
    read->end = MAX_OF(read->end, end);
}

static void finish_zero_run(struct copy_engine *engine, struct copy_read *read)
{
    uint64_t offset = read->offset;
    uint64_t bytes = read->end - offset;
    int status;

    end_read(engine, read, bytes);
    status = write_zeroes(engine, offset, bytes);
    if (status == 0) {
        job_progress_add(engine->job, bytes);
    } else if (try_again(engine, false, offset, -status)) {
        SCOPE_LOCK(&engine->lock);
        copy_engine_queue_task(engine, NULL, offset, bytes, 0);
    }
}

/* Let the kernel copy. False if it cannot, and then the data has to go through memory. */
static bool offload(struct copy_engine *engine, struct copy_read *read)
{
    uint64_t bytes = read->end - read->offset;

    if (!engine->options.use_copy_range || !atomic_load(&engine->offload_works)) {
        return false;
    }
    if (block_node_copy_range(engine->options.source, read->offset, engine->options.target,
                              read->offset, bytes) < 0) {
        /* Whoever failed, source or target: the slow way finds out and says so. */
        atomic_store(&engine->offload_works, false);
        return false;
    }
    end_read(engine, read, bytes);
    job_progress_add(engine->job, bytes);
    return true;
}

static void finish_data_run(struct copy_engine *engine, struct copy_read *read, void **buffer)
{
    uint64_t offset = read->offset;
    uint64_t bytes = read->end - offset;
    int status;

    if (offload(engine, read)) {
        return;
    }
    status = block_node_pread(engine->options.source, *buffer, offset, bytes, 0);
    end_read(engine, read, status == 0 ? bytes : 0);
    if (status < 0) {
        try_again(engine, true, offset, -status);
        return;
    }
    status = write_data(engine, *buffer, offset, bytes);
    if (status == 0) {
        job_progress_add(engine->job, bytes);
    } else if (try_again(engine, false, offset, -status)) {
        /* The source may have changed since: what was read is what must be written. */
        SCOPE_LOCK(&engine->lock);

        copy_engine_queue_task(engine, STEAL(*buffer), offset, bytes, engine->options.max_chunk);
    }
}

void copy_io_run(struct copy_engine *engine, struct copy_read *read, void **buffer,
                 uint64_t max_bytes)
{
    uint64_t end = read->end;
    bool is_zero = look_at_source(engine, read, max_bytes);

    if (is_zero && read->end == end) {
        extend_read(engine, read);
        /* Again, for what was taken in: a guest may have written there in between. */
        is_zero = look_at_source(engine, read, max_bytes);
    }
    if (is_zero) {
        finish_zero_run(engine, read);
    } else {
        finish_data_run(engine, read, buffer);
    }
}

void copy_io_task(struct copy_engine *engine, struct copy_task *task)
{
    int status = task->buffer ? write_data(engine, task->buffer, task->offset, task->bytes)
                              : write_zeroes(engine, task->offset, task->bytes);

    bool again = status < 0 && try_again(engine, false, task->offset, -status);

    if (status == 0) {
        job_progress_add(engine->job, task->bytes);
    }
    pthread_mutex_lock(&engine->lock);
    TAILQ_REMOVE(&engine->writing, task, entry);
    if (again) {
        copy_engine_queue_task(engine, STEAL(task->buffer), task->offset, task->bytes,
                               task->memory);
    } else {
        copy_engine_release_memory(engine, task->memory);
    }
    pthread_mutex_unlock(&engine->lock);
    free(task->buffer);
    g_free(task);
}
