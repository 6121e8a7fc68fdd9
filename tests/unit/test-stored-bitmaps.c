/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps of a node whose image keeps them; QEMU's tools as the peer. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/random.h"
#include "tests/lib/stored-rig.h"

#define LENGTH  MIB
#define GRANULE (4 * KIB)

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

        stored_rig_make(&image, i & 1 ? "cluster_size=512" : "cluster_size=64k", length);
        AUTO(block_node) node = stored_rig_open(&image, "");
        for (unsigned j = 0; j < 4; j++) {
            g_autofree char *name = g_strdup_printf("bitmap %u", j);
            struct dirty_bitmap *bitmap = stored_rig_add(node, name, UINT64_C(512) << 3 * j);

            dirty_bitmap_set_enabled(bitmap, j & 1);
            fill_randomly(bitmap, &random);
            models[j] = dirty_bitmap_new_like(bitmap, &error);
            g_assert_cmpint(dirty_bitmap_merge(models[j], bitmap, &error), ==, 0);
        }
        block_node_unref(STEAL(node));
        stored_rig_assert_clean(&image);
        for (unsigned round = 0; round < 2; round++) { /* once more with nothing to be done */
            node = stored_rig_open(&image, round ? "read-only=on," : "");
            for (unsigned j = 0; j < 4; j++) {
                struct dirty_bitmap *bitmap = stored_rig_get(node, dirty_bitmap_name(models[j]));

                g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, j & 1);
                g_assert_false(dirty_bitmap_is_inconsistent(bitmap));
                g_assert_cmpint(dirty_bitmap_is_read_only(bitmap), ==, round);
                expect_equal(bitmap, models[j]);
            }
            block_node_unref(STEAL(node));
            stored_rig_assert_clean(&image);
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

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s theirs", image.path);
    test_command_succeeds("qemu-img bitmap --add --disable -g 8192 %s still", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    {
        AUTO(block_node) node = stored_rig_open(&image, "");

        stored_rig_expect_dirty(stored_rig_get(node, "theirs"), "8+4");
        stored_rig_write(node, 32 * KIB, 4 * KIB);
        stored_rig_write(node, 100 * KIB, 512);
        stored_rig_add(node, "ours", 64 * KIB);
        stored_rig_write(node, 700 * KIB, 512);
    }
    stored_rig_assert_clean(&image);
    stored_rig_expect_stored(image.path, "theirs", "auto");
    stored_rig_expect_stored(image.path, "still", "");
    test_command_succeeds("qemu-io -f qcow2 -c 'write 200k 4k' -c 'discard 0 4k' %s", image.path);
    stored_rig_assert_clean(&image);
    test_command_succeeds("qemu-img bitmap --add --disable --merge theirs -g 4096 %s both",
                          image.path);
    {
        AUTO(block_node) node = stored_rig_open(&image, "");

        stored_rig_expect_dirty(stored_rig_get(node, "theirs"), "0+4 8+4 32+4 100+4 200+4 700+4");
        stored_rig_expect_dirty(stored_rig_get(node, "both"), "0+4 8+4 32+4 100+4 200+4 700+4");
        stored_rig_expect_dirty(stored_rig_get(node, "ours"), "0+64 192+64 640+64");
        stored_rig_expect_dirty(stored_rig_get(node, "still"), "");
    }
    test_image_remove(&image, NULL);
}

/* ---- In use ---------------------------------------------------------------------------------- */

static void test_idle_crash(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "");
    g_assert_cmpint(block_node_flush(node), ==, 0);
    stored_rig_crash(&image);
    block_node_unref(STEAL(node));
    stored_rig_go_on(&image);
    node = stored_rig_open(&image, "");
    g_assert_false(dirty_bitmap_is_inconsistent(stored_rig_get(node, "b")));
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "8+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

enum change { WRITE, DISCARD, ZERO, RESIZE, CLEAR, CHANGES };

