/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Views of two disks under many writers. Several threads make views of one disk or both, read
 * them as clients, discard parts, break them and drop them, while nodes are drained, guests are
 * stopped and moved to a filter above their disk and back. Each view equals the models of its
 * instant for as long as it lives, or fails as a whole.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "block/zero.h"
#include "server/views.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/disk.h"

#define DISKS     2
#define WRITERS   5 /* of each disk */
#define OWNERS    4 /* who have one view each at a time */
#define BUDGET_NS (6 * NS_PER_SECOND)
#define PATIENCE  10 /* so many budgets for a busy machine to have seen it all */
#define READ_MAX  (300 * KIB)

static const char *const device_names[DISKS] = {"vda", "vdb"};
static struct rig *rigs[DISKS];
static _Atomic bool over;
static _Atomic unsigned made, broken, forced, good_reads, failed_reads;

/* What one disk is in a view. */
struct shown {
    struct rig *rig; /* NULL: not in it */
    struct model *snapshot;
    struct view_device *client; /* connected, or NULL */
    struct block_node *scratch; /* a fault node, or NULL */
    bool *gone;                 /* by unit: given up */
};

/* A view, and who has it. */
struct owner {
    struct test_random random;
    char name[VIEW_NAME_MAX + 1];
    char *scratch_names[DISKS + 1];
    struct view_options options;
    bool may_break;
    struct view *view; /* while it is made */
    struct shown shown[DISKS];
    pthread_t thread;
};

/* ---- Reading -------------------------------------------------------------------------------- */

/* Whether the view broke, by what all can see. */
static bool is_broken(const struct owner *owner)
{
    size_t count;
    struct view_info *views = view_info_list(owner->name, &count);

    g_assert_cmpuint(count, ==, 1);
    bool has_error = views[0].error != NULL;
    view_info_list_free(views, count);
    return has_error;
}

static bool any_gone(const struct shown *shown, uint64_t offset, uint64_t bytes)
{
    for (uint64_t unit = offset / COPY_UNIT; unit * COPY_UNIT < offset + bytes; unit++) {
        if (shown->gone[unit]) {
            return true;
        }
    }
    return false;
}

/* An error must have a reason; faults of scratch reach readers, too. */
static void check_status(const struct owner *owner, int status, bool is_gone)
{
    if (status == -EINVAL) {
        g_assert_true(is_gone);
    } else if (status < 0) {
        g_assert_cmpint(status, ==, -EIO);
        g_assert_true(owner->may_break);
    } else {
        g_assert_false(is_gone);
    }
    atomic_fetch_add(status < 0 ? &failed_reads : &good_reads, 1);
}

static void read_and_judge(struct owner *owner, struct shown *shown, uint64_t offset,
                           uint64_t bytes)
{
    g_autofree char *buffer = g_malloc(bytes);
    struct model_read *read = model_read_begin(shown->snapshot, offset, bytes);
    struct model_report report = {0};
    int status = block_device_pread(view_export_device(shown->client), buffer, offset, bytes);

    model_read_end(shown->snapshot, read, status < 0 ? NULL : buffer, &report);
    if (report.wrong) {
        g_error("view %s of %s, 0x%" PRIx64 "+0x%" PRIx64 ":\n%s", owner->name,
                block_device_name(shown->rig->device), offset, bytes, report.details->str);
    }
    model_report_clear(&report);
    check_status(owner, status, any_gone(shown, offset, bytes));
}

static void read_somewhere(struct owner *owner, struct shown *shown)
{
    uint64_t offset, bytes;

    test_random_range(&owner->random, model_length(shown->snapshot), RIG_SECTOR,
                      test_random_chance(&owner->random, 50) ? 16 * KIB : READ_MAX, &offset,
                      &bytes);
    read_and_judge(owner, shown, offset, bytes);
}

static void read_all(struct owner *owner, struct shown *shown)
{
    uint64_t length = model_length(shown->snapshot);

    for (uint64_t offset = 0, bytes; offset < length; offset += bytes) {
        bytes =
            MIN_OF(test_random_between(&owner->random, 1, 64) * 8 * RIG_SECTOR, length - offset);
        read_and_judge(owner, shown, offset, bytes);
    }
}

