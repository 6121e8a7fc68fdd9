/* SPDX-License-Identifier: BSD-3-Clause */
/* What was zeroed in a qcow2 image stays so when a backing file is put under it later. */
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define LENGTH       (2 * MIB + 512) /* ends inside a cluster */
#define SECTOR       UINT64_C(512)
#define CASES        40
#define BACKING_BYTE 0xba
#define UNTOUCHED    0xff /* in the model: neither written nor zeroed */

static struct block_node *create(const char *options, uint64_t length)
{
    struct block_node *file = test_open("driver=memory,node-name=file,size=0");

    test_create_image("driver=qcow2,file=file,size=%" PRIu64 "%s", length, options);
    return file;
}

/* ---- A backing file that comes later -------------------------------------------------------- */

static void change_some(struct test_random *random, struct block_node *node, uint8_t *model)
{
    uint64_t offset, bytes, most = test_random_chance(random, 50) ? 8 * KIB : 256 * KIB;
    bool is_zero = test_random_chance(random, 60);
    uint8_t byte = is_zero ? 0 : (uint8_t)test_random_between(random, 1, 0x80);
    unsigned flags = test_random_chance(random, 50) ? BLOCK_REQUEST_MAY_UNMAP : 0;
    g_autofree uint8_t *buffer = g_malloc(256 * KIB);

    test_random_range(random, LENGTH, SECTOR, most, &offset, &bytes);
    memset(buffer, byte, bytes);
    memset(model + offset, byte, bytes);
    int status = is_zero ? block_node_write_zeroes(node, offset, bytes, flags)
                         : block_node_pwrite(node, buffer, offset, bytes, 0);
    g_assert_cmpint(status, ==, 0);
}

static bool is_untouched(const uint8_t *model, uint64_t start, uint64_t end)
{
    for (uint64_t at = start; at < MIN_OF(end, LENGTH); at++) {
        if (model[at] != UNTOUCHED) {
            return false;
        }
    }
    return true;
}

/* What nobody touched in a cluster may have become zeroes with the rest. */
static void check_over_backing(struct block_node *node, const uint8_t *model, uint64_t cluster)
{
    g_autofree uint8_t *buffer = g_malloc(LENGTH);

    g_assert_cmpint(block_node_pread(node, buffer, 0, LENGTH, 0), ==, 0);
    for (uint64_t start = 0; start < LENGTH; start += cluster) {
        uint8_t rest = is_untouched(model, start, start + cluster) ? BACKING_BYTE : 0;

        for (uint64_t at = start; at < MIN_OF(start + cluster, LENGTH); at++) {
            if (model[at] != UNTOUCHED) {
                g_assert_cmphex(buffer[at], ==, model[at]);
            } else if (buffer[at] != BACKING_BYTE) {
                g_assert_cmphex(buffer[at], ==, rest);
            }
        }
    }
}

static void run_case(struct test_random *random, const char *options, uint64_t cluster)
{
    AUTO(block_node) file = create(options, LENGTH);
    AUTO(block_node) backing =
        test_open("driver=memory,node-name=base,size=%" PRIu64, align_up(LENGTH, MIB));
    g_autofree uint8_t *model = g_malloc(LENGTH);
    struct block_node *node = test_open("driver=qcow2,discard=unmap,file=file");

    memset(memory_disk_data(backing), BACKING_BYTE, align_up(LENGTH, MIB));
    memset(model, UNTOUCHED, LENGTH);
    for (unsigned i = (unsigned)test_random_below(random, 12); i > 0; i--) {
        change_some(random, node, model);
    }
    block_node_unref(node);
    node = test_open("driver=qcow2,file=file,backing=base");
    check_over_backing(node, model, cluster);
    block_node_unref(node);
}

static void test_later_backing(void)
{
    static const struct {
        const char *options;
        uint64_t cluster;
    } kinds[] = {
        {"", 64 * KIB},
        {",cluster-size=512", 512},
        {",cluster-size=65536,extended-l2=on", 64 * KIB},
        {",cluster-size=16384,extended-l2=on", 16 * KIB},
        {",cluster-size=4096", 4 * KIB},
    };
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = 0; i < test_cases(CASES); i++) {
        size_t kind = test_random_below(&random, G_N_ELEMENTS(kinds));

        run_case(&random, kinds[kind].options, kinds[kind].cluster);
    }
}

/* ---- What it costs -------------------------------------------------------------------------- */

static unsigned status_at(struct block_node *node, uint64_t offset)
{
    struct block_extent extent;

    g_assert_cmpint(block_node_block_status(node, offset, 1, &extent), ==, 0);
    return extent.flags;
}

/* Tables for all of it are written once; who zeroes it again finds nothing to do. */
static void test_huge(void)
{
    const uint64_t length = 64 * GIB;
    AUTO(block_node) file = create("", length);
    AUTO(block_node) node = test_open("driver=qcow2,discard=unmap,file=file");

    g_assert_cmpint(block_node_write_zeroes(node, 0, length, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmphex(status_at(node, length - 1), ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpuint(block_node_length(file), <, 32 * MIB);
    unsigned writes = memory_disk_count(file, BLOCK_OPERATION_WRITE);
    g_assert_cmpint(block_node_write_zeroes(node, 0, length, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 1000, 3000, 0), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpuint(memory_disk_count(file, BLOCK_OPERATION_WRITE), ==, writes);
}

static void test_discard(void)
{
    AUTO(block_node) file = create("", 4 * MIB);
    AUTO(block_node) node = test_open("driver=qcow2,discard=unmap,file=file");

    g_assert_cmpint(block_node_write_zeroes(node, 0, 2 * MIB, 0), ==, 0);
    g_assert_cmphex(status_at(node, MIB), ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
    g_assert_cmphex(status_at(node, 3 * MIB), ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, 4 * MIB), ==, 0);
    g_assert_cmphex(status_at(node, MIB), ==, 0);
}

/* There are no zero clusters. */
static void test_version_2(void)
{
    AUTO(block_node) file = create(",version=v2", 4 * MIB);
    AUTO(block_node) node = test_open("driver=qcow2,discard=unmap,file=file");

    g_assert_cmpint(block_node_write_zeroes(node, 0, 2 * MIB, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    g_assert_cmphex(status_at(node, MIB), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    g_test_add_func("/qcow2-zero/a-backing-file-that-comes-later-is-hidden", test_later_backing);
    g_test_add_func("/qcow2-zero/huge-ranges-cost-their-tables-once", test_huge);
    g_test_add_func("/qcow2-zero/what-is-discarded-is-unallocated", test_discard);
    g_test_add_func("/qcow2-zero/version-2-has-unallocated-clusters-instead", test_version_2);
    return g_test_run();
}
