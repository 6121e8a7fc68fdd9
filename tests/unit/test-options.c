/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/driver.h"
#include "block/error.h"
#include "block/options.h"

/* What every type of option is extracted into. */
struct rule {
    char *event;
    uint64_t count;
    bool once;
};

struct values {
    char *path;
    bool locking;
    int64_t shift;
    uint64_t serial;
    uint64_t size;
    int discard;
    struct block_address server;
    char **hosts;
    struct block_option_list rules;
};

static const char *const discard_names[] = {"ignore", "unmap", NULL};

static const struct block_option rule_table[] = {
    {"event", BLOCK_OPTION_STRING, offsetof(struct rule, event), .required = true},
    {"count", BLOCK_OPTION_UINT, offsetof(struct rule, count), .default_text = "3"},
    {"once", BLOCK_OPTION_BOOL, offsetof(struct rule, once)},
    {NULL},
};

static const struct block_option table[] = {
    {"path", BLOCK_OPTION_STRING, offsetof(struct values, path), .required = true},
    {"locking", BLOCK_OPTION_BOOL, offsetof(struct values, locking), .default_text = "on"},
    {"shift", BLOCK_OPTION_INT, offsetof(struct values, shift)},
    {"serial", BLOCK_OPTION_UINT, offsetof(struct values, serial), .default_text = "7"},
    {"size", BLOCK_OPTION_SIZE, offsetof(struct values, size), .default_text = "1M"},
    {"discard", BLOCK_OPTION_ENUM, offsetof(struct values, discard), .default_text = "unmap",
     .enum_values = discard_names},
    {"file", BLOCK_OPTION_NODE, 0, .required = true},
    {"server", BLOCK_OPTION_ADDRESS, offsetof(struct values, server)},
    {"hosts", BLOCK_OPTION_STRINGS, offsetof(struct values, hosts)},
    {"rules", BLOCK_OPTION_LIST, offsetof(struct values, rules), .element_options = rule_table,
     .element_size = sizeof(struct rule)},
    {NULL},
};

static struct block_options *parse(const char *text)
{
    GError *error = NULL;
    struct block_options *options = block_options_parse(text, NULL, &error);

    g_assert_no_error(error);
    return options;
}

static void assert_error(GError *error, int code, const char *message)
{
    g_assert_error(error, BLOCK_ERROR, code);
    g_assert_cmpstr(error->message, ==, message);
    g_error_free(error);
}

/* Extract from a command line text and expect success with nothing left but nodes. */
static void extract(const char *text, struct values *values)
{
    AUTO(block_options) options = parse(text);
    AUTO(block_options) file = NULL;
    GError *error = NULL;

    g_assert_cmpint(block_options_extract(options, table, values, NULL, &error), ==, 0);
    g_assert_no_error(error);
    file = block_options_take_nested(options, "file");
    g_assert_cmpint(block_options_expect_empty(options, NULL, &error), ==, 0);
}

static void assert_refused(const char *text, int code, const char *message)
{
    AUTO(block_options) options = parse(text);
    struct values values = {.path = (char *)"not ours", .hosts = (char **)1};
    GError *error = NULL;

    g_assert_cmpint(block_options_extract(options, table, &values, NULL, &error), ==, -code);
    assert_error(error, code, message);
    g_assert_null(values.path);
    g_assert_null(values.hosts);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_NONE);
    g_assert_null(values.server.host);
}

/* The set. */

static void test_a_later_value_replaces_an_earlier_one(void)
{
    AUTO(block_options) options = block_options_new();
    char *taken;

    block_options_set(options, "a", "1");
    block_options_set(options, "a", "2");
    g_assert_cmpstr(block_options_get(options, "a"), ==, "2");
    taken = block_options_take(options, "a");
    g_assert_cmpstr(taken, ==, "2");
    g_assert_null(block_options_get(options, "a"));
    g_assert_null(block_options_take(options, "a"));
    g_free(taken);
}

