/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random damage to qcow2 images: a check must end with a verdict, a repair must end, and where it
 * says that all is well, it has to be so for `qemu-img check`, and for our driver, which reads and
 * writes the image afterwards.
 *
 * One thread; LIVEBLK_TEST_CASES sets how many cases, LIVEBLK_TEST_CASE_SEED repeats one by the
 * seed that was printed for it.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/qcow2-builder.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define CASES 300

/* What became of the images. */
enum outcome { OUTCOME_REFUSED, OUTCOME_WAS_CLEAN, OUTCOME_REPAIRED, OUTCOME_TOLD, OUTCOMES };

struct one {
    uint64_t seed;
    struct test_random random;
    struct test_image file;
    struct qcow2_description is;
    struct qcow2_builder *image;
    GArray *places; /* uint64_t: clusters of metadata in the file */
    bool header_is_damaged;
};

static bool chance(struct one *one, unsigned percent)
{
    return test_random_chance(&one->random, percent);
}

static uint64_t below(struct one *one, uint64_t limit)
{
    return test_random_below(&one->random, limit);
}

/* ---- Images --------------------------------------------------------------------------------- */

static void choose_kind(struct one *one)
{
    static const unsigned bits[] = {9, 9, 12, 14, 16};
    struct qcow2_description *is = &one->is;

    is->cluster_bits = bits[below(one, G_N_ELEMENTS(bits))];
    is->version = chance(one, 20) ? 2 : 3;
    is->refcount_order = is->version == 2 ? 4 : (int)below(one, 5) + 2;
    is->extended_l2 = is->version == 3 && is->cluster_bits >= 14 && chance(one, 40);
    is->size = (20 + below(one, 150)) << is->cluster_bits;
    is->spare_l1 = (uint32_t)below(one, 4);
}

static void put_cluster(struct one *one, uint64_t guest)
{
    uint8_t fill = (uint8_t)below(one, 256);

    switch (below(one, 4)) {
    case 0:
        if (one->is.version >= 3) {
            qcow2_builder_zero(one->image, guest, chance(one, 50));
        }
        break;
    case 1:
        if (one->is.cluster_bits >= 12 && one->is.refcount_order > 3) {
            qcow2_builder_compressed(one->image, guest, fill);
        }
        break;
    default:
        qcow2_builder_data(one->image, guest, fill);
    }
}

static void note(struct one *one, uint64_t offset)
{
    uint64_t place = align_down(offset, UINT64_C(1) << one->is.cluster_bits);

    g_array_append_val(one->places, place);
}

static void fill_image(struct one *one)
{
    uint64_t cluster = UINT64_C(1) << one->is.cluster_bits;
    uint64_t clusters = one->is.size / cluster;

    for (uint64_t i = 0; i < clusters; i += 1 + below(one, 4)) {
        put_cluster(one, i * cluster);
        note(one, qcow2_builder_l2_at(one->image, i * cluster));
    }
    for (uint64_t i = below(one, 4); i > 1; i--) {
        note(one, qcow2_builder_snapshot(one->image, i % 2 ? "1" : "2", "name"));
        note(one, qcow2_builder_l2_at(one->image, 0));
    }
    for (uint64_t i = below(one, 3); i > 0 && one->is.version >= 3; i--) {
        qcow2_builder_bitmap(one->image, i % 2 ? "one" : "other", 9 + (unsigned)below(one, 8),
                             chance(one, 70));
    }
}

static void build(struct one *one)
{
    qcow2_builder_build(one->image);
    uint64_t table = qcow2_builder_reftable_at(one->image);

    note(one, qcow2_builder_l1_at(one->image, 0));
    note(one, table);
    note(one, qcow2_builder_get64(one->image, table));
    if (qcow2_builder_snapshots_at(one->image)) {
        note(one, qcow2_builder_snapshots_at(one->image));
    }
    if (qcow2_builder_bitmaps_at(one->image)) {
        note(one, qcow2_builder_bitmaps_at(one->image));
        note(one, qcow2_builder_get64(one->image, qcow2_builder_bitmaps_at(one->image)));
    }
}

/* ---- Damage --------------------------------------------------------------------------------- */

