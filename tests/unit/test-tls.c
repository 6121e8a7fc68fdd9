/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS sessions over a socket pair: our side in one thread, a client of GnuTLS in another. */
#include "server/tls.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/lib/command.h"
#include "tests/lib/disk.h"

/* More than a record, and than a socket's buffer. */
#define BYTES    (1 << 20)

#define KEY_TEXT "00112233445566778899aabbccddeeff"

struct rig {
    char *directory;
    int fds[2]; /* ours, the client's */
};

static void set_up(struct rig *rig, const void *unused)
{
    rig->directory = test_directory_new(true);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, rig->fds), ==, 0);
}

static void tear_down(struct rig *rig, const void *unused)
{
    for (int i = 0; i < 2; i++) {
        close(rig->fds[i]);
    }
    test_directory_free(rig->directory);
}

static char *write_file(const struct rig *rig, const char *name, const char *text)
{
    char *path = test_path(rig->directory, name);

    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    return path;
}

/* ---- The client ------------------------------------------------------------------------------ */

struct client {
    pthread_t thread;
    int fd;
    enum tls_kind kind;
    const char *user, *key; /* psk */
    int status;             /* of the handshake */
    uint8_t received[BYTES];
};

static void set_client_credentials(struct client *client, gnutls_session_t session,
                                   gnutls_psk_client_credentials_t *psk,
                                   gnutls_anon_client_credentials_t *anon,
                                   gnutls_certificate_credentials_t *x509)
{
    gnutls_datum_t key = {(unsigned char *)(uintptr_t)client->key,
                          client->key ? (unsigned)strlen(client->key) : 0};

    if (client->kind == TLS_PSK) {
        gnutls_psk_allocate_client_credentials(psk);
        gnutls_psk_set_client_credentials(*psk, client->user, &key, GNUTLS_PSK_KEY_HEX);
        gnutls_credentials_set(session, GNUTLS_CRD_PSK, *psk);
    } else if (client->kind == TLS_ANON) {
        gnutls_anon_allocate_client_credentials(anon);
        gnutls_credentials_set(session, GNUTLS_CRD_ANON, *anon);
    } else {
        gnutls_certificate_allocate_credentials(x509);
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, *x509);
    }
}

static void receive_and_send_back(struct client *client, gnutls_session_t session)
{
    for (size_t done = 0; done < BYTES;) {
        ssize_t got = gnutls_record_recv(session, client->received + done, BYTES - done);

        g_assert_cmpint(got, >, 0);
        done += (size_t)got;
    }
    for (size_t done = 0; done < BYTES;) {
        ssize_t sent = gnutls_record_send(session, client->received + done, BYTES - done);

        g_assert_cmpint(sent, >, 0);
        done += (size_t)sent;
    }
}

static void *run_client(void *data)
{
    static const char *const priorities[] = {
        [TLS_X509] = "NORMAL",
        [TLS_PSK] = "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK",
        [TLS_ANON] = "NORMAL:+ANON-ECDH:+ANON-DH",
    };
    struct client *client = data;
    gnutls_psk_client_credentials_t psk = NULL;
    gnutls_anon_client_credentials_t anon = NULL;
    gnutls_certificate_credentials_t x509 = NULL;
    gnutls_session_t session;

    gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NO_SIGNAL);
    gnutls_priority_set_direct(session, priorities[client->kind], NULL);
    set_client_credentials(client, session, &psk, &anon, &x509);
    gnutls_transport_set_int(session, client->fd);
    do {
        client->status = gnutls_handshake(session);
    } while (client->status < 0 && !gnutls_error_is_fatal(client->status));
    if (client->status == 0) {
        receive_and_send_back(client, session);
        gnutls_bye(session, GNUTLS_SHUT_WR);
    }
    shutdown(client->fd, SHUT_RDWR);
    gnutls_deinit(session);
    if (psk) {
        gnutls_psk_free_client_credentials(psk);
    }
    if (anon) {
        gnutls_anon_free_client_credentials(anon);
    }
    if (x509) {
        gnutls_certificate_free_credentials(x509);
    }
    return NULL;
}

static void start_client(struct client *client, const struct rig *rig)
{
    client->fd = rig->fds[1];
    g_assert_cmpint(pthread_create(&client->thread, NULL, run_client, client), ==, 0);
}

