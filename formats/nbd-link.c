/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-link.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "formats/nbd-extents.h"
#include "formats/nbd-handshake.h"

int nbd_link_init(struct nbd_link *link)
{
    link->handle = NULL;
    link->broken_handle = NULL;
    link->lifeline = -1;
    TAILQ_INIT(&link->in_flight);
    pthread_mutex_init(&link->lock, NULL);
    link->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return link->wake_fd < 0 ? -errno : 0;
}

void nbd_link_destroy(struct nbd_link *link)
{
    if (link->handle || link->broken_handle) {
        nbd_disconnect(link->handle ? link->handle : link->broken_handle, link->lifeline);
    }
    if (link->wake_fd >= 0) {
        close(link->wake_fd);
    }
    pthread_mutex_destroy(&link->lock);
}

void nbd_link_install(struct nbd_link *link, struct nbd_handle *handle, int lifeline)
{
    link->handle = handle;
    link->lifeline = lifeline;
    link->generation++;
    atomic_store(&link->usable, true);
}

static void wake_leader(struct nbd_link *link)
{
    uint64_t one = 1;

    /* Fails only if the counter is full, and then the leader is being woken already. */
    (void)!write(link->wake_fd, &one, sizeof(one));
}

static void finish(struct nbd_link *link, struct nbd_request *request, enum nbd_outcome outcome)
{
    TAILQ_REMOVE(&link->in_flight, request, entry);
    request->outcome = outcome;
    request->done = true;
    pthread_cond_signal(&request->wake);
}

/*
 * Give the connection up: whatever is in flight is lost. The library touches no buffer any more,
 * as nothing lets it read the socket.
 */
static void break_link(struct nbd_link *link, const char *reason)
{
    struct nbd_request *request;

    atomic_store(&link->usable, false);
    link->on_broken(link->data, reason);
    if (link->lifeline >= 0) {
        link->broken_handle = link->handle;
    } else {
        nbd_close(link->handle);
    }
    link->handle = NULL;
    link->generation++;
    while ((request = TAILQ_FIRST(&link->in_flight))) {
        finish(link, request, NBD_OUTCOME_LOST);
    }
    if (link->has_leader) {
        wake_leader(link);
    }
}

static bool is_dead(struct nbd_link *link)
{
    return nbd_aio_is_dead(link->handle) || nbd_aio_is_closed(link->handle);
}

/*
 * Take in what the library has found out: answers, or the end of the connection. An error that
 * arrives together with the end is the library's way to fail what was in flight. A server that
 * says it is shutting down will not serve this connection again either.
 */
static void settle(struct nbd_link *link)
{
    struct nbd_request *request, *next;
    bool dead = is_dead(link);
    bool shutting_down = false, finished = false;

    TAILQ_FOREACH_SAFE (request, &link->in_flight, entry, next) {
        if (!request->answered || (dead && request->error)) {
            continue;
        }
        if (request->error == -ESHUTDOWN) {
            shutting_down = true;
            continue;
        }
        if (request->needs_flush && !request->error) {
            link->on_answered_write(link->data);
        }
        finish(link, request, NBD_OUTCOME_ANSWERED);
        finished = true;
    }
    if (finished && link->has_leader) {
        wake_leader(link); /* it waits for the socket and may be the one that was answered */
    }
    if (dead) {
        break_link(link, nbd_aio_is_dead(link->handle) ? nbd_library_error()
                                                       : "the server closed the connection");
    } else if (shutting_down) {
        break_link(link, "the server is shutting down");
    }
}

/* Called by the library inside a call that the link makes with its lock held. */
static int on_completion(void *data, int *error)
{
    struct nbd_request *request = data;

    request->answered = true;
    request->error = -*error;
    if (!*error && request->operation == NBD_OPERATION_READ &&
        request->received != request->bytes) {
        request->error = -EPROTO;
    }
    return 1; /* forget the command */
}

/* The library lets a server end an answer early; the bytes it left out would pass for zeroes. */
static int on_chunk(void *data, const void *bytes, size_t count, uint64_t offset, unsigned status,
                    int *error)
{
    struct nbd_request *request = data;

    if (status != LIBNBD_READ_ERROR) {
        request->received += count;
    }
    return 0;
}

static int on_extents(void *data, const char *context, uint64_t offset, uint32_t *entries,
                      size_t count, int *error)
{
    struct nbd_request *request = data;
    int ret = nbd_extents_collect(request->extents, context, offset, entries, count);

    if (ret) {
        *error = -ret;
        return -1;
    }
    return 0;
}

static int64_t issue(struct nbd_handle *handle, struct nbd_request *r)
{
    nbd_completion_callback completion = {.callback = on_completion, .user_data = r};
    nbd_chunk_callback chunk = {.callback = on_chunk, .user_data = r};
    nbd_extent_callback extents = {.callback = on_extents, .user_data = r};

    switch (r->operation) {
    case NBD_OPERATION_READ:
        return nbd_aio_pread_structured(handle, r->buffer, r->bytes, r->offset, chunk, completion,
                                        r->flags);
    case NBD_OPERATION_WRITE:
        return nbd_aio_pwrite(handle, r->buffer, r->bytes, r->offset, completion, r->flags);
    case NBD_OPERATION_ZERO:
        return nbd_aio_zero(handle, r->bytes, r->offset, completion, r->flags);
    case NBD_OPERATION_TRIM:
        return nbd_aio_trim(handle, r->bytes, r->offset, completion, r->flags);
    case NBD_OPERATION_FLUSH:
        return nbd_aio_flush(handle, completion, r->flags);
    case NBD_OPERATION_CACHE:
        return nbd_aio_cache(handle, r->bytes, r->offset, completion, r->flags);
    case NBD_OPERATION_EXTENTS:
        return nbd_aio_block_status(handle, r->bytes, r->offset, extents, completion, r->flags);
    }
    return -1;
}

