/* SPDX-License-Identifier: BSD-3-Clause */
/* Quorums that get other children, or other rules, while they are in use. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "block/chain.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/quorum-rig.h"
#include "tests/lib/random.h"

/* ---- Children that come and go ----------------------------------------------------------------
 */

struct replica_change {
    struct block_node *node, *added;
    const char *name;
    int status;
    GError *error;
};

static void change_now(void *data)
{
    struct replica_change *change = data;
    struct block_node *removed = NULL;

    change->status =
        change->added
            ? block_node_add_replica(change->node, change->added, &change->error)
            : block_node_remove_replica(change->node, change->name, &removed, &change->error);
    block_node_unref(removed);
}

/* The error's message, which the caller frees, or NULL. */
static char *change_replica(struct block_node *node, struct block_node *added, const char *name)
{
    struct replica_change change = {.node = node, .added = added, .name = name};
    AUTO(block_drain) drain = block_drain_begin(&node, 1, BLOCK_PERM_ALL);

    main_loop_call_wait(change_now, &change);
    char *message = change.error ? g_strdup(change.error->message) : NULL;
    g_assert_cmpint(change.status < 0, ==, message != NULL);
    g_clear_error(&change.error);
    return message;
}

#define EXPECT_CHANGE(expected, node, added, name)                                                 \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *message_ = change_replica(node, added, name);                             \
        g_assert_cmpstr(message_, ==, expected);                                                   \
    }                                                                                              \
    G_STMT_END

/* "children.0=f0 children.1=f1", which the caller frees. */
static char *list_children(struct block_node *node)
{
    GString *list = g_string_new(NULL);
    const struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    TAILQ_FOREACH (child, &node->children, entry) {
        g_string_append_printf(list, "%s%s=%s", list->len ? " " : "", child->name,
                               child->claim.node->name);
    }
    return g_string_free(list, FALSE);
}

#define EXPECT_CHILDREN(expected, node)                                                            \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *list_ = list_children(node);                                              \
        g_assert_cmpstr(list_, ==, expected);                                                      \
    }                                                                                              \
    G_STMT_END

static void test_come_and_go(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_2 "vote-threshold=2");
    AUTO(block_node) small = test_open("driver=memory,node-name=small,size=128k");
    AUTO(block_node) fixed = test_open("driver=memory,node-name=fixed,size=256k,read-only=on");
    AUTO(block_node) other = test_open("driver=quorum,children.0=f3,vote-threshold=1");

    quorum_rig_fill(rig, 1);
    EXPECT_CHANGE("The number of children cannot be lower than the vote threshold 2", node, NULL,
                  "children.0");
    EXPECT_CHANGE("Node 'q' does not have child 'f0'", node, NULL, "f0");
    EXPECT_CHANGE("The node f0 already has a parent", node, rig->faults[0], NULL);
    EXPECT_CHANGE("The node f3 already has a parent", node, rig->faults[3], NULL);
    EXPECT_CHANGE("Node 'small' is 131072 bytes long and the other children of 'q' are 262144: "
                  "all must have the same length",
                  node, small, NULL);
    EXPECT_CHANGE("Block node 'fixed' is read-only, and node 'q' writes to all its children", node,
                  fixed, NULL);
    EXPECT_CHANGE("Making 'q' a child of 'q' would create a cycle", node, node, NULL);
    EXPECT_CHANGE("The node f0 does not support adding a child", rig->faults[0], small, NULL);
    EXPECT_CHILDREN("children.0=f0 children.1=f1", node);

    memset(memory_disk_data(rig->disks[2]), 7, 512);
    EXPECT_CHANGE(NULL, node, rig->faults[2], NULL);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 1); /* what the new one holds is not copied */
    EXPECT_EVENTS("BAD f2 read 0+1");
    g_assert_cmpint(write_byte(node, 2, 0, 512), ==, 0);
    g_assert_cmpint(memory_disk_data(rig->disks[2])[0], ==, 2);
    EXPECT_CHANGE(NULL, node, NULL, "children.0");
    EXPECT_CHILDREN("children.1=f1 children.2=f2", node);
    g_assert_cmpint(write_byte(node, 3, 0, 512), ==, 0);
    g_assert_cmpint(memory_disk_data(rig->disks[0])[0], ==, 2);
    EXPECT_CHANGE(NULL, node, rig->faults[0], NULL);
    EXPECT_CHILDREN("children.1=f1 children.2=f2 children.3=f0", node);
    EXPECT_CHANGE(NULL, node, NULL, "children.3");
    EXPECT_CHILDREN("children.1=f1 children.2=f2", node);
}

