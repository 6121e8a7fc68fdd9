/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/tracking-bitmaps.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/tracking-record.h"
#include "block/tracking-state.h"

/* So many for a disk: each of their changes writes them all. */
#define BITMAPS_MAX 1024

/* ---- Which node is whose --------------------------------------------------------------------- */

struct pair {
    struct change_tracker *tracker;
    /* Not a reference: a node that is closed stores its bitmaps. Another may lie there then. */
    struct block_node *node;
    uint64_t serial;
    struct block_device *device; /* borrowed, until is_settled */
    bool is_settled, was_here;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the pairs; innermost */
static GArray *pairs;

static void add_pair(struct change_tracker *tracker, struct block_device *device,
                     struct block_node *root)
{
    struct block_node *node = block_node_below_filters(root);
    struct pair pair = {tracker, node, node->serial, device, false, false};
    SCOPE_LOCK(&lock);

    if (!pairs) {
        pairs = g_array_new(FALSE, FALSE, sizeof(struct pair));
    }
    g_array_append_val(pairs, pair);
}

/*
 * The tracker's device shows another node now, so that one's bitmaps are kept from here on. Returns
 * false if there is nothing to do: it is the same, or the tracker has no pair (yet, or any more).
 */
static bool move_pair(struct change_tracker *tracker, struct block_node *root)
{
    struct block_node *node = block_node_below_filters(root);
    SCOPE_LOCK(&lock);

    for (guint i = 0; pairs && i < pairs->len; i++) {
        struct pair *pair = &g_array_index(pairs, struct pair, i);

        if (pair->tracker == tracker && !pair->is_settled && pair->serial != node->serial) {
            pair->node = node;
            pair->serial = node->serial;
            return true;
        }
    }
    return false;
}

/* Lock held. */
static struct pair *find_pair(const struct block_node *node)
{
    for (guint i = 0; pairs && i < pairs->len; i++) {
        struct pair *pair = &g_array_index(pairs, struct pair, i);

        if (pair->node == node && pair->serial == node->serial) {
            return pair;
        }
    }
    return NULL;
}

static struct change_tracker *tracker_of(const struct block_node *node)
{
    SCOPE_LOCK(&lock);
    const struct pair *pair = find_pair(node);

    return pair && tracking_check(pair->tracker, NULL) == 0 ? pair->tracker : NULL;
}

static bool shows(struct block_device *device, const struct block_node *node)
{
    AUTO(block_node) root = block_device_root(device);

    return root && block_node_below_filters(root) == node;
}

/* The device whose bitmaps these are, as a reference, until it has gone; then *was_here holds. */
static struct block_device *device_of(const struct block_node *node, bool *was_here)
{
    SCOPE_LOCK(&lock);
    const struct pair *pair = find_pair(node);

