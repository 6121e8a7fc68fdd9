/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Power is lost, at one instant for all images of a chain, while a job works on the chain or an
 * external snapshot is taken, and a guest writes. Then the chain opens from its headers, no image
 * is corrupt (leaks are allowed), and the disk holds what was flushed, with any later writes.
 *
 * Which image that is: the one the disk was on at first, until somebody is told that the job, or
 * the snapshot, has succeeded; then the one it is on now. For most jobs that is the same one. Where
 * the guest moves, by a snapshot or a commit of what it writes to, it does so a little before that
 * is told: what it flushed before it was asked for is in both images; what it flushes after the
 * move is in the new one alone, and who opens the old one finds the disk as it was at the move.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/image.h"
#include "formats/lose-writes.h"
#include "tests/lib/disk.h"
#include "tests/lib/layers.h"
#include "tests/lib/loss-model.h"
#include "tests/lib/qcow2-peer.h"

#define LENGTH (512 * KIB)
#define LAYERS 4
#define ROUNDS 5
#define BEFORE "l3 l2 l1 l0"

struct kind {
    const char *name;
    struct layers_job job; /* id NULL: a snapshot */
    bool is_active;
    bool is_left; /* the guest does not move in the end */
    const char *after;
    const char *written; /* the layers that the job writes to, or their headers */
};

static const struct kind kinds[] = {
    {"stream", {"job0", true, 3, LAYERS_NONE}, false, false, "l3", "3"},
    {"stream-to-base", {"job0", true, 3, 0}, false, false, "l3 l0", "3"},
    {"stream-middle", {"job0", true, 2, 0}, false, false, "l3 l2 l0", "2"},
    {"commit", {"job0", false, 2, 0}, false, false, "l3 l0", "03"},
    {"commit-lower", {"job0", false, 1, 0}, false, false, "l3 l2 l0", "02"},
    {"commit-active", {"job0", false, 3, 0}, true, false, "l0", "0"},
    {"commit-active-left", {"job0", false, 3, 0}, true, true, BEFORE, "0"},
    {"snapshot", {NULL, false, 0, 0}, false, false, "l4 l3 l2 l1 l0", "34"},
};

static const char *const images[] = {
    "version=v3,cluster-size=64k",
    "version=v3,cluster-size=4k",
    "version=v2,cluster-size=16k",
    "version=v3,cluster-size=512",
    "version=v3,cluster-size=32k,extended-l2=on",
};

struct round {
    const struct kind *kind;
    struct test_random random;
    uint64_t seed;
    bool is_at_end; /* power is lost while the job is finalized */
    struct layers *layers;
    struct block_node *power[LAYERS_MAX];
    /* The guest. */
    pthread_t thread;
    struct test_random guest_random;
    struct loss_model disk;
    struct loss_model before; /* the same, but that nothing has been flushed since the end began */
    pthread_mutex_t lock;     /* guards whether it has */
    bool has_end_begun;
    _Atomic bool stop;
    _Atomic uint64_t requests;
    _Atomic bool is_paused;
    _Atomic bool is_taken; /* the snapshot */
    _Atomic bool is_lost;  /* the power, from about now on */
    struct job *_Atomic job;
    /* What became of it. */
    bool is_told; /* that the job, or the snapshot, succeeded */
    bool has_moved;
    char *directory;
    unsigned count; /* of layers */
};

static void G_GNUC_PRINTF(2, 3) fail(const struct round *round, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_error("%s, seed %" PRIu64 "%s%s%s: %s", round->kind->name, round->seed,
            round->is_at_end ? ", at its end" : "", round->is_told ? ", told" : "",
            round->has_moved ? ", moved" : "", what);
}

/* ---- The guest ------------------------------------------------------------------------------- */

static int write_data(struct round *round, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    loss_model_write(&round->before, offset, bytes, buffer);
    loss_model_write(&round->disk, offset, bytes, buffer);
    return block_device_pwrite(round->layers->rig->device, buffer, offset, bytes, 0);
}

static int write_zeroes(struct round *round, uint64_t offset, uint64_t bytes, unsigned flags)
{
    loss_model_zero(&round->before, offset, bytes);
    loss_model_zero(&round->disk, offset, bytes);
    return block_device_write_zeroes(round->layers->rig->device, offset, bytes, flags);
}

static int flush(struct round *round)
{
    pthread_mutex_lock(&round->lock);
    bool has_begun = round->has_end_begun;
    pthread_mutex_unlock(&round->lock);
    int status = block_device_flush(round->layers->rig->device);

    if (status == 0) {
        loss_model_flushed(&round->disk);
        if (!has_begun) {
            loss_model_flushed(&round->before);
        }
    }
    return status;
}

