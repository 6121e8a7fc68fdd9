/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How a mirror ends: the last bytes, the flush, and the switch of the guests' disks.
 *
 * All of it happens in the finalization, however long the job has been PENDING before: until then
 * guests write to the source freely and the bitmap takes note.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/tracking-bitmaps.h"
#include "jobs/mirror-internal.h"

/*
 * A flush that has much to write takes long, so there is one before guests stand still, and again
 * if much was copied meanwhile. So much may be left for the last one.
 */
#define UNFLUSHED_SMALL (4 * MIB)
#define FLUSHES_MAX     4

/* While the target is flushed nothing is copied; guests are held back, but not for longer. */
#define FLUSH_FIRM_NS (5 * NS_PER_SECOND)

/* How long guests may stand still for that one. */
#define FLUSH_MAX_NS (10 * NS_PER_SECOND)

#define TRIES_MAX    3

static int converge(struct mirror *mirror, GError **error)
{
    if (mirror_left(mirror) <= mirror_small(mirror)) {
        return 0;
    }
    mirror_begin_convergence(mirror);
    return copy_engine_run(mirror->engine, error);
}

static int flush_beside_guests(struct mirror *mirror, GError **error)
{
    if (!write_through_works(&mirror->through)) {
        mirror_gate_shut(&mirror->gate, clock_now_ns() + FLUSH_FIRM_NS);
    }
    job_set_phase(mirror->job, "flushing");
    atomic_store(&mirror->unflushed, 0);
    return copy_engine_flush(mirror->engine, INT64_MAX, error);
}

/* Bring the mirror to where little is left to be done while guests stand still. */
static int approach(struct mirror *mirror, bool flush, GError **error)
{
    int status = converge(mirror, error);

    for (unsigned i = 0; status == 0 && flush && i < FLUSHES_MAX &&
                         atomic_load(&mirror->unflushed) > UNFLUSHED_SMALL;
         i++) {
        status = flush_beside_guests(mirror, error);
        if (status == 0) {
            status = converge(mirror, error);
        }
    }
    mirror_gate_open(&mirror->gate);
    return status;
}

static bool is_clean(struct mirror *mirror)
{
    return dirty_bitmap_next_dirty(mirror->bitmap, 0, mirror->length) == UINT64_MAX;
}

/* Guests stand still. */
static int copy_rest(struct mirror *mirror, GError **error)
{
    if (is_clean(mirror)) {
        return 0;
    }
    mirror_begin_finish(mirror);
    return copy_engine_run(mirror->engine, error);
}

/* Only writers need stand still, unless there are none and the disks of readers are to switch. */
static struct block_drain *drain_guests(struct mirror *mirror)
{
    return block_drain_begin(&mirror->source_node, 1,
                             mirror->source_node->options.read_only ? BLOCK_PERM_ALL
                                                                    : BLOCK_PERM_WRITE);
}

/* ---- The devices to switch ------------------------------------------------------------------ */

struct taking {
    struct mirror *mirror;
    bool is_pivot;
    int status;
    GError **error;
};

/*
 * Whether devices may come to the source although a commit is about to make it worth nothing: not
 * when it is decided which of them move.
 */
static void admit_devices(struct mirror *mirror, bool admits)
{
    SCOPE_LOCK(&block_graph_lock);

    if (!mirror->chain.nodes) {
        return;
    }
    copy_engine_source_claim(mirror->engine)->moves_places = admits;
    if (chain_filter_claim(&mirror->filter)) {
        chain_filter_claim(&mirror->filter)->moves_places = admits;
    }
}

/* Main thread. */
static void release_devices(void *data)
{
    struct mirror *mirror = data;

    for (guint i = 0; i < mirror->moving->len; i++) {
        struct block_device *device = g_ptr_array_index(mirror->moving, i);

        block_device_end_move(device);
        block_device_let_go(device);
    }
    g_ptr_array_unref(STEAL(mirror->moving));
    admit_devices(mirror, true);
}

