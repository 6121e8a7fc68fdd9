/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of operations under every node.
 *
 * A driver implements what its format or protocol can do natively and leaves the rest NULL. What
 * a missing operation means is decided in one place, block/request.c and block/node.c, and is
 * said at each member below: refused (-ENOTSUP) or emulated. Drivers never emulate for
 * themselves.
 *
 * Threads. I/O operations (pread ... copy_range) are called from many threads at once and must
 * let requests to different places proceed in parallel; the core keeps overlapping requests apart
 * only where somebody asked for it. All other operations are called by one thread at a time for
 * one node, with no I/O of the node in flight where the comment says "drained".
 *
 * Requests reach a driver checked: inside the node's length, aligned to limits.request_alignment
 * in offset, length and (limits.memory_alignment) buffer address, at most limits.max_transfer
 * long, and never to a read-only node for writing. I/O operations return 0 or a negative errno
 * and move all bytes or fail.
 *
 * The table is whole; entry points in the core exist for what commands and jobs use so far. Those
 * of amend, change_backing_file, check, snapshots, VM state and stored bitmaps come with
 * their first user, and refuse a driver that lacks the operation like those there are.
 */
#ifndef LIVEBLK_BLOCK_DRIVER_H
#define LIVEBLK_BLOCK_DRIVER_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/options.h"

struct block_node;
struct block_node_options;

/* What a child is to its parent. */
enum block_role {
    BLOCK_ROLE_FILE,
    BLOCK_ROLE_BACKING,
    BLOCK_ROLE_TARGET,
    BLOCK_ROLE_DATA_FILE,
    BLOCK_ROLE_REPLICA, /* one of several that hold the same: "children.N" */
};

/* Flags of a request. */
enum {
    /* On stable storage before the request is answered. */
    BLOCK_REQUEST_FUA = 1 << 0,
    /* write_zeroes may deallocate; it must still read as zeroes. */
    BLOCK_REQUEST_MAY_UNMAP = 1 << 1,
    /* write_zeroes must be fast: fail with -ENOTSUP rather than write zeroes as data. */
    BLOCK_REQUEST_NO_FALLBACK = 1 << 2,
    /* Wait for all overlapping writes in flight, and keep later ones waiting until it ends. */
    BLOCK_REQUEST_SERIALISING = 1 << 3,
    /* Data for a format that compresses; whole clusters only. */
    BLOCK_REQUEST_COMPRESSED = 1 << 4,
};

/* What block status says of an extent. */
enum {
    /* Holds data: reading it means I/O. Without DATA and ZERO: absent here, look at backing. */
    BLOCK_STATUS_DATA = 1 << 0,
    /* Reads as zeroes. With DATA: allocated and known to be zero. */
    BLOCK_STATUS_ZERO = 1 << 1,
    /* Allocated in this very layer (as data or as an explicit zero), not only below it. */
    BLOCK_STATUS_ALLOCATED = 1 << 2,
    /* host_offset is valid: the extent lies there, linear and unencoded, in host_node. */
    BLOCK_STATUS_OFFSET_VALID = 1 << 3,
    /* The extent is stored compressed. */
    BLOCK_STATUS_COMPRESSED = 1 << 4,
};

struct block_extent {
    uint64_t bytes; /* from the offset asked for; at least 1 and at most what was asked */
    unsigned flags; /* BLOCK_STATUS_* */
    uint64_t host_offset;
    struct block_node *host_node; /* the node host_offset is in; borrowed */
};

/* Sizes a node works with; the core splits, aligns and bounces to meet them. Bytes; 0: no limit. */
struct block_limits {
    uint32_t request_alignment; /* power of 2; 1 if any byte range will do */
    uint32_t memory_alignment;  /* of buffers; power of 2 */
    uint32_t preferred_size;    /* a good request size, power of 2; 0: unknown */
    uint64_t max_transfer;
    uint64_t max_write_zeroes;
    uint64_t max_discard;
    uint32_t write_zeroes_alignment; /* preferred, not required */
    uint32_t discard_alignment;      /* preferred, not required */
    uint32_t cluster_size;           /* of a format with clusters; 0: none */
};

/* What a person asks about an image. Strings are owned by the struct. */
struct block_snapshot_info {
    char *id;
    char *name;
    uint64_t vm_state_size;
    int64_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t icount; /* UINT64_MAX: not recorded */
    uint64_t length;
};

