/* SPDX-License-Identifier: BSD-3-Clause */
/* The command `transaction`, and which actions there are. */
#include "server/commands-transaction.h"

#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "server/commands-backup.h"
#include "server/commands-bitmap.h"
#include "server/commands-chain.h"
#include "server/commands-snapshot.h"
#include "server/commands-tracking.h"
#include "server/commands-verify.h"
#include "server/commands-views.h"
#include "server/lookup.h"
#include "server/transaction.h"

static int prepare_abort(struct transaction_action *action, json_t *data, GError **error)
{
    return block_error(error, ECANCELED, "Transaction aborted using Abort action");
}

static const struct transaction_action_type abort_action = {
    .name = "abort",
    .data = &qmp_type_empty,
    .supports_grouped = true, /* whatever the mode, nothing is left of it */
    .prepare = prepare_abort,
    .doc = "Fail, so that the whole transaction does.",
};

static const struct transaction_action_type *const action_types[] = {
    &abort_action,         &bitmap_add_action,     &bitmap_remove_action,   &bitmap_clear_action,
    &bitmap_enable_action, &bitmap_disable_action, &bitmap_merge_action,    &blockdev_backup_action,
    &drive_backup_action,  &view_create_action,    &snapshot_create_action, &overlay_action,
    &overlay_file_action,  &checkpoint_add_action, &blockdev_verify_action,
};

static const struct transaction_action_type *find_type(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(action_types); i++) {
        if (!strcmp(action_types[i]->name, name)) {
            return action_types[i];
        }
    }
    g_assert_not_reached();
}

/* ---- Types: a union of {type, data}, made from the table ------------------------------------ */

static const char *action_names[G_N_ELEMENTS(action_types) + 1];
static const struct qmp_type action_kind_type = {
    .name = "TransactionActionKind",
    .kind = QMP_KIND_ENUM,
    .values = action_names,
};
static const struct qmp_member action_base_members[] = {
    {"type", &action_kind_type, .doc = "What to do."},
    {NULL},
};

/* For each action an object whose only member is `data`. */
static struct qmp_member data_members[G_N_ELEMENTS(action_types)][2];
static struct qmp_type data_types[G_N_ELEMENTS(action_types)];
static struct qmp_variant action_variants[G_N_ELEMENTS(action_types) + 1];

static const struct qmp_type action_type = {
    .name = "TransactionAction",
    .kind = QMP_KIND_OBJECT,
    .members = action_base_members,
    .discriminator = "type",
    .variants = action_variants,
    .doc = "A part of a transaction: what to do, and in `data` the arguments it has.",
};
static const struct qmp_type action_list_type = {
    .name = "TransactionActionList",
    .kind = QMP_KIND_ARRAY,
    .element = &action_type,
};

void transaction_commands_init(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(action_types); i++) {
        const struct transaction_action_type *action = action_types[i];

        data_members[i][0] = (struct qmp_member){"data", action->data, .doc = action->doc};
        data_types[i] = (struct qmp_type){
            .name = "TransactionActionData",
            .kind = QMP_KIND_OBJECT,
            .members = data_members[i],
        };
        action_names[i] = action->name;
        action_variants[i] = (struct qmp_variant){action->name, &data_types[i]};
    }
}

static const char *const completion_names[] = {"individual", "grouped", NULL};
static const struct qmp_type completion_type = {
    .name = "ActionCompletionMode",
    .kind = QMP_KIND_ENUM,
    .values = completion_names,
    .doc = "individual: each job ends by itself; grouped: all jobs end together, and if one fails "
           "or is cancelled the others are cancelled.",
};
static const struct qmp_member properties_members[] = {
    {"completion-mode", &completion_type, .optional = true, .default_text = "individual",
     .doc = "How the jobs end. grouped is for actions that start a job only."},
    {NULL},
};
static const struct qmp_type properties_type = {
    .name = "TransactionProperties",
    .kind = QMP_KIND_OBJECT,
    .members = properties_members,
};

static const struct qmp_member transaction_members[] = {
    {"actions", &action_list_type, .doc = "What to do, in order."},
    {"properties", &properties_type, .optional = true, .doc = "How."},
    {NULL},
};
static const struct qmp_type transaction_type = {
    .name = "Transaction",
    .kind = QMP_KIND_OBJECT,
    .members = transaction_members,
};

/* ---- The command ----------------------------------------------------------------------------- */

static bool is_grouped(json_t *arguments)
{
    json_t *properties = json_object_get(arguments, "properties");
    json_t *mode = json_object_get(properties, "completion-mode");

    return mode && lookup_enum(mode, completion_names) == 1;
}

static json_t *run_transaction(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(transaction) transaction = transaction_new(is_grouped(arguments));
    json_t *item;
    size_t index;

    json_array_foreach (json_object_get(arguments, "actions"), index, item) {
        const char *name = json_string_value(json_object_get(item, "type"));

        if (transaction_add(transaction, find_type(name), json_object_get(item, "data"), error) <
            0) {
            return NULL;
        }
    }
    return transaction_run(transaction, error) == 0 ? json_object() : NULL;
}

const struct qmp_command transaction_commands[] = {
    {"transaction", &transaction_type, NULL, run_transaction, 0,
     "Do several things at one moment, or none of them. Guests' writes to all the disks concerned "
     "stand still at that moment. Actions see what those before them have done."},
    {NULL},
};
