/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/exports.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/device.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/event.h"
#include "block/graph.h"
#include "block/main-loop.h"
#include "block/options.h"
#include "block/queue.h"
#include "server/lookup.h"
#include "server/nbd/connection.h"
#include "server/nbd/protocol.h"
#include "server/sessions.h"

enum context_kind { CONTEXT_ALLOCATION, CONTEXT_DEPTH, CONTEXT_BITMAP, CONTEXT_CHANGES };

/* Where a bitmap is, from what the export shows: somewhere else, below, or on that or its filters,
 * so that it records what is written by the export. */
enum bitmap_place { BITMAP_ELSEWHERE, BITMAP_BELOW, BITMAP_ON_TOP };

struct context {
    enum context_kind kind;
    char *name;
    /* Of a bitmap, which is busy meanwhile: and the node that it is on, a reference. */
    struct dirty_bitmap *bitmap;
    struct block_node *node;
    enum bitmap_place place; /* where it was when it was added */
};

struct nbd_export {
    char *id, *name, *description;
    char *view; /* that it shows; NULL: it shows none */
    bool writethrough;
    struct authorization *authorization;
    struct export_handle *handle;  /* from which the clients' are opened */
    struct export_handle *changes; /* that answers for CONTEXT_CHANGES; or NULL */
    GArray *contexts;              /* of struct context; constant once it is in the list */

    uint64_t serial; /* likewise */

    /* Under exports_lock. */
    unsigned references;
    bool is_shutting_down; /* it is in the list until it is gone, so that its ID is taken */
    GPtrArray *clients;    /* of struct nbd_connection, borrowed */
    TAILQ_ENTRY(nbd_export) entry;
};

/* Guards what is said above; nothing blocks under it. `changed` is told when one is gone. */
static pthread_mutex_t exports_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t exports_changed = PTHREAD_COND_INITIALIZER;
static TAILQ_HEAD(nbd_export_list, nbd_export) exports = TAILQ_HEAD_INITIALIZER(exports);
static uint64_t last_serial;

/* ---- Contexts -------------------------------------------------------------------------------- */

static struct context *add_context(struct nbd_export *export, enum context_kind kind, char *name)
{
    struct context context = {.kind = kind, .name = name};

    g_array_append_val(export->contexts, context);
    return &g_array_index(export->contexts, struct context, export->contexts->len - 1);
}

static const struct context *context_of(const struct nbd_export *export, size_t index)
{
    return &g_array_index(export->contexts, struct context, index);
}

static struct block_node *next_below(const struct block_node *node)
{
    return node->driver->is_filter ? node->file : node->backing;
}

/* A new reference to the node on which a bitmap is found, there or below. Main thread. */
static struct block_node *find_bitmap_node(struct block_node *top, const char *name)
{
    struct block_node *node = top;

    while (node && !block_node_find_bitmap(node, name)) {
        node = next_below(node);
    }
    return node ? block_node_ref(node) : NULL;
}

/* Main thread. */
static enum bitmap_place find_place(const struct block_node *top, const struct block_node *wanted)
{
    enum bitmap_place place = BITMAP_ON_TOP;

    for (const struct block_node *node = top; node; node = next_below(node)) {
        if (node == wanted) {
            return place;
        }
        if (!node->driver->is_filter) {
            place = BITMAP_BELOW;
        }
    }
    return BITMAP_ELSEWHERE;
}

static int check_bitmap(const struct nbd_export_options *options,
                        const struct nbd_export_bitmap *wanted, const struct block_node *node,
                        struct dirty_bitmap *bitmap, GError **error)
{
    unsigned refused = DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT;
    int status = dirty_bitmap_check_state(bitmap, refused, error);

    if (status == 0 && !wanted->node && !options->writable && !block_node_is_read_only(node) &&
        dirty_bitmap_enabled(bitmap)) {
        /* Clients would not know when it was true. */
        return block_error(error, EINVAL, "Enabled bitmap '%s' incompatible with readonly export",
                           wanted->name);
    }
    return status;
}

