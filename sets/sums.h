/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What one layer of a backup holds: for each granule of the disk whether it is data, with the
 * digest of that, zeroes, or what the layer below has. Taken while copying, of what was read from
 * the source; kept in a file beside the image, which says with its own digest, in the manifest,
 * whether it is whole.
 *
 * The file, little-endian: a header of 64 bytes (magic, version (4), log2 of the granule (4), the
 * disk's length in bytes (8), number of runs (8), number of granules that are data (8), zeroes);
 * the runs in the disk's order, 24 bytes each: first granule (8), granules (8), state (8); and the
 * digests of all granules that are data, 16 bytes each, in order. What no run has is absent. The
 * digest of the last granule is of as much of it as the disk has.
 */
#ifndef LIVEBLK_SETS_SUMS_H
#define LIVEBLK_SETS_SUMS_H

#include <glib.h>
#include <stdint.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "sets/digest.h"

/* That of change tracking, and the cluster of images here. */
#define SUMS_GRANULE (64 * KIB)

/* A disk in a set is not longer. */
#define SUMS_LENGTH_MAX (UINT64_C(1) << 50)

enum granule_state {
    GRANULE_ABSENT, /* the layer below has it; zeroes if there is none */
    GRANULE_ZERO,
    GRANULE_DATA,
};

struct sums;

/* All absent. length: of the disk, bytes, at most SUMS_LENGTH_MAX. NULL: there is no memory. */
struct sums *sums_new(uint64_t length);
void sums_free(struct sums *sums);
DEFINE_AUTO(sums, sums_free)

uint64_t sums_length(const struct sums *sums);

/*
 * Ranges begin with a granule and end with one, or with the disk. Any thread; of one granule one
 * at a time. Data that is all zero is taken for zeroes. Returns -ENOMEM or 0.
 */
int sums_take_data(struct sums *sums, const void *data, uint64_t offset, uint64_t bytes);
int sums_take_zeroes(struct sums *sums, uint64_t offset, uint64_t bytes);

/* Of the granule that holds offset. Nobody changes it meanwhile. digest may be NULL, and is set for
 * data. */
enum granule_state sums_get(const struct sums *sums, uint64_t offset, struct digest *digest);

/* The first offset after this one, at most end, at which a granule of another state begins. */
uint64_t sums_same_until(const struct sums *sums, uint64_t offset, uint64_t end);

/* Bytes, in whole granules but for the disk's last one. */
uint64_t sums_count(const struct sums *sums, enum granule_state state);

/*
 * Write to a new file, durably but for its name. What has to be known to read it again is returned.
 * A negative errno with the error set.
 */
struct sums_file {
    uint64_t bytes;
    struct digest digest;
};
int sums_write(const struct sums *sums, const char *path, struct sums_file *file, GError **error);

/*
 * Read one back, of a disk of this length. NULL with the error set if the file is not what was
 * written, or cannot be.
 */
struct sums *sums_read(const char *path, uint64_t length, const struct sums_file *file,
                       GError **error);

#endif
