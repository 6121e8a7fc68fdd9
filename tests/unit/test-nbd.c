/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbd driver: options, requests, limits and extents, with a server inside the test. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "formats/nbd-extents.h"
#include "formats/nbd.h"
#include "tests/lib/nbd-fixture.h"

/* Requests and what the server says of itself. */

static void test_data(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 0);

    g_assert_cmpint(nbd_driver.get_length(node), ==, NBD_FIXTURE_BYTES);
    g_assert_cmpint(nbd_fixture_write(node, NBD_FIXTURE_BLOCK, 7, 0), ==, 0);
    nbd_fixture_expect(node, NBD_FIXTURE_BLOCK, 7);
    nbd_fixture_expect(node, 2 * NBD_FIXTURE_BLOCK, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK, 0), ==, 0);
    nbd_fixture_expect(node, NBD_FIXTURE_BLOCK, 0);
    g_assert_cmpint(nbd_driver.discard(node, 0, NBD_FIXTURE_BLOCK), ==, 0);
    g_assert_cmpint(nbd_driver.prefetch(node, 0, NBD_FIXTURE_BLOCK), ==, 0);
    g_assert_cmpint(nbd_test_flush(node), ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_TRIM], ==, 1);
    g_assert_cmpuint(server->counts[FAKE_NBD_CACHE], ==, 1);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 1);
    nbd_fixture_finish(node, server);
}

static void test_flags(void)
{
    enum { FUA = 1, NO_HOLE = 2, FAST = 16 };
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 0);

    g_assert_cmpint(nbd_fixture_write(node, 0, 1, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, FUA);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, NBD_FIXTURE_BLOCK, 0), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, NO_HOLE);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, NBD_FIXTURE_BLOCK, BLOCK_REQUEST_MAY_UNMAP),
                    ==, 0);
    g_assert_cmpuint(server->last_flags, ==, 0);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, NBD_FIXTURE_BLOCK,
                                            BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK),
                    ==, 0);
    g_assert_cmpuint(server->last_flags, ==, FAST);
    nbd_fixture_finish(node, server);
}

static void test_poor_server(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct block_node *node;
    struct block_extent extent;

    server->flags = FAKE_NBD_HAS_FLAGS | FAKE_NBD_CAN_FLUSH | FAKE_NBD_CAN_ZERO;
    server->no_context = true;
    server->minimum_block = 0;
    fake_nbd_server_start(server);
    node = nbd_fixture_open(server, 0);
    g_assert_cmpuint(node->limits.request_alignment, ==, 512);
    g_assert_cmpuint(node->limits.max_transfer, ==, 32 * MIB);
    /* FUA becomes a flush. */
    g_assert_cmpint(nbd_fixture_write(node, 0, 1, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpuint(server->last_flags, ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_FLUSH], ==, 1);
    g_assert_cmpint(nbd_driver.write_zeroes(node, 0, NBD_FIXTURE_BLOCK, BLOCK_REQUEST_NO_FALLBACK),
                    ==, -ENOTSUP);
    g_assert_cmpint(nbd_driver.discard(node, 0, NBD_FIXTURE_BLOCK), ==, 0);
    g_assert_cmpint(nbd_driver.prefetch(node, 0, NBD_FIXTURE_BLOCK), ==, 0);
    g_assert_cmpuint(server->counts[FAKE_NBD_TRIM] + server->counts[FAKE_NBD_CACHE], ==, 0);
    g_assert_cmpint(nbd_driver.block_status(node, 512, NBD_FIXTURE_BYTES - 512, &extent), ==, 0);
    g_assert_cmpuint(extent.bytes, ==, NBD_FIXTURE_BYTES - 512);
    g_assert_cmpuint(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, BLOCK_STATUS_DATA);
    nbd_fixture_finish(node, server);
}

static void test_limits(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct block_node *node;

    server->minimum_block = 4096;
    server->preferred_block = 65536;
    server->maximum_block = 1 << 20;
    server->size = NBD_FIXTURE_BYTES - 100;
    fake_nbd_server_start(server);
    node = nbd_fixture_open(server, 0);
    g_assert_cmpuint(node->limits.request_alignment, ==, 4096);
    g_assert_cmpuint(node->limits.preferred_size, ==, 65536);
    g_assert_cmpuint(node->limits.max_transfer, ==, 1 << 20);
    g_assert_cmpuint(node->limits.max_write_zeroes, <, 2 * GIB);
    g_assert_cmpuint(node->limits.max_write_zeroes % 4096, ==, 0);
    /* The partial block at the end cannot be reached. */
    g_assert_cmpint(nbd_driver.get_length(node), ==, NBD_FIXTURE_BYTES - 4096);
    nbd_fixture_finish(node, server);
}

static void test_read_only(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    const struct block_node_options writable = {.read_only = false};
    g_autoptr(GError) error = NULL;
    struct block_node *node;

    server->flags |= FAKE_NBD_READ_ONLY;
    fake_nbd_server_start(server);
    nbd_fixture_expect_open_error(nbd_test_options(server->path), true, EACCES, "read-only");
    node = nbd_test_open(nbd_test_options(server->path), false, NULL);
    g_assert_nonnull(node);
    nbd_fixture_expect(node, 0, 0);
    g_assert_cmpint(nbd_driver.reopen_prepare(node, NULL, &writable, NULL, &error), ==, -EACCES);
    g_assert_nonnull(strstr(error->message, "cannot become writable"));
    nbd_fixture_finish(node, server);
}

static void test_auto_read_only(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
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
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);

    server->size = UINT64_MAX - 4095;
    fake_nbd_server_start(server);
    nbd_fixture_expect_open_error(nbd_test_options(server->path), true, EPROTO, "size");
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

    nbd_fixture_expect_open_error(options, true, EINVAL, "Exactly one");
    options = nbd_test_options("/nowhere");
    options.uri = g_strdup("nbd://localhost");
    nbd_fixture_expect_open_error(options, true, EINVAL, "Exactly one");
    nbd_fixture_expect_open_error(uri_options("http://localhost"), true, EINVAL, "not an NBD URI");
    nbd_fixture_expect_open_error(uri_options("nbds://h/?tls-psk-file=/etc/shadow"), true, EINVAL,
                                  "psk");
    options = uri_options("nbd://localhost");
    g_free(options.export_name);
    options.export_name = g_strdup("x");
    nbd_fixture_expect_open_error(options, true, EINVAL, "'export'");
    options = nbd_test_options("/nowhere");
    options.tls_psk_file = g_strdup("/k");
    nbd_fixture_expect_open_error(options, true, EINVAL, "'tls'");
    options = nbd_test_options("/nowhere");
    options.connections = 17;
    nbd_fixture_expect_open_error(options, true, EINVAL, "'connections'");
    options = nbd_test_options(NULL);
    options.command = g_strsplit("/bin/true", " ", 0);
    options.reconnect_delay = 1;
    nbd_fixture_expect_open_error(options, true, EINVAL, "'reconnect-delay'");
}

