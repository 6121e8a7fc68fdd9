/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/tracking-io.h"
#include "block/tracking-rebuild.h"
#include "block/tracking-state.h"
#include "block/tracking-witness.h"

/* ---- Requests -------------------------------------------------------------------------------- */

/* What was marked in the range is to outlive a power loss before the disk is changed there. */
static void secure(struct change_tracker *tracker, uint64_t offset, uint64_t bytes)
{
    struct tracking_file *file = tracker->file;
    uint64_t first = offset >> file->extent_shift;
    uint64_t last = (offset + bytes - 1) >> file->extent_shift;

    for (uint64_t extent = first; extent <= last; extent++) {
        if (G_UNLIKELY(!extent_log_is_active(&file->log, extent))) {
            int status = extent_log_secure(&file->log, extent, last, tracking_io.timeout_ns);

            if (status < 0) {
                tracking_lose(tracker, TRACKING_LOST_STORAGE,
                              status == -ETIMEDOUT ? "it does not answer"
                                                   : block_strerror(-status));
            }
            return;
        }
    }
}

/* What was marked must not have gone where nobody finds it again. */
bool tracking_is_whole(struct change_tracker *tracker)
{
    if (G_UNLIKELY(guarded_mapping_is_broken(tracker->file->mapping))) {
        tracking_lose(tracker, TRACKING_LOST_STORAGE, "a part of its map is gone");
        return false;
    }
    return true;
}

static bool is_usable(struct change_tracker *tracker, uint64_t offset, uint64_t bytes)
{
    if (atomic_load_explicit(&tracker->is_lost, memory_order_relaxed) || !bytes) {
        return false;
    }
    if (G_UNLIKELY(!range_within(offset, bytes, tracker->file->map.length))) {
        tracking_lose(tracker, TRACKING_LOST_RESIZED, "its guest uses what lies behind that");
        return false;
    }
    return tracking_is_whole(tracker);
}

static uint64_t granule_bytes(const struct change_tracker *tracker)
{
    return UINT64_C(1) << tracker->file->map.shift;
}

/* One part of a range that is zeroed, as the disk has it now: whole granules of the range. */
struct zero_part {
    uint64_t offset, bytes;
    bool is_zero;
};

/* Storage that cannot say what it holds holds data. */
static struct zero_part next_part(struct block_node *root, uint64_t offset, uint64_t end)
{
    struct block_extent extent;

    if (block_node_block_status_chain(root, offset, end - offset, &extent, NULL) < 0) {
        return (struct zero_part){offset, end - offset, false};
    }
    return (struct zero_part){offset, extent.bytes, (extent.flags & BLOCK_STATUS_ZERO) != 0};
}

/*
 * What reads as zeroes already is not changed by zeroing it; of what does not, the granules that
 * hold it are marked. Returns false if there was nothing to mark. Of a discard only the storage
 * knows: it may leave anything where it cannot say that it holds zeroes.
 */
static bool begin_zero(struct change_tracker *tracker, struct block_node *root,
                       enum block_operation operation, uint64_t offset, uint64_t bytes)
{
    struct change_map *map = &tracker->file->map;
    bool keeps_zeroes = operation == BLOCK_OPERATION_WRITE_ZEROES;
    uint64_t end = offset + bytes;
    bool marked = false;

    if (keeps_zeroes && change_map_is_zero(map, offset, bytes)) {
        return false;
    }
    for (uint64_t at = offset; at < end;) {
        struct zero_part part = next_part(root, at, end);

        if (!part.is_zero) {
            uint64_t start = MAX_OF(offset, align_down(at, granule_bytes(tracker)));
            uint64_t stop = MIN_OF(end, align_up(at + part.bytes, granule_bytes(tracker)));

            if (keeps_zeroes) {
                change_map_begin_zero(map, start, stop - start);
            } else {
                change_map_begin_discard(map, start, stop - start);
            }
            marked = true;
        }
        at += part.bytes;
    }
    return marked;
}

