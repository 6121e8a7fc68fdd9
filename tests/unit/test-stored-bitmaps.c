/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps of a node whose image keeps them; QEMU's tools as the peer. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/image.h"
#include "block/main-loop.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/qcow2-builder.h"
#include "tests/lib/random.h"

#define LENGTH  MIB
#define GRANULE (4 * KIB)

/* ---- Images and bitmaps ---------------------------------------------------------------------- */

static void make(struct test_image *image, const char *options, uint64_t length)
{
    test_image_make(image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, image->path,
                          length);
}

static struct block_node *open_image(struct test_image *image, const char *more)
{
    return test_open("driver=qcow2,node-name=q,discard=unmap,%sfile.driver=file,file.filename=%s",
                     more, image->path);
}

static struct block_node *open_with_warning(struct test_image *image, const char *pattern)
{
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, pattern);
    struct block_node *node = open_image(image, "");

    g_test_assert_expected_messages();
    return node;
}

static void assert_clean(struct test_image *image)
{
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

static struct dirty_bitmap *add(struct block_node *node, const char *name, uint64_t granularity)
{
    g_autoptr(GError) error = NULL;
    struct dirty_bitmap *bitmap =
        dirty_bitmap_new(name, block_node_length(node), granularity, &error);

    g_assert_no_error(error);
    block_stored_bitmaps_check_new(node, name, granularity, &error);
    g_assert_no_error(error);
    dirty_bitmap_set_persistent(bitmap, true);
    block_node_add_bitmap(node, bitmap);
    return bitmap;
}

static struct dirty_bitmap *get(struct block_node *node, const char *name)
{
    struct dirty_bitmap *bitmap = block_node_find_bitmap(node, name);

    g_assert_nonnull(bitmap);
    g_assert_true(dirty_bitmap_is_persistent(bitmap));
    return bitmap;
}

/* As the command does it. */
static int remove_bitmap(struct block_node *node, const char *name, GError **error)
{
    AUTO(dirty_bitmap) bitmap = get(node, name);

    block_node_remove_bitmap(node, bitmap);
    return block_stored_bitmaps_remove(node, name, error);
}

static void write_at(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree void *data = g_malloc(bytes);

    memset(data, 0x11, bytes);
    g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, 0), ==, 0);
}

/* Offsets of dirty ranges, "start+bytes" in KiB. */
static void expect_dirty(struct dirty_bitmap *bitmap, const char *expected)
{
    g_autoptr(GString) text = g_string_new(NULL);
    uint64_t offset = 0, bytes;

    while (dirty_bitmap_next_range(bitmap, offset, UINT64_MAX, UINT64_MAX, &offset, &bytes)) {
        g_string_append_printf(text, "%s%" PRIu64 "+%" PRIu64, text->len ? " " : "", offset / KIB,
                               bytes / KIB);
        offset += bytes;
    }
    g_assert_cmpstr(text->str, ==, expected);
}

/* How the image lists a bitmap: "auto", "in-use", "in-use auto", "" or, if it does not, "gone". */
static void expect_stored(const char *path, const char *name, const char *expected)
{
    AUTO(block_node) node = test_open(
        "driver=qcow2,read-only=on,force-share=on,file.driver=file,file.filename=%s", path);
    struct block_persistent_bitmap *list;
    const char *found = "gone";
    size_t count;

    g_assert_cmpint(block_node_bitmap_list(node, &list, &count, NULL), ==, 0);
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].name, name)) {
            found = list[i].in_use    ? list[i].enabled ? "in-use auto" : "in-use"
                    : list[i].enabled ? "auto"
                                      : "";
        }
    }
    g_assert_cmpstr(found, ==, expected);
    block_persistent_bitmap_list_free(list, count);
}

/* What the image's file holds now, as a crash would leave it. */
static void crash(struct test_image *image)
{
    test_command_succeeds("cp %s %s.crashed", image->path, image->path);
}

static void go_on_after_crash(struct test_image *image)
{
    test_command_succeeds("mv %s.crashed %s", image->path, image->path);
}

static void set_read_only(struct block_node *node, bool read_only)
{
    g_autoptr(GError) error = NULL;

    block_node_set_read_only(node, read_only, &error);
    g_assert_no_error(error);
}

