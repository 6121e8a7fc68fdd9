/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Nodes of throttle groups. Who waits is seen in the queue inside a throttle, so its source is
 * included here.
 */
#include "block/throttle.c"

#include <glib.h>
#include <sched.h>
#include <string.h>

#include "block/device.h"
#include "block/drain.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/throttle-group.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

#define BYTES 512

/* Disks a and b, each with a filter of the group "g", which lets nearly nothing be written. */
struct rig {
    struct block_node *disks[2], *filters[2];
    struct block_device *devices[2];
    struct throttle_group *group;
};

static struct throttle_limits write_limit(uint64_t bytes_per_second)
{
    struct throttle_limits limits = {0};

    limits.buckets[THROTTLE_BPS_WRITE].average = bytes_per_second;
    return limits;
}

static void set_up(struct rig *rig, const void *unused)
{
    struct throttle_limits limits = write_limit(1);

    g_assert_cmpint(throttle_group_create("g", &limits, NULL), ==, 0);
    rig->group = throttle_group_find("g");
    for (int i = 0; i < 2; i++) {
        rig->disks[i] = test_open("driver=memory,node-name=disk%d", i);
        rig->filters[i] =
            test_open("driver=throttle,node-name=t%d,file=disk%d,throttle-group=g", i, i);
        rig->devices[i] = block_device_new(i ? "b" : "a", rig->filters[i], NULL);
        g_assert_nonnull(rig->devices[i]);
    }
}

static void tear_down(struct rig *rig, const void *unused)
{
    throttle_group_unref(rig->group);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(throttle_group_delete("g"), ==, -EBUSY);
        block_device_remove(rig->devices[i]);
        block_node_unref(rig->filters[i]);
        block_node_unref(rig->disks[i]);
    }
    g_assert_cmpint(throttle_group_delete("g"), ==, 0);
    g_assert_cmpint(throttle_group_delete("g"), ==, -ENOENT);
}

static void write_one(struct block_device *device)
{
    uint8_t data[BYTES];

    memset(data, 7, sizeof(data));
    g_assert_cmpint(block_device_pwrite(device, data, 0, sizeof(data), 0), ==, 0);
}

static void *write_in_thread(void *device)
{
    write_one(device);
    return NULL;
}

static pthread_t start_write(struct block_device *device)
{
    pthread_t thread;

    g_assert_cmpint(pthread_create(&thread, NULL, write_in_thread, device), ==, 0);
    return thread;
}

static unsigned count_waiters(struct rig *rig)
{
    struct throttle *throttle = throttle_group_throttle(rig->group);
    struct waiter *waiter;
    unsigned count = 0;
    SCOPE_LOCK(&throttle->lock);

    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        TAILQ_FOREACH (waiter, &throttle->waiters[direction], entry) {
            count++;
        }
    }
    return count;
}

static void wait_until_waiting(struct rig *rig, unsigned count)
{
    while (count_waiters(rig) != count) {
        sched_yield();
    }
}

static void set_limit(struct rig *rig, uint64_t bytes_per_second)
{
    struct throttle_limits limits = write_limit(bytes_per_second);

    throttle_set_limits(throttle_group_throttle(rig->group), &limits);
}

/* ---- Promises -------------------------------------------------------------------------------- */

static void test_shared(struct rig *rig, const void *unused)
{
    uint8_t data[BYTES];

    write_one(rig->devices[0]); /* fills the bucket of both */
    pthread_t writer = start_write(rig->devices[1]);
    wait_until_waiting(rig, 1);
    g_assert_cmpint(block_device_pread(rig->devices[1], data, 0, sizeof(data)), ==, 0);
    g_assert_cmpint(data[0], ==, 0);
    set_limit(rig, 0);
    pthread_join(writer, NULL);
    test_assert_filled(memory_disk_data(rig->disks[1]), 7, BYTES);
}

/* Whatever changes a disk. */
static void test_all_changes_wait(struct rig *rig, const void *unused)
{
    struct throttle *throttle = throttle_group_throttle(rig->group);
    struct block_node *node = rig->filters[0];
    uint8_t data[BYTES] = {0};
    uint64_t bytes = BYTES;
    int fd;

    /* A burst is allowed, and it leaks slowly: what is counted stays. */
    struct throttle_limits limits = write_limit(1);
    limits.buckets[THROTTLE_BPS_WRITE].max = 1000000;
    throttle_set_limits(throttle, &limits);
    for (int i = 0; i < 3; i++) {
        double before = throttle->buckets[THROTTLE_BPS_WRITE].level;
        int status = i == 0   ? block_device_pwrite(rig->devices[0], data, 0, BYTES, 0)
                     : i == 1 ? block_device_write_zeroes(rig->devices[0], 0, BYTES, 0)
                              : block_node_populate(node, data, 0, BYTES);

        g_assert_true(status == 0 || status == -ENOTSUP);
        g_assert_cmpfloat(throttle->buckets[THROTTLE_BPS_WRITE].level, >, before + BYTES / 2);
    }
    /* No way around it by the host's files. */
    g_assert_cmpint(block_node_host_range(node, 0, &bytes, &fd, &bytes), ==, -ENOTSUP);
}

