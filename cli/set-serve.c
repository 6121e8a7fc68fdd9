/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk backup serve: a backup over NBD, read-only, with every checksum looked at. */
#include <string.h>

#include "cli/serve.h"
#include "cli/set.h"
#include "sets/backup-node.h"
#include "sets/copy.h"

/* Whether it can be opened at all: the error is better here than nbdkit's. */
static bool can_open(const struct set *set, const char *id, const char *disk, GError **error)
{
    GError *cause = NULL;
    AUTO(backup_chain) chain = backup_chain_open(set, id, disk, &cause);

    if (!chain) {
        set_failed(error, cause);
    }
    return chain;
}

static char *describe_disk(const char *directory, GError **error)
{
    GError *cause = NULL;
    AUTO(set) set = set_open(directory, SET_READ, &cause);
    const char *disk, *id;

    if (!set) {
        set_failed(error, cause);
        return NULL;
    }
    if (!set_choose(set, &disk, &id, error) || !can_open(set, id, disk, error)) {
        return NULL;
    }
    g_autofree char *path = set_escape_option(set->path);
    return g_strdup_printf("name=%s,read-only=on,format=raw,file.driver=backup-set,"
                           "file.directory=%s,file.backup=%s,file.disk=%s",
                           disk, path, id, disk);
}

enum exit_status set_serve(const struct set_call *call, GError **error)
{
    g_autofree char *disk = describe_disk(call->invocation->arguments[1], error);
    char *const disks[] = {disk, NULL};
    const struct serve_options options = {
        .name = (char *)"backup",
        .socket = set_wishes.socket,
        .read_only = true,
    };

    if (!disk) {
        return EXIT_FAILED;
    }
    copy_shut_down();
    return serve_disks(call->invocation, &options, disks, error);
}
