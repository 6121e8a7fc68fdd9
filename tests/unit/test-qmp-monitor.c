/* SPDX-License-Identifier: BSD-3-Clause */
/* The admin channel over a real socket. */
#include "server/qmp/monitor.h"

#include <glib/gstdio.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "server/qmp/client.h"
#include "server/qmp/commands.h"
#include "tests/lib/qmp-peer.h"

/* A gate that slow commands wait at. */
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the following; a leaf */
static pthread_cond_t gate_changed = PTHREAD_COND_INITIALIZER;
static bool gate_open;
static unsigned waiting_at_gate;
static unsigned passed_gate;
static unsigned after_replies;

static json_t *handle_slow(struct qmp_request *request, json_t *arguments, GError **error)
{
    SCOPE_LOCK(&gate_lock);

    waiting_at_gate++;
    pthread_cond_broadcast(&gate_changed);
    while (!gate_open) {
        pthread_cond_wait(&gate_changed, &gate_lock);
    }
    waiting_at_gate--;
    passed_gate++;
    pthread_cond_broadcast(&gate_changed);
    return json_object();
}

static json_t *handle_echo(struct qmp_request *request, json_t *arguments, GError **error)
{
    return json_incref(arguments);
}

/* A string as long as asked for. */
static json_t *handle_long(struct qmp_request *request, json_t *arguments, GError **error)
{
    size_t size = (size_t)json_integer_value(json_object_get(arguments, "size"));
    g_autofree char *text = g_strnfill(size, 'x');

    return json_pack("{s:s}", "text", text);
}

static json_t *handle_inactive(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE, "Block job '\xff' not found");
    return NULL;
}

static void count_after_reply(void *data)
{
    SCOPE_LOCK(&gate_lock);

    g_assert_true(main_loop_is_current());
    after_replies++;
    pthread_cond_broadcast(&gate_changed);
}

static json_t *handle_after(struct qmp_request *request, json_t *arguments, GError **error)
{
    qmp_request_after_reply(request, count_after_reply, NULL);
    return json_object();
}

static void wait_for(const unsigned *counter, unsigned value)
{
    SCOPE_LOCK(&gate_lock);

    while (*counter != value) {
        pthread_cond_wait(&gate_changed, &gate_lock);
    }
}

static void set_gate(bool open)
{
    SCOPE_LOCK(&gate_lock);

    gate_open = open;
    pthread_cond_broadcast(&gate_changed);
}

static const struct qmp_member echo_members[] = {
    {.name = "n", .type = &qmp_type_int, .optional = true},
    {.name = "s", .type = &qmp_type_string, .optional = true},
    {.name = NULL},
};
static const struct qmp_type echo_type = {
    .name = "Echo", .kind = QMP_KIND_OBJECT, .members = echo_members};
static const struct qmp_member long_members[] = {
    {.name = "size", .type = &qmp_type_size},
    {.name = NULL},
};
static const struct qmp_type long_type = {
    .name = "Long", .kind = QMP_KIND_OBJECT, .members = long_members};

static const struct qmp_command test_commands[] = {
    {.name = "slow", .handler = handle_slow},
    {.name = "echo",
     .arguments = &echo_type,
     .returns = &echo_type,
     .handler = handle_echo,
     .flags = QMP_COMMAND_QUICK},
    {.name = "echo-on-thread", .arguments = &echo_type, .handler = handle_echo},
    {.name = "long", .arguments = &long_type, .handler = handle_long, .flags = QMP_COMMAND_QUICK},
    {.name = "inactive", .handler = handle_inactive},
    {.name = "after", .handler = handle_after, .flags = QMP_COMMAND_QUICK},
    {.name = NULL},
};
static const struct qmp_command *const command_tables[] = {qmp_commands_control, test_commands,
                                                           NULL};
static const struct qmp_event_type *const event_tables[] = {NULL};

struct fixture {
    char *directory;
    char *path;
    struct qmp_monitor *monitor;
};

static void set_up(struct fixture *fixture, gconstpointer data)
{
    g_autoptr(GError) error = NULL;

    set_gate(false);
    passed_gate = 0;
    after_replies = 0;
    fixture->directory = g_dir_make_tmp("liveblk-test-XXXXXX", NULL);
    fixture->path = g_build_filename(fixture->directory, "admin.sock", NULL);
    fixture->monitor = qmp_monitor_new(fixture->path, command_tables, event_tables, &error);
    g_assert_no_error(error);
    g_assert_cmpint(main_loop_start(), ==, 0);
    qmp_monitor_start(fixture->monitor);
}

