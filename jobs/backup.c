/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/backup.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "jobs/copy-engine.h"

/* More than this for one job is a slip of the pen. */
#define MEMORY_MAX (8 * GIB)

struct backup {
    enum backup_sync sync;
    uint64_t length;
    struct block_node *target; /* the engine's claim holds it */
    struct copy_engine *engine;
};

static int run_backup(struct job *job, GError **error)
{
    struct backup *backup = job_state(job);
    int status;

    if (backup->sync == BACKUP_SYNC_FULL) {
        job_progress_set_total(job, backup->length);
    }
    job_set_phase(job, "copying");
    status = copy_engine_run(backup->engine, error);
    /* From here on guests' writes owe us nothing; do not stay on their path while flushing. */
    copy_engine_uninstall(backup->engine);
    if (status < 0) {
        return status;
    }
    job_set_phase(job, "flushing");
    return copy_engine_flush(backup->engine, error);
}

static void wake_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    if (backup->engine) {
        copy_engine_wake(backup->engine);
    }
}

static void clean_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    if (backup->engine) {
        copy_engine_uninstall(backup->engine);
        copy_engine_free(STEAL(backup->engine));
    }
}

static const struct job_driver backup_driver = {
    .type = "backup",
    .is_block_job = true,
    .instance_size = sizeof(struct backup),
    .run = run_backup,
    .wake = wake_backup,
    .clean = clean_backup,
};

/* The device whose root is this node: its guest has precedence. A new reference, or NULL. */
static struct block_device *find_guest(const struct block_node *source)
{
    struct block_device **list = block_device_list();
    struct block_device *guest = NULL;

    for (struct block_device **device = list; *device && !guest; device++) {
        AUTO(block_node) root = block_device_root(*device);

        if (root == source) {
            guest = block_device_ref(*device);
        }
    }
    block_device_list_free(list);
    return guest;
}

static int check_performance_options(const struct backup_options *options, GError **error)
{
    if (options->max_workers < 0 || options->max_workers > COPY_MAX_WORKERS) {
        return block_error(error, EINVAL, "max-workers must be between 1 and %d", COPY_MAX_WORKERS);
    }
    if (options->max_chunk < 0 || options->max_chunk > (int64_t)GIB) {
        return block_error(error, EINVAL, "max-chunk must be between 0 (the default) and 1 GiB");
    }
    if (options->max_chunk && options->max_chunk < (int64_t)COPY_CLUSTER) {
        return block_error(error, EINVAL,
                           "Required max-chunk (%" PRId64 ") is less than backup cluster size "
                           "(%" PRIu64 ")",
                           options->max_chunk, COPY_CLUSTER);
    }
    if ((uint64_t)MAX_OF(options->max_workers, INT64_C(1)) * (uint64_t)options->max_chunk >
        MEMORY_MAX) {
        return block_error(error, EINVAL,
                           "max-workers times max-chunk bounds the job's memory and must not be "
                           "above %" PRIu64 " bytes",
                           MEMORY_MAX);
    }
    if (options->guest_timeout_s < 0 || options->guest_timeout_s > INT_MAX) {
        return block_error(error, EINVAL, "cbw-timeout must be between 0 (none) and %d seconds",
                           INT_MAX);
    }
    return 0;
}

static int check_nodes(const struct backup_options *options, GError **error)
{
    if (options->source == options->target) {
        return block_error(error, EINVAL, "Source and target cannot be the same");
    }
    if (options->target->options.read_only) {
        return block_error(error, EACCES, "Target node '%s' is read-only", options->target->name);
    }
    if (block_node_length(options->source) != block_node_length(options->target)) {
        return block_error(error, EINVAL,
                           "Source and target image have different sizes (%" PRIu64 " and "
                           "%" PRIu64 " bytes)",
                           block_node_length(options->source), block_node_length(options->target));
    }
    return 0;
}

static struct copy_engine *new_engine(struct job *job, const struct backup_options *options,
                                      GError **error)
{
    AUTO(block_device) guest = find_guest(options->source);
    struct copy_engine_options engine_options = {
        .source = options->source,
        .target = options->target,
        .copy_all = options->sync == BACKUP_SYNC_FULL,
        .use_copy_range = options->use_copy_range,
        .max_workers = (unsigned)options->max_workers,
        .max_chunk = align_down((uint64_t)options->max_chunk, COPY_CLUSTER),
        .on_source_error = options->on_source_error,
        .on_target_error = options->on_target_error,
        .guest = guest,
        .guest_timeout_ns = options->guest_timeout_s * NS_PER_SECOND,
    };

    return copy_engine_new(job, &engine_options, error);
}

static struct copy_engine *open_target_and_engine(struct job *job,
                                                  const struct backup_options *options,
                                                  GError **error)
{
    struct backup_options complete = *options;
    AUTO(block_node) opened = options->open_target(options->open_target_data, error);

    complete.target = opened;
    ((struct backup *)job_state(job))->target = opened;
    return opened && check_nodes(&complete, error) == 0 ? new_engine(job, &complete, error) : NULL;
}

static int set_up(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);

    backup->sync = options->sync;
    backup->length = block_node_length(options->source);
    if (job_set_initial_speed(job, options->speed, error) < 0) {
        return -EINVAL;
    }
    backup->target = options->target;
    backup->engine = options->target ? new_engine(job, options, error)
                                     : open_target_and_engine(job, options, error);
    return backup->engine ? 0 : -EINVAL;
}

struct job *backup_new(const struct backup_options *options, GError **error)
{
    AUTO(job) job = NULL;

    if ((options->target && check_nodes(options, error) < 0) ||
        check_performance_options(options, error) < 0) {
        return NULL;
    }
    job = job_new(&backup_driver, options->job_id, options->job_flags, options->transaction, error);
    if (!job) {
        return NULL;
    }
    if (set_up(job, options, error) < 0) {
        job_early_fail(job);
        return NULL;
    }
    return STEAL(job);
}

void backup_activate(struct job *job)
{
    struct backup *backup = job_state(job);

    copy_engine_install(backup->engine);
}

static void activate(void *data)
{
    backup_activate(data);
}

int backup_start(const struct backup_options *options, GError **error)
{
    struct block_node *source = options->source;
    AUTO(job) job = backup_new(options, error);

    if (!job) {
        return -EINVAL;
    }
    AUTO(block_drain) drain = block_drain_begin(&source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(activate, job);
    block_drain_end(STEAL(drain));
    int status = job_start(job, error);
    if (status < 0) {
        job_early_fail(job);
    }
    return status;
}
