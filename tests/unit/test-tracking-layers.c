/* SPDX-License-Identifier: BSD-3-Clause */
/* What a tracked disk lies on: which block device it is, files and layers, and their times. */
#include "block/tracking-layers.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/host-device.h"
#include "block/tracking-io.h"
#include "block/tracking.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

/* ---- Block devices ----------------------------------------------------------------------------
 */

static char *sysfs;

/* A line of a device in a directory that looks like sysfs. */
static void set_line(const char *device, const char *name, const char *value)
{
    g_autofree char *path = g_build_filename(sysfs, "dev/block", device, name, NULL);
    g_autofree char *parent = g_path_get_dirname(path);

    g_assert_cmpint(g_mkdir_with_parents(parent, 0700), ==, 0);
    g_assert_true(g_file_set_contents(path, value, -1, NULL));
}

static void remove_tree(const char *path)
{
    g_autofree char *command = g_strdup_printf("rm -r %s", path);

    g_assert_true(g_spawn_command_line_sync(command, NULL, NULL, NULL, NULL));
}

static void assert_identity(unsigned major, unsigned minor, const char *wanted)
{
    g_autofree char *found = host_device_identity(makedev(major, minor));

    g_assert_cmpstr(found, ==, wanted);
}

static void test_devices(void)
{
    const char *real = host_device_sysfs;
    char *directory = test_directory_new(true);

    host_device_sysfs = sysfs = test_path(directory, "sys");
    assert_identity(8, 0, NULL);
    set_line("8:0", "diskseq", "17\n");
    assert_identity(8, 0, NULL);
    g_assert_cmpuint(host_device_sequence(makedev(8, 0)), ==, 17);
    g_assert_cmpuint(host_device_sequence(makedev(8, 9)), ==, 0);
    set_line("8:0", "device/serial", "  S1 \n");
    assert_identity(8, 0, "device/serial S1");
    set_line("8:0", "device/wwid", "\n");
    assert_identity(8, 0, "device/serial S1");
    set_line("8:0", "device/wwid", "naa.5000\n");
    assert_identity(8, 0, "device/wwid naa.5000");
    set_line("253:1", "dm/uuid", "LVM-abc\n");
    set_line("253:1", "wwid", "not this\n");
    assert_identity(253, 1, "dm/uuid LVM-abc");
    set_line("253:2", "dm/uuid", "\n"); /* made without one */
    assert_identity(253, 2, NULL);
    set_line("7:3", "loop/backing_file", "/no/file\n");
    set_line("7:3", "loop/offset", "4096\n");
    assert_identity(7, 3, "loop /no/file inode 0 at 4096+0");
    remove_tree(sysfs);
    g_free(sysfs);
    host_device_sysfs = real;
    test_directory_free(directory);
}

/* A partition is a link to a directory in that of its disk. */
static void test_partitions(void)
{
    const char *real = host_device_sysfs;
    char *directory = test_directory_new(true);
    g_autofree char *link = NULL;

    host_device_sysfs = sysfs = test_path(directory, "sys");
    set_line("8:0", "sda1/partition", "1\n");
    set_line("8:0", "sda1/start", "2048\n");
    link = g_build_filename(sysfs, "dev/block/8:1", NULL);
    g_assert_cmpint(symlink("8:0/sda1", link), ==, 0);
    assert_identity(8, 1, NULL);
    set_line("8:0", "sda1/uevent", "MAJOR=8\nPARTUUID=00-11\nPARTN=1\n");
    assert_identity(8, 1, "partition 00-11 at 2048");
    set_line("8:0", "wwid", "eui.1\n");
    assert_identity(8, 1, "wwid eui.1 partition at 2048");
    assert_identity(8, 0, "wwid eui.1");
    remove_tree(sysfs);
    g_free(sysfs);
    host_device_sysfs = real;
    test_directory_free(directory);
}

static struct tracking_identity identity_of(uint64_t inode, uint64_t sequence, const char *name)
{
    struct tracking_identity identity = {.device = 1, .inode = inode, .sequence = sequence};

    g_strlcpy(identity.name, name, sizeof(identity.name));
    return identity;
}

static bool is_same(struct tracking_identity before, struct tracking_identity now, bool same_boot)
{
    g_autoptr(GError) error = NULL;
    bool same = tracking_is_same(&before, &now, same_boot, &error);

    g_assert_true(same == !error);
    return same;
}

