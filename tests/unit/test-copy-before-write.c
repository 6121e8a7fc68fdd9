/* SPDX-License-Identifier: BSD-3-Clause */
/* The drivers copy-before-write and snapshot-access: what QMP's users build snapshots from. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "formats/copy-before-write.h"
#include "formats/formats.h"
#include "formats/snapshot-access.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"

#define LENGTH (2 * MIB + 3 * 512)
#define UNIT   4096

/* A disk and scratch, both with a fault layer, and what the disk held at first. */
struct fixture {
    char *directory;
    char *scratch_path;
    struct block_node *disk;
    struct block_node *scratch;
    uint8_t *old;
    uint8_t *buffer;
};

static struct block_node *open_file(const char *path, const char *name, uint64_t length)
{
    test_make_file(path, length);
    return test_open("driver=fault,node-name=%s,discard=unmap,file.driver=file,file.filename=%s",
                     name, path);
}

/* The first MiB holds data but for a hole in its middle, the second nothing but one unit. */
static void set_up(struct fixture *fixture, const void *data)
{
    fixture->directory = test_directory_new(true);
    g_autofree char *path = test_path(fixture->directory, "disk");
    fixture->scratch_path = test_path(fixture->directory, "scratch");
    fixture->disk = open_file(path, "disk", LENGTH);
    fixture->scratch = open_file(fixture->scratch_path, "scratch", LENGTH);
    fixture->old = g_malloc0(LENGTH);
    fixture->buffer = g_malloc(LENGTH);
    for (uint64_t i = 0; i < MIB; i++) {
        fixture->old[i] = (uint8_t)(i / 512 * 7 + i % 251) | 1;
    }
    memset(fixture->old + 256 * KIB, 0, 256 * KIB);
    memset(fixture->old + MIB + 64 * KIB, 0x77, UNIT);
    for (uint64_t offset = 0; offset < LENGTH; offset += 512) {
        if (fixture->old[offset]) {
            g_assert_cmpint(block_node_pwrite(fixture->disk, fixture->old + offset, offset, 512, 0),
                            ==, 0);
        }
    }
}

static void tear_down(struct fixture *fixture, const void *data)
{
    /* Nobody claims either, and no notifier is left. */
    g_assert_true(TAILQ_EMPTY(&fixture->disk->claims));
    g_assert_true(TAILQ_EMPTY(&fixture->scratch->claims));
    g_assert_null(fixture->disk->notifiers);
    g_assert_cmpint(fixture->disk->references, ==, 1);
    g_assert_cmpint(fixture->scratch->references, ==, 1);
    block_node_unref(fixture->disk);
    block_node_unref(fixture->scratch);
    g_free(fixture->old);
    g_free(fixture->buffer);
    g_free(fixture->scratch_path);
    test_directory_free(fixture->directory);
}

static struct block_node *open_filter(const char *more)
{
    return test_open("driver=copy-before-write,node-name=cbw,file=disk,target=scratch,"
                     "discard=unmap%s%s",
                     *more ? "," : "", more);
}

static struct block_node *open_snapshot(void)
{
    return test_open("driver=snapshot-access,node-name=snap,file=cbw,discard=unmap");
}

static void assert_holds(struct fixture *fixture, struct block_node *node, const uint8_t *expected)
{
    memset(fixture->buffer, 0xcc, LENGTH);
    g_assert_cmpint(block_node_pread(node, fixture->buffer, 0, LENGTH, 0), ==, 0);
    g_assert_cmpmem(fixture->buffer, LENGTH, expected, LENGTH);
}

