/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Scratch: where old data goes while a point in time is read. A sparse file without a name, which
 * vanishes with the process that uses it however that ends.
 */
#ifndef LIVEBLK_FORMATS_SCRATCH_H
#define LIVEBLK_FORMATS_SCRATCH_H

#include <glib.h>
#include <stdint.h>

#include "block/node.h"

/*
 * A new anonymous node on an unlinked file of this length in a directory; NULL: $TMPDIR, or
 * /var/tmp. Returns a reference, or NULL with the error set. Any thread; may block.
 */
struct block_node *scratch_open(const char *directory, uint64_t length, GError **error);

#endif
