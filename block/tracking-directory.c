/* SPDX-License-Identifier: BSD-3-Clause */
/* What a tracking file knows beside the map: checkpoints, bitmaps, and facts about itself. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/error.h"
#include "block/tracking-state.h"

/* ---- Checkpoints ----------------------------------------------------------------------------- */

static int check_name(const char *name, GError **error)
{
    if (!*name) {
        return block_error(error, EINVAL, "Checkpoint name cannot be empty");
    }
    if (strlen(name) > TRACKING_NAME_MAX) {
        return block_error(error, EINVAL, "Checkpoint name too long: %s", name);
    }
    return 0;
}

/* Lock held. After an error of the file's. */
static void lose_given_up(struct change_tracker *tracker)
{
    if (tracker->file->is_given_up) {
        tracking_lose(tracker, TRACKING_LOST_STORAGE,
                      "it did not answer in time, so nobody knows what the file holds");
    }
}

/* Lock held. Takes the directory. */
static int store(struct change_tracker *tracker, struct tracking_directory *directory,
                 GError **error)
{
    int status = tracking_file_store_directory(tracker->file, directory, error);

    if (status < 0) {
        tracking_directory_free(directory);
        lose_given_up(tracker);
    }
    return status;
}

/* Lock held. Epochs that come near their end are numbered anew, when that was prepared or must be.
 */
static int leave_epochs(struct change_tracker *tracker, GError **error)
{
    struct tracking_file *file = tracker->file;

    if (tracking_file_needs_rebuild(file) && (tracker->prepared || !tracking_file_can_cut(file)) &&
        tracking_rebuild_now(tracker, file->map.length, error) < 0) {
        lose_given_up(tracker);
        return -EIO;
    }
    return 0;
}

/* Lock held. */
static int leave_room(struct change_tracker *tracker, GError **error)
{
    if (tracker->file->directory->checkpoints->len >= TRACKING_CHECKPOINTS_MAX) {
        return block_error(error, ENOSPC,
                           "Disk '%s' has %d checkpoints, and cannot have more: remove some",
                           tracker->device, TRACKING_CHECKPOINTS_MAX);
    }
    return leave_epochs(tracker, error);
}

static struct tracking_checkpoint *new_checkpoint(const char *name, bool is_pending,
                                                  const struct change_map *map)
{
    struct tracking_checkpoint *checkpoint = g_new0(struct tracking_checkpoint, 1);

    checkpoint->name = g_strdup(name);
    checkpoint->is_pending = is_pending;
    tracking_uuid_generate(checkpoint->uuid);
    checkpoint->epoch = atomic_load(&map->epoch);
    checkpoint->length = map->length;
    checkpoint->time_ns = g_get_real_time() * 1000;
    return checkpoint;
}

/*
 * Lock held. An epoch that was begun for a checkpoint that cannot be stored does no harm. uuid: of
 * a pending one, to be filled in; NULL: it stays.
 */
static int add_locked(struct change_tracker *tracker, const char *name, uint8_t *uuid,
                      GError **error)
{
    struct tracking_directory *directory;
    struct tracking_checkpoint *checkpoint;
    int status = leave_room(tracker, error);

    if (status < 0) {
        return status;
    }
    directory = tracking_directory_copy(tracker->file->directory);
    checkpoint = new_checkpoint(name, uuid != NULL, &tracker->file->map);
    if (uuid) {
        memcpy(uuid, checkpoint->uuid, TRACKING_UUID_BYTES);
    }
    g_ptr_array_add(directory->checkpoints, checkpoint);
    change_map_cut(&tracker->file->map);
    return store(tracker, directory, error);
}

static int add(struct change_tracker *tracker, struct block_node *root, const char *name,
               uint8_t *uuid, GError **error)
{
    SCOPE_LOCK(&tracker->lock);

    if (tracking_check(tracker, error) < 0 || check_name(name, error) < 0) {
        return -EINVAL;
    }
    if (tracking_directory_find(tracker->file->directory, name)) {
        return block_error(error, EEXIST, "Checkpoint already exists: %s", name);
    }
    int status = block_node_flush(root);
    if (status < 0) {
        return block_error_errno(error, -status, "Disk '%s' cannot be flushed", tracker->device);
    }
    tracking_follow(tracker, root);
    return add_locked(tracker, name, uuid, error);
}

