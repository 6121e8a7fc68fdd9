/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checked arithmetic. Every size that comes from a file, an option or a peer is added and
 * multiplied with these before it is used.
 */
#ifndef LIVEBLK_BLOCK_CHECKED_H
#define LIVEBLK_BLOCK_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

/* Store a + b in *result. Returns false, with *result undefined, if it does not fit. */
static inline bool checked_add_u64(uint64_t a, uint64_t b, uint64_t *result)
{
    return !__builtin_add_overflow(a, b, result);
}

/* Store a * b in *result. Returns false, with *result undefined, if it does not fit. */
static inline bool checked_mul_u64(uint64_t a, uint64_t b, uint64_t *result)
{
    return !__builtin_mul_overflow(a, b, result);
}

/* True if the range [offset, offset + bytes) lies inside [0, limit), without overflowing. */
static inline bool range_within(uint64_t offset, uint64_t bytes, uint64_t limit)
{
    return offset <= limit && bytes <= limit - offset;
}

/*
 * True if two ranges share a byte. An empty range shares none. The caller has checked that
 * neither range overflows.
 */
static inline bool ranges_overlap(uint64_t a_offset, uint64_t a_bytes, uint64_t b_offset,
                                  uint64_t b_bytes)
{
    return a_bytes && b_bytes && a_offset < b_offset + b_bytes && b_offset < a_offset + a_bytes;
}

#endif
