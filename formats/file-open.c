/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, closing and reopening of files and block devices. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "formats/file-internal.h"

enum { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };
enum { AIO_THREADS, AIO_NATIVE, AIO_IO_URING };

static const char *const locking_names[] = {"auto", "on", "off", NULL};
static const char *const aio_names[] = {"threads", "native", "io_uring", NULL};

const struct block_option file_option_table[] = {
    {
        .name = "filename",
        .type = BLOCK_OPTION_STRING,
        .offset = offsetof(struct file_options, filename),
        .required = true,
        .help = "Path of a regular file or a block device.",
    },
    {
        .name = "locking",
        .type = BLOCK_OPTION_ENUM,
        .offset = offsetof(struct file_options, locking),
        .default_text = "auto",
        .enum_values = locking_names,
        .help = "Lock the image against other programs: always (on), where the file system can "
                "(auto), or not at all (off).",
    },
    {
        .name = "aio",
        .type = BLOCK_OPTION_ENUM,
        .offset = offsetof(struct file_options, aio),
        .default_text = "threads",
        .enum_values = aio_names,
        .help = "How QEMU would do I/O; here it is done on threads whatever is said. native needs "
                "cache.direct.",
    },
    {
        .name = "aio-max-batch",
        .type = BLOCK_OPTION_UINT,
        .offset = offsetof(struct file_options, aio_max_batch),
        .default_text = "0",
        .help = "No effect.",
    },
    {.name = NULL},
};

/* What direct I/O must be aligned to where the kernel does not say. */
#define SMALLEST_DIRECT_ALIGNMENT 512u
#define SAFE_DIRECT_ALIGNMENT     4096u
#define LARGEST_DIRECT_ALIGNMENT  65536u

struct alignments {
    uint32_t request;
    uint32_t memory;
};

static const char *type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
        return "a character device";
    default:
        return "of an unknown type";
    }
}

static int check_mode(const char *filename, mode_t mode, GError **error)
{
    if (S_ISREG(mode) || S_ISBLK(mode)) {
        return 0;
    }
    return block_error(error, S_ISDIR(mode) ? EISDIR : EINVAL,
                       "Could not open '%s': it is %s, not a regular file or a block device",
                       filename, type_name(mode));
}

int file_check_type(const char *filename, GError **error)
{
    struct stat st;

    return stat(filename, &st) < 0 ? 0 : check_mode(filename, st.st_mode, error);
}

static int open_flags(bool read_only, bool direct)
{
    return O_CLOEXEC | O_NOCTTY | (read_only ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0);
}

static int open_failed(const char *filename, int error_number, bool direct, GError **error)
{
    if (direct && error_number == EINVAL) {
        return block_error(error, EINVAL,
                           "Could not open '%s': its file system does not support direct I/O "
                           "(cache.direct=on)",
                           filename);
    }
    return block_error_errno(error, error_number, "Could not open '%s'", filename);
}

static bool write_is_forbidden(int error_number)
{
    return error_number == EACCES || error_number == EROFS || error_number == EPERM;
}

/* A new descriptor, or a negative errno. May turn *options read-only where that is allowed. */
static int open_image(const char *filename, struct block_node_options *options, GError **error)
{
    bool direct = options->cache_direct;
    int ret = file_check_type(filename, error); /* before open: to open a FIFO can block */
    int fd;

    if (ret < 0) {
        return ret;
    }
    fd = open(filename, open_flags(options->read_only, direct));
    if (fd < 0 && !options->read_only && options->auto_read_only && write_is_forbidden(errno)) {
        fd = open(filename, open_flags(true, direct));
        options->read_only = fd >= 0;
    }
    return fd < 0 ? open_failed(filename, errno, direct, error) : fd;
}

/* ---- Alignment of direct I/O ----------------------------------------------------------------- */

static bool is_sane_alignment(uint64_t alignment)
{
    return is_power_of_2(alignment) && alignment <= LARGEST_DIRECT_ALIGNMENT;
}

static bool ask_alignments(int fd, struct alignments *alignments)
{
    struct statx facts;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) < 0 ||
        !(facts.stx_mask & STATX_DIOALIGN) || !is_sane_alignment(facts.stx_dio_offset_align) ||
        !is_sane_alignment(facts.stx_dio_mem_align)) {
        return false;
    }
    alignments->request = facts.stx_dio_offset_align;
    alignments->memory = facts.stx_dio_mem_align;
    return true;
}

/* The smallest read the file accepts. An empty file may accept any, so it proves nothing. */
static uint32_t try_alignments(int fd)
{
    AUTO_FREE void *buffer = aligned_alloc(LARGEST_DIRECT_ALIGNMENT, LARGEST_DIRECT_ALIGNMENT);
    struct stat st;

    if (!buffer || fstat(fd, &st) < 0 || st.st_size == 0) {
        return SAFE_DIRECT_ALIGNMENT;
    }
    for (uint32_t size = SMALLEST_DIRECT_ALIGNMENT; size <= LARGEST_DIRECT_ALIGNMENT; size *= 2) {
        if (pread(fd, buffer, size, 0) >= 0) {
            return size;
        }
        if (errno != EINVAL) {
            break;
        }
    }
    return SAFE_DIRECT_ALIGNMENT;
}

