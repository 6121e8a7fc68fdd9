/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about the admin channel itself. */
#include "server/qmp/client.h"
#include "server/qmp/commands.h"
#include "server/qmp/monitor.h"
#include "server/qmp/version.h"

/* Types */

static const char *const capability_values[] = {"oob", NULL};
static const struct qmp_type capability_type = {
    .name = "QMPCapability",
    .kind = QMP_KIND_ENUM,
    .values = capability_values,
    .doc = "A capability of the connection. `oob`: several commands may be sent at once; they are "
           "still answered in order.",
};
static const struct qmp_type capability_list_type = {
    .name = "QMPCapabilityList",
    .kind = QMP_KIND_ARRAY,
    .element = &capability_type,
};
static const struct qmp_member capabilities_members[] = {
    {
        .name = "enable",
        .type = &capability_list_type,
        .optional = true,
        .doc = "Capabilities to use, of those in the greeting.",
    },
    {.name = NULL},
};
static const struct qmp_type capabilities_type = {
    .name = "QmpCapabilitiesArguments",
    .kind = QMP_KIND_OBJECT,
    .members = capabilities_members,
    .doc = "Arguments of qmp_capabilities.",
};

static const struct qmp_member version_triple_members[] = {
    {.name = "major", .type = &qmp_type_int, .doc = "Changes with incompatible changes."},
    {.name = "minor", .type = &qmp_type_int, .doc = "Changes with new features."},
    {.name = "micro", .type = &qmp_type_int, .doc = "Changes with corrections."},
    {.name = NULL},
};
static const struct qmp_type version_triple_type = {
    .name = "VersionTriple",
    .kind = QMP_KIND_OBJECT,
    .members = version_triple_members,
    .doc = "A version in three numbers.",
};
static const struct qmp_member version_members[] = {
    {
        .name = "qemu",
        .type = &version_triple_type,
        .doc = "The version of QEMU with whose block commands ours are compatible.",
    },
    {.name = "package", .type = &qmp_type_string, .doc = "`liveblk` and its own version."},
    {.name = NULL},
};
static const struct qmp_type version_type = {
    .name = "VersionInfo",
    .kind = QMP_KIND_OBJECT,
    .members = version_members,
    .doc = "What runs here.",
};

static const struct qmp_member command_members[] = {
    {.name = "name", .type = &qmp_type_string, .doc = "The command's name."},
    {.name = NULL},
};
static const struct qmp_type command_type = {
    .name = "CommandInfo",
    .kind = QMP_KIND_OBJECT,
    .members = command_members,
    .doc = "A command.",
};
static const struct qmp_type command_list_type = {
    .name = "CommandInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &command_type,
};

/* What query-qmp-schema returns, described in its own terms. */

static const char *const meta_type_values[] = {"builtin",   "enum",    "array", "object",
                                               "alternate", "command", "event", NULL};
static const struct qmp_type meta_type_type = {
    .name = "SchemaMetaType",
    .kind = QMP_KIND_ENUM,
    .values = meta_type_values,
    .doc = "What an entry of the schema describes.",
};
static const char *const json_type_values[] = {"string", "number", "int",   "boolean", "null",
                                               "object", "array",  "value", NULL};
static const struct qmp_type json_type_type = {
    .name = "JSONType",
    .kind = QMP_KIND_ENUM,
    .values = json_type_values,
    .doc = "A type of JSON; `value` is any.",
};
static const struct qmp_type string_list_type = {
    .name = "strList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_string,
};

static const struct qmp_member schema_builtin_members[] = {
    {.name = "json-type", .type = &json_type_type, .doc = "The JSON type it has."},
    {.name = NULL},
};
static const struct qmp_type schema_builtin_type = {
    .name = "SchemaInfoBuiltin",
    .kind = QMP_KIND_OBJECT,
    .members = schema_builtin_members,
    .doc = "A built-in type.",
};

