/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing what a qcow2 image is: the disk and its snapshots stay what they are, and QEMU agrees.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define LENGTH (256 * KIB)

/* ---- Images --------------------------------------------------------------------------------- */

static struct block_node *open_image(const char *path)
{
    return test_open("driver=qcow2,discard=unmap,file.driver=file,file.discard=unmap,"
                     "file.filename=%s",
                     path);
}

static int amend(struct block_node *node, const char *text, GError **error)
{
    AUTO(block_options) options = block_options_parse(text, NULL, error);

    g_assert_nonnull(options);
    return block_node_amend(node, options, NULL, NULL, error);
}

static void must_amend(struct block_node *node, const char *text)
{
    g_autoptr(GError) error = NULL;

    amend(node, text, &error);
    g_assert_no_error(error);
}

static void assert_contents(struct block_node *node, const uint8_t *wanted, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    g_assert_cmpuint(block_node_length(node), ==, bytes);
    g_assert_cmpint(block_node_pread(node, buffer, 0, bytes, 0), ==, 0);
    test_assert_same(buffer, wanted, bytes);
}

/* Change the disk and the model of it at random: data, zeroes, discards. */
static void change_some(struct test_random *random, struct block_node *node, uint8_t *model,
                        uint64_t length, unsigned count)
{
    g_autofree uint8_t *data = g_malloc(length);

    for (unsigned i = 0; i < count; i++) {
        uint64_t offset, bytes, dice = test_random_below(random, 10);

        test_random_range(random, length, 512, 32 * KIB, &offset, &bytes);
        if (dice < 5) {
            memset(data, (int)(1 + test_random_below(random, 255)), bytes);
            g_assert_cmpint(block_node_pwrite(node, data, offset, bytes, 0), ==, 0);
            memcpy(model + offset, data, bytes);
        } else if (dice < 9) {
            unsigned flags = dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0;

            g_assert_cmpint(block_node_write_zeroes(node, offset, bytes, flags), ==, 0);
            memset(model + offset, 0, bytes);
        } else {
            g_assert_cmpint(block_node_discard(node, offset, bytes), ==, 0);
            g_assert_cmpint(block_node_pread(node, model + offset, offset, bytes, 0), ==, 0);
        }
    }
}

static void take_snapshot(struct block_node *node, const char *name)
{
    struct block_snapshot_info info = {.name = (char *)name, .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;

    block_node_snapshot_create(node, &info, &error);
    g_assert_no_error(error);
}

/* Our own check finds no damage; leaks only if there may be some. */
static void judge_own(struct test_image *image, bool may_leak)
{
    enum image_verdict verdict = own_check(image->path);

    g_assert_true(verdict == IMAGE_CLEAN || (may_leak && verdict == IMAGE_LEAKS));
}

static void assert_snapshot(struct test_image *image, const uint8_t *snapshot)
{
    g_autofree uint8_t *buffer = g_malloc(LENGTH);
    AUTO(block_node) node = test_open(
        "driver=qcow2,read-only=on,snapshot=then,file.driver=file,file.filename=%s", image->path);

    g_assert_cmpint(block_node_pread(node, buffer, 0, LENGTH, 0), ==, 0);
    test_assert_same(buffer, snapshot, LENGTH);
}

/* QEMU's programs take far longer to start than all else here: they judge some of many cases. */
static bool asks_qemu(struct test_random *random)
{
    return test_random_chance(random, 20);
}

/* We, and if it is asked QEMU, find nothing wrong, and the same disk and snapshots. */
static void judge(struct test_image *image, const uint8_t *disk, uint64_t bytes,
                  const uint8_t *snapshot, bool is_asked)
{
    g_autofree char *raw = test_path(image->directory, "raw");
    AUTO(block_node) node = open_image(image->path);

    assert_contents(node, disk, bytes);
    block_node_unref(STEAL(node));
    judge_own(image, false);
    if (snapshot) {
        assert_snapshot(image, snapshot);
    }
    if (!is_asked) {
        return;
    }
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
    g_assert_true(g_file_set_contents(raw, (const char *)disk, (gssize)bytes, NULL));
    test_command_succeeds("qemu-img compare -q -f qcow2 -F raw %s %s", image->path, raw);
    if (snapshot) {
        g_autofree char *copy = test_path(image->directory, "copy");

        g_assert_true(g_file_set_contents(raw, (const char *)snapshot, LENGTH, NULL));
        test_command_succeeds("qemu-img convert -l snapshot.name=then -f qcow2 -O raw %s %s",
                              image->path, copy);
        test_command_succeeds("qemu-img compare -q -f raw -F raw %s %s", copy, raw);
    }
}

static void make(struct test_image *image, const char *options)
{
    g_autofree char *backing = test_path(image->directory, "backing");
    g_autofree uint8_t *contents = g_malloc(LENGTH);

    memset(contents, 0xbb, LENGTH);
    g_assert_true(g_file_set_contents(backing, (char *)contents, LENGTH, NULL));
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, image->path,
                          LENGTH);
}

