/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of jobs, for 'job list' and 'status'. */
#ifndef LIVEBLK_CLI_JOBS_TABLE_H
#define LIVEBLK_CLI_JOBS_TABLE_H

#include <jansson.h>

#include "cli/client.h"

/*
 * query-jobs, with what query-block-jobs knows more about each (speed, io-status, ...) added to
 * its entries: a new reference, or NULL.
 */
json_t *query_all_jobs(struct client *client, GError **error);

/* Print such a list as a table; a list of none says so. */
void print_jobs(const json_t *jobs);

#endif
