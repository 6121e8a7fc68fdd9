/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the torture test of chains share. One thread, the driver, calls all of it. */
#ifndef LIVEBLK_TESTS_TORTURE_CHAIN_MACHINE_H
#define LIVEBLK_TESTS_TORTURE_CHAIN_MACHINE_H

#include "tests/lib/mirror-rig.h"

#define MACHINE_WRITERS    9
#define MACHINE_JOBS_MAX   4
#define MACHINE_LENGTH_MAX (UINT64_C(8) << 20) /* which the disk grows to */

/* How often what happened, for the report. */
enum machine_count {
    COUNT_SNAPSHOTS,
    COUNT_STREAMS,
    COUNT_COMMITS,
    COUNT_ACTIVE_COMMITS,
    COUNT_BACKUPS,
    COUNT_MIRRORS,
    COUNT_PIVOTS,
    COUNT_COPIES,
    COUNT_SEEN, /* backups that were compared */
    COUNT_GROWN,
    COUNT_SHRUNK,
    COUNT_REOPENED,
    COUNT_CANCELLED,
    COUNT_BESIDE, /* jobs that began while there were others */
    COUNT_REFUSED,
    COUNT_DENIED, /* changes that a job did not allow */
    COUNT_FAILED,
    COUNT_UNSEEN, /* backups that there was nothing any more to compare with */
    COUNTS
};
extern _Atomic unsigned counts[COUNTS];
extern const char *const count_names[COUNTS];

void count(enum machine_count what);

enum machine_kind { KIND_STREAM, KIND_COMMIT, KIND_ACTIVE_COMMIT, KIND_BACKUP, KIND_MIRROR };

/* A job that was started and not yet dismissed. */
struct machine_job {
    struct job *job;
    enum machine_kind kind;
    char *id;
    bool is_pivot;             /* what is to become of it when it is ready */
    bool is_top;               /* sync=top */
    bool is_unseen;            /* what is below the target may have changed since */
    struct block_node *layer;  /* reference: what it fills or takes away; backups: of the source */
    struct block_node *target; /* reference; NULL: of the chain */
    struct block_node *below;  /* reference, of a backup's source at its moment; or NULL */
    struct model *moment;      /* what a copy has to hold; or NULL */
    char *path;                /* of the target */
};

struct machine {
    struct rig *rig; /* its source is not used: the disk moves all the time */
    const char *directory;
    struct test_random random;
    struct machine_job jobs[MACHINE_JOBS_MAX];
    size_t job_count;
    unsigned number; /* of images and jobs */
    /* Paths of images that the disk has moved to with the layers below: their headers know nothing
     * of what became of those meanwhile. */
    GPtrArray *unfollowed;
};

/* ---- chain-machine-images.c ---- */

/* A new image, of a random shape unless it is raw; backing: what its header names, or NULL. */
char *machine_make_image(struct machine *machine, bool is_raw, uint64_t length,
                         struct block_node *backing);
/* Open it; backing: the option (NULL: none is given), the node name is that of the file. */
struct block_node *machine_open(struct machine *machine, const char *path, bool is_raw,
                                const char *backing);
struct block_node *machine_try_open(struct machine *machine, const char *path, bool is_raw,
                                    const char *backing, GError **error);
bool machine_is_raw(const struct block_node *node);

/* The disk's node below its filters: a reference. */
struct block_node *machine_root(struct machine *machine);
/* The layers of the disk from its root down: references; free with g_ptr_array_unref. */
GPtrArray *machine_layers(struct machine *machine);
/* Let the headers say what the layers are. Nobody uses them. */
void machine_follow(struct machine *machine);
/* The files of these; strings. */
GPtrArray *machine_paths(struct machine *machine);

/* A node, which may be shorter than the model, holds what that says. */
void machine_assert_equal(struct model *model, struct block_node *node);
/* Closed images: they are what the model says, and know each other, for QEMU's programs. */
void machine_assert_chain(struct machine *machine, GPtrArray *paths);

/* ---- chain-machine-jobs.c ---- */

/* Somebody did not let us: with a sentence. */
void machine_refused(const char *what, const GError *error);

void machine_start_stream(struct machine *machine);
void machine_start_commit(struct machine *machine);
void machine_start_backup(struct machine *machine);
void machine_start_mirror(struct machine *machine);

/* Do something to one of the jobs. */
void machine_meddle(struct machine *machine);
/* See what has become of those that have ended. */
void machine_reap(struct machine *machine);
/* Bring all to their ends. */
void machine_settle(struct machine *machine);

/* ---- chain-machine-changes.c ---- */

void machine_snapshot(struct machine *machine);
void machine_resize(struct machine *machine);
void machine_reopen_root(struct machine *machine);
void machine_make_writable(struct machine *machine);
/* Change the chain under a job, which must not be possible. */
void machine_try_forbidden(struct machine *machine);

#endif
