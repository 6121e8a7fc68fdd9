/* SPDX-License-Identifier: BSD-3-Clause */
/* What a user may say of a session that is to begin, on any command line that begins one. */
#ifndef LIVEBLK_CLI_SESSION_WISHES_H
#define LIVEBLK_CLI_SESSION_WISHES_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

struct session_wishes {
    int lease;    /* seconds; 0: none */
    char *before; /* commands for the shell's syntax, or NULL */
    char *after;
    int hook_timeout; /* milliseconds; 0: the server's default */
    char *scratch;    /* a directory, or NULL */
    char *scratch_max;
    int scratch_high_water; /* percent; -1: the server's default */
};

/* How long checkpoint-begin may take with them, in milliseconds. */
int session_begin_timeout_ms(const struct session_wishes *wishes);

/* Add them to the arguments of checkpoint-begin. False with a usage error set. */
bool session_add_wishes(json_t *arguments, const struct session_wishes *wishes, GError **error);

#endif
