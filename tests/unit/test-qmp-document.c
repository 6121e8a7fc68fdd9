/* SPDX-License-Identifier: BSD-3-Clause */
/* docs/qmp.md is committed; it must say what the command tables say. */
#include <glib.h>
#include <string.h>

#include "server/server.h"

static char *read_document(const char *name)
{
    const char *root = g_getenv("LIVEBLK_SOURCE");
    g_autofree char *path = g_build_filename(root ? root : ".", "docs", name, NULL);
    g_autoptr(GError) error = NULL;
    char *text = NULL;

    g_file_get_contents(path, &text, NULL, &error);
    g_assert_no_error(error);
    return text;
}

static void test_up_to_date(void)
{
    g_autofree char *introduction = read_document("qmp-introduction.md");
    g_autofree char *committed = read_document("qmp.md");
    g_autofree char *generated = server_qmp_document(introduction);

    if (!g_str_equal(committed, generated)) {
        g_test_message("docs/qmp.md is out of date. Run: ninja -C build docs/generate-qmp && "
                       "build/docs/generate-qmp docs");
        g_test_fail();
    }
}

/* Nothing in it is left without a word of explanation. */
static void test_explained(void)
{
    g_autofree char *generated = server_qmp_document("");
    g_auto(GStrv) sections = g_strsplit(strstr(generated, "## Commands"), "\n### ", -1);

    for (char **section = sections + 1; *section; section++) {
        g_auto(GStrv) lines = g_strsplit(*section, "\n", 3);

        if (g_str_has_prefix(lines[2], "Arguments:") || g_str_has_prefix(lines[2], "Data:")) {
            g_test_message("%s has no description", lines[0]);
            g_test_fail();
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-document/says-what-the-tables-say", test_up_to_date);
    g_test_add_func("/qmp-document/explains-every-command-and-event", test_explained);
    return g_test_run();
}
