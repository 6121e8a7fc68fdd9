/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Arguments of commands as they stand on a command line: either a JSON object, or
 * "key=value,key.inner=value,list.0=value" with ",," for a comma in a value (block/options.h).
 * Which of these texts are numbers, booleans or lists the command's table says.
 */
#ifndef LIVEBLK_SERVER_OPTION_TEXT_H
#define LIVEBLK_SERVER_OPTION_TEXT_H

#include <glib.h>
#include <jansson.h>

#include "server/qmp/schema.h"

/*
 * Read and check arguments of this type (NULL: of a command that has none). implied_key: whose
 * value a first word without "=" is; or NULL. A new reference, or NULL with the error set. Any
 * thread.
 */
json_t *option_text_read(const char *text, const char *implied_key, const struct qmp_type *type,
                         GError **error);

/*
 * What can be said where arguments of a type with variants are expected, if the text asks for that:
 * "help" for the variants (title goes before them), "VARIANT,help" for what one has. NULL if it
 * does not ask; the caller frees.
 */
char *option_text_help(const char *text, const char *title, const struct qmp_type *type);

/* A JSON object by itself, unchecked. */
json_t *option_text_read_json(const char *text, GError **error);

#endif
