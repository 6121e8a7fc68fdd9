/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: compressed clusters; QEMU's tools as the peer. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/qcow2/internal.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/random.h"

static const char *const methods[] = {"zlib", "zstd"};

/* Bytes of which `percent` are random: they shrink to about that much. Four come of each number. */
static void fill(uint8_t *buffer, uint64_t bytes, unsigned percent, struct test_random *random)
{
    uint64_t dice = 0;

    for (uint64_t i = 0; i < bytes; i++) {
        dice = i % 4 ? dice >> 16 : test_random_u64(random);
        buffer[i] = dice % 64 * 100 < percent * UINT64_C(64) ? (uint8_t)(dice >> 8) : 'a';
    }
}

/* Clusters of all kinds one after the other. */
static uint8_t *make_data(uint64_t length, uint64_t cluster_size, struct test_random *random)
{
    static const unsigned percents[] = {0, 10, 50, 100, 30, 80};
    uint8_t *data = g_malloc(length);

    for (uint64_t at = 0, i = 0; at < length; at += cluster_size, i++) {
        fill(data + at, MIN_OF(cluster_size, length - at), percents[i % G_N_ELEMENTS(percents)],
             random);
    }
    return data;
}

static void create(const struct test_image *image, const char *method, uint64_t cluster_size,
                   const char *more, uint64_t length)
{
    test_command_succeeds("qemu-img create -q -f qcow2 -o compression_type=%s,cluster_size=%" PRIu64
                          "%s %s %" PRIu64,
                          method, cluster_size, more, image->path, length);
}

static struct block_node *open_image(const struct test_image *image)
{
    return test_open("driver=qcow2,discard=unmap,file.driver=fault,file.node-name=bad,"
                     "file.file.driver=file,file.file.filename=%s",
                     image->path);
}

static void assert_whole(struct block_node *node, const uint8_t *data, uint64_t length)
{
    g_autofree uint8_t *buffer = g_malloc(length);

    g_assert_cmpint(block_node_pread(node, buffer, 0, length, 0), ==, 0);
    g_assert_true(!memcmp(buffer, data, length));
}

/* QEMU finds no fault with the image, and reads this in it. */
static void assert_qemu_agrees(const struct test_image *image, const uint8_t *data, uint64_t length)
{
    g_autofree char *raw = test_path(image->directory, "raw");

    g_assert_true(g_file_set_contents(raw, (const char *)data, (gssize)length, NULL));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
    test_command_succeeds("qemu-img compare -f raw -F qcow2 %s %s", raw, image->path);
}

/* ---- The methods ---------------------------------------------------------------------------- */

static void test_round_trip(void)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = 0; i < MAX_OF(test_cases(400), 40ul); i++) {
        enum qcow2_compression method = i & 1;
        uint64_t size = UINT64_C(1) << test_random_between(&random, 9, 16), bytes;
        g_autofree uint8_t *data = g_malloc(size), *packed = g_malloc(size + 1000);
        g_autofree uint8_t *again = g_malloc(size);

        fill(data, size, (unsigned)test_random_below(&random, 80), &random);
        int status = qcow2_compress(method, size, data, packed, &bytes);
        if (status < 0) {
            g_assert_cmpint(status, ==, -ENOSPC);
            continue;
        }
        g_assert_cmpuint(bytes, <, size);
        /* What follows in the last sector is another cluster's. */
        fill(packed + bytes, 1000, 100, &random);
        g_assert_cmpint(qcow2_decompress(method, size, packed, bytes + 511, again), ==, 0);
        g_assert_cmpmem(data, size, again, size);
        g_assert_cmpint(qcow2_decompress(method, size, packed, bytes / 2, again), ==, -EIO);
    }
}

static void test_incompressible(void)
{
    struct test_random random = test_random_new(test_seed());
    uint8_t data[4096], packed[4096];
    uint64_t bytes;

    fill(data, sizeof(data), 100, &random);
    for (enum qcow2_compression method = 0; method < G_N_ELEMENTS(methods); method++) {
        g_assert_cmpint(qcow2_compress(method, sizeof(data), data, packed, &bytes), ==, -ENOSPC);
    }
}

