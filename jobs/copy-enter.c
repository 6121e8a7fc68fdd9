/* SPDX-License-Identifier: BSD-3-Clause */
/* Ranges of the target that others than the copy engine's workers write. */
#include <errno.h>

#include "block/clock.h"
#include "jobs/copy-engine-internal.h"

/* Lock held, as in the functions that follow. Somebody who came before is in the range. */
static bool is_taken(const struct copy_engine *engine, const struct copy_run *run)
{
    const struct copy_run *older;

    TAILQ_FOREACH (older, &engine->runs, entry) {
        if (older == run) {
            return false;
        }
        if (older->offset < run->end && run->offset < older->end) {
            return true;
        }
    }
    g_assert_not_reached();
}

static bool is_unwanted(const struct copy_engine *engine)
{
    return engine->error || engine->is_held || engine->is_away || engine->is_pausing ||
           job_is_cancelled(engine->job) || clock_now_ns() < engine->retry_after_ns;
}

/* What the guest waits meanwhile is the job's doing. */
static int wait_for_turn(struct copy_engine *engine, const struct copy_run *run,
                         int64_t deadline_ns, struct guest_wait *wait)
{
    while (!is_unwanted(engine)) {
        if (!engine->target_drains && !is_taken(engine, run)) {
            return 0;
        }
        guest_wait_for(wait, job_guest_waits(engine->job));
        if (clock_cond_wait_until(&engine->changed, &engine->lock, deadline_ns) == ETIMEDOUT) {
            return -ETIMEDOUT;
        }
    }
    return -EAGAIN;
}

static void leave(struct copy_engine *engine, struct copy_run *run)
{
    TAILQ_REMOVE(&engine->runs, run, entry);
    pthread_cond_broadcast(&engine->changed);
}

int copy_engine_enter(struct copy_engine *engine, struct copy_run *run, int64_t deadline_ns)
{
    struct guest_wait wait = {0};
    SCOPE_LOCK(&engine->lock);

    run->is_reading = false;
    TAILQ_INSERT_TAIL(&engine->runs, run, entry);
    int status = wait_for_turn(engine, run, deadline_ns, &wait);
    guest_wait_end(&wait);
    if (status < 0) {
        leave(engine, run);
    } else {
        engine->entered++;
    }
    return status;
}

void copy_engine_leave(struct copy_engine *engine, struct copy_run *run)
{
    SCOPE_LOCK(&engine->lock);

    engine->entered--;
    leave(engine, run);
    if (engine->is_pausing && !engine->entered) {
        job_kick(engine->job);
    }
}
