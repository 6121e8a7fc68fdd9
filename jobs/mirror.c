/* SPDX-License-Identifier: BSD-3-Clause */
/* A mirror's life: options, the moment it starts, the run, and cleaning up. */
#include "jobs/mirror.h"

#include <errno.h>
#include <inttypes.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "formats/job-filter.h"
#include "jobs/mirror-internal.h"
#include "jobs/sync-top.h"

#define GRANULARITY_DEFAULT     (4 * KIB)
#define GRANULARITY_DEFAULT_MAX (64 * KIB)

/* Bits for more granules than this take more than 64 MiB. */
#define GRANULES_MAX (UINT64_C(1) << 29)

/* What a worker copies at once if the memory allows it, and not much less than that pays. */
#define CHUNK_MAX  COPY_DEFAULT_CHUNK
#define CHUNK_MIN  (64 * KIB)
#define CHUNK_UNIT (4 * KIB)

uint64_t mirror_default_granularity(uint64_t length)
{
    uint64_t granularity = GRANULARITY_DEFAULT;

    while (granularity < GRANULARITY_DEFAULT_MAX && length / granularity > GRANULES_MAX) {
        granularity *= 2;
    }
    return granularity;
}

/* ---- Checks --------------------------------------------------------------------------------- */

/* Other than filters that jobs have put above it for a while. Graph lock held. */
static bool has_parents(const struct block_node *node)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (claim->parent && (!claim->parent->is_transient || has_parents(claim->parent))) {
            return true;
        }
    }
    return false;
}

static bool is_top(const struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);

    return !has_parents(node);
}

int mirror_check_is_root(struct block_node *node, GError **error)
{
    AUTO(block_device) device = block_device_find_by_root(node);

    return device || is_top(node) ? 0 : block_error(error, EBUSY, "Need a root block node");
}

static int check_numbers(const struct mirror_options *options, GError **error)
{
    uint64_t granularity = options->granularity;

    if (granularity &&
        (granularity < MIRROR_GRANULARITY_MIN || granularity > MIRROR_GRANULARITY_MAX)) {
        return block_error(error, EINVAL,
                           "Parameter 'granularity' expects a value in range [512B, 64MB]");
    }
    if (granularity && !is_power_of_2(granularity)) {
        return block_error(error, EINVAL, "Parameter 'granularity' expects a power of 2");
    }
    if (options->buf_size < 0) {
        return block_error(error, EINVAL, "Invalid parameter 'buf-size'");
    }
    return 0;
}

static int check_target(struct block_node *source, struct block_node *target, GError **error)
{
    if (source == target) {
        return block_error(error, EINVAL, "Can't mirror node into itself");
    }
    if (target->options.read_only) {
        return block_error(error, EACCES, "Target node '%s' is read-only", target->name);
    }
    if (block_node_length(source) != block_node_length(target)) {
        return block_error(error, EINVAL,
                           "Source and target image have different sizes (%" PRIu64 " and "
                           "%" PRIu64 " bytes)",
                           block_node_length(source), block_node_length(target));
    }
    return 0;
}

/* Once they are claimed: nobody resizes them any more. */
static int check_lengths(const struct mirror *mirror, GError **error)
{
    if (block_node_length(mirror->source_node) != mirror->length) {
        return block_error(error, EBUSY, "Node '%s' is just being resized",
                           mirror->source_node->name);
    }
    return check_target(mirror->source_node, mirror->target, error);
}

/* ---- Gate and write-through on the source ---------------------------------------------------- */

struct installation {
    struct mirror *mirror;
    struct block_device *device; /* which must be on the source; or NULL */
    int status;
    GError **error;
};

static int check_device(const struct mirror *mirror, struct block_device *device, GError **error)
{
    return block_device_is_on(device, mirror->source_node)
               ? 0
               : block_error(error, EAGAIN, "'%s' has just got another node; try again",
                             block_device_name(device));
}

static void install(void *data)
{
    struct installation *installation = data;
    struct mirror *mirror = installation->mirror;

    if (installation->device) {
        installation->status = check_device(mirror, installation->device, installation->error);
    }
    if (installation->status < 0) {
        return;
    }
    block_node_add_follower(mirror->source_node, &mirror->through.follower);
    block_node_add_notifier(mirror->source_node, &mirror->gate.notifier);
    mirror->is_installed = true;
    mirror->guest = block_device_find_by_root(mirror->source_node);
}

void mirror_uninstall(struct mirror *mirror)
{
    block_node_remove_notifier(mirror->source_node, &mirror->gate.notifier);
    block_node_remove_follower(mirror->source_node, &mirror->through.follower);
    mirror->is_installed = false;
}

