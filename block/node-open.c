/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening a tree of nodes: options, children, the driver, the limits. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/node-internal.h"
#include "block/stored-bitmaps.h"

struct common_values {
    bool read_only;
    bool auto_read_only;
    bool force_share;
    int discard;
    int detect_zeroes;
    bool cache_direct;
    bool cache_no_flush;
};

static const char *const discard_names[] = {"ignore", "unmap", NULL};
static const char *const detect_zeroes_names[] = {"off", "on", "unmap", NULL};

const struct block_option block_common_options[] = {
    {
        .name = "read-only",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct common_values, read_only),
        .default_text = "off",
        .help = "Refuse writes to this node.",
    },
    {
        .name = "auto-read-only",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct common_values, auto_read_only),
        .default_text = "off",
        .help = "Open read-only if the storage does not permit writing.",
    },
    {
        .name = "force-share",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct common_values, force_share),
        .default_text = "off",
        .help = "Do not lock the image against others; needs read-only.",
    },
    {
        .name = "discard",
        .type = BLOCK_OPTION_ENUM,
        .offset = offsetof(struct common_values, discard),
        .default_text = "ignore",
        .enum_values = discard_names,
        .help = "Pass discards on to the storage (unmap) or drop them (ignore).",
    },
    {
        .name = "detect-zeroes",
        .type = BLOCK_OPTION_ENUM,
        .offset = offsetof(struct common_values, detect_zeroes),
        .default_text = "off",
        .enum_values = detect_zeroes_names,
        .help = "Turn writes of zeroes into write-zeroes requests (on), which may "
                "deallocate (unmap).",
    },
    {
        .name = "cache.direct",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct common_values, cache_direct),
        .default_text = "off",
        .help = "Bypass the host's page cache (O_DIRECT).",
    },
    {
        .name = "cache.no-flush",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct common_values, cache_no_flush),
        .default_text = "off",
        .help = "Ignore flushes: fast, and unsafe when the host dies.",
    },
    {.name = NULL},
};

static enum block_role role_of(const char *child_name)
{
    static const struct {
        const char *name;
        enum block_role role;
    } roles[] = {
        {"backing", BLOCK_ROLE_BACKING},
        {"target", BLOCK_ROLE_TARGET},
        {"log", BLOCK_ROLE_TARGET},
        {"data-file", BLOCK_ROLE_DATA_FILE},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(roles); i++) {
        if (!strcmp(child_name, roles[i].name)) {
            return roles[i].role;
        }
    }
    return g_str_has_prefix(child_name, "children.") ? BLOCK_ROLE_REPLICA : BLOCK_ROLE_FILE;
}

void block_child_permissions(const struct block_node *parent, enum block_role role, bool read_only,
                             unsigned *perms, unsigned *shared)
{
    bool writes = !read_only && role != BLOCK_ROLE_BACKING;

    *perms = BLOCK_PERM_READ | (writes ? BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE : 0);
    *shared = BLOCK_PERM_READ | BLOCK_PERM_INVISIBLE;
    /*
     * A filter is as long as its file, so the length is changed through it or not at all. What
     * else it does follows from its users, of which a new node has none; see pass_claims_on.
     */
    if (parent->driver->is_filter && role == BLOCK_ROLE_FILE) {
        *perms = BLOCK_PERM_READ;
        *shared = parent->driver->is_length_free ? BLOCK_PERM_ALL
                                                 : BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_RESIZE;
    }
    if (parent->driver->child_permissions) {
        parent->driver->child_permissions(parent, role, perms, shared);
    }
}

/* Whether a node may be a child, which its parent writes to unless it is a backing file. */
static int check_writable(struct block_node *parent, enum block_role role,
                          const struct block_node *node, GError **error)
{
    if (!node->options.read_only || parent->options.read_only || role == BLOCK_ROLE_BACKING) {
        return 0;
    }
    if (!parent->options.auto_read_only) {
        return block_error(error, EACCES,
                           "Block node '%s' is read-only; open the node above it with "
                           "read-only=on",
                           node->name);
    }
    parent->options.read_only = true;
    return 0;
}

bool block_driver_grows(const struct block_driver *driver, enum block_role role)
{
    if (role == BLOCK_ROLE_TARGET) {
        return driver->grows_target;
    }
    return role != BLOCK_ROLE_BACKING && driver->grows_file;
}

