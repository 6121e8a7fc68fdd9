/* SPDX-License-Identifier: BSD-3-Clause */
/* The jobs of the torture test of chains: how they begin, are meddled with, and end. */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "block/chain.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "jobs/commit.h"
#include "jobs/stream.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/torture/chain-machine.h"

#define END_MAX_NS (60 * NS_PER_SECOND)

/* ---- The list of them ------------------------------------------------------------------------ */

void machine_refused(const char *what, const GError *error)
{
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, !=, "");
    g_test_message("%s refused: %s", what, error->message);
    count(COUNT_REFUSED);
}

static struct machine_job *new_job(struct machine *machine, enum machine_kind kind)
{
    static const char *const names[] = {"stream", "commit", "active", "backup", "mirror"};
    struct machine_job *busy = &machine->jobs[machine->job_count];

    *busy = (struct machine_job){
        .kind = kind,
        .id = g_strdup_printf("%s%u", names[kind], machine->number++),
    };
    return busy;
}

static void clear_job(struct machine_job *busy)
{
    block_node_unref(busy->layer);
    block_node_unref(busy->target);
    block_node_unref(busy->below);
    model_free(busy->moment);
    g_free(busy->path);
    g_free(busy->id);
    *busy = (struct machine_job){0};
}

/* Active commits change what is below others' copies, as soon as those are not there to object. */
static void blind_copies(struct machine *machine)
{
    for (size_t i = 0; i < machine->job_count; i++) {
        machine->jobs[i].is_unseen = true;
    }
}

/* It was started, or with an error refused. */
static bool add_job(struct machine *machine, struct machine_job *busy, const GError *error)
{
    if (error) {
        machine_refused(busy->id, error);
        if (busy->path) {
            g_clear_pointer(&busy->target, block_node_dispose);
            g_remove(busy->path);
        }
        clear_job(busy);
        return false;
    }
    busy->job = job_find(busy->id);
    g_assert_nonnull(busy->job);
    g_test_message("%s begins%s%s", busy->id, busy->is_top ? ", top" : "",
                   busy->is_pivot ? ", to pivot" : "");
    if (machine->job_count++) {
        count(COUNT_BESIDE);
    }
    return true;
}

static unsigned choose_flags(struct machine *machine)
{
    return JOB_MANUAL_DISMISS |
           (test_random_chance(&machine->random, 25) ? JOB_MANUAL_FINALIZE : 0);
}

static int64_t choose_speed(struct machine *machine)
{
    return test_random_chance(&machine->random, 30)
               ? (int64_t)test_random_between(&machine->random, 2, 32) << 20
               : 0;
}

/* The name of the filter that stands for a job, or NULL: there is none. */
static char *choose_filter(struct machine *machine, const struct machine_job *busy)
{
    return test_random_chance(&machine->random, 35) ? g_strdup_printf("filter-%s", busy->id) : NULL;
}

/* ---- Streams --------------------------------------------------------------------------------- */

void machine_start_stream(struct machine *machine)
{
    g_autoptr(GPtrArray) layers = machine_layers(machine);
    struct test_random *random = &machine->random;
    g_autoptr(GError) error = NULL;

    if (layers->len < 2) {
        return;
    }
    guint node =
        test_random_chance(random, 50) ? 0 : (guint)test_random_below(random, layers->len - 1);
    guint base = (guint)test_random_between(random, node + 1, layers->len);
    struct machine_job *busy = new_job(machine, KIND_STREAM);
    g_autofree char *filter = choose_filter(machine, busy);
    struct block_node *base_node = base < layers->len ? layers->pdata[base] : NULL;
    g_autofree char *path = base_node ? block_node_get_filename(base_node) : NULL;
    struct stream_options options = {
        .job_id = busy->id,
        .node = layers->pdata[node],
        .base = base_node,
        .backing_file = test_random_chance(random, 20) ? path : NULL,
        .mask_protocol = true,
        .filter_node_name = filter,
        .speed = choose_speed(machine),
        .job_flags = choose_flags(machine),
    };
    busy->layer = block_node_ref(layers->pdata[node]);
    g_test_message("%s: %u on %u of %u", busy->id, node, base, layers->len);
    stream_start(&options, &error);
    if (add_job(machine, busy, error)) {
        count(COUNT_STREAMS);
    }
}

