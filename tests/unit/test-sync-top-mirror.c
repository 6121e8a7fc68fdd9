/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mirrors of the top layer alone: with the layers below they are the disk, they hold no more than
 * they need to, and the disk can move to them.
 */
#include "block/align.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "tests/lib/chain-rig.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 5

static struct mirror_options top_mirror(struct rig *rig, struct block_node *target)
{
    struct mirror_options options = rig_mirror_options(rig, "m", target);

    options.sync = MIRROR_SYNC_TOP;
    return options;
}

/* The disk moves to the target, and guests see what they saw, and write on. */
static void pivot(const struct chain_shape *shape, enum mirror_copy_mode mode)
{
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);
    AUTO(block_node) middle = block_node_find("middle-layer");

    options.copy_mode = mode;
    rig_write(rig, WRITERS);
    struct job *job = rig_ready_mirror(&options);
    rig_wait_requests(rig, 30);
    rig_complete(job);
    rig_end_well(job);
    struct block_node *old = rig_follow(rig, target);
    g_assert_true(chain_layer(target)->backing == middle);
    rig_assert_unused(old);
    rig_wait_requests(rig, 30);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_assert_equal(rig->model, target);
    block_node_unref(STEAL(middle));
    chain_check(rig, "disk");
    rig_free(rig);
}

static void test_pivot(gconstpointer data)
{
    pivot(data, MIRROR_BACKGROUND);
}

/* Parts of clusters are written through, and what is around them is not lost. */
static void test_pivot_written_through(gconstpointer data)
{
    pivot(data, MIRROR_WRITE_BLOCKING);
}

static void test_kept_copy(gconstpointer data)
{
    const struct chain_shape *shape = data;
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);

    rig_write(rig, WRITERS);
    struct job *job = rig_ready_mirror(&options);
    rig_wait_requests(rig, 30);
    rig_stop(rig);
    rig_cancel_softly(job);
    rig_end_well(job);
    g_assert_true(shape->is_based || !chain_layer(target)->backing);
    chain_assert_target(rig, rig->model, target);
    rig_free(rig);
}

static void test_mirror_of_a_quiet_disk(gconstpointer data)
{
    const struct chain_shape *shape = data;
    struct rig *rig = chain_new(shape);
    struct block_node *target = chain_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);
    struct job_info info;

    options.granularity = 4 * KIB;
    uint64_t unit =
        shape->is_based ? 4 * KIB : MAX_OF(chain_layer(target)->limits.cluster_size, 4096u);
    uint64_t expected = chain_allocated(chain_layer(rig->source), unit);
    struct job *job = rig_ready_mirror(&options);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, expected);
    job_info_clear(&info);
    rig_cancel_softly(job);
    rig_end_well(job);
    chain_assert_thrifty(rig, target);
    chain_assert_target(rig, rig->model, target);
    chain_assert_qemu_agrees(rig, shape);
    rig_free(rig);
}

/* A disk cannot move to where its layers below would be lost. */
static void test_pivot_to_raw(void)
{
    struct rig *rig = chain_new(&chain_shapes[0]);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);

    rig_complete(job);
    rig_end_badly(job, "have no backing file for the rest");
    rig_assert_unused(target);
    rig_free(rig);
}

/* An end that fails leaves the target as it was, and the guest where it is. */
static void test_failed_pivot(void)
{
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);

    FAULT(target, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    rig_complete(job);
    rig_end_badly(job, "Could not flush target");
    g_assert_null(chain_layer(target)->backing);
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}

struct change {
    struct block_node *node;
    struct block_node *backing;
    char *said;
};

static void try_change(void *data)
{
    struct change *change = data;
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_node_set_backing(change->node, change->backing, NULL, &error), ==,
                    -EBUSY);
    change->said = g_strdup(error->message);
}

/* While the job runs nobody takes the layers below away. */
static void test_chain_is_kept(void)
{
    struct rig *rig = chain_new(&chain_shapes[1]);
    struct block_node *target = chain_target(rig, &chain_shapes[1]);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);
    struct change change = {.node = chain_layer(rig->source)};

    struct block_drain *drain = block_drain_begin(&change.node, 1, BLOCK_PERM_ALL);
    main_loop_call_wait(try_change, &change);
    block_drain_end(drain);
    g_assert_nonnull(strstr(change.said, "block job 'm'"));
    g_free(change.said);
    rig_cancel_softly(job);
    rig_end_well(job);
    rig_assert_unused(target);
    rig_free(rig);
}

static void add_tests(void)
{
    chain_add_shape_tests("/sync-top-mirror/pivot", test_pivot, 1);
    chain_add_shape_tests("/sync-top-mirror/pivot-written-through", test_pivot_written_through, 1);
    chain_add_shape_tests("/sync-top-mirror/kept-copy", test_kept_copy, 3);
    chain_add_shape_tests("/sync-top-mirror/quiet", test_mirror_of_a_quiet_disk, 2);
    g_test_add_func("/sync-top-mirror/pivot-to-raw", test_pivot_to_raw);
    g_test_add_func("/sync-top-mirror/failed-pivot", test_failed_pivot);
    g_test_add_func("/sync-top-mirror/chain-is-kept", test_chain_is_kept);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
