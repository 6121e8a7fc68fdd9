/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps where requests fail, entries are damaged, or others have their hands in it. */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/qcow2-builder.h"
#include "tests/lib/stored-rig.h"

#define LENGTH  MIB
#define GRANULE (4 * KIB)

/* ---- Faults ---------------------------------------------------------------------------------- */

/* A bitmap that cannot be marked must not be changed, nor may the disk be, or it is given up. */
static void test_marking_faults(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node = stored_rig_open_with_faults(&image);
    AUTO(block_node) bad = block_node_find("bad");
    uint8_t data[512] = {1};

    FAULT(bad, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, "b", NULL), ==, -EIO);
    fault_clear(bad);
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, "b", NULL), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data, 0, sizeof(data), 0), ==, 0);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));

    node = stored_rig_open_with_faults(&image);
    bad = block_node_find("bad");
    FAULT(bad, .operations = FAULT_ON(WRITE), .count = 1, .error_number = EIO);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "The bitmaps *are lost*");
    g_assert_cmpint(block_node_pwrite(node, data, 8 * KIB, sizeof(data), 0), ==, 0);
    g_test_assert_expected_messages();
    stored_rig_expect_stored(image.path, "b", "gone");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "0+4 8+4");
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node)); /* but memory has it */
    stored_rig_expect_stored(image.path, "b", "auto");

    node = stored_rig_open_with_faults(&image);
    bad = block_node_find("bad");
    FAULT(bad, .operations = FAULT_ON(WRITE), .count = 3, .error_number = EIO);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "The bitmaps *are lost*");
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "Nothing is written*");
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*still refers*");
    g_assert_cmpint(block_node_pwrite(node, data, 16 * KIB, sizeof(data), 0), ==, -EIO);
    g_test_assert_expected_messages();
    fault_clear(bad);
    g_assert_cmpint(block_node_pwrite(node, data, 16 * KIB, sizeof(data), 0), ==, -EIO);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*could be stored*");
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    g_test_assert_expected_messages();
    test_image_remove(&image, NULL);
}

/* Who cannot store its bitmaps stays writable, and they are as they were. */
static void test_reopen_faults(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = stored_rig_open_with_faults(&image);
    AUTO(block_node) bad = block_node_find("bad");
    struct dirty_bitmap *b = stored_rig_add(node, "b", GRANULE);
    stored_rig_write(node, 0, 512);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    FAULT(bad, .operations = FAULT_ON(WRITE), .count = 1, .error_number = EIO);
    g_assert_cmpint(block_node_set_read_only(node, true, &error), ==, -EIO);
    g_assert_nonnull(strstr(error->message, "bitmaps of node"));
    g_assert_false(block_node_is_read_only(node) || dirty_bitmap_is_read_only(b));
    fault_clear(bad);
    stored_rig_write(node, 64 * KIB, 512);
    stored_rig_set_read_only(node, true);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    node = stored_rig_open(&image, "");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "0+4 64+4");
    block_node_unref(STEAL(node));
    stored_rig_assert_clean(&image);
    test_image_remove(&image, NULL);
}

/* Somebody without locks has used the image while it was only read. */
static void test_reopen_changed(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "read-only=on,file.locking=off,");
    {
        AUTO(block_node) other = test_open("driver=qcow2,file.driver=file,file.locking=off,"
                                           "file.filename=%s",
                                           image.path);
        g_assert_cmpint(block_stored_bitmaps_begin_change(other, "b", NULL), ==, 0);
        stored_rig_crash(&image);
    }
    test_command_succeeds("cp %s.crashed %s", image.path, image.path);
    stored_rig_set_read_only(node, false);
    g_assert_true(dirty_bitmap_is_inconsistent(stored_rig_get(node, "b")));
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* ---- Faults while they are stored ------------------------------------------------------------ */

/* Three bitmaps, one of which does not change; returns whether a fault was met. */
static bool store_with_fault(struct test_image *image, unsigned kind, unsigned skip)
{
    AUTO(block_node) node = stored_rig_open_with_faults(image);
    AUTO(block_node) bad = block_node_find("bad");

    stored_rig_write(node, 256 * KIB, 512);
    stored_rig_add(node, "new", GRANULE);
    stored_rig_write(node, 512 * KIB, 512);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    FAULT(bad, .operations = kind, .skip = skip, .count = 1, .error_number = ENOSPC);
    block_node_unref(STEAL(node));
    return fault_hits(bad) > 0;
}

