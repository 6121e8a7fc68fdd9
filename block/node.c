/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes: names, references, and questions a node answers. */
#include "block/node.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/main-loop.h"
#include "block/node-internal.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"

/* How long removing a node waits for those who look at it in passing. */
#define REMOVE_GRACE_NS (2 * NS_PER_SECOND)

pthread_mutex_t block_graph_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t reference_dropped = PTHREAD_COND_INITIALIZER; /* with the graph lock */

/* All published nodes, oldest first, and the number of the next made-up name. Graph lock. */
static TAILQ_HEAD(block_node_list_head, block_node) all_nodes = TAILQ_HEAD_INITIALIZER(all_nodes);
static uint64_t next_serial = 1;

bool block_node_name_is_valid(const char *name)
{
    return block_identifier_is_valid(name) && strlen(name) <= BLOCK_NODE_NAME_MAX;
}

bool block_identifier_is_valid(const char *name)
{
    if (!g_ascii_isalpha(*name)) {
        return false;
    }
    for (const char *p = name; *p; p++) {
        if (!g_ascii_isalnum(*p) && !strchr("._-", *p)) {
            return false;
        }
    }
    return true;
}

struct block_node *block_node_find_locked(const char *name)
{
    struct block_node *node;

    TAILQ_FOREACH (node, &all_nodes, entry) {
        if (!strcmp(node->name, name)) {
            return node;
        }
    }
    return NULL;
}

struct block_node *block_node_find(const char *name)
{
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *node = block_node_find_locked(name);

    if (node) {
        node->references++;
    }
    return node;
}

struct block_node *block_node_find_or_error(const char *name, GError **error)
{
    struct block_node *node = block_node_find(name);

    if (!node) {
        block_error(error, ENOENT, "Cannot find device='' nor node-name='%s'", name);
    }
    return node;
}

struct block_node *block_node_find_reference(const char *name, GError **error)
{
    struct block_node *node = block_node_find(name);

    if (!node) {
        block_error(error, ENOENT, "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    return node;
}

struct block_node **block_node_list(void)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new();
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *node;

    TAILQ_FOREACH_REVERSE(node, &all_nodes, block_node_list_head, entry)
    {
        node->references++;
        g_ptr_array_add(list, node);
    }
    g_ptr_array_add(list, NULL);
    return (struct block_node **)g_ptr_array_free(g_steal_pointer(&list), FALSE);
}

void block_node_list_free(struct block_node **list)
{
    for (struct block_node **node = list; *node; node++) {
        block_node_unref(*node);
    }
    g_free(list);
}

struct block_node *block_node_ref(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);
    node->references++;
    return node;
}

/* Jobs take theirs away before they let go of the node. */
static void free_named_bitmaps(struct block_node *node)
{
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (dirty_bitmap_name(*bitmap)) {
            dirty_bitmap_free(*bitmap);
        }
    }
}

void block_node_free(struct block_node *node)
{
    struct block_child *child, *next;

    TAILQ_FOREACH_SAFE (child, &node->children, entry, next) {
        TAILQ_REMOVE(&node->children, child, entry);
        block_claim_release(&child->claim);
        block_child_free(child);
    }
    tracked_requests_destroy(&node->tracked);
    pthread_mutex_destroy(&node->operation_lock);
    g_free(node->notifiers);
    g_free(node->followers);
    free_named_bitmaps(node);
    g_free(node->bitmaps);
    block_options_free(node->given);
    g_free(node->name);
    g_aligned_free(node->state);
    g_aligned_free(node);
}

void block_node_unref(struct block_node *node)
{
    if (!node) {
        return;
    }
    pthread_mutex_lock(&block_graph_lock);
    bool last = --node->references == 0;
    if (last && node->published) {
        TAILQ_REMOVE(&all_nodes, node, entry);
    }
    if (last) {
        block_drain_node_gone(node);
    }
    pthread_cond_broadcast(&reference_dropped);
    pthread_mutex_unlock(&block_graph_lock);
    if (!last) {
        return;
    }
    if (!node->options.read_only) {
        int status = block_node_flush(node);

        if (status < 0) {
            g_warning("Node '%s': the last flush before closing failed: %s", node->name,
                      block_strerror(-status));
        }
        block_stored_bitmaps_close(node);
    }
    if (node->driver->close) {
        node->driver->close(node);
    }
    block_node_free(node);
}

