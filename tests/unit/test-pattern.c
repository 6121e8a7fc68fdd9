/* SPDX-License-Identifier: BSD-3-Clause */
#include <glib.h>
#include <string.h>

#include "tests/lib/pattern.h"

#define SECTOR 512

/* 8-byte aligned, as the functions want it. */
static uint64_t sectors[4 * SECTOR / 8];

static const struct pattern written = {
    .address = 0x10000, .sequence = 42, .time_ns = 123456789, .writer = 7};

static const uint64_t just_42[] = {42};
static const struct pattern_allowed only_42 = {.sequences = just_42, .count = 1};

static void fill(void)
{
    pattern_fill(sectors, sizeof(sectors), SECTOR, &written);
}

static void *sector(unsigned n)
{
    return (char *)sectors + n * SECTOR;
}

static void check(unsigned n, uint64_t address, const struct pattern_allowed *allowed,
                  enum pattern_verdict expected)
{
    enum pattern_verdict verdict = pattern_check(sector(n), SECTOR, address, allowed, NULL);

    g_assert_cmpstr(pattern_verdict_name(verdict), ==, pattern_verdict_name(expected));
}

static void test_sector_tells_its_story(void)
{
    struct pattern found;

    fill();
    g_assert_cmpint(pattern_identify(sector(2), SECTOR, &found), ==, PATTERN_WHOLE);
    g_assert_cmphex(found.address, ==, written.address + 2 * SECTOR);
    g_assert_cmpuint(found.sequence, ==, written.sequence);
    g_assert_cmpuint(found.writer, ==, written.writer);
    g_assert_cmpuint(found.time_ns, ==, written.time_ns);
}

static void test_good(void)
{
    const uint64_t several[] = {41, 42};
    const struct pattern_allowed either = {.sequences = several, .count = 2, .zeroes = true};

    fill();
    check(1, written.address + SECTOR, &only_42, PATTERN_GOOD);
    check(1, written.address + SECTOR, &either, PATTERN_GOOD);
}

static void test_torn(void)
{
    struct pattern newer = written;

    fill();
    newer.sequence++;
    pattern_fill(sector(3), SECTOR, SECTOR, &newer);
    memcpy((char *)sector(0) + SECTOR / 2, (char *)sector(3) + SECTOR / 2, SECTOR / 2);
    check(0, written.address, &only_42, PATTERN_IS_TORN);
}

/* Any single bit: the CRC covers all of the sector but the magic, whose loss makes it foreign. */
static void test_every_bit_counts(void)
{
    for (unsigned bit = 0; bit < SECTOR * 8; bit++) {
        unsigned char *byte = (unsigned char *)sector(0) + bit / 8;

        fill();
        *byte ^= 1u << bit % 8;
        check(0, written.address, &only_42, bit < 64 ? PATTERN_IS_FOREIGN : PATTERN_IS_TORN);
    }
}

static void test_stale_and_too_new(void)
{
    const uint64_t later[] = {43, 50}, earlier[] = {40, 41}, around[] = {41, 43};

    fill();
    check(0, written.address, &(struct pattern_allowed){later, 2, 0, 0}, PATTERN_IS_STALE);
    check(0, written.address, &(struct pattern_allowed){around, 2, 0, 0}, PATTERN_IS_STALE);
    check(0, written.address, &(struct pattern_allowed){earlier, 2, 0, 0}, PATTERN_IS_TOO_NEW);
}

static void test_data_where_zeroes_were_written(void)
{
    fill();
    check(0, written.address, &(struct pattern_allowed){NULL, 0, 43, 1}, PATTERN_IS_STALE);
    check(0, written.address, &(struct pattern_allowed){NULL, 0, 41, 1}, PATTERN_IS_TOO_NEW);
}

static void test_misplaced(void)
{
    fill();
    check(1, written.address, &only_42, PATTERN_IS_MISPLACED);
}

static void test_zeroes(void)
{
    memset(sectors, 0, sizeof(sectors));
    g_assert_cmpint(pattern_identify(sector(0), SECTOR, NULL), ==, PATTERN_ZEROES);
    check(0, written.address, &only_42, PATTERN_IS_LOST);
    check(0, written.address, &(struct pattern_allowed){NULL, 0, 1, 1}, PATTERN_GOOD);
}

static void test_foreign(void)
{
    memset(sectors, 0, sizeof(sectors));
    *((char *)sector(1) - 1) = 1;
    check(0, written.address, &only_42, PATTERN_IS_FOREIGN);
}

/* tests/integration/test-harness.py checks the same sector: the two languages agree on the format.
 */
static void test_golden_sector(void)
{
    g_autofree char *sum = NULL;

    fill();
    sum = g_compute_checksum_for_data(G_CHECKSUM_SHA256, sector(0), SECTOR);
    g_assert_cmpstr(sum, ==, "89c15aea9e9cb81308dcc727e22efaff885d93cf706ab0f318e9660b1ef2efd4");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/pattern/a-sector-tells-where-when-and-by-whom-it-was-written",
                    test_sector_tells_its_story);
    g_test_add_func("/pattern/what-may-be-there-is-good", test_good);
    g_test_add_func("/pattern/a-mixture-of-two-writes-is-torn", test_torn);
    g_test_add_func("/pattern/one-flipped-bit-is-seen", test_every_bit_counts);
    g_test_add_func("/pattern/older-is-stale-and-newer-is-too-new", test_stale_and_too_new);
    g_test_add_func("/pattern/data-in-place-of-zeroes-is-told-by-age",
                    test_data_where_zeroes_were_written);
    g_test_add_func("/pattern/a-sector-of-another-address-is-misplaced", test_misplaced);
    g_test_add_func("/pattern/zeroes-in-place-of-data-are-lost-data", test_zeroes);
    g_test_add_func("/pattern/other-bytes-are-foreign", test_foreign);
    g_test_add_func("/pattern/the-format-is-that-of-the-python-harness", test_golden_sector);
    return g_test_run();
}