struct bitmap_search {
    struct nbd_export *export;
    const struct nbd_export_options *options;
    int status;
    GError **error;
};

static int add_bitmap(const struct bitmap_search *search, const struct nbd_export_bitmap *wanted)
{
    AUTO(block_node) root = export_root(search->export->handle);
    AUTO(block_node) top = wanted->node ? lookup_device_or_node(wanted->node, NULL)
                           : root       ? block_node_ref(root)
                                        : NULL;
    AUTO(block_node) node =
        top ? wanted->node ? block_node_ref(top) : find_bitmap_node(top, wanted->name) : NULL;
    struct dirty_bitmap *bitmap = node ? block_node_find_bitmap(node, wanted->name) : NULL;

    if (!top && wanted->node) {
        return block_error(search->error, ENOENT, "Node '%s' not found", wanted->node);
    }
    if (!bitmap && wanted->node) {
        return block_error(search->error, ENOENT, "Dirty bitmap '%s' not found", wanted->name);
    }
    if (!bitmap) {
        return block_error(search->error, ENOENT, "Bitmap '%s' is not found", wanted->name);
    }
    if (check_bitmap(search->options, wanted, node, bitmap, search->error) < 0) {
        return -EINVAL;
    }
    struct context *context = add_context(
        search->export, CONTEXT_BITMAP, g_strconcat(NBD_CONTEXT_DIRTY_BITMAP, wanted->name, NULL));
    dirty_bitmap_hold(bitmap);
    context->bitmap = bitmap;
    context->place = find_place(root, node);
    context->node = STEAL(node);
    return 0;
}

static void add_bitmaps(void *data)
{
    struct bitmap_search *search = data;

    for (size_t i = 0; i < search->options->bitmap_count && search->status == 0; i++) {
        search->status = add_bitmap(search, &search->options->bitmaps[i]);
    }
}

static int open_changes(struct nbd_export *export, const struct nbd_export_options *options,
                        GError **error)
{
    g_autofree char *name = g_strconcat(options->target, SESSION_CHANGES_SUFFIX, NULL);
    g_autoptr(GError) problem = NULL;

    export->changes = export_open(name, true, &problem);
    if (export->changes) {
        export_offer(export->changes);
    } else {
        return block_error(error, EINVAL,
                           "'%s' is no export DEVICE@SESSION of a backup session: 'changes' has no "
                           "meaning for it",
                           options->target);
    }
    add_context(export, CONTEXT_CHANGES,
                g_strconcat(NBD_CONTEXT_DIRTY_BITMAP, options->changes, NULL));
    return 0;
}

/* Clients could not tell them apart. */
static int check_context_names(const struct nbd_export *export, GError **error)
{
    for (size_t i = 0; i < export->contexts->len; i++) {
        const char *name = context_of(export, i)->name;

        if (strlen(name) > NBD_STRING_MAX || !g_utf8_validate(name, -1, NULL)) {
            return block_error(error, EINVAL, "'%s' cannot be the name of a metadata context",
                               name);
        }
        for (size_t j = 0; j < i; j++) {
            if (!strcmp(name, context_of(export, j)->name)) {
                return block_error(error, EINVAL, "Two metadata contexts are named '%s'", name);
            }
        }
    }
    return 0;
}

static int add_contexts(struct nbd_export *export, const struct nbd_export_options *options,
                        GError **error)
{
    struct bitmap_search search = {.export = export, .options = options, .error = error};

    add_context(export, CONTEXT_ALLOCATION, g_strdup(NBD_CONTEXT_ALLOCATION));
    if (options->allocation_depth) {
        add_context(export, CONTEXT_DEPTH, g_strdup(NBD_CONTEXT_ALLOCATION_DEPTH));
    }
    if (options->bitmap_count) {
        main_loop_call_wait(add_bitmaps, &search);
    }
    if (search.status == 0 && options->changes) {
        search.status = open_changes(export, options, error);
    }
    return search.status < 0 ? search.status : check_context_names(export, error);
}

