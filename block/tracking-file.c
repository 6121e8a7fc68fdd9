/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/timed-call.h"
#include "block/tracking-internal.h"
#include "block/tracking-io.h"

/* ---- Life ------------------------------------------------------------------------------------ */

struct tracking_file *tracking_file_new_open(const char *path, int fd)
{
    struct tracking_file *file = g_aligned_alloc0(1, sizeof(*file), 64);

    atomic_init(&file->references, 1);
    file->fd = fd;
    file->path = g_strdup(path);
    return file;
}

struct tracking_file *tracking_file_ref(struct tracking_file *file)
{
    atomic_fetch_add(&file->references, 1);
    return file;
}

void tracking_file_unref(struct tracking_file *file)
{
    if (!file || atomic_fetch_sub(&file->references, 1) > 1) {
        return;
    }
    tracking_file_unmap(file);
    tracking_directory_free(file->directory);
    tracking_file_unref(file->successor);
    if (file->new_path) {
        unlink(file->new_path);
        g_free(file->new_path);
    }
    close(file->fd);
    g_free(file->path);
    g_aligned_free(file);
}

/* ---- Geometry -------------------------------------------------------------------------------- */

static int check_power(uint64_t value, uint64_t least, uint64_t most, const char *what,
                       GError **error)
{
    if (!is_power_of_2(value) || value < least || value > most) {
        return block_error(error, EINVAL,
                           "The %s must be a power of 2 from %" PRIu64 " to %" PRIu64
                           " bytes, not %" PRIu64,
                           what, least, most, value);
    }
    return 0;
}

int tracking_geometry_check(struct tracking_geometry *geometry, GError **error)
{
    uint64_t extent_default = UINT64_C(1) << TRACKING_EXTENT_SHIFT_DEFAULT;

    geometry->granule =
        geometry->granule ? geometry->granule : UINT64_C(1) << TRACKING_GRANULE_SHIFT_DEFAULT;
    geometry->extent =
        geometry->extent ? geometry->extent : MAX_OF(extent_default, geometry->granule);
    geometry->extents = geometry->extents ? geometry->extents : TRACKING_EXTENTS_DEFAULT;
    if (check_power(geometry->granule, UINT64_C(1) << TRACKING_GRANULE_SHIFT_MIN,
                    UINT64_C(1) << TRACKING_GRANULE_SHIFT_MAX, "granule of a tracking file",
                    error) < 0 ||
        check_power(geometry->extent, geometry->granule, UINT64_C(1) << TRACKING_EXTENT_SHIFT_MAX,
                    "extent of a tracking file", error) < 0) {
        return -EINVAL;
    }
    if (geometry->extents < TRACKING_EXTENTS_MIN || geometry->extents > TRACKING_EXTENTS_MAX) {
        return block_error(error, EINVAL,
                           "A tracking file has from %d to %d active extents, not %" PRIu32,
                           TRACKING_EXTENTS_MIN, TRACKING_EXTENTS_MAX, geometry->extents);
    }
    return 0;
}

/* ---- Storage --------------------------------------------------------------------------------- */

static int write_slots(void *data, uint32_t first_slot, const uint64_t *slots, uint32_t count)
{
    struct tracking_file *file = data;
    uint32_t sectors = count / TRACKING_SLOTS_PER_SECTOR;
    g_autofree uint8_t *bytes = g_malloc((gsize)sectors * TRACKING_LOG_SECTOR);

    for (uint32_t i = 0; i < sectors; i++) {
        tracking_log_encode(file->uuid, slots + i * TRACKING_SLOTS_PER_SECTOR,
                            bytes + i * TRACKING_LOG_SECTOR);
    }
    return tracking_io.write_durably(file->fd, bytes, (uint64_t)sectors * TRACKING_LOG_SECTOR,
                                     TRACKING_LOG_OFFSET + first_slot / TRACKING_SLOTS_PER_SECTOR *
                                                               TRACKING_LOG_SECTOR);
}

