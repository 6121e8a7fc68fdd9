/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: encoding and writing the header.
 *
 * Fields and extensions share the first sector, which changes at one instant, unless names or
 * extensions that we do not know are too long for it. The backing file's name may lie anywhere in
 * the first cluster: a new one is put where the old one is not, and is stable before the first
 * sector refers to it.
 */
#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/header-internal.h"

#define SECTOR_BYTES UINT64_C(512)

static const struct {
    enum feature_type type;
    unsigned bit;
    bool is_transient; /* set and cleared in place, when the table is not written */
    const char *name;
} features[] = {
    {FEATURE_INCOMPATIBLE, 0, true, "dirty bit"},
    {FEATURE_INCOMPATIBLE, 1, true, "corrupt bit"},
    {FEATURE_INCOMPATIBLE, 2, false, "external data file"},
    {FEATURE_INCOMPATIBLE, 3, false, "compression type"},
    {FEATURE_INCOMPATIBLE, 4, false, "extended L2 entries"},
    {FEATURE_COMPATIBLE, 0, false, "lazy refcounts"},
    {FEATURE_AUTOCLEAR, 0, false, "bitmaps"},
    {FEATURE_AUTOCLEAR, 1, false, "raw external data"},
};

/* What is being encoded. */
struct writer {
    const struct qcow2_header *header;
    uint8_t *cluster;
    uint64_t cluster_size;
    uint64_t name_bytes; /* of the backing file's name */
    uint64_t at;
    bool is_full;
};

/* ---- Encoding ------------------------------------------------------------------------------- */

static void add_extension(struct writer *writer, uint32_t type, const void *data, uint32_t bytes)
{
    if (writer->is_full || writer->cluster_size - writer->at < 8 + align_up(bytes, 8)) {
        writer->is_full = true;
        return;
    }
    put32(writer->cluster, writer->at, type);
    put32(writer->cluster, writer->at + 4, bytes);
    if (bytes) {
        memcpy(writer->cluster + writer->at + 8, data, bytes);
    }
    writer->at += 8 + align_up(bytes, 8);
}

static void add_text(struct writer *writer, uint32_t type, const char *text)
{
    if (text && *text) {
        add_extension(writer, type, text, (uint32_t)strlen(text));
    }
}

static void add_bitmaps(struct writer *writer)
{
    const struct qcow2_header *header = writer->header;
    uint8_t data[BITMAPS_BYTES] = {0};

    if (header->bitmap_count) {
        put32(data, 0, header->bitmap_count);
        put64(data, 8, header->bitmap_directory_bytes);
        put64(data, 16, header->bitmap_directory_offset);
        add_extension(writer, QCOW2_EXTENSION_BITMAPS, data, sizeof(data));
    }
}

static bool is_in_use(const struct qcow2_header *header, size_t feature)
{
    uint64_t words[] = {header->incompatible, header->compatible, header->autoclear};

    return features[feature].is_transient ||
           words[features[feature].type] >> features[feature].bit & 1;
}

/* Names of all features, or of those in use; false if they do not fit before `end`. */
static bool add_feature_names(struct writer *writer, bool all, uint64_t end)
{
    uint8_t table[G_N_ELEMENTS(features) * FEATURE_BYTES] = {0};
    uint32_t bytes = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(features); i++) {
        if (all || is_in_use(writer->header, i)) {
            table[bytes] = (uint8_t)features[i].type;
            table[bytes + 1] = (uint8_t)features[i].bit;
            memcpy(table + bytes + 2, features[i].name, strlen(features[i].name));
            bytes += FEATURE_BYTES;
        }
    }
    if (!range_within(writer->at, 8 + bytes + 8, end)) {
        return false;
    }
    add_extension(writer, QCOW2_EXTENSION_FEATURE_NAMES, table, bytes);
    return true;
}

/* As many names as there is room for in the first sector; the backing file's is more important. */
static void add_features(struct writer *writer)
{
    uint64_t name = writer->name_bytes;
    uint64_t beside_name = name < SECTOR_BYTES ? SECTOR_BYTES - name : 0;
    uint64_t before_name = name < writer->cluster_size ? writer->cluster_size - name : 0;

    if (!add_feature_names(writer, true, beside_name) &&
        !add_feature_names(writer, false, beside_name)) {
        add_feature_names(writer, false, MIN_OF(before_name, SECTOR_BYTES));
    }
}

/* The fields' end, with those that we do not know ("Additional fields"). */
static uint32_t header_length(const struct qcow2_header *header)
{
    return header->version < 3 ? QCOW2_HEADER_V2_BYTES
                               : MAX_OF((uint32_t)QCOW2_HEADER_OUR_BYTES,
                                        AT_UNKNOWN + header->unknown_fields_bytes);
}

