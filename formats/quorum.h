/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "quorum": several children that hold the same. What is written goes to all of them,
 * one after the other, and succeeds if enough of them take it (vote-threshold). What is read is
 * read from all of them and compared, and what enough of them say is the answer; or, with
 * read-pattern fifo, it is read from the first that answers.
 *
 * Children that fail or say something else are told of by QUORUM_REPORT_BAD, and QUORUM_FAILURE
 * says that not enough were left. A child that missed a write stays a child and is out-voted where
 * it is stale; rewrite-corrupted writes the answer over it when it is read.
 *
 * The children must not differ because of the order in which they see requests. Changes of
 * overlapping ranges run one after the other, and what is read while it is being changed waits; see
 * struct quorum_state.
 */
#ifndef LIVEBLK_FORMATS_QUORUM_H
#define LIVEBLK_FORMATS_QUORUM_H

#include "block/driver.h"

extern const struct block_driver quorum_driver;

/* What QUORUM_REPORT_BAD calls what was asked of the child, NULL-terminated. */
extern const char *const quorum_request_names[];

#endif
