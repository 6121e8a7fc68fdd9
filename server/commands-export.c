/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands about NBD servers and exports. */
#include "server/commands-export.h"

#include <errno.h>
#include <string.h>

#include "block/error.h"
#include "server/address.h"
#include "server/commands-bitmap.h"
#include "server/commands.h"
#include "server/lookup.h"
#include "server/nbd/exports.h"
#include "server/nbd/server.h"
#include "server/objects.h"
#include "server/option-text.h"

/* ---- Servers --------------------------------------------------------------------------------- */

static const struct qmp_member server_members[] = {
    {"tls-creds", &qmp_type_string, .optional = true,
     .doc = "The ID of TLS credentials with endpoint=server, which clients must use then."},
    {"tls-authz", &qmp_type_string, .optional = true,
     .doc = "The ID of an authz object: who may connect, by what TLS vouches for."},
    {"max-connections", &qmp_type_uint32, .optional = true, .default_text = "100",
     .doc = "Clients beyond that wait until one has left. 0: no limit. 1: a client is told not to "
            "connect more than once."},
    {"handshake-max-seconds", &qmp_type_uint32, .optional = true, .default_text = "10",
     .doc = "The longest a handshake takes. 0: for ever."},
    {"id", &qmp_type_string, .optional = true, .default_text = "\"\"",
     .doc = "To have several servers, which all offer the same exports. Not in QEMU."},
    {NULL},
};
static const struct qmp_type server_type = {
    .name = "NbdServerOptionsBase",
    .kind = QMP_KIND_OBJECT,
    .members = server_members,
};
static const struct qmp_member start_members[] = {
    {"addr", &socket_address_legacy_type, .doc = "Where to listen."},
    {NULL},
};
static const struct qmp_type start_type = {
    .name = "NbdServerOptionsLegacy",
    .kind = QMP_KIND_OBJECT,
    .base = &server_type,
    .members = start_members,
};
static const struct qmp_member flat_start_members[] = {
    {"addr", &socket_address_type, .doc = "Where to listen."},
    {NULL},
};
static const struct qmp_type flat_start_type = {
    .name = "NbdServerOptions",
    .kind = QMP_KIND_OBJECT,
    .base = &server_type,
    .members = flat_start_members,
};
static const struct qmp_member stop_members[] = {
    {"id", &qmp_type_string, .optional = true, .default_text = "\"\"",
     .doc = "Which one. Not in QEMU."},
    {NULL},
};
static const struct qmp_type stop_type = {
    .name = "NbdServerStop",
    .kind = QMP_KIND_OBJECT,
    .members = stop_members,
};

