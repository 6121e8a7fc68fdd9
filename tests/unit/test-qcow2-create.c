/* SPDX-License-Identifier: BSD-3-Clause */
/* New qcow2 images, other lengths, and what QEMU says of them. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

static int create_image(const char *path, const char *more, GError **error)
{
    g_autofree char *text =
        g_strdup_printf("driver=qcow2,file.driver=file,file.filename=%s,%s", path, more);
    AUTO(block_options) options = block_options_parse(text, NULL, error);

    test_make_file(path, 0);
    return block_create(options, NULL, NULL, error);
}

static void must_create(const char *path, const char *more)
{
    g_autoptr(GError) error = NULL;

    create_image(path, more, &error);
    g_assert_no_error(error);
}

static void check(const char *path)
{
    test_command_succeeds("qemu-img check -q -f qcow2 %s", path);
}

static void assert_zeroes(const char *path, uint64_t length)
{
    g_autofree uint8_t *buffer = g_malloc(length);
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,file.driver=file,file.filename=%s", path);

    g_assert_cmpuint(block_node_length(node), ==, length);
    g_assert_cmpint(block_node_pread(node, buffer, 0, length, 0), ==, 0);
    test_assert_filled(buffer, 0, length);
}

static void test_options(struct test_image *image, const void *unused)
{
    static const unsigned cluster_sizes[] = {512, 4096, 16384, 65536, 2097152};
    static const char *const preallocations[] = {"off", "metadata", "falloc", "full"};
    g_autofree char *zeroes = test_path(image->directory, "zeroes");
    unsigned count = 0;

    test_make_file(zeroes, 3 * MIB + 512);
    for (unsigned cluster = 0; cluster < G_N_ELEMENTS(cluster_sizes); cluster++) {
        for (unsigned bits = 1; bits <= 64; bits *= 2) {
            bool is_extended = cluster_sizes[cluster] >= 16384 && count % 2;
            g_autofree char *options = g_strdup_printf(
                "size=%" PRIu64 ",cluster-size=%u,refcount-bits=%u,preallocation=%s,extended-l2=%s,"
                "lazy-refcounts=%s,compression-type=%s",
                3 * MIB + 512, cluster_sizes[cluster], bits, preallocations[count % 4],
                is_extended ? "on" : "off", count % 3 ? "off" : "on", count % 5 ? "zlib" : "zstd");

            must_create(image->path, options);
            g_assert_cmpint(own_check(image->path), ==, IMAGE_CLEAN);
            assert_zeroes(image->path, 3 * MIB + 512);
            if ((count + test_seed()) % 3) { /* others are QEMU's each time */
                count++;
                continue;
            }
            check(image->path);
            test_command_succeeds("qemu-img compare -q -f qcow2 -F raw %s %s", image->path, zeroes);
            g_autofree char *info =
                test_command_output("qemu-img info --output=json %s", image->path);
            g_autofree char *width = g_strdup_printf("\"refcount-bits\": %u", bits);
            g_assert_nonnull(strstr(info, width));
            g_assert_nonnull(strstr(info, count % 5 ? "\"zlib\"" : "\"zstd\""));
            count++;
        }
    }
    must_create(image->path, "size=1G,version=v2");
    check(image->path);
    must_create(image->path, "size=0");
    check(image->path);
}

