/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver compress: every write becomes a compressed one. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/device.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define LENGTH  (2 * MIB + 1536) /* ends inside a cluster */
#define CLUSTER (16 * KIB)
#define SECTOR  UINT64_C(512)

/* compress ("pressed") over qcow2 ("q") over fault ("bad") over a file. */
struct rig {
    struct test_image image;
    struct block_node *q, *pressed;
    uint8_t *model; /* what the disk holds */
    uint8_t *buffer;
};

static void open_nodes(struct rig *rig)
{
    rig->q = test_open("driver=qcow2,node-name=q,discard=unmap,file.driver=fault,"
                       "file.node-name=bad,file.file.driver=file,file.file.filename=%s",
                       rig->image.path);
    rig->pressed = test_open("driver=compress,node-name=pressed,discard=unmap,file=q");
}

static void close_nodes(struct rig *rig)
{
    block_node_unref(STEAL(rig->pressed));
    block_node_unref(STEAL(rig->q));
}

static void set_up(struct rig *rig, const void *more)
{
    test_image_make(&rig->image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=%" PRIu64 "%s %s %" PRIu64,
                          CLUSTER, more ? (const char *)more : "", rig->image.path, LENGTH);
    rig->model = g_malloc0(LENGTH);
    rig->buffer = g_malloc(LENGTH);
    open_nodes(rig);
}

static void assert_whole(struct rig *rig, struct block_node *node)
{
    g_assert_cmpint(block_node_pread(node, rig->buffer, 0, LENGTH, 0), ==, 0);
    test_assert_same(rig->buffer, rig->model, LENGTH);
}

/* QEMU finds no fault with the image, and reads the model in it. */
static void assert_qemu_agrees(struct rig *rig)
{
    g_autofree char *raw = test_path(rig->image.directory, "raw");

    g_assert_true(g_file_set_contents(raw, (const char *)rig->model, (gssize)LENGTH, NULL));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", rig->image.path);
    test_command_succeeds("qemu-img compare -f raw -F qcow2 %s %s", raw, rig->image.path);
}

static void tear_down(struct rig *rig, const void *more)
{
    if (rig->pressed) {
        close_nodes(rig);
        assert_qemu_agrees(rig);
    }
    g_free(rig->model);
    g_free(rig->buffer);
    test_image_remove(&rig->image, NULL);
}

static int write_at(struct rig *rig, uint64_t offset, uint64_t bytes, int byte)
{
    memset(rig->buffer, byte, bytes);
    return block_node_pwrite(rig->pressed, rig->buffer, offset, bytes, 0);
}

static void write_both(struct rig *rig, uint64_t offset, uint64_t bytes, int byte)
{
    g_assert_cmpint(write_at(rig, offset, bytes, byte), ==, 0);
    memset(rig->model + offset, byte, bytes);
}

/* Bytes of a range that q says this of. */
static uint64_t count_status(struct rig *rig, uint64_t offset, uint64_t end, unsigned flags)
{
    uint64_t sum = 0;

    while (offset < end) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status(rig->q, offset, end - offset, &extent), ==, 0);
        sum += (extent.flags & flags) == flags ? extent.bytes : 0;
        offset += extent.bytes;
    }
    return sum;
}

/* ---- Writes --------------------------------------------------------------------------------- */

static void test_parts(struct rig *rig, const void *more)
{
    write_both(rig, CLUSTER + 100, 50, 1);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, CLUSTER);
    write_both(rig, 3 * CLUSTER - 1, CLUSTER + 2, 2);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, 4 * CLUSTER);
    write_both(rig, LENGTH - CLUSTER, CLUSTER, 3);
    write_both(rig, CLUSTER, 4 * CLUSTER, 4);
    write_both(rig, 2 * CLUSTER + SECTOR, SECTOR, 5);
    assert_whole(rig, rig->pressed);
    uint64_t end = align_down(LENGTH - CLUSTER, CLUSTER);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==,
                     4 * CLUSTER + (LENGTH - end));
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_DATA), ==,
                     4 * CLUSTER + (LENGTH - end));
    assert_whole(rig, rig->q);
}

/* What does not get smaller is kept as it is, and changed in parts all the same. */
static void test_incompressible(struct rig *rig, const void *more)
{
    struct test_random random = test_random_new(test_seed());

    for (uint64_t i = 0; i < 4 * CLUSTER; i++) {
        rig->model[i] = (uint8_t)test_random_u64(&random);
    }
    g_assert_cmpint(block_node_pwrite(rig->pressed, rig->model, 0, 4 * CLUSTER, 0), ==, 0);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, 0);
    write_both(rig, 1000, 3, 9);
    write_both(rig, 2 * CLUSTER, CLUSTER, 9);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, CLUSTER);
    assert_whole(rig, rig->pressed);
}

