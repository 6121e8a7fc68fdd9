/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: internal snapshots ("Snapshots"). The node is drained in all of these.
 *
 * Refcounts are raised, and COPIED flags cleared, before anything on disk refers to clusters a
 * second time; they fall after the last reference has gone. Refcounts and flags cannot change at
 * one instant: in version 3 the image has the dirty bit meanwhile, so that whoever opens it after a
 * crash makes them agree. In version 2, which has no such bit, a crash may leave refcounts that are
 * too high, and flags that do not agree with them: a check complains of both, which cost space and
 * copies but no data.
 */
#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"

/* ---- References of an L1 table -------------------------------------------------------------- */

/* What is done with each L2 table and entry. Returns a negative errno. */
struct visitor {
    int (*table)(struct qcow2 *q, uint64_t offset, void *data);
    int (*entry)(struct qcow2 *q, uint64_t descriptor, void *data);
    void *data;
    bool goes_on; /* after an error, with the next table */
};

static int visit_table(struct qcow2 *q, uint64_t offset, uint64_t *words,
                       const struct visitor *visitor)
{
    uint64_t count = q->cluster_size / sizeof(*words);
    int status = is_aligned(offset, q->cluster_size)
                     ? qcow2_read_words(q, words, count, offset)
                     : qcow2_mark_corrupt(q, offset, q->cluster_size, "An L2 table is not aligned");

    for (uint64_t i = 0; status == 0 && i < count; i += q->entry_words) {
        if (words[i]) {
            status = visitor->entry(q, words[i], visitor->data);
        }
    }
    return status == 0 ? visitor->table(q, offset, visitor->data) : status;
}

/* No table may stand in an L1 table twice: a hostile one could keep us at it for ever. Returns the
 * first error. */
static int visit(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size,
                 const struct visitor *visitor)
{
    g_autofree uint64_t *words = g_malloc(q->cluster_size);
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    int status = 0, first = 0;

    for (uint32_t i = 0; i < l1_size && (status == 0 || visitor->goes_on); i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK;

        status = 0;
        if (offset && (!g_hash_table_add(seen, GSIZE_TO_POINTER(offset)) ||
                       offset >= block_node_length(q->file))) {
            status = qcow2_mark_corrupt(q, offset, q->cluster_size,
                                        "An L1 table refers to an L2 table twice, or to one that "
                                        "is not in the file");
        } else if (offset) {
            status = visit_table(q, offset, words, visitor);
        }
        first = first ? first : status;
    }
    return first;
}

/* Raising refcounts: how many steps there were, or are to be taken back. */
struct raise {
    uint64_t done;
    uint64_t undo;
};

static int change(struct qcow2 *q, struct raise *raise, uint64_t offset, uint64_t bytes)
{
    if (raise->undo == 0) {
        int status = qcow2_refcount_add(q, offset, bytes, 1);

        raise->done += status == 0;
        return status;
    }
    q->needs_repair |= qcow2_refcount_add(q, offset, bytes, -1) < 0;
    return --raise->undo ? 0 : -ECANCELED; /* that was the last one */
}

static int raise_table(struct qcow2 *q, uint64_t offset, void *data)
{
    return change(q, data, offset, q->cluster_size);
}

static int raise_entry(struct qcow2 *q, uint64_t descriptor, void *data)
{
    uint64_t offset = descriptor & QCOW2_OFFSET_MASK, bytes = q->cluster_size;

    if (descriptor & QCOW2_COMPRESSED) {
        qcow2_compressed_range(q, descriptor, &offset, &bytes);
    } else if (!offset) {
        return 0;
    } else if (!is_aligned(offset, q->cluster_size)) {
        return qcow2_mark_corrupt(q, offset, bytes, "A cluster's offset is not aligned");
    }
    return change(q, data, offset, bytes);
}

/* One more reference to all that an L1 table refers to, or none. */
static int add_references(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size)
{
    struct raise raise = {0};
    struct visitor visitor = {raise_table, raise_entry, &raise, false};
    int status = visit(q, l1, l1_size, &visitor);

    if (status < 0 && raise.done) {
        raise.undo = raise.done;
        q->needs_repair |= visit(q, l1, l1_size, &visitor) != -ECANCELED;
    }
    return status;
}

