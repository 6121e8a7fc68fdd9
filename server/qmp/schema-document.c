/* SPDX-License-Identifier: BSD-3-Clause */
/* docs/qmp.md: every command, event and type of the tables. */
#include <string.h>

#include "server/qmp/schema-internal.h"

struct document {
    GString *text;
    GHashTable *sections;         /* set of the types that have a section of their own */
    const struct qmp_note *notes; /* or NULL */
};

static void append(struct document *document, const char *format, ...) G_GNUC_PRINTF(2, 3);

static void append(struct document *document, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_string_append_vprintf(document->text, format, arguments);
    va_end(arguments);
}

/* Enums that have nothing to say but their values are spelled out where they are used. */
static void add_section(struct document *document, const struct qmp_type *type)
{
    while (type && type->kind == QMP_KIND_ARRAY) {
        type = type->element;
    }
    if (type && ((type->kind == QMP_KIND_OBJECT && type != &qmp_type_empty) ||
                 (type->kind == QMP_KIND_ENUM && type->doc) || type->kind == QMP_KIND_ALTERNATE)) {
        g_hash_table_add(document->sections, (void *)type);
    }
}

static void add_member_sections(struct document *document, const struct qmp_type *type)
{
    for (; type; type = type->base) {
        for (const struct qmp_member *member = type->members; member && member->name; member++) {
            add_section(document, member->type);
        }
    }
}

/*
 * Types of members and results have sections. What is only a command's arguments, an event's
 * data, a base or a branch is written out there.
 */
static void choose_sections(struct document *document, GPtrArray *types,
                            const struct qmp_command *const *command_tables)
{
    for (guint n = 0; n < types->len; n++) {
        add_member_sections(document, g_ptr_array_index(types, n));
    }
    for (; *command_tables; command_tables++) {
        for (const struct qmp_command *command = *command_tables; command->name; command++) {
            add_section(document, command->returns);
        }
    }
}

static void append_values(struct document *document, const struct qmp_type *type)
{
    for (const char *const *value = type->values; *value; value++) {
        append(document, "%s`%s`", value == type->values ? "" : ", ", *value);
    }
}

/* A type's name, linked to its section if it has one. */
static void append_type(struct document *document, const struct qmp_type *type)
{
    if (type->kind == QMP_KIND_ARRAY) {
        append(document, "array of ");
        append_type(document, type->element);
    } else if (g_hash_table_contains(document->sections, type)) {
        g_autofree char *anchor = g_ascii_strdown(type->name, -1);

        append(document, "[%s](#%s)", type->name, anchor);
    } else if (type->kind == QMP_KIND_ENUM) {
        append_values(document, type);
    } else {
        append(document, "%s", type == &qmp_type_empty ? "{}" : type->name);
    }
}

/* A table's cell: a bar would end it. */
static void append_cell(struct document *document, const char *text)
{
    GString *out = document->text;

    for (; text && *text; text++) {
        if (*text == '|') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *text == '\n' ? ' ' : *text);
    }
}

static void append_row(struct document *document, const struct qmp_member *member)
{
    append(document, "| `%s` | ", member->name);
    append_type(document, member->type);
    append(document, " | %s", member->optional ? "optional" : "required");
    if (member->default_text && *member->default_text) {
        append(document, ", default `");
        append_cell(document, member->default_text);
        append(document, "`");
    }
    append(document, " | ");
    append_cell(document, member->doc);
    append(document, " |\n");
}

static void append_rows(struct document *document, const struct qmp_type *type)
{
    if (type->base) {
        append_rows(document, type->base);
    }
    for (const struct qmp_member *member = type->members; member && member->name; member++) {
        append_row(document, member);
    }
}

static bool has_members(const struct qmp_type *type)
{
    for (; type; type = type->base) {
        if (type->members && type->members->name) {
            return true;
        }
    }
    return false;
}

static void append_table(struct document *document, const struct qmp_type *type)
{
    append(document, "| Name | Type | | Meaning |\n|---|---|---|---|\n");
    append_rows(document, type);
    append(document, "\n");
}

