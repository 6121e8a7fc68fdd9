/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/file-status.h"

#include <errno.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"

#define SENSITIVE_KINDS (FILE_STATUS_ASKING | FILE_STATUS_HOLE)

void file_status_init(struct file_status *status)
{
    *status = (struct file_status){0};
    pthread_mutex_init(&status->lock, NULL);
}

void file_status_destroy(struct file_status *status)
{
    pthread_mutex_destroy(&status->lock);
}

/* Lock held. */
static void set_kind(struct file_status *status, struct file_status_slot *slot, unsigned kind)
{
    unsigned old = atomic_exchange(&slot->kind, kind);

    /* Up before down: a change must never see 0 while an entry that it concerns is there. */
    if (kind & SENSITIVE_KINDS) {
        atomic_fetch_add(&status->sensitive, 1);
    }
    if (old & SENSITIVE_KINDS) {
        atomic_fetch_sub(&status->sensitive, 1);
    }
}

/* Lock held. */
static void release_slot(struct file_status *status, struct file_status_slot *slot)
{
    atomic_store(&slot->end, 0);
    set_kind(status, slot, FILE_STATUS_FREE);
}

void file_status_clear(struct file_status *status)
{
    SCOPE_LOCK(&status->lock);

    for (size_t i = 0; i < FILE_STATUS_SLOTS; i++) {
        struct file_status_slot *slot = &status->slots[i];

        /* One that asks belongs to the thread that asks: empty it and leave it in place. */
        if (atomic_load(&slot->kind) == FILE_STATUS_ASKING) {
            atomic_store(&slot->end, atomic_load(&slot->start));
        } else {
            release_slot(status, slot);
        }
    }
}

/*
 * The end is read first: if it is that of an earlier entry in this slot, the new one was entered
 * after this read, and whoever entered it asks the kernel only after that.
 */
static bool slot_overlaps(struct file_status_slot *slot, uint64_t offset, uint64_t bytes,
                          unsigned kinds)
{
    uint64_t end = atomic_load(&slot->end);
    uint64_t start = atomic_load(&slot->start);

    return (atomic_load(&slot->kind) & kinds) && start < offset + bytes && offset < end;
}

/* Keep the longer part of an entry beside the range. Lock held. */
static void cut_slot(struct file_status *status, struct file_status_slot *slot, uint64_t offset,
                     uint64_t bytes)
{
    uint64_t start = atomic_load(&slot->start);
    uint64_t end = atomic_load(&slot->end);
    uint64_t before = offset > start ? offset - start : 0;
    uint64_t after = end > offset + bytes ? end - (offset + bytes) : 0;
    bool asking = atomic_load(&slot->kind) == FILE_STATUS_ASKING;

    if (asking) {
        /* The question is about what begins at start, so only its end can give way. */
        atomic_store(&slot->end, start + before);
    } else if (!before && !after) {
        release_slot(status, slot);
    } else if (before >= after) {
        atomic_store(&slot->end, offset);
    } else {
        atomic_store(&slot->start, offset + bytes);
    }
}

void file_status_cut(struct file_status *status, uint64_t offset, uint64_t bytes, unsigned kinds)
{
    for (size_t i = 0; i < FILE_STATUS_SLOTS; i++) {
        struct file_status_slot *slot = &status->slots[i];

        if (!slot_overlaps(slot, offset, bytes, kinds)) {
            continue;
        }
        SCOPE_LOCK(&status->lock);
        if (slot_overlaps(slot, offset, bytes, kinds)) {
            cut_slot(status, slot, offset, bytes);
        }
    }
}

/* Lock held. */
static bool find_known(struct file_status *status, uint64_t offset, bool *is_hole, uint64_t *end)
{
    for (size_t i = 0; i < FILE_STATUS_SLOTS; i++) {
        struct file_status_slot *slot = &status->slots[i];
        unsigned kind = atomic_load(&slot->kind);

        if ((kind & (FILE_STATUS_HOLE | FILE_STATUS_DATA)) && atomic_load(&slot->start) <= offset &&
            offset < atomic_load(&slot->end)) {
            *is_hole = kind == FILE_STATUS_HOLE;
            *end = atomic_load(&slot->end);
            return true;
        }
    }
    return false;
}

