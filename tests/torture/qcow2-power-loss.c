/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Power is lost at each write that reaches an image's file, one after the other, with what was
 * written since the last flush lost or torn at random. The image must have no corruption for
 * `qemu-img check` (leaks are allowed), and each sector must hold what was there at the last flush
 * or something that was written since.
 */
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>

#include "block/align.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/loss-model.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define OPERATIONS 40
#define WORKLOADS  4

struct workload {
    char *fresh; /* what a new image holds */
    gsize fresh_bytes;
    uint64_t seed;
    char *directory, *image;
    unsigned cluster_bits;
    bool is_v2, has_extended_l2, has_backing;
    uint64_t length;
    struct loss_model disk;
};

/* ---- The workload --------------------------------------------------------------------------- */

static void make_image(struct workload *work)
{
    g_autofree char *extra = work->has_extended_l2 ? g_strdup(",extended_l2=on") : g_strdup("");
    g_autofree char *backing = test_path(work->directory, "backing");
    g_autofree char *chain =
        work->has_backing ? g_strdup_printf("-b %s -F raw", backing) : g_strdup("");

    if (work->fresh) { /* made before */
        g_assert_true(
            g_file_set_contents(work->image, work->fresh, (gssize)work->fresh_bytes, NULL));
        return;
    }
    test_make_file(backing, work->length);
    test_command_succeeds("qemu-img create -q -f qcow2 -o cluster_size=%u,compat=%s%s %s %s "
                          "%" PRIu64,
                          1u << work->cluster_bits, work->is_v2 ? "0.10" : "1.1", extra, chain,
                          work->image, work->length);
    g_assert_true(g_file_get_contents(work->image, &work->fresh, &work->fresh_bytes, NULL));
}

static int one_operation(struct workload *work, struct block_node *node, struct test_random *random)
{
    uint64_t offset, bytes, dice = test_random_below(random, 100);
    uint64_t most = MAX_OF(LOSS_SECTOR, UINT64_C(2) << work->cluster_bits);

    test_random_range(random, work->length, LOSS_SECTOR, most, &offset, &bytes);
    if (dice < 55) {
        return loss_model_pwrite(&work->disk, node, offset, bytes);
    }
    if (dice < 70) {
        loss_model_zero(&work->disk, offset, bytes);
        return block_node_write_zeroes(node, offset, bytes, dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0);
    }
    if (dice < 85) {
        return loss_model_discard(&work->disk, node,
                                  align_down(offset, UINT64_C(1) << work->cluster_bits), bytes);
    }
    int status = block_node_flush(node);
    if (status == 0) {
        loss_model_flushed(&work->disk);
    }
    return status;
}

/* Until it fails; returns how many writes reached the file. */
static uint64_t run_workload(struct workload *work, uint64_t at_write, uint64_t seed)
{
    struct test_random random = test_random_new(work->seed);
    struct test_random chaos = test_random_new(seed);
    struct block_node *node =
        test_open("driver=qcow2,discard=unmap,l2-cache-size=1,l2-cache-entry-size=512,"
                  "file.driver=lose-writes,file.node-name=power,file.discard=unmap,"
                  "file.file.driver=file,file.file.filename=%s",
                  work->image);
    AUTO(block_node) power = block_node_find("power");
    struct lose_writes_plan plan = {
        .probability = 20 + test_random_below(&chaos, 81),
        .tear = test_random_chance(&chaos, 50) ? LOSS_SECTOR : 0,
        .seed = test_random_u64(&chaos),
        .end = LOSE_WRITES_END_NODE,
    };
    struct lose_writes_status status;
    int result = 0;

    if (at_write) {
        g_assert_cmpint(lose_writes_arm(power, at_write, &plan, NULL), ==, 0);
    }
    for (unsigned i = 0; i < OPERATIONS && result == 0; i++) {
        result = one_operation(work, node, &random);
    }
    if (result == 0 && block_node_flush(node) == 0) {
        loss_model_flushed(&work->disk);
    }
    g_assert_cmpint(lose_writes_get_status(power, &status, NULL), ==, 0);
    uint64_t writes = status.writes;
    lose_writes_status_clear(&status);
    block_node_unref(node);
    return writes;
}

static void judge(struct workload *work, uint64_t at_write, uint64_t seed)
{
    bool asks_qemu = seed % 6 == 0; /* its start takes most of a case's time */
    int check = asks_qemu ? test_command(NULL, "qemu-img check -f qcow2 %s", work->image) : 0;
    enum image_verdict verdict = own_check(work->image);
    struct block_node *node;
    g_autofree uint8_t *buffer = g_malloc(work->length);

    if (check != 0 && check != 3) {
        g_error("workload %" PRIu64 ", power lost at write %" PRIu64 ", seed %" PRIu64
                ": qemu-img check says %d",
                work->seed, at_write, seed, check);
    }
    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS) {
        g_error("workload %" PRIu64 ", power lost at write %" PRIu64 ", seed %" PRIu64
                ": our check says it is %s",
                work->seed, at_write, seed, image_verdict_names[verdict]);
    }
    node = test_open("driver=qcow2,file.driver=file,file.filename=%s", work->image);
    g_assert_cmpint(block_node_pread(node, buffer, 0, work->length, 0), ==, 0);
    uint64_t wrong = loss_model_find_wrong(&work->disk, buffer);
    if (wrong != UINT64_MAX) {
        g_error("workload %" PRIu64 ", power lost at write %" PRIu64 ", seed %" PRIu64
                ": the sector at %" PRIu64 " holds neither old nor new data",
                work->seed, at_write, seed, wrong);
    }
    block_node_unref(node);
}

static uint64_t run_once(struct workload *work, uint64_t at_write, uint64_t seed)
{
    loss_model_init(&work->disk, work->length);
    make_image(work);
    uint64_t writes = run_workload(work, at_write, seed);
    judge(work, at_write, seed);
    loss_model_destroy(&work->disk);
    return writes;
}

static void test_every_write(void)
{
    static const unsigned bits[] = {9, 12, 16, 9, 14, 10};
    struct test_random random = test_random_new(test_seed());
    unsigned long workloads = test_cases(WORKLOADS);

    for (unsigned long i = 0; i < workloads; i++) {
        struct workload work = {
            .seed = test_random_u64(&random),
            .directory = test_directory_new(true),
            .cluster_bits = bits[i % G_N_ELEMENTS(bits)],
            .is_v2 = test_random_chance(&random, 20),
            .has_backing = test_random_chance(&random, 30),
        };

        work.image = test_path(work.directory, "image");
        work.has_extended_l2 = work.cluster_bits >= 14 && !work.is_v2;
        work.length = UINT64_C(150) << work.cluster_bits;
        work.length = MIN_OF(work.length, MIB);
        uint64_t writes = run_once(&work, 0, 0);
        g_test_message("workload %lu: seed %" PRIu64 ", clusters of 2^%u, %" PRIu64 " writes", i,
                       work.seed, work.cluster_bits, writes);
        for (uint64_t at_write = 1; at_write <= writes; at_write++) {
            run_once(&work, at_write, test_random_u64(&random));
        }
        g_free(work.image);
        g_free(work.fresh);
        test_directory_free(work.directory);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* That metadata could not be written at the end is what is wanted here. */
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/qcow2-power-loss/flushed-data-is-there-and-nothing-is-corrupt",
                    test_every_write);
    return g_test_run();
}