static void put_fields(const struct qcow2_header *header, uint8_t *head)
{
    put32(head, AT_MAGIC, QCOW2_MAGIC);
    put32(head, AT_VERSION, header->version);
    put32(head, AT_CLUSTER_BITS, header->cluster_bits);
    put64(head, AT_SIZE, header->size);
    put32(head, AT_CRYPT_METHOD, header->crypt_method);
    put32(head, AT_L1_SIZE, header->l1_size);
    put64(head, AT_L1_OFFSET, header->l1_offset);
    put64(head, AT_REFTABLE_OFFSET, header->reftable_offset);
    put32(head, AT_REFTABLE_CLUSTERS, header->reftable_clusters);
    put32(head, AT_SNAPSHOT_COUNT, header->snapshot_count);
    put64(head, AT_SNAPSHOTS_OFFSET, header->snapshots_offset);
    if (header->version < 3) {
        return;
    }
    put64(head, AT_INCOMPATIBLE, header->incompatible);
    put64(head, AT_COMPATIBLE, header->compatible);
    put64(head, AT_AUTOCLEAR, header->autoclear);
    put32(head, AT_REFCOUNT_ORDER, header->refcount_order);
    put32(head, AT_HEADER_LENGTH, header_length(header));
    head[AT_COMPRESSION] = (uint8_t)header->compression;
}

static void put_unknown_fields(struct writer *writer)
{
    const struct qcow2_header *header = writer->header;

    if (writer->at > writer->cluster_size) {
        writer->is_full = true;
    } else if (header->version >= 3 && header->unknown_fields_bytes) {
        memcpy(writer->cluster + AT_UNKNOWN, header->unknown_fields, header->unknown_fields_bytes);
    }
}

static void put_extensions(struct writer *writer)
{
    const GArray *unknown = writer->header->unknown;

    add_bitmaps(writer);
    add_text(writer, QCOW2_EXTENSION_BACKING_FORMAT, writer->header->backing_format);
    add_text(writer, QCOW2_EXTENSION_DATA_FILE, writer->header->data_file);
    for (guint i = 0; unknown && i < unknown->len; i++) {
        const struct qcow2_extension *extension =
            &g_array_index(unknown, struct qcow2_extension, i);

        add_extension(writer, extension->type, extension->data, extension->bytes);
    }
    if (writer->header->version >= 3 && !writer->is_full) {
        add_features(writer);
    }
    add_extension(writer, QCOW2_EXTENSION_END, NULL, 0);
}

static int check_text(const char *text, const char *what, GError **error)
{
    size_t bytes = text ? strlen(text) : 0;

    return bytes > QCOW2_BACKING_NAME_MAX
               ? block_error(error, EINVAL, "%s too long: %zu bytes, at most %d are allowed", what,
                             bytes, QCOW2_BACKING_NAME_MAX)
               : 0;
}

/* All but the backing file's name; writer->at is where the extensions end. */
static int encode(struct writer *writer, const struct qcow2_header *header, uint8_t *cluster,
                  GError **error)
{
    int status = check_text(header->backing_file, "Backing file name", error);

    if (status == 0) {
        status = check_text(header->backing_format, "Name of the backing file's format", error);
    }
    if (status == 0) {
        status = check_text(header->data_file, "Data file name", error);
    }
    if (status < 0) {
        return status;
    }
    *writer = (struct writer){
        .header = header,
        .cluster = cluster,
        .cluster_size = UINT64_C(1) << header->cluster_bits,
        .name_bytes = header->backing_file ? strlen(header->backing_file) : 0,
        .at = header_length(header),
    };
    put_fields(header, cluster);
    put_unknown_fields(writer);
    put_extensions(writer);
    if (!writer->is_full && writer->cluster_size - writer->at >= writer->name_bytes) {
        return 0;
    }
    return block_error(error, ENOSPC,
                       "The header does not fit the image's first cluster (%" PRIu64
                       " bytes): names are too long for so small clusters",
                       writer->cluster_size);
}

static void put_name(const struct writer *writer, uint64_t offset)
{
    if (writer->name_bytes) {
        put64(writer->cluster, AT_BACKING_OFFSET, offset);
        put32(writer->cluster, AT_BACKING_BYTES, (uint32_t)writer->name_bytes);
        memcpy(writer->cluster + offset, writer->header->backing_file, writer->name_bytes);
    }
}

