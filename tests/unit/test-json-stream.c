/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The JSON parser and printer of the admin channel. What QEMU answers to each input was observed
 * with qemu-storage-daemon.
 */
#include <glib.h>
#include <jansson.h>
#include <string.h>

#include "server/qmp/json-indent.h"
#include "server/qmp/json-lexer.h"
#include "server/qmp/json-print.h"
#include "server/qmp/json-stream.h"
#include "server/qmp/json-value.h"

/* An input and, a line each, what comes of it: values as printed, errors after a "!". */
struct row {
    const char *input;
    size_t length;
    const char *results;
};
#define ROW(input_, results_)                                                                      \
    {                                                                                              \
        (input_), sizeof(input_) - 1, (results_)                                                   \
    }
#define BAD(text) "!JSON parse error, " text "\n"

static void collect(json_t *value, const char *error, void *data)
{
    GString *results = data;

    g_assert_true(!value != !error);
    if (value) {
        json_print(value, results);
        json_decref(value);
    } else {
        g_string_append_printf(results, "!%s", error);
    }
    g_string_append_c(results, '\n');
}

static void feed(struct json_stream *stream, const char *bytes, size_t length)
{
    /* A copy of just this size: the sanitizers see every byte read beyond it. */
    g_autofree char *copy = g_memdup2(bytes, length);
    size_t at = 0;

    while (at < length) {
        size_t used = json_stream_feed(stream, copy + at, length - at);

        g_assert_cmpuint(used, >, 0);
        g_assert_cmpuint(used, <=, length - at);
        at += used;
    }
}

static char *parse_split(const char *input, size_t length, size_t split)
{
    GString *results = g_string_new(NULL);
    struct json_stream *stream = json_stream_new(collect, results);

    feed(stream, input, split);
    feed(stream, input + split, length - split);
    json_stream_free(stream);
    return g_string_free(results, FALSE);
}

static void check_rows(const struct row *rows, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        for (size_t split = 0; split <= rows[n].length; split++) {
            g_autofree char *results = parse_split(rows[n].input, rows[n].length, split);

            g_assert_cmpstr(results, ==, rows[n].results);
        }
    }
}

static void test_values(void)
{
    static const struct row rows[] = {
        ROW("{}", "{}\n"),
        ROW("{}{}", "{}\n{}\n"),
        ROW(" \t\r\n[]\n", "[]\n"),
        ROW("{\"a\": [1, {\"b\": null}], \"c\": true}",
            "{\"a\": [1, {\"b\": null}], \"c\": true}\n"),
        ROW("1 2,", "1\n2\n" BAD("expecting value")),
        ROW("1", ""),
        ROW("false ", "false\n"),
        ROW("\"abc\"", "\"abc\"\n"),
        ROW("'a\"b'", "\"a\\\"b\"\n"),
        ROW("['\\'\\\"', \"\\'\"]", "[\"'\\\"\", \"'\"]\n"),
        ROW("\"\\/\\b\\f\\n\\r\\t\\\\\"", "\"/\\b\\f\\n\\r\\t\\\\\"\n"),
        ROW("\"\\u0000\\u0001\x7f\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbd\xc0\x80\"",
            "\"\\u0000\\u0001\\u007F\\u00E9\\uD83D\\uDE00\\uFFFD\\u0000\"\n"),
        ROW("\"\\ud83d\\ude00\\udbff\\udffd\"", "\"\\uD83D\\uDE00\\uDBFF\\uDFFD\"\n"),
        ROW("{\"a\\u0000\": 1, \"a\": 2}", "{\"a\\u0000\": 1, \"a\": 2}\n"),
    };

    check_rows(rows, G_N_ELEMENTS(rows));
}