int block_node_check_growable(const struct block_node *node, GError **error)
{
    const struct block_child *child;
    int status = 0;

    if (node->bitmaps) {
        return block_error(error, EBUSY,
                           "Node '%s' has dirty bitmaps, which would not grow with it: remove "
                           "them first",
                           node->name);
    }
    if (!node->driver->is_filter && !node->driver->grow) {
        return 0;
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == BLOCK_ROLE_FILE || child->role == BLOCK_ROLE_REPLICA) {
            status = block_node_check_growable(child->claim.node, error);
        }
        if (status < 0) {
            break;
        }
    }
    return status;
}

struct block_child *block_child_new(struct block_node *parent, const char *name)
{
    struct block_child *child = g_new0(struct block_child, 1);

    child->role = role_of(name);
    child->name = g_strdup(name);
    child->claim.owner = g_strdup_printf("node '%s'", parent->name ? parent->name : "(new)");
    child->claim.parent = parent;
    block_child_permissions(parent, child->role, parent->options.read_only, &child->claim.perms,
                            &child->claim.shared);
    return child;
}

void block_child_free(struct block_child *child)
{
    g_free(child->claim.owner);
    g_free(child->name);
    g_free(child);
}

/* A format lets what it keeps its data in grow. */
static int check_growth(const struct block_node *parent, enum block_role role,
                        const struct block_node *node, GError **error)
{
    if (!block_driver_grows(parent->driver, role) || parent->options.read_only) {
        return 0;
    }
    SCOPE_LOCK(&block_graph_lock);
    return block_node_check_growable(node, error);
}

static int attach_child(struct block_node *parent, const char *name, struct block_node *node,
                        GError **error)
{
    struct block_child *child;
    int status = check_growth(parent, role_of(name), node, error);

    if (status < 0) {
        return status;
    }
    child = block_child_new(parent, name);
    status = block_claim_acquire(&child->claim, node, error);
    if (status < 0) {
        block_child_free(child);
        return status;
    }
    SCOPE_LOCK(&block_graph_lock);
    TAILQ_INSERT_TAIL(&parent->children, child, entry);
    parent->height = MAX_OF(parent->height, node->height + 1);
    if (child->role == BLOCK_ROLE_FILE) {
        parent->file = node;
    } else if (child->role == BLOCK_ROLE_BACKING) {
        parent->backing = node;
    }
    return 0;
}

void block_node_inherit_options(const struct block_node_options *parent, const char *child,
                                struct block_options *nested)
{
    const struct {
        const char *key;
        bool value;
    } inherited[] = {
        {"read-only", parent->read_only || role_of(child) == BLOCK_ROLE_BACKING},
        {"auto-read-only", parent->auto_read_only},
        {"force-share", parent->force_share},
        {"cache.direct", parent->cache_direct},
        {"cache.no-flush", parent->cache_no_flush},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(inherited); i++) {
        if (!block_options_has(nested, inherited[i].key)) {
            block_options_set(nested, inherited[i].key, inherited[i].value ? "on" : "off");
        }
    }
    /* Whether discards are passed on is decided above; the child just does what it is told. */
    if (!block_options_has(nested, "discard")) {
        block_options_set(nested, "discard", "unmap");
    }
}

static int open_child(struct block_node *parent, const char *name, bool required,
                      struct block_options *options, GError **error)
{
    AUTO(block_node) node = NULL;
    g_autofree char *reference = block_options_take(options, name);
    enum block_role role = role_of(name);

    if (reference && !*reference && role == BLOCK_ROLE_BACKING) {
        parent->refuses_backing = true;
        return 0;
    }
    if (reference) {
        node = block_node_find_reference(reference, error);
    } else if (block_options_has(options, name)) {
        AUTO(block_options) nested = block_options_take_nested(options, name);

        block_node_inherit_options(&parent->options, name, nested);
        node = block_node_open(nested, true, error);
    } else if (required) {
        return block_error(error, EINVAL, "Parameter '%s' is missing", name);
    } else {
        return 0;
    }
    if (!node) {
        return -EINVAL;
    }
    int status = check_writable(parent, role, node, error);
    return status == 0 ? attach_child(parent, name, node, error) : status;
}

