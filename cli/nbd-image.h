/* SPDX-License-Identifier: BSD-3-Clause */
/* The image that liveblk-nbd serves, as its command line describes it. */
#ifndef LIVEBLK_CLI_NBD_IMAGE_H
#define LIVEBLK_CLI_NBD_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"

struct nbd_image {
    const char *file;   /* a path, an NBD URI or "json:{...}"; or: */
    bool is_options;    /* it is "key=value,...", as for a node */
    const char *format; /* NULL: it is found out */
    bool read_only;
    bool is_temporary;    /* what is written goes to an overlay without a name */
    const char *snapshot; /* the internal snapshot to show: an ID, a name or "snapshot.id=..."; or
                             NULL */
    uint64_t offset;      /* of the disk in what the image shows */
    bool direct, no_flush;
    const char *aio;   /* NULL: the default. We have I/O on threads, whatever was asked for */
    const char *cache; /* the mode's name, for a child alone; NULL: the default */
    bool discard, has_discard; /* it was said */
    const char *detect_zeroes; /* off, on, unmap */
};

/*
 * Open it: a new reference to the node to serve; NULL with the error set. A format that we do not
 * have is left to a child, qemu-nbd. Not the main thread.
 */
struct block_node *nbd_image_open(const struct nbd_image *image, GError **error);

#endif
