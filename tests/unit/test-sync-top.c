/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Backups and mirrors of the top layer alone: with the layers below they are the disk, they hold no
 * more than they need to, and the disk can move to them.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "block/options.h"
#include "jobs/copy-engine.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 5

/* A chain: base, middle and the disk, each a qcow2 image; and what the copy of the disk is. */
struct shape {
    const char *name;
    uint64_t base_bytes, middle_bytes, disk_bytes;
    const char *disk_options, *target_options; /* of block_create */
    bool is_based;    /* the target is opened on the layer below, else without a backing file */
    bool is_nameless; /* neither does the target's image name one */
};

#define MB(n) ((n)*MIB)

static const struct shape shapes[] = {
    {"plain", MB(4), MB(4), MB(4), "version=v3", "version=v3", true},
    {"unbased", MB(4), MB(4), MB(4), "version=v3", "version=v3", false},
    {"short-base", MB(1) + 1536, MB(3), MB(4) + 512, "version=v3", "version=v3", true},
    {"short-base-unbased", MB(1) + 1536, MB(3), MB(4) + 512, "version=v3", "version=v3", false},
    {"long-base", MB(6), MB(5), MB(3) + 4096, "version=v3", "version=v3", false},
    {"small-to-large", MB(4), MB(2), MB(4), "cluster-size=4k", "cluster-size=1M", false},
    {"small-to-large-based", MB(4), MB(2), MB(4), "cluster-size=4k", "cluster-size=1M", true},
    {"large-to-small", MB(4), MB(3), MB(5), "cluster-size=2M", "cluster-size=4k", false},
    {"nameless", MB(4), MB(3), MB(4), "version=v3", "cluster-size=512k", false, true},
    {"nameless-version-2", MB(4), MB(3), MB(4), "version=v3", "version=v2", false, true},
    {"subclusters", MB(4), MB(3), MB(4), "extended-l2=on,cluster-size=128k",
     "extended-l2=on,cluster-size=64k", false},
    {"subclusters-based", MB(4), MB(3), MB(4), "extended-l2=on", "extended-l2=on", true},
    {"version-2", MB(4), MB(3), MB(4), "version=v2", "version=v2", false},
    {"version-2-based", MB(4), MB(3), MB(4), "version=v2", "version=v2", true},
};

/* ---- Chains --------------------------------------------------------------------------------- */

static struct block_node *layer_of(struct block_node *node)
{
    return block_node_below_filters(node);
}

