/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: what a guest offset maps to, and which table entries are valid ("Cluster mapping"). */
#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "formats/qcow2/internal.h"

/* ---- Compressed clusters -------------------------------------------------------------------- */

/* Bits of the host offset in a descriptor ("Compressed Clusters Descriptor", x). */
static unsigned compressed_offset_bits(const struct qcow2 *q)
{
    return 62 - (q->cluster_bits - 8);
}

void qcow2_compressed_range(const struct qcow2 *q, uint64_t descriptor, uint64_t *offset,
                            uint64_t *bytes)
{
    unsigned bits = compressed_offset_bits(q);
    uint64_t sectors = (descriptor & ((UINT64_C(1) << 62) - 1)) >> bits;

    *offset = descriptor & ((UINT64_C(1) << bits) - 1);
    *bytes = (sectors + 1) * 512 - (*offset & 511);
}

uint64_t qcow2_compressed_descriptor(const struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t sectors = (offset + bytes - 1) / 512 - offset / 512;

    return QCOW2_COMPRESSED | sectors << compressed_offset_bits(q) | offset;
}

uint64_t qcow2_compressed_max(const struct qcow2 *q)
{
    return MIN_OF(UINT64_C(1) << compressed_offset_bits(q), QCOW2_HOST_MAX);
}

/* ---- Validity ------------------------------------------------------------------------------- */

/*
 * Nothing is stored behind all that was ever in use: what would be written there would be cut off,
 * or given to somebody else. Where others write to the image meanwhile its end is not known.
 */
static bool is_in_file(struct qcow2 *q, uint64_t host)
{
    return host >> q->cluster_bits < atomic_load(&q->tail) || q->node->options.force_share;
}

static bool compressed_is_valid(struct qcow2 *q, struct qcow2_entry entry)
{
    uint64_t offset, bytes;

    qcow2_compressed_range(q, entry.descriptor, &offset, &bytes);
    return !q->has_data_file && offset >= q->cluster_size &&
           range_within(offset, bytes, QCOW2_HOST_MAX) && is_in_file(q, offset);
}

/* Bits that must be 0 in a standard descriptor. */
static uint64_t reserved_bits(const struct qcow2 *q)
{
    uint64_t reserved = ~(QCOW2_OFFSET_MASK | QCOW2_COPIED | QCOW2_COMPRESSED);

    return q->header.version >= 3 && !q->has_extended_l2 ? reserved & ~QCOW2_ZERO : reserved;
}

static bool standard_is_valid(struct qcow2 *q, uint64_t offset, struct qcow2_entry entry)
{
    uint64_t host = entry.descriptor & QCOW2_OFFSET_MASK;
    uint32_t allocated = (uint32_t)entry.bitmap, zero = (uint32_t)(entry.bitmap >> 32);

    if (entry.descriptor & reserved_bits(q) || !is_aligned(host, q->cluster_size)) {
        return false;
    }
    if (allocated & zero || (allocated && !qcow2_has_host(q, entry.descriptor))) {
        return false;
    }
    if (!qcow2_has_host(q, entry.descriptor)) {
        return true;
    }
    if (q->has_data_file) {
        return host == qcow2_cluster_start(q, offset);
    }
    return host != 0 && is_in_file(q, host) && !qcow2_is_metadata(q, host, q->cluster_size);
}

bool qcow2_entry_is_valid(struct qcow2 *q, uint64_t offset, struct qcow2_entry entry)
{
    return entry.descriptor & QCOW2_COMPRESSED ? compressed_is_valid(q, entry)
                                               : standard_is_valid(q, offset, entry);
}

int qcow2_entry_check(struct qcow2 *q, uint64_t offset, struct qcow2_entry entry)
{
    if (qcow2_entry_is_valid(q, offset, entry)) {
        return 0;
    }
    uint64_t host = entry.descriptor & QCOW2_OFFSET_MASK, bytes = host ? q->cluster_size : 0;
    if (entry.descriptor & QCOW2_COMPRESSED) {
        qcow2_compressed_range(q, entry.descriptor, &host, &bytes);
    }
    return qcow2_mark_corrupt(q, host, bytes,
                              "The L2 table entry 0x%" PRIx64 " of the disk's offset %" PRIu64
                              " is not valid",
                              entry.descriptor, offset);
}