/* Changes of all kinds, sizes and alignments; the model in new follows. */
static void change(struct block_node *node, uint8_t *new)
{
    static const struct {
        enum block_operation operation;
        uint64_t offset, bytes;
    } changes[] = {
        {BLOCK_OPERATION_WRITE, 0, 512},
        {BLOCK_OPERATION_WRITE, 5000, 3},
        {BLOCK_OPERATION_WRITE, 100 * KIB + 100, 70000},
        {BLOCK_OPERATION_WRITE, 250 * KIB, 20 * KIB}, /* into the hole */
        {BLOCK_OPERATION_WRITE_ZEROES, 600 * KIB, 100 * KIB},
        {BLOCK_OPERATION_WRITE_ZEROES, 801 * KIB, 700},
        {BLOCK_OPERATION_DISCARD, 900 * KIB, 64 * KIB},
        {BLOCK_OPERATION_WRITE, MIB + 32 * KIB, 64 * KIB},
        {BLOCK_OPERATION_WRITE, LENGTH - 700, 700}, /* the short unit at the end */
        {BLOCK_OPERATION_WRITE, 0, 1024},           /* again */
        {BLOCK_OPERATION_WRITE, 610 * KIB, KIB},    /* over zeroes that are new */
    };
    uint8_t data[128 * KIB];

    for (size_t i = 0; i < G_N_ELEMENTS(changes); i++) {
        uint64_t offset = changes[i].offset, bytes = changes[i].bytes;

        memset(data, (int)(0x80 + i), bytes);
        if (changes[i].operation == BLOCK_OPERATION_WRITE) {
            g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, 0), ==, 0);
            memcpy(new + offset, data, bytes);
        } else if (changes[i].operation == BLOCK_OPERATION_WRITE_ZEROES) {
            g_assert_cmpint(block_node_write_zeroes(node, offset, bytes, 0), ==, 0);
            memset(new + offset, 0, bytes);
        } else {
            g_assert_cmpint(block_node_discard(node, offset, bytes), ==, 0);
            memset(new + offset, 0, bytes); /* a discarded file range reads as zeroes */
        }
    }
}

/* A fresh copy of the first contents to model changes on. */
static uint8_t *model_of(const struct fixture *fixture)
{
    return g_memdup2(fixture->old, LENGTH);
}

/* ---- What is shown -------------------------------------------------------------------------- */

static void test_old_data(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *new = model_of(fixture);
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();

    assert_holds(fixture, snapshot, fixture->old);
    change(filter, new);
    assert_holds(fixture, filter, new);
    assert_holds(fixture, fixture->disk, new);
    assert_holds(fixture, snapshot, fixture->old);
    g_assert_cmpint(block_node_flush(filter), ==, 0);
    g_assert_cmpuint(block_node_length(snapshot), ==, LENGTH);
    g_assert_true(block_node_is_read_only(snapshot));
    /* Any range, in any order. */
    for (uint64_t offset = LENGTH; offset > 70000; offset -= 65537) {
        g_assert_cmpint(block_node_pread(snapshot, fixture->buffer, offset - 3333, 3333, 0), ==, 0);
        g_assert_cmpmem(fixture->buffer, 3333, fixture->old + offset - 3333, 3333);
    }
}

/* The moment is the filter's opening, not that of the first reader; and who writes past it counts.
 */
static void test_past_the_filter(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *new = model_of(fixture);
    AUTO(block_node) filter = open_filter("");

    change(fixture->disk, new);
    AUTO(block_node) snapshot = open_snapshot();
    assert_holds(fixture, filter, new);
    assert_holds(fixture, snapshot, fixture->old);
}

static void test_two_moments(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *between = model_of(fixture);
    g_autofree char *path = test_path(fixture->directory, "scratch2");
    AUTO(block_node) scratch = open_file(path, "scratch2", LENGTH);
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();

    change(filter, between);
    g_autofree uint8_t *new = g_memdup2(between, LENGTH);
    AUTO(block_node)
    later = test_open("driver=copy-before-write,node-name=later,file=cbw,target=scratch2");
    AUTO(block_node) later_snapshot = test_open("driver=snapshot-access,file=later");
    memset(fixture->buffer, 0x11, LENGTH);
    g_assert_cmpint(block_node_pwrite(later, fixture->buffer, 3, LENGTH - 3, 0), ==, 0);
    memset(new + 3, 0x11, LENGTH - 3);
    assert_holds(fixture, fixture->disk, new);
    assert_holds(fixture, snapshot, fixture->old);
    assert_holds(fixture, later_snapshot, between);
    /* The earlier one outlives the later one. */
    block_node_unref(STEAL(later_snapshot));
    block_node_unref(STEAL(later));
    assert_holds(fixture, snapshot, fixture->old);
}

