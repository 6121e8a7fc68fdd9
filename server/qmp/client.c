/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/client.h"

#include <errno.h>
#include <glib-unix.h>
#include <poll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/error.h"
#include "block/main-loop.h"
#include "server/qmp/json-indent.h"
#include "server/qmp/json-stream.h"
#include "server/qmp/monitor.h"
#include "server/qmp/request.h"

#define INPUT_BYTES 16384

/* Requests served before other sources of the main loop have their turn. */
#define TURN_REQUESTS 32

/* Bytes that wait to be written. */
struct output {
    GBytes *line;
    bool is_event;
    void (*after)(void *data); /* once written or given up, or NULL */
    void *after_data;
    STAILQ_ENTRY(output) entry;
};
STAILQ_HEAD(output_list, output);

struct qmp_client {
    struct qmp_client_owner owner;
    unsigned references; /* the connection; a command that runs; a function working on us */
    int fd;              /* -1: closed */
    struct qmp_session session;

    struct json_stream *stream;
    char input[INPUT_BYTES]; /* read, not parsed yet */
    size_t input_start;
    size_t input_end;
    bool input_ended; /* the peer sends no more, or we want no more */
    bool finishing;   /* the monitor ends */

    GQueue requests; /* struct qmp_request, parsed, not started */
    bool is_running; /* a request is on a thread */

    struct output_list output;
    size_t output_bytes; /* of all */
    size_t event_bytes;  /* of events */
    size_t written;      /* of the first */

    GSource *read_source;
    GSource *write_source;
    GSource *turn_source; /* takes up a long turn again */
};

static void pump(struct qmp_client *client);
static void close_client(struct qmp_client *client);

static void reference(struct qmp_client *client)
{
    client->references++;
}

static void drop_requests(struct qmp_client *client)
{
    struct qmp_request *request;

    while ((request = g_queue_pop_head(&client->requests))) {
        qmp_request_free(request);
    }
    client->input_start = client->input_end = 0;
}

static void unreference(struct qmp_client *client)
{
    struct qmp_client_owner owner = client->owner;

    if (--client->references > 0) {
        return;
    }
    /* What was parsed after it was closed. */
    drop_requests(client);
    json_stream_free(client->stream);
    g_free(client);
    owner.gone(owner.data);
}

static GSource *watch(struct qmp_client *client, GIOCondition condition, GUnixFDSourceFunc function)
{
    GSource *source = g_unix_fd_source_new(client->fd, condition);

    g_source_set_callback(source, G_SOURCE_FUNC(function), client, NULL);
    g_source_attach(source, main_loop_context());
    return source;
}

/* Output */

static void remove_first_output(struct qmp_client *client)
{
    struct output *first = STAILQ_FIRST(&client->output);
    size_t length = g_bytes_get_size(first->line);

    STAILQ_REMOVE_HEAD(&client->output, entry);
    client->output_bytes -= length;
    client->event_bytes -= first->is_event ? length : 0;
    client->written = 0;
    g_bytes_unref(first->line);
    if (first->after) {
        first->after(first->after_data);
    }
    g_free(first);
}

/* Write some of the first output. Returns false if the socket takes no more now. */
static bool write_some(struct qmp_client *client)
{
    struct output *first = STAILQ_FIRST(&client->output);
    size_t length;
    const char *bytes = g_bytes_get_data(first->line, &length);
    ssize_t sent = send(client->fd, bytes + client->written, length - client->written,
                        MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent < 0) {
        if (errno == EINTR) {
            return true;
        }
        if (errno != EAGAIN) {
            close_client(client);
        }
        return false;
    }
    client->written += (size_t)sent;
    if (client->written == length) {
        remove_first_output(client);
    }
    return true;
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer data);

/* Write what the socket takes; wait for it to take the rest. May close the client. */
static void flush(struct qmp_client *client)
{
    while (client->fd >= 0 && !STAILQ_EMPTY(&client->output) && write_some(client)) {
    }
    if (client->fd < 0 || STAILQ_EMPTY(&client->output)) {
        main_loop_drop_source(&client->write_source);
    } else if (!client->write_source) {
        client->write_source = watch(client, G_IO_OUT, on_writable);
    }
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer data)
{
    struct qmp_client *client = data;

    reference(client);
    flush(client);
    pump(client);
    unreference(client);
    return G_SOURCE_CONTINUE;
}

static GBytes *indent(GBytes *line)
{
    GBytes *lines = json_indent(line);

    g_bytes_unref(line);
    return lines;
}

