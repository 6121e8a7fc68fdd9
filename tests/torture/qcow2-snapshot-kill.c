/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A process whose threads write to a qcow2 image, while it takes and deletes internal snapshots, is
 * killed (SIGKILL) at any moment. Then the image opens and is not corrupt for `qemu-img check`
 * (leaks are allowed); each sector holds what was flushed or something that was written since; each
 * snapshot that was answered is there with its data, and whoever goes on with the image harms none.
 */
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/image.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/disk.h"
#include "tests/lib/loss-model.h"
#include "tests/lib/qcow2-peer.h"
#include "tests/lib/random.h"

#define LENGTH    (512 * KIB)
#define SECTORS   (LENGTH / LOSS_SECTOR)
#define WRITERS   4 /* each with a part of the disk */
#define PART      (SECTORS / WRITERS)
#define SNAPSHOTS 4 /* at once */
#define KILLS     5 /* of each shape */

/* What a snapshot is in, as the process last knew. */
enum state { ABSENT, CREATING, THERE, DELETING };
static const char *const state_names[] = {"absent", "being created", "there", "being deleted"};

struct slot {
    _Atomic uint32_t state;
    _Atomic uint32_t serial;           /* part of its name */
    _Atomic uint32_t numbers[SECTORS]; /* the disk then */
};

/* In memory that outlives the process. Numbers of writes, which grow; 0: zeroes. */
struct book {
    _Atomic uint32_t begun[SECTORS], written[SECTORS], flushed[SECTORS];
    struct slot slots[SNAPSHOTS];
    _Atomic uint32_t operations; /* on snapshots, begun */
};

/* ---- The process that is killed -------------------------------------------------------------- */

struct writer {
    struct test_random random;
    pthread_t thread;
    uint64_t first; /* of its sectors */
    uint32_t number;
};

static struct book *book;
static struct block_node *node;
static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER; /* for writing: snapshots */

static void write_some(struct writer *writer)
{
    uint64_t offset, bytes;
    uint8_t buffer[32 * KIB] __attribute__((aligned(8)));
    uint32_t number = ++writer->number;

    test_random_range(&writer->random, PART * LOSS_SECTOR, LOSS_SECTOR, sizeof(buffer), &offset,
                      &bytes);
    offset += writer->first * LOSS_SECTOR;
    for (uint64_t at = 0; at < bytes; at += LOSS_SECTOR) {
        loss_model_fill(buffer + at, number, offset + at);
        atomic_store(&book->begun[(offset + at) / LOSS_SECTOR], number);
    }
    g_assert_cmpint(block_node_pwrite(node, buffer, offset, bytes, 0), ==, 0);
    for (uint64_t at = 0; at < bytes; at += LOSS_SECTOR) {
        atomic_store(&book->written[(offset + at) / LOSS_SECTOR], number);
    }
}

static void flush(struct writer *writer)
{
    uint32_t numbers[PART];

    for (uint64_t i = 0; i < PART; i++) {
        numbers[i] = atomic_load(&book->written[writer->first + i]);
    }
    g_assert_cmpint(block_node_flush(node), ==, 0);
    for (uint64_t i = 0; i < PART; i++) {
        atomic_store(&book->flushed[writer->first + i], numbers[i]);
    }
}

static void *writer_thread(void *data)
{
    struct writer *writer = data;

    while (true) {
        pthread_rwlock_rdlock(&gate);
        if (test_random_chance(&writer->random, 90)) {
            write_some(writer);
        } else {
            flush(writer);
        }
        pthread_rwlock_unlock(&gate);
        sched_yield(); /* or those who wait for the gate might starve */
    }
    return NULL;
}

static void name_of(const struct slot *slot, char name[16])
{
    g_snprintf(name, 16, "s%u", atomic_load(&slot->serial));
}

