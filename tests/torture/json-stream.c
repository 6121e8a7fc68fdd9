/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random bytes, JSON-like and not, into the parser: whatever comes, it neither crashes nor leaks
 * (the sanitizers look), its results do not depend on how the bytes are split over packets, what
 * it accepts and prints it accepts again, and afterwards one FF brings it back into step.
 */
#include <glib.h>
#include <jansson.h>
#include <string.h>

#include "block/clock.h"
#include "server/qmp/json-print.h"
#include "server/qmp/json-stream.h"

#define TORTURE_NS (4 * NS_PER_SECOND)

static const char *const scraps[] = {
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "'",
    "\\",
    "\\u",
    "d83d",
    "\\ude00",
    "\\ud800",
    "\\u0000",
    "\\n",
    "0",
    "-",
    "1e",
    "e+5",
    ".",
    "12",
    "true",
    "null",
    "fals",
    " ",
    "\n",
    "\t",
    "\x01",
    "\xff",
    "\xc3\xa9",
    "\xc3",
    "\xe2\x82",
    "\x80",
    "@",
    "{}",
    "[1, 2]",
    "\"a\":",
    "\"id\"",
    "{\"a\":1",
    "\"x\"}",
    "\xf0\x9f\x98\x80",
    "A",
    "\"\"",
    "18446744073709551615",
};

static GString *random_input(GRand *random)
{
    GString *input = g_string_new(NULL);
    int pieces = g_rand_int_range(random, 1, 60);

    while (pieces-- > 0) {
        if (g_rand_int_range(random, 0, 8) == 0) {
            g_string_append_c(input, (char)g_rand_int_range(random, 0, 256));
        } else {
            g_string_append(input, scraps[g_rand_int_range(random, 0, G_N_ELEMENTS(scraps))]);
        }
    }
    return input;
}

static void collect(json_t *value, const char *error, void *data)
{
    GString *results = data;

    if (value) {
        json_print(value, results);
        json_decref(value);
    } else {
        g_string_append_printf(results, "!%s", error);
    }
    g_string_append_c(results, '\n');
}

/* The results of the input in packets of random sizes up to the given one. */
static GString *parse(const GString *input, GRand *random, int largest)
{
    GString *results = g_string_new(NULL);
    struct json_stream *stream = json_stream_new(collect, results);
    size_t at = 0;

    while (at < input->len) {
        size_t size = (size_t)g_rand_int_range(random, 1, largest + 1);
        g_autofree char *packet = NULL;

        size = MIN(size, input->len - at);
        packet = g_memdup2(input->str + at, size);
        at += json_stream_feed(stream, packet, size);
    }
    json_stream_free(stream);
    return results;
}

static void accept_again(json_t *value, const char *error, void *data)
{
    GString *printed = data;

    g_assert_null(error);
    collect(value, error, printed);
}

/* A value that was printed is parsed and printed to the same bytes. */
static void check_round_trip(const char *line)
{
    g_autoptr(GString) printed = g_string_new(NULL);
    g_autofree char *packet = g_strconcat(line, "\n", NULL);
    struct json_stream *stream = json_stream_new(accept_again, printed);
    size_t at = 0;

    while (at < strlen(packet)) {
        at += json_stream_feed(stream, packet + at, strlen(packet) - at);
    }
    json_stream_free(stream);
    /* -0.0 prints as -0, which is a whole number. */
    if (!strstr(line, "-0")) {
        g_assert_cmpstr(printed->str, ==, packet);
    }
}

static void test_random(void)
{
    guint32 seed = (guint32)g_test_rand_int();
    GRand *random = g_rand_new_with_seed(seed);
    int64_t deadline = clock_now_ns() + TORTURE_NS;
    unsigned rounds = 0;

    g_test_message("seed %u", seed);
    do {
        g_autoptr(GString) input = random_input(random);
        g_autoptr(GString) whole = NULL;
        g_autoptr(GString) split = NULL;
        g_auto(GStrv) lines = NULL;

        g_string_append(input, "\xff{\"end\": 1}");
        whole = parse(input, random, 1 << 20);
        split = parse(input, random, 3);
        g_assert_cmpstr(whole->str, ==, split->str);
        g_assert_true(g_str_has_suffix(whole->str, "'\n{\"end\": 1}\n"));
        lines = g_strsplit(whole->str, "\n", -1);
        for (char **line = lines; *line; line++) {
            if (**line && strchr("{[\"", **line)) {
                check_round_trip(*line);
            }
        }
        rounds++;
    } while (clock_now_ns() < deadline);
    g_test_message("%u inputs", rounds);
    g_rand_free(random);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/json-stream/any-bytes-in-any-packets", test_random);
    return g_test_run();
}
