/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random images and random requests, beside QEMU: images that qemu-img made, or ours, are written
 * by ours, and what we wrote must be clean for `qemu-img check` and the same for `qemu-img
 * compare`.
 *
 * One thread; LIVEBLK_TEST_CASES sets how many cases, LIVEBLK_TEST_CASE_SEED repeats one by the
 * seed that was printed for it.
 */
#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/image.h"
#include "block/node.h"
#include "block/options.h"
#include "block/request.h"
#include "block/zero.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define CASES      40   /* with QEMU */
#define OWN_CASES  2000 /* without: its programs take most of a case's time */
#define OPERATIONS 40
#define SNAPSHOTS  3

enum backing { BACKING_NONE, BACKING_RAW, BACKING_QCOW2 };

/* An internal snapshot, and what the disk held. */
struct snapshot {
    char name[16];
    uint8_t *model;
    uint64_t length;
};

struct one {
    struct test_random random;
    char *directory;
    char *image, *backing_image, *data_image, *expected;
    char *what; /* for messages */

    /* The image's kind. */
    unsigned cluster_bits;
    bool is_v2, has_extended_l2, has_data_file, is_raw_data, is_ours;
    bool is_own; /* QEMU has no part in it */
    enum backing backing;
    uint64_t length, length_max;

    uint8_t *model;
    struct block_node *node;
    struct snapshot snapshots[SNAPSHOTS];
    unsigned snapshot_count, snapshot_number;
    unsigned refcount_bits;
    bool has_compressed; /* or had at some time */
};

/* ---- Programs ------------------------------------------------------------------------------- */

