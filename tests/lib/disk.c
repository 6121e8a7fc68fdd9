/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/disk.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/device.h"
#include "block/main-loop.h"
#include "block/options.h"
#include "block/reopen.h"
#include "block/request.h"

char *test_directory_new(bool in_memory)
{
    g_autofree char *template =
        g_strdup_printf("%s/liveblk-test-XXXXXX", in_memory ? "/dev/shm" : g_get_tmp_dir());
    char *directory = g_mkdtemp(g_steal_pointer(&template));

    g_assert_nonnull(directory);
    return directory;
}

void test_directory_free(char *directory)
{
    GDir *entries = g_dir_open(directory, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(entries))) {
        g_autofree char *path = test_path(directory, name);

        g_remove(path);
    }
    g_dir_close(entries);
    g_assert_cmpint(g_rmdir(directory), ==, 0);
    g_free(directory);
}

char *test_path(const char *directory, const char *name)
{
    return g_build_filename(directory, name, NULL);
}

void test_make_file(const char *path, uint64_t length)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, (off_t)length), ==, 0);
    close(fd);
}

void test_image_make(struct test_image *image, uint64_t length)
{
    image->directory = test_directory_new(true);
    image->path = test_path(image->directory, "disk");
    test_make_file(image->path, length);
}

void test_image_remove(struct test_image *image, const void *unused)
{
    g_free(image->path);
    test_directory_free(image->directory);
}

void test_with_image(struct test_image *image, const void *function)
{
    test_image_make(image, 0);
    ((void (*)(struct test_image *, const void *))(uintptr_t)function)(image, NULL);
    test_image_remove(image, NULL);
}

/* memcmp is quick where a loop is instrumented; only what differs is looked for byte by byte. */
void test_assert_same(const void *found, const void *wanted, uint64_t bytes)
{
    const uint8_t *a = found, *b = wanted;

    if (!bytes || !memcmp(a, b, bytes)) {
        return;
    }
    uint64_t at = 0;
    while (a[at] == b[at]) {
        at++;
    }
    g_error("at %" PRIu64 " of %" PRIu64 " bytes: 0x%02x instead of 0x%02x", at, bytes, a[at],
            b[at]);
}

void test_assert_filled(const void *found, int byte, uint64_t bytes)
{
    const uint8_t *a = found;
    uint64_t at = 0;

    if (!bytes || (a[0] == (uint8_t)byte && !memcmp(a, a + 1, bytes - 1))) {
        return;
    }
    while (a[at] == (uint8_t)byte) {
        at++;
    }
    g_error("at %" PRIu64 " of %" PRIu64 " bytes: 0x%02x instead of 0x%02x", at, bytes, a[at],
            (uint8_t)byte);
}

void test_assert_says(const char *message, const char *part)
{
    if (!message || !strstr(message, part)) {
        g_error("'%s' does not say '%s'", message, part);
    }
}

void test_write_byte(struct block_node *node, uint64_t offset, uint64_t bytes, int byte)
{
    g_autofree void *buffer = g_malloc(bytes);

    memset(buffer, byte, bytes);
    g_assert_cmpint(block_node_pwrite(node, buffer, offset, bytes, 0), ==, 0);
}

void test_assert_byte(struct block_node *node, uint64_t offset, uint64_t bytes, int byte)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    g_assert_cmpint(block_node_pread(node, buffer, offset, bytes, 0), ==, 0);
    test_assert_filled(buffer, byte, bytes);
}

uint64_t test_allocated(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return (uint64_t)st.st_blocks * 512;
}

static struct block_node *open_text(const char *format, va_list args, GError **error)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    AUTO(block_options) options = block_options_parse(text, NULL, error);

    return options ? block_node_open(options, true, error) : NULL;
}

struct block_node *test_open(const char *format, ...)
{
    GError *error = NULL;
    struct block_node *node;
    va_list args;

    va_start(args, format);
    node = open_text(format, args, &error);
    va_end(args);
    g_assert_no_error(error);
    g_assert_nonnull(node);
    return node;
}

void test_create_image(const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;

    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    AUTO(block_options) options = block_options_parse(text, NULL, &error);
    if (!options || block_create(options, NULL, NULL, &error) < 0) {
        g_error("%s: %s", text, error->message);
    }
}

char *test_open_error(const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    struct block_node *node;
    va_list args;

    va_start(args, format);
    node = open_text(format, args, &error);
    va_end(args);
    g_assert_null(node);
    g_assert_nonnull(error);
    return g_strdup(error->message);
}

char *test_reopen_node(const char *text)
{
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);
    g_autoptr(GError) error = NULL;
    int status = block_nodes_reopen(&options, 1, &error);

    g_assert_cmpint(status < 0, ==, error != NULL);
    return error ? g_strdup(error->message) : NULL;
}

struct move {
    struct block_device *device;
    struct block_node *root;
};

static void set_root(void *data)
{
    struct move *move = data;

    g_assert_cmpint(block_device_set_root(move->device, move->root, NULL), ==, 0);
}

void test_set_root(struct block_device *device, struct block_node *root)
{
    struct move move = {device, root};

    main_loop_call_wait(set_root, &move);
}