struct block_info {
    uint32_t cluster_size; /* 0: the format has none */
    bool is_dirty;         /* the format says it was not closed cleanly */
    bool is_damaged;       /* found so since it was opened: nothing is written to it any more */
    char *backing_file;    /* as the image names it; NULL: it names none */
    char *backing_format;  /* NULL: it does not say */
    /* More facts, an object with the names and types that QMP has for them, or NULL: none. */
    json_t *format_specific;
};

/* So many findings of a check are kept as text; all are counted. */
#define BLOCK_CHECK_FINDINGS_MAX 1000

/*
 * Result of a consistency check. After a repair the counts are of what remains, and those of what
 * was mended say so.
 */
struct block_check_result {
    uint64_t corruptions;
    uint64_t leaks;
    uint64_t check_errors; /* what could not be looked at */
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t clusters_lost; /* guest clusters whose data a repair found to be lost, and gave up */
    uint64_t total_clusters;
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
    uint64_t image_end_offset;
    /* What was found and done, a line for people each. NULL: not wanted; otherwise the caller's,
     * of strings that are freed with it. */
    GPtrArray *findings;
    uint64_t finding_count; /* also of those that are not kept */
};

enum block_check_repair {
    BLOCK_CHECK_REPAIR_LEAKS = 1 << 0,  /* space that nothing uses becomes free */
    BLOCK_CHECK_REPAIR_ERRORS = 1 << 1, /* all that can be mended, leaks too */
};

enum block_preallocation {
    BLOCK_PREALLOCATION_OFF,
    BLOCK_PREALLOCATION_METADATA,
    BLOCK_PREALLOCATION_FALLOC,
    BLOCK_PREALLOCATION_FULL,
};
extern const char *const block_preallocation_names[];

/* A persistent dirty bitmap as a format stores it. */
struct block_persistent_bitmap {
    char *name;
    uint32_t granularity;
    bool enabled;     /* recording when stored */
    bool in_use;      /* not stored cleanly: its contents are not to be trusted */
    bool is_unusable; /* damaged, or of a kind that is not known: it can only be removed. Its
                         granularity may be 0 then. */
};

/* Reports how far a long operation is; returns false to ask it to stop with -ECANCELED. */
typedef bool block_progress(void *data, uint64_t done, uint64_t total);

/* Named points in a driver at which a fault layer below can break or fail. */
enum block_debug_event {
    BLOCK_DEBUG_NONE,
    BLOCK_DEBUG_READ,
    BLOCK_DEBUG_WRITE,
    BLOCK_DEBUG_WRITE_ZEROES,
    BLOCK_DEBUG_DISCARD,
    BLOCK_DEBUG_FLUSH,
    BLOCK_DEBUG_METADATA_READ,
    BLOCK_DEBUG_METADATA_WRITE,
    BLOCK_DEBUG_CLUSTER_ALLOCATE,
    BLOCK_DEBUG_CLUSTER_FREE,
    BLOCK_DEBUG_COPY_ON_WRITE_READ,
    BLOCK_DEBUG_COPY_ON_WRITE_WRITE,
    BLOCK_DEBUG_EVENT_COUNT,
};

struct block_driver {
    const char *name;        /* as in blockdev-add: "file", "raw", "qcow2" */
    const char *description; /* one line for people */

    bool is_filter; /* passes its `file` child's data through unchanged in place */
    /* A filter that keeps nothing by its length: while nobody uses it, its file may get another. */
    bool is_length_free;
    /* A filter past which nobody may write to its file while somebody writes through it. */
    bool writes_alone;
    /* Keeps the disk in its `file` in place, as a filter, but not in all of it: the length is its
     * own. Requests that it lacks are the file's; everything else is as for a format. */
    bool is_part_of_file;
    /* Ends a tree: reaches storage itself, has no `file` child. cache.no-flush acts here. */
    bool is_protocol;
    /* Lets its file grow beside requests (block_node_grow), so that may have no bitmaps. */
    bool grows_file;
    bool grows_target; /* the same with its target */
    /* Discards say what readers need no longer, so a read-only node takes them, too. */
    bool discard_when_read_only;

    size_t instance_size;               /* of the state at block_node_state(), zeroed */
    const struct block_option *options; /* beyond the common ones; struct below; may be NULL */
    size_t options_size;                /* of the struct the options are extracted into */