static int sync_map(void *data)
{
    struct tracking_file *file = data;

    return tracking_io.sync_mapping(file->fd, file->mapping, file->map_offset, file->map_bytes);
}

int tracking_file_sync_map(struct tracking_file *file, GError **error)
{
    int status = sync_map(file);

    return status < 0 ? block_error_errno(error, -status,
                                          "The map in tracking file '%s' cannot be brought to "
                                          "stable storage",
                                          file->path)
                      : 0;
}

int tracking_file_write_empty_log(struct tracking_file *file, GError **error)
{
    uint32_t sectors = (uint32_t)(tracking_log_bytes(file->header.extents) / TRACKING_LOG_SECTOR);
    uint32_t count = sectors * TRACKING_SLOTS_PER_SECTOR;
    g_autofree uint64_t *slots = g_new(uint64_t, count);

    for (uint32_t i = 0; i < count; i++) {
        slots[i] = TRACKING_SLOT_EMPTY;
    }
    int status = write_slots(file, 0, slots, count);
    return status < 0
               ? block_error_errno(error, -status, "Could not write tracking file '%s'", file->path)
               : 0;
}

int tracking_file_write_header(struct tracking_file *file, const struct tracking_header *header,
                               GError **error)
{
    struct tracking_header next = *header;
    uint8_t bytes[TRACKING_HEADER_BYTES];
    unsigned copy = !file->copy;

    next.sequence = file->header.sequence + 1;
    tracking_header_encode(&next, bytes);
    int status =
        tracking_io.write_durably(file->fd, bytes, sizeof(bytes), copy * TRACKING_HEADER_BYTES);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write tracking file '%s'", file->path);
    }
    file->header = next;
    file->copy = copy;
    return 0;
}

void tracking_file_note_layout(struct tracking_file *file)
{
    memcpy(file->uuid, file->header.uuid, sizeof(file->uuid));
    file->extent_shift = file->header.extent_shift;
    file->map_offset = file->header.map_offset;
    file->map_bytes = file->header.map_bytes;
}

int tracking_file_map(struct tracking_file *file, GError **error)
{
    const struct tracking_header *header = &file->header;
    struct extent_log_storage storage = {write_slots, sync_map, file};
    uint64_t extents = div_round_up(header->length, UINT64_C(1) << header->extent_shift);

    file->start = guarded_mapping_new(file->fd, 0, TRACKING_ALIGNMENT);
    file->mapping =
        file->start ? guarded_mapping_new(file->fd, header->map_offset, header->map_bytes) : NULL;
    if (!file->mapping && errno == EUSERS) {
        /* Two mappings each, and those of a file that is made anew. */
        return block_error(error, EUSERS,
                           "Tracking file '%s' is one too many: a process can track about %d disks",
                           file->path, GUARDED_MAPPINGS_MAX / 2);
    }
    if (!file->mapping) {
        return block_error_errno(error, errno, "Tracking file '%s' cannot be mapped", file->path);
    }
    if (change_map_init(&file->map, guarded_mapping_address(file->mapping), header->length,
                        header->granule_shift) < 0) {
        guarded_mapping_free(STEAL(file->mapping));
        return block_error(error, ENOMEM, "Not enough memory for tracking file '%s'", file->path);
    }
    if (extent_log_init(&file->log, extents, header->extents, &storage) < 0) {
        change_map_destroy(&file->map);
        guarded_mapping_free(STEAL(file->mapping));
        return block_error(error, ENOMEM, "Not enough memory for tracking file '%s'", file->path);
    }
    if (guarded_mapping_is_broken(file->mapping)) {
        tracking_file_unmap(file);
        return block_error(error, EIO, "Tracking file '%s' cannot be read", file->path);
    }
    return 0;
}

void tracking_file_unmap(struct tracking_file *file)
{
    if (file->mapping) {
        extent_log_destroy(&file->log);
        change_map_destroy(&file->map);
        guarded_mapping_free(STEAL(file->mapping));
    }
    guarded_mapping_free(STEAL(file->start));
}

