/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Entries of tables that lead to where metadata is. Whatever table and whatever metadata it is,
 * the write that would destroy it is not done, and the image is marked.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-builder.h"

/* An L2 table covers 32 KiB of the disk, a refcount block 128 KiB of the file. */
#define CLUSTER     512
#define TABLE       (32 * KIB)
#define DATA        (160 * KIB) /* so much of the disk is data of this byte */
#define DATA_BYTE   0x5a
#define BAD_CLUSTER CLUSTER      /* the entry of this is made to lead to metadata */
#define BAD_TABLE   (8 * TABLE)  /* this table too, which there is none for */
#define SNAPSHOT_AT (16 * TABLE) /* what the snapshot holds, too */

enum kind { HEADER, L1, REFTABLE, SNAPSHOTS, BITMAPS, SNAPSHOT_L1, L2, REFBLOCK, KINDS };
static const char *const kind_names[] = {
    "header",         "L1 table",         "refcount table",
    "snapshot table", "bitmap directory", "snapshot's L1 table",
    "L2 table",       "refcount block",
};

enum pointer { DATA_ENTRY, L1_ENTRY, REFTABLE_ENTRY, POINTERS };
static const char *const pointer_names[] = {"L2 entry", "L1 entry", "refcount table entry"};

struct world {
    struct qcow2_builder *builder;
    struct test_image image;
    uint64_t target; /* the metadata that the bad entry leads to */
    uint64_t snapshot_l1;
    uint8_t before[CLUSTER]; /* what is in the target when the image has been opened */
};

static uint64_t place_of(struct world *world, enum kind kind)
{
    struct qcow2_builder *builder = world->builder;

    switch (kind) {
    case HEADER:
        return 0;
    case L1:
        return align_down(qcow2_builder_l1_at(builder, 0), CLUSTER);
    case REFTABLE:
        return qcow2_builder_reftable_at(builder);
    case SNAPSHOTS:
        return qcow2_builder_snapshots_at(builder);
    case BITMAPS:
        return qcow2_builder_bitmaps_at(builder);
    case SNAPSHOT_L1:
        return world->snapshot_l1;
    case L2:
        return align_down(qcow2_builder_l2_at(builder, TABLE), CLUSTER);
    default:
        return qcow2_builder_get64(builder, qcow2_builder_reftable_at(builder) + 8);
    }
}

/* A header at offset 0 is no valid place for a table, which is damage of another kind. */
static bool makes_sense(enum pointer pointer, enum kind kind)
{
    return kind != HEADER && !(pointer == L1_ENTRY && kind == L2) &&
           !(pointer == REFTABLE_ENTRY && kind == REFBLOCK);
}

static struct world world_new(enum pointer pointer, enum kind kind)
{
    struct world world = {
        .builder = QCOW2_BUILDER(.size = MIB, .cluster_bits = 9, .autoclear = 1),
    };
    struct qcow2_builder *builder = world.builder;

    qcow2_builder_data(builder, SNAPSHOT_AT, 1);
    world.snapshot_l1 = qcow2_builder_snapshot(builder, "1", "s");
    /* Free clusters at the start: of the two refcount blocks, the second does not change. */
    uint64_t hole = qcow2_builder_allocate(builder, 8);
    qcow2_builder_reference(builder, hole, (uint64_t)8 * CLUSTER, -1);
    for (uint64_t at = 0; at < DATA; at += CLUSTER) {
        qcow2_builder_data(builder, at, DATA_BYTE);
    }
    qcow2_builder_bitmap(builder, "b", 16, false);
    qcow2_builder_build(builder);
    qcow2_builder_put32(builder, qcow2_builder_bitmaps_at(builder) + 12, 0); /* records nothing */
    world.target = place_of(&world, kind);
    const uint64_t places[] = {
        [DATA_ENTRY] = qcow2_builder_l2_at(builder, BAD_CLUSTER),
        [L1_ENTRY] = qcow2_builder_l1_at(builder, BAD_TABLE),
        [REFTABLE_ENTRY] = qcow2_builder_reftable_at(builder) + 16,
    };
    qcow2_builder_put64(builder, places[pointer],
                        world.target | (pointer == REFTABLE_ENTRY ? 0 : QCOW2_BUILT_COPIED));
    test_image_make(&world.image, 0);
    qcow2_builder_write(builder, world.image.path);
    return world;
}

static void world_free(struct world *world)
{
    qcow2_builder_free(world->builder);
    test_image_remove(&world->image, NULL);
}

static void read_target(struct world *world, uint8_t *buffer)
{
    g_autofree char *contents = NULL;
    gsize length;

    g_assert_true(g_file_get_contents(world->image.path, &contents, &length, NULL));
    g_assert_cmpuint(length, >=, world->target + CLUSTER);
    memcpy(buffer, contents + world->target, CLUSTER);
}

static bool target_is_unchanged(struct world *world)
{
    uint8_t now[CLUSTER];

    read_target(world, now);
    return !memcmp(now, world->before, CLUSTER);
}

static struct block_node *open_image(struct world *world, const char *options)
{
    struct block_node *node =
        test_open("driver=qcow2,%sfile.driver=file,file.filename=%s", options, world->image.path);

    read_target(world, world->before);
    return node;
}

