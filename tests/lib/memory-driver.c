/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/memory-driver.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/error.h"

#define MEMORY_MAX    (64 * MIB)
#define LAYER_CLUSTER 4096u

struct memory_options {
    uint64_t size;
    uint64_t request_alignment;
    uint64_t memory_alignment;
    uint64_t max_transfer;
    uint64_t max_write_zeroes;
    uint64_t max_discard;
};

#define SIZE_OPTION(name_, member_, default_)                                                      \
    {                                                                                              \
        .name = name_, .type = BLOCK_OPTION_SIZE,                                                  \
        .offset = offsetof(struct memory_options, member_), .default_text = default_,              \
    }

static const struct block_option memory_option_table[] = {
    SIZE_OPTION("size", size, "1M"),
    SIZE_OPTION("request-alignment", request_alignment, "1"),
    SIZE_OPTION("memory-alignment", memory_alignment, "1"),
    SIZE_OPTION("max-transfer", max_transfer, "0"),
    SIZE_OPTION("max-write-zeroes", max_write_zeroes, "0"),
    SIZE_OPTION("max-discard", max_discard, "0"),
    {.name = NULL},
};

struct fault {
    int status;
    unsigned after;
    unsigned count;
};

struct memory_disk {
    int fd;
    uint8_t *data; /* MEMORY_MAX bytes mapped */
    int64_t length;

    pthread_mutex_t lock; /* guards what follows; innermost */
    pthread_cond_t changed;
    struct fault faults[BLOCK_OPERATION_COUNT];
    unsigned counts[BLOCK_OPERATION_COUNT];
    int held_operation; /* -1: none */
    unsigned held;
    int resize_status;
    GString *log; /* NULL: none is kept */
};

static _Atomic unsigned disks_open;

unsigned memory_disks_open(void)
{
    return atomic_load(&disks_open);
}

static int memory_open(struct block_node *node, void *values, GError **error)
{
    const struct memory_options *options = values;
    struct memory_disk *disk = block_node_state(node);

    if (options->size > MEMORY_MAX) {
        return block_error(error, EFBIG, "A memory disk has at most 64 MiB");
    }
    disk->fd = memfd_create("memory-disk", MFD_CLOEXEC);
    g_assert_cmpint(disk->fd, >=, 0);
    g_assert_cmpint(ftruncate(disk->fd, MEMORY_MAX), ==, 0);
    disk->data = mmap(NULL, MEMORY_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, disk->fd, 0);
    g_assert_true(disk->data != MAP_FAILED);
    disk->length = (int64_t)options->size;
    disk->held_operation = -1;
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->changed, NULL);
    node->limits = (struct block_limits){
        .request_alignment = (uint32_t)options->request_alignment,
        .memory_alignment = (uint32_t)options->memory_alignment,
        .max_transfer = options->max_transfer,
        .max_write_zeroes = options->max_write_zeroes,
        .max_discard = options->max_discard,
    };
    atomic_fetch_add(&disks_open, 1);
    return 0;
}

static void memory_close(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);

    munmap(disk->data, MEMORY_MAX);
    close(disk->fd);
    pthread_mutex_destroy(&disk->lock);
    pthread_cond_destroy(&disk->changed);
    if (disk->log) {
        g_string_free(disk->log, TRUE);
    }
    atomic_fetch_sub(&disks_open, 1);
}

/* Lock held. */
static void log_request(struct memory_disk *disk, enum block_operation operation, uint64_t offset,
                        uint64_t bytes, unsigned flags)
{
    static const char *const names[] = {"read", "write", "zero", "discard", "flush"};

    if (!disk->log) {
        return;
    }
    g_string_append_printf(disk->log, "%s%s", disk->log->len ? "; " : "", names[operation]);
    if (operation != BLOCK_OPERATION_FLUSH) {
        g_string_append_printf(disk->log, " %" PRIu64 "+%" PRIu64, offset, bytes);
    }
    g_string_append(disk->log, flags & BLOCK_REQUEST_FUA ? " fua" : "");
    g_string_append(disk->log, flags & BLOCK_REQUEST_MAY_UNMAP ? " unmap" : "");
}