static void uninstall(void *data)
{
    mirror_uninstall(data);
}

static void uninstall_drained(struct mirror *mirror)
{
    AUTO(block_drain) drain = block_drain_begin(&mirror->source_node, 1, BLOCK_PERM_WRITE);

    main_loop_call_wait(uninstall, mirror);
}

/* The moment the mirror starts. */
static int begin(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    struct installation installation = {
        .mirror = mirror,
        .device = options->device,
        .error = error,
    };
    AUTO(block_drain) drain = block_drain_begin(&mirror->source_node, 1, BLOCK_PERM_WRITE);

    main_loop_call_wait(install, &installation);
    int status = installation.status;
    if (status == 0 && !mirror_record_is_found(mirror)) {
        status = mirror_changes_take(mirror, options, error);
    }
    if (status == 0) {
        status = mirror_record_begin(mirror, error);
    }
    mirror->pass_bytes = mirror_left(mirror); /* the engine does not run yet */
    mirror_update_total(mirror);
    return status;
}

/* What a checkpoint would keep guests waiting for is done before they stand still. */
static int begin_prepared(struct mirror *mirror, const struct mirror_options *options,
                          GError **error)
{
    struct change_tracker *tracker = mirror->record.tracker;

    if (tracker) {
        tracking_prepare_checkpoint(tracker);
        block_node_flush(mirror->source_node); /* the checkpoint finds out what is wrong */
    }
    int status = begin(mirror, options, error);
    if (tracker) {
        tracking_forget_prepared(tracker);
    }
    return status;
}

/* ---- The job's functions -------------------------------------------------------------------- */

static int run_mirror(struct job *job, GError **error)
{
    struct mirror *mirror = job_state(job);
    int status = mirror->sync == MIRROR_SYNC_COMMIT ? mirror_commit_scan(mirror, error)
                                                    : mirror_top_scan(mirror, error);

    mirror->has_run = true;
    if (status < 0) {
        return status;
    }
    job_set_phase(job, "copying");
    status = copy_engine_run(mirror->engine, error);
    mirror_gate_open(&mirror->gate);
    return status;
}

static void wake_mirror(struct job *job)
{
    struct mirror *mirror = job_state(job);

    copy_engine_wake(mirror->engine);
}

static void get_info(struct job *job, struct job_info *info)
{
    info->has_actively_synced = true;
    mirror_mode_report(job_state(job), info);
    mirror_target_report(job_state(job), info);
    mirror_record_report(job_state(job), info);
}

static void get_commit_info(struct job *job, struct job_info *info)
{
    mirror_mode_report(job_state(job), info);
    info->copy_mode = NULL; /* it has but one */
}

/* Whether somebody may want to go on with it: unless he has ended it, or it never began. */
static bool is_record_of_use(struct mirror *mirror)
{
    bool was_ended =
        mirror->has_ended || (job_is_cancelled(mirror->job) && !job_is_shutting_down());

    return !was_ended && (mirror->has_run || !mirror->record.is_new);
}

static void clean_mirror(struct job *job)
{
    struct mirror *mirror = job_state(job);

    mirror_watch_part(mirror);
    if (mirror->bitmap) {
        write_through_end(&mirror->through); /* or guests in it would keep the drain waiting */
    }
    if (mirror->is_installed) {
        uninstall_drained(mirror);
    }
    mirror_mode_end(mirror);
    if (mirror->engine) {
        mirror_record_end(mirror, is_record_of_use(mirror));
        copy_engine_free(STEAL(mirror->engine));
    }
    chain_filter_remove(&mirror->filter); /* before what it is above may become read-only */
    if (mirror->chain.nodes) {
        commit_chain_release(&mirror->chain, mirror->has_pivoted);
    }
    block_device_unref(STEAL(mirror->guest));
    block_device_unref(STEAL(mirror->tracked));
    block_device_unref(STEAL(mirror->record.device));
    mirror_target_end(mirror);
    if (mirror->bitmap) {
        mirror_gate_destroy(&mirror->gate);
        write_through_destroy(&mirror->through);
        dirty_bitmap_free(STEAL(mirror->bitmap));
    }
}

static void free_mirror(struct job *job)
{
    struct mirror *mirror = job_state(job);

    pthread_mutex_destroy(&mirror->progress_lock);
    pthread_mutex_destroy(&mirror->watch_lock);
    mirror_mode_free(mirror);
    mirror_target_free(mirror);
    mirror_record_free(mirror);
    g_free(mirror->checkpoint);
}

