/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver preallocate: a file that is allocated ahead of its data. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "block/align.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/random.h"

#define START (64 * KIB)
#define LIMIT (8 * MIB)

/* "ahead" over a file of START bytes. */
struct rig {
    struct test_image image;
    struct block_node *ahead;
    uint8_t *model;
    uint8_t *buffer;
};

static void open_node(struct rig *rig, const char *more)
{
    rig->ahead = test_open("driver=preallocate,node-name=ahead,discard=unmap,prealloc-align=64k,"
                           "prealloc-size=1M,file.driver=file,file.node-name=file,"
                           "file.filename=%s%s",
                           rig->image.path, more);
}

static void set_up(struct rig *rig, const void *unused)
{
    test_image_make(&rig->image, START);
    rig->model = g_malloc0(LIMIT);
    rig->buffer = g_malloc(LIMIT);
    open_node(rig, "");
}

static void tear_down(struct rig *rig, const void *unused)
{
    block_node_unref(STEAL(rig->ahead));
    g_free(rig->model);
    g_free(rig->buffer);
    test_image_remove(&rig->image, NULL);
}

static uint64_t file_length(struct rig *rig)
{
    struct stat st;

    g_assert_cmpint(stat(rig->image.path, &st), ==, 0);
    return (uint64_t)st.st_size;
}

/* What a format does that needs more of its file. */
static void append(struct rig *rig, uint64_t bytes, int byte)
{
    uint64_t end = block_node_length(rig->ahead);

    g_assert_cmpint(block_node_grow(rig->ahead, end + bytes), ==, 0);
    memset(rig->buffer, byte, bytes);
    g_assert_cmpint(block_node_pwrite(rig->ahead, rig->buffer, end, bytes, 0), ==, 0);
    memset(rig->model + end, byte, bytes);
}

static void assert_whole(struct rig *rig, uint64_t length)
{
    g_assert_cmpuint(block_node_length(rig->ahead), ==, length);
    g_assert_cmpint(block_node_pread(rig->ahead, rig->buffer, 0, length, 0), ==, 0);
    test_assert_same(rig->buffer, rig->model, length);
    g_assert_cmpint(block_node_pread(rig->ahead, rig->buffer, length, 1, 0), ==, -EINVAL);
}

/* ---- Growing -------------------------------------------------------------------------------- */

static void test_grow(struct rig *rig, const void *unused)
{
    append(rig, 1000, 1);
    uint64_t ahead = align_up(START + 1000 + MIB, 64 * KIB);
    g_assert_cmpuint(file_length(rig), ==, ahead);
    g_assert_cmpuint(test_allocated(rig->image.path), >=, MIB);
    assert_whole(rig, START + 1000);
    append(rig, 500 * KIB, 2); /* is there already */
    g_assert_cmpuint(file_length(rig), ==, ahead);
    append(rig, MIB, 3);
    g_assert_cmpuint(file_length(rig), >, ahead);
    uint64_t end = START + 1000 + 500 * KIB + MIB;
    assert_whole(rig, end);
    block_node_unref(STEAL(rig->ahead));
    g_assert_cmpuint(file_length(rig), ==, end);
    open_node(rig, "");
    assert_whole(rig, end);
}

static void test_zeroes(struct rig *rig, const void *unused)
{
    append(rig, 1000, 1);
    g_assert_cmpint(block_node_grow(rig->ahead, 300 * KIB), ==, 0); /* reads as zeroes */
    assert_whole(rig, 300 * KIB);
    /* What was data once is zeroes again where the disk got shorter and longer. */
    g_assert_cmpint(block_node_set_length(rig->ahead, START + 10, BLOCK_PREALLOCATION_OFF, NULL),
                    ==, 0);
    g_assert_cmpuint(file_length(rig), ==, START + 10);
    memset(rig->model + START + 10, 0, LIMIT - START - 10);
    g_assert_cmpint(block_node_grow(rig->ahead, START + 1000), ==, 0);
    assert_whole(rig, START + 1000);
    g_assert_cmpint(block_node_set_length(rig->ahead, 400 * KIB, BLOCK_PREALLOCATION_FALLOC, NULL),
                    ==, 0);
    assert_whole(rig, 400 * KIB);
    g_assert_cmpint(block_node_set_length(rig->ahead, 3 * MIB, BLOCK_PREALLOCATION_FULL, NULL), ==,
                    0);
    g_assert_cmpuint(file_length(rig), ==, 3 * MIB);
    assert_whole(rig, 3 * MIB);
}