/* ---- Versions ------------------------------------------------------------------------------- */

/* Down and up again, with zero clusters of all kinds, and a snapshot that shares tables. */
static void test_versions(struct test_image *image, const void *unused)
{
    static const char *const kinds[] = {
        "cluster_size=512", "cluster_size=4k,preallocation=metadata",
        "cluster_size=4k,backing_file=backing,backing_fmt=raw",
        "cluster_size=64k,backing_file=backing,backing_fmt=raw,lazy_refcounts=on"};
    struct test_random random = test_random_new(test_seed());

    for (unsigned i = 0; i < 16; i++) {
        bool is_asked = i < 4 || asks_qemu(&random);
        const char *kind = kinds[i % G_N_ELEMENTS(kinds)];
        g_autofree uint8_t *disk = g_malloc0(LENGTH);
        g_autofree uint8_t *then = g_malloc0(LENGTH);
        bool has_snapshot = i & 4;

        memset(disk, strstr(kind, "backing") ? 0xbb : 0, LENGTH);
        make(image, kind);
        AUTO(block_node) node = open_image(image->path);
        change_some(&random, node, disk, LENGTH, 20);
        if (has_snapshot) {
            take_snapshot(node, "then");
            memcpy(then, disk, LENGTH);
            change_some(&random, node, disk, LENGTH, i & 8 ? 10 : 0);
        }
        must_amend(node, "version=v2,lazy-refcounts=off");
        assert_contents(node, disk, LENGTH);
        change_some(&random, node, disk, LENGTH, 10);
        block_node_unref(STEAL(node));
        judge(image, disk, LENGTH, has_snapshot ? then : NULL, is_asked);
        if (is_asked) {
            g_autofree char *info = test_command_output("qemu-img info %s", image->path);

            g_assert_nonnull(strstr(info, "compat: 0.10"));
        }
        node = open_image(image->path);
        must_amend(node, "version=v3");
        change_some(&random, node, disk, LENGTH, 10);
        assert_contents(node, disk, LENGTH);
        block_node_unref(STEAL(node));
        judge(image, disk, LENGTH, has_snapshot ? then : NULL, is_asked);
    }
}

/* ---- Refcounts ------------------------------------------------------------------------------ */

static void test_widths(struct test_image *image, const void *unused)
{
    struct test_random random = test_random_new(test_seed());
    unsigned bits = 16;
    g_autofree uint8_t *disk = g_malloc0(LENGTH);
    g_autofree uint8_t *then = g_malloc0(LENGTH);

    for (unsigned cluster = 512; cluster <= 4096; cluster *= 8) {
        g_autofree char *options = g_strdup_printf("cluster_size=%u", cluster);

        memset(disk, 0, LENGTH);
        make(image, options);
        for (unsigned i = 0; i < 12; i++) {
            AUTO(block_node) node = open_image(image->path);
            unsigned wanted = 1u << test_random_below(&random, 7);
            g_autofree char *text = g_strdup_printf("refcount-bits=%u", wanted);
            g_autoptr(GError) error = NULL;

            if (i == 6) {
                must_amend(node, "refcount-bits=2");
                memset(disk + LENGTH - 512, 0x99, 512);
                g_assert_cmpint(block_node_pwrite(node, disk + LENGTH - 512, LENGTH - 512, 512, 0),
                                ==, 0);
                take_snapshot(node, "then");
                memcpy(then, disk, LENGTH);
            }
            int status = amend(node, text, &error);
            if (i >= 6 && wanted == 1) { /* snapshots share clusters */
                g_assert_cmpint(status, ==, -EINVAL);
                g_assert_nonnull(strstr(error->message, "has a refcount of 2"));
            } else {
                g_assert_no_error(error);
                bits = wanted;
            }
            change_some(&random, node, disk, i >= 6 ? LENGTH / 2 : LENGTH, 10);
            assert_contents(node, disk, LENGTH);
            block_node_unref(STEAL(node));
            bool is_asked = i % 6 == 5 || asks_qemu(&random);
            judge(image, disk, LENGTH, i >= 6 ? then : NULL, is_asked);
            if (!is_asked || (i >= 6 && wanted == 1)) {
                continue;
            }
            g_autofree char *info = test_command_output("qemu-img info %s", image->path);
            g_autofree char *line = g_strdup_printf("refcount bits: %u\n", bits);
            g_assert_nonnull(strstr(info, line));
        }
    }
}

