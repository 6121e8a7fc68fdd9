/* SPDX-License-Identifier: BSD-3-Clause */
/* query-qmp-schema's answer. */
#include "server/qmp/schema-internal.h"

struct introspection {
    GHashTable *names;   /* struct qmp_type -> its name on the wire */
    GHashTable *entered; /* names that have an entry: several of our types may share one */
    json_t *entries;
};

static const char *builtin_name(enum qmp_kind kind)
{
    switch (kind) {
    case QMP_KIND_STRING:
        return "str";
    case QMP_KIND_BOOL:
        return "bool";
    case QMP_KIND_INT:
    case QMP_KIND_UINT16:
    case QMP_KIND_UINT32:
    case QMP_KIND_UINT64:
    case QMP_KIND_SIZE:
        return "int";
    case QMP_KIND_NUMBER:
        return "number";
    case QMP_KIND_NULL:
        return "null";
    case QMP_KIND_ANY:
        return "any";
    default:
        return NULL;
    }
}

static const char *builtin_json_type(enum qmp_kind kind)
{
    switch (kind) {
    case QMP_KIND_STRING:
        return "string";
    case QMP_KIND_BOOL:
        return "boolean";
    case QMP_KIND_ANY:
        return "value";
    default:
        return builtin_name(kind);
    }
}

/* The types of users, objects for example, are numbered in the order of their first use. */
static void name_types(struct introspection *introspection, const GPtrArray *types)
{
    unsigned number = 0;
    guint n;

    for (n = 0; n < types->len; n++) {
        const struct qmp_type *type = g_ptr_array_index(types, n);
        const char *builtin = builtin_name(type->kind);

        if (builtin) {
            g_hash_table_insert(introspection->names, (void *)type, g_strdup(builtin));
        } else if (type->kind != QMP_KIND_ARRAY) {
            g_hash_table_insert(introspection->names, (void *)type,
                                g_strdup_printf("%u", number++));
        }
    }
}

/* Arrays are named after their elements. */
static const char *name_of(struct introspection *introspection, const struct qmp_type *type)
{
    const char *name = g_hash_table_lookup(introspection->names, type);
    char *array;

    if (name) {
        return name;
    }
    array = g_strdup_printf("[%s]", name_of(introspection, type->element));
    g_hash_table_insert(introspection->names, (void *)type, array);
    return array;
}

/* A string value with a type's name; no type is the empty object. */
static json_t *reference(struct introspection *introspection, const struct qmp_type *type)
{
    return json_string(name_of(introspection, type ? type : &qmp_type_empty));
}

/* What a program should know of a command or member before it uses that. */
static void add_features(json_t *entry, const char *name, bool is_deprecated)
{
    bool is_unstable = g_str_has_prefix(name, "x-");
    json_t *features = json_array();

    if (is_deprecated) {
        json_array_append_new(features, json_string("deprecated"));
    }
    if (is_unstable) {
        json_array_append_new(features, json_string("unstable"));
    }
    if (is_deprecated || is_unstable) {
        json_object_set(entry, "features", features);
    }
    json_decref(features);
}

static json_t *new_entry(struct introspection *introspection, const char *name,
                         const char *meta_type)
{
    json_t *entry = json_object();

    json_object_set_new(entry, "name", json_string(name));
    json_object_set_new(entry, "meta-type", json_string(meta_type));
    json_array_append_new(introspection->entries, entry);
    return entry;
}

static void add_enum(const struct qmp_type *type, json_t *entry)
{
    json_t *members = json_array();
    json_t *values = json_array();
    const char *const *value;

    for (value = type->values; *value; value++) {
        json_array_append_new(members, json_pack("{s:s}", "name", *value));
        json_array_append_new(values, json_string(*value));
    }
    json_object_set_new(entry, "members", members);
    json_object_set_new(entry, "values", values);
}

static void add_members(struct introspection *introspection, const struct qmp_type *type,
                        json_t *members)
{
    const struct qmp_member *member;

    if (type->base) {
        add_members(introspection, type->base, members);
    }
    for (member = type->members; member && member->name; member++) {
        json_t *entry = json_object();

        json_object_set_new(entry, "name", json_string(member->name));
        json_object_set_new(entry, "type", reference(introspection, member->type));
        if (member->optional) {
            json_object_set_new(entry, "default", json_null());
        }
        add_features(entry, member->name, member->deprecated);
        json_array_append_new(members, entry);
    }
}

