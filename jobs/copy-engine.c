/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy engine's life, its workers, and the choice of what to copy next. The I/O is in
 * copy-io.c, the guest's side in copy-guest.c.
 */
#include "jobs/copy-engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/thread.h"
#include "jobs/copy-engine-internal.h"

/* How long requests that are in flight at the end get before hanging ones are cut off. */
#define END_GRACE_NS NS_PER_SECOND

/*
 * Memory is bounded by workers times the chunk; with fewer workers than this, as for this many,
 * or guests would wait for each piece that is copied.
 */
#define MEMORY_CHUNKS_MIN 4u

/* ---- Bookkeeping ---------------------------------------------------------------------------- */

/* Lock held. */
static void wake_all(struct copy_engine *engine)
{
    pthread_cond_broadcast(&engine->changed);
    pthread_cond_broadcast(&engine->work);
}

void copy_engine_fail(struct copy_engine *engine, GError *error)
{
    if (engine->error) {
        g_error_free(error);
    } else {
        engine->error = error;
    }
    atomic_store(&engine->over, true);
    wake_all(engine);
    job_kick(engine->job);
}

struct copy_read *copy_engine_overlapping_read(struct copy_engine *engine, uint64_t offset,
                                               uint64_t end)
{
    struct copy_read *read, *first = NULL;

    TAILQ_FOREACH (read, &engine->reads, entry) {
        if (ranges_overlap(read->offset, read->end - read->offset, offset, end - offset) &&
            (!first || read->offset < first->offset)) {
            first = read;
        }
    }
    return first;
}

void copy_engine_queue_task(struct copy_engine *engine, void *buffer, uint64_t offset,
                            uint64_t bytes, uint64_t memory)
{
    struct copy_task *task = g_new(struct copy_task, 1);

    *task = (struct copy_task){
        .buffer = buffer,
        .offset = offset,
        .bytes = bytes,
        .memory = memory,
    };
    TAILQ_INSERT_TAIL(&engine->tasks, task, entry);
    pthread_cond_signal(&engine->work);
}

void copy_engine_release_memory(struct copy_engine *engine, uint64_t bytes)
{
    engine->memory_used -= bytes;
    pthread_cond_broadcast(&engine->changed);
}

bool copy_engine_task_overlaps(struct copy_engine *engine, uint64_t offset, uint64_t end)
{
    const struct copy_task *task;

    TAILQ_FOREACH (task, &engine->tasks, entry) {
        if (ranges_overlap(task->offset, task->bytes, offset, end - offset)) {
            return true;
        }
    }
    TAILQ_FOREACH (task, &engine->writing, entry) {
        if (ranges_overlap(task->offset, task->bytes, offset, end - offset)) {
            return true;
        }
    }
    return false;
}

/* ---- Choosing work. Lock held. -------------------------------------------------------------- */

/*
 * Whether one more worker may have a buffer. A quarter of the memory is the guests' alone, so that
 * a slow target that keeps all workers busy does not at once hold them up.
 */
static bool memory_allows_buffer(const struct copy_engine *engine)
{
    uint64_t size = engine->options.max_chunk;

    return engine->buffers == 0
               ? engine->memory_used == 0 || engine->memory_used + size <= engine->memory_limit
               : engine->memory_used + size <= engine->memory_limit &&
                     (engine->buffers + 1) * size <= engine->memory_limit / 4 * 3;
}

static bool background_may_start(struct copy_engine *engine, int64_t now_ns)
{
    return engine->options.copy_all && !engine->background_held && !engine->tasks_held &&
           !engine->source_drains && !engine->guests_waiting &&
           engine->active_background < engine->pace.workers && now_ns >= engine->retry_after_ns &&
           copy_pace_may_start(&engine->pace, job_speed(engine->job), now_ns);
}