/* ---- There and back -------------------------------------------------------------------------- */

static void fill_randomly(struct dirty_bitmap *bitmap, struct test_random *random)
{
    uint64_t length = dirty_bitmap_length(bitmap);
    uint64_t pieces = test_random_below(random, 40);

    if (test_random_chance(random, 10)) {
        dirty_bitmap_set(bitmap, 0, length);
    }
    for (uint64_t i = 0; i < pieces; i++) {
        uint64_t offset = test_random_below(random, length);

        dirty_bitmap_set(bitmap, offset, 1 + test_random_below(random, length - offset));
        offset = test_random_below(random, length);
        dirty_bitmap_reset(bitmap, offset, 1 + test_random_below(random, length - offset));
    }
}

static void expect_equal(struct dirty_bitmap *a, struct dirty_bitmap *b)
{
    uint64_t granularity = dirty_bitmap_granularity(a), length = dirty_bitmap_length(a);

    g_assert_cmpuint(granularity, ==, dirty_bitmap_granularity(b));
    g_assert_cmpuint(length, ==, dirty_bitmap_length(b));
    g_assert_cmpuint(dirty_bitmap_count(a), ==, dirty_bitmap_count(b));
    for (uint64_t at = 0; at < length; at += granularity) {
        g_assert_cmpint(dirty_bitmap_get(a, at), ==, dirty_bitmap_get(b, at));
    }
}

static void test_round_trip(void)
{
    struct test_random random = test_random_new(test_seed());
    static const uint64_t lengths[] = {512, MIB, 3 * MIB + 512, 17 * MIB + 64 * KIB};

    for (unsigned i = 0; i < 8; i++) {
        uint64_t length = lengths[i % G_N_ELEMENTS(lengths)];
        g_autoptr(GError) error = NULL;
        struct dirty_bitmap *models[4];
        struct test_image image;

        make(&image, i & 1 ? "cluster_size=512" : "cluster_size=64k", length);
        AUTO(block_node) node = open_image(&image, "");
        for (unsigned j = 0; j < 4; j++) {
            g_autofree char *name = g_strdup_printf("bitmap %u", j);
            struct dirty_bitmap *bitmap = add(node, name, UINT64_C(512) << 3 * j);

            dirty_bitmap_set_enabled(bitmap, j & 1);
            fill_randomly(bitmap, &random);
            models[j] = dirty_bitmap_new_like(bitmap, &error);
            g_assert_cmpint(dirty_bitmap_merge(models[j], bitmap, &error), ==, 0);
        }
        block_node_unref(STEAL(node));
        assert_clean(&image);
        for (unsigned round = 0; round < 2; round++) { /* once more with nothing to be done */
            node = open_image(&image, round ? "read-only=on," : "");
            for (unsigned j = 0; j < 4; j++) {
                struct dirty_bitmap *bitmap = get(node, dirty_bitmap_name(models[j]));

                g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, j & 1);
                g_assert_false(dirty_bitmap_is_inconsistent(bitmap));
                g_assert_cmpint(dirty_bitmap_is_read_only(bitmap), ==, round);
                expect_equal(bitmap, models[j]);
            }
            block_node_unref(STEAL(node));
            assert_clean(&image);
        }
        for (unsigned j = 0; j < 4; j++) {
            dirty_bitmap_free(models[j]);
        }
        test_image_remove(&image, NULL);
    }
}

