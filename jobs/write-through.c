/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/write-through.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/thread.h"

/* As many requests as are written at once; more wait, each up to its limit. */
#define THREADS_MAX 64u

/* What is to be copied of a granule beside what a guest writes: larger ones are left marked. */
#define WHOLE_MAX (4 * MIB)

/* At the end: how long what is in flight gets before it is cut off, and after that once more. */
#define END_GRACE_NS     NS_PER_SECOND
#define CUT_OFF_AGAIN_NS (100 * NS_PER_MS)

/* How a change gets to the target. */
enum through_way {
    THROUGH_DATA,   /* the guest's data, at the same time as to the source */
    THROUGH_ZEROES, /* zeroes, at the same time */
    THROUGH_WHOLE,  /* whole granules, as the source has them after the change */
    THROUGH_STATUS, /* a discard: zeroes, if that is what the source has then */
    THROUGH_NOT,    /* it is marked */
};

/* A change that is written through; the guest's thread and that which writes share it. */
struct through_request {
    struct copy_run run; /* whole granules: in flight until both are done */
    struct write_through *through;
    int64_t deadline_ns;
    enum through_way way;
    uint64_t offset, bytes; /* what goes to the target */
    uint64_t from, to;      /* what should: the rest of it is marked */
    void *buffer;           /* the data; NULL: zeroes */
    _Atomic unsigned users;

    /* The lock of write_through. */
    pthread_cond_t done;
    bool is_queued;
    bool is_done;
    bool is_left; /* by its guest */
    TAILQ_ENTRY(through_request) entry;
};

static struct write_through *through_of(struct write_follower *follower)
{
    return (struct write_through *)((char *)follower - offsetof(struct write_through, follower));
}

static void mark(struct write_through *through, uint64_t offset, uint64_t end)
{
    if (offset < end) {
        dirty_bitmap_set(through->options.bitmap, offset, end - offset);
    }
}

static void mark_all(struct through_request *request)
{
    mark(request->through, request->run.offset, request->run.end);
}

/* The last of the two to be done lets others into the range. */
static void release(struct through_request *request)
{
    if (atomic_fetch_sub(&request->users, 1) == 1) {
        copy_engine_leave(request->through->options.engine, &request->run);
        pthread_cond_destroy(&request->done);
        free(request->buffer);
        g_free(request);
    }
}

/* ---- The threads that write to the target ---------------------------------------------------- */

/* Lock not held. Looks at the target only: the guest may be gone, and the source drained. */
static void perform(struct through_request *request)
{
    struct copy_engine *engine = request->through->options.engine;
    const struct write_through_options *options = &request->through->options;
    int status = copy_engine_write(engine, request->buffer, request->offset, request->bytes);

    options->written(options->data, request->offset, request->bytes, status == 0);
    if (status < 0) {
        mark_all(request);
        copy_engine_write_failed(engine, request->offset, -status);
    }
}

/* Lock held; dropped to write. */
static void serve(struct write_through *through)
{
    struct through_request *request = TAILQ_FIRST(&through->queue);

    TAILQ_REMOVE(&through->queue, request, entry);
    request->is_queued = false;
    pthread_mutex_unlock(&through->lock);
    perform(request);
    pthread_mutex_lock(&through->lock);
    request->is_done = true;
    if (request->is_left) {
        atomic_fetch_sub(&through->late, 1);
    }
    pthread_cond_signal(&request->done);
    pthread_mutex_unlock(&through->lock);
    release(request);
    pthread_mutex_lock(&through->lock);
    if (--through->in_flight == 0) {
        pthread_cond_broadcast(&through->ended);
    }
}

static void *through_thread(void *data)
{
    struct write_through *through = data;
    GUEST_WAITS_SCOPE(through->options.waits);
    SCOPE_LOCK(&through->lock);

    while (true) {
        if (!TAILQ_EMPTY(&through->queue)) {
            serve(through);
        } else if (through->is_over) {
            return NULL;
        } else {
            pthread_cond_wait(&through->work, &through->lock);
        }
    }
}

/* Lock held. False if there is no thread at all. */
static bool have_threads(struct write_through *through)
{
    unsigned wanted = through->in_flight + 1;
    pthread_t thread;

    if (through->threads->len < MIN_OF(wanted, THREADS_MAX) &&
        thread_create(&thread, through_thread, through) == 0) {
        g_ptr_array_add(through->threads, (void *)thread);
    }
    return through->threads->len > 0;
}

