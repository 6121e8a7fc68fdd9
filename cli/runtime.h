/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the sockets of servers are when nobody says otherwise, and the way to a server. */
#ifndef LIVEBLK_CLI_RUNTIME_H
#define LIVEBLK_CLI_RUNTIME_H

#include <glib.h>
#include <stdbool.h>

#include "cli/client.h"
#include "cli/command.h"

/*
 * The directory for our sockets: $XDG_RUNTIME_DIR/liveblk, or /run/liveblk for root where that
 * is not set (or not root's). Created with mode 0700 if need be. The caller frees; NULL: error.
 */
char *runtime_directory_make(GError **error);

/* Paths of the sockets of a server of this name in such a directory; the caller frees. */
char *runtime_admin_path(const char *directory, const char *name);
char *runtime_nbd_path(const char *directory, const char *name);

/*
 * The NBD socket of the server with this admin socket, if 'liveblk serve' has put it at its usual
 * place and it is served; else NULL. The caller frees.
 */
char *runtime_nbd_socket_of(const char *admin);

/* The URI of an export behind a UNIX socket; the caller frees. */
char *nbd_unix_uri(bool tls, const char *socket, const char *export);

/* Something listens on this UNIX socket. */
bool socket_is_served(const char *path);

/* The admin sockets that are served in the default directories; free with g_strfreev. */
char **runtime_admin_sockets(void);

/*
 * The admin socket of the server the user means: --admin, else LIVEBLK_ADMIN, else the only one
 * that runs in the default directories. The caller frees; NULL: error.
 */
char *runtime_find_admin(const struct invocation *invocation, GError **error);

/* Connect to it. */
struct client *connect_to_server(const struct invocation *invocation, GError **error);

#endif
