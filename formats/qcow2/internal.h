/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the parts of the qcow2 driver share. The format is specified in QEMU's
 * docs/interop/qcow2.rst; comments name its sections.
 *
 * Crash safety. Guests' requests change metadata in memory only: the L1 table, cached slices of L2
 * tables, cached refcount blocks. qcow2_commit writes it back in an order that holds whatever part
 * of the writes after the last flush is lost:
 *
 *   1. refcounts of new clusters (and pointers to new refcount blocks, behind a flush), data and
 *      copies of tables are stable before
 *   2. L1 and L2 entries that refer to them; these are stable before
 *   3. clusters that they no longer refer to are freed.
 *
 * So at every moment a cluster's refcount on disk is at least the number of references to it that
 * are on disk; a crash leaks clusters at worst. A cluster that was given up is not used again
 * before requests that may still read or write it have ended (`epoch`).
 *
 * Threads. I/O functions run on many threads. Finding a cluster takes no lock while its slice is
 * cached. Requests that change a mapping hold the guest clusters concerned in `allocations`, and
 * others that overlap those wait. In this order:
 *
 *   allocations > an L2 table's lock > commit_lock > refcount_lock, a slice's lock > the rest
 *
 * (a commit may run under a table's lock; it takes no table's). bitmap_lock comes before all of
 * them: requests take it before anything else, if at all. Only it, the table's, the commit, the
 * refcount and the header lock are held across I/O: that of a table while slices of it are read or
 * the table is allocated, the refcount lock while a refcount block is read or added. What is said
 * to need a drained node is called with no request in flight.
 */
#ifndef LIVEBLK_FORMATS_QCOW2_INTERNAL_H
#define LIVEBLK_FORMATS_QCOW2_INTERNAL_H

#include <endian.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/align.h"
#include "block/driver.h"
#include "block/epoch.h"
#include "block/node.h"
#include "block/queue.h"
#include "block/request.h"
#include "block/sharded-counter.h"
#include "block/tracked.h"
#include "formats/qcow2/format.h"

/* Kinds of metadata, for the check that none is overwritten by something else. */
enum qcow2_area {
    QCOW2_AREA_NONE, /* new clusters: must overlap nothing */
    QCOW2_AREA_HEADER,
    QCOW2_AREA_L1,
    QCOW2_AREA_REFTABLE,
    QCOW2_AREA_SNAPSHOTS,
    QCOW2_AREA_BITMAPS, /* their directory */
    QCOW2_AREA_PLACES,  /* those before are in one place each */
    QCOW2_AREA_L2 = QCOW2_AREA_PLACES,
    QCOW2_AREA_REFBLOCK,
};

/* ---- State ---------------------------------------------------------------------------------- */

/*
 * A part of an L2 table in memory. Entries are big-endian as on disk; they are read without a lock
 * (with extended entries: under it) and written under it.
 */
struct qcow2_slice {
    struct qcow2_table *table;
    unsigned index;       /* in the table */
    pthread_mutex_t lock; /* guards what follows, and writing entries */
    uint64_t dirty;       /* units of the slice that are not written yet */
    bool queued;          /* in dirty_slices */
    bool writing;         /* what was dirty is being written */
    bool barrier;         /* dirty entries refer to what may not be stable */
    bool evicted;         /* not in the table any more: look it up again */
    bool suspect;         /* constant: some entries are not valid; look closely */
    _Atomic bool used;    /* since the clock's hand was here last */
    uint64_t retired;     /* evicted: tag of the epoch after which nobody looks at it */
    TAILQ_ENTRY(qcow2_slice) dirty_entry;
    TAILQ_ENTRY(qcow2_slice) cache_entry;
    _Atomic uint64_t entries[];
};
TAILQ_HEAD(qcow2_slice_list, qcow2_slice);

/* An L2 table some of which is, or was, cached. Lives until the L1 table changes or the close. */
struct qcow2_table {
    pthread_mutex_t lock; /* slices are loaded, the table is allocated or copied */
    uint32_t l1_index;
    _Atomic(struct qcow2_slice *) slices[];
};

