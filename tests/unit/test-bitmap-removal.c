/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * block-dirty-bitmap-remove of a persistent bitmap: when it answers, nothing is kept of it; when it
 * fails, wherever, or another action of its transaction does, nothing has changed.
 */
#include <errno.h>
#include <glib.h>
#include <stdatomic.h>
#include <string.h>

#include "block/align.h"
#include "block/stored-bitmaps.h"
#include "block/tracking-bitmaps.h"
#include "formats/formats.h"
#include "server/commands-bitmap.h"
#include "tests/lib/command.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/stored-rig.h"
#include "tests/lib/tracking-rig.h"

#define GRANULE (64 * KIB)

/* The last one to be prepared: those before it have done all that may fail. */
static int refuse(struct transaction_action *action, json_t *data, GError **error)
{
    return -ECANCELED;
}

static const struct transaction_action_type refusal = {
    .name = "refusal",
    .data = &qmp_type_any,
    .prepare = refuse,
};

static int remove_bitmap(const char *node, bool is_refused, GError **error)
{
    AUTO(transaction) transaction = transaction_new(false);
    json_t *data = json_pack("{s:s, s:s}", "node", node, "name", "b");

    g_assert_cmpint(transaction_add(transaction, &bitmap_remove_action, data, NULL), ==, 0);
    if (is_refused) {
        g_assert_cmpint(transaction_add(transaction, &refusal, data, NULL), ==, 0);
    }
    int status = transaction_run(transaction, error);
    json_decref(data);
    return status;
}

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

/* ---- In an image ----------------------------------------------------------------------------- */

/* Returns whether the fault was met before the removal was over. */
static bool remove_with_fault(unsigned kind, unsigned skip)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", MIB);
    test_command_succeeds("qemu-img bitmap --add -g 64k %s b", image.path);
    test_command_succeeds("qemu-img bitmap --add -g 64k %s c", image.path);
    AUTO(block_node) node = stored_rig_open_with_faults(&image);
    AUTO(block_node) bad = block_node_find("bad");
    g_autofree char *name = g_strdup(node->name);
    stored_rig_write(node, 0, 512);
    FAULT(bad, .operations = kind, .skip = skip, .count = 1, .error_number = ENOSPC);
    int status = remove_bitmap(name, false, &error);
    bool was_met = fault_hits(bad) > 0;
    fault_clear(bad);
    g_assert_cmpint(status < 0, ==, block_node_find_bitmap(node, "b") != NULL);
    g_assert_true(status == 0 || strstr(error->message, "'b'"));
    stored_rig_crash(&image);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    stored_rig_expect_stored(image.path, "b", status < 0 ? "auto" : "gone");
    stored_rig_expect_stored(image.path, "c", "auto");
    stored_rig_go_on(&image);
    int check = test_command(NULL, "qemu-img check -q -f qcow2 %s", image.path);
    g_assert_true(check == 0 || check == 3); /* 3: leaks */
    if (status == 0) {
        stored_rig_expect_stored(image.path, "b", "gone");
    }
    test_image_remove(&image, NULL);
    return was_met;
}

static void test_image_faults(void)
{
    static const unsigned kinds[] = {FAULT_ON(WRITE), FAULT_ON(FLUSH)};

    for (size_t kind = 0; kind < G_N_ELEMENTS(kinds); kind++) {
        unsigned skip = 0;

        while (remove_with_fault(kinds[kind], skip)) {
            g_assert_cmpuint(++skip, <, 50);
        }
        g_assert_cmpuint(skip, >, 0);
    }
}

static void test_refused_transaction(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", MIB);
    test_command_succeeds("qemu-img bitmap --add -g 64k %s b", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "");
    stored_rig_write(node, 128 * KIB, 512);
    g_assert_cmpint(remove_bitmap("q", true, NULL), ==, -ECANCELED);
    stored_rig_write(node, 256 * KIB, 512);
    block_node_unref(STEAL(node));
    node = stored_rig_open(&image, "");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "128+64 256+64");
    block_node_unref(STEAL(node));
    stored_rig_assert_clean(&image);
    test_image_remove(&image, NULL);
}

/* ---- In a tracking file ---------------------------------------------------------------------- */

static _Atomic bool is_bad;

static int write_or_fail(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    return atomic_load(&is_bad) ? -ENOSPC
                                : tracking_rig_real_io()->write_durably(fd, bytes, size, offset);
}

static bool is_kept(struct tracking_rig *rig)
{
    AUTO(tracking_directory) directory = tracking_get_directory(rig->tracker);

    return directory && tracking_directory_find_bitmap(directory, "b");
}

static void test_tracking_file(void)
{
    g_autoptr(GError) error = NULL;
    struct tracking_rig *rig = tracking_rig_new(false);

    tracking_io.write_durably = write_or_fail;
    tracking_bitmaps_begin(rig->tracker, rig->device, rig->root);
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", TRACKING_RIG_DISK, GRANULE, NULL);
    dirty_bitmap_set_persistent(bitmap, true);
    block_node_add_bitmap(rig->root, bitmap);
    block_stored_bitmaps_changed(rig->root, "b");
    g_assert_true(is_kept(rig));
    atomic_store(&is_bad, true);
    g_assert_cmpint(remove_bitmap("vda", false, &error), <, 0);
    g_assert_nonnull(strstr(error->message, "try again"));
    atomic_store(&is_bad, false);
    g_assert_true(block_node_find_bitmap(rig->root, "b") == bitmap && is_kept(rig));
    g_assert_false(tracking_rig_is_lost(rig));
    g_assert_cmpint(remove_bitmap("vda", true, NULL), ==, -ECANCELED);
    g_assert_true(block_node_find_bitmap(rig->root, "b") == bitmap && is_kept(rig));
    g_assert_cmpint(remove_bitmap("vda", false, NULL), ==, 0);
    g_assert_true(!block_node_find_bitmap(rig->root, "b") && !is_kept(rig));
    tracking_bitmaps_settle(rig->tracker);
    tracking_bitmaps_end(rig->tracker);
    tracking_rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    g_log_set_default_handler(ignore, NULL);
    formats_register();
    fault_driver_register();
    block_stored_bitmaps_add_keeper(&tracking_bitmap_keeper);
    tracking_rig_real_io();
#define TEST(name, function) g_test_add_func("/bitmap-removal/" name, function)
    TEST("what-an-image-cannot-drop-is-not-removed", test_image_faults);
    TEST("a-transaction-that-fails-has-removed-nothing", test_refused_transaction);
    TEST("what-a-tracking-file-cannot-drop-is-not-removed", test_tracking_file);
#undef TEST
    return g_test_run();
}