/* ---- Commits --------------------------------------------------------------------------------- */

void machine_start_commit(struct machine *machine)
{
    g_autoptr(GPtrArray) layers = machine_layers(machine);
    AUTO(block_node) root = block_device_root(machine->rig->device);
    struct test_random *random = &machine->random;
    g_autoptr(GError) error = NULL;

    if (layers->len < 2) {
        return;
    }
    guint top = (guint)test_random_below(random, layers->len - 1);
    guint base = (guint)test_random_between(random, top + 1, layers->len - 1);
    struct machine_job *busy = new_job(machine, top ? KIND_COMMIT : KIND_ACTIVE_COMMIT);
    g_autofree char *filter = choose_filter(machine, busy);
    struct commit_options options = {
        .job_id = busy->id,
        .filter_node_name = filter,
        .root = root,
        .device = machine->rig->device,
        .top = top ? layers->pdata[top] : root,
        .base = layers->pdata[base],
        .mask_protocol = true,
        .speed = choose_speed(machine),
        .job_flags = choose_flags(machine),
    };
    busy->layer = block_node_ref(layers->pdata[top]);
    busy->is_pivot = test_random_chance(random, 75);
    g_test_message("%s: %u into %u of %u", busy->id, top, base, layers->len);
    commit_start(&options, &error);
    if (!error && !top) {
        blind_copies(machine);
    }
    if (add_job(machine, busy, error)) {
        count(top ? COUNT_COMMITS : COUNT_ACTIVE_COMMITS);
    }
}

/* ---- Copies ---------------------------------------------------------------------------------- */

/*
 * An image of the disk's length, with the layers below it, if nobody is changing these, or without.
 */
static void make_target(struct machine *machine, struct machine_job *busy, struct block_node *root)
{
    g_autoptr(GError) error = NULL;

    AUTO(block_node) below = busy->is_top ? block_chain_below(root) : NULL;
    bool is_raw = !busy->is_top && test_random_chance(&machine->random, 25);
    bool is_based = below && busy->kind == KIND_BACKUP && test_random_chance(&machine->random, 40);

    busy->path = machine_make_image(machine, is_raw, block_node_length(root), below);
    if (is_based) {
        busy->target = machine_try_open(machine, busy->path, is_raw, below->name, &error);
    }
    if (!busy->target) {
        busy->target = machine_open(machine, busy->path, is_raw, is_raw ? NULL : "");
    }
}

struct moment {
    struct machine *machine;
    struct machine_job *busy;
    struct block_node *source;
};

/* False: the disk has moved. */
static void take_moment(void *data)
{
    struct moment *moment = data;

    if (block_device_is_on(moment->machine->rig->device, moment->source)) {
        backup_activate(moment->busy->job);
        moment->busy->moment = model_snapshot(moment->machine->rig->model);
        moment->busy->below = block_chain_below(moment->busy->layer);
    }
}

static void begin_backup(struct machine *machine, struct machine_job *busy,
                         struct block_node *source, GError **error)
{
    struct moment moment = {.machine = machine, .busy = busy, .source = source};
    struct block_drain *drain = block_drain_begin(&source, 1, BLOCK_PERM_WRITE);

    main_loop_call_wait(take_moment, &moment);
    block_drain_end(drain);
    if (busy->moment) {
        job_start(busy->job, error);
    } else {
        job_roll_back(busy->job);
        g_set_error(error, g_quark_from_static_string("test"), 0, "the disk has just moved");
    }
}

void machine_start_backup(struct machine *machine)
{
    AUTO(block_node) root = block_device_root(machine->rig->device);
    AUTO(block_node) source = block_below_transient(root);
    struct machine_job *busy = new_job(machine, KIND_BACKUP);
    g_autofree char *filter = choose_filter(machine, busy);
    struct test_random *random = &machine->random;
    g_autoptr(GError) error = NULL;

    busy->layer = machine_root(machine);
    busy->is_top = busy->layer->backing && test_random_chance(random, 60);
    make_target(machine, busy, busy->layer);
    struct backup_options options = {
        .job_id = busy->id,
        .filter_node_name = filter,
        .source = source,
        .target = busy->target,
        .sync = busy->is_top ? BACKUP_SYNC_TOP : BACKUP_SYNC_FULL,
        .scratch = test_random_chance(random, 30) ? BACKUP_SCRATCH_NONE : BACKUP_SCRATCH_DIRECTORY,
        .scratch_directory = machine->directory,
        .speed = choose_speed(machine),
        .job_flags = choose_flags(machine),
    };
    busy->job = backup_new(&options, &error);
    if (busy->job) {
        begin_backup(machine, busy, source, &error);
        job_unref(g_steal_pointer(&busy->job));
    }
    if (add_job(machine, busy, error)) {
        count(COUNT_BACKUPS);
    }
}

