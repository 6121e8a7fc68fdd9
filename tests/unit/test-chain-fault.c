/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Streams and commits whose storage fails, and that are cancelled in each of their states: the
 * chain is the old one or the new one, nothing else is left, the disk reads the same, and the same
 * job works right after.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "tests/lib/disk.h"
#include "tests/lib/layers.h"
#include "tests/lib/mirror-rig.h"

#define LENGTH (4 * MIB)
#define LAYERS 4
#define BEFORE "l3 l2 l1 l0"

/* What is done to a chain of l3 (the disk), l2, l1, l0. */
struct kind {
    const char *name;
    struct layers_job job;
    bool is_active;  /* has to be completed */
    unsigned target; /* what is written */
    unsigned header; /* what says at the end what its backing file is; LAYERS_NONE: none */
    const char *after;
};

/* All of them read l1. */
static const struct kind kinds[] = {
    {"stream", {"job0", true, 3, LAYERS_NONE}, false, 3, 3, "l3"},
    {"stream-to-base", {"job0", true, 3, 0}, false, 3, 3, "l3 l0"},
    {"stream-middle", {"job0", true, 2, 0}, false, 2, 2, "l3 l2 l0"},
    {"stream-middle-all", {"job0", true, 2, LAYERS_NONE}, false, 2, 2, "l3 l2"},
    {"commit", {"job0", false, 2, 0}, false, 0, 3, "l3 l0"},
    {"commit-lower", {"job0", false, 1, 0}, false, 0, 2, "l3 l2 l0"},
    {"commit-active", {"job0", false, 3, 0}, true, 0, LAYERS_NONE, "l0"},
};
#define SOURCE 1

/* ---- Running them ---------------------------------------------------------------------------- */

static struct job *start_job(const struct layers *layers, const struct kind *kind,
                             enum block_error_policy policy, unsigned flags)
{
    g_autoptr(GError) error = NULL;
    struct job *job = layers_start(layers, &kind->job, policy, flags, &error);

    g_assert_no_error(error);
    return job;
}

static void follow(struct layers *layers)
{
    AUTO(block_node) root = block_device_root(layers->rig->device);

    layers->rig->source = root; /* one of those that the layers have references to */
}

/* It worked, or the chain is as it was and it is done again: the chain is the new one, closed. */
static void end(struct layers *layers, const struct kind *kind, bool has_worked)
{
    for (unsigned i = 0; i < layers->count; i++) {
        fault_clear(layers->files[i]);
    }
    if (!has_worked) {
        layers_assert_chain(layers, BEFORE);
        struct job *job = start_job(layers, kind, BLOCK_ERROR_POLICY_REPORT, 0);
        layers_drive(job, JOB_STATUS_CONCLUDED);
        rig_end_well(job);
    }
    follow(layers);
    layers_free(layers, kind->after);
}

/*
 * What fails to be written when a node is to be read-only again leaves it writable, and an image
 * whose header could not be written takes no more writes; both are said.
 */
static _Atomic bool header_may_be_new; /* that was said */

static void hear_warning(const char *domain, GLogLevelFlags level, const char *message,
                         gpointer data)
{
    if (strstr(message, " may have another backing file now, with the same data as the old one")) {
        atomic_store(&header_may_be_new, true);
        return;
    }
    if (!strstr(message, " stays writable") &&
        !strstr(message, "Nothing is written any more to the qcow2 image")) {
        g_error("an unexpected warning: %s", message);
    }
}

/* ---- Error policies -------------------------------------------------------------------------- */

struct policy_case {
    const struct kind *kind;
    bool is_source;
    enum block_error_policy policy;
    int error_number;
};

static bool stops_at(const struct policy_case *tested)
{
    return tested->policy == BLOCK_ERROR_POLICY_STOP ||
           (tested->policy == BLOCK_ERROR_POLICY_ENOSPC && tested->error_number == ENOSPC);
}

