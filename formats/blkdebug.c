/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A request is judged on the thread that makes it, before it is passed on. An event that a driver
 * above announces counts for that thread's next request, so that the events of one thread do not
 * hit the requests of another.
 */
#include "formats/blkdebug.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/queue.h"
#include "block/request.h"

struct break_point {
    struct blkdebug_break is;
    unsigned references; /* the node's, while it is set, and one of each who stands there */
    bool is_removed;
    uint64_t suspended;
    uint64_t reached;
    TAILQ_ENTRY(break_point) entry;
};

/* The last event of a thread; a thread is in one request of a node at a time. */
struct announcement {
    pthread_t thread;
    enum block_debug_event event;
    unsigned state;
    TAILQ_ENTRY(announcement) entry;
};

struct blkdebug_state {
    pthread_mutex_t lock; /* guards all of this; innermost, never held across I/O */
    pthread_cond_t changed;
    struct blkdebug_rules rules;
    uint64_t rules_generation; /* counts up when the rules are replaced: delays end */
    unsigned state;
    uint64_t random;
    bool is_cut_off;  /* by cancel_in_flight: fails everything */
    bool is_released; /* the process ends: passes everything */
    TAILQ_HEAD(, break_point) breaks;
    TAILQ_HEAD(, announcement) announcements;
    struct block_node *node;
    TAILQ_ENTRY(blkdebug_state) entry;
};

/* Open nodes, and whether blkdebug_release_all was called. The lock is taken before a node's. */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, blkdebug_state) all_states = TAILQ_HEAD_INITIALIZER(all_states);
static bool all_released;

/* ---- Options -------------------------------------------------------------------------------- */

struct blkdebug_options {
    struct blkdebug_rules rules; /* first: the table of the rules is used for it, too */
    uint64_t seed;
    uint64_t alignment;
    uint64_t max_transfer;
    uint64_t opt_write_zero;
    uint64_t max_write_zero;
    uint64_t opt_discard;
    uint64_t max_discard;
};

static const struct block_option blkdebug_option_table[] = {
    {"image", BLOCK_OPTION_NODE, .required = true, .help = "The node whose requests are met."},
    {"inject-error", BLOCK_OPTION_LIST, offsetof(struct blkdebug_options, rules.inject_error),
     .element_options = blkdebug_inject_options, .element_size = sizeof(struct blkdebug_inject),
     .help = "Which requests fail or are late; the first rule that fits a request is applied."},
    {"set-state", BLOCK_OPTION_LIST, offsetof(struct blkdebug_options, rules.set_state),
     .element_options = blkdebug_set_state_options,
     .element_size = sizeof(struct blkdebug_set_state),
     .help = "How events change the state that rules depend on."},
    {"seed", BLOCK_OPTION_UINT, offsetof(struct blkdebug_options, seed), .default_text = "1",
     .help = "Seed of the rules with a probability. The same seed gives the same draws."},
    {"align", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, alignment), .default_text = "0",
     .help = "Claim to need requests aligned to this power of 2, up to 1 MiB."},
    {"max-transfer", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, max_transfer),
     .default_text = "0", .help = "Claim to take at most this many bytes at once."},
    {"opt-write-zero", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, opt_write_zero),
     .default_text = "0", .help = "Claim to prefer write-zeroes aligned to this power of 2."},
    {"max-write-zero", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, max_write_zero),
     .default_text = "0", .help = "Claim to write zeroes to at most this many bytes at once."},
    {"opt-discard", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, opt_discard),
     .default_text = "0", .help = "Claim to prefer discards aligned to this power of 2."},
    {"max-discard", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_options, max_discard),
     .default_text = "0", .help = "Claim to discard at most this many bytes at once."},
    {NULL},
};

static int check_alignment(const char *name, uint64_t value, GError **error)
{
    if (value && (!is_power_of_2(value) || value > GIB)) {
        return block_error(error, EINVAL,
                           "Cannot meet constraints with %s: it must be a power of 2 and at most "
                           "1 GiB",
                           name);
    }
    return 0;
}