/* How many there are is the driver's to check. */
static int open_list(struct block_node *parent, const char *list, struct block_options *options,
                     GError **error)
{
    if (block_options_get(options, list)) {
        return block_error(error, EINVAL, "Invalid parameter type for '%s', expected: array", list);
    }
    for (unsigned i = 0;; i++) {
        g_autofree char *name = g_strdup_printf("%s.%u", list, i);
        int status =
            block_options_has(options, name) ? open_child(parent, name, true, options, error) : 1;

        if (status) {
            return MIN_OF(status, 0);
        }
    }
}

int block_node_open_implied_child(struct block_node *parent, const char *name,
                                  struct block_options *options, GError **error)
{
    block_node_inherit_options(&parent->options, name, options);
    AUTO(block_node) node = block_node_open(options, true, error);
    int status = node ? check_writable(parent, role_of(name), node, error) : -EINVAL;

    return status == 0 ? attach_child(parent, name, node, error) : status;
}

static int open_children(struct block_node *node, struct block_options *options, GError **error)
{
    int status = 0;

    for (const struct block_option *option = node->driver->options;
         status == 0 && option && option->name; option++) {
        if (option->type == BLOCK_OPTION_NODE) {
            status = open_child(node, option->name, option->required, options, error);
        } else if (option->type == BLOCK_OPTION_NODES) {
            status = open_list(node, option->name, options, error);
        }
    }
    return status;
}

int block_node_extract_common(struct block_options *options, struct block_node_options *target,
                              GError **error)
{
    struct common_values values = {0};
    int status = block_options_extract(options, block_common_options, &values, NULL, error);

    if (status < 0) {
        return status;
    }
    if (values.detect_zeroes == BLOCK_DETECT_ZEROES_UNMAP && !values.discard) {
        return block_error(error, EINVAL,
                           "setting detect-zeroes to unmap is not allowed without setting "
                           "discard operation to unmap");
    }
    if (values.force_share && !values.read_only) {
        return block_error(error, EINVAL, "force-share=on can only be used with read-only images");
    }
    *target = (struct block_node_options){
        .read_only = values.read_only,
        .auto_read_only = values.auto_read_only,
        .force_share = values.force_share,
        .discard_unmap = values.discard,
        .detect_zeroes = values.detect_zeroes,
        .cache_direct = values.cache_direct,
        .cache_no_flush = values.cache_no_flush,
    };
    return 0;
}

static uint64_t usable_maximum(uint64_t maximum, uint64_t unit)
{
    return MAX_OF(align_down(maximum ? MIN_OF(maximum, GIB) : GIB, unit), unit);
}

/* Sizes the rest of the core divides by and loops over must make sense whatever a driver says. */
static int check_limits(struct block_node *node, GError **error)
{
    struct block_limits *limits = &node->limits;

    if (!limits->request_alignment) {
        limits->request_alignment = 1;
    }
    if (!limits->memory_alignment) {
        limits->memory_alignment = 1;
    }
    g_assert(is_power_of_2(limits->request_alignment));
    g_assert(is_power_of_2(limits->memory_alignment));
    /* The pieces of a split transfer begin where memory is aligned, too. */
    limits->max_transfer = usable_maximum(
        limits->max_transfer, MAX_OF(limits->request_alignment, limits->memory_alignment));
    limits->max_write_zeroes = usable_maximum(limits->max_write_zeroes, limits->request_alignment);
    limits->max_discard = usable_maximum(limits->max_discard, limits->request_alignment);
    if (!is_aligned(block_node_length(node), limits->request_alignment)) {
        return block_error(error, EINVAL,
                           "The length of node '%s' (%" PRIu64 " bytes) is not a multiple of the "
                           "request size it needs (%u bytes); without cache.direct it may work",
                           node->name ? node->name : node->driver->name, block_node_length(node),
                           limits->request_alignment);
    }
    return 0;
}