static int one_request(struct round *round, struct test_random *random)
{
    uint64_t offset, bytes, dice = test_random_below(random, 100);

    test_random_range(random, LENGTH, LOSS_SECTOR, 24 * KIB, &offset, &bytes);
    if (dice < 70) {
        return write_data(round, offset, bytes);
    }
    return dice < 80 ? write_zeroes(round, offset, bytes, dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0)
                     : flush(round);
}

/* Until the power is lost. */
static void *run_guest(void *data)
{
    struct round *round = data;

    int status = 0;

    while (!atomic_load(&round->stop) && status == 0) {
        if (atomic_load(&round->is_paused)) {
            g_usleep(100);
            continue;
        }
        status = one_request(round, &round->guest_random);
        atomic_fetch_add(&round->requests, 1);
    }
    return NULL;
}

static void fill(struct layers *layers, unsigned number, void *data)
{
    struct round *round = data;

    round->layers = layers;
    for (unsigned i = 0; i < (number ? 12 : 40); i++) {
        uint64_t offset, bytes;

        test_random_range(&round->random, LENGTH, LOSS_SECTOR, 32 * KIB, &offset, &bytes);
        int status = i % 5 == 4 ? write_zeroes(round, offset, bytes, BLOCK_REQUEST_MAY_UNMAP)
                                : write_data(round, offset, bytes);
        g_assert_cmpint(status, ==, 0);
    }
    g_assert_cmpint(flush(round), ==, 0);
}

/* ---- The loss -------------------------------------------------------------------------------- */

/* All images stand still, one after the other: what one has not been told it cannot tell others. */
static void freeze(struct round *round)
{
    for (unsigned i = 0; i < round->layers->count; i++) {
        FAULT(round->layers->files[i], .operations = FAULT_ON_ALL, .hold = true);
    }
}

static void find_power(struct round *round)
{
    for (unsigned i = 0; i < round->layers->count; i++) {
        g_autofree char *name = g_strdup_printf("p%u", i);

        round->power[i] = block_node_find(name);
        g_assert_nonnull(round->power[i]);
    }
}

static void lose_power(struct round *round)
{
    struct lose_writes_result result;

    find_power(round);
    for (unsigned i = 0; i < round->layers->count; i++) {
        struct lose_writes_plan plan = {
            .probability = test_random_between(&round->random, 10, 100),
            .tear = test_random_chance(&round->random, 50) ? LOSS_SECTOR : 0,
            .seed = test_random_u64(&round->random),
            .end = LOSE_WRITES_END_NODE,
        };

        g_assert_cmpint(lose_writes_now(round->power[i], &plan, &result, NULL), ==, 0);
    }
    for (unsigned i = 0; i < round->layers->count; i++) {
        fault_clear(round->layers->files[i]);
    }
}

static bool is_met(const struct round *round)
{
    for (unsigned i = 0; i < round->layers->count; i++) {
        if (fault_held(round->layers->files[i])) {
            return true;
        }
    }
    return false;
}