static void create_snapshot(struct slot *slot)
{
    static uint32_t serial;
    char name[16];

    for (uint64_t i = 0; i < SECTORS; i++) {
        atomic_store(&slot->numbers[i], atomic_load(&book->written[i]));
    }
    atomic_store(&slot->serial, ++serial);
    name_of(slot, name);
    atomic_store(&slot->state, CREATING);
    g_assert_cmpint(block_node_snapshot_create_now(node, name, NULL), ==, 0);
    atomic_store(&slot->state, THERE);
}

static void delete_snapshot(struct slot *slot)
{
    char name[16];

    name_of(slot, name);
    atomic_store(&slot->state, DELETING);
    g_assert_cmpint(block_node_snapshot_delete(node, name, NULL), ==, 0);
    atomic_store(&slot->state, ABSENT);
}

static struct book *map_book(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct book *mapped = mmap(NULL, sizeof(*mapped), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    g_assert_true(mapped != MAP_FAILED);
    close(fd);
    return mapped;
}

static struct block_node *open_image(const char *path)
{
    return test_open("driver=qcow2,discard=unmap,l2-cache-size=16k,l2-cache-entry-size=512,"
                     "refcount-cache-size=1,file.driver=file,file.discard=unmap,file.filename=%s",
                     path);
}

static struct block_node *open_with_killer(const char *path)
{
    return test_open("driver=qcow2,discard=unmap,file.driver=lose-writes,file.node-name=killer,"
                     "file.discard=unmap,file.file.driver=file,file.file.filename=%s",
                     path);
}

/* The process is killed when so many writes more have reached the image; none of them is lost. */
static void arm_killer(uint64_t writes)
{
    AUTO(block_node) killer = block_node_find("killer");
    struct lose_writes_plan plan = {.has_numbers = true, .end = LOSE_WRITES_END_PROCESS};
    struct lose_writes_status status;

    g_assert_cmpint(lose_writes_get_status(killer, &status, NULL), ==, 0);
    g_assert_cmpint(lose_writes_arm(killer, status.writes + writes, &plan, NULL), ==, 0);
    lose_writes_status_clear(&status);
}

/* Whether somebody else kills it, or it does so itself, in the middle of a snapshot's writes. */
static bool is_suicidal(uint64_t seed)
{
    return seed & 1;
}

static int write_until_killed(const char *image, const char *book_path, uint64_t seed)
{
    struct test_random random = test_random_new(seed);
    struct writer writers[WRITERS];
    uint64_t last = is_suicidal(seed) ? test_random_between(&random, 2, 15) : UINT64_MAX;

    book = map_book(book_path);
    node = is_suicidal(seed) ? open_with_killer(image) : open_image(image);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){.random = test_random_split(&random), .first = i * PART};
        g_assert_cmpint(pthread_create(&writers[i].thread, NULL, writer_thread, &writers[i]), ==,
                        0);
    }
    while (true) {
        struct slot *slot = &book->slots[test_random_below(&random, SNAPSHOTS)];

        g_usleep((gulong)test_random_below(&random, 2000)); /* writers write */
        pthread_rwlock_wrlock(&gate);
        if (atomic_fetch_add(&book->operations, 1) == last) {
            arm_killer(test_random_between(&random, 1, 16));
        }
        if (atomic_load(&slot->state) == ABSENT) {
            create_snapshot(slot);
        } else {
            delete_snapshot(slot);
        }
        pthread_rwlock_unlock(&gate);
    }
    return 0;
}

/* ---- The one that looks what is left --------------------------------------------------------- */

struct round {
    char *directory, *image, *book_path;
    struct test_random random;
    uint64_t seed;
    unsigned kept; /* snapshots */
};

static void make_image(const struct round *round, const char *shape)
{
    test_make_file(round->image, 0);
    test_create_image("driver=qcow2,size=%" PRIu64 ",%s,file.driver=file,file.filename=%s", LENGTH,
                      shape, round->image);
}

static GPid start_process(const struct round *round)
{
    g_autofree char *seed = g_strdup_printf("%" PRIu64, round->seed);
    char *arguments[] = {
        "/proc/self/exe", "--until-killed", round->image, round->book_path, seed, NULL};
    g_autoptr(GError) error = NULL;
    GPid pid;

    g_spawn_async(NULL, arguments, NULL, G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, &error);
    g_assert_no_error(error);
    return pid;
}

