/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD protocol in numbers: what goes over the wire, big endian. After doc/proto.md of the NBD
 * project, whose names these are, in lower case where they are ours.
 */
#ifndef LIVEBLK_SERVER_NBD_PROTOCOL_H
#define LIVEBLK_SERVER_NBD_PROTOCOL_H

#include <glib.h>
#include <stdint.h>
#include <string.h>

#define NBD_PACKED       __attribute__((packed))

#define NBD_STRING_MAX   4096 /* bytes of a name, description or query */

#define NBD_MAGIC        UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_REPLY_MAGIC  UINT64_C(0x0003e889045565a9)

/* ---- Handshake ------------------------------------------------------------------------------- */

enum { NBD_FLAG_FIXED_NEWSTYLE = 1 << 0, NBD_FLAG_NO_ZEROES = 1 << 1 };
enum { NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0, NBD_FLAG_C_NO_ZEROES = 1 << 1 };

struct nbd_greeting {
    uint64_t magic, option_magic;
    uint16_t flags;
} NBD_PACKED;

struct nbd_option {
    uint64_t magic;
    uint32_t option, length;
} NBD_PACKED;

struct nbd_option_reply {
    uint64_t magic;
    uint32_t option, type, length;
} NBD_PACKED;

enum {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK                 1u
#define NBD_REP_SERVER              2u
#define NBD_REP_INFO                3u
#define NBD_REP_META_CONTEXT        4u
#define NBD_REP_ERR_UNSUP           ((1u << 31) + 1)
#define NBD_REP_ERR_POLICY          ((1u << 31) + 2)
#define NBD_REP_ERR_INVALID         ((1u << 31) + 3)
#define NBD_REP_ERR_TLS_REQD        ((1u << 31) + 5)
#define NBD_REP_ERR_UNKNOWN         ((1u << 31) + 6)
#define NBD_REP_ERR_SHUTDOWN        ((1u << 31) + 7)
#define NBD_REP_ERR_TOO_BIG         ((1u << 31) + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD ((1u << 31) + 10)

enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

/* ---- Transmission ---------------------------------------------------------------------------- */

#define NBD_REQUEST_MAGIC          0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cu

struct nbd_compact_request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} NBD_PACKED;

struct nbd_extended_request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset, length;
} NBD_PACKED;

struct nbd_simple_reply {
    uint32_t magic, error;
    uint64_t cookie;
} NBD_PACKED;

struct nbd_structured_reply {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;
} NBD_PACKED;

struct nbd_extended_reply {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset, length;
} NBD_PACKED;

enum {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum { NBD_REPLY_FLAG_DONE = 1 << 0 };

enum {
    NBD_REPLY_TYPE_NONE = 0,
    NBD_REPLY_TYPE_OFFSET_DATA = 1,
    NBD_REPLY_TYPE_OFFSET_HOLE = 2,
    NBD_REPLY_TYPE_BLOCK_STATUS = 5,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6,
    NBD_REPLY_TYPE_ERROR = (1 << 15) + 1,
};

/* The bits of base:allocation and of qemu:dirty-bitmap:NAME. */
enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };
enum { NBD_STATE_DIRTY = 1 << 0 };

/* ---- Reading and building messages ----------------------------------------------------------- */

/* Big-endian numbers at places that need not be aligned. */
static inline uint16_t nbd_get16(const void *place)
{
    uint16_t value;

    memcpy(&value, place, sizeof(value));
    return GUINT16_FROM_BE(value);
}

static inline uint32_t nbd_get32(const void *place)
{
    uint32_t value;

    memcpy(&value, place, sizeof(value));
    return GUINT32_FROM_BE(value);
}

static inline uint64_t nbd_get64(const void *place)
{
    uint64_t value;

    memcpy(&value, place, sizeof(value));
    return GUINT64_FROM_BE(value);
}

static inline void nbd_append16(GByteArray *message, uint16_t value)
{
    value = GUINT16_TO_BE(value);
    g_byte_array_append(message, (const guint8 *)&value, sizeof(value));
}

static inline void nbd_append32(GByteArray *message, uint32_t value)
{
    value = GUINT32_TO_BE(value);
    g_byte_array_append(message, (const guint8 *)&value, sizeof(value));
}

static inline void nbd_append64(GByteArray *message, uint64_t value)
{
    value = GUINT64_TO_BE(value);
    g_byte_array_append(message, (const guint8 *)&value, sizeof(value));
}

#endif
