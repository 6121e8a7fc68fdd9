/* SPDX-License-Identifier: BSD-3-Clause */
/* What the copy engine promises to the jobs on it, with a source that the test makes up. */
#include "jobs/copy-engine.h"

#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "tests/lib/memory-driver.h"

#define UNIT   UINT64_C(4096)
#define LENGTH (64 * UNIT)

/* A job that copies what a bitmap says, from a disk in memory to another. */
struct copier {
    struct copy_source source; /* first */
    struct job *job;
    struct copy_engine *engine;
    struct block_node *from, *to;
    struct dirty_bitmap *left;
    _Atomic bool stay; /* do not finish when idle */
    _Atomic bool urgent;
    _Atomic unsigned runs;
    _Atomic unsigned refusals; /* of urgent requests */
    _Atomic unsigned idle;
    _Atomic bool started;
    _Atomic bool again; /* run the engine a second time */
    bool hurry;         /* allow the flush no time */
    bool pause_first;   /* pause the job before the engine runs */
};

static struct copier *copier; /* of the test */

static bool next(struct copy_source *source, bool urgent_only, uint64_t max_bytes, uint64_t *offset,
                 uint64_t *bytes)
{
    uint64_t busy, busy_bytes;

    if (urgent_only && !atomic_load(&copier->urgent)) {
        atomic_fetch_add(&copier->refusals, 1);
        return false;
    }
    if (!dirty_bitmap_next_range(copier->left, 0, LENGTH, max_bytes, offset, bytes)) {
        return false;
    }
    if (copy_engine_find_busy(source->engine, *offset, *bytes, &busy, &busy_bytes)) {
        return false; /* when that run has left flight, we are asked again */
    }
    dirty_bitmap_reset(copier->left, *offset, *bytes);
    atomic_fetch_add(&copier->runs, 1);
    return true;
}

static uint64_t extend(struct copy_source *source, uint64_t end, uint64_t max_bytes)
{
    uint64_t offset, bytes;

    if (!dirty_bitmap_next_range(copier->left, end, LENGTH, max_bytes, &offset, &bytes) ||
        offset != end) {
        return 0;
    }
    dirty_bitmap_reset(copier->left, offset, bytes);
    return bytes;
}

static int block_status(struct copy_source *source, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    return block_node_block_status_chain(copier->from, offset, bytes, extent, NULL);
}

static int read_data(struct copy_source *source, void *buffer, uint64_t offset, uint64_t bytes)
{
    return block_node_pread(copier->from, buffer, offset, bytes, 0);
}

static int copy_range(struct copy_source *source, struct block_node *target, uint64_t offset,
                      uint64_t bytes)
{
    return -ENOTSUP;
}

static void done(struct copy_source *source, uint64_t offset, uint64_t bytes, bool is_copied)
{
    g_assert_cmpuint(offset % UNIT, ==, 0);
    if (!is_copied) {
        dirty_bitmap_set(copier->left, offset, bytes);
    }
}

static bool is_finished(struct copy_source *source, bool is_idle)
{
    if (is_idle) {
        atomic_fetch_add(&copier->idle, 1);
    }
    return is_idle && !atomic_load(&copier->stay) && dirty_bitmap_count(copier->left) == 0;
}

/* Called when what is in flight at the end has hung for a while. */
static void cancel_in_flight(struct copy_source *source)
{
    memory_disk_release(copier->to);
}

static const struct copy_source_operations operations = {
    .next = next,
    .extend = extend,
    .block_status = block_status,
    .pread = read_data,
    .copy_range = copy_range,
    .done = done,
    .is_finished = is_finished,
    .cancel_in_flight = cancel_in_flight,
};

static int run(struct job *job, GError **error)
{
    atomic_store(&copier->started, true);
    if (copier->pause_first) {
        g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    }
    int status = copy_engine_run(copier->engine, error);

    if (status == 0 && atomic_load(&copier->again)) {
        dirty_bitmap_set(copier->left, 0, LENGTH);
        status = copy_engine_run(copier->engine, error);
    }
    int64_t deadline_ns = copier->hurry ? clock_now_ns() : INT64_MAX;
    return status == 0 ? copy_engine_flush(copier->engine, deadline_ns, error) : status;
}

static void wake(struct job *job)
{
    copy_engine_wake(copier->engine);
}

static const struct job_driver driver = {
    .type = "backup",
    .is_block_job = true,
    .instance_size = 1,
    .run = run,
    .wake = wake,
};

static struct block_node *new_disk(const char *name, uint8_t fill)
{
    AUTO(block_options) options = block_options_new();
    struct block_node *node;

    block_options_set(options, "driver", "memory");
    block_options_set(options, "node-name", name);
    block_options_set(options, "size", "262144");
    node = block_node_open(options, false, NULL);
    g_assert_nonnull(node);
    memset(memory_disk_data(node), fill, LENGTH);
    return node;
}

