/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server in one process with its clients: what it promises where exports come and go while
 * clients are at work, and clients do what they like. The rest of the protocol is tested by
 * tests/integration/test-nbd-server.py.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "block/align.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "server/nbd/exports.h"
#include "server/nbd/protocol.h"
#include "server/nbd/server.h"
#include "tests/lib/disk.h"
#include "tests/lib/event-log.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/nbd-raw.h"

#define LENGTH MIB
#define BLOCK  4096

static char *directory, *path;
static struct block_node *disk;

static void begin(void)
{
    directory = test_directory_new(true);
    path = test_path(directory, "socket");
    disk = test_open("driver=memory,node-name=disk,size=%llu", (unsigned long long)LENGTH);
    event_log_open();
    nbd_raw_start_server("", path);
}

static void end(void)
{
    if (nbd_server_is_running()) {
        g_assert_cmpint(nbd_server_stop("", NULL), ==, 0);
    }
    event_log_close();
    block_node_unref(disk);
    g_assert_cmpuint(memory_disks_open(), ==, 0);
    g_free(path);
    test_directory_free(directory);
}

static void add_with_bitmaps(const char *id, unsigned count)
{
    struct nbd_export_bitmap bitmaps[] = {{.name = "b0"}, {.name = "b1"}, {.name = "b2"}};
    const struct nbd_export_options options = {
        .id = id,
        .target = "disk",
        .name = "e",
        .writable = true,
        .bitmaps = bitmaps,
        .bitmap_count = count,
    };
    g_autoptr(GError) error = NULL;

    nbd_export_add(&options, &error);
    g_assert_no_error(error);
}

static void remove_hard(const char *id)
{
    g_assert_cmpint(nbd_export_remove(id, true, NULL), ==, 0);
}

static void add_bitmaps(void *data)
{
    for (unsigned i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("b%u", i);

        block_node_add_bitmap(disk, dirty_bitmap_new(name, LENGTH, 64 * KIB, NULL));
    }
}

/* ---- Exports come and go --------------------------------------------------------------------- */

static void test_came_back(void)
{
    struct nbd_raw client;

    begin();
    main_loop_call_wait(add_bitmaps, NULL);
    add_with_bitmaps("a", 3);
    client = nbd_raw_connect(path);
    nbd_raw_agree(&client, NBD_RAW_STRUCTURED);
    g_assert_cmphex(
        nbd_raw_context(&client, NBD_OPT_SET_META_CONTEXT, "e", "qemu:dirty-bitmap:b2", NULL), ==,
        NBD_REP_ACK);
    remove_hard("a");
    EXPECT("BLOCK_EXPORT_DELETED");
    add_with_bitmaps("b", 3);
    g_assert_cmphex(nbd_raw_go(&client, "e"), ==, NBD_REP_ACK);
    /* As if no context had been chosen. */
    g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_BLOCK_STATUS, 0, 0, BLOCK), ==, EINVAL);
    nbd_raw_close(&client);
    end();
}

/* Until the server takes no more, as it cannot be rid of what it has to say. */
static void say_much(struct nbd_raw *client, const GByteArray *option)
{
    struct pollfd polled = {.fd = client->fd, .events = POLLOUT};
    size_t at = 0;

    while (poll(&polled, 1, 200) > 0) {
        ssize_t sent = send(client->fd, option->data + at, option->len - at, MSG_DONTWAIT);

        g_assert_cmpint(sent, >, 0);
        at = (at + (size_t)sent) % option->len;
    }
}

static GByteArray *make_option(uint32_t number, const char *name)
{
    GByteArray *option = g_byte_array_new();

    nbd_append64(option, NBD_OPTION_MAGIC);
    nbd_append32(option, number);
    nbd_append32(option, name ? (uint32_t)strlen(name) + 6 : 0);
    if (name) {
        nbd_append32(option, (uint32_t)strlen(name));
        g_byte_array_append(option, (const guint8 *)name, (guint)strlen(name));
        nbd_append16(option, 0);
    }
    return option;
}

