/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk status: what a server serves and works on. */
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/jobs-table.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/views-table.h"

/* nbdkit serves each device as an export of its name, and the first also as the default one. */
static json_t *exports_from_devices(const json_t *devices)
{
    json_t *exports = json_array();
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        const char *name = member_text(device, "device", "");
        const char *node = member_text(json_object_get(device, "inserted"), "node-name", "");
        json_array_append_new(exports, json_pack("{s:s, s:s, s:s, s:b}", "id", name, "type", "nbd",
                                                 "node-name", node, "default", i == 0));
    }
    return exports;
}

/* These, and those that were added at run time (a reference is taken over; NULL: none). */
static json_t *all_exports(const json_t *devices, json_t *added)
{
    json_t *exports = exports_from_devices(devices);

    if (added) {
        json_array_extend(exports, added);
        json_decref(added);
    }
    return exports;
}

/* {"devices", "exports", "views", "jobs"}: a new reference, or NULL. */
static json_t *query_status(struct client *client, GError **error)
{
    json_t *devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *jobs = devices ? query_all_jobs(client, error) : NULL;
    GError *problem = NULL;
    json_t *exports = jobs ? client_call_if_known(client, "query-block-exports", &problem) : NULL;
    json_t *views = jobs && !problem ? client_call_if_known(client, "query-views", &problem) : NULL;

    if (!jobs || problem) {
        json_decref(devices);
        json_decref(jobs);
        json_decref(exports);
        if (problem) {
            g_propagate_error(error, problem);
        }
        return NULL;
    }
    exports = all_exports(devices, exports);
    return json_pack("{s:o, s:o, s:o, s:o}", "devices", devices, "exports", exports, "views",
                     views ? views : json_array(), "jobs", jobs);
}

static void print_device(struct libscols_table *table, const json_t *device)
{
    const json_t *inserted = json_object_get(device, "inserted");
    const json_t *image = json_object_get(inserted, "image");
    g_autofree char *size = format_size(MAX(member_integer(image, "virtual-size", 0), 0));
    int64_t allocated = member_integer(image, "actual-size", -1);
    g_autofree char *used = allocated < 0 ? g_strdup("?") : format_size(allocated);
    const char *const cells[] = {member_text(device, "device", "?"),
                                 member_text(inserted, "node-name", "-"),
                                 member_text(inserted, "drv", "-"),
                                 size,
                                 used,
                                 member_flag(inserted, "ro") ? "ro" : "rw",
                                 member_text(device, "io-status", "ok"),
                                 member_text(inserted, "file", "-")};

    table_add(table, cells);
}

static void print_devices(const json_t *devices)
{
    static const char *const headings[] = {"DEVICE", "NODE", "DRIVER", ">SIZE", ">USED",
                                           "ACCESS", "I/O",  "FILE",   NULL};
    const json_t *device;
    size_t i;

    if (json_array_size(devices) == 0) {
        printf("No devices.\n");
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)devices, i, device) {
        print_device(table, device);
    }
    table_print(table);
}

static void print_exports(const json_t *exports)
{
    static const char *const headings[] = {"EXPORT", "TYPE", "NODE", "DEFAULT", NULL};
    const json_t *export;
    size_t i;

    if (json_array_size(exports) == 0) {
        printf("No exports.\n");
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)exports, i, export) {
        const char *const cells[] = {
            member_text(export, "id", "?"), member_text(export, "type", "?"),
            member_text(export, "node-name", "-"), member_flag(export, "default") ? "yes" : ""};
        table_add(table, cells);
    }
    table_print(table);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 0, 0, "no argument", error)) {
        return EXIT_USAGE;
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    json_t *status = client ? query_status(client, error) : NULL;
    if (!status) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json(status);
        return EXIT_OK;
    }
    print_devices(json_object_get(status, "devices"));
    printf("\n");
    print_exports(json_object_get(status, "exports"));
    printf("\n");
    print_views(json_object_get(status, "views"));
    printf("\n");
    print_jobs(json_object_get(status, "jobs"));
    json_decref(status);
    return EXIT_OK;
}

const struct command status_command = {
    .name = "status",
    .summary = "Show the devices, exports, views and jobs of a server",
    .usage = "[OPTION...]",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .run = run,
};
