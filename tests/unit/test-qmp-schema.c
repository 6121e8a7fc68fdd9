/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Argument checks, introspection and documentation. The texts were observed with
 * qemu-storage-daemon, on the types that the ones here resemble.
 */
#include <glib.h>
#include <jansson.h>
#include <string.h>

#include "server/qmp/json-value.h"
#include "server/qmp/schema.h"

/* Types as QEMU's blockdev-add and transaction have them. */

static const struct qmp_type ref_type, ref_or_null_type, options_type;

static const char *const driver_values[] = {"file", "raw", "qcow2", "null-co", NULL};
static const struct qmp_type driver_type = {
    .name = "BlockdevDriver", .kind = QMP_KIND_ENUM, .values = driver_values};
static const struct qmp_member cache_members[] = {
    {.name = "direct", .type = &qmp_type_bool, .optional = true, .default_text = "false"},
    {.name = NULL},
};
static const struct qmp_type cache_type = {
    .name = "BlockdevCacheOptions", .kind = QMP_KIND_OBJECT, .members = cache_members};
static const struct qmp_member common_members[] = {
    {.name = "driver", .type = &driver_type, .doc = "The driver | format."},
    {.name = "node-name", .type = &qmp_type_string, .optional = true},
    {.name = "cache", .type = &cache_type, .optional = true},
    {.name = NULL},
};
static const struct qmp_type common_type = {
    .name = "BlockdevOptionsCommon", .kind = QMP_KIND_OBJECT, .members = common_members};

static const struct qmp_member file_members[] = {
    {.name = "filename", .type = &qmp_type_string},
    {.name = NULL},
};
static const struct qmp_type file_type = {
    .name = "BlockdevOptionsFile", .kind = QMP_KIND_OBJECT, .members = file_members};
static const struct qmp_member raw_members[] = {
    {.name = "file", .type = &ref_type},
    {.name = "size", .type = &qmp_type_int, .optional = true},
    {.name = NULL},
};
static const struct qmp_type raw_type = {
    .name = "BlockdevOptionsRaw", .kind = QMP_KIND_OBJECT, .members = raw_members};
static const struct qmp_member qcow2_members[] = {
    {.name = "backing", .type = &ref_or_null_type, .optional = true},
    {.name = NULL},
};
static const struct qmp_type qcow2_type = {.name = "BlockdevOptionsQcow2",
                                           .kind = QMP_KIND_OBJECT,
                                           .base = &raw_type,
                                           .members = qcow2_members};
static const struct qmp_variant options_variants[] = {
    {.value = "file", .type = &file_type},
    {.value = "raw", .type = &raw_type},
    {.value = "qcow2", .type = &qcow2_type},
    {.value = NULL},
};
static const struct qmp_type options_type = {.name = "BlockdevOptions",
                                             .kind = QMP_KIND_OBJECT,
                                             .base = &common_type,
                                             .discriminator = "driver",
                                             .variants = options_variants};
static const struct qmp_member ref_branches[] = {
    {.name = "definition", .type = &options_type},
    {.name = "reference", .type = &qmp_type_string},
    {.name = NULL},
};
static const struct qmp_type ref_type = {
    .name = "BlockdevRef", .kind = QMP_KIND_ALTERNATE, .members = ref_branches};
static const struct qmp_member ref_or_null_branches[] = {
    {.name = "definition", .type = &options_type},
    {.name = "reference", .type = &qmp_type_string},
    {.name = "null", .type = &qmp_type_null},
    {.name = NULL},
};
static const struct qmp_type ref_or_null_type = {
    .name = "BlockdevRefOrNull", .kind = QMP_KIND_ALTERNATE, .members = ref_or_null_branches};

static const struct qmp_member numbers_members[] = {
    {.name = "i", .type = &qmp_type_int, .optional = true},
    {.name = "u16", .type = &qmp_type_uint16, .optional = true},
    {.name = "u32", .type = &qmp_type_uint32, .optional = true},
    {.name = "u64", .type = &qmp_type_uint64, .optional = true},
    {.name = "size", .type = &qmp_type_size, .optional = true},
    {.name = "number", .type = &qmp_type_number, .optional = true},
    {.name = "null", .type = &qmp_type_null, .optional = true},
    {.name = "any", .type = &qmp_type_any, .optional = true},
    {.name = NULL},
};
static const struct qmp_type numbers_type = {
    .name = "Numbers", .kind = QMP_KIND_OBJECT, .members = numbers_members};

