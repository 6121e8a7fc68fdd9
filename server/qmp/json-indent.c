/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-indent.h"

#include <string.h>

#define INDENT 4

static void break_line(GString *out, unsigned depth)
{
    g_string_append_printf(out, "\r\n%*s", (int)(INDENT * depth), "");
}

/* The bytes of a string with its quotes. Ours are well-formed, and end. */
static size_t string_length(const char *text, size_t length)
{
    size_t n = 1;

    while (n < length && text[n] != '"') {
        n += text[n] == '\\' ? 2 : 1;
    }
    return MIN(n + 1, length);
}

/* One character that is in no string; returns how many bytes are done. */
static size_t indent_character(const char *text, unsigned *depth, GString *out)
{
    switch (*text) {
    case '{':
    case '[':
        g_string_append_c(out, *text);
        if (text[1] != '}' && text[1] != ']') { /* else that breaks the line */
            break_line(out, *depth + 1);
        }
        (*depth)++;
        return 1;
    case '}':
    case ']':
        (*depth)--;
        break_line(out, *depth);
        g_string_append_c(out, *text);
        return 1;
    case ',':
        g_string_append_c(out, ',');
        break_line(out, *depth);
        return 2; /* with the space */
    default:
        g_string_append_c(out, *text);
        return 1;
    }
}

GBytes *json_indent(GBytes *line)
{
    size_t length;
    const char *text = g_bytes_get_data(line, &length);
    GString *out = g_string_sized_new(2 * length);
    unsigned depth = 0;

    for (size_t n = 0; n < length;) {
        size_t used = text[n] == '"' ? string_length(text + n, length - n) : 0;

        g_string_append_len(out, text + n, (gssize)used);
        n += used ? used : indent_character(text + n, &depth, out);
    }
    return g_string_free_to_bytes(out);
}
