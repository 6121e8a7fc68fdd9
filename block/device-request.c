/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A request of a device passes the gate (admit), runs on the root node, leaves, and is accounted
 * for. The gate is one counter and one flag as long as nobody drains or stops the device.
 */
#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/device-internal.h"
#include "block/error.h"
#include "block/event.h"
#include "block/tracking.h"

const char *const block_error_policy_names[] = {"report", "ignore", "stop", "enospc", NULL};

enum block_error_policy block_error_policy_action(enum block_error_policy policy, int error_number)
{
    if (policy == BLOCK_ERROR_POLICY_ENOSPC) {
        return error_number == ENOSPC || error_number == EDQUOT ? BLOCK_ERROR_POLICY_STOP
                                                                : BLOCK_ERROR_POLICY_REPORT;
    }
    return policy;
}

/* ---- The gate ------------------------------------------------------------------------------- */

void device_update_closed(struct block_device *device)
{
    atomic_store(&device->closed, device->drains || device->stopped || device->removed);
    pthread_cond_broadcast(&device->changed);
}

static void leave(struct block_device *device, unsigned shard)
{
    sharded_counter_add(&device->in_flight, shard, UINT64_MAX); /* -1 */
    if (G_UNLIKELY(atomic_load(&device->closed))) {
        SCOPE_LOCK(&device->lock);
        pthread_cond_broadcast(&device->changed);
    }
}

/* Whom the thread works for; NULL: nobody who could leave. */
static _Thread_local const atomic_bool *has_left;

void block_device_set_client(const atomic_bool *flag)
{
    has_left = flag;
}

static bool client_has_left(void)
{
    return has_left && atomic_load(has_left);
}

/* Wait in front of the shut gate. 0 when it is worth trying again. */
static int wait_for_gate(struct block_device *device)
{
    struct guest_wait wait = {0};
    int status = 0;
    SCOPE_LOCK(&device->lock);

    while (status == 0 && atomic_load(&device->closed)) {
        bool will_not_open = device->shut_down || client_has_left();

        if (device->removed || (will_not_open && !device->drains)) {
            status = -ESHUTDOWN;
        } else {
            guest_wait_for(&wait, device->held_for);
            pthread_cond_wait(&device->changed, &device->lock);
        }
    }
    guest_wait_end(&wait);
    return status;
}

/* *shard is for leave(). */
static int admit(struct block_device *device, unsigned *shard)
{
    while (true) {
        int status;

        *shard = shard_here();
        sharded_counter_add(&device->in_flight, *shard, 1);
        if (G_LIKELY(!atomic_load(&device->closed))) {
            return 0;
        }
        leave(device, *shard);
        status = wait_for_gate(device);
        if (status < 0) {
            return status;
        }
    }
}

static struct block_device *device_of(struct block_claim *claim)
{
    return (struct block_device *)((char *)claim - offsetof(struct block_device, root));
}

static void drain_begin(struct block_claim *claim)
{
    struct block_device *device = device_of(claim);
    SCOPE_LOCK(&device->lock);

    device->drains++;
    if (!device->held_for) {
        device->held_for = guest_waits_ref(guest_waits_of_thread());
    }
    device_update_closed(device);
}

void device_wait_until_quiet(struct block_device *device)
{
    while (sharded_counter_sum(&device->in_flight)) {
        pthread_cond_wait(&device->changed, &device->lock);
    }
}

static void drain_wait(struct block_claim *claim)
{
    struct block_device *device = device_of(claim);
    SCOPE_LOCK(&device->lock);

    device_wait_until_quiet(device);
}

static void drain_end(struct block_claim *claim)
{
    struct block_device *device = device_of(claim);
    SCOPE_LOCK(&device->lock);

    device->drains--;
    if (!device->drains) {
        guest_waits_unref(STEAL(device->held_for));
    }
    device_update_closed(device);
}

bool block_device_is_busy(struct block_device *device)
{
    return sharded_counter_sum(&device->in_flight) > sharded_counter_sum(&device->not_counted);
}

const struct block_claim_operations block_device_claim_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .follows_place = true,
};

void block_device_hold(struct block_device *device)
{
    drain_begin(&device->root);
}

void block_device_wait_held(struct block_device *device)
{
    drain_wait(&device->root);
}

void block_device_let_go(struct block_device *device)
{
    drain_end(&device->root);
}

/* ---- Requests ------------------------------------------------------------------------------- */

/* A guest's request, for as long as it takes. */
struct guest_request {
    enum block_operation operation;
    void *read_buffer;
    const void *write_buffer;
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
};

