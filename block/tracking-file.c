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

/* At this many epochs before the end a new file is made when there is an occasion. */
#define EPOCHS_LEFT 64

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
static void remove_for_good(int fd, const char *path)
{
    if ((unlink(path) < 0 || tracking_file_sync_name(path) < 0) && ftruncate(fd, 0) < 0) {
        g_warning("Tracking file '%s' is out of date and cannot be marked so: remove it before its "
                  "disk is served again",
                  path);
    }
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

void tracking_file_mark_lost(struct tracking_file *file, enum tracking_loss loss)
{
    tracking_file_note_loss(file, loss);
    int status = has_no_header(file->fd) ? empty_for_good(file->fd) : write_mark(file->fd, loss);
    if (status < 0) {
        remove_for_good(file->fd, file->path);
    }
}

void tracking_file_condemn(const char *path, enum tracking_loss loss)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd >= 0 ? write_mark(fd, loss) < 0 : errno != ENOENT) {
        remove_for_good(fd, path);
    }
}

/* ---- New files ------------------------------------------------------------------------------- */

/* All of it is written, so that no later write to it needs space. */
static int fill_with_zeroes(int fd, uint64_t bytes)
{
    static const char zeroes[MIB];

    for (uint64_t offset = 0; offset < bytes;) {
        ssize_t done = pwrite(fd, zeroes, MIN_OF(bytes - offset, sizeof(zeroes)), (off_t)offset);

        if (done < 0 && errno != EINTR) {
            return -errno;
        }
        offset += done > 0 ? (uint64_t)done : 0;
    }
    return 0;
}

/* A file of another name, locked, with nothing in it. Its name in *path. */
static int open_new(const char *final_path, char **path, GError **error)
{
    *path = g_strdup_printf("%s.new", final_path);
    if (unlink(*path) < 0 && errno != ENOENT) {
        return block_error_errno(error, errno, "Could not remove '%s'", *path);
    }
    AUTO_CLOSE int fd = open(*path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return block_error_errno(error, errno, "Could not create tracking file '%s'", *path);
    }
    int status = tracking_file_lock(fd, *path, error);
    return status < 0 ? status : steal_fd(&fd);
}

static void note_own_file(int fd, struct tracking_header *header)
{
    struct stat information;

    if (fstat(fd, &information) == 0) {
        header->own_device = information.st_dev;
        header->own_inode = information.st_ino;
    }
}

/*
 * Put what is in a new file on stable storage and give it the name. If that cannot be made durable,
 * nobody knows which file a power loss leaves there: none of them may be believed.
 */
static int install_new(struct tracking_file *file, struct tracking_file *old, const char *path,
                       GError **error)
{
    int status = tracking_io.sync_file(file->fd);

    if (status == 0 && rename(path, file->path) < 0) {
        status = -errno;
    } else if (status == 0) {
        status = tracking_file_sync_name(file->path);
        if (status < 0 && old) {
            tracking_file_mark_lost(old, TRACKING_LOST_STORAGE);
            tracking_file_mark_lost(file, TRACKING_LOST_STORAGE);
            old->is_given_up = true;
        }
    }
    return status < 0 ? block_error_errno(error, -status, "Could not create tracking file '%s'",
                                          file->path)
                      : 0;
}

static struct tracking_file *file_new(const char *path, int fd)
{
    struct tracking_file *file = g_aligned_alloc0(1, sizeof(*file), 64);

    file->fd = fd;
    file->path = g_strdup(path);
    return file;
}

static void file_free(struct tracking_file *file)
{
    tracking_file_unmap(file);
    tracking_directory_free(file->directory);
    if (file->fd >= 0) {
        close(file->fd);
    }
    g_free(file->path);
    g_aligned_free(file);
}

void tracking_file_abandon(struct tracking_file *file)
{
    if (file) {
        file_free(file);
    }
}

/* Everything but the name: space, an empty log, the directory, the first header. */
static int write_new(struct tracking_file *file, GError **error)
{
    struct tracking_header header = file->header;
    uint64_t end = tracking_directory_start(&header) + 2 * TRACKING_DIRECTORY_BYTES;
    int status = fill_with_zeroes(file->fd, end);

    if (status < 0) {
        return block_error_errno(error, -status,
                                 "Could not allocate %" PRIu64 " bytes for tracking file '%s'", end,
                                 file->path);
    }
    note_own_file(file->fd, &file->header);
    tracking_file_note_layout(file);
    if (tracking_file_write_empty_log(file, error) < 0) {
        return -EIO;
    }
    /* Both copies of the header: no old one, or none at all, is to be found if one is damaged. */
    if (tracking_file_store_directory(file, file->directory, error) < 0) {
        return -EIO;
    }
    return tracking_file_write_header(file, &file->header, error);
}

