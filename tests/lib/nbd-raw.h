/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client for our own NBD servers that says just what a test tells it, right or wrong, and the
 * servers that it talks to. Where the server's bytes make no sense the test fails; where it has
 * hung up, functions say so.
 */
#ifndef LIVEBLK_TESTS_LIB_NBD_RAW_H
#define LIVEBLK_TESTS_LIB_NBD_RAW_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum nbd_raw_mode { NBD_RAW_SIMPLE, NBD_RAW_STRUCTURED, NBD_RAW_EXTENDED };

/* A client; all its numbers are of this machine's byte order. */
struct nbd_raw {
    int fd;
    enum nbd_raw_mode mode;
    uint64_t length; /* of the export it is in */
    uint16_t flags;
};

/* Connect to a UNIX socket and greet. -1 as fd: the server has hung up. */
struct nbd_raw nbd_raw_connect(const char *path);
void nbd_raw_close(struct nbd_raw *client);

/* All of it; false: the server has hung up. */
bool nbd_raw_send(struct nbd_raw *client, const void *data, size_t bytes);
bool nbd_raw_receive(struct nbd_raw *client, void *buffer, size_t bytes);

/* ---- Handshake ------------------------------------------------------------------------------- */

bool nbd_raw_send_option(struct nbd_raw *client, uint32_t option, const void *data, uint32_t bytes);
/* The next reply to it: its type, 0 if the server has hung up. data: what it says, appended; NULL:
 * it does not matter. */
uint32_t nbd_raw_option_reply(struct nbd_raw *client, uint32_t option, GByteArray *data);
/* Send one and take all replies: the last one's type; what all say, one after the other. */
uint32_t nbd_raw_option(struct nbd_raw *client, uint32_t option, const void *data, uint32_t bytes,
                        GByteArray *replies);

/* Structured replies, or extended headers; nothing for NBD_RAW_SIMPLE. It must be accepted. */
bool nbd_raw_agree(struct nbd_raw *client, enum nbd_raw_mode mode);
/* NBD_OPT_SET_META_CONTEXT with one query, or LIST. The last reply's type. */
uint32_t nbd_raw_context(struct nbd_raw *client, uint32_t option, const char *name,
                         const char *query, GByteArray *replies);
/* NBD_OPT_GO: the last reply's type. */
uint32_t nbd_raw_go(struct nbd_raw *client, const char *name);

/* Connected to this export in this mode, with base:allocation if the mode has contexts; fd -1:
 * the server has hung up, or does not have it. */
struct nbd_raw nbd_raw_open(const char *path, const char *name, enum nbd_raw_mode mode);

/* ---- Requests -------------------------------------------------------------------------------- */

struct nbd_raw_reply {
    bool is_simple, is_last;
    uint16_t type; /* of a chunk */
    uint64_t cookie;
    uint32_t error;
    GByteArray *payload; /* of a chunk; free with nbd_raw_reply_clear */
};

bool nbd_raw_request(struct nbd_raw *client, uint16_t type, uint16_t flags, uint64_t cookie,
                     uint64_t offset, uint64_t length);
/* A simple reply, without data, or one chunk. False: the server has hung up. */
bool nbd_raw_reply(struct nbd_raw *client, struct nbd_raw_reply *reply);
void nbd_raw_reply_clear(struct nbd_raw_reply *reply);

/* Whole requests, nothing else being under way: 0, a positive error as NBD has it, or -1: the
 * server has hung up. A read's chunks must be its range, each byte once. */
int nbd_raw_read(struct nbd_raw *client, void *buffer, uint64_t offset, uint32_t bytes);
int nbd_raw_write(struct nbd_raw *client, const void *buffer, uint64_t offset, uint32_t bytes);
/* Any other that is answered with success alone. */
int nbd_raw_command(struct nbd_raw *client, uint16_t type, uint16_t flags, uint64_t offset,
                    uint64_t bytes);

/* ---- Servers --------------------------------------------------------------------------------- */

/* A server of this ID on a UNIX socket, and an export under its ID; they must work. */
void nbd_raw_start_server(const char *id, const char *path);
void nbd_raw_add_export(const char *id, const char *target, bool writable);

#endif
