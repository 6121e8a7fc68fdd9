/* SPDX-License-Identifier: BSD-3-Clause */
/* Points in time: what their readers get, whatever state the units are in. */
#include "block/point-in-time.h"

#include <errno.h>
#include <string.h>

#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "formats/formats.h"
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

/* ---- Zeroes --------------------------------------------------------------------------------- */

static void assert_status(struct point_rig *rig, uint64_t offset, uint64_t bytes,
                          uint64_t expected_bytes, unsigned expected_flags)
{
    struct block_extent extent;

    g_assert_cmpint(point_in_time_block_status(rig->point, offset, bytes, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, expected_bytes);
    g_assert_cmphex(extent.flags, ==, expected_flags);
    g_assert_null(extent.host_node);
}

#define DATA   (BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED)
#define ZEROES BLOCK_STATUS_ZERO

/* The units of a small write are read, found to be zero, and take no room anywhere. */
static void test_zero_units(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    point_rig_zero(rig, 4 * UNIT, UNIT);
    point_rig_zero(rig, 6 * UNIT, 2 * UNIT);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    g_assert_cmpint(point_rig_write(rig, 4 * UNIT, UNIT), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 0);
    assert_status(rig, 4 * UNIT, UNIT, UNIT, ZEROES);
    g_assert_cmpint(point_rig_write(rig, 4 * UNIT, 8 * UNIT), ==, 0); /* zeroes among data */
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 5 * UNIT);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 5 * UNIT);
    assert_status(rig, 6 * UNIT, 2 * UNIT, 2 * UNIT, ZEROES);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

/* A large change asks first, and does not read what is not there. */
static void test_zero_run(void)
{
    struct point_rig *rig = point_rig_new(4 * MIB, true);

    point_rig_zero(rig, MIB, 2 * MIB);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    unsigned reads = memory_disk_count(rig->source->file, BLOCK_OPERATION_READ);
    g_assert_cmpint(point_rig_write(rig, MIB, 2 * MIB), ==, 0);
    g_assert_cmpuint(memory_disk_count(rig->source->file, BLOCK_OPERATION_READ) - reads, <=, 16);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 0);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 0);
    assert_status(rig, MIB, 2 * MIB, 2 * MIB, ZEROES);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

/* ---- Saving --------------------------------------------------------------------------------- */

static void test_saved_once(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, 10 * UNIT), ==, 0);
    unsigned reads = memory_disk_count(rig->source->file, BLOCK_OPERATION_READ);
    for (unsigned i = 0; i < 10; i++) {
        g_assert_cmpint(point_rig_write(rig, i * UNIT, UNIT), ==, 0);
    }
    g_assert_cmpuint(memory_disk_count(rig->source->file, BLOCK_OPERATION_READ), ==, reads);
    g_assert_cmpint(point_rig_write(rig, 9 * UNIT, 2 * UNIT), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 11 * UNIT);
    point_rig_wait_memory(rig, 0);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 11 * UNIT);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