int tracking_file_lock(int fd, const char *path, GError **error)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &whole) < 0) {
        return block_error(error, EAGAIN, "Another process uses the tracking file '%s'", path);
    }
    return 0;
}

/* ---- Loss ------------------------------------------------------------------------------------ */

int tracking_file_sync_name(const char *path)
{
    g_autofree char *parent = g_path_get_dirname(path);
    AUTO_CLOSE int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 ? -errno : tracking_io.sync_file(fd);
}

void tracking_file_note_loss(struct tracking_file *file, enum tracking_loss loss)
{
    if (file->successor) {
        tracking_file_note_loss(file->successor, loss);
    }
    char *start = guarded_mapping_address(file->start);

    atomic_store((_Atomic uint32_t *)(void *)(start + TRACKING_MARKS_OFFSET),
                 GUINT32_TO_LE((uint32_t)loss));
}

static int write_mark(int fd, enum tracking_loss loss)
{
    uint32_t mark = GUINT32_TO_LE((uint32_t)loss);

    return tracking_io.write_durably(fd, &mark, sizeof(mark), TRACKING_MARKS_OFFSET);
}

/* A file that is out of date and cannot say so had better not be there. */
static int remove_for_good(int fd, const char *path)
{
    if ((unlink(path) == 0 && tracking_file_sync_name(path) == 0) ||
        (fd >= 0 && ftruncate(fd, 0) == 0 && tracking_io.sync_file(fd) == 0)) {
        return 0;
    }
    g_warning("Tracking file '%s' is out of date and cannot be marked so: remove it before its "
              "disk is served again",
              path);
    return -EIO;
}

/* Somebody cut it off; a log that was written since may have made it longer again. */
static bool has_no_header(int fd)
{
    for (unsigned i = 0; i < 2; i++) {
        uint8_t bytes[8] = {0};
        ssize_t count = pread(fd, bytes, sizeof(bytes), i * TRACKING_HEADER_BYTES);

        if (count < 0 || tracking_header_begins_with(bytes, sizeof(bytes))) {
            return false;
        }
    }
    return true;
}

/* An empty file is a damaged one; zeroes with a mark would be some other program's, and stay. */
static int empty_for_good(int fd)
{
    return ftruncate(fd, 0) < 0 ? -errno : tracking_io.sync_file(fd);
}

int tracking_file_mark_lost(struct tracking_file *file, enum tracking_loss loss)
{
    int of_successor = file->successor ? tracking_file_mark_lost(file->successor, loss) : 0;

    tracking_file_note_loss(file, loss);
    int status = has_no_header(file->fd) ? empty_for_good(file->fd) : write_mark(file->fd, loss);
    if (status < 0) {
        status = remove_for_good(file->fd, file->path);
    }
    return status < 0 ? status : of_successor;
}

void tracking_file_retire(struct tracking_file *file)
{
    if (write_mark(file->fd, TRACKING_LOST_MODIFIED) < 0 && ftruncate(file->fd, 0) < 0) {
        g_warning("The tracking file that was '%s' before could not be told that it is out of date",
                  file->path);
    }
}

int tracking_file_condemn(const char *path, enum tracking_loss loss)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);

    return fd < 0 && errno == ENOENT              ? 0
           : fd >= 0 && write_mark(fd, loss) == 0 ? 0
                                                  : remove_for_good(fd, path);
}

/* ---- The directory --------------------------------------------------------------------------- */

/* Where a directory goes: not where the one is that holds. */
static uint64_t choose_place(const struct tracking_header *header, uint64_t bytes)
{
    uint64_t first = tracking_directory_start(header);
    uint64_t second = first + TRACKING_DIRECTORY_BYTES;
    uint64_t behind = second + TRACKING_DIRECTORY_BYTES;

    if (bytes <= TRACKING_DIRECTORY_BYTES) {
        return header->directory_offset == first ? second : first;
    }
    if (header->directory_offset >= behind && header->directory_offset - behind < bytes) {
        return align_up(header->directory_offset + header->directory_bytes, KIB);
    }
    return behind;
}

