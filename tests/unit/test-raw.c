/* SPDX-License-Identifier: BSD-3-Clause */
/* Windows of a file as disks of their own. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

#define LENGTH (4 * MIB)

static void set_up(struct test_image *image, const void *unused)
{
    test_image_make(image, LENGTH);
}

static struct block_node *open_raw(struct test_image *image, const char *options)
{
    return test_open("driver=raw,discard=unmap,file.driver=file,file.filename=%s%s", image->path,
                     options);
}

static void assert_in_file(struct test_image *image, uint64_t offset, int value, size_t bytes)
{
    g_autofree uint8_t *expected = g_malloc(bytes);
    g_autofree uint8_t *found = g_malloc(bytes);
    int fd = open(image->path, O_RDONLY | O_CLOEXEC);

    memset(expected, value, bytes);
    g_assert_cmpint(pread(fd, found, bytes, (off_t)offset), ==, (ssize_t)bytes);
    g_assert_cmpmem(found, bytes, expected, bytes);
    close(fd);
}

static void test_whole(struct test_image *image, const void *unused)
{
    AUTO(block_node) node = open_raw(image, "");
    g_autofree char *filename = block_node_get_filename(node);
    struct block_extent extent;

    g_assert_cmpuint(block_node_length(node), ==, LENGTH);
    g_assert_cmpint(block_node_pwrite(node, "abc", LENGTH - 3, 3, BLOCK_REQUEST_FUA), ==, 0);
    assert_in_file(image, LENGTH - 2, 'b', 1);
    g_assert_cmpint(block_node_block_status(node, 0, MIB, &extent), ==, 0);
    g_assert_true((extent.flags & BLOCK_STATUS_ZERO) && extent.host_node == node->file);
    g_assert_cmpstr(filename, ==, image->path);
    g_assert_true(block_node_is_zero_at_creation(node));
    g_assert_cmpint(block_node_get_allocated_size(node), ==, (int64_t)test_allocated(image->path));
}

/* Everything a window does stays inside it and lands where it says. */
static void test_window(struct test_image *image, const void *options)
{
    g_autofree uint8_t *data = g_malloc(LENGTH);
    AUTO(block_node) all = open_raw(image, "");
    struct block_extent extent;

    memset(data, 0xaa, LENGTH);
    g_assert_cmpint(block_node_pwrite(all, data, 0, LENGTH, 0), ==, 0);
    block_node_unref(STEAL(all));

    AUTO(block_node) node = open_raw(image, options);
    g_assert_cmpuint(block_node_length(node), ==, MIB);
    memset(data, 0xbb, MIB);
    g_assert_cmpint(block_node_pwrite(node, data, 0, MIB, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, MIB - 8 * KIB, 8 * KIB, BLOCK_REQUEST_MAY_UNMAP),
                    ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, 64 * KIB), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, 0, MIB, 0), ==, 0);
    g_assert_cmpuint(data[64 * KIB], ==, 0xbb);
    g_assert_cmpuint(data[MIB - 1], ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data, MIB, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_block_status(node, 64 * KIB, 4 * KIB, &extent), ==, 0);
    g_assert_true(extent.flags & BLOCK_STATUS_DATA);
    g_assert_cmpuint(extent.host_offset, ==, MIB + 64 * KIB);
    g_assert_cmpint(block_node_prefetch(node, 0, MIB), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    assert_in_file(image, 0, 0xaa, MIB);
    assert_in_file(image, MIB + 64 * KIB, 0xbb, MIB - 72 * KIB);
    assert_in_file(image, 2 * MIB - 8 * KIB, 0, 8 * KIB);
    assert_in_file(image, 2 * MIB, 0xaa, 2 * MIB);
}

/* A window that direct I/O cannot address is read and written through the core's buffers. */
static void test_unaligned_window(struct test_image *image, const void *unused)
{
    g_autofree uint8_t *data = g_malloc(LENGTH);
    AUTO(block_node) node = open_raw(image, ",cache.direct=on,offset=100,size=1048576");

    memset(data, 0xcc, MIB);
    g_assert_cmpint(block_node_pwrite(node, data, 0, MIB, 0), ==, 0);
    memset(data, 0, MIB);
    g_assert_cmpint(block_node_pread(node, data, 0, MIB, 0), ==, 0);
    g_assert_true(data[0] == 0xcc && data[MIB - 1] == 0xcc);
    assert_in_file(image, 0, 0, 100);
    assert_in_file(image, 100, 0xcc, MIB);
    assert_in_file(image, MIB + 100, 0, MIB);
}

