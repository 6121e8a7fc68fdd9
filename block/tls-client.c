/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tls-client.h"

#include <errno.h>

#include "block/error.h"

static block_tls_client_lookup *lookup;

void block_tls_client_set_lookup(block_tls_client_lookup *new_lookup)
{
    lookup = new_lookup;
}

int block_tls_client_find(const char *id, struct block_tls_client *client, GError **error)
{
    *client = (struct block_tls_client){0};
    return lookup ? lookup(id, client, error)
                  : block_error(error, ENOENT, "No TLS credentials with id '%s'", id);
}
