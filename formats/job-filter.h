/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The nodes that stand for a job above what it copies from, for as long as it runs, if its user
 * wants one. They pass everything on. Nobody can open one by the name of its driver.
 */
#ifndef LIVEBLK_FORMATS_JOB_FILTER_H
#define LIVEBLK_FORMATS_JOB_FILTER_H

#include "block/driver.h"

extern const struct block_driver backup_filter_driver; /* "copy-before-write", as QEMU's */
extern const struct block_driver mirror_filter_driver; /* "mirror_top"; of active commits, too */
extern const struct block_driver commit_filter_driver; /* "commit_top" */

#endif
