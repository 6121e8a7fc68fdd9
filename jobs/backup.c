/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/backup.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/error.h"
#include "block/point-in-time.h"
#include "block/request.h"
#include "formats/job-filter.h"
#include "formats/scratch.h"
#include "jobs/backup-source.h"
#include "jobs/chain-filter.h"
#include "jobs/copy-engine.h"
#include "jobs/sync-top.h"

/* More than this for one job is a slip of the pen. */
#define MEMORY_MAX (8 * GIB)

/* With fewer workers than this memory for saved data is as for this many. */
#define MEMORY_CHUNKS_MIN UINT64_C(4)

/* How long the target may take to make safe what a backup that has failed did bring there. */
#define LAST_FLUSH_NS (5 * NS_PER_SECOND)

/* How long requests that are in flight at the end get before hanging ones are cut off. */
#define END_GRACE_NS NS_PER_SECOND

struct backup {
    struct job *job;
    enum backup_sync sync;
    enum block_error_policy on_target_error;
    uint64_t length;
    struct block_node *target; /* the engine's claim holds it */
    struct scratch_budget budget;
    struct point_in_time *point;
    struct backup_source source;
    struct backup_bitmap bitmap;
    /* Compares; NULL: it is copied. Reports ask for it at any time. */
    struct verify *_Atomic verify;
    struct copy_engine *engine; /* NULL with sync none: the point in time does it all */
    struct chain_filter filter;
    _Atomic bool is_held; /* sync none: the target failed and the policy is to wait */
};

/* Of a mirror whose target is compared, or NULL. */
static struct mirror_watch *watch_of(struct backup *backup)
{
    struct verify *verify = atomic_load(&backup->verify);

    return verify ? verify_get_watch(verify) : NULL;
}

/* Nobody takes saved data any more: no guest may wait for that. */
static void let_guests_go(struct backup *backup)
{
    GError *reason = NULL;

    block_error(&reason, ECANCELED, "The job has ended");
    point_in_time_break(backup->point, reason);
}

/* ---- Sync none: guests themselves bring what they overwrite to the target ------------------- */

static enum point_in_time_action on_target_error(void *data, int error_number)
{
    struct backup *backup = data;

    if (job_is_cancelled(backup->job)) {
        return POINT_IN_TIME_GIVE_UP;
    }
    switch (job_io_error(backup->job, backup->on_target_error, false, error_number)) {
    case BLOCK_ERROR_POLICY_STOP:
        atomic_store(&backup->is_held, true);
        job_kick(backup->job);
        return POINT_IN_TIME_HOLD;
    case BLOCK_ERROR_POLICY_IGNORE:
        return POINT_IN_TIME_TRY_LATER;
    default:
        return POINT_IN_TIME_GIVE_UP;
    }
}

static int run_none(struct job *job, GError **error)
{
    struct backup *backup = job_state(job);

    job_set_phase(job, "copying");
    job_progress_set_total(job, backup->length); /* as QEMU has it; none of it is ever done */
    while (!job_is_cancelled(job) && !point_in_time_is_broken(backup->point, NULL)) {
        job_sleep_until(job, INT64_MAX);
        job_pause_point(job);
        if (atomic_exchange(&backup->is_held, false)) {
            point_in_time_retry(backup->point);
        }
    }
    if (job_is_cancelled(job)) {
        let_guests_go(backup);
        return -ECANCELED;
    }
    GError *reason = NULL;
    point_in_time_is_broken(backup->point, &reason);
    int status = block_error_code(reason);
    g_propagate_error(error, reason);
    return status;
}

/* ---- Sync full, top and bitmap -------------------------------------------------------------- */

