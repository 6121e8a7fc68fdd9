/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracking files: what they say after every kind of end, whose they are, what becomes of damaged
 * and foreign ones, and of those whose storage fails while guests write.
 *
 * What no check can see: a byte of the map itself that somebody else changed. Its values have no
 * checksums, as they are stored one by one; see docs/tracking.md.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/tracking-file.h"
#include "block/tracking-io.h"
#include "block/tracking.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define DISK    (4 * MIB)
#define GRANULE (64 * KIB)
#define EXTENT  (256 * KIB)

/* ---- A tracked disk ---------------------------------------------------------------------------
 */

struct rig {
    char *directory, *disk_path, *path;
    bool is_device; /* the disk is no file that has an identity */
    uint64_t granule, extent;
    struct block_node *root;
    struct block_device *device;
    struct change_tracker *tracker;
};

static struct tracking_io real_io;
static uint8_t boot = 1;

static void boot_id(uint8_t *id)
{
    memset(id, boot, 16);
}

static void rig_open(struct rig *rig)
{
    struct tracking_options options = {
        .device = "vda",
        .path = rig->path,
        .disk_path = rig->is_device ? NULL : rig->disk_path,
        .geometry = {.granule = rig->granule, .extent = rig->extent, .extents = 16},
    };

    tracking_identify(options.disk_path, &options.identity);
    rig->root = test_open("driver=file,discard=unmap,filename=%s", rig->disk_path);
    rig->tracker = tracking_start(&options, rig->root);
    rig->device = block_device_new("vda", rig->root, NULL);
    block_device_set_tracker(rig->device, rig->tracker);
}

static struct rig *rig_new(bool is_device)
{
    struct rig *rig = g_new0(struct rig, 1);

    tracking_io = real_io;
    tracking_io.boot_id = boot_id;
    rig->directory = test_directory_new(true);
    rig->disk_path = test_path(rig->directory, "disk");
    rig->path = test_path(rig->directory, "disk.tracking");
    rig->is_device = is_device;
    rig->granule = GRANULE;
    rig->extent = EXTENT;
    test_make_file(rig->disk_path, DISK);
    rig_open(rig);
    return rig;
}

static void rig_close_disk(struct rig *rig)
{
    struct block_device *device = block_device_ref(rig->device);

    tracking_take_samples(rig->tracker, rig->root);
    block_device_remove(rig->device);
    block_device_unref(device);
    block_node_unref(rig->root);
}

static void rig_finish(struct rig *rig)
{
    rig_close_disk(rig);
    tracking_finish(rig->tracker);
}

static void rig_kill(struct rig *rig)
{
    rig_close_disk(rig);
    tracking_abandon(rig->tracker);
}

static void rig_free(struct rig *rig)
{
    rig_finish(rig);
    tracking_io = real_io;
    g_free(rig->disk_path);
    g_free(rig->path);
    test_directory_free(rig->directory);
    g_free(rig);
}

static int rig_write(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    memset(buffer, 0x5a, bytes);
    return block_device_pwrite(rig->device, buffer, offset, bytes, 0);
}

static int rig_add(struct rig *rig, const char *name, GError **error)
{
    AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);

    return tracking_checkpoint_add(rig->tracker, rig->root, name, error);
}

static struct tracking_checkpoint_info rig_checkpoint(struct rig *rig, const char *name)
{
    g_autoptr(GArray) list = tracking_list_checkpoints(rig->tracker);
    struct tracking_checkpoint_info found = {0};

    for (guint i = 0; i < list->len; i++) {
        const struct tracking_checkpoint_info *info =
            &g_array_index(list, struct tracking_checkpoint_info, i);

        if (!strcmp(info->name, name)) {
            found = *info;
            found.name = "found";
        }
    }
    return found;
}

static void assert_changed(struct rig *rig, const char *name, uint64_t changed, uint64_t zero)
{
    struct tracking_checkpoint_info info = rig_checkpoint(rig, name);

    g_assert_cmpstr(info.name, ==, "found");
    g_assert_false(info.is_broken);
    g_assert_cmpuint(info.changed_bytes, ==, changed);
    g_assert_cmpuint(info.zero_bytes, ==, zero);
}

/* Why the map before this one was lost, or this one is. */
static enum tracking_loss rig_loss(struct rig *rig)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    enum tracking_loss loss = info.is_lost ? info.loss : info.previous_loss;
    tracking_info_clear(&info);
    return loss;
}

static bool rig_is_lost(struct rig *rig)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    bool is_lost = info.is_lost;
    tracking_info_clear(&info);
    return is_lost;
}

static void write_file(const char *path, const void *bytes, gsize size)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pwrite(fd, bytes, size, 0), ==, (gssize)size);
}