static void tear_down(struct fixture *fixture, gconstpointer data)
{
    set_gate(true);
    qmp_monitor_free(fixture->monitor);
    main_loop_stop();
    g_assert_cmpint(g_rmdir(fixture->directory), ==, 0); /* the socket has gone */
    g_free(fixture->path);
    g_free(fixture->directory);
}

#define GENERIC(desc)   "\"error\": {\"class\": \"GenericError\", \"desc\": \"" desc "\"}}"
#define NOT_FOUND(desc) "\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"" desc "\"}}"
#define EXPECTING       NOT_FOUND("Expecting capabilities negotiation with 'qmp_capabilities'")

struct exchange {
    const char *request;
    const char *answer;
};

static void exchange_all(struct qmp_peer *peer, const struct exchange *exchanges, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        qmp_peer_ask(peer, exchanges[n].request, exchanges[n].answer);
    }
}

static void test_negotiation(struct fixture *fixture, gconstpointer data)
{
    static const struct exchange exchanges[] = {
        {"{\"execute\":\"query-version\"}", "{" EXPECTING},
        {"{\"execute\":\"nope\",\"id\":3}", "{\"id\": 3, " EXPECTING},
        {"{\"execute\":\"query-version\",\"arguments\":{\"x\":1}}", "{" EXPECTING},
        {"{\"execute\":1}", "{" GENERIC("QMP input member 'execute' must be a string")},
        {"{\"exec-oob\":\"query-version\"}",
         "{" GENERIC("QMP input member 'exec-oob' is unexpected")},
        {"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"bogus\"]}}",
         "{" GENERIC("Parameter 'null' does not accept value 'bogus'")},
        {"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[1]}}",
         "{" GENERIC("Invalid parameter type for 'enable[0]', expected: string")},
        {"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"x\":1}}",
         "{" GENERIC("Parameter 'x' is unexpected")},
        {"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\",\"oob\"]}}",
         "{\"return\": {}}"},
        {"{\"execute\":\"qmp_capabilities\"}",
         "{" NOT_FOUND("Capabilities negotiation is already complete, command ignored")},
        {"{\"execute\":\"echo\"}", "{\"return\": {}}"},
    };
    struct qmp_peer *peer = qmp_peer_connect(fixture->path);

    qmp_peer_expect(peer, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 0, "
                          "\"major\": 10}, \"package\": \"liveblk " LIVEBLK_VERSION
                          "\"}, \"capabilities\": [\"oob\"]}}");
    exchange_all(peer, exchanges, G_N_ELEMENTS(exchanges));
    qmp_peer_close(peer);
}

static void test_requests(struct fixture *fixture, gconstpointer data)
{
    static const struct exchange exchanges[] = {
        {"[1]", "{" GENERIC("QMP input must be a JSON object")},
        {"1 ", "{" GENERIC("QMP input must be a JSON object")},
        {"\"execute\"", "{" GENERIC("QMP input must be a JSON object")},
        {"{}", "{" GENERIC("QMP input lacks member 'execute'")},
        {"{\"id\":7}", "{\"id\": 7, " GENERIC("QMP input lacks member 'execute'")},
        {"{\"foo\":2}", "{" GENERIC("QMP input member 'foo' is unexpected")},
        {"{\"execute\":1,\"foo\":2}", "{" GENERIC("QMP input member 'execute' must be a string")},
        {"{\"execute\":18446744073709551615}",
         "{" GENERIC("QMP input member 'execute' must be a string")},
        {"{\"execute\":\"a\",\"arguments\":null}",
         "{" GENERIC("QMP input member 'arguments' must be an object")},
        {"{\"execute\":\"echo\",\"exec-oob\":\"echo\"}",
         "{" GENERIC("QMP input member 'exec-oob' is unexpected")},
        {"{\"execute\":\"nope\",\"id\":3}",
         "{\"id\": 3, " NOT_FOUND("The command nope has not been found")},
        {"{\"execute\":\"a\\u0000b\"}", "{" NOT_FOUND("The command a\\u0000b has not been found")},
        {"{\"execute\":\"echo\",\"arguments\":{\"x\":1},\"id\":3}",
         "{\"id\": 3, " GENERIC("Parameter 'x' is unexpected")},
        {"{\"execute\":\"echo\",\"arguments\":{}}", "{\"return\": {}}"},
        {"{\"execute\":\"echo\",\"arguments\":{\"n\":-5,\"s\":\"\\u20ac\"},\"id\":1}",
         "{\"return\": {\"n\": -5, \"s\": \"\\u20AC\"}, \"id\": 1}"},
        {"{\"execute\":\"echo-on-thread\",\"arguments\":{\"n\":1e3}}",
         "{" GENERIC("Invalid parameter type for 'n', expected: integer")},
        {"{\"execute\":\"inactive\",\"id\":\"x\"}",
         "{\"id\": \"x\", \"error\": {\"class\": \"DeviceNotActive\", "
         "\"desc\": \"Block job '\\uFFFD' not found\"}}"},
    };
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);

    exchange_all(peer, exchanges, G_N_ELEMENTS(exchanges));
    qmp_peer_close(peer);
}

