/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices: the gate, error policies, pivots under load, and what is counted. */
#include "block/device.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "block/align.h"
#include "block/drain.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

/* ---- A guest's request on a thread of its own --------------------------------------------------
 */

struct guest {
    struct block_device *device;
    enum block_operation operation;
    uint64_t offset;
    uint8_t byte;
    int status;
    _Atomic bool has_ended;
    pthread_t thread;
};

static void *run_guest(void *data)
{
    struct guest *guest = data;

    if (guest->operation == BLOCK_OPERATION_READ) {
        guest->status = block_device_pread(guest->device, &guest->byte, guest->offset, 1);
    } else {
        guest->status = block_device_pwrite(guest->device, &guest->byte, guest->offset, 1, 0);
    }
    atomic_store(&guest->has_ended, true);
    return NULL;
}

static void guest_start(struct guest *guest, struct block_device *device,
                        enum block_operation operation, uint64_t offset)
{
    *guest = (struct guest){
        .device = device, .operation = operation, .offset = offset, .byte = 0x5a, .status = 1};
    g_assert_cmpint(pthread_create(&guest->thread, NULL, run_guest, guest), ==, 0);
}

static int guest_end(struct guest *guest)
{
    pthread_join(guest->thread, NULL);
    return guest->status;
}

/* Let a thread that was started run a while: tests hold whether or not it has come far. */
static void give_way(void)
{
    for (int i = 0; i < 100; i++) {
        sched_yield();
    }
}

static struct block_device *device_on(struct block_node *root)
{
    GError *error = NULL;
    struct block_device *device = block_device_new("vda", root, &error);

    g_assert_no_error(error);
    return device;
}

/* ---- Life --------------------------------------------------------------------------------------
 */

static void test_names(void)
{
    AUTO(block_node) a = test_open("driver=memory,node-name=a");
    AUTO(block_node) b = test_open("driver=memory,node-name=b");
    struct block_device *device = device_on(a);
    AUTO(block_device) found = block_device_find("vda");
    g_autoptr(GError) duplicate = NULL;
    g_autoptr(GError) invalid = NULL;
    g_autoptr(GError) busy = NULL;

    g_assert_true(found == device);
    g_assert_null(block_device_new("vda", b, &duplicate));
    g_assert_cmpstr(duplicate->message, ==, "Device 'vda' exists already");
    g_assert_null(block_device_new("1 a", b, &invalid));
    g_assert_nonnull(strstr(invalid->message, "'1 a'"));
    g_assert_null(block_device_new("vdb", a, &busy));
    g_assert_cmpstr(busy->message, ==,
                    "Node 'a' is busy: block device 'vda' and block device 'vdb' exclude each "
                    "other by writing it");
    g_assert_cmpint(a->references, ==, 2);
    g_assert_cmpint(b->references, ==, 1);
    g_assert_cmpint(block_device_remove(device), ==, 0);
    g_assert_null(block_device_find("vda"));
    g_assert_cmpint(a->references, ==, 1);
    g_assert_null(block_device_root(found));
    g_assert_cmpuint(block_device_length(found), ==, 0);
}

static void test_removal_flushes(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    uint8_t byte = 1;

    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, 0);
    memory_disk_fail(disk, BLOCK_OPERATION_FLUSH, -EIO, 0, 1);
    g_assert_cmpint(block_device_remove(device), ==, -EIO);
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_FLUSH), ==, 1);
}

static void test_removal_while_waiting(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    AUTO(block_device) device = block_device_ref(device_on(disk));
    struct throttle_limits limits = {.buckets[THROTTLE_IOPS_TOTAL].average = 1};
    struct block_drain *drain = block_drain_begin(&disk, 1, BLOCK_PERM_ALL);
    struct guest held, throttled[3];

    guest_start(&held, device, BLOCK_OPERATION_WRITE, 1);
    throttle_set_limits(block_device_throttle(device), &limits);
    for (int i = 0; i < 3; i++) {
        guest_start(&throttled[i], device, BLOCK_OPERATION_WRITE, 2);
    }
    give_way();
    g_assert_cmpint(block_device_remove(device), ==, 0);
    g_assert_cmpint(guest_end(&held), ==, -ESHUTDOWN);
    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(guest_end(&throttled[i]), ==, -ESHUTDOWN);
    }
    g_assert_cmpint(block_device_flush(device), ==, -ESHUTDOWN);
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_WRITE), ==, 0);
    block_drain_end(drain);
}