static int drop_table(struct qcow2 *q, uint64_t offset, void *data)
{
    qcow2_give_up(q, offset, q->cluster_size, false);
    return 0;
}

static int drop_entry(struct qcow2 *q, uint64_t descriptor, void *data)
{
    qcow2_give_up_entry(q, descriptor, q->options.discard_snapshot);
    return 0;
}

/*
 * Nothing on disk refers to the table any more (l1_offset 0: it never was there). What cannot be
 * read leaks until the image is repaired. After an error refcounts may fall later, when flags have
 * been set by what they are now.
 */
static int drop_references(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size,
                           uint64_t l1_offset)
{
    const struct visitor visitor = {drop_table, drop_entry, NULL, true};

    q->needs_repair |= visit(q, l1, l1_size, &visitor) < 0;
    if (l1_size && l1_offset) {
        qcow2_give_up(q, l1_offset, l1_size * sizeof(uint64_t), false);
    }
    return qcow2_reclaim_all(q);
}

/* ---- COPIED flags --------------------------------------------------------------------------- */

static int flag_of(struct qcow2 *q, uint64_t offset, uint64_t *flag)
{
    uint64_t refcount;
    int status = qcow2_refcount_get(q, offset, &refcount);

    *flag = status == 0 && refcount == 1 ? QCOW2_COPIED : 0;
    return status;
}

static int set_table_flags(struct qcow2 *q, uint64_t offset, uint64_t *words)
{
    uint64_t count = q->cluster_size / sizeof(*words), flag;
    bool is_changed = false;
    int status = qcow2_read_words(q, words, count, offset);

    for (uint64_t i = 0; status == 0 && i < count; i += q->entry_words) {
        if (words[i] & QCOW2_COMPRESSED || !(words[i] & QCOW2_OFFSET_MASK)) {
            continue;
        }
        status = flag_of(q, words[i] & QCOW2_OFFSET_MASK, &flag);
        if (status == 0 && (words[i] & QCOW2_COPIED) != flag) {
            words[i] ^= QCOW2_COPIED;
            is_changed = true;
        }
    }
    if (status == 0 && is_changed) {
        status = qcow2_check_overlap(q, QCOW2_AREA_L2, offset, q->cluster_size);
    }
    return status == 0 && is_changed ? qcow2_write_words(q, words, count, offset) : status;
}

/* Make the flags below an L1 table, and in the array, those that the refcounts say; flush. */
static int set_flags(struct qcow2 *q, uint64_t *l1, uint32_t l1_size)
{
    g_autofree uint64_t *words = g_malloc(q->cluster_size);
    int status = 0;

    for (uint32_t i = 0; status == 0 && i < l1_size; i++) {
        uint64_t offset = l1[i] & QCOW2_OFFSET_MASK, flag;

        if (offset) {
            status = flag_of(q, offset, &flag);
            l1[i] = (l1[i] & ~QCOW2_COPIED) | flag;
        }
        if (status == 0 && offset) {
            status = set_table_flags(q, offset, words);
        }
    }
    return status == 0 ? block_node_flush(q->file) : status;
}

static uint64_t *copy_active(struct qcow2 *q)
{
    uint64_t *l1 = g_new(uint64_t, MAX_OF(q->l1_size, 1u));

    for (uint32_t i = 0; i < q->l1_size; i++) {
        l1[i] = atomic_load(&q->l1[i]);
    }
    return l1;
}

/* Other entries of the active L1 table, of the same length, on disk and in memory. */
static int change_active(struct qcow2 *q, const uint64_t *l1)
{
    int status = qcow2_write_words(q, l1, q->l1_size, q->header.l1_offset);

    if (status == 0) {
        status = block_node_flush(q->file);
    }
    return status == 0 ? qcow2_set_l1(q, l1, q->l1_size) : status;
}

/* The flags of the active tables, on disk and in memory. */
static int set_active_flags(struct qcow2 *q)
{
    g_autofree uint64_t *l1 = copy_active(q);
    int status = set_flags(q, l1, q->l1_size);

    return status == 0 ? change_active(q, l1) : status;
}

