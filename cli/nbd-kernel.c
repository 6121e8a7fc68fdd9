/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libnbd does the handshake; then the kernel is given the socket, and goes on from there. Replies
 * are simple ones: it knows no others.
 */
#include "cli/nbd-kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <libnbd.h>
#include <linux/fs.h>
#include <linux/nbd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/thread.h"
#include "cli/process.h"
#include "formats/nbd-handshake.h"

#define SECTOR 512

struct nbd_kernel_device {
    char *path;
    int fd;
    struct nbd_handle *connection; /* whose socket the kernel has */
    pthread_t thread;              /* that lends itself to the kernel for as long as it is used */
    bool has_thread;
    atomic_bool has_ended; /* the thread has got itself back */
};

int nbd_kernel_check(GError **error)
{
    return access("/sys/module/nbd", F_OK) == 0
               ? 0
               : block_error(error, ENODEV,
                             "This machine's kernel has no NBD client: load its module (modprobe "
                             "nbd), or use --socket without --connect");
}

static int open_device(const char *path, GError **error)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);

    return fd >= 0 ? fd : block_error_errno(error, errno, "Could not open '%s'", path);
}

/* ---- The connection -------------------------------------------------------------------------- */

static int failed(GError **error)
{
    return block_error(error, EIO, "Could not connect to ourselves: %s", nbd_library_error());
}

static struct nbd_handle *shake_hands(const char *socket, const char *export_name, GError **error)
{
    struct nbd_handle *connection = nbd_create();

    if (!connection || nbd_set_request_structured_replies(connection, false) < 0 ||
        nbd_set_export_name(connection, export_name) < 0 ||
        nbd_connect_unix(connection, socket) < 0) {
        failed(error);
        nbd_close(connection);
        return NULL;
    }
    return connection;
}

static unsigned long flag_if(int answer, unsigned long flag)
{
    return answer > 0 ? flag : 0;
}

/* What the kernel is to know of the export, in the protocol's own bits. */
static unsigned long flags_of(struct nbd_handle *connection)
{
    return NBD_FLAG_HAS_FLAGS | flag_if(nbd_is_read_only(connection), NBD_FLAG_READ_ONLY) |
           flag_if(nbd_can_flush(connection), NBD_FLAG_SEND_FLUSH) |
           flag_if(nbd_can_fua(connection), NBD_FLAG_SEND_FUA) |
           flag_if(nbd_can_trim(connection), NBD_FLAG_SEND_TRIM) |
           flag_if(nbd_can_multi_conn(connection), NBD_FLAG_CAN_MULTI_CONN);
}

/* ---- The device ------------------------------------------------------------------------------ */

static int set_up(struct nbd_kernel_device *device, GError **error)
{
    int64_t bytes = nbd_get_size(device->connection);
    unsigned long flags = flags_of(device->connection);
    int read_only = !!(flags & NBD_FLAG_READ_ONLY);

    if (bytes < 0 || (uint64_t)bytes / SECTOR > ULONG_MAX) {
        return block_error(error, EFBIG, "The disk is too large for '%s'", device->path);
    }
    /* First the socket: who comes second is told so, and has changed nothing. */
    if (ioctl(device->fd, NBD_SET_SOCK, (unsigned long)nbd_aio_get_fd(device->connection)) < 0) {
        return block_error_errno(error, errno,
                                 "Could not connect '%s'; is it an NBD device that nobody uses?",
                                 device->path);
    }
    if (ioctl(device->fd, NBD_SET_BLKSIZE, (unsigned long)SECTOR) < 0 ||
        ioctl(device->fd, NBD_SET_SIZE_BLOCKS, (unsigned long)(bytes / SECTOR)) < 0 ||
        ioctl(device->fd, NBD_SET_FLAGS, flags) < 0 ||
        ioctl(device->fd, BLKROSET, &read_only) < 0) {
        int status = errno;

        ioctl(device->fd, NBD_CLEAR_SOCK);
        return block_error_errno(error, status, "Could not set '%s' up", device->path);
    }
    if (bytes % SECTOR) {
        process_complain("warning: the last %d bytes of the disk are not in '%s', which has whole "
                         "sectors of %d bytes",
                         (int)(bytes % SECTOR), device->path, SECTOR);
    }
    return 0;
}

static void *kernel_thread(void *data)
{
    struct nbd_kernel_device *device = data;

    if (ioctl(device->fd, NBD_DO_IT) < 0 && errno != EPIPE && errno != ESHUTDOWN) {
        process_complain("'%s' has ended: %s", device->path, block_strerror(errno));
    }
    ioctl(device->fd, NBD_CLEAR_QUE);
    ioctl(device->fd, NBD_CLEAR_SOCK);
    atomic_store(&device->has_ended, true);
    process_finish();
    return NULL;
}

static bool has_size(int fd)
{
    uint64_t bytes = 0;

    return ioctl(fd, BLKGETSIZE64, &bytes) == 0 && bytes;
}

/* The device has its size as soon as the other thread has lent itself to the kernel. */
static int wait_until_usable(struct nbd_kernel_device *device, GError **error)
{
    const struct timespec pause = {.tv_nsec = 5 * NS_PER_MS};

    while (nbd_get_size(device->connection) >= SECTOR && !has_size(device->fd)) {
        if (atomic_load(&device->has_ended)) {
            return block_error(error, EIO, "'%s' did not get into use", device->path);
        }
        nanosleep(&pause, NULL);
    }
    ioctl(device->fd, BLKRRPART); /* EINVAL: the module was told to look for none */
    return 0;
}

static int start(struct nbd_kernel_device *device, const char *socket, const char *export_name,
                 GError **error)
{
    device->fd = open_device(device->path, error);
    if (device->fd < 0) {
        return device->fd;
    }
    device->connection = shake_hands(socket, export_name, error);
    int status = device->connection ? set_up(device, error) : -EIO;
    if (status < 0) {
        return status;
    }
    status = thread_create(&device->thread, kernel_thread, device);
    if (status < 0) {
        ioctl(device->fd, NBD_CLEAR_SOCK);
        return block_error_errno(error, -status, "Could not start a thread");
    }
    device->has_thread = true;
    return wait_until_usable(device, error);
}

struct nbd_kernel_device *nbd_kernel_connect(const char *path, const char *socket,
                                             const char *export_name, GError **error)
{
    struct nbd_kernel_device *device = g_new0(struct nbd_kernel_device, 1);

    device->path = g_strdup(path);
    device->fd = -1;
    if (start(device, socket, export_name, error) < 0) {
        nbd_kernel_device_free(device);
        return NULL;
    }
    return device;
}

/* What is written to the device itself and is still in memory goes first. */
static void disconnect(int fd)
{
    fsync(fd);
    ioctl(fd, NBD_DISCONNECT);
}

void nbd_kernel_device_free(struct nbd_kernel_device *device)
{
    if (!device) {
        return;
    }
    if (device->has_thread) {
        if (!atomic_load(&device->has_ended)) {
            disconnect(device->fd);
        }
        pthread_join(device->thread, NULL);
    }
    nbd_close(device->connection);
    if (device->fd >= 0) {
        close(device->fd);
    }
    g_free(device->path);
    g_free(device);
}

int nbd_kernel_disconnect(const char *path, GError **error)
{
    AUTO_CLOSE int fd = open_device(path, error);

    if (fd < 0) {
        return fd;
    }
    disconnect(fd);
    if (ioctl(fd, NBD_CLEAR_SOCK) < 0) {
        return block_error_errno(error, errno, "Could not disconnect '%s'", path);
    }
    return 0;
}