/* ---- Drains ------------------------------------------------------------------------------------
 */

static void test_gate(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    struct block_drain *outer = block_drain_begin(&disk, 1, BLOCK_PERM_WRITE);
    struct block_drain *inner = block_drain_begin(&disk, 1, BLOCK_PERM_ALL);
    struct guest guest;

    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 7);
    give_way();
    block_drain_end(outer);
    give_way();
    g_assert_false(atomic_load(&guest.has_ended));
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_WRITE), ==, 0);
    g_assert_cmpuint(memory_disk_data(disk)[7], ==, 0);
    block_drain_end(inner);
    g_assert_cmpint(guest_end(&guest), ==, 0);
    g_assert_cmpuint(memory_disk_data(disk)[7], ==, 0x5a);
    block_device_remove(device);
}

struct drainer {
    struct block_node *node;
    struct guest *guest;
    pthread_t thread;
};

static void *drain_and_look(void *data)
{
    struct drainer *drainer = data;
    struct block_drain *drain = block_drain_begin(&drainer->node, 1, BLOCK_PERM_ALL);

    /* The write in flight is done: its data is there. */
    g_assert_cmpuint(memory_disk_data(drainer->node)[3], ==, 0x5a);
    block_drain_end(drain);
    return NULL;
}

static void test_drain_waits(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    struct drainer drainers[3];
    struct guest guest;

    memory_disk_hold(disk, BLOCK_OPERATION_WRITE);
    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 3);
    memory_disk_wait_held(disk, 1);
    for (int i = 0; i < 3; i++) {
        drainers[i] = (struct drainer){.node = disk};
        g_assert_cmpint(pthread_create(&drainers[i].thread, NULL, drain_and_look, &drainers[i]), ==,
                        0);
    }
    give_way();
    memory_disk_release(disk);
    for (int i = 0; i < 3; i++) {
        pthread_join(drainers[i].thread, NULL);
    }
    g_assert_cmpint(guest_end(&guest), ==, 0);
    block_device_remove(device);
}

static void test_device_created_inside(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_drain *drain = block_drain_begin(&disk, 1, BLOCK_PERM_WRITE);
    struct block_device *device = device_on(disk);
    struct guest guest;

    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 0);
    give_way();
    g_assert_false(atomic_load(&guest.has_ended));
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_WRITE), ==, 0);
    block_drain_end(drain);
    g_assert_cmpint(guest_end(&guest), ==, 0);
    block_device_remove(device);
}

static void test_throttle_and_drain(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    struct throttle_limits limits = {.buckets[THROTTLE_BPS_TOTAL].average = 1};
    struct guest guests[4];

    /* At a byte per second these would take seconds; the drain does not wait for them. */
    throttle_set_limits(block_device_throttle(device), &limits);
    for (int i = 0; i < 4; i++) {
        guest_start(&guests[i], device, BLOCK_OPERATION_WRITE, (uint64_t)i);
    }
    for (int i = 0; i < 20; i++) {
        block_drain_end(block_drain_begin(&disk, 1, BLOCK_PERM_ALL));
    }
    throttle_suspend(block_device_throttle(device));
    for (int i = 0; i < 4; i++) {
        g_assert_cmpint(guest_end(&guests[i]), ==, 0);
        g_assert_cmpuint(memory_disk_data(disk)[i], ==, 0x5a);
    }
    block_device_remove(device);
}

/* ---- stop, cont, shutdown ----------------------------------------------------------------------
 */

static void test_stop_and_continue(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    AUTO(block_node) other = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    struct guest guest, late;

    block_device_stop_all();
    g_assert_cmpstr(block_device_run_state(), ==, "paused");
    struct block_device *later = block_device_new("later", other, NULL);
    g_assert_true(block_device_is_stopped(device) && block_device_is_stopped(later));
    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 0);
    guest_start(&late, later, BLOCK_OPERATION_WRITE, 0);
    /* A drain inside neither waits nor lets anything go. */
    block_drain_end(block_drain_begin(&disk, 1, BLOCK_PERM_ALL));
    give_way();
    g_assert_false(atomic_load(&guest.has_ended) || atomic_load(&late.has_ended));
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_WRITE), ==, 0);
    block_device_continue_all();
    g_assert_cmpint(guest_end(&guest), ==, 0);
    g_assert_cmpint(guest_end(&late), ==, 0);
    g_assert_cmpstr(block_device_run_state(), ==, "running");
    block_device_remove(device);
    block_device_remove(later);
}

