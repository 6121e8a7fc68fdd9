/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking and repairing qcow2 images: refcounts, and the tables that lead to data. Each kind of
 * damage is made by hand into a small image, and beside our verdict stands that of `qemu-img
 * check`.
 */
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "formats/formats.h"
#include "tests/lib/check-rig.h"

/* ---- Images without a fault ----------------------------------------------------------------- */

static void test_clean(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_bitmap(rig.image, "one", 16, true);
    expect_same_statistics(&rig);
    check_rig_check(&rig, REPAIR_ALL);
    expect_verdict(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* Guest clusters all over the disk, so that there are several tables. */
static void scatter(struct qcow2_builder *image, unsigned cluster_bits, bool compress)
{
    uint64_t cluster = UINT64_C(1) << cluster_bits;

    for (uint64_t i = 0; i < 200; i += 7) {
        qcow2_builder_data(image, i * cluster, (uint8_t)i);
        qcow2_builder_zero(image, (i + 1) * cluster, i % 2);
        if (compress) {
            qcow2_builder_compressed(image, (i + 2) * cluster, (uint8_t)i);
        }
    }
}

static void test_clean_geometries(void)
{
    for (unsigned bits = 9; bits <= 16; bits++) {
        for (int order = 1; order <= 6; order++) {
            struct check_rig rig = check_rig_new(
                QCOW2_BUILDER(.size = UINT64_C(210) << bits, .cluster_bits = bits,
                              .refcount_order = order, .extended_l2 = bits >= 14 && order % 2));

            scatter(rig.image, bits, bits > 9 && order > 2);
            if (order > 2) {
                qcow2_builder_snapshot(rig.image, "1", "before");
                qcow2_builder_data(rig.image, 0, 0x77);
            }
            expect_same_statistics(&rig);
            check_rig_free(&rig);
        }
    }
}

static void test_clean_old_and_narrow(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .version = 2));

    qcow2_builder_data(rig.image, GUEST_A, 1);
    qcow2_builder_snapshot(rig.image, "1", "before");
    expect_same_statistics(&rig);
    check_rig_free(&rig);
    rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .cluster_bits = 12, .refcount_order = -1));
    qcow2_builder_data(rig.image, 0, 1);
    expect_same_statistics(&rig);
    check_rig_free(&rig);
}

/* ---- Refcounts and flags -------------------------------------------------------------------- */

static void test_leak(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    uint64_t lost = qcow2_builder_allocate(rig.image, 3);
    qcow2_builder_build(rig.image);
    expect_found(&rig, IMAGE_LEAKS, "used 0 times, but its refcount is 1");
    g_assert_cmpuint(rig.result.leaks, ==, 3);
    check_rig_check(&rig, BLOCK_CHECK_REPAIR_LEAKS);
    expect_verdict(&rig, IMAGE_CLEAN);
    g_assert_cmpuint(rig.result.leaks_fixed, ==, 3);
    g_autofree char *finding =
        g_strdup_printf("Repaired: The cluster at offset %" PRIu64 " is used 0 times", lost);
    expect_finding(&rig, finding);
    expect_peer(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* As a crash leaves it while a snapshot is deleted: flags follow the refcounts. */
static void test_leak_of_what_is_used(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_A), 2);
    set_entry(&rig, GUEST_A, host_of(&rig, GUEST_A));
    expect_found(&rig, IMAGE_LEAKS, "used 1 times, but its refcount is 2");
    check_rig_check(&rig, BLOCK_CHECK_REPAIR_LEAKS);
    expect_verdict(&rig, IMAGE_CLEAN);
    expect_peer(&rig, IMAGE_CLEAN);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_leak_beyond_end(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t length;

    qcow2_builder_bytes(rig.image, &length);
    qcow2_builder_set_refcount(rig.image, length + 5 * CLUSTER, 3);
    expect_found_by_us(&rig, IMAGE_LEAKS, "refcount is 3");
    expect_mended(&rig);
    check_rig_free(&rig);
}

static void test_leaks_only(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_allocate(rig.image, 1);
    qcow2_builder_build(rig.image);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_A), 0);
    expect_found(&rig, IMAGE_CORRUPT, "used 1 times, but its refcount is 0");
    check_rig_check(&rig, BLOCK_CHECK_REPAIR_LEAKS);
    expect_verdict(&rig, IMAGE_CORRUPT);
    expect_finding(&rig, "Not repaired: The cluster at offset");
    g_assert_cmpuint(rig.result.leaks, ==, 0);
    g_assert_cmpuint(rig.result.leaks_fixed, ==, 1);
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* What cannot be followed is not called unused. */
static void test_leaks_only_with_damage(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t at = qcow2_builder_l1_at(rig.image, 0);

    qcow2_builder_put64(rig.image, at, qcow2_builder_get64(rig.image, at) + (UINT64_C(1) << 40));
    expect_found(&rig, IMAGE_CORRUPT, "beyond the end of the file");
    check_rig_check(&rig, BLOCK_CHECK_REPAIR_LEAKS);
    expect_verdict(&rig, IMAGE_CORRUPT);
    expect_finding(&rig, "Leaks are not repaired");
    g_assert_cmpuint(rig.result.leaks_fixed, ==, 0);
    check_rig_free(&rig);
}

