/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes: names, options, children, references, claims, lengths. */
#include "block/node.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/request.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

/* Open what must be refused with this message, and see that nothing is left behind. */
static void expect_refusal(const char *options, const char *message)
{
    struct block_node **before = block_node_list();
    unsigned disks = memory_disks_open();
    g_autofree char *error = test_open_error("%s", options);
    struct block_node **after = block_node_list();
    size_t i = 0;

    g_assert_cmpstr(error, ==, message);
    g_assert_cmpuint(memory_disks_open(), ==, disks);
    for (; before[i] && after[i]; i++) {
        g_assert_true(before[i] == after[i]);
        /* The two lists' references, and the owner's: nobody else's, nor a claim. */
        g_assert_cmpint(before[i]->references, ==, 3);
        g_assert_true(TAILQ_EMPTY(&before[i]->claims));
    }
    g_assert_true(!before[i] && !after[i]);
    block_node_list_free(before);
    block_node_list_free(after);
}

static int add(const char *text, char **message)
{
    g_autoptr(GError) error = NULL;
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);
    int status = block_node_add(options, &error);

    if (message) {
        *message = error ? g_strdup(error->message) : NULL;
    }
    g_assert_true(!error == (status == 0));
    return status;
}

/* ---- Names ------------------------------------------------------------------------------------
 */

static void test_valid_names(void)
{
    static const char *const valid[] = {"a", "Z9", "a-b_c.d", "a123456789012345678901234567890"};
    static const char *const invalid[] = {"",
                                          "1a",
                                          "-a",
                                          ".a",
                                          "_a",
                                          "#block001",
                                          "a b",
                                          "a/b",
                                          "a\xc3\xa9",
                                          "a\n",
                                          "a1234567890123456789012345678901"};

    for (size_t i = 0; i < G_N_ELEMENTS(valid); i++) {
        AUTO(block_node) node = test_open("driver=memory,node-name=%s", valid[i]);
        AUTO(block_node) found = block_node_find(valid[i]);

        g_assert_true(block_node_name_is_valid(valid[i]));
        g_assert_true(found == node);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(invalid); i++) {
        g_autofree char *error = test_open_error("driver=memory,node-name=%s", invalid[i]);

        g_assert_false(block_node_name_is_valid(invalid[i]));
        g_assert_true(strstr(error, "node-name") || strstr(error, "too long"));
    }
    g_assert_null(block_node_find("a"));
    g_assert_cmpuint(memory_disks_open(), ==, 0);
}

static void test_duplicate_names(void)
{
    AUTO(block_node) node = test_open("driver=memory,node-name=one");

    expect_refusal("driver=memory,node-name=one", "Duplicate nodes with node-name='one'");
    expect_refusal("driver=memory-filter,node-name=two,file.driver=memory,file.node-name=one",
                   "Duplicate nodes with node-name='one'");
    /* The parent's name is taken by its own child meanwhile. */
    expect_refusal("driver=memory-filter,node-name=x,file.driver=memory,file.node-name=x",
                   "Duplicate nodes with node-name='x'");
    g_assert_null(block_node_find("two"));
    g_assert_null(block_node_find("x"));
}

static void test_made_up_names(void)
{
    AUTO(block_node) a = test_open("driver=memory");
    AUTO(block_node) b = test_open("driver=memory");
    AUTO(block_node) found = block_node_find(b->name);
    g_autofree char *message = NULL;

    g_assert_true(g_str_has_prefix(a->name, "#block"));
    g_assert_cmpstr(a->name, !=, b->name);
    g_assert_true(found == b);
    g_assert_cmpint(add("driver=memory", &message), ==, -EINVAL);
    g_assert_cmpstr(message, ==, "'node-name' must be specified for the root node");
}

static void test_not_found(void)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(block_node_find_or_error("ghost", &error));
    g_assert_cmpstr(error->message, ==, "Cannot find device='' nor node-name='ghost'");
    g_assert_cmpint(block_error_code(error), ==, -ENOENT);
}

/* ---- Options and children ---------------------------------------------------------------------
 */