/* What need not be compared. */
static void narrow_verify(struct backup *backup)
{
    struct verify *verify = atomic_load(&backup->verify);
    uint64_t length = point_in_time_length(backup->point), end = verify_end(verify);

    if (verify_is_sample(verify)) {
        verify_choose_sample(verify, backup_bitmap_limit(&backup->bitmap));
    }
    if (backup->bitmap.is_limit) {
        backup_bitmap_narrow(&backup->bitmap, backup->point, COPY_UNIT);
    }
    if (end < length) {
        point_in_time_discard(backup->point, end, length - end);
    }
}

/*
 * What need not be copied. Guests save it until it is found: looking for it would keep them waiting
 * at the moment.
 */
static int narrow(struct backup *backup, GError **error)
{
    uint64_t unit = sync_top_unit(backup->target, COPY_UNIT);

    job_set_phase(backup->job, "scanning");
    if (atomic_load(&backup->verify)) {
        narrow_verify(backup);
        return 0;
    }
    switch (backup->sync) {
    case BACKUP_SYNC_TOP:
        return sync_top_narrow(backup->job, backup->point, unit, error);
    case BACKUP_SYNC_BITMAP:
        backup_bitmap_narrow(&backup->bitmap, backup->point, unit);
        return 0;
    default:
        return 0;
    }
}

static int copy(struct backup *backup, GError **error)
{
    struct point_in_time_info info;

    point_in_time_get_info(backup->point, &info);
    job_progress_set_total(backup->job, backup->length - info.discarded_bytes);
    job_set_phase(backup->job, atomic_load(&backup->verify) ? "comparing" : "copying");
    return copy_engine_run(backup->engine, error);
}

/* The backup has failed, but what is on the target need not be copied again if it stays there. */
static void secure_copied(struct backup *backup)
{
    if (backup->bitmap.copied && dirty_bitmap_count(backup->bitmap.copied) > 0) {
        job_set_phase(backup->job, "flushing");
        backup->bitmap.is_flushed =
            copy_engine_flush_anyway(backup->engine, clock_now_ns() + LAST_FLUSH_NS) == 0;
    }
}

/* Whether anything was brought to the target that is to be made safe there. */
static bool has_written(struct backup *backup)
{
    struct verify *verify = atomic_load(&backup->verify);

    return !verify || verify_has_repaired(verify);
}

static int make_safe(struct backup *backup, GError **error)
{
    if (!has_written(backup)) {
        return 0;
    }
    job_set_phase(backup->job, "flushing");
    int status = copy_engine_flush(backup->engine, INT64_MAX, error);
    backup->bitmap.is_flushed = status == 0;
    return status;
}

static int run_copy(struct job *job, GError **error)
{
    struct backup *backup = job_state(job);
    struct verify *verify = atomic_load(&backup->verify);
    int status = narrow(backup, error);

    if (status == 0) {
        status = copy(backup, error);
    }
    if (status < 0) {
        let_guests_go(backup);
        secure_copied(backup);
        return status;
    }
    /* From here on guests' writes owe us nothing; do not stay on their path while flushing. */
    point_in_time_uninstall(backup->point);
    status = make_safe(backup, error);
    return status == 0 && verify ? verify_conclude(verify, backup->target->name, error) : status;
}

/* Nothing can be saved any more, or saved data wants to be taken. */
static void on_change(void *data)
{
    struct backup *backup = data;
    GError *reason = NULL;
    bool is_broken = point_in_time_is_broken(backup->point, &reason);

    if (is_broken && backup->engine) {
        copy_engine_fail(backup->engine, reason);
    } else if (is_broken) {
        g_error_free(reason);
        job_kick(backup->job);
    } else if (backup->engine) {
        copy_engine_wake(backup->engine);
    }
}

/* ---- The job -------------------------------------------------------------------------------- */

static int run_backup(struct job *job, GError **error)
{
    struct backup *backup = job_state(job);

    return backup->sync == BACKUP_SYNC_NONE ? run_none(job, error) : run_copy(job, error);
}

static void wake_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    if (backup->engine) {
        copy_engine_wake(backup->engine);
    }
}

