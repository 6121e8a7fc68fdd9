/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image from a stranger: opened, read, asked for its status, written to in all ways, resized,
 * amended, checked and repaired. An external data file, if it wants one, is in memory, too.
 * Nothing may crash, hang, or take memory that the image's size does not justify.
 *
 * With libFuzzer (meson setup -Dfuzz=true, clang): build-fuzz/tests/fuzz/fuzz-qcow2 CORPUS.
 * Without it, replay.c runs the files it is given: the seeds, and what once was found.
 */
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "block/align.h"
#include "block/dirty-bitmap.h"
#include "block/gate.h"
#include "block/image.h"
#include "block/node.h"
#include "block/reopen.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"
#include "formats/formats.h"
#include "tests/fuzz/fuzz.h"

#define PIECE       (64 * KIB)
#define EXTENTS_MAX 64

/* The bits of disks no longer than this are loaded. */
#define BITMAP_DISK_MAX (64 * MIB)

static int image = -1, data_file = -1;

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void initialise(void)
{
    GError *error = NULL;

    image = memfd_create("image", MFD_CLOEXEC);
    data_file = memfd_create("data", MFD_CLOEXEC);
    formats_register();
    block_gate_set("none", &error); /* it must not reach the host's files */
    g_log_set_default_handler(ignore, NULL);
}

static struct block_node *open_with(const char *more, bool has_data_file)
{
    g_autofree char *data = g_strdup_printf("data-file.driver=file,data-file.locking=off,"
                                            "data-file.filename=/proc/self/fd/%d,",
                                            data_file);
    g_autofree char *text = g_strdup_printf("driver=qcow2,discard=unmap,backing=,%s%s"
                                            "file.driver=file,file.locking=off,"
                                            "file.filename=/proc/self/fd/%d",
                                            has_data_file ? data : "", more, image);
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return block_node_open(options, true, NULL);
}

/* The incompatible feature for a data file decides whether one may and must be given. */
static struct block_node *open_image(const char *more)
{
    uint8_t features = 0;
    bool has_data_file = pread(image, &features, 1, 79) == 1 && features & 4;

    return open_with(more, has_data_file);
}

/* Places of interest: the start, the end, and some between. */
static uint64_t place(struct block_node *node, unsigned i)
{
    uint64_t length = block_node_length(node);

    return length > PIECE ? align_down((length - PIECE) / 7 * i, 512) : 0;
}

static void read_image(struct block_node *node, void *buffer)
{
    uint64_t length = block_node_length(node), offset = 0;
    struct block_extent extent;

    for (unsigned i = 0; i < 8; i++) {
        block_node_pread(node, buffer, place(node, i), MIN_OF(PIECE, length), 0);
    }
    for (unsigned i = 0; i < EXTENTS_MAX && offset < length; i++, offset += extent.bytes) {
        if (block_node_block_status(node, offset, length - offset, &extent) < 0) {
            break;
        }
    }
}

static void look_at_lists(struct block_node *node)
{
    struct block_persistent_bitmap *bitmaps;
    struct block_snapshot_info *snapshots;
    size_t count;

    if (block_node_snapshot_list(node, &snapshots, &count, NULL) == 0) {
        block_snapshot_list_free(snapshots, count);
    }
    if (block_node_bitmap_list(node, &bitmaps, &count, NULL) == 0) {
        if (count && bitmaps[0].granularity && block_node_length(node) <= BITMAP_DISK_MAX) {
            uint64_t bits = div_round_up(block_node_length(node), bitmaps[0].granularity);
            uint64_t bytes = div_round_up(bits, 8);
            g_autofree uint8_t *loaded = g_malloc0(bytes);

            block_node_bitmap_load(node, bitmaps[0].name, loaded, bytes, NULL);
        }
        block_persistent_bitmap_list_free(bitmaps, count);
    }
}

