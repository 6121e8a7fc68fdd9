/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A remote export: one or several connections to one server, made again when they are lost.
 *
 * Lost connections are made again by a thread that starts with the first loss. Requests wait for
 * it for reconnect-delay seconds, counted from the loss of the last connection, and are then sent
 * again: all of them may be carried out twice. After that they fail, with -ENOTCONN (-ESTALE if
 * a server answers but is not the one it was, -ETIMEDOUT for a request whose own time ran out),
 * until there is a connection again.
 *
 * What a lost connection means for data. A server may have been killed and started again: what
 * it answered but had not been told to flush can be gone, and no later flush brings it back. So
 * writes that were answered since the last good flush are in doubt when a connection is lost.
 * With several connections one that was there before the loss can still vouch for them: that it
 * lives shows that the server does, and multi-conn promises that a flush on it covers them. Once
 * no such connection is left, the writes count as lost, and every flush fails with -EIO until the
 * node is closed and opened again. Failing just the first would not do: whoever flushes cannot be
 * told apart here, so that a job could take the failure and the guest (or the job's own second
 * try after an error policy's pause) be told "done" for data that is gone. Reads and writes go
 * on. Only what a flush would have covered counts: reads, trims and writes that were made durable
 * on their own (FUA) leave no doubt behind.
 */
#ifndef LIVEBLK_FORMATS_NBD_CLIENT_H
#define LIVEBLK_FORMATS_NBD_CLIENT_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "formats/nbd-handshake.h"
#include "formats/nbd-link.h"
#include "formats/nbd-options.h"

struct nbd_client {
    /* Constant while open. */
    const struct nbd_options *options;
    char *description;
    struct nbd_capabilities capabilities;
    unsigned count;
    struct nbd_link links[NBD_CONNECTIONS_MAX];

    _Atomic uint64_t changes;  /* counts what may have changed data or its allocation */
    _Atomic uint64_t answered; /* writes answered that need a flush */
    _Atomic uint64_t losses;   /* connections that were lost: the server may be another one now */
    _Atomic uint64_t cancels;  /* requests that were there before the last one give up */
    _Atomic bool writes_lost;  /* some answered and not flushed, and nobody can vouch for them */

    /* Guards what follows. Innermost: taken with a link's lock held, nothing is taken in it. */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an attempt to connect has ended */
    pthread_cond_t work;    /* for the thread: a link broke, or it shall stop */
    uint64_t flushed;       /* of answered: durable */
    uint64_t doubtful;      /* of answered: in doubt if beyond flushed */
    unsigned live;          /* links with a connection */
    int64_t lost_ns;        /* when the last live link was lost */
    int64_t connected_ns;   /* when the last connection was made */
    unsigned attempts;      /* ended since lost_ns */
    int refusal;            /* errno for requests that find no connection */
    char *last_failure;     /* logged already */
    int64_t loss_logged_ns; /* not every loss of a connection that comes and goes is logged */
    bool loss_logged;
    bool stopping;
    bool thread_started;
    pthread_t thread;
    int cancel_fd; /* readable once stopping: ends an attempt under way */
};

/*
 * Connect; options stay the caller's and must outlive the client. No thread is started. Returns a
 * negative errno with nothing left behind. A client that was opened is closed with
 * nbd_client_close, in bounded time, when nothing is in flight.
 */
int nbd_client_open(struct nbd_client *client, const struct nbd_options *options, GError **error);
void nbd_client_close(struct nbd_client *client);

/* Carry out one request. Any thread. Returns 0 or a negative errno. */
int nbd_client_run(struct nbd_client *client, struct nbd_request *request);

/*
 * Make the requests there are now fail with -ECANCELED instead of waiting for a server that does
 * not answer or is gone. Later ones are carried out as ever. Any thread.
 */
void nbd_client_cancel(struct nbd_client *client);

/*
 * Who wrote what may be lost, and has nothing in flight, writes it anew: flushes succeed again, for
 * what is answered from now on. Any thread.
 */
void nbd_client_accept_loss(struct nbd_client *client);

/* Make durable what was answered before the call, or fail. Any thread. */
int nbd_client_flush(struct nbd_client *client);

#endif