void machine_start_mirror(struct machine *machine)
{
    AUTO(block_node) source = block_device_root(machine->rig->device);
    struct machine_job *busy = new_job(machine, KIND_MIRROR);
    g_autofree char *filter = choose_filter(machine, busy);
    struct test_random *random = &machine->random;
    g_autoptr(GError) error = NULL;

    busy->layer = machine_root(machine);
    busy->is_top = busy->layer->backing && test_random_chance(random, 60);
    busy->is_pivot = test_random_chance(random, 60);
    make_target(machine, busy, busy->layer);
    struct mirror_options options = {
        .job_id = busy->id,
        .filter_node_name = filter,
        .source = source,
        .device = machine->rig->device,
        .target = busy->target,
        .sync = busy->is_top ? MIRROR_SYNC_TOP : MIRROR_SYNC_FULL,
        .granularity = MIRROR_GRANULARITY_MIN << test_random_below(random, 9),
        .speed = choose_speed(machine),
        .job_flags = choose_flags(machine),
    };
    mirror_start(&options, &error);
    if (add_job(machine, busy, error)) {
        count(COUNT_MIRRORS);
    }
}

/* ---- Their ends ------------------------------------------------------------------------------ */

/* Nobody but us has it any more. */
static void close_target(struct machine_job *busy)
{
    rig_assert_unused(g_steal_pointer(&busy->target));
}

/* With the layers that were below the source at the moment. */
static void check_copy(struct machine *machine, struct machine_job *busy)
{
    bool is_raw = machine_is_raw(busy->target);

    close_target(busy);
    if (!is_raw) {
        qemu_assert_clean(busy->path);
    }
    if (busy->is_top && busy->is_unseen) {
        count(COUNT_UNSEEN);
        return;
    }
    const char *below = busy->is_top && busy->below ? busy->below->name : "";
    AUTO(block_node) node = machine_open(machine, busy->path, is_raw, is_raw ? NULL : below);
    machine_assert_equal(busy->moment, node);
}

/* The disk has moved to the target, and perhaps on from there. */
static bool is_used(struct machine *machine, const struct machine_job *busy)
{
    AUTO(block_node) root = machine_root(machine);

    return busy->target && block_chain_contains(root, busy->target);
}

static void check_success(struct machine *machine, struct machine_job *busy)
{
    if (is_used(machine, busy)) {
        g_ptr_array_add(machine->unfollowed, g_strdup(busy->path));
        count(COUNT_PIVOTS);
    } else if (busy->moment) {
        check_copy(machine, busy);
        count(busy->kind == KIND_MIRROR ? COUNT_COPIES : COUNT_SEEN);
    }
}

/* What jobs may fail with, though nobody cancelled them. */
static void check_failure(const struct machine_job *busy, const char *message)
{
    if (g_str_equal(message, g_strerror(ECANCELED))) {
        count(COUNT_CANCELLED);
        return;
    }
    count(COUNT_FAILED);
    if (!strstr(message, " is too slow: ") && !strstr(message, " has moved from node ") &&
        !strstr(message, "A job is just moving device ")) {
        g_error("%s failed: %s", busy->id, message);
    }
}

static void reap(struct machine *machine, size_t index)
{
    struct machine_job busy = machine->jobs[index];
    g_autofree char *message = rig_end(busy.job);

    g_test_message("%s has ended: %s", busy.id, message ? message : "well");
    machine->jobs[index] = machine->jobs[--machine->job_count];
    if (message) {
        check_failure(&busy, message);
    } else {
        check_success(machine, &busy);
    }
    bool is_kept = is_used(machine, &busy);
    if (busy.target && !is_kept) {
        close_target(&busy);
    }
    if (busy.path && !is_kept) {
        g_remove(busy.path);
    }
    clear_job(&busy);
}

