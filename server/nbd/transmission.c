/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The transmission phase. One thread at a time reads a request, gives the reading to another thread
 * and carries it out; what is answered goes into a queue, which one thread at a time sends, all
 * that is there with one system call. Threads are made when a request finds none that would go on
 * reading. A client that reads no replies, or sends half a request, stops only itself.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/device.h"
#include "server/nbd/connection-internal.h"

#define INPUT_BYTES (64u << 10)
/* A payload of so much is received into its place, not read ahead with its header. */
#define LARGE_PAYLOAD (32u << 10)
/* A buffer as large as this stays with its request for the next one. */
#define KEPT_BUFFER (256u << 10)
/* What one sendmsg takes. */
#define BATCH_PARTS 256
/* A command that is none of ours may have a payload only with extended headers. */
#define IGNORED_MAX (64u << 20)

/* ---- Requests as objects --------------------------------------------------------------------- */

static struct nbd_request *new_request(void)
{
    struct nbd_request *request = g_new0(struct nbd_request, 1);

    request->extents = g_byte_array_new();
    return request;
}

static void free_request(struct nbd_request *request)
{
    free(request->buffer);
    g_byte_array_unref(request->extents);
    g_free(request);
}

/* One to read into: if replies are not sent, there is none until they are. */
static struct nbd_request *take_request(struct nbd_connection *connection)
{
    SCOPE_LOCK(&connection->reply_lock);
    struct nbd_request *request;

    while (STAILQ_EMPTY(&connection->unused) && connection->requests == NBD_REQUESTS_MAX) {
        pthread_cond_wait(&connection->reply_changed, &connection->reply_lock);
    }
    request = STAILQ_FIRST(&connection->unused);
    if (request) {
        STAILQ_REMOVE_HEAD(&connection->unused, entry);
    } else {
        connection->requests++;
        request = new_request();
    }
    return request;
}

/* The most bytes that a request and its reply have, but for what is little. */
static uint64_t data_of(const struct nbd_connection *connection, const struct nbd_request *request)
{
    switch (request->type) {
    case NBD_CMD_READ:
        return request->length <= NBD_PAYLOAD_MAX ? request->length : 0;
    case NBD_CMD_BLOCK_STATUS:
        return MIN(nbd_request_extents_max(connection, request) + request->payload, NBD_DATA_MAX);
    default:
        return request->payload;
    }
}

/*
 * Wait until there is room for the data of a request that has just been read. Little data need no
 * room: as many requests as there are have little in all.
 */
static void claim_room(struct nbd_connection *connection, struct nbd_request *request)
{
    uint64_t bytes = data_of(connection, request);

    if (bytes <= KEPT_BUFFER) {
        return;
    }
    SCOPE_LOCK(&connection->reply_lock);
    while (connection->data_bytes + bytes > NBD_DATA_MAX) {
        pthread_cond_wait(&connection->reply_changed, &connection->reply_lock);
    }
    connection->data_bytes += bytes;
    request->claimed = bytes;
}

static void give_back_locked(struct nbd_connection *connection, struct nbd_request *request)
{
    connection->data_bytes -= request->claimed;
    request->claimed = 0;
    if (request->capacity > KEPT_BUFFER) {
        free(request->buffer);
        request->buffer = NULL;
        request->capacity = 0;
    }
    if (request->extents->len > KEPT_BUFFER) {
        g_byte_array_unref(request->extents);
        request->extents = g_byte_array_new();
    }
    STAILQ_INSERT_HEAD(&connection->unused, request, entry);
}

/* How many extents there are is known when all are found. */
static void give_back_room(struct nbd_connection *connection, struct nbd_request *request)
{
    uint64_t needed = (uint64_t)request->extents->len + request->payload;

    if (request->type != NBD_CMD_BLOCK_STATUS || needed >= request->claimed) {
        return;
    }
    SCOPE_LOCK(&connection->reply_lock);
    connection->data_bytes -= request->claimed - needed;
    request->claimed = needed;
    pthread_cond_broadcast(&connection->reply_changed);
}

static void give_back(struct nbd_connection *connection, struct nbd_request *request)
{
    SCOPE_LOCK(&connection->reply_lock);

    give_back_locked(connection, request);
    pthread_cond_broadcast(&connection->reply_changed);
}

/* ---- Reading a request; read_lock held ------------------------------------------------------- */