static void commit_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    backup_bitmap_settle(&backup->bitmap, true);
}

static void abort_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    let_guests_go(backup); /* or they could not be drained */
    backup_bitmap_settle(&backup->bitmap, false);
}

static void clean_backup(struct job *job)
{
    struct backup *backup = job_state(job);

    if (backup->point) {
        let_guests_go(backup);
        point_in_time_stop(backup->point, END_GRACE_NS);
        point_in_time_uninstall(backup->point);
    }
    if (watch_of(backup)) {
        mirror_watch_end(watch_of(backup));
    }
    point_in_time_free(backup->point); /* before the engine, which it may call */
    backup->point = NULL;
    if (backup->engine) {
        copy_engine_free(STEAL(backup->engine));
    }
    chain_filter_remove(&backup->filter);
    backup_bitmap_clear(&backup->bitmap);
}

#define BACKUP_FUNCTIONS                                                                           \
    .is_block_job = true, .instance_size = sizeof(struct backup), .run = run_backup,               \
    .wake = wake_backup, .commit = commit_backup, .abort = abort_backup, .clean = clean_backup

static const struct job_driver backup_driver = {
    .type = "backup",
    BACKUP_FUNCTIONS,
};

/* What was found can be asked for as long as the job is there. */
static void get_verify_info(struct job *job, struct job_info *info)
{
    struct backup *backup = job_state(job);
    struct verify *verify = atomic_load(&backup->verify);

    if (verify) {
        info->has_verify = true;
        verify_get_report(verify, &info->verify);
    }
}

static void free_verify(struct job *job)
{
    struct backup *backup = job_state(job);
    struct verify *verify = atomic_load(&backup->verify);

    if (verify) {
        verify_free(verify);
    }
}

static const struct job_driver verify_driver = {
    .type = "verify",
    .get_info = get_verify_info,
    .free = free_verify,
    BACKUP_FUNCTIONS,
};

/* A guest's disk must not lose what was copied. */
static int check_discard_source(const struct backup_options *options, GError **error)
{
    const struct block_node *source = options->source;

    if (!options->discard_source) {
        return 0;
    }
    if (options->sync == BACKUP_SYNC_NONE) {
        return block_error(error, EINVAL, "discard-source has no meaning with sync mode 'none'");
    }
    if (!source->driver->discard_when_read_only) {
        return block_error(error, EINVAL,
                           "discard-source is for a snapshot: node '%s' has the driver '%s', and "
                           "not 'snapshot-access'",
                           source->name, source->driver->name);
    }
    return 0;
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
    if (options->min_cluster_size && !is_power_of_2(options->min_cluster_size)) {
        return block_error(error, EINVAL, "min-cluster-size needs to be a power of 2");
    }
    if (options->guest_timeout_s < 0 || options->guest_timeout_s > INT_MAX) {
        return block_error(error, EINVAL, "cbw-timeout must be between 0 (none) and %d seconds",
                           INT_MAX);
    }
    return 0;
}

static int check_scratch(const struct backup_options *options, GError **error)
{
    const struct block_node *node = options->scratch_node;

    if (options->sync == BACKUP_SYNC_NONE && (options->scratch == BACKUP_SCRATCH_NODE ||
                                              options->scratch_directory || options->scratch_max)) {
        return block_error(error, EINVAL,
                           "A backup with sync 'none' has no use for scratch: old data goes to "
                           "the target");
    }
    if (options->sync == BACKUP_SYNC_NONE && options->guest_latency) {
        return block_error(error, EINVAL,
                           "A backup with sync 'none' does only what guests' writes make it do: it "
                           "cannot do less to keep their latency");
    }
    if (options->scratch == BACKUP_SCRATCH_NODE &&
        (node == options->source || node == options->target)) {
        return block_error(error, EINVAL,
                           "Node '%s' cannot be scratch: it is the backup's source or target",
                           node->name);
    }
    return 0;
}

