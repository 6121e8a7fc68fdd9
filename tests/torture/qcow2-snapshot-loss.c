/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Power is lost at each write that reaches an image's file while internal snapshots are taken,
 * deleted and applied, with what was written since the last flush lost or torn at random. The image
 * opens and is not corrupt for `qemu-img check` (leaks are allowed); what was flushed is there, and
 * each snapshot that was answered with its data; what was not answered is done or not, but wholly.
 * And whoever goes on with the image harms no snapshot.
 */
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/loss-model.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define OPERATIONS 16
#define WORKLOADS  2

struct snapshot {
    char *name;
    uint32_t *numbers; /* the disk then */
};

enum unanswered { NOTHING, CREATING, DELETING, APPLYING };

struct workload {
    uint64_t seed;
    char *directory, *image;
    unsigned cluster_bits;
    bool is_v2, has_extended_l2;
    uint64_t length;
    struct loss_model disk;
    GPtrArray *snapshots; /* that are there for sure */
    enum unanswered unanswered;
    struct snapshot *concerned; /* by that */
    bool was_snapshot;          /* what the last operation was about */
    unsigned number;            /* of the last snapshot */
    GArray *wanted;             /* numbers of writes that are tried as the last one */
    uint64_t at_write, chaos;   /* of this run */
};

/* ---- Snapshots ------------------------------------------------------------------------------- */

static void free_snapshot(void *data)
{
    struct snapshot *snapshot = data;

    g_free(snapshot->name);
    g_free(snapshot->numbers);
    g_free(snapshot);
}

static void answered(struct workload *work)
{
    work->unanswered = NOTHING;
    work->concerned = NULL;
}

static int create_snapshot(struct workload *work, struct block_node *node)
{
    struct snapshot *snapshot = g_new0(struct snapshot, 1);

    snapshot->name = g_strdup_printf("s%u", ++work->number);
    snapshot->numbers = loss_model_last(&work->disk);
    work->unanswered = CREATING;
    work->concerned = snapshot;
    int status = block_node_snapshot_create_now(node, snapshot->name, NULL);
    if (status == 0) {
        answered(work);
        g_ptr_array_add(work->snapshots, snapshot);
    }
    return status;
}

static int delete_snapshot(struct workload *work, struct block_node *node, guint index)
{
    struct snapshot *snapshot = g_ptr_array_steal_index(work->snapshots, index);

    work->unanswered = DELETING;
    work->concerned = snapshot;
    int status = block_node_snapshot_delete(node, snapshot->name, NULL);
    if (status == 0) {
        answered(work);
        free_snapshot(snapshot);
    }
    return status;
}

static int apply_snapshot(struct workload *work, struct block_node *node, guint index)
{
    struct snapshot *snapshot = g_ptr_array_index(work->snapshots, index);

    work->unanswered = APPLYING;
    work->concerned = snapshot;
    int status = block_node_snapshot_apply(node, snapshot->name, NULL);
    if (status == 0) {
        answered(work);
        loss_model_set(&work->disk, snapshot->numbers);
    }
    return status;
}

static int change_snapshots(struct workload *work, struct block_node *node,
                            struct test_random *random)
{
    guint count = work->snapshots->len;

    work->was_snapshot = true;
    if (count == 0 || (count < 4 && test_random_chance(random, 40))) {
        return create_snapshot(work, node);
    }
    guint index = (guint)test_random_below(random, count);
    return test_random_chance(random, 50) ? delete_snapshot(work, node, index)
                                          : apply_snapshot(work, node, index);
}

/* ---- The workload ---------------------------------------------------------------------------- */

static void make_image(struct workload *work)
{
    test_make_file(work->image, 0);
    test_create_image("driver=qcow2,size=%" PRIu64 ",cluster-size=%u,version=%s,extended-l2=%s,"
                      "file.driver=file,file.filename=%s",
                      work->length, 1u << work->cluster_bits, work->is_v2 ? "v2" : "v3",
                      work->has_extended_l2 ? "on" : "off", work->image);
}

static int flush(struct workload *work, struct block_node *node)
{
    int status = block_node_flush(node);

    if (status == 0) {
        loss_model_flushed(&work->disk);
    }
    return status;
}

