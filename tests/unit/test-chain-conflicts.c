/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What may be done to a chain at the same time, and what is refused, by the name of the job that is
 * in the way. Jobs that have done their work and are not finalized are in the way as before.
 */
#include <errno.h>

#include "block/align.h"
#include "block/drain.h"
#include "block/image.h"
#include "block/main-loop.h"
#include "block/overlay.h"
#include "tests/lib/disk.h"
#include "tests/lib/layers.h"
#include "tests/lib/mirror-rig.h"
#include "tests/lib/random.h"

#define LENGTH MIB
#define LAYERS 5
#define BEFORE "l4 l3 l2 l1 l0"

static struct job *start_pending(const struct layers *layers, const struct layers_job *what)
{
    g_autoptr(GError) error = NULL;
    struct job *job =
        layers_start(layers, what, BLOCK_ERROR_POLICY_REPORT, JOB_MANUAL_FINALIZE, &error);

    g_assert_no_error(error);
    layers_drive(job, JOB_STATUS_PENDING);
    return job;
}

static void give_up(struct job *job)
{
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    rig_end_badly(job, g_strerror(ECANCELED));
}

static void expect(const GError *error, const char *part)
{
    g_assert_nonnull(error);
    test_assert_says(error->message, part);
}

/* ---- Two jobs of a chain --------------------------------------------------------------------- */

#define STREAM(top, base)                                                                          \
    {                                                                                              \
        "first", true, top, base                                                                   \
    }
#define COMMIT(top, base)                                                                          \
    {                                                                                              \
        "first", false, top, base                                                                  \
    }

struct pair {
    struct layers_job first, second;
    const char *after; /* both; NULL: they exclude each other */
};

static const struct pair pairs[] = {
    {STREAM(4, 2), COMMIT(3, 1), NULL},
    {STREAM(4, LAYERS_NONE), COMMIT(2, 1), NULL},
    {STREAM(4, LAYERS_NONE), COMMIT(1, 0), NULL},
    {STREAM(4, 1), COMMIT(4, 2), NULL},
    {STREAM(4, 1), STREAM(3, 0), NULL},
    {STREAM(4, 1), STREAM(4, 2), NULL},
    {STREAM(4, LAYERS_NONE), STREAM(2, 0), NULL},
    {STREAM(2, 0), COMMIT(3, 2), NULL},
    {STREAM(2, 0), COMMIT(2, 1), NULL},
    {COMMIT(2, 0), COMMIT(3, 1), NULL},
    {COMMIT(3, 1), COMMIT(4, 2), NULL},
    {COMMIT(4, 3), COMMIT(4, 1), NULL},
    {COMMIT(3, 2), COMMIT(1, 0), NULL}, /* l2, which is written, is to have another backing file */
    {STREAM(4, 2), STREAM(2, 0), "l4 l2 l0"},
    {STREAM(4, 2), COMMIT(1, 0), "l4 l2 l0"},
    {STREAM(4, 3), COMMIT(1, 0), "l4 l3 l2 l0"},
    {STREAM(1, LAYERS_NONE), COMMIT(3, 2), "l4 l2 l1"},
    {STREAM(1, 0), COMMIT(4, 3), "l3 l2 l1 l0"},
};

static void exclude(const struct layers *layers, const struct layers_job *a,
                    const struct layers_job *b)
{
    g_autoptr(GError) error = NULL;
    struct layers_job second = *b;

    second.id = "second";
    struct job *job = start_pending(layers, a);
    g_assert_null(layers_start(layers, &second, BLOCK_ERROR_POLICY_REPORT, 0, &error));
    expect(error, "block job 'first'");
    give_up(job);
    layers_assert_chain(layers, BEFORE);
}

/* Both run under a guest, and the one that began first ends first, or last. */
static void run_both(const struct layers_job *a, const struct layers_job *b, bool in_order,
                     const char *after)
{
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct layers_job second = *b;

    second.id = "second";
    rig_write(layers->rig, 1);
    struct job *one = start_pending(layers, a);
    struct job *other = start_pending(layers, &second);
    g_assert_cmpint(job_finalize(in_order ? one : other, NULL), ==, 0);
    rig_end_well(in_order ? one : other);
    g_assert_cmpint(job_finalize(in_order ? other : one, NULL), ==, 0);
    rig_end_well(in_order ? other : one);
    rig_stop(layers->rig);
    layers_free(layers, after);
}

