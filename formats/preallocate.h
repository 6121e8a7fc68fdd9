/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A layer between a format and its file that allocates more of the file than is asked for, so that
 * writes seldom wait for the file system, and what is allocated lies together.
 */
#ifndef LIVEBLK_FORMATS_PREALLOCATE_H
#define LIVEBLK_FORMATS_PREALLOCATE_H

#include "block/driver.h"

extern const struct block_driver preallocate_driver;

#endif