/* What the library wants to hear of, as events for poll. */
static short wanted_events(struct nbd_link *link)
{
    unsigned direction = nbd_aio_get_direction(link->handle);

    return (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
           (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
}

/*
 * With nothing in flight nobody reads the socket, so that a server that went meanwhile has not
 * been noticed. Look before sending: a request that was never sent can be run elsewhere without
 * doubt. (Readable need not mean ended: TLS sends tickets of its own.)
 */
static bool is_usable(struct nbd_link *link)
{
    struct pollfd socket;

    if (link->handle && TAILQ_EMPTY(&link->in_flight)) {
        socket = (struct pollfd){.fd = nbd_aio_get_fd(link->handle), .events = POLLIN};
        if (poll(&socket, 1, 0) > 0) {
            nbd_aio_notify_read(link->handle);
            settle(link);
        }
    }
    return link->handle;
}

/* Returns false, with the outcome set, if nothing is in flight for the request after all. */
static bool send_request(struct nbd_link *link, struct nbd_request *request)
{
    TAILQ_INSERT_TAIL(&link->in_flight, request, entry);
    if (issue(link->handle, request) < 0) {
        if (!request->answered) {
            request->answered = true;
            request->error = nbd_get_errno() ? -nbd_get_errno() : -EIO;
        }
    }
    if (request->answered || is_dead(link)) {
        settle(link);
    } else if (link->has_leader && wanted_events(link) & ~link->leader_events) {
        wake_leader(link);
    }
    return !request->done;
}

static int poll_timeout_ms(int64_t deadline_ns)
{
    int64_t left_ns;

    if (deadline_ns == INT64_MAX) {
        return -1;
    }
    left_ns = MAX_OF(deadline_ns - clock_now_ns(), INT64_C(0));
    return (int)MIN_OF(left_ns / NS_PER_MS + 1, INT64_C(1000000));
}

static void notify(struct nbd_link *link, short events)
{
    short wanted = wanted_events(link);

    /* One event per turn: the first may have changed what the library wants. */
    if (events & (POLLIN | POLLHUP | POLLERR) && wanted & POLLIN) {
        nbd_aio_notify_read(link->handle);
    } else if (events & (POLLOUT | POLLHUP | POLLERR) && wanted & POLLOUT) {
        nbd_aio_notify_write(link->handle);
    } else {
        return;
    }
    settle(link);
}

/* One turn as the leader: wait, without the lock, for the socket or to be woken. */
static void lead(struct nbd_link *link, int64_t deadline_ns)
{
    uint64_t generation = link->generation;
    struct pollfd fds[2] = {
        {.fd = nbd_aio_get_fd(link->handle), .events = wanted_events(link)},
        {.fd = link->wake_fd, .events = POLLIN},
    };
    int count;

    link->has_leader = true;
    link->leader_events = fds[0].events;
    pthread_mutex_unlock(&link->lock);
    count = poll(fds, 2, poll_timeout_ms(deadline_ns));
    pthread_mutex_lock(&link->lock);
    link->has_leader = false;
    if (count <= 0) {
        return;
    }
    if (fds[1].revents) {
        uint64_t woken;

        (void)!read(link->wake_fd, &woken, sizeof(woken));
    }
    if (link->generation == generation) {
        notify(link, fds[0].revents);
    }
}

/* Somebody must wait for the socket as long as anything is in flight. */
static void hand_over(struct nbd_link *link)
{
    struct nbd_request *next = TAILQ_FIRST(&link->in_flight);

    if (next && !link->has_leader) {
        pthread_cond_signal(&next->wake);
    }
}

static void wait_until_done(struct nbd_link *link, struct nbd_request *request)
{
    while (!request->done) {
        if (link->timeout_ns != INT64_MAX && clock_now_ns() >= request->deadline_ns) {
            request->timed_out = true;
            break_link(link, "a request was not answered in time");
        } else if (link->has_leader) {
            clock_cond_wait_until(&request->wake, &link->lock, request->deadline_ns);
        } else {
            lead(link, request->deadline_ns);
        }
    }
    hand_over(link);
}

enum nbd_outcome nbd_link_run(struct nbd_link *link, struct nbd_request *request)
{
    SCOPE_LOCK(&link->lock);

    if (!is_usable(link)) {
        return NBD_OUTCOME_UNSENT;
    }
    request->done = request->answered = false;
    request->error = 0;
    request->received = 0;
    request->deadline_ns =
        link->timeout_ns == INT64_MAX ? INT64_MAX : clock_now_ns() + link->timeout_ns;
    pthread_cond_init(&request->wake, NULL);
    atomic_fetch_add_explicit(&link->load, 1, memory_order_relaxed);
    if (send_request(link, request)) {
        wait_until_done(link, request);
    }
    request->vouched = atomic_load(&link->vouches);
    atomic_fetch_sub_explicit(&link->load, 1, memory_order_relaxed);
    pthread_cond_destroy(&request->wake);
    return request->outcome;
}

void nbd_link_cancel(struct nbd_link *link)
{
    SCOPE_LOCK(&link->lock);

    if (link->handle && !TAILQ_EMPTY(&link->in_flight)) {
        break_link(link, "requests in flight were cancelled");
    }
}