static bool stop(void *data, uint64_t done, uint64_t total)
{
    unsigned *left = data;

    g_assert_cmpuint(done, <=, total);
    return *left && --*left;
}

static void judge_loss(struct test_image *image, const uint8_t *disk, const uint8_t *snapshot,
                       bool is_asked);

/* Stopped at any step: the image is as it was, and nothing is lost. Few steps are over before. */
static void test_stopping(struct test_image *image, const void *unused)
{
    static const char *const texts[] = {"refcount-bits=64", "version=v2"};
    struct test_random random = test_random_new(test_seed());

    for (unsigned i = 0; i < 12; i++) {
        g_autofree uint8_t *disk = g_malloc(LENGTH);
        AUTO(block_options) options = block_options_parse(texts[i % 2], NULL, NULL);
        g_autoptr(GError) error = NULL;
        unsigned left = 1 + i / 4;

        memset(disk, 0xbb, LENGTH);
        make(image, "cluster_size=512,backing_file=backing,backing_fmt=raw");
        AUTO(block_node) node = open_image(image->path);
        change_some(&random, node, disk, LENGTH, 20);
        int status = block_node_amend(node, options, stop, &left, &error);
        assert_contents(node, disk, LENGTH);
        if (left) {
            g_assert_no_error(error);
            g_assert_cmpint(status, ==, 0);
            continue;
        }
        g_assert_cmpint(status, ==, -ECANCELED);
        block_node_unref(STEAL(node));
        judge(image, disk, LENGTH, NULL, i < 2);
        g_autofree char *info = test_command_output("qemu-img info %s", image->path);
        g_assert_nonnull(strstr(info, "compat: 1.1"));
        g_assert_nonnull(strstr(info, "refcount bits: 16\n"));
    }
}

/* Each write or flush fails once. Nothing is called damage, and what was changed is as it says. */
static void test_failures(struct test_image *image, const void *unused)
{
    static const char *const changes[] = {"refcount-bits=64", "version=v2"};
    g_autofree uint8_t *disk = g_malloc(LENGTH);
    struct test_random random = test_random_new(test_seed());

    g_autofree char *fresh = NULL;
    gsize fresh_bytes;

    make(image, "cluster_size=1k,backing_file=backing,backing_fmt=raw");
    g_assert_true(g_file_get_contents(image->path, &fresh, &fresh_bytes, NULL));
    for (unsigned i = 0; i < 2 * G_N_ELEMENTS(changes); i++) {
        bool is_over = false;

        for (uint64_t skip = 0; !is_over; skip += test_stride(&random)) {
            memset(disk, 0xbb, LENGTH);
            g_assert_true(g_file_set_contents(image->path, fresh, (gssize)fresh_bytes, NULL));
            AUTO(block_node) node = test_open("driver=qcow2,discard=unmap,file.driver=fault,"
                                              "file.node-name=bad,file.file.driver=file,"
                                              "file.file.filename=%s",
                                              image->path);
            AUTO(block_node) bad = block_node_find("bad");
            g_autoptr(GError) error = NULL;

            change_some(&random, node, disk, LENGTH, 3);
            FAULT(bad, .operations = i & 1 ? FAULT_ON(FLUSH) : FAULT_ON(WRITE),
                  .skip = (unsigned)skip, .count = 1, .error_number = EIO);
            int status = amend(node, changes[i / 2], &error);
            is_over = fault_hits(bad) == 0;
            fault_clear(bad);
            g_assert_true(status == 0 || !is_over);
            assert_contents(node, disk, LENGTH);
            change_some(&random, node, disk, LENGTH, 3);
            block_node_unref(STEAL(bad));
            block_node_unref(STEAL(node));
            judge_loss(image, disk, NULL, asks_qemu(&random));
        }
    }
}