static void *stop_often(void *data)
{
    for (int i = 0; i < 300; i++) {
        if (GPOINTER_TO_INT(data)) {
            block_device_stop_all();
        } else {
            block_device_continue_all();
        }
    }
    return NULL;
}

static void test_stop_beside_continue(void)
{
    struct block_node *disks[3];
    struct block_device *devices[3];
    pthread_t threads[4];

    for (int i = 0; i < 3; i++) {
        g_autofree char *name = g_strdup_printf("vd%d", i);

        disks[i] = test_open("driver=memory");
        devices[i] = block_device_new(name, disks[i], NULL);
    }
    for (int i = 0; i < 4; i++) {
        pthread_create(&threads[i], NULL, stop_often, GINT_TO_POINTER(i & 1));
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    bool paused = !strcmp(block_device_run_state(), "paused");
    for (int i = 0; i < 3; i++) {
        g_assert_true(block_device_is_stopped(devices[i]) == paused);
    }
    block_device_continue_all();
    for (int i = 0; i < 3; i++) {
        g_assert_false(block_device_is_stopped(devices[i]));
        block_device_remove(devices[i]);
        block_node_unref(disks[i]);
    }
}

static void test_shutdown(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    struct block_device *device = device_on(disk);
    struct guest guest;
    uint8_t byte = 1;

    block_device_stop_all();
    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 0);
    give_way();
    block_device_shutdown_all();
    g_assert_cmpint(guest_end(&guest), ==, -ESHUTDOWN);
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, -ESHUTDOWN);
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_WRITE), ==, 0);
    block_device_continue_all();
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, 0);
    block_device_remove(device);
}

/* ---- Errors ------------------------------------------------------------------------------------
 */

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER; /* guards events */
static pthread_cond_t events_changed = PTHREAD_COND_INITIALIZER;
static GString *events;

static void log_event(const struct event *event, void *data)
{
    SCOPE_LOCK(&events_lock);

    g_string_append_printf(events, "%s{", event->name);
    for (const struct event_field *field = event->fields; field->key; field++) {
        if (field->type == EVENT_FIELD_STRING) {
            g_string_append_printf(events, "%s=%s ", field->key, field->string);
        } else {
            g_string_append_printf(events, "%s=%d ", field->key, (int)field->number);
        }
    }
    g_string_append(events, "}");
    pthread_cond_broadcast(&events_changed);
}

static void nothing(void *data)
{
}

static void expect_events(const char *expected)
{
    main_loop_call_wait(nothing, NULL);
    SCOPE_LOCK(&events_lock);

    g_assert_cmpstr(events->str, ==, expected);
    g_string_truncate(events, 0);
}

static void wait_for_event(const char *name)
{
    SCOPE_LOCK(&events_lock);

    while (!strstr(events->str, name)) {
        pthread_cond_wait(&events_changed, &events_lock);
    }
}

#define IO_ERROR(operation, action, nospace, reason)                                               \
    "BLOCK_IO_ERROR{qom-path=vda device=vda node-name=disk operation=" operation " action=" action \
    " nospace=" nospace " reason=" reason " }"

static void test_report(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct block_device *device = device_on(disk);
    uint8_t byte = 1;

    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    memory_disk_fail(disk, BLOCK_OPERATION_READ, -ENOSPC, 0, 1);
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, -EIO);
    g_assert_cmpint(block_device_pread(device, &byte, 0, 1), ==, -ENOSPC);
    expect_events(IO_ERROR("write", "report", "0", "Input/output error")
                      IO_ERROR("read", "report", "1", "No space left on device"));
    /* What is refused or said not to be fast is no error of the storage. */
    g_assert_cmpint(block_device_pread(device, &byte, MIB, 1), ==, -EINVAL);
    g_assert_cmpint(block_device_pwrite(device, &byte, MIB, 1, 0), ==, -ENOSPC);
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE_ZEROES, -ENOTSUP, 0, 1);
    g_assert_cmpint(block_device_write_zeroes(device, 0, 1, BLOCK_REQUEST_NO_FALLBACK), ==,
                    -ENOTSUP);
    expect_events("");
    g_assert_cmpint(block_device_io_status(device), ==, BLOCK_IO_STATUS_OK);
    block_device_remove(device);
}

