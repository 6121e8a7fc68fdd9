/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the subcommands that start a job have in common. The job is started with
 * auto-dismiss=false, so that its error can be read for as long as nobody has read it; following it
 * to its end dismisses it.
 */
#ifndef LIVEBLK_CLI_JOB_START_H
#define LIVEBLK_CLI_JOB_START_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/follow.h"

struct job_start_options {
    char *speed;
    char *guest_latency;
    char *job_id;
    gboolean detach;
    gboolean quiet;
    char *on_source_error; /* of those with two sides */
    char *on_target_error;
};
extern struct job_start_options job_start_options;

/* The options of all of them, for tables of GOptionEntry. */
/* clang-format off */
#define JOB_START_OPTIONS                                                                          \
    {"speed", 0, 0, G_OPTION_ARG_STRING, &job_start_options.speed,                                 \
     "Limit per second, such as 50M", "BYTES"},                                                    \
    {"guest-latency", 0, 0, G_OPTION_ARG_STRING, &job_start_options.guest_latency,                 \
     "Copy less while the guest's p99 is above", "MS"},                                            \
    {"job-id", 'j', 0, G_OPTION_ARG_STRING, &job_start_options.job_id,                             \
     "Name of the job (TYPE-DEVICE)", "ID"},                                                       \
    {"detach", 'd', 0, G_OPTION_ARG_NONE, &job_start_options.detach,                               \
     "Print the job's ID and leave", NULL},                                                        \
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &job_start_options.quiet, "Show no progress", NULL}

/* And those of the ones that read or write two sides; with what completes their values. */
#define JOB_SIDES_OPTIONS                                                                          \
    {"on-source-error", 0, 0, G_OPTION_ARG_STRING, &job_start_options.on_source_error,             \
     "report, ignore, stop or enospc", "POLICY"},                                                  \
    {"on-target-error", 0, 0, G_OPTION_ARG_STRING, &job_start_options.on_target_error,             \
     "report, ignore, stop or enospc", "POLICY"}
#define JOB_SIDES_WORDS                                                                            \
    {"on-source-error", 0, JOB_POLICY_WORDS}, {"on-target-error", 0, JOB_POLICY_WORDS}
/* clang-format on */

/* What completes the values of --on-error and its like, and what they may be. */
#define JOB_POLICY_WORDS "report ignore stop enospc"
extern const char *const job_policies[];

struct job_start {
    const char *type; /* "backup": what jobs are named after */
    enum follow_at_ready at_ready;
    const char *what;    /* "The backup of 'vda'": for sentences about how it ended */
    const char *remains; /* as follow_conclude */
    /* Have the server start it. */
    bool (*start)(const struct job_start *how, struct client *client, const char *job_id,
                  GError **error);
};

/*
 * Connect, start the job of the device that the first argument names and, unless detached, follow
 * it to its end.
 */
enum exit_status job_start_run(const struct job_start *how, const struct invocation *invocation,
                               GError **error);

/* What these options say, the device, and that nobody dismisses the job but us. NULL: error. */
json_t *job_start_arguments(const char *device, GError **error);

/* A value of --option is one of those allowed, or was not given. */
bool job_check_word(const char *option, const char *value, const char *const *allowed,
                    GError **error);
/* The same for a number of bytes; *bytes is left alone if it was not given. */
bool job_check_size(const char *option, const char *value, int64_t *bytes, GError **error);
/* Add a text unless it is NULL. */
void job_set_text(json_t *arguments, const char *name, const char *value);

#endif
