/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/stream.h"

#include <errno.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "jobs/chain-filter.h"
#include "jobs/chain-header.h"
#include "jobs/chain-hold.h"
#include "jobs/chain-scan.h"
#include "jobs/chain-source.h"
#include "jobs/copy-pace.h"

struct stream {
    struct chain_source source; /* first: it is cast back */
    struct job *job;
    struct block_node *node; /* the layer that is filled; a reference, as are those that follow */
    struct block_node *base; /* or NULL */
    struct chain_filter filter;
    struct chain_hold hold;     /* also of the node, if that was made writable */
    struct copy_engine *engine; /* NULL: there is nothing between the two */
    char *backing_file;         /* what the user wants; or NULL */
    bool mask_protocol;
    struct chain_header header; /* of the image, while it is being changed */
    struct block_drain *drain;  /* guests stand still until the graph is changed */
};

/* What others may do with the layer that is filled: all but change its place, length and chain. */
#define NODE_SHARED                                                                                \
    (BLOCK_PERM_ALL & ~(unsigned)(BLOCK_PERM_RESIZE | BLOCK_PERM_GRAPH | BLOCK_PERM_BACKING))

/* What others may do with the layers that are read: leave them what they hold and where they are.
 */
#define BETWEEN_SHARED (BLOCK_PERM_READ | BLOCK_PERM_GRAPH | BLOCK_PERM_WRITE_UNCHANGED)

/* ---- What is copied, and how it is written --------------------------------------------------- */

static int write_data(struct copy_source *copy, struct block_node *target, const void *buffer,
                      uint64_t offset, uint64_t bytes)
{
    return block_node_populate(target, buffer, offset, bytes);
}

/* Whether an extent will read as zeroes without being written: what is left below decides then. */
static int ask_base(struct block_node *base, uint64_t offset, uint64_t bytes,
                    struct block_extent *extent)
{
    uint64_t length = base ? block_node_length(base) : 0;

    if (offset >= length) {
        *extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_ZERO};
        return 0;
    }
    return block_node_block_status_chain(base, offset, MIN_OF(bytes, length - offset), extent,
                                         NULL);
}

static int write_zeroes(struct copy_source *copy, struct block_node *target, uint64_t offset,
                        uint64_t bytes)
{
    const struct chain_source *source = (struct chain_source *)copy;

    while (bytes) {
        struct block_extent extent;
        int status = ask_base(source->base, offset, bytes, &extent);

        if (status < 0) {
            extent = (struct block_extent){.bytes = bytes};
        }
        status = extent.flags & BLOCK_STATUS_ZERO
                     ? 0
                     : block_node_populate(target, NULL, offset, extent.bytes);
        if (status < 0) {
            return status;
        }
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
    return 0;
}

/* The policy `ignore`: it is left out, and the job fails at its end. */
static void ignore(struct copy_source *copy, uint64_t offset, uint64_t bytes, int error_number)
{
    struct chain_source *source = (struct chain_source *)copy;
    int none = 0;

    atomic_compare_exchange_strong(&source->ignored, &none, error_number);
    dirty_bitmap_reset(source->bitmap, offset, bytes);
}

static const struct copy_source_operations operations = {
    .next = chain_source_next,
    .extend = chain_source_extend,
    .block_status = chain_source_block_status,
    .pread = chain_source_pread,
    .write = write_data,
    .write_zeroes = write_zeroes,
    .ignore = ignore,
    .done = chain_source_done,
    .is_finished = chain_source_is_finished,
};

/* What the layer has itself need not be read. Whole granules only: others are copied in part. */
static void leave_own(void *data, uint64_t offset, const struct block_extent *extent)
{
    struct chain_source *source = data;
    uint64_t granularity = dirty_bitmap_granularity(source->bitmap);
    uint64_t end = offset + extent->bytes;
    uint64_t first = align_up(offset, granularity);
    uint64_t last = end == source->length ? end : align_down(end, granularity);

    /* An extent of which it is not known is neither DATA nor ZERO. */
    if (extent->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO) && first < last) {
        dirty_bitmap_reset(source->bitmap, first, last - first);
    }
}

static int find_work(struct stream *stream, GError **error)
{
    struct chain_source *source = &stream->source;

    job_set_phase(stream->job, "scanning");
    int status = chain_scan(stream->job, source->top, source->base, 0, source->length,
                            source->bitmap, error);
    return status == 0 ? chain_scan_each(stream->job, stream->node, source->top, 0, source->length,
                                         leave_own, source, error)
                       : status;
}

