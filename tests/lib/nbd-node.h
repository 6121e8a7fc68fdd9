/* SPDX-License-Identifier: BSD-3-Clause */
/* A node of the nbd driver without the core around it, to test the driver itself. */
#ifndef LIVEBLK_TESTS_LIB_NBD_NODE_H
#define LIVEBLK_TESTS_LIB_NBD_NODE_H

#include "block/node.h"
#include "formats/nbd-options.h"

/* The options' defaults with a UNIX socket (NULL: no server); strings are copied. */
struct nbd_options nbd_test_options(const char *socket_path);

/*
 * Open a node with the options, whose strings are taken; on failure NULL with the error set.
 * writable: not read-only.
 */
struct block_node *nbd_test_open(struct nbd_options options, bool writable, GError **error);
void nbd_test_close(struct block_node *node);

/* As the driver's functions. */
int nbd_test_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes);
int nbd_test_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                    unsigned flags);
int nbd_test_flush(struct block_node *node);

#endif