static void test_numbers(void)
{
    static const struct row rows[] = {
        ROW("[0, -0, -0.0, 1e3, 1E+2, 1.0]", "[0, 0, -0, 1000, 100, 1]\n"),
        ROW("[9223372036854775807, 9223372036854775808]",
            "[9223372036854775807, 9223372036854775808]\n"),
        ROW("18446744073709551615 ", "18446744073709551615\n"),
        ROW("18446744073709551616 ", "1.8446744073709552e+19\n"),
        ROW("-9223372036854775808 ", "-9223372036854775808\n"),
        ROW("-9223372036854775809 ", "-9.2233720368547758e+18\n"),
        ROW("[0.1, 1e22, 1e-7, 123456789.125]",
            "[0.10000000000000001, 1e+22, 9.9999999999999995e-08, 123456789.125]\n"),
        ROW("[1e16, 1e17, 1.5e300, 5e-324]",
            "[10000000000000000, 1e+17, 1.5000000000000001e+300, 4.9406564584124654e-324]\n"),
        ROW("100000000000000000000 ", "1e+20\n"),
        ROW("[0e1, 0.0E-1]", "[0, 0]\n"),
        ROW("[1e400]", BAD("number '1e400' is out of range")),
    };

    check_rows(rows, G_N_ELEMENTS(rows));
}

static void test_syntax(void)
{
    static const struct row rows[] = {
        ROW("{\"execute\": }", BAD("expecting value")),
        ROW("{\"execute\":\"query-version\",}", BAD("expecting value")),
        ROW("{\"execute\":\"x\"\n", ""),
        ROW("{]", BAD("expecting value")),
        ROW("[}", BAD("expecting value")),
        ROW("]{}", BAD("expecting value") "{}\n"),
        ROW("}:,", BAD("expecting value") BAD("expecting value") BAD("expecting value")),
        ROW("{[1]:2}", BAD("key is not a string in object")),
        ROW("{1:2}{null:2}",
            BAD("key is not a string in object") BAD("key is not a string in object")),
        ROW("{18446744073709551615:2}", BAD("key is not a string in object")),
        ROW("{\"a\":1,\"a\":2 3}", BAD("duplicate key")),
        ROW("{\"a\":1,\"a\":}", BAD("expecting value")),
        ROW("{\"a\":1 \"b\":2}", BAD("expected separator in dict")),
        ROW("{\"a\":1]", BAD("expected separator in dict")),
        ROW("{\"a\":{\"b\":1]", BAD("expected separator in dict")),
        ROW("{\"a\" 1}{\"a\"}", BAD("missing : in object pair") BAD("missing : in object pair")),
        ROW("[1 2]", BAD("expected separator in list")),
        ROW("[[1}", BAD("expected separator in list")),
        ROW("[1,][,][:]", BAD("expecting value") BAD("expecting value") BAD("expecting value")),
        ROW("{,}{:1}", BAD("expecting value") BAD("expecting value")),
        ROW("[{]", ""),
        ROW("{\"a\":[}", ""),
        ROW("{\"a\":[}]", BAD("expecting value")),
        ROW("[tru, nul]", BAD("invalid keyword 'tru'")),
        ROW("abc1 ", BAD("invalid keyword 'abc'") "1\n"),
    };

    check_rows(rows, G_N_ELEMENTS(rows));
}