static void zero_both(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    g_assert_cmpint(block_node_write_zeroes(rig->pressed, offset, bytes, BLOCK_REQUEST_MAY_UNMAP),
                    ==, 0);
    memset(rig->model + offset, 0, bytes);
}

static void test_zeroes(struct rig *rig, const void *more)
{
    write_both(rig, 0, 8 * CLUSTER, 7);
    zero_both(rig, CLUSTER, 2 * CLUSTER);
    zero_both(rig, 4 * CLUSTER + 10, 2 * CLUSTER);
    g_assert_cmpuint(count_status(rig, 0, 8 * CLUSTER, BLOCK_STATUS_ZERO), ==, 3 * CLUSTER);
    g_assert_cmpuint(count_status(rig, 0, 8 * CLUSTER, BLOCK_STATUS_COMPRESSED), ==, 5 * CLUSTER);
    zero_both(rig, 4 * CLUSTER, 10); /* what is left of its data */
    g_assert_cmpuint(count_status(rig, 0, 8 * CLUSTER, BLOCK_STATUS_ZERO), ==, 4 * CLUSTER);
    zero_both(rig, 6 * CLUSTER + 10, CLUSTER - 10);
    g_assert_cmpuint(count_status(rig, 0, 8 * CLUSTER, BLOCK_STATUS_ZERO), ==, 5 * CLUSTER);
    g_assert_cmpint(block_node_write_zeroes(rig->pressed, 10, 10, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    zero_both(rig, LENGTH - 1536, 1536);
    assert_whole(rig, rig->pressed);
    g_assert_cmpint(block_node_discard(rig->pressed, 0, CLUSTER), ==, 0);
    g_assert_cmpuint(count_status(rig, 0, CLUSTER, BLOCK_STATUS_DATA), ==, 0);
    memset(rig->model, 0, CLUSTER);
    assert_whole(rig, rig->pressed);
}

/* Version 2 knows no zero clusters, so that they are data above a backing file: compressed data. */
static void test_old_zeroes(void)
{
    struct rig rig = {0};

    test_image_make(&rig.image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=%" PRIu64
                          " %s %" PRIu64,
                          CLUSTER, rig.image.path, LENGTH);
    rig.buffer = g_malloc(LENGTH);
    AUTO(block_node) base = test_open("driver=memory,node-name=base,size=%" PRIu64, LENGTH);
    memset(memory_disk_data(base), 8, LENGTH);
    rig.q = test_open("driver=qcow2,node-name=q,file.driver=file,file.filename=%s,backing=base",
                      rig.image.path);
    rig.pressed = test_open("driver=compress,node-name=pressed,file=q");
    g_assert_cmpint(block_node_write_zeroes(rig.pressed, 100, 3 * CLUSTER, 0), ==, 0);
    g_assert_cmpuint(count_status(&rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, 4 * CLUSTER);
    g_assert_cmpint(block_node_pread(rig.pressed, rig.buffer, 0, 4 * CLUSTER, 0), ==, 0);
    test_assert_filled(rig.buffer, 8, 100);
    test_assert_filled(rig.buffer + 100, 0, 3 * CLUSTER);
    test_assert_filled(rig.buffer + 100 + 3 * CLUSTER, 8, CLUSTER - 100);
    close_nodes(&rig);
    g_free(rig.buffer);
    test_image_remove(&rig.image, NULL);
}

/* ---- Anything, against a model -------------------------------------------------------------- */

static void change_at_random(struct rig *rig, struct test_random *random)
{
    uint64_t bytes =
        test_random_between(random, 1, test_random_chance(random, 50) ? SECTOR * 4 : CLUSTER * 5);
    uint64_t offset = test_random_below(random, LENGTH - bytes);

    if (test_random_chance(random, 50)) {
        offset = align_down(offset, CLUSTER);
    }
    if (test_random_chance(random, 20)) {
        bytes = LENGTH - offset;
    }
    if (test_random_chance(random, 25)) {
        zero_both(rig, offset, bytes);
    } else {
        write_both(rig, offset, bytes, (int)test_random_below(random, 256));
    }
}

static void test_random_changes(struct rig *rig, const void *more)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = test_cases(150); i > 0; i--) {
        change_at_random(rig, &random);
        if (i % 50 == 0) {
            assert_whole(rig, rig->pressed);
            close_nodes(rig);
            open_nodes(rig);
            assert_whole(rig, rig->q);
        }
    }
    assert_whole(rig, rig->pressed);
    uint64_t data = count_status(rig, 0, LENGTH, BLOCK_STATUS_DATA);
    g_assert_cmpuint(count_status(rig, 0, LENGTH, BLOCK_STATUS_COMPRESSED), ==, data);
}

/* ---- Many writers --------------------------------------------------------------------------- */

#define WRITERS UINT64_C(4)
#define SHARED  (4 * CLUSTER)

struct writer {
    struct rig *rig;
    unsigned number;
    struct test_random random;
    GThread *thread;
};

/* All write to the same clusters, each to pieces of its own, and find these as they left them. */
static gpointer write_pieces(gpointer data)
{
    struct writer *writer = data;
    struct block_node *node = writer->rig->pressed;
    uint8_t piece[SECTOR], found[SECTOR];

    for (uint64_t i = test_amount(150); i > 0; i--) {
        uint64_t at = test_random_below(&writer->random, SHARED / SECTOR / WRITERS) * WRITERS;
        uint64_t offset = (at + writer->number) * SECTOR;

        memset(piece, (int)test_random_below(&writer->random, 3), SECTOR);
        int status = *piece ? block_node_pwrite(node, piece, offset, SECTOR, 0)
                            : block_node_write_zeroes(node, offset, SECTOR, 0);
        g_assert_cmpint(status, ==, 0);
        memcpy(writer->rig->model + offset, piece, SECTOR);
        g_assert_cmpint(block_node_pread(node, found, offset, SECTOR, 0), ==, 0);
        g_assert_cmpmem(found, SECTOR, piece, SECTOR);
    }
    return NULL;
}

static void run_writers(struct rig *rig, GThreadFunc work)
{
    struct test_random random = test_random_new(test_seed());
    struct writer writers[WRITERS];

    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){rig, i, test_random_split(&random), NULL};
        writers[i].thread = g_thread_new("writer", work, &writers[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        g_thread_join(writers[i].thread);
    }
    assert_whole(rig, rig->pressed);
}

static void test_writers(struct rig *rig, const void *more)
{
    run_writers(rig, write_pieces);
}

/* One writes all of a cluster again and again; the others, a piece each, must not undo that. */
static gpointer write_around(gpointer data)
{
    struct writer *writer = data;
    struct block_node *node = writer->rig->pressed;
    g_autofree uint8_t *cluster = g_malloc(CLUSTER);

    for (uint64_t i = 1; i <= test_amount(150); i++) {
        memset(cluster, writer->number ? 255 : (int)(i % 200), CLUSTER);
        if (writer->number) {
            g_assert_cmpint(block_node_pwrite(node, cluster, writer->number * SECTOR, SECTOR, 0),
                            ==, 0);
            continue;
        }
        g_assert_cmpint(block_node_pwrite(node, cluster, 0, CLUSTER, 0), ==, 0);
        g_assert_cmpint(block_node_pread(node, cluster, 0, CLUSTER, 0), ==, 0);
        test_assert_filled(cluster, (int)(i % 200), SECTOR);
        test_assert_filled(cluster + WRITERS * SECTOR, (int)(i % 200), CLUSTER - WRITERS * SECTOR);
    }
    return NULL;
}

static void test_whole_and_parts(struct rig *rig, const void *more)
{
    struct test_random random = test_random_new(test_seed());
    struct writer writers[WRITERS];

    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){rig, i, test_random_split(&random), NULL};
        writers[i].thread = g_thread_new("writer", write_around, &writers[i]);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        g_thread_join(writers[i].thread);
    }
    write_both(rig, 0, CLUSTER, 1);
}

