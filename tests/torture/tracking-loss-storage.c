/* SPDX-License-Identifier: BSD-3-Clause */
/* Storage of a tracking file that loses its power, or goes on without a process that is gone. */
#include "tests/torture/tracking-loss.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/tracking-io.h"

#define FILES    8
#define FILE_MAX (512 * KIB)

/* What is durable of a file. */
struct shadow {
    ino_t inode; /* 0: free */
    uint64_t bytes;
    uint8_t contents[FILE_MAX];
};

/* In memory that a process that gets killed shares with the one that looks afterwards. */
static struct shared {
    struct shadow shadows[FILES];
    unsigned next_shadow;
    ino_t named; /* which file a power loss leaves under the name */
    uint8_t before_rename[FILE_MAX];
    uint64_t before_rename_bytes;
} * shared;

char *loss_path;
static uint8_t boot[16] = {1};
static struct tracking_io real_io;

/* Under the lock: what a loss leaves, once it has happened. */
static pthread_mutex_t io_lock = PTHREAD_MUTEX_INITIALIZER;
static bool has_happened, is_power_loss;
static unsigned operations_left; /* until it happens; 0: not armed */
static GByteArray *remains;
static ino_t remains_of;
static struct test_random chaos;

void *loss_share(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    g_assert_true(memory != MAP_FAILED);
    return memory;
}

uint64_t loss_read_file(const char *path, uint8_t *buffer, uint64_t size)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : pread(fd, buffer, size, 0);

    g_assert_cmpint(count, >=, 0);
    return (uint64_t)count;
}

static ino_t inode_of(int fd)
{
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    return information.st_ino;
}

static ino_t inode_named(void)
{
    struct stat information;

    return stat(loss_path, &information) == 0 ? information.st_ino : 0;
}

static struct shadow *find_shadow(ino_t inode)
{
    for (unsigned i = 0; i < FILES; i++) {
        if (shared->shadows[i].inode == inode) {
            return &shared->shadows[i];
        }
    }
    struct shadow *shadow;
    do {
        shadow = &shared->shadows[shared->next_shadow++ % FILES];
    } while (shadow->inode && shadow->inode == shared->named);
    *shadow = (struct shadow){.inode = inode};
    return shadow;
}

static void note_durable(struct shadow *shadow, const void *bytes, uint64_t size, uint64_t offset)
{
    g_assert_cmpuint(offset + size, <=, FILE_MAX);
    if (size) {
        memcpy(shadow->contents + offset, bytes, size);
    }
    shadow->bytes = MAX_OF(shadow->bytes, offset + size);
}

/* Lock held. The name may still be, or be again, that of the file from before a rename. */
static void happen(bool with_power)
{
    static uint8_t current[FILE_MAX];
    ino_t inode = inode_named();
    uint64_t bytes = loss_read_file(loss_path, current, sizeof(current));

    has_happened = true;
    if (with_power && shared->named && inode != shared->named && test_random_chance(&chaos, 50)) {
        inode = shared->named;
        bytes = shared->before_rename_bytes;
        memcpy(current, shared->before_rename, bytes);
    }
    if (with_power) {
        struct shadow *shadow = find_shadow(inode);
        unsigned percent = (unsigned)test_random_below(&chaos, 101);

        for (uint64_t at = 0; at < bytes; at += SECTOR) {
            if (test_random_chance(&chaos, percent)) {
                memcpy(current + at, shadow->contents + at, MIN_OF(SECTOR, bytes - at));
            }
        }
    }
    remains_of = inode;
    g_byte_array_set_size(remains, 0);
    g_byte_array_append(remains, current, (guint)bytes);
}

/* Lock held. One more durable operation: true if nothing counts any more. */
static bool count_operation(void)
{
    if (!has_happened && operations_left && --operations_left == 0) {
        happen(is_power_loss);
    }
    return has_happened;
}

static void dawdle(void)
{
    pthread_mutex_lock(&io_lock);
    uint64_t us = test_random_chance(&chaos, 20) ? test_random_below(&chaos, 300) : 0;
    pthread_mutex_unlock(&io_lock);
    if (us) {
        g_usleep(us);
    }
}

