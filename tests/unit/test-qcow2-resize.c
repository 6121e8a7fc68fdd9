/* SPDX-License-Identifier: BSD-3-Clause */
/* Other lengths of qcow2 images: what is new is zeroes, whatever lay there before. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/image.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

static void make(struct test_image *image, const char *options, uint64_t length)
{
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, image->path,
                          length);
}

static void check(struct test_image *image)
{
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

static struct block_node *open_image(struct test_image *image)
{
    return test_open("driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,"
                     "file.filename=%s",
                     image->path);
}

static void fill_file(const char *directory, const char *name, uint64_t bytes)
{
    g_autofree char *path = test_path(directory, name);
    g_autofree char *contents = g_malloc(bytes);

    memset(contents, 0xbb, bytes);
    g_assert_true(g_file_set_contents(path, contents, (gssize)bytes, NULL));
}

static void assert_same(struct block_node *node, const uint8_t *model, uint64_t length)
{
    g_autofree uint8_t *buffer = g_malloc(length);

    g_assert_cmpuint(block_node_length(node), ==, length);
    g_assert_cmpint(block_node_pread(node, buffer, 0, length, 0), ==, 0);
    test_assert_same(buffer, model, length);
}

static void resize(struct block_node *node, uint64_t length, enum block_preallocation how)
{
    g_autoptr(GError) error = NULL;

    block_node_set_length(node, length, how, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(block_node_length(node), ==, length);
}

static void must_not_resize(struct block_node *node, uint64_t length, enum block_preallocation how,
                            const char *reason)
{
    g_autoptr(GError) error = NULL;
    uint64_t before = block_node_length(node);

    g_assert_cmpint(block_node_set_length(node, length, how, &error), <, 0);
    if (!strstr(error->message, reason)) {
        g_error("expected '%s', got '%s'", reason, error->message);
    }
    g_assert_cmpuint(block_node_length(node), ==, before);
}

/* ---- What lies behind the end --------------------------------------------------------------- */

static void test_vm_state(struct test_image *image, const void *unused)
{
    g_autofree uint8_t *state = g_malloc(300 * KIB);

    memset(state, 0x55, 300 * KIB);
    make(image, "cluster_size=512", 100 * KIB + 512);
    AUTO(block_node) node = open_image(image);
    g_assert_cmpint(block_node_vmstate_write(node, state, 0, 300 * KIB), ==, 0);
    resize(node, MIB, BLOCK_PREALLOCATION_OFF);
    test_assert_byte(node, 0, MIB, 0);
    block_node_unref(STEAL(node));
    check(image);
}

/* As if power had been lost when an image got shorter, before what it lost was freed. */
static void test_left_over(struct test_image *image, const void *unused)
{
    static const enum block_preallocation modes[] = {BLOCK_PREALLOCATION_OFF,
                                                     BLOCK_PREALLOCATION_METADATA};

    for (unsigned i = 0; i < 4; i++) {
        uint64_t size = htobe64(100 * KIB + 512);

        make(image, i & 2 ? "extended_l2=on,cluster_size=16k" : "cluster_size=4k", MIB);
        {
            AUTO(block_node) node = open_image(image);
            test_write_byte(node, 0, MIB, 0x44);
        }
        int fd = open(image->path, O_WRONLY);
        g_assert_cmpint(pwrite(fd, &size, sizeof(size), 24), ==, sizeof(size));
        close(fd);
        AUTO(block_node) node = open_image(image);
        resize(node, 512 * KIB, modes[i & 1]);
        test_assert_byte(node, 0, 100 * KIB + 512, 0x44);
        test_assert_byte(node, 100 * KIB + 512, 412 * KIB - 512, 0);
        resize(node, 2 * MIB, modes[i & 1]);
        test_assert_byte(node, 512 * KIB, 1536 * KIB, 0);
        block_node_unref(STEAL(node));
        check(image);
    }
}