static void set_up(const struct copy_engine_options *more)
{
    struct copy_engine_options options = more ? *more : (struct copy_engine_options){0};

    copier = g_new0(struct copier, 1);
    copier->source.operations = &operations;
    copier->from = new_disk("from", 0xaa);
    copier->to = new_disk("to", 0x11);
    copier->left = dirty_bitmap_new(NULL, LENGTH, UNIT, NULL);
    dirty_bitmap_set(copier->left, 0, LENGTH);
    copier->job = job_new(&driver, "job0", JOB_MANUAL_DISMISS, NULL, NULL);
    options.source = &copier->source;
    options.length = LENGTH;
    options.unit = UNIT;
    options.source_node = copier->from;
    options.target = copier->to;
    copier->engine = copy_engine_new(copier->job, &options, NULL);
    g_assert_nonnull(copier->engine);
}

static void start(void)
{
    g_assert_cmpint(job_start(copier->job, NULL), ==, 0);
}

static void wait_for(_Atomic unsigned *counter, unsigned value)
{
    while (atomic_load(counter) < value) {
        g_usleep(1000);
    }
}

static void wait_for_status(enum job_status status)
{
    while (job_get_status(copier->job) != status) {
        g_usleep(1000);
    }
}

/* Wait for the end; the error, or NULL. Everything is given back. */
static char *end(void)
{
    struct job_info info;

    wait_for_status(JOB_STATUS_CONCLUDED);
    job_get_info(copier->job, &info);
    char *error = g_strdup(info.error);
    job_info_clear(&info);
    g_assert_cmpint(job_dismiss(copier->job, NULL), ==, 0);
    copy_engine_free(copier->engine);
    job_unref(copier->job);
    dirty_bitmap_free(copier->left);
    block_node_unref(copier->from);
    block_node_unref(copier->to);
    g_free(STEAL(copier));
    return error;
}

static void assert_copied(void)
{
    g_assert_cmpmem(memory_disk_data(copier->to), LENGTH, memory_disk_data(copier->from), LENGTH);
}

static void end_well(void)
{
    wait_for_status(JOB_STATUS_CONCLUDED);
    assert_copied();
    g_assert_null(end());
}

/* Everything a source names reaches the target; it is flushed; the job's progress says so. */
static void test_copies(void)
{
    struct job_info info;

    set_up(NULL);
    start();
    wait_for_status(JOB_STATUS_CONCLUDED);
    job_get_info(copier->job, &info);
    g_assert_cmpuint(info.current_progress, ==, LENGTH);
    job_info_clear(&info);
    g_assert_cmpuint(memory_disk_count(copier->to, BLOCK_OPERATION_FLUSH), >=, 1);
    end_well();
}

/* A unit larger than the chunk is copied in pieces, and only as a whole. */
static void test_large_unit(void)
{
    set_up(&(struct copy_engine_options){.max_chunk = 4096, .max_workers = 1});
    g_assert_cmpuint(memory_disk_count(copier->to, BLOCK_OPERATION_WRITE), ==, 0);
    memory_disk_fail(copier->to, BLOCK_OPERATION_WRITE, -EIO, 5, 1);
    start();
    g_autofree char *error = end();
    g_assert_nonnull(strstr(error, "Could not write target node 'to'"));
}

