/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-options.h"

#include <errno.h>
#include <libnbd.h>
#include <string.h>

#include "block/error.h"
#include "block/tls-client.h"

/* Longest time an option may name, in seconds: nanoseconds since boot plus this fit 63 bits. */
#define SECONDS_MAX UINT64_C(1000000000)

/* As LIBNBD_TLS_DISABLE, LIBNBD_TLS_ALLOW, LIBNBD_TLS_REQUIRE. */
static const char *const tls_names[] = {"off", "on", "require", NULL};

#define OPTION(name_, type_, member_, default_, help_)                                             \
    {                                                                                              \
        .name = (name_), .type = BLOCK_OPTION_##type_,                                             \
        .offset = offsetof(struct nbd_options, member_), .default_text = (default_),               \
        .help = (help_)                                                                            \
    }

const struct block_option nbd_option_table[] = {
    OPTION("server", ADDRESS, server, NULL, "Address of the NBD server."),
    OPTION("export", STRING, export_name, "", "Name of the export."),
    OPTION("uri", STRING, uri, NULL,
           "NBD URI of the export (nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock); instead "
           "of server and export."),
    OPTION("command", STRINGS, command, NULL,
           "Program and arguments of an NBD server to run by systemd socket activation, such as "
           "nbdkit or qemu-nbd; instead of server."),
    OPTION("tls-creds", STRING, tls_creds, NULL,
           "The ID of an object tls-creds-x509 or tls-creds-psk with endpoint=client: TLS is "
           "required then. Instead of the options tls, tls-certificates, tls-psk-file, "
           "tls-username and tls-verify-peer."),
    {.name = "tls",
     .type = BLOCK_OPTION_ENUM,
     .offset = offsetof(struct nbd_options, tls),
     .enum_values = tls_names,
     .default_text = "off",
     .help = "Whether TLS is used: never (off), if the server offers it (on), or always "
             "(require). An nbds URI always requires it."},
    OPTION("tls-certificates", STRING, tls_certificates, NULL,
           "Folder with ca-cert.pem and, for client authentication, client-cert.pem and "
           "client-key.pem."),
    OPTION("tls-psk-file", STRING, tls_psk_file, NULL, "File with pre-shared keys."),
    OPTION("tls-username", STRING, tls_username, NULL, "User name to look up in the PSK file."),
    OPTION("tls-hostname", STRING, tls_hostname, NULL,
           "Name the server's certificate must carry, if it is not the host connected to. Refused "
           "where the system's libnbd cannot look for another name."),
    OPTION("tls-verify-peer", BOOL, tls_verify_peer, "on",
           "Whether the server's certificate is verified."),
    OPTION("reconnect-delay", UINT, reconnect_delay, "0",
           "Seconds that requests wait for a lost connection to come back before they fail; 0: "
           "requests in flight fail at once."),
    OPTION("open-timeout", UINT, open_timeout, "0",
           "Seconds during which opening the node tries again to connect; 0: one attempt."),
    OPTION("request-timeout", UINT, request_timeout, "0",
           "Seconds after which an unanswered request means that the connection is dead; 0: wait "
           "for ever. The server may still carry out such a request later."),
    OPTION("connections", UINT, connections, "0",
           "Number of connections, 1 to 16; 0: several if the server allows it, else one."),
    {.name = NULL},
};

static int check_place(const struct nbd_options *options, GError **error)
{
    int given = (options->server.type != BLOCK_ADDRESS_NONE) + !!options->uri + !!options->command;

    if (given != 1) {
        return block_error(error, EINVAL,
                           "Exactly one of the parameters 'server', 'uri' and 'command' is needed");
    }
    if (options->command && (!options->command[0] || !*options->command[0])) {
        return block_error(error, EINVAL, "Parameter 'command' names no program");
    }
    if (options->uri && *options->export_name) {
        return block_error(error, EINVAL,
                           "Parameter 'export' cannot be given with 'uri', which names the export");
    }
    return 0;
}

static int check_uri(const char *uri, GError **error)
{
    static const char *const schemes[] = {"nbd",       "nbds",       "nbd+unix", "nbds+unix",
                                          "nbd+vsock", "nbds+vsock", NULL};
    g_autofree char *scheme = g_uri_parse_scheme(uri);

    if (!scheme || !g_strv_contains(schemes, scheme)) {
        return block_error(error, EINVAL, "'%s' is not an NBD URI", uri);
    }
    if (strstr(uri, "tls-psk-file=")) {
        return block_error(error, EINVAL,
                           "The URI '%s' may not name a file with keys: use 'tls-psk-file'", uri);
    }
    return 0;
}

