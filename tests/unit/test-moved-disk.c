/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk that a mirror moves to another node, while somebody has chosen its node already for a
 * view, a backup, a bitmap or another mirror: he is refused, as the node he has is the past.
 */
#include <errno.h>

#include "block/align.h"
#include "block/device.h"
#include "block/main-loop.h"
#include "server/commands-backup.h"
#include "server/commands-bitmap.h"
#include "server/commands-views.h"
#include "server/transaction.h"
#include "server/views.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"

#define LENGTH  MIB
#define MESSAGE "has just got another node; try again"

static struct rig *rig;
static struct block_node *old_root, *new_root;
static struct job *mover;

/* A ready mirror of the disk, to move it at any time. */
static void set_up(void)
{
    rig = rig_new(LENGTH, 1);
    rig_fill(rig);
    old_root = rig->source;
    new_root = rig_target(rig, "new", false);
    struct mirror_options options = rig_mirror_options(rig, "mover", new_root);
    mover = rig_ready_mirror(&options);
}

static void move_disk(void)
{
    rig_complete(mover);
    rig_end_well(mover);
    rig->source = new_root;
    g_assert_cmpint(rig_pwrite(rig, 1, 0, 64 * KIB), ==, 0);
}

static void tear_down(void)
{
    rig_assert_unused(old_root);
    rig_free(rig);
}

static int prepare_move(struct transaction_action *action, json_t *data, GError **error)
{
    move_disk();
    return 0;
}

/* The disk moves when the actions before this one are prepared, and none is applied. */
static const struct transaction_action_type move_action = {
    .name = "move",
    .data = &qmp_type_any,
    .prepare = prepare_move,
};

static void expect_message(const GError *error, const char *part)
{
    g_assert_nonnull(error);
    test_assert_says(error->message, part);
}

static void run_beside_move(const struct transaction_action_type *type, json_t *data)
{
    AUTO(transaction) transaction = transaction_new(false);
    g_autoptr(GError) error = NULL;

    transaction_add(transaction, type, data, NULL);
    transaction_add(transaction, &move_action, NULL, NULL);
    g_assert_cmpint(transaction_run(transaction, &error), ==, -EAGAIN);
    expect_message(error, MESSAGE);
}

/* Once the disk has moved it is refused, and when tried again it is of the new node. */
static void refuse_and_retry(const struct transaction_action_type *type, json_t *data)
{
    run_beside_move(type, data);
    json_t *answer = transaction_run_single(type, data, NULL);
    g_assert_nonnull(answer);
    json_decref(answer);
    json_decref(data);
}

static void test_view(void)
{
    size_t count;

    set_up();
    refuse_and_retry(&view_create_action, json_pack("{s:s, s:s}", "name", "v", "scratch", "/tmp"));
    struct view_info *info = view_info_list("v", &count);
    g_assert_cmpuint(count, ==, 1);
    AUTO(block_node) view = block_node_find(info->devices[0].node_name);
    view_info_list_free(info, count);
    AUTO(model) snapshot = model_snapshot(rig->model);
    g_assert_cmpint(rig_pwrite(rig, 1, 32 * KIB, 64 * KIB), ==, 0);
    rig_assert_equal(snapshot, view);
    block_node_unref(STEAL(view));
    g_assert_cmpint(view_drop("v", true, NULL), ==, 0);
    tear_down();
}

static void test_backup(void)
{
    set_up();
    struct block_node *target = rig_target(rig, "target", true);
    refuse_and_retry(&blockdev_backup_action,
                     json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "device", "vda", "target",
                               "target", "sync", "full", "job-id", "job", "scratch", "none",
                               "auto-dismiss", false));
    rig_end_well(job_find("job"));
    rig_assert_equal(rig->model, target);
    rig_assert_unused(target);
    tear_down();
}

static void test_bitmap(void)
{
    json_t *name = json_pack("{s:s, s:s}", "node", "vda", "name", "b");

    set_up();
    refuse_and_retry(&bitmap_add_action, json_incref(name));
    g_assert_null(block_node_find_bitmap(old_root, "b"));
    json_decref(transaction_run_single(&bitmap_remove_action, name, NULL));
    json_decref(name);
    tear_down();
}