#define MIRROR_FUNCTIONS                                                                           \
    .is_block_job = true, .instance_size = sizeof(struct mirror), .run = run_mirror,               \
    .wake = wake_mirror, .can_complete = true, .soft_cancel_completes = true,                      \
    .prepare = mirror_prepare, .commit = mirror_commit, .abort = mirror_abort,                     \
    .clean = clean_mirror, .free = free_mirror

static const struct job_driver mirror_driver = {
    .type = "mirror",
    .get_info = get_info,
    MIRROR_FUNCTIONS,
};

static const struct job_driver active_commit_driver = {
    .type = "commit",
    .get_info = get_commit_info,
    MIRROR_FUNCTIONS,
};

/* ---- Setting it up -------------------------------------------------------------------------- */

/* Memory is bounded by workers times chunk: rather fewer and larger pieces, but some at once. */
static void divide_memory(uint64_t buf_size, struct copy_engine_options *options)
{
    uint64_t chunk = CLAMP(buf_size / COPY_DEFAULT_MAX_WORKERS, CHUNK_MIN, CHUNK_MAX);

    chunk = MIN_OF(chunk, MAX_OF(buf_size, CHUNK_UNIT));
    options->max_chunk = align_down(chunk, CHUNK_UNIT);
    options->max_workers =
        (unsigned)CLAMP(buf_size / options->max_chunk, UINT64_C(1), (uint64_t)COPY_MAX_WORKERS);
}

/*
 * Nobody may put another node in the source's place, as an external snapshot would: guests would
 * write past the mirror.
 */
static struct copy_claims claims_of(const struct mirror *mirror)
{
    struct copy_claims claims = copy_default_claims;

    if (mirror->sync == MIRROR_SYNC_COMMIT) {
        return commit_claims(&mirror->chain, true);
    }
    claims.source_shared &= ~(unsigned)BLOCK_PERM_GRAPH;
    return claims;
}

static struct copy_engine *new_engine(struct mirror *mirror, const struct mirror_options *options,
                                      GError **error)
{
    struct copy_claims claims = claims_of(mirror);
    AUTO(block_device) guest = block_device_find_by_root(mirror->source_node);
    struct copy_engine_options engine_options = {
        .source = &mirror->source,
        .length = mirror->length,
        .unit = mirror->granularity,
        .source_node = mirror->source_node,
        .target = mirror->target,
        .target_is_in_use = mirror->sync == MIRROR_SYNC_COMMIT,
        .keep_allocated = options->keep_zeroes,
        .explicit_zeroes = mirror->sync == MIRROR_SYNC_TOP,
        .on_source_error = options->on_source_error,
        .on_target_error = options->on_target_error,
        .claims = &claims,
        .guest = guest,
    };

    divide_memory((uint64_t)(options->buf_size ? options->buf_size : MIRROR_DEFAULT_BUF_SIZE),
                  &engine_options);
    return copy_engine_new(mirror->job, &engine_options, error);
}

static void note_written(void *data, uint64_t offset, uint64_t bytes, bool is_there)
{
    mirror_target_written(data, offset, bytes, is_there);
}

static void make_write_through(struct mirror *mirror, const struct mirror_options *options)
{
    const struct write_through_options through = {
        .engine = mirror->engine,
        .source = mirror->source_node,
        .bitmap = mirror->bitmap,
        .whole_granules = mirror->sync == MIRROR_SYNC_TOP,
        .limit_ns = options->write_limit_ns ? options->write_limit_ns : MIRROR_WRITE_LIMIT_NS,
        .waits = job_guest_waits(mirror->job),
        .written = note_written,
        .is_late = mirror_mode_late,
        .data = mirror,
    };

    write_through_init(&mirror->through, &through);
    mirror_mode_begin(mirror, options);
}

/* Filled before anybody looks at it, as that takes a while for a large disk. */
static int make_bitmap(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    mirror->bitmap = dirty_bitmap_new(NULL, mirror->length, mirror->granularity, error);
    if (!mirror->bitmap) {
        return -ENOMEM;
    }
    mirror->list.bitmap = mirror->bitmap;
    mirror_gate_init(&mirror->gate, mirror->bitmap);
    mirror->gate.waits = job_guest_waits(mirror->job);
    make_write_through(mirror, options);
    if (mirror->sync == MIRROR_SYNC_FULL && mirror->length > 0 && !mirror_record_is_found(mirror)) {
        dirty_bitmap_set(mirror->bitmap, 0, mirror->length);
    }
    return mirror_target_begin(mirror, options, error);
}

