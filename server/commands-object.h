/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands object-add and object-del. */
#ifndef LIVEBLK_SERVER_COMMANDS_OBJECT_H
#define LIVEBLK_SERVER_COMMANDS_OBJECT_H

#include "server/qmp/schema.h"

extern const struct qmp_command object_commands[];

#endif