/* What is said to be zero reads as zeroes. */
static void ask_status(struct owner *owner, struct shown *shown)
{
    struct block_device *device = view_export_device(shown->client);
    g_autofree char *buffer = g_malloc(READ_MAX);
    struct block_extent extent;
    uint64_t offset, bytes;

    test_random_range(&owner->random, model_length(shown->snapshot), RIG_SECTOR, READ_MAX, &offset,
                      &bytes);
    int status = block_device_block_status(device, offset, bytes, &extent);
    check_status(owner, status, any_gone(shown, offset, 1));
    if (status == 0 && extent.flags & BLOCK_STATUS_ZERO &&
        block_device_pread(device, buffer, offset, extent.bytes) == 0) {
        g_assert_true(buffer_is_zero(buffer, extent.bytes));
    }
}

/* ---- Giving up ------------------------------------------------------------------------------ */

static void note_gone(struct shown *shown, uint64_t offset, uint64_t bytes)
{
    uint64_t end = offset + bytes == shown->rig->length ? align_up(offset + bytes, COPY_UNIT)
                                                        : align_down(offset + bytes, COPY_UNIT);

    for (uint64_t start = align_up(offset, COPY_UNIT); start < end; start += COPY_UNIT) {
        shown->gone[start / COPY_UNIT] = true;
    }
}

/* As a client, if the view lets it, or else as the administrator. */
static void give_up(struct owner *owner, struct shown *shown)
{
    struct block_device *device = view_export_device(shown->client);
    uint64_t offset, bytes;
    int status;

    test_random_range(&owner->random, model_length(shown->snapshot), RIG_SECTOR, 128 * KIB, &offset,
                      &bytes);
    status = block_device_discard(device, offset, bytes, 0);
    if (!owner->options.discard) {
        g_assert_cmpint(status, ==, -EPERM);
        status =
            view_discard(owner->name, block_device_name(shown->rig->device), offset, bytes, NULL);
    }
    if (status == 0) {
        note_gone(shown, offset, bytes);
    } else {
        g_assert_cmpint(status, ==, -EIO);
        g_assert_true(owner->may_break);
        while (!is_broken(owner)) { /* the device is a moment ahead of its view */
            g_usleep(100);
        }
    }
}

/* ---- Making and dropping -------------------------------------------------------------------- */

static void take_moment(void *data)
{
    struct owner *owner = data;

    view_take_moment(owner->view);
    for (unsigned i = 0; i < DISKS; i++) {
        if (owner->shown[i].rig) {
            owner->shown[i].snapshot = model_snapshot(owner->shown[i].rig->model);
        }
    }
}

/* Scratch of our own, which may be slow, fail or be full. */
static void choose_scratch(struct owner *owner)
{
    struct test_random *random = &owner->random;
    unsigned count = 0;

    for (unsigned i = 0; i < DISKS; i++) {
        struct shown *shown = &owner->shown[i];

        if (!shown->rig) {
            continue;
        }
        g_autofree char *name = g_strdup_printf("scratch-%s-%u", owner->name, i);
        shown->scratch = rig_target(shown->rig, name, test_random_chance(random, 50));
        owner->scratch_names[count++] = shown->scratch->name;
        if (test_random_chance(random, 30)) {
            FAULT(shown->scratch, .operations = FAULT_ON_ALL, .percent = 30,
                  .delay_ns = 2 * NS_PER_MS);
        }
        if (test_random_chance(random, 30)) {
            owner->may_break = true;
            FAULT(shown->scratch, .operations = FAULT_ON_ALL, .percent = 3, .error_number = EIO);
        }
    }
    owner->options.scratch_nodes = (const char *const *)owner->scratch_names;
}

static void choose_options(struct owner *owner, const char **devices)
{
    struct test_random *random = &owner->random;
    unsigned mask = (unsigned)test_random_between(random, 1, 3), count = 0;

    memset(owner->shown, 0, sizeof(owner->shown));
    memset(owner->scratch_names, 0, sizeof(owner->scratch_names));
    for (unsigned i = 0; i < DISKS; i++) {
        if (mask >> i & 1) {
            owner->shown[i].rig = rigs[i];
            owner->shown[i].gone = g_new0(bool, div_round_up(rigs[i]->length, COPY_UNIT));
            devices[count++] = device_names[i];
        }
    }
    owner->may_break = false;
    owner->options = (struct view_options){
        .name = owner->name,
        .devices = mask == 3 && test_random_chance(random, 50) ? NULL : devices,
        .scratch_directory = rigs[0]->directory,
        .timeout_s = (int64_t)test_random_below(random, 3),
        .discard = test_random_chance(random, 50),
    };
    if (test_random_chance(random, 50)) {
        owner->options.scratch_directory = NULL;
        choose_scratch(owner);
    }
    if (test_random_chance(random, 30)) {
        owner->may_break = true;
        owner->options.scratch_max = test_random_between(random, 1, 256) * COPY_UNIT;
    }
    if (test_random_chance(random, 30)) {
        owner->options.policy = POINT_IN_TIME_BREAK_GUEST_WRITE;
    }
}

