/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading from a quorum: all children are asked, what they say is compared, and the most win. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/request.h"
#include "formats/quorum-internal.h"

/* So many bytes are compared at once: what several of the children hold is in memory meanwhile. */
#define PIECE MIB

/* What one child says: the number of a version, unless it failed. */
struct vote {
    struct block_node *child;
    int status;
    unsigned version;
};

struct version {
    void *data;
    unsigned votes;
};

struct ballot {
    struct block_node *node;
    uint64_t offset, bytes;
    unsigned count; /* of votes */
    struct vote *votes;
    struct version *versions; /* the first is in the reader's buffer, the others are ours */
    unsigned version_count;
    void *spare; /* a buffer of ours, or NULL */
};

static void ballot_init(struct ballot *ballot, struct block_node *node, uint64_t offset,
                        uint64_t bytes)
{
    *ballot = (struct ballot){.node = node, .offset = offset, .bytes = bytes};
    ballot->count = quorum_count(node);
    ballot->votes = g_new0(struct vote, ballot->count);
    ballot->versions = g_new0(struct version, ballot->count);
}

static void ballot_clear(struct ballot *ballot)
{
    for (unsigned i = 1; i < ballot->version_count; i++) {
        free(ballot->versions[i].data);
    }
    free(ballot->spare);
    g_free(ballot->versions);
    g_free(ballot->votes);
}

/* ---- Voting ---------------------------------------------------------------------------------- */

/* data: what the child says. Whether it is a version of its own, which keeps the buffer. */
static bool count_vote(struct ballot *ballot, struct vote *vote, void *data)
{
    for (vote->version = 0; vote->version < ballot->version_count; vote->version++) {
        struct version *version = &ballot->versions[vote->version];

        if (!memcmp(version->data, data, ballot->bytes)) {
            version->votes++;
            return false;
        }
    }
    ballot->versions[ballot->version_count++] = (struct version){.data = data, .votes = 1};
    return true;
}

static int ask(struct ballot *ballot, struct vote *vote, void *buffer, unsigned flags)
{
    bool is_first = ballot->version_count == 0;

    if (!is_first && !ballot->spare) {
        ballot->spare = block_node_alloc_buffer(ballot->node, ballot->bytes);
    }
    void *data = is_first ? buffer : ballot->spare;
    if (!data) {
        return -ENOMEM;
    }
    vote->status = block_node_pread(vote->child, data, ballot->offset, ballot->bytes, flags);
    if (vote->status == 0 && count_vote(ballot, vote, data) && !is_first) {
        ballot->spare = NULL;
    }
    return 0;
}

/* Ask all children. buffer: the reader's. Negative only if nothing can be said at all. */
static int vote(struct ballot *ballot, void *buffer, unsigned flags)
{
    const struct block_child *child;
    unsigned i = 0;
    int status = 0;

    QUORUM_FOREACH(child, ballot->node)
    {
        ballot->votes[i].child = child->claim.node;
        status = ask(ballot, &ballot->votes[i++], buffer, flags);
        if (status < 0) {
            break;
        }
    }
    return status;
}

/* The version that most children have; of several the one that comes first. */
static unsigned find_winner(const struct ballot *ballot)
{
    unsigned winner = 0;

    for (unsigned i = 1; i < ballot->version_count; i++) {
        if (ballot->versions[i].votes > ballot->versions[winner].votes) {
            winner = i;
        }
    }
    return winner;
}

/* ---- The result ------------------------------------------------------------------------------ */

/* What those say that could be read, or else why they could not. */
static int judge_reads(const struct ballot *ballot)
{
    g_autofree int *statuses = g_new(int, ballot->count);

    for (unsigned i = 0; i < ballot->count; i++) {
        statuses[i] = ballot->votes[i].status;
        if (statuses[i] < 0) {
            quorum_report_bad(QUORUM_READ, ballot->votes[i].child, statuses[i], ballot->offset,
                              ballot->bytes);
        }
    }
    return quorum_verdict(ballot->node, statuses, ballot->count);
}

static void tell_difference(const struct ballot *ballot)
{
    const uint8_t *a = ballot->versions[0].data, *b = ballot->versions[1].data;
    uint64_t at = 0;

    while (a[at] == b[at]) {
        at++;
    }
    g_warning("Node '%s': its children '%s' and '%s' differ at offset %" PRIu64, ballot->node->name,
              ballot->votes[0].child->name, ballot->votes[1].child->name, ballot->offset + at);
}