static void test_drain(struct rig *rig, const void *unused)
{
    pthread_t writers[2];

    write_one(rig->devices[0]);
    for (int i = 0; i < 2; i++) {
        writers[i] = start_write(rig->devices[i]);
    }
    wait_until_waiting(rig, 2);
    /* Below the filter: it stands above what is drained. */
    struct block_drain *drain = block_drain_begin(&rig->disks[0], 1, BLOCK_PERM_ALL);
    pthread_join(writers[0], NULL);
    g_assert_cmpuint(count_waiters(rig), ==, 1);
    block_drain_end(drain);
    /* The limit holds again afterwards. */
    writers[0] = start_write(rig->devices[0]);
    wait_until_waiting(rig, 2);
    drain = block_drain_begin(rig->filters, 2, BLOCK_PERM_ALL);
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i], NULL);
    }
    block_drain_end(drain);
    g_assert_cmpuint(memory_disk_count(rig->disks[1], BLOCK_OPERATION_WRITE), ==, 1);
}

/* Who is told to let requests through need not be drained himself: users above another node wait
 * for what passes through it. */
static void test_drain_above(struct rig *rig, const void *unused)
{
    AUTO(block_node) low = test_open("driver=memory,node-name=low");
    AUTO(block_node) top = test_open("driver=raw,node-name=top,file.driver=throttle,"
                                     "file.file=low,file.throttle-group=g");
    struct block_device *device = block_device_new("c", top, NULL);

    write_one(device);
    pthread_t writer = start_write(device);
    wait_until_waiting(rig, 1);
    struct block_drain *drain = block_drain_begin(&top, 1, BLOCK_PERM_ALL);
    pthread_join(writer, NULL);
    block_drain_end(drain);
    block_device_remove(device);
}

/* A filter may go while a section is about it, and others come. */
static void test_gone_in_a_section(struct rig *rig, const void *unused)
{
    AUTO(block_node) low = test_open("driver=memory,node-name=low");
    struct block_node *filter = test_open("driver=throttle,file=low,throttle-group=g");
    struct block_device *device = block_device_new("c", filter, NULL);

    write_one(device);
    pthread_t writer = start_write(device);
    wait_until_waiting(rig, 1);
    struct block_drain *drain = block_drain_begin(&filter, 1, BLOCK_PERM_ALL);
    g_assert_cmpint(block_device_set_root(device, low, NULL), ==, 0);
    block_node_unref(filter);
    block_drain_end(drain);
    pthread_join(writer, NULL);
    write_one(device); /* nothing limits it any more */
    block_device_remove(device);
}

static void test_cancelled(struct rig *rig, const void *unused)
{
    write_one(rig->devices[0]);
    pthread_t writers[] = {start_write(rig->devices[0]), start_write(rig->devices[1])};

    wait_until_waiting(rig, 2);
    block_node_cancel_in_flight(rig->filters[0]);
    pthread_join(writers[0], NULL);
    g_assert_cmpuint(count_waiters(rig), ==, 1);
    throttle_groups_release_all();
    pthread_join(writers[1], NULL);
    write_one(rig->devices[1]); /* for good */
}

static void reopen(const char *text)
{
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);
    g_autoptr(GError) error = NULL;

    block_nodes_reopen(&options, 1, &error);
    g_assert_no_error(error);
}

static void test_another_group(struct rig *rig, const void *unused)
{
    struct throttle_limits none = {0};

    g_assert_cmpint(throttle_group_create("h", &none, NULL), ==, 0);
    g_assert_cmpint(throttle_group_create("h", &none, NULL), ==, -EEXIST);
    write_one(rig->devices[0]);
    pthread_t writer = start_write(rig->devices[0]);
    wait_until_waiting(rig, 1);
    reopen("node-name=t0,driver=throttle,file=disk0,throttle-group=h");
    pthread_join(writer, NULL);
    write_one(rig->devices[0]);
    g_assert_cmpint(throttle_group_delete("h"), ==, -EBUSY);
    reopen("node-name=t0,driver=throttle,file=disk0,throttle-group=g");
    g_assert_cmpint(throttle_group_delete("h"), ==, 0);
    writer = start_write(rig->devices[0]);
    wait_until_waiting(rig, 1);
    set_limit(rig, 0);
    pthread_join(writer, NULL);
    g_autofree char *message =
        test_open_error("driver=throttle,file=disk0,throttle-group=h,node-name=x");
    g_assert_nonnull(strstr(message, "Throttle group 'h' does not exist"));
}

