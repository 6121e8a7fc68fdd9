/* SPDX-License-Identifier: BSD-3-Clause */
/* Open nodes that get other options, several at once, with requests running. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/throttle-group.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/qcow2-peer.h"

#define LENGTH  (8 * MIB)
#define WRITERS 3

static void set_up(struct test_image *image, const void *options)
{
    test_image_make(image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 %s %" PRIu64, image->path, LENGTH);
}

/* Sets of options, separated by ';'. Returns the error's message, which the caller frees, or NULL.
 */
static char *reopen(const char *format, ...) G_GNUC_PRINTF(1, 2);

static char *reopen(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_auto(GStrv) lines = g_strsplit(text, ";", -1);
    guint count = g_strv_length(lines);
    g_autofree struct block_options **sets = g_new0(struct block_options *, count + 1);
    g_autoptr(GError) error = NULL;
    for (guint i = 0; i < count; i++) {
        sets[i] = block_options_parse(lines[i], NULL, NULL);
    }
    int status = block_nodes_reopen(sets, count, &error);
    g_assert_cmpint(status < 0, ==, error != NULL);
    for (guint i = 0; i < count; i++) {
        block_options_free(sets[i]);
    }
    return error ? g_strdup(error->message) : NULL;
}

#define ASSERT_DONE(...)                                                                           \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *message_ = reopen(__VA_ARGS__);                                           \
        g_assert_cmpstr(message_, ==, NULL);                                                       \
    }                                                                                              \
    G_STMT_END
#define ASSERT_REFUSED(why, ...)                                                                   \
    G_STMT_START                                                                                   \
    {                                                                                              \
        g_autofree char *message_ = reopen(__VA_ARGS__);                                           \
        g_assert_nonnull(message_);                                                                \
        if (!strstr(message_, why)) {                                                              \
            g_error("'%s' is not in '%s'", why, message_);                                         \
        }                                                                                          \
    }                                                                                              \
    G_STMT_END

/* ---- Options -------------------------------------------------------------------------------- */

static void test_common(struct test_image *image, const void *unused)
{
    AUTO(block_node) node = test_open("driver=qcow2,node-name=q,discard=unmap,detect-zeroes=unmap,"
                                      "file.driver=file,file.node-name=f,file.filename=%s",
                                      image->path);

    ASSERT_DONE("node-name=q,driver=qcow2,file=f,cache.no-flush=on");
    g_assert_false(node->options.discard_unmap);
    g_assert_cmpint(node->options.detect_zeroes, ==, BLOCK_DETECT_ZEROES_OFF);
    g_assert_true(node->options.cache_no_flush && !node->file->options.cache_no_flush);
    /* An object takes over what the parent has. */
    ASSERT_DONE("node-name=q,driver=qcow2,file.driver=file,file.filename=%s,cache.no-flush=on,"
                "read-only=on",
                image->path);
    g_assert_true(node->file->options.cache_no_flush && node->file->options.read_only);
    ASSERT_DONE("node-name=q,driver=qcow2,file.driver=file,file.node-name=f,file.filename=%s,"
                "discard=unmap",
                image->path);
    g_assert_true(node->options.discard_unmap && !node->options.read_only);
    g_assert_false(node->file->options.cache_no_flush || node->file->options.read_only);
    ASSERT_DONE("node-name=q,driver=qcow2,read-only=on,force-share=on,file=f");
    ASSERT_REFUSED("force-share=on can only be used with read-only images",
                   "node-name=q,driver=qcow2,force-share=on,file=f");
    ASSERT_REFUSED("setting detect-zeroes to unmap is not allowed",
                   "node-name=q,driver=qcow2,detect-zeroes=unmap,file=f");
    ASSERT_REFUSED("Cannot change the option 'force-share'",
                   "node-name=q,driver=qcow2,read-only=on,file=f");
    g_assert_true(node->options.read_only && node->options.force_share);
}

