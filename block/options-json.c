/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/options-json.h"

static void flatten(struct block_options *options, const char *key, json_t *value)
{
    g_autofree char *text = NULL;
    const char *name;
    size_t index;
    json_t *item;

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        json_object_foreach (value, name, item) {
            g_autofree char *nested = key ? g_strdup_printf("%s.%s", key, name) : g_strdup(name);

            flatten(options, nested, item);
        }
        break;
    case JSON_ARRAY:
        json_array_foreach (value, index, item) {
            g_autofree char *nested = g_strdup_printf("%s.%zu", key, index);

            flatten(options, nested, item);
        }
        break;
    case JSON_STRING:
        block_options_set(options, key, json_string_value(value));
        break;
    case JSON_INTEGER:
        text = g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
        block_options_set(options, key, text);
        break;
    case JSON_REAL:
        text = g_strdup_printf("%.17g", json_real_value(value));
        block_options_set(options, key, text);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        block_options_set(options, key, json_is_true(value) ? "on" : "off");
        break;
    case JSON_NULL:
        block_options_set(options, key, "");
        break;
    }
}

struct block_options *block_options_from_json(json_t *object)
{
    struct block_options *options = block_options_new();

    flatten(options, NULL, object);
    return options;
}
