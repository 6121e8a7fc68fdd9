/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/copy-map.h"

#include <pthread.h>
#include <stdatomic.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "tests/lib/random.h"

static void assert_next(struct copy_map *map, uint64_t from, uint64_t end, uint64_t max_bytes,
                        uint64_t expected_offset, uint64_t expected_bytes)
{
    uint64_t offset, bytes;

    g_assert_true(copy_map_next_unsaved(map, from, end, max_bytes, &offset, &bytes));
    g_assert_cmpuint(offset, ==, expected_offset);
    g_assert_cmpuint(bytes, ==, expected_bytes);
}

static void assert_none(struct copy_map *map, uint64_t from, uint64_t end)
{
    uint64_t offset, bytes;

    g_assert_false(copy_map_next_unsaved(map, from, end, GIB, &offset, &bytes));
}

static void test_new(void)
{
    AUTO(copy_map) map = copy_map_new(MIB, NULL);

    g_assert_false(copy_map_is_saved(map, 0, 1));
    g_assert_false(copy_map_is_saved(map, MIB - 1, 1));
    assert_next(map, 0, MIB, GIB, 0, MIB);
    assert_next(map, 12 * KIB, 40 * KIB, GIB, 12 * KIB, 28 * KIB);
    assert_next(map, 0, MIB, 8 * KIB, 0, 8 * KIB);
}

static void test_empty(void)
{
    AUTO(copy_map) map = copy_map_new(0, NULL);

    assert_none(map, 0, 0);
    assert_none(map, 0, GIB);
}

static void test_units(void)
{
    AUTO(copy_map) map = copy_map_new(256 * KIB, NULL);

    copy_map_mark_saved(map, 8 * KIB, 4 * KIB);
    g_assert_true(copy_map_is_saved(map, 8 * KIB, 4 * KIB));
    g_assert_true(copy_map_is_saved(map, 9 * KIB, 1));
    g_assert_false(copy_map_is_saved(map, 8 * KIB - 1, 2));
    g_assert_false(copy_map_is_saved(map, 8 * KIB, 4 * KIB + 1));
    assert_next(map, 0, 256 * KIB, GIB, 0, 8 * KIB);
    assert_next(map, 8 * KIB, 256 * KIB, GIB, 12 * KIB, 244 * KIB);
    assert_none(map, 8 * KIB, 12 * KIB);
}

/* A run over several clusters saves their ends unit by unit and the middle as a whole. */
static void test_across_clusters(void)
{
    AUTO(copy_map) map = copy_map_new(512 * KIB, NULL);

    copy_map_mark_saved(map, 60 * KIB, 136 * KIB);
    g_assert_true(copy_map_is_saved(map, 60 * KIB, 136 * KIB));
    assert_next(map, 0, 512 * KIB, GIB, 0, 60 * KIB);
    assert_next(map, 60 * KIB, 512 * KIB, GIB, 196 * KIB, 316 * KIB);
    copy_map_mark_saved(map, 0, 60 * KIB);
    copy_map_mark_saved(map, 196 * KIB, 316 * KIB);
    assert_none(map, 0, 512 * KIB);
    g_assert_true(copy_map_is_saved(map, 0, 512 * KIB));
}

/* Lengths that end inside a cluster, a unit, a sector. */
static void test_short_end(void)
{
    static const uint64_t lengths[] = {1, 511, 4095, 4097, 65535, 65537, 70 * 1024 + 13};

    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        uint64_t length = lengths[i], last = align_down(length - 1, COPY_UNIT);
        AUTO(copy_map) map = copy_map_new(length, NULL);

        assert_next(map, 0, GIB, GIB, 0, length);
        assert_next(map, last, GIB, GIB, last, length - last);
        assert_none(map, align_up(length, COPY_UNIT), GIB);
        copy_map_mark_saved(map, last, length - last);
        g_assert_true(copy_map_is_saved(map, last, length - last));
        assert_none(map, last, GIB);
        if (last) {
            assert_next(map, 0, GIB, GIB, 0, last);
            copy_map_mark_saved(map, 0, last);
        }
        assert_none(map, 0, GIB);
        g_assert_true(copy_map_is_saved(map, 0, length));
    }
}

