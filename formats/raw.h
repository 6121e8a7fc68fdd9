/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver `raw`: a disk stored byte for byte, or a part of one. See formats/formats.h. */
#ifndef LIVEBLK_FORMATS_RAW_H
#define LIVEBLK_FORMATS_RAW_H

#include "block/driver.h"

extern const struct block_driver raw_driver;

#endif
