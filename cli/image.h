/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images on their own: the subcommands that open an image file without a server. They are the only
 * part of the program that uses the block core. Some of them work on disks of a running server,
 * too, through its admin socket.
 */
#ifndef LIVEBLK_CLI_IMAGE_H
#define LIVEBLK_CLI_IMAGE_H

#include <glib.h>
#include <jansson.h>

#include "block/node.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/progress.h"

/* How an image is to be opened. */
struct image_options {
    const char *format; /* NULL: by its first bytes */
    bool writable;
    bool force_share; /* look at an image that somebody has open */
    bool for_check;
    bool without_backing;
    /* For the error if somebody has it open: that --force-share would do, and the subcommand that
     * does the same with a disk of a server (NULL: none does). */
    bool can_share;
    const char *served_command;
};

/* Open an image; NULL with the error set. A new reference. */
struct block_node *image_open(const char *path, const struct image_options *options,
                              GError **error);

/* If the error is that somebody has the image open: say who, if that can be found out, and what to
 * do.
 */
void image_explain_lock(const char *path, const struct image_options *options, GError **error);

/* The options that all subcommands for images have. */
extern const struct option_group image_option_group;

/* Whether --image-references was given. */
bool image_has_policy(void);

/*
 * Register the drivers and say what images may refer to, before anything of the block core is
 * used. Returns a negative errno with the error set if --image-references makes no sense.
 */
int image_init(GError **error);

/* "file", or "host_device" for the path of a block device: the driver to open it with. */
const char *image_file_driver(const char *path);

/* ---- Disks that are served (image-served.c) -------------------------------------------------- */

/*
 * Whether an argument names a disk of a server rather than a file: with --admin it does, and where
 * there is no such file, if it could be the name of a disk.
 */
bool image_is_served(const struct invocation *invocation, const char *name);

/* Connect to the server that has it; NULL with the error set. */
struct client *image_connect(const struct invocation *invocation, const char *name, GError **error);

/* ImageInfo of a disk of a server, with its backing images nested; a new reference. */
json_t *image_query(struct client *client, const char *device, GError **error);

/*
 * The sentence that says which server of this machine serves a file, and which subcommand would
 * do there what was asked for (NULL: none); NULL if no server tells that it does. The caller frees.
 */
char *image_find_server(const char *path, const char *served_command);

/* ---- Progress (image-progress.c) ------------------------------------------------------------- */

/* What long work shows on a terminal. SIGINT and SIGTERM make it stop where it safely can. */
struct image_progress {
    const char *what; /* "checking" */
    bool in_steps;    /* what it counts is no bytes */
    struct progress progress;
    struct progress_painter painter;
    int64_t painted_ns;
};
void image_progress_begin(struct image_progress *progress);
/* A block_progress; data is the struct. */
bool image_progress_show(void *data, uint64_t done, uint64_t total);
void image_progress_end(struct image_progress *progress);

/* ---- What is printed ------------------------------------------------------------------------- */

/* A table of SnapshotInfo objects; nothing if there are none. */
void image_print_snapshots(const json_t *snapshots);

#endif