static int one_operation(struct workload *work, struct block_node *node, struct test_random *random)
{
    uint64_t offset, bytes, dice = test_random_below(random, 100);
    uint64_t most = UINT64_C(4) << work->cluster_bits;

    test_random_range(random, work->length, LOSS_SECTOR, most, &offset, &bytes);
    if (dice < 45) {
        return loss_model_pwrite(&work->disk, node, offset, bytes);
    }
    if (dice < 53) {
        loss_model_zero(&work->disk, offset, bytes);
        return block_node_write_zeroes(node, offset, bytes, dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0);
    }
    if (dice < 60) {
        return loss_model_discard(&work->disk, node, offset, bytes);
    }
    return dice < 66 ? flush(work, node) : change_snapshots(work, node, random);
}

static uint64_t count_writes(struct block_node *power)
{
    struct lose_writes_status status;

    g_assert_cmpint(lose_writes_get_status(power, &status, NULL), ==, 0);
    uint64_t writes = status.writes;
    lose_writes_status_clear(&status);
    return writes;
}

/* A part of the writes is lost, or all but the last one, which came too early if that shows. */
static void arm(struct workload *work, struct block_node *power)
{
    struct test_random chaos = test_random_new(work->chaos);
    struct lose_writes_plan plan = {
        .has_numbers = test_random_chance(&chaos, 40),
        .probability = 100,
        .seed = test_random_u64(&chaos),
        .end = LOSE_WRITES_END_NODE,
    };

    if (plan.has_numbers) {
        plan.numbers = g_new(uint64_t, work->at_write);
        for (uint64_t number = 1; number < work->at_write; number++) {
            plan.numbers[plan.number_count++] = number;
        }
    } else {
        plan.probability = test_random_between(&chaos, 20, 100);
        plan.tear = test_random_chance(&chaos, 50) ? LOSS_SECTOR : 0;
    }
    g_assert_cmpint(lose_writes_arm(power, work->at_write, &plan, NULL), ==, 0);
}

/* All those of operations on snapshots are wanted, some of the others. */
static void want_writes(struct workload *work, uint64_t first, uint64_t end, bool all)
{
    for (uint64_t number = first; number < end; number++) {
        if (all || number % 8 == 0) {
            g_array_append_val(work->wanted, number);
        }
    }
}

/* Until it fails. The first run finds the numbers of the writes. */
static void run_workload(struct workload *work)
{
    struct test_random random = test_random_new(work->seed);
    struct block_node *node =
        test_open("driver=qcow2,discard=unmap,l2-cache-size=1,l2-cache-entry-size=512,"
                  "file.driver=lose-writes,file.node-name=power,file.discard=unmap,"
                  "file.file.driver=file,file.file.filename=%s",
                  work->image);
    AUTO(block_node) power = block_node_find("power");
    int status = 0;

    if (work->at_write) {
        arm(work, power);
    }
    for (unsigned i = 0; i < OPERATIONS && status == 0; i++) {
        uint64_t before = count_writes(power);

        work->was_snapshot = false;
        status = one_operation(work, node, &random);
        if (!work->at_write) {
            g_assert_cmpint(status, ==, 0);
            want_writes(work, before + 1, count_writes(power) + 1, work->was_snapshot);
        }
    }
    block_node_unref(node);
}

/* ---- Afterwards ------------------------------------------------------------------------------ */

static void G_GNUC_PRINTF(2, 3) fail(const struct workload *work, const char *format, ...)
{
    static const char *const names[] = {"nothing", "creating", "deleting", "applying"};
    va_list args;

    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_error("workload %" PRIu64 ", clusters of 2^%u%s, power lost at write %" PRIu64 " (%s %s), "
            "seed %" PRIu64 ": %s",
            work->seed, work->cluster_bits, work->is_v2 ? ", v2" : "", work->at_write,
            names[work->unanswered], work->concerned ? work->concerned->name : "", work->chaos,
            what);
}

/*
 * In version 2 there is no dirty bit, by which whoever opens the image would know that flags and
 * refcounts may not agree. Of that the check complains, and of nothing else.
 */