static void test_out_of_band(struct fixture *fixture, gconstpointer data)
{
    static const struct exchange exchanges[] = {
        {"{\"exec-oob\":\"echo\",\"id\":2}",
         "{\"id\": 2, " GENERIC("The command echo does not support OOB")},
        {"{\"exec-oob\":\"nope\"}", "{" NOT_FOUND("The command nope has not been found")},
        {"{\"exec-oob\":1}", "{" GENERIC("QMP input member 'exec-oob' must be a string")},
        {"{\"execute\":\"echo\",\"exec-oob\":\"echo\"}",
         "{" GENERIC("QMP input member 'execute' clashes with 'exec-oob'")},
    };
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, true);

    qmp_peer_send_text(peer, "{\"execute\":\"slow\",\"id\":1}");
    /* Answered past the one that runs. */
    exchange_all(peer, exchanges, 3);
    set_gate(true);
    qmp_peer_expect(peer, "{\"return\": {}, \"id\": 1}");
    exchange_all(peer, exchanges + 3, 1);
    qmp_peer_close(peer);
}

static void test_ids(struct fixture *fixture, gconstpointer data)
{
    static const struct exchange ids[] = {
        {"null", "null"},
        {"1e3", "1000"},
        {"18446744073709551615", "18446744073709551615"},
        {"[1,[2,{\"a\":3}]]", "[1, [2, {\"a\": 3}]]"},
        {"{\"b\":1,\"a\":{}}", "{\"b\": 1, \"a\": {}}"},
        {"0.1", "0.10000000000000001"},
        {"'\\u0000\\ud83d\\ude00'", "\"\\u0000\\uD83D\\uDE00\""},
    };
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);
    g_autofree char *big = g_strnfill(1 << 20, 'i');
    g_autofree char *big_request = g_strdup_printf("{\"id\":\"%s\",\"execute\":\"echo\"}", big);
    g_autofree char *big_answer = g_strdup_printf("{\"return\": {}, \"id\": \"%s\"}", big);

    for (size_t n = 0; n < G_N_ELEMENTS(ids); n++) {
        g_autofree char *request =
            g_strdup_printf("{\"execute\":\"echo\",\"id\":%s}", ids[n].request);
        g_autofree char *answer = g_strdup_printf("{\"return\": {}, \"id\": %s}", ids[n].answer);

        qmp_peer_ask(peer, request, answer);
    }
    qmp_peer_ask(peer, big_request, big_answer);
    qmp_peer_close(peer);
}

static void test_malformed(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);

    qmp_peer_ask(peer, "{\"execute\":\"\xff\"}",
                 "{" GENERIC("JSON parse error, stray '\\\"\\uFFFD'"));
    qmp_peer_expect(peer, "{" GENERIC("JSON parse error, expecting value"));
    qmp_peer_ask(peer, "@#$%{\"execute\":\"echo\",\"id\":1}",
                 "{" GENERIC("JSON parse error, stray '@'"));
    qmp_peer_expect(peer, "{\"return\": {}, \"id\": 1}");
    qmp_peer_ask(peer, "{\"id\":5,\"execute\":}", "{" GENERIC("JSON parse error, expecting value"));
    qmp_peer_close(peer);
}

