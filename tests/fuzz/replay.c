/* SPDX-License-Identifier: BSD-3-Clause */
/* Run a fuzz target on the files of a directory, as a test: none may crash it. */
#include <glib.h>
#include <stdio.h>

#include "tests/fuzz/fuzz.h"

static unsigned run_file(const char *directory, const char *name)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autofree char *contents = NULL;
    gsize bytes;

    if (!g_file_get_contents(path, &contents, &bytes, NULL)) {
        return 0;
    }
    printf("# %s\n", name);
    fflush(stdout);
    LLVMFuzzerTestOneInput((const uint8_t *)contents, bytes);
    return 1;
}

int main(int argc, char **argv)
{
    GDir *directory = argc == 2 ? g_dir_open(argv[1], 0, NULL) : NULL;
    unsigned count = 0;

    if (!directory) {
        fprintf(stderr, "Usage: %s DIRECTORY\n", argv[0]);
        return 2;
    }
    printf("1..1\n");
    for (const char *name; (name = g_dir_read_name(directory));) {
        count += run_file(argv[1], name);
    }
    g_dir_close(directory);
    printf("%sok 1 - %u inputs do no harm\n", count ? "" : "not ", count);
    return count ? 0 : 1;
}