/* ---- Names, features, refusals -------------------------------------------------------------- */

/* Another name each time, longer and shorter, in clusters with room and without. */
static void test_backing_names(struct test_image *image, const void *unused)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned cluster = 512; cluster <= 65536; cluster *= 2) {
        g_autofree char *options = g_strdup_printf("cluster_size=%u", cluster);

        make(image, options);
        for (unsigned i = 0; i < 8; i++) {
            AUTO(block_node) node =
                test_open("driver=qcow2,backing=,file.driver=file,file.filename=%s", image->path);
            g_autofree char *name =
                g_strnfill(1 + test_random_below(&random, 1023), (char)('a' + i));
            g_autoptr(GError) error = NULL;
            bool has_room = cluster >= 2048 || strlen(name) < cluster - 350;

            if (!has_room) {
                name[cluster - 350] = 0;
            }
            block_node_change_backing_file(node, i == 5 ? NULL : name, i == 5 ? NULL : "raw",
                                           &error);
            g_assert_no_error(error);
            block_node_unref(STEAL(node));
            g_autofree char *info = test_command_output("qemu-img info %s", image->path);
            g_autofree char *line = g_strdup_printf("backing file: %s", name);
            g_assert_cmpint(i != 5, ==, !!strstr(info, line));
            g_assert_cmpint(i != 5, ==, !!strstr(info, "backing file format: raw"));
        }
    }
}

static void test_features(struct test_image *image, const void *unused)
{
    g_autofree char *data = test_path(image->directory, "data");
    g_autofree char *options = g_strdup_printf("data_file=%s,data_file_raw=on", data);
    g_autofree char *other = test_path(image->directory, "other");
    g_autofree char *text = g_strdup_printf("data-file-raw=off,data-file=%s", other);

    make(image, "lazy_refcounts=off");
    AUTO(block_node) node = open_image(image->path);
    must_amend(node, "lazy-refcounts=on");
    g_assert_cmpint(block_node_pwrite(node, options, 0, 16, 0), ==, 0);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    must_amend(node, "lazy-refcounts=off");
    test_command_succeeds("qemu-img check -q -U -f qcow2 %s", image->path);
    block_node_unref(STEAL(node));
    g_autofree char *info = test_command_output("qemu-img info %s", image->path);
    g_assert_nonnull(strstr(info, "lazy refcounts: false"));
    make(image, options);
    node = open_image(image->path);
    must_amend(node, text);
    block_node_unref(STEAL(node));
    test_command_succeeds("mv %s %s", data, other);
    g_autofree char *more = test_command_output("qemu-img info %s", image->path);
    g_assert_nonnull(strstr(more, "data file raw: false"));
    g_assert_nonnull(strstr(more, other));
    test_command_succeeds("qemu-img check -q -f qcow2 %s", image->path);
}

static void test_refusals(struct test_image *image, const void *unused)
{
    static const struct {
        const char *image;
        const char *options;
        const char *reason;
    } cases[] = {
        {"compat=1.1", "refcount-bits=3", "power of two"},
        {"compat=1.1", "refcount-bits=128", "may not exceed 64 bits"},
        {"compat=1.1", "data-file=x", "only be set for images that use an external data file"},
        {"compat=1.1", "data-file-raw=on", "cannot be set on existing images"},
        {"compat=1.1", "backing-fmt=raw", "cannot be used without backing file"},
        {"compat=1.1", "version=v2,refcount-bits=8", "16-bit refcounts only"},
        {"compat=1.1", "version=v2,lazy-refcounts=on", "no lazy refcounts"},
        {"compat=1.1", "size=1M", "'size' is unexpected"},
        {"compat=1.1,refcount_bits=8", "version=v2", "16-bit refcounts only"},
        {"compat=1.1,extended_l2=on", "version=v2", "features that it does not know"},
        {"compat=1.1,compression_type=zstd", "version=v2", "features that it does not know"},
        {"compat=0.10", "refcount-bits=64", "16-bit refcounts only"},
        {"compat=0.10", "lazy-refcounts=on", "no lazy refcounts"},
        {"cluster_size=512", "backing-fmt=raw,backing-file=%s", "does not fit"},
        {"compat=1.1", "cluster-size=4k", "'cluster-size' is unexpected"},
    };
    g_autofree char *long_name = g_strnfill(600, 'n');

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_auto(GStrv) parts = g_strsplit(cases[i].options, "%s", -1);
        g_autofree char *options = g_strjoinv(long_name, parts);
        g_autofree char *before = NULL, *after = NULL;
        g_autoptr(GError) error = NULL;
        gsize before_bytes, after_bytes;

        make(image, cases[i].image);
        g_assert_true(g_file_get_contents(image->path, &before, &before_bytes, NULL));
        AUTO(block_node) node = open_image(image->path);
        g_assert_cmpint(amend(node, options, &error), <, 0);
        if (!strstr(error->message, cases[i].reason)) {
            g_error("%s: %s", options, error->message);
        }
        block_node_unref(STEAL(node));
        g_assert_true(g_file_get_contents(image->path, &after, &after_bytes, NULL));
        g_assert_cmpmem(before, before_bytes, after, MIN_OF(after_bytes, before_bytes));
    }
}

