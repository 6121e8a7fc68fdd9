/* SPDX-License-Identifier: BSD-3-Clause */
/* Points in time: when something cannot be saved, and who is hurt then. */
#include <errno.h>
#include <string.h>

#include "block/clock.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/point-in-time.h"
#include "tests/lib/disk.h"
#include "tests/lib/event-log.h"
#include "tests/lib/point-rig.h"

#define UNIT POINT_RIG_UNIT

/* A timeout that passes soon, and one that never does in a test. */
#define SOON  (50 * NS_PER_MS)
#define NEVER (1000 * NS_PER_SECOND)

static void wait_until_broken(struct point_rig *rig)
{
    while (!point_in_time_is_broken(rig->point, NULL)) {
        g_usleep(500);
    }
}

static void wait_for_errors(struct point_rig *rig, unsigned count)
{
    while (atomic_load(&rig->errors) < count) {
        g_usleep(500);
    }
}

/* It broke, for this reason: readers get an error, guests go on, and nothing is held any more. */
static void assert_broken(struct point_rig *rig, int error_number, const char *message)
{
    g_autoptr(GError) reason = NULL;
    struct block_extent extent;
    uint64_t offset, bytes;

    wait_until_broken(rig);
    g_assert_true(point_in_time_is_broken(rig->point, &reason));
    g_assert_cmpint(block_error_code(reason), ==, -error_number);
    g_assert_cmpstr(reason->message, ==, message);
    g_assert_cmpint(point_rig_read(rig, rig->length - 1, 1), ==, -EIO);
    g_assert_cmpint(point_in_time_block_status(rig->point, 0, 1, &extent), ==, -EIO);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, rig->length), ==, -EIO);
    g_assert_false(point_in_time_next(rig->point, false, 0, MIB, MIB, &offset, &bytes));
    g_assert_false(point_in_time_is_crowded(rig->point));
    g_assert_cmpint(point_rig_write(rig, 0, rig->length), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->changes), >=, 1);
}

static void assert_whole(struct point_rig *rig)
{
    g_assert_false(point_in_time_is_broken(rig->point, NULL));
    point_rig_check_all(rig);
}

/* ---- The source ----------------------------------------------------------------------------- */

static void test_source_breaks(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 5 * UNIT, .bytes = 1,
          .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 4 * UNIT, 100), ==, 0);
    g_assert_false(point_in_time_is_broken(rig->point, NULL));
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, 100), ==, 0);
    assert_broken(rig, EIO,
                  "Could not save what a write overwrites of node 'source' at offset 20480: "
                  "Input/output error");
    point_rig_wait_memory(rig, 0);
    point_rig_wait_scratch(rig, 0);
    point_rig_free(rig);
}

static void test_source_fails_guest(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 5 * UNIT, .bytes = 1, .count = 1,
          .error_number = ENOMEM);
    g_assert_cmpint(point_rig_write(rig, 4 * UNIT, 8 * UNIT), ==, -EIO);
    assert_whole(rig); /* the source was not changed */
    g_assert_cmpint(point_rig_write(rig, 4 * UNIT, 8 * UNIT), ==, 0);
    assert_whole(rig);
    point_rig_free(rig);
}

/* What cannot be read, but was saved before, does not keep a reader from its neighbours. */
static void test_source_error_beside(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, UNIT), ==, 0);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 5 * UNIT, .bytes = 1,
          .error_number = EIO);
    assert_whole(rig);
    fault_clear(rig->source);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = 9 * UNIT, .bytes = 1, .count = 2,
          .error_number = EREMOTEIO);
    g_assert_cmpint(point_rig_read(rig, 0, MIB), ==, -EREMOTEIO);
    assert_whole(rig); /* it may be tried again */
    point_rig_free(rig);
}

/* ---- Scratch fails -------------------------------------------------------------------------- */

static void test_scratch_breaks(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    point_rig_wait_scratch(rig, UNIT);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .offset = 5 * UNIT, .bytes = UNIT,
          .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, 100), ==, 0);
    assert_broken(rig, EIO,
                  "Could not write to scratch node 'scratch' at offset 20480: Input/output error");
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 1);
    g_assert_cmpint(atomic_load(&rig->last_error), ==, EIO);
    point_rig_wait_memory(rig, 0);
    point_rig_wait_scratch(rig, 0);
    g_assert_cmphex(memory_disk_data(rig->scratch->file)[0], ==, 0xd5); /* freed */
    point_rig_free(rig);
}