static void test_parameters(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");

    expect_refusal("node-name=x", "Parameter 'driver' is missing");
    expect_refusal("driver=nonsense", "Parameter 'driver' does not accept value 'nonsense'");
    expect_refusal("driver=memory,bogus=1", "Parameter 'bogus' is unexpected");
    expect_refusal("driver=memory-filter", "Parameter 'file' is missing");
    expect_refusal("driver=memory-filter,file=ghost",
                   "Cannot find device='ghost' nor node-name='ghost'");
    expect_refusal("driver=memory-filter,file=disk,file.driver=memory",
                   "Parameter 'file.driver' is unexpected");
    expect_refusal("driver=memory-filter,file=disk,backing=disk",
                   "Parameter 'backing' is unexpected");
    expect_refusal("driver=memory,detect-zeroes=unmap",
                   "setting detect-zeroes to unmap is not allowed without setting discard "
                   "operation to unmap");
    expect_refusal("driver=memory,force-share=on",
                   "force-share=on can only be used with read-only images");
}

static void test_failed_open(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");

    expect_refusal("driver=memory-layer,file=disk,broken=on,comment=text", "The layer is broken");
    expect_refusal("driver=memory-layer,file.driver=memory,file.node-name=f,backing=disk,broken=on",
                   "The layer is broken");
    expect_refusal("driver=memory-layer,file=disk,backing.driver=memory,backing.size=65M",
                   "A memory disk has at most 64 MiB");
    expect_refusal("driver=memory,size=1000,request-alignment=512",
                   "The length of node 'memory' (1000 bytes) is not a multiple of the request size "
                   "it needs (512 bytes); without cache.direct it may work");
    expect_refusal("driver=memory-layer,node-name=x,file=disk,bogus=1",
                   "Parameter 'bogus' is unexpected");
    g_assert_null(block_node_find("f"));
    g_assert_null(block_node_find("x"));
}

static void test_inheritance(void)
{
    AUTO(block_node)
    node = test_open("driver=memory-layer,read-only=on,force-share=on,cache.direct=on,"
                     "cache.no-flush=on,auto-read-only=on,detect-zeroes=on,file.driver=memory,"
                     "file.cache.direct=off,backing.driver=memory");
    AUTO(block_node)
    writable = test_open("driver=memory-layer,file.driver=memory,backing.driver=memory-layer,"
                         "backing.file.driver=memory");
    const struct block_node_options *file = &node->file->options;

    g_assert_true(file->read_only && file->force_share && file->cache_no_flush);
    g_assert_true(file->auto_read_only && file->discard_unmap);
    g_assert_true(!file->cache_direct && node->backing->options.cache_direct);
    g_assert_cmpint(file->detect_zeroes, ==, BLOCK_DETECT_ZEROES_OFF);
    g_assert_false(writable->file->options.read_only);
    g_assert_true(writable->backing->options.read_only);
    g_assert_true(writable->backing->file->options.read_only);
}

static void test_read_only_child(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk,read-only=on");
    AUTO(block_node) automatic = test_open("driver=memory-filter,file=disk,auto-read-only=on");

    g_assert_true(block_node_is_read_only(automatic));
    block_node_unref(STEAL(automatic));
    expect_refusal("driver=memory-layer,file=disk",
                   "Block node 'disk' is read-only; open the node above it with read-only=on");
}

static void test_children(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node)
    node = test_open("driver=memory-layer,file=disk,backing.driver=memory,backing.node-name=b");
    AUTO(block_node) backing = block_node_find("b");

    g_assert_true(block_node_child(node, "file") == disk && node->file == disk);
    g_assert_true(block_node_child(node, "backing") == backing && node->backing == backing);
    g_assert_null(block_node_child(node, "target"));
    block_node_unref(STEAL(node));
    g_assert_cmpint(backing->references, ==, 1);
    g_assert_cmpint(disk->references, ==, 1);
    g_assert_true(TAILQ_EMPTY(&disk->claims));
}

/* ---- References --------------------------------------------------------------------------------
 */

static void test_references(void)
{
    struct block_node *node = test_open("driver=memory,node-name=n");
    struct block_node *again = block_node_find("n");

    g_assert_true(block_node_ref(node) == again);
    block_node_unref(node);
    block_node_unref(again);
    g_assert_cmpuint(memory_disks_open(), ==, 1);
    block_node_unref(node);
    g_assert_cmpuint(memory_disks_open(), ==, 0);
    g_assert_null(block_node_find("n"));
    block_node_unref(NULL);
}

