/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: checking an image, and making it right again. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "block/error.h"
#include "formats/qcow2/check-internal.h"

#define PAGE_COUNTS UINT64_C(1024)

/* ---- Findings ------------------------------------------------------------------------------- */

static void tell(struct check *check, const char *format, va_list arguments)
{
    GPtrArray *findings = check->result->findings;

    if (findings && findings->len < BLOCK_CHECK_FINDINGS_MAX) {
        g_ptr_array_add(findings, g_strdup_vprintf(format, arguments));
    }
}

void check_corruption(struct check *check, const char *format, ...)
{
    va_list arguments;

    check->result->corruptions++;
    va_start(arguments, format);
    tell(check, format, arguments);
    va_end(arguments);
}

void check_leak(struct check *check, const char *format, ...)
{
    va_list arguments;

    check->result->leaks++;
    va_start(arguments, format);
    tell(check, format, arguments);
    va_end(arguments);
}

/* ---- Counts --------------------------------------------------------------------------------- */

static uint32_t *page_of(const struct check *check, uint64_t cluster)
{
    uint64_t number = cluster / PAGE_COUNTS;

    return g_hash_table_lookup(check->pages, &number);
}

static uint32_t *page_for(struct check *check, uint64_t cluster)
{
    uint32_t *page = page_of(check, cluster);

    if (!page) {
        uint64_t *number = g_new(uint64_t, 1);

        *number = cluster / PAGE_COUNTS;
        page = g_new0(uint32_t, PAGE_COUNTS);
        g_hash_table_insert(check->pages, number, page);
    }
    return page;
}

uint64_t check_references(const struct check *check, uint64_t cluster)
{
    const uint32_t *page = page_of(check, cluster);

    return page ? page[cluster % PAGE_COUNTS] : 0;
}

void check_unrefer(struct check *check, uint64_t cluster)
{
    uint32_t *page = page_of(check, cluster);

    if (page && page[cluster % PAGE_COUNTS]) {
        page[cluster % PAGE_COUNTS]--;
    }
}

bool check_refer(struct check *check, uint64_t offset, uint64_t bytes, uint64_t references,
                 const char *what)
{
    struct qcow2 *q = check->q;
    uint64_t end;

    if (bytes == 0) {
        return true;
    }
    if (!checked_add_u64(offset, bytes, &end) ||
        (end - 1) >> q->cluster_bits >= check->file_clusters) {
        check_corruption(check,
                         "%s at offset 0x%" PRIx64 " (%" PRIu64 " bytes) is beyond the end "
                         "of the file",
                         what, offset, bytes);
        return false;
    }
    for (uint64_t cluster = offset >> q->cluster_bits; cluster <= (end - 1) >> q->cluster_bits;
         cluster++) {
        uint32_t *count = &page_for(check, cluster)[cluster % PAGE_COUNTS];

        *count = (uint32_t)MIN_OF(*count + references, (uint64_t)UINT32_MAX);
        check->end = MAX_OF(check->end, cluster + 1);
    }
    return true;
}

void check_foreach_used(struct check *check,
                        void (*look)(struct check *check, uint64_t cluster, uint64_t references))
{
    GHashTableIter iterator;
    gpointer number, page;

    g_hash_table_iter_init(&iterator, check->pages);
    while (g_hash_table_iter_next(&iterator, &number, &page)) {
        for (uint64_t i = 0; i < PAGE_COUNTS; i++) {
            if (((uint32_t *)page)[i]) {
                look(check, *(uint64_t *)number * PAGE_COUNTS + i, ((uint32_t *)page)[i]);
            }
        }
    }
}

/* ---- The whole ------------------------------------------------------------------------------ */

static void check_init(struct check *check)
{
    check->pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    check->tables = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    check->file_clusters = qcow2_clusters(check->q, block_node_length(check->q->file));
}

static void check_destroy(struct check *check)
{
    g_hash_table_unref(check->pages);
    g_hash_table_unref(check->tables);
    g_free(check->l1);
    g_free(check->reftable);
}

static int run_once(struct qcow2 *q, unsigned repair, struct block_check_result *result,
                    block_progress *progress, void *progress_data)
{
    struct check check = {
        .q = q,
        .result = result,
        .repair = repair,
        .progress = progress,
        .progress_data = progress_data,
    };

    check_init(&check);
    result->total_clusters = div_round_up(q->header.size, q->cluster_size);
    int status = check_read_reftable(&check);
    if (status == 0) {
        status = check_find_references(&check);
    }
    if (status == 0) {
        status = check_compare(&check);
    }
    if (status == 0) {
        status = check_flags(&check);
    }
    result->image_end_offset = check.end << q->cluster_bits;
    check_destroy(&check);
    return status;
}

/* Once more, to say what is left. */
static int run_again(struct qcow2 *q, struct block_check_result *result)
{
    struct block_check_result second = {0};
    int status = run_once(q, 0, &second, NULL, NULL);

    result->corruptions_fixed =
        result->corruptions - MIN_OF(result->corruptions, second.corruptions);
    result->leaks_fixed = result->leaks - MIN_OF(result->leaks, second.leaks);
    result->corruptions = second.corruptions;
    result->leaks = second.leaks;
    result->image_end_offset = second.image_end_offset;
    return status;
}

static int run(struct qcow2 *q, unsigned repair, struct block_check_result *result,
               block_progress *progress, void *progress_data, GError **error)
{
    const uint64_t marks = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT;
    int status = run_once(q, repair, result, progress, progress_data);

    if (status == 0 && repair) {
        status = run_again(q, result);
    }
    if (status == 0 && repair && !result->corruptions && !result->check_errors &&
        q->header.incompatible & marks) {
        status = qcow2_set_incompatible(q, 0, marks, error);
    }
    return status < 0 && error && !*error
               ? block_error_errno(error, -status, "The check could not be completed")
               : status;
}

int qcow2_check(struct block_node *node, unsigned repair, struct block_check_result *result,
                block_progress *progress, void *progress_data, GError **error)
{
    struct qcow2 *q = qcow2_of(node);

    if (!q->options.for_check && !block_node_is_read_only(node)) {
        return block_error(error, EINVAL,
                           "Node '%s' is in use: an image is checked on a node of its own, opened "
                           "with for-check=on",
                           node->name);
    }
    if (repair && (block_node_is_read_only(node) || !q->options.for_check)) {
        return block_error(error, EACCES, "Node '%s' is read-only", node->name);
    }
    return run(q, repair, result, progress, progress_data, error);
}

int qcow2_repair_dirty(struct qcow2 *q, GError **error)
{
    struct block_check_result result = {0};
    int status =
        run(q, BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS, &result, NULL, NULL, error);

    if (status < 0) {
        g_prefix_error(error, "The image was not closed cleanly and could not be repaired: ");
    } else if (result.corruptions) {
        status = block_error(error, EIO,
                             "The image was not closed cleanly, and %" PRIu64
                             " faults remain that could not be repaired; 'liveblk check' shows "
                             "them",
                             result.corruptions);
    }
    return status;
}
