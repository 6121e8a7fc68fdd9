/* SPDX-License-Identifier: BSD-3-Clause */
/* The command tables of the admin channel, one per file. */
#ifndef LIVEBLK_SERVER_QMP_COMMANDS_H
#define LIVEBLK_SERVER_QMP_COMMANDS_H

#include "server/qmp/schema.h"

/* qmp_capabilities and the query-* commands that need nothing but the monitor. */
extern const struct qmp_command qmp_commands_control[];

#endif
