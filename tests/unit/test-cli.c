/* SPDX-License-Identifier: BSD-3-Clause */
/* The parts of the liveblk command that need no server: sizes, progress, percentiles. */
#include <glib.h>
#include <string.h>

#include "block/clock.h"
#include "cli/latency.h"
#include "cli/output.h"
#include "cli/progress.h"

static void assert_size(const char *text, int64_t expected)
{
    int64_t bytes;

    g_assert_true(parse_size(text, &bytes));
    g_assert_cmpint(bytes, ==, expected);
}

static void test_sizes_parse(void)
{
    assert_size("0", 0);
    assert_size("1048576", 1048576);
    assert_size("512K", 512 << 10);
    assert_size("50m", 50 << 20);
    assert_size("2GiB", INT64_C(2) << 30);
    assert_size("1.5G", INT64_C(3) << 29);
    assert_size("9223372036854775807", INT64_MAX);
}

static void test_bad_sizes_are_refused(void)
{
    static const char *const texts[] = {"",
                                        "-1",
                                        "+1",
                                        "K",
                                        "1X",
                                        "1KK",
                                        "1 K",
                                        "1.5",
                                        "1e3",
                                        "0x10",
                                        "9223372036854775808",
                                        "8E",
                                        "99999999999999999999",
                                        "1..5G",
                                        "nan",
                                        "9.0E"};
    int64_t bytes;

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_test_message("'%s'", texts[i]);
        g_assert_false(parse_size(texts[i], &bytes));
    }
}

static void test_lengths(void)
{
    static const struct {
        const char *text;
        uint64_t now, length;
    } good[] = {
        {"1G", 5, 1 << 30},  {"+1K", 1024, 2048}, {"-1K", 1024, 0},
        {"+0", 512, 512},    {"0", 512, 0},       {"+1", INT64_MAX - 1, INT64_MAX},
        {"-512", 1024, 512},
    };
    static const char *const bad[] = {"", "+", "-", "-2K", "+8E", "--1", "+-1", "1X", "9E"};
    uint64_t length;

    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        g_assert_true(parse_length(good[i].text, good[i].now, &length));
        g_assert_cmpuint(length, ==, good[i].length);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_test_message("'%s'", bad[i]);
        g_assert_false(parse_length(bad[i], 1024, &length));
    }
    g_assert_false(parse_length("+1", INT64_MAX, &length));
    g_assert_false(parse_length("-1", UINT64_MAX, &length));
}

static void test_printable(void)
{
    g_autofree char *harmless = printable("na\xc3\xafve file.img");
    g_autofree char *escape = printable("a\x1b[2Jb\nc\x7f");
    g_autofree char *broken = printable("\xff\xc2\x9bx");

    g_assert_cmpstr(harmless, ==, "na\xc3\xafve file.img");
    g_assert_cmpstr(escape, ==,
                    "a\xef\xbf\xbd[2Jb\xef\xbf\xbd"
                    "c\xef\xbf\xbd");
    g_assert_cmpstr(broken, ==, "\xef\xbf\xbd\xef\xbf\xbdx");
}

static void assert_text(char *text, const char *expected)
{
    g_assert_cmpstr(text, ==, expected);
    g_free(text);
}

static void test_texts(void)
{
    assert_text(format_size(0), "0 B");
    assert_text(format_size(1023), "1023 B");
    assert_text(format_size(1024), "1.0 KiB");
    assert_text(format_size((1 << 20) - 1), "1.0 MiB");
    assert_text(format_size(UINT64_MAX), "16.0 EiB");
    assert_text(format_duration(7), "0:07");
    assert_text(format_duration(3599), "59:59");
    assert_text(format_duration(11159), "3:05:59");
    assert_text(format_latency(850), "850 ns");
    assert_text(format_latency(4560000), "4.56 ms");
}

/* Readings every half second at a steady speed. */
static void advance(struct progress *progress, int64_t *now_ns, unsigned steps,
                    uint64_t bytes_per_step)
{
    for (unsigned i = 0; i < steps; i++) {
        *now_ns += NS_PER_SECOND / 2;
        progress_update(progress, *now_ns, progress->done + bytes_per_step, progress->total,
                        "copying");
    }
}

static void start(struct progress *progress, int64_t *now_ns, uint64_t total)
{
    *now_ns = 1000 * NS_PER_SECOND;
    progress_init(progress, *now_ns);
    progress_update(progress, *now_ns, 0, total, "copying");
}