/* What failed is still to be copied: with `ignore` it is tried again until it works. */
static void test_tried_again(void)
{
    set_up(&(struct copy_engine_options){.on_target_error = BLOCK_ERROR_POLICY_IGNORE,
                                         .on_source_error = BLOCK_ERROR_POLICY_IGNORE});
    memory_disk_fail(copier->to, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    memory_disk_fail(copier->from, BLOCK_OPERATION_READ, -EIO, 0, 1);
    start();
    end_well();
}

/* With `stop` the job is paused; resuming it copies what failed. */
static void test_stop(void)
{
    set_up(&(struct copy_engine_options){.on_target_error = BLOCK_ERROR_POLICY_STOP});
    memory_disk_fail(copier->to, BLOCK_OPERATION_WRITE, -ENOSPC, 0, 1);
    start();
    wait_for_status(JOB_STATUS_PAUSED);
    g_assert_cmpint(job_user_resume(copier->job, NULL), ==, 0);
    end_well();
}

/* While the job is paused nothing is begun but what is urgent. */
static void test_urgent(void)
{
    set_up(&(struct copy_engine_options){.max_chunk = UNIT});
    atomic_store(&copier->stay, true);
    start();
    wait_for(&copier->idle, 1);
    g_assert_cmpint(job_user_pause(copier->job, NULL), ==, 0);
    wait_for_status(JOB_STATUS_PAUSED);
    unsigned runs = atomic_load(&copier->runs);
    unsigned refusals = atomic_load(&copier->refusals);
    dirty_bitmap_set(copier->left, 0, LENGTH);
    copy_engine_wake(copier->engine);
    wait_for(&copier->refusals, refusals + 1);
    g_assert_cmpuint(atomic_load(&copier->runs), ==, runs);
    atomic_store(&copier->urgent, true);
    copy_engine_wake(copier->engine);
    wait_for(&copier->runs, runs + 1);
    g_assert_cmpint(job_get_status(copier->job), ==, JOB_STATUS_PAUSED);
    g_assert_cmpint(job_user_resume(copier->job, NULL), ==, 0);
    atomic_store(&copier->stay, false);
    copy_engine_wake(copier->engine);
    end_well();
}

/*
 * Guests that wait for what is urgent are not left alone by a job that is paused from its start,
 * nor by one that met an error in a pause.
 */
static void test_urgent_from_the_start(void)
{
    set_up(&(struct copy_engine_options){.on_target_error = BLOCK_ERROR_POLICY_IGNORE,
                                         .max_chunk = UNIT});
    memory_disk_fail(copier->to, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    copier->pause_first = true;
    atomic_store(&copier->stay, true);
    start();
    wait_for_status(JOB_STATUS_PAUSED);
    atomic_store(&copier->urgent, true);
    copy_engine_wake(copier->engine);
    while (dirty_bitmap_count(copier->left) > 0) {
        g_usleep(1000);
    }
    g_assert_cmpint(job_get_status(copier->job), ==, JOB_STATUS_PAUSED);
    g_assert_cmpint(job_user_resume(copier->job, NULL), ==, 0);
    atomic_store(&copier->stay, false);
    end_well();
}

/* An engine may run again after a run that ended well. */
static void test_again(void)
{
    set_up(NULL);
    atomic_store(&copier->again, true);
    start();
    wait_for_status(JOB_STATUS_CONCLUDED);
    g_assert_cmpuint(atomic_load(&copier->idle), >=, 2);
    end_well();
}

/* Who fails the engine from outside ends the job with that error, the first one. */
static void test_fail(void)
{
    GError *error = NULL;

    set_up(NULL);
    atomic_store(&copier->stay, true);
    start();
    wait_for(&copier->idle, 1);
    block_error(&error, EIO, "The first");
    copy_engine_fail(copier->engine, STEAL(error));
    block_error(&error, EIO, "The second");
    copy_engine_fail(copier->engine, error);
    g_autofree char *message = end();
    g_assert_cmpstr(message, ==, "The first");
}

/* An engine with nothing to do that is to stay looks for work now and then, not all the time. */
static void test_idle(void)
{
    set_up(NULL);
    atomic_store(&copier->stay, true);
    start();
    wait_for(&copier->idle, 1);
    g_usleep(200000);
    g_assert_cmpuint(atomic_load(&copier->idle), <, 10000); /* without rest: far more */
    atomic_store(&copier->stay, false);
    end_well();
}

/* A flush that is not done in the time it has got has failed. */
static void test_late_flush(void)
{
    set_up(NULL);
    copier->hurry = true;
    memory_disk_hold(copier->to, BLOCK_OPERATION_FLUSH);
    start();
    g_autofree char *message = end();
    g_assert_cmpstr(message, ==, "Could not flush target node 'to': Connection timed out");
}

/* A drain of the source waits for reads, not for a target that hangs; nothing is begun then. */
static void test_drain(void)
{
    set_up(&(struct copy_engine_options){.max_workers = 1, .max_chunk = UNIT});
    memory_disk_hold(copier->to, BLOCK_OPERATION_WRITE);
    start();
    memory_disk_wait_held(copier->to, 1);
    /* Draining the source waits for reads only. */
    struct block_node *from = copier->from;
    struct block_drain *drain = block_drain_begin(&from, 1, BLOCK_PERM_ALL);
    unsigned runs = atomic_load(&copier->runs);
    memory_disk_release(copier->to);
    g_usleep(50000);
    g_assert_cmpuint(atomic_load(&copier->runs), ==, runs);
    block_drain_end(drain);
    end_well();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    main_loop_init();
    g_assert_cmpint(main_loop_start(), ==, 0);
    g_test_add_func("/copy-engine/copies", test_copies);
    g_test_add_func("/copy-engine/large-unit", test_large_unit);
    g_test_add_func("/copy-engine/tried-again", test_tried_again);
    g_test_add_func("/copy-engine/stop", test_stop);
    g_test_add_func("/copy-engine/urgent", test_urgent);
    g_test_add_func("/copy-engine/urgent-from-the-start", test_urgent_from_the_start);
    g_test_add_func("/copy-engine/again", test_again);
    g_test_add_func("/copy-engine/fail", test_fail);
    g_test_add_func("/copy-engine/idle", test_idle);
    g_test_add_func("/copy-engine/late-flush", test_late_flush);
    g_test_add_func("/copy-engine/drain", test_drain);
    int status = g_test_run();
    job_cancel_all(); /* joins the threads */
    main_loop_stop();
    return status;
}
