/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets that listen for NBD clients. */
#ifndef LIVEBLK_SERVER_NBD_LISTEN_H
#define LIVEBLK_SERVER_NBD_LISTEN_H

#include <glib.h>

#include "server/nbd/server.h"
#include "server/unix-socket.h"

/* An address that is listened on: one socket, or several for a name with several addresses. */
struct nbd_listener {
    GArray *sockets; /* of int, non-blocking */
    struct unix_listener unix_socket;
};

/* Returns a negative errno with the error set. */
int nbd_listen(const struct nbd_address *address, struct nbd_listener *listener, GError **error);

/* Stop: the sockets are closed, and a UNIX one is gone. */
void nbd_unlisten(struct nbd_listener *listener);

#endif
