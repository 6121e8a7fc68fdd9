/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Arguments against their types. Texts and their order are QEMU's: some name the full path of the
 * place ("file.cache.direct", "actions[0].data"), some its last part only, and that of a list's
 * element is "null".
 */
#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "server/qmp/json-value.h"
#include "server/qmp/schema-internal.h"

/* Where a value stands. */
struct place {
    const struct place *outer;
    const char *name; /* of a member; NULL: an element, or the outermost value */
    size_t index;     /* of an element */
    bool is_element;
};

static int check_value(const struct qmp_type *type, json_t *value, const struct place *place,
                       json_t **replacement, GError **error);

static void append_path(GString *path, const struct place *place)
{
    if (place->outer) {
        append_path(path, place->outer);
    }
    if (place->is_element) {
        g_string_append_printf(path, "[%zu]", place->index);
    } else if (place->name) {
        g_string_append_printf(path, "%s%s", path->len ? "." : "", place->name);
    }
}

static char *full_name(const struct place *place)
{
    GString *path = g_string_new(NULL);

    append_path(path, place);
    return g_string_free(path, FALSE);
}

static const char *last_name(const struct place *place)
{
    return place->name ? place->name : "null";
}

static int wrong_type(const struct place *place, const char *expected, GError **error)
{
    g_autofree char *name = full_name(place);

    return block_error(error, EINVAL, "Invalid parameter type for '%s', expected: %s", name,
                       expected);
}

static bool is_big(const json_t *value)
{
    uint64_t number;

    return json_value_is_big(value, &number);
}

static bool is_text(const json_t *value)
{
    return json_is_string(value) && !is_big(value);
}

static int check_enum(const struct qmp_type *type, json_t *value, const struct place *place,
                      GError **error)
{
    if (!is_text(value)) {
        return wrong_type(place, "string", error);
    }
    if (!g_strv_contains((const char *const *)type->values, json_string_value(value))) {
        return block_error(error, EINVAL, "Parameter '%s' does not accept value '%s'",
                           last_name(place), json_string_value(value));
    }
    return 0;
}

/* Negative numbers are taken as the unsigned number of the same 64 bits, as QEMU does. */
static int check_unsigned(const struct qmp_type *type, json_t *value, const struct place *place,
                          json_t **replacement, GError **error)
{
    uint64_t limit = type->kind == QMP_KIND_UINT16   ? UINT16_MAX
                     : type->kind == QMP_KIND_UINT32 ? UINT32_MAX
                                                     : UINT64_MAX;
    uint64_t number;

    if (json_is_integer(value)) {
        number = (uint64_t)json_integer_value(value);
    } else if (json_value_is_big(value, &number)) {
        *replacement = json_integer((json_int_t)number);
    } else {
        g_autofree char *name = full_name(place);

        return block_error(error, EINVAL, "Parameter '%s' expects uint64", name);
    }
    if (number > limit) {
        return block_error(error, EINVAL, "Parameter '%s' expects %s", last_name(place),
                           type->kind == QMP_KIND_UINT16 ? "uint16_t" : "uint32_t");
    }
    return 0;
}

static int check_number(json_t *value, const struct place *place, json_t **replacement,
                        GError **error)
{
    uint64_t number;

    if (json_value_is_big(value, &number)) {
        *replacement = json_real((double)number);
        return 0;
    }
    return json_is_number(value) ? 0 : wrong_type(place, "number", error);
}

static int check_member(const struct qmp_member *member, json_t *object, const struct place *place,
                        GError **error)
{
    struct place inner = {.outer = place, .name = member->name};
    json_t *value = json_object_get(object, member->name);
    json_t *replacement = NULL;
    int result;

    if (!value) {
        g_autofree char *name = full_name(&inner);

        return member->optional ? 0 : block_error(error, EINVAL, "Parameter '%s' is missing", name);
    }
    result = check_value(member->type, value, &inner, &replacement, error);
    if (replacement) {
        json_object_set_new_nocheck(object, member->name, replacement);
    }
    return result;
}

/* The members the discriminator's value chooses; NULL: none. */
static const struct qmp_type *chosen_variant(const struct qmp_type *type, json_t *object)
{
    json_t *value = type->discriminator ? json_object_get(object, type->discriminator) : NULL;

    return value ? qmp_type_variant(type, json_string_value(value)) : NULL;
}

/* Base members, own members, then those of the variant. */
static int check_members(const struct qmp_type *type, json_t *object, const struct place *place,
                         GError **error)
{
    const struct qmp_member *member;
    const struct qmp_type *variant;
    int result;

    if (type->base) {
        result = check_members(type->base, object, place, error);
        if (result < 0) {
            return result;
        }
    }
    for (member = type->members; member && member->name; member++) {
        result = check_member(member, object, place, error);
        if (result < 0) {
            return result;
        }
    }
    variant = chosen_variant(type, object);
    return variant ? check_members(variant, object, place, error) : 0;
}

