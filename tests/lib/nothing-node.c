/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/nothing-node.h"

#include <pthread.h>

#include "block/driver.h"
#include "block/options.h"

static int nothing_open(struct block_node *node, void *values, GError **error)
{
    return 0;
}

static void nothing_close(struct block_node *node)
{
}

static int64_t nothing_length(struct block_node *node)
{
    return 1 << 20;
}

static const struct block_driver nothing_driver = {
    .name = "nothing",
    .description = "A node without data.",
    .is_protocol = true,
    .open = nothing_open,
    .close = nothing_close,
    .get_length = nothing_length,
};

static void register_driver(void)
{
    block_driver_register(&nothing_driver);
}

struct block_node *nothing_node_new(const char *name)
{
    static pthread_once_t registered = PTHREAD_ONCE_INIT;
    AUTO(block_options) options = block_options_new();
    g_autoptr(GError) error = NULL;

    pthread_once(&registered, register_driver);
    block_options_set(options, "driver", "nothing");
    block_options_set(options, "node-name", name);
    struct block_node *node = block_node_open(options, false, &error);
    g_assert_no_error(error);
    return node;
}
