/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many clients drive many jobs at once, at random, while their nodes are drained. What must hold:
 * no driver does I/O while its node is drained, each callback comes once and in its turn, each
 * job's status changes are legal, and all ends.
 */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "jobs/job.h"
#include "tests/lib/nothing-node.h"

#define CREATORS 3
#define CLIENTS  4
#define DRAINERS 2
#define ROUNDS   150 /* per creator */
#define GROUP    3   /* jobs per round */
#define LIVE     12

static struct block_node *node;

/* Drained sections now, and jobs doing I/O now: never both. */
static _Atomic unsigned drained;
static _Atomic unsigned in_io;

static _Atomic bool over; /* the creators have ended */
static _Atomic unsigned created, cleaned, committed, aborted;

static pthread_mutex_t freed_lock = PTHREAD_MUTEX_INITIALIZER; /* guards freed */
static pthread_cond_t freed_changed = PTHREAD_COND_INITIALIZER;
static unsigned freed;

enum stage { NEW, RAN, PREPARED, COMMITTED, ABORTED, CLEANED };

struct work {
    _Atomic enum stage stage;
    _Atomic bool asked; /* wake() was called */
    uint32_t seed;
};

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* A stop is resumed by some client, or cancelled. */
static int do_io(struct job *job, struct work *work)
{
    atomic_fetch_add(&in_io, 1);
    g_assert_cmpuint(atomic_load(&drained), ==, 0);
    sched_yield();
    g_assert_cmpuint(atomic_load(&drained), ==, 0);
    atomic_fetch_sub(&in_io, 1);
    job_progress_add(job, 1);
    if (next(&work->seed) % 64 == 0) {
        enum block_error_policy policy = next(&work->seed) % BLOCK_ERROR_POLICY_ENOSPC;

        if (job_io_error(job, policy, true, EIO) == BLOCK_ERROR_POLICY_REPORT) {
            return -EIO;
        }
    }
    return 0;
}

static int run(struct job *job, GError **error)
{
    struct work *work = job_state(job);
    unsigned length = next(&work->seed) % 30;

    g_assert_cmpint(atomic_exchange(&work->stage, RAN), ==, NEW);
    for (unsigned i = 0; i < length || job_driver_of(job)->can_complete; i++) {
        job_pause_point(job);
        if (job_is_cancelled(job)) {
            return -ECANCELED;
        }
        if (do_io(job, work) < 0) {
            return -EIO;
        }
        if (i >= length) {
            job_set_ready(job);
            if (job_completion_requested(job) || job_cancel_requested(job)) {
                return 0;
            }
        }
        atomic_store(&work->asked, false);
        job_sleep_until(job, clock_now_ns() + NS_PER_MS / 10);
    }
    return 0;
}

static void wake(struct job *job)
{
    struct work *work = job_state(job);

    g_assert_cmpint(atomic_load(&work->stage), <=, PREPARED); /* or just preparing */
    atomic_store(&work->asked, true);
}

static int prepare(struct job *job, GError **error)
{
    struct work *work = job_state(job);

    g_assert_cmpint(atomic_exchange(&work->stage, PREPARED), ==, RAN);
    sched_yield();
    return next(&work->seed) % 16 == 0 ? -EIO : 0;
}

/* In half of the cases, as when a filter is removed. */
static void drain_node(struct work *work)
{
    if (next(&work->seed) % 2) {
        block_drain_end(block_drain_begin(&node, 1, BLOCK_PERM_WRITE));
    }
}

static void commit(struct job *job)
{
    struct work *work = job_state(job);

    g_assert_cmpint(atomic_exchange(&work->stage, COMMITTED), ==, PREPARED);
    drain_node(work);
    committed++;
}

static void abort_(struct job *job)
{
    struct work *work = job_state(job);

    g_assert_cmpint(atomic_exchange(&work->stage, ABORTED), <=, PREPARED);
    drain_node(work);
    aborted++;
}

static void clean(struct job *job)
{
    struct work *work = job_state(job);
    enum stage stage = atomic_exchange(&work->stage, CLEANED);

    g_assert_true(stage == COMMITTED || stage == ABORTED || stage == NEW);
    job_release_nodes(job);
    cleaned++;
}

static void free_(struct job *job)
{
    SCOPE_LOCK(&freed_lock);

    freed++;
    pthread_cond_broadcast(&freed_changed);
}

/* Not more at once than can get on. */
static void wait_for_jobs(void)
{
    SCOPE_LOCK(&freed_lock);

    while (created - freed > LIVE) {
        pthread_cond_wait(&freed_changed, &freed_lock);
    }
}

#define WORK                                                                                       \
    .is_block_job = true, .instance_size = sizeof(struct work), .run = run, .wake = wake,          \
    .prepare = prepare, .commit = commit, .abort = abort_, .clean = clean, .free = free_

static const struct job_driver drivers[] = {
    {.type = "backup", WORK},
    {.type = "mirror", .can_complete = true, .soft_cancel_completes = true, WORK},
};

/* Status changes as the events tell them; main thread. */
static GHashTable *last_status;

static bool is_legal(const char *from, const char *to)
{
    static const char *const legal[] = {
        "none created",     "created running",    "created aborting", "created null",
        "running paused",   "running ready",      "running waiting",  "running aborting",
        "paused running",   "ready standby",      "ready waiting",    "ready aborting",
        "standby ready",    "waiting pending",    "waiting aborting", "pending concluded",
        "pending aborting", "aborting concluded", "concluded null",   NULL,
    };
    g_autofree char *change = g_strdup_printf("%s %s", from, to);

    return g_strv_contains(legal, change);
}

