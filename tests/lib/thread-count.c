/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/thread-count.h"

#include <glib.h>

#include "block/clock.h"

#define PATIENCE_NS (60 * NS_PER_SECOND)

unsigned test_count_threads(void)
{
    g_autoptr(GDir) threads = g_dir_open("/proc/self/task", 0, NULL);
    unsigned count = 0;

    while (g_dir_read_name(threads)) {
        count++;
    }
    return count;
}

void test_assert_threads(unsigned most)
{
    int64_t end_ns = clock_now_ns() + PATIENCE_NS;

    while (test_count_threads() > most && clock_now_ns() < end_ns) {
        g_usleep(500);
    }
    g_assert_cmpuint(test_count_threads(), <=, most);
}
