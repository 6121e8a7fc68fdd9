/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/server.h"

#include <errno.h>
#include <string.h>

#include "block/device.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/gate.h"
#include "block/main-loop.h"
#include "block/throttle-group.h"
#include "block/tracking-bitmaps.h"
#include "formats/blkdebug.h"
#include "formats/formats.h"
#include "jobs/job.h"
#include "server/commands-bitmap.h"
#include "server/commands-chain.h"
#include "server/commands-checkpoint.h"
#include "server/commands-export.h"
#include "server/commands-fault.h"
#include "server/commands-graph.h"
#include "server/commands-object.h"
#include "server/commands-snapshot.h"
#include "server/commands-tracking.h"
#include "server/commands-transaction.h"
#include "server/commands-views.h"
#include "server/commands-watch.h"
#include "server/commands.h"
#include "server/device-tracking.h"
#include "server/disk.h"
#include "server/listening.h"
#include "server/nbd/server.h"
#include "server/objects.h"
#include "server/qmp/monitor.h"
#include "server/qmp/schema.h"
#include "server/sessions.h"
#include "server/types.h"
#include "server/views.h"
#include "sets/backup-node.h"

struct server {
    GPtrArray *disks;
    char *admin;
    char *name;
    bool read_only;
    bool has_image_references;
    struct qmp_monitor *monitor;
    void (*quit)(void *data);
    void *quit_data;
    bool started;
};

/* The server of this process: commands such as query-name and quit ask it. */
static struct server *current;

static const struct qmp_command *const command_tables[] = {
    qmp_commands_control,
    server_commands,
    block_commands,
    qom_commands,
    job_commands,
    bitmap_commands,
    transaction_commands,
    view_commands,
    fault_commands,
    snapshot_commands,
    chain_commands,
    overlay_commands,
    tracking_commands,
    checkpoint_commands,
    export_commands,
    object_commands,
    watch_commands,
    graph_commands,
    NULL,
};

static const struct qmp_event_type *const event_tables[] = {
    block_events,      job_events,    view_events,  fault_events, tracking_events,
    checkpoint_events, export_events, watch_events, NULL};

static void register_drivers(void)
{
    static bool registered;

    if (!registered) {
        formats_register();
        sets_register();
        block_stored_bitmaps_add_keeper(&tracking_bitmap_keeper);
        objects_init();
        types_init();
        fault_commands_init();
        transaction_commands_init();
        sessions_init();
        registered = true;
    }
}

struct server *server_new(void)
{
    struct server *server = g_new0(struct server, 1);

    listening_init();
    register_drivers();
    server->disks = g_ptr_array_new_with_free_func((GDestroyNotify)disk_free);
    current = server;
    return server;
}

int server_add_disk(struct server *server, const char *text, GError **error)
{
    struct disk *disk = disk_parse(text, server->disks->len, error);

    if (!disk) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < server->disks->len; i++) {
        if (!strcmp(disk_name(g_ptr_array_index(server->disks, i)), disk_name(disk))) {
            block_error(error, EEXIST,
                        "Two disks are named '%s'; give each its own name=", disk_name(disk));
            disk_free(disk);
            return -EEXIST;
        }
    }
    g_ptr_array_add(server->disks, disk);
    return 0;
}

int server_set_admin(struct server *server, const char *path, GError **error)
{
    if (server->admin) {
        return block_error(error, EINVAL, "The admin socket was named twice");
    }
    if (!*path) {
        return block_error(error, EINVAL, "The admin socket's path is empty");
    }
    server->admin = g_canonicalize_filename(path, NULL);
    return 0;
}

int server_set_image_references(struct server *server, const char *policy, GError **error)
{
    if (server->has_image_references) {
        return block_error(error, EINVAL, "image-references was given twice");
    }
    server->has_image_references = true;
    return block_gate_set(policy, error);
}

void server_set_name(struct server *server, const char *name)
{
    g_free(server->name);
    server->name = g_strdup(name);
}

void server_set_read_only(struct server *server, bool read_only)
{
    server->read_only = read_only;
}