/* A refcount block in memory; all under refcount_lock. */
struct qcow2_refblock {
    uint64_t index; /* in the refcount table */
    uint64_t dirty; /* units of the block */
    bool writing;
    bool used;
    uint8_t *data; /* a cluster, as on disk */
    TAILQ_ENTRY(qcow2_refblock) entry;
};
TAILQ_HEAD(qcow2_refblock_list, qcow2_refblock);

/* References that were given up: host clusters, each once per reference. */
struct qcow2_free {
    uint64_t offset; /* of a cluster in the file */
    uint64_t clusters;
    bool discard; /* tell the storage, if the last reference goes */
};

struct qcow2_free_batch {
    GArray *frees; /* struct qcow2_free */
    uint64_t tag;  /* of the epoch that has to be over */
    TAILQ_ENTRY(qcow2_free_batch) entry;
};

struct qcow2_options {
    bool for_check;      /* opened to be checked, damaged as it may be */
    bool lazy_refcounts; /* refcounts are written at the end only; meanwhile the image is dirty */
    bool discard_to_storage; /* pass-discard-request, -snapshot, -other */
    bool discard_snapshot;
    bool discard_other;
    bool discard_no_unref;
    int overlap_check;
};

enum qcow2_overlap { QCOW2_OVERLAP_NONE, QCOW2_OVERLAP_CONSTANT, QCOW2_OVERLAP_CACHED };

struct qcow2 {
    struct block_node *node;
    struct block_node *file;    /* metadata, and data unless there is a data file */
    struct block_node *data;    /* where guest clusters are */
    struct qcow2_header header; /* changes: drained, or header_lock */
    struct qcow2_options options;
    struct qcow2_options old_options; /* before the last reopen, in case that fails */
    bool shows_snapshot; /* instead of the current state, which is never written then */

    /* Constant geometry. Bytes, or powers of two of them. */
    unsigned cluster_bits;
    uint64_t cluster_size;
    bool has_extended_l2;
    bool has_data_file;
    bool data_file_is_raw;
    unsigned subcluster_bits; /* cluster_bits without extended entries */
    unsigned entry_words;     /* 8-byte words of an L2 entry: 1 or 2 */
    unsigned table_bits;      /* an L2 table has 1 << table_bits entries */
    unsigned slice_bits;      /* a slice has 1 << slice_bits entries */
    uint64_t slice_bytes;
    unsigned slice_unit_bits; /* a unit of `dirty` is 1 << bits bytes */
    unsigned refcount_order;
    uint64_t refcount_max;
    unsigned refblock_bits;      /* a block has 1 << refblock_bits refcounts */
    unsigned refblock_unit_bits; /* a unit of `dirty` is 1 << bits bytes */

    struct epoch epoch;                  /* requests in flight */
    struct tracked_requests allocations; /* guest ranges whose mapping is being changed */

    /* L1 table, as it is on disk but in host order; l1_size entries. Pointers change drained. */
    _Atomic uint64_t *l1;
    _Atomic(struct qcow2_table *) *tables; /* by L1 index */
    uint32_t l1_size;
    pthread_mutex_t l1_lock; /* guards writing entries, and l1_dirty; innermost */
    GHashTable *l1_dirty;    /* set of 512-byte sectors of the table, by number */

    /* Cached slices. cache_lock guards lists and counts; innermost. */
    pthread_mutex_t cache_lock;
    struct qcow2_slice_list slices; /* all, in the order of the clock's hand */
    struct qcow2_slice_list retired;
    struct qcow2_slice_list dirty_slices;
    uint64_t slice_count;
    uint64_t slice_max;
    struct sharded_counter l2_hits;
    _Atomic uint64_t l2_misses;

    /* Refcounts and the allocator. */
    pthread_mutex_t refcount_lock;
    uint64_t *reftable; /* host order */
    uint64_t reftable_entries;
    GHashTable *reftable_dirty; /* set of 512-byte sectors */
    GHashTable *refblock_map;   /* index to struct qcow2_refblock */
    struct qcow2_refblock_list refblocks;
    uint64_t refblock_max;
    _Atomic uint64_t refcount_hits, refcount_misses; /* changed under the lock, read without */
    uint64_t free_hint;    /* no cluster below this index is free, of those whose refcounts exist */
    _Atomic uint64_t tail; /* clusters from this index on were never in use; none is free before
                              free_hint. Read without the lock: it only grows */
    bool tail_is_zero;     /* what the file grows by reads as zeroes */
    uint64_t compressed_at; /* where the next compressed data may go; 0: in a new cluster */

