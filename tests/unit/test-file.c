/* SPDX-License-Identifier: BSD-3-Clause */
/* The file driver through the core: data, zeroes and holes, lengths, what it refuses. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/pattern.h"

#define LENGTH (4 * MIB)

/* Every test runs in memory and on the disk: the two file systems differ in what they can do. */
struct fixture {
    char *directory;
    char *path;
};

static void set_up(struct fixture *fixture, const void *in_memory)
{
    fixture->directory = test_directory_new(GPOINTER_TO_INT(in_memory));
    fixture->path = test_path(fixture->directory, "disk");
    test_make_file(fixture->path, LENGTH);
}

static void tear_down(struct fixture *fixture, const void *in_memory)
{
    g_free(fixture->path);
    test_directory_free(fixture->directory);
}

static void fill(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    struct pattern pattern = {.address = offset, .sequence = 1, .writer = 1};

    pattern_fill(data, bytes, 512, &pattern);
    g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, flags), ==, 0);
}

static void assert_pattern(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    const uint64_t sequence = 1;
    const struct pattern_allowed allowed = {.sequences = &sequence, .count = 1};
    struct pattern found;

    g_assert_cmpint(block_node_pread(node, data, offset, bytes, 0), ==, 0);
    for (uint64_t i = 0; i < bytes; i += 512) {
        g_assert_cmpstr(
            pattern_verdict_name(pattern_check(data + i, 512, offset + i, &allowed, &found)), ==,
            "good");
    }
}

static void assert_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes);
    g_autofree uint8_t *zeroes = g_malloc0(bytes);

    memset(data, 0xee, bytes);
    g_assert_cmpint(block_node_pread(node, data, offset, bytes, 0), ==, 0);
    g_assert_cmpmem(data, bytes, zeroes, bytes);
}

/* The status at an offset, and that it goes on for at least this many bytes. */
static unsigned status_at(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct block_extent extent;

    g_assert_cmpint(block_node_block_status(node, offset, bytes, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, bytes);
    g_assert_true(extent.host_node == node && extent.host_offset == offset);
    g_assert_true(extent.flags & BLOCK_STATUS_OFFSET_VALID);
    return extent.flags & ~(unsigned)BLOCK_STATUS_OFFSET_VALID;
}

#define STATUS_DATA (BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED)

static void test_reads_back(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s", fixture->path);

    g_assert_cmpuint(block_node_length(node), ==, LENGTH);
    fill(node, 0, 64 * KIB, 0);
    fill(node, LENGTH - 512, 512, BLOCK_REQUEST_FUA);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    assert_pattern(node, 0, 64 * KIB);
    assert_pattern(node, LENGTH - 512, 512);
    assert_zeroes(node, 64 * KIB, MIB);
    g_autofree char *filename = block_node_get_filename(node);
    g_assert_cmpstr(filename, ==, fixture->path);
    g_assert_cmpint(block_node_get_allocated_size(node), ==,
                    (int64_t)test_allocated(fixture->path));
    g_assert_true(block_node_is_zero_at_creation(node));
}

/* Unaligned reads and writes of every size around the alignment, against a copy in memory. */
static void test_direct(struct fixture *fixture, const void *in_memory)
{
    g_autofree uint8_t *model = g_malloc0(64 * KIB);
    g_autofree uint8_t *data = g_malloc(64 * KIB);
    AUTO(block_node)
    node = test_open("driver=file,filename=%s,cache.direct=on,discard=unmap", fixture->path);

    for (unsigned i = 0; i < 64; i++) {
        uint64_t offset = (i * 997u) % (48 * KIB);
        uint64_t bytes = 1 + (i * 331u) % (12 * KIB);

        memset(model + offset, (int)i + 1, bytes);
        g_assert_cmpint(
            block_node_pwrite(node, model + offset, offset, bytes, i % 3 ? 0 : BLOCK_REQUEST_FUA),
            ==, 0);
        g_assert_cmpint(block_node_pread(node, data + 1, 1, 64 * KIB - 3, 0), ==, 0);
        g_assert_cmpmem(data + 1, 64 * KIB - 3, model + 1, 64 * KIB - 3);
    }
    g_assert_cmpint(block_node_flush(node), ==, 0);
}

static void test_direct_end(struct fixture *fixture, const void *in_memory)
{
    g_autofree uint8_t *model = g_malloc0(8 * KIB);
    g_autofree uint8_t *data = g_malloc(8 * KIB);

    test_make_file(fixture->path, LENGTH);
    memset(model, 0x5a, 100);
    {
        AUTO(block_node) plain = test_open("driver=file,filename=%s", fixture->path);
        g_assert_cmpint(block_node_pwrite(plain, model, LENGTH - KIB, 100, 0), ==, 0);
    }
    g_assert_cmpint(truncate(fixture->path, LENGTH - KIB + 100), ==, 0);
    AUTO(block_node) node = test_open("driver=file,filename=%s,cache.direct=on", fixture->path);
    uint64_t length = block_node_length(node), tail = length - (LENGTH - KIB);
    g_assert_true(tail >= 512 && is_aligned(length, node->limits.request_alignment));
    memset(data, 1, 8 * KIB);
    g_assert_cmpint(block_node_pread(node, data, LENGTH - KIB, tail, 0), ==, 0);
    g_assert_cmpmem(data, tail, model, tail);
    g_assert_cmpint(block_node_pread(node, data, length - 1, 1, 0), ==, 0);
    g_assert_cmpint(data[0], ==, 0);

    /* Who cuts it off further is noticed, */
    g_assert_cmpint(truncate(fixture->path, LENGTH / 2), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, LENGTH - KIB, tail, 0), ==, -EIO);
    g_assert_cmpint(truncate(fixture->path, LENGTH - KIB + 100), ==, 0);
    /* and what is written makes the file as long as the node is. */
    memset(model, 0, 100);
    memset(model + 10, 0x33, 200);
    g_assert_cmpint(block_node_pwrite(node, model + 10, LENGTH - KIB + 10, 200, BLOCK_REQUEST_FUA),
                    ==, 0);
    g_assert_cmpint(block_node_pread(node, data, LENGTH - KIB, tail, 0), ==, 0);
    g_assert_cmpmem(data, tail, model, tail);
    struct stat st;
    g_assert_cmpint(stat(fixture->path, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, (int64_t)length);
    g_assert_cmpint(truncate(fixture->path, LENGTH - KIB + 100), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, LENGTH - KIB, tail, 0), ==, -EIO);
}