static void test_open_errors(void)
{
    struct nbd_options options = nbd_test_options(NULL);

    nbd_fixture_expect_open_error(nbd_test_options("/nowhere/s"), true, ENOENT,
                                  "'nbd+unix:///?socket=/nowhere/s'");
    options.command = g_strsplit("no-such-program-here x", " ", 0);
    nbd_fixture_expect_open_error(options, true, ENOENT, "no-such-program-here");
    options = nbd_test_options(NULL);
    options.server.type = BLOCK_ADDRESS_FD;
    options.server.fd = g_strdup("9999");
    nbd_fixture_expect_open_error(options, true, EBADF, "9999");
}

static void test_silent_handshake(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct nbd_options options = nbd_test_options(server->path);

    server->silent = true;
    fake_nbd_server_start(server);
    options.open_timeout = 1;
    nbd_fixture_expect_open_error(options, true, ETIMEDOUT, "did not answer in time");
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
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
    struct nbd_options options = nbd_test_options(server->path);
    struct block_node *node;
    pthread_t thread;

    options.open_timeout = 30;
    pthread_create(&thread, NULL, start_later, server);
    node = nbd_test_open(options, true, NULL);
    g_assert_nonnull(node);
    pthread_join(thread, NULL);
    nbd_fixture_finish(node, server);
}

