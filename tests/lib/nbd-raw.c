/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/nbd-raw.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/nbd/exports.h"
#include "server/nbd/protocol.h"
#include "server/nbd/server.h"

/* No reply of these tests is longer. */
#define REPLY_MAX (64u << 20)

/* ---- Bytes ----------------------------------------------------------------------------------- */

bool nbd_raw_send(struct nbd_raw *client, const void *data, size_t bytes)
{
    while (bytes) {
        ssize_t sent = send(client->fd, data, bytes, MSG_NOSIGNAL);

        if (sent < 0 && errno != EINTR) {
            return false;
        }
        data = (const uint8_t *)data + MAX(sent, 0);
        bytes -= (size_t)MAX(sent, 0);
    }
    return true;
}

bool nbd_raw_receive(struct nbd_raw *client, void *buffer, size_t bytes)
{
    while (bytes) {
        ssize_t received = recv(client->fd, buffer, bytes, 0);

        if (received == 0 || (received < 0 && errno != EINTR)) {
            return false;
        }
        buffer = (uint8_t *)buffer + MAX(received, 0);
        bytes -= (size_t)MAX(received, 0);
    }
    return true;
}

/* So many bytes after what the array has. */
static bool receive_into(struct nbd_raw *client, GByteArray *array, size_t bytes)
{
    guint begin = array->len;

    g_assert_cmpuint(bytes, <=, REPLY_MAX);
    g_byte_array_set_size(array, begin + (guint)bytes);
    return !bytes || nbd_raw_receive(client, array->data + begin, bytes);
}

/* ---- Handshake ------------------------------------------------------------------------------- */

struct nbd_raw nbd_raw_connect(const char *path)
{
    struct nbd_raw client = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    struct nbd_greeting greeting;
    uint32_t flags = GUINT32_TO_BE(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);

    g_strlcpy(there.sun_path, path, sizeof(there.sun_path));
    if (connect(client.fd, (const struct sockaddr *)&there, sizeof(there)) < 0 ||
        !nbd_raw_receive(&client, &greeting, sizeof(greeting)) ||
        !nbd_raw_send(&client, &flags, sizeof(flags))) {
        nbd_raw_close(&client);
        return client;
    }
    g_assert_cmphex(GUINT64_FROM_BE(greeting.magic), ==, NBD_MAGIC);
    g_assert_cmphex(GUINT64_FROM_BE(greeting.option_magic), ==, NBD_OPTION_MAGIC);
    return client;
}

void nbd_raw_close(struct nbd_raw *client)
{
    if (client->fd >= 0) {
        close(client->fd);
    }
    client->fd = -1;
}

bool nbd_raw_send_option(struct nbd_raw *client, uint32_t option, const void *data, uint32_t bytes)
{
    const struct nbd_option header = {
        .magic = GUINT64_TO_BE(NBD_OPTION_MAGIC),
        .option = GUINT32_TO_BE(option),
        .length = GUINT32_TO_BE(bytes),
    };

    return nbd_raw_send(client, &header, sizeof(header)) && nbd_raw_send(client, data, bytes);
}

uint32_t nbd_raw_option_reply(struct nbd_raw *client, uint32_t option, GByteArray *data)
{
    g_autoptr(GByteArray) waste = g_byte_array_new();
    struct nbd_option_reply header;

    if (!nbd_raw_receive(client, &header, sizeof(header)) ||
        !receive_into(client, data ? data : waste, GUINT32_FROM_BE(header.length))) {
        return 0;
    }
    g_assert_cmphex(GUINT64_FROM_BE(header.magic), ==, NBD_REPLY_MAGIC);
    g_assert_cmpuint(GUINT32_FROM_BE(header.option), ==, option);
    return GUINT32_FROM_BE(header.type);
}

uint32_t nbd_raw_option(struct nbd_raw *client, uint32_t option, const void *data, uint32_t bytes,
                        GByteArray *replies)
{
    uint32_t type = nbd_raw_send_option(client, option, data, bytes)
                        ? nbd_raw_option_reply(client, option, replies)
                        : 0;

    while (type == NBD_REP_SERVER || type == NBD_REP_INFO || type == NBD_REP_META_CONTEXT) {
        type = nbd_raw_option_reply(client, option, replies);
    }
    return type;
}

bool nbd_raw_agree(struct nbd_raw *client, enum nbd_raw_mode mode)
{
    uint32_t option =
        mode == NBD_RAW_EXTENDED ? NBD_OPT_EXTENDED_HEADERS : NBD_OPT_STRUCTURED_REPLY;
    uint32_t type =
        mode == NBD_RAW_SIMPLE ? NBD_REP_ACK : nbd_raw_option(client, option, NULL, 0, NULL);

    g_assert_true(type == NBD_REP_ACK || type == 0);
    client->mode = mode;
    return type == NBD_REP_ACK;
}

