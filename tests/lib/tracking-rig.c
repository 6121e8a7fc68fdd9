/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/tracking-rig.h"

#include <fcntl.h>
#include <string.h>

#include "block/align.h"
#include "block/drain.h"
#include "tests/lib/disk.h"

uint8_t tracking_rig_boot = 1;

const struct tracking_io *tracking_rig_real_io(void)
{
    static struct tracking_io real;
    static bool is_known;

    if (!is_known) {
        real = tracking_io;
        is_known = true;
    }
    return &real;
}

static void boot_id(uint8_t *id)
{
    memset(id, tracking_rig_boot, 16);
}

void tracking_rig_open(struct tracking_rig *rig)
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

struct tracking_rig *tracking_rig_new(bool is_device)
{
    struct tracking_rig *rig = g_new0(struct tracking_rig, 1);

    tracking_io = *tracking_rig_real_io();
    tracking_io.boot_id = boot_id;
    rig->directory = test_directory_new(true);
    rig->disk_path = test_path(rig->directory, "disk");
    rig->path = test_path(rig->directory, "disk.tracking");
    rig->is_device = is_device;
    rig->granule = TRACKING_RIG_GRANULE;
    rig->extent = TRACKING_RIG_EXTENT;
    test_make_file(rig->disk_path, TRACKING_RIG_DISK);
    tracking_rig_open(rig);
    return rig;
}

void tracking_rig_close_disk(struct tracking_rig *rig)
{
    struct block_device *device = block_device_ref(rig->device);

    tracking_take_samples(rig->tracker, rig->root);
    block_device_remove(rig->device);
    block_device_unref(device);
    block_node_unref(rig->root);
}

void tracking_rig_finish(struct tracking_rig *rig)
{
    tracking_rig_close_disk(rig);
    tracking_finish(rig->tracker);
}

void tracking_rig_kill(struct tracking_rig *rig)
{
    tracking_rig_close_disk(rig);
    tracking_abandon(rig->tracker);
}

void tracking_rig_wait_unused(const struct tracking_rig *rig)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    AUTO_CLOSE int fd = open(rig->path, O_RDWR | O_CLOEXEC);

    while (fd >= 0 && fcntl(fd, F_OFD_SETLK, &whole) < 0) {
        g_usleep(1000);
    }
}

void tracking_rig_free(struct tracking_rig *rig)
{
    tracking_rig_finish(rig);
    tracking_io = *tracking_rig_real_io();
    g_free(rig->disk_path);
    g_free(rig->path);
    test_directory_free(rig->directory);
    g_free(rig);
}

int tracking_rig_write(struct tracking_rig *rig, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    memset(buffer, 0x5a, bytes);
    return block_device_pwrite(rig->device, buffer, offset, bytes, 0);
}

int tracking_rig_add(struct tracking_rig *rig, const char *name, GError **error)
{
    AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);

    return tracking_checkpoint_add(rig->tracker, rig->root, name, error);
}

struct tracking_checkpoint_info tracking_rig_checkpoint(struct tracking_rig *rig, const char *name)
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

void tracking_rig_assert_changed(struct tracking_rig *rig, const char *name, uint64_t changed,
                                 uint64_t zero)
{
    struct tracking_checkpoint_info info = tracking_rig_checkpoint(rig, name);

    g_assert_cmpstr(info.name, ==, "found");
    g_assert_false(info.is_broken);
    g_assert_cmpuint(info.changed_bytes, ==, changed);
    g_assert_cmpuint(info.zero_bytes, ==, zero);
}

/* Why the map before this one was lost, or this one is. */
enum tracking_loss tracking_rig_loss(struct tracking_rig *rig)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    enum tracking_loss loss = info.is_lost ? info.loss : info.previous_loss;
    tracking_info_clear(&info);
    return loss;
}

bool tracking_rig_is_lost(struct tracking_rig *rig)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    bool is_lost = info.is_lost;
    tracking_info_clear(&info);
    return is_lost;
}

struct tracking_rig *tracking_rig_new_closed(bool is_device)
{
    struct tracking_rig *rig = tracking_rig_new(is_device);

    g_assert_cmpint(tracking_rig_write(rig, 0, TRACKING_RIG_DISK), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, MIB, 1), ==, 0);
    tracking_rig_finish(rig);
    return rig;
}
