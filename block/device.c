/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Devices. A request passes the gate (admit), runs on the root node, leaves, and is accounted for.
 * The gate is one counter and one flag as long as nobody drains or stops the device.
 */
#include "block/device.h"

#include <errno.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "block/event.h"
#include "block/graph.h"
#include "block/queue.h"
#include "block/sharded-counter.h"
#include "block/tracking.h"

const char *const block_error_policy_names[] = {"report", "ignore", "stop", "enospc", NULL};
const char *const block_io_status_names[] = {"ok", "failed", "nospace", NULL};

struct block_device {
    char *name;
    struct block_claim root; /* root.node is stable while a request is in flight */
    bool read_only;          /* whatever the root */
    enum block_error_policy on_read_error;
    enum block_error_policy on_write_error;
    bool is_listed;                         /* a guest's disk */
    bool discards;                          /* the read-only root takes discards */
    bool is_moving;                         /* block_device_begin_move; main thread */
    struct change_tracker *_Atomic tracker; /* the server's, or NULL; changed while drained */
    struct throttle *throttle;
    struct statistics statistics;

    /*
     * The gate. A request raises in_flight, then looks at closed; who shuts the gate sets closed,
     * then looks at in_flight: with sequential consistency one of them sees the other. A request
     * leaves by the shard it came in by, so that no shard is ever below 0 and makes up for a
     * request in another.
     */
    _Atomic bool closed;
    struct sharded_counter in_flight;

    /* Guards what follows and changes of `closed`. Innermost but for the event queue. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned drains;
    bool stopped;   /* by an error policy or by stop */
    bool shut_down; /* requests that would wait fail instead */
    bool removed;   /* all requests fail */
    enum block_io_status io_status;

    int references; /* devices_lock */
    TAILQ_ENTRY(block_device) entry;
};

/* Guards the list, references and run_paused; taken before any device's lock. */
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(, block_device) devices = TAILQ_HEAD_INITIALIZER(devices);
static bool run_paused;

enum block_error_policy block_error_policy_action(enum block_error_policy policy, int error_number)
{
    if (policy == BLOCK_ERROR_POLICY_ENOSPC) {
        return error_number == ENOSPC || error_number == EDQUOT ? BLOCK_ERROR_POLICY_STOP
                                                                : BLOCK_ERROR_POLICY_REPORT;
    }
    return policy;
}

/* ---- The gate ------------------------------------------------------------------------------- */

/* Device lock held. */
static void update_closed(struct block_device *device)
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

/* Wait in front of the shut gate. 0 when it is worth trying again. */
static int wait_for_gate(struct block_device *device)
{
    SCOPE_LOCK(&device->lock);

    while (atomic_load(&device->closed)) {
        if (device->removed || (device->shut_down && !device->drains)) {
            return -ESHUTDOWN;
        }
        pthread_cond_wait(&device->changed, &device->lock);
    }
    return 0;
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
    update_closed(device);
}

/* Device lock held. */
static void wait_until_quiet(struct block_device *device)
{
    while (sharded_counter_sum(&device->in_flight)) {
        pthread_cond_wait(&device->changed, &device->lock);
    }
}

static void drain_wait(struct block_claim *claim)
{
    struct block_device *device = device_of(claim);
    SCOPE_LOCK(&device->lock);

    wait_until_quiet(device);
}

static void drain_end(struct block_claim *claim)
{
    struct block_device *device = device_of(claim);
    SCOPE_LOCK(&device->lock);

    device->drains--;
    update_closed(device);
}

static const struct block_claim_operations device_claim_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
    .follows_place = true,
};

/* ---- Life ----------------------------------------------------------------------------------- */

static bool is_read_only(const struct block_device *device, const struct block_node *root)
{
    return device->read_only || root->options.read_only;
}

static unsigned root_perms(const struct block_device *device, const struct block_node *root)
{
    return is_read_only(device, root) ? BLOCK_PERM_READ : BLOCK_PERM_READ | BLOCK_PERM_WRITE;
}

/* A guest owns the contents; the graph under it and its length are the administrator's. */
static unsigned root_shared(const struct block_device *device, const struct block_node *root)
{
    unsigned refused = BLOCK_PERM_VOID | (is_read_only(device, root) ? 0u : BLOCK_PERM_WRITE);

    return BLOCK_PERM_ALL & ~refused;
}

static void free_device(struct block_device *device)
{
    g_free(device->root.owner);
    throttle_free(device->throttle);
    pthread_mutex_destroy(&device->lock);
    pthread_cond_destroy(&device->changed);
    g_free(device->name);
    g_free(device);
}

/* devices_lock held. */
static struct block_device *find_locked(const char *name)
{
    struct block_device *device;

    TAILQ_FOREACH (device, &devices, entry) {
        if (!strcmp(device->name, name)) {
            return device;
        }
    }
    return NULL;
}

