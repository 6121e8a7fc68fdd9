/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that make and delete objects. */
#include "server/commands-object.h"

#include "server/objects.h"

static json_t *add(struct qmp_request *request, json_t *arguments, GError **error)
{
    return object_add(arguments, error) < 0 ? NULL : json_object();
}

static const struct qmp_member del_members[] = {
    {"id", &qmp_type_string, .doc = "The object."},
    {NULL},
};
static const struct qmp_type del_type = {
    .name = "ObjectDel",
    .kind = QMP_KIND_OBJECT,
    .members = del_members,
};

static json_t *del(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));

    return object_delete(id, error) < 0 ? NULL : json_object();
}

const struct qmp_command object_commands[] = {
    {"object-add", &object_options_type, NULL, add, 0,
     "Make an object for others to name by its ID. An iothread is accepted, and has no effect: "
     "each client and job has threads of its own."},
    {"object-del", &del_type, NULL, del, 0,
     "Delete an object. Refused of a throttle group that a node uses; credentials and rules stay "
     "with those who use them until they end."},
    {NULL},
};
