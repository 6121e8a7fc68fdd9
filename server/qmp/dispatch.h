/* SPDX-License-Identifier: BSD-3-Clause */
/* Between a message and a command: what a request must look like, and what its reply looks like. */
#ifndef LIVEBLK_SERVER_QMP_DISPATCH_H
#define LIVEBLK_SERVER_QMP_DISPATCH_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "server/qmp/schema.h"

/* What a connection has negotiated. */
struct qmp_session {
    bool negotiated;
    bool out_of_band;
};

/*
 * The command a message asks for, with its arguments (a new reference, never NULL) checked; NULL
 * with the error set if there is none to run. The arguments may be changed: see qmp_check.
 */
const struct qmp_command *qmp_dispatch(const struct qmp_command *const *tables,
                                       const struct qmp_session *session, json_t *message,
                                       json_t **arguments, GError **error);

/* The command of this name, or NULL. */
const struct qmp_command *qmp_find_command(const struct qmp_command *const *tables,
                                           const char *name);

/* True for requests that are answered at once, past those that wait. */
bool qmp_is_out_of_band(const json_t *message);

/* The line the server sends first. */
GBytes *qmp_greeting(void);

/*
 * The line that answers a request: result is taken over, and ignored if error is set. message is
 * the request, whose id is echoed, or NULL. Any thread.
 */
GBytes *qmp_reply(json_t *message, json_t *result, const GError *error);

/* A JSON value as one line of the wire. Takes the reference. */
GBytes *qmp_line(json_t *value);

#endif
