/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-verify: an entry of the job commands' table, and an action. */
#ifndef LIVEBLK_SERVER_COMMANDS_VERIFY_H
#define LIVEBLK_SERVER_COMMANDS_VERIFY_H

#include "jobs/verify-report.h"
#include "server/qmp/schema.h"
#include "server/transaction.h"

extern const struct qmp_type blockdev_verify_type;
json_t *blockdev_verify(struct qmp_request *request, json_t *arguments, GError **error);
extern const struct transaction_action_type blockdev_verify_action;

/* What query-jobs says of such a job, and the event of a difference. */
extern const struct qmp_type verify_info_type;
extern const struct qmp_type verify_difference_event_type;
json_t *verify_info_object(const struct verify_report *report);

#endif