static void test_same(void)
{
    struct tracking_identity file = identity_of(5, 0, ""), named = identity_of(0, 7, "wwid 1"),
                             unnamed = identity_of(0, 7, ""), moved = file;

    moved.device = 2; /* the host numbered its file systems otherwise */
    g_assert_true(is_same(file, file, true));
    g_assert_true(is_same(file, moved, false));
    g_assert_false(is_same(file, moved, true));
    g_assert_false(is_same(file, identity_of(6, 0, ""), false));
    g_assert_true(is_same(named, identity_of(0, 8, "wwid 1"), true));
    g_assert_false(is_same(named, identity_of(0, 7, "wwid 2"), true));
    g_assert_false(is_same(named, unnamed, false)); /* nobody says that it is that one */
    g_assert_true(is_same(unnamed, named, true));
    g_assert_true(is_same(unnamed, unnamed, true));
    g_assert_false(is_same(unnamed, identity_of(0, 8, ""), true));
    g_assert_true(is_same(unnamed, identity_of(0, 8, ""), false));
    g_assert_true(is_same(unnamed, identity_of(0, 0, ""), true));
    g_assert_false(is_same(file, named, false));
}

static void test_names(void)
{
    struct tracking_identity identity, other;
    g_autofree char *end = g_strnfill(400, 'x');
    g_autofree char *uri = g_strconcat("nbd://host/", end, NULL);

    tracking_identify("nbd://host/export", &identity);
    g_assert_cmpstr(identity.name, ==, "nbd://host/export");
    tracking_identify(uri, &identity);
    uri[strlen(uri) - 1] = 'y';
    tracking_identify(uri, &other);
    g_assert_true(*identity.name && *other.name && strcmp(identity.name, other.name));
    tracking_identify("/no/such/file", &identity);
    g_assert_true(!identity.inode && !*identity.name);
}

/* ---- A disk of layers -------------------------------------------------------------------------
 */

#define LENGTH MIB

struct rig {
    char *directory, *base, *top, *path;
    struct block_node *root;
    struct change_tracker *tracker;
};

static struct tracking_io real_io;
static GString *synced;
static int sync_status;

static void create(const char *arguments)
{
    g_autofree char *command = g_strconcat("qemu-img create -q -f qcow2 ", arguments, NULL);
    int status;

    g_assert_true(g_spawn_command_line_sync(command, NULL, NULL, &status, NULL) && status == 0);
}

static enum tracking_loss rig_open(struct rig *rig)
{
    struct tracking_options options = {.device = "vda", .path = rig->path, .disk_path = rig->top};
    struct tracking_info info;

    tracking_identify(rig->top, &options.identity);
    rig->root = test_open("driver=qcow2,file.driver=file,file.filename=%s", rig->top);
    rig->tracker = tracking_start(&options, rig->root);
    tracking_get_info(rig->tracker, &info);
    g_assert_false(info.is_lost);
    tracking_info_clear(&info);
    return info.previous_loss;
}

static struct rig *rig_new(void)
{
    struct rig *rig = g_new0(struct rig, 1);

    rig->directory = test_directory_new(true);
    rig->base = test_path(rig->directory, "base");
    rig->top = test_path(rig->directory, "top");
    rig->path = test_path(rig->directory, "tracking");
    test_make_file(rig->base, LENGTH);
    g_autofree char *arguments = g_strdup_printf("-b %s -F raw %s", rig->base, rig->top);
    create(arguments);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    return rig;
}

static void rig_close(struct rig *rig)
{
    tracking_take_samples(rig->tracker, rig->root);
    block_node_unref(rig->root);
    tracking_finish(rig->tracker);
}

static void rig_kill(struct rig *rig)
{
    block_node_unref(rig->root);
    tracking_abandon(rig->tracker);
}

static void rig_free(struct rig *rig)
{
    rig_close(rig);
    tracking_io = real_io;
    g_free(rig->base);
    g_free(rig->top);
    g_free(rig->path);
    test_directory_free(rig->directory);
    g_free(rig);
}

/* At this time a file was changed, in seconds since 1970; what is in it is not looked at. */
static void set_time(const char *path, time_t seconds)
{
    struct timespec times[2] = {{seconds, 0}, {seconds, 0}};

    g_assert_cmpint(utimensat(AT_FDCWD, path, times, 0), ==, 0);
}

static void test_layers(void)
{
    struct rig *rig = rig_new();
    g_autoptr(GPtrArray) layers = tracking_layers_list(rig->root);

    g_assert_cmpuint(layers->len, ==, 1);
    g_assert_cmpstr(((struct tracking_layer *)g_ptr_array_index(layers, 0))->path, ==, rig->base);
    rig_close(rig);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    rig_close(rig);
    set_time(rig->base, 1000);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*base'*was written by somebody else*");
    g_assert_cmpint(rig_open(rig), ==, TRACKING_LOST_MODIFIED);
    g_test_assert_expected_messages();
    rig_free(rig);
}

/* Whether a layer was changed by us before we died nobody knows. */
static void test_killed(void)
{
    struct rig *rig = rig_new();

    rig_close(rig);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    rig_kill(rig);
    set_time(rig->base, 1000);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    rig_close(rig);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    rig_free(rig);
}

