/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/target-node.h"

#include <string.h>

#include "cli/output.h"

#define NODE_PREFIX       "to-"
#define LONGEST_NODE_NAME 31

char *target_node_name(const char *job_id)
{
    if (strlen(NODE_PREFIX) + strlen(job_id) <= LONGEST_NODE_NAME) {
        return g_strconcat(NODE_PREFIX, job_id, NULL);
    }
    g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, job_id, -1);
    return g_strdup_printf(NODE_PREFIX "%.*s", LONGEST_NODE_NAME - (int)strlen(NODE_PREFIX),
                           digest);
}

bool target_node_add(struct client *client, const struct target *target, const char *node_name,
                     GError **error)
{
    json_t *done = client_call(client, "blockdev-add",
                               json_pack("{s:s, s:s, s:s, s:s}", "driver", "nbd", "node-name",
                                         node_name, "uri", target->name, "discard", "unmap"),
                               CLIENT_WORK_TIMEOUT_MS, error);

    if (!done) {
        g_prefix_error(error, "Could not open the target '%s': ", target->name);
    }
    json_decref(done);
    return done;
}

char **target_nodes_of_devices(struct client *client)
{
    json_t *devices = client_call_if_known(client, "query-block", NULL);
    GPtrArray *found = g_ptr_array_new();
    json_t *device;
    size_t i;

    json_array_foreach (devices, i, device) {
        const json_t *inserted = json_object_get(device, "inserted");
        const char *name = member_text(inserted, "node-name", "");
        if (g_str_has_prefix(name, NODE_PREFIX) &&
            !strcmp(member_text(inserted, "drv", ""), "nbd")) {
            g_ptr_array_add(found, g_strdup(name));
        }
    }
    json_decref(devices);
    g_ptr_array_add(found, NULL);
    return (char **)g_ptr_array_free(found, FALSE);
}

static bool has_nbd_node(struct client *client, const char *node_name)
{
    json_t *nodes = client_call_if_known(client, "query-named-block-nodes", NULL);
    bool found = false;
    json_t *node;
    size_t i;

    json_array_foreach (nodes, i, node) {
        found |= !strcmp(member_text(node, "node-name", ""), node_name) &&
                 !strcmp(member_text(node, "drv", ""), "nbd");
    }
    json_decref(nodes);
    return found;
}

static void remove_node(struct client *client, const char *node_name)
{
    g_autoptr(GError) error = NULL;

    if (!has_nbd_node(client, node_name)) {
        return;
    }
    json_t *done = client_call(client, "blockdev-del", json_pack("{s:s}", "node-name", node_name),
                               CLIENT_WORK_TIMEOUT_MS, &error);
    if (!done) {
        complain("The node '%s' could not be removed: %s", node_name, error->message);
    }
    json_decref(done);
}

void target_nodes_clean(struct client *client, const char *job_id, char *const *before)
{
    g_auto(GStrv) now = target_nodes_of_devices(client);
    g_autofree char *node_name = target_node_name(job_id);

    if (!g_strv_contains((const char *const *)now, node_name)) {
        remove_node(client, node_name);
    }
    for (unsigned i = 0; before && before[i]; i++) {
        if (!g_strv_contains((const char *const *)now, before[i]) &&
            strcmp(before[i], node_name) != 0) {
            remove_node(client, before[i]);
        }
    }
}