/* It is going to be lost at some write or flush of some image. */
static void plan_loss(struct round *round, unsigned most)
{
    struct layers *layers = round->layers;

    const char *written = round->kind->written;
    unsigned file = (unsigned)test_random_below(&round->random, layers->count);

    if (test_random_chance(&round->random, 75)) {
        file = (unsigned)(written[test_random_below(&round->random, strlen(written))] - '0');
    }
    FAULT(layers->files[file],
          .operations = test_random_chance(&round->random, 60) ? FAULT_ON_CHANGES : FAULT_ON(FLUSH),
          .skip = (unsigned)test_random_below(&round->random, most), .count = 1, .hold = true);
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

static void *finalize(void *data)
{
    job_finalize(data, NULL);
    return NULL;
}

static void begin_end(struct round *round)
{
    SCOPE_LOCK(&round->lock);

    round->has_end_begun = true;
}

static void end_if_ready(struct round *round, struct job *job)
{
    if (job_get_status(job) == JOB_STATUS_READY) {
        if (round->kind->is_left) {
            job_cancel(job, false, false, NULL);
        } else {
            begin_end(round);
            job_complete(job, NULL);
        }
    }
}

static void wait_until(struct round *round, struct job *job, enum job_status wanted)
{
    enum job_status status;

    while (!is_met(round) && (status = job_get_status(job)) != wanted &&
           status != JOB_STATUS_CONCLUDED) {
        end_if_ready(round, job);
        g_usleep(100);
    }
}

static bool has_succeeded(struct job *job)
{
    struct job_info info;

    job_get_info(job, &info);
    bool result = info.status == JOB_STATUS_CONCLUDED && !info.error;
    job_info_clear(&info);
    return result;
}

static void wait_requests(struct round *round, uint64_t more)
{
    uint64_t goal = atomic_load(&round->requests) + more;

    while (atomic_load(&round->requests) < goal && !is_met(round)) {
        g_usleep(100);
    }
}

/* Told so before the loss: nothing that happens later counts. */
static void lose_beside(struct round *round, struct job *job)
{
    atomic_store(&round->is_paused, false);
    wait_requests(round, test_random_below(&round->random, 10));
    round->is_told = job && has_succeeded(job);
    atomic_store(&round->is_lost, true);
    freeze(round);
    lose_power(round);
}

/* It drains the guest, which may stand still by then. */
static void *start_job(void *data)
{
    struct round *round = data;
    g_autoptr(GError) error = NULL;

    struct job *job = layers_start(round->layers, &round->kind->job, BLOCK_ERROR_POLICY_REPORT,
                                   JOB_MANUAL_FINALIZE, &error);
    if (!job && !is_met(round) && !atomic_load(&round->is_lost)) {
        fail(round, "the job does not start: %s", error->message);
    }
    atomic_store(&round->job, job);
    return NULL;
}

/* True if it is to be joined. */
static bool run_to_end(struct round *round, struct job *job, pthread_t *thread)
{
    wait_until(round, job, JOB_STATUS_PENDING);
    if (job_get_status(job) != JOB_STATUS_PENDING || is_met(round)) {
        return false;
    }
    if (round->is_at_end) {
        /* That of the end, not of the guest's, in some of the cases. */
        bool is_paused = test_random_chance(&round->random, 60);

        atomic_store(&round->is_paused, is_paused);
        plan_loss(round, is_paused ? 2 : 6);
    }
    g_assert_cmpint(pthread_create(thread, NULL, finalize, job), ==, 0);
    wait_until(round, job, JOB_STATUS_CONCLUDED);
    return true;
}

static void run_job(struct round *round)
{
    pthread_t starter, finalizer;
    bool finalizes = false;

    if (!round->is_at_end) {
        plan_loss(round, 60);
    }
    g_assert_cmpint(pthread_create(&starter, NULL, start_job, round), ==, 0);
    while (!is_met(round) && !atomic_load(&round->job)) {
        g_usleep(100);
    }
    struct job *job = atomic_load(&round->job);
    if (job) {
        finalizes = run_to_end(round, job, &finalizer);
    }
    lose_beside(round, job);
    pthread_join(starter, NULL);
    if (finalizes) {
        pthread_join(finalizer, NULL);
    }
    job = atomic_load(&round->job);
    if (job && job_get_status(job) != JOB_STATUS_CONCLUDED) {
        job_cancel(job, true, false, NULL);
    }
    g_free(job ? rig_end(job) : NULL);
}

static void *take_snapshot(void *data)
{
    struct round *round = data;

    atomic_store(&round->is_taken, layers_install(round->layers));
    return NULL;
}

static void run_snapshot(struct round *round)
{
    pthread_t thread;

    begin_end(round);
    layers_prepare(round->layers, images[test_random_below(&round->random, G_N_ELEMENTS(images))]);
    plan_loss(round, round->is_at_end ? 3 : 40);
    g_assert_cmpint(pthread_create(&thread, NULL, take_snapshot, round), ==, 0);
    while (!is_met(round) && atomic_load(&round->requests) < 300) {
        g_usleep(100);
    }
    round->is_told = atomic_load(&round->is_taken);
    freeze(round);
    lose_power(round);
    pthread_join(thread, NULL);
}

/* ---- Afterwards ------------------------------------------------------------------------------ */

static void close_all(struct round *round)
{
    struct layers *layers = round->layers;
    struct rig *rig = layers->rig;

    round->directory = g_strdup(rig->directory);
    round->count = layers->count;
    AUTO(block_node) root = block_device_root(rig->device);
    round->has_moved = root != layers->nodes[LAYERS - 1];
    block_node_unref(STEAL(root));
    block_device_remove(rig->device);
    block_device_unref(rig->device);
    for (unsigned i = layers->count; i-- > 0;) {
        block_node_unref(round->power[i]);
        block_node_unref(layers->files[i]);
        block_node_unref(layers->nodes[i]);
    }
    struct block_node **list = block_node_list();
    g_assert_null(list[0]);
    block_node_list_free(list);
    model_free(rig->model);
    g_free(rig->directory);
    g_free(rig);
    g_free(layers);
}

static void check_image(const struct round *round, struct block_node *layer, const char *name)
{
    struct block_check_result result = {0};
    g_autofree char *path = g_strdup_printf("%s/%s.qcow2", round->directory, name);
    g_autofree char *said = NULL;

    block_node_check(layer, 0, &result, NULL, NULL, NULL);
    enum image_verdict verdict = image_verdict_of(&result);
    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS) {
        fail(round, "image '%s' is %s for us", name, image_verdict_names[verdict]);
    }
    verdict = qemu_check(path, NULL, &said);
    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS) {
        fail(round, "image '%s' is %s: %s", name, image_verdict_names[verdict], said);
    }
}

