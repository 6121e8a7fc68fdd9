/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions of actions that do nothing but tell: the order of steps, on which thread and when
 * drained, and what is taken back at every place where one can fail.
 */
#include "server/transaction.h"

#include <errno.h>
#include <string.h>

#include "block/device.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "tests/lib/disk.h"
#include "tests/lib/event-log.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/scripted-job.h"

/* Data of an action: {"id": "a", "fail": "prepare", "drain": "node"}. */
struct teller {
    char *id;
    bool fails_to_change;
    bool fails_to_apply;
    struct job *job;
};

static void (*when_changed)(void);
static void (*when_activated)(void);

static void tell(struct transaction_action *action, const char *step, bool on_main_thread)
{
    struct teller *teller = transaction_state(action);

    g_assert_cmpint(main_loop_is_current(), ==, on_main_thread);
    event_log_call(teller->id, step);
}

static bool fails(json_t *data, const char *step)
{
    return g_strcmp0(json_string_value(json_object_get(data, "fail")), step) == 0;
}

static int fail(struct teller *teller, const char *step, GError **error)
{
    return block_error(error, EIO, "%s failed to %s", teller->id, step);
}

static int prepare(struct transaction_action *action, json_t *data, GError **error)
{
    struct teller *teller = transaction_state(action);
    const char *name = json_string_value(json_object_get(data, "drain"));
    AUTO(block_node) node = name ? block_node_find(name) : NULL;

    teller->id = g_strdup(json_string_value(json_object_get(data, "id")));
    teller->fails_to_change = fails(data, "change");
    teller->fails_to_apply = fails(data, "apply");
    tell(action, "prepare", false);
    if (node) {
        transaction_drain(action, node);
    }
    return fails(data, "prepare") ? fail(teller, "prepare", error) : 0;
}

static int change(struct transaction_action *action, GError **error)
{
    struct teller *teller = transaction_state(action);

    tell(action, "change", false);
    if (when_changed) {
        when_changed();
    }
    return teller->fails_to_change ? fail(teller, "change", error) : 0;
}

static int apply(struct transaction_action *action, GError **error)
{
    struct teller *teller = transaction_state(action);

    tell(action, "apply", true);
    return teller->fails_to_apply ? fail(teller, "apply", error) : 0;
}

static void undo(struct transaction_action *action)
{
    tell(action, "undo", true);
    if (when_activated) {
        when_activated();
    }
}

static void revert(struct transaction_action *action)
{
    tell(action, "revert", false);
    if (when_activated) {
        when_activated();
    }
}

static void activate(struct transaction_action *action)
{
    tell(action, "activate", true);
    if (when_activated) {
        when_activated();
    }
}

static void commit(struct transaction_action *action)
{
    tell(action, "commit", false);
}

static void take_back(struct transaction_action *action)
{
    tell(action, "abort", false);
}

static void clean(struct transaction_action *action)
{
    struct teller *teller = transaction_state(action);

    tell(action, "clean", false);
    g_free(teller->id);
}

static const struct transaction_action_type teller_type = {
    .name = "tell",
    .data = &qmp_type_any,
    .state_size = sizeof(struct teller),
    .prepare = prepare,
    .change = change,
    .apply = apply,
    .undo = undo,
    .revert = revert,
    .activate = activate,
    .commit = commit,
    .abort = take_back,
    .clean = clean,
};

/* An action that has no step at all. */
static const struct transaction_action_type silent_type = {
    .name = "silent",
    .data = &qmp_type_any,
};

/* ---- Order ----------------------------------------------------------------------------------- */

static json_t *data_of(const char *id, const char *failing)
{
    return json_pack("{s:s, s:s*}", "id", id, "fail", failing);
}