    /* What overlap checks know. metadata_lock is innermost. */
    pthread_mutex_t metadata_lock;
    struct {
        uint64_t offset;
        uint64_t bytes;
    } areas[QCOW2_AREA_PLACES];
    GHashTable *metadata; /* host clusters of active L2 tables, refcount blocks: index to areas */

    /* Write-back. */
    pthread_mutex_t commit_lock;
    pthread_mutex_t frees_lock; /* guards the lists; innermost */
    GArray *frees;              /* given up since the last commit began */
    TAILQ_HEAD(, qcow2_free_batch) waiting;
    _Atomic uint64_t pending_free_clusters; /* in both */
    _Atomic bool has_changes;               /* metadata that no commit has written yet */
    _Atomic bool is_marked_dirty;           /* the header has the dirty bit */
    bool needs_repair; /* refcounts and flags may not agree: the dirty bit stays */

    _Atomic bool has_recording_bitmaps; /* stored ones, to be marked before the disk changes */
    pthread_mutex_t bitmap_lock; /* guards their directory; taken with no other of these held */
    pthread_mutex_t header_lock; /* one writes the header at a time; after refcount_lock */
    _Atomic bool is_corrupt;     /* found so: nothing is written any more */
    _Atomic bool is_stopped;     /* nor if it is not known which tables count */

    struct qcow2_snapshot *snapshots; /* changes drained */
    size_t snapshot_count;
    uint64_t snapshot_table_bytes;

    struct qcow2_decompressed *decompressed; /* compress.c's small cache */
};

/* ---- Geometry ------------------------------------------------------------------------------- */

static inline struct qcow2 *qcow2_of(struct block_node *node)
{
    return block_node_state(node);
}

static inline uint64_t qcow2_cluster_start(const struct qcow2 *q, uint64_t offset)
{
    return align_down(offset, q->cluster_size);
}

static inline uint64_t qcow2_in_cluster(const struct qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_size - 1);
}

static inline uint64_t qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->cluster_bits) + !!(bytes & (q->cluster_size - 1));
}

/* Changed parts of a table are kept in 64 bits: a unit of it is 1 << this many bytes. */
static inline unsigned qcow2_unit_bits(uint64_t table_bytes)
{
    return MAX_OF(log2_of(table_bytes), 9u + 6u) - 6;
}

/* Whether nothing is written any more, until the image is opened again. */
static inline bool qcow2_is_stopped(const struct qcow2 *q)
{
    return atomic_load(&q->is_corrupt) || atomic_load(&q->is_stopped);
}

/* Whether requests may change the image. */
static inline bool qcow2_may_write(const struct qcow2 *q)
{
    return !qcow2_is_stopped(q) && !q->options.for_check;
}

/*
 * Each request that changes the disk begins with this. Returns -EIO if nothing is written any
 * more.
 */
int qcow2_begin_change(struct qcow2 *q);

/* The end of the disk's last cluster; what lies beyond, VM state, has no backing file. */
static inline uint64_t qcow2_disk_end(const struct qcow2 *q)
{
    return align_up(q->header.size, q->cluster_size);
}

/* The first guest offset that the L1 table does not cover. */
static inline uint64_t qcow2_covered(const struct qcow2 *q, uint32_t l1_size)
{
    return (uint64_t)l1_size << (q->cluster_bits + q->table_bits);
}

/* Where VM state begins: behind the last L2 table of the disk ("Snapshots", VM state size). */
static inline uint64_t qcow2_vmstate_start(const struct qcow2 *q, uint64_t disk_bytes)
{
    return align_up(disk_bytes, q->cluster_size << q->table_bits);
}

/* L1 entries that a disk of this length needs. */
static inline uint64_t qcow2_l1_entries(const struct qcow2 *q, uint64_t disk_bytes)
{
    return div_round_up(disk_bytes, q->cluster_size << q->table_bits);
}

/* ---- header.c, header-write.c --------------------------------------------------------------- */

void qcow2_header_clear(struct qcow2_header *header);