static void test_fork(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(NULL);
    struct block_node *node = nbd_fixture_open(server, 0);
    uint8_t byte;
    int status;
    pid_t pid = fork();

    if (!pid) {
        _exit(nbd_fixture_write(node, 0, 9, 0) || nbd_fixture_read(node, 0, &byte) || byte != 9 ||
              nbd_test_flush(node));
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
    pthread_mutex_lock(&server->lock);
    g_assert_cmpuint(server->data[0], ==, 9);
    pthread_mutex_unlock(&server->lock);
    nbd_fixture_finish(node, server);
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

        g_assert_cmpint(
            nbd_fixture_write(member->node, member->number * NBD_FIXTURE_BLOCK, byte, 0), ==, 0);
        nbd_fixture_expect(member->node, member->number * NBD_FIXTURE_BLOCK, byte);
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
    struct fake_nbd_server *server = nbd_fixture_start(answer_in_reverse);
    struct block_node *node = nbd_fixture_open(server, 0);

    run_crowd(node);
    nbd_fixture_finish(node, server);
}

static void test_connections(void)
{
    struct fake_nbd_server *server = fake_nbd_server_new(NBD_FIXTURE_BYTES);
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
    nbd_fixture_finish(node, server);
}

/* Extents. */

static bool send_extents(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    static const uint32_t all[] = {NBD_FIXTURE_BLOCK, 0,     NBD_FIXTURE_BLOCK, 3,
                                   NBD_FIXTURE_BLOCK, 2,     NBD_FIXTURE_BLOCK, 1,
                                   NBD_FIXTURE_BLOCK, 3 | 64};

    if (request->command != FAKE_NBD_EXTENTS) {
        return false;
    }
    g_assert_cmpuint(request->offset % NBD_FIXTURE_BLOCK, ==, 0);
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
    struct fake_nbd_server *server = nbd_fixture_start(send_extents);
    struct block_node *node = nbd_fixture_open(server, 0);

    expect_extent(node, 0, NBD_FIXTURE_BYTES, NBD_FIXTURE_BLOCK, BLOCK_STATUS_DATA);
    expect_extent(node, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BYTES - NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK,
                  BLOCK_STATUS_ZERO);
    expect_extent(node, NBD_FIXTURE_BLOCK + 512, 512, 512, BLOCK_STATUS_ZERO);
    expect_extent(node, 2 * NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK,
                  BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA);
    /* A hole that may hold anything, and one with a flag nobody knows: data. */
    expect_extent(node, 3 * NBD_FIXTURE_BLOCK, NBD_FIXTURE_BYTES - 3 * NBD_FIXTURE_BLOCK,
                  2 * NBD_FIXTURE_BLOCK, BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 1);
    /* Beyond the answer, and after a write, the server is asked again. */
    expect_extent(node, 5 * NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK,
                  BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 2);
    g_assert_cmpint(nbd_fixture_write(node, 0, 1, 0), ==, 0);
    expect_extent(node, 6 * NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK,
                  BLOCK_STATUS_DATA);
    g_assert_cmpuint(server->counts[FAKE_NBD_EXTENTS], ==, 3);
    nbd_fixture_finish(node, server);
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
        static const uint32_t zeroes[] = {NBD_FIXTURE_BYTES, 3};

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
    g_assert_cmpint(nbd_fixture_write(writing_node, 0, 1, 0), ==, 0);
    return NULL;
}

static void test_extents_and_write(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(write_meanwhile);
    struct block_extent extent;
    pthread_t thread;

    writing_node = nbd_fixture_open(server, 0);
    pthread_create(&thread, NULL, write_main, server);
    g_assert_cmpint(nbd_driver.block_status(writing_node, 0, NBD_FIXTURE_BLOCK, &extent), ==, 0);
    pthread_join(thread, NULL);
    expect_extent(writing_node, 0, NBD_FIXTURE_BLOCK, NBD_FIXTURE_BLOCK, BLOCK_STATUS_DATA);
    nbd_fixture_finish(writing_node, server);
}

static bool send_bad_extents(struct fake_nbd_connection *connection,
                             struct fake_nbd_request *request)
{
    static const uint32_t empty[] = {0, 3, NBD_FIXTURE_BLOCK, 3};

    if (request->command != FAKE_NBD_EXTENTS) {
        return false;
    }
    fake_nbd_reply_extents(connection, request->cookie, empty, 4);
    return true;
}

static void test_bad_extents(void)
{
    struct fake_nbd_server *server = nbd_fixture_start(send_bad_extents);
    struct block_node *node = nbd_fixture_open(server, 0);
    struct block_extent extent;

    g_assert_cmpint(nbd_driver.block_status(node, 0, NBD_FIXTURE_BLOCK, &extent), ==, -EPROTO);
    /* The connection is still good. */
    nbd_fixture_expect(node, 0, 0);
    g_assert_cmpuint(server->accepted, ==, 1);
    nbd_fixture_finish(node, server);
}

static void test_extents_collect(void)
{
    static const uint32_t huge[] = {UINT32_MAX, 3, UINT32_MAX, 0};
    static const uint32_t stops[] = {NBD_FIXTURE_BLOCK, 3, 0, 0, NBD_FIXTURE_BLOCK, 0};
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
    nbd_extents_begin(extents, 0, NBD_FIXTURE_BYTES);
    g_assert_cmpint(nbd_extents_collect(extents, "qemu:x", 0, stops, 6), ==, 0);
    g_assert_false(nbd_extents_find(extents, 0, 1, &bytes, &flags));
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 512, stops, 6), ==, -EPROTO);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, stops, 6), ==, 0);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, stops, 6), ==, -EPROTO);
    g_assert_false(nbd_extents_find(extents, NBD_FIXTURE_BLOCK, 1, &bytes, &flags));
    /* More than there is room for: those that fit. */
    for (unsigned i = 0; i < 2 * NBD_EXTENTS_MAX; i++) {
        many[2 * i] = 1;
        many[2 * i + 1] = i % 2 ? 3 : 0;
    }
    nbd_extents_begin(extents, 0, NBD_FIXTURE_BYTES);
    g_assert_cmpint(nbd_extents_collect(extents, "base:allocation", 0, many, 4 * NBD_EXTENTS_MAX),
                    ==, 0);
    g_assert_true(nbd_extents_find(extents, NBD_EXTENTS_MAX - 1, 9, &bytes, &flags));
    g_assert_cmpuint(bytes, ==, 1);
    g_assert_false(nbd_extents_find(extents, NBD_EXTENTS_MAX, 9, &bytes, &flags));
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
    return g_test_run();
}
