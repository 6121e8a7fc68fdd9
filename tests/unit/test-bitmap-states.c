/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bitmaps that are busy, read-only or inconsistent: which command refuses which, with what words,
 * also if they become so while a transaction is under way; and what queries tell of them.
 */
#include <errno.h>

#include "block/align.h"
#include "server/commands-backup.h"
#include "server/commands-bitmap.h"
#include "server/query.h"
#include "tests/lib/bitmap-rig.h"

#define BUSY     "Bitmap 'b' is currently in use by another operation and cannot be used"
#define READONLY "Bitmap 'b' is readonly and cannot be modified"
#define BROKEN   "Bitmap 'b' is inconsistent and cannot be used"

static void make_busy(struct dirty_bitmap *bitmap)
{
    dirty_bitmap_hold(bitmap);
}

static void make_read_only(struct dirty_bitmap *bitmap)
{
    dirty_bitmap_set_read_only(bitmap, true);
}

static void (*const states[])(struct dirty_bitmap *bitmap) = {make_busy, make_read_only,
                                                              dirty_bitmap_set_inconsistent};
enum { STATE_BUSY, STATE_READ_ONLY, STATE_INCONSISTENT };

struct use {
    const struct transaction_action_type *type;
    const char *data;
    const char *refusals[G_N_ELEMENTS(states)]; /* NULL: it is done */
};

static const struct use uses[] = {
    {&bitmap_clear_action, "{'node': 'source', 'name': 'b'}", {BUSY, READONLY, BROKEN}},
    {&bitmap_enable_action, "{'node': 'source', 'name': 'b'}", {BUSY, NULL, BROKEN}},
    {&bitmap_disable_action, "{'node': 'source', 'name': 'b'}", {BUSY, NULL, BROKEN}},
    {&bitmap_merge_action,
     "{'node': 'source', 'target': 'b', 'bitmaps': ['c']}",
     {BUSY, READONLY, BROKEN}},
    {&bitmap_merge_action,
     "{'node': 'source', 'target': 'c', 'bitmaps': ['c', 'b']}",
     {BUSY, NULL, BROKEN}},
    {&blockdev_backup_action,
     "{'device': 'source', 'target': 'target', 'sync': 'incremental', 'bitmap': 'b', "
     "'job-id': 'j', 'auto-dismiss': false}",
     {BUSY, READONLY, BROKEN}},
    {&blockdev_backup_action,
     "{'device': 'vda', 'target': 'target', 'sync': 'full', 'bitmap': 'b', "
     "'bitmap-mode': 'always', 'job-id': 'j', 'auto-dismiss': false}",
     {BUSY, READONLY, BROKEN}},
    {&blockdev_backup_action,
     "{'device': 'source', 'target': 'target', 'sync': 'bitmap', 'bitmap': 'b', "
     "'bitmap-mode': 'never', 'job-id': 'j', 'auto-dismiss': false}",
     {BUSY, NULL, BROKEN}},
    {&bitmap_remove_action, "{'node': 'source', 'name': 'b'}", {BUSY, READONLY, NULL}},
};

static struct rig *rig;
static struct block_node *target;
static struct dirty_bitmap *bitmap;

static json_t *parse(const char *text)
{
    g_auto(GStrv) parts = g_strsplit(text, "'", -1);
    g_autofree char *json = g_strjoinv("\"", parts);
    json_t *value = json_loads(json, 0, NULL);

    g_assert_nonnull(value);
    return value;
}

static void add(const char *name)
{
    json_t *data = json_pack("{s:s, s:s}", "node", "source", "name", name);

    json_decref(transaction_run_single(&bitmap_add_action, data, NULL));
    json_decref(data);
}

static void set_up(void)
{
    rig = rig_new(MIB, 1);
    target = rig_target(rig, "target", false);
    add("b");
    add("c");
    bitmap = rig_bitmap(rig);
    g_assert_cmpint(rig_pwrite(rig, 1, 0, 512), ==, 0);
}

static void remove_one(const char *name)
{
    json_t *data = json_pack("{s:s, s:s}", "node", "source", "name", name);
    json_t *answer = transaction_run_single(&bitmap_remove_action, data, NULL);

    json_decref(answer);
    json_decref(data);
}