/* Kept though it changes nothing: what it needs is looked for at each change. */
static void test_aio(struct test_image *image, const void *unused)
{
    test_command_succeeds("truncate -s 1M %s", image->path); /* whole sectors */
    AUTO(block_node) node = test_open("driver=file,node-name=f,filename=%s,aio=native,"
                                      "cache.direct=on",
                                      image->path);

    ASSERT_DONE("driver=file,node-name=f,filename=%s,aio=native,cache.direct=on,read-only=on",
                image->path);
    ASSERT_REFUSED("aio=native was specified, but it requires cache.direct=on",
                   "driver=file,node-name=f,filename=%s,aio=native", image->path);
    ASSERT_REFUSED("Cannot change the option 'aio'",
                   "driver=file,node-name=f,filename=%s,cache.direct=on", image->path);
    g_assert_true(node->options.cache_direct && node->options.read_only);
    AUTO(block_node) other =
        test_open("driver=host_device,node-name=h,filename=%s,aio=io_uring,aio-max-batch=8,"
                  "read-only=on,locking=off",
                  image->path);
    ASSERT_REFUSED("Cannot change the option 'aio-max-batch'",
                   "driver=host_device,node-name=h,filename=%s,aio=io_uring,read-only=on,"
                   "locking=off",
                   image->path);
    ASSERT_DONE("driver=host_device,node-name=h,filename=%s,aio=io_uring,aio-max-batch=8,"
                "read-only=on,locking=off,cache.direct=on",
                image->path);
    g_assert_true(other->options.cache_direct);
}

static void test_wrong(struct test_image *image, const void *unused)
{
    AUTO(block_node) node = test_open("driver=qcow2,node-name=q,l2-cache-size=1M,"
                                      "file.driver=file,file.node-name=f,file.filename=%s",
                                      image->path);
    AUTO(block_node) other = test_open("driver=null-co,node-name=n,size=1M");

    ASSERT_REFUSED("node-name not specified", "driver=qcow2,file=f");
    ASSERT_REFUSED("Failed to find node with node-name='x'", "driver=qcow2,file=f,node-name=x");
    ASSERT_REFUSED("Cannot change the option 'driver'", "driver=raw,file=f,node-name=q");
    ASSERT_REFUSED("Parameter 'file' is missing", "driver=qcow2,node-name=q,l2-cache-size=1M");
    ASSERT_REFUSED("Cannot change the option 'l2-cache-size'", "driver=qcow2,node-name=q,file=f");
    ASSERT_REFUSED("Parameter 'colour' is unexpected",
                   "driver=qcow2,node-name=q,l2-cache-size=1M,file=f,colour=red");
    ASSERT_REFUSED("Node 'q' cannot get another 'file' while it is open: give 'f'",
                   "driver=qcow2,node-name=q,l2-cache-size=1M,file=n");
    ASSERT_REFUSED(
        "Node 'q' cannot get another 'file' while it is open: give 'f'",
        "driver=qcow2,node-name=q,l2-cache-size=1M,file.driver=null-co,file.node-name=n");
    ASSERT_REFUSED("Cannot change the option 'filename'",
                   "driver=qcow2,node-name=q,l2-cache-size=1M,file.driver=file,file.filename=/x");
    ASSERT_REFUSED("Cannot change the option 'size'", "driver=null-co,node-name=n,size=2M");
    ASSERT_REFUSED("Node 'n' is given twice",
                   "driver=null-co,node-name=n,size=1M;driver=null-co,node-name=n,size=1M");
    /* All or nothing. */
    ASSERT_REFUSED("Cannot change the option 'driver'",
                   "driver=null-co,node-name=n,size=1M,read-only=on;driver=raw,node-name=q,file=f");
    g_assert_false(other->options.read_only);
    ASSERT_DONE("driver=null-co,node-name=n,size=1048576,read-only=on,latency-ns=1000;"
                "driver=qcow2,node-name=q,l2-cache-size=1024k,file=f,overlap-check=none");
    g_assert_true(other->options.read_only);
    ASSERT_DONE("driver=qcow2,node-name=q,l2-cache-size=1M,file=f");
}

