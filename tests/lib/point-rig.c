/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/point-rig.h"

#include <string.h>

#include "block/clock.h"
#include "tests/lib/disk.h"

/* How long a test waits for what must come. */
#define PATIENCE_NS (30 * NS_PER_SECOND)

struct point_rig_guest {
    struct point_rig *rig;
    uint64_t offset;
    uint64_t bytes;
    uint8_t byte;
    int status;
    _Atomic bool ended;
    pthread_t thread;
};

void point_rig_init(void)
{
    memory_drivers_register();
    fault_driver_register();
}

static void fill(uint8_t *bytes, uint64_t length)
{
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t word = (at + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1;

        memcpy(bytes + at, &word, MIN_OF(length - at, UINT64_C(8)));
    }
}

struct point_rig *point_rig_new(uint64_t length, bool with_scratch)
{
    struct point_rig *rig = g_new0(struct point_rig, 1);

    rig->length = length;
    rig->old = g_malloc(length + 1);
    fill(rig->old, length);
    rig->source = test_open("driver=fault,node-name=source,discard=unmap,file.driver=memory,"
                            "file.discard=unmap,file.size=%" G_GUINT64_FORMAT,
                            (guint64)length);
    g_assert_cmpint(block_node_pwrite(rig->source, rig->old, 0, length, 0), ==, 0);
    rig->guest = block_device_new("vda", rig->source, NULL);
    block_device_ref(rig->guest);
    if (with_scratch) {
        rig->scratch = test_open("driver=fault,node-name=scratch,discard=unmap,file.driver=memory,"
                                 "file.discard=unmap,file.size=%" G_GUINT64_FORMAT,
                                 (guint64)length);
    }
    return rig;
}

static void on_change(void *data)
{
    struct point_rig *rig = data;

    atomic_fetch_add(&rig->changes, 1);
}

static enum point_in_time_action on_scratch_error(void *data, int error_number)
{
    struct point_rig *rig = data;

    atomic_store(&rig->last_error, error_number);
    atomic_fetch_add(&rig->errors, 1);
    return (enum point_in_time_action)atomic_load(&rig->action);
}

void point_rig_start(struct point_rig *rig, struct point_in_time_options options)
{
    GError *error = NULL;

    options.owner = "view 'v'";
    options.source = rig->source;
    options.scratch = rig->scratch;
    options.budget = &rig->budget;
    options.callback_data = rig;
    options.on_change = on_change;
    options.on_scratch_error = on_scratch_error;
    rig->point = point_in_time_new(&options, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(point_in_time_length(rig->point), ==, rig->length);
    point_in_time_install(rig->point);
}

static void drop_node(struct block_node *node)
{
    if (node) {
        fault_clear(node);
        g_assert_true(TAILQ_EMPTY(&node->claims));
        g_assert_true(!node->notifiers || !node->notifiers[0]);
        g_assert_cmpint(node->references, ==, 1);
        block_node_unref(node);
    }
}

void point_rig_free(struct point_rig *rig)
{
    if (rig->point) {
        point_in_time_uninstall(rig->point);
        point_in_time_free(rig->point);
    }
    g_assert_cmpuint(atomic_load(&rig->budget.used_bytes), ==, 0);
    g_assert_cmpint(block_device_remove(rig->guest), ==, 0);
    block_device_unref(rig->guest);
    drop_node(rig->source);
    drop_node(rig->scratch);
    g_assert_cmpuint(memory_disks_open(), ==, 0);
    g_free(rig->old);
    g_free(rig);
}

void point_rig_zero(struct point_rig *rig, uint64_t offset, uint64_t bytes)
{
    memset(rig->old + offset, 0, bytes);
    g_assert_cmpint(block_node_write_zeroes(rig->source, offset, bytes, 0), ==, 0);
}

static int write_byte(struct point_rig *rig, uint64_t offset, uint64_t bytes, uint8_t byte)
{
    g_autofree char *data = g_malloc(bytes);

    memset(data, byte, bytes);
    return block_device_pwrite(rig->guest, data, offset, bytes, 0);
}

int point_rig_write(struct point_rig *rig, uint64_t offset, uint64_t bytes)
{
    return write_byte(rig, offset, bytes, ++rig->next_byte);
}

static void *guest_thread(void *data)
{
    struct point_rig_guest *guest = data;

    guest->status = write_byte(guest->rig, guest->offset, guest->bytes, guest->byte);
    atomic_store(&guest->ended, true);
    return NULL;
}

struct point_rig_guest *point_rig_write_begin(struct point_rig *rig, uint64_t offset,
                                              uint64_t bytes)
{
    struct point_rig_guest *guest = g_new0(struct point_rig_guest, 1);

    guest->rig = rig;
    guest->offset = offset;
    guest->bytes = bytes;
    guest->byte = ++rig->next_byte;
    g_assert_cmpint(pthread_create(&guest->thread, NULL, guest_thread, guest), ==, 0);
    return guest;
}

bool point_rig_write_ended(struct point_rig_guest *guest)
{
    return atomic_load(&guest->ended);
}

int point_rig_write_await(struct point_rig_guest *guest)
{
    pthread_join(guest->thread, NULL);
    int status = guest->status;
    g_free(guest);
    return status;
}

int point_rig_read(struct point_rig *rig, uint64_t offset, uint64_t bytes)
{
    g_autofree char *data = g_malloc(bytes + 1);

    return point_in_time_pread(rig->point, data, offset, bytes);
}

void point_rig_check(struct point_rig *rig, uint64_t offset, uint64_t bytes)
{
    g_autofree uint8_t *data = g_malloc(bytes + 1);

    memset(data, 0x99, bytes);
    g_assert_cmpint(point_in_time_pread(rig->point, data, offset, bytes), ==, 0);
    g_assert_cmpmem(data, bytes, rig->old + offset, bytes);
}

void point_rig_check_all(struct point_rig *rig)
{
    point_rig_check(rig, 0, rig->length);
    for (uint64_t unit = 0; unit < rig->length; unit += POINT_RIG_UNIT) {
        point_rig_check(rig, unit, MIN_OF(POINT_RIG_UNIT, rig->length - unit));
    }
    if (rig->length > 2 * 777) {
        point_rig_check(rig, 777, rig->length - 2 * 777);
    }
}

struct point_in_time_info point_rig_info(struct point_rig *rig)
{
    struct point_in_time_info info;

    point_in_time_get_info(rig->point, &info);
    return info;
}

void point_rig_wait_memory(struct point_rig *rig, uint64_t bytes)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;

    while (point_rig_info(rig).memory_bytes != bytes) {
        g_assert_cmpint(clock_now_ns(), <, deadline_ns);
        g_usleep(500);
    }
}

void point_rig_wait_scratch(struct point_rig *rig, uint64_t bytes)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;

    while (point_rig_info(rig).scratch_bytes != bytes) {
        g_assert_cmpint(clock_now_ns(), <, deadline_ns);
        g_usleep(500);
    }
}
