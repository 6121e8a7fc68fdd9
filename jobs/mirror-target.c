/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/mirror-target.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/request.h"
#include "block/zero.h"
#include "jobs/mirror-internal.h"

/*
 * How often the target is flushed: so that it spends little of its time on that. Earlier when so
 * much may be lost.
 */
#define FLUSH_LEAST_NS NS_PER_SECOND
#define FLUSH_MOST_NS  (30 * NS_PER_SECOND)
#define FLUSH_SHARE    20
#define FLUSH_BYTES    GIB

/* How long after a look in vain the next one is; twice as long each time, with jitter. */
#define LOOK_FIRST_NS (100 * NS_PER_MS)
#define LOOK_MAX_NS   (10 * NS_PER_SECOND)

/* What is on its way to a lost target gets so long before it is cut off. */
#define CUT_OFF_NS NS_PER_SECOND

/* What the target has answered is noted as written after so long. */
#define NOTE_MAX_NS (10 * NS_PER_SECOND)

/* New samples of a flush, and how many places are looked at for that. */
#define SAMPLES_PER_FLUSH 2
#define PLACES_PER_FLUSH  4

/* ---- What is written ------------------------------------------------------------------------- */

/* Lock held. */
static void spoil_samples(struct mirror_target *target, uint64_t offset, uint64_t end)
{
    for (unsigned i = 0; i < MIRROR_SAMPLES; i++) {
        struct mirror_sample *sample = &target->samples[i];

        if (sample->offset < end && offset < sample->offset + MIRROR_SAMPLE_BYTES) {
            sample->is_valid = sample->is_being_had = false;
        }
    }
}

void mirror_target_written(struct mirror *mirror, uint64_t offset, uint64_t bytes, bool is_there)
{
    struct mirror_target *target = &mirror->safe;

    if (!target->is_kept || bytes == 0) {
        return;
    }
    SCOPE_LOCK(&target->lock);
    spoil_samples(target, offset, offset + bytes);
    if (is_there) {
        dirty_bitmap_set(target->fresh, offset, bytes);
        mirror_record_written(mirror, offset, bytes);
    }
}

/* ---- Samples --------------------------------------------------------------------------------- */

static void hash_piece(const void *piece, uint8_t *hash)
{
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t digest[32];
    gsize size = sizeof(digest);

    g_checksum_update(checksum, piece, MIRROR_SAMPLE_BYTES);
    g_checksum_get_digest(checksum, digest, &size);
    memcpy(hash, digest, MIRROR_HASH_BYTES);
}

int mirror_sample_check(struct mirror *mirror, const struct mirror_sample *sample)
{
    void *piece = block_node_alloc_buffer(mirror->target, MIRROR_SAMPLE_BYTES);
    uint8_t hash[MIRROR_HASH_BYTES];
    int status =
        piece ? block_node_pread(mirror->target, piece, sample->offset, MIRROR_SAMPLE_BYTES, 0)
              : -ENOMEM;

    if (status == 0) {
        hash_piece(piece, hash);
        status = memcmp(hash, sample->hash, MIRROR_HASH_BYTES) ? -EBADMSG : 0;
    }
    free(piece);
    return status;
}

/* The number of a sample that is to be had: of one that says nothing, or any. Lock held. */
static unsigned choose_sample(const struct mirror_target *target)
{
    for (unsigned i = 0; i < MIRROR_SAMPLES; i++) {
        if (!target->samples[i].is_valid) {
            return i;
        }
    }
    return (unsigned)g_random_int_range(0, MIRROR_SAMPLES);
}

/* A place that has just been flushed, and not been written since; false: there seems to be none. */
static bool choose_place(struct mirror *mirror, uint64_t *offset)
{
    struct mirror_target *target = &mirror->safe;
    uint64_t from = (uint64_t)(g_random_double() * (double)mirror->length);
    uint64_t found = dirty_bitmap_next_dirty(target->flushing, from, mirror->length);

    if (found == UINT64_MAX) {
        found = dirty_bitmap_next_dirty(target->flushing, 0, mirror->length);
    }
    if (found == UINT64_MAX) {
        return false;
    }
    *offset = align_down(found, MIRROR_SAMPLE_BYTES);
    return *offset + MIRROR_SAMPLE_BYTES <= mirror->length;
}

