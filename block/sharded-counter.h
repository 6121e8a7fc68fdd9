/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Counters that every request changes: one part per processor, so that requests on different
 * processors do not fight for a cache line.
 */
#ifndef LIVEBLK_BLOCK_SHARDED_COUNTER_H
#define LIVEBLK_BLOCK_SHARDED_COUNTER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define SHARDS 16

/* Which shard to use now: that of the processor. Another call may give another one. */
static inline unsigned shard_here(void)
{
    int processor = sched_getcpu(); /* reads a field that the kernel keeps; no system call */

    return processor < 0 ? 0 : (unsigned)processor % SHARDS;
}

struct sharded_counter {
    struct {
        _Atomic uint64_t value;
        char apart[64 - sizeof(uint64_t)];
    } shards[SHARDS];
};

/*
 * Sequentially consistent, so that who raises a counter and then looks at a flag, and who sets the
 * flag and then sums the counter up, cannot both miss the other.
 */
static inline void sharded_counter_add(struct sharded_counter *counter, unsigned shard,
                                       uint64_t amount)
{
    atomic_fetch_add(&counter->shards[shard].value, amount);
}

/*
 * The sum, not of one instant. For a counter that only grows, all that was added before the call
 * is in it, and two equal sums mean that nothing was added between the calls.
 */
static inline uint64_t sharded_counter_sum(struct sharded_counter *counter)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < SHARDS; i++) {
        sum += atomic_load(&counter->shards[i].value);
    }
    return sum;
}

#endif
