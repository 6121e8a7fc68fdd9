/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: decoding the header and its extensions ("Header", "Header extensions"). Nothing in an
 * image is trusted: each field is checked, and is refused with a sentence of its own.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "block/error.h"
#include "formats/qcow2/header-internal.h"

const char *const qcow2_compression_names[] = {"zlib", "zstd", NULL};

static void clear_extension(gpointer data)
{
    g_free(((struct qcow2_extension *)data)->data);
}

void qcow2_header_clear(struct qcow2_header *header)
{
    g_free(header->backing_file);
    g_free(header->backing_format);
    g_free(header->data_file);
    g_free(header->unknown_fields);
    if (header->unknown) {
        g_array_unref(header->unknown);
    }
    *header = (struct qcow2_header){0};
}

/* What is being decoded. */
struct parser {
    struct qcow2_header *header;
    const uint8_t *head;
    size_t head_bytes;   /* at most a cluster */
    uint64_t file_bytes; /* up to the end of its last cluster */
    uint64_t cluster_size;
    const uint8_t *feature_table;
    uint32_t feature_bytes;
    bool has_bitmaps; /* the extension has been seen */
    GError **error;
};

/* ---- Fields --------------------------------------------------------------------------------- */

static int refuse_encryption(struct parser *parser)
{
    uint32_t method = parser->header->crypt_method;

    return block_error(
        parser->error, ENOTSUP,
        "The image is encrypted (%s), which is not supported; 'qemu-img convert' can "
        "decrypt it into a new image",
        method == 1   ? "AES"
        : method == 2 ? "LUKS"
                      : "in an unknown way");
}

static void parse_places(struct qcow2_header *header, const uint8_t *head)
{
    header->size = get64(head, AT_SIZE);
    header->l1_size = get32(head, AT_L1_SIZE);
    header->l1_offset = get64(head, AT_L1_OFFSET);
    header->reftable_offset = get64(head, AT_REFTABLE_OFFSET);
    header->reftable_clusters = get32(head, AT_REFTABLE_CLUSTERS);
    header->snapshot_count = get32(head, AT_SNAPSHOT_COUNT);
    header->snapshots_offset = header->snapshot_count ? get64(head, AT_SNAPSHOTS_OFFSET) : 0;
    header->backing_offset = get64(head, AT_BACKING_OFFSET);
    header->backing_bytes = header->backing_offset ? get32(head, AT_BACKING_BYTES) : 0;
}

static int parse_basics(struct parser *parser)
{
    struct qcow2_header *header = parser->header;
    const uint8_t *head = parser->head;

    if (parser->head_bytes < QCOW2_HEADER_V2_BYTES || get32(head, AT_MAGIC) != QCOW2_MAGIC) {
        return block_error(parser->error, EINVAL, "Image is not in qcow2 format");
    }
    header->version = get32(head, AT_VERSION);
    if (header->version < 2 || header->version > 3) {
        return block_error(parser->error, ENOTSUP, "Unsupported qcow2 version %" PRIu32,
                           header->version);
    }
    header->cluster_bits = get32(head, AT_CLUSTER_BITS);
    if (header->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
        header->cluster_bits > QCOW2_CLUSTER_BITS_MAX) {
        return block_error(parser->error, EINVAL, "Unsupported cluster size: 2^%u",
                           header->cluster_bits);
    }
    parser->cluster_size = UINT64_C(1) << header->cluster_bits;
    parser->file_bytes =
        align_up(MIN_OF(parser->file_bytes, (uint64_t)INT64_MAX / 2), parser->cluster_size);
    parser->head_bytes = MIN_OF(parser->head_bytes, parser->cluster_size);
    header->crypt_method = get32(head, AT_CRYPT_METHOD);
    if (header->crypt_method) {
        return refuse_encryption(parser);
    }
    parse_places(header, head);
    header->refcount_order = 4;
    header->header_length = QCOW2_HEADER_V2_BYTES;
    return 0;
}

static int parse_length(struct parser *parser)
{
    uint32_t length = get32(parser->head, AT_HEADER_LENGTH);

    parser->header->header_length = length;
    if (length < QCOW2_HEADER_V3_BYTES) {
        return block_error(parser->error, EINVAL,
                           "qcow2 header too short: its length is said to be %" PRIu32 " bytes",
                           length);
    }
    if (length > parser->head_bytes) {
        return block_error(parser->error, EINVAL,
                           "qcow2 header exceeds cluster size: its length is said to be %" PRIu32
                           " bytes",
                           length);
    }
    if (!is_aligned(length, 8)) {
        return block_error(parser->error, EINVAL,
                           "The qcow2 header's length (%" PRIu32 ") is not a multiple of 8",
                           length);
    }
    return 0;
}