    /*
     * Format probing: how sure the driver is, 0 to 100, that an image whose first bytes are head
     * is its own. NULL: never probed.
     */
    int (*probe)(const uint8_t *head, size_t bytes, const char *filename);

    /*
     * Open: children declared as BLOCK_OPTION_NODE are open already (block_node_child); values
     * is the extracted options struct, which the core frees after the call (take strings out
     * with STEAL to keep them). Fill node->limits and node state. Start no threads here: the
     * process may still fork; start them at the first request.
     */
    int (*open)(struct block_node *node, void *values, GError **error);

    /*
     * What the node does with a child and lets others do there (BLOCK_PERM_*), where that is not
     * what block_child_permissions in block/node-open.c makes of the role. Called before open. What
     * a filter does with its file follows from its users afterwards, but for
     * BLOCK_PERM_WRITE_UNCHANGED, for which it is asked again. NULL: leave it so.
     */
    void (*child_permissions)(const struct block_node *node, enum block_role role, unsigned *perms,
                              unsigned *shared);

    /* Write back and release everything. The node is drained and has been flushed. */
    void (*close)(struct block_node *node);

    /*
     * Reopen with other options, in two steps so that several nodes change or none: prepare
     * checks and acquires, then exactly one of commit and abort follows. Drained. NULL: refused,
     * but for a filter, which has nothing to do then. values: the extracted options struct, of
     * which strings may be taken; NULL: the driver's own options stay. options are the new common
     * options; node->options still are the old ones, and the core replaces them after commit.
     * commit may change the alignments in node->limits.
     *
     * Who becomes read-only has been flushed, and writes in prepare what it keeps in memory: what
     * is below is writable still.
     */
    int (*reopen_prepare)(struct block_node *node, void *values,
                          const struct block_node_options *options, void **prepared,
                          GError **error);
    void (*reopen_commit)(struct block_node *node, void *prepared); /* NULL: nothing */
    void (*reopen_abort)(struct block_node *node, void *prepared);  /* NULL: nothing */
    /*
     * What opening for writing writes, for a node that became writable by a reopen, as have those
     * below. If it fails, all of them become read-only again. Drained. NULL: nothing.
     */
    int (*reopen_begin_writing)(struct block_node *node, GError **error);

    /*
     * Create an image. values: the struct of create_options, with a borrowed struct block_node *
     * for each BLOCK_OPTION_NODE, which the caller holds for writing. NULL: refused.
     */
    const struct block_option *create_options;
    size_t create_options_size;
    int (*create)(void *values, block_progress *progress, void *progress_data, GError **error);
    /* After that, if it succeeded: with the nodes no longer held, so that the image can be opened
     * to be filled (preallocation). NULL: nothing. */
    int (*create_contents)(void *values, block_progress *progress, void *progress_data,
                           GError **error);
    /* Change what an existing image is (qcow2 amend). values: the struct of amend_options. Drained.
     * NULL: refused. */
    const struct block_option *amend_options;
    size_t amend_options_size;
    int (*amend)(struct block_node *node, void *values, block_progress *progress,
                 void *progress_data, GError **error);

    /* Length in bytes. NULL for a filter: its child's. */
    int64_t (*get_length)(struct block_node *node);
    /*
     * Set the length. Drained, or, for protocols and filters, only growing (block_node_grow). New
     * space reads as zeroes. What takes time tells how far it is, in bytes; progress may be NULL.
     * NULL: refused.
     */
    int (*set_length)(struct block_node *node, uint64_t length,
                      enum block_preallocation preallocation, block_progress *progress,
                      void *progress_data, GError **error);
    /*
     * For a node that is no protocol and no filter: make it longer beside requests, by
     * block_node_grow of what it keeps its data in. Returns 0 or negative errno. NULL: a guest
     * that needs more gets -ENOSPC.
     */
    int (*grow)(struct block_node *node, uint64_t length);
    /* Bytes allocated on the host, negative errno if unknown. NULL: the sum of the children's. */
    int64_t (*get_allocated_size)(struct block_node *node);
    /* True if an image just created (or grown) of this kind reads as zeroes. NULL: false. */
    bool (*is_zero_at_creation)(struct block_node *node);
    /*
     * Whether the name of the file and that of the driver say what the node shows: not if that is a
     * part of the file, or a snapshot in it. NULL: they do, in a driver that has a probe.
     */
    bool (*is_said_by_name)(const struct block_node *node);
    /* For people: JSON-like filename or path; the caller frees. NULL: the node's own. */
    char *(*get_filename)(struct block_node *node);
    int (*get_info)(struct block_node *node, struct block_info *info);
    /*
     * What it counts beside requests (caches, say): a new object, with names and types of QMP's.
     * Never waits for a request. NULL: nothing.
     */
    json_t *(*get_statistics)(struct block_node *node);

