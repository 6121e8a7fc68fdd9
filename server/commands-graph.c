/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-graph.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/node.h"
#include "formats/quorum.h"
#include "server/lookup.h"
#include "server/objects.h"
#include "server/types.h"

/* ---- x-debug-query-block-graph -------------------------------------------------------------- */

enum graph_type { GRAPH_BACKEND, GRAPH_JOB, GRAPH_DRIVER };
static const char *const graph_type_names[] = {"block-backend", "block-job", "block-driver", NULL};
static const struct qmp_type graph_type_type = {
    .name = "XDbgBlockGraphNodeType",
    .kind = QMP_KIND_ENUM,
    .values = graph_type_names,
    .doc = "block-backend: a disk, an export, a view, a command that is running.",
};
static const struct qmp_member graph_node_members[] = {
    {"id", &qmp_type_uint64, .doc = "Number of the entry, in this answer only."},
    {"type", &graph_type_type, .doc = "What it is."},
    {"name", &qmp_type_string, .doc = "Its name."},
    {NULL},
};
static const struct qmp_type graph_node_type = {
    .name = "XDbgBlockGraphNode",
    .kind = QMP_KIND_OBJECT,
    .members = graph_node_members,
};
static const struct qmp_type graph_node_list_type = {
    .name = "XDbgBlockGraphNodeList",
    .kind = QMP_KIND_ARRAY,
    .element = &graph_node_type,
};

static const char *const permission_names[] = {"consistent-read", "write", "write-unchanged",
                                               "resize", NULL};
static const unsigned permission_bits[] = {BLOCK_PERM_READ, BLOCK_PERM_WRITE,
                                           BLOCK_PERM_WRITE_UNCHANGED, BLOCK_PERM_RESIZE};
static const struct qmp_type permission_type = {
    .name = "BlockPermission",
    .kind = QMP_KIND_ENUM,
    .values = permission_names,
};
static const struct qmp_type permission_list_type = {
    .name = "BlockPermissionList",
    .kind = QMP_KIND_ARRAY,
    .element = &permission_type,
};
static const struct qmp_member edge_members[] = {
    {"parent", &qmp_type_uint64, .doc = "Who uses"},
    {"child", &qmp_type_uint64, .doc = "which node."},
    {"name", &qmp_type_string, .doc = "As what: `file`, `backing`, ...; `root` if it is no node."},
    {"perm", &permission_list_type, .doc = "What it does there."},
    {"shared-perm", &permission_list_type, .doc = "What others may do meanwhile."},
    {NULL},
};
static const struct qmp_type edge_type = {
    .name = "XDbgBlockGraphEdge",
    .kind = QMP_KIND_OBJECT,
    .members = edge_members,
};
static const struct qmp_type edge_list_type = {
    .name = "XDbgBlockGraphEdgeList",
    .kind = QMP_KIND_ARRAY,
    .element = &edge_type,
};
static const struct qmp_member graph_members[] = {
    {"nodes", &graph_node_list_type, .doc = "Nodes, and who uses them."},
    {"edges", &edge_list_type, .doc = "Who uses which."},
    {NULL},
};
static const struct qmp_type graph_type = {
    .name = "XDbgBlockGraph",
    .kind = QMP_KIND_OBJECT,
    .members = graph_members,
};

struct graph_answer {
    json_t *nodes, *edges;
    GHashTable *ids; /* from "type name" */
};

static unsigned id_of(struct graph_answer *answer, enum graph_type type, const char *name)
{
    char *key = g_strdup_printf("%s %s", graph_type_names[type], name);
    unsigned id = GPOINTER_TO_UINT(g_hash_table_lookup(answer->ids, key));

    if (id) {
        g_free(key);
        return id;
    }
    id = g_hash_table_size(answer->ids) + 1;
    g_hash_table_insert(answer->ids, key, GUINT_TO_POINTER(id));
    json_array_append_new(answer->nodes, json_pack("{s:i, s:s, s:s}", "id", (int)id, "type",
                                                   graph_type_names[type], "name", name));
    return id;
}

/* An owner is a kind and a name in quotes, "block job 'b'"; or only words. */
static unsigned id_of_owner(struct graph_answer *answer, const char *owner)
{
    const char *open = strchr(owner, '\'');
    const char *close = open ? strrchr(owner, '\'') : NULL;
    enum graph_type type = g_str_has_prefix(owner, "block job ") ? GRAPH_JOB
                           : g_str_has_prefix(owner, "node ")    ? GRAPH_DRIVER
                                                                 : GRAPH_BACKEND;

    if (open == close) {
        return id_of(answer, GRAPH_BACKEND, owner);
    }
    g_autofree char *name = g_strndup(open + 1, (gsize)(close - open - 1));
    return id_of(answer, type, name);
}

static json_t *permissions(unsigned bits)
{
    json_t *list = json_array();

    for (size_t i = 0; i < G_N_ELEMENTS(permission_bits); i++) {
        if (bits & permission_bits[i]) {
            json_array_append_new(list, json_string(permission_names[i]));
        }
    }
    return list;
}