/*
 * A directory and the header that names it, on their way to storage. Whoever waits for that may be
 * holding a guest up and gives up some time; this is then all the thread needs to go on.
 */
struct store {
    int fd; /* its own */
    uint8_t *directory;
    uint64_t bytes, offset;
    uint8_t header[TRACKING_HEADER_BYTES];
    uint64_t header_offset;
};

static void store_free(void *data)
{
    struct store *store = data;

    close(store->fd);
    g_free(store->directory);
    g_free(store);
}

static int run_store(struct timed_call *call, void *data)
{
    const struct store *store = data;
    int status =
        tracking_io.write_durably(store->fd, store->directory, store->bytes, store->offset);

    return status < 0 ? status
                      : tracking_io.write_durably(store->fd, store->header, sizeof(store->header),
                                                  store->header_offset);
}

/* Frees store, now or later. *is_left: it may yet be written. */
static int run_store_for_a_while(struct store *store, bool *is_left)
{
    int64_t deadline = clock_now_ns() + (int64_t)tracking_io.timeout_ns;
    int status = timed_call_run(run_store, store, store_free, deadline, is_left);

    if (!*is_left) {
        store_free(store);
    }
    return status;
}

static struct store *store_new(const struct tracking_file *file, const GByteArray *directory,
                               const struct tracking_header *header)
{
    struct store *store = g_new0(struct store, 1);

    store->fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
    store->directory = g_memdup2(directory->data, directory->len);
    store->bytes = directory->len;
    store->offset = header->directory_offset;
    tracking_header_encode(header, store->header);
    store->header_offset = !file->copy * TRACKING_HEADER_BYTES;
    return store;
}

int tracking_file_store_directory(struct tracking_file *file, struct tracking_directory *directory,
                                  GError **error)
{
    g_autoptr(GByteArray) bytes = tracking_directory_encode(directory);
    struct tracking_header header = file->header;
    bool is_left;

    if (bytes->len > TRACKING_DIRECTORY_BYTES_MAX) {
        return block_error(error, EFBIG, "The checkpoints and bitmaps do not fit into '%s'",
                           file->path);
    }
    header.sequence++;
    header.directory_offset = choose_place(&header, bytes->len);
    header.directory_bytes = bytes->len;
    header.directory_checksum = tracking_checksum(bytes->data, bytes->len);
    header.epoch = MAX_OF(header.epoch, (uint32_t)atomic_load(&file->map.epoch));
    int status = run_store_for_a_while(store_new(file, bytes, &header), &is_left);
    if (status < 0) {
        file->is_given_up |= is_left;
        return block_error_errno(error, -status, "Could not write tracking file '%s'", file->path);
    }
    file->header = header;
    file->copy = !file->copy;
    file->has_dropped = false;
    if (directory != file->directory) {
        tracking_directory_free(file->directory);
        file->directory = directory;
    }
    return 0;
}

void tracking_file_drop_bitmaps(struct tracking_file *file)
{
    if (file->directory->bitmaps->len) {
        g_ptr_array_set_size(file->directory->bitmaps, 0);
        file->has_dropped = true;
    }
}

/* ---- The end --------------------------------------------------------------------------------- */

int tracking_file_close(struct tracking_file *file, const struct tracking_identity *disk,
                        GError **error)
{
    if (file->has_dropped && tracking_file_store_directory(file, file->directory, error) < 0) {
        tracking_file_unref(file); /* as it is on storage it is true of where the disk was */
        return -EIO;
    }
    struct tracking_header header = file->header;
    int status = tracking_file_sync_map(file, error);

    header.flags &= ~(uint32_t)TRACKING_IN_USE;
    header.disk = *disk;
    header.epoch = atomic_load(&file->map.epoch);
    header.map_checksum = tracking_map_checksum(&header, guarded_mapping_address(file->mapping));
    if (status == 0) {
        status = tracking_file_write_header(file, &header, error);
    } else {
        /* The kernel reports it once, and then holds what it could not write for written. */
        tracking_file_mark_lost(file, TRACKING_LOST_STORAGE);
    }
    tracking_file_unref(file);
    return status;
}