/* No limit counts for its handshake. */
static void test_stalled_handshake(void)
{
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(GByteArray) option =
            i ? make_option(NBD_OPT_INFO, "e") : make_option(NBD_OPT_LIST, NULL);

        begin();
        nbd_raw_add_export("e", "disk", true);
        struct nbd_raw client = nbd_raw_connect(path);
        say_much(&client, option);
        g_assert_cmpint(nbd_export_remove("e", false, NULL), ==, 0);
        EXPECT("BLOCK_EXPORT_DELETED");
        nbd_raw_close(&client);
        end();
    }
}

static void *stop_server(void *data)
{
    g_assert_cmpint(nbd_server_stop(data, NULL), ==, 0);
    return NULL;
}

/* The export's end is held: its last flush. Meanwhile others begin anew. */
static void test_stop_and_start(void)
{
    char id[] = "";
    pthread_t stopper;

    begin();
    AUTO(block_node) other = test_open("driver=memory,node-name=other,size=1048576");
    g_autofree char *other_path = test_path(directory, "other-socket");
    nbd_raw_add_export("old", "disk", true);
    struct nbd_raw client = nbd_raw_open(path, "old", NBD_RAW_SIMPLE);
    g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_WRITE_ZEROES, 0, 0, BLOCK), ==, 0);
    nbd_raw_close(&client);
    memory_disk_hold(disk, BLOCK_OPERATION_FLUSH);
    pthread_create(&stopper, NULL, stop_server, id);
    memory_disk_wait_held(disk, 1);
    nbd_raw_start_server("other", other_path);
    nbd_raw_add_export("new", "other", true);
    memory_disk_release(disk);
    pthread_join(stopper, NULL);
    client = nbd_raw_open(other_path, "new", NBD_RAW_SIMPLE);
    g_assert_cmpint(client.fd, >=, 0);
    nbd_raw_close(&client);
    g_assert_cmpint(nbd_server_stop("other", NULL), ==, 0);
    block_node_unref(STEAL(other));
    end();
}

static int start_on(const char *id, int fd, GError **error)
{
    const struct nbd_server_options options = {.id = id,
                                               .address = {.kind = SOCKET_ADDRESS_FD, .fd = fd}};

    return nbd_server_start(&options, error);
}

/* Both would close it in the end, and one of them what somebody else has opened since then. */
static void test_given_twice(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_autoptr(GError) error = NULL;

    begin();
    g_autofree char *other = test_path(directory, "other");
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_strlcpy(address.sun_path, other, sizeof(address.sun_path));
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(fd, 1), ==, 0);
    g_assert_cmpint(start_on("given", fd, NULL), ==, 0);
    g_assert_cmpint(start_on("again", fd, &error), <, 0);
    g_assert_error(error, BLOCK_ERROR, EBUSY);
    nbd_raw_add_export("e", "disk", true);
    struct nbd_raw client = nbd_raw_open(other, "e", NBD_RAW_SIMPLE);
    g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_FLUSH, 0, 0, 0), ==, 0);
    nbd_raw_close(&client);
    g_assert_cmpint(nbd_server_stop("given", NULL), ==, 0);
    g_assert_cmpint(fcntl(fd, F_GETFD), <, 0);
    end();
}

/* A client is accepted, and the server does not know of it yet. */
static atomic_bool lingers, has_accepted;

/* The server's: if it is to linger, until the server has been told to stop, and some more. */
int accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags)
{
    int accepted = (int)syscall(SYS_accept4, fd, address, bytes, flags);

    if (accepted >= 0 && atomic_load(&lingers)) {
        atomic_store(&has_accepted, true);
        while (nbd_server_is_running()) {
            g_usleep(1000);
        }
        g_usleep(100000);
    }
    return accepted;
}

/* No limit counts for its handshake: the stop would wait for ever for a client it has not seen. */
static void test_stop_meets_client(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char byte;

    begin();
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    atomic_store(&lingers, true);
    g_assert_cmpint(connect(fd, (const struct sockaddr *)&address, sizeof(address)), ==, 0);
    while (!atomic_load(&has_accepted)) {
        g_usleep(1000);
    }
    g_assert_cmpint(nbd_server_stop("", NULL), ==, 0);
    atomic_store(&lingers, false);
    g_assert_cmpint(recv(fd, &byte, 1, 0), ==, 0); /* it has not even been greeted */
    close(fd);
    end();
}

/*
 * A server's thread that is sending: the first attempt, which does not block, ends when it is told
 * to, with nothing sent; and the next one when nobody holds it any more.
 */