static void test_zeroes_keep_space(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);

    fill(node, 0, MIB, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 2 * MIB, BLOCK_REQUEST_NO_FALLBACK), ==, 0);
    assert_zeroes(node, 0, 2 * MIB);
    g_assert_cmpuint(test_allocated(fixture->path), >=, 2 * MIB);
}

static void test_zeroes_unmap(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);

    fill(node, 0, 2 * MIB, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 4 * KIB, 2 * MIB - 8 * KIB,
                                            BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_FUA),
                    ==, 0);
    assert_pattern(node, 0, 4 * KIB);
    assert_zeroes(node, 4 * KIB, 2 * MIB - 8 * KIB);
    assert_pattern(node, 2 * MIB - 4 * KIB, 4 * KIB);
    g_assert_cmpuint(test_allocated(fixture->path), <=, 64 * KIB);
}

static void test_zeroes_keep_length(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);
    struct stat st;

    fill(node, LENGTH - 64 * KIB, 64 * KIB, 0);
    g_assert_cmpint(block_node_write_zeroes(node, LENGTH - 32 * KIB, 32 * KIB, 0), ==, 0);
    g_assert_cmpint(
        block_node_write_zeroes(node, LENGTH - 16 * KIB, 16 * KIB, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    g_assert_cmpint(block_node_discard(node, LENGTH - 8 * KIB, 8 * KIB), ==, 0);
    g_assert_cmpint(stat(fixture->path, &st), ==, 0);
    g_assert_cmpint(st.st_size, ==, LENGTH);
    assert_pattern(node, LENGTH - 64 * KIB, 32 * KIB);
}

static void test_discard(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);

    fill(node, 0, 2 * MIB, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, MIB), ==, 0);
    g_assert_cmpuint(test_allocated(fixture->path), <=, MIB + 64 * KIB);
    assert_pattern(node, MIB, MIB);
}

static void test_status(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);

    fill(node, MIB, MIB, 0);
    for (int again = 0; again < 2; again++) {
        g_assert_cmpuint(status_at(node, 0, MIB), ==, BLOCK_STATUS_ZERO);
        g_assert_cmpuint(status_at(node, MIB, MIB), ==, STATUS_DATA);
        g_assert_cmpuint(status_at(node, MIB + 4 * KIB, 4 * KIB), ==, STATUS_DATA);
        g_assert_cmpuint(status_at(node, 2 * MIB, LENGTH - 2 * MIB), ==, BLOCK_STATUS_ZERO);
    }
}