/* ---- Loss of power -------------------------------------------------------------------------- */

/* What is done to an image, and may be lost in the middle. */
struct change {
    const char *image;
    const char *options; /* of an amendment; NULL: resize it there and back */
    bool has_snapshot;
    unsigned image_dots, options_dots; /* how long a name of the backing file to add */
};

/* A name of the backing file. */
static char *dotted(const char *before, unsigned dots)
{
    GString *name = g_string_new(before);

    for (unsigned i = 0; i < dots; i++) {
        g_string_append(name, "./");
    }
    return g_string_free(g_string_append(name, dots ? "backing" : ""), FALSE);
}

static void run_change(struct block_node *node, const struct change *change)
{
    if (change->options) {
        g_autofree char *options = dotted(change->options, change->options_dots);

        amend(node, options, NULL);
    } else if (block_node_set_length(node, 16 * MIB, BLOCK_PREALLOCATION_OFF, NULL) == 0 &&
               block_node_set_length(node, LENGTH, BLOCK_PREALLOCATION_OFF, NULL) == 0) {
        block_node_flush(node);
    }
}

/* With power lost at a write (0: not at all). Returns how many writes there were. */
static uint64_t change_once(const struct change *change, const char *path, uint64_t at_write,
                            struct test_random *chaos)
{
    struct block_node *node =
        test_open("driver=qcow2,discard=unmap,file.driver=lose-writes,file.node-name=power,"
                  "file.discard=unmap,file.file.driver=file,file.file.filename=%s",
                  path);
    AUTO(block_node) power = block_node_find("power");
    struct lose_writes_plan plan = {
        .probability = 20 + test_random_below(chaos, 81),
        .tear = test_random_chance(chaos, 50) ? 512 : 0,
        .seed = test_random_u64(chaos),
        .end = LOSE_WRITES_END_NODE,
    };
    struct lose_writes_status status;

    if (at_write) {
        g_assert_cmpint(lose_writes_arm(power, at_write, &plan, NULL), ==, 0);
    }
    run_change(node, change);
    g_assert_cmpint(lose_writes_get_status(power, &status, NULL), ==, 0);
    uint64_t writes = status.writes;
    lose_writes_status_clear(&status);
    block_node_unref(node);
    return writes;
}

/* The image opens, is not corrupt, and shows what it showed. */
static void judge_loss(struct test_image *image, const uint8_t *disk, const uint8_t *snapshot,
                       bool is_asked)
{
    int status = is_asked ? test_command(NULL, "qemu-img check -f qcow2 %s", image->path) : 0;
    g_autofree uint8_t *buffer = g_malloc(LENGTH);

    if (status != 0 && status != 3) {
        g_error("qemu-img check says %d", status);
    }
    judge_own(image, true);
    AUTO(block_node) node = open_image(image->path);
    uint64_t length = block_node_length(node);
    g_assert_true(length == LENGTH || length == 16 * MIB);
    g_assert_cmpint(block_node_pread(node, buffer, 0, LENGTH, 0), ==, 0);
    g_assert_cmpmem(buffer, LENGTH, disk, LENGTH);
    for (uint64_t at = LENGTH; at < length; at += LENGTH) {
        g_assert_cmpint(block_node_pread(node, buffer, at, LENGTH, 0), ==, 0);
        g_assert_true(buffer[0] == 0 && !memcmp(buffer, buffer + 1, LENGTH - 1));
    }
    block_node_unref(STEAL(node));
    if (snapshot) {
        assert_snapshot(image, snapshot);
    }
    if (snapshot && is_asked) {
        g_autofree char *copy = test_path(image->directory, "copy"), *contents = NULL;
        gsize bytes;

        test_command_succeeds("qemu-img convert -l snapshot.name=then -f qcow2 -O raw %s %s",
                              image->path, copy);
        g_assert_true(g_file_get_contents(copy, &contents, &bytes, NULL));
        g_assert_cmpuint(bytes, >=, LENGTH); /* QEMU gives it the disk's length */
        g_assert_cmpmem(contents, LENGTH, snapshot, LENGTH);
    }
}