static GBytes *read_whole(const char *path)
{
    char *contents;
    gsize size;

    g_assert_true(g_file_get_contents(path, &contents, &size, NULL));
    return g_bytes_new_take(contents, size);
}

static void assert_file(const char *path, GBytes *expected)
{
    g_autoptr(GBytes) found = read_whole(path);

    g_assert_cmpuint(g_bytes_get_size(found), ==, g_bytes_get_size(expected));
    g_assert_true(g_bytes_equal(found, expected));
}

/* ---- Ends -------------------------------------------------------------------------------------
 */

static void test_ends(void)
{
    struct rig *rig = rig_new(false);
    struct tracking_info info;

    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, GRANULE, 3 * GRANULE), ==, 0);
    g_assert_cmpint(rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, MIB, 1), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(rig->device, GRANULE, GRANULE, 0), ==, 0);
    /* A disk of holes is not changed by zeroes. */
    g_assert_cmpint(block_device_write_zeroes(rig->device, 2 * MIB, MIB, 0), ==, 0);
    g_assert_cmpint(block_device_discard(rig->device, 3 * MIB, MIB, 0), ==, 0);
    assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    rig_finish(rig);
    rig_open(rig);
    assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    g_assert_cmpint(block_device_write_zeroes(rig->device, MIB, GRANULE, 0), ==, 0);
    assert_changed(rig, "b", 2 * GRANULE, 2 * GRANULE);
    rig_kill(rig);
    rig_open(rig);
    /* Exact, but for what the zeroes were worth. */
    assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    tracking_get_info(rig->tracker, &info);
    g_assert_false(info.is_conservative);
    g_assert_cmpint(info.previous_loss, ==, TRACKING_NOT_LOST);
    tracking_info_clear(&info);
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, 0);
    rig_kill(rig);
    rig_open(rig);
    g_assert_null(rig_checkpoint(rig, "a").name);
    rig_free(rig);
}

static void test_power_loss(void)
{
    struct rig *rig = rig_new(false);
    struct tracking_info info;

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(rig_write(rig, 3 * EXTENT + GRANULE, GRANULE), ==, 0);
    rig_kill(rig);
    boot++;
    rig_open(rig);
    assert_changed(rig, "a", 2 * EXTENT, 0);
    tracking_get_info(rig->tracker, &info);
    g_assert_true(info.is_conservative);
    g_assert_cmpuint(info.recovered_bytes, ==, 2 * EXTENT - 2 * GRANULE);
    tracking_info_clear(&info);
    /* Who does not ask about the time before has an exact map again. */
    g_assert_cmpint(rig_add(rig, "b", NULL), ==, 0);
    assert_changed(rig, "b", 0, 0);
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, 0);
    tracking_get_info(rig->tracker, &info);
    g_assert_false(info.is_conservative);
    tracking_info_clear(&info);
    /* After a clean end another boot means nothing. */
    rig_finish(rig);
    boot++;
    rig_open(rig);
    assert_changed(rig, "b", 0, 0);
    rig_free(rig);
}

static void begin(struct rig *rig, enum block_operation operation)
{
    tracking_begin(rig->tracker, rig->root, operation, 0, GRANULE);
}

static void end(struct rig *rig, enum block_operation operation)
{
    tracking_end(rig->tracker, rig->root, operation, 0, GRANULE, 0);
}

/*
 * Zeroes that had nothing to do when they began end after data came, and after a discard that took
 * half of it away again.
 */
static void test_half_discarded(void)
{
    struct rig *rig = rig_new(false);

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    begin(rig, BLOCK_OPERATION_WRITE_ZEROES);
    g_assert_cmpint(rig_write(rig, 0, GRANULE), ==, 0);
    begin(rig, BLOCK_OPERATION_DISCARD);
    g_assert_cmpint(block_node_discard(rig->root, 0, GRANULE / 2), ==, 0);
    end(rig, BLOCK_OPERATION_DISCARD);
    end(rig, BLOCK_OPERATION_WRITE_ZEROES);
    assert_changed(rig, "a", GRANULE, 0);
    /* And the other way round. */
    begin(rig, BLOCK_OPERATION_DISCARD);
    end(rig, BLOCK_OPERATION_WRITE_ZEROES);
    end(rig, BLOCK_OPERATION_DISCARD);
    assert_changed(rig, "a", GRANULE, 0);
    g_assert_cmpint(block_device_discard(rig->device, 0, GRANULE, 0), ==, 0);
    assert_changed(rig, "a", GRANULE, GRANULE);
    rig_free(rig);
}

/* ---- Whose it is ------------------------------------------------------------------------------
 */

static struct rig *closed_rig(bool is_device)
{
    struct rig *rig = rig_new(is_device);

    g_assert_cmpint(rig_write(rig, 0, DISK), ==, 0);
    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, MIB, 1), ==, 0);
    rig_finish(rig);
    return rig;
}

