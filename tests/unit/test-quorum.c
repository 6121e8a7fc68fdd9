/* SPDX-License-Identifier: BSD-3-Clause */
/* Quorums: what several children say, and what becomes of those that say something else. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "block/request.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/quorum-rig.h"
#include "tests/lib/random.h"

/* ---- Options --------------------------------------------------------------------------------- */

static void test_options(struct quorum_rig *rig, const void *unused)
{
    static const struct {
        const char *options, *why;
    } wrong[] = {
        {"vote-threshold=1", "Number of provided children must be 1 or more"},
        {"children=f0,vote-threshold=1", "Invalid parameter type for 'children', expected: array"},
        {"children.0=f0", "Parameter 'vote-threshold' is missing"},
        {"children.0=f0,vote-threshold=0", "Parameter 'vote-threshold' expects a value >= 1"},
        {"children.0=f0,vote-threshold=-1", "Parameter 'vote-threshold' expects a value >= 1"},
        {"children.0=f0,vote-threshold=2", "threshold may not exceed children count"},
        {"children.0=f0,vote-threshold=4294967297", "threshold may not exceed children count"},
        {"children.0=zz,vote-threshold=1", "Cannot find device='zz' nor node-name='zz'"},
        {"children.1=f0,vote-threshold=1", "Parameter 'children.1' is unexpected"},
        {"children.0=f0,children.2=f1,vote-threshold=1", "Parameter 'children.2' is unexpected"},
        {"children.0=f0,children.1=small,vote-threshold=1", "all must have the same length"},
        {"children.0=f0,children.1=f1,vote-threshold=1,blkverify=on",
         "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"},
        {"children.0=f0,children.1=f1,children.2=f2,vote-threshold=2,blkverify=on",
         "blkverify=on can only be set if there are exactly two files and vote-threshold is 2"},
        {"children.0=f0,children.1=f1,vote-threshold=2,blkverify=on,rewrite-corrupted=on",
         "rewrite-corrupted=on cannot be used with blkverify=on"},
        {"children.0=f0,vote-threshold=1,read-pattern=fifo,rewrite-corrupted=on",
         "rewrite-corrupted=on cannot be used with read-pattern=fifo"},
        {"children.0=f0,children.1=f1,vote-threshold=2,read-pattern=fifo,blkverify=on",
         "blkverify=on cannot be used with read-pattern=fifo"},
        {"children.0=f0,children.1=f0,vote-threshold=1", "exclude each other by writing"},
        {"children.0=f0,children.1=f0,vote-threshold=1,read-only=on", "Node 'f0' is given twice"},
        {"children.0=f0,children.1=f1,vote-threshold=1,read-pattern=lifo",
         "Parameter 'read-pattern' does not accept value 'lifo'"},
    };
    AUTO(block_node) small = test_open("driver=memory,node-name=small,size=128k");

    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *message =
            test_open_error("driver=quorum,node-name=q,%s", wrong[i].options);

        if (!strstr(message, wrong[i].why)) {
            g_error("'%s' is not in '%s'", wrong[i].why, message);
        }
    }
    AUTO(block_node) one = test_open("driver=quorum,children.0=f0,vote-threshold=1");
    AUTO(block_node)
    inline_child =
        test_open("driver=quorum,cache.direct=on,vote-threshold=2,children.0=f1,"
                  "children.1.driver=memory,children.1.node-name=n,children.1.size=256k");
    AUTO(block_node) n = block_node_find("n");
    g_assert_true(n->options.cache_direct && n->options.discard_unmap);
    g_assert_true(block_node_child(inline_child, "children.1") == n);
    g_assert_cmpuint(block_node_length(inline_child), ==, QUORUM_LENGTH);
}

/* ---- Reads ----------------------------------------------------------------------------------- */

