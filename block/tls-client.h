/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS credentials of nodes that connect to a server: drivers ask for them by an ID, and whoever
 * keeps objects answers.
 */
#ifndef LIVEBLK_BLOCK_TLS_CLIENT_H
#define LIVEBLK_BLOCK_TLS_CLIENT_H

#include <glib.h>
#include <stdbool.h>

/* Strings are whoever's who asked. */
struct block_tls_client {
    char *certificates; /* directory with ca-cert.pem, and perhaps client-cert.pem, client-key.pem,
                           ca-crl.pem; or NULL, and then */
    char *keys;         /* file with lines USER:KEY, of which */
    char *username;     /* this user's is used */
    bool verify_peer;
};

/* Fills in a zeroed struct. Returns a negative errno. Any thread. */
typedef int block_tls_client_lookup(const char *id, struct block_tls_client *client,
                                    GError **error);

/* Before any node is opened. */
void block_tls_client_set_lookup(block_tls_client_lookup *lookup);

/* Where nobody keeps objects there are none. */
block_tls_client_lookup block_tls_client_find;

#endif