static const struct qmp_member schema_enum_member_members[] = {
    {.name = "name", .type = &qmp_type_string, .doc = "The value."},
    {.name = NULL},
};
static const struct qmp_type schema_enum_member_type = {
    .name = "SchemaInfoEnumMember",
    .kind = QMP_KIND_OBJECT,
    .members = schema_enum_member_members,
    .doc = "A value of an enumeration.",
};
static const struct qmp_type schema_enum_member_list_type = {
    .name = "SchemaInfoEnumMemberList",
    .kind = QMP_KIND_ARRAY,
    .element = &schema_enum_member_type,
};
static const struct qmp_member schema_enum_members[] = {
    {.name = "members", .type = &schema_enum_member_list_type, .doc = "Its values."},
    {.name = "values", .type = &string_list_type, .doc = "Its values, as strings."},
    {.name = NULL},
};
static const struct qmp_type schema_enum_type = {
    .name = "SchemaInfoEnum",
    .kind = QMP_KIND_OBJECT,
    .members = schema_enum_members,
    .doc = "An enumeration.",
};

static const struct qmp_member schema_array_members[] = {
    {.name = "element-type", .type = &qmp_type_string, .doc = "The type of its elements."},
    {.name = NULL},
};
static const struct qmp_type schema_array_type = {
    .name = "SchemaInfoArray",
    .kind = QMP_KIND_OBJECT,
    .members = schema_array_members,
    .doc = "An array.",
};

static const struct qmp_type feature_list_type = {
    .name = "strList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_string,
};
static const struct qmp_member schema_object_member_members[] = {
    {.name = "name", .type = &qmp_type_string, .doc = "The member's name."},
    {.name = "type", .type = &qmp_type_string, .doc = "Its type."},
    {
        .name = "default",
        .type = &qmp_type_any,
        .optional = true,
        .doc = "Present (and null) if the member may be left out.",
    },
    {
        .name = "features",
        .type = &feature_list_type,
        .optional = true,
        .doc = "deprecated, or unstable: it may change.",
    },
    {.name = NULL},
};
static const struct qmp_type schema_object_member_type = {
    .name = "SchemaInfoObjectMember",
    .kind = QMP_KIND_OBJECT,
    .members = schema_object_member_members,
    .doc = "A member of an object.",
};
static const struct qmp_type schema_object_member_list_type = {
    .name = "SchemaInfoObjectMemberList",
    .kind = QMP_KIND_ARRAY,
    .element = &schema_object_member_type,
};
static const struct qmp_member schema_variant_members[] = {
    {.name = "case", .type = &qmp_type_string, .doc = "A value of the tag."},
    {.name = "type", .type = &qmp_type_string, .doc = "The members it brings."},
    {.name = NULL},
};
static const struct qmp_type schema_variant_type = {
    .name = "SchemaInfoObjectVariant",
    .kind = QMP_KIND_OBJECT,
    .members = schema_variant_members,
    .doc = "The members an object has for one value of its tag.",
};
static const struct qmp_type schema_variant_list_type = {
    .name = "SchemaInfoObjectVariantList",
    .kind = QMP_KIND_ARRAY,
    .element = &schema_variant_type,
};
static const struct qmp_member schema_object_members[] = {
    {.name = "members", .type = &schema_object_member_list_type, .doc = "Its common members."},
    {
        .name = "tag",
        .type = &qmp_type_string,
        .optional = true,
        .doc = "The member whose value decides on further members.",
    },
    {
        .name = "variants",
        .type = &schema_variant_list_type,
        .optional = true,
        .doc = "The further members.",
    },
    {.name = NULL},
};
static const struct qmp_type schema_object_type = {
    .name = "SchemaInfoObject",
    .kind = QMP_KIND_OBJECT,
    .members = schema_object_members,
    .doc = "An object.",
};

static const struct qmp_member schema_alternate_member_members[] = {
    {.name = "type", .type = &qmp_type_string, .doc = "A type the value may have."},
    {.name = NULL},
};
static const struct qmp_type schema_alternate_member_type = {
    .name = "SchemaInfoAlternateMember",
    .kind = QMP_KIND_OBJECT,
    .members = schema_alternate_member_members,
    .doc = "A branch of an alternate.",
};
static const struct qmp_type schema_alternate_member_list_type = {
    .name = "SchemaInfoAlternateMemberList",
    .kind = QMP_KIND_ARRAY,
    .element = &schema_alternate_member_type,
};
static const struct qmp_member schema_alternate_members[] = {
    {.name = "members", .type = &schema_alternate_member_list_type, .doc = "Its branches."},
    {.name = NULL},
};
static const struct qmp_type schema_alternate_type = {
    .name = "SchemaInfoAlternate",
    .kind = QMP_KIND_OBJECT,
    .members = schema_alternate_members,
    .doc = "A value of one of several JSON types.",
};

