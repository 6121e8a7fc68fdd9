/* SPDX-License-Identifier: BSD-3-Clause */
/* A mirror's copy mode, and the pace from which MIRROR_AUTO and people see how far it is. */
#include <errno.h>
#include <inttypes.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "jobs/mirror-internal.h"

const char *const mirror_copy_mode_names[] = {"background", "write-blocking", "auto", NULL};

#define LOOK_NS (500 * NS_PER_MS)

/* What happened longer ago than this was in a pause: begin to measure anew. */
#define LOOK_MAX_NS (4 * LOOK_NS)

/* How much a look counts against those before it. */
#define LOOK_WEIGHT 0.3

/*
 * Guests outrun the copying if after so many looks what is left has not become less by this part of
 * what was copied. Rates of single looks would not do: where what guests write is just what is
 * copied, now the one is larger and now the other.
 */
#define OUTRUN_LOOKS 6
#define OUTRUN_SHARE 8

/*
 * How long they would not have to outrun it, in step with the target, before they are let go again;
 * twice as long each time that they have to be held again, up to a limit. So long, too, a target
 * that was too slow for a guest is not waited for.
 */
#define CALM_FIRST_NS (10 * NS_PER_SECOND)
#define CALM_MAX_NS   (640 * NS_PER_SECOND)

static double mean(double old, double rate)
{
    return old + LOOK_WEIGHT * (rate - old);
}

/* Lock held. The format names what happened, and is for people. Says it to the world, too. */
G_GNUC_PRINTF(3, 4)
static void switch_mode(struct mirror *mirror, bool is_through, const char *format, ...)
{
    struct mirror_pace *pace = &mirror->pace;
    va_list arguments;

    g_free(pace->reason);
    va_start(arguments, format);
    pace->reason = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    pace->looks = 0;
    pace->calm_ns = 0;
    write_through_set(&mirror->through, is_through);
    event_emit("MIRROR_COPY_MODE_CHANGE", EVENT_STRING("id", job_id(mirror->job)),
               EVENT_STRING("copy-mode", mirror_copy_mode_names[pace->mode]),
               EVENT_BOOL("synchronous", is_through), EVENT_STRING("reason", pace->reason));
}

/* Lock held. */
static bool is_through(struct mirror *mirror)
{
    return atomic_load(&mirror->through.is_on);
}

/* ---- Measuring ------------------------------------------------------------------------------ */

/* Lock held. What to compare the next look with. */
static void note(struct mirror_pace *pace, int64_t now_ns, uint64_t left, uint64_t copied,
                 uint64_t written)
{
    pace->look_ns = now_ns;
    pace->look_left = left;
    pace->look_copied = copied;
    pace->look_written = written;
}

/* Lock held. What became dirty is what is left more, and what was copied nevertheless. */
static void measure(struct mirror *mirror, int64_t now_ns, uint64_t left, uint64_t copied,
                    uint64_t written)
{
    struct mirror_pace *pace = &mirror->pace;
    double seconds = (double)(now_ns - pace->look_ns) / NS_PER_SECOND;
    double copy_rate = (double)(copied - pace->look_copied) / seconds;
    double change = ((double)left - (double)pace->look_left) / seconds;
    double dirty_rate = MAX_OF(change + copy_rate, 0.0);
    double write_rate = (double)(written - pace->look_written) / seconds;
    uint64_t enough = 2 * mirror_small(mirror);

    if (!pace->is_measured) {
        pace->is_measured = true;
        pace->dirty_rate = dirty_rate;
        pace->copy_rate = copy_rate;
        pace->write_rate = write_rate;
    }
    pace->dirty_rate = mean(pace->dirty_rate, dirty_rate);
    pace->copy_rate = mean(pace->copy_rate, copy_rate);
    pace->write_rate = mean(pace->write_rate, write_rate);
    if (left > enough && pace->look_left > enough) {
        pace->full_rate = pace->full_rate > 0 ? mean(pace->full_rate, copy_rate) : copy_rate;
    }
}

/* Lock held. */
static bool converges(const struct mirror *mirror, uint64_t left)
{
    return left <= mirror_small(mirror) || mirror->pace.copy_rate > mirror->pace.dirty_rate;
}

static uint64_t seconds_left(const struct mirror_pace *pace, uint64_t left)
{
    double gain = pace->copy_rate - pace->dirty_rate;

    if (left == 0) {
        return 0;
    }
    return gain > 0 ? (uint64_t)MIN_OF((double)left / gain + 1, 1e12) : 1; /* a moment */
}

/* ---- MIRROR_AUTO. Lock held. ----------------------------------------------------------------- */

