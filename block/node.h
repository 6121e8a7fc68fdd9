/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Nodes and the graph.
 *
 * A node is one open driver: a file, a format on it, a filter. Nodes point at their children
 * (`file`, `backing`, `target`); who uses a node (a parent, a device, a job, an export) holds a
 * claim on it, which says what it does there, what it lets others do, and how to make it pause.
 *
 * Threads. Opening a subtree and closing one that nobody uses may happen on any thread (they can
 * block on storage or a network): the new nodes are private until they are published under the
 * graph lock. Every change that a running request could see (a child replaced, a filter inserted,
 * a notifier or a bitmap added) happens on the main thread with the nodes drained
 * (block/drain.h). Reading names, lists and claims from any thread goes through functions that
 * take the graph lock.
 */
#ifndef LIVEBLK_BLOCK_NODE_H
#define LIVEBLK_BLOCK_NODE_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/driver.h"
#include "block/queue.h"
#include "block/sharded-counter.h"
#include "block/tracked.h"

#define BLOCK_NODE_NAME_MAX 31

/* How many nodes may lie under each other: requests, drains and closing recurse that deep. */
#define BLOCK_NODE_HEIGHT_MAX 1000

enum block_detect_zeroes {
    BLOCK_DETECT_ZEROES_OFF,
    BLOCK_DETECT_ZEROES_ON,
    BLOCK_DETECT_ZEROES_UNMAP
};

/*
 * The options every node has; block_common_options declares them. Those of an open node change
 * with nothing in flight (block/reopen.h), but who is no request looks at them at any time.
 */
struct block_node_options {
    _Atomic bool read_only;
    _Atomic bool auto_read_only;
    _Atomic bool force_share;
    _Atomic bool discard_unmap; /* discard=unmap: pass discards and may-unmap on; else drop them */
    _Atomic enum block_detect_zeroes detect_zeroes;
    _Atomic bool cache_direct;
    _Atomic bool cache_no_flush;
};

/* What a user of a node does with it, and (as a mask) what it lets others do. */
enum {
    BLOCK_PERM_READ = 1 << 0,   /* relies on reading consistent data */
    BLOCK_PERM_WRITE = 1 << 1,  /* writes, zeroes, discards */
    BLOCK_PERM_RESIZE = 1 << 2, /* changes the length */
    BLOCK_PERM_GRAPH = 1 << 3,  /* may replace or remove this node under its users */
    /* Writes only what the node reads as anyway, so no reader can tell (copy on read, stream). */
    BLOCK_PERM_WRITE_UNCHANGED = 1 << 4,
    /* Changes what is below the node: its backing file. A filter has its file there. */
    BLOCK_PERM_BACKING = 1 << 5,
    /* Makes the node read differently without writing to it: below it something is changed. */
    BLOCK_PERM_VOID = 1 << 6,
    BLOCK_PERM_ALL = (1 << 7) - 1,
    /* What no reader of data need mind, whoever does it. */
    BLOCK_PERM_INVISIBLE = BLOCK_PERM_GRAPH | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_BACKING,
};

struct block_claim;

/*
 * In what order a drained section makes users quiet, where one user's requests in flight may wait
 * for another user: each is told to stop when those of the turns before it are quiet.
 */
enum block_drain_turn {
    BLOCK_DRAIN_USERS,  /* guests, readers */
    BLOCK_DRAIN_COPIES, /* jobs' copying: a guest's write may wait for old data to be taken */
    BLOCK_DRAIN_POINT_IN_TIME, /* points in time: guests and copying wait for scratch */
    BLOCK_DRAIN_TURNS,
};

/* How a drain makes a user of a node quiet. All NULL-able. */
struct block_claim_operations {
    /* Let no new request start. Must not block. Main thread or a command's thread. */
    void (*drain_begin)(struct block_claim *claim);
    /* Wait until none that started before is in flight. May block on I/O. */
    void (*drain_wait)(struct block_claim *claim);
    /* Undo one drain_begin. Must not block. */
    void (*drain_end)(struct block_claim *claim);
    enum block_drain_turn drain_turn;
    /* It is a disk's place in the graph: who is put in the place of the node gets the claim, too.
     */
    bool follows_place;
};

