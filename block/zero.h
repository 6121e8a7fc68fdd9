/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LIVEBLK_BLOCK_ZERO_H
#define LIVEBLK_BLOCK_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/* True if all bytes are zero (also for no bytes). Looks at the ends and the middle first. */
bool buffer_is_zero(const void *buffer, size_t bytes);

/*
 * The length of the first run in the buffer of blocks that are all zero, or all not, in units of
 * block_size (a power of two; the last block may be short). *is_zero tells which.
 */
size_t buffer_zero_run(const void *buffer, size_t bytes, size_t block_size, bool *is_zero);

#endif
