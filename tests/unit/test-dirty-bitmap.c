/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"

/* The same by the simplest means: a byte per granule. */
struct model {
    uint64_t length;
    uint64_t granularity;
    GByteArray *dirty;
};

static void model_init(struct model *model, uint64_t length, uint64_t granularity)
{
    model->length = length;
    model->granularity = granularity;
    model->dirty = g_byte_array_new();
    g_byte_array_set_size(model->dirty, (guint)div_round_up(length, granularity));
    memset(model->dirty->data, 0, model->dirty->len);
}

static void model_mark(struct model *model, uint64_t offset, uint64_t bytes, bool dirty)
{
    uint64_t first = offset / model->granularity;
    uint64_t end = bytes ? div_round_up(offset + bytes, model->granularity) : first;

    for (uint64_t i = first; i < end; i++) {
        model->dirty->data[i] = dirty;
    }
}

static void model_resize(struct model *model, uint64_t length, bool grown_dirty)
{
    uint64_t old_length = model->length;
    guint old_granules = model->dirty->len;
    guint granules = (guint)div_round_up(length, model->granularity);

    g_byte_array_set_size(model->dirty, granules);
    if (granules > old_granules) {
        memset(model->dirty->data + old_granules, 0, granules - old_granules);
    }
    model->length = length;
    if (grown_dirty && length > old_length) {
        model_mark(model, old_length, length - old_length, true);
    }
}

/* The first byte in [offset, end) that is dirty or clean, as asked for. */
static uint64_t model_next(const struct model *model, uint64_t offset, uint64_t end, bool dirty)
{
    end = MIN(end, model->length);
    while (offset < end) {
        if (model->dirty->data[offset / model->granularity] == dirty) {
            return offset;
        }
        offset = align_down(offset, model->granularity) + model->granularity;
    }
    return UINT64_MAX;
}

static uint64_t model_count(const struct model *model)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < model->dirty->len; i++) {
        if (model->dirty->data[i]) {
            count += MIN(model->granularity, model->length - i * model->granularity);
        }
    }
    return count;
}

static void check_range(struct dirty_bitmap *bitmap, const struct model *model, uint64_t offset,
                        uint64_t end, uint64_t max_bytes)
{
    uint64_t start = model_next(model, offset, end, true), range_offset, range_bytes;
    bool found =
        dirty_bitmap_next_range(bitmap, offset, end, max_bytes, &range_offset, &range_bytes);

    g_assert_true(found == (start != UINT64_MAX && max_bytes > 0));
    if (found) {
        uint64_t limit = MIN(end, model->length);
        uint64_t stop = MIN(model_next(model, start, limit, false), limit);

        g_assert_cmpuint(range_offset, ==, start);
        g_assert_cmpuint(range_bytes, ==, MIN(stop - start, max_bytes));
    }
}

static void check_everything(struct dirty_bitmap *bitmap, const struct model *model)
{
    uint64_t offset = 0, bytes, found = 0;

    g_assert_cmpuint(dirty_bitmap_length(bitmap), ==, model->length);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, model_count(model));
    for (uint64_t i = 0; i < model->dirty->len; i++) {
        g_assert_cmpint(dirty_bitmap_get(bitmap, i * model->granularity), ==,
                        model->dirty->data[i]);
        g_assert_cmpuint(dirty_bitmap_get_word(bitmap, i / 64 * 64 * model->granularity) >> i % 64 &
                             1,
                         ==, model->dirty->data[i]);
    }
    while (dirty_bitmap_next_range(bitmap, offset, UINT64_MAX, UINT64_MAX, &offset, &bytes)) {
        check_range(bitmap, model, offset, UINT64_MAX, UINT64_MAX);
        found += bytes;
        offset += bytes;
    }
    g_assert_cmpuint(found, ==, model_count(model));
}

static struct dirty_bitmap *new_bitmap(uint64_t length, uint64_t granularity)
{
    g_autoptr(GError) error = NULL;
    struct dirty_bitmap *bitmap = dirty_bitmap_new(NULL, length, granularity, &error);

