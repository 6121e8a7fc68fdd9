/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver copy-on-read: what is read from backing files is kept in the top layer. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define LENGTH  (4 * MIB + 1536) /* ends inside a cluster */
#define CLUSTER (64 * KIB)
#define SECTOR  UINT64_C(512)

/*
 * base (clusters of 4 KiB) < middle < top (of 64 KiB) < copy-on-read, which is "cor". The top's
 * file is "fault". The base holds BASE_BYTE in its first 2 MiB but for one hole, the middle
 * MIDDLE_BYTE in the MiB after that.
 */
struct rig {
    struct block_node *files[3];
    struct block_node *fault, *base, *middle, *top, *cor;
    uint8_t *buffer;
};

#define BASE_BYTE   0xba
#define MIDDLE_BYTE 0x3d
#define HOLE        (512 * KIB) /* of a cluster of the top */

/* path: where the image is; NULL: in memory, for one thread. */
static struct block_node *create(const char *name, const char *path, const char *options)
{
    struct block_node *file = path ? test_open("driver=file,node-name=%s,filename=%s", name, path)
                                   : test_open("driver=memory,node-name=%s,size=0", name);

    test_create_image("driver=qcow2,file=%s,size=%" PRIu64 "%s", name, LENGTH, options);
    return file;
}

static void fill(struct rig *rig, struct block_node *node, uint64_t offset, uint64_t bytes,
                 uint8_t byte)
{
    memset(rig->buffer, byte, bytes);
    g_assert_cmpint(block_node_pwrite(node, rig->buffer, offset, bytes, 0), ==, 0);
}

static void set_up_with(struct rig *rig, const char *top_path, const char *top_options)
{
    rig->buffer = g_malloc(LENGTH);
    rig->files[0] = create("base-file", NULL, ",cluster-size=4096");
    rig->files[1] = create("middle-file", NULL, "");
    rig->files[2] = create("top-file", top_path, top_options);
    rig->fault = test_open("driver=fault,node-name=fault,file=top-file");
    rig->base = test_open("driver=qcow2,node-name=base,file=base-file");
    fill(rig, rig->base, 0, HOLE, BASE_BYTE);
    fill(rig, rig->base, HOLE + CLUSTER, 2 * MIB - HOLE - CLUSTER, BASE_BYTE);
    rig->middle = test_open("driver=qcow2,node-name=middle,file=middle-file,backing=base");
    fill(rig, rig->middle, 2 * MIB, MIB, MIDDLE_BYTE);
    rig->top = test_open("driver=qcow2,node-name=top,discard=unmap,file=fault,backing=middle");
}

static void set_up(struct rig *rig, const char *more)
{
    set_up_with(rig, NULL, "");
    rig->cor = test_open("driver=copy-on-read,node-name=cor,discard=unmap,file=top%s", more);
}

static void tear_down(struct rig *rig)
{
    if (rig->cor) {
        block_node_unref(rig->cor);
    }
    g_assert_true(TAILQ_EMPTY(&rig->top->claims));
    block_node_unref(rig->top);
    block_node_unref(rig->fault);
    block_node_unref(rig->middle);
    block_node_unref(rig->base);
    for (unsigned i = 0; i < 3; i++) {
        block_node_unref(rig->files[i]);
    }
    g_free(rig->buffer);
}

static uint8_t expected_byte(uint64_t at)
{
    if (at < 2 * MIB) {
        return at >= HOLE && at < HOLE + CLUSTER ? 0 : BASE_BYTE;
    }
    return at < 3 * MIB ? MIDDLE_BYTE : 0;
}

static void assert_reads(struct rig *rig, struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_assert_cmpint(block_node_pread(node, rig->buffer, offset, bytes, 0), ==, 0);
    for (uint64_t i = 0; i < bytes; i++) {
        g_assert_cmphex(rig->buffer[i], ==, expected_byte(offset + i));
    }
}

/* How many bytes of a range the top has itself. */
static uint64_t kept(struct rig *rig, uint64_t offset, uint64_t end)
{
    uint64_t sum = 0;

    while (offset < end) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status(rig->top, offset, end - offset, &extent), ==, 0);
        sum += extent.flags & BLOCK_STATUS_ALLOCATED ? extent.bytes : 0;
        offset += extent.bytes;
    }
    return sum;
}

/* ---- What is kept --------------------------------------------------------------------------- */

