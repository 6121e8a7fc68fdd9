/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One connection to an NBD server, with many commands in flight.
 *
 * There is no thread that reads the socket. Of the threads that wait for their commands one is
 * the leader: it waits for the socket and lets the library take in whatever has come, for
 * everybody; when its own command is answered, it hands over to another that still waits. A
 * single reader so pays no thread switch, nothing runs while nobody waits, and the process may
 * fork as long as nothing is in flight.
 */
#ifndef LIVEBLK_FORMATS_NBD_LINK_H
#define LIVEBLK_FORMATS_NBD_LINK_H

#include <libnbd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/queue.h"

enum nbd_operation {
    NBD_OPERATION_READ,
    NBD_OPERATION_WRITE,
    NBD_OPERATION_ZERO,
    NBD_OPERATION_TRIM,
    NBD_OPERATION_FLUSH,
    NBD_OPERATION_CACHE,
    NBD_OPERATION_EXTENTS,
};

enum nbd_outcome {
    NBD_OUTCOME_ANSWERED, /* the server answered; the request's error says what */
    NBD_OUTCOME_LOST,     /* sent, but the connection ended before the answer */
    NBD_OUTCOME_UNSENT,   /* the connection was gone before the request was sent */
};

struct nbd_extents;

struct nbd_request {
    enum nbd_operation operation;
    void *buffer; /* of a read or, only read from, a write */
    uint64_t offset;
    uint64_t bytes;
    uint32_t flags;              /* LIBNBD_CMD_FLAG_* */
    bool needs_flush;            /* once answered, it is durable only after a flush */
    struct nbd_extents *extents; /* what NBD_OPERATION_EXTENTS fills */

    /* The answer: 0 or a negative errno. */
    int error;
    bool timed_out;
    bool vouched; /* the link that answered vouches, see there */

    /* The link's, under its lock. */
    enum nbd_outcome outcome;
    bool done;
    bool answered;
    uint64_t received; /* bytes of a read */
    int64_t deadline_ns;
    pthread_cond_t wake;
    TAILQ_ENTRY(nbd_request) entry;
};

struct nbd_link {
    /* Guards everything below. Taken before the client's lock (formats/nbd-client.h). */
    pthread_mutex_t lock;
    struct nbd_handle *handle; /* NULL: no connection */
    int lifeline;              /* of a command, or -1 */
    uint64_t generation;       /* counts connections, so that a leader sees that its own went */
    TAILQ_HEAD(, nbd_request) in_flight;
    bool has_leader;
    short leader_events; /* what the leader waits for on the socket */
    int wake_fd;         /* an eventfd that ends the leader's wait */
    /* A command's handle whose connection broke, kept until close: closing it waits for the
     * command. */
    struct nbd_handle *broken_handle;
    int64_t timeout_ns; /* for a request; INT64_MAX: none. Constant. */

    /* Readable without the lock, for choosing a link. */
    _Atomic bool usable;
    _Atomic unsigned load;

    /* The connection is older than all doubts about unflushed writes; kept by the client. */
    _Atomic bool vouches;

    /* Called with the lock held. Constant. */
    void (*on_answered_write)(void *data); /* of a request that needs_flush */
    void (*on_broken)(void *data, const char *reason);
    void *data;
};

/* Returns a negative errno. The link has no connection yet. */
int nbd_link_init(struct nbd_link *link);

/* Close the connection in bounded time. Nothing may be in flight. */
void nbd_link_destroy(struct nbd_link *link);

/* Give the link a connection that is ready; the link owns both from now on. Lock held. */
void nbd_link_install(struct nbd_link *link, struct nbd_handle *handle, int lifeline);

/*
 * Send a request and wait for its answer. Any number of threads at once. A request whose outcome
 * is not NBD_OUTCOME_ANSWERED may be run again, here or on another link.
 */
enum nbd_outcome nbd_link_run(struct nbd_link *link, struct nbd_request *request);

/* Give the connection up if requests are in flight on it; they are lost. Any thread. */
void nbd_link_cancel(struct nbd_link *link);

#endif
