/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The loss of a map: what is left out of it from here on must never be missed by who believes the
 * file later. So before the first such change the file says that it is lost, durably; or, where its
 * storage fails or does not answer, the disk's own file does (block/tracking-witness.h).
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/thread.h"
#include "block/timed-call.h"
#include "block/tracking-io.h"
#include "block/tracking-state.h"
#include "block/tracking-witness.h"

/* The tracking file alone has this part of the time to say it. */
#define WITNESS_DELAY_PART 8

/* What the two threads need, who may see the tracker's file exchanged. */
struct tracking_marking {
    struct change_tracker *tracker;
    struct tracking_file *file; /* a reference */
    enum tracking_loss loss;
    char *disk_paths[2]; /* where the witness goes; NULL: nowhere */
    pthread_t marking, witnessing;
    bool has_marking, has_witnessing;
    pid_t process;
    /* Guarded by the loss lock. */
    bool is_marked, is_witnessed; /* durably */
    unsigned running;
};

/* ---- Saying so ------------------------------------------------------------------------------- */

static void remove_witness(const struct tracking_marking *marking)
{
    for (size_t i = 0; i < G_N_ELEMENTS(marking->disk_paths); i++) {
        tracking_witness_remove(marking->disk_paths[i], marking->file->uuid);
    }
}

/*
 * One of the two has ended. One is enough for guests to go on; and if neither has worked, there is
 * nothing to wait for. What the file says itself needs no witness.
 */
static void end_one(struct tracking_marking *marking, bool *is_done, int status)
{
    struct change_tracker *tracker = marking->tracker;

    pthread_mutex_lock(&tracker->loss_lock);
    *is_done = status == 0;
    marking->running--;
    if (*is_done || !marking->running) {
        atomic_store(&tracker->is_settled, true);
    }
    bool is_redundant = marking->is_marked && marking->is_witnessed;
    pthread_cond_broadcast(&tracker->settled);
    pthread_mutex_unlock(&tracker->loss_lock);
    if (is_redundant) {
        remove_witness(marking);
    }
}

/* Not by who finds it: that may be a guest, and storage that failed may take its time. */
static void *mark(void *data)
{
    struct tracking_marking *marking = data;

    end_one(marking, &marking->is_marked, tracking_file_mark_lost(marking->file, marking->loss));
    return NULL;
}

/* Whether the file cannot say it, or not soon. */
static bool is_wanted(struct tracking_marking *marking)
{
    struct change_tracker *tracker = marking->tracker;
    int64_t deadline = clock_now_ns() + (int64_t)(tracking_io.timeout_ns / 2 / WITNESS_DELAY_PART);
    SCOPE_LOCK(&tracker->loss_lock);

    while (!marking->is_marked && marking->running > 1 &&
           clock_cond_wait_until(&tracker->settled, &tracker->loss_lock, deadline) == 0) {
    }
    return !marking->is_marked;
}

static void *witness(void *data)
{
    struct tracking_marking *marking = data;
    int status = -ECANCELED;

    if (is_wanted(marking)) {
        status = tracking_io.put_witness(marking->disk_paths[0], marking->file->uuid);
        if (status == 0 && marking->disk_paths[1]) {
            status = tracking_io.put_witness(marking->disk_paths[1], marking->file->uuid);
        }
    }
    end_one(marking, &marking->is_witnessed, status);
    return NULL;
}

/* loss_lock held. */
static void start_marking(struct change_tracker *tracker)
{
    tracker->settled_at_latest = clock_now_ns() + (int64_t)tracking_io.timeout_ns / 2;
    if (!tracker->file) {
        atomic_store(&tracker->is_settled, true);
        return;
    }
    struct tracking_marking *marking = g_new0(struct tracking_marking, 1);
    marking->tracker = tracker;
    marking->file = tracking_file_ref(tracker->file);
    marking->loss = tracker->loss;
    marking->disk_paths[0] = g_strdup(tracker->disk_path);
    marking->disk_paths[1] = g_strdup(tracker->disk_path_before);
    marking->process = getpid();
    tracking_file_note_loss(marking->file, marking->loss);
    /* Both wait for the lock before they look at how many they are. */
    marking->has_marking = thread_create(&marking->marking, mark, marking) == 0;
    marking->has_witnessing =
        marking->disk_paths[0] && thread_create(&marking->witnessing, witness, marking) == 0;
    marking->running = (unsigned)marking->has_marking + marking->has_witnessing;
    atomic_store(&tracker->is_settled, !marking->running);
    tracker->marking = marking;
}

static void free_marking(struct tracking_marking *marking)
{
    tracking_file_unref(marking->file);
    g_free(marking->disk_paths[0]);
    g_free(marking->disk_paths[1]);
    g_free(marking);
}

/* loss_lock held. */
static bool wait_for_threads(struct change_tracker *tracker, const struct tracking_marking *marking)
{
    int64_t deadline = clock_now_ns() + (int64_t)tracking_io.timeout_ns;

    while (marking->running &&
           clock_cond_wait_until(&tracker->settled, &tracker->loss_lock, deadline) == 0) {
    }
    return !marking->running;
}

static void end_thread(bool has_thread, pthread_t thread, bool has_ended)
{
    if (has_thread && has_ended) {
        pthread_join(thread, NULL);
    } else if (has_thread) {
        pthread_detach(thread);
    }
}

