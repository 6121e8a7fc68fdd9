/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/chain-rig.h"

#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/request.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define MB(n) ((n)*MIB)

const struct chain_shape chain_shapes[] = {
    {"plain", MB(4), MB(4), MB(4), "version=v3", "version=v3", true},
    {"unbased", MB(4), MB(4), MB(4), "version=v3", "version=v3", false},
    {"short-base", MB(1) + 1536, MB(3), MB(4) + 512, "version=v3", "version=v3", true},
    {"short-base-unbased", MB(1) + 1536, MB(3), MB(4) + 512, "version=v3", "version=v3", false},
    {"long-base", MB(6), MB(5), MB(3) + 4096, "version=v3", "version=v3", false},
    {"small-to-large", MB(4), MB(2), MB(4), "cluster-size=4k", "cluster-size=1M", false},
    {"small-to-large-based", MB(4), MB(2), MB(4), "cluster-size=4k", "cluster-size=1M", true},
    {"large-to-small", MB(4), MB(3), MB(5), "cluster-size=2M", "cluster-size=4k", false},
    {"nameless", MB(4), MB(3), MB(4), "version=v3", "cluster-size=512k", false, true},
    {"nameless-version-2", MB(4), MB(3), MB(4), "version=v3", "version=v2", false, true},
    {"subclusters", MB(4), MB(3), MB(4), "extended-l2=on,cluster-size=128k",
     "extended-l2=on,cluster-size=64k", false},
    {"subclusters-based", MB(4), MB(3), MB(4), "extended-l2=on", "extended-l2=on", true},
    {"version-2", MB(4), MB(3), MB(4), "version=v2", "version=v2", false},
    {"version-2-based", MB(4), MB(3), MB(4), "version=v2", "version=v2", true},
};
static const size_t chain_shape_count = G_N_ELEMENTS(chain_shapes);

void chain_add_shape_tests(const char *path, GTestDataFunc function, size_t step)
{
    size_t count = MIN(chain_shape_count, test_cases(24));
    size_t first = count < chain_shape_count ? test_seed() % chain_shape_count : 0;

    for (size_t i = 0; i < count; i += step) {
        const struct chain_shape *shape = &chain_shapes[(first + i) % chain_shape_count];
        g_autofree char *name = g_strdup_printf("%s/%s", path, shape->name);

        g_test_add_data_func(name, shape, function);
    }
}

struct block_node *chain_layer(struct block_node *node)
{
    return block_node_below_filters(node);
}