static void test_scratch_fails_guest(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 0, 2 * UNIT), ==, -EIO);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0); /* saved long ago */
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, UNIT);
    point_rig_wait_memory(rig, 0);
    assert_whole(rig);
    fault_clear(rig->scratch);
    g_assert_cmpint(point_rig_write(rig, 0, 2 * UNIT), ==, 0);
    assert_whole(rig);
    point_rig_free(rig);
}

static void test_scratch_try_later(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    atomic_store(&rig->action, POINT_IN_TIME_TRY_LATER);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .count = 2, .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 60 * UNIT, 8 * UNIT), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 2);
    assert_whole(rig);
    point_rig_free(rig);
}

static void test_scratch_hold(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    atomic_store(&rig->action, POINT_IN_TIME_HOLD);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .error_number = ENOSPC);
    g_assert_cmpint(point_rig_write(rig, 0, 8 * UNIT), ==, 0);
    wait_for_errors(rig, 1);
    g_assert_cmpint(atomic_load(&rig->last_error), ==, ENOSPC);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 8 * UNIT);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 0);
    assert_whole(rig); /* from memory */
    point_in_time_retry(rig->point);
    wait_for_errors(rig, 2); /* no better */
    g_assert_cmpint(point_in_time_discard(rig->point, 0, UNIT), ==, 0);
    fault_clear(rig->scratch);
    point_in_time_retry(rig->point);
    point_rig_wait_memory(rig, 0);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 7 * UNIT);
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 2);
    point_rig_check(rig, UNIT, MIB - UNIT);
    point_rig_free(rig);
}

/* A guest waits no longer than it would without that. */
static void test_scratch_hold_times_out(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE, .guest_timeout_ns = SOON);
    atomic_store(&rig->action, POINT_IN_TIME_HOLD);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, -EIO);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, -EIO);
    assert_whole(rig);
    fault_clear(rig->scratch);
    point_in_time_retry(rig->point);
    /* What the first had read is brought to scratch, right because the source did not change. */
    point_rig_wait_scratch(rig, UNIT);
    point_rig_wait_memory(rig, 0);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    assert_whole(rig);
    point_rig_free(rig);
}

/* Reading scratch fails: that is all. */
static void test_scratch_read_error(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    point_rig_wait_memory(rig, 0);
    FAULT(rig->scratch, .operations = FAULT_ON(READ), .count = 1, .error_number = ESTALE);
    g_assert_cmpint(point_rig_read(rig, 0, UNIT), ==, -ESTALE);
    assert_whole(rig);
    point_rig_free(rig);
}

/* ---- The budget ----------------------------------------------------------------------------- */

/* Units that a guest overwrites, brought to scratch. */
static void write_to_scratch(struct point_rig *rig, uint64_t first, uint64_t count)
{
    g_assert_cmpint(point_rig_write(rig, first * UNIT, count * UNIT), ==, 0);
    point_rig_wait_memory(rig, 0);
}

static void discard_units(struct point_rig *rig, uint64_t first, uint64_t count)
{
    g_assert_cmpint(point_in_time_discard(rig->point, first * UNIT, count * UNIT), ==, 0);
}

/* What the last event said, or NULL. The caller frees. */
static char *high_water(void)
{
    return event_log_fields("SCRATCH_HIGH_WATER");
}

static void test_budget_breaks(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    rig->budget.max_bytes = 8 * UNIT;
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, 6 * UNIT), ==, 0);
    point_rig_wait_memory(rig, 0);
    g_assert_false(point_in_time_is_crowded(rig->point));
    g_assert_cmpint(point_rig_write(rig, 10 * UNIT, 2 * UNIT), ==, 0);
    point_rig_wait_memory(rig, 0);
    g_assert_true(point_in_time_is_crowded(rig->point));
    assert_whole(rig);
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 100 * UNIT, 1), ==, 0);
    assert_broken(rig, ENOSPC, "Old data needs more scratch than the 32768 bytes it may have");
    g_assert_cmpint(atomic_load(&rig->last_error), ==, ENOSPC);
    point_rig_wait_scratch(rig, 0);
    g_assert_cmpuint(point_rig_info(rig).scratch_peak_bytes, ==, 8 * UNIT);
    point_rig_free(rig);
}