static const struct qmp_type ref_list_type = {
    .name = "BlockdevRefList", .kind = QMP_KIND_ARRAY, .element = &ref_type};
static const struct qmp_type driver_list_type = {
    .name = "BlockdevDriverList", .kind = QMP_KIND_ARRAY, .element = &driver_type};
static const struct qmp_type numbers_list_type = {
    .name = "NumbersList", .kind = QMP_KIND_ARRAY, .element = &numbers_type};
static const struct qmp_member list_members[] = {
    {.name = "refs", .type = &ref_list_type, .optional = true},
    {.name = "drivers", .type = &driver_list_type, .optional = true},
    {.name = "numbers", .type = &numbers_list_type, .optional = true},
    {.name = NULL},
};
static const struct qmp_type list_type = {
    .name = "Lists", .kind = QMP_KIND_OBJECT, .members = list_members};

/* Arguments in JSON with ' for ", and the error they bring; NULL: none. */
struct row {
    const char *arguments;
    const char *message;
};

static json_t *parse(const char *text)
{
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');
    json_t *value = json_loads(json, 0, NULL);

    g_assert_nonnull(value);
    return value;
}

static void check_value(const struct qmp_type *type, json_t *value, const char *message)
{
    g_autoptr(GError) error = NULL;
    int status = qmp_check(type, value, NULL, &error);

    if (message) {
        g_assert_cmpint(status, <, 0);
        g_assert_nonnull(error);
        g_assert_cmpstr(error->message, ==, message);
    } else {
        g_assert_no_error(error);
        g_assert_cmpint(status, ==, 0);
    }
}

static void check_rows(const struct qmp_type *type, const struct row *rows, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        json_t *value = parse(rows[n].arguments);

        g_test_message("%s", rows[n].arguments);
        check_value(type, value, rows[n].message);
        json_decref(value);
    }
}

static void test_members(void)
{
    static const struct row rows[] = {
        {"{}", "Parameter 'driver' is missing"},
        {"{'driver': 'null-co'}", NULL},
        {"{'driver': 'zz'}", "Parameter 'driver' does not accept value 'zz'"},
        {"{'driver': 1}", "Invalid parameter type for 'driver', expected: string"},
        {"{'driver': null}", "Invalid parameter type for 'driver', expected: string"},
        {"{'driver': 'null-co', 'filename': 'x'}", "Parameter 'filename' is unexpected"},
        {"{'driver': 'file'}", "Parameter 'filename' is missing"},
        {"{'foo': 1, 'driver': 'file'}", "Parameter 'filename' is missing"},
        {"{'foo': 1, 'driver': 'file', 'filename': 'x'}", "Parameter 'foo' is unexpected"},
        {"{'driver': 'file', 'filename': 'x', 'cache': {'direct': true}}", NULL},
        {"{'driver': 'file', 'cache': {'direct': 1}}",
         "Invalid parameter type for 'cache.direct', expected: boolean"},
        {"{'driver': 'file', 'cache': 3}", "Invalid parameter type for 'cache', expected: object"},
        {"{'driver': 'file', 'cache': null}",
         "Invalid parameter type for 'cache', expected: object"},
        {"{'driver': 'file', 'filename': 1, 'node-name': 2}",
         "Invalid parameter type for 'node-name', expected: string"},
    };

    check_rows(&options_type, rows, G_N_ELEMENTS(rows));
}

static void test_nested(void)
{
    static const struct row rows[] = {
        {"{'driver': 'raw', 'file': 'x'}", NULL},
        {"{'driver': 'raw', 'file': {'driver': 'file', 'filename': 'x'}}", NULL},
        {"{'driver': 'raw', 'file': 1}",
         "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"{'driver': 'raw', 'file': null}",
         "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"{'driver': 'raw', 'file': {'driver': 'zz'}}",
         "Parameter 'driver' does not accept value 'zz'"},
        {"{'driver': 'raw', 'file': {'driver': 1}}",
         "Invalid parameter type for 'file.driver', expected: string"},
        {"{'driver': 'raw', 'file': {'driver': 'file'}}", "Parameter 'file.filename' is missing"},
        {"{'driver': 'raw', 'file': {'driver': 'file', 'filename': 'x', 'zz': 1}, 'foo': 1}",
         "Parameter 'file.zz' is unexpected"},
        {"{'driver': 'raw', 'file': {'driver': 'raw', 'file': 2}}",
         "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"{'driver': 'raw', 'file': {'driver': 'raw', 'file': {'driver': 'file'}}}",
         "Parameter 'file.file.filename' is missing"},
        {"{'driver': 'qcow2', 'file': 'x', 'backing': null}", NULL},
        {"{'driver': 'qcow2', 'file': 'x', 'backing': 3}",
         "Invalid parameter type for 'backing', expected: BlockdevRefOrNull"},
        {"{'driver': 'qcow2', 'file': 'x', 'backing': {'driver': 'qcow2'}}",
         "Parameter 'backing.file' is missing"},
        {"{'driver': 'qcow2', 'backing': 3}", "Parameter 'file' is missing"},
    };

    check_rows(&options_type, rows, G_N_ELEMENTS(rows));
}

