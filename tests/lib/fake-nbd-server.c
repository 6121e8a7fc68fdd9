/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/fake-nbd-server.h"

#include <endian.h>
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "block/checked.h"
#include "block/cleanup.h"

#define OPTION_MAGIC  UINT64_C(0x49484156454F5054)
#define REPLY_MAGIC   UINT64_C(0x0003e889045565a9)
#define REQUEST_MAGIC 0x25609513
#define SIMPLE_MAGIC  0x67446698
#define CHUNK_MAGIC   0x668e33ef

enum { OPTION_ABORT = 2, OPTION_GO = 7, OPTION_STRUCTURED = 8, OPTION_SET_CONTEXT = 10 };
enum { REPLY_ACK = 1, REPLY_INFO = 3, REPLY_CONTEXT = 4 };
#define REPLY_UNSUPPORTED 0x80000001u

void fake_nbd_send(struct fake_nbd_connection *connection, const void *bytes, size_t count)
{
    while (count) {
        ssize_t sent = send(connection->fd, bytes, count, MSG_NOSIGNAL);

        if (sent <= 0) {
            return; /* the client went: its next read says so */
        }
        bytes = (const uint8_t *)bytes + sent;
        count -= sent;
    }
}

static bool receive(struct fake_nbd_connection *connection, void *bytes, size_t count)
{
    return !count || recv(connection->fd, bytes, count, MSG_WAITALL) == (ssize_t)count;
}

void fake_nbd_hang_up(struct fake_nbd_connection *connection)
{
    shutdown(connection->fd, SHUT_RDWR);
}

static void send_option_reply(struct fake_nbd_connection *connection, uint32_t option,
                              uint32_t type, const void *payload, uint32_t bytes)
{
    struct __attribute__((packed)) {
        uint64_t magic;
        uint32_t option, type, bytes;
    } header = {htobe64(REPLY_MAGIC), htobe32(option), htobe32(type), htobe32(bytes)};

    fake_nbd_send(connection, &header, sizeof(header));
    fake_nbd_send(connection, payload, bytes);
}

static void send_info(struct fake_nbd_connection *connection)
{
    struct fake_nbd_server *server = connection->server;
    struct __attribute__((packed)) {
        uint16_t type;
        uint64_t size;
        uint16_t flags;
    } export = {0, htobe64(server->size), htobe16(server->flags)};
    struct __attribute__((packed)) {
        uint16_t type;
        uint32_t minimum, preferred, maximum;
    } sizes = {htobe16(3), htobe32(server->minimum_block), htobe32(server->preferred_block),
               htobe32(server->maximum_block)};

    send_option_reply(connection, OPTION_GO, REPLY_INFO, &export, sizeof(export));
    if (server->minimum_block) {
        send_option_reply(connection, OPTION_GO, REPLY_INFO, &sizes, sizeof(sizes));
    }
    send_option_reply(connection, OPTION_GO, REPLY_ACK, NULL, 0);
}

static void send_context(struct fake_nbd_connection *connection)
{
    static const char context[] = "\0\0\0\1base:allocation";

    if (!connection->server->no_context) {
        send_option_reply(connection, OPTION_SET_CONTEXT, REPLY_CONTEXT, context,
                          sizeof(context) - 1);
    }
    send_option_reply(connection, OPTION_SET_CONTEXT, REPLY_ACK, NULL, 0);
}

/* Returns true once the client has chosen the export. */
static bool negotiate(struct fake_nbd_connection *connection)
{
    static const char greeting[] = "NBDMAGICIHAVEOPT\0\3";
    uint32_t client_flags;

    fake_nbd_send(connection, greeting, 18);
    if (!receive(connection, &client_flags, sizeof(client_flags))) {
        return false;
    }
    for (;;) {
        struct __attribute__((packed)) {
            uint64_t magic;
            uint32_t option, bytes;
        } header;
        char payload[8192];

        if (!receive(connection, &header, sizeof(header)) ||
            be64toh(header.magic) != OPTION_MAGIC || be32toh(header.bytes) > sizeof(payload) ||
            !receive(connection, payload, be32toh(header.bytes))) {
            return false;
        }
        switch (be32toh(header.option)) {
        case OPTION_ABORT:
            return false;
        case OPTION_STRUCTURED:
            connection->structured = true;
            send_option_reply(connection, OPTION_STRUCTURED, REPLY_ACK, NULL, 0);
            break;
        case OPTION_SET_CONTEXT:
            send_context(connection);
            break;
        case OPTION_GO:
            send_info(connection);
            return true;
        default:
            send_option_reply(connection, be32toh(header.option), REPLY_UNSUPPORTED, NULL, 0);
        }
    }
}

