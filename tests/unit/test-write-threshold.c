/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/write-threshold.h"

#include <pthread.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/event-log.h"
#include "tests/lib/fault-driver.h"

#define LENGTH (256 * KIB)

static uint8_t buffer[64 * KIB];

static struct block_node *open_disk(void)
{
    return test_open("driver=raw,node-name=top,discard=unmap,file.driver=fault,file.node-name=low,"
                     "file.discard=unmap,file.file.driver=null-co,file.file.size=%u",
                     (unsigned)LENGTH);
}

static void write_at(struct block_node *node, uint64_t offset, size_t bytes)
{
    g_assert_cmpint(block_node_pwrite(node, buffer, offset, bytes, 0), ==, 0);
}

static void expect_event(const char *fields)
{
    EXPECT("BLOCK_WRITE_THRESHOLD");
    g_autofree char *found = event_log_fields("BLOCK_WRITE_THRESHOLD");
    g_assert_cmpstr(found, ==, fields);
}

static void test_once(void)
{
    AUTO(block_node) node = open_disk();

    write_at(node, 0, 64 * KIB); /* what was before does not matter */
    write_threshold_set(node, 32 * KIB);
    write_at(node, 0, 32 * KIB); /* just up to it */
    g_assert_cmpuint(write_threshold_get(node), ==, 32 * KIB);
    EXPECT_NOTHING();
    write_at(node, 30 * KIB, 2 * KIB + 1);
    expect_event("node-name=top amount-exceeded=1 write-threshold=32768");
    g_assert_cmpuint(write_threshold_get(node), ==, 0);
    write_at(node, 100 * KIB, 1);
    EXPECT_NOTHING();
    write_threshold_set(node, 1); /* and again, but only once it is wanted again */
    write_threshold_set(node, 0);
    write_at(node, 0, 64 * KIB);
    EXPECT_NOTHING();
}

static void test_requests(void)
{
    AUTO(block_node) node = open_disk();

    write_threshold_set(node, KIB);
    g_assert_cmpint(block_node_discard(node, 0, 64 * KIB), ==, 0);
    g_assert_cmpint(block_node_pread(node, buffer, 0, 64 * KIB, 0), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    EXPECT_NOTHING();
    g_assert_cmpint(block_node_write_zeroes(node, 0, 4 * KIB, 0), ==, 0);
    expect_event("node-name=top amount-exceeded=3072 write-threshold=1024");
}

static void test_own_offsets(void)
{
    AUTO(block_node) node = test_open("driver=raw,node-name=top,offset=65536,size=65536,"
                                      "file.driver=null-co,file.node-name=low,file.size=%u",
                                      (unsigned)LENGTH);
    AUTO(block_node) low = block_node_find("low");

    write_threshold_set(node, 60 * KIB);
    write_threshold_set(low, 60 * KIB);
    write_at(node, 0, 1);
    expect_event("node-name=low amount-exceeded=4097 write-threshold=61440");
    g_assert_cmpuint(write_threshold_get(node), ==, 60 * KIB);
}

/* Whoever has to make room wants to know just then. */
static void test_failed_write(void)
{
    AUTO(block_node) node = open_disk();
    AUTO(block_node) low = block_node_find("low");

    write_threshold_set(node, KIB);
    FAULT(low, .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    g_assert_cmpint(block_node_pwrite(node, buffer, 0, 4 * KIB, 0), ==, -ENOSPC);
    expect_event("node-name=top amount-exceeded=3072 write-threshold=1024");
}

static void *write_many(void *node)
{
    for (unsigned i = 0; i < 1000; i++) {
        write_at(node, i % 16 * 4 * KIB, 4 * KIB);
    }
    return NULL;
}

static void test_threads(void)
{
    AUTO(block_node) node = open_disk();
    pthread_t threads[4];

    write_threshold_set(node, 1);
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, write_many, node), ==, 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    EXPECT("BLOCK_WRITE_THRESHOLD");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    event_log_start();
    g_test_add_func("/write-threshold/the-first-write-beyond-is-told-once", test_once);
    g_test_add_func("/write-threshold/only-writes-count", test_requests);
    g_test_add_func("/write-threshold/offsets-are-the-nodes-own", test_own_offsets);
    g_test_add_func("/write-threshold/failed-writes-are-told", test_failed_write);
    g_test_add_func("/write-threshold/of-many-threads-one-tells", test_threads);
    int status = g_test_run();
    event_log_stop();
    return status;
}
