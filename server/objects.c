/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/objects.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/tls-client.h"
#include "server/object-types.h"
#include "server/object.h"

/* Guards the table and all in it. The locks of throttles and their groups are taken under it. */
static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *objects; /* struct object, by its ID; NULL: there was none yet */

/* ---- The table: under the lock --------------------------------------------------------------- */

static void free_object(gpointer data)
{
    struct object *object = data;

    json_decref(object->properties);
    g_free(object->id);
    g_free(object);
}

/* One that is ready, or NULL. */
static struct object *find(const char *id)
{
    struct object *object = objects ? g_hash_table_lookup(objects, id) : NULL;

    return object && object->is_ready ? object : NULL;
}

/* Keep the ID for an object that is being made. */
static struct object *reserve(const char *id, const struct object_kind *kind, GError **error)
{
    SCOPE_LOCK(&objects_lock);

    if (!objects) {
        objects = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, free_object);
    }
    if (g_hash_table_contains(objects, id)) {
        block_error(error, EEXIST,
                    "attempt to add duplicate property '%s' to object (type 'container')", id);
        return NULL;
    }
    struct object *object = g_new0(struct object, 1);
    object->id = g_strdup(id);
    object->kind = kind;
    g_hash_table_insert(objects, object->id, object);
    return object;
}

/* ---- Making and deleting --------------------------------------------------------------------- */

static json_t *what_can_be_shown(json_t *properties)
{
    json_t *shown = json_deep_copy(properties);

    json_object_del(shown, "qom-type");
    json_object_del(shown, "id");
    json_object_del(shown, "data"); /* a secret */
    return shown;
}

int object_add(json_t *properties, GError **error)
{
    const char *id = json_string_value(json_object_get(properties, "id"));
    const char *type = json_string_value(json_object_get(properties, "qom-type"));

    if (!block_identifier_is_valid(id)) {
        return block_error(error, EINVAL, "Parameter 'id' expects an identifier");
    }
    struct object *object = reserve(id, object_kind_find(type), error);
    if (!object) {
        return -EEXIST;
    }
    int status = object->kind->make(object, properties, error);
    SCOPE_LOCK(&objects_lock);
    if (status < 0) {
        object_unmake(object);
        g_hash_table_remove(objects, id);
        return status;
    }
    object->properties = what_can_be_shown(properties);
    object->is_ready = true;
    return 0;
}

int object_delete(const char *id, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    struct object *object = find(id);

    if (!object) {
        return block_error(error, ENOENT, "object '%s' not found", id);
    }
    if (object_unmake(object) < 0) {
        return block_error(error, EBUSY, "object '%s' is in use, can not be deleted", id);
    }
    g_hash_table_remove(objects, id);
    return 0;
}

static gboolean delete_unused(gpointer id, gpointer object, gpointer data)
{
    return object_unmake(object) == 0;
}

void objects_delete_all(void)
{
    SCOPE_LOCK(&objects_lock);

    if (objects) {
        g_hash_table_foreach_remove(objects, delete_unused, NULL);
    }
}

/* ---- What they stand for --------------------------------------------------------------------- */

struct tls_credentials *object_tls_credentials(const char *id, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);

    if (!object) {
        block_error(error, ENOENT, "No TLS credentials with id '%s'", id);
        return NULL;
    }
    if (!object->credentials) {
        block_error(error, EINVAL, "Object with id '%s' is not TLS credentials", id);
        return NULL;
    }
    return tls_credentials_ref(object->credentials);
}

struct authorization *object_authorization(const char *id, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);

    if (!object) {
        block_error(error, ENOENT, "No authorization object with id '%s'", id);
        return NULL;
    }
    if (!object->authorization) {
        block_error(error, EINVAL, "Object with id '%s' does not say who is allowed", id);
        return NULL;
    }
    return authorization_ref(object->authorization);
}

char *object_secret_text(const char *id, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);
    gsize bytes;

    if (!object || !object->secret) {
        block_error(error, ENOENT, "No secret with id '%s'", id);
        return NULL;
    }
    const char *data = g_bytes_get_data(object->secret, &bytes);
    if (memchr(data, '\0', bytes)) {
        block_error(error, EINVAL, "The secret '%s' is no text", id);
        return NULL;
    }
    return g_strndup(data, bytes);
}

int object_check_iothread(const char *id, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);

    return object && !strcmp(object->kind->name, "iothread")
               ? 0
               : block_error(error, ENOENT, "iothread \"%s\" not found", id);
}

/* libnbd does TLS for nodes itself. Under the lock. */
static int check_for_node(const struct object *object, GError **error)
{
    static const char *const not_possible[] = {"priority", "passwordid"};

    if (!tls_credentials_is_client(object->credentials)) {
        return block_error(error, EINVAL, "Expected TLS credentials for a client endpoint");
    }
    if (!strcmp(object->kind->name, "tls-creds-anon")) {
        return block_error(error, ENOTSUP,
                           "TLS credentials '%s' are anonymous, which nodes of the driver 'nbd' "
                           "cannot be: use tls-creds-x509 or tls-creds-psk",
                           object->id);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(not_possible); i++) {
        if (json_object_get(object->properties, not_possible[i])) {
            return block_error(error, ENOTSUP,
                               "TLS credentials '%s' have a '%s', which nodes of the driver 'nbd' "
                               "cannot use",
                               object->id, not_possible[i]);
        }
    }
    return 0;
}