static void test_has_sees_nested_keys_but_no_mere_prefixes(void)
{
    AUTO(block_options) options = parse("file.driver=file,files=2,file-x.y=3,empty=");

    g_assert_true(block_options_has(options, "file"));
    g_assert_true(block_options_has(options, "file.driver"));
    g_assert_true(block_options_has(options, "empty"));
    g_assert_true(block_options_has(options, "file-x"));
    g_assert_false(block_options_has(options, "fil"));
    g_assert_false(block_options_has(options, "file.d"));
    g_assert_false(block_options_has(options, "files.x"));
}

static void test_nested_options_move_out_without_their_prefix(void)
{
    AUTO(block_options) options = parse("file.driver=raw,file.file.path=x,file=name,filed=1");
    AUTO(block_options) nested = block_options_take_nested(options, "file");
    AUTO(block_options) none = block_options_take_nested(options, "missing");
    g_auto(GStrv) keys = block_options_keys(options);
    g_auto(GStrv) nested_keys = block_options_keys(nested);
    g_auto(GStrv) no_keys = block_options_keys(none);
    const char *const left[] = {"file", "filed", NULL};
    const char *const moved[] = {"driver", "file.path", NULL};

    g_assert_true(g_strv_equal((const char *const *)keys, left));
    g_assert_true(g_strv_equal((const char *const *)nested_keys, moved));
    g_assert_cmpstr(block_options_get(nested, "file.path"), ==, "x");
    g_assert_null(no_keys[0]);
}

static void test_a_copy_is_independent(void)
{
    AUTO(block_options) options = parse("a=1,b=2");
    AUTO(block_options) copy = block_options_copy(options);

    block_options_set(options, "a", "changed");
    g_free(block_options_take(options, "b"));
    g_assert_cmpstr(block_options_get(copy, "a"), ==, "1");
    g_assert_cmpstr(block_options_get(copy, "b"), ==, "2");
}

/* Parsing. */

static void test_a_double_comma_is_a_comma_of_the_value(void)
{
    AUTO(block_options) options = parse("path=a,,b,,,c=d=e,,");

    g_assert_cmpstr(block_options_get(options, "path"), ==, "a,b,");
    g_assert_cmpstr(block_options_get(options, "c"), ==, "d=e,");
}

static void test_the_first_word_may_name_no_key(void)
{
    AUTO(block_options) implied = block_options_parse("/tmp/a,,b,ro,x=", "path", NULL);
    AUTO(block_options) explicit = block_options_parse("x=1,ro", "path", NULL);
    AUTO(block_options) switches = parse("ro,x=1");
    AUTO(block_options) empty = block_options_parse("", "path", NULL);

    g_assert_cmpstr(block_options_get(implied, "path"), ==, "/tmp/a,b");
    g_assert_cmpstr(block_options_get(implied, "ro"), ==, "on");
    g_assert_cmpstr(block_options_get(implied, "x"), ==, "");
    g_assert_null(block_options_get(explicit, "path"));
    g_assert_cmpstr(block_options_get(explicit, "ro"), ==, "on");
    g_assert_cmpstr(block_options_get(switches, "ro"), ==, "on");
    g_assert_false(block_options_has(empty, "path"));
}

static void test_malformed_text_is_refused(void)
{
    static const char *const texts[] = {
        "=1",    "a=1,",  "a=1,=2",  ",a=1",   "a..b=1",     ".a=1",        "a.=1",
        "a b=1", "a/b=1", "a=1,b c", "a,,b=1", "\xc3\xa4=1", "a=1,\"x\"=2",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(block_options_parse(texts[i], "path", &error));
        g_assert_error(error, BLOCK_ERROR, EINVAL);
    }
}