static void assert_lost(struct rig *rig, enum tracking_loss loss)
{
    g_autoptr(GError) error = NULL;

    rig_open(rig);
    g_assert_cmpstr(tracking_loss_names[rig_loss(rig)], ==, tracking_loss_names[loss]);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    /* The disk works all the same. */
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
}

static void set_length(struct rig *rig, uint64_t length)
{
    g_assert_cmpint(truncate(rig->disk_path, (off_t)length), ==, 0);
}

static void poke(const char *path, uint64_t offset, uint8_t byte)
{
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);

    g_assert_cmpint(pwrite(fd, &byte, 1, (off_t)offset), ==, 1);
}

static void test_modified(void)
{
    struct rig *rig = closed_rig(false);

    poke(rig->disk_path, 12345, 1);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    /* The new map tracks. */
    g_assert_false(rig_is_lost(rig));
    g_assert_cmpint(rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    assert_changed(rig, "b", GRANULE, 0);
    rig_free(rig);
}

static void test_longer_or_shorter_file(void)
{
    struct rig *rig = closed_rig(false);

    set_length(rig, DISK + MIB);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    rig_free(rig);
    rig = closed_rig(false);
    set_length(rig, DISK - MIB);
    assert_lost(rig, TRACKING_LOST_RESIZED);
    rig_free(rig);
}

static void test_longer_or_shorter_device(void)
{
    struct rig *rig = closed_rig(true);

    set_length(rig, DISK + MIB);
    rig_open(rig);
    g_assert_cmpint(rig_loss(rig), ==, TRACKING_NOT_LOST);
    /* What a volume has at its new end is anything. */
    assert_changed(rig, "a", GRANULE + MIB, 0);
    rig_finish(rig);
    set_length(rig, DISK - MIB);
    assert_lost(rig, TRACKING_LOST_RESIZED);
    rig_free(rig);
}

static void test_other_disk(void)
{
    struct rig *rig = closed_rig(false);
    g_autoptr(GBytes) disk = read_whole(rig->disk_path);
    g_autoptr(GBytes) file = read_whole(rig->path);

    write_file(rig->disk_path, g_bytes_get_data(disk, NULL), g_bytes_get_size(disk));
    test_make_file(rig->disk_path, DISK);
    g_autofree char *other = test_path(rig->directory, "other");
    test_make_file(other, DISK);
    g_assert_cmpint(rename(other, rig->disk_path), ==, 0);
    assert_lost(rig, TRACKING_LOST_OTHER_DISK);
    g_assert_true(rig_is_lost(rig));
    rig_finish(rig);
    assert_file(rig->path, file);
    rig_open(rig);
    rig_free(rig);
}

/* Somebody wrote and set the time back: found where a sample is of what did not change. */
static void test_samples(void)
{
    struct rig *rig = closed_rig(false);
    struct stat information;

    g_assert_cmpint(stat(rig->disk_path, &information), ==, 0);
    struct timespec times[2] = {information.st_atim, information.st_mtim};
    poke(rig->disk_path, 7, 1); /* the first block is always looked at */
    g_assert_cmpint(utimensat(AT_FDCWD, rig->disk_path, times, 0), ==, 0);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    rig_free(rig);
    /* What the map says is changed since may be different. */
    rig = closed_rig(true);
    rig_open(rig);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    rig_kill(rig);
    poke(rig->disk_path, 7, 1);
    rig_open(rig);
    g_assert_cmpint(rig_loss(rig), ==, TRACKING_NOT_LOST);
    rig_free(rig);
}

static void test_in_use(void)
{
    struct rig *rig = rig_new(false);
    struct tracking_disk disk = {.length = DISK};
    enum tracking_loss loss;

    g_assert_null(tracking_file_open(rig->path, &disk, &loss, NULL));
    g_assert_cmpint(loss, ==, TRACKING_LOST_IN_USE);
    rig_free(rig);
}

/* ---- Damage -----------------------------------------------------------------------------------
 */

static int read_five_as(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    memset(buffer, 0x5a, bytes);
    return 0;
}

/* The loss, or TRACKING_NOT_LOST and what changed since "a". */
static enum tracking_loss look(struct rig *rig, const uint8_t *bytes, gsize size, uint64_t *changed)
{
    struct tracking_disk disk = {.length = DISK, .read = read_five_as};
    enum tracking_loss loss = TRACKING_NOT_LOST;
    uint64_t zero;

    write_file(rig->path, bytes, size);
    struct tracking_file *file = tracking_file_open(rig->path, &disk, &loss, NULL);
    if (!file) {
        g_autoptr(GBytes) expected = g_bytes_new_static(bytes, size);

        g_assert_cmpint(loss, !=, TRACKING_NOT_LOST);
        assert_file(rig->path, expected);
        return loss;
    }
    struct tracking_checkpoint *checkpoint = tracking_directory_find(file->directory, "a");
    g_assert_nonnull(checkpoint);
    change_map_count(&file->map, (uint16_t)checkpoint->epoch, changed, &zero);
    tracking_file_abandon(file);
    return TRACKING_NOT_LOST;
}

static void test_damage(void)
{
    struct rig *rig = closed_rig(true);
    g_autoptr(GBytes) original = read_whole(rig->path);
    gsize size = g_bytes_get_size(original);
    g_autofree uint8_t *bytes = g_memdup2(g_bytes_get_data(original, NULL), size);
    struct tracking_header header;
    uint64_t changed = 0;
    unsigned step = test_cases(8) >= 8 ? 41 : 97;

    g_assert_cmpint(tracking_header_decode(bytes, &header, NULL) == 0 ||
                        tracking_header_decode(bytes + 4096, &header, NULL) == 0,
                    ==, true);
    g_assert_cmpint(look(rig, bytes, size, &changed), ==, TRACKING_NOT_LOST);
    g_assert_cmpuint(changed, ==, GRANULE);
    for (unsigned at = 0; at < 4096; at += at < 192 ? 3 : step) {
        /* One copy is enough, but it may be the older one: nothing is missed. */
        for (unsigned copy = 0; copy < 2; copy++) {
            bytes[copy * 4096 + at] ^= 0x10;
            g_assert_cmpint(look(rig, bytes, size, &changed), ==, TRACKING_NOT_LOST);
            g_assert_cmpuint(changed, >=, GRANULE);
            bytes[copy * 4096 + at] ^= 0x10;
        }
        bytes[at] ^= 0x10;
        bytes[4096 + at] ^= 0x10;
        enum tracking_loss loss = look(rig, bytes, size, &changed);
        g_assert_cmpint(loss, ==, at < 8 ? TRACKING_LOST_FOREIGN : TRACKING_LOST_DAMAGED);
        bytes[at] ^= 0x10;
        bytes[4096 + at] ^= 0x10;
    }
    for (unsigned at = 0; at < TRACKING_LOG_SECTOR; at += step) {
        bytes[TRACKING_LOG_OFFSET + at] ^= 0x10;
        g_assert_cmpint(look(rig, bytes, size, &changed), ==, TRACKING_LOST_DAMAGED);
        bytes[TRACKING_LOG_OFFSET + at] ^= 0x10;
    }
    for (uint64_t at = 0; at < header.directory_bytes; at++) {
        bytes[header.directory_offset + at] ^= 0x10;
        g_assert_cmpint(look(rig, bytes, size, &changed), ==, TRACKING_LOST_DAMAGED);
        bytes[header.directory_offset + at] ^= 0x10;
    }
    for (unsigned at = 0; at < 4; at++) {
        bytes[TRACKING_MARKS_OFFSET + at] ^= 0x05;
        g_assert_cmpint(look(rig, bytes, size, &changed), !=, TRACKING_NOT_LOST);
        bytes[TRACKING_MARKS_OFFSET + at] ^= 0x05;
    }
    static const gsize sizes[] = {0,     1,     7,      8,      511,    4095,   4096,
                                  4097,  8191,  8192,   12287,  12288,  12800,  65535,
                                  65536, 66000, 131071, 131072, 131080, 200000, 262143};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_assert_cmpint(look(rig, bytes, MIN_OF(sizes[i], size - 1), &changed), ==,
                        TRACKING_LOST_DAMAGED);
    }
    write_file(rig->path, bytes, size);
    rig_open(rig);
    rig_free(rig);
}

