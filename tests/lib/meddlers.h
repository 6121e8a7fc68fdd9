/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads that meddle with a rig (tests/lib/backup-rig.h) and its jobs while these work. */
#ifndef LIVEBLK_TESTS_LIB_MEDDLERS_H
#define LIVEBLK_TESTS_LIB_MEDDLERS_H

#include "tests/lib/backup-rig.h"

typedef void meddle_function(struct rig *rig, struct test_random *random);

struct meddlers;

/*
 * Start a thread for each of these functions, a list that NULL ends, to call it again and again
 * with random numbers that are split off from these.
 */
struct meddlers *meddlers_start(struct rig *rig, struct test_random *random,
                                meddle_function *const *functions);
/* Wait for their ends, and free them. NULL: nothing. */
void meddlers_stop(struct meddlers *meddlers);

/* One such function: sections of one or two nodes, whatever they are just now; sometimes nested. It
 * needs no rig. */
void meddle_with_drains(struct rig *rig, struct test_random *random);
/* Another: the guest is stopped at times, and goes on. */
void meddle_with_guest(struct rig *rig, struct test_random *random);

#endif