/*
 * Decode and check the header of an image of file_bytes, of which head holds the first bytes (a
 * whole cluster, or all of the file). Everything in it is bounded afterwards: tables lie in the
 * file, sizes fit. Unknown incompatible features are refused by name; bitmaps that are damaged are
 * given up. Returns a negative errno; clear the header in any case.
 */
int qcow2_header_parse(struct qcow2_header *header, const uint8_t *head, size_t head_bytes,
                       uint64_t file_bytes, GError **error);

/* Read it from the file; clear it in any case. */
int qcow2_header_read(struct qcow2 *q, bool for_check, struct qcow2_header *header, GError **error);

/*
 * Encode a header with its extensions, the feature name table and the backing file's name into a
 * cluster (zeroed before). -ENOSPC with the error set if it does not fit.
 */
int qcow2_header_encode(const struct qcow2_header *header, uint8_t *cluster, GError **error);

/*
 * Write the header and flush it: it holds and says what is true from now on. If that fails, or
 * power is lost, the old one holds or the new one, unless names are too long (header-write.c says
 * more). header_lock held.
 */
int qcow2_header_write(struct qcow2 *q, GError **error);

/*
 * The same with other values; its texts are taken over if that succeeds. If it fails the old ones
 * are written again; if that fails, too, nothing is written to the image any more.
 */
int qcow2_header_replace(struct qcow2 *q, const struct qcow2_header *wanted, GError **error);

/*
 * The same for where the bitmap directory is (count 0: there is none) and the feature that says so.
 * Requests may run: nothing that they look at is written to.
 */
int qcow2_header_set_bitmaps(struct qcow2 *q, uint32_t count, uint64_t offset, uint64_t bytes,
                             GError **error);

/* Write the bytes [from, to) of the header's known fields, but for the backing file's, and flush:
 * they change at one instant. header_lock held. */
int qcow2_header_write_fields(struct qcow2 *q, size_t from, size_t to);

/*
 * The same, where *before is what the header was. If it fails that is written again, so that it
 * holds, on disk and in memory; if that fails, too, nothing is written to the image any more.
 */
int qcow2_header_switch(struct qcow2 *q, const struct qcow2_header *before, size_t from, size_t to);

/* Memory and disk may not agree, though neither is damaged: write nothing any more, and say why. */
void qcow2_stop(struct qcow2 *q, const char *why);

/* Say why the image cannot be changed, if qcow2_may_write says so; returns a negative errno. */
int qcow2_refuse_change(struct qcow2 *q, GError **error);

/* Set or clear incompatible features durably. */
int qcow2_set_incompatible(struct qcow2 *q, uint64_t set, uint64_t clear, GError **error);

/* ---- table-io.c: reading and writing tables ------------------------------------------------- */

/* Read a file that may end inside its last cluster; what is not there is zeroes. */
int qcow2_read_padded(struct block_node *file, void *buffer, uint64_t offset, uint64_t bytes);

/* Read and write metadata: big-endian words, in host order in memory. */
int qcow2_read_words(struct qcow2 *q, uint64_t *words, uint64_t count, uint64_t offset);
int qcow2_write_words(struct qcow2 *q, const uint64_t *words, uint64_t count, uint64_t offset);
/* Bytes as they are. Announce debug events; grow nothing. */
int qcow2_read_metadata(struct qcow2 *q, void *buffer, uint64_t bytes, uint64_t offset);
int qcow2_write_metadata(struct qcow2 *q, const void *buffer, uint64_t bytes, uint64_t offset);

/* Note where a kind of metadata is that lies in one place, or (bytes 0) is nowhere. Any thread. */
void qcow2_area_set(struct qcow2 *q, enum qcow2_area area, uint64_t offset, uint64_t bytes);

/* Note that a host cluster holds an active L2 table or a refcount block, or no longer. */
void qcow2_metadata_add(struct qcow2 *q, uint64_t offset, enum qcow2_area area);
void qcow2_metadata_remove(struct qcow2 *q, uint64_t offset, enum qcow2_area area);
void qcow2_metadata_forget(struct qcow2 *q); /* all of it */
bool qcow2_is_metadata(struct qcow2 *q, uint64_t offset, uint64_t bytes);

/*
 * Before metadata of this kind, or a new cluster (QCOW2_AREA_NONE), is written: if the range
 * overlaps metadata of another kind, the image is damaged: it is marked so and -EIO is returned.
 */