/*
 * A slot that says "somebody asks about what starts at offset", or NULL if all slots are busy
 * asking. Lock held.
 */
static struct file_status_slot *enter_question(struct file_status *status, uint64_t offset)
{
    for (size_t i = 0; i < FILE_STATUS_SLOTS; i++) {
        struct file_status_slot *slot =
            &status->slots[(status->next_victim + i) % FILE_STATUS_SLOTS];

        if (atomic_load(&slot->kind) != FILE_STATUS_ASKING) {
            status->next_victim = (status->next_victim + i + 1) % FILE_STATUS_SLOTS;
            atomic_store(&slot->end, 0);
            set_kind(status, slot, FILE_STATUS_ASKING);
            atomic_store(&slot->start, offset);
            atomic_store(&slot->end, UINT64_MAX);
            return slot;
        }
    }
    return NULL;
}

/* The answer holds as far as no change cut into the question meanwhile. */
static void enter_answer(struct file_status *status, struct file_status_slot *slot, bool is_hole,
                         uint64_t end)
{
    SCOPE_LOCK(&status->lock);
    end = MIN_OF(end, atomic_load(&slot->end));
    if (end <= atomic_load(&slot->start)) {
        release_slot(status, slot);
        return;
    }
    atomic_store(&slot->end, end);
    set_kind(status, slot, is_hole ? FILE_STATUS_HOLE : FILE_STATUS_DATA);
}

static bool seek_is_unsupported(int error_number)
{
    return error_number == EINVAL || error_number == EOPNOTSUPP || error_number == ENOTTY ||
           error_number == ESPIPE;
}

/* Nothing but a hole from offset to the file's end; unless the file ends before offset. */
static int hole_to_the_end(int fd, uint64_t offset, uint64_t *end)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    if (st.st_size < 0 || (uint64_t)st.st_size <= offset) {
        return -EIO;
    }
    *end = (uint64_t)st.st_size;
    return 0;
}

static int ask_kernel(struct file_status *status, int fd, uint64_t offset, bool *is_hole,
                      uint64_t *end)
{
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    off_t hole;

    *is_hole = false;
    *end = UINT64_MAX;
    if (data < 0 && errno == ENXIO) {
        *is_hole = true;
        return hole_to_the_end(fd, offset, end);
    }
    if (data < 0) {
        if (seek_is_unsupported(errno)) {
            atomic_store(&status->cannot_seek, true);
        }
        return 0; /* not knowing is no failure: it counts as data */
    }
    if ((uint64_t)data > offset) {
        *is_hole = true;
        *end = (uint64_t)data;
        return 0;
    }
    hole = lseek(fd, (off_t)offset, SEEK_HOLE);
    if (hole > (off_t)offset) {
        *end = (uint64_t)hole;
    } else {
        /* Punched since, or nonsense: claim no more than the byte that was found to be data. */
        *end = offset + 1;
    }
    return 0;
}

int file_status_find(struct file_status *status, int fd, uint64_t offset, bool *is_hole,
                     uint64_t *end)
{
    struct file_status_slot *slot;
    int ret;

    if (atomic_load(&status->cannot_seek)) {
        *is_hole = false;
        *end = UINT64_MAX;
        return 0;
    }
    pthread_mutex_lock(&status->lock);
    if (find_known(status, offset, is_hole, end)) {
        pthread_mutex_unlock(&status->lock);
        return 0;
    }
    slot = enter_question(status, offset);
    pthread_mutex_unlock(&status->lock);

    ret = ask_kernel(status, fd, offset, is_hole, end);
    if (slot) {
        enter_answer(status, slot, *is_hole, ret < 0 || *end == UINT64_MAX ? 0 : *end);
    }
    return ret;
}