/* The first unsaved run that nobody reads, at most chunk long. */
static bool choose_run(struct copy_engine *engine, uint64_t chunk, struct copy_read *run)
{
    uint64_t offset, bytes;
    bool is_first = true;

    for (uint64_t from = engine->cursor;
         copy_map_next_unsaved(engine->map, from, engine->length, chunk, &offset, &bytes);) {
        struct copy_read *other = copy_engine_overlapping_read(engine, offset, offset + bytes);

        if (is_first) {
            engine->cursor = offset;
            is_first = false;
        }
        if (!other || other->offset > offset) {
            *run = (struct copy_read){
                .offset = offset,
                .end = other ? other->offset : offset + bytes,
            };
            return true;
        }
        from = align_up(other->end, COPY_UNIT);
    }
    return false;
}

static struct copy_task *choose_task(struct copy_engine *engine, int64_t now_ns)
{
    struct copy_task *task = TAILQ_FIRST(&engine->tasks);

    if (!task || engine->tasks_held || now_ns < engine->retry_after_ns) {
        return NULL;
    }
    TAILQ_REMOVE(&engine->tasks, task, entry);
    TAILQ_INSERT_TAIL(&engine->writing, task, entry);
    return task;
}

/* ---- Workers -------------------------------------------------------------------------------- */

static int64_t processor_time_ns(void)
{
    struct timespec used;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return used.tv_sec * NS_PER_SECOND + used.tv_nsec;
}

/* Lock held; dropped while working. False if there is nothing to do now. */
static bool run_task(struct copy_engine *engine, int64_t now_ns)
{
    struct copy_task *task = choose_task(engine, now_ns);

    if (!task) {
        return false;
    }
    engine->active++;
    pthread_mutex_unlock(&engine->lock);
    copy_io_task(engine, task);
    pthread_mutex_lock(&engine->lock);
    engine->active--;
    return true;
}

/* Lock held, as in the functions that follow. */
static void drop_buffer(struct copy_engine *engine, void **buffer)
{
    if (*buffer) {
        free(STEAL(*buffer));
        engine->buffers--;
        copy_engine_release_memory(engine, engine->options.max_chunk);
    }
}

/* A worker keeps its buffer from piece to piece, as new memory costs more than what is copied. */
static bool have_buffer(struct copy_engine *engine, void **buffer)
{
    GError *error = NULL;

    if (*buffer) {
        return true;
    }
    if (!memory_allows_buffer(engine)) {
        return false;
    }
    *buffer = block_node_alloc_buffer(engine->options.source, engine->options.max_chunk);
    if (!*buffer) {
        block_error(&error, ENOMEM, "Not enough memory to copy");
        copy_engine_fail(engine, error);
        return false;
    }
    engine->buffers++;
    engine->memory_used += engine->options.max_chunk;
    return true;
}

/* The same for background copying. *buffer is the worker's own. */
static bool run_background(struct copy_engine *engine, void **buffer, int64_t now_ns)
{
    uint64_t chunk =
        copy_pace_chunk(&engine->pace, engine->options.max_chunk, job_speed(engine->job));
    struct copy_read run;

    if (!background_may_start(engine, now_ns) || !have_buffer(engine, buffer) ||
        !choose_run(engine, chunk, &run)) {
        return false;
    }
    copy_pace_account(&engine->pace, run.end - run.offset);
    TAILQ_INSERT_TAIL(&engine->reads, &run, entry);
    engine->active++;
    engine->active_background++;
    pthread_mutex_unlock(&engine->lock);

    int64_t used_ns = processor_time_ns();
    copy_io_run(engine, &run, buffer, chunk);
    used_ns = processor_time_ns() - used_ns;

    pthread_mutex_lock(&engine->lock);
    copy_pace_measure(&engine->pace, clock_now_ns() - now_ns, used_ns);
    engine->buffers -= !*buffer; /* it went to a task, and its memory with it */
    engine->active--;
    engine->active_background--;
    return true;
}

static void *worker_thread(void *data)
{
    struct copy_engine *engine = data;
    void *buffer = NULL;
    SCOPE_LOCK(&engine->lock);

    while (!engine->workers_end) {
        int64_t now_ns = clock_now_ns();
        bool may_work = !engine->drains && !atomic_load(&engine->over);
        bool worked =
            may_work && (run_task(engine, now_ns) || run_background(engine, &buffer, now_ns));

        if (engine->guests_waiting) {
            drop_buffer(engine, &buffer);
        }
        if (worked) {
            pthread_cond_broadcast(&engine->changed);
            /* The coordinator sleeps in ticks; only an end or a pause is worth waking it. */
            if (engine->active == 0) {
                job_kick(engine->job);
            }
        } else {
            pthread_cond_wait(&engine->work, &engine->lock);
        }
    }
    drop_buffer(engine, &buffer);
    return NULL;
}

