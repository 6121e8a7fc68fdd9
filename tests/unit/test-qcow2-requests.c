/* SPDX-License-Identifier: BSD-3-Clause */
/* How many requests a request to a qcow2 image becomes in the file below: no more than needed. */
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"

#define CLUSTER (64 * KIB)
#define LENGTH  (8 * MIB)

/* An image in memory, open; its backing file, if it has one, is all of one byte. */
struct world {
    struct block_node *file, *backing, *node;
};

#define BACKING_BYTE 0xba

static struct world world_new(const char *create_options, bool has_backing)
{
    struct world world = {.file = test_open("driver=memory,node-name=file,size=0")};

    test_create_image("driver=qcow2,file=file,size=%" PRIu64 "%s", LENGTH, create_options);
    if (has_backing) {
        world.backing = test_open("driver=memory,node-name=base,size=%" PRIu64, LENGTH);
        memset(memory_disk_data(world.backing), BACKING_BYTE, LENGTH);
    }
    world.node = test_open("driver=qcow2,file=file%s", has_backing ? ",backing=base" : "");
    return world;
}

static void world_free(struct world *world)
{
    block_node_unref(world->node);
    block_node_unref(world->file);
    if (world->backing) {
        block_node_unref(world->backing);
    }
}

static void write_byte(struct world *world, uint64_t offset, uint64_t bytes, uint8_t byte)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    memset(buffer, byte, bytes);
    g_assert_cmpint(block_node_pwrite(world->node, buffer, offset, bytes, 0), ==, 0);
}

static void assert_reads(struct world *world, uint64_t offset, uint64_t bytes, uint8_t byte)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    g_assert_cmpint(block_node_pread(world->node, buffer, offset, bytes, 0), ==, 0);
    test_assert_filled(buffer, byte, bytes);
}

/* The table is there and cached, so that only data is read and written from now on. */
static void warm_up(struct world *world)
{
    write_byte(world, LENGTH - CLUSTER, CLUSTER, 1);
    g_assert_cmpint(block_node_flush(world->node), ==, 0);
    memory_disk_log(world->file);
}

/* The file has seen exactly these requests: "write 65536; read 4096", without their offsets. */
static void expect(struct block_node *file, const char *expected)
{
    g_autofree char *log = memory_disk_take_log(file);
    g_autoptr(GRegex) offsets = g_regex_new(" [0-9]+\\+", 0, 0, NULL);
    g_autofree char *seen = g_regex_replace_literal(offsets, log, -1, 0, " ", 0, NULL);

    g_assert_cmpstr(seen, ==, expected);
}

static void test_contiguous(void)
{
    struct world world = world_new("", false);

    warm_up(&world);
    write_byte(&world, 0, 16 * CLUSTER, 17); /* allocates */
    expect(world.file, "write 1048576");
    write_byte(&world, 0, 16 * CLUSTER, 18); /* in place */
    expect(world.file, "write 1048576");
    write_byte(&world, 1000, 10 * CLUSTER, 19);
    expect(world.file, "write 655360");
    assert_reads(&world, 1000, 10 * CLUSTER, 19);
    expect(world.file, "read 655360");
    assert_reads(&world, 12 * CLUSTER, 4 * CLUSTER, 18);
    expect(world.file, "read 262144");
    world_free(&world);
}

/* It is the place in the file that counts, not when a cluster got it. */
static void test_neighbours(void)
{
    struct world world = world_new("", false);

    warm_up(&world);
    for (uint64_t i = 0; i < 8; i++) {
        write_byte(&world, i * CLUSTER, CLUSTER, 7);
        expect(world.file, "write 65536");
    }
    assert_reads(&world, 0, 8 * CLUSTER, 7);
    expect(world.file, "read 524288");
    write_byte(&world, 0, 8 * CLUSTER, 8);
    expect(world.file, "write 524288");
    write_byte(&world, 20 * CLUSTER, CLUSTER, 9); /* what lies between them in the file */
    write_byte(&world, 9 * CLUSTER, CLUSTER, 9);
    write_byte(&world, 8 * CLUSTER, CLUSTER, 9);
    expect(world.file, "write 65536; write 65536; write 65536");
    assert_reads(&world, 8 * CLUSTER, 2 * CLUSTER, 9);
    expect(world.file, "read 65536; read 65536");
    world_free(&world);
}

