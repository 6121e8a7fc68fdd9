/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/stored-rig.h"

#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "tests/lib/command.h"

void stored_rig_make(struct test_image *image, const char *options, uint64_t length)
{
    test_image_make(image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, image->path,
                          length);
}

struct block_node *stored_rig_open(struct test_image *image, const char *more)
{
    return test_open("driver=qcow2,node-name=q,discard=unmap,%sfile.driver=file,file.filename=%s",
                     more, image->path);
}

struct block_node *stored_rig_open_with_warning(struct test_image *image, const char *pattern)
{
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, pattern);
    struct block_node *node = stored_rig_open(image, "");

    g_test_assert_expected_messages();
    return node;
}

void stored_rig_assert_clean(struct test_image *image)
{
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

struct dirty_bitmap *stored_rig_add(struct block_node *node, const char *name, uint64_t granularity)
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

struct dirty_bitmap *stored_rig_get(struct block_node *node, const char *name)
{
    struct dirty_bitmap *bitmap = block_node_find_bitmap(node, name);

    g_assert_nonnull(bitmap);
    g_assert_true(dirty_bitmap_is_persistent(bitmap));
    return bitmap;
}

int stored_rig_remove(struct block_node *node, const char *name, GError **error)
{
    AUTO(dirty_bitmap) bitmap = stored_rig_get(node, name);

    block_node_remove_bitmap(node, bitmap);
    return block_stored_bitmaps_remove(node, name, error);
}

void stored_rig_write(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree void *data = g_malloc(bytes);

    memset(data, 0x11, bytes);
    g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, 0), ==, 0);
}

void stored_rig_expect_dirty(struct dirty_bitmap *bitmap, const char *expected)
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

void stored_rig_expect_stored(const char *path, const char *name, const char *expected)
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

void stored_rig_crash(struct test_image *image)
{
    test_command_succeeds("cp %s %s.crashed", image->path, image->path);
}

void stored_rig_go_on(struct test_image *image)
{
    test_command_succeeds("mv %s.crashed %s", image->path, image->path);
}

void stored_rig_set_read_only(struct block_node *node, bool read_only)
{
    g_autoptr(GError) error = NULL;

    block_node_set_read_only(node, read_only, &error);
    g_assert_no_error(error);
}

struct block_node *stored_rig_open_with_faults(struct test_image *image)
{
    return test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                     "file.file.filename=%s",
                     image->path);
}