static void test_random_changes(struct rig *rig, const void *unused)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = test_cases(200); i > 0; i--) {
        uint64_t length = block_node_length(rig->ahead);
        uint64_t bytes = test_random_between(&random, 1, 64 * KIB);
        unsigned kind = (unsigned)test_random_below(&random, 10);

        if (kind < 5 && length + bytes < LIMIT) {
            append(rig, bytes, (int)test_random_below(&random, 256));
        } else if (kind < 8 && length > bytes) {
            uint64_t at = test_random_below(&random, length - bytes);

            memset(rig->buffer, (int)i, bytes);
            g_assert_cmpint(block_node_pwrite(rig->ahead, rig->buffer, at, bytes, 0), ==, 0);
            memset(rig->model + at, (int)i, bytes);
        } else if (kind == 8) {
            length = test_random_between(&random, START, LIMIT);
            g_assert_cmpint(
                block_node_set_length(rig->ahead, length, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
            memset(rig->model + length, 0, LIMIT - length);
        } else {
            block_node_unref(STEAL(rig->ahead));
            g_assert_cmpuint(file_length(rig), ==, length);
            open_node(rig, "");
        }
    }
    assert_whole(rig, block_node_length(rig->ahead));
}

/* ---- A format above it ---------------------------------------------------------------------- */

#define THREADS 4

struct writer {
    struct block_node *q;
    unsigned number;
    GThread *thread;
};

static gpointer write_clusters(gpointer data)
{
    struct writer *writer = data;
    g_autofree uint8_t *cluster = g_malloc(64 * KIB);

    memset(cluster, (int)writer->number + 1, 64 * KIB);
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t at = (i * THREADS + writer->number) * 64 * KIB;

        g_assert_cmpint(block_node_pwrite(writer->q, cluster, at, 64 * KIB, 0), ==, 0);
    }
    return NULL;
}

/* The file is longer while the image is open, and after that just as long as it would be without;
 * killed means that it stays longer, which the next who opens it copes with. */
