/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: stored dirty bitmaps ("Bitmaps extension", "Bitmaps").
 *
 * They are never the reason that an image does not open: what is damaged is left alone, or given up
 * with a warning. The header refers to a directory that is stable; a new one is written to new
 * clusters, and the old one's are freed afterwards.
 *
 * Who keeps bitmaps up to date (block/stored-bitmaps.h) does so in memory. An entry that is not
 * marked as in use says what memory says; it is marked before the two may differ, that is, before
 * the disk changes if it records, or before the bitmap itself is changed.
 *
 * Requests mark entries, too, so whoever looks at the directory or changes it holds bitmap_lock.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/big-endian.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"

#define ENTRY_BYTES          24
#define TYPE_DIRTY           1
#define NAME_MAX_BYTES       1023
#define GRANULARITY_BITS_MIN 9
#define GRANULARITY_BITS_MAX 31
#define TABLE_BYTES_MAX      (32 * MIB)
#define DIRECTORY_BYTES_MAX  (64 * MIB)
#define BITS_BYTES_MAX       (512 * MIB) /* of one bitmap: all of it is in memory at times */

/* ---- The directory -------------------------------------------------------------------------- */

void qcow2_bitmap_clear(struct qcow2_bitmap *bitmap)
{
    g_free(bitmap->name);
    g_free(bitmap->extra);
}

static void clear_element(gpointer data)
{
    qcow2_bitmap_clear(data);
}

static int damaged(GError **error, const char *what)
{
    return block_error(error, EINVAL, "The bitmap directory is damaged: %s", what);
}

/* What is wrong with an entry of a directory whose entries are where they should be. */
static const char *find_problem(struct qcow2 *q, const uint8_t *entry,
                                const struct qcow2_bitmap *bitmap)
{
    uint64_t name_bytes = get_be(entry + 18, 2),
             table_bytes = bitmap->table_size * sizeof(uint64_t);

    if (!name_bytes || name_bytes > NAME_MAX_BYTES) {
        return "a name's length is not valid";
    }
    if (strlen(bitmap->name) != name_bytes) {
        return "a name holds a zero byte";
    }
    if (bitmap->type != TYPE_DIRTY || bitmap->flags & ~(uint32_t)QCOW2_BITMAP_FLAGS_KNOWN ||
        bitmap->granularity_bits < GRANULARITY_BITS_MIN ||
        bitmap->granularity_bits > GRANULARITY_BITS_MAX) {
        return "a bitmap is of a kind that is not known";
    }
    if (!table_bytes || table_bytes > TABLE_BYTES_MAX || !bitmap->table_offset ||
        !is_aligned(bitmap->table_offset, q->cluster_size) ||
        !range_within(bitmap->table_offset, table_bytes,
                      align_up(block_node_length(q->file), q->cluster_size))) {
        return "a bitmap's table is not in the file";
    }
    return NULL;
}

/* Decode one entry; *used is its length. */
static int decode(struct qcow2 *q, const uint8_t *entry, uint64_t left, struct qcow2_bitmap *bitmap,
                  uint64_t *used, GError **error)
{
    if (left < ENTRY_BYTES) {
        return damaged(error, "it ends inside an entry");
    }
    uint64_t name_bytes = get_be(entry + 18, 2), extra_bytes = get_be(entry + 20, 4);
    *used = align_up(ENTRY_BYTES + extra_bytes + name_bytes, 8);
    if (*used > left) {
        return damaged(error, "an entry's length is not valid");
    }
    *bitmap = (struct qcow2_bitmap){
        .table_offset = get_be(entry, 8),
        .table_size = (uint32_t)get_be(entry + 8, 4),
        .flags = (uint32_t)get_be(entry + 12, 4),
        .type = entry[16],
        .granularity_bits = entry[17],
        .name = g_strndup((const char *)entry + ENTRY_BYTES + extra_bytes, name_bytes),
        .extra = g_memdup2(entry + ENTRY_BYTES, extra_bytes),
        .extra_bytes = (uint32_t)extra_bytes,
    };
    bitmap->problem = find_problem(q, entry, bitmap);
    bitmap->is_named =
        name_bytes && name_bytes <= NAME_MAX_BYTES && strlen(bitmap->name) == name_bytes;
    return 0;
}

