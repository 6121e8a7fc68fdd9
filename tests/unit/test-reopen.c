/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes that become read-only, or writable, while others use them; QEMU's tools as the peer. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/image.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/memory-driver.h"
#include "tests/lib/qcow2-peer.h"

#define LENGTH (8 * MIB)

static void make(struct test_image *image, const char *options)
{
    test_image_make(image, 0);
    test_command_succeeds("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, options, image->path,
                          LENGTH);
}

static void set_up(struct test_image *image, const void *options)
{
    make(image, options ? options : "compat=1.1");
}

static struct block_node *open_image(struct test_image *image, const char *more)
{
    return test_open("driver=qcow2,node-name=q,%sfile.node-name=f,file.driver=file,"
                     "file.filename=%s",
                     more, image->path);
}

static void set_read_only(struct block_node *node, bool read_only)
{
    g_autoptr(GError) error = NULL;

    block_node_set_read_only(node, read_only, &error);
    g_assert_no_error(error);
    g_assert_cmpint(block_node_is_read_only(node), ==, read_only);
}

/* Refused with these words, and nothing has changed. */
static void assert_refused(struct block_node *node, bool read_only, const char *why)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(block_node_set_read_only(node, read_only, &error), <, 0);
    g_assert_nonnull(error);
    test_assert_says(error->message, why);
    for (; node; node = node->file) {
        g_assert_cmpint(block_node_is_read_only(node), ==, !read_only);
    }
}

static bool others_can(struct test_image *image, const char *how)
{
    return test_command(NULL, "qemu-io -f qcow2 %s -c 'read 0 64k' %s", how, image->path) == 0;
}

static void assert_readable_for_others(struct test_image *image)
{
    g_assert_true(others_can(image, "-r"));
    g_assert_false(others_can(image, ""));
}

static void assert_kept_from_others(struct test_image *image)
{
    g_assert_false(others_can(image, "-r"));
    g_assert_false(others_can(image, ""));
}

/* ---- Both ways ------------------------------------------------------------------------------ */

static void test_to_read_only(struct test_image *image, const void *options)
{
    const struct peer_read seen[] = {{0, MIB, 17}, {5 * MIB, 64 * KIB, 34}};
    AUTO(block_node) node = open_image(image, "");

    test_write_byte(node, 0, MIB, 17);
    test_write_byte(node, 5 * MIB, 64 * KIB, 34);
    test_write_byte(node, 3 * MIB, MIB, 51);
    g_assert_cmpint(block_node_discard(node, 3 * MIB, MIB), ==, 0);
    assert_kept_from_others(image);
    set_read_only(node, true);
    g_assert_true(block_node_is_read_only(node->file));
    assert_readable_for_others(image);
    qemu_assert_clean(image->path);
    qemu_assert_reads(image->path, seen, G_N_ELEMENTS(seen));
    test_assert_byte(node, 0, MIB, 17);
    g_assert_cmpint(block_node_pwrite(node, "x", 0, 1, 0), ==, -EPERM);

    set_read_only(node, false);
    assert_kept_from_others(image);
    test_write_byte(node, 512 * KIB, MIB, 68);
    test_write_byte(node, 6 * MIB, 64 * KIB, 85);
    set_read_only(node, true);
    qemu_assert_clean(image->path);
    test_assert_byte(node, 0, 512 * KIB, 17);
    test_assert_byte(node, 512 * KIB, MIB, 68);
}

static void test_to_writable(struct test_image *image, const void *options)
{
    AUTO(block_node) node = NULL;

    test_command_succeeds("qemu-io -f qcow2 -c 'write -P 17 0 1M' %s", image->path);
    node = open_image(image, "read-only=on,");
    test_assert_byte(node, 0, MIB, 17);
    assert_readable_for_others(image);
    set_read_only(node, false);
    assert_kept_from_others(image);
    test_write_byte(node, 64 * KIB, 128 * KIB, 34);
    test_write_byte(node, 4 * MIB, MIB, 51);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    block_node_unref(STEAL(node));

    const struct peer_read seen[] = {{0, 64 * KIB, 17},
                                     {64 * KIB, 128 * KIB, 34},
                                     {192 * KIB, 64 * KIB, 17},
                                     {4 * MIB, MIB, 51}};
    qemu_assert_clean(image->path);
    qemu_assert_reads(image->path, seen, G_N_ELEMENTS(seen));
}

