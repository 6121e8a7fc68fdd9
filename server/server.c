/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/server.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/device.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/gate.h"
#include "block/main-loop.h"
#include "block/throttle-group.h"
#include "block/timed-call.h"
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
#include "server/compatibility.h"
#include "server/device-tracking.h"
#include "server/disk.h"
#include "server/listening.h"
#include "server/nbd/exports.h"
#include "server/nbd/server.h"
#include "server/objects.h"
#include "server/option-text.h"
#include "server/qmp/dispatch.h"
#include "server/qmp/monitor.h"
#include "server/qmp/schema.h"
#include "server/sessions.h"
#include "server/types.h"
#include "server/views.h"
#include "sets/backup-node.h"

/* How long exports may take to end before jobs are cancelled, on which their clients may wait. */
#define EXPORTS_END_NS (5 * NS_PER_SECOND)

struct server {
    GPtrArray *disks;
    char *admin;
    char *name;
    bool read_only;
    bool has_image_references;
    GPtrArray *monitors; /* of struct qmp_monitor; monitors_lock */
    void (*quit)(void *data);
    void *quit_data;
    bool started;
};

/* The server of this process: commands such as query-name and quit ask it. */
static struct server *current;

/* Guards its list. A leaf. */
static pthread_mutex_t monitors_lock = PTHREAD_MUTEX_INITIALIZER;

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
    checkpoint_events, export_events, watch_events, graph_events, NULL};

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
        view_on_drop(nbd_export_remove_of_view);
        registered = true;
    }
}

struct server *server_new(void)
{
    struct server *server = g_new0(struct server, 1);

    listening_init();
    register_drivers();
    server->disks = g_ptr_array_new_with_free_func((GDestroyNotify)disk_free);
    server->monitors = g_ptr_array_new();
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

/* ---- Admin channels -------------------------------------------------------------------------- */

static void add_monitor(struct server *server, struct qmp_monitor *monitor)
{
    SCOPE_LOCK(&monitors_lock);

    g_ptr_array_add(server->monitors, monitor);
}

static int listen_for_admins(struct server *server, GError **error)
{
    struct qmp_monitor *monitor =
        qmp_monitor_new(server->admin, command_tables, event_tables, error);

    if (!monitor) {
        return -EINVAL;
    }
    add_monitor(server, monitor);
    return 0;
}

/* NULL: it has no clients but those that it is given. */
static struct qmp_monitor *start_monitor(struct server *server,
                                         const struct unix_listener *listener, bool is_pretty)
{
    struct qmp_monitor *monitor = qmp_monitor_new_on(listener, command_tables, event_tables);

    if (is_pretty) {
        qmp_monitor_set_pretty(monitor);
    }
    add_monitor(server, monitor);
    qmp_monitor_start(monitor);
    return monitor;
}

void server_add_monitor(struct server *server, const struct unix_listener *listener, bool is_pretty)
{
    start_monitor(server, listener, is_pretty);
}

void server_add_monitor_client(struct server *server, int fd, bool is_pretty)
{
    qmp_monitor_serve(start_monitor(server, NULL, is_pretty), fd);
}

bool server_is_monitor_socket(int fd)
{
    SCOPE_LOCK(&monitors_lock);

    for (guint i = 0; current && i < current->monitors->len; i++) {
        if (qmp_monitor_listener_fd(g_ptr_array_index(current->monitors, i)) == fd) {
            return true;
        }
    }
    return false;
}

static struct qmp_monitor *take_monitor(struct server *server)
{
    SCOPE_LOCK(&monitors_lock);
    guint count = server->monitors->len;

    return count ? g_ptr_array_steal_index(server->monitors, count - 1) : NULL;
}

static void free_monitors(struct server *server)
{
    struct qmp_monitor *monitor;

    while ((monitor = take_monitor(server))) {
        qmp_monitor_free(monitor);
    }
}

int server_run(struct server *server, const char *name, const char *text, const char *implied_key,
               GError **error)
{
    const struct qmp_command *command = qmp_find_command(command_tables, name);

    if (!command) {
        return block_error(error, EINVAL, "The command %s has not been found", name);
    }
    json_t *arguments = option_text_read(text, implied_key, command->arguments, error);
    json_t *result = arguments ? command->handler(NULL, arguments, error) : NULL;
    int status = result ? 0 : -EINVAL;
    json_decref(arguments);
    json_decref(result);
    return status;
}

/* ---- Life ------------------------------------------------------------------------------------ */

int server_prepare(struct server *server, GError **error)
{
    int status = 0;

    main_loop_init();
    for (unsigned i = 0; i < server->disks->len && status == 0; i++) {
        status = disk_open(g_ptr_array_index(server->disks, i), server->read_only, error);
    }
    if (status == 0 && server->admin) {
        status = listen_for_admins(server, error);
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
    for (guint i = 0; i < server->monitors->len; i++) {
        qmp_monitor_start(g_ptr_array_index(server->monitors, i));
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

static int end_exports(struct timed_call *call, void *data)
{
    nbd_server_stop_all();
    return 0;
}

/*
 * Exports first, so that nobody writes what a job would have to copy; then jobs, while admin
 * clients can still hear how they end; then these, who could start new ones; then what those had
 * begun, and the views; then the disks.
 */
void server_stop(struct server *server)
{
    bool is_left;

    block_device_shutdown_all();
    blkdebug_release_all();
    throttle_groups_release_all();
    if (server->started) {
        timed_call_run(end_exports, NULL, g_free, clock_now_ns() + EXPORTS_END_NS, &is_left);
        cancel_jobs();
    }
    nbd_server_stop_all();
    free_monitors(server);
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
    g_ptr_array_unref(server->monitors);
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
    return qmp_schema_document(introduction, compatibility_notes, command_tables, event_tables);
}

char *server_job_types(void)
{
    return g_strjoinv(" ", (char **)job_type_names);
}
