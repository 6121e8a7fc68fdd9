/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver "qcow2": images that grow, with backing files, snapshots and compression. */
#ifndef LIVEBLK_FORMATS_QCOW2_QCOW2_H
#define LIVEBLK_FORMATS_QCOW2_QCOW2_H

#include "block/driver.h"

extern const struct block_driver qcow2_driver;

#endif