/* Lock held. As many workers as may copy now, one more if saved data queues up. */
static void start_workers(struct copy_engine *engine)
{
    bool crowded = !TAILQ_EMPTY(&engine->tasks) && engine->active == engine->workers->len;
    unsigned wanted = MAX_OF(engine->pace.workers, engine->workers->len + crowded);

    while (engine->workers->len < MIN_OF(wanted, engine->options.max_workers)) {
        pthread_t thread;
        int status = thread_create(&thread, worker_thread, engine);

        if (status) {
            GError *error = NULL;

            if (engine->workers->len == 0) {
                block_error_errno(&error, status, "Could not start a worker thread");
                copy_engine_fail(engine, error);
            }
            return; /* fewer will do */
        }
        g_ptr_array_add(engine->workers, (void *)thread);
    }
}

static void end_workers(struct copy_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->workers_end = true;
    wake_all(engine);
    pthread_mutex_unlock(&engine->lock);
    for (unsigned i = 0; i < engine->workers->len; i++) {
        pthread_join((pthread_t)g_ptr_array_index(engine->workers, i), NULL);
    }
    g_ptr_array_set_size(engine->workers, 0);
}

/* ---- Coordination --------------------------------------------------------------------------- */

/* Lock held. Nothing is unsaved, in memory, or in flight. */
static bool is_complete(struct copy_engine *engine)
{
    uint64_t offset, bytes;

    if (!engine->options.copy_all || engine->active || !TAILQ_EMPTY(&engine->tasks) ||
        !TAILQ_EMPTY(&engine->reads)) {
        return false;
    }
    engine->cursor = 0;
    return !copy_map_next_unsaved(engine->map, 0, engine->length, COPY_UNIT, &offset, &bytes);
}

/*
 * Lock held; dropped while paused. The job wants to pause: let background copying come to rest.
 * What guests save still goes to the target, unless the target is what failed.
 */
static void pause_background(struct copy_engine *engine)
{
    engine->background_held = true;
    if (engine->active_background) {
        return;
    }
    pthread_mutex_unlock(&engine->lock);
    job_pause_point(engine->job);
    pthread_mutex_lock(&engine->lock);
}

/* One look at everything. False when the run is over. Lock held, dropped while paused. */
static bool coordinate(struct copy_engine *engine)
{
    if (atomic_load(&engine->over) || job_is_cancelled(engine->job) || is_complete(engine)) {
        return false;
    }
    if (job_should_pause(engine->job)) {
        pause_background(engine);
    } else {
        engine->background_held = false;
        engine->tasks_held = false; /* resumed: what failed is tried again */
    }
    copy_pace_look(&engine->pace, clock_now_ns());
    start_workers(engine);
    pthread_cond_broadcast(&engine->work);
    return true;
}

/* Wait for what is in flight; a request that hangs on a dead target is cut off. */
static void come_to_rest(struct copy_engine *engine)
{
    int64_t deadline_ns = clock_now_ns() + END_GRACE_NS;
    SCOPE_LOCK(&engine->lock);

    atomic_store(&engine->over, true);
    wake_all(engine);
    while (engine->active) {
        if (clock_cond_wait_until(&engine->changed, &engine->lock, deadline_ns) == ETIMEDOUT) {
            pthread_mutex_unlock(&engine->lock);
            block_node_cancel_in_flight(engine->options.target);
            pthread_mutex_lock(&engine->lock);
            deadline_ns = INT64_MAX;
        }
    }
}

