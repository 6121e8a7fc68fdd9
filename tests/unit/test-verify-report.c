/* SPDX-License-Identifier: BSD-3-Clause */
/* What becomes of ranges that are reported in any order. */
#include "jobs/verify-report.h"

#include "block/cleanup.h"
#include "tests/lib/random.h"

#define SECTOR UINT64_C(512)

static void expect_ranges(const struct verify_report *report, const struct verify_range *wanted,
                          size_t count)
{
    g_assert_cmpuint(report->ranges->len, ==, count);
    for (size_t i = 0; i < count; i++) {
        const struct verify_range *range = &g_array_index(report->ranges, struct verify_range, i);

        g_assert_cmpuint(range->offset, ==, wanted[i].offset);
        g_assert_cmpuint(range->bytes, ==, wanted[i].bytes);
        g_assert_cmpint(range->kind, ==, wanted[i].kind);
    }
}

static void test_neighbours(void)
{
    struct verify_report report;

    verify_report_init(&report, 10);
    verify_report_add(&report, VERIFY_DATA, 8 * SECTOR, SECTOR);
    verify_report_add(&report, VERIFY_DATA, 6 * SECTOR, SECTOR);
    verify_report_add(&report, VERIFY_DATA, 7 * SECTOR, SECTOR);        /* joins both */
    verify_report_add(&report, VERIFY_TARGET_ZERO, 9 * SECTOR, SECTOR); /* another kind */
    verify_report_add(&report, VERIFY_TARGET_ZERO, 0, 2 * SECTOR);
    const struct verify_range wanted[] = {
        {0, 2 * SECTOR, VERIFY_TARGET_ZERO},
        {6 * SECTOR, 3 * SECTOR, VERIFY_DATA},
        {9 * SECTOR, SECTOR, VERIFY_TARGET_ZERO},
    };
    expect_ranges(&report, wanted, G_N_ELEMENTS(wanted));
    g_assert_cmpuint(report.bytes[VERIFY_DATA], ==, 3 * SECTOR);
    g_assert_cmpuint(report.bytes[VERIFY_TARGET_ZERO], ==, 3 * SECTOR);
    g_assert_cmpuint(report.omitted_bytes, ==, 0);
    verify_report_clear(&report);
}

static void test_bounded(void)
{
    struct verify_report report, told;

    verify_report_init(&report, 2);
    verify_report_add(&report, VERIFY_DATA, 90 * SECTOR, 3 * SECTOR);
    verify_report_add(&report, VERIFY_DATA, 50 * SECTOR, SECTOR);
    verify_report_add(&report, VERIFY_DATA, 10 * SECTOR, SECTOR);
    verify_report_add(&report, VERIFY_DATA, 70 * SECTOR, 5 * SECTOR);
    const struct verify_range wanted[] = {
        {10 * SECTOR, SECTOR, VERIFY_DATA},
        {50 * SECTOR, SECTOR, VERIFY_DATA},
    };
    verify_report_copy(&told, &report);
    expect_ranges(&told, wanted, G_N_ELEMENTS(wanted));
    g_assert_cmpuint(verify_report_total(&told), ==, 10 * SECTOR);
    g_assert_cmpuint(told.omitted_bytes, ==, 8 * SECTOR);
    verify_report_clear(&told);

    /* However many there are, memory for them is bounded, and none is lost to the sum. */
    for (unsigned i = 100; i < 100000; i++) {
        verify_report_add(&report, VERIFY_DATA, 2 * i * SECTOR, SECTOR);
    }
    g_assert_cmpuint(report.ranges->len, <, 2000);
    verify_report_copy(&told, &report);
    expect_ranges(&told, wanted, G_N_ELEMENTS(wanted));
    g_assert_cmpuint(told.omitted_bytes, ==, (8 + 99900) * SECTOR);
    verify_report_clear(&told);
    verify_report_clear(&report);
}

/* A disk's sectors in any order, some of them different: the list is what a look at all says. */
static void test_any_order(void)
{
    enum { SECTORS = 512 };
    struct test_random random = test_random_new(test_seed());
    enum verify_kind kinds[SECTORS];
    unsigned order[SECTORS];
    struct verify_report report;
    g_autoptr(GArray) wanted = g_array_new(FALSE, FALSE, sizeof(struct verify_range));

    verify_report_init(&report, SECTORS);
    for (unsigned i = 0; i < SECTORS; i++) {
        unsigned other = (unsigned)test_random_below(&random, i + 1);

        order[i] = order[other];
        order[other] = i;
        kinds[i] = test_random_chance(&random, 30)
                       ? VERIFY_KINDS
                       : (enum verify_kind)test_random_below(&random, 2);
    }
    for (unsigned i = 0; i < SECTORS; i++) {
        if (kinds[order[i]] != VERIFY_KINDS) {
            verify_report_add(&report, kinds[order[i]], order[i] * SECTOR, SECTOR);
        }
    }
    for (unsigned i = 0; i < SECTORS; i++) {
        if (kinds[i] == VERIFY_KINDS) {
            continue;
        }
        if (i > 0 && kinds[i - 1] == kinds[i]) {
            g_array_index(wanted, struct verify_range, wanted->len - 1).bytes += SECTOR;
        } else {
            g_array_append_val(wanted, ((struct verify_range){i * SECTOR, SECTOR, kinds[i]}));
        }
    }
    expect_ranges(&report, (const struct verify_range *)(void *)wanted->data, wanted->len);
    verify_report_clear(&report);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/verify-report/neighbours-of-one-kind-are-one-range", test_neighbours);
    g_test_add_func("/verify-report/the-list-is-bounded-and-the-rest-counted", test_bounded);
    g_test_add_func("/verify-report/the-order-of-finding-does-not-matter", test_any_order);
    return g_test_run();
}