/* A compressed cluster in the middle of a layer. */
static void write_special(struct rig *rig, struct block_node *layer, uint64_t bytes)
{
    uint64_t cluster = layer->limits.cluster_size;
    uint64_t offset = align_down(bytes / 2, cluster);
    g_autofree char *memory = g_malloc(cluster);

    if (offset + cluster > bytes) {
        return;
    }
    struct model_request *request = model_begin(rig->model, MODEL_WRITE, 99, offset, cluster);
    model_fill(rig->model, request, memory);
    int status = block_node_pwrite_compressed(layer, memory, offset, cluster);
    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

/* Behind this nobody sees what the base holds: a layer above is shorter. */
static void write_junk(struct block_node *base, uint64_t offset)
{
    uint64_t bytes = block_node_length(base) - offset;
    g_autofree char *junk = g_malloc(bytes + 1);

    memset(junk, 0xdb, bytes);
    g_assert_cmpint(block_node_pwrite(base, junk, offset, bytes, 0), ==, 0);
}

static void zero(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = model_begin(rig->model, MODEL_ZEROES, 98, offset, bytes);
    int status = block_device_write_zeroes(rig->device, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

static void discard(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = model_begin(rig->model, MODEL_TRIM, 97, offset, bytes);
    int status = block_device_discard(rig->device, offset, bytes, 0);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

/* Data here and there, in the layer that the device is on. */
static void scatter(struct rig *rig, uint64_t bytes, unsigned writes)
{
    uint64_t length = MIN_OF(align_down(bytes, RIG_SECTOR), model_length(rig->model));

    for (unsigned i = 0; i < writes; i++) {
        uint64_t offset, size;

        test_random_range(&rig->random, length, RIG_SECTOR, 96 * KIB, &offset, &size);
        if (i % 4 == 3) {
            zero(rig, offset, size);
        } else {
            g_assert_cmpint(rig_pwrite(rig, 90, offset, size), ==, 0);
        }
    }
}

static void make_image(struct rig *rig, const char *name, const char *options, uint64_t bytes,
                       const char *below)
{
    g_autofree char *base =
        below ? g_strdup_printf(",backing-file=%s/%s,backing-fmt=qcow2", rig->directory, below)
              : g_strdup("");
    g_autofree char *text = g_strdup_printf("driver=qcow2,size=%" G_GUINT64_FORMAT
                                            ",%s%s,file.driver=file,file.filename=%s/%s",
                                            bytes, options, base, rig->directory, name);
    g_autofree char *path = test_path(rig->directory, name);
    g_autoptr(GError) error = NULL;
    AUTO(block_options) create = block_options_parse(text, NULL, &error);

    test_make_file(path, 0);
    g_assert_no_error(error);
    block_create(create, NULL, NULL, &error);
    g_assert_no_error(error);
}

/* Images are opened on nodes that are there; empty: on none. */
static struct block_node *open_layer(struct rig *rig, const char *name, const char *below)
{
    return test_open("driver=fault,node-name=%s,discard=unmap,file.driver=qcow2,"
                     "file.node-name=%s-layer,file.backing=%s,file.file.driver=fault,"
                     "file.file.node-name=%s-file,file.file.file.driver=file,"
                     "file.file.file.filename=%s/%s",
                     name, name, below, name, rig->directory, name);
}

/* The old node, which has to be closed before the new one can be opened, is given up. */
static void move_device(struct rig *rig, const char *name, const char *below)
{
    g_assert_cmpint(block_device_remove(rig->device), ==, 0);
    block_device_unref(rig->device);
    AUTO(block_node) kept = block_node_find(below);
    block_node_unref(rig->source);
    rig->source = open_layer(rig, name, below);
    rig->device = block_device_new("vda", rig->source, NULL);
    g_assert_nonnull(rig->device);
    block_device_ref(rig->device);
}

/* Nobody writes to the present layer any more. */
static void put_layer_over(struct rig *rig, const char *name, const char *options, uint64_t bytes,
                           const char *below)
{
    g_autofree char *layer = g_strconcat(below, "-layer", NULL);

    make_image(rig, name, options, bytes, below);
    move_device(rig, name, layer);
}

/* Close and open the disk, so that its tables are not in memory. */
static void reopen_disk(struct rig *rig)
{
    move_device(rig, "disk", "middle-layer");
}

static struct rig *new_rig(const struct shape *shape)
{
    char *directory = test_directory_new(true);
    struct rig seed = {.directory = directory};

    make_image(&seed, "base", "version=v3", shape->base_bytes, NULL);
    struct rig *rig = rig_new_on("vda", directory, open_layer(&seed, "base", ""));
    model_free(rig->model);
    rig->length = shape->disk_bytes;
    /* What a shorter layer cuts off reads as zeroes in those above, whoever wrote there. */
    uint64_t shown = MIN_OF(shape->middle_bytes, shape->disk_bytes);
    uint64_t bytes = MIN_OF(shape->base_bytes, shown);
    rig->model = model_new(align_down(shape->disk_bytes, RIG_SECTOR), RIG_SECTOR);
    scatter(rig, bytes, 60);
    write_special(rig, layer_of(rig->source), bytes);
    write_junk(rig->source, bytes);
    put_layer_over(rig, "middle", "version=v3", shape->middle_bytes, "base");
    scatter(rig, shown, 12);
    put_layer_over(rig, "disk", shape->disk_options, shape->disk_bytes, "middle");
    scatter(rig, shape->disk_bytes, 8);
    write_special(rig, layer_of(rig->source), shape->disk_bytes);
    return rig;
}

static struct block_node *new_target(struct rig *rig, const struct shape *shape)
{
    make_image(rig, "target", shape->target_options, shape->disk_bytes,
               shape->is_nameless ? NULL : "middle");
    return open_layer(rig, "target", shape->is_based ? "middle-layer" : "");
}

static void assert_image_is_good(struct rig *rig, const char *name)
{
    test_command_succeeds("qemu-img check -q -U %s/%s", rig->directory, name);
}

/* With the layers below, whoever opens it so, the target is this. Drops the target. */
static void assert_target_is(struct rig *rig, struct model *model, struct block_node *target)
{
    rig_assert_unused(target);
    assert_image_is_good(rig, "target");
    target = open_layer(rig, "target", "middle-layer");
    rig_assert_equal(model, target);
    rig_assert_unused(target);
}

static void assert_qemu_sees_the_same(struct rig *rig, const struct shape *shape)
{
    if (shape->is_nameless) {
        return; /* nothing that it could find out by itself */
    }
    g_assert_cmpint(block_device_flush(rig->device), ==, 0);
    test_command_succeeds("qemu-img compare -q -U %s/disk %s/target", rig->directory,
                          rig->directory);
}

/* How many bytes of a layer, in whole units, it has itself. */
static uint64_t allocated(struct block_node *layer, uint64_t unit)
{
    uint64_t length = block_node_length(layer);
    AUTO(dirty_bitmap) bitmap = dirty_bitmap_new(NULL, length, unit, NULL);

    for (uint64_t offset = 0; offset < length;) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status(layer, offset, length - offset, &extent), ==, 0);
        if (extent.flags & BLOCK_STATUS_ALLOCATED) {
            dirty_bitmap_set(bitmap, offset, extent.bytes);
        }
        offset += extent.bytes;
    }
    return dirty_bitmap_count(bitmap);
}

/*
 * The target has no more than the source's layer: in clusters of its own, as these are whole; and
 * in the units in which it is copied.
 */
static void assert_no_more_than_needed(struct rig *rig, struct block_node *target)
{
    uint64_t cluster = MAX_OF(layer_of(target)->limits.cluster_size, 4 * KIB);

    g_assert_cmpuint(allocated(layer_of(target), cluster), <=,
                     allocated(layer_of(rig->source), cluster));
    g_assert_cmpuint(allocated(layer_of(rig->source), cluster), <=, rig->length);
}

/* ---- Backup --------------------------------------------------------------------------------- */

static struct backup_options top_backup(struct rig *rig, struct block_node *target)
{
    struct backup_options options = rig_options(rig, "b", target);

    options.sync = BACKUP_SYNC_TOP;
    return options;
}

static void end_well(struct job *job)
{
    g_autofree char *message = rig_end(job);

    g_assert_cmpstr(message, ==, NULL);
}

/* Many guests write while it is copied. */
static void test_backup_beside_writers(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    AUTO(model) snapshot = NULL;
    struct job *job;

    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 20);
    rig_backup(rig, &options, 1, &job, &snapshot);
    end_well(job);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    assert_target_is(rig, snapshot, target);
    rig_free(rig);
}

/* Nobody writes: nothing is copied that the layer does not have, and progress says so. */
static void test_backup_of_a_quiet_disk(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    uint64_t unit =
        shape->is_based ? 4 * KIB : MAX_OF(layer_of(target)->limits.cluster_size, 4096u);
    uint64_t expected = allocated(layer_of(rig->source), unit);
    struct job_info info;
    struct job *job;

    rig_backup(rig, &options, 1, &job, NULL);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_CONCLUDED), ==, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, expected);
    job_info_clear(&info);
    end_well(job);
    assert_no_more_than_needed(rig, target);
    assert_target_is(rig, rig->model, target);
    assert_qemu_sees_the_same(rig, shape);
    rig_free(rig);
}