static void test_refcount_too_low(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_PRESSED_A), 1); /* of 2 */
    qcow2_builder_set_refcount(rig.image, 0, 0);
    expect_found(&rig, IMAGE_CORRUPT, "used 2 times, but its refcount is 1");
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_flag_wrong(void)
{
    struct check_rig rig = check_rig_usual();

    set_entry(&rig, GUEST_A, host_of(&rig, GUEST_A));
    set_entry(&rig, GUEST_KEPT_ZERO, host_of(&rig, GUEST_KEPT_ZERO) | QCOW2_BUILT_ZERO);
    expect_found(&rig, IMAGE_CORRUPT, "is not marked as to be overwritten in place");
    g_assert_cmpuint(rig.result.corruptions, ==, 2);
    expect_mended(&rig);
    expect_usual_contents(&rig);

    uint64_t at = qcow2_builder_l1_at(rig.image, 0);
    qcow2_builder_put64(rig.image, at, qcow2_builder_get64(rig.image, at) & ~QCOW2_BUILT_COPIED);
    expect_found(&rig, IMAGE_CORRUPT, "Entry of the active L1 table number 0");
    expect_mended(&rig);
    check_rig_free(&rig);
}

static void test_flag_of_shared(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB));

    check_rig_fill(rig.image);
    qcow2_builder_snapshot(rig.image, "1", "before");
    qcow2_builder_data(rig.image, GUEST_A, 0xa7);
    qcow2_builder_build(rig.image);
    set_entry(&rig, GUEST_B, host_of(&rig, GUEST_B) | QCOW2_BUILT_COPIED);
    expect_found(&rig, IMAGE_CORRUPT, "is marked as to be overwritten in place");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0xa7);
    expect_reads(&rig, GUEST_B, 0xb1);
    check_rig_free(&rig);
}

/* Two guest clusters in the same place: both keep what they read, and neither overwrites it. */
static void test_shared_data(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_B), 0);
    set_entry(&rig, GUEST_B, entry_of(&rig, GUEST_A));
    expect_found(&rig, IMAGE_CORRUPT, "used 2 times, but its refcount is 1");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0xa1);
    expect_reads(&rig, GUEST_B, 0xa1);
    check_rig_free(&rig);
}

static void test_shared_table(void)
{
    const uint64_t far = 8192 * CLUSTER;
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = 2 * far));

    check_rig_fill(rig.image);
    qcow2_builder_build(rig.image);
    qcow2_builder_put64(rig.image, qcow2_builder_l1_at(rig.image, far),
                        qcow2_builder_get64(rig.image, qcow2_builder_l1_at(rig.image, 0)));
    expect_found(&rig, IMAGE_CORRUPT, "used 2 times, but its refcount is 1");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0xa1);
    expect_reads(&rig, far + GUEST_A, 0xa1);
    expect_reads(&rig, far + GUEST_PRESSED_B, 0xb2);
    check_rig_free(&rig);
}

/* A refcount of one bit cannot say 2: that remains, and is told. */
static void test_refcount_too_narrow(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .refcount_order = -1));

    qcow2_builder_data(rig.image, GUEST_A, 1);
    qcow2_builder_data(rig.image, GUEST_B, 2);
    qcow2_builder_build(rig.image);
    qcow2_builder_set_refcount(rig.image, host_of(&rig, GUEST_B), 0);
    set_entry(&rig, GUEST_B, entry_of(&rig, GUEST_A));
    expect_found(&rig, IMAGE_CORRUPT, "cannot be larger");
    check_rig_check(&rig, REPAIR_ALL);
    expect_verdict(&rig, IMAGE_CORRUPT);
    expect_finding(&rig, "Not repaired: ");
    check_rig_free(&rig);
}

