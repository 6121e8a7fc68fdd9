/* SPDX-License-Identifier: BSD-3-Clause */
/* block-stream, block-commit and change-backing-file. */
#include "server/commands-chain.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/gate.h"
#include "jobs/chain-header.h"
#include "jobs/commit.h"
#include "jobs/stream.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/types.h"

static const struct qmp_member common_members[] = {
    JOB_ID_MEMBER,
    {"backing-file", &qmp_type_string, .optional = true,
     .doc = "What the image above is to say instead of the base's name, as it is; it is not looked "
            "at."},
    {"backing-mask-protocol", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Let the image say `raw` if the base is a node without a format; else the name of its "
            "driver."},
    SPEED_MEMBER,
    GUEST_LATENCY_MEMBER,
    JOB_END_MEMBERS("the job"),
    {NULL},
};
static const struct qmp_type common_type = {
    .name = "ChainJobCommon",
    .kind = QMP_KIND_OBJECT,
    .members = common_members,
};

static const struct qmp_member stream_members[] = {
    {"device", &qmp_type_string,
     .doc = "What to fill: a device, or a node, also one that is a backing file itself."},
    {"base", &qmp_type_string, .optional = true,
     .doc = "The backing file that stays, by its file name, or"},
    {"base-node", &qmp_type_string, .optional = true, .doc = "by its node, or"},
    {"bottom", &qmp_type_string, .optional = true,
     .doc = "the node above it, the last one that goes. None of the three: all go."},
    {"on-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when copying fails. With ignore the job goes on, fails at its end, and "
            "the chain stays as it is."},
    {"filter-node-name", &qmp_type_string, .optional = true,
     .doc = "Put a copy-on-read node of this name above the node while the job runs, so that what "
            "guests read is brought into it, too. There is none by default."},
    {NULL},
};
static const struct qmp_type stream_type = {
    .name = "BlockStream",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = stream_members,
};

static const struct qmp_member commit_members[] = {
    {"device", &qmp_type_string,
     .doc = "Whose chain it is: a device, or a node that is neither a backing file nor another's "
            "file."},
    {"top-node", &qmp_type_string, .optional = true,
     .doc = "The uppermost image that goes, by its node, or"},
    {"top", &qmp_type_string, .optional = true, .deprecated = true,
     .doc =
         "by its file name. Neither: the device's own image, which the guest writes to; then the "
         "job has to be completed."},
    {"base-node", &qmp_type_string, .optional = true,
     .doc = "The image that takes its place and that of those between, by its node, or"},
    {"base", &qmp_type_string, .optional = true, .deprecated = true,
     .doc = "by its file name. Neither: the lowest one."},
    {"on-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when copying fails. With ignore it is tried again."},
    FILTER_NODE_NAME_MEMBER("commit_top"),
    {NULL},
};
static const struct qmp_type commit_type = {
    .name = "BlockCommit",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = commit_members,
};

static const struct qmp_member change_members[] = {
    {"device", &qmp_type_string, .doc = "A device, or the node its chain begins with."},
    {"image-node-name", &qmp_type_string, .doc = "The image to change: a node in that chain."},
    {"backing-file", &qmp_type_string,
     .doc = "What it is to say that its backing file is; it is not looked at."},
    {NULL},
};
static const struct qmp_type change_type = {
    .name = "ChangeBackingFile",
    .kind = QMP_KIND_OBJECT,
    .members = change_members,
};

static const char *text(json_t *arguments, const char *name)
{
    return json_string_value(json_object_get(arguments, name));
}

/* ---- Finding nodes of a chain ---------------------------------------------------------------- */

/* Whether a node's file goes by this name. */
static bool has_filename(struct block_node *node, const char *name)
{
    g_autofree char *filename = block_node_get_filename(node);

    if (!filename || !strcmp(filename, name)) {
        return filename;
    }
    if (!block_reference_is_path(filename) || !block_reference_is_path(name)) {
        return false;
    }
    g_autofree char *canonical = g_canonicalize_filename(filename, NULL);
    g_autofree char *wanted = g_canonicalize_filename(name, NULL);
    return !strcmp(canonical, wanted);
}

/* The layer of this file in the chain that begins with top: a new reference, or NULL. */
static struct block_node *find_by_filename(struct block_node *top, const char *name)
{
    struct block_node *node = block_node_ref(top);

    while (node && (node->driver->is_filter || !has_filename(node, name))) {
        struct block_node *below = block_chain_below(node);

        block_node_unref(node);
        node = below;
    }
    return node;
}

/* The lowest layer of a chain: a new reference. */
static struct block_node *find_lowest(struct block_node *top)
{
    struct block_node *node = block_node_ref(top);
    struct block_node *below;

