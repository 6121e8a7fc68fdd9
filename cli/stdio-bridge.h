/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Standard input and output as one stream socket: what serves sockets then serves who started us.
 * Neither of the two is made non-blocking, as others may have them, too.
 */
#ifndef LIVEBLK_CLI_STDIO_BRIDGE_H
#define LIVEBLK_CLI_STDIO_BRIDGE_H

#include <glib.h>
#include <stdbool.h>

/*
 * Once in a process. has_signals: keys of a terminal send signals as they did; otherwise they are
 * input until stdio_bridge_end. Returns the socket, the caller's, or a negative errno.
 */
int stdio_bridge_start(bool has_signals, GError **error);

/* When the socket is closed: what came from it is written, as far as that takes no more than a
 * second. Does nothing if it was not started. */
void stdio_bridge_end(void);

#endif
