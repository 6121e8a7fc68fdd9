/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: checking an image, and repairing it. See check-internal.h. */
#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/check-internal.h"

/* Repairing one thing may bring another to light. */
#define ROUNDS_MAX 8

/* Memory for counts: so much for any image, and so much for each byte that the file has. */
#define COUNTS_BASE  (64 * MIB)
#define COUNTS_SHARE 8

/* ---- What all parts use --------------------------------------------------------------------- */

/* The line is taken over. */
static void add_line(struct block_check_result *result, char *line)
{
    result->finding_count++;
    if (result->findings && result->findings->len < BLOCK_CHECK_FINDINGS_MAX) {
        g_ptr_array_add(result->findings, line);
    } else {
        g_free(line);
    }
}

static void add_finding(struct check *c, enum check_severity severity, const char *format,
                        va_list arguments)
{
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    bool is_repair = c->mends && severity != CHECK_ERROR;

    add_line(c->result, g_strdup_printf("%s%s", is_repair ? "Repaired: " : "", text));
    if (!is_repair) {
        uint64_t *count = severity == CHECK_LEAK         ? &c->result->leaks
                          : severity == CHECK_CORRUPTION ? &c->result->corruptions
                                                         : &c->result->check_errors;
        ++*count;
    }
}

void check_report(struct check *c, enum check_severity severity, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    add_finding(c, severity, format, arguments);
    va_end(arguments);
}

void check_found(struct check *c, enum check_severity severity, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    if (!c->mends || severity == CHECK_ERROR) {
        add_finding(c, severity, format, arguments);
    }
    va_end(arguments);
}

int check_step(struct check *c, uint64_t tables)
{
    uint64_t total = MAX_OF(c->total, UINT64_C(1)); /* it is not known at first */

    c->done += tables;
    if (!c->progress || c->progress(c->progress_data, MIN_OF(c->done, total), total)) {
        return 0;
    }
    return -ECANCELED;
}

bool check_in_file(const struct check *c, uint64_t offset, uint64_t bytes)
{
    return range_within(offset, bytes, c->file_clusters << c->q->cluster_bits);
}

bool check_is_place(const struct check *c, uint64_t offset)
{
    return offset && is_aligned(offset, c->q->cluster_size) &&
           check_in_file(c, offset, c->q->cluster_size) && offset < QCOW2_HOST_MAX;
}

/* Ask what is at an offset inside the file, unless the last answer says it. */
static void find_extent(struct check *c, uint64_t offset)
{
    uint64_t length = block_node_length(c->q->file);
    struct block_extent extent;

    if (offset >= c->extent_start && offset < c->extent_end) {
        return;
    }
    c->extent_start = c->extent_end = offset;
    if (block_node_block_status(c->q->file, offset, length - offset, &extent) == 0) {
        c->extent_end = offset + extent.bytes;
        c->extent_is_hole = extent.flags & BLOCK_STATUS_ZERO;
    }
}

bool check_is_hole(struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = MIN_OF(offset + bytes, block_node_length(c->q->file));

    while (offset < end) {
        find_extent(c, offset);
        if (c->extent_end <= offset || !c->extent_is_hole) {
            return false;
        }
        offset = c->extent_end;
    }
    return true;
}

bool check_read(struct check *c, void *buffer, uint64_t bytes, uint64_t offset, const char *what)
{
    int status = qcow2_read_metadata(c->q, buffer, bytes, offset);

    if (status < 0) {
        check_report(c, CHECK_ERROR, "Could not read %s at offset %" PRIu64 ": %s", what, offset,
                     block_strerror(-status));
        c->lost_references = true;
    }
    return status == 0;
}

int check_write(struct check *c, const void *buffer, uint64_t bytes, uint64_t offset)
{
    c->extent_end = 0; /* what was a hole may be none any more */
    return qcow2_write_metadata(c->q, buffer, bytes, offset);
}

int check_claim(struct check *c, uint64_t offset, uint64_t bytes, enum check_kind kind,
                bool *clashes)
{
    uint64_t first = offset >> c->q->cluster_bits;
    uint64_t end = first + qcow2_clusters(c->q, bytes);
    int status = 0;

    *clashes = false;
    for (uint64_t cluster = first; cluster < end; cluster++) {
        if (check_counts_get(c->counts, cluster)) {
            *clashes = true;
            return 0;
        }
    }
    for (uint64_t cluster = first; status == 0 && cluster < end; cluster++) {
        status = check_counts_add(c->counts, cluster, 1);
        check_counts_set_kind(c->counts, cluster, kind);
    }
    return status;
}

