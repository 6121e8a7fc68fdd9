/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/target-node.h"

#include <string.h>

#include "cli/output.h"

#define NODE_PREFIX       "to-"
#define COMPARED_PREFIX   "against-"
#define LONGEST_NODE_NAME 31

static char *node_name_of(const char *prefix, const char *job_id)
{
    if (strlen(prefix) + strlen(job_id) <= LONGEST_NODE_NAME) {
        return g_strconcat(prefix, job_id, NULL);
    }
    g_autofree char *digest = g_compute_checksum_for_string(G_CHECKSUM_SHA256, job_id, -1);
    return g_strdup_printf("%s%.*s", prefix, LONGEST_NODE_NAME - (int)strlen(prefix), digest);
}

char *target_node_name(const char *job_id)
{
    return node_name_of(NODE_PREFIX, job_id);
}

char *compared_node_name(const char *job_id)
{
    return node_name_of(COMPARED_PREFIX, job_id);
}

bool target_open_node(struct client *client, const char *what, json_t *options, GError **error)
{
    json_t *done = client_call(client, "blockdev-add", options, CLIENT_WORK_TIMEOUT_MS, error);

    if (!done) {
        g_prefix_error(error, "Could not open the target '%s': ", what);
    }
    json_decref(done);
    return done;
}

bool target_node_add(struct client *client, const struct target *target, const char *node_name,
                     GError **error)
{
    return target_open_node(client, target->name,
                            json_pack("{s:s, s:s, s:s, s:s}", "driver", "nbd", "node-name",
                                      node_name, "uri", target->name, "discard", "unmap"),
                            error);
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

/* driver: NULL: any. */
static bool has_node(struct client *client, const char *node_name, const char *driver)
{
    json_t *nodes = client_call_if_known(client, "query-named-block-nodes", NULL);
    bool found = false;
    json_t *node;
    size_t i;

    json_array_foreach (nodes, i, node) {
        found |= !strcmp(member_text(node, "node-name", ""), node_name) &&
                 (!driver || !strcmp(member_text(node, "drv", ""), driver));
    }
    json_decref(nodes);
    return found;
}

static void remove_node(struct client *client, const char *node_name, const char *driver)
{
    g_autoptr(GError) error = NULL;

    if (!has_node(client, node_name, driver)) {
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
    g_autofree char *compared = compared_node_name(job_id);

    remove_node(client, compared, NULL);
    if (!g_strv_contains((const char *const *)now, node_name)) {
        remove_node(client, node_name, "nbd");
    }
    for (unsigned i = 0; before && before[i]; i++) {
        if (!g_strv_contains((const char *const *)now, before[i]) &&
            strcmp(before[i], node_name) != 0) {
            remove_node(client, before[i], "nbd");
        }
    }
}