static void test_numbers(void)
{
    static const struct row rows[] = {
        {"{'i': -1, 'u16': 65535, 'u32': 4294967295, 'u64': -1, 'size': -1}", NULL},
        {"{'i': 1.5}", "Invalid parameter type for 'i', expected: integer"},
        {"{'i': 1e3}", "Invalid parameter type for 'i', expected: integer"},
        {"{'i': '1'}", "Invalid parameter type for 'i', expected: integer"},
        {"{'u16': 65536}", "Parameter 'u16' expects uint16_t"},
        {"{'u16': 'a'}", "Parameter 'u16' expects uint64"},
        {"{'u32': 4294967296}", "Parameter 'u32' expects uint32_t"},
        {"{'u32': -1}", "Parameter 'u32' expects uint32_t"},
        {"{'u32': null}", "Parameter 'u32' expects uint64"},
        {"{'u64': 1.5}", "Parameter 'u64' expects uint64"},
        {"{'u64': true}", "Parameter 'u64' expects uint64"},
        {"{'size': 1e3}", "Parameter 'size' expects uint64"},
        {"{'number': 'a'}", "Invalid parameter type for 'number', expected: number"},
        {"{'number': 1.5}", NULL},
        {"{'number': -3}", NULL},
        {"{'null': 0}", "Invalid parameter type for 'null', expected: null"},
        {"{'null': null}", NULL},
        {"{'any': {'x': [null]}}", NULL},
    };

    check_rows(&numbers_type, rows, G_N_ELEMENTS(rows));
}

static void check_big(const char *member, const char *message)
{
    json_t *arguments = json_object();

    json_object_set_new(arguments, member, json_value_from_u64(UINT64_MAX - 1));
    check_value(&numbers_type, arguments, message);
    json_decref(arguments);
}

static void test_big_numbers(void)
{
    json_t *arguments = json_object();

    check_big("i", "Invalid parameter type for 'i', expected: integer");
    check_big("u32", "Parameter 'u32' expects uint32_t");
    check_big("null", "Invalid parameter type for 'null', expected: null");
    json_object_set_new(arguments, "u64", json_value_from_u64(UINT64_MAX - 1));
    json_object_set_new(arguments, "size", json_value_from_u64((uint64_t)INT64_MAX + 1));
    json_object_set_new(arguments, "number", json_value_from_u64(UINT64_C(1) << 63));
    check_value(&numbers_type, arguments, NULL);
    g_assert_cmpuint((uint64_t)json_integer_value(json_object_get(arguments, "u64")), ==,
                     UINT64_MAX - 1);
    g_assert_cmpuint((uint64_t)json_integer_value(json_object_get(arguments, "size")), ==,
                     (uint64_t)INT64_MAX + 1);
    g_assert_cmpfloat(json_number_value(json_object_get(arguments, "number")), ==, 0x1p63);
    json_decref(arguments);

    /* It is no string, whatever holds it. */
    arguments = json_object();
    json_object_set_new(arguments, "driver", json_value_from_u64(UINT64_MAX));
    check_value(&options_type, arguments, "Invalid parameter type for 'driver', expected: string");
    json_object_set_new(arguments, "driver", json_string("raw"));
    json_object_set_new(arguments, "file", json_value_from_u64(UINT64_MAX));
    check_value(&options_type, arguments,
                "Invalid parameter type for 'file', expected: BlockdevRef");
    json_decref(arguments);
}