static int run_on_root(struct block_node *root, const struct guest_request *request)
{
    switch (request->operation) {
    case BLOCK_OPERATION_READ:
        return block_node_pread(root, request->read_buffer, request->offset, request->bytes, 0);
    case BLOCK_OPERATION_WRITE:
        return block_node_pwrite(root, request->write_buffer, request->offset, request->bytes,
                                 request->flags);
    case BLOCK_OPERATION_WRITE_ZEROES:
        return block_node_write_zeroes(root, request->offset, request->bytes, request->flags);
    case BLOCK_OPERATION_DISCARD: {
        int status = block_node_discard(root, request->offset, request->bytes);

        return status == 0 && (request->flags & BLOCK_REQUEST_FUA) ? block_node_flush(root)
                                                                   : status;
    }
    case BLOCK_OPERATION_FLUSH:
        return block_node_flush(root);
    default:
        g_assert_not_reached();
    }
}

static void emit_io_error(struct block_device *device, const struct guest_request *request,
                          enum block_error_policy action, int error_number)
{
    AUTO(block_node) root = block_device_root(device);

    if (!device->is_listed) {
        return; /* whoever reads it is no guest */
    }
    event_emit(
        "BLOCK_IO_ERROR", EVENT_STRING("qom-path", device->name),
        EVENT_STRING("device", device->name), EVENT_STRING("node-name", root ? root->name : NULL),
        EVENT_STRING("operation", request->operation == BLOCK_OPERATION_READ ? "read" : "write"),
        EVENT_STRING("action", block_error_policy_names[action]),
        EVENT_BOOL("nospace", error_number == ENOSPC),
        EVENT_STRING("reason", block_strerror(error_number)));
}

/* The stop policy: later requests wait at the gate, and so will this one when it comes again. */
static void stop_for_error(struct block_device *device, int error_number)
{
    SCOPE_LOCK(&device->lock);

    device->io_status = error_number == ENOSPC ? BLOCK_IO_STATUS_NOSPACE : BLOCK_IO_STATUS_FAILED;
    if (!device->stopped) {
        device->stopped = true;
        device_update_closed(device);
        event_emit("STOP");
    }
}

/*
 * What becomes of a request that failed. Returns true to try it again (it passes the gate anew,
 * which holds it while the device is stopped); else *status is the guest's answer.
 */
static bool handle_error(struct block_device *device, const struct guest_request *request,
                         int *status)
{
    bool is_read = request->operation == BLOCK_OPERATION_READ;
    enum block_error_policy action = block_error_policy_action(
        is_read ? device->on_read_error : device->on_write_error, -*status);

    emit_io_error(device, request, action, -*status);
    if (action == BLOCK_ERROR_POLICY_STOP) {
        stop_for_error(device, -*status);
        return true;
    }
    if (action == BLOCK_ERROR_POLICY_IGNORE) {
        if (is_read) {
            memset(request->read_buffer, 0, request->bytes);
        }
        *status = 0;
    }
    return false;
}

/* True for answers that are no failure of the storage: a probe for fast zeroes that has none. */
static bool is_refusal(const struct guest_request *request, int status)
{
    return status == -ENOTSUP && (request->flags & BLOCK_REQUEST_NO_FALLBACK);
}

static bool is_change(const struct guest_request *request)
{
    return request->operation != BLOCK_OPERATION_READ &&
           request->operation != BLOCK_OPERATION_FLUSH;
}

/* What is refused before it starts: not an I/O error, so no error policy applies. */
static int check_request(struct block_device *device, const struct guest_request *request)
{
    struct block_node *root = device->root.node;
    bool changes = is_change(request);
    bool gives_up = request->operation == BLOCK_OPERATION_DISCARD && device->discards;

    if (changes && device_is_read_only(device, root) && !gives_up) {
        return -EPERM;
    }
    if (!range_within(request->offset, request->bytes, block_node_length(root))) {
        return changes ? -ENOSPC : -EINVAL;
    }
    return 0;
}

static void begin_noted(struct change_tracker *tracker, struct block_node *root,
                        const struct guest_request *request)
{
    tracking_begin(tracker, root, request->operation, request->offset, request->bytes);
}

static int run_and_end_noted(struct change_tracker *tracker, struct block_node *root,
                             const struct guest_request *request)
{
    int status = run_on_root(root, request);

    tracking_end(tracker, root, request->operation, request->offset, request->bytes, status);
    return status;
}

/*
 * Where the storage cannot say what it holds, and a discard may leave anything, zeroes that unmap
 * are as cheap, and known to be zeroes. -ENOTSUP: not here; nothing has changed.
 */
