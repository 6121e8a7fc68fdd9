/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the torture test of everything at once share. */
#ifndef LIVEBLK_TESTS_TORTURE_TOGETHER_H
#define LIVEBLK_TESTS_TORTURE_TOGETHER_H

#include "tests/lib/mirror-rig.h"

#define DISKS 2
#define NODES 3 /* of each disk, among which it moves */

/* A node that a disk stands on at times. */
struct place {
    struct block_node *node;
    char *left; /* what it held when the disk left it; NULL: it was never left, or written since */
};

/* The mover of a disk owns this and the rig's writers; others know the disk by its device. */
struct disk {
    const char *name;
    struct rig *rig;
    struct place places[NODES];
    unsigned number; /* of mirrors */
    bool moved;      /* by the mirror that was started beside this one */
};

extern struct disk disks[DISKS];
extern _Atomic bool over; /* actors are to end */
extern bool with_faults;  /* constant while there are actors */

/* ---- together-points.c ---- */

/* How often what happened, for the report. */
extern _Atomic unsigned good_backups, failed_backups, retries;
extern _Atomic unsigned whole_views, broken_views, good_reads, bad_reads;

/* True for what jobs may fail with when faults, limits and cancels are about. */
bool is_known_failure(const char *message);

enum block_error_policy choose_policy(struct test_random *random);

/* Perhaps let the node fail or be late now and then, in these operations (FAULT_ON). */
void cause_faults(struct block_node *node, struct test_random *random, unsigned operations);

/* A view, or a backup, from its moment to its end. Many threads. */
void make_view(struct test_random *random);
void make_backup(struct test_random *random);

#endif