static struct alignments find_alignments(int fd, bool direct, uint32_t logical_block)
{
    struct alignments alignments = {.request = 1, .memory = 1};

    if (!direct || ask_alignments(fd, &alignments)) {
        return alignments;
    }
    alignments.request = logical_block ? logical_block : try_alignments(fd);
    alignments.memory = MAX_OF(alignments.request, SAFE_DIRECT_ALIGNMENT);
    return alignments;
}

/* ---- Locks ----------------------------------------------------------------------------------- */

static struct file_lock_set locks_for(const struct file_state *state,
                                      const struct block_node_options *options)
{
    if (!state->takes_locks || options->force_share) {
        return (struct file_lock_set){0};
    }
    return options->read_only ? file_lock_for_reading : file_lock_for_writing;
}

static int decide_locking(struct file_state *state, int locking, GError **error)
{
    bool supported = locking != LOCKING_OFF && file_lock_is_supported(state->fd);

    if (locking == LOCKING_ON && !supported) {
        return block_error(error, ENOTSUP,
                           "Could not lock '%s': its file system or the kernel has no OFD locks "
                           "(locking=on)",
                           state->filename);
    }
    state->takes_locks = supported;
    return 0;
}

/* ---- Open and close -------------------------------------------------------------------------- */

/* What only works with native in QEMU is wrong here, too: or who tries it here finds out there. */
static int check_aio(int aio, bool is_direct, GError **error)
{
    return aio == AIO_NATIVE && !is_direct
               ? block_error(error, EINVAL,
                             "aio=native was specified, but it requires cache.direct=on, which was "
                             "not specified.")
               : 0;
}

/* Find out what has been opened. */
static int examine(struct block_node *node, GError **error)
{
    struct file_state *state = block_node_state(node);
    struct alignments alignments;
    struct stat st;
    int logical_block = 0;
    int ret;

    if (fstat(state->fd, &st) < 0) {
        return block_error_errno(error, errno, "Could not open '%s'", state->filename);
    }
    ret = check_mode(state->filename, st.st_mode, error);
    if (ret < 0) {
        return ret;
    }
    state->is_block_device = S_ISBLK(st.st_mode);
    if (state->is_block_device &&
        (ioctl(state->fd, BLKSSZGET, &logical_block) < 0 || !is_power_of_2(logical_block))) {
        return block_error_errno(error, errno ? errno : EINVAL,
                                 "Could not get the block size of '%s'", state->filename);
    }
    state->logical_block = (uint32_t)logical_block;
    state->unmaps_zeroes = state->is_block_device && file_device_unmaps_zeroes(st.st_rdev);
    alignments = find_alignments(state->fd, state->is_direct, state->logical_block);
    node->limits.request_alignment = alignments.request;
    node->limits.memory_alignment = alignments.memory;
    if (is_power_of_2((uint64_t)st.st_blksize)) {
        uint32_t unit = state->is_block_device ? state->logical_block : (uint32_t)st.st_blksize;

        node->limits.preferred_size = (uint32_t)st.st_blksize;
        node->limits.write_zeroes_alignment = unit;
        node->limits.discard_alignment = unit;
    }
    return 0;
}

int file_open(struct block_node *node, void *values, GError **error)
{
    struct file_state *state = block_node_state(node);
    struct file_options *options = values;
    struct file_lock_set locks;
    int ret = check_aio(options->aio, node->options.cache_direct, error);

    if (ret < 0) {
        return ret;
    }
    AUTO_CLOSE int fd = open_image(options->filename, &node->options, error);
    if (fd < 0) {
        return fd;
    }
    state->fd = fd;
    state->filename = options->filename; /* until it is sure that we keep it */
    state->is_direct = node->options.cache_direct;
    state->aio = options->aio;
    ret = examine(node, error);
    if (ret == 0) {
        ret = decide_locking(state, options->locking, error);
    }
    if (ret < 0) {
        return ret;
    }
    locks = locks_for(state, &node->options);
    ret = file_lock_take(fd, state->filename, (struct file_lock_set){0}, locks, error);
    if (ret < 0) {
        return ret;
    }
    state->held = locks;
    state->filename = STEAL(options->filename);
    file_sync_init(&state->sync);
    file_status_init(&state->status);
    steal_fd(&fd);
    return 0;
}

void file_close(struct block_node *node)
{
    struct file_state *state = block_node_state(node);

    close(state->fd); /* and with it the locks */
    file_status_destroy(&state->status);
    file_sync_destroy(&state->sync);
    g_free(state->filename);
}

/* ---- Reopen ---------------------------------------------------------------------------------- */