static void test_fixed_children(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_2 "vote-threshold=2,blkverify=on");

    EXPECT_CHANGE("Cannot add a child to a quorum in blkverify mode", node, rig->faults[2], NULL);
    EXPECT_CHANGE("The number of children cannot be lower than the vote threshold 2", node, NULL,
                  "children.1");
}

struct guest {
    struct block_device *device;
    struct block_node *node;
    _Atomic bool stops;
    uint8_t last;
};

static void *write_all(void *data)
{
    struct guest *guest = data;
    g_autofree uint8_t *block = g_malloc(QUORUM_LENGTH);

    while (!guest->stops) {
        memset(block, ++guest->last, QUORUM_LENGTH);
        g_assert_cmpint(block_device_pwrite(guest->device, block, 0, QUORUM_LENGTH, 0), ==, 0);
        g_assert_cmpint(block_device_pread(guest->device, block, 0, QUORUM_LENGTH), ==, 0);
        test_assert_filled(block, guest->last, QUORUM_LENGTH);
    }
    return NULL;
}

/* Questions of those who are no guests, and are drained by nobody. */
static void *ask(void *data)
{
    struct guest *guest = data;
    struct block_node *node = guest->node;

    while (!guest->stops) {
        g_assert_cmpint(block_node_get_allocated_size(node), ==, -ENOTSUP);
        g_assert_false(block_node_has_lost_writes(node));
        g_assert_false(block_node_is_zero_at_creation(node));
    }
    return NULL;
}

static void test_come_and_go_live(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node)
    node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");
    struct guest guest = {.device = block_device_new("vda", node, NULL), .node = node};
    pthread_t thread, asking;

    g_assert_nonnull(guest.device);
    g_assert_cmpint(pthread_create(&thread, NULL, write_all, &guest), ==, 0);
    g_assert_cmpint(pthread_create(&asking, NULL, ask, &guest), ==, 0);
    for (uint64_t i = 0, rounds = test_amount(100); i < rounds; i++) {
        /* Two others, and in turn the first or the fourth. */
        EXPECT_CHANGE(NULL, node, NULL, i ? "children.3" : "children.0");
        EXPECT_CHANGE(NULL, node, rig->faults[i % 2 ? 0 : 3], NULL);
    }
    guest.stops = true;
    pthread_join(thread, NULL);
    pthread_join(asking, NULL);
    block_device_remove(guest.device);
}

/* ---- Other options ----------------------------------------------------------------------------
 */

#define EXPECT_REOPEN(expected, options)                                                           \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *message_ = test_reopen_node(options);                                     \
        const char *expected_ = expected;                                                          \
        if (!expected_ || !message_ || !strstr(message_, expected_)) {                             \
            g_assert_cmpstr(message_, ==, expected_);                                              \
        }                                                                                          \
    }                                                                                              \
    G_STMT_END

