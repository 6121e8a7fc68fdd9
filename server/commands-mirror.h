/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-mirror and drive-mirror: entries of the job commands' table. */
#ifndef LIVEBLK_SERVER_COMMANDS_MIRROR_H
#define LIVEBLK_SERVER_COMMANDS_MIRROR_H

#include "server/qmp/schema.h"

extern const struct qmp_type blockdev_mirror_type;
extern const struct qmp_type drive_mirror_type;
extern const struct qmp_type mirror_copy_mode_type;

json_t *blockdev_mirror(struct qmp_request *request, json_t *arguments, GError **error);
json_t *drive_mirror(struct qmp_request *request, json_t *arguments, GError **error);

#endif