static void let_bitmaps_go(void *data)
{
    struct nbd_export *export = data;

    for (size_t i = 0; i < export->contexts->len; i++) {
        if (context_of(export, i)->bitmap) {
            dirty_bitmap_let_go(context_of(export, i)->bitmap);
        }
    }
}

static void release_contexts(struct nbd_export *export)
{
    main_loop_call_wait(let_bitmaps_go, export);
    for (size_t i = 0; i < export->contexts->len; i++) {
        block_node_unref(context_of(export, i)->node);
        g_free(context_of(export, i)->name);
    }
    g_array_unref(export->contexts);
}

size_t nbd_export_context_count(const struct nbd_export *export)
{
    return export->contexts->len;
}

const char *nbd_export_context_name(const struct nbd_export *export, size_t index)
{
    return context_of(export, index)->name;
}

struct place_search {
    const struct block_node *root, *node;
    enum bitmap_place place;
};

static void search_place(void *data)
{
    struct place_search *search = data;

    search->place = find_place(search->root, search->node);
}

int nbd_export_context_check(struct nbd_export *export, size_t index, struct export_handle *handle)
{
    const struct context *context = context_of(export, index);

    if (context->kind != CONTEXT_BITMAP || context->place == BITMAP_ELSEWHERE) {
        return 0;
    }
    AUTO(block_node) root = export_root(handle);
    if (root == context->node) {
        return 0;
    }
    struct place_search search = {.root = root, .node = context->node};
    main_loop_call_wait(search_place, &search);
    return search.place < context->place ? -EIO : 0;
}

static void bitmap_at(struct dirty_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                      uint64_t *range_bytes, uint32_t *flags)
{
    uint64_t length = dirty_bitmap_length(bitmap);

    if (offset >= length) {
        *range_bytes = bytes; /* it knows nothing of this */
        *flags = NBD_STATE_DIRTY;
        return;
    }
    uint64_t end = MIN(offset + bytes, length);
    uint64_t dirty = dirty_bitmap_next_dirty(bitmap, offset, end);
    bool is_dirty = dirty == offset;
    uint64_t next = is_dirty ? dirty_bitmap_next_clean(bitmap, offset, end) : dirty;

    *range_bytes = MIN(next, end) - offset;
    *flags = is_dirty ? NBD_STATE_DIRTY : 0;
}

/* A hole takes no space: a zero that was written explicitly does not either. */
static uint32_t allocation_flags(const struct block_extent *extent)
{
    if (!(extent->flags & BLOCK_STATUS_ZERO)) {
        return 0;
    }
    return extent->flags & BLOCK_STATUS_DATA ? NBD_STATE_ZERO : NBD_STATE_ZERO | NBD_STATE_HOLE;
}

static int extent_at(enum context_kind kind, struct export_handle *handle, uint64_t offset,
                     uint64_t bytes, uint64_t *range_bytes, uint32_t *flags)
{
    struct block_extent extent;
    int status = export_block_status(handle, offset, bytes, &extent);

    if (status == 0) {
        *range_bytes = extent.bytes;
        *flags = kind == CONTEXT_ALLOCATION               ? allocation_flags(&extent)
                 : extent.flags & EXPORT_STATUS_UNCHANGED ? 0
                                                          : NBD_STATE_DIRTY;
    }
    return status;
}

int nbd_export_context_at(struct nbd_export *export, size_t index, struct export_handle *handle,
                          uint64_t offset, uint64_t bytes, uint64_t *range_bytes, uint32_t *flags)
{
    const struct context *context = context_of(export, index);

    switch (context->kind) {
    case CONTEXT_ALLOCATION:
        return extent_at(CONTEXT_ALLOCATION, handle, offset, bytes, range_bytes, flags);
    case CONTEXT_CHANGES:
        return extent_at(CONTEXT_CHANGES, export->changes, offset, bytes, range_bytes, flags);
    case CONTEXT_DEPTH:
        return export_allocation_depth(handle, offset, bytes, range_bytes, flags);
    case CONTEXT_BITMAP:
        bitmap_at(context->bitmap, offset, bytes, range_bytes, flags);
        return 0;
    }
    return -EINVAL;
}