/* Whether what is written to the one reaches the other, through filters. */
static bool is_above(const struct block_node *node, const struct block_node *wanted)
{
    while (node != wanted && node->driver->is_filter && node->file) {
        node = node->file;
    }
    return node == wanted;
}

/* Since the job began the guest may have moved away; what it writes elsewhere is not copied. */
static int check_guest(const struct mirror *mirror, bool is_pivot, GError **error)
{
    AUTO(block_node) root = mirror->guest ? block_device_root(mirror->guest) : NULL;

    if (root && !is_above(root, mirror->source_node)) {
        return block_error(error, EBUSY,
                           "Device '%s' has moved from node '%s' to another since the mirror "
                           "began: the target '%s' is out of date",
                           block_device_name(mirror->guest), mirror->source_node->name,
                           mirror->target->name);
    }
    /* Or somebody has put a node between the source and the device. */
    return is_pivot ? mirror_check_is_root(mirror->source_node, error) : 0;
}

static int take_device(struct mirror *mirror, struct block_device *device, GError **error)
{
    int status = 0;

    if (block_device_is_on(device, mirror->source_node)) {
        status = block_device_begin_move(device, error);
        if (status == 0) {
            block_device_hold(device);
            g_ptr_array_add(mirror->moving, block_device_ref(device));
        }
    }
    return status;
}

/* Main thread; guests stand still. From here on nobody else moves the devices we are to switch. */
static void take_devices(void *data)
{
    struct taking *taking = data;
    struct mirror *mirror = taking->mirror;

    mirror->moving = g_ptr_array_new_with_free_func((GDestroyNotify)block_device_unref);
    taking->status = check_guest(mirror, taking->is_pivot, taking->error);
    admit_devices(mirror, !taking->is_pivot);
    struct block_device **devices = block_device_list_with_shared(); /* nobody comes any more */
    for (size_t i = 0; taking->is_pivot && devices[i] && taking->status == 0; i++) {
        taking->status = take_device(mirror, devices[i], taking->error);
    }
    block_device_list_free(devices);
}

/* A device that only reads is not drained with the writers, and must not read while it moves. */
static void wait_for_readers(struct mirror *mirror)
{
    for (guint i = 0; i < mirror->moving->len; i++) {
        block_device_wait_held(g_ptr_array_index(mirror->moving, i));
    }
}

/* ---- A checkpoint of the end ----------------------------------------------------------------- */

/* Pending or broken ones, too. */
static bool has_checkpoint(struct change_tracker *tracker, const char *name)
{
    AUTO(tracking_directory) directory = tracking_get_directory(tracker);

    return directory && tracking_directory_find(directory, name);
}

int mirror_end_check(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    const char *name = options->checkpoint;
    AUTO(block_device) device = block_device_find_by_root(options->source);

    if (!name) {
        return 0;
    }
    if (options->sync != MIRROR_SYNC_FULL && options->sync != MIRROR_SYNC_INCREMENTAL) {
        return block_error(
            error, EINVAL,
            "Parameter 'checkpoint' is for sync modes 'full' and 'incremental': else "
            "the target is no copy of that moment");
    }
    struct change_tracker *tracker =
        mirror_tracker(options->device ? options->device : device, "checkpoint", error);
    if (!tracker) {
        return -ENOENT;
    }
    if (!tracking_name_is_valid(name, strlen(name))) {
        return block_error(error, EINVAL, "'%s' cannot be the name of a checkpoint", name);
    }
    if (has_checkpoint(tracker, name)) {
        return block_error(error, EEXIST, "Checkpoint already exists: %s", name);
    }
    mirror->checkpoint = g_strdup(name);
    mirror->tracked = block_device_ref(options->device ? options->device : device);
    return 0;
}