static bool is_about_flags(const char *said)
{
    g_auto(GStrv) lines = g_strsplit(said, "\n", -1);

    for (char **line = lines; *line; line++) {
        if (g_str_has_prefix(*line, "ERROR") && !strstr(*line, "OFLAG_COPIED")) {
            return false;
        }
    }
    return true;
}

static void check_image(const struct workload *work, const char *image)
{
    g_autofree char *said = NULL;
    int status = test_command(&said, "qemu-img check -f qcow2 %s", image);

    if (status != 0 && status != 3 && !(status == 2 && work->is_v2 && is_about_flags(said))) {
        fail(work, "qemu-img check says %d: %s", status, said);
    }
}

static void check_own(const struct workload *work)
{
    enum image_verdict verdict = own_check(work->image);

    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS && !work->is_v2) {
        fail(work, "our check says it is %s", image_verdict_names[verdict]);
    }
}

/* QEMU repairs a copy of the image, which it does when it opens it for writing. */
static void let_qemu_repair(const struct workload *work)
{
    g_autofree char *copy = test_path(work->directory, "copy");

    test_command_succeeds("cp %s %s", work->image, copy);
    test_command_succeeds("qemu-io -f qcow2 -c flush %s", copy);
    check_image(work, copy);
}

static uint8_t *read_disk(const struct workload *work, struct block_node *node)
{
    uint8_t *contents = g_malloc(work->length);

    g_assert_cmpuint(block_node_length(node), ==, work->length);
    g_assert_cmpint(block_node_pread(node, contents, 0, work->length, 0), ==, 0);
    return contents;
}

static void check_disk(const struct workload *work, struct block_node *node)
{
    g_autofree uint8_t *contents = read_disk(work, node);
    uint64_t wrong = loss_model_find_wrong(&work->disk, contents);

    if (wrong != UINT64_MAX && work->unanswered == APPLYING) {
        uint64_t other = loss_model_find_other(work->concerned->numbers, work->length, contents);

        if (other != UINT64_MAX) {
            fail(work,
                 "the sector at %" PRIu64 " is not of the disk, and the one at %" PRIu64
                 " not of the snapshot that was being applied",
                 wrong, other);
        }
    } else if (wrong != UINT64_MAX) {
        fail(work, "the sector at %" PRIu64 " holds neither old nor new data", wrong);
    }
}

static void check_snapshot(const struct workload *work, const struct snapshot *snapshot)
{
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,snapshot=%s,file.driver=file,file.filename=%s",
                  snapshot->name, work->image);
    g_autofree uint8_t *contents = read_disk(work, node);
    uint64_t wrong = loss_model_find_other(snapshot->numbers, work->length, contents);

    if (wrong != UINT64_MAX) {
        fail(work, "the sector at %" PRIu64 " of snapshot %s is wrong", wrong, snapshot->name);
    }
}

static void check_snapshots(const struct workload *work)
{
    for (guint i = 0; i < work->snapshots->len; i++) {
        check_snapshot(work, g_ptr_array_index(work->snapshots, i));
    }
}

static bool is_listed(const char *name, const struct block_snapshot_info *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(list[i].name, name)) {
            return true;
        }
    }
    return false;
}

/* Settles whether a snapshot whose creation or deletion was not answered is there. */
static void check_list(struct workload *work, struct block_node *node)
{
    struct block_snapshot_info *list;
    size_t count;

    g_assert_cmpint(block_node_snapshot_list(node, &list, &count, NULL), ==, 0);
    if (work->unanswered == CREATING || work->unanswered == DELETING) {
        if (is_listed(work->concerned->name, list, count)) {
            g_ptr_array_add(work->snapshots, work->concerned);
        } else {
            free_snapshot(work->concerned);
            work->concerned = NULL;
        }
    }
    for (guint i = 0; i < work->snapshots->len; i++) {
        const struct snapshot *snapshot = g_ptr_array_index(work->snapshots, i);

        if (!is_listed(snapshot->name, list, count)) {
            fail(work, "snapshot %s is lost", snapshot->name);
        }
    }
    if (count != work->snapshots->len) {
        fail(work, "%zu snapshots, not %u", count, work->snapshots->len);
    }
    block_snapshot_list_free(list, count);
}

