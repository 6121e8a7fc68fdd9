/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots of disks that are in use. The disk is drained, readers too, because the
 * image's tables change under them; the image is changed on the command's thread, which waits for
 * storage.
 */
#include "server/commands-snapshot.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/image-info.h"
#include "block/image.h"
#include "server/lookup.h"
#include "server/types.h"

static const struct qmp_member create_members[] = {
    {"device", &qmp_type_string, .doc = "The device, or a node."},
    {"name", &qmp_type_string, .doc = "The new snapshot's name."},
    {NULL},
};
static const struct qmp_type create_type = {
    .name = "BlockdevSnapshotInternal",
    .kind = QMP_KIND_OBJECT,
    .members = create_members,
};

static const struct qmp_member delete_members[] = {
    {"device", &qmp_type_string, .doc = "The device, or a node."},
    {"id", &qmp_type_string, .optional = true, .doc = "The snapshot's ID, and"},
    {"name", &qmp_type_string, .optional = true, .doc = "its name: one or both."},
    {NULL},
};
static const struct qmp_type delete_type = {
    .name = "BlockdevSnapshotDelete",
    .kind = QMP_KIND_OBJECT,
    .members = delete_members,
};

/* A disk whose snapshots are meant: who holds it, and where they are. References. */
struct snapshot_disk {
    const char *device; /* as the arguments name it */
    struct block_node *root;
    struct block_node *image; /* below filters */
};

static void disk_clear(struct snapshot_disk *disk)
{
    block_node_unref(disk->root);
    block_node_unref(disk->image);
}

static int find_disk(struct snapshot_disk *disk, json_t *arguments, GError **error)
{
    const char *device = json_string_value(json_object_get(arguments, "device"));

    disk->device = device;
    disk->root = lookup_device_or_node(device, error);
    if (!disk->root) {
        return -ENOENT;
    }
    disk->image = block_layer_of(disk->root);
    if (block_node_is_read_only(disk->image)) {
        return block_error(error, EACCES, "Device '%s' is read only", device);
    }
    if (!disk->image->driver->snapshot_create) {
        return block_error(error, ENOTSUP,
                           "Block format '%s' used by device '%s' does not support internal "
                           "snapshots",
                           disk->image->driver->name, device);
    }
    return 0;
}

/* The ID of the first that has this ID and this name (NULL: any), in *found, or NULL; info: all of
 * it, or NULL. The caller frees. */
static int find_snapshot(const struct snapshot_disk *disk, const char *id, const char *name,
                         char **found, json_t **info, GError **error)
{
    struct block_snapshot_info *list;
    size_t count;
    int status = block_node_snapshot_list(disk->image, &list, &count, error);

    *found = NULL;
    if (status < 0) {
        return status;
    }
    for (size_t i = 0; i < count && !*found; i++) {
        if ((!id || !strcmp(list[i].id, id)) && (!name || !strcmp(list[i].name, name))) {
            *found = g_strdup(list[i].id);
            if (info) {
                *info = block_snapshot_info_json(&list[i]);
            }
        }
    }
    block_snapshot_list_free(list, count);
    return 0;
}

/* ---- Taking one ------------------------------------------------------------------------------ */

struct create_action {
    struct snapshot_disk disk;
    const char *name;
    char *id; /* once it is taken */
};

static int already_exists(const struct create_action *state, GError **error)
{
    return block_error(error, EEXIST, "Snapshot with name '%s' already exists on device '%s'",
                       state->name, state->disk.device);
}

/* That the name is free, also for what earlier actions have taken. */
static int check_name(struct transaction_action *action, GError **error)
{
    struct create_action *state = transaction_state(action);
    g_autofree char *key =
        g_strdup_printf("snapshot %p %s", (void *)state->disk.image, state->name);
    g_autofree char *found = NULL;

    if (!*state->name) {
        return block_error(error, EINVAL, "Name is empty");
    }
    int status = find_snapshot(&state->disk, NULL, state->name, &found, NULL, error);
    if (status < 0) {
        return status;
    }
    if (transaction_is_planned(action, key, found)) {
        return already_exists(state, error);
    }
    transaction_plan(action, key, true);
    return 0;
}

