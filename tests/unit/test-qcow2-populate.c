/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: keeping in an image what it reads as. Random chains beside a model, in which nothing may
 * read differently afterwards and what the top layer has grows by what was asked for; guests who
 * write meanwhile; storage that fails.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "block/zero.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define CASES      60
#define OPERATIONS 30
#define SECTOR     512
#define LAYERS_MAX 3

/* A chain: layer 0 is the base, the last one what is populated. */
struct one {
    struct test_random random;
    char *directory;
    char *images[LAYERS_MAX];
    char *data_image;
    char *what; /* for messages */

    unsigned layers;
    unsigned cluster_bits;
    bool is_v2, has_extended_l2, has_data_file, is_raw_data;
    uint64_t length;

    uint8_t *model;
    struct block_node *nodes[LAYERS_MAX];
    struct block_node *top;
};

static bool chance(struct one *one, unsigned percent)
{
    return test_random_chance(&one->random, percent);
}

static uint64_t below(struct one *one, uint64_t limit)
{
    return test_random_below(&one->random, limit);
}

static uint64_t cluster_of(const struct one *one)
{
    return UINT64_C(1) << one->cluster_bits;
}

/* What is mapped on its own. */
static uint64_t unit_of(const struct one *one)
{
    return one->has_extended_l2 ? cluster_of(one) / 32 : cluster_of(one);
}

/* ---- Images --------------------------------------------------------------------------------- */

static void choose_kind(struct one *one)
{
    static const unsigned bits[] = {9, 10, 12, 14, 14, 16, 16};

    one->cluster_bits = bits[below(one, G_N_ELEMENTS(bits))];
    one->is_v2 = chance(one, 20);
    one->has_extended_l2 = !one->is_v2 && one->cluster_bits >= 14 && chance(one, 60);
    one->has_data_file = !one->is_v2 && chance(one, 20);
    one->is_raw_data = one->has_data_file && chance(one, 40);
    one->layers = one->is_raw_data ? 1 : 2 + (unsigned)below(one, 2);
    one->length = SECTOR * (1 + below(one, MIN_OF(MIB, 100 * cluster_of(one)) / SECTOR));
}

/* A layer below the top; it may be shorter or longer. */
static void create_lower(struct one *one, unsigned layer)
{
    uint64_t length = SECTOR * (1 + below(one, one->length * 3 / 2 / SECTOR));
    g_autofree char *text = g_strdup_printf("driver=qcow2,size=%" PRIu64
                                            ",cluster-size=4096,file.driver=file,file.filename=%s",
                                            length, one->images[layer]);
    g_autofree char *backing =
        layer ? g_strdup_printf(",backing-file=%s,backing-fmt=qcow2", one->images[layer - 1])
              : g_strdup("");
    g_autofree char *all = g_strconcat(text, backing, NULL);

    test_create_image("%s", all);
    one->nodes[layer] = test_open(layer ? "driver=qcow2,node-name=layer%u,file.driver=file,"
                                          "file.filename=%s,backing=layer%u"
                                        : "driver=qcow2,node-name=layer%u,file.driver=file,"
                                          "file.filename=%s",
                                  layer, one->images[layer], layer - 1);
}

static void create_top(struct one *one)
{
    GString *text = g_string_new("driver=qcow2");
    const char *image = one->images[one->layers - 1];

    g_string_append_printf(text, ",size=%" PRIu64 ",cluster-size=%" PRIu64 ",version=%s",
                           one->length, cluster_of(one), one->is_v2 ? "v2" : "v3");
    g_string_append(text, one->has_extended_l2 ? ",extended-l2=on" : "");
    if (one->has_extended_l2 && !one->has_data_file && chance(one, 30)) {
        g_string_append(text, ",preallocation=metadata");
    }
    if (one->has_data_file) {
        g_string_append_printf(text,
                               ",data-file.driver=file,data-file.filename=%s,data-file-raw=%s",
                               one->data_image, one->is_raw_data ? "on" : "off");
    }
    g_string_append_printf(text, ",file.driver=file,file.filename=%s", image);
    if (one->layers > 1) {
        g_string_append_printf(text, ",backing-file=%s,backing-fmt=qcow2",
                               one->images[one->layers - 2]);
    }
    test_create_image("%s", text->str);
    one->what = g_string_free(text, FALSE);
}

