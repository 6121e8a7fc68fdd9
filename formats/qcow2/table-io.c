/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: reading and writing tables, and the guard against overwriting one with another. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/event.h"
#include "formats/qcow2/internal.h"

/* Tables are converted in pieces of this many words. */
#define WORDS_AT_ONCE UINT64_C(8192)

/* ---- I/O ------------------------------------------------------------------------------------ */

/* A file may end inside its last cluster: the rest reads as zeroes. */
int qcow2_read_padded(struct block_node *file, void *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t length = block_node_length(file);
    uint64_t there = offset < length ? MIN_OF(bytes, length - offset) : 0;
    int status = there ? block_node_pread(file, buffer, offset, there, 0) : 0;

    if (status == 0) {
        memset((char *)buffer + there, 0, bytes - there);
    }
    return status;
}

int qcow2_read_metadata(struct qcow2 *q, void *buffer, uint64_t bytes, uint64_t offset)
{
    block_node_debug_event(q->file, BLOCK_DEBUG_METADATA_READ);
    return qcow2_read_padded(q->file, buffer, offset, bytes);
}

int qcow2_write_metadata(struct qcow2 *q, const void *buffer, uint64_t bytes, uint64_t offset)
{
    if (qcow2_is_stopped(q)) {
        return -EIO;
    }
    block_node_debug_event(q->file, BLOCK_DEBUG_METADATA_WRITE);
    return block_node_pwrite(q->file, buffer, offset, bytes, 0);
}

int qcow2_read_words(struct qcow2 *q, uint64_t *words, uint64_t count, uint64_t offset)
{
    int status = qcow2_read_metadata(q, words, count * sizeof(*words), offset);

    for (uint64_t i = 0; status == 0 && i < count; i++) {
        words[i] = be64toh(words[i]);
    }
    return status;
}

int qcow2_write_words(struct qcow2 *q, const uint64_t *words, uint64_t count, uint64_t offset)
{
    g_autofree uint64_t *piece = g_new(uint64_t, MIN_OF(count, WORDS_AT_ONCE));
    int status = 0;

    while (status == 0 && count) {
        uint64_t step = MIN_OF(count, WORDS_AT_ONCE);

        for (uint64_t i = 0; i < step; i++) {
            piece[i] = htobe64(words[i]);
        }
        status = qcow2_write_metadata(q, piece, step * sizeof(*piece), offset);
        words += step;
        count -= step;
        offset += step * sizeof(*piece);
    }
    return status;
}

/* ---- Where metadata is ---------------------------------------------------------------------- */

static gpointer cluster_key(const struct qcow2 *q, uint64_t offset)
{
    return GSIZE_TO_POINTER(offset >> q->cluster_bits);
}

void qcow2_area_set(struct qcow2 *q, enum qcow2_area area, uint64_t offset, uint64_t bytes)
{
    SCOPE_LOCK(&q->metadata_lock);

    q->areas[area].offset = offset;
    q->areas[area].bytes = bytes;
}

/* In a damaged image a cluster may be in two areas. */
static void set_areas(struct qcow2 *q, uint64_t offset, unsigned clear, unsigned set)
{
    gpointer key = cluster_key(q, offset);
    SCOPE_LOCK(&q->metadata_lock);
    unsigned areas = GPOINTER_TO_UINT(g_hash_table_lookup(q->metadata, key));

    areas = (areas & ~clear) | set;
    if (areas) {
        g_hash_table_insert(q->metadata, key, GUINT_TO_POINTER(areas));
    } else {
        g_hash_table_remove(q->metadata, key);
    }
}

void qcow2_metadata_add(struct qcow2 *q, uint64_t offset, enum qcow2_area area)
{
    set_areas(q, offset, 0, 1u << area);
}

void qcow2_metadata_remove(struct qcow2 *q, uint64_t offset, enum qcow2_area area)
{
    set_areas(q, offset, 1u << area, 0);
}

void qcow2_metadata_forget(struct qcow2 *q)
{
    SCOPE_LOCK(&q->metadata_lock);

    g_hash_table_remove_all(q->metadata);
}

/*
 * The metadata of another kind that a range overlaps, or QCOW2_AREA_NONE. Of tables in many
 * places, large ranges are looked at only cluster by cluster, as they come from the allocator.
 * metadata_lock held.
 */
static enum qcow2_area find_overlap(struct qcow2 *q, enum qcow2_area area, uint64_t offset,
                                    uint64_t bytes)
{
    for (enum qcow2_area other = QCOW2_AREA_HEADER; other < QCOW2_AREA_PLACES; other++) {
        if (other != area &&
            ranges_overlap(offset, bytes, q->areas[other].offset, q->areas[other].bytes)) {
            return other;
        }
    }
    if (q->options.overlap_check < QCOW2_OVERLAP_CACHED) {
        return QCOW2_AREA_NONE;
    }
    for (uint64_t at = qcow2_cluster_start(q, offset); at < offset + bytes; at += q->cluster_size) {
        unsigned others =
            GPOINTER_TO_UINT(g_hash_table_lookup(q->metadata, cluster_key(q, at))) & ~(1u << area);

        if (others) {
            return (enum qcow2_area)log2_of(others);
        }
    }
    return QCOW2_AREA_NONE;
}

