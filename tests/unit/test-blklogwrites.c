/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver blklogwrites, whose log is read here as the kernel documents dm-log-writes. */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/graph.h"
#include "block/little-endian.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/random.h"

#define LENGTH MIB
#define SECTOR UINT64_C(512)

enum { FLUSH = 1, FUA = 2, DISCARD = 4 };

/* "logged" over the fault layers "disk" and "log", over files. */
struct rig {
    struct test_image image;
    char *log_path;
    struct block_node *logged, *disk, *log;
    uint8_t *model;
    uint8_t *replayed;
    GPtrArray *flushed; /* the model at each flush */
    uint64_t sector;    /* of the log */
};

static void open_nodes(struct rig *rig, const char *more)
{
    rig->logged = test_open("driver=blklogwrites,node-name=logged,discard=unmap,"
                            "file.driver=fault,file.node-name=disk,file.file.driver=file,"
                            "file.file.filename=%s,log.driver=fault,log.node-name=log,"
                            "log.file.driver=file,log.file.filename=%s%s",
                            rig->image.path, rig->log_path, more);
    rig->disk = rig->logged->file;
    rig->log = block_node_child(rig->logged, "log");
}

static void set_up(struct rig *rig, const void *more)
{
    test_image_make(&rig->image, LENGTH);
    rig->log_path = test_path(rig->image.directory, "log");
    test_make_file(rig->log_path, 0);
    rig->model = g_malloc0(LENGTH);
    rig->replayed = g_malloc0(LENGTH);
    rig->flushed = g_ptr_array_new_with_free_func(g_free);
    rig->sector = more && strstr(more, "4096") ? 4096 : SECTOR;
    open_nodes(rig, more ? more : "");
}

static void tear_down(struct rig *rig, const void *more)
{
    block_node_unref(STEAL(rig->logged));
    g_ptr_array_unref(rig->flushed);
    g_free(rig->replayed);
    g_free(rig->model);
    g_free(rig->log_path);
    test_image_remove(&rig->image, NULL);
}

/* ---- Reading the log ------------------------------------------------------------------------ */

/* What the log consists of: "write 0+512 fua; flush; discard 512+512", and its replay. */
static char *replay(struct rig *rig)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_autofree uint8_t *log = NULL;
    gsize bytes;

    g_assert_true(g_file_get_contents(rig->log_path, (char **)&log, &bytes, NULL));
    g_assert_cmphex(get_le64(log), ==, 0x6a736677736872);
    g_assert_cmpuint(get_le64(log + 8), ==, 1);
    g_assert_cmpuint(get_le32(log + 24), ==, rig->sector);
    memset(rig->replayed, 0, LENGTH);
    uint64_t at = rig->sector;
    unsigned flushes = 0;
    for (uint64_t i = get_le64(log + 16); i > 0; i--) {
        g_assert_cmpuint(at + rig->sector, <=, bytes);
        uint64_t offset = get_le64(log + at) * rig->sector;
        uint64_t length = get_le64(log + at + 8) * rig->sector;
        uint64_t flags = get_le64(log + at + 16);

        g_assert_cmpuint(get_le64(log + at + 24), ==, 0);
        at += rig->sector;
        g_string_append_printf(text, "%s%s", text->len ? "; " : "",
                               flags & FLUSH     ? "flush"
                               : flags & DISCARD ? "discard"
                                                 : "write");
        if (flags & FLUSH) {
            g_assert_cmpuint(length, ==, 0);
            if (flushes < rig->flushed->len) {
                test_assert_same(rig->replayed, g_ptr_array_index(rig->flushed, flushes), LENGTH);
            }
            flushes++;
            continue;
        }
        g_string_append_printf(text, " %" PRIu64 "+%" PRIu64 "%s", offset, length,
                               flags & FUA ? " fua" : "");
        g_assert_cmpuint(offset + length, <=, LENGTH);
        if (flags & DISCARD) {
            memset(rig->replayed + offset, 0, length);
            continue;
        }
        g_assert_cmpuint(at + length, <=, bytes);
        memcpy(rig->replayed + offset, log + at, length);
        at += length;
    }
    g_assert_cmpuint(flushes, >=, rig->flushed->len);
    return g_string_free(g_steal_pointer(&text), FALSE);
}