static void test_whole_clusters(void)
{
    struct rig rig = {0};

    set_up(&rig, "");
    assert_reads(&rig, rig.cor, CLUSTER + 1000, 100);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, CLUSTER);
    g_assert_cmpuint(kept(&rig, CLUSTER, 2 * CLUSTER), ==, CLUSTER);
    unsigned reads = memory_disk_count(rig.files[0], BLOCK_OPERATION_READ);
    assert_reads(&rig, rig.cor, CLUSTER, CLUSTER);
    g_assert_cmpuint(memory_disk_count(rig.files[0], BLOCK_OPERATION_READ), ==, reads);
    assert_reads(&rig, rig.cor, 4 * CLUSTER - 1, 2);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 3 * CLUSTER);
    assert_reads(&rig, rig.top, 0, LENGTH); /* past the filter */
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 3 * CLUSTER);
    tear_down(&rig);
}

/* All data of two layers, but no zeroes; then it is not read from there any more. */
static void test_all(void)
{
    struct rig rig = {0};

    set_up(&rig, "");
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 3 * MIB - CLUSTER);
    g_assert_cmpuint(kept(&rig, HOLE, HOLE + CLUSTER), ==, 0);
    fill(&rig, rig.middle, 0, HOLE, 1);
    fill(&rig, rig.middle, HOLE + CLUSTER, 3 * MIB - HOLE - CLUSTER, 1);
    assert_reads(&rig, rig.cor, 0, LENGTH);
    tear_down(&rig);
}

static void test_subclusters(void)
{
    struct rig rig = {0};

    set_up_with(&rig, NULL, ",extended-l2=on");
    rig.cor = test_open("driver=copy-on-read,node-name=cor,file=top");
    fill(&rig, rig.top, 4096, 2048, BASE_BYTE);
    assert_reads(&rig, rig.cor, 0, 100);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, CLUSTER);
    assert_reads(&rig, rig.cor, 0, LENGTH);
    tear_down(&rig);
}

static void test_bottom(void)
{
    struct rig rig = {0};

    set_up(&rig, ",bottom=middle");
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, MIB);
    g_assert_cmpuint(kept(&rig, 2 * MIB, 3 * MIB), ==, MIB);
    block_node_unref(STEAL(rig.cor));
    rig.cor = test_open("driver=copy-on-read,node-name=cor,file=top,bottom=top");
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, MIB);
    tear_down(&rig);
}

/* What would be copied then is not known. */
static void test_lost_bottom(void)
{
    g_autoptr(GError) error = NULL;
    struct rig rig = {0};

    set_up(&rig, ",bottom=middle");
    block_node_set_backing(rig.top, rig.base, NULL, &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_pread(rig.cor, rig.buffer, 0, LENGTH, 0), ==, 0);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 0);
    block_node_set_backing(rig.top, rig.middle, NULL, &error);
    g_assert_no_error(error);
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, MIB);
    tear_down(&rig);
}

static void test_writes(void)
{
    struct rig rig = {0};

    set_up(&rig, "");
    fill(&rig, rig.cor, 10 * CLUSTER, CLUSTER, BASE_BYTE);
    g_assert_cmpint(block_node_write_zeroes(rig.cor, HOLE, CLUSTER, 0), ==, 0);
    g_assert_cmpint(block_node_flush(rig.cor), ==, 0);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 2 * CLUSTER);
    assert_reads(&rig, rig.cor, 0, LENGTH);
    tear_down(&rig);
}

/* ---- What goes wrong ------------------------------------------------------------------------ */

static void test_errors(void)
{
    struct rig rig = {0};

    set_up(&rig, "");
    FAULT(rig.fault, .operations = FAULT_ON(WRITE), .error_number = ENOSPC);
    assert_reads(&rig, rig.cor, 0, LENGTH);
    assert_reads(&rig, rig.cor, 100, 1000);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 0);
    fault_clear(rig.fault);
    assert_reads(&rig, rig.cor, 100, 1000);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, CLUSTER);
    tear_down(&rig);
}

