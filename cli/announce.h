/* SPDX-License-Identifier: BSD-3-Clause */
/* Telling on stdout where a server that is just being started can be reached, once it can. */
#ifndef LIVEBLK_CLI_ANNOUNCE_H
#define LIVEBLK_CLI_ANNOUNCE_H

#include <glib.h>
#include <stdbool.h>

#include "server/unix-socket.h"

struct announcement {
    const char *name;   /* of the server */
    const char *admin;  /* absolute path */
    const char *socket; /* absolute path of the NBD socket; NULL: TCP or somebody else's */
    struct unix_listener *listener; /* on that socket; NULL without one */
    const char *host;               /* with port; NULL: not TCP */
    const char *port;
    bool tls;
    bool json;
    /* What else that process does when all is printed, before it ends; NULL: nothing. */
    void (*then)(const char *admin, void *data);
    void *then_data;
};

/*
 * Start a process that waits until this very process, which is to become the server by exec,
 * answers on its admin socket; it then prints and ends. If this process ends before that, it
 * removes the NBD socket and ends without a word.
 */
bool announce_when_ready(const struct announcement *announcement, GError **error);

#endif
