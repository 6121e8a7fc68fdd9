/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/quorum.h"

#include <errno.h>
#include <inttypes.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/event.h"
#include "block/graph.h"
#include "block/request.h"
#include "formats/quorum-internal.h"

/* Events count in sectors of this size, whatever the disk's are. */
#define SECTOR 512

/* Discards are zeroes, which a child may have to write: not too many at once. */
#define DISCARD_MAX (16 * MIB)

const char *const quorum_request_names[] = {"read", "write", "flush", NULL};

enum read_pattern { READ_PATTERN_QUORUM, READ_PATTERN_FIFO };
static const char *const read_pattern_names[] = {"quorum", "fifo", NULL};

struct quorum_options {
    int64_t vote_threshold;
    int read_pattern;
    bool blkverify;
    bool rewrite_corrupted;
};

static const struct block_option quorum_option_table[] = {
    {"children", BLOCK_OPTION_NODES, .required = true,
     .help = "The nodes that hold the same, all of one length."},
    {"vote-threshold", BLOCK_OPTION_INT, offsetof(struct quorum_options, vote_threshold),
     .required = true, .can_change = true,
     .help = "So many children must take what is written, and say the same when it is read."},
    {"read-pattern", BLOCK_OPTION_ENUM, offsetof(struct quorum_options, read_pattern),
     .default_text = "quorum", .enum_values = read_pattern_names, .can_change = true,
     .help = "Read from all children and compare (quorum), or believe the first that answers "
             "(fifo)."},
    {"blkverify", BLOCK_OPTION_BOOL, offsetof(struct quorum_options, blkverify),
     .default_text = "off", .can_change = true,
     .help = "Of exactly two children with vote-threshold 2: the log says where they differ, and "
             "the read fails."},
    {"rewrite-corrupted", BLOCK_OPTION_BOOL, offsetof(struct quorum_options, rewrite_corrupted),
     .default_text = "off", .can_change = true,
     .help = "Write what was read over children that say something else, unless the node is "
             "read-only."},
    {NULL},
};

unsigned quorum_count(const struct block_node *node)
{
    const struct block_child *child;
    unsigned count = 0;

    QUORUM_FOREACH(child, node)
    {
        count++;
    }
    return count;
}

/* ---- Verdicts -------------------------------------------------------------------------------- */

static int64_t end_sector(uint64_t offset, uint64_t bytes)
{
    return (int64_t)div_round_up(offset + bytes, SECTOR);
}

void quorum_report_bad(enum quorum_request request, const struct block_node *child, int status,
                       uint64_t offset, uint64_t bytes)
{
    int64_t sector = (int64_t)(offset / SECTOR);

    event_emit("QUORUM_REPORT_BAD", EVENT_STRING("type", quorum_request_names[request]),
               EVENT_STRING("error", status < 0 ? block_strerror(-status) : NULL),
               EVENT_STRING("node-name", child->name), EVENT_INT("sector-num", sector),
               EVENT_INT("sectors-count", end_sector(offset, bytes) - sector));
}

void quorum_report_failure(const struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int64_t sector = (int64_t)(offset / SECTOR);

    event_emit("QUORUM_FAILURE", EVENT_STRING("reference", node->name),
               EVENT_INT("sector-num", sector),
               EVENT_INT("sectors-count", end_sector(offset, bytes) - sector));
}

static unsigned count_status(const int *statuses, unsigned count, int status)
{
    unsigned found = 0;

    for (unsigned i = 0; i < count; i++) {
        found += statuses[i] == status;
    }
    return found;
}

int quorum_verdict(const struct block_node *node, const int *statuses, unsigned count)
{
    const struct quorum_state *state = block_node_state(node);
    unsigned most = 0;
    int verdict = 0;

    if (count_status(statuses, count, 0) >= state->rules.threshold) {
        return 0;
    }
    for (unsigned i = 0; i < count; i++) {
        unsigned votes = count_status(statuses, count, statuses[i]);

        if (statuses[i] < 0 && votes > most) {
            most = votes;
            verdict = statuses[i];
        }
    }
    return verdict;
}

/* ---- Changes --------------------------------------------------------------------------------- */

struct change {
    const void *buffer; /* NULL: zeroes */
    uint64_t offset, bytes;
    unsigned flags;
};

static int change_child(struct block_node *child, const struct change *change, unsigned flags)
{
    return change->buffer
               ? block_node_pwrite(child, change->buffer, change->offset, change->bytes, flags)
               : block_node_write_zeroes(child, change->offset, change->bytes, flags);
}