int tracking_checkpoint_add(struct change_tracker *tracker, struct block_node *root,
                            const char *name, GError **error)
{
    return add(tracker, root, name, NULL, error);
}

int tracking_checkpoint_begin(struct change_tracker *tracker, struct block_node *root,
                              const char *name, uint8_t *uuid, GError **error)
{
    return add(tracker, root, name, uuid, error);
}

void tracking_disk_moved(struct change_tracker *tracker, struct block_node *root)
{
    g_autoptr(GError) error = NULL;
    SCOPE_LOCK(&tracker->lock);

    /* What is noted as older must be there after a power loss, if the file says that it is there.
     */
    if (tracking_check(tracker, NULL) < 0 || block_node_flush(root) < 0) {
        return;
    }
    if (tracking_follow(tracker, root) &&
        store(tracker, tracking_directory_copy(tracker->file->directory), &error) < 0) {
        g_warning("The tracking file of disk '%s' does not know yet where the disk is now: %s",
                  tracker->device, error->message);
    }
}

/* Lock held. advice: as with tracking_check_advising. */
static struct tracking_checkpoint *find(struct change_tracker *tracker, const char *name,
                                        const char *advice, GError **error)
{
    struct tracking_checkpoint *checkpoint = NULL;

    if (tracking_check_advising(tracker, advice, error) == 0) {
        enum tracking_loss loss = tracker->file->header.previous_loss;

        checkpoint = tracking_directory_find(tracker->file->directory, name);
        if (!checkpoint && loss) {
            /* It may have been in the map that is lost. */
            block_error(error, ENOENT, "Checkpoint '%s' of disk '%s' not found%s: %s", name,
                        tracker->device, advice, tracking_loss_text(loss));
        } else if (!checkpoint) {
            block_error(error, ENOENT, "Checkpoint '%s' of disk '%s' not found", name,
                        tracker->device);
        }
    }
    return checkpoint;
}

static bool has_uuid(const struct tracking_checkpoint *checkpoint, const uint8_t *uuid)
{
    return !memcmp(checkpoint->uuid, uuid, TRACKING_UUID_BYTES);
}

/* Lock held. Is it there, and not another one of that name? is_pending may be NULL. */
static int find_same(struct change_tracker *tracker, const char *name, const uint8_t *uuid,
                     bool *is_pending, GError **error)
{
    const struct tracking_checkpoint *checkpoint = find(tracker, name, "", error);

    if (!checkpoint) {
        return -ENOENT;
    }
    if (!has_uuid(checkpoint, uuid)) {
        return block_error(error, ESTALE,
                           "Checkpoint '%s' of disk '%s' is another one, which took its place",
                           name, tracker->device);
    }
    if (is_pending) {
        *is_pending = checkpoint->is_pending;
    }
    return 0;
}

int tracking_checkpoint_commit(struct change_tracker *tracker, const char *name,
                               const uint8_t *uuid, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    bool is_pending;
    int status = find_same(tracker, name, uuid, &is_pending, error);

    if (status < 0 || !is_pending) {
        return status;
    }
    struct tracking_directory *directory = tracking_directory_copy(tracker->file->directory);
    tracking_directory_find(directory, name)->is_pending = false;
    return store(tracker, directory, error);
}

int tracking_checkpoint_note(struct change_tracker *tracker, const char *name, const uint8_t *uuid,
                             GBytes *note, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    int status = find_same(tracker, name, uuid, NULL, error);

    if (status < 0) {
        return status;
    }
    g_assert(g_bytes_get_size(note) <= TRACKING_NOTE_MAX);
    struct tracking_directory *directory = tracking_directory_copy(tracker->file->directory);
    struct tracking_checkpoint *checkpoint = tracking_directory_find(directory, name);
    g_clear_pointer(&checkpoint->note, g_bytes_unref);
    checkpoint->note = g_bytes_ref(note);
    return store(tracker, directory, error);
}