static void test_random_text_never_crashes_the_parser(void)
{
    static const char alphabet[] = "ab=,,.,=-/";

    for (unsigned round = 0; round < 20000; round++) {
        char text[12] = "";

        for (int i = g_test_rand_int_range(0, sizeof(text)); i-- > 0;) {
            text[i] = alphabet[g_test_rand_int_range(0, sizeof(alphabet) - 1)];
        }
        block_options_free(block_options_parse(text, round % 2 ? "path" : NULL, NULL));
    }
}

static void test_sizes_take_suffixes_and_fractions(void)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } sizes[] = {
        {"0", 0},
        {"512", 512},
        {"512b", 512},
        {"1k", 1024},
        {"64K", 65536},
        {"0x1000", 4096},
        {"0x10k", 16384},
        {"010", 10},
        {"3M", UINT64_C(3) << 20},
        {"2g", UINT64_C(2) << 30},
        {"64T", UINT64_C(64) << 40},
        {"1P", UINT64_C(1) << 50},
        {"15E", UINT64_C(15) << 60},
        {"1.5G", UINT64_C(3) << 29},
        {"0.1k", 102},
        {"15.999999999E", UINT64_C(18446744072556630111)},
        {"18446744073709551615", UINT64_MAX},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        uint64_t bytes = 1;

        g_assert_cmpint(block_parse_size(sizes[i].text, &bytes, NULL), ==, 0);
        g_assert_cmpuint(bytes, ==, sizes[i].bytes);
    }
}

static void test_what_is_no_size_is_refused(void)
{
    static const char *const texts[] = {
        "",   "k",   "-1",  "+1",  " 1",   "1 ",     "1kk", "1kb",           "1x", "0x", "0xg",
        "1.", "1.k", ".5k", "1.5", "1.5b", "1.5.5k", "1e3", "1.0000000001G",
    };
    static const char *const large[] = {"18446744073709551616", "16E", "99999999999999999999999G",
                                        "0xfffffffffffffffff"};

    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        uint64_t bytes;

        g_assert_cmpint(block_parse_size(texts[i], &bytes, NULL), ==, -EINVAL);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(large); i++) {
        uint64_t bytes;

        g_assert_cmpint(block_parse_size(large[i], &bytes, NULL), ==, -ERANGE);
    }
}

static void test_booleans_have_three_spellings(void)
{
    static const char *const yes[] = {"on", "yes", "true"};
    static const char *const no[] = {"off", "no", "false"};
    static const char *const neither[] = {"", "1", "ON", "onn", "of"};
    bool value;

    for (size_t i = 0; i < 3; i++) {
        g_assert_cmpint(block_parse_bool(yes[i], &value, NULL), ==, 0);
        g_assert_true(value);
        g_assert_cmpint(block_parse_bool(no[i], &value, NULL), ==, 0);
        g_assert_false(value);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(neither); i++) {
        g_assert_cmpint(block_parse_bool(neither[i], &value, NULL), ==, -EINVAL);
    }
}

/* Extraction. */

static void test_every_type_is_converted(void)
{
    struct values values;

    extract("path=/x,locking=off,shift=-9223372036854775808,serial=18446744073709551615,size=2M,"
            "discard=ignore,file.driver=null,server.type=inet,server.host=h,server.port=10809,"
            "hosts.0=a,hosts.1=b",
            &values);
    g_assert_cmpstr(values.path, ==, "/x");
    g_assert_false(values.locking);
    g_assert_cmpint(values.shift, ==, INT64_MIN);
    g_assert_cmpuint(values.serial, ==, UINT64_MAX);
    g_assert_cmpuint(values.size, ==, 2 << 20);
    g_assert_cmpint(values.discard, ==, 0);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_INET);
    g_assert_cmpstr(values.server.host, ==, "h");
    g_assert_cmpstr(values.server.port, ==, "10809");
    g_assert_cmpuint(g_strv_length(values.hosts), ==, 2);
    g_assert_cmpstr(values.hosts[1], ==, "b");
    block_options_clear_target(table, &values);
    g_assert_null(values.path);
    g_assert_null(values.hosts);
    g_assert_null(values.server.host);
}