/*
 * What only the first child may refuse (NO_FALLBACK) the others must do at any price, or they would
 * differ. *is_slow: one of them had to.
 */
static int change_other(struct block_node *child, const struct change *change, bool *is_slow)
{
    int status = change_child(child, change, change->flags);

    if (status == -ENOTSUP && change->flags & BLOCK_REQUEST_NO_FALLBACK) {
        *is_slow = true;
        status = change_child(child, change, change->flags & ~(unsigned)BLOCK_REQUEST_NO_FALLBACK);
    }
    return status;
}

static int change_all(struct block_node *node, const struct change *change, bool *is_slow)
{
    unsigned count = quorum_count(node), i = 0;
    g_autofree int *statuses = g_new(int, count);
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        struct block_node *replica = child->claim.node;

        statuses[i] = i ? change_other(replica, change, is_slow)
                        : change_child(replica, change, change->flags);
        if (i == 0 && statuses[i] == -ENOTSUP && change->flags & BLOCK_REQUEST_NO_FALLBACK) {
            return -ENOTSUP;
        }
        if (statuses[i] < 0) {
            quorum_report_bad(QUORUM_WRITE, replica, statuses[i], change->offset, change->bytes);
        }
        i++;
    }
    int status = quorum_verdict(node, statuses, count);
    if (status < 0) {
        quorum_report_failure(node, change->offset, change->bytes);
    }
    return status;
}

/* With nobody else in the range. */
static int change_alone(struct block_node *node, const struct change *change, bool *is_slow)
{
    struct quorum_state *state = block_node_state(node);
    struct tracked_request tracked;

    tracked_request_begin(&state->tracked, &tracked, change->offset, change->bytes, true);
    int status = change_all(node, change, is_slow);
    tracked_request_end(&state->tracked, &tracked);
    return status;
}

static int quorum_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes, unsigned flags)
{
    const struct change write = {
        .buffer = buffer, .offset = offset, .bytes = bytes, .flags = flags};
    bool is_slow = false;

    return change_alone(node, &write, &is_slow);
}

static int quorum_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                               unsigned flags)
{
    const struct change zeroes = {.offset = offset, .bytes = bytes, .flags = flags};
    bool is_slow = false;

    return change_alone(node, &zeroes, &is_slow);
}

/*
 * What children hold after a discard may be anything, and so differ. So they are given zeroes that
 * unmap, if all can be told to do that, and do it fast. Otherwise nothing happens: a discard is
 * advice.
 */
static int quorum_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct quorum_state *state = block_node_state(node);
    const struct block_child *child;
    const struct change zeroes = {
        .offset = offset,
        .bytes = bytes,
        .flags = BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK,
    };
    bool is_slow = false;

    QUORUM_FOREACH(child, node)
    {
        if (!child->claim.node->options.discard_unmap) {
            return 0;
        }
    }
    if (state->refuses_discards) {
        return 0;
    }
    int status = change_alone(node, &zeroes, &is_slow);
    if (is_slow) {
        state->refuses_discards = true;
    }
    return status == -ENOTSUP ? 0 : status;
}

static int quorum_flush(struct block_node *node)
{
    unsigned count = quorum_count(node), i = 0;
    g_autofree int *statuses = g_new(int, count);
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        statuses[i] = block_node_flush(child->claim.node);
        if (statuses[i] < 0) {
            quorum_report_bad(QUORUM_FLUSH, child->claim.node, statuses[i], 0, 0);
        }
        i++;
    }
    return quorum_verdict(node, statuses, count);
}

/* ---- Questions ------------------------------------------------------------------------------- */

/*
 * Zeroes only where all say so. A child that cannot say it may hold anything: it is looked at when
 * it is read.
 */
static int quorum_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                               struct block_extent *extent)
{
    const struct block_child *child;
    bool is_zero = true, is_allocated = false;

    QUORUM_FOREACH(child, node)
    {
        struct block_extent part;
        unsigned depth;
        int status = block_node_block_status_chain(child->claim.node, offset, bytes, &part, &depth);

        if (status < 0) {
            is_zero = false;
            continue;
        }
        bytes = part.bytes;
        is_zero = is_zero && part.flags & BLOCK_STATUS_ZERO;
        is_allocated = is_allocated || depth;
    }
    *extent = (struct block_extent){
        .bytes = bytes,
        .flags = (is_zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA) |
                 (is_allocated || !is_zero ? BLOCK_STATUS_ALLOCATED : 0u),
    };
    return 0;
}