/* A read fails for what is asked for, not for what else is in the cluster. */
static void test_bad_neighbour(void)
{
    struct rig rig = {0};

    set_up(&rig, "");
    memory_disk_fail(rig.files[0], BLOCK_OPERATION_READ, -EIO, 0, 1);
    assert_reads(&rig, rig.cor, 100, 1000);
    memory_disk_fail(rig.files[0], BLOCK_OPERATION_READ, -EIO, 0, 2);
    g_assert_cmpint(block_node_pread(rig.cor, rig.buffer, 100, 1000, 0), ==, -EIO);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 0);
    tear_down(&rig);
}

static void expect_error(const char *options, const char *expected)
{
    g_autofree char *said = test_open_error("driver=copy-on-read,node-name=bad%s", options);

    g_assert_cmpstr(said, ==, expected);
}

static void test_refusals(void)
{
    struct rig rig = {0};

    set_up_with(&rig, NULL, "");
    AUTO(block_node) filter = test_open("driver=memory-filter,node-name=filter,file=top");
    expect_error(",file=top,bottom=nobody", "Bottom node 'nobody' not found");
    expect_error(",file=top,bottom=filter", "Bottom node 'filter' is a filter");
    expect_error(",file=middle,bottom=top", "Bottom node 'top' is not in the chain below 'middle'");
    block_node_unref(STEAL(filter));
    block_node_unref(rig.top);
    rig.top = test_open("driver=qcow2,node-name=top,read-only=on,file=fault,backing=middle");
    expect_error(",file=top",
                 "Block node 'top' is read-only; open the node above it with read-only=on");
    rig.cor = test_open("driver=copy-on-read,file=top,auto-read-only=on");
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 0);
    tear_down(&rig);
}

static void test_read_only(void)
{
    struct rig rig = {0};

    set_up(&rig, ",read-only=on");
    assert_reads(&rig, rig.cor, 0, LENGTH);
    g_assert_cmpuint(kept(&rig, 0, LENGTH), ==, 0);
    tear_down(&rig);
}

/* ---- Permissions ---------------------------------------------------------------------------- */

static unsigned perms_on(struct block_node *node)
{
    return TAILQ_FIRST(&node->claims)->perms;
}

/* It copies whoever uses it, also through a filter below, which does not on its own. */
static void test_permissions(void)
{
    struct block_claim reader = {.owner = (char *)(uintptr_t) "a reader",
                                 .perms = BLOCK_PERM_READ,
                                 .shared = BLOCK_PERM_ALL};
    struct block_claim strict = {.owner = (char *)(uintptr_t) "somebody strict",
                                 .perms = BLOCK_PERM_READ,
                                 .shared = BLOCK_PERM_READ};
    const unsigned copying = BLOCK_PERM_READ | BLOCK_PERM_WRITE_UNCHANGED;
    g_autoptr(GError) error = NULL;
    struct rig rig = {0};

    set_up_with(&rig, NULL, "");
    AUTO(block_node) filter = test_open("driver=memory-filter,node-name=filter,file=top");
    g_assert_cmphex(perms_on(rig.top), ==, BLOCK_PERM_READ);
    rig.cor = test_open("driver=copy-on-read,node-name=cor,file=filter");
    g_assert_cmphex(perms_on(filter), ==, copying);
    g_assert_cmphex(perms_on(rig.top), ==, copying);
    block_claim_acquire(&reader, rig.cor, &error);
    g_assert_no_error(error);
    g_assert_cmphex(perms_on(rig.top), ==, copying);
    block_claim_release(&reader);
    g_assert_cmphex(perms_on(rig.top), ==, copying);
    g_assert_cmpint(block_claim_acquire(&strict, rig.top, &error), ==, -EBUSY);
    block_node_unref(STEAL(rig.cor));
    g_assert_cmphex(perms_on(rig.top), ==, BLOCK_PERM_READ);
    g_clear_error(&error);
    rig.cor = test_open("driver=copy-on-read,node-name=cor,read-only=on,file=filter");
    g_assert_cmphex(perms_on(rig.top), ==, BLOCK_PERM_READ);
    block_node_unref(STEAL(rig.cor));
    block_node_unref(STEAL(filter));
    tear_down(&rig);
}

/* ---- Guests who write meanwhile ------------------------------------------------------------- */

#define WRITERS 3
#define READERS 3

/* Writer n owns every WRITERSth run of 8 sectors, and what it has written there. */
struct guest {
    struct rig *rig;
    struct test_random random;
    unsigned number;
    uint8_t *model; /* shared; each writer has its own sectors of it */
    pthread_t thread;
};