/* ---- Adding ---------------------------------------------------------------------------------- */

/* As it is served writable, a device that stands on the node takes part in that. */
static struct export_handle *open_node(struct block_node *node, bool writable, GError **error)
{
    AUTO(block_device) device = writable ? block_device_find_by_root(node) : NULL;

    if (writable && block_node_is_read_only(node)) {
        block_error(error, EACCES, "Cannot export read-only node as writable");
        return NULL;
    }
    return device ? export_open(block_device_name(device), false, error)
                  : export_open_node(node, !writable, error);
}

/* A device or a view by its name, or else a node. */
static struct export_handle *open_target(const struct nbd_export_options *options, GError **error)
{
    g_autoptr(GError) problem = NULL;
    struct export_handle *handle =
        *options->target ? export_open(options->target, !options->writable, &problem) : NULL;

    if (!handle) {
        AUTO(block_node) node = lookup_device_or_node(options->target, NULL);

        if (!node) {
            block_error(error, ENOENT, "Cannot find device='' nor node-name='%s'", options->target);
        }
        return node ? open_node(node, options->writable, error) : NULL;
    }
    if (options->writable && export_is_read_only(handle)) {
        block_error(error, EACCES, "Cannot export read-only node as writable");
        export_close(handle);
        return NULL;
    }
    export_offer(handle);
    return handle;
}

static int check_strings(const struct nbd_export_options *options, GError **error)
{
    const char *name = options->name ? options->name : options->target;

    if (!block_identifier_is_valid(options->id)) {
        return block_error(error, EINVAL, "Invalid block export id");
    }
    if (strlen(name) > NBD_STRING_MAX) {
        return block_error(error, EINVAL, "export name '%s' too long", name);
    }
    if (options->description && strlen(options->description) > NBD_STRING_MAX) {
        return block_error(error, EINVAL, "description '%s' too long", options->description);
    }
    return 0;
}

static int check_unique_locked(const char *id, const char *name, GError **error)
{
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        if (!strcmp(export->id, id)) {
            return block_error(error, EEXIST, "Block export id '%s' is already in use", id);
        }
    }
    TAILQ_FOREACH (export, &exports, entry) {
        if (!export->is_shutting_down && !strcmp(export->name, name)) {
            return block_error(error, EEXIST, "NBD server already has export named '%s'", name);
        }
    }
    return 0;
}

static int insert(struct nbd_export *export, GError **error)
{
    SCOPE_LOCK(&exports_lock);
    int status = check_unique_locked(export->id, export->name, error);

    if (status == 0) {
        export->serial = ++last_serial;
        TAILQ_INSERT_HEAD(&exports, export, entry);
    }
    return status;
}

/* What it uses is free for others then. Blocks. */
static void release(struct nbd_export *export)
{
    release_contexts(export);
    if (export->changes) {
        export_close(export->changes);
    }
    if (export->handle) {
        export_close(export->handle);
    }
    authorization_unref(export->authorization);
}

static void free_export(struct nbd_export *export)
{
    g_ptr_array_unref(export->clients);
    g_free(export->view);
    g_free(export->description);
    g_free(export->name);
    g_free(export->id);
    g_free(export);
}

/* Of DEVICE@VIEW, which no device and no node is called; or NULL. The caller frees. */
static char *view_of(const char *target)
{
    const char *at = strchr(target, '@');
    const char *end = at ? strstr(at, SESSION_CHANGES_SUFFIX) : NULL;

    return !at ? NULL : end ? g_strndup(at + 1, (gsize)(end - at - 1)) : g_strdup(at + 1);
}

static struct nbd_export *new_export(const struct nbd_export_options *options)
{
    struct nbd_export *export = g_new0(struct nbd_export, 1);