static void test_data_file(struct test_image *image, const void *options)
{
    g_autofree char *data = test_path(image->directory, "data");

    test_command_succeeds("qemu-img create -q -f qcow2 -o data_file=%s %s %" PRIu64, data,
                          image->path, LENGTH);
    AUTO(block_node) node = open_image(image, "read-only=on,");
    AUTO(block_node) below = block_node_ref(block_node_child(node, "data-file"));
    g_assert_true(block_node_is_read_only(below) && block_node_is_read_only(below->file));
    set_read_only(node, false);
    g_assert_false(block_node_is_read_only(below) || block_node_is_read_only(below->file));
    test_write_byte(node, MIB, MIB, 17);
    set_read_only(node, true);
    g_assert_true(block_node_is_read_only(below) && block_node_is_read_only(below->file));
    test_assert_byte(node, MIB, MIB, 17);
    qemu_assert_clean(image->path);
}

static bool has_bitmap_in_use(struct test_image *image)
{
    g_autofree char *said = test_command_output("qemu-img info -U %s", image->path);

    return strstr(said, "in-use") != NULL;
}

/* A stored bitmap is not true from the first write on, and says so, until it is stored again. */
static void test_bitmaps(struct test_image *image, const void *options)
{
    test_command_succeeds("qemu-img bitmap --add %s b", image->path);
    AUTO(block_node) node = open_image(image, "read-only=on,");

    set_read_only(node, false);
    g_assert_false(has_bitmap_in_use(image));
    test_write_byte(node, 0, MIB, 17);
    g_assert_true(has_bitmap_in_use(image));
    set_read_only(node, true);
    g_assert_false(has_bitmap_in_use(image));
    qemu_assert_clean(image->path);
}

/* An image as a crash leaves it. */
static void make_dirty(struct test_image *image)
{
    AUTO(block_node) node = open_image(image, "");

    test_write_byte(node, 0, MIB, 17);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    test_command_succeeds("cp %s %s.crashed", image->path, image->path);
    block_node_unref(STEAL(node));
    test_command_succeeds("mv %s.crashed %s", image->path, image->path);
}

static void test_dirty(struct test_image *image, const void *options)
{
    struct block_info info;

    make_dirty(image);
    AUTO(block_node) node = open_image(image, "read-only=on,");
    g_assert_cmpint(block_node_get_info(node, &info), ==, 0);
    g_assert_true(info.is_dirty);
    block_info_clear(&info);
    test_assert_byte(node, 0, MIB, 17);
    set_read_only(node, false);
    g_assert_cmpint(block_node_get_info(node, &info), ==, 0);
    g_assert_false(info.is_dirty);
    block_info_clear(&info);
    test_assert_byte(node, 0, MIB, 17);
    test_write_byte(node, 2 * MIB, MIB, 34);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_get_info(node, &info), ==, 0);
    g_assert_true(info.is_dirty); /* lazy refcounts */
    block_info_clear(&info);
    set_read_only(node, true);
    qemu_assert_clean(image->path);
    set_read_only(node, false);
    test_write_byte(node, 4 * MIB, MIB, 51);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    g_assert_cmpint(block_node_get_info(node, &info), ==, 0);
    g_assert_true(info.is_dirty);
    block_info_clear(&info);
    block_node_unref(STEAL(node));
    qemu_assert_clean(image->path);
}

/* ---- What is refused ------------------------------------------------------------------------ */

static void test_refused(struct test_image *image, const void *options)
{
    AUTO(block_node) node = NULL;

    test_command_succeeds("qemu-img snapshot -c one %s", image->path);
    node = open_image(image, "read-only=on,snapshot=one,");
    assert_refused(node, false, "it shows a snapshot");
    block_node_unref(STEAL(node));
    node = open_image(image, "read-only=on,for-check=on,");
    assert_refused(node, false, "it is opened to be checked");
    block_node_unref(STEAL(node));
    node = open_image(image, "read-only=on,force-share=on,");
    assert_refused(node, false, "force-share=on");
    block_node_unref(STEAL(node));

    node = open_image(image, "read-only=on,");
    AUTO(block_node) other = test_open("driver=file,read-only=on,filename=%s", image->path);
    assert_refused(node, false, "Failed to get \"write\" lock");
    test_assert_byte(node, 0, MIB, 0);
    block_node_unref(STEAL(other));
    set_read_only(node, false);
}

/* Where there are no locks, somebody may have written meanwhile. */
static void test_changed(struct test_image *image, const void *options)
{
    AUTO(block_node) node = test_open("driver=qcow2,node-name=q,read-only=on,file.driver=file,"
                                      "file.locking=off,file.filename=%s",
                                      image->path);

    test_command_succeeds("qemu-img resize -q %s 16M", image->path);
    assert_refused(node, false, "somebody else has changed the image");
}

static void mark_corrupt(struct test_image *image)
{
    int fd = open(image->path, O_WRONLY);
    const uint8_t corrupt = 2;

    g_assert_cmpint(pwrite(fd, &corrupt, 1, 79), ==, 1);
    close(fd);
}

