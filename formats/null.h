/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The drivers `null-co` and `null-aio`: disks that take every write and forget it, for measuring
 * what is above them. They differ only in name. Registered by formats_register.
 */
#ifndef LIVEBLK_FORMATS_NULL_H
#define LIVEBLK_FORMATS_NULL_H

#include "block/driver.h"

extern const struct block_driver null_co_driver;
extern const struct block_driver null_aio_driver;

#endif