    g_assert_no_error(error);
    g_assert_nonnull(bitmap);
    return bitmap;
}

static uint64_t random_below(uint64_t limit)
{
    uint64_t high = (uint32_t)g_test_rand_int();

    return (high << 32 | (uint32_t)g_test_rand_int()) % limit;
}

/* Short ranges mostly, long ones at times. */
static uint64_t random_bytes(const struct model *model, uint64_t offset)
{
    uint64_t limit = model->length - offset;

    if (g_test_rand_int_range(0, 8) > 0) {
        limit = MIN(limit, 5 * model->granularity);
    }
    return random_below(limit + 1);
}

static void random_change(struct dirty_bitmap *bitmap, struct model *model)
{
    uint64_t offset = random_below(model->length + 1);
    uint64_t bytes = random_bytes(model, offset);

    switch (g_test_rand_int_range(0, 12)) {
    case 0:
        dirty_bitmap_clear(bitmap);
        memset(model->dirty->data, 0, model->dirty->len);
        break;
    case 1:
    case 2:
    case 3:
    case 4:
    case 5:
        dirty_bitmap_reset(bitmap, offset, bytes);
        model_mark(model, offset, bytes, false);
        break;
    default:
        dirty_bitmap_set(bitmap, offset, bytes);
        model_mark(model, offset, bytes, true);
    }
}

static void test_model(gconstpointer data)
{
    uint64_t length = GPOINTER_TO_SIZE(data);
    AUTO(dirty_bitmap) bitmap = new_bitmap(length, 512);
    struct model model;

    model_init(&model, length, 512);
    for (int i = 0; i < 300; i++) {
        random_change(bitmap, &model);
        g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, model_count(&model));
        for (int j = 0; j < 5; j++) {
            uint64_t offset = random_below(length + 2), end = random_below(length + 600);

            g_assert_cmpuint(dirty_bitmap_next_dirty(bitmap, offset, end), ==,
                             model_next(&model, offset, end, true));
            g_assert_cmpuint(dirty_bitmap_next_clean(bitmap, offset, end), ==,
                             model_next(&model, offset, end, false));
            check_range(bitmap, &model, offset, end, random_below(4096));
        }
    }
    check_everything(bitmap, &model);
    g_byte_array_free(model.dirty, TRUE);
}

static void test_resize(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap(1000, 512);
    struct model model;

    model_init(&model, 1000, 512);
    for (int i = 0; i < 150; i++) {
        uint64_t length = random_below(g_test_rand_int_range(0, 4) ? 600 * KIB : 4 * MIB);
        bool grown_dirty = g_test_rand_bit();

        for (int j = 0; j < 6; j++) {
            random_change(bitmap, &model);
        }
        g_assert_cmpint(dirty_bitmap_resize(bitmap, length, grown_dirty), ==, 0);
        model_resize(&model, length, grown_dirty);
        check_everything(bitmap, &model);
    }
    g_byte_array_free(model.dirty, TRUE);
}

static void test_resize_refused(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap(MIB, 512);

    dirty_bitmap_set(bitmap, MIB - 1, 1);
    g_assert_cmpint(dirty_bitmap_resize(bitmap, UINT64_C(1) << 63, false), ==, -EINVAL);
    g_assert_cmpint(dirty_bitmap_resize(bitmap, INT64_MAX, true), ==, -ENOMEM);
    g_assert_cmpuint(dirty_bitmap_length(bitmap), ==, MIB);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 512);
    g_assert_cmpuint(dirty_bitmap_next_dirty(bitmap, 0, MIB), ==, MIB - 512);
}

