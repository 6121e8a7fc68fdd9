/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/error.h"

static const char *program;
static int end_fd = -1;    /* an eventfd: the end has come; never read */
static int ready_fd = -1;  /* where the parent waits to be told; -1: there is none */
static int errors_fd = -1; /* with such a parent: the standard error that we were started with */
static char *pid_path;     /* of the file that is ours */
static int pid_fd = -1;

/* ---- Messages -------------------------------------------------------------------------------- */

void process_complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    fprintf(stderr, "%s: %s\n", program, text); /* in one piece: stderr is locked */
}

static void on_log(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL)) {
        process_complain("error: %s", message);
    } else if (level & G_LOG_LEVEL_WARNING) {
        process_complain("warning: %s", message);
    }
}

int process_next_option(int argc, char **argv, const char *short_options,
                        const struct option *long_options, int *index, GError **error)
{
    g_autofree char *letters = g_strconcat(":", short_options, NULL);

    opterr = 0;
    int option = getopt_long(argc, argv, letters, long_options, index);
    if (option == ':') {
        block_error(error, EINVAL, "Option '%s' needs an argument", argv[optind - 1]);
        return '?';
    }
    if (option == '?' && optopt > 0 && optopt < 256 && !g_str_has_prefix(argv[optind - 1], "--")) {
        block_error(error, EINVAL, "Unknown option '-%c'; '%s --help' lists them", optopt, program);
    } else if (option == '?') {
        block_error(error, EINVAL,
                    "Option '%s' is unknown, ambiguous or takes no argument; "
                    "'%s --help' lists them",
                    argv[optind - 1], program);
    }
    return option;
}

/* ---- The end --------------------------------------------------------------------------------- */

void process_finish(void)
{
    uint64_t one = 1;

    (void)!write(end_fd, &one, sizeof(one)); /* fails only if it was told very often */
}

static void on_signal(int number)
{
    int saved_errno = errno;

    process_finish();
    errno = saved_errno;
}

/* Handlers, not a mask: programs that we start inherit a mask. */
static void catch_signals(void)
{
    const struct sigaction finish = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    const struct sigaction ignore = {.sa_handler = SIG_IGN};

    sigaction(SIGTERM, &finish, NULL);
    sigaction(SIGINT, &finish, NULL);
    sigaction(SIGHUP, &finish, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

/* What we open is not to lie where messages go, or where the background has nothing. */
static void fill_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) {
            exit(EXIT_FAILURE); /* nobody can be told why */
        }
    }
}

void process_begin(const char *name)
{
    program = name;
    fill_standard_streams();
    g_log_set_default_handler(on_log, NULL);
    end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (end_fd < 0) {
        process_complain("Could not make an eventfd: %s", block_strerror(errno));
        exit(EXIT_FAILURE);
    }
    catch_signals();
}

bool process_wait(const int *fds, unsigned count)
{
    g_autofree struct pollfd *polled = g_new(struct pollfd, count + 1);

    polled[0] = (struct pollfd){.fd = end_fd, .events = POLLIN};
    for (unsigned i = 0; i < count; i++) {
        polled[i + 1] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    }
    while (poll(polled, count + 1, -1) < 0 && errno == EINTR) {
    }
    return !polled[0].revents;
}

void process_end(void)
{
    if (pid_path) {
        unlink(pid_path);
        g_clear_pointer(&pid_path, g_free);
        close(pid_fd);
    }
}

/* ---- The background -------------------------------------------------------------------------- */

/* Between the two: whether the child is ready, and what it writes on standard error until it is. */
struct child_pipes {
    int ready[2], errors[2];
};

/* Returns false at the end. */
static bool relay(int fd)
{
    char text[1024];
    ssize_t got = read(fd, text, sizeof(text));

    if (got > 0) {
        (void)!write(STDERR_FILENO, text, (size_t)got); /* nobody is there to be told */
    }
    return got > 0 || (got < 0 && errno == EINTR);
}

/*
 * Pass on what the child writes until it is ready, or has ended; programs that it has started may
 * have its standard error for longer. Returns whether it is ready.
 */
