/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracking files: what they say after every kind of end, whose they are, and what becomes of
 * damaged and foreign ones.
 *
 * What no check can see: a byte of the map itself that somebody else changed. Its values have no
 * checksums, as they are stored one by one; see docs/tracking.md.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/tracking-file.h"
#include "block/tracking-rebuild.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"
#include "tests/lib/tracking-rig.h"

#define DISK    TRACKING_RIG_DISK
#define GRANULE TRACKING_RIG_GRANULE
#define EXTENT  TRACKING_RIG_EXTENT

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
    struct tracking_rig *rig = tracking_rig_new(false);
    struct tracking_info info;

    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, GRANULE, 3 * GRANULE), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, MIB, 1), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(rig->device, GRANULE, GRANULE, 0), ==, 0);
    /* A disk of holes is not changed by zeroes. */
    g_assert_cmpint(block_device_write_zeroes(rig->device, 2 * MIB, MIB, 0), ==, 0);
    g_assert_cmpint(block_device_discard(rig->device, 3 * MIB, MIB, 0), ==, 0);
    tracking_rig_assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    tracking_rig_finish(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    g_assert_cmpint(block_device_write_zeroes(rig->device, MIB, GRANULE, 0), ==, 0);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE, 2 * GRANULE);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    /* Exact, but for what the zeroes were worth. */
    tracking_rig_assert_changed(rig, "a", 4 * GRANULE, GRANULE);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE, GRANULE);
    tracking_get_info(rig->tracker, &info);
    g_assert_false(info.is_conservative);
    g_assert_cmpint(info.previous_loss, ==, TRACKING_NOT_LOST);
    tracking_info_clear(&info);
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    g_assert_null(tracking_rig_checkpoint(rig, "a").name);
    tracking_rig_free(rig);
}

static void lose_power(struct tracking_rig *rig)
{
    tracking_rig_kill(rig);
    tracking_rig_boot++;
    tracking_rig_open(rig);
}

static void assert_recovered(struct tracking_rig *rig, uint64_t bytes)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    g_assert_cmpint(info.is_conservative, ==, bytes > 0);
    g_assert_cmpuint(info.recovered_bytes, ==, bytes);
    tracking_info_clear(&info);
}

static void test_power_loss(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 3 * EXTENT + GRANULE, GRANULE), ==, 0);
    lose_power(rig);
    tracking_rig_assert_changed(rig, "a", 2 * EXTENT, 0);
    assert_recovered(rig, 2 * EXTENT - 2 * GRANULE);
    /* A second loss adds to what the first one did, for who asks about both. */
    g_assert_cmpint(tracking_rig_write(rig, 5 * EXTENT, GRANULE), ==, 0);
    lose_power(rig);
    assert_recovered(rig, 3 * EXTENT - 3 * GRANULE);
    /* Who does not ask about the time before has an exact map again. */
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    tracking_rig_assert_changed(rig, "b", 0, 0);
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, 0);
    assert_recovered(rig, 0);
    /* And the next loss is counted by itself. */
    g_assert_cmpint(tracking_rig_write(rig, 7 * EXTENT, GRANULE), ==, 0);
    lose_power(rig);
    assert_recovered(rig, EXTENT - GRANULE);
    tracking_rig_assert_changed(rig, "b", EXTENT, 0);
    g_assert_cmpint(tracking_rig_add(rig, "c", NULL), ==, 0);
    /* After a clean end another boot means nothing. */
    tracking_rig_finish(rig);
    tracking_rig_boot++;
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "c", 0, 0);
    tracking_rig_free(rig);
}

static void assert_lost(struct tracking_rig *rig, enum tracking_loss loss)
{
    g_autoptr(GError) error = NULL;

    tracking_rig_open(rig);
    g_assert_cmpstr(tracking_loss_names[tracking_rig_loss(rig)], ==, tracking_loss_names[loss]);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    /* The disk works all the same. */
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
}

/* Copied to other storage: the file is another one, with the same bytes. */
static void copy_file(struct tracking_rig *rig)
{
    g_autofree char *copy = test_path(rig->directory, "copy");
    g_autoptr(GBytes) contents = read_whole(rig->path);

    write_file(copy, g_bytes_get_data(contents, NULL), g_bytes_get_size(contents));
    g_assert_cmpint(rename(copy, rig->path), ==, 0);
}

/*
 * After a clean end a copy is as good as the file was. One of a file that was in use may be of any
 * moment since, and what changed later is not in it.
 */
static void test_copied_file(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    tracking_rig_finish(rig);
    copy_file(rig);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_NOT_LOST);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    copy_file(rig);
    g_assert_cmpint(tracking_rig_write(rig, 3 * EXTENT, 1), ==, 0);
    tracking_rig_kill(rig);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    tracking_rig_free(rig);
}