/* Writes of both are in it, in turn. */
static void test_with_qemu(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s theirs", image.path);
    test_command_succeeds("qemu-img bitmap --add --disable -g 8192 %s still", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    {
        AUTO(block_node) node = open_image(&image, "");

        expect_dirty(get(node, "theirs"), "8+4");
        write_at(node, 32 * KIB, 4 * KIB);
        write_at(node, 100 * KIB, 512);
        add(node, "ours", 64 * KIB);
        write_at(node, 700 * KIB, 512);
    }
    assert_clean(&image);
    expect_stored(image.path, "theirs", "auto");
    expect_stored(image.path, "still", "");
    test_command_succeeds("qemu-io -f qcow2 -c 'write 200k 4k' -c 'discard 0 4k' %s", image.path);
    assert_clean(&image);
    test_command_succeeds("qemu-img bitmap --add --disable --merge theirs -g 4096 %s both",
                          image.path);
    {
        AUTO(block_node) node = open_image(&image, "");

        expect_dirty(get(node, "theirs"), "0+4 8+4 32+4 100+4 200+4 700+4");
        expect_dirty(get(node, "both"), "0+4 8+4 32+4 100+4 200+4 700+4");
        expect_dirty(get(node, "ours"), "0+64 192+64 640+64");
        expect_dirty(get(node, "still"), "");
    }
    test_image_remove(&image, NULL);
}

/* ---- In use ---------------------------------------------------------------------------------- */

static void test_idle_crash(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    AUTO(block_node) node = open_image(&image, "");
    g_assert_cmpint(block_node_flush(node), ==, 0);
    crash(&image);
    block_node_unref(STEAL(node));
    go_on_after_crash(&image);
    node = open_image(&image, "");
    g_assert_false(dirty_bitmap_is_inconsistent(get(node, "b")));
    expect_dirty(get(node, "b"), "8+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

enum change { WRITE, DISCARD, ZERO, RESIZE, CLEAR, CHANGES };

static void change_somehow(struct block_node *node, enum change change)
{
    g_autoptr(GError) error = NULL;

    switch (change) {
    case WRITE:
        write_at(node, 0, 512);
        break;
    case DISCARD:
        g_assert_cmpint(block_node_discard(node, 0, 4 * KIB), ==, 0);
        break;
    case ZERO:
        g_assert_cmpint(block_node_write_zeroes(node, 0, 4 * KIB, 0), ==, 0);
        break;
    case RESIZE:
        block_node_set_length(node, 2 * LENGTH, BLOCK_PREALLOCATION_OFF, &error);
        break;
    default:
        block_stored_bitmaps_begin_change(node, "b", &error);
        dirty_bitmap_clear(get(node, "b"));
    }
    g_assert_no_error(error);
}

static void test_crash_after_change(void)
{
    for (enum change change = 0; change < CHANGES; change++) {
        g_autoptr(GError) error = NULL;
        struct test_image image;

        make(&image, "cluster_size=4k", LENGTH);
        test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
        test_command_succeeds("qemu-img bitmap --add --disable %s still", image.path);
        AUTO(block_node) node = open_image(&image, "");
        change_somehow(node, change);
        crash(&image);
        block_node_unref(STEAL(node));
        expect_stored(image.path, "b", "auto"); /* stored at the end, as it should be */
        go_on_after_crash(&image);
        node = open_with_warning(&image, "Image '*': *'b'*block-dirty-bitmap-remove*");
        g_assert_true(dirty_bitmap_is_inconsistent(get(node, "b")));
        g_assert_false(dirty_bitmap_enabled(get(node, "b")));
        g_assert_cmpuint(dirty_bitmap_count(get(node, "b")), ==, 0);
        g_assert_cmpint(dirty_bitmap_is_inconsistent(get(node, "still")), ==, change == RESIZE);
        block_node_unref(STEAL(node));
        expect_stored(image.path, "b", "in-use auto"); /* it stays what it was */
        node = open_with_warning(&image, "*'b'*");
        remove_bitmap(node, "b", &error);
        g_assert_no_error(error);
        crash(&image); /* durable, before the node is closed */
        block_node_unref(STEAL(node));
        go_on_after_crash(&image);
        expect_stored(image.path, "b", "gone");
        test_image_remove(&image, NULL);
    }
}

/* Each way round, of one that is stored: what is not marked after a crash would be wrong. */
static void test_begin_change(void)
{
    for (unsigned enable = 0; enable < 2; enable++) {
        g_autoptr(GError) error = NULL;
        struct test_image image;

        make(&image, "cluster_size=4k", LENGTH);
        test_command_succeeds("qemu-img bitmap --add %s %s b", enable ? "--disable" : "--enable",
                              image.path);
        AUTO(block_node) node = open_image(&image, "");
        block_stored_bitmaps_begin_change(node, "b", &error);
        g_assert_no_error(error);
        expect_stored(image.path, "b", enable ? "in-use" : "in-use auto");
        dirty_bitmap_set_enabled(get(node, "b"), enable);
        block_stored_bitmaps_begin_change(node, "b", &error); /* is marked already */
        block_stored_bitmaps_begin_change(node, "of no image", &error);
        g_assert_no_error(error);
        block_node_unref(STEAL(node));
        expect_stored(image.path, "b", enable ? "auto" : "");
        assert_clean(&image);
        test_image_remove(&image, NULL);
    }
}

/* A bitmap that cannot be marked must not be changed, nor may the disk be, or it is given up. */
static void test_marking_faults(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node =
        test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                  "file.file.filename=%s",
                  image.path);
    AUTO(block_node) bad = block_node_find("bad");
    uint8_t data[512] = {1};

    FAULT(bad, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, "b", NULL), ==, -EIO);
    fault_clear(bad);
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, "b", NULL), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data, 0, sizeof(data), 0), ==, 0);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));

    node = test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                     "file.file.filename=%s",
                     image.path);
    bad = block_node_find("bad");
    FAULT(bad, .operations = FAULT_ON(WRITE), .count = 1, .error_number = EIO);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "The bitmaps *are lost*");
    g_assert_cmpint(block_node_pwrite(node, data, 8 * KIB, sizeof(data), 0), ==, 0);
    g_test_assert_expected_messages();
    expect_stored(image.path, "b", "gone");
    expect_dirty(get(node, "b"), "0+4 8+4");
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node)); /* but memory has it */
    expect_stored(image.path, "b", "auto");

    node = test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                     "file.file.filename=%s",
                     image.path);
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

