/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is left of a run or a prune that died. Only files that bear our names, in folders that bear
 * a disk's, are ever removed; and of a backup that has a manifest, readable or not, nothing is.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/error.h"
#include "sets/durable.h"
#include "sets/names.h"
#include "sets/set-internal.h"

static const char *const file_suffixes[] = {NAMES_QCOW2, NAMES_RAW, NAMES_SUMS, NULL};

/* ---- Switching to a new state --------------------------------------------------------------- */

static int rename_new(const struct set *set, const char *disk, const char *id, const char *suffix,
                      GError **error)
{
    g_autofree char *name = g_strconcat(id, suffix, NULL);
    g_autofree char *path = g_build_filename(set->path, disk, name, NULL);
    g_autofree char *renewed = g_strconcat(path, NAMES_NEW, NULL);

    return rename(renewed, path) == 0 || errno == ENOENT
               ? 0
               : block_error_errno(error, errno, "Could not rename '%s'", renewed);
}

static int switch_disk(const struct set *set, const char *id, const struct manifest_disk *disk,
                       GError **error)
{
    g_autofree char *folder = set_folder(set, disk->name);
    int status = rename_new(set, disk->name, id, set_image_suffix(disk), error);

    if (status == 0) {
        status = rename_new(set, disk->name, id, NAMES_SUMS, error);
    }
    return status < 0 ? status : durable_sync_folder(folder, error);
}

int set_finish_switch(struct set *set, const struct manifest *manifest, GError **error)
{
    g_autofree char *path = set_manifest_path(set, manifest->id);
    g_autofree char *renewed = g_strconcat(path, NAMES_NEW, NULL);
    int status = 0;

    for (size_t i = 0; status == 0 && i < manifest->disk_count; i++) {
        status = switch_disk(set, manifest->id, &manifest->disks[i], error);
    }
    if (status == 0) {
        status = durable_rename(renewed, path, error);
    }
    if (status == 0) {
        g_hash_table_remove(set->switching, manifest->id);
    }
    return status;
}

/* Not beside somebody who reads, and may look for a file that is just being renamed. */
static int finish_switches(struct set *set, GError **error)
{
    g_autofree char *path = g_build_filename(set->path, NAMES_READERS, NULL);
    int status = 0;

    if (g_hash_table_size(set->switching) == 0) {
        return 0;
    }
    g_autoptr(GPtrArray) renewed = set_list_ids(set->path, NAMES_MANIFEST NAMES_NEW);
    AUTO_CLOSE int fd =
        set->readers_fd < 0 ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
    if (set->readers_fd < 0 && (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)) {
        return 0;
    }
    for (guint i = 0; status == 0 && i < renewed->len; i++) {
        const char *id = g_ptr_array_index(renewed, i);

        if (g_hash_table_contains(set->switching, id)) {
            status = set_finish_switch(set, set_find(set, id), error);
        }
    }
    return status;
}

/* ---- Removing ------------------------------------------------------------------------------- */

static bool has_manifest(const struct set *set, const char *id)
{
    g_autofree char *path = set_manifest_path(set, id);
    struct stat st;

    /* If that cannot be told, as on storage that is away for a moment, there is one. */
    return set_find(set, id) || lstat(path, &st) == 0 || errno != ENOENT;
}

static int remove_in(const char *folder, const char *id, const char *suffix, const char *more,
                     GError **error)
{
    g_autofree char *name = g_strconcat(id, suffix, more, NULL);
    g_autofree char *path = g_build_filename(folder, name, NULL);

    return durable_remove(path, error);
}

static int clean_suffix(const struct set *set, const char *folder, const char *suffix,
                        GError **error)
{
    g_autofree char *with_new = g_strconcat(suffix, NAMES_NEW, NULL);
    g_autoptr(GPtrArray) ids = set_list_ids(folder, suffix);
    g_autoptr(GPtrArray) renewed = set_list_ids(folder, with_new);
    int status = 0;

    for (guint i = 0; status == 0 && i < ids->len; i++) {
        const char *id = g_ptr_array_index(ids, i);

        status = has_manifest(set, id) ? 0 : remove_in(folder, id, suffix, NULL, error);
    }
    for (guint i = 0; status == 0 && i < renewed->len; i++) {
        const char *id = g_ptr_array_index(renewed, i);

        status = g_hash_table_contains(set->switching, id)
                     ? 0
                     : remove_in(folder, id, suffix, NAMES_NEW, error);
    }
    return status;
}