int copy_engine_run(struct copy_engine *engine, GError **error)
{
    bool go_on;

    do {
        pthread_mutex_lock(&engine->lock);
        go_on = coordinate(engine);
        pthread_mutex_unlock(&engine->lock);
        if (go_on) {
            job_sleep_until(engine->job, clock_now_ns() + COPY_TICK_NS);
        }
    } while (go_on);
    come_to_rest(engine);
    end_workers(engine);
    /* Guests may be in the notifier still, and fail to save what nobody wants any more. */
    SCOPE_LOCK(&engine->lock);
    if (engine->error) {
        int status = block_error_code(engine->error);

        g_propagate_error(error, g_error_copy(engine->error));
        return status;
    }
    return job_is_cancelled(engine->job) ? -ECANCELED : 0;
}

/* ---- Flushing the target -------------------------------------------------------------------- */

static void *flush_thread(void *data)
{
    struct copy_engine *engine = data;
    int status = block_node_flush(engine->options.target);
    SCOPE_LOCK(&engine->lock);

    engine->flush_status = status;
    engine->active--;
    pthread_cond_broadcast(&engine->changed);
    return NULL;
}

/* Begin to flush as soon as the target is not drained, unless the job is cancelled before. */
static int start_flush(struct copy_engine *engine, pthread_t *thread)
{
    SCOPE_LOCK(&engine->lock);

    while (engine->drains && !job_is_cancelled(engine->job)) {
        pthread_cond_wait(&engine->changed, &engine->lock);
    }
    if (job_is_cancelled(engine->job)) {
        return -ECANCELED;
    }
    int status = thread_create(thread, flush_thread, engine);
    if (status == 0) {
        engine->active++;
    }
    return -status;
}

int copy_engine_flush(struct copy_engine *engine, GError **error)
{
    pthread_t thread;
    int status = start_flush(engine, &thread);

    if (status == 0) {
        pthread_mutex_lock(&engine->lock);
        while (engine->active && !job_is_cancelled(engine->job)) {
            pthread_cond_wait(&engine->changed, &engine->lock);
        }
        pthread_mutex_unlock(&engine->lock);
        come_to_rest(engine);
        pthread_join(thread, NULL);
        status = engine->flush_status;
    }
    if (job_is_cancelled(engine->job)) {
        return -ECANCELED;
    }
    return status < 0 ? block_error_errno(error, -status, "Could not flush target node '%s'",
                                          engine->options.target->name)
                      : 0;
}

void copy_engine_wake(struct copy_engine *engine)
{
    SCOPE_LOCK(&engine->lock);

    wake_all(engine);
}

/* ---- Drains --------------------------------------------------------------------------------- */

static struct copy_engine *engine_of_target(struct block_claim *claim)
{
    return (struct copy_engine *)((char *)claim - offsetof(struct copy_engine, target_claim));
}

static void drain_begin(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_target(claim);
    SCOPE_LOCK(&engine->lock);

    engine->drains++;
}

static void drain_wait(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_target(claim);
    SCOPE_LOCK(&engine->lock);

    while (engine->active) {
        pthread_cond_wait(&engine->changed, &engine->lock);
    }
}

static void drain_end(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_target(claim);
    SCOPE_LOCK(&engine->lock);

    engine->drains--;
    wake_all(engine);
}

/* Guests' writes in flight may wait for the target, so they are to be quiet first. */
static const struct block_claim_operations target_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .drain_last = true,
};

static struct copy_engine *engine_of_source(struct block_claim *claim)
{
    return (struct copy_engine *)((char *)claim - offsetof(struct copy_engine, source_claim));
}

static void source_drain_begin(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_source(claim);
    SCOPE_LOCK(&engine->lock);

    engine->source_drains++;
}

/* Only for what is being read, not for what is on its way to a target that may hang. */
static void source_drain_wait(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_source(claim);
    SCOPE_LOCK(&engine->lock);

    while (!TAILQ_EMPTY(&engine->reads)) {
        pthread_cond_wait(&engine->changed, &engine->lock);
    }
}

static void source_drain_end(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_source(claim);
    SCOPE_LOCK(&engine->lock);

    engine->source_drains--;
    pthread_cond_broadcast(&engine->work);
}

static const struct block_claim_operations source_operations = {
    .drain_begin = source_drain_begin,
    .drain_wait = source_drain_wait,
    .drain_end = source_drain_end,
    .drain_last = true,
};

