/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image from a stranger: opened, read, asked for its status, written to, checked and repaired.
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
#include "block/gate.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "tests/fuzz/fuzz.h"

#define PIECE       (64 * KIB)
#define EXTENTS_MAX 64

static int image = -1;

static void ignore(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
}

static void initialise(void)
{
    GError *error = NULL;

    image = memfd_create("image", MFD_CLOEXEC);
    formats_register();
    block_gate_set("none", &error); /* it must not reach the host's files */
    g_log_set_default_handler(ignore, NULL);
}

static struct block_node *open_image(const char *more)
{
    g_autofree char *text = g_strdup_printf("driver=qcow2,discard=unmap,backing=,%s"
                                            "file.driver=file,file.locking=off,"
                                            "file.filename=/proc/self/fd/%d",
                                            more, image);
    AUTO(block_options) options = block_options_parse(text, NULL, NULL);

    return block_node_open(options, true, NULL);
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
        block_persistent_bitmap_list_free(bitmaps, count);
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
    if (ftruncate(image, 0) < 0 || pwrite(image, data, size, 0) != (ssize_t)size) {
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
        block_node_pread(node, piece, 0, MIN_OF(sizeof(piece), block_node_length(node)), 0);
        block_node_unref(node);
    }
    check_image(BLOCK_CHECK_REPAIR_LEAKS | BLOCK_CHECK_REPAIR_ERRORS);
    return 0;
}
