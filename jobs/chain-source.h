/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a job copies that brings data from some layers of a chain to another: streams and commits.
 * Nothing of it changes meanwhile but by the job itself.
 */
#ifndef LIVEBLK_JOBS_CHAIN_SOURCE_H
#define LIVEBLK_JOBS_CHAIN_SOURCE_H

#include "block/align.h"
#include "jobs/copy-engine.h"
#include "jobs/work-list.h"

struct chain_source {
    struct copy_source copy; /* first: it is cast back */
    struct job *job;
    struct block_node *top;    /* what is copied is read from it; borrowed */
    struct block_node *target; /* where it goes; borrowed. Set by chain_source_new_engine */
    struct block_node *base;   /* what this layer and those below have stays there; or NULL */
    uint64_t length;           /* behind the end of top there are zeroes */
    struct dirty_bitmap *bitmap;
    struct work_list list;
    _Atomic int ignored; /* by a stream: the errno of an error that was to be; 0: none */
};

/*
 * Set up what chain_source_operations need. granularity: bytes, a power of 2. job, top and base are
 * borrowed. -ENOMEM with the error set.
 */
int chain_source_init(struct chain_source *source, const struct copy_source_operations *operations,
                      struct job *job, struct block_node *top, struct block_node *base,
                      uint64_t length, uint64_t granularity, GError **error);
void chain_source_clear(struct chain_source *source);

/* What a worker copies at once: what its processor's cache holds between reading and writing. */
#define CHAIN_CHUNK (512 * KIB)

/* A good granularity for what a layer of this cluster size (0: none) is written with. */
uint64_t chain_source_granularity(const struct block_node *target);

/*
 * The engine that copies it to target, the job's own. claims as in copy_engine_options; guest may
 * be NULL. NULL with the error set if the nodes are in use. Any thread.
 */
struct copy_engine *chain_source_new_engine(struct chain_source *source, struct block_node *target,
                                            const struct copy_claims *claims,
                                            enum block_error_policy on_error,
                                            struct block_device *guest, GError **error);

/*
 * In run(), when the bitmap says what is to be copied: copy it, and flush the target. Returns a
 * negative errno with the error set, also if errors were ignored that nobody tried again.
 */
int chain_source_run(struct chain_source *source, GError **error);

/* What a layer reads as, and zeroes behind its end. 0 or a negative errno. */
int chain_padded_status(struct block_node *top, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent);
int chain_padded_pread(struct block_node *top, void *buffer, uint64_t offset, uint64_t bytes);

/* They are written to the target. For tables of one's own, each of its functions, too. */
extern const struct copy_source_operations chain_source_operations;
bool chain_source_next(struct copy_source *copy, bool urgent_only, uint64_t max_bytes,
                       uint64_t *offset, uint64_t *bytes);
uint64_t chain_source_extend(struct copy_source *copy, uint64_t end, uint64_t max_bytes);
int chain_source_block_status(struct copy_source *copy, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent);
int chain_source_pread(struct copy_source *copy, void *buffer, uint64_t offset, uint64_t bytes);
void chain_source_done(struct copy_source *copy, uint64_t offset, uint64_t bytes, bool is_copied);
bool chain_source_is_finished(struct copy_source *copy, bool is_idle);

#endif
