/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets that listen: of NBD servers, and of monitors. */
#ifndef LIVEBLK_SERVER_LISTENER_H
#define LIVEBLK_SERVER_LISTENER_H

#include <glib.h>
#include <stdbool.h>

#include "server/unix-socket.h"

/* Where to listen. */
enum socket_address_kind {
    SOCKET_ADDRESS_UNIX,  /* path; the socket has mode 0600 and is gone with the listener */
    SOCKET_ADDRESS_INET,  /* host and port, all addresses that the name has */
    SOCKET_ADDRESS_VSOCK, /* cid and port */
    SOCKET_ADDRESS_FD,    /* a listening socket, which is taken over */
};

struct socket_address {
    enum socket_address_kind kind;
    const char *path;
    const char *host; /* ""; all of the machine */
    const char *port; /* a number or a service; vsock: a number. "0": the system chooses */
    bool no_ipv4, no_ipv6;
    bool is_numeric;    /* the host is a number: nobody is asked for a name */
    unsigned last_port; /* the first free port up to this one is taken; 0: only `port` */
    const char *cid;    /* a number */
    int fd;
};

/* An address that is listened on: one socket, or several for a name with several addresses. */
struct listener {
    GArray *sockets; /* of int, non-blocking */
    struct unix_listener unix_socket;
};

/* Listen. Texts of the address need not outlive the call. Returns a negative errno with the error
 * set. */
int listener_open(const struct socket_address *address, struct listener *listener, GError **error);

/* Stop: the sockets are closed, and a UNIX one is gone. */
void listener_close(struct listener *listener);

#endif
