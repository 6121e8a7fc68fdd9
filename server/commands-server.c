/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about the process as a whole. */
#include <errno.h>
#include <string.h>

#include "block/device.h"
#include "block/event.h"
#include "server/commands.h"
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
    {"query-name", NULL, &name_type, query_name, QMP_COMMAND_QUICK, "The server's name."},
    {"stop", NULL, NULL, stop, 0,
     "Hold all guests' requests; those in flight have ended when it answers. Emits STOP."},
    {"cont", NULL, NULL, cont, QMP_COMMAND_QUICK,
     "Let guests' requests go on, and try again what an error policy holds. Emits RESUME."},
    {"quit", NULL, NULL, quit, QMP_COMMAND_QUICK,
     "End the process: jobs are cancelled, disks flushed."},
    {NULL},
};
