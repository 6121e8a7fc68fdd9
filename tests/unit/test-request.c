/* SPDX-License-Identifier: BSD-3-Clause */
/* The request path against a byte array, and what drivers get to see of it. */
#include "block/request.h"

#include <errno.h>
#include <sched.h>
#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define DISK_SIZE (256 * KIB)

static void expect_log(struct block_node *disk, const char *expected)
{
    g_autofree char *log = memory_disk_take_log(disk);

    g_assert_cmpstr(log, ==, expected);
}

static void fill(void *buffer, size_t bytes, int first)
{
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)buffer)[i] = (uint8_t)(first + (int)(i % 251) * 7);
    }
}

/* ---- Random requests against a byte array ---------------------------------------------------- */

struct model_run {
    struct block_node *node;
    struct test_random random;
    uint8_t *model;
    uint8_t *buffer; /* DISK_SIZE bytes and a page */
};

/* Short or long, aligned or not, at any memory address. */
static void choose(struct model_run *run, uint64_t *offset, uint64_t *bytes, uint8_t **buffer)
{
    uint64_t longest = test_random_chance(&run->random, 70) ? 10000 : DISK_SIZE;

    *offset = test_random_below(&run->random, DISK_SIZE + 1);
    *bytes = test_random_below(&run->random, MIN_OF(longest, DISK_SIZE - *offset) + 1);
    if (test_random_chance(&run->random, 30)) {
        *offset = align_down(*offset, 4096);
        *bytes = align_down(*bytes, 4096);
    }
    *buffer = run->buffer;
    if (test_random_chance(&run->random, 50)) {
        *buffer += test_random_below(&run->random, 4096);
    }
}

static void random_write(struct model_run *run, uint64_t offset, uint64_t bytes, uint8_t *buffer)
{
    unsigned flags = test_random_chance(&run->random, 10) ? BLOCK_REQUEST_FUA : 0;

    if (test_random_chance(&run->random, 20)) {
        memset(buffer, 0, bytes);
    } else {
        fill(buffer, bytes, (int)test_random_below(&run->random, 256));
    }
    memcpy(run->model + offset, buffer, bytes);
    g_assert_cmpint(block_node_pwrite(run->node, buffer, offset, bytes, flags), ==, 0);
}

static void random_request(struct model_run *run)
{
    uint64_t offset, bytes;
    uint8_t *buffer;

    choose(run, &offset, &bytes, &buffer);
    switch (test_random_below(&run->random, 3)) {
    case 0:
        random_write(run, offset, bytes, buffer);
        break;
    case 1:
        memset(run->model + offset, 0, bytes);
        g_assert_cmpint(block_node_write_zeroes(run->node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP),
                        ==, 0);
        break;
    default:
        memset(buffer, 0xee, bytes);
        g_assert_cmpint(block_node_pread(run->node, buffer, offset, bytes, 0), ==, 0);
        g_assert_cmpmem(buffer, bytes, run->model + offset, bytes);
    }
}

static void test_model(const void *options)
{
    struct model_run run = {
        .node = test_open("%s", (const char *)options),
        .random = test_random_new(test_seed()),
        .model = g_malloc0(DISK_SIZE),
        .buffer = g_aligned_alloc0(1, DISK_SIZE + 4096, 4096),
    };

    for (int i = 0; i < 3000; i++) {
        random_request(&run);
    }
    g_assert_cmpint(block_node_pread(run.node, run.buffer, 0, DISK_SIZE, 0), ==, 0);
    g_assert_cmpmem(run.buffer, DISK_SIZE, run.model, DISK_SIZE);
    block_node_unref(run.node);
    g_free(run.model);
    g_aligned_free(run.buffer);
}

/* ---- Many threads in one sector -------------------------------------------------------------- */

#define WRITERS 8
#define ROUNDS  300

struct writer {
    struct block_node *node;
    uint64_t offset;
    pthread_t thread;
};

/* Each has its own bytes in the sector; every third round they are zeroed first. */
static void *write_own_bytes(void *data)
{
    struct writer *writer = data;
    uint8_t bytes[16];

    for (int round = 1; round <= ROUNDS; round++) {
        memset(bytes, round, sizeof(bytes));
        if (round % 3 == 0) {
            g_assert_cmpint(block_node_write_zeroes(writer->node, writer->offset, 16, 0), ==, 0);
        }
        g_assert_cmpint(block_node_pwrite(writer->node, bytes, writer->offset, 16, 0), ==, 0);
    }
    return NULL;
}