static int decode_all(struct qcow2 *q, const uint8_t *data, uint64_t bytes, GArray *bitmaps,
                      GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    uint64_t at = 0, used = 0;

    for (uint32_t i = 0; i < q->header.bitmap_count; i++, at += used) {
        struct qcow2_bitmap bitmap = {0};
        int status = decode(q, data + at, bytes - at, &bitmap, &used, error);

        if (status < 0) {
            return status;
        }
        if (bitmap.is_named && !g_hash_table_add(names, bitmap.name)) {
            bitmap.problem = "two bitmaps have the same name";
            bitmap.is_named = false;
        }
        g_array_append_val(bitmaps, bitmap);
    }
    return at != bytes ? damaged(error, "it is longer than its entries") : 0;
}

GArray *qcow2_bitmaps_read_all(struct qcow2 *q, GError **error)
{
    uint64_t bytes = q->header.bitmap_count ? q->header.bitmap_directory_bytes : 0;
    g_autoptr(GArray) bitmaps = g_array_new(FALSE, FALSE, sizeof(struct qcow2_bitmap));
    g_autofree uint8_t *data = g_try_malloc(MAX_OF(bytes, UINT64_C(1)));

    g_array_set_clear_func(bitmaps, clear_element);
    if (!bytes) {
        return g_steal_pointer(&bitmaps);
    }
    if (bytes > DIRECTORY_BYTES_MAX || !data) {
        damaged(error, "it is too large");
        return NULL;
    }
    int status = qcow2_read_metadata(q, data, bytes, q->header.bitmap_directory_offset);
    if (status < 0) {
        block_error_errno(error, -status, "Could not read the bitmap directory");
        return NULL;
    }
    return decode_all(q, data, bytes, bitmaps, error) == 0 ? g_steal_pointer(&bitmaps) : NULL;
}

/* All entries, if each has a name. */
static GArray *read_named(struct qcow2 *q, GError **error)
{
    g_autoptr(GArray) bitmaps = qcow2_bitmaps_read_all(q, error);

    for (guint i = 0; bitmaps && i < bitmaps->len; i++) {
        const struct qcow2_bitmap *bitmap = &g_array_index(bitmaps, struct qcow2_bitmap, i);

        if (!bitmap->is_named) {
            damaged(error, bitmap->problem);
            return NULL;
        }
    }
    return g_steal_pointer(&bitmaps);
}

void qcow2_bitmap_encode(GByteArray *directory, const struct qcow2_bitmap *bitmap)
{
    append_be(directory, bitmap->table_offset, 8);
    append_be(directory, bitmap->table_size, 4);
    append_be(directory, bitmap->flags, 4);
    append_be(directory, bitmap->type, 1);
    append_be(directory, bitmap->granularity_bits, 1);
    append_be(directory, strlen(bitmap->name), 2);
    append_be(directory, bitmap->extra_bytes, 4);
    if (bitmap->extra_bytes) {
        g_byte_array_append(directory, bitmap->extra, bitmap->extra_bytes);
    }
    g_byte_array_append(directory, (const uint8_t *)bitmap->name, (guint)strlen(bitmap->name));
    while (directory->len % 8) {
        append_be(directory, 0, 1);
    }
}

/* Let the header refer to a directory, or to none; if that fails it is as it was. */
static int set_extension(struct qcow2 *q, uint32_t count, uint64_t offset, uint64_t bytes,
                         GError **error)
{
    SCOPE_LOCK(&q->header_lock);
    int status = qcow2_header_set_bitmaps(q, count, offset, bytes, error);

    if (status == 0) {
        qcow2_area_set(q, QCOW2_AREA_BITMAPS, offset, bytes);
    }
    return status;
}

/* Write a directory to new clusters, switch the header to it, free the old one. */
static int store_directory(struct qcow2 *q, GArray *bitmaps, GError **error)
{
    g_autoptr(GByteArray) directory = g_byte_array_new();
    uint64_t old_offset = q->header.bitmap_directory_offset, offset = 0;
    uint64_t old_bytes = q->header.bitmap_count ? q->header.bitmap_directory_bytes : 0;
    bool is_new;
    int status = 0;

    for (guint i = 0; i < bitmaps->len; i++) {
        qcow2_bitmap_encode(directory, &g_array_index(bitmaps, struct qcow2_bitmap, i));
    }
    if (bitmaps->len > QCOW2_BITMAPS_MAX || directory->len > DIRECTORY_BYTES_MAX) {
        return block_error(error, EFBIG, "The bitmap directory would get too large");
    }
    if (directory->len) {
        status = qcow2_allocate(q, qcow2_clusters(q, directory->len), true, &offset, NULL, &is_new);
    }
    if (status == 0 && directory->len) {
        status = qcow2_write_metadata(q, directory->data, directory->len, offset);
    }
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status < 0) {
        block_error_errno(error, -status, "Could not write the bitmap directory");
    } else {
        status = set_extension(q, bitmaps->len, offset, directory->len, error);
    }
    if (status == 0) {
        qcow2_refcount_add(q, old_offset, old_bytes, -1); /* if it fails it leaks */
    } else if (offset) {
        qcow2_unallocate(q, offset, qcow2_clusters(q, directory->len));
    }
    return status;
}

