/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a tracked disk is known to read as zeroes, where the storage itself cannot say: nothing that
 * does not read so at that moment.
 */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "block/align.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/tracking-io.h"
#include "block/tracking.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define DISK    MIB
#define GRANULE (64 * KIB)
#define COUNT   (DISK / GRANULE)

struct rig {
    char *directory, *path;
    struct block_node *root;
    struct block_device *device;
    struct change_tracker *tracker;
};

static struct tracking_io real_io;
static uint8_t boot = 1;

static void boot_id(uint8_t *id)
{
    memset(id, boot, 16);
}

static void rig_track(struct rig *rig)
{
    struct tracking_options options = {
        .device = "vda",
        .path = rig->path,
        .geometry = {.granule = GRANULE, .extent = GRANULE, .extents = 16},
    };

    rig->tracker = tracking_start(&options, rig->root);
    rig->device = block_device_new("vda", rig->root, NULL);
    g_assert_nonnull(rig->device);
    block_device_set_tracker(rig->device, rig->tracker);
}

/* A disk full of data, and the checkpoint "start". */
static struct rig *rig_new(const char *driver)
{
    struct rig *rig = g_new0(struct rig, 1);

    tracking_io.boot_id = boot_id;
    rig->directory = test_directory_new(true);
    rig->path = test_path(rig->directory, "tracking");
    rig->root = test_open("driver=%s,size=1M,request-alignment=512,discard=unmap", driver);
    memset(memory_disk_data(rig->root), 0x5a, DISK);
    rig_track(rig);
    g_assert_cmpint(tracking_checkpoint_add(rig->tracker, rig->root, "start", NULL), ==, 0);
    return rig;
}

static void rig_free(struct rig *rig)
{
    tracking_take_samples(rig->tracker, rig->root);
    block_device_remove(rig->device);
    block_node_unref(rig->root);
    tracking_finish(rig->tracker);
    tracking_io = real_io;
    g_free(rig->path);
    test_directory_free(rig->directory);
    g_free(rig);
}

/* The process dies; the next one finds another boot if power was lost. */
static void rig_kill(struct rig *rig, bool loses_power)
{
    block_device_remove(rig->device);
    tracking_abandon(rig->tracker);
    boot += loses_power;
    rig_track(rig);
}

static void zero(struct rig *rig, uint64_t granule, uint64_t count)
{
    g_assert_cmpint(block_device_write_zeroes(rig->device, granule * GRANULE, count * GRANULE, 0),
                    ==, 0);
}

static void trim(struct rig *rig, uint64_t granule, uint64_t count)
{
    g_assert_cmpint(block_device_discard(rig->device, granule * GRANULE, count * GRANULE, 0), ==,
                    0);
}

static void add(struct rig *rig, const char *name)
{
    g_assert_cmpint(tracking_checkpoint_add(rig->tracker, rig->root, name, NULL), ==, 0);
}

/*
 * What is said of each granule since a checkpoint: '.' nothing, 'D' it changed, 'Z' it reads as
 * zeroes; wanted has only the first ones. And whatever is said to be zero is.
 */
static void assert_changes(struct rig *rig, const char *since, const char *wanted)
{
    AUTO(dirty_bitmap) zeroes = NULL;
    AUTO(dirty_bitmap)
    changes = tracking_changes_with_zeroes(rig->tracker, since, &zeroes, NULL);
    char found[COUNT + 1] = "", all[COUNT + 1] = "";

    g_assert_true(changes && zeroes);
    for (uint64_t i = 0; i < COUNT; i++) {
        uint64_t at = i * GRANULE, end = at + GRANULE;
        bool is_changed = dirty_bitmap_next_dirty(changes, at, end) < end;
        bool is_zero = dirty_bitmap_next_dirty(zeroes, at, end) < end;

        found[i] = is_zero ? 'Z' : is_changed ? 'D' : '.';
        all[i] = i < strlen(wanted) ? wanted[i] : '.';
        g_assert_true(is_changed || !is_zero);
        if (is_zero) {
            test_assert_filled(memory_disk_data(rig->root) + at, 0, GRANULE);
        }
    }
    g_assert_cmpstr(found, ==, all);
}

