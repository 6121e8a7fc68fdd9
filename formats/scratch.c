/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/error.h"

static const char *default_directory(void)
{
    const char *directory = getenv("TMPDIR");

    return directory && *directory ? directory : "/var/tmp";
}

/* Not every file system can make files without a name. Returns a descriptor or a negative errno. */
static int open_unlinked(const char *directory)
{
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        g_autofree char *path = g_build_filename(directory, "liveblk-scratch-XXXXXX", NULL);

        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
            unlink(path);
        }
    }
    return fd < 0 ? -errno : fd;
}

static struct block_node *open_node(int fd, GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

    block_options_set(options, "driver", "file");
    block_options_set(options, "filename", path);
    block_options_set(options, "discard", "unmap");
    block_options_set(options, "locking", "off");       /* nobody else can open it */
    block_options_set(options, "cache.no-flush", "on"); /* nor does it outlive us */
    return block_node_open(options, true, error);
}

struct block_node *scratch_open(const char *directory, uint64_t length, GError **error)
{
    const char *where = directory ? directory : default_directory();
    AUTO_CLOSE int fd = open_unlinked(where);

    if (fd < 0) {
        block_error_errno(error, -fd, "Could not make a scratch file in '%s'", where);
        return NULL;
    }
    if (ftruncate(fd, (off_t)length) < 0) {
        block_error_errno(error, errno,
                          "Could not make a scratch file of %" G_GUINT64_FORMAT " bytes in '%s'",
                          length, where);
        return NULL;
    }
    return open_node(fd, error);
}
