/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/copy.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "jobs/copy-engine.h"
#include "jobs/job.h"
#include "jobs/work-list.h"
#include "sets/image.h"

#define JOB_ID "copy"

/* How often progress is told. */
#define TICK_NS (100 * NS_PER_MS)

struct set_copy {
    struct copy_source source; /* first: it is cast back */
    const struct copy_plan *plan;
    struct job *job;
    struct copy_engine *engine;
    struct dirty_bitmap *all; /* what is wanted, if the plan does not say */
    struct work_list list;
    uint64_t length;

    pthread_mutex_t lock; /* guards what follows; a leaf */
    pthread_cond_t ended;
    bool has_ended;
};

static struct set_copy *copy_of(struct copy_source *source)
{
    return (struct set_copy *)source;
}

/* ---- For the engine ------------------------------------------------------------------------- */

static bool next_run(struct copy_source *source, bool urgent_only, uint64_t max_bytes,
                     uint64_t *offset, uint64_t *bytes)
{
    struct work_list *list = &copy_of(source)->list;

    if (urgent_only) {
        return false;
    }
    if (work_list_take(list, source->engine, max_bytes, offset, bytes)) {
        return true;
    }
    list->cursor = 0; /* what was left to a later run lies behind it */
    return work_list_take(list, source->engine, max_bytes, offset, bytes);
}

static uint64_t extend_run(struct copy_source *source, uint64_t end, uint64_t max_bytes)
{
    return work_list_extend(&copy_of(source)->list, source->engine, end, max_bytes);
}

/* Up to where all is known to be zero: whole granules; offset if the first is not. */
static uint64_t known_zero_until(const struct copy_plan *plan, uint64_t offset, uint64_t end)
{
    uint64_t clean = plan->zeroes ? dirty_bitmap_next_clean(plan->zeroes, offset, end) : offset;

    return clean == UINT64_MAX ? end : align_down(clean, SUMS_GRANULE);
}

static int source_status(struct copy_source *source, uint64_t offset, uint64_t bytes,
                         struct block_extent *extent)
{
    const struct copy_plan *plan = copy_of(source)->plan;
    uint64_t zero_end = known_zero_until(plan, offset, offset + bytes);

    if (zero_end > offset) {
        *extent = (struct block_extent){.bytes = zero_end - offset, .flags = BLOCK_STATUS_ZERO};
        return 0;
    }
    return block_node_block_status_chain(plan->source, offset, bytes, extent, NULL);
}

/* Damage ends the copy, with the sentence that says where it is. */
static int read_backup(struct set_copy *copy, void *buffer, uint64_t offset, uint64_t bytes)
{
    GError *problem = NULL;
    int status = backup_chain_read(copy->plan->chain, buffer, offset, bytes, &problem);

    if (status < 0) {
        copy_engine_fail(copy->engine, problem);
    }
    return status;
}

static int source_read(struct copy_source *source, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct set_copy *copy = copy_of(source);
    const struct copy_plan *plan = copy->plan;
    int status = plan->chain ? read_backup(copy, buffer, offset, bytes)
                             : block_node_pread(plan->source, buffer, offset, bytes, 0);

    if (status == 0 && plan->sums) {
        status = sums_take_data(plan->sums, buffer, offset, bytes);
    }
    return status;
}

/* What was not read reads as zeroes, as the source has said. */
static int take_zeroes(struct sums *sums, uint64_t offset, uint64_t end)
{
    int status = 0;

    for (uint64_t next; status == 0 && offset < end; offset = next) {
        next = sums_same_until(sums, offset, end);
        if (sums_get(sums, offset, NULL) == GRANULE_ABSENT) {
            status = sums_take_zeroes(sums, offset, next - offset);
        }
    }
    return status;
}

static void run_done(struct copy_source *source, uint64_t offset, uint64_t bytes, bool is_copied)
{
    struct set_copy *copy = copy_of(source);
    struct sums *sums = copy->plan->sums;
    GError *problem = NULL;

    if (is_copied && sums && take_zeroes(sums, offset, offset + bytes) < 0) {
        block_error(&problem, ENOMEM, "There is no memory for the checksums");
        copy_engine_fail(copy->engine, problem);
    }
    work_list_done(&copy->list, offset, bytes, is_copied);
}

static bool is_finished(struct copy_source *source, bool is_idle)
{
    return is_idle && work_list_left(&copy_of(source)->list) == 0;
}

static const struct copy_source_operations operations = {
    .next = next_run,
    .extend = extend_run,
    .block_status = source_status,
    .pread = source_read,
    .done = run_done,
    .is_finished = is_finished,
};

/* ---- For the job ---------------------------------------------------------------------------- */

static struct set_copy *copy_of_job(struct job *job)
{
    return *(struct set_copy **)job_state(job);
}

static int run(struct job *job, GError **error)
{
    struct set_copy *copy = copy_of_job(job);

    job_set_phase(job, "copying");
    job_progress_set_total(job, work_list_left(&copy->list));
    int status = copy_engine_run(copy->engine, error);
    if (status == 0 && !job_is_cancelled(job)) {
        job_set_phase(job, "flushing");
        status = copy_engine_flush(copy->engine, INT64_MAX, error);
    }
    return job_is_cancelled(job) ? -ECANCELED : status;
}

