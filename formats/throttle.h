/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A filter whose requests wait by the limits of a throttle group (block/throttle-group.h), together
 * with those of all other nodes in the group.
 */
#ifndef LIVEBLK_FORMATS_THROTTLE_H
#define LIVEBLK_FORMATS_THROTTLE_H

#include "block/driver.h"

extern const struct block_driver throttle_driver;

#endif
