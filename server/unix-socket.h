/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * UNIX stream sockets by path, of any length: a path too long for a socket address is reached
 * through /proc/self/fd of its directory (only the last component must stay below about 80 bytes).
 */
#ifndef LIVEBLK_SERVER_UNIX_SOCKET_H
#define LIVEBLK_SERVER_UNIX_SOCKET_H

#include <glib.h>
#include <sys/types.h>

struct unix_listener {
    int fd; /* listening, non-blocking */
    int directory_fd;
    char *name; /* in that directory; NULL: it is somebody else's */
    dev_t device;
    ino_t inode;
};

/*
 * Listen on a path. The socket has mode 0600 (less the umask) from the moment it exists. A stale
 * socket, one that refuses connections, is replaced. One that somebody serves is refused with
 * EADDRINUSE, and so is anything that is no socket.
 *
 * Of several processes that start on one path at the same time one wins: looking, removing the
 * stale socket, binding and listening happen under a lock file, PATH.lock, which is gone
 * afterwards. (Without it, one could remove as stale what the other has just bound.) Binding
 * itself never replaces anything, so that programs which know nothing of the lock are safe too.
 *
 * Returns a negative errno. No thread is started, no signal mask or umask changed.
 */
int unix_socket_listen(const char *path, struct unix_listener *listener, GError **error);

/* Take a stream socket over that listens already. Its path, if it has one, is left alone. */
int unix_socket_adopt(int fd, struct unix_listener *listener, GError **error);

/* Stop listening; remove the socket, unless something else is at its path by now. */
void unix_socket_unlisten(struct unix_listener *listener);

/* Connect. Returns the descriptor, blocking, close-on-exec; or a negative errno. */
int unix_socket_connect(const char *path, GError **error);

#endif
