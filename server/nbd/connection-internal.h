/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files behind server/nbd/connection.h share. */
#ifndef LIVEBLK_SERVER_NBD_CONNECTION_INTERNAL_H
#define LIVEBLK_SERVER_NBD_CONNECTION_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/queue.h"
#include "server/nbd/channel.h"
#include "server/nbd/connection.h"
#include "server/nbd/exports.h"
#include "server/nbd/protocol.h"
#include "server/nbd/worker.h"

/* How a client and we talk: each knows what those before it do. */
enum nbd_mode { NBD_SIMPLE, NBD_STRUCTURED, NBD_EXTENDED };

#define NBD_PAYLOAD_MAX (32u << 20) /* bytes of data in a request or reply */
#define NBD_THREADS_MAX 16          /* that carry out one client's requests */
/* Requests that are begun, or whose replies wait to be sent. */
#define NBD_REQUESTS_MAX 32
/* Bytes of data that these have in all, so that a client that reads no replies takes little. */
#define NBD_DATA_MAX (2 * NBD_PAYLOAD_MAX)

struct nbd_request;

struct nbd_connection {
    struct nbd_channel channel;
    const struct nbd_policy *policy;
    void (*negotiated)(void *data);
    void *negotiated_data;
    atomic_bool is_shut_down; /* by us: nothing more is begun */
    atomic_bool is_deaf;      /* sending failed: nobody hears what would be answered */

    /* Negotiated; constant in the transmission phase. */
    enum nbd_mode mode;
    bool no_zeroes;
    struct nbd_export *export;    /* NULL: none yet */
    struct export_handle *handle; /* of it */
    /* Indices of its contexts that the client chose; and for which export, until it enters that. */
    GArray *contexts;
    uint64_t contexts_export; /* its serial number; 0: none */

    /* Whoever reads a request holds it; before reply_lock. */
    pthread_mutex_t read_lock;
    struct {
        uint8_t *data;
        size_t begin, end;   /* what has been received and not been looked at */
        bool expects_little; /* the last request had a payload too large to read ahead */
        bool has_ended;
        /* Threads, changed without read_lock: those that wait for it, and those that answer and
         * will be back as soon as they do. */
        _Atomic unsigned waiting, returning;
    } input;
    unsigned threads; /* read_lock */
    struct nbd_task others[NBD_THREADS_MAX - 1];

    /* Threads that there is nothing to do for; after read_lock. */
    pthread_mutex_t idle_lock;
    pthread_cond_t idle_changed;
    unsigned idle, called; /* those that sleep; of these, those that are to wake up */
    bool is_over;          /* nothing will be there to do */

    pthread_mutex_t reply_lock;
    pthread_cond_t reply_changed;
    STAILQ_HEAD(, nbd_request) replies; /* to be sent */
    STAILQ_HEAD(, nbd_request) unused;
    unsigned requests;   /* that exist */
    uint64_t data_bytes; /* that they claim */
    bool is_sending;     /* some thread */
};

/*
 * The handshake, server/nbd/negotiate.c: true if the client has chosen an export and knows it. It
 * may have entered one in any case.
 */
bool nbd_negotiate(struct nbd_connection *connection);

/* The requests, server/nbd/transmission.c: until the client leaves or is shut down. */
void nbd_transmit(struct nbd_connection *connection);

/* ---- A request, server/nbd/request.c --------------------------------------------------------- */

#define NBD_PARTS_MAX  34 /* of one reply, as sendmsg takes them */
#define NBD_CHUNKS_MAX 16

struct nbd_request {
    uint16_t flags, type;
    uint64_t cookie, offset, length;
    uint32_t payload;      /* bytes that come after the header */
    bool has_lost_payload; /* it is too long, or there was no memory: refused */

    uint8_t *buffer; /* aligned; the payload, then what is read */
    size_t capacity;
    uint64_t claimed; /* bytes of its connection's NBD_DATA_MAX */

    /* The reply, in parts that lead to the headers below and the buffer. */
    struct iovec parts[NBD_PARTS_MAX];
    unsigned part_count;
    uint8_t headers[NBD_CHUNKS_MAX][48];
    unsigned header_count;
    GByteArray *extents; /* of a block status */
    STAILQ_ENTRY(nbd_request) entry;
};

/* Have a buffer of so many bytes; false: there is no memory. */
bool nbd_request_reserve(struct nbd_request *request, size_t bytes);

/* The most bytes that the reply to a block status can have. */
uint64_t nbd_request_extents_max(const struct nbd_connection *connection,
                                 const struct nbd_request *request);

/* Carry it out and make its reply. */
void nbd_request_execute(struct nbd_connection *connection, struct nbd_request *request);

/* ---- Replies, server/nbd/reply.c ------------------------------------------------------------- */

/* The client is told nothing but that it succeeded. */
void nbd_reply_done(const struct nbd_connection *connection, struct nbd_request *request);
/* That it failed: a positive errno as NBD has it, and for people a sentence (copied) or NULL. */
void nbd_reply_error(const struct nbd_connection *connection, struct nbd_request *request,
                     int error_number, const char *message);
/* Data of a read, which lie in the buffer, from the request's offset on. */
void nbd_reply_data(const struct nbd_connection *connection, struct nbd_request *request);
/* The same in pieces: at most NBD_CHUNKS_MAX calls, the last of them with is_last. Structured. */
void nbd_reply_chunk(const struct nbd_connection *connection, struct nbd_request *request,
                     uint64_t offset, uint64_t bytes, bool is_hole, bool is_last);
/*
 * One context's extents: begin it, append (32 bits each, or 64 with extended headers, length before
 * flags) to request->extents, and end it; when all are there, send them.
 */
size_t nbd_reply_begin_extents(const struct nbd_connection *connection, struct nbd_request *request,
                               uint32_t context);
void nbd_reply_end_extents(const struct nbd_connection *connection, struct nbd_request *request,
                           size_t begin, bool is_last);
void nbd_reply_extents(struct nbd_request *request);

/* The status for replies of a negative errno. */
int nbd_reply_errno(int status);

#endif