/* One user of one node. Embedded in the user; registered with block_claim_acquire. */
struct block_claim {
    const struct block_claim_operations *operations; /* NULL for a claim that does no I/O */
    char *owner;     /* for messages: "block device 'vda'", "block job 'job0'", "node 'q'" */
    unsigned perms;  /* BLOCK_PERM_* it uses */
    unsigned shared; /* BLOCK_PERM_* others may use meanwhile */
    struct block_node *node;   /* what is claimed; a reference is held */
    struct block_node *parent; /* set when the user is a parent node: drains go on above it */
    /*
     * A parent whose link to this node does not clash with the claim: a job that works on several
     * nodes of a chain sees to it that what that parent reads does not change. NULL: none.
     */
    const struct block_node *beside;
    /* Disks are moved elsewhere before BLOCK_PERM_VOID is made use of: they do not mind it. */
    bool moves_places;
    TAILQ_ENTRY(block_claim) entry;
};

/* A parent's link to a child. */
struct block_child {
    enum block_role role;
    char *name; /* "file", "backing", ... */
    struct block_claim claim;
    TAILQ_ENTRY(block_child) entry;
};

struct dirty_bitmap;
struct write_notifier;
struct write_follower;

struct block_node {
    char *name; /* unique; "#blockNNN" if nobody gave one */
    bool named; /* a user gave the name with blockdev-add and owns a reference */
    const struct block_driver *driver;
    struct block_node_options options;
    struct block_options *given; /* the driver's own options, for reopening; NULL: it has none */
    struct block_limits limits;
    void *state;     /* the driver's */
    unsigned height; /* of the tree: 1 if the node has no children. Graph lock. */

    /*
     * The children requests pass to, or NULL. They change under the graph lock with the node
     * drained (block/chain.h), so requests need no lock; who is no request holds it, or a
     * reference (block_chain_below).
     */
    struct block_node *file;
    struct block_node *backing;
    /* A job put this filter here and takes it away again: nothing that is to stay goes on it. */
    _Atomic bool is_transient;
    bool refuses_backing; /* the user said that there is none, whatever the image says */

    _Atomic uint64_t length;
    _Atomic uint64_t write_threshold; /* block/write-threshold.h; 0: none */
    /*
     * One operation that is no request at a time: another length, a check, a snapshot (struct
     * block_driver says which). Held across I/O, so the main thread never wants it; a parent's is
     * taken before its children's.
     */
    pthread_mutex_t operation_lock;
    struct sharded_counter write_generation; /* counts finished writes */
    _Atomic uint64_t flushed_generation;     /* writes up to here are on stable storage */
    _Atomic uint64_t highest_written; /* end of the highest byte written, as wr_highest_offset */

    struct tracked_requests tracked;

    /*
     * Notifiers, followers and bitmaps, as arrays that requests read without a lock; changed only
     * on the main thread while the node is drained. Bitmaps with a name are users' and belong to
     * the node; those without belong to the job that put them there.
     */
    struct write_notifier **notifiers; /* NULL-terminated; NULL if there are none */
    struct write_follower **followers; /* NULL-terminated; NULL if there are none */
    struct dirty_bitmap **bitmaps;     /* NULL-terminated; NULL if there are none */
    uint64_t bitmap_length; /* main thread: theirs while the node is resized; 0: that of the node */

    /* Under the graph lock. */
    int references;
    bool published;
    bool reopening;  /* somebody gives it other options */
    uint64_t serial; /* order of creation */
    TAILQ_HEAD(, block_child) children;
    TAILQ_HEAD(, block_claim) claims;
    TAILQ_ENTRY(block_node) entry;
};

/* The driver's state, of the instance_size it declared. */
static inline void *block_node_state(const struct block_node *node)
{
    return node->state;
}

/*
 * Open a tree from options ("driver", "node-name", common options, the driver's own; children
 * as names of existing nodes or nested options). allow_anonymous: a missing node-name is made up
 * instead of refused. Takes everything out of options and fails if something is left. Returns a
 * new reference, or NULL with the error set and nothing changed. Any thread; may block.
 */
struct block_node *block_node_open(struct block_options *options, bool allow_anonymous,
                                   GError **error);

/*
 * As block_node_open, for a node that the program makes for itself, of a driver that need not be
 * registered. values is what its open is given instead of what the driver's own options say, if it
 * declares any; it stays the caller's, and may be NULL.
 */
struct block_node *block_node_open_with(const struct block_driver *driver, void *values,
                                        struct block_options *options, GError **error);

/*
 * blockdev-add: open with a name and let the monitor own the reference, so that it stays until
 * block_node_remove. Returns a negative errno.
 */