struct file_reopen {
    int fd; /* -1: the old one stays */
    bool is_direct;
    struct file_lock_set extra; /* taken on the old descriptor for the change */
    struct file_lock_set locks; /* what is held afterwards */
    struct alignments alignments;
};

static int check_reopen(const struct file_state *state, const struct file_options *options,
                        GError **error)
{
    bool locking_changes = options->locking == LOCKING_AUTO
                               ? state->takes_locks != file_lock_is_supported(state->fd)
                               : state->takes_locks != (options->locking == LOCKING_ON);

    if (strcmp(options->filename, state->filename)) {
        return block_error(error, EINVAL, "Cannot change the option 'filename'");
    }
    if (locking_changes) {
        return block_error(error, EINVAL, "Cannot change the option 'locking'");
    }
    return 0;
}

/*
 * The same file once more, whatever its name means by now. Shared locks can be held by both
 * descriptors, so the image is never without them; conflicts were looked for on the old one.
 */
static int open_again(const struct file_state *state, const struct block_node_options *options,
                      struct file_reopen *reopen, GError **error)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", state->fd);
    AUTO_CLOSE int fd = open(path, open_flags(options->read_only, reopen->is_direct));
    int ret;

    if (fd < 0) {
        return open_failed(state->filename, errno, reopen->is_direct, error);
    }
    ret = file_lock_place(fd, state->filename, reopen->locks, error);
    if (ret == 0) {
        reopen->fd = steal_fd(&fd);
    }
    return ret;
}

static int prepare_descriptor(struct block_node *node, const struct block_node_options *options,
                              struct file_reopen *reopen, GError **error)
{
    struct file_state *state = block_node_state(node);
    bool changes =
        options->read_only != node->options.read_only || reopen->is_direct != state->is_direct;
    int ret = 0;

    /* What was lost in writing is told to descriptors that were open then. */
    if (changes && !node->options.read_only && !node->options.cache_no_flush) {
        ret = file_sync_run(&state->sync, state->fd);
        if (ret < 0) {
            return block_error_errno(error, -ret, "Could not flush '%s'", state->filename);
        }
    }
    if (changes) {
        ret = open_again(state, options, reopen, error);
        if (ret < 0) {
            return ret;
        }
    }
    reopen->alignments = find_alignments(reopen->fd >= 0 ? reopen->fd : state->fd,
                                         reopen->is_direct, state->logical_block);
    if (!is_aligned(block_node_length(node), reopen->alignments.request)) {
        return block_error(error, EINVAL,
                           "The length of '%s' (%" PRIu64 " bytes) is not a multiple of the %u "
                           "bytes that direct I/O needs",
                           state->filename, block_node_length(node), reopen->alignments.request);
    }
    return 0;
}

int file_reopen_prepare(struct block_node *node, void *values,
                        const struct block_node_options *options, void **prepared, GError **error)
{
    struct file_state *state = block_node_state(node);
    g_autofree struct file_reopen *reopen = g_new0(struct file_reopen, 1);
    int ret = values ? check_reopen(state, values, error) : 0;

    if (ret == 0) {
        ret = check_aio(state->aio, options->cache_direct, error);
    }
    if (ret < 0) {
        return ret;
    }
    reopen->fd = -1;
    reopen->is_direct = options->cache_direct;
    reopen->locks = locks_for(state, options);
    reopen->extra.used = reopen->locks.used & ~state->held.used;
    reopen->extra.unshared = reopen->locks.unshared & ~state->held.unshared;
    ret = file_lock_take(state->fd, state->filename, state->held, reopen->locks, error);
    if (ret < 0) {
        return ret;
    }
    ret = prepare_descriptor(node, options, reopen, error);
    if (ret < 0) {
        file_reopen_abort(node, g_steal_pointer(&reopen));
        return ret;
    }
    *prepared = g_steal_pointer(&reopen);
    return 0;
}

/* The descriptor keeps its number, since who is no request (a query) uses it at any time. */
static void put_descriptor(struct file_state *state, int fd)
{
    while (dup3(fd, state->fd, O_CLOEXEC) < 0) {
        g_assert(errno == EINTR || errno == EBUSY); /* both are open */
    }
    close(fd);
}

void file_reopen_commit(struct block_node *node, void *prepared)
{
    struct file_state *state = block_node_state(node);
    g_autofree struct file_reopen *reopen = prepared;

    if (reopen->fd >= 0) {
        put_descriptor(state, reopen->fd);
        state->is_direct = reopen->is_direct;
    } else {
        file_lock_reduce(state->fd, state->held, reopen->locks);
    }
    state->held = reopen->locks;
    node->limits.request_alignment = reopen->alignments.request;
    node->limits.memory_alignment = reopen->alignments.memory;
}

void file_reopen_abort(struct block_node *node, void *prepared)
{
    struct file_state *state = block_node_state(node);
    g_autofree struct file_reopen *reopen = prepared;

    if (reopen->fd >= 0) {
        close(reopen->fd);
    }
    file_lock_reduce(state->fd, reopen->extra, (struct file_lock_set){0});
}
