/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions of bitmap actions, chosen at random, of which many fail, while guests write. A model
 * says which succeed, with what words the others are refused, and what each bitmap holds.
 */
#include "server/transaction.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "formats/formats.h"
#include "server/commands-bitmap.h"
#include "server/query.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/bitmap-model.h"
#include "tests/lib/disk.h"

#define DISKS       3
#define NAMES       4
#define WRITERS     2 /* per disk */
#define ACTIONS_MAX 6

struct disk {
    char name[8]; /* of the node; the device is "vd" and this */
    uint64_t length;
    struct block_node *node;
    struct block_device *device;
    struct write_log *log;
};

static struct disk disks[DISKS];
static _Atomic bool over;

/* Writers hold it shared for each request; who wants none in flight holds it alone. */
static pthread_rwlock_t gate;

/* What is there; NULL: no such bitmap. */
struct world {
    struct bitmap_model *models[DISKS][NAMES];
};

/* ---- Guests ---------------------------------------------------------------------------------- */

struct writer {
    struct disk *disk;
    struct test_random random;
    pthread_t thread;
};

static void make_request(struct writer *writer)
{
    struct disk *disk = writer->disk;
    static const uint8_t zeroes[64 * KIB];
    uint64_t bytes = test_random_between(&writer->random, 1, sizeof(zeroes));
    uint64_t offset = test_random_below(&writer->random, disk->length - bytes + 1);
    uint64_t begun = write_log_begin(disk->log, offset, bytes);
    int status;

    switch (test_random_below(&writer->random, 3)) {
    case 0:
        status = block_device_discard(disk->device, offset, bytes, 0);
        break;
    case 1:
        status = block_device_write_zeroes(disk->device, offset, bytes, 0);
        break;
    default:
        status = block_device_pwrite(disk->device, zeroes, offset, bytes, 0);
        break;
    }
    g_assert_cmpint(status, ==, 0);
    write_log_end(disk->log, begun, offset, bytes);
}

static void *write_on(void *data)
{
    struct writer *writer = data;

    while (!atomic_load(&over)) {
        pthread_rwlock_rdlock(&gate);
        make_request(writer);
        pthread_rwlock_unlock(&gate);
    }
    return NULL;
}

/* ---- A transaction, and what it should do ---------------------------------------------------- */

static struct world world;

/*
 * First of all actions, in the drained moment. Disks that no other action names are not drained,
 * but nothing happens to their bitmaps either.
 */
static int apply_mark(struct transaction_action *action, GError **error)
{
    for (size_t i = 0; i < DISKS; i++) {
        for (size_t j = 0; j < NAMES; j++) {
            if (world.models[i][j]) {
                bitmap_model_update(world.models[i][j]);
            }
        }
    }
    return 0;
}

static const struct transaction_action_type mark_action = {
    .name = "mark",
    .data = &qmp_type_any,
    .apply = apply_mark,
};

#define FAIL_TEXT "This action always fails to apply"

static int apply_failure(struct transaction_action *action, GError **error)
{
    return block_error(error, EIO, FAIL_TEXT);
}

static const struct transaction_action_type fail_action = {
    .name = "fail",
    .data = &qmp_type_any,
    .apply = apply_failure,
};

static struct world copy_world(const struct world *from)
{
    struct world copy = {0};

    for (size_t i = 0; i < DISKS; i++) {
        for (size_t j = 0; j < NAMES; j++) {
            const struct bitmap_model *model = from->models[i][j];

            copy.models[i][j] = model ? bitmap_model_copy(model) : NULL;
        }
    }
    return copy;
}

static void clear_world(struct world *old)
{
    for (size_t i = 0; i < DISKS; i++) {
        for (size_t j = 0; j < NAMES; j++) {
            bitmap_model_free(STEAL(old->models[i][j]));
        }
    }
}

enum verb { ADD, REMOVE, CLEAR, ENABLE, DISABLE, MERGE, FAIL, VERBS };

struct step {
    enum verb verb;
    size_t disk;
    size_t name;
    bool by_device;
    uint64_t granularity;
    bool disabled;
    size_t source_count;
    struct {
        size_t disk;
        size_t name;
    } sources[3];
};

static struct step random_step(struct test_random *random)
{
    struct step step = {
        .verb = (enum verb)test_random_below(random, FAIL),
        .disk = test_random_below(random, DISKS),
        .name = test_random_below(random, NAMES),
        .by_device = test_random_chance(random, 30),
        .granularity = UINT64_C(512) << test_random_below(random, 12),
        .disabled = test_random_chance(random, 20),
        .source_count = test_random_below(random, 4),
    };

