/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots of qcow2 images: storage that fails, and tables that are odd or hostile. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/check-rig.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"

#define THEN_LENGTH (256 * KIB) /* of the disk, when its snapshot was taken */
#define LENGTH      (320 * KIB)

/* Fields of the header: size ... snapshots_offset, without names. */
#define AT_TABLES    24
#define TABLES_BYTES 48

/* ---- An image with a snapshot --------------------------------------------------------------- */

/* What is written lies below two L2 tables. */
static const uint64_t places[] = {0, 30 * KIB, 100 * KIB};
#define PLACE_BYTES (8 * KIB)

/* False if nothing can be written. */
static bool try_write(struct block_node *node, uint8_t byte)
{
    uint8_t buffer[PLACE_BYTES];

    memset(buffer, byte, sizeof(buffer));
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        if (block_node_pwrite(node, buffer, places[i], sizeof(buffer), 0) < 0) {
            g_assert_cmpuint(i, ==, 0);
            return false;
        }
    }
    return true;
}

static void write_byte(struct block_node *node, uint8_t byte)
{
    g_assert_true(try_write(node, byte));
}

static void expect_byte(struct block_node *node, uint8_t byte)
{
    uint8_t buffer[PLACE_BYTES], expected[PLACE_BYTES];

    memset(expected, byte, sizeof(expected));
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        g_assert_cmpint(block_node_pread(node, buffer, places[i], sizeof(buffer), 0), ==, 0);
        g_assert_cmpmem(buffer, sizeof(buffer), expected, sizeof(expected));
    }
}

/* The storage below the image is the node "bad". */
static struct block_node *open_image(struct test_image *image)
{
    return test_open("driver=qcow2,file.driver=fault,file.node-name=bad,file.file.driver=file,"
                     "file.file.filename=%s",
                     image->path);
}

static struct block_node *open_snapshot(struct test_image *image, const char *name)
{
    return test_open("driver=qcow2,read-only=on,snapshot=%s,file.driver=file,file.filename=%s",
                     name, image->path);
}

static int take(struct block_node *node, const char *name, GError **error)
{
    struct block_snapshot_info info = {.name = (char *)(uintptr_t)name, .icount = UINT64_MAX};

    return block_node_snapshot_create(node, &info, error);
}

/* The disk holds 2, and is longer than it was; the snapshot "then" holds 1. */
static void make(struct test_image *image, const char *options)
{
    g_autoptr(GError) error = NULL;

    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=512,%s %s %" PRIu64, options,
                          image->path, THEN_LENGTH);
    AUTO(block_node) node = open_image(image);
    write_byte(node, 1);
    take(node, "then", &error);
    g_assert_no_error(error);
    if (!strstr(options, "0.10")) {
        block_node_set_length(node, LENGTH, BLOCK_PREALLOCATION_OFF, &error);
        g_assert_no_error(error);
    }
    write_byte(node, 2);
}

static bool has_snapshot(struct block_node *node, const char *name)
{
    struct block_snapshot_info *list;
    g_autoptr(GError) error = NULL;
    bool is_there = false;
    size_t count;

    block_node_snapshot_list(node, &list, &count, &error);
    g_assert_no_error(error);
    for (size_t i = 0; i < count; i++) {
        is_there |= !strcmp(list[i].name, name);
    }
    block_snapshot_list_free(list, count);
    return is_there;
}

static void expect_snapshot(struct test_image *image, const char *name, uint8_t byte)
{
    AUTO(block_node) node = open_snapshot(image, name);

    expect_byte(node, byte);
}

static bool is_called_corrupt(struct block_node *node)
{
    struct block_info info = {0};

    g_assert_cmpint(block_node_get_info(node, &info), ==, 0);
    bool is_corrupt = json_is_true(json_object_get(info.format_specific, "corrupt"));
    block_info_clear(&info);
    return is_corrupt;
}

/* ---- Storage that fails --------------------------------------------------------------------- */

enum operation { TAKE, APPLY, DELETE, OPERATIONS };
static const char *const operation_names[] = {"take", "apply", "delete"};

