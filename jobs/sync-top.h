/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What backup and mirror share for sync=top: only what the top layer of the source holds itself,
 * data and explicit zeroes, is copied. The target has the same layers below, or gets them later.
 */
#ifndef LIVEBLK_JOBS_SYNC_TOP_H
#define LIVEBLK_JOBS_SYNC_TOP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "block/point-in-time.h"
#include "jobs/job.h"

/*
 * Keep what is directly below the source's top layer as it is until the job has ended.
 * *has_below: there is something; else the top layer is everything. Any thread.
 */
int sync_top_keep_chain(struct job *job, struct block_node *source, bool *has_below,
                        GError **error);

/*
 * What is copied as a whole, at least this unit: clusters of a target that has no backing file yet,
 * which would fill up with zeroes those it gets only a part of. Any thread.
 */
uint64_t sync_top_unit(struct block_node *target, uint64_t unit);

/*
 * Give up of a point in time what the top layer of its source did not hold at the moment, but
 * whole units (of at least COPY_UNIT) that it holds a part of. As chain_scan; if the point in time
 * breaks meanwhile that is no error.
 */
int sync_top_narrow(struct job *job, struct point_in_time *point, uint64_t unit, GError **error);

#endif