/* Data files that are longer than their disk, or were when it was longer. */
static void test_data_files(struct test_image *image, const void *unused)
{
    for (unsigned i = 0; i < 8; i++) {
        enum block_preallocation how =
            i & 1 ? BLOCK_PREALLOCATION_METADATA : BLOCK_PREALLOCATION_OFF;
        bool is_raw = i & 2;
        g_autofree char *data = test_path(image->directory, "data");
        g_autofree char *options = g_strdup_printf("data_file=%s,data_file_raw=%s,cluster_size=4k",
                                                   data, is_raw ? "on" : "off");

        make(image, options, 512 * KIB);
        AUTO(block_node) node = open_image(image);
        test_write_byte(node, 0, 512 * KIB, 0x44);
        resize(node, 100 * KIB, BLOCK_PREALLOCATION_OFF);
        block_node_unref(STEAL(node));
        if (i & 4) {
            fill_file(image->directory, "data", MIB);
        }
        node = open_image(image);
        resize(node, 2 * MIB, how);
        test_assert_byte(node, 0, 100 * KIB, i & 4 ? 0xbb : 0x44);
        test_assert_byte(node, 100 * KIB, 2 * MIB - 100 * KIB, 0);
        block_node_unref(STEAL(node));
        check(image);
        if (is_raw) {
            test_command_succeeds("qemu-img compare -q -f qcow2 -F raw %s %s", image->path, data);
        }
    }
}

/* ---- Backing files -------------------------------------------------------------------------- */

/* A backing file that is not opened now is hidden all the same. */
static void test_hidden_backing(struct test_image *image, const void *unused)
{
    static const char *const kinds[] = {"compat=1.1", "extended_l2=on", "compat=0.10"};

    fill_file(image->directory, "backing", MIB);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *options =
            g_strdup_printf("%s,backing_file=backing,backing_fmt=raw", kinds[i]);

        make(image, options, 256 * KIB);
        AUTO(block_node) node = test_open(
            "driver=qcow2,discard=unmap,backing=,file.driver=file,file.filename=%s", image->path);
        g_assert_cmpint(block_node_write_zeroes(node, 0, 128 * KIB, BLOCK_REQUEST_MAY_UNMAP), ==,
                        0);
        if (i == 2) {
            must_not_resize(node, MIB, BLOCK_PREALLOCATION_OFF, "backing file opened");
        } else {
            resize(node, MIB, BLOCK_PREALLOCATION_OFF);
        }
        block_node_unref(STEAL(node));
        node = open_image(image);
        if (i == 2) {
            resize(node, MIB, BLOCK_PREALLOCATION_OFF);
        }
        test_assert_byte(node, 0, 128 * KIB, 0);
        test_assert_byte(node, 128 * KIB, 128 * KIB, 0xbb);
        test_assert_byte(node, 256 * KIB, 768 * KIB, 0);
        block_node_unref(STEAL(node));
        check(image);
    }
}

/* ---- Snapshots and bitmaps ------------------------------------------------------------------ */

