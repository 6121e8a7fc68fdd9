/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/qcow2-builder.h"

#include <endian.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "block/align.h"
#include "block/zero.h"

/* Of the header ("Header"). */
#define HEADER_BYTES_V2        72
#define HEADER_BYTES_V3        112
#define INCOMPATIBLE_DATA_FILE (UINT64_C(1) << 2)
#define INCOMPATIBLE_EXTENDED  (UINT64_C(1) << 4)
#define AUTOCLEAR_BITMAPS      (UINT64_C(1) << 0)
#define AUTOCLEAR_RAW          (UINT64_C(1) << 1)

#define OFFSET_MASK            (((UINT64_C(1) << 56) - 1) & ~UINT64_C(511))

struct snapshot {
    char *id, *name;
    uint64_t l1_offset;
};

struct bitmap {
    char *name;
    unsigned granularity_bits;
    bool preallocated;
};

struct qcow2_builder {
    struct qcow2_description is;
    uint64_t cluster_size;
    unsigned entry_bytes;
    uint64_t table_guest; /* bytes of the disk that an L2 table covers */
    uint32_t l1_entries;
    uint64_t l1_offset;
    uint64_t compressed_at, compressed_end; /* room behind compressed data */

    GByteArray *bytes;
    GArray *refcounts; /* uint64_t for each cluster */
    GArray *snapshots; /* struct snapshot */
    GArray *bitmaps;   /* struct bitmap */

    /* When it is built. */
    uint64_t reftable_offset, reftable_clusters;
    uint64_t snapshots_offset;
    uint64_t bitmaps_offset, bitmaps_bytes;
    bool is_built;
};

/* ---- Bytes ---------------------------------------------------------------------------------- */

uint64_t qcow2_builder_get64(struct qcow2_builder *builder, uint64_t offset)
{
    uint64_t value;

    g_assert_cmpuint(offset + sizeof(value), <=, builder->bytes->len);
    memcpy(&value, builder->bytes->data + offset, sizeof(value));
    return be64toh(value);
}

void qcow2_builder_put64(struct qcow2_builder *builder, uint64_t offset, uint64_t value)
{
    g_assert_cmpuint(offset + sizeof(value), <=, builder->bytes->len);
    value = htobe64(value);
    memcpy(builder->bytes->data + offset, &value, sizeof(value));
}

uint32_t qcow2_builder_get32(struct qcow2_builder *builder, uint64_t offset)
{
    uint32_t value;

    g_assert_cmpuint(offset + sizeof(value), <=, builder->bytes->len);
    memcpy(&value, builder->bytes->data + offset, sizeof(value));
    return be32toh(value);
}

void qcow2_builder_put32(struct qcow2_builder *builder, uint64_t offset, uint32_t value)
{
    g_assert_cmpuint(offset + sizeof(value), <=, builder->bytes->len);
    value = htobe32(value);
    memcpy(builder->bytes->data + offset, &value, sizeof(value));
}

static void put16(struct qcow2_builder *builder, uint64_t offset, uint16_t value)
{
    value = htobe16(value);
    memcpy(builder->bytes->data + offset, &value, sizeof(value));
}

static void put_text(struct qcow2_builder *builder, uint64_t offset, const char *text)
{
    g_assert_cmpuint(offset + strlen(text), <=, builder->bytes->len);
    memcpy(builder->bytes->data + offset, text, strlen(text));
}

uint8_t *qcow2_builder_bytes(struct qcow2_builder *builder, uint64_t *length)
{
    *length = builder->bytes->len;
    return builder->bytes->data;
}

void qcow2_builder_resize(struct qcow2_builder *builder, uint64_t length)
{
    guint before = builder->bytes->len;

    g_byte_array_set_size(builder->bytes, (guint)length);
    if (length > before) {
        memset(builder->bytes->data + before, 0, length - before);
    }
}

/* ---- Clusters ------------------------------------------------------------------------------- */

