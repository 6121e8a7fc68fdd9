/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LIVEBLK_SERVER_QMP_JSON_INDENT_H
#define LIVEBLK_SERVER_QMP_JSON_INDENT_H

#include <glib.h>

/*
 * A line as json_print and a line end make it, for people: each member and element on a line of its
 * own, four spaces a level, lines ended by CR LF, as QEMU's monitors have it with pretty=on.
 * Returns a new reference. Any thread.
 */
GBytes *json_indent(GBytes *line);

#endif