static int check_maximum(const char *name, uint64_t value, uint32_t alignment, GError **error)
{
    if (value && (value < alignment || !is_aligned(value, alignment))) {
        return block_error(error, EINVAL,
                           "Cannot meet constraints with %s: it must be a multiple of the "
                           "alignment, %u bytes",
                           name, alignment);
    }
    return 0;
}

static uint64_t smaller(uint64_t wanted, uint64_t limit)
{
    return wanted && (!limit || wanted < limit) ? wanted : limit;
}

static int set_limits(struct block_node *node, const struct blkdebug_options *options,
                      GError **error)
{
    struct block_limits limits = node->file->limits;

    if (options->alignment > MIB) {
        return block_error(error, EINVAL, "align must be at most 1 MiB");
    }
    if (check_alignment("align", options->alignment, error) < 0) {
        return -EINVAL;
    }
    limits.request_alignment = MAX_OF(limits.request_alignment, (uint32_t)options->alignment);
    if (check_alignment("opt-write-zero", options->opt_write_zero, error) < 0 ||
        check_alignment("opt-discard", options->opt_discard, error) < 0 ||
        check_maximum("max-transfer", options->max_transfer, limits.request_alignment, error) < 0 ||
        check_maximum("max-write-zero", options->max_write_zero, limits.request_alignment, error) <
            0 ||
        check_maximum("max-discard", options->max_discard, limits.request_alignment, error) < 0) {
        return -EINVAL;
    }
    limits.max_transfer = smaller(options->max_transfer, limits.max_transfer);
    limits.max_write_zeroes = smaller(options->max_write_zero, limits.max_write_zeroes);
    limits.max_discard = smaller(options->max_discard, limits.max_discard);
    if (options->opt_write_zero) {
        limits.write_zeroes_alignment = (uint32_t)options->opt_write_zero;
    }
    if (options->opt_discard) {
        limits.discard_alignment = (uint32_t)options->opt_discard;
    }
    node->limits = limits;
    return 0;
}

static int blkdebug_open(struct block_node *node, void *values, GError **error)
{
    struct blkdebug_state *state = block_node_state(node);
    struct blkdebug_options *options = values;
    int status = set_limits(node, options, error);

    if (status == 0) {
        status = blkdebug_rules_check(&options->rules, error);
    }
    if (status < 0) {
        return status;
    }
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->changed, NULL);
    TAILQ_INIT(&state->breaks);
    TAILQ_INIT(&state->announcements);
    state->rules = options->rules;
    options->rules = (struct blkdebug_rules){0};
    state->random = options->seed;
    state->state = BLKDEBUG_FIRST_STATE;
    state->node = node;
    SCOPE_LOCK(&all_lock);
    state->is_released = all_released;
    TAILQ_INSERT_TAIL(&all_states, state, entry);
    return 0;
}

/* ---- Break points --------------------------------------------------------------------------- */

static void unref_break(struct break_point *point)
{
    if (--point->references == 0) {
        g_free(point->is.tag);
        g_free(point);
    }
}

/* Lock held. */
static void remove_break(struct blkdebug_state *state, struct break_point *point)
{
    TAILQ_REMOVE(&state->breaks, point, entry);
    point->is_removed = true;
    unref_break(point);
    pthread_cond_broadcast(&state->changed);
}

/* Lock held. */
static void remove_all_breaks(struct blkdebug_state *state)
{
    while (!TAILQ_EMPTY(&state->breaks)) {
        remove_break(state, TAILQ_FIRST(&state->breaks));
    }
}

/* Lock held, dropped meanwhile. */
static void suspend(struct blkdebug_state *state, struct break_point *point)
{
    point->references++;
    point->suspended++;
    point->reached++;
    event_emit("BLKDEBUG_SUSPENDED", EVENT_STRING("node-name", state->node->name),
               EVENT_STRING("tag", point->is.tag));
    while (!point->is_removed && !state->is_cut_off && !state->is_released) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
    point->suspended--;
    unref_break(point);
}

