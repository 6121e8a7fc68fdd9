/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/mirror-record.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/request.h"
#include "block/tracking-layers.h"
#include "jobs/mirror-internal.h"

/* How often the checkpoint rolls: guests stand still for it for a small part of their time. */
#define ROLL_LEAST_NS (5 * NS_PER_SECOND)
#define ROLL_MOST_NS  (300 * NS_PER_SECOND)
#define ROLL_SHARE    1000

/* What is claimed is claimed in pieces, not too many for a note. */
#define CHUNKS_MAX  16384
#define CHUNK_LEAST (64 * KIB)

/* How long a target that cannot be read is tried before nobody knows what it holds. */
#define PATIENCE_NS (5 * NS_PER_SECOND)

/* At an orderly end of the server the target is flushed once more, if that does not take long. */
#define LAST_FLUSH_NS (2 * NS_PER_SECOND)

/* ---- What there is --------------------------------------------------------------------------- */

bool mirror_record_is_wanted(const struct mirror *mirror)
{
    return mirror->record.is_wanted;
}

bool mirror_record_is_found(const struct mirror *mirror)
{
    return mirror->record.found.target;
}

int mirror_record_choose(struct mirror *mirror, const struct mirror_options *options,
                         GError **error)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) problem = NULL;

    if (!options->resume) {
        return 0;
    }
    if (options->sync != MIRROR_SYNC_FULL && options->sync != MIRROR_SYNC_INCREMENTAL) {
        return block_error(error, EINVAL,
                           "Parameter 'resume' is for sync modes 'full' and 'incremental'");
    }
    if (!options->device || !block_device_tracker(options->device)) {
        mirror_tracker(options->device, "resume", error);
        return -ENOENT;
    }
    record->is_wanted = true;
    record->is_target_new = options->target_is_new;
    record->device = block_device_ref(options->device);
    record->tracker = mirror_tracker(options->device, "resume", &problem);
    if (!record->tracker) {
        record->why_full = g_strdup(problem->message);
    }
    return 0;
}

/* What the target is: the file, or what there is instead. */
static void describe_target(struct block_node *node, struct mirror_note *note)
{
    struct tracking_identity identity = {0};

    while (node->file) {
        node = node->file;
    }
    g_autofree char *name = block_node_get_filename(node);
    tracking_identify(name, &identity);
    note->inode = identity.inode;
    note->target = g_strdup(identity.inode || !*identity.name ? name : identity.name);
}

static char *name_checkpoint(const char *target, const char *suffix)
{
    g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, target, -1);

    return g_strdup_printf("mirror-%.12s%s", digest, suffix);
}

static bool is_done(const struct mirror_note *note, uint64_t offset)
{
    uint64_t number = offset / note->chunk;

    return note->done->data[number / 8] & 1u << number % 8;
}

/* A server that has just been started again is given a moment. */
static int check_sample(struct mirror *mirror, const struct mirror_sample *sample)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    int status;

    while ((status = mirror_sample_check(mirror, sample)) < 0 && status != -EBADMSG &&
           clock_now_ns() < deadline_ns) {
        g_usleep(PATIENCE_NS / 1000 / 50);
    }
    return status;
}

/*
 * What the target had flushed must be there still, where nothing was written since: neither the
 * guest nor the mirror wrote where nothing changed and all was done. NULL, or why not, or an error.
 */
static char *check_samples(struct mirror *mirror, const struct mirror_note *note, GError **error)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) problem = NULL;
    AUTO(dirty_bitmap) changes = tracking_changes_since(record->tracker, record->name, &problem);

    if (!changes) {
        return g_strdup(problem->message);
    }
    for (guint i = 0; i < note->samples->len; i++) {
        const struct mirror_sample *sample = &g_array_index(note->samples, struct mirror_sample, i);
        uint64_t end = MIN_OF(sample->offset + MIRROR_SAMPLE_BYTES, mirror->length);

        if (!is_done(note, sample->offset) || !is_done(note, end - 1) ||
            dirty_bitmap_next_dirty(changes, sample->offset, end) != UINT64_MAX) {
            continue;
        }
        int status = check_sample(mirror, sample);
        if (status == -EBADMSG) {
            return g_strdup_printf(
                "the target does not hold at offset %" PRIu64
                " what it had flushed: somebody has written it, or it is another "
                "one",
                sample->offset);
        }
        if (status < 0) {
            block_error_errno(error, -status, "Could not read target node '%s'",
                              mirror->target->name);
            return NULL;
        }
    }
    return NULL;
}