static int insert_device(struct block_device *device, GError **error)
{
    SCOPE_LOCK(&devices_lock);

    if (find_locked(device->name)) {
        return block_error(error, EEXIST, "Device '%s' exists already", device->name);
    }
    device->is_listed = true;
    TAILQ_INSERT_TAIL(&devices, device, entry);
    SCOPE_LOCK(&device->lock);
    device->stopped = run_paused;
    update_closed(device); /* its claim may have joined a drained section already */
    return 0;
}

/* A device on its root, unlisted. */
static struct block_device *new_device(const char *name, struct block_node *root, GError **error)
{
    struct block_device *device = g_new0(struct block_device, 1);

    device->name = g_strdup(name);
    device->references = 1;
    device->throttle = throttle_new();
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->changed, NULL);
    device->root.owner = g_strdup_printf("block device '%s'", name);
    device->root.operations = &device_claim_operations;
    device->read_only = root->options.read_only;
    device->root.perms = root_perms(device, root);
    device->root.shared = root_shared(device, root);
    if (block_claim_acquire(&device->root, root, error) < 0) {
        free_device(device);
        return NULL;
    }
    return device;
}

struct block_device *block_device_new(const char *name, struct block_node *root, GError **error)
{
    struct block_device *device;

    if (!block_identifier_is_valid(name)) {
        block_error(error, EINVAL,
                    "Invalid device name '%s': it must begin with a letter and hold only letters, "
                    "digits, '.', '_' and '-'",
                    name);
        return NULL;
    }
    device = new_device(name, root, error);
    if (device && insert_device(device, error) < 0) {
        block_claim_release(&device->root);
        free_device(device);
        return NULL;
    }
    return device;
}

struct block_device *block_device_new_unlisted(const char *name, struct block_node *root,
                                               bool discards, GError **error)
{
    struct block_device *device = new_device(name, root, error);

    if (device) {
        device->discards = discards;
    }
    return device;
}

struct block_device *block_device_ref(struct block_device *device)
{
    SCOPE_LOCK(&devices_lock);

    device->references++;
    return device;
}

void block_device_unref(struct block_device *device)
{
    if (!device) {
        return;
    }
    pthread_mutex_lock(&devices_lock);
    bool last = --device->references == 0;
    pthread_mutex_unlock(&devices_lock);
    if (last) {
        free_device(device);
    }
}

int block_device_remove(struct block_device *device)
{
    int status;

    if (device->is_listed) {
        SCOPE_LOCK(&devices_lock);
        TAILQ_REMOVE(&devices, device, entry);
    }
    throttle_suspend(device->throttle); /* requests that wait there are refused at the gate */
    pthread_mutex_lock(&device->lock);
    device->removed = true;
    update_closed(device);
    wait_until_quiet(device);
    pthread_mutex_unlock(&device->lock);

    status = block_node_flush(device->root.node);
    block_claim_release(&device->root);
    block_device_unref(device);
    return status;
}

struct block_device *block_device_find(const char *name)
{
    SCOPE_LOCK(&devices_lock);
    struct block_device *device = find_locked(name);

    if (device) {
        device->references++;
    }
    return device;
}

struct block_device *block_device_find_by_root(const struct block_node *root)
{
    struct block_device **list = block_device_list();
    struct block_device *found = NULL;

    for (struct block_device **device = list; *device && !found; device++) {
        AUTO(block_node) node = block_device_root(*device);

        if (node == root) {
            found = block_device_ref(*device);
        }
    }
    block_device_list_free(list);
    return found;
}

struct block_device **block_device_list(void)
{
    GPtrArray *list = g_ptr_array_new();
    SCOPE_LOCK(&devices_lock);
    struct block_device *device;

    TAILQ_FOREACH (device, &devices, entry) {
        device->references++;
        g_ptr_array_add(list, device);
    }
    g_ptr_array_add(list, NULL);
    return (struct block_device **)g_ptr_array_free(list, FALSE);
}

void block_device_list_free(struct block_device **list)
{
    for (struct block_device **device = list; *device; device++) {
        block_device_unref(*device);
    }
    g_free(list);
}

const char *block_device_name(const struct block_device *device)
{
    return device->name;
}

struct block_node *block_device_root(struct block_device *device)
{
    SCOPE_LOCK(&block_graph_lock);

    if (device->root.node) {
        device->root.node->references++;
    }
    return device->root.node;
}

static int check_not_moving(const struct block_device *device, GError **error)
{
    return device->is_moving
               ? block_error(error, EBUSY, "A job is just moving device '%s' to another node",
                             device->name)
               : 0;
}

int block_device_begin_move(struct block_device *device, GError **error)
{
    int status = check_not_moving(device, error);

    device->is_moving = true;
    return status;
}

void block_device_end_move(struct block_device *device)
{
    device->is_moving = false;
}

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

int block_device_set_root(struct block_device *device, struct block_node *root, GError **error)
{
    if (check_not_moving(device, error) < 0) {
        return -EBUSY;
    }
    return block_claim_move(&device->root, root, root_perms(device, root),
                            root_shared(device, root), error);
}