/* False if nobody will write it: it is to be marked. */
static bool submit(struct through_request *request)
{
    struct write_through *through = request->through;
    SCOPE_LOCK(&through->lock);

    if (through->is_over || !have_threads(through)) {
        return false;
    }
    atomic_fetch_add(&request->users, 1);
    request->is_queued = true;
    through->in_flight++;
    TAILQ_INSERT_TAIL(&through->queue, request, entry);
    pthread_cond_signal(&through->work);
    return true;
}

/* ---- The guest's thread ---------------------------------------------------------------------- */

static void tell_late(struct write_through *through, uint64_t offset)
{
    int64_t now_ns = clock_now_ns();
    int64_t not_before_ns = atomic_load(&through->not_before_ns);

    /* Of those that wait at the same time the first one tells. */
    if (now_ns >= not_before_ns &&
        atomic_compare_exchange_strong(&through->not_before_ns, &not_before_ns,
                                       now_ns + through->options.limit_ns)) {
        through->options.is_late(through->options.data, offset);
    }
}

/* Lock held. What nobody has begun to write need not be written any more. */
static void leave(struct through_request *request)
{
    struct write_through *through = request->through;

    request->is_left = true;
    if (request->is_queued) {
        TAILQ_REMOVE(&through->queue, request, entry);
        if (--through->in_flight == 0) {
            pthread_cond_broadcast(&through->ended);
        }
        atomic_fetch_sub(&request->users, 1); /* not the last one */
    } else {
        atomic_fetch_add(&through->late, 1);
    }
}

/* Until it is on the target, or the time is over. */
static void wait_until_done(struct through_request *request)
{
    struct write_through *through = request->through;
    struct guest_wait wait = {0};

    pthread_mutex_lock(&through->lock);
    if (!request->is_done) {
        guest_wait_for(&wait, through->options.waits);
    }
    while (!request->is_done && clock_cond_wait_until(&request->done, &through->lock,
                                                      request->deadline_ns) != ETIMEDOUT) {
    }
    bool is_late = !request->is_done;
    if (is_late) {
        leave(request);
    }
    pthread_mutex_unlock(&through->lock);
    guest_wait_end(&wait);
    if (is_late) {
        mark_all(request);
        tell_late(through, request->offset);
    }
}

/* Whether a granule that the change covers only in part is to be copied. */
static bool has_marked_edge(const struct through_request *request, uint64_t offset, uint64_t end)
{
    const struct dirty_bitmap *bitmap = request->through->options.bitmap;

    return (request->run.offset < offset && dirty_bitmap_get(bitmap, request->run.offset)) ||
           (end < request->run.end && dirty_bitmap_get(bitmap, request->run.end - 1));
}

static enum through_way way_of_write(const struct through_request *request,
                                     const struct block_change *change)
{
    const struct copy_run *run = &request->run;
    uint64_t end = change->offset + change->bytes;
    bool whole_only = request->through->options.whole_granules;
    bool is_partial = run->offset < change->offset || end < run->end;

    if (!is_partial || !(whole_only || has_marked_edge(request, change->offset, end))) {
        return THROUGH_DATA;
    }
    if (run->end - run->offset <= WHOLE_MAX) {
        return THROUGH_WHOLE;
    }
    return whole_only ? THROUGH_NOT : THROUGH_DATA;
}

/* What a granule was marked for is over when all of it is written anew. */
static void unmark(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t end)
{
    if (offset < end && dirty_bitmap_count(bitmap) > 0 &&
        dirty_bitmap_next_dirty(bitmap, offset, end) != UINT64_MAX) {
        dirty_bitmap_reset(bitmap, offset, end - offset);
    }
}

static enum through_way way_of(const struct through_request *request,
                               const struct block_change *change)
{
    switch (change->operation) {
    case BLOCK_OPERATION_WRITE:
        return way_of_write(request, change);
    case BLOCK_OPERATION_DISCARD:
        return THROUGH_STATUS;
    default:
        return THROUGH_ZEROES;
    }
}

/*
 * What goes to the target, and how; in the range, before the change. Each change takes the marks
 * from the granules that it overwrites, and copies the rest of those it overwrites in part: else
 * writers to one place, one after the other, could keep the engine from ever copying it.
 */