static void test_strays(void)
{
    static const struct row rows[] = {
        ROW("{\"execute\":\"\xff\"}", BAD("stray '\"\xff'") BAD("expecting value")),
        ROW("@#$%{\"execute\":1}", BAD("stray '@'") "{\"execute\": 1}\n"),
        ROW("01 ", BAD("stray '01'")),
        ROW("+1 ", BAD("stray '+'")),
        ROW("tRue ", BAD("invalid keyword 't'") BAD("stray 'R'")),
        ROW("[\"a\tb\"]", BAD("stray '\"a\t'") BAD("expecting value")),
        ROW("[\"a\nb\"]", BAD("stray '\"a\n'") BAD("expecting value")),
        ROW("\"a\x01\"b\"\x01", BAD("stray '\"a\x01'") BAD("stray '\x01'")),
        ROW("{\"execute\":\"x\"\x01{}", BAD("stray '\x01'") "{}\n"),
        ROW("\xff\xff", BAD("stray '\xff'") BAD("stray '\xff'")),
        ROW("@\t1 {}", BAD("stray '@'") "{}\n"),
        ROW("@\x01 1 {}", BAD("stray '@'") BAD("stray '\x01'") "{}\n"),
        ROW("1.x ", BAD("stray '1.x'")),
        ROW("[1.]", BAD("stray '1.]'")),
        ROW("-I ", BAD("stray '-I'")),
        ROW("- 1", BAD("stray '- '")),
        ROW("-01 ", BAD("stray '-01'")),
        ROW("1e ", BAD("stray '1e '")),
        ROW("1e+ ", BAD("stray '1e+ '")),
        ROW("1.5.2 ", "1.5\n" BAD("stray '.'")),
        ROW("1x ", "1\n" BAD("invalid keyword 'x'")),
        ROW("0x1 ", "0\n" BAD("invalid keyword 'x'") "1\n"),
        ROW("1.0e1\x01", "10\n" BAD("stray '\x01'")),
        ROW("a_b ", BAD("invalid keyword 'a'") BAD("stray '_'")),
        ROW("\"\\\x01", BAD("stray '\"\\\x01'")),
        ROW("[\"\\\xff", BAD("stray '\"\\\xff'")),
        ROW("\xef\xbb\xbf{}", BAD("stray '\xef'") "{}\n"),
        ROW("\0{}", BAD("stray ''") "{}\n"),
        ROW("\x7f{}", BAD("stray '\x7f'") "{}\n"),
        ROW("[\x0c]", BAD("stray '\x0c'") BAD("expecting value")),
    };

    check_rows(rows, G_N_ELEMENTS(rows));
}

static void test_strings(void)
{
#define NOT_A_CHARACTER(input, shown) ROW(input, BAD(shown " is not a valid Unicode character"))
    static const struct row rows[] = {
        ROW("[\"\\x\"]", BAD("invalid escape sequence in string")),
        ROW("[\"\\\xc3\xa9\"]", BAD("invalid escape sequence in string")),
        ROW("[\"\xc3(\\x\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xed\xa0\x80\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xef\xbf\xbf\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\x80\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xf4\x90\x80\x80\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xe2\x82\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xc1\x81\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xf8\x88\x80\x80\x80\"]", BAD("invalid UTF-8 sequence in string")),
        ROW("[\"\xfc\x84\x80\x80\x80\x80\"]", BAD("invalid UTF-8 sequence in string")),
        NOT_A_CHARACTER("[\"\\u1\"]", "\\u1\""),
        NOT_A_CHARACTER("['\\u12']", "\\u12'"),
        NOT_A_CHARACTER("[\"\\ug234567\"]", "\\ug234"),
        NOT_A_CHARACTER("[\"\\u12\xc3\xa9z\"]", "\\u12\xc3\xa9"),
        NOT_A_CHARACTER("[\"\\u+123\"]", "\\u+123"),
        NOT_A_CHARACTER("[\"\\u123\\\"abc\"]", "\\u123\\"),
        NOT_A_CHARACTER("[\"\\ud800\"]", "\\ud800"),
        NOT_A_CHARACTER("[\"\\ud800 \\x\"]", "\\ud800"),
        NOT_A_CHARACTER("[\"\\ud800\\u0041\"]", "\\ud800"),
        NOT_A_CHARACTER("[\"\\ud800\\udc0\"]", "\\ud800"),
        NOT_A_CHARACTER("[\"\\ud800\\ud800\"]", "\\ud800"),
        NOT_A_CHARACTER("[\"\\udc00\"]", "\\udc00"),
        NOT_A_CHARACTER("[\"\\uffff\"]", "\\uffff"),
        NOT_A_CHARACTER("[\"\\ufdd0\"]", "\\ufdd0"),
        NOT_A_CHARACTER("[\"\\udbff\\udfff\"]", "\\udbff\\udfff"),
    };

    check_rows(rows, G_N_ELEMENTS(rows));
}

static char *parse_text(const GString *input)
{
    return parse_split(input->str, input->len, input->len);
}

static void append_times(GString *out, const char *text, size_t times)
{
    while (times-- > 0) {
        g_string_append(out, text);
    }
}