/* A compressed cluster in the middle of a layer. */
static void write_special(struct rig *rig, struct block_node *layer, uint64_t bytes)
{
    uint64_t cluster = layer->limits.cluster_size;
    uint64_t offset = align_down(bytes / 2, cluster);
    g_autofree char *memory = g_malloc(cluster);

    if (offset + cluster > bytes) {
        return;
    }
    struct model_request *request = model_begin(rig->model, MODEL_WRITE, 99, offset, cluster);
    model_fill(rig->model, request, memory);
    int status = block_node_pwrite_compressed(layer, memory, offset, cluster);
    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

/* Behind this nobody sees what the base holds: a layer above is shorter. */
static void write_junk(struct block_node *base, uint64_t offset)
{
    uint64_t bytes = block_node_length(base) - offset;
    g_autofree char *junk = g_malloc(bytes + 1);

    memset(junk, 0xdb, bytes);
    g_assert_cmpint(block_node_pwrite(base, junk, offset, bytes, 0), ==, 0);
}

void chain_discard(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = model_begin(rig->model, MODEL_TRIM, 97, offset, bytes);
    int status = block_device_discard(rig->device, offset, bytes, 0);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

void chain_scatter(struct rig *rig, uint64_t bytes, unsigned writes)
{
    uint64_t length = MIN_OF(align_down(bytes, RIG_SECTOR), model_length(rig->model));

    for (unsigned i = 0; i < writes; i++) {
        uint64_t offset, size;

        test_random_range(&rig->random, length, RIG_SECTOR, 96 * KIB, &offset, &size);
        if (i % 4 == 3) {
            rig_zero(rig, offset, size);
        } else {
            g_assert_cmpint(rig_pwrite(rig, 90, offset, size), ==, 0);
        }
    }
}

static void make_image(struct rig *rig, const char *name, const char *options, uint64_t bytes,
                       const char *below)
{
    g_autofree char *base =
        below ? g_strdup_printf(",backing-file=%s/%s,backing-fmt=qcow2", rig->directory, below)
              : g_strdup("");
    g_autofree char *path = test_path(rig->directory, name);

    test_make_file(path, 0);
    test_create_image("driver=qcow2,size=%" G_GUINT64_FORMAT
                      ",%s%s,file.driver=file,file.filename=%s",
                      bytes, options, base, path);
}

/* Images are opened on nodes that are there; empty: on none. */
static struct block_node *open_layer(struct rig *rig, const char *name, const char *below)
{
    return test_open("driver=fault,node-name=%s,discard=unmap,file.driver=qcow2,"
                     "file.node-name=%s-layer,file.backing=%s,file.file.driver=fault,"
                     "file.file.node-name=%s-file,file.file.file.driver=file,"
                     "file.file.file.filename=%s/%s",
                     name, name, below, name, rig->directory, name);
}

/* The old node, which has to be closed before the new one can be opened, is given up. */
static void move_device(struct rig *rig, const char *name, const char *below)
{
    g_assert_cmpint(block_device_remove(rig->device), ==, 0);
    block_device_unref(rig->device);
    AUTO(block_node) kept = block_node_find(below);
    block_node_unref(rig->source);
    rig->source = open_layer(rig, name, below);
    rig->device = block_device_new("vda", rig->source, NULL);
    g_assert_nonnull(rig->device);
    block_device_ref(rig->device);
}

/* Nobody writes to the present layer any more. */
static void put_layer_over(struct rig *rig, const char *name, const char *options, uint64_t bytes,
                           const char *below)
{
    g_autofree char *layer = g_strconcat(below, "-layer", NULL);

    make_image(rig, name, options, bytes, below);
    move_device(rig, name, layer);
}

void chain_reopen(struct rig *rig)
{
    move_device(rig, "disk", "middle-layer");
}

struct rig *chain_new(const struct chain_shape *shape)
{
    char *directory = test_directory_new(true);
    struct rig seed = {.directory = directory};

    make_image(&seed, "base", "version=v3", shape->base_bytes, NULL);
    struct rig *rig = rig_new_on("vda", directory, open_layer(&seed, "base", ""));
    model_free(rig->model);
    rig->length = shape->disk_bytes;
    /* What a shorter layer cuts off reads as zeroes in those above, whoever wrote there. */
    uint64_t shown = MIN_OF(shape->middle_bytes, shape->disk_bytes);
    uint64_t bytes = MIN_OF(shape->base_bytes, shown);
    rig->model = model_new(align_down(shape->disk_bytes, RIG_SECTOR), RIG_SECTOR);
    chain_scatter(rig, bytes, 60);
    write_special(rig, chain_layer(rig->source), bytes);
    write_junk(rig->source, bytes);
    put_layer_over(rig, "middle", "version=v3", shape->middle_bytes, "base");
    chain_scatter(rig, shown, 12);
    put_layer_over(rig, "disk", shape->disk_options, shape->disk_bytes, "middle");
    chain_scatter(rig, shape->disk_bytes, 8);
    write_special(rig, chain_layer(rig->source), shape->disk_bytes);
    return rig;
}

struct block_node *chain_target(struct rig *rig, const struct chain_shape *shape)
{
    make_image(rig, "target", shape->target_options, shape->disk_bytes,
               shape->is_nameless ? NULL : "middle");
    return open_layer(rig, "target", shape->is_based ? "middle-layer" : "");
}

void chain_check(struct rig *rig, const char *name)
{
    test_command_succeeds("qemu-img check -q -U %s/%s", rig->directory, name);
}

void chain_assert_target(struct rig *rig, struct model *model, struct block_node *target)
{
    rig_assert_unused(target);
    chain_check(rig, "target");
    target = open_layer(rig, "target", "middle-layer");
    rig_assert_equal(model, target);
    rig_assert_unused(target);
}

void chain_assert_qemu_agrees(struct rig *rig, const struct chain_shape *shape)
{
    if (shape->is_nameless) {
        return; /* nothing that it could find out by itself */
    }
    g_assert_cmpint(block_device_flush(rig->device), ==, 0);
    test_command_succeeds("qemu-img compare -q -U %s/disk %s/target", rig->directory,
                          rig->directory);
}

uint64_t chain_allocated(struct block_node *layer, uint64_t unit)
{
    uint64_t length = block_node_length(layer);
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new(NULL, length, unit, NULL);

    for (uint64_t offset = 0; offset < length;) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status(layer, offset, length - offset, &extent), ==, 0);
        if (extent.flags & BLOCK_STATUS_ALLOCATED) {
            dirty_bitmap_set(bitmap, offset, extent.bytes);
        }
        offset += extent.bytes;
    }
    return dirty_bitmap_count(bitmap);
}

void chain_assert_thrifty(struct rig *rig, struct block_node *target)
{
    uint64_t cluster = MAX_OF(chain_layer(target)->limits.cluster_size, 4 * KIB);

    g_assert_cmpuint(chain_allocated(chain_layer(target), cluster), <=,
                     chain_allocated(chain_layer(rig->source), cluster));
    g_assert_cmpuint(chain_allocated(chain_layer(rig->source), cluster), <=, rig->length);
}