int qcow2_entry_find(struct qcow2 *q, uint64_t offset, struct qcow2_entry *entry)
{
    struct qcow2_slice *slice;
    int status = qcow2_slice_get(q, offset, &slice);

    *entry = (struct qcow2_entry){0};
    if (status == 0 && slice) {
        *entry = qcow2_entry_get(q, slice, qcow2_slice_index(q, offset));
        status = slice->suspect ? qcow2_entry_check(q, offset, *entry) : 0;
    }
    return status;
}

/* ---- Runs ----------------------------------------------------------------------------------- */

/* What one subcluster (without extended entries: cluster) of an entry is; bytes are not set. */
static void look_at(const struct qcow2 *q, struct qcow2_entry entry, unsigned subcluster,
                    struct qcow2_run *run)
{
    *run = (struct qcow2_run){.kind = QCOW2_KIND_UNALLOCATED};
    if (entry.descriptor & QCOW2_COMPRESSED) {
        run->kind = QCOW2_KIND_COMPRESSED;
        run->descriptor = entry.descriptor;
        return;
    }
    bool has_host = qcow2_has_host(q, entry.descriptor);
    bool is_zero =
        q->has_extended_l2 ? entry.bitmap >> (32 + subcluster) & 1 : entry.descriptor & QCOW2_ZERO;
    bool is_data = q->has_extended_l2 ? entry.bitmap >> subcluster & 1 : has_host;
    run->is_allocated = has_host;
    if (is_zero) {
        run->kind = QCOW2_KIND_ZERO;
    } else if (is_data) {
        run->kind = QCOW2_KIND_DATA;
        run->host =
            (entry.descriptor & QCOW2_OFFSET_MASK) + ((uint64_t)subcluster << q->subcluster_bits);
        run->writable = entry.descriptor & QCOW2_COPIED;
    }
}

static bool continues(const struct qcow2_run *run, const struct qcow2_run *next)
{
    return next->kind == run->kind && run->kind != QCOW2_KIND_COMPRESSED &&
           next->writable == run->writable && next->is_allocated == run->is_allocated &&
           (run->kind != QCOW2_KIND_DATA || next->host == run->host + run->bytes);
}

/* Where the entries of the slice that has this offset end. */
static uint64_t slice_end(const struct qcow2 *q, uint64_t offset)
{
    return align_down(offset, q->cluster_size << q->slice_bits) +
           (q->cluster_size << q->slice_bits);
}

static int extend_run(struct qcow2 *q, struct qcow2_slice *slice, uint64_t offset, uint64_t end,
                      struct qcow2_run *run)
{
    uint64_t subcluster_size = UINT64_C(1) << q->subcluster_bits;
    uint64_t at = align_down(offset, subcluster_size);
    struct qcow2_entry entry = {0};
    uint64_t cluster = UINT64_MAX;

    run->bytes = 0;
    while (at < end) {
        struct qcow2_run next;

        if (cluster != qcow2_cluster_start(q, at)) {
            cluster = qcow2_cluster_start(q, at);
            entry = qcow2_entry_get(q, slice, qcow2_slice_index(q, at));
            if (slice->suspect && qcow2_entry_check(q, at, entry) < 0) {
                return run->bytes ? 0 : -EIO;
            }
        }
        look_at(q, entry, (unsigned)(qcow2_in_cluster(q, at) >> q->subcluster_bits), &next);
        if (run->bytes && !continues(run, &next)) {
            return 0;
        }
        if (!run->bytes) {
            *run = next;
        }
        if (next.kind == QCOW2_KIND_COMPRESSED) {
            run->bytes = q->cluster_size - (offset - cluster);
            run->bytes += offset - align_down(offset, subcluster_size);
            return 0;
        }
        run->bytes += subcluster_size;
        at += subcluster_size;
    }
    return 0;
}

int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_run *run)
{
    uint64_t head = offset & ((UINT64_C(1) << q->subcluster_bits) - 1);
    uint64_t end = MIN_OF(offset + bytes, slice_end(q, offset));
    struct qcow2_slice *slice;
    int status = qcow2_slice_get(q, offset, &slice);

    if (status < 0) {
        return status;
    }
    if (!slice) {
        *run = (struct qcow2_run){.kind = QCOW2_KIND_UNALLOCATED, .bytes = end - offset};
        return 0;
    }
    status = extend_run(q, slice, offset, end, run);
    if (status == 0) {
        run->host += run->kind == QCOW2_KIND_DATA ? head : 0;
        run->bytes = MIN_OF(run->bytes - head, end - offset);
    }
    return status;
}