static int64_t quorum_get_length(struct block_node *node)
{
    const struct block_child *child;
    uint64_t length = INT64_MAX;

    QUORUM_FOREACH(child, node)
    {
        length = MIN_OF(length, block_node_length(child->claim.node));
    }
    return (int64_t)length;
}

static void unref_node(gpointer node)
{
    block_node_unref(node);
}

/* References to the children, for who is no request: they may change meanwhile. */
static GPtrArray *list_children(const struct block_node *node)
{
    GPtrArray *list = g_ptr_array_new_with_free_func(unref_node);
    const struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    QUORUM_FOREACH(child, node)
    {
        child->claim.node->references++;
        g_ptr_array_add(list, child->claim.node);
    }
    return list;
}

static int64_t quorum_get_allocated_size(struct block_node *node)
{
    g_autoptr(GPtrArray) children = list_children(node);
    int64_t sum = 0;

    for (guint i = 0; i < children->len; i++) {
        int64_t size = block_node_get_allocated_size(g_ptr_array_index(children, i));

        if (size < 0) {
            return size;
        }
        if (__builtin_add_overflow(sum, size, &sum)) {
            return -EOVERFLOW;
        }
    }
    return sum;
}

static bool quorum_is_zero_at_creation(struct block_node *node)
{
    g_autoptr(GPtrArray) children = list_children(node);

    for (guint i = 0; i < children->len; i++) {
        if (!block_node_is_zero_at_creation(g_ptr_array_index(children, i))) {
            return false;
        }
    }
    return true;
}

static bool quorum_unmaps_zeroes(struct block_node *node)
{
    g_autoptr(GPtrArray) children = list_children(node);

    for (guint i = 0; i < children->len; i++) {
        if (!block_node_unmaps_zeroes(g_ptr_array_index(children, i))) {
            return false;
        }
    }
    return true;
}

static void quorum_debug_event(struct block_node *node, enum block_debug_event event)
{
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        block_node_debug_event(child->claim.node, event);
    }
}

static void quorum_cancel_in_flight(struct block_node *node)
{
    g_autoptr(GPtrArray) children = list_children(node);

    for (guint i = 0; i < children->len; i++) {
        block_node_cancel_in_flight(g_ptr_array_index(children, i));
    }
}

/* One child that lost something fails by itself; that it stays bad is what its events say. */
static bool quorum_has_lost_writes(struct block_node *node)
{
    const struct quorum_state *state = block_node_state(node);
    g_autoptr(GPtrArray) children = list_children(node);
    unsigned good = 0;

    for (guint i = 0; i < children->len; i++) {
        good += !block_node_has_lost_writes(g_ptr_array_index(children, i));
    }
    SCOPE_LOCK(&block_graph_lock);
    return good < state->rules.threshold;
}

/* Who accepts it writes all anew, to all children. */
static int quorum_accept_lost_writes(struct block_node *node)
{
    g_autoptr(GPtrArray) children = list_children(node);
    int status = 0;

    for (guint i = 0; i < children->len; i++) {
        int own = block_node_accept_lost_writes(g_ptr_array_index(children, i));

        status = status < 0 ? status : own;
    }
    return status;
}

/* ---- Another length -------------------------------------------------------------------------- */

/* How far all children are, from how far one of them is. */
struct shared_progress {
    block_progress *function;
    void *data;
    unsigned index, count;
};

static bool report_progress(void *data, uint64_t done, uint64_t total)
{
    const struct shared_progress *progress = data;
    uint64_t share = total / progress->count;

    return progress->function(progress->data,
                              done == total && progress->index + 1 == progress->count
                                  ? total
                                  : share * progress->index + done / progress->count,
                              total);
}

/* Those that have got another length already, which is worth something only if all have. */
static void take_back_length(struct block_node *node, uint64_t length, uint64_t old_length)
{
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        g_autoptr(GError) error = NULL;
        struct block_node *replica = child->claim.node;

        if (block_node_length(replica) == length &&
            block_node_set_length(replica, old_length, BLOCK_PREALLOCATION_OFF, &error) < 0) {
            g_warning("Node '%s': child '%s' stays %" PRIu64 " bytes long: %s", node->name,
                      replica->name, length, error->message);
        }
    }
}

