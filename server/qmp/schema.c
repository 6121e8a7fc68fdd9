/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/schema.h"

#include <string.h>

#include "block/error.h"
#include "server/qmp/schema-internal.h"

DEFINE_ERROR_QUARK(qmp_error_quark, "liveblk-qmp-error-quark")

const struct qmp_type qmp_type_string = {.name = "str", .kind = QMP_KIND_STRING};
const struct qmp_type qmp_type_bool = {.name = "bool", .kind = QMP_KIND_BOOL};
const struct qmp_type qmp_type_int = {.name = "int", .kind = QMP_KIND_INT};
const struct qmp_type qmp_type_uint16 = {.name = "uint16", .kind = QMP_KIND_UINT16};
const struct qmp_type qmp_type_uint32 = {.name = "uint32", .kind = QMP_KIND_UINT32};
const struct qmp_type qmp_type_uint64 = {.name = "uint64", .kind = QMP_KIND_UINT64};
const struct qmp_type qmp_type_size = {.name = "size", .kind = QMP_KIND_SIZE};
const struct qmp_type qmp_type_number = {.name = "number", .kind = QMP_KIND_NUMBER};
const struct qmp_type qmp_type_null = {.name = "null", .kind = QMP_KIND_NULL};
const struct qmp_type qmp_type_any = {.name = "any", .kind = QMP_KIND_ANY};
const struct qmp_type qmp_type_empty = {
    .name = "Empty",
    .kind = QMP_KIND_OBJECT,
    .doc = "The object without members.",
};

const struct qmp_member *qmp_type_member(const struct qmp_type *type, const char *name)
{
    for (; type; type = type->base) {
        const struct qmp_member *member;

        for (member = type->members; member && member->name; member++) {
            if (strcmp(member->name, name) == 0) {
                return member;
            }
        }
    }
    return NULL;
}

const struct qmp_type *qmp_type_union(const struct qmp_type *type)
{
    while (type && !type->discriminator) {
        type = type->base;
    }
    return type;
}

const struct qmp_type *qmp_type_variant(const struct qmp_type *type, const char *value)
{
    const struct qmp_variant *variant;

    for (variant = type->variants; variant && variant->value; variant++) {
        if (strcmp(variant->value, value) == 0) {
            return variant->type;
        }
    }
    return NULL;
}

/* The types seen, and as a set. */
struct walk {
    GPtrArray *types;
    GHashTable *seen;
};

static void note_type(struct walk *walk, const struct qmp_type *type)
{
    /* The containers do not change what they point to. */
    if (type && g_hash_table_add(walk->seen, (void *)type)) {
        g_ptr_array_add(walk->types, (void *)type);
    }
}

static void note_members(struct walk *walk, const struct qmp_type *type)
{
    const struct qmp_member *member;
    const struct qmp_variant *variant;

    if (type->base) {
        note_members(walk, type->base);
    }
    for (member = type->members; member && member->name; member++) {
        note_type(walk, member->type);
    }
    for (variant = type->variants; variant && variant->value; variant++) {
        note_type(walk, variant->type);
    }
}

static void note_commands(struct walk *walk, const struct qmp_command *const *tables)
{
    for (; *tables; tables++) {
        const struct qmp_command *command;

        for (command = *tables; command->name; command++) {
            note_type(walk, command->arguments);
            note_type(walk, command->returns);
        }
    }
}

static void note_events(struct walk *walk, const struct qmp_event_type *const *tables)
{
    for (; *tables; tables++) {
        const struct qmp_event_type *event;

        for (event = *tables; event->name; event++) {
            note_type(walk, event->data);
        }
    }
}

GPtrArray *qmp_schema_types(const struct qmp_command *const *command_tables,
                            const struct qmp_event_type *const *event_tables)
{
    struct walk walk = {.types = g_ptr_array_new(), .seen = g_hash_table_new(NULL, NULL)};
    guint n;

    note_type(&walk, &qmp_type_empty);
    note_commands(&walk, command_tables);
    note_events(&walk, event_tables);
    /* The list grows while we go through it. */
    for (n = 0; n < walk.types->len; n++) {
        const struct qmp_type *type = g_ptr_array_index(walk.types, n);

        note_type(&walk, type->element);
        note_members(&walk, type);
    }
    g_hash_table_destroy(walk.seen);
    return walk.types;
}