void tracking_begin(struct change_tracker *tracker, struct block_node *root,
                    enum block_operation operation, uint64_t offset, uint64_t bytes)
{
    if (is_usable(tracker, offset, bytes)) {
        bool marked = true;

        if (operation == BLOCK_OPERATION_WRITE) {
            change_map_begin_write(&tracker->file->map, offset, bytes);
        } else {
            marked = begin_zero(tracker, root, operation, offset, bytes);
        }
        if (tracking_is_whole(tracker) && marked) {
            secure(tracker, offset, bytes);
        }
    }
    if (G_UNLIKELY(atomic_load_explicit(&tracker->is_lost, memory_order_acquire) &&
                   !atomic_load(&tracker->is_settled))) {
        tracking_wait_until_settled(tracker);
    }
}

static void end_write(struct change_tracker *tracker, uint64_t offset, uint64_t bytes)
{
    if (G_UNLIKELY(change_map_end_write(&tracker->file->map, offset, bytes))) {
        secure(tracker, offset, bytes);
    }
}

/*
 * What a discard made of the range is up to the storage. A granule that is not zero from its start
 * to its end is data, and must say so: a request that ends later may hold ZEROING to be its own.
 */
static void end_discard(struct change_tracker *tracker, struct block_node *root, uint64_t offset,
                        uint64_t bytes)
{
    struct change_map *map = &tracker->file->map;
    uint64_t granule = granule_bytes(tracker), end = offset + bytes, at = offset;

    while (at < end) {
        struct zero_part part = next_part(root, at, end);

        if (part.is_zero) {
            change_map_end_zero(map, part.offset, part.bytes, true);
        } else {
            uint64_t start = MAX_OF(offset, align_down(at, granule));
            uint64_t stop = MIN_OF(end, align_up(at + part.bytes, granule));

            end_write(tracker, start, stop - start);
        }
        at += part.bytes;
    }
}

void tracking_end(struct change_tracker *tracker, struct block_node *root,
                  enum block_operation operation, uint64_t offset, uint64_t bytes, int status)
{
    if (!is_usable(tracker, offset, bytes)) {
        return;
    }
    if (operation == BLOCK_OPERATION_WRITE) {
        /* Stores only where a request that zeroes the same place came in between. */
        end_write(tracker, offset, bytes);
    } else if (status < 0 && status != -ENOTSUP) {
        /* Nobody knows what it left, even of zeroes. A refusal changed nothing. */
        end_write(tracker, offset, bytes);
    } else if (operation == BLOCK_OPERATION_DISCARD && status == 0) {
        end_discard(tracker, root, offset, bytes);
    } else {
        change_map_end_zero(&tracker->file->map, offset, bytes, status == 0);
    }
}

/* ---- A disk that moves ----------------------------------------------------------------------- */

static char *name_below(struct block_node *root)
{
    while (root->file) {
        root = root->file;
    }
    return block_node_get_filename(root);
}

bool tracking_is_at(const struct change_tracker *tracker, struct block_node *node)
{
    g_autofree char *name = name_below(node);

    return !g_strcmp0(name, tracker->below);
}

bool tracking_follow(struct change_tracker *tracker, struct block_node *root)
{
    struct tracking_header *header = &tracker->file->header;
    g_autofree char *name = name_below(root);

    if (!g_strcmp0(name, tracker->below)) {
        return false;
    }
    tracking_identify(name, &header->disk);
    tracker->has_moved_away = !header->disk.inode && !*header->disk.name;
    if (tracker->has_moved_away) {
        header->disk.inode = TRACKING_INODE_NONE;
    }
    g_strlcpy(header->path, name ? name : "", sizeof(header->path));
    tracking_note_disk_path(tracker, name);
    g_free(tracker->below);
    tracker->below = STEAL(name);
    tracking_file_drop_bitmaps(tracker->file);
    return true;
}