static void test_compressed_backup(void)
{
    const struct shape *shape = &shapes[1];
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct backup_options options = top_backup(rig, layer_of(target));
    AUTO(model) snapshot = NULL;
    struct job *job;

    options.compress = true;
    rig_write(rig, WRITERS);
    rig_backup(rig, &options, 1, &job, &snapshot);
    end_well(job);
    rig_stop(rig);
    assert_target_is(rig, snapshot, target);
    rig_free(rig);
}

static void activate(void *data)
{
    backup_activate(data);
}

/* A backup at its moment, which has not begun to look what there is. */
static struct job *begin_backup(struct rig *rig, const struct backup_options *options)
{
    g_autoptr(GError) error = NULL;
    struct job *job = backup_new(options, &error);

    g_assert_no_error(error);
    AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(activate, job);
    return job;
}

/* What a guest does between the moment and the scan takes nothing away and adds little. */
static void test_guest_before_the_scan(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct backup_options options = top_backup(rig, target);
    struct job *job = begin_backup(rig, &options);
    AUTO(model) snapshot = model_snapshot(rig->model);
    uint64_t half = align_down(model_length(rig->model) / 2, RIG_SECTOR);

    discard(rig, 0, half);
    zero(rig, half, align_down(half / 4, RIG_SECTOR));
    scatter(rig, rig->length, 10);
    g_assert_cmpint(job_start(job, NULL), ==, 0);
    end_well(job);
    assert_target_is(rig, snapshot, target);
    rig_free(rig);
}

