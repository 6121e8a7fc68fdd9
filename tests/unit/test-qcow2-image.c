/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2 images that are damaged, dirty, or have bitmaps and VM state; QEMU's tools as the peer. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"

#define LENGTH (256 * KIB)

/* An image of 512-byte clusters with data in it: header, refcounts, L1 and L2 lie at its start. */
static void make(struct test_image *image, const char *options)
{
    g_assert_cmpint(test_command(NULL, "qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options,
                                 image->path, LENGTH),
                    ==, 0);
    g_assert_cmpint(
        test_command(NULL, "qemu-io -f qcow2 -c 'write -P 17 0 64k' -c 'write -P 34 100k 8k' %s",
                     image->path),
        ==, 0);
}

static struct block_node *open_image(struct test_image *image, const char *more)
{
    return test_open("driver=qcow2,discard=unmap,%sfile.driver=file,file.filename=%s", more,
                     image->path);
}

/* The node "bad" is where requests fail. */
static struct block_node *open_with_faults(struct test_image *image)
{
    return test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                     "file.file.filename=%s",
                     image->path);
}

static uint64_t get(struct test_image *image, uint64_t offset, unsigned bytes)
{
    int fd = open(image->path, O_RDONLY);
    uint8_t data[8];
    uint64_t value = 0;

    g_assert_cmpint(pread(fd, data, bytes, (off_t)offset), ==, bytes);
    close(fd);
    for (unsigned i = 0; i < bytes; i++) {
        value = value << 8 | data[i];
    }
    return value;
}

static void put(struct test_image *image, uint64_t offset, uint64_t value, unsigned bytes)
{
    int fd = open(image->path, O_WRONLY);

    for (unsigned i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)(value >> (8 * (bytes - 1 - i)));

        g_assert_cmpint(pwrite(fd, &byte, 1, (off_t)(offset + i)), ==, 1);
    }
    close(fd);
}

static void check(struct test_image *image, unsigned repair, struct block_check_result *result)
{
    g_autoptr(GError) error = NULL;
    AUTO(block_node) node =
        open_image(image, repair ? "for-check=on," : "for-check=on,read-only=on,");

    *result = (struct block_check_result){0};
    block_node_check(node, repair, result, NULL, NULL, &error);
    g_assert_no_error(error);
}

static void assert_data(struct block_node *node)
{
    g_autofree uint8_t *buffer = g_malloc(LENGTH);

    g_assert_cmpint(block_node_pread(node, buffer, 0, LENGTH, 0), ==, 0);
    for (uint64_t i = 0; i < LENGTH; i++) {
        bool is_second = i >= 100 * KIB && i < 108 * KIB;

        g_assert_cmpint(buffer[i], ==, i < 64 * KIB ? 17 : is_second ? 34 : 0);
    }
}

/* ---- Damage --------------------------------------------------------------------------------- */

static uint64_t l1_offset(struct test_image *image)
{
    return get(image, 40, 8);
}

static uint64_t l2_offset(struct test_image *image)
{
    return get(image, l1_offset(image), 8) & ((UINT64_C(1) << 56) - 1);
}

static uint64_t refblock_offset(struct test_image *image)
{
    return get(image, get(image, 48, 8), 8);
}

static void lower_refcount(struct test_image *image)
{
    put(image, refblock_offset(image) + 2 * 8, 0, 2);
}

static void lose_copied(struct test_image *image)
{
    uint64_t entry = get(image, l2_offset(image), 8);

    put(image, l2_offset(image), entry & ~(UINT64_C(1) << 63), 8);
}

/* Of a data cluster, whose flag agrees with it: so that it is space that is lost, no more. */
static void raise_refcount(struct test_image *image)
{
    lose_copied(image);
    put(image, refblock_offset(image) + get(image, l2_offset(image), 8) / 512 * 2, 7, 2);
}

static void lose_l1_copied(struct test_image *image)
{
    put(image, l1_offset(image), l2_offset(image), 8);
}

static void misalign_refblock(struct test_image *image)
{
    put(image, get(image, 48, 8), refblock_offset(image) + 8, 8);
}

static void lose_refblock(struct test_image *image)
{
    put(image, get(image, 48, 8), 0, 8);
}

