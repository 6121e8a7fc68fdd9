/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many threads write, zero, discard and read one qcow2 image, overlapping, while it is flushed and
 * snapshots are taken and deleted. What is read must fit the model, and at the end the whole disk;
 * the image must be clean for `qemu-img check`.
 */
#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/model.h"
#include "tests/lib/random.h"

#define THREADS     8
#define SECTOR      UINT64_C(512)
#define ROUND_NS    (1500 * NS_PER_MS)
#define REQUEST_MAX (256 * KIB)

struct rig {
    struct test_image image;
    struct block_node *node;
    struct model *model;
    uint64_t length;
    pthread_rwlock_t gate; /* requests hold it for reading, snapshots for writing */
    _Atomic bool stop;
    _Atomic uint64_t requests;
};

struct worker {
    struct rig *rig;
    struct test_random random;
    uint32_t number;
    pthread_t thread;
    struct model_report report;
};

/* ---- Requests ------------------------------------------------------------------------------- */

static void write_some(struct worker *worker, uint64_t offset, uint64_t bytes)
{
    struct rig *rig = worker->rig;
    g_autofree void *buffer = g_malloc(bytes);
    struct model_request *request =
        model_begin(rig->model, MODEL_WRITE, worker->number, offset, bytes);

    model_fill(rig->model, request, buffer);
    int status = block_node_pwrite(rig->node, buffer, offset, bytes, 0);
    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

static void zero_some(struct worker *worker, uint64_t offset, uint64_t bytes)
{
    struct rig *rig = worker->rig;
    struct model_request *request =
        model_begin(rig->model, MODEL_ZEROES, worker->number, offset, bytes);
    unsigned flags = test_random_chance(&worker->random, 50) ? BLOCK_REQUEST_MAY_UNMAP : 0;
    int status = block_node_write_zeroes(rig->node, offset, bytes, flags);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

static void discard_some(struct worker *worker, uint64_t offset, uint64_t bytes)
{
    struct rig *rig = worker->rig;
    struct model_request *request =
        model_begin(rig->model, MODEL_TRIM, worker->number, offset, bytes);
    int status = block_node_discard(rig->node, offset, bytes);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

/*
 * Beside a write of the same bytes a read of the page cache may see a part of a sector, so what is
 * read is judged only with nobody else there.
 */
static void read_some(struct worker *worker, uint64_t offset, uint64_t bytes, bool is_alone)
{
    struct rig *rig = worker->rig;
    g_autofree void *buffer = g_malloc(bytes);
    struct model_read *read = model_read_begin(rig->model, offset, bytes);

    g_assert_cmpint(block_node_pread(rig->node, buffer, offset, bytes, 0), ==, 0);
    model_read_end(rig->model, read, is_alone ? buffer : NULL, &worker->report);
}

static void *worker_thread(void *data)
{
    struct worker *worker = data;
    struct rig *rig = worker->rig;

    while (!atomic_load(&rig->stop)) {
        uint64_t offset, bytes, dice = test_random_below(&worker->random, 100);
        uint64_t most = dice & 1 ? 16 * KIB : REQUEST_MAX;

        test_random_range(&worker->random, rig->length, SECTOR, most, &offset, &bytes);
        pthread_rwlock_rdlock(&rig->gate);
        if (dice < 45) {
            write_some(worker, offset, bytes);
        } else if (dice < 55) {
            zero_some(worker, offset, bytes);
        } else if (dice < 68) {
            discard_some(worker, offset, bytes);
        } else if (dice < 97) {
            read_some(worker, offset, bytes, false);
        } else {
            g_assert_cmpint(block_node_flush(rig->node), ==, 0);
        }
        pthread_rwlock_unlock(&rig->gate);
        if (dice == 96) {
            pthread_rwlock_wrlock(&rig->gate);
            read_some(worker, offset, bytes, true);
            pthread_rwlock_unlock(&rig->gate);
        }
        atomic_fetch_add(&rig->requests, 1);
    }
    return NULL;
}

/* ---- Snapshots ------------------------------------------------------------------------------ */

static void take_snapshot(struct rig *rig, unsigned number)
{
    g_autofree char *name = g_strdup_printf("s%u", number);
    struct block_snapshot_info info = {.name = name, .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;

    pthread_rwlock_wrlock(&rig->gate);
    block_node_snapshot_create(rig->node, &info, &error);
    g_assert_no_error(error);
    if (number > 1) {
        g_autofree char *old = g_strdup_printf("s%u", number - 2);

        block_node_snapshot_delete(rig->node, old, &error);
        g_assert_no_error(error);
    }
    pthread_rwlock_unlock(&rig->gate);
}

/* ---- Rounds --------------------------------------------------------------------------------- */

static int read_node(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    return block_node_pread(data, buffer, offset, bytes, 0);
}

static void judge(struct rig *rig)
{
    struct model_report report = {0};
    bool is_right = model_compare(rig->model, read_node, rig->node, &report);

    if (!is_right) {
        g_error("%s", report.details->str);
    }
    model_report_clear(&report);
}

static void run_round(struct test_random *random, const char *options, bool has_snapshots)
{
    struct rig rig = {.length = 24 * MIB};
    struct worker workers[THREADS];

    test_image_make(&rig.image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, rig.image.path,
                          rig.length);
    rig.node = test_open("driver=qcow2,discard=unmap,l2-cache-size=64k,l2-cache-entry-size=512,"
                         "refcount-cache-size=1,file.driver=file,file.filename=%s",
                         rig.image.path);
    rig.model = model_new(rig.length, SECTOR);
    pthread_rwlock_init(&rig.gate, NULL);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] =
            (struct worker){.rig = &rig, .random = test_random_split(random), .number = i + 1};
        g_assert_cmpint(pthread_create(&workers[i].thread, NULL, worker_thread, &workers[i]), ==,
                        0);
    }
    int64_t end_ns = clock_now_ns() + ROUND_NS;
    for (unsigned i = 0; clock_now_ns() < end_ns; i++) {
        g_usleep(100000);
        if (has_snapshots) {
            take_snapshot(&rig, i);
        }
    }
    atomic_store(&rig.stop, true);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        if (workers[i].report.wrong) {
            g_error("%s: %s", options, workers[i].report.details->str);
        }
        model_report_clear(&workers[i].report);
    }
    g_test_message("%s: %" PRIu64 " requests", options, atomic_load(&rig.requests));
    judge(&rig);
    block_node_unref(rig.node);
    test_command_succeeds("qemu-img check -f qcow2 %s", rig.image.path);
    rig.node = test_open("driver=qcow2,file.driver=file,file.filename=%s", rig.image.path);
    judge(&rig);
    block_node_unref(rig.node);
    model_free(rig.model);
    pthread_rwlock_destroy(&rig.gate);
    test_image_remove(&rig.image, NULL);
}

static void test_threads(void)
{
    static const struct {
        const char *options;
        bool has_snapshots;
    } rounds[] = {
        {"cluster_size=64k", false},
        {"cluster_size=4k,lazy_refcounts=on", true},
        {"cluster_size=16k,extended_l2=on", true},
        {"cluster_size=512", false},
    };
    struct test_random random = test_random_new(test_seed());

    for (size_t i = 0; i < G_N_ELEMENTS(rounds); i++) {
        run_round(&random, rounds[i].options, rounds[i].has_snapshots);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/qcow2-threads/what-many-threads-write-is-there", test_threads);
    return g_test_run();
}
