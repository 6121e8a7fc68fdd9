/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbd driver against servers that misbehave. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/clock.h"
#include "formats/nbd-extents.h"
#include "formats/nbd.h"
#include "tests/lib/fake-nbd-server.h"
#include "tests/lib/nbd-node.h"

#define DISK_BYTES (256 * KIB)
#define BLOCK      4096

static struct fake_nbd_server *start_server(fake_nbd_hook *hook)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);

    server->hook = hook;
    fake_nbd_server_start(server);
    return server;
}

static struct block_node *open_with_delay(struct fake_nbd_server *server, uint64_t seconds)
{
    g_autoptr(GError) error = NULL;
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;

    options.reconnect_delay = seconds;
    node = nbd_test_open(options, true, &error);
    g_assert_no_error(error);
    return node;
}

static struct block_node *open_node(struct fake_nbd_server *server)
{
    return open_with_delay(server, 0);
}

static void expect_open_error(struct nbd_options options, bool writable, int error_number,
                              const char *part)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(nbd_test_open(options, writable, &error));
    g_assert_nonnull(error);
    g_test_message("%s", error->message);
    g_assert_cmpint(error->code, ==, error_number);
    g_assert_nonnull(strstr(error->message, part));
}

static int write_byte(struct block_node *node, uint64_t offset, uint8_t byte, unsigned flags)
{
    uint8_t buffer[BLOCK];

    memset(buffer, byte, sizeof(buffer));
    return nbd_test_pwrite(node, buffer, offset, sizeof(buffer), flags);
}

static int read_byte(struct block_node *node, uint64_t offset, uint8_t *byte)
{
    uint8_t buffer[BLOCK];
    int ret = nbd_test_pread(node, buffer, offset, sizeof(buffer));

    *byte = buffer[BLOCK - 1];
    return ret;
}

static void expect_byte(struct block_node *node, uint64_t offset, uint8_t expected)
{
    uint8_t byte;

    g_assert_cmpint(read_byte(node, offset, &byte), ==, 0);
    g_assert_cmpuint(byte, ==, expected);
}

/* Wait, as long as the test may take, until requests find a connection again. */
static void wait_until_served(struct block_node *node)
{
    uint8_t byte;

    while (read_byte(node, 0, &byte) != 0) {
        g_usleep(1000);
    }
}

static void finish(struct block_node *node, struct fake_nbd_server *server)
{
    nbd_test_close(node);
    fake_nbd_server_free(server);
}

/* Requests and what the server says of itself. */

static void test_data(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_node(server);

    g_assert_cmpint(nbd_driver.get_length(node), ==, DISK_BYTES);
    g_assert_cmpint(write_byte(node, BLOCK, 7, 0), ==, 0);
    expect_byte(node, BLOCK, 7);
    expect_byte(node, 2 * BLOCK, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, BLOCK, BLOCK, 0), ==, 0);
    expect_byte(node, BLOCK, 0);
    g_assert_cmpint(nbd_driver.discard(node, 0, BLOCK), ==, 0);
    g_assert_cmpint(nbd_driver.prefetch(node, 0, BLOCK), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_TRIM], ==, 1);
    g_assert_cmpuint(server->counts[FAKE_NBD_CACHE], ==, 1);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 1);
    finish(node, server);
}

static void test_flags(void)
{
    enum { FUA = 1, NO_HOLE = 2, FAST = 16 };
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_node(server);

    g_assert_cmpint(write_byte(node, 0, 1, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, FUA);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, BLOCK, 0), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, NO_HOLE);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, BLOCK, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, BLOCK,
                                            BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK),
                    ==, 0);
    g_assert_cmpuint(server->last_flags, ==, FAST);
    finish(node, server);
}

