/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include "block/error.h"

/* What both kinds without certificates need that GnuTLS's default leaves out. */
#define PRIORITY_PSK  "+ECDHE-PSK:+DHE-PSK:+PSK"
#define PRIORITY_ANON "+ANON-ECDH:+ANON-DH"

struct tls_credentials {
    _Atomic unsigned references;
    enum tls_kind kind;
    bool is_client, verify_peer;
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_server_credentials_t psk;
    gnutls_anon_server_credentials_t anon;
};

struct tls_session {
    gnutls_session_t session;
    struct tls_credentials *credentials;
    char *peer;
};

/* ---- Credentials ----------------------------------------------------------------------------- */

static int fail(GError **error, int status, const char *what, const char *name)
{
    return block_error(error, EINVAL, "%s '%s': %s", what, name, gnutls_strerror(status));
}

static char *path_of(const struct tls_options *options, const char *name)
{
    return g_build_filename(options->directory, name, NULL);
}

static int load_authority(struct tls_credentials *credentials, const struct tls_options *options,
                          GError **error)
{
    g_autofree char *authority = path_of(options, "ca-cert.pem");
    g_autofree char *revoked = path_of(options, "ca-crl.pem");
    int status =
        gnutls_certificate_set_x509_trust_file(credentials->x509, authority, GNUTLS_X509_FMT_PEM);

    if (status < 0) {
        return fail(error, status, "Could not load the certificate authority", authority);
    }
    if (g_file_test(revoked, G_FILE_TEST_EXISTS)) {
        status =
            gnutls_certificate_set_x509_crl_file(credentials->x509, revoked, GNUTLS_X509_FMT_PEM);
    }
    return status < 0 ? fail(error, status, "Could not load the revoked certificates", revoked) : 0;
}

static int load_certificate(struct tls_credentials *credentials, const struct tls_options *options,
                            GError **error)
{
    const char *side = options->is_client ? "client" : "server";
    g_autofree char *certificate_name = g_strdup_printf("%s-cert.pem", side);
    g_autofree char *key_name = g_strdup_printf("%s-key.pem", side);
    g_autofree char *certificate = path_of(options, certificate_name);
    g_autofree char *key = path_of(options, key_name);

    if (options->is_client && !g_file_test(certificate, G_FILE_TEST_EXISTS)) {
        return 0;
    }
    int status = gnutls_certificate_set_x509_key_file2(credentials->x509, certificate, key,
                                                       GNUTLS_X509_FMT_PEM, options->password, 0);
    return status < 0
               ? fail(error, status, "Could not load the certificate and its key", certificate)
               : 0;
}

/* What a certificate that does not verify lacks. */
static const char *problem(unsigned problems)
{
    return problems & GNUTLS_CERT_REVOKED            ? "it was revoked"
           : problems & GNUTLS_CERT_EXPIRED          ? "it has expired"
           : problems & GNUTLS_CERT_NOT_ACTIVATED    ? "it is not valid yet"
           : problems & GNUTLS_CERT_SIGNER_NOT_FOUND ? "it is of an unknown authority"
           : problems & GNUTLS_CERT_PURPOSE_MISMATCH ? "it is for another purpose"
                                                     : "it does not verify";
}

/* Our own certificate as the other side will see it. */
static int verify_own(struct tls_credentials *credentials, gnutls_x509_crt_t *chain, unsigned count,
                      const char *directory, GError **error)
{
    gnutls_x509_trust_list_t trust = NULL;
    gnutls_typed_vdata_st purpose = {
        .type = GNUTLS_DT_KEY_PURPOSE_OID,
        .data = (unsigned char *)(uintptr_t)(credentials->is_client ? GNUTLS_KP_TLS_WWW_CLIENT
                                                                    : GNUTLS_KP_TLS_WWW_SERVER),
    };
    unsigned problems = 0;

    gnutls_certificate_get_trust_list(credentials->x509, &trust);
    int status =
        gnutls_x509_trust_list_verify_crt2(trust, chain, count, &purpose, 1, 0, &problems, NULL);
    if (status < 0) {
        return fail(error, status, "Could not check the certificate in", directory);
    }
    return problems ? block_error(error, EINVAL, "The %s's certificate in '%s' cannot be used: %s",
                                  credentials->is_client ? "client" : "server", directory,
                                  problem(problems))
                    : 0;
}

static int check_own(struct tls_credentials *credentials, const char *directory, GError **error)
{
    gnutls_x509_crt_t *chain = NULL;
    unsigned count = 0;
    int status = gnutls_certificate_get_x509_crt(credentials->x509, 0, &chain, &count);

    if (status == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) {
        return 0; /* a client without one */
    }
    if (status < 0) {
        return fail(error, status, "Could not look at the certificate in", directory);
    }
    status = verify_own(credentials, chain, count, directory, error);
    for (unsigned i = 0; i < count; i++) {
        gnutls_x509_crt_deinit(chain[i]);
    }
    gnutls_free(chain);
    return status;
}

