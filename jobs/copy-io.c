/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine's I/O: one run from the source to the target. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/error.h"
#include "block/request.h"
#include "block/zero.h"
#include "jobs/copy-engine-internal.h"

/* Zeroes in data are looked for in pieces of this size; smaller ones would break up writes. */
#define ZERO_PIECE COPY_CLUSTER

/* The largest zero area handled in one step; bounds how long the target works on one request. */
#define ZERO_RUN GIB

/* The pause before what failed is tried again under the policy `ignore`. */
#define RETRY_NS (200 * NS_PER_MS)

static int write_zeroes_as_data(struct block_node *target, uint64_t offset, uint64_t bytes)
{
    uint64_t piece = MIN_OF(bytes, ZERO_PIECE);
    void *buffer = block_node_alloc_buffer(target, piece);
    int status = buffer ? 0 : -ENOMEM;

    if (buffer) {
        memset(buffer, 0, piece);
    }
    for (; status == 0 && bytes; offset += piece, bytes -= piece) {
        piece = MIN_OF(bytes, piece);
        status = block_node_pwrite(target, buffer, offset, piece, 0);
    }
    free(buffer);
    return status;
}

/*
 * Zeroes that no backing file shines through. A format that has none yet may do nothing where its
 * image reads as zeroes anyway (qcow2 of version 2, and for a part of a cluster): there they are
 * written as data.
 */
static int write_explicit_zeroes(struct block_node *target, uint64_t offset, uint64_t bytes)
{
    int status = block_node_write_zeroes(target, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);

    if (!block_driver_takes_backing(block_node_below_filters(target)->driver)) {
        return status;
    }
    while (status == 0 && bytes) {
        struct block_extent extent;

        status = block_node_block_status(target, offset, bytes, &extent);
        if (status == 0 && !(extent.flags & BLOCK_STATUS_ALLOCATED)) {
            status = write_zeroes_as_data(target, offset, extent.bytes);
        }
        if (status == 0) {
            offset += extent.bytes;
            bytes -= extent.bytes;
        }
    }
    return status;
}

/* The start of a range that is left alone, or is written: what the target says of it. */
static bool is_zero_already(struct copy_engine *engine, uint64_t offset, uint64_t bytes,
                            struct block_extent *extent)
{
    struct block_node *target = engine->options.target;
    bool is_explicit = engine->options.explicit_zeroes;
    unsigned wanted = BLOCK_STATUS_ZERO | (is_explicit ? BLOCK_STATUS_ALLOCATED : 0);
    int status = is_explicit ? block_node_block_status(target, offset, bytes, extent)
                             : block_node_block_status_chain(target, offset, bytes, extent, NULL);

    if (status < 0) {
        *extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_DATA};
    }
    return (extent->flags & wanted) == wanted;
}

/*
 * Make a range of the target read as zeroes; parts that do already are left alone, so that a
 * thin target stays thin and a fresh one is not written at all.
 */
static int write_zeroes(struct copy_engine *engine, uint64_t offset, uint64_t bytes)
{
    struct block_node *target = engine->options.target;
    struct copy_source *source = engine->source;
    int status = 0;

    if (source->operations->write_zeroes) {
        return source->operations->write_zeroes(source, target, offset, bytes);
    }
    if (engine->options.keep_allocated) {
        return block_node_write_zeroes(target, offset, bytes, 0);
    }
    for (struct block_extent extent; status == 0 && bytes;
         offset += extent.bytes, bytes -= extent.bytes) {
        if (is_zero_already(engine, offset, bytes, &extent)) {
            continue;
        }
        status =
            engine->options.explicit_zeroes
                ? write_explicit_zeroes(target, offset, extent.bytes)
                : block_node_write_zeroes(target, offset, extent.bytes, BLOCK_REQUEST_MAY_UNMAP);
    }
    return status;
}

/* Whole clusters of the target compressed; what is around them, and its last one, as it is. */
static int write_compressed(struct copy_engine *engine, const char *buffer, uint64_t offset,
                            uint64_t bytes)
{
    struct block_node *target = engine->options.target;
    uint64_t cluster = MAX_OF(block_node_below_filters(target)->limits.cluster_size, 1u);
    uint64_t start = MIN_OF(align_up(offset, cluster), offset + bytes);
    uint64_t end = MAX_OF(align_down(offset + bytes, cluster), start);
    int status = block_node_pwrite(target, buffer, offset, start - offset, 0);

    if (status == 0) {
        status =
            block_node_pwrite_compressed(target, buffer + (start - offset), start, end - start);
    }
    return status == 0
               ? block_node_pwrite(target, buffer + (end - offset), end, offset + bytes - end, 0)
               : status;
}

