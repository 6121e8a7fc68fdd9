/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The types of blockdev-add and blockdev-create, made from the drivers' option tables. They are
 * made once and live as long as the process.
 */
#include "server/types.h"

#include <string.h>

#include "block/driver.h"
#include "server/address.h"

static const struct qmp_member inet_members[] = {
    {"host", &qmp_type_string, .doc = "Host name or address."},
    {"port", &qmp_type_string, .doc = "Port, as a string."},
    {"to", &qmp_type_uint16, .optional = true, .doc = "No effect: it is for who listens."},
    {"ipv4", &qmp_type_bool, .optional = true, .doc = "Whether to connect to IPv4 addresses."},
    {"ipv6", &qmp_type_bool, .optional = true,
     .doc = "Whether to connect to IPv6 addresses. To say that of one alone rules out the other."},
    {"keep-alive", &qmp_type_bool, .optional = true,
     .doc = "Look now and then whether a silent server is there. It is always so here."},
    {NULL},
};
static const struct qmp_type inet_type = {
    .name = "InetSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = inet_members,
};
static const struct qmp_member fd_members[] = {
    {"str", &qmp_type_string, .doc = "Number of an open descriptor."},
    {NULL},
};
static const struct qmp_type fd_type = {
    .name = "FdSocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = fd_members,
};
static const struct qmp_member address_base_members[] = {
    {"type", &socket_address_type_type, .doc = "Transport."},
    {NULL},
};
static const struct qmp_variant address_variants[] = {
    {"inet", &inet_type},
    {"unix", &unix_socket_address_type},
    {"vsock", &vsock_socket_address_type},
    {"fd", &fd_type},
    {NULL},
};
static const struct qmp_type address_type = {
    .name = "SocketAddress",
    .kind = QMP_KIND_OBJECT,
    .members = address_base_members,
    .discriminator = "type",
    .variants = address_variants,
};

static const struct qmp_type strings_type = {
    .name = "strList",
    .kind = QMP_KIND_ARRAY,
    .element = &qmp_type_string,
};

struct qmp_type blockdev_options_type = {
    .name = "BlockdevOptions",
    .kind = QMP_KIND_OBJECT,
    .discriminator = "driver",
    .doc = "How to open a node.",
};

struct qmp_type blockdev_create_options_type = {
    .name = "BlockdevCreateOptions",
    .kind = QMP_KIND_OBJECT,
    .discriminator = "driver",
    .doc = "What image to create.",
};

static const struct qmp_member reference_members[] = {
    {"definition", &blockdev_options_type, .doc = "A new node."},
    {"reference", &qmp_type_string, .doc = "The name of an existing node."},
    {NULL},
};
static const struct qmp_type reference_type = {
    .name = "BlockdevRef",
    .kind = QMP_KIND_ALTERNATE,
    .members = reference_members,
};
static const struct qmp_type reference_list_type = {
    .name = "BlockdevRefList",
    .kind = QMP_KIND_ARRAY,
    .element = &reference_type,
};
static const struct qmp_member reference_or_null_members[] = {
    {"definition", &blockdev_options_type, .doc = "A new node."},
    {"reference", &qmp_type_string, .doc = "The name of an existing node."},
    {"null", &qmp_type_null, .doc = "None, whatever the image says."},
    {NULL},
};
static const struct qmp_type reference_or_null_type = {
    .name = "BlockdevRefOrNull",
    .kind = QMP_KIND_ALTERNATE,
    .members = reference_or_null_members,
};

const char *const on_error_names[] = {"report", "ignore", "enospc", "stop", "auto", NULL};
const struct qmp_type on_error_type = {
    .name = "BlockdevOnError",
    .kind = QMP_KIND_ENUM,
    .values = on_error_names,
    .doc = "What to do on an I/O error: report (fail), ignore (try again later), stop (pause), "
           "enospc (stop if space is short, else report), auto (as enospc).",
};

/* QEMU has plain integers where nodes are opened, and type size where images are created. */
static const struct qmp_type *object_of_options(const char *name, const struct block_option *table,
                                                const struct qmp_type *size_type);

static const struct qmp_type *type_of_option(const struct block_option *option,
                                             const struct qmp_type *size_type)
{
    struct qmp_type *type;

    switch (option->type) {
    case BLOCK_OPTION_STRING:
        return &qmp_type_string;
    case BLOCK_OPTION_BOOL:
        return &qmp_type_bool;
    case BLOCK_OPTION_INT:
        return &qmp_type_int;
    case BLOCK_OPTION_UINT:
        return &qmp_type_uint64;
    case BLOCK_OPTION_SIZE:
        return size_type;
    case BLOCK_OPTION_NODE:
        return strcmp(option->name, "backing") ? &reference_type : &reference_or_null_type;
    case BLOCK_OPTION_NODES:
        return &reference_list_type;
    case BLOCK_OPTION_ADDRESS:
        return &address_type;
    case BLOCK_OPTION_STRINGS:
        return &strings_type;
    case BLOCK_OPTION_ENUM:
        type = g_new0(struct qmp_type, 1);
        type->name = option->name;
        type->kind = QMP_KIND_ENUM;
        type->values = option->enum_values;
        return type;
    case BLOCK_OPTION_LIST:
        type = g_new0(struct qmp_type, 1);
        type->name = g_strconcat(option->name, "List", NULL);
        type->kind = QMP_KIND_ARRAY;
        type->element = object_of_options(option->name, option->element_options, size_type);
        return type;
    }
    g_assert_not_reached();
}