    for (size_t i = 0; i < step.source_count; i++) {
        step.sources[i].disk = test_random_chance(random, 50)   ? step.disk
                               : test_random_chance(random, 95) ? step.disk ^ (step.disk < 2)
                                                                : test_random_below(random, DISKS);
        step.sources[i].name = test_random_below(random, NAMES);
    }
    return step;
}

static const char *const bitmap_names[NAMES] = {"a", "b", "c", "d"};

static char *node_argument(const struct step *step)
{
    return g_strconcat(step->by_device ? "vd" : "", disks[step->disk].name, NULL);
}

static json_t *sources_of(const struct step *step)
{
    json_t *list = json_array();

    for (size_t i = 0; i < step->source_count; i++) {
        const char *name = bitmap_names[step->sources[i].name];

        json_array_append_new(
            list,
            step->sources[i].disk == step->disk
                ? json_string(name)
                : json_pack("{s:s, s:s}", "node", disks[step->sources[i].disk].name, "name", name));
    }
    return list;
}

static json_t *data_of(const struct step *step)
{
    g_autofree char *node = node_argument(step);
    const char *name = bitmap_names[step->name];

    switch (step->verb) {
    case ADD:
        return json_pack("{s:s, s:s, s:I, s:b}", "node", node, "name", name, "granularity",
                         (json_int_t)step->granularity, "disabled", step->disabled);
    case MERGE:
        return json_pack("{s:s, s:s, s:o}", "node", node, "target", name, "bitmaps",
                         sources_of(step));
    default:
        return json_pack("{s:s, s:s}", "node", node, "name", name);
    }
}

static const struct transaction_action_type *const types[VERBS] = {
    [ADD] = &bitmap_add_action,
    [REMOVE] = &bitmap_remove_action,
    [CLEAR] = &bitmap_clear_action,
    [ENABLE] = &bitmap_enable_action,
    [DISABLE] = &bitmap_disable_action,
    [MERGE] = &bitmap_merge_action,
    [FAIL] = &fail_action,
};

static char *missing(size_t name)
{
    return g_strdup_printf("Dirty bitmap '%s' not found", bitmap_names[name]);
}

static char *play_merge(struct world *to, const struct step *step)
{
    struct bitmap_model *target = to->models[step->disk][step->name];

    for (size_t i = 0; i < step->source_count; i++) {
        size_t disk = step->sources[i].disk, name = step->sources[i].name;

        if (!to->models[disk][name]) {
            return missing(name);
        }
        if (disks[disk].length != disks[step->disk].length) {
            return g_strdup_printf("Bitmaps are of different sizes (destination size is %lu, "
                                   "source size is %lu) and can't be merged",
                                   (unsigned long)disks[step->disk].length,
                                   (unsigned long)disks[disk].length);
        }
    }
    for (size_t i = 0; i < step->source_count; i++) {
        bitmap_model_merge(target, to->models[step->sources[i].disk][step->sources[i].name]);
    }
    return NULL;
}

/* Do in a world what the step does; the error's text if it is refused. */
static char *play(struct world *to, const struct step *step)
{
    struct bitmap_model **model = &to->models[step->disk][step->name];

    if (step->verb == FAIL) {
        return NULL;
    }
    if (step->verb == ADD) {
        if (*model) {
            return g_strdup_printf("Bitmap already exists: %s", bitmap_names[step->name]);
        }
        *model = bitmap_model_new(disks[step->disk].log, step->granularity, !step->disabled);
        return NULL;
    }
    if (!*model) {
        return missing(step->name);
    }
    switch (step->verb) {
    case REMOVE:
        bitmap_model_free(STEAL(*model));
        break;
    case CLEAR:
        bitmap_model_clear(*model);
        break;
    case ENABLE:
    case DISABLE:
        bitmap_model_set_enabled(*model, step->verb == ENABLE);
        break;
    default:
        return play_merge(to, step);
    }
    return NULL;
}

/* The text with which the transaction is refused, or NULL; the caller frees it. */
static char *foresee(const struct step *steps, size_t count)
{
    struct world future = copy_world(&world);
    char *refusal = NULL;
    bool fails = false;

    for (size_t i = 0; i < count && !refusal; i++) {
        refusal = play(&future, &steps[i]);
        fails = fails || steps[i].verb == FAIL;
    }
    clear_world(&future);
    return refusal || !fails ? refusal : g_strdup(FAIL_TEXT);
}

struct last {
    const struct step *steps;
    size_t count;
};