    while ((below = block_chain_below(node))) {
        block_node_unref(node);
        node = below;
    }
    return node;
}

#define NOT_BOTH_IN_STREAM "cannot be specified at the same time"
#define NOT_BOTH_IN_COMMIT "are mutually exclusive"

/* Of two ways to name a node only one may be used. why: the error, in the command's own words. */
static int check_one_of(json_t *arguments, const char *a, const char *b, const char *why,
                        GError **error)
{
    return json_object_get(arguments, a) && json_object_get(arguments, b)
               ? block_error(error, EINVAL, "'%s' and '%s' %s", a, b, why)
               : 0;
}

/* ---- block-stream ---------------------------------------------------------------------------- */

static struct block_node *base_by_node(struct block_node *node, const char *name, GError **error)
{
    AUTO(block_node) base = block_node_find_or_error(name, error);

    if (base && (base == node || !block_chain_contains(node, base))) {
        block_error(error, EINVAL, "Node '%s' is not a backing image of '%s'", name, node->name);
        return NULL;
    }
    return STEAL(base);
}

static struct block_node *base_by_file(struct block_node *node, const char *name, GError **error)
{
    AUTO(block_node) below = block_chain_below(node);
    struct block_node *base = below ? find_by_filename(below, name) : NULL;

    if (!base) {
        block_error(error, ENOENT, "Can't find '%s' in the backing chain", name);
    }
    return base;
}

/* In *base what is below the last node that goes: a new reference, or NULL if that is nothing. */
static int base_below(struct block_node *node, const char *name, struct block_node **base,
                      GError **error)
{
    AUTO(block_node) bottom = block_node_find_or_error(name, error);

    if (!bottom) {
        return -ENOENT;
    }
    if (bottom->driver->is_filter) {
        return block_error(error, EINVAL,
                           "Node '%s' is a filter, use a non-filter node as 'bottom'", name);
    }
    if (!block_chain_contains(node, bottom)) {
        return block_error(error, EINVAL, "Node '%s' is not in a chain starting from '%s'", name,
                           node->name);
    }
    *base = block_chain_below(bottom);
    return 0;
}

/* In *base a new reference, or NULL: nothing stays. */
static int find_stream_base(json_t *arguments, struct block_node *node, struct block_node **base,
                            GError **error)
{
    const char *file = text(arguments, "base");
    const char *name = text(arguments, "base-node");
    const char *bottom = text(arguments, "bottom");

    *base = NULL;
    if (check_one_of(arguments, "base", "base-node", NOT_BOTH_IN_STREAM, error) < 0 ||
        check_one_of(arguments, "base", "bottom", NOT_BOTH_IN_STREAM, error) < 0 ||
        check_one_of(arguments, "bottom", "base-node", NOT_BOTH_IN_STREAM, error) < 0) {
        return -EINVAL;
    }
    if (bottom) {
        return base_below(node, bottom, base, error);
    }
    if (file) {
        *base = base_by_file(node, file, error);
    } else if (name) {
        *base = base_by_node(node, name, error);
    }
    return !*base && (file || name) ? -EINVAL : 0;
}

static json_t *block_stream(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(block_node) root = lookup_device_or_node(text(arguments, "device"), error);
    AUTO(block_node) node = root ? block_layer_of(root) : NULL;
    AUTO(block_node) base = NULL;

    if (!node || find_stream_base(arguments, node, &base, error) < 0) {
        return NULL;
    }
    struct stream_options options = {
        .job_id = lookup_job_id(arguments),
        .node = node,
        .base = base,
        .backing_file = text(arguments, "backing-file"),
        .mask_protocol = lookup_bool(arguments, "backing-mask-protocol", false),
        .filter_node_name = text(arguments, "filter-node-name"),
        .speed = lookup_integer(arguments, "speed", 0),
        .guest_latency = lookup_integer(arguments, "guest-latency", 0),
        .on_error = lookup_on_error(arguments, "on-error"),
        .job_flags = lookup_job_flags(arguments),
    };
    return stream_start(&options, error) == 0 ? json_object() : NULL;
}

/* ---- block-commit ---------------------------------------------------------------------------- */

/* The node of the chain that an argument names, by node or by file: a new reference, or NULL. */
static struct block_node *find_in_chain(struct block_node *root, const char *name, bool is_file,
                                        const char *unknown_file, GError **error)
{
    AUTO(block_node) node =
        is_file ? find_by_filename(root, name) : block_node_find_or_error(name, error);

    if (!node && is_file) {
        block_error(error, ENOENT, unknown_file, name);
    }
    if (node && !block_chain_contains(root, node)) {
        block_error(error, EINVAL, "'%s' is not in this backing file chain", name);
        return NULL;
    }
    return STEAL(node);
}

