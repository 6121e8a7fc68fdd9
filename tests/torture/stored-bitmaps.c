/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Persistent bitmaps through losses of power, again and again on one image: whenever one loads as
 * consistent it has all granules in which the disk differs from what it was when the bitmap was
 * added or cleared, but for what was written while it was disabled. None that was once stored
 * vanishes unless it was removed, and none comes back.
 *
 * And beside guests that write: what commands do to the image then.
 */
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/image.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define LENGTH   (256 * KIB)
#define GRANULE  (4 * KIB)
#define GRANULES (LENGTH / GRANULE)
#define BITMAPS  4
#define LOSSES   60
#define CHECKED  3 /* of so many losses one */

struct model {
    char name[8];
    bool exists, enabled;
    bool was_stored;    /* since it was added */
    bool maybe_removed; /* power was lost meanwhile */
    uint8_t reference[LENGTH];
    bool excused[GRANULES];
};

struct world {
    struct test_random random;
    struct test_image image;
    struct block_node *node; /* NULL: closed */
    struct model models[BITMAPS];
    uint32_t number; /* of the last write */
    unsigned losses, consistent, inconsistent;
};

/* ---- The node -------------------------------------------------------------------------------- */

static void open_node(struct world *world)
{
    world->node = test_open("driver=qcow2,discard=unmap,file.driver=lose-writes,"
                            "file.node-name=power,file.discard=unmap,file.file.driver=file,"
                            "file.file.filename=%s",
                            world->image.path);
}

static void arm(struct world *world)
{
    AUTO(block_node) power = block_node_find("power");
    struct lose_writes_status status;
    struct lose_writes_plan plan = {
        .probability = test_random_below(&world->random, 101),
        .tear = test_random_chance(&world->random, 50) ? 512 : 0,
        .seed = test_random_u64(&world->random),
        .end = LOSE_WRITES_END_NODE,
    };

    g_assert_cmpint(lose_writes_get_status(power, &status, NULL), ==, 0);
    uint64_t at_write = status.writes + 1 + test_random_below(&world->random, 100);
    lose_writes_status_clear(&status);
    g_assert_cmpint(lose_writes_arm(power, at_write, &plan, NULL), ==, 0);
}

static bool power_is_lost(void)
{
    AUTO(block_node) power = block_node_find("power");
    struct lose_writes_status status;

    g_assert_cmpint(lose_writes_get_status(power, &status, NULL), ==, 0);
    bool has_ended = status.has_ended;
    lose_writes_status_clear(&status);
    return has_ended;
}

static void set_stored(struct world *world)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        world->models[i].was_stored = world->models[i].exists;
    }
}

/* ---- What happens to it ---------------------------------------------------------------------- */

static void excuse(struct world *world, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        for (uint64_t at = align_down(offset, GRANULE); at < offset + bytes; at += GRANULE) {
            world->models[i].excused[at / GRANULE] |= !world->models[i].enabled;
        }
    }
}

static int change_disk(struct world *world)
{
    uint64_t offset, bytes, dice = test_random_below(&world->random, 10);

    test_random_range(&world->random, LENGTH, 512, 16 * KIB, &offset, &bytes);
    excuse(world, offset, bytes);
    if (dice == 0) {
        return block_node_write_zeroes(world->node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);
    }
    if (dice == 1) {
        return block_node_discard(world->node, offset, bytes);
    }
    g_autofree uint32_t *data = g_malloc(bytes);
    world->number++;
    for (uint64_t i = 0; i < bytes / sizeof(*data); i++) {
        data[i] = world->number;
    }
    return block_node_pwrite(world->node, data, offset, bytes, 0);
}

/* From here on changes count. */
static int refer(struct world *world, struct model *model)
{
    memset(model->excused, 0, sizeof(model->excused));
    return block_node_pread(world->node, model->reference, 0, LENGTH, 0);
}

static int add(struct world *world, struct model *model)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new(model->name, LENGTH, GRANULE, NULL);

    model->enabled = test_random_chance(&world->random, 75);
    model->exists = true;
    model->was_stored = model->maybe_removed = false;
    dirty_bitmap_set_enabled(bitmap, model->enabled);
    dirty_bitmap_set_persistent(bitmap, true);
    block_node_add_bitmap(world->node, bitmap);
    return refer(world, model);
}

static int remove_one(struct world *world, struct model *model, struct dirty_bitmap *bitmap)
{
    block_node_remove_bitmap(world->node, bitmap);
    dirty_bitmap_free(bitmap);
    int status = block_stored_bitmaps_remove(world->node, model->name, NULL);
    model->exists = false;
    model->maybe_removed = status < 0;
    return status;
}