static void test_nesting_limit(void)
{
    g_autoptr(GString) input = g_string_new(NULL);
    g_autofree char *good = NULL;
    g_autofree char *bad = NULL;

    append_times(input, "[", 1024);
    append_times(input, "]", 1024);
    good = parse_text(input);
    g_assert_cmpuint(strlen(good), ==, 2049);
    g_assert_cmpint(good[0], ==, '[');

    g_string_truncate(input, 0);
    append_times(input, "[", 1025);
    g_string_append(input, "}[]");
    bad = parse_text(input);
    g_assert_cmpstr(bad, ==, "!JSON nesting depth limit exceeded\n" BAD("expecting value") "[]\n");
}

static void test_token_count_limit(void)
{
    g_autoptr(GString) input = g_string_new("[");
    g_autofree char *good = NULL;
    g_autofree char *bad = NULL;

    append_times(input, "1,", JSON_MAX_TOKENS / 2 - 1);
    good = parse_text(input); /* one token short of the limit */
    g_assert_cmpstr(good, ==, "");
    g_string_append(input, "1 2 {}");
    bad = parse_text(input);
    g_assert_cmpstr(bad, ==, "!JSON token count limit exceeded\n{}\n");
}

static void test_token_size_limit(void)
{
    g_autoptr(GString) input = g_string_sized_new(JSON_MAX_TOKEN_BYTES + 64);
    g_autofree char *good = NULL;
    g_autofree char *bad = NULL;

    g_string_append_c(input, '"');
    g_string_set_size(input, JSON_MAX_TOKEN_BYTES - 1);
    memset(input->str + 1, 'a', input->len - 1);
    g_string_append_c(input, '"');
    good = parse_text(input);
    g_assert_cmpuint(strlen(good), ==, JSON_MAX_TOKEN_BYTES + 1);

    /* Many tokens, one token, and a token without end. */
    input->str[0] = '[';
    input->str[1] = '"';
    g_string_append(input, "]{}");
    bad = parse_text(input);
    g_assert_cmpstr(bad, ==, "!JSON token size limit exceeded\n{}\n");
    g_free(bad);
    input->str[0] = '"';
    input->str[1] = 'a';
    g_string_truncate(input, JSON_MAX_TOKEN_BYTES - 1);
    g_string_append(input, "aaa\" ignored {}");
    bad = parse_text(input);
    g_assert_cmpstr(bad, ==, "!JSON token size limit exceeded\n{}\n");
}

static void test_long_stray(void)
{
    g_autoptr(GString) input = g_string_new("\"");
    g_autofree char *results = NULL;

    append_times(input, "a", 100000);
    g_string_append(input, "\x01{}");
    results = parse_text(input);
    g_assert_true(g_str_has_prefix(results, "!JSON parse error, stray '\"aaaa"));
    g_assert_true(g_str_has_suffix(results, "aaaa'\n{}\n"));
    g_assert_cmpuint(strlen(results), <, 2048);
}

static void test_two_results_a_byte(void)
{
    GString *results = g_string_new(NULL);
    struct json_stream *stream = json_stream_new(collect, results);

    /* The feeder learns of each result before the next byte is looked at. */
    g_assert_cmpuint(json_stream_feed(stream, "[]{}", 4), ==, 1);
    g_assert_cmpuint(json_stream_feed(stream, "]{}", 3), ==, 1);
    g_assert_cmpstr(results->str, ==, "[]\n");
    g_assert_cmpuint(json_stream_feed(stream, "1]", 2), ==, 2);
    g_assert_cmpstr(results->str, ==, "[]\n1\n" BAD("expecting value"));
    json_stream_free(stream);
    g_string_free(results, TRUE);
}

static char *print(json_t *value)
{
    GString *out = g_string_new(NULL);

    json_print(value, out);
    json_decref(value);
    return g_string_free(out, FALSE);
}

static void check_text(const char *text, const char *expected)
{
    g_autofree char *printed = print(json_value_from_text(text));

    g_assert_cmpstr(printed, ==, expected);
}