/* ---- Opening -------------------------------------------------------------------------------- */

/* Write the directory in place; entries keep their lengths. */
static int rewrite_directory(struct qcow2 *q, const GArray *bitmaps)
{
    g_autoptr(GByteArray) directory = g_byte_array_new();

    for (guint i = 0; i < bitmaps->len; i++) {
        qcow2_bitmap_encode(directory, &g_array_index(bitmaps, struct qcow2_bitmap, i));
    }
    int status =
        qcow2_write_metadata(q, directory->data, directory->len, q->header.bitmap_directory_offset);
    return status == 0 ? block_node_flush(q->file) : status;
}

/* Give what is stored up. Takes the error. Returns a negative errno if even that fails. */
static int drop_all(struct qcow2 *q, GError *why)
{
    g_autofree char *filename = block_node_get_filename(q->file);
    GError *error = NULL;

    g_warning("The bitmaps stored in the image '%s' are lost: %s", filename, why->message);
    g_error_free(why);
    int status = set_extension(q, 0, 0, 0, &error);
    if (status < 0) {
        g_warning("... and the image '%s' still refers to them: %s", filename, error->message);
        g_error_free(error);
    }
    return status;
}

static bool is_recording(const struct qcow2_bitmap *bitmap)
{
    return bitmap->flags & QCOW2_BITMAP_AUTO && !(bitmap->flags & QCOW2_BITMAP_IN_USE);
}

void qcow2_bitmaps_opened(struct qcow2 *q)
{
    GError *error = NULL;
    SCOPE_LOCK(&q->bitmap_lock);

    if (!q->header.bitmap_count) {
        return;
    }
    g_autoptr(GArray) bitmaps = read_named(q, &error);
    if (!bitmaps) {
        /* If even that fails the first change tries it again. */
        atomic_store(&q->has_recording_bitmaps, drop_all(q, error) < 0);
        return;
    }
    for (guint i = 0; i < bitmaps->len; i++) {
        if (is_recording(&g_array_index(bitmaps, struct qcow2_bitmap, i))) {
            atomic_store(&q->has_recording_bitmaps, true);
        }
    }
}

/* Returns how many were marked. */
static unsigned mark_in_use(GArray *bitmaps, bool whole)
{
    unsigned marked = 0;

    for (guint i = 0; i < bitmaps->len; i++) {
        struct qcow2_bitmap *bitmap = &g_array_index(bitmaps, struct qcow2_bitmap, i);

        if (whole ? !(bitmap->flags & QCOW2_BITMAP_IN_USE) : is_recording(bitmap)) {
            bitmap->flags |= QCOW2_BITMAP_IN_USE;
            marked++;
        }
    }
    return marked;
}

/* bitmap_lock held. */
static int outdate(struct qcow2 *q, bool whole)
{
    GError *error = NULL;
    g_autoptr(GArray) bitmaps = read_named(q, &error);

    if (!bitmaps) {
        return drop_all(q, error);
    }
    if (!mark_in_use(bitmaps, whole)) {
        return 0;
    }
    int status = rewrite_directory(q, bitmaps);
    if (status < 0) {
        block_error_errno(&error, -status, "they could not be marked as in use");
        status = drop_all(q, error);
    }
    return status;
}

int qcow2_bitmaps_outdate(struct qcow2 *q, bool whole)
{
    int status = 0;
    SCOPE_LOCK(&q->bitmap_lock);

    if (q->header.bitmap_count && (whole || atomic_load(&q->has_recording_bitmaps))) {
        status = outdate(q, whole);
    }
    if (status == 0) {
        atomic_store(&q->has_recording_bitmaps, false);
    }
    return status;
}

/* ---- Bitmaps -------------------------------------------------------------------------------- */

static uint64_t bitmap_bytes(const struct qcow2 *q, unsigned granularity_bits)
{
    return div_round_up(div_round_up(q->header.size, UINT64_C(1) << granularity_bits), 8);
}

