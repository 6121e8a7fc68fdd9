/* SPDX-License-Identifier: BSD-3-Clause */
/* The version the admin channel tells, in its greeting and by query-version. */
#ifndef LIVEBLK_SERVER_QMP_VERSION_H
#define LIVEBLK_SERVER_QMP_VERSION_H

#include <jansson.h>

/*
 * The version of QEMU whose admin channel ours is compatible with: clients decide by it what they
 * may use.
 */
#define QMP_VERSION_MAJOR 10
#define QMP_VERSION_MINOR 0
#define QMP_VERSION_MICRO 0

/* {"qemu": {"micro", "minor", "major"}, "package": "liveblk X"}, a new reference. */
json_t *qmp_version(void);

#endif