static void test_snapshots(struct test_image *image, const void *unused)
{
    struct block_snapshot_info info = {.name = (char *)"then", .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;

    make(image, "cluster_size=512", 256 * KIB);
    AUTO(block_node) node = open_image(image);
    test_write_byte(node, 0, 256 * KIB, 0x11);
    block_node_snapshot_create(node, &info, &error);
    g_assert_no_error(error);
    resize(node, 64 * KIB, BLOCK_PREALLOCATION_OFF);
    resize(node, MIB, BLOCK_PREALLOCATION_METADATA);
    test_assert_byte(node, 0, 64 * KIB, 0x11);
    test_assert_byte(node, 64 * KIB, MIB - 64 * KIB, 0);
    test_write_byte(node, 128 * KIB, 512 * KIB, 0x22);
    block_node_unref(STEAL(node));
    check(image);
    node = open_image(image);
    block_node_snapshot_apply(node, "then", &error);
    g_assert_no_error(error);
    g_assert_cmpuint(block_node_length(node), ==, 256 * KIB);
    test_assert_byte(node, 0, 256 * KIB, 0x11);
    block_node_unref(STEAL(node));
    check(image);
    make(image, "compat=0.10", MIB);
    node = open_image(image);
    block_node_snapshot_create(node, &info, &error);
    g_assert_no_error(error);
    must_not_resize(node, 2 * MIB, BLOCK_PREALLOCATION_OFF, "which has snapshots");
    must_not_resize(node, KIB, BLOCK_PREALLOCATION_OFF, "which has snapshots");
}

/* They are in use while the length changes, and of the new one when the image is closed. */
static void test_bitmaps(struct test_image *image, const void *unused)
{
    for (unsigned i = 0; i < 2; i++) {
        make(image, "cluster_size=4k", 64 * MIB);
        test_command_succeeds("qemu-img bitmap --add -g 512 %s dirty", image->path);
        test_command_succeeds("qemu-io -f qcow2 -c 'write 1M 4M' %s", image->path);
        AUTO(block_node) node = open_image(image);
        resize(node, i ? 512 * MIB : MIB, BLOCK_PREALLOCATION_OFF);
        g_autofree char *before = test_command_output("qemu-img info -U %s", image->path);
        g_assert_nonnull(strstr(before, "in-use"));
        block_node_unref(STEAL(node));
        check(image);
        g_autofree char *after = test_command_output("qemu-img info %s", image->path);
        g_assert_nonnull(strstr(after, "name: dirty"));
        g_assert_null(strstr(after, "in-use"));
        test_command_succeeds("qemu-img bitmap --clear %s dirty", image->path);
        check(image);
    }
}

/* ---- Failures ------------------------------------------------------------------------------- */

static void test_refusals(struct test_image *image, const void *unused)
{
    make(image, "cluster_size=512", MIB);
    AUTO(block_node) node = open_image(image);
    must_not_resize(node, MIB + 1, BLOCK_PREALLOCATION_OFF, "multiple of 512");
    must_not_resize(node, KIB, BLOCK_PREALLOCATION_METADATA, "only be used for growing");
    must_not_resize(node, TIB, BLOCK_PREALLOCATION_OFF, "too large");
}

static void open_fault(struct test_image *image, struct block_node **node,
                       struct block_node **fault)
{
    *node = test_open("driver=qcow2,file.driver=fault,file.node-name=fault,file.file.driver=file,"
                      "file.file.filename=%s",
                      image->path);
    *fault = block_node_find("fault");
}

/* The header's write fails: the size is the old one, or nothing can be written any more. */
static void test_lost_header(struct test_image *image, const void *unused)
{
    for (unsigned failures = 1; failures <= 2; failures++) {
        AUTO(block_node) node = NULL;
        AUTO(block_node) fault = NULL;

        make(image, "cluster_size=4k", MIB);
        open_fault(image, &node, &fault);
        test_write_byte(node, 512 * KIB, 4096, 0x11);
        FAULT(fault, .operations = FAULT_ON(WRITE), .offset = 24, .bytes = 8, .count = failures,
              .error_number = EIO);
        must_not_resize(node, 256 * KIB, BLOCK_PREALLOCATION_OFF, "Could not write the new size");
        fault_clear(fault);
        test_assert_byte(node, 512 * KIB, 4096, 0x11);
        g_autofree void *buffer = g_malloc0(512);
        g_assert_cmpint(block_node_pwrite(node, buffer, 0, 512, 0), ==, failures == 1 ? 0 : -EIO);
        if (failures == 1) {
            resize(node, 256 * KIB, BLOCK_PREALLOCATION_OFF);
        }
        block_node_unref(STEAL(node));
        block_node_unref(STEAL(fault));
        check(image);
    }
}

/* Any write fails while it grows and shrinks: an image that is whole, of one length or another. */
static void test_any_failure(struct test_image *image, const void *unused)
{
    fill_file(image->directory, "backing", MIB);
    struct test_random random = test_random_new(test_seed());

    for (uint64_t skip = test_stride(&random) - 1; skip < 24; skip += test_stride(&random)) {
        AUTO(block_node) node = NULL;
        AUTO(block_node) fault = NULL;
        static const uint64_t lengths[] = {MIB, 300 * KIB, 8 * MIB};

        make(image, "cluster_size=512,backing_file=backing,backing_fmt=raw", 200 * KIB);
        open_fault(image, &node, &fault);
        test_write_byte(node, 100 * KIB, 100 * KIB, 0x11);
        FAULT(fault, .operations = FAULT_ON_CHANGES | FAULT_ON(FLUSH), .skip = (unsigned)skip,
              .count = 1, .error_number = EIO);
        for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
            block_node_set_length(node, lengths[i], BLOCK_PREALLOCATION_METADATA, NULL);
            block_node_set_length(node, lengths[i], BLOCK_PREALLOCATION_OFF, NULL);
        }
        fault_clear(fault);
        uint64_t length = block_node_length(node);
        test_assert_byte(node, 0, 100 * KIB, 0xbb);
        test_assert_byte(node, 100 * KIB, 100 * KIB, 0x11);
        test_assert_byte(node, 200 * KIB, length - 200 * KIB, 0);
        block_node_unref(STEAL(node));
        block_node_unref(STEAL(fault));
        node = open_image(image);
        length = block_node_length(node);
        test_assert_byte(node, 0, 100 * KIB, 0xbb);
        test_assert_byte(node, 100 * KIB, 100 * KIB, 0x11);
        test_assert_byte(node, 200 * KIB, length - 200 * KIB, 0);
    }
}

