/* SPDX-License-Identifier: BSD-3-Clause */
/* What 'backup --to' and 'mirror --to' name: a file, a disk of an NBD server, or a node the server
 * has. */
#ifndef LIVEBLK_CLI_TARGET_H
#define LIVEBLK_CLI_TARGET_H

#include <glib.h>
#include <stdbool.h>

#include "block/cleanup.h"

enum target_kind {
    TARGET_FILE,
    TARGET_NBD,
    TARGET_NODE,
};

struct target {
    enum target_kind kind;
    char *name; /* absolute path, URI or node name */
};

/*
 * Understand the text; nothing is opened. Prefixes: "node:", "file:", "nbd://" and the other
 * schemes of NBD; anything else is a path. A file that is there is refused unless existing is
 * set, so that no backup is lost to a mistyped name.
 */
struct target *target_parse(const char *text, bool existing, GError **error);
void target_free(struct target *target);

static inline void target_cleanup(struct target **target)
{
    target_free(*target);
}
/* One that is freed at the end of the scope. */
#define AUTO_TARGET CLEANUP(target_cleanup) struct target *

#endif