/* ---- Life ------------------------------------------------------------------------------------ */

static int read_root(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    return block_node_pread(data, buffer, offset, bytes, 0);
}

/* Names that a new map does not know: they are kept, so that their users learn why. */
static struct tracking_directory *read_broken(const char *path)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct tracking_directory *broken = fd >= 0 ? tracking_contents_salvage(fd) : NULL;

    if (broken) {
        tracking_directory_break(broken);
    } else {
        g_warning("The names of the checkpoints and bitmaps of a tracking file that is lost cannot "
                  "be read; whatever it had is not found any more (%s)",
                  path);
        broken = tracking_directory_new();
    }
    return broken;
}

/* Which map it was that is lost; zeroes if that cannot be read. */
static void read_uuid(const char *path, uint8_t *uuid)
{
    struct tracking_contents contents = {0};
    enum tracking_loss loss;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        tracking_contents_read(fd, &contents, &loss, NULL);
    }
    memcpy(uuid, contents.header.uuid, TRACKING_UUID_BYTES);
    tracking_contents_clear(&contents);
}

/* A new map, in the place of one that is lost or where there was none. */
static void create(struct change_tracker *tracker, const struct tracking_options *options,
                   uint64_t length, enum tracking_loss previous_loss)
{
    struct tracking_geometry geometry = options->geometry;
    uint8_t uuid[TRACKING_UUID_BYTES];
    struct tracking_directory *broken = previous_loss ? read_broken(options->path) : NULL;
    GError *error = NULL;

    read_uuid(options->path, uuid);
    if (tracking_geometry_check(&geometry, &error) == 0) {
        tracker->file = tracking_file_create(options->path, length, &geometry, options->disk_path,
                                             &options->identity, &error);
    }
    if (tracker->file && broken) {
        tracker->file->header.previous_loss = previous_loss;
        if (tracking_file_store_directory(tracker->file, broken, &error) == 0) {
            broken = NULL;
        } else {
            tracking_file_unref(STEAL(tracker->file));
        }
    }
    tracking_directory_free(broken);
    if (tracker->file) {
        tracking_witness_remove(options->disk_path, uuid);
    } else {
        if (tracking_file_condemn(options->path, TRACKING_LOST_MODIFIED) < 0) {
            tracking_io.put_witness(options->disk_path, uuid);
        }
        tracking_lose(tracker, TRACKING_LOST_STORAGE, error->message);
        g_error_free(error);
    }
}

/* Whether a file may be overwritten: what is in it is of no use to anybody. */
static bool is_ours(enum tracking_loss loss)
{
    return loss != TRACKING_LOST_FOREIGN && loss != TRACKING_LOST_OTHER_DISK &&
           loss != TRACKING_LOST_IN_USE;
}

static struct tracking_disk describe_disk(const struct tracking_options *options,
                                          struct block_node *root)
{
    return (struct tracking_disk){
        .length = block_node_length(root),
        .path = options->disk_path,
        .identity = options->identity,
        .read = read_root,
        .data = root,
    };
}

static void open_or_create(struct change_tracker *tracker, const struct tracking_options *options,
                           struct block_node *root)
{
    struct tracking_disk disk = describe_disk(options, root);
    g_autoptr(GPtrArray) layers = tracking_layers_list(root);
    g_autoptr(GError) error = NULL;
    enum tracking_loss loss;

    tracking_layers_identify(layers);
    disk.layers = layers;
    tracker->file = tracking_file_open(options->path, &disk, &loss, &error);
    if (tracker->file) {
        return;
    }
    if (block_error_code(error) == -ENOENT) {
        create(tracker, options, disk.length, TRACKING_NOT_LOST);
    } else if (is_ours(loss)) {
        g_warning("The changes of disk '%s' so far are lost, the next backup has to be a full one: "
                  "%s (%s)",
                  options->device, error->message, options->path);
        create(tracker, options, disk.length, loss);
    } else {
        bool says_more = strcmp(error->message, tracking_loss_text(loss)) != 0;

        tracking_lose(tracker, loss, says_more ? error->message : NULL);
    }
}