static int operate(struct block_node *node, enum operation operation, GError **error)
{
    return operation == TAKE    ? take(node, "now", error)
           : operation == APPLY ? block_node_snapshot_apply(node, "then", error)
                                : block_node_snapshot_delete(node, "then", error);
}

/* The header cannot be written once: then all is as it was, and it can be tried again. */
static void test_header_fails_once(struct test_image *image, const void *unused)
{
    for (enum operation operation = 0; operation < OPERATIONS; operation++) {
        g_autoptr(GError) error = NULL;

        g_test_message("%s", operation_names[operation]);
        make(image, "compat=1.1");
        AUTO(block_node) node = open_image(image);
        AUTO(block_node) bad = block_node_find("bad");
        FAULT(bad, .operations = FAULT_ON(WRITE), .offset = AT_TABLES, .bytes = TABLES_BYTES,
              .count = 1, .error_number = EIO);
        g_assert_cmpint(operate(node, operation, &error), ==, -EIO);
        g_clear_error(&error);
        g_assert_false(is_called_corrupt(node));
        g_assert_true(has_snapshot(node, "then") && !has_snapshot(node, "now"));
        g_assert_cmpuint(block_node_length(node), ==, LENGTH);
        expect_byte(node, 2);
        write_byte(node, 3);
        operate(node, operation, &error);
        g_assert_no_error(error);
        expect_byte(node, operation == APPLY ? 1 : 3);
        block_node_unref(STEAL(bad));
        block_node_unref(STEAL(node));
        test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
    }
}

/* It cannot be written at all: nothing is any more, and that is not called damage. */
static void test_header_fails(struct test_image *image, const void *unused)
{
    uint8_t buffer[512] = {0};

    for (enum operation operation = 0; operation < OPERATIONS; operation++) {
        g_autoptr(GError) error = NULL;

        g_test_message("%s", operation_names[operation]);
        make(image, "compat=1.1");
        AUTO(block_node) node = open_image(image);
        AUTO(block_node) bad = block_node_find("bad");
        FAULT(bad, .operations = FAULT_ON(WRITE), .offset = AT_TABLES, .bytes = TABLES_BYTES,
              .error_number = EIO);
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*its header could not be written*");
        g_assert_cmpint(operate(node, operation, &error), ==, -EIO);
        g_test_assert_expected_messages();
        g_clear_error(&error);
        fault_clear(bad);
        g_assert_false(is_called_corrupt(node));
        expect_byte(node, 2);
        g_assert_cmpint(block_node_pwrite(node, buffer, 0, sizeof(buffer), 0), ==, -EIO);
        g_assert_cmpint(operate(node, operation, &error), ==, -EIO);
        g_assert_nonnull(strstr(error->message, "open it again"));
        block_node_unref(STEAL(bad));
        if (operation != DELETE) { /* refcounts were changed in memory */
            g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*last flush before closing failed*");
        }
        block_node_unref(STEAL(node));
        g_test_assert_expected_messages();
        node = open_image(image);
        g_assert_true(has_snapshot(node, "then") && !has_snapshot(node, "now"));
        expect_byte(node, 2);
        block_node_unref(STEAL(node));
        expect_snapshot(image, "then", 1);
        test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
    }
}

static struct block_check_result check(struct test_image *image)
{
    AUTO(block_node) node = test_open(
        "driver=qcow2,for-check=on,read-only=on,file.driver=file,file.filename=%s", image->path);
    struct block_check_result result = {0};
    g_autoptr(GError) error = NULL;

    block_node_check(node, 0, &result, NULL, NULL, &error);
    g_assert_no_error(error);
    return result;
}

/* Nothing is wrong with an image but that some clusters may be lost. */
static void expect_little_lost(struct test_image *image, uint64_t most)
{
    struct block_check_result result = check(image);

    g_assert_cmpuint(result.corruptions + result.check_errors, ==, 0);
    g_assert_cmpuint(result.leaks, <=, most);
}

struct failure {
    const char *options;
    enum operation operation;
    unsigned fails; /* FAULT_ON() */
    unsigned skip;  /* so many of them succeed */
    unsigned count; /* then so many fail; 0: all */
};