/* Have so many bytes in the input buffer. False: the client has left. */
static bool fill_input(struct nbd_connection *connection, size_t bytes)
{
    size_t held = connection->input.end - connection->input.begin;

    if (held >= bytes) {
        return true;
    }
    memmove(connection->input.data, connection->input.data + connection->input.begin, held);
    connection->input.begin = 0;
    connection->input.end = held;
    size_t most = connection->input.expects_little ? bytes - held : INPUT_BYTES - held;
    ssize_t received = nbd_channel_receive(&connection->channel, connection->input.data + held,
                                           bytes - held, most);
    if (received <= 0) {
        return false;
    }
    connection->input.end += (size_t)received;
    return true;
}

static bool read_payload(struct nbd_connection *connection, uint8_t *place, size_t bytes)
{
    size_t held = MIN(connection->input.end - connection->input.begin, bytes);

    memcpy(place, connection->input.data + connection->input.begin, held);
    connection->input.begin += held;
    bytes -= held;
    return !bytes ||
           nbd_channel_receive(&connection->channel, place + held, bytes, bytes) == (ssize_t)bytes;
}

static bool skip_payload(struct nbd_connection *connection, uint64_t bytes)
{
    while (bytes) {
        size_t part = MIN(bytes, INPUT_BYTES);

        if (!fill_input(connection, part)) {
            return false;
        }
        connection->input.begin += part;
        bytes -= part;
    }
    return true;
}

static void parse_compact(struct nbd_request *request, const uint8_t *header)
{
    struct nbd_compact_request wire;

    memcpy(&wire, header, sizeof(wire));
    request->flags = GUINT16_FROM_BE(wire.flags);
    request->type = GUINT16_FROM_BE(wire.type);
    request->cookie = wire.cookie; /* it goes back as it is */
    request->offset = GUINT64_FROM_BE(wire.offset);
    request->length = GUINT32_FROM_BE(wire.length);
}

static void parse_extended(struct nbd_request *request, const uint8_t *header)
{
    struct nbd_extended_request wire;

    memcpy(&wire, header, sizeof(wire));
    request->flags = GUINT16_FROM_BE(wire.flags);
    request->type = GUINT16_FROM_BE(wire.type);
    request->cookie = wire.cookie;
    request->offset = GUINT64_FROM_BE(wire.offset);
    request->length = GUINT64_FROM_BE(wire.length);
}

