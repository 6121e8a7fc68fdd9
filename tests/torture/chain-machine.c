/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A random machine for chains: a disk on qcow2 images that many guests write to, while snapshots
 * are taken, layers streamed, committed, copied and made longer or shorter, in a random order and
 * beside each other where that is allowed. From time to time all stands still: the disk holds what
 * the model says, nothing is left of the jobs, QEMU's programs find each image clean and the chain
 * by its headers alone; and so do we, to go on with it.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/clock.h"
#include "tests/lib/disk.h"
#include "tests/lib/meddlers.h"
#include "tests/torture/chain-machine.h"

#define CASES     8 /* machines, by default */
#define ROUNDS    3 /* of each */
#define STEPS     45
#define LAYERS    6 /* above which there are no more snapshots */
#define BUDGET_NS (12 * NS_PER_SECOND)

const char *const count_names[COUNTS] = {
    [COUNT_SNAPSHOTS] = "snapshots",   [COUNT_STREAMS] = "streams",
    [COUNT_COMMITS] = "commits",       [COUNT_ACTIVE_COMMITS] = "active commits",
    [COUNT_BACKUPS] = "backups",       [COUNT_MIRRORS] = "mirrors",
    [COUNT_PIVOTS] = "pivots",         [COUNT_COPIES] = "mirrors compared",
    [COUNT_SEEN] = "backups compared", [COUNT_GROWN] = "grown",
    [COUNT_SHRUNK] = "shrunk",         [COUNT_REOPENED] = "reopened",
    [COUNT_CANCELLED] = "cancelled",   [COUNT_BESIDE] = "beside others",
    [COUNT_REFUSED] = "refused",       [COUNT_DENIED] = "denied",
    [COUNT_FAILED] = "failed",         [COUNT_UNSEEN] = "not looked at",
};
_Atomic unsigned counts[COUNTS];

void count(enum machine_count what)
{
    atomic_fetch_add(&counts[what], 1);
}

static void report(const struct machine *machine)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (size_t i = 0; i < COUNTS; i++) {
        g_string_append_printf(text, "%u %s, ", atomic_exchange(&counts[i], 0), count_names[i]);
    }
    g_test_message("%s%" PRIu64 " requests", text->str, atomic_load(&machine->rig->requests));
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static void change_something(struct machine *machine)
{
    g_autoptr(GPtrArray) layers = machine_layers(machine);
    uint64_t choice = test_random_below(&machine->random, 100);

    if (choice < 35) {
        if (layers->len < LAYERS) {
            machine_snapshot(machine);
        }
    } else if (choice < 55) {
        machine_resize(machine);
    } else if (choice < 70) {
        machine_make_writable(machine);
    } else if (choice < 80) {
        machine_reopen_root(machine);
    } else {
        machine_try_forbidden(machine);
    }
}

static void start_something(struct machine *machine)
{
    static void (*const starts[])(struct machine * machine) = {
        machine_start_stream, machine_start_stream, machine_start_commit,
        machine_start_commit, machine_start_backup, machine_start_mirror,
    };

    if (machine->job_count < MACHINE_JOBS_MAX) {
        starts[test_random_below(&machine->random, G_N_ELEMENTS(starts))](machine);
    }
}

static void step(struct machine *machine)
{
    struct test_random *random = &machine->random;

    machine_reap(machine);
    switch (test_random_below(random, 4)) {
    case 0:
        change_something(machine);
        break;
    case 1:
        start_something(machine);
        break;
    default:
        machine_meddle(machine);
    }
    rig_wait_requests(machine->rig, test_random_below(random, 40));
}

/* ---- When all stands still ------------------------------------------------------------------- */

static bool is_below(struct block_node *top, const struct block_node *wanted)
{
    struct block_child *child;

    if (top == wanted) {
        return true;
    }
    TAILQ_FOREACH (child, &top->children, entry) {
        if (is_below(child->claim.node, wanted)) {
            return true;
        }
    }
    return false;
}

/* A node that is not the disk's: a new reference, or NULL. */
static struct block_node *find_stray(struct machine *machine)
{
    AUTO(block_node) root = block_device_root(machine->rig->device);
    struct block_node **list = block_node_list();
    struct block_node *stray = NULL;

    for (size_t i = 0; list[i] && !stray; i++) {
        if (!is_below(root, list[i])) {
            stray = block_node_ref(list[i]);
        }
    }
    block_node_list_free(list);
    return stray;
}

static void assert_quiet(struct block_node *node)
{
    struct block_claim *claim;
    SCOPE_LOCK(&block_graph_lock);

    g_assert_true(!node->notifiers || !node->notifiers[0]);
    g_assert_true(!node->bitmaps || !node->bitmaps[0]);
    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (strstr(claim->owner, "job")) {
            g_error("node '%s' is still claimed by %s", node->name, claim->owner);
        }
    }
}