/* Of an image that was made; false if no request has failed. */
static bool fail(struct test_image *image, const struct failure *failure)
{
    g_autoptr(GError) error = NULL;
    AUTO(block_node) node = open_image(image);
    AUTO(block_node) bad = block_node_find("bad");

    expect_byte(node, 2);
    FAULT(bad, .operations = failure->fails, .skip = failure->skip, .count = failure->count,
          .error_number = EIO);
    int status = operate(node, failure->operation, &error);
    bool has_failed = fault_hits(bad);
    fault_clear(bad);
    bool is_applied =
        failure->operation == APPLY && (status == 0 || strstr(error->message, "is applied"));
    bool has_then = has_snapshot(node, "then"), has_now = has_snapshot(node, "now");
    bool is_done = failure->operation == TAKE    ? has_now
                   : failure->operation == APPLY ? is_applied
                                                 : !has_then;

    g_assert_true(is_done || status < 0);
    g_assert_cmpuint(block_node_length(node), ==,
                     is_applied || strstr(failure->options, "0.10") ? THEN_LENGTH : LENGTH);
    uint8_t byte = is_applied ? 1 : 2;
    expect_byte(node, byte);
    if (try_write(node, 3)) {
        byte = 3;
    } else {
        g_assert_false(failure->count || is_called_corrupt(node));
    }
    expect_byte(node, byte);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    for (unsigned opened = 0; opened < 2; opened++) {
        if (has_then) {
            expect_snapshot(image, "then", 1);
        }
        if (has_now) {
            expect_snapshot(image, "now", 2);
        }
        node = open_image(image); /* repairs what was left half done */
        g_assert_true(has_snapshot(node, "then") == has_then &&
                      has_snapshot(node, "now") == has_now);
        expect_byte(node, byte);
        write_byte(node, ++byte);
        block_node_unref(STEAL(node));
    }
    /* Version 2 has no dirty bit, so that it is not repaired: what a table that could not be read
     * refers to is lost, but no more; refcounts stay too high if nothing can be read or written. */
    if (failure->count || !strstr(failure->options, "0.10")) {
        expect_little_lost(image, strstr(failure->options, "0.10") ? 21 : 0);
    }
    return has_failed;
}