static void test_power_loss(struct test_image *image, const void *unused)
{
    static const struct change changes[] = {
        {"cluster_size=512", "refcount-bits=64", false},
        {"cluster_size=1k,refcount_bits=64", "refcount-bits=2", true},
        {"cluster_size=512,backing_file=backing,backing_fmt=raw", "version=v2", true},
        {"cluster_size=4k,compat=0.10,backing_file=backing,backing_fmt=raw", "version=v3", true},
        {"cluster_size=4k,backing_fmt=raw,backing_file=", "backing-fmt=raw,backing-file=", false, 1,
         300},
        {"cluster_size=4k,backing_fmt=raw,backing_file=", "backing-fmt=raw,backing-file=", false,
         300, 400},
        {"cluster_size=4k,backing_fmt=raw,backing_file=", "backing-fmt=,backing-file=", false, 400,
         2},
        {"cluster_size=4k,backing_fmt=raw,backing_file=", "version=v2", false, 200},
        {"cluster_size=4k,backing_file=backing,backing_fmt=raw", "lazy-refcounts=on", false},
        {"cluster_size=512,backing_file=backing,backing_fmt=raw", NULL, false},
        {"cluster_size=512", NULL, true},
        {"cluster_size=4k,lazy_refcounts=on", NULL, false},
    };
    struct test_random random = test_random_new(test_seed());
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    for (size_t i = 0; i < G_N_ELEMENTS(changes); i++) {
        g_autofree uint8_t *disk = g_malloc0(LENGTH);
        g_autofree uint8_t *then = g_malloc0(LENGTH);

        g_autofree char *options = dotted(changes[i].image, changes[i].image_dots);

        memset(disk, strstr(options, "backing") ? 0xbb : 0, LENGTH);
        make(image, options);
        AUTO(block_node) node = open_image(image->path);
        change_some(&random, node, disk, LENGTH, 12);
        if (changes[i].has_snapshot) {
            take_snapshot(node, "then");
            memcpy(then, disk, LENGTH);
            change_some(&random, node, disk, LENGTH, 4);
        }
        block_node_unref(STEAL(node));
        g_autofree char *master = NULL;
        gsize master_bytes;
        g_assert_true(g_file_get_contents(image->path, &master, &master_bytes, NULL));
        uint64_t writes = change_once(&changes[i], image->path, 0, &random);
        g_test_message("%s to %s: %" PRIu64 " writes", changes[i].image,
                       changes[i].options ? changes[i].options : "another size", writes);
        uint64_t step = MAX_OF(writes / 40, UINT64_C(1));
        for (uint64_t at_write = test_random_between(&random, 1, step); at_write <= writes;
             at_write += step * test_stride(&random)) {
            g_assert_true(g_file_set_contents(image->path, master, (gssize)master_bytes, NULL));
            change_once(&changes[i], image->path, at_write, &random);
            judge_loss(image, disk, changes[i].has_snapshot ? then : NULL, asks_qemu(&random));
        }
    }
}

#define ADD(name, function)                                                                        \
    g_test_add("/qcow2-amend/" name, struct test_image, (const void *)(uintptr_t)(function), NULL, \
               test_with_image, NULL)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    ADD("versions-change-and-the-disk-does-not", test_versions);
    ADD("refcounts-of-all-widths-are-right", test_widths);
    ADD("a-change-that-fails-loses-nothing", test_failures);
    ADD("a-change-that-is-stopped-changes-nothing", test_stopping);
    ADD("a-backing-file-of-any-name-is-recorded", test_backing_names);
    ADD("features-change", test_features);
    ADD("what-cannot-be-is-refused-and-changes-nothing", test_refusals);
    ADD("power-lost-at-any-write-loses-nothing", test_power_loss);
    return g_test_run();
}