/* Shared with others: what they use counts, and what they give back can be used. */
static void test_budget_fails_guest(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    rig->budget.max_bytes = 8 * UNIT;
    atomic_store(&rig->budget.used_bytes, 6 * UNIT);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    g_assert_cmpint(point_rig_write(rig, 0, 3 * UNIT), ==, -EIO);
    g_assert_cmpint(point_rig_write(rig, 0, 2 * UNIT), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, UNIT), ==, -EIO);
    assert_whole(rig);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, UNIT), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, UNIT), ==, 0);
    atomic_fetch_sub(&rig->budget.used_bytes, 6 * UNIT);
    g_assert_cmpint(point_rig_write(rig, 8 * UNIT, 4 * UNIT), ==, 0);
    point_rig_check(rig, UNIT, MIB - UNIT);
    point_rig_free(rig);
}

/* Once, however much more is used; and again after it fell below half of that. */
static void test_budget_high_water(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    g_assert_cmpint(scratch_budget_init(&rig->budget, 100 * UNIT, 50, "view", "night", NULL), ==,
                    0);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    event_log_start();
    write_to_scratch(rig, 0, 49);
    g_assert_null(high_water());
    write_to_scratch(rig, 49, 1);
    g_autofree char *first = high_water();
    g_assert_cmpstr(first, ==, "kind=view name=night used=204800 max=409600");
    write_to_scratch(rig, 50, 30);
    discard_units(rig, 0, 50); /* to 30: more than 25 */
    write_to_scratch(rig, 100, 30);
    g_autofree char *still = high_water();
    g_assert_cmpstr(still, ==, first);
    discard_units(rig, 50, 30);
    discard_units(rig, 100, 10); /* to 20 */
    write_to_scratch(rig, 150, 35);
    g_autofree char *second = high_water();
    g_assert_cmpstr(second, ==, "kind=view name=night used=225280 max=409600");
    event_log_stop();
    g_assert_false(point_in_time_is_broken(rig->point, NULL));
    point_rig_free(rig);
}

static void test_budget_high_water_bounds(void)
{
    struct scratch_budget budget = {0};
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(scratch_budget_init(&budget, MIB, 101, "job", "j", &error), ==, -EINVAL);
    g_assert_cmpstr(error->message, ==,
                    "Parameter 'scratch-high-water' expects a percentage of scratch-max, from 0 "
                    "(none) to 100, not 101");
    g_assert_cmpint(scratch_budget_init(&budget, MIB, -1, "job", "j", NULL), ==, -EINVAL);
    g_assert_cmpint(scratch_budget_init(&budget, UINT64_MAX, 100, "job", "j", NULL), ==, 0);
    g_assert_cmpuint(budget.high_bytes, ==, UINT64_MAX);
    g_assert_cmpint(scratch_budget_init(&budget, MIB, 0, "job", "j", NULL), ==, 0);
    g_assert_cmpuint(budget.high_bytes, ==, 0);
}

/* What a guest waits for old data to be kept is told; what it need not save it does not wait for.
 */
static void test_waits_are_told(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    AUTO(guest_waits) waits = guest_waits_new();
    struct guest_waits_report report;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = SOON,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN, .waits = waits);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0); /* saved already */
    guest_waits_read(waits, &report);
    g_assert_cmpuint(report.count, ==, 1);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    g_assert_cmpint(point_rig_write(rig, UNIT, MIB - UNIT), ==, 0);
    guest_waits_read(waits, &report);
    g_assert_cmpuint(report.count, ==, 2);
    g_assert_cmpuint(report.longest_ns, >=, SOON);
    fault_clear(rig->scratch);
    point_rig_free(rig);
}

/* ---- Too slow ------------------------------------------------------------------------------- */

/* Memory is full and scratch does not answer. */
static void test_slow_breaks(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = SOON,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    g_assert_cmpint(point_rig_write(rig, 0, MIB), ==, 0);
    assert_broken(rig, ETIMEDOUT,
                  "Node 'scratch' is too slow: a write to node 'source' would have had to "
                  "wait for more than 0.05 s for what it overwrites to be saved");
    fault_clear(rig->scratch);
    point_rig_wait_scratch(rig, 0); /* what comes late is freed */
    point_rig_wait_memory(rig, 0);
    point_rig_free(rig);
}