static void open_top(struct one *one)
{
    g_autofree char *backing =
        one->layers > 1 ? g_strdup_printf(",backing=layer%u", one->layers - 2) : g_strdup("");

    one->top = test_open("driver=qcow2,discard=unmap,l2-cache-size=1,l2-cache-entry-size=512%s,"
                         "file.driver=fault,file.node-name=fault,file.file.driver=file,"
                         "file.file.filename=%s",
                         backing, one->images[one->layers - 1]);
}

/* ---- Changes -------------------------------------------------------------------------------- */

/* In the model if it is what the top reads as. */
static void write_some(struct one *one, struct block_node *node, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);
    uint64_t cluster = node == one->top ? cluster_of(one) : 4096;
    uint8_t byte = (uint8_t)test_random_u64(&one->random);
    unsigned dice = (unsigned)below(one, 100);
    int status;

    for (uint64_t i = 0; i < bytes; i++) {
        buffer[i] = dice < 75 ? (uint8_t)(byte + i / SECTOR) : 0;
    }
    if (dice >= 75) {
        status =
            block_node_write_zeroes(node, offset, bytes, dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0);
    } else if (dice >= 60 && bytes >= cluster && !one->has_data_file) {
        offset = align_down(offset, cluster);
        bytes = align_down(bytes, cluster);
        status = block_node_pwrite_compressed(node, buffer, offset, bytes);
    } else {
        status = block_node_pwrite(node, buffer, offset, bytes, 0);
    }
    g_assert_cmpint(status, ==, 0);
    if (node == one->top) {
        memcpy(one->model + offset, buffer, bytes);
    }
}

static void random_range(struct one *one, uint64_t length, uint64_t *offset, uint64_t *bytes)
{
    uint64_t most = chance(one, 60) ? 3 * cluster_of(one) : length;

    test_random_range(&one->random, align_down(length, SECTOR), SECTOR,
                      MAX_OF(align_down(MIN_OF(most, length), SECTOR), (uint64_t)SECTOR), offset,
                      bytes);
}

static void fill_layer(struct one *one, struct block_node *node)
{
    for (unsigned i = (unsigned)below(one, 8); i > 0; i--) {
        uint64_t offset, bytes;

        random_range(one, block_node_length(node), &offset, &bytes);
        write_some(one, node, offset, MIN_OF(bytes, 64 * KIB));
    }
}

/* ---- What is there -------------------------------------------------------------------------- */

static void check_contents(struct one *one)
{
    g_autofree uint8_t *buffer = g_malloc(one->length);

    g_assert_cmpint(block_node_pread(one->top, buffer, 0, one->length, 0), ==, 0);
    for (uint64_t i = 0; memcmp(buffer, one->model, one->length) && i < one->length; i++) {
        if (buffer[i] != one->model[i]) {
            g_error("%s: at %" PRIu64 ": 0x%02x instead of 0x%02x", one->what, i, buffer[i],
                    one->model[i]);
        }
    }
}

/* The top's own status, by sector. The caller frees it. */
static unsigned *sector_flags(struct one *one)
{
    unsigned *flags = g_new(unsigned, one->length / SECTOR);

    for (uint64_t offset = 0; offset < one->length;) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status(one->top, offset, one->length - offset, &extent),
                        ==, 0);
        for (uint64_t i = 0; i < extent.bytes / SECTOR; i++) {
            flags[offset / SECTOR + i] = extent.flags;
        }
        offset += extent.bytes;
    }
    return flags;
}