static int change_bitmap(struct world *world)
{
    struct model *model = &world->models[test_random_below(&world->random, BITMAPS)];
    struct model *other = &world->models[test_random_below(&world->random, BITMAPS)];
    uint64_t dice = test_random_below(&world->random, 10);

    if (!model->exists) {
        return add(world, model);
    }
    struct dirty_bitmap *bitmap = block_node_find_bitmap(world->node, model->name);
    g_assert_nonnull(bitmap);
    if (dice == 0) {
        return remove_one(world, model, bitmap);
    }
    int status = block_stored_bitmaps_begin_change(world->node, model->name, NULL);
    if (status < 0) {
        return status;
    }
    if (dice < 4) {
        status = refer(world, model);
        dirty_bitmap_clear(bitmap);
    } else if (dice < 7) {
        model->enabled = !model->enabled;
        dirty_bitmap_set_enabled(bitmap, model->enabled);
    } else if (other->exists) {
        dirty_bitmap_merge(bitmap, block_node_find_bitmap(world->node, other->name), NULL);
    }
    return status;
}

/* Read-only for a moment, or closed. */
static int interrupt(struct world *world)
{
    if (test_random_chance(&world->random, 50)) {
        int status = block_node_set_read_only(world->node, true, NULL);

        if (status == 0) {
            set_stored(world);
            status = block_node_set_read_only(world->node, false, NULL);
        }
        return status;
    }
    AUTO(block_node) power = block_node_find("power"); /* so that it stays armed */
    block_node_unref(STEAL(world->node));
    if (power_is_lost()) {
        return -1;
    }
    set_stored(world);
    world->node = test_open("driver=qcow2,discard=unmap,file=power");
    return 0;
}

static int one_operation(struct world *world)
{
    uint64_t dice = test_random_below(&world->random, 100);

    return dice < 35   ? change_disk(world)
           : dice < 75 ? change_bitmap(world)
           : dice < 85 ? block_node_flush(world->node)
                       : interrupt(world);
}

/* ---- What is there afterwards ---------------------------------------------------------------- */

static void expect_superset(struct world *world, struct model *model, struct dirty_bitmap *bitmap,
                            const uint8_t *disk)
{
    for (uint64_t at = 0; at < LENGTH; at += GRANULE) {
        bool differs = memcmp(disk + at, model->reference + at, GRANULE) != 0;

        if (differs && !model->excused[at / GRANULE] && !dirty_bitmap_get(bitmap, at)) {
            g_error("loss %u: consistent bitmap %s lacks the change at %" PRIu64, world->losses,
                    model->name, at);
        }
    }
    g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, model->enabled);
}

static void judge_bitmap(struct world *world, struct model *model, const uint8_t *disk)
{
    struct dirty_bitmap *bitmap = block_node_find_bitmap(world->node, model->name);

    if (!bitmap) {
        g_assert_false(model->exists && model->was_stored);
        model->exists = false;
        return;
    }
    g_assert_true(model->exists || model->maybe_removed);
    if (!dirty_bitmap_is_inconsistent(bitmap) && model->exists) {
        expect_superset(world, model, bitmap, disk);
        world->consistent++;
        model->was_stored = true;
        return;
    }
    world->inconsistent++;
    block_node_remove_bitmap(world->node, bitmap);
    dirty_bitmap_free(bitmap);
    g_assert_cmpint(block_stored_bitmaps_remove(world->node, model->name, NULL), ==, 0);
    model->exists = model->maybe_removed = false;
}

static void judge(struct world *world)
{
    g_autofree uint8_t *disk = g_malloc(LENGTH);
    if (world->losses % CHECKED == 0) {
        int check = test_command(NULL, "qemu-img check -q -f qcow2 %s", world->image.path);

        g_assert_true(check == 0 || check == 3); /* 3: leaks */
    }
    open_node(world);
    g_assert_cmpint(block_node_pread(world->node, disk, 0, LENGTH, 0), ==, 0);
    for (unsigned i = 0; i < BITMAPS; i++) {
        judge_bitmap(world, &world->models[i], disk);
    }
}

static void test_power_loss(void)
{
    g_autofree struct world *world = g_new0(struct world, 1);
    unsigned long losses = test_cases(LOSSES);

    world->random = test_random_new(test_seed());
    test_image_make(&world->image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=512 %s %" PRIu64,
                          world->image.path, LENGTH);
    for (unsigned i = 0; i < BITMAPS; i++) {
        g_snprintf(world->models[i].name, sizeof(world->models[i].name), "b%u", i);
    }
    open_node(world);
    for (; world->losses < losses; world->losses++) {
        int status = 0;

        arm(world);
        for (unsigned i = 0; status == 0 && i < 400; i++) {
            status = one_operation(world);
        }
        block_node_unref(STEAL(world->node));
        if (status == 0) {
            set_stored(world);
        }
        judge(world);
    }
    g_test_message("%u consistent, %u not", world->consistent, world->inconsistent);
    g_assert_true(losses < LOSSES || (world->consistent > 0 && world->inconsistent > 0));
    block_node_unref(STEAL(world->node));
    test_image_remove(&world->image, NULL);
}