uint64_t qcow2_builder_allocate(struct qcow2_builder *builder, uint64_t clusters)
{
    uint64_t offset = builder->bytes->len, one = 1;

    qcow2_builder_resize(builder, offset + clusters * builder->cluster_size);
    for (uint64_t i = 0; i < clusters; i++) {
        g_array_append_val(builder->refcounts, one);
    }
    return offset;
}

void qcow2_builder_reference(struct qcow2_builder *builder, uint64_t offset, uint64_t bytes,
                             int amount)
{
    for (uint64_t i = offset / builder->cluster_size;
         i <= (offset + bytes - 1) / builder->cluster_size; i++) {
        g_array_index(builder->refcounts, uint64_t, i) += (uint64_t)(int64_t)amount;
    }
}

/* ---- The disk ------------------------------------------------------------------------------- */

uint64_t qcow2_builder_l1_at(struct qcow2_builder *builder, uint64_t guest)
{
    g_assert_cmpuint(guest / builder->table_guest, <, builder->l1_entries);
    return builder->l1_offset + guest / builder->table_guest * sizeof(uint64_t);
}

static uint64_t table_of(struct qcow2_builder *builder, uint64_t l1_entry_at)
{
    return qcow2_builder_get64(builder, l1_entry_at) & OFFSET_MASK;
}

uint64_t qcow2_builder_l2_at(struct qcow2_builder *builder, uint64_t guest)
{
    uint64_t at = qcow2_builder_l1_at(builder, guest);
    uint64_t index = guest % builder->table_guest / builder->cluster_size;

    if (!table_of(builder, at)) {
        g_assert_false(builder->is_built);
        uint64_t table = qcow2_builder_allocate(builder, 1);

        qcow2_builder_put64(builder, at, table | QCOW2_BUILT_COPIED);
    } else if (!builder->is_built && !(qcow2_builder_get64(builder, at) & QCOW2_BUILT_COPIED)) {
        /* A snapshot has it, too: a copy is needed. */
        uint64_t old = table_of(builder, at), table = qcow2_builder_allocate(builder, 1);

        memcpy(builder->bytes->data + table, builder->bytes->data + old, builder->cluster_size);
        qcow2_builder_reference(builder, old, 1, -1);
        qcow2_builder_put64(builder, at, table | QCOW2_BUILT_COPIED);
    }
    return table_of(builder, at) + index * builder->entry_bytes;
}

/* A guest cluster gets another entry; what it had is given up. */
static void set_entry(struct qcow2_builder *builder, uint64_t guest, uint64_t descriptor,
                      uint64_t bitmap)
{
    uint64_t at = qcow2_builder_l2_at(builder, guest);
    uint64_t old = qcow2_builder_get64(builder, at) & OFFSET_MASK;

    if (old && !builder->is.data_file) {
        g_assert_false(qcow2_builder_get64(builder, at) & QCOW2_BUILT_COMPRESSED);
        qcow2_builder_reference(builder, old, 1, -1);
    }
    qcow2_builder_put64(builder, at, descriptor);
    if (builder->is.extended_l2) {
        qcow2_builder_put64(builder, at + 8, bitmap);
    }
}

uint64_t qcow2_builder_data(struct qcow2_builder *builder, uint64_t guest, uint8_t fill)
{
    uint64_t bitmap = builder->is.extended_l2 ? UINT32_MAX : 0;

    if (builder->is.data_file) {
        uint64_t at = guest & ~(builder->cluster_size - 1);

        set_entry(builder, guest, at | QCOW2_BUILT_COPIED, bitmap);
        return at;
    }
    qcow2_builder_l2_at(builder, guest); /* tables come first */
    uint64_t host = qcow2_builder_allocate(builder, 1);
    memset(builder->bytes->data + host, fill, builder->cluster_size);
    set_entry(builder, guest, host | QCOW2_BUILT_COPIED, bitmap);
    return host;
}

