/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups in transactions, under writers: what shares a transaction shares its moment. */
#include <string.h>

#include "block/align.h"
#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "server/commands-backup.h"
#include "server/commands-bitmap.h"
#include "server/transaction.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/disk.h"

/* ---- A bitmap and a backup of one moment ----------------------------------------------------- */

#define GRANULE (4 * KIB)

static void start_backup(struct rig *rig, unsigned round)
{
    AUTO(transaction) transaction = transaction_new(false);
    json_t *bitmap = json_pack("{s:s, s:s, s:I}", "node", "vda", "name", "since", "granularity",
                               (json_int_t)GRANULE);
    json_t *backup = json_pack("{s:s, s:s, s:s, s:s, s:b}", "device", "vda", "target", "target",
                               "sync", "full", "job-id", "job", "auto-dismiss", false);
    const struct transaction_action_type *actions[] = {&bitmap_add_action, &blockdev_backup_action};
    json_t *data[] = {bitmap, backup};
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(actions); i++) {
        size_t which = round % 2 ? i : G_N_ELEMENTS(actions) - 1 - i; /* in either order */

        transaction_add(transaction, actions[which], data[which], NULL);
    }
    g_assert_cmpint(transaction_run(transaction, &error), ==, 0);
    g_assert_no_error(error);
    json_decref(bitmap);
    json_decref(backup);
}

/* What was not written since then is in the backup as it is on the disk. */
static void check_unchanged(struct rig *rig, struct block_node *target)
{
    struct dirty_bitmap *bitmap = block_node_find_bitmap(rig->source, "since");
    uint8_t now[GRANULE], then[GRANULE];
    uint64_t clean = 0;

    for (uint64_t offset = 0; offset < rig->length; offset += GRANULE) {
        if (!dirty_bitmap_get(bitmap, offset)) {
            block_node_pread(rig->source, now, offset, GRANULE, 0);
            block_node_pread(target, then, offset, GRANULE, 0);
            if (memcmp(now, then, GRANULE)) {
                g_error("%#lx was changed, but not recorded", (unsigned long)offset);
            }
            clean++;
        }
    }
    g_test_message("%lu of %lu granules unchanged", (unsigned long)clean,
                   (unsigned long)(rig->length / GRANULE));
}

static void remove_bitmap(struct rig *rig)
{
    json_t *data = json_pack("{s:s, s:s}", "node", "vda", "name", "since");

    json_decref(transaction_run_single(&bitmap_remove_action, data, NULL));
    json_decref(data);
}

static void torture_backup_and_bitmap(void)
{
    struct rig *rig = rig_new(8 * MIB, 512);

    rig->max_bytes = 16 * KIB;
    rig_fill(rig);
    for (unsigned round = 0; round < test_amount(8); round++) {
        struct block_node *target = rig_target(rig, "target", true);

        rig_write(rig, 4);
        rig_wait_requests(rig, 100);
        start_backup(rig, round);
        rig_wait_requests(rig, 100);
        rig_stop(rig);
        g_assert_null(rig_end(job_find("job")));
        check_unchanged(rig, target);
        remove_bitmap(rig);
        rig_assert_unused(target);
    }
    rig_free(rig);
}

/* ---- Backups of one moment ------------------------------------------------------------------- */

#define PAIRS 4

static _Atomic bool over;

/* Writes a number to one disk and, when that is answered, to the other. */
struct pair_writer {
    struct block_device *devices[2];
    uint64_t offset;
    _Atomic uint64_t number;
    pthread_t thread;
};

static void *write_pairs(void *data)
{
    struct pair_writer *writer = data;
    uint64_t sector[512 / sizeof(uint64_t)] = {0};

    while (!atomic_load(&over)) {
        sector[0] = atomic_fetch_add(&writer->number, 1) + 1;
        for (size_t i = 0; i < 2; i++) {
            g_assert_cmpint(
                block_device_pwrite(writer->devices[i], sector, writer->offset, sizeof(sector), 0),
                ==, 0);
        }
    }
    return NULL;
}