/* The flags of each unit of the disk, as a reader sees them. */
static void map_of(struct block_node *node, uint8_t *flags)
{
    for (uint64_t offset = 0; offset < LENGTH;) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status_chain(node, offset, LENGTH - offset, &extent, NULL),
                        ==, 0);
        for (uint64_t end = offset + extent.bytes; offset < end; offset += UNIT) {
            flags[offset / UNIT] = (uint8_t)(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO |
                                                             BLOCK_STATUS_ALLOCATED));
        }
        offset = MIN_OF(offset, LENGTH);
    }
}

static void test_holes(struct fixture *fixture, const void *data)
{
    uint8_t before[LENGTH / UNIT + 1], after[LENGTH / UNIT + 1];
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();

    map_of(snapshot, before);
    g_assert_cmpint(before[0], &, BLOCK_STATUS_DATA);
    g_assert_cmpint(before[300 * KIB / UNIT], ==, BLOCK_STATUS_ZERO); /* not allocated */
    g_assert_cmpint(before[(MIB + 64 * KIB) / UNIT], &, BLOCK_STATUS_DATA);
    memset(fixture->buffer, 0x99, LENGTH);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, LENGTH, 0), ==, 0);
    map_of(snapshot, after);
    for (size_t i = 0; i < sizeof(after); i++) {
        /* What was a hole is one; what was data is no hole. */
        g_assert_cmpint(after[i] == BLOCK_STATUS_ZERO, ==, before[i] == BLOCK_STATUS_ZERO);
    }
    assert_holds(fixture, snapshot, fixture->old);
    /* Holes cost no scratch. */
    block_node_unref(STEAL(snapshot));
    struct point_in_time_info info;
    point_in_time_get_info(copy_before_write_point(filter), &info);
    g_assert_cmpuint(info.saved_bytes, ==, 768 * KIB + UNIT);
}

/* ---- When old data cannot be kept ----------------------------------------------------------- */

static void test_break_guest_write(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *new = model_of(fixture);
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();

    FAULT(fixture->scratch, .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    memset(fixture->buffer, 0x22, 64 * KIB);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, 64 * KIB, 0), ==, -EIO);
    g_assert_cmpint(block_node_write_zeroes(filter, 0, 512, 0), ==, -EIO);
    g_assert_cmpint(block_node_discard(filter, 0, 64 * KIB), ==, -EIO);
    assert_holds(fixture, filter, fixture->old);
    assert_holds(fixture, snapshot, fixture->old);
    /* What was zero needs no scratch; and when there is room again, all goes on. */
    memset(fixture->buffer, 0x22, UNIT);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 300 * KIB, UNIT, 0), ==, 0);
    memset(new + 300 * KIB, 0x22, UNIT);
    fault_clear(fixture->scratch);
    change(filter, new);
    assert_holds(fixture, filter, new);
    assert_holds(fixture, snapshot, fixture->old);
}