/* ---- Entries of L2 tables ------------------------------------------------------------------- */

struct bad_entry {
    const char *name;
    uint64_t guest;
    uint64_t entry;
    const char *finding;
    bool loses; /* the cluster's data is gone, and reads as zeroes */
};

static void try_bad_entry(const struct bad_entry *bad)
{
    struct check_rig rig = check_rig_usual();
    uint64_t host = host_of(&rig, bad->guest);
    uint8_t fill = bad->guest == GUEST_A ? 0xa1 : bad->guest == GUEST_PRESSED_A ? 0xa2 : 0;

    set_entry(&rig, bad->guest, bad->entry < CLUSTER ? host | bad->entry : bad->entry);
    expect_found(&rig, IMAGE_CORRUPT, bad->finding);
    expect_mended(&rig);
    g_assert_cmpuint(rig.result.finding_count, ==, 0);
    const struct peer_read reads[] = {
        {bad->guest, CLUSTER, bad->loses ? 0 : fill},
        {GUEST_B, CLUSTER, 0xb1},
        {GUEST_PRESSED_B, CLUSTER, 0xb2},
    };
    qemu_assert_reads(rig.path, reads, G_N_ELEMENTS(reads));
    check_rig_free(&rig);
}

static void test_bad_entries(void)
{
    static const struct bad_entry bad[] = {
        {"reserved", GUEST_A, UINT64_C(2), "has reserved bits set", false},
        {"unaligned", GUEST_A, QCOW2_BUILT_COPIED | (5 * CLUSTER + 512), "not aligned", true},
        {"beyond", GUEST_A, QCOW2_BUILT_COPIED | (1000 * CLUSTER), "beyond the end", true},
        {"far beyond", GUEST_A, QCOW2_BUILT_COPIED | ((UINT64_C(1) << 56) - CLUSTER),
         "beyond the end", true},
        {"kept zero unaligned", GUEST_KEPT_ZERO, QCOW2_BUILT_COPIED | (5 * CLUSTER + 1024) | 1,
         "not aligned", false},
        {"kept zero beyond", GUEST_KEPT_ZERO, QCOW2_BUILT_COPIED | (1000 * CLUSTER) | 1,
         "beyond the end", false},
        {"compressed beyond", GUEST_PRESSED_A, QCOW2_BUILT_COMPRESSED | (1000 * CLUSTER),
         "compressed data beyond the end", true},
        {"compressed far beyond", GUEST_PRESSED_A,
         QCOW2_BUILT_COMPRESSED | ((UINT64_C(1) << 54) - 512), "compressed data beyond the end",
         true},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_test_message("%s", bad[i].name);
        try_bad_entry(&bad[i]);
    }
}

static void test_compressed_with_flag(void)
{
    struct check_rig rig = check_rig_usual();

    set_entry(&rig, GUEST_PRESSED_A, entry_of(&rig, GUEST_PRESSED_A) | QCOW2_BUILT_COPIED);
    expect_found(&rig, IMAGE_CORRUPT, "is compressed, but marked");
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* A pointer to metadata loses against it: the tables stay as they are. */
static void try_data_over(struct check_rig *rig, uint64_t place, const char *finding)
{
    set_entry(rig, GUEST_A, QCOW2_BUILT_COPIED | place);
    expect_found(rig, IMAGE_CORRUPT, finding);
    expect_mended(rig);
    expect_reads(rig, GUEST_A, 0);
    expect_reads(rig, GUEST_B, 0xb1);
    check_rig_free(rig);
}

static void test_data_over_tables(void)
{
    struct check_rig rig = check_rig_usual();

    try_data_over(&rig, qcow2_builder_l1_at(rig.image, 0), "where the active L1 table is");
    rig = check_rig_usual();
    try_data_over(&rig, entry_at(&rig, 0) & ~(CLUSTER - 1), "where an L2 table is");
    rig = check_rig_new(QCOW2_BUILDER(.size = MIB));
    check_rig_fill(rig.image);
    uint64_t snapshot_l1 = qcow2_builder_snapshot(rig.image, "1", "before");
    qcow2_builder_data(rig.image, GUEST_A, 0xa3);
    qcow2_builder_bitmap(rig.image, "one", 16, true);
    qcow2_builder_build(rig.image);
    set_entry(&rig, GUEST_C, qcow2_builder_snapshots_at(rig.image));
    set_entry(&rig, GUEST_PRESSED_A, qcow2_builder_bitmaps_at(rig.image));
    try_data_over(&rig, snapshot_l1, "where a snapshot's L1 table is");
}

/* In version 2 there are no zero clusters. */
static void test_old_version(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .version = 2));

    qcow2_builder_data(rig.image, GUEST_A, 0xa1);
    qcow2_builder_data(rig.image, GUEST_B, 0xb1);
    qcow2_builder_allocate(rig.image, 1);
    qcow2_builder_build(rig.image);
    set_entry(&rig, GUEST_A, QCOW2_BUILT_COPIED | (1000 * CLUSTER));
    expect_found(&rig, IMAGE_CORRUPT, "beyond the end");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0);
    expect_reads(&rig, GUEST_B, 0xb1);
    check_rig_free(&rig);
}

