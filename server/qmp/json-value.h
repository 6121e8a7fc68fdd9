/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the admin channel needs beyond jansson's values.
 *
 * Whole numbers above INT64_MAX: jansson's integers are signed 64 bits, QMP's reach UINT64_MAX.
 * Such a number is held as a string whose first two bytes are FF 00, followed by its decimal
 * digits. No other string can look so: a parsed one is valid UTF-8 and holds no NUL byte (see
 * json-utf8.h), and one made from a C string holds none either. Nothing outside this module, the
 * parser, the printer and the argument checks meets them: qmp_check turns them, in arguments of
 * type uint64 and size, into the (negative) integer of the same 64 bits, so that a handler reads
 * such arguments with (uint64_t)json_integer_value().
 */
#ifndef LIVEBLK_SERVER_QMP_JSON_VALUE_H
#define LIVEBLK_SERVER_QMP_JSON_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* A number for output: a jansson integer if it fits one, else as above. A new reference. */
json_t *json_value_from_u64(uint64_t number);

/* True, with the number in *number, if the value is a whole number above INT64_MAX. */
bool json_value_is_big(const json_t *value, uint64_t *number);

/*
 * A string for output from any bytes, a file name for example: what is no valid UTF-8 in it is
 * printed as U+FFFD. (jansson's own json_string returns NULL for such text.) A new reference.
 */
json_t *json_value_from_text(const char *text);

#endif