/* ---- Beside guests --------------------------------------------------------------------------- */

#define WRITERS 3
#define ROUNDS  6

struct writer {
    struct block_node *node;
    struct test_random random;
    _Atomic bool *is_over;
    GThread *thread;
    bool written[GRANULES];
};

static void *keep_writing(void *data)
{
    struct writer *writer = data;
    uint8_t buffer[GRANULE] = {1};

    while (!atomic_load(writer->is_over)) {
        uint64_t granule = test_random_below(&writer->random, GRANULES);

        g_assert_cmpint(
            block_node_pwrite(writer->node, buffer, granule * GRANULE, sizeof(buffer), 0), ==, 0);
        writer->written[granule] = true;
    }
    return NULL;
}

/* Take out of memory half of what is stored, and then, beside writers, out of the image. */
static void round_beside_writers(struct block_node *node, struct test_random *random)
{
    struct writer writers[WRITERS];
    _Atomic bool is_over = false;
    struct block_persistent_bitmap *list;
    size_t count;

    for (unsigned i = 0; i < 8; i++) {
        g_autofree char *name = g_strdup_printf("b%u", i);
        struct dirty_bitmap *bitmap = block_node_find_bitmap(node, name);

        if (i % 2) {
            block_node_remove_bitmap(node, bitmap);
            dirty_bitmap_free(bitmap);
        } else {
            dirty_bitmap_clear(bitmap);
        }
    }
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] =
            (struct writer){.node = node, .random = test_random_split(random), .is_over = &is_over};
        writers[i].thread = g_thread_new("writer", keep_writing, &writers[i]);
    }
    for (unsigned i = 0; i < 8; i++) {
        g_autofree char *name = g_strdup_printf("b%u", i);

        g_usleep(test_random_below(random, 3000));
        g_assert_cmpint(block_stored_bitmaps_begin_change(node, name, NULL), ==, 0);
        g_assert_cmpint(block_node_bitmap_list(node, &list, &count, NULL), ==, 0);
        block_persistent_bitmap_list_free(list, count);
        if (i % 2) {
            g_assert_cmpint(block_stored_bitmaps_remove(node, name, NULL), ==, 0);
        }
    }
    atomic_store(&is_over, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        g_thread_join(writers[i].thread);
        for (uint64_t j = 0; j < GRANULES; j++) {
            g_assert_true(!writers[i].written[j] ||
                          dirty_bitmap_get(block_node_find_bitmap(node, "b0"), j * GRANULE));
        }
    }
}

static void add_missing(struct block_node *node)
{
    for (unsigned i = 0; i < 8; i++) {
        g_autofree char *name = g_strdup_printf("b%u", i);

        if (!block_node_find_bitmap(node, name)) {
            struct dirty_bitmap *bitmap = dirty_bitmap_new(name, LENGTH, GRANULE, NULL);

            dirty_bitmap_set_persistent(bitmap, true);
            block_node_add_bitmap(node, bitmap);
        }
    }
}

static void test_beside_guests(void)
{
    struct test_random random = test_random_new(test_seed());
    struct test_image image;

    test_image_make(&image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=512 %s %d", image.path,
                          (int)LENGTH);
    for (unsigned i = 0; i <= ROUNDS; i++) {
        AUTO(block_node) node =
            test_open("driver=qcow2,file.driver=file,file.filename=%s", image.path);

        for (unsigned j = 0; i > 0 && j < 8; j++) { /* what the last round has left */
            g_autofree char *name = g_strdup_printf("b%u", j);
            struct dirty_bitmap *bitmap = block_node_find_bitmap(node, name);

            g_assert_cmpint(bitmap != NULL, ==, i == 1 || j % 2 == 0);
            g_assert_false(bitmap && dirty_bitmap_is_inconsistent(bitmap));
        }
        add_missing(node);
        if (i > 0) {
            round_beside_writers(node, &random);
        }
        block_node_unref(STEAL(node));
        test_command_succeeds("qemu-img check -q -f qcow2 %s", image.path);
    }
    test_image_remove(&image, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* That bitmaps are inconsistent after a loss, or cannot be stored, is what is wanted here. */
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/stored-bitmaps/a-consistent-one-has-every-change", test_power_loss);
    g_test_add_func("/stored-bitmaps/guests-write-beside-commands", test_beside_guests);
    return g_test_run();
}