static int check_nodes(const struct backup_options *options, GError **error)
{
    if (options->source == options->target) {
        return block_error(error, EINVAL, "Source and target cannot be the same");
    }
    if (options->verify && !options->verify->repair) {
        return 0; /* nothing is written, and another length is a difference */
    }
    if (options->target->options.read_only) {
        return block_error(error, EACCES, "Target node '%s' is read-only", options->target->name);
    }
    if (block_node_length(options->source) != block_node_length(options->target)) {
        return block_error(error, EINVAL, "Source and target image have different sizes");
    }
    return 0;
}

static uint64_t memory_for_saved_data(const struct backup_options *options)
{
    uint64_t workers =
        options->max_workers ? (uint64_t)options->max_workers : COPY_DEFAULT_MAX_WORKERS;
    uint64_t chunk = options->max_chunk ? (uint64_t)options->max_chunk : COPY_DEFAULT_CHUNK;
    uint64_t memory = MAX_OF(workers, MEMORY_CHUNKS_MIN) * chunk;

    return MAX_OF(memory, POINT_IN_TIME_MEMORY_MIN);
}

/* A new reference in *scratch, or NULL there if there is to be none. */
static int open_scratch(const struct backup_options *options, struct block_node **scratch,
                        GError **error)
{
    *scratch = NULL;
    if (options->sync == BACKUP_SYNC_NONE) {
        *scratch = block_node_ref(options->target);
    } else if (options->scratch == BACKUP_SCRATCH_NODE) {
        *scratch = block_node_ref(options->scratch_node);
    } else if (options->scratch == BACKUP_SCRATCH_DIRECTORY) {
        *scratch =
            scratch_open(options->scratch_directory, block_node_length(options->source), error);
        return *scratch ? 0 : -EIO;
    }
    return 0;
}

static int init_budget(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);

    return scratch_budget_init(&backup->budget, options->scratch_max, options->scratch_high_percent,
                               "job", job_id(job), error);
}

static int new_point(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);
    g_autofree char *owner = g_strdup_printf("block job '%s'", job_id(job));
    AUTO(block_node) scratch = NULL;

    if (open_scratch(options, &scratch, error) < 0 || init_budget(job, options, error) < 0) {
        return -EIO;
    }
    struct point_in_time_options point_options = {
        .owner = owner,
        .source = options->source,
        .scratch = scratch,
        .scratch_vanishes = options->scratch == BACKUP_SCRATCH_DIRECTORY,
        .policy = POINT_IN_TIME_BREAK_SNAPSHOT,
        .guest_timeout_ns = options->guest_timeout_s * NS_PER_SECOND,
        .guest_unit = options->min_cluster_size,
        .budget = &backup->budget,
        .memory_max = memory_for_saved_data(options),
        .waits = job_guest_waits(job),
        .write_through = options->sync == BACKUP_SYNC_NONE,
        .callback_data = backup,
        .on_change = on_change,
        .on_scratch_error = options->sync == BACKUP_SYNC_NONE ? on_target_error : NULL,
    };
    backup->point = point_in_time_new(&point_options, error);
    return backup->point ? 0 : -EIO;
}

/* Who only compares lets others do with the target all that nobody can see. */
static const struct copy_claims reading_claims = {
    .source_perms = BLOCK_PERM_READ,
    .source_shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_INVISIBLE,
    .target_perms = BLOCK_PERM_READ,
    .target_shared = BLOCK_PERM_READ | BLOCK_PERM_INVISIBLE,
};

/* The mirror writes there, and repairs what differs. */
static const struct copy_claims watching_claims = {
    .source_perms = BLOCK_PERM_READ,
    .source_shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_INVISIBLE,
    .target_perms = BLOCK_PERM_READ,
    .target_shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_INVISIBLE,
};

static const struct copy_claims *claims_of(struct backup *backup,
                                           const struct backup_options *options)
{
    if (watch_of(backup)) {
        return &watching_claims;
    }
    return options->verify && !options->verify->repair ? &reading_claims : NULL;
}