static void test_ignore(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct block_device *device = device_on(disk);
    uint8_t byte = 1;

    memory_disk_data(disk)[0] = 7;
    block_device_set_error_policies(device, BLOCK_ERROR_POLICY_IGNORE, BLOCK_ERROR_POLICY_IGNORE);
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    memory_disk_fail(disk, BLOCK_OPERATION_READ, -EIO, 0, 1);
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpint(block_device_pread(device, &byte, 0, 1), ==, 0);
    g_assert_cmpuint(byte, ==, 0); /* not the leftovers of the buffer */
    expect_events(IO_ERROR("write", "ignore", "0", "Input/output error")
                      IO_ERROR("read", "ignore", "0", "Input/output error"));
    block_device_remove(device);
}

static void test_stop(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct block_device *device = device_on(disk);
    struct guest guest;

    block_device_set_error_policies(device, BLOCK_ERROR_POLICY_REPORT, BLOCK_ERROR_POLICY_STOP);
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -EIO, 0, 2);
    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 5);
    for (int i = 0; i < 2; i++) {
        wait_for_event("STOP");
        g_assert_true(block_device_is_stopped(device));
        g_assert_cmpint(block_device_io_status(device), ==, BLOCK_IO_STATUS_FAILED);
        g_assert_cmpstr(block_device_run_state(), ==, "io-error");
        g_assert_false(atomic_load(&guest.has_ended));
        expect_events(IO_ERROR("write", "stop", "0", "Input/output error") "STOP{}");
        block_device_continue_all();
    }
    g_assert_cmpint(guest_end(&guest), ==, 0);
    g_assert_cmpuint(memory_disk_data(disk)[5], ==, 0x5a);
    g_assert_cmpint(block_device_io_status(device), ==, BLOCK_IO_STATUS_OK);
    expect_events("");
    block_device_remove(device);
}

static void test_enospc(void)
{
    AUTO(block_node) disk = test_open("driver=memory,node-name=disk");
    struct block_device *device = device_on(disk);
    struct guest guest;
    uint8_t byte = 1;

    block_device_set_error_policies(device, BLOCK_ERROR_POLICY_REPORT, BLOCK_ERROR_POLICY_ENOSPC);
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -EIO, 0, 1);
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, -EIO);
    expect_events(IO_ERROR("write", "report", "0", "Input/output error"));
    memory_disk_fail(disk, BLOCK_OPERATION_WRITE, -ENOSPC, 0, 1);
    guest_start(&guest, device, BLOCK_OPERATION_WRITE, 5);
    wait_for_event("STOP");
    g_assert_cmpint(block_device_io_status(device), ==, BLOCK_IO_STATUS_NOSPACE);
    /* A stopped device can be drained, and removed with its request. */
    block_drain_end(block_drain_begin(&disk, 1, BLOCK_PERM_ALL));
    AUTO(block_device) kept = block_device_ref(device);
    block_device_remove(device);
    g_assert_cmpint(guest_end(&guest), ==, -ESHUTDOWN);
    expect_events(IO_ERROR("write", "stop", "1", "No space left on device") "STOP{}");
}

static void test_refusals(void)
{
    AUTO(block_node) disk = test_open("driver=memory,read-only=on");
    struct block_device *device = device_on(disk);
    uint8_t byte = 1;

    block_device_set_error_policies(device, BLOCK_ERROR_POLICY_STOP, BLOCK_ERROR_POLICY_STOP);
    g_assert_true(block_device_is_read_only(device));
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, -EPERM);
    g_assert_cmpint(block_device_write_zeroes(device, 0, 1, 0), ==, -EPERM);
    g_assert_cmpint(block_device_discard(device, 0, 1, BLOCK_REQUEST_FUA), ==, -EPERM);
    g_assert_cmpint(block_device_flush(device), ==, 0);
    g_assert_cmpint(block_device_pread(device, &byte, UINT64_MAX, 2), ==, -EINVAL);
    g_assert_cmpint(block_device_pread(device, &byte, MIB, 0), ==, 0);
    block_device_remove(device);
}

