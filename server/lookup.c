/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/lookup.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "jobs/job.h"
#include "server/qmp/schema.h"

struct block_device *lookup_device(const char *id, GError **error)
{
    const char *slash = strrchr(id, '/');
    struct block_device *device = block_device_find(slash ? slash + 1 : id);

    if (!device) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", id);
    }
    return device;
}

struct block_node *lookup_device_or_node(const char *name, GError **error)
{
    AUTO(block_device) device = block_device_find(name);
    AUTO(block_node) node = device ? block_device_root(device) : block_node_find(name);

    if (!node) {
        block_error(error, ENOENT, "Cannot find device='%s' nor node-name='%s'", name, name);
        return NULL;
    }
    return block_below_transient(node);
}

struct block_node *lookup_disk_or_node(const char *name, GError **error)
{
    struct block_node *node = lookup_device_or_node(name, NULL);

    if (!node) {
        block_error(error, ENOENT, "Cannot find device='%s' nor node-name=''", name);
    }
    return node;
}

int lookup_check_same(const char *name, const struct block_node *node, GError **error)
{
    AUTO(block_node) now = lookup_device_or_node(name, error);

    if (now && now != node) {
        return block_error(error, EAGAIN, "'%s' has just got another node; try again", name);
    }
    return now ? 0 : -ENOENT;
}

int lookup_enum(json_t *value, const char *const *names)
{
    for (int i = 0; names[i]; i++) {
        if (!strcmp(json_string_value(value), names[i])) {
            return i;
        }
    }
    g_assert_not_reached();
}

const char *lookup_job_id(json_t *arguments)
{
    json_t *id = json_object_get(arguments, "job-id");

    return json_string_value(id ? id : json_object_get(arguments, "device"));
}

unsigned lookup_job_flags(json_t *arguments)
{
    return (lookup_bool(arguments, "auto-finalize", true) ? 0u : JOB_MANUAL_FINALIZE) |
           (lookup_bool(arguments, "auto-dismiss", true) ? 0u : JOB_MANUAL_DISMISS);
}

enum block_error_policy lookup_on_error(json_t *arguments, const char *name)
{
    const char *value = json_string_value(json_object_get(arguments, name));

    if (!value) {
        return BLOCK_ERROR_POLICY_REPORT;
    }
    if (!strcmp(value, "auto")) {
        return BLOCK_ERROR_POLICY_ENOSPC; /* as QEMU's jobs take it */
    }
    return (enum block_error_policy)lookup_enum(json_object_get(arguments, name),
                                                block_error_policy_names);
}

const char *lookup_text(json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

int64_t lookup_integer(json_t *arguments, const char *name, int64_t default_value)
{
    json_t *value = json_object_get(arguments, name);

    return value ? json_integer_value(value) : default_value;
}

bool lookup_bool(json_t *arguments, const char *name, bool default_value)
{
    json_t *value = json_object_get(arguments, name);

    return value ? json_is_true(value) : default_value;
}