/* Three actions, of which "b" fails at this step; the error's message, or NULL. */
static char *run_three(const char *failing)
{
    AUTO(transaction) transaction = transaction_new(false);
    json_t *data[] = {data_of("a", NULL), data_of("b", failing), data_of("c", NULL)};
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(data); i++) {
        g_assert_cmpint(transaction_add(transaction, &teller_type, data[i], NULL), ==, 0);
    }
    int status = transaction_run(transaction, &error);
    g_assert_cmpint(status, ==, error ? -EIO : 0);
    for (size_t i = 0; i < G_N_ELEMENTS(data); i++) {
        json_decref(data[i]);
    }
    return error ? g_strdup(error->message) : NULL;
}

static void test_success(void)
{
    g_autofree char *error = run_three(NULL);

    g_assert_null(error);
    EXPECT("a.prepare()", "b.prepare()", "c.prepare()", "a.change()", "b.change()", "c.change()",
           "a.apply()", "b.apply()", "c.apply()", "a.activate()", "b.activate()", "c.activate()",
           "a.commit()", "b.commit()", "c.commit()", "c.clean()", "b.clean()", "a.clean()");
}

static void test_failed_prepare(void)
{
    g_autofree char *error = run_three("prepare");

    g_assert_cmpstr(error, ==, "b failed to prepare");
    EXPECT("a.prepare()", "b.prepare()", "a.abort()", "b.clean()", "a.clean()");
}

static void test_failed_change(void)
{
    g_autofree char *error = run_three("change");

    g_assert_cmpstr(error, ==, "b failed to change");
    EXPECT("a.prepare()", "b.prepare()", "c.prepare()", "a.change()", "b.change()", "a.revert()",
           "c.abort()", "b.abort()", "a.abort()", "c.clean()", "b.clean()", "a.clean()");
}

static void test_failed_apply(void)
{
    g_autofree char *error = run_three("apply");

    g_assert_cmpstr(error, ==, "b failed to apply");
    EXPECT("a.prepare()", "b.prepare()", "c.prepare()", "a.change()", "b.change()", "c.change()",
           "a.apply()", "b.apply()", "a.undo()", "c.revert()", "b.revert()", "a.revert()",
           "c.abort()", "b.abort()", "a.abort()", "c.clean()", "b.clean()", "a.clean()");
}

static void test_empty(void)
{
    for (unsigned grouped = 0; grouped < 2; grouped++) {
        AUTO(transaction) transaction = transaction_new(grouped);

        g_assert_cmpint(transaction_run(transaction, NULL), ==, 0);
    }
    EXPECT_NOTHING();
}

static void test_missing_steps(void)
{
    static const char *const failing[] = {NULL, "prepare", "change", "apply"};
    json_t *answer = transaction_run_single(&silent_type, NULL, NULL);

    g_assert_nonnull(answer);
    json_decref(answer);
    for (size_t i = 0; i < G_N_ELEMENTS(failing); i++) {
        AUTO(transaction) transaction = transaction_new(false);
        json_t *data = data_of("a", failing[i]);

        transaction_add(transaction, &silent_type, NULL, NULL);
        transaction_add(transaction, &teller_type, data, NULL);
        g_assert_cmpint(transaction_run(transaction, NULL), ==, i ? -EIO : 0);
        json_decref(data);
    }
    event_log_clear();
}

static void test_single(void)
{
    g_autoptr(GError) error = NULL;
    json_t *data = data_of("a", NULL);
    json_t *answer = transaction_run_single(&teller_type, data, NULL);

    g_assert_true(json_is_object(answer));
    json_decref(answer);
    EXPECT("a.prepare()", "a.change()", "a.apply()", "a.activate()", "a.commit()", "a.clean()");
    json_object_set_new(data, "fail", json_string("apply"));
    g_assert_null(transaction_run_single(&teller_type, data, &error));
    g_assert_cmpstr(error->message, ==, "a failed to apply");
    EXPECT("a.prepare()", "a.change()", "a.apply()", "a.revert()", "a.abort()", "a.clean()");
    json_decref(data);
}