static int write_plain(struct copy_engine *engine, const char *buffer, uint64_t offset,
                       uint64_t bytes)
{
    struct copy_source *source = engine->source;

    if (source->operations->write) {
        return source->operations->write(source, engine->options.target, buffer, offset, bytes);
    }
    return engine->options.compress
               ? write_compressed(engine, buffer, offset, bytes)
               : block_node_pwrite(engine->options.target, buffer, offset, bytes, 0);
}

static int write_data(struct copy_engine *engine, const char *buffer, uint64_t offset,
                      uint64_t bytes)
{
    while (bytes) {
        bool is_zero;
        uint64_t run = buffer_zero_run(buffer, bytes, ZERO_PIECE, &is_zero);
        int status =
            is_zero ? write_zeroes(engine, offset, run) : write_plain(engine, buffer, offset, run);

        if (status < 0) {
            return status;
        }
        buffer += run;
        offset += run;
        bytes -= run;
    }
    return 0;
}

static void ignore(struct copy_engine *engine, const struct copy_run *run, int error_number)
{
    struct copy_source *source = engine->source;

    if (source->operations->ignore) {
        source->operations->ignore(source, run->offset, run->end - run->offset, error_number);
        return;
    }
    SCOPE_LOCK(&engine->lock);
    engine->retry_after_ns = clock_now_ns() + RETRY_NS;
}

static GError *describe_error(struct copy_engine *engine, bool is_read, uint64_t offset,
                              int error_number)
{
    const struct copy_engine_options *options = &engine->options;
    const struct block_node *node = is_read ? options->source_node : options->target;
    GError *error = NULL;

    block_error_errno(&error, error_number, "Could not %s node '%s' at offset %" PRIu64,
                      is_read                  ? "read source"
                      : options->target_action ? options->target_action
                                               : "write target",
                      node->name, offset);
    return error;
}

/*
 * An I/O of the job failed: ask the job what to do. What failed is still to be copied, so all
 * there is to do is to end with the error, which is taken over, or to hold the workers for a while.
 * Lock not held.
 */
static void follow_policy(struct copy_engine *engine, bool is_read, const struct copy_run *run,
                          int error_number, GError *error)
{
    const struct copy_engine_options *options = &engine->options;

    switch (job_io_error(engine->job, is_read ? options->on_source_error : options->on_target_error,
                         is_read, error_number)) {
    case BLOCK_ERROR_POLICY_STOP:
        pthread_mutex_lock(&engine->lock);
        engine->is_held = true;
        pthread_cond_broadcast(&engine->changed); /* who waits to enter had better not */
        pthread_mutex_unlock(&engine->lock);
        job_kick(engine->job);
        break;
    case BLOCK_ERROR_POLICY_IGNORE:
        ignore(engine, run, error_number);
        break;
    default:
        copy_engine_fail(engine, STEAL(error));
    }
    g_clear_error(&error);
}

/* Nothing is begun until the source has seen to it, or has not. */
static bool is_awaited(struct copy_engine *engine, int error_number)
{
    struct copy_source *source = engine->source;

    if (!source->operations->target_failed ||
        !source->operations->target_failed(source, error_number)) {
        return false;
    }
    pthread_mutex_lock(&engine->lock);
    engine->retry_after_ns = clock_now_ns() + RETRY_NS;
    pthread_cond_broadcast(&engine->changed); /* who waits to enter had better not */
    pthread_mutex_unlock(&engine->lock);
    job_kick(engine->job);
    return true;
}

static void handle_error(struct copy_engine *engine, bool is_read, const struct copy_run *run,
                         uint64_t offset, int error_number)
{
    if (atomic_load(&engine->over)) {
        return; /* cancelled, or failed already: nobody wants to hear of it */
    }
    if (is_read || !is_awaited(engine, error_number)) {
        follow_policy(engine, is_read, run, error_number,
                      describe_error(engine, is_read, offset, error_number));
    }
}

