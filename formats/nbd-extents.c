/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-extents.h"

#include <errno.h>
#include <libnbd.h>
#include <string.h>

#include "block/align.h"
#include "block/driver.h"

void nbd_extents_begin(struct nbd_extents *extents, uint64_t offset, uint64_t limit)
{
    extents->offset = offset;
    extents->limit = limit;
    extents->count = 0;
}

/*
 * A hole may be skipped only if it also reads as zeroes, and a flag we do not know may change
 * the meaning of the others: in doubt it is data, which is read.
 */
static unsigned status_flags(uint32_t flags)
{
    if (flags & ~(uint32_t)(LIBNBD_STATE_HOLE | LIBNBD_STATE_ZERO) ||
        !(flags & LIBNBD_STATE_ZERO)) {
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    return BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED |
           (flags & LIBNBD_STATE_HOLE ? 0 : BLOCK_STATUS_DATA);
}

/* Returns false if there is no room for another. */
static bool append(struct nbd_extents *extents, uint64_t end, unsigned flags)
{
    if (extents->count && extents->extents[extents->count - 1].flags == flags) {
        extents->extents[extents->count - 1].end = end;
        return true;
    }
    if (extents->count == NBD_EXTENTS_MAX) {
        return false;
    }
    extents->extents[extents->count].end = end;
    extents->extents[extents->count].flags = flags;
    extents->count++;
    return true;
}

int nbd_extents_collect(struct nbd_extents *extents, const char *context, uint64_t offset,
                        const uint32_t *entries, size_t count)
{
    uint64_t end = extents->offset;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) {
        return 0;
    }
    /* A second chunk for the same context is against the protocol. */
    if (offset != extents->offset || extents->count) {
        return -EPROTO;
    }
    for (size_t i = 0; i + 1 < count && entries[i] && end < extents->limit; i += 2) {
        /* end is below the limit, an int64_t, so that adding 32 bits cannot overflow. */
        end = MIN_OF(end + entries[i], extents->limit);
        if (!append(extents, end, status_flags(entries[i + 1]))) {
            break;
        }
    }
    return extents->count ? 0 : -EPROTO;
}

bool nbd_extents_find(const struct nbd_extents *extents, uint64_t offset, uint64_t max,
                      uint64_t *bytes, unsigned *flags)
{
    size_t low = 0, high = extents->count;

    if (!max || offset < extents->offset) {
        return false;
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (extents->extents[middle].end <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == extents->count) {
        return false;
    }
    *bytes = MIN_OF(extents->extents[low].end - offset, max);
    *flags = extents->extents[low].flags;
    return true;
}