static void test_slow_fails_guest(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE, .guest_timeout_ns = SOON);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    g_assert_cmpint(point_rig_write(rig, 0, 4 * UNIT), ==, -EIO);
    g_assert_cmpint(point_rig_write(rig, UNIT, UNIT), ==, -EIO); /* waits for the same save */
    assert_whole(rig);
    fault_clear(rig->scratch);
    point_rig_wait_scratch(rig, 4 * UNIT);
    point_rig_wait_memory(rig, 0);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE), ==, 1);
    g_assert_cmpint(point_rig_write(rig, 0, 4 * UNIT), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 4 * UNIT);
    assert_whole(rig);
    point_rig_free(rig);
}

/* Without scratch it is the memory that is full. */
static void test_full_memory_breaks(void)
{
    struct point_rig *rig = point_rig_new(MIB, false);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = SOON,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    g_assert_cmpint(point_rig_write(rig, 0, MIB / 8), ==, 0);
    g_assert_false(point_in_time_is_crowded(rig->point));
    g_assert_cmpint(point_rig_write(rig, MIB / 8, UNIT), ==, 0);
    g_assert_true(point_in_time_is_crowded(rig->point));
    g_assert_cmpuint(atomic_load(&rig->changes), ==, 1);
    assert_whole(rig);
    g_assert_cmpint(point_rig_write(rig, 0, MIB), ==, 0);
    assert_broken(rig, ETIMEDOUT,
                  "The memory for old data is full: a write to node 'source' would have had to "
                  "wait for more than 0.05 s for what it overwrites to be saved");
    point_rig_free(rig);
}

/* Who empties it lets guests go on. */
static void test_full_memory_is_emptied(void)
{
    struct point_rig *rig = point_rig_new(MIB, false);
    uint64_t offset = 0, bytes = 0;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = NEVER,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, MIB);
    point_rig_wait_memory(rig, POINT_IN_TIME_MEMORY_MIN);
    g_assert_cmpuint(atomic_load(&rig->changes), ==, 1);
    for (uint64_t taken = 0; taken < MIB; taken += bytes) {
        while (!point_in_time_next(rig->point, true, 0, MIB, 64 * KIB, &offset, &bytes)) {
            g_usleep(100);
        }
        point_rig_check(rig, offset, bytes);
        g_assert_cmpint(point_in_time_discard(rig->point, offset, bytes), ==, 0);
    }
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, MIB);
    point_rig_free(rig);
}

/* Who was told that it is crowded, and found nothing to take, is told again when there is more. */
static void test_told_again(void)
{
    struct point_rig *rig = point_rig_new(MIB, false);
    struct point_rig_guest *guests[3];
    uint64_t offset, bytes;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = NEVER,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    FAULT(rig->source, .operations = FAULT_ON(READ), .offset = MIB / 2, .bytes = MIB / 2,
          .hold = true);
    for (size_t i = 0; i < G_N_ELEMENTS(guests); i++) {
        guests[i] = point_rig_write_begin(rig, MIB / 2 + i * 16 * UNIT, 16 * UNIT);
    }
    fault_wait_held(rig->source, G_N_ELEMENTS(guests));
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->changes), ==, 1);
    g_assert_true(point_in_time_next(rig->point, true, 0, MIB, MIB, &offset, &bytes));
    g_assert_cmpint(point_in_time_discard(rig->point, offset, bytes), ==, 0);
    g_assert_false(point_in_time_next(rig->point, true, 0, MIB, MIB, &offset, &bytes));
    g_assert_true(point_in_time_is_crowded(rig->point));
    fault_clear(rig->source);
    for (size_t i = 0; i < G_N_ELEMENTS(guests); i++) {
        g_assert_cmpint(point_rig_write_await(guests[i]), ==, 0);
    }
    g_assert_cmpuint(atomic_load(&rig->changes), ==, 2);
    point_rig_free(rig);
}

/* ---- Waiting for scratch -------------------------------------------------------------------- */

