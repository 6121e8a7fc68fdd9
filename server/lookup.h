/* SPDX-License-Identifier: BSD-3-Clause */
/* Finding what a command's arguments name. */
#ifndef LIVEBLK_SERVER_LOOKUP_H
#define LIVEBLK_SERVER_LOOKUP_H

#include <glib.h>
#include <jansson.h>

#include "block/device.h"
#include "block/node.h"

/*
 * A device by its name, or the path that query-block shows for it. A new reference, or NULL with
 * DeviceNotFound "Device '%s' not found".
 */
struct block_device *lookup_device(const char *id, GError **error);

/*
 * The node a `device` argument means: a device's root, else a node of that name; what is below it
 * where a job has put a filter for a while. A new reference, or NULL with "Cannot find device='%s'
 * nor node-name='%s'".
 */
struct block_node *lookup_device_or_node(const char *name, GError **error);

/* The same for what would only be a device's name: an error says that no node was looked for. */
struct block_node *lookup_disk_or_node(const char *name, GError **error);

/*
 * In a transaction's apply: whether the name still means this node, or the device has moved to
 * another since it was looked up, which nobody has drained. "'%s' has just got another node; try
 * again". Any thread.
 */
int lookup_check_same(const char *name, const struct block_node *node, GError **error);

/* The index of a checked enum value in a list of names. */
int lookup_enum(json_t *value, const char *const *names);

/* A new job's ID: the argument `job-id`, else what `device` names. Borrowed. */
const char *lookup_job_id(json_t *arguments);

/* JOB_MANUAL_* by the checked arguments `auto-finalize` and `auto-dismiss`, which may be missing.
 */
unsigned lookup_job_flags(json_t *arguments);

/* The policy a checked on-error argument means; report if it is not given. */
enum block_error_policy lookup_on_error(json_t *arguments, const char *name);

/* A checked string argument that may be missing: borrowed, or NULL. */
const char *lookup_text(json_t *arguments, const char *name);

/* A checked integer argument that may be missing, as may the object. */
int64_t lookup_integer(json_t *arguments, const char *name, int64_t default_value);

/* A checked boolean argument that may be missing. */
bool lookup_bool(json_t *arguments, const char *name, bool default_value);

#endif
