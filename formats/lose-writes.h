/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "lose-writes": a filter that plays a loss of power. It passes everything on, and
 * knows what was written since the last flush; when told to, it takes chosen writes back, whole or
 * in pieces, and then ends: the node, or the process. docs/fault-layers.md is the user's view.
 *
 * All functions may be called from any thread, and fail with a sentence if the node is of another
 * driver.
 */
#ifndef LIVEBLK_FORMATS_LOSE_WRITES_H
#define LIVEBLK_FORMATS_LOSE_WRITES_H

#include <glib.h>
#include <stdbool.h>

#include "block/driver.h"
#include "block/node.h"

extern const struct block_driver lose_writes_driver;

enum lose_writes_end {
    LOSE_WRITES_END_NODE,    /* every later request fails with EIO, and nothing reaches the child */
    LOSE_WRITES_END_PROCESS, /* SIGKILL to this process */
};
extern const char *const lose_writes_end_names[];

/*
 * Which of the writes that no flush has made durable are lost: of those that numbers names (all,
 * without has_numbers), each, or each piece of it, with a probability.
 */
struct lose_writes_plan {
    bool has_numbers;
    uint64_t *numbers;
    size_t number_count;
    uint64_t probability; /* percent */
    uint64_t tear;        /* 0: whole writes; else in pieces aligned to this power of 2 */
    uint64_t seed;
    enum lose_writes_end end;
};
void lose_writes_plan_clear(struct lose_writes_plan *plan);

struct lose_writes_result {
    uint64_t lost; /* writes, at least a piece of them */
    uint64_t kept; /* unflushed writes of which nothing is lost */
};

/*
 * Lose writes now. Waits for the requests in flight; later ones wait until it is done. Returns
 * only if the plan ends the node. After an error from the child the node has ended all the same.
 */
int lose_writes_now(struct block_node *node, const struct lose_writes_plan *plan,
                    struct lose_writes_result *result, GError **error);

/*
 * Do it when this write (counted from 1 since the node was opened) has reached the child, before
 * it is answered; it then may be among the lost ones. Takes the plan's contents. at_write 0:
 * disarm.
 */
int lose_writes_arm(struct block_node *node, uint64_t at_write, struct lose_writes_plan *plan,
                    GError **error);

struct lose_writes_record {
    uint64_t number;
    uint64_t offset;
    uint64_t bytes;
    const char *type; /* "write", "write-zeroes", "discard" */
    bool in_flight;
};

struct lose_writes_status {
    uint64_t writes; /* since the node was opened */
    uint64_t log_bytes;
    uint64_t at_write; /* 0: not armed */
    bool has_ended;
    uint64_t unflushed;
    struct lose_writes_record *records; /* the oldest of those */
    size_t record_count;
};
#define LOSE_WRITES_RECORDS_MAX 1000
int lose_writes_get_status(struct block_node *node, struct lose_writes_status *status,
                           GError **error);
void lose_writes_status_clear(struct lose_writes_status *status);

#endif