static const char *text_argument(json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

/* References to the objects that two arguments name, if they are there. */
static int find_objects(json_t *arguments, struct tls_credentials **credentials,
                        struct authorization **authorization, GError **error)
{
    const char *tls = text_argument(arguments, "tls-creds");
    const char *authz = text_argument(arguments, "tls-authz");

    if (tls && !(*credentials = object_tls_credentials(tls, error))) {
        return -EINVAL;
    }
    return authz && !(*authorization = object_authorization(authz, error)) ? -EINVAL : 0;
}

typedef int address_reader(json_t *value, struct socket_address *address, GError **error);

static int start_server(json_t *arguments, address_reader *read_address, GError **error)
{
    AUTO(tls_credentials) credentials = NULL;
    AUTO(authorization) authorization = NULL;
    struct nbd_server_options options = {
        .max_connections =
            (unsigned)lookup_integer(arguments, "max-connections", NBD_CONNECTIONS_DEFAULT),
        .handshake_s = (unsigned)lookup_integer(arguments, "handshake-max-seconds",
                                                NBD_HANDSHAKE_SECONDS_DEFAULT),
    };
    const char *id = text_argument(arguments, "id");

    options.id = id ? id : "";
    if (read_address(json_object_get(arguments, "addr"), &options.address, error) < 0 ||
        find_objects(arguments, &credentials, &authorization, error) < 0) {
        return -EINVAL;
    }
    if (options.address.kind == SOCKET_ADDRESS_FD && server_is_monitor_socket(options.address.fd)) {
        return block_error(error, EBUSY, "Descriptor %d is what a monitor listens on",
                           options.address.fd);
    }
    options.credentials = credentials;
    options.authorization = authorization;
    return nbd_server_start(&options, error);
}

static json_t *nbd_start(struct qmp_request *request, json_t *arguments, GError **error)
{
    return start_server(arguments, address_read_legacy, error) < 0 ? NULL : json_object();
}

int export_start_server(const char *text, GError **error)
{
    json_t *arguments = option_text_read(text, NULL, &flat_start_type, error);
    int status = arguments ? start_server(arguments, address_read, error) : -EINVAL;

    json_decref(arguments);
    return status;
}

static json_t *nbd_stop(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *id = text_argument(arguments, "id");

    return nbd_server_stop(id ? id : "", error) < 0 ? NULL : json_object();
}

/* ---- Exports --------------------------------------------------------------------------------- */

static const char *const export_types[] = {"nbd", NULL};
static const struct qmp_type export_type_type = {
    .name = "BlockExportType",
    .kind = QMP_KIND_ENUM,
    .values = export_types,
};
static const struct qmp_member common_members[] = {
    {"type", &export_type_type, .doc = "What serves it."},
    {"id", &qmp_type_string, .doc = "Its ID, for block-export-del."},
    {"fixed-iothread", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "No effect: each client has threads of its own."},
    {"iothread", &qmp_type_string, .optional = true,
     .doc = "The ID of an iothread object, which has to be there. No effect."},
    {"node-name", &qmp_type_string,
     .doc = "A node; or, not in QEMU, a device, whose export follows it to other nodes, or a "
            "view's DEVICE@VIEW, with which the export ends."},
    {"writable", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Clients may write."},
    {"writethrough", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Each write is answered when it is on stable storage."},
    {"allow-inactive", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "No effect: there are no inactive nodes here."},
    {NULL},
};
static const struct qmp_type common_type = {
    .name = "BlockExportOptionsBase",
    .kind = QMP_KIND_OBJECT,
    .members = common_members,
};
static const struct qmp_member nbd_members[] = {
    {"name", &qmp_type_string, .optional = true,
     .doc = "What clients call it; the default is node-name."},
    {"description", &qmp_type_string, .optional = true, .doc = "Free text of up to 4096 bytes."},
    {"bitmaps", &dirty_bitmap_or_string_list_type, .optional = true,
     .doc = "Dirty bitmaps to offer as qemu:dirty-bitmap:NAME. One given by its name alone is "
            "looked for in the backing chain, too. They are busy while the export exists. When it "
            "has moved to where one does not record what is written, clients get an error for "
            "that one."},
    {"allocation-depth", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Offer qemu:allocation-depth: the layer that holds the data."},
    {"changes", &qmp_type_string, .optional = true,
     .doc = "Of DEVICE@SESSION: offer what has changed since the session's parent as "
            "qemu:dirty-bitmap: and this name. Not in QEMU."},
    {"tls-authz", &qmp_type_string, .optional = true,
     .doc = "The ID of an authz object: for others the export is not there. Not in QEMU."},
    {NULL},
};
static const struct qmp_type nbd_type = {
    .name = "BlockExportOptionsNbd",
    .kind = QMP_KIND_OBJECT,
    .members = nbd_members,
};
static const struct qmp_variant export_variants[] = {{"nbd", &nbd_type}, {NULL}};
static const struct qmp_type export_type = {
    .name = "BlockExportOptions",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .discriminator = "type",
    .variants = export_variants,
};
static const char *const remove_modes[] = {"safe", "hard", NULL};
static const struct qmp_type remove_mode_type = {
    .name = "BlockExportRemoveMode",
    .kind = QMP_KIND_ENUM,
    .values = remove_modes,
    .doc = "safe: refused while clients are connected; hard: they are disconnected.",
};
static const struct qmp_member del_members[] = {
    {"id", &qmp_type_string, .doc = "The export."},
    {"mode", &remove_mode_type, .optional = true, .default_text = "safe",
     .doc = "What becomes of its clients."},
    {NULL},
};
static const struct qmp_type del_type = {
    .name = "BlockExportDel",
    .kind = QMP_KIND_OBJECT,
    .members = del_members,
};
static const struct qmp_member info_members[] = {
    {"id", &qmp_type_string, .doc = "Its ID."},
    {"type", &export_type_type, .doc = "What serves it."},
    {"node-name", &qmp_type_string, .doc = "The node that it shows now."},
    {"shutting-down", &qmp_type_bool,
     .doc = "It was deleted, and what clients have begun is not over."},
    {NULL},
};
static const struct qmp_type info_type = {
    .name = "BlockExportInfo",
    .kind = QMP_KIND_OBJECT,
    .members = info_members,
};
static const struct qmp_type info_list_type = {
    .name = "BlockExportInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &info_type,
};

/* The bitmaps that are asked for, with texts of the arguments'. */
static GArray *read_bitmaps(json_t *list)
{
    GArray *bitmaps = g_array_new(FALSE, FALSE, sizeof(struct nbd_export_bitmap));
    json_t *value;
    size_t i;

    json_array_foreach (list, i, value) {
        struct nbd_export_bitmap bitmap = {
            .node = text_argument(value, "node"),
            .name = json_is_string(value) ? json_string_value(value) : text_argument(value, "name"),
        };

        g_array_append_val(bitmaps, bitmap);
    }
    return bitmaps;
}

static int check_export(json_t *arguments, GError **error)
{
    const char *iothread = text_argument(arguments, "iothread");

    if (iothread && object_check_iothread(iothread, error) < 0) {
        return -EINVAL;
    }
    return nbd_server_is_running() ? 0 : block_error(error, EINVAL, "NBD server not running");
}

static json_t *export_add(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GArray) bitmaps = read_bitmaps(json_object_get(arguments, "bitmaps"));
    AUTO(tls_credentials) credentials = NULL;
    AUTO(authorization) authorization = NULL;
    struct nbd_export_options options = {
        .id = text_argument(arguments, "id"),
        .target = text_argument(arguments, "node-name"),
        .name = text_argument(arguments, "name"),
        .description = text_argument(arguments, "description"),
        .writable = lookup_bool(arguments, "writable", false),
        .writethrough = lookup_bool(arguments, "writethrough", false),
        .allocation_depth = lookup_bool(arguments, "allocation-depth", false),
        .bitmaps = (const struct nbd_export_bitmap *)bitmaps->data,
        .bitmap_count = bitmaps->len,
        .changes = text_argument(arguments, "changes"),
    };

    if (check_export(arguments, error) < 0 ||
        find_objects(arguments, &credentials, &authorization, error) < 0) {
        return NULL;
    }
    options.authorization = authorization;
    return nbd_export_add(&options, error) < 0 ? NULL : json_object();
}

/* `id`, or of a command of old `name`. */
static json_t *delete_export(json_t *arguments, const char *id, GError **error)
{
    const char *mode = text_argument(arguments, "mode");
    bool is_hard = mode && !strcmp(mode, "hard");

    return nbd_export_remove(text_argument(arguments, id), is_hard, error) < 0 ? NULL
                                                                               : json_object();
}

static json_t *export_del(struct qmp_request *request, json_t *arguments, GError **error)
{
    return delete_export(arguments, "id", error);
}

static json_t *query_exports(struct qmp_request *request, json_t *arguments, GError **error)
{
    g_autoptr(GArray) infos = nbd_export_query();
    json_t *list = json_array();

    for (guint i = 0; i < infos->len; i++) {
        const struct nbd_export_info *info = &g_array_index(infos, struct nbd_export_info, i);

        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:b}", "id", info->id, "type", "nbd",
                                              "node-name", info->node_name ? info->node_name : "",
                                              "shutting-down", info->is_shutting_down));
    }
    return list;
}