static void test_print_bad_text(void)
{
    check_text("a\xff\xfez", "\"a\\uFFFD\\uFFFDz\"");
    check_text("\xf0\x9f\x98\x01", "\"\\uFFFD\\u0001\"");
    check_text("\xed\xa0\x80", "\"\\uFFFD\"");
    check_text("\xef\xbf\xbf", "\"\\uFFFD\"");
    check_text("\xf8\x88\x80\x80\x80x", "\"\\uFFFDx\"");
    check_text("\x80\x80", "\"\\uFFFD\\uFFFD\"");
    check_text("\xf0\x9f\xc3", "\"\\uFFFD\\uFFFD\"");
    check_text("\xe0\x80\x80", "\"\\uFFFD\"");
    check_text("\xe2"
               "a",
               "\"\\uFFFDa\"");
    check_text("\xff"
               "18446744073709551615",
               "\"\\uFFFD18446744073709551615\"");
}

static void test_print_big(void)
{
    uint64_t number = 0;
    json_t *big = json_value_from_u64(UINT64_MAX);
    json_t *small = json_value_from_u64(INT64_MAX);
    g_autofree char *printed = NULL;

    g_assert_true(json_value_is_big(big, &number));
    g_assert_cmpuint(number, ==, UINT64_MAX);
    g_assert_false(json_value_is_big(small, &number));
    g_assert_cmpint(json_integer_value(small), ==, INT64_MAX);
    json_decref(small);
    printed = print(big);
    g_assert_cmpstr(printed, ==, "18446744073709551615");
}

static void test_print_shape(void)
{
    g_autofree char *printed =
        print(json_pack("{s:[i,b,n,{}], s:s, s:f}", "a", 1, 1, "b\"", "x", "c", 0.5));

    g_assert_cmpstr(printed, ==, "{\"a\": [1, true, null, {}], \"b\\\"\": \"x\", \"c\": 0.5}");
}

static void test_indent(void)
{
    g_autofree char *printed =
        print(json_pack("{s:[i,{s:s}], s:[], s:{}}", "a", 1, "b{,[\"\\", ", \\\"]}", "c", "d"));
    g_autoptr(GBytes) line = g_bytes_new(printed, strlen(printed));
    g_autoptr(GBytes) lines = json_indent(line);
    g_autofree char *text = g_strndup(g_bytes_get_data(lines, NULL), g_bytes_get_size(lines));

    g_assert_cmpstr(text, ==,
                    "{\r\n    \"a\": [\r\n        1,\r\n        {\r\n"
                    "            \"b{,[\\\"\\\\\": \", \\\\\\\"]}\"\r\n        }\r\n    ],\r\n"
                    "    \"c\": [\r\n    ],\r\n    \"d\": {\r\n    }\r\n}");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/json-stream/values-arrive-with-their-last-byte", test_values);
    g_test_add_func("/json-stream/numbers-survive-up-to-uint64", test_numbers);
    g_test_add_func("/json-stream/bad-syntax-brings-one-error-a-message", test_syntax);
    g_test_add_func("/json-stream/stray-bytes-are-skipped-to-the-next-bracket", test_strays);
    g_test_add_func("/json-stream/bad-strings-are-refused", test_strings);
    g_test_add_func("/json-stream/nesting-is-limited", test_nesting_limit);
    g_test_add_func("/json-stream/the-number-of-tokens-is-limited", test_token_count_limit);
    g_test_add_func("/json-stream/the-size-of-tokens-is-limited", test_token_size_limit);
    g_test_add_func("/json-stream/error-texts-stay-short", test_long_stray);
    g_test_add_func("/json-stream/stops-after-each-result", test_two_results_a_byte);
    g_test_add_func("/json-print/bytes-that-are-no-text-become-fffd", test_print_bad_text);
    g_test_add_func("/json-print/big-unsigned-numbers", test_print_big);
    g_test_add_func("/json-print/separators-and-quotes", test_print_shape);
    g_test_add_func("/json-print/for-people-with-a-line-for-each-member", test_indent);
    return g_test_run();
}
