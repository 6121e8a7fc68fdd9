/* SPDX-License-Identifier: BSD-3-Clause */
/* What the torture test of chains does besides jobs: snapshots, other lengths, other options. */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/options.h"
#include "block/overlay.h"
#include "block/reopen.h"
#include "tests/lib/disk.h"
#include "tests/torture/chain-machine.h"

/* ---- Snapshots ------------------------------------------------------------------------------- */

/* A job's end may just have moved the disk. */
static int check_is_root(struct machine *machine, const struct block_node *node, GError **error)
{
    AUTO(block_node) root = block_device_root(machine->rig->device);

    return root == node || block_node_below_filters(root) == node
               ? 0
               : block_error(error, EAGAIN, "the disk has just moved");
}

struct snapshot {
    struct machine *machine;
    struct block_node *node;
    struct block_node *overlay;
    int status;
    GError *error;
};

static void install(void *data)
{
    struct snapshot *snapshot = data;

    snapshot->status = check_is_root(snapshot->machine, snapshot->node, &snapshot->error);
    if (snapshot->status < 0) {
        return;
    }
    snapshot->status = block_overlay_install(snapshot->node, snapshot->overlay, &snapshot->error);
}

/* As the server does it: readers stand still, too. */
static void take_drained(struct snapshot *snapshot)
{
    struct block_node *const nodes[] = {snapshot->node, snapshot->overlay};
    AUTO(block_drain) drain = block_drain_begin(nodes, G_N_ELEMENTS(nodes), BLOCK_PERM_ALL);

    g_assert_cmpint(block_node_flush(snapshot->node), ==, 0);
    main_loop_call_wait(install, snapshot);
}

/* Of the disk, or of what has become a backing file in the meantime. */
void machine_snapshot(struct machine *machine)
{
    AUTO(block_node) node = machine_root(machine);
    g_autofree char *path = machine_make_image(machine, false, block_node_length(node), node);
    AUTO(block_node) overlay = machine_open(machine, path, false, "");
    struct snapshot snapshot = {.machine = machine, .node = node, .overlay = overlay};
    g_autoptr(GError) error = NULL;

    take_drained(&snapshot);
    if (snapshot.status < 0) {
        machine_refused("snapshot", snapshot.error);
        g_error_free(snapshot.error);
        block_node_dispose(g_steal_pointer(&overlay));
        g_remove(path);
        return;
    }
    if (test_random_chance(&machine->random, 90)) {
        block_node_set_read_only(node, true, &error);
    }
    if (error) {
        machine_refused("read-only below an overlay", error);
    }
    g_test_message("snapshot: %s", path);
    count(COUNT_SNAPSHOTS);
}

/* ---- Other lengths --------------------------------------------------------------------------- */

/* As the server does it. */
static int set_length(struct machine *machine, struct block_node *node, uint64_t length,
                      GError **error)
{
    struct block_claim claim = {
        .owner = (char *)"the test's resizing",
        .perms = BLOCK_PERM_RESIZE,
        .shared = BLOCK_PERM_ALL,
    };
    int status = block_node_check_resize(node, error);

    if (status == 0) {
        status = block_claim_acquire(&claim, node, error);
    }
    if (status < 0) {
        return status;
    }
    struct block_drain *drain = block_drain_begin(&node, 1, BLOCK_PERM_ALL);
    status = check_is_root(machine, node, error);
    if (status == 0) {
        status = block_node_set_length(node, length, BLOCK_PREALLOCATION_OFF, error);
    }
    block_drain_end(drain);
    block_claim_release(&claim);
    return status;
}

static void grow(struct machine *machine, struct block_node *root, uint64_t length)
{
    g_autoptr(GError) error = NULL;

    if (set_length(machine, root, length, &error) < 0) {
        machine_refused("growing", error);
        return;
    }
    g_test_message("grown to %" G_GUINT64_FORMAT, length);
    atomic_store(&machine->rig->end, length);
    count(COUNT_GROWN);
}

/* What was behind the new end is gone. */
static void forget(struct rig *rig, uint64_t start, uint64_t end)
{
    struct model_request *request = model_begin(rig->model, MODEL_ZEROES, 99, start, end - start);

    model_end(rig->model, request, 0);
}