/* ---- Our side -------------------------------------------------------------------------------- */

/* Send much in odd parts, and get the same back. */
static void exchange(struct tls_session *session)
{
    g_autofree uint8_t *sent = g_malloc(BYTES), *received = g_malloc(BYTES);
    struct iovec parts[] = {
        {sent, 1},
        {sent + 1, 0},
        {sent + 1, 20000},
        {sent + 20001, BYTES - 20001},
    };
    size_t done = 0;

    for (size_t i = 0; i < BYTES; i++) {
        sent[i] = (uint8_t)(i * 31 + i / 256);
    }
    g_assert_cmpint(tls_send(session, parts, G_N_ELEMENTS(parts)), ==, 0);
    while (done < BYTES) {
        ssize_t got = tls_receive(session, received + done, BYTES - done);

        g_assert_cmpint(got, >, 0);
        done += (size_t)got;
    }
    test_assert_same(received, sent, BYTES);
    g_assert_cmpint(tls_receive(session, received, 1), ==, 0); /* the client said goodbye */
}

/* peer: who the client is to be. */
static void serve_well(struct rig *rig, const struct tls_options *options, struct client *client,
                       const char *peer)
{
    g_autoptr(GError) error = NULL;
    AUTO(tls_credentials) credentials = tls_credentials_new(options, &error);

    g_assert_no_error(error);
    start_client(client, rig);
    struct tls_session *session = tls_serve(credentials, rig->fds[0], &error);
    g_assert_no_error(error);
    g_assert_cmpstr(tls_peer(session), ==, peer);
    exchange(session);
    pthread_join(client->thread, NULL);
    tls_end(session);
}

static void test_psk(struct rig *rig, const void *unused)
{
    g_free(write_file(rig, "keys.psk", "bob:00\nalice:" KEY_TEXT "\n"));
    struct tls_options options = {.kind = TLS_PSK, .directory = rig->directory};
    g_autofree struct client *client = g_new0(struct client, 1);

    *client = (struct client){.kind = TLS_PSK, .user = "alice", .key = KEY_TEXT};
    serve_well(rig, &options, client, "alice");
}

static void test_wrong_key(struct rig *rig, const void *user)
{
    g_free(write_file(rig, "keys.psk", "alice:" KEY_TEXT "\n"));
    struct tls_options options = {.kind = TLS_PSK, .directory = rig->directory};
    AUTO(tls_credentials) credentials = tls_credentials_new(&options, NULL);
    g_autofree struct client *client = g_new0(struct client, 1);
    g_autoptr(GError) error = NULL;

    *client = (struct client){.kind = TLS_PSK, .user = user, .key = "ff"};
    start_client(client, rig);
    g_assert_null(tls_serve(credentials, rig->fds[0], &error));
    g_assert_nonnull(strstr(error->message, "TLS handshake failed"));
    shutdown(rig->fds[0], SHUT_RDWR);
    pthread_join(client->thread, NULL);
    g_assert_cmpint(client->status, <, 0);
}

static void test_anonymous(struct rig *rig, const void *unused)
{
    /* TLS 1.3 has no such thing. */
    struct tls_options options = {.kind = TLS_ANON, .priority = "NORMAL"};
    g_autofree struct client *client = g_new0(struct client, 1);

    client->kind = TLS_ANON;
    serve_well(rig, &options, client, NULL);
}

/* A socket of no TLS client, or of one that goes, ends the handshake. */
static void test_no_client(struct rig *rig, const void *text)
{
    struct tls_options options = {.kind = TLS_ANON};
    AUTO(tls_credentials) credentials = tls_credentials_new(&options, NULL);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(send(rig->fds[1], text, strlen(text), 0), ==, (ssize_t)strlen(text));
    shutdown(rig->fds[1], SHUT_WR);
    g_assert_null(tls_serve(credentials, rig->fds[0], &error));
    g_assert_nonnull(strstr(error->message, "TLS handshake failed"));
}

/* ---- Certificates ---------------------------------------------------------------------------- */

