/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about the graph as such: who uses what, and what QEMU can change there. */
#ifndef LIVEBLK_SERVER_COMMANDS_GRAPH_H
#define LIVEBLK_SERVER_COMMANDS_GRAPH_H

#include "server/qmp/schema.h"

extern const struct qmp_command graph_commands[];
extern const struct qmp_event_type graph_events[];

#endif