static void append_member(GArray *members, const char *name, const struct qmp_type *type,
                          const struct block_option *option)
{
    struct qmp_member member = {
        .name = name,
        .type = type,
        .optional = !option->required,
        .default_text = option->default_text,
        .doc = option->can_change
                   ? g_strconcat(option->help, " Can change while the node is open.", NULL)
                   : option->help,
    };

    g_array_append_val(members, member);
}

static const struct qmp_member *finish_members(GArray *members)
{
    return (const struct qmp_member *)(void *)g_array_free(members, FALSE);
}

/* Options "cache.direct", "cache.no-flush" are one member `cache`, an object. */
static const struct block_option *append_group(GArray *members, const struct block_option *option,
                                               const char *dot, const struct qmp_type *size_type)
{
    size_t length = (size_t)(dot - option->name) + 1;
    char *group = g_strndup(option->name, length - 1);
    struct qmp_type *type = g_new0(struct qmp_type, 1);
    GArray *inner = g_array_new(TRUE, TRUE, sizeof(struct qmp_member));
    struct qmp_member member = {.name = group, .type = type, .optional = true};
    const struct block_option *next = option;

    for (; next->name && !strncmp(next->name, option->name, length); next++) {
        append_member(inner, next->name + length, type_of_option(next, size_type), next);
    }
    type->name = group;
    type->kind = QMP_KIND_OBJECT;
    type->members = finish_members(inner);
    g_array_append_val(members, member);
    return next - 1;
}

static void append_options(GArray *members, const struct block_option *table,
                           const struct qmp_type *size_type)
{
    for (const struct block_option *option = table; option && option->name; option++) {
        const char *dot = strchr(option->name, '.');

        if (dot) {
            option = append_group(members, option, dot, size_type);
        } else {
            append_member(members, option->name, type_of_option(option, size_type), option);
        }
    }
}

void types_append_options(GArray *members, const struct block_option *table)
{
    append_options(members, table, &qmp_type_int);
}

static const struct qmp_type *object_of_options(const char *name, const struct block_option *table,
                                                const struct qmp_type *size_type)
{
    GArray *members = g_array_new(TRUE, TRUE, sizeof(struct qmp_member));
    struct qmp_type *type = g_new0(struct qmp_type, 1);

    append_options(members, table, size_type);
    type->name = name;
    type->kind = QMP_KIND_OBJECT;
    type->members = finish_members(members);
    return type;
}

/* The members every branch has: the discriminator, and what is common. */
static const struct qmp_member *base_members(const char *const *names,
                                             const struct block_option *common)
{
    GArray *members = g_array_new(TRUE, TRUE, sizeof(struct qmp_member));
    struct qmp_type *driver_type = g_new0(struct qmp_type, 1);
    struct qmp_member driver = {"driver", driver_type, .doc = "Block driver."};
    struct qmp_member node_name = {"node-name", &qmp_type_string, .optional = true,
                                   .doc = "Name of the new node."};

    driver_type->name = "BlockdevDriver";
    driver_type->kind = QMP_KIND_ENUM;
    driver_type->values = names;
    g_array_append_val(members, driver);
    if (common) {
        g_array_append_val(members, node_name);
        types_append_options(members, common);
    }
    return finish_members(members);
}

static void make_union(struct qmp_type *type, const char *suffix, bool create)
{
    GPtrArray *names = g_ptr_array_new();
    GArray *variants = g_array_new(TRUE, TRUE, sizeof(struct qmp_variant));

    for (const struct block_driver *const *driver = block_driver_list(); *driver; driver++) {
        const struct block_option *table = create ? (*driver)->create_options : (*driver)->options;
        struct qmp_variant variant = {.value = (*driver)->name};

        if (create && !(*driver)->create) {
            continue;
        }
        g_ptr_array_add(names, (void *)(uintptr_t)(*driver)->name);
        if (table) {
            variant.type = object_of_options(g_strconcat(type->name, suffix, (*driver)->name, NULL),
                                             table, create ? &qmp_type_size : &qmp_type_int);
        }
        g_array_append_val(variants, variant);
    }
    g_ptr_array_add(names, NULL);
    type->members = base_members((const char *const *)g_ptr_array_free(names, FALSE),
                                 create ? NULL : block_common_options);
    type->variants = (const struct qmp_variant *)(void *)g_array_free(variants, FALSE);
}

void types_init(void)
{
    if (!blockdev_options_type.members) {
        make_union(&blockdev_options_type, "-", false);
        make_union(&blockdev_create_options_type, "-", true);
    }
}