/* Whether there is a winner: 0 or a negative errno. Tells of children and of failure. */
static int judge(const struct ballot *ballot)
{
    const struct quorum_rules *rules =
        &((const struct quorum_state *)block_node_state(ballot->node))->rules;
    unsigned winner = find_winner(ballot);
    int status = judge_reads(ballot);

    if (status == 0 && ballot->versions[winner].votes < rules->threshold) {
        status = -EIO;
        if (rules->verifies) {
            tell_difference(ballot);
        }
    }
    if (status < 0) {
        quorum_report_failure(ballot->node, ballot->offset, ballot->bytes);
        return status;
    }
    for (unsigned i = 0; i < ballot->count; i++) {
        const struct vote *vote = &ballot->votes[i];

        if (vote->status == 0 && vote->version != winner) {
            quorum_report_bad(QUORUM_READ, vote->child, 0, ballot->offset, ballot->bytes);
        }
    }
    return 0;
}

/* Those that were out-voted get what the winner has. A child that cannot take it stays as it is. */
static void rewrite_losers(const struct ballot *ballot)
{
    unsigned winner = find_winner(ballot);

    for (unsigned i = 0; i < ballot->count; i++) {
        const struct vote *vote = &ballot->votes[i];

        if (vote->status < 0 || vote->version == winner) {
            continue;
        }
        int status = block_node_pwrite(vote->child, ballot->versions[winner].data, ballot->offset,
                                       ballot->bytes, 0);
        if (status < 0) {
            quorum_report_bad(QUORUM_WRITE, vote->child, status, ballot->offset, ballot->bytes);
        }
    }
}

static void deliver(const struct ballot *ballot, void *buffer)
{
    unsigned winner = find_winner(ballot);

    if (winner != 0) {
        memcpy(buffer, ballot->versions[winner].data, ballot->bytes);
    }
}

/* ---- Requests -------------------------------------------------------------------------------- */

/*
 * may_rewrite: nobody else is in the range, and losers are rewritten. Without, where there are some
 * and they should be: nothing is said or told yet, and the answer is -EAGAIN.
 */
static int read_compared(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                         unsigned flags, bool may_rewrite)
{
    struct quorum_state *state = block_node_state(node);
    bool rewrites = state->rules.rewrites && !block_node_is_read_only(node);
    struct tracked_request tracked;
    struct ballot ballot;

    ballot_init(&ballot, node, offset, bytes);
    tracked_request_begin(&state->tracked, &tracked, offset, bytes, may_rewrite);
    int status = vote(&ballot, buffer, flags);
    if (status == 0 && rewrites && !may_rewrite && ballot.version_count > 1) {
        status = -EAGAIN;
    } else if (status == 0) {
        status = judge(&ballot);
        if (status == 0 && rewrites && may_rewrite) {
            rewrite_losers(&ballot);
        }
        if (status == 0) {
            deliver(&ballot, buffer);
        }
    }
    tracked_request_end(&state->tracked, &tracked);
    ballot_clear(&ballot);
    return status;
}

static int read_piece(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    int status = read_compared(node, buffer, offset, bytes, flags, false);

    /* What the children hold may be another by then, so they are asked again. */
    return status == -EAGAIN ? read_compared(node, buffer, offset, bytes, flags, true) : status;
}

static int read_first(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    unsigned count = quorum_count(node), i = 0;
    g_autofree int *statuses = g_new(int, count);
    const struct block_child *child;

    QUORUM_FOREACH(child, node)
    {
        statuses[i] = block_node_pread(child->claim.node, buffer, offset, bytes, flags);
        if (statuses[i] == 0) {
            return 0;
        }
        quorum_report_bad(QUORUM_READ, child->claim.node, statuses[i++], offset, bytes);
    }
    quorum_report_failure(node, offset, bytes);
    return quorum_verdict(node, statuses, count);
}

int quorum_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                 unsigned flags)
{
    const struct quorum_state *state = block_node_state(node);
    char *to = buffer;
    int status = 0;

    if (state->rules.is_fifo) {
        return read_first(node, buffer, offset, bytes, flags);
    }
    for (uint64_t end = offset + bytes, piece; status == 0 && offset < end; offset += piece) {
        piece = MIN_OF(end, align_down(offset, PIECE) + PIECE) - offset;
        status = read_piece(node, to, offset, piece, flags);
        to += piece;
    }
    return status;
}