static bool knows_member(const struct qmp_type *type, json_t *object, const char *name)
{
    for (; type; type = type->base) {
        const struct qmp_type *variant = chosen_variant(type, object);
        const struct qmp_member *member;

        for (member = type->members; member && member->name; member++) {
            if (strcmp(member->name, name) == 0) {
                return true;
            }
        }
        if (variant && knows_member(variant, object, name)) {
            return true;
        }
    }
    return false;
}

static int check_object(const struct qmp_type *type, json_t *object, const struct place *place,
                        GError **error)
{
    const char *key;
    json_t *value;
    int result;

    if (!json_is_object(object)) {
        return wrong_type(place, "object", error);
    }
    result = check_members(type, object, place, error);
    if (result < 0) {
        return result;
    }
    json_object_foreach (object, key, value) {
        if (!knows_member(type, object, key)) {
            struct place inner = {.outer = place, .name = key};
            g_autofree char *name = full_name(&inner);

            return block_error(error, EINVAL, "Parameter '%s' is unexpected", name);
        }
    }
    return 0;
}

static int check_array(const struct qmp_type *type, json_t *array, const struct place *place,
                       GError **error)
{
    size_t n;

    if (!json_is_array(array)) {
        return wrong_type(place, "array", error);
    }
    for (n = 0; n < json_array_size(array); n++) {
        struct place inner = {.outer = place, .index = n, .is_element = true};
        json_t *replacement = NULL;
        int result =
            check_value(type->element, json_array_get(array, n), &inner, &replacement, error);

        if (replacement) {
            json_array_set_new(array, n, replacement);
        }
        if (result < 0) {
            return result;
        }
    }
    return 0;
}

/* True if a JSON value of this type goes to an alternate's branch of this kind. */
static bool kind_takes(enum qmp_kind kind, const json_t *value)
{
    switch (kind) {
    case QMP_KIND_STRING:
    case QMP_KIND_ENUM:
        return is_text(value);
    case QMP_KIND_BOOL:
        return json_is_boolean(value);
    case QMP_KIND_INT:
    case QMP_KIND_UINT16:
    case QMP_KIND_UINT32:
    case QMP_KIND_UINT64:
    case QMP_KIND_SIZE:
    case QMP_KIND_NUMBER:
        return json_is_number(value) || is_big(value);
    case QMP_KIND_NULL:
        return json_is_null(value);
    case QMP_KIND_OBJECT:
        return json_is_object(value);
    case QMP_KIND_ARRAY:
        return json_is_array(value);
    case QMP_KIND_ANY:
    case QMP_KIND_ALTERNATE:
        break;
    }
    return false;
}

static int check_alternate(const struct qmp_type *type, json_t *value, const struct place *place,
                           json_t **replacement, GError **error)
{
    const struct qmp_member *branch;

    for (branch = type->members; branch->name; branch++) {
        if (kind_takes(branch->type->kind, value)) {
            return check_value(branch->type, value, place, replacement, error);
        }
    }
    return block_error(error, EINVAL, "Invalid parameter type for '%s', expected: %s",
                       last_name(place), type->name);
}

/* *replacement is set to what the container shall hold instead of the value, if anything. */
static int check_value(const struct qmp_type *type, json_t *value, const struct place *place,
                       json_t **replacement, GError **error)
{
    switch (type->kind) {
    case QMP_KIND_STRING:
        return is_text(value) ? 0 : wrong_type(place, "string", error);
    case QMP_KIND_BOOL:
        return json_is_boolean(value) ? 0 : wrong_type(place, "boolean", error);
    case QMP_KIND_INT:
        return json_is_integer(value) ? 0 : wrong_type(place, "integer", error);
    case QMP_KIND_UINT16:
    case QMP_KIND_UINT32:
    case QMP_KIND_UINT64:
    case QMP_KIND_SIZE:
        return check_unsigned(type, value, place, replacement, error);
    case QMP_KIND_NUMBER:
        return check_number(value, place, replacement, error);
    case QMP_KIND_NULL:
        return json_is_null(value) ? 0 : wrong_type(place, "null", error);
    case QMP_KIND_ENUM:
        return check_enum(type, value, place, error);
    case QMP_KIND_OBJECT:
        return check_object(type, value, place, error);
    case QMP_KIND_ARRAY:
        return check_array(type, value, place, error);
    case QMP_KIND_ALTERNATE:
        return check_alternate(type, value, place, replacement, error);
    case QMP_KIND_ANY:
        break;
    }
    return 0;
}

int qmp_check(const struct qmp_type *type, json_t *value, const char *name, GError **error)
{
    struct place place = {.name = name};
    json_t *replacement = NULL;
    int result = check_value(type, value, &place, &replacement, error);

    json_decref(replacement);
    return result;
}