/* Stand at each break point that an event, or (event NONE) a request reaches. Lock held. */
static void stop_at_breaks(struct blkdebug_state *state, enum block_debug_event event,
                           const struct blkdebug_request *request)
{
    struct break_point *point, *next;

again:
    TAILQ_FOREACH_SAFE (point, &state->breaks, entry, next) {
        bool meets = point->is.event != BLOCK_DEBUG_NONE
                         ? point->is.event == event
                         : request && blkdebug_range_meets(point->is.type, point->is.offset,
                                                           point->is.bytes, request);

        if (meets && !state->is_cut_off && !state->is_released) {
            suspend(state, point);
            goto again; /* the list may have changed; this one is gone from it */
        }
    }
}

/* ---- Meeting requests ----------------------------------------------------------------------- */

static struct announcement *find_announcement(struct blkdebug_state *state)
{
    struct announcement *announcement;

    TAILQ_FOREACH (announcement, &state->announcements, entry) {
        if (pthread_equal(announcement->thread, pthread_self())) {
            return announcement;
        }
    }
    return NULL;
}

static void blkdebug_debug_event(struct block_node *node, enum block_debug_event event)
{
    struct blkdebug_state *state = block_node_state(node);
    SCOPE_LOCK(&state->lock);
    struct announcement *announcement;

    if (state->is_released || state->is_cut_off) {
        return;
    }
    announcement = find_announcement(state);
    if (!announcement) {
        announcement = g_new0(struct announcement, 1);
        announcement->thread = pthread_self();
        TAILQ_INSERT_TAIL(&state->announcements, announcement, entry);
    }
    announcement->event = event;
    announcement->state = state->state;
    state->state = blkdebug_rules_next_state(&state->rules, state->state, event);
    stop_at_breaks(state, event, NULL);
}

/* The request's event and state; an event announced is used up. Lock held. */
static void take_announcement(struct blkdebug_state *state, struct blkdebug_request *request)
{
    struct announcement *announcement = find_announcement(state);

    request->state = state->state;
    if (announcement) {
        request->event = announcement->event;
        request->state = announcement->state;
        TAILQ_REMOVE(&state->announcements, announcement, entry);
        g_free(announcement);
    }
}

/* Lock held, dropped meanwhile. */
static void delay(struct blkdebug_state *state, uint64_t delay_ns)
{
    int64_t now_ns = clock_now_ns();
    int64_t deadline_ns =
        delay_ns > (uint64_t)(INT64_MAX - now_ns) ? INT64_MAX : now_ns + (int64_t)delay_ns;
    uint64_t generation = state->rules_generation;

    while (state->rules_generation == generation && !state->is_cut_off && !state->is_released &&
           clock_cond_wait_until(&state->changed, &state->lock, deadline_ns) != ETIMEDOUT) {
    }
}

static bool is_closing(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);

    return node->references == 0;
}

/* What becomes of a request: 0 to go on, or a negative errno. */
static int meet(struct block_node *node, enum blkdebug_type type, uint64_t offset, uint64_t bytes)
{
    struct blkdebug_state *state = block_node_state(node);
    struct blkdebug_request request = {.type = type, .offset = offset, .bytes = bytes};
    enum block_debug_event event = blkdebug_event_of(type);
    struct blkdebug_inject *rule;
    int status = 0;
    /* The last flush is made when nobody can name the node any more, and so resume it. */
    bool may_hold = type != BLKDEBUG_TYPE_FLUSH || !is_closing(node);
    SCOPE_LOCK(&state->lock);

    if (state->is_released) {
        return 0;
    }
    take_announcement(state, &request);
    rule = blkdebug_rules_match(&state->rules, &state->random, &request);
    if (event != request.event) {
        state->state = blkdebug_rules_next_state(&state->rules, state->state, event);
    }
    if (rule) {
        status = -(int)rule->error_number;
        if (rule->delay_ns && may_hold) {
            delay(state, rule->delay_ns); /* the rules may be replaced meanwhile */
        }
    }
    if (may_hold) {
        stop_at_breaks(state, request.event == event ? BLOCK_DEBUG_NONE : event, &request);
    }
    return state->is_cut_off ? -ESHUTDOWN : state->is_released ? 0 : status;
}

static int blkdebug_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                          unsigned flags)
{
    int status = meet(node, BLKDEBUG_TYPE_READ, offset, bytes);

    return status ? status : block_node_pread(node->file, buffer, offset, bytes, flags);
}

