/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-rebuild.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/timed-call.h"
#include "block/tracking-internal.h"
#include "block/tracking-io.h"

struct tracking_rebuild {
    struct tracking_file *old, *next; /* references; next: NULL before there is a file */
    struct tracking_header header;    /* of the next one */
    struct tracking_directory *directory;
    uint16_t *numbers; /* of the epochs: the new number of each old one */
    bool is_prepared;
    GError *error; /* of what ran last */
};

/* ---- Epochs ---------------------------------------------------------------------------------- */

bool tracking_file_needs_rebuild(const struct tracking_file *file)
{
    return atomic_load(&file->map.epoch) >= CHANGE_MAP_EPOCH_MAX - TRACKING_EPOCHS_LEFT;
}

bool tracking_file_can_cut(const struct tracking_file *file)
{
    return atomic_load(&file->map.epoch) < CHANGE_MAP_EPOCH_MAX - TRACKING_EPOCHS_LEFT / 2;
}

static int compare_epochs(gconstpointer a, gconstpointer b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return left < right ? -1 : left > right;
}

/* The ends of epochs that somebody still asks about, in order. */
static GArray *list_cuts(const struct tracking_header *header,
                         const struct tracking_directory *directory)
{
    GArray *cuts = g_array_new(FALSE, FALSE, sizeof(uint32_t));

    for (guint i = 0; i < directory->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(directory->checkpoints, i);
        g_array_append_val(cuts, checkpoint->epoch);
    }
    for (guint i = 0; i < directory->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(directory->bitmaps, i);
        g_array_append_val(cuts, bitmap->epoch);
    }
    for (unsigned i = 0; i < header->sample_count; i++) {
        g_array_append_val(cuts, header->samples[i].epoch);
    }
    g_array_append_val(cuts, header->recovered_epoch);
    g_array_sort(cuts, compare_epochs);
    return cuts;
}

/*
 * The new number of each old one: how many cuts lie before it, and one more. So what was later than
 * a cut stays later, and nothing else is asked of the numbers.
 */
static uint16_t *number_anew(const struct tracking_header *header,
                             const struct tracking_directory *directory, uint16_t *highest)
{
    g_autoptr(GArray) cuts = list_cuts(header, directory);
    uint16_t *numbers = g_new0(uint16_t, CHANGE_MAP_EPOCH_MAX + 1);
    guint passed = 0;
    uint16_t number = 1;

    for (uint32_t epoch = 1; epoch <= CHANGE_MAP_EPOCH_MAX; epoch++) {
        bool is_cut = false;

        while (passed < cuts->len && g_array_index(cuts, uint32_t, passed) < epoch) {
            is_cut |= g_array_index(cuts, uint32_t, passed) == epoch - 1 && epoch > 1;
            passed++;
        }
        number = (uint16_t)(number + is_cut);
        numbers[epoch] = number;
    }
    *highest = number;
    return numbers;
}

static struct tracking_directory *number_directory(const struct tracking_directory *directory,
                                                   const uint16_t *numbers)
{
    struct tracking_directory *copy = tracking_directory_copy(directory);

    for (guint i = 0; i < copy->checkpoints->len; i++) {
        struct tracking_checkpoint *checkpoint = g_ptr_array_index(copy->checkpoints, i);
        checkpoint->epoch = numbers[checkpoint->epoch];
    }
    for (guint i = 0; i < copy->bitmaps->len; i++) {
        struct tracking_bitmap *bitmap = g_ptr_array_index(copy->bitmaps, i);
        bitmap->epoch = numbers[bitmap->epoch];
    }
    return copy;
}

static void number_header(struct tracking_header *header, const uint16_t *numbers)
{
    for (unsigned i = 0; i < header->sample_count; i++) {
        header->samples[i].epoch = numbers[MIN_OF(header->samples[i].epoch, CHANGE_MAP_EPOCH_MAX)];
    }
    header->recovered_epoch = numbers[MIN_OF(header->recovered_epoch, CHANGE_MAP_EPOCH_MAX)];
}

/* ---- The map --------------------------------------------------------------------------------- */

/* What is there already is not stored again, or all of it would have to be written once more. */
static void put(_Atomic uint16_t *value, uint16_t wanted)
{
    if (atomic_load_explicit(value, memory_order_relaxed) != GUINT16_TO_LE(wanted)) {
        atomic_store_explicit(value, GUINT16_TO_LE(wanted), memory_order_relaxed);
    }
}

/*
 * What both have is taken over, with its number. What only the new one has is changed, and of what
 * a disk got at its end nothing is known: a volume has there what others left.
 */
