/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A small qcow2 image, damaged by hand; what our check and `qemu-img check` say about it; and what
 * a guest reads when it is repaired. Functions fail the test if things are not as expected.
 */
#ifndef LIVEBLK_TESTS_LIB_CHECK_RIG_H
#define LIVEBLK_TESTS_LIB_CHECK_RIG_H

#include "block/align.h"
#include "block/image.h"
#include "tests/lib/qcow2-builder.h"
#include "tests/lib/qcow2-peer.h"

#define REPAIR_ALL (BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS)

#define CLUSTER    (64 * KIB)

/* The usual image is of 1 MiB and has this. */
#define GUEST_A         (0 * CLUSTER) /* 0xa1 */
#define GUEST_B         (1 * CLUSTER) /* 0xb1 */
#define GUEST_ZERO      (2 * CLUSTER)
#define GUEST_KEPT_ZERO (3 * CLUSTER) /* with a host cluster */
#define GUEST_PRESSED_A (4 * CLUSTER) /* compressed, 0xa2 */
#define GUEST_PRESSED_B (5 * CLUSTER) /* in the same host cluster, 0xb2 */
#define GUEST_HOLE      (6 * CLUSTER)
#define GUEST_C         (9 * CLUSTER) /* 0xc1 */

struct check_rig {
    struct qcow2_builder *image;
    char *directory;
    char *path;
    struct block_check_result result; /* of the last check */
};

/* The image is taken over. */
struct check_rig check_rig_new(struct qcow2_builder *image);
void check_rig_free(struct check_rig *rig);

/* Put the usual contents into an image. */
void check_rig_fill(struct qcow2_builder *image);
/* A rig with them, built. */
struct check_rig check_rig_usual(void);

/* Check the file, or a node. */
void check_rig_check(struct check_rig *rig, unsigned repair);
int check_rig_check_node(struct check_rig *rig, struct block_node *node, unsigned repair,
                         GError **error);
struct block_node *check_rig_open(struct check_rig *rig, bool writable);

/* About the last check. */
void expect_verdict(struct check_rig *rig, enum image_verdict verdict);
void expect_finding(struct check_rig *rig, const char *finding);
/* What QEMU says of the file. */
void expect_peer(struct check_rig *rig, enum image_verdict verdict);

/* Write the image as it is now and look at it: both have to say this. finding may be NULL. */
void expect_found(struct check_rig *rig, enum image_verdict verdict, const char *finding);
/* The same where QEMU does not look, or gives up. */
void expect_found_by_us(struct check_rig *rig, enum image_verdict verdict, const char *finding);
/* Build the image; it is clean, and what is counted is the same for both. */
void expect_same_statistics(struct check_rig *rig);

/* Repair everything: then there is nothing wrong for anybody. */
void expect_mended(struct check_rig *rig);

/* What the guest reads. */
void expect_reads(struct check_rig *rig, uint64_t guest, uint8_t fill);
void expect_usual_contents(struct check_rig *rig);

/* L2 entries of the image that is built. */
uint64_t entry_at(struct check_rig *rig, uint64_t guest);
uint64_t entry_of(struct check_rig *rig, uint64_t guest);
void set_entry(struct check_rig *rig, uint64_t guest, uint64_t entry);
uint64_t host_of(struct check_rig *rig, uint64_t guest);

#endif