void fake_nbd_reply_simple(struct fake_nbd_connection *connection, uint64_t cookie, uint32_t error)
{
    struct __attribute__((packed)) {
        uint32_t magic, error;
        uint64_t cookie;
    } reply = {htobe32(SIMPLE_MAGIC), htobe32(error), cookie};

    fake_nbd_send(connection, &reply, sizeof(reply));
}

void fake_nbd_reply_chunk(struct fake_nbd_connection *connection, uint64_t cookie, uint16_t flags,
                          uint16_t type, const void *payload, uint32_t bytes)
{
    struct __attribute__((packed)) {
        uint32_t magic;
        uint16_t flags, type;
        uint64_t cookie;
        uint32_t bytes;
    } header = {htobe32(CHUNK_MAGIC), htobe16(flags), htobe16(type), cookie, htobe32(bytes)};

    fake_nbd_send(connection, &header, sizeof(header));
    fake_nbd_send(connection, payload, bytes);
}

void fake_nbd_reply_extents(struct fake_nbd_connection *connection, uint64_t cookie,
                            const uint32_t *numbers, unsigned count)
{
    g_autofree uint32_t *payload = g_new(uint32_t, count + 1);

    payload[0] = htobe32(1);
    for (unsigned i = 0; i < count; i++) {
        payload[i + 1] = htobe32(numbers[i]);
    }
    fake_nbd_reply_chunk(connection, cookie, 1, 5, payload, (count + 1) * 4);
}

static void answer_read(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    struct fake_nbd_server *server = connection->server;
    g_autofree uint8_t *payload = g_malloc(8 + request->bytes);
    uint64_t offset = htobe64(request->offset);

    memcpy(payload, &offset, 8);
    pthread_mutex_lock(&server->lock);
    memcpy(payload + 8, server->data + request->offset, request->bytes);
    pthread_mutex_unlock(&server->lock);
    if (connection->structured) {
        fake_nbd_reply_chunk(connection, request->cookie, 1, 1, payload, 8 + request->bytes);
    } else {
        fake_nbd_reply_simple(connection, request->cookie, 0);
        fake_nbd_send(connection, payload + 8, request->bytes);
    }
}

void fake_nbd_answer(struct fake_nbd_connection *connection, struct fake_nbd_request *request)
{
    struct fake_nbd_server *server = connection->server;
    uint32_t all_data[2] = {request->bytes, 0};

    if (!range_within(request->offset, request->bytes, server->data_bytes)) {
        fake_nbd_reply_simple(connection, request->cookie, EINVAL);
        return;
    }
    switch (request->command) {
    case FAKE_NBD_READ:
        answer_read(connection, request);
        return;
    case FAKE_NBD_EXTENTS:
        fake_nbd_reply_extents(connection, request->cookie, all_data, 2);
        return;
    case FAKE_NBD_WRITE:
        pthread_mutex_lock(&server->lock);
        memcpy(server->data + request->offset, request->payload, request->bytes);
        pthread_mutex_unlock(&server->lock);
        break;
    case FAKE_NBD_ZERO:
        pthread_mutex_lock(&server->lock);
        memset(server->data + request->offset, 0, request->bytes);
        pthread_mutex_unlock(&server->lock);
        break;
    }
    fake_nbd_reply_simple(connection, request->cookie, 0);
}

static bool serve_request(struct fake_nbd_connection *connection)
{
    struct fake_nbd_server *server = connection->server;
    struct __attribute__((packed)) {
        uint32_t magic;
        uint16_t flags, command;
        uint64_t cookie, offset;
        uint32_t bytes;
    } wire;
    g_autofree uint8_t *payload = NULL;
    struct fake_nbd_request request;
    fake_nbd_hook *hook;

    if (!receive(connection, &wire, sizeof(wire)) || be32toh(wire.magic) != REQUEST_MAGIC) {
        return false;
    }
    request = (struct fake_nbd_request){
        .flags = be16toh(wire.flags),
        .command = be16toh(wire.command),
        .cookie = wire.cookie,
        .offset = be64toh(wire.offset),
        .bytes = be32toh(wire.bytes),
    };
    if (request.command == FAKE_NBD_DISCONNECT) {
        return false;
    }
    if (request.command == FAKE_NBD_WRITE) {
        request.payload = payload = g_malloc(request.bytes);
        if (!receive(connection, payload, request.bytes)) {
            return false;
        }
    }
    atomic_fetch_add(&server->counts[request.command & 7], 1);
    if (request.command != FAKE_NBD_FLUSH) {
        server->last_flags = request.flags;
    }
    hook = server->hook;
    if (!hook || !hook(connection, &request)) {
        fake_nbd_answer(connection, &request);
    }
    return true;
}