static void merge_and_check(uint64_t target_granularity, uint64_t source_granularity)
{
    const uint64_t length = 3 * MIB + 700;
    AUTO(dirty_bitmap) target = new_bitmap(length, target_granularity);
    AUTO(dirty_bitmap) source = new_bitmap(length, source_granularity);
    struct model target_model, source_model;
    uint64_t offset = 0;

    model_init(&target_model, length, target_granularity);
    model_init(&source_model, length, source_granularity);
    for (int i = 0; i < 20; i++) {
        uint64_t at = random_below(length);

        dirty_bitmap_set(target, at, 1);
        model_mark(&target_model, at, 1, true);
        random_change(source, &source_model);
    }
    g_assert_cmpint(dirty_bitmap_merge(target, source, NULL), ==, 0);
    check_everything(source, &source_model);
    while ((offset = model_next(&source_model, offset, length, true)) != UINT64_MAX) {
        uint64_t bytes = MIN(source_granularity, length - offset);

        model_mark(&target_model, offset, bytes, true);
        offset += bytes;
    }
    check_everything(target, &target_model);
    g_byte_array_free(target_model.dirty, TRUE);
    g_byte_array_free(source_model.dirty, TRUE);
}

static void test_merge(void)
{
    for (int i = 0; i < 20; i++) {
        merge_and_check(4096, 4096);
        merge_and_check(4096, 512);
        merge_and_check(512, 65536);
        merge_and_check(512, 512);
    }
}

static void test_merge_with_itself(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap(MIB, 512);

    dirty_bitmap_set(bitmap, 1024, 512);
    g_assert_cmpint(dirty_bitmap_merge(bitmap, bitmap, NULL), ==, 0);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 512);
}

static void test_merge_refused(void)
{
    AUTO(dirty_bitmap) target = new_bitmap(1024, 512);
    AUTO(dirty_bitmap) source = new_bitmap(1025, 512);
    g_autoptr(GError) error = NULL;

    dirty_bitmap_set(source, 0, 1025);
    g_assert_cmpint(dirty_bitmap_merge(target, source, &error), ==, -EINVAL);
    g_assert_error(error, BLOCK_ERROR, EINVAL);
    g_assert_cmpstr(error->message, ==,
                    "Bitmaps are of different sizes (destination size is 1024, source size is "
                    "1025) and can't be merged");
    g_assert_cmpuint(dirty_bitmap_count(target), ==, 0);
}

static void check_refused(const char *name, uint64_t length, uint64_t granularity, int error_number,
                          const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(dirty_bitmap_new(name, length, granularity, &error));
    g_assert_error(error, BLOCK_ERROR, error_number);
    g_assert_true(g_str_has_prefix(error->message, message));
}

static void test_bad_parameters(void)
{
    g_autofree char *name = g_strnfill(DIRTY_BITMAP_NAME_MAX + 1, 'x');
    AUTO(dirty_bitmap) longest = NULL;

    check_refused(NULL, MIB, 0, EINVAL, "Granularity must be power of 2 and at least 512");
    check_refused(NULL, MIB, 256, EINVAL, "Granularity must be power of 2 and at least 512");
    check_refused(NULL, MIB, 768, EINVAL, "Granularity must be power of 2 and at least 512");
    check_refused(NULL, MIB, 4 * GIB, EINVAL, "Granularity must be at most 2147483648");
    check_refused(NULL, UINT64_MAX, GIB, EINVAL, "A dirty bitmap cannot cover");
    check_refused(name, MIB, 512, EINVAL, "Bitmap name too long: xxx");
    check_refused(NULL, INT64_MAX, 512, ENOMEM, "Not enough address space");
    name[DIRTY_BITMAP_NAME_MAX] = '\0';
    longest = dirty_bitmap_new(name, MIB, 512, NULL);
    g_assert_cmpstr(dirty_bitmap_name(longest), ==, name);
}

static void test_new(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap(MIB, DIRTY_BITMAP_GRANULARITY_DEFAULT);

    g_assert_null(dirty_bitmap_name(bitmap));
    g_assert_cmpuint(dirty_bitmap_granularity(bitmap), ==, 64 * KIB);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 0);
    g_assert_true(dirty_bitmap_enabled(bitmap));
    dirty_bitmap_set_enabled(bitmap, false);
    g_assert_false(dirty_bitmap_enabled(bitmap));
}