/* Queue a line and write what can be written. Takes the reference. May close the client. */
static void put(struct qmp_client *client, GBytes *line, bool is_event, void (*after)(void *data),
                void *after_data)
{
    struct output *output = g_new(struct output, 1);
    bool was_empty = STAILQ_EMPTY(&client->output);

    line = client->owner.is_pretty ? indent(line) : line;
    *output = (struct output){
        .line = line,
        .is_event = is_event,
        .after = after,
        .after_data = after_data,
    };
    STAILQ_INSERT_TAIL(&client->output, output, entry);
    client->output_bytes += g_bytes_get_size(line);
    client->event_bytes += is_event ? g_bytes_get_size(line) : 0;
    if (was_empty) {
        flush(client);
    }
}

/* Requests */

/* Hand out the reply, or drop it if nobody is there any more. Frees the request. */
static void answer(struct qmp_client *client, struct qmp_request *request)
{
    if (client->fd >= 0) {
        put(client, g_steal_pointer(&request->reply), false, request->after_reply,
            request->after_reply_data);
    } else if (request->after_reply) {
        request->after_reply(request->after_reply_data);
    }
    qmp_request_free(request);
}

static void on_request_done(struct qmp_request *request)
{
    struct qmp_client *client = request->client;

    client->is_running = false;
    answer(client, request);
    pump(client);
    unreference(client);
}

static void fail_request(struct qmp_client *client, struct qmp_request *request,
                         const GError *error)
{
    qmp_request_fail(request, error);
    answer(client, request);
}

static void start_on_thread(struct qmp_client *client, struct qmp_request *request)
{
    int status = qmp_request_run_on_thread(request, on_request_done);

    if (status < 0) {
        g_autoptr(GError) error = NULL;

        block_error_errno(&error, -status, "Could not start a thread for the command %s",
                          request->command->name);
        fail_request(client, request, error);
        return;
    }
    client->is_running = true;
    reference(client);
}

static void start_request(struct qmp_client *client, struct qmp_request *request)
{
    g_autoptr(GError) error = NULL;

    if (request->parse_error) {
        block_error(&error, EINVAL, "%s", request->parse_error);
        fail_request(client, request, error);
        return;
    }
    request->command = qmp_dispatch(client->owner.command_tables, &client->session,
                                    request->message, &request->arguments, &error);
    if (!request->command) {
        fail_request(client, request, error);
    } else if (request->command->flags & QMP_COMMAND_QUICK) {
        qmp_request_run(request);
        answer(client, request);
    } else {
        start_on_thread(client, request);
    }
}

void *qmp_request_owner_data(struct qmp_request *request)
{
    return request->client->owner.data;
}

struct qmp_session *qmp_request_session(struct qmp_request *request)
{
    return &request->client->session;
}

void qmp_request_after_reply(struct qmp_request *request, void (*function)(void *data), void *data)
{
    request->after_reply = function;
    request->after_reply_data = data;
}

/* Input */

static void take_message(json_t *value, const char *error, void *data)
{
    struct qmp_client *client = data;
    struct qmp_request *request = qmp_request_new(client, value, error);

    if (value && qmp_is_out_of_band(value)) {
        start_request(client, request);
    } else {
        g_queue_push_tail(&client->requests, request);
    }
}

/* Without oob a client has one request in progress; the next one is not even read. */
static bool may_parse(const struct qmp_client *client)
{
    guint waiting = client->requests.length;

    if (client->fd < 0 || client->finishing || client->output_bytes > QMP_OUTPUT_PAUSE) {
        return false;
    }
    return client->session.out_of_band ? waiting < QMP_QUEUE_LENGTH
                                       : waiting == 0 && !client->is_running;
}

static bool has_input(const struct qmp_client *client)
{
    return client->input_start < client->input_end;
}

/* Returns whether there was anything to do. */
static bool parse_input(struct qmp_client *client)
{
    bool any = false;

    while (has_input(client) && may_parse(client)) {
        size_t used = json_stream_feed(client->stream, client->input + client->input_start,
                                       client->input_end - client->input_start);

        client->input_start += used;
        any = true;
    }
    return any;
}

/* Returns whether there was anything to do. */
static bool serve_next_request(struct qmp_client *client)
{
    if (client->is_running || client->output_bytes > QMP_OUTPUT_PAUSE ||
        g_queue_is_empty(&client->requests)) {
        return false;
    }
    start_request(client, g_queue_pop_head(&client->requests));
    return true;
}

