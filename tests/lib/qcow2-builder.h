/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 images made by hand, byte by byte from the specification, and then damaged: with no code of
 * the driver, so that a test of the driver does not test it against itself.
 *
 * Clusters of the file are given out one after the other, from the one behind the header on. First
 * the image is described (data, snapshots, ...), then it is built: refcounts and the header are put
 * into it. Everything can be changed by hand afterwards, before it is written to a file.
 *
 * Offsets are in bytes; guest offsets may lie anywhere in their cluster.
 */
#ifndef LIVEBLK_TESTS_LIB_QCOW2_BUILDER_H
#define LIVEBLK_TESTS_LIB_QCOW2_BUILDER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

#define QCOW2_BUILT_COPIED     (UINT64_C(1) << 63)
#define QCOW2_BUILT_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_BUILT_ZERO       UINT64_C(1)

/* What kind of image; 0 stands for the default. */
struct qcow2_description {
    uint64_t size;         /* of the disk; 1 MiB */
    unsigned version;      /* 3 */
    unsigned cluster_bits; /* 16 */
    int refcount_order;    /* 4; -1: 0 */
    bool extended_l2;
    uint64_t incompatible; /* besides those that follow from the rest */
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t spare_l1;        /* entries of the L1 table beyond those that the disk needs */
    const char *backing_file; /* raw */
    const char *data_file;
    bool data_file_is_raw;
};

struct qcow2_builder;

struct qcow2_builder *qcow2_builder_new(const struct qcow2_description *description);
void qcow2_builder_free(struct qcow2_builder *builder);
DEFINE_AUTO(qcow2_builder, qcow2_builder_free)
#define QCOW2_BUILDER(...) qcow2_builder_new(&(const struct qcow2_description){__VA_ARGS__})

/* ---- Describing ----------------------------------------------------------------------------- */

/* Contiguous clusters of zeroes with the refcount 1. */
uint64_t qcow2_builder_allocate(struct qcow2_builder *builder, uint64_t clusters);
/* Add to the refcounts of the clusters that a range touches. */
void qcow2_builder_reference(struct qcow2_builder *builder, uint64_t offset, uint64_t bytes,
                             int amount);

/* A guest cluster of data, all of it this byte. Returns where it is. */
uint64_t qcow2_builder_data(struct qcow2_builder *builder, uint64_t guest, uint8_t fill);
/* A guest cluster that reads as zeroes; preallocated: with a host cluster, which holds 0xee. */
void qcow2_builder_zero(struct qcow2_builder *builder, uint64_t guest, bool preallocated);
/* A compressed guest cluster, behind other compressed data if it fits there. Returns where it is.
 */
uint64_t qcow2_builder_compressed(struct qcow2_builder *builder, uint64_t guest, uint8_t fill);
/* With extended L2 entries: a host cluster of this byte, and the bitmap of subclusters. */
void qcow2_builder_subclusters(struct qcow2_builder *builder, uint64_t guest, uint8_t fill,
                               uint32_t allocated, uint32_t zero);

/* An internal snapshot of what has been described until now. Returns where its L1 table is. */
uint64_t qcow2_builder_snapshot(struct qcow2_builder *builder, const char *id, const char *name);
/* A bitmap that is all set, with data in a cluster of its own if it is preallocated. */
void qcow2_builder_bitmap(struct qcow2_builder *builder, const char *name,
                          unsigned granularity_bits, bool preallocated);

/* Put refcounts, snapshots, bitmaps and the header into the image. Once, before what follows. */
void qcow2_builder_build(struct qcow2_builder *builder);

/* ---- Looking and changing by hand ----------------------------------------------------------- */

/* The image's bytes and length; they may be changed. */
uint8_t *qcow2_builder_bytes(struct qcow2_builder *builder, uint64_t *length);
/* Cut it off, or make it longer with zeroes. */
void qcow2_builder_resize(struct qcow2_builder *builder, uint64_t length);

uint64_t qcow2_builder_get64(struct qcow2_builder *builder, uint64_t offset);
void qcow2_builder_put64(struct qcow2_builder *builder, uint64_t offset, uint64_t value);
uint32_t qcow2_builder_get32(struct qcow2_builder *builder, uint64_t offset);
void qcow2_builder_put32(struct qcow2_builder *builder, uint64_t offset, uint32_t value);

/* Where things are in the file. The L2 table exists, or is made while the image is described. */
uint64_t qcow2_builder_l1_at(struct qcow2_builder *builder, uint64_t guest);
uint64_t qcow2_builder_l2_at(struct qcow2_builder *builder, uint64_t guest);
uint64_t qcow2_builder_reftable_at(struct qcow2_builder *builder);
uint64_t qcow2_builder_snapshots_at(struct qcow2_builder *builder);
uint64_t qcow2_builder_bitmaps_at(struct qcow2_builder *builder);

/* The refcount of the cluster at an offset, in the built image. */
uint64_t qcow2_builder_refcount(struct qcow2_builder *builder, uint64_t offset);
void qcow2_builder_set_refcount(struct qcow2_builder *builder, uint64_t offset, uint64_t refcount);

/* Write the image to a file, sparsely. */
void qcow2_builder_write(struct qcow2_builder *builder, const char *path);

#endif