GBytes *tracking_checkpoint_get_note(struct change_tracker *tracker, const char *name,
                                     uint8_t *uuid, uint64_t *length, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    const struct tracking_checkpoint *checkpoint = find(tracker, name, "", error);

    if (!checkpoint) {
        return NULL;
    }
    if (checkpoint->is_broken || !checkpoint->note) {
        enum tracking_loss loss = tracker->file->header.previous_loss;

        block_error(error, ENOENT, "What checkpoint '%s' of disk '%s' said is lost%s%s", name,
                    tracker->device, loss ? ": " : "", loss ? tracking_loss_text(loss) : "");
        return NULL;
    }
    memcpy(uuid, checkpoint->uuid, TRACKING_UUID_BYTES);
    *length = checkpoint->length;
    return g_bytes_ref(checkpoint->note);
}

int tracking_checkpoint_replace(struct change_tracker *tracker, const char *name,
                                const uint8_t *uuid, const char *with, const uint8_t *with_uuid,
                                GBytes *note, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    int status = find_same(tracker, name, uuid, NULL, error);

    if (status == 0) {
        status = find_same(tracker, with, with_uuid, NULL, error);
    }
    if (status < 0) {
        return status;
    }
    g_assert(g_bytes_get_size(note) <= TRACKING_NOTE_MAX);
    struct tracking_directory *directory = tracking_directory_copy(tracker->file->directory);
    g_ptr_array_remove(directory->checkpoints, tracking_directory_find(directory, name));
    struct tracking_checkpoint *next = tracking_directory_find(directory, with);
    g_free(next->name);
    next->name = g_strdup(name);
    next->is_pending = false;
    g_clear_pointer(&next->note, g_bytes_unref);
    next->note = g_bytes_ref(note);
    return store(tracker, directory, error);
}

static bool has_any(const struct tracking_directory *directory)
{
    for (guint i = 0; i < directory->checkpoints->len; i++) {
        const struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);

        if (!checkpoint->is_pending) {
            return true;
        }
    }
    return false;
}

enum tracking_parent tracking_judge_parent(struct change_tracker *tracker, const char *name,
                                           enum tracking_loss *loss)
{
    SCOPE_LOCK(&tracker->lock);
    const struct tracking_checkpoint *checkpoint = NULL;

    pthread_mutex_lock(&tracker->loss_lock);
    *loss = tracker->loss;
    bool is_lost = atomic_load(&tracker->is_lost);
    pthread_mutex_unlock(&tracker->loss_lock);
    if (is_lost || !tracking_is_whole(tracker)) {
        return TRACKING_PARENT_LOST;
    }
    *loss = tracker->file->header.previous_loss;
    checkpoint = tracking_directory_find(tracker->file->directory, name);
    if (!checkpoint || checkpoint->is_pending) {
        return has_any(tracker->file->directory) ? TRACKING_PARENT_UNKNOWN
                                                 : TRACKING_PARENT_NONE_AT_ALL;
    }
    return checkpoint->is_broken ? TRACKING_PARENT_LOST : TRACKING_PARENT_USABLE;
}

/* Lock held. It is there. */
static int forget(struct change_tracker *tracker, const char *name, GError **error)
{
    struct tracking_directory *directory = tracking_directory_copy(tracker->file->directory);

    g_ptr_array_remove(directory->checkpoints, tracking_directory_find(directory, name));
    return store(tracker, directory, error);
}

/* Lock held. Also of a map that is lost, which goes on listing them. */
static struct tracking_checkpoint *look_up(struct change_tracker *tracker, const char *name)
{
    return tracker->file ? tracking_directory_find(tracker->file->directory, name) : NULL;
}

int tracking_checkpoint_remove(struct change_tracker *tracker, const char *name, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    const struct tracking_checkpoint *checkpoint = look_up(tracker, name);

    if (!checkpoint && atomic_load(&tracker->is_lost)) {
        return block_error(error, ENOENT, "Checkpoint '%s' of disk '%s' not found", name,
                           tracker->device);
    }
    if (!find(tracker, name, "", error)) {
        return checkpoint ? -EIO : -ENOENT;
    }
    if (checkpoint->is_pending) {
        return block_error(
            error, EBUSY,
            "Checkpoint '%s' of disk '%s' is that of an open session, which is to be "
            "committed or abandoned",
            name, tracker->device);
    }
    return forget(tracker, name, error);
}

