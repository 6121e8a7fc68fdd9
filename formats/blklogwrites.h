/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A filter that logs all changes of its `file` in its `log`, in the order in which they reach the
 * disk, so that every state a crash could have left can be made again (formats/log-writes.h).
 */
#ifndef LIVEBLK_FORMATS_BLKLOGWRITES_H
#define LIVEBLK_FORMATS_BLKLOGWRITES_H

#include "block/driver.h"

extern const struct block_driver blklogwrites_driver;

#endif