static char *check_note(struct mirror *mirror, const struct mirror_note *note,
                        const struct mirror_note *now, GError **error)
{
    if (note->length != mirror->length) {
        return g_strdup_printf("the disk had %" PRIu64 " bytes then, and has %" PRIu64,
                               note->length, mirror->length);
    }
    if (strcmp(note->target, now->target) || note->inode != now->inode) {
        return g_strdup("there is another file in the place of the target");
    }
    return check_samples(mirror, note, error);
}

/* NULL, with the note in `found`; or why there is nothing to go on with; or an error. */
static char *find(struct mirror *mirror, const struct mirror_note *now, GError **error)
{
    struct mirror_record *record = &mirror->record;
    struct mirror_note note = {0};
    enum tracking_loss loss;
    uint64_t length;
    enum tracking_parent parent = tracking_judge_parent(record->tracker, record->name, &loss);

    if (parent == TRACKING_PARENT_LOST || (parent != TRACKING_PARENT_USABLE && loss)) {
        return g_strdup_printf("what changed since is not known: %s", tracking_loss_text(loss));
    }
    if (parent != TRACKING_PARENT_USABLE) {
        return g_strdup("there was no mirror to this target that could be resumed");
    }
    g_autoptr(GBytes) bytes =
        tracking_checkpoint_get_note(record->tracker, record->name, record->uuid, &length, NULL);
    if (!bytes || !mirror_note_decode(bytes, &note)) {
        return g_strdup("the record of the earlier mirror cannot be read");
    }
    g_autoptr(GError) problem = NULL;
    char *why = check_note(mirror, &note, now, &problem);
    if (why || problem) {
        mirror_note_clear(&note);
    } else {
        record->found = note;
    }
    if (problem) {
        g_propagate_error(error, STEAL(problem));
    }
    return why;
}

int mirror_record_find(struct mirror *mirror, GError **error)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) problem = NULL;
    struct mirror_note now = {0};

    if (!record->tracker) {
        return 0;
    }
    describe_target(mirror->target, &now);
    record->name = name_checkpoint(now.target, "");
    record->next = name_checkpoint(now.target, "-next");
    record->why_full = find(mirror, &now, &problem);
    if (record->is_target_new && mirror_record_is_found(mirror)) {
        /* A new file may have the number of the one before it. */
        mirror_note_clear(&record->found);
        record->why_full = g_strdup("the target was just created");
    }
    mirror_note_clear(&now);
    if (problem) {
        int status = block_error_code(problem);

        g_propagate_error(error, STEAL(problem));
        return status;
    }
    return 0;
}

/* ---- The moment the mirror starts. Drained. -------------------------------------------------- */

static uint64_t chunk_of(const struct mirror *mirror)
{
    uint64_t chunk = MAX_OF(mirror->granularity, (uint64_t)CHUNK_LEAST);

    while (mirror->length / chunk >= CHUNKS_MAX) {
        chunk *= 2;
    }
    return chunk;
}

static GByteArray *claim_all(uint64_t length, uint64_t chunk, uint8_t value)
{
    GByteArray *claims = g_byte_array_new();
    guint bytes = (guint)div_round_up(div_round_up(length, chunk), 8);

    g_byte_array_set_size(claims, bytes);
    if (bytes) {
        memset(claims->data, value, bytes);
    }
    return claims;
}

static GBytes *make_note(struct mirror *mirror, GByteArray *claims)
{
    struct mirror_note note = {
        .length = mirror->length,
        .chunk = chunk_of(mirror),
        .done = g_byte_array_ref(claims),
        .samples = g_array_new(FALSE, TRUE, sizeof(struct mirror_sample)),
    };

    describe_target(mirror->target, &note);
    pthread_mutex_lock(&mirror->safe.lock);
    for (unsigned i = 0; i < MIRROR_SAMPLES; i++) {
        if (mirror->safe.samples[i].is_valid) {
            g_array_append_val(note.samples, mirror->safe.samples[i]);
        }
    }
    pthread_mutex_unlock(&mirror->safe.lock);
    GBytes *bytes = mirror_note_encode(&note);
    mirror_note_clear(&note);
    return bytes;
}