/*
 * The last action, which cannot fail: the model follows in the same moment, as a new bitmap
 * records from there on.
 */
static struct last last;

static void activate_last(struct transaction_action *action)
{
    for (size_t i = 0; i < last.count; i++) {
        g_assert_null(play(&world, &last.steps[i]));
    }
}

static const struct transaction_action_type follow_action = {
    .name = "follow",
    .data = &qmp_type_any,
    .activate = activate_last,
};

/* ---- The test -------------------------------------------------------------------------------- */

/* All bitmaps in their order, as text in a GString. */
static void list_bitmaps(void *data)
{
    for (size_t i = 0; i < DISKS; i++) {
        for (struct dirty_bitmap **bitmap = disks[i].node->bitmaps; bitmap && *bitmap; bitmap++) {
            g_string_append_printf(data, " %s/%s", disks[i].name, dirty_bitmap_name(*bitmap));
        }
    }
}

static bool run_steps(const struct step *steps, size_t count)
{
    AUTO(transaction) transaction = transaction_new(false);
    g_autoptr(GPtrArray) data = g_ptr_array_new_with_free_func((GDestroyNotify)json_decref);
    g_autofree char *expected = foresee(steps, count);
    GString *before = g_string_new(NULL), *after = g_string_new(NULL);
    g_autoptr(GError) error = NULL;

    main_loop_call_wait(list_bitmaps, before);
    transaction_add(transaction, &mark_action, NULL, NULL);
    for (size_t i = 0; i < count; i++) {
        json_t *arguments = data_of(&steps[i]);

        g_ptr_array_add(data, arguments);
        transaction_add(transaction, types[steps[i].verb], arguments, NULL);
    }
    last = (struct last){.steps = steps, .count = count};
    transaction_add(transaction, &follow_action, NULL, NULL);
    transaction_run(transaction, &error);
    g_assert_cmpstr(error ? error->message : NULL, ==, expected);
    main_loop_call_wait(list_bitmaps, after);
    if (error) {
        g_assert_cmpstr(before->str, ==, after->str);
    }
    g_string_free(before, TRUE);
    g_string_free(after, TRUE);
    return !error;
}

/* Most of the steps make sense after those before them. */
static size_t choose_steps(struct test_random *random, struct step *steps)
{
    size_t count = test_random_below(random, ACTIONS_MAX + 1);
    struct world future = copy_world(&world);

    for (size_t i = 0; i < count; i++) {
        g_autofree char *refusal = NULL;

        do {
            g_free(refusal);
            steps[i] = random_step(random);
            refusal = play(&future, &steps[i]);
        } while (refusal && !test_random_chance(random, 2));
    }
    if (count && test_random_chance(random, 30)) {
        steps[test_random_below(random, count)].verb = FAIL;
    }
    clear_world(&future);
    return count;
}

static bool run_random(struct test_random *random)
{
    struct step steps[ACTIONS_MAX];

    return run_steps(steps, choose_steps(random, steps));
}

/* With no write in flight. */
static void check_world(void *data)
{
    uint64_t *doubtful = data;

    apply_mark(NULL, NULL);
    for (size_t i = 0; i < DISKS; i++) {
        for (size_t j = 0; j < NAMES; j++) {
            struct bitmap_model *model = world.models[i][j];
            struct dirty_bitmap *bitmap = block_node_find_bitmap(disks[i].node, bitmap_names[j]);

            g_assert_cmpint(!model, ==, !bitmap);
            if (model) {
                bitmap_model_check(model, bitmap);
                *doubtful += bitmap_model_doubtful(model);
            }
        }
    }
}

static uint64_t check_at_rest(void)
{
    uint64_t doubtful = 0;

    pthread_rwlock_wrlock(&gate);
    main_loop_call_wait(check_world, &doubtful);
    pthread_rwlock_unlock(&gate);
    return doubtful;
}

static void open_disks(void)
{
    for (size_t i = 0; i < DISKS; i++) {
        struct disk *disk = &disks[i];
        g_autofree char *device = NULL;

        disk->name[0] = (char)('a' + i);
        disk->length = i < 2 ? 2 * MIB : MIB + 1000;
        disk->node = test_open("driver=null-co,discard=unmap,node-name=%s,latency-ns=%d,size=%lu",
                               disk->name, i ? 0 : 1000, (unsigned long)disk->length);
        device = g_strconcat("vd", disk->name, NULL);
        disk->device = block_device_new(device, disk->node, NULL);
        disk->log = write_log_new(disk->length);
    }
}

