/* SPDX-License-Identifier: BSD-3-Clause */
/* When epochs are over. */
#include <glib.h>

#include "block/epoch.h"

static void test_who_is_in_keeps_it(void)
{
    static struct epoch epoch;

    epoch_init(&epoch);
    unsigned before = epoch_enter(&epoch);
    uint64_t tag = epoch_advance(&epoch);
    unsigned after = epoch_enter(&epoch);
    g_assert_false(epoch_is_over(&epoch, tag));
    epoch_leave(&epoch, before);
    g_assert_true(epoch_is_over(&epoch, tag)); /* who came later does not count */
    g_assert_false(epoch_is_over(&epoch, epoch_advance(&epoch)));
    epoch_leave(&epoch, after);
}

/* More than there are slots: then nothing is over before they have gone. */
static void test_crowd(void)
{
    static struct epoch epoch;
    unsigned slots[EPOCH_SLOTS + 3];

    epoch_init(&epoch);
    for (unsigned i = 0; i < G_N_ELEMENTS(slots); i++) {
        slots[i] = epoch_enter(&epoch);
    }
    uint64_t tag = epoch_advance(&epoch);
    for (unsigned i = 0; i < G_N_ELEMENTS(slots); i++) {
        g_assert_false(epoch_is_over(&epoch, tag));
        epoch_leave(&epoch, slots[i]);
    }
    g_assert_true(epoch_is_over(&epoch, tag));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/epoch/who-was-in-before-keeps-it-from-being-over", test_who_is_in_keeps_it);
    g_test_add_func("/epoch/more-users-than-slots-are-counted", test_crowd);
    return g_test_run();
}
