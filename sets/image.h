/* SPDX-License-Identifier: BSD-3-Clause */
/* Images in a set, and those that a restore makes: they are created, opened, and safe when done. */
#ifndef LIVEBLK_SETS_IMAGE_H
#define LIVEBLK_SETS_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "sets/manifest.h"

struct image_plan {
    const char *path;
    bool is_raw;
    uint64_t length;
    const char *backing;        /* a name recorded as it is; NULL: none */
    const char *backing_format; /* with backing */
};

/* A new image, in the place of what was there, and open for writing; it takes no space for zeroes.
 * The backing file is not opened. NULL with the error set, and nothing left: also if somebody else
 * is writing what is there, which stays. */
struct block_node *image_make(const struct image_plan *plan, GError **error);

/* Close it; all that was written is safe then, but for the name. Takes the reference. */
int image_finish(struct block_node *node, const char *path, GError **error);

/* Of a finished image: write its checksums to a file beside it, and what a manifest says of both
 * (image_bytes, data_bytes, zero_bytes, sums). */
int image_describe(const char *path, const struct sums *sums, const char *sums_path,
                   struct manifest_disk *disk, GError **error);

#endif