static bool is_busy(void)
{
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        uint32_t state = atomic_load(&book->slots[i].state);

        if (state == CREATING || state == DELETING) {
            return true;
        }
    }
    return false;
}

/* After some operations, a moment after another one began: it may be in its middle. */
static void wait_for_moment(struct round *round, GPid pid)
{
    uint64_t operations = test_random_between(&round->random, 2, 15);
    int64_t delay_ns = (int64_t)test_random_below(&round->random, 200000);
    int status;

    while (atomic_load(&book->operations) < operations || !is_busy()) {
        if (waitpid(pid, &status, WNOHANG) != 0) {
            g_error("the process has ended by itself: %d", status);
        }
        sched_yield();
    }
    for (int64_t end_ns = clock_now_ns() + delay_ns; clock_now_ns() < end_ns;) {
        sched_yield();
    }
}

static void kill_process(struct round *round, GPid pid)
{
    int status;

    if (!is_suicidal(round->seed)) {
        wait_for_moment(round, pid);
        g_assert_cmpint(kill(pid, SIGKILL), ==, 0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* The number that a sector's first word comes from. */
static uint32_t number_in(const uint8_t *sector, uint64_t at)
{
    static const uint8_t zeroes[LOSS_SECTOR];
    uint8_t wanted[LOSS_SECTOR] __attribute__((aligned(8)));
    const uint32_t inverse = 244002641; /* of the factor in loss_model_fill */
    uint32_t word;

    if (!memcmp(sector, zeroes, LOSS_SECTOR)) {
        return 0;
    }
    memcpy(&word, sector, sizeof(word));
    uint32_t number = (word - (uint32_t)(at / LOSS_SECTOR) * 40503u) * inverse;
    loss_model_fill(wanted, number, at);
    if (memcmp(wanted, sector, LOSS_SECTOR)) {
        g_error("the sector at %" PRIu64 " holds nothing that was ever written there", at);
    }
    return number;
}

static uint8_t *read_disk(struct block_node *from)
{
    uint8_t *contents = g_malloc(LENGTH);

    g_assert_cmpuint(block_node_length(from), ==, LENGTH);
    g_assert_cmpint(block_node_pread(from, contents, 0, LENGTH, 0), ==, 0);
    return contents;
}

static void check_disk(struct block_node *from)
{
    g_autofree uint8_t *contents = read_disk(from);

    for (uint64_t i = 0; i < SECTORS; i++) {
        uint32_t number = number_in(contents + i * LOSS_SECTOR, i * LOSS_SECTOR);

        if (number < atomic_load(&book->flushed[i]) || number > atomic_load(&book->begun[i])) {
            g_error("sector %" PRIu64 " holds write %u; %u was flushed, %u begun", i, number,
                    atomic_load(&book->flushed[i]), atomic_load(&book->begun[i]));
        }
    }
}

static bool is_listed(struct block_node *image, const char *name, size_t *count)
{
    struct block_snapshot_info *list;
    bool found = false;

    g_assert_cmpint(block_node_snapshot_list(image, &list, count, NULL), ==, 0);
    for (size_t i = 0; i < *count; i++) {
        found |= !strcmp(list[i].name, name);
    }
    block_snapshot_list_free(list, *count);
    return found;
}

/* What was not answered is settled now. */
static void check_list(struct round *round, struct block_node *image)
{
    size_t count = 0;

    round->kept = 0;
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        struct slot *slot = &book->slots[i];
        uint32_t state = atomic_load(&slot->state);
        char name[16];

        name_of(slot, name);
        bool is_there = is_listed(image, name, &count);
        if ((state == THERE && !is_there) || (state == ABSENT && is_there)) {
            g_error("snapshot %s, which was %s, is %s", name, state_names[state],
                    is_there ? "there" : "not there");
        }
        if (state == CREATING || state == DELETING) {
            g_test_message("killed while %s was %s: it is %s", name, state_names[state],
                           is_there ? "there" : "not there");
        }
        atomic_store(&slot->state, is_there ? THERE : ABSENT);
        round->kept += is_there;
    }
    g_assert_cmpuint(count, ==, round->kept);
}

static void check_snapshots(const struct round *round)
{
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        struct slot *slot = &book->slots[i];
        char name[16];

        if (atomic_load(&slot->state) != THERE) {
            continue;
        }
        name_of(slot, name);
        AUTO(block_node) snapshot =
            test_open("driver=qcow2,read-only=on,snapshot=%s,file.driver=file,file.filename=%s",
                      name, round->image);
        g_autofree uint8_t *contents = read_disk(snapshot);
        for (uint64_t sector = 0; sector < SECTORS; sector++) {
            uint32_t number = number_in(contents + sector * LOSS_SECTOR, sector * LOSS_SECTOR);

            if (number != atomic_load(&slot->numbers[sector])) {
                g_error("sector %" PRIu64 " of snapshot %s holds write %u, not %u", sector, name,
                        number, atomic_load(&slot->numbers[sector]));
            }
        }
    }
}

static void check_image(const struct round *round)
{
    g_autofree char *said = NULL;
    enum image_verdict verdict = qemu_check(round->image, NULL, &said);

    if (verdict != IMAGE_CLEAN && verdict != IMAGE_LEAKS) {
        g_error("the image is %s:\n%s", image_verdict_names[verdict], said);
    }
}

/* All is written anew, and the snapshots are deleted. */
static void go_on(const struct round *round)
{
    const uint32_t number = UINT32_MAX;
    g_autofree uint8_t *buffer = g_malloc(LENGTH), *contents = NULL;
    AUTO(block_node) image = open_image(round->image);

    for (uint64_t at = 0; at < LENGTH; at += LOSS_SECTOR) {
        loss_model_fill(buffer + at, number, at);
    }
    g_assert_cmpint(block_node_pwrite(image, buffer, 0, LENGTH, 0), ==, 0);
    block_node_unref(STEAL(image));
    check_snapshots(round);
    image = node = open_image(round->image);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        if (atomic_load(&book->slots[i].state) == THERE) {
            delete_snapshot(&book->slots[i]);
        }
    }
    contents = read_disk(image);
    g_assert_cmpmem(contents, LENGTH, buffer, LENGTH);
}

