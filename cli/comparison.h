/* SPDX-License-Identifier: BSD-3-Clause */
/* What a job that verifies has found, for people and programs. */
#ifndef LIVEBLK_CLI_COMPARISON_H
#define LIVEBLK_CLI_COMPARISON_H

#include <jansson.h>
#include <stdbool.h>

/* On stdout; nothing of a job of another kind. job: as query-jobs has it. */
void print_comparison(const json_t *job, bool json);

#endif