static void say_nothing(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

/* Whatever fails, what is not deleted keeps its data, also when the disk is written to. */
static void test_failures(struct test_image *image, const void *options)
{
    static const unsigned kinds[] = {FAULT_ON(WRITE), FAULT_ON(FLUSH), FAULT_ON(READ)};
    g_autofree char *made = NULL;
    uint8_t state[4 * KIB] = {5};
    gsize bytes;

    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    g_log_set_default_handler(say_nothing, NULL);
    make(image, options);
    AUTO(block_node) node = open_image(image);
    g_assert_cmpint(block_node_vmstate_write(node, state, 0, sizeof(state)), ==, 0);
    block_node_unref(STEAL(node));
    g_assert_true(g_file_get_contents(image->path, &made, &bytes, NULL));
    for (unsigned i = 0; i < 2 * OPERATIONS * G_N_ELEMENTS(kinds); i++) {
        struct failure failure = {
            .options = options,
            .operation = i / 2 % OPERATIONS,
            .fails = kinds[i / 2 / OPERATIONS],
            .count = i % 2,
        };

        do {
            g_assert_true(g_file_set_contents(image->path, made, (gssize)bytes, NULL));
        } while (fail(image, &failure) && ++failure.skip < 200);
        g_assert_cmpuint(failure.skip, <, 200);
        g_test_message("%s: %u", operation_names[failure.operation], failure.skip);
    }
    g_log_set_default_handler(g_log_default_handler, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL | G_LOG_LEVEL_WARNING);
}

/* ---- Images that are damaged or odd --------------------------------------------------------- */

static struct block_node *open_built(struct check_rig *rig)
{
    return test_open("driver=qcow2,file.driver=file,file.filename=%s", rig->path);
}

/* What is in use and has the refcount 0 must not get the refcount 1, and so seem to be the disk's
 * own, when a snapshot has it, too. */
static void test_refcount_zero(struct test_image *image, const void *unused)
{
    for (unsigned i = 0; i < 3; i++) {
        struct check_rig rig = check_rig_usual();
        g_autoptr(GError) error = NULL;

        qcow2_builder_set_refcount(rig.image,
                                   i == 0   ? host_of(&rig, GUEST_B)
                                   : i == 1 ? host_of(&rig, GUEST_KEPT_ZERO)
                                            : qcow2_builder_l2_at(rig.image, 0),
                                   0);
        qcow2_builder_write(rig.image, rig.path);
        AUTO(block_node) node = open_built(&rig);
        g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*in use has the refcount 0*");
        g_assert_cmpint(take(node, "now", &error), ==, -EIO);
        g_test_assert_expected_messages();
        g_assert_true(is_called_corrupt(node) && !has_snapshot(node, "now"));
        block_node_unref(STEAL(node));
        expect_mended(&rig);
        expect_usual_contents(&rig);
        check_rig_free(&rig);
    }
}

/* The snapshot at a place in the list; the caller frees the ID. */
static char *id_of(struct block_node *node, size_t index, const char *name)
{
    struct block_snapshot_info *list;
    g_autoptr(GError) error = NULL;
    size_t count;

    block_node_snapshot_list(node, &list, &count, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(index, <, count);
    g_assert_cmpstr(list[index].name, ==, name);
    char *id = g_strdup(list[index].id);
    block_snapshot_list_free(list, count);
    return id;
}

/* Behind the highest number that can be an ID there are others. */
static void test_highest_id(struct test_image *image, const void *unused)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));
    g_autoptr(GError) error = NULL;

    check_rig_fill(rig.image);
    qcow2_builder_snapshot(rig.image, "1", "first");
    qcow2_builder_snapshot(rig.image, "18446744073709551615", "second");
    qcow2_builder_build(rig.image);
    qcow2_builder_write(rig.image, rig.path);
    AUTO(block_node) node = open_built(&rig);
    take(node, "third", &error);
    take(node, "fourth", &error);
    g_assert_no_error(error);
    g_autofree char *third = id_of(node, 2, "third");
    g_autofree char *fourth = id_of(node, 3, "fourth");
    g_assert_cmpstr(third, ==, "2");
    g_assert_cmpstr(fourth, ==, "3");
    block_node_unref(STEAL(node));
    expect_peer(&rig, IMAGE_CLEAN);
    check_rig_free(&rig);
}