static void test_status_follows(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,discard=unmap", fixture->path);

    g_assert_cmpuint(status_at(node, 0, LENGTH), ==, BLOCK_STATUS_ZERO);
    fill(node, MIB, 64 * KIB, 0);
    g_assert_cmpuint(status_at(node, 0, MIB), ==, BLOCK_STATUS_ZERO);
    g_assert_cmpuint(status_at(node, MIB, 64 * KIB), ==, STATUS_DATA);
    g_assert_cmpuint(status_at(node, MIB + 64 * KIB, MIB), ==, BLOCK_STATUS_ZERO);
    g_assert_cmpint(block_node_discard(node, MIB, 64 * KIB), ==, 0);
    g_assert_cmpuint(status_at(node, MIB, 64 * KIB), ==, BLOCK_STATUS_ZERO);
    fill(node, 0, LENGTH, 0);
    g_assert_cmpuint(status_at(node, 0, LENGTH), ==, STATUS_DATA);
    g_assert_cmpint(block_node_write_zeroes(node, 0, MIB, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    g_assert_cmpuint(status_at(node, 0, MIB), ==, BLOCK_STATUS_ZERO);
}

static void test_cut_off(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s", fixture->path);
    struct block_extent extent;
    uint8_t data[512];

    g_assert_cmpint(truncate(fixture->path, MIB), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, 0, 512, 0), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, MIB, 512, 0), ==, -EIO);
    g_assert_cmpint(block_node_block_status(node, 2 * MIB, 512, &extent), ==, -EIO);
}

static void test_refused(struct fixture *fixture, const void *in_memory)
{
    g_autofree char *nowhere = test_path(fixture->directory, "nowhere");
    g_autofree char *fifo = test_path(fixture->directory, "fifo");
    g_autofree char *missing = test_open_error("driver=file,filename=%s", nowhere);
    g_autofree char *directory = test_open_error("driver=file,filename=%s", fixture->directory);
    g_autofree char *native = test_open_error("driver=file,filename=%s,aio=native", fixture->path);
    g_autofree char *batch =
        test_open_error("driver=file,filename=%s,aio-max-batch=-1", fixture->path);
    g_autofree char *drop = test_open_error("driver=file,filename=%s,drop-cache=on", fixture->path);
    g_autofree char *expected =
        g_strdup_printf("Could not open '%s': No such file or directory", nowhere);

    g_assert_cmpstr(missing, ==, expected);
    g_assert_nonnull(strstr(directory, "is a directory"));
    g_assert_cmpstr(native, ==,
                    "aio=native was specified, but it requires cache.direct=on, which was not "
                    "specified.");
    g_assert_nonnull(strstr(batch, "aio-max-batch"));
    g_assert_cmpstr(drop, ==, "Parameter 'drop-cache' is unexpected");
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    g_autofree char *queue = test_open_error("driver=file,filename=%s,read-only=on", fifo);
    g_assert_nonnull(strstr(queue, "is a FIFO"));
}

/* Make a file that even root may not write. */
static void set_immutable(const char *path, bool immutable)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int flags = 0;

    if (geteuid() == 0) {
        g_assert_cmpint(ioctl(fd, FS_IOC_GETFLAGS, &flags), ==, 0);
        flags = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
        g_assert_cmpint(ioctl(fd, FS_IOC_SETFLAGS, &flags), ==, 0);
    } else {
        g_assert_cmpint(fchmod(fd, immutable ? 0400 : 0600), ==, 0);
    }
    close(fd);
}

static void test_auto_read_only(struct fixture *fixture, const void *in_memory)
{
    set_immutable(fixture->path, true);
    g_autofree char *message = test_open_error("driver=file,filename=%s", fixture->path);
    AUTO(block_node) node = test_open("driver=file,filename=%s,auto-read-only=on", fixture->path);

    set_immutable(fixture->path, false);
    g_assert_true(g_str_has_prefix(message, "Could not open '"));
    g_assert_true(block_node_is_read_only(node));
    g_assert_cmpint(block_node_pwrite(node, "x", 0, 1, 0), ==, -EPERM);
}

static void test_set_length(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s", fixture->path);
    g_autoptr(GError) error = NULL;

    fill(node, 0, LENGTH, 0);
    g_assert_cmpint(block_node_set_length(node, MIB, BLOCK_PREALLOCATION_OFF, &error), ==, 0);
    g_assert_cmpint(block_node_set_length(node, 2 * MIB, BLOCK_PREALLOCATION_OFF, &error), ==, 0);
    assert_pattern(node, 0, MIB);
    assert_zeroes(node, MIB, MIB);
    g_assert_cmpuint(status_at(node, MIB, MIB), ==, BLOCK_STATUS_ZERO);
    g_assert_cmpint(block_node_set_length(node, 3 * MIB, BLOCK_PREALLOCATION_FALLOC, &error), ==,
                    0);
    g_assert_cmpuint(test_allocated(fixture->path), >=, 2 * MIB);
    g_assert_cmpint(block_node_set_length(node, 4 * MIB + 100, BLOCK_PREALLOCATION_FULL, &error),
                    ==, 0);
    g_assert_cmpuint(block_node_length(node), ==, 4 * MIB + 100);
    assert_zeroes(node, 2 * MIB, 2 * MIB + 100);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_set_length(node, MIB, BLOCK_PREALLOCATION_FULL, &error), ==,
                    -EINVAL);
    g_clear_error(&error);
    g_assert_cmpint(block_node_set_length(node, 8 * MIB, BLOCK_PREALLOCATION_METADATA, &error), ==,
                    -ENOTSUP);
    g_assert_cmpuint(block_node_length(node), ==, 4 * MIB + 100);
}