/* Zeroes are everywhere, and tell nothing. Returns whether there is one more. */
static bool take_sample(struct mirror *mirror, uint64_t offset)
{
    struct mirror_target *target = &mirror->safe;
    void *piece = block_node_alloc_buffer(mirror->target, MIRROR_SAMPLE_BYTES);
    uint8_t hash[MIRROR_HASH_BYTES];

    pthread_mutex_lock(&target->lock);
    struct mirror_sample *sample = &target->samples[choose_sample(target)];
    *sample = (struct mirror_sample){.offset = offset, .is_being_had = true};
    bool is_good = piece && dirty_bitmap_next_dirty(target->fresh, offset,
                                                    offset + MIRROR_SAMPLE_BYTES) == UINT64_MAX;
    pthread_mutex_unlock(&target->lock);
    is_good = is_good &&
              block_node_pread(mirror->target, piece, offset, MIRROR_SAMPLE_BYTES, 0) == 0 &&
              !buffer_is_zero(piece, MIRROR_SAMPLE_BYTES);
    if (is_good) {
        hash_piece(piece, hash);
    }
    free(piece);
    SCOPE_LOCK(&target->lock);
    sample->is_valid = is_good && sample->is_being_had;
    sample->is_being_had = false;
    if (sample->is_valid) {
        memcpy(sample->hash, hash, sizeof(hash));
    }
    return sample->is_valid;
}

static void take_samples(struct mirror *mirror)
{
    unsigned more = SAMPLES_PER_FLUSH;
    uint64_t offset;

    for (unsigned i = 0; i < PLACES_PER_FLUSH && more > 0; i++) {
        more -= choose_place(mirror, &offset) && take_sample(mirror, offset);
    }
}

/* ---- Flushing -------------------------------------------------------------------------------- */

/* On a thread of its own: nothing else uses the bitmap of what is being flushed. */
static int flush_errand(void *data)
{
    struct mirror *mirror = data;
    int status = block_node_flush(mirror->target);

    if (status == 0) {
        take_samples(mirror);
        mirror_record_flushed(mirror);
    }
    return status;
}

/* Lock held. */
static uint64_t count_unflushed(const struct mirror_target *target)
{
    return dirty_bitmap_count(target->fresh) + dirty_bitmap_count(target->flushing);
}

static bool is_flush_due(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    int64_t now_ns = clock_now_ns();
    SCOPE_LOCK(&target->lock);
    uint64_t unflushed = count_unflushed(target);

    if (atomic_load(&mirror->step) == MIRROR_CONVERGE && unflushed &&
        target->flush_ns < mirror->converge_ns) {
        return true;
    }
    return now_ns - target->flush_ns >=
                   CLAMP(FLUSH_SHARE * target->flush_took_ns, FLUSH_LEAST_NS, FLUSH_MOST_NS)
               ? unflushed || mirror_record_wants_flush(mirror)
               : unflushed >= FLUSH_BYTES;
}

/*
 * What is written from here on is not in this flush. What the one before had, if it failed, is:
 * both bitmaps change places, and the older one is taken in.
 */
static void start_flush(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    pthread_mutex_lock(&target->lock);
    struct dirty_bitmap *older = target->flushing;
    dirty_bitmap_merge(target->fresh, older, NULL); /* of the same length */
    dirty_bitmap_clear(older);
    target->flushing = target->fresh;
    target->fresh = older;
    mirror_record_begin_flush(mirror);
    pthread_mutex_unlock(&target->lock);
    target->flush_ns = clock_now_ns();
    if (copy_engine_start_errand(mirror->engine, flush_errand, mirror)) {
        target->errand = MIRROR_ERRAND_FLUSH;
    }
}

