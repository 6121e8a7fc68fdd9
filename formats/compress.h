/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A filter that makes every write a compressed one. Clusters that are written to in part are read,
 * changed and written back as a whole.
 */
#ifndef LIVEBLK_FORMATS_COMPRESS_H
#define LIVEBLK_FORMATS_COMPRESS_H

#include "block/driver.h"

extern const struct block_driver compress_driver;

#endif
