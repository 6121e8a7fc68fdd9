/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files behind block/device.h share. */
#ifndef LIVEBLK_BLOCK_DEVICE_INTERNAL_H
#define LIVEBLK_BLOCK_DEVICE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/device.h"
#include "block/graph.h"
#include "block/guest-waits.h"
#include "block/latency-histogram.h"
#include "block/queue.h"
#include "block/sharded-counter.h"

struct block_device {
    char *name;
    struct block_claim root; /* root.node is stable while a request is in flight */
    bool read_only;          /* whatever the root */
    enum block_error_policy on_read_error;
    enum block_error_policy on_write_error;
    bool is_listed;                         /* a guest's disk */
    bool shares_writing;                    /* it minds nobody who writes the root, too */
    bool discards;                          /* the read-only root takes discards */
    bool is_moving;                         /* block_device_begin_move; main thread */
    struct change_tracker *_Atomic tracker; /* the server's, or NULL; changed while drained */
    struct throttle *throttle;
    struct statistics statistics;
    struct latency_histograms histograms;

    /*
     * The gate. A request raises in_flight, then looks at closed; who shuts the gate sets closed,
     * then looks at in_flight: with sequential consistency one of them sees the other. A request
     * leaves by the shard it came in by, so that no shard is ever below 0 and makes up for a
     * request in another.
     */
    _Atomic bool closed;
    struct sharded_counter in_flight;
    struct sharded_counter not_counted; /* of these, what statistics do not know */

    /* Guards what follows and changes of `closed`. Innermost but for the event queue. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned drains;
    struct guest_waits *held_for; /* whose drains they are, a reference; NULL: nobody's */
    bool stopped;                 /* by an error policy or by stop */
    bool shut_down;               /* requests that would wait fail instead */
    bool removed;                 /* all requests fail */
    enum block_io_status io_status;

    int references; /* devices_lock */
    TAILQ_ENTRY(block_device) entry;
};

static inline bool device_is_read_only(const struct block_device *device,
                                       const struct block_node *root)
{
    return device->read_only || root->options.read_only;
}

/* ---- The gate (block/device-request.c); with the device's lock held ------------------------- */

/* Whatever shuts the gate has changed. */
void device_update_closed(struct block_device *device);

/* No request is under way any more; the gate is shut. */
void device_wait_until_quiet(struct block_device *device);

/* Of a device's claim on its root: drained sections shut the gate. */
extern const struct block_claim_operations block_device_claim_operations;

#endif