/* What no path was given for may have a name; but a file's time and length are not looked at. */
static void identify(const struct change_tracker *tracker, struct tracking_identity *identity)
{
    tracking_identify(tracker->disk_path ? tracker->disk_path : tracker->below, identity);
    if (!tracker->disk_path && identity->inode) {
        *identity = (struct tracking_identity){0};
    }
}

struct change_tracker *tracking_start(const struct tracking_options *options,
                                      struct block_node *root)
{
    struct change_tracker *tracker = g_new0(struct change_tracker, 1);
    struct tracking_options complete = *options;

    tracker->device = g_strdup(options->device);
    tracker->path = g_strdup(options->path);
    tracker->disk_path = g_strdup(options->disk_path);
    tracker->below = name_below(root);
    pthread_mutex_init(&tracker->bitmaps_lock, NULL);
    pthread_mutex_init(&tracker->lock, NULL);
    pthread_mutex_init(&tracker->loss_lock, NULL);
    pthread_cond_init(&tracker->settled, NULL);
    if (!options->disk_path) {
        identify(tracker, &complete.identity);
    }
    open_or_create(tracker, &complete, root);
    return tracker;
}

/* Whether there is a file that this disk's changes concern; and whether a process that died left
 * it. */
static bool is_concerned(const struct tracking_options *options, bool *was_left)
{
    struct tracking_contents contents = {0};
    enum tracking_loss loss;
    AUTO_CLOSE int fd = open(options->path, O_RDONLY | O_CLOEXEC);
    bool is_readable = fd >= 0 && tracking_contents_read(fd, &contents, &loss, NULL) == 0;
    bool is_concerned = is_readable && !contents.marked_loss && options->identity.inode &&
                        contents.header.disk.inode == options->identity.inode;

    *was_left = is_concerned && (contents.is_doubtful || contents.header.flags & TRACKING_IN_USE);
    tracking_contents_clear(&contents);
    return is_concerned;
}

/* The disk is as it is found; who opens the file next sees by its time whether it was written. */
static void close_parted(struct tracking_file *file, const struct tracking_options *options,
                         struct block_node *root)
{
    g_autoptr(GPtrArray) layers = tracking_layers_list(root);
    g_autoptr(GError) error = NULL;

    tracking_layers_identify(layers);
    if (tracking_sync_path(options->disk_path, &error) < 0 ||
        tracking_layers_sync(layers, &error) < 0 ||
        tracking_layers_store(file, layers, &error) < 0) {
        tracking_file_unref(file);
    } else {
        tracking_file_close(file, &options->identity, &error);
    }
    if (error) {
        g_warning("Disk '%s': %s", options->device, error->message);
        tracking_file_condemn(options->path, TRACKING_LOST_MODIFIED);
    }
}

void tracking_part(const struct tracking_options *options, struct block_node *root)
{
    struct tracking_disk disk = describe_disk(options, root);
    struct tracking_file *file;
    enum tracking_loss loss;
    bool was_left;

    if (!is_concerned(options, &was_left)) {
        return;
    }
    g_warning("Disk '%s' is used without its tracking file: once it is written, the next backup "
              "has to be a full one (%s)",
              options->device, options->path);
    if (!was_left) {
        return;
    }
    file = tracking_file_open(options->path, &disk, &loss, NULL);
    if (file) {
        close_parted(file, options, root);
    } else if (is_ours(loss)) {
        tracking_file_condemn(options->path, loss);
    }
}

