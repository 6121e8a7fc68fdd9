/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/backup-rig.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER; /* for the condition alone */
static pthread_cond_t status_changed = PTHREAD_COND_INITIALIZER;

static void hear_event(const struct event *event, void *data)
{
    if (g_str_equal(event->name, "JOB_STATUS_CHANGE")) {
        SCOPE_LOCK(&events_lock);

        pthread_cond_broadcast(&status_changed);
    }
}

static void add_listener(void *data)
{
    event_add_listener(hear_event, NULL);
}

static void remove_listener(void *data)
{
    event_remove_listener(hear_event, NULL);
}

/* GLib makes its tables of error domains under locks that ThreadSanitizer does not see. */
static void prepare_errors(void)
{
    g_error_free(g_error_new_literal(BLOCK_ERROR, EIO, ""));
}

int rig_main(int argc, char **argv, void (*add_tests)(void))
{
    prepare_errors();
    g_test_init(&argc, &argv, NULL);
    test_seed();
    formats_register();
    fault_driver_register();
    g_assert_cmpint(main_loop_start(), ==, 0);
    main_loop_call_wait(add_listener, NULL);
    add_tests();
    int status = g_test_run();
    job_cancel_all();
    main_loop_call_wait(remove_listener, NULL);
    main_loop_stop();
    return status;
}

/* ---- The disk ------------------------------------------------------------------------------- */

struct rig *rig_new(uint64_t length, uint64_t alignment)
{
    return rig_new_named("vda", "source", length, alignment);
}

struct rig *rig_new_named(const char *device, const char *node, uint64_t length, uint64_t alignment)
{
    char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "source");

    test_make_file(path, length);
    return rig_new_on(device, directory,
                      test_open("driver=fault,node-name=%s,discard=unmap,alignment=%" PRIu64
                                ",file.driver=file,file.filename=%s",
                                node, alignment, path));
}

struct rig *rig_new_on(const char *device, char *directory, struct block_node *source)
{
    struct rig *rig = g_new0(struct rig, 1);
    GError *error = NULL;

    rig->directory = directory;
    rig->length = block_node_length(source);
    rig->source = source;
    rig->device = block_device_new(device, rig->source, &error);
    g_assert_no_error(error);
    block_device_ref(rig->device);
    rig->model = model_new(align_down(rig->length, RIG_SECTOR), RIG_SECTOR);
    rig->random = test_random_new(test_seed());
    rig->max_bytes = 256 * KIB;
    atomic_init(&rig->end, model_length(rig->model));
    return rig;
}

static int read_node(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    return block_node_pread(data, buffer, offset, bytes, 0);
}

void rig_assert_equal(struct model *model, struct block_node *node)
{
    struct model_report report = {0};
    bool equal = model_compare(model, read_node, node, &report);

    if (!equal) {
        g_test_message("node '%s': %" PRIu64 " of %" PRIu64 " sectors wrong\n%s", node->name,
                       report.wrong, report.sectors, report.details ? report.details->str : "");
    }
    model_report_clear(&report);
    g_assert_true(equal);
}

char *rig_contents(struct block_node *node)
{
    uint64_t length = block_node_length(node);
    char *contents = g_malloc(length + 1);

    g_assert_cmpint(block_node_pread(node, contents, 0, length, 0), ==, 0);
    return contents;
}

void rig_assert_contents(struct block_node *node, const char *contents)
{
    g_autofree char *found = rig_contents(node);
    uint64_t length = block_node_length(node);

    g_assert_cmpmem(found, length, contents, length);
}

static bool has_claims_beside(struct block_node *node, unsigned expected)
{
    struct block_claim *claim;
    unsigned count = 0;
    SCOPE_LOCK(&block_graph_lock);

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (++count > expected) {
            g_test_message("node '%s' is still claimed by %s", node->name, claim->owner);
        }
    }
    return count != expected;
}

static bool has_watchers(struct block_node *node)
{
    return (node->notifiers && node->notifiers[0]) || (node->bitmaps && node->bitmaps[0]) ||
           (node->followers && node->followers[0]);
}

/* Another thread of the test may just have looked the node up; a job's reference would stay. */
static void wait_for_last_reference(struct block_node *node)
{
    int64_t deadline_ns = clock_now_ns() + 20 * NS_PER_SECOND;
    int references;

    do {
        pthread_mutex_lock(&block_graph_lock);
        references = node->references;
        pthread_mutex_unlock(&block_graph_lock);
        if (references > 1) {
            g_usleep(500);
        }
    } while (references > 1 && clock_now_ns() < deadline_ns);
    g_assert_cmpint(references, ==, 1);
}

void rig_assert_unused(struct block_node *node)
{
    g_assert_false(has_claims_beside(node, 0));
    g_assert_false(has_watchers(node));
    wait_for_last_reference(node);
    block_node_unref(node);
}