static void test_damaged_is_replaced(void)
{
    struct rig *rig = closed_rig(false);

    poke(rig->path, 20, 77);
    poke(rig->path, 4096 + 20, 77);
    assert_lost(rig, TRACKING_LOST_DAMAGED);
    g_assert_cmpint(rig_add(rig, "b", NULL), ==, 0);
    rig_kill(rig);
    rig_open(rig);
    assert_changed(rig, "b", 0, 0);
    rig_free(rig);
}

static void test_foreign(void)
{
    static const gsize sizes[] = {1, 20, 600, 4096, 5000, 8192, 300000};
    struct rig *rig = closed_rig(false);

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *text = g_malloc(sizes[i]);

        memset(text, 'x', sizes[i]);
        g_autoptr(GBytes) expected = g_bytes_new(text, sizes[i]);
        write_file(rig->path, text, sizes[i]);
        assert_lost(rig, TRACKING_LOST_FOREIGN);
        g_assert_true(rig_is_lost(rig));
        rig_finish(rig);
        assert_file(rig->path, expected);
    }
    rig_open(rig);
    rig_free(rig);
}

/* ---- Rebuilding -------------------------------------------------------------------------------
 */

static void add_checkpoint(struct tracking_file *file, const char *name, uint32_t epoch)
{
    struct tracking_directory *copy = tracking_directory_copy(file->directory);
    struct tracking_checkpoint *checkpoint = g_new0(struct tracking_checkpoint, 1);

    checkpoint->name = g_strdup(name);
    checkpoint->epoch = epoch;
    g_ptr_array_add(copy->checkpoints, checkpoint);
    g_assert_cmpint(tracking_file_store_directory(file, copy, NULL), ==, 0);
}