static void add_edge(struct graph_answer *answer, unsigned parent, const char *name,
                     const struct block_claim *claim)
{
    unsigned child = id_of(answer, GRAPH_DRIVER, claim->node->name);

    json_array_append_new(answer->edges,
                          json_pack("{s:i, s:i, s:s, s:o, s:o}", "parent", (int)parent, "child",
                                    (int)child, "name", name, "perm", permissions(claim->perms),
                                    "shared-perm", permissions(claim->shared)));
}

/* The node with its children, and its users that are no nodes. Graph lock held. */
static void add_node(struct graph_answer *answer, struct block_node *node)
{
    unsigned id = id_of(answer, GRAPH_DRIVER, node->name);
    const struct block_child *child;
    const struct block_claim *claim;

    TAILQ_FOREACH (child, &node->children, entry) {
        add_edge(answer, id, child->name, &child->claim);
    }
    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (!claim->parent) {
            add_edge(answer, id_of_owner(answer, claim->owner), "root", claim);
        }
    }
}

static json_t *query_graph(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GHashTable) ids = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    struct graph_answer answer = {.nodes = json_array(), .edges = json_array(), .ids = ids};
    struct block_node **nodes = block_node_list();

    pthread_mutex_lock(&block_graph_lock);
    for (struct block_node **node = nodes; *node; node++) {
        add_node(&answer, *node);
    }
    pthread_mutex_unlock(&block_graph_lock);
    block_node_list_free(nodes);
    return json_pack("{s:o, s:o}", "nodes", answer.nodes, "edges", answer.edges);
}

/* ---- blockdev-set-active -------------------------------------------------------------------- */

static const struct qmp_member active_members[] = {
    {"node-name", &qmp_type_string, .optional = true, .doc = "The node; by default all."},
    {"active", &qmp_type_bool, .doc = "True: false is refused."},
    {NULL},
};
static const struct qmp_type active_type = {
    .name = "BlockdevSetActive",
    .kind = QMP_KIND_OBJECT,
    .members = active_members,
};

/* The argument `node-name`: a new reference, or NULL with QEMU's error. */
static struct block_node *find_node(json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "node-name"));
    struct block_node *node = block_node_find(name);

    if (!node) {
        block_error(error, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    return node;
}

static json_t *set_active(struct qmp_request *request, json_t *arguments, GError **error)
{
    bool is_named = json_object_get(arguments, "node-name");
    AUTO(block_node) node = is_named ? find_node(arguments, error) : NULL;

    if (is_named && !node) {
        return NULL;
    }
    if (!lookup_bool(arguments, "active", true)) {
        block_error(error, EPERM,
                    "Failed to inactivate node: Operation not permitted: all nodes are active as "
                    "long as they are open; close the node with blockdev-del to hand over its "
                    "image");
        return NULL;
    }
    return json_object();
}

/* ---- x-blockdev-set-iothread ---------------------------------------------------------------- */

static const struct qmp_member thread_or_null_members[] = {
    {"s", &qmp_type_string, .doc = "The ID of an object of type iothread."},
    {"n", &qmp_type_null, .doc = "None."},
    {NULL},
};
static const struct qmp_type thread_or_null_type = {
    .name = "StrOrNull",
    .kind = QMP_KIND_ALTERNATE,
    .members = thread_or_null_members,
};
static const struct qmp_member thread_members[] = {
    {"node-name", &qmp_type_string, .doc = "The node."},
    {"iothread", &thread_or_null_type, .doc = "Checked, and of no meaning here."},
    {"force", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Without meaning here: no node is bound to a thread."},
    {NULL},
};
static const struct qmp_type thread_type = {
    .name = "XBlockdevSetIothread",
    .kind = QMP_KIND_OBJECT,
    .members = thread_members,
};

static json_t *set_iothread(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *thread = json_string_value(json_object_get(arguments, "iothread"));
    AUTO(block_node) node = find_node(arguments, error);

    if (!node) {
        return NULL;
    }
    if (thread && object_check_iothread(thread, NULL) < 0) {
        block_error(error, ENOENT, "Cannot find iothread %s", thread);
        return NULL;
    }
    return json_object();
}

/* ---- x-blockdev-change ------------------------------------------------------------------------
 */

static const struct qmp_member change_members[] = {
    {"parent", &qmp_type_string, .doc = "The node whose children are meant, or a device."},
    {"child", &qmp_type_string, .optional = true,
     .doc = "The child to remove (`children.0`, say), or"},
    {"node", &qmp_type_string, .optional = true, .doc = "the node to add."},
    {NULL},
};
static const struct qmp_type change_type = {
    .name = "XBlockdevChange",
    .kind = QMP_KIND_OBJECT,
    .members = change_members,
};

/* A replica that comes, or (its name) one that goes. */
struct replica_change {
    struct block_node *parent;
    struct block_node *added; /* NULL: */
    const char *name;
    struct block_node *removed; /* a reference; NULL: it failed */
    int status;
    GError **error;
};

static void change_replica(void *data)
{
    struct replica_change *change = data;

    change->status = change->added
                         ? block_node_add_replica(change->parent, change->added, change->error)
                         : block_node_remove_replica(change->parent, change->name, &change->removed,
                                                     change->error);
}

/* A node that blockdev-add has not made is closed on return, unless somebody uses it. */
static void drop(struct block_node *node)
{
    pthread_mutex_lock(&block_graph_lock);
    bool stays = node->named;
    pthread_mutex_unlock(&block_graph_lock);

    if (stays) {
        block_node_unref(node);
    } else {
        block_node_dispose(node);
    }
}

/* With nothing in flight. */
static int run_replica_change(struct replica_change *change)
{
    struct block_node *nodes[] = {change->parent, change->added};
    struct block_drain *drain = block_drain_begin(nodes, change->added ? 2 : 1, BLOCK_PERM_ALL);

    pthread_mutex_lock(&change->parent->operation_lock);
    main_loop_call_wait(change_replica, change);
    pthread_mutex_unlock(&change->parent->operation_lock);
    block_drain_end(drain);
    if (change->removed) {
        drop(change->removed);
    }
    return change->status;
}

static int add_child(struct block_node *parent, const char *name, GError **error)
{
    AUTO(block_node) node = block_node_find(name);
    struct replica_change change = {.parent = parent, .added = node, .error = error};

    return node ? run_replica_change(&change)
                : block_error(error, ENOENT, "Node '%s' not found", name);
}

static int remove_child(struct block_node *parent, const char *name, GError **error)
{
    struct replica_change change = {.parent = parent, .name = name, .error = error};

    return run_replica_change(&change);
}

static json_t *change_children(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "parent"));
    const char *child = json_string_value(json_object_get(arguments, "child"));
    const char *node = json_string_value(json_object_get(arguments, "node"));
    AUTO(block_node) parent = lookup_device_or_node(name, error);

    if (!parent) {
        return NULL;
    }
    if (!child == !node) {
        block_error(error, EINVAL,
                    child ? "The parameters child and node are in conflict"
                          : "Either child or node must be specified");
        return NULL;
    }
    int status = child ? remove_child(parent, child, error) : add_child(parent, node, error);
    return status == 0 ? json_object() : NULL;
}