/* What was there is as it was; what was asked for is there; nothing came far from it. */
static void check_growth(struct one *one, const unsigned *before, uint64_t offset, uint64_t end,
                         bool is_zero)
{
    g_autofree unsigned *after = sector_flags(one);
    uint64_t unit = unit_of(one);
    /* What is around data may become data, too. */
    bool is_whole = is_aligned(offset, unit) && (is_aligned(end, unit) || end == one->length);

    for (uint64_t i = 0; i < one->length / SECTOR; i++) {
        uint64_t at = i * SECTOR;
        bool is_asked = at >= offset && at < end;

        if (before[i] & BLOCK_STATUS_ALLOCATED) {
            g_assert_cmphex(after[i] & BLOCK_STATUS_ALLOCATED, !=, 0);
            g_assert_true(!(before[i] & BLOCK_STATUS_COMPRESSED) || after[i] == before[i]);
        } else if (is_asked) {
            g_assert_cmphex(after[i] & BLOCK_STATUS_ALLOCATED, !=, 0);
            if (is_zero && is_whole && !one->is_v2 && !one->is_raw_data) {
                g_assert_cmphex(after[i] & (BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA), ==,
                                BLOCK_STATUS_ZERO);
            }
        } else if (align_down(at, cluster_of(one)) >= end ||
                   align_up(at + 1, cluster_of(one)) <= offset) {
            g_assert_cmphex(after[i], ==, 0);
        }
    }
}

/* ---- Cases ---------------------------------------------------------------------------------- */

static void fail_some(struct one *one)
{
    AUTO(block_node) fault = block_node_find("fault");

    FAULT(fault, .operations = chance(one, 50) ? FAULT_ON_CHANGES : FAULT_ON_ALL, .percent = 40,
          .count = 2, .error_number = chance(one, 50) ? EIO : ENOSPC);
}

static void populate(struct one *one, uint64_t offset, uint64_t bytes, bool has_faults)
{
    AUTO(block_node) fault = block_node_find("fault");
    g_autofree unsigned *before = sector_flags(one);
    bool is_zero = buffer_is_zero(one->model + offset, bytes) && chance(one, 80);
    const void *buffer = is_zero ? NULL : one->model + offset;

    if (has_faults) {
        fail_some(one);
    }
    int status = block_node_populate(one->top, buffer, offset, bytes);
    fault_clear(fault);
    g_assert_true(status == 0 || has_faults);
    if (status == 0) {
        check_growth(one, before, offset, offset + bytes, is_zero);
    }
}