/* Without layers below, top is everything: nothing stale is left in the target. */
static void test_one_layer(void)
{
    struct rig *rig = rig_new(MIB, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct block_node *other = rig_target(rig, "other", true);
    struct backup_options options = top_backup(rig, target);
    struct mirror_options mirror = rig_mirror_options(rig, "m", other);
    struct job *job;

    g_assert_cmpint(rig_pwrite(rig, 1, 64 * KIB, 64 * KIB), ==, 0);
    rig_backup(rig, &options, 1, &job, NULL);
    end_well(job);
    rig_assert_equal(rig->model, target);
    mirror.sync = MIRROR_SYNC_TOP;
    job = rig_ready_mirror(&mirror);
    rig_complete(job);
    rig_end_well(job);
    rig_assert_unused(rig_follow(rig, other));
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Mirror --------------------------------------------------------------------------------- */

static struct mirror_options top_mirror(struct rig *rig, struct block_node *target)
{
    struct mirror_options options = rig_mirror_options(rig, "m", target);

    options.sync = MIRROR_SYNC_TOP;
    return options;
}

/* The disk moves to the target, and guests see what they saw, and write on. */
static void test_pivot(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);
    AUTO(block_node) middle = block_node_find("middle-layer");

    rig_write(rig, WRITERS);
    struct job *job = rig_ready_mirror(&options);
    rig_wait_requests(rig, 30);
    rig_complete(job);
    rig_end_well(job);
    struct block_node *old = rig_follow(rig, target);
    g_assert_true(layer_of(target)->backing == middle);
    rig_assert_unused(old);
    rig_wait_requests(rig, 30);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_assert_equal(rig->model, target);
    block_node_unref(STEAL(middle));
    assert_image_is_good(rig, "disk");
    rig_free(rig);
}

static void test_kept_copy(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);

    rig_write(rig, WRITERS);
    struct job *job = rig_ready_mirror(&options);
    rig_wait_requests(rig, 30);
    rig_stop(rig);
    rig_cancel_softly(job);
    rig_end_well(job);
    g_assert_true(shape->is_based || !layer_of(target)->backing);
    assert_target_is(rig, rig->model, target);
    rig_free(rig);
}

static void test_mirror_of_a_quiet_disk(gconstpointer data)
{
    const struct shape *shape = data;
    struct rig *rig = new_rig(shape);
    struct block_node *target = new_target(rig, shape);
    struct mirror_options options = top_mirror(rig, target);
    struct job_info info;

    options.granularity = 4 * KIB;
    uint64_t unit =
        shape->is_based ? 4 * KIB : MAX_OF(layer_of(target)->limits.cluster_size, 4096u);
    uint64_t expected = allocated(layer_of(rig->source), unit);
    struct job *job = rig_ready_mirror(&options);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, expected);
    job_info_clear(&info);
    rig_cancel_softly(job);
    rig_end_well(job);
    assert_no_more_than_needed(rig, target);
    assert_target_is(rig, rig->model, target);
    assert_qemu_sees_the_same(rig, shape);
    rig_free(rig);
}

/* A disk cannot move to where its layers below would be lost. */
static void test_pivot_to_raw(void)
{
    struct rig *rig = new_rig(&shapes[0]);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);

    rig_complete(job);
    rig_end_badly(job, "have no backing file for the rest");
    rig_assert_unused(target);
    rig_free(rig);
}

/* An end that fails leaves the target as it was, and the guest where it is. */
static void test_failed_pivot(void)
{
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);

    FAULT(target, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    rig_complete(job);
    rig_end_badly(job, "Could not flush target");
    g_assert_null(layer_of(target)->backing);
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}

struct change {
    struct block_node *node;
    struct block_node *backing;
    char *said;
};

static void try_change(void *data)
{
    struct change *change = data;
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_node_set_backing(change->node, change->backing, NULL, &error), ==,
                    -EBUSY);
    change->said = g_strdup(error->message);
}

/* While the job runs nobody takes the layers below away. */
static void test_chain_is_kept(void)
{
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);
    struct mirror_options options = top_mirror(rig, target);
    struct job *job = rig_ready_mirror(&options);
    struct change change = {.node = layer_of(rig->source)};

    struct block_drain *drain = block_drain_begin(&change.node, 1, BLOCK_PERM_ALL);
    main_loop_call_wait(try_change, &change);
    block_drain_end(drain);
    g_assert_nonnull(strstr(change.said, "block job 'm'"));
    g_free(change.said);
    rig_cancel_softly(job);
    rig_end_well(job);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Errors --------------------------------------------------------------------------------- */