/* A file that cannot be written, and may be read-only then. */
static void test_automatic(struct test_image *image, const void *unused)
{
    AUTO(block_node) null = test_open("driver=raw,node-name=m,read-only=on,auto-read-only=on,"
                                      "file.driver=null-co,file.read-only=on,file.node-name=n");

    ASSERT_REFUSED("node 'n' below it is read-only",
                   "driver=raw,node-name=m,file=n;driver=null-co,node-name=n,read-only=on");
    ASSERT_DONE("driver=raw,node-name=m,file=n,auto-read-only=on;"
                "driver=null-co,node-name=n,read-only=on");
    g_assert_true(null->options.read_only && null->options.auto_read_only);
    ASSERT_DONE("driver=raw,node-name=m,file=n,auto-read-only=on");
    g_assert_false(null->options.read_only || null->file->options.read_only);
}

/* ---- Backing files -------------------------------------------------------------------------- */

static uint8_t first_byte(struct block_node *node)
{
    uint8_t byte = 0;

    g_assert_cmpint(block_node_pread(node, &byte, 0, 1, 0), ==, 0);
    return byte;
}

static void test_backing(void)
{
    AUTO(block_node) one = test_open("driver=memory,node-name=one,size=1M");
    AUTO(block_node) two = test_open("driver=memory,node-name=two,size=1M");
    AUTO(block_node) disk = test_open("driver=raw,node-name=disk,file.driver=memory,"
                                      "file.node-name=data,file.size=1M");
    g_autofree char *directory = test_directory_new(true);
    g_autofree char *path = test_path(directory, "top.qcow2");

    memory_disk_data(one)[0] = 1;
    memory_disk_data(two)[0] = 2;
    test_command_succeeds("qemu-img create -q -f qcow2 %s 1M", path);
    AUTO(block_node) top = test_open("driver=qcow2,node-name=top,backing=one,file.driver=file,"
                                     "file.node-name=f,file.filename=%s",
                                     path);
    g_assert_cmpint(first_byte(top), ==, 1);
    ASSERT_REFUSED("backing is missing for 'top'", "driver=qcow2,node-name=top,file=f");
    ASSERT_DONE("driver=qcow2,node-name=top,file=f,backing=one,read-only=on");
    g_assert_cmpint(first_byte(top), ==, 1);
    ASSERT_DONE("driver=qcow2,node-name=top,file=f,backing=two");
    g_assert_cmpint(first_byte(top), ==, 2);
    ASSERT_REFUSED("create a cycle", "driver=qcow2,node-name=top,file=f,backing=top");
    ASSERT_REFUSED("Cannot find device='' nor node-name='x'",
                   "driver=qcow2,node-name=top,file=f,backing=x");
    ASSERT_REFUSED("'backing' is unexpected", "driver=raw,node-name=disk,file=data,backing=one");
    /* Somebody writes there. */
    struct block_claim writer = {
        .owner = g_strdup("a writer"), .perms = BLOCK_PERM_WRITE, .shared = BLOCK_PERM_ALL};
    g_assert_cmpint(block_claim_acquire(&writer, one, NULL), ==, 0);
    ASSERT_REFUSED("a writer", "driver=qcow2,node-name=top,file=f,backing=one,discard=unmap;"
                               "driver=raw,node-name=disk,file=data,read-only=on");
    g_assert_false(top->options.discard_unmap || disk->options.read_only);
    g_assert_cmpint(first_byte(top), ==, 2);
    block_claim_release(&writer);
    g_free(writer.owner);
    ASSERT_DONE("driver=qcow2,node-name=top,file=f,backing=");
    g_assert_null(top->backing);
    g_assert_cmpint(first_byte(top), ==, 0);
    ASSERT_DONE("driver=qcow2,node-name=top,file=f");
    ASSERT_DONE("driver=qcow2,node-name=top,file=f,backing=one,discard=unmap;"
                "driver=memory,node-name=two,read-only=on,size=1M");
    g_assert_cmpint(first_byte(top), ==, 1);
    g_assert_true(two->options.read_only && top->options.discard_unmap);
    block_node_unref(STEAL(top));
    test_directory_free(STEAL(directory));
}

