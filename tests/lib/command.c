/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/command.h"

#include <sys/wait.h>

static int run(const char *command, char **said)
{
    g_autofree char *out = NULL, *complaint = NULL;
    g_autoptr(GError) error = NULL;
    int status;

    g_spawn_command_line_sync(command, &out, &complaint, &status, &error);
    g_assert_no_error(error);
    *said = g_strconcat(out, complaint, NULL);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int test_command(char **said, const char *format, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    va_start(args, format);
    g_autofree char *command = g_strdup_vprintf(format, args);
    va_end(args);
    int status = run(command, &text);
    if (said) {
        *said = g_steal_pointer(&text);
    }
    return status;
}

static char *run_well(const char *format, va_list args)
{
    g_autofree char *command = g_strdup_vprintf(format, args), *text = NULL;
    int status = run(command, &text);

    if (status) {
        g_error("%s: status %d\n%s", command, status, text);
    }
    return g_steal_pointer(&text);
}

char *test_command_output(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    char *text = run_well(format, args);
    va_end(args);
    return text;
}

void test_command_succeeds(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    g_free(run_well(format, args));
    va_end(args);
}
