/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver of remote exports: see formats/nbd.c. Registered by formats_register. */
#ifndef LIVEBLK_FORMATS_NBD_H
#define LIVEBLK_FORMATS_NBD_H

#include "block/driver.h"

extern const struct block_driver nbd_driver;

#endif