static void append_string(GByteArray *message, const char *text)
{
    nbd_append32(message, (uint32_t)strlen(text));
    g_byte_array_append(message, (const guint8 *)text, (guint)strlen(text));
}

uint32_t nbd_raw_context(struct nbd_raw *client, uint32_t option, const char *name,
                         const char *query, GByteArray *replies)
{
    g_autoptr(GByteArray) data = g_byte_array_new();

    append_string(data, name);
    nbd_append32(data, query ? 1 : 0);
    if (query) {
        append_string(data, query);
    }
    return nbd_raw_option(client, option, data->data, data->len, replies);
}

/* NBD_INFO_EXPORT is there, wherever. */
static void take_export_info(struct nbd_raw *client, const GByteArray *info)
{
    const uint8_t *tail = info->data + info->len - 12; /* it comes last */

    g_assert_cmpuint(info->len, >=, 12);
    g_assert_cmpuint(nbd_get16(tail), ==, NBD_INFO_EXPORT);
    client->length = nbd_get64(tail + 2);
    client->flags = nbd_get16(tail + 10);
}

uint32_t nbd_raw_go(struct nbd_raw *client, const char *name)
{
    g_autoptr(GByteArray) data = g_byte_array_new();
    g_autoptr(GByteArray) info = g_byte_array_new();
    uint32_t type;

    append_string(data, name);
    nbd_append16(data, 0);
    if (!nbd_raw_send_option(client, NBD_OPT_GO, data->data, data->len)) {
        return 0;
    }
    while ((type = nbd_raw_option_reply(client, NBD_OPT_GO, info)) == NBD_REP_INFO) {
    }
    if (type == NBD_REP_ACK) {
        take_export_info(client, info);
    }
    return type;
}

struct nbd_raw nbd_raw_open(const char *path, const char *name, enum nbd_raw_mode mode)
{
    struct nbd_raw client = nbd_raw_connect(path);

    if (client.fd < 0 || !nbd_raw_agree(&client, mode) ||
        (mode != NBD_RAW_SIMPLE &&
         !nbd_raw_context(&client, NBD_OPT_SET_META_CONTEXT, name, "base:allocation", NULL)) ||
        nbd_raw_go(&client, name) != NBD_REP_ACK) {
        nbd_raw_close(&client);
    }
    return client;
}

/* ---- Requests -------------------------------------------------------------------------------- */