/* ---- Beside QEMU ---------------------------------------------------------------------------- */

static void random_step(struct test_random *random, struct block_node *node, uint8_t **model,
                        uint64_t *length)
{
    uint64_t offset, bytes;

    if (test_random_chance(random, 40)) {
        uint64_t wanted = 512 * (1 + test_random_below(random, 4 * KIB));
        enum block_preallocation how = wanted > *length && test_random_chance(random, 30)
                                           ? (enum block_preallocation)test_random_below(random, 4)
                                           : BLOCK_PREALLOCATION_OFF;

        resize(node, wanted, how);
        *model = g_realloc(*model, wanted);
        memset(*model + MIN_OF(*length, wanted), 0, wanted - MIN_OF(*length, wanted));
        *length = wanted;
        return;
    }
    test_random_range(random, *length, 512, 64 * KIB, &offset, &bytes);
    int byte = (int)test_random_below(random, 256);
    if (byte & 3) {
        test_write_byte(node, offset, bytes, byte);
        memset(*model + offset, byte, bytes);
    } else {
        g_assert_cmpint(block_node_write_zeroes(node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP), ==,
                        0);
        memset(*model + offset, 0, bytes);
    }
}

static void test_random_lengths(struct test_image *image, const void *unused)
{
    static const char *const kinds[] = {
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=4k,backing_file=backing,backing_fmt=raw",
        "cluster_size=16k,extended_l2=on,backing_file=backing,backing_fmt=raw",
        "cluster_size=4k,compat=0.10,backing_file=backing,backing_fmt=raw",
        "cluster_size=64k,lazy_refcounts=on",
        "cluster_size=2M",
    };
    struct test_random random = test_random_new(test_seed());
    g_autofree char *raw = test_path(image->directory, "raw");

    fill_file(image->directory, "backing", 700 * KIB);
    for (size_t i = 0; i < 2 * G_N_ELEMENTS(kinds); i++) {
        const char *kind = kinds[i % G_N_ELEMENTS(kinds)];
        uint64_t length = 512 * (1 + test_random_below(&random, 2 * KIB));
        g_autofree uint8_t *model = g_malloc0(length);

        memset(model, strstr(kind, "backing") ? 0xbb : 0, MIN_OF(length, 700 * KIB));
        make(image, kind, length);
        for (unsigned opens = 0; opens < 3; opens++) {
            AUTO(block_node) node = open_image(image);

            for (unsigned step = 0; step < 12; step++) {
                random_step(&random, node, &model, &length);
            }
            assert_same(node, model, length);
            block_node_unref(STEAL(node));
            g_assert_cmpint(own_check(image->path), ==, IMAGE_CLEAN);
            if (opens < 2) {
                continue; /* QEMU sees what has become of it in the end */
            }
            check(image);
            g_assert_true(g_file_set_contents(raw, (char *)model, (gssize)length, NULL));
            test_command_succeeds("qemu-img compare -q -f qcow2 -F raw %s %s", image->path, raw);
        }
    }
}

#define ADD(name, function)                                                                        \
    g_test_add("/qcow2-resize/" name, struct test_image, (const void *)(uintptr_t)(function),      \
               NULL, test_with_image, NULL)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* That metadata could not be written at the end is what some failures lead to. */
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    fault_driver_register();
    ADD("vm-state-does-not-show-when-the-disk-grows", test_vm_state);
    ADD("clusters-that-a-crash-left-do-not-show", test_left_over);
    ADD("what-data-files-hold-behind-the-disk-does-not-show", test_data_files);
    ADD("a-backing-file-that-is-not-opened-is-hidden", test_hidden_backing);
    ADD("snapshots-keep-their-disks", test_snapshots);
    ADD("bitmaps-are-resized-along", test_bitmaps);
    ADD("what-cannot-be-is-refused", test_refusals);
    ADD("a-size-that-is-not-written-does-not-count", test_lost_header);
    ADD("any-write-may-fail", test_any_failure);
    ADD("random-lengths-are-what-qemu-sees", test_random_lengths);
    return g_test_run();
}
