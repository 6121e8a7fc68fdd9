/* SPDX-License-Identifier: BSD-3-Clause */
/* The disk of torture-tracking-loss: a raw file or a qcow2 image, and what it holds. */
#include "tests/torture/tracking-loss.h"

#include <inttypes.h>
#include <string.h>

#include "block/node.h"
#include "block/request.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-peer.h"

/* Small clusters make tables that are written often; version 2 keeps no bitmaps in the image. */
static void make_qcow2(struct world *world)
{
    static const unsigned cluster_bits[] = {9, 12, 16};
    bool is_v2 = test_random_chance(&world->random, 25);
    bool is_lazy = !is_v2 && test_random_chance(&world->random, 30);
    unsigned bits = cluster_bits[test_random_below(&world->random, G_N_ELEMENTS(cluster_bits))];
    AUTO(block_node)
    file = test_open("driver=file,node-name=image,filename=%s", world->disk_path);

    test_create_image("driver=qcow2,size=%" PRIu64
                      ",version=%s,cluster-size=%u,lazy-refcounts=%s,file=image",
                      world->length, is_v2 ? "v2" : "v3", 1u << bits, is_lazy ? "on" : "off");
}

void loss_disk_make(struct world *world)
{
    test_make_file(world->disk_path, world->is_qcow2 ? 0 : world->length);
    if (world->is_qcow2) {
        make_qcow2(world);
    }
}

static struct block_node *open_qcow2(struct world *world)
{
    /* A cache of one part: tables are written while guests write, not only by flushes. */
    const char *cache =
        test_random_chance(&world->random, 50) ? "l2-cache-size=1,l2-cache-entry-size=512," : "";

    return world->loses
               ? test_open("driver=qcow2,discard=unmap,%sfile.driver=lose-writes,"
                           "file.node-name=lossy,file.discard=unmap,file.file.driver=file,"
                           "file.file.discard=unmap,file.file.filename=%s",
                           cache, world->disk_path)
               : test_open("driver=qcow2,discard=unmap,%sfile.driver=file,file.discard=unmap,"
                           "file.filename=%s",
                           cache, world->disk_path);
}

struct block_node *loss_disk_open(struct world *world)
{
    if (world->is_qcow2) {
        return open_qcow2(world);
    }
    /* The bitmaps are the raw node's, or those of the file below what loses. */
    const char *losing = test_random_chance(&world->random, 50)
                             ? "driver=raw,discard=unmap,file.driver=lose-writes,"
                               "file.node-name=lossy,file.discard=unmap,file.file.driver=file,"
                               "file.file.discard=unmap,file.file.filename=%s"
                             : "driver=lose-writes,node-name=lossy,discard=unmap,file.driver=file,"
                               "file.discard=unmap,file.filename=%s";
    return test_open(world->loses ? losing : "driver=file,discard=unmap,filename=%s",
                     world->disk_path);
}

static uint64_t read_node(struct block_node *node, uint8_t *buffer)
{
    uint64_t length = block_node_length(node);

    g_assert_cmpuint(length, <=, DISK_MAX);
    g_assert_cmpint(block_node_pread(node, buffer, 0, length, 0), ==, 0);
    return length;
}

uint64_t loss_disk_read_open(const struct world *world, uint8_t *buffer)
{
    return world->is_qcow2 ? read_node(world->root, buffer)
                           : loss_read_file(world->disk_path, buffer, DISK_MAX);
}

/*
 * A copy is opened, as a server would open the image, so that what opening writes is not in the way
 * of the tracking file, which knows when its disk was written.
 */
static uint64_t read_copy(const struct world *world, uint8_t *buffer)
{
    g_autofree char *copy = test_path(world->directory, "copy");
    g_autofree char *image = NULL;
    gsize bytes;

    g_assert_true(g_file_get_contents(world->disk_path, &image, &bytes, NULL));
    g_assert_true(g_file_set_contents(copy, image, (gssize)bytes, NULL));
    struct block_node *node = test_open("driver=qcow2,file.driver=file,file.filename=%s", copy);
    uint64_t length = read_node(node, buffer);
    block_node_unref(node);
    enum image_verdict verdict = own_check(copy);
    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS) {
        g_error("%s: the image is %s", loss_ending_names[world->ending],
                image_verdict_names[verdict]);
    }
    return length;
}

uint64_t loss_disk_read_closed(const struct world *world, uint8_t *buffer)
{
    return world->is_qcow2 ? read_copy(world, buffer)
                           : loss_read_file(world->disk_path, buffer, DISK_MAX);
}
