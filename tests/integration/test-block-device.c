/* SPDX-License-Identifier: BSD-3-Clause */
/* The file driver on block devices of this host: loop devices with both usual block sizes. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

#define LENGTH (16 * MIB)

struct fixture {
    char *directory;
    char *image;
    char *device; /* NULL: this host gives us none */
};

static char *losetup(const char *format, ...) G_GNUC_PRINTF(1, 2);
static char *losetup(const char *format, ...)
{
    g_autofree char *command = NULL;
    char *said = NULL;
    int status = -1;
    va_list args;

    va_start(args, format);
    command = g_strdup_vprintf(format, args);
    va_end(args);
    if (!g_spawn_command_line_sync(command, &said, NULL, &status, NULL) || status != 0) {
        g_clear_pointer(&said, g_free);
        return NULL;
    }
    return g_strchomp(said);
}

static void set_up(struct fixture *fixture, const void *block_size)
{
    fixture->directory = test_directory_new(false);
    fixture->image = test_path(fixture->directory, "image");
    test_make_file(fixture->image, LENGTH);
    fixture->device =
        losetup("losetup -f --show -b %d %s", GPOINTER_TO_INT(block_size), fixture->image);
    if (!fixture->device) {
        g_test_skip("no loop device to be had: this needs root and a kernel that has them");
    }
}

static void tear_down(struct fixture *fixture, const void *block_size)
{
    if (fixture->device) {
        g_autofree char *said = losetup("losetup -d %s", fixture->device);

        g_assert_nonnull(said);
    }
    g_free(fixture->device);
    g_free(fixture->image);
    test_directory_free(fixture->directory);
}

static void assert_bytes(struct block_node *node, uint64_t offset, int value, uint64_t bytes)
{
    g_autofree uint8_t *expected = g_malloc(bytes);
    g_autofree uint8_t *found = g_malloc(bytes);

    memset(expected, value, bytes);
    g_assert_cmpint(block_node_pread(node, found, offset, bytes, 0), ==, 0);
    g_assert_cmpmem(found, bytes, expected, bytes);
}

/* Unaligned writes, zeroes of every kind, and discards; neighbours stay as they are. */
static void use_device(struct block_node *node)
{
    g_autofree uint8_t *data = g_malloc(MIB);
    struct block_extent extent;

    memset(data, 0xab, MIB);
    g_assert_cmpuint(block_node_length(node), ==, LENGTH);
    g_assert_cmpint(block_node_pwrite(node, data, 100, MIB - 100, BLOCK_REQUEST_FUA), ==, 0);
    assert_bytes(node, 0, 0, 100);
    assert_bytes(node, 100, 0xab, MIB - 100);
    g_assert_cmpint(block_node_write_zeroes(node, 100, 64 * KIB, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 128 * KIB, 64 * KIB, BLOCK_REQUEST_MAY_UNMAP), ==,
                    0);
    assert_bytes(node, 100, 0, 64 * KIB);
    assert_bytes(node, 64 * KIB + 100, 0xab, 64 * KIB - 100);
    assert_bytes(node, 128 * KIB, 0, 64 * KIB);
    assert_bytes(node, 192 * KIB, 0xab, 64 * KIB);
    g_assert_cmpint(block_node_discard(node, 512 * KIB + 1, 64 * KIB), ==, 0);
    assert_bytes(node, 256 * KIB, 0xab, 256 * KIB);
    assert_bytes(node, 577 * KIB, 0xab, 64 * KIB);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 4 * KIB, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpint(block_node_block_status(node, 0, LENGTH, &extent), ==, 0);
    g_assert_true(extent.bytes == LENGTH && (extent.flags & BLOCK_STATUS_DATA));
    g_assert_cmpint(block_node_flush(node), ==, 0);
}

static void test_cached(struct fixture *fixture, const void *block_size)
{
    if (fixture->device) {
        AUTO(block_node)
        node = test_open("driver=host_device,filename=%s,discard=unmap", fixture->device);

        use_device(node);
        g_assert_false(block_node_is_zero_at_creation(node));
    }
}

static void test_direct(struct fixture *fixture, const void *block_size)
{
    if (fixture->device) {
        AUTO(block_node)
        node = test_open("driver=file,filename=%s,discard=unmap,cache.direct=on", fixture->device);

        use_device(node);
        g_assert_cmpuint(node->limits.request_alignment, ==, GPOINTER_TO_INT(block_size));
    }
}

static void test_length(struct fixture *fixture, const void *block_size)
{
    g_autoptr(GError) error = NULL;

    if (fixture->device) {
        AUTO(block_node) node = test_open("driver=file,filename=%s", fixture->device);

        g_assert_cmpint(block_node_set_length(node, LENGTH, BLOCK_PREALLOCATION_OFF, &error), ==,
                        0);
        g_assert_cmpint(block_node_set_length(node, LENGTH / 2, BLOCK_PREALLOCATION_OFF, &error),
                        ==, -ENOTSUP);
        g_assert_nonnull(strstr(error->message, "is a block device of 16777216 bytes"));
        g_assert_cmpuint(block_node_length(node), ==, LENGTH);
        g_autofree char *message = test_open_error("driver=file,filename=%s", fixture->device);
        g_assert_true(g_str_has_prefix(message, "Failed to get \"write\" lock"));
    }
}

static void add_test(const char *name, void (*function)(struct fixture *, const void *))
{
    for (int block_size = 512; block_size <= 4096; block_size *= 8) {
        g_autofree char *path = g_strdup_printf("/block-device/%d/%s", block_size, name);

        g_test_add(path, struct fixture, GINT_TO_POINTER(block_size), set_up, function, tear_down);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    add_test("the-page-cache-takes-any-byte-range", test_cached);
    add_test("direct-io-takes-any-byte-range", test_direct);
    add_test("its-length-is-its-own", test_length);
    return g_test_run();
}