struct block_node *block_node_child(const struct block_node *node, const char *name)
{
    struct block_child *child;

    TAILQ_FOREACH (child, &node->children, entry) {
        if (!strcmp(child->name, name)) {
            return child->claim.node;
        }
    }
    return NULL;
}

int block_node_refresh_length(struct block_node *node, GError **error)
{
    int64_t length = node->driver->get_length ? node->driver->get_length(node)
                                              : (int64_t)block_node_length(node->file);

    if (length < 0) {
        return block_error_errno(error, (int)-length, "Could not get the length of node '%s'",
                                 node->name ? node->name : node->driver->name);
    }
    atomic_store_explicit(&node->length, (uint64_t)length, memory_order_release);
    return 0;
}

int block_node_publish(struct block_node *node, GError **error)
{
    struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    if (node->name && block_node_find_locked(node->name)) {
        return block_error(error, EEXIST, "Duplicate nodes with node-name='%s'", node->name);
    }
    node->serial = next_serial++;
    if (!node->name) {
        node->name = g_strdup_printf("#block%03" PRIu64, node->serial);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        g_free(child->claim.owner);
        child->claim.owner = g_strdup_printf("node '%s'", node->name);
    }
    node->published = true;
    TAILQ_INSERT_TAIL(&all_nodes, node, entry);
    return 0;
}

int block_node_add(struct block_options *options, GError **error)
{
    struct block_node *node = block_node_open(options, false, error);

    if (!node) {
        return -EINVAL;
    }
    SCOPE_LOCK(&block_graph_lock);
    node->named = true;
    return 0;
}

/*
 * A query may just be looking at the node. Who removes a node expects its file to be closed and
 * unlocked afterwards, so wait until only our own references are left; but not for ever, and not
 * for somebody who has begun to use the node. A job's filter nobody uses for long: a job that is
 * being set up may hold it for a moment, until it is refused. Graph lock held.
 */
static void wait_for_passing_references(struct block_node *node, int our_own)
{
    int64_t deadline_ns = clock_now_ns() + REMOVE_GRACE_NS;

    while (node->references > our_own && (node->is_transient || TAILQ_EMPTY(&node->claims)) &&
           clock_cond_wait_until(&reference_dropped, &block_graph_lock, deadline_ns) == 0) {
    }
}

/* Who uses a node that is to go, in the words that QEMU has for it. Graph lock held. */
static int refuse_removal(const struct block_node *node, const struct block_claim *user,
                          GError **error)
{
    const struct block_child *child;

    if (user->operations && user->operations->follows_place) {
        return block_error(error, EBUSY, "Node %s is in use", node->name);
    }
    if (g_str_has_prefix(user->owner, "block job ")) {
        return block_error(error, EBUSY, "Node '%s' is busy: block device is in use by %s",
                           node->name, user->owner);
    }
    if (!user->parent) {
        return block_error(error, EBUSY, "Node '%s' is busy: it is in use by %s", node->name,
                           user->owner);
    }
    child = (const struct block_child *)((const char *)user - offsetof(struct block_child, claim));
    return child->role == BLOCK_ROLE_BACKING
               ? block_error(error, EBUSY, "Node '%s' is busy: node is used as backing hd of '%s'",
                             node->name, user->parent->name)
               : block_error(error, EBUSY, "Block device %s is in use", node->name);
}

