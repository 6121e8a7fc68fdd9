/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/fault-driver.h"

#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "tests/lib/random.h"

struct fault_options {
    uint64_t alignment;
};

static const struct block_option fault_option_table[] = {
    {
        .name = "file",
        .type = BLOCK_OPTION_NODE,
        .required = true,
        .help = "The node whose requests are met.",
    },
    {
        .name = "alignment",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct fault_options, alignment),
        .default_text = "1",
        .help = "The request size the node asks for; a power of 2.",
    },
    {.name = NULL},
};

struct fault_state {
    pthread_mutex_t lock; /* guards all below; never held across I/O */
    pthread_cond_t changed;
    GArray *rules; /* struct fault_rule */
    struct test_random random;
    uint64_t generation; /* of the rules: requests held go on when it changes */
    unsigned held;
    uint64_t hits;
    uint64_t cut_off;
    uint64_t bytes[BLOCK_OPERATION_COUNT + 1]; /* by the bits of fault_rule's operations */
    bool is_cut_off;
};

static struct fault_state *state_of(struct block_node *node)
{
    g_assert_cmpstr(node->driver->name, ==, "fault");
    return block_node_state(node);
}

void fault_add(struct block_node *node, const struct fault_rule *rule)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    g_array_append_vals(state->rules, rule, 1);
}

void fault_clear(struct block_node *node)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    g_array_set_size(state->rules, 0);
    state->is_cut_off = false;
    state->generation++;
    pthread_cond_broadcast(&state->changed);
}

void fault_wait_held(struct block_node *node, unsigned count)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    while (state->held < count) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
}

unsigned fault_held(struct block_node *node)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    return state->held;
}

uint64_t fault_hits(struct block_node *node)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    return state->hits;
}

uint64_t fault_cut_off(struct block_node *node)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    return state->cut_off;
}

uint64_t fault_bytes(struct block_node *node, unsigned operations)
{
    struct fault_state *state = state_of(node);
    uint64_t bytes = 0;
    SCOPE_LOCK(&state->lock);

    for (unsigned bit = 0; bit < G_N_ELEMENTS(state->bytes); bit++) {
        bytes += operations & (1u << bit) ? state->bytes[bit] : 0;
    }
    return bytes;
}

/* Whether a rule meets a request; counts it. Lock held. */
static bool rule_meets(struct fault_state *state, struct fault_rule *rule, unsigned operation,
                       uint64_t offset, uint64_t bytes)
{
    if (!(rule->operations & operation) || rule->count == UINT32_MAX ||
        (rule->bytes && operation != FAULT_ON(FLUSH) &&
         !ranges_overlap(offset, bytes, rule->offset, rule->bytes)) ||
        (rule->percent && !test_random_chance(&state->random, rule->percent))) {
        return false;
    }
    if (rule->skip) {
        rule->skip--;
        return false;
    }
    if (rule->count && --rule->count == 0) {
        rule->count = UINT32_MAX; /* spent */
    }
    return true;
}

/* The rule that meets a request, in *met; false if there is none. Lock held. */
static bool find_rule(struct fault_state *state, unsigned operation, uint64_t offset,
                      uint64_t bytes, struct fault_rule *met)
{
    for (unsigned i = 0; i < state->rules->len; i++) {
        struct fault_rule *rule = &g_array_index(state->rules, struct fault_rule, i);

        if (rule_meets(state, rule, operation, offset, bytes)) {
            *met = *rule;
            state->hits++;
            return true;
        }
    }
    return false;
}

/* Lock held. */
static void hold(struct fault_state *state)
{
    uint64_t generation = state->generation;

    state->held++;
    pthread_cond_broadcast(&state->changed);
    while (state->generation == generation && !state->is_cut_off) {
        pthread_cond_wait(&state->changed, &state->lock);
    }
    state->held--;
}

/* Lock held, dropped meanwhile. */
static void delay(struct fault_state *state, int64_t delay_ns)
{
    struct timespec time = {.tv_sec = delay_ns / NS_PER_SECOND,
                            .tv_nsec = delay_ns % NS_PER_SECOND};

    pthread_mutex_unlock(&state->lock);
    nanosleep(&time, NULL);
    pthread_mutex_lock(&state->lock);
}

/* What becomes of a request: 0 to go on, or a negative errno. *rule: that which met it, or zeroes.
 */
