/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/guarded-mapping.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"

/* The handler can take no lock, so that what it looks at is never freed: 24 bytes for a place. */
struct guarded_mapping {
    _Atomic(char *) address; /* NULL: the place is free */
    _Atomic size_t bytes;
    _Atomic bool is_broken;
    bool is_taken; /* under the lock */
};

static struct guarded_mapping mappings[GUARDED_MAPPINGS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* places and installing; innermost */
static bool is_installed;
static struct sigaction previous;
static size_t page_size;

/*
 * The system call itself: the library's function is not promised to handlers, and to a sanitizer it
 * is a write to the page, which races with every other thread that touches it.
 */
static bool map_empty_page(char *page)
{
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
#if defined(__s390__)
    /* There the call takes one argument: where the arguments are. */
    const unsigned long arguments[] = {(unsigned long)page,  page_size,
                                       (unsigned)protection, (unsigned long)flags,
                                       (unsigned long)-1,    0};

    return syscall(SYS_mmap, arguments) != -1;
#elif defined(SYS_mmap2)
    /* 32 bits: the same but for the unit of the offset, which is 0 here. */
    return syscall(SYS_mmap2, page, page_size, protection, flags, -1, 0) != -1;
#else
    return syscall(SYS_mmap, page, page_size, protection, flags, -1, 0) != -1;
#endif
}

/* Of the thread that touched the page; only what may be called from a handler. */
static bool replace_page(char *fault)
{
    for (size_t i = 0; i < GUARDED_MAPPINGS_MAX; i++) {
        struct guarded_mapping *mapping = &mappings[i];
        char *address = atomic_load(&mapping->address);

        if (!address || fault < address || fault >= address + atomic_load(&mapping->bytes)) {
            continue;
        }
        char *page = address + align_down((uint64_t)(fault - address), page_size);
        atomic_store(&mapping->is_broken, true);
        return map_empty_page(page);
    }
    return false;
}

static void handle_bus_error(int number, siginfo_t *info, void *context)
{
    int saved_errno = errno;

    if (info->si_code > 0 && replace_page(info->si_addr)) {
        errno = saved_errno;
        return;
    }
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
    } else {
        /* Once more, with what the system does then. */
        sigaction(SIGBUS, &previous, NULL);
    }
    errno = saved_errno;
}

/* Lock held. A thread that blocks the signal dies of it: see thread_create(). */
static void install(void)
{
    struct sigaction action = {.sa_sigaction = handle_bus_error,
                               .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};

    if (!is_installed) {
        page_size = (size_t)sysconf(_SC_PAGESIZE);
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &previous);
        is_installed = true;
    }
}

/* Lock held. */
static struct guarded_mapping *take_place(void)
{
    for (size_t i = 0; i < GUARDED_MAPPINGS_MAX; i++) {
        if (!mappings[i].is_taken) {
            mappings[i].is_taken = true;
            atomic_store(&mappings[i].is_broken, false);
            return &mappings[i];
        }
    }
    return NULL;
}

static void give_place_back(struct guarded_mapping *mapping)
{
    SCOPE_LOCK(&lock);
    atomic_store(&mapping->address, NULL);
    mapping->is_taken = false;
}

/* So that no request waits for it later. That may be refused, and is only a favour. */
static void touch(char *address, size_t bytes)
{
    volatile char *bytes_at = address;

    (void)!mlock(address, bytes);
    for (size_t i = 0; i < bytes; i += page_size) {
        (void)bytes_at[i];
    }
}

struct guarded_mapping *guarded_mapping_new(int fd, uint64_t offset, uint64_t bytes)
{
    struct guarded_mapping *mapping;

    if (bytes > SIZE_MAX / 2 || offset > INT64_MAX - bytes) {
        errno = EFBIG;
        return NULL;
    }
    pthread_mutex_lock(&lock);
    install();
    mapping = take_place();
    pthread_mutex_unlock(&lock);
    if (!mapping) {
        errno = EUSERS;
        return NULL;
    }
    size_t size = MAX_OF((size_t)bytes, page_size);
    char *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (address == MAP_FAILED) {
        int saved_errno = errno;
        give_place_back(mapping);
        errno = saved_errno;
        return NULL;
    }
    atomic_store(&mapping->bytes, size);
    atomic_store(&mapping->address, address);
    touch(address, size);
    return mapping;
}

void guarded_mapping_free(struct guarded_mapping *mapping)
{
    if (mapping) {
        char *address = atomic_exchange(&mapping->address, NULL);

        munmap(address, mapping->bytes);
        give_place_back(mapping);
    }
}

void *guarded_mapping_address(const struct guarded_mapping *mapping)
{
    return atomic_load(&mapping->address);
}

bool guarded_mapping_is_broken(const struct guarded_mapping *mapping)
{
    return atomic_load(&mapping->is_broken);
}

int guarded_mapping_sync(struct guarded_mapping *mapping)
{
    int status = msync(mapping->address, mapping->bytes, MS_SYNC) < 0 ? -errno : 0;

    return guarded_mapping_is_broken(mapping) ? -EIO : status;
}