static bool wait_until_ready(const struct child_pipes *pipes)
{
    struct pollfd polled[] = {{.fd = pipes->errors[0], .events = POLLIN},
                              {.fd = pipes->ready[0], .events = POLLIN}};
    char byte;

    while (polled[0].revents || !polled[1].revents) {
        if (polled[0].revents && !relay(polled[0].fd)) {
            polled[0].fd = -1;
        }
        polled[0].revents = polled[1].revents = 0;
        if (poll(polled, G_N_ELEMENTS(polled), -1) < 0 && errno != EINTR) {
            return false;
        }
    }
    return read(pipes->ready[0], &byte, sizeof(byte)) == sizeof(byte);
}

/* The parent's part. */
G_NORETURN static void wait_for_child(pid_t child, struct child_pipes *pipes)
{
    int status;

    close(pipes->ready[1]);
    close(pipes->errors[1]);
    if (wait_until_ready(pipes)) {
        _exit(EXIT_SUCCESS);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    _exit(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

/* Neither we nor programs that we start keep what who started us may be reading to its end. */
static void redirect_streams(int errors)
{
    AUTO_CLOSE int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    errors_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
    }
    dup2(errors, STDERR_FILENO);
}

void process_fork(void)
{
    struct child_pipes pipes;
    pid_t child;

    if (pipe2(pipes.ready, O_CLOEXEC) < 0 || pipe2(pipes.errors, O_CLOEXEC) < 0 ||
        (child = fork()) < 0) {
        process_complain("Could not go to the background: %s", block_strerror(errno));
        exit(EXIT_FAILURE);
    }
    if (child > 0) {
        /* A signal meanwhile ends the child: they have the eventfd in common. */
        wait_for_child(child, &pipes);
    }
    close(pipes.ready[0]);
    close(pipes.errors[0]);
    ready_fd = pipes.ready[1];
    setsid();
    redirect_streams(pipes.errors[1]);
    close(pipes.errors[1]);
}

/* The parent, which passes errors on, is about to leave. */
static void settle_errors(bool keep)
{
    AUTO_CLOSE int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int fd = keep ? errors_fd : null;

    if (fd >= 0) {
        dup2(fd, STDERR_FILENO);
    }
    if (errors_fd >= 0) {
        close(errors_fd);
    }
}

void process_ready(bool keep_errors)
{
    char byte = 0;

    if (ready_fd < 0) {
        return;
    }
    /* A directory that we sit in could not be unmounted. */
    if (chdir("/") < 0) {
        process_complain("warning: Could not go to the root directory: %s", block_strerror(errno));
    }
    settle_errors(keep_errors);
    (void)!write(ready_fd, &byte, sizeof(byte)); /* the parent may have been killed */
    close(ready_fd);
    ready_fd = -1;
}

/* ---- The process ID -------------------------------------------------------------------------- */

static bool is_still_at(int fd, const char *path)
{
    struct stat ours, there;

    return fstat(fd, &ours) == 0 && stat(path, &there) == 0 && ours.st_dev == there.st_dev &&
           ours.st_ino == there.st_ino;
}

/* The file, locked; it may be that of a process which is just removing it. */
static int open_pid_file(const char *path, GError **error)
{
    for (;;) {
        AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

        if (fd < 0) {
            return block_error_errno(error, errno, "Could not open the pid file '%s'", path);
        }
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            return block_error(error, EBUSY,
                               "The pid file '%s' is locked: the process in it still runs", path);
        }
        if (is_still_at(fd, path)) {
            return steal_fd(&fd);
        }
    }
}

int process_write_pid_file(const char *path, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    size_t length = strlen(text);
    int fd = open_pid_file(path, error);

    if (fd < 0) {
        return fd;
    }
    if (ftruncate(fd, 0) < 0 || write(fd, text, length) != (ssize_t)length) {
        int status = block_error_errno(error, errno, "Could not write the pid file '%s'", path);

        close(fd);
        return status;
    }
    pid_fd = fd; /* open as long as the process, and its lock held */
    pid_path = g_canonicalize_filename(path, NULL);
    return 0;
}
