/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/error.h"
#include "block/tracking-internal.h"
#include "block/tracking-io.h"
#include "block/tracking-witness.h"

static bool is_locked(int fd)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
}

static int read_map(int fd, struct tracking_inspection *inspection, GError **error)
{
    const struct tracking_header *header = &inspection->contents.header;
    uint64_t bytes = change_map_bytes(header->length, header->granule_shift);
    int status;

    inspection->values = malloc(bytes + 1);
    status = inspection->values ? tracking_read(fd, inspection->values, bytes, header->map_offset)
                                : -ENOMEM;
    if (status == 0) {
        status = change_map_init(&inspection->map, inspection->values, header->length,
                                 header->granule_shift);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "The tracking file's map cannot be read");
    }
    for (uint64_t i = 0; i < inspection->map.granules; i++) {
        uint16_t value = change_map_value_at(&inspection->map, i);
        uint16_t state = value & (CHANGE_MAP_ZERO | CHANGE_MAP_ZEROING);

        inspection->bad_values += state == (CHANGE_MAP_ZERO | CHANGE_MAP_ZEROING);
    }
    bool is_closed = !(header->flags & TRACKING_IN_USE) && !inspection->contents.is_doubtful;
    if (is_closed && !inspection->bad_values) {
        inspection->bad_values +=
            tracking_map_checksum(header, inspection->values) != header->map_checksum;
    }
    return 0;
}

static int open_to_read(const char *path, GError **error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    return fd < 0 ? block_error_errno(error, errno, "Could not open '%s'", path) : fd;
}

int tracking_inspect(const char *path, struct tracking_inspection *inspection,
                     enum tracking_loss *loss, GError **error)
{
    AUTO_CLOSE int fd = open_to_read(path, error);
    uint8_t boot_id[16];
    int status;

    *inspection = (struct tracking_inspection){0};
    *loss = TRACKING_NOT_LOST;
    if (fd < 0) {
        return fd;
    }
    status = tracking_contents_read(fd, &inspection->contents, loss, error);
    if (status == 0) {
        status = read_map(fd, inspection, error);
    }
    if (status < 0) {
        tracking_inspection_clear(inspection);
        return status;
    }
    if (!inspection->contents.marked_loss &&
        tracking_witness_is_there(inspection->contents.header.path,
                                  inspection->contents.header.uuid)) {
        inspection->contents.marked_loss = TRACKING_LOST_STORAGE;
    }
    tracking_io.boot_id(boot_id);
    inspection->has_user = is_locked(fd);
    inspection->same_boot = !memcmp(boot_id, inspection->contents.header.boot_id, sizeof(boot_id));
    return 0;
}

void tracking_inspection_clear(struct tracking_inspection *inspection)
{
    change_map_destroy(&inspection->map);
    free(inspection->values);
    tracking_contents_clear(&inspection->contents);
    *inspection = (struct tracking_inspection){0};
}

int tracking_drop(const char *path, GError **error)
{
    AUTO_CLOSE int fd = open_to_read(path, error);
    struct tracking_contents contents;
    enum tracking_loss loss;
    GError *problem = NULL;

    if (fd < 0) {
        return fd;
    }
    tracking_contents_read(fd, &contents, &loss, &problem);
    struct tracking_header header = contents.header;
    tracking_contents_clear(&contents);
    if (loss == TRACKING_LOST_FOREIGN) {
        g_propagate_prefixed_error(error, problem, "'%s' was not removed: ", path);
        return -EINVAL;
    }
    g_clear_error(&problem);
    if (is_locked(fd)) {
        return block_error(error, EBUSY,
                           "'%s' is in use: switch tracking off at its server with 'liveblk "
                           "tracking stop'",
                           path);
    }
    if (unlink(path) < 0) {
        return block_error_errno(error, errno, "Could not remove '%s'", path);
    }
    /* What says that this map is lost is of use for as long as a power loss may bring it back. */
    if (tracking_file_sync_name(path) == 0) {
        tracking_witness_remove(header.path, header.uuid);
    }
    return 0;
}

int tracking_give_up_left_over(const char *disk_path, GError **error)
{
    g_autofree char *path = g_strconcat(disk_path, ".tracking", NULL);
    struct tracking_contents contents = {0};
    struct tracking_identity disk;
    enum tracking_loss loss;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    tracking_identify(disk_path, &disk);
    bool is_left = fd >= 0 && tracking_contents_read(fd, &contents, &loss, NULL) == 0 &&
                   (contents.is_doubtful || contents.header.flags & TRACKING_IN_USE) &&
                   !contents.marked_loss && contents.header.disk.inode == disk.inode;
    tracking_contents_clear(&contents);
    if (!is_left) {
        return 0;
    }
    return tracking_file_condemn(path, TRACKING_LOST_MODIFIED) < 0
               ? block_error(error, EIO,
                             "Tracking file '%s' cannot be told that the disk changes: remove it "
                             "first, with 'liveblk tracking drop'",
                             path)
               : 1;
}

static bool is_equal(const struct tracking_identity *a, const struct tracking_identity *b)
{
    return a->inode && a->device == b->device && a->inode == b->inode && a->bytes == b->bytes &&
           a->modified_ns == b->modified_ns;
}

/* In the place of the older copy, as a server does. */
static int write_identity(int fd, const struct tracking_contents *contents,
                          const struct tracking_identity *identity, GError **error)
{
    struct tracking_header header = contents->header;
    uint8_t bytes[TRACKING_HEADER_BYTES];
    uint64_t offset = contents->copy ? 0 : TRACKING_HEADER_BYTES;

    header.disk = *identity;
    header.sequence++;
    tracking_header_encode(&header, bytes);
    int status = tracking_io.write_durably(fd, bytes, sizeof(bytes), offset);
    return status < 0 ? block_error_errno(error, -status, "Could not write the tracking file") : 1;
}

int tracking_follow_resize(const char *path, const struct tracking_identity *before,
                           const struct tracking_identity *after, GError **error)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    struct tracking_contents contents;
    enum tracking_loss loss;
    int status = 0;

    if (fd < 0) {
        return errno == ENOENT ? 0 : block_error_errno(error, errno, "Could not open '%s'", path);
    }
    status = tracking_file_lock(fd, path, error);
    if (status < 0) {
        return status;
    }
    if (tracking_contents_read(fd, &contents, &loss, NULL) == 0 && !contents.marked_loss &&
        !(contents.header.flags & TRACKING_IN_USE) && is_equal(&contents.header.disk, before)) {
        status = write_identity(fd, &contents, after, error);
    }
    tracking_contents_clear(&contents);
    return status;
}
