/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Devices: a guest's disk. A name, a root node, a gate that a drain shuts, throttling, statistics,
 * and what happens when an I/O fails.
 */
#ifndef LIVEBLK_BLOCK_DEVICE_H
#define LIVEBLK_BLOCK_DEVICE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/latency-histogram.h"
#include "block/node.h"
#include "block/request.h"
#include "block/statistics.h"
#include "block/throttle.h"

/* What to do when I/O fails, for guests and jobs alike. */
enum block_error_policy {
    BLOCK_ERROR_POLICY_REPORT, /* fail the request (the job) */
    BLOCK_ERROR_POLICY_IGNORE, /* guest: answer success; job: go on */
    BLOCK_ERROR_POLICY_STOP,   /* hold the request (pause the job) until somebody resumes it */
    BLOCK_ERROR_POLICY_ENOSPC, /* stop on ENOSPC (EDQUOT), report otherwise */
};
extern const char *const block_error_policy_names[]; /* NULL-terminated */

enum block_io_status { BLOCK_IO_STATUS_OK, BLOCK_IO_STATUS_FAILED, BLOCK_IO_STATUS_NOSPACE };
extern const char *const block_io_status_names[];

/* What the policy says about this error: REPORT, IGNORE or STOP. error_number is positive. */
enum block_error_policy block_error_policy_action(enum block_error_policy policy, int error_number);

struct block_device;
struct change_tracker;

/*
 * A device on a root node, which it claims (reference taken): reads, and writes unless the node
 * is read-only; such a device stays read-only whatever its root. The name is unique among devices
 * and valid as a node name. NULL on error. Main thread, or before it runs.
 */
struct block_device *block_device_new(const char *name, struct block_node *root, GError **error);

/*
 * A device that is no guest's disk but what reads a view: as block_device_new, but with a name of
 * any kind, and not in the list, so that neither queries nor stop and cont know it. discards: its
 * clients may discard although the root is read-only, see block/driver.h.
 */
struct block_device *block_device_new_unlisted(const char *name, struct block_node *root,
                                               bool discards, GError **error);
/*
 * The same for a node that is served as it is: to be read only, or to be written, where others may
 * write, too.
 */
struct block_device *block_device_new_shared(const char *name, struct block_node *root,
                                             bool read_only, GError **error);

/* References: an export or a request in progress keeps the device alive after removal. */
struct block_device *block_device_ref(struct block_device *device);
void block_device_unref(struct block_device *device);
DEFINE_AUTO(block_device, block_device_unref)

/*
 * Take the device out of the list and release its root; flushes first. Requests that come later
 * fail with -ESHUTDOWN. Drops the list's reference (an unlisted device's first). Returns the
 * flush's error.
 */
int block_device_remove(struct block_device *device);

/* A new reference, or NULL. Any thread. */
struct block_device *block_device_find(const char *name);
/* The first device on this root, whether or not a job has put filters there for a while
 * (block_below_transient): a new reference, or NULL. */
struct block_device *block_device_find_by_root(struct block_node *root);

/* Whether the device is there. Any thread. */
bool block_device_is_on(struct block_device *device, struct block_node *root);
/* New references to all, in order of creation, NULL-terminated. */
struct block_device **block_device_list(void);
/* The same, and then those of block_device_new_shared: all whom a job moves with its disk. */
struct block_device **block_device_list_with_shared(void);
void block_device_list_free(struct block_device **list);

const char *block_device_name(const struct block_device *device);

/* The root node: a new reference. Changes only on the main thread, drained. */
struct block_node *block_device_root(struct block_device *device);

/*
 * Put another root under the device (a pivot, a filter). Main thread, device drained. On error
 * nothing changes; -EBUSY while somebody is moving it, -ESHUTDOWN if it has been removed.
 */
int block_device_set_root(struct block_device *device, struct block_node *root, GError **error);

/*
 * The same with the node that `holder`, a job's claim, is on: the device takes its place, and it is
 * released. It cannot fail where holder reads and writes the node and lets others read it only.
 */
int block_device_take_root(struct block_device *device, struct block_claim *holder, GError **error);

