/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/option-text.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "block/options.h"
#include "server/qmp/json-stream.h"
#include "server/qmp/json-value.h"
#include "server/qmp/schema-internal.h"

/* ---- JSON ------------------------------------------------------------------------------------ */

struct reading {
    json_t *value;
    char *problem; /* the first */
    unsigned count;
};

static void take_value(json_t *value, const char *problem, void *data)
{
    struct reading *reading = data;

    reading->count++;
    if (problem && !reading->problem) {
        reading->problem = g_strdup(problem);
    } else if (value && !reading->value) {
        reading->value = value;
    } else {
        json_decref(value);
    }
}

json_t *option_text_read_json(const char *text, GError **error)
{
    struct reading reading = {0};
    struct json_stream *stream = json_stream_new(take_value, &reading);
    size_t length = strlen(text);

    for (size_t used = 0; used < length;) {
        used += json_stream_feed(stream, text + used, length - used);
    }
    json_stream_feed(stream, "\n", 1); /* that ends a number */
    json_stream_free(stream);
    bool is_good = !reading.problem && reading.count == 1 && json_is_object(reading.value);
    if (!is_good) {
        block_error(error, EINVAL, "%s",
                    reading.problem ? reading.problem
                                    : "A single, complete JSON object is expected");
        json_decref(reading.value);
    }
    g_free(reading.problem);
    return is_good ? reading.value : NULL;
}

/* ---- Keys and values ------------------------------------------------------------------------- */

/* Put a text at a dotted key, making objects on the way. */
static int put(json_t *object, const char *key, const char *text, GError **error)
{
    g_auto(GStrv) names = g_strsplit(key, ".", -1);
    guint last = g_strv_length(names) - 1;

    for (guint i = 0; i < last; i++) {
        json_t *inner = json_object_get(object, names[i]);

        if (!inner) {
            inner = json_object();
            json_object_set_new(object, names[i], inner);
        }
        if (!json_is_object(inner)) {
            return block_error(error, EINVAL, "Parameters '%s' and '%s' exclude each other",
                               names[i], key);
        }
        object = inner;
    }
    if (json_object_get(object, names[last])) {
        return block_error(error, EINVAL, "Parameter '%s' has both a value and members", key);
    }
    if (json_object_set_new(object, names[last], json_string(text)) < 0) {
        return block_error(error, EINVAL, "The value of '%s' is no valid UTF-8", key);
    }
    return 0;
}

