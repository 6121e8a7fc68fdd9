/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions: several actions on the admin channel's behalf take effect at one moment, or none
 * does. A command that is also an action runs as a transaction of one, so there is one way.
 *
 * Each action goes through these steps; any of its functions may be NULL.
 *
 *   step      thread     drained  may fail  may block
 *   prepare   command's  no       yes       yes        checks, looks up, opens, creates the job
 *   change    command's  yes      yes       yes        changes an image, which takes I/O
 *   apply     main       yes      yes       no         changes what later actions look at
 *   undo      main       yes      no        no         takes apply back
 *   revert    command's  yes      no        yes        takes change back
 *   activate  main       yes      no        no         the moment of a job or a view
 *   commit    command's  no       no        yes        starts the job, tells the world
 *   abort     command's  no       no        yes        takes prepare back
 *   clean     command's  no       no        yes        frees what the state holds
 *
 * All actions are prepared in order. The nodes they named with transaction_drain are drained in
 * one section (those who write, BLOCK_PERM_WRITE), and there all make their changes in order, then
 * all are applied in order and then all activated: that is the one moment of the transaction, for
 * guests as long as the changes take. After the section all are committed.
 *
 * If one fails to change or to apply, those before it are undone in reverse order and then reverted
 * in reverse order, before any guest goes on.
 * If one fails before activate, all those that were prepared are aborted in reverse order.
 * An action that fails leaves nothing but what its clean frees; clean is called for each action
 * whose prepare was called, in reverse order, at the very end.
 *
 * Nothing is drained while actions are prepared, so apply checks again what may have changed
 * since then; prepare checks it as well, so that the first action to fail is the first in order,
 * and before later ones have created files. Apply may wait for nothing.
 *
 * From activate on there is no way back. A job whose thread cannot be started then fails as a job
 * (job_start_or_fail), and if jobs are grouped the others are cancelled; the command succeeds.
 *
 * To add an action: write its functions and a struct transaction_action_type beside the command
 * it belongs to, and add that to the table in commands-transaction.c, which is all that schema and
 * documentation need. The command's handler, if there is one, calls transaction_run_single.
 */
#ifndef LIVEBLK_SERVER_TRANSACTION_H
#define LIVEBLK_SERVER_TRANSACTION_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "block/cleanup.h"
#include "block/node.h"
#include "jobs/job.h"
#include "server/qmp/schema.h"

struct transaction;
struct transaction_action;

struct transaction_action_type {
    const char *name;            /* as in QMP */
    const struct qmp_type *data; /* its arguments; never NULL */
    size_t state_size;           /* of transaction_state(), zeroed */
    bool supports_grouped;       /* it has a job, which completion-mode grouped is about, or ends
                                    all */

    /* data was checked against the type and lives as long as the transaction. */
    int (*prepare)(struct transaction_action *action, json_t *data, GError **error);
    int (*change)(struct transaction_action *action, GError **error);
    int (*apply)(struct transaction_action *action, GError **error);
    void (*undo)(struct transaction_action *action);
    void (*revert)(struct transaction_action *action);
    void (*activate)(struct transaction_action *action);
    void (*commit)(struct transaction_action *action);
    void (*abort)(struct transaction_action *action);
    void (*clean)(struct transaction_action *action);

    const char *doc; /* one sentence */
};

/* ---- For those who run transactions: all by one thread, not the main thread ----------------- */

/* grouped: jobs end together, and the failure of one cancels the others. */
struct transaction *transaction_new(bool grouped);
void transaction_free(struct transaction *transaction);
DEFINE_AUTO(transaction, transaction_free)

/*
 * Add an action; data (checked against its type) is borrowed until transaction_free. -ENOTSUP
 * "Action '%s' does not support transaction property completion-mode = grouped".
 */
int transaction_add(struct transaction *transaction, const struct transaction_action_type *type,
                    json_t *data, GError **error);

/* Run it, once. A negative errno with the error set: nothing has changed. */
int transaction_run(struct transaction *transaction, GError **error);

/* How long guests were held for it, at most: from when its drained section was asked for. */
int64_t transaction_held_ns(const struct transaction *transaction);

/* Run one action by itself: the answer of a command that returns nothing, or NULL. */
json_t *transaction_run_single(const struct transaction_action_type *type, json_t *data,
                               GError **error);

/* ---- For actions ----------------------------------------------------------------------------- */

void *transaction_state(struct transaction_action *action);

/* What jobs of this action belong to: for job_new. Borrowed. */
struct job_transaction *transaction_jobs(struct transaction_action *action);

/* In prepare: this node's writers are to be drained. Takes a reference. */
void transaction_drain(struct transaction_action *action, struct block_node *node);

/* In prepare: guests that are held by the drained section wait for this job, too. */
void transaction_drain_for(struct transaction_action *action, struct job *job);

/* In prepare, besides: the readers of all nodes, too. For actions that change images. */
void transaction_drain_readers(struct transaction_action *action);

/*
 * In prepare: that the thing of this key (say, a bitmap of that name on that node) will exist or
 * not once this action is applied, for the eyes of later actions of the same transaction.
 */
void transaction_plan(struct transaction_action *action, const char *key, bool exists);

/* In prepare: whether it will exist by the time this action is applied; now: whether it does. */
bool transaction_is_planned(struct transaction_action *action, const char *key, bool now);

#endif