static void test_zeroes(void)
{
    struct rig *rig = rig_new("memory-device");

    zero(rig, 0, 4);
    g_assert_cmpint(block_device_pwrite(rig->device, "x", 2 * GRANULE + 7, 1, 0), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(rig->device, 4 * GRANULE + 512, GRANULE, 0), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(rig->device, (COUNT - 1) * GRANULE, GRANULE, 0), ==,
                    0);
    assert_changes(rig, "start", "ZZDZDD.........Z");
    add(rig, "later");
    assert_changes(rig, "later", "");
    zero(rig, 0, 2); /* what it reads as anyway */
    zero(rig, 2, 1);
    assert_changes(rig, "later", "..Z");
    assert_changes(rig, "start", "ZZZZDD.........Z");
    rig_free(rig);
}

static void test_failed_zeroes(void)
{
    struct rig *rig = rig_new("memory-device");

    zero(rig, 0, 2);
    add(rig, "later");
    memory_disk_fail(rig->root, BLOCK_OPERATION_WRITE_ZEROES, -EIO, 0, 1);
    g_assert_cmpint(block_device_write_zeroes(rig->device, GRANULE, 2 * GRANULE, 0), ==, -EIO);
    assert_changes(rig, "later", ".DD");
    assert_changes(rig, "start", "ZDD");
    rig_free(rig);
}

static void test_discard(void)
{
    struct rig *rig = rig_new("memory-device");

    trim(rig, 0, 1);
    zero(rig, 1, 4);
    assert_changes(rig, "start", "DZZZZ");
    add(rig, "later");
    trim(rig, 1, 1);
    g_assert_cmpint(block_device_discard(rig->device, 3 * GRANULE, 512, 0), ==, 0);
    g_assert_cmpuint(memory_disk_data(rig->root)[GRANULE], ==, 0xd5);
    assert_changes(rig, "later", ".D.D");
    assert_changes(rig, "start", "DDZDZ");
    rig_free(rig);
}

static void test_promised_discard(void)
{
    struct rig *rig = rig_new("memory-unmaps");

    memory_disk_log(rig->root);
    trim(rig, 0, 2);
    g_autofree char *log = memory_disk_take_log(rig->root);
    g_assert_cmpstr(log, ==, "zero 0+131072 unmap");
    assert_changes(rig, "start", "ZZ");
    add(rig, "later");
    trim(rig, 0, 2);
    assert_changes(rig, "later", "");
    rig_free(rig);
}

/* The storage may refuse zeroes that it would have to write; then it discards, and who knows what.
 */
static void test_refused_promise(void)
{
    struct rig *rig = rig_new("memory-unmaps");

    zero(rig, 0, 2);
    add(rig, "later");
    memory_disk_fail(rig->root, BLOCK_OPERATION_WRITE_ZEROES, -ENOTSUP, 0, 1);
    trim(rig, 0, 3);
    g_assert_cmpuint(memory_disk_data(rig->root)[0], ==, 0xd5);
    assert_changes(rig, "later", "DDD");
    rig_free(rig);
}

static void test_ignored_discard(void)
{
    struct rig *rig = rig_new("memory-unmaps");

    atomic_store(&rig->root->options.discard_unmap, false);
    trim(rig, 0, 1);
    g_assert_cmpuint(memory_disk_data(rig->root)[0], ==, 0x5a);
    assert_changes(rig, "start", "D");
    rig_free(rig);
}

/* What was flushed before the checkpoint is believed, what came later may not have got there. */
static void test_crash(const void *loses_power)
{
    struct rig *rig = rig_new("memory-device");

    zero(rig, 0, 1);
    add(rig, "later");
    zero(rig, 1, 1);
    rig_kill(rig, loses_power != NULL);
    if (loses_power) {
        memset(memory_disk_data(rig->root) + GRANULE, 0x5a, GRANULE); /* it did not get there */
    }
    /* Both extents were active: what power may have taken there is data. */
    assert_changes(rig, "start", loses_power ? "DD" : "ZD");
    assert_changes(rig, "later", loses_power ? "DD" : ".D");
    rig_free(rig);
}

/* Its zeroes are lost with what was not flushed, though somebody would keep bitmaps at the end. */
static void test_failed_flush(void)
{
    struct rig *rig = rig_new("memory-device");
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new();

    zero(rig, 0, 1);
    tracking_leave_open(rig->tracker);
    g_assert_cmpint(tracking_keep_bitmaps(rig->tracker, rig->root, bitmaps, NULL), ==, -EIO);
    rig_kill(rig, false);
    assert_changes(rig, "start", "D");
    rig_free(rig);
}