static void test_what_is_not_given_gets_its_default(void)
{
    struct values values;

    memset(&values, 0xa5, sizeof(values));
    extract("path=", &values);
    g_assert_cmpstr(values.path, ==, "");
    g_assert_true(values.locking);
    g_assert_cmpint(values.shift, ==, 0);
    g_assert_cmpuint(values.serial, ==, 7);
    g_assert_cmpuint(values.size, ==, 1 << 20);
    g_assert_cmpint(values.discard, ==, 1);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_NONE);
    g_assert_null(values.server.path);
    g_assert_null(values.hosts);
    block_options_clear_target(table, &values);
}

static void check_families(const char *words, bool no_ipv4, bool no_ipv6)
{
    g_autofree char *text =
        g_strconcat("path=x,server.type=inet,server.host=h,server.port=1", words, NULL);
    struct values values;

    extract(text, &values);
    g_assert_cmpint(values.server.no_ipv4, ==, no_ipv4);
    g_assert_cmpint(values.server.no_ipv6, ==, no_ipv6);
    block_options_clear_target(table, &values);
}

static void test_one_family_rules_out_the_other(void)
{
    check_families(",server.to=2", false, false);
    check_families(",server.ipv4=on", false, true);
    check_families(",server.ipv6=on", true, false);
    check_families(",server.ipv4=off", true, false);
    check_families(",server.ipv6=off,server.keep-alive=on", false, true);
    check_families(",server.ipv4=on,server.ipv6=on,server.keep-alive=off", false, false);
}

static void test_every_kind_of_address_is_understood(void)
{
    struct values values;

    extract("path=x,server.type=unix,server.path=/run/s", &values);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_UNIX);
    g_assert_cmpstr(values.server.path, ==, "/run/s");
    block_options_clear_target(table, &values);
    extract("path=x,server.type=vsock,server.cid=4294967295,server.port=10809", &values);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_VSOCK);
    g_assert_cmpstr(values.server.host, ==, "4294967295");
    g_assert_cmpstr(values.server.port, ==, "10809");
    block_options_clear_target(table, &values);
    extract("path=x,server.type=fd,server.str=5", &values);
    g_assert_cmpint(values.server.type, ==, BLOCK_ADDRESS_FD);
    g_assert_cmpstr(values.server.fd, ==, "5");
    block_options_clear_target(table, &values);
}

static void test_wrong_types_are_refused_in_qmp_words(void)
{
    assert_refused("locking=off", EINVAL, "Parameter 'path' is missing");
    assert_refused("path=x,locking=maybe", EINVAL,
                   "Invalid parameter type for 'locking', expected: boolean");
    assert_refused("path=x,shift=1x", EINVAL,
                   "Invalid parameter type for 'shift', expected: integer");
    assert_refused("path=x,shift=", EINVAL,
                   "Invalid parameter type for 'shift', expected: integer");
    assert_refused("path=x,shift=--1", EINVAL,
                   "Invalid parameter type for 'shift', expected: integer");
    assert_refused("path=x,serial=1.5", EINVAL,
                   "Invalid parameter type for 'serial', expected: integer");
    assert_refused("path=x,size=large", EINVAL,
                   "Invalid parameter type for 'size', expected: integer");
    assert_refused("path=x,discard=zz", EINVAL, "Parameter 'discard' does not accept value 'zz'");
    assert_refused("path.x=y", EINVAL, "Invalid parameter type for 'path', expected: string");
    assert_refused("path=x,size.y=1", EINVAL,
                   "Invalid parameter type for 'size', expected: integer");
    assert_refused("path=x,hosts=a", EINVAL, "Invalid parameter type for 'hosts', expected: array");
    assert_refused("path=x,server=a", EINVAL,
                   "Invalid parameter type for 'server', expected: object");
}