static void finish(struct copy_engine *engine, struct copy_run *run, bool is_copied)
{
    uint64_t bytes = run->end - run->offset;

    engine->source->operations->done(engine->source, run->offset, bytes, is_copied);
    if (is_copied) {
        job_progress_add(engine->job, bytes);
    }
}

/* Leave what follows end to a later run. */
static void cut(struct copy_engine *engine, struct copy_run *run, uint64_t end)
{
    if (end < run->end) {
        engine->source->operations->done(engine->source, end, run->end - end, false);
        SCOPE_LOCK(&engine->lock);
        run->end = end;
    }
}

static int ask(struct copy_engine *engine, uint64_t offset, uint64_t end,
               struct block_extent *extent)
{
    return engine->source->operations->block_status(engine->source, offset, end - offset, extent);
}

/*
 * Where the data that a run begins with ends: at zeroes that are worth a request of their own. A
 * disk that was written to at random is in pieces of a few KiB, which are copied as one.
 */
static uint64_t end_of_data(struct copy_engine *engine, const struct copy_run *run,
                            uint64_t buffer_bytes, const struct block_extent *first)
{
    uint64_t unit = engine->options.unit;
    uint64_t data_end = align_up(run->offset + first->bytes, unit);
    uint64_t most = MIN_OF(run->end, run->offset + MAX_OF(buffer_bytes, unit));
    struct block_extent next;

    if (first->flags & BLOCK_STATUS_ZERO || data_end >= most ||
        ask(engine, data_end, run->end, &next) < 0 || !(next.flags & BLOCK_STATUS_ZERO) ||
        next.bytes < MIN_OF(ZERO_PIECE, run->end - data_end)) {
        return most;
    }
    return data_end;
}

/*
 * What the source says of the start of a run: whether it is zeroes, and for how far. The run is
 * cut to that, in whole units.
 */
static bool look_at_source(struct copy_engine *engine, struct copy_run *run, uint64_t buffer_bytes)
{
    struct block_extent extent;
    uint64_t bytes = run->end - run->offset;

    if (ask(engine, run->offset, run->end, &extent) < 0) {
        return false; /* reading it will tell what is wrong */
    }
    bool is_zero = extent.flags & BLOCK_STATUS_ZERO && extent.bytes >= MIN_OF(bytes, ZERO_PIECE);
    uint64_t end = is_zero ? align_down(run->offset + extent.bytes, engine->options.unit)
                           : end_of_data(engine, run, buffer_bytes, &extent);
    if (is_zero && extent.bytes >= bytes) {
        end = run->end;
    } else if (end <= run->offset) { /* a unit that is zero only in part is data */
        is_zero = false;
        end = MIN_OF(run->end, run->offset + engine->options.unit);
    }
    cut(engine, run, end);
    return is_zero;
}

/* All of a run is zero: take in as much after it as is to be copied. True if that was something. */
static bool extend(struct copy_engine *engine, struct copy_run *run)
{
    SCOPE_LOCK(&engine->lock);
    uint64_t more = engine->source->operations->extend(engine->source, run->end, ZERO_RUN);

    run->end += more;
    return more > 0;
}

/* Bring what was read to the target, or see whether that holds it. As compare() returns. */
static int bring(struct copy_engine *engine, const void *data, uint64_t offset, uint64_t bytes)
{
    struct copy_source *source = engine->source;

    if (!source->operations->compare) {
        return write_data(engine, data, offset, bytes);
    }
    return source->operations->compare(source, engine->options.target, data,
                                       (char *)data + engine->options.max_chunk, offset, bytes);
}

/* The source says that a run is zero, and the target of its start, too: it is cut to that. */
static bool both_are_zero(struct copy_engine *engine, struct copy_run *run)
{
    uint64_t bytes = run->end - run->offset;
    struct block_extent extent;

    if (!is_zero_already(engine, run->offset, bytes, &extent)) {
        return false;
    }
    uint64_t end = extent.bytes < bytes
                       ? align_down(run->offset + extent.bytes, engine->options.unit)
                       : run->end;
    if (end <= run->offset) {
        return false;
    }
    cut(engine, run, end);
    return true;
}