static void test_poor_server(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct block_node *node;
    struct block_extent extent;

    server->flags = FAKE_NBD_HAS_FLAGS | FAKE_NBD_CAN_FLUSH | FAKE_NBD_CAN_ZERO;
    server->no_context = true;
    server->minimum_block = 0;
    fake_nbd_server_start(server);
    node = open_node(server);
    g_assert_cmpuint(node->limits.request_alignment, ==, 512);
    g_assert_cmpuint(node->limits.max_transfer, ==, 32 * MIB);
    /* FUA becomes a flush. */
    g_assert_cmpint(write_byte(node, 0, 1, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 1);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, BLOCK, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpint(nbd_driver.discard(node, 0, BLOCK), ==, 0);
    g_assert_cmpint(nbd_driver.prefetch(node, 0, BLOCK), ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_TRIM] + server->counts[FAKE_NBD_CACHE], ==, 0);
    g_assert_cmpint(nbd_driver.block_status(node, 512, DISK_BYTES - 512, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, DISK_BYTES - 512);
    g_assert_cmpuint(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, BLOCK_STATUS_DATA);
    finish(node, server);
}

static void test_limits(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct block_node *node;

    server->minimum_block = 4096;
    server->preferred_block = 65536;
    server->maximum_block = 1 << 20;
    server->size = DISK_BYTES - 100;
    fake_nbd_server_start(server);
    node = open_node(server);
    g_assert_cmpuint(node->limits.request_alignment, ==, 4096);
    g_assert_cmpuint(node->limits.preferred_size, ==, 65536);
    g_assert_cmpuint(node->limits.max_transfer, ==, 1 << 20);
    g_assert_cmpuint(node->limits.max_write_zeroes, <, 2 * GIB);
    g_assert_cmpuint(node->limits.max_write_zeroes % 4096, ==, 0);
    /* The partial block at the end cannot be reached. */
    g_assert_cmpint(nbd_driver.get_length(node), ==, DISK_BYTES - 4096);
    finish(node, server);
}

static void test_read_only(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct block_node *node;

    server->flags |= FAKE_NBD_READ_ONLY;
    fake_nbd_server_start(server);
    expect_open_error(nbd_test_options(server->path), true, EACCES, "read-only");
    node = nbd_test_open(nbd_test_options(server->path), false, NULL);
    g_assert_nonnull(node);
    expect_byte(node, 0, 0);
    finish(node, server);
}

static void test_auto_read_only(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node node = {.driver = &nbd_driver, .options.auto_read_only = true};

    server->flags |= FAKE_NBD_READ_ONLY;
    fake_nbd_server_start(server);
    node.state = g_malloc0(nbd_driver.instance_size);
    g_assert_cmpint(nbd_driver.open(&node, &options, NULL), ==, 0);
    g_assert_true(node.options.read_only);
    nbd_driver.close(&node);
    g_free(node.state);
    fake_nbd_server_free(server);
}

static void test_size_lies(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);

    server->size = UINT64_MAX - 4095;
    fake_nbd_server_start(server);
    expect_open_error(nbd_test_options(server->path), true, EPROTO, "size");
    fake_nbd_server_free(server);
}

static struct nbd_options uri_options(const char *uri)
{
    struct nbd_options options = nbd_test_options(NULL);

    options.uri = g_strdup(uri);
    return options;
}

static void test_options(void)
{
    struct nbd_options options = nbd_test_options(NULL);

    expect_open_error(options, true, EINVAL, "Exactly one");
    options = nbd_test_options("/nowhere");
    options.uri = g_strdup("nbd://localhost");
    expect_open_error(options, true, EINVAL, "Exactly one");
    expect_open_error(uri_options("http://localhost"), true, EINVAL, "not an NBD URI");
    expect_open_error(uri_options("nbds://h/?tls-psk-file=/etc/shadow"), true, EINVAL, "psk");
    options = uri_options("nbd://localhost");
    g_free(options.export_name);
    options.export_name = g_strdup("x");
    expect_open_error(options, true, EINVAL, "'export'");
    options = nbd_test_options("/nowhere");
    options.tls_psk_file = g_strdup("/k");
    expect_open_error(options, true, EINVAL, "'tls'");
    options = nbd_test_options("/nowhere");
    options.connections = 17;
    expect_open_error(options, true, EINVAL, "'connections'");
    options = nbd_test_options(NULL);
    options.command = g_strsplit("/bin/true", " ", 0);
    options.reconnect_delay = 1;
    expect_open_error(options, true, EINVAL, "'reconnect-delay'");
}

