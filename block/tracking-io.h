/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How tracking files reach their storage: a few functions, so that tests can lose power in between.
 * All return 0 or a negative errno.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_IO_H
#define LIVEBLK_BLOCK_TRACKING_IO_H

#include <stdint.h>

#include "block/guarded-mapping.h"

struct tracking_io {
    /* Write all of it; it is on stable storage on return. */
    int (*write_durably)(int fd, const void *bytes, uint64_t size, uint64_t offset);
    /* Bring a mapping of the file, which begins at this offset, to stable storage. */
    int (*sync_mapping)(int fd, struct guarded_mapping *mapping, uint64_t offset, uint64_t size);
    /* All of the file, its length too. */
    int (*sync_file)(int fd);
    /* The same of the disk's own file. */
    int (*sync_disk)(int fd);
    /* As tracking_witness_put: on the disk's storage, not the tracking file's. */
    int (*put_witness)(const char *disk_path, const uint8_t *uuid);
    /* What the host calls this boot: 16 bytes. */
    void (*boot_id)(uint8_t *id);
    /* How long a guest's write waits for this storage before the map is given up. */
    uint64_t timeout_ns;
};

/* Used for all of them. Tests put others in before the first file is opened. */
extern struct tracking_io tracking_io;

/* Read all of it. -EIO where the file ends before. */
int tracking_read(int fd, void *bytes, uint64_t size, uint64_t offset);

#endif
