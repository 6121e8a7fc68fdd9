/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of torture-tracking-loss share (tests/torture/tracking-loss.c says what it is). */
#ifndef LIVEBLK_TESTS_TORTURE_TRACKING_LOSS_H
#define LIVEBLK_TESTS_TORTURE_TRACKING_LOSS_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/align.h"
#include "block/device.h"
#include "block/node.h"
#include "block/tracking-file.h"
#include "block/tracking.h"
#include "tests/lib/random.h"

#define DISK_MAX (6 * MIB)
#define SECTOR   UINT64_C(512)
#define WRITERS  8

enum ending { END_CLEAN, END_KILL, END_POWER, END_DYING, ENDINGS };
extern const char *const loss_ending_names[];

#define KINDS 2 /* of disks */
extern const char *const loss_kind_names[];

/*
 * What is known of a checkpoint or bitmap: a command that was not answered may have had its way. A
 * pending one (a session's) is never there afterwards.
 */
enum loss_state { ABSENT, PENDING, MAYBE_ADDED, ADDED, MAYBE_REMOVED };

struct world {
    char *directory, *disk_path;
    uint64_t length;
    struct tracking_geometry geometry;
    struct test_random random;

    bool is_qcow2;      /* the disk; else it is raw. Also its index among kinds */
    enum ending ending; /* of this session */
    bool loses;         /* its disk can lose writes, and then have no other length */
    struct block_node *root;
    struct block_device *device;
    struct change_tracker *tracker;
    _Atomic bool stop;
    struct writer {
        struct world *world;
        struct test_random random;
        pthread_t thread;
    } writers[WRITERS];
};

/* ---- Storage (tracking-loss-storage.c) ------------------------------------------------------- */

/* The tracking file's path; storage knows what of the files there is durable. */
extern char *loss_path;

/* Before any thread: all durable operations of tracking files come by here from now on. */
void loss_begin(void);
/* A new directory, with another path. */
void loss_begin_world(struct test_random random);

/* Zeroed memory that is shared with children. */
void *loss_share(size_t bytes);

/* The process, or the power with it, goes when so many durable operations have been made; or now.
 */
void loss_arm(bool with_power, unsigned operations);
void loss_happen(bool with_power);
/* It has: nothing counts any more. */
bool loss_has_happened(void);
/* Afterwards, all being closed: put in place what was left of the tracking file. */
void loss_put_remains(void);

/* Read a file as far as it and the buffer go; returns how many bytes. */
uint64_t loss_read_file(const char *path, uint8_t *buffer, uint64_t size);

/* ---- Disks (tracking-loss-disk.c) ------------------------------------------------------------ */

/* A new one, of zeroes; and its root for a session, new. */
void loss_disk_make(struct world *world);
struct block_node *loss_disk_open(struct world *world);

/*
 * What it holds, into a buffer of DISK_MAX; returns its length. While it is open and stands still
 * and has lost nothing; or while it is closed, whatever it lost: an image must be openable and not
 * corrupt then.
 */
uint64_t loss_disk_read_open(const struct world *world, uint8_t *buffer);
uint64_t loss_disk_read_closed(const struct world *world, uint8_t *buffer);

/* ---- Bitmaps (tracking-loss-bitmaps.c) ------------------------------------------------------- */

void loss_bitmaps_begin(void);
void loss_bitmaps_begin_world(void);
/* The disk was opened and is tracked: its bitmaps are loaded, and hold what they must. */
void loss_bitmaps_open(struct world *world);
/* Something is done to them as commands do it; not drained. */
void loss_bitmaps_administer(struct world *world);
/* Each that was there holds every granule in which the disk differs from its moment. */
void loss_bitmaps_judge(const struct world *world, const struct tracking_file *file,
                        const uint8_t *disk);
void loss_bitmaps_report(void);

#endif
