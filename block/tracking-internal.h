/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files behind block/tracking-file.h share. */
#ifndef LIVEBLK_BLOCK_TRACKING_INTERNAL_H
#define LIVEBLK_BLOCK_TRACKING_INTERNAL_H

#include "block/tracking-file.h"

/* What of the header stays as it is: once it is filled in, before anything is written. */
void tracking_file_note_layout(struct tracking_file *file);

/* Map the map of a file whose header is filled in, and make its log ready. Errors as sentences. */
int tracking_file_map(struct tracking_file *file, GError **error);
void tracking_file_unmap(struct tracking_file *file);

/* Write this header, with the next sequence number, in the place of the older copy; durably. */
int tracking_file_write_header(struct tracking_file *file, const struct tracking_header *header,
                               GError **error);

/* Bring the name of a file to stable storage: 0 or a negative errno. */
int tracking_file_sync_name(const char *path);

/* Make the log on storage an empty one. */
int tracking_file_write_empty_log(struct tracking_file *file, GError **error);

int tracking_file_sync_map(struct tracking_file *file, GError **error);

/* Lock a file against other processes. -EAGAIN, with the error set, if one has it. */
int tracking_file_lock(int fd, const char *path, GError **error);

#endif