/* What a stream has left out makes it fail in the end; others try again. */
static const char *message_of(const struct policy_case *tested)
{
    if (stops_at(tested)) {
        return NULL;
    }
    if (tested->policy == BLOCK_ERROR_POLICY_IGNORE) {
        return tested->kind->job.is_stream ? "Not all could be copied, so the backing file of node"
                                           : NULL;
    }
    return tested->is_source ? "Could not read source node 'l" : "Could not write target node 'l";
}

static void run_policy(const struct policy_case *tested, bool asks_qemu)
{
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *file = layers->files[tested->is_source ? SOURCE : tested->kind->target];
    const char *wanted = message_of(tested);

    layers->may_leak = layers->may_stay_writable = true;
    layers->asks_qemu = asks_qemu;
    FAULT(file, .operations = tested->is_source ? FAULT_ON(READ) : FAULT_ON(WRITE), .count = 2,
          .error_number = tested->error_number);
    struct job *job = start_job(layers, tested->kind, tested->policy, 0);
    unsigned stops = layers_drive(job, JOB_STATUS_CONCLUDED);
    g_autofree char *message = rig_end(job);
    g_assert_cmpuint(fault_hits(file), >=, 1);
    g_assert_true(stops_at(tested) == (stops > 0));
    if (wanted) {
        test_assert_says(message, wanted);
    } else {
        g_assert_cmpstr(message, ==, NULL);
    }
    end(layers, tested->kind, !message);
}

static void test_policies(gconstpointer data)
{
    static const struct policy_case cases[] = {
        {NULL, true, BLOCK_ERROR_POLICY_REPORT, EIO},
        {NULL, true, BLOCK_ERROR_POLICY_IGNORE, EIO},
        {NULL, true, BLOCK_ERROR_POLICY_STOP, EIO},
        {NULL, true, BLOCK_ERROR_POLICY_ENOSPC, EIO},
        {NULL, false, BLOCK_ERROR_POLICY_REPORT, EIO},
        {NULL, false, BLOCK_ERROR_POLICY_IGNORE, EIO},
        {NULL, false, BLOCK_ERROR_POLICY_STOP, EIO},
        {NULL, false, BLOCK_ERROR_POLICY_ENOSPC, EIO},
        {NULL, false, BLOCK_ERROR_POLICY_ENOSPC, ENOSPC},
    };

    /* Its program takes longer to start than all else: one case of each kind, others each time. */
    size_t asked = test_seed() % G_N_ELEMENTS(cases);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        struct policy_case tested = cases[i];

        tested.kind = data;
        run_policy(&tested, i == asked);
    }
}

/* ---- Errors at the end ----------------------------------------------------------------------- */

/*
 * The request number `skip` of the finalization fails, to the image whose header changes or, where
 * none does, to the target. False if there are not so many.
 */
static bool fail_at_end(const struct kind *kind, unsigned operations, unsigned skip)
{
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *file =
        layers->files[kind->header == LAYERS_NONE ? kind->target : kind->header];
    struct job *job = start_job(layers, kind, BLOCK_ERROR_POLICY_STOP, JOB_MANUAL_FINALIZE);

    layers->may_leak = layers->may_stay_writable = true;
    layers->asks_qemu = skip % 8 == 0;
    layers_drive(job, JOB_STATUS_PENDING);
    if (kind->is_active) { /* there is something to do */
        g_assert_cmpint(rig_pwrite(layers->rig, 1, 0, 4096), ==, 0);
    }
    FAULT(file, .operations = operations, .skip = skip, .count = 1, .error_number = EIO);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    g_autofree char *message = rig_end(job);
    bool was_hit = fault_hits(file) > 0;
    g_assert_true(was_hit || !message);
    end(layers, kind, !message);
    return was_hit;
}

