/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking and repairing qcow2 images: snapshots, bitmaps, data files, the image's state, and all
 * that may come in between.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/check-rig.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"

/* Fields of the header ("Header"). */
#define AT_SNAPSHOT_COUNT 60
#define AT_INCOMPATIBLE   72
#define AT_AUTOCLEAR      88
#define DIRTY             UINT64_C(1)
#define CORRUPT           UINT64_C(2)

static uint64_t incompatible_of(struct check_rig *rig)
{
    uint64_t word = 0;
    AUTO(block_node) node = test_open("driver=file,read-only=on,filename=%s", rig->path);

    g_assert_cmpint(block_node_pread(node, &word, AT_INCOMPATIBLE, sizeof(word), 0), ==, 0);
    return GUINT64_FROM_BE(word);
}

/* ---- Snapshots ------------------------------------------------------------------------------ */

static struct check_rig snapshots_rig(uint64_t *entry, uint64_t *first_l1)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    *first_l1 = qcow2_builder_snapshot(rig.image, "1", "first");
    qcow2_builder_data(rig.image, GUEST_A, 0x02);
    qcow2_builder_snapshot(rig.image, "2", "second");
    qcow2_builder_data(rig.image, GUEST_A, 0x03);
    qcow2_builder_snapshot(rig.image, "3", "third");
    qcow2_builder_data(rig.image, GUEST_A, 0x04);
    qcow2_builder_build(rig.image);
    *entry = qcow2_builder_snapshots_at(rig.image);
    return rig;
}

/* The snapshots that are left, joined, and what the guest has at GUEST_A in the last of them. */
static void expect_snapshots(struct check_rig *rig, const char *names)
{
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,file.driver=file,file.filename=%s", rig->path);
    g_autoptr(GError) error = NULL;
    g_autoptr(GString) found = g_string_new(NULL);
    struct block_snapshot_info *list;
    size_t count;

    g_assert_cmpint(block_node_snapshot_list(node, &list, &count, &error), ==, 0);
    g_assert_no_error(error);
    for (size_t i = 0; i < count; i++) {
        g_string_append_printf(found, "%s%s", i ? " " : "", list[i].name);
    }
    block_snapshot_list_free(list, count);
    g_assert_cmpstr(found->str, ==, names);
}

static void expect_in_snapshot(struct check_rig *rig, const char *name, uint64_t guest,
                               uint8_t fill)
{
    AUTO(block_node) node = test_open(
        "driver=qcow2,read-only=on,snapshot=%s,file.driver=file,file.filename=%s", name, rig->path);
    uint8_t byte = 0;

    g_assert_cmpint(block_node_pread(node, &byte, guest, 1, 0), ==, 0);
    g_assert_cmpuint(byte, ==, fill);
}

static void test_bad_snapshot(void)
{
    const uint64_t offsets[] = {CLUSTER + 512, 1000 * CLUSTER, CLUSTER, 0};

    for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++) {
        uint64_t entry, first_l1;
        struct check_rig rig = snapshots_rig(&entry, &first_l1);

        expect_found(&rig, IMAGE_CLEAN, NULL);
        qcow2_builder_put64(rig.image, entry + 64, offsets[i]); /* the second one's L1 table */
        expect_found_by_us(&rig, IMAGE_CORRUPT, "Snapshot number 2 cannot be found");
        expect_mended(&rig);
        expect_snapshots(&rig, "first third");
        expect_in_snapshot(&rig, "first", GUEST_A, 0xa1);
        expect_in_snapshot(&rig, "third", GUEST_A, 0x03);
        expect_reads(&rig, GUEST_A, 0x04);
        check_rig_free(&rig);
    }
}

/* Behind an entry that claims to be endless none can be found. */
static void test_bad_snapshot_table(void)
{
    uint64_t entry, first_l1;
    struct check_rig rig = snapshots_rig(&entry, &first_l1);

    qcow2_builder_put32(rig.image, entry + 64 + 36, 0x7fffffff);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "Snapshots number 2 to 3 cannot be found");
    expect_mended(&rig);
    expect_snapshots(&rig, "first");
    expect_in_snapshot(&rig, "first", GUEST_A, 0xa1);
    check_rig_free(&rig);
}