/* What changed since each checkpoint, granule by granule, with its state. */
static GArray *answers(const struct tracking_file *file, uint64_t length)
{
    GArray *list = g_array_new(FALSE, FALSE, 1);

    for (guint i = 0; i < file->directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(file->directory->checkpoints, i);

        for (uint64_t at = 0; at + 4096 <= length; at += 4096) {
            uint64_t start, bytes;
            enum change_state state = CHANGE_DATA;
            bool is_changed = change_map_next(&file->map, (uint16_t)checkpoint->epoch, at,
                                              at + 4096, &start, &bytes, &state);
            uint8_t answer = (uint8_t)(is_changed + (is_changed && state == CHANGE_ZERO));

            g_array_append_val(list, answer);
        }
    }
    return list;
}

static void rebuild_once(struct test_random *random, const char *path)
{
    struct tracking_geometry geometry = {4096, 65536, 16};
    struct tracking_identity identity = {0};
    uint64_t length = test_random_between(random, 20, 3000) * 512;
    struct tracking_file *file =
        tracking_file_create(path, length, &geometry, NULL, &identity, NULL);
    unsigned count = (unsigned)test_random_below(random, 30);
    uint16_t epoch = 1;

    g_assert_nonnull(file);
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("c%u", i);

        for (unsigned j = 0; j < 10; j++) {
            uint64_t offset, bytes;

            test_random_range(random, align_down(length, 512), 512, 16384, &offset, &bytes);
            if (test_random_chance(random, 40)) {
                change_map_begin_zero(&file->map, offset, bytes);
                change_map_end_zero(&file->map, offset, bytes, true);
            } else {
                change_map_begin_write(&file->map, offset, bytes);
            }
        }
        epoch = change_map_cut(&file->map);
        if (epoch > 16100) {
            break;
        }
        add_checkpoint(file, name, epoch);
        if (test_random_chance(random, 50)) {
            /* Epochs that nobody asks about any more. */
            uint64_t next = epoch + 1u + test_random_below(random, 16200u - epoch);

            atomic_store(&file->map.epoch, (uint16_t)next);
        }
    }
    uint64_t other =
        test_random_chance(random, 50) ? length : test_random_between(random, 20, 3000) * 512;
    /* A short last granule is changed by another length. */
    uint64_t common = other == length ? length : align_down(MIN_OF(length, other), 4096);
    common -= other == length ? 0 : MIN_OF(common, UINT64_C(4096));
    g_autoptr(GArray) before = answers(file, common);
    uint16_t highest = atomic_load(&file->map.epoch);
    struct tracking_file *rebuilt = tracking_file_rebuild(file, other, NULL);
    g_assert_nonnull(rebuilt);
    g_autoptr(GArray) after = answers(rebuilt, common);
    g_assert_cmpmem(before->data, before->len, after->data, after->len);
    g_assert_cmpuint(atomic_load(&rebuilt->map.epoch), <=, MIN_OF(highest, count + 2u));
    for (guint i = 0; i < rebuilt->directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint =
            g_ptr_array_index(rebuilt->directory->checkpoints, i);

        for (uint64_t at = align_up(length, 4096); at < other; at += 4096) {
            g_assert_cmpuint(change_map_epoch_at(&rebuilt->map, at / 4096), >, checkpoint->epoch);
        }
    }
    g_assert_cmpint(tracking_file_close(rebuilt, &identity, NULL), ==, 0);
    struct tracking_disk disk = {.length = other, .read = read_five_as};
    enum tracking_loss loss;
    file = tracking_file_open(path, &disk, &loss, NULL);
    g_assert_nonnull(file);
    g_autoptr(GArray) again = answers(file, common);
    g_assert_cmpmem(before->data, before->len, again->data, again->len);
    tracking_file_abandon(file);
}

static void test_rebuild(void)
{
    struct test_random random = test_random_new(test_seed());
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "file");
    unsigned long cases = test_cases(120);

    for (unsigned long i = 0; i < cases; i++) {
        rebuild_once(&random, path);
    }
    test_directory_free(directory);
}