/* Neighbours that wait together go to scratch as one request. */
static void test_neighbours(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    struct block_drain *drain = block_drain_begin(&rig->scratch, 1, BLOCK_PERM_ALL);
    for (unsigned i = 0; i < 32; i++) {
        g_assert_cmpint(point_rig_write(rig, i * 7 % 32 * UNIT, UNIT), ==, 0);
    }
    block_drain_end(drain);
    point_rig_wait_memory(rig, 0);
    g_assert_cmpuint(memory_disk_count(rig->scratch->file, BLOCK_OPERATION_WRITE), ==, 1);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

/* A change larger than the memory goes through it piece by piece. */
static void test_little_memory(void)
{
    struct point_rig *rig = point_rig_new(4 * MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .memory_max = 1);
    g_assert_cmpint(point_rig_write(rig, 100, 3 * MIB), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, <=, POINT_IN_TIME_MEMORY_MIN);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

static void test_growing_source(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(block_node_set_length(rig->source, 2 * MIB, BLOCK_PREALLOCATION_OFF, NULL), ==,
                    0);
    g_assert_cmpint(point_rig_write(rig, MIB + 64 * KIB, 64 * KIB), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 0);
    g_assert_cmpint(point_rig_write(rig, MIB - UNIT, 64 * KIB), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, UNIT + 512);
    g_assert_cmpuint(point_in_time_length(rig->point), ==, MIB + 512);
    g_assert_cmpint(point_rig_read(rig, MIB, 1024), ==, -EINVAL);
    point_rig_check_all(rig);
    point_rig_free(rig);
}

/* ---- Giving up ------------------------------------------------------------------------------ */

static void assert_given_up(struct point_rig *rig, uint64_t offset, uint64_t bytes)
{
    struct block_extent extent;

    for (uint64_t unit = offset; unit < offset + bytes; unit += UNIT) {
        g_assert_cmpint(point_rig_read(rig, unit, 1), ==, -EINVAL);
        g_assert_cmpint(point_in_time_block_status(rig->point, unit, 1, &extent), ==, -EINVAL);
    }
    g_assert_cmpint(point_rig_read(rig, 0, rig->length), ==, -EINVAL);
}

static void test_discard_unsaved(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    /* Whole units only, but for the last one of the disk. */
    g_assert_cmpint(point_in_time_discard(rig->point, UNIT - 1, 2 * UNIT), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, MIB - 1, 1000), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, 10 * UNIT + 1, UNIT), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, 0), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, UINT64_MAX, UINT64_MAX), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).discarded_bytes, ==, UNIT + 512);
    assert_given_up(rig, UNIT, UNIT);
    assert_given_up(rig, MIB, 512);
    g_assert_cmpint(point_rig_write(rig, UNIT, UNIT), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 0);
    point_rig_check(rig, 0, UNIT);
    point_rig_check(rig, 2 * UNIT, MIB - 2 * UNIT);
    /* Again, and more: counted once. */
    g_assert_cmpint(point_in_time_discard(rig->point, 0, MIB + 512), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).discarded_bytes, ==, MIB + 512);
    assert_given_up(rig, 0, MIB + 512);
    point_rig_free(rig);
}

static void test_discard_memory(void)
{
    struct point_rig *rig = point_rig_new(MIB, false);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 60 * UNIT, 8 * UNIT), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, 62 * UNIT, 3 * UNIT), ==, 0);
    assert_given_up(rig, 62 * UNIT, 3 * UNIT);
    point_rig_check(rig, 0, 62 * UNIT);
    point_rig_check(rig, 65 * UNIT, MIB - 65 * UNIT);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, MIB), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).memory_bytes, ==, 0);
    assert_given_up(rig, 0, MIB);
    point_rig_free(rig);
}

static void test_discard_scratch(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    const uint8_t *scratch = memory_disk_data(rig->scratch->file);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    g_assert_cmpint(point_rig_write(rig, 60 * UNIT, 8 * UNIT), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 8 * UNIT);
    g_assert_cmpint(point_in_time_discard(rig->point, 62 * UNIT, 3 * UNIT), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 5 * UNIT);
    g_assert_cmpuint(point_rig_info(rig).scratch_bytes, ==, 5 * UNIT);
    g_assert_cmpuint(point_rig_info(rig).scratch_peak_bytes, ==, 8 * UNIT);
    g_assert_cmphex(scratch[62 * UNIT], ==, 0xd5); /* freed */
    g_assert_cmphex(scratch[65 * UNIT - 1], ==, 0xd5);
    assert_given_up(rig, 62 * UNIT, 3 * UNIT);
    point_rig_check(rig, 0, 62 * UNIT);
    point_rig_check(rig, 65 * UNIT, MIB - 65 * UNIT);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, MIB), ==, 0);
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 0);
    point_rig_free(rig);
}

static void test_discard_zeroes(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    point_rig_zero(rig, 0, 4 * UNIT);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(point_rig_write(rig, 0, 4 * UNIT), ==, 0);
    g_assert_cmpint(point_in_time_discard(rig->point, UNIT, 2 * UNIT), ==, 0);
    assert_given_up(rig, UNIT, 2 * UNIT);
    assert_status(rig, 0, 4 * UNIT, UNIT, ZEROES); /* ends before what was given up */
    point_rig_check(rig, 0, UNIT);
    point_rig_check(rig, 3 * UNIT, UNIT);
    point_rig_free(rig);
}

