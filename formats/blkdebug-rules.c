/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/blkdebug-rules.h"

#include <errno.h>
#include <inttypes.h>

#include "block/checked.h"
#include "block/error.h"

#define SECTOR_SIZE UINT64_C(512)
#define ERRNO_MAX   4095

const char *const blkdebug_type_names[] = {
    "any", "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL,
};

const char *const blkdebug_event_names[] = {
    [BLOCK_DEBUG_NONE] = "none",
    [BLOCK_DEBUG_READ] = "read_aio",
    [BLOCK_DEBUG_WRITE] = "write_aio",
    [BLOCK_DEBUG_WRITE_ZEROES] = "write_zeroes",
    [BLOCK_DEBUG_DISCARD] = "discard",
    [BLOCK_DEBUG_FLUSH] = "flush_to_disk",
    [BLOCK_DEBUG_METADATA_READ] = "metadata_read",
    [BLOCK_DEBUG_METADATA_WRITE] = "metadata_write",
    [BLOCK_DEBUG_CLUSTER_ALLOCATE] = "cluster_alloc",
    [BLOCK_DEBUG_CLUSTER_FREE] = "cluster_free",
    [BLOCK_DEBUG_COPY_ON_WRITE_READ] = "cow_read",
    [BLOCK_DEBUG_COPY_ON_WRITE_WRITE] = "cow_write",
    [BLOCK_DEBUG_EVENT_COUNT] = NULL,
};

const struct block_option blkdebug_inject_options[] = {
    {"event", BLOCK_OPTION_ENUM, offsetof(struct blkdebug_inject, event), .required = true,
     .enum_values = blkdebug_event_names,
     .help = "The event after which a request fails; none: every request."},
    {"iotype", BLOCK_OPTION_ENUM, offsetof(struct blkdebug_inject, type), .default_text = "any",
     .enum_values = blkdebug_type_names,
     .help = "Only requests of this kind; any: all but block-status."},
    {"errno", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, error_number),
     .default_text = "5", .help = "The error, a number of Linux; 0: only be late."},
    {"sector", BLOCK_OPTION_INT, offsetof(struct blkdebug_inject, sector), .default_text = "-1",
     .help = "Only requests that touch this sector of 512 bytes; -1: all."},
    {"offset", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_inject, offset), .default_text = "0",
     .help = "Only requests that touch a range: its start, and"},
    {"bytes", BLOCK_OPTION_SIZE, offsetof(struct blkdebug_inject, bytes), .default_text = "0",
     .help = "its length; 0: to the end of the disk."},
    {"state", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, state), .default_text = "0",
     .help = "Only in this state of the state machine; 0: in every one."},
    {"skip", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, skip), .default_text = "0",
     .help = "Let this many such requests pass first."},
    {"count", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, count), .default_text = "0",
     .help = "Deal with this many requests only; 0: no limit."},
    {"once", BLOCK_OPTION_BOOL, offsetof(struct blkdebug_inject, once), .default_text = "off",
     .help = "As count=1."},
    {"probability", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, probability),
     .default_text = "100", .help = "In how many of 100 cases, drawn by the node's seed."},
    {"delay-ns", BLOCK_OPTION_UINT, offsetof(struct blkdebug_inject, delay_ns), .default_text = "0",
     .help = "Hold the request for this many nanoseconds first."},
    {NULL},
};

const struct block_option blkdebug_set_state_options[] = {
    {"event", BLOCK_OPTION_ENUM, offsetof(struct blkdebug_set_state, event), .required = true,
     .enum_values = blkdebug_event_names, .help = "The event that changes the state."},
    {"state", BLOCK_OPTION_UINT, offsetof(struct blkdebug_set_state, state), .default_text = "0",
     .help = "Only from this state; 0: from every one."},
    {"new_state", BLOCK_OPTION_UINT, offsetof(struct blkdebug_set_state, new_state),
     .required = true, .help = "The state afterwards. The first is 1."},
    {NULL},
};

const struct block_option blkdebug_rules_options[] = {
    {"inject-error", BLOCK_OPTION_LIST, offsetof(struct blkdebug_rules, inject_error),
     .element_options = blkdebug_inject_options, .element_size = sizeof(struct blkdebug_inject),
     .help = "Which requests fail or are late; the first rule that fits a request is applied."},
    {"set-state", BLOCK_OPTION_LIST, offsetof(struct blkdebug_rules, set_state),
     .element_options = blkdebug_set_state_options,
     .element_size = sizeof(struct blkdebug_set_state),
     .help = "How events change the state that rules depend on."},
    {NULL},
};

enum block_debug_event blkdebug_event_of(enum blkdebug_type type)
{
    switch (type) {
    case BLKDEBUG_TYPE_READ:
        return BLOCK_DEBUG_READ;
    case BLKDEBUG_TYPE_WRITE:
        return BLOCK_DEBUG_WRITE;
    case BLKDEBUG_TYPE_WRITE_ZEROES:
        return BLOCK_DEBUG_WRITE_ZEROES;
    case BLKDEBUG_TYPE_DISCARD:
        return BLOCK_DEBUG_DISCARD;
    case BLKDEBUG_TYPE_FLUSH:
        return BLOCK_DEBUG_FLUSH;
    case BLKDEBUG_TYPE_ANY:
    case BLKDEBUG_TYPE_BLOCK_STATUS:
        return BLOCK_DEBUG_NONE;
    }
    g_assert_not_reached();
}

