/* SPDX-License-Identifier: BSD-3-Clause */
/* What a mirror's copy engine copies, and when it has copied enough. */
#include <errno.h>
#include <inttypes.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/request.h"
#include "jobs/chain-source.h"
#include "jobs/mirror-internal.h"

/* What the last step may copy. Guests stand still meanwhile. */
#define SMALL_BYTES MIB

/* How long that may take before guests go on first, and before the target counts as hanging. */
#define COPY_MAX_NS (2 * NS_PER_SECOND)
#define HANG_MAX_NS (10 * NS_PER_SECOND)

/* How often to look whether guests have to be held back more. */
#define LOOK_NS (500 * NS_PER_MS)

static struct mirror *mirror_of(struct copy_source *source)
{
    return (struct mirror *)source;
}

uint64_t mirror_left(struct mirror *mirror)
{
    return work_list_left(&mirror->list);
}

uint64_t mirror_small(const struct mirror *mirror)
{
    return MAX_OF(SMALL_BYTES, mirror->granularity);
}

void mirror_update_total(struct mirror *mirror)
{
    SCOPE_LOCK(&mirror->progress_lock);

    job_progress_set_total(mirror->job, atomic_load(&mirror->copied) + mirror_left(mirror));
}

/* ---- Choosing work. Engine lock held. ------------------------------------------------------- */

/*
 * The search has come to the end of the disk and begins anew. While each pass leaves much less
 * dirty than the one before, another one brings the mirror closer; when guests write as fast as
 * that, it will not get closer without holding them back.
 */
static void begin_pass(struct mirror *mirror)
{
    uint64_t left = mirror_left(mirror);

    if (left > mirror->pass_bytes / 4 * 3) {
        atomic_store(&mirror->is_settled, true);
    }
    mirror->pass_bytes = left;
    mirror->list.cursor = 0;
}

/* In the last step guests wait for everything, which the rate limit must not make longer. */
static bool next(struct copy_source *source, bool urgent_only, uint64_t max_bytes, uint64_t *offset,
                 uint64_t *bytes)
{
    struct mirror *mirror = mirror_of(source);

    if (atomic_load(&mirror->is_closing) || atomic_load(&mirror->record.is_resting) ||
        (urgent_only && atomic_load(&mirror->step) != MIRROR_FINISH)) {
        return false;
    }
    bool found = work_list_take(&mirror->list, source->engine, max_bytes, offset, bytes);

    if (!found && mirror->list.cursor > 0) {
        begin_pass(mirror);
        found = work_list_take(&mirror->list, source->engine, max_bytes, offset, bytes);
    }
    if (found) {
        mirror_update_total(mirror);
    }
    return found;
}

static uint64_t extend(struct copy_source *source, uint64_t end, uint64_t max_bytes)
{
    struct mirror *mirror = mirror_of(source);

    if (atomic_load(&mirror->is_closing) || atomic_load(&mirror->record.is_resting)) {
        return 0;
    }
    uint64_t bytes = work_list_extend(&mirror->list, source->engine, end, max_bytes);
    if (bytes) {
        mirror_update_total(mirror);
    }
    return bytes;
}

/* ---- The source is what guests see now ------------------------------------------------------ */

static int block_status(struct copy_source *source, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    return chain_padded_status(mirror_of(source)->source_node, offset, bytes, extent);
}

static int source_pread(struct copy_source *source, void *buffer, uint64_t offset, uint64_t bytes)
{
    return chain_padded_pread(mirror_of(source)->source_node, buffer, offset, bytes);
}

static void done(struct copy_source *source, uint64_t offset, uint64_t bytes, bool is_copied)
{
    struct mirror *mirror = mirror_of(source);

    if (is_copied) {
        atomic_fetch_add(&mirror->copied, bytes);
        atomic_fetch_add(&mirror->unflushed, bytes);
        mirror_gate_earn(&mirror->gate, bytes);
    }
    mirror_target_written(mirror, offset, bytes, is_copied);
    work_list_done(&mirror->list, offset, bytes, is_copied);
    if (atomic_load(&mirror->step) == MIRROR_FINISH && mirror_left(mirror) == 0) {
        job_kick(mirror->job); /* guests wait for it to be noticed */
    }
}

static bool target_failed(struct copy_source *source, int error_number)
{
    return mirror_target_failed(mirror_of(source), error_number);
}

/* ---- When it is enough. Coordinating thread. ------------------------------------------------- */

/*
 * The engine cuts off what is in flight when its run ends, and a target that is merely slow does
 * not deserve that: take nothing more, and end when nothing is in flight.
 */
static bool close_run(struct mirror *mirror)
{
    atomic_store(&mirror->is_closing, true);
    return atomic_load(&mirror->list.in_flight) == 0;
}

/* Guests whose writes are written through make nothing dirty, and need not be held back. */
static void tend_gate(struct mirror *mirror)
{
    bool is_wanted = !write_through_works(&mirror->through);

    if (is_wanted && !atomic_load(&mirror->gate.is_shut)) {
        mirror_gate_shut(&mirror->gate, 0);
    } else if (!is_wanted && atomic_load(&mirror->gate.is_shut)) {
        mirror_gate_open(&mirror->gate);
    }
}