static void test_corrupt(struct test_image *image, const void *options)
{
    mark_corrupt(image);
    AUTO(block_node) node = open_image(image, "read-only=on,");

    assert_refused(node, false, "Image is corrupt");
    assert_readable_for_others(image);
}

static struct block_claim *claim_new(struct block_node *node, const char *owner, unsigned perms,
                                     unsigned shared)
{
    struct block_claim *claim = g_new0(struct block_claim, 1);
    g_autoptr(GError) error = NULL;

    claim->owner = g_strdup(owner);
    claim->perms = perms;
    claim->shared = shared;
    block_claim_acquire(claim, node, &error);
    g_assert_no_error(error);
    return claim;
}

static void claim_free(struct block_claim *claim)
{
    block_claim_release(claim);
    g_free(claim->owner);
    g_free(claim);
}

static void test_users(struct test_image *image, const void *options)
{
    AUTO(block_node) node = open_image(image, "");
    struct block_claim *reader = claim_new(node, "a reader", BLOCK_PERM_READ, BLOCK_PERM_ALL);
    struct block_claim *writer = claim_new(node, "a writer", BLOCK_PERM_WRITE, BLOCK_PERM_ALL);

    assert_refused(node, true,
                   "Read-only block node 'q' cannot support read-write users, and a writer");
    claim_free(writer);
    writer = claim_new(node, "a streamer", BLOCK_PERM_WRITE_UNCHANGED, BLOCK_PERM_ALL);
    assert_refused(node, true, "and a streamer writes to it");
    claim_free(writer);
    set_read_only(node, true);
    struct block_claim *strict =
        claim_new(node->file, "a keeper", BLOCK_PERM_READ, BLOCK_PERM_READ | BLOCK_PERM_INVISIBLE);
    assert_refused(node, false, "a keeper");
    claim_free(strict);
    set_read_only(node, false);
    test_write_byte(node, 0, MIB, 17);
    test_assert_byte(node, 0, MIB, 17);
    claim_free(reader);
}

/* A base under an overlay that does not let it change, but for the job that stands beside it. */
static void test_beside(struct test_image *image, const void *options)
{
    AUTO(block_node) base = open_image(image, "read-only=on,");
    AUTO(block_node) top = test_open("driver=memory-layer,node-name=top,file.driver=memory,"
                                     "file.size=8M,backing=q");
    struct block_claim job = {
        .owner = g_strdup("job 'commit'"),
        .perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
        .shared = BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_WRITE,
        .beside = top,
    };
    g_autoptr(GError) error = NULL;

    block_claim_acquire(&job, base, &error);
    g_assert_no_error(error);
    set_read_only(base, false);
    test_write_byte(base, 0, MIB, 17);
    test_assert_byte(top, 0, MIB, 17);
    block_claim_change(&job, BLOCK_PERM_READ, BLOCK_PERM_ALL, &error);
    g_assert_no_error(error);
    set_read_only(base, true);
    qemu_assert_clean(image->path);
    block_claim_release(&job);
    g_free(job.owner);
}

/* ---- Other drivers -------------------------------------------------------------------------- */

static void test_drivers(struct test_image *image, const void *options)
{
    static const char *const nodes[] = {
        "driver=raw,file.driver=file,file.filename=%s,read-only=on",
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=%s,read-only="
        "on",
        "driver=lose-writes,file.driver=raw,file.file.driver=file,file.file.filename=%s,"
        "read-only=on",
        "driver=file,filename=%s,read-only=on",
        "driver=file,filename=%s,read-only=on,auto-read-only=on",
        "driver=null-co,node-name=%.0snull,read-only=on",
        "driver=memory-filter,file.driver=memory,node-name=%.0sm,read-only=on",
    };

    for (size_t i = 0; i < G_N_ELEMENTS(nodes); i++) {
        g_autofree char *line = g_strdup_printf(nodes[i], image->path);
        AUTO(block_node) node = test_open("%s", line);
        bool is_automatic = node->options.auto_read_only;

        for (unsigned round = 0; round < 3; round++) {
            g_assert_cmpint(block_node_pwrite(node, "QFI\xfb", 0, 4, 0), ==, -EPERM);
            set_read_only(node, false);
            g_assert_cmpint(block_node_pwrite(node, "QFI\xfb", 0, 4, 0), ==, 0);
            set_read_only(node, true);
        }
        g_assert_cmpint(node->options.auto_read_only, ==, is_automatic);
    }
}