static void test_snapshot_count(void)
{
    uint64_t entry, first_l1;
    struct check_rig rig = snapshots_rig(&entry, &first_l1);

    qcow2_builder_put32(rig.image, AT_SNAPSHOT_COUNT, 5);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "Snapshot number 4 cannot be found");
    expect_mended(&rig);
    expect_snapshots(&rig, "first second third");
    check_rig_free(&rig);
}

static void test_no_snapshot_left(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_snapshot(rig.image, "1", "first");
    qcow2_builder_build(rig.image);
    qcow2_builder_put64(rig.image, 64, 1000 * CLUSTER);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "cannot be found");
    expect_mended(&rig);
    expect_snapshots(&rig, "");
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_snapshot_without_length(void)
{
    uint64_t entry, first_l1;
    struct check_rig rig = snapshots_rig(&entry, &first_l1);

    qcow2_builder_put64(rig.image, entry + 48, UINT64_C(1) << 50);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "too small for its disk");
    expect_mended(&rig);
    expect_snapshots(&rig, "first second third");
    expect_in_snapshot(&rig, "first", GUEST_A, 0xa1);
    check_rig_free(&rig);
}

static void test_bad_entry_in_snapshot(void)
{
    uint64_t entry, first_l1;
    struct check_rig rig = snapshots_rig(&entry, &first_l1);
    uint64_t table = qcow2_builder_get64(rig.image, first_l1);

    qcow2_builder_put64(rig.image, table, 1000 * CLUSTER);
    expect_found(&rig, IMAGE_CORRUPT, "of a snapshot, offset 0");
    expect_mended(&rig);
    expect_in_snapshot(&rig, "first", GUEST_A, 0);
    expect_in_snapshot(&rig, "first", GUEST_B, 0xb1);
    expect_in_snapshot(&rig, "second", GUEST_A, 0x02);
    expect_reads(&rig, GUEST_A, 0x04);
    check_rig_free(&rig);
}

/* ---- Bitmaps -------------------------------------------------------------------------------- */

static struct check_rig bitmaps_rig(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_bitmap(rig.image, "one", 16, true);
    qcow2_builder_bitmap(rig.image, "two", 9, true);
    qcow2_builder_build(rig.image);
    return rig;
}

static size_t count_bitmaps(struct check_rig *rig)
{
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,file.driver=file,file.filename=%s", rig->path);
    struct block_persistent_bitmap *list;
    size_t count;

    g_assert_cmpint(block_node_bitmap_list(node, &list, &count, NULL), ==, 0);
    block_persistent_bitmap_list_free(list, count);
    return count;
}

static void test_bad_bitmap_entry(void)
{
    const uint64_t entries[] = {1000 * CLUSTER, CLUSTER, 2 * CLUSTER + 512, 2};

    for (size_t i = 0; i < G_N_ELEMENTS(entries); i++) {
        struct check_rig rig = bitmaps_rig();
        uint64_t table = qcow2_builder_get64(rig.image, qcow2_builder_bitmaps_at(rig.image));

        qcow2_builder_put64(rig.image, table, entries[i]);
        expect_found_by_us(&rig, IMAGE_CORRUPT, "of the table of bitmap 'one'");
        expect_mended(&rig);
        g_assert_cmpuint(count_bitmaps(&rig), ==, 2);
        expect_usual_contents(&rig);
        check_rig_free(&rig);
    }
}

static void expect_bitmap(struct check_rig *rig, const char *name, unsigned granularity_bits)
{
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,file.driver=file,file.filename=%s", rig->path);
    g_autoptr(GError) error = NULL;
    uint64_t bytes = div_round_up(MIB >> granularity_bits, 8);
    g_autofree uint8_t *bits = g_malloc0(bytes);

    block_node_bitmap_load(node, name, bits, bytes, &error);
    g_assert_no_error(error);
    test_assert_filled(bits, 0xff, bytes);
}

