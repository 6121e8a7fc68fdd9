/* SPDX-License-Identifier: BSD-3-Clause */
/* The create job: makes an image. */
#ifndef LIVEBLK_JOBS_CREATE_H
#define LIVEBLK_JOBS_CREATE_H

#include <glib.h>

#include "block/options.h"

/*
 * Start a job of type create. options name the driver and its create options; they are copied.
 * The job must be dismissed by hand; an error in it is read there. Returns a negative errno if
 * the job could not start.
 */
int create_start(const char *job_id, const struct block_options *options, GError **error);

#endif
