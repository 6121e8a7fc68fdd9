/* SPDX-License-Identifier: BSD-3-Clause */
/* The files drive-backup and drive-mirror write: made or opened for a job. */
#ifndef LIVEBLK_SERVER_TARGET_FILE_H
#define LIVEBLK_SERVER_TARGET_FILE_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "server/qmp/schema.h"

/* The type of the argument `mode`. */
extern const struct qmp_type new_image_mode_type;

/* The arguments for target_file_from_arguments. */
/* clang-format off */
#define DRIVE_TARGET_MEMBERS                                                                       \
    {"target", &qmp_type_string, .doc = "The file to write."},                                     \
    {"format", &qmp_type_string, .optional = true, .default_text = "raw",                          \
     .doc = "The target's format."},                                                               \
    {"mode", &new_image_mode_type, .optional = true, .default_text = "absolute-paths",             \
     .doc = "Whether to create it."}
/* clang-format on */

struct target_file {
    const char *filename; /* all texts are borrowed */
    const char *format;
    const char *node_name; /* NULL: made up */
    uint64_t length;
    bool create; /* else it is there */
    /* What is created gets the backing file of this disk, and stands on the same node; NULL, or
     * the disk has none: it gets none. Nobody changes the disk's meanwhile. */
    struct block_node *beside;
    bool guards_format; /* raw_guard_format() */
    bool cache_direct;
    bool cache_no_flush;
    /* What is created gets this node as its backing file, instead; but it is opened without it, or
     * without whatever it names if it is there: somebody else attaches it. NULL: no such thing. */
    struct block_node *overlaid;
    bool drops_discards; /* discard=ignore */
    bool *is_made;       /* set as soon as there is a file that was not there; or NULL */
    enum block_detect_zeroes detect_zeroes;
};

/* What a checked argument `mode`, or NULL, means. */
bool target_file_is_created(json_t *mode);

/* From checked arguments: `target`, `format` and `mode`, for a disk of this length. */
struct target_file target_file_from_arguments(json_t *arguments, uint64_t length);

/*
 * Create and open it, data being a struct target_file: what the jobs call open_target. A new
 * reference, or NULL with the error set. May block.
 */
struct block_node *target_file_open(void *data, GError **error);

#endif
