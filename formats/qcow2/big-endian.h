/* SPDX-License-Identifier: BSD-3-Clause */
/* Numbers of up to 8 bytes in records whose fields are of many lengths, at any address. */
#ifndef LIVEBLK_FORMATS_QCOW2_BIG_ENDIAN_H
#define LIVEBLK_FORMATS_QCOW2_BIG_ENDIAN_H

#include <glib.h>
#include <stdint.h>

static inline uint64_t get_be(const uint8_t *bytes, unsigned count)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < count; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static inline void append_be(GByteArray *array, uint64_t value, unsigned count)
{
    for (unsigned i = count; i-- > 0;) {
        uint8_t byte = (uint8_t)(value >> (8 * i));

        g_byte_array_append(array, &byte, 1);
    }
}

#endif
