/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A mirror's target that may get lost and come back, with its server, its host or the network.
 *
 * What a target has acknowledged and not flushed is gone when its host dies. So the mirror knows
 * what it has written since the last flush that succeeded, flushes at intervals, and marks all of
 * that again after a loss. While the target is lost guests go on and their writes are marked; the
 * target is looked for in intervals that get longer, and when it is there, and what it held for
 * good is there, too, as far as samples tell, what is marked is copied.
 */
#ifndef LIVEBLK_JOBS_MIRROR_TARGET_H
#define LIVEBLK_JOBS_MIRROR_TARGET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "jobs/job.h"

struct mirror;
struct mirror_options;

/* What of the target is remembered, to know it again: a piece that is not zero, and its hash. */
#define MIRROR_SAMPLES      16
#define MIRROR_SAMPLE_BYTES (UINT64_C(4) << 10)
#define MIRROR_HASH_BYTES   16

struct mirror_sample {
    uint64_t offset;
    uint8_t hash[MIRROR_HASH_BYTES];
    bool is_valid;     /* nothing was written there since it was taken */
    bool is_being_had; /* it is just taken; false again: something was written */
};

enum mirror_errand {
    MIRROR_ERRAND_NONE,
    MIRROR_ERRAND_FLUSH,
    MIRROR_ERRAND_LOOK, /* whether a lost target is back */
};

struct mirror_target {
    _Atomic bool is_kept; /* all of this is done; constant once it is true */
    int64_t retry_ns;     /* how long a lost target is looked for; constant. 0: one look */

    pthread_mutex_t lock;          /* guards what follows; before the bitmaps' only */
    struct dirty_bitmap *fresh;    /* written since the last flush began */
    struct dirty_bitmap *flushing; /* since the one before that, and it is not over or has failed */
    struct mirror_sample samples[MIRROR_SAMPLES];
    int failure; /* a positive errno that nobody has looked at yet; or 0 */
    bool is_lost;
    int64_t lost_ns; /* since when */
    unsigned looks;  /* in vain */
    int64_t next_ns; /* the next one */
    char *reason;    /* what has happened, for people */

    /* Coordinating thread; of an errand what it is given. */
    enum mirror_errand errand;
    bool is_marked;  /* what may be lost is marked again */
    unsigned pauses; /* between looks, since it was lost or given up */
    int flush_error; /* a positive errno of a flush, until nothing is on its way any more; or 0 */
    bool is_over;    /* it was looked for long enough */
    bool is_other;   /* by samples or for another reason it cannot be gone on with */
    uint64_t losses; /* of connections, when it was last known to be the same */
    uint64_t marked_bytes;
    int64_t give_up_ns;
    int64_t cut_off_ns; /* when what hangs there is cut off (again) */
    int64_t flush_ns;   /* when the last flush began */
    int64_t flushed_ns; /* when the last one that succeeded began */
    int64_t flush_took_ns;
};

/*
 * With the bitmap: -ENOMEM with the error set. At the end, when the engine is gone; and with the
 * job. Neither does anything if there was no beginning.
 */
int mirror_target_begin(struct mirror *mirror, const struct mirror_options *options,
                        GError **error);
void mirror_target_end(struct mirror *mirror);
void mirror_target_free(struct mirror *mirror);

/* Something was written to the target, or was to be. Any thread. */
void mirror_target_written(struct mirror *mirror, uint64_t offset, uint64_t bytes, bool is_there);

/* For struct copy_source_operations. */
bool mirror_target_failed(struct mirror *mirror, int error_number);

/* At every tick: flush it, look for it, give it up. False: it is lost. Coordinating thread. */
bool mirror_target_tend(struct mirror *mirror);

/*
 * In the finalization, in which nobody looks for a target: -ENOTCONN with the error set if it may
 * be another one now, as a connection to it was lost although no request has failed.
 */
int mirror_target_check_same(struct mirror *mirror, GError **error);

/* Whether what was written before this moment is safe, or nobody keeps an eye on that. */
bool mirror_target_is_safe(struct mirror *mirror, int64_t since_ns);

/* Whether a sample is what the target holds: 0, -EBADMSG, or the target's error. Any thread. */
int mirror_sample_check(struct mirror *mirror, const struct mirror_sample *sample);

/* For job_info. Job lock held. */
void mirror_target_report(struct mirror *mirror, struct job_info *info);

#endif