/* What cannot be moved takes back what was moved before it. */
static void test_backing_taken_back(struct test_image *image, const void *unused)
{
    g_autofree char *second = test_path(image->directory, "second");
    AUTO(block_node) one = test_open("driver=memory,node-name=one,size=1M");
    AUTO(block_node) two = test_open("driver=memory,node-name=two,size=1M");

    test_command_succeeds("cp %s %s", image->path, second);
    AUTO(block_node) a = test_open("driver=qcow2,node-name=a,read-only=on,backing=one,"
                                   "file.driver=file,file.node-name=af,file.filename=%s",
                                   image->path);
    AUTO(block_node) b = test_open("driver=qcow2,node-name=b,backing=one,file.driver=file,"
                                   "file.node-name=bf,file.filename=%s",
                                   second);
    ASSERT_REFUSED("create a cycle", "driver=qcow2,node-name=a,file=af,backing=two,"
                                     "overlap-check=none;"
                                     "driver=qcow2,node-name=b,file=bf,backing=b,read-only=on");
    g_assert_true(a->backing == one && b->backing == one);
    g_assert_true(a->options.read_only && a->file->options.read_only);
    g_assert_false(b->options.read_only || b->file->options.read_only);
    g_autofree uint8_t *buffer = g_malloc0(LENGTH / 2);
    g_assert_cmpint(block_node_pwrite(b, buffer, 0, LENGTH / 2, 0), ==, 0);
    ASSERT_DONE("driver=qcow2,node-name=a,file=af,backing=two;"
                "driver=qcow2,node-name=b,file=bf,backing=two,read-only=on");
    g_assert_true(a->backing == two && b->backing == two);
    g_assert_cmpint(qemu_check(second, NULL, NULL), ==, IMAGE_CLEAN);
}

/* ---- While requests run --------------------------------------------------------------------- */

struct guest {
    struct block_device *device;
    _Atomic bool ends;
    _Atomic uint64_t rounds;
    uint8_t last[WRITERS]; /* what each wrote last; its own */
    unsigned next;         /* writer's number */
    pthread_mutex_t lock;
};

#define SHARE (LENGTH / WRITERS / (64 * KIB) * (64 * KIB))

/* Each fills a range of its own, all of it with one byte, and reads it back. */
static gpointer write_and_read(gpointer data)
{
    struct guest *guest = data;
    g_autofree uint8_t *buffer = g_malloc(SHARE), *wanted = g_malloc(SHARE);

    pthread_mutex_lock(&guest->lock);
    unsigned me = guest->next++;
    pthread_mutex_unlock(&guest->lock);
    for (uint8_t fill = 1; !atomic_load(&guest->ends); fill = fill == 255 ? 1 : fill + 1) {
        memset(wanted, fill, SHARE);
        g_assert_cmpint(block_device_pwrite(guest->device, wanted, me * SHARE, SHARE, 0), ==, 0);
        if (fill % 4 == 0) {
            g_assert_cmpint(block_device_flush(guest->device), ==, 0);
        }
        g_assert_cmpint(block_device_pread(guest->device, buffer, me * SHARE, SHARE), ==, 0);
        g_assert_cmpint(memcmp(buffer, wanted, SHARE), ==, 0);
        guest->last[me] = fill;
        atomic_fetch_add(&guest->rounds, 1);
    }
    return NULL;
}

static void wait_for_rounds(struct guest *guest, uint64_t count)
{
    uint64_t wanted = atomic_load(&guest->rounds) + count;

    while (atomic_load(&guest->rounds) < wanted) {
        g_usleep(100);
    }
}

/* Somebody asks in passing, as queries do. */
static gpointer look(gpointer data)
{
    struct guest *guest = data;

    while (!atomic_load(&guest->ends)) {
        AUTO(block_node) root = block_device_root(guest->device);

        g_assert_cmpint(block_node_get_allocated_size(root), >, 0);
        g_assert_false(block_device_is_read_only(guest->device));
        g_usleep(200);
    }
    return NULL;
}

