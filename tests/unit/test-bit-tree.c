/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of dirty bitmaps cannot see: memory, the levels, and stale summary bits. */
#include <errno.h>
#include <glib.h>
#include <stdio.h>
#include <sys/mman.h>

#include "block/align.h"
#include "block/bit-tree.h"

static void new_tree(struct bit_tree *tree, uint64_t bits)
{
    g_assert_cmpint(bit_tree_init(tree, bits), ==, 0);
}

/* Memory in use by a mapping, zero pages not counted. */
static uint64_t resident_in(const void *mapping, uint64_t bytes)
{
    uint64_t begin = (uint64_t)(uintptr_t)mapping, end = begin + bytes;
    uint64_t area_begin = 0, area_end = 0, kib, resident = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/smaps", "re");

    g_assert_nonnull(maps);
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "Rss: %" G_GUINT64_FORMAT " kB", &kib) == 1) {
            if (area_begin < end && begin < area_end) {
                resident += kib * KIB;
            }
        } else {
            sscanf(line, "%" G_GINT64_MODIFIER "x-%" G_GINT64_MODIFIER "x ", &area_begin,
                   &area_end);
        }
    }
    fclose(maps);
    return resident;
}

static uint64_t resident_bytes(const struct bit_tree *tree)
{
    return resident_in(tree->mapping, tree->mapping_bytes);
}

/*
 * Kernels of some virtual machines have no zero page: looking at untouched memory takes memory
 * there, and a look is what clearing cannot do without.
 */
static bool kernel_has_zero_page(void)
{
    const size_t bytes = 64 * KIB;
    volatile char *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    g_assert_true(memory != MAP_FAILED);
    for (size_t i = 0; i < bytes; i += 4 * KIB) {
        g_assert_cmpint(memory[i], ==, 0);
    }
    bool has_zero_page = resident_in((const void *)memory, bytes) < bytes;
    munmap((void *)memory, bytes);
    return has_zero_page;
}

static void check_empty(struct bit_tree *tree)
{
    g_assert_cmpuint(bit_tree_count(tree), ==, 0);
    g_assert_cmpuint(bit_tree_next_set(tree, 0), ==, BIT_TREE_NONE);
    for (unsigned level = 0; level < tree->level_count; level++) {
        for (uint64_t word = 0; word < MIN(tree->words[level], 100000); word++) {
            g_assert_cmpuint(atomic_load(&tree->levels[level][word]), ==, 0);
        }
    }
}

static void test_levels(void)
{
    static const uint64_t limits[] = {64, 4096, 262144, 16777216, 1073741824};

    for (unsigned i = 0; i < G_N_ELEMENTS(limits); i++) {
        struct bit_tree tree;

        new_tree(&tree, limits[i]);
        g_assert_cmpuint(tree.level_count, ==, i + 1);
        g_assert_cmpuint(tree.words[i], ==, 1);
        bit_tree_set(&tree, limits[i] - 1, limits[i] - 1);
        g_assert_cmpuint(bit_tree_next_set(&tree, 0), ==, limits[i] - 1);
        g_assert_cmpuint(bit_tree_next_set(&tree, limits[i]), ==, BIT_TREE_NONE);
        bit_tree_reset(&tree, 0, limits[i] - 1);
        check_empty(&tree);
        bit_tree_destroy(&tree);

        new_tree(&tree, limits[i] + 1);
        g_assert_cmpuint(tree.level_count, ==, i + 2);
        bit_tree_set(&tree, limits[i], limits[i]);
        g_assert_cmpuint(bit_tree_next_set(&tree, 0), ==, limits[i]);
        bit_tree_destroy(&tree);
    }
}

static void test_untouched_costs_nothing(void)
{
    const uint64_t bits = 64 * TIB / 512;
    struct bit_tree tree;

    new_tree(&tree, bits);
    for (uint64_t i = 0; i < 64; i++) {
        bit_tree_set(&tree, i * (bits / 64), i * (bits / 64));
    }
    g_assert_cmpuint(bit_tree_count(&tree), ==, 64);
    bit_tree_reset(&tree, 0, bits - 1);
    g_assert_cmpuint(bit_tree_next_set(&tree, 0), ==, BIT_TREE_NONE);
    g_assert_cmpuint(resident_bytes(&tree), <, 2 * MIB);
    bit_tree_destroy(&tree);
}

static void test_clear_returns_memory(void)
{
    const uint64_t bits = UINT64_C(1) << 24; /* 2 MiB */
    struct bit_tree tree;

    new_tree(&tree, bits);
    bit_tree_set(&tree, 5, bits - 1);
    g_assert_cmpuint(bit_tree_count(&tree), ==, bits - 5);
    g_assert_cmpuint(resident_bytes(&tree), >=, 2 * MIB);
    bit_tree_clear(&tree);
    if (kernel_has_zero_page()) {
        g_assert_cmpuint(resident_bytes(&tree), <, 256 * KIB);
    }
    check_empty(&tree);
    bit_tree_set(&tree, bits - 1, bits - 1);
    g_assert_cmpuint(bit_tree_next_set(&tree, 0), ==, bits - 1);
    bit_tree_destroy(&tree);
}

/* Summary bits too many, as races may leave them. */
static void test_stale_summaries(void)
{
    struct bit_tree tree;

    new_tree(&tree, UINT64_C(1) << 24);
    atomic_store(&tree.levels[1][7], UINT64_MAX);
    atomic_store(&tree.levels[2][0], UINT64_C(1) << 7 | UINT64_C(1) << 9);
    atomic_store(&tree.levels[3][0], 3);
    check_empty(&tree); /* searches first */
    bit_tree_destroy(&tree);
}

static void test_refused(void)
{
    struct bit_tree tree;

    g_assert_cmpint(bit_tree_init(&tree, UINT64_C(1) << 54), ==, -ENOMEM);
    g_assert_cmpint(bit_tree_init(&tree, UINT64_MAX), ==, -ENOMEM);
}

static void test_resize_within_capacity(void)
{
    struct bit_tree tree;
    void *mapping;

    new_tree(&tree, 1000);
    mapping = tree.mapping;
    bit_tree_set(&tree, 0, 999);
    g_assert_cmpint(bit_tree_resize(&tree, 70), ==, 0);
    g_assert_cmpuint(bit_tree_count(&tree), ==, 70);
    g_assert_cmpint(bit_tree_resize(&tree, 1000), ==, 0);
    g_assert_true(tree.mapping == mapping);
    g_assert_cmpuint(bit_tree_count(&tree), ==, 70);
    g_assert_cmpuint(bit_tree_next_clear(&tree, 0, 1000), ==, 70);
    g_assert_cmpuint(bit_tree_next_set(&tree, 70), ==, BIT_TREE_NONE);
    bit_tree_destroy(&tree);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bit-tree/the-last-bit-is-found-on-any-number-of-levels", test_levels);
    g_test_add_func("/bit-tree/untouched-parts-cost-no-memory", test_untouched_costs_nothing);
    g_test_add_func("/bit-tree/clear-gives-memory-back", test_clear_returns_memory);
    g_test_add_func("/bit-tree/a-search-drops-stale-summary-bits", test_stale_summaries);
    g_test_add_func("/bit-tree/too-many-bits-are-refused", test_refused);
    g_test_add_func("/bit-tree/shrinking-needs-no-memory", test_resize_within_capacity);
    return g_test_run();
}
