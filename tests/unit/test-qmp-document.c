/* SPDX-License-Identifier: BSD-3-Clause */
/* docs/qmp.md is committed; it must say what the command tables say. */
#include <glib.h>
#include <string.h>

#include "server/compatibility.h"
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

        if (g_str_has_prefix(lines[2], "Compatibility:") ||
            g_str_has_prefix(lines[2], "Arguments:") || g_str_has_prefix(lines[2], "Data:")) {
            g_test_message("%s has no description", lines[0]);
            g_test_fail();
        }
    }
}

static bool has_known_beginning(const char *note)
{
    static const char *const beginnings[] = {"As in QEMU", "Of QEMU's system emulator",
                                             "Of liveblk's own; QEMU has no such command.",
                                             "Of liveblk's own; QEMU has no such event."};

    for (size_t i = 0; i < G_N_ELEMENTS(beginnings); i++) {
        if (g_str_has_prefix(note, beginnings[i])) {
            return true;
        }
    }
    return false;
}

/* Who knows QEMU finds in each section what holds here: no command or event is without a note. */
static void test_compared(void)
{
    g_autofree char *generated = server_qmp_document("");
    char *types = strstr(generated, "## Types");

    g_assert_nonnull(types);
    *types = '\0';
    g_auto(GStrv) sections = g_strsplit(strstr(generated, "## Commands"), "\n### ", -1);
    for (char **section = sections + 1; *section; section++) {
        const char *note = strstr(*section, "\nCompatibility: ");

        if (!note || !has_known_beginning(note + strlen("\nCompatibility: "))) {
            g_test_message("server/compatibility.c says nothing of %.*s, or not in what way it is "
                           "as in QEMU",
                           (int)strcspn(*section, "\n"), *section);
            g_test_fail();
        }
    }
}

/* And no note is about what there is not, or one of two on the same thing. */
static void test_no_idle_notes(void)
{
    g_autofree char *generated = server_qmp_document("");
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

    *strstr(generated, "## Types") = '\0';
    for (const struct qmp_note *note = compatibility_notes; note->name; note++) {
        g_autofree char *heading = g_strdup_printf("\n### %s\n", note->name);

        if (!strstr(generated, heading) || !g_hash_table_add(seen, (void *)note->name)) {
            g_test_message("server/compatibility.c: %s is no command or event, or there twice",
                           note->name);
            g_test_fail();
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp-document/says-what-the-tables-say", test_up_to_date);
    g_test_add_func("/qmp-document/explains-every-command-and-event", test_explained);
    g_test_add_func("/qmp-document/compares-each-with-qemu", test_compared);
    g_test_add_func("/qmp-document/compares-nothing-that-is-not-there", test_no_idle_notes);
    return g_test_run();
}
