/* SPDX-License-Identifier: BSD-3-Clause */
/* What decoding and encoding the header of a qcow2 image share ("Header", "Feature name table"). */
#ifndef LIVEBLK_FORMATS_QCOW2_HEADER_INTERNAL_H
#define LIVEBLK_FORMATS_QCOW2_HEADER_INTERNAL_H

#include <string.h>

#include "formats/qcow2/internal.h"

/* Offsets of fields. */
enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_BACKING_OFFSET = 8,
    AT_BACKING_BYTES = 16,
    AT_CLUSTER_BITS = 20,
    AT_SIZE = 24,
    AT_CRYPT_METHOD = 32,
    AT_L1_SIZE = 36,
    AT_L1_OFFSET = 40,
    AT_REFTABLE_OFFSET = 48,
    AT_REFTABLE_CLUSTERS = 56,
    AT_SNAPSHOT_COUNT = 60,
    AT_SNAPSHOTS_OFFSET = 64,
    AT_INCOMPATIBLE = 72,
    AT_COMPATIBLE = 80,
    AT_AUTOCLEAR = 88,
    AT_REFCOUNT_ORDER = 96,
    AT_HEADER_LENGTH = 100,
    AT_COMPRESSION = 104,
    AT_UNKNOWN = 105,
};

/* The bitmaps extension, and an entry of the bitmap directory without its name. */
#define BITMAPS_BYTES      24
#define BITMAP_ENTRY_BYTES 24

/* An entry of the feature name table. */
#define FEATURE_BYTES      48
#define FEATURE_NAME_BYTES 46
enum feature_type { FEATURE_INCOMPATIBLE, FEATURE_COMPATIBLE, FEATURE_AUTOCLEAR };

static inline uint32_t get32(const uint8_t *head, size_t at)
{
    uint32_t value;

    memcpy(&value, head + at, sizeof(value));
    return be32toh(value);
}

static inline uint64_t get64(const uint8_t *head, size_t at)
{
    uint64_t value;

    memcpy(&value, head + at, sizeof(value));
    return be64toh(value);
}

static inline void put32(uint8_t *head, size_t at, uint32_t value)
{
    value = htobe32(value);
    memcpy(head + at, &value, sizeof(value));
}

static inline void put64(uint8_t *head, size_t at, uint64_t value)
{
    value = htobe64(value);
    memcpy(head + at, &value, sizeof(value));
}

#endif