/* Whether an error may be cured by a connection that is made anew. */
static bool is_loss(int error_number)
{
    switch (error_number) {
    case ENOTCONN:
    case ESTALE:
    case ETIMEDOUT:
    case ECONNRESET:
    case ECONNREFUSED:
    case ECONNABORTED:
    case EPIPE:
    case ESHUTDOWN:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETDOWN:
    case ENETUNREACH:
    case ENETRESET:
        return true;
    default:
        return false;
    }
}

/* Mark again what is not known to be safe. Nothing is on its way. Returns bytes. */
static uint64_t mark_unflushed(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    pthread_mutex_lock(&target->lock);
    dirty_bitmap_merge(target->fresh, target->flushing, NULL);
    dirty_bitmap_clear(target->flushing);
    uint64_t bytes = dirty_bitmap_count(target->fresh);
    dirty_bitmap_merge(mirror->bitmap, target->fresh, NULL);
    mirror_record_unwritten(mirror, target->fresh);
    dirty_bitmap_clear(target->fresh);
    pthread_mutex_unlock(&target->lock);
    mirror_update_total(mirror);
    return bytes;
}

/*
 * A flush that failed may have been told of what is lost now, once and for all: a second one would
 * succeed. So all that was answered before is marked again, when that is known to have been noted
 * as written: when nothing is on its way, or what is has not been answered for long.
 */
static void flush_failed(struct mirror *mirror, int error_number)
{
    mirror->safe.flush_error = error_number;
    copy_engine_target_is_away(mirror->engine);
}

static void end_failed_flush(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    GError *error = NULL;

    if (!copy_engine_is_quiet(mirror->engine) &&
        clock_now_ns() - target->flush_ns < target->flush_took_ns + NOTE_MAX_NS) {
        return;
    }
    int error_number = target->flush_error;
    target->flush_error = 0;
    mark_unflushed(mirror);
    copy_engine_target_is_back(mirror->engine);
    block_error_errno(&error, error_number, "Could not flush target node '%s'",
                      mirror->target->name);
    copy_engine_target_is_gone(mirror->engine, error_number, error);
}

static void end_flush(struct mirror *mirror, int status)
{
    struct mirror_target *target = &mirror->safe;

    target->flush_took_ns = clock_now_ns() - target->flush_ns;
    if (status == 0) {
        SCOPE_LOCK(&target->lock);
        dirty_bitmap_clear(target->flushing);
        target->flushed_ns = target->flush_ns;
    } else if (block_node_has_lost_writes(mirror->target) || is_loss(-status)) {
        SCOPE_LOCK(&target->lock);
        target->failure = -status;
    } else if (status != -ECANCELED) { /* cut off, because of what is known already */
        flush_failed(mirror, -status);
    }
}

/* ---- Lost ------------------------------------------------------------------------------------ */

/*
 * In the finalization, in which guests may stand still, nobody waits: the job fails, and may be
 * begun again. A flush that failed because writes are lost is not a target that fails.
 */
bool mirror_target_failed(struct mirror *mirror, int error_number)
{
    struct mirror_target *target = &mirror->safe;

    if (!target->is_kept || target->retry_ns == 0 || atomic_load(&mirror->is_finalizing)) {
        return false;
    }
    SCOPE_LOCK(&target->lock);
    if (target->is_lost || target->failure) {
        return true; /* what was on its way when it was lost, cut off perhaps */
    }
    target->failure = is_loss(error_number) ? error_number : 0;
    return target->failure;
}

static int64_t add_time(int64_t now_ns, int64_t more_ns)
{
    return more_ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + more_ns;
}