/* The log, brought to its end, makes the disk out of nothing. */
static void assert_log_makes_disk(struct rig *rig)
{
    g_autofree uint8_t *disk = g_malloc(LENGTH);

    g_assert_cmpint(block_node_flush(rig->logged), ==, 0);
    g_assert_cmpint(block_node_pread(rig->disk, disk, 0, LENGTH, 0), ==, 0);
    g_free(replay(rig));
    test_assert_same(rig->replayed, disk, LENGTH);
}

static int write_at(struct rig *rig, uint64_t offset, uint64_t bytes, int byte, unsigned flags)
{
    g_autofree uint8_t *data = g_malloc(bytes);

    memset(data, byte, bytes);
    return block_node_pwrite(rig->logged, data, offset, bytes, flags);
}

static void write_both(struct rig *rig, uint64_t offset, uint64_t bytes, int byte)
{
    g_assert_cmpint(write_at(rig, offset, bytes, byte, 0), ==, 0);
    memset(rig->model + offset, byte, bytes);
}

static void flush_both(struct rig *rig)
{
    uint64_t before = sharded_counter_sum(&rig->logged->write_generation);

    if (before > atomic_load(&rig->logged->flushed_generation)) { /* else it is not passed on */
        g_ptr_array_add(rig->flushed, g_memdup2(rig->model, LENGTH));
    }
    g_assert_cmpint(block_node_flush(rig->logged), ==, 0);
}

/* ---- What is logged ------------------------------------------------------------------------- */

static void test_entries(struct rig *rig, const void *more)
{
    struct block_node *node = rig->logged;

    write_both(rig, 4096, 1024, 1);
    write_both(rig, 100, 50, 2); /* in sectors */
    flush_both(rig);
    g_assert_cmpint(write_at(rig, 0, SECTOR, 3, BLOCK_REQUEST_FUA), ==, 0);
    memset(rig->model, 3, SECTOR);
    g_assert_cmpint(block_node_write_zeroes(node, 4096, SECTOR, BLOCK_REQUEST_MAY_UNMAP), ==, 0);
    memset(rig->model + 4096, 0, SECTOR);
    g_assert_cmpint(block_node_write_zeroes(node, 4096, SECTOR, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    g_assert_cmpint(block_node_discard(node, 4096 + SECTOR, SECTOR), ==, 0);
    memset(rig->model + 4096 + SECTOR, 0, SECTOR);
    flush_both(rig);
    g_autofree char *text = replay(rig);
    g_assert_cmpstr(text, ==,
                    "write 4096+1024; write 0+512; flush; write 0+512 fua; write 4096+512; "
                    "discard 4608+512; flush");
    test_assert_same(rig->replayed, rig->model, LENGTH);
}

static void test_sectors(struct rig *rig, const void *more)
{
    write_both(rig, 5000, 10, 1);
    write_both(rig, 8192, 8192, 2);
    flush_both(rig);
    g_autofree char *text = replay(rig);
    g_assert_cmpstr(text, ==, "write 4096+4096; write 8192+8192; flush");
    test_assert_same(rig->replayed, rig->model, LENGTH);
}

/* The disk need not end with a sector; in the log there are zeroes behind it. */
static void test_odd_end(struct rig *rig, const void *more)
{
    uint64_t end = 1000;

    block_node_unref(STEAL(rig->logged));
    test_make_file(rig->image.path, end);
    open_nodes(rig, more);
    g_assert_cmpuint(block_node_length(rig->logged), ==, end);
    write_both(rig, 0, end, 1);
    g_assert_cmpint(block_node_write_zeroes(rig->logged, 500, 500, 0), ==, 0);
    memset(rig->model + 500, 0, 500);
    g_assert_cmpint(block_node_discard(rig->logged, 100, 400), ==, 0); /* of no whole sector */
    write_both(rig, 999, 1, 2);
    FAULT(rig->disk, .operations = FAULT_ON(WRITE), .error_number = EIO);
    g_assert_cmpint(write_at(rig, 998, 1, 3, 0), ==, -EIO);
    fault_clear(rig->disk);
    g_assert_cmpint(block_node_flush(rig->logged), ==, 0);
    g_autofree char *text = replay(rig);
    g_assert_cmpstr(text, ==,
                    "write 0+512; write 512+512; write 0+512; write 512+512; write 512+512; "
                    "write 512+512; write 512+512; flush");
    test_assert_same(rig->replayed, rig->model, LENGTH);
    g_assert_cmpint(block_node_pread(rig->logged, rig->replayed, 0, end, 0), ==, 0);
    test_assert_same(rig->replayed, rig->model, end);
}

static void test_random_changes(struct rig *rig, const void *more)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned long i = test_cases(400); i > 0; i--) {
        uint64_t offset, bytes;

        test_random_range(&random, LENGTH, 1, 20 * KIB, &offset, &bytes);
        if (test_random_chance(&random, 10)) {
            flush_both(rig);
        } else if (test_random_chance(&random, 20)) {
            g_assert_cmpint(block_node_write_zeroes(rig->logged, offset, bytes, 0), ==, 0);
            memset(rig->model + offset, 0, bytes);
        } else {
            write_both(rig, offset, bytes, (int)test_random_below(&random, 256));
        }
    }
    assert_log_makes_disk(rig);
    test_assert_same(rig->replayed, rig->model, LENGTH);
}