    /* NULL for a filter: passed to its child. NULL elsewhere: -ENOTSUP. */
    int (*pread)(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                 unsigned flags);
    /* flags: FUA only if handles_fua, else the core flushes after the write. */
    int (*pwrite)(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                  unsigned flags);
    bool handles_fua;
    bool can_compress; /* pwrite takes BLOCK_REQUEST_COMPRESSED */
    /* Whether this image can, where the driver can. Of a filter its file must be able to, besides.
     * NULL: it can. */
    bool (*compresses)(struct block_node *node);
    /*
     * -ENOTSUP here (or NULL): the core writes zeroes as data, unless NO_FALLBACK. A driver may
     * answer -ENOTSUP for one request and not for the next.
     */
    int (*write_zeroes)(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags);
    /*
     * Of a format with backing files: keep in this layer what the range reads as, wherever the
     * layer itself has nothing yet, neither data nor explicit zeroes; what it has is left alone.
     * buffer is what the range reads as, or NULL for zeroes. Guests write meanwhile, and what they
     * write must win. NULL for a filter: its child's; NULL elsewhere: -ENOTSUP.
     */
    int (*populate)(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes);
    /*
     * Zeroes that may unmap give space back as a discard would, and as fast: who would rather have
     * zeroes than anything writes them instead. NULL for a filter: its child's. NULL elsewhere: no.
     */
    bool (*unmaps_zeroes)(struct block_node *node);
    /* The contents become undefined unless the format says otherwise. NULL: does nothing. */
    int (*discard)(struct block_node *node, uint64_t offset, uint64_t bytes);
    /* On stable storage: everything answered before. NULL: the children are flushed. */
    int (*flush)(struct block_node *node);
    /* NULL for a filter: its child's. NULL elsewhere: all data, allocated. */
    int (*block_status)(struct block_node *node, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent);
    /*
     * Kernel offload of copies, source side: where a range lies in a host file, as a descriptor,
     * an offset, and in *bytes how much of the range is linear there. NULL: a filter asks its
     * child, others have none (-ENOTSUP).
     */
    int (*host_range)(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                      uint64_t *fd_offset);
    /*
     * Target side: write a range with what a host file holds, without a buffer. -ENOTSUP if this
     * pair of files cannot, and then nothing was written. NULL: as for host_range.
     */
    int (*pwrite_from_fd)(struct block_node *node, int fd, uint64_t fd_offset, uint64_t offset,
                          uint64_t bytes);
    /*
     * For a driver that holds requests back on purpose: a drained section waits for some that may
     * pass through the node, so from begin to end none may be held. Sections nest. Graph lock held;
     * must not block. Both or none.
     */
    void (*drain_begin)(struct block_node *node);
    void (*drain_end)(struct block_node *node);
    /*
     * Whether reading the node may write to its children what others can tell: a drained section
     * for those who write there then waits for those who read here, too. Graph lock held; must not
     * block. NULL: no.
     */
    bool (*writes_when_read)(const struct block_node *node);
    /*
     * Whether one more replica may come, which is `added`, or one may go (NULL). Drained, main
     * thread, graph lock held. NULL: refused.
     */
    int (*check_replicas)(struct block_node *node, struct block_node *added, GError **error);
    /*
     * Make requests that hang in a driver (an unresponsive server) fail soon, because the job
     * that made them was cancelled. The node need not work afterwards. NULL: passed to the children
     * but `backing`.
     */
    void (*cancel_in_flight)(struct block_node *node);
    /*
     * Whether writes that were answered, and not flushed since, may be gone because the server that
     * answered them is. Flushes fail from then on, until who wrote them accepts that: he writes all
     * of it anew, and has nothing in flight. NULL: a filter asks its child, and others that have
     * one, too, but nobody can accept it for them: what they keep in memory says otherwise. Any
     * thread.
     */
    bool (*has_lost_writes)(struct block_node *node);
    /* How often a connection was lost so far. NULL: those of the children. Any thread. */
    uint64_t (*count_losses)(struct block_node *node);
    int (*accept_lost_writes)(struct block_node *node);
    /* Advise that a range will be read soon. NULL: does nothing. */
    int (*prefetch)(struct block_node *node, uint64_t offset, uint64_t bytes);