static void test_last_epochs(void)
{
    struct rig *rig = rig_new(false);
    struct tracking_info info;

    g_assert_cmpint(rig_write(rig, 0, DISK), ==, 0);
    rig_finish(rig);
    struct tracking_disk disk = {.length = DISK, .path = rig->disk_path, .read = read_five_as};
    enum tracking_loss loss;
    tracking_identify(rig->disk_path, &disk.identity);
    struct tracking_file *file = tracking_file_open(rig->path, &disk, &loss, NULL);
    g_assert_nonnull(file);
    atomic_store(&file->map.epoch, CHANGE_MAP_EPOCH_MAX - 70);
    file->header.sample_count = 0;
    g_assert_cmpint(tracking_file_close(file, &disk.identity, NULL), ==, 0);
    rig_open(rig);
    g_assert_cmpint(rig_loss(rig), ==, TRACKING_NOT_LOST);
    for (unsigned i = 0; i < 200; i++) {
        g_autofree char *name = g_strdup_printf("c%u", i);

        g_assert_cmpint(rig_add(rig, name, NULL), ==, 0);
        g_assert_cmpint(rig_write(rig, i % 64 * GRANULE, 1), ==, 0);
        assert_changed(rig, name, GRANULE, 0);
        assert_changed(rig, "c0", MIN_OF(i + 1, 64u) * GRANULE, 0);
    }
    assert_changed(rig, "c190", 10 * GRANULE, 0);
    tracking_get_info(rig->tracker, &info);
    g_assert_cmpuint(info.epoch, <, 250);
    tracking_info_clear(&info);
    rig_free(rig);
}

/* ---- Storage that fails -----------------------------------------------------------------------
 */

static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fault_changed = PTHREAD_COND_INITIALIZER;
static int fault_status; /* of each durable operation */
static bool fault_hangs, fault_spares_marks;

static int fault_now(bool is_mark)
{
    SCOPE_LOCK(&fault_lock);

    if (is_mark && fault_spares_marks) {
        return 0;
    }
    while (fault_hangs) {
        pthread_cond_wait(&fault_changed, &fault_lock);
    }
    return fault_status;
}

static int faulty_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    int status = fault_now(offset == TRACKING_MARKS_OFFSET);

    return status < 0 ? status : real_io.write_durably(fd, bytes, size, offset);
}

static int faulty_sync(int fd, struct guarded_mapping *mapping, uint64_t offset, uint64_t size)
{
    int status = fault_now(false);

    return status < 0 ? status : real_io.sync_mapping(fd, mapping, offset, size);
}

static void set_fault(int status, bool hangs, bool spares_marks)
{
    SCOPE_LOCK(&fault_lock);

    fault_status = status;
    fault_hangs = hangs;
    fault_spares_marks = spares_marks;
    pthread_cond_broadcast(&fault_changed);
}

static struct rig *faulty_rig(void)
{
    struct rig *rig = rig_new(false);

    /* More extents than can be active. */
    rig_finish(rig);
    g_assert_cmpint(unlink(rig->path), ==, 0);
    rig->extent = GRANULE;
    rig_open(rig);
    set_fault(0, false, false);
    tracking_io.write_durably = faulty_write;
    tracking_io.sync_mapping = faulty_sync;
    tracking_io.timeout_ns = 100 * NS_PER_MS;
    return rig;
}

#define GUESTS 4
struct guest {
    struct rig *rig;
    unsigned number;
    _Atomic bool *over;
    _Atomic unsigned writes;
    pthread_t thread;
};

static void *run_guest(void *data)
{
    struct guest *guest = data;
    uint64_t part = DISK / GUESTS, at = 0;

    while (!atomic_load(guest->over)) {
        g_assert_cmpint(rig_write(guest->rig, guest->number * part + at, 4096), ==, 0);
        at = (at + 36 * KIB) % (part - 4096);
        atomic_fetch_add(&guest->writes, 1);
    }
    return NULL;
}

/* Guests write, this happens, and all of them go on. */
static void write_while(struct rig *rig, void (*happens)(struct rig *rig))
{
    struct guest guests[GUESTS];
    _Atomic bool over = false;

    for (unsigned i = 0; i < GUESTS; i++) {
        guests[i] = (struct guest){.rig = rig, .number = i, .over = &over};
        g_assert_cmpint(pthread_create(&guests[i].thread, NULL, run_guest, &guests[i]), ==, 0);
    }
    for (unsigned i = 0; i < GUESTS; i++) {
        while (atomic_load(&guests[i].writes) < 20) {
            g_usleep(100);
        }
    }
    happens(rig);
    while (!rig_is_lost(rig)) {
        g_usleep(100);
    }
    for (unsigned i = 0; i < GUESTS; i++) {
        unsigned before = atomic_load(&guests[i].writes);

        while (atomic_load(&guests[i].writes) < before + 20) {
            g_usleep(100);
        }
    }
    atomic_store(&over, true);
    for (unsigned i = 0; i < GUESTS; i++) {
        pthread_join(guests[i].thread, NULL);
    }
    g_assert_cmpint(rig_loss(rig), ==, TRACKING_LOST_STORAGE);
}