static void test_no_write_is_lost(const void *options)
{
    AUTO(block_node) node = test_open("%s", (const char *)options);
    struct writer writers[WRITERS];
    uint8_t expected[16], seen[16];

    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){.node = node, .offset = 4096 + 100 + 16 * i};
        g_assert_cmpint(pthread_create(&writers[i].thread, NULL, write_own_bytes, &writers[i]), ==,
                        0);
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    memset(expected, ROUNDS & 0xff, sizeof(expected));
    for (unsigned i = 0; i < WRITERS; i++) {
        g_assert_cmpint(block_node_pread(node, seen, writers[i].offset, 16, 0), ==, 0);
        g_assert_cmpmem(seen, 16, expected, 16);
    }
    g_assert_cmpint(block_node_pread(node, seen, 4096 + 84, 16, 0), ==, 0);
    memset(expected, 0, sizeof(expected));
    g_assert_cmpmem(seen, 16, expected, 16);
}

struct rewrite {
    struct block_node *node;
    uint64_t offset;
    pthread_t thread;
};

static void *rewrite_byte(void *data)
{
    struct rewrite *rewrite = data;
    uint8_t byte = 0x5a;

    g_assert_cmpint(block_node_pwrite(rewrite->node, &byte, rewrite->offset, 1, 0), ==, 0);
    return NULL;
}

/* One stands between reading and writing its sector: nobody else may read the old contents. */
static void test_rewrites_are_serialised(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=4096");
    struct rewrite rewrites[3];

    memory_disk_hold(node, BLOCK_OPERATION_WRITE);
    for (unsigned i = 0; i < 3; i++) {
        rewrites[i] = (struct rewrite){.node = node, .offset = 8192 + 10 * i};
        g_assert_cmpint(pthread_create(&rewrites[i].thread, NULL, rewrite_byte, &rewrites[i]), ==,
                        0);
    }
    memory_disk_wait_held(node, 1);
    for (int i = 0; i < 100; i++) {
        sched_yield();
    }
    g_assert_cmpuint(memory_disk_count(node, BLOCK_OPERATION_READ), ==, 1);
    memory_disk_release(node);
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(rewrites[i].thread, NULL);
    }
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpuint(memory_disk_data(node)[8192 + 10 * i], ==, 0x5a);
    }
}

/* ---- Limits -----------------------------------------------------------------------------------
 */

static void test_splitting(void)
{
    AUTO(block_node)
    node = test_open("driver=memory,discard=unmap,request-alignment=512,max-transfer=8k,"
                     "max-write-zeroes=64k,max-discard=16k");
    g_autofree uint8_t *data = g_malloc(20 * KIB);

    fill(data, 20 * KIB, 1);
    memory_disk_log(node);
    g_assert_cmpint(block_node_pwrite(node, data, 512, 20 * KIB, 0), ==, 0);
    expect_log(node, "write 512+8192; write 8704+8192; write 16896+4096");
    g_assert_cmpmem(memory_disk_data(node) + 512, 20 * KIB, data, 20 * KIB);
    memset(data, 0, 20 * KIB);
    g_assert_cmpint(block_node_pread(node, data, 0, 20 * KIB, 0), ==, 0);
    expect_log(node, "read 0+8192; read 8192+8192; read 16384+4096");
    g_assert_cmpmem(memory_disk_data(node), 20 * KIB, data, 20 * KIB);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 100 * KIB, 0), ==, 0);
    expect_log(node, "zero 0+65536; zero 65536+36864");
    g_assert_cmpint(block_node_discard(node, 100, 33 * KIB), ==, 0);
    expect_log(node, "discard 512+16384; discard 16896+16384; discard 33280+512");
}

/* The disk itself checks that no buffer is misaligned, also where a request is split. */
static void test_split_pieces_stay_aligned(void)
{
    AUTO(block_node)
    node = test_open("driver=memory,request-alignment=512,memory-alignment=4096,max-transfer=9k");
    uint8_t *data = g_aligned_alloc0(1, 64 * KIB, 4096);

    fill(data, 64 * KIB, 3);
    g_assert_cmpint(block_node_pwrite(node, data, 512, 64 * KIB, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data + 1, 300, 600, 0), ==, 0);
    g_assert_cmpmem(memory_disk_data(node) + 300, 600, data + 1, 600);
    g_assert_cmpmem(memory_disk_data(node) + 900, 60 * KIB, data + 388, 60 * KIB);
    g_aligned_free(data);
}