static void become_lost(struct mirror *mirror, int error_number)
{
    struct mirror_target *target = &mirror->safe;
    int64_t now_ns = clock_now_ns();

    copy_engine_target_is_away(mirror->engine);
    pthread_mutex_lock(&target->lock);
    target->failure = 0;
    target->is_lost = true;
    target->lost_ns = target->next_ns = now_ns;
    target->looks = 0;
    g_free(target->reason);
    target->reason = g_strdup(block_node_has_lost_writes(mirror->target)
                                  ? "the connection was lost, and with it perhaps what was not "
                                    "flushed"
                                  : block_strerror(error_number));
    g_autofree char *reason = g_strdup(target->reason);
    pthread_mutex_unlock(&target->lock);
    target->is_marked = target->is_other = target->is_over = false;
    target->flush_error = 0; /* all is marked again for this */
    target->pauses = 0;
    target->marked_bytes = 0;
    target->give_up_ns = add_time(now_ns, target->retry_ns);
    target->cut_off_ns = now_ns + CUT_OFF_NS;
    event_emit("MIRROR_TARGET_LOST", EVENT_STRING("id", job_id(mirror->job)),
               EVENT_STRING("target", mirror->target->name), EVENT_STRING("reason", reason));
}

static void come_back(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    pthread_mutex_lock(&target->lock);
    target->is_lost = false;
    target->failure = 0;
    g_clear_pointer(&target->reason, g_free);
    unsigned looks = target->looks;
    pthread_mutex_unlock(&target->lock);
    copy_engine_target_is_back(mirror->engine);
    event_emit("MIRROR_TARGET_BACK", EVENT_STRING("id", job_id(mirror->job)),
               EVENT_STRING("target", mirror->target->name), EVENT_INT("retries", looks),
               EVENT_INT("marked-bytes", target->marked_bytes));
}

/* What was there for good must be. Returns an error, -EBADMSG if it is not. */
static int check_samples(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    int status = 0;

    for (unsigned i = 0; status == 0 && i < MIRROR_SAMPLES; i++) {
        pthread_mutex_lock(&target->lock);
        const struct mirror_sample sample = target->samples[i];
        pthread_mutex_unlock(&target->lock);
        if (sample.is_valid) {
            status = mirror_sample_check(mirror, &sample);
        }
    }
    return status;
}

/* On a thread of its own. What may be lost is marked. */
static int look_errand(void *data)
{
    struct mirror *mirror = data;
    uint64_t bytes = MIN_OF(mirror->length, MIRROR_SAMPLE_BYTES);
    void *piece = block_node_alloc_buffer(mirror->target, MAX_OF(bytes, UINT64_C(1)));
    int status = piece ? block_node_pread(mirror->target, piece, 0, bytes, 0) : -ENOMEM;

    free(piece);
    if (status == 0) {
        status = check_samples(mirror);
    }
    return status == 0 ? block_node_accept_lost_writes(mirror->target) : status;
}

/* With jitter: those who lost the same server do not come back all at once. */
static int64_t next_look_ns(struct mirror_target *target, int64_t now_ns)
{
    int64_t pause_ns = LOOK_MAX_NS;

    if (target->pauses < 10) {
        pause_ns = MIN_OF(LOOK_FIRST_NS << target->pauses++, LOOK_MAX_NS);
    }
    pause_ns = (int64_t)((double)pause_ns * g_random_double_range(0.75, 1.25));
    return MIN_OF(now_ns + pause_ns, target->give_up_ns); /* when there is a last one */
}

static void end_look(struct mirror *mirror, int status)
{
    struct mirror_target *target = &mirror->safe;
    int64_t now_ns = clock_now_ns();

    if (status == 0) {
        come_back(mirror);
        return;
    }
    SCOPE_LOCK(&target->lock);
    target->looks++;
    target->is_over = now_ns >= target->give_up_ns;
    target->next_ns = next_look_ns(target, now_ns);
    target->is_other = status == -EBADMSG || status == -ENOTSUP;
    g_free(target->reason);
    target->reason = g_strdup(
        status == -EBADMSG ? "it does not hold any more what it had flushed: it is another one, or "
                             "has lost what it promised to keep"
        : status == -ENOTSUP
            ? "what it had not flushed may be lost, also of its image's format, so "
              "that it has to be opened again"
        : status == -ESTALE ? "what answers there has another size, or is another one"
                            : block_strerror(-status));
}