static void test_grouped_refused(void)
{
    AUTO(transaction) transaction = transaction_new(true);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(transaction_add(transaction, &teller_type, NULL, &error), ==, -ENOTSUP);
    g_assert_cmpstr(error->message, ==,
                    "Action 'tell' does not support transaction property completion-mode = "
                    "grouped");
}

/* ---- Plans ----------------------------------------------------------------------------------- */

/* Data: a list of ["ask" or "plan", key, whether]. */
static int prepare_plans(struct transaction_action *action, json_t *data, GError **error)
{
    json_t *item;
    size_t index;

    json_array_foreach (data, index, item) {
        const char *key = json_string_value(json_array_get(item, 1));
        bool exists = json_is_true(json_array_get(item, 2));

        if (g_str_equal(json_string_value(json_array_get(item, 0)), "plan")) {
            transaction_plan(action, key, exists);
        } else {
            bool now = json_is_true(json_array_get(item, 3));

            g_assert_cmpint(transaction_is_planned(action, key, now), ==, exists);
        }
    }
    return 0;
}

static void test_plans(void)
{
    static const struct transaction_action_type planner_type = {
        .name = "plan",
        .data = &qmp_type_any,
        .prepare = prepare_plans,
    };
    json_t *first = json_pack("[[ssbb] [ssbb] [ssb] [ssb] [ssbb]]", "ask", "x", 1, 1, "ask", "x", 0,
                              0, "plan", "x", 1, "plan", "y", 0, "ask", "x", 1, 0);
    json_t *second = json_pack("[[ssbb] [ssbb] [ssb] [ssbb] [ssbb]]", "ask", "x", 1, 0, "ask", "y",
                               0, 1, "plan", "y", 1, "ask", "y", 1, 0, "ask", "z", 1, 1);
    AUTO(transaction) transaction = transaction_new(false);

    g_assert_nonnull(first);
    g_assert_nonnull(second);
    transaction_add(transaction, &planner_type, first, NULL);
    transaction_add(transaction, &planner_type, second, NULL);
    g_assert_cmpint(transaction_run(transaction, NULL), ==, 0);
    json_decref(first);
    json_decref(second);
}

/* ---- One moment ------------------------------------------------------------------------------ */

#define DISKS   2
#define WRITERS 2

static struct block_device *devices[DISKS];
static _Atomic bool stop_writing;
static _Atomic uint64_t written[DISKS]; /* begun and ended ones each count */
static uint64_t at_first_apply[DISKS];
static bool is_first;

static void *write_on(void *data)
{
    size_t disk = (size_t)data;
    uint8_t buffer[512] = {1};

    while (!atomic_load(&stop_writing)) {
        g_assert_cmpint(block_device_pwrite(devices[disk], buffer, 0, sizeof(buffer), 0), ==, 0);
        atomic_fetch_add(&written[disk], 1);
    }
    return NULL;
}

static uint64_t count(size_t disk)
{
    AUTO(block_node) root = block_device_root(devices[disk]);

    return sharded_counter_sum(&root->write_generation);
}

static void note_counts(void)
{
    if (is_first) {
        is_first = false;
        for (size_t i = 0; i < DISKS; i++) {
            at_first_apply[i] = count(i);
        }
    }
}

static void check_counts(void)
{
    g_usleep(200); /* time for a writer that should not be there */
    for (size_t i = 0; i < DISKS; i++) {
        g_assert_cmpuint(count(i), ==, at_first_apply[i]);
    }
}

static void wait_for_writes(void)
{
    for (size_t i = 0; i < DISKS; i++) {
        uint64_t before = atomic_load(&written[i]);

        while (atomic_load(&written[i]) < before + 2) {
            g_thread_yield();
        }
    }
}