static void test_writable_parent(void)
{
    AUTO(block_node) filter = test_open("driver=memory-filter,node-name=above,file.driver=memory,"
                                        "file.node-name=below");
    AUTO(block_node) format = test_open("driver=memory-layer,node-name=l,file.driver=memory");

    assert_refused(filter->file, true, "node 'above' above it is writable");
    set_read_only(filter, true);
    set_read_only(filter, false);
    assert_refused(format, true, "Block format 'memory-layer' used by node 'l' does not support");
    assert_refused(format->file, true, "node 'l' writes to it");
}

/* ---- Failures ------------------------------------------------------------------------------- */

static struct block_node *open_with_faults(struct test_image *image, const char *more)
{
    return test_open("driver=qcow2,node-name=q,%sfile.driver=fault,file.node-name=bad,"
                     "file.file.driver=file,file.file.filename=%s",
                     more, image->path);
}

static void test_failing_write_back(struct test_image *image, const void *options)
{
    AUTO(block_node) node = open_with_faults(image, "");
    AUTO(block_node) bad = block_node_find("bad");

    test_write_byte(node, 0, MIB, 17);
    FAULT(bad, .operations = FAULT_ON(FLUSH), .error_number = EIO, .count = 1);
    assert_refused(node, true, "Could not flush node 'q'");
    test_write_byte(node, MIB, MIB, 34);
    g_assert_cmpint(block_node_flush(node), ==, 0);
    FAULT(bad, .operations = FAULT_ON(WRITE), .error_number = EIO, .count = 1);
    assert_refused(node, true, "Could not write the metadata of node 'q'");
    test_write_byte(node, 2 * MIB, MIB, 51);
    set_read_only(node, true);
    qemu_assert_clean(image->path);
    test_assert_byte(node, MIB, MIB, 34);
    test_assert_byte(node, 2 * MIB, MIB, 51);
}

/* Whatever fails of what a dirty image needs, it stays as readable as it was. */
static void test_failing_begin(struct test_image *image, const void *options)
{
    unsigned skip = 0;

    make_dirty(image);
    AUTO(block_node) node = open_with_faults(image, "read-only=on,");
    AUTO(block_node) bad = block_node_find("bad");
    for (;; skip++) {
        g_autoptr(GError) error = NULL;

        FAULT(bad, .operations = FAULT_ON_ALL, .error_number = EIO, .skip = skip);
        int status = block_node_set_read_only(node, false, &error);
        fault_clear(bad);
        if (status == 0) {
            break;
        }
        g_assert_true(block_node_is_read_only(node));
        g_assert_true(block_node_is_read_only(bad));
        g_assert_true(block_node_is_read_only(bad->file));
        g_assert_true(others_can(image, "-r"));
        test_assert_byte(node, 0, MIB, 17);
    }
    g_assert_cmpuint(skip, >, 5);
    test_write_byte(node, 2 * MIB, MIB, 34);
    block_node_unref(STEAL(node));
    qemu_assert_clean(image->path);
}

#define TEST(name, options, function)                                                              \
    g_test_add("/reopen/" name, struct test_image, options, set_up, function, test_image_remove)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    formats_register();
    fault_driver_register();
    memory_drivers_register();
    TEST("qcow2-becomes-read-only-and-is-clean", NULL, test_to_read_only);
    TEST("lazy-qcow2-becomes-read-only-and-is-clean", "lazy_refcounts=on", test_to_read_only);
    TEST("qcow2-with-small-clusters-becomes-read-only", "cluster_size=512", test_to_read_only);
    TEST("qcow2-with-subclusters-becomes-read-only", "extended_l2=on", test_to_read_only);
    TEST("qcow2-becomes-writable", NULL, test_to_writable);
    TEST("qcow2-with-small-clusters-becomes-writable", "cluster_size=512", test_to_writable);
    TEST("an-external-data-file-follows", NULL, test_data_file);
    TEST("stored-bitmaps-are-marked", NULL, test_bitmaps);
    TEST("a-dirty-image-is-repaired", "lazy_refcounts=on", test_dirty);
    TEST("what-cannot-be-written-stays-read-only", NULL, test_refused);
    TEST("an-image-that-others-changed-stays-read-only", NULL, test_changed);
    TEST("a-corrupt-image-stays-read-only", NULL, test_corrupt);
    TEST("users-are-respected", NULL, test_users);
    TEST("a-job-beside-an-overlay-writes-its-base", NULL, test_beside);
    TEST("other-drivers-follow", NULL, test_drivers);
    g_test_add_func("/reopen/what-is-above-stays-writable", test_writable_parent);
    TEST("what-cannot-be-written-back-stays-writable", "lazy_refcounts=on",
         test_failing_write_back);
    TEST("what-cannot-begin-to-write-stays-read-only", "lazy_refcounts=on", test_failing_begin);
    return g_test_run();
}