static void tear_down(bool is_there)
{
    struct job *job = job_find("j");

    if (job) { /* it was allowed */
        g_free(rig_end(job));
    }
    if (is_there) {
        bitmap = rig_bitmap(rig);
        if (dirty_bitmap_is_busy(bitmap)) {
            dirty_bitmap_let_go(bitmap);
        }
        dirty_bitmap_set_read_only(bitmap, false);
        remove_one("b");
    }
    remove_one("c");
    rig_assert_unused(target);
    rig_free(rig);
}

/* What becomes of the bitmap before an action is applied, and after it was prepared. */
static void (*meddle)(struct dirty_bitmap *bitmap);

static int prepare_meddle(struct transaction_action *action, json_t *data, GError **error)
{
    meddle(bitmap);
    return 0;
}

static const struct transaction_action_type meddle_action = {
    .name = "meddle",
    .data = &qmp_type_any,
    .prepare = prepare_meddle,
};

/* Returns the error's message, which the caller frees, or NULL. */
static char *run_use(const struct use *use, unsigned state, bool is_late)
{
    AUTO(transaction) transaction = transaction_new(false);
    g_autoptr(GError) error = NULL;
    json_t *data = parse(use->data);

    if (is_late) {
        meddle = states[state];
    } else {
        states[state](bitmap);
    }
    transaction_add(transaction, use->type, data, NULL);
    if (is_late) {
        transaction_add(transaction, &meddle_action, NULL, NULL);
    }
    transaction_run(transaction, &error);
    json_decref(data);
    return error ? g_strdup(error->message) : NULL;
}

static void test_refusals(gconstpointer data)
{
    bool is_late = GPOINTER_TO_INT(data);

    for (size_t i = 0; i < G_N_ELEMENTS(uses); i++) {
        for (unsigned state = 0; state < G_N_ELEMENTS(states); state++) {
            set_up();
            g_autofree char *message = run_use(&uses[i], state, is_late);
            g_assert_cmpstr(message, ==, uses[i].refusals[state]);
            bool is_there = message || uses[i].type != &bitmap_remove_action;
            if (message) { /* nothing has changed */
                g_assert_true(rig_bitmap(rig) == bitmap);
                g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, 64 * KIB);
                g_assert_cmpint(dirty_bitmap_is_busy(bitmap), ==, state == STATE_BUSY);
                g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, state != STATE_INCONSISTENT);
            }
            tear_down(is_there);
        }
    }
}

static json_t *query_bitmap(void)
{
    json_t *node = query_node(rig->source, NULL, true);
    json_t *list = json_object_get(node, "dirty-bitmaps");

    g_assert_cmpuint(json_array_size(list), ==, 2);
    json_t *found = json_incref(json_array_get(list, 1)); /* the older one */
    json_decref(node);
    return found;
}

static void expect_flags(bool recording, bool busy, bool persistent, json_t *inconsistent)
{
    json_t *found = query_bitmap();

    g_assert_cmpstr(json_string_value(json_object_get(found, "name")), ==, "b");
    g_assert_true(json_object_get(found, "recording") == json_boolean(recording));
    g_assert_true(json_object_get(found, "busy") == json_boolean(busy));
    g_assert_true(json_object_get(found, "persistent") == json_boolean(persistent));
    g_assert_true(json_object_get(found, "inconsistent") == inconsistent);
    json_decref(found);
}

static void test_query(void)
{
    set_up();
    expect_flags(true, false, false, NULL);
    dirty_bitmap_hold(bitmap);
    expect_flags(true, true, false, NULL);
    dirty_bitmap_let_go(bitmap);
    dirty_bitmap_set_persistent(bitmap, true);
    expect_flags(true, false, true, NULL);
    dirty_bitmap_set_inconsistent(bitmap);
    expect_flags(false, false, true, json_true());
    tear_down(true);
}

static void add_tests(void)
{
    g_test_add_data_func("/bitmap-states/what-is-of-no-use-is-refused", GINT_TO_POINTER(false),
                         test_refusals);
    g_test_add_data_func("/bitmap-states/what-becomes-so-meanwhile-is-refused-too",
                         GINT_TO_POINTER(true), test_refusals);
    g_test_add_func("/bitmap-states/queries-tell-them", test_query);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