    *was_here = pair && pair->was_here;
    return pair && !pair->is_settled ? block_device_ref(pair->device) : NULL;
}

/* Whether the device still shows the node. It moves on the main thread only, drained. */
static bool is_here(const struct block_node *node)
{
    bool is_shown;
    struct block_device *device = device_of(node, &is_shown);

    if (device) {
        is_shown = shows(device, node);
        block_device_unref(device);
    }
    return is_shown;
}

/* The whole disk: a filter above the node may keep what was written, too. */
static int flush_disk(struct block_node *node)
{
    bool was_here;
    struct block_device *device = device_of(node, &was_here);
    AUTO(block_node) root = device ? block_device_root(device) : NULL;

    if (device) {
        block_device_unref(device);
    }
    return block_node_flush(root ? root : node);
}

void tracking_bitmaps_settle(struct change_tracker *tracker)
{
    struct block_device *device = NULL;
    struct block_node *node = NULL;

    pthread_mutex_lock(&lock);
    for (guint i = 0; pairs && i < pairs->len; i++) {
        struct pair *pair = &g_array_index(pairs, struct pair, i);

        if (pair->tracker == tracker && !pair->is_settled) {
            device = pair->device;
            node = pair->node;
        }
    }
    pthread_mutex_unlock(&lock);
    bool was_here = device && shows(device, node);
    SCOPE_LOCK(&lock);
    for (guint i = 0; pairs && i < pairs->len; i++) {
        struct pair *pair = &g_array_index(pairs, struct pair, i);

        if (pair->tracker == tracker) {
            pair->is_settled = true;
            pair->was_here = was_here;
        }
    }
}

void tracking_bitmaps_end(struct change_tracker *tracker)
{
    SCOPE_LOCK(&lock);

    for (guint i = 0; pairs && i < pairs->len; i++) {
        if (g_array_index(pairs, struct pair, i).tracker == tracker) {
            g_array_remove_index_fast(pairs, i);
            break;
        }
    }
    if (pairs && pairs->len == 0) {
        g_clear_pointer(&pairs, g_array_unref);
    }
}

/* ---- Records --------------------------------------------------------------------------------- */

/* A bitmap as a record and the map have it; NULL with the error set. */
static struct dirty_bitmap *load_record(struct change_tracker *tracker, struct block_node *node,
                                        const struct tracking_bitmap *record, uint64_t *left,
                                        GError **error)
{
    if (record->is_broken) {
        block_error(error, EIO, "the map of changes that it goes with is lost");
        return NULL;
    }
    AUTO(dirty_bitmap)
    bitmap = tracking_record_load(record, block_node_length(node), left, error);

    if (!bitmap ||
        (record->is_enabled && tracking_add_changes(tracker, record->epoch, bitmap, error) < 0)) {
        return NULL;
    }
    dirty_bitmap_set_persistent(bitmap, true);
    dirty_bitmap_set_read_only(bitmap, block_node_is_read_only(node));
    return STEAL(bitmap);
}

/* In its place: it has a name, and can be removed. */
static void add_inconsistent(struct block_node *node, const struct tracking_bitmap *record)
{
    struct block_persistent_bitmap stored = {
        .name = record->name,
        .granularity = record->granularity,
    };
    struct dirty_bitmap *bitmap = block_stored_bitmaps_new(node, &stored);

    if (bitmap) {
        dirty_bitmap_set_inconsistent(bitmap);
        block_node_add_bitmap(node, bitmap);
    }
}

/* ---- The keeper ------------------------------------------------------------------------------ */

static bool keeps(struct block_node *node)
{
    return tracker_of(node) != NULL;
}

struct sum {
    struct block_node *node;
    uint64_t bytes;
};

static void add_up(void *data)
{
    struct sum *sum = data;

    for (struct dirty_bitmap **at = sum->node->bitmaps; at && *at; at++) {
        if (dirty_bitmap_is_persistent(*at)) {
            sum->bytes +=
                block_stored_bitmaps_bytes(dirty_bitmap_length(*at), dirty_bitmap_granularity(*at));
        }
    }
}

/* More than would be loaded again is not kept. */
static int check_new(struct block_node *node, const char *name, uint64_t granularity, size_t others,
                     GError **error)
{
    struct sum sum = {node, block_stored_bitmaps_bytes(block_node_length(node), granularity)};

    if (others >= BITMAPS_MAX) {
        return block_error(error, ENOSPC, "A tracking file keeps at most %d bitmaps", BITMAPS_MAX);
    }
    main_loop_call_wait(add_up, &sum);
    return sum.bytes > BLOCK_STORED_BITMAPS_BYTES_MAX
               ? block_error(error, ENOSPC,
                             "The bits of all bitmaps that a tracking file keeps may take at most "
                             "1 GiB: choose a larger granularity")
               : 0;
}

static void load_all(struct block_node *node)
{
    struct change_tracker *tracker = tracker_of(node);
    AUTO(tracking_directory) directory = tracking_get_directory(tracker);
    uint64_t left = BLOCK_STORED_BITMAPS_BYTES_MAX;

    for (guint i = 0; directory && i < directory->bitmaps->len; i++) {
        const struct tracking_bitmap *record = g_ptr_array_index(directory->bitmaps, i);
        g_autoptr(GError) error = NULL;
        struct dirty_bitmap *bitmap;

        if (block_node_find_bitmap(node, record->name)) {
            continue;
        }
        bitmap = load_record(tracker, node, record, &left, &error);
        if (bitmap) {
            block_node_add_bitmap(node, bitmap);
            continue;
        }
        g_autofree char *name = g_strescape(record->name, NULL);
        g_warning("Bitmap '%s' cannot be loaded: %s", name, error->message);
        add_inconsistent(node, record);
    }
}

/* The image says that it cannot be trusted with it, or has never heard of it: it was new. */
static void restore_one(struct change_tracker *tracker, struct block_node *node,
                        const struct tracking_bitmap *record, uint64_t *left)
{
    struct dirty_bitmap *bad = block_node_find_bitmap(node, record->name);
    struct dirty_bitmap *good;

    if (record->is_broken || (bad && !dirty_bitmap_is_inconsistent(bad))) {
        return;
    }
    good = load_record(tracker, node, record, left, NULL);
    if (!good) {
        return;
    }
    g_message("Bitmap '%s' is good again: the tracking file knows what it said", record->name);
    if (bad) {
        block_node_replace_bitmap(node, bad, good);
        dirty_bitmap_free(bad);
    } else {
        block_node_add_bitmap(node, good);
    }
}

/* What no image keeps has just been loaded, as far as it could be. */
static void restore(struct block_node *node)
{
    struct change_tracker *tracker =
        block_stored_bitmaps_image_keeps(node) ? tracker_of(node) : NULL;
    AUTO(tracking_directory) directory = tracker ? tracking_get_directory(tracker) : NULL;
    uint64_t left = BLOCK_STORED_BITMAPS_BYTES_MAX;

    for (guint i = 0; directory && i < directory->bitmaps->len; i++) {
        restore_one(tracker, node, g_ptr_array_index(directory->bitmaps, i), &left);
    }
}

/* The node is closed: what they say now is what they say, whatever changed in this epoch. Unless
 * the device has left it: then what it writes elsewhere must not be taken for older than the
 * record. */
static int store_all(struct block_node *node, struct dirty_bitmap *const *bitmaps, size_t count,
                     GError **error)
{
    struct change_tracker *tracker = tracker_of(node);
    g_autoptr(GPtrArray) records =
        g_ptr_array_new_with_free_func((GDestroyNotify)tracking_bitmap_free);

    if (!is_here(node)) {
        return 0;
    }
    /* An epoch must not end then, or the zeroes of this one would be believed. */
    if (tracker && tracker->is_left_open) {
        return block_error(error, EIO, "The disk could not be flushed");
    }
    for (size_t i = 0; i < count; i++) {
        struct tracking_bitmap *record = tracking_record_new(bitmaps[i]);

        if (!record || tracking_record_pack(record) < 0) {
            tracking_bitmap_free(record);
            return block_error(error, ENOMEM, "Not enough memory for bitmap '%s'",
                               dirty_bitmap_name(bitmaps[i]));
        }
        g_ptr_array_add(records, record);
    }
    return tracker ? tracking_keep_bitmaps(tracker, node, records, error) : 0;
}

/* What is kept stays true, if less precise, until somebody says that it changed. */
static int begin_change(struct block_node *node, const char *name, GError **error)
{
    return 0;
}

static int remove_record(struct block_node *node, const char *name, GError **error)
{
    struct change_tracker *tracker = tracker_of(node);

    if (!tracker) {
        return 0;
    }
    SCOPE_LOCK(&tracker->bitmaps_lock);
    /* The disk may have left the node meanwhile: what is kept is another one's then. */
    return tracker_of(node) == tracker ? tracking_forget_bitmap(tracker, name, error) : 0;
}

struct look {
    struct block_node *node;
    const char *name;
    struct tracking_bitmap *record; /* NULL: it is not to be kept */
    int status;
};

/* Main thread, drained: the moment of the record. */
static void look_at(void *data)
{
    struct look *look = data;
    struct dirty_bitmap *bitmap = block_node_find_bitmap(look->node, look->name);

    /* A busy one says less than its user knows, who says so at its end. */
    if (bitmap && is_here(look->node) && dirty_bitmap_is_persistent(bitmap) &&
        !dirty_bitmap_is_inconsistent(bitmap) && !dirty_bitmap_is_busy(bitmap)) {
        look->record = tracking_record_new(bitmap);
        look->status = look->record ? 0 : -ENOMEM;
    }
}

/*
 * As with a checkpoint, the disk is flushed first: what a power loss takes back after that is in
 * an extent that was active then.
 */
static int keep_now(struct change_tracker *tracker, struct look *look, GError **error)
{
    g_autoptr(GPtrArray) records =
        g_ptr_array_new_with_free_func((GDestroyNotify)tracking_bitmap_free);
    int status = flush_disk(look->node);
    AUTO(block_drain) drain = block_drain_begin(&look->node, 1, BLOCK_PERM_WRITE);

    if (status == 0) {
        status = flush_disk(look->node);
    }
    if (status == 0) {
        main_loop_call_wait(look_at, look);
        status = look->status;
    }
    if (status < 0) {
        return block_error_errno(error, -status, "it cannot be brought to stable storage");
    }
    if (!look->record) {
        return tracking_forget_bitmap(tracker, look->name, error);
    }
    if (tracking_record_pack(look->record) < 0) {
        tracking_bitmap_free(look->record);
        return block_error(error, ENOMEM, "there is not enough memory");
    }
    g_ptr_array_add(records, STEAL(look->record));
    return tracking_keep_bitmaps(tracker, look->node, records, error);
}

/* Most bitmaps are nobody's to keep: then nobody is held up. */
static bool is_wanted(struct block_node *node, const char *name)
{
    g_auto(GStrv) names = block_stored_bitmaps_names(node, false);

    return g_strv_contains((const char *const *)names, name);
}

/* The tracker's bitmaps_lock is held. */
static void keep_or_forget(struct change_tracker *tracker, struct block_node *node,
                           const char *name)
{
    struct look how = {.node = node, .name = name};
    g_autoptr(GError) error = NULL;

    if (is_wanted(node, name)) {
        if (keep_now(tracker, &how, &error) == 0) {
            return;
        }
        g_warning("After a crash bitmap '%s' of node '%s' would not be as it is now: %s", name,
                  node->name, error->message);
    }
    /* What the file says of it must not be believed. */
    if (tracking_forget_bitmap(tracker, name, NULL) < 0) {
        tracking_lose(tracker, TRACKING_LOST_STORAGE, "a bitmap cannot be taken out of it");
    }
}

static void changed(struct block_node *node, const char *name)
{
    struct change_tracker *tracker = tracker_of(node);

    if (!tracker) {
        return;
    }
    SCOPE_LOCK(&tracker->bitmaps_lock);
    /* The disk may have left the node meanwhile: what is kept is another one's then. */
    if (tracker_of(node) == tracker) {
        keep_or_forget(tracker, node, name);
    }
}

const struct bitmap_keeper tracking_bitmap_keeper = {
    .keeps = keeps,
    .check_new = check_new,
    .load_all = load_all,
    .restore = restore,
    .store_all = store_all,
    .begin_change = begin_change,
    .remove = remove_record,
    .changed = changed,
};

/* ---- Beginning ------------------------------------------------------------------------------- */

static void keep_each(struct block_node *root)
{
    struct block_node *node = block_node_below_filters(root);
    g_auto(GStrv) names = block_stored_bitmaps_names(node, false);

    for (char **name = names; *name; name++) {
        changed(node, *name);
    }
}

void tracking_bitmaps_begin(struct change_tracker *tracker, struct block_device *device,
                            struct block_node *root)
{
    struct block_node *node = block_node_below_filters(root);