/* Drained, and both sides are the same. Until the end is one it is pending. */
static int cut_checkpoint(struct mirror *mirror, GError **error)
{
    struct change_tracker *tracker =
        mirror->checkpoint ? mirror_tracker(mirror->tracked, "checkpoint", error) : NULL;

    if (!mirror->checkpoint) {
        return 0;
    }
    if (!tracker || tracking_checkpoint_begin(tracker, mirror->source_node, mirror->checkpoint,
                                              mirror->checkpoint_uuid, error) < 0) {
        return -EIO;
    }
    mirror->has_checkpoint = true;
    return 0;
}

static void end_checkpoint(struct mirror *mirror, bool stays)
{
    g_autoptr(GError) error = NULL;

    if (!mirror->has_checkpoint) {
        return;
    }
    mirror->has_checkpoint = false;
    struct change_tracker *tracker = mirror_tracker(mirror->tracked, "checkpoint", &error);
    int status = !tracker ? -ENOENT
                 : stays  ? tracking_checkpoint_commit(tracker, mirror->checkpoint,
                                                       mirror->checkpoint_uuid, &error)
                          : tracking_checkpoint_drop(tracker, mirror->checkpoint,
                                                     mirror->checkpoint_uuid, &error);
    if (status < 0 && stays) {
        g_warning("There is no checkpoint '%s' of the end of mirror '%s': %s", mirror->checkpoint,
                  job_id(mirror->job), error->message);
    }
}

/* ---- The last step --------------------------------------------------------------------------- */

/* Guests stand still. *again: it took too long, so they are to go on first. */
static int finish_drained(struct mirror *mirror, bool is_pivot, bool *again, GError **error)
{
    struct taking taking = {.mirror = mirror, .is_pivot = is_pivot, .error = error};

    main_loop_call_wait(take_devices, &taking);
    if (taking.status == 0) {
        wait_for_readers(mirror);
        taking.status = copy_rest(mirror, error);
    }
    *again = taking.status == 0 && !is_clean(mirror);
    if (taking.status == 0 && !*again) {
        mirror_update_total(mirror);
        mirror_mode_close(mirror); /* it is a copy of this moment */
        mirror_watch_part(mirror);
        taking.status = cut_checkpoint(mirror, error);
        if (taking.status == 0 && is_pivot) {
            return copy_engine_flush(mirror->engine, clock_now_ns() + FLUSH_MAX_NS, error);
        }
    }
    return taking.status;
}

/*
 * The moment in which target and source are the same. For a pivot guests go on standing still
 * after it.
 */
static int finish(struct mirror *mirror, bool is_pivot, bool *again, GError **error)
{
    AUTO(block_drain) drain = drain_guests(mirror);
    int status = finish_drained(mirror, is_pivot, again, error);

    if (status == 0 && !*again && is_pivot) {
        mirror->drain = STEAL(drain);
        return 0;
    }
    main_loop_call_wait(release_devices, mirror);
    block_drain_end(STEAL(drain));
    return status == 0 && !*again ? copy_engine_flush(mirror->engine, INT64_MAX, error) : status;
}

int mirror_prepare(struct job *job, GError **error)
{
    struct mirror *mirror = job_state(job);
    bool is_pivot = job_completion_requested(job) && !job_cancel_requested(job);
    bool again = true;

    atomic_store(&mirror->is_finalizing, true);
    int status = is_pivot ? mirror_top_attach(mirror, error) : 0;

    for (unsigned tries = 0; status == 0 && again && tries < TRIES_MAX; tries++) {
        status = approach(mirror, is_pivot, error);
        if (status == 0) {
            status = finish(mirror, is_pivot, &again, error);
        }
    }
    if (status == 0 && again) {
        return block_error(error, ETIMEDOUT,
                           "The target '%s' is too slow: guests would have to stand still for too "
                           "long for the last bytes to be copied",
                           mirror->target->name);
    }
    return status == 0 ? mirror_target_check_same(mirror, error) : status;
}

