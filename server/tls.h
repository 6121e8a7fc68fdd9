/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS for what listens: credentials, and sessions on a connected socket. GnuTLS does the work. */
#ifndef LIVEBLK_SERVER_TLS_H
#define LIVEBLK_SERVER_TLS_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "block/cleanup.h"

struct tls_credentials;
struct tls_session;

enum tls_kind {
    TLS_X509, /* ca-cert.pem, server-cert.pem, server-key.pem, and ca-crl.pem if there is one */
    TLS_PSK,  /* keys.psk, lines USER:HEXADECIMAL */
    TLS_ANON, /* neither side says who it is */
};

struct tls_options {
    enum tls_kind kind;
    const char *directory; /* that has the files; may be NULL for TLS_ANON */
    bool is_client;        /* the other end: such credentials cannot serve */
    bool verify_peer;      /* x509: clients must have a certificate of that authority */
    /* x509: refuse certificates that are not valid now, or are not the authority's, or are for
     * something else. */
    bool sanity_check;
    const char *username; /* psk, of a client: whose key it uses */
    const char *priority; /* GnuTLS's priority string; NULL: the system's default */
    const char *password; /* of the key; NULL: it has none */
};

/* Load the files, now. NULL with the error set. Any thread. A new reference. */
struct tls_credentials *tls_credentials_new(const struct tls_options *options, GError **error);
struct tls_credentials *tls_credentials_ref(struct tls_credentials *credentials);
void tls_credentials_unref(struct tls_credentials *credentials);
DEFINE_AUTO(tls_credentials, tls_credentials_unref)
bool tls_credentials_is_client(const struct tls_credentials *credentials);

/*
 * Shake hands as the server on a connected socket, which stays the caller's; blocks, for ever if
 * the client likes: who shuts the socket down ends it. NULL with the error set.
 */
struct tls_session *tls_serve(struct tls_credentials *credentials, int fd, GError **error);

/*
 * Who the client is: its certificate's distinguished name, or the user name of its key; NULL: it
 * has not said. Borrowed.
 */
const char *tls_peer(const struct tls_session *session);

/* One thread may receive while another sends. As recv and a whole send: a negative errno. */
ssize_t tls_receive(struct tls_session *session, void *buffer, size_t bytes);
int tls_send(struct tls_session *session, const struct iovec *parts, size_t count);

/* Say that nothing more comes, without waiting for an answer, and free. */
void tls_end(struct tls_session *session);

#endif
