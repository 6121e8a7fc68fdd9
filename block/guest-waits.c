/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/guest-waits.h"

#include <glib.h>
#include <stdatomic.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/statistics.h"

struct guest_waits {
    _Atomic unsigned references;
    _Atomic uint64_t longest_ns;
    _Atomic uint64_t buckets[STATISTICS_BUCKETS];
    size_t member_count;
    struct guest_waits *members[]; /* references */
};

static _Thread_local struct guest_waits *of_thread;

struct guest_waits *guest_waits_new(void)
{
    return guest_waits_new_joint(NULL, 0);
}

struct guest_waits *guest_waits_new_joint(struct guest_waits *const *members, size_t count)
{
    struct guest_waits *waits = g_malloc0(sizeof(*waits) + count * sizeof(struct guest_waits *));

    atomic_init(&waits->references, 1);
    waits->member_count = count;
    for (size_t i = 0; i < count; i++) {
        waits->members[i] = guest_waits_ref(members[i]);
    }
    return waits;
}

struct guest_waits *guest_waits_ref(struct guest_waits *waits)
{
    if (waits) {
        atomic_fetch_add_explicit(&waits->references, 1, memory_order_relaxed);
    }
    return waits;
}

void guest_waits_unref(struct guest_waits *waits)
{
    if (!waits || atomic_fetch_sub_explicit(&waits->references, 1, memory_order_acq_rel) > 1) {
        return;
    }
    for (size_t i = 0; i < waits->member_count; i++) {
        guest_waits_unref(waits->members[i]);
    }
    g_free(waits);
}

void guest_waits_record(struct guest_waits *waits, int64_t wait_ns)
{
    uint64_t wait = (uint64_t)MAX_OF(wait_ns, INT64_C(0));

    statistics_raise(&waits->longest_ns, wait);
    atomic_fetch_add_explicit(&waits->buckets[statistics_bucket_of(wait)], 1, memory_order_relaxed);
    for (size_t i = 0; i < waits->member_count; i++) {
        guest_waits_record(waits->members[i], wait_ns);
    }
}

void guest_waits_read(struct guest_waits *waits, struct guest_waits_report *report)
{
    uint64_t counts[STATISTICS_BUCKETS];

    *report = (struct guest_waits_report){0};
    for (unsigned i = 0; i < STATISTICS_BUCKETS; i++) {
        counts[i] = atomic_load_explicit(&waits->buckets[i], memory_order_relaxed);
        report->count += counts[i];
    }
    report->longest_ns = atomic_load_explicit(&waits->longest_ns, memory_order_relaxed);
    report->p99_ns = MIN_OF(statistics_percentile_of_ns(counts, 0.99), report->longest_ns);
}

uint64_t guest_waits_longer_than(struct guest_waits *waits, uint64_t wait_ns)
{
    uint64_t count = 0;

    for (unsigned i = statistics_bucket_of(wait_ns) + 1; i < STATISTICS_BUCKETS; i++) {
        count += atomic_load_explicit(&waits->buckets[i], memory_order_relaxed);
    }
    return count;
}

struct guest_waits *guest_waits_enter(struct guest_waits *waits)
{
    struct guest_waits *before = of_thread;

    of_thread = waits;
    return before;
}

void guest_waits_leave(struct guest_waits *before)
{
    of_thread = before;
}

struct guest_waits *guest_waits_of_thread(void)
{
    return of_thread;
}

void guest_wait_for(struct guest_wait *wait, struct guest_waits *cause)
{
    if (cause == wait->cause || of_thread) {
        return;
    }
    int64_t now_ns = clock_now_ns();
    if (wait->cause) {
        guest_waits_record(wait->cause, now_ns - wait->since_ns);
        guest_waits_unref(wait->cause);
    }
    wait->cause = guest_waits_ref(cause);
    wait->since_ns = now_ns;
}