void rig_assert_source_quiet(struct rig *rig)
{
    g_assert_false(has_claims_beside(rig->source, 1));
    g_assert_false(has_watchers(rig->source));
}

void rig_free(struct rig *rig)
{
    rig_stop(rig);
    if (g_str_equal(rig->source->driver->name, "fault")) {
        fault_clear(rig->source);
    }
    rig_assert_source_quiet(rig);
    g_assert_cmpint(block_device_remove(rig->device), ==, 0);
    block_device_unref(rig->device);
    rig_assert_equal(rig->model, rig->source);
    rig_assert_unused(rig->source);
    model_free(rig->model);
    test_directory_free(rig->directory);
    g_free(rig);
}

/* ---- The guest ------------------------------------------------------------------------------ */

static void count_answer(struct rig *rig, int status)
{
    atomic_fetch_add(&rig->requests, 1);
    if (status < 0) {
        atomic_fetch_add(&rig->failed, 1);
    }
}

static int write_flags(struct rig *rig, uint32_t writer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    struct model_request *request = model_begin(rig->model, MODEL_WRITE, writer, offset, bytes);
    g_autofree char *memory = g_malloc(bytes + 8);

    model_fill(rig->model, request, memory);
    int status = block_device_pwrite(rig->device, memory, offset, bytes, flags);
    model_end(rig->model, request, status);
    count_answer(rig, status);
    return status;
}

int rig_pwrite(struct rig *rig, uint32_t writer, uint64_t offset, uint64_t bytes)
{
    return write_flags(rig, writer, offset, bytes, 0);
}

void rig_fill(struct rig *rig)
{
    uint64_t length = model_length(rig->model);

    for (uint64_t offset = 0; offset < length; offset += MIB) {
        g_assert_cmpint(rig_pwrite(rig, 0, offset, MIN_OF(length - offset, MIB)), ==, 0);
    }
}

void rig_zero(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = model_begin(rig->model, MODEL_ZEROES, 98, offset, bytes);
    int status = block_device_write_zeroes(rig->device, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);

    model_end(rig->model, request, status);
    g_assert_cmpint(status, ==, 0);
}

static void zero(struct rig *rig, uint32_t writer, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct model_request *request = model_begin(rig->model, MODEL_ZEROES, writer, offset, bytes);
    int status = block_device_write_zeroes(rig->device, offset, bytes, flags);

    model_end(rig->model, request, status);
    count_answer(rig, status);
}

static void discard(struct rig *rig, uint32_t writer, uint64_t offset, uint64_t bytes)
{
    struct model_request *request = model_begin(rig->model, MODEL_TRIM, writer, offset, bytes);
    int status = block_device_discard(rig->device, offset, bytes, 0);

    model_end(rig->model, request, status);
    count_answer(rig, status);
}

static void check_read(struct rig *rig, uint64_t offset, uint64_t bytes)
{
    struct model_read *read = model_read_begin(rig->model, offset, bytes);
    struct model_report report = {0};
    g_autofree char *memory = g_malloc(bytes);
    int status = block_device_pread(rig->device, memory, offset, bytes);

    model_read_end(rig->model, read, status < 0 ? NULL : memory, &report);
    /* Beside a write in flight the page cache may give a reader a mixture. */
    if (report.wrong > report.verdicts[PATTERN_IS_TORN] + report.verdicts[PATTERN_IS_FOREIGN]) {
        g_error("the guest read wrong data:\n%s", report.details ? report.details->str : "");
    }
    model_report_clear(&report);
    count_answer(rig, status);
}

void rig_step(struct rig_writer *writer)
{
    struct rig *rig = writer->rig;
    struct test_random *random = &writer->random;
    uint64_t maximum =
        test_random_chance(random, 70) ? MIN_OF(16 * KIB, rig->max_bytes) : rig->max_bytes;
    uint64_t offset, bytes;

    uint64_t end = MIN_OF(atomic_load(&rig->end), model_length(rig->model));
    test_random_range(random, end, RIG_SECTOR, maximum, &offset, &bytes);
    switch (test_random_below(random, 16)) {
    case 0:
        zero(rig, writer->number, offset, bytes, 0);
        break;
    case 1:
        zero(rig, writer->number, offset, bytes, BLOCK_REQUEST_MAY_UNMAP);
        break;
    case 2:
        discard(rig, writer->number, offset, bytes);
        break;
    case 3:
        count_answer(rig, block_device_flush(rig->device));
        break;
    case 4:
    case 5:
        check_read(rig, offset, bytes);
        break;
    case 6:
        write_flags(rig, writer->number, offset, bytes, BLOCK_REQUEST_FUA);
        break;
    default:
        write_flags(rig, writer->number, offset, bytes, 0);
    }
}