int qcow2_check_overlap(struct qcow2 *q, enum qcow2_area area, uint64_t offset, uint64_t bytes);

/*
 * The image was found damaged: says so in the header (version 3) and in an event, and from now on
 * nothing is written. Returns -EIO. bytes 0: no place is known. Any thread; takes header_lock.
 */
int qcow2_mark_corrupt(struct qcow2 *q, uint64_t offset, uint64_t bytes, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* ---- refcount.c: refcounts ------------------------------------------------------------------- */

int qcow2_refcount_init(struct qcow2 *q, uint64_t cache_bytes, GError **error);
/* Read them anew, when the image becomes writable; nothing has changed if it fails. Drained. */
int qcow2_refcount_reload(struct qcow2 *q, GError **error);
void qcow2_refcount_destroy(struct qcow2 *q);

/* Refcount entry i of a block as on disk. */
uint64_t qcow2_refblock_get(const uint8_t *block, unsigned refcount_order, uint64_t i);
void qcow2_refblock_set(uint8_t *block, unsigned refcount_order, uint64_t i, uint64_t value);

/* The refcount of the host cluster at offset, 0 beyond the table. Returns a negative errno. */
int qcow2_refcount_get(struct qcow2 *q, uint64_t offset, uint64_t *refcount);

/*
 * Add a (signed) amount to the refcounts of the clusters that [offset, offset + bytes) touches, in
 * memory; a negative errno if nothing has been changed. -ERANGE: one would exceed refcount_max. If
 * one would fall below 0, or is to be raised from 0 although it is in use, the image is damaged.
 * Removing takes effect at once: use qcow2_give_up for what stable metadata may still refer to.
 */
int qcow2_refcount_add(struct qcow2 *q, uint64_t offset, uint64_t bytes, int64_t amount);
/* The same for one cluster, by index; refcount_lock held. */
int qcow2_refcount_change(struct qcow2 *q, uint64_t cluster, int64_t amount);

/* A block with its refcount table entry, from the cache; NULL in *block if it does not exist.
 * refcount_lock held. */
int qcow2_refblock_find(struct qcow2 *q, uint64_t index, struct qcow2_refblock **block);
/* A new block of zeroes in memory at a place in the file. refcount_lock held. */
struct qcow2_refblock *qcow2_refblock_new(struct qcow2 *q, uint64_t index, uint64_t offset);
/* Change a refcount and mark the block. refcount_lock held. */
void qcow2_refblock_change(struct qcow2 *q, struct qcow2_refblock *block, uint64_t cluster,
                           uint64_t value);

/* ---- allocate.c ----------------------------------------------------------------------------- */

/*
 * Find free clusters, one after the other: at least one, at most `clusters` (contiguous: exactly so
 * many), give them the refcount 1 in memory, and let the file be long enough for them. *is_new says
 * that they read as zeroes. *got may be NULL with contiguous. Returns a negative errno.
 */
int qcow2_allocate(struct qcow2 *q, uint64_t clusters, bool contiguous, uint64_t *offset,
                   uint64_t *got, bool *is_new);

/* Let the header refer to another refcount table, durably; as qcow2_header_switch. */
int qcow2_switch_reftable(struct qcow2 *q, uint64_t offset, uint32_t clusters);

/* A place for compressed data, perhaps behind other such data; counts a reference to each cluster
 * it touches. */
int qcow2_allocate_bytes(struct qcow2 *q, uint64_t bytes, uint64_t *offset);

/* Take back what qcow2_allocate gave and nothing has referred to. */
void qcow2_unallocate(struct qcow2 *q, uint64_t offset, uint64_t clusters);

/* Make the file at least this long. Any thread. */
int qcow2_grow_file(struct qcow2 *q, uint64_t bytes);

/* ---- commit.c: write-back ------------------------------------------------------------------- */

/*
 * Write all changed metadata back, in the order that the head of this file gives. durable: and
 * flush everything (data too). Returns a negative errno; then what was not written stays changed.
 */
int qcow2_commit(struct qcow2 *q, bool durable);
/* The same, with refcounts that are otherwise written at the end only, and durable. */
int qcow2_commit_all(struct qcow2 *q);

/*
 * Give up a reference to each cluster that [offset, offset + bytes) in the file touches. The entry
 * that referred to them has been changed in memory already; refcounts fall when that is stable and
 * requests in flight have ended.
 */
void qcow2_give_up(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool discard);

/* Give up what an L2 entry refers to. */
void qcow2_give_up_entry(struct qcow2 *q, uint64_t entry, bool discard);

/* Free what can be freed now. */
void qcow2_reclaim(struct qcow2 *q);
/* Commit durably and free all that was given up. Drained, or outside the epoch. */
int qcow2_reclaim_all(struct qcow2 *q);
/* Commit if so much was given up that this is worth while. Outside the epoch. */
void qcow2_commit_if_worth(struct qcow2 *q);

/* ---- l2.c: L1 and L2 tables in memory ------------------------------------------------------- */

int qcow2_l2_init(struct qcow2 *q, uint64_t cache_bytes, uint64_t entry_bytes, GError **error);
/* Read the L1 table (anew); nothing has changed if it fails. Drained; all is committed. */
int qcow2_l1_load(struct qcow2 *q, GError **error);
/* Forget all slices and tables; they are clean. Drained. */
void qcow2_l2_forget(struct qcow2 *q);
void qcow2_l2_destroy(struct qcow2 *q);

/* Take another L1 table, in host order, over; forgets all slices. Drained; all is committed. */
int qcow2_set_l1(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size);

/*
 * The slice with a guest offset's entry, valid until the caller's epoch ends; NULL in *slice if the
 * table is not allocated. Returns a negative errno.
 */
int qcow2_slice_get(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice);

/* Make sure that a guest offset's L2 table exists and may be written; then as qcow2_slice_get. */
int qcow2_slice_get_writable(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice);

/* A slice is dirty: the next commit is to see it. Its lock held. */
void qcow2_slice_queue(struct qcow2 *q, struct qcow2_slice *slice);

/* Index of a guest offset's entry in its slice. */
static inline unsigned qcow2_slice_index(const struct qcow2 *q, uint64_t offset)
{
    return (unsigned)(offset >> q->cluster_bits) & ((1u << q->slice_bits) - 1);
}

/* An entry in host order; bitmap is 0 without extended entries. */
struct qcow2_entry {
    uint64_t descriptor;
    uint64_t bitmap;
};

/* Whether a standard descriptor has a host cluster; in a data file that may be at offset 0. */
static inline bool qcow2_has_host(const struct qcow2 *q, uint64_t descriptor)
{
    return descriptor & QCOW2_OFFSET_MASK || (q->has_data_file && descriptor & QCOW2_COPIED);
}

/* Read an entry. Any thread in the epoch. */
struct qcow2_entry qcow2_entry_get(const struct qcow2 *q, struct qcow2_slice *slice,
                                   unsigned index);

/*
 * Replace the entries of consecutive guest clusters and mark them changed; tables are allocated as
 * needed. barrier: they refer to new clusters, or data that they show was just written. Only who
 * holds these guest clusters in `allocations`, in the epoch. Returns a negative errno; then the
 * first of them may have been replaced.
 */
int qcow2_entries_set(struct qcow2 *q, uint64_t offset, const struct qcow2_entry *entries,
                      unsigned count, bool barrier);

/* ---- map.c: what a guest offset maps to ----------------------------------------------------- */

enum qcow2_kind {
    QCOW2_KIND_UNALLOCATED, /* reads as the backing file */
    QCOW2_KIND_ZERO,
    QCOW2_KIND_DATA, /* at host, in q->data */
    QCOW2_KIND_COMPRESSED,
};

/* What consecutive bytes of the disk are mapped to. */
struct qcow2_run {
    enum qcow2_kind kind;
    uint64_t bytes;      /* from the offset asked for; ends with a cluster if compressed */
    uint64_t host;       /* DATA: of the first byte */
    uint64_t descriptor; /* COMPRESSED: the entry's */
    bool writable;       /* DATA: may be overwritten in place, by the refcount */
    bool is_allocated;   /* there is a host cluster, also if it is not what is read */
};

/* The run that begins at offset, at most bytes long and within one slice. In the epoch. */
int qcow2_map(struct qcow2 *q, uint64_t offset, uint64_t bytes, struct qcow2_run *run);

/* Check an entry of the active tables; damage marks the image and gives -EIO. */
int qcow2_entry_check(struct qcow2 *q, uint64_t offset, struct qcow2_entry entry);
/* The same as a question. */
bool qcow2_entry_is_valid(struct qcow2 *q, uint64_t offset, struct qcow2_entry entry);

/* The entry of a guest offset, zero if it has none; checked if need be. In the epoch. */
int qcow2_entry_find(struct qcow2 *q, uint64_t offset, struct qcow2_entry *entry);

/* Where a compressed entry's data is in the file, in bytes ("Compressed Clusters Descriptor"). */
void qcow2_compressed_range(const struct qcow2 *q, uint64_t descriptor, uint64_t *offset,
                            uint64_t *bytes);
uint64_t qcow2_compressed_descriptor(const struct qcow2 *q, uint64_t offset, uint64_t bytes);
/* The largest host offset a compressed descriptor can hold, plus one. */
uint64_t qcow2_compressed_max(const struct qcow2 *q);

/* ---- read.c, write.c, zero.c: requests ------------------------------------------------------ */

/* Read what guests see, through this layer and the backing file. In the epoch. */
int qcow2_read(struct qcow2 *q, void *buffer, uint64_t offset, uint64_t bytes);
/* Whether a range is known to read as zeroes. In the epoch. */
bool qcow2_reads_as_zero(struct qcow2 *q, uint64_t offset, uint64_t bytes);
/* Write data, allocating; also beyond the disk's end (VM state). In the epoch. */
int qcow2_write(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t bytes);
/* Zeroes to be written; free() them. NULL if there is no memory. */
void *qcow2_zero_buffer(struct qcow2 *q, uint64_t bytes);
/* Whole guest clusters: become unallocated (full), or read as zeroes. For discards, shrinking, VM
 * state. In the epoch. */
int qcow2_discard_clusters(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool full);
/* Write zeroes as data, where the disk does not read as zeroes already. In the epoch. */
int qcow2_write_zero_data(struct qcow2 *q, uint64_t start, uint64_t end);
/* Whole guest clusters read as zeroes afterwards. In the epoch. */
int qcow2_zero_clusters(struct qcow2 *q, uint64_t start, uint64_t end);

/* Driver entry points. */
int qcow2_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                unsigned flags);
int qcow2_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                 unsigned flags);
int qcow2_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags);
int qcow2_discard(struct block_node *node, uint64_t offset, uint64_t bytes);
int qcow2_flush(struct block_node *node);
int qcow2_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                       struct block_extent *extent);

