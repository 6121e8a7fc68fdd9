/* SPDX-License-Identifier: BSD-3-Clause */
/* Commits of layers that guests do not write to. */
#include "jobs/commit.h"

#include <errno.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "formats/job-filter.h"
#include "jobs/chain-filter.h"
#include "jobs/chain-header.h"
#include "jobs/chain-scan.h"
#include "jobs/chain-source.h"
#include "jobs/commit-internal.h"
#include "jobs/copy-pace.h"
#include "jobs/mirror.h"

struct commit {
    struct chain_source source; /* first: it is cast back */
    struct job *job;
    struct block_node *top;
    struct commit_chain chain;
    struct chain_filter filter;
    struct chain_hold overlays; /* the layers whose backing file top is */
    struct copy_engine *engine;
    char *backing_file; /* what the user wants; or NULL */
    bool mask_protocol;
    GArray *headers;           /* of struct chain_header, of the overlays, while they are changed */
    struct block_drain *drain; /* what is above top stands still until the graph is changed */
};

/* ---- The layers above ------------------------------------------------------------------------ */

/* References. */
static GPtrArray *find_overlays(struct block_node *node)
{
    GPtrArray *overlays = g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    SCOPE_LOCK(&block_graph_lock);

    block_chain_find_overlays_locked(node, overlays);
    for (guint i = 0; i < overlays->len; i++) {
        ((struct block_node *)overlays->pdata[i])->references++;
    }
    return overlays;
}

/* Nobody else may change what is below them, or commit into them. */
static int hold_overlays(struct commit *commit, GError **error)
{
    g_autoptr(GPtrArray) overlays = find_overlays(commit->top);
    int status = 0;

    for (guint i = 0; status == 0 && i < overlays->len; i++) {
        status =
            chain_hold_add(&commit->overlays, commit->job, overlays->pdata[i], BLOCK_PERM_BACKING,
                           BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_BACKING, NULL, error);
    }
    return status;
}

/* ---- Copying --------------------------------------------------------------------------------- */

/*
 * What base holds behind the end of top was not to be seen from above, and must not be when top is
 * gone: it becomes zeroes.
 */
static int find_work(struct commit *commit, GError **error)
{
    struct chain_source *source = &commit->source;
    uint64_t end = block_node_length(commit->top);

    job_set_phase(commit->job, "scanning");
    int status = chain_scan(commit->job, source->top, source->base, 0, end, source->bitmap, error);
    if (status == 0 && end < source->length) {
        dirty_bitmap_set(source->bitmap, end, source->length - end);
    }
    return status;
}

static int run_commit(struct job *job, GError **error)
{
    struct commit *commit = job_state(job);
    int status = find_work(commit, error);

    return status == 0 ? chain_source_run(&commit->source, error) : status;
}

static void wake_commit(struct job *job)
{
    struct commit *commit = job_state(job);

    copy_engine_wake(commit->engine);
}

/* ---- The end --------------------------------------------------------------------------------- */

static int change_headers(struct commit *commit, GPtrArray *overlays, GError **error)
{
    int status = 0;

    for (guint i = 0; status == 0 && i < overlays->len; i++) {
        struct chain_header header = {0};

        status = chain_header_change(&header, overlays->pdata[i], commit->chain.base,
                                     commit->backing_file, commit->mask_protocol, error);
        g_array_append_val(commit->headers, header);
    }
    return status;
}

/* To change an image is a flush of it: what guests have written there is flushed before they stand
 * still. That it fails matters to nobody but them, who will hear of it. */
static void flush_overlays(struct commit *commit)
{
    g_autoptr(GPtrArray) overlays = find_overlays(commit->top);

    for (guint i = 0; i < overlays->len; i++) {
        block_node_flush(overlays->pdata[i]);
    }
}

/* All that can fail: what the images above say. Some may have come since the job began. */
static int prepare_commit(struct job *job, GError **error)
{
    struct commit *commit = job_state(job);

    flush_overlays(commit);
    job_set_phase(job, "changing the chain");
    commit->drain = block_drain_begin(&commit->top, 1, BLOCK_PERM_ALL);
    g_autoptr(GPtrArray) overlays = find_overlays(commit->top);
    return change_headers(commit, overlays, error);
}

/*
 * Main thread; all above top stands still. Base is written no more, so those who come to it from
 * top find nobody in their way.
 */
static void put_base_in_place(void *data)
{
    struct commit *commit = data;
    g_autoptr(GError) error = NULL;
    int status = block_claim_change(copy_engine_target_claim(commit->engine), BLOCK_PERM_READ,
                                    BLOCK_PERM_ALL, &error);

    if (status == 0) {
        status = block_node_replace(commit->top, commit->chain.base,
                                    copy_engine_source_claim(commit->engine), &error);
    }
    if (status < 0) {
        g_critical("Node '%s' stays in its chain, though the images above say otherwise: %s",
                   commit->top->name, error->message);
    }
}

static void commit_commit(struct job *job)
{
    struct commit *commit = job_state(job);

    main_loop_call_wait(put_base_in_place, commit);
    block_drain_end(STEAL(commit->drain));
}

