/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading tracking files: nothing here writes, and nothing is believed unchecked. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/error.h"
#include "block/tracking-file.h"
#include "block/tracking-io.h"

/* Whether a copy of the header was there: it begins like one, as far as the file goes. */
static bool begins_like_header(int fd, uint64_t offset)
{
    uint8_t bytes[8];
    ssize_t count = pread(fd, bytes, sizeof(bytes), (off_t)offset);

    return count > 0 && tracking_header_begins_with(bytes, (size_t)count);
}

/* An empty file is anybody's. */
static bool is_foreign_file(int fd)
{
    struct stat information;

    return !begins_like_header(fd, 0) && !begins_like_header(fd, TRACKING_HEADER_BYTES) &&
           !(fstat(fd, &information) == 0 && information.st_size == 0);
}

/* The better one of two copies: damage is worse than absence only if both are no good. */
static int read_header(int fd, struct tracking_contents *contents, enum tracking_loss *loss,
                       GError **error)
{
    struct tracking_header headers[2];
    int status[2];
    GError *errors[2] = {NULL, NULL};

    for (unsigned i = 0; i < 2; i++) {
        uint8_t bytes[TRACKING_HEADER_BYTES];

        status[i] = tracking_read(fd, bytes, sizeof(bytes), i * TRACKING_HEADER_BYTES);
        if (status[i] < 0) {
            block_error_errno(&errors[i], -status[i], "The tracking file's header cannot be read");
        } else {
            status[i] = tracking_header_decode(bytes, &headers[i], &errors[i]);
        }
    }
    bool is_unknown = status[0] == -ENOTSUP || status[1] == -ENOTSUP;
    bool is_lost = is_unknown || (status[0] < 0 && status[1] < 0);
    if (is_lost) {
        bool is_foreign = is_unknown || is_foreign_file(fd);

        *loss = is_foreign ? TRACKING_LOST_FOREIGN : TRACKING_LOST_DAMAGED;
        /* Of two the one that tells more: what is damaged was there. */
        bool second = status[is_unknown ? 1 : 0] == (is_unknown ? -ENOTSUP : -EINVAL);
        g_propagate_error(error, STEAL(errors[second]));
    } else {
        bool second =
            status[0] < 0 || (status[1] == 0 && headers[1].sequence > headers[0].sequence);

        contents->copy = second;
        contents->header = headers[second];
        contents->is_doubtful = status[0] < 0 || status[1] < 0;
    }
    g_clear_error(&errors[0]);
    g_clear_error(&errors[1]);
    return is_lost ? -EINVAL : 0;
}

static int check_size(int fd, const struct tracking_header *header, GError **error)
{
    uint64_t end = MAX_OF(tracking_directory_start(header) + 2 * TRACKING_DIRECTORY_BYTES,
                          header->directory_offset + header->directory_bytes);
    struct stat information;

    if (fstat(fd, &information) < 0) {
        return block_error_errno(error, errno, "The tracking file cannot be examined");
    }
    if ((uint64_t)information.st_size < end) {
        return block_error(error, EIO,
                           "The tracking file is cut off: it has %" PRIu64 " bytes of %" PRIu64,
                           (uint64_t)information.st_size, end);
    }
    return 0;
}

static int read_log(int fd, struct tracking_contents *contents, GError **error)
{
    const struct tracking_header *header = &contents->header;
    uint64_t sectors = tracking_log_bytes(header->extents) / TRACKING_LOG_SECTOR;

    contents->slots = g_new(uint64_t, sectors * TRACKING_SLOTS_PER_SECTOR);
    for (uint64_t i = 0; i < sectors; i++) {
        uint8_t bytes[TRACKING_LOG_SECTOR];
        int status =
            tracking_read(fd, bytes, sizeof(bytes), TRACKING_LOG_OFFSET + i * TRACKING_LOG_SECTOR);

        if (status == 0) {
            status = tracking_log_decode(bytes, header->uuid,
                                         contents->slots + i * TRACKING_SLOTS_PER_SECTOR);
        }
        if (status < 0) {
            return block_error(error, EIO, "The tracking file's log of active extents is damaged");
        }
    }
    return 0;
}

static int read_directory(int fd, struct tracking_contents *contents, GError **error)
{
    const struct tracking_header *header = &contents->header;
    g_autofree uint8_t *bytes = g_try_malloc(header->directory_bytes + 1);
    int status = bytes ? tracking_read(fd, bytes, header->directory_bytes, header->directory_offset)
                       : -ENOMEM;

    if (status < 0) {
        return block_error_errno(error, -status, "The tracking file's directory cannot be read");
    }
    if (tracking_checksum(bytes, header->directory_bytes) != header->directory_checksum) {
        return block_error(error, EIO, "The tracking file's directory is damaged");
    }
    contents->directory =
        tracking_directory_decode(bytes, header->directory_bytes, header->epoch, error);
    return contents->directory ? 0 : -EIO;
}

static int read_marks(int fd, struct tracking_contents *contents, GError **error)
{
    uint32_t mark;
    int status = tracking_read(fd, &mark, sizeof(mark), TRACKING_MARKS_OFFSET);

    mark = GUINT32_FROM_LE(mark);
    if (status < 0 || mark >= TRACKING_LOST_COUNT) {
        return block_error(error, EIO, "The tracking file's page of marks is damaged");
    }
    contents->marked_loss = mark;
    return 0;
}

int tracking_contents_read(int fd, struct tracking_contents *contents, enum tracking_loss *loss,
                           GError **error)
{
    *contents = (struct tracking_contents){0};
    if (read_header(fd, contents, loss, error) < 0) {
        return -EINVAL;
    }
    *loss = TRACKING_LOST_DAMAGED;
    if (check_size(fd, &contents->header, error) < 0 || read_log(fd, contents, error) < 0 ||
        read_directory(fd, contents, error) < 0 || read_marks(fd, contents, error) < 0) {
        return -EIO;
    }
    *loss = TRACKING_NOT_LOST;
    return 0;
}

void tracking_contents_clear(struct tracking_contents *contents)
{
    tracking_directory_free(contents->directory);
    g_free(contents->slots);
    *contents = (struct tracking_contents){0};
}

struct tracking_directory *tracking_contents_salvage(int fd)
{
    struct tracking_contents contents = {0};
    enum tracking_loss loss;
    struct tracking_directory *directory = NULL;

    if (read_header(fd, &contents, &loss, NULL) == 0 && read_directory(fd, &contents, NULL) == 0) {
        directory = STEAL(contents.directory);
    }
    tracking_contents_clear(&contents);
    return directory;
}
