/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the mirror share: mirror*.c only. */
#ifndef LIVEBLK_JOBS_MIRROR_INTERNAL_H
#define LIVEBLK_JOBS_MIRROR_INTERNAL_H

#include <pthread.h>

#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "jobs/chain-filter.h"
#include "jobs/commit-internal.h"
#include "jobs/copy-engine.h"
#include "jobs/mirror-gate.h"
#include "jobs/mirror-record.h"
#include "jobs/mirror-target.h"
#include "jobs/mirror-watch.h"
#include "jobs/mirror.h"
#include "jobs/work-list.h"
#include "jobs/write-through.h"

/* What the engine's present run is for. */
enum mirror_step {
    MIRROR_FOLLOW,   /* copy, become ready, follow guests until somebody wants the end */
    MIRROR_CONVERGE, /* until little is left, guests being held back */
    MIRROR_FINISH,   /* what is left, guests being drained */
};

/*
 * Whether the mirror gets nearer to its end, as it is measured twice a second; and the copy mode,
 * which with MIRROR_AUTO follows from that.
 */
struct mirror_pace {
    pthread_mutex_t lock; /* guards what follows; before the event queue's only */
    _Atomic bool is_live; /* mirror_mode_begin; read without: before there is nothing, no lock */
    bool is_closed;       /* nothing is written through any more */
    bool has_ended;       /* there is nothing left to look at */
    bool is_measured;     /* there are rates */
    enum mirror_copy_mode mode;
    char *reason; /* for that guests' writes are written through, or are not any more; or NULL */

    /* At the last look; 0: there was none since the beginning, or a pause. */
    int64_t look_ns;
    uint64_t look_left, look_copied, look_written;
    uint64_t look_late; /* waits of guests that were longer than the job's guest-latency */
    /* Bytes per second, as means that fade: that became dirty, that were copied, and that guests
     * wrote. */
    double dirty_rate, copy_rate, write_rate;
    double full_rate; /* the copy rate when there was enough to copy; 0: not known */

    /* MIRROR_AUTO. */
    unsigned looks; /* since this was left and had been copied: */
    uint64_t looks_left, looks_copied;
    int64_t calm_ns;          /* since then they would not; 0: they would */
    int64_t calm_wanted_ns;   /* for so long, before they need not wait any more */
    int64_t through_after_ns; /* they do not wait before: the target was too slow for them */
};

/*
 * The bitmap is the whole truth: a granule in which the target may differ from the source is
 * dirty, or in flight (clean, but done() makes it dirty again unless it is copied), or a write is
 * going on which makes it dirty before it is answered.
 */
struct mirror {
    struct copy_source source; /* first: it is cast back */
    struct job *job;           /* borrowed: its state we are */
    enum mirror_sync sync;
    uint64_t length;
    uint64_t granularity;
    struct block_node *source_node; /* the engine's claims hold both */
    struct block_node *target;
    struct copy_engine *engine;
    struct dirty_bitmap *bitmap;
    struct work_list list; /* of the bitmap */
    struct mirror_gate gate;
    struct write_through through; /* sets the bitmap's bits */
    struct mirror_pace pace;
    struct mirror_target safe;
    struct mirror_record record;
    enum copy_effort effort;    /* since it is ready. Coordinating thread */
    bool is_installed;          /* gate and write-through, on the source */
    struct block_device *guest; /* which stood on the source when that was done, or NULL */

    _Atomic uint64_t copied;    /* bytes, ever */
    _Atomic uint64_t unflushed; /* of these, since the last flush of the target began */
    _Atomic enum mirror_step step;
    _Atomic bool is_finalizing; /* prepare() has begun, in which guests may stand still */
    _Atomic bool is_closing;    /* the engine's run is to end: take nothing more */
    _Atomic bool is_settled;    /* going through the disk once more would be of no use */

    uint64_t pass_bytes; /* what was dirty when going through the disk began. Engine lock. */

    pthread_mutex_t progress_lock; /* orders setting the total; a leaf */
    /* Before the engine's. Who compares both sides uses bitmap and engine while it is not parted.
     */
    pthread_mutex_t watch_lock;
    bool is_parted; /* the target is not, or need not be, what the source is any more */

    /* Used by the thread in run() or prepare() only. */
    bool has_run;
    bool has_ended;            /* well */
    int64_t converge_ns;       /* when MIRROR_CONVERGE began */
    int64_t finish_ns;         /* when MIRROR_FINISH began */
    int64_t look_ns;           /* of MIRROR_CONVERGE: when to look again, */
    uint64_t look_left;        /* what was left at the last look, */
    uint64_t look_copied;      /* and copied */
    GPtrArray *moving;         /* devices with block_device_begin_move, references; or NULL */
    struct block_drain *drain; /* guests stand still until the pivot is done or given up */

    /* A checkpoint of the end, or NULL; where, a reference; and whether it is there, pending. */
    char *checkpoint;
    struct block_device *tracked;
    bool has_checkpoint;
    uint8_t checkpoint_uuid[TRACKING_UUID_BYTES];

