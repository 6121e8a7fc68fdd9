/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/signals.h"

#include <errno.h>
#include <glib.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* A signal that our parent had ignored (nohup, a job in the background) stays ignored. */
static void add_unless_ignored(sigset_t *set, int number)
{
    struct sigaction action;

    if (sigaction(number, NULL, &action) || action.sa_handler != SIG_IGN) {
        sigaddset(set, number);
    }
}

int signals_catch(void)
{
    sigset_t set;

    sigemptyset(&set);
    add_unless_ignored(&set, SIGINT);
    add_unless_ignored(&set, SIGTERM);
    add_unless_ignored(&set, SIGUSR1);
    add_unless_ignored(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    /* Block first: a signal that is already on its way then waits in the descriptor. */
    int fd =
        sigprocmask(SIG_BLOCK, &set, NULL) ? -1 : signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0) {
        g_error("Could not catch signals: %s", g_strerror(errno));
    }
    return fd;
}

int signals_take(int fd)
{
    struct signalfd_siginfo info;

    return read(fd, &info, sizeof(info)) == sizeof(info) ? (int)info.ssi_signo : 0;
}