static void test_numbers_out_of_range_are_refused(void)
{
    assert_refused("path=x,shift=9223372036854775808", ERANGE,
                   "Value '9223372036854775808' is out of range for parameter 'shift'");
    assert_refused("path=x,shift=-9223372036854775809", ERANGE,
                   "Value '-9223372036854775809' is out of range for parameter 'shift'");
    assert_refused("path=x,serial=-1", ERANGE, "Value '-1' is out of range for parameter 'serial'");
    assert_refused("path=x,serial=18446744073709551616", ERANGE,
                   "Value '18446744073709551616' is out of range for parameter 'serial'");
    assert_refused("path=x,size=-1", ERANGE, "Value '-1' is out of range for parameter 'size'");
    assert_refused("path=x,size=16E", ERANGE, "Parameter 'size': The size '16E' is too large");
}

static void test_bad_addresses_are_refused_with_the_full_key(void)
{
    assert_refused("path=x,server.host=h", EINVAL, "Parameter 'server.type' is missing");
    assert_refused("path=x,server.type=tcp", EINVAL,
                   "Parameter 'server.type' does not accept value 'tcp'");
    assert_refused("path=x,server.type=inet,server.host=h", EINVAL,
                   "Parameter 'server.port' is missing");
    assert_refused("path=x,server.type=inet,server.host=h,server.port=1,server.ipv4=maybe", EINVAL,
                   "Invalid parameter type for 'server.ipv4', expected: boolean");
    assert_refused("path=x,server.type=inet,server.host=h,server.port=1,server.to=65536", ERANGE,
                   "Value '65536' is out of range for parameter 'server.to'");
    assert_refused("path=x,server.type=inet,server.host=h,server.port=1,server.ipv4=off,"
                   "server.ipv6=off",
                   EINVAL, "Cannot disable IPv4 and IPv6 at same time");
    assert_refused("path=x,server.type=unix,server.path.x=h", EINVAL,
                   "Invalid parameter type for 'server.path', expected: string");
    assert_refused("path=x,server.type=unix,server.path=p,server.host=h", EINVAL,
                   "Parameter 'server.host' is unexpected");
    assert_refused("path=x,server.type=vsock,server.cid=two,server.port=1", EINVAL,
                   "Invalid parameter type for 'server.cid', expected: integer");
    assert_refused("path=x,server.type=vsock,server.cid=2,server.port=4294967296", ERANGE,
                   "Value '4294967296' is out of range for parameter 'server.port'");
    assert_refused("path=x,server.type=fd,server.str=-2", ERANGE,
                   "Value '-2' is out of range for parameter 'server.str'");
}

static void test_what_was_stored_is_freed_when_a_later_option_fails(void)
{
    /* The leak checker sees the strings if not. */
    assert_refused("path=long,server.type=inet,server.host=h,server.port=1,hosts.0=a,hosts=x",
                   EINVAL, "Invalid parameter type for 'hosts', expected: array");
}

static void test_keys_nobody_takes_are_refused(void)
{
    AUTO(block_options) options = parse("path=x,zebra=1,hosts.0=a,hosts.2=c,apple.x=1");
    AUTO(block_options) empty = block_options_new();
    struct values values;
    GError *error = NULL;

    g_assert_cmpint(block_options_extract(options, table, &values, NULL, &error), ==, 0);
    g_assert_cmpint(block_options_expect_empty(options, NULL, &error), ==, -EINVAL);
    assert_error(g_steal_pointer(&error), EINVAL, "Parameter 'apple.x' is unexpected");
    g_free(block_options_take(options, "apple.x"));
    g_assert_cmpint(block_options_expect_empty(options, "file", &error), ==, -EINVAL);
    assert_error(g_steal_pointer(&error), EINVAL, "Parameter 'file.hosts.2' is unexpected");
    g_assert_cmpint(block_options_expect_empty(empty, NULL, &error), ==, 0);
    block_options_clear_target(table, &values);
}