/* Random marks against an array of flags. */
static void test_random(void)
{
    enum { UNITS = 200 };
    struct test_random random = test_random_new(test_seed());

    for (unsigned round = 0; round < 200; round++) {
        uint64_t length = UNITS * COPY_UNIT - test_random_below(&random, COPY_UNIT);
        AUTO(copy_map) map = copy_map_new(length, NULL);
        bool saved[UNITS] = {false};

        for (unsigned i = 0; i < 30; i++) {
            uint64_t first = test_random_below(&random, UNITS);
            uint64_t count = test_random_between(&random, 1, MIN_OF(UNITS - first, UINT64_C(40)));
            uint64_t end = MIN_OF((first + count) * COPY_UNIT, length);

            copy_map_mark_saved(map, first * COPY_UNIT, end - first * COPY_UNIT);
            for (uint64_t unit = first; unit < first + count; unit++) {
                saved[unit] = true;
            }
        }
        bool found[UNITS] = {false};
        uint64_t offset = 0, bytes = 0;
        while (copy_map_next_unsaved(map, offset + bytes, length, 32 * KIB, &offset, &bytes)) {
            g_assert_cmpuint(bytes, <=, 32 * KIB);
            for (uint64_t unit = offset / COPY_UNIT; unit * COPY_UNIT < offset + bytes; unit++) {
                found[unit] = true;
            }
        }
        for (uint64_t unit = 0; unit < UNITS; unit++) {
            uint64_t word = copy_map_saved_units(map, unit / 64 * COPY_REGION);

            g_assert_cmpuint(word >> unit % 64 & 1, ==, saved[unit]);
            g_assert_true(found[unit] != saved[unit]);
            g_assert_true(copy_map_is_saved(map, unit * COPY_UNIT, 1) == saved[unit]);
        }
    }
}

struct race {
    struct copy_map *map;
    _Atomic uint64_t marked; /* all before it is, and was marked before this said so */
};

static void *mark_all(void *data)
{
    struct race *race = data;

    for (uint64_t offset = 0; offset < 16 * MIB; offset += 20 * KIB) {
        uint64_t bytes = MIN_OF(20 * KIB, 16 * MIB - offset);

        copy_map_mark_saved(race->map, offset, bytes);
        atomic_store(&race->marked, offset + bytes);
    }
    return NULL;
}

/* Without the lock, one who asks hears of what is saved, and never too early. */
static void test_race(void)
{
    struct race race = {.map = copy_map_new(16 * MIB, NULL)};
    struct test_random random = test_random_new(test_seed());
    pthread_t thread;

    pthread_create(&thread, NULL, mark_all, &race);
    for (uint64_t marked = 0; marked < 16 * MIB; marked = atomic_load(&race.marked)) {
        uint64_t ahead = test_random_below(&random, 4096) * COPY_UNIT / 64;
        uint64_t asked = MIN_OF(marked + ahead, 16 * MIB - 1);

        g_assert_true(copy_map_is_saved(race.map, 0, marked));
        if (copy_map_is_saved(race.map, asked, 1)) {
            g_assert_cmpuint(atomic_load(&race.marked) + 20 * KIB, >, align_down(asked, COPY_UNIT));
        }
    }
    pthread_join(thread, NULL);
    copy_map_free(race.map);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/copy-map/a-new-map-has-all-to-save", test_new);
    g_test_add_func("/copy-map/an-empty-disk-has-nothing-to-save", test_empty);
    g_test_add_func("/copy-map/a-unit-is-saved-by-itself", test_units);
    g_test_add_func("/copy-map/a-run-across-clusters-is-saved-exactly", test_across_clusters);
    g_test_add_func("/copy-map/a-short-end-is-saved-too", test_short_end);
    g_test_add_func("/copy-map/random-marks-are-found-again", test_random);
    g_test_add_func("/copy-map/asking-without-the-lock-never-says-too-much", test_race);
    return g_test_run();
}