static void test_open_errors(void)
{
    struct nbd_options options = nbd_test_options(NULL);

    expect_open_error(nbd_test_options("/nowhere/s"), true, ENOENT,
                      "'nbd+unix:///?socket=/nowhere/s'");
    options.command = g_strsplit("no-such-program-here x", " ", 0);
    expect_open_error(options, true, ENOENT, "no-such-program-here");
    options = nbd_test_options(NULL);
    options.server.type = BLOCK_ADDRESS_FD;
    options.server.fd = g_strdup("9999");
    expect_open_error(options, true, EBADF, "9999");
}

static void test_silent_handshake(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct nbd_options options = nbd_test_options(server->path);

    server->silent = true;
    fake_nbd_server_start(server);
    options.open_timeout = 1;
    expect_open_error(options, true, ETIMEDOUT, "did not answer in time");
    fake_nbd_server_free(server);
}

static void *start_later(void *data)
{
    g_usleep(300 * 1000);
    fake_nbd_server_start(data);
    return NULL;
}

static void test_open_waits(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;
    pthread_t thread;

    options.open_timeout = 30;
    pthread_create(&thread, NULL, start_later, server);
    node = nbd_test_open(options, true, NULL);
    g_assert_nonnull(node);
    pthread_join(thread, NULL);
    finish(node, server);
}

static void test_fork(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_node(server);
    uint8_t byte;
    int status;
    pid_t pid = fork();

    if (!pid) {
        _exit(write_byte(node, 0, 9, 0) || read_byte(node, 0, &byte) || byte != 9 ||
              nbd_test_flush(node));
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
    pthread_mutex_lock(&server->lock);
    g_assert_cmpuint(server->data[0], ==, 9);
    pthread_mutex_unlock(&server->lock);
    finish(node, server);
}

/* Many requests at once. */

#define CROWD 16

static pthread_mutex_t crowd_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_nbd_request crowd[CROWD];
static unsigned crowd_count;

/* Nothing is answered before all have arrived; then the last is answered first. */
static bool answer_in_reverse(struct fake_nbd_connection *connection,
                              struct fake_nbd_request *request)
{
    pthread_mutex_lock(&crowd_lock);
    crowd[crowd_count] = *request;
    if (request->payload) {
        crowd[crowd_count].payload = g_memdup2(request->payload, request->bytes);
    }
    if (++crowd_count == CROWD) {
        while (crowd_count) {
            fake_nbd_answer(connection, &crowd[--crowd_count]);
            g_free(crowd[crowd_count].payload);
        }
    }
    pthread_mutex_unlock(&crowd_lock);
    return true;
}

struct crowd_member {
    struct block_node *node;
    unsigned number;
    pthread_t thread;
};

static void *crowd_main(void *data)
{
    struct crowd_member *member = data;

    for (unsigned round = 0; round < 50; round++) {
        uint8_t byte = (uint8_t)(member->number + round);

        g_assert_cmpint(write_byte(member->node, member->number * BLOCK, byte, 0), ==, 0);
        expect_byte(member->node, member->number * BLOCK, byte);
    }
    return NULL;
}

static void run_crowd(struct block_node *node)
{
    struct crowd_member members[CROWD];

    for (unsigned i = 0; i < CROWD; i++) {
        members[i] = (struct crowd_member){.node = node, .number = i};
        pthread_create(&members[i].thread, NULL, crowd_main, &members[i]);
    }
    for (unsigned i = 0; i < CROWD; i++) {
        pthread_join(members[i].thread, NULL);
    }
}

static void test_parallel(void)
{
    struct fake_nbd_server *server = start_server(answer_in_reverse);
    struct block_node *node = open_node(server);

    run_crowd(node);
    finish(node, server);
}

static void test_connections(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;

    fake_nbd_server_start(server);
    options.connections = 3;
    node = nbd_test_open(options, true, NULL);
    /* Without multi-conn a flush would not cover the other connections' writes. */
    g_assert_cmpuint(server->accepted, ==, 1);
    nbd_test_close(node);
    server->flags |= FAKE_NBD_CAN_MULTI_CONN;
    options = nbd_test_options(server->path);
    options.connections = 3;
    node = nbd_test_open(options, true, NULL);
    g_assert_cmpuint(server->accepted, ==, 4);
    run_crowd(node);
    finish(node, server);
}

/* Servers that go or talk nonsense. */

static bool hang_up_once(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    connection->server->hook = NULL;
    fake_nbd_hang_up(connection);
    return true;
}

static void test_hang_up(void)
{
    struct fake_nbd_server *server = start_server(hang_up_once);
    struct block_node *node = open_node(server);
    uint8_t byte;

    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ENOTCONN);
    wait_until_served(node);
    finish(node, server);
}

