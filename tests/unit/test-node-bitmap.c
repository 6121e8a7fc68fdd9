/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps of a node: whose they are, their order, what records into them. */
#include <errno.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/request.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

static struct dirty_bitmap *new_bitmap(struct block_node *node, const char *name)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new(name, block_node_length(node), 64 * KIB, NULL);

    g_assert_nonnull(bitmap);
    return bitmap;
}

/* The names in order, "-" for one without; the caller frees. */
static char *names(const struct block_node *node)
{
    GString *text = g_string_new(NULL);

    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        const char *name = dirty_bitmap_name(*bitmap);

        g_string_append_printf(text, "%s%s", text->len ? " " : "", name ? name : "-");
    }
    return g_string_free(text, FALSE);
}

static void expect_names(const struct block_node *node, const char *expected)
{
    g_autofree char *found = names(node);

    g_assert_cmpstr(found, ==, expected);
}

/* A leak would be seen by AddressSanitizer. */
static void test_named_ones_are_the_nodes(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    AUTO(dirty_bitmap) jobs = new_bitmap(node, NULL);

    block_node_add_bitmap(node, new_bitmap(node, "a"));
    block_node_add_bitmap(node, jobs);
    block_node_add_bitmap(node, new_bitmap(node, "b"));
    expect_names(node, "a - b");
    /* The node goes before the job's bitmap does. */
    block_node_unref(STEAL(node));
    g_assert_cmpuint(dirty_bitmap_count(jobs), ==, 0);
}

static void test_find(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    AUTO(dirty_bitmap) jobs = new_bitmap(node, NULL);
    struct dirty_bitmap *a = new_bitmap(node, "a");

    g_assert_null(block_node_find_bitmap(node, "a"));
    block_node_add_bitmap(node, jobs);
    block_node_add_bitmap(node, a);
    g_assert_true(block_node_find_bitmap(node, "a") == a);
    g_assert_null(block_node_find_bitmap(node, ""));
    g_assert_null(block_node_find_bitmap(node, "A"));
    block_node_remove_bitmap(node, jobs);
}

static void test_order(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    static const char *const all[] = {"a", "b", "c"};

    for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
        block_node_add_bitmap(node, new_bitmap(node, all[i]));
    }
    for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
        struct dirty_bitmap *bitmap = block_node_find_bitmap(node, all[i]);
        size_t position = block_node_remove_bitmap(node, bitmap);

        g_assert_cmpuint(position, ==, i);
        g_assert_null(block_node_find_bitmap(node, all[i]));
        block_node_insert_bitmap(node, bitmap, position);
        expect_names(node, "a b c");
    }
    AUTO(dirty_bitmap) old = block_node_find_bitmap(node, "b");
    struct dirty_bitmap *other = dirty_bitmap_new_like(old, NULL);
    block_node_replace_bitmap(node, old, other);
    expect_names(node, "a b c");
    g_assert_true(block_node_find_bitmap(node, "b") == other);
}

static void test_last_one_removed(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    AUTO(dirty_bitmap) a = new_bitmap(node, "a");

    block_node_add_bitmap(node, a);
    g_assert_cmpuint(block_node_remove_bitmap(node, a), ==, 0);
    g_assert_null(node->bitmaps); /* costs writes nothing any more */
    block_node_insert_bitmap(node, a, 0);
    expect_names(node, "a");
    block_node_remove_bitmap(node, a);
    block_node_remove_bitmap(node, a); /* is not there: nothing happens */
}

static void test_recording(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    struct dirty_bitmap *on = new_bitmap(node, "on"), *off = new_bitmap(node, "off");
    uint8_t data[512] = {1};

    dirty_bitmap_set_enabled(off, false);
    block_node_add_bitmap(node, on);
    block_node_add_bitmap(node, off);
    g_assert_cmpint(block_node_pwrite(node, data, 64 * KIB, 512, 0), ==, 0);
    memory_disk_fail(node, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    g_assert_cmpint(block_node_pwrite(node, data, 192 * KIB, 512, 0), ==, -EIO);
    g_assert_true(dirty_bitmap_get(on, 64 * KIB));
    g_assert_true(dirty_bitmap_get(on, 192 * KIB)); /* it may have changed something */
    g_assert_cmpuint(dirty_bitmap_count(on), ==, 128 * KIB);
    g_assert_cmpuint(dirty_bitmap_count(off), ==, 0);
}

static void test_new_like(void)
{
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new("b", MIB + 1, 4 * KIB, NULL);

    for (unsigned enabled = 0; enabled < 2; enabled++) {
        dirty_bitmap_set(bitmap, 0, MIB);
        dirty_bitmap_set_enabled(bitmap, enabled);
        AUTO(dirty_bitmap) other = dirty_bitmap_new_like(bitmap, NULL);
        g_assert_cmpstr(dirty_bitmap_name(other), ==, "b");
        g_assert_cmpuint(dirty_bitmap_length(other), ==, MIB + 1);
        g_assert_cmpuint(dirty_bitmap_granularity(other), ==, 4 * KIB);
        g_assert_cmpint(dirty_bitmap_enabled(other), ==, enabled);
        g_assert_cmpuint(dirty_bitmap_count(other), ==, 0);
    }
}

/* ---- The default granularity ----------------------------------------------------------------- */

static uint32_t cluster_size;

static int64_t clustered_length(struct block_node *node)
{
    return MIB;
}

static int clustered_info(struct block_node *node, struct block_info *info)
{
    info->cluster_size = cluster_size;
    return 0;
}

static int unknown_info(struct block_node *node, struct block_info *info)
{
    return -ENOTSUP;
}

static const struct block_driver clustered_driver = {
    .name = "clustered",
    .is_protocol = true,
    .get_length = clustered_length,
    .get_info = clustered_info,
};
static const struct block_driver unknown_driver = {
    .name = "unknown",
    .is_protocol = true,
    .get_length = clustered_length,
    .get_info = unknown_info,
};

static void test_default_granularity(void)
{
    static const struct {
        uint32_t cluster;
        uint64_t granularity;
    } cases[] = {
        {0, 64 * KIB},        {512, 4 * KIB},       {4 * KIB, 4 * KIB},
        {32 * KIB, 32 * KIB}, {64 * KIB, 64 * KIB}, {2 * MIB, 64 * KIB},
    };
    AUTO(block_node) node = test_open("driver=clustered");
    AUTO(block_node) unknown = test_open("driver=unknown");

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        cluster_size = cases[i].cluster;
        g_assert_cmpuint(block_node_default_granularity(node), ==, cases[i].granularity);
    }
    g_assert_cmpuint(block_node_default_granularity(unknown), ==, 64 * KIB);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    block_driver_register(&clustered_driver);
    block_driver_register(&unknown_driver);
    g_test_add_func("/node-bitmap/those-with-a-name-are-the-nodes", test_named_ones_are_the_nodes);
    g_test_add_func("/node-bitmap/found-by-name", test_find);
    g_test_add_func("/node-bitmap/order-is-kept", test_order);
    g_test_add_func("/node-bitmap/the-last-one-is-removed", test_last_one_removed);
    g_test_add_func("/node-bitmap/enabled-ones-record-failed-writes-too", test_recording);
    g_test_add_func("/node-bitmap/a-new-one-like-another-is-clear", test_new_like);
    g_test_add_func("/node-bitmap/default-granularity", test_default_granularity);
    return g_test_run();
}
