/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * UTF-8 as the admin channel reads and writes it. Strings are NUL-terminated everywhere behind
 * it, so the character U+0000 is kept as the two bytes C0 80: an embedded NUL can neither cut a
 * file name short nor make two different names compare as equal.
 */
#ifndef LIVEBLK_SERVER_QMP_JSON_UTF8_H
#define LIVEBLK_SERVER_QMP_JSON_UTF8_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Decode the character at text, of which length bytes (at least one) may be read. Returns its
 * code point, or -1 for anything that is no character: bad or cut-off sequences, overlong ones
 * other than C0 80, surrogates, noncharacters. *used is the number of bytes it takes, at least
 * one; after a bad sequence decoding can go on there.
 */
int32_t json_utf8_decode(const char *text, size_t length, size_t *used);

/* True for code points that may stand in a string: no surrogate, no noncharacter. */
bool json_utf8_is_character(uint32_t code_point);

/* Append a character, U+0000 as C0 80. */
void json_utf8_append(GString *out, uint32_t code_point);

#endif
