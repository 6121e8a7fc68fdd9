/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An NBD server inside a test, that does what no real one should: it lies, stays silent, closes
 * in the middle, answers rubbish and out of order, as the test tells it.
 */
#ifndef LIVEBLK_TESTS_LIB_FAKE_NBD_SERVER_H
#define LIVEBLK_TESTS_LIB_FAKE_NBD_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum fake_nbd_command {
    FAKE_NBD_READ = 0,
    FAKE_NBD_WRITE = 1,
    FAKE_NBD_DISCONNECT = 2,
    FAKE_NBD_FLUSH = 3,
    FAKE_NBD_TRIM = 4,
    FAKE_NBD_CACHE = 5,
    FAKE_NBD_ZERO = 6,
    FAKE_NBD_EXTENTS = 7,
};

/* Transmission flags. */
enum {
    FAKE_NBD_HAS_FLAGS = 1 << 0,
    FAKE_NBD_READ_ONLY = 1 << 1,
    FAKE_NBD_CAN_FLUSH = 1 << 2,
    FAKE_NBD_CAN_FUA = 1 << 3,
    FAKE_NBD_CAN_TRIM = 1 << 5,
    FAKE_NBD_CAN_ZERO = 1 << 6,
    FAKE_NBD_CAN_MULTI_CONN = 1 << 8,
    FAKE_NBD_CAN_CACHE = 1 << 10,
    FAKE_NBD_CAN_FAST_ZERO = 1 << 11,
};

struct fake_nbd_request {
    uint16_t flags;
    uint16_t command;
    uint64_t cookie;
    uint64_t offset;
    uint32_t bytes;
    uint8_t *payload; /* of a write */
};

struct fake_nbd_server;

struct fake_nbd_connection {
    struct fake_nbd_server *server;
    int fd;
    pthread_t thread;
    bool structured;
};

/* What a test does with a request: true if that was all, false for the usual answer. */
typedef bool fake_nbd_hook(struct fake_nbd_connection *connection,
                           struct fake_nbd_request *request);

#define FAKE_NBD_CONNECTIONS_MAX 256

struct fake_nbd_server {
    /* Set before fake_nbd_server_start; size, flags and silent also between connections. */
    _Atomic uint64_t size; /* as told; the data has data_bytes */
    _Atomic unsigned flags;
    _Atomic bool silent;     /* accept, and say nothing */
    _Atomic bool no_context; /* refuse base:allocation */
    uint32_t minimum_block;  /* 0: say nothing of block sizes */
    uint32_t preferred_block;
    uint32_t maximum_block;
    _Atomic(fake_nbd_hook *) hook;
    uint8_t *data;
    uint64_t data_bytes;

    char *folder;
    char *path; /* of the socket */

    _Atomic unsigned accepted;   /* connections so far */
    _Atomic unsigned counts[8];  /* requests so far, by command */
    _Atomic unsigned last_flags; /* of the last request that was not a flush */

    int listen_fd;
    int stop_fd;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the list of connections and data */
    struct fake_nbd_connection *connections[FAKE_NBD_CONNECTIONS_MAX];
    unsigned connection_count;
};

/* A server of bytes zeroes that can everything. Free with fake_nbd_server_free. */
struct fake_nbd_server *fake_nbd_server_new(uint64_t bytes);
void fake_nbd_server_start(struct fake_nbd_server *server);
/* Close the listening socket and all connections and wait for their threads; may start again. */
void fake_nbd_server_stop(struct fake_nbd_server *server);
void fake_nbd_server_free(struct fake_nbd_server *server);

/* Pieces of answers, for hooks. error is an NBD error number (those below 100 are errno's). */
void fake_nbd_reply_simple(struct fake_nbd_connection *connection, uint64_t cookie, uint32_t error);
void fake_nbd_reply_chunk(struct fake_nbd_connection *connection, uint64_t cookie, uint16_t flags,
                          uint16_t type, const void *payload, uint32_t bytes);
/* The last chunk of an answer with extents: count pairs of length and flags. */
void fake_nbd_reply_extents(struct fake_nbd_connection *connection, uint64_t cookie,
                            const uint32_t *numbers, unsigned count);
/* The usual answer. */
void fake_nbd_answer(struct fake_nbd_connection *connection, struct fake_nbd_request *request);
void fake_nbd_send(struct fake_nbd_connection *connection, const void *bytes, size_t count);
/* End the connection, now. */
void fake_nbd_hang_up(struct fake_nbd_connection *connection);

#endif
