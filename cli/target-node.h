/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The nodes that this program makes of NBD targets. Their names follow from the jobs' IDs, so that
 * 'job wait' and 'job dismiss', perhaps run by somebody else, can remove them.
 */
#ifndef LIVEBLK_CLI_TARGET_NODE_H
#define LIVEBLK_CLI_TARGET_NODE_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "cli/client.h"
#include "cli/target.h"

/* The name of the node that a job's NBD target has. The caller frees. */
char *target_node_name(const char *job_id);

/* Add the node of an NBD target. */
bool target_node_add(struct client *client, const struct target *target, const char *node_name,
                     GError **error);

/*
 * The name of the node that a job compares with, if this program made it; the caller frees. And
 * add a node: options are taken over, what is the target's name.
 */
char *compared_node_name(const char *job_id);
bool target_open_node(struct client *client, const char *what, json_t *options, GError **error);

/* Such nodes that devices are on, as after a mirror. Free with g_strfreev. */
char **target_nodes_of_devices(struct client *client);

/*
 * When a job has ended: remove the node that it compared with, and that of its NBD target, if it
 * had one, unless a device is on it now; and those nodes of before (target_nodes_of_devices, when
 * the job was not at its end yet; or NULL) that devices have moved away from. Complains if it
 * cannot.
 */
void target_nodes_clean(struct client *client, const char *job_id, char *const *before);

#endif