/* ---- The commands of old --------------------------------------------------------------------- */

static const struct qmp_member add_members[] = {
    {"device", &qmp_type_string, .doc = "As node-name of block-export-add."},
    {"name", &qmp_type_string, .optional = true,
     .doc = "What clients call it, and its ID; the default is `device`."},
    {"description", &qmp_type_string, .optional = true, .doc = "Free text of up to 4096 bytes."},
    {"writable", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Clients may write, if the node is not read-only."},
    {"bitmap", &qmp_type_string, .optional = true, .doc = "A dirty bitmap to offer."},
    {NULL},
};
static const struct qmp_type add_type = {
    .name = "NbdServerAddOptions",
    .kind = QMP_KIND_OBJECT,
    .members = add_members,
};
static const struct qmp_member old_remove_members[] = {
    {"name", &qmp_type_string, .doc = "The export."},
    {"mode", &remove_mode_type, .optional = true, .default_text = "safe",
     .doc = "What becomes of its clients."},
    {NULL},
};
static const struct qmp_type old_remove_type = {
    .name = "NbdServerRemove",
    .kind = QMP_KIND_OBJECT,
    .members = old_remove_members,
};

static json_t *nbd_add(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = text_argument(arguments, "name");
    const struct nbd_export_bitmap bitmap = {.name = text_argument(arguments, "bitmap")};
    struct nbd_export_options options = {
        .target = text_argument(arguments, "device"),
        .name = name,
        .description = text_argument(arguments, "description"),
        .bitmaps = &bitmap,
        .bitmap_count = bitmap.name ? 1 : 0,
    };
    AUTO(block_node) node = lookup_device_or_node(options.target, error);

    if (!node) {
        return NULL;
    }
    if (!nbd_server_is_running()) {
        block_error(error, EINVAL, "NBD server not running");
        return NULL;
    }
    options.id = name ? name : options.target;
    options.writable = lookup_bool(arguments, "writable", false) && !block_node_is_read_only(node);
    return nbd_export_add(&options, error) < 0 ? NULL : json_object();
}

static json_t *nbd_remove(struct qmp_request *request, json_t *arguments, GError **error)
{
    return delete_export(arguments, "name", error);
}

const struct qmp_command export_commands[] = {
    {"nbd-server-start", &start_type, NULL, nbd_start, 0,
     "Listen for NBD clients, which are offered what block-export-add adds."},
    {"nbd-server-stop", &stop_type, NULL, nbd_stop, 0,
     "Disconnect a server's clients and listen no more. With the last server all exports go."},
    {"nbd-server-add", &add_type, NULL, nbd_add, QMP_COMMAND_DEPRECATED,
     "Deprecated: block-export-add, with the name as the ID."},
    {"nbd-server-remove", &old_remove_type, NULL, nbd_remove, QMP_COMMAND_DEPRECATED,
     "Deprecated: block-export-del."},
    {"block-export-add", &export_type, NULL, export_add, 0,
     "Offer a node, a device or a view to the clients of our NBD servers. Its length is what it is "
     "when a client connects."},
    {"block-export-del", &del_type, NULL, export_del, 0,
     "Take an export away. BLOCK_EXPORT_DELETED tells when nothing of it is left."},
    {"query-block-exports", NULL, &info_list_type, query_exports, 0, "The exports, newest first."},
    {NULL},
};

static const struct qmp_member deleted_members[] = {
    {"id", &qmp_type_string, .doc = "Its ID."},
    {NULL},
};
static const struct qmp_type deleted_type = {
    .name = "BlockExportDeletedEvent",
    .kind = QMP_KIND_OBJECT,
    .members = deleted_members,
};
const struct qmp_event_type export_events[] = {
    {"BLOCK_EXPORT_DELETED", &deleted_type,
     "An export is gone: what it used is free, and so is its ID."},
    {NULL},
};
