/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening a tracking file: whether it still speaks of this disk, and what a crash left of it.
 *
 * What can be told from outside is told: the file's identity, its time of modification after a
 * clean end, and samples of its contents in places that by the map did not change since. In doubt
 * the map is lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/tracking-internal.h"
#include "block/tracking-io.h"
#include "block/tracking-rebuild.h"
#include "block/tracking-witness.h"

/* ---- Whose map it is ------------------------------------------------------------------------- */

static int lost(enum tracking_loss *loss, enum tracking_loss why, GError **error)
{
    *loss = why;
    return block_error(error, EINVAL, "%s", tracking_loss_text(why));
}

static bool was_closed(const struct tracking_contents *contents)
{
    return !(contents->header.flags & TRACKING_IN_USE) && !contents->is_doubtful;
}

/* What is not the file that was in use, but has its contents, may have those of any moment. */
static bool is_copy(const struct tracking_contents *contents, int fd)
{
    struct stat information;

    return !was_closed(contents) && fstat(fd, &information) == 0 &&
           information.st_ino != contents->header.own_inode;
}

/* fd: the tracking file. */
static int judge(const struct tracking_contents *contents, int fd, const struct tracking_disk *disk,
                 bool same_boot, enum tracking_loss *loss, GError **error)
{
    const struct tracking_header *header = &contents->header;
    bool is_closed = was_closed(contents);

    if (contents->marked_loss) {
        return lost(loss, contents->marked_loss, error);
    }
    if (tracking_witness_is_there(disk->path, header->uuid)) {
        return lost(loss, TRACKING_LOST_STORAGE, error);
    }
    if (!tracking_is_same(&header->disk, &disk->identity, same_boot, error)) {
        *loss = TRACKING_LOST_OTHER_DISK;
        return -EINVAL;
    }
    if (is_copy(contents, fd)) {
        *loss = TRACKING_LOST_MODIFIED;
        return block_error(
            error, EINVAL,
            "it is a copy of a tracking file that was in use, and what changed since "
            "it was made is not in it");
    }
    if (is_closed && disk->length < header->length) {
        return lost(loss, TRACKING_LOST_RESIZED, error);
    }
    if (is_closed && (header->disk.modified_ns != disk->identity.modified_ns ||
                      header->disk.bytes != disk->identity.bytes)) {
        return lost(loss, TRACKING_LOST_MODIFIED, error);
    }
    if (is_closed && disk->layers &&
        !tracking_layers_match(contents->directory->layers, disk->layers, same_boot, error)) {
        *loss = TRACKING_LOST_MODIFIED;
        return -EINVAL;
    }
    return 0;
}

/* ---- After a crash --------------------------------------------------------------------------- */

/* The process died; did what it wrote last get lost as well? */
static bool lost_power(const struct tracking_file *file, bool same_boot)
{
    struct stat information;

    return !same_boot || fstat(file->fd, &information) < 0 ||
           information.st_dev != file->header.own_device ||
           information.st_ino != file->header.own_inode;
}

static void mark_active_extents(struct tracking_file *file, const uint64_t *slots)
{
    struct tracking_header *header = &file->header;
    uint64_t extent_bytes = UINT64_C(1) << header->extent_shift;
    uint64_t added = 0;

    for (uint32_t i = 0; i < header->extents; i++) {
        if (slots[i] < div_round_up(header->length, extent_bytes)) {
            uint64_t offset = slots[i] * extent_bytes;

            added +=
                change_map_mark(&file->map, offset, MIN_OF(extent_bytes, header->length - offset));
        }
    }
    if (added) {
        /* Of earlier ones only what somebody still asks about. */
        header->recovered_bytes = tracking_recovered_bytes(header, file->directory) + added;
        header->recovered_epoch = atomic_load(&file->map.epoch);
    }
}

static int recover(struct tracking_file *file, const struct tracking_contents *contents,
                   bool same_boot, GError **error)
{
    uint16_t epoch = atomic_load(&file->map.epoch);

    if (was_closed(contents)) {
        return 0;
    }
    change_map_distrust_zeroes(&file->map, epoch);
    if (lost_power(file, same_boot) || contents->is_doubtful) {
        mark_active_extents(file, contents->slots);
    }
    return tracking_file_sync_map(file, error);
}

