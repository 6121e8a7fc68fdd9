/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "copy-before-write": a filter that keeps the contents its `file` has at the moment it
 * is opened. What is overwritten from then on goes to its `target` first. A snapshot-access node
 * above it (formats/snapshot-access.h) reads them.
 *
 * Every write of the data under `file` counts, whether it goes through this node or past it: the
 * filter's point in time stands on the first node below that is no filter, so that it stays right
 * wherever a guest is moved.
 */
#ifndef LIVEBLK_FORMATS_COPY_BEFORE_WRITE_H
#define LIVEBLK_FORMATS_COPY_BEFORE_WRITE_H

#include "block/driver.h"
#include "block/point-in-time.h"

extern const struct block_driver copy_before_write_driver;

/* The point in time of a node, its own as long as it is open; NULL if it has another driver. */
struct point_in_time *copy_before_write_point(struct block_node *node);

#endif
