/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/request.h"
#include "formats/blkdebug.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"

static uint8_t data[65536];

static struct block_node *open_disk(const char *more)
{
    return test_open("driver=blkdebug,discard=unmap,image.driver=null-co,image.size=1M%s%s",
                     *more ? "," : "", more);
}

static int read_at(struct block_node *node, uint64_t offset)
{
    return block_node_pread(node, data, offset, 512, 0);
}

static int write_at(struct block_node *node, uint64_t offset)
{
    return block_node_pwrite(node, data, offset, 512, 0);
}

static int set_rules(struct block_node *node, const char *text, GError **error)
{
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return blkdebug_set_rules(node, options, error);
}

static void test_kinds(void)
{
    static const char *const types[] = {"read",    "write", "write-zeroes",
                                        "discard", "flush", "block-status"};

    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autofree char *rule =
            g_strdup_printf("inject-error.0.event=none,inject-error.0.iotype=%s", types[i]);
        AUTO(block_node) node = open_disk(rule);
        struct block_extent extent;

        g_assert_cmpint(read_at(node, 0), ==, i == 0 ? -EIO : 0);
        g_assert_cmpint(write_at(node, 0), ==, i == 1 ? -EIO : 0);
        g_assert_cmpint(block_node_write_zeroes(node, 0, 512, 0), ==, i == 2 ? -EIO : 0);
        g_assert_cmpint(block_node_discard(node, 0, 512), ==, i == 3 ? -EIO : 0);
        g_assert_cmpint(block_node_flush(node), ==, i == 4 ? -EIO : 0);
        g_assert_cmpint(block_node_block_status(node, 0, 512, &extent), ==, i == 5 ? -EIO : 0);
        g_assert_cmpint(set_rules(node, "", NULL), ==, 0);
    }
}

static void test_places(void)
{
    AUTO(block_node)
    node = open_disk("inject-error.0.event=none,inject-error.0.sector=4,inject-error.0.errno=28,"
                     "inject-error.1.event=none,inject-error.1.offset=64k,"
                     "inject-error.1.bytes=1k,inject-error.2.event=none,"
                     "inject-error.2.offset=512k,inject-error.2.errno=121");

    g_assert_cmpint(read_at(node, 1536), ==, 0);
    g_assert_cmpint(read_at(node, 2048), ==, -ENOSPC);
    g_assert_cmpint(read_at(node, 2560), ==, 0);
    g_assert_cmpint(write_at(node, 65536 + 512), ==, -EIO);
    g_assert_cmpint(write_at(node, 65536 + 1024), ==, 0);
    g_assert_cmpint(write_at(node, MIB - 512), ==, -EREMOTEIO);
}

static void test_counts(void)
{
    AUTO(block_node)
    node = open_disk("inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.skip=1,"
                     "inject-error.0.count=2,inject-error.1.event=none,"
                     "inject-error.1.iotype=write,inject-error.1.once=on");
    struct blkdebug_status status;

    g_assert_cmpint(read_at(node, 0), ==, 0);
    g_assert_cmpint(read_at(node, 0), ==, -EIO);
    g_assert_cmpint(read_at(node, 0), ==, -EIO);
    g_assert_cmpint(read_at(node, 0), ==, 0);
    g_assert_cmpint(write_at(node, 0), ==, -EIO);
    g_assert_cmpint(write_at(node, 0), ==, 0);
    g_assert_cmpint(blkdebug_get_status(node, &status, NULL), ==, 0);
    g_assert_cmpuint(status.rule_count, ==, 2);
    g_assert_cmpuint(status.rules[0].hits, ==, 2);
    g_assert_cmpuint(status.rules[1].hits, ==, 1);
    blkdebug_status_clear(&status);
}

static void test_probability(void)
{
    const char *rule = "seed=7,inject-error.0.event=none,inject-error.0.probability=30";
    AUTO(block_node) one = open_disk(rule);
    AUTO(block_node) two = open_disk(rule);
    unsigned failed = 0;

    for (int i = 0; i < 1000; i++) {
        int status = read_at(one, 0);

        g_assert_cmpint(read_at(two, 0), ==, status);
        failed += status < 0;
    }
    g_assert_cmpuint(failed, >, 200);
    g_assert_cmpuint(failed, <, 400);
    set_rules(one, "", NULL);
    set_rules(two, "", NULL);
}

static void test_events(void)
{
    AUTO(block_node)
    node = open_disk("inject-error.0.event=cluster_alloc,inject-error.1.event=write_aio,"
                     "inject-error.1.state=2,set-state.0.event=metadata_write,"
                     "set-state.0.state=1,set-state.0.new_state=2");

    g_assert_cmpint(write_at(node, 0), ==, 0);
    block_node_debug_event(node, BLOCK_DEBUG_CLUSTER_ALLOCATE);
    g_assert_cmpint(write_at(node, 0), ==, -EIO);
    g_assert_cmpint(write_at(node, 0), ==, 0);
    block_node_debug_event(node, BLOCK_DEBUG_METADATA_WRITE);
    g_assert_cmpint(write_at(node, 0), ==, 0); /* the announced write was made in state 1 */
    g_assert_cmpint(write_at(node, 0), ==, -EIO);
    g_assert_cmpint(read_at(node, 0), ==, 0);
}