static void test_messages_carry_the_prefix(void)
{
    AUTO(block_options) options = parse("path=x,server.type=unix");
    struct values values;
    GError *error = NULL;

    g_assert_cmpint(block_options_extract(options, table, &values, "file", &error), ==, -EINVAL);
    assert_error(error, EINVAL, "Parameter 'file.server.path' is missing");
}

static void test_nodes_are_left_in_the_set(void)
{
    AUTO(block_options) options = parse("path=x,file.driver=null");
    struct values values;

    g_assert_cmpint(block_options_extract(options, table, &values, NULL, NULL), ==, 0);
    g_assert_cmpstr(block_options_get(options, "file.driver"), ==, "null");
    block_options_clear_target(table, &values);
}

/* The registry of drivers. */

static int probe_magic(const uint8_t *head, size_t bytes, const char *filename)
{
    return bytes && head[0] == 'M' ? 100 : 0;
}

static int probe_anything(const uint8_t *head, size_t bytes, const char *filename)
{
    return 1;
}

static void test_drivers_are_found_and_probed(void)
{
    static const struct block_driver raw = {.name = "raw", .probe = probe_anything};
    static const struct block_driver magic = {.name = "magic", .probe = probe_magic};
    static const struct block_driver never = {.name = "never"};

    g_assert_null(block_driver_list()[0]);
    g_assert_null(block_driver_probe((const uint8_t *)"M", 1, "x"));
    block_driver_register(&raw);
    block_driver_register(&magic);
    block_driver_register(&never);
    g_assert_true(block_driver_find("magic") == &magic);
    g_assert_null(block_driver_find("mag"));
    g_assert_true(block_driver_list()[0] == &raw);
    g_assert_true(block_driver_list()[2] == &never);
    g_assert_null(block_driver_list()[3]);
    g_assert_true(block_driver_probe((const uint8_t *)"M", 1, "x") == &magic);
    g_assert_true(block_driver_probe((const uint8_t *)"N", 1, "x") == &raw);
    g_assert_true(block_driver_probe(NULL, 0, "x") == &raw);
}

static void test_driver_results_are_freed(void)
{
    struct block_info info = {
        .cluster_size = 512, .backing_file = g_strdup("a"), .format_specific = json_object()};
    struct block_snapshot_info *list = g_new0(struct block_snapshot_info, 2);

    list[0].id = g_strdup("1");
    list[1].name = g_strdup("n");
    block_snapshot_list_free(list, 2);
    block_snapshot_list_free(NULL, 0);
    block_info_clear(&info);
    g_assert_null(info.format_specific);
    block_info_clear(&info);
    g_assert_cmpstr(block_preallocation_names[BLOCK_PREALLOCATION_FULL], ==, "full");
    g_assert_null(block_preallocation_names[BLOCK_PREALLOCATION_FULL + 1]);
}

static void add_extraction_tests(void)
{
    g_test_add_func("/options/every-type-is-converted", test_every_type_is_converted);
    g_test_add_func("/options/what-is-not-given-gets-its-default",
                    test_what_is_not_given_gets_its_default);
    g_test_add_func("/options/one-family-rules-out-the-other", test_one_family_rules_out_the_other);
    g_test_add_func("/options/every-kind-of-address-is-understood",
                    test_every_kind_of_address_is_understood);
    g_test_add_func("/options/wrong-types-are-refused-in-qmp-words",
                    test_wrong_types_are_refused_in_qmp_words);
    g_test_add_func("/options/numbers-out-of-range-are-refused",
                    test_numbers_out_of_range_are_refused);
    g_test_add_func("/options/bad-addresses-are-refused-with-the-full-key",
                    test_bad_addresses_are_refused_with_the_full_key);
    g_test_add_func("/options/what-was-stored-is-freed-when-a-later-option-fails",
                    test_what_was_stored_is_freed_when_a_later_option_fails);
    g_test_add_func("/options/keys-nobody-takes-are-refused", test_keys_nobody_takes_are_refused);
    g_test_add_func("/options/messages-carry-the-prefix", test_messages_carry_the_prefix);
    g_test_add_func("/options/nodes-are-left-in-the-set", test_nodes_are_left_in_the_set);
}