/* A peer that closed its end for good is not the same as one that only has no more requests. */
static bool peer_has_gone(int fd)
{
    struct pollfd state = {.fd = fd};

    return poll(&state, 1, 0) == 1 && (state.revents & (POLLHUP | POLLERR));
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer data)
{
    struct qmp_client *client = data;
    ssize_t received = recv(fd, client->input, sizeof(client->input), MSG_DONTWAIT);

    if (received < 0 && (errno == EAGAIN || errno == EINTR)) {
        return G_SOURCE_CONTINUE;
    }
    reference(client);
    if (received < 0 || (received == 0 && peer_has_gone(fd))) {
        close_client(client);
    } else if (received == 0) {
        client->input_ended = true;
    } else {
        client->input_start = 0;
        client->input_end = (size_t)received;
    }
    pump(client);
    unreference(client);
    return G_SOURCE_CONTINUE;
}

/* What is left unread would turn the peer's end of file into a connection reset. */
static void drain_socket(struct qmp_client *client)
{
    char ignored[INPUT_BYTES];
    int n;

    for (n = 0; n < 64 && recv(client->fd, ignored, sizeof(ignored), MSG_DONTWAIT) > 0; n++) {
    }
}

static void close_client(struct qmp_client *client)
{
    if (client->fd < 0) {
        return;
    }
    main_loop_drop_source(&client->read_source);
    main_loop_drop_source(&client->write_source);
    main_loop_drop_source(&client->turn_source);
    drain_socket(client);
    close(client->fd);
    client->fd = -1;
    drop_requests(client);
    while (!STAILQ_EMPTY(&client->output)) {
        remove_first_output(client);
    }
    client->owner.closed(client, client->owner.data);
    unreference(client);
}

static gboolean on_turn(gpointer data)
{
    struct qmp_client *client = data;

    main_loop_drop_source(&client->turn_source);
    pump(client);
    return G_SOURCE_REMOVE;
}

/* Let the other sources have their turn, then go on. */
static void end_turn(struct qmp_client *client)
{
    if (!client->turn_source) {
        client->turn_source = g_idle_source_new();
        g_source_set_priority(client->turn_source, G_PRIORITY_DEFAULT);
        g_source_set_callback(client->turn_source, on_turn, client, NULL);
        g_source_attach(client->turn_source, main_loop_context());
    }
}

static bool has_work(const struct qmp_client *client)
{
    return has_input(client) || client->is_running || client->requests.length > 0;
}

/* Wait for input, or not; close what has ended. */
static void settle(struct qmp_client *client)
{
    bool ended = (client->input_ended && STAILQ_EMPTY(&client->output)) || client->finishing;

    if (ended && !has_work(client)) {
        close_client(client);
    } else if (client->input_ended || client->finishing || has_input(client) ||
               !may_parse(client)) {
        main_loop_drop_source(&client->read_source);
    } else if (!client->read_source) {
        client->read_source = watch(client, G_IO_IN, on_readable);
    }
}

/* Do what can be done now. May close the client. */
static void pump(struct qmp_client *client)
{
    unsigned served = 0;

    reference(client);
    while (client->fd >= 0 && served < TURN_REQUESTS &&
           (serve_next_request(client) || parse_input(client))) {
        served++;
    }
    if (client->fd >= 0) {
        if (served == TURN_REQUESTS) {
            end_turn(client);
        }
        settle(client);
    }
    unreference(client);
}

struct qmp_client *qmp_client_new(const struct qmp_client_owner *owner, int fd)
{
    struct qmp_client *client = g_new0(struct qmp_client, 1);

    client->owner = *owner;
    client->references = 1;
    client->fd = fd;
    client->stream = json_stream_new(take_message, client);
    STAILQ_INIT(&client->output);
    g_queue_init(&client->requests);
    return client;
}

void qmp_client_start(struct qmp_client *client)
{
    reference(client);
    put(client, qmp_greeting(), false, NULL, NULL);
    pump(client);
    unreference(client);
}

bool qmp_client_negotiated(const struct qmp_client *client)
{
    return client->session.negotiated;
}

void qmp_client_send_event(struct qmp_client *client, GBytes *line)
{
    reference(client);
    if (client->event_bytes + g_bytes_get_size(line) > QMP_EVENT_LIMIT) {
        close_client(client);
    } else {
        put(client, g_bytes_ref(line), true, NULL, NULL);
    }
    unreference(client);
}

void qmp_client_finish(struct qmp_client *client)
{
    reference(client);
    client->finishing = true;
    drop_requests(client);
    main_loop_drop_source(&client->turn_source);
    flush(client);
    pump(client);
    unreference(client);
}
