/* SPDX-License-Identifier: BSD-3-Clause */
/* Programs that run around a cut. */
#include "server/cut-hooks.h"

#include <errno.h>
#include <glib.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "block/clock.h"
#include "block/error.h"
#include "tests/lib/disk.h"

static int run(const char *script, int64_t limit_ns, GError **error)
{
    const char *const arguments[] = {"sh", "-c", script, NULL};
    const char *const variables[] = {"LIVEBLK_WORD=a b", NULL};

    return cut_hook_run(arguments, variables, limit_ns, error);
}

static void assert_fails(const char *script, int64_t limit_ns, int error_number, const char *text)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(run(script, limit_ns, &error), ==, -error_number);
    g_assert_nonnull(strstr(error->message, text));
}

static void test_ends(void)
{
    g_autoptr(GError) error = NULL;
    const char *const nothing[] = {"/nonexistent/program", NULL}, *const none[] = {NULL};

    g_assert_cmpint(run("test \"$LIVEBLK_WORD\" = 'a b'", 60 * NS_PER_SECOND, NULL), ==, 0);
    /* It can read nothing, and no signal that is blocked here is so there. */
    g_assert_cmpint(run("! read word", 60 * NS_PER_SECOND, NULL), ==, 0);
    assert_fails("exit 3", 60 * NS_PER_SECOND, EIO, "exit status 3");
    assert_fails("kill -TERM $$", 60 * NS_PER_SECOND, EIO, "signal 15");
    g_assert_cmpint(cut_hook_run(nothing, none, NS_PER_SECOND, &error), ==, -ENOENT);
}

/* How it ends is not to be known then, and must not be taken for well. */
static void test_ignored_children(void)
{
    void (*before)(int) = signal(SIGCHLD, SIG_IGN);

    assert_fails("exit 3", 60 * NS_PER_SECOND, ECHILD, "SIGCHLD ignored");
    assert_fails("sleep 1000", 300 * NS_PER_MS, ETIMEDOUT, "did not end within 300 ms");
    signal(SIGCHLD, before);
}

/* Gone, or nobody has looked at its end yet. */
static bool has_ended(const char *pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", atoi(pid));
    g_autofree char *text = NULL;

    return !g_file_get_contents(path, &text, NULL, NULL) || strstr(text, ") Z");
}

/* With all that it has started. */
static void test_killed(void)
{
    g_autofree char *directory = test_directory_new(true);
    g_autofree char *file = test_path(directory, "pid");
    g_autofree char *script = g_strdup_printf("sleep 1000 & echo $! > %s; wait", file);
    g_autofree char *pid = NULL;

    assert_fails(script, 300 * NS_PER_MS, ETIMEDOUT, "did not end within 300 ms");
    g_assert_true(g_file_get_contents(file, &pid, NULL, NULL));
    while (!has_ended(pid)) {
        g_usleep(10 * 1000);
    }
    test_directory_free(g_steal_pointer(&directory));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cut-hooks/says-how-it-ended", test_ends);
    g_test_add_func("/cut-hooks/is-killed-when-its-time-is-over", test_killed);
    g_test_add_func("/cut-hooks/an-end-that-is-not-known-is-a-failure", test_ignored_children);
    return g_test_run();
}