static void check_event(const struct event *event, void *data)
{
    if (!g_str_equal(event->name, "JOB_STATUS_CHANGE")) {
        return;
    }
    const char *id = event->fields[0].string, *status = event->fields[1].string;
    const char *last = g_hash_table_lookup(last_status, id);

    g_assert_true(is_legal(last ? last : "none", status));
    if (g_str_equal(status, "null")) {
        g_hash_table_remove(last_status, id);
    } else {
        g_hash_table_replace(last_status, g_strdup(id), g_strdup(status));
    }
}

static struct job *create(unsigned creator, unsigned i, struct job_transaction *transaction,
                          uint32_t *seed)
{
    g_autofree char *id = g_strdup_printf("job-%u-%u", creator, i);
    g_autoptr(GError) error = NULL;
    struct job *job = job_new(&drivers[next(seed) % G_N_ELEMENTS(drivers)], id, next(seed) % 4,
                              transaction, &error);

    g_assert_no_error(error);
    struct work *work = job_state(job);
    work->seed = next(seed);
    job_claim_node(job, node, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &error);
    g_assert_no_error(error);
    created++;
    return job;
}

static void end_creation(struct job *job, uint32_t *seed, bool alone)
{
    unsigned how = alone ? next(seed) % 8 : 7;

    if (how == 0) {
        job_early_fail(job);
    } else if (how == 1) {
        job_roll_back(job);
    } else {
        g_assert_cmpint(job_start(job, NULL), ==, 0);
    }
}

static void *run_creator(void *data)
{
    unsigned creator = GPOINTER_TO_UINT(data); /* unique; the seed as well */
    uint32_t seed = creator;

    for (unsigned round = 0; round < ROUNDS; round++) {
        bool grouped = next(&seed) % 2;
        AUTO(job_transaction) transaction = job_transaction_new(grouped);
        struct job *jobs[GROUP];

        for (unsigned i = 0; i < GROUP; i++) {
            jobs[i] = create(creator, round * GROUP + i, transaction, &seed);
        }
        for (unsigned i = 0; i < GROUP; i++) {
            end_creation(jobs[i], &seed, !grouped);
            job_unref(jobs[i]);
        }
        wait_for_jobs();
    }
    return NULL;
}

static void give_verb(struct job *job, uint32_t *seed)
{
    struct job_info info;

    switch (next(seed) % 16) {
    case 0:
        job_user_pause(job, NULL);
        break;
    case 1:
        if (next(seed) % 50 == 0) { /* there are many of us */
            job_cancel(job, next(seed) % 2, next(seed) % 2, NULL);
        }
        break;
    case 2:
    case 3:
        job_complete(job, NULL);
        break;
    case 4:
    case 5:
        job_finalize(job, NULL);
        break;
    case 6:
    case 7:
        job_dismiss(job, NULL);
        break;
    case 8:
        job_set_speed(job, next(seed), NULL);
        break;
    case 9:
        job_get_info(job, &info);
        job_info_clear(&info);
        break;
    default:
        job_user_resume(job, NULL);
    }
}

static void *run_client(void *data)
{
    uint32_t seed = GPOINTER_TO_UINT(data);

    while (!atomic_load(&over)) {
        struct job **jobs = job_list();

        for (unsigned i = 0; jobs[i]; i++) {
            give_verb(jobs[i], &seed);
        }
        job_list_free(jobs);
        sched_yield();
    }
    return NULL;
}

static void *run_drainer(void *data)
{
    while (!atomic_load(&over)) {
        struct block_drain *section = block_drain_begin(&node, 1, BLOCK_PERM_WRITE);

        g_assert_cmpuint(atomic_load(&in_io), ==, 0);
        atomic_fetch_add(&drained, 1);
        sched_yield();
        g_assert_cmpuint(atomic_load(&in_io), ==, 0);
        atomic_fetch_sub(&drained, 1);
        block_drain_end(section);
        g_usleep(200); /* lets them work; nothing depends on it */
    }
    return NULL;
}

static void start(pthread_t *threads, unsigned count, void *(*function)(void *), unsigned seed)
{
    for (unsigned i = 0; i < count; i++) {
        void *data = GUINT_TO_POINTER(seed + i);

        g_assert_cmpint(pthread_create(&threads[i], NULL, function, data), ==, 0);
    }
}

static void join(pthread_t *threads, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void add_listener(void *data)
{
    event_add_listener(check_event, NULL);
}

static void remove_listener(void *data)
{
    event_remove_listener(check_event, NULL);
    g_assert_cmpuint(g_hash_table_size(last_status), ==, 0);
}

static void torture(void)
{
    pthread_t creators[CREATORS], clients[CLIENTS], drainers[DRAINERS];
    unsigned seed = (unsigned)g_test_rand_int();

    g_test_message("seed %u", seed);
    start(drainers, DRAINERS, run_drainer, 0);
    start(clients, CLIENTS, run_client, seed);
    start(creators, CREATORS, run_creator, seed + CLIENTS);
    join(creators, CREATORS);
    job_cancel_all();
    atomic_store(&over, true);
    join(clients, CLIENTS);
    join(drainers, DRAINERS);
    g_test_message("%u jobs: %u committed, %u aborted", created, committed, aborted);
    g_assert_cmpuint(created, ==, CREATORS * ROUNDS * GROUP);
    g_assert_cmpuint(cleaned, ==, created);
    g_assert_cmpuint(freed, ==, created);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_assert_cmpint(main_loop_start(), ==, 0);
    last_status = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    main_loop_call_wait(add_listener, NULL);
    node = nothing_node_new("n");
    g_test_add_func("/job/torture", torture);
    int status = g_test_run();
    main_loop_call_wait(remove_listener, NULL);
    g_hash_table_unref(last_status);
    block_node_unref(node);
    main_loop_stop();
    return status;
}