static int lossy_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    int status = real_io.write_durably(fd, bytes, size, offset);

    dawdle();
    SCOPE_LOCK(&io_lock);
    if (!has_happened) {
        struct shadow *shadow = find_shadow(inode_of(fd));
        /* Torn, and then not answered. */
        bool is_last = operations_left == 1 && test_random_chance(&chaos, 70);
        uint64_t kept = is_last ? align_down(test_random_below(&chaos, size + 1), SECTOR) : size;

        note_durable(shadow, bytes, kept, offset);
        count_operation();
    }
    return status;
}

/* What is stored after a sync began need not be in it. */
static int lossy_sync_mapping(int fd, struct guarded_mapping *mapping, uint64_t offset,
                              uint64_t size)
{
    g_autofree uint16_t *copy = g_malloc(size);
    _Atomic uint16_t *values = guarded_mapping_address(mapping);

    for (uint64_t i = 0; i < size / 2; i++) {
        copy[i] = atomic_load_explicit(&values[i], memory_order_relaxed);
    }
    dawdle();
    SCOPE_LOCK(&io_lock);
    if (!has_happened) {
        note_durable(find_shadow(inode_of(fd)), copy, size, offset);
        count_operation();
    }
    return 0;
}

static int lossy_sync_file(int fd)
{
    SCOPE_LOCK(&io_lock);
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    if (has_happened || count_operation()) {
        return 0;
    }
    if (S_ISDIR(information.st_mode)) {
        shared->named = inode_named();
    } else {
        struct shadow *shadow = find_shadow(information.st_ino);

        shadow->bytes = (uint64_t)pread(fd, shadow->contents, FILE_MAX, 0);
        /* The name is moved next. */
        shared->before_rename_bytes = loss_read_file(loss_path, shared->before_rename, FILE_MAX);
    }
    return 0;
}

static void lossy_boot_id(uint8_t *id)
{
    memcpy(id, boot, sizeof(boot));
}

/* ---- For the test ----------------------------------------------------------------------------
 */

void loss_begin(void)
{
    shared = loss_share(sizeof(*shared));
    remains = g_byte_array_new();
    real_io = tracking_io;
    tracking_io.write_durably = lossy_write;
    tracking_io.sync_mapping = lossy_sync_mapping;
    tracking_io.sync_file = lossy_sync_file;
    tracking_io.boot_id = lossy_boot_id;
    tracking_io.timeout_ns = UINT64_C(600) * 1000000000;
}

void loss_begin_world(struct test_random random)
{
    chaos = random;
    memset(shared, 0, sizeof(*shared));
}

void loss_arm(bool with_power, unsigned operations)
{
    SCOPE_LOCK(&io_lock);

    is_power_loss = with_power;
    operations_left = operations;
}

void loss_happen(bool with_power)
{
    SCOPE_LOCK(&io_lock);

    is_power_loss = with_power;
    if (!has_happened) {
        happen(with_power);
    }
}

bool loss_has_happened(void)
{
    SCOPE_LOCK(&io_lock);

    return has_happened;
}

/*
 * The remains go into whatever file has the name now, which had better be the one they say they
 * are. Copies of the header that are torn stay so.
 */
static void rename_in_headers(uint8_t *bytes, ino_t inode)
{
    for (unsigned copy = 0; copy < 2; copy++) {
        uint8_t *at = bytes + copy * TRACKING_HEADER_BYTES;
        struct tracking_header header;

        if (tracking_header_decode(at, &header, NULL) == 0 && header.own_inode == remains_of) {
            header.own_inode = inode;
            tracking_header_encode(&header, at);
        }
    }
}

void loss_put_remains(void)
{
    AUTO_CLOSE int fd = open(loss_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 0), ==, 0);
    if (remains->len >= 2 * TRACKING_HEADER_BYTES) {
        rename_in_headers(remains->data, inode_of(fd));
    }
    g_assert_cmpint(pwrite(fd, remains->data, remains->len, 0), ==, (gssize)remains->len);
    struct shadow *shadow = find_shadow(inode_of(fd));
    if (!is_power_loss && inode_of(fd) != remains_of) {
        ino_t inode = shadow->inode;

        *shadow = *find_shadow(remains_of);
        shadow->inode = inode;
        shared->named = shared->named == remains_of ? inode : shared->named;
    }
    if (is_power_loss) {
        /* What is there now is what is durable. */
        memcpy(shadow->contents, remains->data, remains->len);
        shadow->bytes = remains->len;
        shared->named = inode_of(fd);
        boot[1]++;
        boot[2] += boot[1] == 0;
    }
    has_happened = false;
    operations_left = 0;
}