static void set_reserved(struct test_image *image)
{
    put(image, l2_offset(image), get(image, l2_offset(image), 8) | 0x10, 8);
}

/* Each kind of damage is found, told from a mere loss of space, and mended with all data there. */
static void test_damage(void)
{
    static const struct {
        const char *name;
        void (*damage)(struct test_image *image);
        bool is_leak;
    } cases[] = {
        {"lower refcount", lower_refcount, false}, {"raise refcount", raise_refcount, true},
        {"lose copied", lose_copied, false},       {"lose L1 copied", lose_l1_copied, false},
        {"misalign", misalign_refblock, false},    {"lose refblock", lose_refblock, false},
        {"reserved bits", set_reserved, false},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        struct block_check_result result;
        struct test_image image;

        g_test_message("%s", cases[i].name);
        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        check(&image, 0, &result);
        g_assert_cmpuint(result.corruptions + result.leaks, ==, 0);
        cases[i].damage(&image);
        check(&image, 0, &result);
        g_assert_cmpint(result.corruptions > 0, ==, !cases[i].is_leak);
        g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), !=, 0);
        if (cases[i].is_leak) {
            g_assert_cmpuint(result.leaks, >, 0);
            check(&image, BLOCK_CHECK_REPAIR_LEAKS, &result);
        } else {
            check(&image, BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS, &result);
        }
        g_assert_cmpuint(result.corruptions + result.leaks, ==, 0);
        g_assert_cmpuint(result.corruptions_fixed + result.leaks_fixed, >, 0);
        g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
        AUTO(block_node) node = open_image(&image, "");
        assert_data(node);
        block_node_unref(STEAL(node));
        test_image_remove(&image, NULL);
    }
}

/* An image that a bad entry shows to be damaged is not written to any more, and says so. */
static void test_corrupt(void)
{
    struct test_image image;
    uint8_t buffer[512] = {0};

    test_image_make(&image, 0);
    make(&image, "cluster_size=512");
    put(&image, l2_offset(&image), 3 * 512 | UINT64_C(1) << 63, 8); /* where the L1 table is */
    {
        AUTO(block_node) node = open_image(&image, "");

        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*is damaged*");
        g_assert_cmpint(block_node_pwrite(node, buffer, 0, 512, 0), ==, -EIO);
        g_test_assert_expected_messages();
        g_assert_cmpint(block_node_pwrite(node, buffer, 100 * KIB, 512, 0), ==, -EIO);
        g_assert_cmpint(block_node_pread(node, buffer, 100 * KIB, 512, 0), ==, 0);
        g_assert_cmpint(buffer[0], ==, 34);
    }
    g_autofree char *reason =
        test_open_error("driver=qcow2,file.driver=file,file.filename=%s", image.path);
    g_assert_nonnull(strstr(reason, "Image is corrupt"));
    AUTO(block_node) node = open_image(&image, "read-only=on,");
    g_assert_cmpint(block_node_pread(node, buffer, 100 * KIB, 512, 0), ==, 0);
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* Where damage is, is told if it is anywhere. */
static void test_place(void)
{
    static const struct {
        uint64_t entry;
        const char *warning;
    } cases[] = {
        {3 * 512 | UINT64_C(1) << 63, "*offset 0 is not valid (offset 1536). 'liveblk*"},
        {0x10, "*offset 0 is not valid. 'liveblk*"},
        {UINT64_C(1) << 62 | 17, "*offset 0 is not valid (offset 17). 'liveblk*"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        struct test_image image;
        uint8_t byte;

        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        put(&image, l2_offset(&image), cases[i].entry, 8);
        AUTO(block_node) node = open_image(&image, "");
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, cases[i].warning);
        g_assert_cmpint(block_node_pread(node, &byte, 0, 1, 0), ==, -EIO);
        g_test_assert_expected_messages();
        block_node_unref(STEAL(node));
        test_image_remove(&image, NULL);
    }
}

/* Lazy refcounts after a crash: the refcounts are made anew when the image is opened. */
static void test_dirty(void)
{
    struct test_image image;

    test_image_make(&image, 0);
    make(&image, "cluster_size=512,lazy_refcounts=on");
    for (unsigned i = 0; i < 100; i++) {
        put(&image, refblock_offset(&image) + 2 * (20 + i), i % 3, 2);
    }
    put(&image, 72, 1, 8); /* incompatible_features: dirty */
    AUTO(block_node) node = open_image(&image, "");
    assert_data(node);
    block_node_unref(STEAL(node));
    g_assert_cmpint(get(&image, 72, 8), ==, 0);
    g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
    test_image_remove(&image, NULL);
}

/* ---- A refcount table that moves ------------------------------------------------------------- */

static void *flush(void *node)
{
    return GINT_TO_POINTER(block_node_flush(node));
}

static void fill(struct block_node *node, uint64_t start, uint64_t end)
{
    g_autofree uint8_t *data = g_malloc(64 * KIB);

    for (uint64_t at = start; at < end; at += 64 * KIB) {
        memset(data, (int)(1 + at / (64 * KIB) % 255), 64 * KIB);
        g_assert_cmpint(block_node_pwrite(node, data, at, 64 * KIB, 0), ==, 0);
    }
}

/* A commit is held where it writes to the table; meanwhile others fill it, so that it moves. */
static void test_table_moves(void)
{
    g_autofree uint8_t *data = g_malloc(64 * KIB);
    struct test_image image;

    test_image_make(&image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 %s 16M",
                          image.path);
    AUTO(block_node) node = open_with_faults(&image);
    AUTO(block_node) bad = block_node_find("bad");
    uint64_t table = get(&image, 48, 8); /* refcount_table_offset */
    fill(node, 0, MIB);
    FAULT(bad, .operations = FAULT_ON(WRITE), .offset = table, .bytes = 512, .hold = true);
    GThread *thread = g_thread_new("flush", flush, node);
    fault_wait_held(bad, 1);
    fill(node, MIB, 4 * MIB);
    g_assert_cmpuint(get(&image, 48, 8), !=, table);
    fault_clear(bad);
    g_assert_cmpint(GPOINTER_TO_INT(g_thread_join(thread)), ==, 0);
    fill(node, 4 * MIB, 5 * MIB);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    for (uint64_t at = 0; at < 5 * MIB; at += 64 * KIB) {
        g_assert_cmpint(block_node_pread(node, data, at, 64 * KIB, 0), ==, 0);
        g_assert_cmpuint(data[0], ==, 1 + at / (64 * KIB) % 255);
        g_assert_true(!memcmp(data, data + 1, 64 * KIB - 1));
    }
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image.path);
    test_image_remove(&image, NULL);
}