/* Lists of objects. */

static void test_a_list_of_objects_is_an_array_of_structs(void)
{
    struct values values;
    struct rule *rules;

    extract("path=x,rules.0.event=a,rules.1.event=b,rules.1.count=9,rules.1.once=on", &values);
    rules = values.rules.elements;
    g_assert_cmpuint(values.rules.count, ==, 2);
    g_assert_cmpstr(rules[0].event, ==, "a");
    g_assert_cmpuint(rules[0].count, ==, 3);
    g_assert_false(rules[0].once);
    g_assert_cmpstr(rules[1].event, ==, "b");
    g_assert_cmpuint(rules[1].count, ==, 9);
    g_assert_true(rules[1].once);
    block_options_clear_target(table, &values);
    g_assert_null(values.rules.elements);
    extract("path=x", &values);
    g_assert_cmpuint(values.rules.count, ==, 0);
    block_options_clear_target(table, &values);
}

static void test_a_wrong_element_refuses_the_whole_list(void)
{
    assert_refused("path=x,rules=1", EINVAL, "Invalid parameter type for 'rules', expected: array");
    assert_refused("path=x,rules.0=1", EINVAL,
                   "Invalid parameter type for 'rules.0', expected: object");
    assert_refused("path=x,rules.0.event=a,rules.1.count=1", EINVAL,
                   "Parameter 'rules.1.event' is missing");
    assert_refused("path=x,rules.0.event=a,rules.0.wrong=1", EINVAL,
                   "Parameter 'rules.0.wrong' is unexpected");
    assert_refused("path=x,rules.0.event=a,rules.0.count=x", EINVAL,
                   "Invalid parameter type for 'rules.0.count', expected: integer");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/options/a-later-value-replaces-an-earlier-one",
                    test_a_later_value_replaces_an_earlier_one);
    g_test_add_func("/options/has-sees-nested-keys-but-no-mere-prefixes",
                    test_has_sees_nested_keys_but_no_mere_prefixes);
    g_test_add_func("/options/nested-options-move-out-without-their-prefix",
                    test_nested_options_move_out_without_their_prefix);
    g_test_add_func("/options/a-copy-is-independent", test_a_copy_is_independent);
    g_test_add_func("/options/a-double-comma-is-a-comma-of-the-value",
                    test_a_double_comma_is_a_comma_of_the_value);
    g_test_add_func("/options/the-first-word-may-name-no-key", test_the_first_word_may_name_no_key);
    g_test_add_func("/options/malformed-text-is-refused", test_malformed_text_is_refused);
    g_test_add_func("/options/random-text-never-crashes-the-parser",
                    test_random_text_never_crashes_the_parser);
    g_test_add_func("/options/sizes-take-suffixes-and-fractions",
                    test_sizes_take_suffixes_and_fractions);
    g_test_add_func("/options/what-is-no-size-is-refused", test_what_is_no_size_is_refused);
    g_test_add_func("/options/booleans-have-three-spellings", test_booleans_have_three_spellings);
    add_extraction_tests();
    g_test_add_func("/driver/drivers-are-found-and-probed", test_drivers_are_found_and_probed);
    g_test_add_func("/driver/driver-results-are-freed", test_driver_results_are_freed);
    g_test_add_func("/options/a-list-of-objects-is-an-array-of-structs",
                    test_a_list_of_objects_is_an_array_of_structs);
    g_test_add_func("/options/a-wrong-element-refuses-the-whole-list",
                    test_a_wrong_element_refuses_the_whole_list);
    return g_test_run();
}