/* splitmix64 */
uint64_t blkdebug_random(uint64_t *state)
{
    uint64_t mixed = *state += UINT64_C(0x9e3779b97f4a7c15);

    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ (mixed >> 31);
}

static int check_inject(struct blkdebug_inject *rule, size_t index, GError **error)
{
    uint64_t end;

    if (rule->error_number > ERRNO_MAX) {
        return block_error(error, EINVAL, "inject-error.%zu: errno must be between 0 and %d", index,
                           ERRNO_MAX);
    }
    if (rule->probability > 100) {
        return block_error(error, EINVAL, "inject-error.%zu: probability must be between 0 and 100",
                           index);
    }
    if (rule->once && rule->count > 1) {
        return block_error(error, EINVAL, "inject-error.%zu: once and count contradict each other",
                           index);
    }
    if (rule->sector < -1 || rule->sector > INT64_MAX / (int64_t)SECTOR_SIZE) {
        return block_error(error, EINVAL, "inject-error.%zu: no disk has sector %" PRId64, index,
                           rule->sector);
    }
    if (rule->sector >= 0 && (rule->offset || rule->bytes)) {
        return block_error(error, EINVAL,
                           "inject-error.%zu: give either sector, or offset and bytes", index);
    }
    if (!checked_add_u64(rule->offset, rule->bytes, &end)) {
        return block_error(error, EINVAL, "inject-error.%zu: the range is too large", index);
    }
    if (rule->sector >= 0) {
        rule->offset = (uint64_t)rule->sector * SECTOR_SIZE;
        rule->bytes = SECTOR_SIZE;
    }
    if (rule->once) {
        rule->count = 1;
    }
    return 0;
}

static int check_state(uint64_t state, const char *list, size_t index, GError **error)
{
    if (state > INT_MAX) {
        return block_error(error, EINVAL, "%s.%zu: a state is at most %d", list, index, INT_MAX);
    }
    return 0;
}

int blkdebug_rules_check(struct blkdebug_rules *rules, GError **error)
{
    struct blkdebug_inject *inject = rules->inject_error.elements;
    const struct blkdebug_set_state *set = rules->set_state.elements;
    int status = 0;

    for (size_t i = 0; i < rules->inject_error.count && status == 0; i++) {
        status = check_inject(&inject[i], i, error);
        if (status == 0) {
            status = check_state(inject[i].state, "inject-error", i, error);
        }
    }
    for (size_t i = 0; i < rules->set_state.count && status == 0; i++) {
        if (set[i].new_state == 0) {
            return block_error(error, EINVAL, "set-state.%zu: new_state must not be 0", i);
        }
        status = check_state(MAX(set[i].state, set[i].new_state), "set-state", i, error);
    }
    return status;
}

bool blkdebug_range_meets(enum blkdebug_type type, uint64_t offset, uint64_t bytes,
                          const struct blkdebug_request *request)
{
    if (type == BLKDEBUG_TYPE_ANY ? request->type == BLKDEBUG_TYPE_BLOCK_STATUS
                                  : request->type != type) {
        return false;
    }
    if (offset == 0 && bytes == 0) {
        return true;
    }
    return ranges_overlap(offset, bytes ? bytes : UINT64_MAX - offset, request->offset,
                          request->bytes);
}

static bool rule_meets(struct blkdebug_inject *rule, uint64_t *random,
                       const struct blkdebug_request *request)
{
    enum block_debug_event event = (enum block_debug_event)rule->event;

    if ((event != BLOCK_DEBUG_NONE && event != request->event &&
         event != blkdebug_event_of(request->type)) ||
        (rule->state && rule->state != request->state) ||
        !blkdebug_range_meets((enum blkdebug_type)rule->type, rule->offset, rule->bytes, request) ||
        (rule->count && rule->hits >= rule->count)) {
        return false;
    }
    if (rule->seen++ < rule->skip ||
        (rule->probability < 100 && blkdebug_random(random) % 100 >= rule->probability)) {
        return false;
    }
    rule->hits++;
    return true;
}

struct blkdebug_inject *blkdebug_rules_match(struct blkdebug_rules *rules, uint64_t *random,
                                             const struct blkdebug_request *request)
{
    struct blkdebug_inject *rule = rules->inject_error.elements;

    for (size_t i = 0; i < rules->inject_error.count; i++) {
        if (rule_meets(&rule[i], random, request)) {
            return &rule[i];
        }
    }
    return NULL;
}

unsigned blkdebug_rules_next_state(const struct blkdebug_rules *rules, unsigned state,
                                   enum block_debug_event event)
{
    const struct blkdebug_set_state *rule = rules->set_state.elements;

    for (size_t i = 0; i < rules->set_state.count; i++) {
        if ((enum block_debug_event)rule[i].event == event &&
            (!rule[i].state || rule[i].state == state)) {
            return (unsigned)rule[i].new_state;
        }
    }
    return state;
}
