/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/image.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node-internal.h"

static int refuse(struct block_node *node, const char *what, GError **error)
{
    return block_error(error, ENOTSUP, "Block format '%s' used by node '%s' %s", node->driver->name,
                       node->name, what);
}

static int refuse_snapshots(struct block_node *node, GError **error)
{
    return refuse(node, "does not support internal snapshots", error);
}

static int check_writable(struct block_node *node, GError **error)
{
    return node->options.read_only
               ? block_error(error, EACCES, "Block node '%s' is read-only", node->name)
               : 0;
}

int block_node_check(struct block_node *node, unsigned repair, struct block_check_result *result,
                     block_progress *progress, void *progress_data, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->check) {
        return refuse(node, "has nothing that could be checked", error);
    }
    *result = (struct block_check_result){.findings = result->findings};
    return node->driver->check(node, repair, result, progress, progress_data, error);
}

int block_node_amend(struct block_node *node, struct block_options *options,
                     block_progress *progress, void *progress_data, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->amend) {
        return refuse(node, "has no options that could be changed", error);
    }
    int status = check_writable(node, error);
    if (status < 0) {
        return status;
    }
    g_autofree void *values = g_malloc0(node->driver->amend_options_size);
    status = block_options_extract(options, node->driver->amend_options, values, NULL, error);
    if (status < 0) {
        return status;
    }
    status = block_options_expect_empty(options, NULL, error);
    if (status == 0) {
        status = node->driver->amend(node, values, progress, progress_data, error);
    }
    block_options_clear_target(node->driver->amend_options, values);
    return status;
}

int block_node_change_backing_file(struct block_node *node, const char *backing_file,
                                   const char *backing_format, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->change_backing_file) {
        return refuse(node, "does not record a backing file", error);
    }
    int status = check_writable(node, error);
    return status == 0
               ? node->driver->change_backing_file(node, backing_file, backing_format, error)
               : status;
}

int block_node_snapshot_create(struct block_node *node, const struct block_snapshot_info *info,
                               GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->snapshot_create) {
        return refuse_snapshots(node, error);
    }
    int status = check_writable(node, error);
    return status == 0 ? node->driver->snapshot_create(node, info, error) : status;
}

int block_node_snapshot_create_now(struct block_node *node, const char *name, GError **error)
{
    struct timespec now;
    g_autofree char *copy = g_strdup(name);

    clock_gettime(CLOCK_REALTIME, &now);
    struct block_snapshot_info info = {
        .name = copy,
        .date_sec = now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec,
        .icount = UINT64_MAX,
    };
    return block_node_snapshot_create(node, &info, error);
}

/* The length of the disk that a snapshot shows, or of the node if there is no such snapshot: then
 * the driver refuses. The operation lock is held. */
static uint64_t length_of_snapshot(struct block_node *node, const char *id)
{
    struct block_snapshot_info *list;
    uint64_t length = block_node_length(node);
    size_t count;

    if (node->driver->snapshot_list(node, &list, &count) < 0) {
        return length;
    }
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].id, id) || !strcmp(list[i].name, id)) {
            length = MAX_OF(length, MIN_OF(list[i].length, (uint64_t)INT64_MAX));
        }
    }
    block_snapshot_list_free(list, count);
    return length;
}

int block_node_snapshot_apply(struct block_node *node, const char *id, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->snapshot_apply) {
        return refuse_snapshots(node, error);
    }
    int status = check_writable(node, error);
    if (status == 0) {
        status = block_node_lengthen_bitmaps(node, length_of_snapshot(node, id), error);
    }
    if (status < 0) {
        return status;
    }
    status = node->driver->snapshot_apply(node, id, error);
    /* A driver that fails half-way may have changed the disk; one that refuses has not. */
    int refreshed = block_node_refresh_length(node, status == 0 ? error : NULL);
    status = status < 0 ? status : refreshed;
    block_node_fit_bitmaps(node, status != -ENOENT && status != -ENOTSUP);
    sharded_counter_add(&node->write_generation, shard_here(), 1);
    return status;
}

int block_node_snapshot_delete(struct block_node *node, const char *id, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->snapshot_delete) {
        return refuse_snapshots(node, error);
    }
    int status = check_writable(node, error);
    return status == 0 ? node->driver->snapshot_delete(node, id, error) : status;
}

int block_node_snapshot_list(struct block_node *node, struct block_snapshot_info **list,
                             size_t *count, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->snapshot_list) {
        return refuse_snapshots(node, error);
    }
    int status = node->driver->snapshot_list(node, list, count);
    return status < 0 ? block_error_errno(error, -status,
                                          "Could not list the snapshots of node "
                                          "'%s'",
                                          node->name)
                      : 0;
}

int block_node_vmstate_read(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    return node->driver->vmstate_read ? node->driver->vmstate_read(node, buffer, offset, bytes)
                                      : -ENOTSUP;
}

int block_node_vmstate_write(struct block_node *node, const void *buffer, uint64_t offset,
                             uint64_t bytes)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->vmstate_write || node->options.read_only) {
        return node->driver->vmstate_write ? -EPERM : -ENOTSUP;
    }
    int status = node->driver->vmstate_write(node, buffer, offset, bytes);
    sharded_counter_add(&node->write_generation, shard_here(), 1);
    return status;
}

static int refuse_bitmaps(struct block_node *node, GError **error)
{
    return refuse(node, "cannot store bitmaps", error);
}

int block_node_bitmap_list(struct block_node *node, struct block_persistent_bitmap **list,
                           size_t *count, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    return node->driver->bitmap_list ? node->driver->bitmap_list(node, list, count, error)
                                     : refuse_bitmaps(node, error);
}

int block_node_bitmap_load(struct block_node *node, const char *name, uint8_t *bits, uint64_t bytes,
                           GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    return node->driver->bitmap_load ? node->driver->bitmap_load(node, name, bits, bytes, error)
                                     : refuse_bitmaps(node, error);
}

int block_node_bitmap_store(struct block_node *node, const struct block_persistent_bitmap *bitmap,
                            const uint8_t *bits, uint64_t bytes, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->bitmap_store) {
        return refuse_bitmaps(node, error);
    }
    int status = check_writable(node, error);
    return status == 0 ? node->driver->bitmap_store(node, bitmap, bits, bytes, error) : status;
}

int block_node_bitmap_remove(struct block_node *node, const char *name, GError **error)
{
    node = block_node_below_filters(node);
    SCOPE_LOCK(&node->operation_lock);
    if (!node->driver->bitmap_remove) {
        return refuse_bitmaps(node, error);
    }
    int status = check_writable(node, error);
    return status == 0 ? node->driver->bitmap_remove(node, name, error) : status;
}

void block_persistent_bitmap_list_free(struct block_persistent_bitmap *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        g_free(list[i].name);
    }
    g_free(list);
}