static void change_somehow(struct block_node *node, enum change change)
{
    g_autoptr(GError) error = NULL;

    switch (change) {
    case WRITE:
        stored_rig_write(node, 0, 512);
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
        dirty_bitmap_clear(stored_rig_get(node, "b"));
    }
    g_assert_no_error(error);
}

static void test_crash_after_change(void)
{
    for (enum change change = 0; change < CHANGES; change++) {
        g_autoptr(GError) error = NULL;
        struct test_image image;

        stored_rig_make(&image, "cluster_size=4k", LENGTH);
        test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
        test_command_succeeds("qemu-img bitmap --add --disable %s still", image.path);
        AUTO(block_node) node = stored_rig_open(&image, "");
        change_somehow(node, change);
        stored_rig_crash(&image);
        block_node_unref(STEAL(node));
        stored_rig_expect_stored(image.path, "b", "auto"); /* stored at the end, as it should be */
        stored_rig_go_on(&image);
        node = stored_rig_open_with_warning(&image, "Image '*': *'b'*block-dirty-bitmap-remove*");
        g_assert_true(dirty_bitmap_is_inconsistent(stored_rig_get(node, "b")));
        g_assert_false(dirty_bitmap_enabled(stored_rig_get(node, "b")));
        g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "b")), ==, 0);
        g_assert_cmpint(dirty_bitmap_is_inconsistent(stored_rig_get(node, "still")), ==,
                        change == RESIZE);
        block_node_unref(STEAL(node));
        stored_rig_expect_stored(image.path, "b", "in-use auto"); /* it stays what it was */
        node = stored_rig_open_with_warning(&image, "*'b'*");
        stored_rig_remove(node, "b", &error);
        g_assert_no_error(error);
        stored_rig_crash(&image); /* durable, before the node is closed */
        block_node_unref(STEAL(node));
        stored_rig_go_on(&image);
        stored_rig_expect_stored(image.path, "b", "gone");
        test_image_remove(&image, NULL);
    }
}

/* Each way round, of one that is stored: what is not marked after a crash would be wrong. */
static void test_begin_change(void)
{
    for (unsigned enable = 0; enable < 2; enable++) {
        g_autoptr(GError) error = NULL;
        struct test_image image;

        stored_rig_make(&image, "cluster_size=4k", LENGTH);
        test_command_succeeds("qemu-img bitmap --add %s %s b", enable ? "--disable" : "--enable",
                              image.path);
        AUTO(block_node) node = stored_rig_open(&image, "");
        block_stored_bitmaps_begin_change(node, "b", &error);
        g_assert_no_error(error);
        stored_rig_expect_stored(image.path, "b", enable ? "in-use" : "in-use auto");
        dirty_bitmap_set_enabled(stored_rig_get(node, "b"), enable);
        block_stored_bitmaps_begin_change(node, "b", &error); /* is marked already */
        block_stored_bitmaps_begin_change(node, "of no image", &error);
        g_assert_no_error(error);
        block_node_unref(STEAL(node));
        stored_rig_expect_stored(image.path, "b", enable ? "auto" : "");
        stored_rig_assert_clean(&image);
        test_image_remove(&image, NULL);
    }
}

/* ---- Read-only ------------------------------------------------------------------------------- */

static void test_read_only(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-io -f qcow2 -c 'write 8k 4k' %s", image.path);
    stored_rig_crash(&image);
    AUTO(block_node) node = stored_rig_open(&image, "read-only=on,");
    struct dirty_bitmap *b = stored_rig_get(node, "b");
    g_assert_true(dirty_bitmap_is_read_only(b) && dirty_bitmap_enabled(b));
    stored_rig_expect_dirty(b, "8+4");
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

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "read-only=on,");
    struct dirty_bitmap *b = stored_rig_get(node, "b");
    for (unsigned i = 0; i < 3; i++) {
        stored_rig_set_read_only(node, false);
        g_assert_true(stored_rig_get(node, "b") == b); /* who holds it goes on holding it */
        g_assert_false(dirty_bitmap_is_read_only(b));
        stored_rig_expect_stored(image.path, "b", "auto");
        stored_rig_write(node, i * 16 * KIB, 512);
        stored_rig_expect_stored(image.path, "b", "in-use auto");
        if (i == 1) {
            stored_rig_add(node, "new", 64 * KIB);
        }
        stored_rig_set_read_only(node, true);
        g_assert_true(dirty_bitmap_is_read_only(b) && !dirty_bitmap_is_busy(b));
        stored_rig_expect_stored(image.path, "b", "auto");
        stored_rig_assert_clean(&image);
    }
    stored_rig_expect_stored(image.path, "new", "auto");
    stored_rig_expect_dirty(stored_rig_get(node, "new"), "0+64");
    block_node_unref(STEAL(node));
    node = stored_rig_open(&image, "");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "0+4 16+4 32+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* The image does not know that it records, so it is marked before it does. */
