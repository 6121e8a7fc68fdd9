/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/scratch.h"

#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/request.h"
#include "formats/formats.h"

static unsigned count_entries(const char *directory)
{
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
    unsigned count = 0;

    while (g_dir_read_name(dir)) {
        count++;
    }
    return count;
}

/* Scratch reads as it was written, takes no more room than that, and gives it back. */
static void test_use(void)
{
    g_autofree char *directory = g_dir_make_tmp("scratch-XXXXXX", NULL);
    struct block_node *node = scratch_open(directory, GIB, NULL);
    char data[4096], back[4096];

    g_assert_nonnull(node);
    g_assert_cmpuint(block_node_length(node), ==, GIB);
    g_assert_cmpint(block_node_get_allocated_size(node), ==, 0);
    memset(data, 0x5a, sizeof(data));
    g_assert_cmpint(block_node_pwrite(node, data, 512 * MIB, sizeof(data), 0), ==, 0);
    g_assert_cmpint(block_node_pread(node, back, 512 * MIB, sizeof(back), 0), ==, 0);
    g_assert_cmpmem(data, sizeof(data), back, sizeof(back));
    g_assert_cmpint(block_node_get_allocated_size(node), >=, 4096);
    g_assert_cmpint(block_node_discard(node, 512 * MIB, sizeof(data)), ==, 0);
    g_assert_cmpint(block_node_get_allocated_size(node), ==, 0);
    /* Nothing is left in the directory, whatever happens to us now. */
    g_assert_cmpuint(count_entries(directory), ==, 0);
    block_node_unref(node);
    g_rmdir(directory);
}

static void test_refusal(void)
{
    GError *error = NULL;

    g_assert_null(scratch_open("/nowhere", MIB, &error));
    g_assert_nonnull(strstr(error->message, "Could not make a scratch file in '/nowhere'"));
    g_error_free(error);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/scratch/use", test_use);
    g_test_add_func("/scratch/refusal", test_refusal);
    return g_test_run();
}