static void test_break_snapshot(struct fixture *fixture, const void *data)
{
    AUTO(block_node) filter = open_filter("on-cbw-error=break-snapshot");
    AUTO(block_node) snapshot = open_snapshot();
    struct point_in_time *point = copy_before_write_point(filter);
    struct block_extent extent;
    uint8_t byte;

    FAULT(fixture->scratch, .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    memset(fixture->buffer, 0x22, 64 * KIB);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*Node 'cbw': its snapshot broke*");
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, 64 * KIB, 0), ==, 0);
    while (!point_in_time_is_broken(point, NULL)) { /* scratch is written behind the guest */
        g_usleep(1000);
    }
    g_assert_cmpint(block_node_pread(snapshot, &byte, 0, 1, 0), ==, -EIO);
    g_assert_cmpint(block_node_pread(snapshot, &byte, MIB, 1, 0), ==, -EIO);
    g_assert_cmpint(block_node_block_status(snapshot, MIB, 1, &extent), ==, -EIO);
    g_assert_cmpint(block_node_discard(snapshot, 0, UNIT), ==, -EIO);
    /* For ever, while the guest goes on. */
    fault_clear(fixture->scratch);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, MIB, 64 * KIB, 0), ==, 0);
    g_assert_cmpint(block_node_pread(snapshot, &byte, 0, 1, 0), ==, -EIO);
    g_assert_cmpint(block_node_pread(filter, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpuint(byte, ==, 0x22);
    g_test_assert_expected_messages();
}

static void test_timeout(struct fixture *fixture, const void *data)
{
    AUTO(block_node) filter = open_filter("cbw-timeout=1");
    AUTO(block_node) snapshot = open_snapshot();

    FAULT(fixture->scratch, .operations = FAULT_ON_CHANGES, .hold = true);
    memset(fixture->buffer, 0x22, UNIT);
    int64_t start_ns = clock_now_ns();
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, UNIT, 0), ==, -EIO);
    g_assert_cmpint(clock_now_ns() - start_ns, >=, NS_PER_SECOND);
    fault_clear(fixture->scratch);
    assert_holds(fixture, filter, fixture->old);
    assert_holds(fixture, snapshot, fixture->old);
}

/* ---- Giving up ------------------------------------------------------------------------------ */

