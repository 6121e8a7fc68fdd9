/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/copy-map.h"
#include "block/error.h"
#include "block/event.h"
#include "block/request.h"
#include "block/zero.h"

struct verify {
    struct job *job; /* borrowed: its state we are part of */
    struct verify_options options;
    uint64_t source_length, target_length;
    struct mirror_watch *watch; /* or NULL */

    /*
     * In units of the copy. Runs in flight do not overlap, so nobody else looks at the bits of the
     * one that is being compared.
     */
    struct dirty_bitmap *suspects; /* differed once */
    struct dirty_bitmap *found;    /* differed twice, and were reported */
    struct dirty_bitmap *repaired; /* were brought to the target after that */

    pthread_mutex_t lock; /* guards the report; a leaf */
    struct verify_report report;
    unsigned events_left;
};

/* ---- Life ------------------------------------------------------------------------------------ */

static bool make_bitmaps(struct verify *verify, GError **error)
{
    uint64_t length = verify->source_length;

    verify->suspects = dirty_bitmap_new(NULL, length, COPY_UNIT, error);
    verify->found = verify->suspects ? dirty_bitmap_new(NULL, length, COPY_UNIT, error) : NULL;
    verify->repaired = verify->found ? dirty_bitmap_new(NULL, length, COPY_UNIT, error) : NULL;
    return verify->repaired;
}

/* Also counts what is reported. */
static void report(struct verify *verify, enum verify_kind kind, uint64_t offset, uint64_t bytes)
{
    pthread_mutex_lock(&verify->lock);
    verify_report_add(&verify->report, kind, offset, bytes);
    bool is_told = verify->events_left > 0;
    verify->events_left -= is_told;
    pthread_mutex_unlock(&verify->lock);
    if (is_told) {
        event_emit("VERIFY_DIFFERENCE", EVENT_STRING("id", job_id(verify->job)),
                   EVENT_INT("offset", offset), EVENT_INT("length", bytes),
                   EVENT_STRING("kind", verify_kind_names[kind]));
    }
}

struct verify *verify_new(struct job *job, const struct verify_options *options,
                          uint64_t source_length, uint64_t target_length, GError **error)
{
    AUTO(verify) verify = g_new0(struct verify, 1);
    unsigned max_ranges = options->max_ranges ? options->max_ranges : VERIFY_DEFAULT_MAX_RANGES;

    verify->job = job;
    verify->options = *options;
    verify->source_length = source_length;
    verify->target_length = target_length;
    verify->events_left = max_ranges;
    pthread_mutex_init(&verify->lock, NULL);
    verify_report_init(&verify->report, max_ranges);
    verify->report.sample_percent = options->sample_percent;
    verify->report.sample_seed = options->sample_seed;
    return make_bitmaps(verify, error) ? STEAL(verify) : NULL;
}

void verify_free(struct verify *verify)
{
    g_clear_pointer(&verify->watch, mirror_watch_free);
    g_clear_pointer(&verify->suspects, dirty_bitmap_free);
    g_clear_pointer(&verify->found, dirty_bitmap_free);
    g_clear_pointer(&verify->repaired, dirty_bitmap_free);
    verify_report_clear(&verify->report);
    pthread_mutex_destroy(&verify->lock);
    g_free(verify);
}

void verify_watch(struct verify *verify, struct mirror_watch *watch)
{
    verify->watch = watch;
}

struct mirror_watch *verify_get_watch(const struct verify *verify)
{
    return verify->watch;
}

void verify_get_report(struct verify *verify, struct verify_report *copy)
{
    SCOPE_LOCK(&verify->lock);

    verify_report_copy(copy, &verify->report);
    copy->repaired_bytes = dirty_bitmap_count(verify->repaired);
}

bool verify_is_of(const struct verify *verify, uint64_t source_length, uint64_t target_length)
{
    return verify->source_length == source_length && verify->target_length == target_length;
}

/* ---- What is compared ------------------------------------------------------------------------ */

bool verify_is_sample(const struct verify *verify)
{
    return verify->options.sample_percent > 0;
}

