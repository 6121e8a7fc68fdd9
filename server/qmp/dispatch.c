/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/dispatch.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "server/qmp/json-print.h"
#include "server/qmp/json-value.h"
#include "server/qmp/version.h"

static const char *text_of(const json_t *value)
{
    uint64_t big;

    return json_value_is_big(value, &big) ? NULL : json_string_value(value);
}

/* A member that names a command: *name is NULL if there is none. */
static int get_command_member(json_t *message, const char *key, const char **name, GError **error)
{
    json_t *value = json_object_get(message, key);

    *name = value ? text_of(value) : NULL;
    if (value && !*name) {
        return block_error(error, EINVAL, "QMP input member '%s' must be a string", key);
    }
    return 0;
}

static int check_other_members(const struct qmp_session *session, json_t *message, GError **error)
{
    json_t *arguments = json_object_get(message, "arguments");
    const char *key;
    json_t *value;

    if (arguments && !json_is_object(arguments)) {
        return block_error(error, EINVAL, "QMP input member 'arguments' must be an object");
    }
    json_object_foreach (message, key, value) {
        if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 &&
            strcmp(key, "id") != 0 && !(session->out_of_band && strcmp(key, "exec-oob") == 0)) {
            return block_error(error, EINVAL, "QMP input member '%s' is unexpected", key);
        }
    }
    return 0;
}

/* The name of the command a message asks for, and how. */
static int check_message(const struct qmp_session *session, json_t *message, const char **name,
                         bool *out_of_band, GError **error)
{
    const char *execute, *exec_oob = NULL;

    if (!json_is_object(message)) {
        return block_error(error, EINVAL, "QMP input must be a JSON object");
    }
    if (get_command_member(message, "execute", &execute, error) < 0 ||
        (session->out_of_band && get_command_member(message, "exec-oob", &exec_oob, error) < 0)) {
        return -EINVAL;
    }
    if (execute && exec_oob) {
        return block_error(error, EINVAL, "QMP input member 'execute' clashes with 'exec-oob'");
    }
    if (check_other_members(session, message, error) < 0) {
        return -EINVAL;
    }
    if (!execute && !exec_oob) {
        return block_error(error, EINVAL, "QMP input lacks member 'execute'");
    }
    *name = execute ? execute : exec_oob;
    *out_of_band = exec_oob;
    return 0;
}

const struct qmp_command *qmp_find_command(const struct qmp_command *const *tables,
                                           const char *name)
{
    for (; *tables; tables++) {
        const struct qmp_command *command;

        for (command = *tables; command->name; command++) {
            if (strcmp(command->name, name) == 0) {
                return command;
            }
        }
    }
    return NULL;
}

const struct qmp_command *qmp_dispatch(const struct qmp_command *const *tables,
                                       const struct qmp_session *session, json_t *message,
                                       json_t **arguments, GError **error)
{
    const struct qmp_command *command;
    const struct qmp_type *type;
    bool out_of_band = false;
    const char *name = NULL;

    if (check_message(session, message, &name, &out_of_band, error) < 0) {
        return NULL;
    }
    if (!session->negotiated && strcmp(name, "qmp_capabilities") != 0) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
        return NULL;
    }
    command = qmp_find_command(tables, name);
    if (!command) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "The command %s has not been found", name);
        return NULL;
    }
    if (out_of_band) {
        /* As in qemu-storage-daemon, none does. */
        block_error(error, EINVAL, "The command %s does not support OOB", name);
        return NULL;
    }
    *arguments = json_incref(json_object_get(message, "arguments"));
    if (!*arguments) {
        *arguments = json_object();
    }
    type = command->arguments ? command->arguments : &qmp_type_empty;
    if (qmp_check(type, *arguments, NULL, error) < 0) {
        json_decref(*arguments);
        *arguments = NULL;
        return NULL;
    }
    return command;
}

bool qmp_is_out_of_band(const json_t *message)
{
    return json_object_get(message, "exec-oob") && !json_object_get(message, "execute");
}

GBytes *qmp_line(json_t *value)
{
    GString *line = g_string_new(NULL);

    json_print(value, line);
    json_decref(value);
    g_string_append(line, "\r\n");
    return g_string_free_to_bytes(line);
}

GBytes *qmp_greeting(void)
{
    return qmp_line(
        json_pack("{s:{s:o, s:[s]}}", "QMP", "version", qmp_version(), "capabilities", "oob"));
}

static const char *class_name(const GError *error)
{
    if (error->domain != QMP_ERROR) {
        return "GenericError";
    }
    switch (error->code) {
    case QMP_ERROR_COMMAND_NOT_FOUND:
        return "CommandNotFound";
    case QMP_ERROR_DEVICE_NOT_ACTIVE:
        return "DeviceNotActive";
    case QMP_ERROR_DEVICE_NOT_FOUND:
        return "DeviceNotFound";
    default:
        return "GenericError";
    }
}

static void set_id(json_t *reply, json_t *message)
{
    json_t *id = json_object_get(message, "id");

    if (id) {
        json_object_set(reply, "id", id);
    }
}

GBytes *qmp_reply(json_t *message, json_t *result, const GError *error)
{
    json_t *reply = json_object();

    if (error) {
        json_t *details = json_object();

        json_decref(result);
        json_object_set_new(details, "class", json_string(class_name(error)));
        json_object_set_new(details, "desc", json_value_from_text(error->message));
        set_id(reply, message);
        json_object_set_new(reply, "error", details);
    } else {
        json_object_set_new(reply, "return", result);
        set_id(reply, message);
    }
    return qmp_line(reply);
}