/* ---- Bitmaps -------------------------------------------------------------------------------- */

static void test_bitmaps(void)
{
    struct block_persistent_bitmap *list,
        stored = {.name = (char *)(uintptr_t) "ours", .granularity = 4096, .enabled = true};
    g_autoptr(GError) error = NULL;
    uint8_t bits[LENGTH / 4096 / 8], again[sizeof(bits)];
    g_autofree char *info = NULL;
    struct test_image image;
    size_t count;

    test_image_make(&image, 0);
    make(&image, "cluster_size=512");
    g_assert_cmpint(test_command(NULL, "qemu-img bitmap --add -g 4096 %s theirs", image.path), ==,
                    0);
    g_assert_cmpint(test_command(NULL, "qemu-io -f qcow2 -c 'write -P 17 8k 4k' %s", image.path),
                    ==, 0);
    {
        AUTO(block_node) node = open_image(&image, "read-only=on,");

        block_node_bitmap_list(node, &list, &count, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(count, ==, 1);
        g_assert_cmpstr(list[0].name, ==, "theirs");
        g_assert_true(list[0].enabled && !list[0].in_use);
        g_assert_cmpuint(list[0].granularity, ==, 4096);
        block_persistent_bitmap_list_free(list, count);
        block_node_bitmap_load(node, "theirs", bits, sizeof(bits), &error);
        g_assert_no_error(error);
        for (unsigned i = 0; i < 8 * sizeof(bits); i++) {
            g_assert_cmpint(bits[i / 8] >> i % 8 & 1, ==, i == 2);
        }
    }
    {
        AUTO(block_node) node = open_image(&image, "");

        for (unsigned i = 0; i < sizeof(bits); i++) {
            bits[i] = (uint8_t)(i * 37 + 1);
        }
        block_node_bitmap_store(node, &stored, bits, sizeof(bits), &error);
        g_assert_no_error(error);
        block_node_bitmap_store(node, &stored, bits, sizeof(bits), &error); /* in its place */
        g_assert_no_error(error);
    }
    test_command(&info, "qemu-img info --output=json %s", image.path);
    g_assert_nonnull(strstr(info, "\"ours\""));
    g_assert_null(strstr(info, "\"in-use\"")); /* nothing was written */
    g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
    {
        AUTO(block_node) node = open_image(&image, "");

        block_node_bitmap_load(node, "ours", again, sizeof(again), &error);
        g_assert_no_error(error);
        g_assert_cmpmem(bits, sizeof(bits), again, sizeof(again));
        block_node_bitmap_remove(node, "ours", &error);
        g_assert_no_error(error);
        block_node_bitmap_remove(node, "theirs", &error);
        g_assert_no_error(error);
        assert_data(node);
    }
    g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
    test_image_remove(&image, NULL);
}

static bool is_in_use(struct test_image *image, const char *name)
{
    AUTO(block_node) node = open_image(image, "read-only=on,");
    struct block_persistent_bitmap *list;
    bool found = false, in_use = false;
    size_t count;

    g_assert_cmpint(block_node_bitmap_list(node, &list, &count, NULL), ==, 0);
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].name, name)) {
            found = true;
            in_use = list[i].in_use;
        }
    }
    block_persistent_bitmap_list_free(list, count);
    g_assert_true(found);
    return in_use;
}

