/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A point in time on disks in memory under fault nodes, with the contents of its moment beside.
 * For quick tests: the main loop does not run. See memory-driver.h and fault-driver.h.
 */
#ifndef LIVEBLK_TESTS_LIB_POINT_RIG_H
#define LIVEBLK_TESTS_LIB_POINT_RIG_H

#include <stdatomic.h>
#include <stdint.h>

#include "block/align.h"
#include "block/copy-map.h"
#include "block/device.h"
#include "block/point-in-time.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"

#define POINT_RIG_UNIT COPY_UNIT

struct point_rig {
    uint64_t length;
    uint8_t *old; /* the contents of the moment */
    struct block_node *source;
    struct block_device *guest; /* on the source; drains wait for its requests */
    struct block_node *scratch; /* NULL: none */
    struct scratch_budget budget;
    struct point_in_time *point;
    _Atomic unsigned changes; /* calls of on_change */
    _Atomic unsigned errors;  /* calls of on_scratch_error */
    _Atomic int last_error;
    _Atomic int action; /* what it answers */
    uint8_t next_byte;
};

/* Register the drivers; once. */
void point_rig_init(void);

/*
 * A source full of data, each unit different; scratch unless with_scratch is false. The point in
 * time is made and installed with these options, of which source, scratch, owner and callbacks are
 * filled in here, and the budget too if rig->budget.max_bytes gets set later.
 */
struct point_rig *point_rig_new(uint64_t length, bool with_scratch);
void point_rig_start(struct point_rig *rig, struct point_in_time_options options);
#define POINT_RIG_START(rig, ...) point_rig_start(rig, (struct point_in_time_options){__VA_ARGS__})

/* Uninstalls and frees all; checks that the budget is given back and that nobody uses the nodes. */
void point_rig_free(struct point_rig *rig);

/* Before the start: make a range zeroes. */
void point_rig_zero(struct point_rig *rig, uint64_t offset, uint64_t bytes);

/* A guest's write of new data, or of zeroes, or discard; returns its status. */
int point_rig_write(struct point_rig *rig, uint64_t offset, uint64_t bytes);

/* The same on another thread; await returns its status. */
struct point_rig_guest;
struct point_rig_guest *point_rig_write_begin(struct point_rig *rig, uint64_t offset,
                                              uint64_t bytes);
bool point_rig_write_ended(struct point_rig_guest *guest);
int point_rig_write_await(struct point_rig_guest *guest);

/* Read and compare with the moment; in one piece, or unit by unit. */
void point_rig_check(struct point_rig *rig, uint64_t offset, uint64_t bytes);
void point_rig_check_all(struct point_rig *rig);
int point_rig_read(struct point_rig *rig, uint64_t offset, uint64_t bytes);

/* Wait until info says so many bytes. */
void point_rig_wait_memory(struct point_rig *rig, uint64_t bytes);
void point_rig_wait_scratch(struct point_rig *rig, uint64_t bytes);

struct point_in_time_info point_rig_info(struct point_rig *rig);

#endif
