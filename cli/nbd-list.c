/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/nbd-list.h"

#include <errno.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/options.h"
#include "formats/nbd-handshake.h"

static inline void auto_close_handle(struct nbd_handle **handle)
{
    nbd_close(*handle);
}

/* The library's error as ours. */
static int fail(GError **error, const char *what)
{
    return block_error(error, EIO, "%s: %s", what, nbd_library_error());
}

/* ---- Connecting ------------------------------------------------------------------------------ */

/* The properties of the object with this ID; NULL with the error set. */
static struct block_options *find_object(const struct nbd_arguments *arguments, GError **error)
{
    for (guint i = 0; i < arguments->objects->len; i++) {
        const char *text = g_ptr_array_index(arguments->objects, i);
        AUTO(block_options) object = block_options_parse(text, "qom-type", error);

        if (!object) {
            g_prefix_error(error, "--object %s: ", text);
            return NULL;
        }
        if (!g_strcmp0(block_options_get(object, "id"), arguments->tls_credentials)) {
            return STEAL(object);
        }
    }
    block_error(error, ENOENT, "No TLS credentials with id '%s'", arguments->tls_credentials);
    return NULL;
}

static int use_certificates(struct nbd_handle *handle, struct block_options *object, GError **error)
{
    g_autofree char *directory = block_options_take(object, "dir");
    g_autofree char *verify = block_options_take(object, "verify-peer");
    bool verifies = true;

    if (verify && block_parse_bool(verify, &verifies, error) < 0) {
        g_prefix_error(error, "verify-peer: ");
        return -EINVAL;
    }
    if (!directory) {
        return block_error(error, EINVAL, "Parameter 'dir' is missing");
    }
    return nbd_set_tls_certificates(handle, directory) < 0 ||
                   nbd_set_tls_verify_peer(handle, verifies) < 0
               ? fail(error, "TLS")
               : 0;
}

static int use_keys(struct nbd_handle *handle, struct block_options *object, GError **error)
{
    g_autofree char *directory = block_options_take(object, "dir");
    g_autofree char *user = block_options_take(object, "username");

    if (!directory) {
        return block_error(error, EINVAL, "Parameter 'dir' is missing");
    }
    g_autofree char *file = g_build_filename(directory, "keys.psk", NULL);
    return nbd_set_tls_psk_file(handle, file) < 0 ||
                   nbd_set_tls_username(handle, user ? user : "qemu") < 0
               ? fail(error, "TLS")
               : 0;
}

static int use_object(struct nbd_handle *handle, struct block_options *object, GError **error)
{
    g_autofree char *type = block_options_take(object, "qom-type");
    g_autofree char *endpoint = block_options_take(object, "endpoint");
    g_autofree char *id = block_options_take(object, "id");
    int status;

    if (g_strcmp0(endpoint, "client") != 0) {
        return block_error(error, EINVAL, "Expecting TLS credentials with a client endpoint");
    }
    if (!g_strcmp0(type, "tls-creds-x509")) {
        status = use_certificates(handle, object, error);
    } else if (!g_strcmp0(type, "tls-creds-psk")) {
        status = use_keys(handle, object, error);
    } else {
        return block_error(error, EINVAL,
                           "Object '%s' is of the type %s; tls-creds-x509 or tls-creds-psk is "
                           "expected",
                           id, type);
    }
    return status == 0 ? block_options_expect_empty(object, NULL, error) : status;
}

static int use_hostname(struct nbd_handle *handle, const char *name, GError **error)
{
#ifdef LIBNBD_HAVE_NBD_SET_TLS_HOSTNAME
    return nbd_set_tls_hostname(handle, name) < 0 ? fail(error, "TLS") : 0;
#else
    return block_error(error, ENOTSUP, "--tls-hostname=%s needs a newer libnbd", name);
#endif
}

static int use_tls(struct nbd_handle *handle, const struct nbd_arguments *arguments, GError **error)
{
    AUTO(block_options) object = find_object(arguments, error);
    int status = object ? use_object(handle, object, error) : -ENOENT;

    if (status == 0 && arguments->tls_hostname) {
        status = use_hostname(handle, arguments->tls_hostname, error);
    }
    if (status == 0 && nbd_set_tls(handle, LIBNBD_TLS_REQUIRE) < 0) {
        status = fail(error, "TLS");
    }
    return status;
}

