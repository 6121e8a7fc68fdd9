/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine's life, its workers and their coordination. The I/O is in copy-io.c. */
#include "jobs/copy-engine.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/request.h"
#include "block/thread.h"
#include "jobs/copy-engine-internal.h"

/*
 * How long requests that are in flight at the end get before hanging ones are cut off; and after
 * that those which followed them in the same run.
 */
#define END_GRACE_NS     NS_PER_SECOND
#define CUT_OFF_AGAIN_NS (100 * NS_PER_MS)

/* ---- Bookkeeping ---------------------------------------------------------------------------- */

/* Lock held. */
static void wake_all(struct copy_engine *engine)
{
    pthread_cond_broadcast(&engine->changed);
    pthread_cond_broadcast(&engine->work);
}

void copy_engine_fail(struct copy_engine *engine, GError *error)
{
    SCOPE_LOCK(&engine->lock);

    if (engine->error) {
        g_error_free(error);
    } else {
        engine->error = error;
    }
    atomic_store(&engine->over, true);
    wake_all(engine);
    job_kick(engine->job);
}

bool copy_engine_find_busy(struct copy_engine *engine, uint64_t offset, uint64_t bytes,
                           uint64_t *busy_offset, uint64_t *busy_bytes)
{
    struct copy_run *run, *first = NULL;

    TAILQ_FOREACH (run, &engine->runs, entry) {
        if (ranges_overlap(run->offset, run->end - run->offset, offset, bytes) &&
            (!first || run->offset < first->offset)) {
            first = run;
        }
    }
    if (first) {
        *busy_offset = first->offset;
        *busy_bytes = first->end - first->offset;
    }
    return first;
}

/* A run is taken off the list, and back, under the lock, or is in flight meanwhile. */
void copy_engine_find_unsettled(struct copy_engine *engine, struct dirty_bitmap *list,
                                struct dirty_bitmap *unsettled)
{
    const struct copy_run *run;
    SCOPE_LOCK(&engine->lock);

    TAILQ_FOREACH (run, &engine->runs, entry) {
        dirty_bitmap_set(unsettled, run->offset, run->end - run->offset);
    }
    dirty_bitmap_merge(unsettled, list, NULL); /* of the same length */
}

void copy_engine_set_effort(struct copy_engine *engine, enum copy_effort effort)
{
    SCOPE_LOCK(&engine->lock);

    copy_pace_set_effort(&engine->pace, effort);
    pthread_cond_broadcast(&engine->work);
}

/* ---- Workers -------------------------------------------------------------------------------- */

/* Lock held, as in the functions that follow. Whether anything at all may be begun. */
static bool may_start(const struct copy_engine *engine, int64_t now_ns)
{
    return !engine->is_held && !engine->is_away && !engine->target_drains &&
           !engine->source_drains && !atomic_load(&engine->over) &&
           now_ns >= engine->retry_after_ns;
}

/* Whether also what nobody waits for may be. */
static bool may_start_any(struct copy_engine *engine, int64_t now_ns)
{
    return !engine->is_pausing && engine->active < engine->pace.workers &&
           copy_pace_may_start(&engine->pace, job_speed(engine->job), now_ns);
}

/*
 * A worker keeps its buffer from run to run, as new memory costs more than what is copied. Who
 * compares has a second one behind it, for the other side.
 */
static bool have_buffer(struct copy_engine *engine, void **buffer)
{
    unsigned sides = engine->source->operations->compare ? 2 : 1;

    if (!*buffer) {
        *buffer =
            block_node_alloc_buffer(engine->options.source_node, sides * engine->options.max_chunk);
    }
    return *buffer;
}

static void fail_without_memory(struct copy_engine *engine)
{
    GError *error = NULL;

    block_error(&error, ENOMEM, "Not enough memory to copy");
    pthread_mutex_unlock(&engine->lock);
    copy_engine_fail(engine, error);
    pthread_mutex_lock(&engine->lock);
}