/* One that cannot be found is dropped alone. */
static void try_bad_bitmap(uint64_t at, uint64_t value, const char *finding)
{
    struct check_rig rig = bitmaps_rig();

    qcow2_builder_put64(rig.image, qcow2_builder_bitmaps_at(rig.image) + at, value);
    expect_found_by_us(&rig, IMAGE_CORRUPT, finding);
    expect_mended(&rig);
    g_assert_cmpuint(count_bitmaps(&rig), ==, 1);
    expect_bitmap(&rig, at < 32 ? "two" : "one", at < 32 ? 9 : 16);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_bad_bitmap(void)
{
    for (uint64_t entry = 0; entry <= 32; entry += 32) {
        const char *finding = entry ? "Bitmap number 2 (" : "Bitmap number 1 (";
        uint64_t kind = UINT64_C(2) << 56 | (uint64_t)(entry ? 9 : 16) << 48 | UINT64_C(3) << 32;

        try_bad_bitmap(entry + 0, 1000 * CLUSTER, finding);
        try_bad_bitmap(entry + 0, CLUSTER + 512, finding);
        try_bad_bitmap(entry + 0, CLUSTER, finding);
        try_bad_bitmap(entry + 0, 0, finding);
        try_bad_bitmap(entry + 8, 2, finding);                        /* no table */
        try_bad_bitmap(entry + 8, UINT64_C(7) << 32 | 2, finding);    /* another length */
        try_bad_bitmap(entry + 8, UINT64_C(1) << 32 | 0xff, finding); /* flags */
        try_bad_bitmap(entry + 16, kind, finding);
        try_bad_bitmap(entry + 24, 0, finding); /* the name */
    }
    try_bad_bitmap(56, UINT64_C(0x6f6e65) << 40, "two bitmaps have the same name");
}

/* If none is left, or they cannot be told from each other, all are. */
static void test_bad_bitmaps(void)
{
    for (unsigned i = 0; i < 2; i++) {
        struct check_rig rig = bitmaps_rig();
        uint64_t directory = qcow2_builder_bitmaps_at(rig.image);

        if (i == 0) {
            qcow2_builder_put64(rig.image, directory + 16, UINT64_MAX); /* lengths */
        } else {
            qcow2_builder_put64(rig.image, directory, 1000 * CLUSTER);
            qcow2_builder_put64(rig.image, directory + 32, 1000 * CLUSTER);
        }
        expect_found_by_us(&rig, IMAGE_CORRUPT, "cannot be used");
        expect_mended(&rig);
        g_assert_cmpuint(count_bitmaps(&rig), ==, 0);
        expect_usual_contents(&rig);
        check_rig_free(&rig);
    }
}

static void test_bitmaps_nowhere(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_put64(rig.image, AT_AUTOCLEAR, 1);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "but not where");
    expect_mended(&rig);
    check_rig_free(&rig);
}

/* ---- Data files ----------------------------------------------------------------------------- */

static void test_data_file(void)
{
    for (int is_raw = 0; is_raw <= 1; is_raw++) {
        struct test_image data;

        test_image_make(&data, MIB);
        struct check_rig rig = check_rig_new(
            QCOW2_BUILDER(.size = MIB, .data_file = data.path, .data_file_is_raw = is_raw));
        qcow2_builder_data(rig.image, GUEST_A, 0);
        qcow2_builder_data(rig.image, GUEST_B, 0);
        expect_same_statistics(&rig);
        check_rig_free(&rig);
        test_image_remove(&data, NULL);
    }
}

static void test_data_file_damage(void)
{
    const uint64_t entries[] = {GUEST_C | QCOW2_BUILT_COPIED, GUEST_B, GUEST_C | 2};

    for (size_t i = 0; i < G_N_ELEMENTS(entries); i++) {
        struct test_image data;

        test_image_make(&data, MIB);
        struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .data_file = data.path));
        qcow2_builder_data(rig.image, GUEST_B, 0);
        qcow2_builder_build(rig.image);
        set_entry(&rig, GUEST_B, entries[i]);
        expect_found_by_us(&rig, IMAGE_CORRUPT, "The L2 entry");
        expect_mended(&rig);
        check_rig_free(&rig);
        test_image_remove(&data, NULL);
    }
}

/* ---- State ---------------------------------------------------------------------------------- */

