/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Everything at once on two disks: many writers, and beside them mirrors that move the disks from
 * node to node, copy them, fail and are cancelled; views of one and of both disks at one instant;
 * backups with every kind of scratch; bitmaps in transactions; drains, pauses and faults. Each
 * view and each backup equals the disk at its moment, wherever the disk has moved since; nothing
 * acknowledged is lost; no root that was left is written again; nothing is left at the end.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/main-loop.h"
#include "server/commands-bitmap.h"
#include "server/transaction.h"
#include "server/views.h"
#include "tests/lib/meddlers.h"
#include "tests/lib/thread-count.h"
#include "tests/torture/together.h"

#define WRITERS   5 /* of each disk */
#define BITMAPS   3
#define BUDGET_NS (9 * NS_PER_SECOND)

struct disk disks[DISKS] = {{.name = "vda"}, {.name = "vdb"}};
_Atomic bool over;
bool with_faults;

static _Atomic unsigned pivots, copies, lost_races, failed_mirrors;
static _Atomic unsigned bitmap_changes, refused_changes;

/* ---- Mirrors, which move the disk ------------------------------------------------------------ */

enum end { PIVOT, COPY, FORCE, ENDS };

struct attempt {
    struct job *job;
    struct place *to;
    enum end end;
    bool stopped; /* the writers, for a copy to be compared */
    bool is_part; /* sync none: what was there before is not copied */
};

/* A place that is not the root, nor any of those taken. */
static struct place *choose_place(struct disk *disk, const struct place *taken)
{
    struct place *place;

    do {
        place = &disk->places[test_random_below(&disk->rig->random, NODES)];
    } while (place->node == disk->rig->source || place == taken);
    return place;
}

static void start_mirror(struct disk *disk, struct attempt *attempt, const struct place *taken)
{
    struct test_random *random = &disk->rig->random;
    g_autofree char *id = g_strdup_printf("mirror-%s-%u", disk->name, disk->number++);

    *attempt = (struct attempt){
        .to = choose_place(disk, taken),
        .end = test_random_chance(random, 50) ? PIVOT : (enum end)test_random_below(random, ENDS),
    };
    struct mirror_options options = rig_mirror_options(disk->rig, id, attempt->to->node);
    attempt->is_part = attempt->end != PIVOT && test_random_chance(random, 20);
    options.sync = attempt->is_part ? MIRROR_SYNC_NONE : MIRROR_SYNC_FULL;
    options.device = disk->rig->device;
    options.granularity = MIRROR_GRANULARITY_MIN << test_random_below(random, 9);
    options.buf_size = (int64_t)test_random_between(random, 1, 4 * MIB);
    options.keep_zeroes = test_random_chance(random, 30);
    options.on_target_error = choose_policy(random);
    options.on_source_error = choose_policy(random);
    options.job_flags |= test_random_chance(random, 30) ? JOB_MANUAL_FINALIZE : 0;
    g_clear_pointer(&attempt->to->left, g_free);
    cause_faults(attempt->to->node, random, FAULT_ON_CHANGES | FAULT_ON_STATUS | FAULT_ON(FLUSH));
    attempt->job = rig_mirror(&options);
}

static bool has_ended(struct job *job)
{
    return job_get_status(job) == JOB_STATUS_CONCLUDED;
}

/* Somebody may pause it now and again, and refuse it that way for a while. */
static void ask_for_end(struct disk *disk, struct attempt *attempt)
{
    struct job *job = attempt->job;

    if (attempt->end == FORCE && test_random_chance(&disk->rig->random, 50)) {
        job_cancel(job, true, test_random_chance(&disk->rig->random, 50), NULL);
    }
    if (rig_wait_status(job, JOB_STATUS_READY) != JOB_STATUS_READY) {
        return;
    }
    rig_wait_requests(disk->rig, test_random_below(&disk->rig->random, 100));
    if (attempt->end == COPY) {
        attempt->stopped = true;
        rig_stop(disk->rig);
    }
    while (!has_ended(job) && (attempt->end == PIVOT  ? job_complete(job, NULL)
                               : attempt->end == COPY ? job_cancel(job, false, false, NULL)
                                                      : job_cancel(job, true, false, NULL)) < 0) {
        g_usleep(500);
    }
}