/* Under break-guest-write a change is made when what it overwrites is on scratch. */
static void test_strict_waits(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    uint8_t byte;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE, .guest_timeout_ns = NEVER);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 100, 100);
    fault_wait_held(rig->scratch, 1);
    struct point_rig_guest *other = point_rig_write_begin(rig, 300, 100); /* the same unit */
    g_assert_cmpint(block_node_pread(rig->source, &byte, 100, 1, 0), ==, 0);
    g_assert_cmphex(byte, ==, rig->old[100]);
    g_assert_false(point_rig_write_ended(guest));
    assert_whole(rig);
    fault_clear(rig->scratch);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    g_assert_cmpint(point_rig_write_await(other), ==, 0);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE), ==, 1);
    assert_whole(rig);
    point_rig_free(rig);
}

/* Others look at scratch: it has the old data, zeroes too, before the source changes. */
static void test_write_through(void)
{
    struct point_rig *rig = point_rig_new(2 * MIB, true);
    uint8_t *scratch = memory_disk_data(rig->scratch->file);

    memset(scratch, 0xee, rig->length);
    point_rig_zero(rig, UNIT, UNIT);
    point_rig_zero(rig, MIB, MIB);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = NEVER,
                    .write_through = true);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, 3 * UNIT);
    fault_wait_held(rig->scratch, 1);
    g_assert_false(point_rig_write_ended(guest));
    fault_clear(rig->scratch);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    g_assert_cmpmem(scratch, 3 * UNIT, rig->old, 3 * UNIT);
    g_assert_cmphex(scratch[3 * UNIT], ==, 0xee);
    g_assert_cmpint(point_rig_write(rig, MIB, MIB), ==, 0); /* asked for, not read */
    g_assert_cmpmem(scratch + MIB, MIB, rig->old + MIB, MIB);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 2 * UNIT); /* zeroes not counted */
    assert_whole(rig);
    /* What is given up, and the end, leave scratch as it is. */
    g_assert_cmpint(point_in_time_discard(rig->point, 0, UNIT), ==, 0);
    point_in_time_uninstall(rig->point);
    point_in_time_free(STEAL(rig->point));
    g_assert_cmpmem(scratch, 3 * UNIT, rig->old, 3 * UNIT);
    point_rig_free(rig);
}

static void test_write_through_breaks(void)
{
    struct point_rig *rig = point_rig_new(2 * MIB, true);

    point_rig_zero(rig, MIB, MIB);
    memset(memory_disk_data(rig->scratch->file), 0xee, rig->length);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = SOON,
                    .write_through = true);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE_ZEROES), .hold = true);
    g_assert_cmpint(point_rig_write(rig, MIB, MIB), ==, 0);
    wait_until_broken(rig);
    fault_clear(rig->scratch);
    assert_broken(rig, ETIMEDOUT,
                  "Node 'scratch' is too slow: a write to node 'source' would have had to "
                  "wait for more than 0.05 s for what it overwrites to be saved");
    point_rig_free(rig);
}

/* Who asks for the status of an area may get that of a guest's zeroes, which are not the moment's.
 */
static void test_write_through_beside(void)
{
    struct point_rig *rig = point_rig_new(2 * MIB, true);
    uint8_t *scratch = memory_disk_data(rig->scratch->file);

    point_rig_zero(rig, MIB + UNIT, MIB - UNIT);
    memset(scratch, 0xee, rig->length);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .guest_timeout_ns = NEVER,
                    .write_through = true);
    FAULT(rig->source, .operations = FAULT_ON_STATUS, .hold = true);
    struct point_rig_guest *guest = point_rig_write_begin(rig, MIB, MIB);
    fault_wait_held(rig->source, 1);
    g_assert_cmpint(block_device_write_zeroes(rig->guest, MIB, UNIT, 0), ==, 0);
    fault_clear(rig->source);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    g_assert_cmpmem(scratch + MIB, MIB, rig->old + MIB, MIB);
    assert_whole(rig);
    point_rig_free(rig);
}

/* ---- Drains --------------------------------------------------------------------------------- */

struct reader {
    struct point_rig *rig;
    _Atomic bool ended;
};

static void *reader_thread(void *data)
{
    struct reader *reader = data;

    point_rig_check(reader->rig, 0, UNIT);
    atomic_store(&reader->ended, true);
    return NULL;
}

