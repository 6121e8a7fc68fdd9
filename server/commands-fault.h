/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands and events of the fault layers (blkdebug and lose-writes nodes). */
#ifndef LIVEBLK_SERVER_COMMANDS_FAULT_H
#define LIVEBLK_SERVER_COMMANDS_FAULT_H

#include "server/qmp/schema.h"

/* Make the argument types that follow from drivers' options; once, before the tables are used. */
void fault_commands_init(void);

extern const struct qmp_command fault_commands[];
extern const struct qmp_event_type fault_events[];

#endif