/* ---- The job's functions --------------------------------------------------------------------- */

static int run_stream(struct job *job, GError **error)
{
    struct stream *stream = job_state(job);

    if (!stream->engine) {
        return 0;
    }
    int status = find_work(stream, error);
    return status == 0 ? chain_source_run(&stream->source, error) : status;
}

static void wake_stream(struct job *job)
{
    struct stream *stream = job_state(job);

    if (stream->engine) {
        copy_engine_wake(stream->engine);
    }
}

/*
 * Guests' own writes, too: one that was not copied because the guest had written there must not,
 * after a loss of power, read as what is below the layers that go. A write that was under way at
 * the flush in run() may not be in that.
 */
static int flush(struct stream *stream, GError **error)
{
    int status = block_node_flush(stream->node);

    return status < 0
               ? block_error_errno(error, -status, "Could not flush node '%s'", stream->node->name)
               : 0;
}

/*
 * All that can fail of the end: the image says what its backing file is from now on. Much to flush
 * is flushed before guests stand still.
 */
static int prepare_stream(struct job *job, GError **error)
{
    struct stream *stream = job_state(job);
    int status = flush(stream, error);

    if (status < 0) {
        return status;
    }
    job_set_phase(job, "changing the chain");
    stream->drain = block_drain_begin(&stream->node, 1, BLOCK_PERM_ALL);
    status = chain_check_no_snapshots(stream->node, error);
    if (status == 0) {
        status = flush(stream, error);
    }
    return status == 0 ? chain_header_change(&stream->header, stream->node, stream->base,
                                             stream->backing_file, stream->mask_protocol, error)
                       : status;
}

static struct block_claim *own_claim(struct stream *stream)
{
    return stream->engine ? copy_engine_target_claim(stream->engine)
                          : chain_hold_find(&stream->hold, stream->node);
}

/* Main thread; guests stand still. It only takes a link from a node that the job holds. */
static void shorten_chain(void *data)
{
    struct stream *stream = data;
    g_autoptr(GError) error = NULL;

    if (block_node_set_backing(stream->node, stream->base, own_claim(stream), &error) < 0) {
        g_critical("Node '%s' keeps its backing file, though its image says otherwise: %s",
                   stream->node->name, error->message);
    }
}

static void commit_stream(struct job *job)
{
    struct stream *stream = job_state(job);

    main_loop_call_wait(shorten_chain, stream);
    block_drain_end(STEAL(stream->drain));
}

static void abort_stream(struct job *job)
{
    struct stream *stream = job_state(job);

    if (stream->drain) {
        chain_header_restore(&stream->header);
        block_drain_end(STEAL(stream->drain));
    }
}

static void clean_stream(struct job *job)
{
    struct stream *stream = job_state(job);

    chain_filter_remove(&stream->filter);
    if (stream->engine) {
        copy_engine_free(STEAL(stream->engine));
    }
    chain_hold_release(&stream->hold);
    chain_header_clear(&stream->header);
    chain_source_clear(&stream->source);
    block_node_unref(STEAL(stream->base));
    block_node_unref(STEAL(stream->node));
}

static void free_stream(struct job *job)
{
    struct stream *stream = job_state(job);

    g_free(stream->backing_file);
}

static const struct job_driver stream_driver = {
    .type = "stream",
    .is_block_job = true,
    .instance_size = sizeof(struct stream),
    .run = run_stream,
    .wake = wake_stream,
    .prepare = prepare_stream,
    .commit = commit_stream,
    .abort = abort_stream,
    .clean = clean_stream,
    .free = free_stream,
};

/* ---- Setting it up --------------------------------------------------------------------------- */

static int new_engine(struct stream *stream, const struct stream_options *options, GError **error)
{
    AUTO(block_device) guest = copy_pace_find_guest(stream->node);
    const struct copy_claims claims = {
        .source_perms = BLOCK_PERM_READ | BLOCK_PERM_BACKING,
        .source_shared = BETWEEN_SHARED,
        .target_perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_BACKING,
        .target_shared = NODE_SHARED,
    };

    stream->engine = chain_source_new_engine(&stream->source, stream->node, &claims,
                                             options->on_error, guest, error);
    return stream->engine ? 0 : -EBUSY;
}

