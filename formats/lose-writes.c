/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes that share a block of the log wait for each other, so that the log has the disk's order.
 * A discard becomes zeroes wherever the child can write those cheaply, because a replay must know
 * what a discard left behind.
 */
#include "formats/lose-writes.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/event.h"
#include "block/request.h"
#include "block/tracked.h"
#include "formats/blkdebug-rules.h"
#include "formats/write-log.h"

/* Old contents are read in pieces of this size. */
#define READ_SIZE MIB

const char *const lose_writes_end_names[] = {"node", "process", NULL};

struct lose_writes_state {
    struct tracked_requests tracked; /* writes, by blocks of the log; waited for without lock */
    pthread_mutex_t lock;            /* guards what follows; innermost, never held across I/O */
    pthread_cond_t changed;
    struct write_log log;
    uint64_t max_log;
    uint64_t writes;
    unsigned in_flight; /* requests of all kinds that may reach the child */
    bool is_ending;     /* no request starts any more */
    bool has_ended;     /* every request fails */
    bool has_warned;
    uint64_t at_write; /* 0: not armed */
    struct lose_writes_plan plan;
};

struct lose_writes_options {
    uint64_t max_log;
};

static const struct block_option lose_writes_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "The node that writes are lost from."},
    {"max-log", BLOCK_OPTION_SIZE, offsetof(struct lose_writes_options, max_log),
     .default_text = "256M",
     .help = "Most memory for the writes since the last flush and what was there before them; a "
             "write that needs more fails with ENOBUFS."},
    {NULL},
};

static int lose_writes_open(struct block_node *node, void *values, GError **error)
{
    struct lose_writes_state *state = block_node_state(node);
    const struct lose_writes_options *options = values;

    node->limits = node->file->limits;
    tracked_requests_init(&state->tracked);
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->changed, NULL);
    write_log_init(&state->log);
    state->max_log = options->max_log;
    return 0;
}

static void lose_writes_close(struct block_node *node)
{
    struct lose_writes_state *state = block_node_state(node);

    lose_writes_plan_clear(&state->plan);
    write_log_destroy(&state->log);
    tracked_requests_destroy(&state->tracked);
    pthread_mutex_destroy(&state->lock);
    pthread_cond_destroy(&state->changed);
}

void lose_writes_plan_clear(struct lose_writes_plan *plan)
{
    g_free(plan->numbers);
    *plan = (struct lose_writes_plan){0};
}

/* ---- The end -------------------------------------------------------------------------------- */

struct draw {
    const struct lose_writes_plan *plan;
    const struct write_log_entry *last_lost;
    uint64_t lost;
};

static bool is_chosen(const struct lose_writes_plan *plan, uint64_t number)
{
    for (size_t i = 0; i < plan->number_count; i++) {
        if (plan->numbers[i] == number) {
            return true;
        }
    }
    return !plan->has_numbers;
}

/* The draw depends on the seed, the write and the place only, not on what else is drawn. */
static bool survives(void *data, const struct write_log_entry *entry, uint64_t offset)
{
    struct draw *draw = data;
    const struct lose_writes_plan *plan = draw->plan;
    uint64_t random = plan->seed;

    if (!is_chosen(plan, entry->number)) {
        return true;
    }
    random = blkdebug_random(&random) ^ entry->number;
    random = blkdebug_random(&random) ^ offset;
    if (blkdebug_random(&random) % 100 >= plan->probability) {
        return true;
    }
    draw->lost += draw->last_lost != entry;
    draw->last_lost = entry;
    return false;
}

static int put_block(struct block_node *node, uint64_t number)
{
    struct lose_writes_state *state = block_node_state(node);
    const uint8_t *contents = write_log_block(&state->log, number);
    uint64_t offset = number * WRITE_LOG_BLOCK;
    uint64_t bytes = MIN_OF(WRITE_LOG_BLOCK, block_node_length(node->file) - offset);

    return contents ? block_node_pwrite(node->file, contents, offset, bytes, 0)
                    : block_node_write_zeroes(node->file, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);
}

/* Nothing else is in flight. Goes on after an error, which leaves the fewest wrong blocks. */
static int take_back(struct block_node *node, const struct lose_writes_plan *plan,
                     struct lose_writes_result *result)
{
    struct lose_writes_state *state = block_node_state(node);
    struct draw draw = {.plan = plan};
    g_autoptr(GArray) numbers = NULL;
    const struct write_log_entry *entry;
    uint64_t unflushed = 0;
    int status = 0, flushed;