/* Ways to write that only some images have; the rest refuse. */
static void change_more(struct block_node *node, void *buffer)
{
    static const char *const amendments[] = {"version=v2", "version=v3", "lazy-refcounts=on",
                                             "refcount-bits=64", "refcount-bits=1"};
    uint64_t length = block_node_length(node);
    uint64_t cluster = node->limits.cluster_size;

    for (uint64_t offset = 0; offset + cluster <= MIN_OF(length, 4 * cluster) && cluster <= PIECE;
         offset += cluster) {
        block_node_pwrite_compressed(node, buffer, offset, cluster);
    }
    block_node_vmstate_write(node, buffer, 0, PIECE);
    block_node_vmstate_read(node, buffer, 512, 512);
    for (size_t i = 0; i < G_N_ELEMENTS(amendments); i++) {
        AUTO(block_options) options = block_options_parse(amendments[i], NULL, NULL);

        block_node_amend(node, options, NULL, NULL, NULL);
    }
    if (length < TIB) {
        block_node_set_length(node, align_down(length / 2, 512), BLOCK_PREALLOCATION_OFF, NULL);
        block_node_set_length(node, align_down(length, 512), BLOCK_PREALLOCATION_OFF, NULL);
    }
}

static void change_image(struct block_node *node, void *buffer)
{
    struct block_snapshot_info info = {.name = (char *)(uintptr_t) "new", .icount = UINT64_MAX};
    uint64_t length = block_node_length(node);

    for (unsigned i = 0; i < 8; i++) {
        uint64_t bytes = MIN_OF(i & 1 ? UINT64_C(512) : PIECE, length);

        block_node_pwrite(node, buffer, place(node, i), bytes, 0);
    }
    block_node_discard(node, place(node, 1), MIN_OF(PIECE, length));
    block_node_write_zeroes(node, place(node, 3), MIN_OF(PIECE, length), 0);
    block_node_flush(node);
    block_node_snapshot_create(node, &info, NULL);
    block_node_pwrite(node, buffer, 0, MIN_OF(4 * KIB, length), 0);
    block_node_snapshot_delete(node, "new", NULL);
    block_node_snapshot_apply(node, "1", NULL);
    if (length < TIB) {
        block_node_set_length(node, length + MIB, BLOCK_PREALLOCATION_OFF, NULL);
    }
}

/* The first bitmap is changed and removed, and a new one is stored when the node is closed, or
 * before that when it becomes read-only. */
static void change_bitmaps(struct block_node *node)
{
    static const char name[] = "fuzz";
    struct dirty_bitmap *first = node->bitmaps ? node->bitmaps[0] : NULL;

    if (first && block_stored_bitmaps_begin_change(node, dirty_bitmap_name(first), NULL) == 0) {
        block_node_remove_bitmap(node, first);
        block_stored_bitmaps_remove(node, dirty_bitmap_name(first), NULL);
        dirty_bitmap_free(first);
    }
    if (!block_node_find_bitmap(node, name) &&
        block_stored_bitmaps_check_new(node, name, MIB, NULL) == 0) {
        struct dirty_bitmap *bitmap = dirty_bitmap_new(name, block_node_length(node), MIB, NULL);

        if (bitmap) {
            dirty_bitmap_set_persistent(bitmap, true);
            block_node_add_bitmap(node, bitmap);
        }
    }
    if (block_node_set_read_only(node, true, NULL) == 0) {
        block_node_set_read_only(node, false, NULL);
    }
}

static void check_image(unsigned repair)
{
    struct block_check_result result = {0};
    struct block_node *node = open_image(repair ? "for-check=on," : "for-check=on,read-only=on,");

    if (node) {
        block_node_check(node, repair, &result, NULL, NULL, NULL);
        block_node_unref(node);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char buffer[PIECE] __attribute__((aligned(4096)));

    if (image < 0) {
        initialise();
        memset(buffer, 0x5a, sizeof(buffer));
    }
    if (ftruncate(image, 0) < 0 || ftruncate(data_file, 0) < 0 ||
        pwrite(image, data, size, 0) != (ssize_t)size) {
        return 0;
    }
    check_image(0);
    struct block_node *node = open_image("read-only=on,");
    if (node) {
        read_image(node, buffer);
        look_at_lists(node);
        block_node_unref(node);
    }
    node = open_image("");
    if (node) {
        char piece[4096];

        read_image(node, buffer);
        memset(buffer, 0x5a, sizeof(buffer));
        change_image(node, buffer);
        change_more(node, buffer);
        change_bitmaps(node);
        block_node_pread(node, piece, 0, MIN_OF(sizeof(piece), block_node_length(node)), 0);
        block_node_unref(node);
    }
    check_image(BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS);
    return 0;
}
