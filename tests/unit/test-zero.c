/* SPDX-License-Identifier: BSD-3-Clause */
#include <glib.h>
#include <stdint.h>
#include <string.h>

#include "block/zero.h"

/* More than two strides, at every alignment; the page after it is another allocation. */
#define LONGEST 400

static void test_every_single_byte_is_seen(void)
{
    for (size_t bytes = 0; bytes <= LONGEST; bytes += bytes < 300 ? 1 : 25) {
        /* Exactly as long as needed, so that a sanitizer sees a read past the end. */
        g_autofree uint8_t *buffer = g_malloc0(bytes ? bytes : 1);

        g_assert_true(buffer_is_zero(buffer, bytes));
        for (size_t i = 0; i < bytes; i++) {
            buffer[i] = 1 << (i % 8);
            g_assert_false(buffer_is_zero(buffer, bytes));
            buffer[i] = 0;
        }
    }
}

static void test_bytes_outside_are_not_looked_at(void)
{
    uint8_t buffer[LONGEST];

    for (size_t start = 1; start < 20; start++) {
        for (size_t bytes = 0; start + bytes < LONGEST; bytes += 7) {
            memset(buffer, 0xff, sizeof(buffer));
            memset(buffer + start, 0, bytes);
            g_assert_true(buffer_is_zero(buffer + start, bytes));
        }
    }
}

/* One byte after another, as the definition says. */
static size_t plain_zero_run(const uint8_t *buffer, size_t bytes, size_t block_size, bool *is_zero)
{
    size_t run = 0;

    *is_zero = true;
    while (run < bytes) {
        size_t end = MIN(run + block_size, bytes);
        bool block_is_zero = true;

        for (size_t i = run; i < end; i++) {
            block_is_zero &= buffer[i] == 0;
        }
        if (run == 0) {
            *is_zero = block_is_zero;
        } else if (block_is_zero != *is_zero) {
            break;
        }
        run = end;
    }
    return run;
}

static void test_runs_equal_those_of_a_plain_loop(void)
{
    uint8_t buffer[8192];

    for (unsigned round = 0; round < 3000; round++) {
        size_t bytes = (size_t)g_test_rand_int_range(0, sizeof(buffer) + 1);
        size_t block_size = (size_t)1 << g_test_rand_int_range(0, 14);
        bool is_zero, expected_is_zero;
        size_t run, expected;

        memset(buffer, round % 3 ? 0 : 0x5a, sizeof(buffer));
        for (int i = g_test_rand_int_range(0, 4); i > 0; i--) {
            int start = g_test_rand_int_range(0, sizeof(buffer));
            int end = g_test_rand_int_range(start, sizeof(buffer));

            memset(buffer + start, g_test_rand_int_range(0, 2), (size_t)(end - start));
        }
        run = buffer_zero_run(buffer, bytes, block_size, &is_zero);
        expected = plain_zero_run(buffer, bytes, block_size, &expected_is_zero);
        g_assert_cmpuint(run, ==, expected);
        g_assert_cmpint(is_zero, ==, expected_is_zero);
    }
}

static void test_an_empty_buffer_is_zero(void)
{
    bool is_zero = false;

    g_assert_true(buffer_is_zero(NULL, 0));
    g_assert_cmpuint(buffer_zero_run(NULL, 0, 4096, &is_zero), ==, 0);
    g_assert_true(is_zero);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/zero/every-single-byte-is-seen", test_every_single_byte_is_seen);
    g_test_add_func("/zero/bytes-outside-are-not-looked-at", test_bytes_outside_are_not_looked_at);
    g_test_add_func("/zero/runs-equal-those-of-a-plain-loop",
                    test_runs_equal_those_of_a_plain_loop);
    g_test_add_func("/zero/an-empty-buffer-is-zero", test_an_empty_buffer_is_zero);
    return g_test_run();
}
