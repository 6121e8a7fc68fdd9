/* SPDX-License-Identifier: BSD-3-Clause */
/* A mirror of what changed since the target was a copy: a user's bitmap or a checkpoint says it. */
#include <errno.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/tracking.h"
#include "jobs/mirror-internal.h"

static int check_words(const struct mirror_options *options, GError **error)
{
    if (options->sync != MIRROR_SYNC_INCREMENTAL) {
        return options->since || options->bitmap
                   ? block_error(error, EINVAL,
                                 "Parameter '%s' says what changed, and is for sync mode "
                                 "'incremental'",
                                 options->since ? "since" : "bitmap")
                   : 0;
    }
    if (options->since && options->bitmap) {
        return block_error(error, EINVAL, "Parameters 'since' and 'bitmap' exclude each other");
    }
    if (!options->since && !options->bitmap) {
        return block_error(error, ENOTSUP, "Sync mode 'incremental' not supported"); /* QEMU's */
    }
    return 0;
}

struct change_tracker *mirror_tracker(struct block_device *device, const char *name, GError **error)
{
    struct change_tracker *tracker = device ? block_device_tracker(device) : NULL;

    if (!device) {
        block_error(error, ENOENT,
                    "Parameter '%s' is about checkpoints, and only devices have them: give the "
                    "device, not its node",
                    name);
    } else if (!tracker) {
        block_error(error, ENOENT,
                    "Device '%s' is not tracked: use disk=...,tracking=auto or "
                    "block-tracking-start",
                    block_device_name(device));
    } else if (tracking_check(tracker, error) < 0) {
        return NULL;
    }
    return tracker;
}

/* As far as can be seen now: what is wrong with a checkpoint or bitmap is better known before a
 * target is made. */
static int check_since(const struct mirror_options *options, GError **error)
{
    struct change_tracker *tracker = mirror_tracker(options->device, "since", error);
    struct dirty_bitmap *changes =
        tracker ? tracking_changes_since(tracker, options->since, error) : NULL;

    if (!changes) {
        return -ENOENT;
    }
    dirty_bitmap_free(changes);
    return 0;
}

struct look {
    const struct mirror_options *options;
    struct dirty_bitmap *changes; /* what it says goes there; NULL: nowhere */
    int status;
    GError **error;
};

/* Main thread. A bitmap that does not record says nothing of what was written since it stopped. */
static void look_at_bitmap(void *data)
{
    struct look *look = data;
    const char *name = look->options->bitmap;
    struct dirty_bitmap *bitmap = block_node_find_bitmap(look->options->source, name);

    if (!bitmap) {
        look->status = block_error(look->error, ENOENT, "Bitmap '%s' could not be found", name);
        return;
    }
    look->status = dirty_bitmap_check_state(
        bitmap, DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT, look->error);
    if (look->status == 0 && !dirty_bitmap_is_recording(bitmap)) {
        look->status = block_error(look->error, EINVAL,
                                   "Bitmap '%s' is disabled: it does not know what was written "
                                   "since, and the target would lack it",
                                   name);
    }
    if (look->status == 0 && look->changes) {
        look->status = dirty_bitmap_merge(look->changes, bitmap, look->error);
    }
}

static int use_bitmap(const struct mirror_options *options, struct dirty_bitmap *changes,
                      GError **error)
{
    struct look look = {.options = options, .changes = changes, .error = error};

    main_loop_call_wait(look_at_bitmap, &look);
    return look.status;
}

int mirror_changes_check(const struct mirror_options *options, GError **error)
{
    int status = check_words(options, error);

    if (status < 0 || options->sync != MIRROR_SYNC_INCREMENTAL) {
        return status;
    }
    return options->since ? check_since(options, error) : use_bitmap(options, NULL, error);
}

static int use_since(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    struct change_tracker *tracker = mirror_tracker(options->device, "since", error);
    AUTO(dirty_bitmap)
    changes = tracker ? tracking_changes_since(tracker, options->since, error) : NULL;

    return changes ? dirty_bitmap_merge(mirror->bitmap, changes, error) : -ENOENT;
}

int mirror_changes_take(struct mirror *mirror, const struct mirror_options *options, GError **error)
{
    if (mirror->sync != MIRROR_SYNC_INCREMENTAL) {
        return 0;
    }
    return options->since ? use_since(mirror, options, error)
                          : use_bitmap(options, mirror->bitmap, error);
}