/* Guests write behind the new end until they stop. */
static void shrink(struct machine *machine, struct block_node *root, uint64_t length)
{
    uint64_t old = block_node_length(root);
    g_autoptr(GError) error = NULL;

    rig_stop(machine->rig);
    if (set_length(machine, root, length, &error) < 0) {
        machine_refused("shrinking", error);
    } else {
        g_test_message("shrunk to %" G_GUINT64_FORMAT, length);
        forget(machine->rig, length, old);
        atomic_store(&machine->rig->end, length);
        count(COUNT_SHRUNK);
    }
    rig_write(machine->rig, MACHINE_WRITERS);
}

void machine_resize(struct machine *machine)
{
    AUTO(block_node) root = block_device_root(machine->rig->device);
    struct test_random *random = &machine->random;
    uint64_t old = block_node_length(root), step = test_random_between(random, 1, 4000) * 512;

    if (test_random_chance(random, 65)) {
        if (old + step <= MACHINE_LENGTH_MAX) {
            grow(machine, root, old + step);
        }
    } else if (old > step + MIB) {
        shrink(machine, root, old - step);
    }
}

/* ---- Other options --------------------------------------------------------------------------- */

void machine_reopen_root(struct machine *machine)
{
    static const char *const detect_zeroes[] = {"off", "on", "unmap"};
    AUTO(block_node) root = machine_root(machine);
    AUTO(block_node) below = block_chain_below(root);
    g_autofree char *backing = below ? g_strdup_printf(",backing=%s", below->name) : g_strdup("");
    g_autofree char *text =
        g_strdup_printf("driver=%s,node-name=%s,file=%s,discard=unmap,detect-zeroes=%s%s",
                        root->driver->name, root->name, root->file->name,
                        detect_zeroes[test_random_below(&machine->random, 3)], backing);
    g_autoptr(GError) error = NULL;
    AUTO(block_options) options = block_options_parse(text, NULL, &error);

    g_assert_no_error(error);
    if (block_nodes_reopen(&options, 1, &error) < 0) {
        machine_refused("reopening", error);
    } else {
        count(COUNT_REOPENED);
    }
}

/* A backing file becomes writable, or read-only again, whoever uses it. */
void machine_make_writable(struct machine *machine)
{
    g_autoptr(GPtrArray) layers = machine_layers(machine);
    g_autoptr(GError) error = NULL;

    if (layers->len < 2) {
        return;
    }
    guint index = (guint)test_random_between(&machine->random, 1, layers->len - 1);
    struct block_node *node = layers->pdata[index];
    if (block_node_set_read_only(node, !block_node_is_read_only(node), &error) < 0) {
        machine_refused("another access", error);
    } else {
        count(COUNT_REOPENED);
    }
}

/* ---- What jobs do not allow ------------------------------------------------------------------ */

struct attempt {
    struct block_node *node;
    bool was_made;
    GError *error;
};

/* Main thread. */
static void detach(void *data)
{
    struct attempt *attempt = data;
    AUTO(block_node) backing = block_chain_below(attempt->node);

    if (backing && block_node_set_backing(attempt->node, NULL, NULL, &attempt->error) == 0) {
        g_assert_cmpint(block_node_set_backing(attempt->node, backing, NULL, NULL), ==, 0);
        attempt->was_made = true;
    }
}

/* Until its finalization, in which it gives up its hold. */
static bool is_held(enum job_status status)
{
    return status == JOB_STATUS_RUNNING || status == JOB_STATUS_PAUSED ||
           status == JOB_STATUS_READY || status == JOB_STATUS_STANDBY;
}

/* Of the layers that it fills or takes away; a copy's if it is of these alone. */
void machine_try_forbidden(struct machine *machine)
{
    if (!machine->job_count) {
        return;
    }
    size_t index = test_random_below(&machine->random, machine->job_count);
    struct machine_job *busy = &machine->jobs[index];
    struct attempt attempt = {.node = busy->layer};
    if ((busy->kind == KIND_BACKUP || busy->kind == KIND_MIRROR) && !busy->is_top) {
        return;
    }
    struct block_drain *drain = block_drain_begin(&busy->layer, 1, BLOCK_PERM_ALL);
    main_loop_call_wait(detach, &attempt);
    enum job_status status = job_get_status(busy->job);
    block_drain_end(drain);
    if (attempt.was_made && is_held(status)) {
        g_error("job %s let its chain be changed in state %s", busy->id, job_status_names[status]);
    }
    if (attempt.error) {
        g_assert_nonnull(strstr(attempt.error->message, "block job '"));
        g_clear_error(&attempt.error);
        count(COUNT_DENIED);
    }
}