static int meet_rule(struct block_node *node, unsigned operation, uint64_t offset, uint64_t bytes,
                     struct fault_rule *rule)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    *rule = (struct fault_rule){0};
    state->bytes[g_bit_nth_lsf(operation, -1)] += bytes;
    if (!state->is_cut_off && !find_rule(state, operation, offset, bytes, rule)) {
        return 0;
    }
    if (!state->is_cut_off && rule->delay_ns) {
        delay(state, rule->delay_ns);
    }
    if (!state->is_cut_off && rule->hold) {
        hold(state);
    }
    return state->is_cut_off ? -ESHUTDOWN : -rule->error_number;
}

static int meet(struct block_node *node, unsigned operation, uint64_t offset, uint64_t bytes)
{
    struct fault_rule rule;

    return meet_rule(node, operation, offset, bytes, &rule);
}

static void lie(const struct fault_rule *rule, char *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t at = MAX_OF(rule->offset, offset);

    if (rule->lie && bytes) {
        buffer[at - offset] ^= 1;
    }
}

static int fault_open(struct block_node *node, void *values, GError **error)
{
    struct fault_state *state = block_node_state(node);
    const struct fault_options *options = values;

    if (!is_power_of_2(options->alignment)) {
        return block_error(error, EINVAL, "The alignment must be a power of 2");
    }
    node->limits = node->file->limits;
    node->limits.request_alignment =
        MAX_OF(node->limits.request_alignment, (uint32_t)options->alignment);
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->changed, NULL);
    state->rules = g_array_new(FALSE, FALSE, sizeof(struct fault_rule));
    state->random = test_random_new(test_seed());
    return 0;
}

static void fault_close(struct block_node *node)
{
    struct fault_state *state = state_of(node);

    g_assert_cmpuint(state->held, ==, 0);
    g_array_unref(state->rules);
    pthread_mutex_destroy(&state->lock);
    pthread_cond_destroy(&state->changed);
}

static int fault_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    struct fault_rule rule;
    int status = meet_rule(node, FAULT_ON(READ), offset, bytes, &rule);

    status = status ? status : block_node_pread(node->file, buffer, offset, bytes, flags);
    lie(&rule, buffer, offset, bytes);
    return status;
}

static int fault_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes, unsigned flags)
{
    int status = meet(node, FAULT_ON(WRITE), offset, bytes);

    return status ? status : block_node_pwrite(node->file, buffer, offset, bytes, flags);
}

static int fault_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                uint64_t offset, uint64_t bytes)
{
    int status = meet(node, FAULT_ON(WRITE), offset, bytes);

    return status ? status : block_node_pwrite_from_fd(node->file, fd, fd_offset, offset, bytes);
}

static int fault_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                              unsigned flags)
{
    int status = meet(node, FAULT_ON(WRITE_ZEROES), offset, bytes);

    return status ? status : block_node_write_zeroes(node->file, offset, bytes, flags);
}

static int fault_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int status = meet(node, FAULT_ON(DISCARD), offset, bytes);

    return status ? status : block_node_discard(node->file, offset, bytes);
}

static int fault_flush(struct block_node *node)
{
    int status = meet(node, FAULT_ON(FLUSH), 0, 0);

    return status ? status : block_node_flush(node->file);
}

static int fault_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    int status = meet(node, FAULT_ON_STATUS, offset, bytes);

    return status ? status : block_node_block_status(node->file, offset, bytes, extent);
}

static void fault_cancel_in_flight(struct block_node *node)
{
    struct fault_state *state = state_of(node);
    SCOPE_LOCK(&state->lock);

    state->cut_off++;
    state->is_cut_off = true;
    pthread_cond_broadcast(&state->changed);
}

static const struct block_driver fault_driver = {
    .name = "fault",
    .description = "Makes requests fail, late, or hang.",
    .is_filter = true,
    .instance_size = sizeof(struct fault_state),
    .options = fault_option_table,
    .options_size = sizeof(struct fault_options),
    .open = fault_open,
    .close = fault_close,
    .pread = fault_pread,
    .pwrite = fault_pwrite,
    .handles_fua = true,
    .write_zeroes = fault_write_zeroes,
    .discard = fault_discard,
    .flush = fault_flush,
    .block_status = fault_block_status,
    .pwrite_from_fd = fault_pwrite_from_fd,
    .cancel_in_flight = fault_cancel_in_flight,
};

void fault_driver_register(void)
{
    block_driver_register(&fault_driver);
}