    TAILQ_FOREACH (entry, &state->log.entries, entry) {
        unflushed += !entry->is_durable;
    }
    write_log_replay(&state->log, plan->tear, survives, &draw);
    numbers = write_log_block_numbers(&state->log);
    for (unsigned i = 0; i < numbers->len; i++) {
        int put = put_block(node, g_array_index(numbers, uint64_t, i));

        status = status < 0 ? status : put;
    }
    flushed = block_node_flush(node->file);
    *result = (struct lose_writes_result){
        .lost = draw.lost,
        .kept = unflushed - draw.lost,
    };
    return status < 0 ? status : flushed;
}

static void end_process(void)
{
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

/*
 * Take writes back and end. own: requests in flight that are the caller's. -EALREADY if somebody
 * else is at it, or was.
 */
static int lose(struct block_node *node, const struct lose_writes_plan *plan, unsigned own,
                struct lose_writes_result *result)
{
    struct lose_writes_state *state = block_node_state(node);
    int status;

    pthread_mutex_lock(&state->lock);
    if (state->is_ending) {
        pthread_mutex_unlock(&state->lock);
        return -EALREADY;
    }
    state->is_ending = true;
    while (state->in_flight > own) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
    pthread_mutex_unlock(&state->lock);
    status = take_back(node, plan, result);
    if (plan->end == LOSE_WRITES_END_PROCESS) {
        end_process();
    }
    event_emit("LOSE_WRITES_END", EVENT_STRING("node-name", node->name),
               EVENT_INT("lost", result->lost), EVENT_INT("kept", result->kept),
               EVENT_STRING("error", status < 0 ? block_strerror(-status) : NULL));
    SCOPE_LOCK(&state->lock);
    state->has_ended = true;
    pthread_cond_broadcast(&state->changed);
    return status;
}

/* ---- Requests ------------------------------------------------------------------------------- */

static int begin_request(struct lose_writes_state *state)
{
    SCOPE_LOCK(&state->lock);

    while (state->is_ending && !state->has_ended) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
    if (state->has_ended) {
        return -EIO;
    }
    state->in_flight++;
    return 0;
}

static void end_request(struct lose_writes_state *state)
{
    SCOPE_LOCK(&state->lock);

    state->in_flight--;
    if (state->is_ending) {
        pthread_cond_broadcast(&state->changed);
    }
}

/* A write on its way. */
struct change {
    enum { CHANGE_WRITE, CHANGE_ZEROES, CHANGE_DISCARD } type;
    const void *buffer;
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
};

/* Whether the log may grow by this; says once why not. Lock held. */
static int check_room(struct block_node *node, uint64_t bytes)
{
    struct lose_writes_state *state = block_node_state(node);

    if (bytes <= state->max_log && state->log.bytes <= state->max_log - bytes) {
        return 0;
    }
    if (!state->has_warned) {
        g_warning("Node '%s': the writes since the last flush need more than max-log (%" PRIu64
                  " bytes); writes fail until there is a flush",
                  node->name, state->max_log);
        state->has_warned = true;
    }
    return -ENOBUFS;
}

/* Lock held. */
static bool has_blocks(const struct write_log *log, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = offset; at < offset + bytes; at += WRITE_LOG_BLOCK) {
        if (!write_log_has_block(log, at / WRITE_LOG_BLOCK)) {
            return false;
        }
    }
    return true;
}

/*
 * Pin the old contents of a range of whole blocks, which no other write is in. Those of a block
 * that a flush lets go of meanwhile are what was read.
 */
static int hold_piece(struct block_node *node, uint8_t *buffer, uint64_t offset, uint64_t bytes)
{
    struct lose_writes_state *state = block_node_state(node);
    uint64_t readable = MIN_OF(bytes, block_node_length(node->file) - offset);
    int status;

    pthread_mutex_lock(&state->lock);
    bool is_held = has_blocks(&state->log, offset, bytes);
    if (is_held) {
        write_log_pin(&state->log, offset, bytes);
    }
    pthread_mutex_unlock(&state->lock);
    if (is_held) {
        return 0;
    }
    status = block_node_pread(node->file, buffer, offset, readable, 0);
    if (status < 0) {
        return status;
    }
    memset(buffer + readable, 0, bytes - readable);
    SCOPE_LOCK(&state->lock);
    for (uint64_t at = 0; at < bytes; at += WRITE_LOG_BLOCK) {
        uint64_t block = (offset + at) / WRITE_LOG_BLOCK;

        if (!write_log_has_block(&state->log, block)) {
            write_log_add_block(&state->log, block, buffer + at);
        }
    }
    write_log_pin(&state->log, offset, bytes);
    return 0;
}

