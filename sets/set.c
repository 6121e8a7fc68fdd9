/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/set.h"

#include <dirent.h>
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

/* ---- Names ---------------------------------------------------------------------------------- */

char *set_folder(const struct set *set, const char *disk)
{
    return g_build_filename(set->path, disk, NULL);
}

char *set_manifest_path(const struct set *set, const char *id)
{
    g_autofree char *name = g_strconcat(id, NAMES_MANIFEST, NULL);

    return g_build_filename(set->path, name, NULL);
}

static char *path_in_folder(const struct set *set, const char *disk, const char *id,
                            const char *suffix, const char *more)
{
    g_autofree char *name = g_strconcat(id, suffix, more, NULL);

    return g_build_filename(set->path, disk, name, NULL);
}

char *set_file_path(const struct set *set, const char *disk, const char *id, const char *suffix)
{
    g_autofree char *renewed = path_in_folder(set, disk, id, suffix, NAMES_NEW);

    return g_hash_table_contains(set->switching, id) && access(renewed, F_OK) == 0
               ? STEAL(renewed)
               : path_in_folder(set, disk, id, suffix, NULL);
}

const char *set_image_suffix(const struct manifest_disk *disk)
{
    return disk->is_raw ? NAMES_RAW : NAMES_QCOW2;
}

char *set_image_path(const struct set *set, const char *id, const struct manifest_disk *disk)
{
    return set_file_path(set, disk->name, id, set_image_suffix(disk));
}

static int compare_ids(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

GPtrArray *set_list_ids(const char *directory, const char *suffix)
{
    GPtrArray *ids = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) listing = g_dir_open(directory, 0, NULL);
    const char *name;

    while (listing && (name = g_dir_read_name(listing))) {
        char *id = names_id_of(name, suffix);

        if (id) {
            g_ptr_array_add(ids, id);
        }
    }
    g_ptr_array_sort(ids, compare_ids);
    return ids;
}

/* ---- Locks ---------------------------------------------------------------------------------- */

/* -1: it cannot be opened, as in a set that may only be read. */
static int open_lock(const struct set *set, const char *name)
{
    g_autofree char *path = g_build_filename(set->path, name, NULL);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    return fd >= 0 ? fd : open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
}

static int lock(const struct set *set, const char *name, int operation, const char *who, int *fd,
                GError **error)
{
    *fd = open_lock(set, name);
    if (*fd < 0 && operation == LOCK_SH) {
        return 0; /* there is no lock, so nobody prunes what cannot be written */
    }
    if (*fd < 0) {
        return block_error_errno(error, errno, "Could not lock the backup set '%s'", set->path);
    }
    if (flock(*fd, operation | LOCK_NB) == 0) {
        return 0;
    }
    return errno == EWOULDBLOCK
               ? block_error(error, EBUSY, "The backup set '%s' is in use: %s", set->path, who)
               : block_error_errno(error, errno, "Could not lock the backup set '%s'", set->path);
}

static int lock_set(struct set *set, enum set_use use, GError **error)
{
    int status = 0;

    if (use >= SET_RUN) {
        status = lock(set, NAMES_LOCK, LOCK_EX,
                      "a backup is being made or pruned; try again when that has ended",
                      &set->lock_fd, error);
    }
    if (status == 0 && use == SET_READ) {
        status = lock(set, NAMES_READERS, LOCK_SH, "it is being pruned; try again after that",
                      &set->readers_fd, error);
    }
    if (status == 0 && use == SET_PRUNE) {
        status = lock(set, NAMES_READERS, LOCK_EX,
                      "somebody verifies, restores or serves a backup; prune it after that",
                      &set->readers_fd, error);
    }
    return status;
}

/* ---- Manifests ------------------------------------------------------------------------------ */

static void clear_problem(void *data)
{
    struct set_problem *problem = data;

    g_free(problem->id);
    g_free(problem->message);
}

static void add_problem(struct set *set, const char *id, const char *message)
{
    struct set_problem problem = {.id = g_strdup(id), .message = g_strdup(message)};

    g_array_append_val(set->problems, problem);
}

/* The manifest that counts. Of a new one that cannot be read now nobody knows whether it does. */
static int load_manifest(struct set *set, const char *id, GError **error)
{
    g_autofree char *path = set_manifest_path(set, id);
    g_autofree char *renewed = g_strconcat(path, NAMES_NEW, NULL);
    g_autoptr(GError) problem = NULL;
    struct manifest *manifest = manifest_read(renewed, id, &problem);

    if (manifest) {
        g_hash_table_add(set->switching, g_strdup(id));
    } else if (!g_error_matches(problem, BLOCK_ERROR, ENOENT) &&
               !g_error_matches(problem, BLOCK_ERROR, EBADMSG)) {
        int status = block_error_code(problem);

        g_propagate_error(error, g_steal_pointer(&problem));
        return status;
    } else {
        g_clear_error(&problem);
        manifest = manifest_read(path, id, &problem);
    }
    if (manifest) {
        g_ptr_array_add(set->manifests, manifest);
    } else if (!g_error_matches(problem, BLOCK_ERROR, ENOENT)) {
        add_problem(set, id, problem->message);
    }
    return 0;
}