/* What every request goes through: 0, or what it is to fail with. */
static int enter(struct block_node *node, enum block_operation operation, uint64_t offset,
                 uint64_t bytes, unsigned flags)
{
    struct memory_disk *disk = block_node_state(node);
    struct fault *fault = &disk->faults[operation];
    SCOPE_LOCK(&disk->lock);

    g_assert_true(range_within(offset, bytes, (uint64_t)disk->length));
    g_assert_true(is_aligned(offset | bytes, node->limits.request_alignment));
    g_assert_true(!(flags & BLOCK_REQUEST_FUA) || node->driver->handles_fua);
    disk->counts[operation]++;
    log_request(disk, operation, offset, bytes, flags);
    if (disk->held_operation == (int)operation) {
        disk->held++;
        pthread_cond_broadcast(&disk->changed);
        while (disk->held_operation == (int)operation) {
            pthread_cond_wait(&disk->changed, &disk->lock);
        }
    }
    if (fault->count && fault->after) {
        fault->after--;
    } else if (fault->count) {
        fault->count--;
        return fault->status;
    }
    return 0;
}

/* Bytes move as on a disk: a sector that is read while it is written is old or new. */
static void move_bytes(struct block_node *node, void *to, const void *from, uint64_t bytes)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    memcpy(to, from, bytes);
}

static void fill_bytes(struct block_node *node, uint64_t offset, int byte, uint64_t bytes)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    memset(disk->data + offset, byte, bytes);
}

static void check_transfer(struct block_node *node, const void *buffer, uint64_t bytes)
{
    g_assert_true(is_aligned((uintptr_t)buffer, node->limits.memory_alignment));
    g_assert_cmpuint(bytes, <=, node->limits.max_transfer);
    g_assert_cmpuint(bytes, >, 0);
}

static int memory_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    struct memory_disk *disk = block_node_state(node);
    int status = enter(node, BLOCK_OPERATION_READ, offset, bytes, flags);

    check_transfer(node, buffer, bytes);
    if (status == 0) {
        move_bytes(node, buffer, disk->data + offset, bytes);
        sched_yield(); /* what was read may be old by now */
    }
    return status;
}

static int memory_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes, unsigned flags)
{
    struct memory_disk *disk = block_node_state(node);
    int status = enter(node, BLOCK_OPERATION_WRITE, offset, bytes, flags);

    check_transfer(node, buffer, bytes);
    if (status == 0) {
        move_bytes(node, disk->data + offset, buffer, bytes);
    }
    return status;
}

static int memory_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                               unsigned flags)
{
    int status = enter(node, BLOCK_OPERATION_WRITE_ZEROES, offset, bytes, flags);

    g_assert_cmpuint(bytes, <=, node->limits.max_write_zeroes);
    if (status == 0) {
        fill_bytes(node, offset, 0, bytes);
    }
    return status;
}

/* Discarded bytes read as 0xd5: nobody may rely on them. */
static int memory_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int status = enter(node, BLOCK_OPERATION_DISCARD, offset, bytes, 0);

    g_assert_cmpuint(bytes, <=, node->limits.max_discard);
    if (status == 0) {
        fill_bytes(node, offset, 0xd5, bytes);
    }
    return status;
}

static int memory_flush(struct block_node *node)
{
    return enter(node, BLOCK_OPERATION_FLUSH, 0, 0, 0);
}

static int64_t memory_get_length(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);

    return disk->length;
}

static int memory_set_length(struct block_node *node, uint64_t length,
                             enum block_preallocation preallocation, block_progress *progress,
                             void *progress_data, GError **error)
{
    struct memory_disk *disk = block_node_state(node);
    int64_t old_length = disk->length;

    if (disk->resize_status < 0) {
        return block_error_errno(error, -disk->resize_status, "Could not resize");
    }
    g_assert_cmpuint(length, <=, MEMORY_MAX);
    disk->length = (int64_t)length;
    if (disk->length > old_length) {
        memset(disk->data + old_length, 0, (size_t)(disk->length - old_length));
    }
    return 0;
}

/* Extents of one alignment unit (at least 4 KiB): zero or data. */
static int memory_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                               struct block_extent *extent)
{
    static const uint8_t zeroes[4096];
    struct memory_disk *disk = block_node_state(node);
    uint64_t size = MIN_OF(bytes, sizeof(zeroes) - offset % sizeof(zeroes));
    bool is_zero = !memcmp(disk->data + offset, zeroes, size);

    g_assert_true(is_aligned(offset | bytes, node->limits.request_alignment));
    g_assert_true(range_within(offset, bytes, (uint64_t)disk->length));
    *extent = (struct block_extent){
        .bytes = size,
        .flags = BLOCK_STATUS_ALLOCATED | (is_zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA) |
                 BLOCK_STATUS_OFFSET_VALID,
        .host_offset = offset,
        .host_node = node,
    };
    return 0;
}

