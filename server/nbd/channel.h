/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The two ends of a client's socket, in the clear or inside TLS. One thread may receive while
 * another sends.
 */
#ifndef LIVEBLK_SERVER_NBD_CHANNEL_H
#define LIVEBLK_SERVER_NBD_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#include "server/tls.h"

struct nbd_channel {
    int fd;                  /* a connected, blocking stream socket; owned */
    struct tls_session *tls; /* NULL: in the clear */
};

/*
 * Receive at least `least` and at most `most` bytes; blocks. Returns how many; 0 at the end of the
 * stream before the first one; a negative errno, -ECONNRESET if it ends within them.
 */
ssize_t nbd_channel_receive(struct nbd_channel *channel, void *buffer, size_t least, size_t most);

/*
 * Send what the system takes at once, which inside TLS is nothing; the parts become what is left.
 * Returns 0 or a negative errno.
 */
int nbd_channel_try_send(struct nbd_channel *channel, struct iovec **parts, size_t *count);

/* Send all of the parts, which are changed; blocks. Returns 0 or a negative errno. */
int nbd_channel_send(struct nbd_channel *channel, struct iovec *parts, size_t count);

/*
 * Make it fail and end for whoever sends or receives, now and later. Any thread, at any time until
 * it is closed.
 */
void nbd_channel_shut_down(struct nbd_channel *channel);

/* Say good-bye inside TLS, unless the client is deaf, and close. */
void nbd_channel_close(struct nbd_channel *channel);

#endif
