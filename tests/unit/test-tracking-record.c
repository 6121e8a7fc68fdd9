/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps as records of a tracking file: what is stored is what is loaded, and no more. */
#include <errno.h>
#include <glib.h>
#include <string.h>
#include <zlib.h>

#include "block/align.h"
#include "block/error.h"
#include "block/tracking-record.h"
#include "tests/lib/random.h"

#define PLENTY (UINT64_C(1) << 30)

static struct dirty_bitmap *make(struct test_random *random, uint64_t length, uint64_t granularity)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", length, granularity, NULL);

    g_assert_nonnull(bitmap);
    for (uint64_t i = test_random_below(random, 20); i && length; i--) {
        uint64_t offset = test_random_below(random, length);

        dirty_bitmap_set(bitmap, offset,
                         MIN_OF(test_random_between(random, 1, 64 * KIB), length - offset));
    }
    dirty_bitmap_set_enabled(bitmap, test_random_chance(random, 50));
    return bitmap;
}

static struct tracking_bitmap *pack(struct dirty_bitmap *bitmap)
{
    struct tracking_bitmap *record = tracking_record_new(bitmap);

    g_assert_nonnull(record);
    g_assert_cmpint(tracking_record_pack(record), ==, 0);
    return record;
}

/* What a disk of another length has in common is the same, and its new end is dirty if recorded. */
static void test_lengths(void)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned i = 0; i < 300; i++) {
        uint64_t granularity = UINT64_C(512) << test_random_below(&random, 6);
        uint64_t length = test_random_below(&random, 4000) * 512;
        uint64_t other = i & 1 ? length : test_random_below(&random, 4000) * 512, left = PLENTY;
        AUTO(dirty_bitmap) bitmap = make(&random, length, granularity);
        struct tracking_bitmap *record = pack(bitmap);
        AUTO(dirty_bitmap) loaded = tracking_record_load(record, other, &left, NULL);

        g_assert_nonnull(loaded);
        g_assert_cmpuint(dirty_bitmap_length(loaded), ==, other);
        g_assert_cmpuint(dirty_bitmap_granularity(loaded), ==, granularity);
        g_assert_true(dirty_bitmap_enabled(loaded) == dirty_bitmap_enabled(bitmap));
        for (uint64_t at = 0; at < other; at += granularity) {
            bool is_whole = at + granularity <= length || length == other;
            bool expected = at < length && dirty_bitmap_get(bitmap, at);

            expected |= !is_whole && other > length && dirty_bitmap_enabled(bitmap);
            g_assert_true(dirty_bitmap_get(loaded, at) == expected);
        }
        tracking_bitmap_free(record);
    }
}

/* Nothing is left of the bits, and that is no damage. */
static void test_no_length(void)
{
    struct test_random random = test_random_new(test_seed());
    AUTO(dirty_bitmap) bitmap = make(&random, MIB, 512);
    uint64_t left = PLENTY;

    dirty_bitmap_set(bitmap, 0, MIB);
    struct tracking_bitmap *record = pack(bitmap);
    AUTO(dirty_bitmap) loaded = tracking_record_load(record, 0, &left, NULL);
    g_assert_nonnull(loaded);
    g_assert_cmpuint(dirty_bitmap_length(loaded), ==, 0);
    tracking_bitmap_free(record);
}

static void expect_refused(struct tracking_bitmap *record, uint64_t length, uint64_t left, int code)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(tracking_record_load(record, length, &left, &error));
    g_assert_cmpint(block_error_code(error), ==, code);
}

/* Bits for a disk that the file says is this long, all set. */
static GBytes *all_set(uint64_t bytes)
{
    g_autofree uint8_t *bits = g_malloc(bytes);
    uLongf size = compressBound(bytes);
    g_autofree uint8_t *packed = g_malloc(size);

    memset(bits, 0xff, bytes);
    g_assert_cmpint(compress2(packed, &size, bits, bytes, 1), ==, Z_OK);
    return g_bytes_new(packed, size);
}

static void test_bounds(void)
{
    struct tracking_bitmap record = {.name = (char *)"b", .granularity = 512, .is_enabled = true};
    uint64_t left = 256;

    /* It says that it is of a disk of 8 EiB: only what is this disk's is looked at. */
    record.length = INT64_MAX & ~UINT64_C(511);
    record.bits = all_set(MIB);
    AUTO(dirty_bitmap) bitmap = tracking_record_load(&record, MIB, &left, NULL);
    g_assert_nonnull(bitmap);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, MIB);
    g_assert_cmpuint(left, ==, 0);
    expect_refused(&record, MIB, 255, -ENOMEM);
    /* On a disk of 1 PiB: nothing is allocated for bits that may not be. */
    expect_refused(&record, UINT64_C(1) << 50, PLENTY, -ENOMEM);
    /* More, or fewer, than there should be. */
    record.length = MIB;
    expect_refused(&record, MIB, PLENTY, -EIO);
    record.length = 16 * GIB;
    expect_refused(&record, 16 * GIB, PLENTY, -EIO);
    g_bytes_unref(record.bits);
    record.bits = g_bytes_new_static("nonsense", 8);
    record.length = MIB;
    expect_refused(&record, MIB, PLENTY, -EIO);
    g_bytes_unref(record.bits);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/tracking-record/a-disk-may-have-no-length", test_no_length);
    g_test_add_func("/tracking-record/what-is-loaded-is-what-was-stored-at-any-length",
                    test_lengths);
    g_test_add_func("/tracking-record/no-file-makes-us-expand-more-than-the-disk-has", test_bounds);
    return g_test_run();
}