struct error_case {
    const char *name;
    bool is_mirror;
    bool is_source;
    enum block_error_policy policy;
};

static const struct error_case error_cases[] = {
    {"backup/source/report", false, true, BLOCK_ERROR_POLICY_REPORT},
    {"backup/source/stop", false, true, BLOCK_ERROR_POLICY_STOP},
    {"backup/source/ignore", false, true, BLOCK_ERROR_POLICY_IGNORE},
    {"backup/target/report", false, false, BLOCK_ERROR_POLICY_REPORT},
    {"backup/target/stop", false, false, BLOCK_ERROR_POLICY_STOP},
    {"backup/target/ignore", false, false, BLOCK_ERROR_POLICY_IGNORE},
    {"mirror/source/report", true, true, BLOCK_ERROR_POLICY_REPORT},
    {"mirror/source/stop", true, true, BLOCK_ERROR_POLICY_STOP},
    {"mirror/source/ignore", true, true, BLOCK_ERROR_POLICY_IGNORE},
    {"mirror/target/report", true, false, BLOCK_ERROR_POLICY_REPORT},
    {"mirror/target/stop", true, false, BLOCK_ERROR_POLICY_STOP},
    {"mirror/target/ignore", true, false, BLOCK_ERROR_POLICY_IGNORE},
};

static struct job *start_with_policy(struct rig *rig, struct block_node *target,
                                     const struct error_case *error_case)
{
    struct backup_options backup = top_backup(rig, target);
    struct mirror_options mirror = top_mirror(rig, target);
    struct job *job = NULL;

    backup.on_source_error = mirror.on_source_error = error_case->policy;
    backup.on_target_error = mirror.on_target_error = error_case->policy;
    if (error_case->is_mirror) {
        return rig_mirror(&mirror);
    }
    rig_backup(rig, &backup, 1, &job, NULL);
    return job;
}

static void end_after_errors(struct job *job, bool is_mirror)
{
    if (is_mirror) {
        g_assert_cmpint(rig_wait_status(job, JOB_STATUS_READY), ==, JOB_STATUS_READY);
        rig_cancel_softly(job);
    }
    rig_end_well(job);
}

/* The source's image cannot be read, its tables neither, when the scan begins; or the target's. */
static void test_errors(gconstpointer data)
{
    const struct error_case *error_case = data;
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);

    reopen_disk(rig);
    AUTO(block_node) file = block_node_find("disk-file");
    struct block_node *failing = error_case->is_source ? file : target;
    FAULT(failing, .operations = error_case->is_source ? FAULT_ON(READ) : FAULT_ON_CHANGES,
          .error_number = EIO);
    struct job *job = start_with_policy(rig, target, error_case);
    if (error_case->policy == BLOCK_ERROR_POLICY_REPORT) {
        rig_end_badly(job, error_case->is_source ? "Could not read source" : "Could not write");
    } else if (error_case->policy == BLOCK_ERROR_POLICY_STOP) {
        g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    } else {
        while (fault_hits(failing) < 3) {
            g_usleep(500);
        }
    }
    fault_clear(failing);
    block_node_unref(STEAL(file));
    if (error_case->policy == BLOCK_ERROR_POLICY_STOP) {
        while (job_user_resume(job, NULL) < 0) {
            g_usleep(500);
        }
    }
    if (error_case->policy == BLOCK_ERROR_POLICY_REPORT) {
        rig_assert_unused(target);
    } else {
        end_after_errors(job, error_case->is_mirror);
        assert_target_is(rig, rig->model, target);
    }
    rig_free(rig);
}

/* ---- Cancelled, paused, drained ------------------------------------------------------------- */

static bool is_in_phase(struct job *job, const char *phase)
{
    struct job_info info;

    job_get_info(job, &info);
    bool is_there = !strcmp(info.phase, phase);
    job_info_clear(&info);
    return is_there;
}

/* A job that has come to read the source's tables, which takes as long as the fault is there. */
static struct job *hold_in_scan(struct rig *rig, struct block_node *target, bool is_mirror,
                                struct block_node **file)
{
    const struct error_case quiet = {.is_mirror = is_mirror};

    reopen_disk(rig);
    *file = block_node_find("disk-file");
    FAULT(*file, .operations = FAULT_ON(READ), .hold = true);
    struct job *job = start_with_policy(rig, target, &quiet);
    fault_wait_held(*file, 1);
    g_assert_true(is_in_phase(job, "scanning"));
    return job;
}

