/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/mirror-watch.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/copy-map.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/request.h"
#include "jobs/mirror-internal.h"

struct mirror_watch {
    struct write_notifier notifier; /* on the source, between begin and end */
    struct job *job;                /* the mirror's, a reference: its state stays with it */
    struct mirror *mirror;
    struct block_node *source; /* a reference */
    struct dirty_bitmap *unsettled;
    bool is_installed;
};

/* The mirrors that can be watched. Guards the list; a leaf. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static GPtrArray *list;

void mirror_watch_admit(struct mirror *mirror)
{
    SCOPE_LOCK(&list_lock);

    if (!list) {
        list = g_ptr_array_new();
    }
    g_ptr_array_add(list, mirror);
}

void mirror_watch_part(struct mirror *mirror)
{
    pthread_mutex_lock(&list_lock);
    if (list && g_ptr_array_remove_fast(list, mirror) && list->len == 0) {
        g_clear_pointer(&list, g_ptr_array_unref);
    }
    pthread_mutex_unlock(&list_lock);
    SCOPE_LOCK(&mirror->watch_lock);
    mirror->is_parted = true;
}

/* A reference to the job of the mirror, or NULL. */
static struct job *find(const struct block_node *source, const struct block_node *target,
                        struct mirror **found)
{
    SCOPE_LOCK(&list_lock);

    for (guint i = 0; list && i < list->len; i++) {
        struct mirror *mirror = g_ptr_array_index(list, i);

        if (mirror->source_node == source && mirror->target == target) {
            *found = mirror;
            return job_ref(mirror->job);
        }
    }
    return NULL;
}

static int before_write(struct write_notifier *notifier, enum block_operation operation,
                        uint64_t offset, uint64_t bytes)
{
    struct mirror_watch *watch = (struct mirror_watch *)notifier;

    if (bytes) {
        dirty_bitmap_set(watch->unsettled, offset, bytes);
    }
    return 0;
}

static int check(const struct mirror *mirror, struct job *job, GError **error)
{
    enum job_status status = job_get_status(job);

    if (status != JOB_STATUS_READY && status != JOB_STATUS_STANDBY) {
        return block_error(error, EBUSY,
                           "Mirror '%s' to node '%s' is not ready, so that they differ: wait for "
                           "BLOCK_JOB_READY",
                           job_id(job), mirror->target->name);
    }
    if (mirror->sync != MIRROR_SYNC_FULL && mirror->sync != MIRROR_SYNC_INCREMENTAL) {
        return block_error(error, EINVAL, "Mirror '%s' to node '%s' does not copy all of the disk",
                           job_id(job), mirror->target->name);
    }
    return 0;
}

struct mirror_watch *mirror_watch_new(struct block_node *source, struct block_node *target,
                                      bool *is_mirrored, GError **error)
{
    struct mirror *mirror = NULL;
    AUTO(job) job = find(source, target, &mirror);

    *is_mirrored = job;
    if (!job || check(mirror, job, error) < 0) {
        return NULL;
    }
    AUTO(mirror_watch) watch = g_new0(struct mirror_watch, 1);
    watch->notifier.before_write = before_write;
    watch->job = job_ref(job);
    watch->mirror = mirror;
    watch->source = block_node_ref(source);
    watch->unsettled = dirty_bitmap_new(NULL, mirror->length, COPY_UNIT, error);
    return watch->unsettled ? STEAL(watch) : NULL;
}

void mirror_watch_free(struct mirror_watch *watch)
{
    g_assert(!watch->is_installed);
    g_clear_pointer(&watch->unsettled, dirty_bitmap_free);
    block_node_unref(watch->source);
    job_unref(watch->job);
    g_free(watch);
}

/* What is on its way is found before it is marked again, or after that. */
void mirror_watch_begin(struct mirror_watch *watch)
{
    struct mirror *mirror = watch->mirror;

    pthread_mutex_lock(&mirror->watch_lock);
    if (!mirror->is_parted) {
        copy_engine_find_unsettled(mirror->engine, mirror->bitmap, watch->unsettled);
    }
    pthread_mutex_unlock(&mirror->watch_lock);
    block_node_add_notifier(watch->source, &watch->notifier);
    watch->is_installed = true;
}

static void uninstall(void *data)
{
    struct mirror_watch *watch = data;

    block_node_remove_notifier(watch->source, &watch->notifier);
    watch->is_installed = false;
}

void mirror_watch_end(struct mirror_watch *watch)
{
    if (watch->is_installed) {
        AUTO(block_drain) drain = block_drain_begin(&watch->source, 1, BLOCK_PERM_WRITE);

        main_loop_call_wait(uninstall, watch);
    }
}

/* The target was read before: what the mirror, or a guest that has it for its disk, did to it
 * later is not there. */
int mirror_watch_settle(struct mirror_watch *watch, const void *source, void *target,
                        uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes, at = offset, start, size;

    while (at < end &&
           dirty_bitmap_next_range(watch->unsettled, at, end, UINT64_MAX, &start, &size)) {
        memcpy((char *)target + (start - offset), (const char *)source + (start - offset), size);
        at = start + size;
    }
    SCOPE_LOCK(&watch->mirror->watch_lock);
    return watch->mirror->is_parted ? -ECANCELED : 0;
}

int mirror_watch_copy_again(struct mirror_watch *watch, uint64_t offset, uint64_t bytes)
{
    struct mirror *mirror = watch->mirror;
    SCOPE_LOCK(&mirror->watch_lock);

    if (mirror->is_parted) {
        return -ECANCELED;
    }
    dirty_bitmap_set(watch->unsettled, offset, bytes);
    dirty_bitmap_set(mirror->bitmap, offset, bytes);
    copy_engine_wake(mirror->engine);
    return 0;
}
