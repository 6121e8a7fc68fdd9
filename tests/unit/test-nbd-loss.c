/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbd driver with servers that go, come back and talk nonsense, and what that does to data. */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "formats/nbd.h"
#include "tests/lib/nbd-fixture.h"

/* Servers that go or talk nonsense. */

static bool hang_up_once(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    connection->server->hook = NULL;
    fake_nbd_hang_up(connection);
    return true;
}

static void test_hang_up(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hang_up_once);
    struct block_node *node = nbd_fixture_open(server, 0);
    uint8_t byte;

    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ENOTCONN);
    nbd_fixture_wait(node);
    nbd_fixture_finish(node, server);
}

static void test_hang_up_with_delay(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hang_up_once);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 5, 0), ==, 0);
    nbd_fixture_expect(node, 0, 5);
    /* The write was never answered before the loss: nothing is in doubt. */
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->accepted, ==, 2);
    nbd_fixture_finish(node, server);
}

static bool hang_up_always(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    fake_nbd_hang_up(connection);
    return true;
}

static void test_deadly_request(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hang_up_always);
    struct block_node *node = nbd_fixture_open(server, 1);
    uint8_t byte;

    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ENOTCONN);
    g_assert_cmpuint(server->accepted, <, 30);
    nbd_fixture_finish(node, server);
}

static void test_restart_while_idle(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 0);

    nbd_fixture_expect(node, 0, 0);
    fake_nbd_server_stop(server);
    fake_nbd_server_start(server);
    /* Even without reconnect-delay. */
    nbd_fixture_expect(node, 0, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_fixture_finish(node, server);
}

static void test_gone_for_good(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 1);
    uint8_t byte;

    fake_nbd_server_stop(server);
    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ENOTCONN);
    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, -ENOTCONN);
    fake_nbd_server_start(server);
    nbd_fixture_wait(node);
    nbd_fixture_finish(node, server);
}

static bool shut_down_once(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    connection->server->hook = NULL;
    fake_nbd_reply_simple(connection, request->cookie, ESHUTDOWN);
    return true;
}

static void test_shut_down(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(shut_down_once);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 3, 0), ==, 0);
    nbd_fixture_expect(node, 0, 3);
    g_assert_cmpuint(server->accepted, ==, 2);
    nbd_fixture_finish(node, server);
}

static bool send_rubbish(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    uint8_t rubbish[64];

    memset(rubbish, 0xa5, sizeof(rubbish));
    fake_nbd_send(connection, rubbish, sizeof(rubbish));
    return true;
}

static bool answer_another(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    fake_nbd_reply_simple(connection, request->cookie + 12345, 0);
    return true;
}

static bool answer_too_much(struct fake_nbd_connection *connection,
                            struct fake_nbd_request *request)
{
    static uint8_t payload[8 + 2 * NBD_FIXTURE_BLOCK];

    fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, sizeof(payload));
    return true;
}

static bool answer_elsewhere(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    static uint8_t payload[8 + NBD_FIXTURE_BLOCK];

    memset(payload, 0x7f, 8);
    fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, sizeof(payload));
    return true;
}

static bool answer_half(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    uint8_t payload[8 + NBD_FIXTURE_BLOCK / 2] = {0};

    fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, sizeof(payload));
    return true;
}

static bool answer_nothing(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    fake_nbd_reply_chunk(connection, request->cookie, 1, 0, NULL, 0);
    return true;
}

static void test_nonsense(const void *data)
{
    fake_nbd_hook *const *hook = data;
    struct fake_nbd_server *server = nbd_fixture_start(*hook);
    struct block_node *node = nbd_fixture_open(server, 0);
    uint8_t byte;

    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), <, 0);
    server->hook = NULL;
    nbd_fixture_wait(node);
    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    nbd_fixture_expect(node, 0, 1);
    nbd_fixture_finish(node, server);
}

static bool hold_back(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    return true;
}