/* Each way to change the disk, and some that do not. */
static void test_outdated_bitmaps(void)
{
    struct block_persistent_bitmap stored = {
        .name = (char *)(uintptr_t) "ours", .granularity = 4096, .enabled = true};

    for (unsigned way = 0; way < 6; way++) {
        uint8_t data[512] = {1}, bits[LENGTH / 4096 / 8] = {0};
        g_autoptr(GError) error = NULL;
        struct test_image image;

        g_test_message("%u", way);
        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        test_command_succeeds("qemu-img bitmap --add -g 4096 %s theirs", image.path);
        test_command_succeeds("qemu-img bitmap --add --disable %s still", image.path);
        AUTO(block_node) node = open_image(&image, "");
        block_node_bitmap_store(node, &stored, bits, sizeof(bits), &error);
        g_assert_no_error(error);
        if (way == 1) {
            g_assert_cmpint(block_node_pwrite(node, data, 0, sizeof(data), 0), ==, 0);
        } else if (way == 2) {
            g_assert_cmpint(block_node_discard(node, 0, 4096), ==, 0);
        } else if (way == 3) {
            g_assert_cmpint(block_node_write_zeroes(node, 0, 4096, 0), ==, 0);
        } else if (way == 4) {
            g_assert_cmpint(block_node_pwrite_compressed(node, data, 0, sizeof(data)), ==, 0);
        } else if (way == 5) {
            g_assert_cmpint(block_node_vmstate_write(node, data, 0, sizeof(data)), ==, 0);
        }
        bool changes = way >= 1 && way <= 4;
        if (changes) { /* durably, before what was written */
            test_command_succeeds("cp %s %s.copy", image.path, image.path);
        }
        block_node_unref(STEAL(node));
        g_assert_false(is_in_use(&image, "theirs"));         /* it is stored with the change */
        g_assert_true(is_in_use(&image, "ours") == changes); /* nobody has this one in memory */
        g_assert_false(is_in_use(&image, "still"));
        g_assert_cmpint(test_command(NULL, "qemu-img bitmap --clear %s ours", image.path) == 0, ==,
                        !changes);
        test_command_succeeds("qemu-img bitmap --clear %s theirs", image.path);
        test_command_succeeds("qemu-img bitmap --clear %s still", image.path);
        test_command_succeeds("qemu-img check -q -f qcow2 %s", image.path);
        if (changes) {
            test_command_succeeds("mv %s.copy %s", image.path, image.path);
            g_assert_true(is_in_use(&image, "theirs") && is_in_use(&image, "ours"));
        }
        test_image_remove(&image, NULL);
    }
}