/* ---- Beginning and end of an operation ------------------------------------------------------ */

static int begin(struct qcow2 *q, GError **error)
{
    int status;

    if (!qcow2_may_write(q)) {
        return qcow2_refuse_change(q, error);
    }
    if (q->has_data_file) {
        return block_error(error, ENOTSUP,
                           "Images with an external data file cannot have snapshots");
    }
    status = qcow2_reclaim_all(q);
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write metadata");
    }
    return q->header.version >= 3 && !atomic_load(&q->is_marked_dirty)
               ? qcow2_set_incompatible(q, QCOW2_INCOMPATIBLE_DIRTY, 0, error)
               : 0;
}

/*
 * All agrees again (status 0). If it does not, or that cannot be said, now or after an operation
 * before, the image is made to agree when it is opened again.
 */
static void end(struct qcow2 *q, int status)
{
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    q->needs_repair |= status < 0;
    if (!q->needs_repair && q->header.version >= 3 && !atomic_load(&q->is_marked_dirty)) {
        qcow2_set_incompatible(q, 0, QCOW2_INCOMPATIBLE_DIRTY, NULL);
    }
}

/* The snapshot of this ID and its L1 table, which the caller frees, after an error, too. */
static int find(struct qcow2 *q, const char *id, struct qcow2_snapshot **found, uint64_t **l1,
                GError **error)
{
    struct qcow2_snapshot *snapshot = *found = qcow2_snapshot_find(q, id);

    if (!snapshot) {
        return block_error(error, ENOENT, "There is no snapshot '%s'", id);
    }
    *l1 = g_try_new0(uint64_t, MAX_OF(snapshot->l1_size, 1u));
    int status = *l1 ? qcow2_read_words(q, *l1, snapshot->l1_size, snapshot->l1_offset) : -ENOMEM;

    return status < 0
               ? block_error_errno(error, -status, "Could not read the L1 table of snapshot '%s'",
                                   snapshot->name)
               : 0;
}

/* The same, and begin an operation with it. */
static int begin_with(struct qcow2 *q, const char *id, struct qcow2_snapshot **found, uint64_t **l1,
                      GError **error)
{
    int status = find(q, id, found, l1, error);

    return status < 0 ? status : begin(q, error);
}

/* ---- Creating ------------------------------------------------------------------------------- */

/* Write a copy of the active L1 table for the snapshot. */
static int copy_l1(struct qcow2 *q, struct qcow2_snapshot *snapshot)
{
    g_autofree uint64_t *l1 = copy_active(q);
    uint64_t clusters = qcow2_clusters(q, q->l1_size * sizeof(uint64_t));
    bool is_new;
    int status =
        clusters ? qcow2_allocate(q, clusters, true, &snapshot->l1_offset, NULL, &is_new) : 0;

    snapshot->l1_size = q->l1_size;
    if (status == 0 && clusters) {
        status = qcow2_write_words(q, l1, q->l1_size, snapshot->l1_offset);
        if (status < 0) {
            qcow2_unallocate(q, snapshot->l1_offset, clusters);
        }
    }
    return status;
}

/* Refcounts are raised and flags cleared: enter the snapshot in the table. */
static int record(struct qcow2 *q, struct qcow2_snapshot *snapshot, GError **error)
{
    struct qcow2_snapshot *list = g_new(struct qcow2_snapshot, q->snapshot_count + 1);
    int status = copy_l1(q, snapshot);

    if (status < 0) {
        g_free(list);
        return block_error_errno(error, -status, "Could not write the snapshot's L1 table");
    }
    memcpy(list, q->snapshots, q->snapshot_count * sizeof(*list));
    list[q->snapshot_count] = *snapshot;
    status = qcow2_snapshots_store(q, list, q->snapshot_count + 1, error);
    if (status < 0) {
        qcow2_unallocate(q, snapshot->l1_offset,
                         qcow2_clusters(q, snapshot->l1_size * sizeof(uint64_t)));
        g_free(list);
        return status;
    }
    g_free(q->snapshots);
    q->snapshots = list;
    q->snapshot_count++;
    return 0;
}

