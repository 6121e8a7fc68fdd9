/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Everything that arrives goes through take_message, which sorts it into events and answers;
 * whoever waits, waits for its answer to turn up there. So events are never lost to a call in
 * progress, and answers never to somebody who looks for events.
 */
#include "cli/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "cli/command.h"

#define CONNECT_TIMEOUT_MS   10000
#define INTERRUPTED_LIMIT_MS 5000
/* A server that sends no line end must not eat our memory. */
#define LONGEST_MESSAGE (64 << 20)

struct client {
    int fd;
    int interrupt_fd;
    int last_ticket;
    GString *input;
    size_t scanned; /* bytes of input known to hold no line end */
    json_t *greeting;
    json_t *replies; /* array of messages with an id of ours */
    json_t *events;  /* array */
    char *lost;      /* why the connection is of no more use; NULL: it is fine */
};

static void set_lost(struct client *client, GError **error, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
static void set_lost(struct client *client, GError **error, const char *format, ...)
{
    va_list arguments;

    if (!client->lost) {
        va_start(arguments, format);
        client->lost = g_strdup_vprintf(format, arguments);
        va_end(arguments);
    }
    g_set_error_literal(error, CLI_ERROR, EXIT_UNREACHABLE, client->lost);
}

/* An array, or an end of the program: there is nothing to go on with without memory. */
static json_t *new_array(void)
{
    json_t *array = json_array();

    if (!array) {
        g_error("Out of memory");
    }
    return array;
}

static json_t *parse_line(const char *text, size_t length)
{
    json_error_t problem;
    json_t *value = json_loadb(text, length, JSON_ALLOW_NUL, &problem);

    /* QMP has integers up to 2^64-1, jansson none above 2^63-1. */
    if (!value && json_error_code(&problem) == json_error_numeric_overflow) {
        value = json_loadb(text, length, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &problem);
    }
    return value;
}

static bool take_message(struct client *client, const char *text, size_t length, GError **error)
{
    json_t *message = parse_line(text, length);

    if (json_is_object(message) && json_object_get(message, "QMP") && !client->greeting) {
        client->greeting = message;
    } else if (json_is_object(message) && json_is_string(json_object_get(message, "event"))) {
        json_array_append_new(client->events, message);
    } else if (json_is_object(message) && (json_object_get(message, "return") ||
                                           json_is_object(json_object_get(message, "error")))) {
        json_array_append_new(client->replies, message);
    } else {
        json_decref(message);
        g_autofree char *start = g_strndup(text, MIN(length, 60));
        g_autofree char *shown = g_strescape(start, NULL);
        set_lost(client, error, "The server sent something that is not QMP: \"%s%s\"", shown,
                 length > 60 ? "..." : "");
        return false;
    }
    return true;
}

/* Hand every whole line of the input on. */
static bool take_lines(struct client *client, GError **error)
{
    char *end;

    while ((end = memchr(client->input->str + client->scanned, '\n',
                         client->input->len - client->scanned))) {
        size_t length = end - client->input->str;
        bool blank = strspn(client->input->str, " \t\r\n") > length;

        if (!blank && !take_message(client, client->input->str, length, error)) {
            return false;
        }
        g_string_erase(client->input, 0, length + 1);
        client->scanned = 0;
    }
    client->scanned = client->input->len;
    if (client->input->len > LONGEST_MESSAGE) {
        set_lost(client, error, "The server sent a message of more than %d MiB",
                 LONGEST_MESSAGE >> 20);
        return false;
    }
    return true;
}

bool client_receive(struct client *client, GError **error)
{
    char buffer[65536];

    if (client->lost) {
        set_lost(client, error, "%s", client->lost);
        return false;
    }
    ssize_t got = recv(client->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
    }
    if (got < 0) {
        set_lost(client, error, "The connection to the server was lost: %s", g_strerror(errno));
        return false;
    }
    if (got == 0) {
        set_lost(client, error, "The server closed the connection%s",
                 client->greeting ? "" : " before it said what it is");
        return false;
    }
    g_string_append_len(client->input, buffer, got);
    return take_lines(client, error);
}

/*
 * Wait until the socket is ready for something or the deadline (CLOCK_MONOTONIC, ns) has passed.
 * An interruption brings the deadline nearer, once. False: the deadline has passed.
 */
static bool wait_for_socket(struct client *client, short events, int64_t *deadline_ns,
                            bool *interrupted)
{
    struct pollfd fds[2] = {
        {.fd = client->fd, .events = events},
        {.fd = *interrupted ? -1 : client->interrupt_fd, .events = POLLIN},
    };
    int timeout_ms = -1;

    if (*deadline_ns != INT64_MAX) {
        int64_t left_ns = *deadline_ns - clock_now_ns();
        if (left_ns <= 0) {
            return false;
        }
        timeout_ms = (int)(left_ns / NS_PER_MS) + 1;
    }
    if (poll(fds, 2, timeout_ms) > 0 && fds[1].revents) {
        *interrupted = true;
        *deadline_ns = MIN(*deadline_ns, clock_now_ns() + INTERRUPTED_LIMIT_MS * NS_PER_MS);
    }
    return true;
}

static bool send_all(struct client *client, const char *text, size_t length, GError **error)
{
    int64_t deadline_ns = clock_now_ns() + CLIENT_QUERY_TIMEOUT_MS * NS_PER_MS;
    bool interrupted = false;

    while (length) {
        ssize_t sent = send(client->fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            text += sent;
            length -= sent;
        } else if (errno != EAGAIN && errno != EINTR) {
            set_lost(client, error, "The connection to the server was lost: %s", g_strerror(errno));
            return false;
        } else if (!wait_for_socket(client, POLLOUT, &deadline_ns, &interrupted)) {
            set_lost(client, error, "The server does not read what it is sent");
            return false;
        }
    }
    return true;
}

static bool send_message(struct client *client, json_t *message, GError **error)
{
    if (client->lost) {
        set_lost(client, error, "%s", client->lost);
        return false;
    }
    char *text = json_dumps(message, JSON_COMPACT);
    if (!text) {
        g_set_error_literal(error, CLI_ERROR, EXIT_USAGE, "The message is not valid UTF-8");
        return false;
    }
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    return send_all(client, line, strlen(line), error);
}

json_t *client_take_reply(struct client *client, int ticket)
{
    json_t *reply;
    size_t i;

    json_array_foreach (client->replies, i, reply) {
        if (json_integer_value(json_object_get(reply, "id")) == ticket) {
            json_incref(reply);
            json_array_remove(client->replies, i);
            return reply;
        }
    }
    /* An answer nobody asked for (its id is lost after a parse error) must not pile up. */
    if (json_array_size(client->replies) > 64) {
        json_array_remove(client->replies, 0);
    }
    return NULL;
}

json_t *client_take_event(struct client *client)
{
    json_t *event = json_incref(json_array_get(client->events, 0));

    if (event) {
        json_array_remove(client->events, 0);
    }
    return event;
}

/* timeout_ms < 0: no limit. What was asked is for the message only. */
static json_t *wait_for_reply(struct client *client, int ticket, const char *asked, int timeout_ms,
                              GError **error)
{
    int64_t deadline_ns = timeout_ms < 0 ? INT64_MAX : clock_now_ns() + timeout_ms * NS_PER_MS;
    bool interrupted = false;
    json_t *reply;

    while (!(reply = client_take_reply(client, ticket))) {
        if (!wait_for_socket(client, POLLIN, &deadline_ns, &interrupted)) {
            set_lost(client, error,
                     "The server did not answer '%s' in time; it may still carry it out", asked);
            return NULL;
        }
        if (!client_receive(client, error)) {
            return NULL;
        }
    }
    return reply;
}

bool client_post(struct client *client, const char *command, json_t *arguments, int *ticket,
                 GError **error)
{
    json_t *message = json_pack("{s:s, s:i}", "execute", command, "id", client->last_ticket + 1);

    if (arguments) {
        json_object_set_new(message, "arguments", arguments);
    }
    *ticket = ++client->last_ticket;
    bool sent = send_message(client, message, error);
    json_decref(message);
    return sent;
}

const char *reply_error(const json_t *reply)
{
    const json_t *problem = json_object_get(reply, "error");
    const char *text = json_string_value(json_object_get(problem, "desc"));

    return !problem ? NULL : text ? text : "an error without a description";
}

static json_t *call_raw(struct client *client, const char *command, json_t *arguments,
                        int timeout_ms, GError **error)
{
    int ticket;

    if (!client_post(client, command, arguments, &ticket, error)) {
        return NULL;
    }
    return wait_for_reply(client, ticket, command, timeout_ms, error);
}

/* What an answer returned, or its error. Takes the reference. */
static json_t *unwrap(json_t *reply, const char *command, GError **error)
{
    json_t *result = NULL;

    if (!reply) {
        return NULL;
    }
    if (reply_error(reply)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server refused '%s': %s", command,
                    reply_error(reply));
    } else {
        result = json_incref(json_object_get(reply, "return"));
    }
    json_decref(reply);
    return result;
}