/* What a kill leaves now says that the map is lost, or there is nothing that says anything. */
static void assert_not_believed(struct rig *rig)
{
    struct tracking_contents contents;
    enum tracking_loss loss;
    AUTO_CLOSE int fd = open(rig->path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        g_assert_true(tracking_contents_read(fd, &contents, &loss, NULL) < 0 ||
                      contents.marked_loss != TRACKING_NOT_LOST);
        tracking_contents_clear(&contents);
    }
}

static void reopen_lost(struct rig *rig)
{
    g_autoptr(GError) error = NULL;

    rig_open(rig);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    rig_free(rig);
}

static void fail_all(struct rig *rig)
{
    set_fault(-EIO, false, false);
}

static void fail_all_but_marks(struct rig *rig)
{
    set_fault(-EIO, false, true);
}

static void hang_all(struct rig *rig)
{
    set_fault(0, true, false);
}

static void shorten(struct rig *rig)
{
    g_assert_cmpint(truncate(rig->path, 4096), ==, 0);
}

static void test_storage(gconstpointer data)
{
    void (*const *happens)(struct rig * rig) = data;
    struct rig *rig = faulty_rig();

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    write_while(rig, *happens);
    assert_not_believed(rig);
    set_fault(0, false, false);
    rig_kill(rig);
    assert_not_believed(rig);
    reopen_lost(rig);
}

/* As nbdkit does: what was opened before a fork is the child's, and the parent ends. */
static void test_fork(void)
{
    struct rig *rig = rig_new(false);
    int status;

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    rig_kill(rig);
    rig_open(rig);
    pid_t child = fork();
    g_assert_cmpint(child, >=, 0);
    if (child == 0) {
        struct tracking_disk disk = {.length = DISK};
        enum tracking_loss loss;
        bool is_right = rig_write(rig, 0, 1) == 0 && rig_add(rig, "b", NULL) == 0 &&
                        rig_write(rig, MIB, 1) == 0 &&
                        /* The lock is the child's, too. */
                        !tracking_file_open(rig->path, &disk, &loss, NULL) &&
                        loss == TRACKING_LOST_IN_USE;

        _exit(is_right ? 0 : 1);
    }
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    g_assert_cmpint(status, ==, 0);
    rig_kill(rig);
    rig_open(rig);
    assert_changed(rig, "a", 2 * GRANULE, 0);
    assert_changed(rig, "b", GRANULE, 0);
    rig_free(rig);
}

/* Nobody writes; who asks is not told that nothing changed. */
static void test_shortened_at_rest(void)
{
    struct rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    shorten(rig);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    g_assert_true(rig_is_lost(rig));
    rig_kill(rig);
    reopen_lost(rig);
}

static void test_full_directory(void)
{
    struct rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    set_fault(-ENOSPC, false, false);
    g_assert_cmpint(rig_add(rig, "b", &error), <, 0);
    g_assert_nonnull(error);
    set_fault(0, false, false);
    g_assert_null(rig_checkpoint(rig, "b").name);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(rig_add(rig, "b", NULL), ==, 0);
    assert_changed(rig, "a", GRANULE, 0);
    assert_changed(rig, "b", 0, 0);
    rig_kill(rig);
    rig_open(rig);
    assert_changed(rig, "a", GRANULE, 0);
    rig_free(rig);
}

/* The disk stands still meanwhile. */
static void test_hanging_checkpoint(void)
{
    struct rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    hang_all(rig);
    g_assert_cmpint(rig_add(rig, "b", &error), <, 0);
    g_assert_nonnull(error);
    g_assert_true(rig_is_lost(rig));
    g_assert_cmpint(rig_write(rig, 0, DISK), ==, 0);
    assert_not_believed(rig);
    set_fault(0, false, false);
    rig_kill(rig);
    reopen_lost(rig);
}

static void test_full_at_creation(void)
{
    struct rig *rig = rig_new(false);
    struct rlimit previous, small = {64 * KIB, RLIM_INFINITY};

    rig_finish(rig);
    unlink(rig->path);
    signal(SIGXFSZ, SIG_IGN);
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &previous), ==, 0);
    small.rlim_max = previous.rlim_max;
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &small), ==, 0);
    rig_open(rig);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &previous), ==, 0);
    g_assert_true(rig_is_lost(rig));
    g_assert_cmpint(rig_loss(rig), ==, TRACKING_LOST_STORAGE);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(access(rig->path, F_OK), !=, 0);
    rig_free(rig);
}