/* ---- Samples --------------------------------------------------------------------------------- */

static int hash_sample(const struct tracking_disk *disk, uint64_t offset, uint64_t length,
                       uint8_t *hash)
{
    uint64_t bytes = MIN_OF(length - offset, TRACKING_SAMPLE_BYTES);
    g_autoptr(GChecksum) checksum = g_checksum_new(G_CHECKSUM_SHA256);
    uint8_t digest[32], buffer[TRACKING_SAMPLE_BYTES];
    gsize digest_bytes = sizeof(digest);
    int status = disk->read(disk->data, buffer, offset, bytes);

    if (status == 0) {
        g_checksum_update(checksum, buffer, (gssize)bytes);
        g_checksum_get_digest(checksum, digest, &digest_bytes);
        memcpy(hash, digest, 16);
    }
    return status;
}

/* One in each equal part of the disk, somewhere there that follows from the UUID. */
static uint64_t choose_sample(const struct tracking_file *file, unsigned i)
{
    uint64_t blocks = div_round_up(file->map.length, TRACKING_SAMPLE_BYTES);
    uint64_t part = MAX_OF(blocks / TRACKING_SAMPLES_MAX, UINT64_C(1));
    uint64_t random;

    memcpy(&random, file->header.uuid, sizeof(random));
    random = (random + i) * UINT64_C(0x9e3779b97f4a7c15);
    return i ? (i * part + (random >> 20) % part) * TRACKING_SAMPLE_BYTES : 0;
}

void tracking_file_take_samples(struct tracking_file *file, const struct tracking_disk *disk)
{
    struct tracking_header *header = &file->header;

    header->sample_count = 0;
    for (unsigned i = 0; i < TRACKING_SAMPLES_MAX; i++) {
        struct tracking_sample *sample = &header->samples[header->sample_count];

        sample->offset = choose_sample(file, i);
        sample->epoch = atomic_load(&file->map.epoch);
        if (sample->offset < file->map.length &&
            hash_sample(disk, sample->offset, file->map.length, sample->hash) == 0) {
            header->sample_count++;
        }
    }
}