/* The references of a snapshot that has not come to be. */
static int take_back(struct qcow2 *q)
{
    g_autofree uint64_t *l1 = copy_active(q);

    int status = drop_references(q, l1, q->l1_size, 0);
    return status == 0 ? set_active_flags(q) : status;
}

/*
 * VM state is the snapshot's from now on. In the image's current state it would only take space,
 * and be copied when the next one is written. It has L2 tables of its own.
 */
static int leave_vmstate(struct qcow2 *q)
{
    uint64_t first = qcow2_l1_entries(q, q->header.size);
    g_autofree uint64_t *before = copy_active(q), *l1 = copy_active(q);
    bool has_some = false;

    for (uint64_t i = first; i < q->l1_size; i++) {
        has_some |= l1[i];
        l1[i] = 0;
    }
    int status = has_some ? change_active(q, l1) : 0;
    return status == 0 && has_some
               ? drop_references(q, before + first, (uint32_t)(q->l1_size - first), 0)
               : status;
}

/* *agrees: 0 if refcounts and flags agree afterwards, whether or not there is a snapshot. */
static int create(struct qcow2 *q, struct qcow2_snapshot *snapshot, int *agrees, GError **error)
{
    g_autofree uint64_t *l1 = copy_active(q);
    int status = add_references(q, l1, q->l1_size);

    if (status == -ERANGE) {
        return block_error(error, ENOSPC,
                           "The image's refcounts (%u bits) cannot count one more snapshot",
                           1u << q->refcount_order);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "Could not share the disk with the snapshot");
    }
    status = qcow2_commit_all(q);
    if (status == 0) {
        status = set_active_flags(q);
    }
    if (status < 0) {
        block_error_errno(error, -status, "Could not share the disk with the snapshot");
    } else {
        status = record(q, snapshot, error);
    }
    if (status == 0) {
        *agrees = leave_vmstate(q);
    } else {
        *agrees = qcow2_may_write(q) ? take_back(q) : -EIO;
    }
    return status;
}

int qcow2_snapshot_create(struct block_node *node, const struct block_snapshot_info *info,
                          GError **error)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->snapshot_count >= QCOW2_SNAPSHOTS_MAX || strlen(info->name) > UINT16_MAX ||
        (info->id && strlen(info->id) > UINT16_MAX)) {
        return block_error(error, EFBIG, "An image can have %u snapshots, with names of %u bytes",
                           QCOW2_SNAPSHOTS_MAX, UINT16_MAX);
    }
    if (info->id && qcow2_snapshot_find(q, info->id)) {
        return block_error(error, EEXIST, "There is a snapshot '%s' already", info->id);
    }
    int status = begin(q, error);
    if (status < 0) {
        return status;
    }
    struct qcow2_snapshot snapshot = {
        .id = info->id ? g_strdup(info->id) : qcow2_snapshot_new_id(q),
        .name = g_strdup(info->name),
        .date_sec = (uint32_t)info->date_sec,
        .date_nsec = info->date_nsec,
        .vm_clock_nsec = info->vm_clock_nsec,
        .vm_state_bytes = info->vm_state_size,
        .disk_bytes = q->header.size,
        .icount = info->icount,
    };
    int agrees = 0;
    status = create(q, &snapshot, &agrees, error);
    if (status < 0) {
        g_free(snapshot.id);
        g_free(snapshot.name);
    }
    end(q, agrees);
    return status;
}

/* ---- Deleting ------------------------------------------------------------------------------- */

