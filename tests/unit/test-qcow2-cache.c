/* SPDX-License-Identifier: BSD-3-Clause */
/* The caches of qcow2 tables have the size that was asked for, and count what they are worth. */
#include <glib.h>
#include <inttypes.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"

/* In clusters of 512 bytes an L2 table covers 32 KiB of the disk, a refcount block 128 KiB of the
 * file. */
#define CLUSTER  512
#define LENGTH   (2 * MIB)
#define TABLE    (32 * KIB)
#define TABLES   (LENGTH / TABLE)
#define REFBLOCK (128 * KIB)

static void set_up(struct test_image *image, const void *unused)
{
    test_image_make(image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=%d %s %" PRIu64, CLUSTER,
                          image->path, LENGTH);
    test_command_succeeds("qemu-io -f qcow2 -c 'write -P 17 0 %" PRIu64 "' %s", LENGTH,
                          image->path);
}

static struct block_node *open_image(struct test_image *image, const char *options)
{
    return test_open("driver=qcow2,discard=unmap,%sfile.driver=file,file.filename=%s", options,
                     image->path);
}

static uint64_t number(struct block_node *node, const char *name)
{
    json_t *statistics = block_node_get_statistics(node);
    const json_t *value = json_object_get(statistics, name);

    g_assert_true(json_is_integer(value));
    uint64_t result = (uint64_t)json_integer_value(value);
    json_decref(statistics);
    return result;
}

/* Read something that each table is needed for. */
static void read_round(struct block_node *node)
{
    uint8_t byte;

    for (uint64_t i = 0; i < TABLES; i++) {
        g_assert_cmpint(block_node_pread(node, &byte, i * TABLE, 1, 0), ==, 0);
        g_assert_cmpint(byte, ==, 17);
    }
}

/* What a second look at every table misses. */
static uint64_t misses_of_reads(struct test_image *image, const char *options)
{
    AUTO(block_node) node = open_image(image, options);

    g_assert_cmpuint(number(node, "l2-cache-hits") + number(node, "l2-cache-misses"), ==, 0);
    read_round(node);
    g_assert_cmpuint(number(node, "l2-cache-misses"), ==, TABLES);
    uint64_t hits = number(node, "l2-cache-hits");
    read_round(node);
    uint64_t misses = number(node, "l2-cache-misses") - TABLES;
    g_assert_cmpuint(number(node, "l2-cache-hits") - hits + misses, >=, TABLES);
    return misses;
}

static void test_l2(struct test_image *image, const void *unused)
{
    g_assert_cmpuint(misses_of_reads(image, "l2-cache-size=4k,"), ==, TABLES);
    g_assert_cmpuint(misses_of_reads(image, "l2-cache-size=64k,"), ==, 0);
    g_assert_cmpuint(misses_of_reads(image, "cache-size=8k,"), ==, TABLES);
    g_assert_cmpuint(misses_of_reads(image, "cache-size=128k,"), ==, 0);
    g_assert_cmpuint(misses_of_reads(image, ""), ==, 0);
}

/* Give up a cluster of each block, so that its refcount falls. */
static void discard_round(struct block_node *node, uint64_t from)
{
    for (uint64_t at = from; at < LENGTH; at += REFBLOCK) {
        g_assert_cmpint(block_node_discard(node, at, CLUSTER), ==, 0);
        g_assert_cmpint(block_node_flush(node), ==, 0);
    }
}

static uint64_t misses_of_discards(struct test_image *image, uint64_t from, const char *options)
{
    AUTO(block_node) node = open_image(image, options);

    discard_round(node, from);
    uint64_t before = number(node, "refcount-cache-misses");
    uint64_t hits = number(node, "refcount-cache-hits");
    g_assert_cmpuint(before, >=, LENGTH / REFBLOCK);
    discard_round(node, from + CLUSTER);
    uint64_t misses = number(node, "refcount-cache-misses") - before;
    g_assert_cmpuint(misses + number(node, "refcount-cache-hits") - hits, >=, LENGTH / REFBLOCK);
    return misses;
}

static void test_refcounts(struct test_image *image, const void *unused)
{
    g_assert_cmpuint(misses_of_discards(image, 0, "refcount-cache-size=1,"), >=, LENGTH / REFBLOCK);
    g_assert_cmpuint(misses_of_discards(image, 4 * KIB, "refcount-cache-size=64k,"), ==, 0);
    g_assert_cmpuint(misses_of_discards(image, 8 * KIB, "cache-size=4k,"), >=, LENGTH / REFBLOCK);
    g_assert_cmpuint(misses_of_discards(image, 12 * KIB, "cache-size=256k,"), ==, 0);
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

/* What is not said follows from the rest, and nothing is too small to work with. */
static void test_sizes(struct test_image *image, const void *unused)
{
    static const struct {
        const char *options;
        uint64_t l2, refcounts;
    } cases[] = {
        {"", 32 * MIB, 2 * MIB},
        {"l2-cache-size=1,refcount-cache-size=1,", 4 * CLUSTER, 4 * CLUSTER},
        {"l2-cache-size=1M,", MIB, 2 * MIB},
        {"refcount-cache-size=64k,", 32 * MIB, 64 * KIB},
        {"cache-size=1M,", 768 * KIB, 256 * KIB},
        {"cache-size=64M,", 62 * MIB, 2 * MIB},
        {"cache-size=1M,l2-cache-size=900k,", 900 * KIB, 124 * KIB},
        {"cache-size=1M,refcount-cache-size=900k,", 124 * KIB, 900 * KIB},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        AUTO(block_node) node = open_image(image, cases[i].options);

        g_test_message("%s", cases[i].options);
        g_assert_cmpuint(number(node, "l2-cache-size"), ==, cases[i].l2);
        g_assert_cmpuint(number(node, "refcount-cache-size"), ==, cases[i].refcounts);
    }
    g_autofree char *reason =
        test_open_error("driver=qcow2,cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M,"
                        "file.driver=file,file.filename=%s",
                        image->path);
    g_assert_cmpstr(reason, ==,
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same "
                    "time");
}

#define ADD(name, test)                                                                            \
    g_test_add("/qcow2-cache/" name, struct test_image, NULL, set_up, test, test_image_remove)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    ADD("a-small-cache-of-l2-tables-misses-and-a-big-one-hits", test_l2);
    ADD("a-small-cache-of-refcounts-misses-and-a-big-one-hits", test_refcounts);
    ADD("sizes-that-are-not-given-follow-from-the-others", test_sizes);
    return g_test_run();
}
