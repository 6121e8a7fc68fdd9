/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/nbd-tcp.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"

static void free_addresses(struct addrinfo **addresses)
{
    if (*addresses) {
        freeaddrinfo(*addresses);
    }
}
#define AUTO_ADDRESSES CLEANUP(free_addresses)

bool nbd_tcp_is_choosy(const struct block_address *server)
{
    return server->no_ipv4 || server->no_ipv6;
}

static int look_up(const struct block_address *server, const char *port, struct addrinfo **found)
{
    const struct addrinfo hints = {
        .ai_family = server->no_ipv6 ? AF_INET : AF_INET6,
        .ai_socktype = SOCK_STREAM,
    };

    switch (getaddrinfo(server->host, port, &hints, found)) {
    case 0:
        return 0;
    case EAI_SYSTEM:
        return errno ? -errno : -EIO;
    case EAI_MEMORY:
        return -ENOMEM;
    case EAI_AGAIN:
        return -EAGAIN;
    default:
        return -EADDRNOTAVAIL; /* it has no address of this family */
    }
}

static int wait_connected(int fd, int64_t deadline_ns, int cancel_fd)
{
    struct pollfd fds[2] = {{.fd = fd, .events = POLLOUT}, {.fd = cancel_fd, .events = POLLIN}};
    int error_number = 0;
    socklen_t bytes = sizeof(error_number);

    for (;;) {
        int64_t left_ns = deadline_ns - clock_now_ns();

        if (left_ns <= 0) {
            return -ETIMEDOUT;
        }
        int count = poll(fds, 2, (int)MIN_OF(left_ns / NS_PER_MS + 1, INT64_C(60000)));
        if (count > 0 && fds[1].revents) {
            return -ECANCELED;
        }
        if (count > 0) {
            break;
        }
    }
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error_number, &bytes) < 0 ? -errno : -error_number;
}

/* The socket, or a negative errno. */
static int connect_to(const struct addrinfo *address, int64_t deadline_ns, int cancel_fd)
{
    AUTO_CLOSE int fd =
        socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
               address->ai_protocol);
    int status = 0;

    if (fd < 0) {
        return -errno;
    }
    if (connect(fd, address->ai_addr, address->ai_addrlen) < 0) {
        status = errno == EINPROGRESS ? wait_connected(fd, deadline_ns, cancel_fd) : -errno;
    }
    if (status == 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    }
    return status < 0 ? status : steal_fd(&fd);
}

int nbd_tcp_connect(const struct block_address *server, const char *port, int64_t deadline_ns,
                    int cancel_fd)
{
    AUTO_ADDRESSES struct addrinfo *found = NULL;
    int status = look_up(server, port, &found);

    if (status < 0) {
        return status;
    }
    status = -EADDRNOTAVAIL;
    for (const struct addrinfo *address = found;
         address && status < 0 && status != -ETIMEDOUT && status != -ECANCELED;
         address = address->ai_next) {
        status = connect_to(address, deadline_ns, cancel_fd);
    }
    return status;
}

void nbd_tcp_keep_alive(int fd)
{
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
}