int block_node_remove(const char *name, GError **error)
{
    AUTO(block_node) node = block_node_find(name);

    if (!node) {
        return block_error(error, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    pthread_mutex_lock(&block_graph_lock);
    struct block_claim *user = TAILQ_FIRST(&node->claims);
    int status = 0;
    if (!node->named) {
        status = block_error(error, EPERM, "Node %s is not owned by the monitor", name);
    } else if (user) {
        status = refuse_removal(node, user, error);
    } else {
        node->named = false;
        wait_for_passing_references(node, 2); /* the monitor's and ours */
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (status == 0) {
        block_node_unref(node); /* the monitor's reference; ours follows */
    }
    return status;
}

void block_node_dispose(struct block_node *node)
{
    pthread_mutex_lock(&block_graph_lock);
    wait_for_passing_references(node, 1);
    pthread_mutex_unlock(&block_graph_lock);
    block_node_unref(node);
}

void block_node_remove_all(void)
{
    struct block_node **list = block_node_list();

    for (struct block_node **node = list; *node; node++) {
        pthread_mutex_lock(&block_graph_lock);
        bool named = (*node)->named;
        (*node)->named = false;
        pthread_mutex_unlock(&block_graph_lock);
        if (named) {
            block_node_unref(*node);
        }
    }
    block_node_list_free(list);
}

/* ---- Another length ------------------------------------------------------------------------- */

/* What is done with the bitmaps of a node that gets another length: on the main thread. */
struct bitmap_resize {
    struct block_node *node;
    uint64_t length;
    bool all_changed;
    int status;
};

static int resize_bitmaps(struct block_node *node, uint64_t length)
{
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        /* A consumer of the bitmap has never seen the new space: it counts as changed. */
        int status = dirty_bitmap_resize(*bitmap, length, dirty_bitmap_enabled(*bitmap));

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

static void lengthen_bitmaps(void *data)
{
    struct bitmap_resize *resize = data;
    struct block_node *node = resize->node;
    uint64_t length = MAX_OF(resize->length, block_node_length(node));

    resize->status = resize_bitmaps(node, length);
    if (resize->status < 0) {
        resize_bitmaps(node, block_node_length(node));
    } else {
        node->bitmap_length = length;
    }
}

int block_node_lengthen_bitmaps(struct block_node *node, uint64_t length, GError **error)
{
    struct bitmap_resize resize = {.node = node, .length = length};

    main_loop_call_wait(lengthen_bitmaps, &resize);
    return resize.status < 0
               ? block_error(error, ENOMEM, "Not enough memory for the dirty bitmaps of node '%s'",
                             node->name)
               : 0;
}

static void fit_bitmaps(void *data)
{
    struct bitmap_resize *resize = data;
    struct block_node *node = resize->node;
    uint64_t length = block_node_length(node);

    node->bitmap_length = 0;
    resize_bitmaps(node, length);
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (resize->all_changed && dirty_bitmap_enabled(*bitmap)) {
            dirty_bitmap_set(*bitmap, 0, length);
        }
    }
}

void block_node_fit_bitmaps(struct block_node *node, bool all_changed)
{
    struct bitmap_resize resize = {.node = node, .all_changed = all_changed};

    main_loop_call_wait(fit_bitmaps, &resize);
}

uint64_t block_node_bitmap_length(const struct block_node *node)
{
    return node->bitmap_length ? node->bitmap_length : atomic_load(&node->length);
}

static int driver_set_length(struct block_node *node, uint64_t length,
                             enum block_preallocation preallocation, block_progress *progress,
                             void *progress_data, GError **error)
{
    if (node->driver->set_length) {
        return node->driver->set_length(node, length, preallocation, progress, progress_data,
                                        error);
    }
    if (node->driver->is_filter) {
        return block_node_resize(node->file, length, preallocation, progress, progress_data, error);
    }
    return block_error(error, ENOTSUP, "Driver '%s' cannot resize node '%s'", node->driver->name,
                       node->name);
}

int block_node_resize(struct block_node *node, uint64_t length,
                      enum block_preallocation preallocation, block_progress *progress,
                      void *progress_data, GError **error)
{
    if (node->options.read_only) {
        return block_error(error, EACCES, "Image is read-only");
    }
    if (length > INT64_MAX || !is_aligned(length, node->limits.request_alignment)) {
        return block_error(error, EINVAL, "The new size must be a multiple of %u",
                           node->limits.request_alignment);
    }
    SCOPE_LOCK(&node->operation_lock);
    int status = block_node_lengthen_bitmaps(node, length, error);
    if (status < 0) {
        return status;
    }
    status = driver_set_length(node, length, preallocation, progress, progress_data, error);
    if (status == 0) {
        status = block_node_refresh_length(node, error);
    }
    block_node_fit_bitmaps(node, false);
    /* A length is to be flushed as data is, also one that was changed half. */
    sharded_counter_add(&node->write_generation, shard_here(), 1);
    return status;
}

int block_node_set_length(struct block_node *node, uint64_t length,
                          enum block_preallocation preallocation, GError **error)
{
    return block_node_resize(node, length, preallocation, NULL, NULL, error);
}

/* Whether the driver can set the length beside requests, to grow (block_driver.set_length). */
static bool grows_beside_requests(const struct block_driver *driver)
{
    return driver->set_length && (driver->is_protocol || driver->is_filter);
}

static int grow_by_length(struct block_node *node, uint64_t length,
                          enum block_preallocation preallocation)
{
    int status = driver_set_length(node, length, preallocation, NULL, NULL, NULL);

    if (status < 0) {
        /* A disk of fixed length is full; that it cannot be resized is not what a guest asked. */
        return status == -EIO || status == -EFBIG || status == -EDQUOT ? status : -ENOSPC;
    }
    sharded_counter_add(&node->write_generation, shard_here(), 1);
    return 0;
}

static int grow_locked(struct block_node *node, uint64_t length, bool is_allocated)
{
    const struct block_driver *driver = node->driver;
    int status = -ENOSPC;

    if (driver->grow) {
        status = is_allocated ? -ENOTSUP : driver->grow(node, length);
    } else if (grows_beside_requests(driver)) {
        status = grow_by_length(
            node, length, is_allocated ? BLOCK_PREALLOCATION_FALLOC : BLOCK_PREALLOCATION_OFF);
    } else if (driver->is_filter) {
        status = is_allocated ? block_node_grow_allocated(node->file, length)
                              : block_node_grow(node->file, length);
    }
    if (status == 0) {
        status = block_node_refresh_length(node, NULL);
    }
    if (status < 0) {
        return status;
    }
    return block_node_length(node) >= length ? 0 : -ENOSPC;
}

static int grow(struct block_node *node, uint64_t length, bool is_allocated)
{
    if (block_node_length(node) >= length) {
        return 0;
    }
    if (node->options.read_only || length > INT64_MAX) {
        return node->options.read_only ? -EPERM : -EFBIG;
    }
    length = align_up(length, node->limits.request_alignment);
    SCOPE_LOCK(&node->operation_lock);
    return block_node_length(node) >= length ? 0 : grow_locked(node, length, is_allocated);
}

int block_node_grow(struct block_node *node, uint64_t length)
{
    return grow(node, length, false);
}

int block_node_grow_allocated(struct block_node *node, uint64_t length)
{
    return grow(node, length, true);
}

int64_t block_node_get_allocated_size(struct block_node *node)
{
    struct block_child *child;
    int64_t sum = 0;

    if (node->driver->get_allocated_size) {
        return node->driver->get_allocated_size(node);
    }
    if (!node->file) {
        return -ENOTSUP;
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == BLOCK_ROLE_FILE || child->role == BLOCK_ROLE_DATA_FILE) {
            int64_t size = block_node_get_allocated_size(child->claim.node);

            if (size < 0) {
                return size;
            }
            sum += size;
        }
    }
    return sum;
}

bool block_node_is_zero_at_creation(struct block_node *node)
{
    if (node->driver->is_zero_at_creation) {
        return node->driver->is_zero_at_creation(node);
    }
    return block_node_passes_on(node) && block_node_is_zero_at_creation(node->file);
}

bool block_node_unmaps_zeroes(struct block_node *node)
{
    const struct block_driver *driver = node->driver;

    if (!node->options.discard_unmap) {
        return false;
    }
    return driver->unmaps_zeroes
               ? driver->unmaps_zeroes(node)
               : block_node_passes_on(node) && block_node_unmaps_zeroes(node->file);
}

bool block_node_can_compress(struct block_node *node)
{
    const struct block_driver *driver = node->driver;

    if (!driver->can_compress && (!driver->is_filter || driver->pwrite)) {
        return false;
    }
    if (driver->compresses && !driver->compresses(node)) {
        return false;
    }
    return !driver->is_filter || block_node_can_compress(node->file);
}

char *block_node_get_filename(struct block_node *node)
{
    if (node->driver->get_filename) {
        return node->driver->get_filename(node);
    }
    return node->file ? block_node_get_filename(node->file)
                      : g_strdup_printf("%s://", node->driver->name);
}

int block_node_get_info(struct block_node *node, struct block_info *info)
{
    *info = (struct block_info){0};
    if (node->driver->get_info) {
        return node->driver->get_info(node, info);
    }
    return block_node_passes_on(node) ? block_node_get_info(node->file, info) : 0;
}

json_t *block_node_get_statistics(struct block_node *node)
{
    return node->driver->get_statistics ? node->driver->get_statistics(node) : NULL;
}

/* A node that an image is made on. */
struct creation_claim {
    struct block_claim claim; /* first: it is cast back */
    bool is_ours;             /* the node was opened for this */
};

static void release_claim(gpointer data)
{
    struct creation_claim *creation = data;
    struct block_node *node = block_node_ref(creation->claim.node);

    block_claim_release(&creation->claim);
    if (creation->is_ours) {
        block_node_dispose(node); /* whoever opens the new image next finds it unlocked */
    } else {
        block_node_unref(node);
    }
    g_free(creation->claim.owner);
    g_free(creation);
}

/* Let others at the nodes; references stay until the claims are freed. */
static int let_others_in(GPtrArray *claims, GError **error)
{
    int status = 0;

    for (guint i = 0; status == 0 && i < claims->len; i++) {
        status = block_claim_change(g_ptr_array_index(claims, i), 0, BLOCK_PERM_ALL, error);
    }
    return status;
}

/* One node option; it stays NULL if it was not given. */
static int take_node(struct block_options *options, const struct block_option *option,
                     struct block_node **place, GPtrArray *claims, GError **error)
{
    g_autofree char *reference = block_options_take(options, option->name);
    AUTO(block_node) node = NULL;

    if (reference) {
        node = block_node_find_reference(reference, error);
    } else if (block_options_has(options, option->name)) {
        AUTO(block_options) nested = block_options_take_nested(options, option->name);

        if (!block_options_has(nested, "discard")) {
            block_options_set(nested, "discard", "unmap");
        }
        node = block_node_open(nested, true, error);
    } else if (!option->required) {
        return 0;
    } else {
        return block_error(error, EINVAL, "Parameter '%s' is missing", option->name);
    }
    if (!node) {
        return -EINVAL;
    }
    if (node->options.read_only) {
        return block_error(error, EACCES, "Block node '%s' is read-only", node->name);
    }
    struct creation_claim *creation = g_new0(struct creation_claim, 1);
    struct block_claim *claim = &creation->claim;
    creation->is_ours = !reference;
    claim->owner = g_strdup("the creation of an image");
    claim->perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
    claim->shared = 0;
    int status = block_claim_acquire(claim, node, error);
    if (status < 0) {
        g_free(claim->owner);
        g_free(creation);
        return status;
    }
    g_ptr_array_add(claims, creation);
    *place = node;
    return 0;
}

static int take_nodes(struct block_options *options, const struct block_option *table, void *values,
                      GPtrArray *claims, GError **error)
{
    for (const struct block_option *option = table; option && option->name; option++) {
        if (option->type == BLOCK_OPTION_NODE) {
            int status =
                take_node(options, option, (struct block_node **)((char *)values + option->offset),
                          claims, error);

            if (status < 0) {
                return status;
            }
        }
    }
    return 0;
}

int block_create(struct block_options *options, block_progress *progress, void *progress_data,
                 GError **error)
{
    g_autofree char *driver_name = block_options_take(options, "driver");
    const struct block_driver *driver = driver_name ? block_driver_find(driver_name) : NULL;
    int status;

    if (!driver_name) {
        return block_error(error, EINVAL, "Parameter 'driver' is missing");
    }
    if (!driver || !driver->create) {
        return block_error(error, ENOTSUP, "Driver '%s' cannot create images", driver_name);
    }
    g_autofree void *values = g_malloc0(driver->create_options_size);
    status = block_options_extract(options, driver->create_options, values, NULL, error);
    if (status < 0) {
        return status;
    }
    g_autoptr(GPtrArray) claims = g_ptr_array_new_with_free_func(release_claim);
    status = take_nodes(options, driver->create_options, values, claims, error);
    if (status == 0) {
        status = block_options_expect_empty(options, NULL, error);
    }
    if (status == 0) {
        status = driver->create(values, progress, progress_data, error);
    }
    if (status == 0 && driver->create_contents) {
        status = let_others_in(claims, error);
        if (status == 0) {
            status = driver->create_contents(values, progress, progress_data, error);
        }
    }
    block_options_clear_target(driver->create_options, values);
    return status;
}