static bool overlaps_snapshot(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    for (size_t i = 0; i < q->snapshot_count; i++) {
        if (ranges_overlap(offset, bytes, q->snapshots[i].l1_offset,
                           (uint64_t)q->snapshots[i].l1_size * sizeof(uint64_t))) {
            return true;
        }
    }
    return false;
}

bool qcow2_is_metadata(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    if (overlaps_snapshot(q, offset, bytes)) {
        return true;
    }
    SCOPE_LOCK(&q->metadata_lock);

    return find_overlap(q, QCOW2_AREA_NONE, offset, bytes) != QCOW2_AREA_NONE;
}

int qcow2_check_overlap(struct qcow2 *q, enum qcow2_area area, uint64_t offset, uint64_t bytes)
{
    static const char *const names[] = {
        [QCOW2_AREA_HEADER] = "the header",
        [QCOW2_AREA_L1] = "the active L1 table",
        [QCOW2_AREA_REFTABLE] = "the refcount table",
        [QCOW2_AREA_SNAPSHOTS] = "the snapshot table",
        [QCOW2_AREA_BITMAPS] = "the bitmap directory",
        [QCOW2_AREA_L2] = "an active L2 table",
        [QCOW2_AREA_REFBLOCK] = "a refcount block",
    };

    if (q->options.overlap_check == QCOW2_OVERLAP_NONE) {
        return 0;
    }
    pthread_mutex_lock(&q->metadata_lock);
    enum qcow2_area other = find_overlap(q, area, offset, bytes);
    pthread_mutex_unlock(&q->metadata_lock);
    if (other != QCOW2_AREA_NONE) {
        return qcow2_mark_corrupt(q, offset, bytes,
                                  "Preventing a write that would overwrite %s: something else "
                                  "claims to be in the same place",
                                  names[other]);
    }
    if (overlaps_snapshot(q, offset, bytes)) {
        return qcow2_mark_corrupt(q, offset, bytes,
                                  "Preventing a write that would overwrite a snapshot's L1 table");
    }
    return 0;
}

/* ---- Damage --------------------------------------------------------------------------------- */

static void tell(struct qcow2 *q, uint64_t offset, uint64_t bytes, const char *message)
{
    const char *name = q->node->name ? q->node->name : "";
    struct event_field place[] = {
        EVENT_STRING("device", ""),
        EVENT_STRING("node-name", q->node->name),
        EVENT_STRING("msg", message),
        EVENT_BOOL("fatal", true),
        {.key = NULL},
        {.key = NULL},
        {.key = NULL},
    };

    if (bytes) {
        place[4] = EVENT_INT("offset", offset);
        place[5] = EVENT_INT("size", bytes);
    }
    g_autofree char *where = bytes ? g_strdup_printf(" (offset %" PRIu64 ")", offset) : NULL;
    g_warning("qcow2 image of node '%s' is damaged, nothing is written to it any more: %s%s. "
              "'liveblk check --repair all' may mend it.",
              name, message, where ? where : "");
    event_emit_fields("BLOCK_IMAGE_CORRUPTED", place);
}

/*
 * The bit is set in place, in one write of its word: what else the header says in memory may not
 * hold on disk yet.
 */
static void mark_header(struct qcow2 *q)
{
    const uint64_t at = 72; /* incompatible_features */
    uint64_t word;
    SCOPE_LOCK(&q->header_lock);

    q->header.incompatible |= QCOW2_INCOMPATIBLE_CORRUPT;
    if (block_node_pread(q->file, &word, at, sizeof(word), 0) == 0) {
        word |= htobe64(QCOW2_INCOMPATIBLE_CORRUPT);
        if (block_node_pwrite(q->file, &word, at, sizeof(word), 0) == 0) {
            block_node_flush(q->file); /* if it fails, the damage is found again */
        }
    }
}

int qcow2_mark_corrupt(struct qcow2 *q, uint64_t offset, uint64_t bytes, const char *format, ...)
{
    va_list arguments;

    if (atomic_exchange(&q->is_corrupt, true)) {
        return -EIO;
    }
    va_start(arguments, format);
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    if (q->header.version >= 3 && !block_node_is_read_only(q->node) &&
        !block_node_is_read_only(q->file)) {
        mark_header(q);
    }
    tell(q, offset, bytes, message);
    return -EIO;
}

/* ---- Unknown state -------------------------------------------------------------------------- */

void qcow2_stop(struct qcow2 *q, const char *why)
{
    if (!atomic_load(&q->is_corrupt) && !atomic_exchange(&q->is_stopped, true)) {
        g_warning("Nothing is written any more to the qcow2 image of node '%s': %s. Open it again "
                  "when that is mended.",
                  q->node->name ? q->node->name : "", why);
    }
}

int qcow2_refuse_change(struct qcow2 *q, GError **error)
{
    if (q->options.for_check) {
        return block_error(error, EINVAL, "The image is opened to be checked, not to be changed");
    }
    return block_error(error, EIO,
                       atomic_load(&q->is_corrupt)
                           ? "The image is damaged, so it cannot be changed"
                           : "Nothing is written to the image any more, because of an error that "
                             "was told before; open it again");
}