static void test_lists(void)
{
    static const struct row rows[] = {
        {"{'refs': [], 'drivers': ['raw', 'file'], 'numbers': [{}]}", NULL},
        {"{'refs': {}}", "Invalid parameter type for 'refs', expected: array"},
        {"{'refs': [1]}", "Invalid parameter type for 'null', expected: BlockdevRef"},
        {"{'refs': ['x', {'driver': 'file'}]}", "Parameter 'refs[1].filename' is missing"},
        {"{'drivers': ['bogus']}", "Parameter 'null' does not accept value 'bogus'"},
        {"{'drivers': ['raw', 1]}", "Invalid parameter type for 'drivers[1]', expected: string"},
        {"{'numbers': [1]}", "Invalid parameter type for 'numbers[0]', expected: object"},
        {"{'numbers': [{}, {'u64': 'x'}]}", "Parameter 'numbers[1].u64' expects uint64"},
        {"{'numbers': [{}, {'u32': -1}]}", "Parameter 'u32' expects uint32_t"},
        {"{'numbers': [{'x': 1}]}", "Parameter 'numbers[0].x' is unexpected"},
    };

    check_rows(&list_type, rows, G_N_ELEMENTS(rows));
}

static void test_no_arguments(void)
{
    static const struct row rows[] = {
        {"{}", NULL},
        {"{'x': 1}", "Parameter 'x' is unexpected"},
    };

    check_rows(&qmp_type_empty, rows, G_N_ELEMENTS(rows));
}

/* Introspection and documentation */

static const struct qmp_command commands[] = {
    {.name = "blockdev-add", .arguments = &options_type, .doc = "Add a node."},
    {.name = "list", .arguments = &list_type, .returns = &numbers_list_type},
    {.name = "quit"},
    {.name = NULL},
};
static const struct qmp_command *const command_tables[] = {commands, NULL};
static const struct qmp_event_type events[] = {
    {.name = "STOP"},
    {.name = "ADDED", .data = &common_type},
    {.name = NULL},
};
static const struct qmp_event_type *const event_tables[] = {events, NULL};

static const char *text(json_t *entry, const char *key)
{
    const char *value = json_string_value(json_object_get(entry, key));

    g_assert_nonnull(value);
    return value;
}

/* The one entry with a name. */
static json_t *entry(json_t *schema, const char *name, const char *meta_type)
{
    json_t *found = NULL;
    json_t *candidate;
    size_t n;

    json_array_foreach (schema, n, candidate) {
        if (strcmp(text(candidate, "name"), name) == 0) {
            g_assert_null(found);
            found = candidate;
        }
    }
    g_assert_nonnull(found);
    g_assert_cmpstr(text(found, "meta-type"), ==, meta_type);
    return found;
}

static json_t *member(json_t *object, const char *name)
{
    json_t *candidate;
    size_t n;

    json_array_foreach (json_object_get(object, "members"), n, candidate) {
        if (strcmp(text(candidate, "name"), name) == 0) {
            return candidate;
        }
    }
    g_assert_not_reached();
}

static void test_introspect_commands(void)
{
    json_t *schema = qmp_schema_introspect(command_tables, event_tables);
    json_t *quit = entry(schema, "quit", "command");
    json_t *empty = entry(schema, text(quit, "arg-type"), "object");
    json_t *list = entry(schema, "list", "command");
    json_t *numbers = entry(schema, text(list, "ret-type"), "array");
    json_t *element = entry(schema, text(numbers, "element-type"), "object");
    g_autofree char *array_name = g_strdup_printf("[%s]", text(element, "name"));

    g_assert_cmpstr(text(quit, "ret-type"), ==, text(empty, "name"));
    g_assert_cmpuint(json_array_size(json_object_get(empty, "members")), ==, 0);
    g_assert_cmpstr(text(numbers, "name"), ==, array_name);
    g_assert_true(g_ascii_isdigit(text(element, "name")[0]));
    /* All integers appear as int. */
    g_assert_cmpstr(text(member(element, "u16"), "type"), ==, "int");
    g_assert_cmpstr(text(member(element, "size"), "type"), ==, "int");
    g_assert_cmpstr(text(entry(schema, "int", "builtin"), "json-type"), ==, "int");
    g_assert_cmpstr(text(entry(schema, "any", "builtin"), "json-type"), ==, "value");
    g_assert_cmpstr(text(entry(schema, "STOP", "event"), "arg-type"), ==, text(empty, "name"));
    json_decref(schema);
}