static void init(struct mirror *mirror, struct job *job, const struct mirror_options *options)
{
    uint64_t length = options->sync == MIRROR_SYNC_COMMIT
                          ? mirror_commit_length(options->source, options->target)
                          : block_node_length(options->source);

    mirror->source.operations = &mirror_source_operations;
    mirror->job = job;
    mirror->sync = options->sync;
    mirror->length = length;
    mirror->granularity =
        options->granularity ? options->granularity : mirror_default_granularity(length);
    mirror->source_node = options->source;
    mirror->pass_bytes = length;
    atomic_init(&mirror->is_settled, options->sync == MIRROR_SYNC_NONE);
    pthread_mutex_init(&mirror->progress_lock, NULL);
    pthread_mutex_init(&mirror->watch_lock, NULL);
}

static int insert_filter(struct mirror *mirror, const char *name, GError **error)
{
    const struct chain_filter_options options = {
        .name = name,
        .job = mirror->job,
        .driver = &mirror_filter_driver,
        .voiding = mirror->chain.nodes ? copy_engine_source_claim(mirror->engine) : NULL,
    };

    return chain_filter_insert(&mirror->filter, &options, mirror->source_node, error);
}

static int set_up(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    AUTO(block_node) opened = NULL;

    if (job_set_initial_speed(mirror->job, options->speed, error) < 0 ||
        job_set_initial_guest_latency(mirror->job, options->guest_latency, error) < 0 ||
        mirror_record_choose(mirror, options, error) < 0 ||
        mirror_end_check(mirror, options, error) < 0 || mirror_top_choose(mirror, error) < 0) {
        return -EINVAL;
    }
    mirror->target = options->target;
    if (!mirror->target) {
        opened = options->open_target(options->open_target_data, error);
        if (!opened || check_target(options->source, opened, error) < 0) {
            return -EINVAL;
        }
        mirror->target = opened;
    }
    bool is_commit = mirror->sync == MIRROR_SYNC_COMMIT;
    if (is_commit && mirror_commit_find(mirror, error) < 0) {
        return -EINVAL;
    }
    if (mirror->sync == MIRROR_SYNC_TOP) {
        mirror->granularity = sync_top_unit(mirror->target, mirror->granularity);
    }
    mirror->engine = new_engine(mirror, options, error);
    if (!mirror->engine ||
        (is_commit ? mirror_commit_hold(mirror, error) : check_lengths(mirror, error)) < 0) {
        return -EINVAL;
    }
    /* What an earlier user of it wrote and had not flushed is written anew, or was not counted on.
     */
    bool is_begun_anew = mirror->sync == MIRROR_SYNC_FULL || options->resume;
    if (is_begun_anew && block_node_has_lost_writes(mirror->target)) {
        block_node_accept_lost_writes(mirror->target);
    }
    int status = mirror_record_find(mirror, error);
    if (status == 0) {
        status = make_bitmap(mirror, options, error);
    }
    return status == 0 ? insert_filter(mirror, options->filter_node_name, error) : status;
}

int mirror_change_copy_mode(struct job *job, enum mirror_copy_mode mode, GError **error)
{
    int status = job_check_verb(job, JOB_VERB_CHANGE, error);

    if (status == 0 && job_driver_of(job) != &mirror_driver) {
        status = block_error(error, ENOTSUP, "Job type does not support change");
    }
    if (status == 0) {
        status = mirror_mode_set(job_state(job), mode, error);
    }
    return status;
}

static int start(const struct mirror_options *options, GError **error)
{
    bool is_commit = options->sync == MIRROR_SYNC_COMMIT;
    AUTO(job) job = NULL;

    if (mirror_check_is_root(options->source, error) < 0 ||
        block_node_check_sees_writes(options->source, error) < 0 ||
        check_numbers(options, error) < 0 ||
        chain_filter_check_name(options->filter_node_name, error) < 0 ||
        mirror_changes_check(options, error) < 0 ||
        (options->target && !is_commit &&
         check_target(options->source, options->target, error) < 0)) {
        return -EINVAL;
    }
    job = job_new(is_commit ? &active_commit_driver : &mirror_driver, options->job_id,
                  options->job_flags, NULL, error);
    if (!job) {
        return -EINVAL;
    }
    GUEST_WAITS_SCOPE(job_guest_waits(job));
    init(job_state(job), job, options);
    int status = set_up(job_state(job), options, error);
    if (status == 0) {
        status = begin_prepared(job_state(job), options, error);
    }
    if (status == 0) {
        mirror_watch_admit(job_state(job));
        status = job_start(job, error);
    }
    if (status < 0) {
        job_early_fail(job);
    }
    return status;
}

/* Guests will write past a filter that another job takes away again: it is what is below it. */
int mirror_start(const struct mirror_options *given, GError **error)
{
    AUTO(block_node) source = block_below_transient(given->source);
    struct mirror_options options = *given;

    options.source = source;
    return start(&options, error);
}