/* What is given up while it is being written is freed when it was written. */
static void test_discard_on_the_way(gconstpointer policy)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    const uint8_t *scratch = memory_disk_data(rig->scratch->file);

    POINT_RIG_START(rig, .policy = (enum point_in_time_policy)GPOINTER_TO_INT(policy));
    memory_disk_hold(rig->scratch->file, BLOCK_OPERATION_WRITE);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, 4 * UNIT);
    memory_disk_wait_held(rig->scratch->file, 1);
    g_assert_cmpint(point_in_time_discard(rig->point, UNIT, 2 * UNIT), ==, 0);
    assert_given_up(rig, UNIT, 2 * UNIT);
    point_rig_check(rig, 0, UNIT);
    memory_disk_release(rig->scratch->file);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    point_rig_wait_scratch(rig, 2 * UNIT);
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 2 * UNIT);
    g_assert_cmphex(scratch[UNIT], ==, 0xd5);
    g_assert_cmphex(scratch[3 * UNIT - 1], ==, 0xd5);
    point_rig_check(rig, 0, UNIT);
    point_rig_check(rig, 3 * UNIT, UNIT);
    point_rig_free(rig);
}

/* A guest need not wait for what is given up. */
static void test_discard_lets_go(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    memory_disk_hold(rig->scratch->file, BLOCK_OPERATION_WRITE);
    struct point_rig_guest *guest = point_rig_write_begin(rig, 0, 4 * UNIT);
    memory_disk_wait_held(rig->scratch->file, 1);
    g_assert_false(point_rig_write_ended(guest));
    g_assert_cmpint(point_in_time_discard(rig->point, 0, 4 * UNIT), ==, 0);
    g_assert_cmpint(point_rig_write_await(guest), ==, 0);
    memory_disk_release(rig->scratch->file);
    point_rig_wait_scratch(rig, 0);
    point_rig_free(rig);
}

/* ---- What is left --------------------------------------------------------------------------- */

static void assert_next(struct point_rig *rig, bool saved_only, uint64_t from, uint64_t end,
                        uint64_t max_bytes, uint64_t expected_offset, uint64_t expected_bytes)
{
    uint64_t offset, bytes;

    g_assert_true(
        point_in_time_next(rig->point, saved_only, from, end, max_bytes, &offset, &bytes));
    g_assert_cmpuint(offset, ==, expected_offset);
    g_assert_cmpuint(bytes, ==, expected_bytes);
}

static void assert_no_next(struct point_rig *rig, bool saved_only, uint64_t from, uint64_t end)
{
    uint64_t offset, bytes;

    g_assert_false(point_in_time_next(rig->point, saved_only, from, end, MIB, &offset, &bytes));
}

static void test_next(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, true);

    point_rig_zero(rig, 8 * UNIT, UNIT);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    assert_next(rig, false, 0, UINT64_MAX, 4 * MIB, 0, MIB + 512);
    assert_next(rig, false, 3 * UNIT, MIB, 128 * KIB, 3 * UNIT, 128 * KIB);
    assert_no_next(rig, true, 0, MIB + 512);
    g_assert_cmpint(point_rig_write(rig, 7 * UNIT, 3 * UNIT), ==, 0); /* the middle is zero */
    assert_next(rig, true, 0, MIB, MIB, 7 * UNIT, UNIT);
    assert_next(rig, true, 8 * UNIT, MIB, MIB, 9 * UNIT, UNIT);
    point_rig_wait_memory(rig, 0);
    assert_next(rig, true, 8 * UNIT, MIB, MIB, 9 * UNIT, UNIT); /* on scratch as well */
    assert_no_next(rig, true, 10 * UNIT, MIB);
    assert_no_next(rig, true, 0, 7 * UNIT);
    g_assert_cmpint(point_in_time_discard(rig->point, 9 * UNIT, UNIT), ==, 0);
    assert_no_next(rig, true, 8 * UNIT, MIB);
    assert_next(rig, false, 8 * UNIT, UINT64_MAX, MIB, 8 * UNIT, UNIT);
    assert_next(rig, false, 9 * UNIT, UINT64_MAX, MIB, 10 * UNIT, MIB + 512 - 10 * UNIT);
    assert_no_next(rig, false, MIB + 512, UINT64_MAX);
    g_assert_cmpint(point_in_time_discard(rig->point, 0, UINT64_MAX), ==, 0);
    assert_no_next(rig, false, 0, UINT64_MAX);
    point_rig_free(rig);
}