void mirror_begin_convergence(struct mirror *mirror)
{
    atomic_store(&mirror->step, MIRROR_CONVERGE);
    atomic_store(&mirror->is_closing, false);
    atomic_store(&mirror->record.is_resting, false); /* nobody cuts a checkpoint any more */
    mirror->converge_ns = clock_now_ns();
    mirror->look_ns = clock_now_ns() + LOOK_NS;
    mirror->look_left = mirror_left(mirror);
    mirror->look_copied = atomic_load(&mirror->copied);
    mirror_gate_open(&mirror->gate);
    tend_gate(mirror);
    copy_engine_set_effort(mirror->engine, COPY_EFFORT_HIGH);
    job_set_phase(mirror->job, "converging");
}

/* Something is copied, but what is left does not get less: guests have to wait longer. */
static void look_at_convergence(struct mirror *mirror)
{
    uint64_t left = mirror_left(mirror);
    uint64_t copied = atomic_load(&mirror->copied);
    int64_t now_ns = clock_now_ns();

    if (now_ns < mirror->look_ns) {
        return;
    }
    if (copied > mirror->look_copied && left > mirror->look_left / 8 * 7) {
        mirror_gate_insist(&mirror->gate);
    }
    mirror->look_ns = now_ns + LOOK_NS;
    mirror->look_left = left;
    mirror->look_copied = copied;
}

static bool is_close(struct mirror *mirror)
{
    uint64_t left = mirror_left(mirror);

    tend_gate(mirror);
    look_at_convergence(mirror);
    if (left > 2 * mirror_small(mirror)) {
        atomic_store(&mirror->is_closing, false); /* while the last runs took their time */
    }
    return (left <= mirror_small(mirror) || atomic_load(&mirror->is_closing)) &&
           mirror_target_is_safe(mirror, mirror->converge_ns) && close_run(mirror);
}

void mirror_begin_finish(struct mirror *mirror)
{
    atomic_store(&mirror->step, MIRROR_FINISH);
    atomic_store(&mirror->is_closing, false);
    mirror->finish_ns = clock_now_ns();
    copy_engine_set_effort(mirror->engine, COPY_EFFORT_HIGH);
    job_set_phase(mirror->job, "finishing");
}

/* Guests stand still: if they have done so for long, they go on; if the target hangs, for good. */
static bool is_copied(struct mirror *mirror)
{
    int64_t taken_ns = clock_now_ns() - mirror->finish_ns;
    GError *error = NULL;

    if (taken_ns >= HANG_MAX_NS) {
        block_error(&error, ETIMEDOUT,
                    "The target '%s' is too slow: it took more than %" PRId64 " s for the last "
                    "bytes, for which guests have to stand still",
                    mirror->target->name, HANG_MAX_NS / NS_PER_SECOND);
        copy_engine_fail(mirror->engine, error);
    }
    return mirror_left(mirror) == 0 || (taken_ns >= COPY_MAX_NS && close_run(mirror));
}

/*
 * A mirror that is ready is in no hurry: but for one whose guests wait for it, or would have to if
 * it did not keep up with them.
 */
static void choose_effort(struct mirror *mirror)
{
    bool is_behind = mirror_left(mirror) > mirror_small(mirror);
    enum copy_effort effort =
        is_behind && mirror_mode_is_prompt(mirror) ? COPY_EFFORT_NORMAL : COPY_EFFORT_LOW;

    if (effort != mirror->effort) {
        mirror->effort = effort;
        copy_engine_set_effort(mirror->engine, effort);
    }
}

static void become_ready(struct mirror *mirror)
{
    choose_effort(mirror);
    job_set_phase(mirror->job, "following");
    job_set_ready(mirror->job);
}

static void follow(struct mirror *mirror, bool is_idle)
{
    struct job *job = mirror->job;

    mirror_mode_look(mirror);
    if (job_get_status(job) == JOB_STATUS_RUNNING) {
        if (is_idle || (atomic_load(&mirror->is_settled) && !mirror_mode_outrun(mirror))) {
            become_ready(mirror);
        }
    } else if (!job_completion_requested(job) && !job_cancel_requested(job)) {
        choose_effort(mirror);
        mirror_record_tend(mirror);
    } else {
        mirror_begin_convergence(mirror);
    }
}

static bool is_finished(struct copy_source *source, bool is_idle)
{
    struct mirror *mirror = mirror_of(source);

    mirror_update_total(mirror);
    if (!mirror_target_tend(mirror)) {
        job_set_phase(mirror->job, "reconnecting");
        return false;
    }
    switch (atomic_load(&mirror->step)) {
    case MIRROR_FOLLOW:
        follow(mirror, is_idle);
        return false;
    case MIRROR_CONVERGE:
        return is_close(mirror);
    case MIRROR_FINISH:
        return is_copied(mirror);
    }
    g_assert_not_reached();
}

const struct copy_source_operations mirror_source_operations = {
    .next = next,
    .extend = extend,
    .block_status = block_status,
    .pread = source_pread,
    .target_failed = target_failed,
    .done = done,
    .is_finished = is_finished,
};