static void test_delay(void)
{
    AUTO(block_node)
    node = open_disk("inject-error.0.event=none,inject-error.0.errno=0,"
                     "inject-error.0.delay-ns=3000000,inject-error.0.iotype=read");
    int64_t start = clock_now_ns();

    g_assert_cmpint(read_at(node, 0), ==, 0);
    g_assert_cmpint(clock_now_ns() - start, >=, 3 * NS_PER_MS);
}

static void test_limits(void)
{
    AUTO(block_node)
    node = open_disk("align=4k,max-transfer=8k,max-write-zero=16k,max-discard=32k,"
                     "opt-write-zero=4k,opt-discard=8k,inject-error.0.event=none,"
                     "inject-error.0.errno=0");
    struct blkdebug_status status;

    g_assert_cmpuint(node->limits.request_alignment, ==, 4096);
    g_assert_cmpuint(node->limits.write_zeroes_alignment, ==, 4096);
    g_assert_cmpuint(node->limits.discard_alignment, ==, 8192);
    g_assert_cmpint(block_node_pwrite(node, data, 0, 65536, 0), ==, 0);
    g_assert_cmpint(block_node_write_zeroes(node, 0, 65536, 0), ==, 0);
    g_assert_cmpint(block_node_discard(node, 0, 65536), ==, 0);
    g_assert_cmpint(blkdebug_get_status(node, &status, NULL), ==, 0);
    g_assert_cmpuint(status.rules[0].hits, ==, 8 + 4 + 2);
    blkdebug_status_clear(&status);
}

static void test_refusals(void)
{
    static const char *const wrong[][2] = {
        {"inject-error.0.event=none,inject-error.0.probability=101", "probability"},
        {"inject-error.0.event=none,inject-error.0.errno=5000", "errno"},
        {"inject-error.0.event=none,inject-error.0.sector=-2", "sector"},
        {"inject-error.0.event=none,inject-error.0.sector=1,inject-error.0.bytes=1", "sector"},
        {"inject-error.0.event=none,inject-error.0.once=on,inject-error.0.count=2", "once"},
        {"inject-error.0.event=bang", "bang"},
        {"inject-error.0.iotype=read", "event"},
        {"set-state.0.event=none,set-state.0.new_state=0", "new_state"},
    };
    AUTO(block_node) node = open_disk("inject-error.0.event=none");
    AUTO(block_node) other = test_open("driver=null-co");

    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *message =
            test_open_error("driver=blkdebug,image.driver=null-co,%s", wrong[i][0]);
        g_autoptr(GError) error = NULL;

        g_assert_nonnull(strstr(message, wrong[i][1]));
        g_assert_cmpint(set_rules(node, wrong[i][0], &error), <, 0);
        g_assert_nonnull(strstr(error->message, wrong[i][1]));
    }
    g_assert_cmpint(read_at(node, 0), ==, -EIO); /* the old rules stayed */
    g_assert_cmpint(set_rules(other, "", NULL), <, 0);
    g_free(test_open_error("driver=blkdebug,align=3,image.driver=null-co"));
    g_free(test_open_error("driver=blkdebug,align=2M,image.driver=null-co"));
    g_free(test_open_error("driver=blkdebug,align=4k,max-transfer=512,image.driver=null-co"));
    g_assert_cmpint(set_rules(node, "", NULL), ==, 0);
}

/* ---- Break points --------------------------------------------------------------------------- */

struct request {
    struct block_node *node;
    pthread_t thread;
    uint64_t offset;
    int status;
};

static void *run_write(void *request_pointer)
{
    struct request *request = request_pointer;

    request->status = write_at(request->node, request->offset);
    return NULL;
}

static void start(struct request *request, struct block_node *node, uint64_t offset)
{
    *request = (struct request){.node = node, .offset = offset, .status = 1};
    g_assert_cmpint(pthread_create(&request->thread, NULL, run_write, request), ==, 0);
}

static int end(struct request *request)
{
    pthread_join(request->thread, NULL);
    return request->status;
}

static void wait_suspended(struct block_node *node, uint64_t count)
{
    uint64_t suspended;

    do {
        struct blkdebug_status status;

        g_assert_cmpint(blkdebug_get_status(node, &status, NULL), ==, 0);
        suspended = status.break_count ? status.suspended[0] : 0;
        blkdebug_status_clear(&status);
        g_usleep(500);
    } while (suspended < count);
}

