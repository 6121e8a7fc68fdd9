/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of views, for 'view list' and 'status'. */
#ifndef LIVEBLK_CLI_VIEWS_TABLE_H
#define LIVEBLK_CLI_VIEWS_TABLE_H

#include <jansson.h>

/* Print what query-views returned as a table; a list of none says so. */
void print_views(const json_t *views);

/* "2026-11-21 07:15:42" in local time, of a view's "created"; the caller frees. */
char *view_instant_text(const json_t *view);

#endif