/* Without line ends, in one piece, quick and slow ones mixed. */
static void pipeline(struct fixture *fixture, bool out_of_band)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, out_of_band);
    g_autoptr(GString) requests = g_string_new(NULL);

    for (int n = 0; n < 30; n++) {
        g_string_append_printf(requests, "{\"execute\":\"%s\",\"arguments\":{\"n\":%d},\"id\":%d}",
                               n % 3 ? "echo" : "echo-on-thread", n, n);
    }
    qmp_peer_send(peer, requests->str, requests->len);
    for (int n = 0; n < 30; n++) {
        g_autofree char *answer = g_strdup_printf("{\"return\": {\"n\": %d}, \"id\": %d}", n, n);

        qmp_peer_expect(peer, answer);
    }
    qmp_peer_close(peer);
}

static void test_pipeline(struct fixture *fixture, gconstpointer data)
{
    pipeline(fixture, false);
    pipeline(fixture, true);
}

static void test_slow_command(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *slow = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *other = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *third;

    qmp_peer_send_text(slow, "{\"execute\":\"slow\",\"id\":1}{\"execute\":\"echo\",\"id\":2}");
    wait_for(&waiting_at_gate, 1);
    qmp_peer_send_text(other, "{\"execute\":\"slow\",\"id\":1}");
    wait_for(&waiting_at_gate, 2);
    third = qmp_peer_negotiate(fixture->path, false);
    qmp_peer_ask(third, "{\"execute\":\"echo-on-thread\"}", "{\"return\": {}}");
    qmp_peer_ask(third, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    set_gate(true);
    qmp_peer_expect(slow, "{\"return\": {}, \"id\": 1}");
    qmp_peer_expect(slow, "{\"return\": {}, \"id\": 2}");
    qmp_peer_expect(other, "{\"return\": {}, \"id\": 1}");
    qmp_peer_close(slow);
    qmp_peer_close(other);
    qmp_peer_close(third);
}

/* The server takes a bounded number of commands from a client whose first one does not end. */
static void test_backpressure(struct fixture *fixture, gconstpointer data)
{
    static const char request[] = "{\"execute\":\"echo\"}";
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *other = qmp_peer_negotiate(fixture->path, false);
    size_t sent = 0, total = 0;
    ssize_t status;

    qmp_peer_send_text(peer, "{\"execute\":\"slow\"}");
    wait_for(&waiting_at_gate, 1);
    do {
        status =
            send(peer->fd, request + sent, strlen(request) - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (status > 0) {
            sent = (sent + (size_t)status) % strlen(request);
            total += sent ? 0 : 1;
        }
        /* A round through the server: it had every chance to read on. */
        if (status < 0 || total % 256 == 0) {
            qmp_peer_ask(other, "{\"execute\":\"echo\"}", "{\"return\": {}}");
        }
    } while (status > 0 && total < 100000);
    g_assert_cmpuint(total, <, 100000);
    set_gate(true);
    for (size_t n = 0; n < total + 1; n++) {
        qmp_peer_expect(peer, "{\"return\": {}}");
    }
    qmp_peer_close(peer);
    qmp_peer_close(other);
}

/* Replies wait for their reader, and only for as long as he likes. */
static void test_unread_replies(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *lazy = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *other = qmp_peer_negotiate(fixture->path, false);
    size_t lengths = 0;

    for (int n = 0; n < 40; n++) {
        qmp_peer_send_text(lazy, "{\"execute\":\"long\",\"arguments\":{\"size\":1000000}}");
    }
    for (int n = 0; n < 100; n++) {
        qmp_peer_ask(other, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    }
    for (int n = 0; n < 40; n++) {
        g_autofree char *line = qmp_peer_line(lazy);

        lengths += strlen(line);
    }
    g_assert_cmpuint(lengths, ==, 40 * (1000000 + strlen("{\"return\": {\"text\": \"\"}}")));
    qmp_peer_close(lazy);
    qmp_peer_close(other);
}

/* The event's name and data, as text; checks the rest of its shape. */
static char *event_text(struct qmp_peer *peer)
{
    json_t *event = qmp_peer_json(peer);
    json_t *timestamp = json_object_get(event, "timestamp");
    json_t *data = json_object_get(event, "data");
    g_autofree char *data_text =
        data ? json_dumps(data, JSON_COMPACT | JSON_ENSURE_ASCII) : g_strdup("-");
    char *text;

    g_assert_true(json_is_integer(json_object_get(timestamp, "seconds")));
    g_assert_cmpint(json_integer_value(json_object_get(timestamp, "microseconds")), <, 1000000);
    g_assert_cmpuint(json_object_size(event), ==, data ? 3 : 2);
    text = g_strdup_printf("%s %s", json_string_value(json_object_get(event, "event")), data_text);
    json_decref(event);
    return text;
}

static void expect_event(struct qmp_peer *peer, const char *text)
{
    g_autofree char *received = event_text(peer);

    g_assert_cmpstr(received, ==, text);
}

static void test_events(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *first = qmp_peer_negotiate(fixture->path, false);
    struct qmp_peer *second = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *silent = qmp_peer_connect(fixture->path);
    g_autofree char *greeting = qmp_peer_line(silent);

    g_assert_nonnull(greeting);
    event_emit("STOP");
    event_emit("JOB", EVENT_STRING("id", "j\xff"), EVENT_INT("n", -7), EVENT_BOOL("b", true),
               EVENT_STRING("none", NULL));
    for (int n = 0; n < 2; n++) {
        expect_event(n ? first : second, "STOP -");
        expect_event(n ? first : second, "JOB {\"id\":\"j\\uFFFD\",\"n\":-7,\"b\":true}");
    }
    qmp_peer_ask(silent, "{\"execute\":\"qmp_capabilities\"}", "{\"return\": {}}");
    event_emit("RESUME");
    expect_event(silent, "RESUME -");
    expect_event(first, "RESUME -");
    qmp_peer_close(first);
    qmp_peer_close(second);
    qmp_peer_close(silent);
}

static void io_error(const char *path, const char *action, int n)
{
    event_emit("BLOCK_IO_ERROR", EVENT_STRING("qom-path", path), EVENT_STRING("action", action),
               EVENT_INT("n", n));
}

static void test_event_limit(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);

    for (int n = 1; n <= 5; n++) {
        io_error("a", "report", n);
    }
    io_error("b", "report", 1);
    io_error("a", "stop", 6);
    io_error("a", "stop", 7);
    event_emit("OTHER", EVENT_INT("n", 1));
    event_emit("OTHER", EVENT_INT("n", 2));
    expect_event(peer, "BLOCK_IO_ERROR {\"qom-path\":\"a\",\"action\":\"report\",\"n\":1}");
    expect_event(peer, "BLOCK_IO_ERROR {\"qom-path\":\"b\",\"action\":\"report\",\"n\":1}");
    expect_event(peer, "BLOCK_IO_ERROR {\"qom-path\":\"a\",\"action\":\"stop\",\"n\":6}");
    expect_event(peer, "BLOCK_IO_ERROR {\"qom-path\":\"a\",\"action\":\"stop\",\"n\":7}");
    expect_event(peer, "OTHER {\"n\":1}");
    expect_event(peer, "OTHER {\"n\":2}");
    /* The last of those held back, once the second is over. */
    expect_event(peer, "BLOCK_IO_ERROR {\"qom-path\":\"a\",\"action\":\"report\",\"n\":5}");
    qmp_peer_close(peer);
}

static void quorum_event(const char *name, const char *key, const char *node, int n)
{
    event_emit(name, EVENT_STRING(key, node), EVENT_INT("n", n));
}

/* Of children and of quorums, each by itself. */
static void test_quorum_limit(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);

    for (int n = 1; n <= 3; n++) {
        quorum_event("QUORUM_REPORT_BAD", "node-name", "a", n);
        quorum_event("QUORUM_REPORT_BAD", "node-name", "b", n);
        quorum_event("QUORUM_FAILURE", "reference", "a", n);
    }
    expect_event(peer, "QUORUM_REPORT_BAD {\"node-name\":\"a\",\"n\":1}");
    expect_event(peer, "QUORUM_REPORT_BAD {\"node-name\":\"b\",\"n\":1}");
    expect_event(peer, "QUORUM_FAILURE {\"reference\":\"a\",\"n\":1}");
    expect_event(peer, "QUORUM_REPORT_BAD {\"node-name\":\"a\",\"n\":3}");
    expect_event(peer, "QUORUM_REPORT_BAD {\"node-name\":\"b\",\"n\":3}");
    expect_event(peer, "QUORUM_FAILURE {\"reference\":\"a\",\"n\":3}");
    qmp_peer_close(peer);
}

/* A client that does not read its events is dropped; the others get all of them. */
static void test_event_flood(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *deaf = qmp_peer_negotiate(fixture->path, false);
    struct qmp_peer *other = qmp_peer_negotiate(fixture->path, false);
    g_autofree char *text = g_strnfill(100000, 'e');
    unsigned count = QMP_EVENT_LIMIT / 100000 + 20, received = 0;

    for (unsigned n = 0; n < count; n++) {
        json_t *event;

        event_emit("FLOOD", EVENT_STRING("text", text), EVENT_INT("n", n));
        event = qmp_peer_json(other);
        g_assert_cmpint(json_integer_value(json_object_get(json_object_get(event, "data"), "n")),
                        ==, n);
        json_decref(event);
    }
    /* What had reached its socket, perhaps cut off, and then the end. */
    for (;;) {
        char buffer[65536];
        ssize_t size = recv(deaf->fd, buffer, sizeof(buffer), 0);

        if (size <= 0) {
            break;
        }
        received += (unsigned)size;
    }
    g_assert_cmpuint(received, <, QMP_EVENT_LIMIT);
    qmp_peer_ask(other, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    qmp_peer_close(deaf);
    qmp_peer_close(other);
}

static void test_disconnect(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *other = qmp_peer_negotiate(fixture->path, true);

    qmp_peer_send_text(peer, "{\"execute\":\"slow\"}{\"execute\":\"after\"}{\"exec");
    wait_for(&waiting_at_gate, 1);
    qmp_peer_close(peer);
    qmp_peer_ask(other, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    event_emit("STOP");
    expect_event(other, "STOP -");
    set_gate(true);
    wait_for(&passed_gate, 1);
    qmp_peer_ask(other, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    qmp_peer_close(other);
    /* The next client starts afresh. */
    peer = qmp_peer_negotiate(fixture->path, false);
    qmp_peer_close(peer);
}

/* A client that only has no more to say still gets all its answers. */
static void test_half_close(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, true);

    qmp_peer_send_text(peer, "{\"execute\":\"slow\",\"id\":1}{\"execute\":\"echo\",\"id\":2}");
    g_assert_cmpint(shutdown(peer->fd, SHUT_WR), ==, 0);
    wait_for(&waiting_at_gate, 1);
    set_gate(true);
    qmp_peer_expect(peer, "{\"return\": {}, \"id\": 1}");
    qmp_peer_expect(peer, "{\"return\": {}, \"id\": 2}");
    qmp_peer_expect_end(peer);
    qmp_peer_close(peer);
}

static void test_after_reply(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);

    qmp_peer_ask(peer, "{\"execute\":\"after\"}", "{\"return\": {}}");
    wait_for(&after_replies, 1);
    qmp_peer_close(peer);
}

static void *open_gate(void *data)
{
    struct qmp_peer *idle = data;

    /* The monitor has begun to end: idle clients are closed at once. */
    qmp_peer_expect_end(idle);
    set_gate(true);
    return NULL;
}

static void test_free(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *busy = qmp_peer_negotiate(fixture->path, true);
    struct qmp_peer *idle = qmp_peer_negotiate(fixture->path, true);
    pthread_t thread;

    qmp_peer_send_text(busy, "{\"execute\":\"slow\",\"id\":1}");
    wait_for(&waiting_at_gate, 1);
    qmp_peer_send_text(busy, "{\"execute\":\"slow\",\"id\":2}");
    g_assert_cmpint(pthread_create(&thread, NULL, open_gate, idle), ==, 0);
    qmp_monitor_free(g_steal_pointer(&fixture->monitor));
    pthread_join(thread, NULL);
    qmp_peer_expect(busy, "{\"return\": {}, \"id\": 1}");
    qmp_peer_expect_end(busy);
    g_assert_cmpuint(passed_gate, ==, 1);
    g_assert_false(g_file_test(fixture->path, G_FILE_TEST_EXISTS));
    qmp_peer_close(busy);
    qmp_peer_close(idle);
}

/* More clients than are served at once: those beyond wait for a place. */
static void test_many_clients(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peers[140];

    for (size_t n = 0; n < G_N_ELEMENTS(peers); n++) {
        peers[n] = qmp_peer_connect(fixture->path);
    }
    for (size_t n = 0; n < G_N_ELEMENTS(peers); n++) {
        g_autofree char *greeting = qmp_peer_line(peers[n]);

        g_assert_nonnull(greeting);
        qmp_peer_ask(peers[n], "{\"execute\":\"qmp_capabilities\"}", "{\"return\": {}}");
        qmp_peer_close(peers[n]);
    }
}

static void test_control(struct fixture *fixture, gconstpointer data)
{
    struct qmp_peer *peer = qmp_peer_negotiate(fixture->path, false);
    json_t *answer;

    qmp_peer_ask(peer, "{\"execute\":\"query-version\"}",
                 "{\"return\": {\"qemu\": {\"micro\": 0, \"minor\": 0, \"major\": 10}, "
                 "\"package\": \"liveblk " LIVEBLK_VERSION "\"}}");
    qmp_peer_send_text(peer, "{\"execute\":\"query-commands\"}");
    answer = qmp_peer_json(peer);
    g_assert_cmpuint(json_array_size(json_object_get(answer, "return")), ==, 10);
    json_decref(answer);
    qmp_peer_send_text(peer, "{\"execute\":\"query-qmp-schema\"}");
    answer = qmp_peer_json(peer);
    g_assert_cmpuint(json_array_size(json_object_get(answer, "return")), >, 20);
    json_decref(answer);
    qmp_peer_close(peer);
}

static void test_handed_over(struct fixture *fixture, gconstpointer data)
{
    struct qmp_monitor *monitor = qmp_monitor_new_on(NULL, command_tables, event_tables);
    struct qmp_peer peer = {.received = g_string_new(NULL)};
    int ends[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), ==, 0);
    peer.fd = ends[0];
    g_assert_cmpint(qmp_monitor_listener_fd(monitor), ==, -1);
    qmp_monitor_start(monitor);
    qmp_monitor_serve(monitor, ends[1]);
    g_autofree char *greeting = qmp_peer_line(&peer);
    g_assert_true(g_str_has_prefix(greeting, "{\"QMP\": "));
    qmp_peer_ask(&peer, "{\"execute\":\"qmp_capabilities\"}", "{\"return\": {}}");
    qmp_peer_ask(&peer, "{\"execute\":\"echo\"}", "{\"return\": {}}");
    qmp_monitor_free(monitor);
    qmp_peer_expect_end(&peer);
    close(peer.fd);
    g_string_free(peer.received, TRUE);
}

#define ADD(name, function)                                                                        \
    g_test_add("/qmp-monitor/" name, struct fixture, NULL, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    main_loop_init();
    ADD("negotiation-comes-first", test_negotiation);
    ADD("bad-requests-are-told-why", test_requests);
    ADD("out-of-band-is-refused-at-once", test_out_of_band);
    ADD("ids-are-echoed", test_ids);
    ADD("malformed-json-is-survived", test_malformed);
    ADD("pipelined-commands-are-answered-in-order", test_pipeline);
    ADD("a-slow-command-delays-nobody-else", test_slow_command);
    ADD("a-client-that-sends-too-much-is-not-read", test_backpressure);
    ADD("a-client-that-does-not-read-stalls-nobody", test_unread_replies);
    ADD("events-go-to-those-who-negotiated", test_events);
    ADD("block-io-error-events-are-limited", test_event_limit);
    ADD("events-of-quorums-are-limited", test_quorum_limit);
    ADD("a-client-deaf-to-events-is-dropped", test_event_flood);
    ADD("a-command-outlives-its-client", test_disconnect);
    ADD("a-client-may-stop-sending-and-read-on", test_half_close);
    ADD("a-function-runs-after-the-reply", test_after_reply);
    ADD("free-waits-for-commands-and-sends-their-replies", test_free);
    ADD("many-clients-are-all-served", test_many_clients);
    ADD("a-client-that-is-handed-over-is-served", test_handed_over);
    ADD("control-commands", test_control);
    return g_test_run();
}