void qcow2_builder_zero(struct qcow2_builder *builder, uint64_t guest, bool preallocated)
{
    uint64_t zero = builder->is.extended_l2 ? 0 : QCOW2_BUILT_ZERO;
    uint64_t bitmap = builder->is.extended_l2 ? (uint64_t)UINT32_MAX << 32 : 0;

    if (!preallocated) {
        set_entry(builder, guest, zero, bitmap);
        return;
    }
    uint64_t host = qcow2_builder_data(builder, guest, 0xee);
    uint64_t at = qcow2_builder_l2_at(builder, guest);
    qcow2_builder_put64(builder, at, host | QCOW2_BUILT_COPIED | zero);
    if (builder->is.extended_l2) {
        qcow2_builder_put64(builder, at + 8, bitmap);
    }
}

void qcow2_builder_subclusters(struct qcow2_builder *builder, uint64_t guest, uint8_t fill,
                               uint32_t allocated, uint32_t zero)
{
    qcow2_builder_data(builder, guest, fill);
    qcow2_builder_put64(builder, qcow2_builder_l2_at(builder, guest) + 8,
                        (uint64_t)zero << 32 | allocated);
}

static uint64_t deflate_fill(struct qcow2_builder *builder, uint8_t fill, uint8_t *to)
{
    g_autofree uint8_t *cluster = g_malloc(builder->cluster_size);
    z_stream stream = {
        .next_in = cluster,
        .avail_in = (uInt)builder->cluster_size,
        .next_out = to,
        .avail_out = (uInt)builder->cluster_size,
    };

    memset(cluster, fill, builder->cluster_size);
    g_assert_cmpint(
        deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 8, Z_DEFAULT_STRATEGY), ==,
        Z_OK);
    g_assert_cmpint(deflate(&stream, Z_FINISH), ==, Z_STREAM_END);
    deflateEnd(&stream);
    return builder->cluster_size - stream.avail_out;
}

uint64_t qcow2_builder_compressed(struct qcow2_builder *builder, uint64_t guest, uint8_t fill)
{
    g_autofree uint8_t *data = g_malloc(builder->cluster_size);
    uint64_t bytes = deflate_fill(builder, fill, data);
    unsigned offset_bits = 62 - (builder->is.cluster_bits - 8);

    qcow2_builder_l2_at(builder, guest);
    if (builder->compressed_end - builder->compressed_at < bytes) {
        builder->compressed_at = qcow2_builder_allocate(builder, 1);
        builder->compressed_end = builder->compressed_at + builder->cluster_size;
    } else {
        qcow2_builder_reference(builder, builder->compressed_at, 1, 1);
    }
    uint64_t host = builder->compressed_at;
    memcpy(builder->bytes->data + host, data, bytes);
    builder->compressed_at += bytes;
    uint64_t sectors = (host + bytes - 1) / 512 - host / 512;
    set_entry(builder, guest, QCOW2_BUILT_COMPRESSED | sectors << offset_bits | host, 0);
    return host;
}

/* ---- Snapshots ------------------------------------------------------------------------------ */

/* All that an L2 table refers to has one more user, and may not be written in place any more. */
static void share_table(struct qcow2_builder *builder, uint64_t table)
{
    unsigned offset_bits = 62 - (builder->is.cluster_bits - 8);

    for (uint64_t at = table; at < table + builder->cluster_size; at += builder->entry_bytes) {
        uint64_t entry = qcow2_builder_get64(builder, at);

        if (entry & QCOW2_BUILT_COMPRESSED) {
            uint64_t host = entry & ((UINT64_C(1) << offset_bits) - 1);
            uint64_t sectors = (entry & (QCOW2_BUILT_COMPRESSED - 1)) >> offset_bits;

            qcow2_builder_reference(builder, host, (sectors + 1) * 512 - host % 512, 1);
        } else if (entry & OFFSET_MASK) {
            qcow2_builder_reference(builder, entry & OFFSET_MASK, 1, 1);
            qcow2_builder_put64(builder, at, entry & ~QCOW2_BUILT_COPIED);
        }
    }
}