/* By the node's own name it is the node that is meant, wherever the device is. */
static void test_node(void)
{
    struct transaction *transaction = transaction_new(false);
    json_t *data = json_pack("{s:s, s:s}", "node", "source", "name", "b");
    g_autoptr(GError) error = NULL;

    set_up();
    transaction_add(transaction, &bitmap_add_action, data, NULL);
    transaction_add(transaction, &move_action, NULL, NULL);
    transaction_run(transaction, &error);
    g_assert_no_error(error);
    transaction_free(transaction);
    g_assert_nonnull(block_node_find_bitmap(old_root, "b"));
    json_decref(transaction_run_single(&bitmap_remove_action, data, NULL));
    json_decref(data);
    tear_down();
}

/* ---- Other mirrors ----------------------------------------------------------------------------
 */

static struct block_node *move_and_open(void *data, GError **error)
{
    move_disk();
    return block_node_ref(data);
}

static void test_mirror_start(void)
{
    set_up();
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "other", NULL);

    options.device = rig->device;
    options.open_target = move_and_open;
    options.open_target_data = target;
    rig_expect_no_mirror(&options, MESSAGE);
    rig_assert_unused(target);
    tear_down();
}

/* What the guest writes now is not in the target: neither a switch to it nor a copy. */
static void end_after_move(void (*end)(struct job *job))
{
    set_up();
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "other", target);
    struct job *other = rig_ready_mirror(&options);

    move_disk();
    end(other);
    rig_end_badly(other, "Device 'vda' has moved from node 'source' to another since the mirror "
                         "began: the target 'target' is out of date");
    AUTO(block_node) root = block_device_root(rig->device);
    g_assert_true(root == new_root);
    rig_assert_unused(target);
    block_node_unref(STEAL(root));
    tear_down();
}

static void test_mirror_complete(void)
{
    end_after_move(rig_complete);
}

static void test_mirror_cancel(void)
{
    end_after_move(rig_cancel_softly);
}

/* Two want to take the disk with them at once: one of them gets it. */
static void test_two_movers(void)
{
    for (unsigned i = 0; i < 20; i++) {
        set_up();
        struct block_node *target = rig_target(rig, "target", false);
        struct mirror_options options = rig_mirror_options(rig, "other", target);
        struct job *other = rig_ready_mirror(&options);

        rig_write(rig, 4);
        rig_complete(mover);
        rig_complete(other);
        g_autofree char *first = rig_end(mover);
        g_autofree char *second = rig_end(other);
        rig_stop(rig);
        g_assert_true(!first != !second);
        AUTO(block_node) root = block_device_root(rig->device);
        g_assert_true(root == (first ? target : new_root));
        block_node_unref(STEAL(root));
        rig->source = first ? target : new_root;
        rig_assert_unused(first ? new_root : target);
        tear_down();
    }
}

struct
try {
    struct block_node *to;
    int status;
    GError *error;
};

static void try_to_move(void *data)
{
    struct try *try = data;

    try->status = block_device_set_root(rig->device, try->to, &try->error);
}

/* While the last bytes are copied nobody moves the device, though it is not moved yet. */
static void test_held(void)
{
    set_up();
    struct block_node *other = rig_target(rig, "other", false);
    struct try try = {.to = other};

    FAULT(new_root, .operations = FAULT_ON(FLUSH), .count = 1, .hold = true);
    rig_complete(mover);
    fault_wait_held(new_root, 1);
    main_loop_call_wait(try_to_move, &try);
    g_assert_cmpint(try.status, ==, -EBUSY);
    expect_message(try.error, "A job is just moving device 'vda' to another node");
    g_error_free(try.error);
    fault_clear(new_root);
    rig_end_well(mover);
    rig->source = new_root;
    rig_assert_unused(other);
    tear_down();
}

static void add_tests(void)
{
    g_test_add_func("/moved-disk/a-view-is-of-the-disk-of-its-moment", test_view);
    g_test_add_func("/moved-disk/a-backup-is-of-the-disk-of-its-moment", test_backup);
    g_test_add_func("/moved-disk/a-bitmap-is-on-the-disk-of-its-moment", test_bitmap);
    g_test_add_func("/moved-disk/a-node-s-name-means-the-node", test_node);
    g_test_add_func("/moved-disk/a-mirror-is-of-the-disk-of-its-start", test_mirror_start);
    g_test_add_func("/moved-disk/no-other-mirror-takes-it", test_mirror_complete);
    g_test_add_func("/moved-disk/no-other-mirror-has-a-copy-of-it", test_mirror_cancel);
    g_test_add_func("/moved-disk/one-of-two-gets-it", test_two_movers);
    g_test_add_func("/moved-disk/nobody-takes-it-from-who-moves-it", test_held);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