static int set_up_new(struct tracking_file *file, const char *path, uint64_t length,
                      const struct tracking_geometry *geometry, const char *disk_path,
                      const struct tracking_identity *disk, GError **error)
{
    struct tracking_header *header = &file->header;

    *header = (struct tracking_header){
        .flags = TRACKING_IN_USE,
        .length = length,
        .granule_shift = log2_of(geometry->granule),
        .extent_shift = log2_of(geometry->extent),
        .extents = geometry->extents,
        .epoch = 1,
        .disk = *disk,
    };
    tracking_uuid_generate(header->uuid);
    tracking_io.boot_id(header->boot_id);
    g_strlcpy(header->path, disk_path ? disk_path : "", sizeof(header->path));
    if (tracking_header_lay_out(header, error) < 0) {
        return -EFBIG;
    }
    file->directory = tracking_directory_new();
    if (write_new(file, error) < 0 || tracking_file_map(file, error) < 0) {
        return -EIO;
    }
    atomic_store(&file->map.epoch, 1);
    return install_new(file, NULL, path, error);
}

struct tracking_file *tracking_file_create(const char *path, uint64_t length,
                                           const struct tracking_geometry *geometry,
                                           const char *disk_path,
                                           const struct tracking_identity *disk, GError **error)
{
    g_autofree char *new_path = NULL;
    int fd = open_new(path, &new_path, error);

    if (fd < 0) {
        return NULL;
    }
    struct tracking_file *file = file_new(path, fd);
    if (set_up_new(file, new_path, length, geometry, disk_path, disk, error) < 0) {
        unlink(new_path);
        file_free(file);
        return NULL;
    }
    return file;
}

/* ---- The directory --------------------------------------------------------------------------- */

struct tracking_directory *tracking_directory_copy(const struct tracking_directory *directory)
{
    g_autoptr(GByteArray) bytes = tracking_directory_encode(directory);

    return tracking_directory_decode(bytes->data, bytes->len, UINT32_MAX, NULL);
}

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
    if (directory != file->directory) {
        tracking_directory_free(file->directory);
        file->directory = directory;
    }
    return 0;
}

/* ---- Another length, other epochs ------------------------------------------------------------ */

bool tracking_file_needs_rebuild(const struct tracking_file *file)
{
    return atomic_load(&file->map.epoch) >= CHANGE_MAP_EPOCH_MAX - EPOCHS_LEFT;
}