json_t *client_call(struct client *client, const char *command, json_t *arguments, int timeout_ms,
                    GError **error)
{
    return unwrap(call_raw(client, command, arguments, timeout_ms, error), command, error);
}

json_t *client_call_if_known(struct client *client, const char *command, GError **error)
{
    json_t *reply = call_raw(client, command, NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    const char *class_name =
        json_string_value(json_object_get(json_object_get(reply, "error"), "class"));

    if (class_name && !strcmp(class_name, "CommandNotFound")) {
        json_decref(reply);
        return NULL;
    }
    return unwrap(reply, command, error);
}

json_t *client_exchange(struct client *client, json_t *message, GError **error)
{
    int ticket = ++client->last_ticket;
    json_t *own_id = json_incref(json_object_get(message, "id"));
    json_t *copy = json_copy(message);
    json_t *reply = NULL;

    json_object_set_new(copy, "id", json_integer(ticket));
    if (send_message(client, copy, error)) {
        reply = wait_for_reply(client, ticket, "the message", -1, error);
    }
    json_decref(copy);
    if (reply) {
        json_object_del(reply, "id");
        if (own_id) {
            json_object_set(reply, "id", own_id);
        }
    }
    json_decref(own_id);
    return reply;
}

void client_set_interrupt_fd(struct client *client, int fd)
{
    client->interrupt_fd = fd;
}

int client_fd(const struct client *client)
{
    return client->fd;
}

void client_free(struct client *client)
{
    if (!client) {
        return;
    }
    if (client->fd >= 0) {
        close(client->fd);
    }
    g_string_free(client->input, TRUE);
    json_decref(client->greeting);
    json_decref(client->replies);
    json_decref(client->events);
    g_free(client->lost);
    g_free(client);
}

static int open_socket(const char *path, GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (strlen(path) >= sizeof(address.sun_path)) {
        g_set_error(error, CLI_ERROR, EXIT_UNREACHABLE,
                    "The socket's path '%s' is longer than the %zu bytes a socket can have", path,
                    sizeof(address.sun_path) - 1);
        return -1;
    }
    strcpy(address.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        const char *hint =
            errno == ECONNREFUSED ? " (its server has ended; start one with 'liveblk serve')"
            : errno == EAGAIN     ? " (too many clients are waiting for it)"
                                  : "; name another with --admin SOCKET or LIVEBLK_ADMIN";
        g_set_error(error, CLI_ERROR, EXIT_UNREACHABLE, "Could not connect to '%s': %s%s", path,
                    g_strerror(errno), hint);
        return -1;
    }
    return steal_fd(&fd);
}

static bool await_greeting(struct client *client, const char *path, GError **error)
{
    int64_t deadline_ns = clock_now_ns() + CONNECT_TIMEOUT_MS * NS_PER_MS;
    bool interrupted = false;

    while (!client->greeting) {
        if (!wait_for_socket(client, POLLIN, &deadline_ns, &interrupted)) {
            set_lost(client, error,
                     "Nobody answers on '%s'; its server may be stuck, or serve another client",
                     path);
            return false;
        }
        if (!client_receive(client, error)) {
            return false;
        }
    }
    return true;
}

struct client *client_connect(const char *path, GError **error)
{
    int fd = open_socket(path, error);

    if (fd < 0) {
        return NULL;
    }
    struct client *client = g_new0(struct client, 1);
    client->fd = fd;
    client->interrupt_fd = -1;
    client->input = g_string_new(NULL);
    client->replies = new_array();
    client->events = new_array();

    json_t *done = NULL;
    if (await_greeting(client, path, error)) {
        done = client_call(client, "qmp_capabilities", NULL, CONNECT_TIMEOUT_MS, error);
    }
    if (!done) {
        client_free(client);
        return NULL;
    }
    json_decref(done);
    return client;
}
