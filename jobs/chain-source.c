/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-source.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "block/request.h"

#define GRANULARITY_MIN (4 * KIB)
#define GRANULARITY_MAX (2 * MIB)

/* Bits for more granules than this take more than 64 MiB. */
#define GRANULES_MAX (UINT64_C(1) << 29)

static struct chain_source *source_of(struct copy_source *copy)
{
    return (struct chain_source *)copy;
}

uint64_t chain_source_granularity(const struct block_node *target)
{
    uint64_t cluster = target->limits.cluster_size;

    return cluster ? CLAMP(cluster, GRANULARITY_MIN, GRANULARITY_MAX)
                   : DIRTY_BITMAP_GRANULARITY_DEFAULT;
}

int chain_source_init(struct chain_source *source, const struct copy_source_operations *operations,
                      struct job *job, struct block_node *top, struct block_node *base,
                      uint64_t length, uint64_t granularity, GError **error)
{
    while (length / granularity > GRANULES_MAX && granularity < GRANULARITY_MAX) {
        granularity *= 2;
    }
    source->copy.operations = operations;
    source->job = job;
    source->top = top;
    source->base = base;
    source->length = length;
    source->bitmap = dirty_bitmap_new(NULL, length, granularity, error);
    source->list.bitmap = source->bitmap;
    return source->bitmap ? 0 : -ENOMEM;
}

void chain_source_clear(struct chain_source *source)
{
    dirty_bitmap_free(source->bitmap);
    source->bitmap = NULL;
}

struct copy_engine *chain_source_new_engine(struct chain_source *source, struct block_node *target,
                                            const struct copy_claims *claims,
                                            enum block_error_policy on_error,
                                            struct block_device *guest, GError **error)
{
    const struct copy_engine_options options = {
        .source = &source->copy,
        .length = source->length,
        .unit = dirty_bitmap_granularity(source->bitmap),
        .source_node = source->top,
        .target = target,
        .target_is_in_use = true,
        .claims = claims,
        .max_chunk = CHAIN_CHUNK,
        .on_source_error = on_error,
        .on_target_error = on_error,
        .guest = guest,
    };

    source->target = target;
    return copy_engine_new(source->job, &options, error);
}

/* Progress is told of the whole, of which most may have nothing to be copied. */
static void begin(struct chain_source *source)
{
    job_progress_set_total(source->job, source->length);
    job_progress_add(source->job, source->length - work_list_left(&source->list));
    copy_engine_set_effort(source->copy.engine, COPY_EFFORT_STEADY);
    job_set_phase(source->job, "copying");
}

int chain_source_run(struct chain_source *source, GError **error)
{
    begin(source);
    int status = copy_engine_run(source->copy.engine, error);
    int ignored = atomic_load(&source->ignored);

    if (status == 0 && ignored) {
        status = block_error_errno(error, ignored,
                                   "Not all could be copied, so the backing file of node '%s' "
                                   "stays",
                                   source->target->name);
    }
    if (status == 0) {
        job_set_phase(source->job, "flushing");
        status = copy_engine_flush(source->copy.engine, INT64_MAX, error);
    }
    return status;
}

/* ---- For the engine ------------------------------------------------------------------------- */

bool chain_source_next(struct copy_source *copy, bool urgent_only, uint64_t max_bytes,
                       uint64_t *offset, uint64_t *bytes)
{
    struct work_list *list = &source_of(copy)->list;

    if (urgent_only) {
        return false;
    }
    if (work_list_take(list, copy->engine, max_bytes, offset, bytes)) {
        return true;
    }
    list->cursor = 0; /* what failed is tried again */
    return work_list_take(list, copy->engine, max_bytes, offset, bytes);
}

uint64_t chain_source_extend(struct copy_source *copy, uint64_t end, uint64_t max_bytes)
{
    return work_list_extend(&source_of(copy)->list, copy->engine, end, max_bytes);
}

int chain_padded_status(struct block_node *top, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    uint64_t there = block_node_length(top);

    if (offset >= there) {
        *extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_ZERO};
        return 0;
    }
    return block_node_block_status_chain(top, offset, MIN_OF(bytes, there - offset), extent, NULL);
}

int chain_padded_pread(struct block_node *top, void *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t there = MAX_OF(block_node_length(top), offset) - offset;
    uint64_t known = MIN_OF(bytes, there);

    memset((char *)buffer + known, 0, bytes - known);
    return known ? block_node_pread(top, buffer, offset, known, 0) : 0;
}

int chain_source_block_status(struct copy_source *copy, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    return chain_padded_status(source_of(copy)->top, offset, bytes, extent);
}

int chain_source_pread(struct copy_source *copy, void *buffer, uint64_t offset, uint64_t bytes)
{
    return chain_padded_pread(source_of(copy)->top, buffer, offset, bytes);
}

void chain_source_done(struct copy_source *copy, uint64_t offset, uint64_t bytes, bool is_copied)
{
    work_list_done(&source_of(copy)->list, offset, bytes, is_copied);
}

bool chain_source_is_finished(struct copy_source *copy, bool is_idle)
{
    return is_idle && work_list_left(&source_of(copy)->list) == 0;
}

const struct copy_source_operations chain_source_operations = {
    .next = chain_source_next,
    .extend = chain_source_extend,
    .block_status = chain_source_block_status,
    .pread = chain_source_pread,
    .done = chain_source_done,
    .is_finished = chain_source_is_finished,
};