static int remove_node(const char *name, const char *message)
{
    g_autoptr(GError) error = NULL;
    int status = block_node_remove(name, &error);

    g_assert_cmpstr(error ? error->message : NULL, ==, message);
    return status;
}

static void test_removal(void)
{
    g_assert_cmpint(add("driver=memory,node-name=disk", NULL), ==, 0);
    g_assert_cmpint(add("driver=memory-layer,node-name=top,file=disk,backing.driver=memory,"
                        "backing.node-name=inner",
                        NULL),
                    ==, 0);
    g_assert_cmpint(remove_node("disk", "Block device disk is in use"), ==, -EBUSY);
    g_assert_cmpint(remove_node("inner", "Node inner is not owned by the monitor"), ==, -EPERM);
    g_assert_cmpint(remove_node("ghost", "Failed to find node with node-name='ghost'"), ==,
                    -ENOENT);
    g_assert_cmpuint(memory_disks_open(), ==, 2);
    g_assert_cmpint(remove_node("top", NULL), ==, 0);
    g_assert_cmpuint(memory_disks_open(), ==, 1);
    g_assert_cmpint(remove_node("disk", NULL), ==, 0);
    g_assert_cmpuint(memory_disks_open(), ==, 0);
}

static void test_remove_all(void)
{
    AUTO(block_node) kept = test_open("driver=memory");

    g_assert_cmpint(add("driver=memory,node-name=a", NULL), ==, 0);
    g_assert_cmpint(add("driver=memory-filter,node-name=b,file=a", NULL), ==, 0);
    block_node_remove_all();
    block_node_remove_all();
    g_assert_cmpuint(memory_disks_open(), ==, 1);
    g_assert_cmpint(kept->references, ==, 1);
}

/* Names are looked up, and lists made, while others open and close nodes. */
static void *open_and_close(void *data)
{
    for (int i = 0; i < 200; i++) {
        AUTO(block_options) options = block_options_parse(
            "driver=memory-filter,node-name=same,file.driver=memory", NULL, NULL);
        AUTO(block_node) node = block_node_open(options, true, NULL);
        AUTO(block_node) found = block_node_find("same");
        struct block_node **list = block_node_list();

        g_assert_true(!node || found == node);
        block_node_list_free(list);
    }
    return NULL;
}

static void test_concurrent_names(void)
{
    pthread_t threads[4];

    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, open_and_close, NULL), ==, 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    g_assert_null(block_node_find("same"));
    g_assert_cmpuint(memory_disks_open(), ==, 0);
}

static void test_last_reference_flushes(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node) top = test_open("driver=memory-layer,file=disk");
    uint8_t data[4096] = {1};

    g_assert_cmpint(block_node_pwrite(top, data, 0, 4096, 0), ==, 0);
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_FLUSH), ==, 0);
    block_node_unref(STEAL(top));
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_FLUSH), ==, 1);
}

static void test_depth(void)
{
    g_autoptr(GPtrArray) nodes = g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    g_autofree char *error = NULL;
    uint8_t byte = 1;

    g_ptr_array_add(nodes, test_open("driver=memory,node-name=n1"));
    for (int i = 2; i <= BLOCK_NODE_HEIGHT_MAX; i++) {
        g_ptr_array_add(nodes, test_open("driver=memory-filter,node-name=n%d,file=n%d", i, i - 1));
    }
    struct block_node *top = nodes->pdata[nodes->len - 1];
    g_assert_cmpint(block_node_pwrite(top, &byte, 5, 1, 0), ==, 0);
    g_assert_cmpint(block_node_flush(top), ==, 0);
    g_assert_cmpuint(memory_disk_data(nodes->pdata[0])[5], ==, 1);
    error = test_open_error("driver=memory-filter,file=n%d", BLOCK_NODE_HEIGHT_MAX);
    g_assert_cmpstr(error, ==, "There are too many nodes under each other (1000)");
    /* The top last: it closes the whole chain in one go. */
    g_ptr_array_set_free_func(nodes, NULL);
    for (guint i = 0; i < nodes->len; i++) {
        block_node_unref(nodes->pdata[i]);
    }
    g_assert_cmpuint(memory_disks_open(), ==, 0);
}