static void test_cancelled_scan(gconstpointer is_mirror)
{
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);
    struct block_node *file;
    struct job *job = hold_in_scan(rig, target, is_mirror, &file);

    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    fault_clear(file);
    block_node_unref(file);
    rig_end_badly(job, "canceled");
    g_assert_cmpuint(allocated(layer_of(target), 64 * KIB), ==, 0);
    rig_assert_unused(target);
    rig_free(rig);
}

static void *drain_source(void *data)
{
    struct rig *rig = data;
    struct block_node *layer = layer_of(rig->source);

    block_drain_end(block_drain_begin(&layer, 1, BLOCK_PERM_ALL));
    return NULL;
}

/* A drain waits for the look that goes on, and the scan goes on after it; a pause ends it, too. */
static void test_paused_scan(gconstpointer is_mirror)
{
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);
    struct block_node *file;
    struct job *job = hold_in_scan(rig, target, is_mirror, &file);
    pthread_t thread;

    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    g_assert_cmpint(pthread_create(&thread, NULL, drain_source, rig), ==, 0);
    g_usleep(20000);
    fault_clear(file);
    block_node_unref(file);
    pthread_join(thread, NULL);
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PAUSED), ==, JOB_STATUS_PAUSED);
    g_assert_true(is_in_phase(job, "scanning"));
    struct block_drain *drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_ALL);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    g_usleep(20000);
    g_assert_true(is_in_phase(job, "scanning"));
    block_drain_end(drain);
    end_after_errors(job, is_mirror);
    assert_target_is(rig, rig->model, target);
    rig_free(rig);
}

/* While it copies, when it is ready, and when it waits to be finalized. */
static void test_cancelled_later(void)
{
    struct rig *rig = new_rig(&shapes[1]);
    struct block_node *target = new_target(rig, &shapes[1]);
    struct backup_options backup = top_backup(rig, target);
    struct mirror_options mirror = top_mirror(rig, target);
    struct job *job;

    rig_write(rig, 4);
    backup.speed = 64 * KIB;
    rig_backup(rig, &backup, 1, &job, NULL);
    while (!is_in_phase(job, "copying")) {
        g_usleep(500);
    }
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    job = rig_ready_mirror(&mirror);
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    mirror.job_flags |= JOB_MANUAL_FINALIZE;
    job = rig_ready_mirror(&mirror);
    rig_complete(job);
    rig_wait_status(job, JOB_STATUS_PENDING);
    g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    rig_end_badly(job, "canceled");
    g_assert_null(layer_of(target)->backing);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- All of them ---------------------------------------------------------------------------- */

static void add_shape_tests(const char *path, GTestDataFunc function)
{
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        g_autofree char *name = g_strdup_printf("/sync-top/%s/%s", path, shapes[i].name);

        g_test_add_data_func(name, &shapes[i], function);
    }
}

static void add_tests(void)
{
    add_shape_tests("backup", test_backup_beside_writers);
    add_shape_tests("quiet-backup", test_backup_of_a_quiet_disk);
    add_shape_tests("guest-before-scan", test_guest_before_the_scan);
    add_shape_tests("pivot", test_pivot);
    add_shape_tests("kept-copy", test_kept_copy);
    add_shape_tests("quiet-mirror", test_mirror_of_a_quiet_disk);
    g_test_add_func("/sync-top/compressed", test_compressed_backup);
    g_test_add_func("/sync-top/one-layer", test_one_layer);
    g_test_add_func("/sync-top/pivot-to-raw", test_pivot_to_raw);
    g_test_add_func("/sync-top/failed-pivot", test_failed_pivot);
    g_test_add_func("/sync-top/chain-is-kept", test_chain_is_kept);
    for (size_t i = 0; i < G_N_ELEMENTS(error_cases); i++) {
        g_autofree char *name = g_strdup_printf("/sync-top/errors/%s", error_cases[i].name);

        g_test_add_data_func(name, &error_cases[i], test_errors);
    }
    g_test_add_data_func("/sync-top/cancelled-scan/backup", NULL, test_cancelled_scan);
    g_test_add_data_func("/sync-top/cancelled-scan/mirror", "", test_cancelled_scan);
    g_test_add_data_func("/sync-top/paused-scan/backup", NULL, test_paused_scan);
    g_test_add_data_func("/sync-top/paused-scan/mirror", "", test_paused_scan);
    g_test_add_func("/sync-top/cancelled-later", test_cancelled_later);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