/* ---- codec.c -------------------------------------------------------------------------------- */

/* Compress a cluster; *bytes is the result's length. -ENOSPC if it does not get smaller. */
int qcow2_compress(enum qcow2_compression compression, uint64_t cluster_size, const void *from,
                   void *to, uint64_t *bytes);
/* Decompress exactly a cluster. -EIO if the data is damaged. */
int qcow2_decompress(enum qcow2_compression compression, uint64_t cluster_size, const void *from,
                     uint64_t from_bytes, void *to);

/* ---- compress.c ----------------------------------------------------------------------------- */

int qcow2_compress_init(struct qcow2 *q);
void qcow2_compress_destroy(struct qcow2 *q);

/* Read bytes of a compressed cluster, from the offset in_cluster in it. In the epoch. */
int qcow2_read_compressed(struct qcow2 *q, uint64_t descriptor, uint64_t in_cluster, void *buffer,
                          uint64_t bytes);
/* Write one whole cluster (the disk's last one may be shorter) compressed. In the epoch. */
int qcow2_write_compressed(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t bytes);
/* Forget cached contents: host clusters are about to be used for something else. */
void qcow2_decompressed_forget(struct qcow2 *q, uint64_t host_offset, uint64_t bytes);

/* ---- snapshot.c, snapshot-table.c ----------------------------------------------------------- */