static void finalize(struct disk *disk, struct attempt *attempt)
{
    struct job *job = attempt->job;
    struct job_info info;

    job_get_info(job, &info);
    if (!info.auto_finalize && rig_wait_status(job, JOB_STATUS_PENDING) == JOB_STATUS_PENDING) {
        if (!attempt->stopped) {
            rig_wait_requests(disk->rig, 10 * WRITERS);
        }
        if (test_random_chance(&disk->rig->random, 20)) {
            job_cancel(job, true, true, NULL);
        } else {
            job_finalize(job, NULL);
        }
    }
    job_info_clear(&info);
}

static struct place *find_place(struct disk *disk, const struct block_node *node)
{
    for (size_t i = 0; i < NODES; i++) {
        if (disk->places[i].node == node) {
            return &disk->places[i];
        }
    }
    g_assert_not_reached();
}

static bool is_root(struct disk *disk, const struct block_node *node)
{
    AUTO(block_node) root = block_device_root(disk->rig->device);

    return root == node;
}

/* What others see of the old root from here on is what it holds now. */
static void check_moved(struct disk *disk, struct place *to)
{
    struct place *from = find_place(disk, disk->rig->source);

    g_assert_true(is_root(disk, to->node));
    fault_clear(from->node);
    from->left = rig_contents(from->node);
    disk->rig->source = to->node;
    rig_wait_requests(disk->rig, 2 * WRITERS);
    rig_assert_contents(from->node, from->left);
    disk->moved = true;
    atomic_fetch_add(&pivots, 1);
}

static void check_end(struct disk *disk, struct attempt *attempt)
{
    g_autofree char *message = rig_end(attempt->job);

    fault_clear(attempt->to->node);
    if (message && strstr(message, "has moved from node")) {
        g_assert_true(disk->moved);
        atomic_fetch_add(&lost_races, 1);
    } else if (message) {
        if (!is_known_failure(message)) {
            g_error("a mirror failed: %s", message);
        }
        atomic_fetch_add(&failed_mirrors, 1);
    } else if (attempt->end == PIVOT) {
        check_moved(disk, attempt->to);
    } else {
        if (!attempt->is_part) {
            rig_assert_equal(disk->rig->model, attempt->to->node);
        }
        atomic_fetch_add(&copies, 1);
    }
    if (attempt->stopped) {
        rig_write(disk->rig, WRITERS);
    }
}

/* One mirror, or two of which the one that comes first may take the disk away from the other. */
static void move_disk(struct disk *disk)
{
    struct attempt attempts[2];
    size_t count = test_random_chance(&disk->rig->random, 30) ? 2 : 1;

    disk->moved = false;
    for (size_t i = 0; i < count; i++) {
        start_mirror(disk, &attempts[i], i ? attempts[0].to : NULL);
    }
    for (size_t i = 0; i < count; i++) {
        ask_for_end(disk, &attempts[i]);
        finalize(disk, &attempts[i]);
        check_end(disk, &attempts[i]);
    }
}

/* ---- Bitmaps, drains, and who meddles with jobs ---------------------------------------------- */

static const struct transaction_action_type *const bitmap_actions[] = {
    &bitmap_add_action,     &bitmap_add_action,   &bitmap_clear_action,  &bitmap_enable_action,
    &bitmap_disable_action, &bitmap_merge_action, &bitmap_remove_action,
};

static json_t *bitmap_arguments(const struct transaction_action_type *type,
                                struct test_random *random)
{
    static const char *const names[BITMAPS] = {"a", "b", "c"};
    const char *disk = disks[test_random_below(random, DISKS)].name;
    const char *name = names[test_random_below(random, BITMAPS)];

    return type == &bitmap_merge_action
               ? json_pack("{s:s, s:s, s:[s]}", "node", disk, "target", name, "bitmaps",
                           names[test_random_below(random, BITMAPS)])
               : json_pack("{s:s, s:s}", "node", disk, "name", name);
}