static atomic_bool holds_sends, is_trying, gives_up_trying;

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    bool tries = flags & MSG_DONTWAIT;

    if (tries && atomic_load(&holds_sends)) {
        atomic_store(&is_trying, true);
        while (!atomic_load(&gives_up_trying)) {
            g_usleep(1000);
        }
        errno = EAGAIN;
        return -1;
    }
    while (atomic_load(&holds_sends)) {
        g_usleep(1000);
    }
    return syscall(SYS_sendmsg, fd, message, flags);
}

/* Whoever has read the second request relies on the first one's thread to read the third. */
static void test_blocked_reply(void)
{
    uint8_t data[BLOCK] = {0}, replies[3 * 16 + 2 * BLOCK];

    begin();
    nbd_raw_add_export("e", "disk", true);
    struct nbd_raw client = nbd_raw_open(path, "e", NBD_RAW_SIMPLE);
    memory_disk_hold(disk, BLOCK_OPERATION_WRITE);
    unsigned reads = memory_disk_count(disk, BLOCK_OPERATION_READ);
    atomic_store(&holds_sends, true);
    g_assert_true(nbd_raw_request(&client, NBD_CMD_READ, 0, 1, 0, BLOCK));
    while (!atomic_load(&is_trying)) {
        g_usleep(1000);
    }
    g_assert_true(nbd_raw_request(&client, NBD_CMD_WRITE, 0, 2, 0, BLOCK));
    g_assert_true(nbd_raw_send(&client, data, BLOCK));
    memory_disk_wait_held(disk, 1);
    atomic_store(&gives_up_trying, true);
    g_assert_true(nbd_raw_request(&client, NBD_CMD_READ, 0, 3, BLOCK, BLOCK));
    for (unsigned i = 0; i < 20000 && memory_disk_count(disk, BLOCK_OPERATION_READ) < reads + 2;
         i++) {
        g_usleep(1000);
    }
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_READ), ==, reads + 2);
    atomic_store(&holds_sends, false);
    memory_disk_release(disk);
    g_assert_true(nbd_raw_receive(&client, replies, sizeof(replies)));
    nbd_raw_close(&client);
    end();
}

static void test_remove(void)
{
    uint8_t data[BLOCK];
    g_autoptr(GError) error = NULL;

    begin();
    nbd_raw_add_export("e", "disk", true);
    struct nbd_raw client = nbd_raw_open(path, "e", NBD_RAW_STRUCTURED);
    memset(data, 0x5a, sizeof(data));
    g_assert_cmpint(nbd_export_remove("e", false, &error), <, 0);
    g_assert_error(error, BLOCK_ERROR, EBUSY);
    g_assert_cmpint(nbd_raw_write(&client, data, BLOCK, BLOCK), ==, 0);
    memory_disk_hold(disk, BLOCK_OPERATION_WRITE);
    nbd_raw_request(&client, NBD_CMD_WRITE, 0, 1, 2 * BLOCK, BLOCK);
    nbd_raw_send(&client, data, BLOCK);
    memory_disk_wait_held(disk, 1);
    remove_hard("e");
    g_assert_false(nbd_raw_receive(&client, data, 1)); /* it has been disconnected */
    EXPECT_NOTHING();                                  /* its write is under way */
    struct nbd_raw late = nbd_raw_open(path, "e", NBD_RAW_SIMPLE);
    g_assert_cmpint(late.fd, <, 0);
    memory_disk_release(disk);
    EXPECT("BLOCK_EXPORT_DELETED");
    test_assert_filled(memory_disk_data(disk) + BLOCK, 0x5a, 2 * BLOCK);
    nbd_raw_close(&client);
    end();
}

static void *remove_export(void *data)
{
    remove_hard(data);
    return NULL;
}

/* What the export used cannot be let go yet: its last flush is held, by its client's thread or by
 * the one that removes it, whichever is the last to leave. */
