/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What 'stream' and 'commit' have in common: jobs that work within the chain of one disk
 * (cli/chain.h), and are followed as all jobs are (cli/job-start.h).
 */
#ifndef LIVEBLK_CLI_CHAIN_JOB_H
#define LIVEBLK_CLI_CHAIN_JOB_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "cli/command.h"
#include "cli/follow.h"

/* --backing-file, --on-error, --speed, ...: the options of both. */
extern const struct option_group chain_job_option_group;

struct chain_job {
    const char *type;    /* "stream": what jobs are named after, and for sentences */
    const char *command; /* starts the job */
    enum follow_at_ready at_ready;
    const char *remains; /* what is left behind when it did not go well: a sentence */
    /* Add what only this kind has. chain: chain_query of the disk. */
    bool (*add_arguments)(json_t *arguments, const json_t *chain, const char *disk, GError **error);
};

enum exit_status chain_job_run(const struct chain_job *kind, const struct invocation *invocation,
                               GError **error);

/* Add the node of an image of the chain, unless image is NULL. */
bool chain_job_set_node(json_t *arguments, const char *name, const json_t *chain, const char *disk,
                        const char *image, GError **error);

#endif
