/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/qmp-peer.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/unix-socket.h"

#define TIMEOUT_MS 30000

struct qmp_peer *qmp_peer_connect(const char *path)
{
    g_autoptr(GError) error = NULL;
    struct qmp_peer *peer = g_new0(struct qmp_peer, 1);

    peer->fd = unix_socket_connect(path, &error);
    g_assert_no_error(error);
    peer->received = g_string_new(NULL);
    return peer;
}

struct qmp_peer *qmp_peer_negotiate(const char *path, bool out_of_band)
{
    struct qmp_peer *peer = qmp_peer_connect(path);
    g_autofree char *greeting = qmp_peer_line(peer);

    g_assert_true(g_str_has_prefix(greeting, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": "));
    g_assert_true(g_str_has_suffix(greeting, "}, \"capabilities\": [\"oob\"]}}"));
    qmp_peer_ask(peer,
                 out_of_band
                     ? "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}"
                     : "{\"execute\":\"qmp_capabilities\"}",
                 "{\"return\": {}}");
    return peer;
}

void qmp_peer_close(struct qmp_peer *peer)
{
    close(peer->fd);
    g_string_free(peer->received, TRUE);
    g_free(peer);
}

void qmp_peer_send(struct qmp_peer *peer, const char *bytes, size_t length)
{
    while (length) {
        ssize_t sent = send(peer->fd, bytes, length, MSG_NOSIGNAL);

        g_assert_cmpint(sent, >, 0);
        bytes += sent;
        length -= (size_t)sent;
    }
}

void qmp_peer_send_text(struct qmp_peer *peer, const char *text)
{
    qmp_peer_send(peer, text, strlen(text));
}

/* Returns false at the end of file. */
static bool receive_more(struct qmp_peer *peer)
{
    struct pollfd readable = {.fd = peer->fd, .events = POLLIN};
    char buffer[65536];
    ssize_t received;

    g_assert_cmpint(poll(&readable, 1, TIMEOUT_MS), ==, 1);
    received = recv(peer->fd, buffer, sizeof(buffer), 0);
    if (received < 0) {
        g_assert_cmpint(errno, ==, ECONNRESET);
        return false;
    }
    g_string_append_len(peer->received, buffer, received);
    return received > 0;
}

char *qmp_peer_line(struct qmp_peer *peer)
{
    size_t searched = 0;
    char *end, *line;

    while (!(end = memchr(peer->received->str + searched, '\n', peer->received->len - searched))) {
        searched = peer->received->len;
        if (!receive_more(peer)) {
            g_assert_cmpuint(peer->received->len, ==, 0);
            return NULL;
        }
    }
    g_assert_true(end > peer->received->str && end[-1] == '\r');
    line = g_strndup(peer->received->str, (size_t)(end - 1 - peer->received->str));
    g_string_erase(peer->received, 0, end + 1 - peer->received->str);
    return line;
}

void qmp_peer_expect(struct qmp_peer *peer, const char *line)
{
    g_autofree char *received = qmp_peer_line(peer);

    g_assert_cmpstr(received, ==, line);
}

void qmp_peer_expect_end(struct qmp_peer *peer)
{
    qmp_peer_expect(peer, NULL);
}

json_t *qmp_peer_json(struct qmp_peer *peer)
{
    g_autofree char *line = qmp_peer_line(peer);
    json_t *value;

    g_assert_nonnull(line);
    value = json_loads(line, JSON_DECODE_ANY, NULL);
    g_assert_nonnull(value);
    return value;
}

void qmp_peer_ask(struct qmp_peer *peer, const char *request, const char *answer)
{
    qmp_peer_send_text(peer, request);
    qmp_peer_expect(peer, answer);
}