static void test_reopen(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    quorum_rig_fill(rig, 1);
    memory_disk_data(rig->disks[0])[0] = 7;
    EXPECT_REOPEN(NULL, OPTIONS_OF_3 "vote-threshold=3");
    g_assert_cmpint(read_byte(node, 0, 512), ==, -EIO);
    EXPECT_REOPEN("threshold may not exceed children count", OPTIONS_OF_3 "vote-threshold=4");
    EXPECT_REOPEN("rewrite-corrupted=on cannot be used with read-pattern=fifo",
                  OPTIONS_OF_3 "vote-threshold=2,read-pattern=fifo,rewrite-corrupted=on");
    EXPECT_REOPEN("as number 2 it has 'f2'", OPTIONS_OF_2 "vote-threshold=2");
    EXPECT_REOPEN("as number 0 it has 'f0'", "node-name=q,driver=quorum,vote-threshold=2,"
                                             "children.0=f1,children.1=f0,children.2=f2");
    EXPECT_REOPEN("as number 3 it has 'nothing'", OPTIONS_OF_3 "children.3=f3,vote-threshold=2");
    g_assert_cmpint(read_byte(node, 0, 512), ==, -EIO);
    EXPECT_REOPEN(NULL, OPTIONS_OF_3 "vote-threshold=1,read-pattern=fifo");
    g_assert_cmpint(write_byte(node, 7, 0, 512), ==, 0);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 7);
    /* Children follow a node that becomes read-only, and can be given with other options. */
    EXPECT_REOPEN(NULL, OPTIONS_OF_3 "vote-threshold=2,read-only=on");
    g_assert_true(rig->faults[1]->options.read_only && rig->disks[1]->options.read_only);
    g_assert_cmpint(write_byte(node, 8, 0, 512), ==, -EPERM);
    EXPECT_REOPEN(NULL, "driver=quorum,node-name=q,vote-threshold=2,rewrite-corrupted=on,"
                        "children.0=f0,children.2=f2,children.1.driver=fault,children.1.file=m1,"
                        "children.1.detect-zeroes=on");
    g_assert_false(rig->faults[1]->options.read_only || rig->disks[1]->options.read_only);
    g_assert_cmpint(rig->faults[1]->options.detect_zeroes, ==, BLOCK_DETECT_ZEROES_ON);
    memory_disk_data(rig->disks[2])[0] = 9;
    g_assert_cmpint(read_byte(node, 0, 512), ==, 7);
    g_assert_cmpint(memory_disk_data(rig->disks[2])[0], ==, 7);
    g_autofree char *events = quorum_rig_take_events();
    g_assert_true(g_str_has_suffix(events, "BAD f2 read 0+1"));
}

/* ---- Who is drained ---------------------------------------------------------------------------
 */

struct reader {
    struct block_claim claim;
    unsigned begun, ended;
};

static void on_drain_begin(struct block_claim *claim)
{
    ((struct reader *)claim)->begun++;
}

static void on_drain_end(struct block_claim *claim)
{
    ((struct reader *)claim)->ended++;
}

static void start_reading(struct reader *reader, struct block_node *node)
{
    static const struct block_claim_operations operations = {.drain_begin = on_drain_begin,
                                                             .drain_end = on_drain_end};

    *reader = (struct reader){.claim = {.operations = &operations,
                                        .owner = (char *)"reader",
                                        .perms = BLOCK_PERM_READ,
                                        .shared = BLOCK_PERM_ALL}};
    g_assert_cmpint(block_claim_acquire(&reader->claim, node, NULL), ==, 0);
}

static unsigned drains_of_reader(struct block_node *quorum, struct block_node *drained)
{
    struct reader reader;

    start_reading(&reader, quorum);
    block_drain_end(block_drain_begin(&drained, 1, BLOCK_PERM_WRITE));
    block_claim_release(&reader.claim);
    g_assert_cmpuint(reader.begun, ==, reader.ended);
    return reader.begun;
}

static void test_drain(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");
    struct reader reader;

    g_assert_cmpuint(drains_of_reader(node, rig->disks[1]), ==, 1);
    g_assert_cmpuint(drains_of_reader(node, node), ==, 0); /* there it changes nothing */
    EXPECT_REOPEN(NULL, OPTIONS_OF_3 "vote-threshold=2");
    g_assert_cmpuint(drains_of_reader(node, rig->disks[1]), ==, 0);
    /* Who comes to write in a section joins it. */
    start_reading(&reader, node);
    struct block_drain *drain = block_drain_begin(&rig->disks[1], 1, BLOCK_PERM_WRITE);
    g_assert_cmpuint(reader.begun, ==, 0);
    EXPECT_REOPEN(NULL, OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");
    g_assert_cmpuint(reader.begun, ==, 2); /* of it, and of the reopening */
    g_assert_cmpuint(reader.ended, ==, 1);
    block_drain_end(drain);
    g_assert_cmpuint(reader.ended, ==, 2);
    block_claim_release(&reader.claim);
}

#define TEST(name, function)                                                                       \
    g_test_add("/quorum-children/" name, struct quorum_rig, NULL, quorum_rig_set_up, function,     \
               quorum_rig_tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    quorum_rig_register();
    TEST("children-come-and-go-by-name", test_come_and_go);
    TEST("but-not-while-they-are-verified", test_fixed_children);
    TEST("children-come-and-go-under-a-guest", test_come_and_go_live);
    TEST("rules-change-while-the-node-is-open", test_reopen);
    TEST("readers-are-drained-like-writers-where-reading-rewrites", test_drain);
    return g_test_run();
}
