/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define LENGTH     UINT64_C(65536 + 1536)
#define WRITES_MAX 40

struct rig {
    struct test_image image;
    struct block_node *node;
};

static void rig_open(struct rig *rig, const char *more)
{
    test_image_make(&rig->image, LENGTH);
    rig->node = test_open("driver=lose-writes,discard=unmap,file.driver=file,file.filename=%s%s",
                          rig->image.path, more);
}

static void rig_close(struct rig *rig)
{
    block_node_unref(rig->node);
    test_image_remove(&rig->image, NULL);
}

static void assert_disk(struct rig *rig, const uint8_t *expected)
{
    g_autofree char *contents = NULL;
    size_t length;

    g_assert_true(g_file_get_contents(rig->image.path, &contents, &length, NULL));
    g_assert_cmpuint(length, ==, LENGTH);
    for (size_t i = 0; i < length; i++) {
        if ((uint8_t)contents[i] != expected[i]) {
            g_error("byte %zu is %u, not %u", i, (uint8_t)contents[i], expected[i]);
        }
    }
}

/* A write of the model: what it wrote, or zeroes. */
struct made {
    uint64_t offset, bytes;
    uint8_t value;
    bool is_durable;
};

static void play(uint8_t *disk, const struct made *made)
{
    memset(disk + made->offset, made->value, made->bytes);
}

/* Random requests; returns how many writes were made since the node was opened. */
static unsigned write_randomly(struct rig *rig, struct test_random *random, struct made *made)
{
    static uint8_t buffer[LENGTH];
    unsigned count = 0;

    while (count < WRITES_MAX) {
        struct made *one = &made[count];
        unsigned kind = (unsigned)test_random_below(random, 20);

        if (kind == 0) {
            g_assert_cmpint(block_node_flush(rig->node), ==, 0);
            for (unsigned i = 0; i < count; i++) {
                made[i].is_durable = true;
            }
            continue;
        }
        test_random_range(random, LENGTH, 1, 20000, &one->offset, &one->bytes);
        one->is_durable = kind == 1;
        one->value = (uint8_t)(kind < 14 ? 1 + test_random_below(random, 255) : 0);
        memset(buffer, one->value, one->bytes);
        if (kind < 14) {
            g_assert_cmpint(block_node_pwrite(rig->node, buffer, one->offset, one->bytes,
                                              kind == 1 ? BLOCK_REQUEST_FUA : 0),
                            ==, 0);
        } else if (kind < 17) {
            g_assert_cmpint(block_node_write_zeroes(rig->node, one->offset, one->bytes, 0), ==, 0);
        } else {
            g_assert_cmpint(block_node_discard(rig->node, one->offset, one->bytes), ==, 0);
        }
        count++;
    }
    return count;
}

static void test_model(void)
{
    struct test_random random = test_random_new(test_seed());

    for (int round = 0; round < 300; round++) {
        g_autofree uint8_t *expected = g_malloc0(LENGTH);
        struct made made[WRITES_MAX];
        uint64_t numbers[WRITES_MAX];
        struct lose_writes_plan plan = {.has_numbers = round % 4 != 0, .probability = 100};
        struct lose_writes_result result;
        struct rig rig;
        unsigned count, lost = 0, kept = 0;

        rig_open(&rig, "");
        count = write_randomly(&rig, &random, made);
        plan.numbers = numbers;
        for (unsigned i = 0; i < count; i++) {
            bool is_lost = !plan.has_numbers || test_random_chance(&random, 50);

            if (is_lost) {
                numbers[plan.number_count++] = i + 1;
            }
            if (!is_lost || made[i].is_durable) {
                play(expected, &made[i]);
            }
            lost += is_lost && !made[i].is_durable;
            kept += !is_lost && !made[i].is_durable;
        }
        g_assert_cmpint(lose_writes_now(rig.node, &plan, &result, NULL), ==, 0);
        g_assert_cmpuint(result.lost, ==, lost);
        g_assert_cmpuint(result.kept, ==, kept);
        assert_disk(&rig, expected);
        rig_close(&rig);
    }
}

static void test_tear(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned old = 0, new = 0;

    for (int round = 0; round < 20; round++) {
        struct lose_writes_plan plan = {
            .probability = 50, .tear = 512, .seed = test_random_u64(&random)};
        g_autofree uint8_t *buffer = g_malloc(LENGTH);
        g_autofree char *contents = NULL;
        struct lose_writes_result result;
        struct rig rig;
        size_t length;

        rig_open(&rig, "");
        memset(buffer, 1, LENGTH);
        g_assert_cmpint(block_node_pwrite(rig.node, buffer, 0, LENGTH, 0), ==, 0);
        g_assert_cmpint(block_node_flush(rig.node), ==, 0);
        memset(buffer, 2, LENGTH);
        g_assert_cmpint(block_node_pwrite(rig.node, buffer, 0, LENGTH, 0), ==, 0);
        g_assert_cmpint(lose_writes_now(rig.node, &plan, &result, NULL), ==, 0);
        g_assert_cmpuint(result.lost, ==, 1);
        g_assert_true(g_file_get_contents(rig.image.path, &contents, &length, NULL));
        for (size_t at = 0; at < length; at += 512) {
            memset(buffer, contents[at], 512);
            g_assert_cmpmem(contents + at, 512, buffer, 512);
            g_assert_true(contents[at] == 1 || contents[at] == 2);
            old += contents[at] == 1;
            new += contents[at] == 2;
        }
        rig_close(&rig);
    }
    g_assert_cmpuint(old, >, 500);
    g_assert_cmpuint(new, >, 500);
}

