/* SPDX-License-Identifier: BSD-3-Clause */
/* TCP connections of which more is said than libnbd takes. */
#ifndef LIVEBLK_FORMATS_NBD_TCP_H
#define LIVEBLK_FORMATS_NBD_TCP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/options.h"

/* Whether some of the host's addresses are not to be used, so that libnbd cannot connect. */
bool nbd_tcp_is_choosy(const struct block_address *server);

/*
 * Connect to the first of the allowed addresses that answers: a socket, which is the caller's;
 * -ETIMEDOUT at the deadline (CLOCK_MONOTONIC), -ECANCELED when cancel_fd is readable (-1: never),
 * or another negative errno; without a GError. Looking up the name takes as long as it does.
 */
int nbd_tcp_connect(const struct block_address *server, const char *port, int64_t deadline_ns,
                    int cancel_fd);

/* Let the kernel look now and then whether the other side of a silent connection is there. */
void nbd_tcp_keep_alive(int fd);

#endif