static void test_misaligned_memory(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=4M,memory-alignment=4096");
    uint8_t *data = g_aligned_alloc0(1, 3 * MIB, 4096);

    fill(data, 3 * MIB, 9);
    memory_disk_log(node);
    g_assert_cmpint(block_node_pwrite(node, data + 1, 5, 2 * MIB + 7, 0), ==, 0);
    expect_log(node, "write 5+1048576; write 1048581+1048576; write 2097157+7");
    g_assert_cmpmem(memory_disk_data(node) + 5, 2 * MIB + 7, data + 1, 2 * MIB + 7);
    memset(data, 0, 3 * MIB);
    g_assert_cmpint(block_node_pread(node, data + 1, 5, 2 * MIB + 7, 0), ==, 0);
    g_assert_cmpmem(memory_disk_data(node) + 5, 2 * MIB + 7, data + 1, 2 * MIB + 7);
    g_aligned_free(data);
}

static void test_buffer_of_any_size(void)
{
    AUTO(block_node) node = test_open("driver=memory,memory-alignment=8192");
    void *buffer = block_node_alloc_buffer(node, 100);

    g_assert_nonnull(buffer);
    g_assert_true(is_aligned((uintptr_t)buffer, 8192));
    free(buffer);
    g_assert_null(block_node_alloc_buffer(node, SIZE_MAX - 100));
}

static void test_alignment_larger_than_bounce(void)
{
    AUTO(block_node)
    node = test_open("driver=memory-plain,size=8M,request-alignment=2M,memory-alignment=512");
    g_autofree uint8_t *data = g_malloc(6 * MIB);

    fill(data, 6 * MIB, 5);
    g_assert_cmpint(block_node_pwrite(node, data + 1, 2 * MIB, 4 * MIB, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data, 7, 100, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 4 * MIB, 2 * MIB, 0), ==, 0);
    g_assert_cmpmem(memory_disk_data(node) + 2 * MIB, 2 * MIB, data + 1, 2 * MIB);
    g_assert_cmpmem(memory_disk_data(node) + 7, 100, data, 100);
    g_assert_cmpuint(memory_disk_data(node)[4 * MIB + 1], ==, 0);
    g_assert_cmpint(block_node_pread(node, data, 3, 5 * MIB, 0), ==, 0);
    g_assert_cmpmem(memory_disk_data(node) + 3, 5 * MIB, data, 5 * MIB);
}

/* ---- Zeroes and discards ----------------------------------------------------------------------
 */

static void test_zeroes_as_data(void)
{
    AUTO(block_node) plain = test_open("driver=memory-plain,size=4M");
    AUTO(block_node) node = test_open("driver=memory,max-write-zeroes=4k");
    g_autofree uint8_t *zeroes = g_malloc0(3 * MIB);

    memset(memory_disk_data(plain), 1, 4 * MIB);
    memory_disk_log(plain);
    g_assert_cmpint(block_node_write_zeroes(plain, 1, 2 * MIB, 0), ==, 0);
    expect_log(plain, "write 1+1048576; write 1048577+1048576");
    g_assert_cmpmem(memory_disk_data(plain) + 1, 2 * MIB, zeroes, 2 * MIB);
    g_assert_cmpuint(memory_disk_data(plain)[0], ==, 1);
    g_assert_cmpuint(memory_disk_data(plain)[2 * MIB + 1], ==, 1);

    /* A driver may refuse one piece and not the next. */
    memset(memory_disk_data(node), 1, MIB);
    memory_disk_log(node);
    memory_disk_fail(node, BLOCK_OPERATION_WRITE_ZEROES, -ENOTSUP, 1, 1);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 12 * KIB, 0), ==, 0);
    expect_log(node, "zero 0+4096; zero 4096+4096; write 4096+4096; zero 8192+4096");
    g_assert_cmpmem(memory_disk_data(node), 12 * KIB, zeroes, 12 * KIB);
}