/* The record cannot be kept: what there is stays as it was, which is no lie. */
static void fail(struct mirror *mirror, const GError *error)
{
    g_warning("Mirror '%s' could not be resumed after a crash as it is now: %s",
              job_id(mirror->job), error->message);
    mirror->record.is_kept = false;
}

static void remove_next(struct mirror_record *record)
{
    g_autoptr(GError) error = NULL;

    if (record->has_next &&
        tracking_checkpoint_drop(record->tracker, record->next, record->next_uuid, &error) < 0) {
        g_warning("%s", error->message);
    }
    record->has_next = false;
}

/* Whatever has the name; it is pending if its beginning failed. None is no error. */
static int remove_record(struct mirror_record *record, GError **error)
{
    g_autoptr(GError) problem = NULL;
    int status = tracking_checkpoint_remove(record->tracker, record->name, &problem);

    if (status == -EBUSY) {
        return tracking_checkpoint_drop(record->tracker, record->name, NULL, error);
    }
    if (status < 0 && status != -ENOENT) {
        g_propagate_error(error, STEAL(problem));
        return status;
    }
    return 0;
}

/* One that is there, broken perhaps, is of no use, and must not be believed later. */
static int forget_old(struct mirror_record *record, GError **error)
{
    g_autoptr(GError) problem = NULL;
    int status = remove_record(record, &problem);

    if (status < 0 && tracking_check(record->tracker, NULL) == 0) {
        g_propagate_error(error, STEAL(problem));
        return status;
    }
    return 0;
}

static void forget_record(struct mirror_record *record)
{
    g_autoptr(GError) error = NULL;
    enum tracking_loss loss;

    if (tracking_judge_parent(record->tracker, record->name, &loss) != TRACKING_PARENT_LOST &&
        remove_record(record, &error) < 0) {
        g_warning("%s", error->message);
    }
}

static int begin_anew(struct mirror *mirror, GError **error)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GByteArray) claims = claim_all(mirror->length, chunk_of(mirror), 0);
    g_autoptr(GBytes) note = make_note(mirror, claims);

    if (!note) {
        return block_error(error, ENOTSUP, "The name of the target is not valid UTF-8");
    }
    int status = tracking_checkpoint_begin(record->tracker, mirror->source_node, record->name,
                                           record->uuid, error);
    record->is_new = status == 0;
    if (status == 0) {
        status = tracking_checkpoint_note(record->tracker, record->name, record->uuid, note, error);
    }
    return status == 0
               ? tracking_checkpoint_commit(record->tracker, record->name, record->uuid, error)
               : status;
}

/* What is not claimed, and what changed since. */
static int go_on(struct mirror *mirror, GError **error)
{
    struct mirror_record *record = &mirror->record;
    const struct mirror_note *found = &record->found;
    AUTO(dirty_bitmap)
    changes = tracking_changes_since(record->tracker, record->name, error);

    if (!changes) {
        return -ENOENT;
    }
    for (uint64_t at = 0; at < mirror->length; at += found->chunk) {
        uint64_t bytes = MIN_OF(found->chunk, mirror->length - at);

        if (!is_done(found, at)) {
            dirty_bitmap_set(mirror->bitmap, at, bytes);
        }
    }
    dirty_bitmap_merge(record->todo, mirror->bitmap, NULL);
    return dirty_bitmap_merge(mirror->bitmap, changes, error);
}

int mirror_record_begin(struct mirror *mirror, GError **error)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) problem = NULL;
    int status = 0;

    if (!record->is_wanted) {
        return 0;
    }
    record->todo = dirty_bitmap_new(NULL, mirror->length, mirror->granularity, error);
    if (!record->todo) {
        return -ENOMEM;
    }
    if (mirror_record_is_found(mirror)) {
        status = go_on(mirror, error);
        record->is_resumed = true;
    } else {
        dirty_bitmap_merge(record->todo, mirror->bitmap, NULL);
        status = record->tracker ? forget_old(record, error) : 0;
        if (status == 0 && record->tracker && begin_anew(mirror, &problem) < 0) {
            g_autofree char *why = STEAL(record->why_full);

            record->why_full = g_strdup_printf("%s; and this one cannot be resumed later: %s", why,
                                               problem->message);
            fail(mirror, problem);
        }
    }
    record->is_kept = record->tracker && status == 0 && !problem;
    record->is_whole = dirty_bitmap_count(record->todo) == 0 && record->is_resumed;
    record->cut_ns = clock_now_ns();
    atomic_store(&record->is_told, true);
    return status;
}