static json_t *read_keys(const char *text, const char *implied_key, GError **error)
{
    AUTO(block_options) options = block_options_parse(text, implied_key, error);
    g_auto(GStrv) keys = options ? block_options_keys(options) : NULL;
    json_t *object = json_object();

    for (char **key = keys; key && *key; key++) {
        if (put(object, *key, block_options_get(options, *key), error) < 0) {
            json_decref(object);
            return NULL;
        }
    }
    if (!options) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* ---- Types ----------------------------------------------------------------------------------- */

static json_t *typed(const struct qmp_type *type, json_t *value);

static json_t *typed_number(json_t *text)
{
    const char *digits = json_string_value(text);
    gint64 number;
    guint64 big;

    if (g_ascii_string_to_signed(digits, 10, INT64_MIN, INT64_MAX, &number, NULL)) {
        return json_integer(number);
    }
    return g_ascii_string_to_unsigned(digits, 10, 0, UINT64_MAX, &big, NULL)
               ? json_value_from_u64(big)
               : json_incref(text);
}

static json_t *typed_size(json_t *text)
{
    uint64_t bytes;

    return block_parse_size(json_string_value(text), &bytes, NULL) == 0 ? json_value_from_u64(bytes)
                                                                        : typed_number(text);
}

static json_t *typed_bool(json_t *text)
{
    bool value;

    return block_parse_bool(json_string_value(text), &value, NULL) == 0 ? json_boolean(value)
                                                                        : json_incref(text);
}

/* What is no text of that type stays a text, of which qmp_check complains then. */
static json_t *typed_text(const struct qmp_type *type, json_t *text)
{
    switch (type->kind) {
    case QMP_KIND_BOOL:
        return typed_bool(text);
    case QMP_KIND_INT:
    case QMP_KIND_UINT16:
    case QMP_KIND_UINT32:
    case QMP_KIND_UINT64:
    case QMP_KIND_NUMBER:
        return typed_number(text);
    case QMP_KIND_SIZE:
        return typed_size(text);
    case QMP_KIND_ALTERNATE:
        for (const struct qmp_member *branch = type->members; branch->name; branch++) {
            if (branch->type->kind != QMP_KIND_OBJECT && branch->type->kind != QMP_KIND_NULL) {
                return typed(branch->type, text);
            }
        }
        return json_incref(text);
    default:
        return json_incref(text);
    }
}

static void type_members(const struct qmp_type *type, json_t *object)
{
    if (type->base) {
        type_members(type->base, object);
    }
    for (const struct qmp_member *member = type->members; member && member->name; member++) {
        json_t *value = json_object_get(object, member->name);

        if (value) {
            json_object_set_new_nocheck(object, member->name, typed(member->type, value));
        }
    }
    const char *choice = type->discriminator
                             ? json_string_value(json_object_get(object, type->discriminator))
                             : NULL;
    const struct qmp_type *variant = choice ? qmp_type_variant(type, choice) : NULL;
    if (variant) {
        type_members(variant, object);
    }
}

/* An object with the keys 0, 1, ...; others stay what they are. */
static json_t *typed_list(const struct qmp_type *element, json_t *object)
{
    json_t *list = json_array();
    size_t count = json_object_size(object);

    for (size_t i = 0; i < count; i++) {
        g_autofree char *key = g_strdup_printf("%zu", i);
        json_t *value = json_object_get(object, key);

        if (!value) {
            json_decref(list);
            return json_incref(object);
        }
        json_array_append_new(list, typed(element, value));
    }
    return list;
}

static const struct qmp_type *object_branch(const struct qmp_type *alternate)
{
    const struct qmp_member *branch = alternate->members;

    while (branch->name && branch->type->kind != QMP_KIND_OBJECT) {
        branch++;
    }
    return branch->name ? branch->type : NULL;
}

/* A new reference to the value as the type wants it, as far as that can be told. */
static json_t *typed(const struct qmp_type *type, json_t *value)
{
    const struct qmp_type *object = type->kind == QMP_KIND_OBJECT      ? type
                                    : type->kind == QMP_KIND_ALTERNATE ? object_branch(type)
                                                                       : NULL;

    if (json_is_string(value)) {
        return typed_text(type, value);
    }
    if (type->kind == QMP_KIND_ARRAY) {
        return typed_list(type->element, value);
    }
    if (object) {
        type_members(object, value);
    }
    return json_incref(value);
}

json_t *option_text_read(const char *text, const char *implied_key, const struct qmp_type *type,
                         GError **error)
{
    bool is_json = *text == '{';
    const struct qmp_type *expected = type ? type : &qmp_type_empty;
    json_t *value =
        is_json ? option_text_read_json(text, error) : read_keys(text, implied_key, error);

    if (value && !is_json) {
        type_members(expected, value);
    }
    if (value && qmp_check(expected, value, NULL, error) < 0) {
        json_decref(value);
        return NULL;
    }
    return value;
}

/* ---- Help ------------------------------------------------------------------------------------ */

static char *help_on_variants(const char *title, const struct qmp_type *type)
{
    GString *help = g_string_new(NULL);

    g_string_append_printf(help, "%s\n", title);
    for (const struct qmp_variant *variant = type->variants; variant->value; variant++) {
        g_string_append_printf(help, "  %s\n", variant->value);
    }
    return g_string_free(help, FALSE);
}

static char *help_on_variant(const struct qmp_variant *variant)
{
    GString *help = g_string_new(NULL);

    g_string_append_printf(help, "%s options:\n", variant->value);
    for (const struct qmp_type *type = variant->type; type; type = type->base) {
        for (const struct qmp_member *member = type->members; member && member->name; member++) {
            g_string_append_printf(help, "  %s=<%s> - %s\n", member->name, member->type->name,
                                   member->doc);
        }
    }
    return g_string_free(help, FALSE);
}

char *option_text_help(const char *text, const char *title, const struct qmp_type *type)
{
    const char *comma = strchr(text, ',');

    if (!strcmp(text, "help")) {
        return help_on_variants(title, type);
    }
    for (const struct qmp_variant *variant = type->variants; variant->value; variant++) {
        size_t length = strlen(variant->value);

        if (comma && !strcmp(comma, ",help") && (size_t)(comma - text) == length &&
            !strncmp(text, variant->value, length)) {
            return help_on_variant(variant);
        }
    }
    return NULL;
}
