/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "formats/file-internal.h"

void file_sync_init(struct file_sync *sync)
{
    *sync = (struct file_sync){0};
    pthread_mutex_init(&sync->lock, NULL);
    pthread_cond_init(&sync->finished_one, NULL);
}

void file_sync_destroy(struct file_sync *sync)
{
    pthread_cond_destroy(&sync->finished_one);
    pthread_mutex_destroy(&sync->lock);
}

/* Run one fdatasync for everybody who waits for it. Lock held, released meanwhile. */
static void lead(struct file_sync *sync, int fd)
{
    uint64_t round = ++sync->started;
    int ret;

    sync->running = true;
    pthread_mutex_unlock(&sync->lock);
    do {
        ret = fdatasync(fd) < 0 ? -errno : 0;
    } while (ret == -EINTR);
    pthread_mutex_lock(&sync->lock);
    if (ret < 0 && !sync->error) {
        sync->error = ret;
    }
    sync->finished = round;
    sync->running = false;
    pthread_cond_broadcast(&sync->finished_one);
}

int file_sync_run(struct file_sync *sync, int fd)
{
    SCOPE_LOCK(&sync->lock);
    /* One that runs already may have passed over what was written last. */
    uint64_t needed = sync->started + 1;

    while (!sync->error && sync->finished < needed) {
        if (sync->running) {
            pthread_cond_wait(&sync->finished_one, &sync->lock);
        } else {
            lead(sync, fd);
        }
    }
    return sync->error;
}

int file_sync_fail(struct file_sync *sync, int error)
{
    SCOPE_LOCK(&sync->lock);

    if (!sync->error) {
        sync->error = error;
    }
    return error;
}