static void plan(struct through_request *request, const struct block_change *change)
{
    struct dirty_bitmap *bitmap = request->through->options.bitmap;
    uint64_t granularity = dirty_bitmap_granularity(bitmap);
    const struct copy_run *run = &request->run;
    uint64_t end = change->offset + change->bytes;
    uint64_t whole_start = align_up(change->offset, granularity);
    uint64_t whole_end = end == run->end ? end : align_down(end, granularity);

    request->way = way_of(request, change);
    if (request->way == THROUGH_WHOLE) {
        whole_start = run->offset;
        whole_end = run->end;
    }
    bool is_whole = request->way == THROUGH_WHOLE || request->through->options.whole_granules;
    request->from = is_whole ? run->offset : change->offset;
    request->to = is_whole ? run->end : end;
    request->offset = is_whole ? whole_start : change->offset;
    if (is_whole && whole_start >= whole_end) {
        request->way = THROUGH_NOT;
    }
    if (request->way != THROUGH_NOT) {
        request->bytes = (is_whole ? whole_end : end) - request->offset;
        unmark(bitmap, whole_start, whole_end);
    }
}

/* The guest's buffer is his again when he is answered, which may be before the target has all. */
static bool take_data(struct through_request *request, const struct block_change *change)
{
    if (request->way == THROUGH_DATA || request->way == THROUGH_WHOLE) {
        request->buffer = block_node_alloc_buffer(request->through->options.source, request->bytes);
        if (!request->buffer) {
            return false;
        }
    }
    if (request->way == THROUGH_DATA) {
        memcpy(request->buffer, change->buffer, request->bytes);
    }
    return true;
}

/* A discard need not have done anything: what reads as zeroes now is the longest part that does. */
static void find_zeroes(struct through_request *request)
{
    const struct write_through_options *options = &request->through->options;
    uint64_t granularity = options->whole_granules ? dirty_bitmap_granularity(options->bitmap) : 1;
    uint64_t end = request->offset + request->bytes;
    uint64_t start = request->offset;
    struct block_extent extent;

    request->bytes = 0;
    for (uint64_t at = start; at < end; at += extent.bytes) {
        if (block_node_block_status_chain(options->source, at, end - at, &extent, NULL) < 0) {
            break; /* the engine finds out what is wrong with the source */
        }
        if (!(extent.flags & BLOCK_STATUS_ZERO)) {
            start = align_up(at + extent.bytes, granularity);
            continue;
        }
        uint64_t zero_end =
            at + extent.bytes == end ? end : align_down(at + extent.bytes, granularity);
        if (zero_end > start && zero_end - start > request->bytes) {
            request->offset = start;
            request->bytes = zero_end - start;
        }
    }
}

static bool submit_whole(struct through_request *request)
{
    return block_node_pread(request->through->options.source, request->buffer, request->offset,
                            request->bytes, 0) == 0 &&
           submit(request);
}

/*
 * What a discard has left is brought there, too, where it is not too much to read: a guest whose
 * discards do not fit the source's clusters would otherwise keep the mirror from ever being in
 * step.
 */
static bool submit_discarded(struct through_request *request)
{
    find_zeroes(request);
    if (request->offset == request->from && request->bytes == request->to - request->from) {
        return submit(request);
    }
    if (request->run.end - request->run.offset > WHOLE_MAX) {
        return request->bytes > 0 && submit(request);
    }
    request->from = request->offset = request->run.offset;
    request->to = request->run.end;
    request->bytes = request->to - request->from;
    request->buffer = block_node_alloc_buffer(request->through->options.source, request->bytes);
    return request->buffer && submit_whole(request);
}

/* After the source has been changed. */
static bool submit_result(struct through_request *request)
{
    return request->way == THROUGH_STATUS ? submit_discarded(request) : submit_whole(request);
}

static int change_both(struct through_request *request, const struct block_change *change,
                       struct block_change_rest *rest)
{
    struct write_through *through = request->through;

    plan(request, change);
    bool is_taken = request->way != THROUGH_NOT && take_data(request, change);
    bool is_at_once = request->way == THROUGH_DATA || request->way == THROUGH_ZEROES;
    bool is_submitted = is_taken && is_at_once && submit(request);
    int status = block_change_go_on(rest);