/* Without a flush: what is counted after two entries each is there for who replays the log. */
static void test_interval(struct rig *rig, const void *more)
{
    write_both(rig, 0, SECTOR, 1);
    g_autofree char *none = replay(rig);
    g_assert_cmpstr(none, ==, "");
    write_both(rig, SECTOR, SECTOR, 1);
    write_both(rig, 2 * SECTOR, SECTOR, 1);
    g_autofree char *two = replay(rig);
    g_assert_cmpstr(two, ==, "write 0+512; write 512+512");
}

/* ---- Many writers --------------------------------------------------------------------------- */

struct writer {
    struct rig *rig;
    struct test_random random;
    GThread *thread;
};

/* They write to the same few sectors: the log has the writes in the disk's order. */
static gpointer write_often(gpointer data)
{
    struct writer *writer = data;

    for (unsigned i = 0; i < 8; i++) {
        uint64_t offset, bytes;
        int byte = (int)test_random_below(&writer->random, 256);

        test_random_range(&writer->random, 8 * SECTOR, SECTOR, 4 * SECTOR, &offset, &bytes);
        if (test_random_chance(&writer->random, 5)) {
            g_assert_cmpint(block_node_flush(writer->rig->logged), ==, 0);
        }
        unsigned flags = test_random_chance(&writer->random, 5) ? BLOCK_REQUEST_FUA : 0;
        int status = byte < 20 ? block_node_write_zeroes(writer->rig->logged, offset, bytes, flags)
                               : write_at(writer->rig, offset, bytes, byte, flags);
        g_assert_cmpint(status, ==, 0);
    }
    return NULL;
}

static void write_together(struct rig *rig, struct test_random *random)
{
    struct writer writers[4];

    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++) {
        writers[i] = (struct writer){rig, test_random_split(random), NULL};
        writers[i].thread = g_thread_new("writer", write_often, &writers[i]);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++) {
        g_thread_join(writers[i].thread);
    }
    assert_log_makes_disk(rig);
}

/* Which of two came last is seen only as long as no other comes: so many short rounds. */
static void test_writers(struct rig *rig, const void *more)
{
    struct test_random random = test_random_new(test_seed());

    FAULT(rig->disk, .operations = FAULT_ON_CHANGES, .percent = 30, .delay_ns = 200000);
    for (uint64_t i = test_amount(60); i > 0; i--) {
        write_together(rig, &random);
    }
}

/* ---- Faults --------------------------------------------------------------------------------- */