/* Else a set that cannot be read for a moment would be an empty one. */
static int check_listing(const struct set *set, GError **error)
{
    DIR *listing = opendir(set->path);

    if (!listing) {
        return block_error_errno(error, errno, "Could not read the directory '%s'", set->path);
    }
    do {
        errno = 0;
    } while (readdir(listing));
    int status =
        errno ? block_error_errno(error, errno, "Could not read the directory '%s'", set->path) : 0;
    closedir(listing);
    return status;
}

static int load_manifests(struct set *set, GError **error)
{
    g_autoptr(GPtrArray) ids = set_list_ids(set->path, NAMES_MANIFEST);
    g_autoptr(GPtrArray) renewed = set_list_ids(set->path, NAMES_MANIFEST NAMES_NEW);
    const char *before = NULL;
    int status = 0;

    for (guint i = 0; i < renewed->len; i++) {
        g_ptr_array_add(ids, g_strdup(g_ptr_array_index(renewed, i)));
    }
    g_ptr_array_sort(ids, compare_ids);
    for (guint i = 0; status == 0 && i < ids->len; i++) {
        const char *id = g_ptr_array_index(ids, i);

        if (g_strcmp0(id, before)) {
            status = load_manifest(set, id, error);
        }
        before = id;
    }
    return status;
}

struct manifest *set_find(const struct set *set, const char *id)
{
    for (guint i = 0; i < set->manifests->len; i++) {
        struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (!strcmp(manifest->id, id)) {
            return manifest;
        }
    }
    return NULL;
}

const char *set_newest_id(const struct set *set)
{
    const char *newest = NULL;

    if (set->manifests->len) {
        const struct manifest *last = g_ptr_array_index(set->manifests, set->manifests->len - 1);
        newest = last->id;
    }
    if (set->problems->len) {
        const char *last =
            g_array_index(set->problems, struct set_problem, set->problems->len - 1).id;
        newest = g_strcmp0(last, newest) > 0 ? last : newest;
    }
    return newest;
}

struct manifest *set_newest_of(const struct set *set, const char *disk)
{
    for (guint i = set->manifests->len; i-- > 0;) {
        struct manifest *manifest = g_ptr_array_index(set->manifests, i);

        if (manifest_find_disk(manifest, disk)) {
            return manifest;
        }
    }
    return NULL;
}

int set_refuse_missing(const struct set *set, const char *id, GError **error)
{
    for (guint i = 0; i < set->problems->len; i++) {
        const struct set_problem *problem = &g_array_index(set->problems, struct set_problem, i);

        if (!strcmp(problem->id, id)) {
            return block_error(error, EBADMSG, "The backup %s cannot be used: %s", id,
                               problem->message);
        }
    }
    return block_error(error, ENOENT, "There is no backup %s in '%s'", id, set->path);
}

/* ---- Its name ------------------------------------------------------------------------------- */

/* What a set that is just being made may hold. */
static bool is_ours_or_nothing(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..") || !strcmp(name, NAMES_LOCK) ||
           !strcmp(name, NAMES_READERS) || !strcmp(name, NAMES_SET NAMES_NEW) ||
           !strcmp(name, "lost+found");
}

static bool has_other_files(const char *path)
{
    DIR *listing = opendir(path);
    struct dirent *entry;
    bool has_other = false;

    while (listing && !has_other && (entry = readdir(listing))) {
        has_other = !is_ours_or_nothing(entry->d_name);
    }
    if (listing) {
        closedir(listing);
    }
    return has_other;
}

static bool is_set(const char *path)
{
    g_autofree char *file = g_build_filename(path, NAMES_SET, NULL);
    g_autoptr(GPtrArray) ids = set_list_ids(path, NAMES_MANIFEST);

    return ids->len || access(file, F_OK) == 0;
}

/* An empty directory becomes a set; another one is not ours to write into. */
static int make_directory(const struct set *set, GError **error)
{
    g_autofree char *above = g_path_get_dirname(set->path);

    if (mkdir(set->path, 0700) == 0) {
        return durable_sync_folder(above, error);
    }
    if (errno == EEXIST && !g_file_test(set->path, G_FILE_TEST_IS_DIR)) {
        return block_error(error, ENOTDIR, "'%s' is no directory", set->path);
    }
    if (errno != EEXIST) {
        return block_error_errno(error, errno, "Could not create the directory '%s'", set->path);
    }
    return is_set(set->path) || !has_other_files(set->path)
               ? 0
               : block_error(error, EEXIST,
                             "'%s' holds other files and no backup set; name a new or an empty "
                             "directory",
                             set->path);
}