static void test_request_timeout(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hold_back);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;
    uint8_t byte;

    options.request_timeout = 1;
    node = nbd_test_open(options, true, NULL);
    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ETIMEDOUT);
    server->hook = NULL;
    nbd_fixture_wait(node);
    nbd_fixture_finish(node, server);
}

static struct block_node *node_to_cancel;

/* The request is in flight now: cancel it from another thread, as a job's coordinator does. */
static bool hold_back_and_cancel(struct fake_nbd_connection *connection,
                                 struct fake_nbd_request *request)
{
    nbd_driver.cancel_in_flight(node_to_cancel);
    return true;
}

static void test_cancel(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hold_back_and_cancel);
    uint8_t byte;

    node_to_cancel = nbd_fixture_open(server, 3600);
    g_assert_cmpint(nbd_fixture_read(node_to_cancel, 0, &byte), ==, -ECANCELED);
    server->hook = NULL;
    nbd_fixture_wait(node_to_cancel);
    g_assert_cmpint(nbd_fixture_write(node_to_cancel, 0, 1, 0), ==, 0);
    nbd_fixture_expect(node_to_cancel, 0, 1);
    nbd_fixture_finish(node_to_cancel, server);
}

static bool refuse_everything(struct fake_nbd_connection *connection,
                              struct fake_nbd_request *request)
{
    fake_nbd_reply_simple(connection, request->cookie, ENOSPC);
    return true;
}

static void test_server_error(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(refuse_everything);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, -ENOSPC);
    g_assert_cmpint(nbd_test_flush(node), ==, -ENOSPC);
    server->hook = NULL;
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->accepted, ==, 1);
    nbd_fixture_finish(node, server);
}

/* A reconnect must find the same export. */
static void test_shrunk(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 1);
    uint8_t byte;

    fake_nbd_server_stop(server);
    server->size = NBD_FIXTURE_BYTES / 2;
    fake_nbd_server_start(server);
    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ESTALE);
    server->size = NBD_FIXTURE_BYTES * 2;
    nbd_fixture_wait(node);
    g_assert_cmpint(nbd_driver.get_length(node), ==, NBD_FIXTURE_BYTES);
    nbd_fixture_finish(node, server);
}

/* Closing while the thread tries to connect to a server that accepts and stays silent. */
static void test_close_while_connecting(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 0);
    unsigned before = server->accepted;
    uint8_t byte;

    fake_nbd_server_stop(server);
    server->silent = true;
    fake_nbd_server_start(server);
    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, -ENOTCONN);
    while (server->accepted == before) {
        g_usleep(1000);
    }
    nbd_fixture_finish(node, server);
}

/* Lost writes. */

static void restart(struct block_node *node, struct fake_nbd_server *server)
{
    fake_nbd_server_stop(server);
    fake_nbd_server_start(server);
    nbd_fixture_wait(node);
}