static void test_end(gconstpointer data)
{
    const struct kind *kind = data;
    unsigned changes = 0, flushes = 0, reads = 0;

    while (fail_at_end(kind, FAULT_ON_CHANGES, changes)) {
        changes++;
    }
    while (fail_at_end(kind, FAULT_ON(FLUSH), flushes)) {
        flushes++;
    }
    while (fail_at_end(kind, FAULT_ON(READ), reads)) { /* there are many that are alike */
        reads += 1 + reads / 4;
    }
    g_test_message("%u changes, %u flushes, about %u reads", changes, flushes, reads);
    g_assert_cmpuint(changes, >, 0);
    g_assert_cmpuint(flushes, >, 0);
}

/* ---- Errors anywhere ------------------------------------------------------------------------- */

static enum block_error_policy any_policy(struct test_random *random)
{
    static const enum block_error_policy policies[] = {
        BLOCK_ERROR_POLICY_REPORT,
        BLOCK_ERROR_POLICY_IGNORE,
        BLOCK_ERROR_POLICY_STOP,
        BLOCK_ERROR_POLICY_ENOSPC,
    };

    return policies[test_random_below(random, G_N_ELEMENTS(policies))];
}

/* The same job works now, unless the image takes no more writes. */
static void end_anyhow(struct layers *layers, const struct kind *kind, bool has_worked)
{
    for (unsigned i = 0; i < layers->count; i++) {
        fault_clear(layers->files[i]);
    }
    if (!has_worked) {
        g_autoptr(GError) error = NULL;

        layers_assert_chain(layers, BEFORE);
        struct job *job = layers_start(layers, &kind->job, BLOCK_ERROR_POLICY_REPORT, 0, &error);
        if (job) {
            layers_drive(job, JOB_STATUS_CONCLUDED);
        }
        g_autofree char *message = job ? rig_end(job) : g_strdup(error->message);
        has_worked = !message;
        if (message && !strstr(message, "Nothing is written to the image any more")) {
            test_assert_says(message, "Input/output error");
        }
    }
    follow(layers);
    /* A header that could not be changed back, and the image took no more writes: it is new. */
    layers->headers = atomic_load(&header_may_be_new) ? kind->after : NULL;
    layers_free(layers, has_worked ? kind->after : BEFORE);
}

/* Guests write meanwhile, and may be told of errors, too. */
static void fail_anywhere(const struct kind *kind, struct test_random *random)
{
    struct layers *layers = layers_new(LAYERS, LENGTH);
    g_autoptr(GError) error = NULL;

    atomic_store(&header_may_be_new, false);
    layers->may_leak = layers->may_stay_writable = true;
    layers->asks_qemu = test_random_chance(random, 20);
    for (unsigned i = 0; i < 2; i++) {
        FAULT(layers->files[test_random_below(random, LAYERS)], .operations = FAULT_ON_ALL,
              .skip = (unsigned)test_random_below(random, 60),
              .count = (unsigned)test_random_between(random, 1, 3),
              .error_number = test_random_chance(random, 50) ? EIO : ENOSPC);
    }
    rig_write(layers->rig, 2);
    struct job *job = layers_start(layers, &kind->job, any_policy(random), 0, &error);
    g_autofree char *message = NULL;
    if (job) {
        layers_drive(job, JOB_STATUS_CONCLUDED);
        message = rig_end(job);
    }
    rig_stop(layers->rig);
    end_anyhow(layers, kind, job && !message);
}

static void test_anywhere(gconstpointer data)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long cases = test_cases(4);

    for (unsigned long i = 0; i < cases; i++) {
        fail_anywhere(data, &random);
    }
}

/* ---- Cancelling ------------------------------------------------------------------------------ */

struct scene {
    struct layers *layers;
    const struct kind *kind;
    struct job *job;
    bool force;
};

/* And then a guest. */
static void start_scene(struct scene *scene, enum block_error_policy policy, unsigned flags)
{
    scene->job = start_job(scene->layers, scene->kind, policy, flags);
    rig_write(scene->layers->rig, policy == BLOCK_ERROR_POLICY_STOP ? 0 : 1);
}

