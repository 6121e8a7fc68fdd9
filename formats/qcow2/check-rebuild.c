/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: new refcounts, in space that nothing uses, from what was counted.
 *
 * The old table and blocks stay as they are until the new ones are stable; then the header is
 * switched to these by one write inside its first sector.
 */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "formats/qcow2/check-internal.h"

struct rebuild {
    struct check *c;
    GArray *blocks;    /* uint64_t: indices of the blocks needed, in order */
    uint64_t clusters; /* of the table */
    uint64_t at;       /* offset of the table; the blocks follow it */
};

static void forget_old(struct check *c)
{
    uint64_t first = c->q->header.reftable_offset >> c->q->cluster_bits;

    for (uint64_t i = 0; i < c->table_clusters; i++) {
        check_counts_add(c->counts, first + i, -1);
    }
    for (guint i = 0; i < c->blocks->len; i++) {
        const struct check_block *block = &g_array_index(c->blocks, struct check_block, i);

        if (block->counted) {
            check_counts_add(c->counts, block->offset >> c->q->cluster_bits, -1);
        }
    }
    g_array_set_size(c->blocks, 0);
    c->table_clusters = 0;
}

static bool is_used(struct check *c, const struct check_page *page)
{
    for (uint64_t i = 0; i < CHECK_PAGE_CLUSTERS; i++) {
        if (check_counts_get(c->counts, (page->index << CHECK_PAGE_BITS) + i)) {
            return true;
        }
    }
    return false;
}

static void need_block(struct rebuild *rebuild, uint64_t index)
{
    guint count = rebuild->blocks->len;

    if (!count || g_array_index(rebuild->blocks, uint64_t, count - 1) < index) {
        g_array_append_val(rebuild->blocks, index);
    }
}

static void need_blocks_for_pages(struct rebuild *rebuild)
{
    struct check *c = rebuild->c;
    g_autoptr(GPtrArray) pages = check_counts_pages(c->counts);

    for (guint i = 0; i < pages->len; i++) {
        const struct check_page *page = g_ptr_array_index(pages, i);

        if (is_used(c, page)) {
            need_block(rebuild, page->index << CHECK_PAGE_BITS >> check_block_bits(c));
        }
    }
}

/*
 * Blocks and table lie behind all that is used and need refcounts, too. What they need only grows
 * with each turn of the loop, and by ever less.
 */
static void plan(struct rebuild *rebuild)
{
    struct check *c = rebuild->c;
    uint64_t first = check_counts_end(c->counts), before;

    need_blocks_for_pages(rebuild);
    rebuild->at = first << c->q->cluster_bits;
    do {
        before = rebuild->blocks->len + rebuild->clusters;
        uint64_t last = first + MAX_OF(before, UINT64_C(1)) - 1;

        for (uint64_t i = first >> check_block_bits(c); i <= last >> check_block_bits(c); i++) {
            need_block(rebuild, i);
        }
        uint64_t entries = g_array_index(rebuild->blocks, uint64_t, rebuild->blocks->len - 1) + 1;
        rebuild->clusters = qcow2_clusters(c->q, entries * sizeof(uint64_t));
    } while (rebuild->blocks->len + rebuild->clusters > before);
}

/* Write the block at a position in the list. */
static int write_block(struct rebuild *rebuild, guint position)
{
    struct check *c = rebuild->c;
    uint64_t index = g_array_index(rebuild->blocks, uint64_t, position);
    uint64_t refcounts = UINT64_C(1) << check_block_bits(c);
    uint64_t offset = rebuild->at + ((rebuild->clusters + position) << c->q->cluster_bits);

    memset(c->buffer, 0, c->q->cluster_size);
    for (uint64_t i = 0; i < refcounts; i++) {
        uint64_t cluster = (index << check_block_bits(c)) + i;
        uint64_t counted = check_counts_get(c->counts, cluster);
        uint64_t now = MIN_OF(counted, check_refcount_max(c));

        if (counted) {
            qcow2_refblock_set(c->buffer, c->q->header.refcount_order, i, now);
            check_counts_set_stored(c->counts, cluster,
                                    now == 1 ? CHECK_STORED_ONE_NOW : CHECK_STORED_OTHER);
        }
    }
    return check_write(c, c->buffer, c->q->cluster_size, offset);
}

static int write_table(struct rebuild *rebuild)
{
    const struct qcow2 *q = rebuild->c->q;
    uint64_t bytes = rebuild->clusters << q->cluster_bits;
    AUTO_FREE uint64_t *words = calloc(1, bytes);

    if (!words) {
        return -ENOMEM;
    }
    for (guint i = 0; i < rebuild->blocks->len; i++) {
        words[g_array_index(rebuild->blocks, uint64_t, i)] =
            htobe64(rebuild->at + ((rebuild->clusters + i) << q->cluster_bits));
    }
    return check_write(rebuild->c, words, bytes, rebuild->at);
}

static int switch_to(struct rebuild *rebuild)
{
    struct qcow2 *q = rebuild->c->q;
    int status = block_node_flush(q->file);

    return status == 0 ? qcow2_switch_reftable(q, rebuild->at, (uint32_t)rebuild->clusters)
                       : status;
}

static int write_all(struct rebuild *rebuild)
{
    int status = write_table(rebuild);

    for (guint i = 0; status == 0 && i < rebuild->blocks->len; i++) {
        status = check_step(rebuild->c, 0);
        if (status == 0) {
            status = write_block(rebuild, i);
        }
    }
    if (status == 0) {
        status = switch_to(rebuild);
    }
    return status;
}

int check_rebuild(struct check *c)
{
    g_autoptr(GArray) blocks = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    struct rebuild rebuild = {.c = c, .blocks = blocks};
    uint64_t offset;

    forget_old(c);
    plan(&rebuild);
    if (rebuild.clusters << c->q->cluster_bits >
        MAX_OF(QCOW2_REFTABLE_BYTES_MAX, c->q->cluster_size)) {
        return -EFBIG;
    }
    int status = check_reserve(c, rebuild.clusters + blocks->len, &offset);
    if (status == 0) {
        status = write_all(&rebuild);
    }
    if (status == 0) {
        check_report(c, CHECK_CORRUPTION,
                     "The refcount table and its blocks were damaged; all "
                     "refcounts are written anew");
    }
    return status;
}