/* ---- What is written, and flushed ------------------------------------------------------------ */

void mirror_record_written(struct mirror *mirror, uint64_t offset, uint64_t bytes)
{
    struct dirty_bitmap *todo = mirror->record.todo;
    uint64_t end = offset + bytes;

    if (!todo || dirty_bitmap_count(todo) == 0) {
        return;
    }
    offset = align_up(offset, mirror->granularity);
    end = end >= mirror->length ? mirror->length : align_down(end, mirror->granularity);
    if (offset < end && dirty_bitmap_next_dirty(todo, offset, end) != UINT64_MAX) {
        dirty_bitmap_reset(todo, offset, end - offset);
    }
}

/* What is claimed already was flushed. */
void mirror_record_unwritten(struct mirror *mirror, struct dirty_bitmap *lost)
{
    struct mirror_record *record = &mirror->record;

    if (record->is_kept && (!record->is_whole || record->has_next)) {
        dirty_bitmap_merge(record->todo, lost, NULL);
    }
}

static GByteArray *claim_done(struct mirror *mirror)
{
    uint64_t chunk = chunk_of(mirror), at = 0, offset, bytes;
    GByteArray *claims = claim_all(mirror->length, chunk, 0xff);

    while (
        dirty_bitmap_next_range(mirror->record.todo, at, mirror->length, chunk, &offset, &bytes)) {
        for (at = align_down(offset, chunk); at < offset + bytes; at += chunk) {
            claims->data[at / chunk / 8] &= (uint8_t) ~(1u << at / chunk % 8);
        }
    }
    return claims;
}

bool mirror_record_wants_flush(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    return record->is_kept && dirty_bitmap_count(record->todo) == 0 &&
           (!record->is_whole || record->has_next);
}

void mirror_record_begin_flush(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    g_clear_pointer(&record->claims, g_byte_array_unref);
    record->may_roll = record->has_next && dirty_bitmap_count(record->todo) == 0;
    if (record->is_kept && (record->may_roll || (!record->is_whole && !record->has_next))) {
        record->claims = claim_done(mirror);
    }
}

static int write_note(struct mirror *mirror, GBytes *note, GError **error)
{
    struct mirror_record *record = &mirror->record;

    if (!record->may_roll) {
        return tracking_checkpoint_note(record->tracker, record->name, record->uuid, note, error);
    }
    int status = tracking_checkpoint_replace(record->tracker, record->name, record->uuid,
                                             record->next, record->next_uuid, note, error);
    if (status == 0) {
        memcpy(record->uuid, record->next_uuid, sizeof(record->uuid));
        record->has_next = false;
    }
    return status;
}

void mirror_record_flushed(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) error = NULL;

    pthread_mutex_lock(&mirror->safe.lock);
    g_autoptr(GByteArray) claims = STEAL(record->claims);
    pthread_mutex_unlock(&mirror->safe.lock);
    g_autoptr(GBytes) note = claims ? make_note(mirror, claims) : NULL;
    if (!note || (!record->may_roll && record->written && g_bytes_equal(note, record->written))) {
        return;
    }
    if (write_note(mirror, note, &error) < 0) {
        fail(mirror, error);
        return;
    }
    g_autoptr(GByteArray) all = claim_all(mirror->length, chunk_of(mirror), 0xff);
    record->is_whole = !memcmp(all->data, claims->data, all->len);
    g_clear_pointer(&record->written, g_bytes_unref);
    record->written = STEAL(note);
}

/* ---- Rolling --------------------------------------------------------------------------------- */