/* ---- Block status --------------------------------------------------------------------------- */

static void test_status(void)
{
    struct point_rig *rig = point_rig_new(64 * UNIT + 512, true);

    point_rig_zero(rig, 4 * UNIT, 4 * UNIT);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_GUEST_WRITE);
    assert_status(rig, 0, 64 * UNIT, 4 * UNIT, DATA);
    assert_status(rig, 4 * UNIT, 64 * UNIT - 4 * UNIT, 4 * UNIT, ZEROES | BLOCK_STATUS_ALLOCATED);
    assert_status(rig, 62 * UNIT + 7, 2 * UNIT + 512 - 7, 2 * UNIT + 512 - 7, DATA);
    /* What a guest does shows nowhere. */
    g_assert_cmpint(block_node_write_zeroes(rig->source, 2 * UNIT, UNIT, 0), ==, 0);
    assert_status(rig, 0, 64 * UNIT, 4 * UNIT, DATA);
    g_assert_cmpint(point_rig_write(rig, 5 * UNIT, UNIT), ==, 0);
    assert_status(rig, 5 * UNIT, UNIT, UNIT, ZEROES);
    g_assert_cmpint(point_rig_write(rig, 64 * UNIT, 512), ==, 0);
    assert_status(rig, 64 * UNIT + 100, 412, 412, DATA);
    /* Cut to what was asked, and to what was not given up. */
    assert_status(rig, 100, 50, 50, DATA);
    g_assert_cmpint(point_in_time_discard(rig->point, UNIT, UNIT), ==, 0);
    assert_status(rig, 100, 64 * UNIT, UNIT - 100, DATA);

    struct block_extent extent;
    g_assert_cmpint(point_in_time_block_status(rig->point, UNIT + 1, 1, &extent), ==, -EINVAL);
    g_assert_cmpint(point_in_time_block_status(rig->point, 64 * UNIT, 513, &extent), ==, -EINVAL);
    g_assert_cmpint(point_in_time_block_status(rig->point, 0, 0, &extent), ==, -EINVAL);
    point_rig_free(rig);
}

/* A point in time of any node, without a rig. */
static struct point_in_time *point_of(struct block_node *source)
{
    GError *error = NULL;
    struct point_in_time *point = point_in_time_new(
        &(struct point_in_time_options){.owner = "view 'w'", .source = source}, &error);

    g_assert_no_error(error);
    point_in_time_install(point);
    return point;
}

struct question {
    struct point_in_time *point;
    uint64_t bytes;
    struct block_extent extent;
    int status;
};

static void *question_thread(void *data)
{
    struct question *question = data;

    question->status =
        point_in_time_block_status(question->point, 0, question->bytes, &question->extent);
    return NULL;
}

/*
 * A guest makes a hole while the source is asked: what it says of the hole is not believed.
 * hole: where, in a file of holes that holds data in its units 0 and 4.
 */
