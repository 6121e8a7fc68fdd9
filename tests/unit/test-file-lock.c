/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may open an image beside whom, through reopening and creation. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/file-internal.h"
#include "formats/file.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

#define LENGTH MIB

static void set_up(struct test_image *image, const void *unused)
{
    test_image_make(image, LENGTH);
}

static void assert_refused(struct test_image *image, const char *options, const char *lock)
{
    g_autofree char *message = test_open_error("driver=file,filename=%s%s", image->path, options);
    g_autofree char *expected = g_strdup_printf(
        "Failed to get %s lock on '%s': is another process using the image?", lock, image->path);

    g_assert_cmpstr(message, ==, expected);
}

static struct block_node *open_disk(struct test_image *image, const char *options)
{
    return test_open("driver=file,filename=%s%s", image->path, options);
}

static void test_one_writer(struct test_image *image, const void *unused)
{
    AUTO(block_node) writer = open_disk(image, "");

    assert_refused(image, "", "\"write\"");
    assert_refused(image, ",read-only=on", "shared \"write\"");
    block_node_unref(STEAL(writer));
    writer = open_disk(image, "");
}

static void test_readers(struct test_image *image, const void *unused)
{
    AUTO(block_node) one = open_disk(image, ",read-only=on");
    AUTO(block_node) two = open_disk(image, ",read-only=on");

    assert_refused(image, "", "\"write\"");
    block_node_unref(STEAL(one));
    assert_refused(image, "", "\"write\"");
    block_node_unref(STEAL(two));
    one = open_disk(image, "");
}

static void test_overrides(struct test_image *image, const void *unused)
{
    AUTO(block_node) writer = open_disk(image, ",locking=on");
    AUTO(block_node) peeper = open_disk(image, ",read-only=on,force-share=on");
    AUTO(block_node) other = open_disk(image, ",locking=off");

    g_assert_true(writer && peeper && other);
}

/* Reopen as the core does; commits, or aborts if told so. Returns what prepare said. */
static int reopen(struct block_node *node, struct block_node_options options, bool commit,
                  GError **error)
{
    const struct file_state *state = block_node_state(node);
    struct file_options values = {.filename = state->filename};
    void *prepared = NULL;
    int ret = file_driver.reopen_prepare(node, &values, &options, &prepared, error);

    if (ret < 0) {
        return ret;
    }
    if (commit) {
        file_driver.reopen_commit(node, prepared);
        node->options = options;
    } else {
        file_driver.reopen_abort(node, prepared);
    }
    return 0;
}

static void test_reopen(struct test_image *image, const void *unused)
{
    const struct block_node_options reader = {.read_only = true};
    const struct block_node_options writer = {.read_only = false};
    const struct block_node_options direct = {.read_only = false, .cache_direct = true};
    g_autofree char *buffer = g_malloc0(4 * KIB);
    g_autoptr(GError) error = NULL;
    AUTO(block_node) node = open_disk(image, "");

    g_assert_cmpint(block_node_pwrite(node, "old", 0, 4, 0), ==, 0);
    g_assert_cmpint(reopen(node, reader, true, &error), ==, 0);
    AUTO(block_node) second = open_disk(image, ",read-only=on");
    g_assert_cmpint(reopen(node, writer, true, &error), ==, -EAGAIN);
    g_assert_nonnull(strstr(error->message, "Failed to get \"write\" lock"));
    g_clear_error(&error);
    AUTO(block_node) third = open_disk(image, ",read-only=on");
    block_node_unref(STEAL(second));
    block_node_unref(STEAL(third));

    /* The name may mean another file by now. */
    g_assert_cmpint(unlink(image->path), ==, 0);
    test_make_file(image->path, LENGTH);
    g_assert_cmpint(reopen(node, direct, true, &error), ==, 0);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_pwrite(node, "new", 8, 4, 0), ==, 0);
    g_assert_cmpint(block_node_pread(node, buffer, 0, 4 * KIB, 0), ==, 0);
    g_assert_cmpstr(buffer, ==, "old");
    g_assert_cmpstr(buffer + 8, ==, "new");
}