/* While scratch is drained nothing is begun there; guests go on as long as there is memory. */
static void test_drained_scratch(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    struct reader reader = {.rig = rig};
    pthread_t thread;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT,
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    point_rig_wait_memory(rig, 0);
    struct block_drain *drain = block_drain_begin(&rig->scratch, 1, BLOCK_PERM_ALL);
    unsigned writes = memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE);
    g_assert_cmpint(point_rig_write(rig, UNIT, 15 * UNIT), ==, 0);
    pthread_create(&thread, NULL, reader_thread, &reader);
    struct point_rig_guest *guest = point_rig_write_begin(rig, MIB / 2, MIB / 2);
    point_rig_wait_memory(rig, POINT_IN_TIME_MEMORY_MIN - UNIT);
    g_usleep(150000); /* longer than threads are lazy: they have had time to do wrong */
    g_assert_false(atomic_load(&reader.ended));
    g_assert_false(point_rig_write_ended(guest));
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE), ==, writes);
    block_drain_end(drain);
    pthread_join(thread, NULL);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    assert_whole(rig);
    point_rig_free(rig);
}

/* A drain waits for what is in flight. */
static void *drain_thread(void *data)
{
    struct point_rig *rig = data;

    return block_drain_begin(&rig->scratch, 1, BLOCK_PERM_WRITE);
}

static void test_drain_waits(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    pthread_t thread;
    void *drain;

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    fault_wait_held(rig->scratch, 1);
    pthread_create(&thread, NULL, drain_thread, rig);
    g_assert_cmpint(point_rig_write(rig, UNIT, UNIT), ==, 0);
    fault_clear(rig->scratch);
    pthread_join(thread, &drain);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE), <=, 2);
    block_drain_end(drain);
    point_rig_wait_memory(rig, 0);
    assert_whole(rig);
    point_rig_free(rig);
}

/* ---- The end -------------------------------------------------------------------------------- */

/* Guests that wait for ever, for memory or for scratch, go on when it is uninstalled. */
static void test_uninstall_lets_go(gconstpointer policy)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = (enum point_in_time_policy)GPOINTER_TO_INT(policy),
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, MIB);
    struct point_rig_guest *other = point_rig_write_begin(rig, 0, UNIT);
    fault_wait_held(rig->scratch, 1);
    point_in_time_uninstall(rig->point);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    g_assert_cmpint(point_rig_write_await(other), ==, 0);
    g_assert_cmpint(point_rig_read(rig, 0, UNIT), ==, -EIO); /* nothing is saved any more */
    g_assert_false(point_in_time_is_broken(rig->point, NULL));
    point_in_time_cancel_in_flight(rig->point);
    g_assert_cmpuint(fault_cut_off(rig->scratch), ==, 1);
    point_rig_free(rig);
}

static void test_break_lets_go(gconstpointer policy)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    GError *error = NULL;

    POINT_RIG_START(rig, .policy = (enum point_in_time_policy)GPOINTER_TO_INT(policy),
                    .memory_max = POINT_IN_TIME_MEMORY_MIN);
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, MIB);
    fault_wait_held(rig->scratch, 1);
    block_error(&error, ECANCELED, "The view was dropped");
    point_in_time_break(rig->point, STEAL(error));
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    block_error(&error, EIO, "Too late");
    point_in_time_break(rig->point, STEAL(error));
    assert_broken(rig, ECANCELED, "The view was dropped");
    g_assert_cmpuint(atomic_load(&rig->changes), ==, 1);
    point_in_time_cancel_in_flight(rig->point);
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 0); /* nobody wants to hear of it */
    point_rig_free(rig);
}

/* A request that hangs on scratch fails when it is cut off, and then the policy decides. */
static void test_cancel(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    atomic_store(&rig->action, POINT_IN_TIME_HOLD); /* is not asked any more */
    FAULT(rig->scratch, .operations = FAULT_ON(WRITE), .hold = true);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    fault_wait_held(rig->scratch, 1);
    point_in_time_cancel_in_flight(rig->point);
    assert_broken(rig, ESHUTDOWN,
                  "Could not write to scratch node 'scratch' at offset 0: Cannot send after "
                  "transport endpoint shutdown");
    g_assert_cmpuint(atomic_load(&rig->errors), ==, 0);
    point_rig_free(rig);
}

/* A user's scratch node is free again afterwards; one that vanishes is left alone. */
static void test_free(gconstpointer vanishes)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE,
                    .scratch_vanishes = GPOINTER_TO_INT(vanishes));
    g_assert_cmpint(point_rig_write(rig, 10 * UNIT, UNIT), ==, 0);
    point_in_time_uninstall(rig->point);
    point_in_time_free(STEAL(rig->point));
    g_assert_cmphex(memory_disk_data(rig->scratch->file)[10 * UNIT], ==,
                    GPOINTER_TO_INT(vanishes) ? rig->old[10 * UNIT] : 0xd5);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_DISCARD), ==,
                     !GPOINTER_TO_INT(vanishes));
    point_rig_free(rig);
}