static int memory_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                             uint64_t *fd_offset)
{
    struct memory_disk *disk = block_node_state(node);

    *bytes = MIN_OF(*bytes, 12 * KIB);
    *fd = disk->fd;
    *fd_offset = offset;
    return 0;
}

static int memory_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                 uint64_t offset, uint64_t bytes)
{
    struct memory_disk *disk = block_node_state(node);
    int status = enter(node, BLOCK_OPERATION_WRITE, offset, bytes, 0);

    g_assert_cmpuint(bytes, <=, node->limits.max_transfer);
    if (status == 0) {
        g_assert_cmpint(pread(fd, disk->data + offset, bytes, (off_t)fd_offset), ==,
                        (ssize_t)bytes);
    }
    return status;
}

static int memory_reopen_prepare(struct block_node *node, void *values,
                                 const struct block_node_options *options, void **prepared,
                                 GError **error)
{
    return 0;
}

#define MEMORY_BASICS(name_)                                                                       \
    .name = name_, .description = "Memory, for tests", .is_protocol = true,                        \
    .instance_size = sizeof(struct memory_disk), .options = memory_option_table,                   \
    .options_size = sizeof(struct memory_options), .open = memory_open, .close = memory_close,     \
    .reopen_prepare = memory_reopen_prepare, .get_length = memory_get_length,                      \
    .set_length = memory_set_length, .pread = memory_pread, .pwrite = memory_pwrite,               \
    .flush = memory_flush
#define MEMORY_EXTRAS                                                                              \
    .write_zeroes = memory_write_zeroes, .discard = memory_discard,                                \
    .block_status = memory_block_status, .host_range = memory_host_range,                          \
    .pwrite_from_fd = memory_pwrite_from_fd

static const struct block_driver memory_driver = {MEMORY_BASICS("memory"), MEMORY_EXTRAS};
static const struct block_driver memory_fua_driver = {MEMORY_BASICS("memory-fua"), MEMORY_EXTRAS,
                                                      .handles_fua = true};
static bool memory_unmaps_zeroes(struct block_node *node)
{
    return true;
}

static const struct block_driver memory_device_driver = {
    MEMORY_BASICS("memory-device"),
    .write_zeroes = memory_write_zeroes,
    .discard = memory_discard,
};
static const struct block_driver memory_unmaps_driver = {
    MEMORY_BASICS("memory-unmaps"),
    .write_zeroes = memory_write_zeroes,
    .unmaps_zeroes = memory_unmaps_zeroes,
    .discard = memory_discard,
};
static const struct block_driver memory_plain_driver = {MEMORY_BASICS("memory-plain")};

/* ---- A filter, and a format ----------------------------------------------------------------- */

static const struct block_option filter_option_table[] = {
    {.name = "file", .type = BLOCK_OPTION_NODE, .required = true},
    {.name = NULL},
};

static const struct block_driver memory_filter_driver = {
    .name = "memory-filter",
    .description = "Passes everything on, for tests",
    .is_filter = true,
    .options = filter_option_table,
};

struct layer_options {
    char *comment;
    bool broken;
};

static const struct block_option layer_option_table[] = {
    {.name = "file", .type = BLOCK_OPTION_NODE, .required = true},
    {.name = "backing", .type = BLOCK_OPTION_NODE},
    {.name = "comment",
     .type = BLOCK_OPTION_STRING,
     .offset = offsetof(struct layer_options, comment)},
    {.name = "broken",
     .type = BLOCK_OPTION_BOOL,
     .offset = offsetof(struct layer_options, broken),
     .default_text = "off"},
    {.name = NULL},
};

struct layer {
    _Atomic bool *allocated; /* per cluster */
};

