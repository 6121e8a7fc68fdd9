/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-scan.h"

#include <errno.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"

/* What is asked for at once. A driver may have to read a table for each 512 MiB. */
#define STEP (256 * MIB)

/*
 * So much counts as allocated where a layer cannot tell: what an unreadable table of qcow2's
 * describes is larger, but may be readable in parts, and each try may take as long as storage does.
 */
#define UNKNOWN_STEP MIB

/*
 * The claim is one of its own because a drain has to wait for a look at the chain, as for a read,
 * and the job's engine, which knows of its own reads only, does not run yet.
 */
struct scan {
    struct job *job;
    struct block_claim claim;
    pthread_mutex_t lock; /* a leaf */
    pthread_cond_t quiet;
    unsigned drains;
    bool is_looking;
    chain_scan_function *function;
    void *data;
};

/* ---- Drains --------------------------------------------------------------------------------- */

static struct scan *scan_of(struct block_claim *claim)
{
    return (struct scan *)((char *)claim - offsetof(struct scan, claim));
}

static void drain_begin(struct block_claim *claim)
{
    struct scan *scan = scan_of(claim);
    SCOPE_LOCK(&scan->lock);

    scan->drains++;
}

static void drain_wait(struct block_claim *claim)
{
    struct scan *scan = scan_of(claim);
    SCOPE_LOCK(&scan->lock);

    while (scan->is_looking) {
        pthread_cond_wait(&scan->quiet, &scan->lock);
    }
}

static void drain_end(struct block_claim *claim)
{
    struct scan *scan = scan_of(claim);

    pthread_mutex_lock(&scan->lock);
    scan->drains--;
    pthread_mutex_unlock(&scan->lock);
    job_kick(scan->job);
}

static const struct block_claim_operations claim_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .drain_turn = BLOCK_DRAIN_COPIES,
};

static bool try_to_look(struct scan *scan)
{
    SCOPE_LOCK(&scan->lock);

    scan->is_looking = scan->drains == 0;
    return scan->is_looking;
}

static void end_looking(struct scan *scan)
{
    SCOPE_LOCK(&scan->lock);

    scan->is_looking = false;
    pthread_cond_broadcast(&scan->quiet);
}

/* ---- The scan ------------------------------------------------------------------------------- */

/* As soon as the job may: not paused, nothing drained. False if it is cancelled. */
static bool begin_looking(struct scan *scan)
{
    job_pause_point(scan->job);
    while (!job_is_cancelled(scan->job) && !try_to_look(scan)) {
        job_sleep_until(scan->job, INT64_MAX); /* until the drain ends */
        job_pause_point(scan->job);
    }
    return !job_is_cancelled(scan->job);
}

static int scan_range(struct scan *scan, const struct block_node *base, uint64_t offset,
                      uint64_t end)
{
    while (offset < end) {
        struct block_extent extent;

        if (!begin_looking(scan)) {
            return -ECANCELED;
        }
        int status =
            block_chain_status(scan->claim.node, base, offset, MIN_OF(STEP, end - offset), &extent);
        end_looking(scan);
        if (status < 0) {
            extent = (struct block_extent){
                .bytes = MIN_OF(UNKNOWN_STEP, end - offset),
                .flags = BLOCK_STATUS_ALLOCATED,
            };
        }
        scan->function(scan->data, offset, &extent);
        offset += extent.bytes;
    }
    return 0;
}

int chain_scan_each(struct job *job, struct block_node *top, struct block_node *base,
                    uint64_t start, uint64_t length, chain_scan_function *function, void *data,
                    GError **error)
{
    struct scan scan = {
        .job = job,
        .claim.operations = &claim_operations,
        .claim.owner = g_strdup_printf("block job '%s'", job_id(job)),
        .claim.perms = BLOCK_PERM_READ,
        .claim.shared = BLOCK_PERM_ALL,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .quiet = PTHREAD_COND_INITIALIZER,
        .function = function,
        .data = data,
    };
    int status = block_claim_acquire(&scan.claim, top, error);

    if (status == 0) {
        status = scan_range(&scan, base, start, start + length);
    }
    block_claim_release(&scan.claim);
    pthread_cond_destroy(&scan.quiet);
    pthread_mutex_destroy(&scan.lock);
    g_free(scan.claim.owner);
    return status;
}

static void set_bits(void *data, uint64_t offset, const struct block_extent *extent)
{
    if (extent->flags & BLOCK_STATUS_ALLOCATED) {
        dirty_bitmap_set(data, offset, extent->bytes);
    }
}

int chain_scan(struct job *job, struct block_node *top, struct block_node *base, uint64_t start,
               uint64_t length, struct dirty_bitmap *bitmap, GError **error)
{
    return chain_scan_each(job, top, base, start, length, set_bits, bitmap, error);
}
