/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: beginning to write to an image and ending it, at opening and closing, and where a node
 * becomes writable or read-only meanwhile.
 */
#include <errno.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"

/* ---- Beginning ------------------------------------------------------------------------------ */

static int check_corrupt(struct qcow2 *q, GError **error)
{
    return q->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT
               ? block_error(error, EACCES,
                             "Image is corrupt; cannot be opened read/write. 'liveblk check "
                             "--repair all' may mend it")
               : 0;
}

int qcow2_check_state(struct qcow2 *q, GError **error)
{
    if (q->options.for_check || block_node_is_read_only(q->node)) {
        return 0;
    }
    int status = check_corrupt(q, error);
    if (status == 0 && q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY) {
        status = qcow2_repair_dirty(q, error);
    }
    return status;
}

/* If it fails the header says what it did. */
static int clear_unknown_features(struct qcow2 *q, GError **error)
{
    SCOPE_LOCK(&q->header_lock);
    uint64_t before = q->header.autoclear;

    q->header.autoclear &= QCOW2_AUTOCLEAR_KNOWN;
    int status = qcow2_header_write_fields(q, 88, 96); /* autoclear_features */
    if (status < 0) {
        q->header.autoclear = before;
        return block_error_errno(error, -status,
                                 "Could not clear features of the image that are not known");
    }
    q->header.bitmaps_are_damaged = false;
    return 0;
}

int qcow2_begin_writing(struct qcow2 *q, GError **error)
{
    if (block_node_is_read_only(q->node) || q->options.for_check) {
        return 0;
    }
    if (q->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_KNOWN || q->header.bitmaps_are_damaged) {
        int status = clear_unknown_features(q, error);

        if (status < 0) {
            return status;
        }
    }
    qcow2_bitmaps_opened(q);
    return 0;
}

/* ---- Ending --------------------------------------------------------------------------------- */

int qcow2_write_all_back(struct qcow2 *q)
{
    int status = qcow2_reclaim_all(q);

    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status == 0 && atomic_load(&q->is_marked_dirty) && !q->needs_repair) {
        status = qcow2_set_incompatible(q, 0, QCOW2_INCOMPATIBLE_DIRTY, NULL);
        if (status == 0) {
            atomic_store(&q->is_marked_dirty, false);
        }
    }
    return status;
}

void qcow2_trim_file(struct qcow2 *q)
{
    uint64_t end = q->tail << q->cluster_bits;
    GError *error = NULL;

    if (q->tail_is_zero && end < block_node_length(q->file) &&
        block_node_set_length(q->file, end, BLOCK_PREALLOCATION_OFF, &error) < 0) {
        g_error_free(error); /* it is only longer than it had to be */
    }
}

/* ---- Reopening ------------------------------------------------------------------------------ */

/* Whether all is where it was. A repair that failed here may have cleared bits on disk already. */
static bool tables_differ(const struct qcow2_header *a, const struct qcow2_header *b)
{
    return a->size != b->size || a->l1_offset != b->l1_offset || a->l1_size != b->l1_size ||
           a->reftable_offset != b->reftable_offset ||
           a->reftable_clusters != b->reftable_clusters ||
           a->snapshots_offset != b->snapshots_offset || a->snapshot_count != b->snapshot_count ||
           a->incompatible & ~b->incompatible || a->bitmap_count != b->bitmap_count ||
           a->bitmap_directory_offset != b->bitmap_directory_offset;
}

/* Without locks somebody else may have written to the image that was only read here. */
static int check_unchanged(struct qcow2 *q, GError **error)
{
    struct qcow2_header header = {0};
    int status = qcow2_header_read(q, false, &header, error);

    if (status == 0 && tables_differ(&header, &q->header)) {
        status = block_error(error, EIO,
                             "Node '%s' cannot become writable: somebody else has changed the "
                             "image since it was opened; open it again",
                             q->node->name);
    }
    qcow2_header_clear(&header);
    return status;
}

static int prepare_writing(struct qcow2 *q, GError **error)
{
    const char *name = q->node->name;
    int status;

    if (q->shows_snapshot) {
        return block_error(error, EINVAL,
                           "Node '%s' cannot become writable: it shows a snapshot instead of the "
                           "current state",
                           name);
    }
    if (q->options.for_check) {
        return block_error(error, EINVAL,
                           "Node '%s' cannot become writable: it is opened to be checked", name);
    }
    status = qcow2_is_stopped(q) ? qcow2_refuse_change(q, error) : check_corrupt(q, error);
    return status == 0 ? check_unchanged(q, error) : status;
}

static int prepare_reading(struct qcow2 *q, GError **error)
{
    if (q->options.for_check || (qcow2_is_stopped(q) && !atomic_load(&q->has_changes))) {
        return 0;
    }
    if (qcow2_is_stopped(q)) {
        return qcow2_refuse_change(q, error);
    }
    int status = qcow2_write_all_back(q);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write the metadata of node '%s'",
                                 q->node->name);
    }
    qcow2_trim_file(q); /* if it stays writable it grows again */
    return 0;
}

int qcow2_reopen_prepare(struct qcow2 *q, const struct block_node_options *options, GError **error)
{
    if (q->node->options.force_share && !options->force_share) {
        return block_error(error, EINVAL,
                           "Cannot change the option 'force-share' of node '%s' to off: other "
                           "programs may have changed the image; open it again",
                           q->node->name);
    }
    if (options->read_only == block_node_is_read_only(q->node)) {
        return 0;
    }
    return options->read_only ? prepare_reading(q, error) : prepare_writing(q, error);
}

/*
 * Tables in memory were only read so far: nobody noted what lies where, and a repair may have
 * changed them. Each is read anew before the old one is dropped, as reading goes on if this fails.
 */
static int reload_tables(struct qcow2 *q, GError **error)
{
    qcow2_metadata_forget(q);
    int status = qcow2_refcount_reload(q, error);
    return status == 0 ? qcow2_l1_load(q, error) : status;
}

int qcow2_reopen_begin_writing(struct block_node *node, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    int status = qcow2_check_state(q, error);

    if (status == 0) {
        q->needs_repair = false;
        atomic_store(&q->is_marked_dirty, false);
        atomic_store(&q->has_recording_bitmaps, false);
        status = reload_tables(q, error);
    }
    if (status == 0) {
        status = qcow2_begin_writing(q, error);
    }
    if (status < 0) {
        q->options = q->old_options;
    }
    return status;
}
