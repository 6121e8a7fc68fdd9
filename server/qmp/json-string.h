/* SPDX-License-Identifier: BSD-3-Clause */
/* The contents of a JSON string: escapes resolved, UTF-8 checked. */
#ifndef LIVEBLK_SERVER_QMP_JSON_STRING_H
#define LIVEBLK_SERVER_QMP_JSON_STRING_H

#include <glib.h>
#include <jansson.h>

/*
 * The string a token (with its quotes) stands for: a new reference, or NULL with what is wrong
 * with it appended to error.
 */
json_t *json_string_from_token(const GString *token, GString *error);

#endif