int check_reserve(struct check *c, uint64_t clusters, uint64_t *offset)
{
    uint64_t first = check_counts_end(c->counts);
    int status = 0;

    if (!range_within(first, clusters, QCOW2_HOST_MAX >> c->q->cluster_bits)) {
        return -EFBIG;
    }
    for (uint64_t i = 0; status == 0 && i < clusters; i++) {
        status = check_counts_add(c->counts, first + i, 1);
    }
    if (status == 0) {
        status = block_node_grow(c->q->file, (first + clusters) << c->q->cluster_bits);
    }
    *offset = first << c->q->cluster_bits;
    c->file_clusters = qcow2_clusters(c->q, block_node_length(c->q->file));
    return status;
}

/* ---- A pass --------------------------------------------------------------------------------- */

/* Who asked, and what passes have in common. */
struct run {
    struct qcow2 *q;
    struct block_check_result *result;
    block_progress *progress;
    void *progress_data;
    GHashTable *not_tables;
};

static uint64_t counts_budget(const struct qcow2 *q)
{
    int64_t allocated = block_node_get_allocated_size(q->file);
    uint64_t bytes = allocated < 0 ? block_node_length(q->file) : (uint64_t)allocated;

    return COUNTS_BASE + MIN_OF(bytes, (uint64_t)INT64_MAX / COUNTS_SHARE) * COUNTS_SHARE;
}

/* What the pass finds is added to the result. */
static struct check *pass_new(const struct run *run, struct block_check_result *result)
{
    struct check *c = g_new0(struct check, 1);

    c->q = run->q;
    c->result = result;
    c->progress = run->progress;
    c->progress_data = run->progress_data;
    c->not_tables = run->not_tables;
    c->file_clusters = qcow2_clusters(c->q, block_node_length(c->q->file));
    c->counts = check_counts_new(counts_budget(c->q));
    c->tables = g_array_new(FALSE, FALSE, sizeof(struct check_table));
    c->blocks = g_array_new(FALSE, FALSE, sizeof(struct check_block));
    c->snapshots = g_array_new(FALSE, FALSE, sizeof(struct check_snapshot));
    c->snapshot_table = g_byte_array_new();
    c->bitmap_directory = g_byte_array_new();
    c->buffer = block_node_alloc_buffer(c->q->file, c->q->cluster_size);
    return c;
}

static void pass_free(struct check *c)
{
    check_counts_free(c->counts);
    g_array_unref(c->tables);
    g_array_unref(c->blocks);
    g_array_unref(c->snapshots);
    g_byte_array_unref(c->snapshot_table);
    g_byte_array_unref(c->bitmap_directory);
    if (c->bitmaps) {
        g_array_unref(c->bitmaps);
    }
    free(c->buffer);
    g_free(c);
}

DEFINE_AUTO(check, pass_free)

/* Walk over everything, up to the refcounts. */
static int walk(struct check *c)
{
    int status = c->buffer ? check_references(c) : -ENOMEM;

    if (status == 0) {
        for (guint i = 0; i < c->tables->len; i++) { /* flags are looked at later */
            c->total += g_array_index(c->tables, struct check_table, i).active;
        }
        status = check_refcount_places(c);
    }
    return status;
}

/* A pass that only looks. */
static int look(struct check *c)
{
    int status;

    g_hash_table_remove_all(c->not_tables);
    status = walk(c);
    if (status == 0) {
        status = check_compare(c, false, false);
    }
    if (status == 0) {
        status = check_copied(c, false);
    }
    c->result->total_clusters = qcow2_clusters(c->q, c->q->header.size);
    c->result->image_end_offset = c->end_cluster << c->q->cluster_bits;
    return status == -ENODATA ? 0 : status; /* it has been told why there is nothing to look at */
}

/* ---- Repair --------------------------------------------------------------------------------- */

/* Only refcounts that are too high are lowered. */
static int repair_leaks(struct check *c)
{
    if (c->lost_references) {
        add_line(c->result, g_strdup("Leaks are not repaired: what damaged entries refer to seems "
                                     "to be unused, too"));
        return 0;
    }
    c->mends = true;
    int status = check_compare(c, false, true);
    if (status == 0) {
        status = block_node_flush(c->q->file);
    }
    if (status == 0) {
        status = check_copied(c, false);
    }
    return status;
}

/* Refcounts become what was counted, and flags what refcounts are. */
static int repair_refcounts(struct check *c, bool rebuild)
{
    int status = 0;

    c->mends = true;
    if (!rebuild) {
        status = check_compare(c, true, true);
        rebuild = c->needs_rebuild;
    }
    if (status == 0 && rebuild) {
        status = check_rebuild(c);
    }
    if (status == 0) {
        status = block_node_flush(c->q->file);
    }
    if (status == 0) {
        status = check_copied(c, true);
    }
    return status == 0 ? block_node_flush(c->q->file) : status;
}