static void test_bad_windows(struct test_image *image, const void *unused)
{
    static const struct {
        const char *options;
        const char *message;
    } bad[] = {
        {"size=1000", "Specified size is not multiple of 512"},
        {"offset=4194304,size=512",
         "The sum of offset (4194304) and size (512) has to be smaller or equal to the  actual "
         "size of the containing file (4194304)"},
        {"offset=512,size=18446744073709551104",
         "The sum of offset (512) and size (18446744073709551104) has to be smaller or equal to "
         "the  actual size of the containing file (4194304)"},
        {"offset=4194305",
         "Offset (4194305) cannot be greater than size of the containing file (4194304)"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *message = test_open_error(
            "driver=raw,file.driver=file,file.filename=%s,%s", image->path, bad[i].options);

        g_assert_cmpstr(message, ==, bad[i].message);
    }
    g_autofree char *negative =
        test_open_error("driver=raw,file.driver=file,file.filename=%s,offset=-512", image->path);
    g_assert_nonnull(strstr(negative, "offset"));
}

static void test_set_length(struct test_image *image, const void *unused)
{
    g_autoptr(GError) error = NULL;
    AUTO(block_node) node = open_raw(image, ",offset=1M");

    g_assert_cmpuint(block_node_length(node), ==, 3 * MIB);
    g_assert_cmpint(block_node_set_length(node, MIB, BLOCK_PREALLOCATION_OFF, &error), ==, 0);
    g_assert_no_error(error);
    g_assert_cmpuint(block_node_length(node), ==, MIB);
    g_assert_cmpuint(block_node_length(node->file), ==, 2 * MIB);
    g_assert_cmpint(block_node_set_length(node, INT64_MAX, BLOCK_PREALLOCATION_OFF, &error), ==,
                    -EFBIG);
    g_clear_error(&error);
    block_node_unref(STEAL(node));

    node = open_raw(image, ",size=1M");
    g_assert_cmpint(block_node_set_length(node, 2 * MIB, BLOCK_PREALLOCATION_OFF, &error), ==,
                    -ENOTSUP);
    g_assert_cmpstr(error->message, ==, "Cannot resize a raw disk that has a fixed size");
    g_assert_cmpuint(block_node_length(node), ==, MIB);
}

static void test_copy_range(struct test_image *image, const void *unused)
{
    g_autofree char *path = test_path(image->directory, "target");
    g_autofree uint8_t *data = g_malloc(MIB);

    test_make_file(path, LENGTH);
    AUTO(block_node) source = open_raw(image, ",offset=1M,size=1M");
    AUTO(block_node)
    target = test_open("driver=raw,offset=2M,file.driver=file,file.filename=%s", path);

    memset(data, 0xdd, MIB);
    g_assert_cmpint(block_node_pwrite(source, data, 0, MIB, 0), ==, 0);
    g_assert_cmpint(block_node_copy_range(source, 0, target, MIB, MIB), ==, 0);
    memset(data, 0, MIB);
    g_assert_cmpint(block_node_pread(target, data, MIB, MIB, 0), ==, 0);
    g_assert_true(data[0] == 0xdd && data[MIB - 1] == 0xdd);
    assert_in_file(image, 2 * MIB, 0, MIB);
}

static void test_probe(void)
{
    const uint8_t head[512] = {0};
    const struct block_driver *driver = block_driver_probe(head, sizeof(head), "x.img");

    g_assert_cmpstr(driver->name, ==, "raw");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
#define ADD(name, argument, function)                                                              \
    g_test_add("/raw/" name, struct test_image, argument, set_up, function, test_image_remove)
    ADD("a-whole-file-is-a-disk", NULL, test_whole);
    ADD("a-window-is-a-disk", ",offset=1M,size=1M", test_window);
    ADD("a-window-is-a-disk-for-direct-io", ",offset=1M,size=1M,cache.direct=on", test_window);
    ADD("an-unaligned-window-works-with-direct-io", NULL, test_unaligned_window);
    ADD("windows-outside-the-file-are-refused", NULL, test_bad_windows);
    ADD("a-new-length-moves-the-end-of-the-file", NULL, test_set_length);
    ADD("the-kernel-copies-between-windows", NULL, test_copy_range);
    g_test_add_func("/raw/what-nobody-knows-is-raw", test_probe);
    return g_test_run();
}