static void test_marks(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_put64(rig.image, AT_INCOMPATIBLE, DIRTY | CORRUPT);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_A), 3);
    qcow2_builder_write(rig.image, rig.path);
    check_rig_check(&rig, 0);
    g_assert_cmpuint(incompatible_of(&rig), ==, DIRTY | CORRUPT);
    check_rig_check(&rig, REPAIR_ALL);
    expect_verdict(&rig, IMAGE_CLEAN);
    g_assert_cmpuint(incompatible_of(&rig), ==, 0);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_dirty_is_repaired(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_allocate(rig.image, 2);
    qcow2_builder_build(rig.image);
    qcow2_builder_put64(rig.image, AT_INCOMPATIBLE, DIRTY);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_A), 0); /* lazy refcounts */
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_B), 2); /* a snapshot's deletion */
    set_entry(&rig, GUEST_C, host_of(&rig, GUEST_C));
    qcow2_builder_write(rig.image, rig.path);
    block_node_unref(test_open("driver=qcow2,file.driver=file,file.filename=%s", rig.path));
    g_assert_cmpuint(incompatible_of(&rig), ==, 0);
    check_rig_check(&rig, 0);
    expect_verdict(&rig, IMAGE_CLEAN);
    expect_peer(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* With lazy refcounts even blocks may be missing. */
static void test_dirty_without_refcounts(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_put64(rig.image, AT_INCOMPATIBLE, DIRTY);
    qcow2_builder_put64(rig.image, qcow2_builder_reftable_at(rig.image), 0);
    qcow2_builder_write(rig.image, rig.path);
    block_node_unref(test_open("driver=qcow2,file.driver=file,file.filename=%s", rig.path));
    check_rig_check(&rig, 0);
    expect_verdict(&rig, IMAGE_CLEAN);
    expect_peer(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* Giving data up takes a person. */
static void test_dirty_and_damaged(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_put64(rig.image, AT_INCOMPATIBLE, DIRTY);
    set_entry(&rig, GUEST_A, 1000 * CLUSTER);
    qcow2_builder_write(rig.image, rig.path);
    g_autofree char *message =
        test_open_error("driver=qcow2,file.driver=file,file.filename=%s", rig.path);
    g_assert_nonnull(strstr(message, "was not closed, and is damaged"));
    g_assert_cmpuint(incompatible_of(&rig), ==, DIRTY);
    expect_mended(&rig);
    g_assert_cmpuint(incompatible_of(&rig), ==, 0);
    check_rig_free(&rig);
}

static void test_dirty_with_bad_bitmaps(void)
{
    struct check_rig rig = bitmaps_rig();

    qcow2_builder_put64(rig.image, AT_INCOMPATIBLE, DIRTY);
    qcow2_builder_put64(rig.image, qcow2_builder_bitmaps_at(rig.image), 1000 * CLUSTER);
    qcow2_builder_write(rig.image, rig.path);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*bitmaps*");
    block_node_unref(test_open("driver=qcow2,file.driver=file,file.filename=%s", rig.path));
    g_test_assert_expected_messages();
    check_rig_check(&rig, 0);
    expect_verdict(&rig, IMAGE_CLEAN);
    expect_peer(&rig, IMAGE_CLEAN);
    check_rig_free(&rig);
}

/* ---- Refusals, trouble ---------------------------------------------------------------------- */

static void expect_refusal(struct block_node *node, unsigned repair, const char *pattern)
{
    struct block_check_result result = {0};
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_node_check(node, repair, &result, NULL, NULL, &error), <, 0);
    if (!g_pattern_match_simple(pattern, error->message)) {
        g_error("Should be %s: %s", pattern, error->message);
    }
}

static void test_refusals(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_write(rig.image, rig.path);
    AUTO(block_node) raw =
        test_open("driver=raw,read-only=on,file.driver=file,file.filename=%s", rig.path);
    expect_refusal(raw, 0, "Block format 'raw' used by node '*' has nothing *");
    AUTO(block_node) looking = check_rig_open(&rig, false);
    expect_refusal(looking, REPAIR_ALL, "Block node '*' is read-only*");
    block_node_unref(STEAL(raw));
    block_node_unref(STEAL(looking));
    AUTO(block_node) used = test_open("driver=qcow2,file.driver=file,file.filename=%s", rig.path);
    expect_refusal(used, 0, "*for-check*");
    check_rig_free(&rig);
}

static bool stop_at_once(void *data, uint64_t done, uint64_t total)
{
    g_assert_cmpuint(done, <=, total);
    ++*(unsigned *)data;
    return false;
}

static bool go_on(void *data, uint64_t done, uint64_t total)
{
    g_assert_cmpuint(done, <=, total);
    *(bool *)data = done == total;
    return true;
}

static void test_progress(void)
{
    struct check_rig rig = check_rig_usual();
    struct block_check_result result = {0};
    g_autoptr(GError) error = NULL;
    unsigned calls = 0;
    bool is_done = false;

    qcow2_builder_write(rig.image, rig.path);
    AUTO(block_node) node = check_rig_open(&rig, false);
    g_assert_cmpint(block_node_check(node, 0, &result, go_on, &is_done, &error), ==, 0);
    g_assert_true(is_done);
    g_assert_cmpint(block_node_check(node, 0, &result, stop_at_once, &calls, &error), ==,
                    -ECANCELED);
    g_assert_cmpuint(calls, ==, 1);
    g_assert_cmpstr(error->message, ==, "The check was cancelled");
    check_rig_free(&rig);
}

static void test_unreadable_table(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_A), 5);
    qcow2_builder_write(rig.image, rig.path);
    AUTO(block_node) fault =
        test_open("driver=fault,node-name=fault,file.driver=file,file.filename=%s", rig.path);
    AUTO(block_node) node = test_open("driver=qcow2,for-check=on,file=fault");
    FAULT(fault, .operations = FAULT_ON(READ), .offset = entry_at(&rig, 0), .bytes = 8,
          .error_number = EIO);
    g_assert_cmpint(check_rig_check_node(&rig, node, REPAIR_ALL, NULL), ==, 0);
    expect_verdict(&rig, IMAGE_UNREADABLE);
    expect_finding(&rig, "Could not read an L2 table");
    expect_finding(&rig, "Nothing is repaired");
    block_node_unref(STEAL(node));
    block_node_unref(STEAL(fault));
    check_rig_check(&rig, 0); /* nothing was lowered, though most clusters seemed to be unused */
    g_assert_cmpuint(rig.result.leaks, ==, 1);
    check_rig_free(&rig);
}

