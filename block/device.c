/* SPDX-License-Identifier: BSD-3-Clause */
/* Devices: their life, their root, and what stops them all. */
#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/device-internal.h"
#include "block/error.h"
#include "block/event.h"
#include "block/graph.h"

const char *const block_io_status_names[] = {"ok", "failed", "nospace", NULL};

/* Guards the list, references and run_paused; taken before any device's lock. */
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;
static TAILQ_HEAD(device_list, block_device) devices = TAILQ_HEAD_INITIALIZER(devices);
/* Of block_device_new_shared. */
static struct device_list shared_devices = TAILQ_HEAD_INITIALIZER(shared_devices);
static bool run_paused;

/* ---- Life ----------------------------------------------------------------------------------- */

static unsigned root_perms(const struct block_device *device, const struct block_node *root)
{
    return device_is_read_only(device, root) ? BLOCK_PERM_READ : BLOCK_PERM_READ | BLOCK_PERM_WRITE;
}

/* A guest owns the contents; the graph under it and its length are the administrator's. */
static unsigned root_shared(const struct block_device *device, const struct block_node *root)
{
    bool is_alone = !device->shares_writing && !device_is_read_only(device, root);
    unsigned refused = BLOCK_PERM_VOID | (is_alone ? BLOCK_PERM_WRITE : 0u);

    return BLOCK_PERM_ALL & ~refused;
}

static void free_device(struct block_device *device)
{
    g_free(device->root.owner);
    throttle_free(device->throttle);
    latency_histograms_destroy(&device->histograms);
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

static void take_out(struct block_device *device)
{
    SCOPE_LOCK(&devices_lock);

    TAILQ_REMOVE(device->is_listed ? &devices : &shared_devices, device, entry);
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
    device_update_closed(device); /* its claim may have joined a drained section already */
    return 0;
}

/* A device for this root, but not on it yet. */
static struct block_device *make_device(const char *name, const struct block_node *root,
                                        bool read_only, bool shares_writing)
{
    struct block_device *device = g_new0(struct block_device, 1);

    device->name = g_strdup(name);
    device->references = 1;
    device->throttle = throttle_new();
    latency_histograms_init(&device->histograms);
    pthread_mutex_init(&device->lock, NULL);
    pthread_cond_init(&device->changed, NULL);
    device->root.owner = g_strdup_printf("block device '%s'", name);
    device->root.operations = &block_device_claim_operations;
    device->read_only = read_only;
    device->shares_writing = shares_writing;
    device->root.perms = root_perms(device, root);
    device->root.shared = root_shared(device, root);
    return device;
}

/* A device on its root, unlisted. */
static struct block_device *new_device(const char *name, struct block_node *root, GError **error)
{
    struct block_device *device = make_device(name, root, root->options.read_only, false);

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

struct block_device *block_device_new_shared(const char *name, struct block_node *root,
                                             bool read_only, GError **error)
{
    struct block_device *device =
        make_device(name, root, read_only || root->options.read_only, true);

    /* Who sees to all that are on a node and lets no more come does not miss it. */
    pthread_mutex_lock(&devices_lock);
    TAILQ_INSERT_TAIL(&shared_devices, device, entry);
    pthread_mutex_unlock(&devices_lock);
    if (block_claim_acquire(&device->root, root, error) < 0) {
        take_out(device);
        block_device_unref(device);
        return NULL;
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
    if (device->is_listed || device->shares_writing) {
        take_out(device);
    }
    throttle_suspend(device->throttle); /* requests that wait there are refused at the gate */
    pthread_mutex_lock(&device->lock);
    device->removed = true;
    device_update_closed(device);
    device_wait_until_quiet(device);
    pthread_mutex_unlock(&device->lock);

    /* It may still be moved: its root is another one then. */
    AUTO(block_node) root = block_device_root(device);
    int status = block_node_flush(root);
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

bool block_device_is_on(struct block_device *device, struct block_node *root)
{
    AUTO(block_node) own_root = block_device_root(device);
    AUTO(block_node) own = own_root ? block_below_transient(own_root) : NULL;
    AUTO(block_node) wanted = block_below_transient(root);

    return own == wanted;
}

struct block_device *block_device_find_by_root(struct block_node *root)
{
    struct block_device **list = block_device_list();
    struct block_device *found = NULL;

    for (struct block_device **device = list; *device && !found; device++) {
        if (block_device_is_on(*device, root)) {
            found = block_device_ref(*device);
        }
    }
    block_device_list_free(list);
    return found;
}

/* devices_lock held. */
static void append_locked(GPtrArray *list, const struct device_list *from)
{
    struct block_device *device;

    TAILQ_FOREACH (device, from, entry) {
        device->references++;
        g_ptr_array_add(list, device);
    }
}

struct block_device **block_device_list(void)
{
    GPtrArray *list = g_ptr_array_new();
    SCOPE_LOCK(&devices_lock);

    append_locked(list, &devices);
    g_ptr_array_add(list, NULL);
    return (struct block_device **)g_ptr_array_free(list, FALSE);
}

struct block_device **block_device_list_with_shared(void)
{
    GPtrArray *list = g_ptr_array_new();
    SCOPE_LOCK(&devices_lock);

    append_locked(list, &devices);
    append_locked(list, &shared_devices);
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

bool block_device_is_listed(const struct block_device *device)
{
    return device->is_listed;
}

bool block_device_is_read_only(struct block_device *device)
{
    AUTO(block_node) root = block_device_root(device);

    return !root || device_is_read_only(device, root);
}

struct throttle *block_device_throttle(struct block_device *device)
{
    return device->throttle;
}

struct statistics *block_device_statistics(struct block_device *device)
{
    return &device->statistics;
}

struct latency_histograms *block_device_histograms(struct block_device *device)
{
    return &device->histograms;
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
        device_update_closed(device);
    }
}

void block_device_stop_all(void)
{
    struct block_device **list;

    set_all_stopped(true);
    list = block_device_list();
    for (struct block_device **device = list; *device; device++) {
        SCOPE_LOCK(&(*device)->lock);
        device_wait_until_quiet(*device);
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

void block_device_client_left(void)
{
    SCOPE_LOCK(&devices_lock);
    struct block_device *device;

    TAILQ_FOREACH (device, &devices, entry) {
        SCOPE_LOCK(&device->lock);
        pthread_cond_broadcast(&device->changed);
    }
}

void block_device_shutdown_all(void)
{
    struct block_device **list = block_device_list();

    for (struct block_device **device = list; *device; device++) {
        throttle_suspend((*device)->throttle);
        SCOPE_LOCK(&(*device)->lock);
        (*device)->shut_down = true;
        device_update_closed(*device);
    }
    block_device_list_free(list);
}