static void test_pair(gconstpointer data)
{
    const struct pair *pair = data;

    if (!pair->after) {
        struct layers *layers = layers_new(LAYERS, LENGTH);

        exclude(layers, &pair->first, &pair->second);
        exclude(layers, &pair->second, &pair->first);
        layers_free(layers, BEFORE);
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        run_both(i & 1 ? &pair->second : &pair->first, i & 1 ? &pair->first : &pair->second, i & 2,
                 pair->after);
    }
}

/* ---- With other jobs ------------------------------------------------------------------------- */

static struct block_node *open_empty(struct layers *layers, const char *driver, const char *name)
{
    g_autofree char *path = g_strdup_printf("%s/%s.%s", layers->rig->directory, name, driver);

    if (g_str_equal(driver, "qcow2")) {
        test_make_file(path, 0);
        test_create_image("driver=qcow2,size=%" G_GUINT64_FORMAT
                          ",file.driver=file,file.filename=%s",
                          LENGTH, path);
    } else {
        test_make_file(path, LENGTH);
    }
    return test_open("driver=%s,node-name=%s,file.driver=file,file.filename=%s", driver, name,
                     path);
}

struct overlaying {
    struct block_node *node, *overlay;
    int status;
    GError **error;
};

static void install(void *data)
{
    struct overlaying *overlaying = data;

    overlaying->status =
        block_overlay_install(overlaying->node, overlaying->overlay, overlaying->error);
}

/* An external snapshot, which is refused. */
static void expect_no_overlay(struct layers *layers, struct block_node *overlay, const char *part)
{
    struct block_node *node = layers->nodes[LAYERS - 1];
    struct block_node *const both[] = {node, overlay};
    g_autoptr(GError) error = NULL;
    struct overlaying overlaying = {node, overlay, 0, &error};
    struct block_drain *drain = block_drain_begin(both, 2, BLOCK_PERM_ALL);

    main_loop_call_wait(install, &overlaying);
    block_drain_end(drain);
    g_assert_cmpint(overlaying.status, <, 0);
    expect(error, part);
}

static void test_overlay(void)
{
    static const struct layers_job jobs[] = {STREAM(4, LAYERS_NONE), STREAM(4, 2), COMMIT(4, 0),
                                             COMMIT(4, 3)};
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *overlay = open_empty(layers, "qcow2", "overlay");
    struct block_node *target = open_empty(layers, "raw", "target");

    for (size_t i = 0; i < G_N_ELEMENTS(jobs); i++) {
        struct job *job = start_pending(layers, &jobs[i]);

        expect_no_overlay(layers, overlay, "block job 'first'");
        give_up(job);
    }
    struct mirror_options options = rig_mirror_options(layers->rig, "mirror", target);
    struct job *mirror = rig_ready_mirror(&options);
    expect_no_overlay(layers, overlay, "block job 'mirror'");
    give_up(mirror);
    rig_assert_unused(overlay);
    rig_assert_unused(target);
    layers_free(layers, BEFORE);
}

/* A disk that is mirrored elsewhere keeps its chain; below it may change. */
static void test_mirror(void)
{
    static const struct layers_job active = COMMIT(4, 0);
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *target = open_empty(layers, "raw", "target");
    struct mirror_options options = rig_mirror_options(layers->rig, "first", target);
    g_autoptr(GError) error = NULL;
    struct job *mirror = rig_ready_mirror(&options);
    struct layers_job commit = active;

    commit.id = "second";
    struct job *job = layers_start(layers, &commit, BLOCK_ERROR_POLICY_REPORT, 0, &error);
    if (job) { /* two mirrors of one disk: who is completed second finds that it has moved */
        give_up(job);
    } else {
        expect(error, "block job 'first'");
    }
    give_up(mirror);
    rig_assert_unused(target);
    layers_free(layers, BEFORE);
}