uint64_t qcow2_builder_snapshot(struct qcow2_builder *builder, const char *id, const char *name)
{
    uint64_t bytes = builder->l1_entries * sizeof(uint64_t);
    struct snapshot snapshot = {g_strdup(id), g_strdup(name), 0};

    snapshot.l1_offset =
        qcow2_builder_allocate(builder, div_round_up(bytes, builder->cluster_size));
    for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
        uint64_t table = table_of(builder, builder->l1_offset + at);

        if (table) {
            share_table(builder, table);
            qcow2_builder_reference(builder, table, 1, 1);
            qcow2_builder_put64(builder, builder->l1_offset + at, table);
            qcow2_builder_put64(builder, snapshot.l1_offset + at, table);
        }
    }
    g_array_append_val(builder->snapshots, snapshot);
    return snapshot.l1_offset;
}

static void build_snapshots(struct qcow2_builder *builder)
{
    uint64_t bytes = 0;

    for (guint i = 0; i < builder->snapshots->len; i++) {
        const struct snapshot *snapshot = &g_array_index(builder->snapshots, struct snapshot, i);

        bytes += 40 + 16 + align_up(strlen(snapshot->id) + strlen(snapshot->name), 8);
    }
    if (!bytes) {
        return;
    }
    builder->snapshots_offset =
        qcow2_builder_allocate(builder, div_round_up(bytes, builder->cluster_size));
    uint64_t at = builder->snapshots_offset;
    for (guint i = 0; i < builder->snapshots->len; i++) {
        const struct snapshot *snapshot = &g_array_index(builder->snapshots, struct snapshot, i);
        size_t id_bytes = strlen(snapshot->id), name_bytes = strlen(snapshot->name);

        qcow2_builder_put64(builder, at, snapshot->l1_offset);
        qcow2_builder_put32(builder, at + 8, builder->l1_entries);
        put16(builder, at + 12, (uint16_t)id_bytes);
        put16(builder, at + 14, (uint16_t)name_bytes);
        qcow2_builder_put32(builder, at + 36, 16);
        qcow2_builder_put64(builder, at + 48, builder->is.size);
        put_text(builder, at + 56, snapshot->id);
        put_text(builder, at + 56 + id_bytes, snapshot->name);
        at += 56 + align_up(id_bytes + name_bytes, 8);
    }
}

/* ---- Bitmaps -------------------------------------------------------------------------------- */

void qcow2_builder_bitmap(struct qcow2_builder *builder, const char *name,
                          unsigned granularity_bits, bool preallocated)
{
    struct bitmap bitmap = {g_strdup(name), granularity_bits, preallocated};

    g_array_append_val(builder->bitmaps, bitmap);
}

/* Its table and data; returns where the table is. */
static uint64_t build_bitmap(struct qcow2_builder *builder, const struct bitmap *bitmap,
                             uint32_t *entries)
{
    uint64_t bits = div_round_up(builder->is.size, UINT64_C(1) << bitmap->granularity_bits);
    uint64_t bytes = div_round_up(bits, 8);

    *entries = (uint32_t)div_round_up(bytes, builder->cluster_size);
    uint64_t table = qcow2_builder_allocate(
        builder, div_round_up(*entries * sizeof(uint64_t), builder->cluster_size));
    for (uint32_t i = 0; i < *entries; i++) {
        uint64_t entry = 1; /* all ones */

        if (bitmap->preallocated) {
            entry = qcow2_builder_allocate(builder, 1);
            memset(builder->bytes->data + entry, 0xff,
                   MIN_OF(builder->cluster_size, bytes - i * builder->cluster_size));
        }
        qcow2_builder_put64(builder, table + i * sizeof(uint64_t), entry);
    }
    if (bitmap->preallocated && bits % 8) { /* bits beyond the disk's end are 0 */
        uint64_t last = qcow2_builder_get64(builder, table + (*entries - 1) * sizeof(uint64_t));

        builder->bytes->data[last + (bytes - 1) % builder->cluster_size] =
            (uint8_t)((1u << bits % 8) - 1);
    }
    return table;
}