int block_device_take_root(struct block_device *device, struct block_claim *holder, GError **error)
{
    if (check_not_moving(device, error) < 0) {
        return -EBUSY;
    }
    return block_claim_replace(&device->root, holder, root_perms(device, holder->node),
                               root_shared(device, holder->node), error);
}

void block_device_set_error_policies(struct block_device *device, enum block_error_policy on_read,
                                     enum block_error_policy on_write)
{
    device->on_read_error = on_read;
    device->on_write_error = on_write;
}

bool block_device_takes_discards(const struct block_device *device)
{
    return device->discards;
}

uint64_t block_device_length(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);

    return root ? block_node_length(root) : 0;
}

bool block_device_is_read_only(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);

    return !root || is_read_only(device, root);
}

struct throttle *block_device_throttle(struct block_device *device)
{
    return device->throttle;
}

struct statistics *block_device_statistics(struct block_device *device)
{
    return &device->statistics;
}

enum block_io_status block_device_io_status(struct block_device *device)
{
    SCOPE_LOCK(&device->lock);

    return device->io_status;
}

void block_device_set_tracker(struct block_device *device, struct change_tracker *tracker)
{
    atomic_store(&device->tracker, tracker);
}

struct change_tracker *block_device_tracker(const struct block_device *device)
{
    return atomic_load(&device->tracker);
}

bool block_device_is_stopped(struct block_device *device)
{
    SCOPE_LOCK(&device->lock);

    return device->stopped;
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
        update_closed(device);
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

    if (changes && is_read_only(device, root) && !gives_up) {
        return -EPERM;
    }
    if (!range_within(request->offset, request->bytes, block_node_length(root))) {
        return changes ? -ENOSPC : -EINVAL;
    }
    return 0;
}

/* What changes the disk is noted before and after. */
static int run_noted(struct block_device *device, const struct guest_request *request)
{
    struct change_tracker *tracker =
        is_change(request) ? atomic_load_explicit(&device->tracker, memory_order_acquire) : NULL;
    struct block_node *root = device->root.node;
    int status;

    if (tracker) {
        tracking_begin(tracker, root, request->operation, request->offset, request->bytes);
    }
    status = run_on_root(root, request);
    if (tracker) {
        tracking_end(tracker, root, request->operation, request->offset, request->bytes, status);
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
        statistics_record(&device->statistics, request->operation, request->offset, request->bytes,
                          status, start_ns, clock_now_ns());
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

int block_device_prefetch(struct block_device *device, uint64_t offset, uint64_t bytes)
{
    unsigned shard;
    int status = admit(device, &shard);

    if (status == 0) {
        status = block_node_prefetch(device->root.node, offset, bytes);
        leave(device, shard);
    }
    return status;
}

int block_device_block_status(struct block_device *device, uint64_t offset, uint64_t bytes,
                              struct block_extent *extent)
{
    unsigned shard;
    int status = admit(device, &shard);

    if (status == 0) {
        status = block_node_block_status_chain(device->root.node, offset, bytes, extent, NULL);
        leave(device, shard);
    }
    return status;
}

/* ---- stop, cont, shutdown ------------------------------------------------------------------- */

/* For all devices in one go: of a stop and a cont at the same time, one has its way with all. */
static void set_all_stopped(bool stopped)
{
    SCOPE_LOCK(&devices_lock);
    struct block_device *device;

    run_paused = stopped;
    TAILQ_FOREACH (device, &devices, entry) {
        SCOPE_LOCK(&device->lock);
        device->stopped = stopped;
        if (!stopped) {
            device->io_status = BLOCK_IO_STATUS_OK;
        }
        update_closed(device);
    }
}

void block_device_stop_all(void)
{
    struct block_device **list;

    set_all_stopped(true);
    list = block_device_list();
    for (struct block_device **device = list; *device; device++) {
        SCOPE_LOCK(&(*device)->lock);
        wait_until_quiet(*device);
    }
    block_device_list_free(list);
}

void block_device_continue_all(void)
{
    set_all_stopped(false);
}

const char *block_device_run_state(void)
{
    struct block_device **list = block_device_list();
    const char *state = "running";

    pthread_mutex_lock(&devices_lock);
    if (run_paused) {
        state = "paused";
    }
    pthread_mutex_unlock(&devices_lock);
    for (struct block_device **device = list; *device; device++) {
        if (block_device_io_status(*device) != BLOCK_IO_STATUS_OK) {
            state = "io-error";
        }
    }
    block_device_list_free(list);
    return state;
}

void block_device_shutdown_all(void)
{
    struct block_device **list = block_device_list();

    for (struct block_device **device = list; *device; device++) {
        throttle_suspend((*device)->throttle);
        SCOPE_LOCK(&(*device)->lock);
        (*device)->shut_down = true;
        update_closed(*device);
    }
    block_device_list_free(list);
}