/* Whether its bits can be loaded, if it is not in use. */
static bool is_usable(const struct qcow2 *q, const struct qcow2_bitmap *bitmap)
{
    if (bitmap->problem ||
        (bitmap->extra_bytes && !(bitmap->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))) {
        return false;
    }
    uint64_t bytes = bitmap_bytes(q, bitmap->granularity_bits);
    return bytes <= BITS_BYTES_MAX && bitmap->table_size == qcow2_clusters(q, bytes);
}

int qcow2_bitmap_list(struct block_node *node, struct block_persistent_bitmap **list, size_t *count,
                      GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    SCOPE_LOCK(&q->bitmap_lock);
    g_autoptr(GArray) bitmaps = read_named(q, error);

    if (!bitmaps) {
        return -EINVAL;
    }
    *list = g_new0(struct block_persistent_bitmap, MAX_OF(bitmaps->len, 1u));
    *count = bitmaps->len;
    for (guint i = 0; i < bitmaps->len; i++) {
        const struct qcow2_bitmap *bitmap = &g_array_index(bitmaps, struct qcow2_bitmap, i);
        bool is_known = bitmap->granularity_bits <= GRANULARITY_BITS_MAX;

        (*list)[i] = (struct block_persistent_bitmap){
            .name = g_strdup(bitmap->name),
            .granularity = is_known ? 1u << bitmap->granularity_bits : 0,
            .enabled = bitmap->flags & QCOW2_BITMAP_AUTO,
            .in_use = bitmap->flags & QCOW2_BITMAP_IN_USE,
            .is_unusable = !is_usable(q, bitmap),
        };
    }
    return 0;
}

static struct qcow2_bitmap *find(GArray *bitmaps, const char *name, guint *index)
{
    for (guint i = 0; i < bitmaps->len; i++) {
        struct qcow2_bitmap *bitmap = &g_array_index(bitmaps, struct qcow2_bitmap, i);

        if (!strcmp(bitmap->name, name)) {
            *index = i;
            return bitmap;
        }
    }
    return NULL;
}

static bool is_valid_entry(const struct qcow2 *q, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    return !(entry & ~(QCOW2_OFFSET_MASK | 1)) && !(offset && entry & 1) &&
           is_aligned(offset, q->cluster_size);
}

/* An entry of a bitmap's table ("Bitmap table"). */
static int read_piece(struct qcow2 *q, uint64_t entry, uint8_t *bits, uint64_t bytes)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (!is_valid_entry(q, entry)) {
        return -EINVAL;
    }
    if (!offset) {
        memset(bits, entry & 1 ? 0xff : 0, bytes);
        return 0;
    }
    return qcow2_read_metadata(q, bits, bytes, offset);
}

int qcow2_bitmap_load(struct block_node *node, const char *name, uint8_t *bits, uint64_t bytes,
                      GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    guint index;
    SCOPE_LOCK(&q->bitmap_lock);
    g_autoptr(GArray) bitmaps = read_named(q, error);

    if (!bitmaps) {
        return -EINVAL;
    }
    struct qcow2_bitmap *bitmap = find(bitmaps, name, &index);
    if (!bitmap) {
        return block_error(error, ENOENT, "Dirty bitmap '%s' not found", name);
    }
    if (!is_usable(q, bitmap) || bytes != bitmap_bytes(q, bitmap->granularity_bits)) {
        return block_error(error, EINVAL, "Bitmap '%s' does not fit the disk", name);
    }
    g_autofree uint64_t *table = g_new(uint64_t, MAX_OF(bitmap->table_size, 1u));
    int status = qcow2_read_words(q, table, bitmap->table_size, bitmap->table_offset);
    for (uint32_t i = 0; status == 0 && i < bitmap->table_size; i++) {
        uint64_t at = (uint64_t)i << q->cluster_bits;

        status = read_piece(q, table[i], bits + at, MIN_OF(q->cluster_size, bytes - at));
    }
    return status < 0 ? block_error_errno(error, -status, "Could not read bitmap '%s'", name) : 0;
}

/* Give up a table and what it refers to; the directory does not refer to it (any more). */
static void give_up(struct qcow2 *q, const uint64_t *table, uint64_t table_offset,
                    uint32_t table_size)
{
    for (uint32_t i = 0; i < table_size; i++) {
        if (table[i] & QCOW2_OFFSET_MASK) {
            qcow2_refcount_add(q, table[i] & QCOW2_OFFSET_MASK, q->cluster_size, -1);
        }
    }
    qcow2_refcount_add(q, table_offset, table_size * sizeof(*table), -1);
}