int tracking_checkpoint_drop(struct change_tracker *tracker, const char *name, const uint8_t *uuid,
                             GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    struct tracking_checkpoint *checkpoint = look_up(tracker, name);

    if (!checkpoint || !checkpoint->is_pending || (uuid && !has_uuid(checkpoint, uuid))) {
        return 0;
    }
    if (atomic_load(&tracker->is_lost)) {
        /* Nobody reads the file's any more but for names to break, and then not those. */
        g_ptr_array_remove(tracker->file->directory->checkpoints, checkpoint);
        return 0;
    }
    return forget(tracker, name, error);
}

/* Only what is zero as a whole: a bitmap of a long disk may be coarser than the map. */
static void set_zeroes(struct dirty_bitmap *zeroes, uint64_t start, uint64_t bytes)
{
    uint64_t granularity = dirty_bitmap_granularity(zeroes);
    uint64_t end = start + bytes;

    start = align_up(start, granularity);
    end = end == dirty_bitmap_length(zeroes) ? end : align_down(end, granularity);
    if (start < end) {
        dirty_bitmap_set(zeroes, start, end - start);
    }
}

/* zeroes may be NULL. */
static void set_changes(const struct change_map *map, uint16_t since, uint16_t until,
                        struct dirty_bitmap *bitmap, struct dirty_bitmap *zeroes)
{
    uint64_t offset = 0, start, bytes;
    enum change_state state;

    while (change_map_next_until(map, since, until, offset, map->length, &start, &bytes, &state)) {
        dirty_bitmap_set(bitmap, start, bytes);
        if (zeroes && state == CHANGE_ZERO) {
            set_zeroes(zeroes, start, bytes);
        }
        offset = start + bytes;
    }
}

/* Lock held. Nothing is set in it yet. */
static struct dirty_bitmap *new_bitmap(const struct change_tracker *tracker, GError **error)
{
    const struct change_map *map = &tracker->file->map;

    return dirty_bitmap_new(NULL, map->length, UINT64_C(1) << map->shift, error);
}

/* until: the name of a later checkpoint, or NULL: as it is now. zeroes may be NULL. */
static struct dirty_bitmap *find_changes(struct change_tracker *tracker, const char *name,
                                         const char *until, struct dirty_bitmap **zeroes,
                                         GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    const char *advice = ", take a full backup";
    struct tracking_checkpoint *checkpoint = find(tracker, name, advice, error);
    struct tracking_checkpoint *end =
        checkpoint && until ? find(tracker, until, advice, error) : NULL;

    if (checkpoint && until && !end) {
        return NULL;
    }
    if (checkpoint && checkpoint->is_pending) {
        block_error(error, EBUSY,
                    "Checkpoint '%s' of disk '%s' belongs to a session that has not been committed",
                    name, tracker->device);
        return NULL;
    }

    if (checkpoint && checkpoint->is_broken) {
        block_error(error, EIO, "Checkpoint '%s' of disk '%s' is broken%s: %s", name,
                    tracker->device, advice,
                    tracking_loss_text(tracker->file->header.previous_loss));
        return NULL;
    }
    AUTO(dirty_bitmap) bitmap = checkpoint ? new_bitmap(tracker, error) : NULL;
    AUTO(dirty_bitmap) zero = bitmap && zeroes ? new_bitmap(tracker, error) : NULL;
    if (!bitmap || (zeroes && !zero)) {
        return NULL;
    }
    set_changes(&tracker->file->map, (uint16_t)checkpoint->epoch,
                end ? (uint16_t)end->epoch : CHANGE_MAP_EPOCH_MAX, bitmap, zero);
    /* What is gone reads as unchanged. */
    if (!tracking_is_whole(tracker)) {
        tracking_check_advising(tracker, advice, error);
        return NULL;
    }
    if (zeroes) {
        *zeroes = STEAL(zero);
    }
    return STEAL(bitmap);
}

