/* SPDX-License-Identifier: BSD-3-Clause */
/* Alignment to powers of two. */
#ifndef LIVEBLK_BLOCK_ALIGN_H
#define LIVEBLK_BLOCK_ALIGN_H

#include <stdbool.h>
#include <stdint.h>

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

#define MIN_OF(a, b)                                                                               \
    ({                                                                                             \
        __typeof__(a) min_a_ = (a);                                                                \
        __typeof__(b) min_b_ = (b);                                                                \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                         \
    })

#define MAX_OF(a, b)                                                                               \
    ({                                                                                             \
        __typeof__(a) max_a_ = (a);                                                                \
        __typeof__(b) max_b_ = (b);                                                                \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                         \
    })

/* True for 1, 2, 4, ...; false for 0. */
static inline bool is_power_of_2(uint64_t n)
{
    return n && !(n & (n - 1));
}

/* The alignment must be a power of two in all of these. */
static inline bool is_aligned(uint64_t n, uint64_t alignment)
{
    return !(n & (alignment - 1));
}

static inline uint64_t align_down(uint64_t n, uint64_t alignment)
{
    return n & ~(alignment - 1);
}

/* Wraps to 0 if the result does not fit: bound n first when it is not trusted. */
static inline uint64_t align_up(uint64_t n, uint64_t alignment)
{
    return (n + alignment - 1) & ~(alignment - 1);
}

/* n / divisor rounded up, without overflow. */
static inline uint64_t div_round_up(uint64_t n, uint64_t divisor)
{
    return n / divisor + !!(n % divisor);
}

/* Base-2 logarithm of a power of two. */
static inline unsigned log2_of(uint64_t power_of_2)
{
    return (unsigned)__builtin_ctzll(power_of_2);
}

#endif