    if (status == 0 && is_taken && !is_at_once) {
        is_submitted = submit_result(request);
    }
    if (status < 0 || !is_submitted) {
        mark_all(request); /* a write that failed may have changed something */
    } else {
        mark(through, request->from, request->offset);
        mark(through, request->offset + request->bytes, request->to);
    }
    if (is_submitted) {
        wait_until_done(request);
    }
    release(request);
    return status;
}

/* The change's range, ours alone; or NULL: it is to be marked. */
static struct through_request *enter(struct write_through *through,
                                     const struct block_change *change)
{
    uint64_t granularity = dirty_bitmap_granularity(through->options.bitmap);
    uint64_t length = dirty_bitmap_length(through->options.bitmap);

    if (!write_through_works(through) ||
        (change->operation == BLOCK_OPERATION_WRITE && !change->buffer)) {
        return NULL; /* what the kernel copies is no guest's write but a job's */
    }
    struct through_request *request = g_new0(struct through_request, 1);
    request->through = through;
    request->deadline_ns = clock_now_ns() + through->options.limit_ns;
    request->run.offset = align_down(change->offset, granularity);
    request->run.end = MIN_OF(align_up(change->offset + change->bytes, granularity), length);
    int status = copy_engine_enter(through->options.engine, &request->run, request->deadline_ns);
    if (status < 0) {
        g_free(request);
        if (status == -ETIMEDOUT) {
            tell_late(through, change->offset);
        }
        return NULL;
    }
    atomic_init(&request->users, 1);
    pthread_cond_init(&request->done, NULL);
    return request;
}

static void count(struct write_through *through, const struct block_change *change)
{
    uint64_t granularity = dirty_bitmap_granularity(through->options.bitmap);
    uint64_t bytes = align_up(change->offset + change->bytes, granularity) -
                     align_down(change->offset, granularity);

    atomic_fetch_add_explicit(&through->written, bytes, memory_order_relaxed);
}

static int follow(struct write_follower *follower, const struct block_change *change,
                  struct block_change_rest *rest)
{
    struct write_through *through = through_of(follower);
    struct through_request *request = enter(through, change);

    count(through, change);
    if (request) {
        return change_both(request, change, rest);
    }
    int status = block_change_go_on(rest);
    mark(through, change->offset, change->offset + change->bytes);
    return status;
}

/* ---- Life ------------------------------------------------------------------------------------ */

void write_through_init(struct write_through *through, const struct write_through_options *options)
{
    through->follower.follow = follow;
    through->options = *options;
    TAILQ_INIT(&through->queue);
    through->threads = g_ptr_array_new();
    pthread_mutex_init(&through->lock, NULL);
    pthread_cond_init(&through->work, NULL);
    pthread_cond_init(&through->ended, NULL);
}

void write_through_set(struct write_through *through, bool is_on)
{
    atomic_store(&through->is_on, is_on);
}

bool write_through_works(struct write_through *through)
{
    return atomic_load(&through->is_on) && atomic_load(&through->late) == 0 &&
           clock_now_ns() >= atomic_load(&through->not_before_ns);
}

void write_through_end(struct write_through *through)
{
    int64_t deadline_ns = clock_now_ns() + END_GRACE_NS;

    write_through_set(through, false);
    pthread_mutex_lock(&through->lock);
    through->is_over = true;
    pthread_cond_broadcast(&through->work);
    while (through->in_flight) {
        if (clock_cond_wait_until(&through->ended, &through->lock, deadline_ns) == ETIMEDOUT) {
            pthread_mutex_unlock(&through->lock);
            copy_engine_cut_off_target(through->options.engine);
            pthread_mutex_lock(&through->lock);
            deadline_ns = clock_now_ns() + CUT_OFF_AGAIN_NS;
        }
    }
    pthread_mutex_unlock(&through->lock);
    for (unsigned i = 0; i < through->threads->len; i++) {
        pthread_join((pthread_t)g_ptr_array_index(through->threads, i), NULL);
    }
    g_ptr_array_set_size(through->threads, 0);
}

void write_through_destroy(struct write_through *through)
{
    g_assert(through->threads->len == 0 && TAILQ_EMPTY(&through->queue));
    g_ptr_array_unref(through->threads);
    pthread_mutex_destroy(&through->lock);
    pthread_cond_destroy(&through->work);
    pthread_cond_destroy(&through->ended);
}