static int prepare(struct transaction_action *action, json_t *data, GError **error)
{
    struct create_action *state = transaction_state(action);
    int status = find_disk(&state->disk, data, error);

    state->name = json_string_value(json_object_get(data, "name"));
    if (status == 0) {
        status = check_name(action, error);
    }
    if (status == 0) {
        transaction_drain(action, state->disk.image);
        transaction_drain_readers(action);
    }
    return status;
}

/* A snapshot sees the backing file, too; a stream would take that from it. Drained, so that none
 * begins before the snapshot is there to be seen. */
static int check_backing_stays(const struct snapshot_disk *disk, GError **error)
{
    g_autofree char *owner = g_strdup("an internal snapshot");
    struct block_claim claim = {
        .owner = owner, .perms = BLOCK_PERM_BACKING, .shared = BLOCK_PERM_ALL};
    int status = block_claim_acquire(&claim, disk->image, error);

    block_claim_release(&claim);
    return status;
}

static int change(struct transaction_action *action, GError **error)
{
    struct create_action *state = transaction_state(action);
    g_autofree char *found = NULL;
    int status = lookup_check_same(state->disk.device, state->disk.root, error);

    if (status == 0) {
        status = check_backing_stays(&state->disk, error);
    }
    if (status == 0) {
        status = find_snapshot(&state->disk, NULL, state->name, &found, NULL, error);
    }
    if (status == 0 && found) {
        status = already_exists(state, error);
    }
    if (status == 0) {
        status = block_node_snapshot_create_now(state->disk.image, state->name, error);
    }
    return status == 0 ? find_snapshot(&state->disk, NULL, state->name, &state->id, NULL, error)
                       : status;
}

static void revert(struct transaction_action *action)
{
    struct create_action *state = transaction_state(action);
    g_autoptr(GError) error = NULL;

    if (block_node_snapshot_delete(state->disk.image, state->id, &error) < 0) {
        g_warning("Device '%s': the snapshot '%s' of a transaction that failed could not be "
                  "deleted: %s",
                  state->disk.device, state->name, error->message);
    }
}

static void clean(struct transaction_action *action)
{
    struct create_action *state = transaction_state(action);

    disk_clear(&state->disk);
    g_free(state->id);
}

const struct transaction_action_type snapshot_create_action = {
    .name = "blockdev-snapshot-internal-sync",
    .data = &create_type,
    .state_size = sizeof(struct create_action),
    .prepare = prepare,
    .change = change,
    .revert = revert,
    .clean = clean,
    .doc = "See the command blockdev-snapshot-internal-sync.",
};

static json_t *snapshot_create(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&snapshot_create_action, arguments, error);
}

/* ---- Deleting one ---------------------------------------------------------------------------- */

static json_t *delete_drained(const struct snapshot_disk *disk, json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));
    const char *name = json_string_value(json_object_get(arguments, "name"));
    AUTO(block_drain) drain = block_drain_begin(&disk->image, 1, BLOCK_PERM_ALL);
    g_autofree char *found = NULL;
    json_t *info = NULL;
    int status = find_snapshot(disk, id, name, &found, &info, error);

    if (status == 0 && !found) {
        status = block_error(error, ENOENT,
                             "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
                             id ? id : "null", name ? name : "null", disk->device);
    }
    if (status == 0) {
        status = block_node_snapshot_delete(disk->image, found, error);
    }
    if (status < 0) {
        json_decref(info);
        return NULL;
    }
    return info;
}

static json_t *snapshot_delete(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct snapshot_disk disk = {0};
    json_t *gone = NULL;
    int status = find_disk(&disk, arguments, error);

    if (status == 0 && !json_object_get(arguments, "id") && !json_object_get(arguments, "name")) {
        status = block_error(error, EINVAL, "Name or id must be provided");
    }
    if (status == 0) {
        gone = delete_drained(&disk, arguments, error);
    }
    disk_clear(&disk);
    return gone;
}

const struct qmp_command snapshot_commands[] = {
    {"blockdev-snapshot-internal-sync", &create_type, NULL, snapshot_create, 0,
     "Take an internal snapshot of a disk. Its requests wait meanwhile."},
    {"blockdev-snapshot-delete-internal-sync", &delete_type, &snapshot_info_type, snapshot_delete,
     0,
     "Delete an internal snapshot of a disk, and tell what it was. The disk's requests wait "
     "meanwhile."},
    {NULL},
};