static int blkdebug_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                           uint64_t bytes, unsigned flags)
{
    int status = meet(node, BLKDEBUG_TYPE_WRITE, offset, bytes);

    return status ? status : block_node_pwrite(node->file, buffer, offset, bytes, flags);
}

static int blkdebug_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned flags)
{
    int status = meet(node, BLKDEBUG_TYPE_WRITE_ZEROES, offset, bytes);

    return status ? status : block_node_write_zeroes(node->file, offset, bytes, flags);
}

static int blkdebug_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int status = meet(node, BLKDEBUG_TYPE_DISCARD, offset, bytes);

    return status ? status : block_node_discard(node->file, offset, bytes);
}

static int blkdebug_flush(struct block_node *node)
{
    int status = meet(node, BLKDEBUG_TYPE_FLUSH, 0, 0);

    return status ? status : block_node_flush(node->file);
}

static int blkdebug_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 struct block_extent *extent)
{
    int status = meet(node, BLKDEBUG_TYPE_BLOCK_STATUS, offset, bytes);

    return status ? status : block_node_block_status(node->file, offset, bytes, extent);
}

/* A copy inside the kernel would read past us; asked for none, the core reads with pread. */
static int blkdebug_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                               uint64_t *fd_offset)
{
    return -ENOTSUP;
}

static int blkdebug_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                   uint64_t offset, uint64_t bytes)
{
    int status = meet(node, BLKDEBUG_TYPE_WRITE, offset, bytes);

    return status ? status : block_node_pwrite_from_fd(node->file, fd, fd_offset, offset, bytes);
}

static void blkdebug_cancel_in_flight(struct block_node *node)
{
    struct blkdebug_state *state = block_node_state(node);

    pthread_mutex_lock(&state->lock);
    state->is_cut_off = true;
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->lock);
    block_node_cancel_in_flight(node->file);
}

static void blkdebug_close(struct block_node *node)
{
    struct blkdebug_state *state = block_node_state(node);
    struct announcement *announcement, *next;

    pthread_mutex_lock(&all_lock);
    TAILQ_REMOVE(&all_states, state, entry);
    pthread_mutex_unlock(&all_lock);
    remove_all_breaks(state); /* nobody stands there: no request is in flight */
    TAILQ_FOREACH_SAFE (announcement, &state->announcements, entry, next) {
        g_free(announcement);
    }
    block_options_clear_target(blkdebug_rules_options, &state->rules);
    pthread_mutex_destroy(&state->lock);
    pthread_cond_destroy(&state->changed);
}

const struct block_driver blkdebug_driver = {
    .name = "blkdebug",
    .description = "Makes requests fail, be late, or stand still",
    .is_filter = true,
    .instance_size = sizeof(struct blkdebug_state),
    .options = blkdebug_option_table,
    .options_size = sizeof(struct blkdebug_options),
    .open = blkdebug_open,
    .close = blkdebug_close,
    .pread = blkdebug_pread,
    .pwrite = blkdebug_pwrite,
    .handles_fua = true,
    .write_zeroes = blkdebug_write_zeroes,
    .discard = blkdebug_discard,
    .flush = blkdebug_flush,
    .block_status = blkdebug_block_status,
    .host_range = blkdebug_host_range,
    .pwrite_from_fd = blkdebug_pwrite_from_fd,
    .cancel_in_flight = blkdebug_cancel_in_flight,
    .debug_event = blkdebug_debug_event,
};

/* ---- At run time ---------------------------------------------------------------------------- */

static struct blkdebug_state *state_of(struct block_node *node, GError **error)
{
    if (node->driver != &blkdebug_driver) {
        block_error(error, EINVAL, "Node '%s' is of driver '%s', not 'blkdebug'", node->name,
                    node->driver->name);
        return NULL;
    }
    return block_node_state(node);
}