/* ---- Statistics ---------------------------------------------------------------------------------
 */

static void test_statistics(void)
{
    AUTO(block_node) disk = test_open("driver=memory,discard=unmap");
    struct block_device *device = device_on(disk);
    struct statistics_snapshot seen;
    g_autofree uint8_t *data = g_malloc0(8192);

    g_assert_cmpint(block_device_pwrite(device, data, 4096, 8192, 0), ==, 0);
    g_assert_cmpint(block_device_pwrite(device, data, 0, 512, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_device_pread(device, data, 0, 100), ==, 0);
    g_assert_cmpint(block_device_write_zeroes(device, 0, 4096, 0), ==, 0);
    g_assert_cmpint(block_device_discard(device, 0, 4096, BLOCK_REQUEST_FUA), ==, 0);
    g_assert_cmpint(block_device_flush(device), ==, 0);
    g_assert_cmpint(block_device_pread(device, data, 2 * MIB, 100), ==, -EINVAL);
    memory_disk_fail(disk, BLOCK_OPERATION_READ, -EIO, 0, 1);
    g_assert_cmpint(block_device_pread(device, data, 0, 100), ==, -EIO);
    statistics_read(block_device_statistics(device), &seen);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_WRITE].operations, ==, 2);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_WRITE].bytes, ==, 8704);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_READ].operations, ==, 1);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_READ].bytes, ==, 100);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_READ].invalid, ==, 1);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_READ].failed, ==, 1);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_WRITE_ZEROES].bytes, ==, 4096);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_DISCARD].operations, ==, 1);
    g_assert_cmpuint(seen.operations[BLOCK_OPERATION_FLUSH].operations, ==, 1);
    g_assert_cmpuint(seen.highest_written, ==, 12288);
    g_assert_cmpuint(memory_disk_count(disk, BLOCK_OPERATION_FLUSH), ==, 2);
    block_device_remove(device);
}

/* ---- Pivots -------------------------------------------------------------------------------------
 */

#define PIVOT_WRITERS 4
#define PIVOTS        100

struct pivot {
    struct block_device *device;
    struct block_node *nodes[2];
    _Atomic bool stop;
    _Atomic uint8_t wanted[PIVOT_WRITERS]; /* what each writer wrote last */
    _Atomic unsigned next_writer;
};

static void *write_on(void *data)
{
    struct pivot *pivot = data;
    unsigned number = atomic_fetch_add(&pivot->next_writer, 1);
    uint8_t byte = 0, seen;

    while (!atomic_load(&pivot->stop)) {
        byte++;
        g_assert_cmpint(block_device_pwrite(pivot->device, &byte, number, 1, 0), ==, 0);
        atomic_store(&pivot->wanted[number], byte);
        g_assert_cmpint(block_device_pread(pivot->device, &seen, number, 1), ==, 0);
        g_assert_cmpuint(seen, ==, byte);
    }
    return NULL;
}

/* On the main thread, drained: everything answered is on the old root, and moves to the new one. */
static void pivot_once(void *data)
{
    struct pivot *pivot = data;
    AUTO(block_node) old = block_device_root(pivot->device);
    struct block_node *new = old == pivot->nodes[0] ? pivot->nodes[1] : pivot->nodes[0];

    for (int i = 0; i < PIVOT_WRITERS; i++) {
        uint8_t there = memory_disk_data(old)[i], answered = atomic_load(&pivot->wanted[i]);

        /* The writer may not have noted yet that its last write was answered. */
        g_assert_true(there == answered || there == (uint8_t)(answered + 1));
    }
    memcpy(memory_disk_data(new), memory_disk_data(old), PIVOT_WRITERS);
    memset(memory_disk_data(old), 0xff, PIVOT_WRITERS);
    g_assert_cmpint(block_device_set_root(pivot->device, new, NULL), ==, 0);
}