static void try_subclusters(uint64_t set, uint64_t clear_descriptor, const char *finding,
                            uint8_t fill)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .extended_l2 = true));

    qcow2_builder_subclusters(rig.image, GUEST_A, 0xa1, 0x0000000f, 0xffff0000);
    qcow2_builder_compressed(rig.image, GUEST_PRESSED_A, 0xa2);
    qcow2_builder_build(rig.image);
    uint64_t at = entry_at(&rig, GUEST_A);
    qcow2_builder_put64(rig.image, at + 8, qcow2_builder_get64(rig.image, at + 8) | set);
    if (clear_descriptor) {
        qcow2_builder_put64(rig.image, at, 0);
    }
    expect_found_by_us(&rig, IMAGE_CORRUPT, finding);
    expect_mended(&rig);
    qemu_assert_reads(rig.path, &(const struct peer_read){GUEST_A, 2048, fill}, 1);
    qemu_assert_reads(rig.path, &(const struct peer_read){GUEST_PRESSED_A, 4096, 0xa2}, 1);
    check_rig_free(&rig);
}

static void test_subclusters(void)
{
    try_subclusters(UINT64_C(1) << 32, 0, "both allocated and zero", 0xa1);
    try_subclusters(0, true, "no host cluster", 0);
}

static void test_compressed_with_bitmap(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = MIB, .extended_l2 = true));

    qcow2_builder_compressed(rig.image, GUEST_PRESSED_A, 0xa2);
    qcow2_builder_build(rig.image);
    qcow2_builder_put64(rig.image, entry_at(&rig, GUEST_PRESSED_A) + 8, 7);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "has a subcluster bitmap");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_PRESSED_A, 0xa2);
    check_rig_free(&rig);
}

/* ---- Whole tables --------------------------------------------------------------------------- */

static void try_l1_entry(uint64_t entry, const char *finding, bool loses)
{
    const uint64_t far = 8192 * CLUSTER;
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = 2 * far));

    check_rig_fill(rig.image);
    qcow2_builder_data(rig.image, far, 0xf1);
    qcow2_builder_build(rig.image);
    uint64_t at = qcow2_builder_l1_at(rig.image, far);
    qcow2_builder_put64(rig.image, at, loses ? entry : qcow2_builder_get64(rig.image, at) | entry);
    expect_found(&rig, IMAGE_CORRUPT, finding);
    expect_mended(&rig);
    expect_reads(&rig, far, loses ? 0 : 0xf1);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_bad_l1_entries(void)
{
    try_l1_entry(2, "has reserved bits set", false);
    try_l1_entry(QCOW2_BUILT_COPIED, "bits that belong to one", true);
    try_l1_entry(QCOW2_BUILT_COPIED | (5 * CLUSTER + 512), "not aligned", true);
    try_l1_entry(QCOW2_BUILT_COPIED | (1000 * CLUSTER), "beyond the end", true);
    try_l1_entry(QCOW2_BUILT_COPIED | CLUSTER, "where another table is", true);
}