/* Data that is damaged at random, cut off, too short for a cluster. */
static void test_damaged(void)
{
    struct test_random random = test_random_new(test_seed());
    uint8_t data[8192], packed[8192], bad[8192], again[8192];

    for (unsigned long i = 0; i < test_cases(4000); i++) {
        enum qcow2_compression method = i & 1;
        uint64_t bytes;

        fill(data, sizeof(data), 20, &random);
        g_assert_cmpint(qcow2_compress(method, sizeof(data), data, packed, &bytes), ==, 0);
        memcpy(bad, packed, bytes);
        for (uint64_t n = test_random_between(&random, 1, 8); n; n--) {
            bad[test_random_below(&random, n & 1 ? 16 : bytes)] = (uint8_t)test_random_u64(&random);
        }
        int status = qcow2_decompress(method, sizeof(data), bad, bytes, again);
        g_assert_true(status == 0 || status == -EIO);
        uint64_t cut = test_random_below(&random, bytes);
        status = qcow2_decompress(method, sizeof(data), packed, cut, again);
        if (status == 0) { /* all but the mark of the end was there */
            g_assert_cmpuint(cut, >=, bytes - 2);
            g_assert_cmpmem(data, sizeof(data), again, sizeof(data));
        }
        g_assert_cmpint(qcow2_decompress(method, 2 * sizeof(data), packed, bytes, bad), ==, -EIO);
        fill(bad, sizeof(bad), 100, &random);
        qcow2_decompress(method, sizeof(data), bad, sizeof(bad), again);
    }
}

/* ---- QEMU as the peer ----------------------------------------------------------------------- */

/* Clusters of all kinds, and a part of one; of large ones a few, as they take their time. */
static uint64_t length_in(uint64_t cluster_size)
{
    uint64_t clusters = cluster_size > MIB ? 8 : 40;

    return MAX_OF(clusters * cluster_size + 512, 300 * KIB + 512);
}

static void read_qemus(const char *method, uint64_t cluster_size, const char *more)
{
    struct test_random random = test_random_new(test_seed());
    uint64_t length = length_in(cluster_size);
    struct test_image image;

    test_image_make(&image, 0);
    g_autofree uint8_t *data = make_data(length, cluster_size, &random);
    g_autofree char *raw = test_path(image.directory, "raw");
    g_assert_true(g_file_set_contents(raw, (char *)data, (gssize)length, NULL));
    test_command_succeeds("qemu-img convert -c -f raw -O qcow2 -o compression_type=%s,cluster_size="
                          "%" PRIu64 "%s %s %s",
                          method, cluster_size, more, raw, image.path);
    AUTO(block_node) node = open_image(&image);
    assert_whole(node, data, length);
    /* Each decompresses a whole cluster. */
    for (uint64_t i = 0; i < MIN_OF(UINT64_C(500), 64 * MIB / cluster_size); i++) {
        uint64_t offset = test_random_below(&random, length - 1);
        uint64_t bytes = test_random_between(&random, 1, MIN_OF(length - offset, 8 * KIB));
        uint8_t buffer[8 * KIB];

        g_assert_cmpint(block_node_pread(node, buffer, offset, bytes, 0), ==, 0);
        g_assert_cmpmem(buffer, bytes, data + offset, bytes);
    }
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

static void test_read(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(methods); i++) {
        read_qemus(methods[i], 64 * KIB, "");
        read_qemus(methods[i], 512, "");
        read_qemus(methods[i], 32 * KIB, ",extended_l2=on");
    }
    read_qemus("zlib", 4 * KIB, ",compat=0.10");
    read_qemus("zstd", 2 * MIB, "");
}

static void write_all_compressed(struct block_node *node, const uint8_t *data, uint64_t length,
                                 uint64_t step)
{
    for (uint64_t at = 0; at < length; at += step) {
        g_assert_cmpint(
            block_node_pwrite_compressed(node, data + at, at, MIN_OF(step, length - at)), ==, 0);
    }
}

static void write_ours(const char *method, uint64_t cluster_size, const char *more)
{
    struct test_random random = test_random_new(test_seed());
    uint64_t length = length_in(cluster_size);
    g_autofree uint8_t *data = make_data(length, cluster_size, &random);
    struct test_image image;

    test_image_make(&image, 0);
    create(&image, method, cluster_size, more, length);
    AUTO(block_node) node = open_image(&image);
    write_all_compressed(node, data, length, 3 * cluster_size);
    assert_whole(node, data, length);
    block_node_unref(STEAL(node));
    assert_qemu_agrees(&image, data, length);
    node = open_image(&image);
    assert_whole(node, data, length);
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

static void test_write(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(methods); i++) {
        write_ours(methods[i], 64 * KIB, "");
        write_ours(methods[i], 512, "");
        write_ours(methods[i], 32 * KIB, ",extended_l2=on");
    }
    write_ours("zlib", 4 * KIB, ",compat=0.10");
    write_ours("zlib", 1 * KIB, ",refcount_bits=1"); /* clusters cannot be shared */
    write_ours("zlib", 1 * KIB, ",refcount_bits=2");
}

