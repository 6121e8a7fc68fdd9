/* SPDX-License-Identifier: BSD-3-Clause */
/* The command `transaction`. */
#ifndef LIVEBLK_SERVER_COMMANDS_TRANSACTION_H
#define LIVEBLK_SERVER_COMMANDS_TRANSACTION_H

#include "server/qmp/schema.h"

/* Make the argument type that follows from the actions; once, before the table is used. */
void transaction_commands_init(void);

extern const struct qmp_command transaction_commands[];

#endif