static void build_bitmaps(struct qcow2_builder *builder)
{
    for (guint i = 0; i < builder->bitmaps->len; i++) {
        const struct bitmap *bitmap = &g_array_index(builder->bitmaps, struct bitmap, i);

        builder->bitmaps_bytes += 24 + align_up(strlen(bitmap->name), 8);
    }
    if (!builder->bitmaps_bytes) {
        return;
    }
    builder->bitmaps_offset = qcow2_builder_allocate(
        builder, div_round_up(builder->bitmaps_bytes, builder->cluster_size));
    uint64_t at = builder->bitmaps_offset;
    for (guint i = 0; i < builder->bitmaps->len; i++) {
        const struct bitmap *bitmap = &g_array_index(builder->bitmaps, struct bitmap, i);
        uint32_t entries;

        qcow2_builder_put64(builder, at, build_bitmap(builder, bitmap, &entries));
        qcow2_builder_put32(builder, at + 8, entries);
        qcow2_builder_put32(builder, at + 12, 2); /* auto */
        builder->bytes->data[at + 16] = 1;        /* a dirty bitmap */
        builder->bytes->data[at + 17] = (uint8_t)bitmap->granularity_bits;
        put16(builder, at + 18, (uint16_t)strlen(bitmap->name));
        put_text(builder, at + 24, bitmap->name);
        at += 24 + align_up(strlen(bitmap->name), 8);
    }
}

/* ---- Refcounts ------------------------------------------------------------------------------ */

static unsigned refcount_order(const struct qcow2_builder *builder)
{
    return (unsigned)builder->is.refcount_order;
}

static uint64_t refcounts_per_block(const struct qcow2_builder *builder)
{
    return builder->cluster_size * 8 >> refcount_order(builder);
}

/* The block that has the refcount of a cluster, in the built image. */
static uint64_t block_of(struct qcow2_builder *builder, uint64_t cluster)
{
    uint64_t index = cluster / refcounts_per_block(builder);

    return qcow2_builder_get64(builder, builder->reftable_offset + index * sizeof(uint64_t));
}

void qcow2_builder_set_refcount(struct qcow2_builder *builder, uint64_t offset, uint64_t refcount)
{
    uint64_t cluster = offset / builder->cluster_size;
    uint64_t bits = UINT64_C(1) << refcount_order(builder);
    uint64_t at = cluster % refcounts_per_block(builder) * bits;
    uint8_t *block = builder->bytes->data + block_of(builder, cluster);

    for (uint64_t bit = 0; bit < bits; bit++) {
        /* Whole bytes are big-endian; parts of one begin with the least significant bit. */
        uint64_t place = bits >= 8 ? at + (bits - 8 - bit / 8 * 8) + bit % 8 : at + bit;
        uint8_t mask = (uint8_t)(1u << place % 8);

        block[place / 8] = (uint8_t)((block[place / 8] & ~mask) | (refcount >> bit & 1 ? mask : 0));
    }
}

uint64_t qcow2_builder_refcount(struct qcow2_builder *builder, uint64_t offset)
{
    uint64_t cluster = offset / builder->cluster_size, value = 0;
    uint64_t bits = UINT64_C(1) << refcount_order(builder);
    uint64_t at = cluster % refcounts_per_block(builder) * bits;
    const uint8_t *block = builder->bytes->data + block_of(builder, cluster);

    for (uint64_t bit = 0; bit < bits; bit++) {
        uint64_t place = bits >= 8 ? at + (bits - 8 - bit / 8 * 8) + bit % 8 : at + bit;

        value |= (uint64_t)(block[place / 8] >> place % 8 & 1) << bit;
    }
    return value;
}