static void change_bitmaps(struct test_random *random)
{
    AUTO(transaction) transaction = transaction_new(false);
    size_t count = test_random_between(random, 1, 4);
    json_t *data[4];
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < count; i++) {
        const struct transaction_action_type *type =
            bitmap_actions[test_random_below(random, G_N_ELEMENTS(bitmap_actions))];

        data[i] = bitmap_arguments(type, random);
        transaction_add(transaction, type, data[i], NULL);
    }
    int status = transaction_run(transaction, &error);
    g_assert_cmpint(status < 0, ==, error != NULL);
    atomic_fetch_add(status < 0 ? &refused_changes : &bitmap_changes, 1);
    for (size_t i = 0; i < count; i++) {
        json_decref(data[i]);
    }
    g_usleep(2000); /* leaves others time; nothing depends on it */
}

/* Those of a disk stay on its nodes when it moves. */
static void remove_bitmaps(struct block_node *node)
{
    static const char *const names[BITMAPS] = {"a", "b", "c"};

    for (size_t i = 0; i < BITMAPS; i++) {
        json_t *data = json_pack("{s:s, s:s}", "node", node->name, "name", names[i]);
        json_t *answer = transaction_run_single(&bitmap_remove_action, data, NULL);

        json_decref(answer);
        json_decref(data);
    }
}

static void drain_nodes(struct test_random *random)
{
    meddle_with_drains(NULL, random);
    g_usleep(2000);
}

/* Resumes far more than it pauses: an error policy may have stopped a job. */
static void meddle_with_jobs(struct test_random *random)
{
    struct job **list = job_list();

    for (struct job **job = list; *job; job++) {
        switch (test_random_below(random, 16)) {
        case 0:
            job_user_pause(*job, NULL);
            break;
        case 1:
            job_set_speed(*job, (int64_t)test_random_between(random, 4, 64) << 20, NULL);
            break;
        case 2:
            job_set_speed(*job, 0, NULL);
            break;
        case 3:
            if (test_random_chance(random, 2)) {
                job_cancel(*job, true, false, NULL);
            }
            break;
        default:
            job_user_resume(*job, NULL);
        }
    }
    job_list_free(list);
    g_usleep(1000);
}

/* Guests, readers and jobs meet errors where the disks are just now. */
static void break_sources(struct test_random *random)
{
    struct disk *disk = &disks[test_random_below(random, DISKS)];
    AUTO(block_node) root = block_device_root(disk->rig->device);

    if (with_faults && test_random_chance(random, 10)) {
        FAULT(root, .operations = test_random_chance(random, 80) ? FAULT_ON(READ) : FAULT_ON_ALL,
              .percent = 5, .count = 2, .error_number = EIO);
    }
    g_usleep(5000);
}

/* ---- The whole ------------------------------------------------------------------------------- */

struct actor {
    void (*act)(struct test_random *random);
    struct disk *disk; /* of a mover */
    struct test_random random;
    pthread_t thread;
};

static void *actor_thread(void *data)
{
    struct actor *actor = data;

    while (!atomic_load(&over)) {
        if (actor->disk) {
            move_disk(actor->disk);
        } else {
            actor->act(&actor->random);
        }
    }
    return NULL;
}

static void (*const acts[])(struct test_random *random) = {
    make_view, make_view, make_view, make_backup, make_backup, change_bitmaps, break_sources,
};

/* These go on until the others have ended, as a job may need to be resumed. */
static void (*const helping_acts[])(struct test_random *random) = {drain_nodes, meddle_with_jobs};

static void open_disk(struct disk *disk, uint64_t length, uint64_t alignment)
{
    g_autofree char *root = g_strdup_printf("%s-0", disk->name);

    disk->rig = rig_new_named(disk->name, root, length, alignment);
    disk->places[0] = (struct place){.node = disk->rig->source};
    for (unsigned i = 1; i < NODES; i++) {
        g_autofree char *name = g_strdup_printf("%s-%u", disk->name, i);

        disk->places[i] = (struct place){.node = rig_target(disk->rig, name, i % 2)};
    }
    rig_fill(disk->rig);
    rig_write(disk->rig, WRITERS);
}

