/* SPDX-License-Identifier: BSD-3-Clause */
/* A mirror of the top layer alone: what that holds, and the layers below when the disk moves. */
#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "jobs/chain-scan.h"
#include "jobs/mirror-internal.h"
#include "jobs/sync-top.h"

int mirror_top_choose(struct mirror *mirror, GError **error)
{
    bool has_below = false;
    int status = 0;

    if (mirror->sync == MIRROR_SYNC_TOP) {
        status = sync_top_keep_chain(mirror->job, mirror->source_node, &has_below, error);
        mirror->sync = has_below ? MIRROR_SYNC_TOP : MIRROR_SYNC_FULL;
    }
    return status;
}

/*
 * The bitmap is on the source already: what guests do meanwhile, discards too, sets bits whatever
 * the scan finds.
 */
int mirror_top_scan(struct mirror *mirror, GError **error)
{
    int status = 0;

    if (mirror->sync == MIRROR_SYNC_TOP) {
        job_set_phase(mirror->job, "scanning");
        status =
            chain_scan(mirror->job, mirror->source_node, block_layer_below(mirror->source_node), 0,
                       mirror->length, mirror->bitmap, error);
        mirror->pass_bytes = mirror_left(mirror); /* the engine does not run yet */
        mirror_update_total(mirror);
    }
    return status;
}

/* ---- The layers below the target ------------------------------------------------------------ */

struct attachment {
    struct mirror *mirror;
    struct block_node *backing; /* NULL: none */
    int status;
    GError **error;
};

/* Main thread, the target drained. */
static void set_backing(void *data)
{
    struct attachment *attachment = data;
    struct mirror *mirror = attachment->mirror;

    attachment->status =
        block_node_set_backing(block_node_below_filters(mirror->target), attachment->backing,
                               copy_engine_target_claim(mirror->engine), attachment->error);
}

/* Others may read the target. */
static int change_backing(struct mirror *mirror, struct block_node *backing, GError **error)
{
    struct attachment attachment = {.mirror = mirror, .backing = backing, .error = error};
    struct block_node *layer = block_node_below_filters(mirror->target);
    AUTO(block_drain) drain = block_drain_begin(&layer, 1, BLOCK_PERM_ALL);

    main_loop_call_wait(set_backing, &attachment);
    return attachment.status;
}

/* The claims of engine and job keep both chains as they are. */
int mirror_top_attach(struct mirror *mirror, GError **error)
{
    const struct block_node *layer = block_node_below_filters(mirror->target);

    if (mirror->sync != MIRROR_SYNC_TOP || layer->backing) {
        return 0;
    }
    if (!block_driver_takes_backing(layer->driver)) {
        return block_error(error, ENOTSUP,
                           "The disk cannot move to target '%s': that has only what the top layer "
                           "held, and nodes of driver '%s' have no backing file for the rest",
                           mirror->target->name, layer->driver->name);
    }
    if (mirror->granularity < layer->limits.cluster_size) { /* see sync_top_unit */
        return block_error(error, EBUSY,
                           "The target '%s' has lost its backing file since the mirror began",
                           mirror->target->name);
    }
    int status =
        change_backing(mirror, block_node_below_filters(mirror->source_node)->backing, error);
    mirror->has_attached = status == 0;
    return status;
}

void mirror_top_detach(struct mirror *mirror)
{
    if (mirror->has_attached) {
        mirror->has_attached = false;
        change_backing(mirror, NULL, NULL);
    }
}