static int discard_as_zeroes(struct change_tracker *tracker, struct block_node *root,
                             const struct guest_request *request)
{
    struct guest_request zeroes = *request;

    if (!block_node_unmaps_zeroes(root)) {
        return -ENOTSUP;
    }
    zeroes.operation = BLOCK_OPERATION_WRITE_ZEROES;
    zeroes.flags |= BLOCK_REQUEST_MAY_UNMAP | BLOCK_REQUEST_NO_FALLBACK;
    begin_noted(tracker, root, &zeroes);
    return run_and_end_noted(tracker, root, &zeroes);
}

/* What changes the disk is noted before and after. */
static int run_noted(struct block_device *device, const struct guest_request *request)
{
    struct change_tracker *tracker =
        is_change(request) ? atomic_load_explicit(&device->tracker, memory_order_acquire) : NULL;
    struct block_node *root = device->root.node;
    int status = -ENOTSUP;

    if (!tracker) {
        return run_on_root(root, request);
    }
    if (request->operation == BLOCK_OPERATION_DISCARD) {
        status = discard_as_zeroes(tracker, root, request);
    }
    if (status == -ENOTSUP) {
        begin_noted(tracker, root, request);
        status = run_and_end_noted(tracker, root, request);
    }
    return status;
}

/* *refused: the request never started. */
static int run_request(struct block_device *device, const struct guest_request *request,
                       bool *refused)
{
    unsigned shard;
    int status;

    do {
        status = admit(device, &shard);
        *refused = status < 0;
        if (status < 0) {
            return status;
        }
        status = check_request(device, request);
        *refused = status < 0;
        if (status == 0) {
            status = run_noted(device, request);
        }
        leave(device, shard);
    } while (G_UNLIKELY(status < 0) && !*refused && !is_refusal(request, status) &&
             handle_error(device, request, &status));
    return status;
}

static int submit(struct block_device *device, const struct guest_request *request)
{
    int64_t start_ns = clock_now_ns();
    bool refused;
    int status;

    if (request->operation != BLOCK_OPERATION_FLUSH) {
        throttle_wait(device->throttle, request->operation != BLOCK_OPERATION_READ, request->bytes);
    }
    status = run_request(device, request, &refused);
    if (refused) {
        statistics_record_invalid(&device->statistics, request->operation);
    } else {
        int64_t end_ns = clock_now_ns();

        statistics_record(&device->statistics, request->operation, request->offset, request->bytes,
                          status, start_ns, end_ns);
        latency_histograms_record(&device->histograms, request->operation, end_ns - start_ns);
    }
    return status;
}

int block_device_pread(struct block_device *device, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct guest_request request = {
        .operation = BLOCK_OPERATION_READ,
        .read_buffer = buffer,
        .offset = offset,
        .bytes = bytes,
    };

    return submit(device, &request);
}

int block_device_pwrite(struct block_device *device, const void *buffer, uint64_t offset,
                        uint64_t bytes, unsigned flags)
{
    struct guest_request request = {
        .operation = BLOCK_OPERATION_WRITE,
        .write_buffer = buffer,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return submit(device, &request);
}

int block_device_write_zeroes(struct block_device *device, uint64_t offset, uint64_t bytes,
                              unsigned flags)
{
    struct guest_request request = {
        .operation = BLOCK_OPERATION_WRITE_ZEROES,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return submit(device, &request);
}

int block_device_discard(struct block_device *device, uint64_t offset, uint64_t bytes,
                         unsigned flags)
{
    struct guest_request request = {
        .operation = BLOCK_OPERATION_DISCARD,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return submit(device, &request);
}

int block_device_flush(struct block_device *device)
{
    struct guest_request request = {.operation = BLOCK_OPERATION_FLUSH};

    return submit(device, &request);
}

static int admit_uncounted(struct block_device *device, unsigned *shard)
{
    int status = admit(device, shard);

    if (status == 0) {
        sharded_counter_add(&device->not_counted, *shard, 1);
    }
    return status;
}

static void leave_uncounted(struct block_device *device, unsigned shard)
{
    sharded_counter_add(&device->not_counted, shard, UINT64_MAX); /* -1 */
    leave(device, shard);
}

int block_device_prefetch(struct block_device *device, uint64_t offset, uint64_t bytes)
{
    unsigned shard;
    int status = admit_uncounted(device, &shard);

    if (status == 0) {
        status = block_node_prefetch(device->root.node, offset, bytes);
        leave_uncounted(device, shard);
    }
    return status;
}

int block_device_block_status_depth(struct block_device *device, uint64_t offset, uint64_t bytes,
                                    struct block_extent *extent, unsigned *depth)
{
    unsigned shard;
    int status = admit_uncounted(device, &shard);

    if (status == 0) {
        status = block_node_block_status_chain(device->root.node, offset, bytes, extent, depth);
        leave_uncounted(device, shard);
    }
    return status;
}

int block_device_block_status(struct block_device *device, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    return block_device_block_status_depth(device, offset, bytes, extent, NULL);
}