static void wait_for_pairs(struct pair_writer *pairs)
{
    for (size_t i = 0; i < PAIRS; i++) {
        uint64_t goal = atomic_load(&pairs[i].number) + 2;

        while (atomic_load(&pairs[i].number) < goal) {
            g_thread_yield();
        }
    }
}

static const char *const pair_names[2] = {"first", "second"};

static struct block_node *open_file(const char *directory, const char *name)
{
    g_autofree char *path = test_path(directory, name);

    test_make_file(path, MIB);
    return test_open("driver=file,node-name=%s,filename=%s", name, path);
}

/* Time for a write that should not be there. */
static void dawdle(struct transaction_action *action)
{
    g_usleep(1000);
}

static const struct transaction_action_type dawdle_action = {
    .name = "dawdle",
    .data = &qmp_type_any,
    .supports_grouped = true,
    .activate = dawdle,
};

/* Back both disks up in one transaction, to the nodes "to-first" and "to-second". */
static void back_up_both(bool grouped)
{
    AUTO(transaction) transaction = transaction_new(grouped);
    json_t *data[2];
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < 2; i++) {
        g_autofree char *target = g_strconcat("to-", pair_names[i], NULL);

        data[i] = json_pack("{s:s, s:s, s:s, s:s, s:b}", "device", pair_names[i], "job-id",
                            pair_names[i], "target", target, "sync", "full", "auto-dismiss", false);
        transaction_add(transaction, &blockdev_backup_action, data[i], NULL);
        transaction_add(transaction, &dawdle_action, NULL, NULL);
    }
    g_assert_cmpint(transaction_run(transaction, &error), ==, 0);
    for (size_t i = 0; i < 2; i++) {
        json_decref(data[i]);
        g_assert_null(rig_end(job_find(pair_names[i])));
    }
}

static uint64_t number_in(struct block_node *target, uint64_t offset)
{
    uint64_t number;

    g_assert_cmpint(block_node_pread(target, &number, offset, sizeof(number), 0), ==, 0);
    return number;
}

/* The second disk never has what the first has not, and is at most one behind. */
static void torture_one_moment(void)
{
    char *directory = test_directory_new(true);
    struct pair_writer pairs[PAIRS] = {0};
    struct block_node *nodes[2], *targets[2];
    struct block_device *pair_devices[2];

    atomic_store(&over, false);
    for (size_t i = 0; i < 2; i++) {
        g_autofree char *target = g_strconcat("to-", pair_names[i], NULL);

        nodes[i] = open_file(directory, pair_names[i]);
        targets[i] = open_file(directory, target);
        pair_devices[i] = block_device_new(pair_names[i], nodes[i], NULL);
    }
    for (size_t i = 0; i < PAIRS; i++) {
        memcpy(pairs[i].devices, pair_devices, sizeof(pair_devices));
        pairs[i].offset = i * 64 * KIB;
        g_assert_cmpint(pthread_create(&pairs[i].thread, NULL, write_pairs, &pairs[i]), ==, 0);
    }
    for (unsigned round = 0; round < test_amount(40); round++) {
        wait_for_pairs(pairs);
        back_up_both(round % 2);
        for (size_t i = 0; i < PAIRS; i++) {
            uint64_t first = number_in(targets[0], pairs[i].offset);
            uint64_t second = number_in(targets[1], pairs[i].offset);

            g_assert_cmpuint(second, <=, first);
            g_assert_cmpuint(first, <=, second + 1);
        }
    }
    atomic_store(&over, true);
    for (size_t i = 0; i < PAIRS; i++) {
        pthread_join(pairs[i].thread, NULL);
    }
    for (size_t i = 0; i < 2; i++) {
        block_device_remove(pair_devices[i]);
        block_node_unref(nodes[i]);
        block_node_unref(targets[i]);
    }
    test_directory_free(directory);
}

static void add_tests(void)
{
    g_test_add_func("/transaction/torture/a-bitmap-and-a-backup-of-one-moment",
                    torture_backup_and_bitmap);
    g_test_add_func("/transaction/torture/backups-of-one-moment", torture_one_moment);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