static int check_room_now(struct block_node *node)
{
    struct lose_writes_state *state = block_node_state(node);
    SCOPE_LOCK(&state->lock);

    return check_room(node, 0);
}

/* All of the range is pinned, or nothing. */
static int hold_old_contents(struct block_node *node, uint64_t start, uint64_t end)
{
    struct lose_writes_state *state = block_node_state(node);
    AUTO_FREE uint8_t *buffer = block_node_alloc_buffer(node->file, MIN_OF(READ_SIZE, end - start));
    uint64_t pinned = start;
    int status = buffer ? 0 : -ENOMEM;

    while (pinned < end && status == 0) {
        uint64_t bytes = MIN_OF(READ_SIZE, end - pinned);

        status = hold_piece(node, buffer, pinned, bytes);
        if (status == 0) {
            pinned += bytes;
            status = check_room_now(node);
        }
    }
    if (status < 0) {
        SCOPE_LOCK(&state->lock);
        write_log_unpin(&state->log, start, pinned - start);
    }
    return status;
}

/* Put a write in the log. */
static int log_change(struct block_node *node, const struct change *change,
                      struct write_log_entry **entry)
{
    struct lose_writes_state *state = block_node_state(node);
    uint64_t start = align_down(change->offset, WRITE_LOG_BLOCK);
    uint64_t end = align_up(change->offset + change->bytes, WRITE_LOG_BLOCK);
    int status;

    pthread_mutex_lock(&state->lock);
    status = check_room(
        node, write_log_cost(&state->log, change->offset, change->bytes, change->buffer != NULL));
    pthread_mutex_unlock(&state->lock);
    if (status == 0) {
        status = hold_old_contents(node, start, end);
    }
    if (status < 0) {
        return status;
    }
    SCOPE_LOCK(&state->lock);
    status = check_room(
        node, write_log_cost(&state->log, change->offset, change->bytes, change->buffer != NULL));
    if (status < 0) {
        write_log_unpin(&state->log, start, end - start);
        return status;
    }
    *entry = write_log_append(&state->log, ++state->writes, change->offset, change->bytes,
                              change->buffer);
    (*entry)->is_discard = change->type == CHANGE_DISCARD;
    return 0;
}

static int make_change(struct block_node *node, const struct change *change)
{
    unsigned flags =
        change->flags & (BLOCK_REQUEST_FUA | BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK);

    return change->type == CHANGE_WRITE
               ? block_node_pwrite(node->file, change->buffer, change->offset, change->bytes, flags)
               : block_node_write_zeroes(node->file, change->offset, change->bytes, flags);
}

/* A write failed: the log shall say what is there now, as far as that can be read. */
static void log_failure(struct block_node *node, struct write_log_entry *entry)
{
    struct lose_writes_state *state = block_node_state(node);
    g_autofree uint8_t *data = g_try_malloc(entry->bytes);

    if (data && block_node_pread(node->file, data, entry->offset, entry->bytes, 0) == 0) {
        SCOPE_LOCK(&state->lock);
        write_log_set_data(&state->log, entry, g_steal_pointer(&data));
    }
}

/* The write has been made, or not. True if it was the one that writes are lost at. */
static bool settle(struct block_node *node, const struct change *change,
                   struct write_log_entry *entry, int status, struct lose_writes_plan *plan)
{
    struct lose_writes_state *state = block_node_state(node);
    bool is_armed;

    if (status < 0 && status != -ENOTSUP) {
        log_failure(node, entry);
    }
    SCOPE_LOCK(&state->lock);
    if (status == -ENOTSUP) { /* nothing has changed; the core will ask for something else */
        state->writes -= entry->number == state->writes;
        write_log_remove(&state->log, entry);
        return false;
    }
    is_armed = state->at_write && entry->number == state->at_write && !state->is_ending;
    if (is_armed) {
        *plan = state->plan;
        state->plan = (struct lose_writes_plan){0};
        state->at_write = 0;
    }
    write_log_set_done(&state->log, entry, status == 0 && change->flags & BLOCK_REQUEST_FUA);
    return is_armed;
}