static void run(struct one *one, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void run(struct one *one, const char *format, ...)
{
    g_autofree char *said = NULL;
    va_list args;

    va_start(args, format);
    g_autofree char *command = g_strdup_vprintf(format, args);
    va_end(args);
    int status = test_command(&said, "%s", command);
    if (status) {
        g_error("%s\n%s\nstatus %d\n%s", one->what, command, status, said);
    }
}

/* ---- Images --------------------------------------------------------------------------------- */

static bool chance(struct one *one, unsigned percent)
{
    return test_random_chance(&one->random, percent);
}

static uint64_t below(struct one *one, uint64_t limit)
{
    return test_random_below(&one->random, limit);
}

static void choose_kind(struct one *one)
{
    static const unsigned bits[] = {9, 9, 10, 12, 12, 14, 16, 16, 18, 21};

    one->cluster_bits = bits[below(one, G_N_ELEMENTS(bits))];
    one->is_ours = one->is_own || chance(one, 50);
    one->is_v2 = chance(one, 20);
    one->has_extended_l2 = !one->is_v2 && one->cluster_bits >= 14 && chance(one, 40);
    one->has_data_file = !one->is_v2 && chance(one, 15);
    one->is_raw_data = one->has_data_file && chance(one, 40);
    one->backing = one->is_raw_data ? BACKING_NONE : (enum backing)below(one, one->is_own ? 2 : 3);
    uint64_t most = one->is_own ? 512 * KIB : 8 * MIB;
    one->length = 512 * (1 + below(one, MIN_OF(most, UINT64_C(200) << one->cluster_bits) / 512));
}

static char *creation_options(struct one *one)
{
    GString *text = g_string_new(NULL);

    g_string_printf(text, "cluster_size=%u,compat=%s", 1u << one->cluster_bits,
                    one->is_v2 ? "0.10" : "1.1");
    if (!one->is_v2) {
        one->refcount_bits = 1u << below(one, 7);
        g_string_append_printf(text, ",refcount_bits=%u,lazy_refcounts=%s,extended_l2=%s",
                               one->refcount_bits, chance(one, 30) ? "on" : "off",
                               one->has_extended_l2 ? "on" : "off");
        g_string_append(text, chance(one, 50) ? ",compression_type=zstd" : "");
    }
    if (one->has_data_file) {
        g_string_append_printf(text, ",data_file=%s,data_file_raw=%s", one->data_image,
                               one->is_raw_data ? "on" : "off");
    }
    if ((one->backing == BACKING_NONE || one->has_extended_l2) && chance(one, 30)) {
        static const char *const modes[] = {"metadata", "falloc", "full"};

        g_string_append_printf(text, ",preallocation=%s", modes[below(one, 3)]);
    }
    return g_string_free(text, FALSE);
}

/* QEMU writes some patterns into an image; into a model of `length` bytes, too. */
static void fill(struct one *one, const char *format, const char *path, uint64_t length)
{
    GString *command = g_string_new(NULL);

    g_string_printf(command, "qemu-io -f %s", format);
    for (unsigned i = 0; i < 6; i++) {
        uint64_t offset, bytes;
        unsigned pattern = (unsigned)below(one, 255) + 1;

        test_random_range(&one->random, length, 512, length, &offset, &bytes);
        bytes = MIN_OF(bytes, 512 * KIB);
        g_string_append_printf(command, " -c 'write -P %u %" PRIu64 " %" PRIu64 "'", pattern,
                               offset, bytes);
        if (offset < one->length) {
            memset(one->model + offset, (int)pattern, MIN_OF(bytes, one->length - offset));
        }
    }
    run(one, "%s %s", command->str, path);
    g_string_free(command, TRUE);
}

static void make_raw_backing(struct one *one, uint64_t length)
{
    g_autofree uint8_t *contents = g_malloc0(length);
    uint64_t offset, bytes;

    test_random_range(&one->random, length, 512, length, &offset, &bytes);
    memset(contents + offset, 0xbb, bytes);
    g_assert_true(g_file_set_contents(one->backing_image, (char *)contents, (gssize)length, NULL));
    memcpy(one->model, contents, MIN_OF(length, one->length));
}

/* Shorter or longer than the image above it. */
static void make_backing(struct one *one)
{
    const char *format = one->backing == BACKING_RAW ? "raw" : "qcow2";
    uint64_t length = MAX_OF(align_down(one->length * (50 + below(one, 100)) / 100, 512), 512u);

    if (one->is_own) {
        make_raw_backing(one, length);
        return;
    }
    run(one, "qemu-img create -q -f %s %s %" PRIu64, format, one->backing_image, length);
    fill(one, format, one->backing_image, length);
}

static void create_theirs(struct one *one, const char *options)
{
    if (one->backing == BACKING_NONE) {
        run(one, "qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, one->image, one->length);
    } else {
        run(one, "qemu-img create -q -f qcow2 -o %s -b %s -F %s %s %" PRIu64, options,
            one->backing_image, one->backing == BACKING_RAW ? "raw" : "qcow2", one->image,
            one->length);
    }
}

/* The same options, under the driver's names. */
static void create_ours(struct one *one, const char *options)
{
    AUTO(block_options) given = block_options_parse(options, NULL, NULL);
    AUTO(block_options) own = block_options_new();
    g_autofree char *length = g_strdup_printf("%" PRIu64, one->length);
    g_auto(GStrv) keys = block_options_keys(given);
    g_autoptr(GError) error = NULL;

    for (char **key = keys; *key; key++) {
        const char *value = block_options_get(given, *key);

        if (!strcmp(*key, "compat")) {
            block_options_set(own, "version", strcmp(value, "0.10") ? "v3" : "v2");
        } else if (!strcmp(*key, "data_file")) {
            test_make_file(value, chance(one, 50) ? 0 : 4 * MIB * !one->is_raw_data);
            block_options_set(own, "data-file.driver", "file");
            block_options_set(own, "data-file.filename", value);
        } else {
            g_autofree char *name = g_strdelimit(g_strdup(*key), "_", '-');

            block_options_set(own, name, value);
        }
    }
    if (one->backing != BACKING_NONE) {
        block_options_set(own, "backing-file", one->backing_image);
        block_options_set(own, "backing-fmt", one->backing == BACKING_RAW ? "raw" : "qcow2");
    }
    test_make_file(one->image, chance(one, 50) ? 0 : MIB); /* what was there is lost */
    block_options_set(own, "driver", "qcow2");
    block_options_set(own, "size", length);
    block_options_set(own, "file.driver", "file");
    block_options_set(own, "file.filename", one->image);
    if (block_create(own, NULL, NULL, &error) < 0) {
        g_error("%s: %s", one->what, error->message);
    }
    if (!one->is_own) {
        run(one, "qemu-img check -q -f qcow2 %s", one->image);
    }
}

static void make_image(struct one *one)
{
    g_autofree char *options = creation_options(one);

    g_free(one->what);
    one->what = g_strdup_printf("%s by %s, backing %d, length %" PRIu64, options,
                                one->is_ours ? "ours" : "qemu-img", one->backing, one->length);
    if (one->backing != BACKING_NONE) {
        make_backing(one);
    }
    if (one->is_ours) {
        create_ours(one, options);
    } else {
        create_theirs(one, options);
    }
    if (!one->is_own && chance(one, 60)) {
        fill(one, "qcow2", one->image, one->length);
    }
}

static void open_image(struct one *one)
{
    uint64_t cluster = UINT64_C(1) << one->cluster_bits;

    one->node =
        test_open("driver=qcow2,discard=unmap,l2-cache-size=%" PRIu64
                  ",l2-cache-entry-size=%" PRIu64 ",refcount-cache-size=1,"
                  "pass-discard-other=%s,discard-no-unref=%s,file.driver=file,"
                  "file.filename=%s",
                  chance(one, 50) ? 1 : MIB, MIN_OF(cluster, UINT64_C(512) << below(one, 8)),
                  chance(one, 50) ? "on" : "off", chance(one, 20) ? "on" : "off", one->image);
}

/* ---- Requests ------------------------------------------------------------------------------- */

static void check_range(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    g_assert_cmpint(block_node_pread(one->node, buffer, offset, bytes, 0), ==, 0);
    for (uint64_t i = 0; memcmp(buffer, one->model + offset, bytes) && i < bytes; i++) {
        if (buffer[i] != one->model[offset + i]) {
            g_error("%s: at %" PRIu64 ": 0x%02x instead of 0x%02x", one->what, offset + i,
                    buffer[i], one->model[offset + i]);
        }
    }
}

static void do_write(struct one *one, uint64_t offset, uint64_t bytes)
{
    uint8_t byte = (uint8_t)test_random_u64(&one->random);

    for (uint64_t i = 0; i < bytes; i += 512) {
        memset(one->model + offset + i, (uint8_t)(byte + i / 512), 512);
    }
    g_assert_cmpint(block_node_pwrite(one->node, one->model + offset, offset, bytes,
                                      chance(one, 10) ? BLOCK_REQUEST_FUA : 0),
                    ==, 0);
}

static void do_zero(struct one *one, uint64_t offset, uint64_t bytes)
{
    unsigned flags = chance(one, 50) ? BLOCK_REQUEST_MAY_UNMAP : 0;

    flags |= chance(one, 20) ? BLOCK_REQUEST_NO_FALLBACK : 0;
    int status = block_node_write_zeroes(one->node, offset, bytes, flags);
    if (flags & BLOCK_REQUEST_NO_FALLBACK && status == -ENOTSUP) {
        return;
    }
    g_assert_cmpint(status, ==, 0);
    memset(one->model + offset, 0, bytes);
}

/* A discarded sector reads as before or as zeroes, from then on. */
static void do_discard(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *buffer = g_malloc(bytes);

    g_assert_cmpint(block_node_discard(one->node, offset, bytes), ==, 0);
    g_assert_cmpint(block_node_pread(one->node, buffer, offset, bytes, 0), ==, 0);
    for (uint64_t i = 0; i < bytes; i += 512) {
        g_assert_true(!memcmp(buffer + i, one->model + offset + i, 512) ||
                      buffer_is_zero(buffer + i, 512));
    }
    memcpy(one->model + offset, buffer, bytes);
}

/* What the disk reads as anyway, so that the model stays as it is. */
static void do_populate(struct one *one, uint64_t offset, uint64_t bytes)
{
    bool is_zero = buffer_is_zero(one->model + offset, bytes);

    g_assert_cmpint(
        block_node_populate(one->node, is_zero ? NULL : one->model + offset, offset, bytes), ==, 0);
}

static void do_compressed(struct one *one, uint64_t offset, uint64_t bytes)
{
    uint64_t cluster = UINT64_C(1) << one->cluster_bits;

    offset = align_down(offset, cluster);
    bytes = MIN_OF(cluster, one->length - offset);
    if (one->has_data_file || bytes < cluster) {
        return;
    }
    for (uint64_t i = 0; i < bytes; i += 64) {
        memset(one->model + offset + i, (uint8_t)(i / 64 + offset / cluster), 64);
    }
    one->has_compressed = true;
    g_assert_cmpint(block_node_pwrite_compressed(one->node, one->model + offset, offset, bytes), ==,
                    0);
}

/* Status must cover the range, and what it calls zero must read so. */
static void do_status(struct one *one, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        struct block_extent extent;

        g_assert_cmpint(block_node_block_status_chain(one->node, offset, bytes, &extent, NULL), ==,
                        0);
        g_assert_cmpuint(extent.bytes, >, 0);
        if (extent.flags & BLOCK_STATUS_ZERO) {
            g_assert_true(buffer_is_zero(one->model + offset, extent.bytes));
        }
        offset += extent.bytes;
        bytes -= extent.bytes;
    }
}

/*
 * What is refused because of the refcounts' width. The disk, all snapshots and one more make 5, so
 * that 4 bits do; but compressed clusters share one in the file, and each of them counts in it for
 * the disk and every snapshot.
 */
static bool is_too_narrow(const struct one *one, const GError *error)
{
    return (one->refcount_bits < 4 || (one->refcount_bits < 16 && one->has_compressed)) &&
           (strstr(error->message, "cannot count one more snapshot") ||
            strstr(error->message, g_strerror(ERANGE)));
}

static void do_snapshot(struct one *one, uint64_t offset, uint64_t bytes)
{
    struct snapshot *snapshot = &one->snapshots[one->snapshot_count];
    struct block_snapshot_info info = {.name = snapshot->name, .icount = UINT64_MAX};
    g_autoptr(GError) error = NULL;

    if (one->snapshot_count == SNAPSHOTS) {
        return;
    }
    g_snprintf(snapshot->name, sizeof(snapshot->name), "s%u", one->snapshot_number++);
    if (block_node_snapshot_create(one->node, &info, &error) < 0) {
        if (!one->has_data_file && !is_too_narrow(one, error)) {
            g_error("%s: %s", one->what, error->message);
        }
        return;
    }
    snapshot->model = g_memdup2(one->model, one->length);
    snapshot->length = one->length;
    one->snapshot_count++;
}

static void do_apply(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_autoptr(GError) error = NULL;

    if (!one->snapshot_count) {
        return;
    }
    struct snapshot *snapshot = &one->snapshots[below(one, one->snapshot_count)];
    if (block_node_snapshot_apply(one->node, snapshot->name, &error) < 0) {
        if (!is_too_narrow(one, error)) {
            g_error("%s: %s", one->what, error->message);
        }
        return;
    }
    one->length = snapshot->length;
    g_free(one->model);
    one->model = g_memdup2(snapshot->model, one->length);
}

static void do_delete(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_autoptr(GError) error = NULL;

    if (!one->snapshot_count) {
        return;
    }
    unsigned i = (unsigned)below(one, one->snapshot_count);
    block_node_snapshot_delete(one->node, one->snapshots[i].name, &error);
    g_assert_no_error(error);
    g_free(one->snapshots[i].model);
    one->snapshots[i] = one->snapshots[--one->snapshot_count];
}

static void do_resize(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_autoptr(GError) error = NULL;
    uint64_t length = 512 * (1 + below(one, one->length_max / 512));
    enum block_preallocation how = BLOCK_PREALLOCATION_OFF;

    if (length > one->length && chance(one, 60)) {
        how = (enum block_preallocation)below(one, BLOCK_PREALLOCATION_FULL + 1);
    }
    if (block_node_set_length(one->node, length, how, &error) < 0) {
        g_assert_true(one->snapshot_count || (one->is_v2 && one->backing != BACKING_NONE));
        return;
    }
    one->model = g_realloc(one->model, length);
    if (length > one->length) {
        memset(one->model + one->length, 0, length - one->length);
    }
    one->length = length;
}

static void do_reopen(struct one *one, uint64_t offset, uint64_t bytes)
{
    block_node_unref(one->node);
    open_image(one);
}

static void do_flush(struct one *one, uint64_t offset, uint64_t bytes)
{
    g_assert_cmpint(block_node_flush(one->node), ==, 0);
}

static void do_one(struct one *one)
{
    static const struct {
        unsigned share;
        void (*run)(struct one *one, uint64_t offset, uint64_t bytes);
    } operations[] = {
        {32, do_write},   {14, do_zero},  {11, do_discard}, {8, do_compressed}, {8, check_range},
        {4, do_populate}, {5, do_status}, {4, do_flush},    {3, do_reopen},     {3, do_snapshot},
        {2, do_apply},    {2, do_delete}, {4, do_resize},
    };
    uint64_t offset, bytes, dice = below(one, 100);
    uint64_t most = chance(one, 70) ? UINT64_C(2) << one->cluster_bits : MIB;
    size_t i = 0;

    test_random_range(&one->random, one->length, 512, MAX_OF(align_down(most, 512), UINT64_C(512)),
                      &offset, &bytes);
    while (dice >= operations[i].share) {
        dice -= operations[i++].share;
    }
    operations[i].run(one, offset, bytes);
}

/* ---- What is there at the end ---------------------------------------------------------------- */

/* Each snapshot still reads as the disk did. */
static void check_snapshots(struct one *one)
{
    for (unsigned i = 0; i < one->snapshot_count; i++) {
        struct snapshot *snapshot = &one->snapshots[i];
        g_autofree uint8_t *buffer = g_malloc(snapshot->length);
        AUTO(block_node) node =
            test_open("driver=qcow2,read-only=on,snapshot=%s,file.driver=file,file.filename=%s",
                      snapshot->name, one->image);

        g_assert_cmpuint(block_node_length(node), ==, snapshot->length);
        g_assert_cmpint(block_node_pread(node, buffer, 0, snapshot->length, 0), ==, 0);
        g_assert_cmpmem(buffer, snapshot->length, snapshot->model, snapshot->length);
        g_free(snapshot->model);
    }
}

/* Our own check has nothing to say either. */
static void check_image(struct one *one)
{
    g_autoptr(GError) error = NULL;
    struct block_check_result result = {.findings = g_ptr_array_new_with_free_func(g_free)};
    AUTO(block_node) node = test_open(
        "driver=qcow2,read-only=on,for-check=on,file.driver=file,file.filename=%s", one->image);

    block_node_check(node, 0, &result, NULL, NULL, &error);
    g_assert_no_error(error);
    if (result.findings->len) {
        g_error("%s: %s", one->what, (char *)g_ptr_array_index(result.findings, 0));
    }
    g_assert_cmpuint(result.corruptions + result.leaks + result.check_errors, ==, 0);
    g_ptr_array_unref(result.findings);
}

/* ---- Cases ---------------------------------------------------------------------------------- */

static void judge(struct one *one)
{
    g_assert_true(
        g_file_set_contents(one->expected, (const char *)one->model, (gssize)one->length, NULL));
    run(one, "qemu-img check -q -f qcow2 %s", one->image);
    run(one, "qemu-img compare -q -f qcow2 -F raw %s %s", one->image, one->expected);
    if (one->is_raw_data) {
        run(one, "qemu-img compare -q -f raw -F raw %s %s", one->data_image, one->expected);
    }
}

/* Opened again, it reads as it did; what is in a raw data file is the disk. */
static void judge_own(struct one *one)
{
    open_image(one);
    check_range(one, 0, one->length);
    block_node_unref(one->node);
    if (one->is_raw_data) {
        g_autofree char *data = NULL;
        gsize bytes;

        g_assert_true(g_file_get_contents(one->data_image, &data, &bytes, NULL));
        g_assert_cmpuint(bytes, >=, one->length);
        g_assert_cmpmem(data, one->length, one->model, one->length);
    }
}

static void run_case(uint64_t seed, bool is_own)
{
    struct one one = {
        .random = test_random_new(seed),
        .is_own = is_own,
        .directory = test_directory_new(true),
        .what = g_strdup("?"),
    };

    one.image = test_path(one.directory, "image");
    one.backing_image = test_path(one.directory, "backing");
    one.data_image = test_path(one.directory, "data");
    one.expected = test_path(one.directory, "expected");
    one.refcount_bits = 16;
    choose_kind(&one);
    one.length_max = 2 * one.length;
    one.model = g_malloc0(one.length);
    make_image(&one);
    open_image(&one);
    check_range(&one, 0, one.length);
    for (unsigned i = 0; i < OPERATIONS; i++) {
        do_one(&one);
    }
    check_range(&one, 0, one.length);
    block_node_unref(one.node);
    if (is_own) {
        judge_own(&one);
    } else {
        judge(&one);
    }
    check_image(&one);
    check_snapshots(&one);
    g_free(one.model);
    g_free(one.image);
    g_free(one.backing_image);
    g_free(one.data_image);
    g_free(one.expected);
    g_free(one.what);
    test_directory_free(one.directory);
}

static void run_cases(unsigned long cases, bool is_own)
{
    const char *only = g_getenv("LIVEBLK_TEST_CASE_SEED");
    struct test_random random = test_random_new(test_seed());

    if (only) {
        run_case(strtoull(only, NULL, 10), is_own);
        return;
    }
    cases = test_cases(cases);
    for (unsigned long i = 0; i < cases; i++) {
        uint64_t seed = test_random_u64(&random);

        g_test_message("case %lu: seed %" PRIu64, i, seed);
        run_case(seed, is_own);
    }
}

static void test_with_qemu(void)
{
    run_cases(CASES, false);
}

static void test_alone(void)
{
    run_cases(OWN_CASES, true);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/qcow2/what-we-write-is-clean-and-the-same-for-qemu", test_with_qemu);
    g_test_add_func("/qcow2/thousands-of-random-images-hold-what-was-written", test_alone);
    return g_test_run();
}