void machine_reap(struct machine *machine)
{
    for (size_t i = 0; i < machine->job_count;) {
        if (job_get_status(machine->jobs[i].job) == JOB_STATUS_CONCLUDED) {
            reap(machine, i);
        } else {
            i++;
        }
    }
}

/* ---- Meddling -------------------------------------------------------------------------------- */

/* A mirror that does not take the disk along: it stands still, so that there is what to compare. */
static void end_copy(struct machine *machine, struct machine_job *busy)
{
    if (busy->moment) {
        return;
    }
    rig_stop(machine->rig);
    if (busy->kind == KIND_MIRROR) {
        AUTO(block_node) layer = block_node_ref(busy->layer);

        busy->moment = model_snapshot(machine->rig->model);
        busy->below = block_chain_below(layer);
    }
    job_cancel(busy->job, false, false, NULL);
}

/* What is asked of a job that is ready or pending. */
static void push(struct machine *machine, struct machine_job *busy, bool may_cancel)
{
    switch (job_get_status(busy->job)) {
    case JOB_STATUS_READY:
        if (busy->is_pivot) {
            job_complete(busy->job, NULL);
        } else {
            end_copy(machine, busy);
        }
        break;
    case JOB_STATUS_PENDING:
        if (may_cancel && test_random_chance(&machine->random, 20)) {
            job_cancel(busy->job, true, true, NULL);
        } else {
            job_finalize(busy->job, NULL);
        }
        break;
    default:
        break;
    }
}

static void describe(const struct machine *machine)
{
    for (size_t i = 0; i < machine->job_count; i++) {
        struct job_info info;

        job_get_info(machine->jobs[i].job, &info);
        g_test_message("job %s: %s, %s, %lu of %lu, paused %d, busy %d", info.id,
                       job_status_names[info.status], info.phase,
                       (unsigned long)info.current_progress, (unsigned long)info.total_progress,
                       info.paused, info.busy);
        job_info_clear(&info);
    }
}

static void settle_one(struct machine *machine, struct machine_job *busy, bool may_cancel)
{
    int64_t deadline_ns = clock_now_ns() + END_MAX_NS;

    while (job_get_status(busy->job) != JOB_STATUS_CONCLUDED) {
        job_user_resume(busy->job, NULL);
        job_set_speed(busy->job, 0, NULL);
        push(machine, busy, may_cancel);
        if (clock_now_ns() > deadline_ns) {
            describe(machine);
            g_error("job %s does not end", busy->id);
        }
        g_usleep(500);
    }
}

/* A copy that guests have stopped for is seen through at once. */
static void end_now(struct machine *machine, size_t index)
{
    struct machine_job *busy = &machine->jobs[index];

    if (job_get_status(busy->job) == JOB_STATUS_READY && !busy->is_pivot) {
        settle_one(machine, busy, false);
        reap(machine, index);
        if (!machine->rig->writer_count) {
            rig_write(machine->rig, MACHINE_WRITERS);
        }
    } else {
        push(machine, busy, true);
    }
}

void machine_meddle(struct machine *machine)
{
    struct test_random *random = &machine->random;

    if (!machine->job_count) {
        return;
    }
    size_t index = test_random_below(random, machine->job_count);
    struct job *job = machine->jobs[index].job;
    switch (test_random_below(random, 12)) {
    case 0:
        job_user_pause(job, NULL);
        break;
    case 1:
        job_set_speed(job, (int64_t)test_random_between(random, 2, 32) << 20, NULL);
        break;
    case 2:
        job_set_speed(job, 0, NULL);
        break;
    case 3:
        if (test_random_chance(random, 30)) {
            job_cancel(job, true, test_random_chance(random, 50), NULL);
        }
        break;
    case 4:
    case 5:
    case 6:
        job_user_resume(job, NULL);
        break;
    default:
        end_now(machine, index);
    }
}

void machine_settle(struct machine *machine)
{
    while (machine->job_count) {
        settle_one(machine, &machine->jobs[0], true);
        reap(machine, 0);
        if (!machine->rig->writer_count) {
            rig_write(machine->rig, MACHINE_WRITERS);
        }
    }
}
