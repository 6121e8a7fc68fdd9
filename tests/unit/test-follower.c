/* SPDX-License-Identifier: BSD-3-Clause */
/* Followers of a node's changes: what they see, and in what order. */
#include <errno.h>

#include "block/request.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

struct refuser {
    struct write_notifier notifier;
    GString *log;
    int status;
};

static int notify(struct write_notifier *notifier, enum block_operation operation, uint64_t offset,
                  uint64_t bytes)
{
    struct refuser *refuser = (struct refuser *)notifier;

    g_string_append_printf(refuser->log, "n%d:%d+%d ", (int)operation, (int)offset, (int)bytes);
    return refuser->status;
}

struct seer {
    struct write_follower follower;
    GString *log;
    char name;
};

/* What the node holds before and after. */
static int see(struct write_follower *follower, const struct block_change *change,
               struct block_change_rest *rest)
{
    struct seer *seer = (struct seer *)follower;

    g_string_append_printf(seer->log, "%c%d:%d+%d ", seer->name, (int)change->operation,
                           (int)change->offset, (int)change->bytes);
    g_assert_cmpint(change->buffer != NULL, ==, change->operation == BLOCK_OPERATION_WRITE);
    int status = block_change_go_on(rest);
    g_string_append_printf(seer->log, "%c=%d ", seer->name, status);
    return status;
}

static void test_followers(void)
{
    AUTO(block_node) node = test_open("driver=memory,request-alignment=4096,discard=unmap");
    g_autoptr(GString) log = g_string_new(NULL);
    struct refuser notified = {.notifier.before_write = notify, .log = log};
    struct seer a = {.follower.follow = see, .log = log, .name = 'a'};
    struct seer b = {.follower.follow = see, .log = log, .name = 'b'};
    uint8_t data[4096] = {1}, seen[4096];

    block_node_add_notifier(node, &notified.notifier);
    block_node_add_follower(node, &a.follower);
    block_node_add_follower(node, &b.follower);
    g_assert_cmpint(block_node_pwrite(node, data, 4096, 4096, 0), ==, 0);
    g_assert_cmpint(block_node_pread(node, seen, 4096, 4096, 0), ==, 0);
    g_assert_cmpmem(seen, 4096, data, 4096);
    g_assert_cmpint(block_node_write_zeroes(node, 1, 1, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, 8192), ==, 0);
    g_assert_cmpstr(log->str, ==,
                    "n1:4096+4096 a1:4096+4096 b1:4096+4096 b=0 a=0 "
                    "n1:0+4096 a1:0+4096 b1:0+4096 b=0 a=0 "
                    "n3:0+8192 a3:0+8192 b3:0+8192 b=0 a=0 ");
    g_string_truncate(log, 0);
    notified.status = -EIO;
    g_assert_cmpint(block_node_pwrite(node, data, 0, 4096, 0), ==, -EIO);
    g_assert_cmpstr(log->str, ==, "n1:0+4096 ");
    block_node_remove_notifier(node, &notified.notifier);
    block_node_remove_follower(node, &a.follower);
    block_node_remove_follower(node, &b.follower);
    g_assert_null(node->followers);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_test_add_func("/follower/encloses-the-change", test_followers);
    return g_test_run();
}
