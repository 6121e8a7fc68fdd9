/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zeroes and holes without writing data. None of these change the file's length.
 *
 * A request that may unmap becomes a hole. One that may not must leave the space allocated: a
 * guest that zeroes its disk to be sure of its space must not meet ENOSPC later.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "block/align.h"
#include "block/host-device.h"
#include "block/node.h"
#include "formats/file-internal.h"

static bool is_unsupported(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY || ret == -ENODEV;
}

/*
 * Turn "not supported" into -ENOTSUP and remember it; "not for this range" (-EINVAL) into
 * -ENOTSUP for this request only.
 */
static int remember(int ret, _Atomic bool *cannot)
{
    if (is_unsupported(ret)) {
        atomic_store(cannot, true);
        return -ENOTSUP;
    }
    return ret == -EINVAL ? -ENOTSUP : ret;
}

static int change_space(int fd, int mode, uint64_t offset, uint64_t bytes, _Atomic bool *cannot)
{
    int ret;

    if (atomic_load(cannot)) {
        return -ENOTSUP;
    }
    do {
        ret = fallocate(fd, mode, (off_t)offset, (off_t)bytes) < 0 ? -errno : 0;
    } while (ret == -EINTR);
    return remember(ret, cannot);
}

static int change_device(int fd, unsigned long request, uint64_t offset, uint64_t bytes,
                         _Atomic bool *cannot)
{
    uint64_t range[2] = {offset, bytes};
    int ret;

    if (atomic_load(cannot)) {
        return -ENOTSUP;
    }
    do {
        ret = ioctl(fd, request, range) < 0 ? -errno : 0;
    } while (ret == -EINTR);
    return remember(ret, cannot);
}

/* A hole: reads as zeroes, and the space goes back (on a block device: if it can promise that). */
static int punch(struct file_state *state, uint64_t offset, uint64_t bytes)
{
    return change_space(state->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes,
                        &state->cannot_punch);
}

static int allocate(struct file_state *state, uint64_t offset, uint64_t bytes)
{
    int ret = change_space(state->fd, FALLOC_FL_KEEP_SIZE, offset, bytes, &state->cannot_allocate);

    if (ret == 0) {
        atomic_store(&state->can_allocate, true);
    }
    return ret;
}

/*
 * Allocated zeroes where there is no zero-range (tmpfs): a hole, filled with fresh space. The
 * first time it is tried out on the range as it is, so that a file system that cannot allocate
 * is noticed before anything is changed.
 */
static int punch_and_allocate(struct file_state *state, uint64_t offset, uint64_t bytes)
{
    int ret = 0;

    if (atomic_load(&state->cannot_punch)) {
        return -ENOTSUP;
    }
    if (!atomic_load(&state->can_allocate)) {
        ret = allocate(state, offset, bytes);
    }
    if (ret == 0) {
        ret = punch(state, offset, bytes);
    }
    return ret == 0 ? allocate(state, offset, bytes) : ret;
}

static int zero_file(struct file_state *state, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int ret = flags & BLOCK_REQUEST_MAY_UNMAP ? punch(state, offset, bytes) : -ENOTSUP;

    if (ret == -ENOTSUP) {
        ret = change_space(state->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes,
                           &state->cannot_zero);
    }
    return ret == -ENOTSUP ? punch_and_allocate(state, offset, bytes) : ret;
}

static int zero_device(struct file_state *state, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int ret = -ENOTSUP;

    if (!is_aligned(offset | bytes, state->logical_block)) {
        return -ENOTSUP;
    }
    if (flags & BLOCK_REQUEST_MAY_UNMAP) {
        ret = punch(state, offset, bytes);
    }
    /* The kernel writes zeroes itself where the device has no command for it: right, not fast. */
    if (ret == -ENOTSUP && !(flags & BLOCK_REQUEST_NO_FALLBACK)) {
        ret = change_device(state->fd, BLKZEROOUT, offset, bytes, &state->cannot_zero);
    }
    return ret;
}

/* A loop device does the same for both: it makes a hole in its file. */
bool file_device_unmaps_zeroes(dev_t device)
{
    g_autofree char *most = host_device_attribute(device, "queue/write_zeroes_unmap_max_bytes");
    g_autofree char *loop = host_device_attribute(device, "loop/backing_file");

    return loop || (most && strtoull(most, NULL, 10) > 0);
}

int file_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct file_state *state = block_node_state(node);
    int ret = state->is_block_device ? zero_device(state, offset, bytes, flags)
                                     : zero_file(state, offset, bytes, flags);

    file_status_reshaped(&state->status, offset, bytes);
    if (ret == 0 && (flags & BLOCK_REQUEST_FUA)) {
        ret = file_sync_run(&state->sync, state->fd);
    }
    return ret;
}

static int discard_device(struct file_state *state, uint64_t offset, uint64_t bytes)
{
    uint64_t start = align_up(offset, state->logical_block);
    uint64_t end = align_down(offset + bytes, state->logical_block);

    return start < end
               ? change_device(state->fd, BLKDISCARD, start, end - start, &state->cannot_discard)
               : 0;
}

int file_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct file_state *state = block_node_state(node);
    int ret =
        state->is_block_device ? discard_device(state, offset, bytes) : punch(state, offset, bytes);

    file_status_reshaped(&state->status, offset, bytes);
    return ret == -ENOTSUP ? 0 : ret; /* a discard is advice */
}