static void build_refcounts(struct qcow2_builder *builder)
{
    uint64_t blocks = 0, clusters;

    do { /* they describe themselves, too */
        builder->reftable_clusters =
            div_round_up(MAX_OF(blocks, UINT64_C(1)) * sizeof(uint64_t), builder->cluster_size);
        clusters = builder->refcounts->len + builder->reftable_clusters + blocks;
        if (blocks * refcounts_per_block(builder) >= clusters) {
            break;
        }
        blocks++;
    } while (true);
    builder->reftable_offset = qcow2_builder_allocate(builder, builder->reftable_clusters);
    for (uint64_t i = 0; i < blocks; i++) {
        qcow2_builder_put64(builder, builder->reftable_offset + i * sizeof(uint64_t),
                            qcow2_builder_allocate(builder, 1));
    }
    for (guint i = 0; i < builder->refcounts->len; i++) {
        qcow2_builder_set_refcount(builder, i * builder->cluster_size,
                                   g_array_index(builder->refcounts, uint64_t, i));
    }
}

/* ---- The header ----------------------------------------------------------------------------- */

/* Returns where the next one goes. */
static uint64_t put_extension(struct qcow2_builder *builder, uint64_t at, uint32_t type,
                              const void *data, size_t bytes)
{
    qcow2_builder_put32(builder, at, type);
    qcow2_builder_put32(builder, at + 4, (uint32_t)bytes);
    memcpy(builder->bytes->data + at + 8, data, bytes);
    return at + 8 + align_up(bytes, 8);
}

static void put_version_3(struct qcow2_builder *builder)
{
    const struct qcow2_description *is = &builder->is;

    qcow2_builder_put64(builder, 72,
                        is->incompatible | (is->data_file ? INCOMPATIBLE_DATA_FILE : 0) |
                            (is->extended_l2 ? INCOMPATIBLE_EXTENDED : 0));
    qcow2_builder_put64(builder, 80, is->compatible);
    qcow2_builder_put64(builder, 88,
                        is->autoclear | (builder->bitmaps->len ? AUTOCLEAR_BITMAPS : 0) |
                            (is->data_file_is_raw ? AUTOCLEAR_RAW : 0));
    qcow2_builder_put32(builder, 96, refcount_order(builder));
    qcow2_builder_put32(builder, 100, HEADER_BYTES_V3);
}

static void put_extensions(struct qcow2_builder *builder)
{
    const struct qcow2_description *is = &builder->is;
    uint64_t at = is->version >= 3 ? HEADER_BYTES_V3 : HEADER_BYTES_V2;

    if (is->backing_file) {
        at = put_extension(builder, at, 0xe2792aca, "raw", 3);
    }
    if (is->data_file) {
        at = put_extension(builder, at, 0x44415441, is->data_file, strlen(is->data_file));
    }
    if (builder->bitmaps->len) {
        uint64_t data[3] = {htobe64((uint64_t)builder->bitmaps->len << 32),
                            htobe64(builder->bitmaps_bytes), htobe64(builder->bitmaps_offset)};

        at = put_extension(builder, at, 0x23852875, data, sizeof(data));
    }
    at += 8; /* the end */
    if (is->backing_file) {
        put_text(builder, at, is->backing_file);
        qcow2_builder_put64(builder, 8, at);
        qcow2_builder_put32(builder, 16, (uint32_t)strlen(is->backing_file));
    }
}

static void build_header(struct qcow2_builder *builder)
{
    memcpy(builder->bytes->data, "QFI\xfb", 4);
    qcow2_builder_put32(builder, 4, builder->is.version);
    qcow2_builder_put32(builder, 20, builder->is.cluster_bits);
    qcow2_builder_put64(builder, 24, builder->is.size);
    qcow2_builder_put32(builder, 36, builder->l1_entries);
    qcow2_builder_put64(builder, 40, builder->l1_offset);
    qcow2_builder_put64(builder, 48, builder->reftable_offset);
    qcow2_builder_put32(builder, 56, (uint32_t)builder->reftable_clusters);
    qcow2_builder_put32(builder, 60, builder->snapshots->len);
    qcow2_builder_put64(builder, 64, builder->snapshots_offset);
    if (builder->is.version >= 3) {
        put_version_3(builder);
    }
    put_extensions(builder);
}