static void test_introspect_union(void)
{
    json_t *schema = qmp_schema_introspect(command_tables, event_tables);
    json_t *add = entry(schema, "blockdev-add", "command");
    json_t *options = entry(schema, text(add, "arg-type"), "object");
    json_t *variants = json_object_get(options, "variants");
    json_t *driver = entry(schema, text(member(options, "driver"), "type"), "enum");
    json_t *qcow2, *null_co, *backing;

    g_assert_cmpstr(text(options, "tag"), ==, "driver");
    g_assert_null(json_object_get(member(options, "driver"), "default"));
    g_assert_true(json_is_null(json_object_get(member(options, "node-name"), "default")));
    g_assert_cmpuint(json_array_size(variants), ==, 4);
    g_assert_cmpuint(json_array_size(json_object_get(driver, "values")), ==, 4);
    g_assert_cmpstr(text(member(driver, "raw"), "name"), ==, "raw");

    qcow2 = json_array_get(variants, 2);
    g_assert_cmpstr(text(qcow2, "case"), ==, "qcow2");
    qcow2 = entry(schema, text(qcow2, "type"), "object");
    g_assert_cmpstr(text(member(qcow2, "size"), "type"), ==, "int"); /* the base's */
    backing = entry(schema, text(member(qcow2, "backing"), "type"), "alternate");
    g_assert_cmpuint(json_array_size(json_object_get(backing, "members")), ==, 3);
    entry(schema, "null", "builtin");

    null_co = json_array_get(variants, 3);
    g_assert_cmpstr(text(null_co, "case"), ==, "null-co");
    null_co = entry(schema, text(null_co, "type"), "object");
    g_assert_cmpuint(json_array_size(json_object_get(null_co, "members")), ==, 0);
    json_decref(schema);
}

/* Every reference leads to an entry, and no user type shows its name. */
static void test_introspect_closed(void)
{
    json_t *schema = qmp_schema_introspect(command_tables, event_tables);
    g_autofree char *all = json_dumps(schema, JSON_COMPACT);
    json_t *outer, *inner;
    size_t n, m;

    g_assert_null(strstr(all, "BlockdevRef"));
    g_assert_null(strstr(all, "Numbers"));
    json_array_foreach (schema, n, outer) {
        json_array_foreach (json_object_get(outer, "members"), m, inner) {
            const char *type = json_string_value(json_object_get(inner, "type"));
            size_t k, found = 0;
            json_t *candidate;

            json_array_foreach (schema, k, candidate) {
                found += type && strcmp(text(candidate, "name"), type) == 0;
            }
            g_assert_cmpuint(found, ==, type ? 1 : 0);
        }
    }
    json_decref(schema);
}

static void test_document(void)
{
    static const struct qmp_note notes[] = {{"blockdev-add", "As in QEMU."}, {NULL}};
    g_autofree char *document =
        qmp_schema_document("# Title\n", notes, command_tables, event_tables);

    g_assert_true(g_str_has_prefix(document, "# Title\n\n## Commands\n\n"));
    g_assert_nonnull(strstr(document, "### blockdev-add\n\nAdd a node.\n\n"
                                      "Compatibility: As in QEMU.\n\nArguments:"));
    g_assert_nonnull(strstr(document, "| `driver` | `file`, `raw`, `qcow2`, `null-co` | required | "
                                      "The driver \\| format. |"));
    g_assert_nonnull(strstr(document, "| `direct` | bool | optional, default `false` |"));
    g_assert_nonnull(strstr(document, "If `driver` is `file`, also:\n\n|"));
    g_assert_nonnull(strstr(document, "Returns: array of [Numbers](#numbers)\n"));
    g_assert_nonnull(strstr(document, "### quit\n\nArguments: none\n\nReturns: {}\n"));
    g_assert_nonnull(strstr(document, "### STOP\n\nData: none\n"));
    g_assert_nonnull(strstr(document, "### BlockdevRef\n\nOne of:\n"));
    g_assert_null(strstr(document, "\n\n\n"));
    g_assert_true(g_str_has_suffix(document, "\n") && !g_str_has_suffix(document, "\n\n"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-schema/members-are-checked-in-schema-order", test_members);
    g_test_add_func("/qmp-schema/nested-places-are-named-as-qemu-does", test_nested);
    g_test_add_func("/qmp-schema/numbers-must-fit", test_numbers);
    g_test_add_func("/qmp-schema/numbers-above-int64-are-unsigned-arguments", test_big_numbers);
    g_test_add_func("/qmp-schema/elements-of-lists", test_lists);
    g_test_add_func("/qmp-schema/no-arguments-means-none", test_no_arguments);
    g_test_add_func("/qmp-schema/introspection-of-commands-and-events", test_introspect_commands);
    g_test_add_func("/qmp-schema/introspection-of-unions-and-alternates", test_introspect_union);
    g_test_add_func("/qmp-schema/introspection-is-closed-and-masked", test_introspect_closed);
    g_test_add_func("/qmp-schema/documents-everything", test_document);
    return g_test_run();
}
