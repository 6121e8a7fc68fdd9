/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/nbd-fixture.h"

#include <string.h>

struct fake_nbd_server *nbd_fixture_start(fake_nbd_hook *hook)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);

    server->hook = hook;
    fake_nbd_server_start(server);
    return server;
}

struct block_node *nbd_fixture_open(struct fake_nbd_server *server, uint64_t seconds)
{
    g_autoptr(GError) error = NULL;
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;

    options.reconnect_delay = seconds;
    node = nbd_test_open(options, true, &error);
    g_assert_no_error(error);
    return node;
}

void nbd_fixture_expect_open_error(struct nbd_options options, bool writable, int error_number,
                                   const char *part)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(nbd_test_open(options, writable, &error));
    g_assert_nonnull(error);
    g_test_message("%s", error->message);
    g_assert_cmpint(error->code, ==, error_number);
    g_assert_nonnull(strstr(error->message, part));
}

int nbd_fixture_write(struct block_node *node, uint64_t offset, uint8_t byte, unsigned flags)
{
    uint8_t buffer[NBD_FIXTURE_BLOCK];

    memset(buffer, byte, sizeof(buffer));
    return nbd_test_pwrite(node, buffer, offset, sizeof(buffer), flags);
}

int nbd_fixture_read(struct block_node *node, uint64_t offset, uint8_t *byte)
{
    uint8_t buffer[NBD_FIXTURE_BLOCK] = {0};
    int ret = nbd_test_pread(node, buffer, offset, sizeof(buffer));

    *byte = buffer[NBD_FIXTURE_BLOCK - 1];
    return ret;
}

void nbd_fixture_expect(struct block_node *node, uint64_t offset, uint8_t expected)
{
    uint8_t byte;

    g_assert_cmpint(nbd_fixture_read(node, offset, &byte), ==, 0);
    g_assert_cmpuint(byte, ==, expected);
}

void nbd_fixture_wait(struct block_node *node)
{
    uint8_t byte;

    while (nbd_fixture_read(node, 0, &byte) != 0) {
        g_usleep(1000);
    }
}

void nbd_fixture_finish(struct block_node *node, struct fake_nbd_server *server)
{
    nbd_test_close(node);
    fake_nbd_server_free(server);
}
