/* SPDX-License-Identifier: BSD-3-Clause */
/* The kinds of objects: how each is made. */
#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "block/throttle-group.h"
#include "server/object-types.h"
#include "server/object.h"
#include "server/objects.h"
#include "server/throttle-limits.h"

/* Beyond any password or key. */
#define SECRET_BYTES_MAX (1 << 20)

const char *object_text(const struct object_kind *kind, json_t *properties, const char *name)
{
    json_t *value = json_object_get(properties, name);

    return value ? json_string_value(value) : object_type_member(kind->type, name)->default_text;
}

bool object_flag(const struct object_kind *kind, json_t *properties, const char *name)
{
    json_t *value = json_object_get(properties, name);

    return value ? json_is_true(value)
                 : !g_strcmp0(object_type_member(kind->type, name)->default_text, "true");
}

/* ---- Authorization --------------------------------------------------------------------------- */

static int make_authz_list(struct object *object, json_t *properties, GError **error)
{
    object->authorization = authorization_from_json(properties);
    return 0;
}

static int make_authz_file(struct object *object, json_t *properties, GError **error)
{
    object->authorization =
        authorization_from_file(object_text(object->kind, properties, "filename"),
                                object_flag(object->kind, properties, "refresh"), error);
    return object->authorization ? 0 : -EINVAL;
}

static int make_authz_simple(struct object *object, json_t *properties, GError **error)
{
    const struct authorization_rule rule = {
        .match = (char *)(uintptr_t)object_text(object->kind, properties, "identity"),
        .is_exact = true,
        .allows = true,
    };

    object->authorization = authorization_new(&rule, 1, false);
    return 0;
}

/* ---- Secrets --------------------------------------------------------------------------------- */

static void free_secret(gpointer data)
{
    GString *text = data;

    explicit_bzero(text->str, text->allocated_len);
    g_string_free(text, TRUE);
}

/* The GBytes wipes itself. */
static GBytes *wrap_secret(const void *data, gsize bytes)
{
    GString *text = g_string_new_len(data, (gssize)bytes);

    return g_bytes_new_with_free_func(text->str, text->len, free_secret, text);
}

static int decode_secret(struct object *object, const char *text, gsize bytes, const char *format,
                         GError **error)
{
    if (strcmp(format, "base64")) {
        object->secret = wrap_secret(text, bytes);
        return 0;
    }
    gsize decoded_bytes = 0;
    g_autofree guchar *decoded = g_base64_decode(text, &decoded_bytes);
    if (!decoded_bytes && bytes) {
        return block_error(error, EINVAL, "The secret '%s' is not valid base64", object->id);
    }
    object->secret = wrap_secret(decoded, decoded_bytes);
    explicit_bzero(decoded, decoded_bytes);
    return 0;
}

static int read_secret_file(struct object *object, const char *filename, const char *format,
                            GError **error)
{
    g_autofree char *text = NULL;
    gsize bytes = 0;

    if (!g_file_get_contents(filename, &text, &bytes, error)) {
        g_prefix_error(error, "Could not read the secret '%s': ", object->id);
        return -EIO;
    }
    int status = bytes > SECRET_BYTES_MAX
                     ? block_error(error, EFBIG, "The secret in '%s' is longer than %d bytes",
                                   filename, SECRET_BYTES_MAX)
                     : decode_secret(object, text, bytes, format, error);
    explicit_bzero(text, bytes);
    return status;
}

static int make_secret(struct object *object, json_t *properties, GError **error)
{
    const char *data = object_text(object->kind, properties, "data");
    const char *file = object_text(object->kind, properties, "file");
    const char *format = object_text(object->kind, properties, "format");

    if (json_object_get(properties, "keyid") || json_object_get(properties, "iv")) {
        return block_error(error, ENOTSUP,
                           "Secrets that another one encrypts ('keyid', 'iv') are not supported: "
                           "give a 'file' that nobody else may read");
    }
    if (!data == !file) {
        return block_error(error, EINVAL, "A secret needs exactly one of 'data' and 'file'");
    }
    return file ? read_secret_file(object, file, format, error)
                : decode_secret(object, data, strlen(data), format, error);
}

/* ---- TLS ------------------------------------------------------------------------------------- */

static int make_tls(struct object *object, json_t *properties, struct tls_options *options,
                    GError **error)
{
    options->directory = object_text(object->kind, properties, "dir");
    options->is_client = !strcmp(object_text(object->kind, properties, "endpoint"), "client");
    options->verify_peer = object_flag(object->kind, properties, "verify-peer");
    options->priority = object_text(object->kind, properties, "priority");
    object->credentials = tls_credentials_new(options, error);
    return object->credentials ? 0 : -EINVAL;
}

static int make_tls_anon(struct object *object, json_t *properties, GError **error)
{
    struct tls_options options = {.kind = TLS_ANON};

    return make_tls(object, properties, &options, error);
}

static int make_tls_psk(struct object *object, json_t *properties, GError **error)
{
    struct tls_options options = {
        .kind = TLS_PSK,
        .username = object_text(object->kind, properties, "username"),
    };

    return make_tls(object, properties, &options, error);
}