/* Two actions name a disk each; no write happens between the first step drained and the last. */
static void run_on_two_disks(const char *failing)
{
    AUTO(transaction) transaction = transaction_new(false);
    json_t *data[] = {
        json_pack("{s:s, s:s}", "id", "a", "drain", "disk0"),
        json_pack("{s:s, s:s}", "id", "b", "drain", "disk1"),
        json_pack("{s:s, s:s*}", "id", "c", "fail", failing),
    };

    for (size_t i = 0; i < G_N_ELEMENTS(data); i++) {
        transaction_add(transaction, &teller_type, data[i], NULL);
    }
    is_first = true;
    g_assert_cmpint(transaction_run(transaction, NULL), ==, failing ? -EIO : 0);
    g_assert_false(is_first);
    for (size_t i = 0; i < G_N_ELEMENTS(data); i++) {
        json_decref(data[i]);
    }
    event_log_clear();
}

static void test_one_moment(void)
{
    pthread_t threads[DISKS][WRITERS];

    when_changed = note_counts;
    when_activated = check_counts;
    atomic_store(&stop_writing, false);
    for (size_t i = 0; i < DISKS; i++) {
        AUTO(block_node) disk = test_open("driver=memory,size=1M,node-name=disk%zu", i);
        g_autofree char *name = g_strdup_printf("vd%zu", i);

        devices[i] = block_device_new(name, disk, NULL);
        for (size_t j = 0; j < WRITERS; j++) {
            g_assert_cmpint(pthread_create(&threads[i][j], NULL, write_on, (void *)i), ==, 0);
        }
    }
    for (unsigned i = 0; i < 50; i++) {
        run_on_two_disks(i % 3 ? NULL : i % 2 ? "apply" : "change");
        wait_for_writes(); /* the section has ended */
    }
    atomic_store(&stop_writing, true);
    when_changed = when_activated = NULL;
    for (size_t i = 0; i < DISKS; i++) {
        for (size_t j = 0; j < WRITERS; j++) {
            pthread_join(threads[i][j], NULL);
        }
        block_device_remove(devices[i]);
    }
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

static int prepare_job(struct transaction_action *action, json_t *data, GError **error)
{
    struct teller *teller = transaction_state(action);

    teller->job =
        scripted_job_new(&scripted_backup, json_string_value(data), 0, transaction_jobs(action));
    return 0;
}

static void commit_job(struct transaction_action *action)
{
    struct teller *teller = transaction_state(action);

    job_start_or_fail(teller->job);
}

static void abort_job(struct transaction_action *action)
{
    struct teller *teller = transaction_state(action);

    job_roll_back(teller->job);
}

static void clean_job(struct transaction_action *action)
{
    struct teller *teller = transaction_state(action);

    job_unref(teller->job);
}

static const struct transaction_action_type job_type = {
    .name = "job",
    .data = &qmp_type_string,
    .state_size = sizeof(struct teller),
    .supports_grouped = true,
    .prepare = prepare_job,
    .commit = commit_job,
    .abort = abort_job,
    .clean = clean_job,
};

static int prepare_failure(struct transaction_action *action, json_t *data, GError **error)
{
    return -EIO;
}

/* Jobs "a" and "b", and then an action that fails if wanted. */
static void run_jobs(bool grouped, bool failing)
{
    static const struct transaction_action_type failing_type = {
        .name = "fail",
        .data = &qmp_type_any,
        .supports_grouped = true,
        .prepare = prepare_failure,
    };
    AUTO(transaction) transaction = transaction_new(grouped);
    json_t *a = json_string("a"), *b = json_string("b");

    transaction_add(transaction, &job_type, a, NULL);
    transaction_add(transaction, &job_type, b, NULL);
    if (failing) {
        transaction_add(transaction, &failing_type, NULL, NULL);
    }
    g_assert_cmpint(transaction_run(transaction, NULL), ==, failing ? -EIO : 0);
    json_decref(a);
    json_decref(b);
}

static void test_jobs_rolled_back(void)
{
    for (unsigned grouped = 0; grouped < 2; grouped++) {
        run_jobs(grouped, true);
        EXPECT("a.created", "b.created", "b.aborting", "b.abort()", "b.clean()", "b.concluded",
               "b.null", "a.aborting", "a.abort()", "a.clean()", "a.concluded", "a.null");
    }
}

static void test_individual_jobs(void)
{
    run_jobs(false, false);
    AUTO(job) a = job_find("a");
    AUTO(job) b = job_find("b");
    EXPECT("a.created", "b.created", "a.running", "b.running");
    scripted_return(a, -EIO, NULL);
    EXPECT("a.aborting", "a.abort()", "a.clean()", "a.COMPLETED[Input/output error]", "a.concluded",
           "a.null");
    scripted_return(b, 0, NULL);
    EXPECT("b.waiting", "b.pending", "b.prepare()", "b.commit()", "b.clean()", "b.COMPLETED",
           "b.concluded", "b.null");
}

static void test_grouped_jobs(void)
{
    run_jobs(true, false);
    AUTO(job) a = job_find("a");
    AUTO(job) b = job_find("b");
    EXPECT("a.created", "b.created", "a.running", "b.running");
    scripted_return(a, 0, NULL);
    EXPECT("a.waiting");
    scripted_return(b, -EIO, NULL);
    EXPECT("b.aborting", "a.aborting", "a.abort()", "a.clean()", "a.CANCELLED", "a.concluded",
           "a.null", "b.abort()", "b.clean()", "b.COMPLETED[Input/output error]", "b.concluded",
           "b.null");
}

/* Stacks larger than the address space: no thread can be started until this is undone. */
static size_t set_stack_size(size_t size)
{
    pthread_attr_t attributes;
    size_t before;

    g_assert_cmpint(pthread_getattr_default_np(&attributes), ==, 0);
    g_assert_cmpint(pthread_attr_getstacksize(&attributes, &before), ==, 0);
    g_assert_cmpint(pthread_attr_setstacksize(&attributes, size), ==, 0);
    g_assert_cmpint(pthread_setattr_default_np(&attributes), ==, 0);
    pthread_attr_destroy(&attributes);
    return before;
}

static void test_no_thread(void)
{
    size_t before = set_stack_size((size_t)1 << 48);
    json_t *answer, *name = json_string("a");

    answer = transaction_run_single(&job_type, name, NULL);
    g_assert_nonnull(answer);
    json_decref(answer);
    json_decref(name);
    EXPECT("a.created", "a.aborting", "a.abort()", "a.clean()",
           "a.COMPLETED[Could not start job 'a': Resource temporarily unavailable]", "a.concluded",
           "a.null");
    run_jobs(true, false);
    EXPECT("a.created", "b.created", "a.aborting", "b.aborting", "b.abort()", "b.clean()",
           "b.CANCELLED", "b.concluded", "b.null", "a.abort()", "a.clean()",
           "a.COMPLETED[Could not start job 'a': Resource temporarily unavailable]", "a.concluded",
           "a.null");
    set_stack_size(before);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    event_log_start();
    g_test_add_func("/transaction/steps-in-order", test_success);
    g_test_add_func("/transaction/failed-prepare", test_failed_prepare);
    g_test_add_func("/transaction/failed-change", test_failed_change);
    g_test_add_func("/transaction/failed-apply", test_failed_apply);
    g_test_add_func("/transaction/empty", test_empty);
    g_test_add_func("/transaction/missing-steps", test_missing_steps);
    g_test_add_func("/transaction/single", test_single);
    g_test_add_func("/transaction/grouped-is-refused-where-it-means-nothing", test_grouped_refused);
    g_test_add_func("/transaction/later-actions-see-plans", test_plans);
    g_test_add_func("/transaction/one-moment", test_one_moment);
    g_test_add_func("/transaction/jobs-rolled-back", test_jobs_rolled_back);
    g_test_add_func("/transaction/individual-jobs", test_individual_jobs);
    g_test_add_func("/transaction/grouped-jobs", test_grouped_jobs);
    g_test_add_func("/transaction/no-thread-for-a-job", test_no_thread);
    int status = g_test_run();
    job_cancel_all();
    event_log_stop();
    return status;
}