    struct commit_chain chain; /* of MIRROR_SYNC_COMMIT */
    struct chain_filter filter;
    bool has_pivoted;
    bool has_attached; /* sync=top: the source's backing file to the target */
};

/* ---- mirror.c ---- */

/* Take gate and write-through off the source. Main thread, the source's writers drained. */
void mirror_uninstall(struct mirror *mirror);

/* ---- mirror-mode.c: copy modes ---- */

/* Before the mirror is installed; when its bitmap is about to be freed; and with the job. */
void mirror_mode_begin(struct mirror *mirror, const struct mirror_options *options);
void mirror_mode_end(struct mirror *mirror);
void mirror_mode_free(struct mirror *mirror);

/* From now on; -EAGAIN or -EBUSY with the error set if that is too early or too late. Any thread.
 */
int mirror_mode_set(struct mirror *mirror, enum mirror_copy_mode mode, GError **error);

/* The target is what it is to be, with guests standing still: nothing is written through any more,
 * whatever the mode. */
void mirror_mode_close(struct mirror *mirror);

/* Measure, and choose the mode if it is for us to choose. Coordinating thread, at every tick. */
void mirror_mode_look(struct mirror *mirror);

/* Whether guests wait for the copying, or would if it did not keep up with them. Any thread. */
bool mirror_mode_is_prompt(struct mirror *mirror);

/*
 * Going through the disk again would leave hardly less dirty, and much is: if that is for us to do,
 * have guests' writes written through from now on. Returns whether that is so.
 */
bool mirror_mode_outrun(struct mirror *mirror);

/* A guest has waited for the target for too long. For struct write_through_options. */
void mirror_mode_late(void *mirror, uint64_t offset);

/* For job_info, has_actively_synced of which says whether it is a mirror. Job lock held. */
void mirror_mode_report(struct mirror *mirror, struct job_info *info);

/* ---- mirror-commit.c: MIRROR_SYNC_COMMIT ---- */

/* Instead of the checks that a target of its own has, before and after the engine has claimed it.
 */
int mirror_commit_find(struct mirror *mirror, GError **error);
int mirror_commit_hold(struct mirror *mirror, GError **error);

/* How much is copied: all of the longer one of the two. */
uint64_t mirror_commit_length(struct block_node *source, struct block_node *base);

/* In run(), before the engine: what is to be copied. */
int mirror_commit_scan(struct mirror *mirror, GError **error);

/* Just before the disks move to the target. Main thread, drained. */
void mirror_commit_pivot(struct mirror *mirror);

/* ---- mirror-changes.c: MIRROR_SYNC_INCREMENTAL ---- */

/* Whether what the options say of it makes sense, and seems to be there. Not the main thread. */
int mirror_changes_check(const struct mirror_options *options, GError **error);

/* At the moment the mirror starts, drained: what is to be copied. Not the main thread. */
int mirror_changes_take(struct mirror *mirror, const struct mirror_options *options,
                        GError **error);

/* The device's tracker, which notes changes; NULL with the error set. name: who asks for it. */
struct change_tracker *mirror_tracker(struct block_device *device, const char *name,
                                      GError **error);

/* ---- mirror-source.c ---- */

extern const struct copy_source_operations mirror_source_operations;

/* Bytes that are dirty or in flight. */
uint64_t mirror_left(struct mirror *mirror);

/* Called whenever a run is taken, so that progress never gets ahead of its total. */
void mirror_update_total(struct mirror *mirror);

/* How much may be left for the last step, for which guests stand still. */
uint64_t mirror_small(const struct mirror *mirror);

/* Before the engine runs for one of these steps; the first also in the middle of MIRROR_FOLLOW. */
void mirror_begin_convergence(struct mirror *mirror);
void mirror_begin_finish(struct mirror *mirror);

/* ---- mirror-top.c: sync=top ---- */

/* Before the target is opened: from here on the source's chain stays. Full if it has one layer. */
int mirror_top_choose(struct mirror *mirror, GError **error);

/* In run(), before the engine: what is to be copied. */
int mirror_top_scan(struct mirror *mirror, GError **error);

/*
 * Before the pivot, beside guests: see to it that the target has the layers below. What this does
 * mirror_top_detach takes back. The engine does not run.
 */
int mirror_top_attach(struct mirror *mirror, GError **error);
void mirror_top_detach(struct mirror *mirror);

/* ---- mirror-watch.c: who compares both sides ---- */

/* When it has begun, and when the sides part; also if it was not admitted. */
void mirror_watch_admit(struct mirror *mirror);
void mirror_watch_part(struct mirror *mirror);

/* ---- mirror-end.c ---- */

/* Whether there can be a checkpoint of the end, if that is wanted. */
int mirror_end_check(struct mirror *mirror, const struct mirror_options *options, GError **error);

/* struct job_driver's functions for the end. */
int mirror_prepare(struct job *job, GError **error);
void mirror_commit(struct job *job);
void mirror_abort(struct job *job);

#endif