static struct block_node *open_image(const struct workload *work)
{
    return test_open("driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,"
                     "file.filename=%s",
                     work->image);
}

static void must(int status)
{
    g_assert_cmpint(status, ==, 0);
}

/* Life goes on: all is written anew, with another snapshot, and in the end none is left. */
static void go_on(struct workload *work)
{
    AUTO(block_node) node = open_image(work);

    answered(work);
    must(loss_model_pwrite(&work->disk, node, 0, work->length));
    must(create_snapshot(work, node));
    must(loss_model_pwrite(&work->disk, node, work->length / 4 / LOSS_SECTOR * LOSS_SECTOR,
                           LOSS_SECTOR));
    must(loss_model_pwrite(&work->disk, node, 0, work->length / 2 / LOSS_SECTOR * LOSS_SECTOR));
    must(flush(work, node));
    check_disk(work, node);
    block_node_unref(STEAL(node));
    check_snapshots(work);

    node = open_image(work);
    while (work->snapshots->len) {
        must(delete_snapshot(work, node, 0));
    }
    check_disk(work, node);
}

static void judge(struct workload *work)
{
    struct block_node *node;

    if (work->at_write % 8 == 0 && !work->is_v2) {
        let_qemu_repair(work);
    }
    node = open_image(work);
    check_disk(work, node);
    check_list(work, node);
    block_node_unref(node);
    if (work->is_v2 || work->at_write % 4 == 0) { /* its start takes most of a case's time */
        check_image(work, work->image);
    }
    check_own(work);
    check_snapshots(work);
    go_on(work);
    if (work->at_write % 4 == 0) {
        check_image(work, work->image);
    }
    check_own(work);
}

static void run_once(struct workload *work)
{
    loss_model_init(&work->disk, work->length);
    work->snapshots = g_ptr_array_new_with_free_func(free_snapshot);
    answered(work);
    work->number = 0;
    make_image(work);
    run_workload(work);
    judge(work);
    g_ptr_array_unref(work->snapshots);
    loss_model_destroy(&work->disk);
}

static void run_all(struct workload *work, struct test_random *random)
{
    work->directory = test_directory_new(true);
    work->image = test_path(work->directory, "image");
    work->wanted = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    work->length = MIN_OF(UINT64_C(100) << work->cluster_bits,
                          MAX_OF(256 * KIB, UINT64_C(8) << work->cluster_bits));
    run_once(work);
    g_test_message("seed %" PRIu64 ", clusters of 2^%u: %u writes", work->seed, work->cluster_bits,
                   work->wanted->len);
    for (guint i = 0; i < work->wanted->len; i++) {
        work->at_write = g_array_index(work->wanted, uint64_t, i);
        work->chaos = test_random_u64(random);
        run_once(work);
    }
    g_array_unref(work->wanted);
    g_free(work->image);
    test_directory_free(work->directory);
}

static void test_every_write(void)
{
    static const struct workload kinds[] = {
        {.cluster_bits = 9},
        {.cluster_bits = 12},
        {.cluster_bits = 10, .is_v2 = true},
        {.cluster_bits = 14, .has_extended_l2 = true},
        {.cluster_bits = 16},
    };
    struct test_random random = test_random_new(test_seed());
    unsigned long workloads = test_cases(WORKLOADS);
    unsigned long first = test_random_below(&random, G_N_ELEMENTS(kinds));

    for (unsigned long i = 0; i < workloads; i++) {
        struct workload work = kinds[(first + i) % G_N_ELEMENTS(kinds)];

        work.seed = test_random_u64(&random);
        run_all(&work, &random);
    }
}

/* That metadata could not be written at the end is what is wanted here. */
static void ignore_warning(const char *domain, GLogLevelFlags level, const char *message,
                           void *data)
{
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, ignore_warning, NULL);
    formats_register();
    g_test_add_func("/qcow2-snapshot-loss/answered-snapshots-are-there-and-nothing-is-corrupt",
                    test_every_write);
    return g_test_run();
}