/* Only where the map says that nothing changed since: elsewhere a difference says nothing. */
static bool samples_match(const struct tracking_file *file, const struct tracking_disk *disk)
{
    for (unsigned i = 0; i < file->header.sample_count; i++) {
        const struct tracking_sample *sample = &file->header.samples[i];
        uint8_t hash[16];

        uint64_t end = MIN_OF(sample->offset + TRACKING_SAMPLE_BYTES, file->header.length);

        if (sample->offset >= file->header.length || end > disk->length ||
            change_map_epoch_at(&file->map, sample->offset >> file->map.shift) > sample->epoch) {
            continue;
        }
        if (hash_sample(disk, sample->offset, file->header.length, hash) < 0 ||
            memcmp(hash, sample->hash, sizeof(hash)) != 0) {
            return false;
        }
    }
    return true;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* From now on what is there is a crash's, should there be one. A new epoch begins. */
static int begin(struct tracking_file *file, const struct tracking_disk *disk, GError **error)
{
    struct tracking_header header = file->header;
    struct stat information;

    atomic_fetch_add(&file->map.epoch, 1);
    header.flags |= TRACKING_IN_USE;
    header.epoch = atomic_load(&file->map.epoch);
    header.disk = disk->identity;
    g_strlcpy(header.path, disk->path ? disk->path : "", sizeof(header.path));
    tracking_io.boot_id(header.boot_id);
    if (fstat(file->fd, &information) == 0) {
        header.own_device = information.st_dev;
        header.own_inode = information.st_ino;
    }
    int status = tracking_file_write_header(file, &header, error);
    return status < 0 ? status : tracking_file_write_empty_log(file, error);
}

/* A map that lies there, and what is known about it besides. */
static struct tracking_file *adopt(int fd, const char *path, struct tracking_contents *contents)
{
    struct tracking_file *file = tracking_file_new_open(path, fd);

    file->header = contents->header;
    file->copy = contents->copy;
    file->directory = STEAL(contents->directory);
    tracking_directory_drop_pending(file->directory);
    tracking_file_note_layout(file);
    return file;
}

/* At a clean end nothing of it was changing any more. */
static bool map_is_damaged(const struct tracking_file *file,
                           const struct tracking_contents *contents)
{
    return was_closed(contents) &&
           tracking_map_checksum(&file->header, guarded_mapping_address(file->mapping)) !=
               file->header.map_checksum;
}

static int resume(struct tracking_file *file, const struct tracking_contents *contents,
                  const struct tracking_disk *disk, bool same_boot, enum tracking_loss *loss,
                  GError **error)
{
    *loss = TRACKING_LOST_STORAGE;
    if (tracking_file_map(file, error) < 0) {
        return -EIO;
    }
    if (map_is_damaged(file, contents)) {
        *loss = TRACKING_LOST_DAMAGED;
        return block_error(error, EIO, "The tracking file's map is damaged");
    }
    /* Values may be newer than the header, which is written now and then only. */
    atomic_store(&file->map.epoch,
                 (uint16_t)MAX_OF((uint32_t)atomic_load(&file->map.epoch), file->header.epoch));
    if (atomic_load(&file->map.epoch) >= CHANGE_MAP_EPOCH_MAX) {
        return lost(loss, TRACKING_LOST_DAMAGED, error);
    }
    if (recover(file, contents, same_boot, error) < 0) {
        return -EIO;
    }
    /* Who gave it its name may have died of it: a power loss must not bring the one before back. */
    int status = tracking_file_sync_name(file->path);
    if (status < 0) {
        return block_error_errno(error, -status, "The name of tracking file '%s' is not durable",
                                 file->path);
    }
    if (!samples_match(file, disk)) {
        return lost(loss, TRACKING_LOST_MODIFIED, error);
    }
    return begin(file, disk, error);
}

static struct tracking_file *fit(struct tracking_file *file, uint64_t length,
                                 enum tracking_loss *loss, GError **error)
{
    if (file->map.length == length && !tracking_file_needs_rebuild(file)) {
        return file;
    }
    struct tracking_file *fitting = tracking_file_rebuild(file, length, error);
    if (!fitting) {
        *loss = TRACKING_LOST_STORAGE;
        if (file->is_given_up) {
            tracking_file_mark_lost(file, TRACKING_LOST_STORAGE);
        }
        tracking_file_unref(file);
    }
    return fitting;
}

static int open_file(const char *path, enum tracking_loss *loss, GError **error)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);

    *loss = TRACKING_LOST_STORAGE;
    if (fd < 0) {
        return block_error_errno(error, errno, "Could not open tracking file '%s'", path);
    }
    *loss = TRACKING_LOST_IN_USE;
    int status = tracking_file_lock(fd, path, error);
    return status < 0 ? status : steal_fd(&fd);
}

struct tracking_file *tracking_file_open(const char *path, const struct tracking_disk *disk,
                                         enum tracking_loss *loss, GError **error)
{
    struct tracking_contents contents;
    struct tracking_file *file = NULL;
    uint8_t boot_id[16];
    int fd = open_file(path, loss, error);

    if (fd < 0) {
        return NULL;
    }
    tracking_file_remove_left_over(path, NULL);
    tracking_io.boot_id(boot_id);
    if (tracking_contents_read(fd, &contents, loss, error) == 0) {
        bool same_boot = !memcmp(boot_id, contents.header.boot_id, sizeof(boot_id)) &&
                         memcmp(boot_id, (uint8_t[16]){0}, sizeof(boot_id)) != 0;

        if (judge(&contents, fd, disk, same_boot, loss, error) == 0) {
            file = adopt(fd, path, &contents);
            if (resume(file, &contents, disk, same_boot, loss, error) < 0) {
                tracking_file_unref(STEAL(file));
                fd = -1; /* it was the file's */
            } else {
                file = fit(file, disk->length, loss, error);
                fd = -1;
            }
        }
    }
    tracking_contents_clear(&contents);
    if (fd >= 0) {
        close(fd);
    }
    return file;
}