/* As much as there is memory for, unless the target need not be read. */
static int compare_zeroes(struct copy_engine *engine, struct copy_run *run, void *buffer,
                          uint64_t buffer_bytes)
{
    if (both_are_zero(engine, run)) {
        return 0;
    }
    cut(engine, run, run->offset + MIN_OF(run->end - run->offset, buffer_bytes));
    memset(buffer, 0, run->end - run->offset);
    return bring(engine, buffer, run->offset, run->end - run->offset);
}

static void copy_zeroes(struct copy_engine *engine, struct copy_run *run, void *buffer,
                        uint64_t buffer_bytes)
{
    int status = engine->source->operations->compare
                     ? compare_zeroes(engine, run, buffer, buffer_bytes)
                     : write_zeroes(engine, run->offset, run->end - run->offset);

    finish(engine, run, status == 0);
    if (status < 0) {
        handle_error(engine, false, run, run->offset, -status);
    }
}

/* Let the kernel copy. False if it did not, and then the data has to go through memory. */
static bool offload(struct copy_engine *engine, const struct copy_run *run)
{
    if (!engine->options.use_copy_range || !atomic_load(&engine->offload_works)) {
        return false;
    }
    int status = engine->source->operations->copy_range(engine->source, engine->options.target,
                                                        run->offset, run->end - run->offset);
    if (status < 0 && status != -EAGAIN) {
        /* Whoever failed, source or target: the slow way finds out and says so. */
        atomic_store(&engine->offload_works, false);
    }
    return status == 0;
}

static void end_reading(struct copy_engine *engine, struct copy_run *run)
{
    SCOPE_LOCK(&engine->lock);

    run->is_reading = false;
    if (engine->source_drains) {
        pthread_cond_broadcast(&engine->changed);
    }
}

/* False if that was not all; what failed is dealt with then. */
static bool copy_piece(struct copy_engine *engine, struct copy_run *run, void *buffer,
                       uint64_t offset, uint64_t bytes)
{
    int status = engine->source->operations->pread(engine->source, buffer, offset, bytes);
    bool is_read = status < 0;

    if (offset + bytes == run->end || is_read) {
        end_reading(engine, run);
    }
    if (status == 0) {
        status = bring(engine, buffer, offset, bytes);
    }
    if (status != 0) {
        finish(engine, run, false);
    }
    if (status < 0) {
        handle_error(engine, is_read, run, offset, -status);
    }
    return status == 0;
}

static void copy_data(struct copy_engine *engine, struct copy_run *run, void *buffer,
                      uint64_t buffer_bytes)
{
    if (!offload(engine, run)) {
        for (uint64_t offset = run->offset, bytes; offset < run->end; offset += bytes) {
            bytes = MIN_OF(run->end - offset, buffer_bytes);
            if (atomic_load(&engine->over)) {
                finish(engine, run, false);
                return;
            }
            if (!copy_piece(engine, run, buffer, offset, bytes)) {
                return;
            }
        }
    }
    finish(engine, run, true);
}

void copy_io_run(struct copy_engine *engine, struct copy_run *run, void *buffer,
                 uint64_t buffer_bytes)
{
    uint64_t end = run->end;
    bool is_zero = look_at_source(engine, run, buffer_bytes);

    if (is_zero && run->end == end && extend(engine, run)) {
        /* Again, for what was taken in: it has been taken only now. */
        is_zero = look_at_source(engine, run, buffer_bytes);
    }
    if (is_zero) {
        end_reading(engine, run);
        copy_zeroes(engine, run, buffer, buffer_bytes);
    } else {
        copy_data(engine, run, buffer, buffer_bytes);
    }
}

int copy_engine_write(struct copy_engine *engine, const void *buffer, uint64_t offset,
                      uint64_t bytes)
{
    return buffer ? write_data(engine, buffer, offset, bytes) : write_zeroes(engine, offset, bytes);
}

void copy_engine_write_failed(struct copy_engine *engine, uint64_t offset, int error_number)
{
    const struct copy_run run = {.offset = offset, .end = offset};

    handle_error(engine, false, &run, offset, error_number);
}

void copy_engine_target_is_gone(struct copy_engine *engine, int error_number, GError *error)
{
    const struct copy_run run = {0};

    follow_policy(engine, false, &run, error_number, error);
}