/* Read and check the snapshot table. */
int qcow2_snapshots_load(struct qcow2 *q, GError **error);
void qcow2_snapshots_free(struct qcow2 *q);
/*
 * Write a snapshot table (that replaces q's, which the caller takes over when this succeeded): new
 * clusters, flushed before the header refers to them; the old table's are freed.
 */
int qcow2_snapshots_store(struct qcow2 *q, const struct qcow2_snapshot *snapshots, size_t count,
                          GError **error);
void qcow2_snapshot_list_clear(struct qcow2_snapshot *snapshots, size_t count);
/* An ID that no snapshot has; the caller frees it. */
char *qcow2_snapshot_new_id(struct qcow2 *q);
/* By ID, or else by name. */
struct qcow2_snapshot *qcow2_snapshot_find(struct qcow2 *q, const char *id_or_name);

int qcow2_snapshot_create(struct block_node *node, const struct block_snapshot_info *info,
                          GError **error);
int qcow2_snapshot_apply(struct block_node *node, const char *id, GError **error);
int qcow2_snapshot_delete(struct block_node *node, const char *id, GError **error);
int qcow2_snapshot_list(struct block_node *node, struct block_snapshot_info **list, size_t *count);
int qcow2_snapshot_load(struct block_node *node, const char *id, GError **error);
int qcow2_vmstate_read(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes);
int qcow2_vmstate_write(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes);

