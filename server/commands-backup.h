/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-backup and drive-backup: entries of the job commands' table, and actions. */
#ifndef LIVEBLK_SERVER_COMMANDS_BACKUP_H
#define LIVEBLK_SERVER_COMMANDS_BACKUP_H

#include "block/device.h"
#include "jobs/backup.h"
#include "server/bitmap-name.h"
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

/* ---- For actions that are backups of another kind: commands-verify.c ------------------------ */

/* Their state. The steps after prepare are the same for all. */
struct backup_action {
    struct job *job;
    const char *device; /* as the arguments name it */
    struct block_node *source;
    struct bitmap_name bitmap;    /* without a name: none is used */
    bool has_bitmap;              /* it was taken */
    const char *since;            /* a checkpoint of the device, or NULL */
    struct block_device *tracked; /* whose checkpoint that is */
};

/*
 * In prepare: make the job by these options and plan its moment. What all such actions have in
 * common is read from the arguments: the job's ID, its end and its speed, error policies, scratch.
 * The state's `since` has been filled in; the rest that the steps below need is.
 */
int backup_action_make_job(struct transaction_action *action, json_t *arguments,
                           struct backup_options *options, GError **error);

int backup_action_apply(struct transaction_action *action, GError **error);
void backup_action_undo(struct transaction_action *action);
void backup_action_activate(struct transaction_action *action);
void backup_action_commit(struct transaction_action *action);
void backup_action_abort(struct transaction_action *action);
void backup_action_clean(struct transaction_action *action);

#define BACKUP_ACTION_END                                                                          \
    .apply = backup_action_apply, .undo = backup_action_undo, .activate = backup_action_activate,  \
    .commit = backup_action_commit, .abort = backup_action_abort, .clean = backup_action_clean

#endif