static int new_engine(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);
    AUTO(block_device) guest = copy_pace_find_guest(options->source);
    struct copy_engine_options engine_options = {
        .source = &backup->source.copy,
        .length = backup->length,
        .unit = COPY_UNIT,
        .source_node = options->source,
        .target = options->target,
        .use_copy_range = options->use_copy_range && !options->compress,
        .compress = options->compress,
        .target_is_in_use = watch_of(backup),
        .target_action = options->verify && options->verify->repair
                             ? "compare with, or repair, target"
                         : options->verify ? "read target"
                                           : NULL,
        .explicit_zeroes = !options->verify && backup->sync != BACKUP_SYNC_FULL,
        .max_workers = (unsigned)options->max_workers,
        .max_chunk = align_down((uint64_t)options->max_chunk, COPY_CLUSTER),
        .on_source_error = options->on_source_error,
        .on_target_error = options->on_target_error,
        .claims = claims_of(backup, options),
        .guest = guest,
    };

    backup->target = options->target;
    backup_source_init(&backup->source, backup->point, options->source, &backup->bitmap,
                       atomic_load(&backup->verify));
    backup->source.discards = options->discard_source;
    backup->engine = copy_engine_new(job, &engine_options, error);
    return backup->engine ? 0 : -EIO;
}

/* A sample of a whole disk: of a bitmap that has all of it. */
static int limit_to_all(struct backup *backup, GError **error)
{
    struct dirty_bitmap *all = dirty_bitmap_new(NULL, backup->length, VERIFY_SAMPLE_CHUNK, error);

    if (!all) {
        return -ENOMEM;
    }
    if (backup->length > 0) {
        dirty_bitmap_set(all, 0, backup->length);
    }
    backup->bitmap.owned = all;
    backup->bitmap.is_limit = true;
    return 0;
}

static int new_verify(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);
    struct verify *verify = verify_new(job, options->verify, point_in_time_length(backup->point),
                                       block_node_length(options->target), error);

    if (!verify) {
        return -ENOMEM;
    }
    atomic_store(&backup->verify, verify);
    return verify_is_sample(verify) && options->sync == BACKUP_SYNC_FULL
               ? limit_to_all(backup, error)
               : 0;
}

/* Once they are claimed: nobody resizes them any more. */
static int check_lengths(const struct backup *backup, const struct verify *verify, GError **error)
{
    return verify_is_of(verify, point_in_time_length(backup->point),
                        block_node_length(backup->target))
               ? 0
               : block_error(error, EBUSY, "Node '%s' is just being resized", backup->target->name);
}

/* If the target is that of a mirror. */
static int watch_mirror(struct backup *backup, const struct backup_options *options, GError **error)
{
    bool is_mirrored;
    struct mirror_watch *watch =
        mirror_watch_new(options->source, options->target, &is_mirrored, error);

    if (watch) {
        verify_watch(atomic_load(&backup->verify), watch);
    }
    return watch || !is_mirrored ? 0 : -EBUSY;
}

static int set_up_verify(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);

    if (new_verify(job, options, error) < 0 || watch_mirror(backup, options, error) < 0 ||
        new_engine(job, options, error) < 0) {
        return -EIO;
    }
    return check_lengths(backup, atomic_load(&backup->verify), error);
}

static int choose_sync(struct backup *backup, const struct backup_options *options, GError **error)
{
    bool has_below = false;
    int status = 0;

    backup->sync = options->sync;
    if (options->sync == BACKUP_SYNC_TOP) {
        status = sync_top_keep_chain(backup->job, options->source, &has_below, error);
        backup->sync = has_below ? BACKUP_SYNC_TOP : BACKUP_SYNC_FULL;
    }
    return status;
}