static void test_break(void)
{
    AUTO(block_node) node = open_disk("");
    const struct blkdebug_break point = {
        .tag = (char *)"A", .type = BLKDEBUG_TYPE_WRITE, .offset = 4096, .bytes = 4096};
    struct request first, second;
    uint64_t count;

    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, 0);
    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, -EEXIST);
    start(&first, node, 4096);
    start(&second, node, 8192 - 512);
    wait_suspended(node, 2);
    g_assert_cmpint(write_at(node, 8192), ==, 0);
    g_assert_cmpint(read_at(node, 4096), ==, 0);
    g_assert_cmpint(blkdebug_resume(node, "B", NULL, NULL), ==, -ENOENT);
    g_assert_cmpint(blkdebug_resume(node, "A", &count, NULL), ==, 0);
    g_assert_cmpuint(count, ==, 2);
    g_assert_cmpint(end(&first), ==, 0);
    g_assert_cmpint(end(&second), ==, 0);
    g_assert_cmpint(write_at(node, 4096), ==, 0);
}

static void test_cancel(void)
{
    AUTO(block_node) node = open_disk("");
    const struct blkdebug_break point = {.tag = (char *)"A", .event = BLOCK_DEBUG_WRITE};
    struct request request;

    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, 0);
    start(&request, node, 0);
    wait_suspended(node, 1);
    block_node_cancel_in_flight(node);
    g_assert_cmpint(end(&request), ==, -ESHUTDOWN);
}

static void test_close(void)
{
    AUTO(block_node) node = open_disk("");
    const struct blkdebug_break point = {.tag = (char *)"A", .event = BLOCK_DEBUG_FLUSH};

    g_assert_cmpint(write_at(node, 0), ==, 0);
    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, 0);
}

#define THREADS 8

static atomic_bool is_over;

static void *torture(void *data_pointer)
{
    struct request *request = data_pointer;
    uint8_t buffer[512] = {0};

    for (unsigned i = 0; !atomic_load(&is_over); i++) {
        block_node_debug_event(request->node, BLOCK_DEBUG_CLUSTER_ALLOCATE);
        block_node_pwrite(request->node, buffer, (i * 7919 + request->offset) % 2048 * 512, 512, 0);
        block_node_pread(request->node, buffer, 0, 512, 0);
    }
    return NULL;
}

static void test_many_threads(void)
{
    AUTO(block_node) node = open_disk("");
    const struct blkdebug_break point = {.tag = (char *)"A", .type = BLKDEBUG_TYPE_WRITE};
    struct request requests[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        requests[i] = (struct request){.node = node, .offset = i};
        pthread_create(&requests[i].thread, NULL, torture, &requests[i]);
    }
    for (int i = 0; i < 30; i++) {
        set_rules(node,
                  "inject-error.0.event=cluster_alloc,inject-error.0.delay-ns=100000,"
                  "inject-error.0.probability=50,set-state.0.event=read_aio,"
                  "set-state.0.new_state=3",
                  NULL);
        g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, 0);
        wait_suspended(node, THREADS);
        g_assert_cmpint(blkdebug_resume(node, "A", NULL, NULL), ==, 0);
    }
    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, 0);
    wait_suspended(node, THREADS);
    atomic_store(&is_over, true);
    blkdebug_release_all(); /* as the process does at its end */
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(requests[i].thread, NULL);
    }
    g_assert_cmpint(blkdebug_set_break(node, &point, NULL), ==, -ESHUTDOWN);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    /* A node that has ended warns that its last flush failed, as it should. */
    g_log_set_always_fatal(G_LOG_LEVEL_CRITICAL | G_LOG_FATAL_MASK);
    g_test_add_func("/blkdebug/each-kind-of-request-can-fail", test_kinds);
    g_test_add_func("/blkdebug/sectors-and-ranges-can-fail", test_places);
    g_test_add_func("/blkdebug/skip-count-and-once-are-exact", test_counts);
    g_test_add_func("/blkdebug/a-seed-repeats-its-draws", test_probability);
    g_test_add_func("/blkdebug/events-and-states-choose-requests", test_events);
    g_test_add_func("/blkdebug/a-delay-holds-a-request", test_delay);
    g_test_add_func("/blkdebug/limits-are-those-claimed", test_limits);
    g_test_add_func("/blkdebug/wrong-rules-are-refused-and-change-nothing", test_refusals);
    g_test_add_func("/blkdebug/a-break-point-holds-requests-until-resumed", test_break);
    g_test_add_func("/blkdebug/cancelling-fails-who-stands-at-a-break-point", test_cancel);
    g_test_add_func("/blkdebug/a-break-point-does-not-hold-the-last-flush", test_close);
    g_test_add_func("/blkdebug/many-threads-and-the-end-of-the-process", test_many_threads);
    return g_test_run();
}
