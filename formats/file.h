/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files and host block devices: the drivers `file` and `host_device`, which differ only in name.
 * Registered by formats_register.
 */
#ifndef LIVEBLK_FORMATS_FILE_H
#define LIVEBLK_FORMATS_FILE_H

#include "block/driver.h"

extern const struct block_driver file_driver;
extern const struct block_driver host_device_driver;

#endif