/* What is there is right, or says that it is not. */
static void expect_right_or_inconsistent(struct test_image *image, bool is_whole)
{
    AUTO(block_node) node = stored_rig_open(image, "read-only=on,");
    struct dirty_bitmap *old = stored_rig_get(node, "old"),
                        *new = block_node_find_bitmap(node, "new");

    stored_rig_expect_dirty(stored_rig_get(node, "still"), "");
    g_assert_false(dirty_bitmap_is_inconsistent(stored_rig_get(node, "still")));
    if (is_whole || !dirty_bitmap_is_inconsistent(old)) {
        stored_rig_expect_dirty(old, "0+4 256+4 512+4");
    }
    if (is_whole || new) {
        stored_rig_expect_dirty(new, "512+4");
        g_assert_false(dirty_bitmap_is_inconsistent(new));
    }
}

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void test_storing_faults(void)
{
    static const unsigned kinds[] = {FAULT_ON(WRITE), FAULT_ON(FLUSH)};

    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    g_log_set_default_handler(ignore, NULL);
    for (size_t kind = 0; kind < G_N_ELEMENTS(kinds); kind++) {
        bool has_failed = true;

        for (unsigned skip = 0; has_failed; skip++) {
            struct test_image image;

            g_assert_cmpuint(skip, <, 200);
            stored_rig_make(&image, "cluster_size=512", LENGTH);
            test_command_succeeds("qemu-img bitmap --add -g 4096 %s old", image.path);
            test_command_succeeds("qemu-img bitmap --add --disable %s still", image.path);
            test_command_succeeds("qemu-io -f qcow2 -c 'write 0 4k' %s", image.path);
            has_failed = store_with_fault(&image, kinds[kind], skip);
            int check = test_command(NULL, "qemu-img check -q -f qcow2 %s", image.path);
            g_assert_true(check == 0 || (has_failed && check == 3)); /* 3: leaks */
            expect_right_or_inconsistent(&image, !has_failed);
            test_image_remove(&image, NULL);
        }
    }
    g_log_set_default_handler(g_log_default_handler, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING);
}

/* ---- Damaged and unknown --------------------------------------------------------------------- */

/* Where the directory's entry of this bitmap is changed, and how. */
static void try_odd(uint64_t at, uint64_t mask, uint64_t value)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    test_image_make(&image, 0);
    AUTO(qcow2_builder) builder = QCOW2_BUILDER(.size = MIB);
    qcow2_builder_bitmap(builder, "one", 16, true);
    qcow2_builder_bitmap(builder, "two", 9, true);
    qcow2_builder_build(builder);
    uint64_t entry = qcow2_builder_bitmaps_at(builder);
    uint64_t before = qcow2_builder_get64(builder, entry + at);
    qcow2_builder_put64(builder, entry + at, (before & ~mask) | value);
    qcow2_builder_write(builder, image.path);
    AUTO(block_node) node = stored_rig_open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_true(dirty_bitmap_is_inconsistent(stored_rig_get(node, "one")));
    g_assert_false(dirty_bitmap_is_inconsistent(stored_rig_get(node, "two")));
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "two")), ==, MIB);
    dirty_bitmap_clear(stored_rig_get(node, "two"));
    stored_rig_add(node, "three", GRANULE);
    block_node_unref(STEAL(node)); /* a new directory, with the odd entry as it was */
    node = stored_rig_open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "two")), ==, 0);
    stored_rig_get(node, "three");
    stored_rig_remove(node, "one", &error);
    g_assert_no_error(error);
    block_node_unref(STEAL(node));
    node = stored_rig_open(&image, "");
    g_assert_null(block_node_find_bitmap(node, "one"));
    block_node_unref(STEAL(node));
    int check = test_command(NULL, "qemu-img check -q -f qcow2 %s", image.path);
    g_assert_true(check == 0 || check == 3);
    test_image_remove(&image, NULL);
}