/* Make the L1 table have at least so many entries (disk growth, VM state). Drained. */
int qcow2_grow_l1(struct qcow2 *q, uint64_t entries, GError **error);

/* ---- check.c and the other check-*.c -------------------------------------------------------- */

/*
 * Repair an image that has the dirty bit, during its opening for writing: before tables and
 * refcounts are read. The header is up to date afterwards.
 */
int qcow2_repair_dirty(struct qcow2 *q, GError **error);

int qcow2_check(struct block_node *node, unsigned repair, struct block_check_result *result,
                block_progress *progress, void *progress_data, GError **error);

/* ---- reopen.c: beginning and ending to write ------------------------------------------------ */

/* Whether the image's state lets it be written, if it is opened for that; repairs what it has to.
 */
int qcow2_check_state(struct qcow2 *q, GError **error);
/* What a writer has to do first ("Header", autoclear_features; "Bitmap directory", in_use). */
int qcow2_begin_writing(struct qcow2 *q, GError **error);
/* Write all that is in memory only, so that the image is clean. Drained. */
int qcow2_write_all_back(struct qcow2 *q);
/* Cut off what the file was made longer than is used. All is written back; drained. */
void qcow2_trim_file(struct qcow2 *q);

/* The node is to become writable or read-only, or stay what it is. */
int qcow2_reopen_prepare(struct qcow2 *q, const struct block_node_options *options, GError **error);
int qcow2_reopen_begin_writing(struct block_node *node, GError **error);

/* ---- create.c, resize.c, amend.c ------------------------------------------------------------ */

struct qcow2_create_options {
    struct block_node *file, *data_file; /* borrowed */
    char *data_file_name;
    uint64_t size;
    int version;
    char *backing_file;
    char *backing_format;
    uint64_t cluster_size;
    int preallocation;
    bool lazy_refcounts;
    uint64_t refcount_bits;
    int compression;
    bool data_file_raw;
    bool extended_l2;
};
extern const struct block_option qcow2_create_option_table[];
int qcow2_create(void *values, block_progress *progress, void *progress_data, GError **error);
/* Preallocate what was created. */
int qcow2_create_contents(void *values, block_progress *progress, void *progress_data,
                          GError **error);

int qcow2_set_length(struct block_node *node, uint64_t length,
                     enum block_preallocation preallocation, block_progress *progress,
                     void *progress_data, GError **error);
/* Allocate what [offset, offset + bytes) of the disk needs; for METADATA and more. */
int qcow2_preallocate(struct qcow2 *q, uint64_t offset, uint64_t bytes,
                      enum block_preallocation preallocation, block_progress *progress,
                      void *progress_data, GError **error);

struct qcow2_amend_options {
    int version;
    char *backing_file;
    char *backing_format;
    int lazy_refcounts;
    uint64_t refcount_bits;
    char *data_file;
    int data_file_raw;
};
extern const struct block_option qcow2_amend_option_table[];
int qcow2_amend(struct block_node *node, void *values, block_progress *progress,
                void *progress_data, GError **error);
/* Record another backing file, or with NULL none. */
int qcow2_change_backing_file(struct block_node *node, const char *backing_file,
                              const char *backing_format, GError **error);

#endif
