/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Children for quorums, and what is told of them: memory disks m0 ... below filters f0 ... that
 * make faults.
 */
#ifndef LIVEBLK_TESTS_LIB_QUORUM_RIG_H
#define LIVEBLK_TESTS_LIB_QUORUM_RIG_H

#include <stdint.h>

#include "block/align.h"
#include "block/node.h"

#define QUORUM_LENGTH   (256 * KIB)
#define QUORUM_CHILDREN 4

/* What opens a node "q" on the first two or three of them, but for vote-threshold. */
#define OPTIONS_OF_2 "driver=quorum,node-name=q,children.0=f0,children.1=f1,"
#define OPTIONS_OF_3                                                                               \
    "driver=quorum,node-name=q,discard=unmap,children.0=f0,children.1=f1,children.2=f2,"

struct quorum_rig {
    struct block_node *disks[QUORUM_CHILDREN], *faults[QUORUM_CHILDREN];
};

/* Fixtures for g_test_add; the main thread runs in between. Drivers are registered once, before. */
void quorum_rig_register(void);
void quorum_rig_set_up(struct quorum_rig *rig, const void *unused);
void quorum_rig_tear_down(struct quorum_rig *rig, const void *unused);

/* All disks, behind everybody's back. */
void quorum_rig_fill(struct quorum_rig *rig, int byte);

/* Write one byte everywhere in a range: 0 or a negative errno. */
int write_byte(struct block_node *node, int byte, uint64_t offset, uint64_t bytes);

/* What a range reads as that must be of one byte, or a negative errno. */
int read_byte(struct block_node *node, uint64_t offset, uint64_t bytes);

/* The events since the last call, as "BAD f1 read 8+8[error]; FAILURE q 8+8"; the caller frees. */
char *quorum_rig_take_events(void);
#define EXPECT_EVENTS(expected)                                                                    \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *found_ = quorum_rig_take_events();                                        \
        g_assert_cmpstr(found_, ==, expected);                                                     \
    }                                                                                              \
    G_STMT_END

#endif