int blkdebug_set_rules(struct block_node *node, struct block_options *options, GError **error)
{
    struct blkdebug_state *state = state_of(node, error);
    struct blkdebug_rules rules, old;
    int status;

    if (!state) {
        return -EINVAL;
    }
    status = block_options_extract(options, blkdebug_rules_options, &rules, NULL, error);
    if (status < 0) {
        return status;
    }
    status = blkdebug_rules_check(&rules, error);
    if (status < 0) {
        block_options_clear_target(blkdebug_rules_options, &rules);
        return status;
    }
    pthread_mutex_lock(&state->lock);
    old = state->rules;
    state->rules = rules;
    state->state = BLKDEBUG_FIRST_STATE;
    state->rules_generation++;
    pthread_cond_broadcast(&state->changed);
    pthread_mutex_unlock(&state->lock);
    block_options_clear_target(blkdebug_rules_options, &old);
    return 0;
}

/* Lock held. */
static struct break_point *find_break(struct blkdebug_state *state, const char *tag)
{
    struct break_point *point;

    TAILQ_FOREACH (point, &state->breaks, entry) {
        if (!strcmp(point->is.tag, tag)) {
            return point;
        }
    }
    return NULL;
}

int blkdebug_set_break(struct block_node *node, const struct blkdebug_break *point, GError **error)
{
    struct blkdebug_state *state = state_of(node, error);
    struct break_point *new_point;
    uint64_t end;

    if (!state) {
        return -EINVAL;
    }
    if (!checked_add_u64(point->offset, point->bytes, &end)) {
        return block_error(error, EINVAL, "The range of break point '%s' is too large", point->tag);
    }
    SCOPE_LOCK(&state->lock);
    if (state->is_released) {
        return block_error(error, ESHUTDOWN, "The server is ending");
    }
    if (find_break(state, point->tag)) {
        return block_error(error, EEXIST, "Node '%s' already has a break point '%s'", node->name,
                           point->tag);
    }
    new_point = g_new0(struct break_point, 1);
    new_point->is = *point;
    new_point->is.tag = g_strdup(point->tag);
    new_point->references = 1;
    TAILQ_INSERT_TAIL(&state->breaks, new_point, entry);
    return 0;
}

int blkdebug_resume(struct block_node *node, const char *tag, uint64_t *count, GError **error)
{
    struct blkdebug_state *state = state_of(node, error);
    struct break_point *point;

    if (!state) {
        return -EINVAL;
    }
    SCOPE_LOCK(&state->lock);
    point = find_break(state, tag);
    if (!point) {
        return block_error(error, ENOENT, "Node '%s' has no break point '%s'", node->name, tag);
    }
    if (count) {
        *count = point->suspended;
    }
    remove_break(state, point);
    return 0;
}

int blkdebug_get_status(struct block_node *node, struct blkdebug_status *status, GError **error)
{
    struct blkdebug_state *state = state_of(node, error);
    struct break_point *point;

    *status = (struct blkdebug_status){0};
    if (!state) {
        return -EINVAL;
    }
    SCOPE_LOCK(&state->lock);
    status->state = state->state;
    status->rule_count = state->rules.inject_error.count;
    status->rules = g_memdup2(state->rules.inject_error.elements,
                              status->rule_count * sizeof(struct blkdebug_inject));
    TAILQ_FOREACH (point, &state->breaks, entry) {
        size_t i = status->break_count++;

        status->breaks = g_renew(struct blkdebug_break, status->breaks, i + 1);
        status->suspended = g_renew(uint64_t, status->suspended, i + 1);
        status->reached = g_renew(uint64_t, status->reached, i + 1);
        status->breaks[i] = point->is;
        status->breaks[i].tag = g_strdup(point->is.tag);
        status->suspended[i] = point->suspended;
        status->reached[i] = point->reached;
    }
    return 0;
}

void blkdebug_status_clear(struct blkdebug_status *status)
{
    for (size_t i = 0; i < status->break_count; i++) {
        g_free(status->breaks[i].tag);
    }
    g_free(status->breaks);
    g_free(status->suspended);
    g_free(status->reached);
    g_free(status->rules);
}

void blkdebug_release_all(void)
{
    struct blkdebug_state *state;
    SCOPE_LOCK(&all_lock);

    all_released = true;
    TAILQ_FOREACH (state, &all_states, entry) {
        SCOPE_LOCK(&state->lock);

        state->is_released = true;
        remove_all_breaks(state);
        pthread_cond_broadcast(&state->changed);
    }
}