static int quorum_set_length(struct block_node *node, uint64_t length,
                             enum block_preallocation preallocation, block_progress *progress,
                             void *progress_data, GError **error)
{
    struct shared_progress shared = {progress, progress_data, 0, quorum_count(node)};
    uint64_t old_length = block_node_length(node);
    const struct block_child *child;
    int status = 0;

    QUORUM_FOREACH(child, node)
    {
        status = block_node_resize(child->claim.node, length, preallocation,
                                   progress ? report_progress : NULL, &shared, error);
        if (status < 0) {
            break;
        }
        shared.index++;
    }
    if (status < 0 && length != old_length) {
        take_back_length(node, length, old_length);
    }
    return status;
}

static int quorum_grow(struct block_node *node, uint64_t length)
{
    const struct block_child *child;
    int status = 0;

    QUORUM_FOREACH(child, node)
    {
        status = block_node_grow(child->claim.node, length);
        if (status < 0) {
            break;
        }
    }
    return status;
}

/* ---- Life ------------------------------------------------------------------------------------ */

static int check_fifo(const struct quorum_options *options, GError **error)
{
    if (options->blkverify || options->rewrite_corrupted) {
        return block_error(error, EINVAL,
                           "%s=on cannot be used with read-pattern=fifo, which compares nothing",
                           options->blkverify ? "blkverify" : "rewrite-corrupted");
    }
    return 0;
}

static int check_options(const struct quorum_options *options, unsigned count, GError **error)
{
    if (count < 1) {
        return block_error(error, EINVAL, "Number of provided children must be 1 or more");
    }
    if (options->vote_threshold < 1) {
        return block_error(error, EINVAL, "Parameter 'vote-threshold' expects a value >= 1");
    }
    if (options->vote_threshold > count) {
        return block_error(error, EINVAL, "threshold may not exceed children count");
    }
    if (options->read_pattern == READ_PATTERN_FIFO) {
        return check_fifo(options, error);
    }
    if (options->blkverify && (count != 2 || options->vote_threshold != 2)) {
        return block_error(error, EINVAL,
                           "blkverify=on can only be set if there are exactly two files and "
                           "vote-threshold is 2");
    }
    if (options->blkverify && options->rewrite_corrupted) {
        return block_error(error, EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on");
    }
    return 0;
}

static struct quorum_rules rules_of(const struct quorum_options *options)
{
    return (struct quorum_rules){
        .threshold = (unsigned)options->vote_threshold,
        .is_fifo = options->read_pattern == READ_PATTERN_FIFO,
        .verifies = options->blkverify,
        .rewrites = options->rewrite_corrupted,
    };
}

static int other_length(const struct block_node *node, struct block_node *child, uint64_t length,
                        GError **error)
{
    return block_error(error, EINVAL,
                       "Node '%s' is %" PRIu64 " bytes long and the other children of '%s' are "
                       "%" PRIu64 ": all must have the same length",
                       child->name, block_node_length(child), node->name ? node->name : "quorum",
                       length);
}

/* A node that votes twice is no majority. */
static int check_children(const struct block_node *node, GError **error)
{
    const struct block_child *first = TAILQ_FIRST(&node->children);
    const struct block_child *child, *other;

    QUORUM_FOREACH(child, node)
    {
        uint64_t length = block_node_length(first->claim.node);

        if (block_node_length(child->claim.node) != length) {
            return other_length(node, child->claim.node, length, error);
        }
        for (other = first; other != child; other = TAILQ_NEXT(other, entry)) {
            if (other->claim.node == child->claim.node) {
                return block_error(error, EINVAL, "Node '%s' is given twice",
                                   child->claim.node->name);
            }
        }
    }
    return 0;
}

static uint64_t smaller_limit(uint64_t a, uint64_t b)
{
    return !a || (b && b < a) ? b : a;
}

/* What suits all. Of a child that comes later requests are made to fit by the core. */
static void set_limits(struct block_node *node)
{
    struct block_limits *limits = &node->limits;
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        const struct block_limits *own = &child->claim.node->limits;

        limits->request_alignment = MAX_OF(limits->request_alignment, own->request_alignment);
        limits->memory_alignment = MAX_OF(limits->memory_alignment, own->memory_alignment);
        limits->preferred_size = MAX_OF(limits->preferred_size, own->preferred_size);
        limits->max_transfer = smaller_limit(limits->max_transfer, own->max_transfer);
        limits->max_write_zeroes = smaller_limit(limits->max_write_zeroes, own->max_write_zeroes);
        limits->max_discard = smaller_limit(limits->max_discard, own->max_discard);
        limits->write_zeroes_alignment =
            MAX_OF(limits->write_zeroes_alignment, own->write_zeroes_alignment);
        limits->discard_alignment = MAX_OF(limits->discard_alignment, own->discard_alignment);
    }
    limits->max_discard = smaller_limit(limits->max_discard, DISCARD_MAX);
}