static int parse_version_3(struct parser *parser)
{
    struct qcow2_header *header = parser->header;
    const uint8_t *head = parser->head;

    if (parser->head_bytes < QCOW2_HEADER_V3_BYTES) {
        return block_error(parser->error, EINVAL,
                           "qcow2 header too short: the file ends inside it");
    }
    header->incompatible = get64(head, AT_INCOMPATIBLE);
    header->compatible = get64(head, AT_COMPATIBLE);
    header->autoclear = get64(head, AT_AUTOCLEAR);
    header->refcount_order = get32(head, AT_REFCOUNT_ORDER);
    int status = parse_length(parser);
    if (status < 0) {
        return status;
    }
    if (header->header_length > AT_COMPRESSION) {
        header->compression = head[AT_COMPRESSION];
        header->unknown_fields_bytes = header->header_length - AT_UNKNOWN;
        header->unknown_fields = g_memdup2(head + AT_UNKNOWN, header->unknown_fields_bytes);
    }
    return 0;
}

/* ---- Extensions ----------------------------------------------------------------------------- */

static int parse_text(struct parser *parser, char **text, const uint8_t *data, uint32_t bytes,
                      const char *what)
{
    const char *problem = *text                            ? "stands there twice"
                          : bytes == 0                     ? "is empty"
                          : bytes > QCOW2_BACKING_NAME_MAX ? "is too long"
                          : memchr(data, 0, bytes)         ? "holds a zero byte"
                                                           : NULL;

    if (problem) {
        return block_error(parser->error, EINVAL, "The header extension with the %s %s", what,
                           problem);
    }
    *text = g_strndup((const char *)data, bytes);
    return 0;
}

/* What is wrong with the bitmaps extension; NULL: nothing ("Bitmaps extension"). */
static const char *bitmaps_problem(struct parser *parser, const uint8_t *data, uint32_t bytes)
{
    if (parser->has_bitmaps) {
        return "it stands there twice";
    }
    if (bytes != BITMAPS_BYTES) {
        return "its length is not valid";
    }
    uint32_t count = get32(data, 0);
    uint64_t directory_bytes = get64(data, 8), offset = get64(data, 16);
    if (count == 0 || count > QCOW2_BITMAPS_MAX) {
        return "the number of bitmaps is not valid";
    }
    if (get32(data, 4)) {
        return "a reserved field is not zero";
    }
    if (directory_bytes < (uint64_t)count * BITMAP_ENTRY_BYTES) {
        return "the bitmap directory is too small for so many bitmaps";
    }
    if (!offset || !is_aligned(offset, parser->cluster_size) ||
        !range_within(offset, directory_bytes, parser->file_bytes)) {
        return "the bitmap directory is not aligned to a cluster, or not inside the file";
    }
    return NULL;
}

/*
 * Whatever is wrong here is no reason for an image not to open: bitmaps are given up instead.
 * Without the autoclear bit, somebody wrote to the image who does not know bitmaps.
 */