static void test_slow_end(void)
{
    char id[] = "e";
    pthread_t remover;

    begin();
    AUTO(block_node) other = test_open("driver=memory,node-name=other");
    nbd_raw_add_export("e", "disk", true);
    nbd_raw_add_export("other", "other", true);
    struct nbd_raw client = nbd_raw_open(path, "e", NBD_RAW_SIMPLE);
    g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_WRITE_ZEROES, 0, 0, BLOCK), ==, 0);
    memory_disk_hold(disk, BLOCK_OPERATION_FLUSH);
    g_assert_cmpint(pthread_create(&remover, NULL, remove_export, id), ==, 0);
    memory_disk_wait_held(disk, 1);
    struct nbd_raw later = nbd_raw_open(path, "other", NBD_RAW_SIMPLE);
    g_assert_cmpint(later.fd, >=, 0);
    EXPECT_NOTHING();
    memory_disk_release(disk);
    pthread_join(remover, NULL);
    EXPECT("BLOCK_EXPORT_DELETED");
    nbd_raw_close(&client);
    nbd_raw_close(&later);
    nbd_server_stop("", NULL);
    block_node_unref(STEAL(other));
    end();
}

/* ---- Requests -------------------------------------------------------------------------------- */

static void test_nothing(void)
{
    begin();
    nbd_raw_add_export("e", "disk", true);
    for (enum nbd_raw_mode mode = NBD_RAW_SIMPLE; mode <= NBD_RAW_EXTENDED; mode++) {
        struct nbd_raw client = nbd_raw_open(path, "e", mode);

        /* nbd_raw_read demands a chunk where structured replies were agreed on. */
        g_assert_cmpint(nbd_raw_read(&client, NULL, 0, 0), ==, 0);
        g_assert_cmpint(nbd_raw_write(&client, NULL, 0, 0), ==, 0);
        g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_TRIM, 0, 0, 0), ==, 0);
        g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_WRITE_ZEROES, 0, LENGTH, 0), ==, 0);
        g_assert_cmpint(nbd_raw_command(&client, NBD_CMD_CACHE, 0, 0, 0), ==, 0);
        nbd_raw_close(&client);
    }
    end();
}

/* A bitmap that ends before the export does knows nothing of the rest, which is dirty then. */
static void test_short_bitmap(void)
{
    struct nbd_export_bitmap bitmap = {.node = "disk", .name = "b0"};
    const struct nbd_export_options options = {
        .id = "e", .target = "long", .writable = true, .bitmaps = &bitmap, .bitmap_count = 1};
    g_autoptr(GError) error = NULL;
    struct nbd_raw_reply reply;

    begin();
    AUTO(block_node) node =
        test_open("driver=memory,node-name=long,size=%llu", (unsigned long long)(2 * LENGTH));
    main_loop_call_wait(add_bitmaps, NULL);
    nbd_export_add(&options, &error);
    g_assert_no_error(error);
    struct nbd_raw client = nbd_raw_connect(path);
    nbd_raw_agree(&client, NBD_RAW_STRUCTURED);
    nbd_raw_context(&client, NBD_OPT_SET_META_CONTEXT, "long", "qemu:dirty-bitmap:b0", NULL);
    g_assert_cmphex(nbd_raw_go(&client, "long"), ==, NBD_REP_ACK);
    nbd_raw_request(&client, NBD_CMD_BLOCK_STATUS, 0, 0, 0, 2 * LENGTH);
    g_assert_true(nbd_raw_reply(&client, &reply));
    g_assert_cmpuint(reply.payload->len, ==, 4 + 2 * 8);
    g_assert_cmpuint(nbd_get32(reply.payload->data + 4), ==, LENGTH);
    g_assert_cmpuint(nbd_get32(reply.payload->data + 8), ==, 0);
    g_assert_cmpuint(nbd_get32(reply.payload->data + 12), ==, LENGTH);
    g_assert_cmpuint(nbd_get32(reply.payload->data + 16), ==, NBD_STATE_DIRTY);
    nbd_raw_reply_clear(&reply);
    nbd_raw_close(&client);
    nbd_server_stop("", NULL);
    block_node_unref(STEAL(node));
    end();
}

/* ---- Clients that do what they like ---------------------------------------------------------- */