/* ---- Many guests at once ----------------------------------------------------------------------
 */

#define GUESTS 3
#define ROUNDS 40

struct guests {
    struct block_device *device;
    _Atomic uint64_t seed;
    _Atomic bool are_over;
};

/* Few granules, so that they meet. */
static void *use_disk(void *data)
{
    struct guests *guests = data;
    struct test_random random = test_random_new(atomic_fetch_add(&guests->seed, 1));
    uint8_t bytes[512];

    memset(bytes, 0x77, sizeof(bytes));
    while (!atomic_load(&guests->are_over)) {
        uint64_t granule = test_random_below(&random, 4) * GRANULE;
        uint64_t count = test_random_between(&random, 1, 2) * GRANULE;
        int status;

        switch (test_random_below(&random, 4)) {
        case 0:
            status = block_device_discard(guests->device, granule, count, 0);
            break;
        case 1:
            status = block_device_write_zeroes(guests->device, granule, count, 0);
            break;
        case 2:
            status = block_device_write_zeroes(guests->device, granule + 512, GRANULE, 0);
            break;
        default:
            status = block_device_pwrite(guests->device, bytes, granule + 1024, sizeof(bytes), 0);
            break;
        }
        g_assert_cmpint(status, ==, 0);
    }
    return NULL;
}

static void assert_zeroes_are_true(struct rig *rig)
{
    AUTO(dirty_bitmap) zeroes = NULL;
    AUTO(dirty_bitmap)
    changes = tracking_changes_with_zeroes(rig->tracker, "start", &zeroes, NULL);
    uint64_t offset = 0, bytes;

    g_assert_nonnull(changes);
    while (dirty_bitmap_next_range(zeroes, offset, DISK, UINT64_MAX, &offset, &bytes)) {
        test_assert_filled(memory_disk_data(rig->root) + offset, 0, bytes);
        offset += bytes;
    }
}

static void test_races(const void *driver)
{
    struct rig *rig = rig_new(driver);
    struct guests guests = {.device = rig->device, .seed = test_seed()};
    pthread_t threads[GUESTS];

    for (unsigned i = 0; i < GUESTS; i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, use_disk, &guests), ==, 0);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        g_usleep(1000);
        AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);
        assert_zeroes_are_true(rig);
        if (i % 8 == 7) {
            g_autofree char *name = g_strdup_printf("c%u", i);

            add(rig, name);
        }
    }
    atomic_store(&guests.are_over, true);
    for (unsigned i = 0; i < GUESTS; i++) {
        pthread_join(threads[i], NULL);
    }
    rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    real_io = tracking_io;
#define ADD(name, function) g_test_add_func("/tracking-zeroes/" name, function)
    ADD("whole-granules-that-were-zeroed-and-not-written-since-are-zeroes", test_zeroes);
    ADD("zeroing-that-failed-leaves-data-even-of-zeroes", test_failed_zeroes);
    ADD("a-discard-that-promises-nothing-leaves-data-even-of-zeroes", test_discard);
    ADD("a-discard-that-can-be-zeroes-is", test_promised_discard);
    ADD("a-discard-whose-zeroes-were-refused-leaves-data", test_refused_promise);
    ADD("a-discard-that-is-ignored-makes-no-zeroes", test_ignored_discard);
    ADD("an-epoch-that-could-not-be-flushed-does-not-end-and-is-doubted", test_failed_flush);
#undef ADD
    g_test_add_data_func("/tracking-zeroes/what-is-said-to-be-zero-is-whatever-guests-do-at-once",
                         "memory-device", test_races);
    g_test_add_data_func("/tracking-zeroes/the-same-where-discards-are-zeroes", "memory-unmaps",
                         test_races);
    g_test_add_data_func("/tracking-zeroes/a-killed-process-has-zeroes-of-ended-epochs-only", NULL,
                         test_crash);
    g_test_add_data_func("/tracking-zeroes/a-power-loss-leaves-no-zeroes-in-active-extents",
                         "power", test_crash);
    return g_test_run();
}