/* It cannot be awaited any longer. With the policy `stop` the job goes on later, and begins anew.
 */
static void give_up(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    GError *error = NULL;

    pthread_mutex_lock(&target->lock);
    int64_t seconds = (clock_now_ns() - target->lost_ns) / NS_PER_SECOND;
    block_error(&error, ENOTCONN,
                target->is_other
                    ? "Target node '%s' cannot be gone on with, %" PRId64 " s after it was lost: %s"
                    : "Target node '%s' was lost %" PRId64 " s ago and is not back: %s",
                mirror->target->name, seconds, target->reason);
    target->next_ns = clock_now_ns() + LOOK_FIRST_NS;
    pthread_mutex_unlock(&target->lock);
    target->give_up_ns = 0; /* set when there is a next look */
    target->is_over = target->is_other = false;
    target->pauses = 0;
    copy_engine_target_is_gone(mirror->engine, ENOTCONN, error);
}

/* Lost, and no errand is under way. */
static void seek(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    int64_t now_ns = clock_now_ns();

    if (target->give_up_ns == 0) {
        target->give_up_ns = add_time(now_ns, target->retry_ns);
    }
    if (!copy_engine_is_quiet(mirror->engine)) {
        if (now_ns >= target->cut_off_ns) {
            copy_engine_cut_off_target(mirror->engine);
            target->cut_off_ns = now_ns + CUT_OFF_NS;
        }
        return;
    }
    if (!target->is_marked) {
        target->marked_bytes = mark_unflushed(mirror);
        target->is_marked = true;
    }
    pthread_mutex_lock(&target->lock);
    bool is_due = now_ns >= target->next_ns;
    pthread_mutex_unlock(&target->lock);
    uint64_t losses = block_node_count_losses(mirror->target); /* those before the look */
    if (target->is_over || target->is_other) {
        give_up(mirror);
    } else if (is_due && copy_engine_start_errand(mirror->engine, look_errand, mirror)) {
        target->errand = MIRROR_ERRAND_LOOK;
        target->losses = losses;
        target->cut_off_ns = now_ns + LOOK_MAX_NS;
    }
}

/* ---- Tending --------------------------------------------------------------------------------- */

/* True if one is under way still. One that looks in vain for long is cut off. */
static bool tend_errand(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    enum mirror_errand errand = target->errand;
    int status;

    if (errand == MIRROR_ERRAND_NONE) {
        return false;
    }
    if (!copy_engine_take_errand(mirror->engine, &status)) {
        if (target->is_lost && clock_now_ns() >= target->cut_off_ns) {
            copy_engine_cut_off_target(mirror->engine);
            target->cut_off_ns = clock_now_ns() + CUT_OFF_NS;
        }
        return true;
    }
    target->errand = MIRROR_ERRAND_NONE;
    if (errand == MIRROR_ERRAND_FLUSH) {
        end_flush(mirror, status);
    } else {
        end_look(mirror, status);
    }
    return false;
}

/* What answers now may be another one, even if nothing was lost that was to be kept. */
static bool may_be_other(const struct mirror *mirror)
{
    return block_node_count_losses(mirror->target) != mirror->safe.losses;
}

int mirror_target_check_same(struct mirror *mirror, GError **error)
{
    return mirror->safe.is_kept && may_be_other(mirror)
               ? block_error(error, ENOTCONN,
                             "The connection to target node '%s' was lost while the mirror was "
                             "being completed: it may be another one now",
                             mirror->target->name)
               : 0;
}

static int take_failure(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;
    SCOPE_LOCK(&target->lock);

    if (target->failure) {
        return target->failure;
    }
    if (block_node_has_lost_writes(mirror->target)) {
        return EIO;
    }
    return may_be_other(mirror) ? ENOTCONN : 0;
}

