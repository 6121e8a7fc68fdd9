/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/job-filter.h"

#include "block/node.h"

static const struct block_option option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "What the job copies from."},
    {NULL},
};

static int job_filter_open(struct block_node *node, void *values, GError **error)
{
    node->limits = node->file->limits;
    return 0;
}

#define JOB_FILTER(driver_name)                                                                    \
    {                                                                                              \
        .name = driver_name, .description = "Stands for a job above what it copies from",          \
        .is_filter = true, .options = option_table, .open = job_filter_open,                       \
    }

const struct block_driver backup_filter_driver = JOB_FILTER("copy-before-write");
const struct block_driver mirror_filter_driver = JOB_FILTER("mirror_top");
const struct block_driver commit_filter_driver = JOB_FILTER("commit_top");