static void test_fewer_layers(void)
{
    struct rig *rig = rig_new();
    struct stat before;

    rig_close(rig);
    g_assert_cmpint(stat(rig->top, &before), ==, 0);
    g_autofree char *command = g_strdup_printf("qemu-img rebase -u -b '' %s", rig->top);
    g_assert_true(g_spawn_command_line_sync(command, NULL, NULL, NULL, NULL));
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    g_assert_cmpint(utimensat(AT_FDCWD, rig->top, times, 0), ==, 0);
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*lies on 0 other files*lay on 1*");
    g_assert_cmpint(rig_open(rig), ==, TRACKING_LOST_MODIFIED);
    g_test_assert_expected_messages();
    rig_free(rig);
}

/* ---- Times that last --------------------------------------------------------------------------
 */

/* The time a file has on stable storage is that of its last sync. */
static int note_sync(int fd)
{
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    g_string_append_printf(synced, "%ld ", (long)information.st_mtim.tv_sec);
    return sync_status;
}

static void test_times(void)
{
    struct rig *rig = rig_new();

    synced = g_string_new(NULL);
    tracking_io.sync_disk = note_sync;
    tracking_take_samples(rig->tracker, rig->root);
    block_node_unref(rig->root);
    set_time(rig->top, 2000); /* as what is written last does */
    set_time(rig->base, 3000);
    tracking_finish(rig->tracker);
    g_assert_cmpstr(synced->str, ==, "2000 3000 ");
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    g_string_free(synced, TRUE);
    tracking_io = real_io;
    rig_free(rig);
}

/* A disk whose last writes are lost is not one that was closed cleanly. */
static void test_failed_sync(void)
{
    struct rig *rig = rig_new();

    synced = g_string_new(NULL);
    tracking_io.sync_disk = note_sync;
    sync_status = -EIO;
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, "*left as after a crash*stable storage*");
    rig_close(rig);
    g_test_assert_expected_messages();
    tracking_io = real_io;
    sync_status = 0;
    AUTO_CLOSE int fd = open(rig->path, O_RDONLY | O_CLOEXEC);
    struct tracking_contents contents;
    enum tracking_loss loss;
    g_assert_cmpint(tracking_contents_read(fd, &contents, &loss, NULL), ==, 0);
    g_assert_true(contents.header.flags & TRACKING_IN_USE);
    tracking_contents_clear(&contents);
    g_assert_cmpint(rig_open(rig), ==, TRACKING_NOT_LOST);
    g_string_free(synced, TRUE);
    rig_free(rig);
}

/* ---- The format -------------------------------------------------------------------------------
 */

static void test_format(void)
{
    AUTO(tracking_directory) directory = tracking_directory_new();
    struct tracking_layer *layer = g_new0(struct tracking_layer, 1);

    layer->path = g_strdup("/some/base");
    layer->identity = (struct tracking_identity){1, 2, 3, -4, 5, "wwid 6"};
    g_ptr_array_add(directory->layers, layer);
    g_autoptr(GByteArray) bytes = tracking_directory_encode(directory);
    AUTO(tracking_directory) copy = tracking_directory_decode(bytes->data, bytes->len, 1, NULL);
    g_assert_true(copy && copy->layers->len == 1);
    const struct tracking_layer *found = g_ptr_array_index(copy->layers, 0);
    g_assert_cmpstr(found->path, ==, layer->path);
    g_assert_cmpmem(&found->identity, sizeof(found->identity), &layer->identity,
                    sizeof(layer->identity));
    /* A path that would go on behind the record, and one that leaves too much for a name. */
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(GByteArray) bad = g_byte_array_new();

        g_byte_array_append(bad, bytes->data, bytes->len);
        if (i == 0) {
            bad->data[8 + 40]++;
            bad->data[8 + 41] = 1;
        } else {
            g_byte_array_set_size(bad, bytes->len + 400);
            memset(bad->data + bytes->len, 'x', 400);
            bad->data[4] += 400 % 256;
            bad->data[5] += 400 / 256;
        }
        g_assert_null(tracking_directory_decode(bad->data, bad->len, 1, NULL));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    real_io = tracking_io;
#define ADD(name, function) g_test_add_func("/tracking-layers/" name, function)
    ADD("a-block-device-is-what-the-kernel-says-is-unique", test_devices);
    ADD("a-partition-is-a-place-of-its-disk", test_partitions);
    ADD("in-doubt-another-disk-is-another", test_same);
    ADD("a-remote-disk-is-its-uri", test_names);
    ADD("a-layer-that-was-written-behind-our-back-is-named", test_layers);
    ADD("after-a-kill-nothing-is-said-of-layers", test_killed);
    ADD("a-layer-that-was-taken-away-behind-our-back-is-missed", test_fewer_layers);
    ADD("times-are-those-on-stable-storage", test_times);
    ADD("a-disk-that-cannot-be-synced-is-not-closed", test_failed_sync);
    ADD("records-of-layers-are-read-as-they-were-written", test_format);
#undef ADD
    return g_test_run();
}