static int make_tls_x509(struct object *object, json_t *properties, GError **error)
{
    const char *password_id = object_text(object->kind, properties, "passwordid");
    g_autofree char *password = password_id ? object_secret_text(password_id, error) : NULL;
    struct tls_options options = {
        .kind = TLS_X509,
        .sanity_check = object_flag(object->kind, properties, "sanity-check"),
        .password = password,
    };

    if (password_id && !password) {
        return -EINVAL;
    }
    int status = make_tls(object, properties, &options, error);
    if (password) {
        explicit_bzero(password, strlen(password));
    }
    return status;
}

/* ---- The rest -------------------------------------------------------------------------------- */

/* Each client and job here has threads of its own. */
static int make_iothread(struct object *object, json_t *properties, GError **error)
{
    return 0;
}

static int make_throttle_group(struct object *object, json_t *properties, GError **error)
{
    struct throttle_limits limits = {0};
    int status = limits_read_group(json_object_get(properties, "limits"), &limits, error);

    return status < 0 ? status : throttle_group_create(object->id, &limits, error);
}

const struct object_kind object_kinds[] = {
    {"authz-list", "authz", &authorization_rules_type, make_authz_list},
    {"authz-list-file", "authz", &object_authz_file_type, make_authz_file},
    {"authz-simple", "authz", &object_authz_simple_type, make_authz_simple},
    {"iothread", "object", &object_iothread_type, make_iothread},
    {"secret", "object", &object_secret_type, make_secret},
    {"throttle-group", "object", &object_throttle_group_type, make_throttle_group},
    {"tls-creds-anon", "tls-creds", &object_tls_anon_type, make_tls_anon},
    {"tls-creds-psk", "tls-creds", &object_tls_psk_type, make_tls_psk},
    {"tls-creds-x509", "tls-creds", &object_tls_x509_type, make_tls_x509},
    {NULL},
};

const struct object_kind *object_kind_find(const char *name)
{
    for (const struct object_kind *kind = object_kinds; kind->name; kind++) {
        if (!strcmp(kind->name, name)) {
            return kind;
        }
    }
    return NULL;
}

int object_unmake(struct object *object)
{
    if (object->kind->make == make_throttle_group && object->is_ready) {
        int status = throttle_group_delete(object->id);

        if (status == -EBUSY) {
            return status;
        }
    }
    tls_credentials_unref(object->credentials);
    authorization_unref(object->authorization);
    g_clear_pointer(&object->secret, g_bytes_unref);
    return 0;
}

/* ---- Properties ------------------------------------------------------------------------------ */

static bool has_limits(const struct object *object, const char *property)
{
    return object->kind->make == make_throttle_group && !strcmp(property, "limits");
}

static int no_property(const struct object *object, const char *property, const char *what,
                       GError **error)
{
    return block_error(error, ENOENT, "Property '%s.%s' %s", object->kind->name, property, what);
}

static json_t *read_limits(const struct object *object)
{
    AUTO(throttle_group) group = throttle_group_find(object->id);
    struct throttle_limits limits;

    throttle_get_limits(throttle_group_throttle(group), &limits);
    return limits_group_json(&limits);
}

/* Of a property that was not given. */
static json_t *default_value(const struct qmp_member *member)
{
    const char *text = member->default_text ? member->default_text : "";

    switch (member->type->kind) {
    case QMP_KIND_BOOL:
        return json_boolean(!strcmp(text, "true"));
    case QMP_KIND_INT:
        return json_integer(g_ascii_strtoll(text, NULL, 10));
    case QMP_KIND_ARRAY:
        return json_array();
    default:
        return json_string(text);
    }
}

json_t *object_read(struct object *object, const char *property, GError **error)
{
    const struct qmp_member *member = object_type_member(object->kind->type, property);

    if (!strcmp(property, "type")) {
        return json_string(object->kind->name);
    }
    if (!member) {
        no_property(object, property, "not found", error);
        return NULL;
    }
    if (object->kind->make == make_secret && !strcmp(property, "data")) {
        no_property(object, property, "is not readable", error);
        return NULL;
    }
    if (has_limits(object, property)) {
        return read_limits(object);
    }
    json_t *value = json_object_get(object->properties, property);
    return value ? json_incref(value) : default_value(member);
}

/* Nobody changes them but who holds the lock. */
static int write_limits(const struct object *object, json_t *value, GError **error)
{
    AUTO(throttle_group) group = throttle_group_find(object->id);
    struct throttle_limits limits;

    throttle_get_limits(throttle_group_throttle(group), &limits);
    int status = limits_read_group(value, &limits, error);
    if (status == 0) {
        throttle_set_limits(throttle_group_throttle(group), &limits);
    }
    return status;
}

int object_write(struct object *object, const char *property, json_t *value, GError **error)
{
    const struct qmp_member *member = object_type_member(object->kind->type, property);

    if (!member && strcmp(property, "type")) {
        return no_property(object, property, "not found", error);
    }
    if (!member || (!has_limits(object, property) && object->kind->make != make_iothread)) {
        return no_property(object, property, "is not writable", error);
    }
    int status = qmp_check(member->type, value, property, error);
    if (status == 0 && has_limits(object, property)) {
        return write_limits(object, value, error);
    }
    if (status == 0) {
        json_object_set(object->properties, property, value);
    }
    return status;
}