static void fill_map(struct tracking_file *file, const struct tracking_file *old,
                     const uint16_t *numbers)
{
    uint64_t common = MIN_OF(file->map.granules, old->map.granules);
    uint16_t epoch = atomic_load(&file->map.epoch);
    _Atomic uint16_t *values = file->map.values;

    for (uint64_t i = 0; i < common; i++) {
        uint16_t value = change_map_value_at(&old->map, i);
        uint16_t number = numbers[value & CHANGE_MAP_EPOCH_MAX];

        value = (uint16_t)((value & ~CHANGE_MAP_EPOCH_MAX) | number);
        put(&values[i], value);
    }
    for (uint64_t i = common; i < file->map.granules; i++) {
        put(&values[i], epoch);
    }
    /* A short last granule got more or less. */
    uint64_t shorter = MIN_OF(file->map.length, old->map.length);
    if (file->map.length != old->map.length && shorter % (UINT64_C(1) << file->map.shift)) {
        put(&values[common - 1], epoch);
    }
}

/* ---- Before ---------------------------------------------------------------------------------- */

static void clear_plan(struct tracking_rebuild *rebuild)
{
    g_clear_pointer(&rebuild->directory, tracking_directory_free);
    g_clear_pointer(&rebuild->numbers, g_free);
}

/* From what the old file says now. The directory's cuts and the numbers belong together. */
static int make_plan(struct tracking_rebuild *rebuild, uint64_t length, GError **error)
{
    const struct tracking_file *old = rebuild->old;
    uint16_t highest;

    clear_plan(rebuild);
    rebuild->header = old->header;
    rebuild->header.length = length;
    rebuild->header.flags |= TRACKING_IN_USE;
    if (length != old->map.length) {
        rebuild->header.sample_count = 0; /* one at the end would not be found again */
    }
    rebuild->numbers = number_anew(&old->header, old->directory, &highest);
    rebuild->directory = number_directory(old->directory, rebuild->numbers);
    number_header(&rebuild->header, rebuild->numbers);
    /* The epoch goes on, with another number: after a power loss its zeroes are to be doubted. */
    rebuild->header.epoch = highest;
    if (highest > CHANGE_MAP_EPOCH_MAX - TRACKING_EPOCHS_LEFT) {
        return block_error(error, ENOSPC,
                           "Tracking file '%s' has too many checkpoints: remove some", old->path);
    }
    return tracking_header_lay_out(&rebuild->header, error);
}

struct tracking_rebuild *tracking_rebuild_new(struct tracking_file *file, uint64_t length,
                                              GError **error)
{
    struct tracking_rebuild *rebuild = g_new0(struct tracking_rebuild, 1);

    rebuild->old = tracking_file_ref(file);
    if (make_plan(rebuild, length, error) < 0) {
        tracking_rebuild_free(STEAL(rebuild));
    }
    return rebuild;
}

void tracking_rebuild_free(struct tracking_rebuild *rebuild)
{
    if (rebuild) {
        clear_plan(rebuild);
        tracking_file_unref(rebuild->next);
        tracking_file_unref(rebuild->old);
        g_clear_error(&rebuild->error);
        g_free(rebuild);
    }
}

uint64_t tracking_rebuild_length(const struct tracking_rebuild *rebuild)
{
    return rebuild->header.length;
}

/* As far as that is allowed. */
static void take_owner(int fd, int from)
{
    struct stat information;

    if (fstat(from, &information) == 0 &&
        (fchown(fd, information.st_uid, information.st_gid) == 0 || errno == EPERM)) {
        fchmod(fd, information.st_mode & 0777);
    }
}

int tracking_rebuild_prepare(struct tracking_rebuild *rebuild, GError **error)
{
    struct tracking_file *next = tracking_file_new(rebuild->old->path, error);

    rebuild->next = next;
    if (!next) {
        return -EIO;
    }
    next->header = rebuild->header;
    take_owner(next->fd, rebuild->old->fd);
    if (tracking_file_allocate(next, error) < 0 || tracking_file_map(next, error) < 0) {
        return -EIO;
    }
    atomic_store(&next->map.epoch, (uint16_t)rebuild->header.epoch);
    fill_map(next, rebuild->old, rebuild->numbers);
    if (tracking_file_sync_map(next, error) < 0) {
        return -EIO;
    }
    int status = tracking_io.sync_file(next->fd);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write tracking file '%s'", next->path);
    }
    rebuild->is_prepared = true;
    return 0;
}

/* ---- The exchange ---------------------------------------------------------------------------- */

static int prepare_timed(struct timed_call *call, void *data)
{
    struct tracking_rebuild *rebuild = data;

    return tracking_rebuild_prepare(rebuild, &rebuild->error);
}