/* The chain is held as it was found: nodes[0] is the layer that is filled. */
static int hold_chain(struct stream *stream, GPtrArray *nodes, const struct stream_options *options,
                      GError **error)
{
    int status = 0;

    if (nodes->len == 1) {
        return chain_hold_add(&stream->hold, stream->job, stream->node,
                              BLOCK_PERM_READ | BLOCK_PERM_BACKING, NODE_SHARED, NULL, error);
    }
    status = chain_source_init(&stream->source, &operations, stream->job, nodes->pdata[1],
                               stream->base, block_node_length(stream->node),
                               chain_source_granularity(stream->node), error);
    if (status == 0) {
        status = new_engine(stream, options, error);
    }
    for (guint i = 2; status == 0 && i < nodes->len; i++) {
        status = chain_hold_add(&stream->hold, stream->job, nodes->pdata[i],
                                BLOCK_PERM_READ | BLOCK_PERM_BACKING, BETWEEN_SHARED, NULL, error);
    }
    return status;
}

/* While nothing was held yet somebody may have changed it. */
static bool is_unchanged(const struct stream *stream, const GPtrArray *before)
{
    g_autoptr(GPtrArray) now = chain_nodes(stream->node, stream->base, NULL);

    return chain_nodes_are_same(before, now) &&
           (!stream->engine || block_node_length(stream->node) == stream->source.length);
}

static int insert_filter(struct stream *stream, const GPtrArray *nodes,
                         const struct stream_options *options, GError **error)
{
    const struct chain_filter_options filter = {
        .name = options->filter_node_name,
        .job = stream->job,
        .bottom = nodes->len > 1 ? nodes->pdata[nodes->len - 1] : NULL,
    };
    int status = chain_filter_insert(&stream->filter, &filter, stream->node, error);

    if (status < 0) {
        g_prefix_error(error, "Could not create node: ");
    }
    return status;
}

static int set_up(struct stream *stream, const struct stream_options *options, GError **error)
{
    g_autoptr(GPtrArray) nodes = chain_nodes(stream->node, stream->base, error);

    if (!nodes || job_set_initial_speed(stream->job, options->speed, error) < 0 ||
        job_set_initial_guest_latency(stream->job, options->guest_latency, error) < 0) {
        return -EINVAL;
    }
    if (!nodes->len) {
        return block_error(error, EINVAL, "Node '%s' is not a backing image of '%s'",
                           stream->base->name, stream->node->name);
    }
    if (chain_header_check(stream->base, stream->backing_file, error) < 0) {
        return -ENOTSUP;
    }
    if (nodes->len > 1 && !stream->node->driver->populate) {
        return block_error(error, ENOTSUP,
                           "Driver '%s' of node '%s' cannot take in what its backing file holds",
                           stream->node->driver->name, stream->node->name);
    }
    int status = hold_chain(stream, nodes, options, error);
    if (status == 0 && !is_unchanged(stream, nodes)) {
        status = block_error(error, EAGAIN, "The chain of node '%s' was just changed; try again",
                             stream->node->name);
    }
    if (status == 0) {
        status = chain_check_no_snapshots(stream->node, error);
    }
    if (status == 0) {
        status = chain_hold_make_writable(&stream->hold, stream->node, error);
    }
    return status == 0 ? insert_filter(stream, nodes, options, error) : status;
}

static int check_options(const struct stream_options *options, GError **error)
{
    if (options->backing_file && !options->base) {
        return block_error(error, EINVAL, "backing file specified, but streaming the entire chain");
    }
    return 0;
}

static void init(struct stream *stream, struct job *job, const struct stream_options *options)
{
    stream->job = job;
    stream->node = block_layer_of(options->node);
    stream->base = options->base ? block_node_ref(options->base) : NULL;
    stream->backing_file = g_strdup(options->backing_file);
    stream->mask_protocol = options->mask_protocol;
}

int stream_start(const struct stream_options *options, GError **error)
{
    AUTO(job) job = NULL;

    if (check_options(options, error) < 0) {
        return -EINVAL;
    }
    job = job_new(&stream_driver, options->job_id, options->job_flags, NULL, error);
    if (!job) {
        return -EINVAL;
    }
    GUEST_WAITS_SCOPE(job_guest_waits(job));
    init(job_state(job), job, options);
    int status = set_up(job_state(job), options, error);
    if (status == 0) {
        status = job_start(job, error);
    }
    if (status < 0) {
        job_early_fail(job);
    }
    return status;
}