struct dirty_bitmap *tracking_changes_since(struct change_tracker *tracker, const char *name,
                                            GError **error)
{
    return find_changes(tracker, name, NULL, NULL, error);
}

struct dirty_bitmap *tracking_changes_with_zeroes(struct change_tracker *tracker, const char *name,
                                                  struct dirty_bitmap **zeroes, GError **error)
{
    return find_changes(tracker, name, NULL, zeroes, error);
}

struct dirty_bitmap *tracking_changes_until(struct change_tracker *tracker, const char *name,
                                            const char *until, struct dirty_bitmap **zeroes,
                                            GError **error)
{
    return find_changes(tracker, name, until, zeroes, error);
}

/* ---- Bitmaps --------------------------------------------------------------------------------- */

struct tracking_directory *tracking_get_directory(struct change_tracker *tracker)
{
    SCOPE_LOCK(&tracker->lock);

    return tracking_check(tracker, NULL) == 0 ? tracking_directory_copy(tracker->file->directory)
                                              : NULL;
}

int tracking_add_changes(struct change_tracker *tracker, uint32_t epoch,
                         struct dirty_bitmap *bitmap, GError **error)
{
    SCOPE_LOCK(&tracker->lock);

    if (tracking_check(tracker, error) < 0) {
        return -EIO;
    }
    set_changes(&tracker->file->map, (uint16_t)epoch, CHANGE_MAP_EPOCH_MAX, bitmap, NULL);
    return tracking_is_whole(tracker) ? 0 : tracking_check(tracker, error);
}

static bool drop_bitmap(struct tracking_directory *directory, const char *name)
{
    struct tracking_bitmap *old = tracking_directory_find_bitmap(directory, name);

    return old && g_ptr_array_remove(directory->bitmaps, old);
}

/* An image may have any bytes as a name. */
static int check_names(const GPtrArray *bitmaps, GError **error)
{
    for (guint i = 0; i < bitmaps->len; i++) {
        const struct tracking_bitmap *bitmap = g_ptr_array_index(bitmaps, i);

        if (!tracking_name_is_valid(bitmap->name, strlen(bitmap->name))) {
            g_autofree char *shown = g_strescape(bitmap->name, NULL);

            return block_error(error, EINVAL,
                               "The name of bitmap '%s' is not text (UTF-8), as names in tracking "
                               "files are",
                               shown);
        }
    }
    return 0;
}

int tracking_keep_bitmaps(struct change_tracker *tracker, struct block_node *node,
                          GPtrArray *bitmaps, GError **error)
{
    SCOPE_LOCK(&tracker->lock);
    struct tracking_directory *directory;

    if (tracking_check(tracker, error) < 0) {
        return -EIO;
    }
    if (tracker->is_left_open) {
        /* The epoch's zeroes may be lost: it must be the one that is doubted then. */
        return block_error(error, EIO, "Disk '%s' could not be flushed", tracker->device);
    }
    if (!tracking_is_at(tracker, node)) {
        return block_error(error, EIO,
                           "The tracking file of disk '%s' does not know yet where the disk is now",
                           tracker->device);
    }
    if (leave_epochs(tracker, error) < 0) {
        return -EIO;
    }
    if (check_names(bitmaps, error) < 0) {
        return -EINVAL;
    }
    directory = tracking_directory_copy(tracker->file->directory);
    uint16_t epoch = change_map_cut(&tracker->file->map);
    g_ptr_array_set_free_func(bitmaps, NULL);
    for (guint i = 0; i < bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(bitmaps, i);

        drop_bitmap(directory, bitmap->name);
        bitmap->epoch = epoch;
        g_ptr_array_add(directory->bitmaps, bitmap);
    }
    return store(tracker, directory, error);
}

int tracking_forget_bitmap(struct change_tracker *tracker, const char *name, GError **error)
{
    SCOPE_LOCK(&tracker->lock);

    if (tracking_check(tracker, NULL) < 0 ||
        !tracking_directory_find_bitmap(tracker->file->directory, name)) {
        return 0;
    }
    struct tracking_directory *directory = tracking_directory_copy(tracker->file->directory);
    drop_bitmap(directory, name);
    return store(tracker, directory, error);
}