static int clean_folder(const struct set *set, const char *name, GError **error)
{
    g_autofree char *folder = set_folder(set, name);
    int status = 0;

    if (!g_file_test(folder, G_FILE_TEST_IS_DIR) || g_file_test(folder, G_FILE_TEST_IS_SYMLINK)) {
        return 0;
    }
    for (const char *const *suffix = file_suffixes; status == 0 && *suffix; suffix++) {
        status = clean_suffix(set, folder, *suffix, error);
    }
    if (status == 0 && rmdir(folder) < 0 && errno != ENOTEMPTY && errno != EEXIST) {
        return block_error_errno(error, errno, "Could not remove the empty folder '%s'", folder);
    }
    return status;
}

static int clean_manifests(const struct set *set, GError **error)
{
    g_autoptr(GPtrArray) renewed = set_list_ids(set->path, NAMES_MANIFEST NAMES_NEW);
    g_autoptr(GPtrArray) damaged = set_list_ids(set->path, NAMES_DAMAGED);
    g_autoptr(GPtrArray) notes = set_list_ids(set->path, NAMES_DAMAGED NAMES_NEW);
    g_autoptr(GPtrArray) unsaid = set_list_ids(set->path, NAMES_MANIFEST NAMES_NEW NAMES_NEW);
    int status = 0;

    for (guint i = 0; status == 0 && i < renewed->len; i++) {
        const char *id = g_ptr_array_index(renewed, i);

        status = g_hash_table_contains(set->switching, id)
                     ? 0
                     : remove_in(set->path, id, NAMES_MANIFEST, NAMES_NEW, error);
    }
    for (guint i = 0; status == 0 && i < damaged->len; i++) {
        const char *id = g_ptr_array_index(damaged, i);

        status = has_manifest(set, id) ? 0 : remove_in(set->path, id, NAMES_DAMAGED, NULL, error);
    }
    for (guint i = 0; status == 0 && i < notes->len; i++) {
        status = remove_in(set->path, g_ptr_array_index(notes, i), NAMES_DAMAGED, NAMES_NEW, error);
    }
    for (guint i = 0; status == 0 && i < unsaid->len; i++) {
        status = remove_in(set->path, g_ptr_array_index(unsaid, i), NAMES_MANIFEST NAMES_NEW,
                           NAMES_NEW, error);
    }
    return status;
}

static int clean_folders(const struct set *set, GError **error)
{
    g_autoptr(GDir) listing = g_dir_open(set->path, 0, NULL);
    const char *name;
    int status = 0;

    while (status == 0 && listing && (name = g_dir_read_name(listing))) {
        status = names_disk_is_valid(name) ? clean_folder(set, name, error) : 0;
    }
    return status;
}

int set_recover(struct set *set, GError **error)
{
    int status = finish_switches(set, error);

    if (status == 0) {
        status = clean_manifests(set, error);
    }
    if (status == 0) {
        /* Manifests that are gone for us must not come back, with the power, to files that are. */
        status = durable_sync_folder(set->path, error);
    }
    if (status == 0) {
        status = clean_folders(set, error);
    }
    return status < 0 ? status : durable_sync_folder(set->path, error);
}

int set_remove(struct set *set, struct manifest *manifest, GError **error)
{
    g_autofree char *path = set_manifest_path(set, manifest->id);
    int status = durable_remove(path, error);

    if (status == 0) {
        status = durable_sync_folder(set->path, error);
    }
    if (status < 0) {
        return status;
    }
    for (size_t i = 0; status == 0 && i < manifest->disk_count; i++) {
        g_autofree char *folder = set_folder(set, manifest->disks[i].name);

        for (const char *const *suffix = file_suffixes; status == 0 && *suffix; suffix++) {
            status = remove_in(folder, manifest->id, *suffix, NULL, error);
        }
        if (status == 0) {
            rmdir(folder); /* if it is empty */
        }
    }
    if (status == 0) {
        status = remove_in(set->path, manifest->id, NAMES_DAMAGED, NULL, error);
    }
    g_ptr_array_remove(set->manifests, manifest);
    return status;
}