static void test_votes(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    quorum_rig_fill(rig, 1);
    g_assert_cmpint(read_byte(node, 0, QUORUM_LENGTH), ==, 1);
    EXPECT_EVENTS("");
    for (int i = 0; i < 3; i++) {
        static const char *const events[] = {"BAD f0 read 8+2", "BAD f1 read 8+2",
                                             "BAD f2 read 8+2"};

        memory_disk_data(rig->disks[i])[4096] = 7;
        g_assert_cmpint(read_byte(node, 4096, 1024), ==, 1);
        EXPECT_EVENTS(events[i]);
        g_assert_cmpint(memory_disk_data(rig->disks[i])[4096], ==, 7); /* nothing was rewritten */
        memory_disk_data(rig->disks[i])[4096] = 1;
    }
    memset(memory_disk_data(rig->disks[0]), 7, 512);
    memset(memory_disk_data(rig->disks[1]), 8, 512);
    g_assert_cmpint(read_byte(node, 0, 512), ==, -EIO);
    EXPECT_EVENTS("FAILURE q 0+1");
    memset(memory_disk_data(rig->disks[1]), 7, 512);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 7); /* the first two have it, the last one lost */
    EXPECT_EVENTS("BAD f2 read 0+1");
}

static void test_read_errors(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    quorum_rig_fill(rig, 1);
    FAULT(rig->faults[0], .operations = FAULT_ON(READ), .error_number = EREMOTEIO);
    g_assert_cmpint(read_byte(node, 512, 512), ==, 1);
    EXPECT_EVENTS("BAD f0 read 1+1[Remote I/O error]");
    memory_disk_data(rig->disks[2])[512] = 7; /* one says this, and one that */
    g_assert_cmpint(read_byte(node, 512, 512), ==, -EIO);
    EXPECT_EVENTS("BAD f0 read 1+1[Remote I/O error]; FAILURE q 1+1");
    FAULT(rig->faults[1], .operations = FAULT_ON(READ), .error_number = ENOSPC);
    FAULT(rig->faults[2], .operations = FAULT_ON(READ), .error_number = ENOSPC);
    g_assert_cmpint(read_byte(node, 512, 512), ==, -ENOSPC);
    EXPECT_EVENTS("BAD f0 read 1+1[Remote I/O error]; BAD f1 read 1+1[No space left on device]; "
                  "BAD f2 read 1+1[No space left on device]; FAILURE q 1+1");
}

static void test_rewrite(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");

    quorum_rig_fill(rig, 1);
    memset(memory_disk_data(rig->disks[0]) + 1000, 7, 100);
    g_assert_cmpint(read_byte(node, 512, 2048), ==, 1);
    EXPECT_EVENTS("BAD f0 read 1+4");
    test_assert_filled(memory_disk_data(rig->disks[0]), 1, QUORUM_LENGTH);
    g_assert_cmpint(read_byte(node, 512, 2048), ==, 1);
    EXPECT_EVENTS("");
    /* One that cannot be rewritten is told of, and the reader has what he wants. */
    memory_disk_data(rig->disks[2])[0] = 7;
    FAULT(rig->faults[2], .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 1);
    EXPECT_EVENTS("BAD f2 read 0+1; BAD f2 write 0+1[Input/output error]");
    /* Who cannot be told from the others is left alone. */
    fault_clear(rig->faults[2]);
    memory_disk_data(rig->disks[1])[0] = 8;
    g_assert_cmpint(read_byte(node, 0, 512), ==, -EIO);
    EXPECT_EVENTS("FAILURE q 0+1");
    g_assert_cmpint(memory_disk_data(rig->disks[2])[0], ==, 7);
}

static void test_rewrite_read_only(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node)
    node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on,read-only=on");

    quorum_rig_fill(rig, 1);
    memory_disk_data(rig->disks[0])[0] = 7;
    g_assert_cmpint(read_byte(node, 0, 512), ==, 1);
    EXPECT_EVENTS("BAD f0 read 0+1");
    g_assert_cmpint(memory_disk_data(rig->disks[0])[0], ==, 7);
}