static void *connection_main(void *data)
{
    struct fake_nbd_connection *connection = data;

    if (!connection->server->silent && negotiate(connection)) {
        while (serve_request(connection)) {
        }
        fake_nbd_hang_up(connection);
    } else if (!connection->server->silent) {
        fake_nbd_hang_up(connection);
    }
    return NULL;
}

static void *listen_main(void *data)
{
    struct fake_nbd_server *server = data;
    struct pollfd fds[2] = {{.fd = server->listen_fd, .events = POLLIN},
                            {.fd = server->stop_fd, .events = POLLIN}};

    for (;;) {
        struct fake_nbd_connection *connection;
        int fd;

        if (poll(fds, 2, -1) < 0 || fds[1].revents) {
            return NULL;
        }
        fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            continue;
        }
        connection = g_new0(struct fake_nbd_connection, 1);
        connection->server = server;
        connection->fd = fd;
        g_assert_cmpuint(server->connection_count, <, FAKE_NBD_CONNECTIONS_MAX);
        server->connections[server->connection_count++] = connection;
        atomic_fetch_add(&server->accepted, 1);
        pthread_create(&connection->thread, NULL, connection_main, connection);
    }
}

struct fake_nbd_server *fake_nbd_server_new(uint64_t bytes)
{
    struct fake_nbd_server *server = g_new0(struct fake_nbd_server, 1);

    server->size = server->data_bytes = bytes;
    server->data = g_malloc0(bytes);
    server->minimum_block = 1;
    server->preferred_block = 4096;
    server->maximum_block = 32 << 20;
    server->flags = FAKE_NBD_HAS_FLAGS | FAKE_NBD_CAN_FLUSH | FAKE_NBD_CAN_FUA | FAKE_NBD_CAN_TRIM |
                    FAKE_NBD_CAN_ZERO | FAKE_NBD_CAN_CACHE | FAKE_NBD_CAN_FAST_ZERO;
    server->folder = g_dir_make_tmp("liveblk-fake-nbd-XXXXXX", NULL);
    g_assert_nonnull(server->folder);
    server->path = g_build_filename(server->folder, "s", NULL);
    server->listen_fd = -1;
    pthread_mutex_init(&server->lock, NULL);
    return server;
}

void fake_nbd_server_start(struct fake_nbd_server *server)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    g_strlcpy(address.sun_path, server->path, sizeof(address.sun_path));
    server->stop_fd = eventfd(0, EFD_CLOEXEC);
    server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(server->listen_fd, >=, 0);
    g_assert_cmpint(bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address)), ==, 0);
    g_assert_cmpint(listen(server->listen_fd, 64), ==, 0);
    pthread_create(&server->thread, NULL, listen_main, server);
}

void fake_nbd_server_stop(struct fake_nbd_server *server)
{
    uint64_t one = 1;

    if (server->listen_fd < 0) {
        return;
    }
    g_assert_cmpint(write(server->stop_fd, &one, sizeof(one)), ==, sizeof(one));
    pthread_join(server->thread, NULL);
    /* Gone for new clients before the old ones notice. */
    g_unlink(server->path);
    close(server->listen_fd);
    close(server->stop_fd);
    server->listen_fd = -1;
    for (unsigned i = 0; i < server->connection_count; i++) {
        fake_nbd_hang_up(server->connections[i]);
        pthread_join(server->connections[i]->thread, NULL);
        close(server->connections[i]->fd);
        g_free(server->connections[i]);
    }
    server->connection_count = 0;
}

void fake_nbd_server_free(struct fake_nbd_server *server)
{
    fake_nbd_server_stop(server);
    g_rmdir(server->folder);
    pthread_mutex_destroy(&server->lock);
    g_free(server->folder);
    g_free(server->path);
    g_free(server->data);
    g_free(server);
}
