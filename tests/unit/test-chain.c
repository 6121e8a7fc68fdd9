/* SPDX-License-Identifier: BSD-3-Clause */
/* block/chain.h and block/overlay.h: what is in a chain, and putting overlays above it. */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/drain.h"
#include "block/image.h"
#include "block/main-loop.h"
#include "block/overlay.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

/* base < middle, which is short < a filter < top. base has a MiB of data, then middle, then top. */
struct rig {
    struct block_node *base, *middle, *filter, *top, *spare;
};

static struct block_node *open_layer(const char *name, uint64_t size, const char *backing)
{
    g_autofree char *file_name = g_strdup_printf("%s-file", name);
    AUTO(block_node) file = test_open("driver=memory,node-name=%s,size=0", file_name);

    test_create_image("driver=qcow2,file=%s,size=%" G_GUINT64_FORMAT, file_name, size);
    return test_open("driver=qcow2,node-name=%s,file=%s,backing=%s", name, file_name, backing);
}

static void fill(struct block_node *node, uint64_t offset)
{
    g_autofree char *data = g_malloc(MIB);

    memset(data, 0x5a, MIB);
    g_assert_cmpint(block_node_pwrite(node, data, offset, MIB, 0), ==, 0);
}

static void set_up(struct rig *rig, gconstpointer data)
{
    rig->base = open_layer("base", 4 * MIB, "");
    fill(rig->base, 0);
    fill(rig->base, 3 * MIB);
    rig->middle = open_layer("middle", 3 * MIB, "base");
    fill(rig->middle, 1 * MIB);
    rig->filter = test_open("driver=copy-on-read,node-name=filter,file=middle,read-only=on");
    rig->top = open_layer("top", 4 * MIB, "filter");
    fill(rig->top, 2 * MIB);
    rig->spare = open_layer("spare", 4 * MIB, "");
}

static void tear_down(struct rig *rig, gconstpointer data)
{
    block_node_unref(rig->spare);
    block_node_unref(rig->top);
    block_node_unref(rig->filter);
    block_node_unref(rig->middle);
    block_node_unref(rig->base);
}

static void test_walk(struct rig *rig, gconstpointer data)
{
    AUTO(block_node) layer = block_layer_of(rig->filter);
    AUTO(block_node) below = block_chain_below(rig->top);
    AUTO(block_node) below_filter = block_chain_below(rig->filter);
    AUTO(block_node) backing = block_chain_backing(rig->filter);

    g_assert_true(layer == rig->middle && below == rig->filter && below_filter == rig->middle);
    g_assert_true(backing == rig->base);
    g_assert_true(block_layer_below(rig->top) == rig->middle);
    g_assert_true(block_layer_below(rig->filter) == rig->base);
    g_assert_null(block_layer_below(rig->base));
    g_assert_null(block_chain_below(rig->base));
    g_assert_true(block_chain_contains(rig->top, rig->top));
    g_assert_true(block_chain_contains(rig->top, rig->filter));
    g_assert_true(block_chain_contains(rig->filter, rig->base));
    g_assert_false(block_chain_contains(rig->filter, rig->top));
    g_assert_false(block_chain_contains(rig->top, rig->spare));
}

#define OWN_DATA (BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED)
#define OWN_ZERO (BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED)

static void expect_status(struct rig *rig, const struct block_node *base, unsigned mib,
                          unsigned flags)
{
    struct block_extent extent;

    g_assert_cmpint(block_chain_status(rig->top, base, mib * MIB, MIB, &extent), ==, 0);
    g_assert_cmphex(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED),
                    ==, flags);
    g_assert_cmpuint(extent.bytes, ==, MIB);
}

/* Behind the end of the middle there are zeroes, whatever the base has there. */
static void test_status(struct rig *rig, gconstpointer data)
{
    static const unsigned all[] = {OWN_DATA, OWN_DATA, OWN_DATA, OWN_ZERO};
    static const unsigned above_base[] = {0, OWN_DATA, OWN_DATA, OWN_ZERO};
    static const unsigned top_alone[] = {0, 0, OWN_DATA, 0};

    for (unsigned i = 0; i < 4; i++) {
        expect_status(rig, NULL, i, all[i]);
        expect_status(rig, rig->base, i, above_base[i]);
        expect_status(rig, rig->middle, i, top_alone[i]);
        expect_status(rig, rig->filter, i, top_alone[i]);
    }
}

static void expect_refused(struct block_node *node, struct block_node *overlay, const char *text)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_overlay_check(node, overlay, &error), <, 0);
    g_assert_nonnull(strstr(error->message, text));
}

static void test_refused(struct rig *rig, gconstpointer data)
{
    AUTO(block_node) small = open_layer("small", 2 * MIB, "");
    AUTO(block_node) memory = test_open("driver=memory,node-name=memory,size=4194304");

    expect_refused(rig->top, rig->filter, "Filters cannot be used as overlays");
    expect_refused(rig->top, memory, "The overlay does not support backing images");
    expect_refused(rig->top, rig->middle, "The overlay already has a backing image");
    expect_refused(rig->top, rig->base, "The overlay is already in use");
    expect_refused(rig->top, small, "they must be equally long");
    /* The link is the filter's, but the image that names it is that of the top. */
    expect_refused(rig->middle, rig->spare, "node is used as backing hd of 'top'");
    expect_refused(rig->base, rig->spare, "node is used as backing hd of 'middle'");
}

static void install(void *data)
{
    struct rig *rig = data;
    g_autoptr(GError) error = NULL;

    block_overlay_install(rig->top, rig->spare, &error);
    g_assert_no_error(error);
}

static void take_off(void *data)
{
    struct rig *rig = data;

    block_overlay_remove(rig->top, rig->spare);
}

/* What stands on the node stands on the overlay then; taken off again all is as before. */
static void test_overlay(struct rig *rig, gconstpointer data)
{
    AUTO(block_node) user = test_open("driver=raw,node-name=user,file=top");
    struct block_node *const nodes[] = {rig->top, rig->spare};
    struct block_drain *drain = block_drain_begin(nodes, 2, BLOCK_PERM_ALL);
    struct block_extent extent;

    main_loop_call_wait(install, rig);
    g_assert_true(user->file == rig->spare && block_layer_below(rig->spare) == rig->top);
    g_assert_true(block_chain_contains(user->file, rig->base));
    block_drain_end(drain);
    g_assert_cmpint(block_chain_status(rig->spare, rig->top, 0, MIB, &extent), ==, 0);
    g_assert_cmphex(extent.flags, ==, 0);
    drain = block_drain_begin(nodes, 2, BLOCK_PERM_ALL);
    main_loop_call_wait(take_off, rig);
    block_drain_end(drain);
    g_assert_true(user->file == rig->top && !block_layer_below(rig->spare));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
#define ADD(name, function) g_test_add(name, struct rig, NULL, set_up, function, tear_down)
    ADD("/chain/walk", test_walk);
    ADD("/chain/status", test_status);
    ADD("/chain/overlay-refused", test_refused);
    ADD("/chain/overlay", test_overlay);
    return g_test_run();
}