static void test_blkverify(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_2 "vote-threshold=2,blkverify=on");

    quorum_rig_fill(rig, 1);
    g_assert_cmpint(read_byte(node, 0, QUORUM_LENGTH), ==, 1);
    memory_disk_data(rig->disks[1])[70000] = 7;
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*'q'*'f0' and 'f1' differ at offset 70000");
    g_assert_cmpint(read_byte(node, 65536, 65536), ==, -EIO);
    g_test_assert_expected_messages();
    EXPECT_EVENTS("FAILURE q 128+128");
    g_assert_cmpint(read_byte(node, 0, 65536), ==, 1);
}

static void test_fifo(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2,read-pattern=fifo");

    quorum_rig_fill(rig, 1);
    memset(memory_disk_data(rig->disks[0]), 7, 512);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 7);
    g_assert_cmpuint(memory_disk_count(rig->disks[1], BLOCK_OPERATION_READ), ==, 0);
    EXPECT_EVENTS("");
    FAULT(rig->faults[0], .operations = FAULT_ON(READ), .error_number = EIO);
    g_assert_cmpint(read_byte(node, 0, 512), ==, 1);
    EXPECT_EVENTS("BAD f0 read 0+1[Input/output error]");
    FAULT(rig->faults[1], .operations = FAULT_ON(READ), .error_number = ENOSPC);
    FAULT(rig->faults[2], .operations = FAULT_ON(READ), .error_number = ENOSPC);
    g_assert_cmpint(read_byte(node, 0, 512), ==, -ENOSPC);
    EXPECT_EVENTS("BAD f0 read 0+1[Input/output error]; BAD f1 read 0+1[No space left on device]; "
                  "BAD f2 read 0+1[No space left on device]; FAILURE q 0+1");
}

/* ---- Changes --------------------------------------------------------------------------------- */