/* ---- Life ----------------------------------------------------------------------------------- */

/*
 * The source is read, others may write it: their writes are noticed. The target must look the
 * same to nobody else's writes, and neither may change its length.
 */
static int claim_nodes(struct copy_engine *engine, GError **error)
{
    const char *id = job_id(engine->job);
    int status;

    engine->source_claim.owner = g_strdup_printf("block job '%s'", id);
    engine->source_claim.operations = &source_operations;
    engine->source_claim.perms = BLOCK_PERM_READ;
    engine->source_claim.shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_GRAPH;
    engine->target_claim.owner = g_strdup_printf("block job '%s'", id);
    engine->target_claim.operations = &target_operations;
    engine->target_claim.perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE;
    engine->target_claim.shared = BLOCK_PERM_READ;
    status = block_claim_acquire(&engine->source_claim, engine->options.source, error);
    if (status == 0) {
        status = block_claim_acquire(&engine->target_claim, engine->options.target, error);
    }
    return status;
}

static void set_defaults(struct copy_engine_options *options)
{
    if (!options->max_workers) {
        options->max_workers = COPY_DEFAULT_MAX_WORKERS;
    }
    if (!options->max_chunk) {
        options->max_chunk = COPY_DEFAULT_CHUNK;
    }
}

struct copy_engine *copy_engine_new(struct job *job, const struct copy_engine_options *options,
                                    GError **error)
{
    AUTO(copy_engine) engine = g_new0(struct copy_engine, 1);

    engine->options = *options;
    set_defaults(&engine->options);
    engine->job = job_ref(job);
    engine->length = block_node_length(options->source);
    engine->notifier.before_write = copy_guest_before_write;
    engine->memory_limit =
        MAX_OF(engine->options.max_workers, MEMORY_CHUNKS_MIN) * engine->options.max_chunk;
    engine->workers = g_ptr_array_new();
    atomic_init(&engine->offload_works, true);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->changed, NULL);
    pthread_cond_init(&engine->work, NULL);
    TAILQ_INIT(&engine->reads);
    TAILQ_INIT(&engine->tasks);
    TAILQ_INIT(&engine->writing);
    copy_pace_init(&engine->pace, options->guest, engine->options.max_workers);
    if (options->guest) {
        block_device_ref(options->guest);
    }
    engine->map = copy_map_new(engine->length, error);
    if (!engine->map || claim_nodes(engine, error) < 0) {
        return NULL;
    }
    return STEAL(engine);
}

void copy_engine_install(struct copy_engine *engine)
{
    block_node_add_notifier(engine->options.source, &engine->notifier);
    engine->installed = true;
}

static void remove_notifier(void *data)
{
    struct copy_engine *engine = data;

    block_node_remove_notifier(engine->options.source, &engine->notifier);
    engine->installed = false;
}

void copy_engine_uninstall(struct copy_engine *engine)
{
    if (engine->installed) {
        struct block_node *source = engine->options.source;

        /* Guests that wait in the notifier must not keep the drain waiting for them. */
        pthread_mutex_lock(&engine->lock);
        atomic_store(&engine->over, true);
        wake_all(engine);
        pthread_mutex_unlock(&engine->lock);
        AUTO(block_drain) drain = block_drain_begin(&source, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(remove_notifier, engine);
    }
}

void copy_engine_free(struct copy_engine *engine)
{
    struct copy_task *task, *next;

    g_assert(!engine->installed && engine->workers->len == 0);
    TAILQ_FOREACH_SAFE (task, &engine->tasks, entry, next) {
        free(task->buffer);
        g_free(task);
    }
    block_claim_release(&engine->source_claim);
    block_claim_release(&engine->target_claim);
    g_free(engine->source_claim.owner);
    g_free(engine->target_claim.owner);
    if (engine->map) {
        copy_map_free(engine->map);
    }
    block_device_unref(engine->options.guest);
    g_clear_error(&engine->error);
    g_ptr_array_unref(engine->workers);
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->changed);
    pthread_cond_destroy(&engine->work);
    job_unref(engine->job);
    g_free(engine);
}