static void make_certificate(const struct rig *rig, const char *how, const char *template_text,
                             const char *name)
{
    g_autofree char *template = write_file(rig, "template", template_text);
    g_autofree char *key = g_strdup_printf("%s/%s-key.pem", rig->directory, name);
    g_autofree char *output = g_strdup_printf("%s/%s-cert.pem", rig->directory, name);

    test_command_succeeds("certtool --generate-privkey --key-type=ecdsa --outfile %s", key);
    test_command_succeeds("certtool %s --load-privkey %s --template %s --outfile %s", how, key,
                          template, output);
}

static void make_certificates(const struct rig *rig)
{
    g_autofree char *signing = g_strdup_printf("--generate-certificate --load-ca-certificate "
                                               "%s/ca-cert.pem --load-ca-privkey %s/ca-key.pem",
                                               rig->directory, rig->directory);

    make_certificate(rig, "--generate-self-signed", "cn = ca\nca\ncert_signing_key\n", "ca");
    make_certificate(rig, signing, "cn = localhost\ntls_www_server\nsigning_key\n", "server");
}

static void test_x509(struct rig *rig, const void *unused)
{
    struct tls_options options = {
        .kind = TLS_X509, .directory = rig->directory, .sanity_check = true};
    g_autofree struct client *client = g_new0(struct client, 1);

    make_certificates(rig);
    client->kind = TLS_X509;
    serve_well(rig, &options, client, NULL);
    /* As a client's it is for another purpose. */
    g_autofree char *server = test_path(rig->directory, "server-cert.pem");
    g_autofree char *certificate = test_path(rig->directory, "client-cert.pem");
    g_autofree char *server_key = test_path(rig->directory, "server-key.pem");
    g_autofree char *key = test_path(rig->directory, "client-key.pem");
    g_assert_cmpint(rename(server, certificate), ==, 0);
    g_assert_cmpint(rename(server_key, key), ==, 0);
    options.is_client = true;
    g_autoptr(GError) error = NULL;
    g_assert_null(tls_credentials_new(&options, &error));
    g_assert_nonnull(strstr(error->message, "another purpose"));
    options.sanity_check = false;
    AUTO(tls_credentials) credentials = tls_credentials_new(&options, NULL);
    g_assert_true(tls_credentials_is_client(credentials));
}

static void test_missing(struct rig *rig, const void *unused)
{
    const struct {
        struct tls_options options;
        const char *why;
    } wrong[] = {
        {{.kind = TLS_X509}, "directory"},
        {{.kind = TLS_X509, .directory = rig->directory}, "ca-cert.pem"},
        {{.kind = TLS_PSK, .directory = rig->directory}, "keys.psk"},
        {{.kind = TLS_ANON, .priority = "NONSENSE"}, "Unable to set TLS session priority"},
        {{.kind = TLS_PSK, .directory = rig->directory, .is_client = true, .username = "a"},
         "keys.psk"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(tls_credentials_new(&wrong[i].options, &error));
        g_assert_nonnull(strstr(error->message, wrong[i].why));
    }
    g_free(write_file(rig, "keys.psk", "alice:00\n"));
    struct tls_options options = {
        .kind = TLS_PSK, .directory = rig->directory, .is_client = true, .username = "ali"};
    g_autoptr(GError) error = NULL;
    g_assert_null(tls_credentials_new(&options, &error));
    g_assert_nonnull(strstr(error->message, "no key of user 'ali'"));
    options.username = "alice";
    AUTO(tls_credentials) credentials = tls_credentials_new(&options, NULL);
    g_assert_nonnull(credentials);
}

#define TEST(name, data, function)                                                                 \
    g_test_add("/tls/" name, struct rig, data, set_up, function, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    TEST("a-shared-key-says-who-the-client-is", NULL, test_psk);
    TEST("a-wrong-key-is-refused", "alice", test_wrong_key);
    TEST("an-unknown-user-is-refused", "mallory", test_wrong_key);
    TEST("nobody-says-who-he-is", NULL, test_anonymous);
    TEST("a-client-without-tls-is-refused", "IHAVEOPT and more bytes than a header",
         test_no_client);
    TEST("a-client-that-goes-is-refused", "\x16", test_no_client);
    TEST("a-certificate-serves-and-only-its-purpose", NULL, test_x509);
    TEST("what-is-missing-is-said-at-once", NULL, test_missing);
    return g_test_run();
}
