/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/command.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static char *read_all(int fd)
{
    struct stat st;

    g_assert_cmpint(fstat(fd, &st), ==, 0);
    char *text = g_malloc0((size_t)st.st_size + 1);
    g_assert_cmpint(pread(fd, text, (size_t)st.st_size, 0), ==, st.st_size);
    return text;
}

/*
 * A fork would copy the page tables of a process that a sanitizer has made huge, several hundred
 * times in some tests; posix_spawn does not.
 */
static int run(const char *command, char **said)
{
    g_auto(GStrv) arguments = NULL;
    g_autoptr(GError) error = NULL;
    posix_spawn_file_actions_t actions;
    int output = memfd_create("output", MFD_CLOEXEC), status;
    pid_t pid;

    g_assert_cmpint(output, >=, 0);
    g_shell_parse_argv(command, NULL, &arguments, &error);
    g_assert_no_error(error);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
    status = posix_spawnp(&pid, arguments[0], &actions, NULL, arguments, environ);
    if (status) {
        g_error("%s: %s", arguments[0], g_strerror(status));
    }
    posix_spawn_file_actions_destroy(&actions);
    while (waitpid(pid, &status, 0) < 0) {
        g_assert_cmpint(errno, ==, EINTR);
    }
    *said = read_all(output);
    close(output);
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
