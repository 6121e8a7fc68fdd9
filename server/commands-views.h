/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about views: view-create, view-drop, view-discard, query-views. */
#ifndef LIVEBLK_SERVER_COMMANDS_VIEWS_H
#define LIVEBLK_SERVER_COMMANDS_VIEWS_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

extern const struct qmp_command view_commands[];
extern const struct qmp_event_type view_events[];
extern const struct transaction_action_type view_create_action;

#endif
