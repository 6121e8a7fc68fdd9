/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/qcow2-peer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/image.h"
#include "tests/lib/command.h"
#include "tests/lib/disk.h"

const char *const image_verdict_names[] = {"clean", "leaks", "corrupt", "unreadable"};

enum image_verdict image_verdict_of(const struct block_check_result *result)
{
    return result->check_errors  ? IMAGE_UNREADABLE
           : result->corruptions ? IMAGE_CORRUPT
           : result->leaks       ? IMAGE_LEAKS
                                 : IMAGE_CLEAN;
}

enum image_verdict own_check(const char *path)
{
    g_autoptr(GError) error = NULL;
    struct block_check_result result = {0};
    AUTO(block_node) node =
        test_open("driver=qcow2,read-only=on,for-check=on,file.driver=file,file.filename=%s", path);

    block_node_check(node, 0, &result, NULL, NULL, &error);
    g_assert_no_error(error);
    return image_verdict_of(&result);
}

/* A number in JSON; 0 if it is not there. */
static uint64_t number_of(const char *text, const char *key)
{
    g_autofree char *quoted = g_strdup_printf("\"%s\": ", key);
    const char *found = strstr(text, quoted);

    return found ? strtoull(found + strlen(quoted), NULL, 10) : 0;
}

static void take_numbers(const char *text, struct block_check_result *result)
{
    *result = (struct block_check_result){
        .corruptions = number_of(text, "corruptions"),
        .leaks = number_of(text, "leaks"),
        .check_errors = number_of(text, "check-errors"),
        .total_clusters = number_of(text, "total-clusters"),
        .allocated_clusters = number_of(text, "allocated-clusters"),
        .fragmented_clusters = number_of(text, "fragmented-clusters"),
        .compressed_clusters = number_of(text, "compressed-clusters"),
        .image_end_offset = number_of(text, "image-end-offset"),
    };
}

enum image_verdict qemu_check(const char *path, struct block_check_result *result, char **said)
{
    g_autofree char *text = NULL;
    int status = test_command(&text, "qemu-img check -f qcow2 -U --output=json %s", path);

    if (result) {
        take_numbers(text, result);
    }
    if (said) {
        *said = g_steal_pointer(&text);
    }
    return status == 0   ? IMAGE_CLEAN
           : status == 2 ? IMAGE_CORRUPT
           : status == 3 ? IMAGE_LEAKS
                         : IMAGE_UNREADABLE;
}

void qemu_assert_clean(const char *path)
{
    g_autofree char *said = NULL;
    enum image_verdict verdict = qemu_check(path, NULL, &said);

    if (verdict != IMAGE_CLEAN) {
        g_error("%s is %s:\n%s", path, image_verdict_names[verdict], said);
    }
}

void qemu_assert_reads(const char *path, const struct peer_read *reads, size_t count)
{
    g_autoptr(GString) commands = g_string_new("");

    for (size_t i = 0; i < count; i++) {
        g_string_append_printf(commands, " -c 'read -P 0x%x %" PRIu64 " %" PRIu64 "'",
                               reads[i].fill, reads[i].offset, reads[i].bytes);
    }
    test_command_succeeds("qemu-io -r -f qcow2%s %s", commands->str, path);
}
