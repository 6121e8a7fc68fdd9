/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a tracked disk lies on, seen from outside: its own file, block device or remote disk, and
 * the layers below, such as backing files and external data files. Who wrote there while the disk
 * was not served is found out by that.
 *
 * Any thread; all but the lists' making may block on storage.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_LAYERS_H
#define LIVEBLK_BLOCK_TRACKING_LAYERS_H

#include <glib.h>
#include <stdbool.h>

#include "block/node.h"
#include "block/tracking-format.h"

struct tracking_file;

/*
 * The identity of the file or block device at this path, or of the remote disk with this URI; all
 * zero if path is NULL, or nothing is known of what is there.
 */
void tracking_identify(const char *path, struct tracking_identity *identity);

/*
 * Whether it can be the same that it was, apart from its contents. What had a name then must have
 * it now. False with the error set: what it was and is.
 */
bool tracking_is_same(const struct tracking_identity *before, const struct tracking_identity *now,
                      bool same_boot, GError **error);

/*
 * Bring the file at this path to stable storage, with its time of modification. 0 if it is no file,
 * or one that may not be opened: then a power loss may make it look older than it is said to be.
 */
int tracking_sync_path(const char *path, GError **error);

/*
 * What lies under a root besides the file at its bottom that is the disk's own, each layer before
 * those below it: a list of struct tracking_layer, not identified yet. What has no name is left
 * out. The caller unrefs it.
 */
GPtrArray *tracking_layers_list(struct block_node *root);

/* Fill in their identities as they are now. */
void tracking_layers_identify(GPtrArray *layers);

/* As tracking_sync_path, for each. */
int tracking_layers_sync(const GPtrArray *layers, GError **error);

/* Whether they are what they were, contents and all. False with the error set: which is not. */
bool tracking_layers_match(const GPtrArray *before, const GPtrArray *now, bool same_boot,
                           GError **error);

/* Put them in the file's directory, durably, in the place of those there. Takes a reference. */
int tracking_layers_store(struct tracking_file *file, GPtrArray *layers, GError **error);

#endif