/* Walk again, mending pointers; then refcounts, of what is left. */
static int repair_pointers(struct check *c, const struct run *run)
{
    AUTO(check) mending = pass_new(run, run->result);
    int status = 0;

    mending->mends = true;
    if (c->bad_bitmaps) {
        status = check_bitmaps_drop(mending);
    }
    if (status == 0) {
        status = walk(mending);
    }
    if (status == 0) {
        status = block_node_flush(c->q->file);
    }
    if (status == 0 && mending->lost_references) {
        status = -EIO; /* what could be read before cannot now */
    }
    if (status == 0 && mending->snapshot_count && mending->bad_snapshots) {
        status = check_reserve(mending, qcow2_clusters(c->q, mending->snapshot_table->len),
                               &mending->snapshot_table_at);
    }
    if (status == 0) {
        status = check_bitmaps_reserve(mending);
    }
    if (status == 0) {
        status = repair_refcounts(mending, c->needs_rebuild);
    }
    if (status == 0) {
        status = check_snapshots_replace(mending);
    }
    if (status == 0) {
        status = check_bitmaps_replace(mending);
    }
    run->result->clusters_lost += mending->clusters_lost;
    return status;
}

/* One round, after a pass that looked. */
static int repair_once(struct check *c, const struct run *run, unsigned repair)
{
    c->result = run->result;
    if (!(repair & BLOCK_CHECK_REPAIR_ERRORS)) {
        return repair_leaks(c);
    }
    if (c->refcounts_in_the_way) {
        return repair_refcounts(c, true);
    }
    if (c->bad_entries || c->bad_snapshots || c->bad_bitmaps || c->bad_bitmap) {
        return repair_pointers(c, run);
    }
    return repair_refcounts(c, c->needs_rebuild);
}

static bool is_clean(const struct block_check_result *result)
{
    return !result->corruptions && !result->leaks && !result->check_errors;
}

/* What is left after a round is what counts from now on; what is gone was mended. */
static void take_over(struct block_check_result *result, struct block_check_result *left)
{
    result->corruptions_fixed +=
        result->corruptions - MIN_OF(result->corruptions, left->corruptions);
    result->leaks_fixed += result->leaks - MIN_OF(result->leaks, left->leaks);
    result->corruptions = left->corruptions;
    result->leaks = left->leaks;
    result->check_errors = left->check_errors;
    result->total_clusters = left->total_clusters;
    result->allocated_clusters = left->allocated_clusters;
    result->fragmented_clusters = left->fragmented_clusters;
    result->compressed_clusters = left->compressed_clusters;
    result->image_end_offset = left->image_end_offset;
}

static void tell_what_is_left(struct block_check_result *result,
                              const struct block_check_result *left)
{
    for (guint i = 0; i < left->findings->len; i++) {
        const char *line = g_ptr_array_index(left->findings, i);

        add_line(result, g_strdup_printf("Not repaired: %s", line));
    }
}

/* Rounds, until all is well or one has changed nothing. *c is the pass that has just looked. */
static int repair_rounds(struct check **c, const struct run *run, unsigned repair)
{
    struct block_check_result *result = run->result;
    g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
    struct block_check_result left = {.findings = lines};
    int status = 0;

    for (unsigned round = 0; status == 0 && round < ROUNDS_MAX && !is_clean(result); round++) {
        uint64_t corruptions = result->corruptions, leaks = result->leaks;

        status = repair_once(*c, run, repair);
        pass_free(*c);
        g_ptr_array_set_size(lines, 0);
        left = (struct block_check_result){.findings = lines};
        *c = pass_new(run, &left);
        if (status == 0) {
            status = look(*c);
        }
        if (status == 0) {
            take_over(result, &left);
        }
        if (left.check_errors || (left.corruptions == corruptions && left.leaks == leaks)) {
            break;
        }
    }
    if (status == 0) {
        tell_what_is_left(result, &left);
    }
    return status;
}

/* ---- The image's state ---------------------------------------------------------------------- */

static int change_state(struct qcow2 *q, uint64_t set, uint64_t clear, GError **error)
{
    bool changes = ((q->header.incompatible | set) & ~clear) != q->header.incompatible;

    return q->header.version >= 3 && changes ? qcow2_set_incompatible(q, set, clear, error) : 0;
}

/* Whoever opens the image after an interrupted repair is to know. */
static int begin_repair(struct qcow2 *q, GError **error)
{
    int status = block_node_grow(q->file, align_up(block_node_length(q->file), q->cluster_size));

    if (status < 0) {
        return block_error_errno(error, -status, "Could not make the image's last cluster whole");
    }
    return change_state(q, QCOW2_INCOMPATIBLE_DIRTY, 0, error);
}