static void test_discard(struct fixture *fixture, const void *data)
{
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();
    struct block_extent extent;
    uint8_t byte;

    memset(fixture->buffer, 0x33, LENGTH);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, LENGTH, 0), ==, 0);
    uint64_t allocated = test_allocated(fixture->scratch_path);
    g_assert_cmpuint(allocated, >=, 768 * KIB);
    /* From the middle of a unit on: that unit stays. */
    g_assert_cmpint(block_node_discard(snapshot, 100, 256 * KIB - 100), ==, 0);
    g_assert_cmpuint(test_allocated(fixture->scratch_path), ==, allocated - 256 * KIB + UNIT);
    g_assert_cmpint(block_node_pread(snapshot, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpuint(byte, ==, fixture->old[0]);
    g_assert_cmpint(block_node_pread(snapshot, &byte, UNIT, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_block_status(snapshot, UNIT, UNIT, &extent), ==, -EINVAL);
    g_assert_cmpint(block_node_pread(snapshot, fixture->buffer, 512 * KIB, LENGTH - 512 * KIB, 0),
                    ==, 0);
    g_assert_cmpmem(fixture->buffer, LENGTH - 512 * KIB, fixture->old + 512 * KIB,
                    LENGTH - 512 * KIB);
    /* A snapshot is not written. */
    g_assert_cmpint(block_node_pwrite(snapshot, &byte, 0, 1, 0), ==, -EPERM);
    g_assert_cmpint(block_node_write_zeroes(snapshot, 0, UNIT, 0), ==, -EPERM);
    g_assert_cmpint(block_node_discard(snapshot, LENGTH - 1, 2), ==, -EINVAL);
}

static void test_discard_ignored(struct fixture *fixture, const void *data)
{
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = test_open("driver=snapshot-access,file=cbw");

    g_assert_cmpint(block_node_discard(snapshot, 0, LENGTH), ==, 0);
    assert_holds(fixture, snapshot, fixture->old);
}

/* ---- Part of a disk ------------------------------------------------------------------------- */

struct bitmap_of {
    struct block_node *node;
    struct dirty_bitmap *bitmap;
};

static void add_bitmap(void *data)
{
    struct bitmap_of *of = data;

    block_node_add_bitmap(of->node, of->bitmap);
}

static struct dirty_bitmap *new_bitmap(struct block_node *node, const char *name, uint64_t length)
{
    struct bitmap_of of = {node, dirty_bitmap_new(name, length, 64 * KIB, NULL)};

    main_loop_call_wait(add_bitmap, &of);
    return of.bitmap; /* the node's */
}

static void test_bitmap(struct fixture *fixture, const void *data)
{
    struct dirty_bitmap *bitmap = new_bitmap(fixture->disk, "b", LENGTH);
    struct point_in_time_info info;
    struct block_extent extent;
    uint8_t byte;

    dirty_bitmap_set(bitmap, 64 * KIB, 1);
    dirty_bitmap_set(bitmap, LENGTH - 1, 1);
    AUTO(block_node) filter = open_filter("bitmap.node=disk,bitmap.name=b");
    AUTO(block_node) snapshot = open_snapshot();
    /* The bits are those of the moment: the bitmap goes on, and this sets them all. */
    memset(fixture->buffer, 0x44, LENGTH);
    g_assert_cmpint(block_node_pwrite(filter, fixture->buffer, 0, LENGTH, 0), ==, 0);
    point_in_time_get_info(copy_before_write_point(filter), &info);
    g_assert_cmpuint(info.saved_bytes, ==, 64 * KIB); /* the disk's end was a hole */
    g_assert_cmpint(block_node_pread(snapshot, fixture->buffer, 64 * KIB, 64 * KIB, 0), ==, 0);
    g_assert_cmpmem(fixture->buffer, 64 * KIB, fixture->old + 64 * KIB, 64 * KIB);
    g_assert_cmpint(block_node_pread(snapshot, &byte, LENGTH - 1, 1, 0), ==, 0);
    g_assert_cmpuint(byte, ==, 0);
    g_assert_cmpint(block_node_pread(snapshot, &byte, 64 * KIB - 1, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_pread(snapshot, &byte, 128 * KIB, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_block_status(snapshot, 0, UNIT, &extent), ==, -EINVAL);
}

/* ---- Guests that come and go ---------------------------------------------------------------- */

static void move_to(struct block_device *device, struct block_node *root)
{
    AUTO(block_node) old = block_device_root(device);
    struct block_node *const nodes[] = {old, root};
    AUTO(block_drain) drain = block_drain_begin(nodes, 2, BLOCK_PERM_ALL);

    test_set_root(device, root);
}

static void write_guest(struct block_device *device, uint64_t offset, uint8_t byte, uint8_t *new)
{
    uint8_t data[3000];

    memset(data, byte, sizeof(data));
    g_assert_cmpint(block_device_pwrite(device, data, offset, sizeof(data), 0), ==, 0);
    memcpy(new + offset, data, sizeof(data));
}

/* As a backup tool does it: the guest is on the filter while the snapshot is read, or is not. */
static void test_moving_guest(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *new = model_of(fixture);
    struct block_device *device = block_device_new("vda", fixture->disk, NULL);
    AUTO(block_node) filter = open_filter("");

    write_guest(device, 1000, 0x40, new);
    move_to(device, filter);
    write_guest(device, 9000, 0x41, new);
    AUTO(block_node) snapshot = open_snapshot();
    assert_holds(fixture, snapshot, fixture->old);
    write_guest(device, 50000, 0x42, new);
    move_to(device, fixture->disk);
    write_guest(device, 70000, 0x43, new);
    assert_holds(fixture, snapshot, fixture->old);
    assert_holds(fixture, fixture->disk, new);
    g_assert_cmpint(block_device_remove(device), ==, 0);
}

/* ---- A device over it ----------------------------------------------------------------------- */

static void count_io_errors(const struct event *event, void *data)
{
    unsigned *count = data;

    *count += g_str_equal(event->name, "BLOCK_IO_ERROR");
}

static void add_listener(void *data)
{
    event_add_listener(count_io_errors, data);
}

static void remove_listener(void *data)
{
    event_remove_listener(count_io_errors, data);
}

/* What views are read through: no guest's disk, and if it may be, emptied although read-only. */
static void test_unlisted_device(struct fixture *fixture, const void *data)
{
    AUTO(block_node) filter = open_filter("");
    AUTO(block_node) snapshot = open_snapshot();
    struct block_device *view = block_device_new_unlisted("vda@x", snapshot, true, NULL);
    struct block_device *strict = block_device_new_unlisted("vda@x", snapshot, false, NULL);
    struct block_device **list = block_device_list();
    unsigned errors = 0;
    uint8_t byte;

    g_assert_null(list[0]);
    block_device_list_free(list);
    g_assert_null(block_device_find("vda@x"));
    g_assert_true(block_device_takes_discards(view) && !block_device_takes_discards(strict));
    g_assert_cmpint(block_device_discard(strict, 0, UNIT, 0), ==, -EPERM);
    g_assert_cmpint(block_device_pwrite(view, &byte, 0, 1, 0), ==, -EPERM);
    g_assert_cmpint(block_device_write_zeroes(view, 0, UNIT, 0), ==, -EPERM);
    g_assert_cmpint(block_device_discard(view, 0, UNIT, 0), ==, 0);
    /* Stop is for guests, and so is the event of an error. */
    main_loop_call_wait(add_listener, &errors);
    block_device_stop_all();
    g_assert_cmpint(block_device_pread(view, &byte, 0, 1), ==, -EINVAL);
    g_assert_cmpint(block_device_pread(view, &byte, UNIT, 1), ==, 0);
    block_device_continue_all();
    main_loop_call_wait(remove_listener, &errors);
    g_assert_cmpuint(errors, ==, 0);
    g_assert_cmpint(block_device_remove(view), ==, 0);
    g_assert_cmpint(block_device_remove(strict), ==, 0);
}

/* ---- Refusals ------------------------------------------------------------------------------- */

#define ASSERT_REFUSED(word, ...)                                                                  \
    do {                                                                                           \
        g_autofree char *message = test_open_error(__VA_ARGS__);                                   \
        if (!strstr(message, word)) {                                                              \
            g_error("'%s' is not in: %s", word, message);                                          \
        }                                                                                          \
    } while (0)

static void test_refusals(struct fixture *fixture, const void *data)
{
    g_autofree char *short_path = test_path(fixture->directory, "short");
    AUTO(block_node) short_scratch = open_file(short_path, "short", LENGTH - 512);
    g_autoptr(GError) error = NULL;

    ASSERT_REFUSED("shorter", "driver=copy-before-write,file=disk,target=short");
    ASSERT_REFUSED("cannot be the same", "driver=copy-before-write,file=disk,target=disk");
    ASSERT_REFUSED("cbw-timeout",
                   "driver=copy-before-write,file=disk,target=scratch,cbw-timeout=2147483648");
    ASSERT_REFUSED("break-disk",
                   "driver=copy-before-write,file=disk,target=scratch,on-cbw-error=break-disk");
    new_bitmap(fixture->scratch, "longer", LENGTH + 512);
    ASSERT_REFUSED("'bitmap.name' is missing",
                   "driver=copy-before-write,file=disk,target=scratch,bitmap.node=disk");
    ASSERT_REFUSED("'bitmap.node' is missing",
                   "driver=copy-before-write,file=disk,target=scratch,bitmap.name=b");
    ASSERT_REFUSED("Node 'none' not found", "driver=copy-before-write,file=disk,target=scratch,"
                                            "bitmap.node=none,bitmap.name=b");
    ASSERT_REFUSED("Dirty bitmap 'b' not found", "driver=copy-before-write,file=disk,"
                                                 "target=scratch,bitmap.node=disk,bitmap.name=b");
    ASSERT_REFUSED("The bitmap covers", "driver=copy-before-write,file=disk,target=scratch,"
                                        "bitmap.node=scratch,bitmap.name=longer");
    ASSERT_REFUSED("'target' is missing", "driver=copy-before-write,file=disk");
    ASSERT_REFUSED("'copy-before-write'", "driver=snapshot-access,file=disk");

    AUTO(block_node) filter = open_filter("");
    /* Scratch is the filter's alone; a second one cannot have it, and nobody can write it. */
    ASSERT_REFUSED("node 'cbw'", "driver=copy-before-write,file=disk,target=scratch");
    g_assert_null(block_device_new("vdb", fixture->scratch, NULL));
    /* The length stays as it is, above and below. */
    g_assert_cmpint(block_node_check_resize(filter, &error), ==, -EBUSY);
    g_assert_nonnull(strstr(error->message, "node 'cbw'"));
    g_assert_cmpint(block_node_check_resize(fixture->disk, NULL), ==, -EBUSY);
}

/* One byte saves a whole unit, the disk's end part of one, and nothing is saved twice. */
static void test_min_cluster_size(struct fixture *fixture, const void *data)
{
    g_autofree uint8_t *new = model_of(fixture);
    AUTO(block_node) filter = open_filter("min-cluster-size=65536");
    AUTO(block_node) snapshot = open_snapshot();
    struct point_in_time_info info;

    new[100 * KIB] ^= 0xff;
    g_assert_cmpint(block_node_pwrite(filter, new + 100 * KIB, 100 * KIB, 1, 0), ==, 0);
    point_in_time_get_info(copy_before_write_point(filter), &info);
    g_assert_cmpuint(info.saved_bytes, ==, 64 * KIB);
    change(filter, new);
    assert_holds(fixture, filter, new);
    assert_holds(fixture, snapshot, fixture->old);
    block_node_unref(STEAL(snapshot));
    block_node_unref(STEAL(filter));
    ASSERT_REFUSED("min-cluster-size needs to be a power of 2",
                   "driver=copy-before-write,file=disk,target=scratch,min-cluster-size=1000");
    /* Larger than the disk: all of it. */
    AUTO(block_node) whole = open_filter("min-cluster-size=4611686018427387904");
    AUTO(block_node) after = open_snapshot();
    g_assert_cmpint(block_node_pwrite(whole, fixture->old, LENGTH - 1, 1, 0), ==, 0);
    assert_holds(fixture, after, new);
}

static void test_read_only(struct fixture *fixture, const void *data)
{
    g_autofree char *path = test_path(fixture->directory, "disk");
    AUTO(block_node)
    disk = test_open("driver=file,node-name=ro,filename=%s,read-only=on,locking=off", path);

    ASSERT_REFUSED("'ro' is read-only", "driver=copy-before-write,file=ro,target=scratch");
    ASSERT_REFUSED("read-only", "driver=copy-before-write,file=disk,target=ro");
    /* A disk that nobody may write can have a snapshot, for what it is worth. */
    AUTO(block_node)
    filter = test_open("driver=copy-before-write,node-name=cbw,read-only=on,file=ro,"
                       "target=scratch");
    AUTO(block_node) snapshot = test_open("driver=snapshot-access,file=cbw,read-only=on");
    assert_holds(fixture, snapshot, fixture->old);
}

#define TEST(name, function)                                                                       \
    g_test_add("/copy-before-write/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    g_assert_cmpint(main_loop_start(), ==, 0);
    TEST("shows-old-data", test_old_data);
    TEST("sees-writes-past-it", test_past_the_filter);
    TEST("two-moments", test_two_moments);
    TEST("holes-stay-holes", test_holes);
    TEST("break-guest-write", test_break_guest_write);
    TEST("break-snapshot", test_break_snapshot);
    TEST("timeout", test_timeout);
    TEST("discard-frees-scratch", test_discard);
    TEST("discard-may-be-ignored", test_discard_ignored);
    TEST("part-of-a-disk", test_bitmap);
    TEST("guests-come-and-go", test_moving_guest);
    TEST("no-guest-reads-it", test_unlisted_device);
    TEST("refusals", test_refusals);
    TEST("read-only", test_read_only);
    TEST("min-cluster-size", test_min_cluster_size);
    int status = g_test_run();
    main_loop_stop();
    return status;
}
