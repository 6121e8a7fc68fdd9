/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about backup sessions and checkpoints of all devices (server/sessions.h). */
#ifndef LIVEBLK_SERVER_COMMANDS_CHECKPOINT_H
#define LIVEBLK_SERVER_COMMANDS_CHECKPOINT_H

#include "server/qmp/schema.h"

extern const struct qmp_command checkpoint_commands[];
extern const struct qmp_event_type checkpoint_events[];

#endif