/* A part of clusters is written with what has to be copied around it. */
static void test_copy_on_write(void)
{
    struct world world = world_new("", true);

    warm_up(&world);
    write_byte(&world, 10000, 4096, 1);
    expect(world.file, "write 65536");
    assert_reads(&world, 0, 10000, BACKING_BYTE);
    assert_reads(&world, 10000, 4096, 1);
    assert_reads(&world, 14096, CLUSTER - 14096, BACKING_BYTE);
    expect(world.file, "read 10000; read 4096; read 51440");
    write_byte(&world, 2 * CLUSTER + 30000, 100000, 2); /* the first and the last only in part */
    expect(world.file, "write 131072");
    assert_reads(&world, 2 * CLUSTER, 30000, BACKING_BYTE);
    assert_reads(&world, 2 * CLUSTER + 30000, 100000, 2);
    assert_reads(&world, 2 * CLUSTER + 130000, 2 * CLUSTER - 130000, BACKING_BYTE);
    world_free(&world);
}

/* The old cluster is a snapshot's: it is read once before and once behind the data. */
static void test_snapshot(void)
{
    struct block_snapshot_info info = {.name = (char *)(uintptr_t) "s", .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;
    struct world world = world_new("", false);

    write_byte(&world, 0, 4 * CLUSTER, 5);
    block_node_snapshot_create(world.node, &info, &error);
    g_assert_no_error(error);
    warm_up(&world);
    write_byte(&world, 10000, 4096, 6);
    expect(world.file, "read 10000; read 51440; write 65536");
    assert_reads(&world, 14096, CLUSTER - 14096, 5);
    world_free(&world);
}

/* Where there are to be zeroes around the data, and in a file that grows there are, nothing is
 * copied. */
static void test_no_copy(void)
{
    struct test_image image;

    test_image_make(&image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 %s %" PRIu64, image.path, LENGTH);
    struct world world = {
        .file =
            test_open("driver=fault,node-name=file,file.driver=file,file.filename=%s", image.path),
        .node = test_open("driver=qcow2,file=file"),
    };
    write_byte(&world, 5 * CLUSTER, CLUSTER, 1);
    uint64_t before = fault_bytes(world.file, FAULT_ON(WRITE) | FAULT_ON(WRITE_ZEROES));
    write_byte(&world, 10000, 4096, 1);
    g_assert_cmpuint(fault_bytes(world.file, FAULT_ON(WRITE) | FAULT_ON(WRITE_ZEROES)) - before, ==,
                     4096);
    assert_reads(&world, 14096, CLUSTER - 14096, 0);
    world_free(&world);
    test_image_remove(&image, NULL);
}

/* With subclusters of 2 KiB only the rest of these is copied. */
static void test_subclusters(void)
{
    struct world world = world_new(",extended-l2=on", true);

    warm_up(&world);
    write_byte(&world, 4096, 4096, 1);
    expect(world.file, "write 4096");
    write_byte(&world, 10000, 4096, 2);
    expect(world.file, "write 6144");
    assert_reads(&world, 8192, 10000 - 8192, BACKING_BYTE);
    assert_reads(&world, 10000, 4096, 2);
    assert_reads(&world, 14096, CLUSTER - 14096, BACKING_BYTE);
    world_free(&world);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    fault_driver_register();
    g_test_add_func("/qcow2-requests/contiguous-clusters-are-one-request", test_contiguous);
    g_test_add_func("/qcow2-requests/neighbours-in-the-file-are-one-request", test_neighbours);
    g_test_add_func("/qcow2-requests/what-is-copied-is-written-with-the-data", test_copy_on_write);
    g_test_add_func("/qcow2-requests/a-snapshots-cluster-is-copied-in-one-write", test_snapshot);
    g_test_add_func("/qcow2-requests/zeroes-around-data-are-not-copied", test_no_copy);
    g_test_add_func("/qcow2-requests/subclusters-are-copied-alone", test_subclusters);
    return g_test_run();
}