static void begin(struct tracking_rig *rig, enum block_operation operation)
{
    tracking_begin(rig->tracker, rig->root, operation, 0, GRANULE);
}

static void end(struct tracking_rig *rig, enum block_operation operation)
{
    tracking_end(rig->tracker, rig->root, operation, 0, GRANULE, 0);
}

/*
 * Zeroes that had nothing to do when they began end after data came, and after a discard that took
 * half of it away again.
 */
static void test_half_discarded(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    begin(rig, BLOCK_OPERATION_WRITE_ZEROES);
    g_assert_cmpint(tracking_rig_write(rig, 0, GRANULE), ==, 0);
    begin(rig, BLOCK_OPERATION_DISCARD);
    g_assert_cmpint(block_node_discard(rig->root, 0, GRANULE / 2), ==, 0);
    end(rig, BLOCK_OPERATION_DISCARD);
    end(rig, BLOCK_OPERATION_WRITE_ZEROES);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    /* And the other way round. */
    begin(rig, BLOCK_OPERATION_DISCARD);
    end(rig, BLOCK_OPERATION_WRITE_ZEROES);
    end(rig, BLOCK_OPERATION_DISCARD);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    g_assert_cmpint(block_device_discard(rig->device, 0, GRANULE, 0), ==, 0);
    tracking_rig_assert_changed(rig, "a", GRANULE, GRANULE);
    tracking_rig_free(rig);
}

/* ---- Whose it is ------------------------------------------------------------------------------
 */

static void set_length(struct tracking_rig *rig, uint64_t length)
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
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    poke(rig->disk_path, 12345, 1);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    /* The new map tracks. */
    g_assert_false(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    tracking_rig_assert_changed(rig, "b", GRANULE, 0);
    tracking_rig_free(rig);
}

static void test_longer_or_shorter_file(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    set_length(rig, DISK + MIB);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    tracking_rig_free(rig);
    rig = tracking_rig_new_closed(false);
    set_length(rig, DISK - MIB);
    assert_lost(rig, TRACKING_LOST_RESIZED);
    tracking_rig_free(rig);
}

static void test_longer_or_shorter_device(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(true);

    set_length(rig, DISK + MIB);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_NOT_LOST);
    /* What a volume has at its new end is anything. */
    tracking_rig_assert_changed(rig, "a", GRANULE + MIB, 0);
    tracking_rig_finish(rig);
    set_length(rig, DISK - MIB);
    assert_lost(rig, TRACKING_LOST_RESIZED);
    tracking_rig_free(rig);
}

static void test_other_disk(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);
    g_autoptr(GBytes) disk = read_whole(rig->disk_path);
    g_autoptr(GBytes) file = read_whole(rig->path);

    write_file(rig->disk_path, g_bytes_get_data(disk, NULL), g_bytes_get_size(disk));
    test_make_file(rig->disk_path, DISK);
    g_autofree char *other = test_path(rig->directory, "other");
    test_make_file(other, DISK);
    g_assert_cmpint(rename(other, rig->disk_path), ==, 0);
    assert_lost(rig, TRACKING_LOST_OTHER_DISK);
    g_assert_true(tracking_rig_is_lost(rig));
    tracking_rig_finish(rig);
    assert_file(rig->path, file);
    tracking_rig_open(rig);
    tracking_rig_free(rig);
}

/* Somebody wrote and set the time back: found where a sample is of what did not change. */
static void test_samples(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);
    struct stat information;

    g_assert_cmpint(stat(rig->disk_path, &information), ==, 0);
    struct timespec times[2] = {information.st_atim, information.st_mtim};
    poke(rig->disk_path, 7, 1); /* the first block is always looked at */
    g_assert_cmpint(utimensat(AT_FDCWD, rig->disk_path, times, 0), ==, 0);
    assert_lost(rig, TRACKING_LOST_MODIFIED);
    tracking_rig_free(rig);
    /* What the map says is changed since may be different. */
    rig = tracking_rig_new_closed(true);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    tracking_rig_kill(rig);
    poke(rig->disk_path, 7, 1);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_NOT_LOST);
    tracking_rig_free(rig);
}

static void test_in_use(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    struct tracking_disk disk = {.length = DISK};
    enum tracking_loss loss;

    g_assert_null(tracking_file_open(rig->path, &disk, &loss, NULL));
    g_assert_cmpint(loss, ==, TRACKING_LOST_IN_USE);
    tracking_rig_free(rig);
}

/* ---- Damage -----------------------------------------------------------------------------------
 */

static int read_five_as(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    memset(buffer, 0x5a, bytes);
    return 0;
}