static uint64_t random_word(struct one *one, uint64_t length)
{
    uint64_t cluster = UINT64_C(1) << one->is.cluster_bits;
    uint64_t flags = chance(one, 50) ? below(one, 4) << 62 : 0;

    switch (below(one, 5)) {
    case 0:
        return test_random_u64(&one->random);
    case 1:
        return below(one, 4);
    case 2:
        return below(one, 2 * length);
    case 3:
        return g_array_index(one->places, uint64_t, below(one, one->places->len)) | flags;
    default:
        return below(one, length / cluster + 2) * cluster | flags;
    }
}

/* Words that are used are worth more than the many zeroes. */
static uint64_t choose_word(struct one *one, uint64_t start)
{
    uint64_t cluster = UINT64_C(1) << one->is.cluster_bits, at = start;

    for (unsigned i = 0; i < 20; i++) {
        at = start + below(one, chance(one, 50) ? MIN_OF(cluster, UINT64_C(256)) : cluster) / 8 * 8;
        if (qcow2_builder_get64(one->image, at) || chance(one, 10)) {
            break;
        }
    }
    return at;
}

static void damage_once(struct one *one)
{
    uint64_t length;
    uint8_t *bytes = qcow2_builder_bytes(one->image, &length);
    uint64_t place = g_array_index(one->places, uint64_t, below(one, one->places->len));

    if (chance(one, 10)) { /* fields of the header from the disk's length on */
        bytes[24 + below(one, 80)] ^= (uint8_t)(1u << below(one, 8));
        one->header_is_damaged = true;
        return;
    }
    if (chance(one, 3)) {
        qcow2_builder_resize(one->image, length - below(one, length / 4) / 512 * 512);
        return;
    }
    if (place + (UINT64_C(1) << one->is.cluster_bits) > length) {
        return;
    }
    uint64_t at = choose_word(one, place);
    if (chance(one, 50)) {
        bytes[at + below(one, 8)] ^= (uint8_t)(1u << below(one, 8));
    } else {
        qcow2_builder_put64(one->image, at, random_word(one, length));
    }
}

/* ---- Judging -------------------------------------------------------------------------------- */

/* NULL if the image cannot even be opened for a check. */
static struct block_node *open_image(struct one *one, bool for_check, bool writable)
{
    g_autofree char *text =
        g_strdup_printf("driver=qcow2,for-check=%s,read-only=%s,file.driver=file,file.filename=%s",
                        for_check ? "on" : "off", writable ? "off" : "on", one->file.path);
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return block_node_open(options, true, NULL);
}

static bool check_image(struct one *one, unsigned repair, struct block_check_result *result)
{
    AUTO(block_node) node = open_image(one, true, repair);

    return node && block_node_check(node, repair, result, NULL, NULL, NULL) == 0;
}

static void complain(struct one *one, const char *what, const struct block_check_result *result,
                     const char *said)
{
    g_autoptr(GString) lines = g_string_new(NULL);

    for (guint i = 0; i < result->findings->len; i++) {
        g_string_append_printf(lines, "%s\n", (const char *)g_ptr_array_index(result->findings, i));
    }
    g_error("case of seed %" PRIu64 ": %s\nours:\n%sqemu-img:\n%s", one->seed, what, lines->str,
            said);
}

static void expect_peer_clean(struct one *one, const char *when,
                              const struct block_check_result *result)
{
    g_autofree char *said = NULL;

    if (one->seed % 3) {
        return; /* its start takes most of a case's time */
    }
    enum image_verdict verdict = qemu_check(one->file.path, NULL, &said);

    /* QEMU may refuse a header that we accept. */
    if (verdict != IMAGE_CLEAN && !(one->header_is_damaged && verdict == IMAGE_UNREADABLE)) {
        complain(one, when, result, said);
    }
}

