/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/transaction.h"

#include <errno.h>

#include "block/clock.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/guest-waits.h"
#include "block/main-loop.h"

struct transaction_action {
    const struct transaction_action_type *type;
    struct transaction *transaction;
    json_t *data;
    void *state;
};

struct transaction {
    GPtrArray *actions; /* struct transaction_action, in order */
    GPtrArray *nodes;   /* to drain; references */
    GPtrArray *waits;   /* struct guest_waits of the jobs that is for; references */
    unsigned drain_perms;
    GHashTable *plans; /* key -> whether it will exist */
    struct job_transaction *jobs;
    bool grouped;
    int64_t held_ns;
};

static void free_action(void *data)
{
    struct transaction_action *action = data;

    g_free(action->state);
    g_free(action);
}

struct transaction *transaction_new(bool grouped)
{
    struct transaction *transaction = g_new0(struct transaction, 1);

    transaction->actions = g_ptr_array_new_with_free_func(free_action);
    transaction->nodes = g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    transaction->waits = g_ptr_array_new_with_free_func((GDestroyNotify)guest_waits_unref);
    transaction->drain_perms = BLOCK_PERM_WRITE;
    transaction->plans = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    transaction->jobs = job_transaction_new(grouped);
    transaction->grouped = grouped;
    return transaction;
}

void transaction_free(struct transaction *transaction)
{
    if (transaction) {
        g_ptr_array_unref(transaction->actions);
        g_ptr_array_unref(transaction->nodes);
        g_ptr_array_unref(transaction->waits);
        g_hash_table_unref(transaction->plans);
        job_transaction_unref(transaction->jobs);
        g_free(transaction);
    }
}

int transaction_add(struct transaction *transaction, const struct transaction_action_type *type,
                    json_t *data, GError **error)
{
    struct transaction_action *action;

    if (transaction->grouped && !type->supports_grouped) {
        return block_error(error, ENOTSUP,
                           "Action '%s' does not support transaction property "
                           "completion-mode = grouped",
                           type->name);
    }
    action = g_new0(struct transaction_action, 1);
    action->type = type;
    action->transaction = transaction;
    action->data = data;
    action->state = g_malloc0(MAX(type->state_size, 1));
    g_ptr_array_add(transaction->actions, action);
    return 0;
}

static struct transaction_action *action_at(struct transaction *transaction, guint index)
{
    return g_ptr_array_index(transaction->actions, index);
}

/* ---- The drained moment; what is applied is on the main thread
 * ------------------------------------------------- */

struct moment {
    struct transaction *transaction;
    int status;
    GError **error;
};

/* The actions before one, latest first. */
static void undo_before(struct transaction *transaction, guint end)
{
    while (end-- > 0) {
        struct transaction_action *action = action_at(transaction, end);

        if (action->type->undo) {
            action->type->undo(action);
        }
    }
}

static void apply_all(void *data)
{
    struct moment *moment = data;
    struct transaction *transaction = moment->transaction;

    for (guint i = 0; i < transaction->actions->len; i++) {
        struct transaction_action *action = action_at(transaction, i);

        if (action->type->apply) {
            moment->status = action->type->apply(action, moment->error);
        }
        if (moment->status < 0) {
            undo_before(transaction, i);
            return;
        }
    }
    for (guint i = 0; i < transaction->actions->len; i++) {
        struct transaction_action *action = action_at(transaction, i);

        if (action->type->activate) {
            action->type->activate(action);
        }
    }
}

