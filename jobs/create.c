/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/create.h"

#include <errno.h>

#include "block/cleanup.h"
#include "block/node.h"
#include "jobs/job.h"

struct create {
    struct block_options *options;
};

static bool report_progress(void *data, uint64_t done, uint64_t total)
{
    return !job_is_cancelled(data);
}

static int run_create(struct job *job, GError **error)
{
    struct create *create = job_state(job);
    int status;

    job_progress_set_total(job, 1);
    job_set_phase(job, "creating");
    status = block_create(create->options, report_progress, job, error);
    job_progress_add(job, 1); /* as much was to be done if it has failed */
    return status;
}

static void free_create(struct job *job)
{
    struct create *create = job_state(job);

    if (create->options) {
        block_options_free(create->options);
    }
}

static const struct job_driver create_driver = {
    .type = "create",
    .instance_size = sizeof(struct create),
    .run = run_create,
    .free = free_create,
};

int create_start(const char *job_id, const struct block_options *options, GError **error)
{
    AUTO(job) job = job_new(&create_driver, job_id, JOB_MANUAL_DISMISS, NULL, error);

    if (!job) {
        return -EINVAL;
    }
    ((struct create *)job_state(job))->options = block_options_copy(options);
    int status = job_start(job, error);
    if (status < 0) {
        job_early_fail(job);
    }
    return status;
}