static bool uses_tls(const struct nbd_options *options)
{
    return options->tls_creds || options->tls != LIBNBD_TLS_DISABLE ||
           (options->uri && g_str_has_prefix(options->uri, "nbds"));
}

static int check_numbers(const struct nbd_options *options, GError **error)
{
    if (options->connections > NBD_CONNECTIONS_MAX) {
        return block_error(error, EINVAL, "Parameter 'connections' expects a number up to %d",
                           NBD_CONNECTIONS_MAX);
    }
    if (options->reconnect_delay > SECONDS_MAX || options->open_timeout > SECONDS_MAX ||
        options->request_timeout > SECONDS_MAX) {
        return block_error(error, EINVAL,
                           "Parameters 'reconnect-delay', 'open-timeout' and 'request-timeout' "
                           "expect at most %" G_GUINT64_FORMAT " seconds",
                           SECONDS_MAX);
    }
    return 0;
}

static int check_tls(const struct nbd_options *options, GError **error)
{
    bool says_how = options->tls_certificates || options->tls_psk_file || options->tls_username;

#ifndef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    if (options->tls_hostname) {
        return block_error(error, ENOTSUP,
                           "Parameter 'tls-hostname' needs a newer libnbd: this one looks in the "
                           "server's certificate for the host that it connects to");
    }
    if (uses_tls(options) && options->tls_verify_peer && !options->tls_psk_file &&
        (options->server.no_ipv4 || options->server.no_ipv6)) {
        return block_error(error, ENOTSUP,
                           "Parameters 'ipv4' and 'ipv6' of 'server' need a newer libnbd where TLS "
                           "is used: with this one nothing would look for the host in the "
                           "server's certificate");
    }
#endif
    if (options->tls_creds &&
        (says_how || options->tls != LIBNBD_TLS_DISABLE || !options->tls_verify_peer)) {
        return block_error(error, EINVAL,
                           "Parameter 'tls-creds' cannot be given with 'tls' and the options that "
                           "say what it says, too");
    }
    if (!uses_tls(options) && (says_how || options->tls_hostname)) {
        return block_error(error, EINVAL, "Parameters 'tls-*' need 'tls' to be on or require");
    }
    return 0;
}

int nbd_options_check(const struct nbd_options *options, GError **error)
{
    int ret = check_place(options, error);

    if (!ret && options->uri) {
        ret = check_uri(options->uri, error);
    }
    if (!ret) {
        ret = check_numbers(options, error);
    }
    if (!ret) {
        ret = check_tls(options, error);
    }
    if (ret) {
        return ret;
    }
    if (!nbd_options_can_reconnect(options) &&
        (options->reconnect_delay || options->connections > 1)) {
        return block_error(error, EINVAL,
                           "Parameters 'reconnect-delay' and 'connections' need a server that "
                           "accepts further connections");
    }
    return 0;
}

int nbd_options_find_credentials(struct nbd_options *options, GError **error)
{
    struct block_tls_client client;

    if (!options->tls_creds) {
        return 0;
    }
    int ret = block_tls_client_find(options->tls_creds, &client, error);
    if (ret) {
        return ret;
    }
    options->tls = LIBNBD_TLS_REQUIRE;
    options->tls_certificates = g_steal_pointer(&client.certificates);
    options->tls_psk_file = g_steal_pointer(&client.keys);
    options->tls_username = g_steal_pointer(&client.username);
    options->tls_verify_peer = client.verify_peer;
    return 0;
}

bool nbd_options_can_reconnect(const struct nbd_options *options)
{
    return !options->command && options->server.type != BLOCK_ADDRESS_FD;
}

char *nbd_options_describe(const struct nbd_options *options)
{
    const struct block_address *server = &options->server;
    const char *s = uses_tls(options) ? "s" : "";
    g_autofree char *name = NULL;
    g_autofree char *path = NULL;

    if (options->uri) {
        return g_strdup(options->uri);
    }
    if (options->command) {
        return g_strjoinv(" ", options->command);
    }
    name = g_uri_escape_string(options->export_name, "/", false);
    switch (server->type) {
    case BLOCK_ADDRESS_INET:
        return g_strdup_printf(strchr(server->host, ':') ? "nbd%s://[%s]:%s/%s"
                                                         : "nbd%s://%s:%s/%s",
                               s, server->host, server->port ? server->port : "10809", name);
    case BLOCK_ADDRESS_UNIX:
        path = g_uri_escape_string(server->path, "/", false);
        return g_strdup_printf("nbd%s+unix:///%s?socket=%s", s, name, path);
    case BLOCK_ADDRESS_VSOCK:
        return g_strdup_printf("nbd%s+vsock://%s:%s/%s", s, server->host,
                               server->port ? server->port : "10809", name);
    default:
        return g_strdup_printf("descriptor %s", server->fd);
    }
}