/* Warnings end the test: the driver has one if it finds damage. What is compressed may be lost. */
static void use_image(struct one *one, const struct block_check_result *result)
{
    AUTO(block_node) node = open_image(one, false, true);
    g_autofree uint8_t *buffer = g_malloc(64 * KIB);

    if (!node) {
        complain(one, "the repaired image does not open", result, "");
    }
    uint64_t length = block_node_length(node);
    for (uint64_t at = 0; at < length; at += 64 * KIB) {
        block_node_pread(node, buffer, at, MIN_OF(64 * KIB, length - at), 0);
    }
    for (unsigned i = 0; i < 20; i++) {
        uint64_t offset, bytes;

        test_random_range(&one->random, length, 512, MIN_OF(align_down(length, 512), 64 * KIB),
                          &offset, &bytes);
        memset(buffer, (int)i, bytes);
        if (chance(one, 30)) {
            block_node_write_zeroes(node, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);
        } else {
            int status = block_node_pwrite(node, buffer, offset, bytes, 0);

            /* What shares a cluster with compressed data that is lost cannot be written alone. */
            if (status < 0 && status != -EIO) {
                complain(one, "the repaired image cannot be written", result, "");
            }
        }
    }
}

/*
 * Where two guest clusters were in one place and one of them is not any more, the flag of the other
 * is not set. Nothing else may be wrong.
 */
static void expect_clean_but_for_flags(struct one *one)
{
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
    struct block_check_result result = {.findings = lines};

    g_assert_true(check_image(one, 0, &result));
    for (guint i = 0; i < lines->len; i++) {
        if (!strstr(g_ptr_array_index(lines, i), "is not marked as to be overwritten")) {
            complain(one, "after use", &result, "");
        }
    }
}

static enum outcome judge(struct one *one, GPtrArray *lines)
{
    struct block_check_result result = {.findings = lines};

    if (!check_image(one, 0, &result)) {
        return OUTCOME_REFUSED;
    }
    bool was_clean = image_verdict_of(&result) == IMAGE_CLEAN;
    if (was_clean) {
        expect_peer_clean(one, "clean, before a repair", &result);
    }
    g_ptr_array_set_size(lines, 0);
    if (!check_image(one, BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS, &result) ||
        image_verdict_of(&result) != IMAGE_CLEAN) {
        return OUTCOME_TOLD;
    }
    expect_peer_clean(one, "clean, after a repair", &result);
    if (!one->header_is_damaged) {
        use_image(one, &result);
        expect_clean_but_for_flags(one);
    }
    return was_clean ? OUTCOME_WAS_CLEAN : OUTCOME_REPAIRED;
}

static enum outcome run_case(uint64_t seed)
{
    struct one one = {
        .seed = seed,
        .random = test_random_new(seed),
        .places = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
    };
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);

    test_image_make(&one.file, 0);
    choose_kind(&one);
    one.image = qcow2_builder_new(&one.is);
    fill_image(&one);
    build(&one);
    for (uint64_t i = 1 + below(&one, 6); i > 0; i--) {
        damage_once(&one);
    }
    qcow2_builder_write(one.image, one.file.path);
    enum outcome outcome = judge(&one, lines);
    qcow2_builder_free(one.image);
    g_array_unref(one.places);
    test_image_remove(&one.file, NULL);
    return outcome;
}

static void test_random_damage(void)
{
    const char *only = g_getenv("LIVEBLK_TEST_CASE_SEED");
    unsigned long cases = test_cases(CASES);
    struct test_random random = test_random_new(test_seed());
    unsigned outcomes[OUTCOMES] = {0};

    if (only) {
        run_case(strtoull(only, NULL, 10));
        return;
    }
    for (unsigned long i = 0; i < cases; i++) {
        uint64_t seed = test_random_u64(&random);

        g_test_message("case %lu: seed %" PRIu64, i, seed);
        outcomes[run_case(seed)]++;
    }
    g_test_message("%u were refused, %u clean, %u repaired, %u not", outcomes[OUTCOME_REFUSED],
                   outcomes[OUTCOME_WAS_CLEAN], outcomes[OUTCOME_REPAIRED], outcomes[OUTCOME_TOLD]);
}

/* Damage that the driver finds ends the test; that bitmaps are given up does not. */
static void take_message(const gchar *domain, GLogLevelFlags level, const gchar *message,
                         gpointer data)
{
    if (!strstr(message, "bitmaps of a qcow2 image are lost")) {
        g_log_default_handler(domain, level, message, data);
        abort();
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING | G_LOG_LEVEL_CRITICAL, take_message, NULL);
    formats_register();
    g_test_add_func("/qcow2-check/damage-at-random-is-repaired-or-told", test_random_damage);
    return g_test_run();
}
