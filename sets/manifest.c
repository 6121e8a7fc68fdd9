/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/manifest.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "sets/names.h"

#define FORMAT    "liveblk-backup"
#define VERSION   1
#define DISKS_MAX 10000
#define TEXT_MAX  1000

static void disk_clear(struct manifest_disk *disk)
{
    g_free(disk->name);
    g_free(disk->parent);
    g_free(disk->reason);
    g_free(disk->checkpoint);
}

struct manifest *manifest_new(const char *id, const char *set, size_t disk_count)
{
    struct manifest *manifest = g_new0(struct manifest, 1);

    manifest->id = g_strdup(id);
    manifest->set = g_strdup(set);
    manifest->disks = g_new0(struct manifest_disk, disk_count);
    manifest->disk_count = disk_count;
    return manifest;
}

struct manifest *manifest_copy(const struct manifest *manifest)
{
    struct manifest *copy = manifest_new(manifest->id, manifest->set, manifest->disk_count);

    copy->time_s = manifest->time_s;
    copy->held_ns = manifest->held_ns;
    for (size_t i = 0; i < manifest->disk_count; i++) {
        const struct manifest_disk *from = &manifest->disks[i];
        struct manifest_disk *to = &copy->disks[i];

        *to = *from;
        to->name = g_strdup(from->name);
        to->parent = g_strdup(from->parent);
        to->reason = g_strdup(from->reason);
        to->checkpoint = g_strdup(from->checkpoint);
    }
    return copy;
}

void manifest_free(struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->disk_count; i++) {
        disk_clear(&manifest->disks[i]);
    }
    g_free(manifest->disks);
    g_free(manifest->id);
    g_free(manifest->set);
    g_free(manifest);
}

struct manifest_disk *manifest_find_disk(const struct manifest *manifest, const char *name)
{
    for (size_t i = 0; i < manifest->disk_count; i++) {
        if (!g_strcmp0(manifest->disks[i].name, name)) {
            return &manifest->disks[i];
        }
    }
    return NULL;
}

/* ---- Reading -------------------------------------------------------------------------------- */

static bool take_size(const json_t *object, const char *key, uint64_t max, uint64_t *value)
{
    const json_t *member = json_object_get(object, key);

    *value = (uint64_t)json_integer_value(member);
    return json_is_integer(member) && json_integer_value(member) >= 0 && *value <= max;
}

/* A text that need not be there. */
static bool take_text(const json_t *object, const char *key, char **value)
{
    const json_t *member = json_object_get(object, key);

    *value = g_strdup(json_string_value(member));
    return !member || (json_is_string(member) && strlen(*value) <= TEXT_MAX);
}

static bool take_word(const json_t *object, const char *key, const char *zero, const char *one,
                      bool *is_one)
{
    const char *word = json_string_value(json_object_get(object, key));

    *is_one = !g_strcmp0(word, one);
    return *is_one || !g_strcmp0(word, zero);
}

static bool take_disk(const json_t *object, const char *id, struct manifest_disk *disk)
{
    bool is_full;

    return take_text(object, "name", &disk->name) && names_disk_is_valid(disk->name) &&
           take_word(object, "format", "qcow2", "raw", &disk->is_raw) &&
           take_word(object, "mode", "incremental", "full", &is_full) &&
           take_text(object, "parent", &disk->parent) &&
           take_text(object, "reason", &disk->reason) &&
           take_text(object, "checkpoint", &disk->checkpoint) &&
           /* Parents are older, so that no chain is endless. */
           (is_full ? !disk->parent
                    : names_id_is_valid(disk->parent) && strcmp(disk->parent, id) < 0) &&
           take_size(object, "length", SUMS_LENGTH_MAX, &disk->length) &&
           take_size(object, "image-bytes", INT64_MAX, &disk->image_bytes) &&
           take_size(object, "checksum-bytes", INT64_MAX, &disk->sums.bytes) &&
           digest_from_text(json_string_value(json_object_get(object, "checksum-digest")),
                            &disk->sums.digest) &&
           take_size(object, "data-bytes", disk->length, &disk->data_bytes) &&
           take_size(object, "zero-bytes", disk->length, &disk->zero_bytes);
}

static bool take_disks(const json_t *list, struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->disk_count; i++) {
        struct manifest_disk *disk = &manifest->disks[i];

        if (!take_disk(json_array_get(list, i), manifest->id, disk) ||
            manifest_find_disk(manifest, disk->name) != disk) {
            return false;
        }
    }
    return true;
}

static struct manifest *take_manifest(const json_t *object)
{
    const char *id = json_string_value(json_object_get(object, "id"));
    const char *set = json_string_value(json_object_get(object, "set"));
    const json_t *list = json_object_get(object, "disks");
    size_t count = json_array_size(list);
    uint64_t time_s, held_ns, version;

    if (g_strcmp0(json_string_value(json_object_get(object, "format")), FORMAT) ||
        !take_size(object, "version", VERSION, &version) || version != VERSION ||
        !names_id_is_valid(id) || !names_uuid_is_valid(set) || !count || count > DISKS_MAX ||
        !take_size(object, "time", INT64_MAX, &time_s) ||
        !take_size(object, "held-ns", INT64_MAX, &held_ns)) {
        return NULL;
    }
    AUTO(manifest) manifest = manifest_new(id, set, count);
    manifest->time_s = (int64_t)time_s;
    manifest->held_ns = (int64_t)held_ns;
    return take_disks(list, manifest) ? STEAL(manifest) : NULL;
}

struct manifest *manifest_read(const char *path, const char *id, GError **error)
{
    json_t *object = sealed_read(path, error);
    AUTO(manifest) manifest = object ? take_manifest(object) : NULL;

    if (!object) {
        return NULL;
    }
    json_decref(object);
    if (!manifest || strcmp(manifest->id, id)) {
        block_error(error, EBADMSG, "'%s' is not a manifest of the backup %s that can be used here",
                    path, id);
        return NULL;
    }
    return STEAL(manifest);
}

/* ---- Writing -------------------------------------------------------------------------------- */

static json_t *disk_object(const struct manifest_disk *disk)
{
    char digest[DIGEST_TEXT_BYTES];

    digest_to_text(&disk->sums.digest, digest);
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:I, s:I, s:s*, s:s*, s:s*}", "name", disk->name,
        "format", disk->is_raw ? "raw" : "qcow2", "mode", disk->parent ? "incremental" : "full",
        "length", (json_int_t)disk->length, "image-bytes", (json_int_t)disk->image_bytes,
        "checksum-bytes", (json_int_t)disk->sums.bytes, "checksum-digest", digest, "data-bytes",
        (json_int_t)disk->data_bytes, "zero-bytes", (json_int_t)disk->zero_bytes, "parent",
        disk->parent, "reason", disk->reason, "checkpoint", disk->checkpoint);
}

int manifest_write(const struct manifest *manifest, const char *path, GError **error)
{
    json_t *disks = json_array();

    for (size_t i = 0; i < manifest->disk_count; i++) {
        json_array_append_new(disks, disk_object(&manifest->disks[i]));
    }
    json_t *object =
        json_pack("{s:s, s:i, s:s, s:s, s:I, s:I, s:o}", "format", FORMAT, "version", VERSION, "id",
                  manifest->id, "set", manifest->set, "time", (json_int_t)manifest->time_s,
                  "held-ns", (json_int_t)manifest->held_ns, "disks", disks);
    int status = sealed_write(object, path, error);
    json_decref(object);
    return status;
}