static void close_disk(struct disk *disk)
{
    rig_stop(disk->rig);
    for (size_t i = 0; i < NODES; i++) {
        struct place *place = &disk->places[i];

        fault_clear(place->node);
        remove_bitmaps(place->node);
        if (place->left && place->node != disk->rig->source) {
            rig_assert_contents(place->node, place->left);
        }
        g_clear_pointer(&place->left, g_free);
        if (place->node != disk->rig->source) {
            rig_assert_unused(place->node);
        }
    }
    g_test_message("%s: %" PRIu64 " requests, %" PRIu64 " failed", disk->name,
                   atomic_load(&disk->rig->requests), atomic_load(&disk->rig->failed));
    if (!with_faults) {
        g_assert_cmpuint(atomic_load(&disk->rig->failed), ==, 0);
    }
    rig_free(disk->rig);
}

struct crew {
    struct actor actors[DISKS + G_N_ELEMENTS(acts)];
    struct actor helpers[G_N_ELEMENTS(helping_acts)];
};

static _Atomic bool helpers_over;

static void *helper_thread(void *data)
{
    struct actor *actor = data;

    while (!atomic_load(&helpers_over)) {
        actor->act(&actor->random);
    }
    return NULL;
}

static void start_actor(struct actor *actor, struct test_random *random, void *(*run)(void *))
{
    actor->random = test_random_split(random);
    g_assert_cmpint(pthread_create(&actor->thread, NULL, run, actor), ==, 0);
}

static void start_crew(struct crew *crew, struct test_random *random)
{
    atomic_store(&over, false);
    atomic_store(&helpers_over, false);
    for (size_t i = 0; i < G_N_ELEMENTS(crew->actors); i++) {
        crew->actors[i].disk = i < DISKS ? &disks[i] : NULL;
        crew->actors[i].act = i < DISKS ? NULL : acts[i - DISKS];
        start_actor(&crew->actors[i], random, actor_thread);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(crew->helpers); i++) {
        crew->helpers[i].act = helping_acts[i];
        start_actor(&crew->helpers[i], random, helper_thread);
    }
}

static void stop_crew(struct crew *crew)
{
    atomic_store(&over, true);
    for (size_t i = 0; i < G_N_ELEMENTS(crew->actors); i++) {
        pthread_join(crew->actors[i].thread, NULL);
    }
    atomic_store(&helpers_over, true);
    for (size_t i = 0; i < G_N_ELEMENTS(crew->helpers); i++) {
        pthread_join(crew->helpers[i].thread, NULL);
    }
}

static void report(void)
{
    g_test_message("%u pivots, %u copies, %u mirrors too late, %u failed", pivots, copies,
                   lost_races, failed_mirrors);
    g_test_message("%u backups, %u failed; %u moments tried again", good_backups, failed_backups,
                   retries);
    g_test_message("%u whole and %u broken views; %u good and %u bad reads", whole_views,
                   broken_views, good_reads, bad_reads);
    g_test_message("%u changes of bitmaps, %u refused", bitmap_changes, refused_changes);
    pivots = copies = lost_races = failed_mirrors = good_backups = failed_backups = retries = 0;
    whole_views = broken_views = good_reads = bad_reads = bitmap_changes = refused_changes = 0;
}

static void torture(uint64_t alignment, bool faults)
{
    struct test_random random = test_random_new(test_seed());
    struct crew crew = {0};
    unsigned threads = test_count_threads();
    size_t count;

    with_faults = faults;
    open_disk(&disks[0], 4 * MIB, 1);
    open_disk(&disks[1], 2 * MIB + 20 * KIB, alignment);
    start_crew(&crew, &random);
    g_usleep((gulong)test_amount(BUDGET_NS / 2 / 1000));
    stop_crew(&crew);
    report();
    view_info_list_free(view_info_list(NULL, &count), 0);
    g_assert_cmpuint(count, ==, 0);
    for (size_t i = 0; i < DISKS; i++) {
        close_disk(&disks[i]);
    }
    test_assert_threads(threads);
}

static void test_together(void)
{
    torture(4096, false);
}

/*
 * Here no request is made in pieces: one that fails may have been made in part, which the model
 * allows only if it was told of the failure before the moment.
 */
static void test_with_faults(void)
{
    torture(1, true);
}

/* Views say so when they break, which they do. */
static void ignore_warning(const char *domain, GLogLevelFlags level, const char *message,
                           void *data)
{
}

static void add_tests(void)
{
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, ignore_warning, NULL);
    g_test_add_func("/together/all-at-once", test_together);
    g_test_add_func("/together/all-at-once-and-faults", test_with_faults);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
