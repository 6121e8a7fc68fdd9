/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about NBD servers and exports. */
#ifndef LIVEBLK_SERVER_COMMANDS_EXPORT_H
#define LIVEBLK_SERVER_COMMANDS_EXPORT_H

#include "server/qmp/schema.h"

/* Each ended by an entry without name. */
extern const struct qmp_command export_commands[];
extern const struct qmp_event_type export_events[];

#endif