static int connect_to(struct nbd_handle *handle, const struct nbd_arguments *arguments,
                      GError **error)
{
    const char *host = arguments->bind ? arguments->bind : "localhost";
    const char *port = arguments->port ? arguments->port : NBD_PORT;
    g_autofree char *place =
        arguments->socket ? g_strdup(arguments->socket) : g_strdup_printf("%s:%s", host, port);
    int result = arguments->socket ? nbd_connect_unix(handle, arguments->socket)
                                   : nbd_connect_tcp(handle, host, port);

    if (result < 0) {
        return block_error(error, EIO, "Failed to connect to '%s': %s", place, nbd_library_error());
    }
    return nbd_aio_is_negotiating(handle)
               ? 0
               : block_error(error, EPROTO, "The server at '%s' cannot list its exports", place);
}

/* ---- Printing -------------------------------------------------------------------------------- */

static int add_text(void *list, const char *text)
{
    g_ptr_array_add(list, g_strdup(text));
    return 0;
}

static int add_name(void *list, const char *name, const char *description)
{
    return add_text(list, name);
}

static bool is_true(int answer)
{
    return answer > 0;
}

/* What a server's flags were, as far as the library tells. */
static void print_flags(struct nbd_handle *handle)
{
    const struct {
        unsigned bit;
        bool is_set;
        const char *name;
    } flags[] = {
        {1, is_true(nbd_is_read_only(handle)), "readonly"},
        {2, is_true(nbd_can_flush(handle)), "flush"},
        {3, is_true(nbd_can_fua(handle)), "fua"},
        {4, is_true(nbd_is_rotational(handle)), "rotational"},
        {5, is_true(nbd_can_trim(handle)), "trim"},
        {6, is_true(nbd_can_zero(handle)), "zeroes"},
        {7, is_true(nbd_can_df(handle)), "df"},
        {8, is_true(nbd_can_multi_conn(handle)), "multi"},
        {10, is_true(nbd_can_cache(handle)), "cache"},
        {11, is_true(nbd_can_fast_zero(handle)), "fast-zero"},
    };
    unsigned value = 1; /* there are flags */

    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        value |= flags[i].is_set ? 1u << flags[i].bit : 0;
    }
    printf("  flags: 0x%x (", value);
    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        if (flags[i].is_set) {
            printf(" %s", flags[i].name);
        }
    }
    printf(" )\n");
}

static void print_size(const char *label, int64_t bytes)
{
    if (bytes > 0) {
        printf("  %s: %" PRId64 "\n", label, bytes);
    }
}

static void print_contexts(struct nbd_handle *handle)
{
    g_autoptr(GPtrArray) contexts = g_ptr_array_new_with_free_func(g_free);

    if (nbd_opt_list_meta_context(
            handle, (nbd_context_callback){.callback = add_text, .user_data = contexts}) < 0) {
        return;
    }
    printf("  available meta contexts: %u\n", contexts->len);
    for (guint i = 0; i < contexts->len; i++) {
        printf("   %s\n", (const char *)g_ptr_array_index(contexts, i));
    }
}

static int print_export(struct nbd_handle *handle, const char *name, GError **error)
{
    printf(" export: '%s'\n", name);
    if (nbd_set_export_name(handle, name) < 0 || nbd_opt_info(handle) < 0) {
        return block_error(error, EIO, "Export '%s': %s", name, nbd_library_error());
    }
    char *description = nbd_get_export_description(handle);
    if (description && *description) {
        printf("  description: %s\n", description);
    }
    free(description);
    printf("  size:  %" PRId64 "\n", nbd_get_size(handle));
    print_flags(handle);
    print_size("min block", nbd_get_block_size(handle, LIBNBD_SIZE_MINIMUM));
    print_size("opt block", nbd_get_block_size(handle, LIBNBD_SIZE_PREFERRED));
    print_size("max block", nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM));
    print_contexts(handle);
    return 0;
}

static int print_exports(struct nbd_handle *handle, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    int status = 0;

    if (nbd_opt_list(handle, (nbd_list_callback){.callback = add_name, .user_data = names}) < 0) {
        return fail(error, "The list of exports");
    }
    printf("exports available: %u\n", names->len);
    for (guint i = 0; i < names->len && status == 0; i++) {
        status = print_export(handle, g_ptr_array_index(names, i), error);
    }
    nbd_opt_abort(handle);
    return status;
}

int nbd_list_exports(const struct nbd_arguments *arguments, GError **error)
{
    CLEANUP(auto_close_handle) struct nbd_handle *handle = nbd_create();

    if (!handle || nbd_set_opt_mode(handle, true) < 0 || nbd_set_full_info(handle, true) < 0) {
        return fail(error, "libnbd");
    }
    if (arguments->tls_credentials && use_tls(handle, arguments, error) < 0) {
        return -EINVAL;
    }
    int status = connect_to(handle, arguments, error);
    return status == 0 ? print_exports(handle, error) : status;
}