static void check_status_race(uint64_t hole, uint64_t expected_bytes, unsigned expected_flags)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "source");
    struct question question = {.bytes = 8 * UNIT};
    uint8_t data[UNIT];
    pthread_t thread;

    memset(data, 1, sizeof(data));
    test_make_file(path, MIB);
    struct block_node *source = test_open(
        "driver=fault,node-name=source,discard=unmap,file.driver=file,file.filename=%s", path);
    g_assert_cmpint(block_node_pwrite(source, data, 0, hole ? 0 : UNIT, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(source, data, 4 * UNIT, UNIT, 0), ==, 0);
    question.point = point_of(source);
    FAULT(source, .operations = FAULT_ON_STATUS, .hold = true);
    pthread_create(&thread, NULL, question_thread, &question);
    fault_wait_held(source, 1);
    g_assert_cmpint(block_node_write_zeroes(source, hole, UNIT, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    fault_clear(source);
    pthread_join(thread, NULL);
    g_assert_cmpint(question.status, ==, 0);
    g_assert_cmpuint(question.extent.bytes, ==, expected_bytes);
    g_assert_cmphex(question.extent.flags, ==, expected_flags);
    point_in_time_uninstall(question.point);
    point_in_time_free(question.point);
    block_node_unref(source);
    test_directory_free(directory);
}

static void test_status_race(void)
{
    check_status_race(0, UNIT, DATA);
    check_status_race(4 * UNIT, 4 * UNIT, ZEROES);
}

/* The source's extents need not end with units: a unit that is zero in part only is data. */
static void test_zero_in_part(void)
{
    struct block_node *source =
        test_open("driver=raw,node-name=source,offset=512,size=512k,file.driver=memory,"
                  "file.size=1M");
    g_autofree uint8_t *old = g_malloc0(512 * KIB), *data = g_malloc0(512 * KIB);

    for (uint64_t unit = 0; unit < 512 * KIB; unit += UNIT) {
        memset(old + unit + UNIT - 512, 7, 512);
    }
    g_assert_cmpint(block_node_pwrite(source, old, 0, 512 * KIB, 0), ==, 0);
    struct point_in_time *point = point_of(source);
    g_assert_cmpint(block_node_pwrite(source, data, 0, 512 * KIB, 0), ==, 0);
    g_assert_cmpint(point_in_time_pread(point, data, 0, 512 * KIB), ==, 0);
    g_assert_cmpmem(data, 512 * KIB, old, 512 * KIB);
    point_in_time_uninstall(point);
    point_in_time_free(point);
    block_node_unref(source);
}

/* ---- Making one ----------------------------------------------------------------------------- */

static void test_bitmap(void)
{
    struct point_rig *rig = point_rig_new(MIB + 512, true);
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new(NULL, MIB + 512, 512, NULL);

    dirty_bitmap_set(bitmap, 3 * UNIT, 512);
    dirty_bitmap_set(bitmap, 10 * UNIT - 512, 1024); /* parts of two units */
    dirty_bitmap_set(bitmap, MIB, 512);
    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT, .bitmap = bitmap);
    g_assert_cmpuint(point_rig_info(rig).discarded_bytes, ==, MIB - 3 * UNIT);
    assert_next(rig, false, 0, UINT64_MAX, MIB, 3 * UNIT, UNIT);
    assert_next(rig, false, 4 * UNIT, UINT64_MAX, MIB, 9 * UNIT, 2 * UNIT);
    assert_next(rig, false, 11 * UNIT, UINT64_MAX, MIB, MIB, 512);
    assert_given_up(rig, 0, 3 * UNIT);
    assert_given_up(rig, 4 * UNIT, 5 * UNIT);
    g_assert_cmpint(point_rig_write(rig, 0, MIB + 512), ==, 0);
    g_assert_cmpuint(point_rig_info(rig).saved_bytes, ==, 3 * UNIT + 512);
    point_rig_check(rig, 3 * UNIT, UNIT);
    point_rig_check(rig, 9 * UNIT, 2 * UNIT);
    point_rig_check(rig, MIB, 512);
    point_rig_free(rig);
}

static void assert_refused(struct block_node *source, struct block_node *scratch,
                           struct dirty_bitmap *bitmap, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(point_in_time_new(
        &(struct point_in_time_options){
            .owner = "view 'w'", .source = source, .scratch = scratch, .bitmap = bitmap},
        &error));
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

static void test_refused(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    AUTO(block_node) small = test_open("driver=memory,node-name=small,size=1044480");
    AUTO(block_node) locked = test_open("driver=memory,node-name=locked,size=1M,read-only=on");
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new(NULL, MIB - 1, 4096, NULL);
    struct block_claim claim = {.owner = g_strdup("block job 'j'"), .perms = BLOCK_PERM_WRITE};

    assert_refused(rig->source, rig->source, NULL, "Node 'source' cannot be its own scratch");
    assert_refused(rig->source, small, NULL,
                   "Scratch node 'small' (1044480 bytes) is shorter than node 'source' "
                   "(1048576 bytes)");
    assert_refused(rig->source, locked, NULL, "Scratch node 'locked' is read-only");
    assert_refused(rig->source, rig->scratch, bitmap,
                   "The bitmap covers 1048575 bytes, but node 'source' has 1048576");
    g_assert_cmpint(block_claim_acquire(&claim, rig->scratch, NULL), ==, 0);
    g_autoptr(GError) error = NULL;
    g_assert_null(point_in_time_new(&(struct point_in_time_options){.owner = "view 'w'",
                                                                    .source = rig->source,
                                                                    .scratch = rig->scratch},
                                    &error));
    g_assert_nonnull(strstr(error->message, "block job 'j'"));
    block_claim_release(&claim);
    g_free(claim.owner);
    block_node_unref(STEAL(small));
    block_node_unref(STEAL(locked));
    point_rig_free(rig); /* nothing was left behind */
}

/* Neither may change its length meanwhile, and nobody else may write scratch (as vda the source).
 */
static void test_claims(void)
{
    struct point_rig *rig = point_rig_new(MIB, true);
    struct block_claim claim = {.perms = BLOCK_PERM_WRITE, .shared = BLOCK_PERM_ALL};

    POINT_RIG_START(rig, .policy = POINT_IN_TIME_BREAK_SNAPSHOT);
    g_assert_cmpint(block_node_check_resize(rig->source, NULL), ==, -EBUSY);
    g_assert_cmpint(block_node_check_resize(rig->scratch, NULL), ==, -EBUSY);
    claim.owner = (char *)"another";
    g_assert_cmpint(block_claim_acquire(&claim, rig->scratch, NULL), ==, -EBUSY);
    point_rig_free(rig);
}

/* ---- Random writes -------------------------------------------------------------------------- */

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
    formats_register();
    g_test_add_func("/point-in-time/what-nobody-changed-is-read-from-the-source", test_unsaved);
    g_test_add_func("/point-in-time/what-a-guest-overwrites-is-read-from-memory", test_in_memory);
    g_test_add_func("/point-in-time/what-has-come-to-scratch-is-read-from-there", test_on_scratch);
    g_test_add_func("/point-in-time/zeroes-are-remembered-without-room", test_zero_units);
    g_test_add_func("/point-in-time/large-areas-of-nothing-are-not-read", test_zero_run);
    g_test_add_func("/point-in-time/nothing-is-saved-twice", test_saved_once);
    g_test_add_func("/point-in-time/neighbours-go-to-scratch-together", test_neighbours);
    g_test_add_func("/point-in-time/a-change-may-be-larger-than-the-memory", test_little_memory);
    g_test_add_func("/point-in-time/a-source-that-grows-has-bytes-beyond", test_growing_source);
    g_test_add_func("/point-in-time/discard/what-is-unsaved", test_discard_unsaved);
    g_test_add_func("/point-in-time/discard/what-is-in-memory", test_discard_memory);
    g_test_add_func("/point-in-time/discard/what-is-on-scratch", test_discard_scratch);
    g_test_add_func("/point-in-time/discard/zeroes", test_discard_zeroes);
    g_test_add_data_func("/point-in-time/discard/what-is-being-written",
                         GINT_TO_POINTER(POINT_IN_TIME_BREAK_SNAPSHOT), test_discard_on_the_way);
    g_test_add_data_func("/point-in-time/discard/what-a-guest-waits-for",
                         GINT_TO_POINTER(POINT_IN_TIME_BREAK_GUEST_WRITE), test_discard_on_the_way);
    g_test_add_func("/point-in-time/discard/lets-guests-go", test_discard_lets_go);
    g_test_add_func("/point-in-time/what-is-left-is-found", test_next);
    g_test_add_func("/point-in-time/block-status-is-of-the-moment", test_status);
    g_test_add_func("/point-in-time/block-status-asked-while-a-guest-writes", test_status_race);
    g_test_add_func("/point-in-time/a-unit-zero-in-part-is-data", test_zero_in_part);
    g_test_add_func("/point-in-time/a-bitmap-says-what-is-part-of-it", test_bitmap);
    g_test_add_func("/point-in-time/unfit-nodes-are-refused", test_refused);
    g_test_add_func("/point-in-time/others-may-write-the-source-but-not-scratch", test_claims);
    g_test_add_func("/point-in-time/random-writes-do-not-show", test_random);
    return g_test_run();
}