/* What reads a layer by itself would see it change. */
static void test_backup(void)
{
    static const struct layers_job jobs[] = {COMMIT(3, 1), COMMIT(4, 2), COMMIT(4, 1)};
    struct layers *layers = layers_new(LAYERS, LENGTH);
    struct block_node *target = open_empty(layers, "raw", "target");
    struct backup_options options = rig_options(layers->rig, "backup", target);
    options.source = layers->nodes[2];

    for (size_t i = 0; i < G_N_ELEMENTS(jobs); i++) {
        g_autoptr(GError) error = NULL, other = NULL;
        struct job *backup = backup_new(&options, &error);

        g_assert_no_error(error);
        g_assert_null(layers_start(layers, &jobs[i], BLOCK_ERROR_POLICY_REPORT, 0, &error));
        expect(error, "block job 'backup'");
        job_roll_back(backup);
        job_unref(backup);
        struct job *job = start_pending(layers, &jobs[i]);
        g_assert_null(backup_new(&options, &other));
        expect(other, "block job 'first'");
        give_up(job);
    }
    rig_assert_unused(target);
    layers_free(layers, BEFORE);
}

/* ---- With what is no job --------------------------------------------------------------------- */

/* Layers below the disk are kept as long as they are by those above them. */
static void test_resize(void)
{
    static const struct layers_job jobs[] = {STREAM(4, LAYERS_NONE), STREAM(4, 2), COMMIT(4, 0)};
    struct layers *layers = layers_new(LAYERS, LENGTH);

    for (size_t i = 0; i < G_N_ELEMENTS(jobs); i++) {
        g_autoptr(GError) error = NULL;
        struct job *job = start_pending(layers, &jobs[i]);

        block_node_check_resize(layers->nodes[4], &error);
        expect(error, "block job 'first'");
        give_up(job);
    }
    layers_free(layers, BEFORE);
}

static void change_snapshot(struct block_node *node, bool exists)
{
    g_autoptr(GError) error = NULL;
    struct block_drain *drain = block_drain_begin(&node, 1, BLOCK_PERM_ALL);

    if (exists) {
        block_node_snapshot_create_now(node, "s", &error);
    } else {
        block_node_snapshot_delete(node, "s", &error);
    }
    block_drain_end(drain);
    g_assert_no_error(error);
}

/* An internal snapshot would lose its backing file, whenever it is taken. */
static void test_snapshot(void)
{
    static const struct layers_job stream = STREAM(4, 2);
    struct layers *layers = layers_new(LAYERS, LENGTH);
    g_autoptr(GError) error = NULL;

    change_snapshot(layers->nodes[4], true);
    g_assert_null(layers_start(layers, &stream, BLOCK_ERROR_POLICY_REPORT, 0, &error));
    expect(error, "internal snapshots ('s')");
    change_snapshot(layers->nodes[4], false);
    struct job *job = start_pending(layers, &stream);
    change_snapshot(layers->nodes[4], true);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    rig_end_badly(job, "internal snapshots ('s')");
    layers_free(layers, BEFORE);
}

static void add_tests(void)
{
    /* Sanitizers take their time: they look at some, others each time. */
    size_t first = test_seed() % G_N_ELEMENTS(pairs);
    size_t count = MIN(G_N_ELEMENTS(pairs), test_cases(40));
    for (size_t n = 0; n < count; n++) {
        size_t i = (first + n) % G_N_ELEMENTS(pairs);
        g_autofree char *path = g_strdup_printf("/chain-conflicts/%s/%zu",
                                                pairs[i].after ? "run-together" : "exclude", i);

        g_test_add_data_func(path, &pairs[i], test_pair);
    }
    g_test_add_func("/chain-conflicts/overlay", test_overlay);
    g_test_add_func("/chain-conflicts/mirror", test_mirror);
    g_test_add_func("/chain-conflicts/backup", test_backup);
    g_test_add_func("/chain-conflicts/resize", test_resize);
    g_test_add_func("/chain-conflicts/snapshot", test_snapshot);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
