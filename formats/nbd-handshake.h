/* SPDX-License-Identifier: BSD-3-Clause */
/* Making a connection to an NBD server, and what the server said of its export. */
#ifndef LIVEBLK_FORMATS_NBD_HANDSHAKE_H
#define LIVEBLK_FORMATS_NBD_HANDSHAKE_H

#include <glib.h>
#include <libnbd.h>
#include <stdbool.h>
#include <stdint.h>

#include "formats/nbd-options.h"

/* Longest time one attempt may take, in nanoseconds. */
#define NBD_HANDSHAKE_MAX_NS (INT64_C(30) * 1000000000)

/* What a server said of the export; checked, so that it can be worked with. */
struct nbd_capabilities {
    uint64_t size; /* a multiple of minimum_block */
    bool read_only;
    bool can_flush;
    bool can_fua;
    bool can_trim;
    bool can_zero;
    bool can_fast_zero;
    bool can_cache;
    bool can_multi_conn;
    bool has_extents;         /* base:allocation */
    uint32_t minimum_block;   /* power of 2, at most 64 KiB */
    uint32_t preferred_block; /* power of 2, or 0 */
    uint64_t maximum_block;   /* a multiple of minimum_block, at most 32 MiB */
};

/*
 * Connect and shake hands, until deadline_ns (of block/clock.h) at the latest, save that the
 * resolver may take its own time for a host name. cancel_fd (or -1): the attempt ends with
 * -ECANCELED once it is readable. *lifeline becomes a descriptor that reads end-of-file when the
 * command has ended, -1 if there is none. Returns a handle that is ready, for nbd_disconnect, or
 * NULL with the error set.
 */
struct nbd_handle *nbd_handshake(const struct nbd_options *options, int64_t deadline_ns,
                                 int cancel_fd, struct nbd_capabilities *capabilities,
                                 int *lifeline, GError **error);

/*
 * Fail with -ESTALE and the reason if a server cannot stand in for the one it was at first: it
 * may offer more, but not less. A larger size is allowed (and not used).
 */
int nbd_capabilities_check_same(const struct nbd_capabilities *first,
                                const struct nbd_capabilities *now, GError **error);

/*
 * The library's own words for its last error on this thread, without the name of the function.
 * Valid until the next call of the library.
 */
const char *nbd_library_error(void);

/*
 * Say goodbye, if the connection lives, and close; takes the handle and the lifeline. A command
 * is asked to end, and killed if it has not 10 seconds later. Bounded in time.
 */
void nbd_disconnect(struct nbd_handle *handle, int lifeline);

#endif
