/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tracking file from a stranger: examined, opened for a small disk, asked what changed, written
 * to, closed, and opened once more, its bitmaps loaded. Nothing may crash or hang; what was opened
 * and closed can be opened again, and says then what it said before.
 *
 * An input is put together to a file, so that checksums need not be guessed: a byte of flags, the
 * first bytes of the header, values of the map, a sector of the log, the directory.
 *
 * With libFuzzer (meson setup -Dfuzz=true, clang): build-fuzz/tests/fuzz/fuzz-tracking CORPUS.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/little-endian.h"
#include "block/tracking-file.h"
#include "block/tracking-io.h"
#include "block/tracking-record.h"
#include "tests/fuzz/fuzz.h"

#define HEADER_BYTES 2048
#define VALUES_BYTES 512
#define SLOTS_BYTES  (TRACKING_SLOTS_PER_SECTOR * 8)
#define FILE_MAX     MIB
#define DISK_MAX     (256 * MIB)
#define BITS_MAX     MIB

enum {
    IS_RAW = 1 << 0, /* the input is the file */
    FIX_HEADER = 1 << 1,
    FIX_LOG = 1 << 2,
    FIX_DIRECTORY = 1 << 3,
    OTHER_LENGTH = 1 << 4,
    OTHER_BOOT = 1 << 5,
    ONE_HEADER = 1 << 6, /* the second copy is damaged */
    IS_CUT = 1 << 7,
};

static char *directory, *path;
static uint8_t boot;

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void boot_id(uint8_t *id)
{
    memset(id, boot, 16);
}

static void remove_directory(void)
{
    g_autofree char *new_path = g_strconcat(path, ".new", NULL);

    unlink(path);
    unlink(new_path);
    rmdir(directory);
}

static void initialise(void)
{
    directory = g_strdup("/dev/shm/fuzz-tracking-XXXXXX");
    if (!g_mkdtemp(directory)) {
        abort();
    }
    path = g_build_filename(directory, "file", NULL);
    tracking_io.boot_id = boot_id;
    g_log_set_default_handler(ignore, NULL);
    atexit(remove_directory);
}

/* ---- From bytes to a file ---------------------------------------------------------------------
 */

static const uint8_t *take(const uint8_t **data, size_t *size, size_t count, uint8_t *padded)
{
    size_t taken = MIN_OF(count, *size);

    memset(padded, 0, count);
    memcpy(padded, *data, taken);
    *data += taken;
    *size -= taken;
    return padded;
}

/* Where things are, as docs/tracking.md has it. */
enum {
    AT_CHECKSUM = 12,
    AT_UUID = 32,
    AT_LENGTH = 48,
    AT_EXTENTS = 64,
    AT_MAP = 72,
    AT_DIRECTORY = 88,
    AT_MAP_CHECKSUM = 1528,
};

static void fix_header(uint8_t *header)
{
    put_le32(header + AT_CHECKSUM, 0);
    put_le32(header + AT_CHECKSUM, tracking_checksum(header, TRACKING_HEADER_BYTES));
}

static void fix_map(uint8_t *header, const uint8_t *map, uint64_t map_bytes)
{
    struct tracking_header facts = {
        .length = get_le64(header + AT_LENGTH),
        .granule_shift = get_le32(header + AT_LENGTH + 8),
    };

    if (map && facts.granule_shift < 32 &&
        change_map_bytes(facts.length, facts.granule_shift) <= map_bytes) {
        put_le32(header + AT_MAP_CHECKSUM, tracking_map_checksum(&facts, map));
    }
}

/* Returns how long the disk is. */
static uint64_t build(uint8_t *file, uint64_t *bytes, uint8_t flags, const uint8_t *data,
                      size_t size)
{
    uint8_t values[VALUES_BYTES], slots_bytes[SLOTS_BYTES];
    uint64_t slots[TRACKING_SLOTS_PER_SECTOR];
    struct tracking_header header;

    take(&data, &size, HEADER_BYTES, file);
    take(&data, &size, sizeof(values), values);
    take(&data, &size, sizeof(slots_bytes), slots_bytes);
    uint64_t map = get_le64(file + AT_MAP), map_bytes = get_le64(file + AT_MAP + 8);
    uint64_t start = map < FILE_MAX && map_bytes < FILE_MAX ? map + map_bytes : FILE_MAX;
    if (flags & FIX_DIRECTORY) {
        put_le64(file + AT_DIRECTORY, start);
        put_le64(file + AT_DIRECTORY + 8, size);
        put_le32(file + AT_DIRECTORY + 16, tracking_checksum(data, size));
    }
    if (map <= FILE_MAX - sizeof(values)) {
        memcpy(file + map, values, sizeof(values));
    }
    if (flags & FIX_HEADER) {
        fix_map(file, start < FILE_MAX ? file + map : NULL, map_bytes);
        fix_header(file);
    }
    memcpy(file + TRACKING_HEADER_BYTES, file, TRACKING_HEADER_BYTES);
    file[TRACKING_HEADER_BYTES + AT_UUID] ^= flags & ONE_HEADER ? 1 : 0;
    for (unsigned i = 0; i < TRACKING_SLOTS_PER_SECTOR; i++) {
        slots[i] = get_le64(slots_bytes + i * 8);
    }
    uint32_t extents = 0;
    memcpy(&extents, file + AT_EXTENTS, sizeof(extents));
    uint64_t log = tracking_log_bytes(MIN_OF(GUINT32_FROM_LE(extents), 4096u));
    for (uint64_t at = 0; at < log && flags & FIX_LOG; at += TRACKING_LOG_SECTOR) {
        tracking_log_encode(file + AT_UUID, slots, file + TRACKING_LOG_OFFSET + at);
    }
    *bytes = MIN_OF(start + MAX_OF(2 * TRACKING_DIRECTORY_BYTES, size), FILE_MAX);
    if (size <= FILE_MAX - start) {
        memcpy(file + start, data, size);
    }
    return tracking_header_decode(file, &header, NULL) == 0 ? header.length : MIB;
}