/* ---- Claims ------------------------------------------------------------------------------------
 */

static void test_claim_conflicts(void)
{
    AUTO(block_node) node = test_open("driver=memory,node-name=n");

    for (unsigned combination = 0; combination < 1 << 16; combination++) {
        unsigned perms_a = combination & 15, shared_a = (combination >> 4) & 15;
        unsigned perms_b = (combination >> 8) & 15, shared_b = combination >> 12;
        bool fits = (perms_b & shared_a) == perms_b && (perms_a & shared_b) == perms_a;
        struct block_claim a = {.owner = (char *)"A", .perms = perms_a, .shared = shared_a};
        struct block_claim b = {.owner = (char *)"B", .perms = perms_b, .shared = shared_b};

        g_assert_cmpint(block_claim_acquire(&a, node, NULL), ==, 0);
        g_assert_cmpint(block_claim_acquire(&b, node, NULL), ==, fits ? 0 : -EBUSY);
        g_assert_true((b.node == node) == fits);
        block_claim_release(&b);
        block_claim_release(&b);
        block_claim_release(&a);
    }
    g_assert_cmpint(node->references, ==, 1);
}

static void test_claim_messages(void)
{
    AUTO(block_node) node = test_open("driver=memory,node-name=n");
    g_autoptr(GError) error = NULL;
    struct block_claim a = {.owner = (char *)"block device 'vda'",
                            .perms = BLOCK_PERM_WRITE,
                            .shared = BLOCK_PERM_READ};
    struct block_claim b = {.owner = (char *)"block job 'j'",
                            .perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE,
                            .shared = BLOCK_PERM_ALL};

    g_assert_cmpint(block_claim_acquire(&a, node, NULL), ==, 0);
    g_assert_cmpint(block_claim_acquire(&b, node, &error), ==, -EBUSY);
    g_assert_cmpstr(error->message, ==,
                    "Node 'n' is busy: block device 'vda' and block job 'j' exclude each other by "
                    "writing it");
    b.perms = BLOCK_PERM_READ;
    g_assert_cmpint(block_claim_acquire(&b, node, NULL), ==, 0);
    g_assert_cmpint(block_claim_change(&b, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, NULL), ==, -EBUSY);
    g_assert_cmpuint(b.perms, ==, BLOCK_PERM_READ);
    g_assert_cmpint(block_claim_change(&a, BLOCK_PERM_READ, BLOCK_PERM_ALL, NULL), ==, 0);
    g_assert_cmpint(block_claim_change(&b, BLOCK_PERM_WRITE, BLOCK_PERM_ALL, NULL), ==, 0);
    g_assert_cmpuint(b.perms, ==, BLOCK_PERM_WRITE);
    block_claim_release(&a);
    block_claim_release(&b);
}

static void test_claim_move(void)
{
    AUTO(block_node) old = test_open("driver=memory");
    AUTO(block_node) new = test_open("driver=memory");
    struct block_claim other = {.owner = (char *)"o", .perms = BLOCK_PERM_WRITE};
    struct block_claim claim = {
        .owner = (char *)"c", .perms = BLOCK_PERM_READ, .shared = BLOCK_PERM_READ};

    g_assert_cmpint(block_claim_acquire(&other, new, NULL), ==, 0);
    g_assert_cmpint(block_claim_acquire(&claim, old, NULL), ==, 0);
    g_assert_cmpint(block_claim_move(&claim, new, BLOCK_PERM_WRITE, 0, NULL), ==, -EBUSY);
    g_assert_true(claim.node == old && claim.perms == BLOCK_PERM_READ);
    g_assert_cmpuint(claim.shared, ==, BLOCK_PERM_READ);
    g_assert_cmpint(old->references, ==, 2);
    block_claim_release(&other);
    g_assert_cmpint(block_claim_move(&claim, new, BLOCK_PERM_WRITE, 0, NULL), ==, 0);
    g_assert_true(claim.node == new &&claim.perms == BLOCK_PERM_WRITE &&claim.shared == 0);
    g_assert_cmpint(old->references, ==, 1);
    g_assert_cmpint(new->references, ==, 2);
    block_claim_release(&claim);
}