static void test_no_fallback(void)
{
    AUTO(block_node) plain = test_open("driver=memory-plain,request-alignment=512");
    AUTO(block_node) sectors = test_open("driver=memory,request-alignment=512,max-write-zeroes=4k");
    uint8_t ones[4096], zeroes[8192] = {0};

    memset(ones, 1, sizeof(ones));
    memset(memory_disk_data(plain), 1, 4096);
    memset(memory_disk_data(sectors), 1, 8192);
    g_assert_cmpint(block_node_write_zeroes(plain, 0, 4096, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpmem(memory_disk_data(plain), 4096, ones, 4096);
    g_assert_cmpint(block_node_write_zeroes(sectors, 1, 2048, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    memory_disk_fail(sectors, BLOCK_OPERATION_WRITE_ZEROES, -ENOTSUP, 0, 1);
    g_assert_cmpint(block_node_write_zeroes(sectors, 0, 8192, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpmem(memory_disk_data(sectors), 4096, ones, 4096);
    g_assert_cmpuint(memory_disk_count(sectors, BLOCK_OPERATION_WRITE), ==, 0);
    /* What was begun is finished: never a refusal that has changed something. */
    memory_disk_fail(sectors, BLOCK_OPERATION_WRITE_ZEROES, -ENOTSUP, 1, 1);
    g_assert_cmpint(block_node_write_zeroes(sectors, 0, 8192, BLOCK_REQUEST_NO_FALLBACK), ==, 0);
    g_assert_cmpmem(memory_disk_data(sectors), 8192, zeroes, 8192);
}

static void test_discard_option(void)
{
    AUTO(block_node) ignoring = test_open("driver=memory");
    AUTO(block_node) unmapping = test_open("driver=memory,discard=unmap,request-alignment=4096");

    memory_disk_log(ignoring);
    memory_disk_log(unmapping);
    g_assert_cmpint(block_node_discard(ignoring, 0, MIB), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(ignoring, 0, 4096, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    expect_log(ignoring, "zero 0+4096");
    g_assert_cmpint(block_node_discard(unmapping, 1, 8191 + 4096), ==, 0);
    g_assert_cmpint(block_node_discard(unmapping, 1, 8190), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(unmapping, 0, 4096, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    expect_log(unmapping, "discard 4096+8192; zero 0+4096 unmap");
}

static void test_detect_zeroes(void)
{
    AUTO(block_node) on = test_open("driver=memory,detect-zeroes=on,discard=unmap");
    AUTO(block_node) unmap = test_open("driver=memory,detect-zeroes=unmap,discard=unmap");
    AUTO(block_node) off = test_open("driver=memory");
    uint8_t data[4096] = {0};

    memory_disk_log(on);
    memory_disk_log(unmap);
    memory_disk_log(off);
    g_assert_cmpint(block_node_pwrite(on, data, 1, 4000, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(unmap, data, 0, 4096, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(off, data, 0, 4096, 0), ==, 0);
    data[4095] = 1;
    g_assert_cmpint(block_node_pwrite(unmap, data, 0, 4096, 0), ==, 0);
    expect_log(on, "zero 1+4000");
    expect_log(unmap, "zero 0+4096 unmap; write 0+4096");
    expect_log(off, "write 0+4096");
}

/* ---- Flushes ----------------------------------------------------------------------------------
 */

static void test_fua(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=512");
    AUTO(block_node) native = test_open("driver=memory-fua");
    AUTO(block_node) filter = test_open("driver=memory-filter,file.driver=memory-fua");
    uint8_t data[1024] = {1};

    memory_disk_log(node);
    g_assert_cmpint(block_node_pwrite(node, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    expect_log(node, "write 0+512; flush");
    g_assert_cmpint(block_node_write_zeroes(node, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    expect_log(node, "zero 0+512; flush");
    g_assert_cmpint(block_node_pwrite(node, data, 1, 100, BLOCK_REQUEST_FUA), ==, 0);
    expect_log(node, "read 0+512; write 0+512; flush");
    memory_disk_fail(node, BLOCK_OPERATION_FLUSH, -EIO, 0, 1);
    g_assert_cmpint(block_node_pwrite(node, data, 0, 512, BLOCK_REQUEST_FUA), ==, -EIO);
    memory_disk_log(native);
    g_assert_cmpint(block_node_pwrite(native, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(native, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    expect_log(native, "write 0+512 fua; zero 0+512 fua");
    memory_disk_log(filter->file);
    g_assert_cmpint(block_node_pwrite(filter, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    expect_log(filter->file, "write 0+512; flush");
}

/* cache.no-flush holds for any driver that reaches storage, not only for files. */
static void test_no_flush(void)
{
    AUTO(block_node) plain = test_open("driver=memory,cache.no-flush=on");
    AUTO(block_node) native = test_open("driver=memory-fua,cache.no-flush=on");
    uint8_t data[512] = {1};

    memory_disk_log(plain);
    g_assert_cmpint(block_node_pwrite(plain, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_flush(plain), ==, 0);
    expect_log(plain, "write 0+512");
    memory_disk_log(native);
    g_assert_cmpint(block_node_pwrite(native, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_flush(native), ==, 0);
    expect_log(native, "write 0+512");
}

static void test_flush_elision(void)
{
    AUTO(block_node) top = test_open("driver=memory-filter,file.driver=memory");
    struct block_node *disk = top->file;
    uint8_t byte = 1;

    memory_disk_log(disk);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    expect_log(disk, "");
    g_assert_cmpint(block_node_pwrite(top, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    expect_log(disk, "write 0+1; flush");
    g_assert_cmpint(block_node_write_zeroes(top, 0, 1, 0), ==, 0);
    memory_disk_fail(disk, BLOCK_OPERATION_FLUSH, -EIO, 0, 2);
    g_assert_cmpint(block_node_flush(top), ==, -EIO);
    g_assert_cmpint(block_node_flush(top), ==, -EIO);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    expect_log(disk, "zero 0+1; flush; flush; flush");
    /* A write that failed may have changed something. */
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    g_assert_cmpint(block_node_pwrite(top, &byte, 0, 1, 0), ==, -EIO);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    expect_log(disk, "write 0+1; flush");
}

static void *write_a_byte(void *node)
{
    uint8_t byte = 7;

    g_assert_cmpint(block_node_pwrite(node, &byte, 9, 1, 0), ==, 0);
    return NULL;
}

/* A write that ends while a flush runs is not covered by it. */
static void *flush_it(void *node)
{
    g_assert_cmpint(block_node_flush(node), ==, 0);
    return NULL;
}

static void test_write_during_flush(void)
{
    AUTO(block_node) node = test_open("driver=memory");
    pthread_t flusher;

    write_a_byte(node);
    memory_disk_hold(node, BLOCK_OPERATION_FLUSH);
    g_assert_cmpint(pthread_create(&flusher, NULL, flush_it, node), ==, 0);
    memory_disk_wait_held(node, 1);
    write_a_byte(node);
    memory_disk_release(node);
    pthread_join(flusher, NULL);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpuint(memory_disk_count(node, BLOCK_OPERATION_FLUSH), ==, 2);
}

/* ---- Refusals ---------------------------------------------------------------------------------
 */

static void test_read_only(void)
{
    AUTO(block_node) node = test_open("driver=memory,read-only=on,discard=unmap");
    uint8_t data[512] = {1};

    g_assert_cmpint(block_node_pwrite(node, data, 0, 512, 0), ==, -EPERM);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 512, 0), ==, -EPERM);
    g_assert_cmpint(block_node_discard(node, 0, 512), ==, -EPERM);
    g_assert_cmpint(block_node_pwrite_compressed(node, data, 0, 512), ==, -EPERM);
    g_assert_cmpint(block_node_pwrite_from_fd(node, 0, 0, 0, 512), ==, -EPERM);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, 0, 512, 0), ==, 0);
    g_assert_cmpuint(data[0], ==, 0);
    g_assert_cmpuint(memory_disk_count(node, BLOCK_OPERATION_WRITE), ==, 0);
}

static void test_out_of_range(void)
{
    static const uint64_t ranges[][2] = {{MIB, 1},         {MIB - 1, 2},
                                         {UINT64_MAX, 2},  {1, UINT64_MAX},
                                         {0, MIB + 1},     {UINT64_MAX - 511, 512},
                                         {MIB + 1, 0},     {512, UINT64_MAX - 511},
                                         {INT64_MAX, 4096}};
    AUTO(block_node) node = test_open("driver=memory,discard=unmap,request-alignment=512");
    struct block_extent extent;
    uint8_t data[1];

    for (size_t i = 0; i < G_N_ELEMENTS(ranges); i++) {
        uint64_t offset = ranges[i][0], bytes = ranges[i][1];

        g_assert_cmpint(block_node_pread(node, data, offset, bytes, 0), ==, -EINVAL);
        g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, 0), ==, -EINVAL);
        g_assert_cmpint(block_node_write_zeroes(node, offset, bytes, 0), ==, -EINVAL);
        g_assert_cmpint(block_node_discard(node, offset, bytes), ==, -EINVAL);
        g_assert_cmpint(block_node_prefetch(node, offset, bytes), ==, -EINVAL);
        g_assert_cmpint(block_node_block_status(node, offset, bytes, &extent), ==, -EINVAL);
        g_assert_cmpint(block_node_copy_range(node, offset, node, 0, bytes), ==, -EINVAL);
        g_assert_cmpint(block_node_copy_range(node, 0, node, offset, bytes), ==, -EINVAL);
    }
    for (int operation = 0; operation < BLOCK_OPERATION_COUNT; operation++) {
        g_assert_cmpuint(memory_disk_count(node, operation), ==, 0);
    }
}

static void test_zero_length(void)
{
    AUTO(block_node) node = test_open("driver=memory,discard=unmap,request-alignment=512");

    g_assert_cmpint(block_node_pread(node, NULL, MIB, 0, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, NULL, 3, 0, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 0, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, MIB, 0), ==, 0);
    for (int operation = 0; operation < BLOCK_OPERATION_COUNT; operation++) {
        g_assert_cmpuint(memory_disk_count(node, operation), ==, 0);
    }
}

/* ---- Block status -----------------------------------------------------------------------------
 */

static void test_block_status_is_clipped(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=4096");
    AUTO(block_node) plain = test_open("driver=memory-plain");
    struct block_extent extent;

    memory_disk_data(node)[4096] = 1;
    g_assert_cmpint(block_node_block_status(node, 4096 + 100, 10, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, 10);
    g_assert_true(extent.flags & BLOCK_STATUS_DATA);
    g_assert_cmpuint(extent.host_offset, ==, 4096 + 100);
    g_assert_cmpint(block_node_block_status(node, 4096 + 100, MIB - 4196, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, 4096 - 100);
    g_assert_cmpint(block_node_block_status(node, MIB - 1, 1, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, 1);
    g_assert_true(extent.flags & BLOCK_STATUS_ZERO);
    g_assert_cmpint(block_node_block_status(node, 0, 0, &extent), ==, -EINVAL);
    g_assert_cmpint(block_node_block_status(plain, 1, 1000, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, 1000);
    g_assert_cmpuint(extent.flags, ==, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
}

static void check_status(struct block_node *node, uint64_t offset, unsigned wanted_flag,
                         unsigned wanted_depth)
{
    struct block_extent extent;
    unsigned depth;

    g_assert_cmpint(block_node_block_status_chain(node, offset, MIB - offset, &extent, &depth), ==,
                    0);
    g_assert_cmpuint(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, wanted_flag);
    g_assert_cmpuint(depth, ==, wanted_depth);
    g_assert_cmpuint(extent.bytes, >=, 1);
    g_assert_cmpuint(extent.bytes, <=, MIB - offset);
}

/* Three layers, the lowest shorter, with filters above and between. */
static void test_block_status_of_a_chain(void)
{
    AUTO(block_node)
    top = test_open("driver=memory-filter,file.driver=memory-layer,file.file.driver=memory,"
                    "file.backing.driver=memory-filter,file.backing.read-only=off,"
                    "file.backing.file.driver=memory-layer,"
                    "file.backing.file.file.driver=memory,"
                    "file.backing.file.backing.driver=memory,"
                    "file.backing.file.backing.size=512k");
    struct block_node *middle = top->file->backing->file;
    uint8_t data[4096], seen[4096];

    fill(data, 4096, 1);
    memory_disk_data(middle->backing)[16384] = 5;
    g_assert_cmpint(block_node_pwrite(middle, data, 4096, 4096, 0), ==, 0);
    g_assert_cmpint(block_node_pwrite(top, data, 8292, 1, 0), ==, 0);
    check_status(top, 8192, BLOCK_STATUS_DATA, 1);
    check_status(top, 4096, BLOCK_STATUS_DATA, 2);
    check_status(top, 16384, BLOCK_STATUS_DATA, 3);
    check_status(top, 0, BLOCK_STATUS_ZERO, 3);
    check_status(top, 512 * KIB, BLOCK_STATUS_ZERO, 0);
    g_assert_cmpint(block_node_pread(top, seen, 4096, 4096, 0), ==, 0);
    g_assert_cmpmem(seen, 4096, data, 4096);
}

/* ---- Notifiers and bitmaps --------------------------------------------------------------------
 */

struct recorder {
    struct write_notifier notifier;
    GString *log;
    char name;
    int status;
};

static int record(struct write_notifier *notifier, enum block_operation operation, uint64_t offset,
                  uint64_t bytes)
{
    struct recorder *recorder = (struct recorder *)notifier;

    g_string_append_printf(recorder->log, "%c%d:%d+%d ", recorder->name, (int)operation,
                           (int)offset, (int)bytes);
    return recorder->status;
}

static void test_notifiers(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=4096,discard=unmap");
    g_autoptr(GString) log = g_string_new(NULL);
    struct recorder a = {.notifier.before_write = record, .log = log, .name = 'a'};
    struct recorder b = {.notifier.before_write = record, .log = log, .name = 'b'};
    uint8_t data[10000] = {1};

    block_node_add_notifier(node, &a.notifier);
    block_node_add_notifier(node, &b.notifier);
    g_assert_cmpint(block_node_pwrite(node, data, 4000, 4300, 0), ==, 0);
    g_assert_cmpstr(log->str, ==,
                    "a1:0+4096 b1:0+4096 a1:4096+4096 b1:4096+4096 a1:8192+4096 b1:8192+4096 ");
    g_string_truncate(log, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 1, 1, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 8192, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, 1, 8192), ==, 0);
    g_assert_cmpstr(log->str, ==,
                    "a1:0+4096 b1:0+4096 a2:0+8192 b2:0+8192 a3:4096+4096 "
                    "b3:4096+4096 ");
    g_string_truncate(log, 0);
    a.status = -ENOSPC;
    memory_disk_log(node);
    g_assert_cmpint(block_node_pwrite(node, data, 0, 4096, 0), ==, -ENOSPC);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 4096, 0), ==, -ENOSPC);
    g_assert_cmpint(block_node_discard(node, 0, 4096), ==, -ENOSPC);
    g_assert_cmpstr(log->str, ==, "a1:0+4096 a2:0+4096 a3:0+4096 ");
    expect_log(node, "");
    block_node_remove_notifier(node, &a.notifier);
    block_node_remove_notifier(node, &b.notifier);
    g_assert_null(node->notifiers);
    g_assert_cmpint(block_node_pwrite(node, data, 0, 4096, 0), ==, 0);
}

static void test_bitmaps(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=512,discard=unmap");
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new("b", MIB, 512, NULL);
    AUTO(dirty_bitmap) disabled = dirty_bitmap_new("d", MIB, 512, NULL);
    uint8_t data[512] = {1};

    dirty_bitmap_set_enabled(disabled, false);
    block_node_add_bitmap(node, bitmap);
    block_node_add_bitmap(node, disabled);
    memory_disk_fail(node, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    g_assert_cmpint(block_node_pwrite(node, data, 1024, 512, 0), ==, -EIO);
    g_assert_true(dirty_bitmap_get(bitmap, 1024));
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 512);
    g_assert_cmpint(block_node_pwrite(node, data, 4095, 2, 0), ==, 0);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 512 + 1024);
    g_assert_cmpint(block_node_write_zeroes(node, 8192, 512, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, 16384, 512), ==, 0);
    g_assert_true(dirty_bitmap_get(bitmap, 8192) && dirty_bitmap_get(bitmap, 16384));
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 512 + 1024 + 1024);
    g_assert_cmpuint(dirty_bitmap_count(disabled), ==, 0);
    block_node_remove_bitmap(node, disabled);
    block_node_remove_bitmap(node, bitmap);
}

/* ---- Copy offload -----------------------------------------------------------------------------
 */

static void test_copy_range(void)
{
    AUTO(block_node) source = test_open("driver=memory-filter,file.driver=memory");
    AUTO(block_node) target = test_open("driver=memory,request-alignment=512,max-transfer=8k");
    AUTO(block_node) plain = test_open("driver=memory-plain");
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new("b", MIB, 512, NULL);

    fill(memory_disk_data(source->file), 64 * KIB, 1);
    block_node_add_bitmap(target, bitmap);
    memory_disk_log(target);
    g_assert_cmpint(block_node_copy_range(source, 3, target, 512, 16 * KIB), ==, 0);
    expect_log(target, "write 512+8192; write 8704+4096; write 12800+4096");
    g_assert_cmpmem(memory_disk_data(target) + 512, 16 * KIB, memory_disk_data(source->file) + 3,
                    16 * KIB);
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 16 * KIB);
    g_assert_cmpint(block_node_copy_range(source, 0, target, 1, 512), ==, -ENOTSUP);
    g_assert_cmpint(block_node_copy_range(plain, 0, target, 0, 512), ==, -ENOTSUP);
    g_assert_cmpint(block_node_copy_range(source, 0, plain, 0, 512), ==, -ENOTSUP);
    memory_disk_fail(target, BLOCK_OPERATION_WRITE, -EXDEV, 0, 1);
    g_assert_cmpint(block_node_copy_range(source, 0, target, 0, 512), ==, -ENOTSUP);
    memory_disk_fail(target, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    g_assert_cmpint(block_node_copy_range(source, 0, target, 0, 512), ==, -EIO);
    block_node_remove_bitmap(target, bitmap);
}

#define MODEL(name_, options_)                                                                     \
    g_test_add_data_func("/request/random-requests-match-a-byte-array/" name_,                     \
                         options_ ",size=256k", test_model)
#define LAYER                                                                                      \
    "driver=memory-layer,backing.driver=memory,backing.size=128k,"                                 \
    "file.driver=memory,file.size=256k,file.request-alignment=512"

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    MODEL("bytes", "driver=memory");
    MODEL("512", "driver=memory,discard=unmap,detect-zeroes=unmap,request-alignment=512");
    MODEL("4096", "driver=memory-fua,request-alignment=4096,memory-alignment=4096");
    MODEL("512-of-misaligned-memory", "driver=memory-plain,request-alignment=512,"
                                      "memory-alignment=4096,max-transfer=12k");
    MODEL("split", "driver=memory,discard=unmap,request-alignment=512,memory-alignment=512,"
                   "max-transfer=1536,max-write-zeroes=512,detect-zeroes=on");
    g_test_add_data_func("/request/random-requests-match-a-byte-array/layers", LAYER, test_model);
    g_test_add_data_func("/request/unaligned-writes-of-one-sector-lose-nothing/512",
                         "driver=memory,request-alignment=512", test_no_write_is_lost);
    g_test_add_data_func("/request/unaligned-writes-of-one-sector-lose-nothing/4096",
                         "driver=memory-plain,request-alignment=4096", test_no_write_is_lost);
    g_test_add_data_func("/request/unaligned-writes-of-one-sector-lose-nothing/filter",
                         "driver=memory-filter,file.driver=memory,file.request-alignment=4096",
                         test_no_write_is_lost);
    g_test_add_func("/request/one-rewrites-a-sector-at-a-time", test_rewrites_are_serialised);
    g_test_add_func("/request/large-requests-are-split", test_splitting);
    g_test_add_func("/request/split-pieces-stay-aligned", test_split_pieces_stay_aligned);
    g_test_add_func("/request/misaligned-memory-is-bounced", test_misaligned_memory);
    g_test_add_func("/request/a-buffer-too-large-is-refused", test_buffer_of_any_size);
    g_test_add_func("/request/huge-sectors-work", test_alignment_larger_than_bounce);
    g_test_add_func("/request/zeroes-are-written-as-data-where-needed", test_zeroes_as_data);
    g_test_add_func("/request/no-fallback-is-refused-without-change", test_no_fallback);
    g_test_add_func("/request/discard-ignore-reaches-nobody", test_discard_option);
    g_test_add_func("/request/zeroes-are-detected", test_detect_zeroes);
    g_test_add_func("/request/fua-is-emulated-by-a-flush", test_fua);
    g_test_add_func("/request/no-flush-drops-flushes-and-fua", test_no_flush);
    g_test_add_func("/request/a-flush-without-writes-is-elided", test_flush_elision);
    g_test_add_func("/request/a-write-during-a-flush-is-flushed-later", test_write_during_flush);
    g_test_add_func("/request/read-only-nodes-refuse-changes", test_read_only);
    g_test_add_func("/request/ranges-beyond-the-end-are-refused", test_out_of_range);
    g_test_add_func("/request/empty-requests-reach-nobody", test_zero_length);
    g_test_add_func("/request/block-status-is-clipped", test_block_status_is_clipped);
    g_test_add_func("/request/block-status-looks-through-filters-and-layers",
                    test_block_status_of_a_chain);
    g_test_add_func("/request/notifiers-run-in-order-and-can-refuse", test_notifiers);
    g_test_add_func("/request/bitmaps-record-failed-writes-too", test_bitmaps);
    g_test_add_func("/request/copies-inside-the-kernel", test_copy_range);
    return g_test_run();
}
