/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about NBD servers and exports. */
#ifndef LIVEBLK_SERVER_COMMANDS_EXPORT_H
#define LIVEBLK_SERVER_COMMANDS_EXPORT_H

#include <glib.h>

#include "server/qmp/schema.h"

/* Each ended by an entry without name. */
extern const struct qmp_command export_commands[];
extern const struct qmp_event_type export_events[];

/*
 * nbd-server-start from a command line's text (server/option-text.h): with the same parameters, but
 * `addr` without the nesting of `data`. Not the main thread. A negative errno.
 */
int export_start_server(const char *text, GError **error);

#endif
