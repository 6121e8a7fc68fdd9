/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

static void test_reads_zeroes(const void *driver)
{
    AUTO(block_node) node = test_open("driver=%s,discard=unmap", (const char *)driver);
    uint8_t data[512];
    struct block_extent extent;

    g_assert_cmpuint(block_node_length(node), ==, GIB);
    memset(data, 0x55, sizeof(data));
    g_assert_cmpint(block_node_pwrite(node, data, GIB - 512, 512, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 0, GIB, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, GIB), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_pread(node, data, GIB - 512, 512, 0), ==, 0);
    g_assert_true(data[0] == 0 && data[511] == 0);
    g_assert_cmpint(block_node_pread(node, data, GIB, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_block_status(node, 0, GIB, &extent), ==, 0);
    g_assert_true(extent.flags & BLOCK_STATUS_DATA);
    g_assert_cmpint(block_node_get_allocated_size(node), ==, 0);
}

static void test_options(void)
{
    AUTO(block_node) node = test_open("driver=null-co,size=3T,read-zeroes=on,latency-ns=2000000");
    g_autofree char *negative = test_open_error("driver=null-co,size=-1");
    g_autofree char *huge = test_open_error("driver=null-co,size=15E");
    struct block_extent extent;
    char data[1];
    int64_t before = clock_now_ns();

    g_assert_cmpuint(block_node_length(node), ==, 3 * TIB);
    g_assert_cmpint(block_node_pread(node, data, 0, 1, 0), ==, 0);
    g_assert_cmpint(clock_now_ns() - before, >=, 2 * NS_PER_MS);
    g_assert_cmpint(block_node_block_status(node, TIB, GIB, &extent), ==, 0);
    g_assert_true(extent.flags & BLOCK_STATUS_ZERO);
    g_assert_nonnull(strstr(negative, "size"));
    g_assert_nonnull(strstr(huge, "too large"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_data_func("/null/null-co-forgets-and-reads-zeroes", "null-co", test_reads_zeroes);
    g_test_add_data_func("/null/null-aio-forgets-and-reads-zeroes", "null-aio", test_reads_zeroes);
    g_test_add_func("/null/options-are-obeyed-or-refused", test_options);
    return g_test_run();
}