static void test_end(void)
{
    struct lose_writes_plan plan = {.probability = 100};
    struct lose_writes_status status;
    struct lose_writes_result result;
    g_autofree uint8_t *expected = g_malloc0(LENGTH);
    uint8_t buffer[512];
    struct block_extent extent;
    struct rig rig;

    rig_open(&rig, "");
    memset(buffer, 7, sizeof(buffer));
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 512, 512, BLOCK_REQUEST_FUA), ==, 0);
    memset(expected + 512, 7, 512);
    g_assert_cmpint(lose_writes_arm(rig.node, 1, &plan, NULL), <, 0);
    g_assert_cmpint(lose_writes_arm(rig.node, 3, &plan, NULL), ==, 0);
    plan.probability = 100;
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 1024, 512, 0), ==, 0);
    g_assert_cmpint(lose_writes_get_status(rig.node, &status, NULL), ==, 0);
    g_assert_cmpuint(status.writes, ==, 2);
    g_assert_cmpuint(status.at_write, ==, 3);
    g_assert_cmpuint(status.unflushed, ==, 1);
    g_assert_cmpuint(status.records[0].number, ==, 2);
    g_assert_cmpuint(status.records[0].offset, ==, 1024);
    lose_writes_status_clear(&status);
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 2048, 512, 0), ==, -EIO);
    assert_disk(&rig, expected);
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 2048, 512, 0), ==, -EIO);
    g_assert_cmpint(block_node_pread(rig.node, buffer, 2048, 512, 0), ==, -EIO);
    g_assert_cmpint(block_node_write_zeroes(rig.node, 0, 4096, 0), ==, -EIO);
    g_assert_cmpint(block_node_discard(rig.node, 0, 4096), ==, -EIO);
    g_assert_cmpint(block_node_flush(rig.node), ==, -EIO);
    g_assert_cmpint(block_node_block_status(rig.node, 0, 512, &extent), ==, -EIO);
    g_assert_cmpint(lose_writes_now(rig.node, &plan, &result, NULL), ==, -ESHUTDOWN);
    block_node_unref(rig.node);
    assert_disk(&rig, expected);
    g_free(rig.image.path);
    test_directory_free(rig.image.directory);
}

static void test_bound(void)
{
    static uint8_t buffer[32768];
    struct rig rig;

    memset(buffer, 1, sizeof(buffer));
    rig_open(&rig, ",max-log=40k");
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 0, 32768, 0), ==, 0);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*max-log*");
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 32768, 32768, 0), ==, -ENOBUFS);
    g_test_assert_expected_messages();
    g_assert_cmpint(block_node_flush(rig.node), ==, 0);
    g_assert_cmpint(block_node_pwrite(rig.node, buffer, 32768, 32768, 0), ==, 0);
    rig_close(&rig);
}

/* ---- Many threads: each has its own slice, so that the model needs no lock. ------------------ */

#define THREADS     8
#define SLICE       UINT64_C(8192)
#define SLICE_SHIFT UINT64_C(512) /* slices share blocks of the log */

struct writer {
    struct block_node *node;
    pthread_t thread;
    uint64_t offset;
    uint64_t seed;
    uint8_t durable; /* the last round that was flushed */
    uint8_t newest;  /* the last round that was begun */
};

static void *write_rounds(void *data)
{
    struct writer *writer = data;
    struct test_random random = test_random_new(writer->seed);
    uint8_t buffer[SLICE];

    for (uint8_t round = 1; round < 250; round++) {
        memset(buffer, round, SLICE);
        writer->newest = round;
        if (block_node_pwrite(writer->node, buffer, writer->offset, SLICE, 0) < 0) {
            break;
        }
        if (test_random_chance(&random, 20)) {
            if (block_node_flush(writer->node) < 0) {
                break;
            }
            writer->durable = round;
        }
    }
    return NULL;
}

static void test_many_threads(void)
{
    struct test_random random = test_random_new(test_seed());

    for (int round = 0; round < 20; round++) {
        struct lose_writes_plan plan = {
            .probability = 50, .tear = 512, .seed = test_random_u64(&random)};
        struct writer writers[THREADS];
        g_autofree char *contents = NULL;
        struct rig rig;
        size_t length;

        rig_open(&rig, "");
        g_assert_cmpint(lose_writes_arm(rig.node, 1 + test_random_below(&random, 800), &plan, NULL),
                        ==, 0);
        for (unsigned i = 0; i < THREADS; i++) {
            writers[i] = (struct writer){.node = rig.node,
                                         .offset = i * SLICE + SLICE_SHIFT,
                                         .seed = test_random_u64(&random)};
            pthread_create(&writers[i].thread, NULL, write_rounds, &writers[i]);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            pthread_join(writers[i].thread, NULL);
        }
        g_assert_true(g_file_get_contents(rig.image.path, &contents, &length, NULL));
        for (unsigned i = 0; i < THREADS; i++) {
            for (uint64_t at = 0; at < SLICE; at++) {
                uint8_t found = (uint8_t)contents[writers[i].offset + at];

                g_assert_cmpuint(found, >=, writers[i].durable);
                g_assert_cmpuint(found, <=, writers[i].newest);
            }
        }
        rig_close(&rig);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    /* A node that has ended warns that its last flush failed, as it should. */
    g_log_set_always_fatal(G_LOG_LEVEL_CRITICAL | G_LOG_FATAL_MASK);
    g_test_add_func("/lose-writes/any-subset-lost-leaves-the-right-bytes", test_model);
    g_test_add_func("/lose-writes/torn-writes-are-old-or-new-by-sector", test_tear);
    g_test_add_func("/lose-writes/a-numbered-write-ends-the-node", test_end);
    g_test_add_func("/lose-writes/memory-is-bounded-with-an-error", test_bound);
    g_test_add_func("/lose-writes/what-was-flushed-stays-under-many-writers", test_many_threads);
    return g_test_run();
}
