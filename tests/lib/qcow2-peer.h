/* SPDX-License-Identifier: BSD-3-Clause */
/* What QEMU's programs say about a qcow2 image. */
#ifndef LIVEBLK_TESTS_LIB_QCOW2_PEER_H
#define LIVEBLK_TESTS_LIB_QCOW2_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "block/driver.h"

enum image_verdict { IMAGE_CLEAN, IMAGE_LEAKS, IMAGE_CORRUPT, IMAGE_UNREADABLE };
extern const char *const image_verdict_names[];

/* What a result of ours amounts to. */
enum image_verdict image_verdict_of(const struct block_check_result *result);

/* What our own check says: in a thousandth of the time that QEMU's program takes to start. */
enum image_verdict own_check(const char *path);

/*
 * `qemu-img check`. result (may be NULL) gets what the program prints as JSON. What it said is in
 * *said (may be NULL), which the caller frees.
 */
enum image_verdict qemu_check(const char *path, struct block_check_result *result, char **said);

/* The same finds nothing wrong. */
void qemu_assert_clean(const char *path);

/* What the guest sees: ranges, all of each this byte, read by qemu-io. Fails the test if not. */
struct peer_read {
    uint64_t offset;
    uint64_t bytes;
    uint8_t fill;
};
void qemu_assert_reads(const char *path, const struct peer_read *reads, size_t count);

#endif
