/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client of our NBD server from hell. The first byte of an input says how much of it is sensible:
 * 0: nothing, the rest is all that it sends; 1 to 3: it has chosen an export, with simple replies,
 * structured ones or extended headers, and all contexts of it, and the rest is its requests. Others
 * count by their remainder.
 *
 * Nothing may crash or hang; what the server answers to requests is whole replies, whatever they
 * are; and when the client has gone nothing is left of it.
 *
 * With libFuzzer (meson setup -Dfuzz=true, clang): build-fuzz/tests/fuzz/fuzz-nbd CORPUS.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/align.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/thread.h"
#include "server/nbd/connection.h"
#include "server/nbd/exports.h"
#include "server/nbd/protocol.h"
#include "tests/fuzz/fuzz.h"
#include "tests/lib/memory-driver.h"

#define DISK_BYTES MIB
#define ANSWER_MAX (64u << 20) /* more is not looked at */

static const struct nbd_policy policy = {.multi_conn = true};

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

/* ---- What is served -------------------------------------------------------------------------- */

static void add_export(const char *name, bool writable)
{
    struct nbd_export_bitmap bitmap = {.name = "b"};
    const struct nbd_export_options options = {
        .id = name,
        .name = name,
        .target = "vda",
        .description = "A disk",
        .writable = writable,
        .allocation_depth = true,
        .bitmaps = &bitmap,
        .bitmap_count = writable ? 1 : 0,
    };

    require(nbd_export_add(&options, NULL) == 0);
}

static void initialise(void)
{
    memory_drivers_register();
    AUTO(block_options) options =
        block_options_parse("driver=memory,node-name=disk,size=1M", NULL, NULL);
    AUTO(block_node) disk = block_node_open(options, true, NULL);
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", DISK_BYTES, 4 * KIB, NULL);

    memset(memory_disk_data(disk) + 64 * KIB, 0x5a, 256 * KIB);
    dirty_bitmap_set(bitmap, 0, 12 * KIB);
    block_node_add_bitmap(disk, bitmap);
    require(block_device_new("vda", disk, NULL) != NULL);
    add_export("e", true);
    add_export("r", false);
    g_log_set_default_handler(ignore, NULL);
}

/* ---- A sensible beginning -------------------------------------------------------------------- */

static void begin_option(GByteArray *said, uint32_t option, uint32_t bytes)
{
    nbd_append64(said, NBD_OPTION_MAGIC);
    nbd_append32(said, option);
    nbd_append32(said, bytes);
}

static void append_name(GByteArray *said)
{
    nbd_append32(said, 1);
    g_byte_array_append(said, (const guint8 *)"e", 1);
}

static void choose_context(GByteArray *said, uint32_t count, const char *const *names)
{
    uint32_t bytes = 5 + 4;

    for (uint32_t i = 0; i < count; i++) {
        bytes += 4 + (uint32_t)strlen(names[i]);
    }
    begin_option(said, NBD_OPT_SET_META_CONTEXT, bytes);
    append_name(said);
    nbd_append32(said, count);
    for (uint32_t i = 0; i < count; i++) {
        nbd_append32(said, (uint32_t)strlen(names[i]));
        g_byte_array_append(said, (const guint8 *)names[i], (guint)strlen(names[i]));
    }
}

