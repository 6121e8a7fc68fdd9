/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A persistent bitmap that a command changed is marked as in use in its image, also if another
 * client made the node read-only and writable again while the command was under way.
 */
#include <glib.h>

#include "block/align.h"
#include "formats/formats.h"
#include "server/commands-bitmap.h"
#include "tests/lib/stored-rig.h"

static struct block_node *node;

/* The last one to be prepared: the others have marked what they are going to change. */
static int prepare_reopen(struct transaction_action *action, json_t *data, GError **error)
{
    stored_rig_set_read_only(node, true);
    stored_rig_set_read_only(node, false);
    return 0;
}

static const struct transaction_action_type reopen_action = {
    .name = "reopen",
    .data = &qmp_type_any,
    .prepare = prepare_reopen,
};

static void run(const struct transaction_action_type *type, json_t *data)
{
    AUTO(transaction) transaction = transaction_new(false);
    g_autoptr(GError) error = NULL;

    g_assert_nonnull(data);
    g_assert_cmpint(transaction_add(transaction, type, data, &error), ==, 0);
    g_assert_cmpint(transaction_add(transaction, &reopen_action, data, &error), ==, 0);
    transaction_run(transaction, &error);
    g_assert_no_error(error);
    json_decref(data);
}

static json_t *named(const char *name)
{
    return json_pack("{s:s, s:s}", "node", "q", "name", name);
}

static void test_marks(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=64k", MIB);
    node = stored_rig_open(&image, "");
    for (const char *name = "b\0c\0d\0e\0f\0"; *name; name += 2) {
        dirty_bitmap_set_enabled(stored_rig_add(node, name, 64 * KIB), *name != 'd');
    }
    stored_rig_write(node, 0, 64 * KIB);
    block_node_unref(node);
    node = stored_rig_open(&image, "");
    run(&bitmap_clear_action, named("b"));
    run(&bitmap_disable_action, named("c"));
    run(&bitmap_enable_action, named("d"));
    run(&bitmap_merge_action,
        json_pack("{s:s, s:s, s:[s]}", "node", "q", "target", "e", "bitmaps", "f"));
    /* The reopening of each stores what those before it marked. */
    stored_rig_expect_stored(image.path, "e", "in-use auto");
    stored_rig_expect_stored(image.path, "f", "auto");
    run(&bitmap_clear_action, named("b"));
    stored_rig_expect_stored(image.path, "b", "in-use auto");
    run(&bitmap_enable_action, named("c"));
    stored_rig_expect_stored(image.path, "c", "in-use");
    run(&bitmap_disable_action, named("d"));
    stored_rig_expect_stored(image.path, "d", "in-use auto");
    block_node_unref(node);
    stored_rig_assert_clean(&image);
    test_image_remove(&image, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/bitmap-marks/a-node-reopened-meanwhile-does-not-lose-the-mark", test_marks);
    return g_test_run();
}
