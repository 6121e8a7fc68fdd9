/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A guest's disk under many writers, with a model of it beside, and backups of it: what the tests
 * of the data path stand on. The main thread must run (rig_main).
 */
#ifndef LIVEBLK_TESTS_LIB_BACKUP_RIG_H
#define LIVEBLK_TESTS_LIB_BACKUP_RIG_H

#include <glib.h>

#include "block/device.h"
#include "jobs/backup.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/model.h"
#include "tests/lib/random.h"

#define RIG_WRITERS_MAX 16
#define RIG_SECTOR      512

struct rig;

struct rig_writer {
    struct rig *rig;
    uint32_t number; /* from 1 */
    struct test_random random;
    pthread_t thread;
};

struct rig {
    char *directory;
    uint64_t length;
    struct block_node *source; /* a fault node on a raw file, unless it is the caller's */
    struct block_device *device;
    struct model *model;
    struct test_random random;

    struct rig_writer writers[RIG_WRITERS_MAX];
    unsigned writer_count;
    _Atomic bool stop;
    _Atomic uint64_t requests; /* answered */
    _Atomic uint64_t failed;   /* of these */
    uint64_t max_bytes;        /* of a writer's request; set before rig_write */
    _Atomic uint64_t end;      /* where writers' requests end, if not before: by the model */
};

/* g_test's main() with the drivers registered and the main thread running. */
int rig_main(int argc, char **argv, void (*add_tests)(void));

/*
 * A disk of zeroes with a device 'vda', its node 'source'. alignment: request size of the disk (1
 * to 4096); length is a multiple of it and of 512.
 */
struct rig *rig_new(uint64_t length, uint64_t alignment);
/* The same by other names, for rigs that live side by side. */
struct rig *rig_new_named(const char *device, const char *node, uint64_t length,
                          uint64_t alignment);
/* On a node of the caller's that reads as zeroes. It and the directory are the rig's from now on.
 */
struct rig *rig_new_on(const char *device, char *directory, struct block_node *source);
/* A disk that is full of data, and a target of rig_target's that is full of other bytes. */
struct rig *rig_new_with_target(uint64_t length, struct block_node **target);
/* Stops the writers; checks that the disk equals the model and that nobody uses its node. */
void rig_free(struct rig *rig);
/* The same; nobody uses the target, of which the reference is dropped, and its faults are gone. */
void rig_free_with_target(struct rig *rig, struct block_node *target);

/* One guest request of the writer's choice: writes, zeroes, discards, flushes, reads. */
void rig_step(struct rig_writer *writer);
/* A write through device and model; returns the device's answer. */
int rig_pwrite(struct rig *rig, uint32_t writer, uint64_t offset, uint64_t bytes);
/* Zero a part of it so, which must succeed. */
void rig_zero(struct rig *rig, uint64_t offset, uint64_t bytes);
/* Write all of the disk once. */
void rig_fill(struct rig *rig);

/* Start so many threads that call rig_step() until rig_stop(). */
void rig_write(struct rig *rig, unsigned writers);
void rig_stop(struct rig *rig);
/* Wait until the guest has had so many more answers. */
void rig_wait_requests(struct rig *rig, uint64_t more);

/* A new target, a fault node on a file of the disk's length; junk: full of other bytes. */
struct block_node *rig_target(struct rig *rig, const char *name, bool junk);

/* The default options of a full backup, with policy report. The id is not copied. */
struct backup_options rig_options(struct rig *rig, const char *id, struct block_node *target);

/*
 * Start backups at one moment and, unless snapshot is NULL, take the model's snapshot of it. All
 * are JOB_MANUAL_DISMISS, started, and the caller owns the references.
 */
void rig_backup(struct rig *rig, const struct backup_options *options, size_t count,
                struct job **jobs, struct model **snapshot);

/* Wait until a job is in this state, or has concluded; the state is returned. */
enum job_status rig_wait_status(struct job *job, enum job_status status);

/*
 * Wait for the end of a job, dismiss it and drop the reference. Returns its error message, which
 * the caller frees, or NULL if it succeeded; then its progress was complete.
 */
char *rig_end(struct job *job);

/* The same; it must have succeeded, or failed with a message that has this part. */
void rig_end_well(struct job *job);
void rig_end_badly(struct job *job, const char *part);

/* Wait until an error has stopped a job, and let it go on. */
void rig_resume_when_stopped(struct job *job);

/* The node holds what the model says. */
void rig_assert_equal(struct model *model, struct block_node *node);

/*
 * Nobody claims the node, it has no notifier and no bitmap, and ours is the last reference; drops
 * it.
 */
void rig_assert_unused(struct block_node *node);

/* Only the device uses the source, and no notifier and no bitmap are left. */
void rig_assert_source_quiet(struct rig *rig);

/* All that a node holds; the caller frees it. And: it still holds that. */
char *rig_contents(struct block_node *node);
void rig_assert_contents(struct block_node *node, const char *contents);

#endif