static void test_misaligned(void)
{
    static const uint8_t data[128 * KIB];
    struct test_image image;

    test_image_make(&image, 0);
    create(&image, "zlib", 64 * KIB, "", 128 * KIB + 512);
    AUTO(block_node) node = open_image(&image);
    g_assert_cmpint(block_node_pwrite_compressed(node, data, 512, 64 * KIB), ==, -EINVAL);
    g_assert_cmpint(block_node_pwrite_compressed(node, data, 0, 4 * KIB), ==, -EINVAL);
    g_assert_cmpint(block_node_pwrite_compressed(node, data, 128 * KIB, 512), ==, 0);
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* ---- Space ---------------------------------------------------------------------------------- */

/* Data that shrinks to more than a half takes what it shrank to, across the clusters' borders. */
static void test_space(void)
{
    const uint64_t length = 4 * MIB, size = 64 * KIB;
    struct test_random random = test_random_new(test_seed());
    g_autofree uint8_t *data = g_malloc(length), *packed = g_malloc(size);
    struct test_image image;
    uint64_t sum = 0, bytes;

    fill(data, length, 50, &random);
    for (uint64_t at = 0; at < length; at += size) {
        g_assert_cmpint(qcow2_compress(QCOW2_COMPRESSION_ZLIB, size, data + at, packed, &bytes), ==,
                        0);
        sum += bytes;
    }
    g_assert_cmpuint(sum, >, length / 2);
    test_image_make(&image, 0);
    create(&image, "zlib", size, "", length);
    AUTO(block_node) node = open_image(&image);
    write_all_compressed(node, data, length, size);
    block_node_unref(STEAL(node));
    g_assert_cmpuint(test_allocated(image.path), <, sum + 8 * size);
    assert_qemu_agrees(&image, data, length);
    test_image_remove(&image, NULL);
}

/* ---- Never stale ---------------------------------------------------------------------------- */

#define STALE_SIZE   UINT64_C(4096)
#define STALE_LENGTH (24 * STALE_SIZE)

static void change_one(struct block_node *node, uint8_t *model, struct test_random *random)
{
    uint64_t at = test_random_below(random, STALE_LENGTH / STALE_SIZE) * STALE_SIZE;
    uint64_t dice = test_random_below(random, 100), bytes = STALE_SIZE;

    if (dice < 60) {
        fill(model + at, bytes, (unsigned)test_random_below(random, 90), random);
        g_assert_cmpint(block_node_pwrite_compressed(node, model + at, at, bytes), ==, 0);
    } else if (dice < 75) {
        fill(model + at + 512, 512, 100, random);
        g_assert_cmpint(block_node_pwrite(node, model + at + 512, at + 512, 512, 0), ==, 0);
    } else if (dice < 90) {
        memset(model + at, 0, bytes);
        g_assert_cmpint(block_node_write_zeroes(node, at, bytes, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    } else {
        g_assert_cmpint(block_node_flush(node), ==, 0); /* frees what was given up */
    }
}

static void test_stale(void)
{
    struct test_random random = test_random_new(test_seed());
    g_autofree uint8_t *model = g_malloc0(STALE_LENGTH);
    struct test_image image;

    test_image_make(&image, 0);
    create(&image, "zstd", STALE_SIZE, "", STALE_LENGTH);
    AUTO(block_node) node = open_image(&image);
    for (unsigned long i = 0; i < MAX_OF(test_cases(4000), 400ul); i++) {
        uint8_t buffer[1024];

        change_one(node, model, &random);
        for (unsigned reads = 0; reads < 3; reads++) {
            uint64_t at = test_random_below(&random, STALE_LENGTH / 1024) * 1024;

            g_assert_cmpint(block_node_pread(node, buffer, at, 1024, 0), ==, 0);
            g_assert_cmpmem(buffer, 1024, model + at, 1024);
        }
    }
    block_node_unref(STEAL(node));
    assert_qemu_agrees(&image, model, STALE_LENGTH);
    test_image_remove(&image, NULL);
}

/* ---- Many threads --------------------------------------------------------------------------- */

#define THREADS      8
#define CROWD_SIZE   (16 * KIB)
#define CROWD_LENGTH (64 * CROWD_SIZE)
#define CROWD_STEPS  150

struct worker {
    struct block_node *node;
    uint8_t *model;
    unsigned number;
    struct test_random random;
    GThread *thread;
};

/* Each thread writes clusters of its own, and reads these in small pieces. */
static gpointer work(gpointer data)
{
    struct worker *worker = data;
    struct test_random *random = &worker->random;
    uint8_t buffer[4096];

    for (unsigned i = 0; i < CROWD_STEPS; i++) {
        uint64_t cluster = test_random_below(random, CROWD_LENGTH / CROWD_SIZE / THREADS);
        uint64_t at = (cluster * THREADS + worker->number) * CROWD_SIZE;
        uint64_t piece = at + test_random_below(random, CROWD_SIZE / 4096) * 4096;

        if (test_random_chance(random, 40)) {
            fill(worker->model + at, CROWD_SIZE, (unsigned)test_random_below(random, 100), random);
            g_assert_cmpint(
                block_node_pwrite_compressed(worker->node, worker->model + at, at, CROWD_SIZE), ==,
                0);
        } else if (test_random_chance(random, 20)) {
            fill(worker->model + piece, 4096, 100, random);
            g_assert_cmpint(block_node_pwrite(worker->node, worker->model + piece, piece, 4096, 0),
                            ==, 0);
        } else if (test_random_chance(random, 5)) {
            g_assert_cmpint(block_node_flush(worker->node), ==, 0);
        }
        g_assert_cmpint(block_node_pread(worker->node, buffer, piece, 4096, 0), ==, 0);
        g_assert_true(!memcmp(buffer, worker->model + piece, 4096));
    }
    return NULL;
}

static void test_threads(void)
{
    struct test_random random = test_random_new(test_seed());
    g_autofree uint8_t *model = g_malloc0(CROWD_LENGTH);
    struct worker workers[THREADS];
    struct test_image image;

    for (size_t i = 0; i < G_N_ELEMENTS(methods); i++) {
        memset(model, 0, CROWD_LENGTH);
        test_image_make(&image, 0);
        create(&image, methods[i], CROWD_SIZE, "", CROWD_LENGTH);
        AUTO(block_node) node = open_image(&image);
        for (unsigned n = 0; n < THREADS; n++) {
            workers[n] = (struct worker){node, model, n, test_random_split(&random), NULL};
            workers[n].thread = g_thread_new("worker", work, &workers[n]);
        }
        for (unsigned n = 0; n < THREADS; n++) {
            g_thread_join(workers[n].thread);
        }
        assert_whole(node, model, CROWD_LENGTH);
        block_node_unref(STEAL(node));
        assert_qemu_agrees(&image, model, CROWD_LENGTH);
        test_image_remove(&image, NULL);
    }
}

struct reader {
    struct block_node *node;
    int result;
    GThread *thread;
};

static gpointer read_first(gpointer data)
{
    struct reader *reader = data;
    uint8_t buffer[512];

    reader->result = block_node_pread(reader->node, buffer, 0, 512, 0);
    return NULL;
}

/* One reads and decompresses for all who want a piece; an error is theirs too, and not kept. */
static void test_shared(void)
{
    static const uint8_t data[64 * KIB];
    struct reader readers[4];
    struct test_image image;

    test_image_make(&image, 0);
    create(&image, "zlib", 64 * KIB, "", 64 * KIB);
    AUTO(block_node) node = open_image(&image);
    AUTO(block_node) bad = block_node_find("bad");
    g_assert_cmpint(block_node_pwrite_compressed(node, data, 0, 64 * KIB), ==, 0);
    FAULT(bad, .operations = FAULT_ON(READ), .hold = true, .error_number = EIO);
    for (unsigned i = 0; i < G_N_ELEMENTS(readers); i++) {
        readers[i].node = node;
        readers[i].thread = g_thread_new("reader", read_first, &readers[i]);
        fault_wait_held(bad, 1);
    }
    fault_clear(bad);
    for (unsigned i = 0; i < G_N_ELEMENTS(readers); i++) {
        g_thread_join(readers[i].thread);
    }
    uint8_t buffer[512];
    g_assert_cmpint(block_node_pread(node, buffer, 0, 512, 0), ==, 0);
    g_assert_cmpuint(fault_hits(bad), ==, 1);
    uint64_t before = fault_bytes(bad, FAULT_ON(READ));
    g_assert_cmpint(block_node_pread(node, buffer, 4096, 512, 0), ==, 0);
    g_assert_cmpuint(fault_bytes(bad, FAULT_ON(READ)), ==, before); /* it is kept */
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    test_image_remove(&image, NULL);
}

/* ---- Failing storage ------------------------------------------------------------------------ */

/* Each write to the file fails once: the cluster holds what it held, or what was written. */
static void test_write_error(void)
{
    const uint64_t size = 4 * KIB, length = 8 * size;
    struct test_random random = test_random_new(test_seed());
    g_autofree uint8_t *old = make_data(length, size, &random);
    g_autofree uint8_t *new = make_data(length, size, &random);
    bool is_over = false;

    for (uint64_t skip = 0; !is_over; skip += test_stride(&random)) {
        g_autofree uint8_t *model = g_memdup2(old, length);
        struct test_image image;

        test_image_make(&image, 0);
        create(&image, "zlib", size, "", length);
        AUTO(block_node) node = open_image(&image);
        AUTO(block_node) bad = block_node_find("bad");
        write_all_compressed(node, old, length, size);
        g_assert_cmpint(block_node_flush(node), ==, 0);
        FAULT(bad, .operations = FAULT_ON(WRITE), .skip = (unsigned)skip, .count = 1,
              .error_number = EIO);
        for (uint64_t at = 0; at < length; at += size) {
            if (block_node_pwrite_compressed(node, new + at, at, size) == 0) {
                memcpy(model + at, new + at, size);
            }
            assert_whole(node, model, length);
        }
        if (block_node_flush(node) < 0) {
            g_assert_cmpint(block_node_flush(node), ==, 0);
        }
        is_over = fault_hits(bad) == 0;
        fault_clear(bad);
        block_node_unref(STEAL(bad));
        block_node_unref(STEAL(node));
        assert_qemu_agrees(&image, model, length);
        test_image_remove(&image, NULL);
        g_assert_cmpuint(skip, <, 100);
    }
}

/* ---- Damage --------------------------------------------------------------------------------- */

/* Compressed data that was overwritten in the file: an error and nothing worse. */
static void test_damaged_image(void)
{
    const uint64_t size = 64 * KIB, length = 16 * size;
    struct test_random random = test_random_new(test_seed());

    for (size_t i = 0; i < G_N_ELEMENTS(methods); i++) {
        g_autofree uint8_t *data = g_malloc(length), *buffer = g_malloc(length);
        struct test_image image;
        unsigned errors = 0;

        fill(data, length, 30, &random);
        test_image_make(&image, 0);
        create(&image, methods[i], size, "", length);
        AUTO(block_node) node = open_image(&image);
        write_all_compressed(node, data, length, size);
        block_node_unref(STEAL(node));
        int fd = open(image.path, O_WRONLY | O_CLOEXEC);
        /* The first data lies directly behind the tables that QEMU made. */
        for (off_t at = 4 * (off_t)size; at < 5 * (off_t)size; at += 1000) {
            uint64_t noise = test_random_u64(&random);

            g_assert_cmpint(pwrite(fd, &noise, 8, at), ==, 8);
        }
        close(fd);
        node = open_image(&image);
        for (uint64_t at = 0; at < length; at += 4096) {
            int status = block_node_pread(node, buffer, at, 4096, 0);

            g_assert_true(status == 0 || status == -EIO);
            errors += status < 0;
        }
        g_assert_cmpuint(errors, >, 0);
        g_assert_cmpint(block_node_pwrite(node, data, 0, 512, 0), ==, -EIO); /* around it */
        g_assert_cmpint(block_node_pwrite(node, data, 0, size, 0), ==, 0);
        g_assert_cmpint(block_node_pread(node, buffer, 0, size, 0), ==, 0);
        g_assert_cmpmem(buffer, size, data, size);
        block_node_unref(STEAL(node));
        test_image_remove(&image, NULL);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    g_test_add_func("/qcow2-compress/what-was-compressed-comes-back", test_round_trip);
    g_test_add_func("/qcow2-compress/what-does-not-shrink-is-refused", test_incompressible);
    g_test_add_func("/qcow2-compress/damaged-data-is-an-error", test_damaged);
    g_test_add_func("/qcow2-compress/what-qemu-compressed-reads-the-same", test_read);
    g_test_add_func("/qcow2-compress/what-we-compressed-qemu-reads-the-same", test_write);
    g_test_add_func("/qcow2-compress/only-whole-clusters-are-compressed", test_misaligned);
    g_test_add_func("/qcow2-compress/it-takes-the-space-it-shrank-to", test_space);
    g_test_add_func("/qcow2-compress/what-is-kept-is-never-stale", test_stale);
    g_test_add_func("/qcow2-compress/many-threads-read-and-write", test_threads);
    g_test_add_func("/qcow2-compress/one-decompresses-for-all", test_shared);
    g_test_add_func("/qcow2-compress/a-failed-write-changes-nothing", test_write_error);
    g_test_add_func("/qcow2-compress/a-damaged-cluster-fails-alone", test_damaged_image);
    return g_test_run();
}