static void test_hang_up_with_delay(void)
{
    struct fake_nbd_server *server = start_server(hang_up_once);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 5, 0), ==, 0);
    expect_byte(node, 0, 5);
    /* The write was never answered before the loss: nothing is in doubt. */
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->accepted, ==, 2);
    finish(node, server);
}

static bool hang_up_always(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    fake_nbd_hang_up(connection);
    return true;
}

static void test_deadly_request(void)
{
    struct fake_nbd_server *server = start_server(hang_up_always);
    struct block_node *node = open_with_delay(server, 1);
    uint8_t byte;

    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ENOTCONN);
    g_assert_cmpuint(server->accepted, <, 30);
    finish(node, server);
}

static void test_restart_while_idle(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_node(server);

    expect_byte(node, 0, 0);
    fake_nbd_server_stop(server);
    fake_nbd_server_start(server);
    /* Even without reconnect-delay. */
    expect_byte(node, 0, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    finish(node, server);
}

static void test_gone_for_good(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_with_delay(server, 1);
    uint8_t byte;

    fake_nbd_server_stop(server);
    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ENOTCONN);
    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, -ENOTCONN);
    fake_nbd_server_start(server);
    wait_until_served(node);
    finish(node, server);
}

static bool shut_down_once(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    connection->server->hook = NULL;
    fake_nbd_reply_simple(connection, request->cookie, ESHUTDOWN);
    return true;
}

static void test_shut_down(void)
{
    struct fake_nbd_server *server = start_server(shut_down_once);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 3, 0), ==, 0);
    expect_byte(node, 0, 3);
    g_assert_cmpuint(server->accepted, ==, 2);
    finish(node, server);
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
    static uint8_t payload[8 + 2 * BLOCK];

    fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, sizeof(payload));
    return true;
}

static bool answer_elsewhere(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    static uint8_t payload[8 + BLOCK];

    memset(payload, 0x7f, 8);
    fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, sizeof(payload));
    return true;
}

static bool answer_half(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    uint8_t payload[8 + BLOCK / 2] = {0};

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
    struct fake_nbd_server *server = start_server(*hook);
    struct block_node *node = open_node(server);
    uint8_t byte;

    g_assert_cmpint(read_byte(node, 0, &byte), <, 0);
    server->hook = NULL;
    wait_until_served(node);
    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
    expect_byte(node, 0, 1);
    finish(node, server);
}

static bool hold_back(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    return true;
}

static void test_request_timeout(void)
{
    struct fake_nbd_server *server = start_server(hold_back);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;
    uint8_t byte;

    options.request_timeout = 1;
    node = nbd_test_open(options, true, NULL);
    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ETIMEDOUT);
    server->hook = NULL;
    wait_until_served(node);
    finish(node, server);
}

static bool refuse_everything(struct fake_nbd_connection *connection,
                              struct fake_nbd_request *request)
{
    fake_nbd_reply_simple(connection, request->cookie, ENOSPC);
    return true;
}