/* ---- Events of quorums ----------------------------------------------------------------------- */

static const struct qmp_type bad_type_type = {
    .name = "QuorumOpType",
    .kind = QMP_KIND_ENUM,
    .values = quorum_request_names,
};
static const struct qmp_member bad_members[] = {
    {"type", &bad_type_type, .doc = "What was asked of the child."},
    {"error", &qmp_type_string, .optional = true,
     .doc = "Why it failed; without, it has read something else than most."},
    {"node-name", &qmp_type_string, .doc = "The child."},
    {"sector-num", &qmp_type_int, .doc = "Where, in sectors of 512 bytes."},
    {"sectors-count", &qmp_type_int, .doc = "How many sectors, begun ones too."},
    {NULL},
};
static const struct qmp_type bad_type = {
    .name = "QuorumReportBad",
    .kind = QMP_KIND_OBJECT,
    .members = bad_members,
};
static const struct qmp_member failure_members[] = {
    {"reference", &qmp_type_string, .doc = "The node of the driver quorum."},
    {"sector-num", &qmp_type_int, .doc = "Where, in sectors of 512 bytes."},
    {"sectors-count", &qmp_type_int, .doc = "How many sectors, begun ones too."},
    {NULL},
};
static const struct qmp_type failure_type = {
    .name = "QuorumFailure",
    .kind = QMP_KIND_OBJECT,
    .members = failure_members,
};

const struct qmp_event_type graph_events[] = {
    {"QUORUM_FAILURE", &failure_type,
     "A request of a quorum node failed: fewer than vote-threshold of its children took what was "
     "written, or said the same."},
    {"QUORUM_REPORT_BAD", &bad_type,
     "A child of a quorum node failed, or read something else than most."},
    {NULL},
};

const struct qmp_command graph_commands[] = {
    {"x-debug-query-block-graph", NULL, &graph_type, query_graph, 0,
     "Nodes, who uses them, and how, at one moment. For people who look for what is in the way: "
     "entries, names and permissions are the server's own and may change."},
    {"blockdev-set-active", &active_type, NULL, set_active, QMP_COMMAND_QUICK,
     "Does nothing: a node is active as long as it is open. Images are handed over by closing "
     "them."},
    {"x-blockdev-set-iothread", &thread_type, NULL, set_iothread, QMP_COMMAND_QUICK,
     "Does nothing: requests run on the threads of who makes them."},
    {"x-blockdev-change", &change_type, NULL, change_children, 0,
     "Add a node as a child to a node of the driver quorum, or remove one, while guests use it. A "
     "new child must be as long as the others and belong to no other node; it gets what is written "
     "from then on, and what it holds is the caller's care: it is not copied. Not fewer children "
     "than vote-threshold stay. query-named-block-nodes names them."},
    {NULL},
};
