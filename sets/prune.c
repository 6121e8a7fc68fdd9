/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/prune.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/error.h"
#include "sets/backup-node.h"
#include "sets/copy.h"
#include "sets/durable.h"
#include "sets/image.h"
#include "sets/names.h"

/* ---- What goes ------------------------------------------------------------------------------ */

static bool is_file_of(const char *path, uint64_t bytes)
{
    struct stat st;

    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == bytes;
}

/* As far as sizes tell, and what verifications have found: all of the chain is there. */
static bool is_sound(const struct set *set, const struct manifest *manifest, const char *name)
{
    while (manifest) {
        const struct manifest_disk *disk = manifest_find_disk(manifest, name);

        if (!disk || set_has_damage(set, manifest->id)) {
            return false;
        }
        g_autofree char *image = set_image_path(set, manifest->id, disk);
        g_autofree char *sums = set_file_path(set, name, manifest->id, NAMES_SUMS);
        if (!is_file_of(image, disk->image_bytes) || !is_file_of(sums, disk->sums.bytes)) {
            return false;
        }
        if (!disk->parent) {
            return true;
        }
        manifest = set_find(set, disk->parent);
    }
    return false;
}

/* How many backups of a disk are newer than the one at this index, and can take its place. */
static uint64_t count_newer(const struct set *set, guint index, const char *disk)
{
    uint64_t count = 0;

    for (guint i = index + 1; i < set->manifests->len; i++) {
        count += is_sound(set, g_ptr_array_index(set->manifests, i), disk);
    }
    return count;
}

static bool is_kept(const struct set *set, const struct prune_plan *plan, guint index)
{
    const struct manifest *manifest = g_ptr_array_index(set->manifests, index);

    if (plan->newer_than_s && manifest->time_s >= plan->newer_than_s) {
        return true;
    }
    for (size_t i = 0; i < manifest->disk_count; i++) {
        if (count_newer(set, index, manifest->disks[i].name) < plan->keep) {
            return true;
        }
    }
    return false;
}

/* A set of the IDs that go; their own strings. */
static GHashTable *choose(const struct set *set, const struct prune_plan *plan)
{
    GHashTable *going = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

    for (guint i = 0; i < set->manifests->len; i++) {
        const struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (!is_kept(set, plan, i)) {
            g_hash_table_add(going, g_strdup(manifest->id));
        }
    }
    return going;
}

static bool needs(const struct manifest_disk *disk, GHashTable *going)
{
    return disk->parent && g_hash_table_contains(going, disk->parent);
}

static bool is_cut_off(const struct manifest *manifest, GHashTable *going)
{
    for (size_t i = 0; i < manifest->disk_count; i++) {
        if (needs(&manifest->disks[i], going)) {
            return true;
        }
    }
    return false;
}

/* ---- Making whole --------------------------------------------------------------------------- */

/* A new image with all that the disk holds, and its checksums, beside the old ones. */
static int write_whole(const struct set *set, const char *id, struct manifest_disk *disk,
                       const struct prune_plan *prune, GError **error)
{
    g_autofree char *image_now = set_image_path(set, id, disk);
    g_autofree char *sums_now = set_file_path(set, disk->name, id, NAMES_SUMS);
    g_autofree char *folder = set_folder(set, disk->name);
    g_autofree char *image = g_strconcat(image_now, NAMES_NEW, NULL);
    g_autofree char *sums_path = g_strconcat(sums_now, NAMES_NEW, NULL);
    const struct image_plan image_plan = {
        .path = image, .is_raw = disk->is_raw, .length = disk->length};
    AUTO(block_node) source = backup_node_open(set, id, disk->name, error);
    AUTO(sums) sums = source ? sums_new(disk->length) : NULL;

    if (!sums) {
        return source ? block_error(error, ENOMEM, "There is no memory for the checksums of '%s'",
                                    disk->name)
                      : -EIO;
    }
    struct block_node *target = image_make(&image_plan, error);
    if (!target) {
        return -EIO;
    }
    const struct copy_plan plan = {
        .source = source,
        .target = target,
        .chain = backup_node_chain(source),
        .sums = sums,
        .progress = prune->progress,
        .progress_data = prune->progress_data,
    };
    int status = copy_to_image(&plan, image, error);
    if (status == 0) {
        status = image_describe(image, sums, sums_path, disk, error);
    }
    if (status < 0) {
        return status;
    }
    g_clear_pointer(&disk->parent, g_free);
    return durable_sync_folder(folder, error);
}

/* Its manifest first: while that is there the new state may count. */
static void remove_new(const struct set *set, const struct manifest *manifest,
                       const char *new_manifest)
{
    if (durable_remove(new_manifest, NULL) < 0 || durable_sync_folder(set->path, NULL) < 0) {
        return; /* whoever opens the set next sees what has become of it */
    }
    for (size_t i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *disk = &manifest->disks[i];
        g_autofree char *image_now = set_image_path(set, manifest->id, disk);
        g_autofree char *sums_now = set_file_path(set, disk->name, manifest->id, NAMES_SUMS);
        g_autofree char *image = g_strconcat(image_now, NAMES_NEW, NULL);
        g_autofree char *sums = g_strconcat(sums_now, NAMES_NEW, NULL);

        unlink(image);
        unlink(sums);
    }
}

static int make_whole(struct set *set, guint index, GHashTable *going,
                      const struct prune_plan *plan, GError **error)
{
    struct manifest *before = g_ptr_array_index(set->manifests, index);
    AUTO(manifest) after = manifest_copy(before);
    g_autofree char *path = set_manifest_path(set, before->id);
    g_autofree char *renewed = g_strconcat(path, NAMES_NEW, NULL);
    int status = 0;

    for (size_t i = 0; status == 0 && i < after->disk_count; i++) {
        if (needs(&after->disks[i], going)) {
            status = write_whole(set, after->id, &after->disks[i], plan, error);
        }
    }
    if (status == 0) {
        status = manifest_write(after, renewed, error); /* from here on that counts */
    }
    if (status < 0) {
        remove_new(set, before, renewed);
        return status;
    }
    g_hash_table_add(set->switching, g_strdup(after->id));
    status = set_finish_switch(set, after, error);
    set->manifests->pdata[index] = STEAL(after);
    manifest_free(before);
    return status;
}

/* ---- The whole ------------------------------------------------------------------------------ */

static int make_all_whole(struct set *set, GHashTable *going, const struct prune_plan *plan,
                          GError **error)
{
    int status = 0;

    for (guint i = 0; status == 0 && i < set->manifests->len; i++) {
        const struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (g_hash_table_contains(going, manifest->id) || !is_cut_off(manifest, going)) {
            continue;
        }
        plan->says(manifest, false, plan->says_data);
        if (!plan->dry_run) {
            status = make_whole(set, i, going, plan, error);
        }
    }
    return status;
}

/* The newest first, so that what is still there is never without what it builds upon. */
static int remove_all(struct set *set, GHashTable *going, const struct prune_plan *plan,
                      GError **error)
{
    int status = 0;

    for (guint i = set->manifests->len; status == 0 && i-- > 0;) {
        struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (g_hash_table_contains(going, manifest->id)) {
            plan->says(manifest, true, plan->says_data);
            status = plan->dry_run ? 0 : set_remove(set, manifest, error);
        }
    }
    return status;
}

int prune_set(struct set *set, const struct prune_plan *plan, GError **error)
{
    g_autoptr(GHashTable) going = choose(set, plan);
    int status = make_all_whole(set, going, plan, error);

    return status < 0 ? status : remove_all(set, going, plan, error);
}