/* Who is not used yet stands beside a format that may need a longer file. */
static void test_length(struct rig *rig, const void *unused)
{
    AUTO(block_node) low = test_open("driver=memory,node-name=low,size=1M");
    AUTO(block_node) top = test_open("driver=raw,node-name=top,file=low");
    AUTO(block_node) filter = test_open("driver=throttle,node-name=f,file=low,throttle-group=g");
    AUTO(block_node) above = test_open("driver=throttle,node-name=f2,file=f,throttle-group=g");
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_node_check_steady(above, &error), ==, -EBUSY);
    g_assert_nonnull(strstr(error->message, "nobody uses"));
    g_assert_cmpint(block_node_set_length(top, 2 * MIB, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    g_assert_null(block_device_new("c", above, NULL)); /* who writes to it has it for himself */
    reopen("node-name=top,driver=raw,file=f2");
    g_assert_true(top->file == above);
    g_assert_cmpuint(block_node_length(above), ==, 2 * MIB);
    g_assert_cmpuint(block_node_length(filter), ==, 2 * MIB);
    g_assert_cmpint(block_node_check_steady(above, NULL), ==, 0);
    /* Through it, and so its length and that of those above follow. */
    g_assert_cmpint(block_node_set_length(top, 3 * MIB, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    g_assert_cmpuint(block_node_length(above), ==, 3 * MIB);
    g_assert_cmpuint(block_node_length(low), ==, 3 * MIB);
    reopen("node-name=top,driver=raw,file=low");
}

/* ---- Many threads ---------------------------------------------------------------------------- */

#define WRITERS 4
#define WRITES  400

static void *write_often(void *device)
{
    for (unsigned i = 0; i < WRITES; i++) {
        write_one(device);
    }
    return NULL;
}

static void test_whirl(struct rig *rig, const void *unused)
{
    pthread_t writers[WRITERS];
    struct throttle_limits none = {0};

    g_assert_cmpint(throttle_group_create("h", &none, NULL), ==, 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        g_assert_cmpint(pthread_create(&writers[i], NULL, write_often, rig->devices[i % 2]), ==, 0);
    }
    for (unsigned i = 0; i < 60; i++) {
        set_limit(rig, i % 3 ? 1 : 10000000);
        if (i % 2) {
            AUTO(block_drain) drain = block_drain_begin(&rig->disks[i % 4 / 2], 1, BLOCK_PERM_ALL);
            sched_yield();
        } else {
            reopen(i % 4 ? "node-name=t0,driver=throttle,file=disk0,throttle-group=h"
                         : "node-name=t0,driver=throttle,file=disk0,throttle-group=g");
        }
    }
    set_limit(rig, 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(writers[i], NULL);
    }
    g_assert_cmpuint(memory_disk_count(rig->disks[0], BLOCK_OPERATION_WRITE) +
                         memory_disk_count(rig->disks[1], BLOCK_OPERATION_WRITE),
                     ==, WRITERS * WRITES);
    reopen("node-name=t0,driver=throttle,file=disk0,throttle-group=g");
    g_assert_cmpint(throttle_group_delete("h"), ==, 0);
}

#define TEST(name, function)                                                                       \
    g_test_add("/throttle-filter/" name, struct rig, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    TEST("nodes-of-a-group-keep-its-limits-together", test_shared);
    TEST("all-that-changes-a-disk-waits", test_all_changes_wait);
    TEST("a-drained-section-waits-for-no-rate-and-lets-no-other-through", test_drain);
    TEST("nor-where-the-filter-is-below-what-is-drained", test_drain_above);
    TEST("a-filter-may-go-in-a-drained-section", test_gone_in_a_section);
    TEST("what-was-cancelled-and-what-ends-is-let-through", test_cancelled);
    TEST("a-node-moves-to-another-group-with-requests-waiting", test_another_group);
    TEST("a-filter-beside-a-format-lets-the-file-grow-and-follows-when-used", test_length);
    TEST("no-write-is-lost-in-a-whirl-of-changes", test_whirl);
    return g_test_run();
}