/* ---- Hostile images ------------------------------------------------------------------------- */

/* Pointers all over a sparse file of exabytes; and tables in its holes. */
static void test_sparse(void)
{
    struct check_rig rig =
        check_rig_new(QCOW2_BUILDER(.size = 2000 * 32768 * KIB, .cluster_bits = 12));
    const uint64_t length = UINT64_C(1) << 55;

    for (uint64_t i = 0; i < 400; i++) {
        qcow2_builder_data(rig.image, i * 4096, (uint8_t)i);
    }
    qcow2_builder_build(rig.image);
    for (uint64_t i = 0; i < 400; i++) {
        set_entry(&rig, i * 4096, align_down(length / 512 * i + 4096, 4096) | QCOW2_BUILT_COPIED);
    }
    for (uint64_t i = 1; i < 2000; i++) {
        qcow2_builder_put64(rig.image, qcow2_builder_l1_at(rig.image, i * 512 * 4096),
                            align_down(length / 4096 * i, 4096) | QCOW2_BUILT_COPIED);
    }
    qcow2_builder_write(rig.image, rig.path);
    g_assert_cmpint(truncate(rig.path, (off_t)length), ==, 0);
    check_rig_check(&rig, 0);
    expect_verdict(&rig, IMAGE_CORRUPT);
    AUTO(block_node) node = check_rig_open(&rig, true);
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(check_rig_check_node(&rig, node, REPAIR_ALL, &error), ==, -EFBIG);
    g_assert_nonnull(strstr(error->message, "no place"));
    check_rig_free(&rig);
}

/* ---- Power is lost during a repair ---------------------------------------------------------- */

/* An image that has a bit of everything, so that a repair has much to do. */
static struct check_rig troubled_rig(bool has_blocks)
{
    uint64_t entry, first_l1;
    struct check_rig rig = snapshots_rig(&entry, &first_l1);

    set_entry(&rig, GUEST_C, 1000 * CLUSTER);
    qcow2_builder_put64(rig.image, entry + 64, CLUSTER + 512);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_B), 1);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_PRESSED_A), 40);
    if (!has_blocks) {
        qcow2_builder_put64(rig.image, qcow2_builder_reftable_at(rig.image), 0);
    }
    return rig;
}