static void test_writers(struct test_image *image, const void *unused)
{
    AUTO(block_node) node = test_open("driver=qcow2,node-name=q,file.driver=file,file.node-name=f,"
                                      "file.filename=%s",
                                      image->path);
    struct guest guest = {.device = block_device_new("vda", node, NULL),
                          .lock = PTHREAD_MUTEX_INITIALIZER};
    GThread *threads[WRITERS + 1];

    for (unsigned i = 0; i < WRITERS; i++) {
        threads[i] = g_thread_new("writer", write_and_read, &guest);
    }
    threads[WRITERS] = g_thread_new("looker", look, &guest);
    for (unsigned round = 0; round < 20; round++) {
        const char *on = round % 2 ? "on" : "off";

        ASSERT_DONE("driver=qcow2,node-name=q,file.driver=file,file.filename=%s,discard=unmap,"
                    "detect-zeroes=%s,cache.no-flush=%s,discard-no-unref=%s",
                    image->path, on, on, on);
        ASSERT_REFUSED("Read-only block node 'q' cannot support read-write users, and block device "
                       "'vda' writes to it",
                       "driver=qcow2,node-name=q,file=f,read-only=on");
        wait_for_rounds(&guest, 5);
    }
    atomic_store(&guest.ends, true);
    for (unsigned i = 0; i <= WRITERS; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpint(block_device_remove(guest.device), ==, 0);
    block_node_unref(STEAL(node));
    g_assert_cmpint(qemu_check(image->path, NULL, NULL), ==, IMAGE_CLEAN);
    for (unsigned i = 0; i < WRITERS; i++) {
        struct peer_read seen = {i * SHARE, SHARE, guest.last[i]};

        qemu_assert_reads(image->path, &seen, 1);
    }
}

/* Guests above only read; the node is written between the turns. Half of it never changes. */
static gpointer read_half(gpointer data)
{
    struct guest *guest = data;
    g_autofree uint8_t *buffer = g_malloc(LENGTH / 2);

    while (!atomic_load(&guest->ends)) {
        g_assert_cmpint(block_device_pread(guest->device, buffer, 0, LENGTH / 2), ==, 0);
        for (uint64_t i = 0; i < LENGTH / 2; i += 511) {
            g_assert_cmpint(buffer[i], ==, 17);
        }
        AUTO(block_node) root = block_device_root(guest->device);

        /* As queries do, in passing. */
        g_assert_cmpint(block_node_get_allocated_size(root), >, 0);
        g_assert_true(block_device_is_read_only(guest->device));
        atomic_fetch_add(&guest->rounds, 1);
    }
    return NULL;
}

static void test_readers(struct test_image *image, const void *unused)
{
    AUTO(block_node) node = NULL;
    g_autofree uint8_t *buffer = g_malloc(64 * KIB);
    g_autoptr(GError) error = NULL;
    GThread *threads[WRITERS];

    test_command_succeeds("qemu-io -f qcow2 -c 'write -P 17 0 4M' %s", image->path);
    node = test_open("driver=qcow2,node-name=q,read-only=on,l2-cache-entry-size=512,"
                     "file.driver=file,file.filename=%s",
                     image->path);
    struct guest guest = {.device = block_device_new("vda", node, NULL)};
    for (unsigned i = 0; i < WRITERS; i++) {
        threads[i] = g_thread_new("reader", read_half, &guest);
    }
    for (unsigned round = 0; round < 30; round++) {
        uint64_t at = LENGTH / 2 + round * 128 * KIB;

        block_node_set_read_only(node, false, &error);
        g_assert_no_error(error);
        memset(buffer, 100 + (int)round, 64 * KIB);
        g_assert_cmpint(block_node_pwrite(node, buffer, at, 64 * KIB, 0), ==, 0);
        wait_for_rounds(&guest, 3);
        block_node_set_read_only(node, true, &error);
        g_assert_no_error(error);
        struct peer_read seen = {at, 64 * KIB, (uint8_t)(100 + round)};
        if (round % 10 == 0) {
            g_assert_cmpint(qemu_check(image->path, NULL, NULL), ==, IMAGE_CLEAN);
            qemu_assert_reads(image->path, &seen, 1);
        }
    }
    atomic_store(&guest.ends, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpint(block_device_remove(guest.device), ==, 0);
    g_assert_cmpint(qemu_check(image->path, NULL, NULL), ==, IMAGE_CLEAN);
}

/* Two of them at one node: one waits for nobody and is told so; each gets its turn. */
static gpointer reopen_often(gpointer data)
{
    unsigned *done = data;

    for (unsigned i = 0; i < 200 || *done < 20; i++) {
        g_autofree char *message =
            reopen("driver=raw,node-name=r,file=n,read-only=%s", i % 2 ? "on" : "off");

        if (message) {
            g_assert_nonnull(strstr(message, "it is being reopened"));
        } else {
            ++*done;
        }
    }
    return NULL;
}

static void test_together(void)
{
    AUTO(block_node) node =
        test_open("driver=raw,node-name=r,file.driver=null-co,file.node-name=n");
    unsigned done[2] = {0};
    GThread *one = g_thread_new("one", reopen_often, &done[0]);
    GThread *two = g_thread_new("two", reopen_often, &done[1]);

    g_thread_join(one);
    g_thread_join(two);
    ASSERT_DONE("driver=raw,node-name=r,file=n");
    g_assert_false(node->options.read_only || node->file->options.read_only);
}

/* A filter is put above a file, and taken away; with all else that is given, or not at all. */
static void test_file(void)
{
    AUTO(block_node) low = test_open("driver=memory,node-name=low,size=1M");
    AUTO(block_node) other = test_open("driver=null-co,node-name=other,size=1M");
    AUTO(block_node) top = test_open("driver=raw,node-name=top,file=low");
    AUTO(block_node) more = test_open("driver=raw,node-name=more,file=other");
    struct throttle_limits none = {0};
    uint8_t data[512] = {1};

    g_assert_cmpint(throttle_group_create("g", &none, NULL), ==, 0);
    struct block_node *filter = test_open("driver=throttle,node-name=t,file=low,throttle-group=g");
    struct block_node *reader =
        test_open("driver=throttle,node-name=ro,file=other,throttle-group=g,read-only=on");
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", MIB, 64 * KIB, NULL);
    ASSERT_REFUSED("node-name='none'", "driver=raw,node-name=top,file=none");
    ASSERT_REFUSED("cannot get another 'file'", "driver=raw,node-name=top,file=other");
    ASSERT_REFUSED("'ro' is read-only",
                   "driver=raw,node-name=top,file=t;driver=raw,node-name=more,file=ro");
    g_assert_true(top->file == low);
    ASSERT_DONE("driver=raw,node-name=top,file=t,discard=unmap");
    g_assert_true(top->file == filter && top->options.discard_unmap);
    g_assert_cmpint(block_node_pwrite(top, data, 0, sizeof(data), 0), ==, 0);
    /* Writes that somebody follows may not go past him. */
    block_node_add_bitmap(filter, bitmap);
    ASSERT_REFUSED("Node 't' is busy: a job or a dirty bitmap follows",
                   "driver=raw,node-name=top,file=low,discard=ignore");
    g_assert_true(top->file == filter && top->options.discard_unmap);
    block_node_remove_bitmap(filter, bitmap);
    ASSERT_DONE("driver=raw,node-name=top,file=low");
    g_assert_true(top->file == low);
    g_assert_cmpuint(memory_disk_data(low)[0], ==, 1);
    dirty_bitmap_free(bitmap);
    block_node_unref(filter);
    block_node_unref(reader);
    g_assert_cmpint(throttle_group_delete("g"), ==, 0);
}

#define TEST(name, function)                                                                       \
    g_test_add("/reopen-options/" name, struct test_image, NULL, set_up, function,                 \
               test_image_remove)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    memory_drivers_register();
    TEST("common-options-change", test_common);
    TEST("aio-stays-and-needs-what-it-needs", test_aio);
    TEST("what-is-wrong-changes-nothing", test_wrong);
    TEST("automatic-nodes-stay-read-only-if-need-be", test_automatic);
    g_test_add_func("/reopen-options/another-backing-file", test_backing);
    g_test_add_func("/reopen-options/a-filter-above-the-file", test_file);
    TEST("backing-files-are-taken-back", test_backing_taken_back);
    TEST("guests-write-meanwhile", test_writers);
    TEST("guests-read-meanwhile", test_readers);
    g_test_add_func("/reopen-options/two-at-once", test_together);
    return g_test_run();
}