static void write_file(const uint8_t *bytes, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)size) < 0) {
        abort();
    }
    /* What is zero stays a hole. */
    for (uint64_t at = 0; at < size; at += 4 * KIB) {
        uint64_t count = MIN_OF(size - at, 4 * KIB);

        if ((bytes[at] || memcmp(bytes + at, bytes + at + 1, count - 1) != 0) &&
            pwrite(fd, bytes + at, count, (off_t)at) != (ssize_t)count) {
            abort();
        }
    }
    close(fd);
}

/* ---- What is done with it ---------------------------------------------------------------------
 */

static int read_disk(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    memset(buffer, 0, bytes);
    return 0;
}

static void examine(void)
{
    struct tracking_contents contents;
    enum tracking_loss loss;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    tracking_contents_read(fd, &contents, &loss, NULL);
    tracking_contents_clear(&contents);
    close(fd);
}

static uint64_t count_all(const struct tracking_file *file)
{
    uint64_t changed, zero, sum = 0;

    for (guint i = 0; i < file->directory->checkpoints->len; i++) {
        const struct tracking_checkpoint *checkpoint =
            g_ptr_array_index(file->directory->checkpoints, i);

        change_map_count(&file->map, (uint16_t)checkpoint->epoch, &changed, &zero);
        sum += changed;
    }
    tracking_recovered_bytes(&file->header, file->directory);
    return sum;
}

/* What can be loaded says the same when it is stored and loaded once more. */
static void load_bitmap(const struct tracking_bitmap *record, uint64_t length)
{
    uint64_t left = BITS_MAX, left_again = BITS_MAX;
    AUTO(dirty_bitmap) bitmap = tracking_record_load(record, length, &left, NULL);

    if (left > BITS_MAX) {
        abort();
    }
    if (!bitmap) {
        return;
    }
    struct tracking_bitmap *again = tracking_record_new(bitmap);
    if (!again || tracking_record_pack(again) < 0) {
        abort();
    }
    AUTO(dirty_bitmap) reloaded = tracking_record_load(again, length, &left_again, NULL);
    if (!reloaded || dirty_bitmap_count(reloaded) != dirty_bitmap_count(bitmap) ||
        dirty_bitmap_count(bitmap) > length) {
        abort();
    }
    tracking_bitmap_free(again);
}

static void use(struct tracking_file *file)
{
    for (guint i = 0; i < file->directory->bitmaps->len; i++) {
        load_bitmap(g_ptr_array_index(file->directory->bitmaps, i), file->map.length);
    }
    struct tracking_directory *copy = tracking_directory_copy(file->directory);

    if (!copy || tracking_file_store_directory(file, copy, NULL) < 0) {
        tracking_directory_free(copy);
    }
    if (file->map.length) {
        change_map_begin_write(&file->map, 0, 1);
        change_map_begin_zero(&file->map, 0, file->map.length);
        change_map_end_zero(&file->map, 0, file->map.length, true);
        change_map_distrust_zeroes(&file->map, atomic_load(&file->map.epoch));
    }
}

static void open_twice(const struct tracking_disk *disk)
{
    enum tracking_loss loss;
    struct tracking_file *file = tracking_file_open(path, disk, &loss, NULL);

    if (!file) {
        return;
    }
    use(file);
    tracking_file_take_samples(file, disk);
    uint64_t sum = count_all(file);
    uint16_t epoch = atomic_load(&file->map.epoch);
    if (tracking_file_close(file, &disk->identity, NULL) < 0) {
        return;
    }
    file = tracking_file_open(path, disk, &loss, NULL);
    if (file ? count_all(file) != sum : epoch < CHANGE_MAP_EPOCH_MAX - 1) {
        abort();
    }
    if (file) {
        tracking_file_unref(file);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *bytes;
    struct tracking_disk disk = {.length = MIB, .read = read_disk};
    uint64_t count = 0;

    if (!directory) {
        initialise();
    }
    uint8_t flags = size ? data[0] : 0;
    boot = flags & OTHER_BOOT ? 2 : 1;
    if (size > FILE_MAX / 2) {
        return 0;
    }
    if (flags & IS_RAW) {
        write_file(data + 1, size - 1);
    } else {
        bytes = g_malloc0(FILE_MAX);
        disk.length = build(bytes, &count, flags, data + (size > 0), size - (size > 0));
        write_file(bytes, flags & IS_CUT ? count / 2 : count);
        g_clear_pointer(&bytes, g_free);
    }
    disk.length = flags & OTHER_LENGTH ? disk.length / 2 + 12345 : disk.length;
    examine();
    if (disk.length <= DISK_MAX) {
        open_twice(&disk);
    }
    return 0;
}