/* *changed: how many have made their changes. */
static int change_all(struct transaction *transaction, guint *changed, GError **error)
{
    for (*changed = 0; *changed < transaction->actions->len; (*changed)++) {
        struct transaction_action *action = action_at(transaction, *changed);
        int status = action->type->change ? action->type->change(action, error) : 0;

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

static void revert_changed(struct transaction *transaction, guint changed)
{
    while (changed-- > 0) {
        struct transaction_action *action = action_at(transaction, changed);

        if (action->type->revert) {
            action->type->revert(action);
        }
    }
}

static int apply_drained(struct transaction *transaction, GError **error)
{
    struct moment moment = {.transaction = transaction, .error = error};
    int64_t begun_ns = clock_now_ns();
    guint changed;
    AUTO(guest_waits)
    waits = guest_waits_new_joint((struct guest_waits *const *)transaction->waits->pdata,
                                  transaction->waits->len);
    GUEST_WAITS_SCOPE(waits);
    struct block_drain *drain =
        block_drain_begin((struct block_node *const *)transaction->nodes->pdata,
                          transaction->nodes->len, transaction->drain_perms);

    moment.status = change_all(transaction, &changed, error);
    if (moment.status == 0) {
        main_loop_call_wait(apply_all, &moment);
    }
    if (moment.status < 0) {
        revert_changed(transaction, changed);
    }
    block_drain_end(drain);
    transaction->held_ns = clock_now_ns() - begun_ns;
    return moment.status;
}

/* ---- Before and after it, on the command's thread ------------------------------------------- */

/* *prepared: how many were. */
static int prepare_all(struct transaction *transaction, guint *prepared, GError **error)
{
    for (*prepared = 0; *prepared < transaction->actions->len; (*prepared)++) {
        struct transaction_action *action = action_at(transaction, *prepared);
        int status = action->type->prepare ? action->type->prepare(action, action->data, error) : 0;

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

static void commit_all(struct transaction *transaction)
{
    for (guint i = 0; i < transaction->actions->len; i++) {
        struct transaction_action *action = action_at(transaction, i);

        if (action->type->commit) {
            action->type->commit(action);
        }
    }
}

static void abort_prepared(struct transaction *transaction, guint prepared)
{
    while (prepared-- > 0) {
        struct transaction_action *action = action_at(transaction, prepared);

        if (action->type->abort) {
            action->type->abort(action);
        }
    }
}

/* touched: how many were prepared, or tried to be. */
static void clean_touched(struct transaction *transaction, guint touched)
{
    while (touched-- > 0) {
        struct transaction_action *action = action_at(transaction, touched);

        if (action->type->clean) {
            action->type->clean(action);
        }
    }
}

int transaction_run(struct transaction *transaction, GError **error)
{
    guint prepared;
    int status = prepare_all(transaction, &prepared, error);

    if (status == 0) {
        status = apply_drained(transaction, error);
    }
    if (status == 0) {
        commit_all(transaction);
    } else {
        abort_prepared(transaction, prepared);
    }
    clean_touched(transaction, MIN(prepared + 1, transaction->actions->len));
    return status;
}

int64_t transaction_held_ns(const struct transaction *transaction)
{
    return transaction->held_ns;
}

json_t *transaction_run_single(const struct transaction_action_type *type, json_t *data,
                               GError **error)
{
    AUTO(transaction) transaction = transaction_new(false);
    int status = transaction_add(transaction, type, data, error);

    if (status == 0) {
        status = transaction_run(transaction, error);
    }
    return status == 0 ? json_object() : NULL;
}

/* ---- For actions ----------------------------------------------------------------------------- */

void *transaction_state(struct transaction_action *action)
{
    return action->state;
}

struct job_transaction *transaction_jobs(struct transaction_action *action)
{
    return action->transaction->jobs;
}

void transaction_drain(struct transaction_action *action, struct block_node *node)
{
    g_ptr_array_add(action->transaction->nodes, block_node_ref(node));
}

void transaction_drain_for(struct transaction_action *action, struct job *job)
{
    g_ptr_array_add(action->transaction->waits, guest_waits_ref(job_guest_waits(job)));
}

void transaction_drain_readers(struct transaction_action *action)
{
    action->transaction->drain_perms = BLOCK_PERM_ALL;
}

void transaction_plan(struct transaction_action *action, const char *key, bool exists)
{
    g_hash_table_replace(action->transaction->plans, g_strdup(key), GINT_TO_POINTER(exists));
}

bool transaction_is_planned(struct transaction_action *action, const char *key, bool now)
{
    void *exists;

    return g_hash_table_lookup_extended(action->transaction->plans, key, NULL, &exists)
               ? GPOINTER_TO_INT(exists)
               : now;
}