static void kill_once(struct round *round, const char *shape)
{
    make_image(round, shape);
    test_make_file(round->book_path, sizeof(*book));
    book = map_book(round->book_path);
    round->seed = test_random_u64(&round->random);
    kill_process(round, start_process(round));
    struct block_node *image = open_image(round->image);
    check_disk(image);
    check_list(round, image);
    block_node_unref(image);
    check_image(round);
    check_snapshots(round);
    go_on(round);
    check_image(round);
    munmap(book, sizeof(*book));
}

static void test_kill(void)
{
    static const char *const shapes[] = {
        "cluster-size=4k",
        "cluster-size=512",
        "cluster-size=64k,lazy-refcounts=on",
        "cluster-size=16k,extended-l2=on",
    };
    struct round round = {.directory = test_directory_new(true)};
    unsigned long kills = test_cases(KILLS);

    round.image = test_path(round.directory, "image");
    round.book_path = test_path(round.directory, "book");
    round.random = test_random_new(test_seed());
    for (unsigned long i = 0; i < kills * G_N_ELEMENTS(shapes); i++) {
        kill_once(&round, shapes[i % G_N_ELEMENTS(shapes)]);
    }
    g_free(round.image);
    g_free(round.book_path);
    test_directory_free(round.directory);
}

int main(int argc, char **argv)
{
    if (argc == 5 && !strcmp(argv[1], "--until-killed")) {
        formats_register();
        return write_until_killed(argv[2], argv[3], strtoull(argv[4], NULL, 10));
    }
    g_test_init(&argc, &argv, NULL);
    formats_register();
    g_test_add_func("/qcow2-snapshot-kill/what-was-answered-outlives-the-process", test_kill);
    return g_test_run();
}