/* Scratch that hangs while what was used of it is freed does not keep the end from coming. */
static void test_free_hangs(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, UNIT), ==, 0);
    g_assert_cmpint(point_rig_write(rig, 10 * UNIT, UNIT), ==, 0);
    point_rig_wait_scratch(rig, 2 * UNIT);
    point_rig_wait_memory(rig, 0);
    FAULT(rig->scratch, .operations = FAULT_ON(DISCARD), .hold = true);
    point_in_time_uninstall(rig->point);
    point_in_time_stop(rig->point, SOON);
    point_in_time_free(STEAL(rig->point));
    g_assert_cmpuint(fault_cut_off(rig->scratch), >=, 1);
    point_rig_free(rig);
}

static void add_by_policy(const char *name, GTestDataFunc function)
{
    static const enum point_in_time_policy policies[] = {POINT_IN_TIME_BREAK_SNAPSHOT,
                                                         POINT_IN_TIME_BREAK_GUEST_WRITE};

    for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
        g_autofree char *path = g_strdup_printf("/point-in-time-fault/%s/%s", name,
                                                point_in_time_policy_names[policies[i]]);

        g_test_add_data_func(path, GINT_TO_POINTER((int)policies[i]), function);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    point_rig_init();
#define ADD(name, function) g_test_add_func("/point-in-time-fault/" name, function)
    ADD("source/an-error-breaks-it", test_source_breaks);
    ADD("source/an-error-fails-the-guest", test_source_fails_guest);
    ADD("source/an-error-beside-does-not-matter", test_source_error_beside);
    ADD("scratch/an-error-breaks-it", test_scratch_breaks);
    ADD("scratch/an-error-fails-the-guest", test_scratch_fails_guest);
    ADD("scratch/tried-again-later", test_scratch_try_later);
    ADD("scratch/held-until-retry", test_scratch_hold);
    ADD("scratch/held-longer-than-a-guest-waits", test_scratch_hold_times_out);
    ADD("scratch/an-error-of-a-read-breaks-nothing", test_scratch_read_error);
    ADD("budget/used-up-breaks-it", test_budget_breaks);
    ADD("budget/used-up-fails-the-guest", test_budget_fails_guest);
    ADD("budget/high-water-is-told-once", test_budget_high_water);
    ADD("budget/high-water-is-a-percentage", test_budget_high_water_bounds);
    ADD("guests/what-they-wait-is-told", test_waits_are_told);
    ADD("slow/scratch-breaks-it", test_slow_breaks);
    ADD("slow/scratch-fails-the-guest", test_slow_fails_guest);
    ADD("slow/full-memory-breaks-it", test_full_memory_breaks);
    ADD("slow/memory-that-is-emptied-does-not", test_full_memory_is_emptied);
    ADD("slow/who-empties-memory-is-told-again", test_told_again);
    ADD("strict/a-change-waits-for-scratch", test_strict_waits);
    ADD("strict/write-through-puts-all-on-scratch", test_write_through);
    ADD("strict/write-through-breaks-when-slow", test_write_through_breaks);
    ADD("strict/write-through-beside-zeroes-of-a-guest", test_write_through_beside);
    ADD("drain/of-scratch-begins-nothing", test_drained_scratch);
    ADD("drain/of-scratch-waits-for-what-is-in-flight", test_drain_waits);
    add_by_policy("end/uninstall-lets-guests-go", test_uninstall_lets_go);
    add_by_policy("end/break-lets-guests-go", test_break_lets_go);
    ADD("end/what-hangs-is-cut-off", test_cancel);
    ADD("end/scratch-that-hangs-when-freed-is-cut-off", test_free_hangs);
    g_test_add_data_func("/point-in-time-fault/end/scratch-is-freed", GINT_TO_POINTER(0),
                         test_free);
    g_test_add_data_func("/point-in-time-fault/end/scratch-that-vanishes-is-not",
                         GINT_TO_POINTER(1), test_free);
    return g_test_run();
}