int block_node_add(struct block_options *options, GError **error);

/* blockdev-del: give up the monitor's reference. Refused while anybody claims the node. */
int block_node_remove(const char *name, GError **error);

/* Give up the monitor's references of all nodes, at shutdown when devices and jobs are gone. */
void block_node_remove_all(void);

/*
 * For a driver, while it opens a node: open a child that the image names, from options that passed
 * the gate (block/gate.h), as an inline child that the user gave would be. Returns a negative
 * errno.
 */
int block_node_open_implied_child(struct block_node *parent, const char *name,
                                  struct block_options *options, GError **error);

/* References. The last unref flushes and closes the node and drops its children; may block. */
struct block_node *block_node_ref(struct block_node *node);
void block_node_unref(struct block_node *node);
DEFINE_AUTO(block_node, block_node_unref)

/*
 * Drop the reference of who made the node, and wait a moment for those who only look at it in
 * passing to drop theirs: then it is closed on return, unless somebody uses it. Not the main
 * thread; may block.
 */
void block_node_dispose(struct block_node *node);

/* A new reference to the node of this name, or NULL. */
struct block_node *block_node_find(const char *name);

/* As block_node_find, with the error "Cannot find device='' nor node-name='%s'". */
struct block_node *block_node_find_or_error(const char *name, GError **error);

/* The same for a child that options name: "Cannot find device='%s' nor node-name='%s'". */
struct block_node *block_node_find_reference(const char *name, GError **error);

/* New references to all nodes, newest first, NULL-terminated; free with block_node_list_free. */
struct block_node **block_node_list(void);
void block_node_list_free(struct block_node **list);

/*
 * Whether a new node could get this name now: "Invalid node-name: '%s'", "Node name too long" or
 * "Duplicate nodes with node-name='%s'". Any thread.
 */
int block_node_check_new_name(const char *name, GError **error);

/* True if the name can be given to a node: [A-Za-z][A-Za-z0-9._-]*, at most 31 bytes. */
bool block_node_name_is_valid(const char *name);

/* The child of this name, borrowed, or NULL. For drivers during open and later. */
struct block_node *block_node_child(const struct block_node *node, const char *name);

/* Whether a request that the driver lacks goes to the node's file as it is. */
static inline bool block_node_passes_on(const struct block_node *node)
{
    return node->driver->is_filter || node->driver->is_part_of_file;
}

/*
 * The node whose data this one passes through unchanged: the first below that is no filter; the
 * node itself if it is none. Borrowed. What is to see every write stands there, because users may
 * move past a filter.
 */
static inline struct block_node *block_node_below_filters(struct block_node *node)
{
    while (node->driver->is_filter && node->file) {
        node = node->file;
    }
    return node;
}

/*
 * -EBUSY with the user named if the node is a filter and somebody writes its data past it, to a
 * node below: who follows the writes that pass through the filter would miss those. Any thread.
 */
int block_node_check_sees_writes(struct block_node *node, GError **error);

/*
 * -EBUSY with the user named if a format above lets the node grow beside requests
 * (block_node_grow), or if it is a filter that is not used yet (is_length_free): then it can have
 * no bitmaps. Any thread.
 */
int block_node_check_steady(struct block_node *node, GError **error);

/* The length in bytes as requests see it. Any thread. */
static inline uint64_t block_node_length(struct block_node *node)
{
    return atomic_load_explicit(&node->length, memory_order_acquire);
}

static inline bool block_node_is_read_only(const struct block_node *node)
{
    return node->options.read_only;
}

/*
 * Set the length. The caller holds a claim with BLOCK_PERM_RESIZE and has drained the node; bitmaps
 * grow along. It may take as long as storage does, so not on the main thread of a server.
 */
int block_node_set_length(struct block_node *node, uint64_t length,
                          enum block_preallocation preallocation, GError **error);

/* The same, telling how far it is, in bytes, where that takes time. progress may be NULL. */
int block_node_resize(struct block_node *node, uint64_t length,
                      enum block_preallocation preallocation, block_progress *progress,
                      void *progress_data, GError **error);

/*
 * Make a node at least this long while requests are running on it, for formats that allocate in
 * their file. What is new reads as zeroes if block_node_is_zero_at_creation says so. The caller
 * holds BLOCK_PERM_RESIZE. Any thread; 0 if it is long enough, -ENOSPC if it cannot grow.
 */
int block_node_grow(struct block_node *node, uint64_t length);