static void test_server_error(void)
{
    struct fake_nbd_server *server = start_server(refuse_everything);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, -ENOSPC);
    g_assert_cmpint(nbd_test_flush(node), ==, -ENOSPC);
    server->hook = NULL;
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->accepted, ==, 1);
    finish(node, server);
}

/* A reconnect must find the same export. */
static void test_shrunk(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_with_delay(server, 1);
    uint8_t byte;

    fake_nbd_server_stop(server);
    server->size = DISK_BYTES / 2;
    fake_nbd_server_start(server);
    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ESTALE);
    server->size = DISK_BYTES * 2;
    wait_until_served(node);
    g_assert_cmpint(nbd_driver.get_length(node), ==, DISK_BYTES);
    finish(node, server);
}

/* Closing while the thread tries to connect to a server that accepts and stays silent. */
static void test_close_while_connecting(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_node(server);
    unsigned before = server->accepted;
    uint8_t byte;

    fake_nbd_server_stop(server);
    server->silent = true;
    fake_nbd_server_start(server);
    g_assert_cmpint(read_byte(node, 0, &byte), ==, -ENOTCONN);
    while (server->accepted == before) {
        g_usleep(1000);
    }
    finish(node, server);
}

/* Lost writes. */

static void restart(struct block_node *node, struct fake_nbd_server *server)
{
    fake_nbd_server_stop(server);
    fake_nbd_server_start(server);
    wait_until_served(node);
}