/*
 * Else nobody says that the target reads as the source does. Of an incremental one it was asked
 * for: what the target held before is what the source did then.
 */
static bool is_whole_copy(const struct mirror *mirror)
{
    return mirror->sync == MIRROR_SYNC_FULL || mirror->sync == MIRROR_SYNC_COMMIT ||
           mirror->sync == MIRROR_SYNC_INCREMENTAL ||
           (mirror->sync == MIRROR_SYNC_TOP && mirror->has_attached);
}

/*
 * The first device takes the job's own place on the target, which none of its claims could get if
 * that were free for a moment. Others there are only where the source is read-only, or they are
 * nodes' exports: they exclude nobody. So no step can fail, but that of an export that has just
 * been removed.
 */
static void switch_device(struct mirror *mirror, struct block_device *device)
{
    struct block_claim *claim = copy_engine_target_claim(mirror->engine);
    g_autoptr(GError) error = NULL;
    int status = claim->node ? block_device_take_root(device, claim, &error)
                             : block_device_set_root(device, mirror->target, &error);

    if (status < 0 && status != -ESHUTDOWN) {
        g_assert_no_error(error);
    }
    struct change_tracker *tracker = block_device_tracker(device);
    if (tracker && !is_whole_copy(mirror)) {
        tracking_contents_changed(tracker,
                                  "the mirror it was switched to has not copied all of it");
    }
}

/* Main thread; guests stand still. */
static void pivot(void *data)
{
    struct mirror *mirror = data;

    mirror->has_pivoted = mirror->moving->len > 0;
    if (mirror->has_pivoted && mirror->chain.nodes) {
        mirror_commit_pivot(mirror);
    }
    for (guint i = 0; i < mirror->moving->len; i++) {
        struct block_device *device = g_ptr_array_index(mirror->moving, i);

        block_device_end_move(device);
        switch_device(mirror, device);
        block_device_let_go(device);
    }
    g_ptr_array_unref(STEAL(mirror->moving));
    mirror_uninstall(mirror);
}

/* Their tracking files learn where the disk is now, and keep that node's bitmaps; guests go on. */
static void tell_trackers(GPtrArray *devices)
{
    for (guint i = 0; i < devices->len; i++) {
        struct block_device *device = g_ptr_array_index(devices, i);
        struct change_tracker *tracker = block_device_tracker(device);

        if (tracker) {
            tracking_bitmaps_follow(tracker, device);
        }
    }
}

/* A commit may end in a longer image. Guests stand still. */
static void resize_trackers(GPtrArray *devices, uint64_t length)
{
    for (guint i = 0; i < devices->len; i++) {
        struct block_device *device = g_ptr_array_index(devices, i);
        struct change_tracker *tracker = block_device_tracker(device);

        if (tracker) {
            tracking_resize(tracker, length);
        }
    }
}

void mirror_commit(struct job *job)
{
    struct mirror *mirror = job_state(job);
    g_autoptr(GPtrArray) moved = g_ptr_array_new_with_free_func((GDestroyNotify)block_device_unref);

    for (guint i = 0; mirror->moving && i < mirror->moving->len; i++) {
        g_ptr_array_add(moved, block_device_ref(g_ptr_array_index(mirror->moving, i)));
    }
    if (mirror->drain) {
        resize_trackers(moved, block_node_length(mirror->target));
        main_loop_call_wait(pivot, mirror);
        block_drain_end(STEAL(mirror->drain));
    }
    tell_trackers(moved);
    end_checkpoint(mirror, true);
    mirror->has_ended = true;
}

void mirror_abort(struct job *job)
{
    struct mirror *mirror = job_state(job);

    if (mirror->drain) {
        main_loop_call_wait(release_devices, mirror);
        block_drain_end(STEAL(mirror->drain));
    }
    mirror_top_detach(mirror);
    end_checkpoint(mirror, false);
}