static int quorum_open(struct block_node *node, void *values, GError **error)
{
    struct quorum_state *state = block_node_state(node);
    const struct quorum_options *options = values;
    int status = check_options(options, quorum_count(node), error);

    if (status == 0) {
        status = check_children(node, error);
    }
    if (status < 0) {
        return status;
    }
    tracked_requests_init(&state->tracked);
    state->rules = rules_of(options);
    set_limits(node);
    return 0;
}

static void quorum_close(struct block_node *node)
{
    struct quorum_state *state = block_node_state(node);

    tracked_requests_destroy(&state->tracked);
}

/* values is NULL if only the common options change. */
static int quorum_reopen_prepare(struct block_node *node, void *values,
                                 const struct block_node_options *options, void **prepared,
                                 GError **error)
{
    const struct quorum_options *wanted = values;
    int status = wanted ? check_options(wanted, quorum_count(node), error) : 0;

    if (wanted && status == 0) {
        struct quorum_rules *rules = g_new(struct quorum_rules, 1);

        *rules = rules_of(wanted);
        *prepared = rules;
    }
    return status;
}

/* Who reads may write to children from now on: those who are drained there may be more. */
static void quorum_reopen_commit(struct block_node *node, void *prepared)
{
    struct quorum_state *state = block_node_state(node);
    g_autofree struct quorum_rules *rules = prepared;
    struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    if (!rules) {
        return;
    }
    state->rules = *rules;
    QUORUM_FOREACH(child, node)
    {
        block_drain_claim_changed(&child->claim);
    }
}

static void quorum_reopen_abort(struct block_node *node, void *prepared)
{
    g_free(prepared);
}

/* Of a node that is read-only, too, which need not stay so. */
static bool quorum_writes_when_read(const struct block_node *node)
{
    return ((const struct quorum_state *)block_node_state(node))->rules.rewrites;
}

static int quorum_check_replicas(struct block_node *node, struct block_node *added, GError **error)
{
    struct quorum_state *state = block_node_state(node);

    if (!added) {
        return quorum_count(node) > state->rules.threshold
                   ? 0
                   : block_error(error, EBUSY,
                                 "The number of children cannot be lower than the vote threshold "
                                 "%u",
                                 state->rules.threshold);
    }
    if (state->rules.verifies) {
        return block_error(error, EBUSY, "Cannot add a child to a quorum in blkverify mode");
    }
    if (block_node_length(added) != block_node_length(node)) {
        return other_length(node, added, block_node_length(node), error);
    }
    return 0;
}

const struct block_driver quorum_driver = {
    .name = "quorum",
    .description = "Several nodes that hold the same, and vote on what that is",
    .instance_size = sizeof(struct quorum_state),
    .options = quorum_option_table,
    .options_size = sizeof(struct quorum_options),
    .open = quorum_open,
    .close = quorum_close,
    .reopen_prepare = quorum_reopen_prepare,
    .reopen_commit = quorum_reopen_commit,
    .reopen_abort = quorum_reopen_abort,
    .get_length = quorum_get_length,
    .set_length = quorum_set_length,
    .grow = quorum_grow,
    .get_allocated_size = quorum_get_allocated_size,
    .is_zero_at_creation = quorum_is_zero_at_creation,
    .pread = quorum_pread,
    .pwrite = quorum_pwrite,
    .handles_fua = true,
    .write_zeroes = quorum_write_zeroes,
    .unmaps_zeroes = quorum_unmaps_zeroes,
    .discard = quorum_discard,
    .flush = quorum_flush,
    .block_status = quorum_block_status,
    .cancel_in_flight = quorum_cancel_in_flight,
    .has_lost_writes = quorum_has_lost_writes,
    .accept_lost_writes = quorum_accept_lost_writes,
    .writes_when_read = quorum_writes_when_read,
    .check_replicas = quorum_check_replicas,
    .debug_event = quorum_debug_event,
};