/*
 * From here until block_device_end_move nobody gives the device another root: for who decides on
 * a move before he can make it, and must not fail then. He ends this just before he moves it. Main
 * thread. -EBUSY if somebody else is moving it.
 */
int block_device_begin_move(struct block_device *device, GError **error);
void block_device_end_move(struct block_device *device);

/*
 * From block_device_hold until block_device_let_go no request starts, as in a drained section, but
 * of this device alone. Any thread, no lock held; neither waits. block_device_wait_held waits for
 * those that were under way; not the main thread.
 */
void block_device_hold(struct block_device *device);
void block_device_wait_held(struct block_device *device);
void block_device_let_go(struct block_device *device);

/* Set before the device is used; default: report both. */
void block_device_set_error_policies(struct block_device *device, enum block_error_policy on_read,
                                     enum block_error_policy on_write);

/* True if clients may discard although the device is read-only. */
bool block_device_takes_discards(const struct block_device *device);

uint64_t block_device_length(struct block_device *device);
bool block_device_is_read_only(struct block_device *device);

/* True of a guest's disk, which block_device_list() has; false of an export of a node or a view. */
bool block_device_is_listed(const struct block_device *device);

/*
 * A guest's requests. Wait while the device is drained or stopped, are throttled, counted, and
 * handled by the error policies. Many threads. 0 or a negative errno.
 */
int block_device_pread(struct block_device *device, void *buffer, uint64_t offset, uint64_t bytes);
int block_device_pwrite(struct block_device *device, const void *buffer, uint64_t offset,
                        uint64_t bytes, unsigned flags);
int block_device_write_zeroes(struct block_device *device, uint64_t offset, uint64_t bytes,
                              unsigned flags);
int block_device_discard(struct block_device *device, uint64_t offset, uint64_t bytes,
                         unsigned flags);
int block_device_flush(struct block_device *device);
int block_device_prefetch(struct block_device *device, uint64_t offset, uint64_t bytes);
/* What a reader sees: through the chain. */
int block_device_block_status(struct block_device *device, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent);
/* And which layer it is from, as block_node_block_status_chain tells. */
int block_device_block_status_depth(struct block_device *device, uint64_t offset, uint64_t bytes,
                                    struct block_extent *extent, unsigned *depth);

/*
 * Who notes what the guest changes: set before the device is used, or with it drained; it stays the
 * caller's, who sees to it that the device is gone, or another one set, before he frees it.
 */
void block_device_set_tracker(struct block_device *device, struct change_tracker *tracker);
struct change_tracker *block_device_tracker(const struct block_device *device); /* or NULL */

struct throttle *block_device_throttle(struct block_device *device);             /* borrowed */
struct statistics *block_device_statistics(struct block_device *device);         /* borrowed */
struct latency_histograms *block_device_histograms(struct block_device *device); /* borrowed */
enum block_io_status block_device_io_status(struct block_device *device);

/* True if requests of the guest are under way just now, not held at the gate. Cheap. */
bool block_device_is_busy(struct block_device *device);

/* True while guest requests are held (stop policy met an error, or block_device_stop_all). */
bool block_device_is_stopped(struct block_device *device);

/*
 * QMP's stop and cont: hold all guest requests of all devices (those in flight have ended when it
 * returns), or let them go on; cont also clears I/O status and retries what an error policy
 * holds. Any thread but the main one.
 */
void block_device_stop_all(void);
void block_device_continue_all(void);
/* "running", "paused", "io-error". */
const char *block_device_run_state(void);

/*
 * The requests that this thread makes from here on are of a client that may be sent away: as soon
 * as *has_left, they fail with -ESHUTDOWN instead of waiting at a stopped device, since whoever
 * could let it go on may be waiting for them. NULL: they are nobody's. Whoever sets *has_left calls
 * block_device_client_left then, with no lock of block/ held.
 */
void block_device_set_client(const atomic_bool *has_left);
void block_device_client_left(void);

/*
 * Shutdown: held requests fail with -ESHUTDOWN instead of waiting for ever, now and later.
 */
void block_device_shutdown_all(void);

#endif