bool nbd_raw_request(struct nbd_raw *client, uint16_t type, uint16_t flags, uint64_t cookie,
                     uint64_t offset, uint64_t length)
{
    g_autoptr(GByteArray) message = g_byte_array_new();

    nbd_append32(message,
                 client->mode == NBD_RAW_EXTENDED ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    nbd_append16(message, flags);
    nbd_append16(message, type);
    nbd_append64(message, cookie);
    nbd_append64(message, offset);
    if (client->mode == NBD_RAW_EXTENDED) {
        nbd_append64(message, length);
    } else {
        nbd_append32(message, (uint32_t)length);
    }
    return nbd_raw_send(client, message->data, message->len);
}

void nbd_raw_reply_clear(struct nbd_raw_reply *reply)
{
    g_clear_pointer(&reply->payload, g_byte_array_unref);
}

static bool receive_chunk(struct nbd_raw *client, struct nbd_raw_reply *reply)
{
    uint8_t header[sizeof(struct nbd_extended_reply) - sizeof(uint32_t)];
    bool is_extended = client->mode == NBD_RAW_EXTENDED;
    size_t size =
        (is_extended ? sizeof(struct nbd_extended_reply) : sizeof(struct nbd_structured_reply)) -
        sizeof(uint32_t);

    if (!nbd_raw_receive(client, header, size)) {
        return false;
    }
    reply->is_last = nbd_get16(header) & NBD_REPLY_FLAG_DONE;
    reply->type = nbd_get16(header + 2);
    memcpy(&reply->cookie, header + 4, sizeof(reply->cookie));
    reply->cookie = GUINT64_FROM_BE(reply->cookie);
    reply->payload = g_byte_array_new();
    if (!receive_into(client, reply->payload,
                      is_extended ? nbd_get64(header + 20) : nbd_get32(header + 12))) {
        return false;
    }
    if (reply->type == NBD_REPLY_TYPE_ERROR) {
        reply->error = nbd_get32(reply->payload->data);
        g_assert_cmpuint(reply->error, !=, 0);
        g_assert_cmpuint(reply->payload->len, ==, 6u + nbd_get16(reply->payload->data + 4));
    }
    return true;
}

bool nbd_raw_reply(struct nbd_raw *client, struct nbd_raw_reply *reply)
{
    uint8_t simple[12];
    uint32_t magic;

    *reply = (struct nbd_raw_reply){.is_last = true};
    if (!nbd_raw_receive(client, &magic, sizeof(magic))) {
        return false;
    }
    magic = GUINT32_FROM_BE(magic);
    reply->is_simple = magic == NBD_SIMPLE_REPLY_MAGIC;
    if (!reply->is_simple) {
        g_assert_cmphex(magic, ==,
                        client->mode == NBD_RAW_EXTENDED ? NBD_EXTENDED_REPLY_MAGIC
                                                         : NBD_STRUCTURED_REPLY_MAGIC);
        g_assert_cmpuint(client->mode, !=, NBD_RAW_SIMPLE);
        return receive_chunk(client, reply) || (nbd_raw_reply_clear(reply), false);
    }
    g_assert_cmpuint(client->mode, !=, NBD_RAW_EXTENDED);
    if (!nbd_raw_receive(client, simple, sizeof(simple))) {
        return false;
    }
    reply->error = nbd_get32(simple);
    reply->cookie = nbd_get64(simple + 4);
    return true;
}

/* A chunk of a read goes to its place; returns how many bytes it has. */
static uint32_t place_chunk(const GByteArray *payload, bool is_hole, uint8_t *buffer,
                            uint64_t offset, uint32_t bytes)
{
    uint64_t at = nbd_get64(payload->data) - offset;
    uint32_t count = is_hole ? nbd_get32(payload->data + 8) : payload->len - 8;

    g_assert_cmpuint(count, >, 0);
    g_assert_true(at <= bytes && count <= bytes - at);
    if (is_hole) {
        memset(buffer + at, 0, count);
    } else {
        memcpy(buffer + at, payload->data + 8, count);
    }
    return count;
}

static int read_simple(struct nbd_raw *client, void *buffer, uint32_t bytes)
{
    struct nbd_raw_reply reply;

    if (!nbd_raw_reply(client, &reply)) {
        return -1;
    }
    return reply.error ? (int)reply.error : nbd_raw_receive(client, buffer, bytes) ? 0 : -1;
}

int nbd_raw_read(struct nbd_raw *client, void *buffer, uint64_t offset, uint32_t bytes)
{
    struct nbd_raw_reply reply = {.is_last = false};
    uint32_t done = 0, error = 0;

    if (!nbd_raw_request(client, NBD_CMD_READ, 0, offset, offset, bytes)) {
        return -1;
    }
    if (client->mode == NBD_RAW_SIMPLE) {
        return read_simple(client, buffer, bytes);
    }
    while (!reply.is_last) {
        if (!nbd_raw_reply(client, &reply)) {
            return -1;
        }
        g_assert_false(reply.is_simple);
        g_assert_cmpuint(reply.cookie, ==, offset);
        error = error ? error : reply.error;
        if (reply.type == NBD_REPLY_TYPE_OFFSET_DATA || reply.type == NBD_REPLY_TYPE_OFFSET_HOLE) {
            done += place_chunk(reply.payload, reply.type == NBD_REPLY_TYPE_OFFSET_HOLE, buffer,
                                offset, bytes);
        }
        nbd_raw_reply_clear(&reply);
    }
    g_assert_true(error || done == bytes);
    return (int)error;
}

static int take_answer(struct nbd_raw *client, uint64_t cookie)
{
    struct nbd_raw_reply reply;

    if (!nbd_raw_reply(client, &reply)) {
        return -1;
    }
    g_assert_true(reply.is_last);
    g_assert_cmpuint(reply.cookie, ==, cookie);
    nbd_raw_reply_clear(&reply);
    return (int)reply.error;
}

int nbd_raw_write(struct nbd_raw *client, const void *buffer, uint64_t offset, uint32_t bytes)
{
    uint16_t flags = client->mode == NBD_RAW_EXTENDED ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    return nbd_raw_request(client, NBD_CMD_WRITE, flags, offset, offset, bytes) &&
                   nbd_raw_send(client, buffer, bytes)
               ? take_answer(client, offset)
               : -1;
}

int nbd_raw_command(struct nbd_raw *client, uint16_t type, uint16_t flags, uint64_t offset,
                    uint64_t bytes)
{
    return nbd_raw_request(client, type, flags, offset, offset, bytes) ? take_answer(client, offset)
                                                                       : -1;
}

/* ---- Servers --------------------------------------------------------------------------------- */

void nbd_raw_start_server(const char *id, const char *path)
{
    g_autoptr(GError) error = NULL;
    const struct nbd_server_options options = {
        .id = id,
        .address = {.kind = SOCKET_ADDRESS_UNIX, .path = path},
    };

    nbd_server_start(&options, &error);
    g_assert_no_error(error);
}

void nbd_raw_add_export(const char *id, const char *target, bool writable)
{
    g_autoptr(GError) error = NULL;
    const struct nbd_export_options options = {
        .id = id, .target = target, .name = id, .writable = writable};

    nbd_export_add(&options, &error);
    g_assert_no_error(error);
}