static int remove_device(struct block_device *device)
{
    device_tracking_take_samples(device);
    int status = block_device_remove(device);

    if (status < 0) {
        g_warning("Device '%s': the last flush failed: %s", block_device_name(device),
                  block_strerror(-status));
    }
    return status;
}

static void remove_devices(void)
{
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        remove_device(*device);
    }
    block_device_list_free(devices);
}

int server_prepare(struct server *server, GError **error)
{
    int status = 0;

    main_loop_init();
    if (server->disks->len == 0) {
        return block_error(error, EINVAL, "No disk was given: use disk=PATH");
    }
    for (unsigned i = 0; i < server->disks->len && status == 0; i++) {
        status = disk_open(g_ptr_array_index(server->disks, i), server->read_only, error);
    }
    if (status == 0 && server->admin) {
        server->monitor = qmp_monitor_new(server->admin, command_tables, event_tables, error);
        status = server->monitor ? 0 : -EINVAL;
    }
    if (status < 0) {
        remove_devices();
        device_tracking_finish_all();
    }
    return status;
}

int server_start(struct server *server, void (*quit)(void *data), void *quit_data, GError **error)
{
    int status = main_loop_start();

    if (status < 0) {
        return block_error_errno(error, -status, "Could not start the main thread");
    }
    server->quit = quit;
    server->quit_data = quit_data;
    server->started = true;
    if (server->monitor) {
        qmp_monitor_start(server->monitor);
    }
    return 0;
}

static void flush_devices(void)
{
    struct block_device **devices = block_device_list();

    for (struct block_device **device = devices; *device; device++) {
        int status = block_device_flush(*device);

        if (status < 0) {
            g_warning("Device '%s' could not be flushed: %s", block_device_name(*device),
                      block_strerror(-status));
        }
    }
    block_device_list_free(devices);
}

/* Their requests are not to wait for rates, of groups that were made meanwhile either. */
static void cancel_jobs(void)
{
    throttle_groups_release_all();
    job_cancel_all();
}

void server_begin_stop(struct server *server)
{
    block_device_shutdown_all();
    blkdebug_release_all();
    throttle_groups_release_all();
    if (server->started) {
        cancel_jobs();
    }
    flush_devices();
}

/*
 * Jobs first, on which NBD clients may wait, and then exports, while clients of the admin channel
 * can still hear how they end; then these clients, who could make new ones; then what those had
 * begun, and the views; then the disks.
 */
void server_stop(struct server *server)
{
    block_device_shutdown_all();
    blkdebug_release_all();
    throttle_groups_release_all();
    if (server->started) {
        cancel_jobs();
    }
    nbd_server_stop_all();
    if (server->monitor) {
        qmp_monitor_free(server->monitor);
        server->monitor = NULL;
    }
    if (server->started) {
        cancel_jobs();
    }
    nbd_server_stop_all();
    sessions_end_all();
    view_drop_all();
    remove_devices();
    block_node_remove_all();
    objects_delete_all();
    device_tracking_finish_all();
    if (server->started) {
        main_loop_stop();
        server->started = false;
    }
}

void server_free(struct server *server)
{
    server_stop(server);
    g_ptr_array_unref(server->disks);
    g_free(server->admin);
    g_free(server->name);
    g_free(server);
    current = NULL;
}

void server_quit(void)
{
    if (current && current->quit) {
        current->quit(current->quit_data);
    }
}

const char *server_name(void)
{
    return current ? current->name : NULL;
}

const char *server_version(void)
{
    return LIVEBLK_VERSION;
}

char *server_driver_names(void)
{
    GString *names = g_string_new(NULL);

    register_drivers();
    for (const struct block_driver *const *driver = block_driver_list(); *driver; driver++) {
        g_string_append_printf(names, "%s%s", names->len ? " " : "", (*driver)->name);
    }
    return g_string_free(names, FALSE);
}

char *server_qmp_document(const char *introduction)
{
    register_drivers();
    return qmp_schema_document(introduction, command_tables, event_tables);
}

char *server_job_types(void)
{
    return g_strjoinv(" ", (char **)job_type_names);
}
