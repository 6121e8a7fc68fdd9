/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-layers.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/error.h"
#include "block/host-device.h"
#include "block/tracking-file.h"
#include "block/tracking-io.h"

/* ---- One file, block device or remote disk --------------------------------------------------- */

/* One that is too long is as good by its hash. */
static void set_name(struct tracking_identity *identity, const char *name)
{
    if (strlen(name) <= TRACKING_IDENTITY_MAX) {
        g_strlcpy(identity->name, name, sizeof(identity->name));
    } else {
        g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, name, -1);

        g_snprintf(identity->name, sizeof(identity->name), "SHA-256 %s", hash);
    }
}

void tracking_identify(const char *path, struct tracking_identity *identity)
{
    struct stat information;

    *identity = (struct tracking_identity){0};
    if (!path) {
        return;
    }
    if (stat(path, &information) < 0) {
        if (strstr(path, "://")) {
            set_name(identity, path);
        }
    } else if (S_ISREG(information.st_mode)) {
        identity->device = information.st_dev;
        identity->inode = information.st_ino;
        identity->bytes = (uint64_t)information.st_size;
        identity->modified_ns =
            information.st_mtim.tv_sec * INT64_C(1000000000) + information.st_mtim.tv_nsec;
    } else if (S_ISBLK(information.st_mode)) {
        g_autofree char *name = host_device_identity(information.st_rdev);

        set_name(identity, name ? name : "");
        identity->sequence = host_device_sequence(information.st_rdev);
    }
}

/* Numbers of devices last as long as a host is up; a file's inode as long as the file. */
static bool is_same_file(const struct tracking_identity *before,
                         const struct tracking_identity *now, bool same_boot)
{
    return before->inode == now->inode && (!same_boot || before->device == now->device);
}

/*
 * One without a name is known to be another if something was attached anew. With a name it may be
 * attached as often as one likes.
 */
static bool is_same_device(const struct tracking_identity *before,
                           const struct tracking_identity *now, bool same_boot)
{
    if (*before->name) {
        return !strcmp(before->name, now->name);
    }
    return !same_boot || !before->sequence || !now->sequence || before->sequence == now->sequence;
}

bool tracking_is_same(const struct tracking_identity *before, const struct tracking_identity *now,
                      bool same_boot, GError **error)
{
    if (!is_same_file(before, now, same_boot)) {
        block_error(error, EINVAL, "%s", tracking_loss_text(TRACKING_LOST_OTHER_DISK));
        return false;
    }
    if (!is_same_device(before, now, same_boot)) {
        block_error(error, EINVAL, "it was made for '%s', and this is '%s'",
                    *before->name ? before->name : "a block device that was attached earlier",
                    *now->name ? now->name : "one that nobody knows");
        return false;
    }
    return true;
}

int tracking_sync_path(const char *path, GError **error)
{
    struct stat information;

    if (!path || stat(path, &information) < 0 || !S_ISREG(information.st_mode)) {
        return 0;
    }
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int status = fd < 0 ? 0 : tracking_io.sync_disk(fd);
    return status < 0
               ? block_error_errno(error, -status, "'%s' cannot be brought to stable storage", path)
               : 0;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

/* A target is written to, and nothing of the disk is read there. Graph lock held. */
static void find_leaves(struct block_node *node, bool is_own, GPtrArray *leaves)
{
    struct block_child *child;

    if (node->driver->is_protocol && !is_own) {
        node->references++;
        g_ptr_array_add(leaves, node);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role != BLOCK_ROLE_TARGET) {
            bool is_part = child->role == BLOCK_ROLE_FILE || child->role == BLOCK_ROLE_REPLICA;

            find_leaves(child->claim.node, is_own && is_part, leaves);
        }
    }
}

GPtrArray *tracking_layers_list(struct block_node *root)
{
    g_autoptr(GPtrArray) leaves = g_ptr_array_new();
    GPtrArray *layers = tracking_layers_new();

    pthread_mutex_lock(&block_graph_lock);
    find_leaves(root, true, leaves);
    pthread_mutex_unlock(&block_graph_lock);
    for (guint i = 0; i < leaves->len; i++) {
        AUTO(block_node) leaf = g_ptr_array_index(leaves, i);
        g_autofree char *name = block_node_get_filename(leaf);

        if (name) {
            struct tracking_layer *layer = g_new0(struct tracking_layer, 1);

            layer->path = STEAL(name);
            g_ptr_array_add(layers, layer);
        }
    }
    return layers;
}

void tracking_layers_identify(GPtrArray *layers)
{
    for (guint i = 0; i < layers->len; i++) {
        struct tracking_layer *layer = g_ptr_array_index(layers, i);

        tracking_identify(layer->path, &layer->identity);
    }
}

int tracking_layers_sync(const GPtrArray *layers, GError **error)
{
    int status = 0;

    for (guint i = 0; i < layers->len && status == 0; i++) {
        const struct tracking_layer *layer = g_ptr_array_index(layers, i);

        status = tracking_sync_path(layer->path, error);
    }
    return status;
}

bool tracking_layers_match(const GPtrArray *before, const GPtrArray *now, bool same_boot,
                           GError **error)
{
    if (before->len != now->len) {
        block_error(error, EINVAL,
                    "the disk lies on %u other files, and at the end it lay on %u: it was given "
                    "another backing file",
                    now->len, before->len);
        return false;
    }
    for (guint i = 0; i < now->len; i++) {
        const struct tracking_layer *was = g_ptr_array_index(before, i);
        const struct tracking_layer *is = g_ptr_array_index(now, i);

        if (!tracking_is_same(&was->identity, &is->identity, same_boot, NULL)) {
            block_error(error, EINVAL, "'%s', on which the disk lies, is not what '%s' was",
                        is->path, was->path);
            return false;
        }
        if (was->identity.bytes != is->identity.bytes ||
            was->identity.modified_ns != is->identity.modified_ns) {
            block_error(error, EINVAL, "'%s', on which the disk lies, was written by somebody else",
                        is->path);
            return false;
        }
    }
    return true;
}

/* As the format has it. */
static GPtrArray *shorten_paths(GPtrArray *layers)
{
    for (guint i = 0; i < layers->len; i++) {
        struct tracking_layer *layer = g_ptr_array_index(layers, i);

        if (strlen(layer->path) > TRACKING_PATH_MAX) {
            layer->path[TRACKING_PATH_MAX] = '\0';
        }
    }
    return layers;
}

int tracking_layers_store(struct tracking_file *file, GPtrArray *layers, GError **error)
{
    struct tracking_directory *directory;

    if (!layers->len && !file->directory->layers->len) {
        return 0;
    }
    directory = tracking_directory_copy(file->directory);
    g_ptr_array_unref(directory->layers);
    directory->layers = g_ptr_array_ref(shorten_paths(layers));
    int status = tracking_file_store_directory(file, directory, error);
    if (status < 0) {
        tracking_directory_free(directory);
    }
    return status;
}
