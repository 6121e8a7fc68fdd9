/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is in a qcow2 image: the format's numbers, and its header and snapshots, decoded. Specified
 * in QEMU's docs/interop/qcow2.rst; comments name its sections.
 */
#ifndef LIVEBLK_FORMATS_QCOW2_FORMAT_H
#define LIVEBLK_FORMATS_QCOW2_FORMAT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/align.h"

/* ---- The format's numbers ("Header") -------------------------------------------------------- */

#define QCOW2_MAGIC                0x514649fbu /* "QFI\xfb" */

#define QCOW2_HEADER_V2_BYTES      72
#define QCOW2_HEADER_V3_BYTES      104
#define QCOW2_HEADER_OUR_BYTES     112 /* with the compression type, as we write it */

#define QCOW2_CLUSTER_BITS_MIN     9
#define QCOW2_CLUSTER_BITS_MAX     21
#define QCOW2_EXTENDED_BITS_MIN    14
#define QCOW2_REFCOUNT_ORDER_MAX   6
#define QCOW2_BACKING_NAME_MAX     1023
#define QCOW2_L1_BYTES_MAX         (32 * MIB) /* as QEMU: no image needs more */
#define QCOW2_REFTABLE_BYTES_MAX   (8 * MIB)
#define QCOW2_SNAPSHOTS_MAX        65536
#define QCOW2_SNAPSHOT_TABLE_MAX   (64 * MIB)   /* as QEMU */
#define QCOW2_SNAPSHOT_ENTRY_BYTES UINT64_C(40) /* without its texts and extra data */
#define QCOW2_BITMAPS_MAX          65535
#define QCOW2_SUBCLUSTERS          32

/* Features, by bit. */
enum {
    QCOW2_INCOMPATIBLE_DIRTY = 1 << 0,
    QCOW2_INCOMPATIBLE_CORRUPT = 1 << 1,
    QCOW2_INCOMPATIBLE_DATA_FILE = 1 << 2,
    QCOW2_INCOMPATIBLE_COMPRESSION = 1 << 3,
    QCOW2_INCOMPATIBLE_EXTENDED_L2 = 1 << 4,
    QCOW2_INCOMPATIBLE_KNOWN = (1 << 5) - 1,
    QCOW2_COMPATIBLE_LAZY_REFCOUNTS = 1 << 0,
    QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
    QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1,
    QCOW2_AUTOCLEAR_KNOWN = (1 << 2) - 1,
};

/* Header extensions. */
#define QCOW2_EXTENSION_END            0x00000000u
#define QCOW2_EXTENSION_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXTENSION_FEATURE_NAMES  0x6803f857u
#define QCOW2_EXTENSION_BITMAPS        0x23852875u
#define QCOW2_EXTENSION_ENCRYPTION     0x0537be77u
#define QCOW2_EXTENSION_DATA_FILE      0x44415441u

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD };
extern const char *const qcow2_compression_names[];

/* Entries of tables ("Cluster mapping"). */
#define QCOW2_COPIED        (UINT64_C(1) << 63) /* the refcount is exactly one */
#define QCOW2_COMPRESSED    (UINT64_C(1) << 62)
#define QCOW2_ZERO          (UINT64_C(1) << 0) /* not with extended entries */
#define QCOW2_OFFSET_MASK   (((UINT64_C(1) << 56) - 1) & ~UINT64_C(511))
#define QCOW2_L1_RESERVED   (~(QCOW2_OFFSET_MASK | QCOW2_COPIED))
#define QCOW2_HOST_MAX      (UINT64_C(1) << 56) /* host offsets are below this */
#define QCOW2_REFTABLE_MASK (~UINT64_C(511))

/* The header, decoded. Strings and lists are owned by it. */
struct qcow2_extension {
    uint32_t type;
    uint32_t bytes;
    uint8_t *data;
};

struct qcow2_header {
    uint32_t version;
    unsigned cluster_bits;
    uint64_t size; /* of the disk; bytes */
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible;
    uint64_t compatible;
    uint64_t autoclear;
    unsigned refcount_order;
    uint32_t header_length;
    enum qcow2_compression compression;

    uint64_t backing_offset; /* where the backing file's name is in the image; 0: nowhere */
    uint32_t backing_bytes;
    char *backing_file;   /* NULL: none */
    char *backing_format; /* NULL: not said */
    char *data_file;      /* NULL: not said */

    /* The bitmaps extension; bitmap_count 0: there is none that counts. */
    bool bitmaps_are_damaged; /* on disk: the header has to be written before anything else is */
    uint32_t bitmap_count;
    uint64_t bitmap_directory_bytes;
    uint64_t bitmap_directory_offset;

    GArray *unknown; /* struct qcow2_extension, kept when the header is written again */
    /* Header fields beyond the compression type, kept when it is written again. */
    uint8_t *unknown_fields;
    uint32_t unknown_fields_bytes;
};

/* A snapshot table entry ("Snapshots"). */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    char *id;
    char *name;
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes; /* length of the disk then */
    uint64_t icount;     /* UINT64_MAX: not recorded */
    uint8_t *extra;      /* beyond the fields above; kept */
    uint32_t extra_bytes;
};

#endif