static void check_contents(const struct round *round, struct block_node *top,
                           const struct loss_model *model)
{
    g_autofree uint8_t *contents = g_malloc(LENGTH);

    g_assert_cmpuint(block_node_length(top), ==, LENGTH);
    g_assert_cmpint(block_node_pread(top, contents, 0, LENGTH, 0), ==, 0);
    uint64_t wrong = loss_model_find_wrong(model, contents);
    if (wrong != UINT64_MAX) {
        fail(round, "the sector at %" PRIu64 " of '%s' holds neither old nor new data", wrong,
             top->name);
    }
}

static bool is_chain(const char *found, const char *chain)
{
    return chain && !strcmp(found, chain);
}

/* The chain that begins with this image is one of two, and holds what the model allows. */
static void check_chain(const struct round *round, const char *name, const struct loss_model *model,
                        const char *one, const char *other)
{
    AUTO(block_node)
    top = test_open("driver=qcow2,read-only=on,node-name=top,file.driver=file,"
                    "file.filename=%s/%s.qcow2",
                    round->directory, name);
    g_autofree char *found = layers_files_of(top);
    g_auto(GStrv) names = g_strsplit(found, " ", -1);
    struct block_node *layer = top;

    if (!is_chain(found, one) && !is_chain(found, other)) {
        fail(round, "the chain is '%s'", found);
    }
    check_contents(round, top, model);
    for (char **image = names; *image; image++) {
        check_image(round, layer, *image);
        layer = block_layer_below(layer);
    }
}

static void judge(const struct round *round)
{
    const struct kind *kind = round->kind;

    if (!round->has_moved) { /* it may not have been told of that the header has changed */
        check_chain(round, "l3", &round->disk, round->kind->job.id ? kind->after : BEFORE,
                    round->is_told ? NULL : BEFORE);
        return;
    }
    check_chain(round, kind->job.id ? "l0" : "l4", &round->disk, kind->after, NULL);
    if (!round->is_told) {
        check_chain(round, "l3", &round->before, BEFORE, NULL);
    }
}

/* ---- Rounds ---------------------------------------------------------------------------------- */

static void run_round(const struct kind *kind, uint64_t seed)
{
    struct round round = {
        .kind = kind,
        .seed = seed,
        .random = test_random_new(seed),
        .lock = PTHREAD_MUTEX_INITIALIZER,
    };
    struct layers_shape shape = {
        .count = LAYERS,
        .length = LENGTH,
        .fill = fill,
        .data = &round,
    };

    for (unsigned i = 0; i < LAYERS; i++) {
        shape.images[i] = images[test_random_below(&round.random, G_N_ELEMENTS(images))];
    }
    round.is_at_end = test_random_chance(&round.random, 60);
    loss_model_init(&round.disk, LENGTH);
    loss_model_init(&round.before, LENGTH);
    layers_new_losing(&shape);
    round.guest_random = test_random_split(&round.random);
    g_assert_cmpint(pthread_create(&round.thread, NULL, run_guest, &round), ==, 0);
    if (kind->job.id) {
        run_job(&round);
    } else {
        run_snapshot(&round);
    }
    atomic_store(&round.stop, true);
    pthread_join(round.thread, NULL);
    close_all(&round);
    judge(&round);
    loss_model_destroy(&round.disk);
    loss_model_destroy(&round.before);
    test_directory_free(round.directory);
}

static void test_kind(gconstpointer data)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long rounds = test_cases(ROUNDS);

    for (unsigned long i = 0; i < rounds; i++) {
        run_round(data, test_random_u64(&random));
    }
}

/* That things could not be written at the end is what is wanted here. */
static void ignore_warning(const char *domain, GLogLevelFlags level, const char *message,
                           void *data)
{
}

static void add_tests(void)
{
    g_log_set_always_fatal(G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, ignore_warning, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_strdup_printf("/chain-loss/%s", kinds[i].name);

        g_test_add_data_func(path, &kinds[i], test_kind);
    }
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