static int run_change(struct block_node *node, const struct change *change)
{
    struct lose_writes_state *state = block_node_state(node);
    uint64_t start = align_down(change->offset, WRITE_LOG_BLOCK);
    uint64_t end = align_up(change->offset + change->bytes, WRITE_LOG_BLOCK);
    struct write_log_entry *entry = NULL;
    struct lose_writes_result result;
    struct lose_writes_plan plan = {0};
    struct tracked_request request;
    bool is_last = false;
    int status = begin_request(state);

    if (status < 0) {
        return status;
    }
    tracked_request_begin(&state->tracked, &request, start, end - start, true);
    status = log_change(node, change, &entry);
    if (status == 0) {
        status = make_change(node, change);
        is_last = settle(node, change, entry, status, &plan);
    }
    tracked_request_end(&state->tracked, &request);
    if (is_last && lose(node, &plan, 1, &result) != -EALREADY) {
        status = -EIO;
    }
    lose_writes_plan_clear(&plan);
    end_request(state);
    return status;
}

static int lose_writes_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                             unsigned flags)
{
    struct lose_writes_state *state = block_node_state(node);
    int status = begin_request(state);

    if (status == 0) {
        status = block_node_pread(node->file, buffer, offset, bytes, flags);
        end_request(state);
    }
    return status;
}

static int lose_writes_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                              uint64_t bytes, unsigned flags)
{
    const struct change change = {CHANGE_WRITE, buffer, offset, bytes, flags};

    return run_change(node, &change);
}

static int lose_writes_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                    unsigned flags)
{
    const struct change change = {CHANGE_ZEROES, NULL, offset, bytes, flags};

    return run_change(node, &change);
}

static int lose_writes_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    const struct change change = {CHANGE_DISCARD, NULL, offset, bytes,
                                  BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK};
    int status = run_change(node, &change);

    return status == -ENOTSUP ? 0 : status; /* a discard is advice */
}

static int lose_writes_flush(struct block_node *node)
{
    struct lose_writes_state *state = block_node_state(node);
    int status = begin_request(state);

    if (status < 0) {
        return status;
    }
    pthread_mutex_lock(&state->lock);
    uint64_t done = state->log.done;
    pthread_mutex_unlock(&state->lock);
    status = block_node_flush(node->file);
    if (status == 0) {
        SCOPE_LOCK(&state->lock);
        write_log_set_flushed(&state->log, done);
        state->has_warned = false;
    }
    end_request(state);
    return status;
}

static int lose_writes_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                                    struct block_extent *extent)
{
    struct lose_writes_state *state = block_node_state(node);
    int status = begin_request(state);

    if (status == 0) {
        status = block_node_block_status(node->file, offset, bytes, extent);
        end_request(state);
    }
    return status;
}

static int lose_writes_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct lose_writes_state *state = block_node_state(node);
    int status = begin_request(state);

    if (status == 0) {
        status = block_node_prefetch(node->file, offset, bytes);
        end_request(state);
    }
    return status;
}

/* Copies inside the kernel would pass the log by. */
static int lose_writes_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes,
                                  int *fd, uint64_t *fd_offset)
{
    return -ENOTSUP;
}

static int lose_writes_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                      uint64_t offset, uint64_t bytes)
{
    return -ENOTSUP;
}

/* Growing is never lost: it shows nothing but zeroes. */
static int lose_writes_set_length(struct block_node *node, uint64_t length,
                                  enum block_preallocation preallocation, block_progress *progress,
                                  void *progress_data, GError **error)
{
    if (length < block_node_length(node) || preallocation != BLOCK_PREALLOCATION_OFF) {
        return block_error(error, ENOTSUP,
                           "Node '%s' can only grow: a lose-writes node cannot take back more",
                           node->name);
    }
    int status = block_node_grow(node->file, length);
    return status < 0
               ? block_error_errno(error, -status, "Could not grow node '%s'", node->file->name)
               : 0;
}