int qcow2_header_encode(const struct qcow2_header *header, uint8_t *cluster, GError **error)
{
    struct writer writer;
    int status = encode(&writer, header, cluster, error);

    if (status == 0) {
        put_name(&writer, writer.at);
    }
    return status;
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* Where the name is to be: in the first sector, or where neither the old one nor anything else is;
 * where there is room if there is no such place. */
static uint64_t place_name(const struct writer *writer)
{
    const struct qcow2_header *header = writer->header;
    uint64_t old = header->backing_offset, old_end = old + header->backing_bytes;
    uint64_t place = MAX_OF(writer->at, SECTOR_BYTES);

    if (writer->at + writer->name_bytes <= SECTOR_BYTES) {
        return writer->at;
    }
    if (ranges_overlap(place, writer->name_bytes, old, header->backing_bytes)) {
        place = old_end;
    }
    return range_within(place, writer->name_bytes, writer->cluster_size) ? place : writer->at;
}

/*
 * Write the encoded cluster: first the name, if it is in a place of its own, then what refers to
 * it. Then what is left of an old name is cleared.
 */
static int write_cluster(struct qcow2 *q, const struct writer *writer, uint64_t name)
{
    uint64_t first = align_up(writer->at, SECTOR_BYTES), bytes = writer->name_bytes;
    uint64_t old_end = q->header.backing_offset + q->header.backing_bytes;
    uint64_t end = align_up(MAX_OF(name + bytes, old_end), SECTOR_BYTES);
    int status = 0;

    if (bytes && name < first && name + bytes > first) {
        first = align_up(name + bytes, SECTOR_BYTES); /* no place of its own */
    } else if (bytes && name >= first) {
        status = qcow2_write_metadata(q, writer->cluster + name, bytes, name);
        if (status == 0) {
            status = block_node_flush(q->file);
        }
    }
    if (status == 0) {
        status = qcow2_write_metadata(q, writer->cluster, first, 0);
    }
    if (status == 0) {
        status = block_node_flush(q->file);
    }
    if (status == 0 && first < end) {
        qcow2_write_metadata(q, writer->cluster + first, end - first, first); /* only to be tidy */
    }
    return status;
}

/* *is_begun: something may have been written. */
static int write_whole(struct qcow2 *q, bool *is_begun, GError **error)
{
    AUTO_FREE uint8_t *cluster = block_node_alloc_buffer(q->file, q->cluster_size);
    struct writer writer;

    if (!cluster) {
        return block_error(error, ENOMEM, "Not enough memory for the header");
    }
    memset(cluster, 0, q->cluster_size);
    int status = encode(&writer, &q->header, cluster, error);
    if (status < 0) {
        return status;
    }
    uint64_t place = place_name(&writer);
    put_name(&writer, place);
    *is_begun = true;
    status = write_cluster(q, &writer, place);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write the header");
    }
    q->header.backing_offset = writer.name_bytes ? place : 0;
    q->header.backing_bytes = (uint32_t)writer.name_bytes;
    q->header.bitmaps_are_damaged = false;
    return 0;
}

int qcow2_header_write(struct qcow2 *q, GError **error)
{
    bool is_begun = false;

    return write_whole(q, &is_begun, error);
}

/* Write what held before a change that failed, if the file may say something else. */
static void stop_unless_written(struct qcow2 *q, bool is_needed)
{
    if (is_needed && qcow2_header_write(q, NULL) < 0) {
        qcow2_stop(q, "its header could not be written, so that it is not known what it says");
    }
}

int qcow2_header_replace(struct qcow2 *q, const struct qcow2_header *wanted, GError **error)
{
    struct qcow2_header before = q->header;
    bool is_begun = false;

    q->header = *wanted;
    int status = write_whole(q, &is_begun, error);
    if (status < 0) {
        q->header = before;
    }
    stop_unless_written(q, status < 0 && is_begun);
    return status;
}

static void set_bitmaps(struct qcow2_header *header, uint32_t count, uint64_t offset,
                        uint64_t bytes)
{
    header->bitmap_count = count;
    header->bitmap_directory_offset = offset;
    header->bitmap_directory_bytes = bytes;
    header->autoclear = count ? header->autoclear | QCOW2_AUTOCLEAR_BITMAPS
                              : header->autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
}

int qcow2_header_set_bitmaps(struct qcow2 *q, uint32_t count, uint64_t offset, uint64_t bytes,
                             GError **error)
{
    struct qcow2_header *header = &q->header;
    uint32_t old_count = header->bitmap_count;
    uint64_t old_offset = header->bitmap_directory_offset;
    uint64_t old_bytes = header->bitmap_directory_bytes;
    bool is_begun = false;

    set_bitmaps(header, count, offset, bytes);
    int status = write_whole(q, &is_begun, error);
    if (status < 0) {
        set_bitmaps(header, old_count, old_offset, old_bytes);
    }
    stop_unless_written(q, status < 0 && is_begun);
    return status;
}

int qcow2_header_write_fields(struct qcow2 *q, size_t from, size_t to)
{
    uint8_t fields[SECTOR_BYTES] = {0};

    put_fields(&q->header, fields);
    int status = qcow2_write_metadata(q, fields + from, to - from, from);
    return status == 0 ? block_node_flush(q->file) : status;
}

int qcow2_header_switch(struct qcow2 *q, const struct qcow2_header *before, size_t from, size_t to)
{
    int status = qcow2_header_write_fields(q, from, to);

    if (status < 0) {
        q->header = *before;
        if (qcow2_header_write_fields(q, from, to) < 0) {
            qcow2_stop(q, "its header could not be written, so that it is not known which tables "
                          "count");
        }
    }
    return status;
}

/* Only the word of the features, so that nothing else can be torn. */
int qcow2_set_incompatible(struct qcow2 *q, uint64_t set, uint64_t clear, GError **error)
{
    SCOPE_LOCK(&q->header_lock);
    uint64_t wanted = (q->header.incompatible | set) & ~clear;
    uint64_t word = htobe64(wanted);
    int status = qcow2_write_metadata(q, &word, sizeof(word), AT_INCOMPATIBLE);

    if (status == 0) {
        status = block_node_flush(q->file);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write the header");
    }
    q->header.incompatible = wanted;
    return 0;
}
