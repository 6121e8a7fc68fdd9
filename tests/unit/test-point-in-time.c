/* SPDX-License-Identifier: BSD-3-Clause */
/* Points in time: what their readers get, whatever state the units are in. */
#include "block/point-in-time.h"

#include <errno.h>
#include <string.h>

#include "block/dirty-bitmap.h"
#include "tests/lib/disk.h"
#include "tests/lib/point-rig.h"
#include "tests/lib/random.h"

#define UNIT POINT_RIG_UNIT

static void test_unsaved(void)
{
    struct point_rig *rig = point_rig_new(MIB + 3 * UNIT + 512, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    point_rig_check_all(rig);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 0);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_READ), ==, 0);
    point_rig_free(rig);
}

/* Saved in memory: there is no scratch. */
static void test_in_memory(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, false);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT + 100, 10), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 62 * UNIT, 4 * UNIT), ==, 0); /* across regions */
    g_assert_cmpint(point_rig_write(rig, MIB + 1, 100), ==, 0);        /* the short last unit */
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 5 * UNIT + 512);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 5 * UNIT + 512);
    point_rig_check_all(rig);
    g_assert_cmpint(point_rig_write(rig, 0, MIB + 512), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, MIB + 512);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

static void test_on_scratch(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT + 100, 10), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 62 * UNIT, 4 * UNIT), ==, 0);
    g_assert_cmpint(point_rig_write(rig, MIB + 1, 100), ==, 0);
    point_rig_wait_memory(rig, 0);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 5 * UNIT + 512);
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 5 * UNIT + 512);
    point_rig_check_all(rig);
    g_assert_cmpmem(memory_disk_data(rig->scratch->file) + 62 * UNIT, 4 * UNIT,
                    rig->old + 62 * UNIT, 4 * UNIT);
    point_rig_free(rig);
}

static void test_random(void)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned round = 0; round < 40; round++) {
        struct point_rig *rig = point_rig_new(MIB - round * 512, round % 2);

        POINT_RIG_START(rig, .policy = round % 4 < 2 ? POINT_IN_TIME_BREAK_SNAPSHOT
                                                     : POINT_IN_TIME_BREAK_GUEST_WRITE);
        for (unsigned i = 0; i < 30; i++) {
            uint64_t offset, bytes;

            test_random_range(&random, rig->length, 512, 64 * KIB, &offset, &bytes);
            g_assert_cmpint(point_rig_write(rig, offset, bytes), ==, 0);
            test_random_range(&random, rig->length, 512, 512 * KIB, &offset, &bytes);
            point_rig_check(rig, offset, bytes);
        }
        point_rig_check_all(rig);
        point_rig_free(rig);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    test_seed();
    point_rig_init();
    g_test_add_func("/point-in-time/what-nobody-changed-is-read-from-the-source", test_unsaved);
    g_test_add_func("/point-in-time/what-a-guest-overwrites-is-read-from-memory", test_in_memory);
    g_test_add_func("/point-in-time/what-has-come-to-scratch-is-read-from-there", test_on_scratch);
    g_test_add_func("/point-in-time/random-writes-do-not-show", test_random);
    return g_test_run();
}
