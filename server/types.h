/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QMP types of the block subset, and the bridge from JSON to a driver's options. The types for
 * blockdev-add and blockdev-create are made from the drivers' own option tables.
 */
#ifndef LIVEBLK_SERVER_TYPES_H
#define LIVEBLK_SERVER_TYPES_H

#include <jansson.h>

#include "block/options.h"
#include "server/qmp/schema.h"

/* Filled in by types_init(), once, after the drivers are registered. */
extern struct qmp_type blockdev_options_type;
extern struct qmp_type blockdev_create_options_type;
void types_init(void);

/* Append declared options, as struct qmp_member, to the members of an object type being made. */
void types_append_options(GArray *members, const struct block_option *table);

extern const struct qmp_type on_error_type;
extern const struct qmp_type block_device_info_type; /* one node */
extern const struct qmp_type snapshot_info_type;
extern const struct qmp_type block_device_info_list_type;
extern const struct qmp_type block_info_list_type;
extern const struct qmp_type block_statistics_list_type;

/* Arguments of commands that start jobs. */
/* clang-format off */
/* For lookup_job_id. */
#define JOB_ID_MEMBER                                                                              \
    {"job-id", &qmp_type_string, .optional = true,                                                 \
     .doc = "The new job's ID; the device's name by default."}

#define SPEED_MEMBER                                                                               \
    {"speed", &qmp_type_int, .optional = true, .default_text = "0",                                \
     .doc = "Limit in bytes per second; 0: none."}

/* For lookup_job_flags. what: is forgotten. */
#define JOB_END_MEMBERS(what)                                                                      \
    {"auto-finalize", &qmp_type_bool, .optional = true, .default_text = "true",                    \
     .doc = "Finalize when the work is done; else wait for job-finalize."},                        \
    {"auto-dismiss", &qmp_type_bool, .optional = true, .default_text = "true",                     \
     .doc = "Forget " what " when it has ended; else wait for job-dismiss."}
/* clang-format on */

/* driver: what query-named-block-nodes calls the node. */
#define FILTER_NODE_NAME_MEMBER(driver)                                                            \
    {                                                                                              \
        "filter-node-name", &qmp_type_string,                                                      \
            .optional = true,                                                                      \
            .doc = "While the job runs, a node of this name and of the driver `" driver            \
                   "`, which passes everything on, is above what the job copies from. There is "   \
                   "none by "                                                                      \
                   "default."                                                                      \
    }

#endif