const struct block_driver lose_writes_driver = {
    .name = "lose-writes",
    .description = "Plays a loss of power: takes back writes that were not flushed",
    .is_filter = true,
    .instance_size = sizeof(struct lose_writes_state),
    .options = lose_writes_option_table,
    .options_size = sizeof(struct lose_writes_options),
    .open = lose_writes_open,
    .close = lose_writes_close,
    .set_length = lose_writes_set_length,
    .pread = lose_writes_pread,
    .pwrite = lose_writes_pwrite,
    .handles_fua = true,
    .write_zeroes = lose_writes_write_zeroes,
    .discard = lose_writes_discard,
    .flush = lose_writes_flush,
    .block_status = lose_writes_block_status,
    .host_range = lose_writes_host_range,
    .pwrite_from_fd = lose_writes_pwrite_from_fd,
    .prefetch = lose_writes_prefetch,
};

/* ---- At run time ---------------------------------------------------------------------------- */

static struct lose_writes_state *state_of(struct block_node *node, GError **error)
{
    if (node->driver != &lose_writes_driver) {
        block_error(error, EINVAL, "Node '%s' is of driver '%s', not 'lose-writes'", node->name,
                    node->driver->name);
        return NULL;
    }
    return block_node_state(node);
}

static int check_plan(const struct lose_writes_plan *plan, GError **error)
{
    if (plan->probability > 100) {
        return block_error(error, EINVAL, "Parameter 'probability' must be between 0 and 100");
    }
    if (plan->tear && (!is_power_of_2(plan->tear) || plan->tear < 512 || plan->tear > MIB)) {
        return block_error(error, EINVAL,
                           "Parameter 'tear' must be 0 or a power of 2 between 512 and 1048576");
    }
    return 0;
}

static int has_ended(const struct block_node *node, GError **error)
{
    return block_error(error, ESHUTDOWN, "Node '%s' has ended: its writes are lost already",
                       node->name);
}

int lose_writes_now(struct block_node *node, const struct lose_writes_plan *plan,
                    struct lose_writes_result *result, GError **error)
{
    int status = state_of(node, error) ? check_plan(plan, error) : -EINVAL;

    if (status < 0) {
        return status;
    }
    status = lose(node, plan, 0, result);
    if (status == -EALREADY) {
        return has_ended(node, error);
    }
    if (status < 0) {
        return block_error_errno(error, -status, "Could not take all writes back from node '%s'",
                                 node->file->name);
    }
    return 0;
}

int lose_writes_arm(struct block_node *node, uint64_t at_write, struct lose_writes_plan *plan,
                    GError **error)
{
    struct lose_writes_state *state = state_of(node, error);
    int status = state ? check_plan(plan, error) : -EINVAL;

    if (status < 0) {
        return status;
    }
    SCOPE_LOCK(&state->lock);
    if (state->is_ending) {
        return has_ended(node, error);
    }
    if (at_write && at_write <= state->writes) {
        return block_error(error, EINVAL,
                           "Write %" PRIu64 " of node '%s' has passed: there were %" PRIu64
                           " already",
                           at_write, node->name, state->writes);
    }
    lose_writes_plan_clear(&state->plan);
    state->plan = *plan;
    state->at_write = at_write;
    *plan = (struct lose_writes_plan){0};
    return 0;
}

static void fill_record(struct lose_writes_record *record, const struct write_log_entry *entry)
{
    *record = (struct lose_writes_record){
        .number = entry->number,
        .offset = entry->offset,
        .bytes = entry->bytes,
        .type = entry->is_discard ? "discard"
                : entry->data     ? "write"
                                  : "write-zeroes",
        .in_flight = !entry->done,
    };
}

int lose_writes_get_status(struct block_node *node, struct lose_writes_status *status,
                           GError **error)
{
    struct lose_writes_state *state = state_of(node, error);
    struct write_log_entry *entry;

    *status = (struct lose_writes_status){0};
    if (!state) {
        return -EINVAL;
    }
    status->records = g_new0(struct lose_writes_record, LOSE_WRITES_RECORDS_MAX);
    SCOPE_LOCK(&state->lock);
    status->writes = state->writes;
    status->log_bytes = state->log.bytes;
    status->at_write = state->at_write;
    status->has_ended = state->has_ended;
    TAILQ_FOREACH (entry, &state->log.entries, entry) {
        if (!entry->is_durable) {
            status->unflushed++;
            if (status->record_count < LOSE_WRITES_RECORDS_MAX) {
                fill_record(&status->records[status->record_count++], entry);
            }
        }
    }
    return 0;
}

void lose_writes_status_clear(struct lose_writes_status *status)
{
    g_free(status->records);
}