/* Choose a run and put it in flight. */
static bool take_run(struct copy_engine *engine, bool urgent_only, struct copy_run *run)
{
    uint64_t chunk =
        copy_pace_chunk(&engine->pace, engine->options.max_chunk, job_speed(engine->job));
    uint64_t offset, bytes;

    if (!engine->source->operations->next(engine->source, urgent_only, chunk, &offset, &bytes)) {
        if (!urgent_only && !engine->active && !engine->starved) {
            engine->starved = true;
            job_kick(engine->job);
        }
        return false;
    }
    *run = (struct copy_run){.offset = offset, .end = offset + bytes, .is_reading = true};
    TAILQ_INSERT_TAIL(&engine->runs, run, entry);
    engine->active++;
    engine->starved = false;
    engine->is_urgent |= urgent_only;
    /* Where there is one run there may be another; but who may not begin it is not woken. */
    if (urgent_only || engine->active < engine->pace.workers) {
        pthread_cond_signal(&engine->work);
    }
    copy_pace_account(&engine->pace, bytes);
    return true;
}

/* False if there is nothing to do now. The lock is dropped while copying. */
static bool work(struct copy_engine *engine, void **buffer, int account)
{
    int64_t now_ns = clock_now_ns();
    struct copy_run run;

    if (!may_start(engine, now_ns)) {
        return false;
    }
    if (!have_buffer(engine, buffer)) {
        fail_without_memory(engine);
        return false;
    }
    if (!take_run(engine, !may_start_any(engine, now_ns), &run)) {
        return false;
    }
    pthread_mutex_unlock(&engine->lock);

    struct copy_use before = copy_pace_use(account);
    copy_io_run(engine, &run, *buffer, engine->options.max_chunk);
    struct copy_use use = copy_pace_use(account);
    use.processor_ns -= before.processor_ns;
    use.queued_ns -= before.queued_ns;

    pthread_mutex_lock(&engine->lock);
    TAILQ_REMOVE(&engine->runs, &run, entry);
    engine->active--;
    copy_pace_measure(&engine->pace, now_ns, clock_now_ns(), use);
    return true;
}

/* Until something changes, or what is known to end has ended: there are no ticks in a pause. */
static void wait_for_work(struct copy_engine *engine)
{
    int64_t until_ns = MAX_OF(copy_pace_next_start_ns(&engine->pace), engine->retry_after_ns);

    if (until_ns > clock_now_ns()) {
        clock_cond_wait_until(&engine->work, &engine->lock, until_ns);
    } else {
        pthread_cond_wait(&engine->work, &engine->lock);
    }
}