static int load_x509(struct tls_credentials *credentials, const struct tls_options *options,
                     GError **error)
{
    if (gnutls_certificate_allocate_credentials(&credentials->x509) < 0) {
        return block_error(error, ENOMEM, "There is no memory for TLS credentials");
    }
    gnutls_certificate_set_known_dh_params(credentials->x509, GNUTLS_SEC_PARAM_MEDIUM);
    int status = load_authority(credentials, options, error);
    if (status == 0) {
        status = load_certificate(credentials, options, error);
    }
    return status == 0 && options->sanity_check ? check_own(credentials, options->directory, error)
                                                : status;
}

/* A client's key is read by who connects with it. */
static int check_user(const char *keys, const char *username, GError **error)
{
    g_autofree char *text = NULL;

    if (!g_file_get_contents(keys, &text, NULL, error)) {
        return -EIO;
    }
    g_autofree char *start = g_strdup_printf("%s:", username);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    memset(text, 0, strlen(text));
    bool found = false;
    for (char **line = lines; *line; line++) {
        found |= g_str_has_prefix(*line, start);
        memset(*line, 0, strlen(*line));
    }
    return found ? 0
                 : block_error(error, ENOENT, "The file '%s' has no key of user '%s'", keys,
                               username);
}

static int load_psk(struct tls_credentials *credentials, const struct tls_options *options,
                    GError **error)
{
    g_autofree char *keys = path_of(options, "keys.psk");

    if (!g_file_test(keys, G_FILE_TEST_IS_REGULAR)) {
        return block_error(error, ENOENT, "There is no file '%s' with keys", keys);
    }
    if (options->is_client) {
        return check_user(keys, options->username, error);
    }
    if (gnutls_psk_allocate_server_credentials(&credentials->psk) < 0) {
        return block_error(error, ENOMEM, "There is no memory for TLS credentials");
    }
    gnutls_psk_set_server_known_dh_params(credentials->psk, GNUTLS_SEC_PARAM_MEDIUM);
    int status = gnutls_psk_set_server_credentials_file(credentials->psk, keys);
    return status < 0 ? fail(error, status, "Could not load the keys", keys) : 0;
}

static int load_anon(struct tls_credentials *credentials, GError **error)
{
    if (gnutls_anon_allocate_server_credentials(&credentials->anon) < 0) {
        return block_error(error, ENOMEM, "There is no memory for TLS credentials");
    }
    gnutls_anon_set_server_known_dh_params(credentials->anon, GNUTLS_SEC_PARAM_MEDIUM);
    return 0;
}

static int load(struct tls_credentials *credentials, const struct tls_options *options,
                GError **error)
{
    if (options->kind != TLS_ANON && !options->directory) {
        return block_error(error, EINVAL, "The directory with the TLS credentials is missing");
    }
    switch (options->kind) {
    case TLS_X509:
        return load_x509(credentials, options, error);
    case TLS_PSK:
        return load_psk(credentials, options, error);
    case TLS_ANON:
        return load_anon(credentials, error);
    }
    return -EINVAL;
}

static int set_priority(struct tls_credentials *credentials, const char *priority, GError **error)
{
    const char *added = credentials->kind == TLS_PSK    ? PRIORITY_PSK
                        : credentials->kind == TLS_ANON ? PRIORITY_ANON
                                                        : NULL;
    g_autofree char *text = added ? g_strdup_printf("%s:%s", priority ? priority : "NORMAL", added)
                                  : g_strdup(priority);
    int status = gnutls_priority_init(&credentials->priority, text, NULL);

    return status < 0 ? fail(error, status, "Unable to set TLS session priority",
                             priority ? priority : "default")
                      : 0;
}

struct tls_credentials *tls_credentials_new(const struct tls_options *options, GError **error)
{
    struct tls_credentials *credentials = g_new0(struct tls_credentials, 1);

    atomic_init(&credentials->references, 1);
    credentials->kind = options->kind;
    credentials->is_client = options->is_client;
    credentials->verify_peer = options->verify_peer;
    if (set_priority(credentials, options->priority, error) < 0 ||
        load(credentials, options, error) < 0) {
        tls_credentials_unref(credentials);
        return NULL;
    }
    return credentials;
}

struct tls_credentials *tls_credentials_ref(struct tls_credentials *credentials)
{
    atomic_fetch_add(&credentials->references, 1);
    return credentials;
}

void tls_credentials_unref(struct tls_credentials *credentials)
{
    if (!credentials || atomic_fetch_sub(&credentials->references, 1) != 1) {
        return;
    }
    if (credentials->priority) {
        gnutls_priority_deinit(credentials->priority);
    }
    if (credentials->x509) {
        gnutls_certificate_free_credentials(credentials->x509);
    }
    if (credentials->psk) {
        gnutls_psk_free_server_credentials(credentials->psk);
    }
    if (credentials->anon) {
        gnutls_anon_free_server_credentials(credentials->anon);
    }
    g_free(credentials);
}

bool tls_credentials_is_client(const struct tls_credentials *credentials)
{
    return credentials->is_client;
}

/* ---- The handshake --------------------------------------------------------------------------- */