/* Guest data that is taken for a table is not written to. */
static void test_no_table(void)
{
    struct check_rig rig = check_rig_new(QCOW2_BUILDER(.size = 16384 * CLUSTER));
    uint64_t length;

    check_rig_fill(rig.image);
    qcow2_builder_build(rig.image);
    memset(qcow2_builder_bytes(rig.image, &length) + host_of(&rig, GUEST_C), 'x', CLUSTER);
    qcow2_builder_put64(rig.image, qcow2_builder_l1_at(rig.image, 8192 * CLUSTER),
                        host_of(&rig, GUEST_C) | QCOW2_BUILT_COPIED);
    expect_found(&rig, IMAGE_CORRUPT, "there should be an L2 table");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_C, 'x');
    expect_reads(&rig, GUEST_A, 0xa1);
    expect_reads(&rig, 8192 * CLUSTER, 0);
    check_rig_free(&rig);
}

/* The file was cut off: what was there is lost, the rest is not. */
static void test_cut_off(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t at = host_of(&rig, GUEST_C);

    qcow2_builder_resize(rig.image, at);
    expect_found(&rig, IMAGE_CORRUPT, "The refcount table is not inside the file");
    check_rig_check(&rig, REPAIR_ALL);
    expect_verdict(&rig, IMAGE_CLEAN);
    g_assert_cmpuint(rig.result.clusters_lost, ==, 1);
    expect_finding(&rig, "its data is lost and reads as zeroes");
    expect_peer(&rig, IMAGE_CLEAN);
    expect_reads(&rig, GUEST_A, 0xa1);
    expect_reads(&rig, GUEST_PRESSED_B, 0xb2);
    expect_reads(&rig, GUEST_C, 0);
    check_rig_free(&rig);
}

static void test_l1_cut_off(void)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_resize(rig.image, CLUSTER);
    qcow2_builder_write(rig.image, rig.path);
    check_rig_check(&rig, REPAIR_ALL);
    expect_verdict(&rig, IMAGE_UNREADABLE);
    expect_finding(&rig, "The active L1 table");
    expect_finding(&rig, "Nothing is repaired");
    check_rig_free(&rig);
}

/* ---- Refcount structures -------------------------------------------------------------------- */