static void make(struct owner *owner)
{
    const char *devices[DISKS + 1] = {NULL};
    g_autoptr(GError) error = NULL;
    size_t count;

    choose_options(owner, devices);
    owner->view = view_new(&owner->options, &error);
    g_assert_no_error(error);
    struct block_node *const *sources = view_sources(owner->view, &count);
    struct block_drain *drain = block_drain_begin(sources, count, BLOCK_PERM_WRITE);
    main_loop_call_wait(take_moment, owner);
    block_drain_end(drain);
    view_publish(owner->view);
    for (unsigned i = 0; i < DISKS; i++) {
        if (owner->shown[i].rig) {
            g_autofree char *export = g_strdup_printf("%s@%s", device_names[i], owner->name);

            owner->shown[i].client = view_export_open(export);
            g_assert_nonnull(owner->shown[i].client);
        }
    }
    atomic_fetch_add(&made, 1);
}

/* A view that nobody gave a reason to break stands. */
static void check_whole(struct owner *owner)
{
    bool was_broken = is_broken(owner);

    if (was_broken) {
        g_assert_true(owner->may_break);
        atomic_fetch_add(&broken, 1);
    }
    for (unsigned i = 0; i < DISKS; i++) {
        struct shown *shown = &owner->shown[i];

        if (!shown->rig) {
            continue;
        }
        if (was_broken) {
            /* Both fail, whichever broke; that of the other may take a moment. */
            uint8_t byte;
            while (block_device_pread(view_export_device(shown->client), &byte, 0, 1) != -EIO) {
                g_usleep(1000);
            }
        } else {
            read_all(owner, shown);
        }
    }
}

static void disconnect(struct owner *owner)
{
    for (unsigned i = 0; i < DISKS; i++) {
        if (owner->shown[i].client) {
            view_export_close(STEAL(owner->shown[i].client));
        }
    }
}

static void drop(struct owner *owner)
{
    bool force = test_random_chance(&owner->random, 50);

    g_assert_cmpint(view_drop(owner->name, false, NULL), ==, -EBUSY);
    if (!force) {
        disconnect(owner);
    }
    g_assert_cmpint(view_drop(owner->name, force, NULL), ==, 0);
    for (unsigned i = 0; i < DISKS; i++) {
        struct shown *shown = &owner->shown[i];
        uint8_t byte;

        if (shown->client) {
            g_assert_cmpint(block_device_pread(view_export_device(shown->client), &byte, 0, 1), ==,
                            -ESHUTDOWN);
        }
    }
    atomic_fetch_add(&forced, force);
    disconnect(owner);
    for (unsigned i = 0; i < DISKS; i++) {
        struct shown *shown = &owner->shown[i];

        if (shown->scratch) {
            fault_clear(shown->scratch);
            rig_assert_unused(shown->scratch);
        }
        if (shown->rig) {
            model_free(shown->snapshot);
            g_free(shown->gone);
        }
    }
}

static void use(struct owner *owner)
{
    static void (*const acts[])(struct owner * owner, struct shown * shown) = {
        read_somewhere,
        read_somewhere,
        ask_status,
        give_up,
    };
    unsigned count = (unsigned)test_random_below(&owner->random, 60);
    /* Old data comes to scratch only after a while. */
    bool is_slow = test_random_chance(&owner->random, 50);

    for (unsigned i = 0; i < count && !atomic_load(&over); i++) {
        struct shown *shown = &owner->shown[test_random_below(&owner->random, DISKS)];

        g_usleep(is_slow ? 10000 : 0);

        if (shown->rig) {
            acts[test_random_below(&owner->random, G_N_ELEMENTS(acts))](owner, shown);
        }
    }
}

static void *owner_thread(void *data)
{
    struct owner *owner = data;

    while (!atomic_load(&over)) {
        make(owner);
        use(owner);
        check_whole(owner);
        drop(owner);
    }
    return NULL;
}

/* ---- Meddling ------------------------------------------------------------------------------- */