/* The header as the plan has it, but for what the next file says of itself. */
static void take_plan(struct tracking_rebuild *rebuild)
{
    struct tracking_file *next = rebuild->next;
    struct tracking_header header = rebuild->header;

    header.own_device = next->header.own_device;
    header.own_inode = next->header.own_inode;
    next->header = header;
    tracking_directory_free(next->directory);
    next->directory = STEAL(rebuild->directory);
}

/* The summary follows from the values. */
static int look_again(struct tracking_file *file, GError **error)
{
    change_map_destroy(&file->map);
    if (change_map_init(&file->map, guarded_mapping_address(file->mapping), file->header.length,
                        file->header.granule_shift) < 0) {
        return block_error(error, ENOMEM, "Not enough memory for tracking file '%s'", file->path);
    }
    atomic_store(&file->map.epoch, (uint16_t)file->header.epoch);
    return 0;
}

/* The log is not taken over: the new map is on stable storage before it is anybody's. */
static int complete(struct timed_call *call, void *data)
{
    struct tracking_rebuild *rebuild = data;
    struct tracking_file *next = rebuild->next, *old = rebuild->old;
    GError **error = &rebuild->error;

    take_plan(rebuild);
    atomic_store(&next->map.epoch, (uint16_t)next->header.epoch);
    fill_map(next, old, rebuild->numbers);
    if (look_again(next, error) < 0 || tracking_file_sync_map(next, error) < 0) {
        return -EIO;
    }
    if (guarded_mapping_is_broken(old->mapping)) {
        return block_error(error, EIO, "A part of the map in tracking file '%s' is gone",
                           old->path);
    }
    if (tracking_file_write_heads(next, error) < 0) {
        return -EIO;
    }
    /* Whoever gave up may have put another file there since. */
    if (timed_call_is_left(call)) {
        return -ECANCELED;
    }
    int status = tracking_file_install(next, error);
    if (timed_call_is_left(call)) {
        tracking_file_mark_lost(next, TRACKING_LOST_STORAGE);
    }
    if (status == 0) {
        tracking_file_retire(old);
    }
    return status;
}

static int too_late(const struct tracking_file *file, GError **error)
{
    return block_error(error, ETIMEDOUT,
                       "Tracking file '%s' could not be written anew in time: its storage does not "
                       "answer",
                       file->path);
}

static int report(struct tracking_rebuild *rebuild, int status, GError **error)
{
    if (rebuild->error) {
        g_propagate_error(error, STEAL(rebuild->error));
    } else {
        block_error_errno(error, -status, "Tracking file '%s' could not be written anew",
                          rebuild->old->path);
    }
    return status;
}

/* If the time is over, the rebuild is a thread's, and NULL. */
static int run(struct tracking_rebuild **rebuild, struct tracking_file *file,
               int (*function)(struct timed_call *call, void *data), int64_t deadline_ns,
               GError **error)
{
    bool is_left;
    int status = timed_call_run(function, *rebuild, (GDestroyNotify)tracking_rebuild_free,
                                deadline_ns, &is_left);

    if (is_left) {
        *rebuild = NULL;
        return too_late(file, error);
    }
    return status < 0 ? report(*rebuild, status, error) : 0;
}

/* The last chance to say what is not known yet. */
static int renew_plan(struct tracking_rebuild *rebuild, struct tracking_file *file, GError **error)
{
    tracking_file_ref(file);
    tracking_file_unref(rebuild->old);
    rebuild->old = file;
    return make_plan(rebuild, rebuild->header.length, error);
}

struct tracking_file *tracking_rebuild_finish(struct tracking_rebuild *rebuild,
                                              struct tracking_file *file, int64_t deadline_ns,
                                              struct tracking_file **successor, GError **error)
{
    struct tracking_file *next = NULL;
    int status = renew_plan(rebuild, file, error);

    if (status == 0 && !rebuild->is_prepared) {
        status = run(&rebuild, file, prepare_timed, deadline_ns, error);
    }
    if (status == 0) {
        next = tracking_file_ref(rebuild->next);
        status = run(&rebuild, file, complete, deadline_ns, error);
    }
    if (next && (!rebuild || next->is_given_up)) {
        file->is_given_up = true;
        *successor = STEAL(next);
    }
    if (status < 0) {
        tracking_file_unref(STEAL(next));
    } else {
        tracking_file_unref(file);
    }
    tracking_rebuild_free(rebuild);
    return next;
}

struct tracking_file *tracking_file_rebuild(struct tracking_file *file, uint64_t length,
                                            GError **error)
{
    struct tracking_rebuild *rebuild = tracking_rebuild_new(file, length, error);
    struct tracking_file *successor = NULL, *next = NULL;

    if (rebuild) {
        next = tracking_rebuild_finish(rebuild, file, INT64_MAX, &successor, error);
    }
    if (successor) {
        file->successor = successor;
    }
    return next;
}
