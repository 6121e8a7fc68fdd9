/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/stdio-bridge.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "block/error.h"
#include "block/thread.h"

/* How long the last output may wait for its reader. */
#define LAST_OUTPUT_MS 1000

/* One direction. A pipe that takes anything takes this much without blocking. */
struct lane {
    int from, to;
    char bytes[PIPE_BUF];
    size_t start, end;
    bool has_ended; /* there is nothing more to be read */
};

static pthread_t thread;
static bool is_running;
static struct termios terminal; /* as it was */
static bool has_changed_terminal;
static int bridge_fd; /* our end of the socket */

static bool is_empty(const struct lane *lane)
{
    return lane->start == lane->end;
}

/* Called when there is something to read, or the end. */
static void fill(struct lane *lane)
{
    ssize_t got = read(lane->from, lane->bytes, sizeof(lane->bytes));

    if (got > 0) {
        lane->start = 0;
        lane->end = (size_t)got;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        lane->has_ended = true;
    }
}

/* Called when something can be written, or nothing ever again. */
static void drain(struct lane *lane)
{
    ssize_t put = write(lane->to, lane->bytes + lane->start, lane->end - lane->start);

    if (put > 0) {
        lane->start += (size_t)put;
    } else if (put < 0 && errno != EAGAIN && errno != EINTR) {
        lane->start = lane->end;
        lane->has_ended = true;
    }
}

static void watch(const struct lane *lane, struct pollfd *polled)
{
    if (!is_empty(lane)) {
        *polled = (struct pollfd){.fd = lane->to, .events = POLLOUT};
    } else {
        *polled = (struct pollfd){.fd = lane->has_ended ? -1 : lane->from, .events = POLLIN};
    }
}

static void move(struct lane *lane)
{
    if (is_empty(lane)) {
        fill(lane);
    } else {
        drain(lane);
    }
}

static void *run(void *data)
{
    struct lane in = {.from = STDIN_FILENO, .to = bridge_fd};
    struct lane out = {.from = bridge_fd, .to = STDOUT_FILENO};
    bool has_shut = false, is_left = false;
    int count = 1;

    while (count > 0 && !(out.has_ended && is_empty(&out))) {
        struct pollfd polled[3] = {[2] = {.fd = is_left ? -1 : bridge_fd}};

        if (in.has_ended && is_empty(&in) && !has_shut) {
            shutdown(bridge_fd, SHUT_WR);
            has_shut = true;
        }
        watch(&in, &polled[0]);
        watch(&out, &polled[1]);
        /* When the monitor has left, what it has said must find its reader soon. */
        count = poll(polled, G_N_ELEMENTS(polled), is_left ? LAST_OUTPUT_MS : -1);
        is_left |= polled[2].revents != 0;
        if (polled[0].revents) {
            move(&in);
        }
        if (polled[1].revents) {
            move(&out);
        }
    }
    close(bridge_fd);
    return NULL;
}

/* A terminal's keys are to be input, all of them. */
static void take_keys(void)
{
    struct termios changed;

    if (tcgetattr(STDIN_FILENO, &terminal) < 0) {
        return; /* it is none */
    }
    changed = terminal;
    changed.c_lflag &= ~(tcflag_t)ISIG;
    has_changed_terminal = tcsetattr(STDIN_FILENO, TCSANOW, &changed) == 0;
}

int stdio_bridge_start(bool has_signals, GError **error)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) {
        return block_error_errno(error, errno, "Could not make a socket for standard input");
    }
    bridge_fd = ends[0];
    int error_number = thread_create(&thread, run, NULL);
    if (error_number) {
        close(ends[0]);
        close(ends[1]);
        return block_error_errno(error, error_number, "Could not start a thread");
    }
    is_running = true;
    if (!has_signals) {
        take_keys();
    }
    return ends[1];
}

void stdio_bridge_end(void)
{
    if (is_running) {
        pthread_join(thread, NULL);
        is_running = false;
    }
    if (has_changed_terminal) {
        tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
    }
}