    export->id = g_strdup(options->id);
    export->name = g_strdup(options->name ? options->name : options->target);
    export->description = g_strdup(options->description);
    export->view = view_of(options->target);
    export->writethrough = options->writethrough;
    export->authorization =
        options->authorization ? authorization_ref(options->authorization) : NULL;
    export->contexts = g_array_new(FALSE, FALSE, sizeof(struct context));
    export->clients = g_ptr_array_new();
    export->references = 1;
    return export;
}

/* The list is asked twice, so that nothing is opened, or held up, for what is refused anyhow. */
static int check(const struct nbd_export_options *options, GError **error)
{
    int status = check_strings(options, error);
    SCOPE_LOCK(&exports_lock);

    return status < 0 ? status
                      : check_unique_locked(options->id,
                                            options->name ? options->name : options->target, error);
}

int nbd_export_add(const struct nbd_export_options *options, GError **error)
{
    int status = check(options, error);

    if (status < 0) {
        return status;
    }
    struct nbd_export *export = new_export(options);
    export->handle = open_target(options, error);
    if (!export->handle || add_contexts(export, options, error) < 0 || insert(export, error) < 0) {
        release(export);
        free_export(export);
        return -EINVAL;
    }
    return 0;
}

/* ---- Removing -------------------------------------------------------------------------------- */

struct nbd_export *nbd_export_ref(struct nbd_export *export)
{
    SCOPE_LOCK(&exports_lock);

    export->references++;
    return export;
}

/* The last reference is gone: its ID is taken until what it used is free. */
static void end(struct nbd_export *export)
{
    g_autofree char *id = g_strdup(export->id);

    release(export);
    pthread_mutex_lock(&exports_lock);
    TAILQ_REMOVE(&exports, export, entry);
    free_export(export);
    event_emit("BLOCK_EXPORT_DELETED", EVENT_STRING("id", id));
    pthread_cond_broadcast(&exports_changed);
    pthread_mutex_unlock(&exports_lock);
}

void nbd_export_unref(struct nbd_export *export)
{
    if (!export) {
        return;
    }
    pthread_mutex_lock(&exports_lock);
    bool is_last = --export->references == 0;
    pthread_mutex_unlock(&exports_lock);
    if (is_last) {
        end(export);
    }
}

/* The caller has the list's reference then. exports_lock held. */
static void shut_down_locked(struct nbd_export *export)
{
    export->is_shutting_down = true;
    for (guint i = 0; i < export->clients->len; i++) {
        nbd_connection_shut_down(g_ptr_array_index(export->clients, i));
    }
}

static struct nbd_export *find_by_id_locked(const char *id)
{
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        if (!strcmp(export->id, id)) {
            return export;
        }
    }
    return NULL;
}

static struct nbd_export *take_from_clients(const char *id, bool hard, GError **error)
{
    SCOPE_LOCK(&exports_lock);
    struct nbd_export *export = find_by_id_locked(id);

    if (!export) {
        block_error(error, ENOENT, "Export '%s' is not found", id);
        return NULL;
    }
    if (export->is_shutting_down) {
        block_error(error, EBUSY, "Export '%s' is already shutting down", id);
        return NULL;
    }
    if (!hard && export->clients->len) {
        block_error(error, EBUSY, "export '%s' still in use", id);
        return NULL;
    }
    shut_down_locked(export);
    return export;
}

int nbd_export_remove(const char *id, bool hard, GError **error)
{
    struct nbd_export *export = take_from_clients(id, hard, error);

    if (!export) {
        return -EINVAL;
    }
    nbd_export_unref(export);
    return 0;
}

static uint64_t newest(void)
{
    SCOPE_LOCK(&exports_lock);

    return last_serial;
}

/* One that is not newer than this, and, unless that is NULL, of this view. */
static struct nbd_export *take_any(uint64_t last, const char *view)
{
    SCOPE_LOCK(&exports_lock);
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        if (!export->is_shutting_down && export->serial <= last &&
            (!view || !g_strcmp0(export->view, view))) {
            shut_down_locked(export);
            return export;
        }
    }
    return NULL;
}