static void test_refusals(struct test_image *image, const void *unused)
{
    static const struct {
        const char *options;
        const char *reason;
    } cases[] = {
        {"size=1000", "multiple of 512"},
        {"size=1M,cluster-size=1000", "power of two between 512 and 2048k"},
        {"size=1M,cluster-size=4M", "power of two between 512 and 2048k"},
        {"size=1M,refcount-bits=3", "may not exceed 64 bits"},
        {"size=1M,refcount-bits=128", "may not exceed 64 bits"},
        {"size=1M,version=v2,refcount-bits=1", "refcount widths than 16 bits only"},
        {"size=1M,version=v2,lazy-refcounts=on", "Lazy refcounts only supported"},
        {"size=1M,version=v2,compression-type=zstd", "Non-zlib compression type only"},
        {"size=1M,extended-l2=on,cluster-size=4k", "at least 16384"},
        {"size=1M,backing-fmt=raw", "cannot be used without backing file"},
        {"size=1M,data-file-raw=on", "requires data-file"},
        {"size=1M,data-file-name=x", "data-file-name requires data-file"},
        {"size=1M,backing-file=x,preallocation=full", "Backing file and preallocation"},
        {"size=1T,cluster-size=512", "too large for file format"},
        {"cluster-size=512", "'size' is missing"},
        {"size=1M,bogus=1", "'bogus' is unexpected"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_cmpint(create_image(image->path, cases[i].options, &error), <, 0);
        if (!strstr(error->message, cases[i].reason)) {
            g_error("%s: %s", cases[i].options, error->message);
        }
    }
}

static void resize(struct block_node *node, uint64_t length)
{
    g_autoptr(GError) error = NULL;

    block_node_set_length(node, length, BLOCK_PREALLOCATION_OFF, &error);
    g_assert_no_error(error);
}

/* What lay behind the end, in the image or its backing file, is not there when it grows again. */
static void test_resize(struct test_image *image, const void *unused)
{
    g_autofree char *backing = test_path(image->directory, "backing");

    for (unsigned cluster = 512; cluster <= 65536; cluster *= 128) {
        g_autofree char *contents = g_malloc(MIB);
        g_autofree char *options = g_strdup_printf(
            "size=512k,cluster-size=%u,backing-file=backing,backing-fmt=raw", cluster);

        memset(contents, 0xbb, MIB);
        g_assert_true(g_file_set_contents(backing, contents, MIB, NULL));
        must_create(image->path, options);
        AUTO(block_node) node =
            test_open("driver=qcow2,discard=unmap,file.driver=file,file.filename=%s", image->path);
        test_assert_byte(node, 0, 512 * KIB, 0xbb);
        test_write_byte(node, 100 * KIB, 400 * KIB, 0x11);
        resize(node, 200 * KIB + 512);
        g_assert_cmpuint(block_node_length(node), ==, 200 * KIB + 512);
        resize(node, 800 * KIB);
        test_assert_byte(node, 0, 100 * KIB, 0xbb);
        test_assert_byte(node, 100 * KIB, 100 * KIB + 512, 0x11);
        test_assert_byte(node, 200 * KIB + 512, 600 * KIB - 512, 0);
        test_write_byte(node, 700 * KIB, 100 * KIB, 0x22);
        resize(node, 64 * MIB);
        test_assert_byte(node, 700 * KIB, 100 * KIB, 0x22);
        test_assert_byte(node, 800 * KIB, MIB, 0);
        test_write_byte(node, 64 * MIB - 512, 512, 0x33);
        test_assert_byte(node, 64 * MIB - 512, 512, 0x33);
    }
    check(image->path);
}

static void test_preallocated_growth(struct test_image *image, const void *unused)
{
    static const enum block_preallocation modes[] = {
        BLOCK_PREALLOCATION_METADATA, BLOCK_PREALLOCATION_FALLOC, BLOCK_PREALLOCATION_FULL};

    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autoptr(GError) error = NULL;

        must_create(image->path, "size=1M,cluster-size=4k");
        {
            AUTO(block_node) node =
                test_open("driver=qcow2,file.driver=file,file.filename=%s", image->path);
            block_node_set_length(node, 3 * MIB, modes[i], &error);
            g_assert_no_error(error);
            test_assert_byte(node, 0, 3 * MIB, 0);
            struct block_extent extent;
            g_assert_cmpint(block_node_block_status(node, MIB, 2 * MIB, &extent), ==, 0);
            g_assert_cmpuint(extent.flags & BLOCK_STATUS_DATA, ==, BLOCK_STATUS_DATA);
        }
        check(image->path);
    }
}

/* A backing file that the image names, from its directory, by JSON, and none. */
static void test_backing_names(struct test_image *image, const void *unused)
{
    g_autofree char *base = test_path(image->directory, "base");
    g_autofree char *contents = g_malloc(64 * KIB);

    memset(contents, 0x77, 64 * KIB);
    g_assert_true(g_file_set_contents(base, contents, 64 * KIB, NULL));
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *json = g_strdup_printf(
            "json:{\"driver\":\"raw\",,\"file\":{\"driver\":\"file\",,\"filename\":\"%s\"}}", base);
        const char *names[] = {"base", base, json};
        g_autofree char *options =
            g_strdup_printf("size=128k,backing-file=%s,backing-fmt=raw", names[i]);

        must_create(image->path, options);
        AUTO(block_node) node =
            test_open("driver=qcow2,file.driver=file,file.filename=%s", image->path);
        test_assert_byte(node, 0, 64 * KIB, 0x77);
        test_assert_byte(node, 64 * KIB, 64 * KIB, 0);
        block_node_unref(STEAL(node));
        node = test_open("driver=qcow2,backing=,file.driver=file,file.filename=%s", image->path);
        test_assert_byte(node, 0, 128 * KIB, 0);
    }
}

#define ADD(name, function)                                                                        \
    g_test_add("/qcow2-create/" name, struct test_image, (const void *)(uintptr_t)(function),      \
               NULL, test_with_image, NULL)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    ADD("images-of-all-kinds-are-clean-and-as-asked-for", test_options);
    ADD("what-cannot-be-is-refused", test_refusals);
    ADD("nothing-old-shows-when-a-disk-grows", test_resize);
    ADD("new-space-is-preallocated", test_preallocated_growth);
    ADD("backing-files-are-found", test_backing_names);
    return g_test_run();
}
