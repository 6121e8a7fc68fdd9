/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-io.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/tracking-format.h"
#include "block/tracking-witness.h"

static int write_durably(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    while (size) {
        struct iovec part = {(void *)bytes, size};
        ssize_t done = pwritev2(fd, &part, 1, (off_t)offset, RWF_DSYNC);

        if (done < 0 && errno == EOPNOTSUPP) {
            done = pwrite(fd, bytes, size, (off_t)offset);
            if (done >= 0 && fdatasync(fd) < 0) {
                done = -1;
            }
        }
        if (done < 0 && errno != EINTR) {
            return -errno;
        }
        if (done > 0) {
            bytes = (const char *)bytes + done;
            size -= (uint64_t)done;
            offset += (uint64_t)done;
        }
    }
    return 0;
}

static int sync_mapping(int fd, struct guarded_mapping *mapping, uint64_t offset, uint64_t size)
{
    return guarded_mapping_sync(mapping);
}

static int sync_file(int fd)
{
    return fsync(fd) < 0 ? -errno : 0;
}

/* Where the kernel does not say, no two boots are the same: 0 is never taken for an equal. */
static void read_boot_id(uint8_t *id)
{
    AUTO_CLOSE int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    char text[37] = "";

    memset(id, 0, 16);
    if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0) {
        return;
    }
    tracking_uuid_parse(text, id);
}

struct tracking_io tracking_io = {
    .write_durably = write_durably,
    .sync_mapping = sync_mapping,
    .sync_file = sync_file,
    .sync_disk = sync_file,
    .put_witness = tracking_witness_put,
    .boot_id = read_boot_id,
    .timeout_ns = UINT64_C(10) * NS_PER_SECOND,
};

int tracking_read(int fd, void *bytes, uint64_t size, uint64_t offset)
{
    while (size) {
        ssize_t done = pread(fd, bytes, size, (off_t)offset);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return done < 0 ? -errno : -EIO;
        }
        bytes = (char *)bytes + done;
        size -= (uint64_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}