static void test_enabled_while_read_only(void)
{
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add --disable -g 4096 %s b", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "read-only=on,");
    dirty_bitmap_set_enabled(stored_rig_get(node, "b"), true);
    stored_rig_set_read_only(node, false);
    stored_rig_write(node, 0, 512);
    stored_rig_expect_stored(image.path, "b", "in-use");
    block_node_unref(STEAL(node));
    stored_rig_expect_stored(image.path, "b", "auto");
    test_image_remove(&image, NULL);
}

/* An operation that holds one may know more than the bitmap says. */
static void test_reopen_busy(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = stored_rig_open(&image, "");
    struct dirty_bitmap *b = stored_rig_add(node, "b", GRANULE),
                        *c = stored_rig_add(node, "c", GRANULE);
    dirty_bitmap_hold(c);
    g_assert_cmpint(block_node_set_read_only(node, true, &error), ==, -EBUSY);
    g_assert_nonnull(strstr(error->message, "Bitmap 'c' is currently in use"));
    g_assert_false(dirty_bitmap_is_read_only(b) || dirty_bitmap_is_read_only(c));
    g_assert_false(dirty_bitmap_is_busy(b));
    stored_rig_write(node, 0, 512);
    dirty_bitmap_let_go(c);
    stored_rig_set_read_only(node, true);
    block_node_unref(STEAL(node));
    stored_rig_expect_stored(image.path, "c", "auto");
    test_image_remove(&image, NULL);
}

/* ---- With what else happens to an image -------------------------------------------------------
 */

static void test_resize(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    test_command_succeeds("qemu-img bitmap --add -g 4096 %s b", image.path);
    test_command_succeeds("qemu-img bitmap --add -g 4096 --disable %s still", image.path);
    AUTO(block_node) node = stored_rig_open(&image, "");
    stored_rig_write(node, 0, 512);
    block_node_set_length(node, LENGTH + 512, BLOCK_PREALLOCATION_OFF, &error);
    block_node_unref(STEAL(node));
    stored_rig_assert_clean(&image);
    node = stored_rig_open(&image, "");
    g_assert_cmpuint(dirty_bitmap_length(stored_rig_get(node, "b")), ==, LENGTH + 512);
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "b")), ==, GRANULE + 512);
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "still")), ==, 0);
    block_node_set_length(node, 64 * KIB, BLOCK_PREALLOCATION_OFF, &error);
    block_node_unref(STEAL(node));
    g_assert_no_error(error);
    stored_rig_assert_clean(&image);
    test_command_succeeds("qemu-img bitmap --clear %s still", image.path); /* QEMU takes it, too */
    node = stored_rig_open(&image, "");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "0+4");
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

