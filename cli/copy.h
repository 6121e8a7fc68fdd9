/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What 'backup' and 'mirror' have in common: they start a job that copies a device to a target,
 * and follow it (cli/job-start.h).
 */
#ifndef LIVEBLK_CLI_COPY_H
#define LIVEBLK_CLI_COPY_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "cli/command.h"
#include "cli/follow.h"
#include "cli/target.h"

/* --to, --format, --speed, ...: the options of both. */
extern const struct option_group copy_option_group;

/* What some of them say; NULL or false: nothing. */
const char *copy_option_to(void);
const char *copy_option_format(void);
bool copy_option_existing(void);

struct copy {
    const char *type;         /* "backup": what jobs are named after */
    const char *what;         /* "backup": for sentences */
    const char *file_command; /* starts the job, for a target that is a file */
    const char *node_command; /* and for one that is a node */
    enum follow_at_ready at_ready;
    bool updates;        /* the target is there, and what it lacks is copied: --existing is meant */
    bool resumes;        /* so it may be there */
    bool never_complete; /* the copy is not meant to be one of the whole disk */
    /* Add what only this kind has; NULL if the options make no sense for this target. */
    bool (*add_arguments)(json_t *arguments, const struct target *target, GError **error);
};

/* Check the arguments and the common options, start the job and, unless detached, follow it. */
enum exit_status copy_run(const struct copy *copy, const struct invocation *invocation,
                          GError **error);

#endif