static void move_to(struct rig *rig, struct block_node *root)
{
    struct block_node *const nodes[] = {rig->source, root};
    AUTO(block_drain) drain = block_drain_begin(nodes, 2, BLOCK_PERM_ALL);

    test_set_root(rig->device, root);
}

/* As qom-set does: the guest writes through a filter for a while, and then past it. */
static void move_guest(struct rig *rig)
{
    AUTO(block_node)
    filter = test_open("driver=fault,discard=unmap,file=%s", rig->source->name);

    move_to(rig, filter);
    g_usleep(2000);
    move_to(rig, rig->source);
}

static void *meddle(void *data)
{
    struct test_random *random = data;

    while (!atomic_load(&over)) {
        struct rig *rig = rigs[test_random_below(random, DISKS)];
        unsigned perms = test_random_chance(random, 50) ? BLOCK_PERM_ALL : BLOCK_PERM_WRITE;

        switch (test_random_below(random, 8)) {
        case 0:
            block_device_stop_all();
            block_device_continue_all();
            break;
        case 1:
            move_guest(rig);
            break;
        case 2:
        case 3:
            block_drain_end(block_drain_begin(&rig->source, 1, perms));
            break;
        default: {
            size_t count;
            struct view_info *views = view_info_list(NULL, &count);

            g_assert_cmpuint(count, <=, OWNERS);
            view_info_list_free(views, count);
        }
        }
        g_usleep(1000); /* leaves others time; nothing depends on it */
    }
    return NULL;
}

/* ---- The test ------------------------------------------------------------------------------- */

static void ignore_log(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void start_rigs(void)
{
    rigs[0] = rig_new(4 * MIB + 5 * 512, 1);
    rigs[1] = rig_new_named("vdb", "other", 2 * MIB + 20 * KIB, 4096);
    rigs[1]->random = test_random_split(&rigs[0]->random);
    for (unsigned i = 0; i < DISKS; i++) {
        rigs[i]->max_bytes = 64 * KIB;
        rig_fill(rigs[i]);
        rig_write(rigs[i], WRITERS);
    }
}

static void end_rigs(void)
{
    for (unsigned i = 0; i < DISKS; i++) {
        struct block_node *file = rigs[i]->source->file;

        rig_stop(rigs[i]);
        /* Views stand below the fault layer. */
        g_assert_null(file->notifiers);
        g_assert_true(TAILQ_FIRST(&file->claims) && !TAILQ_NEXT(TAILQ_FIRST(&file->claims), entry));
        rig_free(rigs[i]);
    }
}

/* Views that were of use and views that broke; only how long is left to the machine. */
static void wait_for_all_kinds(void)
{
    for (unsigned i = 0; i < PATIENCE && (i == 0 || !broken || made <= broken); i++) {
        g_usleep(BUDGET_NS / 1000);
    }
}

static void test_views(void)
{
    /* That views break is what we want. */
    GLogLevelFlags fatal = g_log_set_always_fatal(G_LOG_FATAL_MASK);
    guint handler = g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, ignore_log, NULL);
    struct owner owners[OWNERS];
    struct test_random random;
    pthread_t meddler;

    start_rigs();
    random = test_random_split(&rigs[0]->random);
    for (unsigned i = 0; i < OWNERS; i++) {
        owners[i].random = test_random_split(&rigs[0]->random);
        snprintf(owners[i].name, sizeof(owners[i].name), "view%u", i);
        g_assert_cmpint(pthread_create(&owners[i].thread, NULL, owner_thread, &owners[i]), ==, 0);
    }
    g_assert_cmpint(pthread_create(&meddler, NULL, meddle, &random), ==, 0);
    wait_for_all_kinds();
    atomic_store(&over, true);
    for (unsigned i = 0; i < OWNERS; i++) {
        pthread_join(owners[i].thread, NULL);
    }
    pthread_join(meddler, NULL);
    g_test_message("%u views, %u broken, %u dropped by force; %u good and %u failed reads; %" PRIu64
                   " + %" PRIu64 " requests",
                   made, broken, forced, good_reads, failed_reads, atomic_load(&rigs[0]->requests),
                   atomic_load(&rigs[1]->requests));
    g_assert_cmpuint(made, >, broken);
    g_assert_cmpuint(broken, >, 0);
    end_rigs();
    g_log_remove_handler(NULL, handler);
    g_log_set_always_fatal(fatal);
}

static void add_tests(void)
{
    g_test_add_func("/views/each-equals-its-instant-or-fails", test_views);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