static void close_disks(void)
{
    clear_world(&world);
    for (size_t i = 0; i < DISKS; i++) {
        block_device_remove(disks[i].device);
        block_node_unref(disks[i].node); /* with its bitmaps */
        write_log_free(disks[i].log);
    }
}

static void *query_on(void *data)
{
    while (!atomic_load(&over)) {
        for (size_t i = 0; i < DISKS; i++) {
            json_t *answer = query_node(disks[i].node, NULL, false);

            g_assert_true(json_is_object(answer));
            json_decref(answer);
        }
    }
    return NULL;
}

static struct writer writers[DISKS * WRITERS];
static pthread_t query_thread;

static void start_threads(struct test_random *random)
{
    pthread_rwlockattr_t attributes;

    /* Who wants no write in flight must get there. */
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&gate, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    atomic_store(&over, false);
    for (size_t i = 0; i < G_N_ELEMENTS(writers); i++) {
        writers[i].disk = &disks[i / WRITERS];
        writers[i].random = test_random_split(random);
        g_assert_cmpint(pthread_create(&writers[i].thread, NULL, write_on, &writers[i]), ==, 0);
    }
    g_assert_cmpint(pthread_create(&query_thread, NULL, query_on, NULL), ==, 0);
}

static void stop_threads(void)
{
    atomic_store(&over, true);
    for (size_t i = 0; i < G_N_ELEMENTS(writers); i++) {
        pthread_join(writers[i].thread, NULL);
    }
    pthread_join(query_thread, NULL);
    pthread_rwlock_destroy(&gate);
}

/* With writes in flight: nothing changed may be missing, and little be in doubt. */
static void torture_beside_writers(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned done = 0, refused = 0;
    uint64_t doubtful = 0;

    open_disks();
    start_threads(&random);
    for (uint64_t i = 0; i < test_amount(400); i++) {
        if (run_random(&random)) {
            done++;
        } else {
            refused++;
        }
        if (i % 4 == 0) {
            doubtful += check_at_rest();
        }
    }
    stop_threads();
    check_at_rest();
    g_test_message("%u done, %u refused, %lu granules in doubt", done, refused,
                   (unsigned long)doubtful);
    g_assert_cmpuint(done, >, 20);
    g_assert_cmpuint(refused, >, 20);
    close_disks();
}

/* With none in flight at the moment of a transaction: the bitmaps are exact. */
static void torture_between_writes(void)
{
    struct test_random random = test_random_new(test_seed());

    open_disks();
    start_threads(&random);
    for (uint64_t i = 0; i < test_amount(400); i++) {
        pthread_rwlock_wrlock(&gate);
        run_random(&random);
        pthread_rwlock_unlock(&gate);
        if (i % 4 == 0) {
            g_assert_cmpuint(check_at_rest(), ==, 0);
        }
    }
    stop_threads();
    g_assert_cmpuint(check_at_rest(), ==, 0);
    close_disks();
}

/* ---- Several clients at once ----------------------------------------------------------------- */

struct client {
    struct test_random random;
    pthread_t thread;
};

/* Whoever comes first, each transaction is done or refused with words. */
static void *run_many(void *data)
{
    struct client *client = data;

    for (uint64_t i = 0; i < test_amount(300); i++) {
        AUTO(transaction) transaction = transaction_new(false);
        g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)json_decref);
        size_t count = test_random_below(&client->random, ACTIONS_MAX + 1);
        g_autoptr(GError) error = NULL;

        for (size_t j = 0; j < count; j++) {
            struct step step = random_step(&client->random);
            json_t *arguments = data_of(&step);

            g_ptr_array_add(all, arguments);
            transaction_add(transaction, types[step.verb], arguments, NULL);
        }
        int status = transaction_run(transaction, &error);
        g_assert_cmpint(status < 0, ==, error != NULL);
    }
    return NULL;
}

static void torture_clients(void)
{
    struct test_random random = test_random_new(test_seed());
    struct client clients[3];

    open_disks();
    start_threads(&random);
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        clients[i].random = test_random_split(&random);
        g_assert_cmpint(pthread_create(&clients[i].thread, NULL, run_many, &clients[i]), ==, 0);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(clients); i++) {
        pthread_join(clients[i].thread, NULL);
    }
    stop_threads();
    close_disks();
}

static void add_tests(void)
{
    g_test_add_func("/transaction/torture/bitmaps-beside-writers", torture_beside_writers);
    g_test_add_func("/transaction/torture/bitmaps-are-exact", torture_between_writes);
    g_test_add_func("/transaction/torture/several-clients", torture_clients);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