    add_pair(tracker, device, root);
    block_stored_bitmaps_load_late(node, &tracking_bitmap_keeper);
    keep_each(root);
    /* What is not loaded because it says nothing has a name still, unless the image keeps that. */
    g_auto(GStrv) names = block_stored_bitmaps_names(node, !block_stored_bitmaps_image_keeps(node));
    tracking_drop_other_bitmaps(tracker, (const char *const *)names);
}

/* The device may be moved at any time: whoever moves it comes here afterwards, too. */
void tracking_bitmaps_adopt(struct change_tracker *tracker, struct block_device *device)
{
    AUTO(block_node) root = NULL;

    pthread_mutex_lock(&tracker->bitmaps_lock);
    root = block_device_root(device);
    if (root) {
        tracking_disk_moved(tracker, root);
        add_pair(tracker, device, root);
    }
    pthread_mutex_unlock(&tracker->bitmaps_lock);
    if (root) {
        keep_each(root);
    }
}

/*
 * First the file: what it keeps then is of the new node; or, if it could not be told, it takes
 * nothing of that (tracking_keep_bitmaps). What is left are bitmaps of a node that it cannot tell
 * from the new one by name, or of one that nobody keeps up to date any more.
 */
void tracking_bitmaps_follow(struct change_tracker *tracker, struct block_device *device)
{
    static const char *const none[] = {NULL};
    AUTO(block_node) root = NULL;
    bool has_moved = false;

    pthread_mutex_lock(&tracker->bitmaps_lock);
    root = block_device_root(device);
    if (root) {
        tracking_disk_moved(tracker, root);
        has_moved = move_pair(tracker, root);
    }
    if (has_moved) {
        tracking_drop_other_bitmaps(tracker, none);
    }
    pthread_mutex_unlock(&tracker->bitmaps_lock);
    if (has_moved) {
        keep_each(root);
    }
}