/* ---- Read-only ------------------------------------------------------------------------------- */

static void test_read_only(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    crash(&image);
    AUTO(block_node) node = open_image(&image, "read-only=on,");
    struct dirty_bitmap *b = get(node, "b");
    g_assert_true(dirty_bitmap_is_read_only(b) && dirty_bitmap_enabled(b));
    expect_dirty(b, "8+4");
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, "b", NULL), ==, 0);
    g_assert_cmpint(block_stored_bitmaps_remove(node, "b", NULL), ==, -EACCES);
    g_assert_cmpint(block_stored_bitmaps_check_new(node, "c", 4096, NULL), ==, -EACCES);
    block_node_unref(STEAL(node));
    test_command_succeeds("cmp %s %s.crashed", image.path, image.path);
    test_image_remove(&image, NULL);
}

static void test_reopen(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node = open_image(&image, "read-only=on,");
    struct dirty_bitmap *b = get(node, "b");
    for (unsigned i = 0; i < 3; i++) {
        set_read_only(node, false);
        g_assert_true(get(node, "b") == b); /* who holds it goes on holding it */
        g_assert_false(dirty_bitmap_is_read_only(b));
        expect_stored(image.path, "b", "auto");
        write_at(node, i * 16 * KIB, 512);
        expect_stored(image.path, "b", "in-use auto");
        if (i == 1) {
            add(node, "new", 64 * KIB);
        }
        set_read_only(node, true);
        g_assert_true(dirty_bitmap_is_read_only(b) && !dirty_bitmap_is_busy(b));
        expect_stored(image.path, "b", "auto");
        assert_clean(&image);
    }
    expect_stored(image.path, "new", "auto");
    expect_dirty(get(node, "new"), "0+64");
    block_node_unref(STEAL(node));
    node = open_image(&image, "");
    expect_dirty(get(node, "b"), "0+4 16+4 32+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* An operation that holds one may know more than the bitmap says. */
static void test_reopen_busy(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = open_image(&image, "");
    struct dirty_bitmap *b = add(node, "b", GRANULE), *c = add(node, "c", GRANULE);
    dirty_bitmap_hold(c);
    g_assert_cmpint(block_node_set_read_only(node, true, &error), ==, -EBUSY);
    g_assert_nonnull(strstr(error->message, "Bitmap 'c' is currently in use"));
    g_assert_false(dirty_bitmap_is_read_only(b) || dirty_bitmap_is_read_only(c));
    g_assert_false(dirty_bitmap_is_busy(b));
    write_at(node, 0, 512);
    dirty_bitmap_let_go(c);
    set_read_only(node, true);
    block_node_unref(STEAL(node));
    expect_stored(image.path, "c", "auto");
    test_image_remove(&image, NULL);
}

/* Who cannot store its bitmaps stays writable, and they are as they were. */
static void test_reopen_faults(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node =
        test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                  "file.file.filename=%s",
                  image.path);
    AUTO(block_node) bad = block_node_find("bad");
    struct dirty_bitmap *b = add(node, "b", GRANULE);
    write_at(node, 0, 512);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    FAULT(bad, .operations = FAULT_ON(WRITE), .count = 1, .error_number = EIO);
    g_assert_cmpint(block_node_set_read_only(node, true, &error), ==, -EIO);
    g_assert_nonnull(strstr(error->message, "bitmaps of node"));
    g_assert_false(block_node_is_read_only(node) || dirty_bitmap_is_read_only(b));
    fault_clear(bad);
    write_at(node, 64 * KIB, 512);
    set_read_only(node, true);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    node = open_image(&image, "");
    expect_dirty(get(node, "b"), "0+4 64+4");
    block_node_unref(STEAL(node));
    assert_clean(&image);
    test_image_remove(&image, NULL);
}

/* Somebody without locks has used the image while it was only read. */
static void test_reopen_changed(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node = open_image(&image, "read-only=on,file.locking=off,");
    {
        AUTO(block_node) other = test_open("driver=qcow2,file.driver=file,file.locking=off,"
                                           "file.filename=%s",
                                           image.path);
        g_assert_cmpint(block_stored_bitmaps_begin_change(other, "b", NULL), ==, 0);
        crash(&image);
    }
    test_command_succeeds("cp %s.crashed %s", image.path, image.path);
    set_read_only(node, false);
    g_assert_true(dirty_bitmap_is_inconsistent(get(node, "b")));
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* ---- Faults while they are stored ------------------------------------------------------------ */

/* Three bitmaps, one of which does not change; returns whether a fault was met. */
static bool store_with_fault(struct test_image *image, unsigned kind, unsigned skip)
{
    AUTO(block_node) node =
        test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                  "file.file.filename=%s",
                  image->path);
    AUTO(block_node) bad = block_node_find("bad");

    write_at(node, 256 * KIB, 512);
    add(node, "new", GRANULE);
    write_at(node, 512 * KIB, 512);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    FAULT(bad, .operations = kind, .skip = skip, .count = 1, .error_number = ENOSPC);
    block_node_unref(STEAL(node));
    return fault_hits(bad) > 0;
}

/* What is there is right, or says that it is not. */
static void expect_right_or_inconsistent(struct test_image *image, bool is_whole)
{
    AUTO(block_node) node = open_image(image, "read-only=on,");
    struct dirty_bitmap *old = get(node, "old"), *new = block_node_find_bitmap(node, "new");

    expect_dirty(get(node, "still"), "");
    g_assert_false(dirty_bitmap_is_inconsistent(get(node, "still")));
    if (is_whole || !dirty_bitmap_is_inconsistent(old)) {
        expect_dirty(old, "0+4 256+4 512+4");
    }
    if (is_whole || new) {
        expect_dirty(new, "512+4");
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
            make(&image, "cluster_size=512", LENGTH);
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
    AUTO(block_node) node = open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_true(dirty_bitmap_is_inconsistent(get(node, "one")));
    g_assert_false(dirty_bitmap_is_inconsistent(get(node, "two")));
    g_assert_cmpuint(dirty_bitmap_count(get(node, "two")), ==, MIB);
    dirty_bitmap_clear(get(node, "two"));
    add(node, "three", GRANULE);
    block_node_unref(STEAL(node)); /* a new directory, with the odd entry as it was */
    node = open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_cmpuint(dirty_bitmap_count(get(node, "two")), ==, 0);
    get(node, "three");
    remove_bitmap(node, "one", &error);
    g_assert_no_error(error);
    block_node_unref(STEAL(node));
    node = open_image(&image, "");
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
    AUTO(block_node) node = open_with_warning(&image, "*cannot be trusted*'one'*");
    g_assert_true(dirty_bitmap_is_inconsistent(get(node, "one")));
    write_at(node, 0, 512);
    block_node_unref(STEAL(node));
    expect_stored(image.path, "one", "in-use auto");
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
        AUTO(block_node) node =
            compatible ? open_image(&image, "") : open_with_warning(&image, "*cannot be trusted*");
        struct dirty_bitmap *b = get(node, "-name-of-a-bitmap");
        g_assert_cmpint(dirty_bitmap_is_inconsistent(b), ==, !compatible);
        if (compatible) {
            g_assert_cmpint(block_stored_bitmaps_begin_change(node, dirty_bitmap_name(b), NULL), ==,
                            0);
            dirty_bitmap_clear(b);
        }
        block_node_unref(STEAL(node));
        expect_stored(image.path, "-name-of-a-bitmap", "auto");
        found = test_command_output("grep -c one-long %s", image.path); /* still there */
        test_image_remove(&image, NULL);
    }
}

/* ---- With what else happens to an image -------------------------------------------------------
 */

static void test_resize(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-img bitmap --add -g 4096 --disable %s still", image.path);
    AUTO(block_node) node = open_image(&image, "");
    write_at(node, 0, 512);
    block_node_set_length(node, LENGTH + 512, BLOCK_PREALLOCATION_OFF, &error);
    block_node_unref(STEAL(node));
    assert_clean(&image);
    node = open_image(&image, "");
    g_assert_cmpuint(dirty_bitmap_length(get(node, "b")), ==, LENGTH + 512);
    g_assert_cmpuint(dirty_bitmap_count(get(node, "b")), ==, GRANULE + 512);
    g_assert_cmpuint(dirty_bitmap_count(get(node, "still")), ==, 0);
    block_node_set_length(node, 64 * KIB, BLOCK_PREALLOCATION_OFF, &error);
    block_node_unref(STEAL(node));
    g_assert_no_error(error);
    assert_clean(&image);
    test_command_succeeds("qemu-img bitmap --clear %s still", image.path); /* QEMU takes it, too */
    node = open_image(&image, "");
    expect_dirty(get(node, "b"), "0+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

static void test_snapshots(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = open_image(&image, "");
    add(node, "b", GRANULE);
    dirty_bitmap_set_enabled(add(node, "still", GRANULE), false);
    write_at(node, 0, 512);
    block_node_snapshot_create_now(node, "s", &error);
    g_assert_no_error(error);
    write_at(node, 64 * KIB, 512);
    block_node_unref(STEAL(node));
    assert_clean(&image);
    expect_stored(image.path, "b", "auto");
    node = open_image(&image, "");
    expect_dirty(get(node, "b"), "0+4 64+4"); /* snapshots have no bitmaps */
    block_node_snapshot_apply(node, "s", &error);
    g_assert_no_error(error);
    crash(&image);
    g_assert_cmpuint(dirty_bitmap_count(get(node, "b")), ==, LENGTH); /* all may be different */
    g_assert_cmpuint(dirty_bitmap_count(get(node, "still")), ==, 0);
    block_node_snapshot_delete(node, "s", &error);
    g_assert_no_error(error);
    block_node_unref(STEAL(node));
    assert_clean(&image);
    expect_stored(image.path, "b", "auto");
    go_on_after_crash(&image);
    node = open_with_warning(&image, "*cannot be trusted*'b'*");
    g_assert_true(dirty_bitmap_is_inconsistent(get(node, "b")));
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

static int amend(struct block_node *node, const char *text, GError **error)
{
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return block_node_amend(node, options, NULL, NULL, error);
}

static void test_amend(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = open_image(&image, "");
    add(node, "b", GRANULE); /* nothing of it is in the image yet */
    g_assert_cmpint(amend(node, "version=v2", &error), ==, -ENOTSUP);
    g_assert_nonnull(strstr(error->message, "bitmaps"));
    g_clear_error(&error);
    remove_bitmap(node, "b", &error);
    g_assert_cmpint(amend(node, "version=v2", &error), ==, 0);
    g_assert_cmpint(block_stored_bitmaps_check_new(node, "b", GRANULE, &error), <, 0);
    g_assert_cmpstr(error->message, ==,
                    "Can't make bitmap 'b' persistent in 'q': Cannot store "
                    "dirty bitmaps in qcow2 v2 files");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* ---- What can be persistent ------------------------------------------------------------------ */

static void test_limits(void)
{
    g_autofree char *long_name = g_strnfill(1024, 'a');
    g_autoptr(GError) error = NULL;
    struct test_image image;

    make(&image, "cluster_size=64k", 64 * TIB);
    {
        AUTO(block_node) raw = test_open("driver=raw,node-name=raw,file.driver=file,"
                                         "file.filename=%s",
                                         image.path);

        g_assert_cmpint(block_stored_bitmaps_check_new(raw, "b", GRANULE, &error), ==, -ENOTSUP);
        g_assert_cmpstr(error->message, ==,
                        "Can't store persistent bitmaps to raw: Operation not supported");
        g_clear_error(&error);
    }
    AUTO(block_node) node = open_image(&image, "");
    const struct {
        const char *name;
        uint64_t granularity;
        bool is_possible;
    } cases[] = {
        {"b", 64 * KIB, true},      {"b", UINT64_C(2) << 30, true}, {"b", UINT64_C(4) << 30, false},
        {"b", 16 * KIB, true},      {"b", 8 * KIB, false},          {"b", 256, false},
        {long_name, MIB, false},    {long_name + 1, MIB, true},     {"", MIB, false},
        {"b", 64 * KIB + 1, false},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        int status =
            block_stored_bitmaps_check_new(node, cases[i].name, cases[i].granularity, &error);

        g_test_message("%zu: %s", i, error ? error->message : "");
        g_assert_cmpint(status == 0, ==, cases[i].is_possible);
        g_assert_true(status == 0 || g_str_has_prefix(error->message, "Can't make bitmap '"));
        g_clear_error(&error);
    }
    g_assert_cmpuint(block_stored_bitmaps_count(node), ==, 0);
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* One that others need not see any more is not what is kept. */
static void test_not_persistent(void)
{
    struct test_image image;

    make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = open_image(&image, "");
    AUTO(dirty_bitmap) jobs = dirty_bitmap_new(NULL, LENGTH, GRANULE, NULL);
    block_node_add_bitmap(node, jobs);
    block_node_add_bitmap(node, dirty_bitmap_new("passing", LENGTH, GRANULE, NULL));
    write_at(node, 0, 512);
    g_assert_cmpuint(block_stored_bitmaps_count(node), ==, 0);
    block_node_remove_bitmap(node, jobs);
    block_node_unref(STEAL(node));
    expect_stored(image.path, "passing", "gone");
    test_image_remove(&image, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
#define TEST(name, function) g_test_add_func("/stored-bitmaps/" name, function)
    TEST("all-flags-and-bits-come-back", test_round_trip);
    TEST("qemu-and-we-go-on-with-each-others", test_with_qemu);
    TEST("a-crash-while-nobody-writes-costs-nothing", test_idle_crash);
    TEST("a-crash-after-any-change-leaves-inconsistent-ones", test_crash_after_change);
    TEST("what-changes-in-memory-is-marked-before", test_begin_change);
    TEST("what-cannot-be-marked-is-not-trusted", test_marking_faults);
    TEST("a-read-only-image-is-left-as-it-is", test_read_only);
    TEST("a-node-that-becomes-read-only-stores-them", test_reopen);
    TEST("a-busy-one-keeps-a-node-writable", test_reopen_busy);
    TEST("a-node-that-cannot-store-them-stays-writable", test_reopen_faults);
    TEST("what-another-hand-has-used-is-not-trusted", test_reopen_changed);
    TEST("a-fault-while-storing-never-makes-a-wrong-one", test_storing_faults);
    TEST("what-is-not-known-is-left-alone", test_odd_entries);
    TEST("a-damaged-table-is-inconsistent", test_damaged_table);
    TEST("what-others-keep-there-stays", test_extra_data);
    TEST("they-are-resized", test_resize);
    TEST("a-snapshot-that-is-applied-is-all-changes", test_snapshots);
    TEST("they-keep-an-image-from-becoming-version-2", test_amend);
    TEST("what-cannot-be-stored-is-refused-at-once", test_limits);
    TEST("only-persistent-ones-are-stored", test_not_persistent);
#undef TEST
    return g_test_run();
}