/* Of an entry that was in the directory, unless it is damaged: then it leaks rather. */
static void drop_table(struct qcow2 *q, const struct qcow2_bitmap *bitmap)
{
    g_autofree uint64_t *table = NULL;

    if (bitmap->problem) {
        return;
    }
    table = g_try_new(uint64_t, bitmap->table_size);
    if (!table || qcow2_read_words(q, table, bitmap->table_size, bitmap->table_offset) < 0) {
        return;
    }
    for (uint32_t i = 0; i < bitmap->table_size; i++) {
        if (!is_valid_entry(q, table[i])) {
            return;
        }
    }
    give_up(q, table, bitmap->table_offset, bitmap->table_size);
}

static bool is_all(const uint8_t *bits, uint64_t bytes, uint8_t value)
{
    for (uint64_t i = 0; i < bytes; i++) {
        if (bits[i] != value) {
            return false;
        }
    }
    return true;
}

/* Write a piece to a cluster of its own unless its table entry can say what it is. */
static int write_piece(struct qcow2 *q, const uint8_t *bits, uint64_t bytes, uint64_t *entry)
{
    AUTO_FREE uint8_t *cluster = NULL;
    bool is_new;

    if (is_all(bits, bytes, 0)) {
        *entry = 0;
        return 0;
    }
    if (bytes == q->cluster_size && is_all(bits, bytes, 0xff)) {
        *entry = 1;
        return 0;
    }
    int status = qcow2_allocate(q, 1, true, entry, NULL, &is_new);
    if (status < 0) {
        *entry = 0;
        return status;
    }
    cluster = calloc(1, q->cluster_size);
    if (!cluster) {
        return -ENOMEM;
    }
    memcpy(cluster, bits, bytes);
    return qcow2_write_metadata(q, cluster, q->cluster_size, *entry);
}

/* table: zeroes, of bitmap->table_size entries; filled in. Takes nothing if it fails. */
static int write_bits(struct qcow2 *q, const uint8_t *bits, uint64_t bytes, uint64_t *table,
                      struct qcow2_bitmap *bitmap)
{
    bool is_new;
    int status = qcow2_allocate(q, qcow2_clusters(q, bitmap->table_size * sizeof(*table)), true,
                                &bitmap->table_offset, NULL, &is_new);

    if (status < 0) {
        return status;
    }
    for (uint32_t i = 0; status == 0 && i < bitmap->table_size; i++) {
        uint64_t at = (uint64_t)i << q->cluster_bits;

        status = write_piece(q, bits + at, MIN_OF(q->cluster_size, bytes - at), &table[i]);
    }
    if (status == 0) {
        status = qcow2_write_words(q, table, bitmap->table_size, bitmap->table_offset);
    }
    if (status < 0) {
        give_up(q, table, bitmap->table_offset, bitmap->table_size);
    }
    return status;
}

bool qcow2_bitmap_keeps(struct block_node *node)
{
    return qcow2_of(node)->header.version >= 3;
}