static int set_up(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);
    struct backup_options complete = *options;
    AUTO(block_node) opened = NULL;

    backup->job = job;
    backup->on_target_error = options->on_target_error;
    backup->length = block_node_length(options->source);
    backup->bitmap.mode = options->bitmap_mode;
    backup->bitmap.is_limit = options->sync == BACKUP_SYNC_BITMAP;
    backup->bitmap.node = options->source;
    if (job_set_initial_speed(job, options->speed, error) < 0 ||
        job_set_initial_guest_latency(job, options->guest_latency, error) < 0 ||
        choose_sync(backup, options, error) < 0) {
        return -EINVAL;
    }
    if (!options->target) {
        complete.target = opened = options->open_target(options->open_target_data, error);
        if (!opened || check_nodes(&complete, error) < 0) {
            return -EINVAL;
        }
    }
    if (new_point(job, &complete, error) < 0) {
        return -EIO;
    }
    if (options->verify) {
        return set_up_verify(job, &complete, error);
    }
    return options->sync == BACKUP_SYNC_NONE ? 0 : new_engine(job, &complete, error);
}

static int insert_filter(struct job *job, const struct backup_options *options, GError **error)
{
    struct backup *backup = job_state(job);
    const struct chain_filter_options filter = {
        .name = options->filter_node_name,
        .job = job,
        .driver = &backup_filter_driver,
    };
    GUEST_WAITS_SCOPE(job_guest_waits(job));
    int status = chain_filter_insert(&backup->filter, &filter, options->source, error);

    if (status < 0) {
        g_prefix_error(error, "Could not create node: ");
    }
    return status;
}

static int check_filter_name(const struct backup_options *options, GError **error)
{
    int status = chain_filter_check_name(options->filter_node_name, error);

    if (status < 0) {
        g_prefix_error(error, "Could not create node: ");
    }
    return status;
}

/* Guests will write past a filter that another job takes away again: it is what is below it. */
struct job *backup_new(const struct backup_options *given, GError **error)
{
    AUTO(block_node) source = block_below_transient(given->source);
    struct backup_options complete = *given, *options = &complete;
    AUTO(job) job = NULL;

    complete.source = source;

    if ((options->target && check_nodes(options, error) < 0) ||
        check_performance_options(options, error) < 0 || check_discard_source(options, error) < 0 ||
        check_scratch(options, error) < 0 || check_filter_name(options, error) < 0) {
        return NULL;
    }
    job = job_new(options->verify ? &verify_driver : &backup_driver, options->job_id,
                  options->job_flags, options->transaction, error);
    if (!job) {
        return NULL;
    }
    if (set_up(job, options, error) < 0 || insert_filter(job, options, error) < 0) {
        job_early_fail(job);
        return NULL;
    }
    return STEAL(job);
}

int backup_take_bitmap(struct job *job, struct dirty_bitmap *bitmap, GError **error)
{
    struct backup *backup = job_state(job);

    return backup_bitmap_take(&backup->bitmap, bitmap, error);
}

void backup_give_back_bitmap(struct job *job)
{
    struct backup *backup = job_state(job);

    backup_bitmap_give_back(&backup->bitmap);
}

void backup_limit_to(struct job *job, struct dirty_bitmap *bitmap)
{
    struct backup *backup = job_state(job);

    backup->bitmap.owned = bitmap;
}

void backup_know_zeroes(struct job *job, struct dirty_bitmap *zeroes)
{
    struct backup *backup = job_state(job);

    backup->bitmap.zeroes = zeroes;
}

void backup_activate(struct job *job)
{
    struct backup *backup = job_state(job);

    if (backup->bitmap.is_limit) {
        g_assert(backup_bitmap_limit(&backup->bitmap));
        job_progress_set_total(job, dirty_bitmap_count(backup_bitmap_limit(&backup->bitmap)));
    }
    point_in_time_install(backup->point);
    struct mirror_watch *watch = watch_of(backup);
    if (watch) {
        mirror_watch_begin(watch);
    }
}
