/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/output.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    /* What was printed so far belongs before the complaint when both go to one place. */
    fflush(stdout);
    fprintf(stderr, "liveblk: %s\n", message);
}

char *format_size(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = bytes;
    unsigned unit = 0;

    /* 1023.95 would be printed as 1024.0. */
    while (value >= 1023.95 && unit + 1 < G_N_ELEMENTS(units)) {
        value /= 1024;
        unit++;
    }
    if (unit == 0) {
        return g_strdup_printf("%" G_GUINT64_FORMAT " B", bytes);
    }
    return g_strdup_printf("%.1f %s", value, units[unit]);
}

char *format_time(time_t seconds)
{
    char text[32];
    struct tm parts;

    if (!localtime_r(&seconds, &parts) || !strftime(text, sizeof(text), "%F %T", &parts)) {
        return g_strdup("?");
    }
    return g_strdup(text);
}

char *format_duration(uint64_t seconds)
{
    if (seconds < 3600) {
        return g_strdup_printf("%u:%02u", (unsigned)(seconds / 60), (unsigned)(seconds % 60));
    }
    return g_strdup_printf("%" G_GUINT64_FORMAT ":%02u:%02u", seconds / 3600,
                           (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60));
}

char *format_latency(double ns)
{
    if (ns < 1e3) {
        return g_strdup_printf("%.0f ns", ns);
    }
    if (ns < 1e6) {
        return g_strdup_printf("%.1f us", ns / 1e3);
    }
    if (ns < 1e9) {
        return g_strdup_printf("%.2f ms", ns / 1e6);
    }
    return g_strdup_printf("%.2f s", ns / 1e9);
}

/* The factor a unit stands for; 0 if it is none. */
static double unit_factor(const char *unit)
{
    static const char prefixes[] = "KMGTPE";
    const char *found;

    if (!*unit || !strcmp(unit, "B")) {
        return 1;
    }
    found = strchr(prefixes, g_ascii_toupper(unit[0]));
    if (!found || (strcmp(unit + 1, "") && strcmp(unit + 1, "B") && strcmp(unit + 1, "iB"))) {
        return 0;
    }
    return ldexp(1, 10 * (int)(found - prefixes + 1));
}

bool parse_size(const char *text, int64_t *bytes)
{
    char *end;

    if (!g_ascii_isdigit(text[0])) {
        return false;
    }
    /* Whole numbers exactly; only fractions go through floating point. */
    size_t digits = strspn(text, "0123456789");
    if (text[digits] != '.') {
        uint64_t number = g_ascii_strtoull(text, &end, 10);
        double factor = unit_factor(end);
        uint64_t product;

        if (factor == 0 || number > INT64_MAX ||
            __builtin_mul_overflow(number, (uint64_t)factor, &product) || product > INT64_MAX) {
            return false;
        }
        *bytes = (int64_t)product;
        return true;
    }
    /* "1e3" and "0x1p3" are nothing a person means. */
    size_t length = digits + 1 + strspn(text + digits + 1, "0123456789");
    g_autofree char *number = g_strndup(text, length);
    double value = g_ascii_strtod(number, NULL) * unit_factor(text + length);
    if (unit_factor(text + length) <= 1 || value >= 0x1p63) {
        return false;
    }
    *bytes = (int64_t)value;
    return true;
}

bool parse_milliseconds(const char *text, int64_t *ns)
{
    const double most = 24 * 3600 * 1e3;
    char *end;
    double value = g_ascii_strtod(text, &end);

    if (!g_ascii_isdigit(*text) || *end || !(value <= most)) {
        return false;
    }
    *ns = (int64_t)(value * 1e6);
    return true;
}

bool parse_length(const char *text, uint64_t now, uint64_t *length)
{
    bool is_more = *text == '+', is_less = *text == '-';
    int64_t bytes;

    if (!parse_size(text + (is_more || is_less), &bytes) || now > INT64_MAX ||
        (is_less && (uint64_t)bytes > now) || (is_more && (uint64_t)bytes > INT64_MAX - now)) {
        return false;
    }
    *length = is_more ? now + (uint64_t)bytes : is_less ? now - (uint64_t)bytes : (uint64_t)bytes;
    return true;
}

char *printable(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    GString *out = g_string_new(NULL);

    for (const char *at = valid; *at; at = g_utf8_next_char(at)) {
        gunichar character = g_utf8_get_char(at);

        g_string_append_unichar(out, g_unichar_iscntrl(character) ? 0xfffd : character);
    }
    return g_string_free(out, FALSE);
}

/* Enough digits for a moment, in seconds since 1970, to be told to the microsecond or so. */
static void print_json_with(json_t *value, size_t flags)
{
    char *text = json_dumps(value, flags | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));

    printf("%s\n", text ? text : "null");
    fflush(stdout);
    free(text);
    json_decref(value);
}

void print_json_line(json_t *value)
{
    print_json_with(value, JSON_COMPACT);
}

void print_json(json_t *value)
{
    print_json_with(value, JSON_INDENT(2));
}

const char *member_text(const json_t *object, const char *name, const char *absent)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : absent;
}

int64_t member_integer(const json_t *object, const char *name, int64_t absent)
{
    const json_t *value = json_object_get(object, name);

    return json_is_integer(value) ? json_integer_value(value) : absent;
}

bool member_flag(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

char *guest_waits_text(const json_t *object)
{
    const json_t *waits = json_object_get(object, "guest-waits");
    g_autofree char *p99 = format_latency((double)member_integer(waits, "p99-ns", 0));
    g_autofree char *longest = format_latency((double)member_integer(waits, "longest-ns", 0));

    return member_integer(waits, "requests", 0) > 0 ? g_strdup_printf("%s/%s", p99, longest)
                                                    : g_strdup("-");
}

struct libscols_table *table_new(const char *const *headings)
{
    struct libscols_table *table = scols_new_table();

    if (!table) {
        g_error("Out of memory");
    }
    for (; *headings; headings++) {
        bool right = **headings == '>';
        scols_table_new_column(table, *headings + right, 0, right ? SCOLS_FL_RIGHT : 0);
    }
    return table;
}

void table_add(struct libscols_table *table, const char *const *cells)
{
    struct libscols_line *line = scols_table_new_line(table, NULL);
    size_t columns = scols_table_get_ncols(table);

    if (!line) {
        g_error("Out of memory");
    }
    for (size_t i = 0; i < columns; i++) {
        if (scols_line_set_data(line, i, cells[i])) {
            g_error("Out of memory");
        }
    }
}

void table_print(struct libscols_table *table)
{
    scols_print_table(table);
    fflush(stdout);
    scols_unref_table(table);
}