static void try_reftable_entry(uint64_t entry, const char *finding)
{
    struct check_rig rig = check_rig_usual();

    qcow2_builder_put64(rig.image, qcow2_builder_reftable_at(rig.image), entry);
    expect_found(&rig, IMAGE_CORRUPT, finding);
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

static void test_bad_refcount_table(void)
{
    try_reftable_entry(0, "has no refcount");
    try_reftable_entry(CLUSTER, "there should be a refcount block, but the active L1 table");
}

static void test_reserved_in_refcount_table(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t at = qcow2_builder_reftable_at(rig.image);

    qcow2_builder_put64(rig.image, at, qcow2_builder_get64(rig.image, at) | 4);
    expect_found_by_us(&rig, IMAGE_CORRUPT, "has reserved bits set");
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* QEMU gives up here. */
static void test_impossible_blocks(void)
{
    const uint64_t entries[] = {3 * CLUSTER + 512, 1000 * CLUSTER, UINT64_MAX & ~(CLUSTER - 1)};

    for (size_t i = 0; i < G_N_ELEMENTS(entries); i++) {
        struct check_rig rig = check_rig_usual();

        qcow2_builder_put64(rig.image, qcow2_builder_reftable_at(rig.image), entries[i]);
        expect_found_by_us(&rig, IMAGE_CORRUPT,
                           entries[i] & 512 ? "not aligned" : "beyond the end of the file");
        expect_mended(&rig);
        expect_usual_contents(&rig);
        check_rig_free(&rig);
    }
}

static void test_shared_block(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t at = qcow2_builder_reftable_at(rig.image);

    qcow2_builder_put64(rig.image, at + 8, qcow2_builder_get64(rig.image, at));
    expect_found(&rig, IMAGE_CORRUPT, "there should be a refcount block");
    expect_mended(&rig);
    expect_usual_contents(&rig);
    check_rig_free(&rig);
}

/* Data in the place of refcounts: the data stays, refcounts are written elsewhere. */
static void test_data_over_refcounts(void)
{
    struct check_rig rig = check_rig_usual();
    uint64_t table = qcow2_builder_reftable_at(rig.image);
    uint64_t block = qcow2_builder_get64(rig.image, table), length;

    set_entry(&rig, GUEST_A, block | QCOW2_BUILT_COPIED);
    memset(qcow2_builder_bytes(rig.image, &length) + block, 0x5a, CLUSTER);
    expect_found(&rig, IMAGE_CORRUPT, "there should be a refcount block, but data");
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0x5a);
    expect_reads(&rig, GUEST_B, 0xb1);
    check_rig_free(&rig);

    rig = check_rig_usual();
    set_entry(&rig, GUEST_A, table | QCOW2_BUILT_COPIED);
    memset(qcow2_builder_bytes(rig.image, &length) + table, 0x5a, CLUSTER);
    qcow2_builder_write(rig.image, rig.path);
    check_rig_check(&rig, 0);
    expect_verdict(&rig, IMAGE_CORRUPT);
    expect_mended(&rig);
    expect_reads(&rig, GUEST_A, 0x5a);
    expect_reads(&rig, GUEST_B, 0xb1);
    check_rig_free(&rig);
}

static void test_rebuild_widths(void)
{
    for (int order = 1; order <= 6; order++) {
        struct check_rig rig = check_rig_new(
            QCOW2_BUILDER(.size = 210 * 512, .cluster_bits = 9, .refcount_order = order));

        scatter(rig.image, 9, false);
        qcow2_builder_snapshot(rig.image, "1", "before");
        qcow2_builder_data(rig.image, 0, 0x77);
        qcow2_builder_build(rig.image);
        qcow2_builder_put64(rig.image, qcow2_builder_reftable_at(rig.image), 0);
        expect_found(&rig, IMAGE_CORRUPT, "has no refcount");
        expect_mended(&rig);
        qemu_assert_reads(rig.path, &(const struct peer_read){0, 512, 0x77}, 1);
        qemu_assert_reads(rig.path, &(const struct peer_read){7 * 512, 512, 7}, 1);
        check_rig_free(&rig);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
#define TEST(name, function) g_test_add_func("/qcow2-check/" name, function)
    TEST("a-clean-image-is-clean-and-counted-as-qemu-counts", test_clean);
    TEST("so-it-is-with-all-cluster-sizes-and-refcount-widths", test_clean_geometries);
    TEST("so-it-is-with-version-2-and-with-one-bit", test_clean_old_and_narrow);
    TEST("a-leak-is-found-and-freed", test_leak);
    TEST("a-flag-follows-a-refcount-that-is-lowered", test_leak_of_what_is_used);
    TEST("a-refcount-beyond-the-end-is-a-leak", test_leak_beyond_end);
    TEST("leaks-alone-can-be-repaired", test_leaks_only);
    TEST("what-cannot-be-followed-is-not-called-a-leak", test_leaks_only_with_damage);
    TEST("a-refcount-that-is-too-low-is-raised", test_refcount_too_low);
    TEST("a-flag-that-is-wrong-is-corrected", test_flag_wrong);
    TEST("a-shared-cluster-is-not-to-be-overwritten-in-place", test_flag_of_shared);
    TEST("two-guest-clusters-in-one-place-both-stay", test_shared_data);
    TEST("a-table-that-is-used-twice-stays-in-both-places", test_shared_table);
    TEST("a-refcount-that-is-too-narrow-is-told", test_refcount_too_narrow);
    TEST("an-impossible-entry-is-found-and-only-its-data-is-lost", test_bad_entries);
    TEST("a-compressed-cluster-has-no-flag", test_compressed_with_flag);
    TEST("data-loses-against-tables", test_data_over_tables);
    TEST("version-2-is-repaired-too", test_old_version);
    TEST("subclusters-are-allocated-or-zero", test_subclusters);
    TEST("a-compressed-cluster-has-no-subclusters", test_compressed_with_bitmap);
    TEST("an-impossible-l1-entry-is-found-and-only-its-data-is-lost", test_bad_l1_entries);
    TEST("what-is-no-table-is-not-written-to", test_no_table);
    TEST("a-file-that-was-cut-off-keeps-the-rest", test_cut_off);
    TEST("without-an-l1-table-nothing-is-repaired", test_l1_cut_off);
    TEST("a-damaged-refcount-table-is-built-anew", test_bad_refcount_table);
    TEST("reserved-bits-of-the-refcount-table-are-found", test_reserved_in_refcount_table);
    TEST("a-refcount-block-that-is-nowhere-is-made-anew", test_impossible_blocks);
    TEST("a-refcount-block-is-used-once", test_shared_block);
    TEST("data-stays-where-refcounts-should-be", test_data_over_refcounts);
    TEST("refcounts-of-all-widths-are-built-anew", test_rebuild_widths);
    return g_test_run();
}
