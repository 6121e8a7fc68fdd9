/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A rig (tests/lib/backup-rig.h) whose disk is the top of a chain of qcow2 images, and copies of
 * that layer alone. The nodes NAME are fault nodes on the layers NAME-layer, whose files NAME-file
 * are fault nodes, too: NAME is base, middle, disk or target.
 */
#ifndef LIVEBLK_TESTS_LIB_CHAIN_RIG_H
#define LIVEBLK_TESTS_LIB_CHAIN_RIG_H

#include "tests/lib/backup-rig.h"

/* A chain: base, middle and the disk, each a qcow2 image; and what the copy of the disk is. */
struct chain_shape {
    const char *name;
    uint64_t base_bytes, middle_bytes, disk_bytes;
    const char *disk_options, *target_options; /* of block_create */
    bool is_based;    /* the target is opened on the layer below, else without a backing file */
    bool is_nameless; /* neither does the target's image name one */
};
extern const struct chain_shape chain_shapes[];

/* Add a test for each step-th shape, as PATH/NAME, with the shape as its data. Sanitizers take
 * their time: they look at some, others each time. */
void chain_add_shape_tests(const char *path, GTestDataFunc function, size_t step);

struct rig *chain_new(const struct chain_shape *shape);

/* A new target for the disk's top layer. */
struct block_node *chain_target(struct rig *rig, const struct chain_shape *shape);

/* Close and open the disk, so that its tables are not in memory. */
void chain_reopen(struct rig *rig);

/* The layer under the fault node. */
struct block_node *chain_layer(struct block_node *node);

/* Requests that must work: data and zeroes here and there; a discard. */
void chain_scatter(struct rig *rig, uint64_t bytes, unsigned writes);
void chain_discard(struct rig *rig, uint64_t offset, uint64_t bytes);

/* How many bytes of a layer, in whole units, it has itself. */
uint64_t chain_allocated(struct block_node *layer, uint64_t unit);

/* The target has no more clusters than the source's layer has a part of. */
void chain_assert_thrifty(struct rig *rig, struct block_node *target);

/* QEMU finds nothing wrong with the image of this name. */
void chain_check(struct rig *rig, const char *name);

/* With the layers below, whoever opens it so, the target is this. Drops the target. */
void chain_assert_target(struct rig *rig, struct model *model, struct block_node *target);

/* For QEMU target and disk are the same, unless the target's image names no backing file. */
void chain_assert_qemu_agrees(struct rig *rig, const struct chain_shape *shape);

#endif
