/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/json-utf8.h"

bool json_utf8_is_character(uint32_t code_point)
{
    bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
    bool noncharacter =
        (code_point >= 0xFDD0 && code_point <= 0xFDEF) || (code_point & 0xFFFE) == 0xFFFE;

    return code_point <= 0x10FFFF && !surrogate && !noncharacter;
}

/* The length a first byte announces, the forms beyond U+10FFFF included; 0: not a first byte. */
static size_t sequence_length(uint8_t first)
{
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC0 || first >= 0xFE) {
        return 0;
    }
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF8 ? 4 : first < 0xFC ? 5 : 6;
}

int32_t json_utf8_decode(const char *text, size_t length, size_t *used)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000, 0x200000, 0x4000000};
    size_t expected = sequence_length((uint8_t)text[0]);
    uint32_t code_point;
    size_t n;

    *used = 1;
    if (expected <= 1) {
        return expected ? text[0] : -1;
    }
    code_point = (uint8_t)text[0] & (0x7F >> expected);
    for (n = 1; n < expected && n < length && ((uint8_t)text[n] & 0xC0) == 0x80; n++) {
        code_point = code_point << 6 | ((uint8_t)text[n] & 0x3F);
    }
    *used = n;
    if (n < expected || !json_utf8_is_character(code_point)) {
        return -1;
    }
    if (code_point < smallest[expected] && !(expected == 2 && code_point == 0)) {
        return -1;
    }
    return (int32_t)code_point;
}

void json_utf8_append(GString *out, uint32_t code_point)
{
    if (code_point == 0) {
        g_string_append_len(out, "\xC0\x80", 2);
    } else {
        g_string_append_unichar(out, code_point);
    }
}
