/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/backup.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "block/align.h"
#include "block/error.h"
#include "sets/copy.h"
#include "sets/durable.h"
#include "sets/image.h"
#include "sets/names.h"
#include "sets/set-internal.h"
#include "sets/verify.h"

/* Restoring reads all of them, and other programs open all that an image lies on. */
#define INCREMENTS_MAX 100

/* ---- The parent ----------------------------------------------------------------------------- */

void backup_parent_clear(struct backup_parent *parent)
{
    g_free(parent->id);
    g_free(parent->checkpoint);
    g_free(parent->message);
    *parent = (struct backup_parent){0};
}

static void refuse(struct backup_parent *parent, const char *reason, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
static void refuse(struct backup_parent *parent, const char *reason, const char *format, ...)
{
    va_list arguments;

    backup_parent_clear(parent);
    va_start(arguments, format);
    parent->message = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    parent->reason = reason;
}

/* A manifest that cannot be used and is newer: it may have been of the disk, and its checkpoint may
 * be the one that is still there. */
static const struct set_problem *newer_problem(const struct set *set, const struct manifest *than)
{
    const struct set_problem *last =
        set->problems->len
            ? &g_array_index(set->problems, struct set_problem, set->problems->len - 1)
            : NULL;

    return last && (!than || strcmp(last->id, than->id) > 0) ? last : NULL;
}

static bool is_damaged(const struct set *set, const char *id, const char *disk, bool deep,
                       struct backup_parent *parent)
{
    g_autoptr(GError) problem = NULL;
    AUTO(backup_chain) chain = backup_chain_open(set, id, disk, &problem);

    if (!chain || (deep && verify_chain(chain, &problem) < 0)) {
        refuse(parent, REASON_DAMAGED, "%s", problem->message);
        return true;
    }
    for (size_t i = 0; i < chain->count; i++) {
        const char *layer = chain->layers[i].id;

        if (set_has_damage(set, layer)) {
            refuse(parent, REASON_DAMAGED, "A verification found the backup %s damaged", layer);
            return true;
        }
    }
    if (chain->count > INCREMENTS_MAX) {
        refuse(parent, REASON_CHAIN, "%zu backups build upon each other", chain->count);
        return true;
    }
    return false;
}

void backup_find_parent(const struct set *set, const char *disk, bool is_raw, bool is_full,
                        bool deep, struct backup_parent *parent)
{
    const struct manifest *manifest = set_newest_of(set, disk);
    const struct set_problem *problem = newer_problem(set, manifest);
    const struct manifest_disk *before = manifest ? manifest_find_disk(manifest, disk) : NULL;

    *parent = (struct backup_parent){0};
    if (is_full) {
        parent->reason = REASON_ASKED;
    } else if (problem) {
        refuse(parent, REASON_DAMAGED, "%s", problem->message);
    } else if (!manifest) {
        parent->reason = REASON_FIRST;
    } else if (before->is_raw != is_raw) {
        refuse(parent, REASON_FORMAT, "The backup %s is %s", manifest->id,
               before->is_raw ? "raw" : "qcow2");
    } else if (!before->checkpoint) {
        refuse(parent, REASON_CHECKPOINT, "The disk was not tracked when the backup %s was made",
               manifest->id);
    } else if (!is_damaged(set, manifest->id, disk, deep, parent)) {
        parent->id = g_strdup(manifest->id);
        parent->checkpoint = g_strdup(before->checkpoint);
        parent->length = before->length;
    }
}

/* ---- Copying -------------------------------------------------------------------------------- */

static int make_folder(const struct set *set, const char *disk, GError **error)
{
    g_autofree char *folder = set_folder(set, disk);

    if (mkdir(folder, 0700) < 0 && errno != EEXIST) {
        return block_error_errno(error, errno, "Could not create the folder '%s'", folder);
    }
    return durable_sync_folder(set->path, error);
}

/*
 * Behind the parent's end there is nothing below, whatever the server says has changed; and a
 * granule that the end lies in is the parent's only in part.
 */
static void add_growth(const struct backup_source *source, uint64_t length)
{
    uint64_t start = align_down(source->parent_length, SUMS_GRANULE);

    if (source->changed && source->parent_length < length) {
        dirty_bitmap_set(source->changed, start, length - start);
    }
}

static int copy_to(struct block_node *target, const char *image, struct manifest_disk *disk,
                   const struct backup_source *source, struct sums *sums, GError **error)
{
    const struct copy_plan plan = {
        .source = source->node,
        .target = target,
        .wanted = source->changed,
        .zeroes = source->zeroes,
        .sums = sums,
        .explicit_zeroes = disk->parent && !disk->is_raw,
        .compress = source->compress,
        .speed = source->speed,
        .progress = source->progress,
        .progress_data = source->progress_data,
    };

    add_growth(source, disk->length);
    return copy_to_image(&plan, image, error);
}

int backup_copy_disk(const struct set *set, const char *id, struct manifest_disk *disk,
                     const struct backup_source *source, GError **error)
{
    g_autofree char *image = set_image_path(set, id, disk);
    g_autofree char *sums_path = set_file_path(set, disk->name, id, NAMES_SUMS);
    g_autofree char *folder = set_folder(set, disk->name);
    g_autofree char *backing = disk->parent ? g_strconcat(disk->parent, NAMES_QCOW2, NULL) : NULL;
    const struct image_plan plan = {
        .path = image,
        .is_raw = disk->is_raw,
        .length = disk->length,
        .backing = disk->is_raw ? NULL : backing,
        .backing_format = "qcow2",
    };

    if (disk->length > SUMS_LENGTH_MAX) {
        return block_error(error, EFBIG,
                           "Disk '%s' is too large for a backup set: %" PRIu64 " bytes", disk->name,
                           disk->length);
    }
    AUTO(sums) sums = sums_new(disk->length);
    if (!sums) {
        return block_error(error, ENOMEM, "There is no memory for the checksums of '%s'",
                           disk->name);
    }
    if (make_folder(set, disk->name, error) < 0) {
        return -EIO;
    }
    struct block_node *target = image_make(&plan, error);
    if (!target) {
        return -EIO;
    }
    int status = copy_to(target, image, disk, source, sums, error);
    if (status == 0) {
        status = image_describe(image, sums, sums_path, disk, error);
    }
    return status < 0 ? status : durable_sync_folder(folder, error);
}

int backup_finish(struct set *set, const struct manifest *manifest, GError **error)
{
    g_autofree char *path = set_manifest_path(set, manifest->id);
    int status = manifest_write(manifest, path, error);

    if (status == 0) {
        g_ptr_array_add(set->manifests, manifest_copy(manifest));
    }
    return status;
}

void backup_discard(struct set *set, const char *id)
{
    g_autofree char *path = set_manifest_path(set, id);
    g_autofree char *renewed = g_strconcat(path, NAMES_NEW, NULL);

    if (durable_remove(renewed, NULL) == 0 && durable_remove(path, NULL) == 0 &&
        durable_sync_folder(set->path, NULL) == 0) {
        set_recover(set, NULL);
    }
}
