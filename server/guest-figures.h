/* SPDX-License-Identifier: BSD-3-Clause */
/* What a job or view costs guests, as QMP has it: the option of the commands, and what queries
 * tell. */
#ifndef LIVEBLK_SERVER_GUEST_FIGURES_H
#define LIVEBLK_SERVER_GUEST_FIGURES_H

#include <jansson.h>

#include "jobs/job.h"
#include "server/qmp/schema.h"

extern const struct qmp_type guest_waits_type;
extern const struct qmp_type guest_pace_type;

/* The option of all commands that start a job that copies; for lookup_integer. */
/* clang-format off */
#define GUEST_LATENCY_MEMBER                                                                       \
    {"guest-latency", &qmp_type_int, .optional = true, .default_text = "0",                        \
     .doc = "Nanoseconds that 99 of 100 requests of the guest are to take at most: the job copies "  \
            "less while they take longer, but at least about a MiB per second. 0: none. An "       \
            "extension of liveblk's."}

/* Of the answers to query-jobs and query-block-jobs. */
#define GUEST_FIGURES_MEMBERS                                                                      \
    {"guest-waits", &guest_waits_type,                                                             \
     .doc = "How long the job has held requests of guests. An extension of liveblk's."},           \
    {"guest-latency", &qmp_type_int, .optional = true,                                             \
     .doc = "What it was started with, if that is not 0."},                                        \
    {"guest-p99", &qmp_type_int, .optional = true,                                                 \
     .doc = "Only with guest-latency: nanoseconds that 99 of 100 requests of the guest took at "   \
            "most in the last second; up to a quarter too high. 0: there were none."},             \
    {"guest-pace", &guest_pace_type, .optional = true,                                             \
     .doc = "Only with guest-latency: what the job does about it."}
/* clang-format on */

/* A new object of guest_waits_type. */
json_t *guest_waits_object(const struct guest_waits_report *waits);

/* Add them. */
void guest_figures_add(json_t *object, const struct job_info *info);

#endif
