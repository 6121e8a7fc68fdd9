/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/restore.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "sets/backup-node.h"
#include "sets/copy.h"
#include "sets/durable.h"
#include "sets/image.h"

/*
 * A server that uses the file would go on with it, and nobody find again what is written there. The
 * node keeps others from it until it is replaced.
 */
static int hold_target(const struct restore_plan *plan, struct block_node **replaced,
                       GError **error)
{
    AUTO(block_options) options = block_options_new();

    block_options_set(options, "driver", "file");
    block_options_set(options, "filename", plan->target);
    *replaced = block_node_open(options, true, error);
    return *replaced ? 0 : -EBUSY;
}

static int check_target(const struct restore_plan *plan, struct block_node **replaced,
                        GError **error)
{
    struct stat st;

    if (stat(plan->target, &st) < 0) {
        return errno == ENOENT
                   ? 0
                   : block_error_errno(error, errno, "Could not look at '%s'", plan->target);
    }
    if (!S_ISREG(st.st_mode)) {
        return block_error(error, EINVAL,
                           "'%s' is no file: restore to a file, or serve the backup and copy it "
                           "from there",
                           plan->target);
    }
    return plan->may_replace ? hold_target(plan, replaced, error)
                             : block_error(error, EEXIST, "'%s' exists; replace it with --existing",
                                           plan->target);
}

static struct block_node *open_source(const struct restore_plan *plan, GError **error)
{
    if (plan->set) {
        return backup_node_open(plan->set, plan->id, plan->disk, error);
    }
    AUTO(block_options) options = block_options_new();
    block_options_set(options, "driver", "nbd");
    block_options_set(options, "uri", plan->uri);
    block_options_set(options, "read-only", "on");
    return block_node_open(options, true, error);
}

static int copy_to(const struct restore_plan *plan, struct block_node *source, const char *partial,
                   GError **error)
{
    const struct image_plan image = {
        .path = partial, .is_raw = plan->is_raw, .length = block_node_length(source)};
    struct block_node *target = image_make(&image, error);
    const struct copy_plan copy = {
        .source = source,
        .target = target,
        .chain = plan->set ? backup_node_chain(source) : NULL,
        .speed = plan->speed,
        .progress = plan->progress,
        .progress_data = plan->progress_data,
    };

    if (!target) {
        return -EIO;
    }
    int status = copy_to_image(&copy, partial, error);
    if (status < 0) {
        unlink(partial);
    }
    return status;
}

int restore_run(const struct restore_plan *plan, uint64_t *length, GError **error)
{
    g_autofree char *partial = g_strconcat(plan->target, RESTORE_PARTIAL, NULL);
    AUTO(block_node) replaced = NULL;
    int status = check_target(plan, &replaced, error);
    AUTO(block_node) source = status == 0 ? open_source(plan, error) : NULL;

    if (!source) {
        return status < 0 ? status : -EINVAL;
    }
    *length = block_node_length(source);
    status = copy_to(plan, source, partial, error);
    return status < 0 ? status : durable_rename(partial, plan->target, error);
}
