/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images on their own: the subcommands that open an image file without a server. They are the only
 * part of the program that uses the block core.
 */
#ifndef LIVEBLK_CLI_IMAGE_H
#define LIVEBLK_CLI_IMAGE_H

#include <glib.h>
#include <jansson.h>

#include "block/node.h"
#include "cli/command.h"

/* How an image is to be opened. */
struct image_options {
    const char *format; /* NULL: by its first bytes */
    bool writable;
    bool force_share; /* look at an image that somebody has open */
    bool for_check;
    bool without_backing;
};

/* Open an image; NULL with the error set. A new reference. */
struct block_node *image_open(const char *path, const struct image_options *options,
                              GError **error);

/* Register the drivers, once, before anything of the block core is used. */
void image_init(void);

/* Progress on a terminal: a block_progress whose data is this. */
struct image_progress {
    const char *what; /* "checking" */
    int64_t painted_ns;
    bool is_painted;
};
bool image_progress_show(void *data, uint64_t done, uint64_t total);
void image_progress_end(struct image_progress *progress);

/* Seconds since 1970 as "2026-11-27 19:30:05"; the caller frees. */
char *image_date(int64_t seconds);

#endif