bool mirror_target_tend(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    if (!target->is_kept || atomic_load(&mirror->is_finalizing)) {
        return true;
    }
    bool is_busy = tend_errand(mirror);
    int failure = target->is_lost ? 0 : take_failure(mirror);
    if (failure) {
        become_lost(mirror, failure);
    }
    if (target->is_lost && !is_busy) {
        seek(mirror);
    } else if (target->flush_error) {
        end_failed_flush(mirror);
    } else if (!target->is_lost && !is_busy && is_flush_due(mirror)) {
        start_flush(mirror);
    }
    return !target->is_lost;
}

bool mirror_target_is_safe(struct mirror *mirror, int64_t since_ns)
{
    struct mirror_target *target = &mirror->safe;

    if (!target->is_kept || atomic_load(&mirror->is_finalizing)) {
        return true;
    }
    SCOPE_LOCK(&target->lock);
    return target->errand == MIRROR_ERRAND_NONE && !target->is_lost && !target->flush_error &&
           (target->flushed_ns >= since_ns || count_unflushed(target) == 0);
}

/* ---- Life ------------------------------------------------------------------------------------ */

/* With the policy `ignore` a target that cannot be reached is tried again as long as there is one.
 */
static int64_t retry_of(const struct mirror_options *options)
{
    if (options->target_retry_ns >= 0) {
        return options->target_retry_ns;
    }
    return options->on_target_error == BLOCK_ERROR_POLICY_IGNORE ? INT64_MAX : 0;
}

int mirror_target_begin(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    struct mirror_target *target = &mirror->safe;

    target->retry_ns = retry_of(options);
    /* A commit's target is a part of the source, and not lost without it. */
    if (mirror->sync == MIRROR_SYNC_COMMIT ||
        (target->retry_ns == 0 && !mirror_record_is_wanted(mirror) &&
         options->on_target_error == BLOCK_ERROR_POLICY_REPORT)) {
        return 0;
    }
    pthread_mutex_init(&target->lock, NULL);
    target->flush_ns = clock_now_ns();
    target->losses = block_node_count_losses(mirror->target);
    target->fresh = dirty_bitmap_new(NULL, mirror->length, mirror->granularity, error);
    target->flushing =
        target->fresh ? dirty_bitmap_new(NULL, mirror->length, mirror->granularity, error) : NULL;
    atomic_store(&target->is_kept, true);
    return target->flushing ? 0 : -ENOMEM;
}

void mirror_target_end(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    if (target->is_kept) {
        SCOPE_LOCK(&target->lock);
        target->is_lost = false;
        g_clear_pointer(&target->fresh, dirty_bitmap_free);
        g_clear_pointer(&target->flushing, dirty_bitmap_free);
    }
}

void mirror_target_free(struct mirror *mirror)
{
    struct mirror_target *target = &mirror->safe;

    if (target->is_kept) {
        g_clear_pointer(&target->reason, g_free);
        pthread_mutex_destroy(&target->lock);
    }
}

void mirror_target_report(struct mirror *mirror, struct job_info *info)
{
    struct mirror_target *target = &mirror->safe;
    int64_t now_ns = clock_now_ns();

    if (!target->is_kept) {
        return;
    }
    SCOPE_LOCK(&target->lock);
    if (!target->flushing) {
        return; /* it has ended */
    }
    info->has_unflushed = true;
    info->unflushed_bytes = count_unflushed(target);
    info->is_target_lost = target->is_lost;
    info->is_synchronous &= !target->is_lost;
    info->actively_synced &= !target->is_lost;
    if (target->is_lost) {
        info->target_lost_ns = now_ns - target->lost_ns;
        info->target_retries = target->looks;
        info->target_next_ns = MAX_OF(target->next_ns - now_ns, INT64_C(0));
        info->target_lost_reason = g_strdup(target->reason);
    }
}
