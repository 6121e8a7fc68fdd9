/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The rules of a blkdebug node: which requests fail, and which are late. Plain data and matching;
 * the caller keeps other threads away.
 */
#ifndef LIVEBLK_FORMATS_BLKDEBUG_RULES_H
#define LIVEBLK_FORMATS_BLKDEBUG_RULES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/driver.h"
#include "block/options.h"

/* Kinds of requests. ANY is all but block status. */
enum blkdebug_type {
    BLKDEBUG_TYPE_ANY,
    BLKDEBUG_TYPE_READ,
    BLKDEBUG_TYPE_WRITE,
    BLKDEBUG_TYPE_WRITE_ZEROES,
    BLKDEBUG_TYPE_DISCARD,
    BLKDEBUG_TYPE_FLUSH,
    BLKDEBUG_TYPE_BLOCK_STATUS,
};
extern const char *const blkdebug_type_names[];

/* Names of enum block_debug_event, QEMU's where it has the event. */
extern const char *const blkdebug_event_names[];

/* The states of the state machine are small numbers; it starts in state 1, and 0 is "any". */
#define BLKDEBUG_FIRST_STATE 1

struct blkdebug_inject {
    int event;
    int type;
    uint64_t error_number; /* 0: only the delay */
    int64_t sector;        /* -1: not given */
    uint64_t offset;
    uint64_t bytes; /* 0: to the end */
    uint64_t state; /* 0: any */
    uint64_t skip;
    uint64_t count; /* 0: no limit */
    bool once;
    uint64_t probability; /* percent */
    uint64_t delay_ns;

    uint64_t seen; /* requests that met the conditions, those skipped among them */
    uint64_t hits; /* and were dealt with */
};

struct blkdebug_set_state {
    int event;
    uint64_t state; /* 0: any */
    uint64_t new_state;
};

/* The options inject-error and set-state, for blockdev-add and blkdebug-set alike. */
struct blkdebug_rules {
    struct block_option_list inject_error; /* of struct blkdebug_inject */
    struct block_option_list set_state;    /* of struct blkdebug_set_state */
};
extern const struct block_option blkdebug_inject_options[];
extern const struct block_option blkdebug_set_state_options[];
extern const struct block_option blkdebug_rules_options[];

/* A request on its way. */
struct blkdebug_request {
    enum blkdebug_type type;
    enum block_debug_event event; /* announced by the driver above, or NONE */
    unsigned state;               /* when that was announced, or now */
    uint64_t offset;
    uint64_t bytes; /* 0 for a flush */
};

/* True if a kind of request and a range (bytes 0: to the end) take in a request. */
bool blkdebug_range_meets(enum blkdebug_type type, uint64_t offset, uint64_t bytes,
                          const struct blkdebug_request *request);

/* The event every request of this kind is. */
enum block_debug_event blkdebug_event_of(enum blkdebug_type type);

/* What the tables cannot say: -EINVAL with the sentence. Fills ranges from sectors. */
int blkdebug_rules_check(struct blkdebug_rules *rules, GError **error);

/* The first rule that deals with a request, counted, or NULL. random is the node's generator. */
struct blkdebug_inject *blkdebug_rules_match(struct blkdebug_rules *rules, uint64_t *random,
                                             const struct blkdebug_request *request);

/* The state after an event. */
unsigned blkdebug_rules_next_state(const struct blkdebug_rules *rules, unsigned state,
                                   enum block_debug_event event);

/* A number from a generator of 64 bits of state; the same for the same seed on every machine. */
uint64_t blkdebug_random(uint64_t *state);

#endif