static void test_reopen_locks(struct test_image *image, const void *unused)
{
    const struct block_node_options reader = {.read_only = true};
    const struct block_node_options sharer = {.read_only = true, .force_share = true};
    const struct block_node_options writer = {.read_only = false};
    g_autoptr(GError) error = NULL;
    AUTO(block_node) node = open_disk(image, ",read-only=on");

    /* An upgrade that was taken back leaves a reader behind, one that was not a writer. */
    g_assert_cmpint(reopen(node, writer, false, &error), ==, 0);
    AUTO(block_node) other = open_disk(image, ",read-only=on");
    block_node_unref(STEAL(other));
    g_assert_cmpint(reopen(node, writer, true, &error), ==, 0);
    assert_refused(image, ",read-only=on", "shared \"write\"");
    g_assert_cmpint(reopen(node, reader, false, &error), ==, 0);
    assert_refused(image, ",read-only=on", "shared \"write\"");
    g_assert_cmpint(reopen(node, sharer, true, &error), ==, 0);
    other = open_disk(image, "");
    g_assert_cmpint(reopen(node, reader, true, &error), ==, -EAGAIN);
    block_node_unref(STEAL(other));
    g_clear_error(&error);
    g_assert_cmpint(reopen(node, reader, true, &error), ==, 0);
    g_assert_no_error(error);
    assert_refused(image, "", "\"write\"");
}

static int create(struct test_image *image, const char *name, const char *more, GError **error)
{
    g_autofree char *text =
        g_strdup_printf("driver=file,filename=%s/%s,%s", image->directory, name, more);
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return block_create(options, NULL, NULL, error);
}

static uint64_t length_of(const char *path)
{
    struct stat st;

    g_assert_cmpint(stat(path, &st), ==, 0);
    return (uint64_t)st.st_size;
}

static void test_create(struct test_image *image, const void *unused)
{
    g_autofree char *path = test_path(image->directory, "new");
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(create(image, "new", "size=3000001", &error), ==, 0);
    g_assert_cmpuint(length_of(path), ==, 3000001);
    g_assert_cmpuint(test_allocated(path), ==, 0);
    g_assert_cmpint(create(image, "new", "size=2M,preallocation=falloc", &error), ==, 0);
    g_assert_cmpuint(length_of(path), ==, 2 * MIB);
    g_assert_cmpuint(test_allocated(path), >=, 2 * MIB);
    g_assert_cmpint(create(image, "new", "size=1M,preallocation=full", &error), ==, 0);
    g_assert_no_error(error);
    AUTO(block_node) node = test_open("driver=file,filename=%s", path);
    struct block_extent extent;
    g_assert_cmpint(block_node_block_status(node, 0, MIB, &extent), ==, 0);
    g_assert_cmpuint(extent.flags & BLOCK_STATUS_DATA, ==, BLOCK_STATUS_DATA);
}

static void test_create_over_used(struct test_image *image, const void *unused)
{
    g_autoptr(GError) error = NULL;
    char data[4];
    AUTO(block_node) node = open_disk(image, "");

    g_assert_cmpint(block_node_pwrite(node, "abc", 0, 4, 0), ==, 0);
    g_assert_cmpint(create(image, "disk", "size=1M", &error), ==, -EAGAIN);
    g_assert_nonnull(strstr(error->message, "is another process using the image?"));
    g_assert_cmpint(block_node_pread(node, data, 0, 4, 0), ==, 0);
    g_assert_cmpstr(data, ==, "abc");
}

static void test_create_refused(struct test_image *image, const void *unused)
{
    static const char *const bad[] = {
        "size=8E",
        "size=1M,preallocation=metadata",
        "size=1M,extent-size-hint=4G",
    };
    g_autofree char *path = test_path(image->directory, "new");

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_cmpint(create(image, "new", bad[i], &error), <, 0);
        g_assert_nonnull(error);
        g_assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
    }
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(create(image, ".", "size=1M", &error), ==, -EISDIR);
    g_assert_nonnull(strstr(error->message, "is a directory"));
}

static void add_test(const char *name, void (*function)(struct test_image *, const void *))
{
    g_autofree char *path = g_strdup_printf("/file-lock/%s", name);

    g_test_add(path, struct test_image, NULL, set_up, function, test_image_remove);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    add_test("a-writer-keeps-everybody-out", test_one_writer);
    add_test("readers-coexist-and-keep-writers-out", test_readers);
    add_test("force-share-and-locking-off-look-past-locks", test_overrides);
    add_test("reopening-stays-with-the-file-and-asks-for-locks", test_reopen);
    add_test("locks-follow-a-reopen-and-its-abort", test_reopen_locks);
    add_test("creation-gives-length-and-space", test_create);
    add_test("creation-never-empties-an-image-in-use", test_create_over_used);
    add_test("a-creation-that-fails-leaves-no-file", test_create_refused);
    return g_test_run();
}