/* Two snapshots have the same ID: each can be meant alone, and the first by this ID. */
static void test_same_id(struct test_image *image, const void *unused)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));
    g_autoptr(GError) error = NULL;

    check_rig_fill(rig.image);
    qcow2_builder_snapshot(rig.image, "1", "first");
    qcow2_builder_snapshot(rig.image, "1", "second");
    qcow2_builder_snapshot(rig.image, "2", "third");
    qcow2_builder_build(rig.image);
    qcow2_builder_write(rig.image, rig.path);
    AUTO(block_node) node = open_built(&rig);
    g_autofree char *first = id_of(node, 0, "first");
    g_autofree char *second = id_of(node, 1, "second");
    g_assert_cmpstr(first, ==, "1");
    g_assert_cmpstr(second, ==, "3");
    block_node_snapshot_delete(node, second, &error);
    g_assert_no_error(error);
    g_assert_true(has_snapshot(node, "first") && !has_snapshot(node, "second") &&
                  has_snapshot(node, "third"));
    block_node_unref(STEAL(node));
    expect_peer(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* As old versions of QEMU wrote it: without the length of the disk, which is longer now. */
static void test_length_not_recorded(struct test_image *image, const void *unused)
{
    for (unsigned version = 2; version <= 3; version++) {
        struct check_rig rig =
            check_rig_new(QCOW2_BUILDER(.version = version, .size = MIB, .cluster_bits = 9));
        g_autoptr(GError) error = NULL;
        uint64_t length;

        qcow2_builder_data(rig.image, 0, 1);
        qcow2_builder_snapshot(rig.image, "1", "then");
        qcow2_builder_data(rig.image, 0, 2);
        qcow2_builder_build(rig.image);
        uint64_t entry = qcow2_builder_snapshots_at(rig.image);
        uint8_t *bytes = qcow2_builder_bytes(rig.image, &length) + entry;
        qcow2_builder_put32(rig.image, entry + 8, 16);    /* l1_size */
        memmove(bytes + 40, bytes + 56, strlen("1then")); /* the extra data */
        qcow2_builder_put32(rig.image, entry + 36, 0);    /* its size */
        memset(bytes + 40 + strlen("1then"), 0, 16 + strlen("1then"));
        expect_found(&rig, version == 2 ? IMAGE_CLEAN : IMAGE_CORRUPT,
                     version == 2 ? NULL : "does not say how long its disk was");
        AUTO(block_node) node = open_built(&rig);
        block_node_snapshot_apply(node, "then", &error);
        g_assert_no_error(error);
        g_assert_cmpuint(block_node_length(node), ==, 16 * 32 * KIB);
        g_assert_cmpint(block_node_pread(node, &length, 0, sizeof(length), 0), ==, 0);
        g_assert_cmphex(length, ==, UINT64_C(0x0101010101010101));
        block_node_unref(STEAL(node));
        expect_mended(&rig);
        check_rig_free(&rig);
    }
}

/* Entries of 128 KiB each, whose texts take no space in a sparse file. */
static void test_large_table(struct test_image *image, const void *unused)
{
    const uint64_t entry = align_up(40 + 2 * UINT16_MAX, 8);
    const uint32_t most = 64 * MIB / entry;

    for (uint32_t count = most; count <= most + 1; count++) {
        struct check_rig rig = check_rig_new(QCOW2_BUILDER(.version = 2, .size = MIB));
        uint64_t table;

        check_rig_fill(rig.image);
        uint64_t l1 = qcow2_builder_snapshot(rig.image, "1", "then");
        qcow2_builder_build(rig.image);
        qcow2_builder_bytes(rig.image, &table);
        qcow2_builder_resize(rig.image, align_up(table + count * entry, CLUSTER));
        qcow2_builder_put32(rig.image, 60, count); /* nb_snapshots, snapshots_offset */
        qcow2_builder_put64(rig.image, 64, table);
        for (uint32_t i = 0; i < count; i++) {
            qcow2_builder_put64(rig.image, table + i * entry, l1);
            qcow2_builder_put32(rig.image, table + i * entry + 8, 1);           /* l1_size */
            qcow2_builder_put32(rig.image, table + i * entry + 12, UINT32_MAX); /* of the texts */
        }
        qcow2_builder_write(rig.image, rig.path);
        if (count <= most) {
            AUTO(block_node) node = open_built(&rig);
            g_free(id_of(node, count - 1, ""));
        } else {
            g_autofree char *reason =
                test_open_error("driver=qcow2,file.driver=file,file.filename=%s", rig.path);
            g_assert_nonnull(strstr(reason, "it is too large"));
        }
        check_rig_free(&rig);
    }
}

/* ---- VM state ------------------------------------------------------------------------------- */

/* Offsets that do not fit are refused: they do not lead back to the disk. */
static void test_far_vm_state(struct test_image *image, const void *unused)
{
    uint8_t buffer[512] = {0};

    make(image, "compat=1.1");
    AUTO(block_node) node = open_image(image);
    for (unsigned i = 0; i < 64; i++) {
        uint64_t offset = UINT64_MAX - 511 - i * 16 * KIB;

        g_assert_cmpint(block_node_vmstate_write(node, buffer, offset, 512), ==, -EFBIG);
        g_assert_cmpint(block_node_vmstate_read(node, buffer, offset, 512), ==, -EFBIG);
        g_assert_cmpint(block_node_vmstate_write(node, buffer, offset / 2, 512), ==, -EFBIG);
    }
    expect_byte(node, 2);
    block_node_unref(STEAL(node));
}

/* The L1 table gets longer in steps: else each would be a copy for a few entries more. */
static void test_long_vm_state(struct test_image *image, const void *unused)
{
    g_autofree uint8_t *buffer = g_malloc0(32 * KIB), *again = g_malloc0(32 * KIB);

    make(image, "compat=1.1");
    AUTO(block_node) node = open_image(image);
    AUTO(block_node) bad = block_node_find("bad");
    FAULT(bad, .operations = FAULT_ON(WRITE), .offset = AT_TABLES, .bytes = TABLES_BYTES);
    for (unsigned i = 0; i < 200; i++) {
        memset(buffer, (int)i + 1, 32 * KIB);
        g_assert_cmpint(block_node_vmstate_write(node, buffer, i * 32 * KIB, 32 * KIB), ==, 0);
    }
    g_assert_cmpuint(fault_hits(bad), <=, 16); /* the header is switched; 10 entries to 210 */
    for (unsigned i = 0; i < 200; i++) {
        memset(buffer, (int)i + 1, 32 * KIB);
        g_assert_cmpint(block_node_vmstate_read(node, again, i * 32 * KIB, 32 * KIB), ==, 0);
        g_assert_cmpmem(buffer, 32 * KIB, again, 32 * KIB);
    }
    expect_byte(node, 2);
    block_node_unref(STEAL(bad));
    block_node_unref(STEAL(node));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

static uint64_t clusters_in_use(struct test_image *image)
{
    struct block_check_result result = check(image);

    g_assert_cmpint(image_verdict_of(&result), ==, IMAGE_CLEAN);
    return result.allocated_clusters;
}

/* What is written before a snapshot is taken is the snapshot's, and leaves no trace beside it. */
static void test_left_vm_state(struct test_image *image, const void *unused)
{
    g_autofree uint8_t *state = g_malloc(64 * KIB), *again = g_malloc(64 * KIB);
    g_autofree uint8_t *zeroes = g_malloc0(64 * KIB);
    g_autoptr(GError) error = NULL;

    memset(state, 0x55, 64 * KIB);
    make(image, "compat=1.1");
    uint64_t clusters = clusters_in_use(image);
    AUTO(block_node) node = open_image(image);
    g_assert_cmpint(block_node_vmstate_write(node, state, 0, 64 * KIB), ==, 0);
    take(node, "now", &error);
    g_assert_no_error(error);
    expect_byte(node, 2);
    g_assert_cmpint(block_node_vmstate_read(node, again, 0, 64 * KIB), ==, 0);
    g_assert_cmpmem(again, 64 * KIB, zeroes, 64 * KIB);
    block_node_unref(STEAL(node));
    g_assert_cmpuint(clusters_in_use(image), ==, clusters);
    node = open_image(image);
    block_node_snapshot_apply(node, "now", &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_vmstate_read(node, again, 0, 64 * KIB), ==, 0);
    g_assert_cmpmem(again, 64 * KIB, state, 64 * KIB);
    expect_byte(node, 2);
    block_node_unref(STEAL(node));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

static void make_image(struct test_image *image, const void *unused)
{
    test_image_make(image, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
#define TEST(name, function)                                                                       \
    g_test_add("/qcow2-snapshot/" name, struct test_image, NULL, make_image, function,             \
               test_image_remove)
    TEST("a-header-that-cannot-be-written-changes-nothing", test_header_fails_once);
    TEST("a-header-that-is-not-known-stops-all-writing", test_header_fails);
    g_test_add("/qcow2-snapshot/no-failed-request-loses-data", struct test_image, "compat=1.1",
               make_image, test_failures, test_image_remove);
    g_test_add("/qcow2-snapshot/no-failed-request-loses-data-of-version-2", struct test_image,
               "compat=0.10", make_image, test_failures, test_image_remove);
    TEST("what-has-the-refcount-zero-is-not-shared", test_refcount_zero);
    TEST("ids-do-not-end", test_highest_id);
    TEST("an-id-is-one-snapshot's", test_same_id);
    TEST("a-length-that-is-not-recorded-is-what-there-is", test_length_not_recorded);
    TEST("a-table-of-snapshots-has-a-limit", test_large_table);
    TEST("vm-state-never-leads-back-to-the-disk", test_far_vm_state);
    TEST("vm-state-gets-room-in-steps", test_long_vm_state);
    TEST("vm-state-is-left-to-its-snapshot", test_left_vm_state);
    return g_test_run();
}
