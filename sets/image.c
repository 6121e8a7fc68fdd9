/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/image.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/request.h"
#include "sets/durable.h"
#include "sets/sums.h"

static int create_file(const char *path, uint64_t length, GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRIu64, length);

    block_options_set(options, "driver", "file");
    block_options_set(options, "filename", path);
    block_options_set(options, "size", size);
    return block_create(options, NULL, NULL, error);
}

static int create_qcow2(const struct image_plan *plan, GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRIu64, plan->length);
    g_autofree char *cluster = g_strdup_printf("%" PRIu64, SUMS_GRANULE);

    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", plan->path);
    block_options_set(options, "size", size);
    block_options_set(options, "cluster-size", cluster);
    if (plan->backing) {
        block_options_set(options, "backing-file", plan->backing);
        block_options_set(options, "backing-fmt", plan->backing_format);
    }
    return block_create(options, NULL, NULL, error);
}

static struct block_node *open_image(const struct image_plan *plan, GError **error)
{
    AUTO(block_options) options = block_options_new();

    block_options_set(options, "driver", plan->is_raw ? "raw" : "qcow2");
    if (!plan->is_raw) {
        block_options_set(options, "backing", "");
    }
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", plan->path);
    block_options_set(options, "discard", "unmap");
    return block_node_open(options, true, error);
}

/* What is left of one that died, and nobody is writing. */
static int make_room(const char *path, GError **error)
{
    AUTO(block_options) options = block_options_new();

    if (!g_file_test(path, G_FILE_TEST_IS_REGULAR) || g_file_test(path, G_FILE_TEST_IS_SYMLINK)) {
        unlink(path);
        return 0;
    }
    block_options_set(options, "driver", "file");
    block_options_set(options, "filename", path);
    AUTO(block_node) node = block_node_open(options, true, error);
    if (node) {
        unlink(path); /* locked, so that it is nobody else's */
    }
    return node ? 0 : -EBUSY;
}

struct block_node *image_make(const struct image_plan *plan, GError **error)
{
    struct block_node *node = NULL;

    if (make_room(plan->path, error) < 0 ||
        create_file(plan->path, plan->is_raw ? plan->length : 0, error) < 0) {
        return NULL;
    }
    if (plan->is_raw || create_qcow2(plan, error) == 0) {
        node = open_image(plan, error);
    }
    if (!node) {
        unlink(plan->path);
    }
    return node;
}

int image_finish(struct block_node *node, const char *path, GError **error)
{
    int status = block_node_flush(node);

    block_node_dispose(node);
    return status < 0 ? block_error_errno(error, -status,
                                          "Could not make safe what was written to '%s'", path)
                      : durable_sync_file(path, error);
}

int image_describe(const char *path, const struct sums *sums, const char *sums_path,
                   struct manifest_disk *disk, GError **error)
{
    struct stat st;

    if (stat(path, &st) < 0) {
        return block_error_errno(error, errno, "Could not look at '%s'", path);
    }
    disk->image_bytes = (uint64_t)st.st_size;
    disk->data_bytes = sums_count(sums, GRANULE_DATA);
    disk->zero_bytes = sums_count(sums, GRANULE_ZERO);
    return sums_write(sums, sums_path, &disk->sums, error);
}