static void test_snapshots(void)
{
    g_autoptr(GError) error = NULL;
    struct test_image image;

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = stored_rig_open(&image, "");
    stored_rig_add(node, "b", GRANULE);
    dirty_bitmap_set_enabled(stored_rig_add(node, "still", GRANULE), false);
    stored_rig_write(node, 0, 512);
    block_node_snapshot_create_now(node, "s", &error);
    g_assert_no_error(error);
    stored_rig_write(node, 64 * KIB, 512);
    block_node_unref(STEAL(node));
    stored_rig_assert_clean(&image);
    stored_rig_expect_stored(image.path, "b", "auto");
    node = stored_rig_open(&image, "");
    stored_rig_expect_dirty(stored_rig_get(node, "b"), "0+4 64+4"); /* snapshots have no bitmaps */
    block_node_snapshot_apply(node, "s", &error);
    g_assert_no_error(error);
    stored_rig_crash(&image);
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "b")), ==,
                     LENGTH); /* all may be different */
    g_assert_cmpuint(dirty_bitmap_count(stored_rig_get(node, "still")), ==, 0);
    block_node_snapshot_delete(node, "s", &error);
    g_assert_no_error(error);
    block_node_unref(STEAL(node));
    stored_rig_assert_clean(&image);
    stored_rig_expect_stored(image.path, "b", "auto");
    stored_rig_go_on(&image);
    node = stored_rig_open_with_warning(&image, "*cannot be trusted*'b'*");
    g_assert_true(dirty_bitmap_is_inconsistent(stored_rig_get(node, "b")));
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

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = stored_rig_open(&image, "");
    stored_rig_add(node, "b", GRANULE); /* nothing of it is in the image yet */
    g_assert_cmpint(amend(node, "version=v2", &error), ==, -ENOTSUP);
    g_assert_nonnull(strstr(error->message, "bitmaps"));
    g_clear_error(&error);
    stored_rig_remove(node, "b", &error);
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

    stored_rig_make(&image, "cluster_size=64k", 64 * TIB);
    {
        AUTO(block_node) raw = test_open("driver=raw,node-name=raw,file.driver=file,"
                                         "file.filename=%s",
                                         image.path);

        g_assert_cmpint(block_stored_bitmaps_check_new(raw, "b", GRANULE, &error), ==, -ENOTSUP);
        g_assert_cmpstr(error->message, ==,
                        "Can't store persistent bitmaps to raw: Operation not supported");
        g_clear_error(&error);
    }
    AUTO(block_node) node = stored_rig_open(&image, "");
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

    stored_rig_make(&image, "cluster_size=4k", LENGTH);
    AUTO(block_node) node = stored_rig_open(&image, "");
    AUTO(dirty_bitmap) jobs = dirty_bitmap_new(NULL, LENGTH, GRANULE, NULL);
    block_node_add_bitmap(node, jobs);
    block_node_add_bitmap(node, dirty_bitmap_new("passing", LENGTH, GRANULE, NULL));
    stored_rig_write(node, 0, 512);
    g_assert_cmpuint(block_stored_bitmaps_count(node), ==, 0);
    block_node_remove_bitmap(node, jobs);
    block_node_unref(STEAL(node));
    stored_rig_expect_stored(image.path, "passing", "gone");
    test_image_remove(&image, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
#define TEST(name, function) g_test_add_func("/stored-bitmaps/" name, function)
    TEST("all-flags-and-bits-come-back", test_round_trip);
    TEST("qemu-and-we-go-on-with-each-others", test_with_qemu);
    TEST("a-crash-while-nobody-writes-costs-nothing", test_idle_crash);
    TEST("a-crash-after-any-change-leaves-inconsistent-ones", test_crash_after_change);
    TEST("what-changes-in-memory-is-marked-before", test_begin_change);
    TEST("a-read-only-image-is-left-as-it-is", test_read_only);
    TEST("a-node-that-becomes-read-only-stores-them", test_reopen);
    TEST("what-was-enabled-while-nobody-wrote-is-marked", test_enabled_while_read_only);
    TEST("a-busy-one-keeps-a-node-writable", test_reopen_busy);
    TEST("they-are-resized", test_resize);
    TEST("a-snapshot-that-is-applied-is-all-changes", test_snapshots);
    TEST("they-keep-an-image-from-becoming-version-2", test_amend);
    TEST("what-cannot-be-stored-is-refused-at-once", test_limits);
    TEST("only-persistent-ones-are-stored", test_not_persistent);
#undef TEST
    return g_test_run();
}