/* Newer ones are at the head. */
static bool any_is_left_locked(uint64_t last)
{
    const struct nbd_export *oldest = TAILQ_LAST(&exports, nbd_export_list);

    return oldest && oldest->serial <= last;
}

void nbd_export_remove_of_view(const char *view)
{
    struct nbd_export *export;

    while ((export = take_any(UINT64_MAX, view))) {
        nbd_export_unref(export);
    }
}

void nbd_export_remove_all(void)
{
    uint64_t last = newest();
    struct nbd_export *export;

    while ((export = take_any(last, NULL))) {
        nbd_export_unref(export);
    }
    SCOPE_LOCK(&exports_lock);
    while (any_is_left_locked(last)) {
        pthread_cond_wait(&exports_changed, &exports_lock);
    }
}

/* ---- Looking --------------------------------------------------------------------------------- */

static void free_info(void *data)
{
    struct nbd_export_info *info = data;

    g_free(info->id);
    g_free(info->name);
    g_free(info->node_name);
}

/* References to all, the newest first, but to those that are ending; these are told apart. */
static GPtrArray *list_locked(GArray *infos)
{
    GPtrArray *list = g_ptr_array_new();
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        struct nbd_export_info info = {
            .id = g_strdup(export->id),
            .name = g_strdup(export->name),
            .is_shutting_down = export->is_shutting_down,
        };

        g_array_append_val(infos, info);
        g_ptr_array_add(list, export->references ? export : NULL);
        export->references += export->references ? 1 : 0;
    }
    return list;
}

GArray *nbd_export_query(void)
{
    GArray *infos = g_array_new(FALSE, FALSE, sizeof(struct nbd_export_info));

    g_array_set_clear_func(infos, free_info);
    pthread_mutex_lock(&exports_lock);
    g_autoptr(GPtrArray) list = list_locked(infos);
    pthread_mutex_unlock(&exports_lock);
    for (guint i = 0; i < infos->len; i++) {
        struct nbd_export *export = g_ptr_array_index(list, i);
        AUTO(block_node) root = export ? export_root(export->handle) : NULL;

        g_array_index(infos, struct nbd_export_info, i).node_name =
            root ? g_strdup(root->name) : NULL;
        nbd_export_unref(export);
    }
    return infos;
}

static bool may_use(const struct nbd_export *export, const char *peer)
{
    return !export->is_shutting_down &&
           (!export->authorization || authorization_allows(export->authorization, peer));
}

GPtrArray *nbd_export_list(const char *peer)
{
    GPtrArray *list = g_ptr_array_new_with_free_func((GDestroyNotify)nbd_export_unref);
    SCOPE_LOCK(&exports_lock);
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        if (may_use(export, peer)) {
            export->references++;
            g_ptr_array_add(list, export);
        }
    }
    return list;
}

struct nbd_export *nbd_export_find(const char *name, const char *peer)
{
    SCOPE_LOCK(&exports_lock);
    struct nbd_export *export;

    TAILQ_FOREACH (export, &exports, entry) {
        if (!strcmp(export->name, name) && may_use(export, peer)) {
            export->references++;
            return export;
        }
    }
    return NULL;
}

uint64_t nbd_export_serial(const struct nbd_export *export)
{
    return export->serial;
}

const char *nbd_export_name(const struct nbd_export *export)
{
    return export->name;
}

const char *nbd_export_description(const struct nbd_export *export)
{
    return export->description;
}

bool nbd_export_is_writethrough(const struct nbd_export *export)
{
    return export->writethrough;
}

struct export_handle *nbd_export_open(struct nbd_export *export, GError **error)
{
    return export_open_again(export->handle, error);
}

bool nbd_export_enter(struct nbd_export *export, struct nbd_connection *connection)
{
    SCOPE_LOCK(&exports_lock);

    if (!export->is_shutting_down) {
        g_ptr_array_add(export->clients, connection);
    }
    return !export->is_shutting_down;
}

void nbd_export_leave(struct nbd_export *export, struct nbd_connection *connection)
{
    SCOPE_LOCK(&exports_lock);

    g_ptr_array_remove(export->clients, connection);
}