/* ---- All of it ------------------------------------------------------------------------------ */

static void clear_snapshot(gpointer data)
{
    struct snapshot *snapshot = data;

    g_free(snapshot->id);
    g_free(snapshot->name);
}

static void clear_bitmap(gpointer data)
{
    g_free(((struct bitmap *)data)->name);
}

static void set_defaults(struct qcow2_description *is)
{
    is->size = is->size ? is->size : MIB;
    is->version = is->version ? is->version : 3;
    is->cluster_bits = is->cluster_bits ? is->cluster_bits : 16;
    is->refcount_order = is->refcount_order == 0 ? 4 : MAX_OF(is->refcount_order, 0);
}

struct qcow2_builder *qcow2_builder_new(const struct qcow2_description *description)
{
    struct qcow2_builder *builder = g_new0(struct qcow2_builder, 1);

    builder->is = *description;
    set_defaults(&builder->is);
    builder->cluster_size = UINT64_C(1) << builder->is.cluster_bits;
    builder->entry_bytes = builder->is.extended_l2 ? 16 : 8;
    builder->table_guest = builder->cluster_size / builder->entry_bytes * builder->cluster_size;
    builder->l1_entries =
        (uint32_t)div_round_up(builder->is.size, builder->table_guest) + builder->is.spare_l1;
    builder->bytes = g_byte_array_new();
    builder->refcounts = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    builder->snapshots = g_array_new(FALSE, FALSE, sizeof(struct snapshot));
    builder->bitmaps = g_array_new(FALSE, FALSE, sizeof(struct bitmap));
    g_array_set_clear_func(builder->snapshots, clear_snapshot);
    g_array_set_clear_func(builder->bitmaps, clear_bitmap);
    qcow2_builder_allocate(builder, 1);
    builder->l1_offset = qcow2_builder_allocate(
        builder, div_round_up(builder->l1_entries * sizeof(uint64_t), builder->cluster_size));
    return builder;
}

void qcow2_builder_free(struct qcow2_builder *builder)
{
    g_byte_array_unref(builder->bytes);
    g_array_unref(builder->refcounts);
    g_array_unref(builder->snapshots);
    g_array_unref(builder->bitmaps);
    g_free(builder);
}

void qcow2_builder_build(struct qcow2_builder *builder)
{
    g_assert_false(builder->is_built);
    build_snapshots(builder);
    build_bitmaps(builder);
    build_refcounts(builder);
    build_header(builder);
    builder->is_built = true;
}

uint64_t qcow2_builder_reftable_at(struct qcow2_builder *builder)
{
    return builder->reftable_offset;
}

uint64_t qcow2_builder_snapshots_at(struct qcow2_builder *builder)
{
    return builder->snapshots_offset;
}

uint64_t qcow2_builder_bitmaps_at(struct qcow2_builder *builder)
{
    return builder->bitmaps_offset;
}

void qcow2_builder_write(struct qcow2_builder *builder, const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const uint64_t step = 4 * KIB;

    g_assert_cmpint(fd, >=, 0);
    for (uint64_t at = 0; at < builder->bytes->len; at += step) {
        uint64_t bytes = MIN_OF(step, builder->bytes->len - at);

        if (!buffer_is_zero(builder->bytes->data + at, bytes)) {
            g_assert_cmpint(pwrite(fd, builder->bytes->data + at, bytes, (off_t)at), ==,
                            (gssize)bytes);
        }
    }
    g_assert_cmpint(ftruncate(fd, (off_t)builder->bytes->len), ==, 0);
    close(fd);
}
