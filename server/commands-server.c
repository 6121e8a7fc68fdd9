/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about the process as a whole. */
#include <errno.h>
#include <string.h>

#include "block/device.h"
#include "block/event.h"
#include "server/commands.h"
#include "server/listening.h"
#include "server/qmp/monitor.h"

static const char *const run_states[] = {"running", "paused", "io-error", NULL};
static const struct qmp_type run_state_type = {
    .name = "RunState",
    .kind = QMP_KIND_ENUM,
    .values = run_states,
    .doc = "running; paused (by stop); io-error (an error policy holds a device's requests).",
};
static const struct qmp_member status_members[] = {
    {"running", &qmp_type_bool, .doc = "Guests' requests are served."},
    {"status", &run_state_type, .doc = "And if not, why."},
    {NULL},
};
static const struct qmp_type status_type = {
    .name = "StatusInfo",
    .kind = QMP_KIND_OBJECT,
    .members = status_members,
};
static const struct qmp_member name_members[] = {
    {"name", &qmp_type_string, .optional = true, .doc = "The name given at start-up."},
    {NULL},
};
static const struct qmp_type name_type = {
    .name = "NameInfo",
    .kind = QMP_KIND_OBJECT,
    .members = name_members,
};

static const char *const socket_types[] = {"unix", "inet", "vsock", NULL};
static const struct qmp_type socket_type_type = {
    .name = "ListeningSocketType",
    .kind = QMP_KIND_ENUM,
    .values = socket_types,
};
static const struct qmp_member socket_members[] = {
    {"type", &socket_type_type, .doc = "What it is."},
    {"path", &qmp_type_string, .optional = true, .doc = "Of a UNIX socket; absolute."},
    {"host", &qmp_type_string, .optional = true,
     .doc = "Of an inet one: the address as a number; 0.0.0.0 and :: are all of the host."},
    {"port", &qmp_type_string, .optional = true, .doc = "Of inet and vsock ones."},
    {NULL},
};
static const struct qmp_type socket_type = {
    .name = "ListeningSocket",
    .kind = QMP_KIND_OBJECT,
    .members = socket_members,
};
static const struct qmp_type socket_list_type = {
    .name = "ListeningSocketList",
    .kind = QMP_KIND_ARRAY,
    .element = &socket_type,
};

static json_t *query_nbd_sockets(struct qmp_request *request, json_t *arguments, GError **error)
{
    return listening_sockets(server_is_monitor_socket);
}

static json_t *query_status(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *state = block_device_run_state();

    return json_pack("{s:b, s:s}", "running", !strcmp(state, "running"), "status", state);
}

static json_t *query_name(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = server_name();

    return name ? json_pack("{s:s}", "name", name) : json_object();
}

static const struct qmp_member uuid_members[] = {
    {"UUID", &qmp_type_string, .doc = "All zeroes: none is set."},
    {NULL},
};
static const struct qmp_type uuid_type = {
    .name = "UuidInfo",
    .kind = QMP_KIND_OBJECT,
    .members = uuid_members,
};

static json_t *query_uuid(struct qmp_request *request, json_t *arguments, GError **error)
{
    return json_pack("{s:s}", "UUID", "00000000-0000-0000-0000-000000000000");
}

/* What clients of QEMU's system emulator ask for, and there is none of here. */
static const struct qmp_member nothing_members[] = {
    {"id", &qmp_type_string, .doc = "Its ID."},
    {NULL},
};
static const struct qmp_type tpm_type = {
    .name = "TPMInfo",
    .kind = QMP_KIND_OBJECT,
    .members = nothing_members,
};
static const struct qmp_type tpm_list_type = {
    .name = "TPMInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &tpm_type,
};
static const struct qmp_type thread_type = {
    .name = "IOThreadInfo",
    .kind = QMP_KIND_OBJECT,
    .members = nothing_members,
};
static const struct qmp_type thread_list_type = {
    .name = "IOThreadInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &thread_type,
};

static json_t *query_none(struct qmp_request *request, json_t *arguments, GError **error)
{
    return json_array();
}

static json_t *stop(struct qmp_request *request, json_t *arguments, GError **error)
{
    block_device_stop_all();
    event_emit("STOP");
    return json_object();
}

static json_t *cont(struct qmp_request *request, json_t *arguments, GError **error)
{
    block_device_continue_all();
    event_emit("RESUME");
    return json_object();
}

static void quit_now(void *data)
{
    server_quit();
}

static json_t *quit(struct qmp_request *request, json_t *arguments, GError **error)
{
    qmp_request_after_reply(request, quit_now, NULL);
    return json_object();
}

const struct qmp_command server_commands[] = {
    {"query-status", NULL, &status_type, query_status, QMP_COMMAND_QUICK,
     "Whether guests' requests are served."},
    {"query-nbd-sockets", NULL, &socket_list_type, query_nbd_sockets, QMP_COMMAND_QUICK,
     "The sockets, but for admin sockets, on which the process listens: where nbdkit accepts "
     "NBD clients. Whether they have to use TLS it does not say."},
    {"query-name", NULL, &name_type, query_name, QMP_COMMAND_QUICK, "The server's name."},
    {"query-uuid", NULL, &uuid_type, query_uuid, QMP_COMMAND_QUICK, "The server's UUID."},
    {"query-tpm", NULL, &tpm_list_type, query_none, QMP_COMMAND_QUICK,
     "Always empty: there is no TPM, and backup clients ask."},
    {"query-iothreads", NULL, &thread_list_type, query_none, QMP_COMMAND_QUICK,
     "Always empty: requests run on the threads of who makes them, whatever objects there are."},
    {"stop", NULL, NULL, stop, 0,
     "Hold all guests' requests; those in flight have ended when it answers. Emits STOP."},
    {"cont", NULL, NULL, cont, QMP_COMMAND_QUICK,
     "Let guests' requests go on, and try again what an error policy holds. Emits RESUME."},
    {"quit", NULL, NULL, quit, QMP_COMMAND_QUICK,
     "End the process: jobs are cancelled, disks flushed."},
    {NULL},
};