int qcow2_snapshot_delete(struct block_node *node, const char *id, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_snapshot *snapshot;
    g_autofree uint64_t *l1 = NULL;
    int status = begin_with(q, id, &snapshot, &l1, error);

    if (status < 0) {
        return status;
    }
    size_t index = (size_t)(snapshot - q->snapshots), rest = q->snapshot_count - 1 - index;
    struct qcow2_snapshot gone = *snapshot;
    struct qcow2_snapshot *list = g_new(struct qcow2_snapshot, q->snapshot_count);
    memcpy(list, q->snapshots, index * sizeof(*list));
    memcpy(list + index, q->snapshots + index + 1, rest * sizeof(*list));
    status = qcow2_snapshots_store(q, list, q->snapshot_count - 1, error);
    if (status < 0) {
        g_free(list);
        end(q, qcow2_may_write(q) ? 0 : -EIO);
        return status;
    }
    g_free(q->snapshots);
    q->snapshots = list;
    q->snapshot_count--;
    status = drop_references(q, l1, gone.l1_size, gone.l1_offset);
    if (status == 0) {
        status = set_active_flags(q);
    }
    g_free(gone.id);
    g_free(gone.name);
    g_free(gone.extra);
    end(q, status);
    return 0; /* it is gone, even if some of its space is not free before the image is repaired */
}

/* ---- Applying ------------------------------------------------------------------------------- */

/* Let the header refer to another active L1 table, of a disk of another length. */
static int switch_active(struct qcow2 *q, uint64_t l1_offset, uint32_t l1_size, uint64_t disk_bytes)
{
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.size = disk_bytes;
    q->header.l1_size = l1_size;
    q->header.l1_offset = l1_offset;
    return qcow2_header_switch(q, &before, 24, 48); /* size ... l1_table_offset: in one sector */
}

static uint64_t l1_clusters(const struct qcow2 *q, uint32_t l1_size)
{
    return qcow2_clusters(q, MAX_OF(l1_size, 1u) * sizeof(uint64_t));
}

/* Put a copy of the snapshot's L1 table, whose references are counted, into the file. */
static int put_l1(struct qcow2 *q, uint64_t *l1, uint32_t l1_size, uint64_t *offset)
{
    uint64_t clusters = l1_clusters(q, l1_size);
    bool is_new;
    int status = set_flags(q, l1, l1_size);

    if (status == 0) {
        status = qcow2_allocate(q, clusters, true, offset, NULL, &is_new);
    }
    if (status < 0) {
        return status;
    }
    status = qcow2_write_words(q, l1, l1_size, *offset);
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status < 0) {
        qcow2_unallocate(q, *offset, clusters);
    }
    return status;
}

/* The snapshot's tables become the active ones. What they refer to is counted, and stable. */
static int switch_to(struct qcow2 *q, const struct qcow2_snapshot *snapshot, uint64_t *l1,
                     GError **error)
{
    uint64_t offset;
    int status = put_l1(q, l1, snapshot->l1_size, &offset);

    if (status < 0) {
        return block_error_errno(error, -status, "Could not share the snapshot with the disk");
    }
    status = switch_active(q, offset, snapshot->l1_size, snapshot->disk_bytes);
    if (status < 0) {
        qcow2_unallocate(q, offset, l1_clusters(q, snapshot->l1_size));
        return block_error_errno(error, -status, "Could not write the header");
    }
    return 0;
}

static int apply(struct qcow2 *q, const struct qcow2_snapshot *snapshot, uint64_t *l1, int *agrees,
                 GError **error)
{
    g_autofree uint64_t *old_l1 = copy_active(q);
    uint64_t old_offset = q->header.l1_offset;
    uint32_t old_size = q->l1_size;
    int status = add_references(q, l1, snapshot->l1_size);

    if (status < 0) {
        return block_error_errno(error, -status, "Could not share the snapshot with the disk");
    }
    status = qcow2_commit_all(q);
    if (status < 0) {
        block_error_errno(error, -status, "Could not share the snapshot with the disk");
    } else {
        status = switch_to(q, snapshot, l1, error);
    }
    if (status < 0) {
        *agrees = qcow2_may_write(q) ? drop_references(q, l1, snapshot->l1_size, 0) : -EIO;
        return status;
    }
    status = qcow2_set_l1(q, l1, snapshot->l1_size);
    if (status < 0) {
        qcow2_stop(q, "there was no memory for tables that count now");
    } else {
        status = drop_references(q, old_l1, old_size, old_offset);
    }
    if (status == 0) {
        status = set_active_flags(q);
    }
    *agrees = status;
    return status < 0 ? block_error_errno(error, -status,
                                          "The snapshot is applied, but the image could not be "
                                          "brought up to date; check it")
                      : 0;
}