/* given: the driver's values, if they need not be made from options. */
static int open_driver(struct block_node *node, struct block_options *options, void *given,
                       GError **error)
{
    const struct block_driver *driver = node->driver;
    g_autofree void *extracted = g_malloc0(driver->options_size ? driver->options_size : 1);
    int status = 0;

    if (driver->options) {
        node->given = block_options_copy(options);
        status = block_options_extract(options, driver->options, extracted, NULL, error);
        if (status < 0) {
            return status;
        }
    }
    status = block_options_expect_empty(options, NULL, error);
    if (status == 0 && driver->open) {
        status = driver->open(node, given ? given : extracted, error);
    }
    if (driver->options) {
        block_options_clear_target(driver->options, extracted);
    }
    if (status < 0) {
        return status;
    }
    status = block_node_refresh_length(node, error);
    if (status == 0) {
        status = check_limits(node, error);
    }
    if (status < 0 && driver->close) {
        driver->close(node);
    }
    return status;
}

int block_node_check_new_name(const char *name, GError **error)
{
    if (!block_identifier_is_valid(name)) {
        return block_error(error, EINVAL, "Invalid node-name: '%s'", name);
    }
    if (strlen(name) > BLOCK_NODE_NAME_MAX) {
        return block_error(error, EINVAL, "Node name too long");
    }
    SCOPE_LOCK(&block_graph_lock);
    return block_node_find_locked(name)
               ? block_error(error, EEXIST, "Duplicate nodes with node-name='%s'", name)
               : 0;
}

/* Take and check the name; NULL stays NULL when the name will be made up. */
static int take_name(struct block_node *node, struct block_options *options, bool allow_anonymous,
                     GError **error)
{
    node->name = block_options_take(options, "node-name");
    if (!node->name) {
        return allow_anonymous
                   ? 0
                   : block_error(error, EINVAL, "'node-name' must be specified for the root node");
    }
    /* Early, so that the cause is named before storage is touched; publish() checks again. */
    return block_node_check_new_name(node->name, error);
}

static struct block_node *open_tree(const struct block_driver *driver,
                                    struct block_options *options, void *given,
                                    bool allow_anonymous, GError **error)
{
    /* Its tracked slots have a cache line each. */
    struct block_node *node = g_aligned_alloc0(1, sizeof(*node), _Alignof(struct block_node));

    node->driver = driver;
    node->references = 1;
    node->height = 1;
    /* Drivers, too, keep what threads write at cache lines of their own. */
    node->state = g_aligned_alloc0(1, driver->instance_size ? driver->instance_size : 1, 64);
    TAILQ_INIT(&node->children);
    TAILQ_INIT(&node->claims);
    tracked_requests_init(&node->tracked);
    pthread_mutex_init(&node->operation_lock, NULL);
    if (take_name(node, options, allow_anonymous, error) < 0 ||
        block_node_extract_common(options, &node->options, error) < 0 ||
        open_children(node, options, error) < 0 || open_driver(node, options, given, error) < 0) {
        block_node_free(node);
        return NULL;
    }
    block_stored_bitmaps_load(node);
    if (block_node_publish(node, error) < 0) {
        block_node_unref(node);
        return NULL;
    }
    return node;
}

static struct block_node *open_named(struct block_options *options, bool allow_anonymous,
                                     GError **error)
{
    g_autofree char *driver_name = block_options_take(options, "driver");
    const struct block_driver *driver;

    if (!driver_name) {
        block_error(error, EINVAL, "Parameter 'driver' is missing");
        return NULL;
    }
    driver = block_driver_find(driver_name);
    if (!driver) {
        block_error(error, EINVAL, "Parameter 'driver' does not accept value '%s'", driver_name);
        return NULL;
    }
    return open_tree(driver, options, NULL, allow_anonymous, error);
}

/* Images name their backing files, and may do so in a circle. */
static _Thread_local unsigned opening;

struct block_node *block_node_open(struct block_options *options, bool allow_anonymous,
                                   GError **error)
{
    if (opening >= BLOCK_NODE_HEIGHT_MAX) {
        block_error(error, ELOOP,
                    "There are too many nodes under each other (%u); does a backing "
                    "file have itself as its backing file?",
                    opening);
        return NULL;
    }
    opening++;
    struct block_node *node = open_named(options, allow_anonymous, error);
    opening--;
    return node;
}

struct block_node *block_node_open_with(const struct block_driver *driver, void *values,
                                        struct block_options *options, GError **error)
{
    return open_tree(driver, options, values, true, error);
}
