/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What each command and event is to a program that knows QEMU, for docs/qmp.md. Facts about QEMU
 * are those of its storage daemon, version 10, unless a note says otherwise.
 */
#ifndef LIVEBLK_SERVER_COMPATIBILITY_H
#define LIVEBLK_SERVER_COMPATIBILITY_H

#include "server/qmp/schema.h"

/* One for each command and event of the server's tables; an entry without a name ends it. */
extern const struct qmp_note compatibility_notes[];

#endif
