/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One client: it negotiates, and then sends requests, which several threads carry out. Only fixed
 * newstyle; doc/proto.md of the NBD project is followed, with structured replies and extended
 * headers.
 */
#ifndef LIVEBLK_SERVER_NBD_CONNECTION_H
#define LIVEBLK_SERVER_NBD_CONNECTION_H

#include <stdbool.h>

#include "server/authorization.h"
#include "server/tls.h"

struct nbd_connection;

/* What is the same for all clients of a server; it outlives them. */
struct nbd_policy {
    struct tls_credentials *credentials; /* clients must use TLS; NULL: they cannot */
    struct authorization *authorization; /* whom TLS must vouch for; NULL: anybody */
    bool multi_conn;                     /* a client may connect several times */
};

/*
 * fd: a connected, blocking stream socket, which is taken over. negotiated is called on the
 * connection's thread when the client has chosen an export, and no time limit counts any more;
 * NULL: nobody wants to know.
 */
struct nbd_connection *nbd_connection_new(int fd, const struct nbd_policy *policy,
                                          void (*negotiated)(void *data), void *data);

/* Serve the client until it or we end that; blocks. */
void nbd_connection_run(struct nbd_connection *connection);

/*
 * End it soon: what has been begun is carried out, and nobody hears of it. What has not, as its
 * device is stopped, fails. Any thread.
 */
void nbd_connection_shut_down(struct nbd_connection *connection);

void nbd_connection_free(struct nbd_connection *connection);

#endif