/* The loss, or TRACKING_NOT_LOST and what changed since "a". */
static enum tracking_loss look(struct tracking_rig *rig, const uint8_t *bytes, gsize size,
                               uint64_t *changed)
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
    tracking_file_unref(file);
    return TRACKING_NOT_LOST;
}

static void test_damage(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(true);
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
    for (uint64_t at = 0; at < change_map_bytes(header.length, header.granule_shift); at++) {
        bytes[header.map_offset + at] ^= 0x10;
        g_assert_cmpint(look(rig, bytes, size, &changed), ==, TRACKING_LOST_DAMAGED);
        bytes[header.map_offset + at] ^= 0x10;
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
    tracking_rig_open(rig);
    tracking_rig_free(rig);
}

static void test_damaged_is_replaced(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    poke(rig->path, 20, 77);
    poke(rig->path, 4096 + 20, 77);
    assert_lost(rig, TRACKING_LOST_DAMAGED);
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "b", 0, 0);
    tracking_rig_free(rig);
}

static void test_foreign(void)
{
    static const gsize sizes[] = {1, 20, 600, 4096, 5000, 8192, 300000};
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *text = g_malloc(sizes[i]);

        memset(text, 'x', sizes[i]);
        g_autoptr(GBytes) expected = g_bytes_new(text, sizes[i]);
        write_file(rig->path, text, sizes[i]);
        assert_lost(rig, TRACKING_LOST_FOREIGN);
        g_assert_true(tracking_rig_is_lost(rig));
        tracking_rig_finish(rig);
        assert_file(rig->path, expected);
    }
    tracking_rig_open(rig);
    tracking_rig_free(rig);
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
    tracking_file_unref(file);
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
    struct tracking_rig *rig = tracking_rig_new(false);
    struct tracking_info info;

    g_assert_cmpint(tracking_rig_write(rig, 0, DISK), ==, 0);
    tracking_rig_finish(rig);
    struct tracking_disk disk = {.length = DISK, .path = rig->disk_path, .read = read_five_as};
    enum tracking_loss loss;
    tracking_identify(rig->disk_path, &disk.identity);
    struct tracking_file *file = tracking_file_open(rig->path, &disk, &loss, NULL);
    g_assert_nonnull(file);
    atomic_store(&file->map.epoch, CHANGE_MAP_EPOCH_MAX - 70);
    file->header.sample_count = 0;
    g_assert_cmpint(tracking_file_close(file, &disk.identity, NULL), ==, 0);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_NOT_LOST);
    for (unsigned i = 0; i < 200; i++) {
        g_autofree char *name = g_strdup_printf("c%u", i);

        g_assert_cmpint(tracking_rig_add(rig, name, NULL), ==, 0);
        g_assert_cmpint(tracking_rig_write(rig, i % 64 * GRANULE, 1), ==, 0);
        tracking_rig_assert_changed(rig, name, GRANULE, 0);
        tracking_rig_assert_changed(rig, "c0", MIN_OF(i + 1, 64u) * GRANULE, 0);
    }
    tracking_rig_assert_changed(rig, "c190", 10 * GRANULE, 0);
    tracking_get_info(rig->tracker, &info);
    g_assert_cmpuint(info.epoch, <, 250);
    tracking_info_clear(&info);
    tracking_rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/tracking-file/checkpoints-survive-and-a-kill-is-exact", test_ends);
    g_test_add_func("/tracking-file/a-power-loss-is-conservative-and-counted", test_power_loss);
    g_test_add_func("/tracking-file/a-copied-file-is-exact-after-a-clean-end-else-lost",
                    test_copied_file);
    g_test_add_func("/tracking-file/half-a-granule-discarded-is-data", test_half_discarded);
    g_test_add_func("/tracking-file/a-disk-written-meanwhile-is-lost", test_modified);
    g_test_add_func("/tracking-file/a-file-of-another-length-is-lost", test_longer_or_shorter_file);
    g_test_add_func("/tracking-file/a-grown-device-is-a-changed-end-a-shorter-one-lost",
                    test_longer_or_shorter_device);
    g_test_add_func("/tracking-file/the-file-of-another-disk-is-left-alone", test_other_disk);
    g_test_add_func("/tracking-file/samples-find-what-was-changed-in-secret", test_samples);
    g_test_add_func("/tracking-file/a-file-in-use-is-left-alone", test_in_use);
    g_test_add_func("/tracking-file/damage-is-found-wherever-it-is", test_damage);
    g_test_add_func("/tracking-file/a-damaged-map-is-replaced", test_damaged_is_replaced);
    g_test_add_func("/tracking-file/foreign-files-are-left-alone", test_foreign);
    g_test_add_func("/tracking-file/new-numbers-keep-every-answer", test_rebuild);
    g_test_add_func("/tracking-file/epochs-do-not-run-out", test_last_epochs);
    return g_test_run();
}