/* The same, with what is new allocated on the host, of a node that is as long on the host as it is
 * here: a file, perhaps with filters above it. -ENOTSUP for others. */
int block_node_grow_allocated(struct block_node *node, uint64_t length);

/*
 * -EBUSY with the owner named if a claim on the node, or on those below that a filter passes the
 * length on to, does not share resizing.
 */
int block_node_check_resize(struct block_node *node, GError **error);

/*
 * True if zeroes that may unmap do all that a discard would (unmaps_zeroes in block/driver.h), down
 * to the storage. They may be refused for a range even so.
 */
bool block_node_unmaps_zeroes(struct block_node *node);

/* Whether the node takes compressed writes (block_node_pwrite_compressed). The caller holds it. */
bool block_node_can_compress(struct block_node *node);

/* See struct block_driver for these; emulated or refused (-ENOTSUP) in one place. */
int64_t block_node_get_allocated_size(struct block_node *node);
bool block_node_is_zero_at_creation(struct block_node *node);
char *block_node_get_filename(struct block_node *node);
int block_node_get_info(struct block_node *node, struct block_info *info);
/* What the node's driver, not that of a filter's file, counts; NULL if it counts nothing. */
json_t *block_node_get_statistics(struct block_node *node);

/* Create an image from options ("driver" and its create options); consumes the options. */
int block_create(struct block_options *options, block_progress *progress, void *progress_data,
                 GError **error);

/*
 * Claim a node: fails with -EBUSY and a message that names the other user if the permissions of
 * the two clash. operations, owner (owned by the claim from now on), perms and shared are set by
 * the caller. A claim without conflict takes effect at once. Any thread.
 */
int block_claim_acquire(struct block_claim *claim, struct block_node *node, GError **error);

/* The owners of all claims on a node, oldest first, for messages; free with g_strfreev. */
char **block_node_users(struct block_node *node);

/* Change what a held claim uses and shares; nothing changes on error. */
int block_claim_change(struct block_claim *claim, unsigned perms, unsigned shared, GError **error);

/* Release a claim and its reference. A claim that was never acquired is left alone. */
void block_claim_release(struct block_claim *claim);

/*
 * Move a claim to another node, for pivots and filters, where it uses and shares what is given:
 * checked as a new claim there; nothing changes on error. Main thread, both nodes drained.
 */
int block_claim_move(struct block_claim *claim, struct block_node *node, unsigned perms,
                     unsigned shared, GError **error);

/*
 * Move a claim to the node of another one, and release that, in one step: nobody can come in
 * between. It cannot fail where the claim uses no more than the other did and shares no less.
 * As block_claim_move.
 */
int block_claim_replace(struct block_claim *claim, struct block_claim *other, unsigned perms,
                        unsigned shared, GError **error);

/* Bitmaps, notifiers and followers of a node: main thread, node drained. */
void block_node_add_notifier(struct block_node *node, struct write_notifier *notifier);
void block_node_remove_notifier(struct block_node *node, struct write_notifier *notifier);
void block_node_add_follower(struct block_node *node, struct write_follower *follower);
void block_node_remove_follower(struct block_node *node, struct write_follower *follower);
void block_node_add_bitmap(struct block_node *node, struct dirty_bitmap *bitmap);
/* Returns its position, for block_node_insert_bitmap to put it back. It is the caller's now. */
size_t block_node_remove_bitmap(struct block_node *node, struct dirty_bitmap *bitmap);
void block_node_insert_bitmap(struct block_node *node, struct dirty_bitmap *bitmap,
                              size_t position);
/* Put a bitmap in the place of another, which is the caller's now. */
void block_node_replace_bitmap(struct block_node *node, struct dirty_bitmap *old_bitmap,
                               struct dirty_bitmap *new_bitmap);

/* The bitmap of this name, or NULL. Main thread: elsewhere it could be removed meanwhile. */
struct dirty_bitmap *block_node_find_bitmap(const struct block_node *node, const char *name);

/* The length of the bitmaps of a node: its own, or while it is resized the longer one. Main thread.
 */
uint64_t block_node_bitmap_length(const struct block_node *node);

/* What a new bitmap has unless the user says otherwise: a cluster, but 4 to 64 KiB. Any thread. */
uint64_t block_node_default_granularity(struct block_node *node);

/* The graph lock, for code in block/ that walks claims or children. Never held across I/O. */
extern pthread_mutex_t block_graph_lock;

#endif