static void free_tracker(struct change_tracker *tracker)
{
    tracking_rebuild_free(tracker->prepared);
    pthread_mutex_destroy(&tracker->bitmaps_lock);
    pthread_mutex_destroy(&tracker->lock);
    pthread_mutex_destroy(&tracker->loss_lock);
    pthread_cond_destroy(&tracker->settled);
    g_free(tracker->reason);
    g_free(tracker->device);
    g_free(tracker->path);
    g_free(tracker->disk_path);
    g_free(tracker->disk_path_before);
    g_free(tracker->below);
    g_clear_pointer(&tracker->layers, g_ptr_array_unref);
    g_free(tracker);
}

void tracking_take_samples(struct change_tracker *tracker, struct block_node *root)
{
    struct tracking_disk disk = {.read = read_root, .data = root};

    if (atomic_load(&tracker->is_lost)) {
        return;
    }
    g_autoptr(GPtrArray) layers = tracking_layers_list(root);
    SCOPE_LOCK(&tracker->lock);
    g_clear_pointer(&tracker->layers, g_ptr_array_unref);
    tracker->layers = STEAL(layers);
    tracking_follow(tracker, root);
    if (block_node_length(root) == tracker->file->map.length) {
        tracking_file_take_samples(tracker->file, &disk);
    }
}

void tracking_release(struct change_tracker *tracker)
{
    tracking_end_marking(tracker);
    tracking_forget_prepared(tracker);
    SCOPE_LOCK(&tracker->lock);
    tracking_file_unref(STEAL(tracker->file));
}

void tracking_abandon(struct change_tracker *tracker)
{
    /* Threads that hang still need it. */
    bool is_free = tracking_end_marking(tracker);

    tracking_file_unref(STEAL(tracker->file));
    if (is_free) {
        free_tracker(tracker);
    }
}

void tracking_leave_open(struct change_tracker *tracker)
{
    tracker->is_left_open = true;
}

/*
 * What is said of files is of those on stable storage: a time that a power loss takes back would be
 * taken for a stranger's.
 */
static int record_files(struct change_tracker *tracker, struct tracking_identity *identity,
                        GError **error)
{
    int status = tracking_sync_path(tracker->disk_path, error);

    if (status == 0 && tracker->layers) {
        status = tracking_layers_sync(tracker->layers, error);
    }
    if (status < 0) {
        return status;
    }
    identify(tracker, identity);
    if (tracker->has_moved_away) {
        identity->inode = TRACKING_INODE_NONE;
    }
    if (identity->inode != tracker->file->header.disk.inode) {
        return block_error(error, EINVAL, "there is another file at '%s' now", tracker->disk_path);
    }
    if (tracker->layers) {
        tracking_layers_identify(tracker->layers);
        status = tracking_layers_store(tracker->file, tracker->layers, error);
    }
    return status;
}

void tracking_finish(struct change_tracker *tracker)
{
    g_autoptr(GError) error = NULL;
    struct tracking_identity identity;

    if (atomic_load(&tracker->is_lost) || tracker->is_left_open || !tracking_is_whole(tracker)) {
        tracking_abandon(tracker);
        return;
    }
    if (record_files(tracker, &identity, &error) < 0) {
        g_warning("The tracking file of disk '%s' is left as after a crash: %s", tracker->device,
                  error->message);
        tracking_abandon(tracker);
        return;
    }
    if (tracking_file_close(tracker->file, &identity, &error) < 0) {
        g_warning("Disk '%s': %s", tracker->device, error->message);
    }
    free_tracker(tracker);
}

int tracking_stop(struct change_tracker *tracker, GError **error)
{
    pthread_mutex_lock(&tracker->lock);
    /* A power loss may bring its name back. */
    tracking_end_quietly(tracker, TRACKING_LOST_MODIFIED, "tracking was switched off");
    bool has_file = tracker->file != NULL;
    pthread_mutex_unlock(&tracker->lock);
    tracking_wait_until_settled(tracker);
    /* Also one that is lost; but never what another disk or program put there. */
    if (has_file && unlink(tracker->path) < 0 && errno != ENOENT) {
        return block_error_errno(error, errno, "Could not remove tracking file '%s'",
                                 tracker->path);
    }
    return 0;
}