static bool is_roll_due(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    /* An errand has the record to itself. */
    return mirror->safe.errand == MIRROR_ERRAND_NONE && record->is_kept && record->is_whole &&
           !record->has_next && atomic_load(&mirror->through.late) == 0 &&
           clock_now_ns() - record->cut_ns >=
               CLAMP(ROLL_SHARE * record->held_ns, ROLL_LEAST_NS, ROLL_MOST_NS) &&
           (atomic_load(&mirror->copied) != record->cut_copied ||
            atomic_load(&mirror->through.written) != record->cut_written);
}

static int cut_drained(struct mirror *mirror, GError **error)
{
    struct mirror_record *record = &mirror->record;
    int64_t start_ns = clock_now_ns();
    AUTO(block_drain) drain = block_drain_begin(&mirror->source_node, 1, BLOCK_PERM_WRITE);

    if (!copy_engine_is_quiet(mirror->engine)) {
        return 0; /* another time: now what is marked is not all that the target lacks */
    }
    int status = tracking_checkpoint_begin(record->tracker, mirror->source_node, record->next,
                                           record->next_uuid, error);
    if (status == 0) {
        SCOPE_LOCK(&mirror->safe.lock);
        dirty_bitmap_clear(record->todo);
        dirty_bitmap_merge(record->todo, mirror->bitmap, NULL);
        record->has_next = true;
        record->cut_copied = atomic_load(&mirror->copied);
        record->cut_written = atomic_load(&mirror->through.written);
    }
    record->held_ns = clock_now_ns() - start_ns;
    return status;
}

/* The disk is flushed before, too, so that guests wait for little of it. */
static void cut(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;
    g_autoptr(GError) error = NULL;

    record->cut_ns = clock_now_ns();
    tracking_prepare_checkpoint(record->tracker);
    block_node_flush(mirror->source_node); /* the cut itself finds out what is wrong */
    if (cut_drained(mirror, &error) < 0) {
        fail(mirror, error);
    }
    tracking_forget_prepared(record->tracker);
}

void mirror_record_tend(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    if (!atomic_load(&record->is_resting) && !is_roll_due(mirror)) {
        return;
    }
    atomic_store(&record->is_resting, true);
    /* Guests whose writes are written through do not rest before they are drained. */
    if (mirror->safe.errand == MIRROR_ERRAND_NONE && copy_engine_is_idle(mirror->engine)) {
        cut(mirror);
        atomic_store(&record->is_resting, false);
        copy_engine_wake(mirror->engine);
    }
}

/* ---- The end --------------------------------------------------------------------------------- */

/* Nothing is on its way any more. What was copied since the last flush need not be again. */
static void note_the_last(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    if (record->is_kept && !record->is_whole && mirror->safe.is_kept && !mirror->safe.is_lost) {
        pthread_mutex_lock(&mirror->safe.lock);
        mirror_record_begin_flush(mirror);
        pthread_mutex_unlock(&mirror->safe.lock);
        if (copy_engine_flush_anyway(mirror->engine, clock_now_ns() + LAST_FLUSH_NS) == 0) {
            mirror_record_flushed(mirror);
        }
    }
}

void mirror_record_end(struct mirror *mirror, bool is_of_use)
{
    struct mirror_record *record = &mirror->record;

    if (record->tracker && record->name && record->todo) {
        if (is_of_use && job_is_shutting_down()) {
            note_the_last(mirror);
        }
        remove_next(record);
        if (!is_of_use) {
            forget_record(record);
        }
    }
    record->is_kept = false;
    record->tracker = NULL;
    block_device_unref(STEAL(record->device));
    g_clear_pointer(&record->todo, dirty_bitmap_free);
    g_clear_pointer(&record->claims, g_byte_array_unref);
    g_clear_pointer(&record->written, g_bytes_unref);
}

void mirror_record_free(struct mirror *mirror)
{
    struct mirror_record *record = &mirror->record;

    mirror_note_clear(&record->found);
    g_free(record->name);
    g_free(record->next);
    g_free(record->why_full);
}

void mirror_record_report(struct mirror *mirror, struct job_info *info)
{
    const struct mirror_record *record = &mirror->record;

    if (atomic_load(&record->is_told)) { /* and so it is wanted */
        info->resumed = record->is_resumed ? "changes" : "all";
        info->full_copy_reason = g_strdup(record->why_full);
    }
}