static void wake(struct job *job)
{
    copy_engine_wake(copy_of_job(job)->engine);
}

static void clean(struct job *job)
{
    struct set_copy *copy = copy_of_job(job);

    g_clear_pointer(&copy->engine, copy_engine_free);
    SCOPE_LOCK(&copy->lock);
    copy->has_ended = true;
    pthread_cond_broadcast(&copy->ended);
}

static const struct job_driver driver = {
    .type = "backup",
    .instance_size = sizeof(struct set_copy *),
    .run = run,
    .wake = wake,
    .clean = clean,
};

/* ---- The call ------------------------------------------------------------------------------- */

static int prepare(struct set_copy *copy, GError **error)
{
    const struct copy_plan *plan = copy->plan;
    const struct copy_engine_options options = {
        .source = &copy->source,
        .length = copy->length,
        .unit = SUMS_GRANULE,
        .source_node = plan->source,
        .target = plan->target,
        .compress = plan->compress,
        .explicit_zeroes = plan->explicit_zeroes,
        .on_source_error = BLOCK_ERROR_POLICY_REPORT,
        .on_target_error = BLOCK_ERROR_POLICY_REPORT,
    };

    if (!plan->wanted) {
        copy->all = dirty_bitmap_new(NULL, copy->length, SUMS_GRANULE, error);
        if (!copy->all) {
            return -ENOMEM;
        }
        dirty_bitmap_set(copy->all, 0, copy->length);
    }
    copy->list.bitmap = plan->wanted ? plan->wanted : copy->all;
    if (job_set_initial_speed(copy->job, plan->speed, error) < 0) {
        return -EINVAL;
    }
    copy->engine = copy_engine_new(copy->job, &options, error);
    return copy->engine ? 0 : -EBUSY;
}

static bool tell(struct set_copy *copy)
{
    struct job_info info;

    job_get_info(copy->job, &info);
    bool goes_on =
        !copy->plan->progress ||
        copy->plan->progress(copy->plan->progress_data, info.current_progress, info.total_progress);
    job_info_clear(&info);
    return goes_on;
}

static bool wait_a_tick(struct set_copy *copy)
{
    int64_t deadline_ns = clock_now_ns() + TICK_NS;
    SCOPE_LOCK(&copy->lock);

    if (!copy->has_ended) {
        clock_cond_wait_until(&copy->ended, &copy->lock, deadline_ns);
    }
    return copy->has_ended;
}

static void follow(struct set_copy *copy)
{
    while (!wait_a_tick(copy)) {
        if (!tell(copy)) {
            job_cancel(copy->job, true, true, NULL);
        }
    }
    tell(copy);
}

/* How it ended; the job is forgotten. */
static int conclude(struct set_copy *copy, GError **error)
{
    struct job_info info;

    do { /* clean() was called, or is just returning */
        job_get_info(copy->job, &info);
        bool is_concluded = info.status == JOB_STATUS_CONCLUDED;
        if (is_concluded) {
            break;
        }
        job_info_clear(&info);
        g_usleep(1000);
    } while (true);
    bool is_cancelled = job_is_cancelled(copy->job);
    int status = is_cancelled ? block_error(error, ECANCELED, "It was interrupted")
                 : info.error ? block_error(error, EIO, "%s", info.error)
                              : 0;
    job_info_clear(&info);
    job_dismiss(copy->job, NULL);
    return status;
}

static int run_job(struct set_copy *copy, GError **error)
{
    AUTO(job) job = job_new(&driver, JOB_ID, JOB_MANUAL_DISMISS, NULL, error);

    if (!job) {
        return -EINVAL;
    }
    *(struct set_copy **)job_state(job) = copy;
    copy->job = job;
    int status = prepare(copy, error);
    if (status == 0) {
        status = job_start(job, error);
    }
    if (status < 0) {
        job_early_fail(job);
        return status;
    }
    follow(copy);
    return conclude(copy, error);
}

static int copy(const struct copy_plan *plan, GError **error)
{
    struct set_copy copy = {
        .source = {.operations = &operations},
        .plan = plan,
        .length = block_node_length(plan->source),
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .ended = PTHREAD_COND_INITIALIZER,
    };
    int status = copy.length ? run_job(&copy, error) : 0;

    g_clear_pointer(&copy.all, dirty_bitmap_free);
    pthread_cond_destroy(&copy.ended);
    pthread_mutex_destroy(&copy.lock);
    return status;
}

int copy_to_image(const struct copy_plan *plan, const char *path, GError **error)
{
    int status = copy(plan, error);

    if (status < 0) {
        block_node_dispose(plan->target);
        return status;
    }
    return image_finish(plan->target, path, error);
}

static bool is_up;

int copy_start_up(GError **error)
{
    int status = main_loop_start();

    is_up = status == 0;
    return status < 0 ? block_error_errno(error, -status, "Could not start a thread") : 0;
}

void copy_shut_down(void)
{
    if (is_up) {
        is_up = false;
        job_cancel_all(); /* there is none any more, but threads of theirs to be joined */
        main_loop_stop();
    }
}
