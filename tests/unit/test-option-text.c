/* SPDX-License-Identifier: BSD-3-Clause */
/* Arguments on command lines: the table says what a text is, and what is wrong is said as in QMP.
 */
#include "server/option-text.h"

#include <string.h>

static const char *const kinds[] = {"file", "list", NULL};
static const struct qmp_type kind_type = {.name = "Kind", .kind = QMP_KIND_ENUM, .values = kinds};
static const struct qmp_member file_members[] = {
    {"filename", &qmp_type_string},
    {"size", &qmp_type_size, .optional = true},
    {NULL},
};
static const struct qmp_type file_type = {
    .name = "File", .kind = QMP_KIND_OBJECT, .members = file_members};
static const struct qmp_member reference_members[] = {
    {"definition", &file_type}, {"reference", &qmp_type_string}, {NULL}};
static const struct qmp_type reference_type = {
    .name = "Reference", .kind = QMP_KIND_ALTERNATE, .members = reference_members};
static const struct qmp_type references_type = {
    .name = "References", .kind = QMP_KIND_ARRAY, .element = &reference_type};
static const struct qmp_member list_members[] = {{"of", &references_type}, {NULL}};
static const struct qmp_type list_type = {
    .name = "List", .kind = QMP_KIND_OBJECT, .members = list_members};
static const struct qmp_member base_members[] = {
    {"id", &qmp_type_string, .optional = true}, {"on", &qmp_type_bool, .optional = true}, {NULL}};
static const struct qmp_type base_type = {
    .name = "Base", .kind = QMP_KIND_OBJECT, .members = base_members};
static const struct qmp_member members[] = {
    {"kind", &kind_type},
    {"count", &qmp_type_int, .optional = true},
    {"limit", &qmp_type_uint32, .optional = true},
    {"big", &qmp_type_uint64, .optional = true},
    {NULL},
};
static const struct qmp_variant variants[] = {{"file", &file_type}, {"list", &list_type}, {NULL}};
static const struct qmp_type type = {
    .name = "Options",
    .kind = QMP_KIND_OBJECT,
    .base = &base_type,
    .members = members,
    .discriminator = "kind",
    .variants = variants,
};

static void expect(const char *text, const char *json)
{
    g_autoptr(GError) error = NULL;
    json_t *expected = json_loads(json, 0, NULL);
    json_t *value = option_text_read(text, "kind", &type, &error);

    g_assert_no_error(error);
    g_assert_nonnull(expected);
    g_assert_true(json_equal(value, expected));
    json_decref(expected);
    json_decref(value);
}

static void refuse(const char *text, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(option_text_read(text, "kind", &type, &error));
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

static void test_types(void)
{
    expect("file,filename=a,,b,size=64k,id=7,on=off",
           "{\"kind\":\"file\",\"filename\":\"a,b\",\"size\":65536,\"id\":\"7\",\"on\":false}");
    expect("kind=file,on,filename=", "{\"on\":true,\"kind\":\"file\",\"filename\":\"\"}");
    expect("file,filename=1,count=-5,limit=4294967295,big=18446744073709551615",
           "{\"kind\":\"file\",\"filename\":\"1\",\"count\":-5,\"limit\":4294967295,\"big\":-1}");
    expect("list,of.0=a,of.1.filename=b,of.1.size=0x200",
           "{\"kind\":\"list\",\"of\":[\"a\",{\"filename\":\"b\",\"size\":512}]}");
}

static void test_json(void)
{
    expect("{'kind':'file','filename':'a'}", "{\"kind\":\"file\",\"filename\":\"a\"}");
    refuse("{\"kind\":\"file\",\"filename\":\"a\",\"size\":\"64k\"}",
           "Parameter 'size' expects uint64");
    refuse("{\"kind\":\"file\"", "A single, complete JSON object is expected");
    refuse("{}{}", "A single, complete JSON object is expected");
    refuse("{\"a\":}", "JSON parse error, expecting value");
}

static void test_refusals(void)
{
    refuse("file", "Parameter 'filename' is missing");
    refuse("file,filename=a,of.0=b", "Parameter 'of' is unexpected");
    refuse("file,filename=a,on=maybe", "Invalid parameter type for 'on', expected: boolean");
    refuse("file,filename=a,count=1.5", "Invalid parameter type for 'count', expected: integer");
    refuse("file,filename=a,limit=4294967296", "Parameter 'limit' expects uint32_t");
    refuse("file,filename.x=a", "Invalid parameter type for 'filename', expected: string");
    refuse("list,of=a", "Invalid parameter type for 'of', expected: array");
    refuse("list,of.1=a", "Invalid parameter type for 'of', expected: array");
    refuse("list,of.0=a,of.0.filename=b", "Parameters '0' and 'of.0.filename' exclude each other");
    refuse("file,filename=a,", "Parameter expected after the last ','");
    refuse("nothing", "Parameter 'kind' does not accept value 'nothing'");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/option-text/the-table-says-what-a-text-is", test_types);
    g_test_add_func("/option-text/json-is-taken-as-it-is", test_json);
    g_test_add_func("/option-text/what-is-wrong-is-said-as-in-qmp", test_refusals);
    return g_test_run();
}