/* ---- Faults --------------------------------------------------------------------------------- */

static void test_faults(struct rig *rig, const void *more)
{
    struct block_node *bad = rig->q->file;

    write_both(rig, 0, 4 * CLUSTER, 1);
    g_assert_cmpint(block_node_flush(rig->pressed), ==, 0);
    FAULT(bad, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(write_at(rig, 10, 10, 2), ==, -EIO);
    g_assert_cmpint(write_at(rig, CLUSTER, CLUSTER, 2), ==, -EIO);
    fault_clear(bad);
    assert_whole(rig, rig->pressed);
    FAULT(bad, .operations = FAULT_ON(READ), .error_number = ENOMEM);
    g_assert_cmpint(write_at(rig, 10, 10, 2), ==, -ENOMEM);
    fault_clear(bad);
    assert_whole(rig, rig->pressed);
    write_both(rig, 10, 10, 2); /* nobody is kept waiting by what failed */
    write_both(rig, CLUSTER, CLUSTER, 3);
    assert_whole(rig, rig->pressed);
    unsigned before = (unsigned)fault_hits(bad);
    FAULT(bad, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    g_assert_cmpint(block_node_pwrite(rig->pressed, "x", 5, 1, BLOCK_REQUEST_FUA), ==, -EIO);
    g_assert_cmpuint(fault_hits(bad), >, before);
    fault_clear(bad);
    write_both(rig, 5, 1, 'x');
}

/* ---- The graph ------------------------------------------------------------------------------ */

static void test_reopen(struct rig *rig, const void *more)
{
    write_both(rig, 0, 100, 1);
    g_assert_cmpstr(test_reopen_node("driver=compress,node-name=pressed,file=q,read-only=on"), ==,
                    NULL);
    g_assert_cmpint(write_at(rig, 0, 1, 2), ==, -EPERM);
    assert_whole(rig, rig->pressed);
    g_assert_cmpstr(test_reopen_node("driver=compress,node-name=pressed,file=q,discard=unmap"), ==,
                    NULL);
    write_both(rig, 50, 100, 3);
    assert_whole(rig, rig->pressed);
    /* Below another filter. */
    AUTO(block_node) above = test_open("driver=memory-filter,node-name=above,file=q");
    g_assert_cmpstr(test_reopen_node("driver=compress,node-name=pressed,file=above,discard=unmap"),
                    ==, NULL);
    write_both(rig, CLUSTER + 50, 100, 3);
    assert_whole(rig, rig->pressed);
    g_assert_cmpstr(test_reopen_node("driver=compress,node-name=pressed,file=q,discard=unmap"), ==,
                    NULL);
}

static void test_alone(struct rig *rig, const void *more)
{
    g_autoptr(GError) error = NULL;
    struct block_device *device = block_device_new("vda", rig->pressed, NULL);
    struct block_device *past;

    g_assert_nonnull(device);
    past = block_device_new("past", rig->q, &error);
    g_assert_null(past);
    g_assert_nonnull(strstr(error->message, "exclude each other by writing it"));
    block_device_remove(device);
    past = block_device_new("past", rig->q, NULL);
    g_assert_nonnull(past);
    block_device_remove(past);
}

static void test_refusals(struct rig *rig, const void *more)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node) fault = test_open("driver=fault,node-name=own-writes,file=q");
    g_autofree char *plain = test_open_error("driver=compress,node-name=x,file=disk");
    g_autofree char *filter = test_open_error("driver=compress,node-name=x,file=own-writes");
    g_autofree char *missing = test_open_error("driver=compress,node-name=x");

    g_assert_cmpstr(plain, ==, "Compression is not supported for this drive disk");
    g_assert_cmpstr(filter, ==, "Compression is not supported for this drive own-writes");
    g_assert_cmpstr(missing, ==, "Parameter 'file' is missing");
}

