/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files behind block/tracking-file.h share. */
#ifndef LIVEBLK_BLOCK_TRACKING_INTERNAL_H
#define LIVEBLK_BLOCK_TRACKING_INTERNAL_H

#include "block/tracking-file.h"

/* At this many epochs before the end a new file is made when there is an occasion. */
#define TRACKING_EPOCHS_LEFT 64

/* A file that is open by this descriptor, which it takes: one reference. */
struct tracking_file *tracking_file_new_open(const char *path, int fd);

/* A new file, locked and empty, that is to have this name. NULL with the error set. */
struct tracking_file *tracking_file_new(const char *path, GError **error);

/* Write zeroes where its header, which is filled in, says that something will be, and the log. */
int tracking_file_allocate(struct tracking_file *file, GError **error);

/*
 * The directory and both copies of the header: no old one, or none, is to be found if one gets
 * damaged. All of the file is on stable storage then.
 */
int tracking_file_write_heads(struct tracking_file *file, GError **error);

/*
 * Give a new file its name, instead of the one that is there, which goes. If it is_given_up after
 * an error, a power loss may leave either of them there: neither may be believed.
 */
int tracking_file_install(struct tracking_file *file, GError **error);

/* What a process left that died while it made a file for this path. */
int tracking_file_remove_left_over(const char *path, GError **error);

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
