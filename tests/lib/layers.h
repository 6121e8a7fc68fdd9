/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A rig (tests/lib/backup-rig.h) whose disk is the top one of several qcow2 images that lie under
 * each other, for jobs that change such a chain. The nodes l0 (the lowest), l1, ... are the images
 * l0.qcow2, ..., and stand on fault nodes f0, ...; all but the top one are read-only. Each has data
 * that hides some of those below it.
 */
#ifndef LIVEBLK_TESTS_LIB_LAYERS_H
#define LIVEBLK_TESTS_LIB_LAYERS_H

#include "jobs/job.h"
#include "tests/lib/backup-rig.h"

#define LAYERS_MAX 8

struct layers {
    struct rig *rig;
    unsigned count;
    struct block_node *nodes[LAYERS_MAX]; /* references, as are those that follow */
    struct block_node *files[LAYERS_MAX];
    bool is_losing;         /* see layers_new_losing */
    bool may_leak;          /* an error may have left clusters that nobody refers to */
    bool may_stay_writable; /* one may have kept a job from making a layer read-only again */
    const char *headers;    /* the chain that these may say instead; NULL: none */
    bool asks_qemu;         /* in the end, too; set by layers_new, takes a moment */
};

/* The main thread runs (rig_main). */
struct layers *layers_new(unsigned count, uint64_t length);

/* Layers that can lose their power: between fN and the file is pN, a lose-writes node. */
struct layers_shape {
    unsigned count;
    uint64_t length;
    const char *images[LAYERS_MAX]; /* options of their creation; NULL: the defaults */
    void (*fill)(struct layers *layers, unsigned number, void *data); /* write to the top one */
    void *data;
};
struct layers *layers_new_losing(const struct layers_shape *shape);

/* An external snapshot in two steps: a new layer, in which the disk goes on then. False if what it
 * was cannot be flushed. */
void layers_prepare(struct layers *layers, const char *image);
bool layers_install(struct layers *layers);

/*
 * The disk is these layers, top first ("l3 l0"), and nothing else than them uses them; what is
 * below the top one is read-only, nobody has left any other node, and no job is left.
 */
void layers_assert_chain(const struct layers *layers, const char *chain);

/* A stream of this layer, or a commit of it and those above base; to LAYERS_NONE: of all below. */
struct layers_job {
    const char *id;
    bool is_stream;
    unsigned top, base;
};
#define LAYERS_NONE UINT_MAX

/* Start it, to be dismissed by rig_end. A new reference, or NULL with the error set. */
struct job *layers_start(const struct layers *layers, const struct layers_job *what,
                         enum block_error_policy policy, unsigned flags, GError **error);

/* To this state or the end, resumed each time it stops, completed when it is ready; how often it
 * had stopped. */
unsigned layers_drive(struct job *job, enum job_status wanted);

/* What the chain is whose top is this node: "l3 l0". And what its files are. The caller frees it.
 */
char *layers_chain_of(struct block_node *top);
char *layers_files_of(struct block_node *top);

/*
 * All is closed. The chain opened from its headers is these layers, each image is right, and the
 * disk reads as its model says.
 */
void layers_free(struct layers *layers, const char *chain);

#endif