static const struct qmp_member schema_command_members[] = {
    {.name = "arg-type", .type = &qmp_type_string, .doc = "The object its arguments form."},
    {.name = "ret-type", .type = &qmp_type_string, .doc = "What it returns."},
    {.name = NULL},
};
static const struct qmp_type schema_command_type = {
    .name = "SchemaInfoCommand",
    .kind = QMP_KIND_OBJECT,
    .members = schema_command_members,
    .doc = "A command.",
};
static const struct qmp_member schema_event_members[] = {
    {.name = "arg-type", .type = &qmp_type_string, .doc = "The object its data form."},
    {.name = NULL},
};
static const struct qmp_type schema_event_type = {
    .name = "SchemaInfoEvent",
    .kind = QMP_KIND_OBJECT,
    .members = schema_event_members,
    .doc = "An event.",
};

static const struct qmp_member schema_members[] = {
    {.name = "name", .type = &qmp_type_string, .doc = "The name others refer to."},
    {.name = "meta-type", .type = &meta_type_type, .doc = "What it is."},
    {
        .name = "features",
        .type = &feature_list_type,
        .optional = true,
        .doc = "Of a command: deprecated, or unstable: it may change.",
    },
    {.name = NULL},
};
static const struct qmp_variant schema_variants[] = {
    {.value = "builtin", .type = &schema_builtin_type},
    {.value = "enum", .type = &schema_enum_type},
    {.value = "array", .type = &schema_array_type},
    {.value = "object", .type = &schema_object_type},
    {.value = "alternate", .type = &schema_alternate_type},
    {.value = "command", .type = &schema_command_type},
    {.value = "event", .type = &schema_event_type},
    {.value = NULL},
};
static const struct qmp_type schema_type = {
    .name = "SchemaInfo",
    .kind = QMP_KIND_OBJECT,
    .members = schema_members,
    .discriminator = "meta-type",
    .variants = schema_variants,
    .doc = "A type, command or event.",
};
static const struct qmp_type schema_list_type = {
    .name = "SchemaInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &schema_type,
};

/* Handlers */

/* Every capability the checks let through is one we offer. */
static json_t *handle_capabilities(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct qmp_session *session = qmp_request_session(request);

    if (session->negotiated) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_COMMAND_NOT_FOUND,
                    "Capabilities negotiation is already complete, command ignored");
        return NULL;
    }
    session->negotiated = true;
    session->out_of_band = json_array_size(json_object_get(arguments, "enable")) > 0;
    return json_object();
}

static json_t *handle_version(struct qmp_request *request, json_t *arguments, GError **error)
{
    return qmp_version();
}

static json_t *handle_commands(struct qmp_request *request, json_t *arguments, GError **error)
{
    const struct qmp_command *const *tables =
        qmp_monitor_command_tables(qmp_request_monitor(request));
    json_t *commands = json_array();

    for (; *tables; tables++) {
        const struct qmp_command *command;

        for (command = *tables; command->name; command++) {
            json_array_append_new(commands, json_pack("{s:s}", "name", command->name));
        }
    }
    return commands;
}

static json_t *handle_schema(struct qmp_request *request, json_t *arguments, GError **error)
{
    struct qmp_monitor *monitor = qmp_request_monitor(request);

    return qmp_schema_introspect(qmp_monitor_command_tables(monitor),
                                 qmp_monitor_event_tables(monitor));
}

const struct qmp_command qmp_commands_control[] = {
    {
        .name = "qmp_capabilities",
        .arguments = &capabilities_type,
        .handler = handle_capabilities,
        .flags = QMP_COMMAND_QUICK,
        .doc = "Negotiate: the first command of each connection, and until it has succeeded the "
               "only one.",
    },
    {
        .name = "query-version",
        .returns = &version_type,
        .handler = handle_version,
        .flags = QMP_COMMAND_QUICK,
        .doc = "Tell the version.",
    },
    {
        .name = "query-commands",
        .returns = &command_list_type,
        .handler = handle_commands,
        .flags = QMP_COMMAND_QUICK,
        .doc = "List the commands.",
    },
    {
        .name = "query-qmp-schema",
        .returns = &schema_list_type,
        .handler = handle_schema,
        .doc = "List all commands, events and types in a form for programs, which tell by it what "
               "they may use. Type names are arbitrary.",
    },
    {.name = NULL},
};
