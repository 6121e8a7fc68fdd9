/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tracking file that is open: its map, its log of active extents, its directory, and what binds
 * it to a disk (docs/tracking.md).
 *
 * Threads. The map and the log say for themselves. All else is for one thread at a time, and what
 * gives the map another length or other epochs (block/tracking-rebuild.h) for a time when nothing
 * is being marked: the disk is drained.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_FILE_H
#define LIVEBLK_BLOCK_TRACKING_FILE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/change-map.h"
#include "block/cleanup.h"
#include "block/extent-log.h"
#include "block/guarded-mapping.h"
#include "block/tracking-format.h"
#include "block/tracking-layers.h"

/* What a file holds, read without changing it. */
struct tracking_contents {
    struct tracking_header header;
    unsigned copy;    /* which of the two headers it is */
    bool is_doubtful; /* the other one is damaged, and may have been the newer one */
    struct tracking_directory *directory;
    uint64_t *slots;                /* of the log; header.extents of them */
    enum tracking_loss marked_loss; /* a server gave the map up and could say no more */
};

/*
 * Read and check all but the map. On error *loss says how it is lost: foreign (also: a version
 * that is not known) or damaged. The caller clears contents in any case.
 */
int tracking_contents_read(int fd, struct tracking_contents *contents, enum tracking_loss *loss,
                           GError **error);
void tracking_contents_clear(struct tracking_contents *contents);

/* The directory of a file that may be damaged elsewhere; NULL: it cannot be read. */
struct tracking_directory *tracking_contents_salvage(int fd);

/* How a new map is to be. 0: the default. */
struct tracking_geometry {
    uint64_t granule;
    uint64_t extent;
    uint32_t extents;
};
/* Fill in defaults and check; errors name the options as users know them. */
int tracking_geometry_check(struct tracking_geometry *geometry, GError **error);

struct tracking_file {
    _Atomic unsigned references;
    int fd;
    char *path;
    char *new_path;                /* what it is called until it has that name; NULL: nothing */
    struct tracking_header header; /* as it was written last */
    unsigned copy;                 /* where */
    /* Of the header, and never changed: guests and the log's thread look while it is written. */
    uint8_t uuid[TRACKING_UUID_BYTES];
    unsigned extent_shift;
    uint64_t map_offset, map_bytes;
    struct tracking_directory *directory;
    bool has_dropped;              /* bitmaps, which the directory on storage has still */
    struct guarded_mapping *start; /* of the file, with the page of marks */
    struct guarded_mapping *mapping;
    struct change_map map;
    struct extent_log log;
    bool is_given_up; /* nobody knows what a crash leaves of it: the map is lost */
    /* A reference to a file that may have its place after a power loss, or take it yet; or NULL. */
    _Atomic(struct tracking_file *) successor;
};

/*
 * Make a new file for a disk of this length, in the place of what may be there, which goes only
 * when the new one is on stable storage. Everything counts as unchanged. disk_path may be NULL.
 * NULL with the error set.
 */
struct tracking_file *tracking_file_create(const char *path, uint64_t length,
                                           const struct tracking_geometry *geometry,
                                           const char *disk_path,
                                           const struct tracking_identity *disk, GError **error);

/* What a disk is asked when its map is opened and closed. */
struct tracking_disk {
    uint64_t length;
    const char *path;                  /* NULL: it is no file */
    struct tracking_identity identity; /* from before the disk was opened */
    const GPtrArray *layers;           /* what it lies on besides; NULL: nothing is known of that */
    /* Read TRACKING_SAMPLE_BYTES or less, as a guest would. */
    int (*read)(void *data, void *buffer, uint64_t offset, uint64_t bytes);
    void *data;
};

/*
 * Open the file of a disk, recover what a crash left, and mark it as being in use, durably. If the
 * map says nothing of this disk any more, NULL, with *loss and the error saying why and nothing
 * changed; -ENOENT if there is no file.
 */
struct tracking_file *tracking_file_open(const char *path, const struct tracking_disk *disk,
                                         enum tracking_loss *loss, GError **error);

/* The disk stands still and can be read: keep samples of it, for whoever opens the file next. */
void tracking_file_take_samples(struct tracking_file *file, const struct tracking_disk *disk);

/*
 * The disk is closed, and this is its identity: write what is left and mark the file as closed
 * cleanly. Frees file, also on error.
 */
int tracking_file_close(struct tracking_file *file, const struct tracking_identity *disk,
                        GError **error);

/* Free it and leave the file as a dying process would, once nobody else uses it. */
void tracking_file_unref(struct tracking_file *file);
struct tracking_file *tracking_file_ref(struct tracking_file *file);

/*
 * The map is lost: who opens the file after this process died finds that out. At once and without
 * waiting for anything. Any thread.
 */
void tracking_file_note_loss(struct tracking_file *file, enum tracking_loss loss);

/*
 * The same, durably; a file that cannot be marked is removed. May block on bad storage. A negative
 * errno, and a warning: not even that is possible.
 */
int tracking_file_mark_lost(struct tracking_file *file, enum tracking_loss loss);

/* The same for a file that cannot be opened as one, and whose disk is written all the same. */
int tracking_file_condemn(const char *path, enum tracking_loss loss);

/*
 * Another one has taken its place and name; by another name (a hard link) it may be there still,
 * and what changes from now on is not in it: it says so, as far as its storage lets it.
 */
void tracking_file_retire(struct tracking_file *file);

/*
 * Write this directory, and the current epoch, durably, waiting for tracking_io.timeout_ns at most.
 * On success it is the file's; on error nothing has changed and it stays the caller's; but see
 * is_given_up.
 */
int tracking_file_store_directory(struct tracking_file *file, struct tracking_directory *directory,
                                  GError **error);

/*
 * The bitmaps are no use to anybody: the directory has none, and no header is written any more
 * without that. With nobody else looking at it.
 */
void tracking_file_drop_bitmaps(struct tracking_file *file);

#endif