/* Every value of the discriminator is listed, those without members of their own too. */
static json_t *variants_of(struct introspection *introspection, const struct qmp_type *type)
{
    const struct qmp_member *tag = qmp_type_member(type, type->discriminator);
    json_t *variants = json_array();
    const char *const *value;

    for (value = tag->type->values; *value; value++) {
        json_t *variant = json_object();

        json_object_set_new(variant, "case", json_string(*value));
        json_object_set_new(variant, "type",
                            reference(introspection, qmp_type_variant(type, *value)));
        json_array_append_new(variants, variant);
    }
    return variants;
}

static void add_object(struct introspection *introspection, const struct qmp_type *type,
                       json_t *entry)
{
    const struct qmp_type *tagged = qmp_type_union(type);
    json_t *members = json_array();

    add_members(introspection, type, members);
    json_object_set_new(entry, "members", members);
    if (tagged) {
        json_object_set_new(entry, "tag", json_string(tagged->discriminator));
        json_object_set_new(entry, "variants", variants_of(introspection, tagged));
    }
}

static void add_alternate(struct introspection *introspection, const struct qmp_type *type,
                          json_t *entry)
{
    json_t *members = json_array();
    const struct qmp_member *branch;

    for (branch = type->members; branch->name; branch++) {
        json_t *member = json_object();

        json_object_set_new(member, "type", reference(introspection, branch->type));
        json_array_append_new(members, member);
    }
    json_object_set_new(entry, "members", members);
}

static void add_type(struct introspection *introspection, const struct qmp_type *type)
{
    const char *name = name_of(introspection, type);

    if (!g_hash_table_add(introspection->entered, (void *)name)) {
        return;
    }
    switch (type->kind) {
    case QMP_KIND_ENUM:
        add_enum(type, new_entry(introspection, name, "enum"));
        break;
    case QMP_KIND_OBJECT:
        add_object(introspection, type, new_entry(introspection, name, "object"));
        break;
    case QMP_KIND_ARRAY:
        json_object_set_new(new_entry(introspection, name, "array"), "element-type",
                            reference(introspection, type->element));
        break;
    case QMP_KIND_ALTERNATE:
        add_alternate(introspection, type, new_entry(introspection, name, "alternate"));
        break;
    default:
        json_object_set_new(new_entry(introspection, name, "builtin"), "json-type",
                            json_string(builtin_json_type(type->kind)));
        break;
    }
}

static void add_commands(struct introspection *introspection,
                         const struct qmp_command *const *tables)
{
    for (; *tables; tables++) {
        const struct qmp_command *command;

        for (command = *tables; command->name; command++) {
            json_t *entry = new_entry(introspection, command->name, "command");

            json_object_set_new(entry, "arg-type", reference(introspection, command->arguments));
            json_object_set_new(entry, "ret-type", reference(introspection, command->returns));
            add_features(entry, command->name, command->flags & QMP_COMMAND_DEPRECATED);
        }
    }
}

static void add_events(struct introspection *introspection,
                       const struct qmp_event_type *const *tables)
{
    for (; *tables; tables++) {
        const struct qmp_event_type *event;

        for (event = *tables; event->name; event++) {
            json_object_set_new(new_entry(introspection, event->name, "event"), "arg-type",
                                reference(introspection, event->data));
        }
    }
}

json_t *qmp_schema_introspect(const struct qmp_command *const *command_tables,
                              const struct qmp_event_type *const *event_tables)
{
    struct introspection introspection = {
        .names = g_hash_table_new_full(NULL, NULL, NULL, g_free),
        .entered = g_hash_table_new(g_str_hash, g_str_equal),
        .entries = json_array(),
    };
    g_autoptr(GPtrArray) types = qmp_schema_types(command_tables, event_tables);
    guint n;

    name_types(&introspection, types);
    add_commands(&introspection, command_tables);
    add_events(&introspection, event_tables);
    for (n = 0; n < types->len; n++) {
        add_type(&introspection, g_ptr_array_index(types, n));
    }
    g_hash_table_destroy(introspection.entered);
    g_hash_table_destroy(introspection.names);
    return introspection.entries;
}
