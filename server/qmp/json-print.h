/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * JSON as QEMU writes it: on one line, ": " and ", " as separators, pure ASCII (all else as
 * \uXXXX, in surrogate pairs where needed), reals with 17 digits.
 */
#ifndef LIVEBLK_SERVER_QMP_JSON_PRINT_H
#define LIVEBLK_SERVER_QMP_JSON_PRINT_H

#include <glib.h>
#include <jansson.h>

/* Append a value. Bytes in strings that are no UTF-8 are printed as U+FFFD. Any thread. */
void json_print(const json_t *value, GString *out);

#endif
