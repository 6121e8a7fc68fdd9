/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/qcow2-peer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

const char *const image_verdict_names[] = {"clean", "leaks", "corrupt", "unreadable"};

enum image_verdict image_verdict_of(const struct block_check_result *result)
{
    return result->check_errors  ? IMAGE_UNREADABLE
           : result->corruptions ? IMAGE_CORRUPT
           : result->leaks       ? IMAGE_LEAKS
                                 : IMAGE_CLEAN;
}

/* Run a program; returns its exit status, and what it printed to both outputs. */
static int run(const char *const *arguments, char **said)
{
    g_autofree char *out = NULL, *complaint = NULL;
    g_autoptr(GError) error = NULL;
    int status;

    g_spawn_sync(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &complaint,
                 &status, &error);
    g_assert_no_error(error);
    *said = g_strconcat(out, complaint, NULL);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
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
    const char *const arguments[] = {"qemu-img", "check",         "-f", "qcow2",
                                     "-U",       "--output=json", path, NULL};
    g_autofree char *text = NULL;
    int status = run(arguments, &text);

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

void qemu_assert_reads(const char *path, const struct peer_read *reads, size_t count)
{
    g_autoptr(GPtrArray) arguments = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *text = NULL;

    for (const char *const *word = (const char *const[]){"qemu-io", "-r", "-f", "qcow2", NULL};
         *word; word++) {
        g_ptr_array_add(arguments, g_strdup(*word));
    }
    for (size_t i = 0; i < count; i++) {
        g_ptr_array_add(arguments, g_strdup("-c"));
        g_ptr_array_add(arguments, g_strdup_printf("read -P 0x%x %" PRIu64 " %" PRIu64,
                                                   reads[i].fill, reads[i].offset, reads[i].bytes));
    }
    g_ptr_array_add(arguments, g_strdup(path));
    g_ptr_array_add(arguments, NULL);
    int status = run((const char *const *)arguments->pdata, &text);

    if (status) {
        g_error("qemu-io: status %d\n%s", status, text);
    }
}