/* A map that cannot be opened, nor replaced, while its disk is written. */
static void test_condemned(void)
{
    struct rig *rig = closed_rig(true);

    tracking_io.write_durably = faulty_write;
    tracking_io.sync_mapping = faulty_sync;
    set_fault(-EIO, false, true);
    rig_open(rig);
    g_assert_true(rig_is_lost(rig));
    g_assert_cmpint(rig_write(rig, 2 * MIB, 1), ==, 0);
    rig_finish(rig);
    set_fault(0, false, false);
    assert_not_believed(rig);
    reopen_lost(rig);
}

/* The new name of a rebuilt map cannot be made durable. */
static int fail_sync_of_directory(int fd)
{
    struct stat information;

    return fstat(fd, &information) == 0 && S_ISDIR(information.st_mode) ? -EIO
                                                                        : real_io.sync_file(fd);
}

static void test_rename(void)
{
    struct rig *rig = rig_new(true);

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    tracking_io.sync_file = fail_sync_of_directory;
    struct block_drain *drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);
    tracking_resize(rig->tracker, DISK + MIB);
    block_drain_end(drain);
    g_assert_true(rig_is_lost(rig));
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    rig_kill(rig);
    assert_not_believed(rig);
    tracking_io.sync_file = real_io.sync_file;
    reopen_lost(rig);
}

static void test_stop(void)
{
    struct rig *rig = rig_new(false);
    g_autofree char *copy = test_path(rig->directory, "copy");

    g_assert_cmpint(rig_add(rig, "a", NULL), ==, 0);
    /* What a power loss brings back. */
    g_assert_cmpint(link(rig->path, copy), ==, 0);
    g_assert_cmpint(tracking_stop(rig->tracker, NULL), ==, 0);
    g_assert_cmpint(access(rig->path, F_OK), !=, 0);
    g_assert_cmpint(rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(rename(copy, rig->path), ==, 0);
    assert_not_believed(rig);
    rig_kill(rig);
    reopen_lost(rig);
}

int main(int argc, char **argv)
{
    static void (*faults[])(struct rig * rig) = {fail_all, fail_all_but_marks, hang_all, shorten};

    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    real_io = tracking_io;
    g_test_add_func("/tracking-file/checkpoints-survive-and-a-kill-is-exact", test_ends);
    g_test_add_func("/tracking-file/a-power-loss-is-conservative-and-counted", test_power_loss);
    g_test_add_func("/tracking-file/half-a-granule-discarded-is-data", test_half_discarded);
    g_test_add_func("/tracking-file/a-disk-written-meanwhile-is-lost", test_modified);
    g_test_add_func("/tracking-file/a-file-of-another-length-is-lost", test_longer_or_shorter_file);
    g_test_add_func("/tracking-file/a-grown-device-is-a-changed-end-a-shorter-one-lost",
                    test_longer_or_shorter_device);
    g_test_add_func("/tracking-file/the-file-of-another-disk-is-left-alone", test_other_disk);
    g_test_add_func("/tracking-file/samples-find-what-was-changed-in-secret", test_samples);
    g_test_add_func("/tracking-file/a-file-in-use-is-left-alone", test_in_use);
    g_test_add_func("/tracking-file/damage-is-found-wherever-it-is-but-in-the-map", test_damage);
    g_test_add_func("/tracking-file/a-damaged-map-is-replaced", test_damaged_is_replaced);
    g_test_add_func("/tracking-file/foreign-files-are-left-alone", test_foreign);
    g_test_add_func("/tracking-file/new-numbers-keep-every-answer", test_rebuild);
    g_test_add_func("/tracking-file/epochs-do-not-run-out", test_last_epochs);
    g_test_add_data_func("/tracking-file/errors-cost-the-map-and-no-guest", &faults[0],
                         test_storage);
    g_test_add_data_func("/tracking-file/errors-of-the-log-are-marked", &faults[1], test_storage);
    g_test_add_data_func("/tracking-file/a-hang-costs-the-map-and-no-guest", &faults[2],
                         test_storage);
    g_test_add_data_func("/tracking-file/a-shortened-file-costs-the-map-and-no-guest", &faults[3],
                         test_storage);
    g_test_add_func("/tracking-file/a-child-goes-on-with-its-parents-map", test_fork);
    g_test_add_func("/tracking-file/what-is-gone-is-not-called-unchanged", test_shortened_at_rest);
    g_test_add_func("/tracking-file/a-full-disk-under-the-directory-changes-nothing",
                    test_full_directory);
    g_test_add_func("/tracking-file/a-checkpoint-that-hangs-lets-the-guest-go",
                    test_hanging_checkpoint);
    g_test_add_func("/tracking-file/a-full-disk-at-creation-costs-the-map", test_full_at_creation);
    g_test_add_func("/tracking-file/what-cannot-be-opened-is-not-believed-later", test_condemned);
    g_test_add_func("/tracking-file/a-rename-that-may-be-undone-costs-the-map", test_rename);
    g_test_add_func("/tracking-file/a-stopped-map-is-not-believed-again", test_stop);
    return g_test_run();
}