/* The next number of a sequence that the seed determines (splitmix64). */
static uint64_t next_number(uint64_t *state)
{
    uint64_t number = *state += UINT64_C(0x9e3779b97f4a7c15);

    number = (number ^ number >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    number = (number ^ number >> 27) * UINT64_C(0x94d049bb133111eb);
    return number ^ number >> 31;
}

/* The start of the first chunk at or after offset that holds something, or UINT64_MAX. */
static uint64_t next_chunk(struct dirty_bitmap *limit, uint64_t offset, uint64_t chunk)
{
    uint64_t length = dirty_bitmap_length(limit);
    uint64_t dirty = offset < length ? dirty_bitmap_next_dirty(limit, offset, length) : UINT64_MAX;

    return dirty == UINT64_MAX ? UINT64_MAX : align_down(dirty, chunk);
}

/*
 * Exactly as many chunks as are wanted, each choice of so many being as likely: of those that are
 * left, each is taken with the probability with which it has to be.
 */
void verify_choose_sample(const struct verify *verify, struct dirty_bitmap *limit)
{
    uint64_t length = dirty_bitmap_length(limit);
    uint64_t chunk = MAX_OF(VERIFY_SAMPLE_CHUNK, dirty_bitmap_granularity(limit));
    uint64_t state = verify->options.sample_seed, left = 0, at;

    for (at = 0; (at = next_chunk(limit, at, chunk)) != UINT64_MAX; at += chunk) {
        left++;
    }
    uint64_t wanted = (left * verify->options.sample_percent + 99) / 100;
    for (at = 0; (at = next_chunk(limit, at, chunk)) != UINT64_MAX; at += chunk, left--) {
        if (next_number(&state) % left < wanted) {
            wanted--;
        } else {
            dirty_bitmap_reset(limit, at, MIN_OF(chunk, length - at));
        }
    }
}

uint64_t verify_end(const struct verify *verify)
{
    return align_up(MIN_OF(verify->source_length, verify->target_length), COPY_UNIT);
}

void verify_leave_out(struct verify *verify, uint64_t offset, uint64_t bytes)
{
    report(verify, VERIFY_UNREADABLE, offset, bytes);
}

/* ---- Comparing ------------------------------------------------------------------------------- */

/* What a worker has before it: both sides of a range. */
struct sides {
    const char *source, *target;
    uint64_t offset, bytes;
};

static struct sides part_of(const struct sides *sides, uint64_t start, uint64_t bytes)
{
    return (struct sides){
        .source = sides->source + start,
        .target = sides->target + start,
        .offset = sides->offset + start,
        .bytes = MIN_OF(bytes, sides->bytes - start),
    };
}

static bool are_equal(const struct sides *sides)
{
    return !memcmp(sides->source, sides->target, sides->bytes);
}

/* VERIFY_KINDS: they do not differ. */
static enum verify_kind kind_of(const struct sides *sector)
{
    return are_equal(sector)                               ? VERIFY_KINDS
           : buffer_is_zero(sector->source, sector->bytes) ? VERIFY_SOURCE_ZERO
           : buffer_is_zero(sector->target, sector->bytes) ? VERIFY_TARGET_ZERO
                                                           : VERIFY_DATA;
}

/* All that differs and was not reported, sectors that follow each other and differ alike as one. */
static void report_differences(struct verify *verify, const struct sides *sides)
{
    enum verify_kind kind = VERIFY_KINDS, next;
    uint64_t start = 0;

    for (uint64_t at = 0; at < sides->bytes; at += VERIFY_SECTOR) {
        const struct sides sector = part_of(sides, at, VERIFY_SECTOR);

        next = dirty_bitmap_get(verify->found, sector.offset) ? VERIFY_KINDS : kind_of(&sector);
        if (next != kind && kind != VERIFY_KINDS) {
            report(verify, kind, sides->offset + start, at - start);
        }
        if (next != kind) {
            kind = next;
            start = at;
        }
    }
    if (kind != VERIFY_KINDS) {
        report(verify, kind, sides->offset + start, sides->bytes - start);
    }
}

/* The first run of units at or after *start that differ; false if there is none. */
static bool next_difference(const struct sides *sides, uint64_t *start, struct sides *run)
{
    uint64_t at = *start, end;

    for (struct sides unit; at < sides->bytes; at += COPY_UNIT) {
        unit = part_of(sides, at, COPY_UNIT);
        if (!are_equal(&unit)) {
            break;
        }
    }
    for (end = at; end < sides->bytes; end += COPY_UNIT) {
        const struct sides unit = part_of(sides, end, COPY_UNIT);

        if (are_equal(&unit)) {
            break;
        }
    }
    *start = MIN_OF(end, sides->bytes);
    *run = part_of(sides, MIN_OF(at, sides->bytes), end - at);
    return at < sides->bytes;
}

/* Whether all bits of a run are set; they are afterwards. */
static bool set_all(struct dirty_bitmap *bitmap, const struct sides *run)
{
    uint64_t end = run->offset + run->bytes;
    bool were_set = dirty_bitmap_next_clean(bitmap, run->offset, end) == UINT64_MAX;

    if (!were_set) {
        dirty_bitmap_set(bitmap, run->offset, run->bytes);
    }
    return were_set;
}

/* Whether what differs did so before. What did not will have, the next time. */
static bool have_differed(struct verify *verify, const struct sides *sides)
{
    bool have_all = true;
    struct sides run;

    for (uint64_t at = 0; next_difference(sides, &at, &run);) {
        have_all &= set_all(verify->suspects, &run);
    }
    return have_all;
}

/* Nobody knows any more what the target should hold. */
static int end_with_mirror(struct copy_engine *engine, const struct block_node *target)
{
    GError *error = NULL;

    block_error(&error, ECANCELED,
                "The mirror to node '%s' has ended before all of it was compared", target->name);
    copy_engine_fail(engine, error);
    return COPY_LOOK_AGAIN;
}

/* What is on the target is looked at once more; that it was brought there is no proof. */
static int repair(struct verify *verify, struct copy_engine *engine, struct block_node *target,
                  const struct sides *sides)
{
    struct sides run;

    for (uint64_t at = 0; next_difference(sides, &at, &run);) {
        uint64_t end = run.offset + run.bytes;

        if (dirty_bitmap_next_dirty(verify->repaired, run.offset, end) != UINT64_MAX) {
            return -EIO; /* it does not keep what is written there */
        }
        int status = verify->watch ? mirror_watch_copy_again(verify->watch, run.offset, run.bytes)
                                   : copy_engine_write(engine, run.source, run.offset, run.bytes);
        if (status < 0) {
            return verify->watch ? end_with_mirror(engine, target) : status;
        }
        dirty_bitmap_set(verify->repaired, run.offset, run.bytes);
    }
    return COPY_LOOK_AGAIN;
}

static void mark_found(struct verify *verify, const struct sides *sides)
{
    struct sides run;

    for (uint64_t at = 0; next_difference(sides, &at, &run);) {
        dirty_bitmap_set(verify->found, run.offset, run.bytes);
    }
}

int verify_compare(struct verify *verify, struct copy_engine *engine, struct block_node *target,
                   const void *data, void *spare, uint64_t offset, uint64_t bytes)
{
    uint64_t length = verify->target_length;
    const struct sides sides = {
        .source = data,
        .target = spare,
        .offset = offset,
        .bytes = offset < length ? MIN_OF(bytes, length - offset) : 0,
    };
    int status = block_node_pread(target, spare, offset, sides.bytes, 0);

    if (status < 0 || are_equal(&sides)) {
        return status;
    }
    if (verify->watch) {
        status = mirror_watch_settle(verify->watch, data, spare, offset, sides.bytes);
        if (status < 0) {
            return end_with_mirror(engine, target);
        }
        if (are_equal(&sides)) {
            return 0;
        }
    }
    if (!have_differed(verify, &sides)) {
        return COPY_LOOK_AGAIN;
    }
    report_differences(verify, &sides);
    mark_found(verify, &sides);
    return verify->options.repair ? repair(verify, engine, target, &sides) : 0;
}

bool verify_has_repaired(const struct verify *verify)
{
    return !verify->watch && dirty_bitmap_count(verify->repaired) > 0;
}

/* ---- The end --------------------------------------------------------------------------------- */

static uint64_t count_different(const struct verify_report *report)
{
    return report->bytes[VERIFY_DATA] + report->bytes[VERIFY_SOURCE_ZERO] +
           report->bytes[VERIFY_TARGET_ZERO];
}

static void append_sentence(GString *message, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void append_sentence(GString *message, const char *format, ...)
{
    va_list arguments;

    g_string_append(message, message->len ? "; " : "");
    va_start(arguments, format);
    g_string_append_vprintf(message, format, arguments);
    va_end(arguments);
}

static void sum_up(const struct verify *verify, const struct verify_report *report,
                   const char *target, GString *message)
{
    uint64_t different = verify->options.repair ? 0 : count_different(report);

    if (different) {
        append_sentence(message, "Target node '%s' differs from the source in %" PRIu64 " bytes",
                        target, different);
    }
    if (report->bytes[VERIFY_LENGTH]) {
        append_sentence(message,
                        "Target node '%s' is %" PRIu64 " bytes long and the source %" PRIu64,
                        target, verify->target_length, verify->source_length);
    }
    if (report->bytes[VERIFY_UNREADABLE]) {
        append_sentence(message,
                        "%" PRIu64 " bytes were not compared, as one side could not be read there",
                        report->bytes[VERIFY_UNREADABLE]);
    }
}

int verify_conclude(struct verify *verify, const char *target, GError **error)
{
    g_autoptr(GString) message = g_string_new(NULL);
    uint64_t source = verify->source_length, length = verify->target_length;
    struct verify_report now;

    if (source != length) {
        report(verify, VERIFY_LENGTH, MIN_OF(source, length),
               MAX_OF(source, length) - MIN_OF(source, length));
    }
    verify_get_report(verify, &now);
    sum_up(verify, &now, target, message);
    verify_report_clear(&now);
    return message->len ? block_error(error, EBADMSG, "%s", message->str) : 0;
}