    /* Record another backing file in the image. Drained. NULL: refused. */
    int (*change_backing_file)(struct block_node *node, const char *backing_file,
                               const char *backing_format, GError **error);

    /*
     * Look whether the image is consistent, and mend it: repair is a mask of BLOCK_CHECK_REPAIR_*.
     * Damage is no error but a result, which is zeroed before the call but for the list. Drained.
     * NULL: refused.
     */
    int (*check)(struct block_node *node, unsigned repair, struct block_check_result *result,
                 block_progress *progress, void *progress_data, GError **error);

    /* Internal snapshots. Drained. NULL: refused. */
    int (*snapshot_create)(struct block_node *node, const struct block_snapshot_info *info,
                           GError **error);
    int (*snapshot_apply)(struct block_node *node, const char *id, GError **error);
    int (*snapshot_delete)(struct block_node *node, const char *id, GError **error);
    /* A new array of *count entries; the caller frees it with block_snapshot_list_free. */
    int (*snapshot_list)(struct block_node *node, struct block_snapshot_info **list, size_t *count);
    /* Serve an internal snapshot instead of the current state; the node is read-only. */
    int (*snapshot_load)(struct block_node *node, const char *id, GError **error);

    /* The area beside the disk that holds VM state. NULL: refused. */
    int (*vmstate_read)(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes);
    int (*vmstate_write)(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes);

    /*
     * Bitmaps stored in the image; but for the first all or none of these. block/stored-bitmaps.c
     * keeps them in memory while the image is open. What is stored and not marked as in use says
     * just what memory says: a driver marks, durably, those that record (enabled) before the disk
     * changes, and all before its length does. Not drained, but no two of these at a time, nor one
     * beside an operation that is no request. NULL: the format cannot store any.
     */
    /* Whether this image can: some versions of a format cannot. Any thread. NULL: all can. */
    bool (*bitmap_keeps)(struct block_node *node);
    int (*bitmap_list)(struct block_node *node, struct block_persistent_bitmap **list,
                       size_t *count, GError **error);
    int (*bitmap_load)(struct block_node *node, const char *name, uint8_t *bits, uint64_t bytes,
                       GError **error);
    /* In the place of one of the same name: that or this one is there, whatever happens. */
    int (*bitmap_store)(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                        const uint8_t *bits, uint64_t bytes, GError **error);
    /* Durably; -ENOENT if it is not there. */
    int (*bitmap_remove)(struct block_node *node, const char *name, GError **error);
    /* Whether this one could be stored besides so many others. */
    int (*bitmap_check)(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                        size_t others, GError **error);
    /* Mark it as in use, durably, if it is there: it is going to be changed in memory. */
    int (*bitmap_begin_change)(struct block_node *node, const char *name, GError **error);

    /* Fault layers: a driver above announces that it passes a named point. NULL: ignored. */
    void (*debug_event)(struct block_node *node, enum block_debug_event event);

    /* Forget cached metadata and length: somebody else may have changed the image. Drained. */
    int (*invalidate)(struct block_node *node, GError **error);
};

/* Add a driver to the registry; at start-up, before any node is opened. */
void block_driver_register(const struct block_driver *driver);

/* The driver of this name, or NULL. Any thread after start-up. */
const struct block_driver *block_driver_find(const char *name);

/* All drivers, NULL-terminated, in order of registration; owned by the registry. */
const struct block_driver *const *block_driver_list(void);

/* The driver most sure of these first bytes; never NULL once "raw" is registered. For images
 * whose format nobody named; disks and targets are raw unless said otherwise, so only tests ask
 * yet. */
const struct block_driver *block_driver_probe(const uint8_t *head, size_t bytes,
                                              const char *filename);

/* Options every node has besides "driver" and "node-name"; they end up in node->options. */
extern const struct block_option block_common_options[];

void block_info_clear(struct block_info *info);
void block_snapshot_list_free(struct block_snapshot_info *list, size_t count);

#endif
