/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

/* What one system call is given; fewer than IOV_MAX. */
#define PARTS_MAX 256

static ssize_t receive_some(struct nbd_channel *channel, void *buffer, size_t bytes)
{
    ssize_t received;

    if (channel->tls) {
        return tls_receive(channel->tls, buffer, bytes);
    }
    do {
        received = recv(channel->fd, buffer, bytes, 0);
    } while (received < 0 && errno == EINTR);
    return received < 0 ? -errno : received;
}

ssize_t nbd_channel_receive(struct nbd_channel *channel, void *buffer, size_t least, size_t most)
{
    size_t done = 0;

    while (done < least) {
        ssize_t received = receive_some(channel, (uint8_t *)buffer + done, most - done);

        if (received < 0) {
            return received;
        }
        if (received == 0) {
            return done ? -ECONNRESET : 0;
        }
        done += (size_t)received;
    }
    return (ssize_t)done;
}

/* Leave out of the parts what has been sent. */
static void advance(struct iovec **parts, size_t *count, size_t bytes)
{
    while (*count && bytes >= (*parts)->iov_len) {
        bytes -= (*parts)->iov_len;
        (*parts)++;
        (*count)--;
    }
    if (*count) {
        (*parts)->iov_base = (uint8_t *)(*parts)->iov_base + bytes;
        (*parts)->iov_len -= bytes;
    }
}

/* One system call; the parts become what is left. */
static int send_some(struct nbd_channel *channel, struct iovec **parts, size_t *count, int flags)
{
    struct msghdr message = {.msg_iov = *parts,
                             .msg_iovlen = *count < PARTS_MAX ? *count : PARTS_MAX};
    ssize_t sent = sendmsg(channel->fd, &message, MSG_NOSIGNAL | flags);

    if (sent < 0 && errno != EINTR) {
        return -errno;
    }
    advance(parts, count, sent < 0 ? 0 : (size_t)sent);
    return 0;
}

int nbd_channel_try_send(struct nbd_channel *channel, struct iovec **parts, size_t *count)
{
    advance(parts, count, 0);
    if (channel->tls || !*count) {
        return 0;
    }
    int status = send_some(channel, parts, count, MSG_DONTWAIT);
    return status == -EAGAIN ? 0 : status;
}

int nbd_channel_send(struct nbd_channel *channel, struct iovec *parts, size_t count)
{
    int status = 0;

    if (channel->tls) {
        return tls_send(channel->tls, parts, count);
    }
    advance(&parts, &count, 0);
    while (count && status == 0) {
        status = send_some(channel, &parts, &count, 0);
    }
    return status;
}

void nbd_channel_shut_down(struct nbd_channel *channel)
{
    shutdown(channel->fd, SHUT_RDWR);
}

void nbd_channel_close(struct nbd_channel *channel)
{
    if (channel->tls) {
        fcntl(channel->fd, F_SETFL, O_NONBLOCK); /* nobody may read what is still to be said */
        tls_end(channel->tls);
        channel->tls = NULL;
    }
    close(channel->fd);
    channel->fd = -1;
}