/* A write that goes by the bad entry, durably; what it ends with. */
static int write_by(struct block_node *node, enum pointer pointer)
{
    g_autofree uint8_t *buffer = g_malloc0(256 * KIB);
    int status;

    memset(buffer, 0xee, 256 * KIB);
    if (pointer == DATA_ENTRY) {
        status = block_node_pwrite(node, buffer, BAD_CLUSTER, CLUSTER, 0);
    } else if (pointer == L1_ENTRY) { /* the last entry: there zeroes are in each table */
        status = block_node_pwrite(node, buffer, BAD_TABLE + TABLE - CLUSTER, CLUSTER, 0);
    } else { /* more than the blocks that there are have room for */
        status = block_node_pwrite(node, buffer, 20 * TABLE, 256 * KIB, 0);
    }
    return status == 0 ? block_node_flush(node) : status;
}

static bool is_marked(struct world *world)
{
    g_autofree char *contents = NULL;

    g_assert_true(g_file_get_contents(world->image.path, &contents, NULL, NULL));
    return contents[72 + 7] & 2; /* incompatible_features: corrupt */
}

/* The image is marked, lets nobody write, and reads where it is whole. */
static void assert_refused(struct world *world, struct block_node *node, bool has_changes)
{
    uint8_t buffer[CLUSTER] = {0};

    g_assert_cmpint(block_node_pwrite(node, buffer, 0, sizeof(buffer), 0), ==, -EIO);
    g_assert_cmpint(block_node_pwrite(node, buffer, 12 * TABLE, sizeof(buffer), 0), ==, -EIO);
    g_assert_cmpint(block_node_pread(node, buffer, 0, sizeof(buffer), 0), ==, 0);
    g_assert_cmphex(buffer[0], ==, DATA_BYTE);
    if (has_changes) {
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*flush before closing failed*");
    }
    block_node_unref(node);
    g_test_assert_expected_messages();
    g_assert_true(is_marked(world));
    g_assert_true(target_is_unchanged(world));
    g_autofree char *reason =
        test_open_error("driver=qcow2,file.driver=file,file.filename=%s", world->image.path);
    g_assert_nonnull(strstr(reason, "Image is corrupt"));
}

static void expect_refusal(enum pointer pointer, enum kind kind, const char *options)
{
    struct world world = world_new(pointer, kind);

    g_test_message("%s leads to a %s, '%s'", pointer_names[pointer], kind_names[kind], options);
    struct block_node *node = open_image(&world, options);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*is damaged*");
    g_assert_cmpint(write_by(node, pointer), ==, -EIO);
    g_test_assert_expected_messages();
    assert_refused(&world, node, pointer != DATA_ENTRY);
    world_free(&world);
}

static void test_entries(gconstpointer data)
{
    enum pointer pointer = (enum pointer)GPOINTER_TO_UINT(data);

    for (enum kind kind = 0; kind < KINDS; kind++) {
        if (makes_sense(pointer, kind)) {
            expect_refusal(pointer, kind, "");
            expect_refusal(pointer, kind, "overlap-check=cached,");
        }
    }
}

/* Metadata of the kinds that are in one place each. */
static void test_constant(void)
{
    for (enum kind kind = L1; kind <= SNAPSHOT_L1; kind++) {
        expect_refusal(DATA_ENTRY, kind, "overlap-check=constant,");
        expect_refusal(L1_ENTRY, kind, "overlap-check=constant,");
        expect_refusal(REFTABLE_ENTRY, kind, "overlap-check=constant,");
    }
}

static void expect_no_check(enum pointer pointer, enum kind kind, const char *options)
{
    struct world world = world_new(pointer, kind);

    g_test_message("%s leads to a %s, '%s'", pointer_names[pointer], kind_names[kind], options);
    struct block_node *node = open_image(&world, options);
    g_assert_cmpint(write_by(node, pointer), ==, 0);
    block_node_unref(node);
    g_assert_false(is_marked(&world));
    g_assert_false(target_is_unchanged(&world));
    world_free(&world);
}

/* Who asks for less gets less: else it would not be known that the option has an effect. */
static void test_less(void)
{
    expect_no_check(DATA_ENTRY, REFBLOCK, "overlap-check=constant,");
    expect_no_check(L1_ENTRY, REFBLOCK, "overlap-check=constant,");
    expect_no_check(L1_ENTRY, SNAPSHOTS, "overlap-check=none,");
    expect_no_check(L1_ENTRY, BITMAPS, "overlap-check=none,");
    expect_no_check(REFTABLE_ENTRY, SNAPSHOTS, "overlap-check=none,");
    g_autofree char *reason =
        test_open_error("driver=qcow2,overlap-check=some,file.driver=null-co");
    g_assert_nonnull(strstr(reason, "some"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_data_func("/qcow2-overlap/no-l2-entry-lets-data-overwrite-metadata",
                         GUINT_TO_POINTER(DATA_ENTRY), test_entries);
    g_test_add_data_func("/qcow2-overlap/no-l1-entry-lets-a-table-overwrite-metadata",
                         GUINT_TO_POINTER(L1_ENTRY), test_entries);
    g_test_add_data_func("/qcow2-overlap/no-refcount-table-entry-lets-a-block-overwrite-metadata",
                         GUINT_TO_POINTER(REFTABLE_ENTRY), test_entries);
    g_test_add_func("/qcow2-overlap/constant-places-can-be-checked-alone", test_constant);
    g_test_add_func("/qcow2-overlap/checks-that-were-not-asked-for-are-not-done", test_less);
    return g_test_run();
}
