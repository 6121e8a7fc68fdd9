/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-string.h"

#include <stdbool.h>
#include <stdint.h>

#include "server/qmp/json-utf8.h"

/* The rest of a token, its closing quote included. */
struct cursor {
    const char *at;
    const char *end;
};

/* The four digits after \u, which *at does not include. Returns -1 if they are not four. */
static int32_t four_digits(const char *at, const char *end)
{
    int32_t number = 0;
    int n;

    for (n = 0; n < 4; n++) {
        int digit = at + n < end ? g_ascii_xdigit_value(at[n]) : -1;

        if (digit < 0) {
            return -1;
        }
        number = number << 4 | digit;
    }
    return number;
}

static bool fail_unicode(const char *escape, const struct cursor *cursor, int length,
                         GString *error)
{
    g_string_append_printf(error, "%.*s is not a valid Unicode character",
                           (int)MIN(length, cursor->end - escape), escape);
    return false;
}

/* At the u of \uXXXX; takes the second half of a surrogate pair along. */
static bool take_unicode(struct cursor *cursor, GString *out, GString *error)
{
    const char *escape = cursor->at - 1;
    int32_t code_point = four_digits(cursor->at + 1, cursor->end);
    int length = 6;

    if (code_point >= 0xD800 && code_point <= 0xDBFF && cursor->end - escape > 12 &&
        escape[6] == '\\' && escape[7] == 'u') {
        int32_t low = four_digits(escape + 8, cursor->end);

        if (low >= 0xDC00 && low <= 0xDFFF) {
            code_point = 0x10000 + ((code_point & 0x3FF) << 10 | (low & 0x3FF));
            length = 12;
        }
    }
    if (code_point < 0 || !json_utf8_is_character((uint32_t)code_point)) {
        return fail_unicode(escape, cursor, length, error);
    }
    json_utf8_append(out, (uint32_t)code_point);
    cursor->at = escape + length;
    return true;
}

/* After a backslash. */
static bool take_escape(struct cursor *cursor, GString *out, GString *error)
{
    static const char letters[] = "\"'\\/bfnrt";
    static const char meanings[] = "\"'\\/\b\f\n\r\t";
    const char *letter;

    if (*cursor->at == 'u') {
        return take_unicode(cursor, out, error);
    }
    for (letter = letters; *letter; letter++) {
        if (*letter == *cursor->at) {
            g_string_append_c(out, meanings[letter - letters]);
            cursor->at++;
            return true;
        }
    }
    g_string_append(error, "invalid escape sequence in string");
    return false;
}

static bool take_character(struct cursor *cursor, GString *out, GString *error)
{
    size_t used;

    if (*cursor->at == '\\') {
        cursor->at++;
        return take_escape(cursor, out, error);
    }
    if (json_utf8_decode(cursor->at, (size_t)(cursor->end - cursor->at), &used) < 0) {
        g_string_append(error, "invalid UTF-8 sequence in string");
        return false;
    }
    g_string_append_len(out, cursor->at, (gssize)used);
    cursor->at += used;
    return true;
}

json_t *json_string_from_token(const GString *token, GString *error)
{
    struct cursor cursor = {.at = token->str + 1, .end = token->str + token->len};
    g_autoptr(GString) out = g_string_sized_new(token->len);

    while (cursor.at < cursor.end - 1) {
        if (!take_character(&cursor, out, error)) {
            return NULL;
        }
    }
    return json_stringn_nocheck(out->str, out->len);
}
