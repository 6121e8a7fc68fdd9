/* SPDX-License-Identifier: BSD-3-Clause */
/* A node of the nbd driver on a fake server, and requests that write and check whole blocks. */
#ifndef LIVEBLK_TESTS_LIB_NBD_FIXTURE_H
#define LIVEBLK_TESTS_LIB_NBD_FIXTURE_H

#include "block/align.h"
#include "tests/lib/fake-nbd-server.h"
#include "tests/lib/nbd-node.h"

#define NBD_FIXTURE_BYTES (256 * KIB)
#define NBD_FIXTURE_BLOCK 4096

/* A server of NBD_FIXTURE_BYTES, started. */
struct fake_nbd_server *nbd_fixture_start(fake_nbd_hook *hook);

/* A writable node on it with this reconnect-delay. */
struct block_node *nbd_fixture_open(struct fake_nbd_server *server, uint64_t seconds);

/* Close and free both. */
void nbd_fixture_finish(struct block_node *node, struct fake_nbd_server *server);

/* Opening must fail with this errno and a message that contains the part. */
void nbd_fixture_expect_open_error(struct nbd_options options, bool writable, int error_number,
                                   const char *part);

/* Write a block of one byte value; read a block and take its last byte. As the driver's. */
int nbd_fixture_write(struct block_node *node, uint64_t offset, uint8_t byte, unsigned flags);
int nbd_fixture_read(struct block_node *node, uint64_t offset, uint8_t *byte);
void nbd_fixture_expect(struct block_node *node, uint64_t offset, uint8_t expected);

/* Wait, as long as the test may take, until requests find a connection again. */
void nbd_fixture_wait(struct block_node *node);

#endif