static void test_lost_writes(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
    restart(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    /* No second try and no later write makes it good. */
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(write_byte(node, 0, 2, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(write_byte(node, 0, 3, BLOCK_REQUEST_FUA), ==, 0);
    expect_byte(node, 0, 3);
    nbd_test_close(node);
    node = open_node(server);
    g_assert_cmpint(write_byte(node, 0, 2, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    finish(node, server);
}

static void test_nothing_lost(void)
{
    struct fake_nbd_server *server = start_server(NULL);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    expect_byte(node, 0, 1);
    g_assert_cmpint(write_byte(node, 0, 2, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(nbd_driver.discard(node, BLOCK, BLOCK), ==, 0);
    restart(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    finish(node, server);
}

static bool hang_up_at_flush(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    return request->command == FAKE_NBD_FLUSH && hang_up_once(connection, request);
}

static void test_lost_in_flush(void)
{
    struct fake_nbd_server *server = start_server(hang_up_at_flush);
    struct block_node *node = open_with_delay(server, 60);

    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
    /* Sent again to the next server, the flush succeeds there, and says nothing of the write. */
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    finish(node, server);
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
    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
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
    g_assert_cmpint(read_byte(node, 0, &byte), ==, 0);
    server->hook = note_connection;
    do {
        expect_byte(node, 0, 1);
    } while (server->accepted < 3 || served_on != server->connections[2]);
}

static void test_survivor_vouches(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct block_node *node = open_two(server);

    lose_first(node, server);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_true(served_on == server->connections[1]);
    /* The doubt is over: now the new connection may vouch for what follows. */
    g_assert_cmpint(write_byte(node, 0, 2, 0), ==, 0);
    fake_nbd_hang_up(server->connections[1]);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    finish(node, server);
}

static void test_no_survivor(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(DISK_BYTES);
    struct block_node *node = open_two(server);

    lose_first(node, server);
    fake_nbd_hang_up(server->connections[1]);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    g_assert_cmpint(nbd_test_flush(node), ==, -EIO);
    finish(node, server);
}

/* Extents. */

static bool send_extents(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    static const uint32_t all[] = {BLOCK, 0, BLOCK, 3, BLOCK, 2, BLOCK, 1, BLOCK, 3 | 64};

    if (request->command != FAKE_NBD_EXTENTS) {
        return false;
    }
    g_assert_cmpuint(request->offset % BLOCK, ==, 0);
    fake_nbd_reply_extents(connection, request->cookie, all, 10);
    return true;
}

static void expect_extent(struct block_node *node, uint64_t offset, uint64_t max, uint64_t bytes,
                          unsigned flags)
{
    struct block_extent extent;

    g_assert_cmpint(nbd_driver.block_status(node, offset, max, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, bytes);
    g_assert_cmpuint(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, flags);
}

static void test_extents(void)
{
    struct fake_nbd_server *server = start_server(send_extents);
    struct block_node *node = open_node(server);

    expect_extent(node, 0, DISK_BYTES, BLOCK, BLOCK_STATUS_DATA);
    expect_extent(node, BLOCK, DISK_BYTES - BLOCK, BLOCK, BLOCK_STATUS_ZERO);
    expect_extent(node, BLOCK + 512, 512, 512, BLOCK_STATUS_ZERO);
    expect_extent(node, 2 * BLOCK, BLOCK, BLOCK, BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA);
    /* A hole that may hold anything, and one with a flag nobody knows: data. */
    expect_extent(node, 3 * BLOCK, DISK_BYTES - 3 * BLOCK, 2 * BLOCK, BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 1);
    /* Beyond the answer, and after a write, the server is asked again. */
    expect_extent(node, 5 * BLOCK, BLOCK, BLOCK, BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 2);
    g_assert_cmpint(write_byte(node, 0, 1, 0), ==, 0);
    expect_extent(node, 6 * BLOCK, BLOCK, BLOCK, BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 3);
    finish(node, server);
}

static struct block_node *writing_node;

/* While the answer is under way somebody writes: it may be used once and not be kept. */
static bool write_meanwhile(struct fake_nbd_connection *connection,
                            struct fake_nbd_request *request)
{
    static _Atomic bool wrote;
    static struct fake_nbd_request waiting;

    if (request->command == FAKE_NBD_EXTENTS && !atomic_exchange(&wrote, true)) {
        waiting = *request;
        return true;
    }
    if (request->command == FAKE_NBD_WRITE) {
        static const uint32_t zeroes[] = {DISK_BYTES, 3};

        fake_nbd_answer(connection, request);
        fake_nbd_reply_extents(connection, waiting.cookie, zeroes, 2);
        return true;
    }
    return false;
}

static void *write_main(void *data)
{
    struct fake_nbd_server *server = data;

    while (!server->counts[FAKE_NBD_EXTENTS]) {
        g_usleep(1000);
    }
    g_assert_cmpint(write_byte(writing_node, 0, 1, 0), ==, 0);
    return NULL;
}

static void test_extents_and_write(void)
{
    struct fake_nbd_server *server = start_server(write_meanwhile);
    struct block_extent extent;
    pthread_t thread;

    writing_node = open_node(server);
    pthread_create(&thread, NULL, write_main, server);
    g_assert_cmpint(nbd_driver.block_status(writing_node, 0, BLOCK, &extent), ==, 0);
    pthread_join(thread, NULL);
    expect_extent(writing_node, 0, BLOCK, BLOCK, BLOCK_STATUS_DATA);
    finish(writing_node, server);
}

static bool send_bad_extents(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    static const uint32_t empty[] = {0, 3, BLOCK, 3};

    if (request->command != FAKE_NBD_EXTENTS) {
        return false;
    }
    fake_nbd_reply_extents(connection, request->cookie, empty, 4);
    return true;
}

static void test_bad_extents(void)
{
    struct fake_nbd_server *server = start_server(send_bad_extents);
    struct block_node *node = open_node(server);
    struct block_extent extent;

    g_assert_cmpint(nbd_driver.block_status(node, 0, BLOCK, &extent), ==, -EPROTO);
    /* The connection is still good. */
    expect_byte(node, 0, 0);
    g_assert_cmpuint(server->accepted, ==, 1);
    finish(node, server);
}

static void test_extents_collect(void)
{
    static const uint32_t huge[] = {UINT32_MAX, 3, UINT32_MAX, 0};
    static const uint32_t stops[] = {BLOCK, 3, 0, 0, BLOCK, 0};
    g_autofree struct nbd_extents *extents = g_new(struct nbd_extents, 1);
    g_autofree uint32_t *many = g_new(uint32_t, 4 * NBD_EXTENTS_MAX);
    uint64_t bytes;
    unsigned flags;

    /* Clipped to the export. */
    nbd_extents_begin(extents, INT64_MAX - 100, INT64_MAX);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", INT64_MAX - 100, huge, 4), ==,
                    0);
    g_assert_true(nbd_extents_find(extents, INT64_MAX - 50, UINT64_MAX, &bytes, &flags));
    g_assert_cmpuint(bytes, ==, 50);
    /* Nothing is believed from an empty extent on; another context or offset never. */
    nbd_extents_begin(extents, 0, DISK_BYTES);
    g_assert_cmpint(nbd_extents_collect(extents, "qemu:x", 0, stops, 6), ==, 0);
    g_assert_false(nbd_extents_find(extents, 0, 1, &bytes, &flags));
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 512, stops, 6), ==, -EPROTO);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, stops, 6), ==, 0);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, stops, 6), ==, -EPROTO);
    g_assert_false(nbd_extents_find(extents, BLOCK, 1, &bytes, &flags));
    /* More than there is room for: those that fit. */
    for (unsigned i = 0; i < 2 * NBD_EXTENTS_MAX; i++) {
        many[2 * i] = 1;
        many[2 * i + 1] = i % 2 ? 3 : 0;
    }
    nbd_extents_begin(extents, 0, DISK_BYTES);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, many, 4 * NBD_EXTENTS_MAX),
                    ==, 0);
    g_assert_true(nbd_extents_find(extents, NBD_EXTENTS_MAX - 1, 9, &bytes, &flags));
    g_assert_cmpuint(bytes, ==, 1);
    g_assert_false(nbd_extents_find(extents, NBD_EXTENTS_MAX, 9, &bytes, &flags));
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

static void add_failure_tests(void)
{
    g_test_add_func("/nbd/a-lost-request-fails-and-later-ones-are-served", test_hang_up);
    g_test_add_func("/nbd/a-lost-request-is-sent-again-within-the-delay", test_hang_up_with_delay);
    g_test_add_func("/nbd/a-request-that-kills-servers-ends", test_deadly_request);
    g_test_add_func("/nbd/a-restart-while-idle-is-not-noticed", test_restart_while_idle);
    g_test_add_func("/nbd/a-server-gone-for-good-fails-requests", test_gone_for_good);
    g_test_add_func("/nbd/a-server-that-shuts-down-is-reconnected", test_shut_down);
    g_test_add_func("/nbd/a-request-timeout-ends-the-connection", test_request_timeout);
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
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd/data-is-read-as-written", test_data);
    g_test_add_func("/nbd/flags-reach-the-server", test_flags);
    g_test_add_func("/nbd/what-a-server-lacks-is-emulated-or-refused", test_poor_server);
    g_test_add_func("/nbd/block-sizes-become-limits", test_limits);
    g_test_add_func("/nbd/a-read-only-export-needs-a-read-only-node", test_read_only);
    g_test_add_func("/nbd/auto-read-only-falls-back", test_auto_read_only);
    g_test_add_func("/nbd/an-impossible-size-is-refused", test_size_lies);
    g_test_add_func("/nbd/options-that-clash-are-refused", test_options);
    g_test_add_func("/nbd/errors-name-the-server", test_open_errors);
    g_test_add_func("/nbd/a-silent-server-does-not-hang-open", test_silent_handshake);
    g_test_add_func("/nbd/open-waits-for-the-server", test_open_waits);
    g_test_add_func("/nbd/a-fork-after-open-does-no-harm", test_fork);
    g_test_add_func("/nbd/many-requests-are-in-flight-at-once", test_parallel);
    g_test_add_func("/nbd/several-connections-need-multi-conn", test_connections);
    g_test_add_func("/nbd/extents-of-an-answer-are-kept", test_extents);
    g_test_add_func("/nbd/extents-are-not-kept-across-a-write", test_extents_and_write);
    g_test_add_func("/nbd/an-empty-extent-is-refused", test_bad_extents);
    g_test_add_func("/nbd/extents-are-clipped", test_extents_collect);
    add_failure_tests();
    return g_test_run();
}