static void test_pivot(void)
{
    struct pivot pivot = {
        .nodes = {test_open("driver=memory,request-alignment=512"), test_open("driver=memory")}};
    pthread_t threads[PIVOT_WRITERS];

    pivot.device = device_on(pivot.nodes[0]);
    for (int i = 0; i < PIVOT_WRITERS; i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, write_on, &pivot), ==, 0);
    }
    for (int i = 0; i < PIVOTS; i++) {
        AUTO(block_drain) drain = block_drain_begin(pivot.nodes, 2, BLOCK_PERM_ALL);

        main_loop_call_wait(pivot_once, &pivot);
    }
    atomic_store(&pivot.stop, true);
    for (int i = 0; i < PIVOT_WRITERS; i++) {
        pthread_join(threads[i], NULL);
    }
    AUTO(block_node) root = block_device_root(pivot.device);
    for (int i = 0; i < PIVOT_WRITERS; i++) {
        g_assert_cmpuint(memory_disk_data(root)[i], ==, atomic_load(&pivot.wanted[i]));
        g_assert_cmpuint(memory_disk_data(pivot.nodes[root == pivot.nodes[0]])[i], ==, 0xff);
    }
    block_device_remove(pivot.device);
    block_node_unref(pivot.nodes[0]);
    block_node_unref(pivot.nodes[1]);
}

static void test_refused_pivot(void)
{
    AUTO(block_node) disk = test_open("driver=memory");
    AUTO(block_node) taken = test_open("driver=memory,node-name=taken,read-only=on");
    struct block_device *device = device_on(disk);
    struct block_claim other = {.owner = (char *)"block job 'j'", .perms = BLOCK_PERM_READ};
    struct block_node *both[] = {disk, taken};
    g_autoptr(GError) error = NULL;
    uint8_t byte = 9;

    g_assert_cmpint(block_claim_acquire(&other, taken, NULL), ==, 0);
    struct block_drain *drain = block_drain_begin(both, 2, BLOCK_PERM_ALL);
    g_assert_cmpint(block_device_set_root(device, taken, &error), ==, -EBUSY);
    block_drain_end(drain);
    g_assert_nonnull(strstr(error->message, "block job 'j'"));
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpuint(memory_disk_data(disk)[0], ==, 9);
    /* It still writes for itself alone. */
    g_assert_null(block_device_new("vdb", disk, NULL));
    block_claim_release(&other);
    block_device_remove(device);
}

struct take_over {
    struct block_device *device;
    struct block_claim *holder;
    int status;
    GError *error;
};

static void take_over(void *data)
{
    struct take_over *taken = data;

    taken->status = block_device_take_root(taken->device, taken->holder, &taken->error);
}

/* A job's claim that writes the new root gives way to the device, and to nobody else. */
static void test_take_over(void)
{
    AUTO(block_node) old = test_open("driver=memory,node-name=old");
    AUTO(block_node) new = test_open("driver=memory,node-name=new");
    struct block_claim holder = {
        .owner = (char *)"block job 'j'",
        .perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE,
        .shared = BLOCK_PERM_READ,
    };
    struct take_over taken = {.device = device_on(old), .holder = &holder};
    uint8_t byte = 9;

    g_assert_cmpint(block_claim_acquire(&holder, new, NULL), ==, 0);
    AUTO(block_device) found = block_device_find_by_root(new);
    g_assert_null(found);
    struct block_drain *drain = block_drain_begin(&old, 1, BLOCK_PERM_ALL);
    main_loop_call_wait(take_over, &taken);
    block_drain_end(drain);
    g_assert_no_error(taken.error);
    g_assert_null(holder.node);
    found = block_device_find_by_root(new);
    g_assert_true(found == taken.device);
    g_assert_cmpint(block_device_pwrite(taken.device, &byte, 0, 1, 0), ==, 0);
    g_assert_cmpuint(memory_disk_data(new)[0], ==, 9);
    g_assert_cmpuint(memory_disk_data(old)[0], ==, 0);
    g_assert_cmpint(block_claim_acquire(&holder, new, NULL), ==, -EBUSY);
    block_device_remove(taken.device);
}

