/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/version.h"

json_t *qmp_version(void)
{
    return json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "micro", QMP_VERSION_MICRO, "minor",
                     QMP_VERSION_MINOR, "major", QMP_VERSION_MAJOR, "package",
                     "liveblk " LIVEBLK_VERSION);
}