/* mode: 1 to 3, as above. */
static void shake_hands(GByteArray *said, unsigned mode)
{
    static const char *const contexts[] = {NBD_CONTEXT_ALLOCATION, NBD_CONTEXT_ALLOCATION_DEPTH,
                                           NBD_CONTEXT_DIRTY_BITMAP "b"};

    nbd_append32(said, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    if (mode > 1) {
        begin_option(said, mode == 2 ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_EXTENDED_HEADERS, 0);
        choose_context(said, G_N_ELEMENTS(contexts), contexts);
    }
    begin_option(said, NBD_OPT_GO, 5 + 2);
    append_name(said);
    nbd_append16(said, 0);
}

/* ---- The client ------------------------------------------------------------------------------ */

static void *serve(void *data)
{
    nbd_connection_run(data);
    nbd_connection_free(data);
    return NULL;
}

static void receive_some(int fd, GByteArray *heard)
{
    static uint8_t buffer[1 << 20];
    ssize_t received = recv(fd, buffer, sizeof(buffer), 0);

    if (received > 0 && heard->len < ANSWER_MAX) {
        g_byte_array_append(heard, buffer, (guint)received);
    }
}

/* Say all and hear all, until the server hangs up. */
static void talk(int fd, const GByteArray *said, GByteArray *heard)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN | POLLOUT};
    size_t sent = 0;

    for (;;) {
        if (poll(&polled, 1, -1) < 0) {
            continue; /* libFuzzer has timers */
        }
        if (polled.revents & POLLOUT && sent < said->len) {
            ssize_t now =
                send(fd, said->data + sent, said->len - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

            sent = now < 0 && errno != EAGAIN ? said->len : sent + (size_t)MAX(now, 0);
        }
        if (sent == said->len && polled.events & POLLOUT) {
            polled.events = POLLIN;
            shutdown(fd, SHUT_WR);
        }
        guint before = heard->len;
        if (polled.revents & (POLLIN | POLLHUP | POLLERR)) {
            receive_some(fd, heard);
            if (heard->len == before && before < ANSWER_MAX) {
                return;
            }
        }
    }
}

static void converse(const GByteArray *said, GByteArray *heard)
{
    pthread_t thread;
    int fds[2];

    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    struct nbd_connection *connection = nbd_connection_new(fds[0], &policy, NULL, NULL);
    require(thread_create(&thread, serve, connection) == 0);
    talk(fds[1], said, heard);
    close(fds[1]);
    pthread_join(thread, NULL);
}

/* ---- What it hears --------------------------------------------------------------------------- */

/* Where the replies to options end. */
static size_t skip_handshake(const GByteArray *heard)
{
    size_t at = sizeof(struct nbd_greeting);
    uint32_t option = 0, type = 0;

    while (option != NBD_OPT_GO || type != NBD_REP_ACK) {
        require(at + sizeof(struct nbd_option_reply) <= heard->len);
        require(nbd_get64(heard->data + at) == NBD_REPLY_MAGIC);
        option = nbd_get32(heard->data + at + 8);
        type = nbd_get32(heard->data + at + 12);
        require(type < NBD_REP_ERR_UNSUP);
        at += sizeof(struct nbd_option_reply) + nbd_get32(heard->data + at + 16);
    }
    return at;
}

/* How long the reply that begins here is. */
static uint64_t reply_bytes(const uint8_t *reply, size_t left)
{
    require(left >= sizeof(struct nbd_simple_reply));
    switch (nbd_get32(reply)) {
    case NBD_SIMPLE_REPLY_MAGIC:
        return sizeof(struct nbd_simple_reply);
    case NBD_STRUCTURED_REPLY_MAGIC:
        require(left >= sizeof(struct nbd_structured_reply));
        return sizeof(struct nbd_structured_reply) + nbd_get32(reply + 16);
    case NBD_EXTENDED_REPLY_MAGIC:
        require(left >= sizeof(struct nbd_extended_reply));
        return sizeof(struct nbd_extended_reply) + nbd_get64(reply + 24);
    default:
        abort();
    }
}

/* With simple replies only he knows what is data who knows what was asked. */
static void check_replies(const GByteArray *heard, unsigned mode)
{
    size_t at = skip_handshake(heard);

    while (mode > 1 && at < heard->len) {
        uint64_t bytes = reply_bytes(heard->data + at, heard->len - at);

        require(bytes <= heard->len - at);
        at += bytes;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GByteArray) said = g_byte_array_new();
    g_autoptr(GByteArray) heard = g_byte_array_new();
    static bool is_ready;

    if (!is_ready) {
        initialise();
        is_ready = true;
    }
    if (!size) {
        return 0;
    }
    unsigned mode = data[0] % 4;
    if (mode) {
        shake_hands(said, mode);
    }
    g_byte_array_append(said, data + 1, (guint)size - 1);
    converse(said, heard);
    if (mode && heard->len < ANSWER_MAX) {
        check_replies(heard, mode);
    }
    return 0;
}