static int layer_open(struct block_node *node, void *values, GError **error)
{
    const struct layer_options *options = values;
    struct layer *layer = block_node_state(node);

    if (options->broken) {
        return block_error(error, EINVAL, "The layer is broken");
    }
    layer->allocated = g_new0(_Atomic bool, MEMORY_MAX / LAYER_CLUSTER);
    node->limits.request_alignment = LAYER_CLUSTER;
    node->limits.cluster_size = LAYER_CLUSTER;
    return 0;
}

static void layer_close(struct block_node *node)
{
    struct layer *layer = block_node_state(node);

    g_free(layer->allocated);
}

static int64_t layer_get_length(struct block_node *node)
{
    return (int64_t)block_node_length(node->file);
}

static int read_cluster(struct block_node *node, uint8_t *buffer, uint64_t offset)
{
    const struct layer *layer = block_node_state(node);

    if (layer->allocated[offset / LAYER_CLUSTER]) {
        return block_node_pread(node->file, buffer, offset, LAYER_CLUSTER, 0);
    }
    memset(buffer, 0, LAYER_CLUSTER);
    if (!node->backing || offset >= block_node_length(node->backing)) {
        return 0;
    }
    return block_node_pread(node->backing, buffer, offset,
                            MIN_OF(LAYER_CLUSTER, block_node_length(node->backing) - offset), 0);
}

static int layer_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    int status = 0;

    for (uint64_t done = 0; status == 0 && done < bytes; done += LAYER_CLUSTER) {
        status = read_cluster(node, (uint8_t *)buffer + done, offset + done);
    }
    return status;
}

static int layer_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes, unsigned flags)
{
    struct layer *layer = block_node_state(node);
    int status = block_node_pwrite(node->file, buffer, offset, bytes, flags);

    for (uint64_t done = 0; status == 0 && done < bytes; done += LAYER_CLUSTER) {
        layer->allocated[(offset + done) / LAYER_CLUSTER] = true;
    }
    return status;
}

static int layer_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    const struct layer *layer = block_node_state(node);
    bool allocated = layer->allocated[offset / LAYER_CLUSTER];

    *extent = (struct block_extent){
        .bytes = LAYER_CLUSTER,
        .flags = allocated ? BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED : 0,
    };
    return 0;
}

static const struct block_driver memory_layer_driver = {
    .name = "memory-layer",
    .description = "Clusters in memory over a backing file, for tests",
    .instance_size = sizeof(struct layer),
    .options = layer_option_table,
    .options_size = sizeof(struct layer_options),
    .open = layer_open,
    .close = layer_close,
    .get_length = layer_get_length,
    .pread = layer_pread,
    .pwrite = layer_pwrite,
    .block_status = layer_block_status,
};

void memory_drivers_register(void)
{
    block_driver_register(&memory_driver);
    block_driver_register(&memory_fua_driver);
    block_driver_register(&memory_plain_driver);
    block_driver_register(&memory_device_driver);
    block_driver_register(&memory_unmaps_driver);
    block_driver_register(&memory_filter_driver);
    block_driver_register(&memory_layer_driver);
}

/* ---- What tests ask and order ---------------------------------------------------------------- */

uint8_t *memory_disk_data(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);

    return disk->data;
}

void memory_disk_fail(struct block_node *node, enum block_operation operation, int status,
                      unsigned after, unsigned count)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    disk->faults[operation] = (struct fault){.status = status, .after = after, .count = count};
}

unsigned memory_disk_count(struct block_node *node, enum block_operation operation)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    return disk->counts[operation];
}

void memory_disk_log(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    g_assert_null(disk->log);
    disk->log = g_string_new(NULL);
}

char *memory_disk_take_log(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);
    char *text = g_strdup(disk->log->str);

    g_string_truncate(disk->log, 0);
    return text;
}

void memory_disk_hold(struct block_node *node, enum block_operation operation)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    disk->held_operation = (int)operation;
    disk->held = 0;
}

void memory_disk_wait_held(struct block_node *node, unsigned count)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    while (disk->held < count) {
        pthread_cond_wait(&disk->changed, &disk->lock);
    }
}

void memory_disk_release(struct block_node *node)
{
    struct memory_disk *disk = block_node_state(node);
    SCOPE_LOCK(&disk->lock);

    disk->held_operation = -1;
    pthread_cond_broadcast(&disk->changed);
}

void memory_disk_fail_resize(struct block_node *node, int status)
{
    struct memory_disk *disk = block_node_state(node);

    disk->resize_status = status;
}
