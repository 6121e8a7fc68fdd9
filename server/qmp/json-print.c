/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-print.h"

#include <inttypes.h>
#include <string.h>

#include "server/qmp/json-utf8.h"
#include "server/qmp/json-value.h"

/* The letter of a character's short escape, or 0. */
static char short_escape(int32_t code_point)
{
    switch (code_point) {
    case '"':
    case '\\':
        return (char)code_point;
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return 0;
    }
}

static void print_character(int32_t code_point, GString *out)
{
    char letter = short_escape(code_point);

    if (letter) {
        g_string_append_c(out, '\\');
        g_string_append_c(out, letter);
    } else if (code_point >= 0x20 && code_point < 0x7F) {
        g_string_append_c(out, (char)code_point);
    } else if (code_point < 0x10000) {
        g_string_append_printf(out, "\\u%04X", (unsigned)code_point);
    } else {
        unsigned offset = (unsigned)code_point - 0x10000;

        g_string_append_printf(out, "\\u%04X\\u%04X", 0xD800 + (offset >> 10),
                               0xDC00 + (offset & 0x3FF));
    }
}

/* The bytes from text on that are printed as they are. */
static size_t plain_length(const char *text, size_t length)
{
    size_t n = 0;

    while (n < length && text[n] >= 0x20 && text[n] < 0x7F && text[n] != '"' && text[n] != '\\') {
        n++;
    }
    return n;
}

static void print_string(const char *text, size_t length, GString *out)
{
    g_string_append_c(out, '"');
    while (length) {
        size_t used = plain_length(text, length);

        if (used) {
            g_string_append_len(out, text, (gssize)used);
        } else {
            int32_t code_point = json_utf8_decode(text, length, &used);

            print_character(code_point < 0 ? 0xFFFD : code_point, out);
        }
        text += used;
        length -= used;
    }
    g_string_append_c(out, '"');
}

static void print_object(const json_t *object, GString *out)
{
    const char *separator = "";
    /* jansson's iterators take a pointer to non-const but change nothing. */
    json_t *iterated = (json_t *)object;
    void *iterator;

    g_string_append_c(out, '{');
    for (iterator = json_object_iter(iterated); iterator;
         iterator = json_object_iter_next(iterated, iterator)) {
        g_string_append(out, separator);
        print_string(json_object_iter_key(iterator), json_object_iter_key_len(iterator), out);
        g_string_append(out, ": ");
        json_print(json_object_iter_value(iterator), out);
        separator = ", ";
    }
    g_string_append_c(out, '}');
}

static void print_array(const json_t *array, GString *out)
{
    size_t n;

    g_string_append_c(out, '[');
    for (n = 0; n < json_array_size(array); n++) {
        if (n) {
            g_string_append(out, ", ");
        }
        json_print(json_array_get(array, n), out);
    }
    g_string_append_c(out, ']');
}

static void print_real(double number, GString *out)
{
    char text[G_ASCII_DTOSTR_BUF_SIZE];

    /* Not printf, whose decimal point depends on the locale. */
    g_string_append(out, g_ascii_formatd(text, sizeof(text), "%.17g", number));
}

void json_print(const json_t *value, GString *out)
{
    uint64_t big;

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        print_object(value, out);
        break;
    case JSON_ARRAY:
        print_array(value, out);
        break;
    case JSON_STRING:
        if (json_value_is_big(value, &big)) {
            g_string_append_printf(out, "%" PRIu64, big);
        } else {
            print_string(json_string_value(value), json_string_length(value), out);
        }
        break;
    case JSON_INTEGER:
        g_string_append_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        print_real(json_real_value(value), out);
        break;
    case JSON_TRUE:
        g_string_append(out, "true");
        break;
    case JSON_FALSE:
        g_string_append(out, "false");
        break;
    case JSON_NULL:
        g_string_append(out, "null");
        break;
    }
}