static void *writer_thread(void *data)
{
    struct rig_writer *writer = data;

    while (!atomic_load(&writer->rig->stop)) {
        rig_step(writer);
    }
    return NULL;
}

void rig_write(struct rig *rig, unsigned writers)
{
    g_assert_cmpuint(rig->writer_count, ==, 0);
    atomic_store(&rig->stop, false);
    rig->writer_count = writers;
    for (unsigned i = 0; i < writers; i++) {
        struct rig_writer *writer = &rig->writers[i];

        writer->rig = rig;
        writer->number = i + 1;
        writer->random = test_random_split(&rig->random);
        g_assert_cmpint(pthread_create(&writer->thread, NULL, writer_thread, writer), ==, 0);
    }
}

void rig_stop(struct rig *rig)
{
    atomic_store(&rig->stop, true);
    for (unsigned i = 0; i < rig->writer_count; i++) {
        pthread_join(rig->writers[i].thread, NULL);
    }
    rig->writer_count = 0;
}

void rig_wait_requests(struct rig *rig, uint64_t more)
{
    uint64_t goal = atomic_load(&rig->requests) + more;

    while (atomic_load(&rig->requests) < goal) {
        g_usleep(500); /* a state to wait for, without a condition on the guest's path */
    }
}

/* ---- Backups -------------------------------------------------------------------------------- */

static void fill_with_junk(struct block_node *node)
{
    uint64_t length = block_node_length(node);
    g_autofree char *junk = g_malloc(length + 1);

    memset(junk, 0xdb, length);
    g_assert_cmpint(block_node_pwrite(node, junk, 0, length, 0), ==, 0);
}

struct block_node *rig_target(struct rig *rig, const char *name, bool junk)
{
    g_autofree char *path = test_path(rig->directory, name);

    test_make_file(path, rig->length);
    struct block_node *target = test_open(
        "driver=fault,node-name=%s,discard=unmap,file.driver=file,file.filename=%s", name, path);
    if (junk) {
        fill_with_junk(target);
    }
    return target;
}

struct backup_options rig_options(struct rig *rig, const char *id, struct block_node *target)
{
    return (struct backup_options){
        .job_id = id,
        .source = rig->source,
        .target = target,
        .guest_timeout_s = BACKUP_DEFAULT_GUEST_TIMEOUT_S,
        .job_flags = JOB_MANUAL_DISMISS,
    };
}

struct moment {
    struct rig *rig;
    struct job **jobs;
    size_t count;
    struct model **snapshot;
};

static void take_moment(void *data)
{
    struct moment *moment = data;

    for (size_t i = 0; i < moment->count; i++) {
        backup_activate(moment->jobs[i]);
    }
    if (moment->snapshot) {
        *moment->snapshot = model_snapshot(moment->rig->model);
    }
}

void rig_backup(struct rig *rig, const struct backup_options *options, size_t count,
                struct job **jobs, struct model **snapshot)
{
    struct moment moment = {.rig = rig, .jobs = jobs, .count = count, .snapshot = snapshot};
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < count; i++) {
        jobs[i] = backup_new(&options[i], &error);
        g_assert_no_error(error);
    }
    struct block_drain *drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(take_moment, &moment);
    block_drain_end(drain);
    for (size_t i = 0; i < count; i++) {
        job_start(jobs[i], &error);
        g_assert_no_error(error);
    }
}

enum job_status rig_wait_status(struct job *job, enum job_status status)
{
    SCOPE_LOCK(&events_lock);

    while (true) {
        enum job_status now = job_get_status(job);

        if (now == status || now == JOB_STATUS_CONCLUDED) {
            return now;
        }
        pthread_cond_wait(&status_changed, &events_lock);
    }
}

char *rig_end(struct job *job)
{
    struct job_info info;

    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    char *message = g_strdup(info.error);
    if (!message) {
        g_assert_cmpuint(info.current_progress, ==, info.total_progress);
    }
    job_info_clear(&info);
    g_assert_cmpint(job_dismiss(job, NULL), ==, 0);
    job_unref(job);
    return message;
}

void rig_end_well(struct job *job)
{
    g_autofree char *message = rig_end(job);

    g_assert_cmpstr(message, ==, NULL);
}

void rig_end_badly(struct job *job, const char *part)
{
    g_autofree char *message = rig_end(job);

    test_assert_says(message, part);
}

void rig_resume_when_stopped(struct job *job)
{
    while (job_user_resume(job, NULL) < 0) {
        g_usleep(500);
    }
}

struct rig *rig_new_with_target(uint64_t length, struct block_node **target)
{
    struct rig *rig = rig_new(length, 1);

    rig_fill(rig);
    *target = rig_target(rig, "target", true);
    return rig;
}

void rig_free_with_target(struct rig *rig, struct block_node *target)
{
    rig_stop(rig);
    fault_clear(target);
    rig_assert_unused(target);
    rig_free(rig);
}