/* After a look. More than a little is left, and that hardly gets less though it is copied. */
static void look_for_outrun(struct mirror *mirror)
{
    struct mirror_pace *pace = &mirror->pace;

    if (pace->looks == 0 || pace->look_left <= 4 * mirror_small(mirror)) {
        pace->looks = 1;
        pace->looks_left = pace->look_left;
        pace->looks_copied = pace->look_copied;
        return;
    }
    if (++pace->looks <= OUTRUN_LOOKS) {
        return;
    }
    uint64_t copied = pace->look_copied - pace->looks_copied;
    uint64_t dirtied =
        pace->look_left + copied - MIN_OF(pace->looks_left, pace->look_left + copied);
    pace->looks = 0;
    /* A target that stands still gets no better by having guests wait for it, too. */
    if (copied == 0 || dirtied < copied - copied / OUTRUN_SHARE ||
        pace->look_ns < pace->through_after_ns) {
        return;
    }
    g_autofree char *dirty_size = g_format_size_full(dirtied, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *copied_size = g_format_size_full(copied, G_FORMAT_SIZE_IEC_UNITS);
    switch_mode(mirror, true, "guests made %s dirty while %s were copied", dirty_size, copied_size);
}

/* In step, and what guests write could be copied twice as fast: they need not wait. */
static void look_for_calm(struct mirror *mirror, uint64_t left)
{
    struct mirror_pace *pace = &mirror->pace;

    if (left > mirror_small(mirror) || pace->write_rate > pace->full_rate / 2) {
        pace->calm_ns = 0;
    } else if (pace->calm_ns == 0) {
        pace->calm_ns = pace->look_ns;
    } else if (pace->look_ns - pace->calm_ns >= pace->calm_wanted_ns) {
        int64_t calm_s = pace->calm_wanted_ns / NS_PER_SECOND;

        pace->calm_wanted_ns = MIN_OF(2 * pace->calm_wanted_ns, CALM_MAX_NS);
        switch_mode(mirror, false,
                    "guests wrote less than half of what could be copied, for %" PRId64 " s",
                    calm_s);
    }
}

/* Lock held. Guests come first: they are let go, and do not wait again for a while. */
static void spare_guests(struct mirror_pace *pace)
{
    pace->through_after_ns = clock_now_ns() + pace->calm_wanted_ns;
    pace->calm_wanted_ns = MIN_OF(2 * pace->calm_wanted_ns, CALM_MAX_NS);
}

/*
 * Whether guests have a higher latency than the job may cost them, and it is because of waits for
 * the target: to copy less does not help against those.
 */
static bool look_for_late(struct mirror *mirror)
{
    struct mirror_pace *pace = &mirror->pace;
    uint64_t limit_ns = job_guest_latency(mirror->job), p99_ns = job_guest_p99(mirror->job);
    uint64_t late = guest_waits_longer_than(job_guest_waits(mirror->job), limit_ns);
    bool is_more = late > pace->look_late;

    pace->look_late = late;
    if (!limit_ns || !is_more || p99_ns <= limit_ns) {
        return false;
    }
    spare_guests(pace);
    switch_mode(mirror, false,
                "guests waited too long for the target: their p99 was %.2f ms, and is to be "
                "%.2f ms at most",
                (double)p99_ns / NS_PER_MS, (double)limit_ns / NS_PER_MS);
    return true;
}

void mirror_mode_look(struct mirror *mirror)
{
    struct mirror_pace *pace = &mirror->pace;
    int64_t now_ns = clock_now_ns();
    SCOPE_LOCK(&pace->lock);

    if (now_ns - pace->look_ns < LOOK_NS) {
        return;
    }
    uint64_t left = mirror_left(mirror);
    uint64_t copied = atomic_load(&mirror->copied);
    uint64_t written = atomic_load_explicit(&mirror->through.written, memory_order_relaxed);
    if (now_ns - pace->look_ns > LOOK_MAX_NS) {
        note(pace, now_ns, left, copied, written);
        pace->looks = 0;
        return;
    }
    measure(mirror, now_ns, left, copied, written);
    note(pace, now_ns, left, copied, written);
    if (pace->mode == MIRROR_AUTO && is_through(mirror)) {
        if (!look_for_late(mirror)) {
            look_for_calm(mirror, left);
        }
    } else if (pace->mode == MIRROR_AUTO) {
        look_for_outrun(mirror);
    }
}

bool mirror_mode_outrun(struct mirror *mirror)
{
    struct mirror_pace *pace = &mirror->pace;
    uint64_t left = mirror_left(mirror);
    SCOPE_LOCK(&pace->lock);

    if (pace->mode != MIRROR_AUTO || is_through(mirror) || left <= mirror_small(mirror) ||
        clock_now_ns() < pace->through_after_ns) {
        return false;
    }
    atomic_store(&mirror->is_settled, false);
    g_autofree char *size = g_format_size_full(left, G_FORMAT_SIZE_IEC_UNITS);
    switch_mode(mirror, true,
                "going through the disk once more left hardly less to copy, %s: guests made it "
                "dirty as fast as it was copied",
                size);
    return true;
}

/* ---- The mode ------------------------------------------------------------------------------- */

bool mirror_mode_is_prompt(struct mirror *mirror)
{
    SCOPE_LOCK(&mirror->pace.lock);

    return mirror->pace.mode != MIRROR_BACKGROUND;
}

/* An error of the target, unless the mirror has another way to go on. */
void mirror_mode_late(void *data, uint64_t offset)
{
    struct mirror *mirror = data;
    struct mirror_pace *pace = &mirror->pace;
    int64_t limit_ns = mirror->through.options.limit_ns;

    pthread_mutex_lock(&pace->lock);
    bool is_auto = pace->mode == MIRROR_AUTO;
    if (is_auto && is_through(mirror)) {
        spare_guests(pace);
        switch_mode(mirror, false, "the target was too slow: a guest's write waited %.1f s for it",
                    (double)limit_ns / NS_PER_SECOND);
    }
    pthread_mutex_unlock(&pace->lock);
    if (!is_auto) {
        copy_engine_write_failed(mirror->engine, offset, ETIMEDOUT);
    }
}

int mirror_mode_set(struct mirror *mirror, enum mirror_copy_mode mode, GError **error)
{
    struct mirror_pace *pace = &mirror->pace;

    if (!atomic_load(&pace->is_live)) {
        return block_error(error, EAGAIN, "The mirror is just beginning or ending; try again");
    }
    SCOPE_LOCK(&pace->lock);
    if (pace->is_closed) {
        return block_error(error, EBUSY, "The mirror has come to its end");
    }
    if (mode != pace->mode) {
        pace->mode = mode;
        pace->through_after_ns = 0;
        pace->calm_wanted_ns = CALM_FIRST_NS;
        /* From write-blocking, auto goes on as it is until it is seen that guests need not wait. */
        switch_mode(mirror,
                    mode == MIRROR_WRITE_BLOCKING || (mode == MIRROR_AUTO && is_through(mirror)),
                    "the copy mode was changed to %s", mirror_copy_mode_names[mode]);
    }
    return 0;
}

void mirror_mode_close(struct mirror *mirror)
{
    SCOPE_LOCK(&mirror->pace.lock);

    mirror->pace.is_closed = true;
    write_through_set(&mirror->through, false);
}

void mirror_mode_begin(struct mirror *mirror, const struct mirror_options *options)
{
    struct mirror_pace *pace = &mirror->pace;

    pthread_mutex_init(&pace->lock, NULL);
    pace->mode = options->copy_mode;
    pace->calm_wanted_ns = CALM_FIRST_NS;
    write_through_set(&mirror->through, pace->mode == MIRROR_WRITE_BLOCKING);
    atomic_store(&pace->is_live, true);
}

void mirror_mode_end(struct mirror *mirror)
{
    if (atomic_load(&mirror->pace.is_live)) {
        SCOPE_LOCK(&mirror->pace.lock);

        mirror->pace.is_closed = true;
        mirror->pace.has_ended = true;
    }
}

void mirror_mode_free(struct mirror *mirror)
{
    if (atomic_load(&mirror->pace.is_live)) {
        pthread_mutex_destroy(&mirror->pace.lock);
        g_free(mirror->pace.reason);
    }
}

void mirror_mode_report(struct mirror *mirror, struct job_info *info)
{
    struct mirror_pace *pace = &mirror->pace;

    if (!atomic_load(&pace->is_live)) {
        return;
    }
    SCOPE_LOCK(&pace->lock);
    if (pace->has_ended) {
        return;
    }
    uint64_t left = mirror_left(mirror);
    bool works = write_through_works(&mirror->through);
    info->actively_synced = info->has_actively_synced && works && left == 0;
    info->has_pace = true;
    info->bytes_left = left;
    info->is_measured = pace->is_measured;
    info->dirty_rate = (uint64_t)pace->dirty_rate;
    info->copy_rate = (uint64_t)pace->copy_rate;
    info->will_converge = converges(mirror, left);
    info->seconds_left = seconds_left(pace, left);
    info->copy_mode = mirror_copy_mode_names[pace->mode];
    info->is_synchronous = works;
    info->copy_mode_reason = g_strdup(pace->reason);
}