static void test_odd_entries(void)
{
    uint64_t flag = UINT64_C(1) << 20; /* in the word of table size and flags */

    try_odd(0, UINT64_MAX, UINT64_C(1) << 40);             /* a table beyond the file */
    try_odd(0, UINT64_MAX, 64 * KIB + 512);                /* not aligned */
    try_odd(8, UINT64_MAX, UINT64_C(7) << 32 | 2);         /* of another length */
    try_odd(8, 0, flag);                                   /* a flag that is not known */
    try_odd(16, UINT64_C(0xff) << 56, UINT64_C(2) << 56);  /* a type */
    try_odd(16, UINT64_C(0xff) << 48, UINT64_C(40) << 48); /* a granularity */
    try_odd(16, UINT64_C(0xff) << 48, UINT64_C(8) << 48);
}

static void test_damaged_table(void)
{
    struct test_image image;

    test_image_make(&image, 0);
    AUTO(qcow2_builder) builder = QCOW2_BUILDER(.size = MIB);
    qcow2_builder_bitmap(builder, "one", 16, true);
    qcow2_builder_build(builder);
    uint64_t table = qcow2_builder_get64(builder, qcow2_builder_bitmaps_at(builder));
    qcow2_builder_put64(builder, table, 0x1234567);
    qcow2_builder_write(builder, image.path);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "Bitmap 'one' cannot be loaded*");
    AUTO(block_node) node = stored_rig_open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_true(dirty_bitmap_is_inconsistent(stored_rig_get(node, "one")));
    stored_rig_write(node, 0, 512);
    block_node_unref(STEAL(node));
    stored_rig_expect_stored(image.path, "one", "in-use auto");
    test_image_remove(&image, NULL);
}

/* Extra data of others: compatible with who does not know it, or not. */
static void test_extra_data(void)
{
    for (unsigned compatible = 0; compatible < 2; compatible++) {
        g_autofree char *found = NULL;
        struct test_image image;

        test_image_make(&image, 0);
        AUTO(qcow2_builder) builder = QCOW2_BUILDER(.size = MIB);
        qcow2_builder_bitmap(builder, "one-long-name-of-a-bitmap", 16, true);
        qcow2_builder_build(builder);
        uint64_t entry = qcow2_builder_bitmaps_at(builder);
        /* 8 bytes of the name become extra data. */
        uint64_t word = qcow2_builder_get64(builder, entry + 16);
        qcow2_builder_put64(builder, entry + 16, word - (UINT64_C(8) << 32) + 8);
        qcow2_builder_put32(builder, entry + 12, compatible ? 6 : 2);
        qcow2_builder_write(builder, image.path);
        AUTO(block_node) node = compatible
                                    ? stored_rig_open(&image, "")
                                    : stored_rig_open_with_warning(&image, "*cannot be trusted*");
        struct dirty_bitmap *b = stored_rig_get(node, "-name-of-a-bitmap");
        g_assert_cmpint(dirty_bitmap_is_inconsistent(b), ==, !compatible);
        if (compatible) {
            g_assert_cmpint(block_stored_bitmaps_begin_change(node, dirty_bitmap_name(b), NULL), ==,
                            0);
            dirty_bitmap_clear(b);
        }
        block_node_unref(STEAL(node));
        stored_rig_expect_stored(image.path, "-name-of-a-bitmap", "auto");
        found = test_command_output("grep -c one-long %s", image.path); /* still there */
        test_image_remove(&image, NULL);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
#define TEST(name, function) g_test_add_func("/stored-bitmaps-trouble/" name, function)
    TEST("what-cannot-be-marked-is-not-trusted", test_marking_faults);
    TEST("a-node-that-cannot-store-them-stays-writable", test_reopen_faults);
    TEST("what-another-hand-has-used-is-not-trusted", test_reopen_changed);
    TEST("a-fault-while-storing-never-makes-a-wrong-one", test_storing_faults);
    TEST("what-is-not-known-is-left-alone", test_odd_entries);
    TEST("a-damaged-table-is-inconsistent", test_damaged_table);
    TEST("what-others-keep-there-stays", test_extra_data);
#undef TEST
    return g_test_run();
}