static void abort_commit(struct job *job)
{
    struct commit *commit = job_state(job);

    for (guint i = 0; commit->drain && i < commit->headers->len; i++) {
        chain_header_restore(&g_array_index(commit->headers, struct chain_header, i));
    }
    block_drain_end(STEAL(commit->drain));
}

static void clear_header(gpointer data)
{
    chain_header_clear(data);
}

static void clean_commit(struct job *job)
{
    struct commit *commit = job_state(job);

    if (commit->engine) {
        copy_engine_free(STEAL(commit->engine));
    }
    chain_filter_remove(&commit->filter); /* before what it is above may become read-only */
    chain_hold_release(&commit->overlays);
    commit_chain_release(&commit->chain, false);
    g_clear_pointer(&commit->headers, g_array_unref);
    chain_source_clear(&commit->source);
    block_node_unref(STEAL(commit->top));
}

static void free_commit(struct job *job)
{
    struct commit *commit = job_state(job);

    g_free(commit->backing_file);
}

static const struct job_driver commit_driver = {
    .type = "commit",
    .is_block_job = true,
    .instance_size = sizeof(struct commit),
    .run = run_commit,
    .wake = wake_commit,
    .prepare = prepare_commit,
    .commit = commit_commit,
    .abort = abort_commit,
    .clean = clean_commit,
    .free = free_commit,
};

/* ---- Setting it up --------------------------------------------------------------------------- */

static int new_engine(struct commit *commit, const struct commit_options *options, GError **error)
{
    struct copy_claims claims = commit_claims(&commit->chain, false);
    AUTO(block_device) guest = copy_pace_find_guest(options->root);

    commit->engine = chain_source_new_engine(&commit->source, commit->chain.base, &claims,
                                             options->on_error, guest, error);
    return commit->engine ? 0 : -EBUSY;
}

static int set_up(struct commit *commit, const struct commit_options *options, GError **error)
{
    uint64_t length = MAX_OF(block_node_length(commit->top), block_node_length(options->base));

    if (job_set_initial_speed(commit->job, options->speed, error) < 0 ||
        job_set_initial_guest_latency(commit->job, options->guest_latency, error) < 0 ||
        chain_header_check(options->base, options->backing_file, error) < 0 ||
        commit_chain_find(&commit->chain, commit->top, options->base, error) < 0 ||
        chain_source_init(&commit->source, &chain_source_operations, commit->job, commit->top,
                          options->base, length, chain_source_granularity(options->base),
                          error) < 0 ||
        new_engine(commit, options, error) < 0 || hold_overlays(commit, error) < 0 ||
        commit_chain_hold(&commit->chain, commit->job, error) < 0) {
        return -EINVAL;
    }
    if (MAX_OF(block_node_length(commit->top), block_node_length(options->base)) != length) {
        return block_error(error, EAGAIN, "Node '%s' is just being resized; try again",
                           commit->top->name);
    }
    const struct chain_filter_options filter = {
        .name = options->filter_node_name,
        .job = commit->job,
        .driver = &commit_filter_driver,
    };
    return chain_filter_insert(&commit->filter, &filter, commit->top, error);
}

static void init(struct commit *commit, struct job *job, const struct commit_options *options)
{
    commit->job = job;
    commit->top = block_layer_of(options->top);
    commit->backing_file = g_strdup(options->backing_file);
    commit->mask_protocol = options->mask_protocol;
    commit->headers = g_array_new(FALSE, FALSE, sizeof(struct chain_header));
    g_array_set_clear_func(commit->headers, clear_header);
}

static int start(const struct commit_options *options, GError **error)
{
    AUTO(job) job = job_new(&commit_driver, options->job_id, options->job_flags, NULL, error);

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

/* Whether guests write to top, or a node above does. A job that does is in the way. */
static bool is_active(const struct commit_options *options)
{
    SCOPE_LOCK(&block_graph_lock);
    const struct block_node *top = block_node_below_filters(options->top);
    const struct block_claim *claim;
    bool is_written = top == block_node_below_filters(options->root);

    TAILQ_FOREACH (claim, &top->claims, entry) {
        bool is_job = !claim->parent && !(claim->operations && claim->operations->follows_place);

        is_written |= claim->perms & BLOCK_PERM_WRITE && !is_job;
    }
    return is_written;
}

static int start_kind(const struct commit_options *options, GError **error)
{
    AUTO(block_node) top = block_layer_of(options->top);
    AUTO(block_node) base = block_layer_of(options->base);

    if (mirror_check_is_root(options->root, error) < 0 ||
        chain_filter_check_name(options->filter_node_name, error) < 0) {
        return -EBUSY;
    }
    if (top == base) {
        return block_error(error, EINVAL, "cannot commit an image into itself");
    }
    if (!is_active(options)) {
        return start(options, error);
    }
    if (options->backing_file) {
        return block_error(error, EINVAL,
                           "'backing-file' specified, but 'top' is the active layer");
    }
    return commit_start_active(options, error);
}

/* Filters that jobs have put there for a while are not what is meant: those take them away. */
int commit_start(const struct commit_options *given, GError **error)
{
    AUTO(block_node) root = block_below_transient(given->root);
    AUTO(block_node) top = block_below_transient(given->top);
    AUTO(block_node) base = block_below_transient(given->base);
    struct commit_options options = *given;

    options.root = root;
    options.top = top;
    options.base = base;
    return start_kind(&options, error);
}
