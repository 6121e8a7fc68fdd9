/* SPDX-License-Identifier: BSD-3-Clause */
/* docs/qmp.md: every command, event and type of the tables. */
#include "server/qmp/schema-internal.h"

static bool has_own_section(const struct qmp_type *type)
{
    return (type->kind == QMP_KIND_OBJECT && type != &qmp_type_empty) ||
           type->kind == QMP_KIND_ENUM || type->kind == QMP_KIND_ALTERNATE;
}

/* A type's name, linked to its section if it has one. */
static void append_type(GString *out, const struct qmp_type *type)
{
    if (type->kind == QMP_KIND_ARRAY) {
        g_string_append(out, "array of ");
        append_type(out, type->element);
    } else if (has_own_section(type)) {
        g_autofree char *anchor = g_ascii_strdown(type->name, -1);

        g_string_append_printf(out, "[%s](#%s)", type->name, anchor);
    } else {
        g_string_append(out, type == &qmp_type_empty ? "{}" : type->name);
    }
}

/* A table's cell: a bar would end it. */
static void append_cell(GString *out, const char *text)
{
    for (; text && *text; text++) {
        if (*text == '|') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *text == '\n' ? ' ' : *text);
    }
}

static void append_row(GString *out, const struct qmp_member *member, const char *condition)
{
    g_string_append_printf(out, "| `%s` | ", member->name);
    append_type(out, member->type);
    g_string_append_printf(out, " | %s", member->optional ? "optional" : "required");
    if (member->default_text) {
        g_string_append(out, ", default ");
        append_cell(out, member->default_text);
    }
    g_string_append_printf(out, " | %s", condition);
    append_cell(out, member->doc);
    g_string_append(out, " |\n");
}

static void append_rows(GString *out, const struct qmp_type *type, const char *condition)
{
    const struct qmp_member *member;
    const struct qmp_variant *variant;

    if (type->base) {
        append_rows(out, type->base, condition);
    }
    for (member = type->members; member && member->name; member++) {
        append_row(out, member, condition);
    }
    for (variant = type->variants; variant && variant->value; variant++) {
        if (variant->type) {
            g_autofree char *inner =
                g_strdup_printf("%s`%s` = `%s`: ", condition, type->discriminator, variant->value);

            append_rows(out, variant->type, inner);
        }
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

static void append_members(GString *out, const struct qmp_type *type)
{
    g_string_append(out, "| Name | Type | | Meaning |\n|---|---|---|---|\n");
    append_rows(out, type, "");
    g_string_append_c(out, '\n');
}

static void append_heading(GString *out, const char *name, const char *doc)
{
    g_string_append_printf(out, "### %s\n\n", name);
    if (doc) {
        g_string_append_printf(out, "%s\n\n", doc);
    }
}

static void append_command(GString *out, const struct qmp_command *command)
{
    append_heading(out, command->name, command->doc);
    if (command->arguments && has_members(command->arguments)) {
        g_string_append(out, "Arguments:\n\n");
        append_members(out, command->arguments);
    } else {
        g_string_append(out, "Arguments: none\n\n");
    }
    g_string_append(out, "Returns: ");
    append_type(out, command->returns ? command->returns : &qmp_type_empty);
    g_string_append(out, "\n\n");
}

static void append_event(GString *out, const struct qmp_event_type *event)
{
    append_heading(out, event->name, event->doc);
    if (event->data && has_members(event->data)) {
        g_string_append(out, "Data:\n\n");
        append_members(out, event->data);
    } else {
        g_string_append(out, "Data: none\n\n");
    }
}

static void append_type_section(GString *out, const struct qmp_type *type)
{
    const struct qmp_member *branch;
    const char *const *value;

    append_heading(out, type->name, type->doc);
    switch (type->kind) {
    case QMP_KIND_ENUM:
        g_string_append(out, "One of:\n\n");
        for (value = type->values; *value; value++) {
            g_string_append_printf(out, "- `%s`\n", *value);
        }
        g_string_append_c(out, '\n');
        break;
    case QMP_KIND_ALTERNATE:
        g_string_append(out, "One of:\n\n");
        for (branch = type->members; branch->name; branch++) {
            g_string_append(out, "- ");
            append_type(out, branch->type);
            g_string_append_printf(out, "%s%s\n", branch->doc ? ": " : "",
                                   branch->doc ? branch->doc : "");
        }
        g_string_append_c(out, '\n');
        break;
    default:
        append_members(out, type);
        break;
    }
}

static int compare_types(const void *a, const void *b)
{
    const struct qmp_type *const *left = a;
    const struct qmp_type *const *right = b;

    return g_strcmp0((*left)->name, (*right)->name);
}

static void append_types(GString *out, const struct qmp_command *const *command_tables,
                         const struct qmp_event_type *const *event_tables)
{
    g_autoptr(GPtrArray) types = qmp_schema_types(command_tables, event_tables);
    guint n;

    g_ptr_array_sort(types, compare_types);
    for (n = 0; n < types->len; n++) {
        const struct qmp_type *type = g_ptr_array_index(types, n);

        if (has_own_section(type)) {
            append_type_section(out, type);
        }
    }
}

char *qmp_schema_document(const struct qmp_command *const *command_tables,
                          const struct qmp_event_type *const *event_tables)
{
    GString *out =
        g_string_new("<!-- Made from the command tables in server/qmp; do not edit. -->\n"
                     "# The admin channel: commands and events\n\n"
                     "## Commands\n\n");
    const struct qmp_command *const *commands;
    const struct qmp_event_type *const *events;

    for (commands = command_tables; *commands; commands++) {
        const struct qmp_command *command;

        for (command = *commands; command->name; command++) {
            append_command(out, command);
        }
    }
    g_string_append(out, "## Events\n\n");
    for (events = event_tables; *events; events++) {
        const struct qmp_event_type *event;

        for (event = *events; event->name; event++) {
            append_event(out, event);
        }
    }
    g_string_append(out, "## Types\n\n");
    append_types(out, command_tables, event_tables);
    return g_string_free(out, FALSE);
}