static struct block_node *find_commit_top(json_t *arguments, struct block_node *root,
                                          GError **error)
{
    const char *name = text(arguments, "top-node");
    const char *file = text(arguments, "top");

    if (check_one_of(arguments, "top-node", "top", NOT_BOTH_IN_COMMIT, error) < 0) {
        return NULL;
    }
    return name || file ? find_in_chain(root, name ? name : file, !name,
                                        "Top image file %s not found", error)
                        : block_node_ref(root);
}

static struct block_node *find_commit_base(json_t *arguments, struct block_node *top,
                                           GError **error)
{
    const char *name = text(arguments, "base-node");
    const char *file = text(arguments, "base");

    if (check_one_of(arguments, "base-node", "base", NOT_BOTH_IN_COMMIT, error) < 0) {
        return NULL;
    }
    return name || file ? find_in_chain(top, name ? name : file, !name,
                                        "Can't find '%s' in the backing chain", error)
                        : find_lowest(top);
}

static json_t *block_commit(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = text(arguments, "device");
    AUTO(block_device) device = block_device_find(name);
    AUTO(block_node) root = lookup_device_or_node(name, NULL);

    if (!root) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", name);
        return NULL;
    }
    AUTO(block_node) top = find_commit_top(arguments, root, error);
    AUTO(block_node) base = top ? find_commit_base(arguments, top, error) : NULL;
    if (!base) {
        return NULL;
    }
    struct commit_options options = {
        .job_id = lookup_job_id(arguments),
        .root = root,
        .device = device,
        .top = top,
        .base = base,
        .backing_file = text(arguments, "backing-file"),
        .filter_node_name = text(arguments, "filter-node-name"),
        .mask_protocol = lookup_bool(arguments, "backing-mask-protocol", false),
        .speed = lookup_integer(arguments, "speed", 0),
        .guest_latency = lookup_integer(arguments, "guest-latency", 0),
        .on_error = lookup_on_error(arguments, "on-error"),
        .job_flags = lookup_job_flags(arguments),
    };
    return commit_start(&options, error) == 0 ? json_object() : NULL;
}

/* ---- change-backing-file --------------------------------------------------------------------- */

/* Jobs that change it themselves at their end are in the way, and are named. */
static int change_held(struct block_node *image, const char *name, GError **error)
{
    g_autofree char *owner = g_strdup("the command change-backing-file");
    struct block_claim claim = {
        .owner = owner,
        .perms = BLOCK_PERM_BACKING,
        .shared = BLOCK_PERM_ALL & ~(unsigned)BLOCK_PERM_BACKING,
    };
    int status = block_claim_acquire(&claim, image, error);

    if (status < 0) {
        return status;
    }
    AUTO(block_node) backing = block_chain_below(image);
    struct chain_header header = {0};
    struct block_drain *drain = block_drain_begin(&image, 1, BLOCK_PERM_ALL);
    status = backing ? chain_header_change(&header, image, backing, name, true, error)
                     : block_error(error, EINVAL,
                                   "not allowing backing file change on an image without a backing "
                                   "file");
    if (status < 0) {
        chain_header_restore(&header);
    }
    block_drain_end(drain);
    chain_header_clear(&header);
    block_claim_release(&claim);
    return status;
}

static json_t *change_backing_file(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *name = text(arguments, "image-node-name");
    AUTO(block_node) root = lookup_device_or_node(text(arguments, "device"), error);
    AUTO(block_node) image = root ? block_node_find_or_error(name, error) : NULL;

    if (!image) {
        return NULL;
    }
    if (!block_chain_contains(root, image)) {
        block_error(error, EINVAL, "'%s' and image file are not in the same chain",
                    text(arguments, "device"));
        return NULL;
    }
    if (image->driver->is_filter) {
        block_error(error, EINVAL, "Node '%s' is a filter, which has no image", name);
        return NULL;
    }
    return change_held(image, text(arguments, "backing-file"), error) == 0 ? json_object() : NULL;
}

const struct qmp_command chain_commands[] = {
    {"block-stream", &stream_type, NULL, block_stream, 0,
     "Bring what a disk's backing files hold into its own image, while it is used, and take them "
     "out of its chain."},
    {"block-commit", &commit_type, NULL, block_commit, 0,
     "Bring what some images of a disk's chain hold into the one below them, while the disk is "
     "used, and let that take their place."},
    {"change-backing-file", &change_type, NULL, change_backing_file, 0,
     "Change what an image says that its backing file is, and nothing else: for a file that got "
     "another name."},
    {NULL},
};