/* It asks for much and reads nothing: it gets no more memory than a few requests take. */
static void test_greedy(void)
{
    const uint64_t length = 32 * MIB;
    uint8_t data[BLOCK];

    begin();
    AUTO(block_node) large =
        test_open("driver=memory,node-name=large,size=%llu", (unsigned long long)length);
    nbd_raw_add_export("e", "disk", true);
    nbd_raw_add_export("large", "large", true);
    struct nbd_raw greedy = nbd_raw_open(path, "large", NBD_RAW_SIMPLE);
    struct nbd_raw modest = nbd_raw_open(path, "e", NBD_RAW_SIMPLE);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_true(nbd_raw_request(&greedy, NBD_CMD_READ, 0, i, 0, length));
    }
    while (memory_disk_count(large, BLOCK_OPERATION_READ) < 2) {
        g_usleep(1000);
    }
    for (unsigned i = 0; i < 100; i++) {
        g_assert_cmpint(nbd_raw_read(&modest, data, 0, BLOCK), ==, 0);
    }
    g_assert_cmpuint(memory_disk_count(large, BLOCK_OPERATION_READ), ==, 2);
    nbd_raw_close(&greedy);
    nbd_raw_close(&modest);
    nbd_server_stop("", NULL);
    block_node_unref(STEAL(large));
    end();
}

/* Whatever of its request the server has seen when the client leaves. */
static void test_vanish(void)
{
    uint8_t data[BLOCK] = {0};

    begin();
    nbd_raw_add_export("e", "disk", true);
    struct nbd_raw witness = nbd_raw_open(path, "e", NBD_RAW_EXTENDED);
    for (unsigned cut = 1; cut < 28 + 64; cut += 3) {
        struct nbd_raw client = nbd_raw_open(path, "e", NBD_RAW_STRUCTURED);
        uint8_t request[28 + 64] = {0x25, 0x60, 0x95, 0x13, 0, 0, 0, NBD_CMD_WRITE};

        request[27] = 64;
        nbd_raw_request(&client, NBD_CMD_READ, 0, 0, 0, LENGTH);
        g_assert_true(nbd_raw_send(&client, request, cut));
        nbd_raw_close(&client);
        g_assert_cmpint(nbd_raw_read(&witness, data, 0, BLOCK), ==, 0);
    }
    for (unsigned cut = 1; cut < 30; cut += 2) {
        uint8_t option[30] = "IHAVEOPT\0\0\0\6\0\0\0\16\0\0\0\1e";
        struct nbd_raw client = nbd_raw_connect(path);

        g_assert_true(nbd_raw_send(&client, option, cut));
        nbd_raw_close(&client);
    }
    g_assert_cmpint(nbd_raw_read(&witness, data, 0, BLOCK), ==, 0);
    nbd_raw_close(&witness);
    nbd_server_stop("", NULL);
    test_assert_filled(memory_disk_data(disk), 0, LENGTH);
    end();
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    g_assert_cmpint(main_loop_start(), ==, 0);
    g_test_add_func("/nbd-server/an-export-that-came-back-has-no-contexts-of-the-old-one",
                    test_came_back);
    g_test_add_func("/nbd-server/a-client-that-listens-to-nothing-holds-no-export",
                    test_stalled_handshake);
    g_test_add_func("/nbd-server/a-stop-waits-for-no-export-that-came-after-it",
                    test_stop_and_start);
    g_test_add_func("/nbd-server/a-socket-is-given-to-one-server-only", test_given_twice);
    g_test_add_func("/nbd-server/a-stop-sends-away-who-is-just-being-accepted",
                    test_stop_meets_client);
    g_test_add_func("/nbd-server/a-reply-that-blocks-keeps-no-request-from-being-read",
                    test_blocked_reply);
    g_test_add_func("/nbd-server/a-removed-export-is-gone-when-its-last-request-is", test_remove);
    g_test_add_func("/nbd-server/an-export-that-takes-long-to-end-keeps-no-client-waiting",
                    test_slow_end);
    g_test_add_func("/nbd-server/a-request-for-nothing-is-answered-as-others-are", test_nothing);
    g_test_add_func("/nbd-server/what-a-bitmap-does-not-reach-is-dirty", test_short_bitmap);
    g_test_add_func("/nbd-server/a-client-that-reads-no-replies-gets-no-more-memory", test_greedy);
    g_test_add_func("/nbd-server/a-client-that-vanishes-in-the-middle-is-forgotten", test_vanish);
    int status = g_test_run();
    main_loop_stop();
    return status;
}