/* A table beyond all, and an entry without a name, which nobody could remove. */
static void test_bad_bitmaps(void)
{
    static const char *const warnings[] = {"Image *'b'*", "*bitmaps*are lost*"};

    for (unsigned way = 0; way < 2; way++) {
        struct test_image image;

        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        test_command_succeeds("qemu-img bitmap --add %s b", image.path);
        for (uint64_t at = 104; at < 512; at += 8) { /* the extension is somewhere here */
            if (get(&image, at, 4) == 0x23852875) {
                uint64_t entry = get(&image, at + 24, 8);

                put(&image, way ? entry + 24 : entry, way ? 0 : UINT64_MAX, 8);
            }
        }
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, warnings[way]);
        AUTO(block_node) node = open_image(&image, "");
        g_test_assert_expected_messages();
        assert_data(node);
        block_node_unref(STEAL(node));
        g_assert_cmpint(get(&image, 88, 8), ==, !way); /* autoclear_features */
        test_image_remove(&image, NULL);
    }
}

static int store(struct block_node *node, const char *name, uint32_t granularity, uint8_t byte,
                 GError **error)
{
    struct block_persistent_bitmap stored = {.name = (char *)(uintptr_t)name,
                                             .granularity = granularity};
    uint8_t bits[LENGTH / 512 / 8];

    memset(bits, byte, sizeof(bits));
    return block_node_bitmap_store(node, &stored, bits, sizeof(bits), error);
}

static void test_odd_bitmaps(void)
{
    g_autofree char *long_name = g_strnfill(1024, 'a');
    const struct {
        const char *name;
        uint32_t granularity;
    } cases[] = {{"a", 0}, {"a", 511}, {"a", 513}, {"a", 256}, {"", 512}, {long_name, 512}};
    struct test_image image;

    test_image_make(&image, 0);
    make(&image, "cluster_size=512");
    AUTO(block_node) node = open_image(&image, "");
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_cmpint(store(node, cases[i].name, cases[i].granularity, 1, &error), ==, -EINVAL);
        g_assert_nonnull(strstr(error->message, "cannot be stored"));
    }
    g_assert_cmpint(store(node, long_name + 1, 512, 1, NULL), ==, 0);
    block_node_unref(STEAL(node));
    g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
    test_image_remove(&image, NULL);
}

/* A bitmap is stored or it is not, and then the one before is, and no space is lost. */
static void test_bitmap_faults(void)
{
    static const unsigned kinds[] = {FAULT_ON(WRITE), FAULT_ON(FLUSH)};
    bool is_over = false;

    for (unsigned i = 0; i < 400; i++) {
        g_autoptr(GError) error = NULL;
        uint8_t bits[LENGTH / 512 / 8] = {0};
        struct test_image image;

        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        AUTO(block_node) node = open_with_faults(&image);
        AUTO(block_node) bad = block_node_find("bad");
        g_assert_cmpint(store(node, "b", 512, 1, &error), ==, 0);
        FAULT(bad, .operations = kinds[i % 2], .skip = i / 2, .count = 1, .error_number = EIO);
        int status = store(node, "b", 512, 2, &error);
        bool has_failed = fault_hits(bad);
        fault_clear(bad);
        g_assert_true(has_failed == (status < 0));
        block_node_bitmap_load(node, "b", bits, sizeof(bits), NULL);
        g_assert_cmpint(bits[0], ==, has_failed ? 1 : 2);
        block_node_unref(STEAL(bad));
        block_node_unref(STEAL(node));
        node = open_image(&image, "read-only=on,");
        block_node_bitmap_load(node, "b", bits, sizeof(bits), NULL);
        g_assert_cmpint(bits[0], ==, has_failed ? 1 : 2);
        block_node_unref(STEAL(node));
        g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
        test_image_remove(&image, NULL);
        if (!has_failed && is_over) {
            return;
        }
        is_over = !has_failed;
    }
    g_assert_not_reached();
}

/* ---- VM state ------------------------------------------------------------------------------- */