static void test_copy_range(struct fixture *fixture, const void *in_memory)
{
    g_autofree char *other = test_path(fixture->directory, "other");
    test_make_file(other, LENGTH);
    AUTO(block_node) source = test_open("driver=file,filename=%s", fixture->path);
    AUTO(block_node) target = test_open("driver=file,filename=%s", other);

    fill(source, 0, MIB, 0);
    g_assert_cmpuint(status_at(target, 0, LENGTH), ==, BLOCK_STATUS_ZERO);
    g_assert_cmpint(block_node_copy_range(source, 0, target, 0, MIB), ==, 0);
    assert_pattern(target, 0, MIB);
    g_assert_cmpuint(status_at(target, 0, MIB), ==, STATUS_DATA);
    g_assert_cmpint(block_node_prefetch(source, 0, MIB), ==, 0);
}

static void test_no_flush(struct fixture *fixture, const void *in_memory)
{
    AUTO(block_node) node = test_open("driver=file,filename=%s,cache.no-flush=on", fixture->path);

    fill(node, 0, 4 * KIB, BLOCK_REQUEST_FUA);
    g_assert_cmpint(block_node_write_zeroes(node, 4 * KIB, 4 * KIB, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    assert_pattern(node, 0, 4 * KIB);
}

static void test_created_private(struct fixture *fixture, const void *in_memory)
{
    g_autofree char *path = test_path(fixture->directory, "new");
    g_autofree char *text = g_strdup_printf("driver=file,filename=%s,size=1M", path);
    g_autoptr(GError) error = NULL;
    AUTO(block_options) options = block_options_parse(text, NULL, &error);
    AUTO(block_options) again = block_options_parse(text, NULL, &error);
    struct stat status;

    g_assert_cmpint(block_create(options, NULL, NULL, &error), ==, 0);
    g_assert_cmpint(stat(path, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 07777, ==, 0600);
    g_assert_cmpint(chmod(path, 0644), ==, 0);
    g_assert_cmpint(block_create(again, NULL, NULL, &error), ==, 0);
    g_assert_cmpint(stat(path, &status), ==, 0);
    g_assert_cmpuint(status.st_mode & 07777, ==, 0644);
}

static void add_test(const char *name, void (*function)(struct fixture *, const void *))
{
    g_autofree char *in_memory = g_strdup_printf("/file/tmpfs/%s", name);
    g_autofree char *on_disk = g_strdup_printf("/file/disk/%s", name);

    g_test_add(in_memory, struct fixture, GINT_TO_POINTER(true), set_up, function, tear_down);
    g_test_add(on_disk, struct fixture, GINT_TO_POINTER(false), set_up, function, tear_down);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    add_test("reads-back-what-was-written", test_reads_back);
    add_test("direct-io-takes-any-byte-range", test_direct);
    add_test("direct-io-ends-with-a-whole-sector", test_direct_end);
    add_test("zeroes-that-may-not-unmap-keep-the-space", test_zeroes_keep_space);
    add_test("zeroes-that-may-unmap-free-the-space", test_zeroes_unmap);
    add_test("zeroes-and-discards-never-change-the-length", test_zeroes_keep_length);
    add_test("a-discard-frees-its-range-only", test_discard);
    add_test("status-tells-data-from-holes", test_status);
    add_test("status-follows-writes-zeroes-and-discards", test_status_follows);
    add_test("a-file-cut-off-behind-our-back-does-not-read-as-zeroes", test_cut_off);
    add_test("what-is-no-disk-is-refused-with-a-reason", test_refused);
    add_test("auto-read-only-falls-back-where-writing-is-forbidden", test_auto_read_only);
    add_test("a-new-length-keeps-data-and-adds-zeroes", test_set_length);
    add_test("a-new-file-is-private-and-an-old-one-keeps-its-mode", test_created_private);
    add_test("the-kernel-copies-between-files", test_copy_range);
    add_test("no-flush-writes-all-the-same", test_no_flush);
    return g_test_run();
}