void tracking_drop_other_bitmaps(struct change_tracker *tracker, const char *const *names)
{
    AUTO(tracking_directory) directory = tracking_get_directory(tracker);

    for (guint i = 0; directory && i < directory->bitmaps->len; i++) {
        const struct tracking_bitmap *bitmap = g_ptr_array_index(directory->bitmaps, i);

        if (!g_strv_contains(names, bitmap->name)) {
            tracking_forget_bitmap(tracker, bitmap->name, NULL);
        }
    }
}

/* ---- What there is to know ------------------------------------------------------------------- */

static uint64_t count_memory(const struct tracking_file *file)
{
    uint64_t extents = div_round_up(file->map.length, UINT64_C(1) << file->extent_shift);

    return file->header.map_bytes + div_round_up(file->map.granules, 4096) * sizeof(uint16_t) +
           extents * sizeof(uint32_t) + file->header.extents * sizeof(struct extent_slot);
}

static void get_file_info(const struct tracking_file *file, struct tracking_info *info)
{
    g_autofree char *uuid = tracking_uuid_text(file->header.uuid);

    info->previous_loss = file->header.previous_loss;
    info->recovered_bytes = tracking_recovered_bytes(&file->header, file->directory);
    info->is_conservative = info->recovered_bytes > 0;
    info->granule = UINT64_C(1) << file->header.granule_shift;
    info->extent = UINT64_C(1) << file->extent_shift;
    info->extents = file->header.extents;
    info->memory_bytes = count_memory(file);
    info->activations = atomic_load(&file->log.activations);
    info->log_writes = atomic_load(&file->log.writes);
    info->map_syncs = atomic_load(&file->log.syncs);
    info->epoch = atomic_load(&file->map.epoch);
    g_strlcpy(info->uuid, uuid, sizeof(info->uuid));
}

void tracking_get_info(struct change_tracker *tracker, struct tracking_info *info)
{
    SCOPE_LOCK(&tracker->lock);

    pthread_mutex_lock(&tracker->loss_lock);
    *info = (struct tracking_info){
        .path = tracker->path,
        .is_lost = atomic_load(&tracker->is_lost),
        .loss = tracker->loss,
        .reason = g_strdup(tracker->reason),
    };
    pthread_mutex_unlock(&tracker->loss_lock);
    if (tracker->file) {
        get_file_info(tracker->file, info);
    }
}

void tracking_info_clear(struct tracking_info *info)
{
    g_free(info->reason);
    info->reason = NULL;
}

static void clear_checkpoint_info(void *data)
{
    struct tracking_checkpoint_info *info = data;

    g_free(info->name);
}

GArray *tracking_list_checkpoints(struct change_tracker *tracker)
{
    GArray *list = g_array_new(FALSE, TRUE, sizeof(struct tracking_checkpoint_info));
    SCOPE_LOCK(&tracker->lock);

    g_array_set_clear_func(list, clear_checkpoint_info);
    for (guint i = 0; tracker->file && i < tracker->file->directory->checkpoints->len; i++) {
        const struct tracking_checkpoint *checkpoint =
            g_ptr_array_index(tracker->file->directory->checkpoints, i);
        g_autofree char *uuid = tracking_uuid_text(checkpoint->uuid);
        struct tracking_checkpoint_info info = {
            .name = g_strdup(checkpoint->name),
            .time_ns = checkpoint->time_ns,
            .is_pending = checkpoint->is_pending,
            .is_broken = checkpoint->is_broken || atomic_load(&tracker->is_lost),
        };

        g_strlcpy(info.uuid, uuid, sizeof(info.uuid));
        if (!info.is_broken) {
            change_map_count(&tracker->file->map, (uint16_t)checkpoint->epoch, &info.changed_bytes,
                             &info.zero_bytes);
            info.is_broken = !tracking_is_whole(tracker);
        }
        g_array_append_val(list, info);
    }
    return list;
}