static void cancel(const struct scene *scene)
{
    g_autoptr(GError) error = NULL;

    job_cancel(scene->job, scene->force, false, &error);
    g_assert_no_error(error);
}

static void cancel_running(struct scene *scene)
{
    struct block_node *source = scene->layers->files[SOURCE];

    FAULT(source, .operations = FAULT_ON(READ), .hold = true);
    start_scene(scene, BLOCK_ERROR_POLICY_REPORT, 0);
    fault_wait_held(source, 1);
    g_assert_cmpint(job_get_status(scene->job), ==, JOB_STATUS_RUNNING);
    cancel(scene);
    fault_clear(source);
}

/* Softly it does not go while somebody wants it paused. No guest, as its reads would fail, too. */
static void cancel_paused(struct scene *scene)
{
    struct block_node *source = scene->layers->files[SOURCE];

    FAULT(source, .operations = FAULT_ON(READ), .error_number = EIO);
    start_scene(scene, BLOCK_ERROR_POLICY_STOP, 0);
    rig_wait_status(scene->job, JOB_STATUS_PAUSED);
    while (!job_should_pause(scene->job)) {
        g_usleep(200);
    }
    if (!scene->force) {
        g_assert_cmpint(job_cancel(scene->job, false, false, NULL), <, 0);
        fault_clear(source);
        g_assert_cmpint(job_user_resume(scene->job, NULL), ==, 0);
        job_cancel(scene->job, false, false, NULL); /* perhaps it was quicker */
        return;
    }
    cancel(scene);
}

static void cancel_pending(struct scene *scene)
{
    start_scene(scene, BLOCK_ERROR_POLICY_REPORT, JOB_MANUAL_FINALIZE);
    layers_drive(scene->job, JOB_STATUS_PENDING);
    cancel(scene);
}

static void *finalize(void *data)
{
    job_finalize(data, NULL);
    return NULL;
}

/* While the header is written, or the target flushed, which hangs. */
static void cancel_finalizing(struct scene *scene, unsigned operations)
{
    const struct kind *kind = scene->kind;
    struct block_node *file =
        scene->layers->files[kind->header == LAYERS_NONE ? kind->target : kind->header];
    pthread_t thread;

    start_scene(scene, BLOCK_ERROR_POLICY_REPORT, JOB_MANUAL_FINALIZE);
    layers_drive(scene->job, JOB_STATUS_PENDING);
    if (kind->is_active) {
        g_assert_cmpint(rig_pwrite(scene->layers->rig, 1, 0, 4096), ==, 0);
    }
    FAULT(file, .operations = operations, .hold = true);
    g_assert_cmpint(pthread_create(&thread, NULL, finalize, scene->job), ==, 0);
    fault_wait_held(file, 1);
    cancel(scene);
    fault_clear(file);
    pthread_join(thread, NULL);
}

static void cancel_changing(struct scene *scene)
{
    cancel_finalizing(scene, FAULT_ON_CHANGES);
}

static void cancel_flushing(struct scene *scene)
{
    cancel_finalizing(scene, FAULT_ON(FLUSH));
}

/* Softly the job leaves the guest where it is, and that is a success. */
static void cancel_ready(struct scene *scene)
{
    if (scene->kind->is_active) {
        start_scene(scene, BLOCK_ERROR_POLICY_REPORT, 0);
        rig_wait_status(scene->job, JOB_STATUS_READY);
        g_assert_cmpint(rig_pwrite(scene->layers->rig, 1, 0, 4096), ==, 0);
        cancel(scene);
    }
}

static void cancel_standby(struct scene *scene)
{
    g_autoptr(GError) error = NULL;

    if (scene->kind->is_active && scene->force) {
        start_scene(scene, BLOCK_ERROR_POLICY_REPORT, 0);
        rig_wait_status(scene->job, JOB_STATUS_READY);
        job_user_pause(scene->job, &error);
        g_assert_no_error(error);
        rig_wait_status(scene->job, JOB_STATUS_STANDBY);
        g_assert_cmpint(job_cancel(scene->job, false, false, NULL), <, 0);
        cancel(scene);
    }
}