static int compare_epochs(gconstpointer a, gconstpointer b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

/* The ends of epochs that somebody still asks about, in order. */
static GArray *list_cuts(const struct tracking_file *file)
{
    GArray *cuts = g_array_new(FALSE, FALSE, sizeof(uint32_t));

    for (guint i = 0; i < file->directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(file->directory->checkpoints, i);
        g_array_append_val(cuts, checkpoint->epoch);
    }
    for (guint i = 0; i < file->directory->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(file->directory->bitmaps, i);
        g_array_append_val(cuts, bitmap->epoch);
    }
    for (unsigned i = 0; i < file->header.sample_count; i++) {
        g_array_append_val(cuts, file->header.samples[i].epoch);
    }
    g_array_append_val(cuts, file->header.recovered_epoch);
    g_array_sort(cuts, compare_epochs);
    return cuts;
}

/*
 * The new number of each old one: how many cuts lie before it, and one more. So what was later than
 * a cut stays later, and nothing else is asked of the numbers.
 */
static uint16_t *number_anew(const struct tracking_file *file, uint16_t *highest)
{
    g_autoptr(GArray) cuts = list_cuts(file);
    uint16_t *numbers = g_new0(uint16_t, CHANGE_MAP_EPOCH_MAX + 1);
    guint passed = 0;
    uint16_t number = 1;

    for (uint32_t epoch = 1; epoch <= CHANGE_MAP_EPOCH_MAX; epoch++) {
        bool is_cut = false;

        while (passed < cuts->len && g_array_index(cuts, uint32_t, passed) < epoch) {
            is_cut |= g_array_index(cuts, uint32_t, passed) == epoch - 1 && epoch > 1;
            passed++;
        }
        number = (uint16_t)(number + is_cut);
        numbers[epoch] = number;
    }
    *highest = number;
    return numbers;
}

static struct tracking_directory *number_directory(const struct tracking_directory *directory,
                                                   const uint16_t *numbers)
{
    struct tracking_directory *copy = tracking_directory_copy(directory);

    for (guint i = 0; i < copy->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(copy->checkpoints, i);
        checkpoint->epoch = numbers[checkpoint->epoch];
    }
    for (guint i = 0; i < copy->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(copy->bitmaps, i);
        bitmap->epoch = numbers[bitmap->epoch];
    }
    return copy;
}

static void number_header(struct tracking_header *header, const uint16_t *numbers)
{
    for (unsigned i = 0; i < header->sample_count; i++) {
        header->samples[i].epoch = numbers[MIN_OF(header->samples[i].epoch, CHANGE_MAP_EPOCH_MAX)];
    }
    header->recovered_epoch = numbers[MIN_OF(header->recovered_epoch, CHANGE_MAP_EPOCH_MAX)];
}

/*
 * What both have is taken over, with its number. What only the new one has is changed, and of what
 * a disk got at its end nothing is known: a volume has there what others left.
 */
static void fill_map(struct tracking_file *file, const struct tracking_file *old,
                     const uint16_t *numbers)
{
    uint64_t common = MIN_OF(file->map.granules, old->map.granules);
    uint16_t epoch = atomic_load(&file->map.epoch);
    _Atomic uint16_t *values = file->map.values;

    for (uint64_t i = 0; i < common; i++) {
        uint16_t value = change_map_value_at(&old->map, i);
        uint16_t number = numbers[value & CHANGE_MAP_EPOCH_MAX];

        value = (uint16_t)((value & ~CHANGE_MAP_EPOCH_MAX) | number);
        atomic_store_explicit(&values[i], GUINT16_TO_LE(value), memory_order_relaxed);
    }
    for (uint64_t i = common; i < file->map.granules; i++) {
        atomic_store_explicit(&values[i], GUINT16_TO_LE(epoch), memory_order_relaxed);
    }
    /* A short last granule got more or less. */
    uint64_t shorter = MIN_OF(file->map.length, old->map.length);
    if (file->map.length != old->map.length && shorter % (UINT64_C(1) << file->map.shift)) {
        atomic_store(&values[common - 1], GUINT16_TO_LE(epoch));
    }
}

/* The log is not taken over: the new map is on stable storage before it is anybody's. */
static int write_rebuilt(struct tracking_file *file, struct tracking_file *old, const char *path,
                         GError **error)
{
    uint16_t highest;
    g_autofree uint16_t *numbers = number_anew(old, &highest);

    file->directory = number_directory(old->directory, numbers);
    number_header(&file->header, numbers);
    /* The epoch goes on, with another number: after a power loss its zeroes are to be doubted. */
    file->header.epoch = highest;
    if (file->header.epoch > CHANGE_MAP_EPOCH_MAX - EPOCHS_LEFT) {
        return block_error(error, ENOSPC,
                           "Tracking file '%s' has too many checkpoints: remove some", old->path);
    }
    if (write_new(file, error) < 0 || tracking_file_map(file, error) < 0) {
        return -EIO;
    }
    atomic_store(&file->map.epoch, (uint16_t)file->header.epoch);
    fill_map(file, old, numbers);
    change_map_destroy(&file->map);
    if (change_map_init(&file->map, guarded_mapping_address(file->mapping), file->header.length,
                        file->header.granule_shift) < 0) {
        return block_error(error, ENOMEM, "Not enough memory for tracking file '%s'", old->path);
    }
    atomic_store(&file->map.epoch, (uint16_t)file->header.epoch);
    if (tracking_file_sync_map(file, error) < 0) {
        return -EIO;
    }
    if (guarded_mapping_is_broken(old->mapping)) {
        return block_error(error, EIO, "A part of the map in tracking file '%s' is gone",
                           old->path);
    }
    return install_new(file, old, path, error);
}

struct tracking_file *tracking_file_rebuild(struct tracking_file *file, uint64_t length,
                                            GError **error)
{
    g_autofree char *new_path = NULL;
    int fd = open_new(file->path, &new_path, error);

    if (fd < 0) {
        return NULL;
    }
    struct tracking_file *rebuilt = file_new(file->path, fd);
    rebuilt->header = file->header;
    rebuilt->header.length = length;
    rebuilt->header.flags |= TRACKING_IN_USE;
    if (length != file->map.length) {
        rebuilt->header.sample_count = 0; /* one at the end would not be found again */
    }
    if (tracking_header_lay_out(&rebuilt->header, error) < 0 ||
        write_rebuilt(rebuilt, file, new_path, error) < 0) {
        unlink(new_path);
        file_free(rebuilt);
        return NULL;
    }
    file_free(file);
    return rebuilt;
}

/* ---- The end --------------------------------------------------------------------------------- */

bool tracking_file_is_conservative(const struct tracking_file *file)
{
    if (!file->header.recovered_bytes) {
        return false;
    }
    for (guint i = 0; i < file->directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(file->directory->checkpoints, i);
        if (checkpoint->epoch < file->header.recovered_epoch) {
            return true;
        }
    }
    return false;
}

int tracking_file_close(struct tracking_file *file, const struct tracking_identity *disk,
                        GError **error)
{
    struct tracking_header header = file->header;
    int status = tracking_file_sync_map(file, error);

    header.flags &= ~(uint32_t)TRACKING_IN_USE;
    header.disk = *disk;
    header.epoch = atomic_load(&file->map.epoch);
    if (status == 0) {
        status = tracking_file_write_header(file, &header, error);
    } else {
        /* The kernel reports it once, and then holds what it could not write for written. */
        tracking_file_mark_lost(file, TRACKING_LOST_STORAGE);
    }
    file_free(file);
    return status;
}
