/* SPDX-License-Identifier: BSD-3-Clause */
/* Carrying out one request: doc/proto.md, "Request types". */
#include <errno.h>
#include <stdlib.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/error.h"
#include "block/zero.h"
#include "server/nbd/connection-internal.h"

#define BUFFER_ALIGNMENT 4096

/* A read of less is made first, and zeroes are looked for then: that costs less than to ask. */
#define STATUS_BYTES_MIN (64u << 10)
/* Zeroes that are left out of a reply. */
#define HOLE_BYTES_MIN 4096u

/* How many extents of a context one reply has at the most, as QEMU's. */
#define EXTENTS_MAX (128u << 10)

bool nbd_request_reserve(struct nbd_request *request, size_t bytes)
{
    if (bytes <= request->capacity) {
        return true;
    }
    size_t capacity = align_up(bytes, BUFFER_ALIGNMENT);
    free(request->buffer);
    request->buffer = aligned_alloc(BUFFER_ALIGNMENT, capacity);
    request->capacity = request->buffer ? capacity : 0;
    return request->buffer;
}

/* ---- What is refused ------------------------------------------------------------------------- */

/* The flags that a client may set, by type of the request. */
static uint16_t allowed_flags(const struct nbd_connection *connection, uint16_t type)
{
    bool is_extended = connection->mode == NBD_EXTENDED;
    uint16_t payload = is_extended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    switch (type) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA | (connection->mode == NBD_SIMPLE ? 0 : NBD_CMD_FLAG_DF);
    case NBD_CMD_WRITE:
        return NBD_CMD_FLAG_FUA | payload;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE | payload;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

/* Why it is not carried out at all, with the error number; NULL: it is. */
static const char *find_fault(const struct nbd_connection *connection,
                              const struct nbd_request *request, int *error_number)
{
    *error_number = EINVAL;
    if (request->has_lost_payload && request->length <= NBD_PAYLOAD_MAX) {
        *error_number = ENOMEM;
        return "there is no memory for the data";
    }
    if (request->has_lost_payload) {
        return "the data are longer than 32 MiB";
    }
    if (request->type > NBD_CMD_BLOCK_STATUS) {
        return "unknown command";
    }
    if (request->flags & ~allowed_flags(connection, request->type)) {
        return "the command does not have that flag";
    }
    if ((request->type == NBD_CMD_READ || request->type == NBD_CMD_CACHE) &&
        request->length > NBD_PAYLOAD_MAX) {
        return "the request is longer than 32 MiB";
    }
    if (request->type == NBD_CMD_BLOCK_STATUS && !connection->contexts->len) {
        return "no metadata context was chosen";
    }
    if (request->type == NBD_CMD_BLOCK_STATUS && !request->length) {
        return "need non-zero length";
    }
    return NULL;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static int read_range(struct nbd_connection *connection, struct nbd_request *request,
                      uint64_t offset, uint64_t bytes)
{
    return export_pread(connection->handle, request->buffer + (offset - request->offset), offset,
                        bytes);
}

/*
 * Whether a range is a hole, and how long that or its contrary is. Nobody can tell whether a write
 * that comes meanwhile was first.
 */
static int next_range(struct nbd_connection *connection, uint64_t offset, uint64_t bytes,
                      uint64_t *range_bytes, bool *is_hole)
{
    uint64_t done = 0;
    int status = 0;

    while (done < bytes) {
        struct block_extent extent;

        status = export_block_status(connection->handle, offset + done, bytes - done, &extent);
        bool is_zero = status == 0 && extent.flags & BLOCK_STATUS_ZERO;
        if (status < 0 || (done && is_zero != *is_hole)) {
            break;
        }
        *is_hole = is_zero;
        done += extent.bytes;
    }
    *range_bytes = done;
    return done ? 0 : status;
}

static int read_sparse(struct nbd_connection *connection, struct nbd_request *request)
{
    uint64_t offset = request->offset, end = offset + request->length;
    int status = 0;

    /* Where the end would be beyond the last number, there is nothing before it. */
    if (!range_within(offset, request->length, export_length(connection->handle))) {
        return -EINVAL;
    }
    while (offset < end && status == 0) {
        uint64_t bytes = end - offset;
        bool is_hole = false;

        /* The last chunk takes the rest, whatever it is. */
        if (request->header_count < NBD_CHUNKS_MAX - 1) {
            status = next_range(connection, offset, end - offset, &bytes, &is_hole);
        }
        if (status == 0 && !is_hole) {
            status = read_range(connection, request, offset, bytes);
        }
        if (status == 0) {
            nbd_reply_chunk(connection, request, offset, bytes, is_hole, offset + bytes == end);
        }
        offset += bytes;
    }
    return status;
}

static int read_plainly(struct nbd_connection *connection, struct nbd_request *request)
{
    int status = read_range(connection, request, request->offset, request->length);

    if (status < 0) {
        return status;
    }
    if (connection->mode != NBD_SIMPLE && !(request->flags & NBD_CMD_FLAG_DF) &&
        request->length >= HOLE_BYTES_MIN && buffer_is_zero(request->buffer, request->length)) {
        nbd_reply_chunk(connection, request, request->offset, request->length, true, true);
    } else {
        nbd_reply_data(connection, request);
    }
    return 0;
}

static int do_read(struct nbd_connection *connection, struct nbd_request *request)
{
    if (!request->length) {
        if (connection->mode == NBD_SIMPLE) {
            nbd_reply_data(connection, request);
        } else {
            nbd_reply_done(connection, request);
        }
        return 0;
    }
    if (!nbd_request_reserve(request, request->length)) {
        return -ENOMEM;
    }
    if (request->flags & NBD_CMD_FLAG_FUA) {
        int status = export_flush(connection->handle);
        if (status < 0) {
            return status;
        }
    }
    return connection->mode == NBD_SIMPLE || request->flags & NBD_CMD_FLAG_DF ||
                   request->length < STATUS_BYTES_MIN
               ? read_plainly(connection, request)
               : read_sparse(connection, request);
}

/* ---- Block status ---------------------------------------------------------------------------- */

static void append_extent(const struct nbd_connection *connection, struct nbd_request *request,
                          uint64_t bytes, uint32_t flags)
{
    if (connection->mode == NBD_EXTENDED) {
        nbd_append64(request->extents, bytes);
        nbd_append64(request->extents, flags);
    } else {
        nbd_append32(request->extents, (uint32_t)bytes);
        nbd_append32(request->extents, flags);
    }
}

/*
 * One extent: as far as the context says the same. An error after its first part ends it there: the
 * client asks again, or has no interest in it.
 */
static int next_extent(struct nbd_connection *connection, size_t context, uint64_t offset,
                       uint64_t bytes, uint64_t *extent_bytes, uint32_t *flags)
{
    uint64_t done = 0;
    int status = 0;

    while (done < bytes) {
        if (atomic_load(&connection->is_shut_down) || atomic_load(&connection->is_deaf)) {
            return -ESHUTDOWN; /* that many contexts of that large a disk may take long */
        }
        uint64_t range;
        uint32_t range_flags;

        status = nbd_export_context_at(connection->export, context, connection->handle,
                                       offset + done, bytes - done, &range, &range_flags);
        if (status < 0 || (done && range_flags != *flags)) {
            break;
        }
        *flags = range_flags;
        done += range;
    }
    *extent_bytes = done;
    return done ? 0 : status;
}

static int add_context(struct nbd_connection *connection, struct nbd_request *request,
                       uint32_t context, uint64_t bytes)
{
    unsigned most = request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : EXTENTS_MAX;
    uint64_t offset = request->offset, end = offset + bytes;
    int status = nbd_export_context_check(connection->export, context, connection->handle);

    if (status < 0) {
        return status;
    }
    for (unsigned count = 0; count < most && offset < end; count++) {
        uint64_t extent;
        uint32_t flags = 0;

        status = next_extent(connection, context, offset, end - offset, &extent, &flags);
        if (status < 0) {
            return count ? 0 : status;
        }
        append_extent(connection, request, extent, flags);
        offset += extent;
    }
    return 0;
}

uint64_t nbd_request_extents_max(const struct nbd_connection *connection,
                                 const struct nbd_request *request)
{
    size_t each = connection->mode == NBD_EXTENDED ? 2 * sizeof(uint64_t) : 2 * sizeof(uint32_t);

    return request->flags & NBD_CMD_FLAG_REQ_ONE
               ? 0
               : (uint64_t)connection->contexts->len * EXTENTS_MAX * each;
}

/* A payload says which of the contexts the client wants this time: a length, and their IDs. */
static bool is_wanted(const struct nbd_request *request, uint32_t context)
{
    if (!request->payload) {
        return true;
    }
    for (uint32_t at = sizeof(uint64_t); at < request->payload; at += sizeof(uint32_t)) {
        if (nbd_get32(request->buffer + at) == context) {
            return true;
        }
    }
    return false;
}

static unsigned count_wanted(const struct nbd_connection *connection,
                             const struct nbd_request *request)
{
    unsigned count = 0;

    for (guint i = 0; i < connection->contexts->len; i++) {
        count += is_wanted(request, g_array_index(connection->contexts, uint32_t, i));
    }
    return count;
}

/* Each of its IDs is one of the chosen ones, and only once. */
static bool payload_is_valid(const struct nbd_connection *connection,
                             const struct nbd_request *request)
{
    uint32_t ids = (request->payload - sizeof(uint64_t)) / sizeof(uint32_t);

    return request->payload >= sizeof(uint64_t) + sizeof(uint32_t) &&
           request->payload % sizeof(uint32_t) == 0 && count_wanted(connection, request) == ids;
}

static int do_block_status(struct nbd_connection *connection, struct nbd_request *request)
{
    uint64_t bytes = request->payload ? nbd_get64(request->buffer) : request->length;
    unsigned left = count_wanted(connection, request);

    if (connection->mode != NBD_EXTENDED) {
        bytes = MIN(bytes, UINT32_MAX & ~511u);
    }
    if (!bytes || !range_within(request->offset, bytes, export_length(connection->handle))) {
        return -EINVAL;
    }
    for (guint i = 0; i < connection->contexts->len; i++) {
        uint32_t context = g_array_index(connection->contexts, uint32_t, i);

        if (!is_wanted(request, context)) {
            continue;
        }
        size_t begin = nbd_reply_begin_extents(connection, request, context);
        int status = add_context(connection, request, context, bytes);
        if (status < 0) {
            return status;
        }
        nbd_reply_end_extents(connection, request, begin, --left == 0);
    }
    nbd_reply_extents(request);
    return 0;
}

/* ---- All of them ----------------------------------------------------------------------------- */

static int do_write_zeroes(struct nbd_connection *connection, const struct nbd_request *request,
                           bool fua)
{
    unsigned flags = 0;

    flags |= fua ? BLOCK_REQUEST_FUA : 0;
    flags |= request->flags & NBD_CMD_FLAG_NO_HOLE ? 0 : BLOCK_REQUEST_MAY_UNMAP;
    flags |= request->flags & NBD_CMD_FLAG_FAST_ZERO ? BLOCK_REQUEST_NO_FALLBACK : 0;
    return export_write_zeroes(connection->handle, request->offset, request->length, flags);
}

/* What is answered with success alone. */
static int do_other(struct nbd_connection *connection, const struct nbd_request *request)
{
    struct export_handle *handle = connection->handle;
    bool fua = request->flags & NBD_CMD_FLAG_FUA || nbd_export_is_writethrough(connection->export);

    switch (request->type) {
    case NBD_CMD_WRITE:
        return export_pwrite(handle, request->buffer, request->offset, request->length, fua);
    case NBD_CMD_FLUSH:
        return export_flush(handle);
    case NBD_CMD_TRIM:
        return export_discard(handle, request->offset, request->length, fua);
    case NBD_CMD_CACHE:
        return export_prefetch(handle, request->offset, request->length);
    case NBD_CMD_WRITE_ZEROES:
        return do_write_zeroes(connection, request, fua);
    default:
        return -EINVAL;
    }
}

static int execute(struct nbd_connection *connection, struct nbd_request *request)
{
    if (request->type == NBD_CMD_READ) {
        return do_read(connection, request);
    }
    if (request->type == NBD_CMD_BLOCK_STATUS) {
        return do_block_status(connection, request);
    }
    int status = do_other(connection, request);
    if (status == 0) {
        nbd_reply_done(connection, request);
    }
    return status;
}

void nbd_request_execute(struct nbd_connection *connection, struct nbd_request *request)
{
    int error_number;
    const char *fault = find_fault(connection, request, &error_number);

    g_byte_array_set_size(request->extents, 0);
    request->part_count = request->header_count = 0;
    if (!fault && request->type == NBD_CMD_BLOCK_STATUS && request->payload &&
        !payload_is_valid(connection, request)) {
        fault = "the payload names no metadata contexts that were chosen";
    }
    if (fault) {
        nbd_reply_error(connection, request, error_number, fault);
        return;
    }
    int status = execute(connection, request);
    if (status < 0) {
        nbd_reply_error(connection, request, nbd_reply_errno(status), block_strerror(-status));
    }
}