static void *write_thread(void *data)
{
    struct guest *guest = data;
    uint8_t buffer[8 * SECTOR], again[sizeof(buffer)];

    for (unsigned i = 0; i < 400; i++) {
        uint64_t run = test_random_below(&guest->random, 3 * MIB / sizeof(buffer) / WRITERS);
        uint64_t offset = (run * WRITERS + guest->number) * sizeof(buffer);
        uint64_t from = test_random_below(&guest->random, 8) * SECTOR;
        uint64_t bytes = sizeof(buffer) - from;

        memset(buffer, (int)test_random_between(&guest->random, 1, 255), bytes);
        memcpy(guest->model + offset + from, buffer, bytes);
        g_assert_cmpint(block_node_pwrite(guest->rig->cor, buffer, offset + from, bytes, 0), ==, 0);
        g_assert_cmpint(block_node_pread(guest->rig->cor, again, offset, sizeof(again), 0), ==, 0);
        g_assert_cmpmem(again, sizeof(again), guest->model + offset, sizeof(again));
    }
    return NULL;
}

static void *read_thread(void *data)
{
    struct guest *guest = data;
    g_autofree uint8_t *buffer = g_malloc(512 * KIB);

    for (unsigned i = 0; i < 60; i++) {
        uint64_t offset, bytes;

        test_random_range(&guest->random, LENGTH, SECTOR, 512 * KIB, &offset, &bytes);
        g_assert_cmpint(block_node_pread(guest->rig->cor, buffer, offset, bytes, 0), ==, 0);
    }
    return NULL;
}

static void run_guests(const char *top_options, struct test_random *random)
{
    struct rig rig = {0};
    struct guest guests[WRITERS + READERS];
    g_autofree uint8_t *model = g_malloc(LENGTH);
    struct test_image image;

    test_image_make(&image, 0);
    set_up_with(&rig, image.path, top_options);
    rig.cor = test_open("driver=copy-on-read,node-name=cor,file=top");
    for (uint64_t i = 0; i < LENGTH; i++) {
        model[i] = expected_byte(i);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(guests); i++) {
        guests[i] = (struct guest){
            .rig = &rig, .random = test_random_split(random), .number = i, .model = model};
        g_assert_cmpint(pthread_create(&guests[i].thread, NULL,
                                       i < WRITERS ? write_thread : read_thread, &guests[i]),
                        ==, 0);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(guests); i++) {
        pthread_join(guests[i].thread, NULL);
    }
    g_assert_cmpint(block_node_pread(rig.cor, rig.buffer, 0, LENGTH, 0), ==, 0);
    g_assert_cmpmem(rig.buffer, LENGTH, model, LENGTH);
    g_assert_cmpint(block_node_pread(rig.top, rig.buffer, 0, LENGTH, 0), ==, 0);
    g_assert_cmpmem(rig.buffer, LENGTH, model, LENGTH);
    tear_down(&rig);
    test_image_remove(&image, NULL);
}

static void test_guests(void)
{
    struct test_random random = test_random_new(test_seed());

    run_guests("", &random);
    run_guests(",cluster-size=4096", &random);
    run_guests(",extended-l2=on", &random);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    fault_driver_register();
    g_test_add_func("/copy-on-read/whole-clusters-are-kept", test_whole_clusters);
    g_test_add_func("/copy-on-read/data-of-all-layers-is-kept-and-no-zeroes", test_all);
    g_test_add_func("/copy-on-read/subclusters-are-filled", test_subclusters);
    g_test_add_func("/copy-on-read/nothing-below-the-bottom-is-kept", test_bottom);
    g_test_add_func("/copy-on-read/without-its-bottom-nothing-is-kept", test_lost_bottom);
    g_test_add_func("/copy-on-read/writes-pass", test_writes);
    g_test_add_func("/copy-on-read/reads-go-on-when-nothing-can-be-kept", test_errors);
    g_test_add_func("/copy-on-read/bad-neighbours-do-no-harm", test_bad_neighbour);
    g_test_add_func("/copy-on-read/what-makes-no-sense-is-refused", test_refusals);
    g_test_add_func("/copy-on-read/read-only-nothing-is-kept", test_read_only);
    g_test_add_func("/copy-on-read/it-says-that-it-copies", test_permissions);
    g_test_add_func("/copy-on-read/what-guests-write-meanwhile-stays", test_guests);
    return g_test_run();
}