static void test_cycles(void)
{
    AUTO(block_node) bottom = test_open("driver=memory,node-name=bottom");
    AUTO(block_node) middle = test_open("driver=memory-filter,node-name=middle,file=bottom");
    AUTO(block_node) top = test_open("driver=memory-filter,node-name=top,file=middle");
    g_autoptr(GError) error = NULL;
    struct block_claim *claim = &TAILQ_FIRST(&middle->children)->claim;

    g_assert_cmpint(block_claim_move(claim, top, claim->perms, BLOCK_PERM_ALL, &error), ==, -ELOOP);
    g_assert_cmpstr(error->message, ==, "Making 'top' a child of 'middle' would create a cycle");
    g_assert_cmpint(block_claim_move(claim, middle, claim->perms, BLOCK_PERM_ALL, NULL), ==,
                    -ELOOP);
    g_assert_true(claim->node == bottom);
}

/* Two formats on one file would fight over it; as a backing file it serves many. */
static void test_sharing(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node) a =
        test_open("driver=memory-layer,node-name=a,file.driver=memory,backing=disk");
    AUTO(block_node) b = test_open("driver=memory-layer,file.driver=memory,backing=disk");
    g_autofree char *error = test_open_error("driver=memory-layer,node-name=c,file=disk");

    g_assert_cmpstr(error, ==,
                    "Node 'disk' is busy: node 'a' and node 'c' exclude each other by writing it");
}

/* ---- Lengths -----------------------------------------------------------------------------------
 */

