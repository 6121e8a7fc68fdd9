/* SPDX-License-Identifier: BSD-3-Clause */
/* What clients are answered with: doc/proto.md, "Simple reply", "Structured reply chunk". */
#include <errno.h>
#include <string.h>

#include "server/nbd/connection-internal.h"

/* ---- Parts ----------------------------------------------------------------------------------- */

static void add_part(struct nbd_request *request, void *data, size_t bytes)
{
    request->parts[request->part_count++] = (struct iovec){.iov_base = data, .iov_len = bytes};
}

static uint8_t *new_header(struct nbd_request *request)
{
    return request->headers[request->header_count++];
}

static void add_simple_header(struct nbd_request *request, uint32_t error_number)
{
    const struct nbd_simple_reply reply = {
        .magic = GUINT32_TO_BE(NBD_SIMPLE_REPLY_MAGIC),
        .error = GUINT32_TO_BE(error_number),
        .cookie = request->cookie,
    };
    uint8_t *header = new_header(request);

    memcpy(header, &reply, sizeof(reply));
    add_part(request, header, sizeof(reply));
}

/* The header of a chunk whose payload has `bytes`. Returns its size. */
static size_t fill_chunk_header(const struct nbd_connection *connection,
                                const struct nbd_request *request, uint8_t *place, uint16_t type,
                                bool is_last, uint64_t bytes)
{
    const uint16_t flags = GUINT16_TO_BE(is_last ? NBD_REPLY_FLAG_DONE : 0);

    if (connection->mode == NBD_EXTENDED) {
        const struct nbd_extended_reply reply = {
            .magic = GUINT32_TO_BE(NBD_EXTENDED_REPLY_MAGIC),
            .flags = flags,
            .type = GUINT16_TO_BE(type),
            .cookie = request->cookie,
            .offset = GUINT64_TO_BE(request->offset),
            .length = GUINT64_TO_BE(bytes),
        };

        memcpy(place, &reply, sizeof(reply));
        return sizeof(reply);
    }
    const struct nbd_structured_reply reply = {
        .magic = GUINT32_TO_BE(NBD_STRUCTURED_REPLY_MAGIC),
        .flags = flags,
        .type = GUINT16_TO_BE(type),
        .cookie = request->cookie,
        .length = GUINT32_TO_BE((uint32_t)bytes),
    };

    memcpy(place, &reply, sizeof(reply));
    return sizeof(reply);
}

static void put32(uint8_t *place, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    memcpy(place, &value, sizeof(value));
}

static void put64(uint8_t *place, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    memcpy(place, &value, sizeof(value));
}

/* ---- Success --------------------------------------------------------------------------------- */

void nbd_reply_done(const struct nbd_connection *connection, struct nbd_request *request)
{
    if (connection->mode == NBD_SIMPLE ||
        (connection->mode == NBD_STRUCTURED && request->type != NBD_CMD_READ)) {
        add_simple_header(request, 0); /* allowed for all but reads; shorter */
        return;
    }
    uint8_t *header = new_header(request);
    add_part(request, header,
             fill_chunk_header(connection, request, header, NBD_REPLY_TYPE_NONE, true, 0));
}

void nbd_reply_data(const struct nbd_connection *connection, struct nbd_request *request)
{
    if (connection->mode != NBD_SIMPLE) {
        nbd_reply_chunk(connection, request, request->offset, request->length, false, true);
        return;
    }
    add_simple_header(request, 0);
    add_part(request, request->buffer, request->length);
}

void nbd_reply_chunk(const struct nbd_connection *connection, struct nbd_request *request,
                     uint64_t offset, uint64_t bytes, bool is_hole, bool is_last)
{
    uint8_t *header = new_header(request);
    uint16_t type = is_hole ? NBD_REPLY_TYPE_OFFSET_HOLE : NBD_REPLY_TYPE_OFFSET_DATA;
    uint64_t payload = sizeof(offset) + (is_hole ? sizeof(uint32_t) : bytes);
    size_t size = fill_chunk_header(connection, request, header, type, is_last, payload);

    put64(header + size, offset);
    size += sizeof(offset);
    if (is_hole) {
        put32(header + size, (uint32_t)bytes);
        size += sizeof(uint32_t);
    }
    add_part(request, header, size);
    if (!is_hole) {
        add_part(request, request->buffer + (offset - request->offset), bytes);
    }
}

/* ---- Block status ---------------------------------------------------------------------------- */

size_t nbd_reply_begin_extents(const struct nbd_connection *connection, struct nbd_request *request,
                               uint32_t context)
{
    size_t begin = request->extents->len;
    bool is_extended = connection->mode == NBD_EXTENDED;
    size_t header =
        is_extended ? sizeof(struct nbd_extended_reply) : sizeof(struct nbd_structured_reply);

    g_byte_array_set_size(request->extents, (guint)(begin + header));
    nbd_append32(request->extents, context);
    if (is_extended) {
        nbd_append32(request->extents, 0); /* how many, in the end */
    }
    return begin;
}

void nbd_reply_end_extents(const struct nbd_connection *connection, struct nbd_request *request,
                           size_t begin, bool is_last)
{
    bool is_extended = connection->mode == NBD_EXTENDED;
    size_t header =
        is_extended ? sizeof(struct nbd_extended_reply) : sizeof(struct nbd_structured_reply);
    size_t payload = request->extents->len - begin - header;
    uint16_t type = is_extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;

    if (is_extended) {
        put32(request->extents->data + begin + header + 4, (uint32_t)((payload - 8) / 16));
    }
    fill_chunk_header(connection, request, request->extents->data + begin, type, is_last, payload);
}

void nbd_reply_extents(struct nbd_request *request)
{
    add_part(request, request->extents->data, request->extents->len);
}

/* ---- Errors ---------------------------------------------------------------------------------- */

/* "Error values": what a client need not know is EIO. */
int nbd_reply_errno(int status)
{
    switch (-status) {
    case EPERM:
    case EROFS:
        return EPERM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ENOSPC;
    case ENOTSUP:
    case EIO:
    case ENOMEM:
    case EINVAL:
    case EOVERFLOW:
    case ESHUTDOWN:
        return -status;
    default:
        return EIO;
    }
}

void nbd_reply_error(const struct nbd_connection *connection, struct nbd_request *request,
                     int error_number, const char *message)
{
    size_t length = message ? MIN(strlen(message), NBD_STRING_MAX) : 0;

    request->part_count = request->header_count = 0;
    if (connection->mode == NBD_SIMPLE) {
        add_simple_header(request, (uint32_t)error_number);
        return;
    }
    uint8_t *header = new_header(request);
    size_t size = fill_chunk_header(connection, request, header, NBD_REPLY_TYPE_ERROR, true,
                                    sizeof(uint32_t) + sizeof(uint16_t) + length);
    put32(header + size, (uint32_t)error_number);
    header[size + 4] = (uint8_t)(length >> 8);
    header[size + 5] = (uint8_t)length;
    add_part(request, header, size + 6);
    if (length) {
        /* It is short: the array for extents keeps it until it is sent. */
        g_byte_array_set_size(request->extents, 0);
        g_byte_array_append(request->extents, (const guint8 *)message, (guint)length);
        add_part(request, request->extents->data, length);
    }
}
