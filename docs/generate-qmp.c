/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writes docs/qmp.md from docs/qmp-introduction.md and the command tables:
 *
 *     generate-qmp DOCS-DIRECTORY
 */
#include <glib.h>
#include <stdio.h>

#include "server/server.h"

static int fail(const char *message)
{
    fprintf(stderr, "generate-qmp: %s\n", message);
    return 1;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *introduction = NULL;

    if (argc != 2) {
        return fail("which directory are the documents in?");
    }
    g_autofree char *source = g_build_filename(argv[1], "qmp-introduction.md", NULL);
    g_autofree char *result = g_build_filename(argv[1], "qmp.md", NULL);
    if (!g_file_get_contents(source, &introduction, NULL, &error)) {
        return fail(error->message);
    }
    g_autofree char *document = server_qmp_document(introduction);
    return g_file_set_contents(result, document, -1, &error) ? 0 : fail(error->message);
}