/* NULL with the error set if there is none; -EBADMSG: what there is makes no sense. */
static char *read_uuid(const struct set *set, GError **error)
{
    g_autofree char *path = g_build_filename(set->path, NAMES_SET, NULL);
    json_t *object = sealed_read(path, error);
    const char *uuid = json_string_value(json_object_get(object, "uuid"));
    char *found = names_uuid_is_valid(uuid) ? g_strdup(uuid) : NULL;

    if (object && !found) {
        block_error(error, EBADMSG, "'%s' holds no UUID", path);
    }
    json_decref(object);
    return found;
}

static int write_uuid(const struct set *set, GError **error)
{
    g_autofree char *path = g_build_filename(set->path, NAMES_SET, NULL);
    json_t *object = json_pack("{s:s, s:i, s:s}", "format", "liveblk-backup-set", "version", 1,
                               "uuid", set->uuid);
    int status = sealed_write(object, path, error);

    json_decref(object);
    return status;
}

static int find_uuid(struct set *set, enum set_use use, GError **error)
{
    g_autoptr(GError) problem = NULL;

    set->uuid = read_uuid(set, &problem);
    if (set->uuid) {
        return 0;
    }
    bool is_damaged = g_error_matches(problem, BLOCK_ERROR, EBADMSG);
    if (use == SET_RUN && !is_damaged && !g_error_matches(problem, BLOCK_ERROR, ENOENT)) {
        int status = block_error_code(problem); /* it may be there: no other one is written */

        g_propagate_error(error, g_steal_pointer(&problem));
        return status;
    }
    if (set->manifests->len) {
        const struct manifest *last = g_ptr_array_index(set->manifests, set->manifests->len - 1);
        set->uuid = g_strdup(last->set);
    } else if (use == SET_RUN) {
        set->uuid = names_new_uuid();
    }
    if (is_damaged || set->manifests->len) {
        set->note = g_strdup_printf("'%s/" NAMES_SET "' was %s", set->path,
                                    is_damaged ? "damaged" : "missing");
    }
    return use == SET_RUN ? write_uuid(set, error) : 0;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int load(struct set *set, enum set_use use, GError **error)
{
    int status = use == SET_RUN ? make_directory(set, error)
                 : is_set(set->path)
                     ? 0
                     : block_error(error, ENOENT, "There is no backup set in '%s'", set->path);

    if (status == 0) {
        status = lock_set(set, use, error);
    }
    if (status == 0) {
        status = check_listing(set, error);
    }
    if (status == 0) {
        status = load_manifests(set, error);
    }
    if (status < 0) {
        return status;
    }
    status = find_uuid(set, use, error);
    return status == 0 && use >= SET_RUN ? set_recover(set, error) : status;
}

struct set *set_open(const char *path, enum set_use use, GError **error)
{
    AUTO(set) set = g_new0(struct set, 1);

    set->path = g_canonicalize_filename(path, NULL);
    set->manifests = g_ptr_array_new_with_free_func((GDestroyNotify)manifest_free);
    set->problems = g_array_new(false, false, sizeof(struct set_problem));
    g_array_set_clear_func(set->problems, clear_problem);
    set->switching = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    set->lock_fd = -1;
    set->readers_fd = -1;
    return load(set, use, error) < 0 ? NULL : STEAL(set);
}

void set_free(struct set *set)
{
    g_ptr_array_unref(set->manifests);
    g_array_unref(set->problems);
    g_hash_table_unref(set->switching);
    cleanup_close(&set->lock_fd);
    cleanup_close(&set->readers_fd);
    g_free(set->note);
    g_free(set->uuid);
    g_free(set->path);
    g_free(set);
}

/* ---- Notes of damage ------------------------------------------------------------------------ */

static char *damage_path(const struct set *set, const char *id)
{
    g_autofree char *name = g_strconcat(id, NAMES_DAMAGED, NULL);

    return g_build_filename(set->path, name, NULL);
}

void set_note_damage(const struct set *set, const char *id, const char *message)
{
    g_autofree char *path = damage_path(set, id);

    if (message) {
        g_autofree char *line = g_strconcat(message, "\n", NULL);
        durable_replace(path, line, strlen(line), NULL);
    } else {
        durable_remove(path, NULL);
    }
}

bool set_has_damage(const struct set *set, const char *id)
{
    g_autofree char *path = damage_path(set, id);

    return access(path, F_OK) == 0;
}