static void take_snapshot(struct one *one)
{
    struct block_snapshot_info info = {.name = (char *)(uintptr_t) "s", .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;

    if (!one->has_data_file) {
        block_node_snapshot_create(one->top, &info, &error);
        g_assert_no_error(error);
    }
}

static void do_one(struct one *one)
{
    unsigned dice = (unsigned)below(one, 100);
    uint64_t offset, bytes;

    random_range(one, one->length, &offset, &bytes);
    if (dice < 15) {
        write_some(one, one->top, offset, bytes);
    } else if (dice < 18) {
        take_snapshot(one);
    } else if (dice < 28 && !one->is_raw_data) { /* whose two files may disagree after an error */
        populate(one, offset, bytes, true);
    } else if (dice < 32) {
        g_assert_cmpint(block_node_flush(one->top), ==, 0);
    } else {
        populate(one, offset, bytes, false);
    }
    check_contents(one);
}

static void judge(struct one *one)
{
    g_autofree char *expected = test_path(one->directory, "expected");
    const char *image = one->images[one->layers - 1];

    enum image_verdict verdict = own_check(image);
    g_assert_true(verdict == IMAGE_CLEAN || verdict == IMAGE_LEAKS); /* of failed allocations */
    if (!test_random_chance(&one->random, 40)) {
        return; /* what QEMU's programs say takes most of the time */
    }
    g_assert_true(
        g_file_set_contents(expected, (const char *)one->model, (gssize)one->length, NULL));
    g_autofree char *said = NULL;
    int status = test_command(&said, "qemu-img check -f qcow2 %s", image);
    if (status != 0 && status != 3) { /* failed allocations may leak */
        g_error("%s: %s", one->what, said);
    }
    test_command_succeeds("qemu-img compare -q -f qcow2 -F raw %s %s", image, expected);
    if (one->is_raw_data) {
        test_command_succeeds("qemu-img compare -q -f raw -F raw %s %s", one->data_image, expected);
    }
}

static void make_chain(struct one *one)
{
    for (unsigned layer = 0; layer < one->layers; layer++) {
        g_autofree char *name = g_strdup_printf("layer%u", layer);

        one->images[layer] = test_path(one->directory, name);
    }
    one->data_image = test_path(one->directory, "data");
    for (unsigned layer = 0; layer < one->layers; layer++) {
        test_make_file(one->images[layer], 0);
    }
    if (one->has_data_file) {
        test_make_file(one->data_image, 0);
    }
    for (unsigned layer = 0; layer + 1 < one->layers; layer++) {
        create_lower(one, layer);
        fill_layer(one, one->nodes[layer]);
    }
    create_top(one);
    open_top(one);
    one->model = g_malloc0(one->length);
    g_assert_cmpint(block_node_pread(one->top, one->model, 0, one->length, 0), ==, 0);
    fill_layer(one, one->top);
}

static void run_case(uint64_t seed)
{
    struct one one = {.random = test_random_new(seed), .directory = test_directory_new(true)};

    choose_kind(&one);
    make_chain(&one);
    for (unsigned i = 0; i < OPERATIONS; i++) {
        do_one(&one);
    }
    if (chance(&one, 50)) {
        populate(&one, 0, one.length, false);
        check_contents(&one);
    }
    block_node_unref(one.top);
    for (unsigned layer = one.layers - 1; layer-- > 0;) {
        block_node_unref(one.nodes[layer]);
    }
    judge(&one);
    for (unsigned layer = 0; layer < one.layers; layer++) {
        g_free(one.images[layer]);
    }
    g_free(one.data_image);
    g_free(one.model);
    g_free(one.what);
    test_directory_free(one.directory);
}

static void test_random_chains(void)
{
    const char *only = g_getenv("LIVEBLK_TEST_CASE_SEED");
    struct test_random random = test_random_new(test_seed());
    unsigned long cases = only ? 0 : test_cases(CASES);

    if (only) {
        run_case(strtoull(only, NULL, 10));
    }
    for (unsigned long i = 0; i < cases; i++) {
        uint64_t seed = test_random_u64(&random);

        g_test_message("case %lu: seed %" PRIu64, i, seed);
        run_case(seed);
    }
}

/* ---- Requests below ------------------------------------------------------------------------- */

#define LENGTH  (8 * MIB)
#define CLUSTER (64 * KIB)

/* An image over a backing file in memory that is all of one byte. */
struct world {
    struct block_node *file, *backing, *node;
    uint8_t *buffer; /* what the backing file holds */
};

/* path: where the image is; NULL: in memory, for one thread. */
static struct world world_new(const char *create_options, const char *path)
{
    struct world world = {
        .file = path ? test_open("driver=file,node-name=file,filename=%s", path)
                     : test_open("driver=memory,node-name=file,size=0"),
    };
    g_autofree char *text =
        g_strdup_printf("driver=qcow2,file=file,size=%" PRIu64 "%s", LENGTH, create_options);

    test_create_image("%s", text);
    world.backing = test_open("driver=memory,node-name=base,size=%" PRIu64, LENGTH);
    world.buffer = g_malloc(LENGTH);
    memset(world.buffer, 0xba, LENGTH);
    memcpy(memory_disk_data(world.backing), world.buffer, LENGTH);
    world.node = test_open("driver=qcow2,discard=unmap,file=file,backing=base");
    return world;
}

static void world_free(struct world *world)
{
    block_node_unref(world->node);
    block_node_unref(world->file);
    block_node_unref(world->backing);
    g_free(world->buffer);
}

static void assert_populates(struct world *world, uint64_t offset, uint64_t bytes)
{
    g_assert_cmpint(block_node_populate(world->node, world->buffer + offset, offset, bytes), ==, 0);
}

static void test_requests(void)
{
    struct world world = world_new("", NULL);
    uint8_t *data = g_malloc0(CLUSTER);

    g_assert_cmpint(block_node_pwrite(world.node, data, 20 * CLUSTER, CLUSTER, 0), ==, 0);
    unsigned writes = memory_disk_count(world.file, BLOCK_OPERATION_WRITE);
    unsigned reads = memory_disk_count(world.backing, BLOCK_OPERATION_READ);
    assert_populates(&world, 0, 16 * CLUSTER);
    g_assert_cmpuint(memory_disk_count(world.file, BLOCK_OPERATION_WRITE), ==, writes + 1);
    assert_populates(&world, 0, 16 * CLUSTER);
    g_assert_cmpuint(memory_disk_count(world.file, BLOCK_OPERATION_WRITE), ==, writes + 1);
    assert_populates(&world, 0, 24 * CLUSTER); /* around the one that is there */
    g_assert_cmpuint(memory_disk_count(world.file, BLOCK_OPERATION_WRITE), ==, writes + 3);
    g_assert_cmpuint(memory_disk_count(world.backing, BLOCK_OPERATION_READ), ==, reads);
    g_assert_cmpint(block_node_populate(world.node, NULL, 32 * CLUSTER, 32 * CLUSTER), ==, 0);
    g_assert_cmpuint(memory_disk_count(world.file, BLOCK_OPERATION_WRITE), ==, writes + 3);
    g_free(data);
    world_free(&world);
}

/* Room that was given up and not freed yet is used before there is no room. */
static void test_no_space(void)
{
    struct world world = world_new("", NULL);
    uint8_t *data = g_malloc0(LENGTH / 2);

    g_assert_cmpint(block_node_pwrite(world.node, data, 0, LENGTH / 2, 0), ==, 0);
    g_assert_cmpint(block_node_flush(world.node), ==, 0);
    memory_disk_fail_resize(world.file, -ENOSPC);
    int status = 0;
    for (uint64_t at = LENGTH / 2; status == 0 && at < LENGTH; at += CLUSTER) {
        status = block_node_populate(world.node, world.buffer, at, CLUSTER);
    }
    g_assert_cmpint(status, ==, -ENOSPC);
    g_assert_cmpint(block_node_discard(world.node, 0, LENGTH / 2), ==, 0);
    assert_populates(&world, LENGTH / 2, LENGTH / 4);
    memory_disk_fail_resize(world.file, 0);
    g_assert_cmpint(block_node_pread(world.node, data, LENGTH / 2, LENGTH / 2, 0), ==, 0);
    g_assert_cmpmem(data, LENGTH / 2, world.buffer, LENGTH / 2);
    g_free(data);
    world_free(&world);
}

static void test_refusals(void)
{
    struct world world = world_new("", NULL);

    block_node_unref(world.node);
    world.node = test_open("driver=qcow2,read-only=on,file=file,backing=base");
    g_assert_cmpint(block_node_populate(world.node, NULL, 0, CLUSTER), ==, -EPERM);
    block_node_unref(world.node);
    world.node = test_open("driver=qcow2,for-check=on,file=file,backing=base");
    g_assert_cmpint(block_node_populate(world.node, NULL, 0, CLUSTER), ==, -EIO);
    world_free(&world);
}

/* ---- Guests who write meanwhile ------------------------------------------------------------- */

#define WRITERS    3
#define POPULATORS 3

/* Sector n belongs to writer n / 8 % WRITERS. */
struct race {
    struct world world;
    uint64_t cluster;
    _Atomic unsigned writing;
    uint8_t *versions; /* by sector; 0: never written */
};

struct racer {
    struct race *race;
    struct test_random random;
    unsigned number;
    pthread_t thread;
};

static uint8_t byte_of(const struct race *race, uint64_t sector)
{
    uint8_t version = race->versions[sector];

    return version == 0 ? 0xba : version == UINT8_MAX ? 0 : version;
}

/* Up to 8 sectors, whose last version is remembered. */
static void *writer(void *data)
{
    struct racer *racer = data;
    struct race *race = racer->race;
    struct block_node *node = race->world.node;
    uint64_t groups = LENGTH / SECTOR / 8 / WRITERS;
    uint8_t buffer[8 * SECTOR];

    for (unsigned i = 0; i < 600; i++) {
        uint64_t group = test_random_below(&racer->random, groups) * WRITERS + racer->number;
        uint64_t sector = group * 8 + test_random_below(&racer->random, 8);
        uint64_t sectors = 1 + test_random_below(&racer->random, 8 - sector % 8);
        bool is_zero = test_random_chance(&racer->random, 20);
        uint8_t version =
            is_zero ? UINT8_MAX : (uint8_t)test_random_between(&racer->random, 1, 0xb0);

        memset(buffer, is_zero ? 0 : version, sizeof(buffer));
        memset(race->versions + sector, version, sectors);
        int status = is_zero
                         ? block_node_write_zeroes(node, sector * SECTOR, sectors * SECTOR, 0)
                         : block_node_pwrite(node, buffer, sector * SECTOR, sectors * SECTOR, 0);
        g_assert_cmpint(status, ==, 0);
        g_assert_cmpint(block_node_pread(node, buffer, sector * SECTOR, sectors * SECTOR, 0), ==,
                        0);
        for (uint64_t at = 0; at < sectors * SECTOR; at++) {
            g_assert_cmphex(buffer[at], ==, byte_of(race, sector + at / SECTOR));
        }
    }
    atomic_fetch_sub(&race->writing, 1);
    return NULL;
}

/* What the backing file holds is what they have read before all writes. */
static void *populator(void *data)
{
    struct racer *racer = data;
    struct race *race = racer->race;

    while (atomic_load(&race->writing)) {
        uint64_t offset, bytes;

        test_random_range(&racer->random, LENGTH, SECTOR, 4 * race->cluster, &offset, &bytes);
        g_assert_cmpint(
            block_node_populate(race->world.node, race->world.buffer + offset, offset, bytes), ==,
            0);
    }
    return NULL;
}

static void run_race(struct test_random *random, const char *options, uint64_t cluster)
{
    struct race race = {.cluster = cluster, .writing = WRITERS};
    struct racer racers[WRITERS + POPULATORS];
    g_autofree uint8_t *buffer = g_malloc(LENGTH);
    struct test_image image;

    test_image_make(&image, 0);
    race.world = world_new(options, image.path);
    race.versions = g_malloc0(LENGTH / SECTOR);
    for (unsigned i = 0; i < G_N_ELEMENTS(racers); i++) {
        racers[i] = (struct racer){.race = &race, .random = test_random_split(random), .number = i};
        g_assert_cmpint(
            pthread_create(&racers[i].thread, NULL, i < WRITERS ? writer : populator, &racers[i]),
            ==, 0);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(racers); i++) {
        pthread_join(racers[i].thread, NULL);
    }
    assert_populates(&race.world, 0, LENGTH);
    g_assert_cmpint(block_node_pread(race.world.node, buffer, 0, LENGTH, 0), ==, 0);
    for (uint64_t i = 0; i < LENGTH; i++) {
        g_assert_cmphex(buffer[i], ==, byte_of(&race, i / SECTOR));
    }
    /* And without the backing file. */
    memset(memory_disk_data(race.world.backing), 0xee, LENGTH);
    g_assert_cmpint(block_node_pread(race.world.node, buffer, 0, LENGTH, 0), ==, 0);
    for (uint64_t i = 0; i < LENGTH; i++) {
        g_assert_cmphex(buffer[i], ==, byte_of(&race, i / SECTOR));
    }
    g_free(race.versions);
    world_free(&race.world);
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image.path);
    test_image_remove(&image, NULL);
}

static void test_race(void)
{
    struct test_random random = test_random_new(test_seed());

    run_race(&random, "", 64 * KIB);
    run_race(&random, ",cluster-size=4096", 4 * KIB);
    run_race(&random, ",cluster-size=65536,extended-l2=on", 64 * KIB);
    run_race(&random, ",cluster-size=65536,version=v2", 64 * KIB);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
    fault_driver_register();
    g_test_add_func("/qcow2-populate/nothing-reads-differently", test_random_chains);
    g_test_add_func("/qcow2-populate/few-requests-are-made", test_requests);
    g_test_add_func("/qcow2-populate/room-that-was-given-up-is-used", test_no_space);
    g_test_add_func("/qcow2-populate/what-is-not-written-to-is-refused", test_refusals);
    g_test_add_func("/qcow2-populate/what-guests-write-meanwhile-stays", test_race);
    return g_test_run();
}