static void append_members(struct document *document, const struct qmp_type *type)
{
    append_table(document, type);
    for (const struct qmp_variant *variant = type->variants; variant && variant->value; variant++) {
        if (has_members(variant->type)) {
            append(document, "If `%s` is `%s`, also:\n\n", type->discriminator, variant->value);
            append_members(document, variant->type);
        }
    }
}

static void append_heading(struct document *document, const char *name, const char *doc)
{
    append(document, "\n### %s\n\n", name);
    if (doc) {
        append(document, "%s\n\n", doc);
    }
}

/* What a program that knows QEMU must know of a command or an event. */
static void append_note(struct document *document, const char *name)
{
    for (const struct qmp_note *note = document->notes; note && note->name; note++) {
        if (!strcmp(note->name, name)) {
            append(document, "Compatibility: %s\n\n", note->text);
        }
    }
}

static void append_command(struct document *document, const struct qmp_command *command)
{
    append_heading(document, command->name, command->doc);
    append_note(document, command->name);
    if (has_members(command->arguments)) {
        append(document, "Arguments:\n\n");
        append_members(document, command->arguments);
    } else {
        append(document, "Arguments: none\n\n");
    }
    append(document, "Returns: ");
    append_type(document, command->returns ? command->returns : &qmp_type_empty);
    append(document, "\n");
}

static void append_event(struct document *document, const struct qmp_event_type *event)
{
    append_heading(document, event->name, event->doc);
    append_note(document, event->name);
    if (has_members(event->data)) {
        append(document, "Data:\n\n");
        append_members(document, event->data);
    } else {
        append(document, "Data: none\n");
    }
}

static void append_type_section(struct document *document, const struct qmp_type *type)
{
    append_heading(document, type->name, type->doc);
    switch (type->kind) {
    case QMP_KIND_ENUM:
        append(document, "One of ");
        append_values(document, type);
        append(document, ".\n");
        break;
    case QMP_KIND_ALTERNATE:
        append(document, "One of:\n\n");
        for (const struct qmp_member *branch = type->members; branch->name; branch++) {
            append(document, "- ");
            append_type(document, branch->type);
            append(document, "%s%s\n", branch->doc ? ": " : "", branch->doc ? branch->doc : "");
        }
        break;
    default:
        append_members(document, type);
        break;
    }
}

static int compare_types(const void *a, const void *b)
{
    const struct qmp_type *const *left = a;
    const struct qmp_type *const *right = b;

    return g_strcmp0((*left)->name, (*right)->name);
}

static void append_commands(struct document *document, const struct qmp_command *const *tables)
{
    append(document, "\n## Commands\n");
    for (; *tables; tables++) {
        for (const struct qmp_command *command = *tables; command->name; command++) {
            append_command(document, command);
        }
    }
}

static void append_events(struct document *document, const struct qmp_event_type *const *tables)
{
    append(document, "\n## Events\n");
    for (; *tables; tables++) {
        for (const struct qmp_event_type *event = *tables; event->name; event++) {
            append_event(document, event);
        }
    }
}

static void append_types(struct document *document, GPtrArray *types)
{
    append(document, "\n## Types\n");
    g_ptr_array_sort(types, compare_types);
    for (guint n = 0; n < types->len; n++) {
        const struct qmp_type *type = g_ptr_array_index(types, n);

        if (g_hash_table_contains(document->sections, type)) {
            append_type_section(document, type);
        }
    }
}

/* A blank line between any two things, and none at the end. */
static char *finish(GString *text)
{
    while (g_string_replace(text, "\n\n\n", "\n\n", 0) > 0) {
    }
    while (g_str_has_suffix(text->str, "\n\n")) {
        g_string_truncate(text, text->len - 1);
    }
    return g_string_free(text, FALSE);
}

char *qmp_schema_document(const char *introduction, const struct qmp_note *notes,
                          const struct qmp_command *const *command_tables,
                          const struct qmp_event_type *const *event_tables)
{
    g_autoptr(GPtrArray) types = qmp_schema_types(command_tables, event_tables);
    g_autoptr(GHashTable) sections = g_hash_table_new(NULL, NULL);
    struct document document = {
        .text = g_string_new(introduction), .sections = sections, .notes = notes};

    choose_sections(&document, types, command_tables);
    append_commands(&document, command_tables);
    append_events(&document, event_tables);
    append_types(&document, types);
    return finish(document.text);
}
