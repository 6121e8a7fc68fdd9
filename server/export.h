/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Exports: what a client connects to by name, whichever transport carries it: the devices, and the
 * views' DEVICE@VIEW (server/views.h), and those of sessions once more as DEVICE@SESSION~changes,
 * whose block status tells what changed (server/sessions.h). The first device is also the default
 * export "".
 *
 * A connection holds a handle. Its functions are called from many threads at once and return 0
 * or a negative errno.
 */
#ifndef LIVEBLK_SERVER_EXPORT_H
#define LIVEBLK_SERVER_EXPORT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/driver.h"

struct export_handle;

struct export_entry {
    char *name;
    char *description;
};

/* The exports in order, terminated by an entry without name; free with export_list_free. */
struct export_entry *export_list(void);
void export_list_free(struct export_entry *list);

/* The name of the default export (the first device), or NULL; the caller frees. */
char *export_default_name(void);

/* Open an export by name ("" is the default one). read_only: refuse writes on this handle. */
struct export_handle *export_open(const char *name, bool read_only, GError **error);
void export_close(struct export_handle *handle);

/* The handle is no client's: it offers what it is for to those that come. Of views that counts. */
void export_offer(struct export_handle *handle);

/*
 * Open a node that is to be served although it is no device's, perhaps more than once. Not the main
 * thread, nor to be closed there.
 */
struct export_handle *export_open_node(struct block_node *node, bool read_only, GError **error);

/*
 * For one more client of what this handle is for, with the length it has now. The handle outlives
 * it. NULL with the error set: what it is for has gone, even if there is another one of its name.
 */
struct export_handle *export_open_again(struct export_handle *handle, GError **error);

/* The node it shows just now: a new reference, or NULL. */
struct block_node *export_root(struct export_handle *handle);

const char *export_description(struct export_handle *handle);

/* The length when the handle was opened: a client's view of the size never changes under it. */
uint64_t export_length(struct export_handle *handle);
bool export_is_read_only(struct export_handle *handle);
/* Sizes to tell clients, in bytes. */
void export_block_size(struct export_handle *handle, uint32_t *minimum, uint32_t *preferred,
                       uint32_t *maximum);

int export_pread(struct export_handle *handle, void *buffer, uint64_t offset, uint64_t bytes);
int export_pwrite(struct export_handle *handle, const void *buffer, uint64_t offset, uint64_t bytes,
                  bool fua);
/* flags: BLOCK_REQUEST_FUA, _MAY_UNMAP, _NO_FALLBACK */
int export_write_zeroes(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                        unsigned flags);
int export_discard(struct export_handle *handle, uint64_t offset, uint64_t bytes, bool fua);
int export_flush(struct export_handle *handle);
int export_prefetch(struct export_handle *handle, uint64_t offset, uint64_t bytes);
/*
 * Of DEVICE@SESSION~changes: what is to be moved is data, or zeroes; the rest is
 * EXPORT_STATUS_UNCHANGED, a hole to clients, and holds what the view holds.
 */
#define EXPORT_STATUS_UNCHANGED (1u << 31)
int export_block_status(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent);

/* Which layer a range is from: 0 none, 1 the top, and so on. *range_bytes is at most `bytes`. */
int export_allocation_depth(struct export_handle *handle, uint64_t offset, uint64_t bytes,
                            uint64_t *range_bytes, unsigned *depth);

#endif
