/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps as users see them: the block-dirty-bitmap commands, which are actions too. */
#ifndef LIVEBLK_SERVER_COMMANDS_BITMAP_H
#define LIVEBLK_SERVER_COMMANDS_BITMAP_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

extern const struct transaction_action_type bitmap_add_action, bitmap_remove_action,
    bitmap_clear_action, bitmap_enable_action, bitmap_disable_action, bitmap_merge_action;

extern const struct qmp_command bitmap_commands[];

/* Bitmaps, each a name, or an object of a node's and a bitmap's. */
extern const struct qmp_type dirty_bitmap_or_string_list_type;

#endif