/* A write that fails is logged as what the disk holds then. */
static void test_disk_fails(struct rig *rig, const void *more)
{
    write_both(rig, 0, 8 * SECTOR, 1);
    FAULT(rig->disk, .operations = FAULT_ON_CHANGES, .error_number = EIO);
    g_assert_cmpint(write_at(rig, SECTOR, SECTOR, 2, 0), ==, -EIO);
    g_assert_cmpint(block_node_write_zeroes(rig->logged, 2 * SECTOR, SECTOR, 0), ==, -EIO);
    g_assert_cmpint(block_node_discard(rig->logged, 3 * SECTOR, SECTOR), ==, -EIO);
    fault_clear(rig->disk);
    assert_log_makes_disk(rig);
    test_assert_same(rig->replayed, rig->model, LENGTH);
    FAULT(rig->disk, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    write_both(rig, SECTOR, SECTOR, 2);
    g_assert_cmpint(block_node_flush(rig->logged), ==, -EIO);
    fault_clear(rig->disk);
    write_both(rig, 2 * SECTOR, SECTOR, 3);
    assert_log_makes_disk(rig);
    g_autofree char *text = replay(rig);
    g_assert_true(g_str_has_suffix(text, "flush; write 512+512; write 1024+512; flush"));
}

/* What cannot be logged does not happen; the log has no hole. */
static void test_log_fails(struct rig *rig, const void *more)
{
    write_both(rig, 0, 8 * SECTOR, 1);
    for (unsigned skip = 0; skip < 2; skip++) { /* the entry, and its data */
        FAULT(rig->log, .operations = FAULT_ON(WRITE), .skip = skip, .error_number = ENOSPC);
        g_assert_cmpint(write_at(rig, SECTOR, SECTOR, 2, 0), ==, -ENOSPC);
        fault_clear(rig->log);
        assert_log_makes_disk(rig);
        test_assert_same(rig->replayed, rig->model, LENGTH);
    }
    write_both(rig, SECTOR, SECTOR, 2);
    FAULT(rig->log, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    g_assert_cmpint(block_node_flush(rig->logged), ==, -EIO);
    g_assert_cmpint(write_at(rig, 0, SECTOR, 2, BLOCK_REQUEST_FUA), ==, -EIO);
    memset(rig->model, 2, SECTOR);
    fault_clear(rig->log);
    assert_log_makes_disk(rig);
    test_assert_same(rig->replayed, rig->model, LENGTH);
}

/* ---- Logs that are there -------------------------------------------------------------------- */

static char *open_error(struct rig *rig, const char *more)
{
    return test_open_error("driver=blklogwrites,node-name=x,file.driver=file,file.filename=%s,"
                           "log.driver=file,log.filename=%s,log.node-name=l%s",
                           rig->image.path, rig->log_path, more);
}

static void change_log(struct rig *rig, uint64_t at, uint64_t value)
{
    AUTO(block_node) file = test_open("driver=file,filename=%s,node-name=f", rig->log_path);
    uint8_t bytes[8];

    put_le64(bytes, value);
    g_assert_cmpint(block_node_pwrite(file, bytes, at, sizeof(bytes), 0), ==, 0);
}

static void test_append(struct rig *rig, const void *more)
{
    write_both(rig, 0, 2 * SECTOR, 1);
    g_assert_cmpint(block_node_discard(rig->logged, SECTOR, SECTOR), ==, 0);
    block_node_unref(STEAL(rig->logged)); /* which brings the log to its end */
    g_autofree char *first = replay(rig);
    g_assert_true(g_str_has_prefix(first, "write 0+1024; discard 512+512"));
    open_nodes(rig, ",log-append=on");
    write_both(rig, 8 * SECTOR, SECTOR, 2);
    assert_log_makes_disk(rig);
    g_autofree char *second = replay(rig);
    g_autofree char *wanted = g_strdup_printf("%s; write 4096+512; flush", first);
    g_assert_cmpstr(second, ==, wanted);
    block_node_unref(STEAL(rig->logged));

    g_autofree char *sectors = open_error(rig, ",log-append=on,log-sector-size=4096");
    g_assert_cmpstr(sectors, ==,
                    "The log in node 'l' has sectors of 512 bytes: give log-sector-size=512 to "
                    "append to it");
    change_log(rig, 16, 1000); /* entries */
    g_autofree char *short_log = open_error(rig, ",log-append=on");
    g_assert_nonnull(strstr(short_log, "The log in node 'l' is damaged: it ends at"));
    change_log(rig, SECTOR + 8, UINT64_MAX / 2); /* sectors of the first entry */
    g_autofree char *far = open_error(rig, ",log-append=on");
    g_assert_nonnull(strstr(far, "entry 0 goes beyond"));
    change_log(rig, 8, 2);
    g_autofree char *version = open_error(rig, ",log-append=on");
    g_assert_nonnull(strstr(version, "is of version 2"));
    change_log(rig, 0, 0);
    g_autofree char *none = open_error(rig, ",log-append=on");
    g_assert_nonnull(strstr(none, "There is no log of writes in node 'l'"));
    open_nodes(rig, ""); /* a new one */
    write_both(rig, 0, SECTOR, 1);
    g_assert_cmpint(block_node_flush(rig->logged), ==, 0);
    g_autofree char *new_log = replay(rig);
    g_assert_cmpstr(new_log, ==, "write 0+512; flush");
}

static void test_reopen(struct rig *rig, const void *more)
{
    write_both(rig, 0, SECTOR, 1);
    g_assert_cmpstr(
        test_reopen_node("driver=blklogwrites,node-name=logged,file=disk,log=log,read-only=on"), ==,
        NULL);
    g_assert_cmpint(write_at(rig, 0, SECTOR, 2, 0), ==, -EPERM);
    g_autofree char *text = replay(rig);
    g_assert_cmpstr(text, ==, "write 0+512; flush");
    g_assert_cmpstr(test_reopen_node("driver=blklogwrites,node-name=logged,file=disk,log=log"), ==,
                    NULL);
    write_both(rig, SECTOR, SECTOR, 2);
    assert_log_makes_disk(rig);
    test_assert_same(rig->replayed, rig->model, LENGTH);
    g_autofree char *other = test_reopen_node(
        "driver=blklogwrites,node-name=logged,file=disk,log=log,log-sector-size=4096");
    g_assert_cmpstr(other, ==, "Cannot change the option 'log-sector-size'");
}

/* Who is opened to be read leaves the log alone. */
static void test_read_only(struct rig *rig, const void *more)
{
    write_both(rig, 0, SECTOR, 1);
    block_node_unref(STEAL(rig->logged));
    g_autofree char *before = replay(rig);
    open_nodes(rig, ",read-only=on");
    g_autofree char *after = replay(rig);
    g_assert_cmpstr(after, ==, before);
}

static void test_refusals(struct rig *rig, const void *more)
{
    static const char *const wrong[][2] = {
        {",log-sector-size=1000", "log-sector-size must be a power of 2 from 512 to 8388608 bytes"},
        {",log-sector-size=256", "log-sector-size must be a power of 2 from 512 to 8388608 bytes"},
        {",log-sector-size=16M", "log-sector-size must be a power of 2 from 512 to 8388608 bytes"},
        {",log-super-update-interval=0", "log-super-update-interval must be at least 1"},
    };

    block_node_unref(STEAL(rig->logged));
    AUTO(block_node) d = test_open("driver=file,node-name=d,filename=%s", rig->image.path);
    AUTO(block_node) l = test_open("driver=file,node-name=l,filename=%s", rig->log_path);
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *error =
            test_open_error("driver=blklogwrites,node-name=x,file=d,log=l%s", wrong[i][0]);

        g_assert_cmpstr(error, ==, wrong[i][1]);
    }
    AUTO(block_node) same_disk = test_open("driver=fault,node-name=same,file=d");
    g_autofree char *same = test_open_error("driver=blklogwrites,node-name=x,file=d,log=same");
    block_node_unref(STEAL(same_disk));
    g_assert_cmpstr(same, ==, "'file' and 'log' cannot be the same");
    rig->logged = test_open("driver=blklogwrites,node-name=x,file=d,log=l");
    g_autoptr(GError) error = NULL;
    g_assert_cmpint(block_node_check_steady(l, &error), ==, -EBUSY); /* no bitmaps on the log */
    g_assert_cmpint(block_node_check_steady(d, NULL), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
#define ADD(path, more, test)                                                                      \
    g_test_add("/blklogwrites/" path, struct rig, more, set_up, test, tear_down)
    ADD("entries", NULL, test_entries);
    ADD("sectors-of-4096", ",log-sector-size=4096", test_sectors);
    ADD("a-disk-that-ends-in-a-sector", "", test_odd_end);
    ADD("anything/sectors-of-512", NULL, test_random_changes);
    ADD("anything/sectors-of-4096", ",log-sector-size=4096", test_random_changes);
    ADD("counted-after-an-interval", ",log-super-update-interval=2", test_interval);
    ADD("overlapping-writers", NULL, test_writers);
    ADD("a-disk-that-fails", NULL, test_disk_fails);
    ADD("a-log-that-fails", NULL, test_log_fails);
    ADD("append", NULL, test_append);
    ADD("reopen", NULL, test_reopen);
    ADD("read-only", NULL, test_read_only);
    ADD("refusals", NULL, test_refusals);
    return g_test_run();
}
