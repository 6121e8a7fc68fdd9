/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NBD servers: each listens on one address and lets clients come, with its own rules for them. All
 * offer the same exports (server/nbd/exports.h). A client that is slow or hostile has its own
 * threads, and a limit for its handshake: others do not notice it.
 *
 * Functions may be called by any thread but the main one.
 */
#ifndef LIVEBLK_SERVER_NBD_SERVER_H
#define LIVEBLK_SERVER_NBD_SERVER_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/authorization.h"
#include "server/listener.h"
#include "server/tls.h"

#define NBD_CONNECTIONS_DEFAULT       100
#define NBD_HANDSHAKE_SECONDS_DEFAULT 10

struct nbd_server_options {
    const char *id; /* "" is that of the only server that QEMU knows */
    struct socket_address address;
    struct tls_credentials *credentials; /* clients must use TLS; NULL: they cannot. Referenced */
    struct authorization *authorization; /* NULL: all whom TLS lets pass. Referenced */
    unsigned max_connections;            /* 0: no limit. Beyond it clients wait to be accepted */
    unsigned handshake_s;                /* the longest a handshake takes; 0: for ever */
    /*
     * Told on the server's thread, about a client that had chosen an export: how many clients there
     * are still, those that have not chosen yet included. NULL: nobody is.
     */
    void (*client_left)(unsigned left, void *data);
    void *data;
};

/* Listen. Returns a negative errno with the error set and nothing changed. */
int nbd_server_start(const struct nbd_server_options *options, GError **error);

/*
 * Stop listening and disconnect its clients; with the last server all exports go. Returns when
 * nothing is left of it, which takes as long as what clients have begun. -ENOENT: none has this ID.
 */
int nbd_server_stop(const char *id, GError **error);

/* All of them. */
void nbd_server_stop_all(void);

/*
 * From the first to the second call no server accepts a client: those who connect wait, until what
 * they come for is there.
 */
void nbd_server_hold_clients(void);
void nbd_server_admit_clients(void);

bool nbd_server_is_running(void);

#endif