int qcow2_snapshot_apply(struct block_node *node, const char *id, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_snapshot *snapshot;
    g_autofree uint64_t *l1 = NULL;
    int status = begin_with(q, id, &snapshot, &l1, error);

    if (status < 0) {
        return status;
    }
    status = qcow2_bitmaps_outdate(q, snapshot->disk_bytes != q->header.size);
    if (status < 0) {
        end(q, 0);
        return block_error_errno(error, -status,
                                 "Could not mark the bitmaps of the image as in "
                                 "use");
    }
    int agrees = 0;
    status = apply(q, snapshot, l1, &agrees, error);
    end(q, agrees);
    return status;
}

/* ---- Questions ------------------------------------------------------------------------------ */

int qcow2_snapshot_list(struct block_node *node, struct block_snapshot_info **list, size_t *count)
{
    struct qcow2 *q = qcow2_of(node);

    *list = g_new0(struct block_snapshot_info, MAX_OF(q->snapshot_count, (size_t)1));
    *count = q->snapshot_count;
    for (size_t i = 0; i < q->snapshot_count; i++) {
        const struct qcow2_snapshot *snapshot = &q->snapshots[i];

        (*list)[i] = (struct block_snapshot_info){
            .id = g_strdup(snapshot->id),
            .name = g_strdup(snapshot->name),
            .vm_state_size = snapshot->vm_state_bytes,
            .date_sec = snapshot->date_sec,
            .date_nsec = snapshot->date_nsec,
            .vm_clock_nsec = snapshot->vm_clock_nsec,
            .icount = snapshot->icount,
            .length = snapshot->disk_bytes,
        };
    }
    return 0;
}

int qcow2_snapshot_load(struct block_node *node, const char *id, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    struct qcow2_snapshot *snapshot;
    g_autofree uint64_t *l1 = NULL;
    int status = find(q, id, &snapshot, &l1, error);

    if (status < 0) {
        return status;
    }
    status = qcow2_set_l1(q, l1, snapshot->l1_size);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not show snapshot '%s'", id);
    }
    q->header.size = snapshot->disk_bytes;
    return 0;
}

/* ---- VM state ------------------------------------------------------------------------------- */

/* Where bytes of it are; -EFBIG if no L1 table can go so far. */
static int place_vmstate(const struct qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t *start)
{
    uint64_t first = qcow2_vmstate_start(q, q->header.size);
    uint64_t limit = qcow2_covered(q, QCOW2_L1_BYTES_MAX / sizeof(uint64_t));

    if (first > limit || !range_within(offset, bytes, limit - first)) {
        return -EFBIG;
    }
    *start = first + offset;
    return 0;
}

/* Have room for it; in steps, since each takes a new table. */
static int grow_for_vmstate(struct qcow2 *q, uint64_t end)
{
    uint64_t needed = qcow2_l1_entries(q, end);
    uint64_t step = q->l1_size + (uint64_t)q->l1_size / 2;
    GError *error = NULL;
    int status =
        needed <= q->l1_size
            ? 0
            : qcow2_grow_l1(q, CLAMP(step, needed, QCOW2_L1_BYTES_MAX / sizeof(uint64_t)), &error);

    g_clear_error(&error);
    return status;
}

int qcow2_vmstate_read(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t start;
    int status = place_vmstate(q, offset, bytes, &start);

    if (status < 0) {
        return status;
    }
    unsigned slot = epoch_enter(&q->epoch);
    status = qcow2_read(q, buffer, start, bytes);
    epoch_leave(&q->epoch, slot);
    return status;
}

int qcow2_vmstate_write(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t start;

    if (!qcow2_may_write(q) || q->has_data_file) {
        return q->has_data_file ? -ENOTSUP : -EIO;
    }
    int status = place_vmstate(q, offset, bytes, &start);
    if (status == 0) {
        status = grow_for_vmstate(q, start + bytes);
    }
    if (status < 0) {
        return status;
    }
    unsigned slot = epoch_enter(&q->epoch);
    status = qcow2_write(q, buffer, start, bytes);
    epoch_leave(&q->epoch, slot);
    return status;
}