static void test_vm_state(void)
{
    struct block_snapshot_info info = {
        .name = (char *)(uintptr_t) "with", .vm_state_size = 100000, .icount = UINT64_MAX};
    g_autofree uint8_t *state = g_malloc(100000), *again = g_malloc(100000);
    g_autoptr(GError) error = NULL;
    g_autofree char *list = NULL;
    struct test_image image;

    for (unsigned i = 0; i < 100000; i++) {
        state[i] = (uint8_t)(i * 7 + i / 512);
    }
    test_image_make(&image, 0);
    make(&image, "cluster_size=512");
    AUTO(block_node) node = open_image(&image, "");
    g_assert_cmpint(block_node_vmstate_write(node, state, 0, 100000), ==, 0);
    block_node_snapshot_create(node, &info, &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_vmstate_write(node, again, 0, 50000), ==, 0);
    block_node_snapshot_apply(node, "with", &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_vmstate_read(node, again, 0, 100000), ==, 0);
    g_assert_cmpmem(state, 100000, again, 100000);
    assert_data(node);
    block_node_unref(STEAL(node));
    test_command(&list, "qemu-img snapshot -l %s", image.path);
    g_assert_nonnull(strstr(list, "with"));
    g_assert_cmpint(test_command(NULL, "qemu-img check -f qcow2 %s", image.path), ==, 0);
    test_image_remove(&image, NULL);
}

/* ---- Failing storage ------------------------------------------------------------------------ */

/* Fail the nth write while a snapshot is taken and deleted: the image opens, and all is there. */
static void test_snapshot_faults(void)
{
    bool is_over = false;

    for (unsigned skip = 0; !is_over; skip++) {
        struct block_snapshot_info info = {.name = (char *)(uintptr_t) "s", .icount = UINT64_MAX};
        g_autoptr(GError) error = NULL;
        struct test_image image;

        test_image_make(&image, 0);
        make(&image, "cluster_size=512");
        AUTO(block_node) node = open_with_faults(&image);
        AUTO(block_node) bad = block_node_find("bad");
        FAULT(bad, .operations = FAULT_ON(WRITE), .skip = skip, .count = 1, .error_number = EIO);
        is_over = block_node_snapshot_create(node, &info, &error) == 0 &&
                  block_node_snapshot_delete(node, "s", &error) == 0 && fault_hits(bad) == 0;
        fault_clear(bad);
        assert_data(node);
        block_node_unref(STEAL(bad));
        block_node_unref(STEAL(node));
        node = open_image(&image, ""); /* repairs what was left half done */
        assert_data(node);
        block_node_unref(STEAL(node));
        g_autofree char *said = NULL;
        int verdict = test_command(&said, "qemu-img check -f qcow2 %s", image.path);
        if (verdict != 0 && verdict != 3) {
            g_error("after write %u failed (%s): qemu-img check says %d: %s", skip,
                    error ? error->message : "no error", verdict, said);
        }
        test_image_remove(&image, NULL);
        g_assert_cmpuint(skip, <, 200);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    g_test_add_func("/qcow2-image/damage-is-found-and-mended", test_damage);
    g_test_add_func("/qcow2-image/a-damaged-image-is-left-alone", test_corrupt);
    g_test_add_func("/qcow2-image/where-damage-is-is-told", test_place);
    g_test_add_func("/qcow2-image/a-dirty-image-is-repaired-when-it-is-opened", test_dirty);
    g_test_add_func("/qcow2-image/nobody-gets-the-place-of-a-table-that-is-still-written",
                    test_table_moves);
    g_test_add_func("/qcow2-image/bitmaps-of-qemu-and-ours-are-understood", test_bitmaps);
    g_test_add_func("/qcow2-image/bitmaps-hold-until-the-disk-changes", test_outdated_bitmaps);
    g_test_add_func("/qcow2-image/bad-bitmaps-never-keep-an-image-from-opening", test_bad_bitmaps);
    g_test_add_func("/qcow2-image/bitmaps-that-cannot-be-understood-are-not-stored",
                    test_odd_bitmaps);
    g_test_add_func("/qcow2-image/a-bitmap-that-cannot-be-stored-takes-no-space",
                    test_bitmap_faults);
    g_test_add_func("/qcow2-image/vm-state-is-part-of-a-snapshot", test_vm_state);
    g_test_add_func("/qcow2-image/a-failed-write-in-a-snapshot-loses-nothing",
                    test_snapshot_faults);
    return g_test_run();
}
