/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/cut-hooks.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"

extern char **environ;

static char **make_environment(const char *const *variables)
{
    GPtrArray *list = g_ptr_array_new();

    for (char **entry = environ; entry && *entry; entry++) {
        g_ptr_array_add(list, *entry);
    }
    for (; *variables; variables++) {
        g_ptr_array_add(list, (char *)(uintptr_t)*variables);
    }
    g_ptr_array_add(list, NULL);
    return (char **)g_ptr_array_free(list, FALSE);
}

/* Our threads block all signals, and the program around us has handlers of its own. */
static int set_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    int status;

    sigemptyset(&none);
    sigfillset(&all);
    status = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                                      POSIX_SPAWN_SETSIGDEF);
    if (status == 0) {
        status = posix_spawnattr_setpgroup(attributes, 0);
    }
    if (status == 0) {
        status = posix_spawnattr_setsigmask(attributes, &none);
    }
    return status ? status : posix_spawnattr_setsigdefault(attributes, &all);
}

static int set_files(posix_spawn_file_actions_t *actions)
{
    int status = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);

    return status ? status
                  : posix_spawn_file_actions_adddup2(actions, STDERR_FILENO, STDOUT_FILENO);
}

/* Returns a positive errno. */
static int spawn(pid_t *pid, const char *const *arguments, const char *const *variables)
{
    g_autofree char **environment = make_environment(variables);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int status = posix_spawnattr_init(&attributes);

    if (status) {
        return status;
    }
    status = posix_spawn_file_actions_init(&actions);
    if (status == 0) {
        status = set_attributes(&attributes);
        if (status == 0) {
            status = set_files(&actions);
        }
        if (status == 0) {
            status = posix_spawnp(pid, arguments[0], &actions, &attributes,
                                  (char *const *)(uintptr_t)arguments, environment);
        }
        posix_spawn_file_actions_destroy(&actions);
    }
    posix_spawnattr_destroy(&attributes);
    return status;
}

/* Whether it has ended by the deadline. */
static bool wait_for_end(pid_t pid, int64_t deadline_ns)
{
    AUTO_CLOSE int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    while (true) {
        int64_t left_ms = (deadline_ns - clock_now_ns() + NS_PER_MS - 1) / NS_PER_MS;
        siginfo_t information = {0};

        int status = waitid(P_PID, (id_t)pid, &information, WEXITED | WNOHANG | WNOWAIT);

        if ((status == 0 && information.si_pid == pid) || (status < 0 && errno == ECHILD)) {
            return true;
        }
        if (left_ms <= 0) {
            return false;
        }
        /* Without pidfds (Linux before 5.3) look again and again. */
        if (fd < 0) {
            left_ms = MIN(left_ms, 20);
        }
        poll(fd < 0 ? NULL : &poll_fd, fd >= 0, (int)MIN(left_ms, 1000));
    }
}

static int report(const char *name, int wait_status, GError **error)
{
    if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) {
        return 0;
    }
    return WIFEXITED(wait_status) ? block_error(error, EIO, "'%s' failed with exit status %d", name,
                                                WEXITSTATUS(wait_status))
                                  : block_error(error, EIO, "'%s' was killed by signal %d", name,
                                                WTERMSIG(wait_status));
}

/* *wait_status: how it ended. False if nobody is told: the program around us ignores SIGCHLD. */
static bool reap(pid_t pid, int *wait_status)
{
    pid_t reaped;

    do {
        reaped = waitpid(pid, wait_status, 0);
    } while (reaped < 0 && errno == EINTR);
    return reaped == pid;
}

int cut_hook_run(const char *const *arguments, const char *const *variables, int64_t limit_ns,
                 GError **error)
{
    int wait_status = 0;
    pid_t pid;
    int status = spawn(&pid, arguments, variables);

    if (status) {
        return block_error_errno(error, status, "'%s' could not be started", arguments[0]);
    }
    bool has_ended = wait_for_end(pid, clock_now_ns() + limit_ns);
    if (!has_ended) {
        kill(-pid, SIGKILL);
    }
    bool is_known = reap(pid, &wait_status);
    if (!has_ended) {
        return block_error(error, ETIMEDOUT,
                           "'%s' did not end within %" PRId64 " ms and was killed", arguments[0],
                           limit_ns / NS_PER_MS);
    }
    return is_known ? report(arguments[0], wait_status, error)
                    : block_error(error, ECHILD,
                                  "'%s' has ended, and nobody knows how: the server was started "
                                  "with SIGCHLD ignored",
                                  arguments[0]);
}