static void test_empty_disk(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap(0, 512);
    uint64_t offset, bytes;

    dirty_bitmap_set(bitmap, 0, 0);
    dirty_bitmap_reset(bitmap, 0, 0);
    dirty_bitmap_clear(bitmap);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 0);
    g_assert_cmpuint(dirty_bitmap_next_dirty(bitmap, 0, UINT64_MAX), ==, UINT64_MAX);
    g_assert_cmpuint(dirty_bitmap_next_clean(bitmap, 0, UINT64_MAX), ==, UINT64_MAX);
    g_assert_false(dirty_bitmap_next_range(bitmap, 0, UINT64_MAX, 1, &offset, &bytes));
    g_assert_cmpint(dirty_bitmap_resize(bitmap, 1, true), ==, 0);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 1);
    g_assert_cmpint(dirty_bitmap_resize(bitmap, 0, true), ==, 0);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 0);
}

static void test_longest_disk(void)
{
    const uint64_t last = align_down(INT64_MAX, 2 * GIB);
    AUTO(dirty_bitmap) bitmap = new_bitmap(INT64_MAX, 2 * GIB);
    uint64_t offset, bytes;

    dirty_bitmap_set(bitmap, INT64_MAX - 1, 1);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, INT64_MAX - last);
    g_assert_true(dirty_bitmap_next_range(bitmap, 0, UINT64_MAX, UINT64_MAX, &offset, &bytes));
    g_assert_cmpuint(offset, ==, last);
    g_assert_cmpuint(bytes, ==, INT64_MAX - last);
}

static void test_huge_and_sparse(void)
{
    const uint64_t length = 64 * TIB;
    uint64_t offset = 0, bytes;
    AUTO(dirty_bitmap) bitmap = new_bitmap(length, 512);

    for (uint64_t i = 0; i < 64; i++) {
        dirty_bitmap_set(bitmap, i * TIB + 512 * i, 512);
    }
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 64 * 512);
    for (uint64_t i = 0; i < 64; i++) {
        g_assert_true(dirty_bitmap_next_range(bitmap, offset, length, UINT64_MAX, &offset, &bytes));
        g_assert_cmpuint(offset, ==, i * TIB + 512 * i);
        g_assert_cmpuint(bytes, ==, 512);
        offset += bytes;
    }
    dirty_bitmap_reset(bitmap, 0, length);
    g_assert_cmpuint(dirty_bitmap_next_dirty(bitmap, 0, length), ==, UINT64_MAX);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dirty-bitmap/a-new-one-is-clear-and-enabled", test_new);
    g_test_add_func("/dirty-bitmap/bad-parameters-are-refused", test_bad_parameters);
    g_test_add_func("/dirty-bitmap/a-disk-without-bytes-works", test_empty_disk);
    g_test_add_func("/dirty-bitmap/the-longest-disk-works", test_longest_disk);
    g_test_add_data_func("/dirty-bitmap/does-as-the-model/one-level", GSIZE_TO_POINTER(20000),
                         test_model);
    g_test_add_data_func("/dirty-bitmap/does-as-the-model/two-levels",
                         GSIZE_TO_POINTER(512 * 64 * 30 + 1), test_model);
    g_test_add_data_func("/dirty-bitmap/does-as-the-model/three-levels",
                         GSIZE_TO_POINTER(512 * 64 * 64 * 3 + 511), test_model);
    g_test_add_func("/dirty-bitmap/resize-keeps-what-remains", test_resize);
    g_test_add_func("/dirty-bitmap/a-refused-resize-changes-nothing", test_resize_refused);
    g_test_add_func("/dirty-bitmap/merge-takes-over-every-dirty-byte", test_merge);
    g_test_add_func("/dirty-bitmap/merge-with-itself-changes-nothing", test_merge_with_itself);
    g_test_add_func("/dirty-bitmap/merge-of-different-sizes-is-refused", test_merge_refused);
    g_test_add_func("/dirty-bitmap/a-huge-sparse-disk-works", test_huge_and_sparse);
    return g_test_run();
}