/* What stands in the device's way keeps both claims where they were. */
static void test_refused_take_over(void)
{
    AUTO(block_node) old = test_open("driver=memory,node-name=old");
    AUTO(block_node) new = test_open("driver=memory,node-name=new");
    struct block_claim holder = {
        .owner = (char *)"block job 'j'",
        .perms = BLOCK_PERM_READ,
        .shared = BLOCK_PERM_READ,
    };
    struct block_claim other = {
        .owner = (char *)"block job 'k'", .perms = BLOCK_PERM_READ, .shared = BLOCK_PERM_READ};
    struct take_over taken = {.device = device_on(old), .holder = &holder};

    g_assert_cmpint(block_claim_acquire(&holder, new, NULL), ==, 0);
    g_assert_cmpint(block_claim_acquire(&other, new, NULL), ==, 0);
    struct block_drain *drain = block_drain_begin(&old, 1, BLOCK_PERM_ALL);
    main_loop_call_wait(take_over, &taken);
    block_drain_end(drain);
    g_assert_cmpint(taken.status, ==, -EBUSY);
    g_assert_nonnull(strstr(taken.error->message, "block job 'k'"));
    g_clear_error(&taken.error);
    AUTO(block_device) found = block_device_find_by_root(old);
    g_assert_true(found == taken.device);
    g_assert_true(holder.node == new);
    g_assert_null(block_device_new("vdb", new, NULL)); /* neither lets others write */
    block_claim_release(&holder);
    block_claim_release(&other);
    block_device_remove(taken.device);
}

/* A guest that may only read does not get to write because its root changed. */
static void test_read_only_stays(void)
{
    AUTO(block_node) locked = test_open("driver=memory,node-name=locked,read-only=on");
    AUTO(block_node) open = test_open("driver=memory,node-name=open");
    struct block_device *device = device_on(locked);
    uint8_t byte = 9;

    struct block_drain *drain = block_drain_begin(&locked, 1, BLOCK_PERM_ALL);
    test_set_root(device, open);
    block_drain_end(drain);
    g_assert_true(block_device_is_read_only(device));
    g_assert_cmpint(block_device_pwrite(device, &byte, 0, 1, 0), ==, -EPERM);
    g_assert_cmpint(block_device_pread(device, &byte, 0, 1), ==, 0);
    g_assert_cmpuint(memory_disk_count(open, BLOCK_OPERATION_WRITE), ==, 0);
    block_device_remove(device);
}

static void set_up_events(void *data)
{
    event_add_listener(log_event, NULL);
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
    events = g_string_new(NULL);
    g_assert_cmpint(main_loop_start(), ==, 0);
    main_loop_call_wait(set_up_events, NULL);
    g_test_add_func("/device/report-tells-and-fails", test_report);
    g_test_add_func("/device/ignore-answers-success", test_ignore);
    g_test_add_func("/device/stop-holds-until-cont", test_stop);
    g_test_add_func("/device/enospc-stops-only-for-space", test_enospc);
    g_test_add_func("/device/names-and-roots-are-exclusive", test_names);
    g_test_add_func("/device/removal-flushes", test_removal_flushes);
    g_test_add_func("/device/removal-fails-what-waits", test_removal_while_waiting);
    g_test_add_func("/device/requests-wait-while-drained", test_gate);
    g_test_add_func("/device/a-drain-waits-for-those-in-flight", test_drain_waits);
    g_test_add_func("/device/one-created-inside-a-section-waits", test_device_created_inside);
    g_test_add_func("/device/a-rate-limit-does-not-hold-a-drain", test_throttle_and_drain);
    g_test_add_func("/device/stop-and-cont", test_stop_and_continue);
    g_test_add_func("/device/stop-beside-cont", test_stop_beside_continue);
    g_test_add_func("/device/shutdown-fails-what-is-held", test_shutdown);
    g_test_add_func("/device/refusals-are-no-errors", test_refusals);
    g_test_add_func("/device/statistics-are-exact", test_statistics);
    g_test_add_func("/device/a-pivot-under-load-loses-nothing", test_pivot);
    g_test_add_func("/device/a-refused-pivot-changes-nothing", test_refused_pivot);
    g_test_add_func("/device/takes-over-from-a-job", test_take_over);
    g_test_add_func("/device/a-refused-take-over-changes-nothing", test_refused_take_over);
    g_test_add_func("/device/read-only-stays-read-only", test_read_only_stays);
    status = g_test_run();
    main_loop_stop();
    g_string_free(events, TRUE);
    return status;
}