/* Whether it can be stored; bytes: of its bits. */
static int check_stored(struct qcow2 *q, const struct block_persistent_bitmap *stored,
                        uint64_t bytes, GError **error)
{
    size_t name_bytes = strlen(stored->name);
    unsigned bits = is_power_of_2(stored->granularity) ? log2_of(stored->granularity) : 0;

    if (!qcow2_bitmap_keeps(q->node)) {
        return block_error(error, ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    }
    if (bits < GRANULARITY_BITS_MIN || bits > GRANULARITY_BITS_MAX || !name_bytes ||
        name_bytes > NAME_MAX_BYTES || !bytes || bytes != bitmap_bytes(q, bits) ||
        bytes > BITS_BYTES_MAX || qcow2_clusters(q, bytes) * sizeof(uint64_t) > TABLE_BYTES_MAX) {
        return block_error(error, EINVAL,
                           "Bitmap '%s' cannot be stored: its name, its granularity or its size "
                           "does not fit",
                           stored->name);
    }
    return qcow2_may_write(q) ? 0 : qcow2_refuse_change(q, error);
}

int qcow2_bitmap_check(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                       size_t others, GError **error)
{
    struct qcow2 *q = qcow2_of(node);

    if (others >= QCOW2_BITMAPS_MAX) {
        return block_error(error, EFBIG, "An image cannot hold more than %u bitmaps",
                           QCOW2_BITMAPS_MAX);
    }
    unsigned bits = is_power_of_2(bitmap->granularity) ? log2_of(bitmap->granularity) : 0;
    return check_stored(q, bitmap, bitmap_bytes(q, bits), error);
}

/* Enter a bitmap, which is written, in the directory, for one of the same name. */
static int enter(struct qcow2 *q, GArray *bitmaps, struct qcow2_bitmap *bitmap, GError **error)
{
    struct qcow2_bitmap old = {0};
    guint index;

    if (find(bitmaps, bitmap->name, &index)) {
        struct qcow2_bitmap *place = &g_array_index(bitmaps, struct qcow2_bitmap, index);

        old = *place;
        if (is_usable(q, &old)) { /* what others keep there is left as it is */
            bitmap->extra = STEAL(place->extra);
            bitmap->extra_bytes = place->extra_bytes;
            bitmap->flags |= place->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE;
        }
        qcow2_bitmap_clear(place);
        *place = *bitmap;
    } else {
        g_array_append_val(bitmaps, *bitmap);
    }
    int status = store_directory(q, bitmaps, error);
    if (status == 0 && old.table_size) {
        drop_table(q, &old);
    }
    return status;
}

int qcow2_bitmap_store(struct block_node *node, const struct block_persistent_bitmap *stored,
                       const uint8_t *bits, uint64_t bytes, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    SCOPE_LOCK(&q->bitmap_lock);
    g_autoptr(GArray) bitmaps = read_named(q, error);
    int status = bitmaps ? check_stored(q, stored, bytes, error) : -EINVAL;

    if (status < 0) {
        return status;
    }
    struct qcow2_bitmap bitmap = {
        .flags =
            (stored->enabled ? QCOW2_BITMAP_AUTO : 0) | (stored->in_use ? QCOW2_BITMAP_IN_USE : 0),
        .type = TYPE_DIRTY,
        .granularity_bits = log2_of(stored->granularity),
        .table_size = (uint32_t)qcow2_clusters(q, bytes),
    };
    g_autofree uint64_t *table = g_new0(uint64_t, bitmap.table_size);
    status = write_bits(q, bits, bytes, table, &bitmap);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write bitmap '%s'", stored->name);
    }
    bitmap.name = g_strdup(stored->name);
    status = enter(q, bitmaps, &bitmap, error);
    if (status < 0) {
        give_up(q, table, bitmap.table_offset, bitmap.table_size);
    } else if (stored->enabled && !stored->in_use) {
        atomic_store(&q->has_recording_bitmaps, true);
    }
    return status;
}

/* The directory, and in *bitmap and *index the one of this name, NULL if there is none. */
static GArray *read_and_find(struct qcow2 *q, const char *name, struct qcow2_bitmap **bitmap,
                             guint *index, GError **error)
{
    GArray *bitmaps = read_named(q, error);

    *bitmap = bitmaps ? find(bitmaps, name, index) : NULL;
    return bitmaps;
}

int qcow2_bitmap_begin_change(struct block_node *node, const char *name, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_bitmap *bitmap;
    guint index;
    SCOPE_LOCK(&q->bitmap_lock);
    g_autoptr(GArray) bitmaps = read_and_find(q, name, &bitmap, &index, error);

    if (!bitmap || bitmap->flags & QCOW2_BITMAP_IN_USE) {
        return bitmaps ? 0 : -EINVAL;
    }
    if (!qcow2_may_write(q)) {
        return qcow2_refuse_change(q, error);
    }
    bitmap->flags |= QCOW2_BITMAP_IN_USE;
    int status = rewrite_directory(q, bitmaps);
    return status < 0
               ? block_error_errno(error, -status, "Could not mark bitmap '%s' as in use", name)
               : 0;
}

int qcow2_bitmap_remove(struct block_node *node, const char *name, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_bitmap *bitmap;
    guint index;
    SCOPE_LOCK(&q->bitmap_lock);
    g_autoptr(GArray) bitmaps = read_and_find(q, name, &bitmap, &index, error);

    if (!bitmap) {
        return bitmaps ? block_error(error, ENOENT, "Dirty bitmap '%s' not found", name) : -EINVAL;
    }
    if (!qcow2_may_write(q)) {
        return qcow2_refuse_change(q, error);
    }
    struct qcow2_bitmap old = *bitmap; /* its texts are gone with it */
    g_array_remove_index(bitmaps, index);
    int status = store_directory(q, bitmaps, error);
    if (status == 0) {
        drop_table(q, &old);
    }
    return status;
}
