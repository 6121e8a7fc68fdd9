/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/zero.h"

#include <stdint.h>

#include "block/align.h"

/* Two words at any address, which every 64-bit processor tests at once. */
typedef uint64_t word_pair __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t loose_word __attribute__((aligned(1), may_alias));

/* Bytes tested between two branches: enough to keep the loads busy. */
#define STRIDE 128

static inline bool stride_is_zero(const uint8_t *bytes)
{
    const word_pair *pairs = (const word_pair *)bytes;
    word_pair any =
        (pairs[0] | pairs[1] | pairs[2] | pairs[3]) | (pairs[4] | pairs[5] | pairs[6] | pairs[7]);

    return !(any[0] | any[1]);
}

static bool short_is_zero(const uint8_t *data, size_t bytes)
{
    uint64_t any = 0;
    size_t i = 0;

    for (; i + sizeof(loose_word) <= bytes; i += sizeof(loose_word)) {
        any |= *(const loose_word *)(data + i);
    }
    for (; i < bytes; i++) {
        any |= data[i];
    }
    return !any;
}

bool buffer_is_zero(const void *buffer, size_t bytes)
{
    const uint8_t *data = buffer;

    if (bytes < STRIDE) {
        return short_is_zero(data, bytes);
    }
    if (data[0] || data[bytes / 2] || data[bytes - 1]) {
        return false;
    }
    for (size_t i = 0; i + STRIDE <= bytes; i += STRIDE) {
        if (!stride_is_zero(data + i)) {
            return false;
        }
    }
    return stride_is_zero(data + bytes - STRIDE); /* the rest, together with what was seen */
}

size_t buffer_zero_run(const void *buffer, size_t bytes, size_t block_size, bool *is_zero)
{
    const uint8_t *data = buffer;
    size_t run = MIN_OF(block_size, bytes);

    *is_zero = buffer_is_zero(data, run);
    while (run < bytes) {
        size_t block = MIN_OF(block_size, bytes - run);

        if (buffer_is_zero(data + run, block) != *is_zero) {
            break;
        }
        run += block;
    }
    return run;
}