static void test_qcow2(void)
{
    struct writer writers[THREADS];
    struct test_image image;
    struct stat st;

    test_image_make(&image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 %s 16M", image.path);
    AUTO(block_node) q = test_open("driver=qcow2,node-name=q,file.driver=preallocate,"
                                   "file.prealloc-size=32M,file.file.driver=file,"
                                   "file.file.filename=%s",
                                   image.path);
    for (unsigned i = 0; i < THREADS; i++) {
        writers[i] = (struct writer){q, i, NULL};
        writers[i].thread = g_thread_new("writer", write_clusters, &writers[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        g_thread_join(writers[i].thread);
    }
    g_assert_cmpint(block_node_flush(q), ==, 0);
    g_assert_cmpint(stat(image.path, &st), ==, 0);
    g_assert_cmpint(st.st_size, >, 32 << 20);
    g_autofree char *killed = test_path(image.directory, "killed");
    test_command_succeeds("cp %s %s", image.path, killed);
    block_node_unref(STEAL(q));
    g_assert_cmpint(stat(image.path, &st), ==, 0);
    g_assert_cmpint(st.st_size, <, 8 << 20);
    test_command_succeeds("qemu-img check -q %s", image.path);
    test_command_succeeds("qemu-img check -q %s", killed);
    test_command_succeeds("qemu-img compare %s %s", image.path, killed);
    q = test_open("driver=qcow2,node-name=q,file.driver=preallocate,file.file.driver=file,"
                  "file.file.filename=%s",
                  killed);
    writers[0] = (struct writer){.q = q};
    write_clusters(&writers[0]);
    block_node_unref(STEAL(q));
    test_command_succeeds("qemu-img check -q %s", killed);
    test_command_succeeds("qemu-img compare %s %s", image.path, killed);
    test_image_remove(&image, NULL);
}

/* ---- Trouble -------------------------------------------------------------------------------- */

/* What cannot be allocated ahead is not missed; what cannot grow at all says so. */
static void test_no_room(void)
{
    AUTO(block_node) full = test_open("driver=memory-filter,node-name=full,file.driver=memory,"
                                      "file.size=4096,file.node-name=disk");
    AUTO(block_node) disk = block_node_find("disk");
    AUTO(block_node) ahead = test_open("driver=preallocate,node-name=ahead,file=full,"
                                       "prealloc-size=9223372036854775807");

    g_assert_cmpint(block_node_grow(ahead, 8192), ==, 0);
    g_assert_cmpuint(block_node_length(ahead), ==, 8192);
    g_assert_cmpuint(block_node_length(full), ==, 8192);
    memory_disk_fail_resize(disk, -EIO);
    g_assert_cmpint(block_node_grow(ahead, 16384), ==, -EIO);
    g_assert_cmpuint(block_node_length(ahead), ==, 8192);
    memory_disk_fail_resize(disk, 0);
    g_assert_cmpint(block_node_grow(ahead, 16384), ==, 0);
}

static void test_reopen(struct rig *rig, const void *unused)
{
    append(rig, 1000, 1);
    g_assert_cmpuint(file_length(rig), >, MIB);
    g_assert_cmpstr(test_reopen_node("driver=preallocate,node-name=ahead,file=file,read-only=on"),
                    ==, NULL);
    g_assert_cmpuint(file_length(rig), ==, START + 1000);
    assert_whole(rig, START + 1000);
    g_assert_cmpstr(
        test_reopen_node("driver=preallocate,node-name=ahead,file=file,prealloc-align=512,"
                         "prealloc-size=4096"),
        ==, NULL);
    append(rig, 24, 2);
    g_assert_cmpuint(file_length(rig), ==, START + 1024 + 4096);
    g_autofree char *wrong =
        test_reopen_node("driver=preallocate,node-name=ahead,file=file,prealloc-align=1000");
    g_assert_cmpstr(wrong, ==, "prealloc-align must be a multiple of 512 bytes");
    append(rig, 8192, 3);
    assert_whole(rig, START + 1024 + 8192);
}

static void test_refusals(struct rig *rig, const void *unused)
{
    block_node_unref(STEAL(rig->ahead));
    g_autofree char *zero =
        test_open_error("driver=preallocate,node-name=x,prealloc-align=0,file.driver=file,"
                        "file.filename=%s",
                        rig->image.path);
    g_assert_cmpstr(zero, ==, "prealloc-align must be a multiple of 512 bytes");
    open_node(rig, ",read-only=on");
    assert_whole(rig, START);
    g_assert_cmpint(block_node_grow(rig->ahead, 2 * START), ==, -EPERM);
    g_assert_cmpuint(file_length(rig), ==, START);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    memory_drivers_register();
#define ADD(path, test) g_test_add("/preallocate/" path, struct rig, NULL, set_up, test, tear_down)
    ADD("grows-ahead-and-gives-back", test_grow);
    ADD("new-space-is-zeroes", test_zeroes);
    ADD("anything", test_random_changes);
    g_test_add_func("/preallocate/below-qcow2", test_qcow2);
    g_test_add_func("/preallocate/no-room", test_no_room);
    ADD("reopen", test_reopen);
    ADD("refusals", test_refusals);
    return g_test_run();
}
