/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/mirror-gate.h"

#include <stddef.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"

/* Credit is not saved up beyond this: it is for the present. */
#define CREDIT_MAX ((int64_t)MIB)

/* A request takes what it needs once it passes; nobody pays for more than this before him. */
#define DEBT_MAX        ((int64_t)(64 * MIB))

#define PATIENCE_MAX_NS (5 * NS_PER_SECOND)

/* A large request waits longer, as for so many bytes one by one, but never for longer than this. */
#define PATIENCE_BYTES      MIB
#define REQUEST_WAIT_MAX_NS (10 * NS_PER_SECOND)

/* If nothing has been copied for so long, waiting is of no use. */
#define STALL_NS NS_PER_SECOND

static struct mirror_gate *gate_of(struct write_notifier *notifier)
{
    return (struct mirror_gate *)((char *)notifier - offsetof(struct mirror_gate, notifier));
}

/* How much a change would make dirty that is not; more than DEBT_MAX does not matter. */
static int64_t count_clean(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    uint64_t granularity = dirty_bitmap_granularity(bitmap);
    uint64_t at = align_down(offset, granularity);
    uint64_t end = MIN_OF(align_up(offset + bytes, granularity), dirty_bitmap_length(bitmap));
    int64_t clean = 0;

    while (at < end && clean < DEBT_MAX) {
        uint64_t start = dirty_bitmap_next_clean(bitmap, at, end);

        if (start == UINT64_MAX) {
            break;
        }
        at = MIN_OF(dirty_bitmap_next_dirty(bitmap, start, end), end);
        clean += (int64_t)(at - start);
    }
    return MIN_OF(clean, DEBT_MAX);
}

/* Lock held. How long a request that makes so many bytes dirty waits at the most. */
static int64_t deadline(const struct mirror_gate *gate, int64_t bytes)
{
    double wait_ns = (double)gate->patience_ns * MAX_OF((double)bytes / PATIENCE_BYTES, 1.0);

    return clock_now_ns() + (int64_t)MIN_OF(wait_ns, (double)REQUEST_WAIT_MAX_NS);
}

/* One waiter is woken at a time, and wakes the next if there is credit left. */
static void pay(struct mirror_gate *gate, int64_t bytes)
{
    struct guest_wait wait = {0};
    SCOPE_LOCK(&gate->lock);
    int64_t deadline_ns = deadline(gate, bytes);

    while (atomic_load(&gate->is_shut) && gate->credit <= 0) {
        int64_t stalled_ns = MAX_OF(gate->earned_ns + STALL_NS, gate->firm_until_ns);
        int64_t until_ns = MIN_OF(deadline_ns, stalled_ns);

        if (clock_now_ns() >= until_ns) {
            break;
        }
        guest_wait_for(&wait, gate->waits);
        clock_cond_wait_until(&gate->changed, &gate->lock, until_ns);
    }
    guest_wait_end(&wait);
    gate->credit = MAX_OF(gate->credit - bytes, -DEBT_MAX);
    if (gate->credit > 0) {
        pthread_cond_signal(&gate->changed);
    }
}

static int before_write(struct write_notifier *notifier, enum block_operation operation,
                        uint64_t offset, uint64_t bytes)
{
    struct mirror_gate *gate = gate_of(notifier);

    if (G_UNLIKELY(atomic_load_explicit(&gate->is_shut, memory_order_relaxed))) {
        int64_t clean = count_clean(gate->bitmap, offset, bytes);

        if (clean > 0) {
            pay(gate, clean);
        }
    }
    return 0;
}

void mirror_gate_init(struct mirror_gate *gate, struct dirty_bitmap *bitmap)
{
    *gate = (struct mirror_gate){.notifier.before_write = before_write, .bitmap = bitmap};
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, NULL);
}

void mirror_gate_destroy(struct mirror_gate *gate)
{
    pthread_mutex_destroy(&gate->lock);
    pthread_cond_destroy(&gate->changed);
}

void mirror_gate_shut(struct mirror_gate *gate, int64_t firm_until_ns)
{
    SCOPE_LOCK(&gate->lock);

    gate->credit = 0;
    gate->earned_ns = clock_now_ns();
    gate->patience_ns = MIRROR_GATE_PATIENCE_NS;
    gate->firm_until_ns = firm_until_ns;
    atomic_store(&gate->is_shut, true);
}

void mirror_gate_open(struct mirror_gate *gate)
{
    SCOPE_LOCK(&gate->lock);

    atomic_store(&gate->is_shut, false);
    pthread_cond_broadcast(&gate->changed);
}

void mirror_gate_earn(struct mirror_gate *gate, uint64_t bytes)
{
    if (!atomic_load_explicit(&gate->is_shut, memory_order_relaxed)) {
        return;
    }
    SCOPE_LOCK(&gate->lock);

    gate->earned_ns = clock_now_ns();
    gate->credit = MIN_OF(gate->credit + (int64_t)(bytes / 2), CREDIT_MAX);
    if (gate->credit > 0) {
        pthread_cond_signal(&gate->changed);
    }
}

void mirror_gate_insist(struct mirror_gate *gate)
{
    SCOPE_LOCK(&gate->lock);

    gate->patience_ns = MIN_OF(2 * gate->patience_ns, PATIENCE_MAX_NS);
}
