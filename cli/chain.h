/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The chain of a disk of a server: its image and the backing files below. Users name images by
 * their files, as they know them; the server's commands get the names of nodes, which cannot mean
 * two things.
 */
#ifndef LIVEBLK_CLI_CHAIN_H
#define LIVEBLK_CLI_CHAIN_H

#include <glib.h>
#include <jansson.h>

#include "cli/client.h"

/*
 * The images of the chain that begins with a device or a node, the uppermost first, without
 * filters: a list of objects with node-name, format, file, virtual-size, actual-size (where it is
 * known) and read-only. A new reference; NULL: error.
 */
json_t *chain_query(struct client *client, const char *disk, GError **error);

/*
 * The node of the image in a chain that a word names: "node:NAME", a file, or the name of a node.
 * Borrowed from the chain. NULL: there is none, or it could be two; the error shows the chain.
 */
const char *chain_find(const json_t *chain, const char *disk, const char *image, GError **error);

/* The file of the uppermost image; borrowed. */
const char *chain_top_file(const json_t *chain);

#endif