static void test_resize(void)
{
    AUTO(block_node) node = test_open("driver=memory,size=1M,request-alignment=512");
    AUTO(dirty_bitmap) on = dirty_bitmap_new("on", MIB, 64 * KIB, NULL);
    AUTO(dirty_bitmap) off = dirty_bitmap_new("off", MIB, 64 * KIB, NULL);
    g_autoptr(GError) error = NULL;
    uint8_t data[512] = {1};

    dirty_bitmap_set_enabled(off, false);
    block_node_add_bitmap(node, on);
    block_node_add_bitmap(node, off);
    g_assert_cmpint(block_node_set_length(node, 2 * MIB, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    g_assert_cmpuint(block_node_length(node), ==, 2 * MIB);
    g_assert_cmpuint(dirty_bitmap_count(on), ==, MIB);
    g_assert_cmpuint(dirty_bitmap_next_dirty(on, 0, 2 * MIB), ==, MIB);
    g_assert_cmpuint(dirty_bitmap_count(off), ==, 0);
    g_assert_cmpint(block_node_pwrite(node, data, 2 * MIB - 512, 512, 0), ==, 0);
    g_assert_cmpint(block_node_set_length(node, 512, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    g_assert_cmpuint(dirty_bitmap_length(on), ==, 512);
    g_assert_cmpuint(dirty_bitmap_length(off), ==, 512);
    g_assert_cmpint(block_node_pwrite(node, data, 512, 1, 0), ==, -EINVAL);
    g_assert_cmpint(block_node_set_length(node, 513, BLOCK_PREALLOCATION_OFF, &error), ==, -EINVAL);
    g_assert_cmpint(
        block_node_set_length(node, 1 + (uint64_t)INT64_MAX, BLOCK_PREALLOCATION_OFF, NULL), ==,
        -EINVAL);
    g_assert_cmpuint(block_node_length(node), ==, 512);
    block_node_remove_bitmap(node, on);
    block_node_remove_bitmap(node, off);
}

static void test_failed_resize(void)
{
    static const uint64_t lengths[] = {512, 2 * MIB};
    AUTO(block_node) node = test_open("driver=memory,size=1M");
    AUTO(dirty_bitmap) off = dirty_bitmap_new("off", MIB, 64 * KIB, NULL);

    dirty_bitmap_set(off, MIB - 1, 1);
    dirty_bitmap_set_enabled(off, false);
    block_node_add_bitmap(node, off);
    memory_disk_fail_resize(node, -EIO);
    for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_cmpint(block_node_set_length(node, lengths[i], BLOCK_PREALLOCATION_OFF, &error),
                        ==, -EIO);
        g_assert_nonnull(error);
        g_assert_cmpuint(block_node_length(node), ==, MIB);
        g_assert_cmpuint(dirty_bitmap_length(off), ==, MIB);
        g_assert_cmpuint(dirty_bitmap_count(off), ==, 64 * KIB);
        g_assert_true(dirty_bitmap_get(off, MIB - 1));
    }
    block_node_remove_bitmap(node, off);
}

static void test_resize_is_flushed(void)
{
    AUTO(block_node) node = test_open("driver=memory-filter,file.driver=memory");

    memory_disk_log(node->file);
    g_assert_cmpint(block_node_set_length(node, 2 * MIB, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    g_assert_cmpuint(block_node_length(node->file), ==, 2 * MIB);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_autofree char *log = memory_disk_take_log(node->file);
    g_assert_cmpstr(log, ==, "flush");
}

static void test_refused_resize(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    AUTO(block_node) filter = test_open("driver=memory-filter,node-name=f,file=disk");
    AUTO(block_node) fixed = test_open("driver=memory-layer,node-name=l,file.driver=memory");
    AUTO(block_node) read_only = test_open("driver=memory,read-only=on");
    g_autoptr(GError) below = NULL;
    g_autoptr(GError) through = NULL;
    struct block_claim job = {.owner = (char *)"block job 'j'",
                              .perms = BLOCK_PERM_READ,
                              .shared = BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_RESIZE};

    g_assert_cmpint(block_node_check_resize(filter, NULL), ==, 0);
    g_assert_cmpint(block_node_check_resize(disk, &below), ==, -EBUSY);
    g_assert_cmpstr(below->message, ==, "Node 'disk' is busy: node 'f' does not let it be resized");
    g_assert_cmpint(block_claim_acquire(&job, disk, NULL), ==, 0);
    g_assert_cmpint(block_node_check_resize(filter, &through), ==, -EBUSY);
    g_assert_cmpstr(through->message, ==,
                    "Node 'disk' is busy: block job 'j' does not let it be resized");
    block_claim_release(&job);
    g_assert_cmpint(block_node_set_length(fixed, MIB, BLOCK_PREALLOCATION_OFF, NULL), ==, -ENOTSUP);
    g_assert_cmpint(block_node_set_length(read_only, 512, BLOCK_PREALLOCATION_OFF, NULL), ==,
                    -EACCES);
    g_assert_cmpuint(block_node_length(read_only), ==, MIB);
}

/* ---- Filters pass on what their users do ------------------------------------------------------
 */

static unsigned claimed(struct block_node *filter)
{
    return TAILQ_FIRST(&filter->children)->claim.perms;
}

static void test_filter_claims(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct block_claim guest = {.owner = (char *)"block device 'vda'",
                                .perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE,
                                .shared = BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_WRITE};
    struct block_claim other = guest;
    g_autoptr(GError) error = NULL;

    other.owner = (char *)"block device 'vdb'";
    g_assert_cmpint(block_claim_acquire(&guest, disk, NULL), ==, 0);
    /* Filters can be put above what a guest uses, and above each other. */
    AUTO(block_node) low = test_open("driver=memory-filter,node-name=low,file=disk");
    AUTO(block_node) high = test_open("driver=memory-filter,node-name=high,file=low");
    g_assert_cmpuint(claimed(high), ==, BLOCK_PERM_READ);
    g_assert_cmpuint(claimed(low), ==, BLOCK_PERM_READ);
    g_assert_cmpint(block_claim_acquire(&other, high, &error), ==, -EBUSY);
    g_assert_cmpstr(error->message, ==,
                    "Node 'disk' is busy: block device 'vda' and block device 'vdb' exclude each "
                    "other by writing it");
    g_clear_error(&error);
    g_assert_null(other.node);
    g_assert_true(TAILQ_EMPTY(&high->claims));
    g_assert_cmpuint(claimed(high), ==, BLOCK_PERM_READ);
    g_assert_cmpuint(claimed(low), ==, BLOCK_PERM_READ);

    /* The guest moves above them: they write for it, and keep others from writing below. */
    g_assert_cmpint(block_claim_move(&guest, high, guest.perms, guest.shared, NULL), ==, 0);
    g_assert_cmpuint(claimed(high), ==, BLOCK_PERM_READ | BLOCK_PERM_WRITE);
    g_assert_cmpuint(claimed(low), ==, BLOCK_PERM_READ | BLOCK_PERM_WRITE);
    g_assert_cmpint(block_claim_acquire(&other, disk, &error), ==, -EBUSY);
    g_assert_cmpstr(error->message, ==,
                    "Node 'disk' is busy: node 'low' and block device 'vdb' exclude each other by "
                    "writing it");
    g_clear_error(&error);

    /* A move that fails leaves everything as it was. */
    AUTO(block_node) elsewhere = test_open("driver=memory,node-name=elsewhere");
    g_assert_cmpint(block_claim_acquire(&other, elsewhere, NULL), ==, 0);
    g_assert_cmpint(block_claim_move(&guest, elsewhere, guest.perms, guest.shared, NULL), ==,
                    -EBUSY);
    g_assert_true(guest.node == high);
    g_assert_cmpuint(claimed(low), ==, BLOCK_PERM_READ | BLOCK_PERM_WRITE);
    block_claim_release(&other);

    /* Less is passed on at once, and the way back is free. */
    g_assert_cmpint(block_claim_change(&guest, BLOCK_PERM_READ, BLOCK_PERM_ALL, NULL), ==, 0);
    g_assert_cmpuint(claimed(low), ==, BLOCK_PERM_READ);
    g_assert_cmpint(block_claim_acquire(&other, disk, NULL), ==, 0);
    g_assert_cmpint(block_claim_change(&guest, other.perms, BLOCK_PERM_ALL, NULL), ==, -EBUSY);
    g_assert_cmpuint(guest.perms, ==, BLOCK_PERM_READ);
    g_assert_cmpuint(claimed(high), ==, BLOCK_PERM_READ);
    block_claim_release(&other);
    g_assert_cmpint(block_claim_move(&guest, disk, other.perms, other.shared, NULL), ==, 0);
    g_assert_cmpuint(claimed(high), ==, BLOCK_PERM_READ);
    block_claim_release(&guest);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_test_add_func("/node/names-are-checked", test_valid_names);
    g_test_add_func("/node/a-name-is-given-once", test_duplicate_names);
    g_test_add_func("/node/names-are-made-up", test_made_up_names);
    g_test_add_func("/node/a-missing-node-is-named", test_not_found);
    g_test_add_func("/node/wrong-parameters-are-named", test_parameters);
    g_test_add_func("/node/a-failed-open-leaves-nothing", test_failed_open);
    g_test_add_func("/node/inline-children-inherit", test_inheritance);
    g_test_add_func("/node/a-read-only-child-makes-read-only-parents", test_read_only_child);
    g_test_add_func("/node/children-by-name-and-inline", test_children);
    g_test_add_func("/node/the-last-reference-closes", test_references);
    g_test_add_func("/node/a-used-node-is-not-removed", test_removal);
    g_test_add_func("/node/all-are-removed-at-shutdown", test_remove_all);
    g_test_add_func("/node/names-among-threads", test_concurrent_names);
    g_test_add_func("/node/the-last-reference-flushes", test_last_reference_flushes);
    g_test_add_func("/node/depth-is-bounded", test_depth);
    g_test_add_func("/node/claims-conflict-by-permission", test_claim_conflicts);
    g_test_add_func("/node/filters-claim-what-their-users-do", test_filter_claims);
    g_test_add_func("/node/conflicting-claims-name-each-other", test_claim_messages);
    g_test_add_func("/node/a-claim-moves-or-nothing-changes", test_claim_move);
    g_test_add_func("/node/cycles-are-refused", test_cycles);
    g_test_add_func("/node/a-file-has-one-format-a-backing-file-many", test_sharing);
    g_test_add_func("/node/bitmaps-follow-the-length", test_resize);
    g_test_add_func("/node/a-failed-resize-keeps-bitmaps", test_failed_resize);
    g_test_add_func("/node/a-new-length-is-flushed", test_resize_is_flushed);
    g_test_add_func("/node/a-resize-is-refused-by-users", test_refused_resize);
    return g_test_run();
}
