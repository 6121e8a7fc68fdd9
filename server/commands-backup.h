/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-backup and drive-backup: entries of the job commands' table, and actions. */
#ifndef LIVEBLK_SERVER_COMMANDS_BACKUP_H
#define LIVEBLK_SERVER_COMMANDS_BACKUP_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

extern const struct qmp_type blockdev_backup_type;
extern const struct qmp_type drive_backup_type;

/* The type of the argument `sync`, also of mirrors. */
extern const struct qmp_type mirror_sync_mode_type;
extern const char *const mirror_sync_mode_names[];

json_t *blockdev_backup(struct qmp_request *request, json_t *arguments, GError **error);
json_t *drive_backup(struct qmp_request *request, json_t *arguments, GError **error);

extern const struct transaction_action_type blockdev_backup_action;
extern const struct transaction_action_type drive_backup_action;

#endif