static void test_data_file(void)
{
    struct test_image image;

    test_image_make(&image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o data_file=%s.data %s 1M", image.path,
                          image.path);
    AUTO(block_node) q = test_open("driver=qcow2,node-name=q,file.driver=file,file.filename=%s,"
                                   "data-file.driver=file,data-file.filename=%s.data",
                                   image.path, image.path);
    g_autofree char *refused = test_open_error("driver=compress,node-name=x,file=q");
    g_assert_cmpstr(refused, ==, "Compression is not supported for this drive q");
    block_node_unref(STEAL(q));
    test_image_remove(&image, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    fault_driver_register();
#define ADD(path, more, test)                                                                      \
    g_test_add("/compress/" path, struct rig, more, set_up, test, tear_down)
    ADD("parts-of-clusters", NULL, test_parts);
    ADD("what-does-not-get-smaller", NULL, test_incompressible);
    ADD("zeroes-and-discards-pass", NULL, test_zeroes);
    g_test_add_func("/compress/zeroes-that-are-data-are-compressed", test_old_zeroes);
    ADD("anything/zlib", NULL, test_random_changes);
    ADD("anything/zstd", ",compression_type=zstd", test_random_changes);
    ADD("anything/extended-l2", ",extended_l2=on", test_random_changes);
    ADD("writers-of-parts-of-the-same-clusters", NULL, test_writers);
    ADD("writers-of-all-and-of-parts", NULL, test_whole_and_parts);
    ADD("faults-harm-only-what-they-hit", NULL, test_faults);
    ADD("reopen", NULL, test_reopen);
    ADD("nobody-writes-past-it", NULL, test_alone);
    ADD("refusals", NULL, test_refusals);
    g_test_add_func("/compress/no-data-files", test_data_file);
    return g_test_run();
}