static int find_for_node(const char *id, struct block_tls_client *client, GError **error)
{
    AUTO(tls_credentials) credentials = object_tls_credentials(id, error);
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);

    if (!credentials) {
        return -ENOENT;
    }
    if (!object || object->credentials != credentials) {
        return block_error(error, ENOENT, "No TLS credentials with id '%s'", id);
    }
    int status = check_for_node(object, error);
    if (status < 0) {
        return status;
    }
    const char *directory = object_text(object->kind, object->properties, "dir");
    client->verify_peer = object_flag(object->kind, object->properties, "verify-peer");
    if (!strcmp(object->kind->name, "tls-creds-psk")) {
        client->keys = g_build_filename(directory, "keys.psk", NULL);
        client->username = g_strdup(object_text(object->kind, object->properties, "username"));
    } else {
        client->certificates = g_strdup(directory);
    }
    return 0;
}

void objects_init(void)
{
    block_tls_client_set_lookup(find_for_node);
}

/* ---- Properties ------------------------------------------------------------------------------ */

static int not_found(const char *id, GError **error)
{
    g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", id);
    return -ENOENT;
}

bool object_exists(const char *id)
{
    SCOPE_LOCK(&objects_lock);

    return find(id) != NULL;
}

json_t *object_list(void)
{
    json_t *list = json_array();
    GHashTableIter iterator;
    gpointer value;
    SCOPE_LOCK(&objects_lock);

    if (!objects) {
        return list;
    }
    g_hash_table_iter_init(&iterator, objects);
    while (g_hash_table_iter_next(&iterator, NULL, &value)) {
        const struct object *object = value;
        g_autofree char *type = g_strdup_printf("child<%s>", object->kind->name);

        if (object->is_ready) {
            json_array_append_new(list, json_pack("{s:s, s:s}", "name", object->id, "type", type));
        }
    }
    return list;
}

static const char *type_name(const struct qmp_type *type)
{
    switch (type->kind) {
    case QMP_KIND_STRING:
        return "string";
    case QMP_KIND_BOOL:
        return "bool";
    case QMP_KIND_INT:
        return "int";
    default:
        return type->name;
    }
}

static json_t *list_members(const struct qmp_type *type)
{
    json_t *list = json_array();

    json_array_append_new(list, json_pack("{s:s, s:s}", "name", "type", "type", "string"));
    for (; type; type = type->base) {
        for (const struct qmp_member *member = type->members; member && member->name; member++) {
            json_array_append_new(list,
                                  json_pack("{s:s, s:s, s:s}", "name", member->name, "type",
                                            type_name(member->type), "description", member->doc));
        }
    }
    return list;
}

json_t *object_list_properties(const char *id)
{
    SCOPE_LOCK(&objects_lock);
    const struct object *object = find(id);

    return object ? list_members(object->kind->type) : NULL;
}

json_t *object_get(const char *id, const char *property, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    struct object *object = find(id);

    if (!object) {
        not_found(id, error);
        return NULL;
    }
    return object_read(object, property, error);
}

int object_set(const char *id, const char *property, json_t *value, GError **error)
{
    SCOPE_LOCK(&objects_lock);
    struct object *object = find(id);

    return object ? object_write(object, property, value, error) : not_found(id, error);
}

/* ---- Kinds ----------------------------------------------------------------------------------- */

static const char *const abstract_kinds[] = {"authz", "object", "tls-creds"};

static bool is_a(const struct object_kind *kind, const char *name)
{
    return !name || !strcmp(name, "object") || !strcmp(name, "user-creatable") ||
           !strcmp(name, kind->parent) || !strcmp(name, kind->name);
}

json_t *object_list_types(const char *implements, bool abstract)
{
    json_t *list = json_array();

    for (const struct object_kind *kind = object_kinds; kind->name; kind++) {
        if (is_a(kind, implements)) {
            json_array_append_new(
                list, json_pack("{s:s, s:s}", "name", kind->name, "parent", kind->parent));
        }
    }
    for (size_t i = 0; abstract && i < G_N_ELEMENTS(abstract_kinds); i++) {
        if (!implements || !strcmp(implements, "object") ||
            !strcmp(implements, abstract_kinds[i])) {
            json_array_append_new(
                list, json_pack("{s:s, s:b}", "name", abstract_kinds[i], "abstract", 1));
        }
    }
    return list;
}

json_t *object_list_type_properties(const char *name, GError **error)
{
    const struct object_kind *kind = object_kind_find(name);

    if (!kind) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Class '%s' not found", name);
        return NULL;
    }
    return list_members(kind->type);
}
