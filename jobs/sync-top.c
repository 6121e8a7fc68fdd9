/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/sync-top.h"

#include <errno.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "jobs/chain-scan.h"

/* What is scanned before the part of it that is not wanted is given up; bounds memory for bits. */
#define STRETCH GIB

/* ---- The chain ------------------------------------------------------------------------------ */

/* Others may do everything with the node but this. What it does itself is the engine's claim's. */
static int keep(struct job *job, struct block_node *node, unsigned withheld, GError **error)
{
    return job_claim_node(job, node, 0, BLOCK_PERM_ALL & ~withheld, error);
}

/* From the backing file of a layer down to the next layer: nobody puts others in their places. */
static int keep_below(struct job *job, struct block_node *node, GError **error)
{
    while (node->driver->is_filter && node->file) {
        int status = keep(job, node, BLOCK_PERM_GRAPH | BLOCK_PERM_BACKING, error);

        if (status < 0) {
            return status;
        }
        node = node->file;
    }
    return keep(job, node, BLOCK_PERM_GRAPH, error);
}

int sync_top_keep_chain(struct job *job, struct block_node *source, bool *has_below, GError **error)
{
    struct block_node *layer = block_node_below_filters(source);
    int status = keep(job, layer, BLOCK_PERM_BACKING, error);

    if (status < 0) {
        return status;
    }
    AUTO(block_node) backing = block_chain_below(layer);
    *has_below = backing;
    if (backing) {
        status = keep_below(job, backing, error);
    }
    AUTO(block_node) now = block_chain_below(layer);
    return status == 0 && now != backing
               ? block_error(error, EBUSY, "The backing file of node '%s' is just being changed",
                             layer->name)
               : status;
}

uint64_t sync_top_unit(struct block_node *target, uint64_t unit)
{
    struct block_node *layer = block_node_below_filters(target);
    AUTO(block_node) backing = block_chain_below(layer);

    return backing || !block_driver_takes_backing(layer->driver)
               ? unit
               : MAX_OF(unit, layer->limits.cluster_size);
}

/* ---- A point in time ------------------------------------------------------------------------ */

/*
 * The source is looked at after the moment, and guests have changed it in between: they allocate,
 * and a discard may take away what was there. But each change is known to the point in time before
 * it reaches the source. So what is untouched after the look was at the moment as the look found
 * it; what is touched is kept, which is seldom more than needed and never less. What guests touch
 * from now on does not matter.
 */
static void give_up_untouched(struct point_in_time *point, uint64_t start, uint64_t end,
                              uint64_t unit)
{
    if (point_in_time_is_untouched(point, start, end - start)) {
        point_in_time_discard(point, start, end - start);
    } else if (end - start > unit) {
        uint64_t half = align_up((end - start) / 2, unit);

        give_up_untouched(point, start, start + half, unit);
        give_up_untouched(point, start + half, end, unit);
    }
}

static void give_up_clean(struct point_in_time *point, struct dirty_bitmap *bitmap, uint64_t start,
                          uint64_t end)
{
    while ((start = dirty_bitmap_next_clean(bitmap, start, end)) != UINT64_MAX) {
        uint64_t next = MIN_OF(dirty_bitmap_next_dirty(bitmap, start, end), end);

        give_up_untouched(point, start, next, dirty_bitmap_granularity(bitmap));
        start = next;
    }
}

int sync_top_narrow(struct job *job, struct point_in_time *point, uint64_t unit, GError **error)
{
    struct block_node *source = point_in_time_source(point);
    struct block_node *below = block_layer_below(source);
    uint64_t length = point_in_time_length(point);
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new(NULL, length, unit, error);
    int status = bitmap ? 0 : -ENOMEM;

    for (uint64_t start = 0, bytes; status == 0 && start < length; start += bytes) {
        bytes = MIN_OF(STRETCH, length - start);
        status = chain_scan(job, source, below, start, bytes, bitmap, error);
        if (status == 0) {
            give_up_clean(point, bitmap, start, start + bytes);
            dirty_bitmap_clear(bitmap);
        }
        if (point_in_time_is_broken(point, NULL)) {
            break;
        }
    }
    return status;
}