static void *worker_thread(void *data)
{
    struct copy_engine *engine = data;
    void *buffer = NULL;
    int account = copy_pace_open_account();
    GUEST_WAITS_SCOPE(job_guest_waits(engine->job));

    pthread_mutex_lock(&engine->lock);
    while (!engine->workers_end) {
        if (work(engine, &buffer, account)) {
            pthread_cond_broadcast(&engine->changed);
            /* The coordinator sleeps in ticks; only an end or a pause is worth waking it. */
            if (!engine->active && engine->is_pausing) {
                job_kick(engine->job);
            }
        } else {
            wait_for_work(engine);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    free(buffer);
    if (account >= 0) {
        close(account);
    }
    return NULL;
}

/* Lock held. As many workers as may copy now, one more if guests wait for those there are. */
static void start_workers(struct copy_engine *engine)
{
    unsigned more = engine->is_urgent && engine->active == engine->workers->len;
    unsigned wanted = MAX_OF(engine->pace.workers, engine->workers->len + more);

    engine->is_urgent = false;
    while (engine->workers->len < MIN_OF(wanted, engine->options.max_workers)) {
        pthread_t thread;
        int status = thread_create(&thread, worker_thread, engine);

        if (status) {
            GError *error = NULL;

            if (engine->workers->len == 0) {
                block_error_errno(&error, status, "Could not start a worker thread");
                pthread_mutex_unlock(&engine->lock);
                copy_engine_fail(engine, error);
                pthread_mutex_lock(&engine->lock);
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
    engine->workers_end = false;
}

/* ---- Coordination --------------------------------------------------------------------------- */

/*
 * Lock held; dropped while paused. The job wants to pause: let the workers come to rest, but for
 * what guests wait for.
 */
static void pause_workers(struct copy_engine *engine)
{
    if (!engine->is_pausing) {
        engine->is_pausing = true;
        pthread_cond_broadcast(&engine->changed); /* who waits to enter had better not */
    }
    if (engine->active || engine->entered) {
        return;
    }
    pthread_mutex_unlock(&engine->lock);
    job_pause_point(engine->job);
    pthread_mutex_lock(&engine->lock);
}

/* One look at everything. False when the run is over. Lock held, dropped in between. */
static bool coordinate(struct copy_engine *engine)
{
    bool is_idle = engine->starved && !engine->active;

    if (atomic_load(&engine->over) || job_is_cancelled(engine->job)) {
        return false;
    }
    pthread_mutex_unlock(&engine->lock);
    bool is_finished = engine->source->operations->is_finished(engine->source, is_idle);
    pthread_mutex_lock(&engine->lock);
    if (is_finished) {
        return false;
    }
    copy_pace_set_guest_latency(&engine->pace, job_guest_latency(engine->job));
    copy_pace_look(&engine->pace, clock_now_ns());
    job_tell_guest_pace(engine->job, engine->pace.latency.pace, engine->pace.latency.p99_ns);
    start_workers(engine); /* before a pause: guests may wait for them in it */
    pthread_cond_signal(&engine->work);
    if (job_should_pause(engine->job)) {
        pause_workers(engine);
    } else {
        engine->is_pausing = false;
        engine->is_held = false; /* resumed: what failed is tried again */
    }
    return true;
}

void copy_engine_cut_off_target(struct copy_engine *engine)
{
    if (!engine->options.target_is_in_use) {
        block_node_cancel_in_flight(engine->options.target);
    }
}

static void cancel_in_flight(struct copy_engine *engine)
{
    copy_engine_cut_off_target(engine);
    if (engine->source->operations->cancel_in_flight) {
        engine->source->operations->cancel_in_flight(engine->source);
    }
}

/* Wait for what is in flight; a request that hangs on a dead target of our own is cut off. */
static void come_to_rest(struct copy_engine *engine)
{
    int64_t deadline_ns = clock_now_ns();
    SCOPE_LOCK(&engine->lock);

    if (!engine->is_away) { /* there is nothing to be hoped for from one that is */
        deadline_ns += END_GRACE_NS;
    }
    atomic_store(&engine->over, true);
    wake_all(engine);
    while (engine->active || engine->errand_runs) {
        if (clock_cond_wait_until(&engine->changed, &engine->lock, deadline_ns) == ETIMEDOUT) {
            pthread_mutex_unlock(&engine->lock);
            cancel_in_flight(engine);
            pthread_mutex_lock(&engine->lock);
            deadline_ns = clock_now_ns() + CUT_OFF_AGAIN_NS;
        }
    }
}

/* What it found is of no use any more. */
static void forget_errand(struct copy_engine *engine)
{
    int status;

    copy_engine_take_errand(engine, &status);
}

/* Lock held. A run that is not the first begins where the last one ended. */
static void begin_run(struct copy_engine *engine)
{
    atomic_store(&engine->over, engine->error != NULL);
    engine->starved = false;
    engine->is_pausing = false;
    engine->is_held = false;
}

int copy_engine_run(struct copy_engine *engine, GError **error)
{
    bool go_on;

    pthread_mutex_lock(&engine->lock);
    begin_run(engine);
    pthread_mutex_unlock(&engine->lock);
    do {
        pthread_mutex_lock(&engine->lock);
        go_on = coordinate(engine);
        pthread_mutex_unlock(&engine->lock);
        if (go_on) {
            job_sleep_until(engine->job, clock_now_ns() + COPY_TICK_NS);
        }
    } while (go_on);
    come_to_rest(engine);
    forget_errand(engine);
    end_workers(engine);
    job_tell_guest_pace(engine->job, GUEST_PACE_FREE, 0);
    SCOPE_LOCK(&engine->lock);
    engine->is_pausing = false;
    if (engine->error) {
        int status = block_error_code(engine->error);

        g_propagate_error(error, g_error_copy(engine->error));
        return status;
    }
    return job_is_cancelled(engine->job) ? -ECANCELED : 0;
}

/* ---- Errands --------------------------------------------------------------------------------- */

static void *errand_thread(void *data)
{
    struct copy_engine *engine = data;
    GUEST_WAITS_SCOPE(job_guest_waits(engine->job));
    int status = engine->errand(engine->errand_data);
    SCOPE_LOCK(&engine->lock);

    engine->errand_status = status;
    engine->errand_runs = false;
    pthread_cond_broadcast(&engine->changed);
    job_kick(engine->job);
    return NULL;
}

bool copy_engine_start_errand(struct copy_engine *engine, copy_errand *errand, void *data)
{
    SCOPE_LOCK(&engine->lock);

    if (engine->target_drains || atomic_load(&engine->over)) {
        return false;
    }
    engine->errand = errand;
    engine->errand_data = data;
    engine->errand_runs = thread_create(&engine->errand_thread, errand_thread, engine) == 0;
    if (!engine->errand_runs) {
        engine->errand = NULL;
    }
    return engine->errand_runs;
}

bool copy_engine_take_errand(struct copy_engine *engine, int *status)
{
    pthread_mutex_lock(&engine->lock);
    bool is_over = engine->errand && !engine->errand_runs;
    pthread_mutex_unlock(&engine->lock);
    if (is_over) {
        pthread_join(engine->errand_thread, NULL);
        engine->errand = NULL;
        *status = engine->errand_status;
    }
    return is_over;
}

bool copy_engine_is_idle(struct copy_engine *engine)
{
    SCOPE_LOCK(&engine->lock);

    return !engine->active;
}

bool copy_engine_is_quiet(struct copy_engine *engine)
{
    SCOPE_LOCK(&engine->lock);

    return !engine->active && !engine->entered;
}

void copy_engine_target_is_away(struct copy_engine *engine)
{
    SCOPE_LOCK(&engine->lock);

    engine->is_away = true;
    pthread_cond_broadcast(&engine->changed); /* who waits to enter had better not */
}

void copy_engine_target_is_back(struct copy_engine *engine)
{
    SCOPE_LOCK(&engine->lock);

    engine->is_away = false;
    engine->retry_after_ns = 0;
    engine->starved = false;
    wake_all(engine);
}

/* ---- Flushing the target -------------------------------------------------------------------- */

static void *flush_thread(void *data)
{
    struct copy_engine *engine = data;
    GUEST_WAITS_SCOPE(job_guest_waits(engine->job));
    int status = block_node_flush(engine->options.target);
    SCOPE_LOCK(&engine->lock);

    engine->flush_status = status;
    engine->active--;
    pthread_cond_broadcast(&engine->changed);
    return NULL;
}

/* Nobody waits for the flush any more. */
static bool is_unwanted(const struct copy_engine *engine)
{
    return !engine->flushes_anyway && job_is_cancelled(engine->job);
}

/* Lock held. Wait for a change; false when there is no more waiting. */
static bool wait_while_wanted(struct copy_engine *engine, int64_t deadline_ns)
{
    return !is_unwanted(engine) &&
           clock_cond_wait_until(&engine->changed, &engine->lock, deadline_ns) != ETIMEDOUT;
}

/* Begin to flush as soon as the target is not drained, unless the job is cancelled before. */
static int start_flush(struct copy_engine *engine, int64_t deadline_ns, pthread_t *thread)
{
    SCOPE_LOCK(&engine->lock);

    while (engine->target_drains) {
        if (!wait_while_wanted(engine, deadline_ns)) {
            return -ETIMEDOUT;
        }
    }
    if (is_unwanted(engine)) {
        return -ECANCELED;
    }
    int status = thread_create(thread, flush_thread, engine);
    if (status == 0) {
        engine->active++;
    }
    return -status;
}

/* Returns a negative errno, without an error. */
static int flush(struct copy_engine *engine, int64_t deadline_ns)
{
    pthread_t thread;
    int status = start_flush(engine, deadline_ns, &thread);

    if (status == 0) {
        pthread_mutex_lock(&engine->lock);
        while (engine->active && wait_while_wanted(engine, deadline_ns)) {
        }
        bool is_late = engine->active;
        pthread_mutex_unlock(&engine->lock);
        come_to_rest(engine);
        pthread_join(thread, NULL);
        status = is_late ? -ETIMEDOUT : engine->flush_status;
    }
    return status;
}

int copy_engine_flush_anyway(struct copy_engine *engine, int64_t deadline_ns)
{
    engine->flushes_anyway = true;
    int status = flush(engine, deadline_ns);
    engine->flushes_anyway = false;
    return status;
}

int copy_engine_flush(struct copy_engine *engine, int64_t deadline_ns, GError **error)
{
    int status = flush(engine, deadline_ns);

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

    engine->starved = false;
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

    engine->target_drains++;
}

static void drain_wait(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_target(claim);
    SCOPE_LOCK(&engine->lock);

    while (engine->active || engine->entered || engine->errand_runs) {
        pthread_cond_wait(&engine->changed, &engine->lock);
    }
}

static void drain_end(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_target(claim);
    SCOPE_LOCK(&engine->lock);

    engine->target_drains--;
    wake_all(engine);
}

/* Guests' writes in flight may wait for the target, so they are to be quiet first. */
static const struct block_claim_operations target_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .drain_turn = BLOCK_DRAIN_COPIES,
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

static bool is_reading(const struct copy_engine *engine)
{
    const struct copy_run *run;

    TAILQ_FOREACH (run, &engine->runs, entry) {
        if (run->is_reading) {
            return true;
        }
    }
    return false;
}

/* Only for what is being read, not for what is on its way to a target that may hang. */
static void source_drain_wait(struct block_claim *claim)
{
    struct copy_engine *engine = engine_of_source(claim);
    SCOPE_LOCK(&engine->lock);

    while (is_reading(engine)) {
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
    .drain_turn = BLOCK_DRAIN_COPIES,
};

/* ---- Life ----------------------------------------------------------------------------------- */

/* The target must look the same to nobody else's writes, and neither may change its length. */
const struct copy_claims copy_default_claims = {
    .source_perms = BLOCK_PERM_READ,
    .source_shared = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_INVISIBLE,
    .target_perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE,
    .target_shared = BLOCK_PERM_READ,
};

static int claim_nodes(struct copy_engine *engine, GError **error)
{
    const struct copy_claims *claims = engine->options.claims;
    const char *id = job_id(engine->job);
    int status;

    engine->source_claim.owner = g_strdup_printf("block job '%s'", id);
    engine->source_claim.operations = &source_operations;
    engine->source_claim.perms = claims->source_perms;
    engine->source_claim.shared = claims->source_shared;
    engine->source_claim.moves_places = claims->source_moves_places;
    engine->target_claim.owner = g_strdup_printf("block job '%s'", id);
    engine->target_claim.operations = &target_operations;
    engine->target_claim.perms = claims->target_perms;
    engine->target_claim.shared = claims->target_shared;
    engine->target_claim.beside = claims->target_beside;
    status = block_claim_acquire(&engine->source_claim, engine->options.source_node, error);
    if (status == 0) {
        status = block_claim_acquire(&engine->target_claim, engine->options.target, error);
    }
    return status;
}

/* It is kept by who copies beside a guest. */
static int check_guest_latency(struct copy_engine *engine, GError **error)
{
    if (engine->options.guest) {
        job_accept_guest_latency(engine->job);
        return 0;
    }
    return job_guest_latency(engine->job)
               ? block_error(error, EINVAL,
                             "There is no guest whose latency could be kept: no device is on node "
                             "'%s'",
                             engine->options.source_node->name)
               : 0;
}

static void set_defaults(struct copy_engine_options *options)
{
    if (!options->max_workers) {
        options->max_workers = COPY_DEFAULT_MAX_WORKERS;
    }
    if (!options->max_chunk) {
        options->max_chunk = COPY_DEFAULT_CHUNK;
    }
    if (!options->claims) {
        options->claims = &copy_default_claims;
    }
}

struct copy_engine *copy_engine_new(struct job *job, const struct copy_engine_options *options,
                                    GError **error)
{
    AUTO(copy_engine) engine = g_new0(struct copy_engine, 1);

    engine->options = *options;
    set_defaults(&engine->options);
    engine->job = job_ref(job);
    engine->source = options->source;
    engine->source->engine = engine;
    engine->workers = g_ptr_array_new();
    atomic_init(&engine->offload_works, true);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->changed, NULL);
    pthread_cond_init(&engine->work, NULL);
    TAILQ_INIT(&engine->runs);
    copy_pace_init(&engine->pace, options->guest, engine->options.max_workers);
    if (options->guest) {
        block_device_ref(options->guest);
    }
    int status = check_guest_latency(engine, error);
    if (status == 0) {
        status = claim_nodes(engine, error);
    }
    engine->options.claims = NULL; /* it need not outlive this call */
    return status == 0 ? STEAL(engine) : NULL;
}

struct block_claim *copy_engine_source_claim(struct copy_engine *engine)
{
    return &engine->source_claim;
}

struct block_claim *copy_engine_target_claim(struct copy_engine *engine)
{
    return &engine->target_claim;
}

void copy_engine_free(struct copy_engine *engine)
{
    g_assert(engine->workers->len == 0 && TAILQ_EMPTY(&engine->runs));
    block_claim_release(&engine->source_claim);
    block_claim_release(&engine->target_claim);
    g_free(engine->source_claim.owner);
    g_free(engine->target_claim.owner);
    block_device_unref(engine->options.guest);
    g_clear_error(&engine->error);
    g_ptr_array_unref(engine->workers);
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->changed);
    pthread_cond_destroy(&engine->work);
    job_unref(engine->job);
    g_free(engine);
}