static void test_lost_writes(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    restart(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    /* No second try and no later write makes it good. */
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_fixture_write(node, 0, 2, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_fixture_write(node, 0, 3, BLOCK_REQUEST_FUA), ==, 0);
    nbd_fixture_expect(node, 0, 3);
    nbd_test_close(node);
    node = nbd_fixture_open(server, 0);
    g_assert_cmpint(nbd_fixture_write(node, 0, 2, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_fixture_finish(node, server);
}

static void test_nothing_lost(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_fixture_expect(node, 0, 1);
    g_assert_cmpint(nbd_fixture_write(node, 0, 2, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(nbd_driver.discard(node, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK), ==, 0);
    restart(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_fixture_finish(node, server);
}

static bool hang_up_at_flush(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    return request->command == FAKE_NBD_FLUSH && hang_up_once(connection, request);
}

static void test_lost_in_flush(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(hang_up_at_flush);
    struct block_node *node = nbd_fixture_open(server, 60);

    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    /* Sent again to the next server, the flush succeeds there, and says nothing of the write. */
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    nbd_fixture_finish(node, server);
}

/* Two connections, and a write that was answered and not flushed. */
static struct block_node *open_two(struct fake_nbd_server *server)
{
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;

    server->flags |= FAKE_NBD_CAN_MULTI_CONN;
    fake_nbd_server_start(server);
    options.connections = 2;
    options.reconnect_delay = 60;
    node = nbd_test_open(options, true, NULL);
    g_assert_cmpuint(server->accepted, ==, 2);
    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    return node;
}

static _Atomic(struct fake_nbd_connection *) served_on;

static bool note_connection(struct fake_nbd_connection *connection,
                            struct fake_nbd_request *request)
{
    served_on = connection;
    return false;
}

/* Lose one of the two and wait until it is back. */
static void lose_first(struct block_node *node, struct fake_nbd_server *server)
{
    uint8_t byte;

    server->hook = hang_up_once;
    g_assert_cmpint(nbd_fixture_read(node, 0, &byte), ==, 0);
    server->hook = note_connection;
    do {
        nbd_fixture_expect(node, 0, 1);
    } while (server->accepted < 3 || served_on != server->connections[2]);
}

static void test_survivor_vouches(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct block_node *node = open_two(server);

    lose_first(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_true(served_on == server->connections[1]);
    /* The doubt is over: now the new connection may vouch for what follows. */
    g_assert_cmpint(nbd_fixture_write(node, 0, 2, 0), ==, 0);
    fake_nbd_hang_up(server->connections[1]);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    nbd_fixture_finish(node, server);
}

static void test_no_survivor(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct block_node *node = open_two(server);

    lose_first(node, server);
    fake_nbd_hang_up(server->connections[1]);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    nbd_fixture_finish(node, server);
}

static const struct {
    const char *name;
    fake_nbd_hook *hook;
} nonsense[] = {
    {"/nbd/nonsense/rubbish-is-an-error", send_rubbish},
    {"/nbd/nonsense/an-answer-to-nobody-is-an-error", answer_another},
    {"/nbd/nonsense/more-data-than-asked-is-an-error", answer_too_much},
    {"/nbd/nonsense/data-of-another-place-is-an-error", answer_elsewhere},
    {"/nbd/nonsense/half-the-data-is-an-error", answer_half},
    {"/nbd/nonsense/no-data-is-an-error", answer_nothing},
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd/a-lost-request-fails-and-later-ones-are-served", test_hang_up);
    g_test_add_func("/nbd/a-lost-request-is-sent-again-within-the-delay", test_hang_up_with_delay);
    g_test_add_func("/nbd/a-request-that-kills-servers-ends", test_deadly_request);
    g_test_add_func("/nbd/a-restart-while-idle-is-not-noticed", test_restart_while_idle);
    g_test_add_func("/nbd/a-server-gone-for-good-fails-requests", test_gone_for_good);
    g_test_add_func("/nbd/a-server-that-shuts-down-is-reconnected", test_shut_down);
    g_test_add_func("/nbd/a-request-timeout-ends-the-connection", test_request_timeout);
    g_test_add_func("/nbd/requests-that-hang-can-be-cancelled", test_cancel);
    g_test_add_func("/nbd/a-server-error-is-passed-on", test_server_error);
    g_test_add_func("/nbd/a-shrunk-export-is-refused", test_shrunk);
    g_test_add_func("/nbd/close-does-not-wait-for-an-attempt", test_close_while_connecting);
    g_test_add_func("/nbd/lost-writes-are-never-flushed", test_lost_writes);
    g_test_add_func("/nbd/flushed-writes-are-not-lost", test_nothing_lost);
    g_test_add_func("/nbd/a-flush-sent-again-does-not-cover-lost-writes", test_lost_in_flush);
    g_test_add_func("/nbd/a-connection-that-survives-vouches-for-writes", test_survivor_vouches);
    g_test_add_func("/nbd/a-connection-made-later-does-not-vouch", test_no_survivor);
    for (unsigned i = 0; i < G_N_ELEMENTS(nonsense); i++) {
        g_test_add_data_func(nonsense[i].name, &nonsense[i].hook, test_nonsense);
    }
    return g_test_run();
}