static void test_never_whole_before_the_end(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 1000);
    progress_update(&progress, now_ns + NS_PER_SECOND, 1000, 1000, "flushing");
    g_assert_cmpfloat(progress_fraction(&progress), <, 1);
    progress_update(&progress, now_ns + 2 * NS_PER_SECOND, 2000, 1000, "flushing");
    g_assert_cmpfloat(progress_fraction(&progress), <, 1);
    g_autofree char *line = progress_line(&progress, 0);
    g_assert_nonnull(strstr(line, "99.9 %"));
    progress.finished = true;
    g_assert_cmpfloat(progress_fraction(&progress), ==, 1);
}

static void test_nothing_known_is_said_to_be_unknown(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 0);
    g_assert_cmpfloat(progress_fraction(&progress), <, 0);
    g_assert_cmpint(progress_seconds_left(&progress), <, 0);
    json_t *message = progress_json(&progress, "j", now_ns);
    g_assert_true(json_is_null(json_object_get(message, "percent_done")));
    g_assert_true(json_is_null(json_object_get(message, "bytes_per_second")));
    g_assert_true(json_is_null(json_object_get(message, "seconds_remaining")));
    json_decref(message);
}

static void test_the_rate_follows_slowly(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 1000000);
    advance(&progress, &now_ns, 20, 500);
    g_assert_cmpint(progress.rate, ==, 1000);
    g_assert_cmpint(progress_seconds_left(&progress), ==, 990);
    /* One slow step must not make the time left jump. */
    advance(&progress, &now_ns, 1, 0);
    g_assert_cmpfloat(progress.rate, >, 850);
    /* A long stall must show. */
    advance(&progress, &now_ns, 200, 0);
    g_assert_cmpint(progress_seconds_left(&progress), <, 0);
}

static void test_work_undone_is_no_speed(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 1000);
    advance(&progress, &now_ns, 2, 100);
    progress_update(&progress, now_ns + NS_PER_SECOND, 50, 1000, "copying");
    g_assert_cmpfloat(progress.rate, >=, 0);
    g_assert_cmpint(progress.done, ==, 50);
}

static void test_a_line_is_cut_to_its_width(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 1000);
    g_autofree char *line = progress_line(&progress, 20);
    g_assert_cmpuint(strlen(line), ==, 20);
}

static void test_steps_are_no_bytes(void)
{
    struct progress progress;
    int64_t now_ns;

    start(&progress, &now_ns, 1000);
    progress.in_steps = true;
    advance(&progress, &now_ns, 2, 100);
    g_autofree char *line = progress_line(&progress, 0);
    g_assert_cmpstr(line, ==, "copying  20.0 %  0:04 left");
}

static json_t *histogram(int a, int b, int c)
{
    return json_pack("{s:[i,i], s:[i,i,i]}", "boundaries", 10, 100, "bins", a, b, c);
}

static void test_percentiles(void)
{
    json_t *before = histogram(100, 0, 0);
    json_t *now = histogram(149, 50, 1);

    g_assert_cmpfloat(latency_percentile(now, NULL, 0.5), ==, 10);
    g_assert_cmpfloat(latency_percentile(now, before, 0.5), ==, 100);
    g_assert_cmpfloat(latency_percentile(now, before, 0.99), ==, 100);
    /* The last bin has no end. */
    g_assert_cmpfloat(latency_percentile(now, before, 1.0), <, 0);
    g_assert_cmpfloat(latency_percentile(now, now, 0.5), <, 0);
    g_assert_cmpfloat(latency_percentile(NULL, NULL, 0.5), <, 0);
    /* A server that was restarted counts from zero again. */
    g_assert_cmpfloat(latency_percentile(before, now, 0.5), <, 0);
    json_decref(before);
    json_decref(now);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cli/sizes-with-units-are-exact", test_sizes_parse);
    g_test_add_func("/cli/sizes-that-make-no-sense-are-refused", test_bad_sizes_are_refused);
    g_test_add_func("/cli/lengths-may-be-relative-and-never-wrap", test_lengths);
    g_test_add_func("/cli/text-from-images-does-no-harm-on-a-terminal", test_printable);
    g_test_add_func("/cli/sizes-and-times-read-well", test_texts);
    g_test_add_func("/cli/progress-is-never-whole-before-the-end", test_never_whole_before_the_end);
    g_test_add_func("/cli/progress-does-not-invent-what-it-does-not-know",
                    test_nothing_known_is_said_to_be_unknown);
    g_test_add_func("/cli/progress-rate-follows-slowly", test_the_rate_follows_slowly);
    g_test_add_func("/cli/progress-work-undone-is-no-speed", test_work_undone_is_no_speed);
    g_test_add_func("/cli/progress-line-is-cut-to-its-width", test_a_line_is_cut_to_its_width);
    g_test_add_func("/cli/progress-in-steps-shows-no-bytes", test_steps_are_no_bytes);
    g_test_add_func("/cli/percentiles-are-never-too-good", test_percentiles);
    return g_test_run();
}
