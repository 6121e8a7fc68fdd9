/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes, devices and their statistics as JSON. All results are new references. */
#ifndef LIVEBLK_SERVER_QUERY_H
#define LIVEBLK_SERVER_QUERY_H

#include <jansson.h>

#include "block/device.h"

/* BlockDeviceInfo of a node; device: whose throttling it shows, or NULL; is_flat: without its
 * backing files' images. May block on storage. */
json_t *query_node(struct block_node *node, struct block_device *device, bool is_flat);
/* BlockInfo. */
json_t *query_device(struct block_device *device);
/* BlockStats of a device, or of a node (which counts no requests, only the highest offset). */
json_t *query_device_statistics(struct block_device *device);
json_t *query_node_statistics(struct block_node *node);

#define QUERY_QDEV_PREFIX "/machine/peripheral/"

/* The path that stands for a device in `qdev`; the caller frees. */
char *query_qdev(const struct block_device *device);

#endif