static void parse_bitmaps(struct parser *parser, const uint8_t *data, uint32_t bytes)
{
    struct qcow2_header *header = parser->header;

    if (!(header->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return;
    }
    const char *problem = bitmaps_problem(parser, data, bytes);
    parser->has_bitmaps = true;
    if (problem) {
        g_warning("The bitmaps of a qcow2 image are lost, because the header extension that "
                  "describes them is damaged: %s",
                  problem);
        header->bitmap_count = 0;
        return;
    }
    header->bitmap_count = get32(data, 0);
    header->bitmap_directory_bytes = get64(data, 8);
    header->bitmap_directory_offset = get64(data, 16);
}

static int parse_extension(struct parser *parser, uint32_t type, const uint8_t *data,
                           uint32_t bytes)
{
    struct qcow2_extension unknown = {type, bytes, NULL};

    switch (type) {
    case QCOW2_EXTENSION_BACKING_FORMAT:
        return parse_text(parser, &parser->header->backing_format, data, bytes,
                          "backing file's format");
    case QCOW2_EXTENSION_DATA_FILE:
        return parse_text(parser, &parser->header->data_file, data, bytes, "data file's name");
    case QCOW2_EXTENSION_FEATURE_NAMES:
        parser->feature_table = data;
        parser->feature_bytes = bytes;
        return 0;
    case QCOW2_EXTENSION_BITMAPS:
        parse_bitmaps(parser, data, bytes);
        return 0;
    case QCOW2_EXTENSION_ENCRYPTION: /* there would be clusters that nothing else refers to */
        return block_error(parser->error, EINVAL,
                           "The image has an encryption header, but is not encrypted");
    default:
        unknown.data = g_memdup2(data, bytes);
        g_array_append_val(parser->header->unknown, unknown);
        return 0;
    }
}

/* They end with an extension of type 0, with the backing file's name, or with the cluster. */
static int parse_extensions(struct parser *parser)
{
    uint64_t at = parser->header->header_length, end = parser->head_bytes;

    if (parser->header->backing_offset) {
        end = MIN_OF(end, parser->header->backing_offset);
    }
    while (at + 8 <= end) {
        uint32_t type = get32(parser->head, at), bytes = get32(parser->head, at + 4);

        if (type == QCOW2_EXTENSION_END) {
            return 0;
        }
        if (bytes > end - at - 8) {
            return block_error(
                parser->error, EINVAL,
                "A header extension (0x%08" PRIx32 ") is longer than the space for it", type);
        }
        int status = parse_extension(parser, type, parser->head + at + 8, bytes);
        if (status < 0) {
            return status;
        }
        at += 8 + align_up(bytes, 8);
    }
    return 0;
}

static int parse_backing_name(struct parser *parser)
{
    struct qcow2_header *header = parser->header;
    uint64_t offset = header->backing_offset;
    uint32_t bytes = header->backing_bytes;

    if (!bytes) {
        header->backing_offset = 0;
        return 0;
    }
    if (bytes > QCOW2_BACKING_NAME_MAX) {
        return block_error(parser->error, EINVAL,
                           "Backing file name too long: %" PRIu32 " bytes, at most %d are allowed",
                           bytes, QCOW2_BACKING_NAME_MAX);
    }
    if (offset < header->header_length || !range_within(offset, bytes, parser->head_bytes)) {
        return block_error(parser->error, EINVAL,
                           "Invalid backing file offset: the name is not in the first cluster, "
                           "behind the header");
    }
    if (memchr(parser->head + offset, 0, bytes)) {
        return block_error(parser->error, EINVAL, "The backing file's name holds a zero byte");
    }
    header->backing_file = g_strndup((const char *)parser->head + offset, bytes);
    return 0;
}

/* ---- Features ------------------------------------------------------------------------------- */

/* The image's own name for a feature, fit to be printed; NULL if it has none. */
static char *feature_name(const struct parser *parser, uint8_t type, unsigned bit)
{
    for (uint32_t at = 0; at + FEATURE_BYTES <= parser->feature_bytes; at += FEATURE_BYTES) {
        const uint8_t *entry = parser->feature_table + at;

        if (entry[0] == type && entry[1] == bit && entry[2]) {
            g_autofree char *name = g_strndup((const char *)entry + 2, FEATURE_NAME_BYTES);

            return g_strescape(name, NULL);
        }
    }
    return NULL;
}

static int refuse_features(const struct parser *parser, uint64_t unknown)
{
    g_autoptr(GString) names = g_string_new(NULL);

    for (unsigned bit = 0; bit < 64; bit++) {
        if (unknown >> bit & 1) {
            g_autofree char *name = feature_name(parser, FEATURE_INCOMPATIBLE, bit);

            g_string_append(names, names->len ? ", " : "");
            if (name) {
                g_string_append(names, name);
            } else {
                g_string_append_printf(names, "incompatible feature %u", bit);
            }
        }
    }
    return block_error(parser->error, ENOTSUP, "Unsupported qcow2 feature(s): %s", names->str);
}

/* Extensions of an image that has features we do not know are read for these features' names. */
static int parse_features(struct parser *parser)
{
    uint64_t unknown = parser->header->incompatible & ~(uint64_t)QCOW2_INCOMPATIBLE_KNOWN;
    GError **error = parser->error;

    if (!unknown) {
        return parse_extensions(parser);
    }
    parser->error = NULL;
    parse_extensions(parser);
    parser->error = error;
    return refuse_features(parser, unknown);
}

/* ---- What it all means ---------------------------------------------------------------------- */

static int check_table(struct parser *parser, const char *what, uint64_t offset, uint64_t bytes,
                       uint64_t most)
{
    const char *problem = NULL;

    if (bytes > most) {
        return block_error(parser->error, EFBIG, "%s too large: %" PRIu64 " bytes", what, bytes);
    }
    if (!is_aligned(offset, parser->cluster_size)) {
        problem = "is not aligned to a cluster";
    } else if (bytes && !offset) {
        problem = "is that of the header";
    } else if (!range_within(offset, bytes, parser->file_bytes)) {
        problem = "is not inside the file";
    }
    return problem ? block_error(parser->error, EINVAL,
                                 "%s offset invalid: the place of %" PRIu64
                                 " bytes at offset %" PRIu64 " %s",
                                 what, bytes, offset, problem)
                   : 0;
}

static int check_l1(struct parser *parser)
{
    const struct qcow2_header *header = parser->header;
    bool is_extended = header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    unsigned covered_bits = 2 * header->cluster_bits - (is_extended ? 4 : 3);
    uint64_t needed = div_round_up(header->size, UINT64_C(1) << covered_bits);

    if (header->size > INT64_MAX) {
        return block_error(parser->error, EFBIG, "The disk's size is not valid: %" PRIu64 " bytes",
                           header->size);
    }
    if (header->l1_size < needed) {
        return block_error(parser->error, EINVAL,
                           "L1 table is too small: %" PRIu32 " entries for a disk of %" PRIu64
                           " bytes, which needs %" PRIu64,
                           header->l1_size, header->size, needed);
    }
    return check_table(parser, "Active L1 table", header->l1_offset,
                       header->l1_size * sizeof(uint64_t), QCOW2_L1_BYTES_MAX);
}

static int check_tables(struct parser *parser)
{
    const struct qcow2_header *header = parser->header;
    int status = check_l1(parser);

    if (status == 0 && !header->reftable_clusters) {
        status =
            block_error(parser->error, EINVAL, "Image does not contain a reference count table");
    }
    if (status == 0) {
        status = check_table(parser, "Reference count table", header->reftable_offset,
                             (uint64_t)header->reftable_clusters << header->cluster_bits,
                             QCOW2_REFTABLE_BYTES_MAX);
    }
    if (status == 0 && header->snapshot_count > QCOW2_SNAPSHOTS_MAX) {
        status = block_error(parser->error, EFBIG, "Too many snapshots: %" PRIu32,
                             header->snapshot_count);
    }
    if (status == 0) {
        status = check_table(parser, "Snapshot table", header->snapshots_offset,
                             header->snapshot_count * QCOW2_SNAPSHOT_ENTRY_BYTES,
                             QCOW2_SNAPSHOT_TABLE_MAX);
    }
    return status;
}

/* Fields that exclude or need each other. */
static int check_combinations(struct parser *parser)
{
    const struct qcow2_header *header = parser->header;
    bool has_data_file = header->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE;
    bool has_type = header->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;
    const char *problem = NULL;

    if (header->refcount_order > QCOW2_REFCOUNT_ORDER_MAX) {
        problem = "Reference count entry width too large; may not exceed 64 bits";
    } else if (header->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 &&
               header->cluster_bits < QCOW2_EXTENDED_BITS_MIN) {
        problem = "Extended L2 entries are only supported with cluster sizes of at least 16384 "
                  "bytes";
    } else if (has_type != (header->compression != QCOW2_COMPRESSION_ZLIB)) {
        problem = "The compression type and the feature bit that announces it do not agree";
    } else if (header->compression > QCOW2_COMPRESSION_ZSTD) {
        problem = "Unknown compression type";
    } else if (header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW && !has_data_file) {
        problem = "The image claims to have a raw data file, but has no data file";
    } else if (header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW && header->backing_file) {
        problem = "A raw external data file and a backing file exclude each other";
    } else if (has_data_file && header->snapshot_count) {
        problem = "An external data file and internal snapshots exclude each other";
    }
    return problem ? block_error(parser->error, EINVAL, "%s", problem) : 0;
}

/* The bit says that bitmaps are consistent: without them there is nothing that could be. */
static void settle_bitmaps(struct qcow2_header *header)
{
    if (header->autoclear & QCOW2_AUTOCLEAR_BITMAPS && !header->bitmap_count) {
        header->autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
        header->bitmaps_are_damaged = true;
    }
}

int qcow2_header_parse(struct qcow2_header *header, const uint8_t *head, size_t head_bytes,
                       uint64_t file_bytes, GError **error)
{
    struct parser parser = {
        .header = header,
        .head = head,
        .head_bytes = head_bytes,
        .file_bytes = file_bytes,
        .error = error,
    };

    *header = (struct qcow2_header){0};
    header->unknown = g_array_new(FALSE, FALSE, sizeof(struct qcow2_extension));
    g_array_set_clear_func(header->unknown, clear_extension);
    int status = parse_basics(&parser);
    if (status == 0 && header->version >= 3) {
        status = parse_version_3(&parser);
    }
    if (status == 0) {
        status = parse_features(&parser);
    }
    if (status == 0) {
        status = parse_backing_name(&parser);
    }
    if (status == 0) {
        status = check_combinations(&parser);
    }
    if (status == 0) {
        status = check_tables(&parser);
    }
    if (status == 0) {
        settle_bitmaps(header);
    }
    return status;
}
