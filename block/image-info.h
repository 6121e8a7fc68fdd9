/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What an image is, as JSON: QMP's ImageInfo and SnapshotInfo, which `liveblk info` prints, too.
 * Names that an image has in it may be any bytes; here they are valid UTF-8.
 */
#ifndef LIVEBLK_BLOCK_IMAGE_INFO_H
#define LIVEBLK_BLOCK_IMAGE_INFO_H

#include <jansson.h>

#include "block/node.h"

/*
 * ImageInfo of a node. with_backing: that of its backing file nested in it as "backing-image", and
 * so on. What cannot be found out is left out. A new reference. May block on storage; any thread
 * but the main thread of a server.
 */
json_t *block_image_info(struct block_node *node, bool with_backing);

/* SnapshotInfo: a new reference. */
json_t *block_snapshot_info_json(const struct block_snapshot_info *info);

#endif