static void run_cancel(const struct kind *kind, void (*act)(struct scene *), bool force,
                       bool asks_qemu)
{
    struct scene scene = {.layers = layers_new(LAYERS, LENGTH), .kind = kind, .force = force};
    bool is_left = act == cancel_ready && !force;
    /* One that was paused can be ready before it is cancelled. */
    bool may_be_left = kind->is_active && act == cancel_paused && !force;
    bool has_worked = false;

    scene.layers->asks_qemu = asks_qemu;
    act(&scene);
    if (scene.job) {
        g_autofree char *message = rig_end(scene.job);

        has_worked = !message && !is_left && !may_be_left;
        if (message) {
            g_assert_cmpstr(message, ==, g_strerror(ECANCELED));
            g_assert_false(is_left);
        }
        g_assert_true(message || is_left || (act == cancel_paused && !force));
    }
    rig_stop(scene.layers->rig);
    g_assert_cmpuint(atomic_load(&scene.layers->rig->failed), ==, 0);
    end(scene.layers, kind, has_worked);
}

static void test_cancel(gconstpointer data)
{
    void (*const acts[])(struct scene *) = {
        cancel_running,  cancel_paused, cancel_pending, cancel_changing,
        cancel_flushing, cancel_ready,  cancel_standby,
    };

    size_t asked = test_seed() % G_N_ELEMENTS(acts);
    for (size_t i = 0; i < G_N_ELEMENTS(acts); i++) {
        run_cancel(data, acts[i], true, i == asked);
        run_cancel(data, acts[i], false, i == asked);
    }
}

/*
 * The image that is written is in the guest's chain: when it hangs, and the job that nobody wants
 * any more with it, it is not cut off.
 */
static void test_hang(gconstpointer data)
{
    const struct kind *kind = data;
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *target = layers->files[kind->target];

    FAULT(target, .operations = FAULT_ON(WRITE), .hold = true);
    struct job *job = start_job(layers, kind, BLOCK_ERROR_POLICY_REPORT, 0);
    fault_wait_held(target, 1);
    job_cancel(job, true, false, NULL);
    g_usleep(1500 * 1000); /* more than others have */
    g_assert_cmpuint(fault_cut_off(target), ==, 0);
    fault_clear(target);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, g_strerror(ECANCELED));
    g_assert_cmpint(rig_pwrite(layers->rig, 1, 0, 4096), ==, 0);
    end(layers, kind, false);
}

static bool is_tested_with_hang(const struct kind *kind)
{
    return kind->is_active || g_str_equal(kind->name, "stream") ||
           g_str_equal(kind->name, "commit");
}

/* ----------------------------------------------------------------------------------------------
 */

static void add_tests(void)
{
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, hear_warning, NULL);
    /* Sanitizers take their time: they look at some, others each time. */
    size_t first = test_seed() % G_N_ELEMENTS(kinds);
    size_t kind_count = MIN(G_N_ELEMENTS(kinds), test_cases(8));
    for (size_t n = 0; n < kind_count; n++) {
        const struct kind *kind = &kinds[(first + n) % G_N_ELEMENTS(kinds)];
        const struct {
            const char *name;
            void (*function)(gconstpointer data);
        } tests[] = {
            {"policies", test_policies},
            {"an-error-at-each-step-of-the-end", test_end},
            {"errors-anywhere", test_anywhere},
            {"cancelled-in-each-state", test_cancel},
            {"a-target-that-hangs-is-the-guests", test_hang},
        };
        size_t count = G_N_ELEMENTS(tests) - !is_tested_with_hang(kind);

        for (size_t j = 0; j < count; j++) {
            g_autofree char *path =
                g_strdup_printf("/chain-fault/%s/%s", kind->name, tests[j].name);

            g_test_add_data_func(path, kind, tests[j].function);
        }
    }
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
