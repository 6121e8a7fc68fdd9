/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shared file mappings whose storage may fail without killing the process.
 *
 * A page of a mapping that cannot be read or written back (an I/O error, a full file system, a
 * file that somebody made shorter) raises SIGBUS. For mappings made here the handler puts an empty
 * page of memory in the place of it, notes that the mapping is broken, and lets the thread go on;
 * for any other address it does what was done before it was installed.
 */
#ifndef LIVEBLK_BLOCK_GUARDED_MAPPING_H
#define LIVEBLK_BLOCK_GUARDED_MAPPING_H

#include <stdbool.h>
#include <stdint.h>

/* There can be so many at a time. */
#define GUARDED_MAPPINGS_MAX 8192

struct guarded_mapping;

/*
 * Map bytes of a file from offset on (a multiple of 64 KiB), readable and writable. All of it is
 * touched now, and kept in memory if the process may lock that much. Returns NULL with errno set;
 * EUSERS: there are GUARDED_MAPPINGS_MAX.
 */
struct guarded_mapping *guarded_mapping_new(int fd, uint64_t offset, uint64_t bytes);
void guarded_mapping_free(struct guarded_mapping *mapping);

void *guarded_mapping_address(const struct guarded_mapping *mapping);

/* True since a page was lost: what is in the mapping is not what the file holds. Any thread. */
bool guarded_mapping_is_broken(const struct guarded_mapping *mapping);

/* Bring all of it to stable storage. A negative errno if that fails or it is broken. May block. */
int guarded_mapping_sync(struct guarded_mapping *mapping);

#endif
