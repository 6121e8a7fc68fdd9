/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/nbd-node.h"

#include "formats/nbd.h"

struct nbd_options nbd_test_options(const char *socket_path)
{
    struct nbd_options options = {
        .export_name = g_strdup(""),
        .tls_verify_peer = true,
    };

    if (socket_path) {
        options.server.type = BLOCK_ADDRESS_UNIX;
        options.server.path = g_strdup(socket_path);
    }
    return options;
}

struct block_node *nbd_test_open(struct nbd_options options, bool writable, GError **error)
{
    struct block_node *node = g_new0(struct block_node, 1);
    int ret;

    node->driver = &nbd_driver;
    node->options.read_only = !writable;
    node->state = g_malloc0(nbd_driver.instance_size);
    ret = nbd_driver.open(node, &options, error);
    block_options_clear_target(nbd_option_table, &options);
    if (ret < 0) {
        g_free(node->state);
        g_free(node);
        return NULL;
    }
    return node;
}

void nbd_test_close(struct block_node *node)
{
    nbd_driver.close(node);
    g_free(node->state);
    g_free(node);
}

int nbd_test_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes)
{
    return nbd_driver.pread(node, buffer, offset, bytes, 0);
}

int nbd_test_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                    unsigned flags)
{
    return nbd_driver.pwrite(node, buffer, offset, bytes, flags);
}

int nbd_test_flush(struct block_node *node)
{
    return nbd_driver.flush(node);
}
