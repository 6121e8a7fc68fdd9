/* SPDX-License-Identifier: BSD-3-Clause */
/* Rules for who may connect that are in a file; see server/authorization.h. */
#ifndef LIVEBLK_SERVER_AUTHORIZATION_FILE_H
#define LIVEBLK_SERVER_AUTHORIZATION_FILE_H

#include <glib.h>
#include <stdbool.h>

struct authorization_file;

/* As authorization_from_file. */
struct authorization_file *authorization_file_open(const char *filename, bool refresh,
                                                   GError **error);
/* Any thread. May read the file. */
bool authorization_file_allows(struct authorization_file *file, const char *peer);
void authorization_file_close(struct authorization_file *file); /* NULL: nothing */

#endif