static int set_credentials(gnutls_session_t session, const struct tls_credentials *credentials)
{
    switch (credentials->kind) {
    case TLS_X509:
        gnutls_certificate_server_set_request(
            session, credentials->verify_peer ? GNUTLS_CERT_REQUIRE : GNUTLS_CERT_IGNORE);
        return gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->x509);
    case TLS_PSK:
        return gnutls_credentials_set(session, GNUTLS_CRD_PSK, credentials->psk);
    case TLS_ANON:
        return gnutls_credentials_set(session, GNUTLS_CRD_ANON, credentials->anon);
    }
    return GNUTLS_E_INVALID_REQUEST;
}

static int shake_hands(gnutls_session_t session)
{
    int status;

    do {
        status = gnutls_handshake(session);
    } while (status < 0 && !gnutls_error_is_fatal(status));
    return status;
}

static char *certificate_name(gnutls_session_t session)
{
    unsigned count = 0;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);
    gnutls_x509_crt_t certificate;
    gnutls_datum_t name = {NULL, 0};
    char *copy = NULL;

    if (!chain || !count || gnutls_x509_crt_init(&certificate) < 0) {
        return NULL;
    }
    if (gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) >= 0 &&
        gnutls_x509_crt_get_dn3(certificate, &name, GNUTLS_X509_DN_FLAG_COMPAT) >= 0) {
        copy = g_strndup((const char *)name.data, name.size);
        gnutls_free(name.data);
    }
    gnutls_x509_crt_deinit(certificate);
    return copy;
}

/* The client is who it must be; its name. */
static int check_peer(struct tls_session *tls, GError **error)
{
    unsigned problems = 0;

    if (tls->credentials->kind == TLS_PSK) {
        tls->peer = g_strdup(gnutls_psk_server_get_username(tls->session));
        return 0;
    }
    if (tls->credentials->kind == TLS_ANON || !tls->credentials->verify_peer) {
        return 0;
    }
    int status = gnutls_certificate_verify_peers2(tls->session, &problems);
    if (status < 0 || problems) {
        return block_error(error, EACCES, "The client's certificate is not valid: %s",
                           status < 0 ? gnutls_strerror(status) : problem(problems));
    }
    tls->peer = certificate_name(tls->session);
    return tls->peer ? 0 : block_error(error, EACCES, "The client's certificate has no name");
}

static int begin(struct tls_session *tls, int fd, GError **error)
{
    int status = gnutls_init(&tls->session, GNUTLS_SERVER | GNUTLS_NO_SIGNAL);

    if (status >= 0) {
        status = gnutls_priority_set(tls->session, tls->credentials->priority);
    }
    if (status >= 0) {
        status = set_credentials(tls->session, tls->credentials);
    }
    if (status >= 0) {
        gnutls_transport_set_int(tls->session, fd);
        status = shake_hands(tls->session);
    }
    return status < 0
               ? block_error(error, EPROTO, "TLS handshake failed: %s", gnutls_strerror(status))
               : check_peer(tls, error);
}

struct tls_session *tls_serve(struct tls_credentials *credentials, int fd, GError **error)
{
    struct tls_session *tls = g_new0(struct tls_session, 1);

    tls->credentials = tls_credentials_ref(credentials);
    if (begin(tls, fd, error) < 0) {
        tls_end(tls);
        return NULL;
    }
    return tls;
}

const char *tls_peer(const struct tls_session *session)
{
    return session->peer;
}

/* ---- Data ------------------------------------------------------------------------------------ */

ssize_t tls_receive(struct tls_session *session, void *buffer, size_t bytes)
{
    ssize_t received;

    do {
        received = gnutls_record_recv(session->session, buffer, bytes);
    } while (received == GNUTLS_E_INTERRUPTED || received == GNUTLS_E_AGAIN);
    if (received == GNUTLS_E_PREMATURE_TERMINATION) {
        return 0; /* many clients just close the socket; the protocol has an end of its own */
    }
    return received < 0 ? -EIO : received;
}

static int send_part(gnutls_session_t session, const uint8_t *data, size_t bytes)
{
    while (bytes) {
        ssize_t sent = gnutls_record_send(session, data, bytes);

        if (sent < 0 && sent != GNUTLS_E_INTERRUPTED && sent != GNUTLS_E_AGAIN) {
            return -EIO;
        }
        data += sent < 0 ? 0 : sent;
        bytes -= sent < 0 ? 0 : (size_t)sent;
    }
    return 0;
}

/* Corked, so that a header does not become a record of its own. */
int tls_send(struct tls_session *session, const struct iovec *parts, size_t count)
{
    int status = 0;

    gnutls_record_cork(session->session);
    for (size_t i = 0; i < count && status == 0; i++) {
        status = send_part(session->session, parts[i].iov_base, parts[i].iov_len);
    }
    int sent = gnutls_record_uncork(session->session, GNUTLS_RECORD_WAIT);
    return status < 0 ? status : sent < 0 ? -EIO : 0;
}

void tls_end(struct tls_session *session)
{
    if (session->session) {
        gnutls_bye(session->session, GNUTLS_SHUT_WR);
        gnutls_deinit(session->session);
    }
    tls_credentials_unref(session->credentials);
    g_free(session->peer);
    g_free(session);
}
