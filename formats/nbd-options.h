/* SPDX-License-Identifier: BSD-3-Clause */
/* What the user says of a remote node: where the NBD server is and how to treat it. */
#ifndef LIVEBLK_FORMATS_NBD_OPTIONS_H
#define LIVEBLK_FORMATS_NBD_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/options.h"

/* The most connections a node opens to one server. */
#define NBD_CONNECTIONS_MAX 16

/* The driver's options. Exactly one of server, uri and command says where the server is. */
struct nbd_options {
    struct block_address server;
    char *export_name;
    char *uri;
    char **command;  /* argv of a server to run by systemd socket activation */
    char *tls_creds; /* ID of credentials, which stand for the four after `tls` */
    int tls;         /* a LIBNBD_TLS_* value */
    char *tls_certificates;
    char *tls_psk_file;
    char *tls_username;
    char *tls_hostname;
    bool tls_verify_peer;
    uint64_t reconnect_delay; /* seconds */
    uint64_t open_timeout;    /* seconds; 0: one attempt */
    uint64_t request_timeout; /* seconds; 0: none */
    uint64_t connections;     /* 0: as the server allows */
};

extern const struct block_option nbd_option_table[];

/* Check what the table cannot: options that exclude or need each other. Returns a negative errno.
 */
int nbd_options_check(const struct nbd_options *options, GError **error);

/* Let the members about TLS say what the credentials are, if there are any. Returns a negative
 * errno. */
int nbd_options_find_credentials(struct nbd_options *options, GError **error);

/* The NBD URI (or, of a command, the command line) for people; the caller frees. */
char *nbd_options_describe(const struct nbd_options *options);

/* True if a lost connection can be made again: not for a command or a passed descriptor. */
bool nbd_options_can_reconnect(const struct nbd_options *options);

#endif