/* Repair until power is lost at a write; false if there was no such write any more. */
static bool repair_until(struct check_rig *rig, uint64_t at_write, uint64_t seed)
{
    AUTO(block_node) layer = test_open(
        "driver=lose-writes,node-name=layer,file.driver=file,file.filename=%s", rig->path);
    AUTO(block_node) node = test_open("driver=qcow2,for-check=on,file=layer");
    struct lose_writes_plan plan = {
        .probability = seed % 3 * 50, .tear = 512, .seed = seed, .end = LOSE_WRITES_END_NODE};

    g_assert_cmpint(lose_writes_arm(layer, at_write, &plan, NULL), ==, 0);
    return check_rig_check_node(rig, node, REPAIR_ALL, NULL) < 0;
}

static void test_power_loss(void)
{
    static const struct peer_read reads[] = {
        {GUEST_A, CLUSTER, 0x04},
        {GUEST_PRESSED_B, CLUSTER, 0xb2},
        {GUEST_C, CLUSTER, 0},
    };

    /* That a node that has ended cannot be flushed is what is wanted here. */
    GLogLevelFlags fatal = g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    for (int has_blocks = 0; has_blocks <= 1; has_blocks++) {
        bool goes_on = true;

        for (uint64_t at_write = 1; goes_on; at_write++) {
            for (uint64_t seed = 1; seed < 3; seed++) {
                struct check_rig rig = troubled_rig(has_blocks);

                qcow2_builder_write(rig.image, rig.path);
                goes_on = repair_until(&rig, at_write, seed);
                expect_mended(&rig);
                expect_snapshots(&rig, "first third");
                expect_in_snapshot(&rig, "first", GUEST_A, 0xa1);
                expect_in_snapshot(&rig, "third", GUEST_A, 0x03);
                qemu_assert_reads(rig.path, reads, G_N_ELEMENTS(reads));
                check_rig_free(&rig);
            }
            g_assert_cmpuint(at_write, <, 100);
        }
    }
    g_log_set_always_fatal(fatal);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
#define TEST(name, function) g_test_add_func("/qcow2-check-more/" name, function)
    TEST("a-snapshot-that-cannot-be-found-is-dropped-alone", test_bad_snapshot);
    TEST("behind-an-endless-snapshot-none-can-be-found", test_bad_snapshot_table);
    TEST("more-snapshots-than-there-are", test_snapshot_count);
    TEST("no-snapshot-may-be-left", test_no_snapshot_left);
    TEST("a-snapshot-with-an-impossible-length-keeps-its-data", test_snapshot_without_length);
    TEST("an-impossible-entry-of-a-snapshot", test_bad_entry_in_snapshot);
    TEST("what-a-bitmap-has-lost-counts-as-changed", test_bad_bitmap_entry);
    TEST("a-bitmap-that-cannot-be-found-is-dropped-alone", test_bad_bitmap);
    TEST("bitmaps-that-cannot-be-found-are-dropped", test_bad_bitmaps);
    TEST("bitmaps-that-are-nowhere-are-dropped", test_bitmaps_nowhere);
    TEST("a-data-file-has-no-refcounts", test_data_file);
    TEST("clusters-of-a-data-file-have-their-place", test_data_file_damage);
    TEST("a-repair-clears-the-marks-dirty-and-corrupt", test_marks);
    TEST("a-dirty-image-is-repaired-when-it-is-opened", test_dirty_is_repaired);
    TEST("a-dirty-image-may-lack-refcounts", test_dirty_without_refcounts);
    TEST("a-dirty-image-that-is-damaged-is-not-opened", test_dirty_and_damaged);
    TEST("bad-bitmaps-do-not-keep-a-dirty-image-closed", test_dirty_with_bad_bitmaps);
    TEST("what-cannot-be-checked-is-refused", test_refusals);
    TEST("a-check-tells-its-progress-and-can-be-cancelled", test_progress);
    TEST("nothing-is-repaired-if-a-table-cannot-be-read", test_unreadable_table);
    TEST("a-sparse-file-of-exabytes-is-checked-soon", test_sparse);
    TEST("power-may-be-lost-at-any-write-of-a-repair", test_power_loss);
    return g_test_run();
}