static int end_repair(struct qcow2 *q, const struct block_check_result *result, bool was_dirty,
                      GError **error)
{
    uint64_t clear = was_dirty ? 0 : QCOW2_INCOMPATIBLE_DIRTY;

    if (!result->corruptions && !result->check_errors) {
        clear = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT;
    }
    return change_state(q, 0, clear, error);
}

static int explain(int status, const char *what, GError **error)
{
    switch (status) {
    case -ECANCELED:
        return block_error(error, ECANCELED, "%s was cancelled", what);
    case -ENOMEM:
        return block_error(error, ENOMEM,
                           "%s needs more memory than there is, or than an image of "
                           "this size can be worth",
                           what);
    case -EFBIG:
        return block_error(error, EFBIG,
                           "%s failed: the image is so large that there is no place "
                           "left for new tables",
                           what);
    default:
        return block_error_errno(error, -status, "%s failed", what);
    }
}

static int repair_image(struct check **c, const struct run *run, unsigned repair, GError **error)
{
    struct qcow2 *q = run->q;
    bool was_dirty = q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;

    if (run->result->check_errors) {
        add_line(run->result, g_strdup("Nothing is repaired, because not all of the image could be "
                                       "looked at"));
        return 0;
    }
    if (!is_clean(run->result)) {
        int status = begin_repair(q, error);

        if (status < 0) {
            return status;
        }
        status = repair_rounds(c, run, repair);
        if (status < 0) {
            return explain(status, "The repair", error);
        }
    }
    return end_repair(q, run->result, was_dirty, error);
}

/* ---- Entry points --------------------------------------------------------------------------- */

/* What is in the file is looked at, not what somebody has in memory. */
static int check_node(struct qcow2 *q, unsigned repair, GError **error)
{
    bool is_read_only = block_node_is_read_only(q->node);

    if (repair && is_read_only) {
        return block_error(error, EACCES,
                           "Block node '%s' is read-only: it can be checked, but "
                           "not repaired",
                           q->node->name);
    }
    if (!is_read_only && !q->options.for_check) {
        return block_error(error, EINVAL,
                           "Block node '%s' is in use: an image is checked on a node of its own, "
                           "opened with for-check=on",
                           q->node->name);
    }
    return 0;
}

int qcow2_check(struct block_node *node, unsigned repair, struct block_check_result *result,
                block_progress *progress, void *progress_data, GError **error)
{
    g_autoptr(GHashTable) not_tables =
        g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    struct run run = {qcow2_of(node), result, progress, progress_data, not_tables};
    int status = check_node(run.q, repair, error);

    if (status < 0) {
        return status;
    }
    struct check *c = pass_new(&run, result);
    status = look(c);
    if (status < 0) {
        status = explain(status, "The check", error);
    } else if (repair) {
        status = repair_image(&c, &run, repair, error);
    }
    pass_free(c);
    return status;
}

/*
 * What an image has that was not closed are refcounts and flags that are not right; its pointers
 * are. If they are not, it takes a person to decide that data is given up.
 */
static int repair_dirty(struct check *c)
{
    int status = walk(c);

    if (status == 0 && (c->bad_bitmaps || c->bad_bitmap)) {
        return -EAGAIN;
    }
    if (status == 0 && c->lost_references) {
        return -EUCLEAN;
    }
    return status == 0 ? repair_refcounts(c, c->needs_rebuild) : status;
}

/* Bitmaps are no reason for an image not to open. */
static int drop_bitmaps(const struct run *run)
{
    AUTO(check) c = pass_new(run, run->result);

    c->mends = true;
    return check_bitmaps_drop(c);
}

int qcow2_repair_dirty(struct qcow2 *q, GError **error)
{
    g_autoptr(GHashTable) not_tables =
        g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    struct block_check_result result = {0};
    struct run run = {.q = q, .result = &result, .not_tables = not_tables};
    AUTO(check) c = pass_new(&run, &result);
    int status = block_node_grow(q->file, align_up(block_node_length(q->file), q->cluster_size));

    if (status == 0) {
        status = repair_dirty(c);
    }
    if (status == -EAGAIN) {
        g_warning("The bitmaps of a qcow2 image that was not closed are damaged; all are dropped");
        pass_free(c);
        status = drop_bitmaps(&run);
        c = pass_new(&run, &result);
        status = status == 0 ? repair_dirty(c) : status;
    }
    if (status == -EUCLEAN || status == -ENODATA) {
        return block_error(error, EIO,
                           "The image was not closed, and is damaged: 'liveblk check --repair all' "
                           "may mend it. It can be opened read-only");
    }
    return status < 0 ? explain(status, "The repair of an image that was not closed", error)
                      : change_state(q, 0, QCOW2_INCOMPATIBLE_DIRTY, error);
}
