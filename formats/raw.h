/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver `raw`: a disk stored byte for byte, or a part of one. See formats/formats.h. */
#ifndef LIVEBLK_FORMATS_RAW_H
#define LIVEBLK_FORMATS_RAW_H

#include "block/driver.h"

extern const struct block_driver raw_driver;

/*
 * The format of a raw node was guessed from its first bytes: a guest that could make them those of
 * another format would choose what the host opens next time. From now on writes that would do so
 * fail with -EPERM. No request is in flight.
 */
void raw_guard_format(struct block_node *node);

/* Whether that was asked for, of a node of any driver. */
bool raw_format_is_guarded(const struct block_node *node);

#endif