static void test_write_errors(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    FAULT(rig->faults[1], .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    g_assert_cmpint(write_byte(node, 3, 512, 1024), ==, 0);
    EXPECT_EVENTS("BAD f1 write 1+2[No space left on device]");
    g_assert_cmpint(block_node_write_zeroes(node, 4096, 4096, 0), ==, 0);
    EXPECT_EVENTS("BAD f1 write 8+8[No space left on device]");
    g_assert_cmpint(read_byte(node, 512, 1024), ==, 3);
    EXPECT_EVENTS("BAD f1 read 1+2");
    FAULT(rig->faults[0], .operations = FAULT_ON_CHANGES, .error_number = EIO);
    FAULT(rig->faults[2], .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    g_assert_cmpint(write_byte(node, 4, 512, 1024), ==, -ENOSPC);
    EXPECT_EVENTS("BAD f0 write 1+2[Input/output error]; "
                  "BAD f1 write 1+2[No space left on device]; "
                  "BAD f2 write 1+2[No space left on device]; FAILURE q 1+2");
    g_assert_cmpint(read_byte(node, 512, 1024), ==, 3);
}

static void test_flush(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    g_assert_cmpint(write_byte(node, 3, 0, 512), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    for (int i = 0; i < 3; i++) {
        g_assert_cmpuint(memory_disk_count(rig->disks[i], BLOCK_OPERATION_FLUSH), ==, 1);
    }
    memory_disk_fail(rig->disks[0], BLOCK_OPERATION_FLUSH, -EIO, 0, 100);
    g_assert_cmpint(write_byte(node, 3, 0, 512), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    EXPECT_EVENTS("BAD f0 flush 0+0[Input/output error]");
    memory_disk_fail(rig->disks[1], BLOCK_OPERATION_FLUSH, -EIO, 0, 100);
    uint8_t byte[512] = {0};
    g_assert_cmpint(block_node_pwrite(node, byte, 0, 512, BLOCK_REQUEST_FUA), ==, -EIO);
    EXPECT_EVENTS("BAD f0 write 0+1[Input/output error]; BAD f1 write 0+1[Input/output error]; "
                  "FAILURE q 0+1");
    g_assert_cmpint(block_node_flush(node), ==, -EIO);
    EXPECT_EVENTS("BAD f0 flush 0+0[Input/output error]; BAD f1 flush 0+0[Input/output error]");
    memory_disk_fail(rig->disks[0], BLOCK_OPERATION_FLUSH, 0, 0, 0);
    memory_disk_fail(rig->disks[1], BLOCK_OPERATION_FLUSH, 0, 0, 0);
}

/* A refusal of zeroes that must be fast leaves all as it was, or all do it. */
static void test_zeroes(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) plain = test_open("driver=memory-plain,node-name=p,size=256k,discard=unmap");
    AUTO(block_node)
    first = test_open("driver=quorum,node-name=q1,children.0=p,children.1=f0,vote-threshold=2,"
                      "discard=unmap");

    quorum_rig_fill(rig, 1);
    memset(memory_disk_data(plain), 1, QUORUM_LENGTH);
    g_assert_cmpint(block_node_write_zeroes(first, 0, 4096, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpint(block_node_discard(first, 0, 4096), ==, 0);
    g_assert_cmpint(read_byte(first, 0, QUORUM_LENGTH), ==, 1);
    g_assert_cmpint(block_node_write_zeroes(first, 0, 4096, 0), ==, 0);
    g_assert_cmpint(read_byte(first, 0, 4096), ==, 0);
    block_node_unref(STEAL(first));

    AUTO(block_node)
    last = test_open("driver=quorum,node-name=q2,children.0=f0,children.1=p,vote-threshold=2,"
                     "discard=unmap");
    g_assert_cmpint(block_node_write_zeroes(last, 0, 8192, BLOCK_REQUEST_NO_FALLBACK), ==, 0);
    g_assert_cmpint(read_byte(last, 0, 8192), ==, 0);
    /* A discard that one has to write is the last one. */
    g_assert_cmpint(block_node_discard(last, 16384, 4096), ==, 0);
    g_assert_cmpint(read_byte(last, 16384, 4096), ==, 0);
    g_assert_cmpint(block_node_discard(last, 32768, 4096), ==, 0);
    g_assert_cmpint(read_byte(last, 32768, 4096), ==, 1);
    EXPECT_EVENTS("");
}

static void test_discard(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");

    quorum_rig_fill(rig, 1);
    memory_disk_log(rig->disks[2]);
    g_assert_cmpint(block_node_discard(node, 4096, 4096), ==, 0);
    g_autofree char *log = memory_disk_take_log(rig->disks[2]);
    g_assert_cmpstr(log, ==, "zero 4096+4096 unmap");
    g_assert_cmpint(read_byte(node, 4096, 4096), ==, 0);
    block_node_unref(STEAL(node));
    /* Children that keep their space are left alone. */
    AUTO(block_node) keeps = test_open("driver=memory,node-name=k,size=256k");
    AUTO(block_node)
    mixed = test_open("driver=quorum,node-name=q,discard=unmap,children.0=f0,children.1=k,"
                      "vote-threshold=1");
    memset(memory_disk_data(keeps), 1, QUORUM_LENGTH);
    g_assert_cmpint(block_node_discard(mixed, 8192, 4096), ==, 0);
    g_assert_cmpint(read_byte(mixed, 8192, 4096), ==, 1);
    EXPECT_EVENTS("");
}

/* Random requests of one thread, with one child at a time that takes nothing or lies. */
static void test_model(struct quorum_rig *rig, const void *unused)
{
    struct test_random random = test_random_new(test_seed());
    g_autofree uint8_t *model = g_malloc0(QUORUM_LENGTH);
    g_autofree uint8_t *data = g_malloc(QUORUM_LENGTH);
    AUTO(block_node)
    node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");
    unsigned bad = 0;

    for (unsigned long i = 0, cases = test_cases(4000); i < cases; i++) {
        uint64_t offset, bytes;
        int status = 0;

        test_random_range(&random, QUORUM_LENGTH, 1, 20000, &offset, &bytes);
        if (test_random_chance(&random, 5)) {
            fault_clear(rig->faults[bad]);
            /* What it missed is mended where it is read: all of it, before the next is bad. */
            g_assert_cmpint(block_node_pread(node, data, 0, QUORUM_LENGTH, 0), ==, 0);
            test_assert_same(data, model, QUORUM_LENGTH);
            bad = (unsigned)test_random_below(&random, 3);
            FAULT(rig->faults[bad], .operations = FAULT_ON_CHANGES, .error_number = EIO);
            FAULT(rig->faults[bad], .operations = FAULT_ON(READ), .bytes = QUORUM_LENGTH,
                  .lie = true);
        }
        switch (test_random_below(&random, 4)) {
        case 0:
            memset(data, (int)test_random_below(&random, 256), bytes);
            memcpy(model + offset, data, bytes);
            status = block_node_pwrite(node, data, offset, bytes, 0);
            break;
        case 1:
            memset(model + offset, 0, bytes);
            status = block_node_write_zeroes(node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);
            break;
        default:
            status = block_node_pread(node, data, offset, bytes, 0);
            test_assert_same(data, model + offset, bytes);
        }
        g_assert_cmpint(status, ==, 0);
    }
    fault_clear(rig->faults[bad]);
    g_assert_cmpint(block_node_pread(node, data, 0, QUORUM_LENGTH, 0), ==, 0);
    for (int i = 0; i < 3; i++) {
        test_assert_same(memory_disk_data(rig->disks[i]), model, QUORUM_LENGTH);
    }
    g_autofree char *events = quorum_rig_take_events();
    g_assert_null(strstr(events, "FAILURE"));
}

/* ---- Status and length ----------------------------------------------------------------------- */

static unsigned status_at(struct block_node *node, uint64_t offset, uint64_t *bytes)
{
    struct block_extent extent;

    g_assert_cmpint(block_node_block_status(node, offset, QUORUM_LENGTH - offset, &extent), ==, 0);
    *bytes = extent.bytes;
    return extent.flags;
}

static void test_status(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");
    uint64_t bytes;

    g_assert_cmpuint(status_at(node, 0, &bytes) & BLOCK_STATUS_ZERO, !=, 0);
    g_assert_cmpint(write_byte(node, 1, 65536, 4096), ==, 0);
    g_assert_cmpuint(status_at(node, 0, &bytes) & BLOCK_STATUS_ZERO, !=, 0);
    g_assert_cmpuint(bytes, <=, 65536);
    g_assert_cmpuint(status_at(node, 65536, &bytes), ==,
                     BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    /* What one child has is to be read, and what one cannot say. */
    memory_disk_data(rig->disks[1])[0] = 1;
    g_assert_cmpuint(status_at(node, 0, &bytes) & BLOCK_STATUS_DATA, !=, 0);
    memory_disk_data(rig->disks[1])[0] = 0;
    FAULT(rig->faults[2], .operations = FAULT_ON_STATUS, .error_number = EIO);
    g_assert_cmpuint(status_at(node, 0, &bytes) & BLOCK_STATUS_DATA, !=, 0);
    EXPECT_EVENTS("");
}

static void test_length(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2");
    g_autoptr(GError) error = NULL;

    quorum_rig_fill(rig, 1);
    g_assert_cmpint(block_node_set_length(node, 2 * QUORUM_LENGTH, BLOCK_PREALLOCATION_OFF, NULL),
                    ==, 0);
    for (int i = 0; i < 3; i++) {
        g_assert_cmpuint(block_node_length(rig->faults[i]), ==, 2 * QUORUM_LENGTH);
    }
    g_assert_cmpuint(block_node_length(node), ==, 2 * QUORUM_LENGTH);
    g_assert_cmpint(read_byte(node, QUORUM_LENGTH, QUORUM_LENGTH), ==, 0);
    /* All of them or none. */
    memory_disk_fail_resize(rig->disks[2], -ENOSPC);
    g_assert_cmpint(block_node_set_length(node, 3 * QUORUM_LENGTH, BLOCK_PREALLOCATION_OFF, &error),
                    <, 0);
    g_assert_nonnull(error);
    for (int i = 0; i < 3; i++) {
        g_assert_cmpuint(block_node_length(rig->faults[i]), ==, 2 * QUORUM_LENGTH);
    }
    g_assert_cmpuint(block_node_length(node), ==, 2 * QUORUM_LENGTH);
    g_assert_cmpint(block_node_grow(node, 3 * QUORUM_LENGTH), ==, -ENOSPC);
    g_assert_cmpuint(block_node_length(node), ==, 2 * QUORUM_LENGTH);
    memory_disk_fail_resize(rig->disks[2], 0);
    g_assert_cmpint(block_node_grow(node, 3 * QUORUM_LENGTH), ==, 0);
    g_assert_cmpuint(block_node_length(node), ==, 3 * QUORUM_LENGTH);
}

/* A format on a quorum, which lets its storage grow. */
static void test_below_a_format(struct quorum_rig *rig, const void *unused)
{
    g_autofree char *directory = test_directory_new(true);
    g_autofree uint8_t *data = g_malloc(4 * MIB);

    memset(data, 5, 4 * MIB);
    for (int i = 0; i < 3; i++) {
        test_command_succeeds("qemu-img create -q -f qcow2 %s/%d 16M", directory, i);
        test_command_succeeds("cp --sparse=never %s/0 %s/%d.raw", directory, directory, i);
    }
    AUTO(block_node)
    node = test_open("driver=qcow2,node-name=image,file.driver=quorum,file.node-name=q,"
                     "file.vote-threshold=2,file.children.0.driver=file,"
                     "file.children.0.filename=%s/0.raw,file.children.1.driver=file,"
                     "file.children.1.filename=%s/1.raw,file.children.2.driver=file,"
                     "file.children.2.filename=%s/2.raw",
                     directory, directory, directory);
    g_assert_cmpint(block_node_pwrite(node, data, MIB, 4 * MIB, 0), ==, 0);
    g_assert_cmpint(read_byte(node, MIB, 4 * MIB), ==, 5);
    g_assert_cmpint(block_node_get_allocated_size(node), >=, (int64_t)(12 * MIB));
    block_node_unref(STEAL(node));
    test_command_succeeds("qemu-img check -q %s/0.raw", directory);
    test_command_succeeds("cmp %s/0.raw %s/1.raw", directory, directory);
    test_command_succeeds("cmp %s/0.raw %s/2.raw", directory, directory);
    EXPECT_EVENTS("");
    test_directory_free(STEAL(directory));
}

/* ---- Threads --------------------------------------------------------------------------------- */

#define WRITERS 4
#define READERS 2
/* Few places, so that writers meet. */
#define PLACES 4
#define BLOCK  4096

struct whirl {
    struct block_node *node;
    struct test_random random;
    uint64_t rounds;
};

static void *whirl_write(void *data)
{
    struct whirl *whirl = data;
    uint8_t block[2 * BLOCK];

    for (uint64_t i = 0; i < whirl->rounds; i++) {
        uint64_t place = test_random_below(&whirl->random, 2 * PLACES - 2) * BLOCK / 2;
        int status = 0;

        memset(block, (int)test_random_below(&whirl->random, 256), sizeof(block));
        switch (test_random_below(&whirl->random, 8)) {
        case 0:
            status = block_node_write_zeroes(whirl->node, place, BLOCK, 0);
            break;
        case 1:
            status = block_node_discard(whirl->node, place, BLOCK);
            break;
        case 2:
            status = block_node_flush(whirl->node);
            break;
        default:
            status = block_node_pwrite(whirl->node, block, place, BLOCK, 0);
        }
        g_assert_cmpint(status, ==, 0);
    }
    return NULL;
}

static void *whirl_read(void *data)
{
    struct whirl *whirl = data;
    uint8_t block[BLOCK];

    for (uint64_t i = 0; i < whirl->rounds; i++) {
        uint64_t place = test_random_below(&whirl->random, PLACES) * BLOCK;

        g_assert_cmpint(block_node_pread(whirl->node, block, place, BLOCK, 0), ==, 0);
    }
    return NULL;
}

static void run_whirl(struct block_node *node)
{
    struct test_random random = test_random_new(test_seed());
    struct whirl whirls[WRITERS + READERS];
    pthread_t threads[WRITERS + READERS];

    for (int i = 0; i < WRITERS + READERS; i++) {
        whirls[i] = (struct whirl){node, test_random_split(&random), test_amount(3000)};
        g_assert_cmpint(
            pthread_create(&threads[i], NULL, i < WRITERS ? whirl_write : whirl_read, &whirls[i]),
            ==, 0);
    }
    for (int i = 0; i < WRITERS + READERS; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void assert_same_children(struct quorum_rig *rig)
{
    for (int i = 1; i < 3; i++) {
        test_assert_same(memory_disk_data(rig->disks[i]), memory_disk_data(rig->disks[0]),
                         QUORUM_LENGTH);
    }
}

static void test_order(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=3");

    run_whirl(node);
    assert_same_children(rig);
    EXPECT_EVENTS(""); /* no reader saw a write half done */
}

/* What is rewritten is not what a writer has just replaced. */
static void test_rewrite_order(struct quorum_rig *rig, const void *unused)
{
    AUTO(block_node) node = test_open(OPTIONS_OF_3 "vote-threshold=2,rewrite-corrupted=on");

    FAULT(rig->faults[0], .operations = FAULT_ON(READ), .bytes = QUORUM_LENGTH, .percent = 30,
          .lie = true);
    run_whirl(node);
    g_autofree char *events = quorum_rig_take_events();
    g_assert_nonnull(strstr(events, "BAD f0 read"));
    g_assert_null(strstr(events, "FAILURE"));
    g_assert_null(strstr(events, "f1"));
    assert_same_children(rig);
}

#define TEST(name, function)                                                                       \
    g_test_add("/quorum/" name, struct quorum_rig, NULL, quorum_rig_set_up, function,              \
               quorum_rig_tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    quorum_rig_register();
    TEST("wrong-options-are-refused-with-qemus-words", test_options);
    TEST("the-version-with-enough-votes-is-read-and-losers-are-told-of", test_votes);
    TEST("children-that-cannot-be-read-have-no-vote", test_read_errors);
    TEST("losers-are-rewritten-if-that-is-wanted", test_rewrite);
    TEST("but-not-below-a-node-that-is-read-only", test_rewrite_read_only);
    TEST("blkverify-says-where-two-differ-and-fails-the-read", test_blkverify);
    TEST("fifo-believes-the-first-that-answers", test_fifo);
    TEST("writes-need-enough-children-and-fail-with-what-most-say", test_write_errors);
    TEST("so-do-flushes-and-forced-writes", test_flush);
    TEST("zeroes-that-must-be-fast-are-refused-by-all-or-none", test_zeroes);
    TEST("discards-leave-the-same-in-all-children", test_discard);
    TEST("one-bad-child-is-never-noticed-in-the-data", test_model);
    TEST("zeroes-are-what-all-children-say-are-zeroes", test_status);
    TEST("all-children-get-another-length-or-none", test_length);
    TEST("a-format-on-a-quorum-grows-and-leaves-equal-files", test_below_a_format);
    TEST("overlapping-requests-leave-all-children-the-same", test_order);
    TEST("what-is-rewritten-undoes-no-write", test_rewrite_order);
    return g_test_run();
}
