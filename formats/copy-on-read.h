/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "copy-on-read": a filter above a chain. What is read through it, and the top layer
 * below it has from its backing file, is kept in the top layer, in whole clusters.
 */
#ifndef LIVEBLK_FORMATS_COPY_ON_READ_H
#define LIVEBLK_FORMATS_COPY_ON_READ_H

#include "block/driver.h"

extern const struct block_driver copy_on_read_driver;

#endif
