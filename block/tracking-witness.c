/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-witness.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/tracking-format.h"

static char *name_of(const uint8_t *uuid)
{
    g_autofree char *text = tracking_uuid_text(uuid);

    return g_strconcat("user.liveblk.tracking-lost.", text, NULL);
}

int tracking_witness_put(const char *path, const uint8_t *uuid)
{
    g_autofree char *name = name_of(uuid);
    AUTO_CLOSE int fd = path ? open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    struct stat information;

    if (fd < 0) {
        return path ? -errno : -ENOENT;
    }
    if (fstat(fd, &information) < 0 || !S_ISREG(information.st_mode)) {
        return -EOPNOTSUPP;
    }
    return fsetxattr(fd, name, "", 0, 0) < 0 || fsync(fd) < 0 ? -errno : 0;
}

void tracking_witness_remove(const char *path, const uint8_t *uuid)
{
    g_autofree char *name = name_of(uuid);

    if (path) {
        removexattr(path, name);
    }
}

bool tracking_witness_is_there(const char *path, const uint8_t *uuid)
{
    g_autofree char *name = name_of(uuid);

    return path && (getxattr(path, name, NULL, 0) >= 0 ||
                    (errno != ENODATA && errno != EOPNOTSUPP && errno != ENOENT));
}