/* False: the client has left, or is none of ours any more. */
static bool read_header(struct nbd_connection *connection, struct nbd_request *request)
{
    bool is_extended = connection->mode == NBD_EXTENDED;
    size_t size =
        is_extended ? sizeof(struct nbd_extended_request) : sizeof(struct nbd_compact_request);

    if (!fill_input(connection, size)) {
        return false;
    }
    const uint8_t *header = connection->input.data + connection->input.begin;
    if (nbd_get32(header) != (is_extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        return false;
    }
    is_extended ? parse_extended(request, header) : parse_compact(request, header);
    connection->input.begin += size;
    return request->type != NBD_CMD_DISC;
}

/*
 * A payload that is too long can only be skipped, and much of it is not even that: whoever sends
 * that has lost his way.
 */
static bool receive_payload(struct nbd_connection *connection, struct nbd_request *request)
{
    bool has_payload =
        request->type == NBD_CMD_WRITE ||
        (connection->mode == NBD_EXTENDED && request->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
    uint64_t bytes = has_payload ? request->length : 0;

    request->payload = bytes <= NBD_PAYLOAD_MAX ? (uint32_t)bytes : 0;
    claim_room(connection, request);
    request->has_lost_payload =
        bytes > NBD_PAYLOAD_MAX || (bytes && !nbd_request_reserve(request, bytes));
    if (request->has_lost_payload) {
        return bytes <= IGNORED_MAX && skip_payload(connection, bytes);
    }
    return !bytes || read_payload(connection, request->buffer, bytes);
}

static bool read_request(struct nbd_connection *connection, struct nbd_request *request)
{
    if (!read_header(connection, request) || !receive_payload(connection, request)) {
        return false;
    }
    connection->input.expects_little = request->payload >= LARGE_PAYLOAD;
    return true;
}

/* ---- Sending replies ------------------------------------------------------------------------- */

/* As many of the replies as one system call takes, out of the queue. reply_lock held. */
static size_t take_batch_locked(struct nbd_connection *connection, struct nbd_request **batch,
                                struct iovec *parts)
{
    struct nbd_request **last = batch;
    size_t count = 0;

    while (!STAILQ_EMPTY(&connection->replies) &&
           count + STAILQ_FIRST(&connection->replies)->part_count <= BATCH_PARTS) {
        struct nbd_request *request = STAILQ_FIRST(&connection->replies);

        STAILQ_REMOVE_HEAD(&connection->replies, entry);
        memcpy(parts + count, request->parts, request->part_count * sizeof(*parts));
        count += request->part_count;
        *last = request;
        last = &STAILQ_NEXT(request, entry);
    }
    *last = NULL;
    return count;
}

/* Nothing can be told any more: nothing more need be asked, either. */
static void become_deaf(struct nbd_connection *connection)
{
    atomic_store(&connection->is_deaf, true);
    nbd_channel_shut_down(&connection->channel);
}

/* The thread is no longer one that will soon be back to read. */
static void stay_away(struct nbd_connection *connection, bool *returns)
{
    if (*returns) {
        *returns = false;
        atomic_fetch_sub(&connection->input.returning, 1);
    }
}

static void replace_returning(struct nbd_connection *connection);

static int send_batch(struct nbd_connection *connection, struct iovec *parts, size_t count,
                      bool *returns)
{
    int status = nbd_channel_try_send(&connection->channel, &parts, &count);

    if (status == 0 && count) {
        stay_away(connection, returns); /* it takes as long as the client likes */
        replace_returning(connection);
        status = nbd_channel_send(&connection->channel, parts, count);
    }
    return status;
}

/* reply_lock held; dropped meanwhile. */
static void send_replies_locked(struct nbd_connection *connection, bool *returns)
{
    struct iovec parts[BATCH_PARTS];

    while (!STAILQ_EMPTY(&connection->replies)) {
        struct nbd_request *batch;
        size_t count = take_batch_locked(connection, &batch, parts);
        int status = 0;

        pthread_mutex_unlock(&connection->reply_lock);
        if (!atomic_load(&connection->is_deaf)) {
            status = send_batch(connection, parts, count, returns);
        }
        stay_away(connection, returns); /* others may have more and more to be sent */
        pthread_mutex_lock(&connection->reply_lock);
        if (status < 0) {
            become_deaf(connection);
        }
        while (batch) {
            struct nbd_request *next = STAILQ_NEXT(batch, entry);

            give_back_locked(connection, batch);
            batch = next;
        }
        pthread_cond_broadcast(&connection->reply_changed);
    }
}

/*
 * It belongs to the queue from here on. A client that has but one request under way sends the next
 * one when this is answered, which often is before the thread that answers is back: no other is to
 * be woken for that.
 */
static void reply(struct nbd_connection *connection, struct nbd_request *request)
{
    bool returns = true;

    atomic_fetch_add(&connection->input.returning, 1);
    pthread_mutex_lock(&connection->reply_lock);
    STAILQ_INSERT_TAIL(&connection->replies, request, entry);
    if (!connection->is_sending) {
        connection->is_sending = true;
        send_replies_locked(connection, &returns);
        connection->is_sending = false;
    }
    pthread_mutex_unlock(&connection->reply_lock);
    stay_away(connection, &returns);
}

/* ---- Threads --------------------------------------------------------------------------------- */

static void serve(void *data);

/*
 * More than one thread that waits to read would only take turns with the others: each request would
 * wake a thread, where two are quick enough if requests are. The rest sleep until they are called.
 */
static void idle_while_others_wait(struct nbd_connection *connection)
{
    if (atomic_load(&connection->input.waiting) == 0) {
        return;
    }
    SCOPE_LOCK(&connection->idle_lock);
    if (atomic_load(&connection->input.waiting) == 0) {
        return; /* who has begun to read since then has found nobody to call */
    }
    connection->idle++;
    while (!connection->called && !connection->is_over) {
        pthread_cond_wait(&connection->idle_changed, &connection->idle_lock);
    }
    connection->idle--;
    connection->called -= connection->called > 0;
}

/* True: a thread that sleeps will read on, once it is woken. */
static bool call_idle_thread(struct nbd_connection *connection)
{
    SCOPE_LOCK(&connection->idle_lock);

    if (connection->idle == connection->called) {
        return false;
    }
    connection->called++;
    return true;
}

static void end_idling(struct nbd_connection *connection)
{
    SCOPE_LOCK(&connection->idle_lock);

    connection->is_over = true;
    pthread_cond_broadcast(&connection->idle_changed);
}

/* Who reads on while a request is carried out. */
enum next_reader {
    READER_IS_THERE, /* it waits, or was just made; or there can be none */
    READER_RETURNS,  /* it is sending, and may turn out to be late */
    READER_SLEEPS,   /* it was called, and is to be woken when no lock is held that it needs */
};

/* See to it that somebody does. read_lock held. */
static enum next_reader find_reader(struct nbd_connection *connection)
{
    if (atomic_load(&connection->input.waiting)) {
        return READER_IS_THERE;
    }
    if (atomic_load(&connection->input.returning)) {
        return READER_RETURNS;
    }
    if (call_idle_thread(connection)) {
        return READER_SLEEPS;
    }
    if (connection->threads < NBD_THREADS_MAX) {
        struct nbd_task *other = &connection->others[connection->threads - 1];

        *other = (struct nbd_task){.function = serve, .data = connection};
        if (nbd_task_start(other) == 0) {
            connection->threads++; /* else it goes slower */
        }
    }
    return READER_IS_THERE;
}

/*
 * One that was to be back soon is not: whoever relied on it has called nobody. If somebody else has
 * read_lock he sees to a reader when he has read, or comes here when he has let go.
 */
static void replace_returning(struct nbd_connection *connection)
{
    enum next_reader reader = READER_IS_THERE;

    if (atomic_load(&connection->input.waiting) || atomic_load(&connection->input.returning) ||
        pthread_mutex_trylock(&connection->read_lock) != 0) {
        return;
    }
    if (!connection->input.has_ended) {
        reader = find_reader(connection);
    }
    pthread_mutex_unlock(&connection->read_lock);
    if (reader == READER_SLEEPS) {
        pthread_cond_signal(&connection->idle_changed);
    }
}

/* The next request; NULL: there is none any more. */
static struct nbd_request *next_request(struct nbd_connection *connection)
{
    idle_while_others_wait(connection);
    struct nbd_request *request = take_request(connection);

    atomic_fetch_add(&connection->input.waiting, 1);
    pthread_mutex_lock(&connection->read_lock);
    atomic_fetch_sub(&connection->input.waiting, 1);
    if (atomic_load(&connection->is_shut_down)) {
        connection->input.has_ended = true; /* although the system may still have requests */
    }
    if (!connection->input.has_ended) {
        connection->input.has_ended = !read_request(connection, request);
    }
    bool has_ended = connection->input.has_ended;
    enum next_reader reader = has_ended ? READER_IS_THERE : find_reader(connection);
    pthread_mutex_unlock(&connection->read_lock);
    if (reader == READER_SLEEPS) {
        pthread_cond_signal(&connection->idle_changed);
    } else if (reader == READER_RETURNS) {
        replace_returning(connection); /* it may have become late before the lock was free */
    }
    if (has_ended) {
        end_idling(connection);
        give_back(connection, request);
    }
    return has_ended ? NULL : request;
}

/*
 * What a client sent before it left changes its disk as if it had stayed, but nothing need be found
 * out for it. When we have sent it away not even the first is expected.
 */
static bool is_vain(struct nbd_connection *connection, const struct nbd_request *request)
{
    bool only_asks = request->type == NBD_CMD_READ || request->type == NBD_CMD_CACHE ||
                     request->type == NBD_CMD_BLOCK_STATUS;

    return atomic_load(&connection->is_shut_down) ||
           (only_asks && atomic_load(&connection->is_deaf));
}

static void serve(void *data)
{
    struct nbd_connection *connection = data;
    struct nbd_request *request;

    block_device_set_client(&connection->is_shut_down);
    while ((request = next_request(connection))) {
        if (is_vain(connection, request)) {
            give_back(connection, request);
            continue;
        }
        nbd_request_execute(connection, request);
        give_back_room(connection, request);
        reply(connection, request);
    }
    block_device_set_client(NULL);
}

static void free_requests(struct nbd_connection *connection)
{
    while (!STAILQ_EMPTY(&connection->unused)) {
        struct nbd_request *request = STAILQ_FIRST(&connection->unused);

        STAILQ_REMOVE_HEAD(&connection->unused, entry);
        free_request(request);
    }
}

void nbd_transmit(struct nbd_connection *connection)
{
    connection->input.data = g_malloc(INPUT_BYTES);
    connection->threads = 1;
    serve(connection);
    /* Nobody makes a thread any more: input has ended. */
    for (unsigned i = 0; i + 1 < connection->threads; i++) {
        nbd_task_join(&connection->others[i]);
    }
    free_requests(connection);
    g_free(connection->input.data);
}
