/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits of the layer that guests write to: mirrors into their own chain. */
#include <errno.h>

#include "block/align.h"
#include "block/error.h"
#include "jobs/chain-scan.h"
#include "jobs/chain-source.h"
#include "jobs/mirror-internal.h"

int mirror_commit_find(struct mirror *mirror, GError **error)
{
    return commit_chain_find(&mirror->chain, mirror->source_node, mirror->target, error);
}

int mirror_commit_hold(struct mirror *mirror, GError **error)
{
    int status = commit_chain_hold(&mirror->chain, mirror->job, error);

    if (status == 0 &&
        mirror_commit_length(mirror->source_node, mirror->target) != mirror->length) {
        status =
            block_error(error, EBUSY, "Node '%s' is just being resized", mirror->source_node->name);
    }
    return status;
}

uint64_t mirror_commit_length(struct block_node *source, struct block_node *base)
{
    return MAX_OF(block_node_length(source), block_node_length(base));
}

/*
 * What base holds behind the end of the disk the guest has not seen, and must not when it moves
 * there: it becomes zeroes.
 */
int mirror_commit_scan(struct mirror *mirror, GError **error)
{
    uint64_t end = block_node_length(mirror->source_node);

    job_set_phase(mirror->job, "scanning");
    copy_engine_set_effort(mirror->engine, COPY_EFFORT_STEADY); /* until it is ready */
    int status =
        chain_scan(mirror->job, mirror->source_node, mirror->target, 0, end, mirror->bitmap, error);
    if (status == 0 && end < mirror->length) {
        dirty_bitmap_set(mirror->bitmap, end, mirror->length - end);
    }
    return status;
}

/*
 * Main thread, drained. A base that only the chain has opened was opened as a backing file; the
 * guest's disk goes on as it was.
 */
void mirror_commit_pivot(struct mirror *mirror)
{
    const struct block_node *top = block_node_below_filters(mirror->source_node);
    struct block_node *base = mirror->target;

    if (!base->named) {
        base->options.discard_unmap = top->options.discard_unmap;
        base->options.detect_zeroes = top->options.detect_zeroes;
    }
    commit_chain_cut(&mirror->chain, mirror->engine);
}

int commit_start_active(const struct commit_options *options, GError **error)
{
    const struct mirror_options mirror_options = {
        .job_id = options->job_id,
        .source = options->top,
        .device = options->top == options->root ? options->device : NULL,
        .target = options->base,
        .sync = MIRROR_SYNC_COMMIT,
        .filter_node_name = options->filter_node_name,
        .buf_size = (int64_t)(COPY_DEFAULT_MAX_WORKERS * CHAIN_CHUNK),
        .speed = options->speed,
        .guest_latency = options->guest_latency,
        .on_source_error = options->on_error,
        .on_target_error = options->on_error,
        .job_flags = options->job_flags,
    };

    return mirror_start(&mirror_options, error);
}