bool tracking_end_marking(struct change_tracker *tracker)
{
    pthread_mutex_lock(&tracker->loss_lock);
    struct tracking_marking *marking = STEAL(tracker->marking);
    /* A thread of the process that forked is not here. */
    bool is_here = marking && marking->process == getpid();
    bool has_ended = !is_here || wait_for_threads(tracker, marking);
    pthread_mutex_unlock(&tracker->loss_lock);
    if (is_here) {
        end_thread(marking->has_marking, marking->marking, has_ended);
        end_thread(marking->has_witnessing, marking->witnessing, has_ended);
    }
    if (marking && has_ended) {
        free_marking(marking);
    }
    return has_ended;
}

/* ---- Loss ------------------------------------------------------------------------------------ */

/* loss_lock held. Takes the reason. Returns false if it was lost before. */
static bool lose(struct change_tracker *tracker, enum tracking_loss loss, char *reason)
{
    if (atomic_load(&tracker->is_lost)) {
        g_free(reason);
        return false;
    }
    tracker->loss = loss;
    tracker->reason = reason;
    start_marking(tracker);
    atomic_store(&tracker->is_lost, true);
    return true;
}

void tracking_lose(struct change_tracker *tracker, enum tracking_loss loss, const char *detail)
{
    SCOPE_LOCK(&tracker->loss_lock);

    /* Names of files in it are bytes, and who reads it wants text. */
    g_autofree char *shown = detail ? g_utf8_make_valid(detail, -1) : NULL;

    if (lose(tracker, loss,
             shown ? g_strdup_printf("%s: %s", tracking_loss_text(loss), shown)
                   : g_strdup(tracking_loss_text(loss)))) {
        g_warning("Disk '%s' is no longer tracked, the next backup has to be a full one: %s (%s)",
                  tracker->device, tracker->reason, tracker->path);
        event_emit("BLOCK_TRACKING_LOST", EVENT_STRING("device", tracker->device),
                   EVENT_STRING("reason", tracking_loss_names[loss]),
                   EVENT_STRING("message", tracker->reason));
    }
}

void tracking_end_quietly(struct change_tracker *tracker, enum tracking_loss loss,
                          const char *reason)
{
    SCOPE_LOCK(&tracker->loss_lock);

    lose(tracker, loss, g_strdup(reason));
}

void tracking_wait_until_settled(struct change_tracker *tracker)
{
    SCOPE_LOCK(&tracker->loss_lock);

    while (!atomic_load(&tracker->is_settled)) {
        if (clock_cond_wait_until(&tracker->settled, &tracker->loss_lock,
                                  tracker->settled_at_latest)) {
            atomic_store(&tracker->is_settled, true);
        }
    }
}

int tracking_check_advising(struct change_tracker *tracker, const char *advice, GError **error)
{
    SCOPE_LOCK(&tracker->loss_lock);

    return atomic_load(&tracker->is_lost)
               ? block_error(error, EIO, "Disk '%s' is not tracked%s: %s", tracker->device, advice,
                             tracker->reason)
               : 0;
}

int tracking_check(struct change_tracker *tracker, GError **error)
{
    return tracking_check_advising(tracker, "", error);
}

/* ---- What a loss is said of ------------------------------------------------------------------ */

struct late_mark {
    struct tracking_file *file; /* a reference */
    enum tracking_loss loss;
};

static void late_mark_free(void *data)
{
    struct late_mark *late = data;

    tracking_file_unref(late->file);
    g_free(late);
}

static int mark_late(struct timed_call *call, void *data)
{
    const struct late_mark *late = data;

    return tracking_file_mark_lost(late->file, late->loss);
}

/* The map was lost while this file was made, and the threads know nothing of it. */
static void mark_too(struct tracking_file *file, enum tracking_loss loss)
{
    struct late_mark *late = g_new0(struct late_mark, 1);
    int64_t deadline = clock_now_ns() + (int64_t)tracking_io.timeout_ns / 2;
    bool is_left;

    late->file = tracking_file_ref(file);
    late->loss = loss;
    tracking_file_note_loss(file, loss);
    timed_call_run(mark_late, late, late_mark_free, deadline, &is_left);
    if (!is_left) {
        late_mark_free(late);
    }
}

void tracking_take_file(struct change_tracker *tracker, struct tracking_file *file)
{
    pthread_mutex_lock(&tracker->loss_lock);
    tracker->file = file;
    bool is_lost = atomic_load(&tracker->is_lost);
    enum tracking_loss loss = tracker->loss;
    pthread_mutex_unlock(&tracker->loss_lock);
    if (is_lost) {
        mark_too(file, loss);
    }
}

void tracking_take_successor(struct change_tracker *tracker, struct tracking_file *successor)
{
    pthread_mutex_lock(&tracker->loss_lock);
    bool is_lost = atomic_load(&tracker->is_lost);
    enum tracking_loss loss = tracker->loss;
    if (!is_lost) {
        tracker->file->successor = tracking_file_ref(successor);
    }
    pthread_mutex_unlock(&tracker->loss_lock);
    if (is_lost) {
        mark_too(successor, loss);
    }
    tracking_file_unref(successor);
}

void tracking_note_disk_path(struct change_tracker *tracker, const char *path)
{
    SCOPE_LOCK(&tracker->loss_lock);

    g_free(tracker->disk_path_before);
    tracker->disk_path_before = tracker->disk_path;
    tracker->disk_path = g_strdup(path);
}