/* Who looks at nodes in passing may keep one for a moment. */
static void assert_nothing_left(struct machine *machine)
{
    int64_t deadline_ns = clock_now_ns() + 20 * NS_PER_SECOND;
    g_autoptr(GPtrArray) layers = machine_layers(machine);
    struct block_node *stray;

    while ((stray = find_stray(machine))) {
        if (clock_now_ns() > deadline_ns) {
            g_error("node '%s' is left over", stray->name);
        }
        block_node_unref(stray);
        g_usleep(500);
    }
    for (guint i = 0; i < layers->len; i++) {
        assert_quiet(layers->pdata[i]);
    }
}

/* Files that are no more in the chain. */
static void remove_others(struct machine *machine, GPtrArray *paths)
{
    GDir *entries = g_dir_open(machine->directory, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(entries))) {
        g_autofree char *path = test_path(machine->directory, name);

        if (!g_ptr_array_find_with_equal_func(paths, path, g_str_equal, NULL)) {
            g_assert_cmpint(g_remove(path), ==, 0);
        }
    }
    g_dir_close(entries);
}

static void assert_all_closed(void)
{
    struct block_node **list = block_node_list();

    if (list[0]) {
        g_error("node '%s' is still open", list[0]->name);
    }
    block_node_list_free(list);
}

static void open_disk(struct machine *machine, struct block_node *node)
{
    g_autoptr(GError) error = NULL;

    machine->rig->device = block_device_new("vda", node, &error);
    g_assert_no_error(error);
    block_device_ref(machine->rig->device);
    block_node_unref(node);
}

static void close_disk(struct machine *machine)
{
    g_assert_cmpint(block_device_remove(machine->rig->device), ==, 0);
    block_device_unref(machine->rig->device);
    assert_all_closed();
}

/* From what the headers say. */
static void open_again(struct machine *machine, GPtrArray *paths, bool is_raw)
{
    open_disk(machine, machine_open(machine, paths->pdata[0], is_raw, NULL));
    g_autoptr(GPtrArray) now = machine_paths(machine);
    g_assert_cmpuint(now->len, ==, paths->len);
    for (guint i = 0; i < now->len; i++) {
        g_assert_cmpstr(now->pdata[i], ==, paths->pdata[i]);
    }
}

static void look(struct machine *machine)
{
    AUTO(block_node) root = machine_root(machine);
    bool is_raw = machine_is_raw(root);
    g_autoptr(GPtrArray) paths = machine_paths(machine);

    g_assert_cmpuint(atomic_load(&machine->rig->failed), ==, 0);
    assert_nothing_left(machine);
    machine_follow(machine);
    machine_assert_equal(machine->rig->model, root);
    block_node_unref(STEAL(root));
    close_disk(machine);
    remove_others(machine, paths);
    machine_assert_chain(machine, paths);
    open_again(machine, paths, is_raw);
    root = machine_root(machine);
    machine_assert_equal(machine->rig->model, root);
}

/* ---- The whole ------------------------------------------------------------------------------- */

static void one_round(struct machine *machine)
{
    /* Drains by somebody else. */
    static meddle_function *const functions[] = {meddle_with_drains, NULL};

    rig_write(machine->rig, MACHINE_WRITERS);
    struct meddlers *meddlers = meddlers_start(machine->rig, &machine->random, functions);
    for (unsigned i = 0; i < STEPS; i++) {
        step(machine);
    }
    machine_settle(machine);
    meddlers_stop(meddlers);
    rig_stop(machine->rig);
    look(machine);
}

static struct rig *new_rig(struct machine *machine)
{
    bool is_raw = test_random_chance(&machine->random, 30);
    uint64_t length = test_random_between(&machine->random, 2048, 10000) * 512;
    g_autofree char *path = machine_make_image(machine, is_raw, length, NULL);
    struct rig *rig =
        rig_new_on("vda", test_directory_new(true), machine_open(machine, path, is_raw, NULL));

    block_node_unref(STEAL(rig->source));
    model_free(rig->model);
    rig->model = model_new(MACHINE_LENGTH_MAX, RIG_SECTOR);
    rig->random = test_random_split(&machine->random);
    rig->max_bytes = MIB;
    return rig;
}

static void free_rig(struct machine *machine)
{
    close_disk(machine);
    model_free(machine->rig->model);
    test_directory_free(machine->rig->directory);
    g_free(machine->rig);
}

static void run_machine(uint64_t seed)
{
    char *directory = test_directory_new(true);
    struct machine machine = {.directory = directory, .random = test_random_new(seed)};

    g_test_message("seed %" PRIu64, seed);
    machine.unfollowed = g_ptr_array_new_with_free_func(g_free);
    machine.rig = new_rig(&machine);
    for (unsigned i = 0; i < test_amount(ROUNDS); i++) {
        one_round(&machine);
    }
    report(&machine);
    free_rig(&machine);
    g_ptr_array_unref(machine.unfollowed);
    test_directory_free(directory);
}

static void test_machines(void)
{
    int64_t end_ns = clock_now_ns() + BUDGET_NS;
    unsigned long cases = test_cases(CASES);

    for (unsigned long i = 0; i < cases && (i == 0 || clock_now_ns() < end_ns); i++) {
        run_machine(test_seed() + i);
    }
}

static void add_tests(void)
{
    g_test_add_func("/chain-machine/the-disk-is-what-the-model-says", test_machines);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
