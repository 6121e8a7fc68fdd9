/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Small files that are there as a whole or not at all, whenever the power fails. Errors are
 * negative errnos with a sentence that names the file.
 */
#ifndef LIVEBLK_SETS_DURABLE_H
#define LIVEBLK_SETS_DURABLE_H

#include <glib.h>
#include <stdint.h>

/* A new file with these contents, on stable storage but for its name. Mode 0600. */
int durable_create(const char *path, const void *contents, uint64_t bytes, GError **error);

/* What is in a file, or was in one that it replaces: a name that is there afterwards says the
 * contents. */
int durable_replace(const char *path, const void *contents, uint64_t bytes, GError **error);

/* Rename inside one folder, durably. */
int durable_rename(const char *from, const char *to, GError **error);

/* Remove a file, if it is there. Not durable: durable_sync_folder. */
int durable_remove(const char *path, GError **error);

/* What was made, renamed and removed in a folder, and a file's data. */
int durable_sync_folder(const char *path, GError **error);
int durable_sync_file(const char *path, GError **error);

/*
 * All of a file that has to be this long; the caller frees. NULL with the error set, -ENOENT if it
 * is not there, -EBADMSG if its size is another one.
 */
uint8_t *durable_read(const char *path, uint64_t bytes, GError **error);

#endif