void tracking_contents_changed(struct change_tracker *tracker, const char *how)
{
    tracking_lose(tracker, TRACKING_LOST_MODIFIED, how);
}

/* ---- Other lengths --------------------------------------------------------------------------- */

void tracking_prepare(struct change_tracker *tracker, uint64_t length)
{
    g_autoptr(GError) error = NULL;
    struct tracking_rebuild *rebuild = NULL;

    pthread_mutex_lock(&tracker->lock);
    if (tracker->file && !atomic_load(&tracker->is_lost) &&
        (length != tracker->file->map.length || tracking_file_needs_rebuild(tracker->file))) {
        rebuild = tracking_rebuild_new(tracker->file, length, NULL);
    }
    pthread_mutex_unlock(&tracker->lock);
    /* Where that fails it is tried once more when it matters, and the error is of use then. */
    if (rebuild && tracking_rebuild_prepare(rebuild, &error) < 0) {
        g_clear_pointer(&rebuild, tracking_rebuild_free);
    }
    if (rebuild) {
        pthread_mutex_lock(&tracker->lock);
        bool is_wanted = tracker->file && !atomic_load(&tracker->is_lost);
        struct tracking_rebuild *spare = is_wanted ? tracker->prepared : rebuild;
        tracker->prepared = is_wanted ? rebuild : tracker->prepared;
        pthread_mutex_unlock(&tracker->lock);
        tracking_rebuild_free(spare);
    }
}

void tracking_prepare_checkpoint(struct change_tracker *tracker)
{
    pthread_mutex_lock(&tracker->lock);
    uint64_t length = tracker->file ? tracker->file->map.length : 0;
    pthread_mutex_unlock(&tracker->lock);
    tracking_prepare(tracker, length);
}

void tracking_forget_prepared(struct change_tracker *tracker)
{
    pthread_mutex_lock(&tracker->lock);
    struct tracking_rebuild *prepared = STEAL(tracker->prepared);
    pthread_mutex_unlock(&tracker->lock);
    tracking_rebuild_free(prepared);
}

/* Lock held. One for another length goes: its file would be in the way. */
static struct tracking_rebuild *take_prepared(struct change_tracker *tracker, uint64_t length)
{
    struct tracking_rebuild *prepared = STEAL(tracker->prepared);

    if (prepared && tracking_rebuild_length(prepared) != length) {
        tracking_rebuild_free(STEAL(prepared));
    }
    return prepared;
}

int tracking_rebuild_now(struct change_tracker *tracker, uint64_t length, GError **error)
{
    int64_t deadline = clock_now_ns() + (int64_t)tracking_io.timeout_ns;
    struct tracking_rebuild *rebuild = take_prepared(tracker, length);
    /* Others may say at any time that the map is lost, and mark the file that is the tracker's. */
    struct tracking_file *before = tracking_file_ref(tracker->file);
    struct tracking_file *rebuilt = NULL, *successor = NULL;

    if (!rebuild) {
        rebuild = tracking_rebuild_new(before, length, error);
    }
    if (rebuild) {
        rebuilt = tracking_rebuild_finish(rebuild, before, deadline, &successor, error);
    }
    if (rebuilt) {
        tracking_take_file(tracker, rebuilt);
    } else if (successor) {
        tracking_take_successor(tracker, successor);
    }
    tracking_file_unref(before);
    return rebuilt ? 0 : -EIO;
}

void tracking_resize(struct change_tracker *tracker, uint64_t length)
{
    g_autoptr(GError) error = NULL;
    SCOPE_LOCK(&tracker->lock);

    if (!atomic_load(&tracker->is_lost) && tracker->file->map.length != length &&
        tracking_rebuild_now(tracker, length, &error) < 0) {
        tracking_lose(tracker, TRACKING_LOST_STORAGE, error->message);
    }
}
